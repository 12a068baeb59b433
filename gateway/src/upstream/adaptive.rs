//! A limit of concurrency that follows the latency of the service: it grows while answers take what they usually take,
//! and shrinks when they take longer, because then they wait in a queue somewhere.
//!
//! It is Gradient2 of Netflix's concurrency-limits (`Gradient2Limit.java`), with its constants: in each window
//!
//! ```text
//! gradient = TOLERANCE * usual latency / latency of the window, from 0.5 to 1
//! limit    = limit * (1 - SMOOTHING) + (limit * gradient + HEADROOM) * SMOOTHING
//! ```
//!
//! Two things differ. What is usual is learnt thirty times slower from a service that is full, or a load that stays
//! would soon be taken for usual and the limit creep up; not so at its lowest, as Envoy's gradient controller measures
//! its `minRTT`. A service that has become slow for good is believed after some minutes. And a window in which requests
//! timed out shrinks the limit to nine tenths, as the AIMD limit of the same library does, because a service that hangs
//! has no latency to learn from.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Adaptive;

const TOLERANCE: f64 = 1.5;
const SMOOTHING: f64 = 0.2;
/// Requests that may always queue somewhere.
const HEADROOM: f64 = 4.0;
/// Windows that the usual latency is an average of.
const USUAL_WINDOWS: f64 = 100.0;
/// The same while the service is full: five minutes.
const FULL_WINDOWS: f64 = 3000.0;
/// Where the limit comes to rest while the gradient is 0.5.
const LOWEST: f64 = 2.0 * HEADROOM;
const BACKOFF: f64 = 0.9;
/// Where the limit begins, if its bounds allow that.
const INITIAL: u32 = 20;

const WINDOW: Duration = Duration::from_millis(100);
const WINDOW_SAMPLES: u32 = 10;

/// What all workers share: both numbers in one word, so that they are exchanged together.
#[derive(Debug, Default)]
pub(super) struct Shared(AtomicU64);

/// What one worker saw since its window began.
#[derive(Debug, Default)]
pub(super) struct Window {
    began: Cell<Option<Instant>>,
    latency: Cell<Duration>,
    samples: Cell<u32>,
    active_max: Cell<u32>,
    timed_out: Cell<bool>,
}

/// The limit and what it was learnt from.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Learnt {
    limit: f32,
    usual_s: f32,
}

impl Shared {
    /// The limit as it is, within its bounds.
    pub(super) fn limit(&self, bounds: Adaptive) -> u32 {
        self.learnt(bounds).limit as u32
    }

    /// Takes note of a request that took so long to the head of its answer, or timed out, while so many were `active`.
    pub(super) fn sample(
        &self,
        window: &Window,
        bounds: Adaptive,
        (latency, timed_out): (Duration, bool),
        (active, now): (u32, Instant),
    ) {
        let began = window.began.get().unwrap_or(now);
        window.began.set(Some(began));
        window.latency.set(window.latency.get() + latency);
        window.samples.set(window.samples.get() + 1);
        window.active_max.set(window.active_max.get().max(active));
        window.timed_out.set(window.timed_out.get() || timed_out);
        let samples = window.samples.get();
        if now.saturating_duration_since(began) < WINDOW || samples < WINDOW_SAMPLES {
            return;
        }
        let found = self.0.load(Ordering::Relaxed);
        let latency_s = window.latency.take().as_secs_f64() / f64::from(samples);
        let active_max = window.active_max.take();
        let learnt =
            self.learnt(bounds).after(bounds, latency_s, active_max, window.timed_out.take());
        window.samples.set(0);
        window.began.set(Some(now));
        // Where another worker was first, its window will do.
        let (packed, order) = (learnt.packed(), Ordering::Relaxed);
        self.0.compare_exchange(found, packed, order, order).ok();
    }

    fn learnt(&self, bounds: Adaptive) -> Learnt {
        let word = self.0.load(Ordering::Relaxed);
        let learnt = match word {
            0 => Learnt { limit: INITIAL as f32, usual_s: 0.0 },
            _ => Learnt {
                limit: f32::from_bits((word >> 32) as u32),
                usual_s: f32::from_bits(word as u32),
            },
        };
        Learnt { limit: learnt.limit.clamp(bounds.min as f32, bounds.max as f32), ..learnt }
    }
}

impl Learnt {
    fn after(self, bounds: Adaptive, latency_s: f64, active_max: u32, timed_out: bool) -> Self {
        let limit = f64::from(self.limit);
        let within = |limit: f64| limit.clamp(bounds.min.into(), bounds.max.into()) as f32;
        if timed_out {
            return Self { limit: within(limit * BACKOFF), ..self };
        }
        let latency_s = latency_s.max(1e-6);
        let lowest = f64::from(bounds.min).max(LOWEST);
        let is_full = active_max >= self.limit as u32 && limit > lowest + 0.5;
        let mut usual_s = match f64::from(self.usual_s) {
            0.0 => latency_s,
            usual_s if is_full && latency_s > usual_s => {
                usual_s + (latency_s - usual_s) / FULL_WINDOWS
            }
            usual_s => usual_s + (latency_s - usual_s) / USUAL_WINDOWS,
        };
        // After a time of overload it forgets faster, or it would take that for usual.
        if usual_s / latency_s > 2.0 {
            usual_s *= 0.95;
        }
        // Nobody can say what more would do as long as it is not asked for.
        if f64::from(active_max) < limit / 2.0 {
            return Self { usual_s: usual_s as f32, ..self };
        }
        let gradient = (TOLERANCE * usual_s / latency_s).clamp(0.5, 1.0);
        let wanted = limit * gradient + HEADROOM;
        let limit = within(limit * (1.0 - SMOOTHING) + wanted * SMOOTHING);
        Self { limit, usual_s: usual_s as f32 }
    }

    fn packed(self) -> u64 {
        u64::from(self.limit.to_bits()) << 32 | u64::from(self.usual_s.to_bits())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Adaptive = Adaptive { min: 5, max: 400 };

    /// A service that answers `capacity` requests at once in `base` seconds each; others wait for them.
    fn latency_s(base: f64, capacity: u32, active: u32) -> f64 {
        base * (f64::from(active) / f64::from(capacity)).max(1.0)
    }

    fn run(mut learnt: Learnt, windows: u32, base: f64, capacity: u32) -> Learnt {
        for _ in 0..windows {
            let active = learnt.limit as u32;
            learnt = learnt.after(BOUNDS, latency_s(base, capacity, active), active, false);
        }
        learnt
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(
            min in 1u32..100,
            more in 0u32..1000,
            seen in proptest::collection::vec((0.0f64..100.0, 0u32..2000, any::<bool>()), 0..200),
        ) {
            let bounds = Adaptive { min, max: min + more };
            let shared = Shared::default();
            for (latency_s, active, timed_out) in seen {
                let learnt = shared.learnt(bounds).after(bounds, latency_s, active, timed_out);
                shared.0.store(learnt.packed(), Ordering::Relaxed);
                prop_assert!((bounds.min..=bounds.max).contains(&shared.limit(bounds)));
                prop_assert!(learnt.usual_s.is_finite());
            }
            // Bounds may change by a reload.
            let others = Adaptive { min: 3, max: 7 };
            prop_assert!((3..=7).contains(&shared.limit(others)));
        }

        #[test]
        fn it_finds_what_the_service_bears_and_recovers(
            base in 0.001f64..0.5,
            capacity in 20u32..150,
        ) {
            let fresh = Shared::default().learnt(BOUNDS);
            let usual = run(fresh, 400, base, capacity);
            let share = f64::from(usual.limit) / f64::from(capacity);
            prop_assert!((0.9..2.5).contains(&share), "{share} of the capacity");
            // It gets ten times as slow: fewer are let in, though never below the bound.
            let slow = run(usual, 60, base * 10.0, capacity);
            prop_assert!(slow.limit < usual.limit * 0.7, "{} of {}", slow.limit, usual.limit);
            let again = run(slow, 400, base, capacity);
            prop_assert!(again.limit >= usual.limit * 0.7, "{} of {}", again.limit, usual.limit);
            // What stays becomes usual, and what is usual does not creep.
            let settled = run(slow, 5000, base * 10.0, capacity);
            let share = f64::from(settled.limit) / f64::from(capacity);
            prop_assert!((0.9..2.5).contains(&share), "{share} of the capacity after a while");
        }
    }

    #[test]
    fn it_does_not_grow_unasked_and_shrinks_when_nothing_answers() {
        let idle = Learnt { limit: 50.0, usual_s: 0.01 };
        assert_eq!(idle.after(BOUNDS, 0.01, 24, false).limit, 50.0);
        assert!(idle.after(BOUNDS, 0.01, 25, false).limit > 50.0);
        assert_eq!(idle.after(BOUNDS, 10.0, 50, true).limit, 45.0);
    }

    #[test]
    fn a_window_takes_time_and_samples() {
        let shared = Shared::default();
        let window = Window::default();
        let start = Instant::from_std(crate::base::time::instant());
        let ms = Duration::from_millis;
        let sample = |at: u64| {
            shared.sample(&window, BOUNDS, (ms(10), false), (20, start + ms(at)));
            shared.0.load(Ordering::Relaxed) != 0
        };
        assert!((0..50).all(|_| !sample(0)), "not long enough");
        assert!(sample(100));
        assert_eq!(shared.limit(BOUNDS), 20);
        assert!((0..9).all(|_| sample(300) && shared.limit(BOUNDS) == 20), "too few");
        assert!(sample(300));
        assert_eq!(shared.limit(BOUNDS), 21);
    }
}
