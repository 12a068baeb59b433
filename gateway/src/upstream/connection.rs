//! One connection to an endpoint, driven by whoever holds it.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::base::error::{Error, Kind};
use crate::config::Bounds;
use crate::http::body::RequestBody;
use crate::http::deadline::Deadline;
use crate::http::socket::Socket;
use crate::upstream::dial::{Dial, Line};

/// A connection that takes one request at a time.
pub struct Connection {
    line: Line,
    sender: http1::SendRequest<RequestBody>,
    /// `None` once it has closed: what it still held is then given back to whoever sent it.
    driver: Option<http1::Connection<TokioIo<Socket>, RequestBody>>,
}

/// Why a connection did not answer.
#[derive(Debug)]
pub enum Failure {
    /// It was closed before it took the request, which is handed back; the error if nobody else takes it either.
    Unsent(Box<Request<RequestBody>>, Error),
    /// Something was sent, or nobody would do better.
    Final(Error),
}

/// How much an endpoint may answer.
#[derive(Clone, Debug)]
pub struct Limits(http1::Builder);

impl Limits {
    /// The bounds of heads.
    pub fn new(bounds: &Bounds) -> Self {
        let mut builder = http1::Builder::new();
        builder.max_header_size(bounds.head_bytes).max_buf_size(buffer_bytes(bounds));
        if bounds.header_count != HYPER_HEADER_COUNT {
            builder.max_headers(bounds.header_count);
        }
        Self(builder)
    }
}

/// Bytes that hyper may hold for one connection in one direction. Its own default is 408 KiB.
pub fn buffer_bytes(bounds: &Bounds) -> usize {
    bounds.head_bytes.max(64 * 1024)
}

/// The number of header fields for which hyper needs no memory of the heap, nor to be told.
pub const HYPER_HEADER_COUNT: usize = 100;

impl Connection {
    /// Connects to an endpoint before the deadline.
    pub async fn open(
        dial: Dial<'_>,
        limits: &Limits,
        deadline: &Deadline,
    ) -> Result<Box<Self>, Error> {
        let socket = dial.socket(deadline).await?;
        let handshake = limits.0.handshake(TokioIo::new(socket)).await;
        let (sender, driver) = handshake.map_err(|_| Error::from(Kind::UpstreamConnect))?;
        Ok(Box::new(Self { line: dial.line(), sender, driver: Some(driver) }))
    }

    /// Where it leads.
    pub fn line(&self) -> Line {
        self.line
    }

    /// Moves everything that can move; ready when the connection is closed.
    pub fn drive(&mut self, context: &mut Context<'_>) -> Poll<()> {
        drive(&mut self.driver, context)
    }

    /// Whether it can take a request at once.
    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Whether the other side is known to have closed it while it was idle.
    pub fn is_stale(&mut self) -> bool {
        // Nobody waits for an idle connection: whoever takes it drives it again with a waker of its own.
        self.drive(&mut Context::from_waker(Waker::noop())).is_ready() || !self.is_ready()
    }

    /// Sends `request` and waits for the head of the answer. After a failure the connection is of no use.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
        response_timeout: Duration,
        deadline: &Deadline,
    ) -> Result<Response<Incoming>, Failure> {
        let has_body = !http_body::Body::is_end_stream(request.body());
        deadline.send(has_body, response_timeout);
        let mut answer = pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        let result = poll_fn(|context| {
            let closed = drive(driver, context).is_ready();
            // The answer comes by driving and in no other way, so it need not wake anybody.
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => Poll::Ready(Some(result)),
                Poll::Pending if closed || deadline.has_passed() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        match result {
            Some(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Err(Failure::Final(Kind::UpstreamProtocol.into()))
            }
            Some(Ok(response)) => {
                deadline.answered();
                Ok(response)
            }
            Some(Err(mut failed)) => {
                if let Some(fault) = deadline.take_fault() {
                    return Err(Failure::Final(fault));
                }
                let unsent = failed.take_message();
                let error = exchange_error(&failed.into_error());
                Err(match unsent {
                    Some(request) => Failure::Unsent(Box::new(request), error),
                    None => Failure::Final(error),
                })
            }
            None if deadline.has_passed() => Err(Failure::Final(deadline.error())),
            None => Err(Failure::Final(Kind::UpstreamReset.into())),
        }
    }
}

fn drive(
    driver: &mut Option<http1::Connection<TokioIo<Socket>, RequestBody>>,
    context: &mut Context<'_>,
) -> Poll<()> {
    if let Some(open) = driver
        && Pin::new(open).poll(context).is_pending()
    {
        return Poll::Pending;
    }
    *driver = None;
    Poll::Ready(())
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("line", &self.line).finish()
    }
}

fn exchange_error(error: &hyper::Error) -> Error {
    if error.is_parse() || error.is_parse_too_large() {
        Kind::UpstreamProtocol.into()
    } else {
        Kind::UpstreamReset.into()
    }
}
