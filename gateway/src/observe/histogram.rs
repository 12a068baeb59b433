//! How long things took, in fixed log-linear buckets: nine of equal width to each power of ten, from 10 µs to 100 s.
//! One worker adds, whoever looks sums up. It keeps no value by itself.

use std::time::Duration;

use super::Counter;

/// The first power of ten (unit: µs) that has buckets of its own; what took less shares one.
const FIRST_DECADE: u32 = 1;
/// The power of ten (unit: µs) from which on everything shares the last bucket.
const LAST_DECADE: u32 = 8;
const PER_DECADE: usize = 9;
const BUCKETS: usize = PER_DECADE * (LAST_DECADE - FIRST_DECADE) as usize + 2;

/// Upper bounds that are shown (unit: µs). Each is the upper bound of a bucket, so that the count up to it is exact.
pub const SHOWN_US: [u64; 19] = [
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
];

/// The durations that one worker has seen.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum_us: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum_us: Counter::default() }
    }
}

impl Histogram {
    /// Adds one. Only the owning worker may.
    pub fn add(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(index(us)) {
            bucket.add(1);
        }
        self.sum_us.add(us);
    }
}

/// The durations that several have seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durations {
    buckets: [u64; BUCKETS],
    sum_us: u64,
}

impl Default for Durations {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum_us: 0 }
    }
}

impl Durations {
    /// Adds what one worker has seen.
    pub fn add(&mut self, histogram: &Histogram) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum += bucket.value();
        }
        self.sum_us = self.sum_us.wrapping_add(histogram.sum_us.value());
    }

    /// Adds what others have seen.
    pub fn merge(&mut self, other: &Self) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += bucket;
        }
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How long they took together (unit: µs).
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// How many took at most `us`, which is exact for the upper bound of a bucket.
    pub fn up_to(&self, us: u64) -> u64 {
        self.buckets.iter().take(index(us) + 1).sum()
    }

    /// The duration (unit: µs) within which `share` of them were over, between the bounds of a bucket as if they were
    /// spread evenly; `None` if there were none.
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        let count = self.count();
        let wanted = ((count as f64 * share).ceil() as u64).clamp(1, count.max(1));
        let mut before = 0;
        for (index, in_bucket) in self.buckets.iter().copied().enumerate() {
            if in_bucket > 0 && before + in_bucket >= wanted {
                let (from, to) = (upper_us(index.checked_sub(1)), upper_us(Some(index)));
                let part = (wanted - before) as f64 / in_bucket as f64;
                return Some(from + ((to - from) as f64 * part) as u64);
            }
            before += in_bucket;
        }
        None
    }
}

/// The bucket of a duration. Its upper bound belongs to it, as Prometheus' `le` wants it.
fn index(us: u64) -> usize {
    let below = us.saturating_sub(1);
    let decade = below.checked_ilog10().unwrap_or(0);
    if decade < FIRST_DECADE {
        return 0;
    }
    if decade >= LAST_DECADE {
        return BUCKETS - 1;
    }
    let digit = (below / 10u64.pow(decade)) as usize;
    (decade - FIRST_DECADE) as usize * PER_DECADE + digit
}

/// The upper bound of a bucket (unit: µs); without one zero. The last has none, and pretends to be narrow.
fn upper_us(index: Option<usize>) -> u64 {
    let Some(index) = index else { return 0 };
    if index >= BUCKETS - 1 {
        return 10u64.pow(LAST_DECADE);
    }
    let Some(index) = index.checked_sub(1) else { return 10u64.pow(FIRST_DECADE) };
    let decade = FIRST_DECADE + (index / PER_DECADE) as u32;
    (index % PER_DECADE + 2) as u64 * 10u64.pow(decade)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(durations: &[u64]) -> Durations {
        let histogram = Histogram::default();
        durations.iter().for_each(|us| histogram.add(Duration::from_micros(*us)));
        let mut sum = Durations::default();
        sum.add(&histogram);
        sum
    }

    #[test]
    fn every_bound_that_is_shown_is_one_of_a_bucket() {
        for us in SHOWN_US {
            assert_eq!(upper_us(Some(index(us))), us);
            assert_eq!(index(us) + 1, index(us + 1), "{us}");
        }
    }

    #[test]
    fn quantiles_lie_where_the_durations_do() {
        let durations = of(&[100; 98].into_iter().chain([5_000, 7_000_000]).collect::<Vec<_>>());
        assert_eq!(durations.quantile_us(0.5), Some(95));
        assert_eq!(durations.quantile_us(0.99), Some(5_000));
        assert_eq!(durations.quantile_us(1.0), Some(7_000_000));
        assert_eq!(Durations::default().quantile_us(0.5), None);
        assert_eq!(of(&[u64::MAX]).quantile_us(0.5), Some(100_000_000));
    }

    proptest! {
        #[test]
        fn a_duration_is_within_the_bounds_of_its_bucket(us in 0u64..200_000_000) {
            let index = index(us);
            prop_assert!(us <= upper_us(Some(index)) || index == BUCKETS - 1);
            prop_assert!(index == 0 || us > upper_us(Some(index - 1)));
        }

        #[test]
        fn counts_up_to_a_shown_bound_are_exact(
            durations in proptest::collection::vec(0u64..200_000_000, 0..50),
            others in proptest::collection::vec(0u64..2_000, 0..50),
        ) {
            let mut sum = of(&durations);
            sum.merge(&of(&others));
            let all = || durations.iter().chain(&others);
            for bound in SHOWN_US {
                let count = all().filter(|us| **us <= bound).count();
                prop_assert_eq!(sum.up_to(bound), count as u64);
            }
            prop_assert_eq!(sum.count(), all().count() as u64);
            prop_assert_eq!(sum.sum_us(), all().sum::<u64>());
        }
    }
}
