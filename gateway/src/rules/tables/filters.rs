//! What tells a lookup that it need not look: which /24 networks rules touch, which lengths they have there, and
//! which IPv6 networks long rules lie in.
//!
//! A bit is set before the first rule that needs it appears, and cleared after the last one is gone. A process that is
//! killed in between leaves a bit too many, which costs look-ups, and never one too few.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gateway_common::layout::length_bit_v6;
use gateway_common::source::mask32;
use gateway_common::table::{
    LONG_V6, MIDDLE_V6, TagV4, TagV6, filter_bit_v4, filter_bit_v6, length_bit_v4,
};

use super::mapping::Mapping;

/// The filters of IPv4.
pub struct FiltersV4 {
    touched: Mapping,
    blocks: Mapping,
    block_shift: u32,
}

impl FiltersV4 {
    /// The filters in these mappings.
    pub fn new(touched: Mapping, blocks: Mapping) -> Self {
        let block_shift = 32 - blocks.words().len().max(1).ilog2();
        Self { touched, blocks, block_shift }
    }

    /// A rule is about to appear.
    pub fn add(&self, tag: TagV4) {
        let (first, last) = range(tag);
        for (word, mask) in words_of(first, last) {
            if let Some(word) = self.touched.words().get(word) {
                word.fetch_or(mask, Ordering::Release);
            }
        }
        for block in self.blocks_of(first, last) {
            block.fetch_or(length_bit_v4(tag.length()), Ordering::Release);
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
        let index = (u64::from(first) >> self.block_shift) as u32;
        for (index, block) in (index..).zip(self.blocks_of(first, last)) {
            let (start, end) = self.block(index);
            // Two rules of one length never overlap: a rule as large as the block was alone in it.
            let other = tag.length() > 32 - self.block_shift
                && held(start, end).any(|other| other.length() == tag.length());
            if !other {
                block.fetch_and(!length_bit_v4(tag.length()), Ordering::Release);
            }
        }
    }

    /// Clears the bits of the /24 networks from `first` to `last` that no rule within them needs.
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
            for (word, mask) in words_of(start.max(first), end.min(last)) {
                *needed.entry(word).or_default() |= mask;
            }
        }
        for (index, mask) in words_of(first, last) {
            let clear = mask & !needed.get(&index).copied().unwrap_or(0);
            if let Some(word) = self.touched.words().get(index) {
                word.fetch_and(!clear, Ordering::Release);
            }
        }
    }

    /// The lengths of the rules that may cover an address, as bits, the longest first (see [`length_bit_v4`]).
    pub fn lengths(&self, address: u32) -> u64 {
        let (word, bit) = filter_bit_v4(address);
        let touched = self.touched.words().get(word as usize).map_or(0, load);
        if touched >> bit & 1 == 0 {
            return 0;
        }
        self.blocks_of(address, address).first().map_or(0, load)
    }

    /// The lengths of the rules that touch the block of an address.
    pub fn lengths_of_block(&self, address: u32) -> Vec<u32> {
        let lengths = self.blocks_of(address, address).first().map_or(0, load);
        (0..=32).filter(|length| lengths & length_bit_v4(*length) != 0).collect()
    }

    fn blocks_of(&self, first: u32, last: u32) -> &[AtomicU64] {
        let index = |address: u32| (u64::from(address) >> self.block_shift) as usize;
        self.blocks.words().get(index(first)..=index(last)).unwrap_or_default()
    }

    fn block(&self, index: u32) -> (u32, u32) {
        let start = (u64::from(index) << self.block_shift) as u32;
        (start, start | !mask32(32 - self.block_shift))
    }
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

/// The words of the filter of /24 networks for a range of addresses, with the bits that belong to it.
fn words_of(first: u32, last: u32) -> impl Iterator<Item = (usize, u64)> {
    let ((first_word, first_bit), (last_word, last_bit)) =
        (filter_bit_v4(first), filter_bit_v4(last));
    (first_word..=last_word).map(move |word| {
        let low = if word == first_word { u64::MAX << first_bit } else { u64::MAX };
        let high = if word == last_word { u64::MAX >> (63 - last_bit) } else { u64::MAX };
        (word as usize, low & high)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_common::source::V6;
    use gateway_common::table::FILTER_WORDS_V4;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn tag(bits: u32, length: u32) -> TagV4 {
        // The interesting bits stand at both ends and in the middle.
        TagV4::new(bits << 28 | (bits & 3) << 12 | bits & 7, length)
    }

    /// What the filters must say, from the rules alone.
    fn expected(filters: &FiltersV4, rules: &BTreeSet<TagV4>, address: u32) -> (bool, u64) {
        let meets =
            |tag: &TagV4, first: u32, last: u32| range(*tag).0 <= last && first <= range(*tag).1;
        let net = address & mask32(24);
        let touched = rules.iter().any(|tag| meets(tag, net, net | 0xff));
        let (start, end) = filters.block(address >> filters.block_shift);
        let lengths = rules.iter().filter(|tag| meets(tag, start, end));
        (touched, lengths.fold(0, |word, tag| word | length_bit_v4(tag.length())))
    }

    proptest! {
        #[test]
        fn filters_say_what_the_rules_are(
            steps in proptest::collection::vec((any::<bool>(), 0u32..16, 0u32..=32), 1..40),
        ) {
            let touched = Mapping::anonymous(FILTER_WORDS_V4 as usize * 8).unwrap();
            let blocks = Mapping::anonymous((1 << 16) * 8).unwrap();
            let filters = FiltersV4::new(touched, blocks);
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
                    let load = |words: &Mapping, index: u32| {
                        words.words()[index as usize].load(Ordering::Relaxed)
                    };
                    let is_touched = load(&filters.touched, word) >> bit & 1 == 1;
                    let lengths = load(&filters.blocks, address >> 16);
                    prop_assert_eq!((is_touched, lengths), expected(&filters, &rules, address));
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
