//! `cargo xtask bench loop`: what is left for honest clients while somebody attacks. The gateway as it ships, the
//! gateway without its kernel door, nginx with `limit_req`, HAProxy with stick tables, in turns in the same place.
//!
//! The attacker has one CPU, and everything else the other. What an attack costs is told from a quiet round in which
//! the same attacker does the same to a sink. All of it happens between namespaces that the bench made.

pub(crate) mod cases;
mod frames;
mod honest;
pub(crate) mod http;
mod reaction;
mod subjects;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::topology::{Host, PORT, Topology};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use super::Args;
use super::report::{Comparison, Report};
use crate::{lab, process, test};
use cases::{Attack, Case};
use honest::Honest;
use subjects::{Kind, Subject};

/// Where the gateway, its peers, the origin and the honest clients are, and where the attacker is.
pub(crate) const CPU_OURS: usize = 0;
const CPU_ATTACKER: usize = 1;
/// From the beginning of an attack to the measurement: what a defence takes to set in is seen in the lab.
const ONSET: Duration = Duration::from_secs(2);
const TOOLS: [(&str, &str); 4] =
    [("ip", "iproute2"), ("nginx", "nginx-light"), ("haproxy", "haproxy"), ("wrk", "wrk")];
const RATE: &str = "requests_per_second";
/// Addresses that are routed to the attacker.
const ATTACKER_NET: &str = "198.18.0.0/15";

pub(super) fn run(root: &Path, args: &Args) -> Result<()> {
    args.check_cases(&[&cases::ALL.map(|case| case.name)[..], &[reaction::NAME]].concat())?;
    harness::require_root()?;
    ensure!(rustix::thread::sched_getaffinity(None)?.count() >= 2, "this needs two CPUs");
    for (program, package) in TOOLS {
        test::provide(program, package, true)?;
    }
    let binary = args.gateway(root)?;
    let bench = Bench {
        interrupted: lab::watch_signals()?,
        hosts: Topology::new()?,
        sink: Sink::new()?,
        binary,
        seconds: if args.quick { 2 } else { 5 },
    };
    // Everything that is started from here on stays there, but for the attacker's threads.
    stay_on(CPU_OURS)?;
    bench.prepare()?;
    let mut report = Report::start(root, args, setup(&bench)?)?;
    if args.is_chosen(reaction::NAME) {
        for round in 1..=args.rounds {
            let figures = bench.reaction().context(reaction::NAME)?;
            report.round(reaction::NAME, Kind::Loop.name(), round, &figures);
        }
    }
    for case in cases::ALL.iter().filter(|case| args.is_chosen(case.name)) {
        for round in 1..=args.rounds {
            for turn in 0..Kind::ALL.len() {
                // Each round begins with another one.
                let place = (turn + round as usize) % Kind::ALL.len();
                let Some(kind) = Kind::ALL.get(place) else { continue };
                bench.check()?;
                let figures = bench.measure(case, *kind);
                let figures = figures.with_context(|| format!("{}, {}", case.name, kind.name()))?;
                report.round(case.name, kind.name(), round, &figures);
            }
        }
    }
    let peers = [Kind::WithoutKernel, Kind::Nginx, Kind::Haproxy];
    let comparisons = peers.map(|peer| Comparison {
        figure: "share_of_quiet",
        subject: Kind::Loop.name(),
        peer: peer.name(),
    });
    report.finish(&comparisons)
}

pub(crate) fn stay_on(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot stay on one CPU")
}

struct Bench {
    interrupted: Arc<AtomicBool>,
    hosts: Topology,
    sink: Sink,
    binary: std::path::PathBuf,
    seconds: u32,
}

/// The attacker once more, with somebody at the other end who has nothing to defend.
struct Sink {
    namespace: harness::namespace::Namespace,
    attacker: Host,
}

impl Sink {
    fn new() -> Result<Self> {
        let namespace = harness::namespace::Namespace::new("sink")?;
        let attacker = Host::new("flooder", "to_attacker", 2)?;
        attacker.link(&namespace)?;
        attacker.up(&namespace)?;
        namespace.ip(&format!("route add {ATTACKER_NET} via {}", attacker.v4()))?;
        Ok(Self { namespace, attacker })
    }
}

impl Bench {
    fn prepare(&self) -> Result<()> {
        for attacker in [&self.hosts.attacker, &self.sink.attacker] {
            attacker.namespace.ip(&format!("route add local {ATTACKER_NET} dev lo"))?;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    fn measure(&self, case: &Case, kind: Kind) -> Result<Vec<(&'static str, f64)>> {
        let mut subject = Subject::start(kind, None, &self.hosts, &self.binary)?;
        subject.check(&self.hosts)?;
        let quiet = {
            let _server = http::Sink::start(&self.sink.namespace, case)?;
            let attack = Attack::start(case, &self.sink.attacker)?;
            let quiet = self.round(&subject)?;
            ensure!(attack.counts().sent > 0, "the attacker did nothing to the sink");
            quiet
        };
        let attacker = match case.is_behind_nat() {
            true => &self.hosts.client,
            false => &self.hosts.attacker,
        };
        let attack = Attack::start(case, attacker)?;
        let attacked = self.round(&subject)?;
        let counts = attack.counts();
        drop(attack);
        ensure!(counts.sent > 0, "the attacker did nothing");
        let mut figures = vec![
            ("share_of_quiet", share(attacked.honest.requests_per_second, &quiet)),
            (RATE, attacked.honest.requests_per_second.round()),
            ("quiet_requests_per_second", quiet.honest.requests_per_second.round()),
            ("p99_ms", attacked.honest.p99_ms),
            ("quiet_p99_ms", quiet.honest.p99_ms),
            ("failed", attacked.honest.failed),
            ("attack_sent", counts.sent as f64),
            ("attack_answered", counts.answered as f64),
            ("softirq_ms_ours", attacked.softirq_ms[0]),
            ("softirq_ms_attacker", attacked.softirq_ms[1]),
            ("quiet_softirq_ms_ours", quiet.softirq_ms[0]),
            ("steal_ms", attacked.steal_ms + quiet.steal_ms),
        ];
        figures.extend(subject.figures()?);
        Ok(figures)
    }

    fn round(&self, subject: &Subject<'_>) -> Result<Round> {
        std::thread::sleep(ONSET);
        self.check()?;
        let before = Cpus::now()?;
        let honest = Honest::run(&self.hosts.client, subject.keys(), self.seconds)?;
        let after = Cpus::now()?;
        Ok(Round {
            honest,
            softirq_ms: [
                after.softirq_ms(CPU_OURS) - before.softirq_ms(CPU_OURS),
                after.softirq_ms(CPU_ATTACKER) - before.softirq_ms(CPU_ATTACKER),
            ],
            steal_ms: after.steal_ms() - before.steal_ms(),
        })
    }
}

struct Round {
    honest: Honest,
    softirq_ms: [f64; 2],
    steal_ms: f64,
}

fn share(attacked: f64, quiet: &Round) -> f64 {
    let share = attacked / quiet.honest.requests_per_second.max(1.0);
    (share * 1000.0).round() / 1000.0
}

/// What `/proc/stat` has of each CPU.
struct Cpus(Vec<Vec<f64>>);

/// A tick of `/proc/stat`, in milliseconds (USER_HZ is 100 on every architecture that Rust is built for).
const TICK_MS: f64 = 10.0;

impl Cpus {
    fn now() -> Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/stat")?))
    }

    fn parse(stat: &str) -> Self {
        let is_cpu = |line: &&str| {
            line.strip_prefix("cpu")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let numbers = |line: &str| line.split(' ').skip(1).filter_map(|n| n.parse().ok()).collect();
        Self(stat.lines().filter(is_cpu).map(numbers).collect())
    }

    fn softirq_ms(&self, cpu: usize) -> f64 {
        self.field(cpu, 6)
    }

    fn idle_ms(&self, cpu: usize) -> f64 {
        self.field(cpu, 3)
    }

    fn steal_ms(&self) -> f64 {
        self.field(CPU_OURS, 7) + self.field(CPU_ATTACKER, 7)
    }

    fn field(&self, cpu: usize, field: usize) -> f64 {
        self.0.get(cpu).and_then(|fields| fields.get(field)).map_or(0.0, |ticks| ticks * TICK_MS)
    }
}

/// What a reader must know about the run besides the machine.
fn setup(bench: &Bench) -> Result<Map<String, Value>> {
    let version = |package: &str| {
        process::output(std::process::Command::new("dpkg-query").args([
            "-W",
            "-f",
            "${Version}",
            package,
        ]))
    };
    let setup = json!({
        "attach_mode": "native (veth)",
        "cpu_of_the_attacker": CPU_ATTACKER,
        "cpu_of_everything_else": CPU_OURS,
        "seconds_per_round": bench.seconds,
        "port": PORT,
        "nginx": version("nginx-light")?,
        "haproxy": version("haproxy")?,
        "wrk": version("wrk")?,
    });
    Ok(setup.as_object().cloned().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_cpu_that_is_asked_for() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 1 2 3 4 5 6 70 2 0 0\nintr 1\n";
        let cpus = Cpus::parse(stat);
        assert_eq!((cpus.softirq_ms(0), cpus.softirq_ms(1)), (70.0, 700.0));
        assert_eq!((cpus.idle_ms(1), cpus.steal_ms()), (40.0, 100.0));
    }
}
