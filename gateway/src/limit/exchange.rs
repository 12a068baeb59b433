//! Limits that each gateway counts by itself and tells the others of: what each worker has given away is reported to
//! Redis now and then, and what all have given away is learnt in return. Nothing of it is on the way of a request.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Counting, Limits};
use crate::base::time::Moment;
use crate::shared::count::Item;

/// How often.
pub const EXCHANGE_EVERY: Duration = Duration::from_millis(100);
/// Keys of one worker that wait to be reported. What is given away of others is known to this gateway alone.
const OWED_MAX: usize = 65_536;
/// Keys that are reported by one call.
const CALL_MAX: usize = 100;

/// What workers have given away and not reported.
#[derive(Clone, Debug)]
pub(super) struct Exchange(Arc<[Mutex<Map>]>);

/// By limit, and by the hash of the key.
type Map = HashMap<(u64, u128), Owed>;

#[derive(Clone, Copy, Debug)]
struct Owed {
    whose: [u8; 16],
    cost: u32,
}

impl Default for Exchange {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Exchange {
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| Mutex::default()).collect())
    }

    /// A worker has given something away. Its map is asked for by nobody else, but to take it away whole.
    pub(super) fn owe(
        &self,
        worker: usize,
        key: (u64, u128),
        cost: u32,
        whose: impl FnOnce() -> [u8; 16],
    ) {
        let Some(map) = self.0.get(worker) else { return };
        add(&mut locked(map), key, cost, whose);
    }

    fn collect(&self) -> Map {
        let mut all = Map::new();
        for map in &*self.0 {
            for (key, owed) in std::mem::take(&mut *locked(map)) {
                add(&mut all, key, owed.cost, || owed.whose);
            }
        }
        all
    }

    fn give_back(&self, owed: impl Iterator<Item = ((u64, u128), Owed)>) {
        let Some(map) = self.0.first() else { return };
        let mut map = locked(map);
        owed.for_each(|(key, owed)| add(&mut map, key, owed.cost, || owed.whose));
    }
}

fn add(map: &mut Map, key: (u64, u128), cost: u32, whose: impl FnOnce() -> [u8; 16]) {
    let room = map.len() < OWED_MAX;
    match map.entry(key) {
        Entry::Occupied(mut known) => {
            let known = known.get_mut();
            known.cost = known.cost.saturating_add(cost);
        }
        Entry::Vacant(new) if room => {
            new.insert(Owed { whose: whose(), cost });
        }
        Entry::Vacant(_) => {}
    }
}

fn locked(map: &Mutex<Map>) -> MutexGuard<'_, Map> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Limits {
    /// Reports what this gateway has given away, and learns what all have. Without an answer it is reported next time.
    pub async fn exchange(&self) {
        let Some(redis) = &self.redis else { return };
        let mut left: Vec<_> = self.exchange.collect().into_iter().collect();
        while !left.is_empty() {
            let now = left.split_off(left.len().saturating_sub(CALL_MAX));
            let known = now.into_iter().filter_map(|(key, owed)| {
                let of = |together: &super::together::Together| together.id() == key.0;
                let limit = self.all.iter().find(|it| it.together.as_ref().is_some_and(of))?;
                Some((limit, key, owed))
            });
            let known: Vec<_> = known.collect();
            let items = known.iter().filter_map(|(limit, key, owed)| {
                let terms = limit.together.as_ref()?.terms();
                Some(Item { whose: owed.whose, limit: key.0, terms, cost: owed.cost })
            });
            let items: Vec<Item> = items.collect();
            let Ok(verdicts) = redis.report(&items).await else {
                self.exchange.give_back(known.into_iter().map(|(_, key, owed)| (key, owed)));
                return self.exchange.give_back(left.into_iter());
            };
            let moment = Moment::default();
            for ((limit, (_, hash), _), verdict) in known.iter().zip(verdicts) {
                if let (Counting::Local(counter), Some(verdict)) = (&limit.counting, verdict) {
                    counter.raise(*hash, (verdict.remaining, verdict.reset), &moment);
                }
            }
        }
    }
}
