//! `cargo xtask bench`: the gateway beside its peers in one run, alternating. A bench measures; what is written down
//! and how it is compared is `report`'s.

pub(crate) mod attack;
mod bulk;
mod exactness;
mod flood;
mod kernel;
mod link;
mod newcomers;
mod peers;
mod policy;
mod prefixes;
mod proxy;
mod random;
mod report;
mod subject;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::lab;

/// How long an instrumented gateway is loaded with each case.
const TRAINING_SECONDS: u32 = 2;

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is measured
    which: Which,
    /// JSON lines, also on a terminal
    #[arg(long)]
    json: bool,
    /// Shorter rounds, and noisier
    #[arg(long)]
    quick: bool,
    /// How often each subject is measured in each case; policy and loop: 3 unless said
    #[arg(long, default_value_ifs([("which", "policy", "3"), ("which", "loop", "3")]))]
    #[arg(default_value_t = 7)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Proxy: another build of the gateway, to be measured beside this one
    #[arg(long, value_name = "BINARY")]
    baseline: Option<PathBuf>,
    /// This build of the gateway, such as that of `cargo xtask release`, instead of a fresh one; not for kernel
    #[arg(long, value_name = "BINARY")]
    binary: Option<PathBuf>,
    /// Only these cases [default: all]
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// Keep the raw rounds in docs/benchmarks/runs
    #[arg(long)]
    keep: bool,
}

impl Args {
    /// Refuses cases that are none of `known`.
    fn check_cases(&self, known: &[&str]) -> anyhow::Result<()> {
        for case in &self.cases {
            ensure!(known.contains(&&**case), "no case `{case}`: there are {}", known.join(", "));
        }
        Ok(())
    }

    /// The gateway that is measured: the one that was named, else the release build of this tree.
    fn gateway(&self, root: &Path) -> anyhow::Result<PathBuf> {
        match &self.binary {
            // It is started from other folders too.
            Some(binary) => std::path::absolute(binary).context("--binary"),
            None => lab::build(root),
        }
    }

    /// Whether a case is measured.
    fn is_chosen(&self, name: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|case| case == name)
    }
}

/// Loads an instrumented build of the gateway with a bit of what `proxy` and `policy` measure, and answers the profiles
/// that it wrote, for `llvm-profdata`.
pub(crate) fn train(binary: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let interrupted = lab::watch_signals()?;
    let run = proxy::Run { cpus: proxy::Cpus::find()?, seconds: TRAINING_SECONDS, interrupted };
    let mut profiles = policy::train(binary, &run)?;
    profiles.push(proxy::train(binary, &run)?);
    Ok(profiles)
}

/// A bench.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Which {
    /// Nanoseconds a packet, beside xdp-filter (root)
    Kernel,
    /// A list of a million prefixes put in force, beside nft and ipset (root)
    Bulk,
    /// Packets that one CPU drops, beside xdp-filter, nftables and ipset (root)
    Flood,
    /// Processor time a request, beside nginx and HAProxy
    Proxy,
    /// What it costs to know callers and to limit them, by decision and by request
    Policy,
    /// What is left for honest clients under attack, beside nginx and HAProxy (root)
    Loop,
}

impl Which {
    const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Bulk => "bulk",
            Self::Flood => "flood",
            Self::Proxy => "proxy",
            Self::Policy => "policy",
            Self::Loop => "loop",
        }
    }
}

pub(crate) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    match args.which {
        Which::Kernel => kernel::run(root, args),
        Which::Bulk => bulk::run(root, args),
        Which::Flood => flood::run(root, args),
        Which::Proxy => proxy::run(root, args),
        Which::Policy => policy::run(root, args),
        Which::Loop => attack::run(root, args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn only_cases_that_there_are_can_be_chosen() {
        let args = |words: &str| Line::parse_from(words.split(' ')).args;
        let some = args("bench kernel --case exactness --case random_10k");
        let (known, fewer) = (["exactness", "random_10k", "random_1m"], ["exactness", "random_1m"]);
        assert!(some.check_cases(&known).is_ok());
        assert_eq!(known.map(|name| some.is_chosen(name)), [true, true, false]);
        let error = some.check_cases(&fewer).unwrap_err().to_string();
        assert_eq!(error, "no case `random_10k`: there are exactness, random_1m");
        let all = args("bench bulk");
        assert!(all.check_cases(&fewer).is_ok() && all.is_chosen("random_1m"));
    }
}
