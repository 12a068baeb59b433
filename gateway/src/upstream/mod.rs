//! Services behind the gateway: which endpoint takes a request, over which connection, and what its failing means.
//!
//! A connection belongs either to the pool of its worker or to the one request that uses it, and whoever has it drives
//! it. So a request needs no second task, and one that is dropped midway closes the connection that it spoilt.

pub mod balance;
pub mod body;
mod budget;
pub mod connection;
pub mod dial;
pub mod directory;
pub mod echo;
pub mod endpoint;
pub mod h2;
pub mod pool;
mod retry;
pub mod send;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use crate::base::time::{Now, instant};
use crate::config::{self, Algorithm};
use crate::http::h1::head::Limits;
use crate::http::proxy_protocol::Addresses;
use crate::tls::client as tls;
use balance::Group;
use budget::Budget;
use dial::Dial;
use directory::Directory;

/// A service and how it is talked to.
#[derive(Clone, Debug)]
pub struct Upstream {
    group: Arc<Group>,
    algorithm: Algorithm,
    connect_timeout: Duration,
    response_timeout: Duration,
    whole_timeout: Option<Duration>,
    retry: config::Retry,
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
            protocol: config.protocol,
            keep: Keep { connections, time: config.idle_timeout },
            limits: Limits::new(bounds),
        }
    }

    /// How an endpoint of it is connected to for a client with these `addresses`.
    pub fn dial(&self, endpoint: SocketAddr, addresses: Addresses) -> Dial<'_> {
        let addresses = self.proxy_protocol.then_some(addresses);
        Dial { endpoint, tls: self.tls.as_deref(), protocol: self.protocol, addresses }
    }

    /// What sends a request from `client` to the same endpoint as others, if anything does.
    pub fn key<B>(&self, request: &Request<B>, client: IpAddr) -> Option<u64> {
        balance::key(&self.algorithm, request, client)
    }
}

/// What one worker remembers of an upstream, for as long as the configuration has it.
#[derive(Debug)]
pub struct Local {
    budget: Budget,
}

impl Default for Local {
    fn default() -> Self {
        Self { budget: Budget::new(Instant::from_std(instant())) }
    }
}
