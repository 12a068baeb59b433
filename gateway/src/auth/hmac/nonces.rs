//! Which nonces were used: each is accepted once for as long as its signature could be accepted at all. Never forgets
//! one early: a full table takes no more, and a moment whose nonces are forgotten is too old for good, whatever a
//! clock or a new configuration says later.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};

use super::successor::Successor;

/// Parts of the table with a lock of their own, so that workers hardly ever meet. Taken for each signature that
/// verified, for about as long as one look-up takes.
const SHARDS: usize = 64;

/// The name under which a nonce of a key is remembered: half of the SHA-256 of both, which nobody can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::auth) struct Nonce(pub(in crate::auth) [u8; 16]);

impl Nonce {
    /// The name of a nonce that came with the key of this id, which has no byte 0 in it.
    pub(in crate::auth) fn of(key: &str, nonce: &str) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(key.as_bytes());
        context.update(&[0]);
        context.update(nonce.as_bytes());
        let mut name = [0; 16];
        name.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Self(name)
    }
}

/// Why a nonce is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::auth) enum Refused {
    /// It was used already.
    Used,
    /// What was used in its second is not known any more.
    Forgotten,
    /// The table is full.
    Full,
    /// A successor decides from now on.
    Handed,
    /// Redis decides, and cannot be asked.
    Away,
}

/// The nonces of one authenticator, shared by all workers of the process.
#[derive(Debug)]
pub(in crate::auth) struct Nonces {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    /// Whoever decides, if it can be asked. Looked at by those who were told [`Refused::Handed`].
    successor: Mutex<Option<Successor>>,
}

#[derive(Debug)]
struct Shard {
    /// The second in which each was signed.
    used: HashMap<Nonce, u64>,
    oldest: BinaryHeap<Reverse<(u64, Nonce)>>,
    /// Nonces that were signed before this second may have been forgotten.
    known_from: u64,
    /// A successor was told of them.
    is_handed: bool,
}

impl Nonces {
    /// A table that knows nothing of what was used before the second `started`.
    pub(in crate::auth) fn new(started: u64) -> Self {
        let shard = || {
            Mutex::new(Shard {
                used: HashMap::new(),
                oldest: BinaryHeap::new(),
                known_from: started,
                is_handed: false,
            })
        };
        let shards = (0..SHARDS).map(|_| shard()).collect();
        Self { shards, hasher: RandomState::new(), successor: Mutex::default() }
    }

    /// Whether a nonce that was signed in the second `signed` would be accepted. It is asked before the costly part;
    /// what decides is [`Self::remember`].
    pub(in crate::auth) fn check(&self, nonce: Nonce, signed: u64) -> Result<(), Refused> {
        self.with(nonce, |shard| shard.check(nonce, signed))
    }

    /// Accepts a nonce, once. What was signed before `expired` is forgotten; of the others the table holds `max`.
    pub(in crate::auth) fn remember(
        &self,
        nonce: Nonce,
        signed: u64,
        expired: u64,
        max: usize,
    ) -> Result<(), Refused> {
        self.with(nonce, |shard| {
            shard.check(nonce, signed)?;
            shard.forget(expired);
            if shard.used.len() >= max.div_ceil(SHARDS) {
                return Err(Refused::Full);
            }
            match shard.used.entry(nonce) {
                Entry::Occupied(_) => return Err(Refused::Used),
                Entry::Vacant(entry) => entry.insert(signed),
            };
            shard.oldest.push(Reverse((signed, nonce)));
            Ok(())
        })
    }

    /// All that is known: from which second on, and what was used.
    pub(in crate::auth) fn all(&self) -> (u64, Vec<(Nonce, u64)>) {
        self.each(|_| {})
    }

    /// The same, for a successor. From now on nothing is accepted here.
    pub(in crate::auth) fn hand_over(
        &self,
        successor: Option<Successor>,
    ) -> (u64, Vec<(Nonce, u64)>) {
        *locked(&self.successor) = successor;
        self.each(|shard| shard.is_handed = true)
    }

    fn each(&self, change: impl Fn(&mut Shard)) -> (u64, Vec<(Nonce, u64)>) {
        let (mut known_from, mut used) = (0, Vec::new());
        for shard in &self.shards {
            let mut shard = locked(shard);
            change(&mut shard);
            known_from = known_from.max(shard.known_from);
            used.extend(shard.used.iter().map(|(nonce, signed)| (*nonce, *signed)));
        }
        (known_from, used)
    }

    /// Who decides, where that was handed over to somebody who can be asked.
    pub(in crate::auth) fn successor(&self) -> Option<Successor> {
        locked(&self.successor).clone()
    }

    /// Whether somebody else decides.
    pub(in crate::auth) fn is_handed(&self) -> bool {
        self.shards.iter().any(|shard| locked(shard).is_handed)
    }

    /// Knows what another table did: what was used, from the second `known_from` on. Nothing was accepted yet.
    pub(in crate::auth) fn take_over(&self, known_from: u64, used: &[(Nonce, u64)]) {
        self.know_from(|_| known_from);
        for (nonce, signed) in used {
            if let Some(shard) = self.shard(*nonce) {
                let mut shard = locked(shard);
                if shard.used.insert(*nonce, *signed).is_none() {
                    shard.oldest.push(Reverse((*signed, *nonce)));
                }
            }
        }
    }

    /// Refuses what was signed before the second `known_from`, and accepts what was not, handed over or not.
    pub(in crate::auth) fn begin_at(&self, known_from: u64) {
        self.know_from(|before| before.max(known_from));
    }

    fn know_from(&self, known_from: impl Fn(u64) -> u64) {
        for shard in &self.shards {
            let mut shard = locked(shard);
            shard.known_from = known_from(shard.known_from);
            shard.is_handed = false;
        }
        *locked(&self.successor) = None;
    }

    fn with<T>(
        &self,
        nonce: Nonce,
        work: impl FnOnce(&mut Shard) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        work(&mut locked(self.shard(nonce).ok_or(Refused::Full)?))
    }

    fn shard(&self, nonce: Nonce) -> Option<&Mutex<Shard>> {
        self.shards.get(self.hasher.hash_one(nonce) as usize % SHARDS)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    fn check(&self, nonce: Nonce, signed: u64) -> Result<(), Refused> {
        if self.is_handed {
            return Err(Refused::Handed);
        }
        if signed < self.known_from {
            return Err(Refused::Forgotten);
        }
        if self.used.contains_key(&nonce) { Err(Refused::Used) } else { Ok(()) }
    }

    fn forget(&mut self, expired: u64) {
        while let Some(Reverse((signed, nonce))) = self.oldest.peek().copied() {
            if signed >= expired {
                return;
            }
            self.oldest.pop();
            self.used.remove(&nonce);
            self.known_from = self.known_from.max(signed + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nonce(number: u8) -> Nonce {
        Nonce::of("key", &format!("nonce-{number}"))
    }

    #[test]
    fn a_nonce_is_accepted_once() {
        let nonces = Nonces::new(0);
        assert_eq!(nonces.remember(nonce(1), 100, 0, 1000), Ok(()));
        assert_eq!(nonces.remember(nonce(1), 100, 0, 1000), Err(Refused::Used));
        assert_eq!(nonces.check(nonce(1), 101), Err(Refused::Used));
        assert_eq!(nonces.check(nonce(2), 100), Ok(()));
        assert_ne!(Nonce::of("a", "b"), Nonce::of("b", "a"), "keys have nonces of their own");
    }

    #[test]
    fn what_was_used_before_the_start_is_not_known() {
        let nonces = Nonces::new(100);
        assert_eq!(nonces.remember(nonce(1), 99, 0, 1000), Err(Refused::Forgotten));
        assert_eq!(nonces.remember(nonce(1), 100, 0, 1000), Ok(()));
    }

    #[test]
    fn what_was_handed_over_is_accepted_by_neither_again() {
        let (old, new) = (Nonces::new(50), Nonces::new(200));
        for number in 0..100 {
            assert_eq!(old.remember(nonce(number), 100, 0, 1 << 20), Ok(()));
        }
        let (known_from, used) = old.hand_over(None);
        assert_eq!((known_from, used.len()), (50, 100));
        assert_eq!(old.remember(nonce(100), 100, 0, 1 << 20), Err(Refused::Handed));
        new.take_over(known_from, &used);
        for number in 0..100 {
            assert_eq!(new.remember(nonce(number), 100, 0, 1 << 20), Err(Refused::Used));
        }
        assert_eq!(new.remember(nonce(100), 100, 0, 1 << 20), Ok(()), "signed before the start");
        assert_eq!(new.remember(nonce(101), 49, 0, 1 << 20), Err(Refused::Forgotten));
        // The successor has ended: whatever it may have accepted is too old from now on.
        old.begin_at(101);
        assert_eq!(old.remember(nonce(100), 100, 0, 1 << 20), Err(Refused::Forgotten));
        assert_eq!(old.remember(nonce(100), 101, 0, 1 << 20), Ok(()));
    }

    #[test]
    fn a_full_table_refuses_and_forgets_nothing_early() {
        let nonces = Nonces::new(0);
        let max = SHARDS;
        let all: Vec<Nonce> = (0..255).map(nonce).collect();
        let taken: Vec<_> =
            all.iter().filter(|nonce| nonces.remember(**nonce, 100, 0, max).is_ok()).collect();
        assert!(taken.len() <= max && !taken.is_empty());
        assert!(all.iter().any(|nonce| nonces.remember(*nonce, 100, 0, max) == Err(Refused::Full)));
        for nonce in &taken {
            assert_eq!(nonces.check(**nonce, 100), Err(Refused::Used));
        }
        assert_eq!(nonces.remember(*taken[0], 200, 101, max), Err(Refused::Used), "still known");
        let fresh = Nonce::of("key", "fresh");
        assert_eq!(nonces.remember(fresh, 200, 101, max), Ok(()));
        assert_eq!(nonces.check(fresh, 200), Err(Refused::Used), "room after the old ones expired");
    }

    #[test]
    fn a_clock_that_jumps_or_a_larger_skew_brings_nothing_back() {
        let nonces = Nonces::new(0);
        let old = nonce(1);
        nonces.remember(old, 100, 0, 1 << 20).unwrap();
        // Time passes until the second is forgotten, in the shard of the nonce.
        let mut later = (0u32..).map(|number| Nonce::of("later", &number.to_string()));
        while nonces.check(old, 100) == Err(Refused::Used) {
            let accepted = nonces.remember(later.next().unwrap(), 1000, 500, 1 << 20);
            assert_eq!(accepted, Ok(()));
        }
        assert_eq!(nonces.check(old, 100), Err(Refused::Forgotten));
    }

    proptest! {
        /// Against a model that never forgets: whatever is accepted was not accepted before.
        #[test]
        fn nothing_is_accepted_twice(
            steps in prop::collection::vec((0u8..20, 0u64..50, 0u64..60), 1..400),
        ) {
            let nonces = Nonces::new(0);
            let mut accepted = std::collections::HashSet::new();
            for (number, signed, expired) in steps {
                let once = || nonces.remember(nonce(number), signed, expired, 640);
                if signed >= expired && once().is_ok() {
                    prop_assert!(accepted.insert((number, signed)), "{number} at {signed}");
                }
            }
        }
    }
}
