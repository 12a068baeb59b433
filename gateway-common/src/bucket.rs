//! The token bucket as GCRA (generic cell rate algorithm, ITU-T I.371): one 64-bit word holds the theoretical arrival
//! time of the next packet, in nanoseconds of the caller's monotonic clock. No division, no second word, so the kernel
//! can exchange it atomically and the count is exact whatever the number of CPUs.

/// One bucket's rate and burst, in the form that costs an addition and a comparison to apply.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Nanoseconds that one packet takes from the bucket; 0 means unlimited.
    pub interval_ns: u64,
    /// Nanoseconds that fit into the bucket: burst times `interval_ns`.
    pub depth_ns: u64,
}

impl Bucket {
    /// A bucket that admits everything.
    pub const UNLIMITED: Self = Self { interval_ns: 0, depth_ns: 0 };

    /// The highest rate, per second. Beyond it the interval of whole nanoseconds would be more than half a percent off.
    pub const MAX_RATE: u64 = 10_000_000;

    /// A bucket of `rate` per second (1 to [`Self::MAX_RATE`]) that admits `burst` (at least 1) at once.
    pub const fn per_second(rate: u64, burst: u64) -> Option<Self> {
        Self::per(1, rate, burst)
    }

    /// A bucket of `rate` in every `seconds` that admits `burst` (at least 1) at once.
    pub const fn per(seconds: u64, rate: u64, burst: u64) -> Option<Self> {
        let (Some(most), Some(period_ns)) =
            (Self::MAX_RATE.checked_mul(seconds), seconds.checked_mul(1_000_000_000))
        else {
            return None;
        };
        if rate == 0 || rate > most || burst == 0 {
            return None;
        }
        let interval_ns = period_ns.saturating_add(rate / 2) / rate;
        match interval_ns.checked_mul(burst) {
            Some(depth_ns) => Some(Self { interval_ns, depth_ns }),
            None => None,
        }
    }

    /// Whether everything is admitted.
    #[inline(always)]
    pub const fn is_unlimited(&self) -> bool {
        self.interval_ns == 0
    }

    /// Takes one packet at `now_ns` from a bucket whose word is `word`.
    ///
    /// A word of 0 is a full bucket. A word further ahead than the bucket is deep (the profile was made tighter) counts
    /// as an empty bucket, so that a change takes effect at once and nobody waits longer than the new depth.
    #[inline(always)]
    pub const fn take(&self, word: u64, now_ns: u64) -> Taken {
        let latest = now_ns.saturating_add(self.depth_ns);
        let arrival = if word < now_ns {
            now_ns
        } else if word > latest {
            latest
        } else {
            word
        };
        let next = arrival.saturating_add(self.interval_ns);
        if next <= latest {
            Taken { admitted: true, word: next }
        } else if word > latest {
            Taken { admitted: false, word: latest }
        } else {
            Taken { admitted: false, word }
        }
    }
}

/// What became of one packet, and of its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whether it was within the limit.
    pub admitted: bool,
    /// The bucket's word from now on. The same as before when there is nothing to write.
    pub word: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_bucket_admits_its_burst_and_no_more() {
        let bucket = Bucket::per_second(1000, 5).unwrap();
        let mut word = 0;
        for _ in 0..5 {
            let taken = bucket.take(word, 1_000_000);
            assert!(taken.admitted);
            word = taken.word;
        }
        assert_eq!(bucket.take(word, 1_000_000), Taken { admitted: false, word });
        assert!(bucket.take(word, 2_000_000).admitted);
    }

    #[test]
    fn a_tighter_profile_takes_effect_at_once_without_a_fresh_burst() {
        let wide = Bucket::per_second(1000, 1000).unwrap();
        let mut word = 0;
        for _ in 0..1000 {
            word = wide.take(word, 1).word;
        }
        let tight = Bucket::per_second(10, 2).unwrap();
        let refused = tight.take(word, 1);
        assert!(!refused.admitted);
        assert!(tight.take(refused.word, 1 + 100_000_000).admitted, "one new interval later");
    }

    #[test]
    fn a_rate_per_minute_or_hour_keeps_its_interval() {
        assert_eq!(Bucket::per(60, 100, 1).unwrap().interval_ns, 600_000_000);
        assert_eq!(Bucket::per(3600, 1, 2).unwrap().depth_ns, 7_200_000_000_000);
        assert_eq!(Bucket::per(60, Bucket::MAX_RATE * 60 + 1, 1), None);
        assert_eq!(Bucket::per(u64::MAX, 1, 1), None);
    }

    #[test]
    fn impossible_buckets_are_refused() {
        assert_eq!(Bucket::per_second(0, 1), None);
        assert_eq!(Bucket::per_second(1, 0), None);
        assert_eq!(Bucket::per_second(Bucket::MAX_RATE + 1, 1), None);
        assert_eq!(Bucket::per_second(1, u64::MAX), None);
    }

    proptest! {
        /// The model: tokens counted in whole nanoseconds, refilled with time, capped by the depth.
        #[test]
        fn agrees_with_a_counted_bucket(
            rate in 1u64..5_000_000,
            burst in 1u64..1000,
            gaps in proptest::collection::vec(0u64..10_000_000, 1..300),
        ) {
            let bucket = Bucket::per_second(rate, burst).unwrap();
            let (mut word, mut now, mut tokens) = (0u64, 1u64, bucket.depth_ns);
            for gap in gaps {
                now += gap;
                tokens = (tokens + gap).min(bucket.depth_ns);
                let taken = bucket.take(word, now);
                prop_assert_eq!(taken.admitted, tokens >= bucket.interval_ns);
                word = taken.word;
                if taken.admitted {
                    tokens -= bucket.interval_ns;
                }
            }
        }

        #[test]
        fn no_word_or_clock_makes_it_panic_or_wait_longer_than_the_depth(
            word: u64,
            now in 0u64..u64::MAX / 2,
            interval_ns in 1u64..,
            depth_ns in 0u64..u64::MAX / 2,
        ) {
            let taken = Bucket { interval_ns, depth_ns }.take(word, now);
            prop_assert!(taken.word <= now + depth_ns);
        }
    }
}
