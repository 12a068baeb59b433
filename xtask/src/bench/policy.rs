//! `cargo xtask bench policy`: what it costs to decide how much callers may, in the process itself: a million keys, all
//! CPUs at once, each decision with its own clock and hash; and to know who calls. Processor time, so that what else
//! runs meanwhile is not measured. And what all of it adds to a request, in a gateway under load.

mod keys;
mod redis;
mod requests;
mod synchronised;
mod tokens;

use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use gateway::base::time::Moment;
use gateway::config::Period;
use gateway::limit::algorithm::fixed_window::FixedWindow;
use gateway::limit::algorithm::leaky_bucket::LeakyBucket;
use gateway::limit::algorithm::sliding_log::SlidingLog;
use gateway::limit::algorithm::sliding_window::SlidingWindow;
use gateway::limit::algorithm::token_bucket::TokenBucket;
use gateway::limit::counter::{Counter, Memory, Terms};
use gateway::limit::held::Held;
use gateway::limit::key::KeyHash;
use gateway::limit::table::Table;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, json};

pub(super) use requests::train;

use super::Args;
use super::report::{Comparison, Report};

const KEYS: usize = 1_000_000;
const SEED: u64 = 0x5eed;
const SECOND_NS: u64 = 1_000_000_000;

/// What is measured, by its name in `--case`.
const CASES: [(&str, Case); 4] = [
    ("local", local),
    ("local_one_key", local_one_key),
    ("tokens", tokens::tokens),
    ("keys", keys::keys),
];

type Case = fn(&Args, &str, &mut Report) -> anyhow::Result<()>;

pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        return optimised(root);
    }
    let of_requests = requests::CASES.map(|(name, _)| name);
    let known = [&CASES.map(|(name, _)| name)[..], &of_requests[..]].concat();
    args.check_cases(&known)?;
    let mut setup = Map::new();
    setup.insert("keys".to_owned(), json!(KEYS));
    setup.insert("threads".to_owned(), json!(threads()));
    setup.insert("seconds_per_round".to_owned(), json!(requests::seconds(args)));
    let mut report = Report::start(root, args, setup)?;
    for (name, case) in CASES {
        if args.is_chosen(name) {
            case(args, name, &mut report).with_context(|| format!("case {name}"))?;
        }
    }
    requests::run(root, args, &mut report)?;
    let of = |subject| Comparison { figure: "ns_per_decision", subject, peer: "clock" };
    let mut comparisons: Vec<_> = subjects().map(|(name, _)| of(name)).into();
    comparisons.extend(tokens::comparisons());
    comparisons.extend(requests::comparisons());
    comparisons.extend(redis::comparisons());
    comparisons.extend(synchronised::comparisons());
    report.finish(&comparisons)
}

/// The same once more, by a build that is worth measuring.
fn optimised(root: &Path) -> anyhow::Result<()> {
    let mut cargo = crate::cargo(root);
    cargo.args(["run", "--quiet", "--locked", "--release", "--package", "xtask", "--"]);
    let status = cargo.args(std::env::args_os().skip(1)).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the optimised bench failed");
    }
    Ok(())
}

/// What the limit is in each: enough that most requests are admitted, which costs more than to refuse.
fn subjects() -> [(&'static str, Terms); 6] {
    const LIMIT: u32 = 100;
    let interval_ns = SECOND_NS / u64::from(LIMIT);
    [
        ("token_bucket", Terms::TokenBucket(TokenBucket { interval_ns, burst: LIMIT.into() })),
        ("leaky_bucket", Terms::LeakyBucket(LeakyBucket { interval_ns, queue: LIMIT.into() })),
        ("fixed_window", Terms::FixedWindow(FixedWindow { limit: LIMIT }, SECOND_NS)),
        (
            "sliding_window",
            Terms::SlidingWindow(SlidingWindow { limit: LIMIT, window_ns: SECOND_NS }),
        ),
        ("quota", Terms::Quota(FixedWindow { limit: 1_000_000 }, Period::Day)),
        // A ring is as long as its limit.
        ("sliding_log", Terms::SlidingLog(SlidingLog { limit: 20, window_us: SECOND_NS / 1000 })),
    ]
}

fn local(args: &Args, case: &str, report: &mut Report) -> anyhow::Result<()> {
    each_algorithm(args, (case, KEYS), report)
}

/// All CPUs want the same key: the worst that can happen to a word that is shared.
fn local_one_key(args: &Args, case: &str, report: &mut Report) -> anyhow::Result<()> {
    each_algorithm(args, (case, 1), report)
}

fn each_algorithm(
    args: &Args,
    (case, keys): (&str, usize),
    report: &mut Report,
) -> anyhow::Result<()> {
    let counters = subjects().map(|(name, terms)| {
        let memory = Memory::new(KEYS, &terms)?;
        anyhow::Ok((name, Counter::new(terms, memory)))
    });
    let counters = counters.into_iter().collect::<Result<Vec<_>, _>>()?;
    let held = Held::new(KEYS)?;
    let table = Table::new(KEYS)?;
    for key in 0..keys as u64 {
        table.find(hash(key), 0, |_| {}).until().store(1, Relaxed);
    }
    for (_, counter) in &counters {
        for key in 0..keys as u64 {
            ensure!(
                counter.take(hash(key), 1, &Moment::default()).admitted,
                "nothing is left at once"
            );
        }
    }
    let decisions = if args.quick { 500_000 } else { 5_000_000 };
    let mut measured = |round, name: &str, bytes: usize, work: &(dyn Fn(u64) -> bool + Sync)| {
        let ns = on_all_cpus(keys as u64, decisions, work)?;
        let bytes = bytes as f64 / KEYS as f64;
        report.round(case, name, round, &[("ns_per_decision", ns), ("bytes_per_key", bytes)]);
        anyhow::Ok(())
    };
    for round in 1..=args.rounds {
        measured(round, "clock", 0, &|_| gateway::base::time::boot().0 > 0)?;
        measured(round, "cell", table.bytes(), &|key| found_and_exchanged(&table, hash(key)))?;
        for (name, counter) in &counters {
            measured(round, name, counter.memory().bytes(), &|key| {
                counter.take(hash(key), 1, &Moment::default()).admitted
            })?;
        }
        measured(round, "concurrency", held.bytes(), &|key| held.enter(hash(key), 1000).is_ok())?;
    }
    Ok(())
}

/// The least that any decision does: a key's cell is found, the clock is read, and one word is exchanged.
fn found_and_exchanged(table: &Table, hash: u128) -> bool {
    table.prefetch(hash);
    let now_ns = gateway::base::time::boot().0;
    table.known(hash).is_some_and(|cell| {
        let seen = cell.until().load(Relaxed);
        cell.until().compare_exchange(seen, now_ns, AcqRel, Relaxed).is_ok()
    })
}

fn hash(key: u64) -> u128 {
    KeyHash::new(SEED).part(1, &key.to_le_bytes()).hash()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Nanoseconds of processor time of one decision, with all CPUs at it.
fn on_all_cpus(
    keys: u64,
    decisions: u64,
    work: &(dyn Fn(u64) -> bool + Sync),
) -> anyhow::Result<f64> {
    let barrier = Barrier::new(threads());
    let spent = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=threads() as u64)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let mut state = thread;
                    let began = processor_time();
                    let mut admitted = 0u64;
                    for _ in 0..decisions {
                        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                        admitted += u64::from(work(gateway::base::random::mix(state) % keys));
                    }
                    std::hint::black_box(admitted);
                    processor_time().saturating_sub(began)
                })
            })
            .collect();
        let spent = threads.into_iter().map(|thread| match thread.join() {
            Ok(spent) => Ok(spent),
            Err(_) => bail!("a thread of the bench panicked"),
        });
        spent.collect::<anyhow::Result<Vec<Duration>>>()
    })?;
    let ns: f64 = spent.iter().map(|spent| spent.as_nanos() as f64).sum();
    Ok(ns / (decisions * spent.len() as u64) as f64)
}

/// What this thread has used.
fn processor_time() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    let [seconds, nanoseconds] = [used.tv_sec, used.tv_nsec].map(u64::try_from);
    let nanoseconds = Duration::from_nanos(nanoseconds.unwrap_or_default());
    Duration::from_secs(seconds.unwrap_or_default()) + nanoseconds
}
