//! The sliding log: exactly so many in any window's length. A ring holds when each of the last `limit` was taken, so
//! the next place in it is free when what stands there has left the window.
//!
//! Places are claimed by moving the head of the ring on, and written after that. So a place holds, in its upper 16
//! bits, which turn of the ring wrote it: one that is claimed and not written yet is as good as taken just now.

use super::Verdict;

/// Bits of a place's word that hold microseconds: nine years of uptime.
const TIME_BITS: u32 = 48;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// So many in any window's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlidingLog {
    /// What may be taken, and places of the ring.
    pub limit: u32,
    /// Microseconds of the window.
    pub window_us: u64,
}

/// A ring as it is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Ring<F> {
    /// The position that is claimed next; positions count on over the turns.
    pub head: u64,
    /// The word of a place.
    pub place: F,
    /// Whether the last claim has left the window, and with it everything before.
    pub is_idle: bool,
}

impl SlidingLog {
    /// Whether `cost` positions from the head of the ring on can be claimed.
    pub fn take<F: Fn(u64) -> u64>(&self, ring: &Ring<F>, now_us: u64, cost: u32) -> Verdict {
        let limit = u64::from(self.limit);
        let cost = u64::from(cost);
        let live = self.live(ring, now_us);
        let free = limit - live;
        let admitted =
            cost <= limit && (0..cost).all(|ahead| self.is_free(ring, ring.head + ahead, now_us));
        let wait_us = match admitted {
            true => 0,
            false if cost > limit => self.window_us,
            false => self.leaves(ring, ring.head + cost - 1, now_us),
        };
        let reset_us = match (admitted, live) {
            (true, _) => self.window_us,
            (false, 0) => 0,
            (false, _) => self.leaves(ring, ring.head + limit - 1, now_us),
        };
        Verdict {
            admitted,
            remaining: free.saturating_sub(if admitted { cost } else { 0 }),
            reset_ns: reset_us.saturating_mul(1000),
            wait_ns: wait_us.saturating_mul(1000),
        }
    }

    /// The place of a position.
    pub fn place(&self, position: u64) -> u64 {
        position % u64::from(self.limit.max(1))
    }

    /// What is written at a position that was claimed.
    pub fn word(&self, position: u64, now_us: u64) -> u64 {
        self.turn(position).wrapping_add(1) << TIME_BITS | (now_us & TIME_MASK)
    }

    /// What is written at a position that is given back: that the turn before has left the window, as it had.
    pub fn free_word(&self, position: u64) -> u64 {
        self.turn(position) << TIME_BITS
    }

    /// What is in the window lies in order behind the head, so its beginning is found by halving.
    fn live<F: Fn(u64) -> u64>(&self, ring: &Ring<F>, now_us: u64) -> u64 {
        let (mut low, mut high) = (0, u64::from(self.limit));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.is_free(ring, ring.head + middle, now_us) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        u64::from(self.limit) - low
    }

    fn is_free<F: Fn(u64) -> u64>(&self, ring: &Ring<F>, position: u64, now_us: u64) -> bool {
        ring.is_idle || self.leaves(ring, position, now_us) == 0
    }

    /// Microseconds until what stands at a position has left the window.
    fn leaves<F: Fn(u64) -> u64>(&self, ring: &Ring<F>, position: u64, now_us: u64) -> u64 {
        let word = (ring.place)(self.place(position));
        if word == 0 && position < u64::from(self.limit) {
            return 0;
        }
        // The turn before wrote it, which is one less than this, as `word` has it.
        if word >> TIME_BITS != self.turn(position) & (u64::MAX >> TIME_BITS) {
            return self.window_us;
        }
        (word & TIME_MASK).saturating_add(self.window_us).saturating_sub(now_us)
    }

    fn turn(&self, position: u64) -> u64 {
        position / u64::from(self.limit.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Log {
        terms: SlidingLog,
        head: u64,
        places: Vec<u64>,
    }

    impl Log {
        fn new(limit: u32, window_us: u64) -> Self {
            let terms = SlidingLog { limit, window_us };
            Self { terms, head: 0, places: vec![0; limit as usize] }
        }

        fn look(&self, now: u64, cost: u32) -> Verdict {
            let place = |place: u64| self.places[place as usize];
            self.terms.take(&Ring { head: self.head, place, is_idle: false }, now, cost)
        }

        fn take(&mut self, now: u64, cost: u32) -> Verdict {
            let verdict = self.look(now, cost);
            if verdict.admitted {
                for position in self.head..self.head + u64::from(cost) {
                    let place = self.terms.place(position) as usize;
                    self.places[place] = self.terms.word(position, now);
                }
                self.head += u64::from(cost);
            }
            verdict
        }
    }

    #[test]
    fn what_was_claimed_and_not_written_counts_as_just_now() {
        let mut log = Log::new(1, 100);
        assert!(log.take(1000, 1).admitted);
        log.head += 1; // claimed at 1100 by somebody who has not written yet
        assert!(!log.look(1100, 1).admitted);
        assert!(!log.look(5000, 1).admitted);
        log.places[0] = log.terms.word(1, 1100);
        assert!(!log.look(1199, 1).admitted);
        assert!(log.look(1200, 1).admitted);
    }

    #[test]
    fn a_ring_that_nobody_claimed_of_for_a_window_is_free_whatever_it_holds() {
        let terms = SlidingLog { limit: 2, window_us: 100 };
        let ring = Ring { head: 7, place: |_| u64::MAX, is_idle: true };
        assert!(terms.take(&ring, 1000, 2).admitted);
        assert!(!terms.take(&Ring { is_idle: false, ..ring }, 1000, 1).admitted);
    }

    #[test]
    fn turns_go_round() {
        let mut log = Log::new(1, 1);
        for now in 1..200_000 {
            assert!(log.take(now, 1).admitted, "{now}");
        }
    }

    proptest! {
        /// The model remembers every time that was ever taken.
        #[test]
        fn agrees_with_a_list_of_times(
            limit in 1u32..12,
            window in 1u64..500,
            steps in proptest::collection::vec((0u64..200, 1u32..14), 1..200),
        ) {
            let mut log = Log::new(limit, window);
            let (mut times, mut now): (Vec<u64>, _) = (Vec::new(), 1000);
            for (gap, cost) in steps {
                now += gap;
                let live = |at: u64, times: &[u64]| {
                    times.iter().filter(|time| **time + window > at).count() as u32
                };
                let fits = live(now, &times) + cost <= limit;
                let verdict = log.take(now, cost);
                prop_assert_eq!(verdict.admitted, fits);
                if fits {
                    times.extend((0..cost).map(|_| now));
                } else if cost <= limit {
                    let wait = verdict.wait_ns / 1000;
                    prop_assert!(live(now + wait, &times) + cost <= limit);
                    prop_assert!(live(now + wait - 1, &times) + cost > limit);
                }
                prop_assert_eq!(verdict.remaining, u64::from(limit - live(now, &times)));
                prop_assert_eq!(live(now + verdict.reset_ns / 1000, &times), 0);
            }
        }

        #[test]
        fn no_word_clock_or_cost_overflows(
            limit in 0u32..1000, window_us: u64, head in 0..u64::MAX / 2, word: u64,
            now: u64, cost in 0u32..2000,
        ) {
            let log = SlidingLog { limit, window_us };
            let verdict = log.take(&Ring { head, place: |_| word, is_idle: false }, now, cost);
            prop_assert!(verdict.remaining <= u64::from(limit));
        }
    }
}
