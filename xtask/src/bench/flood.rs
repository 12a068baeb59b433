//! `cargo xtask bench flood`: what one CPU pays for each packet of a flood that it drops, beside xdp-filter, nftables
//! and ipset with the same list. The flood goes through veth pairs between namespaces that the bench made, and nowhere
//! else.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etherparse::{IpNumber, Ipv4Header, PacketBuilder};
use harness::bpf;
use harness::gateway::Gateway;
use harness::programs::{self, Prefix, WithMap};
use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_setaffinity, sched_yield};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use super::link::{INTERFACE, Link, RECEIVER, RECEIVER_MAC, SENDER, SENDER_MAC};
use super::prefixes::{Lengths, distinct, lines, random};
use super::report::{Comparison, Report};
use super::subject::Subject;
use super::{Args, peers};
use crate::{lab, process, test};

/// With how many rules.
const CASES: [(&str, usize); 2] = [("hosts_10k", 10_000), ("hosts_1m", 1_000_000)];
const PACKETS: u32 = 1_000_000;
const PACKETS_QUICK: u32 = 100_000;
const CHECKED: u32 = 1000;
/// Some may wait to be taken from the veth pair's ring when the last was sent.
const PATIENCE: Duration = Duration::from_secs(5);
const CPU: usize = 0;
/// Where nobody listens.
const PORT: u16 = 9;
/// xdp-filter's tables hold no more.
const XDP_FILTER_MAX: usize = 10_000;
/// What the bench calls, and the Debian package that has it.
const TOOLS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("ipset", "ipset"),
    ("iptables", "iptables"),
    ("xdp-filter", "xdp-tools"),
];

/// What drops everything, by XDP and by netfilter: what a packet costs that nobody thinks about.
const FLOOR: &str = "drop-all";
const FLOOR_NFT: &str = "nft-drop-all";
const GATEWAY: &str = "gateway";
const PEERS: [&str; 5] = ["xdp-filter", "xdp-filter-ip", "nft-ingress", "nft-input", "ipset-raw"];
const RATE: &str = "dropped_per_cpu_s";
const GROSS: &str = "ns_per_packet";
const NET: &str = "net_ns_per_packet";

pub(super) fn run(root: &Path, args: &Args) -> Result<()> {
    args.check_cases(&CASES.map(|(name, _)| name))?;
    harness::require_root()?;
    for (program, package) in TOOLS {
        test::provide(program, package, true)?;
    }
    let binary = args.gateway(root)?;
    let interrupted = lab::watch_signals()?;
    let packets = if args.quick { PACKETS_QUICK } else { PACKETS };
    let mut report = Report::start(root, args, setup(packets)?)?;
    let ksoftirqd = ksoftirqd()?;
    for (name, rules) in CASES.into_iter().filter(|(name, _)| args.is_chosen(name)) {
        if args.quick && rules > XDP_FILTER_MAX {
            report.skip(name, "nft takes seconds to load it; not with --quick");
            continue;
        }
        let denied = hosts(rules);
        let names = subjects(rules);
        let links = names.iter().map(|_| Link::new()).collect::<Result<Vec<_>>>()?;
        let mut lanes = Vec::new();
        for (subject, link) in names.into_iter().zip(&links) {
            let lane = Lane::new(subject, link, &binary, &denied)
                .with_context(|| format!("{subject}, case {name}"))?;
            lanes.push(lane);
        }
        for round in 1..=args.rounds {
            // Each round begins with another one.
            lanes.rotate_left(1);
            let mut turns = Vec::new();
            for lane in &lanes {
                ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
                let turn = lane.turn(packets, &ksoftirqd);
                turns.push((lane.name, turn.with_context(|| lane.name)?));
            }
            note(&mut report, (name, round), &turns)?;
        }
    }
    let comparisons: Vec<Comparison> = [GROSS, NET]
        .into_iter()
        .flat_map(|figure| PEERS.map(|peer| Comparison { figure, subject: GATEWAY, peer }))
        .collect();
    report.finish(&comparisons)
}

fn note(report: &mut Report, (case, round): (&str, u32), turns: &[(&str, Turn)]) -> Result<()> {
    let floor = turns.iter().find(|(name, _)| *name == FLOOR).context("no floor")?.1;
    for (name, turn) in turns {
        let gross = turn.ns_per_packet();
        let mut figures = vec![
            (RATE, (1e9 / gross).round()),
            (GROSS, rounded(gross)),
            ("dropped", turn.dropped as f64),
        ];
        if *name != FLOOR {
            figures.push((NET, rounded(gross - floor.ns_per_packet())));
        }
        report.round(case, name, round, &figures);
    }
    Ok(())
}

fn rounded(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}

fn subjects(rules: usize) -> Vec<&'static str> {
    let fits = |name: &&str| rules <= XDP_FILTER_MAX || !name.starts_with("xdp-filter");
    [FLOOR, FLOOR_NFT, GATEWAY].into_iter().chain(PEERS).filter(fits).collect()
}

/// Random hosts that could be anybody's: what a stack takes for a source (RFC 6890), and none of ours.
fn hosts(count: usize) -> Vec<Prefix> {
    let public = |(address, _): &Prefix| match address {
        std::net::IpAddr::V4(v4) => matches!(v4.octets(), [11..=126, ..]),
        std::net::IpAddr::V6(_) => false,
    };
    distinct(random(Lengths::Hosts).filter(public), count)
}

/// A subject on a link of its own, and the flood that goes there.
struct Lane<'l> {
    name: &'static str,
    link: &'l Link,
    flood: WithMap,
    frame: Vec<u8>,
    _filter: Filter<'l>,
}

/// Guards of what drops. Netfilter's rules end with their namespace.
#[derive(Default)]
struct Filter<'l> {
    _gateway: Option<Gateway<'l>>,
    _attached: Option<(OwnedFd, Subject)>,
}

/// What a flood came to.
#[derive(Clone, Copy)]
struct Turn {
    cpu_ns: u64,
    dropped: u64,
}

impl Turn {
    fn ns_per_packet(self) -> f64 {
        self.cpu_ns as f64 / self.dropped as f64
    }
}

impl<'l> Lane<'l> {
    fn new(name: &'static str, link: &'l Link, binary: &Path, denied: &[Prefix]) -> Result<Self> {
        // Without a program, too, the receiving side takes frames from the ring, and not one by one.
        link.run(Command::new("ethtool").args(["-K", INTERFACE, "gro", "on"]))?;
        let filter = match name {
            GATEWAY => gateway(link, binary, denied)?,
            FLOOR => xdp(link, Subject::drop_all()?)?,
            "xdp-filter" => xdp(link, Subject::xdp_filter("all", denied)?)?,
            "xdp-filter-ip" => xdp(link, Subject::xdp_filter("ip", denied)?)?,
            _ => netfilter(link, name, denied)?,
        };
        let frame = frame()?;
        let flood = sender(link, &frame, denied)?;
        let lane = Self { name, link, flood, frame, _filter: filter };
        lane.check()?;
        Ok(lane)
    }

    /// Whether it drops the list, and only that.
    fn check(&self) -> Result<()> {
        let before = self.counts()?;
        self.send(&self.flood, CHECKED)?;
        let listed = self.arrived(before, CHECKED)?;
        ensure!(listed.passed == before.passed, "packets of the list pass: {listed:?}");
        if [FLOOR, FLOOR_NFT].contains(&self.name) {
            return Ok(());
        }
        let other = sender(self.link, &self.frame, &[(SENDER.into(), 32)])?;
        self.send(&other, 1)?;
        let others = self.arrived(listed, 1)?;
        ensure!(others.passed == listed.passed + 1, "what is not on the list is dropped");
        Ok(())
    }

    /// The counts once so many more packets have arrived.
    fn arrived(&self, before: Counts, packets: u32) -> Result<Counts> {
        harness::wait_for("the arrival of a checked packet", PATIENCE, || {
            let now = self.counts()?;
            let settled = now.arrived >= before.arrived + u64::from(packets);
            Ok(settled.then_some(now))
        })
    }

    fn send(&self, flood: &WithMap, packets: u32) -> Result<()> {
        let sent = self.link.sender.enter(|| bpf::send(flood.program(), &self.frame, packets))?;
        sent.context("the kernel does not send frames of a test run")
    }

    fn turn(&self, packets: u32, ksoftirqd: &str) -> Result<Turn> {
        let before = self.counts()?;
        let cpu_ns = self.link.sender.enter(|| -> Result<u64> {
            let mut cpu = CpuSet::new();
            cpu.set(CPU)?;
            sched_setaffinity(Pid::from_raw(0), &cpu).context("cannot stay on one CPU")?;
            let spent = || Ok::<_, anyhow::Error>(spent_ns("thread-self")? + spent_ns(ksoftirqd)?);
            let before = spent()?;
            bpf::send(self.flood.program(), &self.frame, packets)?;
            Ok(spent()? - before)
        })??;
        let after = self.counts()?;
        let passed = after.passed - before.passed;
        ensure!(passed == 0, "{passed} packets of the list passed");
        let dropped = after.arrived - before.arrived;
        // What found the ring full was dropped by nobody's rule, and cost less.
        ensure!(dropped * 10 >= u64::from(packets) * 9, "only {dropped} of {packets} arrived");
        Ok(Turn { cpu_ns, dropped })
    }

    fn counts(&self) -> Result<Counts> {
        let (interfaces, protocols) = (self.link.counted("dev")?, self.link.counted("snmp")?);
        Counts::parse(&interfaces, &protocols)
            .with_context(|| format!("the kernel counts otherwise:\n{interfaces}\n{protocols}"))
    }
}

/// Packets of the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    /// Taken from the veth pair's ring: what filters see.
    arrived: u64,
    /// Behind all filters, where nobody listened.
    passed: u64,
}

impl Counts {
    /// From `/proc/net/dev` and `/proc/net/snmp`.
    fn parse(interfaces: &str, protocols: &str) -> Option<Self> {
        let line = interfaces.lines().find_map(|line| line.trim().strip_prefix("eth0:"))?;
        let arrived = line.split_whitespace().nth(1)?.parse().ok()?;
        let mut udp = protocols.lines().filter_map(|line| line.strip_prefix("Udp:"));
        let (names, values) = (udp.next()?, udp.next()?);
        let mut pairs = names.split_whitespace().zip(values.split_whitespace());
        let passed = pairs.find(|(name, _)| *name == "NoPorts")?.1.parse().ok()?;
        Some(Self { arrived, passed })
    }
}

/// Time on the CPU of a task, by the name of its folder.
fn spent_ns(task: &str) -> Result<u64> {
    // A task that goes on running is brought up to date.
    sched_yield()?;
    let text = fs::read_to_string(format!("/proc/{task}/schedstat"))?;
    Ok(text.split(' ').next().context("schedstat is empty")?.parse()?)
}

/// The kernel's thread that takes over what one CPU's interrupts leave: its name in `/proc`.
fn ksoftirqd() -> Result<String> {
    let name = format!("ksoftirqd/{CPU}");
    for entry in fs::read_dir("/proc")? {
        let folder = entry?;
        let comm = fs::read_to_string(folder.path().join("comm")).unwrap_or_default();
        if comm.trim_end() == name {
            return Ok(folder.file_name().to_string_lossy().into_owned());
        }
    }
    bail!("{name} cannot be seen, so its time cannot be counted: run outside of containers")
}

fn gateway<'l>(link: &'l Link, binary: &Path, denied: &[Prefix]) -> Result<Filter<'l>> {
    let mut gateway = link.gateway(binary, denied.len())?;
    gateway.start()?;
    ensure!(gateway.modes()? == [(INTERFACE.to_owned(), "native".to_owned())], "not native");
    let list = file(&lines(denied))?;
    let path = list.path().to_str().context("a path is not text")?;
    gateway.cli(&["deny", "import", path, "--list", "bench"])?.ok()?;
    Ok(Filter { _gateway: Some(gateway), ..Filter::default() })
}

fn xdp(link: &Link, subject: Subject) -> Result<Filter<'static>> {
    let program = subject.program()?;
    let attached = link
        .receiver
        .enter(|| -> Result<OwnedFd> { Ok(bpf::attach(program, if_nametoindex(INTERFACE)?)?) })?;
    let attached = attached.context("cannot attach natively")?;
    Ok(Filter { _attached: Some((attached, subject)), ..Filter::default() })
}

fn netfilter(link: &Link, name: &str, denied: &[Prefix]) -> Result<Filter<'static>> {
    let (table, hook, rule) = match name {
        "nft-ingress" => ("netdev bench", "ingress device eth0", "ip saddr @v4"),
        "nft-input" => ("inet bench", "input", "ip saddr @v4"),
        FLOOR_NFT => ("netdev bench", "ingress device eth0", ""),
        _ => return ipset(link, denied),
    };
    let chain = format!("chain c {{ type filter hook {hook} priority 0; {rule} counter drop; }}\n");
    let script = file(&peers::nft(table, denied, &chain))?;
    link.run(Command::new("nft").arg("-f").arg(script.path()))?;
    Ok(Filter::default())
}

fn ipset(link: &Link, denied: &[Prefix]) -> Result<Filter<'static>> {
    let script = file(&peers::ipset(denied))?;
    link.run(Command::new("ipset").arg("restore").arg("-f").arg(script.path()))?;
    let rule = ["-m", "set", "--match-set", "v4", "src", "-j", "DROP"];
    link.run(Command::new("iptables").args(["-t", "raw", "-A", "PREROUTING"]).args(rule))?;
    Ok(Filter::default())
}

fn file(text: &str) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::Builder::new().prefix("gateway-bench-").tempfile()?;
    fs::write(file.path(), text)?;
    Ok(file)
}

/// A program that sends frames from these hosts, at random.
fn sender(link: &Link, frame: &[u8], sources: &[Prefix]) -> Result<WithMap> {
    let header = Ipv4Header::from_slice(frame.get(14..).unwrap_or_default())?.0;
    let word = |(address, _): &Prefix| {
        let std::net::IpAddr::V4(v4) = address else { return None };
        let header = Ipv4Header { source: v4.octets(), ..header.clone() };
        let checksum = header.calc_header_checksum().to_be_bytes();
        Some(programs::sender_word(v4.octets(), checksum))
    };
    let words: Vec<u64> = sources.iter().filter_map(word).collect();
    let interface = link.sender.enter(|| if_nametoindex(INTERFACE))??;
    programs::sender(&words, interface).context("the kernel did not take the sender")
}

/// A datagram to the receiver, of the least length that Ethernet has. Without a checksum of its own (RFC 768), which
/// would change with the source.
fn frame() -> Result<Vec<u8>> {
    const CHECKSUM: std::ops::Range<usize> = 40..42;
    let builder = PacketBuilder::ethernet2(SENDER_MAC, RECEIVER_MAC)
        .ip(etherparse::IpHeaders::Ipv4(
            Ipv4Header::new(0, 64, IpNumber::UDP, SENDER, RECEIVER)?,
            etherparse::Ipv4Extensions::default(),
        ))
        .udp(40_000, PORT);
    let mut frame = Vec::new();
    builder.write(&mut frame, &[0; 18])?;
    frame.get_mut(CHECKSUM).context("a frame without a checksum")?.fill(0);
    Ok(frame)
}

/// What a reader must know about the run besides the machine.
fn setup(packets: u32) -> Result<Map<String, Value>> {
    let version = |package: &str| {
        process::output(Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]))
    };
    let setup = json!({
        "attach_mode": "native (veth) for XDP programs",
        "pinned_to_cpu": CPU,
        "packets_per_round": packets,
        "frame_bytes": frame()?.len(),
        "xdp_tools": version("xdp-tools")?,
        "nftables": version("nftables")?,
        "ipset": version("ipset")?,
        "iptables": version("iptables")?,
    });
    Ok(setup.as_object().cloned().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_what_the_kernel_writes() {
        let interfaces = "Inter-|   Receive\n    lo:  9 8 0 0\n  eth0:  600   10    0    0\n";
        let protocols = "Udp: InDatagrams NoPorts InErrors\nUdp: 5 7 9\n";
        let counts = Counts { arrived: 10, passed: 7 };
        assert_eq!(Counts::parse(interfaces, protocols), Some(counts));
        assert_eq!(Counts::parse(interfaces, "Udp: InDatagrams\nUdp: 5\n"), None);
    }

    #[test]
    fn frames_are_as_long_as_ethernet_wants_and_listed_sources_are_public() {
        assert_eq!(frame().unwrap().len(), 60);
        assert!(hosts(1000).iter().all(|(address, _)| !address.is_loopback()));
        assert!(subjects(1_000_000).iter().all(|name| !name.starts_with("xdp-filter")));
        assert_eq!(subjects(10_000).len(), 8);
    }
}
