//! The maps: their names, keys, values and sizes, fixed at compile time on both sides.

use crate::bucket::Bucket;
use crate::rule::Origin;
use crate::source::SourceKey;
use crate::table::{BucketV4, BucketV6};
use crate::verdict::Reason;

/// Part of the pin folder's name. Raised by every change of a name, a layout or a meaning in this file or in
/// [`crate::table`].
pub const ABI: u32 = 7;

/// Name of the program in the kernel object.
pub const PROGRAM: &str = "gateway";

/// Array of [`BucketV4`], a power of two of them.
pub const TABLE_V4: &str = "TABLE_V4";
/// Array of [`BucketV6`], a power of two of them.
pub const TABLE_V6: &str = "TABLE_V6";
/// Array of [`crate::table::NETWORK_WORDS_V4`] words, a bit a /16 that a rule touches.
pub const NETWORKS_V4: &str = "NETWORKS_V4";
/// Array of [`crate::table::FILTER_WORDS_V4`] words, a bit a /22 that a long rule touches.
pub const FILTER_V4: &str = "FILTER_V4";
/// Array of [`crate::table::SHORT_WORDS_V4`] words: which short rules there are.
pub const SHORT_V4: &str = "SHORT_V4";
/// Array of [`crate::table::BLOCKS_LEN_V4`] [`crate::table::BlockV4`]s.
pub const BLOCKS_V4: &str = "BLOCKS_V4";
/// Array of words, a power of two of bits: hashes of the networks that long IPv6 rules lie in.
pub const FILTER_V6: &str = "FILTER_V6";
/// Array of [`LENGTH_WORDS_V6`] words: which IPv6 lengths have rules, see [`length_bit_v6`].
pub const LENGTHS_V6: &str = "LENGTHS_V6";
/// Array of one word: the seed that the tables and filters were hashed with.
pub const SEED: &str = "SEED";
/// LRU hash of [`SourceKey`] to the word of its bucket, by CLOCK_MONOTONIC.
pub const BUCKETS: &str = "BUCKETS";
/// Array of [`SHARED_LEN`] words: the buckets that sources share which have none of their own, by
/// [`SourceKey::shared`].
pub const SHARED: &str = "SHARED";
/// Array of [`PROFILES_MAX`] [`Profile`]s; index 0 is the default one.
pub const PROFILES: &str = "PROFILES";
/// Array of [`PORT_WORDS`] words, a bit a TCP or UDP port that buckets apply to.
pub const PORTS: &str = "PORTS";
/// Per-CPU array of [`COUNTERS_LEN`] [`Counter`]s, by [`counter_index`].
pub const COUNTERS: &str = "COUNTERS";
/// Array of [`SLOT_WORDS`] words: in which slot of [`COUNTERS`] an interface is counted, by [`slot_word`].
pub const SLOTS: &str = "SLOTS";
/// Array of [`SLOTS_LEN`] [`InterfaceName`]s: whose the slots are. The first is everybody's who has none.
pub const INTERFACES: &str = "INTERFACES";
/// Per-CPU array of [`SEATS_LEN`] words, and behind them as many that were carried: packets that met rules of each
/// list, by [`crate::table::Head::seat`].
pub const LISTS: &str = "LISTS";
/// Array of [`SEATS_LEN`] [`ListName`]s: whose the seats are.
pub const LIST_NAMES: &str = "LIST_NAMES";
/// Ring buffer of [`EVENTS_BYTES`], with a [`crate::event::Event`] for some of the packets that were dropped.
pub const EVENTS: &str = "EVENTS";

/// Array of [`HOST_LINES`] [`Line`]s, about the host as a whole.
pub const HOST: &str = "HOST";

/// The maps that hold the rules. They belong together: where one does not fit, all are made anew, and take their places
/// in this order. Tables never stand beside the seed of others, and what filters lack is added when they are opened.
pub const RULE_MAPS: [&str; 9] =
    [SEED, TABLE_V4, TABLE_V6, NETWORKS_V4, FILTER_V4, SHORT_V4, BLOCKS_V4, FILTER_V6, LENGTHS_V6];
/// The maps that count. They belong together as well: a count means nothing without the name that it is under.
pub const COUNTER_MAPS: [&str; 5] = [INTERFACES, SLOTS, COUNTERS, LIST_NAMES, LISTS];
/// The other maps.
pub const OTHER_MAPS: [&str; 6] = [BUCKETS, SHARED, PROFILES, PORTS, EVENTS, HOST];

/// Name of the global with the [`Settings`] that are patched in before the verifier runs.
pub const SETTINGS: &str = "SETTINGS";

/// Shared buckets of packets, and as many of connections: 1 MiB.
pub const SHARED_LEN: u32 = 1 << 17;
/// Profiles that can exist, the default one included.
pub const PROFILES_MAX: u32 = 256;
/// Words of 64 ports.
pub const PORT_WORDS: u32 = 1024;
/// Words for the 129 lengths of IPv6.
pub const LENGTH_WORDS_V6: u32 = 3;
/// Origins of rules, and 0 for no rule.
pub const ORIGINS_LEN: u32 = 8;
/// Counters of one origin: one a reason, and again for what `dry_run` let pass.
const REASONS_LEN: u32 = 2 * Reason::ALL.len() as u32;
/// Slots: [`SLOT_OTHERS`], and one an interface as long as there are some.
pub const SLOTS_LEN: u32 = 16;
/// The slot of interfaces that have none of their own. Before there were slots, everything was counted where it lies.
pub const SLOT_OTHERS: u32 = 0;
/// Counters of all slots and origins.
pub const COUNTERS_LEN: u32 = SLOTS_LEN * ORIGINS_LEN * REASONS_LEN;
/// Seats of lists, by a byte. Those below [`crate::rule::SEAT_FIRST`] are nobody's.
pub const SEATS_LEN: u32 = 256;
/// Words of [`SLOTS`]. Interfaces whose indexes are as many apart share one.
pub const SLOT_WORDS: u32 = 1024;
/// Bytes of [`EVENTS`]: a power of two of whole pages, on every host. About a thousand events.
pub const EVENTS_BYTES: u32 = 1 << 16;

/// Lines of [`HOST`].
pub const HOST_LINES: u32 = 6;
/// The line with the bucket of UDP to ports that are not protected, by CLOCK_MONOTONIC.
pub const HOST_UDP: u32 = 0;
/// The line with the bucket of fragments, by CLOCK_MONOTONIC.
pub const HOST_FRAGMENTS: u32 = 1;
/// The line that says until when rules for [`crate::rule::OWN_ADDRESS`] are sure to be right, by CLOCK_BOOTTIME.
pub const HOST_OWN: u32 = 2;
/// The line with the bucket of sources that are given a bucket of their own, by CLOCK_MONOTONIC.
pub const HOST_NEW_SOURCES: u32 = 3;
/// The line with the bucket of packets from sources that have none, by CLOCK_MONOTONIC.
pub const HOST_UNKNOWN_SOURCES: u32 = 4;
/// The line with the bucket of answers to new connections, by CLOCK_MONOTONIC.
pub const HOST_RESETS: u32 = 5;

/// Rules of one family that fit unless the configuration says otherwise.
pub const RULES_DEFAULT: u32 = 65_536;
/// Buckets of sources that fit unless the configuration says otherwise.
pub const BUCKETS_DEFAULT: u32 = 262_144;

/// Word index (0 to 2) and bit of an IPv6 prefix length (0 to 128) in [`LENGTHS_V6`], the longest first: counting
/// trailing zeros walks from the most specific to the least.
#[inline(always)]
pub const fn length_bit_v6(length: u32) -> (u32, u64) {
    let position = 128 - length;
    (position / 64, 1 << (position % 64))
}

/// What a rule has met, as a bucket has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Packets that it decided about.
    pub packets: u64,
    /// CLOCK_BOOTTIME in nanoseconds of the last one, 0 for none.
    pub last_ns: u64,
}

/// The buckets that a source is held to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Of its packets.
    pub packets: Bucket,
    /// Of its new connections (TCP SYN).
    pub connections: Bucket,
}

impl Profile {
    /// Holds nobody to anything.
    pub const UNLIMITED: Self = Self { packets: Bucket::UNLIMITED, connections: Bucket::UNLIMITED };
}

/// A word with a cache line to itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The word.
    pub word: u64,
    /// Zero.
    pub reserved: [u64; 7],
}

/// One counter of one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

/// The name of an interface as the kernel has it (IFNAMSIZ), zeros behind it. Empty: nobody's.
pub type InterfaceName = [u8; 16];

/// The name of a list, zeros behind it. Empty: nobody's.
pub type ListName = [u8; 64];

/// The word of an interface, by its index, in [`SLOTS`].
#[inline(always)]
pub const fn slot_word(interface: u32, slot: u32) -> u64 {
    (interface as u64) << 32 | slot as u64
}

/// The slot of an interface by the word where its own would be, which may be that of another.
#[inline(always)]
pub const fn slot_of(word: u64, interface: u32) -> u32 {
    if (word >> 32) as u32 == interface { word as u32 } else { SLOT_OTHERS }
}

/// The counter of `reason` in a slot where a rule of this origin decided (its number, 0 for none), or of what would
/// have been dropped were it not for a dry run.
#[inline(always)]
pub const fn counter_index(slot: u32, reason: Reason, origin: u32, dry_run: bool) -> u32 {
    let spared = if dry_run { Reason::ALL.len() as u32 } else { 0 };
    (slot % SLOTS_LEN * ORIGINS_LEN + origin % ORIGINS_LEN) * REASONS_LEN + reason as u32 + spared
}

/// All maps.
pub fn maps() -> impl Iterator<Item = &'static str> {
    RULE_MAPS.into_iter().chain(COUNTER_MAPS).chain(OTHER_MAPS)
}

/// Constants of the program, patched before the verifier sees it, which then removes what they switch off.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What the tables and filters are hashed with.
    pub seed: u64,
    /// Of sources that are given a bucket of their own; unlimited: every source is.
    pub new_sources: Bucket,
    /// Of packets from sources that have none.
    pub unknown_sources: Bucket,
    /// The bits of the first half of an IPv6 address that tell one source from another.
    pub source_mask_v6: u64,
    /// Buckets of [`TABLE_V4`] less one.
    pub table_mask_v4: u32,
    /// Buckets of [`TABLE_V6`] less one.
    pub table_mask_v6: u32,
    /// Bits of [`FILTER_V6`] less one.
    pub filter_mask_v6: u32,
    /// 1: look at rules.
    pub rules: u32,
    /// 1: look at packet buckets.
    pub buckets: u32,
    /// 1: count what would be dropped and drop nothing.
    pub dry_run: u32,
    /// 1: drop TCP with flags that cannot be.
    pub tcp_flags: u32,
    /// 1: drop what comes from where nothing can come from.
    pub martian: u32,
    /// 1: drop headers that contradict themselves.
    pub malformed: u32,
    /// Index of the interface that the three above spare; 0: none.
    pub loopback: u32,
    /// The drops that are reported; unlimited for none.
    pub events: Bucket,
    /// What the host takes of UDP to ports that are not protected.
    pub host_udp: Bucket,
    /// What the host takes of fragments.
    pub host_fragments: Bucket,
    /// New connections that `reset` rules answer; unlimited for none.
    pub resets: Bucket,
}

const _: () = {
    use core::mem::{align_of, size_of};
    assert!(size_of::<BucketV4>() == 128 && size_of::<BucketV6>() == 192);
    assert!(size_of::<SourceKey>() == 16 && align_of::<SourceKey>() == 8);
    assert!(size_of::<Bucket>() == 16 && align_of::<Bucket>() == 8);
    assert!(size_of::<Profile>() == 32 && align_of::<Profile>() == 8);
    assert!(size_of::<Hits>() == 16 && align_of::<Hits>() == 8);
    assert!(size_of::<Line>() == 64 && align_of::<Line>() == 8);
    assert!(size_of::<Counter>() == 16 && align_of::<Counter>() == 8);
    assert!(size_of::<Settings>() == 152 && align_of::<Settings>() == 8);
    assert!(PORT_WORDS * 64 == 65_536);
    assert!(SLOT_WORDS.is_power_of_two());
    assert!(Origin::ALL.len() as u32 + 1 == ORIGINS_LEN);
};

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya asks for the promise that these are plain old data")]
    use super::{Bucket, Counter, Hits, Line, Profile, Settings, SourceKey};

    // SAFETY: each is `repr(C)`, `Copy`, made of integers alone and without padding: the sizes asserted above are the
    // sums of their fields, so every byte is initialised and every bit pattern is valid.
    unsafe impl aya::Pod for SourceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Bucket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Profile {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Hits {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Line {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_has_a_bit_of_its_own_and_the_longest_comes_first() {
        assert_eq!(length_bit_v6(128), (0, 1));
        assert_eq!(length_bit_v6(64), (1, 1));
        assert_eq!(length_bit_v6(0), (2, 1));
        let mut seen = std::collections::HashSet::new();
        assert!((0..=128).all(|length| seen.insert(length_bit_v6(length))));
    }

    #[test]
    fn a_word_is_of_one_interface_and_the_others_that_meet_it_have_no_slot() {
        let word = slot_word(5, 3);
        assert_eq!(slot_of(word, 5), 3);
        assert_eq!(slot_of(word, 5 + SLOT_WORDS), SLOT_OTHERS);
        assert_eq!(slot_of(0, 5), SLOT_OTHERS);
    }

    #[test]
    fn every_count_has_a_place_of_its_own_and_the_first_slot_lies_first() {
        let mut expected = 0;
        for slot in 0..SLOTS_LEN {
            for origin in 0..ORIGINS_LEN {
                for dry_run in [false, true] {
                    for reason in Reason::ALL {
                        assert_eq!(counter_index(slot, reason, origin, dry_run), expected);
                        expected += 1;
                    }
                }
            }
        }
        assert_eq!(expected, COUNTERS_LEN);
    }
}
