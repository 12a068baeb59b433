//! How slowly a client may send a body, or take one. It has as much time as two pieces of a body may be apart, waiting
//! uses that up, and what it moves gives it back at a fixed rate: who keeps the rate may pause now and then, who drips
//! is out of time soon. Only waiting for the client counts.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Bounds;

/// What a client has left.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    most: Cell<Duration>,
    left: Cell<Duration>,
    /// Since when the client is waited for.
    since: Cell<Option<Instant>>,
    suspended: Cell<bool>,
}

impl Pace {
    pub(super) fn new(bounds: &Bounds) -> Self {
        Self {
            bytes_per_second: bounds.body_bytes_per_second,
            most: Cell::new(bounds.idle_timeout),
            left: Cell::new(bounds.idle_timeout),
            since: Cell::new(None),
            suspended: Cell::new(false),
        }
    }

    /// A request begins.
    pub(super) fn begin(&self) {
        self.suspended.set(false);
    }

    /// Until the next request nobody is hurried who sends.
    pub(super) fn suspend(&self) {
        self.suspended.set(true);
    }

    /// Whether who sends must keep a rate.
    pub(super) fn is_kept(&self) -> bool {
        self.bytes_per_second > 0 && !self.suspended.get()
    }

    /// Another body begins, of which two pieces may be `most` apart.
    pub(super) fn reset(&self, most: Duration) {
        self.most.set(most);
        self.left.set(most);
        self.since.set(None);
    }

    /// The client is waited for: how long it has, if nothing moves.
    pub(super) fn wait(&self, now: Instant) -> Instant {
        let since = self.since.get().unwrap_or(now);
        self.since.set(Some(since));
        since + self.left.get()
    }

    /// Whether the client is waited for.
    pub(super) fn is_running(&self) -> bool {
        self.since.get().is_some()
    }

    /// The client moved so much.
    pub(super) fn moved(&self, bytes: usize, now: Instant) {
        let most = self.most.get();
        if self.since.get().is_none() && self.left.get() == most {
            return;
        }
        let waited = self.since.take().map(|since| now.saturating_duration_since(since));
        let ns = (bytes as u64).saturating_mul(1_000_000_000).checked_div(self.bytes_per_second);
        let earned = ns.map_or(most, Duration::from_nanos);
        let left = self.left.get().saturating_sub(waited.unwrap_or_default());
        self.left.set(left.saturating_add(earned).min(most));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::deadline::tests::bounds;

    /// How long a client lasts that sends `bytes` every so often, up to a thousand times.
    fn lasts(pace: &Pace, start: Instant, every: Duration, bytes: usize) -> Option<Duration> {
        let mut now = start;
        for _ in 0..1000 {
            let until = pace.wait(now);
            now += every;
            if until <= now {
                return Some(until - start);
            }
            pace.moved(bytes, now);
        }
        None
    }

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "an instant to count from")]
        Instant::from_std(std::time::Instant::now())
    }

    #[test]
    fn who_drips_is_out_of_time_and_who_keeps_the_rate_is_not() {
        // 10 bytes a second, and pauses of two seconds.
        let (bounds, second) = (bounds(), Duration::from_secs(1));
        let lasts_at = |every, bytes| lasts(&Pace::new(&bounds), start(), every, bytes);
        assert_eq!(lasts_at(second, 10), None);
        assert_eq!(lasts_at(second * 2 - Duration::from_nanos(1), 20), None);
        assert_eq!(lasts_at(second * 2, 1000), Some(second * 2), "no pause is longer");
        assert_eq!(lasts_at(second, 0), Some(second * 2));
        assert_eq!(lasts_at(second, 5), Some(second * 3));
        let unhurried = Pace::new(&Bounds { body_bytes_per_second: 0, ..bounds });
        assert!(!unhurried.is_kept());
        assert_eq!(lasts(&unhurried, start(), second, 1), None);
    }

    #[test]
    fn waiting_for_others_costs_nothing() {
        let (pace, start) = (Pace::new(&bounds()), start());
        let second = Duration::from_secs(1);
        assert_eq!(pace.wait(start), start + second * 2);
        pace.moved(0, start + second);
        assert!(!pace.is_running());
        let later = start + second * 100;
        assert_eq!(pace.wait(later), later + second);
        assert_eq!(pace.wait(later + second / 2), later + second, "it is waited for all along");
    }

    proptest! {
        #[test]
        fn nobody_takes_longer_than_pause_and_rate_allow(
            steps in proptest::collection::vec((0u64..3000, 0usize..40), 1..100),
        ) {
            let (pace, start) = (Pace::new(&bounds()), start());
            let (mut now, mut sum, mut waited) = (start, 0, Duration::ZERO);
            for (ms, bytes) in steps {
                let until = pace.wait(now);
                now += Duration::from_millis(ms);
                if until <= now {
                    break;
                }
                waited += Duration::from_millis(ms);
                sum += bytes;
                pace.moved(bytes, now);
            }
            let earned = Duration::from_millis(sum as u64 * 100);
            prop_assert!(waited <= Duration::from_secs(2) + earned);
        }
    }
}
