//! A connection's socket, plain TCP or TLS over it. Plain TCP writes small messages by the cheapest call.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// A head with a small body: up to here copying the two together costs less than a vectored write.
const SMALL_BYTES: usize = 2048;

/// The socket. hyper hands over head and body apart, and often a head alone.
#[derive(Debug)]
pub enum Socket {
    /// TCP and nothing else.
    Plain(TcpStream),
    /// TLS after its handshake, on the heap so that it costs plain connections no memory.
    Tls(Box<TlsStream<TcpStream>>),
}

/// What is spoken over a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, or 1.0.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Socket {
    /// Whether it is more than TCP, so that its end has to be said.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// What both sides agreed on by ALPN; HTTP/1 where they did not.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Protocol::Http2
            }
            Self::Tls(_) | Self::Plain(_) => Protocol::Http1,
        }
    }

    /// Closing it will reset the connection: what was not sent is forgotten, and nobody takes the end for a whole.
    pub fn abort(&self) {
        let stream = match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        // What fails has been closed already.
        stream.set_zero_linger().ok();
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => write_plain(Pin::new(stream), context, slices),
            // One record for all of it: rustls gathers them itself.
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

fn write_plain(
    socket: Pin<&mut TcpStream>,
    context: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [only] = slices {
        return socket.poll_write(context, only);
    }
    let mut buffer = [0; SMALL_BYTES];
    match gather(&mut buffer, slices) {
        Some(bytes) => socket.poll_write(context, bytes),
        None => socket.poll_write_vectored(context, slices),
    }
}

/// All slices one after the other, if they fit.
fn gather<'a>(buffer: &'a mut [u8], slices: &[IoSlice<'_>]) -> Option<&'a [u8]> {
    let mut length = 0;
    for slice in slices {
        buffer.get_mut(length..length + slice.len())?.copy_from_slice(slice);
        length += slice.len();
    }
    buffer.get(..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_gathered() {
        let mut buffer = [0; 4];
        let slices = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cd")];
        assert_eq!(gather(&mut buffer, &slices), Some(&b"abcd"[..]));
        assert_eq!(gather(&mut buffer, &[slices[0], slices[2], IoSlice::new(b"e")]), None);
    }
}
