//! How a request is sent: over which connection, and once more or not when that fails.

use std::rc::Rc;
use std::sync::Arc;

use http::{Request, Response};

use crate::base::error::{Error, Kind};
use crate::http::body::RequestBody;
use crate::http::deadline::Deadline;
use crate::observe::Counters;
use crate::upstream::attempts::Attempts;
use crate::upstream::body::AnswerBody;
use crate::upstream::connection::{Connection, Failure};
use crate::upstream::pool::{Home, Pool};
use crate::upstream::retry::Effort;
use crate::upstream::{Local, Tour, Upstream};

/// What a worker sends requests with.
#[derive(Debug)]
pub struct Client {
    pool: Rc<Pool>,
    counters: Arc<Counters>,
}

/// Where a request goes, and who looks after it on the way.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The service.
    pub upstream: &'a Upstream,
    /// What the worker remembers of it.
    pub local: &'a Local,
    /// How long the request may take.
    pub deadline: &'a Rc<Deadline>,
    /// What became of it.
    pub attempts: &'a Attempts,
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

    /// Sends `request` until there is an answer for the client, or no more to be done.
    pub async fn send(
        &self,
        way: Way<'_>,
        request: Request<RequestBody>,
    ) -> Result<Response<AnswerBody>, Error> {
        let Way { upstream, local, deadline, .. } = way;
        deadline.bound(upstream.whole_timeout);
        let counted = (&local.budget, &self.counters.resilience);
        let (mut effort, mut request) = Effort::new(&upstream.retry, counted, deadline, request);
        let mut tour = Tour::new(upstream, local);
        loop {
            let pause;
            (request, pause) = match self.attempt(way, &mut tour, request).await {
                Ok(answer) => match effort.after_answer(&answer) {
                    Some(again) => again,
                    None => return Ok(answer),
                },
                Err(failure) => {
                    let (error, unsent) = match failure {
                        Failure::Unsent(request, error) => (error, Some(*request)),
                        Failure::Final(error) => (error, None),
                    };
                    effort.after(&error, unsent, tour.has_more()).ok_or(error)?
                }
            };
            deadline.pause(pause).await;
            tour.go_on();
        }
    }

    /// Sends `request` once: to the first endpoint that takes it. One that cannot be connected to is passed over for the
    /// next, because nothing was sent yet; so is one that closed before it took anything.
    async fn attempt(
        &self,
        way: Way<'_>,
        tour: &mut Tour<'_>,
        mut request: Request<RequestBody>,
    ) -> Result<Response<AnswerBody>, Failure> {
        let Way { upstream, deadline, attempts, .. } = way;
        let mut error = Error::from(Kind::UpstreamConnect);
        for endpoint in tour {
            attempts.choose(endpoint, deadline.now());
            if let Some(connection) = self.pool.take(endpoint) {
                self.counters.upstream_connections_reused.add(1);
                match self.exchange(connection, way, request).await {
                    Err(Failure::Unsent(unsent, _)) => request = *unsent,
                    done => return done,
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
            match self.exchange(connection, way, request).await {
                Err(Failure::Unsent(unsent, failed)) => (request, error) = (*unsent, failed),
                done => return done,
            }
        }
        Err(Failure::Unsent(Box::new(request), error))
    }

    async fn exchange(
        &self,
        mut connection: Box<Connection>,
        way: Way<'_>,
        request: Request<RequestBody>,
    ) -> Result<Response<AnswerBody>, Failure> {
        let Way { upstream, deadline, attempts, .. } = way;
        attempts.send(deadline.now());
        let sent = connection.send(request, upstream.response_timeout, deadline).await;
        match &sent {
            Ok(_) => attempts.answer(deadline.now()),
            Err(Failure::Unsent(..)) => attempts.unsent(),
            Err(Failure::Final(_)) => {}
        }
        let home = Home { pool: Rc::clone(&self.pool), keep: upstream.keep };
        Ok(sent?.map(|incoming| AnswerBody::new(incoming, connection, home, deadline)))
    }
}
