//! Counting in process: what is kept of each key of one limit, and how threads that count at once stay exact.
//!
//! Every change is one exchange of one word, made again if somebody else was faster. While no cell has to be taken from
//! a key that still counts, never more than the limit is admitted, whatever the number of threads.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::Duration;

use crate::base::time::Moment;
use crate::config::Period;
use crate::limit::algorithm::Verdict;
use crate::limit::algorithm::fixed_window::{FixedWindow, Window, join, split};
use crate::limit::algorithm::leaky_bucket::LeakyBucket;
use crate::limit::algorithm::sliding_log::{Ring, SlidingLog};
use crate::limit::algorithm::sliding_window::{SlidingWindow, Words};
use crate::limit::algorithm::token_bucket::TokenBucket;
use crate::limit::calendar;
use crate::limit::table::{Cell, Table, memory};
use crate::rules::tables::mapping::Mapping;

/// What is counted how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// A bucket of tokens.
    TokenBucket(TokenBucket),
    /// An even pace.
    LeakyBucket(LeakyBucket),
    /// So many in each window of so many nanoseconds.
    FixedWindow(FixedWindow, u64),
    /// So many in any window's length, about.
    SlidingWindow(SlidingWindow),
    /// So many in any window's length, exactly.
    SlidingLog(SlidingLog),
    /// So many a day or month.
    Quota(FixedWindow, Period),
}

/// The keys of a limit and what was taken of each.
#[derive(Debug)]
pub struct Counter {
    /// What is counted how.
    pub terms: Terms,
    pub(super) memory: Arc<Memory>,
}

/// Where it is kept. It outlives a limit that is replaced by one that reads it the same way.
pub struct Memory {
    pub(super) table: Table,
    keys: usize,
    /// The rings of a sliding log, in the order of the cells.
    rings: Option<Mapping>,
    ring_words: usize,
}

impl Memory {
    /// Memory for so many keys of a limit of these terms.
    pub fn new(keys: usize, terms: &Terms) -> io::Result<Arc<Self>> {
        let table = Table::new(keys)?;
        let ring_words = terms.ring_words();
        let bytes = table.cells().saturating_mul(ring_words).saturating_mul(size_of::<u64>());
        let rings = if bytes > 0 { Some(memory(bytes)?) } else { None };
        Ok(Arc::new(Self { table, keys, rings, ring_words }))
    }

    /// Bytes of address space; what no key has touched is not taken from the system.
    pub fn bytes(&self) -> usize {
        let rings = self.rings.as_ref().map_or(0, |rings| size_of_val(rings.words()));
        self.table.bytes() + rings
    }

    /// How many keys it was made for.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// How many keys it holds at most.
    pub fn cells(&self) -> usize {
        self.table.cells()
    }

    pub(super) fn ring(&self, cell: usize) -> &[AtomicU64] {
        let words = self.rings.as_ref().map(Mapping::words).unwrap_or_default();
        let start = cell.saturating_mul(self.ring_words);
        words.get(start..start.saturating_add(self.ring_words)).unwrap_or_default()
    }

    fn cell(&self, hash: u128, now_ns: u64) -> Cell<'_> {
        self.table.find(hash, now_ns, |cell| {
            let used = self.ring(cell).iter().filter(|word| word.load(Relaxed) != 0);
            used.for_each(|word| word.store(0, Relaxed));
        })
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Memory").field("cells", &self.cells()).finish_non_exhaustive()
    }
}

impl Terms {
    /// Words that a key needs besides those of its cell.
    pub fn ring_words(&self) -> usize {
        match self {
            Self::SlidingLog(log) => usize::try_from(log.limit).unwrap_or(usize::MAX),
            _ => 0,
        }
    }
}

impl Counter {
    /// A counter by these terms in this memory.
    pub fn new(terms: Terms, memory: Arc<Memory>) -> Self {
        Self { terms, memory }
    }

    /// Where it is kept.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Takes `cost` of the limit of a key.
    pub fn take(&self, hash: u128, cost: u32, moment: &Moment) -> Verdict {
        // Reading a clock waits for every load that was begun, but not for this one.
        self.memory.table.prefetch(hash);
        let now_ns = moment.boot().0;
        match &self.terms {
            Terms::TokenBucket(bucket) => self.of(hash, now_ns, |cell| {
                in_bucket(cell, |word| bucket.take(word, now_ns, cost.into()))
            }),
            Terms::LeakyBucket(bucket) => self.of(hash, now_ns, |cell| {
                in_bucket(cell, |word| bucket.take(word, now_ns, cost.into()))
            }),
            Terms::FixedWindow(limit, window_ns) => {
                let window = Window::at(now_ns, *window_ns);
                self.of(hash, now_ns, |cell| {
                    in_window(cell, (limit.limit, window, now_ns), |word| {
                        limit.take(word, window, cost)
                    })
                })
            }
            Terms::Quota(limit, period) => {
                let window = calendar::window(*period, moment.utc());
                self.of(hash, now_ns, |cell| {
                    in_window(cell, (limit.limit, window, now_ns), |word| {
                        limit.take(word, window, cost)
                    })
                })
            }
            Terms::SlidingWindow(limit) => self.of(hash, now_ns, |cell| {
                sliding(cell, limit, now_ns, cost)
                    .inspect(|it| keep(cell, it, (limit.limit, limit.window_ns), now_ns))
            }),
            Terms::SlidingLog(log) => self.of(hash, now_ns, |cell| {
                in_ring(cell, log, self.memory.ring(cell.number), (now_ns, cost))
            }),
        }
    }

    /// Learns what all gateways together have taken of a key of a token bucket or quota: what they leave, and when all
    /// of it is there again. Nothing that was counted here is forgotten.
    pub fn raise(&self, hash: u128, (remaining, reset): (u64, Duration), moment: &Moment) {
        let now_ns = moment.boot().0;
        let reset_ns = u64::try_from(reset.as_nanos()).unwrap_or(u64::MAX);
        let nothing = Verdict { admitted: true, remaining, reset_ns, wait_ns: 0 };
        match &self.terms {
            Terms::TokenBucket(_) => {
                let full_at = now_ns.saturating_add(reset_ns);
                self.of(hash, now_ns, |cell| in_bucket(cell, |word| (word.max(full_at), nothing)));
            }
            Terms::Quota(limit, period) => {
                let window = calendar::window(*period, moment.utc());
                // Around the end of a period two clocks may mean different ones.
                if reset_ns.abs_diff(window.left_ns) > window.next_ns / 2 {
                    return;
                }
                let left = u32::try_from(remaining).unwrap_or(u32::MAX);
                let gone = limit.limit.saturating_sub(left);
                let raise = |word| {
                    let (index, count) = split(word);
                    let count = if index == window.index { count.max(gone) } else { gone };
                    let raised =
                        if index > window.index { word } else { join(window.index, count) };
                    (raised, nothing)
                };
                let kept = (limit.limit, window, now_ns);
                self.of(hash, now_ns, |cell| in_window(cell, kept, raise));
            }
            _ => {}
        }
    }

    /// What `take` makes of the cell of a key, once that is the key's until the end.
    fn of(&self, hash: u128, now_ns: u64, take: impl Fn(Cell<'_>) -> Option<Verdict>) -> Verdict {
        loop {
            if let Some(verdict) = take(self.memory.cell(hash, now_ns)) {
                return verdict;
            }
        }
    }
}

/// The time at which a bucket is full is the time at which its key counts no more.
fn in_bucket(cell: Cell<'_>, take: impl Fn(u64) -> (u64, Verdict)) -> Option<Verdict> {
    exchange(cell, cell.until(), take)
}

/// By a limit of so many in each window, at a time.
fn in_window(
    cell: Cell<'_>,
    (limit, window, now_ns): (u32, Window, u64),
    take: impl Fn(u64) -> (u64, Verdict),
) -> Option<Verdict> {
    let taken = exchange(cell, cell.first(), take);
    taken.inspect(|it| keep(cell, it, (limit, window.next_ns), now_ns))
}

/// Exchanges a word for what `take` makes of it; `None` when the cell went to another key meanwhile.
fn exchange(
    cell: Cell<'_>,
    word: &AtomicU64,
    take: impl Fn(u64) -> (u64, Verdict),
) -> Option<Verdict> {
    let mut seen = word.load(Acquire);
    loop {
        let (next, verdict) = take(seen);
        if !cell.is_held() {
            return None;
        }
        // What is refused changes nothing that the next one would not see by itself.
        if !verdict.admitted {
            return Some(verdict);
        }
        match word.compare_exchange_weak(seen, next, AcqRel, Acquire) {
            Ok(_) => return Some(verdict),
            Err(now) => seen = now,
        }
    }
}

fn sliding(cell: Cell<'_>, limit: &SlidingWindow, now_ns: u64, cost: u32) -> Option<Verdict> {
    loop {
        let current = cell.first().load(Acquire);
        let seen = Words { current, previous: cell.second().load(Acquire) };
        let (next, verdict) = limit.take(seen, now_ns, cost);
        if !cell.is_held() {
            return None;
        }
        if !verdict.admitted {
            return Some(verdict);
        }
        // A window is over for all once its count stands in the second word; only then the next one begins.
        if next.previous != seen.previous {
            cell.second().fetch_max(next.previous, AcqRel);
        }
        if cell.first().compare_exchange(current, next.current, AcqRel, Relaxed).is_ok() {
            return Some(verdict);
        }
    }
}

fn in_ring(
    cell: Cell<'_>,
    log: &SlidingLog,
    words: &[AtomicU64],
    (now_ns, cost): (u64, u32),
) -> Option<Verdict> {
    let word = |place: u64| usize::try_from(place).ok().and_then(|place| words.get(place));
    let place = |place: u64| word(place).map_or(0, |word| word.load(Acquire));
    let now_us = now_ns / 1000;
    loop {
        let head = cell.first().load(Acquire);
        let is_idle = cell.until().load(Acquire) <= now_ns;
        let verdict = log.take(&Ring { head, place, is_idle }, now_us, cost);
        if !cell.is_held() {
            return None;
        }
        if !verdict.admitted {
            return Some(verdict);
        }
        // Before the head moves, so that who sees it moved sees the ring in use.
        keep(cell, &verdict, (log.limit, log.window_us.saturating_mul(1000)), now_ns);
        let next = head + u64::from(cost);
        if cell.first().compare_exchange(head, next, AcqRel, Relaxed).is_err() {
            continue;
        }
        for position in head..next {
            let Some(word) = word(log.place(position)) else { continue };
            word.store(log.word(position, now_us), Release);
        }
        return Some(verdict);
    }
}

/// Keeps the cell for its key as long as it counts, and longer the more of the limit was taken: of keys that come at
/// the same time those that took little go first.
fn keep(cell: Cell<'_>, verdict: &Verdict, (limit, span_ns): (u32, u64), now_ns: u64) {
    /// So few that most requests of a key find its time as it should be.
    const LEVELS: u64 = 16;
    if !verdict.admitted {
        return;
    }
    let limit = u64::from(limit);
    let taken = limit.saturating_sub(verdict.remaining).saturating_mul(LEVELS);
    let level = taken.checked_div(limit).unwrap_or_default();
    let end = now_ns.saturating_add(verdict.reset_ns);
    let until = end.saturating_add(span_ns / LEVELS * level);
    if cell.until().load(Relaxed) < until {
        cell.until().fetch_max(until, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::mix;
    use crate::base::time::{BootTime, Now, UtcMillis};
    use std::sync::atomic::AtomicU32;

    const SECOND: u64 = 1_000_000_000;

    fn hash(key: u64) -> u128 {
        u128::from(mix(key)) << 64 | u128::from(mix(!key))
    }

    fn all(limit: u32) -> [Terms; 6] {
        let interval_ns = SECOND / u64::from(limit);
        [
            Terms::TokenBucket(TokenBucket { interval_ns, burst: limit.into() }),
            Terms::LeakyBucket(LeakyBucket { interval_ns, queue: u64::from(limit) - 1 }),
            Terms::FixedWindow(FixedWindow { limit }, SECOND),
            Terms::SlidingWindow(SlidingWindow { limit, window_ns: SECOND }),
            Terms::SlidingLog(SlidingLog { limit, window_us: SECOND / 1000 }),
            Terms::Quota(FixedWindow { limit }, Period::Day),
        ]
    }

    fn counter(terms: Terms, keys: usize) -> Counter {
        Counter::new(terms, Memory::new(keys, &terms).unwrap())
    }

    fn at(boot_ns: u64) -> Moment {
        let utc = UtcMillis(1_800_000_000_000 + boot_ns / 1_000_000);
        Moment::at(Now { boot: BootTime(boot_ns), utc })
    }

    #[test]
    fn each_algorithm_admits_its_limit_for_each_key_and_then_says_when() {
        for terms in all(5) {
            let counter = counter(terms, 100);
            for key in 0..20 {
                for left in (0..5).rev() {
                    let verdict = counter.take(hash(key), 1, &at(10 * SECOND));
                    assert!(verdict.admitted, "{terms:?}");
                    assert_eq!(verdict.remaining, left, "{terms:?}");
                }
                let refused = counter.take(hash(key), 1, &at(10 * SECOND));
                assert!(!refused.admitted && refused.remaining == 0, "{terms:?}");
                let later = at(10 * SECOND + refused.wait_ns);
                assert!(counter.take(hash(key), 1, &later).admitted, "{terms:?}");
            }
        }
    }

    /// Threads whose clocks pass through the same second at once, the tightest race there is.
    #[test]
    fn never_more_than_the_limit_is_admitted_whatever_the_threads() {
        const LIMIT: u32 = 1000;
        for terms in all(LIMIT) {
            for cost in [1, 3] {
                let counter = counter(terms, 8);
                let admitted = [const { AtomicU32::new(0) }; 3];
                std::thread::scope(|scope| {
                    for _ in 0..4 {
                        scope.spawn(|| {
                            for turn in 0..3000 {
                                let key = turn % admitted.len();
                                let verdict =
                                    counter.take(hash(key as u64), cost, &at(10 * SECOND));
                                let taken = if verdict.admitted { cost } else { 0 };
                                admitted[key].fetch_add(taken, Relaxed);
                            }
                        });
                    }
                });
                for count in admitted {
                    let most = LIMIT - LIMIT % cost;
                    assert_eq!(count.into_inner(), most, "{terms:?} at a cost of {cost}");
                }
            }
        }
    }

    /// Time moves on while threads count, each at its own pace, over the ends of windows.
    #[test]
    fn over_the_end_of_windows_no_thread_adds_a_window_of_its_own() {
        const LIMIT: u32 = 50;
        const SPAN_NS: u64 = 4 * SECOND;
        for terms in all(LIMIT) {
            let counter = counter(terms, 8);
            let admitted = AtomicU32::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for step in 0..20_000 {
                            let now = 10 * SECOND + step * (SPAN_NS / 20_000);
                            let verdict = counter.take(hash(1), 1, &at(now));
                            admitted.fetch_add(u32::from(verdict.admitted), Relaxed);
                        }
                    });
                }
            });
            // What four seconds bring, and what is there at their beginning.
            let most = if matches!(terms, Terms::Quota(..)) { LIMIT } else { 5 * LIMIT };
            let admitted = admitted.into_inner();
            assert!(admitted <= most, "{terms:?}: {admitted} of {most}");
            assert!(admitted >= most / 2, "{terms:?}: {admitted} of {most}");
        }
    }

    #[test]
    fn a_flood_of_fresh_keys_takes_nothing_from_heavy_users() {
        for terms in all(10) {
            let counter = counter(terms, 500);
            let now = 10 * SECOND;
            for key in 0..50 {
                (0..10).for_each(|_| assert!(counter.take(hash(key), 1, &at(now)).admitted));
            }
            for key in 1000..40_000 {
                counter.take(hash(key), 1, &at(now + key));
            }
            let kept =
                (0..50).filter(|key| !counter.take(hash(*key), 1, &at(now + 50_000)).admitted);
            assert_eq!(kept.count(), 50, "{terms:?}");
        }
    }

    #[test]
    fn a_quota_is_of_the_calendar_and_not_of_the_uptime() {
        let counter = counter(Terms::Quota(FixedWindow { limit: 1 }, Period::Day), 10);
        let midnight = 20_000 * 86_400_000;
        let at = |boot, utc| Moment::at(Now { boot: BootTime(boot), utc: UtcMillis(utc) });
        assert!(counter.take(hash(1), 1, &at(1, midnight - 1000)).admitted);
        let refused = counter.take(hash(1), 1, &at(2, midnight - 1000));
        assert_eq!((refused.admitted, refused.wait_ns), (false, SECOND));
        assert!(counter.take(hash(1), 1, &at(3, midnight)).admitted);
        assert!(!counter.take(hash(1), 1, &at(4, midnight - 1000)).admitted, "the clock went back");
    }
}
