//! The side of a connection that asks a service. It has one request at a time; whoever holds it moves it on. The answer
//! may come before all of the request is sent, and both go on beside each other.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::header::{HeaderValue, SEC_WEBSOCKET_KEY};
use http::{request, response};
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite as _;

use crate::base::error::{Error, Kind};
use crate::http::body::RequestBody;
use crate::http::h1::decoder::{Decoder, Piece};
use crate::http::h1::encode::{self, Framing};
use crate::http::h1::head::{self, AnswerHead, Limits, Scan, Section};
use crate::http::h1::input::Input;
use crate::http::h1::output::Output;
use crate::http::h1::pump::{Moved, Pump};
use crate::http::h1::upgrade::{self, WebSocket};
use crate::http::socket::Socket;

/// Answers before the one that counts (RFC 9110, section 15.2). None is passed on.
const MAX_INFORMATIONAL: usize = 16;

/// The connection to a service.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    limits: Limits,
    input: Input,
    output: Output,
    decoder: Decoder,
    /// The request's body until it is sent.
    upload: Option<(RequestBody, Pump)>,
    /// What is sent once the connection is a tunnel, and the key that the answer must know.
    tunnel: Option<(RequestBody, HeaderValue)>,
    is_tunnel: bool,
    to_head: bool,
    informational: usize,
    wrote: bool,
    /// Whether it is of use for another request, as far as is known.
    reusable: bool,
}

impl Client {
    /// A connection that nothing was asked over.
    pub fn new(socket: Socket, limits: Limits) -> Self {
        Self {
            socket,
            limits,
            input: Input::default(),
            output: Output::default(),
            decoder: Decoder::Done,
            upload: None,
            tunnel: None,
            is_tunnel: false,
            to_head: false,
            informational: 0,
            wrote: false,
            reusable: true,
        }
    }

    /// Begins to send a request. [`Client::poll_answer`] goes on with it.
    pub fn begin(&mut self, head: &request::Parts, body: RequestBody) {
        let wants_tunnel = head.extensions.get::<WebSocket>().is_some();
        let framing = match body.size_hint().exact() {
            _ if body.is_end_stream() || wants_tunnel => Framing::None,
            Some(bytes) => Framing::Exact(bytes),
            None => Framing::Chunked,
        };
        encode::request(self.output.head(), head, framing);
        self.to_head = head.method == http::Method::HEAD;
        (self.informational, self.wrote) = (0, false);
        if wants_tunnel {
            let key = head.headers.get(SEC_WEBSOCKET_KEY).cloned();
            self.tunnel = Some((body, key.unwrap_or(HeaderValue::from_static(""))));
        } else {
            self.upload = Some((body, Pump::new(framing, true)));
        }
    }

    /// The request's body back, if nothing of the request has left.
    pub fn take_unsent(&mut self) -> Option<RequestBody> {
        let upload = self.upload.take().filter(|(_, pump)| !self.wrote && !pump.has_moved());
        let tunnel = self.tunnel.take_if(|_| !self.wrote).map(|(body, _)| body);
        upload.map(|(body, _)| body).or(tunnel)
    }

    /// The head of the answer.
    pub fn poll_answer(
        &mut self,
        scan: &mut Scan,
        context: &mut Context<'_>,
    ) -> Poll<Result<response::Parts, Error>> {
        if let Poll::Ready(Err(error)) = self.poll_upload(context) {
            return Poll::Ready(Err(error));
        }
        loop {
            match self.next_answer(scan) {
                Ok(None) => {}
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Err(_) => return Poll::Ready(Err(Kind::UpstreamProtocol.into())),
            }
            match ready!(self.input.poll_fill(&mut self.socket, Some(0), context)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(Err(Kind::UpstreamReset.into())),
            }
        }
    }

    /// The next frame of the answer's body.
    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(Err(error)) = self.poll_upload(context) {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match self.decoder.next(&mut self.input, &self.limits) {
                Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Piece::Trailers(fields)) => {
                    return Poll::Ready(Some(Ok(Frame::trailers(fields))));
                }
                Ok(Piece::End) => return Poll::Ready(None),
                Ok(Piece::More) => {}
                Err(_) => return Poll::Ready(Some(Err(Kind::UpstreamProtocol.into()))),
            }
            let left = self.decoder.exact();
            match ready!(self.input.poll_fill(&mut self.socket, left, context)) {
                Ok(1..) => {}
                Ok(0) if self.decoder.end_of_input().is_ok() => return Poll::Ready(None),
                Ok(0) | Err(_) => {
                    return Poll::Ready(Some(Err(Kind::UpstreamReset.into())));
                }
            }
        }
    }

    /// Sends more of the request; ready when all of it is sent, or when nobody wants the rest.
    pub fn poll_upload(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            let moved = match &mut self.upload {
                Some((body, pump)) => pump.poll(body, &mut self.output, context),
                None if self.output.is_empty() => return Poll::Ready(Ok(())),
                None => Moved::All,
            };
            let Self { output, socket, wrote, .. } = self;
            if ready!(output.poll_write(socket, |_| *wrote = true, context)).is_err() {
                // Its answer may be there all the same.
                (self.output, self.reusable) = (Output::default(), false);
                self.upload.take_if(|_| *wrote);
                return Poll::Ready(Ok(()));
            }
            match moved {
                Moved::Full => {}
                Moved::Waiting => return Poll::Pending,
                Moved::All => {
                    self.upload = None;
                    if self.is_tunnel {
                        return Pin::new(&mut self.socket).poll_shutdown(context).map(|_| Ok(()));
                    }
                }
                Moved::Broken(error) => {
                    (self.upload, self.reusable) = (None, false);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// Bytes of the answer's body that are still to come, if their number is known.
    pub fn exact(&self) -> Option<u64> {
        self.decoder.exact()
    }

    /// Whether it has become a tunnel.
    pub fn is_tunnel(&self) -> bool {
        self.is_tunnel
    }

    /// Whether another request may be asked over it.
    pub fn is_reusable(&self) -> bool {
        self.reusable
            && self.decoder.is_done()
            && self.upload.is_none()
            && self.output.is_empty()
            && self.input.is_empty()
    }

    /// Whether the other side is known to have closed it, or to have said something, while nobody asked.
    pub fn is_stale(&mut self) -> bool {
        // Nobody waits for an idle connection: whoever takes it asks again with a waker of its own.
        let mut context = Context::from_waker(Waker::noop());
        self.input.poll_fill(&mut self.socket, Some(0), &mut context).is_ready()
    }

    fn next_answer(&mut self, scan: &mut Scan) -> Result<Option<response::Parts>, Error> {
        while !self.input.is_empty() {
            let Some(found) = scan.find(self.input.bytes(), &self.limits)? else { break };
            let head = self.input.take(found.end);
            let AnswerHead { parts, length, persistent, upgraded } =
                head::answer(&head, self.to_head)?;
            let tunnel = self.tunnel.take();
            match (upgraded, tunnel) {
                (true, Some((_, key))) if !upgrade::accepts(&parts.headers, key.as_bytes()) => {
                    return Err(Kind::UpstreamProtocol.into());
                }
                (true, Some((body, _))) => {
                    (self.is_tunnel, self.reusable) = (true, false);
                    self.decoder = Decoder::UntilClose;
                    self.upload = Some((body, Pump::new(Framing::UntilClose, false)));
                    return Ok(Some(parts));
                }
                (false, tunnel) if parts.status.is_informational() => {
                    self.tunnel = tunnel;
                    self.informational += 1;
                    if self.informational > MAX_INFORMATIONAL
                        || parts.status == http::StatusCode::SWITCHING_PROTOCOLS
                    {
                        return Err(Kind::UpstreamProtocol.into());
                    }
                    *scan = Scan::new(Section::Answer);
                }
                (true, None) => return Err(Kind::UpstreamProtocol.into()),
                (false, _) => {
                    self.decoder = Decoder::new(length);
                    self.reusable &= persistent;
                    return Ok(Some(parts));
                }
            }
        }
        Ok(None)
    }
}
