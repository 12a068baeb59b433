//! The body of a request on its way to the upstream: bounded in size, and in the time between its pieces.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::base::error::{Error, Kind};
use crate::http::deadline::Deadline;

/// What a client sends after the head, as its protocol delivers it.
#[derive(Debug)]
pub enum Incoming {
    /// By way of hyper.
    Hyper(hyper::body::Incoming),
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Hyper(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) => body.size_hint(),
        }
    }
}

/// What the client sends after the head.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Incoming,
    allowed_bytes: u64,
    deadline: Rc<Deadline>,
}

impl RequestBody {
    /// Bounds a body. One that declares more than `max_bytes` is refused before a byte of it is read.
    pub fn new(incoming: Incoming, max_bytes: u64, deadline: &Rc<Deadline>) -> Result<Self, Error> {
        if incoming.size_hint().lower() > max_bytes {
            return Err(Kind::BodyTooLarge.into());
        }
        Ok(Self { incoming, allowed_bytes: max_bytes, deadline: Rc::clone(deadline) })
    }

    fn fail(&self, kind: Kind) -> Error {
        self.deadline.fail(kind);
        kind.into()
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
        let frame = match ready!(Pin::new(&mut self.incoming).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return Poll::Ready(Some(Err(self.fail(Kind::RequestBroken)))),
            None => {
                self.deadline.uploaded();
                return Poll::Ready(None);
            }
        };
        if let Some(data) = frame.data_ref() {
            match self.allowed_bytes.checked_sub(data.len() as u64) {
                Some(left) => self.allowed_bytes = left,
                None => return Poll::Ready(Some(Err(self.fail(Kind::BodyTooLarge)))),
            }
        }
        self.deadline.piece();
        // A body of known length is not polled again after its last piece.
        if self.incoming.is_end_stream() {
            self.deadline.uploaded();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
