//! `cargo xtask bench kernel`: nanoseconds a packet by `BPF_PROG_TEST_RUN`, beside xdp-filter. Nothing is attached and
//! no packet is sent: it says what a program costs, not what a network card does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use gateway_common::bucket::Bucket;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::json;

use super::report::{Comparison, Report};
use super::subject::{Prefix, Subject};
use super::{Args, bpf};
use crate::process;

const DROP: u32 = 1;
const PASS: u32 = 2;

/// In a round the subjects take turns, so that what disturbs the machine disturbs all of them.
const TURNS: u32 = 10;
const PACKETS: u32 = 1_000_000;
const PACKETS_QUICK: u32 = 100_000;
const CPU: usize = 0;

/// xdp-filter's tables hold ten thousand, and one place is the source's.
const RULES: usize = 9_999;
const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0, 0, 0, 7);

/// Never runs out, and costs what any other costs.
const ENDLESS: Bucket = Bucket { interval_ns: 1, depth_ns: 1_000_000_000 };
/// One packet an hour.
const EXHAUSTED: Bucket = Bucket { interval_ns: 3_600_000_000_000, depth_ns: 3_600_000_000_000 };

const GROSS: &str = "ns_per_packet";
const NET: &str = "net_ns_per_packet";
const COMPARISONS: [Comparison; 8] = [
    Comparison { figure: NET, subject: "gateway", peer: "xdp-filter" },
    Comparison { figure: NET, subject: "gateway", peer: "xdp-filter-ip" },
    Comparison { figure: NET, subject: "gateway+profile", peer: "xdp-filter" },
    Comparison { figure: NET, subject: "gateway+profile", peer: "xdp-filter-ip" },
    Comparison { figure: GROSS, subject: "gateway", peer: "xdp-filter" },
    Comparison { figure: GROSS, subject: "gateway", peer: "xdp-filter-ip" },
    Comparison { figure: GROSS, subject: "gateway+profile", peer: "xdp-filter" },
    Comparison { figure: GROSS, subject: "gateway+profile", peer: "xdp-filter-ip" },
];

/// One frame, again and again, and the rules that it meets.
struct Case {
    name: &'static str,
    frame: Vec<u8>,
    denied: Vec<Prefix>,
    verdict: u32,
    runs: Runs,
}

/// Who takes part.
enum Runs {
    /// The gateway without buckets and with, and xdp-filter in two variants.
    All,
    /// The gateway without buckets and with: what xdp-filter does not do.
    Ours,
    /// The gateway with this profile.
    Bucket(Bucket),
}

pub(super) fn run(root: &Path, args: &Args) -> Result<()> {
    harness::require_root()?;
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
    for case in cases()? {
        measure(root, &case, args.rounds, packets / TURNS, &mut report)
            .with_context(|| format!("case {}", case.name))?;
    }
    report.finish(&COMPARISONS)
}

fn measure(root: &Path, case: &Case, rounds: u32, repeat: u32, report: &mut Report) -> Result<()> {
    let empty = Subject::empty()?;
    let subjects = subjects(root, case)?;
    for (name, subject) in &subjects {
        // The first packet of a source makes its bucket and is admitted.
        bpf::test_run(subject.program()?, &case.frame, 1000)?;
        let verdict = bpf::test_run(subject.program()?, &case.frame, 1)?.verdict;
        ensure!(verdict == case.verdict, "{name} returns {verdict}, not {}", case.verdict);
    }
    for round in 1..=rounds {
        let mut empty_ns = 0;
        let mut sums = vec![0; subjects.len()];
        for _ in 0..TURNS {
            empty_ns += u64::from(bpf::test_run(empty.program()?, &case.frame, repeat)?.ns);
            for (sum, (_, subject)) in sums.iter_mut().zip(&subjects) {
                *sum += u64::from(bpf::test_run(subject.program()?, &case.frame, repeat)?.ns);
            }
        }
        let mean = |sum: u64| sum as f64 / f64::from(TURNS);
        report.round(case.name, "empty", round, &[(GROSS, mean(empty_ns))]);
        for ((name, _), sum) in subjects.iter().zip(sums) {
            // In whole tenths again, which the subtraction blurs.
            let net = ((mean(sum) - mean(empty_ns)) * 10.0).round() / 10.0;
            report.round(case.name, name, round, &[(GROSS, mean(sum)), (NET, net)]);
        }
    }
    Ok(())
}

fn subjects(root: &Path, case: &Case) -> Result<Vec<(&'static str, Subject)>> {
    let gateway = |profile| Subject::gateway(&case.denied, profile);
    if let Runs::Bucket(bucket) = case.runs {
        return Ok(vec![("gateway", gateway(Some(bucket))?)]);
    }
    let mut subjects =
        vec![("gateway", gateway(None)?), ("gateway+profile", gateway(Some(ENDLESS))?)];
    if matches!(case.runs, Runs::All) {
        // All of its features, as it comes, and the leanest variant that knows addresses.
        subjects.push(("xdp-filter", Subject::xdp_filter("all", &case.denied)?));
        subjects.push(("xdp-filter-ip", Subject::xdp_filter("ip", &case.denied)?));
    }
    Ok(subjects)
}

fn cases() -> Result<Vec<Case>> {
    let (v4, v6) = (SOURCE.into(), SOURCE_V6.into());
    let case = |name, frame, denied, verdict, runs| Case { name, frame, denied, verdict, runs };
    let with = |prefix: Prefix| {
        let mut rules = random(prefix.0.is_ipv6());
        rules.push(prefix);
        rules
    };
    Ok(vec![
        case("pass_empty", tcp(v4)?, Vec::new(), PASS, Runs::All),
        case("pass_rules", tcp(v4)?, random(false), PASS, Runs::All),
        case("deny_host", tcp(v4)?, with((v4, 32)), DROP, Runs::All),
        case("deny_prefix", tcp(v4)?, with((v4, 24)), DROP, Runs::Ours),
        case("ipv6_pass_empty", tcp(v6)?, Vec::new(), PASS, Runs::All),
        case("ipv6_pass_rules", tcp(v6)?, random(true), PASS, Runs::All),
        case("ipv6_deny_host", tcp(v6)?, with((v6, 128)), DROP, Runs::All),
        case("vlan_pass", tagged(&tcp(v4)?), random(false), PASS, Runs::All),
        case("ipv6_extensions", extended(&tcp(v6)?), random(true), PASS, Runs::All),
        case("bucket_admit", tcp(v4)?, Vec::new(), PASS, Runs::Bucket(ENDLESS)),
        case("bucket_refuse", tcp(v4)?, Vec::new(), DROP, Runs::Bucket(EXHAUSTED)),
    ])
}

/// Hosts that are none of the sources, the same in every run (SplitMix64).
fn random(six: bool) -> Vec<Prefix> {
    let mut state = 0u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let mut host = || -> Prefix {
        let bits = next();
        match six {
            true => (Ipv6Addr::from_bits(0x2400 << 112 | u128::from(bits)).into(), 128),
            false => (Ipv4Addr::from_bits((bits >> 32) as u32).into(), 32),
        }
    };
    (0..RULES).map(|_| host()).collect()
}

fn tcp(source: IpAddr) -> Result<Vec<u8>> {
    let link = PacketBuilder::ethernet2([1; 6], [2; 6]);
    let mut frame = Vec::new();
    match source {
        IpAddr::V4(source) => link.ipv4(source.octets(), [10, 0, 0, 1], 64),
        IpAddr::V6(source) => link.ipv6(source.octets(), [9; 16], 64),
    }
    .tcp(40_000, 443, 1, 1024)
    .syn()
    .write(&mut frame, &[0; 10])?;
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
