//! What became of a request on its way, for whoever writes it down: how often it was sent, where to, and when.

use std::cell::Cell;
use std::net::SocketAddr;

use tokio::time::Instant;

/// The record of one request.
#[derive(Debug, Default)]
pub struct Attempts {
    count: Cell<u32>,
    endpoint: Cell<Option<SocketAddr>>,
    chosen: Cell<Option<Instant>>,
    sent: Cell<Option<Instant>>,
    answered: Cell<Option<Instant>>,
}

impl Attempts {
    /// Times that some of it may have been sent; 0 if no endpoint took it.
    pub fn count(&self) -> u32 {
        self.count.get()
    }

    /// The endpoint that it was meant for last.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint.get()
    }

    /// When that one was chosen: until `sent` it was connected to, unless a connection was there.
    pub fn chosen(&self) -> Option<Instant> {
        self.chosen.get()
    }

    /// When it was sent last.
    pub fn sent(&self) -> Option<Instant> {
        self.sent.get()
    }

    /// When the head of the answer was there.
    pub fn answered(&self) -> Option<Instant> {
        self.answered.get()
    }

    pub(super) fn choose(&self, endpoint: SocketAddr, now: Instant) {
        self.endpoint.set(Some(endpoint));
        self.chosen.set(Some(now));
    }

    pub(super) fn send(&self, now: Instant) {
        self.sent.set(Some(now));
        self.count.set(self.count.get().saturating_add(1));
    }

    pub(super) fn unsent(&self) {
        self.count.set(self.count.get().saturating_sub(1));
    }

    pub(super) fn answer(&self, now: Instant) {
        self.answered.set(Some(now));
    }
}
