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
    BlockV4, LONG_V4, LONG_V6, LONGEST_V4, MIDDLE_V6, TagV4, TagV6, block_v4, filter_bit_v4,
    filter_bit_v6, length_bit_v4, long_lengths_v4, longest_bit_v4, network_bit_v4, short_bit_v4,
    short_lengths_v4, short_word_v4, touched_bit_v4,
};

use super::mapping::Mapping;

/// Words of a block.
pub(super) const BLOCK_WORDS: u32 = (size_of::<BlockV4>() / size_of::<u64>()) as u32;

/// The filters of IPv4.
pub struct FiltersV4 {
    networks: Mapping,
    lines: Mapping,
    short: Mapping,
    blocks: Mapping,
}

impl FiltersV4 {
    /// The filters in these mappings: a bit a /16, a bit a /22, the short lengths, and the blocks.
    pub fn new([networks, lines, short, blocks]: [Mapping; 4]) -> Self {
        Self { networks, lines, short, blocks }
    }

    /// A rule is about to appear.
    pub fn add(&self, tag: TagV4) {
        let (first, last) = range(tag);
        if tag.length() < LONG_V4 {
            self.short_words(tag).for_each(|(word, bits)| {
                word.fetch_or(bits, Ordering::Release);
            });
        } else {
            self.add_long(tag, (first, last));
        }
        for (word, bits) in self.network_words(first, last) {
            word.fetch_or(bits, Ordering::Release);
        }
    }

    fn add_long(&self, tag: TagV4, (first, last): (u32, u32)) {
        if let Some((touched, lengths)) = self.block(first) {
            touched.fetch_or(networks_of(first, last), Ordering::Release);
            lengths.fetch_or(length_bits(tag), Ordering::Release);
        }
        if let Some(word) = self.word(first) {
            word.fetch_or(lines_of(first, last), Ordering::Release);
        }
    }

    /// A rule is gone. `held` answers the rules that are left with a network address in a range, of which those of a
    /// length below [`LONG_V4`] need not be known; `covers` says whether a shorter one that is not covers all of the
    /// prefix.
    pub fn remove<I: Iterator<Item = TagV4>>(
        &self,
        tag: TagV4,
        covers: bool,
        held: impl Fn(u32, u32) -> I,
    ) {
        let (first, last) = range(tag);
        if tag.length() < LONG_V4 {
            self.short_words(tag).for_each(|(word, bits)| {
                word.fetch_and(!bits, Ordering::Release);
            });
        } else {
            self.remove_long(tag, covers, held);
        }
        let networks = (first >> 16..=last >> 16).map(|network| network << 16);
        for network in networks.filter(|network| self.is_free(*network)) {
            for (word, bits) in self.network_words(network, network) {
                word.fetch_and(!bits, Ordering::Release);
            }
        }
    }

    fn remove_long<I: Iterator<Item = TagV4>>(
        &self,
        tag: TagV4,
        covers: bool,
        held: impl Fn(u32, u32) -> I,
    ) {
        let (first, last) = range(tag);
        let held = |first, last| held(first, last).filter(|other| other.length() >= LONG_V4);
        if !covers {
            self.untouch(first, last, &held);
        }
        let (start, end) = range(TagV4::new(first, 32 - BLOCK_SHIFT));
        let mut gone = length_bits(tag);
        for other in held(start, end) {
            gone &= !length_bits(other);
            if gone == 0 {
                return;
            }
        }
        if let Some((_, lengths)) = self.block(first) {
            lengths.fetch_and(!gone, Ordering::Release);
        }
    }

    /// Clears the bits of the networks from `first` to `last`, which lie in one block, that no long rule needs.
    fn untouch<I: Iterator<Item = TagV4>>(
        &self,
        first: u32,
        last: u32,
        held: &impl Fn(u32, u32) -> I,
    ) {
        let (first, last) = (first & mask32(24), last | !mask32(24));
        let needed = held(first, last)
            .map(range)
            .fold(0, |needed, (start, end)| needed | networks_of(start.max(first), end.min(last)));
        let Some((touched, _)) = self.block(first) else { return };
        let clear = networks_of(first, last) & !needed;
        let left = touched.fetch_and(!clear, Ordering::Release) & !clear;
        let lines = (first >> LINE_SHIFT..=last >> LINE_SHIFT).map(|line| line << LINE_SHIFT);
        let is_free = |line: &u32| left & networks_of(*line, *line | !mask32(32 - LINE_SHIFT)) == 0;
        let free = lines.filter(is_free).fold(0, |bits, line| bits | lines_of(line, line));
        if let Some(word) = self.word(first) {
            word.fetch_and(!free, Ordering::Release);
        }
    }

    /// The lengths of the rules that may cover an address, as bits, the longest first (see [`length_bit_v4`]).
    pub fn lengths(&self, address: u32) -> u64 {
        let networks = self.network_words(address, address);
        if networks.fold(0, |touched, (word, bits)| touched | load(word) & bits) == 0 {
            return 0;
        }
        let short = self.short.words().get(short_word_v4(address) as usize).map_or(0, load);
        let short = short_lengths_v4(short, address);
        if self.word(address).map_or(0, load) & lines_of(address, address) == 0 {
            return short;
        }
        let long = |(touched, lengths)| long_lengths_v4([load(touched), load(lengths)], address);
        self.block(address).map_or(0, long) | short
    }

    /// The long lengths of the rules that touch the block of an address.
    pub fn long_lengths_of_block(&self, address: u32) -> impl Iterator<Item = u32> {
        let lengths = self.block(address).map_or(0, |(_, lengths)| load(lengths));
        (LONG_V4..=32).filter(move |length| lengths & length_bit_v4(*length) != 0)
    }

    /// The word of the filter of an address.
    fn word(&self, address: u32) -> Option<&AtomicU64> {
        self.lines.words().get(filter_bit_v4(address).0 as usize)
    }

    /// The words of the /16 networks from an address to another, each with its bits.
    fn network_words(&self, first: u32, last: u32) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let ((first, low), (last, high)) = (network_bit_v4(first), network_bit_v4(last));
        (first..=last).filter_map(move |index| {
            let low = if index == first { low } else { 0 };
            let high = if index == last { high } else { 63 };
            Some((self.networks.words().get(index as usize)?, bits_between(low, high)))
        })
    }

    /// Whether no rule touches the /16 of an address, by what is known of it besides.
    fn is_free(&self, address: u32) -> bool {
        let short = self.short.words().get(short_word_v4(address) as usize).map_or(0, load);
        let of_network = u64::from(u32::MAX) << (32 * (address >> 16 & 1));
        short & of_network == 0 && self.word(address).is_none_or(|word| load(word) == 0)
    }

    /// The words that tell of a short rule, each with its bits.
    fn short_words(&self, tag: TagV4) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let (first, last) = range(tag);
        let bits = short_bit_v4(first, tag.length()) | short_bit_v4(last, tag.length());
        let [first, last] = [first, last].map(|address| short_word_v4(address) as usize);
        let words = self.short.words().get(first..=last).into_iter().flatten();
        words.map(move |word| (word, bits))
    }

    /// The two words of the block of an address.
    fn block(&self, address: u32) -> Option<(&AtomicU64, &AtomicU64)> {
        let at = block_v4(address) as usize * BLOCK_WORDS as usize;
        match self.blocks.words().get(at..at + BLOCK_WORDS as usize)? {
            [touched, lengths] => Some((touched, lengths)),
            _ => None,
        }
    }
}

/// Bits of an address within its /22, which the filter has a bit of.
const LINE_SHIFT: u32 = 10;
/// Bits of an address within its block.
const BLOCK_SHIFT: u32 = 14;

/// The bits of the filter from an address to another of the same word.
fn lines_of(first: u32, last: u32) -> u64 {
    bits_between(filter_bit_v4(first).1, filter_bit_v4(last).1)
}

/// The bits of the /24 networks from an address to another of the same block.
fn networks_of(first: u32, last: u32) -> u64 {
    bits_between(touched_bit_v4(first).trailing_zeros(), touched_bit_v4(last).trailing_zeros())
}

/// The bits of a word from one to another.
fn bits_between(first: u32, last: u32) -> u64 {
    (u64::MAX >> (63 - (last - first))) << first
}

/// What a block has of the length of a long rule: its bit, and of the longest that of the /26 as well.
fn length_bits(tag: TagV4) -> u64 {
    let longest = if tag.length() < LONGEST_V4 { 0 } else { longest_bit_v4(tag.address()) };
    length_bit_v4(tag.length()) | longest
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

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_common::source::V6;
    use gateway_common::table::{
        BLOCKS_LEN_V4, FILTER_WORDS_V4, LONGEST_PARTS_V4, NETWORK_WORDS_V4, SHORT_WORDS_V4,
    };
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn tag(bits: u32, length: u32) -> TagV4 {
        // The interesting bits stand at both ends and in the middle: /26 that share a bit, and others, among them.
        let network = ((bits >> 3) * 0x3c00) | ((bits & 1) * (LONGEST_PARTS_V4 << 6));
        TagV4::new(bits << 28 | network | (bits & 3) << 12 | bits & 7, length)
    }

    /// What the filters must say, from the rules alone: of the /16, of the /22, of the block, and of the short lengths.
    fn expected(rules: &BTreeSet<TagV4>, address: u32) -> ([bool; 2], [u64; 2], u64) {
        let around = |length| range(TagV4::new(address, length));
        let long = |(first, last)| {
            let long = rules.iter().filter(|tag| tag.length() >= LONG_V4);
            long.filter(move |tag| range(**tag).0 <= last && first <= range(**tag).1)
        };
        let block = around(18);
        let networks = (0..64).map(|network| block.0 + (network << 8));
        let touched = networks.filter(|start| long((*start, start + 255)).next().is_some());
        let touched = touched.fold(0, |word, start| word | touched_bit_v4(start));
        let lengths = long(block).fold(0, |word, tag| word | length_bits(*tag));
        let short = (0..LONG_V4).filter(|length| rules.contains(&TagV4::new(address, *length)));
        let short = short.fold(0, |word, length| word | length_bit_v4(length));
        let is_touched = short != 0 || long(around(16)).next().is_some();
        ([is_touched, long(around(22)).next().is_some()], [touched, lengths], short)
    }

    proptest! {
        // Each case writes megabytes.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn filters_say_what_the_rules_are(
            steps in proptest::collection::vec((any::<bool>(), 0u32..16, 0u32..=32), 1..40),
        ) {
            let blocks = BLOCKS_LEN_V4 * BLOCK_WORDS;
            let sizes = [NETWORK_WORDS_V4, FILTER_WORDS_V4, SHORT_WORDS_V4, blocks];
            let mapping = |words: u32| Mapping::anonymous(words as usize * 8).unwrap();
            let filters = FiltersV4::new(sizes.map(mapping));
            let mut rules = BTreeSet::new();
            for (add, bits, length) in steps {
                let tag = tag(bits, length);
                if add {
                    if rules.insert(tag) {
                        filters.add(tag);
                    }
                } else if rules.remove(&tag) {
                    let covers = (LONG_V4..tag.length())
                        .any(|length| rules.contains(&TagV4::new(tag.address(), length)));
                    filters.remove(tag, covers, |first, last| {
                        let within = move |tag: &TagV4| (first..=last).contains(&tag.address());
                        rules.iter().copied().filter(within)
                    });
                }
            }
            let short_bits = !(length_bit_v4(LONG_V4 - 1) - 1);
            for bits in 0..16 {
                let address = tag(bits, 32).address();
                for address in [address, address ^ 0x0100_0000, address ^ 0x0001_0000] {
                    let is_touched = [
                        filters.network_words(address, address).next().unwrap(),
                        (filters.word(address).unwrap(), lines_of(address, address)),
                    ];
                    let is_touched = is_touched.map(|(word, bits)| load(word) & bits != 0);
                    let (touched, lengths) = filters.block(address).unwrap();
                    let said = filters.lengths(address);
                    prop_assert_eq!(
                        (is_touched, [load(touched), load(lengths)], said & short_bits),
                        expected(&rules, address)
                    );
                    let covering = rules.iter().filter(|tag| {
                        TagV4::new(address, tag.length()) == **tag
                    });
                    let covering = covering.fold(0, |word, tag| word | length_bit_v4(tag.length()));
                    prop_assert_eq!(said & covering, covering);
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
