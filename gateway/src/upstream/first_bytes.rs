//! How long requests of late waited for the head of their answer, and which of these times so large a share of them had
//! at most. One worker adds and asks; nothing is shared.
//!
//! A histogram with [`PARTS`] buckets to each power of two microseconds is exact to an eighth, whatever the times are.
//! Two of them take turns, each for [`WINDOW`], so that what counts is what came in the last ten to twenty seconds. The
//! percentile is looked for once a second, because it costs a walk through both.

use std::cell::{Cell, OnceCell};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Share;

/// For how long one of the two histograms is added to.
const WINDOW: Duration = Duration::from_secs(10);
/// How often the percentile is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// With fewer times nobody knows what is usual. A percentile needs as many as have one beyond it, too.
const SAMPLES_MIN: u64 = 100;
/// Buckets to each power of two.
const PARTS: u32 = 8;
/// Powers of two: the last ends beyond two minutes.
const POWERS: u32 = 25;
const BUCKETS: usize = (PARTS * POWERS) as usize;

/// The times of one worker for one upstream. Without a sample it costs no more than a pointer.
#[derive(Debug, Default)]
pub(super) struct FirstBytes(OnceCell<Box<Times>>);

#[derive(Debug)]
struct Times {
    began: Cell<Instant>,
    looked: Cell<Option<Instant>>,
    found: Cell<Option<Duration>>,
    /// Which percentile that is.
    wanted: Cell<Share>,
    present: Histogram,
    past: Histogram,
}

#[derive(Debug)]
struct Histogram([Cell<u32>; BUCKETS]);

impl FirstBytes {
    /// A request waited so long, or gave up after so long.
    pub(super) fn sample(&self, took: Duration, now: Instant) {
        let times = self.0.get_or_init(|| Times::new(now));
        times.turn(now);
        if let Some(bucket) = times.present.0.get(index(took)) {
            bucket.set(bucket.get().saturating_add(1));
        }
    }

    /// How long `share` of the requests waited at most; `None` as long as too few are known.
    pub(super) fn percentile(&self, share: Share, now: Instant) -> Option<Duration> {
        let times = self.0.get()?;
        let is_known = |looked| now.saturating_duration_since(looked) < LOOK;
        if times.looked.get().is_some_and(is_known) && times.wanted.get() == share {
            return times.found.get();
        }
        times.turn(now);
        times.looked.set(Some(now));
        times.wanted.set(share);
        times.found.set(times.percentile(share));
        times.found.get()
    }
}

impl Times {
    fn new(now: Instant) -> Box<Self> {
        let histogram = || Histogram(std::array::from_fn(|_| Cell::new(0)));
        Box::new(Self {
            began: Cell::new(now),
            looked: Cell::new(None),
            found: Cell::new(None),
            wanted: Cell::new(Share::ZERO),
            present: histogram(),
            past: histogram(),
        })
    }

    /// Begins a new histogram where the present one has had its time.
    fn turn(&self, now: Instant) {
        let age = now.saturating_duration_since(self.began.get());
        if age < WINDOW {
            return;
        }
        let is_old = age >= WINDOW * 2;
        for (present, past) in self.present.0.iter().zip(&self.past.0) {
            let count = present.take();
            past.set(if is_old { 0 } else { count });
        }
        self.began.set(now);
    }

    fn percentile(&self, share: Share) -> Option<Duration> {
        let counts = || self.present.0.iter().zip(&self.past.0);
        let counts = || counts().map(|(one, other)| u64::from(one.get()) + u64::from(other.get()));
        let sum: u64 = counts().sum();
        let is_one_beyond = share.compare(sum.saturating_sub(1), sum).is_ge();
        if sum < SAMPLES_MIN || !is_one_beyond {
            return None;
        }
        let mut within = 0;
        let index = counts().position(|count| {
            within += count;
            share.compare(within, sum).is_ge()
        });
        index.map(upper)
    }
}

/// The bucket of a time: up to [`PARTS`] microseconds each has one of its own.
fn index(took: Duration) -> usize {
    let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let parts = u64::from(PARTS);
    if us < parts {
        return us as usize;
    }
    // Shifted so that the leading bit and the three after it are left.
    let shift = us.ilog2() - PARTS.ilog2();
    let index = u64::from(shift) * parts + (us >> shift);
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// Where a bucket ends.
fn upper(index: usize) -> Duration {
    let next = index as u64 + 1;
    let parts = u64::from(PARTS);
    let us = match next.checked_sub(parts) {
        None => next,
        Some(beyond) => (parts + beyond % parts) << (beyond / parts),
    };
    Duration::from_micros(us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::instant;
    use proptest::prelude::*;

    const P95: Share = Share::per_million(950_000);

    fn start() -> Instant {
        Instant::from_std(instant())
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    proptest! {
        #[test]
        fn a_time_lies_within_an_eighth_below_the_end_of_its_bucket(us in 0u64..100_000_000) {
            let end = upper(index(Duration::from_micros(us))).as_micros() as u64;
            prop_assert!(us < end && end <= us + us / 8 + 1, "{us} {end}");
        }

        #[test]
        fn a_percentile_is_that_of_all_times_but_for_an_eighth(
            times in proptest::collection::vec(0u64..10_000_000, 100..400),
            per_mille in 500u32..990,
        ) {
            let (seen, now) = (FirstBytes::default(), start());
            times.iter().for_each(|us| seen.sample(Duration::from_micros(*us), now));
            let share = Share::per_million(per_mille * 1000);
            let found = seen.percentile(share, now).unwrap().as_micros() as u64;
            let mut sorted = times;
            sorted.sort_unstable();
            let rank = (sorted.len() * per_mille as usize).div_ceil(1000);
            let exact = sorted[rank - 1];
            prop_assert!(exact < found && found <= exact + exact / 8 + 1, "{exact} {found}");
        }
    }

    #[test]
    fn few_times_say_nothing_and_a_percentile_needs_one_beyond() {
        let (seen, now) = (FirstBytes::default(), start());
        (0..99).for_each(|_| seen.sample(ms(1), now));
        assert_eq!(seen.percentile(P95, now), None);
        seen.sample(ms(1), now);
        assert_eq!(seen.percentile(P95, now), None, "it is looked for once a second");
        assert_eq!(seen.percentile(P95, now + LOOK), Some(Duration::from_micros(1024)));
        let rare = Share::per_million(999_000);
        assert_eq!(seen.percentile(rare, now + LOOK), None);
        (0..900).for_each(|_| seen.sample(ms(1), now));
        assert!(seen.percentile(rare, now + LOOK * 2).is_some());
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let (seen, now) = (FirstBytes::default(), start());
        (0..100).for_each(|_| seen.sample(ms(100), now));
        assert!(seen.percentile(P95, now).unwrap() >= ms(100));
        let later = now + WINDOW;
        (0..1000).for_each(|_| seen.sample(ms(1), later));
        assert!(seen.percentile(Share::per_million(990_000), later).unwrap() >= ms(100));
        let later = later + WINDOW;
        (0..100).for_each(|_| seen.sample(ms(1), later));
        assert!(seen.percentile(Share::per_million(990_000), later).unwrap() < ms(2));
        assert_eq!(seen.percentile(P95, later + WINDOW * 2), None);
        seen.sample(Duration::MAX, later);
    }
}
