//! How a request is sent: over which connection, and once more or not when that fails.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, Response};
use tokio::time::Instant;

use crate::base::error::{Error, Kind};
use crate::config::{Breaker, Concurrency, Limit, Priority, Timeouts};
use crate::http::body::RequestBody;
use crate::http::deadline::Deadline;
use crate::http::grpc;
use crate::http::proxy_protocol::Addresses;
use crate::limit::Admitted;
use crate::observe::Counters;
use crate::observe::resilience::Resilience;
use crate::upstream::balance::{Choice, Group, Picked, Tried, View};
use crate::upstream::body::{AnswerBody, Carrier};
use crate::upstream::breaker::{Pass, has_failed};
use crate::upstream::concurrency::{self, Permit};
use crate::upstream::connection::Failure;
use crate::upstream::dial::Target;
use crate::upstream::endpoint::Outcome;
use crate::upstream::lines::{self, Lines};
use crate::upstream::pool::Home;
use crate::upstream::retry::Effort;
use crate::upstream::{Local, Upstream, hedge};

/// What a worker sends requests with.
#[derive(Debug)]
pub struct Client {
    /// The number of the worker.
    worker: usize,
    lines: Lines,
}

/// Where a request goes, and who looks after it on the way.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The service, and how an endpoint of it is picked.
    pub choice: Choice<'a>,
    /// What the worker remembers of it.
    pub local: &'a Rc<Local>,
    /// Where the client's connection comes from and went to.
    pub addresses: Addresses,
    /// How long the request may take.
    pub deadline: &'a Rc<Deadline>,
    /// How important it is.
    pub priority: Priority,
    /// How long it may take, where its route says that.
    pub timeouts: &'a Timeouts,
    /// Who may have it sent.
    pub admitted: &'a Admitted,
    /// Where it is counted what is done because the service is sick.
    pub resilience: &'a Resilience,
}

/// The head of an answer, and whom the rest is to come from.
pub(super) struct Answered {
    pub(super) response: Response<()>,
    carrier: Carrier,
    picked: Picked,
}

impl Way<'_> {
    fn connect_timeout(&self) -> Duration {
        self.timeouts.connect.unwrap_or(self.choice.upstream.connect_timeout)
    }

    fn response_timeout(&self) -> Duration {
        self.timeouts.response.unwrap_or(self.choice.upstream.response_timeout)
    }
}

impl Client {
    /// A client without connections, for the worker of this number.
    pub fn new(worker: usize, counters: Arc<Counters>) -> Self {
        Self { worker, lines: Lines::new(counters) }
    }

    /// The number of the worker.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// The endpoints of `upstream` as this worker sees them.
    pub fn view(&self, upstream: &Upstream) -> View {
        View::new(&upstream.group, self.worker)
    }

    /// Drops the idle connections that have expired or were closed by the other side, and those to addresses that
    /// requests go to no more.
    pub fn sweep<'v>(&self, views: impl IntoIterator<Item = &'v View>) {
        let used: HashSet<SocketAddr> = views.into_iter().flat_map(View::addresses).collect();
        self.lines.sweep(|address| used.contains(&address));
    }

    /// Sends a request, if the service takes it now, until there is an answer for the client or no more to be done. The
    /// permit is to be kept until the answer is at its end.
    pub async fn send(
        &self,
        way: &Way<'_>,
        head: &Parts,
        body: RequestBody,
    ) -> Result<(Response<AnswerBody>, Option<Permit>), Error> {
        let Way { choice, local, deadline, priority, .. } = *way;
        let upstream = choice.upstream;
        let whole = way.timeouts.whole.or(upstream.whole_timeout);
        deadline.bound(whole_timeout(whole, &head.headers));
        way.timeouts.stream_idle.iter().for_each(|idle| deadline.stream_idle(*idle));
        let guard = &local.guard;
        let terms = upstream.breaker.as_ref().filter(|terms| terms.of_upstream);
        let pass =
            terms.map(|terms| guard.breaker.admit(terms, self.worker, deadline.now())).transpose();
        let pass = pass.map_err(Error::breaker_open)?;
        let permit = match &upstream.concurrency {
            Some(terms) => {
                let priority = (priority, upstream.top_priority);
                Some(concurrency::enter(local, terms, priority, deadline).await?)
            }
            None => None,
        };
        let began = deadline.now();
        let sent = self.persist(way, head, body).await;
        let came = sent.as_ref().map(|answer| answer.status().as_u16()).map_err(Error::kind);
        let now = deadline.now();
        report(pass, terms, came, (&upstream.group, None, now));
        if let Some(Concurrency { limit: Limit::Adaptive(bounds), .. }) = upstream.concurrency {
            let timed_out = came == Err(Kind::UpstreamTimeout);
            if came.is_ok() || timed_out {
                let took = (now.saturating_duration_since(began), timed_out);
                let seen = (guard.limiter.active(), now);
                guard.limiter.adaptive.sample(&local.window, bounds, took, seen);
            }
        }
        Ok((sent?, permit))
    }

    /// Sends a request as often as its service's `retry` says.
    async fn persist(
        &self,
        way: &Way<'_>,
        head: &Parts,
        body: RequestBody,
    ) -> Result<Response<AnswerBody>, Error> {
        let Way { choice, local, deadline, .. } = *way;
        let retry = &choice.upstream.retry;
        let counted = (&local.budget, way.resilience);
        let mut hedge = hedge::terms(choice.upstream, head, &body);
        let (mut effort, mut body) = Effort::new(retry, counted, deadline, head, body);
        let tried = RefCell::default();
        loop {
            let came = match hedge.take() {
                None => self.attempt(way, &tried, head, body).await,
                // On the heap, for most requests need no room for two.
                Some(terms) => Box::pin(self.hedged(way, &tried, head, (terms, &effort))).await,
            };
            let pause;
            (body, pause) = match came {
                Ok(answered) => {
                    let answer = self.answer(answered, way);
                    match effort.after_answer(&answer) {
                        Some(again) => again,
                        None => return Ok(answer),
                    }
                }
                Err(failure) => {
                    let (error, unsent) = match failure {
                        Failure::Unsent(body, error) => (error, Some(body)),
                        Failure::Final(error) => (error, None),
                    };
                    effort.after(&error, unsent, choice.has_more(&tried)).ok_or(error)?
                }
            };
            deadline.pause(pause).await;
            if !choice.has_more(&tried) {
                tried.take();
            }
        }
    }

    /// Sends a request once: to the first endpoint that takes it. One that cannot be connected to is passed over for
    /// the next, because nothing was sent yet; so is one that closed before it took anything.
    pub(super) async fn attempt(
        &self,
        way: &Way<'_>,
        tried: &RefCell<Tried>,
        head: &Parts,
        mut body: RequestBody,
    ) -> Result<Answered, Failure> {
        let Way { choice, deadline, .. } = *way;
        let terms = choice.upstream.breaker.as_ref().filter(|terms| terms.of_endpoints);
        let mut error = Error::from(Kind::UpstreamUnavailable);
        while let Some(picked) = choice.pick(tried) {
            let breaker = &picked.endpoint().state.breaker;
            let pass = match terms
                .map(|terms| breaker.admit(terms, self.worker, deadline.now()))
                .transpose()
            {
                Ok(pass) => pass,
                Err(left) => {
                    picked.unsent();
                    // What an endpoint said that was asked says more.
                    if error.kind() == Kind::UpstreamUnavailable {
                        error = Error::breaker_open(left);
                    }
                    continue;
                }
            };
            deadline.trail.attempt(picked.address());
            let came = self.try_endpoint(way, &picked, head, body).await;
            let outcome = match &came {
                Ok((response, _)) => Ok(response.status().as_u16()),
                Err(Failure::Unsent(_, error) | Failure::Final(error)) => Err(error.kind()),
            };
            let whose = (&*choice.upstream.group, Some(picked.address()), deadline.now());
            report(pass, terms, outcome, whose);
            match came {
                Ok((response, carrier)) => {
                    picked.observe(Outcome::Answered(response.status()));
                    return Ok(Answered { response, carrier, picked });
                }
                Err(Failure::Unsent(unsent, refused)) => {
                    (body, error) = (unsent, failed(refused, &picked));
                }
                Err(Failure::Final(error)) => return Err(Failure::Final(failed(error, &picked))),
            }
        }
        Err(match error.kind() {
            // Nobody was asked, and asking again makes nobody appear.
            Kind::UpstreamUnavailable => Failure::Final(error),
            _ => Failure::Unsent(body, error),
        })
    }

    /// Sends a request to an endpoint.
    async fn try_endpoint(
        &self,
        way: &Way<'_>,
        picked: &Picked,
        head: &Parts,
        body: RequestBody,
    ) -> Result<lines::Answer, Failure> {
        let target = Target {
            connect_timeout: way.connect_timeout(),
            response_timeout: way.response_timeout(),
            ..way.choice.upstream.target(picked.address(), way.addresses)
        };
        self.lines.ask(&target, head, body, way.deadline).await
    }

    fn answer(&self, answered: Answered, way: &Way<'_>) -> Response<AnswerBody> {
        let Answered { response, carrier, picked } = answered;
        let keep = way.choice.upstream.keep;
        let home = Home { pool: Rc::clone(&self.lines.pool), keep, picked };
        response.map(|()| AnswerBody::new(carrier, home, way.deadline))
    }
}

/// The bound of the configuration, or the client's own if that is less.
fn whole_timeout(configured: Option<Duration>, fields: &HeaderMap) -> Option<Duration> {
    configured.into_iter().chain(grpc::timeout(fields)).min()
}

fn failed(error: Error, picked: &Picked) -> Error {
    picked.observe(Outcome::Failed(error.kind()));
    error
}

/// Tells a breaker what came of a request, and the log if that changed it.
fn report(
    pass: Option<Pass<'_>>,
    terms: Option<&Breaker>,
    came: Result<u16, Kind>,
    (group, endpoint, now): (&Group, Option<SocketAddr>, Instant),
) {
    let Some((pass, terms)) = pass.zip(terms) else { return };
    let began = pass.begins();
    let Some(begins) = pass.report(has_failed(&terms.on, came), now).or(began) else { return };
    let (upstream, state) = (group.name(), begins.name());
    let endpoint = endpoint.map(tracing::field::display);
    tracing::warn!(upstream, endpoint, state, "a circuit breaker has changed");
}
