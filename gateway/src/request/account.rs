//! Accounts for each request exactly once, whatever its way out: the account is closed when the last thing that holds
//! it is dropped, be it the body of an answer at its end or a request whose client has left.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};

use crate::auth::{Authorized, Identity};
use crate::base::address::ClientAddr;
use crate::base::error::{Error, Kind};
use crate::http::deadline::{Deadline, Phase};
use crate::http::h1;
use crate::http::trace_context::TraceContext;
use crate::limit::Admitted;
use crate::observe::resilience::Hedge;
use crate::observe::traffic::End;
use crate::observe::trail::Times;
use crate::request::access_log::{Ended, Entry};
use crate::request::signals::{self, Noted, Story};
use crate::request::{Connection, Current, Snapshot};
use crate::route::Routed;
use crate::upstream::body::AnswerBody;
use crate::upstream::concurrency::Permit;

/// An open account.
#[derive(Debug)]
pub(super) struct Account {
    connection: Rc<Connection>,
    deadline: Rc<Deadline>,
    current: Rc<Current>,
    routed: Cell<Option<Routed>>,
    upstream: Cell<Option<usize>>,
    error: Cell<Option<Kind>>,
    /// What the log says of the error.
    reason: Cell<Option<&'static str>>,
    /// Who calls, where the log wants to know.
    caller: RefCell<Option<Arc<Identity>>>,
    /// Its places among the requests that the service, and its caller, has at once.
    held: RefCell<Option<(Option<Permit>, Admitted)>>,
    /// The limit that refused it.
    limit: Cell<Option<usize>>,
    status: Option<StatusCode>,
    sent_bytes: u64,
    /// What the access log wants of the request, where there is one.
    entry: Option<Box<Entry>>,
    /// What is kept of it, where somebody asks what clients do.
    noted: Option<Box<Noted>>,
    /// Whom a trusted proxy has named; `None`: it comes from where its connection does.
    named: Cell<Option<ClientAddr>>,
    /// Its number among the tunnels of those.
    tunnel: Option<u64>,
    whole: bool,
}

impl Account {
    /// The account of a request, or of what was none.
    pub(super) fn open(
        connection: Rc<Connection>,
        deadline: Rc<Deadline>,
        current: Rc<Current>,
        (head, id): (Option<&Parts>, &HeaderValue),
    ) -> Self {
        connection.worker.counters.requests_active.add(1);
        connection.has_asked.set(true);
        deadline.begun();
        let log = current.snapshot.config.access_log.as_ref();
        let who = (connection.peer, connection.client);
        let entry = log.map(|log| Entry::of(log, head, id, who));
        let watch = current.snapshot.watch.as_ref();
        let noted = watch.map(|_| Noted::of(head, id, connection.client));
        Self {
            connection,
            deadline,
            current,
            routed: Cell::new(None),
            upstream: Cell::new(None),
            error: Cell::new(None),
            reason: Cell::new(None),
            caller: RefCell::new(None),
            held: RefCell::new(None),
            limit: Cell::new(None),
            status: None,
            sent_bytes: 0,
            entry,
            noted,
            named: Cell::new(None),
            tunnel: None,
            whole: false,
        }
    }

    /// What was no request would have asked for `head`, which is for the log alone.
    pub(super) fn would_ask(&mut self, head: &Parts) {
        let log = self.current.snapshot.config.access_log.as_ref();
        if let Some((entry, log)) = self.entry.as_mut().zip(log) {
            entry.would_ask(log, head);
        }
    }

    /// It is known which trace the request belongs to.
    pub(super) fn traced(&self, context: &TraceContext<'_>) {
        if let Some(entry) = &self.entry {
            entry.traced(context);
        }
    }

    /// It is known from whom the request comes.
    pub(super) fn client(&self, client: ClientAddr) {
        self.named.set(Some(client).filter(|client| *client != self.connection.client));
        if let Some(entry) = &self.entry {
            entry.client(client);
        }
        if let Some(noted) = &self.noted {
            noted.client(client);
        }
    }

    /// The request has a route.
    pub(super) fn routed(&self, routed: Routed) {
        self.routed.set(Some(routed));
    }

    /// It is known who calls, or that nobody needs to be.
    pub(super) fn authorized(&self, authorized: &Authorized) {
        if self.entry.is_some() {
            *self.caller.borrow_mut() = authorized.identity().cloned();
        }
        if let Some((noted, identity)) = self.noted.as_ref().zip(authorized.identity()) {
            noted.caller(identity);
        }
    }

    /// The service has the request until its account is closed.
    pub(super) fn hold(&self, permit: Option<Permit>, admitted: Admitted) {
        *self.held.borrow_mut() = Some((permit, admitted));
    }

    /// The limit of this number has refused the request.
    pub(super) fn limited(&self, limit: usize) {
        self.limit.set(Some(limit));
    }

    /// The request goes to the upstream of this index.
    pub(super) fn sent_to(&self, upstream: usize) {
        self.upstream.set(Some(upstream));
    }

    /// Hands the account to the body of the answer.
    pub(super) fn answer(mut self, answer: Response<Answer>) -> Response<ResponseBody> {
        self.status = Some(answer.status());
        answer.map(|answer| {
            self.whole = answer.is_end_stream();
            ResponseBody { answer, account: self }
        })
    }

    /// The answer is asked for by who looks at the deadline. A tunnel of whom a proxy has named is cut once a rule
    /// denies that one, which may have been since it was let in.
    fn watch_tunnel(&mut self, waker: &Waker) {
        let is_tunnel = self.status == Some(StatusCode::SWITCHING_PROTOCOLS);
        let Some(client) = self.named.get().filter(|_| is_tunnel && self.tunnel.is_none()) else {
            return;
        };
        let worker = &self.connection.worker;
        self.tunnel = Some(worker.tunnels.enter(client, &self.deadline, waker));
        worker.cut_tunnels(|address| address == client.ip());
    }

    /// The request ended in an error that the gateway answers itself.
    pub(super) fn failed(&self, error: &Error) {
        self.connection.worker.counters.failed(error.kind());
        self.error.set(Some(error.kind()));
        self.reason.set(error.reason());
        if let Some(noted) = &self.noted {
            noted.excuse(self.excuses(error));
        }
        self.deadline.refused();
    }

    /// Whether an error says nothing about the client, though it is the client's.
    fn excuses(&self, error: &Error) -> bool {
        match error.kind() {
            // No credential, or one that did hold.
            Kind::Unauthenticated => error.reason().is_none() || error.is_expired(),
            // Others may have used it up.
            Kind::RateLimited => {
                let limits = &self.current.snapshot.limits;
                !self.limit.get().is_some_and(|limit| limits.is_of_one_caller(limit))
            }
            // It kept its pace, and the request as a whole took too long.
            Kind::RequestTimeout => !self.deadline.leaves(Duration::ZERO),
            _ => false,
        }
    }

    /// Whether the client did not take its answer at the pace that it has to keep.
    fn is_read_slowly(&self) -> bool {
        let deadline = &self.deadline;
        let has_ended = deadline.phase() == Phase::Download && deadline.has_passed();
        has_ended && !self.whole && deadline.leaves(Duration::ZERO)
    }

    /// Says what the request tells about its client and its route, where somebody asks.
    fn report(&self) {
        let Snapshot { watch, config, limits, .. } = &*self.current.snapshot;
        let Some((watch, noted)) = watch.as_ref().zip(self.noted.as_deref()) else { return };
        let (status, error) = (self.status, self.error.get());
        let is_read_slowly = self.is_read_slowly();
        let (connection, worker) = (&*self.connection, &*self.connection.worker);
        let is_good = !is_read_slowly && error.is_none();
        if is_good && status.is_some_and(|status| status.as_u16() < 400) {
            worker.good(connection.source(noted), noted);
        } else if let Some(signal) =
            watch.signal(noted, &signals::End { status, error, is_read_slowly })
        {
            let route = self.routed.get().and_then(|routed| config.routes.get(routed.route()));
            let story = Story {
                route: route.map(|route| &*route.name),
                limit: self.limit.get().and_then(|limit| limits.name(limit)),
                reason: self.reason.get().or(error.map(Kind::name)),
            };
            worker.odd(signal, connection.source(noted), (Some(noted), story));
        }
        if watch.is_pressed(self.deadline.trail.has_queued(), error)
            && let Some(routed) = self.routed.get()
        {
            worker.pressed(&self.current, routed.route(), self.deadline.now());
        }
    }

    /// Writes the request down.
    fn log(&self, times: Times) {
        let config = &self.current.snapshot.config;
        let Some((log, entry)) = config.access_log.as_ref().zip(self.entry.as_deref()) else {
            return;
        };
        let (routed, trail) = (self.routed.get(), &self.deadline.trail);
        let route = routed.and_then(|routed| config.routes.get(routed.route()));
        let upstream = self.upstream.get().filter(|_| trail.attempts() > 0);
        let upstream = upstream.and_then(|index| config.upstreams.get(index));
        let caller = self.caller.borrow();
        let ended = Ended {
            tls: self.connection.tls.as_ref().map(|session| session.version),
            route: route.map(|route| &*route.name),
            upstream: upstream.map(|upstream| &*upstream.name),
            endpoint: trail.endpoint(),
            attempts: trail.attempts(),
            hedge: trail.hedge().map(Hedge::name),
            status: self.status,
            error: self.error.get(),
            reason: self.reason.get(),
            caller: caller.as_deref(),
            limit: self.limit.get().and_then(|limit| self.current.snapshot.limits.name(limit)),
            is_whole: self.status.is_some() && self.whole,
            received_bytes: trail.received_bytes(),
            sent_bytes: self.sent_bytes,
            times,
            now: self.deadline.now(),
        };
        self.connection.worker.log.write(log, entry, &ended);
    }

    /// Counts the request for its route and its upstream.
    fn count(&self, times: &Times) {
        let Some(routed) = self.routed.get() else { return };
        let trail = &self.deadline.trail;
        let end = End {
            status: self.status.map(|status| status.as_u16()),
            error: self.error.get(),
            duration: Some(times.total),
            request_bytes: trail.received_bytes(),
            response_bytes: self.sent_bytes,
        };
        let Snapshot { routes, upstream_series, .. } = &*self.current.snapshot;
        let worker = self.connection.worker.counters.worker;
        if let Some(route) = routes.series.get(routed.route()).and_then(|it| it.of(worker)) {
            route.ended(&end);
        }
        if trail.attempts() > 0
            && let Some(upstream) = self.upstream.get().and_then(|one| upstream_series.get(one))
            && let Some(upstream) = upstream.of(worker)
        {
            upstream.ended(&End { duration: times.response, ..end });
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // A tunnel that nobody used any more has not broken.
        self.whole |= self.deadline.phase() == Phase::Tunnel && self.deadline.has_passed();
        let worker = &self.connection.worker;
        self.tunnel.iter().for_each(|tunnel| worker.tunnels.leave(*tunnel));
        let counters = &worker.counters;
        counters.requests_active.subtract_one();
        match self.status {
            Some(status) => counters.answered(status.as_u16()),
            None => counters.requests_abandoned.add(1),
        }
        if self.status.is_some() && !self.whole {
            counters.answers_broken.add(1);
        }
        self.report();
        let times = self.deadline.ended();
        self.count(&times);
        self.log(times);
    }
}

/// Where an answer comes from.
#[derive(Debug)]
pub(super) enum Answer {
    Upstream(AnswerBody),
    Gateway(Bytes),
}

/// The body of an answer, with the account of its request.
#[derive(Debug)]
pub struct ResponseBody {
    answer: Answer,
    account: Account,
}

impl ResponseBody {
    /// Nobody is sent it, and nothing of the answer is missing.
    pub(super) fn close(mut self) {
        self.account.whole = true;
    }
}

impl Answer {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream(body) => body.is_end_stream(),
            Self::Gateway(bytes) => bytes.is_empty(),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.account.watch_tunnel(context.waker());
        let polled = match &mut self.answer {
            Answer::Upstream(body) => Pin::new(body).poll_frame(context),
            Answer::Gateway(bytes) if bytes.is_empty() => Poll::Ready(None),
            Answer::Gateway(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
        };
        match &polled {
            Poll::Ready(None) => self.account.whole = true,
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.account.sent_bytes += bytes as u64;
                self.account.whole = self.answer.is_end_stream();
            }
            Poll::Ready(Some(Err(error))) => self.account.failed(error),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.answer {
            Answer::Upstream(body) => body.size_hint(),
            Answer::Gateway(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

impl h1::server::Answer for ResponseBody {
    fn poll_upload(&mut self, context: &mut Context<'_>) {
        if let Answer::Upstream(body) = &mut self.answer {
            body.poll_upload(context);
        }
    }
}
