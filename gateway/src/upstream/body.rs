//! The body of an answer. It holds the connection that it comes from, drives it while it is read, and gives it back
//! to the pool at its end and only there.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::base::error::{Error, Kind};
use crate::http::deadline::Deadline;
use crate::upstream::connection::Connection;
use crate::upstream::endpoint::Outcome;
use crate::upstream::pool::Home;

/// What an endpoint sends after the head.
#[derive(Debug)]
pub struct AnswerBody {
    incoming: Incoming,
    /// `None` once it was given back or has closed.
    connection: Option<Box<Connection>>,
    home: Home,
    deadline: Rc<Deadline>,
    broken: Option<Kind>,
}

impl AnswerBody {
    /// The body that `incoming` is the end of.
    pub fn new(
        incoming: Incoming,
        connection: Box<Connection>,
        home: Home,
        deadline: &Rc<Deadline>,
    ) -> Self {
        let deadline = Rc::clone(deadline);
        let mut body =
            Self { incoming, connection: Some(connection), home, deadline, broken: None };
        if body.incoming.is_end_stream() {
            body.release(None);
        }
        body
    }

    /// Gives the connection back if it has nothing left to do. One that still sends the request is dropped.
    fn release(&mut self, context: Option<&mut Context<'_>>) {
        let Some(mut connection) = self.connection.take() else { return };
        if !connection.is_ready()
            && let Some(context) = context
            && connection.drive(context).is_ready()
        {
            return;
        }
        if connection.is_ready() {
            self.home.give_back(connection);
        }
    }

    /// Reports `kind` when it is asked again. An error at once would make hyper forget what it has not written yet, and
    /// the client would get less than the endpoint had sent.
    fn break_off(&mut self, kind: Kind, context: &Context<'_>) {
        self.connection = None;
        self.broken = Some(kind);
        self.home.picked.observe(Outcome::Failed(kind));
        context.waker().wake_by_ref();
    }

    /// The next piece, after the connection has moved if it must.
    fn poll_incoming(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // Pieces come by driving and in no other way, so they need not wake anybody.
        let asleep = &mut Context::from_waker(Waker::noop());
        let frame = Pin::new(&mut self.incoming).poll_frame(asleep);
        if frame.is_ready() {
            return frame;
        }
        if let Some(connection) = &mut self.connection
            && connection.drive(context).is_ready()
        {
            self.connection = None;
        }
        Pin::new(&mut self.incoming).poll_frame(asleep)
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(kind) = self.broken {
            return Poll::Ready(Some(Err(kind.into())));
        }
        match self.poll_incoming(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.deadline.piece();
                // A body of known length is not polled again after its last piece.
                if self.incoming.is_end_stream() {
                    self.release(Some(context));
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(Some(Err(_))) => self.break_off(Kind::UpstreamReset, context),
            Poll::Ready(None) => {
                self.release(Some(context));
                return Poll::Ready(None);
            }
            Poll::Pending if self.deadline.has_passed() => {
                self.deadline.piece();
                self.break_off(Kind::UpstreamTimeout, context);
            }
            Poll::Pending => {}
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
