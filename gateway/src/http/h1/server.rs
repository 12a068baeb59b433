//! The side of a connection that answers a client. One task reads a head, has the request answered, writes the answer
//! and goes on to the next; the body of the request reads from the same socket, as far as the service asks for it.

use std::cell::{Cell, RefCell};
use std::future::{self, poll_fn};
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode, Version, response};
use http_body::{Body, Frame};
use tokio::io::AsyncWrite as _;

use crate::base::error::{Error, Kind};
use crate::http::body::Incoming;
use crate::http::deadline::Deadline;
use crate::http::h1::decoder::{Decoder, Length, Piece};
use crate::http::h1::encode::{self, Framing, Future};
use crate::http::h1::head::{self, Limits, RequestHead, Scan, Section};
use crate::http::h1::input::Input;
use crate::http::h1::output::Output;
use crate::http::h1::pump::{Moved, Pump};
use crate::http::h1::request_stream::RequestStream;
use crate::http::lifetime::Lifetime;
use crate::http::socket::Socket;
use crate::observe::Counters;

/// What answers requests.
pub trait Service {
    /// The body of an answer.
    type Answer: Answer;

    /// Answers one request, whose head may be made another one for it.
    fn answer(
        &self,
        head: &mut Parts,
        body: Incoming,
    ) -> impl future::Future<Output = Response<Self::Answer>>;

    /// The answer to what is no request. `asked` is what its first line says, if that can be read.
    fn refuse(&self, error: &Error, asked: Option<&Parts>) -> Response<Self::Answer>;
}

/// The body of an answer.
pub trait Answer: Body<Data = Bytes, Error = Error> + Unpin {
    /// Sends more of the request, which may go on beside the answer; called while the client does not take the answer
    /// and nobody asks for a frame.
    fn poll_upload(&mut self, context: &mut Context<'_>);
}

/// The connection to a client.
#[derive(Debug)]
pub struct Server {
    pub(super) state: RefCell<State>,
    limits: Limits,
    lifetime: Lifetime,
    deadline: Rc<Deadline>,
    counters: Arc<Counters>,
    draining: Cell<bool>,
}

#[derive(Debug)]
pub(super) struct State {
    socket: Socket,
    input: Input,
    pub(super) decoder: Decoder,
    /// What is left to write of the leave to send a body.
    interim: &'static [u8],
    pub(super) body_is_held: bool,
    is_tunnel: bool,
}

/// What one connection may move before the others have their turn.
const TURN_BYTES: usize = 128 * 1024;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What comes after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The next request.
    Request,
    /// The end.
    Close,
    /// The end, but the client may still be sending and must not lose the answer by that.
    Linger,
    /// The end of a connection that has broken already.
    Broken,
    /// Nothing, for as long as the client likes.
    Rest,
}

/// What of a request's head decides about the answer's.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    is_head: bool,
    is_current: bool,
    persistent: bool,
    takes_trailers: bool,
    is_refused: bool,
}

impl Server {
    /// The connection over `socket`, from which `input` was read already.
    pub fn new(
        socket: Socket,
        input: Bytes,
        (limits, lifetime): (Limits, Lifetime),
        (deadline, counters): (Rc<Deadline>, Arc<Counters>),
    ) -> Rc<Self> {
        counters.bytes_received.add(input.len() as u64);
        let input = Input::new(input);
        let state = RefCell::new(State {
            socket,
            input,
            decoder: Decoder::Done,
            interim: b"",
            body_is_held: false,
            is_tunnel: false,
        });
        let draining = Cell::new(false);
        Rc::new(Self { state, limits, lifetime, deadline, counters, draining })
    }

    /// Ends after the request that is under way, or before the next.
    pub fn drain(&self) {
        self.draining.set(true);
    }

    /// The client has had its time: what is left of its answer is dropped with the connection.
    pub fn abort(&self) {
        self.state.borrow().socket.abort();
    }

    /// Answers requests until either side has had enough, or the connection may [rest](Self::rest): whether it is that.
    pub async fn serve(self: &Rc<Self>, service: &impl Service) -> bool {
        let after = loop {
            let mut scan = Scan::new(Section::Request);
            let next = poll_fn(|context| {
                self.poll_head(&mut scan, context).map(|head| Ok(self.turn(head?, service)))
            });
            let after = match next.await {
                Ok(turn) => turn.await,
                Err(after) => after,
            };
            if after != After::Request {
                break after;
            }
        };
        self.end(after).await;
        after == After::Rest
    }

    /// What is to be kept of a connection that may rest.
    pub fn rest(self) -> (Socket, Lifetime) {
        (self.state.into_inner().socket, self.lifetime)
    }

    /// What a head leads to. Apart, so that a connection that waits for its next request holds no memory for one.
    fn turn<'a>(
        self: &'a Rc<Self>,
        head: Result<RequestHead, Error>,
        service: &'a impl Service,
    ) -> Pin<Box<dyn future::Future<Output = After> + 'a>> {
        match head {
            Ok(head) => Box::pin(self.exchange(head, service)),
            Err(error) => Box::pin(self.refuse(error, service)),
        }
    }

    /// The next head, or what comes instead.
    fn poll_head(
        &self,
        scan: &mut Scan,
        context: &mut Context<'_>,
    ) -> Poll<Result<Result<RequestHead, Error>, After>> {
        let state = &mut *self.state.borrow_mut();
        loop {
            if !state.input.is_empty() {
                match scan.find(state.input.bytes(), &self.limits) {
                    Ok(None) => {}
                    Ok(Some(found)) => {
                        let head = head::request(&state.input.slice(&found), &self.limits);
                        return Poll::Ready(Ok(head.inspect(|_| state.input.skip(found.end))));
                    }
                    Err(error) => return Poll::Ready(Ok(Err(error))),
                }
            } else if self.draining.get() {
                return Poll::Ready(Err(After::Close));
            }
            match self.poll_fill(state, context) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(Err(After::Close)),
                Poll::Pending if self.deadline.has_passed() && !state.input.is_empty() => {
                    return Poll::Ready(Ok(Err(Kind::HeadTimeout.into())));
                }
                Poll::Pending if self.deadline.has_rested() && state.is_at_rest() => {
                    return Poll::Ready(Err(After::Rest));
                }
                Poll::Pending => {
                    if !state.input.is_empty() {
                        // A part of it may have come behind the request before.
                        self.deadline.client_sent();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    async fn exchange(self: &Rc<Self>, head: RequestHead, service: &impl Service) -> After {
        let RequestHead { mut parts, length, persistent, expects_continue, takes_trailers } = head;
        let asked = Asked {
            is_head: parts.method == Method::HEAD,
            is_current: parts.version == Version::HTTP_11,
            persistent,
            takes_trailers,
            is_refused: false,
        };
        self.lifetime.request();
        let body = Incoming::Http1(self.begin_body(length, expects_continue));
        let answer = {
            let mut answer = pin!(service.answer(&mut parts, body));
            // What it took to answer is gone before the answer is sent.
            poll_fn(|context| match answer.as_mut().poll(context) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending => self.poll_gone(context).map(|()| None),
            })
            .await
        };
        drop(parts);
        match answer {
            Some(answer) => self.send(answer, asked).await,
            None => After::Broken,
        }
    }

    async fn refuse(self: &Rc<Self>, error: Error, service: &impl Service) -> After {
        match error.kind() {
            Kind::HeadTimeout => self.counters.heads_timed_out.add(1),
            _ => self.counters.heads_malformed.add(1),
        }
        let asked = Asked { is_current: true, is_refused: true, ..Asked::default() };
        let line = head::asked(self.state.borrow().input.bytes(), &self.limits);
        self.send(service.refuse(&error, line.as_ref()), asked).await
    }

    fn begin_body(self: &Rc<Self>, length: Length, expects_continue: bool) -> RequestStream {
        let state = &mut *self.state.borrow_mut();
        state.decoder = Decoder::new(length);
        state.body_is_held = true;
        if expects_continue && !state.decoder.is_done() {
            state.interim = CONTINUE;
        }
        RequestStream::new(self)
    }

    /// Ready when the client has left while its request is answered. One request more is read meanwhile, no more.
    fn poll_gone(&self, context: &mut Context<'_>) -> Poll<()> {
        let state = &mut *self.state.borrow_mut();
        if !state.decoder.is_done() || !state.input.is_empty() || state.is_tunnel {
            return Poll::Pending;
        }
        match ready!(self.poll_fill(state, context)) {
            Ok(1..) => Poll::Pending,
            Ok(0) | Err(_) => Poll::Ready(()),
        }
    }

    async fn send<A: Answer>(&self, answer: Response<A>, asked: Asked) -> After {
        let (head, mut body) = answer.into_parts();
        let mut output = Output::default();
        let (framing, closes) = self.begin_answer(&head, &body, asked, &mut output);
        let is_tunnel = head.status == StatusCode::SWITCHING_PROTOCOLS;
        drop(head);
        let mut pump = Pump::new(framing, asked.takes_trailers);
        let sent = poll_fn(|context| self.poll_send(&mut pump, &mut body, &mut output, context));
        if !sent.await {
            if framing == Framing::UntilClose {
                // An orderly end would say that this was all.
                self.abort();
            }
            return After::Broken;
        }
        if is_tunnel {
            self.end_tunnel(&mut body).await;
            return After::Broken;
        }
        drop(body);
        let state = self.state.borrow();
        if !state.decoder.is_done() || asked.is_refused {
            After::Linger
        } else if !closes {
            After::Request
        } else if state.input.is_empty() {
            After::Close
        } else {
            After::Linger
        }
    }

    /// Writes the head of an answer: what it says about the body, and whether it says that the connection ends.
    fn begin_answer(
        &self,
        head: &response::Parts,
        body: &impl Body,
        asked: Asked,
        output: &mut Output,
    ) -> (Framing, bool) {
        let state = &mut *self.state.borrow_mut();
        // Leave that was not given yet is not needed any more; one that was begun must be whole.
        let interim = mem::take(&mut state.interim);
        if interim.len() < CONTINUE.len() {
            output.head().extend_from_slice(interim);
        }
        let is_tunnel = head.status == StatusCode::SWITCHING_PROTOCOLS;
        if is_tunnel {
            (state.decoder, state.is_tunnel) = (Decoder::UntilClose, true);
        } else if !state.body_is_held {
            state.discard(&self.limits);
        }
        let exact = body.size_hint().exact();
        let framing = Framing::of_answer(head.status, exact, (asked.is_head, asked.is_current));
        let closes = !asked.persistent
            || self.draining.get()
            || self.lifetime.is_over(self.deadline.now())
            || framing == Framing::UntilClose
            || !state.body_is_held && !state.decoder.is_done();
        let future = match (is_tunnel, closes) {
            (true, _) => Future::Upgrade,
            (false, true) => Future::Close,
            (false, false) if asked.is_current => Future::Default,
            (false, false) => Future::KeepAlive,
        };
        encode::answer(output.head(), head, framing, future);
        (framing, closes)
    }

    /// Moves the answer on; ready when all of it is written, or false when that cannot be.
    fn poll_send<A: Answer>(
        &self,
        pump: &mut Pump,
        body: &mut A,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Poll<bool> {
        let mut wrote = 0;
        loop {
            let moved = pump.poll(body, output, context);
            wrote += output.left();
            match self.poll_write(output, context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => {
                    body.poll_upload(context);
                    self.deadline.client_blocks();
                    return Poll::Pending;
                }
            }
            match moved {
                Moved::Full if wrote >= TURN_BYTES => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Moved::Full => {}
                Moved::Waiting => return self.poll_gone(context).map(|()| false),
                Moved::All => return Poll::Ready(true),
                Moved::Broken(_) => return Poll::Ready(false),
            }
        }
    }

    /// The service has ended its half of a tunnel; the client's half goes on until it ends or nothing comes any more.
    async fn end_tunnel<A: Answer>(&self, body: &mut A) {
        poll_fn(|context| {
            if self.poll_shutdown(context).is_pending() {
                return Poll::Pending;
            }
            body.poll_upload(context);
            let ended = self.state.borrow().decoder.is_done() || !self.state.borrow().body_is_held;
            if ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Ends the connection such that the client learns of it.
    async fn end(&self, after: After) {
        let says_so = self.state.borrow().socket.is_encrypted();
        if matches!(after, After::Broken | After::Rest) || after == After::Close && !says_so {
            // Closing the socket tells the client as well.
            return;
        }
        poll_fn(|context| self.poll_shutdown(context)).await;
        if after == After::Linger {
            self.deadline.linger();
            poll_fn(|context| {
                let state = &mut *self.state.borrow_mut();
                loop {
                    state.input.skip(usize::MAX);
                    match ready!(self.poll_fill(state, context)) {
                        Ok(1..) => {}
                        Ok(0) | Err(_) => return Poll::Ready(()),
                    }
                }
            })
            .await;
        }
    }

    fn poll_fill(&self, state: &mut State, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let left = state.decoder.exact();
        let bytes = ready!(state.input.poll_fill(&mut state.socket, left, context))?;
        // The end of the stream is no sign of life.
        if bytes > 0 {
            self.counters.bytes_received.add(bytes as u64);
            self.deadline.client_sent();
        }
        Poll::Ready(Ok(bytes))
    }

    fn poll_write(&self, output: &mut Output, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.state.borrow_mut();
        let wrote = |bytes| self.wrote(bytes);
        output.poll_write(&mut state.socket, wrote, context)
    }

    fn poll_shutdown(&self, context: &mut Context<'_>) -> Poll<()> {
        let state = &mut *self.state.borrow_mut();
        Pin::new(&mut state.socket).poll_shutdown(context).map(drop)
    }

    fn wrote(&self, bytes: usize) {
        self.counters.bytes_sent.add(bytes as u64);
        self.deadline.client_took(bytes);
    }

    /// The next piece of the request's body.
    pub(super) fn poll_body(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let state = &mut *self.state.borrow_mut();
        loop {
            match state.decoder.next(&mut state.input, &self.limits) {
                Ok(Piece::Data(data)) => {
                    state.interim = b"";
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Piece::Trailers(fields)) => {
                    return Poll::Ready(Some(Ok(Frame::trailers(fields))));
                }
                Ok(Piece::End) => return Poll::Ready(None),
                Ok(Piece::More) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            if ready!(self.poll_interim(state, context)).is_err() {
                return Poll::Ready(Some(Err(Kind::RequestBroken.into())));
            }
            match ready!(self.poll_fill(state, context)) {
                Ok(1..) => {}
                Ok(0) => match state.decoder.end_of_input() {
                    Ok(()) => return Poll::Ready(None),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
                Err(_) => return Poll::Ready(Some(Err(Kind::RequestBroken.into()))),
            }
        }
    }

    fn poll_interim(&self, state: &mut State, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !state.interim.is_empty() {
            let bytes = ready!(Pin::new(&mut state.socket).poll_write(context, state.interim))?;
            state.interim = state.interim.get(bytes..).unwrap_or_default();
            self.wrote(bytes);
            if state.interim.is_empty() {
                return Pin::new(&mut state.socket).poll_flush(context);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl State {
    /// Whether nothing of any request is left.
    fn is_at_rest(&self) -> bool {
        self.input.is_empty() && !self.body_is_held
    }

    /// Drops what is there of a body that nobody reads.
    fn discard(&mut self, limits: &Limits) {
        while let Ok(Piece::Data(_) | Piece::Trailers(_)) =
            self.decoder.next(&mut self.input, limits)
        {}
    }
}
