//! `cargo xtask bench kernel`: nanoseconds a packet by `BPF_PROG_TEST_RUN`, beside xdp-filter and the kernel's own
//! trie. Nothing is attached and no packet is sent: it says what a program costs, not what a network card does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use gateway_common::bucket::Bucket;
use harness::bpf;
use harness::programs::Prefix;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::json;

use super::prefixes::SplitMix;
use super::report::{Comparison, Report};
use super::subject::{Subject, With};
use super::{Args, exactness, newcomers, random};
use crate::process;

pub(super) const DROP: u32 = 1;
pub(super) const PASS: u32 = 2;

/// In a round the subjects take turns, so that what disturbs the machine disturbs all of them. Each test run makes the
/// kernel patch its XDP dispatcher twice, for some 17 ms that are not in the figures: so not more turns than these.
pub(super) const TURNS: u32 = 4;
pub(super) const PACKETS: u32 = 1_000_000;
const PACKETS_QUICK: u32 = 100_000;
pub(super) const CPU: usize = 0;

/// Of each family: xdp-filter's tables hold ten thousand, and one place is the source's.
const RULES: usize = 9_999;
pub(super) const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 8);
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0, 0, 0, 7);
const NEIGHBOUR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 3, 0, 0, 0, 7);

/// Never runs out, and costs what any other costs.
pub(super) const ENDLESS: Bucket = Bucket { interval_ns: 1, depth_ns: 1_000_000_000 };
/// One packet an hour.
pub(super) const EXHAUSTED: Bucket =
    Bucket { interval_ns: 3_600_000_000_000, depth_ns: 3_600_000_000_000 };

const GROSS: &str = "ns_per_packet";
const NET: &str = "net_ns_per_packet";
const COMPARISONS: [Comparison; 10] = [
    Comparison { figure: NET, subject: "gateway", peer: "lpm" },
    Comparison { figure: GROSS, subject: "gateway", peer: "lpm" },
    Comparison { figure: NET, subject: "gateway", peer: "xdp-filter" },
    Comparison { figure: NET, subject: "gateway", peer: "xdp-filter-ip" },
    Comparison { figure: NET, subject: "gateway+profile", peer: "xdp-filter" },
    Comparison { figure: NET, subject: "gateway+profile", peer: "xdp-filter-ip" },
    Comparison { figure: GROSS, subject: "gateway", peer: "xdp-filter" },
    Comparison { figure: GROSS, subject: "gateway", peer: "xdp-filter-ip" },
    Comparison { figure: GROSS, subject: "gateway+profile", peer: "xdp-filter" },
    Comparison { figure: GROSS, subject: "gateway+profile", peer: "xdp-filter-ip" },
];

/// Cases with the same rules, for which the programs are loaded once.
struct Group {
    denied: Vec<Prefix>,
    runs: Runs,
    cases: Vec<Case>,
}

/// One frame, again and again, and what must become of it.
struct Case {
    name: &'static str,
    frame: Vec<u8>,
    verdict: u32,
}

/// Who takes part.
enum Runs {
    /// The gateway alone, with buckets and with hygiene, and xdp-filter in two variants.
    All,
    /// The gateway in the same three: what xdp-filter does not do.
    Ours,
    /// The gateway with this.
    One(With),
}

pub(super) fn run(root: &Path, args: &Args) -> Result<()> {
    let groups = groups()?;
    let ours = groups.iter().flat_map(|group| &group.cases).map(|case| case.name);
    let others = newcomers::CASES.into_iter().chain([exactness::CASE]);
    args.check_cases(
        &ours.chain(others).chain(random::CASES.map(|case| case.0)).collect::<Vec<_>>(),
    )?;
    harness::require_root()?;
    if cfg!(debug_assertions) {
        return optimised(root);
    }
    crate::test::provide("xdp-filter", "xdp-tools", true)?;
    let mut cpu = CpuSet::new();
    cpu.set(CPU)?;
    sched_setaffinity(Pid::from_raw(0), &cpu).context("cannot stay on one CPU")?;

    let packets = if args.quick { PACKETS_QUICK } else { PACKETS };
    let mut query = Command::new("dpkg-query");
    let version = process::output(query.args(["-W", "-f", "${Version}", "xdp-tools"]))?;
    let setup = json!({
        "attach_mode": "none (BPF_PROG_TEST_RUN)",
        "pinned_to_cpu": CPU,
        "packets_per_round": packets,
        "xdp_tools": version,
    });
    let setup = setup.as_object().cloned().unwrap_or_default();
    let mut report = Report::start(root, args, setup)?;
    for mut group in groups {
        group.cases.retain(|case| args.is_chosen(case.name));
        if group.cases.is_empty() {
            continue;
        }
        let subjects = subjects(&group)?;
        let empty = Subject::empty()?;
        for case in &group.cases {
            check(&subjects, case).with_context(|| format!("case {}", case.name))?;
            let frame = (case.name, case.frame.as_slice());
            measure((&empty, &subjects), frame, args.rounds, packets / TURNS, &mut report)?;
        }
    }
    newcomers::run(args, &mut report)?;
    if args.is_chosen(exactness::CASE) {
        exactness::run(args, &tcp(SOURCE.into())?, &mut report)?;
    }
    random::run(args, &tcp(NEIGHBOUR.into())?, &mut report)?;
    report.finish(&COMPARISONS)
}

/// The same in a release build: how long loading takes says nothing in another.
fn optimised(root: &Path) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--release", "--quiet", "--locked", "--package", "xtask", "--"]);
    process::run(cargo.args(std::env::args_os().skip(1)).current_dir(root))
}

pub(super) type Subjects = Vec<(&'static str, Subject)>;

/// Runs one frame through the empty program and the subjects in turns, `repeat` times a turn.
pub(super) fn measure(
    (empty, subjects): (&Subject, &Subjects),
    (case, frame): (&str, &[u8]),
    rounds: u32,
    repeat: u32,
    report: &mut Report,
) -> Result<()> {
    for round in 1..=rounds {
        let mut empty_ns = 0;
        let mut sums = vec![0; subjects.len()];
        for _ in 0..TURNS {
            empty_ns += u64::from(bpf::test_run(empty.program()?, frame, repeat)?.ns);
            for (sum, (_, subject)) in sums.iter_mut().zip(subjects) {
                *sum += u64::from(bpf::test_run(subject.program()?, frame, repeat)?.ns);
            }
        }
        let mean = |sum: u64| sum as f64 / f64::from(TURNS);
        report.round(case, "empty", round, &[(GROSS, mean(empty_ns))]);
        for ((name, _), sum) in subjects.iter().zip(sums) {
            // To tenths: the kernel's figure is in whole nanoseconds.
            let net = ((mean(sum) - mean(empty_ns)) * 10.0).round() / 10.0;
            report.round(case, name, round, &[(GROSS, mean(sum)), (NET, net)]);
        }
    }
    Ok(())
}

fn check(subjects: &Subjects, case: &Case) -> Result<()> {
    for (name, subject) in subjects {
        // The first packet of a source makes its bucket and is admitted.
        bpf::test_run(subject.program()?, &case.frame, 1000)?;
        let verdict = bpf::test_run(subject.program()?, &case.frame, 1)?.verdict;
        ensure!(verdict == case.verdict, "{name} returns {verdict}, not {}", case.verdict);
    }
    Ok(())
}

fn subjects(group: &Group) -> Result<Subjects> {
    let gateway = |with| Subject::gateway(&group.denied, with);
    if let Runs::One(with) = group.runs {
        let mut subjects = vec![("gateway", gateway(with)?)];
        if let With::Profile(bucket) = with {
            let of_host = Bucket::per_second(1000, 1000).unwrap_or(ENDLESS);
            let limited = Subject::limited(bucket, [of_host; 2])?;
            subjects.push(("gateway+new_sources", limited));
        }
        return Ok(subjects);
    }
    let mut subjects = vec![
        ("gateway", gateway(With::Nothing)?),
        ("gateway+profile", gateway(With::Profile(ENDLESS))?),
        ("gateway+hygiene", gateway(With::Hygiene)?),
    ];
    if matches!(group.runs, Runs::All) {
        // All of its features, as it comes, and the leanest variant that knows addresses.
        subjects.push(("xdp-filter", Subject::xdp_filter("all", &group.denied)?));
        subjects.push(("xdp-filter-ip", Subject::xdp_filter("ip", &group.denied)?));
    }
    Ok(subjects)
}

fn groups() -> Result<Vec<Group>> {
    let [source, other]: [IpAddr; 2] = [SOURCE.into(), NEIGHBOUR.into()];
    let [source_v6, other_v6]: [IpAddr; 2] = [SOURCE_V6.into(), NEIGHBOUR_V6.into()];
    let case = |name, frame, verdict| Case { name, frame, verdict };
    let hosts = [(source, 32), (source_v6, 128)].into_iter();
    let hosts = hosts.chain(random(false)).chain(random(true)).collect();
    let prefix = [(source, 24)].into_iter().chain(random(false)).collect();
    let ours = |denied, cases| Group { denied, runs: Runs::Ours, cases };
    let empty = vec![
        case("pass_empty", tcp(source)?, PASS),
        case("ipv6_pass_empty", tcp(source_v6)?, PASS),
    ];
    let rules = vec![
        case("pass_rules", tcp(other)?, PASS),
        case("deny_host", tcp(source)?, DROP),
        case("ipv6_pass_rules", tcp(other_v6)?, PASS),
        case("ipv6_deny_host", tcp(source_v6)?, DROP),
        case("vlan_pass", tagged(&tcp(other)?), PASS),
        case("ipv6_extensions", extended(&tcp(other_v6)?), PASS),
    ];
    let one = |name, verdict, frame, with| {
        let cases = vec![case(name, frame, verdict)];
        Group { denied: Vec::new(), runs: Runs::One(with), cases }
    };
    let deny_prefix = vec![case("deny_prefix", tcp(source)?, DROP)];
    let ipv4_worst = vec![case("ipv4_worst", tcp(source)?, DROP)];
    let ipv6_worst = vec![case("ipv6_worst", tcp(source_v6)?, DROP)];
    Ok(vec![
        Group { denied: Vec::new(), runs: Runs::All, cases: empty },
        Group { denied: hosts, runs: Runs::All, cases: rules },
        ours(prefix, deny_prefix),
        ours(every_length(source), ipv4_worst),
        ours(every_length(source_v6), ipv6_worst),
        one("bucket_admit", PASS, tcp(source)?, With::Profile(ENDLESS)),
        one("bucket_refuse", DROP, tcp(source)?, With::Profile(EXHAUSTED)),
        one("host_udp_admit", PASS, udp(source)?, With::HostLimit(ENDLESS)),
        one("host_udp_refuse", DROP, udp(source)?, With::HostLimit(EXHAUSTED)),
    ])
}

/// Rules of every length that a rule may have, next to `source`, whose packets nothing says less about: each length is
/// looked for, and only the shortest is found. Those around differ from it in their last bit.
fn every_length(source: IpAddr) -> Vec<Prefix> {
    let neighbour = |length: u32| -> IpAddr {
        match source {
            IpAddr::V4(source) => Ipv4Addr::from_bits(source.to_bits() ^ 1 << (32 - length)).into(),
            IpAddr::V6(source) => {
                Ipv6Addr::from_bits(source.to_bits() ^ 1 << (128 - length)).into()
            }
        }
    };
    let longest = if source.is_ipv4() { 32 } else { 128 };
    [(source, 1)]
        .into_iter()
        .chain((2..=longest).map(|length| (neighbour(length), length)))
        .collect()
}

/// Hosts that are none of ours, the same in every run.
fn random(six: bool) -> Vec<Prefix> {
    let mut numbers = SplitMix::default();
    let mut host = || -> Prefix {
        let bits = numbers.next();
        match six {
            true => (Ipv6Addr::from_bits(0x2400 << 112 | u128::from(bits)).into(), 128),
            false => (Ipv4Addr::from_bits((bits >> 32) as u32).into(), 32),
        }
    };
    (0..RULES).map(|_| host()).collect()
}

fn ip(source: IpAddr) -> PacketBuilderStep<IpHeaders> {
    let link = PacketBuilder::ethernet2([1; 6], [2; 6]);
    match source {
        IpAddr::V4(source) => link.ipv4(source.octets(), [10, 0, 0, 1], 64),
        IpAddr::V6(source) => link.ipv6(source.octets(), [9; 16], 64),
    }
}

pub(super) fn tcp(source: IpAddr) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    ip(source).tcp(40_000, 443, 1, 1024).syn().write(&mut frame, &[0; 10])?;
    Ok(frame)
}

fn udp(source: IpAddr) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    ip(source).udp(40_000, 53).write(&mut frame, &[0; 10])?;
    Ok(frame)
}

/// With one VLAN tag (802.1Q).
fn tagged(frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &[0x81, 0x00, 0, 5], rest].concat()
}

/// An IPv6 datagram behind a hop-by-hop and a destination options header.
fn extended(frame: &[u8]) -> Vec<u8> {
    const ETHERNET_AND_IPV6: usize = 14 + 40;
    let (headers, tcp) = frame.split_at(ETHERNET_AND_IPV6);
    let mut headers = headers.to_vec();
    // Payload length and next header (RFC 8200, section 3), then PadN options of four bytes (section 4.2).
    if let Some(fields) = headers.get_mut(18..21) {
        fields.copy_from_slice(&[0, (tcp.len() + 16) as u8, 0]);
    }
    [headers.as_slice(), &[60, 0, 1, 4, 0, 0, 0, 0], &[6, 0, 1, 4, 0, 0, 0, 0], tcp].concat()
}
