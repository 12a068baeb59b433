//! What is to be written to a socket: small parts are copied together and go out with one call, a large one is written
//! from where it lies. It holds one large part at most, so that whoever produces them has to wait for the socket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderName};
use tokio::io::AsyncWrite;

/// Up to here copying costs less than a vectored write.
const SMALL_BYTES: usize = 4096;

/// With so much copied together it is time to write.
const ENOUGH_BYTES: usize = 16 * 1024;

const LINE_END: &[u8] = b"\r\n";

/// Whether a body's pieces are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// Something else tells where it ends.
    Identity,
    Chunked,
}

/// Bytes that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Output {
    small: Vec<u8>,
    /// How much of `small` was written.
    written: usize,
    /// What comes after it,
    large: Bytes,
    /// and what after that.
    end: &'static [u8],
    /// Whether the socket may hold back something: one that encrypts does.
    unflushed: bool,
}

impl Output {
    /// Where a head is written to. Only before anything large.
    pub(super) fn head(&mut self) -> &mut Vec<u8> {
        &mut self.small
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left() == 0
    }

    /// Whether it must be written before more is added.
    pub(super) fn is_full(&self) -> bool {
        !self.large.is_empty() || !self.end.is_empty() || self.small.len() >= ENOUGH_BYTES
    }

    /// Adds a piece of a body. Only while it is not full.
    pub(super) fn data(&mut self, data: Bytes, coding: Coding) {
        if data.is_empty() {
            // An empty chunk would be the last one.
            return;
        }
        if coding == Coding::Chunked {
            push_hexadecimal(&mut self.small, data.len());
            self.small.extend_from_slice(LINE_END);
        }
        let end: &[u8] = if coding == Coding::Chunked { LINE_END } else { b"" };
        if data.len() > SMALL_BYTES {
            (self.large, self.end) = (data, end);
        } else {
            self.small.extend_from_slice(&data);
            self.small.extend_from_slice(end);
        }
    }

    /// Ends a chunked body, with `trailers` if there are any. Only while it is not full.
    pub(super) fn last_chunk(&mut self, trailers: Option<&HeaderMap>) {
        self.small.extend_from_slice(b"0\r\n");
        for (name, value) in trailers.into_iter().flatten() {
            field(&mut self.small, name, value.as_bytes());
        }
        self.small.extend_from_slice(LINE_END);
    }

    /// Writes everything; `wrote` is told of each part that the socket took.
    pub(super) fn poll_write(
        &mut self,
        socket: &mut (impl AsyncWrite + Unpin),
        mut wrote: impl FnMut(usize),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let small = self.small.get(self.written..).unwrap_or_default();
            let socket = Pin::new(&mut *socket);
            let length = if self.large.is_empty() && self.end.is_empty() {
                ready!(socket.poll_write(context, small))?
            } else {
                let parts = [small, &self.large, self.end].map(IoSlice::new);
                let begin = usize::from(small.is_empty());
                let parts = parts.get(begin..).unwrap_or_default();
                ready!(socket.poll_write_vectored(context, parts))?
            };
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(length);
            self.unflushed = true;
            wrote(length);
        }
        if self.unflushed {
            ready!(Pin::new(socket).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn left(&self) -> usize {
        self.small.len() - self.written + self.large.len() + self.end.len()
    }

    fn advance(&mut self, length: usize) {
        let small = length.min(self.small.len() - self.written);
        self.written += small;
        if self.written == self.small.len() {
            self.small.clear();
            self.written = 0;
        }
        let large = (length - small).min(self.large.len());
        self.large.advance(large);
        self.end = self.end.get(length - small - large..).unwrap_or_default();
    }
}

/// Writes one header field.
pub(super) fn field(to: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    to.extend_from_slice(name.as_str().as_bytes());
    to.extend_from_slice(b": ");
    to.extend_from_slice(value);
    to.extend_from_slice(LINE_END);
}

fn push_hexadecimal(to: &mut Vec<u8>, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (number >> (4 * place) & 0xf) as u32;
        to.push(char::from_digit(digit, 16).unwrap_or('0') as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three bytes a call.
    #[derive(Default)]
    struct Slow(Vec<u8>);

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let length = bytes.len().min(3);
            self.0.extend_from_slice(&bytes[..length]);
            Poll::Ready(Ok(length))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn write(output: &mut Output, socket: &mut Slow) {
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(output.poll_write(socket, |_| {}, &mut context).is_ready());
        assert!(output.is_empty() && !output.is_full());
    }

    #[test]
    fn parts_come_out_in_their_order() {
        let (mut output, mut socket) = (Output::default(), Slow::default());
        output.head().extend_from_slice(b"head");
        output.data(Bytes::from_static(b"0123456789abcdef"), Coding::Chunked);
        output.data(Bytes::new(), Coding::Chunked);
        let large = Bytes::from(vec![b'x'; SMALL_BYTES + 1]);
        output.data(large.clone(), Coding::Chunked);
        assert!(output.is_full());
        write(&mut output, &mut socket);
        let mut trailers = HeaderMap::new();
        trailers.insert("a", http::HeaderValue::from_static("b"));
        output.last_chunk(Some(&trailers));
        write(&mut output, &mut socket);
        let expected = [
            b"head10\r\n0123456789abcdef\r\n1001\r\n".as_slice(),
            &large,
            b"\r\n0\r\na: b\r\n\r\n",
        ];
        assert_eq!(socket.0, expected.concat());
    }

    #[test]
    fn lengths_are_hexadecimal() {
        for (number, text) in [(0, "0"), (1, "1"), (15, "f"), (16, "10"), (0xabcdef, "abcdef")] {
            let mut to = Vec::new();
            push_hexadecimal(&mut to, number);
            assert_eq!(to, text.as_bytes());
        }
    }
}
