//! What is remembered of keys: a table of bounded size that all workers share. A key that is there is found by reading
//! one cache line, mostly, and nothing that is ever done here waits for somebody else.
//!
//! A cell is four words: the tag, which is half of the key's hash; the time at which nothing of the key counts any
//! more, by which cells are given to other keys; and two words that its algorithm has for itself. Eight cells are a
//! set, and a key lies in one of two sets that its hash names, in the second only if the first was full of cells that
//! still counted.
//!
//! A new key takes the cell that stops counting first: one that was never used, else one that counts no more, else the
//! one that is soonest back to full. So whoever floods the table with keys pushes out his own, and of those that had
//! much taken from them the last.
//!
//! ```text
//!            claim                     no rival is left
//!   any tag ───────▶ pending (ours) ───────────────────▶ live
//!                        │    ▲                            │
//!      a rival was first │    └── killed by a rival        │ claimed for another key
//!                        ▼                                 ▼
//!                      void                             pending (theirs)
//! ```
//!
//! Two threads that claim cells for one key at once must not both succeed, or it would have its limit twice. So a claim
//! is first pending; then whoever made it looks for others of the same key. To one that is live, or pending in an
//! earlier place, it gives way; one that is pending in a later place it kills. Only the claimant itself gives a cell
//! back, so nobody writes to what has become another's.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

use crate::rules::tables::mapping::Mapping;

const WAYS: usize = 8;
const CELL_WORDS: usize = 4;
const SET_WORDS: usize = WAYS * CELL_WORDS;
/// Cells that share a cache line of 64 bytes.
const LINE_CELLS: usize = 2;

/// Cells for each key that there is to be room for: with half of the cells in use, one key in five thousand finds both
/// its sets full.
const CELLS_PER_KEY: usize = 2;

// The two lowest bits of a tag say what it is; a hash has none of its own there.
const KIND: u64 = 0b11;
const LIVE: u64 = 0b11;
const PENDING: u64 = 0b10;
/// Given back. It is not zero, because a set with a cell that was never used has no key in its second set.
const VOID: u64 = 0b001;
/// Killed by a rival; its claimant makes it void.
const KILLED: u64 = 0b101;

/// A table of so many bytes lies in huge pages, for the CPU knows too few small ones by heart. What is smaller is taken
/// from the system in small pages, as keys come: most limits have few.
const HUGE_PAGES_FROM_BYTES: usize = 16 << 20;

/// Memory for what is looked up at random.
pub(super) fn memory(bytes: usize) -> io::Result<Mapping> {
    let memory = Mapping::anonymous(bytes)?;
    Ok(if bytes < HUGE_PAGES_FROM_BYTES { memory } else { memory.in_huge_pages() })
}

/// Cells of keys.
pub struct Table {
    words: Mapping,
    sets: usize,
}

/// The cell of a key, until another key needs it.
#[derive(Clone, Copy, Debug)]
pub struct Cell<'t> {
    words: &'t [AtomicU64; CELL_WORDS],
    live: u64,
    /// Its number in the table.
    pub number: usize,
}

impl Cell<'_> {
    /// Nanoseconds of the boot clock at which nothing of the key counts any more.
    pub fn until(&self) -> &AtomicU64 {
        let [_, until, ..] = self.words;
        until
    }

    /// The first word of the algorithm, zero in a new cell.
    pub fn first(&self) -> &AtomicU64 {
        let [_, _, first, _] = self.words;
        first
    }

    /// The second word of the algorithm, zero in a new cell.
    pub fn second(&self) -> &AtomicU64 {
        let [.., second] = self.words;
        second
    }

    /// Whether it is still the key's. Asked between reading a word and exchanging it.
    pub fn is_held(&self) -> bool {
        // What was read before must not have come from the next key.
        fence(Acquire);
        self.tag().load(Relaxed) == self.live
    }

    fn tag(&self) -> &AtomicU64 {
        let [tag, ..] = self.words;
        tag
    }
}

/// Where a key may lie.
#[derive(Clone, Copy)]
struct Places {
    live: u64,
    first: usize,
    second: usize,
    /// The way that is looked at first.
    home: usize,
}

impl Table {
    /// A table for so many keys. Memory that no key has touched is not taken from the system.
    pub fn new(keys: usize) -> io::Result<Self> {
        let sets = keys.saturating_mul(CELLS_PER_KEY).div_ceil(WAYS).max(1);
        let bytes = sets.checked_mul(SET_WORDS * size_of::<u64>());
        let bytes = bytes.ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { words: memory(bytes)?, sets })
    }

    /// How many keys it holds at most.
    pub fn cells(&self) -> usize {
        self.sets * WAYS
    }

    /// The memory of all cells.
    pub fn bytes(&self) -> usize {
        self.cells() * CELL_WORDS * size_of::<u64>()
    }

    /// Has the cell of the key of this hash brought from memory, while something else is done.
    pub fn prefetch(&self, hash: u128) {
        let Places { first, home, .. } = self.places(hash);
        // One key in four finds the two cells of its first line taken and lies in the next.
        for way in [home, home + LINE_CELLS] {
            self.words.prefetch(first * SET_WORDS + way % WAYS * CELL_WORDS);
        }
    }

    /// The cell of the key of this hash, claimed if the key has none: it stops counting at `now_ns` then, and `clear`
    /// was called with its number to clear what is kept elsewhere.
    pub fn find(&self, hash: u128, now_ns: u64, clear: impl Fn(usize)) -> Cell<'_> {
        let places = self.places(hash);
        loop {
            if let Some(cell) = self.look_up(places) {
                return cell;
            }
            if let Some(cell) = self.claim(places, now_ns, &clear) {
                return cell;
            }
            std::hint::spin_loop();
        }
    }

    /// The cell of the key of this hash, if it has one.
    pub fn known(&self, hash: u128) -> Option<Cell<'_>> {
        self.look_up(self.places(hash))
    }

    fn places(&self, hash: u128) -> Places {
        let [low, high] = [hash, hash >> 64].map(|half| half as u64);
        let spread = |half: u64| ((u128::from(half) * self.sets as u128) >> 64) as usize;
        // The halves of the low word choose the two sets, and its last bits the pair of cells that share a line.
        let (first, second) = (spread(low), spread(low.rotate_left(32)));
        Places { live: high | LIVE, first, second, home: low as usize & (WAYS - LINE_CELLS) }
    }

    fn look_up(&self, places: Places) -> Option<Cell<'_>> {
        let mut was_never_full = false;
        for cell in self.set(places.first, places) {
            let tag = cell.tag().load(Acquire);
            if tag == places.live {
                return Some(cell);
            }
            was_never_full |= tag == 0;
        }
        if was_never_full {
            return None;
        }
        self.set(places.second, places).find(|cell| cell.tag().load(Acquire) == places.live)
    }

    /// Takes a cell for the key, unless somebody else does or is in the way.
    fn claim(&self, places: Places, now_ns: u64, clear: &impl Fn(usize)) -> Option<Cell<'_>> {
        let (cell, seen) = self.victim(places, now_ns)?;
        let pending = places.live & !KIND | PENDING;
        cell.tag().compare_exchange(seen, pending, SeqCst, Relaxed).ok()?;
        cell.first().store(0, Relaxed);
        cell.second().store(0, Relaxed);
        clear(cell.number);
        cell.until().store(now_ns, Relaxed);
        let is_first = !self.gives_way(cell, places, pending);
        if is_first && cell.tag().compare_exchange(pending, places.live, SeqCst, Relaxed).is_ok() {
            return Some(cell);
        }
        cell.until().store(0, Relaxed);
        cell.tag().store(VOID, Release);
        None
    }

    /// The cell that stops counting first, with its tag.
    fn victim(&self, places: Places, now_ns: u64) -> Option<(Cell<'_>, u64)> {
        let soonest = |set| {
            let cells = self.set(set, places);
            let cells = cells.map(|cell| (cell, cell.tag().load(Acquire)));
            let free = cells.filter(|(_, tag)| tag & KIND != PENDING && *tag != KILLED);
            free.map(|(cell, tag)| (cell.until().load(Relaxed), cell, tag)).min_by_key(|it| it.0)
        };
        let first = soonest(places.first);
        let counts = first.is_none_or(|(until, ..)| until > now_ns);
        let second = if counts { soonest(places.second) } else { None };
        let (_, cell, tag) = first.into_iter().chain(second).min_by_key(|it| it.0)?;
        Some((cell, tag))
    }

    /// Whether a rival of the same key goes before the claim of `own`. One that comes after it is killed.
    fn gives_way(&self, own: Cell<'_>, places: Places, pending: u64) -> bool {
        let sets = [Some(places.first), Some(places.second).filter(|set| *set != places.first)];
        let cells = sets.into_iter().flatten().flat_map(|set| self.set(set, places));
        for rival in cells.filter(|cell| cell.number != own.number) {
            let tag = rival.tag().load(SeqCst);
            if tag == places.live || tag == pending && rival.number < own.number {
                return true;
            }
            // It is no longer pending if this fails: live, or given up.
            let kill = || rival.tag().compare_exchange(pending, KILLED, SeqCst, SeqCst);
            if tag == pending && kill() == Err(places.live) {
                return true;
            }
        }
        false
    }

    /// The cells of a set, from the key's home on.
    fn set(&self, set: usize, places: Places) -> impl Iterator<Item = Cell<'_>> {
        let (sets, _) = self.words.words().as_chunks::<SET_WORDS>();
        let (cells, _) = sets.get(set).map(|set| set.as_chunks::<CELL_WORDS>()).unwrap_or_default();
        let (live, home) = (places.live, places.home);
        let ways = (0..WAYS).map(move |way| (way + home) % WAYS);
        ways.filter_map(move |way| {
            cells.get(way).map(|words| Cell { words, live, number: set * WAYS + way })
        })
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Table").field("cells", &self.cells()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::mix;
    use std::collections::HashSet;
    use std::sync::Barrier;

    fn hash(key: u64) -> u128 {
        u128::from(mix(key)) << 64 | u128::from(mix(!key))
    }

    #[test]
    fn a_key_keeps_its_cell() {
        let table = Table::new(1000).unwrap();
        let mut cells = HashSet::new();
        for key in 0..1000 {
            let cell = table.find(hash(key), 1, |_| {});
            assert_eq!(cell.first().swap(key + 1, Relaxed), 0);
            cell.until().store(10, Relaxed);
            assert!(cells.insert(cell.number), "one cell for two keys");
        }
        for key in 0..1000 {
            let cell = table.find(hash(key), 1, |_| panic!("a live key is claimed again"));
            assert_eq!(cell.first().load(Relaxed), key + 1);
        }
    }

    #[test]
    fn a_cell_costs_at_most_64_bytes_a_key() {
        for keys in [1000, 100_000, 1_000_000] {
            assert!(Table::new(keys).unwrap().bytes() <= 64 * keys, "{keys} keys");
        }
    }

    #[test]
    fn those_that_count_no_more_go_first() {
        let table = Table::new(4).unwrap();
        for key in 0..8 {
            let until = if key == 3 { 5 } else { 100 };
            table.find(hash(key), 1, |_| {}).until().store(until, Relaxed);
        }
        let cleared = std::cell::Cell::new(None);
        let cell = table.find(hash(99), 10, |number| cleared.set(Some(number)));
        assert_eq!(cleared.get(), Some(cell.number));
        cell.until().store(100, Relaxed);
        for key in (0..8).filter(|key| *key != 3) {
            table.find(hash(key), 10, |_| panic!("{key} still counted"));
        }
    }

    #[test]
    fn a_flood_of_keys_does_not_take_the_state_of_heavy_users() {
        const HEAVY: u64 = 100;
        let table = Table::new(1000).unwrap();
        for key in 0..HEAVY {
            table.find(hash(key), 1, |_| {}).until().store(1_000_000, Relaxed);
        }
        for key in HEAVY..100_000 {
            table.find(hash(key), 2, |_| {}).until().store(1000, Relaxed);
        }
        for key in 0..HEAVY {
            table.find(hash(key), 3, |_| panic!("{key} was pushed out"));
        }
    }

    /// All threads want the same new keys at once, in a table where cells change hands all the time.
    #[test]
    fn no_key_is_live_twice_whoever_claims_it() {
        const THREADS: usize = 4;
        const ROUNDS: u64 = 3000;
        let table = Table::new(4).unwrap();
        let barrier = Barrier::new(THREADS);
        let found = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        let claim = |round| {
                            barrier.wait();
                            // In a round of its own nothing counts any more.
                            let cell = table.find(hash(round), round * 10, |_| {});
                            cell.until().fetch_max(round * 10 + 5, Relaxed);
                            cell.number
                        };
                        (1..ROUNDS).map(claim).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        for one in &found {
            assert_eq!(*one, found[0]);
        }
        for round in 1..ROUNDS {
            let places = table.places(hash(round));
            let cells = [places.first, places.second];
            let cells: HashSet<_> = cells.into_iter().collect();
            let cells = cells.into_iter().flat_map(|set| table.set(set, places));
            assert!(cells.filter(Cell::is_held).count() <= 1);
        }
    }
}
