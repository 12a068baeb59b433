//! Services behind the gateway: which endpoint takes a request, over which connection, and what its failing means.
//!
//! A connection belongs either to the pool of its worker or to the one request that uses it, and whoever has it drives
//! it. So a request needs no second task, and one that is dropped midway closes the connection that it spoilt.

pub mod attempts;
pub mod body;
mod budget;
pub mod connection;
pub mod echo;
pub mod pool;
mod retry;
pub mod send;

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::time::instant;
use crate::config;
use budget::Budget;
use connection::Limits;

/// A service with its endpoints resolved.
#[derive(Clone, Debug)]
pub struct Upstream {
    endpoints: Box<[SocketAddr]>,
    connect_timeout: Duration,
    response_timeout: Duration,
    whole_timeout: Option<Duration>,
    retry: config::Retry,
    keep: Keep,
    limits: Limits,
}

/// What becomes of a connection that is done with its request.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Idle connections kept to one endpoint.
    pub connections: usize,
    /// For how long.
    pub time: Duration,
}

impl Upstream {
    /// The service as configured. What it may answer has the same `bounds` as what a client may ask; `echo` is where
    /// the gateway's own is served.
    pub fn new(
        config: &config::Upstream,
        bounds: &config::Bounds,
        echo: Option<SocketAddr>,
    ) -> Self {
        let address = |endpoint: &config::Endpoint| match endpoint {
            config::Endpoint::Address(address) => Some(*address),
            config::Endpoint::Echo => echo,
        };
        Self {
            endpoints: config.endpoints.iter().filter_map(address).collect(),
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
            whole_timeout: config.whole_timeout,
            retry: config.retry.clone(),
            keep: Keep { connections: config.idle_connections, time: config.idle_timeout },
            limits: Limits::new(bounds),
        }
    }
}

/// What one worker remembers of an upstream, for as long as the configuration has it.
#[derive(Debug)]
pub struct Local {
    /// Which endpoint is next.
    turn: Cell<usize>,
    budget: Budget,
}

impl Default for Local {
    fn default() -> Self {
        Self { turn: Cell::new(0), budget: Budget::new(Instant::from_std(instant())) }
    }
}

/// The endpoints in the order in which one request tries them, another one first each time.
#[derive(Debug)]
struct Tour<'u> {
    endpoints: &'u [SocketAddr],
    first: usize,
    tried: usize,
}

impl<'u> Tour<'u> {
    fn new(upstream: &'u Upstream, local: &Local) -> Self {
        let endpoints = &*upstream.endpoints;
        let first = local.turn.get() % endpoints.len().max(1);
        local.turn.set(first + 1);
        Self { endpoints, first, tried: 0 }
    }

    /// Whether an endpoint is left that was not tried.
    fn has_more(&self) -> bool {
        self.tried < self.endpoints.len()
    }

    /// Begins with the first one again if none is left.
    fn go_on(&mut self) {
        if !self.has_more() {
            self.tried = 0;
        }
    }
}

impl Iterator for Tour<'_> {
    type Item = SocketAddr;

    fn next(&mut self) -> Option<SocketAddr> {
        if !self.has_more() {
            return None;
        }
        let index = (self.first + self.tried) % self.endpoints.len();
        self.tried += 1;
        self.endpoints.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_take_turns() {
        let endpoints: Vec<SocketAddr> =
            ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(|text| text.parse().unwrap()).into();
        let service = config::Upstream {
            name: "users".to_owned(),
            endpoints: endpoints.into_iter().map(config::Endpoint::Address).collect(),
            connect_timeout: Duration::ZERO,
            response_timeout: Duration::ZERO,
            whole_timeout: None,
            retry: config::tests::retry(),
            idle_connections: 0,
            idle_timeout: Duration::ZERO,
        };
        let bounds = crate::http::deadline::tests::bounds();
        let upstream = Upstream::new(&service, &bounds, None);
        let local = Local::default();
        let ports = || Tour::new(&upstream, &local).map(|at| at.port()).collect::<Vec<_>>();
        assert_eq!(ports(), [1, 2, 3]);
        assert_eq!(ports(), [2, 3, 1]);
        assert_eq!(ports(), [3, 1, 2]);
        assert_eq!(ports(), [1, 2, 3]);
    }
}
