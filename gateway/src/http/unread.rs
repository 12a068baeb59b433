//! The body of a request before it goes anywhere. Whoever must see all of it first reads it in full, within a bound;
//! it goes on from its beginning all the same.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;

use crate::base::error::{Error, Kind};
use crate::http::body::{Incoming, RequestBody};
use crate::http::deadline::Deadline;
use crate::http::replay::Source;

/// A body of which nothing has gone on yet.
#[derive(Debug)]
pub struct Unread {
    source: RefCell<Source>,
    deadline: Rc<Deadline>,
}

impl Unread {
    /// What a client sends within `deadline`.
    pub fn new(incoming: Incoming, deadline: &Rc<Deadline>) -> Self {
        Self { source: RefCell::new(Source::Once(incoming)), deadline: Rc::clone(deadline) }
    }

    /// One that is there already, of a request that nobody has sent.
    pub fn of(bytes: Bytes, deadline: &Rc<Deadline>) -> Self {
        let source = Source::Whole(Box::new(bytes));
        Self { source: RefCell::new(source), deadline: Rc::clone(deadline) }
    }

    /// All of it; an error if it has more than `max_bytes`, breaks off or takes too long, and then it is gone.
    /// Trailers do not go on: nobody has looked at them.
    pub async fn whole(&self, max_bytes: u64) -> Result<Bytes, Error> {
        let incoming = match self.source.replace(Source::Empty) {
            Source::Once(incoming) => incoming,
            source => {
                let bytes = match &source {
                    Source::Whole(bytes) => Bytes::clone(bytes),
                    _ => Bytes::new(),
                };
                self.source.replace(source);
                let fits = bytes.len() as u64 <= max_bytes;
                return if fits { Ok(bytes) } else { Err(Kind::BodyTooLarge.into()) };
            }
        };
        if incoming.is_end_stream() {
            return Ok(Bytes::new());
        }
        let bytes = self.read(RequestBody::new(incoming, max_bytes, &self.deadline)?).await?;
        if !bytes.is_empty() {
            self.source.replace(Source::Whole(Box::new(bytes.clone())));
        }
        Ok(bytes)
    }

    /// What goes on, at most `max_bytes` of it.
    pub fn into_body(self, max_bytes: u64) -> Result<RequestBody, Error> {
        RequestBody::from_source(self.source.into_inner(), max_bytes, &self.deadline)
    }

    async fn read(&self, mut body: RequestBody) -> Result<Bytes, Error> {
        self.deadline.collect();
        // Pieces may be small, and each may hold on to a larger buffer: all are copied into one.
        let mut bytes = BytesMut::new();
        while !body.is_end_stream() {
            let frame = poll_fn(|context| match Pin::new(&mut body).poll_frame(context) {
                Poll::Pending if self.deadline.has_passed() => {
                    Poll::Ready(Some(Err(self.deadline.error())))
                }
                frame => frame,
            });
            let Some(frame) = frame.await else { break };
            if let Some(data) = frame?.data_ref() {
                bytes.extend_from_slice(data);
            }
        }
        Ok(bytes.freeze())
    }
}
