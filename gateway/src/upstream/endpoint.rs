//! One address of a service, and what is known about it. What every request changes is counted by the worker that
//! sends it; what all workers share is written only when something happens to the endpoint.
//!
//! ```text
//!                 a check fails                    failures in a row
//!   unhealthy ◀──────────────────── healthy ──────────────────────────▶ ejected
//!       └────────────────────────▶     ▲ ◀───────────────────────────────┘
//!                checks pass           │            its time is over
//!                              slow start from here
//! ```

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use crate::base::error::{Blame, Kind};
use crate::base::time::{BootTime, Now, UtcMillis, instant};
use crate::config::Ejection;
use crate::observe::Counter;
use crate::upstream::breaker::Breaker;

/// An endpoint as the configuration in force has it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// Its share of the requests, beside those of the others.
    pub weight: u32,
    /// The zone that it is in.
    pub zone: Option<Arc<str>>,
    /// What is known about it.
    pub state: Arc<EndpointState>,
}

/// What is known about an endpoint. It is the same for all workers and stays when the configuration changes.
#[derive(Debug)]
pub struct EndpointState {
    id: u64,
    failures_in_a_row: AtomicU32,
    /// Of what is sent to it, if there is to be one.
    pub breaker: Breaker,
    unhealthy: AtomicBool,
    /// 0 while it is not ejected.
    ejected_until: AtomicU64,
    /// When it came or came back; 0 if it was there from the start.
    ready_since: AtomicU64,
    ejections: AtomicU64,
    history: Mutex<History>,
    workers: Box<[Block]>,
}

/// What happened to an endpoint; looked at only when something does.
#[derive(Debug)]
struct History {
    since: UtcMillis,
    why: Option<String>,
    /// Ejections that followed each other closely.
    ejections_in_a_row: u32,
    last_ejection: Duration,
}

/// What one worker counts about an endpoint. Two cache lines apart from every other, because CPUs fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Block {
    /// Requests that it has taken and not answered to the end.
    pub active: Counter,
    /// Requests that were sent to it.
    pub requests: Counter,
    /// Requests that it failed.
    pub failures: Counter,
}

/// What came of a request that an endpoint was picked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered with this status.
    Answered(StatusCode),
    /// It did not.
    Failed(Kind),
}

/// Whether it takes requests, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It does.
    Healthy,
    /// Health checks say that it cannot.
    Unhealthy,
    /// It failed too many requests in a row.
    Ejected,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Healthy, Self::Unhealthy, Self::Ejected];

    /// Its name in status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
        }
    }
}

/// The numbers of an endpoint, all workers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// See [`Block::active`].
    pub active: u64,
    /// See [`Block::requests`].
    pub requests: u64,
    /// See [`Block::failures`].
    pub failures: u64,
    /// How often it was ejected.
    pub ejections: u64,
}

impl EndpointState {
    /// Of an endpoint that nothing is known about. No other has its `id`.
    pub fn new(id: u64, workers: usize, now: Now) -> Self {
        Self {
            id,
            failures_in_a_row: AtomicU32::new(0),
            breaker: Breaker::new(workers, Instant::from_std(instant())),
            unhealthy: AtomicBool::new(false),
            ejected_until: AtomicU64::new(0),
            ready_since: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            history: Mutex::new(History {
                since: now.utc,
                why: None,
                ejections_in_a_row: 0,
                last_ejection: Duration::ZERO,
            }),
            workers: (0..workers).map(|_| Block::default()).collect(),
        }
    }

    /// Tells it from every other.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What a worker counts. Only that worker may.
    pub fn of_worker(&self, worker: usize) -> Option<&Block> {
        self.workers.get(worker)
    }

    /// Takes note of what came of a request, and answers how many have failed in a row.
    pub fn observe(&self, outcome: Outcome) -> u32 {
        match outcome.is_failure() {
            Some(true) => self.failures_in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1),
            Some(false) => {
                // Read before it is written, so that the line stays shared while all is well.
                if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
                    self.failures_in_a_row.store(0, Ordering::Relaxed);
                }
                0
            }
            None => 0,
        }
    }

    /// Whether it takes requests.
    pub fn condition(&self) -> Condition {
        if self.unhealthy.load(Ordering::Relaxed) {
            Condition::Unhealthy
        } else if self.ejected_until.load(Ordering::Relaxed) != 0 {
            Condition::Ejected
        } else {
            Condition::Healthy
        }
    }

    /// How many requests it failed one after the other, up to now.
    pub fn failures_in_a_row(&self) -> u32 {
        self.failures_in_a_row.load(Ordering::Relaxed)
    }

    /// Since when it is in its condition, and why.
    pub fn history(&self) -> (UtcMillis, Option<String>) {
        let history = self.history_mut();
        (history.since, history.why.clone())
    }

    /// When it came or came back; 0 if it was there from the start.
    pub fn ready_since(&self) -> BootTime {
        BootTime(self.ready_since.load(Ordering::Relaxed))
    }

    /// The numbers of all workers.
    pub fn totals(&self) -> Totals {
        let sum = |counter: fn(&Block) -> &Counter| {
            self.workers.iter().map(|block| counter(block).value()).sum()
        };
        Totals {
            active: sum(|block| &block.active),
            requests: sum(|block| &block.requests),
            failures: sum(|block| &block.failures),
            ejections: self.ejections.load(Ordering::Relaxed),
        }
    }

    /// It begins to take requests now, beside others that already do.
    pub(super) fn joins(&self, now: Now) {
        self.ready_since.store(now.boot.0, Ordering::Relaxed);
    }

    /// What health checks say about it. Answers whether that is news.
    pub(super) fn set_healthy(&self, healthy: bool, why: Option<String>, now: Now) -> bool {
        if self.unhealthy.swap(!healthy, Ordering::Relaxed) != healthy {
            // Still sick, but perhaps of something else.
            if !healthy {
                self.history_mut().why = why;
            }
            return false;
        }
        self.changed(why, now);
        true
    }

    /// Takes no requests for a while: the longer, the more often it had to be done.
    pub(super) fn eject(&self, terms: &Ejection, why: String, now: Now) -> Duration {
        let mut history = self.history_mut();
        // A pause as long as the last ejection is a new beginning.
        let pause = now.boot.0.saturating_sub(self.ready_since.load(Ordering::Relaxed));
        if u128::from(pause) > history.last_ejection.as_nanos() {
            history.ejections_in_a_row = 0;
        }
        history.ejections_in_a_row = history.ejections_in_a_row.saturating_add(1);
        let time = terms.time.saturating_mul(history.ejections_in_a_row).min(terms.max_time);
        history.last_ejection = time;
        drop(history);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.ejected_until.store(now.boot.0.saturating_add(nanoseconds).max(1), Ordering::Relaxed);
        self.ejections.fetch_add(1, Ordering::Relaxed);
        self.changed(Some(why), now);
        time
    }

    /// Whether its ejection is over by `now`.
    pub(super) fn is_due(&self, now: BootTime) -> bool {
        (1..=now.0).contains(&self.ejected_until.load(Ordering::Relaxed))
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.ejected_until.load(Ordering::Relaxed) != 0
    }

    /// Takes requests again, unless checks are against it.
    pub(super) fn release(&self, now: Now) {
        self.ejected_until.store(0, Ordering::Relaxed);
        if self.condition() == Condition::Healthy {
            self.changed(None, now);
        }
    }

    fn changed(&self, why: Option<String>, now: Now) {
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        if self.condition() == Condition::Healthy {
            self.joins(now);
        }
        let mut history = self.history_mut();
        (history.since, history.why) = (now.utc, why);
    }

    fn history_mut(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outcome {
    /// Whether the endpoint has failed; `None` where it was no fault of its.
    pub fn is_failure(self) -> Option<bool> {
        match self {
            Self::Answered(status) => Some(status.is_server_error()),
            Self::Failed(kind) => (kind.blame() == Blame::Upstream).then_some(true),
        }
    }

    /// In a word or number, for whoever asks why.
    pub fn describe(self) -> String {
        match self {
            Self::Answered(status) => status.as_u16().to_string(),
            Self::Failed(kind) => kind.name().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Share;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> Now {
        Now { boot: BootTime(1000 * SECOND + seconds * SECOND), utc: UtcMillis(seconds * 1000) }
    }

    #[test]
    fn failures_are_counted_in_a_row_and_only_those_of_the_endpoint() {
        let state = EndpointState::new(1, 2, at(0));
        let (fine, sick) = (StatusCode::NOT_FOUND, StatusCode::BAD_GATEWAY);
        assert_eq!(state.observe(Outcome::Failed(Kind::UpstreamTimeout)), 1);
        assert_eq!(state.observe(Outcome::Answered(sick)), 2);
        state.observe(Outcome::Failed(Kind::RequestTimeout));
        assert_eq!(state.observe(Outcome::Failed(Kind::UpstreamConnect)), 3, "a client's is none");
        assert_eq!(state.observe(Outcome::Answered(fine)), 0);
        assert_eq!(state.observe(Outcome::Failed(Kind::UpstreamReset)), 1);
    }

    #[test]
    fn workers_count_apart() {
        let state = EndpointState::new(1, 2, at(0));
        for worker in 0..2 {
            state.of_worker(worker).unwrap().requests.add(1 + worker as u64);
        }
        assert!(state.of_worker(2).is_none());
        assert_eq!(state.totals(), Totals { requests: 3, ..Totals::default() });
    }

    #[test]
    fn ejections_grow_as_long_as_they_follow_each_other() {
        let state = EndpointState::new(1, 1, at(0));
        let terms = Ejection {
            failures: 1,
            time: Duration::from_secs(10),
            max_time: Duration::from_secs(25),
            max_ejected: Share::WHOLE,
        };
        let eject = |seconds| state.eject(&terms, "502".to_owned(), at(seconds)).as_secs();
        assert_eq!(eject(0), 10);
        assert!(!state.is_due(at(9).boot) && state.is_due(at(10).boot));
        state.release(at(10));
        assert_eq!(eject(15), 20);
        state.release(at(35));
        assert_eq!(eject(40), 25, "and no longer than this");
        state.release(at(65));
        assert_eq!(eject(91), 10, "it was well for longer than it was ejected");
        assert_eq!(state.totals().ejections, 4);
        assert_eq!(state.history(), (UtcMillis(91_000), Some("502".to_owned())));
    }

    #[test]
    fn checks_and_ejections_are_both_heard() {
        let state = EndpointState::new(1, 1, at(0));
        assert_eq!(state.ready_since(), BootTime(0));
        assert!(!state.set_healthy(true, None, at(1)));
        assert!(state.set_healthy(false, Some("refused".to_owned()), at(2)));
        assert_eq!(state.condition(), Condition::Unhealthy);
        assert!(!state.set_healthy(false, Some("503".to_owned()), at(3)));
        assert_eq!(state.history(), (UtcMillis(2000), Some("503".to_owned())));
        let terms = Ejection { time: Duration::from_secs(9), ..Ejection::default() };
        state.eject(&terms, "502".to_owned(), at(4));
        assert!(state.set_healthy(true, None, at(5)));
        assert_eq!((state.condition(), state.ready_since()), (Condition::Ejected, BootTime(0)));
        state.release(at(13));
        assert_eq!((state.condition(), state.ready_since()), (Condition::Healthy, at(13).boot));
    }
}
