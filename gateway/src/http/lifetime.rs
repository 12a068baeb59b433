//! How old a client's connection may become, and how many requests it may bring. One that is over ends with its next
//! answer (HTTP/1) or says goodbye and goes on with what it has (HTTP/2); nothing is cut off by it.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Bounds;

/// Connections that were opened together, as after a restart, end up to a tenth of their time apart.
const JITTER_DIVISOR: u32 = 10;

/// What is left of a connection's life.
#[derive(Debug)]
pub struct Lifetime {
    until: Instant,
    requests_left: Cell<u32>,
}

impl Lifetime {
    /// A connection begins.
    pub fn new(bounds: &Bounds, random: u64) -> Self {
        let Bounds { connection_lifetime, connection_requests, .. } = *bounds;
        Self {
            until: Instant::now() + connection_lifetime - jitter(connection_lifetime, random),
            requests_left: Cell::new(connection_requests),
        }
    }

    /// It brought a request.
    pub fn request(&self) {
        self.requests_left.set(self.requests_left.get().saturating_sub(1));
    }

    /// Whether it has brought all the requests that it may.
    pub fn is_used_up(&self) -> bool {
        self.requests_left.get() == 0
    }

    /// Whether it shall bring no more of them.
    pub fn is_over(&self, now: Instant) -> bool {
        self.is_used_up() || now >= self.until
    }

    /// When it is over at the latest.
    pub fn until(&self) -> Instant {
        self.until
    }
}

/// Any length up to a tenth.
fn jitter(lifetime: Duration, random: u64) -> Duration {
    let end_ns = (lifetime / JITTER_DIVISOR).as_nanos();
    let ns = (u128::from(random) * (end_ns + 1)) >> 64;
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::deadline::tests::bounds;

    #[tokio::test(start_paused = true)]
    async fn it_is_over_by_age_or_by_use() {
        let bounds = bounds();
        let start = Instant::now();
        let old = Lifetime::new(&bounds, 0);
        assert_eq!(old.until(), start + bounds.connection_lifetime);
        assert_eq!(Lifetime::new(&bounds, u64::MAX).until(), start + Duration::from_secs(900));
        assert!(!old.is_over(old.until() - Duration::from_nanos(1)) && old.is_over(old.until()));
        let used = Lifetime::new(&bounds, 0);
        used.request();
        assert!(!used.is_over(start));
        used.request();
        assert!(used.is_over(start), "`connection_requests` of the test's bounds is 2");
    }
}
