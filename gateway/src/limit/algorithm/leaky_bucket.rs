//! The leaky bucket: requests leave at an even pace, and those that come faster wait for their turn in a queue of
//! bounded length. One word holds the turn after the last one that was given away.

use super::Verdict;
use super::token_bucket::TokenBucket;

/// An even pace with a queue before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakyBucket {
    /// Nanoseconds between two turns.
    pub interval_ns: u64,
    /// Turns ahead of time that may be given away.
    pub queue: u64,
}

impl LeakyBucket {
    /// Takes `cost` turns. The verdict says how long the first of them is ahead; none is given back by one that does
    /// not wait for it.
    pub fn take(&self, word: u64, now_ns: u64, cost: u64) -> (u64, Verdict) {
        // The queue and the one whose turn it is are what a bucket holds that is emptied at the same pace.
        let held =
            TokenBucket { interval_ns: self.interval_ns, burst: self.queue.saturating_add(1) };
        let (next, verdict) = held.take(word, now_ns, cost);
        if !verdict.admitted {
            return (next, verdict);
        }
        let taken = self.interval_ns.saturating_mul(cost);
        (next, Verdict { wait_ns: next.saturating_sub(taken).saturating_sub(now_ns), ..verdict })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn those_that_come_faster_wait_in_line_and_the_line_is_bounded() {
        let bucket = LeakyBucket { interval_ns: 100, queue: 2 };
        let mut word = 0;
        for wait in [0, 100, 200] {
            let (next, verdict) = bucket.take(word, 1000, 1);
            assert!(verdict.admitted);
            assert_eq!(verdict.wait_ns, wait);
            word = next;
        }
        let (_, refused) = bucket.take(word, 1000, 1);
        assert!(!refused.admitted && refused.wait_ns == 100);
        assert_eq!(bucket.take(word, 1100, 1).1.wait_ns, 200);
    }

    proptest! {
        /// The model is a line of people: each has a turn, an interval after the one before, and who would have more
        /// than `queue` turns between the present and the last of its own is sent away.
        #[test]
        fn agrees_with_a_line_of_people(
            interval in 1u64..1000,
            queue in 0u64..20,
            steps in proptest::collection::vec((0u64..3000, 1u64..5), 1..200),
        ) {
            let bucket = LeakyBucket { interval_ns: interval, queue };
            let (mut word, mut now, mut free_turn) = (0, 0, 0);
            let mut line: Vec<u64> = Vec::new();
            for (gap, cost) in steps {
                now += gap;
                line.retain(|turn| *turn > now);
                let turn = now.max(free_turn);
                let last = turn + (cost - 1) * interval;
                let fits = last - now <= queue * interval;
                let (next, verdict) = bucket.take(word, now, cost);
                prop_assert_eq!(verdict.admitted, fits);
                if fits {
                    prop_assert_eq!(verdict.wait_ns, turn - now);
                    line.push(turn);
                    free_turn = last + interval;
                    let waiting = line.iter().filter(|turn| **turn > now).count();
                    prop_assert!(waiting as u64 <= queue, "{} wait", waiting);
                } else if cost <= queue + 1 {
                    prop_assert!(bucket.take(next, now + verdict.wait_ns, cost).1.admitted);
                    prop_assert!(!bucket.take(next, now + verdict.wait_ns - 1, cost).1.admitted);
                }
                word = next;
            }
        }

        #[test]
        fn no_word_clock_or_cost_overflows(
            interval_ns: u64, queue: u64, word: u64, now: u64, cost: u64,
        ) {
            LeakyBucket { interval_ns, queue }.take(word, now, cost);
        }
    }
}
