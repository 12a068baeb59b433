//! Accounts for each request exactly once, whatever its way out: the account is closed when the last thing that holds
//! it is dropped, be it the body of an answer at its end or a request whose client has left.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};

use crate::base::error::Error;
use crate::http::deadline::Deadline;
use crate::request::Connection;
use crate::upstream::attempts::Attempts;
use crate::upstream::body::AnswerBody;

/// An open account.
#[derive(Debug)]
pub(super) struct Account {
    connection: Rc<Connection>,
    deadline: Rc<Deadline>,
    /// What became of it on its way to a service.
    pub(super) attempts: Attempts,
    status: Option<StatusCode>,
    whole: bool,
}

impl Account {
    pub(super) fn open(connection: Rc<Connection>, deadline: Rc<Deadline>) -> Self {
        connection.worker.counters.requests_active.add(1);
        let attempts = Attempts::default();
        Self { connection, deadline, attempts, status: None, whole: false }
    }

    /// Hands the account to the body of the answer.
    pub(super) fn answer(mut self, answer: Response<Answer>) -> Response<ResponseBody> {
        self.status = Some(answer.status());
        answer.map(|answer| {
            self.whole = answer.is_end_stream();
            ResponseBody { answer, account: self }
        })
    }

    /// The request ended in an error that the gateway answers itself.
    pub(super) fn failed(&self, error: &Error) {
        self.connection.worker.counters.failed(error.kind());
        self.deadline.refused();
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let counters = &self.connection.worker.counters;
        counters.requests_active.subtract_one();
        match self.status {
            Some(status) => counters.answered(status.as_u16()),
            None => counters.requests_abandoned.add(1),
        }
        if self.status.is_some() && !self.whole {
            counters.answers_broken.add(1);
        }
        self.deadline.ended();
    }
}

/// Where an answer comes from.
#[derive(Debug)]
pub(super) enum Answer {
    Upstream(AnswerBody),
    Gateway(Bytes),
}

/// The body of an answer, with the account of its request.
#[derive(Debug)]
pub struct ResponseBody {
    answer: Answer,
    account: Account,
}

impl Answer {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream(body) => body.is_end_stream(),
            Self::Gateway(bytes) => bytes.is_empty(),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = match &mut self.answer {
            Answer::Upstream(body) => Pin::new(body).poll_frame(context),
            Answer::Gateway(bytes) if bytes.is_empty() => Poll::Ready(None),
            Answer::Gateway(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
        };
        match &polled {
            Poll::Ready(None) => self.account.whole = true,
            Poll::Ready(Some(Ok(_))) => self.account.whole = self.answer.is_end_stream(),
            Poll::Ready(Some(Err(error))) => self.account.failed(error),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.answer {
            Answer::Upstream(body) => body.size_hint(),
            Answer::Gateway(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}
