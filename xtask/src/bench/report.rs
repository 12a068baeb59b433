//! What a bench measured: raw rounds as JSON lines, medians and ratios for people. It measures nothing.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::Args;
use crate::process;

const RUNS: &str = "docs/benchmarks/runs";

/// Which subject is held against which peer, and by what. Cases that lack one of the two have no such row.
pub(super) struct Comparison {
    /// With its unit, as in the rounds.
    pub(super) figure: &'static str,
    /// Ours.
    pub(super) subject: &'static str,
    /// Theirs.
    pub(super) peer: &'static str,
}

/// A run of a bench.
pub(super) struct Report {
    json: bool,
    file: Option<PathBuf>,
    lines: Vec<String>,
    skipped: u32,
    /// Case, subject and figure, in the order in which they were first seen.
    series: Vec<((String, String, String), Vec<f64>)>,
}

impl Report {
    /// Begins with a line about the machine and the run. `setup`: what else a reader must know, such as the attach
    /// mode and the peers' versions.
    pub(super) fn start(
        root: &Path,
        args: &Args,
        setup: Map<String, Value>,
    ) -> anyhow::Result<Self> {
        let which = args.which.name();
        let date = process::output(Command::new("date").args(["-u", "+%F"]))?;
        let file = format!("{date}-{which}.jsonl");
        let mut report = Self {
            json: args.json || !std::io::stdout().is_terminal(),
            file: args.keep.then(|| root.join(RUNS).join(file)),
            lines: Vec::new(),
            skipped: 0,
            series: Vec::new(),
        };
        let mut head = machine(root, date)?;
        head.insert("bench".to_owned(), json!(which));
        head.insert("quick".to_owned(), json!(args.quick));
        head.insert("rounds".to_owned(), json!(args.rounds));
        let build = args.binary.as_ref().map_or("cargo build --release", |_| "--binary");
        head.insert("build".to_owned(), json!(build));
        head.extend(setup);
        if !report.json {
            for (key, value) in &head {
                println!("{key:<16} {}", value.as_str().map_or(value.to_string(), str::to_owned));
            }
        }
        report.line(Value::Object(head));
        Ok(report)
    }

    /// Notes one measurement; figures carry their units in their names.
    pub(super) fn round(&mut self, case: &str, subject: &str, round: u32, figures: &[(&str, f64)]) {
        let mut line = Map::new();
        line.insert("case".to_owned(), json!(case));
        line.insert("subject".to_owned(), json!(subject));
        line.insert("round".to_owned(), json!(round));
        for (figure, value) in figures {
            line.insert((*figure).to_owned(), json!(value));
            let key = (case.to_owned(), subject.to_owned(), (*figure).to_owned());
            match self.series.iter_mut().find(|(known, _)| *known == key) {
                Some((_, values)) => values.push(*value),
                None => self.series.push((key, vec![*value])),
            }
        }
        self.line(Value::Object(line));
    }

    /// Says why a case is not there.
    pub(super) fn skip(&mut self, case: &str, reason: &str) {
        if !self.json {
            println!("{case:<16} skipped: {reason}");
        }
        self.skipped += 1;
        self.line(json!({ "case": case, "skipped": reason }));
    }

    /// Compares, shows, and keeps the run where that was asked for.
    pub(super) fn finish(mut self, comparisons: &[Comparison]) -> anyhow::Result<()> {
        let ratios = self.ratios(comparisons);
        if !self.json {
            self.table();
            println!("\n{:<22} {:<24} {:<34} {:>7}", "case", "figure", "subject / peer", "ratio");
        }
        for (case, comparison, ratio) in ratios {
            let Comparison { figure, subject, peer } = comparison;
            let ratio = (ratio * 1000.0).round() / 1000.0;
            if !self.json {
                let pair = format!("{subject} / {peer}");
                println!("{case:<22} {figure:<24} {pair:<34} {ratio:>7.3}");
            }
            self.line(json!({
                "case": case, "figure": figure, "subject": subject, "peer": peer, "ratio": ratio
            }));
        }
        if self.skipped > 0 {
            eprintln!("cases skipped: {}", self.skipped);
        }
        let Some(file) = self.file else { return Ok(()) };
        std::fs::create_dir_all(file.parent().unwrap_or(&file))?;
        std::fs::write(&file, self.lines.join("\n") + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
        eprintln!("kept as {}", file.display());
        Ok(())
    }

    fn line(&mut self, line: Value) {
        let line = line.to_string();
        if self.json {
            println!("{line}");
        }
        self.lines.push(line);
    }

    fn ratios<'a>(&self, comparisons: &'a [Comparison]) -> Vec<(String, &'a Comparison, f64)> {
        let medians: BTreeMap<_, f64> =
            self.series.iter().map(|(key, values)| (key.clone(), median(values))).collect();
        let mut cases: Vec<&String> = self.series.iter().map(|((case, ..), _)| case).collect();
        cases.dedup();
        let mut ratios = Vec::new();
        for case in cases {
            for comparison in comparisons {
                let of = |name: &str| {
                    let key = (case.clone(), name.to_owned(), comparison.figure.to_owned());
                    medians.get(&key).copied()
                };
                let pair = (of(comparison.subject), of(comparison.peer));
                if let (Some(subject), Some(peer)) = pair
                    && peer != 0.0
                {
                    ratios.push((case.clone(), comparison, subject / peer));
                }
            }
        }
        ratios
    }

    fn table(&self) {
        println!(
            "\n{:<22} {:<18} {:<24} {:>11} {:>24}",
            "case", "subject", "figure", "median", "min..max"
        );
        for ((case, subject, figure), values) in &self.series {
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let median = median(values);
            let range = format!("{least:.1}..{most:.1}");
            println!("{case:<22} {subject:<18} {figure:<24} {median:>11.1} {range:>24}");
        }
    }
}

fn machine(root: &Path, date: String) -> anyhow::Result<Map<String, Value>> {
    let git = |args: &[&str]| process::output(Command::new("git").args(args).current_dir(root));
    // Rounds of a run before this one change nothing that is measured.
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/benchmarks"])?;
    let dirty = if changed.is_empty() { "" } else { "-dirty" };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])? + dirty;
    let kernel = process::output(Command::new("uname").arg("-r"))?;
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let head = json!({
        "date": date,
        "commit": commit,
        "kernel": kernel,
        "cpu": model.map_or("unknown", |(_, model)| model),
        "cpus": cpus.lines().filter(|line| line.starts_with("processor")).count(),
        "load_average": load.join(" "),
    });
    Ok(head.as_object().cloned().unwrap_or_default())
}

/// Of none, zero.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        at(middle)
    } else {
        f64::midpoint(at(middle.wrapping_sub(1)), at(middle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 9.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_ratio_is_subject_over_peer_of_medians_and_only_where_both_ran() {
        let mut report =
            Report { json: true, file: None, lines: Vec::new(), skipped: 0, series: Vec::new() };
        for (round, value) in [(1, 10.0), (2, 30.0), (3, 20.0)] {
            report.round("one", "ours", round, &[("ns", value)]);
            report.round("one", "theirs", round, &[("ns", 2.0 * value)]);
            report.round("two", "ours", round, &[("ns", value)]);
        }
        let comparisons = [Comparison { figure: "ns", subject: "ours", peer: "theirs" }];
        let ratios = report.ratios(&comparisons);
        let ratios: Vec<_> =
            ratios.iter().map(|(case, _, ratio)| (case.as_str(), *ratio)).collect();
        assert_eq!(ratios, [("one", 0.5)]);
        assert_eq!(report.lines.len(), 9);
    }
}
