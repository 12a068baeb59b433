//! Limits that each gateway counts by itself and tells the others of: what each worker has given away is reported to
//! Redis now and then, and what all have given away is learnt in return. Nothing of it is on the way of a request.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::together::Together;
use super::{Counting, Limits};
use crate::base::time::Moment;
use crate::shared::count::Item;

/// How often.
pub const EXCHANGE_EVERY: Duration = Duration::from_millis(100);
/// Keys of one worker that wait to be reported. What is given away of others is known to this gateway alone.
const OWED_MAX: usize = 65_536;
/// Keys that are reported by one call.
const CALL_MAX: usize = 100;

/// What this gateway has given away and not reported.
#[derive(Clone, Debug)]
pub(super) struct Exchange(Arc<Shares>);

#[derive(Debug)]
struct Shares {
    /// By each worker. A map is asked for by nobody else, but to take it away whole.
    workers: Box<[Mutex<Map>]>,
    /// What Redis did not answer about.
    late: Mutex<Map>,
    /// What nobody else will learn of, in the unit of costs.
    unreported: AtomicU64,
}

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
        let workers = (0..workers.max(1)).map(|_| Mutex::default()).collect();
        Self(Arc::new(Shares { workers, late: Mutex::default(), unreported: AtomicU64::new(0) }))
    }

    /// What nobody else will learn of, because too many keys wait to be reported.
    pub(super) fn unreported(&self) -> u64 {
        self.0.unreported.load(Relaxed)
    }

    /// A worker has given something away.
    pub(super) fn owe(
        &self,
        worker: usize,
        key: (u64, u128),
        cost: u32,
        whose: impl FnOnce() -> [u8; 16],
    ) {
        let Some(map) = self.0.workers.get(worker) else { return self.0.lose(cost) };
        self.0.add((&mut locked(map), OWED_MAX), key, cost, whose);
    }

    /// The worker has got it back: answers whether nobody was told yet, and then nobody will be.
    pub(super) fn forgive(&self, worker: usize, key: (u64, u128), cost: u32) -> bool {
        let Some(map) = self.0.workers.get(worker) else { return false };
        let mut map = locked(map);
        let Entry::Occupied(mut known) = map.entry(key) else { return false };
        let Some(left) = known.get().cost.checked_sub(cost) else { return false };
        known.get_mut().cost = left;
        if left == 0 {
            known.remove();
        }
        true
    }

    fn collect(&self) -> Map {
        let mut all = std::mem::take(&mut *locked(&self.0.late));
        let most = OWED_MAX.saturating_mul(self.0.workers.len());
        for map in &self.0.workers {
            let of_worker = std::mem::take(&mut *locked(map));
            for (key, owed) in of_worker {
                self.0.add((&mut all, most), key, owed.cost, || owed.whose);
            }
        }
        all
    }

    /// What was collected and could not be reported.
    fn give_back(&self, owed: impl Iterator<Item = ((u64, u128), Owed)>) {
        locked(&self.0.late).extend(owed);
    }
}

impl Shares {
    fn add(
        &self,
        (map, most): (&mut Map, usize),
        key: (u64, u128),
        cost: u32,
        whose: impl FnOnce() -> [u8; 16],
    ) {
        let room = map.len() < most;
        match map.entry(key) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.cost = known.cost.saturating_add(cost);
            }
            Entry::Vacant(new) if room => {
                new.insert(Owed { whose: whose(), cost });
            }
            Entry::Vacant(_) => self.lose(cost),
        }
    }

    fn lose(&self, cost: u32) {
        self.unreported.fetch_add(cost.into(), Relaxed);
    }
}

fn locked(map: &Mutex<Map>) -> MutexGuard<'_, Map> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Limits {
    /// What synchronised limits gave away that nobody else will learn of, in the unit of costs; `None` without such
    /// limits.
    pub fn unreported(&self) -> Option<u64> {
        let mut together = self.all.iter().filter_map(|limit| limit.together.as_ref());
        together.any(Together::is_synchronised).then(|| self.exchange.unreported())
    }

    /// Reports what this gateway has given away, and learns what all have. Without an answer it is reported next time.
    pub async fn exchange(&self) {
        let Some(redis) = &self.redis else { return };
        let mut left: Vec<_> = self.exchange.collect().into_iter().collect();
        while !left.is_empty() {
            let now = left.split_off(left.len().saturating_sub(CALL_MAX));
            let known = now.into_iter().filter_map(|(key, owed)| {
                let of = |together: &Together| together.id() == key.0;
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

#[cfg(test)]
mod tests {
    use super::super::algorithm::fixed_window::FixedWindow;
    use super::super::algorithm::token_bucket::TokenBucket;
    use super::super::counter::{Counter, Memory, Terms};
    use super::*;
    use crate::base::time::{BootTime, Now, UtcMillis};
    use crate::config::Period;
    use proptest::prelude::*;

    const KEY: (u64, u128) = (1, 7 << 70 | 7);
    const DAY: Duration = Duration::from_hours(24);
    const NOW_NS: u64 = 1_000_000_000_000;

    /// The first moment of a day.
    fn moment() -> Moment {
        let utc = UtcMillis(20_000 * 86_400_000);
        Moment::at(Now { boot: BootTime(NOW_NS), utc })
    }

    fn counter(terms: Terms) -> Counter {
        Counter::new(terms, Memory::new(4, &terms).unwrap())
    }

    fn remaining(counter: &Counter) -> u64 {
        counter.take(KEY.1, 0, &moment()).remaining
    }

    /// One of several gateways with a quota a day.
    struct Gateway {
        counter: Counter,
        exchange: Exchange,
        /// What Redis knew at its last exchange, and what it gave away since.
        seen: u64,
        own: u64,
    }

    impl Gateway {
        fn all(count: usize, limit: u32) -> Vec<Self> {
            let terms = Terms::Quota(FixedWindow { limit }, Period::Day);
            let gateway =
                |_| Self { counter: counter(terms), exchange: Exchange::new(1), seen: 0, own: 0 };
            (0..count).map(gateway).collect()
        }

        fn serves(&mut self) -> bool {
            let is_admitted = self.counter.take(KEY.1, 1, &moment()).admitted;
            if is_admitted {
                self.exchange.owe(0, KEY, 1, || [0; 16]);
                self.own += 1;
            }
            is_admitted
        }

        fn owes(&self) -> u64 {
            let maps = [&self.exchange.0.workers[0], &self.exchange.0.late];
            let owed = maps.map(|map| locked(map).get(&KEY).map_or(0, |owed| owed.cost));
            owed.into_iter().map(u64::from).sum()
        }

        /// `total` is what Redis knows.
        fn exchanges(&mut self, total: &mut u64, limit: u32, how: How) {
            let owed = self.exchange.collect();
            let Some(cost) = owed.get(&KEY).map(|owed| owed.cost) else { return };
            if how != How::Unasked {
                *total += u64::from(cost);
            }
            if how != How::Well {
                return self.exchange.give_back(owed.into_iter());
            }
            let left = u64::from(limit).saturating_sub(*total);
            self.counter.raise(KEY.1, (left, DAY), &moment());
            (self.seen, self.own) = (*total, 0);
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum How {
        Well,
        /// Redis did not get the question.
        Unasked,
        /// Its answer did not come.
        Unanswered,
    }

    fn how() -> impl Strategy<Value = How> {
        prop_oneof![4 => Just(How::Well), 1 => Just(How::Unasked), 1 => Just(How::Unanswered)]
    }

    proptest! {
        /// Whatever order requests and exchanges come in, and whatever is lost on the way.
        #[test]
        fn nothing_that_was_given_away_is_forgotten(
            limit in 1u32..40,
            count in 1usize..5,
            steps in proptest::collection::vec((0usize..5, 0u32..20, how()), 1..150),
        ) {
            let mut gateways = Gateway::all(count, limit);
            let (mut total, mut given) = (0, 0);
            for (number, requests, how) in steps {
                let gateway = &mut gateways[number % count];
                for _ in 0..requests {
                    if gateway.serves() {
                        given += 1;
                        let known = gateway.seen + gateway.own;
                        prop_assert!(known <= u64::from(limit), "it knew of {}", known);
                    }
                }
                gateway.exchanges(&mut total, limit, how);
                prop_assert!(remaining(&gateway.counter) <= u64::from(limit) - gateway.own);
                if gateway.own == 0 {
                    let left = u64::from(limit).saturating_sub(gateway.seen);
                    prop_assert!(remaining(&gateway.counter) <= left);
                }
                let owed: u64 = gateways.iter().map(Gateway::owes).sum();
                prop_assert!(total + owed >= given, "{} and {} of {}", total, owed, given);
                prop_assert!(given <= u64::from(limit) * count as u64);
            }
        }

        /// The bound that docs/redis.md names: gateways at their own paces, whose exchanges lie anywhere in the delay.
        #[test]
        fn together_they_give_the_limit_and_what_comes_within_one_delay(
            limit in 1u32..2000,
            all in proptest::collection::vec((0u64..100, 0u64..6), 1..6),
        ) {
            const DELAY: u64 = 100;
            let mut gateways = Gateway::all(all.len(), limit);
            let (mut total, mut given, mut last, mut now) = (0, 0, 0, 0);
            while now < last + 3 * DELAY {
                for (gateway, (phase, pace)) in gateways.iter_mut().zip(&all) {
                    if now % DELAY == *phase {
                        gateway.exchanges(&mut total, limit, How::Well);
                    }
                    let served = (0..*pace).filter(|_| gateway.serves()).count() as u64;
                    if served > 0 {
                        (given, last) = (given + served, now);
                    }
                }
                now += 1;
            }
            let pace: u64 = all.iter().map(|(_, pace)| pace).sum();
            // A step of the model is as long as nothing in the real world.
            prop_assert!(given <= u64::from(limit) + pace * (DELAY + 1), "{} of {}", given, limit);
        }

        /// What is learnt twice, or in another order, is learnt once; and nothing that was counted is forgotten by it.
        #[test]
        fn learning_is_the_most_that_was_learnt(
            taken in 0u32..20,
            one in 0u64..=20,
            other in 0u64..=20,
        ) {
            const LIMIT: u32 = 20;
            let interval_ns = 1_000_000_000;
            let bucket = TokenBucket { interval_ns, burst: LIMIT.into() };
            let quota = Terms::Quota(FixedWindow { limit: LIMIT }, Period::Day);
            for terms in [Terms::TokenBucket(bucket), quota] {
                let after = |learnt: &[u64]| {
                    let counter = counter(terms);
                    assert!(counter.take(KEY.1, taken, &moment()).admitted);
                    for left in learnt {
                        let reset = match terms {
                            Terms::Quota(..) => DAY,
                            _ => Duration::from_nanos(interval_ns * (u64::from(LIMIT) - left)),
                        };
                        counter.raise(KEY.1, (*left, reset), &moment());
                    }
                    remaining(&counter)
                };
                let own = u64::from(LIMIT - taken);
                prop_assert_eq!(after(&[one]), own.min(one), "{:?}", terms);
                prop_assert_eq!(after(&[one, one]), after(&[one]));
                prop_assert_eq!(after(&[one, other]), after(&[other, one]));
                prop_assert_eq!(after(&[one, other, one]), own.min(one).min(other));
            }
        }
    }

    #[test]
    fn each_worker_has_room_of_its_own_and_what_does_not_fit_is_counted() {
        let exchange = Exchange::new(2);
        for worker in 0..2 {
            for key in 0..OWED_MAX as u128 {
                exchange.owe(worker, (worker as u64, key), 3, || [0; 16]);
            }
        }
        assert_eq!(exchange.unreported(), 0);
        exchange.owe(0, (0, 5), 3, || [0; 16]);
        assert_eq!(exchange.unreported(), 0, "a key that waits already needs no room");
        exchange.owe(0, (2, 0), 3, || [0; 16]);
        exchange.owe(2, (2, 0), 4, || [0; 16]);
        assert_eq!(exchange.unreported(), 7, "nor a worker that there is not");
        let all = exchange.collect();
        assert_eq!(
            all.len(),
            2 * OWED_MAX,
            "nothing is lost between the workers' maps and the call"
        );
        exchange.give_back(all.into_iter());
        exchange.owe(1, (3, 0), 1, || [0; 16]);
        let again = exchange.collect();
        assert_eq!((again.len(), exchange.unreported()), (2 * OWED_MAX, 8), "late and full");
        assert_eq!(again[&(0, 5)].cost, 6);
    }

    #[test]
    fn what_is_forgiven_is_reported_to_nobody() {
        let exchange = Exchange::new(1);
        exchange.owe(0, KEY, 3, || [0; 16]);
        assert!(exchange.forgive(0, KEY, 2));
        assert!(!exchange.forgive(0, KEY, 2), "more than is owed");
        assert_eq!(exchange.collect()[&KEY].cost, 1);
        assert!(!exchange.forgive(0, KEY, 1), "it is on its way");
        exchange.owe(0, KEY, 3, || [0; 16]);
        assert!(exchange.forgive(0, KEY, 3));
        assert!(exchange.collect().is_empty());
    }
}
