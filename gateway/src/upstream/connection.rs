//! One connection to an endpoint, driven by whoever holds it.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode};
use http_body::{Body as _, Frame};

use crate::base::error::Error;
use crate::http::body::RequestBody;
use crate::http::deadline::Deadline;
use crate::http::h1::client::Client;
use crate::http::h1::head::{Limits, Scan, Section};
use crate::http::socket::Socket;
use crate::upstream::dial::Line;

/// A connection that takes one request at a time.
#[derive(Debug)]
pub struct Connection {
    line: Line,
    http: Client,
}

/// Why a connection did not answer.
#[derive(Debug)]
pub enum Failure {
    /// It was closed before it took the request, whose body is handed back; the error if nobody else takes it either.
    Unsent(RequestBody, Error),
    /// Something was sent, or nobody would do better.
    Final(Error),
}

impl Connection {
    /// The connection over a socket, along `line`.
    pub fn new(line: Line, socket: Socket, limits: Limits) -> Box<Self> {
        Box::new(Self { line, http: Client::new(socket, limits) })
    }

    /// Where it leads.
    pub fn line(&self) -> Line {
        self.line
    }

    /// Whether the other side is known to have closed it while it was idle, or to have said something unasked.
    pub fn is_stale(&mut self) -> bool {
        self.http.is_stale()
    }

    /// Sends a request and waits for the head of the answer. After a failure the connection is of no use.
    pub async fn send(
        &mut self,
        head: &Parts,
        body: RequestBody,
        response_timeout: Duration,
        deadline: &Deadline,
    ) -> Result<Response<()>, Failure> {
        deadline.send(!body.is_end_stream(), response_timeout);
        self.http.begin(head, body);
        let mut scan = Scan::new(Section::Answer);
        let answer = poll_fn(|context| match self.http.poll_answer(&mut scan, context) {
            Poll::Ready(answer) => Poll::Ready(answer),
            Poll::Pending if deadline.has_passed() => Poll::Ready(Err(deadline.error())),
            Poll::Pending => Poll::Pending,
        });
        match answer.await {
            Ok(answer) => {
                deadline.answered();
                if answer.status == StatusCode::SWITCHING_PROTOCOLS {
                    deadline.tunnel();
                }
                Ok(Response::from_parts(answer, ()))
            }
            Err(error) => Err(match self.http.take_unsent() {
                Some(body) => Failure::Unsent(body, error),
                None => Failure::Final(error),
            }),
        }
    }

    /// The next frame of the answer's body.
    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.http.poll_frame(context)
    }

    /// Sends more of the request.
    pub fn poll_upload(&mut self, context: &mut Context<'_>) {
        // What goes wrong with it shows in the answer.
        drop(self.http.poll_upload(context));
    }

    /// Bytes that are still to come of the answer's body, if their number is known.
    pub fn exact(&self) -> Option<u64> {
        self.http.exact()
    }

    /// Whether it has become a tunnel.
    pub fn is_tunnel(&self) -> bool {
        self.http.is_tunnel()
    }

    /// Whether request and answer are at their end and another request may follow.
    pub fn is_reusable(&self) -> bool {
        self.http.is_reusable()
    }
}
