//! `cargo xtask bench bulk`: a file of a million prefixes put in force and replaced, through the binary that users run,
//! beside `nft -f` and `ipset restore`. It sends no packet, and touches only namespaces that it made.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::programs::Prefix;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::link::{INTERFACE, Link};
use super::prefixes::{Lengths, distinct, lines, random};
use super::report::{Comparison, Report};
use super::{Args, peers};
use crate::{lab, process, test};

/// Rules, and how long memory has to be given back.
const FULL: (usize, Duration) = (1_000_000, Duration::from_secs(5));
const QUICK: (usize, Duration) = (100_000, Duration::from_millis(200));
/// One in so many differs in the second version of a list.
const CHANGED: usize = 100;
/// nft takes a minute where a list has more than hosts.
const ROUNDS_NFT: u32 = 1;
const TABLE: &str = "inet bench";
/// What the bench calls, and the Debian package that has it.
const TOOLS: [(&str, &str); 3] = [("ip", "iproute2"), ("nft", "nftables"), ("ipset", "ipset")];

const CASES: [(&str, Lengths); 2] =
    [("ipv4_mixed", Lengths::Mixed), ("hosts_and_ipv6", Lengths::BothFamilies)];

const IMPORT: &str = "import_ms";
const REPLACE: &str = "replace_ms";
const COMPARISONS: [Comparison; 4] = [
    Comparison { figure: IMPORT, subject: "gateway", peer: "nft" },
    Comparison { figure: IMPORT, subject: "gateway", peer: "ipset" },
    Comparison { figure: REPLACE, subject: "gateway", peer: "nft" },
    Comparison { figure: REPLACE, subject: "gateway", peer: "ipset" },
];

pub(super) fn run(root: &Path, args: &Args) -> Result<()> {
    args.check_cases(&CASES.map(|(name, _)| name))?;
    harness::require_root()?;
    for (program, package) in TOOLS {
        test::provide(program, package, true)?;
    }
    let binary = args.gateway(root)?;
    let interrupted = lab::watch_signals()?;
    let (rules, settle) = if args.quick { QUICK } else { FULL };
    let mut report = Report::start(root, args, setup(rules)?)?;
    for (name, lengths) in CASES.into_iter().filter(|(name, _)| args.is_chosen(name)) {
        let lists = Lists::write(lengths, (rules, settle))?;
        for round in 1..=args.rounds {
            for subject in subjects(round) {
                ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
                let figures = measure(subject, &binary, &lists)
                    .with_context(|| format!("{subject}, case {name}"))?;
                report.round(name, subject, round, &figures);
            }
        }
    }
    report.finish(&COMPARISONS)
}

/// Who takes part in a round, each time beginning with another one.
fn subjects(round: u32) -> Vec<&'static str> {
    let mut subjects = vec!["gateway", "ipset", "nft"];
    subjects.truncate(if round > ROUNDS_NFT { 2 } else { 3 });
    let first = round as usize % subjects.len();
    subjects.rotate_left(first);
    subjects
}

type Figures = Vec<(&'static str, f64)>;

/// In a network of its own, so that nothing is left of the round before.
fn measure(subject: &str, binary: &Path, lists: &Lists) -> Result<Figures> {
    let link = Link::new()?;
    let program = |program: &str, arguments: &[&str], file: &str| {
        let file = lists.folder.path().join(file);
        timed(|| link.run(Command::new(program).args(arguments).arg(file)))
    };
    match subject {
        "gateway" => gateway(&link, binary, lists),
        "nft" => Ok(vec![
            (IMPORT, program("nft", &["-f"], "first.nft")?),
            (REPLACE, program("nft", &["-f"], "second.nft")?),
        ]),
        _ => Ok(vec![
            (IMPORT, program("ipset", &["restore", "-f"], "first.ipset")?),
            (REPLACE, program("ipset", &["restore", "-f"], "second.ipset")?),
        ]),
    }
}

fn gateway(link: &Link, binary: &Path, lists: &Lists) -> Result<Figures> {
    // The new rules of a version are added before the old ones go.
    let mut gateway = link.gateway(binary, lists.rules + lists.rules / CHANGED)?;
    gateway.start()?;
    ensure!(gateway.modes()? == [(INTERFACE.to_owned(), "native".to_owned())], "not native");
    let pid = gateway.status()?.get("pid").and_then(Value::as_u64).context("no process")?;
    let settled = || {
        std::thread::sleep(lists.settle);
        Memory::of(pid)
    };
    let import = |file: &str| {
        let file = lists.folder.path().join(file);
        let file = file.to_str().context("a path is not text")?;
        // A list with short prefixes wants to be meant.
        timed(|| gateway.cli(&["deny", "import", file, "--list", "bench", "--yes"])?.ok())
    };
    let idle = settled()?;
    let import_ms = import("first.txt")?;
    let [at_once, later] = [Memory::of(pid)?, settled()?];
    let replace_ms = import("second.txt")?;
    let replaced = settled()?;
    let status = gateway.status()?;
    let known = status.pointer("/rules/deny").and_then(Value::as_u64);
    ensure!(known == Some(lists.rules as u64), "not {} rules: {status}", lists.rules);
    let mib = |memory: &Memory| tenths(memory.resident as f64 / f64::from(1 << 20));
    let most = [&at_once, &later, &replaced].map(|memory| memory.resident).into_iter().max();
    Ok(vec![
        (IMPORT, import_ms),
        (REPLACE, replace_ms),
        ("idle_mib", mib(&idle)),
        ("loaded_mib", mib(&at_once)),
        ("settled_mib", mib(&later)),
        ("replaced_mib", mib(&replaced)),
        ("replaced_anonymous_mib", tenths(replaced.anonymous as f64 / f64::from(1 << 20))),
        // Of all that the process has, not only of what the rules took: what it had before may have been free.
        ("bytes_per_rule_at_most", tenths(most.unwrap_or(0) as f64 / lists.rules as f64)),
    ])
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(tenths(started.elapsed().as_secs_f64() * 1000.0))
}

/// Of a process, in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Memory {
    /// Without what it has mapped of the kernel's maps, which are there with or without it; with mapped files.
    resident: u64,
    anonymous: u64,
}

impl Memory {
    fn of(pid: u64) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let memory = Self::parse(&text);
        ensure!(memory.anonymous > 0, "{path} says nothing");
        Ok(memory)
    }

    fn parse(smaps: &str) -> Self {
        let mut memory = Self::default();
        let mut is_kernels = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let (Some(key), value) = (words.next(), words.next()) else { continue };
            let bytes = value.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024;
            match key {
                "Rss:" if !is_kernels => memory.resident += bytes,
                "Anonymous:" => memory.anonymous += bytes,
                // The first line of a mapping has its addresses in this place.
                _ if !key.ends_with(':') => is_kernels = line.ends_with("anon_inode:bpf-map"),
                _ => {}
            }
        }
        memory
    }
}

/// Two versions of a list, in the files that each subject reads.
struct Lists {
    folder: TempDir,
    rules: usize,
    /// How long memory has to be given back before it is counted.
    settle: Duration,
}

impl Lists {
    fn write(lengths: Lengths, (rules, settle): (usize, Duration)) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("gateway-bench-").tempdir()?;
        let (first, second) = versions(lengths, rules);
        let files = [
            ("first.txt", lines(&first)),
            ("second.txt", lines(&second)),
            ("first.nft", peers::nft(TABLE, &first, "")),
            ("second.nft", peers::nft_replace(TABLE, &second)),
            ("first.ipset", peers::ipset(&first)),
            ("second.ipset", peers::ipset_replace(&second)),
        ];
        for (name, text) in files {
            let path: PathBuf = folder.path().join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(Self { folder, rules, settle })
    }
}

/// In the second, one in a hundred of the first is gone and as many are new.
fn versions(lengths: Lengths, rules: usize) -> (Vec<Prefix>, Vec<Prefix>) {
    let mut first = distinct(random(lengths), rules + rules / CHANGED);
    let new = first.split_off(rules);
    let kept = first.iter().enumerate().filter(|(index, _)| index % CHANGED != 0);
    let second = kept.map(|(_, prefix)| *prefix).chain(new).collect();
    (first, second)
}

/// What a reader must know about the run besides the machine.
fn setup(rules: usize) -> Result<Map<String, Value>> {
    let version = |package: &str| {
        process::output(Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]))
    };
    let setup = json!({
        "attach_mode": "native (veth)",
        "rules": rules,
        "changed": rules / CHANGED,
        "nftables": version("nftables")?,
        "ipset": version("ipset")?,
    });
    Ok(setup.as_object().cloned().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn one_in_a_hundred_differs_between_the_versions() {
        let (first, second) = versions(Lengths::Mixed, 1000);
        let [before, after]: [HashSet<Prefix>; 2] =
            [&first, &second].map(|list| list.iter().copied().collect());
        assert_eq!([before.len(), after.len()], [1000, 1000]);
        assert_eq!(before.intersection(&after).count(), 990);
    }

    #[test]
    fn mapped_files_are_memory_of_the_process_and_the_kernels_maps_are_not() {
        let smaps = "7f00-7f10 rw-s 00000000 00:0f 1  anon_inode:bpf-map\nRss:  64 kB\n\
                     Anonymous: 0 kB\nVmFlags: rd wr\n7f10-7f20 r--s 0 00:01 2  list\nRss: 8 kB\n\
                     Anonymous: 0 kB\n7f20-7f30 rw-p 00000000 00:00 0\nRss: 16 kB\nAnonymous: 12 kB\n";
        let memory = Memory { resident: 24 * 1024, anonymous: 12 * 1024 };
        assert_eq!(Memory::parse(smaps), memory);
    }

    #[test]
    fn every_round_has_ours_and_only_the_first_has_the_slow_peer() {
        assert_eq!(subjects(1), ["ipset", "nft", "gateway"]);
        assert_eq!(subjects(2), ["gateway", "ipset"]);
        assert_eq!(subjects(3), ["ipset", "gateway"]);
    }
}
