//! The socket of a client that speaks HTTP/2: what passes through is counted, and says how long the connection may
//! stay as it is.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::base::random::random;
use crate::config::Bounds;
use crate::http::lifetime::Lifetime;
use crate::http::socket::Socket;
use crate::listen::h2::frames::Frames;
use crate::listen::h2::refusals::{Refusals, Shown};
use crate::observe::{Counters, StreamRefusal};

/// What a connection waits for, besides what its streams wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// The rest of a head.
    Head,
    /// Room to write to the client.
    Reader,
    /// A stream.
    Idle,
    /// The end of its time.
    Age,
}

/// The state of a connection that its socket, its task and its streams share.
#[derive(Debug)]
pub(super) struct Life {
    frames: RefCell<Frames>,
    is_flooded: Cell<bool>,
    /// Streams that were refused for what the client made of them, and that nobody has been told of.
    malformed: Cell<u32>,
    /// Heads among them that were not read to their end.
    heads_too_large: Cell<u32>,
    shown: RefCell<Shown>,
    has_spoken: Cell<bool>,
    streams: Cell<usize>,
    /// Since when the client has been silent in the middle of a head; the first head is begun by connecting.
    head_since: Cell<Option<Instant>>,
    /// Since when the client has taken nothing of what is ready for it.
    blocked_since: Cell<Option<Instant>>,
    /// Since when no stream has been open.
    idle_since: Cell<Instant>,
    head_timeout: Duration,
    idle_timeout: Duration,
    keep_alive_timeout: Cell<Duration>,
    lifetime: Lifetime,
    is_over: Cell<bool>,
    is_leaving: Cell<bool>,
}

impl Life {
    pub(super) fn new(bounds: &Bounds) -> Self {
        let now = Instant::now();
        Self {
            frames: RefCell::new(Frames::default()),
            is_flooded: Cell::new(false),
            malformed: Cell::new(0),
            heads_too_large: Cell::new(0),
            shown: RefCell::default(),
            has_spoken: Cell::new(false),
            streams: Cell::new(0),
            head_since: Cell::new(Some(now)),
            blocked_since: Cell::new(None),
            idle_since: Cell::new(now),
            head_timeout: bounds.head_timeout,
            idle_timeout: bounds.idle_timeout,
            keep_alive_timeout: Cell::new(bounds.keep_alive_timeout),
            lifetime: Lifetime::new(bounds, random()),
            is_over: Cell::new(false),
            is_leaving: Cell::new(false),
        }
    }

    /// Whether the client has done too much that asks for nothing.
    pub(super) fn is_flooded(&self) -> bool {
        self.is_flooded.get()
    }

    /// Whether the client has sent anything.
    pub(super) fn has_spoken(&self) -> bool {
        self.has_spoken.get()
    }

    /// Streams that were refused, since the last time, for what the client made of them.
    pub(super) fn take_malformed(&self) -> u32 {
        self.malformed.take()
    }

    /// Heads that were not read to their end, since the last time.
    pub(super) fn take_heads_too_large(&self) -> u32 {
        self.heads_too_large.take()
    }

    /// A stream was refused. That there are too many, or that one is closed already, a client may not know yet.
    fn refused(&self, reason: StreamRefusal) {
        use StreamRefusal::{FlowControl, HeadTooLarge, Protocol};
        let count = match reason {
            Protocol | FlowControl => &self.malformed,
            HeadTooLarge => &self.heads_too_large,
            _ => return,
        };
        count.set(count.get().saturating_add(1));
    }

    /// A request was read, of this stream.
    pub(super) fn request(&self, stream: u32) {
        self.shown.borrow_mut().show(stream);
        self.lifetime.request();
        if self.lifetime.is_used_up() {
            self.is_over.set(true);
        }
    }

    /// The connection has had its time.
    pub(super) fn grow_old(&self) {
        self.is_over.set(true);
    }

    /// Whether the connection has had its time, or its requests, and has not been told.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.get() && !self.is_leaving.get()
    }

    /// Whether it was told to end.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving.get()
    }

    /// It was told to end: without a stream it has `grace` left.
    pub(super) fn leave(&self, grace: Duration) {
        self.is_leaving.set(true);
        self.keep_alive_timeout.set(grace);
        self.idle_since.set(Instant::now());
    }

    /// A stream was opened.
    pub(super) fn opened(&self) {
        self.frames.borrow().opened();
        self.streams.set(self.streams.get() + 1);
    }

    /// A stream is over.
    pub(super) fn closed(&self) {
        self.streams.set(self.streams.get().saturating_sub(1));
        if self.streams.get() == 0 {
            self.idle_since.set(Instant::now());
        }
    }

    /// A piece of a body is on its way to the client.
    pub(super) fn sent(&self, bytes: usize) {
        self.frames.borrow().sent(bytes);
    }

    /// What is waited for next, and until when.
    pub(super) fn due(&self) -> Option<(Instant, Late)> {
        let head = self.head_since.get().map(|since| (since + self.head_timeout, Late::Head));
        let reader =
            self.blocked_since.get().map(|since| (since + self.idle_timeout, Late::Reader));
        let idle = (self.idle_since.get() + self.keep_alive_timeout.get(), Late::Idle);
        let idle = (self.streams.get() == 0).then_some(idle);
        let age = (!self.is_over.get() && !self.is_leaving.get())
            .then(|| (self.lifetime.until(), Late::Age));
        [head, reader, idle, age].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// When to look again at the latest.
    pub(super) fn look_at(&self, now: Instant) -> Instant {
        self.due().map_or(now + self.keep_alive_timeout.get(), |(at, _)| at)
    }

    fn received(&self, bytes: &[u8]) {
        self.has_spoken.set(true);
        let mut frames = self.frames.borrow_mut();
        if frames.received(bytes).is_err() {
            self.is_flooded.set(true);
        }
        let due = frames.head_is_due();
        if due && self.head_since.get().is_none() {
            self.head_since.set(Some(Instant::now()));
        } else if !due {
            self.head_since.set(None);
        }
    }
}

/// The socket.
#[derive(Debug)]
pub(super) struct Wire {
    socket: Socket,
    /// What was read from it to find out what it speaks.
    begun: Bytes,
    refusals: Refusals,
    life: Rc<Life>,
    counters: Arc<Counters>,
}

impl Wire {
    pub(super) fn new(
        socket: Socket,
        begun: Bytes,
        life: Rc<Life>,
        counters: Arc<Counters>,
    ) -> Self {
        Self { socket, begun, refusals: Refusals::default(), life, counters }
    }

    fn wrote(
        &mut self,
        result: Poll<io::Result<usize>>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(Ok(bytes)) => {
                self.counters.bytes_sent.add(*bytes as u64);
                self.life.blocked_since.set(None);
                let mut left = *bytes;
                for slice in slices {
                    let (written, _) = slice.split_at_checked(left).unwrap_or((slice, &[]));
                    left -= written.len();
                    self.refusals.wrote(written, &self.life.shown.borrow(), |reason| {
                        self.counters.stream_refused(reason);
                        self.life.refused(reason);
                    });
                }
            }
            Poll::Pending if self.life.blocked_since.get().is_none() => {
                self.life.blocked_since.set(Some(Instant::now()));
            }
            _ => {}
        }
        result
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.life.is_flooded() {
            // Nothing more is read; the task of the connection finds out why.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        if self.begun.is_empty() {
            ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        } else {
            let taken = self.begun.len().min(buffer.remaining());
            buffer.put_slice(&self.begun.split_to(taken));
        }
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        if !bytes.is_empty() {
            self.counters.bytes_received.add(bytes.len() as u64);
            self.life.received(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.wrote(result, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.wrote(result, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
