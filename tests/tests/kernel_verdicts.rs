//! What the committed XDP object does with a frame, run in the kernel by `BPF_PROG_TEST_RUN`: one named frame a case.
//!
//! It needs root and no network.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail like tests"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use aya::programs::{TestRun, TestRunOptions};
use etherparse::PacketBuilder;
use gateway::kernel::counters::Counters;
use gateway::kernel::object::{Capacity, Switches};
use gateway::kernel::trial::Trial;
use gateway_common::bucket::Bucket;
use gateway_common::layout::{Counter, Hits, Profile, SLOT_OTHERS, SLOT_WORDS, SLOTS_LEN};
use gateway_common::rule::Action;
use gateway_common::table::Span;
use gateway_common::verdict::Reason;
use ipnet::IpNet;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

const ON: Switches =
    Switches { buckets: true, events: Bucket::per_second(10, 10), ..Switches::RULES };
const SMALL: Capacity = Capacity { rules: 1024, sources: 1024 };
/// Ended long ago.
const EXPIRED: Span = Span { from: 0, until: 1 };
/// Not begun for a long time.
const TO_COME: Span = Span { from: u32::MAX - 1, until: u32::MAX };

const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 8);
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0, 0, 0, 7);
const NEIGHBOUR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 3, 0, 0, 0, 7);
const PROTECTED_PORT: u16 = 443;

/// The program, loaded and attached to nothing.
struct Door(Trial);

impl Door {
    fn open() -> Self {
        Self::with(ON)
    }

    fn with(switches: Switches) -> Self {
        let loaded = Trial::load(switches, SMALL);
        Self(loaded.unwrap_or_else(|error| panic!("loading an XDP program takes root: {error}")))
    }

    /// One rule without end.
    fn rule(&mut self, prefix: (impl Into<IpAddr>, u32), action: Action) {
        self.0.put(net(prefix), action, 0).unwrap();
    }

    fn pair(
        &mut self,
        prefix: (impl Into<IpAddr>, u32),
        first: (Action, Span),
        second: (Action, Span),
    ) {
        self.0.put_pair(net(prefix), first, second).unwrap();
    }

    fn profile(&mut self, index: usize, bucket: Bucket) {
        let mut profiles = vec![Bucket::UNLIMITED; index];
        profiles.push(bucket);
        self.0.profiles(&profiles).unwrap();
    }

    fn protect(&mut self, port: u16) {
        self.0.protect([port]).unwrap();
    }

    /// What becomes of a frame, which must be counted for `reason` and nothing else.
    fn expect(&self, frame: &[u8], verdict: u32, reason: Reason) {
        let before = self.counted(reason, false);
        let bytes = before.bytes + frame.len() as u64;
        assert_eq!(self.run(frame, 1), verdict, "{}", reason.name());
        let expected = Counter { packets: before.packets + 1, bytes };
        assert_eq!(self.counted(reason, false), expected, "{}", reason.name());
    }

    fn passes(&self, frame: &[u8], reason: Reason) {
        self.expect(frame, XDP_PASS, reason);
    }

    fn drops(&self, frame: &[u8], reason: Reason) {
        self.expect(frame, XDP_DROP, reason);
    }

    fn run(&self, frame: &[u8], repeat: u32) -> u32 {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
        self.0.program().unwrap().test_run(options).unwrap().return_value
    }

    fn counted(&self, reason: Reason, dry_run: bool) -> Counter {
        let counters = self.0.counters().unwrap();
        let count = counters.iter().find(|count| count.reason == reason).unwrap();
        if dry_run { count.would } else { count.done }
    }

    fn hits(&self, prefix: (impl Into<IpAddr>, u32)) -> u64 {
        self.0.hits(net(prefix), false).packets
    }
}

fn net((address, length): (impl Into<IpAddr>, u32)) -> IpNet {
    IpNet::new(address.into(), length as u8).unwrap().trunc()
}

fn tcp(source: impl Into<IpAddr>) -> Vec<u8> {
    tcp_to(source, PROTECTED_PORT)
}

fn tcp_to(source: impl Into<IpAddr>, port: u16) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([1; 6], [2; 6]);
    let mut frame = Vec::new();
    match source.into() {
        IpAddr::V4(source) => link.ipv4(source.octets(), [10, 0, 0, 1], 64),
        IpAddr::V6(source) => link.ipv6(source.octets(), [9; 16], 64),
    }
    .tcp(40_000, port, 1, 1024)
    .syn()
    .write(&mut frame, &[0; 10])
    .unwrap();
    frame
}

fn udp_to(source: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4(source.octets(), [10, 0, 0, 1], 64)
        .udp(40_000, port)
        .write(&mut frame, &[0; 10])
        .unwrap();
    frame
}

fn tagged(frame: &[u8], ethertypes: &[u16]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for ethertype in ethertypes {
        tagged.extend(ethertype.to_be_bytes());
        tagged.extend([0, 5]);
    }
    tagged.extend(&frame[12..]);
    tagged
}

/// The flags and fragment offset field, the latter in units of eight bytes.
fn fragment_v4(source: Ipv4Addr, field: u16) -> Vec<u8> {
    let mut frame = tcp(source);
    frame[20..22].copy_from_slice(&field.to_be_bytes());
    frame
}

/// An IPv6 packet whose payload is `payload`, the first header of which is `next`.
fn v6_with(next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2u8; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next, hop_limit]);
    frame.extend(SOURCE_V6.octets());
    frame.extend([9; 16]);
    frame.extend(payload);
    frame
}

fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 12];
    frame.extend([0x08, 0x06]);
    frame.resize(60, 0);
    frame
}

#[test]
fn the_verifier_has_room_for_what_is_to_come() {
    let info = Door::open().0.program().unwrap().info().unwrap();
    let verified = info.verified_instruction_count().unwrap();
    assert!(verified < 300_000, "{verified} of the million instructions that it follows");
}

#[test]
fn an_interface_is_counted_in_its_slot_and_one_that_has_none_with_the_others() {
    // Frames of a test run come from the loopback interface.
    const LOOPBACK: u32 = 1;
    let door = Door::open();
    let mut counters = door.0.reopen(SMALL.rules).unwrap().counters;
    let run = |slot: u32, counters: &Counters| {
        let count = || counters.of(slot, None).unwrap()[Reason::NoRule as usize].done.packets;
        let before = count();
        door.passes(&tcp(SOURCE), Reason::NoRule);
        assert_eq!(count(), before + 1, "slot {slot}");
    };
    run(SLOT_OTHERS, &counters);
    let last = SLOTS_LEN - 1;
    for number in 1..last {
        assert_eq!(counters.slots.place(&format!("absent{number}")).unwrap(), number);
    }
    counters.slots.seat("lo").unwrap();
    run(last, &counters);
    assert_eq!(counters.slots.place("absent0").unwrap(), SLOT_OTHERS, "there is no more");
    // Another one that would have the same word leaves it to the one that is here.
    counters.slots.seat_at(LOOPBACK + SLOT_WORDS, 1).unwrap();
    run(last, &counters);
    // Under another name, which nobody here has, it has to leave.
    counters.slots.seat_at(LOOPBACK, 2).unwrap();
    run(2, &counters);
    counters.slots.seat_at(LOOPBACK + SLOT_WORDS, 1).unwrap();
    run(SLOT_OTHERS, &counters);
}

#[test]
fn without_rules_everything_passes() {
    let door = Door::open();
    for frame in [tcp(SOURCE), tcp(SOURCE_V6), udp_to(SOURCE, 53)] {
        door.passes(&frame, Reason::NoRule);
    }
}

#[test]
fn a_denied_host_is_dropped_and_its_neighbour_is_not() {
    let mut door = Door::open();
    door.rule((SOURCE, 32), Action::Deny);
    door.rule((SOURCE_V6, 128), Action::Deny);
    door.drops(&tcp(SOURCE), Reason::Deny);
    door.drops(&tcp_to(SOURCE, 22), Reason::Deny);
    door.drops(&udp_to(SOURCE, 53), Reason::Deny);
    door.drops(&tcp(SOURCE_V6), Reason::Deny);
    door.passes(&tcp(NEIGHBOUR), Reason::NoRule);
    door.passes(&tcp(NEIGHBOUR_V6), Reason::NoRule);
    assert_eq!((door.hits((SOURCE, 32)), door.hits((SOURCE_V6, 128))), (3, 1));
    assert!(door.0.hits(net((SOURCE, 32)), false).last_ns > 0);
    assert_eq!(door.0.hits(net((NEIGHBOUR, 32)), false), Hits::default());
}

#[test]
fn every_prefix_length_is_found_and_ends_where_it_should() {
    let mut door = Door::open();
    let mut check = |source: IpAddr, beside: Option<IpAddr>, length: u32| {
        door.rule((source, length), Action::Deny);
        let before = [0, 1].map(|up| door.hits((source, length.saturating_sub(up))));
        door.drops(&tcp(source), Reason::Deny);
        assert_eq!(door.hits((source, length)), before[0] + 1, "{source}/{length}");
        if let Some(beside) = beside {
            door.drops(&tcp(beside), Reason::Deny);
            assert_eq!(door.hits((source, length - 1)), before[1] + 1, "{beside} and /{length}");
        }
    };
    for length in 0..=32 {
        let bit = 1u32.checked_shl(32 - length);
        let beside = bit.map(|bit| Ipv4Addr::from_bits(SOURCE.to_bits() ^ bit).into());
        check(SOURCE.into(), beside, length);
    }
    for length in 0..=128 {
        let bit = 1u128.checked_shl(128 - length);
        let beside = bit.map(|bit| Ipv6Addr::from_bits(SOURCE_V6.to_bits() ^ bit).into());
        check(SOURCE_V6.into(), beside, length);
    }
}

#[test]
fn rules_of_every_length_at_once_are_walked_to_the_last() {
    let mut door = Door::open();
    let gone = (Action::Allow, EXPIRED);
    (1..=32).for_each(|length| door.pair((SOURCE, length), gone, gone));
    (1..=128).for_each(|length| door.pair((SOURCE_V6, length), gone, gone));
    door.rule((Ipv4Addr::UNSPECIFIED, 0), Action::Deny);
    door.rule((Ipv6Addr::UNSPECIFIED, 0), Action::Deny);
    door.drops(&tcp(SOURCE), Reason::Deny);
    door.drops(&tcp(SOURCE_V6), Reason::Deny);
}

#[test]
fn the_most_specific_rule_wins() {
    let mut door = Door::open();
    door.rule((SOURCE, 8), Action::Deny);
    door.rule((SOURCE, 24), Action::Allow);
    door.rule((SOURCE, 32), Action::Deny);
    door.drops(&tcp(SOURCE), Reason::Deny);
    door.passes(&tcp(NEIGHBOUR), Reason::Allow);
    door.drops(&tcp(Ipv4Addr::new(192, 1, 2, 7)), Reason::Deny);
    assert_eq!([8, 24, 32].map(|length| door.hits((SOURCE, length))), [1; 3]);
}

#[test]
fn an_expired_rule_yields_to_the_next_shorter_and_one_to_come_waits() {
    let mut door = Door::open();
    door.rule((SOURCE, 24), Action::Deny);
    door.pair((SOURCE, 32), (Action::Allow, EXPIRED), (Action::Allow, TO_COME));
    door.drops(&tcp(SOURCE), Reason::Deny);
    assert_eq!(door.hits((SOURCE, 32)), 0);
}

#[test]
fn a_rule_ends_by_itself() {
    let mut door = Door::open();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let active_until = (seconds * 1e9) as u64 + 400_000_000;
    let deny = (Action::Deny, Span::until_ns(active_until));
    door.pair((SOURCE, 32), deny, (Action::Deny, EXPIRED));
    door.drops(&tcp(SOURCE), Reason::Deny);
    std::thread::sleep(Duration::from_millis(500));
    door.passes(&tcp(SOURCE), Reason::NoRule);
    let last_ns = door.0.hits(net((SOURCE, 32)), false).last_ns;
    assert!((1..active_until).contains(&last_ns));
}

#[test]
fn the_second_rule_of_a_prefix_takes_over_from_the_first() {
    let mut door = Door::open();
    door.pair((SOURCE, 32), (Action::Allow, EXPIRED), (Action::Deny, Span::ALWAYS));
    door.drops(&tcp(SOURCE), Reason::Deny);
    assert_eq!(door.0.hits(net((SOURCE, 32)), true).packets, 1);
    door.pair((SOURCE, 32), (Action::Allow, Span::ALWAYS), (Action::Deny, Span::ALWAYS));
    door.passes(&tcp(SOURCE), Reason::Allow);
    assert_eq!(door.0.hits(net((SOURCE, 32)), true).packets, 1, "only the one that decides counts");
}

#[test]
fn reset_is_reserved_and_drops() {
    let mut door = Door::open();
    door.rule((SOURCE, 32), Action::Reset);
    door.drops(&tcp(SOURCE), Reason::Reset);
}

#[test]
fn tags_hide_nobody_up_to_two() {
    let mut door = Door::open();
    door.rule((SOURCE, 32), Action::Deny);
    door.rule((SOURCE_V6, 64), Action::Deny);
    for frame in [tcp(SOURCE), tcp(SOURCE_V6)] {
        door.drops(&tagged(&frame, &[0x8100]), Reason::Deny);
        door.drops(&tagged(&frame, &[0x88a8, 0x8100]), Reason::Deny);
        door.passes(&tagged(&frame, &[0x88a8, 0x8100, 0x8100]), Reason::Unparsed);
    }
}

#[test]
fn fragments_of_a_denied_source_are_dropped_first_and_later() {
    let mut door = Door::open();
    door.rule((SOURCE, 32), Action::Deny);
    door.rule((SOURCE_V6, 128), Action::Deny);
    for field in [0x2000, 0x2001, 0x00b9] {
        door.drops(&fragment_v4(SOURCE, field), Reason::Deny);
        door.passes(&fragment_v4(NEIGHBOUR, field), Reason::NoRule);
    }
    for offset in [0u16, 1, 185] {
        let mut payload = vec![6, 0];
        payload.extend((offset << 3 | 1).to_be_bytes());
        payload.resize(32, 0);
        door.drops(&v6_with(44, 64, &payload), Reason::Deny);
    }
}

#[test]
fn options_hide_neither_a_source_nor_its_port() {
    let mut door = Door::open();
    door.rule((SOURCE, 32), Action::Deny);
    door.profile(0, Bucket::per_second(1, 2).unwrap());
    door.protect(PROTECTED_PORT);
    // One word of no-operations, and as many as there can be (RFC 791, section 3.1).
    for words in [1, 10] {
        let with_options = |mut frame: Vec<u8>| {
            frame[14] += words;
            frame[17] += 4 * words;
            let options = vec![1; 4 * usize::from(words)];
            frame.splice(34..34, options);
            frame
        };
        door.drops(&with_options(tcp(SOURCE)), Reason::Deny);
        door.passes(&with_options(tcp(NEIGHBOUR)), Reason::WithinLimit);
        door.passes(&with_options(tcp_to(NEIGHBOUR, PROTECTED_PORT + 1)), Reason::NoRule);
    }
    door.drops(&tcp(NEIGHBOUR), Reason::Limit);
}

#[test]
fn extension_headers_hide_nobody_however_many() {
    let mut door = Door::open();
    door.rule((SOURCE_V6, 48), Action::Deny);
    for count in [1, 6, 7, 20] {
        let mut payload = [60, 0, 1, 4, 0, 0, 0, 0].repeat(count);
        payload[(count - 1) * 8] = 6;
        payload.extend([0; 20]);
        door.drops(&v6_with(60, 64, &payload), Reason::Deny);
    }
}

#[test]
fn what_the_link_needs_always_passes() {
    let mut door = Door::open();
    door.rule((Ipv4Addr::UNSPECIFIED, 0), Action::Deny);
    door.rule((Ipv6Addr::UNSPECIFIED, 0), Action::Deny);
    door.passes(&arp(), Reason::NotIp);
    for kind in 133..=137 {
        door.passes(&v6_with(58, 255, &[kind, 0, 0, 0, 0, 0, 0, 0]), Reason::Neighbour);
    }
    door.drops(&v6_with(58, 64, &[135, 0, 0, 0, 0, 0, 0, 0]), Reason::Deny);
    door.drops(&v6_with(58, 255, &[128, 0, 0, 0, 0, 0, 0, 0]), Reason::Deny);
}

#[test]
fn a_first_fragment_too_short_for_its_flags_is_dropped_even_when_allowed() {
    let mut frame = fragment_v4(SOURCE, 0x2000);
    frame[16..18].copy_from_slice(&28u16.to_be_bytes());
    let mut door = Door::open();
    door.drops(&frame, Reason::Malformed);
    door.rule((SOURCE, 32), Action::Allow);
    door.drops(&frame, Reason::Malformed);
    door.rule((SOURCE, 32), Action::Deny);
    door.drops(&frame, Reason::Deny);
}

#[test]
fn a_frame_that_ends_before_its_source_passes_as_unparsed() {
    let mut door = Door::open();
    door.rule((Ipv4Addr::UNSPECIFIED, 0), Action::Deny);
    door.passes(&tcp(SOURCE)[..29], Reason::Unparsed);
    door.drops(&tcp(SOURCE)[..30], Reason::Deny);
    door.passes(&tcp(SOURCE_V6)[..37], Reason::Unparsed);
    door.drops(&tcp(SOURCE_V6)[..54], Reason::Malformed);
}

#[test]
fn a_bucket_admits_its_burst_and_the_neighbour_loses_nothing() {
    let mut door = Door::open();
    door.profile(0, Bucket::per_second(1, 5).unwrap());
    door.protect(PROTECTED_PORT);
    for (source, neighbour) in
        [(IpAddr::from(SOURCE), IpAddr::from(NEIGHBOUR)), (SOURCE_V6.into(), NEIGHBOUR_V6.into())]
    {
        for _ in 0..5 {
            door.passes(&tcp(source), Reason::WithinLimit);
        }
        door.drops(&tcp(source), Reason::Limit);
        door.passes(&tcp(neighbour), Reason::WithinLimit);
        door.drops(&tcp(source), Reason::Limit);
    }
}

#[test]
fn a_whole_ipv6_network_shares_one_bucket() {
    let mut door = Door::open();
    door.profile(0, Bucket::per_second(1, 1).unwrap());
    door.protect(PROTECTED_PORT);
    door.passes(&tcp(SOURCE_V6), Reason::WithinLimit);
    door.drops(&tcp(Ipv6Addr::from_bits(SOURCE_V6.to_bits() ^ 0xff)), Reason::Limit);
}

#[test]
fn new_connections_have_a_bucket_of_their_own() {
    let mut door = Door::open();
    let connections = Bucket::per_second(1, 2).unwrap();
    door.0.default_profile(Profile { packets: Bucket::UNLIMITED, connections }).unwrap();
    door.protect(PROTECTED_PORT);
    for source in [IpAddr::from(SOURCE), IpAddr::from(SOURCE_V6)] {
        for _ in 0..2 {
            door.passes(&tcp(source), Reason::WithinLimit);
        }
        door.drops(&tcp(source), Reason::Connections);
        let mut established = tcp(source);
        let flags = 14 + if source.is_ipv4() { 20 } else { 40 } + 13;
        established[flags] = 0x10;
        door.passes(&established, Reason::NoRule);
        established[flags] = 0x12;
        door.passes(&established, Reason::NoRule);
    }
    door.passes(&tcp(NEIGHBOUR), Reason::WithinLimit);
    door.passes(&tcp_to(SOURCE, 9), Reason::NoRule);
}

#[test]
fn how_much_of_an_ipv6_address_is_a_source_is_a_setting() {
    let mut door = Door::with(Switches { ipv6_source_length: 48, ..ON });
    door.profile(0, Bucket::per_second(1, 1).unwrap());
    door.protect(PROTECTED_PORT);
    door.passes(&tcp(SOURCE_V6), Reason::WithinLimit);
    door.drops(&tcp(NEIGHBOUR_V6), Reason::Limit);
}

#[test]
fn what_has_no_protected_port_is_not_charged_and_what_has_no_port_is() {
    let mut door = Door::open();
    door.profile(0, Bucket::per_second(1, 2).unwrap());
    door.protect(PROTECTED_PORT);
    for _ in 0..5 {
        door.passes(&tcp_to(SOURCE, 22), Reason::NoRule);
        door.passes(&udp_to(SOURCE, PROTECTED_PORT - 1), Reason::NoRule);
    }
    assert_eq!(door.0.sources().unwrap(), 0);
    door.passes(&udp_to(SOURCE, PROTECTED_PORT), Reason::WithinLimit);
    door.passes(&fragment_v4(SOURCE, 0x00b9), Reason::WithinLimit);
    door.drops(&fragment_v4(SOURCE, 0x00b9), Reason::Limit);
    assert_eq!(door.0.sources().unwrap(), 1);
}

#[test]
fn a_limit_rule_has_a_profile_of_its_own_and_an_allow_rule_no_bucket() {
    let mut door = Door::open();
    let mut profiles = [Bucket::UNLIMITED; 9];
    profiles[0] = Bucket::per_second(1, 1).unwrap();
    profiles[7] = Bucket::per_second(1, 3).unwrap();
    door.0.profiles(&profiles).unwrap();
    door.protect(PROTECTED_PORT);
    door.0.put(net((SOURCE, 32)), Action::Limit, 7).unwrap();
    for _ in 0..3 {
        door.passes(&tcp(SOURCE), Reason::WithinLimit);
    }
    door.drops(&tcp(SOURCE), Reason::Limit);
    door.0.put(net((SOURCE, 32)), Action::Limit, 8).unwrap();
    door.passes(&tcp(SOURCE), Reason::WithinLimit);
    assert_eq!(door.hits((SOURCE, 32)), 5);
    door.rule((NEIGHBOUR, 32), Action::Allow);
    for _ in 0..3 {
        door.passes(&tcp(NEIGHBOUR), Reason::Allow);
    }
}

#[test]
fn a_bucket_is_exact_on_two_cpus_at_once() {
    const BURST: u64 = 1000;
    const REPEAT: u32 = 50_000;
    let mut door = Door::open();
    door.profile(0, Bucket::per_second(1, BURST).unwrap());
    door.protect(PROTECTED_PORT);
    let frame = tcp(SOURCE);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| door.run(&frame, REPEAT));
        }
    });
    let admitted = door.counted(Reason::WithinLimit, false).packets;
    assert!((BURST..BURST + 10).contains(&admitted), "{admitted}");
    let refused = [Reason::Limit, Reason::Contended].map(|reason| door.counted(reason, false));
    let refused = refused[0].packets + refused[1].packets;
    assert_eq!(admitted + refused, 2 * u64::from(REPEAT));
}

#[test]
fn a_dry_run_counts_what_it_spares() {
    let mut door = Door::with(Switches { dry_run: true, ..ON });
    door.profile(0, Bucket::per_second(1, 1).unwrap());
    door.protect(PROTECTED_PORT);
    door.rule((SOURCE, 32), Action::Deny);
    let frame = tcp(SOURCE);
    assert_eq!(door.run(&frame, 1), XDP_PASS);
    let bytes = frame.len() as u64;
    assert_eq!(door.counted(Reason::Deny, true), Counter { packets: 1, bytes });
    assert_eq!(door.counted(Reason::Deny, false), Counter::default());
    assert_eq!(door.hits((SOURCE, 32)), 1);
    door.passes(&tcp(NEIGHBOUR), Reason::WithinLimit);
    assert_eq!(door.run(&tcp(NEIGHBOUR), 1), XDP_PASS);
    assert_eq!(door.counted(Reason::Limit, true).packets, 1);
}

#[test]
fn what_is_switched_off_does_nothing() {
    let mut door = Door::with(Switches { rules: false, ..ON });
    door.rule((SOURCE, 32), Action::Deny);
    door.passes(&tcp(SOURCE), Reason::NoRule);
    let mut door = Door::with(Switches { buckets: false, ..ON });
    door.profile(0, Bucket::per_second(1, 1).unwrap());
    door.protect(PROTECTED_PORT);
    for _ in 0..3 {
        door.passes(&tcp(SOURCE), Reason::NoRule);
    }
}

#[test]
fn a_jumbo_frame_counts_all_of_its_bytes() {
    let mut door = Door::open();
    door.rule((SOURCE, 32), Action::Deny);
    let mut frame = tcp(SOURCE);
    frame.resize(8000, 0);
    door.drops(&frame, Reason::Deny);
}
