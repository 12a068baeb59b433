//! The body of an answer. It holds the connection that it comes from, drives it while it is read, and gives it back
//! to the pool at its end and only there.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::base::error::{Blame, Error, Kind};
use crate::http::deadline::{Deadline, Phase};
use crate::upstream::connection::Connection;
use crate::upstream::endpoint::Outcome;
use crate::upstream::h2::Exchange;
use crate::upstream::pool::Home;

/// What an endpoint sends after the head.
#[derive(Debug)]
pub struct AnswerBody {
    /// `None` once it was given back or has broken.
    connection: Option<Carrier>,
    home: Home,
    deadline: Rc<Deadline>,
}

/// What an answer comes over.
#[derive(Debug)]
pub enum Carrier {
    /// A connection that the request has for itself.
    Http1(Box<Connection>),
    /// One stream of a connection.
    Http2(Box<Exchange>),
}

impl Carrier {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self {
            Self::Http1(connection) => connection.poll_frame(context),
            Self::Http2(exchange) => exchange.poll_frame(context),
        }
    }

    fn exact(&self) -> Option<u64> {
        match self {
            Self::Http1(connection) => connection.exact(),
            Self::Http2(exchange) => exchange.exact(),
        }
    }

    /// Whether the answer is at its end. The client's half of a tunnel may go on.
    fn is_done(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.exact() == Some(0) && !connection.is_tunnel(),
            Self::Http2(exchange) => exchange.is_done(),
        }
    }
}

impl AnswerBody {
    /// The body that comes over `connection` after the head.
    pub fn new(connection: Carrier, home: Home, deadline: &Rc<Deadline>) -> Self {
        let mut body = Self { connection: Some(connection), home, deadline: Rc::clone(deadline) };
        body.release_if_done();
        body
    }

    /// Sends more of the request, which may go on beside the answer.
    pub fn poll_upload(&mut self, context: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection {
            match connection {
                Carrier::Http1(connection) => connection.poll_upload(context),
                Carrier::Http2(exchange) => exchange.poll_upload(context),
            }
        }
    }

    /// Gives the connection back if the answer is at its end. One that is of no more use, or still sends the request,
    /// is closed.
    fn release_if_done(&mut self) {
        if let Some(Carrier::Http1(connection)) = self.connection.take_if(|it| it.is_done())
            && connection.is_reusable()
        {
            self.home.give_back(connection);
        }
    }

    fn break_off(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.connection = None;
        if error.kind().blame() == Blame::Upstream {
            self.home.picked.observe(Outcome::Failed(error.kind()));
        }
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
        match connection.poll_frame(context) {
            Poll::Ready(Some(Err(error))) => self.break_off(error),
            Poll::Pending if self.deadline.has_passed() => {
                // A tunnel through which nothing goes is just over, and a client that reads nothing is no fault of
                // the service.
                if self.deadline.phase() == Phase::Tunnel || self.deadline.client_is_blocking() {
                    return Poll::Pending;
                }
                self.deadline.piece();
                self.break_off(Kind::UpstreamTimeout.into())
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(frame) => {
                self.deadline.piece();
                self.release_if_done();
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let exact = self.connection.as_ref().map_or(Some(0), |connection| connection.exact());
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
