//! Sources that have no bucket yet, in the committed XDP object run by `BPF_PROG_TEST_RUN`: what a flood of random ones
//! costs those that are known, how many of them get through, and who is no stranger.
//!
//! It needs root, and of the network the loopback alone.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use etherparse::PacketBuilder;
use gateway::kernel::object::{Capacity, Switches};
use gateway::kernel::trial::Trial;
use gateway_common::bucket::Bucket;
use gateway_common::layout::Profile;
use gateway_common::rule::Action;
use gateway_common::verdict::Reason;
use harness::{bpf, programs};
use ipnet::IpNet;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const PORT: u16 = 443;

const KNOWN: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0, 0, 0, 7);
const FIRST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const THIRD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

const ON: Switches = Switches { buckets: true, ..Switches::RULES };

/// So many at once and, as far as a test is concerned, no more.
fn only(burst: u64) -> Bucket {
    Bucket::per(3600, 1, burst).unwrap()
}

/// The program, loaded and attached to nothing.
struct Door(Trial);

impl Door {
    fn open(new_sources: u64, unknown_sources: Bucket) -> Self {
        let switches = Switches { new_sources: only(new_sources), unknown_sources, ..ON };
        let capacity = Capacity { rules: 1024, sources: 1024 };
        let loaded = Trial::load(switches, capacity);
        let mut trial =
            loaded.unwrap_or_else(|error| panic!("loading an XDP program takes root: {error}"));
        trial.protect([PORT]).unwrap();
        Self(trial)
    }

    fn limit(mut self, packets: Bucket, connections: Bucket) -> Self {
        self.0.default_profile(Profile { packets, connections }).unwrap();
        self
    }

    fn expect(&self, frame: &[u8], verdict: u32, reason: Reason) {
        let before = self.counted(reason);
        let program = self.0.program().unwrap().fd().unwrap();
        let ran = bpf::test_run(program.as_fd(), frame, 1).unwrap();
        let of = |reason: Reason| self.counted(reason);
        let all: Vec<_> = Reason::ALL.iter().map(|reason| (reason.name(), of(*reason))).collect();
        assert_eq!(self.counted(reason), before + 1, "not {}: {all:?}", reason.name());
        assert_eq!(ran.verdict, verdict, "{}", reason.name());
    }

    fn passes(&self, frame: &[u8]) {
        self.expect(frame, XDP_PASS, Reason::WithinLimit);
    }

    fn drops(&self, frame: &[u8], reason: Reason) {
        self.expect(frame, XDP_DROP, reason);
    }

    /// Runs an IPv4 frame so often, each time from another random source.
    fn flood(&self, frame: &[u8], packets: u32) {
        let program = self.0.program().unwrap().fd().unwrap();
        let flood = programs::randomiser(program.as_fd()).unwrap();
        bpf::test_run(flood.program(), frame, packets).unwrap();
    }

    fn counted(&self, reason: Reason) -> u64 {
        let counters = self.0.counters().unwrap();
        counters.iter().find(|count| count.reason == reason).unwrap().done.packets
    }
}

#[derive(Clone, Copy)]
enum Flags {
    Syn,
    Ack,
}

fn tcp(source: SocketAddr, destination: SocketAddr, flags: Flags) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([1; 6], [2; 6]);
    let step = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("one family a packet"),
    };
    let step = step.tcp(source.port(), destination.port(), 1, 1024);
    let mut frame = Vec::new();
    match flags {
        Flags::Syn => step.syn(),
        Flags::Ack => step.ack(1),
    }
    .write(&mut frame, &[0; 10])
    .unwrap();
    frame
}

fn syn(source: impl Into<IpAddr>) -> Vec<u8> {
    let source = source.into();
    let own: IpAddr = match source {
        IpAddr::V4(_) => Ipv4Addr::new(10, 0, 0, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(9).into(),
    };
    tcp((source, 40_000).into(), (own, PORT).into(), Flags::Syn)
}

fn udp(source: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4(source.octets(), [10, 0, 0, 1], 64)
        .udp(40_000, PORT)
        .write(&mut frame, &[0; 10])
        .unwrap();
    frame
}

/// Random sources meet a known one or each other a few times in four thousand million.
const CHANCE: u64 = 10;

#[test]
fn a_million_random_sources_cost_a_known_one_nothing() {
    const ROUNDS: u64 = 100;
    const A_ROUND: u32 = 10_000;
    const BURST: u64 = 50;
    const NEW: u64 = 200;
    const UNKNOWN: u64 = 300;
    let door = Door::open(NEW, only(UNKNOWN)).limit(only(BURST), Bucket::UNLIMITED);
    for round in 0..ROUNDS {
        // It keeps what it has spent, and what it has left.
        if round < BURST {
            door.passes(&syn(KNOWN));
        } else {
            door.drops(&syn(KNOWN), Reason::Limit);
        }
        door.flood(&syn(FIRST), A_ROUND);
    }
    let admitted = door.counted(Reason::WithinLimit) - BURST;
    // The known source was new once.
    let most = NEW - 1 + UNKNOWN;
    assert!((most..=most + CHANCE).contains(&admitted), "{admitted} strangers of at most {most}");
    let refused = door.counted(Reason::UnknownSources);
    assert_eq!(admitted + refused, ROUNDS * u64::from(A_ROUND));
    assert!((NEW as usize).abs_diff(door.0.sources().unwrap()) <= CHANCE as usize);
}

#[test]
fn the_buckets_of_the_host_are_exact_on_two_cpus_at_once() {
    const NEW: u64 = 300;
    const UNKNOWN: u64 = 1000;
    let door = Door::open(NEW, only(UNKNOWN)).limit(only(1000), Bucket::UNLIMITED);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| door.flood(&syn(FIRST), 100_000));
        }
    });
    let admitted = door.counted(Reason::WithinLimit);
    let most = NEW + UNKNOWN;
    assert!((most..=most + CHANCE).contains(&admitted), "{admitted}, not {most}");
}

#[test]
fn without_a_limit_of_their_own_unknown_sources_share_buckets_and_none_is_refused_as_such() {
    let door = Door::open(1, Bucket::UNLIMITED).limit(only(5), Bucket::UNLIMITED);
    for source in [FIRST, SECOND] {
        for _ in 0..5 {
            door.passes(&syn(source));
        }
        door.drops(&syn(source), Reason::Limit);
    }
    assert_eq!(door.0.sources().unwrap(), 1, "the second has none of its own");
    door.flood(&syn(FIRST), 100_000);
    assert!(door.counted(Reason::WithinLimit) > 99_000, "they are spread over many");
    assert_eq!(door.0.sources().unwrap(), 1);
    assert_eq!(door.counted(Reason::UnknownSources), 0);
}

#[test]
fn packets_and_connections_share_different_buckets() {
    let door = Door::open(1, Bucket::UNLIMITED).limit(only(5), only(2));
    door.passes(&udp(FIRST));
    for _ in 0..2 {
        door.passes(&syn(SECOND));
    }
    door.drops(&syn(SECOND), Reason::Connections);
    for _ in 0..3 {
        door.passes(&udp(SECOND));
    }
    door.drops(&udp(SECOND), Reason::Limit);
}

#[test]
fn a_source_is_new_once_and_unknown_once_a_packet() {
    let door = Door::open(1, only(2)).limit(only(100), only(100));
    door.passes(&udp(FIRST));
    door.passes(&syn(FIRST));
    assert_eq!(door.0.sources().unwrap(), 2, "known by one bucket, it is given the other");
    for _ in 0..2 {
        door.passes(&syn(SECOND));
    }
    door.drops(&syn(SECOND), Reason::UnknownSources);
    door.drops(&udp(THIRD), Reason::UnknownSources);
    door.passes(&syn(FIRST));
    assert_eq!(door.0.sources().unwrap(), 2);
}

#[test]
fn who_no_bucket_applies_to_is_no_stranger() {
    let mut door = Door::open(1, only(1)).limit(only(100), Bucket::UNLIMITED);
    door.passes(&syn(FIRST));
    door.passes(&syn(SECOND));
    door.drops(&syn(THIRD), Reason::UnknownSources);
    let elsewhere: SocketAddr = "10.0.0.1:22".parse().unwrap();
    let frame = tcp((THIRD, 40_000).into(), elsewhere, Flags::Syn);
    door.expect(&frame, XDP_PASS, Reason::NoRule);
    door.0.put(IpNet::from(IpAddr::from(THIRD)), Action::Allow, 0).unwrap();
    door.expect(&syn(THIRD), XDP_PASS, Reason::Allow);
}

#[test]
fn a_source_with_a_tcp_connection_is_no_stranger() {
    for own in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let listener = TcpListener::bind((own, 0)).unwrap();
        let here = listener.local_addr().unwrap();
        let client = TcpStream::connect(here).unwrap();
        let there = client.local_addr().unwrap();

        let mut door = Door::open(1, only(1)).limit(only(100), only(100));
        door.0.protect([PORT, here.port()]).unwrap();
        door.passes(&udp(FIRST));
        door.passes(&udp(SECOND));
        door.drops(&tcp(there, here, Flags::Syn), Reason::UnknownSources);
        let of_none = SocketAddr::new(own, there.port() ^ 1);
        door.drops(&tcp(of_none, here, Flags::Ack), Reason::UnknownSources);
        assert_eq!(door.0.sources().unwrap(), 1);

        door.passes(&tcp(there, here, Flags::Ack));
        assert_eq!(door.0.sources().unwrap(), 2, "and has a bucket of its own from now on");
        door.passes(&tcp(of_none, here, Flags::Ack));
        door.passes(&tcp(there, here, Flags::Syn));
        drop(client);
    }
}
