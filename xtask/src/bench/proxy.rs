//! `cargo xtask bench proxy`: what one request costs the gateway, nginx and HAProxy, and HAProxy as a plain TCP relay,
//! which is the floor. One subject is loaded at a time, each round begins with another one, all of it on loopback.

mod load;
mod subjects;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use super::Args;
use super::report::{Comparison, Report};
use crate::{lab, process, test};
use subjects::{Field, Subject};

const CASE: &str = "http1_keepalive_small";
/// What the bench calls, and the Debian package that has it.
const TOOLS: [(&str, &str); 4] =
    [("nginx", "nginx-light"), ("haproxy", "haproxy"), ("wrk", "wrk"), ("taskset", "util-linux")];
const FIGURES: [&str; 2] = ["cpu_us_per_request", "latency_p99_us"];
const PEERS: [&str; 4] = ["nginx", "haproxy", "haproxy-tcp", subjects::BASELINE];

/// CPUs by what runs there.
#[derive(Clone, Copy)]
struct Cpus {
    /// The subject.
    subject: usize,
    /// The origin and the load generator.
    rest: usize,
}

pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let is_root = nix::unistd::geteuid().is_root();
    for (program, package) in TOOLS {
        test::provide(program, package, is_root)?;
    }
    let cpus = Cpus::find()?;
    let binary = lab::build(root)?;
    let interrupted = lab::watch_signals()?;
    let field = Field::new(&binary, args.baseline.as_deref(), cpus)?;
    let mut report = Report::start(root, args, setup(args)?)?;
    let seconds = if args.quick { 1 } else { 5 };
    for subject in &field.subjects {
        subject.check()?;
        // Pools fill, caches warm up, and nothing of it is measured.
        measure(subject, cpus, 1, &interrupted)?;
    }
    for round in 1..=args.rounds {
        for place in 0..field.subjects.len() {
            let index = (place + round as usize) % field.subjects.len();
            let subject = field.subjects.get(index).context("no subject")?;
            let figures = measure(subject, cpus, seconds, &interrupted)?;
            report.round(CASE, subject.name, round, &figures);
        }
    }
    let comparisons: Vec<Comparison> = FIGURES
        .into_iter()
        .flat_map(|figure| {
            PEERS.map(|peer| Comparison { figure, subject: subjects::GATEWAY, peer })
        })
        .collect();
    report.finish(&comparisons)
}

fn measure(
    subject: &Subject,
    cpus: Cpus,
    seconds: u32,
    interrupted: &Arc<AtomicBool>,
) -> anyhow::Result<[(&'static str, f64); 5]> {
    let before = subject.cpu_ns()?;
    let load = load::run(subject.address, cpus.rest, seconds, interrupted)
        .with_context(|| format!("load on {}", subject.name))?;
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    let cpu_us = (subject.cpu_ns()? - before) / 1000.0;
    Ok([
        ("requests_per_second", load.requests_per_second),
        ("cpu_us_per_request", (cpu_us / load.requests * 1000.0).round() / 1000.0),
        ("latency_p50_us", load.p50_us),
        ("latency_p99_us", load.p99_us),
        ("rss_kib", subject.rss_kib()?),
    ])
}

/// What a reader must know about the run besides the machine.
fn setup(args: &Args) -> anyhow::Result<Map<String, Value>> {
    let first_line = |program: &str| -> anyhow::Result<String> {
        let output = subjects::command(program).arg("-v").output()?;
        // nginx says it on its error output, wrk with a status of failure.
        let said = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned())
    };
    let mut rustc = Command::new("rustc");
    let setup = json!({
        "nginx": first_line("nginx")?,
        "haproxy": first_line("haproxy")?,
        "wrk": first_line("wrk")?,
        "rustc": process::output(rustc.arg("-V"))?,
        "seconds_per_round": if args.quick { 1 } else { 5 },
        "connections": load::CONNECTIONS,
        "body_bytes": subjects::BODY.len(),
        "access_log": "off in all",
    });
    Ok(setup.as_object().cloned().unwrap_or_default())
}

impl Cpus {
    /// The first and the last CPU that this process may use.
    fn find() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut allowed = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        match (allowed.next(), allowed.next_back()) {
            (Some(subject), Some(rest)) => Ok(Self { subject, rest }),
            _ => bail!("one CPU is too few: the proxy and the load generator would share it"),
        }
    }
}
