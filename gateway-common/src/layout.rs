//! The maps: their names, keys, values and sizes, fixed at compile time on both sides.

use crate::bucket::Bucket;
use crate::rule::{Entry, Rules};
use crate::source::{SourceKey, V6, mask32};
use crate::verdict::Reason;

/// Part of the pin folder's name. Raised by every change of a name, a layout or a meaning in this file.
pub const ABI: u32 = 1;

/// Name of the program in the kernel object.
pub const PROGRAM: &str = "gateway";

/// Hash of [`RuleKeyV4`] to [`Rules`].
pub const RULES_V4: &str = "RULES_V4";
/// Hash of [`RuleKeyV6`] to [`Rules`].
pub const RULES_V6: &str = "RULES_V6";
/// Array of [`LENGTH_WORDS`] words: which prefix lengths have rules, see [`length_bit_v4`] and [`length_bit_v6`].
pub const LENGTHS: &str = "LENGTHS";
/// Array of [`Hits`] by [`Entry::slot`].
pub const HITS: &str = "HITS";
/// LRU hash of [`SourceKey`] to the word of its packet bucket, by CLOCK_MONOTONIC.
pub const BUCKETS: &str = "BUCKETS";
/// Array of [`PROFILES_MAX`] [`Bucket`]s; index 0 is the default profile.
pub const PROFILES: &str = "PROFILES";
/// Array of [`PORT_WORDS`] words, a bit a TCP or UDP port that buckets apply to.
pub const PORTS: &str = "PORTS";
/// Per-CPU array of [`COUNTERS_LEN`] [`Counter`]s, by [`counter_index`].
pub const COUNTERS: &str = "COUNTERS";
/// Every map, for pinning and for finding what is missing.
pub const MAPS: [&str; 8] = [RULES_V4, RULES_V6, LENGTHS, HITS, BUCKETS, PROFILES, PORTS, COUNTERS];

/// Name of the global with the [`Settings`] that are patched in before the verifier runs.
pub const SETTINGS: &str = "SETTINGS";

/// Profiles that can exist, the default one included.
pub const PROFILES_MAX: u32 = 256;
/// Words of 64 ports.
pub const PORT_WORDS: u32 = 1024;
/// One word for the 33 lengths of IPv4, three for the 129 of IPv6.
pub const LENGTH_WORDS: u32 = 4;
/// Counters: one a reason, and again for what `dry_run` let pass.
pub const COUNTERS_LEN: u32 = 2 * Reason::ALL.len() as u32;

/// Rules of one family that fit unless the configuration says otherwise.
pub const RULES_DEFAULT: u32 = 65_536;
/// Buckets that fit unless the configuration says otherwise.
pub const BUCKETS_DEFAULT: u32 = 262_144;

/// An IPv4 prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleKeyV4 {
    /// Network address in host byte order, host bits zero.
    pub address: u32,
    /// 0 to 32.
    pub length: u32,
}

impl RuleKeyV4 {
    /// The prefix of `length` bits that `address` lies in.
    #[inline(always)]
    pub const fn new(address: u32, length: u32) -> Self {
        Self { address: address & mask32(length), length }
    }
}

/// An IPv6 prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleKeyV6 {
    /// First half of the network address, host byte order.
    pub high: u64,
    /// Second half of the network address, host byte order.
    pub low: u64,
    /// 0 to 128; a whole word, so that the key has no padding.
    pub length: u64,
}

impl RuleKeyV6 {
    /// The prefix of `length` bits that `address` lies in.
    #[inline(always)]
    pub const fn new(address: V6, length: u32) -> Self {
        let V6 { high, low } = address.masked(length);
        Self { high, low, length: length as u64 }
    }
}

/// The bit of an IPv4 prefix length (0 to 32) in word 0 of [`LENGTHS`]. The longest length is the lowest bit, so that
/// counting trailing zeros walks from the most specific to the least.
#[inline(always)]
pub const fn length_bit_v4(length: u32) -> u64 {
    1 << (32 - length)
}

/// Word index (1 to 3) and bit of an IPv6 prefix length (0 to 128) in [`LENGTHS`], the longest first.
#[inline(always)]
pub const fn length_bit_v6(length: u32) -> (u32, u64) {
    let position = 128 - length;
    (1 + position / 64, 1 << (position % 64))
}

/// What a rule has met.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Packets that it decided about.
    pub packets: u64,
    /// CLOCK_BOOTTIME in nanoseconds of the last one, 0 for none.
    pub last_ns: u64,
    /// Generation of the rule that has the slot.
    pub generation: u32,
    /// Zero.
    pub reserved: u32,
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

/// The counter of `reason`, or of what would have been dropped for it were it not for a dry run.
#[inline(always)]
pub const fn counter_index(reason: Reason, dry_run: bool) -> u32 {
    reason as u32 + if dry_run { Reason::ALL.len() as u32 } else { 0 }
}

/// Constants of the program, patched before the verifier sees it, which then removes what they switch off.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// 1: look at rules.
    pub rules: u32,
    /// 1: look at packet buckets.
    pub buckets: u32,
    /// 1: count what would be dropped and drop nothing.
    pub dry_run: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    use core::mem::{align_of, size_of};
    assert!(size_of::<RuleKeyV4>() == 8 && align_of::<RuleKeyV4>() == 4);
    assert!(size_of::<RuleKeyV6>() == 24 && align_of::<RuleKeyV6>() == 8);
    assert!(size_of::<SourceKey>() == 16 && align_of::<SourceKey>() == 8);
    assert!(size_of::<Entry>() == 32 && align_of::<Entry>() == 8);
    assert!(size_of::<Rules>() == 64 && align_of::<Rules>() == 8);
    assert!(size_of::<Bucket>() == 16 && align_of::<Bucket>() == 8);
    assert!(size_of::<Hits>() == 24 && align_of::<Hits>() == 8);
    assert!(size_of::<Counter>() == 16 && align_of::<Counter>() == 8);
    assert!(size_of::<Settings>() == 16 && align_of::<Settings>() == 4);
    assert!(PORT_WORDS * 64 == 65_536);
};

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya asks for the promise that these are plain old data")]
    use super::{Bucket, Counter, Hits, RuleKeyV4, RuleKeyV6, Rules, Settings, SourceKey};

    // SAFETY: each is `repr(C)`, `Copy`, made of integers alone and without padding: the sizes asserted above are the
    // sums of their fields, so every byte is initialised and every bit pattern is valid.
    unsafe impl aya::Pod for RuleKeyV4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RuleKeyV6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SourceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Rules {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Bucket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Hits {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_has_a_bit_of_its_own_and_the_longest_comes_first() {
        assert_eq!(length_bit_v4(32), 1);
        assert_eq!(length_bit_v4(0), 1 << 32);
        assert_eq!(length_bit_v6(128), (1, 1));
        assert_eq!(length_bit_v6(64), (2, 1));
        assert_eq!(length_bit_v6(0), (3, 1));
        let mut seen = std::collections::HashSet::new();
        assert!((0..=128).all(|length| seen.insert(length_bit_v6(length))));
    }
}
