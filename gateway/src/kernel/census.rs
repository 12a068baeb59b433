//! The tables of rules, counted in one pass over the program's own memory: how many there are, and which meet most
//! packets. It copies no rule that is not asked for, writes nothing, and may run beside whoever writes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{MapData, MapError};
use gateway_common::layout;
use gateway_common::rule::{Action, Origin};
use gateway_common::source::V6;
use gateway_common::table::{
    BUCKET_WORDS_V4, BUCKET_WORDS_V6, CELLS, Head, TagV4, TagV6, WORDS_HITS, WORDS_V4, WORDS_V6,
    is_taken,
};

use super::events::RuleMet;
use super::tables::{TablesError, mapping};
use crate::rules::tables::mapping::Mapping;
use crate::rules::tables::table::MOVING;
use crate::rules::tables::{prefix_of_v4, prefix_of_v6};

/// The tables, as anybody may read them.
pub struct Census {
    v4: Mapping,
    v6: Mapping,
}

/// Rules of one kind that the kernel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Whether they are about IPv4.
    pub v4: bool,
    /// Who made them.
    pub origin: Origin,
    /// What they do.
    pub action: Action,
}

/// A rule and the packets that it has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleHits {
    /// The rule.
    pub rule: RuleMet,
    /// Packets that it decided about.
    pub packets: u64,
}

impl Census {
    /// Opens the tables that `find` finds by their names.
    pub fn open(
        find: impl Fn(&'static str) -> Result<MapData, MapError>,
    ) -> Result<Self, TablesError> {
        let mapped = |map: &'static str| {
            let data = find(map).map_err(|source| TablesError::Map { map, source })?;
            mapping(map, &data)
        };
        Ok(Self { v4: mapped(layout::TABLE_V4)?, v6: mapped(layout::TABLE_V6)? })
    }

    /// How many rules there are of each kind.
    pub fn count(&self) -> BTreeMap<Kind, u64> {
        let mut counts = BTreeMap::new();
        let v4 = self.cells_v4().map(|[head, _]| (true, load(head)));
        let v6 = self.cells_v6().map(|[_, _, head, _]| (false, load(head)));
        for (v4, word) in v4.chain(v6).filter(|(_, word)| is_taken(*word)) {
            let head = Head::of(word);
            if let Some((origin, action)) = head.origin().zip(head.action()) {
                *counts.entry(Kind { v4, origin, action }).or_default() += 1;
            }
        }
        counts
    }

    /// The rules that have met most packets, at most so many, the busiest first.
    pub fn busiest(&self, most: usize) -> Vec<RuleHits> {
        let v4 = hits::<BUCKET_WORDS_V4>(&self.v4, CELLS * WORDS_V4);
        let v6 = hits::<BUCKET_WORDS_V6>(&self.v6, CELLS * WORDS_V6);
        let packets = v4.map(|[packets, _]| (true, packets)).enumerate();
        let packets = packets.chain(v6.map(|[packets, _]| (false, packets)).enumerate());
        let mut heap = BinaryHeap::with_capacity(most + 1);
        for (cell, (v4, packets)) in packets {
            let packets = load(packets) & !MOVING;
            let least = heap.peek().map_or(0, |Reverse((least, _, _))| *least);
            if packets == 0 || (heap.len() == most && packets <= least) {
                continue;
            }
            // What a rule that is gone has met stays until another takes its cell.
            if self.rule(v4, cell).is_some() {
                heap.push(Reverse((packets, v4, cell)));
            }
            if heap.len() > most {
                heap.pop();
            }
        }
        let sorted = heap.into_sorted_vec().into_iter();
        let hits = sorted.filter_map(|Reverse((packets, v4, cell))| {
            Some(RuleHits { rule: self.rule(v4, cell)?, packets })
        });
        hits.collect()
    }

    /// The rule of a cell, unless it is free or given to another one at this moment.
    fn rule(&self, v4: bool, cell: usize) -> Option<RuleMet> {
        let (word, head, prefix) = if v4 {
            let bucket = self.v4.words().as_chunks::<BUCKET_WORDS_V4>().0.get(cell / CELLS)?;
            let [head, _] = bucket.as_chunks::<WORDS_V4>().0.get(cell % CELLS)?;
            let word = load(head);
            (word, head, prefix_of_v4(TagV4::of(word)))
        } else {
            let bucket = self.v6.words().as_chunks::<BUCKET_WORDS_V6>().0.get(cell / CELLS)?;
            let [high, low, head, _] = bucket.as_chunks::<WORDS_V6>().0.get(cell % CELLS)?;
            let word = load(head);
            let address = V6 { high: load(high), low: load(low) };
            let tag = TagV6 { address, length: TagV6::length_of(word) };
            (word, head, prefix_of_v6(tag))
        };
        let rule = Head::of(word);
        let same = is_taken(word) && load(head) == word;
        let (action, origin) = rule.action().zip(rule.origin()).filter(|_| same)?;
        Some(RuleMet { prefix, action, origin })
    }

    fn cells_v4(&self) -> impl Iterator<Item = &[AtomicU64; WORDS_V4]> {
        let buckets = self.v4.words().as_chunks::<BUCKET_WORDS_V4>().0.iter();
        buckets.flat_map(|bucket| bucket.as_chunks().0.iter().take(CELLS))
    }

    fn cells_v6(&self) -> impl Iterator<Item = &[AtomicU64; WORDS_V6]> {
        let buckets = self.v6.words().as_chunks::<BUCKET_WORDS_V6>().0.iter();
        buckets.flat_map(|bucket| bucket.as_chunks().0.iter().take(CELLS))
    }
}

/// The hits of every cell, which begin `at` so many words of each bucket.
fn hits<const BUCKET: usize>(
    words: &Mapping,
    at: usize,
) -> impl Iterator<Item = &[AtomicU64; WORDS_HITS]> {
    let buckets = words.words().as_chunks::<BUCKET>().0.iter();
    buckets.flat_map(move |bucket| {
        bucket.get(at..).unwrap_or_default().as_chunks::<WORDS_HITS>().0.iter()
    })
}

fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_common::table::Span;

    fn empty() -> Census {
        let words = |words: usize| Mapping::anonymous(words * 8).unwrap();
        Census { v4: words(8 * BUCKET_WORDS_V4), v6: words(4 * BUCKET_WORDS_V6) }
    }

    /// Where a cell of so many words begins, and where its hits do.
    fn places(cell: usize, words: usize) -> [usize; 2] {
        let bucket = cell / CELLS * CELLS * (words + WORDS_HITS);
        let cell = cell % CELLS;
        [bucket + cell * words, bucket + CELLS * words + cell * WORDS_HITS]
    }

    fn store(words: &Mapping, at: usize, values: &[u64]) {
        for (word, value) in words.words()[at..].iter().zip(values) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    #[test]
    fn rules_are_counted_by_kind_and_the_busiest_come_first() {
        let census = empty();
        let head = |origin| Head::new(Action::Deny, origin, 0, false);
        for (cell, packets) in [(3, 5), (7, 0), (9, 70), (12, 6)] {
            let tag = TagV4::new(0xc000_0200 + cell as u32, 32);
            let [at, hits] = places(cell, WORDS_V4);
            store(&census.v4, at, &[tag.head(head(Origin::Feed)), Span::ALWAYS.word()]);
            store(&census.v4, hits, &[packets, 1]);
        }
        // Met by a rule that is gone.
        store(&census.v4, places(20, WORDS_V4)[1], &[1000, 1]);
        let tag = TagV6::new(V6 { high: 0x2001 << 48, low: 0 }, 16);
        let word = tag.head(head(Origin::Ban), 1);
        let [at, hits] = places(2, WORDS_V6);
        store(&census.v6, at, &[tag.address.high, 0, word, Span::ALWAYS.word()]);
        store(&census.v6, hits, &[40, 1]);

        let kind = |v4, origin| Kind { v4, origin, action: Action::Deny };
        let counts = BTreeMap::from([(kind(true, Origin::Feed), 4), (kind(false, Origin::Ban), 1)]);
        assert_eq!(census.count(), counts);
        let shown = |most| -> Vec<(String, u64)> {
            let busiest = census.busiest(most).into_iter();
            busiest.map(|hits| (hits.rule.prefix.to_string(), hits.packets)).collect()
        };
        let first = ("192.0.2.9/32".to_owned(), 70);
        assert_eq!(shown(1), vec![first.clone()]);
        assert_eq!(shown(2), vec![first, ("2001::/16".to_owned(), 40)]);
        assert_eq!(shown(9).len(), 4);
        assert_eq!(census.busiest(0), []);
    }
}
