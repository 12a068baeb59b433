//! One table of rules in memory that the XDP program reads, or the proxy's workers: a store a word, in an order in
//! which no reader ever sees half a rule, and none stays if this process is killed in between.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gateway_common::layout::Hits;
use gateway_common::source::V6;
use gateway_common::table::{
    CELLS, Head, PROBES_MAX, Span, TagV4, TagV6, WORDS_HITS, WORDS_V4, WORDS_V6, continued, freed,
    is_continued, is_same_rule, is_taken,
};

use super::mapping::Mapping;

/// In a count of packets: what other tables or counters have had for it is in, and is still to be taken out there.
pub const MOVING: u64 = 1 << 63;

/// What a cell of one address family looks like.
pub trait Family {
    /// A prefix.
    type Tag: Copy + Eq;
    /// Words of a cell.
    const WORDS: usize;
    /// The word that decides.
    const HEAD: usize;
    /// The bucket where a prefix is looked for first.
    fn bucket(tag: Self::Tag, seed: u64, mask: u32) -> u32;
    /// The prefix of a cell that is taken.
    fn tag(cell: &[AtomicU64]) -> Option<Self::Tag>;
    /// The word that decides, for a cell that had `before` there. The words of the prefix that stand elsewhere are
    /// stored.
    fn head(cell: &[AtomicU64], tag: Self::Tag, head: Head, before: u64) -> u64;
}

/// IPv4.
#[derive(Debug)]
pub enum V4Cells {}

impl Family for V4Cells {
    type Tag = TagV4;
    const WORDS: usize = WORDS_V4;
    const HEAD: usize = 0;

    fn bucket(tag: TagV4, seed: u64, mask: u32) -> u32 {
        tag.bucket(seed, mask)
    }

    fn tag(cell: &[AtomicU64]) -> Option<TagV4> {
        Some(TagV4::of(load(cell.first()?)))
    }

    fn head(_: &[AtomicU64], tag: TagV4, head: Head, _: u64) -> u64 {
        tag.head(head)
    }
}

/// IPv6.
#[derive(Debug)]
pub enum V6Cells {}

impl Family for V6Cells {
    type Tag = TagV6;
    const WORDS: usize = WORDS_V6;
    const HEAD: usize = 2;

    fn bucket(tag: TagV6, seed: u64, mask: u32) -> u32 {
        tag.bucket(seed, mask)
    }

    fn tag(cell: &[AtomicU64]) -> Option<TagV6> {
        let [high, low, head, _] = cell else { return None };
        let address = V6 { high: load(high), low: load(low) };
        Some(TagV6 { address, length: TagV6::length_of(load(head)) })
    }

    fn head(cell: &[AtomicU64], tag: TagV6, head: Head, before: u64) -> u64 {
        if let [high, low, ..] = cell {
            high.store(tag.address.high, Ordering::Release);
            low.store(tag.address.low, Ordering::Release);
        }
        // The version tells rules apart, not what became of one.
        tag.head(head, TagV6::version_of(before).wrapping_add(u32::from(!is_taken(before))))
    }
}

/// No cell is free within reach of a rule's first bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// A rule as it lies in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held<T> {
    /// Whose packets.
    pub tag: T,
    /// What decides.
    pub head: Head,
    /// When it holds.
    pub span: Span,
}

/// The cells of a table, for everybody who reads them.
pub struct Cells<F> {
    words: Mapping,
    seed: u64,
    mask: u32,
    family: std::marker::PhantomData<F>,
}

impl<F: Family> Cells<F> {
    /// Words of a bucket.
    const BUCKET: usize = CELLS * (F::WORDS + WORDS_HITS);

    /// The cells in `words` with `mask + 1` buckets.
    pub fn new(words: Mapping, seed: u64, mask: u32) -> Self {
        Self { words, seed, mask, family: std::marker::PhantomData }
    }

    /// Every rule in the table.
    pub fn iter(&self) -> impl Iterator<Item = Held<F::Tag>> {
        self.located().map(|(_, held)| held)
    }

    /// The rule of a prefix, the first or the second.
    pub fn find(&self, tag: F::Tag, second: bool) -> Option<Held<F::Tag>> {
        let (bucket, cell) = self.locate(tag, second)?;
        self.read(bucket, cell)
    }

    /// The rule of a prefix that holds now, read while somebody may be writing: as the XDP program does it.
    pub fn live(&self, tag: F::Tag, now_ns: u64) -> Option<(Head, Span)> {
        let mut second = None;
        for bucket in self.path(tag) {
            for cell in 0..CELLS {
                let Some(held) = self.read_settled(bucket, cell) else { continue };
                if held.tag != tag || !held.span.holds(now_ns) {
                    continue;
                }
                if !held.head.is_second() {
                    return Some((held.head, held.span));
                }
                second = Some((held.head, held.span));
            }
            if !is_continued(load(self.head_of(bucket, 0)?)) {
                break;
            }
        }
        second
    }

    /// What a rule has met.
    pub fn hits(&self, tag: F::Tag, second: bool) -> Hits {
        let Some((bucket, cell)) = self.locate(tag, second) else { return Hits::default() };
        let words = self.hits_of(bucket, cell);
        let word = |index: usize| words.get(index).map_or(0, load);
        Hits { packets: word(0) & !MOVING, last_ns: word(1) }
    }

    /// Whether the rule was taking over what another table has, when whoever did that was killed.
    pub fn is_taking(&self, tag: F::Tag, second: bool) -> bool {
        let at = self.locate(tag, second);
        let packets = at.and_then(|(bucket, cell)| self.hits_of(bucket, cell).first());
        packets.is_some_and(|packets| load(packets) & MOVING != 0)
    }

    /// Takes over what the rule met in another table, where nothing is added any more. Whoever is killed at it does it
    /// once more.
    pub fn take_hits(&self, tag: F::Tag, second: bool, from: (&Self, bool)) {
        let (before, before_second) = from;
        let Some((bucket, cell)) = self.locate(tag, second) else { return };
        let Some((from_bucket, from_cell)) = before.locate(tag, before_second) else { return };
        let (into, from) = (self.hits_of(bucket, cell), before.hits_of(from_bucket, from_cell));
        if let ([packets, last_ns], [before, before_ns]) = (into, from) {
            if packets.load(Ordering::Acquire) & MOVING == 0 {
                let met = load(before) & !MOVING;
                if met == 0 {
                    return;
                }
                last_ns.fetch_max(load(before_ns), Ordering::AcqRel);
                packets.fetch_add(met | MOVING, Ordering::AcqRel);
            }
            before.store(0, Ordering::Release);
            packets.fetch_and(!MOVING, Ordering::AcqRel);
        }
    }

    fn store(&self, bucket: u32, cell: usize, tag: F::Tag, (head, span): (Head, Span)) {
        let words = self.cell(bucket, cell);
        let (Some(at_head), Some(at_span)) = (words.get(F::HEAD), words.get(F::HEAD + 1)) else {
            return;
        };
        let before = load(at_head);
        // A rule in force changes in two steps. What stands between them must decide as the old one or as the new one
        // does: each of them has its own end, or an earlier one.
        let is_extended = is_taken(before) && Span::of(load(at_span)).until < span.until;
        if !is_extended {
            at_span.store(span.word(), Ordering::Release);
        }
        let word = F::head(words, tag, head, before);
        at_head.store(if is_continued(before) { continued(word) } else { word }, Ordering::Release);
        at_span.store(span.word(), Ordering::Release);
    }

    fn mark(&self, bucket: u32, beyond: bool) {
        let Some(first) = self.head_of(bucket, 0) else { return };
        let word = load(first);
        let unmarked = word & !(continued(0));
        first.store(if beyond { continued(word) } else { unmarked }, Ordering::Release);
    }

    fn forget_hits(&self, bucket: u32, cell: usize) {
        for word in self.hits_of(bucket, cell) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// The buckets where a prefix may lie, in the order in which it is looked for.
    fn path(&self, tag: F::Tag) -> impl Iterator<Item = u32> + use<F> {
        let (first, mask) = (F::bucket(tag, self.seed, self.mask), self.mask);
        (0..PROBES_MAX).map(move |probe| first.wrapping_add(probe) & mask)
    }

    fn locate(&self, tag: F::Tag, second: bool) -> Option<(u32, usize)> {
        for bucket in self.path(tag) {
            for cell in 0..CELLS {
                if self
                    .read(bucket, cell)
                    .is_some_and(|held| held.tag == tag && held.head.is_second() == second)
                {
                    return Some((bucket, cell));
                }
            }
            if !is_continued(load(self.head_of(bucket, 0)?)) {
                return None;
            }
        }
        None
    }

    fn located(&self) -> impl Iterator<Item = (u32, Held<F::Tag>)> {
        (0..=self.mask).flat_map(move |bucket| {
            (0..CELLS).filter_map(move |cell| Some((bucket, self.read(bucket, cell)?)))
        })
    }

    fn read(&self, bucket: u32, cell: usize) -> Option<Held<F::Tag>> {
        let words = self.cell(bucket, cell);
        let head = load(words.get(F::HEAD)?);
        if !is_taken(head) {
            return None;
        }
        let span = Span::of(load(words.get(F::HEAD + 1)?));
        Some(Held { tag: F::tag(words)?, head: Head::of(head), span })
    }

    /// The same, unless the cell was given to another rule meanwhile.
    fn read_settled(&self, bucket: u32, cell: usize) -> Option<Held<F::Tag>> {
        let (head, span) = match self.cell(bucket, cell).get(F::HEAD..F::HEAD + 2)? {
            [head, span] => (head, span),
            _ => return None,
        };
        let before = load(head);
        let mut held = self.read(bucket, cell)?;
        let now = load(head);
        if !is_same_rule(before, now) {
            return None;
        }
        // What was read first may be the span of the old decision; what is read now is not.
        if Head::of(before) != Head::of(now) {
            (held.head, held.span) = (Head::of(now), Span::of(load(span)));
        }
        Some(held)
    }

    fn head_of(&self, bucket: u32, cell: usize) -> Option<&AtomicU64> {
        self.cell(bucket, cell).get(F::HEAD)
    }

    fn cell(&self, bucket: u32, cell: usize) -> &[AtomicU64] {
        let start = bucket as usize * Self::BUCKET + cell * F::WORDS;
        self.words.words().get(start..start + F::WORDS).unwrap_or_default()
    }

    fn hits_of(&self, bucket: u32, cell: usize) -> &[AtomicU64] {
        let start = bucket as usize * Self::BUCKET + CELLS * F::WORDS + cell * WORDS_HITS;
        self.words.words().get(start..start + WORDS_HITS).unwrap_or_default()
    }
}

/// One table with its only writer.
pub struct Table<F> {
    cells: Arc<Cells<F>>,
    /// Rules that lie beyond a bucket that they hash to or pass, by bucket; its mark stays as long as there are any.
    passed: HashMap<u32, u32>,
    /// Prefixes that have rules.
    prefixes: usize,
}

impl<F: Family> Table<F> {
    /// The table in these cells, with the rules that it has.
    pub fn new(cells: Cells<F>) -> Self {
        let mut table = Self { cells: Arc::new(cells), passed: HashMap::new(), prefixes: 0 };
        let cells = Arc::clone(&table.cells);
        for (bucket, held) in cells.located() {
            table.prefixes += usize::from(!held.head.is_second());
            for passing in cells.path(held.tag).take_while(|passing| *passing != bucket) {
                *table.passed.entry(passing).or_insert(0) += 1;
            }
        }
        table
    }

    /// For everybody who reads.
    pub fn cells(&self) -> &Arc<Cells<F>> {
        &self.cells
    }

    /// How many prefixes have rules.
    pub fn prefixes(&self) -> usize {
        self.prefixes
    }

    /// Writes a rule, over the one of the same prefix and turn if there is one. That keeps its hits if the same origin
    /// does the same.
    pub fn put(&mut self, tag: F::Tag, head: Head, span: Span) -> Result<(), NoRoom> {
        let Some((bucket, cell)) = self.cells.locate(tag, head.is_second()) else {
            return self.insert(tag, head, span);
        };
        let Some(before) = self.cells.read(bucket, cell) else { return Err(NoRoom) };
        if (before.head, before.span) == (head, span) {
            return Ok(());
        }
        if (before.head.action(), before.head.origin()) != (head.action(), head.origin()) {
            self.cells.forget_hits(bucket, cell);
        }
        self.cells.store(bucket, cell, tag, (head, span));
        Ok(())
    }

    /// Takes a rule out. Answers whether there was one.
    pub fn remove(&mut self, tag: F::Tag, second: bool) -> bool {
        let Some((bucket, cell)) = self.cells.locate(tag, second) else { return false };
        if let Some(word) = self.cells.head_of(bucket, cell) {
            word.store(freed(load(word)), Ordering::Release);
        }
        self.prefixes -= usize::from(!second);
        for passing in self.cells.path(tag).take_while(|passing| *passing != bucket) {
            let Some(count) = self.passed.get_mut(&passing) else { continue };
            *count -= 1;
            if *count == 0 {
                self.passed.remove(&passing);
                self.cells.mark(passing, false);
            }
        }
        true
    }

    /// A new rule goes into the first free cell on its path. Buckets that it passes are marked before it appears, so
    /// that whoever looks for it gets there.
    fn insert(&mut self, tag: F::Tag, head: Head, span: Span) -> Result<(), NoRoom> {
        let cells = &self.cells;
        let free = |bucket: u32| {
            (0..CELLS)
                .find(|cell| cells.head_of(bucket, *cell).is_some_and(|word| !is_taken(load(word))))
        };
        let found = cells.path(tag).find_map(|bucket| Some((bucket, free(bucket)?)));
        let (bucket, cell) = found.ok_or(NoRoom)?;
        for passing in cells.path(tag).take_while(|passing| *passing != bucket) {
            *self.passed.entry(passing).or_insert(0) += 1;
            cells.mark(passing, true);
        }
        cells.forget_hits(bucket, cell);
        cells.store(bucket, cell, tag, (head, span));
        self.prefixes += usize::from(!head.is_second());
        Ok(())
    }
}

/// What was stored before is seen with it.
fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_common::rule::{Action, Origin};
    use gateway_common::table::{BucketV4, BucketV6};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn table(buckets: u32) -> Table<V4Cells> {
        let words = Mapping::anonymous(buckets as usize * size_of::<BucketV4>()).unwrap();
        Table::new(Cells::new(words, 7, buckets - 1))
    }

    fn head(action: u8, second: bool) -> Head {
        Head::new(Action::from_number(action).unwrap(), Origin::Operator, 0, second)
    }

    proptest! {
        /// A small table, so that buckets overflow all the time, against a map.
        #[test]
        fn behaves_like_a_map(
            steps in proptest::collection::vec((0u32..40, any::<bool>(), 0u8..=3), 1..300),
        ) {
            let mut table = table(16);
            let mut model = BTreeMap::new();
            for (address, second, action) in steps {
                let tag = TagV4::new(address, 32);
                if action == 0 {
                    table.remove(tag, second);
                    model.remove(&(tag, second));
                } else if table.put(tag, head(action, second), Span::ALWAYS).is_ok() {
                    model.insert((tag, second), head(action, second));
                }
                for (key, head) in &model {
                    let held = table.cells.find(key.0, key.1);
                    prop_assert_eq!(held.map(|held| held.head), Some(*head));
                }
                prop_assert_eq!(table.cells.iter().count(), model.len());
            }
            let Table { cells, passed, prefixes } = table;
            let opened = Table::new(Arc::into_inner(cells).unwrap());
            prop_assert_eq!((&opened.passed, opened.prefixes), (&passed, prefixes));
            for (tag, second) in model.into_keys() {
                prop_assert!(opened.cells.find(tag, second).is_some());
            }
        }
    }

    #[test]
    fn an_emptied_table_has_no_marks_left() {
        let mut table = table(16);
        let tags: Vec<TagV4> = (0..48).map(|address| TagV4::new(address, 32)).collect();
        let held: Vec<TagV4> = tags
            .into_iter()
            .filter(|tag| table.put(*tag, head(2, false), Span::ALWAYS).is_ok())
            .collect();
        assert!(held.len() > 40 && !table.passed.is_empty());
        for tag in held {
            table.remove(tag, false);
        }
        assert!(table.passed.is_empty());
        let marked =
            (0..16).filter(|bucket| is_continued(load(table.cells.head_of(*bucket, 0).unwrap())));
        assert_eq!(marked.count(), 0);
    }

    /// Or a reader could take one half of an address from one rule and the other half from the next.
    #[test]
    fn the_next_rule_of_an_ipv6_cell_differs_in_its_version_and_a_changed_one_does_not() {
        let words = Mapping::anonymous(16 * size_of::<BucketV6>()).unwrap();
        let mut table: Table<V6Cells> = Table::new(Cells::new(words, 7, 15));
        let tag = TagV6::new(V6 { high: 1, low: 2 }, 128);
        let mut versions = Vec::new();
        for _ in 0..2 {
            for action in [1, 2] {
                table.put(tag, head(action, false), Span::ALWAYS).unwrap();
                let (bucket, cell) = table.cells.locate(tag, false).unwrap();
                let word = load(table.cells.head_of(bucket, cell).unwrap());
                versions.push((bucket, cell, TagV6::version_of(word)));
            }
            table.remove(tag, false);
        }
        let (bucket, cell, first) = versions[0];
        let expected = [first, first, first + 1, first + 1];
        assert_eq!(versions, expected.map(|version| (bucket, cell, version)));
    }

    #[test]
    fn hits_stay_with_the_rule_and_go_with_it() {
        let mut table = table(16);
        let tag = TagV4::new(9, 32);
        table.put(tag, head(2, false), Span::ALWAYS).unwrap();
        meet(&table, tag, [3, 5]);
        table.put(tag, head(2, false), Span::until_ns(1 << 40)).unwrap();
        assert_eq!(
            table.cells.hits(tag, false),
            Hits { packets: 3, last_ns: 5 },
            "only its end changed"
        );
        table.put(tag, head(1, false), Span::ALWAYS).unwrap();
        assert_eq!(table.cells.hits(tag, false), Hits::default(), "it is another rule now");
        meet(&table, tag, [1, 1]);
        table.remove(tag, false);
        table.put(tag, head(1, false), Span::ALWAYS).unwrap();
        assert_eq!(table.cells.hits(tag, false), Hits::default());
    }

    /// Adds to what a rule has met, as the program does.
    fn meet(table: &Table<V4Cells>, tag: TagV4, met: [u64; 2]) {
        for (word, met) in hits_words(table, tag).iter().zip(met) {
            word.fetch_add(met, Ordering::Relaxed);
        }
    }

    fn hits_words(table: &Table<V4Cells>, tag: TagV4) -> &[AtomicU64] {
        let (bucket, cell) = table.cells.locate(tag, false).unwrap();
        table.cells.hits_of(bucket, cell)
    }

    #[test]
    fn hits_move_once_whenever_whoever_moves_them_is_killed() {
        let tag = TagV4::new(9, 32);
        // As each kill leaves it: nothing done, added and marked, taken out, the mark removed.
        for (before, after, mark) in [(5, 2, 0), (5, 7, MOVING), (0, 7, MOVING), (0, 7, 0)] {
            let [mut old, mut new] = [table(16), table(16)];
            for table in [&mut old, &mut new] {
                table.put(tag, head(2, false), Span::ALWAYS).unwrap();
            }
            meet(&old, tag, [before, 4]);
            meet(&new, tag, [after | mark, 9]);
            let shown = new.cells.hits(tag, false).packets;
            assert_eq!(shown, after, "the mark is not shown");
            assert_eq!(new.cells.is_taking(tag, false), mark == MOVING);
            // A packet meets the rule meanwhile.
            meet(&new, tag, [1, 0]);
            for _ in 0..2 {
                new.cells.take_hits(tag, false, (&old.cells, false));
                assert_eq!(new.cells.hits(tag, false), Hits { packets: 8, last_ns: 9 });
                let words = [&old, &new].map(|table| load(&hits_words(table, tag)[0]));
                assert_eq!(words, [0, 8]);
                assert!(!new.cells.is_taking(tag, false));
            }
        }
    }
}
