//! How a request is sent: over which connection, and once more or not when that fails.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response};

use crate::base::error::{Error, Kind};
use crate::config::Protocol;
use crate::http::body::RequestBody;
use crate::http::deadline::Deadline;
use crate::http::grpc;
use crate::http::proxy_protocol::Addresses;
use crate::observe::Counters;
use crate::upstream::balance::{Choice, Picked, Tried, View};
use crate::upstream::body::{AnswerBody, Carrier};
use crate::upstream::connection::{Connection, Failure};
use crate::upstream::dial::Dial;
use crate::upstream::endpoint::Outcome;
use crate::upstream::h2::{Target, Trunks};
use crate::upstream::pool::{Home, Pool};
use crate::upstream::retry::Effort;
use crate::upstream::{Local, Upstream};

/// What a worker sends requests with.
#[derive(Debug)]
pub struct Client {
    /// The number of the worker.
    worker: usize,
    pool: Rc<Pool>,
    trunks: Trunks,
    counters: Arc<Counters>,
}

/// Where a request goes, and who looks after it on the way.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The service, and how an endpoint of it is picked.
    pub choice: Choice<'a>,
    /// What the worker remembers of it.
    pub local: &'a Local,
    /// Where the client's connection comes from and went to.
    pub addresses: Addresses,
    /// How long the request may take.
    pub deadline: &'a Rc<Deadline>,
}

impl Client {
    /// A client without connections, for the worker of this number.
    pub fn new(worker: usize, counters: Arc<Counters>) -> Self {
        Self { worker, pool: Rc::default(), trunks: Trunks::default(), counters }
    }

    /// The endpoints of `upstream` as this worker sees them.
    pub fn view(&self, upstream: &Upstream) -> View {
        View::new(&upstream.group, self.worker)
    }

    /// Drops the idle connections that have expired or were closed by the other side, and those to addresses that
    /// requests go to no more.
    pub fn sweep<'v>(&self, views: impl IntoIterator<Item = &'v View>) {
        let used: HashSet<SocketAddr> = views.into_iter().flat_map(View::addresses).collect();
        self.pool.sweep(|address| used.contains(&address));
        self.trunks.sweep(|address| used.contains(&address));
    }

    /// Sends `request` until there is an answer for the client, or no more to be done.
    pub async fn send(
        &self,
        way: Way<'_>,
        request: Request<RequestBody>,
    ) -> Result<Response<AnswerBody>, Error> {
        let Way { choice, local, deadline, .. } = way;
        let upstream = choice.upstream;
        deadline.bound(whole_timeout(upstream.whole_timeout, request.headers()));
        let counted = (&local.budget, &self.counters.resilience);
        let (mut effort, mut request) = Effort::new(&upstream.retry, counted, deadline, request);
        let mut tried = Tried::default();
        loop {
            let pause;
            (request, pause) = match self.attempt(way, &mut tried, request).await {
                Ok(answer) => match effort.after_answer(&answer) {
                    Some(again) => again,
                    None => return Ok(answer),
                },
                Err(failure) => {
                    let (error, unsent) = match failure {
                        Failure::Unsent(request, error) => (error, Some(*request)),
                        Failure::Final(error) => (error, None),
                    };
                    effort.after(&error, unsent, choice.has_more(&tried)).ok_or(error)?
                }
            };
            deadline.pause(pause).await;
            if !choice.has_more(&tried) {
                tried = Tried::default();
            }
        }
    }

    /// Sends `request` once: to the first endpoint that takes it. One that cannot be connected to is passed over for
    /// the next, because nothing was sent yet; so is one that closed before it took anything.
    async fn attempt(
        &self,
        way: Way<'_>,
        tried: &mut Tried,
        mut request: Request<RequestBody>,
    ) -> Result<Response<AnswerBody>, Failure> {
        let Way { choice, deadline, .. } = way;
        let upstream = choice.upstream;
        let mut error = Error::from(Kind::UpstreamUnavailable);
        while let Some(picked) = choice.pick(tried) {
            deadline.trail.attempt(picked.address());
            let dial = upstream.dial(picked.address(), way.addresses);
            if upstream.protocol == Protocol::Http2 {
                match self.multiplexed(way, dial, request).await {
                    Ok(answer) => return Ok(self.answer(answer, way, picked)),
                    Err(Failure::Unsent(unsent, refused)) => {
                        (request, error) = (*unsent, failed(refused, &picked));
                        continue;
                    }
                    Err(Failure::Final(error)) => {
                        return Err(Failure::Final(failed(error, &picked)));
                    }
                }
            }
            if let Some(connection) = self.pool.take(dial.line()) {
                self.counters.upstream_connections_reused.add(1);
                match exchange(connection, way, request).await {
                    Ok(answer) => return Ok(self.answer(answer, way, picked)),
                    Err(Failure::Unsent(unsent, _)) => request = *unsent,
                    Err(Failure::Final(error)) => {
                        return Err(Failure::Final(failed(error, &picked)));
                    }
                }
            }
            deadline.connect(upstream.connect_timeout);
            let opened = Connection::open(dial, upstream.limits, deadline).await;
            let connection = match opened {
                Ok(connection) => connection,
                Err(refused) => {
                    error = failed(refused, &picked);
                    continue;
                }
            };
            self.counters.upstream_connections_opened.add(1);
            match exchange(connection, way, request).await {
                Ok(answer) => return Ok(self.answer(answer, way, picked)),
                Err(Failure::Unsent(unsent, closed)) => {
                    (request, error) = (*unsent, failed(closed, &picked));
                }
                Err(Failure::Final(error)) => return Err(Failure::Final(failed(error, &picked))),
            }
        }
        Err(match error.kind() {
            // Nobody was asked, and asking again makes nobody appear.
            Kind::UpstreamUnavailable => Failure::Final(error),
            _ => Failure::Unsent(Box::new(request), error),
        })
    }

    async fn multiplexed(
        &self,
        way: Way<'_>,
        dial: Dial<'_>,
        request: Request<RequestBody>,
    ) -> Result<(Response<()>, Carrier), Failure> {
        let upstream = way.choice.upstream;
        let target = Target {
            dial,
            limits: upstream.limits,
            keep: upstream.keep,
            connect_timeout: upstream.connect_timeout,
            response_timeout: upstream.response_timeout,
        };
        let (result, opened) = self.trunks.send(&target, request, way.deadline).await;
        if opened {
            self.counters.upstream_connections_opened.add(1);
        } else {
            self.counters.upstream_connections_reused.add(1);
        }
        let (head, exchange) = result?.into_parts();
        Ok((Response::from_parts(head, ()), Carrier::Http2(Box::new(exchange))))
    }

    fn answer(
        &self,
        (response, connection): (Response<()>, Carrier),
        way: Way<'_>,
        picked: Picked,
    ) -> Response<AnswerBody> {
        picked.observe(Outcome::Answered(response.status()));
        let keep = way.choice.upstream.keep;
        let home = Home { pool: Rc::clone(&self.pool), keep, picked };
        response.map(|()| AnswerBody::new(connection, home, way.deadline))
    }
}

async fn exchange(
    mut connection: Box<Connection>,
    way: Way<'_>,
    request: Request<RequestBody>,
) -> Result<(Response<()>, Carrier), Failure> {
    let response_timeout = way.choice.upstream.response_timeout;
    let response = connection.send(request, response_timeout, way.deadline).await?;
    Ok((response, Carrier::Http1(connection)))
}

/// The bound of the configuration, or the client's own if that is less.
fn whole_timeout(configured: Option<Duration>, fields: &HeaderMap) -> Option<Duration> {
    configured.into_iter().chain(grpc::timeout(fields)).min()
}

fn failed(error: Error, picked: &Picked) -> Error {
    picked.observe(Outcome::Failed(error.kind()));
    error
}
