//! One connection of a client, from the first byte to the last, within its deadline.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep_until};

use crate::base::error::Error;
use crate::base::random::random;
use crate::base::signal::Signal;
use crate::config::Bounds;
use crate::http::body::Incoming;
use crate::http::deadline::{Deadline, Phase, REST_AFTER};
use crate::http::h1::head::Limits;
use crate::http::h1::server::{self, Server};
use crate::http::lifetime::Lifetime;
use crate::http::socket::{Protocol, Socket};
use crate::listen::h2;
use crate::listen::worker::Slot;
use crate::observe::Refusal;
use crate::request;
use crate::request::account::ResponseBody;

/// Time for a head that is due when the gateway ends.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// Answers the requests of one connection.
struct Service {
    connection: Rc<request::Connection>,
    deadline: Rc<Deadline>,
}

impl server::Service for Service {
    type Answer = ResponseBody;

    fn answer(
        &self,
        head: &mut Parts,
        body: Incoming,
    ) -> impl Future<Output = Response<ResponseBody>> {
        request::serve::serve(&self.connection, &self.deadline, head, body)
    }

    fn refuse(&self, error: &Error, asked: Option<&Parts>) -> Response<ResponseBody> {
        request::serve::refuse(&self.connection, &self.deadline, error, asked)
    }
}

/// What a connection is served over.
pub(super) enum Stream {
    /// A connection that has yet to say what it speaks.
    New(Socket),
    /// One that was parked, and speaks HTTP/1.
    Resumed(Rc<Server>),
}

/// Why a connection is served no more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Either side had enough, or a rule wants it.
    Done,
    /// The deadline of this has passed.
    Late(Phase),
    /// The next request has not come for a while.
    Rest,
}

/// Serves a connection that was parked, and whose client has said something.
pub(super) fn resume(
    slot: Slot,
    connection: Rc<request::Connection>,
    (stream, lifetime): (TcpStream, Lifetime),
) -> impl Future<Output = ()> {
    let config = slot.config();
    let deadline = Rc::new(Deadline::new(&config.bounds));
    deadline.may_rest();
    let bounds = (Limits::new(&config.bounds), lifetime);
    let worker = (Rc::clone(&deadline), Arc::clone(slot.counters()));
    let http = Server::new(Socket::Plain(stream), Bytes::new(), bounds, worker);
    serve(slot, connection, (Stream::Resumed(http), deadline))
}

/// Serves until either side has had enough, or until the connection is parked.
#[expect(
    clippy::manual_async_fn,
    reason = "an async function would hold its arguments twice for as long as a connection is open"
)]
pub(super) fn serve(
    slot: Slot,
    connection: Rc<request::Connection>,
    (mut stream, deadline): (Stream, Rc<Deadline>),
) -> impl Future<Output = ()> {
    async move {
        let begun = match &mut stream {
            Stream::New(socket) => h2::begin(&slot, &deadline, socket).await,
            Stream::Resumed(_) => Some((Bytes::new(), Protocol::Http1)),
        };
        let Some((begun, protocol)) = begun else { return };
        let http = match stream {
            Stream::New(socket) if protocol == Protocol::Http2 => {
                // Apart, so that it costs connections of HTTP/1 no memory.
                return Box::pin(h2::serve(slot, connection, (socket, begun))).await;
            }
            Stream::New(socket) => {
                if !socket.is_encrypted() {
                    deadline.may_rest();
                }
                let worker = (Rc::clone(&deadline), Arc::clone(slot.counters()));
                Server::new(socket, begun, bounds(&slot.config().bounds), worker)
            }
            Stream::Resumed(http) => http,
        };
        let service =
            Service { connection: Rc::clone(&connection), deadline: Rc::clone(&deadline) };
        let end = drive(&slot, &deadline, &http, &service).await;
        if end == End::Rest && !slot.is_draining() {
            // No body is read from it, so nobody else holds it.
            if let Some((Socket::Plain(stream), lifetime)) = Rc::into_inner(http).map(Server::rest)
            {
                slot.park(connection.origin(), (stream, lifetime), deadline.at());
            }
            return;
        }
        if !connection.has_asked() {
            slot.notice(Signal::NoRequest, "closed_without_request");
        }
        let End::Late(phase) = end else { return };
        match phase {
            Phase::Head => slot.counters().heads_timed_out.add(1),
            Phase::Download => {
                slot.counters().readers_timed_out.add(1);
                http.abort();
            }
            Phase::Tunnel => slot.counters().tunnels_timed_out.add(1),
            Phase::Idle | Phase::Upload | Phase::Answer | Phase::Linger => {}
        }
    }
}

/// Serves within the deadline, and does what the worker says.
async fn drive(slot: &Slot, deadline: &Deadline, http: &Rc<Server>, service: &Service) -> End {
    let mut work = pin!(http.serve(service));
    // It may fire too soon, and is moved the less often for it.
    let mut timer = pin!(sleep_until(deadline.at().min(deadline.now() + REST_AFTER)));
    let mut registered = false;
    let mut told = false;
    poll_fn(|context| {
        deadline.woken();
        if !registered {
            slot.register(context.waker());
            registered = true;
        }
        if slot.is_denied() || deadline.is_cut() {
            if slot.is_reset() {
                http.abort();
            }
            slot.counters().refused(Refusal::Denied);
            return Poll::Ready(End::Done);
        }
        loop {
            if let Poll::Ready(rests) = work.as_mut().poll(context) {
                return Poll::Ready(if rests { End::Rest } else { End::Done });
            }
            if slot.is_draining() && !told && !deadline.awaits_head(DRAIN_GRACE) {
                told = true;
                http.drain();
            } else if deadline.has_passed() {
                // Whoever waited was asked what to do and did nothing.
                return Poll::Ready(End::Late(deadline.phase()));
            } else if !fires(timer.as_mut(), deadline, context) {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// What is asked of heads, and of the connection's age.
fn bounds(bounds: &Bounds) -> (Limits, Lifetime) {
    (Limits::new(bounds), Lifetime::new(bounds, random()))
}

/// Whether it is time to look at the connection. The timer is moved only when it must fire sooner, or fired too soon:
/// most requests are over long before, and moving it each time would cost more than firing in vain now and then.
pub(super) fn fires(
    mut timer: Pin<&mut Sleep>,
    deadline: &Deadline,
    context: &mut Context<'_>,
) -> bool {
    loop {
        if deadline.due() < timer.deadline() {
            timer.as_mut().reset(deadline.due());
        }
        if timer.as_mut().poll(context).is_pending() {
            return false;
        }
        if deadline.check() {
            return true;
        }
        timer.as_mut().reset(deadline.due());
    }
}
