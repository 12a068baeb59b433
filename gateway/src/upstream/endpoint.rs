//! One address of a service, and what is known about it. What every request changes is counted by the worker that
//! sends it; what all workers share is written only when something happens to the endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::StatusCode;
use tokio::time::Instant;

use crate::base::error::{Blame, Kind};
use crate::base::time::instant;
use crate::observe::Counter;
use crate::upstream::breaker::Breaker;

/// An endpoint as the configuration in force has it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// Its share of the requests, beside those of the others.
    pub weight: u32,
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
    workers: Box<[Block]>,
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

/// The numbers of an endpoint, all workers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// See [`Block::active`].
    pub active: u64,
    /// See [`Block::requests`].
    pub requests: u64,
    /// See [`Block::failures`].
    pub failures: u64,
}

impl EndpointState {
    /// Of an endpoint that nothing is known about. No other has its `id`.
    pub fn new(id: u64, workers: usize) -> Self {
        let workers = (0..workers).map(|_| Block::default()).collect();
        let breaker = Breaker::new(Instant::from_std(instant()));
        Self { id, failures_in_a_row: AtomicU32::new(0), breaker, workers }
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
            Some(true) => self.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1,
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

    /// The numbers of all workers.
    pub fn totals(&self) -> Totals {
        let sum = |counter: fn(&Block) -> &Counter| {
            self.workers.iter().map(|block| counter(block).value()).sum()
        };
        Totals {
            active: sum(|block| &block.active),
            requests: sum(|block| &block.requests),
            failures: sum(|block| &block.failures),
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_in_a_row_and_only_those_of_the_endpoint() {
        let state = EndpointState::new(1, 2);
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
        let state = EndpointState::new(1, 2);
        for worker in 0..2 {
            state.of_worker(worker).unwrap().requests.add(1 + worker as u64);
        }
        assert!(state.of_worker(2).is_none());
        assert_eq!(state.totals(), Totals { active: 0, requests: 3, failures: 0 });
    }
}
