//! What is in flight, by key: a count a key that has any, in a table of bounded size that all workers share without
//! waiting for each other.
//!
//! A word holds a tag, 44 bits of the key's hash, and a count of 20; a word of zero is free. A key lies in one of the
//! 16 words of the set that its hash names, and only as long as something of it is in flight, so nothing is ever pushed
//! out. Two threads that begin with a key at once may put it into two words; the sum is what counts.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use crate::limit::table::memory;
use crate::rules::tables::mapping::Mapping;

const SET_WORDS: usize = 16;
const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// The most that a key may have in flight.
pub const LIMIT_MAX: u32 = (1 << COUNT_BITS) - 1;

/// Words for each key that there is to be room for: half of them are free then, and a set of 16 as good as never full.
const WORDS_PER_KEY: usize = 2;

/// Counts of what is in flight.
pub struct Held {
    words: Mapping,
    keys: usize,
    sets: usize,
}

/// One that is in flight, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    held: Arc<Held>,
    number: usize,
}

/// Why there is no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The key has as many as it may.
    Limit,
    /// More keys have something in flight than there is room for.
    Room,
}

impl Held {
    /// Room for so many keys at once. Memory that no key has touched is not taken from the system.
    pub fn new(keys: usize) -> io::Result<Arc<Self>> {
        let sets = keys.saturating_mul(WORDS_PER_KEY).div_ceil(SET_WORDS).max(1);
        let bytes = sets.checked_mul(SET_WORDS * size_of::<u64>());
        let words = memory(bytes.ok_or(io::ErrorKind::OutOfMemory)?)?;
        Ok(Arc::new(Self { words, keys, sets }))
    }

    /// How many keys it was made for.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// The memory of all words.
    pub fn bytes(&self) -> usize {
        self.sets * SET_WORDS * size_of::<u64>()
    }

    /// One more of the key of this hash, if that makes at most `limit`; and how many more there could be.
    pub fn enter(self: &Arc<Self>, hash: u128, limit: u32) -> Result<(Permit, u64), Refused> {
        let limit = u64::from(limit.min(LIMIT_MAX));
        let tag = ((hash >> 64) as u64 >> COUNT_BITS).max(1);
        let set = (((hash & u128::from(u64::MAX)) * self.sets as u128) >> 64) as usize;
        let words = self.set(set);
        let way = loop {
            match Self::add(words, tag, limit)? {
                Some(way) => break way,
                None => std::hint::spin_loop(),
            }
        };
        let permit = Permit { held: Arc::clone(self), number: set * SET_WORDS + way };
        // Whoever began with the key at the same time has a word of his own.
        let own =
            words.iter().map(|word| word.load(SeqCst)).filter(|word| word >> COUNT_BITS == tag);
        let count: u64 = own.map(|word| word & COUNT_MASK).sum();
        let left = limit.checked_sub(count).ok_or(Refused::Limit)?;
        Ok((permit, left))
    }

    /// Adds one to the word of the tag, or begins one; `None` when somebody else was faster.
    fn add(words: &[AtomicU64], tag: u64, limit: u64) -> Result<Option<usize>, Refused> {
        let mut free = None;
        for (way, word) in words.iter().enumerate() {
            let seen = word.load(SeqCst);
            if seen >> COUNT_BITS == tag {
                if seen & COUNT_MASK >= limit {
                    return Err(Refused::Limit);
                }
                let added = word.compare_exchange(seen, seen + 1, SeqCst, SeqCst);
                return Ok(added.is_ok().then_some(way));
            }
            if seen == 0 && free.is_none() {
                free = Some((way, word));
            }
        }
        let (way, word) = free.ok_or(Refused::Room)?;
        if limit == 0 {
            return Err(Refused::Limit);
        }
        let begun = word.compare_exchange(0, tag << COUNT_BITS | 1, SeqCst, SeqCst);
        Ok(begun.is_ok().then_some(way))
    }

    fn set(&self, set: usize) -> &[AtomicU64] {
        let (sets, _) = self.words.words().as_chunks::<SET_WORDS>();
        sets.get(set).map(<[AtomicU64; SET_WORDS]>::as_slice).unwrap_or_default()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(word) = self.held.words.words().get(self.number) else { return };
        let leave = |seen: u64| match seen & COUNT_MASK {
            0 | 1 => Some(0),
            _ => Some(seen - 1),
        };
        // It never declines.
        word.fetch_update(SeqCst, SeqCst, leave).ok();
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Held").field("sets", &self.sets).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::mix;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::sync::atomic::AtomicU32;

    fn hash(key: u64) -> u128 {
        u128::from(mix(key)) << 64 | u128::from(mix(!key))
    }

    #[test]
    fn a_permit_counts_until_it_is_dropped() {
        let held = Held::new(100).unwrap();
        let (first, left) = held.enter(hash(1), 2).unwrap();
        assert_eq!(left, 1);
        let second = held.enter(hash(1), 2).unwrap().0;
        assert_eq!(held.enter(hash(1), 2).unwrap_err(), Refused::Limit);
        assert!(held.enter(hash(2), 1).is_ok(), "another key");
        drop((first, second));
        assert!(held.words.words().iter().all(|word| word.load(SeqCst) == 0));
    }

    #[test]
    fn no_room_is_said_and_nobody_is_pushed_out() {
        let held = Held::new(1).unwrap();
        let permits: Vec<_> = (0..16).map(|key| held.enter(hash(key), 1).unwrap()).collect();
        assert_eq!(held.enter(hash(16), 1).unwrap_err(), Refused::Room);
        assert_eq!(held.enter(hash(3), 1).unwrap_err(), Refused::Limit);
        drop(permits);
        assert!(held.enter(hash(16), 1).is_ok());
    }

    #[test]
    fn never_more_than_the_limit_are_in_flight() {
        const LIMIT: u32 = 3;
        let held = Held::new(4).unwrap();
        let (active, admitted) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let permits = [(); 2].map(|()| held.enter(hash(7), LIMIT));
                        let count = permits.iter().flatten().count() as u32;
                        admitted.fetch_add(count, SeqCst);
                        assert!(active.fetch_add(count, SeqCst) + count <= LIMIT);
                        active.fetch_sub(count, SeqCst);
                    }
                });
            }
        });
        assert!(admitted.into_inner() > 0);
        assert!(held.words.words().iter().all(|word| word.load(SeqCst) == 0));
    }

    proptest! {
        #[test]
        fn agrees_with_a_map_of_counts(
            limit in 0u32..4,
            steps in proptest::collection::vec((0u64..6, any::<bool>()), 1..200),
        ) {
            let held = Held::new(1000).unwrap();
            let mut model: HashMap<u64, Vec<Permit>> = HashMap::new();
            for (key, leaves) in steps {
                let permits = model.entry(key).or_default();
                if leaves {
                    permits.pop();
                    continue;
                }
                match held.enter(hash(key), limit) {
                    Ok((permit, left)) => {
                        permits.push(permit);
                        prop_assert_eq!(left, u64::from(limit) - permits.len() as u64);
                    }
                    Err(refused) => {
                        prop_assert_eq!(refused, Refused::Limit);
                        prop_assert_eq!(permits.len(), limit as usize);
                    }
                }
            }
        }
    }
}
