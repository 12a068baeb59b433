//! Services behind the gateway: which endpoint takes a request, over which connection, and what its failing means.
//!
//! A connection belongs either to the pool of its worker or to the one request that uses it, and whoever has it drives
//! it. So a request needs no second task, and one that is dropped midway closes the connection that it spoilt.

pub mod balance;
pub mod body;
pub mod connection;
pub mod directory;
pub mod echo;
pub mod endpoint;
pub mod pool;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};

use crate::base::error::{Error, Kind};
use crate::config;
use crate::http::body::RequestBody;
use crate::http::deadline::Deadline;
use crate::observe::Counters;
use balance::{Choice, Group, Picked, Tried, View};
use body::AnswerBody;
use connection::{Connection, Failure, Limits};
use directory::Directory;
use endpoint::Outcome;
use hyper::body::Incoming;
use pool::Pool;

/// A service and how it is talked to.
#[derive(Clone, Debug)]
pub struct Upstream {
    group: Arc<Group>,
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
    /// The service as configured, its endpoints put in force. What it may answer has the same `bounds` as what a client
    /// may ask.
    pub fn new(
        config: &config::Upstream,
        bounds: &config::Bounds,
        directory: &mut Directory,
    ) -> Self {
        Self {
            group: directory.group(config),
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
            keep: Keep { connections: config.idle_connections, time: config.idle_timeout },
            limits: Limits::new(bounds),
        }
    }
}

/// What a worker sends requests with.
#[derive(Debug)]
pub struct Client {
    /// The number of the worker.
    worker: usize,
    pool: Rc<Pool>,
    counters: Arc<Counters>,
}

impl Client {
    /// A client without connections, for the worker of this number.
    pub fn new(worker: usize, counters: Arc<Counters>) -> Self {
        Self { worker, pool: Rc::default(), counters }
    }

    /// The endpoints of `upstream` as this worker sees them.
    pub fn view(&self, upstream: &Upstream) -> View {
        View::new(&upstream.group, self.worker)
    }

    /// Drops the idle connections that have expired or were closed by the other side.
    pub fn sweep(&self) {
        self.pool.sweep();
    }

    /// Sends `request` to an endpoint of the upstream. One that cannot be connected to is passed over for the next,
    /// because nothing was sent yet; so is one that closed before it took anything.
    pub async fn send(
        &self,
        choice: Choice<'_>,
        mut request: Request<RequestBody>,
        deadline: &Rc<Deadline>,
    ) -> Result<Response<AnswerBody>, Error> {
        let upstream = choice.upstream;
        let mut error = Error::from(Kind::UpstreamConnect);
        let mut tried = Tried::default();
        while let Some(picked) = choice.pick(&mut tried) {
            deadline.trail.attempt(picked.address());
            if let Some(connection) = self.pool.take(picked.address()) {
                self.counters.upstream_connections_reused.add(1);
                match exchange(connection, upstream, request, deadline).await {
                    Ok(answer) => return Ok(self.answer(answer, upstream, picked, deadline)),
                    Err(Failure::Unsent(unsent, _)) => request = *unsent,
                    Err(Failure::Final(error)) => return Err(failed(error, &picked)),
                }
            }
            deadline.connect(upstream.connect_timeout);
            let opened = Connection::open(picked.address(), &upstream.limits, deadline).await;
            let connection = match opened {
                Ok(connection) => connection,
                Err(refused) => {
                    error = failed(refused, &picked);
                    continue;
                }
            };
            self.counters.upstream_connections_opened.add(1);
            match exchange(connection, upstream, request, deadline).await {
                Ok(answer) => return Ok(self.answer(answer, upstream, picked, deadline)),
                Err(Failure::Unsent(unsent, closed)) => {
                    (request, error) = (*unsent, failed(closed, &picked));
                }
                Err(Failure::Final(error)) => return Err(failed(error, &picked)),
            }
        }
        Err(error)
    }

    fn answer(
        &self,
        (response, connection): (Response<Incoming>, Box<Connection>),
        upstream: &Upstream,
        picked: Picked,
        deadline: &Rc<Deadline>,
    ) -> Response<AnswerBody> {
        picked.observe(Outcome::Answered(response.status()));
        let home = pool::Home { pool: Rc::clone(&self.pool), keep: upstream.keep, picked };
        response.map(|incoming| AnswerBody::new(incoming, connection, home, deadline))
    }
}

async fn exchange(
    mut connection: Box<Connection>,
    upstream: &Upstream,
    request: Request<RequestBody>,
    deadline: &Deadline,
) -> Result<(Response<Incoming>, Box<Connection>), Failure> {
    let response = connection.send(request, upstream.response_timeout, deadline).await?;
    Ok((response, connection))
}

fn failed(error: Error, picked: &Picked) -> Error {
    picked.observe(Outcome::Failed(error.kind()));
    error
}
