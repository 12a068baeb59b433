//! What a request has taken of some limits when another one refuses it: it is given back, so that a request takes of
//! all limits that are counted in process, or of none. Only refused requests pay for it.
//!
//! Never more is given back than is missing because of the request, so no limit gives more than it would have without
//! it. Where that cannot be told any more, nothing is given back: what has fallen into a later window, and times in a
//! sliding log behind which there are others by now. A turn of a leaky bucket has come and gone.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use super::algorithm::fixed_window::Window;
use super::algorithm::sliding_log::SlidingLog;
use super::calendar;
use super::counter::{Counter, Terms};
use super::key::Asked;
use super::table::Cell;
use super::{Counting, Inquiry, Limit, Limits};
use crate::base::time::{self, Moment};

impl Limits {
    /// Gives back what was taken at `taken` of those of `limits` that go before `refuser`.
    #[cold]
    pub(super) fn give_back<'l>(
        &'l self,
        limits: impl Iterator<Item = (usize, &'l Limit)>,
        (inquiry, key, cost): (&Inquiry<'_>, Asked<'_>, u32),
        (refuser, taken): (usize, &Moment),
    ) {
        let now_ns = time::boot().0;
        for (_, limit) in limits.take_while(|(index, _)| *index != refuser) {
            let Counting::Local(counter) = &limit.counting else { continue };
            let hash = key.hash(&limit.config.per, self.seed, self.common.ipv6_prefix);
            // What all gateways were told of stays taken.
            let told = limit.together.as_ref().filter(|together| together.is_synchronised());
            let is_own = told.is_none_or(|together| {
                self.exchange.forgive(inquiry.worker, (together.id(), hash), cost)
            });
            if is_own {
                counter.give_back(hash, cost, (taken, now_ns));
            }
        }
    }
}

impl Counter {
    /// Gives back `cost` of the limit of a key that was admitted at `taken`.
    pub fn give_back(&self, hash: u128, cost: u32, (taken, now_ns): (&Moment, u64)) {
        // A key that was forgotten meanwhile has all of its limit.
        let Some(cell) = self.memory.table.known(hash) else { return };
        let taken_ns = taken.boot().0;
        match &self.terms {
            Terms::TokenBucket(bucket) => {
                let passed_ns = now_ns.saturating_sub(taken_ns);
                change(cell, cell.until(), |word| bucket.give_back(word, passed_ns, cost.into()));
            }
            Terms::FixedWindow(limit, window_ns) => {
                let window = Window::at(taken_ns, *window_ns);
                change(cell, cell.first(), |word| limit.give_back(word, window, cost));
            }
            Terms::Quota(limit, period) => {
                let window = calendar::window(*period, taken.utc());
                change(cell, cell.first(), |word| limit.give_back(word, window, cost));
            }
            Terms::SlidingWindow(limit) => {
                change(cell, cell.first(), |word| limit.give_back(word, taken_ns, cost));
            }
            Terms::SlidingLog(log) => {
                let ring = self.memory.ring(cell.number);
                to_ring(cell, log, ring, (taken_ns / 1000, cost));
            }
            Terms::LeakyBucket(_) => {}
        }
    }
}

/// Exchanges a word of a key, as long as the cell is the key's.
fn change(cell: Cell<'_>, word: &AtomicU64, less: impl Fn(u64) -> u64) {
    let changed = |seen| Some(less(seen)).filter(|next| *next != seen && cell.is_held());
    // There is nothing to give back if it declines.
    word.fetch_update(AcqRel, Acquire, changed).ok();
}

/// Moves the head of the ring back over times that are the request's, or as good as that: those of the same
/// microsecond.
fn to_ring(cell: Cell<'_>, log: &SlidingLog, words: &[AtomicU64], (taken_us, cost): (u64, u32)) {
    let word = |position| usize::try_from(log.place(position)).ok().and_then(|at| words.get(at));
    let of_request = |position| {
        word(position).is_some_and(|it| it.load(Acquire) == log.word(position, taken_us))
    };
    loop {
        let head = cell.first().load(Acquire);
        let Some(first) = head.checked_sub(cost.into()) else { return };
        if !(first..head).all(of_request) || !cell.is_held() {
            return;
        }
        // Until they are free, these positions are as good as just claimed.
        if cell.first().compare_exchange(head, first, AcqRel, Acquire).is_err() {
            continue;
        }
        for position in first..head {
            let Some(word) = word(position) else { continue };
            let (own, free) = (log.word(position, taken_us), log.free_word(position));
            // Who has claimed it since has found the whole ring idle, and writes to it himself.
            word.compare_exchange(own, free, Release, Acquire).ok();
        }
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::mix;
    use crate::base::time::{BootTime, Now, UtcMillis};
    use crate::config::Period;
    use crate::limit::algorithm::Verdict;
    use crate::limit::algorithm::fixed_window::FixedWindow;
    use crate::limit::algorithm::sliding_window::SlidingWindow;
    use crate::limit::algorithm::token_bucket::TokenBucket;
    use crate::limit::counter::Memory;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::Relaxed;

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 100 * SECOND;

    /// Those that give back; a window of a second, and a day of them.
    fn all(limit: u32) -> [Terms; 5] {
        let interval_ns = SECOND / u64::from(limit);
        [
            Terms::TokenBucket(TokenBucket { interval_ns, burst: limit.into() }),
            Terms::FixedWindow(FixedWindow { limit }, SECOND),
            Terms::SlidingWindow(SlidingWindow { limit, window_ns: SECOND }),
            Terms::SlidingLog(SlidingLog { limit, window_us: SECOND / 1000 }),
            Terms::Quota(FixedWindow { limit }, Period::Day),
        ]
    }

    fn counter(terms: Terms) -> Counter {
        Counter::new(terms, Memory::new(8, &terms).unwrap())
    }

    fn hash(key: u64) -> u128 {
        u128::from(mix(key)) << 64 | u128::from(mix(!key))
    }

    /// A quota's day goes by in a second, too.
    fn at(boot_ns: u64) -> Moment {
        let utc = UtcMillis(boot_ns / 1000 * 86_400 / 1000);
        Moment::at(Now { boot: BootTime(boot_ns), utc })
    }

    fn take(counter: &Counter, cost: u32, now: u64) -> Verdict {
        counter.take(hash(1), cost, &at(now))
    }

    proptest! {
        /// The model is a counter that was never asked by those who got it back.
        #[test]
        fn what_is_given_back_at_once_was_never_taken(
            limit in 1u32..12,
            steps in proptest::collection::vec((0u64..SECOND / 2, 1u32..8, any::<bool>()), 1..120),
        ) {
            for terms in all(limit) {
                let (counter, model) = (counter(terms), counter(terms));
                let mut now = START;
                for (gap, cost, is_refused_elsewhere) in &steps {
                    now += gap;
                    let verdict = take(&counter, *cost, now);
                    if *is_refused_elsewhere {
                        if verdict.admitted {
                            counter.give_back(hash(1), *cost, (&at(now), now));
                        }
                    } else {
                        prop_assert_eq!(verdict, take(&model, *cost, now), "{:?}", terms);
                    }
                }
            }
        }

        /// Others are admitted meanwhile, and time passes: there is never more than without those who got it back.
        #[test]
        fn what_is_given_back_late_makes_no_limit_wider(
            limit in 1u32..12,
            steps in proptest::collection::vec(
                (0u64..SECOND / 2, 1u32..6, 0u64..SECOND / 4, 0u32..6),
                1..80,
            ),
        ) {
            for terms in all(limit) {
                let (counter, model) = (counter(terms), counter(terms));
                let mut now = START;
                for (gap, refused, later, other) in &steps {
                    now += gap;
                    let taken = take(&counter, *refused, now).admitted.then_some(now);
                    now += later;
                    if take(&counter, *other, now).admitted {
                        prop_assert!(take(&model, *other, now).admitted, "{:?}", terms);
                    }
                    if let Some(taken) = taken {
                        counter.give_back(hash(1), *refused, (&at(taken), now));
                    }
                    let [own, model] = [&counter, &model].map(|it| take(it, 0, now).remaining);
                    prop_assert!(own <= model, "{:?}: {} of {}", terms, own, model);
                }
            }
        }

        #[test]
        fn no_word_clock_or_cost_overflows(
            limit: u32, words: (u64, u64), times: (u64, u64), span: u64, cost: u32,
        ) {
            let (word, position) = words;
            let (passed, taken) = times;
            let bucket = TokenBucket { interval_ns: span, burst: limit.into() };
            bucket.give_back(word, passed, cost.into());
            let window = Window::at(taken, span);
            FixedWindow { limit }.give_back(word, window, cost);
            SlidingWindow { limit, window_ns: span }.give_back(word, taken, cost);
            SlidingLog { limit, window_us: span }.free_word(position);
        }
    }

    /// All threads take and give back in the same microsecond, and some keep what they have.
    #[test]
    fn never_more_than_the_limit_is_kept_whatever_the_threads() {
        const LIMIT: u32 = 300;
        for terms in all(LIMIT) {
            let counter = counter(terms);
            let kept = AtomicU32::new(0);
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (counter, kept) = (&counter, &kept);
                    scope.spawn(move || {
                        for turn in 0..5000 {
                            let cost = 1 + turn % 2;
                            if !take(counter, cost, START).admitted {
                                continue;
                            }
                            if !mix(u64::from(turn) << 2 | thread).is_multiple_of(8) {
                                counter.give_back(hash(1), cost, (&at(START), START));
                            } else {
                                kept.fetch_add(cost, Relaxed);
                            }
                        }
                    });
                }
            });
            let kept = kept.into_inner();
            assert!((1..=LIMIT).contains(&kept), "{terms:?}: {kept}");
            let left = take(&counter, 0, START).remaining;
            assert!(left <= u64::from(LIMIT - kept), "{terms:?}: {left} beside {kept}");
            // Only a sliding log cannot always tell what is whose.
            if !matches!(terms, Terms::SlidingLog(_)) {
                assert_eq!(left, u64::from(LIMIT - kept), "{terms:?}");
            }
        }
    }

    #[test]
    fn a_key_that_was_forgotten_gets_nothing() {
        for terms in all(3) {
            let counter = counter(terms);
            counter.give_back(hash(1), 1, (&at(START), START));
            assert_eq!(take(&counter, 1, START).remaining, 2, "{terms:?}");
        }
    }
}
