//! What tells a lookup that it need not look: which networks rules touch, which lengths they have there, and which
//! IPv6 networks long rules lie in.
//!
//! A bit is set before the first rule that needs it appears, and cleared after the last one is gone. A process that is
//! killed in between leaves a bit too many, which costs look-ups, and never one too few.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gateway_common::layout::length_bit_v6;
use gateway_common::source::mask32;
use gateway_common::table::{
    BlockV4, LONG_V4, LONG_V6, MIDDLE_V6, TagV4, TagV6, block_v4, filter_bit_v4, filter_bit_v6,
    length_bit_v4, lengths_of_v4, long_bit_v4, touched_bit_v4,
};

use super::mapping::Mapping;

/// Words of a block.
pub(super) const BLOCK_WORDS: u32 = (size_of::<BlockV4>() / size_of::<u64>()) as u32;

/// The filters of IPv4.
pub struct FiltersV4 {
    networks: Mapping,
    blocks: Mapping,
}

impl FiltersV4 {
    /// The filters in these mappings: a bit a /22, and the blocks.
    pub fn new(networks: Mapping, blocks: Mapping) -> Self {
        Self { networks, blocks }
    }

    /// A rule is about to appear.
    pub fn add(&self, tag: TagV4) {
        let (first, last) = range(tag);
        for (index, touched) in bits_of(first >> 8, last >> 8) {
            if let Some((at_touched, at_lengths)) = self.block(index) {
                at_touched.fetch_or(touched, Ordering::Release);
                at_lengths.fetch_or(length_bit_v4(tag.length()) | long_bit(tag), Ordering::Release);
            }
        }
        for (index, touched) in bits_of(first >> NETWORK_SHIFT, last >> NETWORK_SHIFT) {
            if let Some(word) = self.networks.words().get(index) {
                word.fetch_or(touched, Ordering::Release);
            }
        }
    }

    /// A rule is gone. `held` answers the rules that are left with a network address in a range, `covers` whether a
    /// shorter one covers all of the prefix.
    pub fn remove<I: Iterator<Item = TagV4>>(
        &self,
        tag: TagV4,
        covers: bool,
        held: impl Fn(u32, u32) -> I,
    ) {
        let (first, last) = range(tag);
        if !covers {
            self.untouch(first, last, &held);
        }
        let has = |(first, last), is_like: &dyn Fn(u32) -> bool| {
            held(first, last).any(|other| is_like(other.length()))
        };
        let mut gone =
            if has(long_range(tag), &|length| length >= LONG_V4) { 0 } else { long_bit(tag) };
        for index in block_v4(first)..=block_v4(last) {
            // Two rules of one length never overlap: a rule as large as the block was alone in it.
            let block = range(TagV4::new(index << BLOCK_SHIFT, 32 - BLOCK_SHIFT));
            let is_large = tag.length() <= 32 - BLOCK_SHIFT;
            if is_large || !has(block, &|length| length == tag.length()) {
                gone |= length_bit_v4(tag.length());
            }
            if let Some((_, at_lengths)) = self.block(index as usize) {
                at_lengths.fetch_and(!gone, Ordering::Release);
            }
        }
    }

    /// Clears the bits of the networks from `first` to `last` that no rule within them needs.
    fn untouch<I: Iterator<Item = TagV4>>(
        &self,
        first: u32,
        last: u32,
        held: &impl Fn(u32, u32) -> I,
    ) {
        let (first, last) = (first & mask32(24), last | !mask32(24));
        let mut needed: HashMap<usize, u64> = HashMap::new();
        for other in held(first, last) {
            let (start, end) = range(other);
            for (index, mask) in bits_of(start.max(first) >> 8, end.min(last) >> 8) {
                *needed.entry(index).or_default() |= mask;
            }
        }
        for (index, mask) in bits_of(first >> 8, last >> 8) {
            let clear = mask & !needed.get(&index).copied().unwrap_or(0);
            if let Some((at_touched, _)) = self.block(index) {
                at_touched.fetch_and(!clear, Ordering::Release);
            }
        }
        for network in first >> NETWORK_SHIFT..=last >> NETWORK_SHIFT {
            let first = network << NETWORK_SHIFT;
            let (word, bit) = filter_bit_v4(first);
            // Its four /24 have bits next to each other.
            let within = touched_bit_v4(first) * 0b1111;
            let block = self.block(block_v4(first) as usize);
            let is_touched = block.is_none_or(|(touched, _)| load(touched) & within != 0);
            if !is_touched && let Some(word) = self.networks.words().get(word as usize) {
                word.fetch_and(!(1 << bit), Ordering::Release);
            }
        }
    }

    /// The lengths of the rules that may cover an address, as bits, the longest first (see [`length_bit_v4`]).
    pub fn lengths(&self, address: u32) -> u64 {
        let (word, bit) = filter_bit_v4(address);
        if self.networks.words().get(word as usize).map_or(0, load) >> bit & 1 == 0 {
            return 0;
        }
        let block = self.block(block_v4(address) as usize);
        block.map_or(0, |(touched, lengths)| lengths_of_v4([load(touched), load(lengths)], address))
    }

    /// The lengths of the rules that touch the block of an address.
    pub fn lengths_of_block(&self, address: u32) -> Vec<u32> {
        let block = self.block(block_v4(address) as usize);
        let lengths = block.map_or(0, |(_, lengths)| load(lengths));
        (0..=32).filter(|length| lengths & length_bit_v4(*length) != 0).collect()
    }

    /// The two words of a block.
    fn block(&self, index: usize) -> Option<(&AtomicU64, &AtomicU64)> {
        match self.blocks.words().get(2 * index..2 * index + 2)? {
            [touched, lengths] => Some((touched, lengths)),
            _ => None,
        }
    }
}

/// Bits of an address within its /22, which the filter has a bit of.
const NETWORK_SHIFT: u32 = 10;
/// Bits of an address within its block.
const BLOCK_SHIFT: u32 = 14;

/// The bit of the /23 that a long rule lies in; none for a short one.
fn long_bit(tag: TagV4) -> u64 {
    if tag.length() < LONG_V4 { 0 } else { long_bit_v4(tag.address()) }
}

/// The first and the last address whose long rules have the same bit as this prefix.
fn long_range(tag: TagV4) -> (u32, u32) {
    let [network, pair] = [23, 22].map(|length| range(TagV4::new(tag.address(), length)));
    if long_bit_v4(pair.0) == long_bit_v4(pair.1) { pair } else { network }
}

/// The filters of IPv6, for everybody who reads them.
pub struct NetworksV6 {
    networks: Mapping,
    lengths: Mapping,
    seed: u64,
}

impl NetworksV6 {
    /// The filters in these mappings.
    pub fn new(networks: Mapping, lengths: Mapping, seed: u64) -> Self {
        Self { networks, lengths, seed }
    }

    /// The lengths that rules have, the longest first, as [`length_bit_v6`] numbers their bits.
    pub fn lengths(&self) -> impl Iterator<Item = u64> {
        self.lengths.words().iter().map(load)
    }

    /// Whether a rule of this length may cover an address with this first half.
    pub fn may_have(&self, high: u64, length: u32) -> bool {
        let Some(bit) = self.bit(high, length) else { return true };
        let word = self.networks.words().get(bit as usize / 64).map_or(0, load);
        word >> (bit % 64) & 1 == 1
    }

    fn bit(&self, high: u64, length: u32) -> Option<u32> {
        let bits = match length {
            LONG_V6.. => LONG_V6,
            MIDDLE_V6.. => MIDDLE_V6,
            _ => return None,
        };
        let mask = u32::try_from(self.networks.words().len() * 64 - 1).ok()?;
        Some(filter_bit_v6(high, bits, self.seed, mask))
    }
}

/// The filters of IPv6 with their only writer.
pub struct FiltersV6 {
    shared: Arc<NetworksV6>,
    /// Rules by bit of the networks.
    uses: HashMap<u32, u32>,
    /// Rules by length.
    counts: HashMap<u32, u32>,
}

impl FiltersV6 {
    /// Writes these filters. It knows of no rule until it is added, be it there already.
    pub fn new(filters: NetworksV6) -> Self {
        Self { shared: Arc::new(filters), uses: HashMap::new(), counts: HashMap::new() }
    }

    /// For everybody who reads.
    pub fn shared(&self) -> &Arc<NetworksV6> {
        &self.shared
    }

    /// A rule is about to appear.
    pub fn add(&mut self, tag: TagV6) {
        if let Some(bit) = self.shared.bit(tag.address.high, tag.length) {
            *self.uses.entry(bit).or_default() += 1;
            if let Some(word) = self.shared.networks.words().get(bit as usize / 64) {
                word.fetch_or(1 << (bit % 64), Ordering::Release);
            }
        }
        *self.counts.entry(tag.length).or_default() += 1;
        let (index, bit) = length_bit_v6(tag.length);
        if let Some(word) = self.shared.lengths.words().get(index as usize) {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// A rule is gone.
    pub fn remove(&mut self, tag: TagV6) {
        if let Some(bit) = self.shared.bit(tag.address.high, tag.length)
            && is_last(&mut self.uses, bit)
            && let Some(word) = self.shared.networks.words().get(bit as usize / 64)
        {
            word.fetch_and(!(1 << (bit % 64)), Ordering::Release);
        }
        let (index, bit) = length_bit_v6(tag.length);
        if is_last(&mut self.counts, tag.length)
            && let Some(word) = self.shared.lengths.words().get(index as usize)
        {
            word.fetch_and(!bit, Ordering::Release);
        }
    }
}

/// Counts one less, and answers whether that was the last.
fn is_last(counts: &mut HashMap<u32, u32>, key: u32) -> bool {
    let Some(count) = counts.get_mut(&key) else { return false };
    *count -= 1;
    let last = *count == 0;
    if last {
        counts.remove(&key);
    }
    last
}

fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}

/// The first and the last address of a prefix.
fn range(tag: TagV4) -> (u32, u32) {
    (tag.address(), tag.address() | !mask32(tag.length()))
}

/// The words of a bitmap that hold the bits from `first` to `last`, each with those that belong to the range.
fn bits_of(first: u32, last: u32) -> impl Iterator<Item = (usize, u64)> {
    (first / 64..=last / 64).map(move |word| {
        let low = if word == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
        let high = if word == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
        (word as usize, low & high)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_common::source::V6;
    use gateway_common::table::{BLOCKS_LEN_V4, FILTER_WORDS_V4};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn tag(bits: u32, length: u32) -> TagV4 {
        // The interesting bits stand at both ends and in the middle: the last two /23 of a block among them.
        let network = ((bits >> 3) * 0x3c00) | ((bits & 1) << 9);
        TagV4::new(bits << 28 | network | (bits & 3) << 12 | bits & 7, length)
    }

    /// What the filters must say, from the rules alone: of the /22, and of the block.
    fn expected(rules: &BTreeSet<TagV4>, address: u32) -> (bool, [u64; 2]) {
        let around = |length| range(TagV4::new(address, length));
        let meeting = |(first, last)| {
            rules.iter().filter(move |tag| range(**tag).0 <= last && first <= range(**tag).1)
        };
        let block = around(18);
        let touched = (0..64u32)
            .map(|net| block.0 + (net << 8))
            .filter(|start| meeting((*start, start + 255)).next().is_some());
        let lengths =
            meeting(block).fold(0, |word, tag| word | length_bit_v4(tag.length()) | long_bit(*tag));
        let touched = touched.fold(0, |word, start| word | touched_bit_v4(start));
        (meeting(around(22)).next().is_some(), [touched, lengths])
    }

    proptest! {
        // Each case writes megabytes.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn filters_say_what_the_rules_are(
            steps in proptest::collection::vec((any::<bool>(), 0u32..16, 0u32..=32), 1..40),
        ) {
            let networks = Mapping::anonymous(FILTER_WORDS_V4 as usize * 8).unwrap();
            let blocks = Mapping::anonymous(BLOCKS_LEN_V4 as usize * 16).unwrap();
            let filters = FiltersV4::new(networks, blocks);
            let mut rules = BTreeSet::new();
            for (add, bits, length) in steps {
                let tag = tag(bits, length);
                if add {
                    if rules.insert(tag) {
                        filters.add(tag);
                    }
                } else if rules.remove(&tag) {
                    let covers = (0..tag.length())
                        .any(|length| rules.contains(&TagV4::new(tag.address(), length)));
                    filters.remove(tag, covers, |first, last| {
                        let within = move |tag: &TagV4| (first..=last).contains(&tag.address());
                        rules.iter().copied().filter(within)
                    });
                }
            }
            for bits in 0..16 {
                for address in [tag(bits, 32).address(), tag(bits, 32).address() ^ 0x0100_0000] {
                    let (word, bit) = filter_bit_v4(address);
                    let is_touched = load(&filters.networks.words()[word as usize]) >> bit & 1 == 1;
                    let (touched, lengths) = filters.block(block_v4(address) as usize).unwrap();
                    let said = (is_touched, [load(touched), load(lengths)]);
                    prop_assert_eq!(said, expected(&rules, address));
                    let covering = rules.iter().filter(|tag| {
                        TagV4::new(address, tag.length()) == **tag
                    });
                    let covering = covering.fold(0, |word, tag| word | length_bit_v4(tag.length()));
                    prop_assert_eq!(filters.lengths(address) & covering, covering);
                }
            }
        }

        #[test]
        fn ipv6_filters_are_empty_when_the_rules_are(
            tags in proptest::collection::btree_set((0u64..4, 0u32..=128), 0..30),
        ) {
            let tags: BTreeSet<TagV6> = tags
                .into_iter()
                .map(|(bits, length)| TagV6::new(V6 { high: bits << 62 | bits, low: bits }, length))
                .collect();
            let networks = Mapping::anonymous(4096).unwrap();
            let lengths = Mapping::anonymous(24).unwrap();
            let mut filters = FiltersV6::new(NetworksV6::new(networks, lengths, 3));
            tags.iter().for_each(|tag| filters.add(*tag));
            for tag in &tags {
                if let Some(bit) = filters.shared.bit(tag.address.high, tag.length) {
                    let word = &filters.shared.networks.words()[bit as usize / 64];
                    let word = word.load(Ordering::Relaxed);
                    prop_assert!(word >> (bit % 64) & 1 == 1);
                }
            }
            tags.iter().for_each(|tag| filters.remove(*tag));
            let left = filters.shared.networks.words().iter().chain(filters.shared.lengths.words());
            prop_assert!(left.map(|word| word.load(Ordering::Relaxed)).all(|word| word == 0));
        }
    }
}
