//! What was read from a socket and not used yet. A connection that waits holds no buffer: small reads go by way of one
//! that the whole thread shares, large ones into memory that is handed on.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

/// One read by way of the shared buffer, which is copied.
const SHARED_BYTES: usize = 16 * 1024;

/// One read into memory of its own.
const PIECE_BYTES: usize = 64 * 1024;

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SHARED_BYTES].into());
}

/// The unused input of one connection.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Bytes,
    /// Whether the last read brought all that it had room for, so that more is likely to be there.
    is_flood: bool,
}

impl Input {
    /// Begins with `bytes`.
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { bytes, is_flood: false }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// This part of them, which stays there, too: of what is refused the first line is read once more.
    pub(super) fn slice(&self, range: &Range<usize>) -> Bytes {
        self.bytes.slice(range.clone())
    }

    /// Takes the first `length` bytes, or as many as there are.
    pub(super) fn take(&mut self, length: usize) -> Bytes {
        self.bytes.split_to(length.min(self.bytes.len()))
    }

    /// Drops the first `length` bytes, or as many as there are.
    pub(super) fn skip(&mut self, length: usize) {
        if length < self.bytes.len() {
            self.bytes.advance(length);
        } else {
            // Of what is only advanced past, the memory stays.
            self.bytes = Bytes::new();
        }
    }

    /// Reads more, of which `left` bytes belong to the present message if that is known; how many came, 0 at the end.
    pub(super) fn poll_fill(
        &mut self,
        socket: &mut (impl AsyncRead + Unpin),
        left: Option<u64>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let is_large = left.map_or(self.is_flood, |left| left >= SHARED_BYTES as u64);
        if is_large && self.bytes.is_empty() {
            return self.poll_piece(socket, left, context);
        }
        SHARED.with_borrow_mut(|shared| {
            let mut buffer = ReadBuf::new(shared);
            ready!(Pin::new(socket).poll_read(context, &mut buffer))?;
            let read = buffer.filled();
            self.is_flood = read.len() == SHARED_BYTES;
            self.append(read);
            Poll::Ready(Ok(read.len()))
        })
    }

    fn poll_piece(
        &mut self,
        socket: &mut (impl AsyncRead + Unpin),
        left: Option<u64>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let left = left.and_then(|left| usize::try_from(left).ok());
        let room = left.map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        let mut piece = BytesMut::with_capacity(room);
        let length = ready!(pin!(socket.read_buf(&mut piece)).poll(context))?;
        self.is_flood = length >= room;
        self.bytes = piece.freeze();
        Poll::Ready(Ok(length))
    }

    pub(super) fn append(&mut self, read: &[u8]) {
        if self.bytes.is_empty() {
            self.bytes = Bytes::copy_from_slice(read);
            return;
        }
        let bytes = std::mem::take(&mut self.bytes);
        let mut bytes = bytes.try_into_mut().unwrap_or_else(|bytes| BytesMut::from(&*bytes));
        bytes.extend_from_slice(read);
        self.bytes = bytes.freeze();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_gives_its_memory_back() {
        let read = Bytes::from(vec![b'a'; 1000]);
        for length in [1000, 1001] {
            let mut input = Input::new(read.clone());
            input.skip(999);
            assert_eq!((input.bytes(), read.is_unique()), (&b"a"[..], false));
            input.skip(length);
            assert_eq!((input.is_empty(), read.is_unique()), (true, true));
        }
    }
}
