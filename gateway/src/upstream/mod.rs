//! Services behind the gateway: which endpoint takes a request, over which connection, and what its failing means.
//!
//! A connection belongs either to the pool of its worker or to the one request that uses it, and whoever has it drives
//! it. So a request needs no second task, and one that is dropped midway closes the connection that it spoilt.

mod adaptive;
pub mod balance;
pub mod body;
pub mod breaker;
mod budget;
pub mod concurrency;
pub mod connection;
pub mod dial;
pub mod directory;
pub mod echo;
pub mod endpoint;
mod failure_share;
mod first_bytes;
pub mod guard;
pub mod h2;
mod hedge;
pub mod lines;
pub mod pool;
pub mod probe;
mod retry;
pub mod send;
mod shed;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use tokio::time::Instant;

use crate::base::error::{Error, Kind};
use crate::base::time::{Now, instant};
use crate::config::{self, Algorithm};
use crate::http::h1::head::Limits;
use crate::http::proxy_protocol::Addresses;
use crate::tls::client as tls;
use adaptive::Window;
use balance::Group;
use breaker::Breaker;
use budget::Budget;
use concurrency::{Limiter, Queue};
use dial::{Dial, Target, Told};
use directory::Directory;
use first_bytes::FirstBytes;
use guard::Guard;

/// A service and how it is talked to.
#[derive(Clone, Debug)]
pub struct Upstream {
    group: Arc<Group>,
    algorithm: Algorithm,
    connect_timeout: Duration,
    response_timeout: Duration,
    whole_timeout: Option<Duration>,
    retry: config::Retry,
    hedge: Option<config::Hedge>,
    breaker: Option<config::Breaker>,
    concurrency: Option<config::Concurrency>,
    /// The highest of the routes that lead here.
    top_priority: config::Priority,
    guard: Arc<Guard>,
    keep: Keep,
    protocol: config::Protocol,
    limits: Limits,
    tls: Option<Arc<tls::Client>>,
    proxy_protocol: bool,
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
    /// The service as configured, its endpoints put in force. What it may answer has the same `bounds` as what a client
    /// may ask.
    pub fn new(
        config: &config::Upstream,
        bounds: &config::Bounds,
        directory: &mut Directory,
        clients: &tls::Clients,
    ) -> Self {
        let tls = config.tls.as_ref().and_then(|tls| clients.get(tls).cloned());
        // What belongs to one client is kept for nobody.
        let connections = if config.proxy_protocol { 0 } else { config.idle_connections };
        Self {
            tls,
            proxy_protocol: config.proxy_protocol,
            group: directory.group(config, Now::read()),
            algorithm: config.balance.algorithm.clone(),
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
            whole_timeout: config.whole_timeout,
            retry: config.retry.clone(),
            hedge: config.hedge,
            breaker: config.breaker.clone(),
            concurrency: config.concurrency,
            top_priority: config::Priority::Low,
            guard: directory.guard(&config.name),
            protocol: config.protocol,
            keep: Keep { connections, time: config.idle_timeout },
            limits: Limits::new(bounds),
        }
    }

    /// How an endpoint of it is asked for a client with these `addresses`.
    pub fn target(&self, endpoint: SocketAddr, addresses: Addresses) -> Target<'_> {
        let told = self.proxy_protocol.then_some(Told::Client(addresses));
        Target {
            dial: Dial { endpoint, tls: self.tls.as_deref(), protocol: self.protocol, told },
            limits: self.limits,
            keep: self.keep,
            connect_timeout: self.connect_timeout,
            response_timeout: self.response_timeout,
            replay_bytes: self.retry.buffer_bytes,
        }
    }

    /// A route of this priority leads here.
    pub fn serves(&mut self, priority: config::Priority) {
        self.top_priority = self.top_priority.max(priority);
    }

    /// Its endpoints.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// When it is left alone, and how that stands.
    pub fn breaker(&self) -> Option<(&config::Breaker, &Breaker)> {
        self.breaker.as_ref().map(|terms| (terms, &self.guard.breaker))
    }

    /// What is answered instead of `error`, if that says that its breaker is open.
    pub fn fallback(&self, error: &Error) -> Option<Response<Bytes>> {
        let fallback = self.breaker.as_ref()?.fallback.as_ref()?;
        if error.kind() != Kind::BreakerOpen {
            return None;
        }
        let mut response = Response::new(fallback.body.clone());
        *response.status_mut() = fallback.status;
        *response.headers_mut() = fallback.headers.clone();
        Some(response)
    }

    /// How many requests it has at once, and how that stands.
    pub fn concurrency(&self) -> Option<(&config::Concurrency, &Limiter)> {
        self.concurrency.as_ref().map(|terms| (terms, &self.guard.limiter))
    }

    /// What sends a request from `client` to the same endpoint as others, if anything does.
    pub fn key(&self, head: &Parts, from: (IpAddr, Option<&str>)) -> Option<u64> {
        balance::key(&self.algorithm, head, from)
    }
}

/// What one worker remembers of an upstream, for as long as the configuration has it.
#[derive(Debug)]
pub struct Local {
    guard: Arc<Guard>,
    budget: Budget,
    queue: Queue,
    window: Window,
    first_bytes: FirstBytes,
}

impl Local {
    /// Of a service that stands behind `guard`.
    pub fn new(guard: Arc<Guard>) -> Rc<Self> {
        let budget = Budget::new(Instant::from_std(instant()));
        let (queue, window, first_bytes) = Default::default();
        Rc::new(Self { guard, budget, queue, window, first_bytes })
    }

    /// What the worker remembers of `upstream` too: the same service goes on with what is known about it.
    pub fn of(upstream: &Upstream, before: Option<&Rc<Self>>) -> Rc<Self> {
        match before {
            Some(before) if Arc::ptr_eq(&before.guard, &upstream.guard) => Rc::clone(before),
            _ => Self::new(Arc::clone(&upstream.guard)),
        }
    }
}
