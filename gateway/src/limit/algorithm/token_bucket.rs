//! The token bucket as GCRA (generic cell rate algorithm, ITU-T I.371): one word holds the time at which the bucket
//! will be full again. What was taken is exact to the nanosecond, whatever the pauses.

use super::Verdict;

/// A bucket of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Nanoseconds that bring one token.
    pub interval_ns: u64,
    /// Tokens that fit in; a full bucket admits so many at once.
    pub burst: u64,
}

impl TokenBucket {
    /// Takes `cost` tokens from a bucket that will be full at `word`. A word further ahead than the bucket is deep (the
    /// limit was made tighter) is an empty bucket.
    pub fn take(&self, word: u64, now_ns: u64, cost: u64) -> (u64, Verdict) {
        let depth = self.interval_ns.saturating_mul(self.burst);
        let latest = now_ns.saturating_add(depth);
        let full_at = word.clamp(now_ns, latest);
        let next = full_at.saturating_add(self.interval_ns.saturating_mul(cost));
        let admitted = next <= latest;
        let (word, wait_ns) = if admitted { (next, 0) } else { (full_at, next - latest) };
        let remaining = (latest - word).checked_div(self.interval_ns).unwrap_or(self.burst);
        (word, Verdict { admitted, remaining, reset_ns: word - now_ns, wait_ns })
    }

    /// Gives back `cost` tokens that were taken `passed_ns` ago. A bucket that was full without them has gained nothing
    /// since, so that time is not given back: never more is there than if they had not been taken.
    pub fn give_back(&self, word: u64, passed_ns: u64, cost: u64) -> u64 {
        word.saturating_sub(self.interval_ns.saturating_mul(cost).saturating_sub(passed_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_bucket_admits_its_burst_and_says_when_there_is_more() {
        let bucket = TokenBucket { interval_ns: 100, burst: 3 };
        let mut word = 0;
        for left in [2, 1, 0] {
            let (next, verdict) = bucket.take(word, 1000, 1);
            let reset_ns = (3 - left) * 100;
            assert_eq!(verdict, Verdict { admitted: true, remaining: left, reset_ns, wait_ns: 0 });
            word = next;
        }
        let (same, refused) = bucket.take(word, 1040, 2);
        assert_eq!(same, word);
        assert_eq!(refused, Verdict { admitted: false, remaining: 0, reset_ns: 260, wait_ns: 160 });
        assert!(!bucket.take(word, 1199, 2).1.admitted);
        assert!(bucket.take(word, 1200, 2).1.admitted);
    }

    #[test]
    fn a_tighter_limit_takes_effect_at_once() {
        let wide = TokenBucket { interval_ns: 1000, burst: 1000 };
        let (word, _) = wide.take(0, 1, 1000);
        let tight = TokenBucket { interval_ns: 10, burst: 2 };
        let (word, refused) = tight.take(word, 1, 1);
        assert!(!refused.admitted && refused.wait_ns == 10);
        assert!(tight.take(word, 11, 1).1.admitted);
    }

    proptest! {
        /// The model counts tokens in whole nanoseconds: refilled with time, capped, taken.
        #[test]
        fn agrees_with_a_counted_bucket(
            interval_ns in 1u64..1_000_000,
            burst in 1u64..50,
            steps in proptest::collection::vec((0u64..5_000_000, 1u64..60), 1..200),
        ) {
            let bucket = TokenBucket { interval_ns, burst };
            let depth = interval_ns * burst;
            let (mut word, mut now, mut tokens) = (0, 0, depth);
            for (gap, cost) in steps {
                now += gap;
                tokens = (tokens + gap).min(depth);
                let wanted = cost * interval_ns;
                let (next, verdict) = bucket.take(word, now, cost);
                prop_assert_eq!(verdict.admitted, tokens >= wanted);
                if verdict.admitted {
                    tokens -= wanted;
                    prop_assert_eq!(verdict.wait_ns, 0);
                } else {
                    prop_assert_eq!(verdict.wait_ns, wanted - tokens);
                }
                prop_assert_eq!(verdict.remaining, tokens / interval_ns);
                prop_assert_eq!(verdict.reset_ns, depth - tokens);
                word = next;
            }
        }

        #[test]
        fn no_word_clock_or_cost_overflows(
            interval_ns: u64, burst: u64, word: u64, now: u64, cost: u64,
        ) {
            TokenBucket { interval_ns, burst }.take(word, now, cost);
        }
    }
}
