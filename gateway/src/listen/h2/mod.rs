//! HTTP/2 towards clients: one connection with its streams, from the preface to the last GOAWAY.
//!
//! The codec is h2. What is here is what h2 leaves to whoever uses it: how long a connection may stay as it is, and how
//! much it may ask for without meaning it. Each stream is a request of its own, with a task and a deadline of its own
//! ([`stream`]), and the connection ends with the last of them.
//!
//! Memory of one connection is bounded by `bounds.streams` times the larger of a head ([`HEAD_SLACK_BYTES`] included)
//! and what waits to be sent ([`SEND_BYTES`]), and by the window of the connection.

pub mod frames;
mod refusals;
mod stream;
mod wire;

use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use h2::server::{Builder, Connection, Handshake};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::task::spawn_local;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::base::error::Kind;
use crate::base::signal::Signal;
use crate::config::Bounds;
use crate::http::deadline::Deadline;
use crate::http::socket::{Protocol, Socket};
use crate::listen::connection::{DRAIN_GRACE, fires};
use crate::listen::worker::Slot;
use crate::observe::{Counters, Refusal};
use crate::request;
use frames::PREFACE;
use stream::Served;
use wire::{Late, Life, Wire};

/// What is read at once to find out what a connection speaks: the head of most requests.
const BEGIN_BYTES: usize = 1024;

/// What one stream may send before it is taken from it.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// The same for all streams of a connection together: so many may be stuck before others are.
const CONNECTION_WINDOW_BYTES: u32 = 16 * STREAM_WINDOW_BYTES;

/// What one stream may hand over before the client has room for it.
const SEND_BYTES: usize = 64 << 10;

/// How much larger than it may be a head is still read, to be refused with a reason: what is larger than h2 reads it
/// answers with a bare 431 and shows to nobody, and only the fact is accounted for.
const HEAD_SLACK_BYTES: usize = 16 << 10;

/// Streams that were opened and taken back before anybody looked at them.
const MAX_UNSEEN_RESETS: usize = 20;

/// Streams of a connection that were reset because of what the client did to them.
const MAX_PROVOKED_RESETS: usize = 128;

/// How h2 is to serve.
fn builder(bounds: &Bounds) -> Builder {
    let mut builder = Builder::new();
    let head_bytes = bounds.head_bytes.saturating_add(HEAD_SLACK_BYTES);
    let head_bytes = u32::try_from(head_bytes).unwrap_or(u32::MAX);
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(bounds.streams)
        .max_header_list_size(head_bytes)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BYTES)
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .max_local_error_reset_streams(Some(MAX_PROVOKED_RESETS));
    builder
}

/// What a connection speaks, and what was read of it to find out. `None` where it ended before.
pub(super) async fn begin(
    slot: &Slot,
    deadline: &Deadline,
    socket: &mut Socket,
) -> Option<(Bytes, Protocol)> {
    if let Socket::Tls(_) = socket {
        return Some((Bytes::new(), socket.protocol()));
    }
    let mut timer = pin!(sleep_until(deadline.at()));
    let mut registered = false;
    let mut begun = Vec::new();
    poll_fn(|context| {
        deadline.woken();
        if !registered {
            slot.register(context.waker());
            registered = true;
        }
        loop {
            if slot.is_denied() {
                if slot.is_reset() {
                    socket.abort();
                }
                slot.counters().refused(Refusal::Denied);
                return Poll::Ready(None);
            }
            // On the stack: a connection that waits for its first byte shall cost no memory for it.
            let mut buffer = [0; BEGIN_BYTES];
            let mut buffer = ReadBuf::new(&mut buffer);
            match Pin::new(&mut *socket).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    begun.extend_from_slice(buffer.filled());
                }
                Poll::Ready(_) => {
                    slot.notice(Signal::NoRequest, "closed_without_request");
                    return Poll::Ready(None);
                }
                Poll::Pending if slot.is_draining() && !deadline.awaits_head(DRAIN_GRACE) => {
                    return Poll::Ready(None);
                }
                Poll::Pending if fires(timer.as_mut(), deadline, context) => {
                    slot.counters().heads_timed_out.add(1);
                    let signal = silence(!begun.is_empty());
                    slot.notice(signal, "head_timed_out");
                    return Poll::Ready(None);
                }
                Poll::Pending => return Poll::Pending,
            }
            let same = begun.iter().zip(PREFACE).take_while(|(one, other)| one == other).count();
            if same == PREFACE.len() || same < begun.len() {
                let is_http2 = same == PREFACE.len();
                let protocol = if is_http2 { Protocol::Http2 } else { Protocol::Http1 };
                return Poll::Ready(Some((mem::take(&mut begun).into(), protocol)));
            }
        }
    })
    .await
}

/// Why a connection ended.
enum End {
    /// Both sides had enough.
    Done,
    /// A rule denies the peer.
    Denied,
    /// The client did nothing for too long.
    Late(Late),
    /// The client did too much.
    Flood,
    /// It broke, or was no HTTP/2.
    Broken(h2::Error),
}

/// Serves until either side has had enough; `begun` was read from the socket before.
pub(super) async fn serve(
    slot: Slot,
    connection: Rc<request::Connection>,
    (socket, begun): (Socket, Bytes),
) {
    let counters = Arc::clone(slot.counters());
    let bounds = slot.config().bounds.clone();
    let life = Rc::new(Life::new(&bounds));
    let wire = Wire::new(socket, begun, Rc::clone(&life), Arc::clone(&counters));
    let state = State::Handshake(builder(&bounds).handshake(wire));
    let served = Rc::new(Served { life, connection, bounds, counters });
    let end = Driver { slot: &slot, served: &served, state }.run().await;
    account(&served.counters, &end);
    if let Some((signal, reason)) = signal(&served, &end) {
        slot.notice(signal, reason);
    }
}

/// h2 before and after the preface.
enum State {
    Handshake(Handshake<Wire>),
    Open(Connection<Wire, Bytes>),
}

struct Driver<'a> {
    slot: &'a Slot,
    served: &'a Rc<Served>,
    state: State,
}

impl Driver<'_> {
    async fn run(mut self) -> End {
        let served = self.served;
        let mut timer = pin!(sleep_until(served.life.look_at(Instant::now())));
        let mut registered = false;
        poll_fn(|context| {
            if !registered {
                self.slot.register(context.waker());
                registered = true;
            }
            if self.slot.is_denied() {
                return Poll::Ready(End::Denied);
            }
            loop {
                let end = self.advance(context);
                for _ in 0..served.life.take_malformed() {
                    self.slot.notice(Signal::Malformed, "stream_refused");
                }
                for _ in 0..served.life.take_heads_too_large() {
                    let deadline = Rc::new(Deadline::new(&served.bounds));
                    let error = Kind::HeadTooLarge.into();
                    request::serve::refused(&served.connection, &deadline, &error);
                }
                if served.life.is_flooded() {
                    self.go_away(Reason::ENHANCE_YOUR_CALM, context);
                    return Poll::Ready(End::Flood);
                }
                if end.is_ready() {
                    return end;
                }
                match late(&served.life, timer.as_mut(), context) {
                    None => return Poll::Pending,
                    Some(Late::Age) => served.life.grow_old(),
                    Some(Late::Idle) => {
                        self.go_away(Reason::NO_ERROR, context);
                        return Poll::Ready(End::Late(Late::Idle));
                    }
                    Some(late) => return Poll::Ready(End::Late(late)),
                }
            }
        })
        .await
    }

    /// Moves everything that can move, and starts the streams that the client opened.
    fn advance(&mut self, context: &mut Context<'_>) -> Poll<End> {
        loop {
            let connection = match &mut self.state {
                State::Handshake(handshake) => match ready!(Pin::new(handshake).poll(context)) {
                    Ok(connection) => {
                        self.state = State::Open(connection);
                        continue;
                    }
                    Err(error) => return Poll::Ready(End::Broken(error)),
                },
                State::Open(connection) => connection,
            };
            let life = &self.served.life;
            if life.is_over() || self.slot.is_draining() && !life.is_leaving() {
                life.leave(DRAIN_GRACE);
                connection.graceful_shutdown();
            }
            match ready!(connection.poll_accept(context)) {
                Some(Ok((request, respond))) => {
                    let served = Rc::clone(self.served);
                    served.life.request(respond.stream_id().as_u32());
                    // On the heap: a task copies what it runs, more than once.
                    spawn_local(Box::pin(stream::serve(served, request, respond)));
                }
                Some(Err(error)) => return Poll::Ready(End::Broken(error)),
                None => return Poll::Ready(End::Done),
            }
        }
    }

    /// Tells the client why this is the end, if it can be told at once.
    fn go_away(&mut self, reason: Reason, context: &mut Context<'_>) {
        if let State::Open(connection) = &mut self.state {
            connection.abrupt_shutdown(reason);
            drop(connection.poll_closed(context));
        }
    }
}

/// What the connection has waited for in vain, if it has. The timer looks again and again, and is moved only when it
/// must look sooner.
fn late(life: &Life, mut timer: Pin<&mut Sleep>, context: &mut Context<'_>) -> Option<Late> {
    loop {
        if let Some((at, _)) = life.due()
            && at < timer.deadline()
        {
            timer.as_mut().reset(at);
        }
        ready_or_none(timer.as_mut().poll(context))?;
        let now = Instant::now();
        match life.due() {
            Some((at, late)) if at <= now => return Some(late),
            _ => timer.as_mut().reset(life.look_at(now)),
        }
    }
}

fn ready_or_none(poll: Poll<()>) -> Option<()> {
    match poll {
        Poll::Ready(()) => Some(()),
        Poll::Pending => None,
    }
}

/// What it says about a client that a head did not arrive: browsers connect without asking for anything.
fn silence(has_spoken: bool) -> Signal {
    if has_spoken { Signal::SlowRequest } else { Signal::NoRequest }
}

/// What the end of a connection says about its client.
fn signal(served: &Served, end: &End) -> Option<(Signal, &'static str)> {
    match end {
        End::Denied => None,
        End::Flood => Some((Signal::Malformed, "flood")),
        End::Broken(error) if error.is_library() => Some((Signal::Malformed, "frame_malformed")),
        End::Late(Late::Head) => Some((silence(served.life.has_spoken()), "head_timed_out")),
        End::Late(Late::Reader) => Some((Signal::SlowRequest, "reader_timed_out")),
        End::Done | End::Broken(_) | End::Late(Late::Idle | Late::Age) => {
            let asked = served.connection.has_asked();
            (!asked).then_some((Signal::NoRequest, "closed_without_request"))
        }
    }
}

fn account(counters: &Counters, end: &End) {
    match end {
        End::Done | End::Late(Late::Idle | Late::Age) => {}
        End::Denied => counters.refused(Refusal::Denied),
        End::Late(Late::Head) => counters.heads_timed_out.add(1),
        End::Late(Late::Reader) => counters.readers_timed_out.add(1),
        End::Flood => counters.floods.add(1),
        End::Broken(error) if !error.is_library() => {}
        End::Broken(error) if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) => {
            counters.floods.add(1);
        }
        End::Broken(_) => counters.frames_malformed.add(1),
    }
}
