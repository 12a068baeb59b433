//! HTTP/2 towards services: a few connections to each endpoint, which the requests of one worker share.
//!
//! Such a connection belongs to no request, so it has a task of its own. It takes no more requests once the endpoint
//! has said goodbye or it was idle for long enough, and what it still carries goes on to its end. It is closed when
//! nothing is heard from it although something is due.

mod stream;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::mem;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::Ping;
use h2::client::{Builder, Connection, SendRequest};
use http::request::Parts;
use http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

pub use self::stream::Exchange;

pub(super) use self::stream::Stream;
use crate::base::error::{Error, Kind};
use crate::config::Protocol;
use crate::http::deadline::Deadline;
use crate::http::h1::head::Limits;
use crate::http::h1::upgrade::WebSocket;
use crate::http::socket::Socket;
use crate::upstream::connection as link;
use crate::upstream::dial::{Line, Target, before};
use crate::upstream::pool::Pool;

/// Connections of one worker to one endpoint. More are not opened before those are full.
pub(super) const MAX_CONNECTIONS: usize = 4;

/// Requests at once over one connection, unless the endpoint allows fewer.
const MAX_STREAMS: usize = 256;

/// What h2 is told that an endpoint allows before that has said so: no endpoint can (RFC 9113, section 6.5.1).
const UNTOLD: usize = usize::MAX - 1;

/// What an endpoint may send of one answer before it is taken from it. All answers of a connection have room at once: a
/// client that reads slowly holds up nobody else.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * MAX_STREAMS as u32;

/// What one request may hand over before the endpoint has room for it.
const SEND_BYTES: usize = 64 << 10;

/// How long an endpoint may be silent while something is due before it is asked whether it is there, and how long it
/// may then take to say so.
const SILENCE: Duration = Duration::from_secs(10);

/// The connections of one worker, by where they lead and how.
#[derive(Debug, Default)]
pub struct Trunks {
    by_line: RefCell<HashMap<Line, Rc<Trunk>>>,
}

/// The connections to one endpoint.
#[derive(Debug, Default)]
pub(super) struct Trunk {
    connections: RefCell<Vec<Rc<Shared>>>,
    connecting: Cell<bool>,
    /// What the endpoint chose when it was last asked.
    spoken: Cell<Option<Protocol>>,
    /// For how long that is remembered if nobody asks for it.
    spoken_until: Cell<Option<Instant>>,
    /// A connection was opened or has broken, a stream is over, or the endpoint allows more or fewer.
    changed: Notify,
}

/// What takes a request.
#[derive(Debug)]
pub(super) enum Taken {
    /// A place on a connection that requests share.
    Shared(Box<Stream>),
    /// A connection of its own: the endpoint speaks HTTP/1.1.
    Alone(Box<link::Connection>),
}

/// One connection as its requests see it.
#[derive(Debug)]
struct Shared {
    sender: SendRequest<Bytes>,
    state: Rc<State>,
}

#[derive(Debug)]
pub(super) struct State {
    /// What requests say that they came over.
    scheme: Scheme,
    streams: Cell<usize>,
    is_usable: Cell<bool>,
    /// How often something came.
    heard: Cell<u64>,
    /// The endpoint has said what it is ready for, or the connection is over.
    greeted: Notify,
    idle_until: Cell<Instant>,
    keep: Duration,
}

impl Trunks {
    /// Drops what is idle for too long or broken, and what leads where `is_used` says that nobody goes.
    pub fn sweep(&self, is_used: impl Fn(SocketAddr) -> bool) {
        let now = Instant::now();
        self.by_line.borrow_mut().retain(|line, trunk| {
            let is_used = is_used(line.endpoint());
            let mut connections = trunk.connections.borrow_mut();
            // The last one to hold a connection closes it: h2 does when no stream is left either.
            connections.retain(|connection| {
                let State { streams, is_usable, idle_until, .. } = &*connection.state;
                is_usable.get() && (is_used && idle_until.get() > now || streams.get() > 0)
            });
            // Whoever holds on to it waits for a connection, or has one.
            let is_held = Rc::strong_count(trunk) > 1;
            is_held || !connections.is_empty() || is_used && trunk.spoken_until.get() > Some(now)
        });
    }

    /// The connections along `line`.
    pub(super) fn to(&self, line: Line) -> Rc<Trunk> {
        Rc::clone(self.by_line.borrow_mut().entry(line).or_default())
    }
}

impl State {
    /// Whether the connection takes more requests.
    pub(super) fn is_usable(&self) -> bool {
        self.is_usable.get()
    }
}

impl Trunk {
    /// Something that takes a request with this `head`, and whether it was opened just now. While nobody knows what an
    /// endpoint chooses, one connection finds out; where it last chose HTTP/1.1 each request connects for itself.
    pub(super) async fn take(
        self: &Rc<Self>,
        target: &Target<'_>,
        pool: &Pool,
        head: &Parts,
        deadline: &Deadline,
    ) -> Result<(Taken, bool), Error> {
        let wants_tunnel = head.extensions.get::<WebSocket>().is_some();
        self.spoken_until.set(Some(deadline.now() + target.keep.time));
        let mut is_new = false;
        loop {
            let mut dial = target.dial;
            if let Some(shared) = self.least_busy() {
                if !wants_tunnel || shared.sender.is_extended_connect_protocol_enabled() {
                    return Ok((Taken::Shared(Box::new(Stream::new(self, &shared))), is_new));
                }
                if dial.protocol == Protocol::Http2 {
                    let detail = "this service takes no WebSockets over HTTP/2";
                    return Err(Error::new(Kind::NotImplemented, detail));
                }
                dial.protocol = Protocol::Http1;
            }
            let is_alone = dial.protocol == Protocol::Http1
                || dial.protocol == Protocol::Auto && self.spoken.get() == Some(Protocol::Http1);
            if is_alone && let Some(idle) = pool.take(dial.line()) {
                return Ok((Taken::Alone(idle), false));
            }
            if !is_alone && !self.may_open() {
                self.change(deadline).await?;
                continue;
            }
            let connecting = (!is_alone).then(|| Connecting::new(self));
            let socket = dial.socket(deadline).await?;
            if !dial.is_http2(&socket) {
                if dial.protocol == Protocol::Auto {
                    self.spoken.set(Some(Protocol::Http1));
                }
                let connection = link::Connection::new(dial.line(), socket, target.limits);
                return Ok((Taken::Alone(connection), true));
            }
            self.spoken.set(Some(Protocol::Http2));
            // Of many that were under way when the endpoint changed its mind, no more stay than are allowed.
            let connecting = connecting.or_else(|| self.may_open().then(|| Connecting::new(self)));
            if connecting.is_some() {
                self.open(socket, target, deadline).await?;
                is_new = true;
            }
        }
    }

    /// Whether one more connection may be opened now. An endpoint that allows no request at all has a reason that holds
    /// for another connection too.
    fn may_open(&self) -> bool {
        let connections = self.connections.borrow();
        !self.connecting.get()
            && connections.len() < MAX_CONNECTIONS
            && connections.iter().all(|shared| shared.sender.current_max_send_streams() > 0)
    }

    /// Waits until there is reason to look again.
    async fn change(&self, deadline: &Deadline) -> Result<(), Error> {
        let mut changed = pin!(self.changed.notified());
        before(deadline, changed.as_mut()).await
    }

    fn least_busy(&self) -> Option<Rc<Shared>> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| connection.state.is_usable.get());
        let free = connections.iter().filter(|connection| {
            let allowed = connection.sender.current_max_send_streams().min(MAX_STREAMS);
            connection.state.streams.get() < allowed
        });
        free.min_by_key(|connection| connection.state.streams.get()).map(Rc::clone)
    }

    /// Makes a connection of a socket. It takes requests once the endpoint has said what it is ready for: until then it
    /// may be none that speaks HTTP/2, or that is alive at all, and nothing was sent that must not be sent twice.
    async fn open(
        self: &Rc<Self>,
        socket: Socket,
        target: &Target<'_>,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        let scheme = if target.dial.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let state = Rc::new(State {
            scheme,
            streams: Cell::new(0),
            is_usable: Cell::new(true),
            heard: Cell::new(0),
            greeted: Notify::new(),
            idle_until: Cell::new(Instant::now() + target.keep.time),
            keep: target.keep.time,
        });
        let wire = Wire { socket, state: Rc::clone(&state) };
        let handshake = builder(&target.limits).handshake(wire).await;
        let (sender, connection) = handshake.map_err(|_| Error::from(Kind::UpstreamConnect))?;
        spawn_local(drive(Rc::clone(self), connection, Rc::clone(&state)));
        let mut greeted = pin!(state.greeted.notified());
        before(deadline, greeted.as_mut()).await?;
        if !state.is_usable.get() {
            return Err(Kind::UpstreamProtocol.into());
        }
        self.connections.borrow_mut().push(Rc::new(Shared { sender, state: Rc::clone(&state) }));
        Ok(())
    }
}

/// Others wait for a connection that is being opened, and are told when it is or is not.
struct Connecting<'t>(&'t Trunk);

impl<'t> Connecting<'t> {
    fn new(trunk: &'t Trunk) -> Self {
        trunk.connecting.set(true);
        Self(trunk)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.changed.notify_waiters();
    }
}

fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(UNTOLD)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BYTES);
    builder
}

/// Moves a connection until it is closed.
async fn drive(trunk: Rc<Trunk>, mut connection: Connection<Wire, Bytes>, state: Rc<State>) {
    let mut pings = connection.ping_pong();
    let mut silence = pin!(sleep(SILENCE));
    let mut heard = 0;
    let mut is_asked = false;
    let mut allowed = UNTOLD;
    poll_fn(|context| {
        loop {
            if Pin::new(&mut connection).poll(context).is_ready() {
                return Poll::Ready(());
            }
            let before = mem::replace(&mut allowed, connection.max_concurrent_send_streams());
            if before != allowed {
                state.greeted.notify_one();
                trunk.changed.notify_waiters();
            }
            ready!(silence.as_mut().poll(context));
            silence.as_mut().reset(Instant::now() + SILENCE);
            let before = mem::replace(&mut heard, state.heard.get());
            if before != heard || state.streams.get() == 0 {
                is_asked = false;
            } else if is_asked {
                return Poll::Ready(());
            } else if let Some(pings) = &mut pings {
                // The answer to the last one has to be taken before the next is sent.
                drop(pings.poll_pong(context));
                is_asked = pings.send_ping(Ping::opaque()).is_ok();
            }
        }
    })
    .await;
    state.is_usable.set(false);
    state.greeted.notify_one();
    trunk.changed.notify_waiters();
}

/// The socket of an endpoint, listened to for signs of life.
#[derive(Debug)]
struct Wire {
    socket: Socket,
    state: Rc<State>,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        if read.is_ready() {
            self.state.heard.set(self.state.heard.get().wrapping_add(1));
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
