//! The tables of rules: buckets of four cells in one flat array a family, found by hashing (length, masked address).
//!
//! User space writes them through a mapping, without a system call a rule; the program reads a bucket, which is one or
//! two cache lines. A cell is free when its action is 0. Its head holds everything that decides and is one word, so it
//! appears, changes and goes in one store. A rule that finds its bucket full lies in one of the next ones, and the full
//! ones are marked, so that a lookup knows where to stop.
//!
//! ```text
//! IPv4 cell   head  address:32 length:8 action:4 origin:4 profile:8 flags:8
//!             span  from:32 until:32, in ticks
//! IPv6 cell   high, low: the masked address
//!             head  length:8 version:32 action:4 origin:4 profile:8 flags:8
//!             span
//! ```

use crate::rule::{Action, Origin, SEAT_FIRST};
use crate::source::{V6, mask32};

/// Cells of a bucket.
pub const CELLS: usize = 4;
/// Words of an IPv4 cell.
pub const WORDS_V4: usize = 2;
/// Words of an IPv6 cell.
pub const WORDS_V6: usize = 4;
/// Buckets that a lookup reads at most. Hardly any reads a third; but where ten million rules lie in a table filled to
/// [`LOAD_PERCENT_MAX`], the unluckiest is some 23 away from where it belongs, and each further one is 0.6 times as
/// likely. A rule that would need more is refused.
pub const PROBES_MAX: u32 = 64;
/// How full a table of the configured capacity gets (percent).
pub const LOAD_PERCENT_MAX: u64 = 60;

/// Words of what the rule of a cell has met: packets that it decided about, and CLOCK_BOOTTIME in nanoseconds of the
/// last one, 0 for none.
pub const WORDS_HITS: usize = 2;
/// Words of an IPv4 bucket: its cells, and behind them the hits of each. Whoever has the one has the other soon, for
/// processors fetch cache lines in pairs.
pub const BUCKET_WORDS_V4: usize = CELLS * (WORDS_V4 + WORDS_HITS);
/// Words of an IPv6 bucket.
pub const BUCKET_WORDS_V6: usize = CELLS * (WORDS_V6 + WORDS_HITS);

/// One IPv4 bucket.
pub type BucketV4 = [u64; BUCKET_WORDS_V4];
/// One IPv6 bucket.
pub type BucketV6 = [u64; BUCKET_WORDS_V6];

/// The number of a cell among all of a table.
#[inline(always)]
pub const fn cell_index(bucket: u32, cell: usize) -> u32 {
    bucket * CELLS as u32 + cell as u32
}

/// Nanoseconds of a tick, the unit of spans: 2^26, about 67 ms.
pub const TICK_SHIFT: u32 = 26;
/// A span without end.
pub const NEVER: u32 = u32::MAX;

const TAG_SHIFT: u32 = 24;
const VERSION_SHIFT: u32 = 24;
const LENGTH_SHIFT_V6: u32 = 56;
const ACTION_SHIFT: u32 = 20;
const ORIGIN_SHIFT: u32 = 16;
const PROFILE_SHIFT: u32 = 8;
/// All that decides, and the mark.
const DECISION: u64 = (1 << TAG_SHIFT) - 1;
/// The rule of the prefix that takes over when the other one ends.
const SECOND: u64 = 1;
/// The dry run of a list would drop what this rule, or the lack of one, lets through.
const TRIED: u64 = 4;
/// Nothing but the dry run of a list is there: it decides nothing.
const TRIAL: u64 = 8;
/// In the first cell of a bucket, free or not: rules that hash here or before lie further on.
const CONTINUED: u64 = 2;

/// What decides, without whose packets it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Head(u64);

impl Head {
    /// What [`Head::is_tried`] asks for, in [`Head::bits`].
    pub const TRIED_BITS: u32 = TRIED as u32;

    /// The decision part of a head.
    pub const fn new(action: Action, origin: Origin, profile: u8, second: bool) -> Self {
        let flags = if second { SECOND } else { 0 };
        Self(
            (action as u64) << ACTION_SHIFT
                | (origin as u64) << ORIGIN_SHIFT
                | (profile as u64) << PROFILE_SHIFT
                | flags,
        )
    }

    /// The decision part of a cell's head.
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        Self(word & DECISION & !CONTINUED)
    }

    /// As a number that fits 32 bits, with the marks of its bucket left out.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }

    /// From [`Head::bits`].
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self::of(bits as u64)
    }

    /// What is done; `None` where there is no rule.
    #[inline(always)]
    pub const fn action(self) -> Option<Action> {
        Action::from_number((self.0 >> ACTION_SHIFT & 0xf) as u8)
    }

    /// The number of whoever made it, 0 where there is no rule.
    #[inline(always)]
    pub const fn origin_number(self) -> u32 {
        (self.0 >> ORIGIN_SHIFT & 0xf) as u32
    }

    /// Who made it.
    pub fn origin(self) -> Option<Origin> {
        Origin::from_number((self.0 >> ORIGIN_SHIFT & 0xf) as u8)
    }

    /// Index of its profile.
    #[inline(always)]
    pub const fn profile(self) -> u8 {
        (self.0 >> PROFILE_SHIFT) as u8
    }

    /// The seat of the list that the rule is from, 0 where it is from none or that has no seat.
    #[inline(always)]
    pub const fn seat(self) -> u8 {
        let limits = self.0 >> ACTION_SHIFT & 0xf == Action::Limit as u64;
        if limits || self.profile() < SEAT_FIRST { 0 } else { self.profile() }
    }

    /// Whether it takes over from another.
    #[inline(always)]
    pub const fn is_second(self) -> bool {
        self.0 & SECOND != 0
    }

    /// The same, of a prefix that the dry run of a list would drop if this rule did not decide.
    pub const fn tried(self) -> Self {
        Self(self.0 | TRIED)
    }

    /// The same, in the dry run of its list: it counts what it would drop and decides nothing.
    pub const fn trial(self) -> Self {
        Self(self.0 | TRIED | TRIAL)
    }

    /// Whether the dry run of a list would drop.
    #[inline(always)]
    pub const fn is_tried(self) -> bool {
        self.0 & TRIED != 0
    }

    /// Whether it decides nothing.
    #[inline(always)]
    pub const fn is_trial(self) -> bool {
        self.0 & TRIAL != 0
    }

    /// The same, but taking over from nobody.
    pub const fn as_first(self) -> Self {
        Self(self.0 & !SECOND)
    }
}

/// Whether the cell holds a rule.
#[inline(always)]
pub const fn is_taken(head: u64) -> bool {
    head >> ACTION_SHIFT & 0xf != 0
}

/// Whether rules that hash to the bucket of this first cell may lie further on.
#[inline(always)]
pub const fn is_continued(first_head: u64) -> bool {
    first_head & CONTINUED != 0
}

/// The head of a bucket's first cell, marked.
pub const fn continued(first_head: u64) -> u64 {
    first_head | CONTINUED
}

/// The head of a cell that is given up: what told its rule from others stays, so that the next one is told from it.
pub const fn freed(head: u64) -> u64 {
    head & !(DECISION & !CONTINUED)
}

/// Whether a cell whose head was `head`, and then is `now`, had one rule all the while. What that decides, and the mark
/// of the bucket, may have changed.
#[inline(always)]
pub const fn is_same_rule(head: u64, now: u64) -> bool {
    head >> TAG_SHIFT == now >> TAG_SHIFT && is_taken(now)
}

/// When a rule holds, as a cell has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First tick at which it holds.
    pub from: u32,
    /// First tick at which it holds no longer; [`NEVER`] for none.
    pub until: u32,
}

impl Span {
    /// From the boot and without end.
    pub const ALWAYS: Self = Self { from: 0, until: NEVER };

    /// The span that ends at a time of CLOCK_BOOTTIME, rounded up to a tick. `u64::MAX`, and what lies beyond nine
    /// years of uptime, is never.
    pub const fn until_ns(until_ns: u64) -> Self {
        let ticks = until_ns.div_ceil(1 << TICK_SHIFT);
        Self { from: 0, until: if ticks >= NEVER as u64 { NEVER } else { ticks as u32 } }
    }

    /// The span between two times of CLOCK_BOOTTIME, both rounded up to a tick: what ends when another begins leaves no
    /// moment between them.
    pub const fn between_ns(from_ns: u64, until_ns: u64) -> Self {
        Self { from: Self::until_ns(from_ns).until, until: Self::until_ns(until_ns).until }
    }

    /// When it ends, in nanoseconds of CLOCK_BOOTTIME; `u64::MAX` for never.
    pub const fn end_ns(self) -> u64 {
        if self.until == NEVER { u64::MAX } else { (self.until as u64) << TICK_SHIFT }
    }

    /// From a cell.
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        Self { from: (word >> 32) as u32, until: word as u32 }
    }

    /// For a cell.
    pub const fn word(self) -> u64 {
        (self.from as u64) << 32 | self.until as u64
    }

    /// Whether it holds now.
    #[inline(always)]
    pub const fn holds(self, now_ns: u64) -> bool {
        let now = now_ns >> TICK_SHIFT;
        self.from as u64 <= now && (self.until == NEVER || now < self.until as u64)
    }
}

/// An IPv4 prefix as its cell's head has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagV4(u64);

impl TagV4 {
    /// The prefix of `length` bits (0 to 32) that `address` lies in.
    #[inline(always)]
    pub const fn new(address: u32, length: u32) -> Self {
        Self(((address & mask32(length)) as u64) << 8 | length as u64)
    }

    /// The prefix of a cell's head.
    #[inline(always)]
    pub const fn of(head: u64) -> Self {
        Self(head >> TAG_SHIFT)
    }

    /// Its network address.
    pub const fn address(self) -> u32 {
        (self.0 >> 8) as u32
    }

    /// Its length.
    pub const fn length(self) -> u32 {
        self.0 as u32 & 0xff
    }

    /// The head of a cell with this prefix.
    pub const fn head(self, head: Head) -> u64 {
        self.0 << TAG_SHIFT | head.0
    }

    /// The bucket where it is looked for first, in a table of `mask + 1` buckets.
    #[inline(always)]
    pub const fn bucket(self, seed: u64, mask: u32) -> u32 {
        finish(self.0 ^ seed) & mask
    }
}

/// An IPv6 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagV6 {
    /// The masked address.
    pub address: V6,
    /// 0 to 128.
    pub length: u32,
}

impl TagV6 {
    /// The prefix of `length` bits (0 to 128) that `address` lies in.
    #[inline(always)]
    pub const fn new(address: V6, length: u32) -> Self {
        Self { address: address.masked(length), length }
    }

    /// The prefix length of a cell's head.
    #[inline(always)]
    pub const fn length_of(head: u64) -> u32 {
        (head >> LENGTH_SHIFT_V6) as u32
    }

    /// The head of a cell with this prefix. A cell's next rule has the next `version`, so that a reader notices when
    /// the words that it read are not of one rule.
    pub const fn head(self, head: Head, version: u32) -> u64 {
        (self.length as u64) << LENGTH_SHIFT_V6 | (version as u64) << VERSION_SHIFT | head.0
    }

    /// The version of a cell's head.
    pub const fn version_of(head: u64) -> u32 {
        (head >> VERSION_SHIFT) as u32
    }

    /// The bucket where it is looked for first, in a table of `mask + 1` buckets.
    #[inline(always)]
    pub const fn bucket(self, seed: u64, mask: u32) -> u32 {
        let V6 { high, low } = self.address;
        let low = (low ^ self.length as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
        finish(high ^ low.rotate_left(32) ^ seed) & mask
    }
}

/// Spreads every bit of a key over the low 32 (the finaliser of splitmix64, shortened by a round).
#[inline(always)]
pub(crate) const fn finish(key: u64) -> u32 {
    let mixed = (key ^ key >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 32) as u32
}

/// Prefix lengths from which on an IPv4 rule lies behind the filter. Which shorter ones there are is known exactly.
pub const LONG_V4: u32 = 20;

/// Which /16 networks any rule touches: the word and the bit of `address` among [`NETWORK_WORDS_V4`] words.
#[inline(always)]
pub const fn network_bit_v4(address: u32) -> (u32, u32) {
    (address >> 22, address >> 16 & 63)
}

/// Words with a bit a /16: 8 KiB, which the first-level cache has room for beside all else.
pub const NETWORK_WORDS_V4: u32 = 1 << 10;

/// Which /22 networks a long rule touches: the word and the bit of `address` in the filter of [`FILTER_WORDS_V4`]
/// words.
#[inline(always)]
pub const fn filter_bit_v4(address: u32) -> (u32, u32) {
    (address >> 16, address >> 10 & 63)
}

/// Words of the IPv4 filter: one bit a /22, 512 KiB, which fits the second-level cache of a processor of today.
pub const FILTER_WORDS_V4: u32 = 1 << 16;

/// Words that say which short rules cover an address, half a word a /16: a bit for each length from 0 to 15 that has a
/// rule there, and one for each network within that has its own: one /16, two /17, four /18, eight /19. 256 KiB.
pub const SHORT_WORDS_V4: u32 = 1 << 15;
const WITHIN_V4: u32 = 16;

/// The word of an address among [`SHORT_WORDS_V4`].
#[inline(always)]
pub const fn short_word_v4(address: u32) -> u32 {
    address >> 17
}

/// The bit in its word that says that an address has a rule of `length`, which is below [`LONG_V4`].
#[inline(always)]
pub const fn short_bit_v4(address: u32, length: u32) -> u64 {
    let half = address >> 16 & 1;
    if length < WITHIN_V4 {
        return 1 << (32 * half + WITHIN_V4 - 1 - length);
    }
    let networks = 1 << (length - WITHIN_V4);
    1 << (32 * half + WITHIN_V4 - 1 + networks + (address >> (32 - length) & (networks - 1)))
}

/// The short lengths of the rules that cover an address, by its word, as [`length_bit_v4`] numbers them.
#[inline(always)]
pub const fn short_lengths_v4(word: u64, address: u32) -> u64 {
    let word = word >> (32 * (address >> 16 & 1)) & 0xffff_ffff;
    let mut lengths = (word & 0xffff) << (32 - (WITHIN_V4 - 1));
    let mut length = WITHIN_V4;
    while length < LONG_V4 {
        let networks = 1 << (length - WITHIN_V4);
        let network = address >> (32 - length) & (networks - 1);
        lengths |= (word >> (WITHIN_V4 - 1 + networks + network) & 1) << (32 - length);
        length += 1;
    }
    lengths
}

/// What is known of a block, a /18: which of its /24 networks long rules touch, and the lengths of the long rules that
/// touch it, with the /26 networks in which there are the longest. One place in memory says whether a look-up is worth
/// it.
pub type BlockV4 = [u64; 2];
/// Blocks of IPv4: 4 MiB.
pub const BLOCKS_LEN_V4: u32 = 1 << 18;

/// The block of an address.
#[inline(always)]
pub const fn block_v4(address: u32) -> u32 {
    address >> 14
}

/// The bit of the /24 of an address in the first word of its block.
#[inline(always)]
pub const fn touched_bit_v4(address: u32) -> u64 {
    1 << (address >> 8 & 63)
}

/// The bit of an IPv4 length (0 to 32) in the second word of a block, the longest first.
#[inline(always)]
pub const fn length_bit_v4(length: u32) -> u64 {
    1 << (32 - length)
}

/// Prefix lengths from which on an IPv4 rule is looked for only in those /26 networks that may have one.
pub const LONGEST_V4: u32 = 26;
const LONGEST_BITS_V4: u64 = length_bit_v4(LONGEST_V4 - 1) - 1;
const LENGTHS_BITS_V4: u64 = (length_bit_v4(LONG_V4) << 1) - 1;
/// Bits of the second word of a block that are no length. So many /26 networks in a row have one each, and those that
/// come after them the same again.
pub const LONGEST_PARTS_V4: u32 = LENGTHS_BITS_V4.leading_zeros();

/// The bit of the /26 of an address above the lengths, in the second word of its block.
#[inline(always)]
pub const fn longest_bit_v4(address: u32) -> u64 {
    1 << (64 - LONGEST_PARTS_V4 + (address >> 6 & 255) % LONGEST_PARTS_V4)
}

/// The lengths from [`LONG_V4`] on of the rules that may cover an address, by its block.
#[inline(always)]
pub const fn long_lengths_v4([touched, lengths]: BlockV4, address: u32) -> u64 {
    let longest = if lengths & longest_bit_v4(address) == 0 { LONGEST_BITS_V4 } else { 0 };
    if touched & touched_bit_v4(address) == 0 { 0 } else { lengths & LENGTHS_BITS_V4 & !longest }
}

/// Prefix lengths from which on an IPv6 rule is looked for only if the filter has its first 48 bits.
pub const LONG_V6: u32 = 48;
/// Prefix lengths from which on an IPv6 rule is looked for only if the filter has its first 32 bits.
pub const MIDDLE_V6: u32 = 32;

/// The bit of the IPv6 filter for the first `bits` (32 or 48) of an address, in a filter of `mask + 1` bits.
#[inline(always)]
pub const fn filter_bit_v6(high: u64, bits: u32, seed: u64, mask: u32) -> u32 {
    let network = high >> (64 - bits);
    finish(network ^ seed ^ (bits as u64) << 56) & mask
}

/// Buckets of a table that holds `rules`: a power of two, filled to [`LOAD_PERCENT_MAX`] at most.
pub const fn buckets_for(rules: u32) -> u32 {
    let cells = (rules as u64 * 100).div_ceil(LOAD_PERCENT_MAX);
    let buckets = cells.div_ceil(CELLS as u64);
    // A kernel array has at most 2^32 - 1 elements; capacity is bounded far below that.
    if buckets < 16 { 16 } else { (buckets as u32).next_power_of_two() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_hold_what_was_put_in() {
        let head = Head::new(Action::Limit, Origin::Operator, 200, true);
        let tag = TagV4::new(0xc000_0207, 24);
        let word = continued(tag.head(head));
        assert_eq!((TagV4::of(word), Head::of(word)), (tag, head));
        assert_eq!((tag.address(), tag.length()), (0xc000_0200, 24));
        assert_eq!((head.action(), head.origin()), (Some(Action::Limit), Some(Origin::Operator)));
        assert_eq!((head.profile(), head.is_second()), (200, true));
        assert!(is_taken(word) && is_continued(word));
        assert!(!is_taken(freed(word)) && is_continued(freed(word)));
        assert!(!is_continued(freed(tag.head(head))));
        assert!(is_same_rule(tag.head(head), continued(tag.head(head.as_first()))));
        assert!(!is_same_rule(word, freed(word)));
        assert!(!is_same_rule(word, TagV4::new(0xc000_0207, 25).head(head)));

        let tag = TagV6::new(V6 { high: 1, low: u64::MAX }, 65);
        let word = tag.head(head.as_first(), 7);
        assert_eq!((TagV6::length_of(word), TagV6::version_of(word)), (65, 7));
        assert!(!Head::of(word).is_second());
        assert_eq!((is_taken(freed(word)), TagV6::version_of(freed(word))), (false, 7));
        assert!(!is_same_rule(word, tag.head(head.as_first(), 8)));
    }

    #[test]
    fn spans_end_when_they_should_to_a_tick() {
        let tick = 1u64 << TICK_SHIFT;
        let span = Span::until_ns(10 * tick);
        assert!(span.holds(10 * tick - 1) && !span.holds(10 * tick));
        assert!(Span::until_ns(10 * tick - 1).holds(10 * tick - 1), "rounded up, never early");
        assert!(Span::ALWAYS.holds(u64::MAX));
        assert_eq!(Span::until_ns(u64::MAX), Span::ALWAYS);
        assert_eq!(Span::of(span.word()), span);
        let later = Span { from: 3, until: 4 };
        assert!(!later.holds(3 * tick - 1) && later.holds(3 * tick) && !later.holds(4 * tick));
    }

    #[test]
    fn tables_have_room() {
        assert_eq!(buckets_for(1), 16);
        assert_eq!(buckets_for(65_536), 32_768);
        assert_eq!(buckets_for(10_000_000), 1 << 22);
    }

    proptest! {
        /// A million rules of any one shape spread: no bucket of a small table gets far more than its share.
        #[test]
        fn neighbours_spread(base: u32, step in 1u32..70_000, seed: u64) {
            let mut counts = [0u32; 256];
            for index in 0..4096u32 {
                let address = base.wrapping_add(index.wrapping_mul(step));
                counts[TagV4::new(address, 32).bucket(seed, 255) as usize] += 1;
            }
            // 16 expected; the Poisson tail beyond 48 is below 1e-10.
            prop_assert!(counts.iter().max() < Some(&48), "{:?}", counts.iter().max());
        }
    }
}
