//! What a request leaves behind on its way: which endpoint it went to, how often it was sent, and when it got how far.
//! Whoever moves the request on notes it; its account reads it at the end. Nothing decides by it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::observe::resilience::Hedge;

/// The notes of one request.
#[derive(Debug, Default)]
pub struct Trail {
    /// When its head was read.
    started: Cell<Option<Instant>>,
    /// When it was first sent on its way to an endpoint.
    left: Cell<Option<Instant>>,
    connecting: Cell<Option<Instant>>,
    connect: Cell<Duration>,
    sending: Cell<Option<Instant>>,
    answered: Cell<Option<Instant>>,
    endpoint: Cell<Option<SocketAddr>>,
    attempts: Cell<u32>,
    has_queued: Cell<bool>,
    hedge: Cell<Option<Hedge>>,
    received_bytes: Cell<u64>,
}

/// How long each part of a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// From its head until it was first sent on its way, or until it ended here.
    pub wait: Duration,
    /// Connecting to endpoints, all attempts together; zero over a connection that was there.
    pub connect: Duration,
    /// From sending it, the last time, to the head of the answer; `None` if it was never sent.
    pub response: Option<Duration>,
    /// From its head to the head of the answer; `None` if there was none.
    pub first_byte: Option<Duration>,
    /// From its head to the end of the answer.
    pub total: Duration,
}

impl Trail {
    /// A request begins: what the one before left is gone.
    pub fn begin(&self, now: Instant) {
        self.started.set(Some(now));
        self.left.set(None);
        self.connecting.set(None);
        self.connect.set(Duration::ZERO);
        self.sending.set(None);
        self.answered.set(None);
        self.endpoint.set(None);
        self.attempts.set(0);
        self.has_queued.set(false);
        self.hedge.set(None);
        self.received_bytes.set(0);
    }

    /// It waits, because the service has as many as it may at once.
    pub fn queue(&self) {
        self.has_queued.set(true);
    }

    /// It is to be sent to `endpoint`.
    pub fn attempt(&self, endpoint: SocketAddr) {
        self.endpoint.set(Some(endpoint));
        self.attempts.set(self.attempts.get().saturating_add(1));
    }

    /// A connection to the endpoint is made.
    pub fn connecting(&self, now: Instant) {
        self.leave(now);
        self.end_connecting(now);
        self.connecting.set(Some(now));
    }

    /// It is sent over a connection.
    pub fn sending(&self, now: Instant) {
        self.leave(now);
        self.end_connecting(now);
        self.sending.set(Some(now));
        self.answered.set(None);
        // Its body is sent from the beginning.
        self.received_bytes.set(0);
    }

    /// The head of its answer is there, or it is known that there will be none.
    pub fn answered(&self, now: Instant) {
        self.end_connecting(now);
        if self.answered.get().is_none() {
            self.answered.set(Some(now));
        }
    }

    /// Adds what an attempt at the request has left that had notes of its own. Where both say something, `other`
    /// stands.
    pub fn join(&self, other: &Self) {
        if self.left.get().is_none() {
            self.left.set(other.left.get());
        }
        self.attempts.set(self.attempts.get().saturating_add(other.attempts.get()));
        self.connect.set(self.connect.get() + other.connect.get());
        if other.attempts.get() > 0 {
            self.endpoint.set(other.endpoint.get());
            self.sending.set(other.sending.get());
            self.answered.set(other.answered.get());
        }
    }

    /// It was sent to a second endpoint beside the first, with this result.
    pub fn hedged(&self, result: Hedge) {
        self.hedge.set(Some(result));
    }

    /// So many bytes of its body came in.
    pub fn received(&self, bytes: u64) {
        self.received_bytes.set(self.received_bytes.get() + bytes);
    }

    /// Where it was sent last.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint.get()
    }

    /// How often it was sent, or was to be.
    pub fn attempts(&self) -> u32 {
        self.attempts.get()
    }

    /// What came of sending it to a second endpoint beside the first; `None` if it was not.
    pub fn hedge(&self) -> Option<Hedge> {
        self.hedge.get()
    }

    /// Whether it had to wait for others.
    pub fn has_queued(&self) -> bool {
        self.has_queued.get()
    }

    /// Bytes of its body that came in.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.get()
    }

    /// How long everything took, now that it is over.
    pub fn times(&self, now: Instant) -> Times {
        let started = self.started.get().unwrap_or(now);
        let answered = self.answered.get();
        let until = |end: Instant, start: Instant| end.saturating_duration_since(start);
        let response = self.sending.get().map(|sending| until(answered.unwrap_or(now), sending));
        Times {
            wait: until(self.left.get().or(answered).unwrap_or(now), started),
            connect: self.connect.get(),
            response,
            first_byte: answered.map(|answered| until(answered, started)),
            total: until(now, started),
        }
    }

    fn leave(&self, now: Instant) {
        if self.left.get().is_none() {
            self.left.set(Some(now));
        }
    }

    fn end_connecting(&self, now: Instant) {
        if let Some(began) = self.connecting.take() {
            self.connect.set(self.connect.get() + now.saturating_duration_since(began));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(1);

    #[test]
    fn each_part_is_measured_and_a_new_request_begins_afresh() {
        #[expect(clippy::disallowed_methods, reason = "an instant to count from")]
        let zero = Instant::from_std(std::time::Instant::now());
        let at = |step: u32| zero + STEP * step;
        let trail = Trail::default();
        trail.begin(at(0));
        trail.attempt("127.0.0.1:1".parse().unwrap());
        trail.connecting(at(1));
        trail.attempt("127.0.0.1:2".parse().unwrap());
        trail.connecting(at(3));
        trail.sending(at(4));
        trail.received(7);
        trail.sending(at(4));
        trail.received(7);
        trail.answered(at(9));
        trail.answered(at(10));
        let times = Times {
            wait: STEP,
            connect: STEP * 3,
            response: Some(STEP * 5),
            first_byte: Some(STEP * 9),
            total: STEP * 12,
        };
        assert_eq!(trail.times(at(12)), times);
        assert_eq!((trail.attempts(), trail.received_bytes()), (2, 7));
        assert_eq!(trail.endpoint(), Some("127.0.0.1:2".parse().unwrap()));
        let whole = Trail::default();
        whole.begin(at(0));
        whole.join(&trail);
        whole.join(&Trail::default());
        assert_eq!(whole.times(at(12)), times);
        assert_eq!((whole.attempts(), whole.endpoint()), (2, trail.endpoint()));
        whole.hedged(Hedge::Won);
        whole.begin(at(13));
        assert_eq!(whole.hedge(), None);
        trail.begin(at(20));
        trail.answered(at(21));
        let refused = Times { wait: STEP, first_byte: Some(STEP), total: STEP, ..Times::default() };
        assert_eq!(trail.times(at(21)), refused);
        assert_eq!((trail.attempts(), trail.endpoint()), (0, None));
    }
}
