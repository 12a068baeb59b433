//! Frames that nothing honest sends, the exceptions that keep a link alive, and the buckets of the host as a whole, run
//! through the committed XDP object in the kernel by `BPF_PROG_TEST_RUN`: one named frame a case.
//!
//! It needs root and no network. A test run claims to arrive on the loopback interface, which is spared only where
//! the program is told so.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail like tests"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::programs::{TestRun, TestRunOptions};
use etherparse::{IpNumber, PacketBuilder};
use gateway::base::time::{BootTime, Now};
use gateway::config::{HostLimits, Hygiene};
use gateway::kernel::object::{Capacity, Switches};
use gateway::kernel::trial::Trial;
use gateway_common::bucket::Bucket;
use gateway_common::rule::Action;
use gateway_common::verdict::{Reason, Verdict};
use ipnet::IpNet;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

const ON: Switches = Switches { hygiene: Hygiene::ON, ..Switches::RULES };
const SMALL: Capacity = Capacity { rules: 1024, sources: 1024 };

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
const NEIGHBOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 8));
const SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0, 0, 0, 7));
const BOTH: [IpAddr; 2] = [SOURCE, SOURCE_V6];
const NOBODY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
const PROTECTED_PORT: u16 = 443;
const OTHER_PORT: u16 = 5353;

/// The program, loaded and attached to nothing.
struct Door(Trial);

impl Door {
    fn with(switches: Switches) -> Self {
        let loaded = Trial::load(switches, SMALL);
        Self(loaded.unwrap_or_else(|error| panic!("loading an XDP program takes root: {error}")))
    }

    fn limited(host_limits: HostLimits) -> Self {
        let mut door = Self::with(Switches { buckets: true, host_limits, ..Switches::RULES });
        door.0.protect([PROTECTED_PORT]).unwrap();
        door
    }

    fn rule(&mut self, source: IpAddr, action: Action) {
        self.0.put(IpNet::from(source), action, 0).unwrap();
    }

    /// What becomes of a frame, which must be counted for `reason` and nothing else.
    fn decides(&self, frame: &[u8], reason: Reason) {
        let before = self.counts();
        let verdict = match reason.verdict() {
            Verdict::Pass => XDP_PASS,
            Verdict::Drop => XDP_DROP,
        };
        let after = (self.run(frame, 1), self.counts());
        let counted = |other: Reason| before[other as usize] + u64::from(other == reason);
        assert_eq!(after, (verdict, Reason::ALL.map(counted)), "{}", reason.name());
    }

    fn run(&self, frame: &[u8], repeat: u32) -> u32 {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
        self.0.program().unwrap().test_run(options).unwrap().return_value
    }

    fn counts(&self) -> [u64; Reason::ALL.len()] {
        let counters = self.0.counters().unwrap();
        Reason::ALL.map(|reason| {
            counters.iter().find(|count| count.reason == reason).unwrap().done.packets
        })
    }
}

fn ip(source: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let link = PacketBuilder::ethernet2([1; 6], [2; 6]);
    match source {
        IpAddr::V4(source) => link.ipv4(source.octets(), [10, 0, 0, 1], 64),
        IpAddr::V6(source) => link.ipv6(source.octets(), [9; 16], 64),
    }
    .write(&mut frame, IpNumber::IPV6_NO_NEXT_HEADER, payload)
    .unwrap();
    // Afterwards, for the builder looks for the headers that some numbers promise.
    frame[if source.is_ipv4() { 23 } else { 20 }] = protocol;
    frame
}

fn tcp(source: IpAddr, flags: u8) -> Vec<u8> {
    let mut header = [0; 20];
    header[2..4].copy_from_slice(&PROTECTED_PORT.to_be_bytes());
    (header[12], header[13]) = (0x50, flags);
    ip(source, 6, &header)
}

fn udp(source: IpAddr, port: u16) -> Vec<u8> {
    let mut header = [0; 16];
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[5] = 16;
    ip(source, 17, &header)
}

/// A later fragment.
fn fragment(source: IpAddr) -> Vec<u8> {
    let offset = 185u16;
    if source.is_ipv6() {
        let mut payload = vec![17, 0];
        payload.extend((offset << 3).to_be_bytes());
        payload.resize(32, 0);
        return ip(source, 44, &payload);
    }
    let mut frame = udp(source, 0);
    frame[20..22].copy_from_slice(&offset.to_be_bytes());
    frame
}

/// MLD as it is sent: behind a hop-by-hop header with the router alert.
fn multicast_listener(source: IpAddr, kind: u8) -> Vec<u8> {
    let mut payload = vec![58, 0, 5, 2, 0, 0, 1, 0, kind];
    payload.resize(32, 0);
    ip(source, 0, &payload)
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

#[test]
fn tcp_flags_that_no_state_sends_are_dropped() {
    let door = Door::with(ON);
    for source in BOTH {
        // Null, FIN, PSH, URG, Xmas, SYN+FIN, SYN+RST, FIN+RST, all.
        for flags in [0x00, 0x01, 0x08, 0x20, 0x29, 0x03, 0x06, 0x05, 0x3f] {
            door.decides(&tcp(source, flags), Reason::TcpFlags);
        }
        // SYN, with congestion bits, SYN+ACK, ACK, PSH, FIN, RST alone and with ACK, URG.
        for flags in [SYN, 0xc2, 0x12, ACK, 0x18, 0x11, 0x04, 0x14, 0x30] {
            door.decides(&tcp(source, flags), Reason::NoRule);
        }
    }
}

#[test]
fn an_allow_rule_makes_no_scan_honest_and_a_deny_rule_goes_first() {
    let mut door = Door::with(ON);
    door.rule(SOURCE, Action::Allow);
    door.decides(&tcp(SOURCE, 0), Reason::TcpFlags);
    door.decides(&tcp(SOURCE, ACK), Reason::Allow);
    door.rule(SOURCE, Action::Deny);
    door.decides(&tcp(SOURCE, 0), Reason::Deny);
}

#[test]
fn sources_that_cannot_be_are_dropped() {
    let door = Door::with(ON);
    let martians = [
        "127.0.0.1",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "0.0.0.0",
        "::",
        "::1",
        "::ffff:192.0.2.7",
        "ff02::1",
    ];
    for source in martians.map(|source| source.parse().unwrap()) {
        door.decides(&tcp(source, SYN), Reason::Martian);
        door.decides(&udp(source, 53), Reason::Martian);
        door.decides(&fragment(source), Reason::Martian);
    }
    let honest = ["126.0.0.1", "223.255.255.255", "240.0.0.1", "10.0.0.255", "fe80::1", "::2"];
    for source in honest.map(|source| source.parse().unwrap()) {
        door.decides(&tcp(source, SYN), Reason::NoRule);
    }
}

#[test]
fn duplicate_address_detection_needs_no_source() {
    let door = Door::with(ON);
    let mut solicitation = vec![135];
    solicitation.resize(24, 0);
    let mut frame = ip(NOBODY[1], 58, &solicitation);
    door.decides(&frame, Reason::Martian);
    // Only what no router forwarded is neighbour discovery.
    frame[21] = 255;
    door.decides(&frame, Reason::Neighbour);
}

#[test]
fn dhcp_needs_no_source() {
    let door = Door::with(ON);
    let [v4, _] = NOBODY;
    door.decides(&udp(v4, 67), Reason::NoRule);
    door.decides(&udp(v4, 68), Reason::Martian);
    door.decides(&tcp(v4, SYN), Reason::Martian);
}

#[test]
fn group_membership_needs_no_source() {
    let door = Door::with(ON);
    let [v4, v6] = NOBODY;
    for kind in [130, 131, 132, 143] {
        door.decides(&multicast_listener(v6, kind), Reason::NoRule);
        door.decides(&multicast_listener("fe80::7".parse().unwrap(), kind), Reason::NoRule);
        door.decides(&multicast_listener("ff02::7".parse().unwrap(), kind), Reason::Martian);
    }
    door.decides(&multicast_listener(v6, 128), Reason::Martian);
    door.decides(&ip(v4, 2, &[0x11, 0, 0, 0, 0, 0, 0, 0]), Reason::NoRule);
}

#[test]
fn own_addresses_from_outside_are_dropped_while_somebody_looks_after_them() {
    let mut door = Door::with(ON);
    for source in BOTH {
        door.0.own(source).unwrap();
        door.decides(&tcp(source, SYN), Reason::Allow);
    }
    door.0.vouch(Now::read().boot).unwrap();
    for source in BOTH {
        door.decides(&tcp(source, SYN), Reason::Martian);
    }
    door.rule(NEIGHBOUR, Action::Allow);
    door.decides(&tcp(NEIGHBOUR, SYN), Reason::Allow);
    // Whoever vouched has been dead for long.
    door.0.vouch(BootTime(0)).unwrap();
    door.decides(&tcp(SOURCE, SYN), Reason::Allow);
}

#[test]
fn headers_that_contradict_themselves_are_dropped() {
    let door = Door::with(ON);
    let changed = |mut frame: Vec<u8>, at: usize, byte: u8| {
        frame[at] = byte;
        frame
    };
    let (tcp_v4, tcp_v6) = (tcp(SOURCE, ACK), tcp(SOURCE_V6, ACK));
    for frame in [
        changed(tcp_v4.clone(), 14, 0x55),
        changed(tcp_v4.clone(), 14, 0x44),
        // Lengths: of the packet, of TCP's header, of UDP; then a fragment within the flags of TCP, one too late.
        changed(tcp_v4.clone(), 16, 1),
        changed(tcp_v4.clone(), 46, 0x40),
        changed(udp(SOURCE, 53), 39, 17),
        changed(tcp_v4.clone(), 21, 1),
        changed(changed(tcp_v4.clone(), 20, 0x1f), 21, 0xff),
        changed(tcp_v6.clone(), 14, 0x50),
        changed(tcp_v6.clone(), 18, 1),
        changed(tcp_v6.clone(), 66, 0xf0),
        changed(udp(SOURCE_V6, 53), 59, 7),
        // Behind the options a routing header, which is not there.
        ip(SOURCE_V6, 60, &[43, 0, 1, 4, 0, 0, 0, 0]),
    ] {
        door.decides(&frame, Reason::Malformed);
    }
    let mut padded = tcp_v4.clone();
    padded.resize(60, 0xff);
    door.decides(&padded, Reason::NoRule);
    door.decides(&fragment(SOURCE), Reason::NoRule);
    door.decides(&fragment(SOURCE_V6), Reason::NoRule);
    door.decides(&ip(SOURCE_V6, 60, &[59, 0, 1, 4, 0, 0, 0, 0]), Reason::NoRule);
}

#[test]
fn a_frame_of_several_buffers_is_measured_whole() {
    let door = Door::with(ON);
    let mut payload = vec![0; 8000];
    payload[2..4].copy_from_slice(&53u16.to_be_bytes());
    payload[4..6].copy_from_slice(&8000u16.to_be_bytes());
    for source in BOTH {
        let mut frame = ip(source, 17, &payload);
        door.decides(&frame, Reason::NoRule);
        frame.pop();
        door.decides(&frame, Reason::Malformed);
    }
}

#[test]
fn the_loopback_interface_is_spared() {
    let mut door = Door::with(Switches { spare_loopback: true, ..ON });
    door.0.own(SOURCE).unwrap();
    door.0.vouch(Now::read().boot).unwrap();
    door.decides(&tcp(SOURCE, SYN), Reason::Allow);
    door.decides(&tcp("127.0.0.1".parse().unwrap(), SYN), Reason::NoRule);
    door.decides(&tcp(NEIGHBOUR, 0), Reason::NoRule);
    let mut frame = tcp(NEIGHBOUR, ACK);
    frame[46] = 0x40;
    door.decides(&frame, Reason::NoRule);
}

#[test]
fn each_switch_is_its_own() {
    let scan = tcp(SOURCE, 0);
    let martian = tcp("127.0.0.1".parse().unwrap(), SYN);
    let mut malformed = tcp(SOURCE, ACK);
    malformed[46] = 0x40;
    let door = |hygiene| Door::with(Switches { hygiene, ..ON });
    let off = Hygiene::OFF;
    for (hygiene, reasons) in [
        (off, [Reason::NoRule; 3]),
        (Hygiene { tcp_flags: true, ..off }, [Reason::TcpFlags, Reason::NoRule, Reason::NoRule]),
        (Hygiene { martian: true, ..off }, [Reason::NoRule, Reason::Martian, Reason::NoRule]),
        (Hygiene { malformed: true, ..off }, [Reason::NoRule, Reason::NoRule, Reason::Malformed]),
    ] {
        let door = door(hygiene);
        for (frame, reason) in [&scan, &martian, &malformed].into_iter().zip(reasons) {
            door.decides(frame, reason);
        }
    }
}

#[test]
fn a_dry_run_spares_scans_and_counts_them() {
    let door = Door::with(Switches { dry_run: true, ..ON });
    assert_eq!(door.run(&tcp(SOURCE, 0), 1), XDP_PASS);
    let counters = door.0.counters().unwrap();
    let count = counters.iter().find(|count| count.reason == Reason::TcpFlags).unwrap();
    assert_eq!((count.would.packets, count.done.packets), (1, 0));
}

#[test]
fn the_host_takes_so_much_udp_whoever_sends_it() {
    let udp_bucket = Bucket::per_second(1, 4).unwrap();
    let mut door = Door::limited(HostLimits { udp: udp_bucket, ..HostLimits::NONE });
    for source in [SOURCE, SOURCE_V6, NEIGHBOUR, SOURCE] {
        door.decides(&udp(source, OTHER_PORT), Reason::NoRule);
    }
    for source in [SOURCE, SOURCE_V6, NEIGHBOUR] {
        door.decides(&udp(source, OTHER_PORT), Reason::HostUdp);
        door.decides(&udp(source, PROTECTED_PORT), Reason::NoRule);
        door.decides(&tcp(source, SYN), Reason::NoRule);
        door.decides(&fragment(source), Reason::NoRule);
        door.decides(&ip(source, 47, &[0; 8]), Reason::NoRule);
    }
    door.rule(NEIGHBOUR, Action::Limit);
    door.decides(&udp(NEIGHBOUR, OTHER_PORT), Reason::HostUdp);
    door.rule(NEIGHBOUR, Action::Allow);
    door.decides(&udp(NEIGHBOUR, OTHER_PORT), Reason::Allow);
}

#[test]
fn the_host_takes_so_many_fragments_first_and_later() {
    let fragments = Bucket::per_second(1, 3).unwrap();
    let mut door = Door::limited(HostLimits { fragments, ..HostLimits::NONE });
    let mut first = udp(SOURCE, PROTECTED_PORT);
    first[20] = 0x20;
    door.decides(&first, Reason::NoRule);
    door.decides(&fragment(SOURCE), Reason::NoRule);
    door.decides(&fragment(SOURCE_V6), Reason::NoRule);
    for frame in [first, fragment(NEIGHBOUR), fragment(SOURCE_V6)] {
        door.decides(&frame, Reason::HostFragments);
    }
    door.decides(&udp(SOURCE, OTHER_PORT), Reason::NoRule);
    door.rule(SOURCE_V6, Action::Allow);
    door.decides(&fragment(SOURCE_V6), Reason::Allow);
}

#[test]
fn what_its_source_may_not_send_costs_the_host_nothing() {
    let fragments = Bucket::per_second(1, 2).unwrap();
    let mut door = Door::limited(HostLimits { fragments, ..HostLimits::NONE });
    door.0.profiles(&[Bucket::per_second(1, 1).unwrap()]).unwrap();
    door.decides(&fragment(SOURCE), Reason::WithinLimit);
    for _ in 0..5 {
        door.decides(&fragment(SOURCE), Reason::Limit);
    }
    door.decides(&fragment(NEIGHBOUR), Reason::WithinLimit);
    door.decides(&fragment(SOURCE_V6), Reason::HostFragments);
}

#[test]
fn the_host_s_bucket_is_exact_on_two_cpus_at_once() {
    const BURST: u64 = 1000;
    const REPEAT: u32 = 50_000;
    let udp_bucket = Bucket::per_second(1, BURST).unwrap();
    let door = Door::limited(HostLimits { udp: udp_bucket, ..HostLimits::NONE });
    let frame = udp(SOURCE, OTHER_PORT);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| door.run(&frame, REPEAT));
        }
    });
    let counts = door.counts();
    let admitted = counts[Reason::NoRule as usize];
    assert!((BURST..BURST + 10).contains(&admitted), "{admitted}");
    let refused = counts[Reason::HostUdp as usize] + counts[Reason::Contended as usize];
    assert_eq!(admitted + refused, 2 * u64::from(REPEAT));
}

#[test]
fn the_verifier_has_room_with_everything_switched_on() {
    let limit = Bucket::per_second(1, 1).unwrap();
    let host_limits = HostLimits { udp: limit, fragments: limit };
    let door = Door::with(Switches { buckets: true, spare_loopback: true, host_limits, ..ON });
    let info = door.0.program().unwrap().info().unwrap();
    let verified = info.verified_instruction_count().unwrap();
    assert!(verified < 250_000, "{verified} of the million instructions that it follows");
}
