//! The body of a request on its way to the upstream: bounded in size, and in the time between its pieces.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use crate::base::error::{Error, Kind};
use crate::http::deadline::Deadline;
use crate::http::h1::request_stream::RequestStream;
use crate::http::headers::{Names, remove_forbidden_trailers};
use crate::http::replay::{Record, Source};

/// What a client sends after the head, as its protocol delivers it.
#[derive(Debug)]
pub enum Incoming {
    /// Over HTTP/1.
    Http1(RequestStream),
    /// A stream of HTTP/2.
    Http2(StreamBody),
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(context),
            Self::Http2(body) => body.poll_frame(context).map_err(|_| Kind::RequestBroken.into()),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}

/// The body that one stream of HTTP/2 brings, be it of a request or of an answer. What is taken from it makes room in
/// its window.
#[derive(Debug)]
pub struct StreamBody {
    stream: Rc<RefCell<h2::RecvStream>>,
    /// What is still to come, if it was declared.
    left_bytes: Option<u64>,
}

impl StreamBody {
    /// The body behind a head with these fields. h2 holds it to the length that they declare.
    pub fn new(stream: Rc<RefCell<h2::RecvStream>>, headers: &HeaderMap) -> Self {
        let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        Self { stream, left_bytes: declared.and_then(|length| length.parse().ok()) }
    }

    /// The next piece, or the trailers.
    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let mut stream = self.stream.borrow_mut();
        match ready!(stream.poll_data(context)) {
            Some(Ok(data)) => {
                let bytes = data.len();
                self.left_bytes = self.left_bytes.map(|left| left.saturating_sub(bytes as u64));
                let released = stream.flow_control().release_capacity(bytes);
                Poll::Ready(Some(released.map(|()| Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers = ready!(stream.poll_trailers(context)).transpose();
                let allowed = |mut trailers| {
                    remove_forbidden_trailers(&mut trailers);
                    Frame::trailers(trailers)
                };
                Poll::Ready(trailers.map(|trailers| trailers.map(allowed)))
            }
        }
    }

    /// Whether nothing is to come.
    pub fn is_end_stream(&self) -> bool {
        self.stream.borrow().is_end_stream()
    }

    /// How much is to come.
    pub fn size_hint(&self) -> SizeHint {
        match self.left_bytes {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::new(),
        }
    }
}

/// What the client sends after the head.
#[derive(Debug)]
pub struct RequestBody {
    source: Source,
    allowed_bytes: u64,
    deadline: Rc<Deadline>,
    /// What no field after it may be called.
    forged: Option<Rc<Names>>,
}

impl RequestBody {
    /// Bounds a body. One that declares more than `max_bytes` is refused before a byte of it is read.
    pub fn new(incoming: Incoming, max_bytes: u64, deadline: &Rc<Deadline>) -> Result<Self, Error> {
        Self::from_source(Source::Once(incoming), max_bytes, deadline)
    }

    pub(super) fn from_source(
        source: Source,
        max_bytes: u64,
        deadline: &Rc<Deadline>,
    ) -> Result<Self, Error> {
        if source.size_hint().lower() > max_bytes {
            return Err(Kind::BodyTooLarge.into());
        }
        let deadline = Rc::clone(deadline);
        Ok(Self { source, allowed_bytes: max_bytes, deadline, forged: None })
    }

    /// The body of a request that has none.
    pub fn empty(deadline: &Rc<Deadline>) -> Self {
        let deadline = Rc::clone(deadline);
        Self { source: Source::Empty, allowed_bytes: 0, deadline, forged: None }
    }

    /// Removes the fields after it that have one of these names.
    pub fn without(self, names: &Rc<Names>) -> Self {
        Self { forged: Some(Rc::clone(names)), ..self }
    }

    /// Keeps what goes through up to `max_bytes`, so that the request can be sent once more.
    pub fn keep(self, max_bytes: usize) -> (Self, Replay) {
        let Self { source, allowed_bytes, deadline, forged } = self;
        let again = forged.clone();
        if let Source::Kept(record, 0) = &source {
            let replay = Replay { record: Rc::clone(record), allowed_bytes, forged: again };
            return (Self { source, allowed_bytes, deadline, forged }, replay);
        }
        let record = Rc::new(Record::new(source, max_bytes));
        let body = Self { source: record.replay(), allowed_bytes, deadline, forged };
        (body, Replay { record, allowed_bytes, forged: again })
    }

    /// The body of a request whose connection becomes a tunnel, which may carry as much as it likes.
    pub fn unbounded(self) -> Self {
        Self { allowed_bytes: u64::MAX, ..self }
    }

    fn fail(&self, kind: Kind) -> Error {
        self.deadline.fail(kind);
        kind.into()
    }
}

/// What it takes to send a body once more.
#[derive(Debug)]
pub struct Replay {
    record: Rc<Record>,
    allowed_bytes: u64,
    forged: Option<Rc<Names>>,
}

impl Replay {
    /// The body from its beginning, unless more of it went through than was kept.
    pub fn again(&self, deadline: &Rc<Deadline>) -> Option<RequestBody> {
        self.record.is_whole().then(|| RequestBody {
            source: self.record.replay(),
            allowed_bytes: self.allowed_bytes,
            deadline: Rc::clone(deadline),
            forged: self.forged.clone(),
        })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.deadline.ask_client();
        let mut frame = match ready!(Pin::new(&mut self.source).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.deadline.fail(error.kind());
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                self.deadline.uploaded();
                return Poll::Ready(None);
            }
        };
        if let Some((names, trailers)) = self.forged.as_ref().zip(frame.trailers_mut()) {
            names.remove_from(trailers);
        }
        if let Some(data) = frame.data_ref() {
            self.deadline.trail.received(data.len() as u64);
            match self.allowed_bytes.checked_sub(data.len() as u64) {
                Some(left) => self.allowed_bytes = left,
                None => return Poll::Ready(Some(Err(self.fail(Kind::BodyTooLarge)))),
            }
        }
        self.deadline.client_piece(frame.data_ref().map_or(0, Bytes::len));
        // A body of known length is not polled again after its last piece.
        if self.source.is_end_stream() {
            self.deadline.uploaded();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.source.size_hint()
    }
}
