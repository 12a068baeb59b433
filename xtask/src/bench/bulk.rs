//! `cargo xtask bench bulk`: a file of a million prefixes put in force and replaced, through the binary that users run,
//! beside `nft -f` and `ipset restore`. It sends no packet, and touches only namespaces that it made.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::link::{INTERFACE, Link};
use super::prefixes::{Lengths, Prefix, distinct, lines, random};
use super::report::{Comparison, Report};
use super::{Args, peers};
use crate::{lab, process, test};

const RULES: usize = 1_000_000;
const RULES_QUICK: usize = 100_000;
/// One in so many differs in the second version of a list.
const CHANGED: usize = 100;
/// nft takes a minute where a list has more than hosts.
const ROUNDS_NFT: u32 = 1;
const TABLE: &str = "inet bench";
/// What the bench calls, and the Debian package that has it.
const TOOLS: [(&str, &str); 3] = [("ip", "iproute2"), ("nft", "nftables"), ("ipset", "ipset")];

const IMPORT: &str = "import_ms";
const REPLACE: &str = "replace_ms";
const COMPARISONS: [Comparison; 4] = [
    Comparison { figure: IMPORT, subject: "gateway", peer: "nft" },
    Comparison { figure: IMPORT, subject: "gateway", peer: "ipset" },
    Comparison { figure: REPLACE, subject: "gateway", peer: "nft" },
    Comparison { figure: REPLACE, subject: "gateway", peer: "ipset" },
];

pub(super) fn run(root: &Path, args: &Args) -> Result<()> {
    harness::require_root()?;
    for (program, package) in TOOLS {
        test::provide(program, package, true)?;
    }
    let binary = lab::build(root)?;
    let interrupted = lab::watch_signals()?;
    let rules = if args.quick { RULES_QUICK } else { RULES };
    let mut report = Report::start(root, args, setup(rules)?)?;
    let cases = [("ipv4_mixed", Lengths::Mixed), ("hosts_and_ipv6", Lengths::BothFamilies)];
    for (name, lengths) in cases {
        let lists = Lists::write(lengths, rules)?;
        for round in 1..=args.rounds {
            for subject in subjects(round) {
                if interrupted.load(std::sync::atomic::Ordering::Relaxed) {
                    bail!("interrupted");
                }
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
    let idle = Memory::of(pid)?;
    let import = |file: &str| {
        let file = lists.folder.path().join(file);
        let file = file.to_str().context("a path is not text")?;
        // A list with short prefixes wants to be meant.
        timed(|| Ok(gateway.cli(&["deny", "import", file, "--list", "bench", "--yes"])?.ok()?))
    };
    let import_ms = import("first.txt")?;
    let loaded = Memory::of(pid)?;
    let replace_ms = import("second.txt")?;
    let replaced = Memory::of(pid)?;
    let status = gateway.status()?;
    let known = status.pointer("/rules/deny").and_then(Value::as_u64);
    ensure!(known == Some(lists.rules as u64), "not {} rules: {status}", lists.rules);
    let per_rule = |now: u64, before: u64| now.saturating_sub(before) as f64 / lists.rules as f64;
    Ok(vec![
        (IMPORT, import_ms),
        (REPLACE, replace_ms),
        ("idle_anonymous_kib", idle.anonymous as f64 / 1024.0),
        ("anonymous_bytes_per_rule", per_rule(loaded.anonymous, idle.anonymous)),
        ("replaced_anonymous_bytes_per_rule", per_rule(replaced.anonymous, idle.anonymous)),
        ("rss_bytes_per_rule", per_rule(loaded.resident, idle.resident)),
    ])
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64() * 1000.0)
}

/// Of a process, in bytes.
struct Memory {
    resident: u64,
    /// Without what is mapped: the arrays of the kernel's maps, which the kernel keeps with or without the process.
    anonymous: u64,
}

impl Memory {
    fn of(pid: u64) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let bytes = |key: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
            Ok(kib.with_context(|| format!("{path} has no {key}"))?.parse::<u64>()? * 1024)
        };
        Ok(Self { resident: bytes("Rss:")?, anonymous: bytes("Anonymous:")? })
    }
}

/// Two versions of a list, in the files that each subject reads.
struct Lists {
    folder: TempDir,
    rules: usize,
}

impl Lists {
    fn write(lengths: Lengths, rules: usize) -> Result<Self> {
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
        Ok(Self { folder, rules })
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
    fn every_round_has_ours_and_only_the_first_has_the_slow_peer() {
        assert_eq!(subjects(1), ["ipset", "nft", "gateway"]);
        assert_eq!(subjects(2), ["gateway", "ipset"]);
        assert_eq!(subjects(3), ["ipset", "gateway"]);
    }
}
