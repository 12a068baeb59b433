//! Packets of which each has another random IPv4 source, so that no cache holds what the next one needs, beside the
//! kernel's own trie with the same prefixes. Also what it takes to load that many.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use harness::bpf;
use harness::programs::Prefix;

use super::Args;
use super::kernel::{DROP, PACKETS, PASS, Subjects, TURNS, measure};
use super::prefixes::{Lengths, SplitMix, random};
use super::report::Report;
use super::subject::Subject;

/// With how many rules, of which lengths.
pub(super) const CASES: [(&str, usize, Lengths); 5] = [
    ("random_0", 0, Lengths::Hosts),
    ("random_10k", 10_000, Lengths::Hosts),
    ("random_1m", 1_000_000, Lengths::Hosts),
    ("random_mixed_1m", 1_000_000, Lengths::Mixed),
    ("random_10m", 10_000_000, Lengths::Hosts),
];
/// More than these take minutes and gigabytes.
const MANY: usize = 1_000_000;
/// So many packets a turn that the caches have forgotten the subject before; fewer would measure that.
const REPEAT: u32 = PACKETS / TURNS;
const ROUNDS_QUICK: u32 = 3;
/// Of both subjects with ten million rules, in the kernel and here, with room to spare.
const MEMORY_MANY_KIB: u64 = 8 << 20;
/// Where an Ethernet frame without tags has its IPv4 source.
const SOURCE: std::ops::Range<usize> = 26..30;
/// Sources that both must decide alike. Not more: each costs the kernel a rewritten dispatcher.
const CHECKED: usize = 16;
const MIB: f64 = 1_048_576.0;

/// Measures all cases with `frame`, which has no tags and no options.
pub(super) fn run(args: &Args, frame: &[u8], report: &mut Report) -> Result<()> {
    let rounds = if args.quick { args.rounds.min(ROUNDS_QUICK) } else { args.rounds };
    for (name, rules, lengths) in CASES.into_iter().filter(|case| args.is_chosen(case.0)) {
        if rules > MANY && args.quick {
            report.skip(name, "it takes minutes; not with --quick");
        } else if rules > MANY && status("/proc/meminfo", "MemAvailable:")? < MEMORY_MANY_KIB {
            report.skip(name, "less than 8 GiB of memory are available");
        } else {
            let denied: Vec<Prefix> = random(lengths).take(rules).collect();
            case((name, frame), &denied, rounds, report).with_context(|| format!("case {name}"))?;
        }
    }
    Ok(())
}

fn case(
    (name, frame): (&str, &[u8]),
    denied: &[Prefix],
    rounds: u32,
    report: &mut Report,
) -> Result<()> {
    let gateway = filled_gateway(name, denied, report)?;
    let started = Instant::now();
    let trie = Subject::trie(denied)?;
    let fill = ("fill_ms", started.elapsed().as_secs_f64() * 1000.0);
    let kernel = ("kernel_mib", trie.kernel_bytes()? as f64 / MIB);
    report.round(name, "lpm", 1, &[fill, kernel]);

    agree([&gateway, &trie], frame, denied)?;
    let mut subjects: Subjects =
        vec![("gateway", gateway.randomised()?), ("lpm", trie.randomised()?)];
    if !denied.is_empty() {
        // In the same rounds, or the difference would be what the machine did in between.
        subjects.push(("gateway-no-rules", Subject::gateway_for(denied.len())?.randomised()?));
    }
    let empty = Subject::empty()?.randomised()?;
    for subject in subjects.iter().map(|(_, subject)| subject).chain([&empty]) {
        let verdict = bpf::test_run(subject.program()?, frame, 1)?.verdict;
        ensure!([PASS, DROP].contains(&verdict), "the chained program returns {verdict}");
    }
    measure((&empty, &subjects), (name, frame), rounds, REPEAT, report)
}

/// With what it took: the time, the memory of all its maps, and of what this process keeps beside them.
fn filled_gateway(name: &str, denied: &[Prefix], report: &mut Report) -> Result<Subject> {
    let mut gateway = Subject::gateway_for(denied.len())?;
    let before = status("/proc/self/status", "RssAnon:")?;
    let started = Instant::now();
    gateway.deny(denied)?;
    let fill = ("fill_ms", started.elapsed().as_secs_f64() * 1000.0);
    let kept = status("/proc/self/status", "RssAnon:")?.saturating_sub(before);
    let kept = ("user_mib", kept as f64 / 1024.0);
    let kernel = ("kernel_mib", gateway.kernel_bytes()? as f64 / MIB);
    report.round(name, "gateway", 1, &[fill, kernel, kept]);
    Ok(gateway)
}

/// Holds the two against each other, for denied sources and for others.
fn agree(subjects: [&Subject; 2], frame: &[u8], denied: &[Prefix]) -> Result<()> {
    let mut numbers = SplitMix(1);
    let step = (denied.len() / CHECKED).max(1);
    let listed = denied.iter().step_by(step).take(CHECKED).map(|(address, _)| (*address, true));
    let others =
        (0..CHECKED).map(|_| (IpAddr::from(Ipv4Addr::from_bits(numbers.next() as u32)), false));
    for (address, is_listed) in listed.chain(others) {
        let IpAddr::V4(v4) = address else { continue };
        let mut frame = frame.to_vec();
        frame.get_mut(SOURCE).context("no source in the frame")?.copy_from_slice(&v4.octets());
        let [ours, theirs] = subjects.map(|subject| -> Result<u32> {
            Ok(bpf::test_run(subject.program()?, &frame, 1)?.verdict)
        });
        let (ours, theirs) = (ours?, theirs?);
        ensure!(ours == theirs, "{address}: the gateway returns {ours}, the trie {theirs}");
        ensure!(!is_listed || ours == DROP, "{address} is denied and not dropped");
    }
    Ok(())
}

/// A number of kibibytes that the kernel tells about itself or this process.
fn status(file: &str, key: &str) -> Result<u64> {
    let text = std::fs::read_to_string(file)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"));
    Ok(value.with_context(|| format!("{file} has no {key}"))?.parse()?)
}
