//! HTTP/2 towards services: a few connections to each endpoint, which the requests of one worker share.
//!
//! Such a connection belongs to no request, so it has a task of its own. It takes no more requests once the endpoint
//! has said goodbye or it was idle for long enough, and what it still carries goes on to its end. It is closed when
//! nothing is heard from it although something is due.

mod stream;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use http::Response;
use http::request::Parts;
use http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

pub use self::stream::Exchange;

use self::stream::Stream;
use crate::base::error::{Error, Kind};
use crate::http::body::RequestBody;
use crate::http::deadline::Deadline;
use crate::http::h1::head::Limits;
use crate::http::socket::Socket;
use crate::upstream::Keep;
use crate::upstream::connection::Failure;
use crate::upstream::dial::{Dial, Line};

/// Connections of one worker to one endpoint. More are not opened before those are full.
const MAX_CONNECTIONS: usize = 4;

/// Requests at once over one connection, unless the endpoint allows fewer.
const MAX_STREAMS: usize = 256;

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
struct Trunk {
    connections: RefCell<Vec<Rc<Shared>>>,
    connecting: Cell<bool>,
    /// A connection was opened or has broken, or a stream is over.
    changed: Notify,
}

/// One connection as its requests see it.
#[derive(Debug)]
struct Shared {
    sender: SendRequest<Bytes>,
    state: Rc<State>,
}

#[derive(Debug)]
struct State {
    /// What requests say that they came over.
    scheme: Scheme,
    streams: Cell<usize>,
    is_usable: Cell<bool>,
    /// Whether anything came since somebody last looked.
    was_heard: Cell<bool>,
    idle_until: Cell<Instant>,
    keep: Duration,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The endpoint, and how it is connected to.
    pub dial: Dial<'a>,
    /// What it may answer.
    pub limits: Limits,
    /// For how long an idle connection is kept.
    pub keep: Keep,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time from the last byte of the request to the head of the answer.
    pub response_timeout: Duration,
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
            is_used || !connections.is_empty()
        });
    }

    /// Sends a request and waits for the head of the answer. Says also whether a connection was opened for it. A
    /// connection that was open before and turns out to take no more is passed over for another one.
    pub async fn send(
        &self,
        target: &Target<'_>,
        head: &Parts,
        mut body: RequestBody,
        deadline: &Deadline,
    ) -> (Result<Response<Exchange>, Failure>, bool) {
        let trunk = Rc::clone(self.by_line.borrow_mut().entry(target.dial.line()).or_default());
        loop {
            deadline.connect(target.connect_timeout);
            let (stream, is_new) = match trunk.take(target, deadline).await {
                Ok(taken) => taken,
                Err(error) => return (Err(Failure::Unsent(body, error)), false),
            };
            match stream.send(head, body, target.response_timeout, deadline).await {
                Err(Failure::Unsent(unsent, _)) if !is_new => body = unsent,
                result => return (result, is_new),
            }
        }
    }
}

impl Trunk {
    /// A place on a connection, a new one if need be.
    async fn take(
        self: &Rc<Self>,
        target: &Target<'_>,
        deadline: &Deadline,
    ) -> Result<(Stream, bool), Error> {
        loop {
            if let Some(connection) = self.least_busy() {
                return Ok((Stream::new(self, &connection), false));
            }
            if !self.connecting.get() && self.connections.borrow().len() < MAX_CONNECTIONS {
                let connection = self.open(target, deadline).await?;
                return Ok((Stream::new(self, &connection), true));
            }
            let mut changed = pin!(self.changed.notified());
            poll_fn(|context| match changed.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Ok(())),
                Poll::Pending if deadline.has_passed() => Poll::Ready(Err(deadline.error())),
                Poll::Pending => Poll::Pending,
            })
            .await?;
        }
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

    async fn open(
        self: &Rc<Self>,
        target: &Target<'_>,
        deadline: &Deadline,
    ) -> Result<Rc<Shared>, Error> {
        let _connecting = Connecting::new(self);
        let socket = target.dial.socket(deadline).await?;
        let scheme = if target.dial.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let state = Rc::new(State {
            scheme,
            streams: Cell::new(0),
            is_usable: Cell::new(true),
            was_heard: Cell::new(true),
            idle_until: Cell::new(Instant::now() + target.keep.time),
            keep: target.keep.time,
        });
        let wire = Wire { socket, state: Rc::clone(&state) };
        let handshake = builder(&target.limits).handshake(wire).await;
        let (sender, mut connection) = handshake.map_err(|_| Error::from(Kind::UpstreamConnect))?;
        let pings = connection.ping_pong();
        let shared = Rc::new(Shared { sender, state: Rc::clone(&state) });
        self.connections.borrow_mut().push(Rc::clone(&shared));
        spawn_local(drive(Rc::clone(self), connection, pings, state));
        Ok(shared)
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
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BYTES);
    builder
}

/// Moves a connection until it is closed.
async fn drive(
    trunk: Rc<Trunk>,
    mut connection: Connection<Wire, Bytes>,
    mut pings: Option<PingPong>,
    state: Rc<State>,
) {
    let mut silence = pin!(sleep(SILENCE));
    let mut is_asked = false;
    poll_fn(|context| {
        loop {
            if Pin::new(&mut connection).poll(context).is_ready() {
                return Poll::Ready(());
            }
            ready!(silence.as_mut().poll(context));
            silence.as_mut().reset(Instant::now() + SILENCE);
            if state.was_heard.take() || state.streams.get() == 0 {
                is_asked = false;
            } else if is_asked {
                return Poll::Ready(());
            } else if let Some(pings) = &mut pings {
                is_asked = pings.send_ping(Ping::opaque()).is_ok();
            }
        }
    })
    .await;
    state.is_usable.set(false);
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
        self.state.was_heard.set(self.state.was_heard.get() || read.is_ready());
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
