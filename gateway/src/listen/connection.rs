//! One connection of a client, from the first byte to the last, within its deadline.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Response;
use http::request::Parts;
use tokio::time::{Sleep, sleep_until};

use crate::base::error::Error;
use crate::base::random::random;
use crate::base::signal::Signal;
use crate::config::Bounds;
use crate::http::body::Incoming;
use crate::http::deadline::{Deadline, Phase};
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

/// Serves until either side has had enough.
#[expect(
    clippy::manual_async_fn,
    reason = "an async function would hold its arguments twice for as long as a connection is open"
)]
pub(super) fn serve(
    slot: Slot,
    connection: Rc<request::Connection>,
    (mut socket, deadline): (Socket, Rc<Deadline>),
) -> impl Future<Output = ()> {
    async move {
        let counters = Arc::clone(slot.counters());
        let begun = h2::begin(&slot, &deadline, &mut socket).await;
        let Some((begun, protocol)) = begun else { return };
        if protocol == Protocol::Http2 {
            // Apart, so that it costs connections of HTTP/1 no memory.
            return Box::pin(h2::serve(slot, connection, (socket, begun))).await;
        }
        let limits = bounds(&slot.config().bounds);
        let http = Server::new(socket, begun, limits, (Rc::clone(&deadline), counters));
        let service =
            Service { connection: Rc::clone(&connection), deadline: Rc::clone(&deadline) };
        let mut work = pin!(http.serve(&service));
        let mut timer = pin!(sleep_until(deadline.at()));
        let mut registered = false;
        let mut told = false;
        let done = poll_fn(|context| {
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
                return Poll::Ready(true);
            }
            loop {
                if work.as_mut().poll(context).is_ready() {
                    return Poll::Ready(true);
                }
                if slot.is_draining() && !told && !deadline.awaits_head(DRAIN_GRACE) {
                    told = true;
                    http.drain();
                } else if deadline.has_passed() {
                    // Whoever waited was asked what to do and did nothing.
                    return Poll::Ready(false);
                } else if !fires(timer.as_mut(), &deadline, context) {
                    return Poll::Pending;
                }
            }
        })
        .await;
        if !connection.has_asked() {
            slot.notice(Signal::NoRequest, "closed_without_request");
        }
        match deadline.phase() {
            _ if done => {}
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

/// What is asked of heads, and of the connection's age.
fn bounds(bounds: &Bounds) -> (Limits, Lifetime) {
    (Limits::new(bounds), Lifetime::new(bounds, random()))
}

/// Whether the deadline has passed. The timer is moved only when it must fire sooner, or fired too soon: most requests
/// are over long before, and moving it each time would cost more than firing in vain now and then.
pub(super) fn fires(
    mut timer: Pin<&mut Sleep>,
    deadline: &Deadline,
    context: &mut Context<'_>,
) -> bool {
    loop {
        if deadline.at() < timer.deadline() {
            timer.as_mut().reset(deadline.at());
        }
        if timer.as_mut().poll(context).is_pending() {
            return false;
        }
        if deadline.check() {
            return true;
        }
        timer.as_mut().reset(deadline.at());
    }
}
