//! How many of the last requests have failed, for a breaker that opens by their share.
//!
//! Time is cut into [`PARTS`] parts of the window. Each worker counts in cells of its own, one a part, so that a
//! request that goes well touches nothing that another worker writes; only a failure adds up what all have counted.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::FailureShare;

/// Parts of a window. What is seen reaches back for the whole window but for what is left of the present part.
const PARTS: u64 = 10;

/// What all workers have seen.
#[derive(Debug)]
pub(super) struct Seen(Box<[OfWorker]>);

/// Two cache lines apart from every other, because CPUs fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct OfWorker([Cell; PARTS as usize]);

#[derive(Debug, Default)]
struct Cell {
    requests: Count,
    failures: Count,
}

/// When the part of time began, in the upper half, and what was counted since. Whoever reads one never takes the count
/// of one part for that of another.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Seen {
    /// Nothing yet.
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| OfWorker::default()).collect())
    }

    /// A request of this worker has ended.
    pub(super) fn add(&self, terms: &FailureShare, worker: usize, has_failed: bool, now_ms: u64) {
        let part = Part::of(terms, now_ms);
        let cell = self.0.get(worker).and_then(|of| of.0.get(part.index));
        let Some(Cell { requests, failures }) = cell else { return };
        requests.add(part.start);
        if has_failed {
            failures.add(part.start);
        }
    }

    /// Requests in the window, and how many of them have failed.
    pub(super) fn recent(&self, terms: &FailureShare, now_ms: u64) -> (u64, u64) {
        let part = Part::of(terms, now_ms);
        let cells = self.0.iter().flat_map(|of| &of.0);
        cells.fold((0, 0), |(requests, failures), cell| {
            (requests + cell.requests.within(&part), failures + cell.failures.within(&part))
        })
    }

    /// Whether too many of them have.
    pub(super) fn is_too_much(&self, terms: &FailureShare, now_ms: u64) -> bool {
        let (requests, failures) = self.recent(terms, now_ms);
        requests >= u64::from(terms.min_requests) && terms.share.compare(failures, requests).is_ge()
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        for cell in self.0.iter().flat_map(|of| &of.0) {
            cell.requests.0.store(0, Ordering::Relaxed);
            cell.failures.0.store(0, Ordering::Relaxed);
        }
    }
}

/// A part of time.
struct Part {
    index: usize,
    /// In milliseconds. It wraps after 49 days, which no window is as long as.
    start: u32,
    width_ms: u32,
}

impl Part {
    fn of(terms: &FailureShare, now_ms: u64) -> Self {
        let window_ms = u32::try_from(terms.window.as_millis()).unwrap_or(u32::MAX);
        let width_ms = (window_ms / PARTS as u32).max(1);
        let number = now_ms / u64::from(width_ms);
        let index = usize::try_from(number % PARTS).unwrap_or(0);
        // The low half is what is meant.
        let start = (number * u64::from(width_ms)) as u32;
        Self { index, start, width_ms }
    }
}

impl Count {
    fn add(&self, start: u32) {
        let next = |word: u64| match (word >> 32) as u32 == start {
            true => Some(word & START | u64::from((word as u32).saturating_add(1))),
            false => Some(u64::from(start) << 32 | 1),
        };
        // It never refuses. No other worker writes here, but whoever clears does.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok();
    }

    fn within(&self, part: &Part) -> u64 {
        let word = self.0.load(Ordering::Relaxed);
        let age_ms = part.start.wrapping_sub((word >> 32) as u32);
        if age_ms / part.width_ms < PARTS as u32 { u64::from(word as u32) } else { 0 }
    }
}

const START: u64 = !(u32::MAX as u64);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Share;

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        End(usize, bool),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            20 => (0u64..400).prop_map(Step::Wait),
            5 => (0u64..4000).prop_map(Step::Wait),
            60 => (0usize..3, any::<bool>()).prop_map(|(worker, failed)| Step::End(worker, failed)),
            1 => Just(Step::Clear),
        ];
        proptest::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn it_has_seen_what_a_list_of_everything_has(
            steps in steps(),
            window_ms in 1000u64..5000,
            min_requests in 1u32..20,
            percent in 1u32..=100,
            // Also where the beginning of a part wraps.
            mut now_ms in prop_oneof![Just(0), Just(u64::from(u32::MAX) - 5000), 0..u64::MAX >> 1],
        ) {
            let window = Duration::from_millis(window_ms);
            let share = Share::per_million(percent * 10_000);
            let terms = FailureShare { share, window, min_requests };
            let seen = Seen::new(3);
            let width_ms = window_ms / PARTS;
            let mut all: Vec<(u64, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Wait(ms) => now_ms += ms,
                    Step::End(worker, failed) => {
                        all.push((now_ms / width_ms, failed));
                        seen.add(&terms, worker, failed, now_ms);
                    }
                    Step::Clear => {
                        all.clear();
                        seen.clear();
                    }
                }
                let recent = || all.iter().filter(|(part, _)| part + PARTS > now_ms / width_ms);
                let (requests, failed) = (recent().count(), recent().filter(|one| one.1).count());
                prop_assert_eq!(seen.recent(&terms, now_ms), (requests as u64, failed as u64));
                let expected = requests >= min_requests as usize
                    && failed * 100 >= requests * percent as usize;
                prop_assert_eq!(seen.is_too_much(&terms, now_ms), expected);
            }
        }
    }

    #[test]
    fn another_window_counts_no_request_that_is_older() {
        let terms = |seconds| FailureShare {
            share: Share::WHOLE,
            window: Duration::from_secs(seconds),
            min_requests: 1,
        };
        let seen = Seen::new(1);
        seen.add(&terms(100), 0, true, 60_000);
        assert_eq!(seen.recent(&terms(100), 100_000), (1, 1));
        assert_eq!(seen.recent(&terms(10), 100_000), (0, 0));
        assert_eq!(seen.recent(&terms(10), 60_000), (1, 1));
        assert_eq!(seen.recent(&terms(100), 170_000), (0, 0));
    }
}
