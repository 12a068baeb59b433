//! HTTP/2 towards services: a few connections to each endpoint, which the requests of one worker share.
//!
//! Such a connection belongs to no request, so it has a task of its own. It is retired, and takes no more requests, when
//! the endpoint says goodbye, when it has been idle for long enough, and when nothing is heard from it although something
//! is due; what it still carries goes on to its end.

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
use h2::{Ping, PingPong, Reason, SendStream};
use http::header::{CONNECTION, HOST, HeaderValue, TE, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Request, Response, Version};
use http_body::{Body as _, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::base::error::{Error, Kind};
use crate::http::body::{RequestBody, StreamBody};
use crate::http::deadline::Deadline;
use crate::http::grpc;
use crate::http::h1::head::Limits;
use crate::http::h1::upgrade::WebSocket;
use crate::http::socket::Socket;
use crate::upstream::Keep;
use crate::upstream::connection::{Failure, connect};

/// Connections of one worker to one endpoint. More are not opened before those are full.
const MAX_CONNECTIONS: usize = 4;

/// Requests at once over one connection, unless the endpoint allows fewer.
const MAX_STREAMS: usize = 256;

/// What an endpoint may send of one answer before it is taken from it. All answers of a connection have room at once, so
/// that a client that reads slowly holds up nobody else.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * MAX_STREAMS as u32;

/// What one request may hand over before the endpoint has room for it.
const SEND_BYTES: usize = 64 << 10;

/// How long an endpoint may be silent while something is due before it is asked whether it is there, and how long it
/// may then take to say so.
const SILENCE: Duration = Duration::from_secs(10);

/// The connections of one worker, by endpoint.
#[derive(Debug, Default)]
pub struct Trunks {
    by_endpoint: RefCell<HashMap<SocketAddr, Rc<Trunk>>>,
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
    streams: Cell<usize>,
    is_usable: Cell<bool>,
    /// Whether anything came since somebody last looked.
    was_heard: Cell<bool>,
    idle_until: Cell<Instant>,
    keep: Duration,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The endpoint.
    pub address: SocketAddr,
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
        self.by_endpoint.borrow_mut().retain(|address, trunk| {
            let is_used = is_used(*address);
            let mut connections = trunk.connections.borrow_mut();
            // The last one to hold a connection closes it: h2 does when no stream is left either.
            connections.retain(|connection| {
                let State { streams, is_usable, idle_until, .. } = &*connection.state;
                is_usable.get() && (is_used && idle_until.get() > now || streams.get() > 0)
            });
            is_used || !connections.is_empty()
        });
    }

    /// Sends `request` and waits for the head of the answer. Says also whether a connection was opened for it. A
    /// connection that was open before and turns out to take no more is passed over for another one.
    pub async fn send(
        &self,
        target: &Target,
        mut request: Request<RequestBody>,
        deadline: &Deadline,
    ) -> (Result<Response<Exchange>, Failure>, bool) {
        let trunk = Rc::clone(self.by_endpoint.borrow_mut().entry(target.address).or_default());
        loop {
            deadline.connect(target.connect_timeout);
            let (stream, is_new) = match trunk.take(target, deadline).await {
                Ok(taken) => taken,
                Err(error) => return (Err(Failure::Unsent(Box::new(request), error)), false),
            };
            match stream.send(request, target.response_timeout, deadline).await {
                Err(Failure::Unsent(unsent, _)) if !is_new => request = *unsent,
                result => return (result, is_new),
            }
        }
    }
}

impl Trunk {
    /// A place on a connection, a new one if need be.
    async fn take(
        self: &Rc<Self>,
        target: &Target,
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
        target: &Target,
        deadline: &Deadline,
    ) -> Result<Rc<Shared>, Error> {
        let _connecting = Connecting::new(self);
        let socket = connect(target.address, deadline).await?;
        let state = Rc::new(State {
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

/// A place on a connection.
#[derive(Debug)]
struct Stream {
    sender: SendRequest<Bytes>,
    place: Place,
}

/// Counts a stream for as long as it is open.
#[derive(Debug)]
struct Place {
    trunk: Rc<Trunk>,
    state: Rc<State>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let State { streams, idle_until, keep, .. } = &*self.state;
        streams.set(streams.get().saturating_sub(1));
        if streams.get() == 0 {
            idle_until.set(Instant::now() + *keep);
        }
        self.trunk.changed.notify_one();
    }
}

impl Stream {
    fn new(trunk: &Rc<Trunk>, connection: &Shared) -> Self {
        let state = Rc::clone(&connection.state);
        state.streams.set(state.streams.get() + 1);
        let place = Place { trunk: Rc::clone(trunk), state };
        Self { sender: connection.sender.clone(), place }
    }

    async fn send(
        mut self,
        request: Request<RequestBody>,
        response_timeout: Duration,
        deadline: &Deadline,
    ) -> Result<Response<Exchange>, Failure> {
        let (head, body) = request.into_parts();
        if head.extensions.get::<WebSocket>().is_some() {
            let detail = "this service takes no WebSockets: it is asked over HTTP/2";
            return Err(Failure::Final(Error::new(Kind::NotImplemented, detail)));
        }
        let is_whole = body.is_end_stream();
        let opened = match self.ready(deadline).await {
            Ok(()) => self.sender.send_request(on_the_wire(&head), is_whole).map_err(|error| {
                self.place.state.is_usable.set(!error.is_go_away() && !error.is_io());
                error_of(&error)
            }),
            Err(error) => Err(error),
        };
        let (mut answer, stream) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                return Err(Failure::Unsent(Box::new(Request::from_parts(head, body)), error));
            }
        };
        deadline.send(!is_whole, response_timeout);
        let mut upload = Upload { body, stream, piece: Bytes::new(), moved: false, done: is_whole };
        let answer = poll_fn(|context| {
            if let Poll::Ready(Err(error)) = upload.poll(context) {
                return Poll::Ready(Err((error, false)));
            }
            match Pin::new(&mut answer).poll(context) {
                Poll::Ready(Ok(answer)) => Poll::Ready(Ok(answer)),
                Poll::Ready(Err(error)) => {
                    Poll::Ready(Err((error_of(&error), was_not_processed(&error))))
                }
                Poll::Pending if deadline.has_passed() => {
                    Poll::Ready(Err((deadline.error(), false)))
                }
                Poll::Pending => Poll::Pending,
            }
        });
        match answer.await {
            Ok(answer) => {
                deadline.answered();
                let (head, stream) = answer.into_parts();
                let body = StreamBody::new(stream, &head.headers);
                let exchange = Exchange { body, upload, _place: self.place };
                Ok(Response::from_parts(head, exchange))
            }
            Err((error, true)) if !upload.moved => {
                let request = Request::from_parts(head, upload.body);
                Err(Failure::Unsent(Box::new(request), error))
            }
            Err((error, _)) => Err(Failure::Final(error)),
        }
    }

    async fn ready(&mut self, deadline: &Deadline) -> Result<(), Error> {
        let ready = poll_fn(|context| match self.sender.poll_ready(context) {
            Poll::Ready(ready) => Poll::Ready(ready.map_err(|error| error_of(&error))),
            Poll::Pending if deadline.has_passed() => Poll::Ready(Err(deadline.error())),
            Poll::Pending => Poll::Pending,
        });
        let ready = ready.await;
        if ready.is_err() {
            // It said goodbye or broke: it takes no more.
            self.place.state.is_usable.set(false);
        }
        ready
    }
}

/// A request and its answer, once the head of that is there. Dropping it before its end resets the stream.
#[derive(Debug)]
pub struct Exchange {
    body: StreamBody,
    upload: Upload,
    _place: Place,
}

impl Exchange {
    /// The next frame of the answer's body.
    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.poll_upload(context);
        self.body.poll_frame(context).map_err(|error| error_of(&error))
    }

    /// Sends more of the request.
    pub fn poll_upload(&mut self, context: &mut Context<'_>) {
        // What goes wrong with it shows in the answer.
        drop(self.upload.poll(context));
    }

    /// Bytes that are still to come of the answer's body, if their number is known.
    pub fn exact(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// Whether the answer is at its end, trailers included.
    pub fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// The body of a request on its way out.
#[derive(Debug)]
struct Upload {
    body: RequestBody,
    stream: SendStream<Bytes>,
    piece: Bytes,
    /// Whether anything of the body was taken.
    moved: bool,
    done: bool,
}

impl Upload {
    /// Sends as much as the endpoint has room for. Fails with what is wrong on the client's side; what is on the other
    /// shows in the answer.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while !self.done {
            if !self.piece.is_empty() {
                ready!(self.pass_on(context));
                continue;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    self.moved = true;
                    match frame.into_data() {
                        Ok(data) => self.piece = data,
                        Err(frame) => {
                            let trailers = frame.into_trailers().unwrap_or_default();
                            self.done = true;
                            self.stream.send_trailers(trailers).ok();
                        }
                    }
                }
                Some(Err(error)) => {
                    self.done = true;
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(error));
                }
                None => {
                    self.done = true;
                    self.stream.send_data(Bytes::new(), true).ok();
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn pass_on(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.stream.reserve_capacity(self.piece.len());
        let mut room = self.stream.capacity();
        while room == 0 {
            match ready!(self.stream.poll_capacity(context)) {
                Some(Ok(more)) => room = more,
                Some(Err(_)) | None => {
                    self.done = true;
                    return Poll::Ready(());
                }
            }
        }
        let part = self.piece.split_to(room.min(self.piece.len()));
        let last = self.piece.is_empty() && self.body.is_end_stream();
        self.done = self.stream.send_data(part, last).is_err() || last;
        Poll::Ready(())
    }
}

/// The head as HTTP/2 has it. Its own is kept, for the endpoint may hand the request back.
fn on_the_wire(head: &Parts) -> Request<()> {
    let mut request = Request::new(());
    let mut headers = head.headers.clone();
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    if grpc::is_grpc(&headers) {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let host = headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = head.uri.clone();
    if let Some(authority) = host {
        headers.remove(HOST);
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(authority);
        let path = head.uri.path_and_query().cloned();
        parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
            *request.version_mut() = Version::HTTP_2;
        }
    }
    *request.method_mut() = head.method.clone();
    *request.headers_mut() = headers;
    request
}

/// Whether the endpoint promises that it did nothing with the request (RFC 9113, section 8.7).
fn was_not_processed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}

fn error_of(error: &h2::Error) -> Error {
    if error.is_library() { Kind::UpstreamProtocol.into() } else { Kind::UpstreamReset.into() }
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
