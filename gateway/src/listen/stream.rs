//! The socket of a client: what passes through is counted and moves the deadline.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::deadline::Deadline;
use crate::http::socket::Socket;
use crate::observe::Counters;

/// A client's socket.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: Socket,
    /// What was read from it to find out what it speaks.
    pub(super) begun: Bytes,
    pub(super) deadline: Rc<Deadline>,
    pub(super) counters: Arc<Counters>,
}

impl Stream {
    fn wrote(&self, result: io::Result<usize>) -> Poll<io::Result<usize>> {
        if let Ok(bytes) = result {
            self.counters.bytes_sent.add(bytes as u64);
            self.deadline.client_took();
        }
        Poll::Ready(result)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.begun.is_empty() {
            ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        } else {
            let taken = self.begun.len().min(buffer.remaining());
            buffer.put_slice(&self.begun.split_to(taken));
        }
        let bytes = buffer.filled().len() - before;
        // The end of the stream is no sign of life.
        if bytes > 0 {
            self.counters.bytes_received.add(bytes as u64);
            self.deadline.client_sent();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.socket).poll_write(context, bytes));
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.socket).poll_write_vectored(context, slices));
        self.wrote(result)
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
