//! `cargo xtask bench proxy`: what the gateway, nginx and HAProxy cost at the same work, and HAProxy as a plain TCP
//! relay, which is the floor. One subject is loaded at a time, each round begins with another one, all of it on
//! loopback.

mod cases;
pub(super) mod configs;
mod idle;
pub(super) mod load;
pub(super) mod origins;
mod reload;
pub(super) mod subjects;
mod websocket;

use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use super::Args;
use super::report::{Comparison, Report};
use crate::{lab, process, test};
use cases::Case;
use subjects::Field;

/// What the bench calls, and the Debian package that has it.
const TOOLS: [(&str, &str); 6] = [
    ("nginx", "nginx-light"),
    ("haproxy", "haproxy"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("nghttpd", "nghttp2-server"),
    ("taskset", "util-linux"),
];
const FIGURES: [&str; 4] =
    ["cpu_us_per_request", "latency_p50_us", "latency_p99_us", "bytes_per_connection"];
const PEERS: [&str; 5] = ["nginx", "haproxy", "haproxy-tcp", subjects::BASELINE, reload::WITHOUT];

/// CPUs by what runs there.
#[derive(Clone, Copy)]
pub(super) struct Cpus {
    /// The subject.
    pub(super) subject: usize,
    /// The origins and the load generators.
    pub(super) rest: usize,
}

/// What holds for each measurement.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) cpus: Cpus,
    pub(super) seconds: u32,
    pub(super) interrupted: Arc<AtomicBool>,
}

/// Figures of one measurement, with their units in their names.
type Figures = Vec<(&'static str, f64)>;

impl Run {
    fn check(&self) -> anyhow::Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}

pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let cases = Case::chosen(&args.cases)?;
    provide_tools()?;
    let cpus = Cpus::find()?;
    let binary = args.gateway(root)?;
    let interrupted = lab::watch_signals()?;
    raise_descriptor_limit()?;
    let seconds = if args.quick { 1 } else { 5 };
    let run = Run { cpus, seconds, interrupted };
    let new_field = || Field::new(&binary, args.baseline.as_deref(), cpus);
    let field = new_field()?;
    let mut report = Report::start(root, args, setup(args)?)?;
    for subject in &field.subjects {
        subject.check()?;
    }
    for case in cases {
        let done = if case.wants_fresh_subjects() {
            (1..=args.rounds).try_for_each(|round| {
                measure(case, &new_field()?, &run, round..=round, &mut report)
            })
        } else {
            measure(case, &field, &run, 1..=args.rounds, &mut report)
        };
        done.with_context(|| format!("case {}", case.name))?;
    }
    report.finish(&comparisons())
}

/// Loads an instrumented build of the gateway with a bit of everything that is measured here, and answers the profile
/// that it wrote.
pub(super) fn train(binary: &Path, run: &Run) -> anyhow::Result<Vec<u8>> {
    provide_tools()?;
    raise_descriptor_limit()?;
    let field = Field::alone(binary, run.cpus)?;
    for subject in &field.subjects {
        subject.check()?;
        for case in Case::chosen(&[])? {
            case.warm_up(subject, run).with_context(|| format!("case {}", case.name))?;
            field.forget_logs()?;
        }
    }
    field.into_profile()
}

fn provide_tools() -> anyhow::Result<()> {
    let is_root = nix::unistd::geteuid().is_root();
    TOOLS.into_iter().try_for_each(|(program, package)| test::provide(program, package, is_root))
}

fn comparisons() -> Vec<Comparison> {
    let of = |subject, peer| FIGURES.map(|figure| Comparison { figure, subject, peer });
    let peers = PEERS.into_iter().flat_map(|peer| of(subjects::GATEWAY, peer));
    peers.chain(of(subjects::MANY_ROUTES, subjects::TEN_ROUTES)).collect()
}

/// Rounds of a case. Pools fill and caches warm up before, and nothing of that is measured.
fn measure(
    case: &Case,
    field: &Field,
    run: &Run,
    rounds: RangeInclusive<u32>,
    report: &mut Report,
) -> anyhow::Result<()> {
    if case.is_reload() {
        for round in rounds {
            reload::measure(field, run, |subject, figures| {
                report.round(case.name, subject, round, figures);
            })?;
        }
        return Ok(());
    }
    let subjects = field.of(case);
    let short = Run { seconds: 1, ..run.clone() };
    let mut least = f64::INFINITY;
    for subject in &subjects {
        least = least.min(case.warm_up(subject, &short)?);
    }
    for round in rounds {
        for place in 0..subjects.len() {
            let index = (place + round as usize) % subjects.len();
            let subject = subjects.get(index).context("no subject")?;
            let figures = case
                .measure(subject, run, least)
                .with_context(|| format!("load on {}", subject.name))?;
            run.check()?;
            field.forget_logs()?;
            report.round(case.name, subject.name, round, &figures);
        }
    }
    Ok(())
}

/// Every subject has a descriptor for each of many idle connections and one to the origin, and so has the bench.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(hard >= 20_000, "the bench needs 20,000 open files: raise `ulimit -Hn`");
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// What a reader must know about the run besides the machine.
fn setup(args: &Args) -> anyhow::Result<Map<String, Value>> {
    let first_line = |program: &str, option: &str| -> anyhow::Result<String> {
        let output = subjects::command(program).arg(option).output()?;
        // nginx says it on its error output, wrk with a status of failure.
        let said = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned())
    };
    let mut rustc = Command::new("rustc");
    let setup = json!({
        "nginx": first_line("nginx", "-v")?,
        "haproxy": first_line("haproxy", "-v")?,
        "wrk": first_line("wrk", "-v")?,
        "h2load": first_line("h2load", "--version")?,
        "rustc": process::output(rustc.arg("-V"))?,
        "seconds_per_round": if args.quick { 1 } else { 5 },
        "body_bytes": origins::BODY.len(),
        "access_log": "on in all but haproxy-tcp: JSON of the same fields, in files; nginx with a buffer of 64 KiB",
    });
    Ok(setup.as_object().cloned().unwrap_or_default())
}

impl Cpus {
    /// The first and the last CPU that this process may use.
    pub(super) fn find() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut allowed = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        match (allowed.next(), allowed.next_back()) {
            (Some(subject), Some(rest)) => Ok(Self { subject, rest }),
            _ => bail!("one CPU is too few: the proxy and the load generator would share it"),
        }
    }
}
