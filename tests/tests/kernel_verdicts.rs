//! What the committed XDP object does with a frame, run in the kernel by `BPF_PROG_TEST_RUN`: one named frame a case.
//!
//! It needs root and no network.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail like tests"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use aya::maps::{Array, HashMap, PerCpuArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use etherparse::PacketBuilder;
use gateway_common::bucket::Bucket;
use gateway_common::layout::{
    BUCKETS, COUNTERS, Counter, HITS, Hits, LENGTHS, MAPS, PORTS, PROFILES, PROGRAM, RULES_V4,
    RULES_V6, RuleKeyV4, RuleKeyV6, SETTINGS, Settings, counter_index, length_bit_v4,
    length_bit_v6,
};
use gateway_common::rule::{Action, Entry, FOREVER, Origin, Rules};
use gateway_common::source::{Source, SourceKey};
use gateway_common::verdict::Reason;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../gateway-ebpf/prebuilt/gateway.bpf.o");

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

const ON: Settings = Settings { rules: 1, buckets: 1, dry_run: 0, reserved: 0 };
const HITS_MAX: u32 = 256;

const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 8);
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0, 0, 0, 7);
const NEIGHBOUR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 3, 0, 0, 0, 7);
const PROTECTED_PORT: u16 = 443;

/// The program, loaded and attached to nothing.
struct Door(Ebpf);

impl Door {
    fn open() -> Self {
        Self::with(ON)
    }

    fn with(settings: Settings) -> Self {
        let mut ebpf = EbpfLoader::new()
            .override_global(SETTINGS, &settings, true)
            .map_max_entries(HITS, HITS_MAX)
            .map_max_entries(BUCKETS, 1024)
            .load(OBJECT)
            .expect("loading an XDP program takes root");
        let program: &mut Xdp = ebpf.program_mut(PROGRAM).unwrap().try_into().unwrap();
        program.load().unwrap_or_else(|error| panic!("the verifier refused it: {error:#?}"));
        Self(ebpf)
    }

    fn program(&self) -> &Xdp {
        self.0.program(PROGRAM).unwrap().try_into().unwrap()
    }

    /// One rule without end.
    fn rule(&mut self, prefix: (impl Into<IpAddr>, u32), action: Action, slot: u32) {
        self.rules(prefix, Rules { first: entry(action, slot), second: Entry::default() });
    }

    fn rules(&mut self, (address, length): (impl Into<IpAddr>, u32), rules: Rules) {
        let (word, bit) = match Source::from(address.into()) {
            Source::V4(bits) => {
                let map = self.0.map_mut(RULES_V4).unwrap();
                let mut map = HashMap::<_, RuleKeyV4, Rules>::try_from(map).unwrap();
                map.insert(RuleKeyV4::new(bits, length), rules, 0).unwrap();
                (0, length_bit_v4(length))
            }
            Source::V6(bits) => {
                let map = self.0.map_mut(RULES_V6).unwrap();
                let mut map = HashMap::<_, RuleKeyV6, Rules>::try_from(map).unwrap();
                map.insert(RuleKeyV6::new(bits, length), rules, 0).unwrap();
                length_bit_v6(length)
            }
        };
        let mut lengths = Array::<_, u64>::try_from(self.0.map_mut(LENGTHS).unwrap()).unwrap();
        let before = lengths.get(&word, 0).unwrap();
        lengths.set(word, before | bit, 0).unwrap();
    }

    fn profile(&mut self, index: u32, bucket: Bucket) {
        let map = self.0.map_mut(PROFILES).unwrap();
        Array::<_, Bucket>::try_from(map).unwrap().set(index, bucket, 0).unwrap();
    }

    fn protect(&mut self, port: u16) {
        let mut ports = Array::<_, u64>::try_from(self.0.map_mut(PORTS).unwrap()).unwrap();
        ports.set(u32::from(port) / 64, 1 << (port % 64), 0).unwrap();
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
        self.program().test_run(options).unwrap().return_value
    }

    fn counted(&self, reason: Reason, dry_run: bool) -> Counter {
        let map = self.0.map(COUNTERS).unwrap();
        let counters = PerCpuArray::<_, Counter>::try_from(map).unwrap();
        let cpus = counters.get(&counter_index(reason, dry_run), 0).unwrap();
        cpus.iter().fold(Counter::default(), |sum, cpu| Counter {
            packets: sum.packets + cpu.packets,
            bytes: sum.bytes + cpu.bytes,
        })
    }

    fn hits(&self, slot: u32) -> Hits {
        Array::<_, Hits>::try_from(self.0.map(HITS).unwrap()).unwrap().get(&slot, 0).unwrap()
    }

    fn buckets(&self) -> usize {
        let map = self.0.map(BUCKETS).unwrap();
        HashMap::<_, SourceKey, u64>::try_from(map).unwrap().keys().count()
    }
}

fn entry(action: Action, slot: u32) -> Entry {
    Entry {
        active_from: 0,
        active_until: FOREVER,
        slot,
        generation: 1,
        action: action as u8,
        origin: Origin::Operator as u8,
        profile: 0,
        reserved: 0,
    }
}

fn expired(action: Action) -> Entry {
    Entry { active_until: 1, ..entry(action, 0) }
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
fn every_map_of_the_layout_is_in_the_object() {
    let door = Door::open();
    let missing: Vec<_> = MAPS.into_iter().filter(|name| door.0.map(name).is_none()).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn the_verifier_has_room_for_what_is_to_come() {
    let info = Door::open().program().info().unwrap();
    let verified = info.verified_instruction_count().unwrap();
    assert!(verified < 250_000, "{verified} of the million instructions that it follows");
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
    door.rule((SOURCE, 32), Action::Deny, 3);
    door.rule((SOURCE_V6, 128), Action::Deny, 4);
    door.drops(&tcp(SOURCE), Reason::Deny);
    door.drops(&tcp_to(SOURCE, 22), Reason::Deny);
    door.drops(&udp_to(SOURCE, 53), Reason::Deny);
    door.drops(&tcp(SOURCE_V6), Reason::Deny);
    door.passes(&tcp(NEIGHBOUR), Reason::NoRule);
    door.passes(&tcp(NEIGHBOUR_V6), Reason::NoRule);
    assert_eq!((door.hits(3).packets, door.hits(4).packets), (3, 1));
    assert!(door.hits(3).last_ns > 0);
    assert_eq!(door.hits(5), Hits::default());
}

#[test]
fn every_prefix_length_is_found_and_ends_where_it_should() {
    let mut door = Door::open();
    let mut check = |source: IpAddr, beside: Option<IpAddr>, length: u32| {
        door.rule((source, length), Action::Deny, length);
        let before = [0, 1].map(|up| door.hits(length.saturating_sub(up)).packets);
        door.drops(&tcp(source), Reason::Deny);
        assert_eq!(door.hits(length).packets, before[0] + 1, "{source}/{length}");
        if let Some(beside) = beside {
            door.drops(&tcp(beside), Reason::Deny);
            assert_eq!(door.hits(length - 1).packets, before[1] + 1, "{beside} and /{length}");
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
    let gone = Rules { first: expired(Action::Allow), second: Entry::default() };
    (1..=32).for_each(|length| door.rules((SOURCE, length), gone));
    (1..=128).for_each(|length| door.rules((SOURCE_V6, length), gone));
    door.rule((Ipv4Addr::UNSPECIFIED, 0), Action::Deny, 1);
    door.rule((Ipv6Addr::UNSPECIFIED, 0), Action::Deny, 1);
    door.drops(&tcp(SOURCE), Reason::Deny);
    door.drops(&tcp(SOURCE_V6), Reason::Deny);
}

#[test]
fn the_most_specific_rule_wins() {
    let mut door = Door::open();
    door.rule((SOURCE, 8), Action::Deny, 1);
    door.rule((SOURCE, 24), Action::Allow, 2);
    door.rule((SOURCE, 32), Action::Deny, 3);
    door.drops(&tcp(SOURCE), Reason::Deny);
    door.passes(&tcp(NEIGHBOUR), Reason::Allow);
    door.drops(&tcp(Ipv4Addr::new(192, 1, 2, 7)), Reason::Deny);
    assert_eq!([1, 2, 3].map(|slot| door.hits(slot).packets), [1; 3]);
}

#[test]
fn an_expired_rule_yields_to_the_next_shorter_and_one_to_come_waits() {
    let mut door = Door::open();
    door.rule((SOURCE, 24), Action::Deny, 1);
    let to_come = Entry { active_from: FOREVER - 1, ..entry(Action::Allow, 0) };
    door.rules((SOURCE, 32), Rules { first: expired(Action::Allow), second: to_come });
    door.drops(&tcp(SOURCE), Reason::Deny);
    assert_eq!(door.hits(0).packets, 0);
}

#[test]
fn a_rule_ends_by_itself() {
    let mut door = Door::open();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let active_until = (seconds * 1e9) as u64 + 400_000_000;
    let first = Entry { active_until, ..entry(Action::Deny, 1) };
    door.rules((SOURCE, 32), Rules { first, second: Entry::default() });
    door.drops(&tcp(SOURCE), Reason::Deny);
    std::thread::sleep(Duration::from_millis(450));
    door.passes(&tcp(SOURCE), Reason::NoRule);
    assert!((1..active_until).contains(&door.hits(1).last_ns));
}

#[test]
fn the_second_rule_of_a_prefix_takes_over_from_the_first() {
    let mut door = Door::open();
    let rules = Rules { first: expired(Action::Allow), second: entry(Action::Deny, 2) };
    door.rules((SOURCE, 32), rules);
    door.drops(&tcp(SOURCE), Reason::Deny);
    assert_eq!(door.hits(2).packets, 1);
}

#[test]
fn reset_is_reserved_and_drops() {
    let mut door = Door::open();
    door.rule((SOURCE, 32), Action::Reset, 1);
    door.drops(&tcp(SOURCE), Reason::Reset);
}

#[test]
fn tags_hide_nobody_up_to_two() {
    let mut door = Door::open();
    door.rule((SOURCE, 32), Action::Deny, 1);
    door.rule((SOURCE_V6, 64), Action::Deny, 2);
    for frame in [tcp(SOURCE), tcp(SOURCE_V6)] {
        door.drops(&tagged(&frame, &[0x8100]), Reason::Deny);
        door.drops(&tagged(&frame, &[0x88a8, 0x8100]), Reason::Deny);
        door.passes(&tagged(&frame, &[0x88a8, 0x8100, 0x8100]), Reason::Unparsed);
    }
}

#[test]
fn fragments_of_a_denied_source_are_dropped_first_and_later() {
    let mut door = Door::open();
    door.rule((SOURCE, 32), Action::Deny, 1);
    door.rule((SOURCE_V6, 128), Action::Deny, 2);
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
fn extension_headers_hide_nobody_however_many() {
    let mut door = Door::open();
    door.rule((SOURCE_V6, 48), Action::Deny, 1);
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
    door.rule((Ipv4Addr::UNSPECIFIED, 0), Action::Deny, 1);
    door.rule((Ipv6Addr::UNSPECIFIED, 0), Action::Deny, 2);
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
    door.rule((SOURCE, 32), Action::Allow, 1);
    door.drops(&frame, Reason::Malformed);
    door.rule((SOURCE, 32), Action::Deny, 1);
    door.drops(&frame, Reason::Deny);
}

#[test]
fn a_frame_that_ends_before_its_source_passes_as_unparsed() {
    let mut door = Door::open();
    door.rule((Ipv4Addr::UNSPECIFIED, 0), Action::Deny, 1);
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
fn what_has_no_protected_port_is_not_charged_and_what_has_no_port_is() {
    let mut door = Door::open();
    door.profile(0, Bucket::per_second(1, 2).unwrap());
    door.protect(PROTECTED_PORT);
    for _ in 0..5 {
        door.passes(&tcp_to(SOURCE, 22), Reason::NoRule);
        door.passes(&udp_to(SOURCE, PROTECTED_PORT - 1), Reason::NoRule);
    }
    assert_eq!(door.buckets(), 0);
    door.passes(&udp_to(SOURCE, PROTECTED_PORT), Reason::WithinLimit);
    door.passes(&fragment_v4(SOURCE, 0x00b9), Reason::WithinLimit);
    door.drops(&fragment_v4(SOURCE, 0x00b9), Reason::Limit);
    assert_eq!(door.buckets(), 1);
}

#[test]
fn a_limit_rule_has_a_profile_of_its_own_and_an_allow_rule_no_bucket() {
    let mut door = Door::open();
    door.profile(0, Bucket::per_second(1, 1).unwrap());
    door.profile(7, Bucket::per_second(1, 3).unwrap());
    door.profile(8, Bucket::UNLIMITED);
    door.protect(PROTECTED_PORT);
    let limit = |profile| Rules {
        first: Entry { profile, ..entry(Action::Limit, 1) },
        second: Entry::default(),
    };
    door.rules((SOURCE, 32), limit(7));
    for _ in 0..3 {
        door.passes(&tcp(SOURCE), Reason::WithinLimit);
    }
    door.drops(&tcp(SOURCE), Reason::Limit);
    door.rules((SOURCE, 32), limit(8));
    door.passes(&tcp(SOURCE), Reason::WithinLimit);
    assert_eq!(door.hits(1).packets, 5);
    door.rule((NEIGHBOUR, 32), Action::Allow, 2);
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
    let mut door = Door::with(Settings { dry_run: 1, ..ON });
    door.profile(0, Bucket::per_second(1, 1).unwrap());
    door.protect(PROTECTED_PORT);
    door.rule((SOURCE, 32), Action::Deny, 1);
    let frame = tcp(SOURCE);
    assert_eq!(door.run(&frame, 1), XDP_PASS);
    let bytes = frame.len() as u64;
    assert_eq!(door.counted(Reason::Deny, true), Counter { packets: 1, bytes });
    assert_eq!(door.counted(Reason::Deny, false), Counter::default());
    assert_eq!(door.hits(1).packets, 1);
    door.passes(&tcp(NEIGHBOUR), Reason::WithinLimit);
    assert_eq!(door.run(&tcp(NEIGHBOUR), 1), XDP_PASS);
    assert_eq!(door.counted(Reason::Limit, true).packets, 1);
}

#[test]
fn what_is_switched_off_does_nothing() {
    let mut door = Door::with(Settings { rules: 0, ..ON });
    door.rule((SOURCE, 32), Action::Deny, 1);
    door.passes(&tcp(SOURCE), Reason::NoRule);
    let mut door = Door::with(Settings { buckets: 0, ..ON });
    door.profile(0, Bucket::per_second(1, 1).unwrap());
    door.protect(PROTECTED_PORT);
    for _ in 0..3 {
        door.passes(&tcp(SOURCE), Reason::NoRule);
    }
}

#[test]
fn a_jumbo_frame_counts_all_of_its_bytes() {
    let mut door = Door::open();
    door.rule((SOURCE, 32), Action::Deny, 1);
    let mut frame = tcp(SOURCE);
    frame.resize(8000, 0);
    door.drops(&frame, Reason::Deny);
}
