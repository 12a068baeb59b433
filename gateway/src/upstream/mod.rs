//! Services behind the gateway: which endpoint takes a request, over which connection, and what its failing means.
//!
//! A connection belongs either to the pool of its worker or to the one request that uses it, and whoever has it drives
//! it. So a request needs no second task, and one that is dropped midway closes the connection that it spoilt.

pub mod body;
pub mod connection;
pub mod echo;
pub mod pool;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};

use crate::base::error::{Error, Kind};
use crate::config;
use crate::http::body::RequestBody;
use crate::http::deadline::Deadline;
use crate::observe::Counters;
use body::AnswerBody;
use connection::{Connection, Failure, Limits};
use pool::Pool;

/// A service with its endpoints resolved.
#[derive(Clone, Debug)]
pub struct Upstream {
    endpoints: Box<[SocketAddr]>,
    connect_timeout: Duration,
    response_timeout: Duration,
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
            keep: Keep { connections: config.idle_connections, time: config.idle_timeout },
            limits: Limits::new(bounds),
        }
    }

    /// The endpoints in the order in which to try them, another one first each time.
    fn turn(&self, turn: &Cell<usize>) -> impl Iterator<Item = SocketAddr> {
        let first = turn.get() % self.endpoints.len().max(1);
        turn.set(first + 1);
        self.endpoints.iter().copied().cycle().skip(first).take(self.endpoints.len())
    }
}

/// What a worker sends requests with.
#[derive(Debug)]
pub struct Client {
    pool: Rc<Pool>,
    counters: Arc<Counters>,
}

impl Client {
    /// A client without connections.
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { pool: Rc::default(), counters }
    }

    /// Drops the idle connections that have expired or were closed by the other side.
    pub fn sweep(&self) {
        self.pool.sweep();
    }

    /// Sends `request` to an endpoint of `upstream`. An endpoint that cannot be connected to is passed over for the
    /// next one, because nothing was sent yet; so is one that closed before it took anything.
    pub async fn send(
        &self,
        upstream: &Upstream,
        turn: &Cell<usize>,
        mut request: Request<RequestBody>,
        deadline: &Rc<Deadline>,
    ) -> Result<Response<AnswerBody>, Error> {
        let mut error = Error::from(Kind::UpstreamConnect);
        for endpoint in upstream.turn(turn) {
            deadline.trail.attempt(endpoint);
            if let Some(connection) = self.pool.take(endpoint) {
                self.counters.upstream_connections_reused.add(1);
                match self.exchange(connection, upstream, request, deadline).await {
                    Ok(response) => return Ok(response),
                    Err(Failure::Unsent(unsent, _)) => request = *unsent,
                    Err(Failure::Final(error)) => return Err(error),
                }
            }
            deadline.connect(upstream.connect_timeout);
            let connection = match Connection::open(endpoint, &upstream.limits, deadline).await {
                Ok(connection) => connection,
                Err(failed) => {
                    error = failed;
                    continue;
                }
            };
            self.counters.upstream_connections_opened.add(1);
            match self.exchange(connection, upstream, request, deadline).await {
                Ok(response) => return Ok(response),
                Err(Failure::Unsent(unsent, failed)) => (request, error) = (*unsent, failed),
                Err(Failure::Final(error)) => return Err(error),
            }
        }
        Err(error)
    }

    async fn exchange(
        &self,
        mut connection: Box<Connection>,
        upstream: &Upstream,
        request: Request<RequestBody>,
        deadline: &Rc<Deadline>,
    ) -> Result<Response<AnswerBody>, Failure> {
        let response = connection.send(request, upstream.response_timeout, deadline).await?;
        let home = pool::Home { pool: Rc::clone(&self.pool), keep: upstream.keep };
        Ok(response.map(|incoming| AnswerBody::new(incoming, connection, home, deadline)))
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
            idle_connections: 0,
            idle_timeout: Duration::ZERO,
        };
        let bounds = crate::http::deadline::tests::bounds();
        let upstream = Upstream::new(&service, &bounds, None);
        let turn = Cell::new(0);
        let ports = || upstream.turn(&turn).map(|address| address.port()).collect::<Vec<_>>();
        assert_eq!(ports(), [1, 2, 3]);
        assert_eq!(ports(), [2, 3, 1]);
        assert_eq!(ports(), [3, 1, 2]);
        assert_eq!(ports(), [1, 2, 3]);
    }
}
