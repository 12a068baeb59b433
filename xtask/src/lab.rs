//! `cargo xtask lab`: four hosts, ordinary requests, a bounded flood, an attack with wrong credentials, and what both
//! doors make of it second by second.
//!
//! It needs root, touches nothing outside of the namespaces that it makes, ends by itself, and leaves nothing behind,
//! also when it is interrupted.

mod attack;
mod load;
mod picture;

use std::cell::RefCell;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use harness::gateway::{Gateway, packets_by_reason};
use harness::origin::Origin;
use harness::topology::{PORT, Topology};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::process;
use load::{Flood, Pace, Requests, Window};
use picture::Point;

/// The flood's sources: routed to the attacker, and nobody's.
const FLOOD_SOURCES: &str = "198.18.0.0/24";
/// Reasons for which the kernel drops.
const DROPS: [&str; 12] = [
    "deny",
    "limit",
    "connections",
    "reset",
    "reset_answered",
    "reset_limit",
    "malformed",
    "contended",
    "tcp_flags",
    "martian",
    "host_udp",
    "host_fragments",
];

/// Arguments of `cargo xtask lab`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds of each phase
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Packets per second of the flood
    #[arg(long, default_value_t = 100_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=200_000))]
    flood: u32,
    /// JSON lines, also on a terminal
    #[arg(long)]
    json: bool,
    /// Also draw what is left for honest clients before, during and after the attack, as an SVG file
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

pub(crate) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    harness::require_root()?;
    crate::test::provide("ip", "iproute2", true)?;
    let binary = build(root)?;
    let interrupted = watch_signals()?;
    let hosts = Topology::new()?;
    let lab = Lab {
        hosts: &hosts,
        binary,
        seconds: args.seconds,
        flood: args.flood,
        output: Output::new(args.json || !std::io::stdout().is_terminal()),
        interrupted,
    };
    lab.run()?;
    let Some(file) = &args.picture else { return Ok(()) };
    let points = lab.output.points.into_inner();
    std::fs::write(file, picture::svg(&points))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// Builds what users run.
pub(crate) fn build(root: &Path) -> anyhow::Result<PathBuf> {
    process::run(crate::cargo(root).args(["build", "--release", "--locked", "-p", "gateway"]))?;
    Ok(crate::target(root).join("release/gateway"))
}

/// Turns Ctrl-C into a flag, so that everything ends in order. By handlers, for programs that are started later would
/// inherit signals that are blocked.
pub(crate) fn watch_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let interrupted = Arc::clone(&interrupted);
        move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
            });
            interrupted.store(true, Ordering::Relaxed);
        }
    });
    Ok(interrupted)
}

struct Lab<'a> {
    hosts: &'a Topology,
    binary: PathBuf,
    seconds: u32,
    /// Packets per second.
    flood: u32,
    output: Output,
    interrupted: Arc<AtomicBool>,
}

impl Lab<'_> {
    fn run(&self) -> anyhow::Result<()> {
        let serving = SocketAddr::new(self.hosts.upstream.v4(), 9000);
        let origin = Origin::constant(&self.hosts.upstream.namespace, serving, "hello\n")?;
        self.output.head();
        self.without_kernel_door(&origin)?;
        if !self.is_interrupted() {
            self.with_kernel_door(&origin)?;
        }
        // What is drawn is one load from here on.
        self.output.points.borrow_mut().clear();
        attack::run(self)?;
        if self.is_interrupted() {
            eprintln!("interrupted; the lab is being taken down");
        }
        Ok(())
    }

    fn without_kernel_door(&self, origin: &Origin) -> anyhow::Result<()> {
        let mut gateway = self.gateway(origin, "off")?;
        gateway.start()?;
        self.phase("quiet", &gateway, false)?;
        self.phase("flood, kernel door off", &gateway, true)
    }

    fn with_kernel_door(&self, origin: &Origin) -> anyhow::Result<()> {
        let mut gateway = self.gateway(origin, "native")?;
        gateway.start()?;
        gateway.cli(&["deny", "add", FLOOD_SOURCES, "--reason", "flood in the lab"])?.ok()?;
        self.phase("flood, kernel door on", &gateway, true)
    }

    fn gateway(&self, origin: &Origin, attach: &str) -> anyhow::Result<Gateway<'_>> {
        let mut config = self.hosts.config(origin.address);
        if let Some(kernel) = config.get_mut("kernel").and_then(Value::as_object_mut) {
            kernel.insert("attach".to_owned(), json!(attach));
        }
        Ok(Gateway::new(&self.hosts.gateway, config)?.with_binary(self.binary.clone()))
    }

    fn phase(&self, name: &str, gateway: &Gateway<'_>, floods: bool) -> anyhow::Result<()> {
        let requests = self.requests(None, Pace::Fixed)?;
        let flood = match floods {
            true => Some(Flood::start(&self.hosts.attacker, PORT, self.flood)?),
            false => None,
        };
        self.seconds(name, gateway, &requests, flood.as_ref())
    }

    /// Ordinary requests, with this key if there is one.
    fn requests(&self, key: Option<&str>, pace: Pace) -> anyhow::Result<Requests> {
        let client = &self.hosts.client;
        Requests::start(&client.namespace, client.target(), key, pace)
    }

    /// Shows what happens, second by second.
    fn seconds(
        &self,
        name: &str,
        gateway: &Gateway<'_>,
        requests: &Requests,
        flood: Option<&Flood>,
    ) -> anyhow::Result<()> {
        let mut before = packets_by_reason(&gateway.status()?);
        requests.window();
        for second in 1..=self.seconds {
            std::thread::sleep(Duration::from_secs(1));
            if self.is_interrupted() {
                break;
            }
            let now = packets_by_reason(&gateway.status()?);
            let row = Row {
                phase: name,
                second,
                window: requests.window(),
                flood_packets: flood.map_or(0, Flood::sent),
                dropped: dropped(&before, &now),
            };
            self.output.row(&row);
            before = now;
        }
        Ok(())
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// What was dropped between two looks, by reason.
fn dropped(before: &Map<String, Value>, now: &Map<String, Value>) -> Map<String, Value> {
    let count = |counters: &Map<String, Value>, reason| {
        counters.get(reason).and_then(Value::as_u64).unwrap_or(0)
    };
    DROPS
        .into_iter()
        .map(|reason| (reason, count(now, reason).saturating_sub(count(before, reason))))
        .filter(|(_, packets)| *packets > 0)
        .map(|(reason, packets)| (reason.to_owned(), json!(packets)))
        .collect()
}

struct Row<'a> {
    phase: &'a str,
    second: u32,
    window: Window,
    flood_packets: u64,
    dropped: Map<String, Value>,
}

struct Output {
    json: bool,
    /// What was shown, for the picture.
    points: RefCell<Vec<Point>>,
}

impl Output {
    fn new(json: bool) -> Self {
        Self { json, points: RefCell::default() }
    }

    fn head(&self) {
        if !self.json {
            println!(
                "{:<24} {:>6} {:>9} {:>7} {:>8} {:>12}  dropped in the kernel",
                "phase", "second", "requests", "failed", "p99 ms", "flood sent"
            );
        }
    }

    fn row(&self, row: &Row<'_>) {
        let Window { served, failed, p99_ms } = row.window;
        let phase = row.phase.to_owned();
        self.points.borrow_mut().push(Point { phase, served: served as f64, p99_ms });
        if self.json {
            let line = json!({
                "phase": row.phase,
                "second": row.second,
                "requests_served": served,
                "requests_failed": failed,
                "p99_ms": p99_ms,
                "flood_packets": row.flood_packets,
                "kernel_dropped_packets": row.dropped,
            });
            println!("{line}");
            return;
        }
        let p99 = p99_ms.map_or("-".to_owned(), |p99_ms| format!("{p99_ms:.2}"));
        let reasons = row.dropped.iter().map(|(reason, packets)| format!("{reason} {packets}"));
        let reasons: Vec<String> = reasons.collect();
        let dropped = if reasons.is_empty() { "-".to_owned() } else { reasons.join(", ") };
        println!(
            "{:<24} {:>6} {served:>9} {failed:>7} {p99:>8} {:>12}  {dropped}",
            row.phase, row.second, row.flood_packets
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_drops_are_shown_and_only_new_ones() {
        let counters = |deny: u64| {
            json!({"deny": deny, "allow": deny, "limit": 5}).as_object().cloned().unwrap()
        };
        let shown = dropped(&counters(10), &counters(25));
        assert_eq!(Value::Object(shown), json!({"deny": 15}));
    }
}
