//! One request over a shared connection, from its head to the end of its answer.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, HOST, HeaderValue, TE, UPGRADE};
use http::request::Parts;
use http::uri::{self, Authority, PathAndQuery, Scheme, Uri};
use http::{Request, Response, Version};
use http_body::{Body as _, Frame};
use tokio::time::Instant;

use super::{Shared, State, Trunk, tunnel};
use crate::base::error::{Error, Kind};
use crate::http::body::{RequestBody, StreamBody};
use crate::http::deadline::Deadline;
use crate::http::grpc;
use crate::http::h1::upgrade::WebSocket;
use crate::upstream::connection::Failure;
use crate::upstream::dial::Target;

/// A place on a connection.
#[derive(Debug)]
pub(in crate::upstream) struct Stream {
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
    pub(super) fn new(trunk: &Rc<Trunk>, connection: &Shared) -> Self {
        let state = Rc::clone(&connection.state);
        state.streams.set(state.streams.get() + 1);
        let place = Place { trunk: Rc::clone(trunk), state };
        Self { sender: connection.sender.clone(), place }
    }

    /// The connection that it is on.
    pub(in crate::upstream) fn connection(&self) -> Rc<State> {
        Rc::clone(&self.place.state)
    }

    /// Sends a request and waits for the head of the answer.
    pub(in crate::upstream) async fn send(
        mut self,
        head: &Parts,
        mut body: RequestBody,
        target: &Target<'_>,
        deadline: &Rc<Deadline>,
    ) -> Result<Response<Exchange>, Failure> {
        let is_tunnel = head.extensions.get::<WebSocket>().is_some();
        let is_whole = body.is_end_stream() && !is_tunnel;
        let mut wire = on_the_wire(head, &self.place.state.scheme);
        if is_tunnel {
            tunnel::ask(&mut wire);
        }
        let opened = match self.ready(deadline).await {
            Ok(()) => self.sender.send_request(wire, is_whole).map_err(|error| self.broke(&error)),
            Err(error) => Err(error),
        };
        let (answer, stream) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                return Err(Failure::Unsent(body, error));
            }
        };
        let mut replay = None;
        if !is_whole && !is_tunnel {
            let (kept, again) = body.keep(target.replay_bytes);
            (body, replay) = (kept, Some(again));
        }
        deadline.send(!is_whole && !is_tunnel, target.response_timeout);
        // What goes through a tunnel goes when it is there.
        let mut upload = Upload { body, stream, piece: Bytes::new(), done: is_whole || is_tunnel };
        match self.answer(answer, &mut upload, deadline).await {
            Ok(answer) => {
                let (mut answer, stream) = answer.into_parts();
                let is_tunnel = is_tunnel && tunnel::is_granted(&mut answer, &head.headers);
                deadline.answered();
                if is_tunnel {
                    deadline.tunnel();
                    upload.done = false;
                }
                let body = StreamBody::new(Rc::new(RefCell::new(stream)), &answer.headers);
                let exchange = Exchange { body, upload, is_tunnel, _place: self.place };
                Ok(Response::from_parts(answer, exchange))
            }
            Err((error, Unseen::Yes)) => {
                let body = match replay {
                    Some(replay) => replay.again(deadline),
                    None => Some(upload.body),
                };
                Err(match body {
                    Some(body) => Failure::Unsent(body, error),
                    None => Failure::Final(error),
                })
            }
            Err((error, Unseen::Perhaps)) => Err(Failure::Final(error)),
        }
    }

    /// The head of the answer, while the request's body is sent.
    async fn answer(
        &self,
        mut answer: ResponseFuture,
        upload: &mut Upload,
        deadline: &Deadline,
    ) -> Result<Response<RecvStream>, (Error, Unseen)> {
        let heard = self.place.state.heard.get();
        poll_fn(|context| {
            if let Poll::Ready(Err(error)) = upload.poll(context) {
                return Poll::Ready(Err((error, Unseen::Perhaps)));
            }
            match Pin::new(&mut answer).poll(context) {
                Poll::Ready(Ok(answer)) => Poll::Ready(Ok(answer)),
                Poll::Ready(Err(error)) => {
                    Poll::Ready(Err((self.broke(&error), Unseen::of(&error))))
                }
                Poll::Pending if deadline.has_passed() => {
                    if self.place.state.heard.get() == heard {
                        // Not one sign of life: others had better take another connection.
                        self.place.state.is_usable.set(false);
                    }
                    Poll::Ready(Err((deadline.error(), Unseen::Perhaps)))
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Takes note of what has become of the connection.
    fn broke(&self, error: &h2::Error) -> Error {
        if error.is_go_away() || error.is_io() {
            self.place.state.is_usable.set(false);
        }
        error_of(error)
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

/// Whether the endpoint promises that it did nothing with a request (RFC 9113, section 8.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unseen {
    Yes,
    Perhaps,
}

impl Unseen {
    fn of(error: &h2::Error) -> Self {
        let is_refused = error.reason() == Some(Reason::REFUSED_STREAM);
        // What is behind the last stream of a GOAWAY: h2 tells of the others that the connection broke.
        match error.is_remote() && (error.is_go_away() || is_refused) {
            true => Self::Yes,
            false => Self::Perhaps,
        }
    }
}

/// A request and its answer, once the head of that is there. Dropping it before its end resets the stream.
#[derive(Debug)]
pub struct Exchange {
    body: StreamBody,
    upload: Upload,
    is_tunnel: bool,
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

    /// Whether the answer is at its end, trailers included. The client's half of a tunnel may go on.
    pub fn is_done(&self) -> bool {
        self.body.is_end_stream() && !self.is_tunnel
    }
}

/// The body of a request on its way out.
#[derive(Debug)]
struct Upload {
    body: RequestBody,
    stream: SendStream<Bytes>,
    piece: Bytes,
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
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.piece = data,
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.done = true;
                        self.stream.send_trailers(trailers).ok();
                    }
                },
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

/// The head as HTTP/2 has it. Its own stays, for the endpoint may hand the request back.
fn on_the_wire(head: &Parts, scheme: &Scheme) -> Request<()> {
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
        let mut parts = uri::Parts::default();
        parts.scheme = Some(scheme.clone());
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

fn error_of(error: &h2::Error) -> Error {
    if error.is_library() { Kind::UpstreamProtocol.into() } else { Kind::UpstreamReset.into() }
}
