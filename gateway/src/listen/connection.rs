//! One connection of a client, from the first byte to the last, within its deadline.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::{Sleep, sleep_until};

use crate::config::Bounds;
use crate::http::body::Incoming;
use crate::http::deadline::{Deadline, Phase};
use crate::http::socket::{Protocol, Socket};
use crate::listen::h2;
use crate::listen::stream::Stream;
use crate::listen::worker::Slot;
use crate::observe::Refusal;
use crate::request;
use crate::upstream::connection::{HYPER_HEADER_COUNT, buffer_bytes};

/// Time for a head that is due when the gateway ends.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How hyper is to serve. It gets no timer: the deadline of the connection is the one for everything.
pub(super) fn builder(bounds: &Bounds) -> Builder {
    let mut builder = Builder::new();
    builder.max_header_size(bounds.head_bytes).max_buf_size(buffer_bytes(bounds));
    if bounds.header_count != HYPER_HEADER_COUNT {
        builder.max_headers(bounds.header_count);
    }
    builder
}

/// Serves until either side has had enough.
pub(super) async fn serve(
    slot: Slot,
    http: Builder,
    connection: Rc<request::Connection>,
    (mut socket, deadline): (Socket, Rc<Deadline>),
) {
    let counters = Arc::clone(slot.counters());
    let begun = h2::begin(&slot, &deadline, &mut socket).await;
    let Some((begun, protocol)) = begun else { return };
    if protocol == Protocol::Http2 {
        // Apart, so that it costs connections of HTTP/1 no memory.
        return Box::pin(h2::serve(slot, connection, (socket, begun))).await;
    }
    let stream = Stream { socket, begun, deadline: Rc::clone(&deadline), counters };
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let request = request.map(Incoming::Hyper);
        request::serve::serve(Rc::clone(&connection), Rc::clone(&deadline), request)
    });
    let mut http = pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut timer = pin!(sleep_until(deadline.at()));
    let mut registered = false;
    let mut told = false;
    let end = poll_fn(|context| {
        deadline.woken();
        if !registered {
            slot.register(context.waker());
            registered = true;
        }
        if slot.is_denied() {
            slot.counters().refused(Refusal::Denied);
            return Poll::Ready(None);
        }
        loop {
            if let Poll::Ready(result) = http.as_mut().poll(context) {
                return Poll::Ready(Some(result));
            }
            if slot.is_draining() && !told && !deadline.awaits_head(DRAIN_GRACE) {
                told = true;
                http.as_mut().graceful_shutdown();
            } else if deadline.has_passed() {
                // Whoever waited was asked what to do and did nothing.
                return Poll::Ready(None);
            } else if !fires(timer.as_mut(), &deadline, context) {
                return Poll::Pending;
            }
        }
    })
    .await;
    if !slot.is_denied() {
        account(&slot, &deadline, end);
    }
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

fn account(slot: &Slot, deadline: &Deadline, end: Option<hyper::Result<()>>) {
    let counters = slot.counters();
    match (end, deadline.phase()) {
        (None, Phase::Head) => counters.heads_timed_out.add(1),
        (None, Phase::Download) => counters.readers_timed_out.add(1),
        (Some(Err(error)), _) if error.is_parse() || error.is_parse_too_large() => {
            counters.heads_malformed.add(1);
        }
        _ => {}
    }
}
