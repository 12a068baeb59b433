//! From an endpoint's address to a socket that HTTP can be spoken over: TCP, then the PROXY protocol and TLS where the
//! service has them, all of it within the deadline to connect.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::base::error::{Error, Kind};
use crate::config::Protocol;
use crate::http::deadline::Deadline;
use crate::http::h1::head::Limits;
use crate::http::proxy_protocol::{Addresses, encode_v2};
use crate::http::socket::{self, Socket};
use crate::tls::client::Client;
use crate::upstream::Keep;

/// Where a request goes, and on which terms.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The endpoint, and how it is connected to.
    pub dial: Dial<'a>,
    /// What it may answer.
    pub limits: Limits,
    /// For how long an idle connection is kept.
    pub keep: Keep,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time from the last byte of the request to the head of the answer.
    pub response_timeout: Duration,
    /// How much of a request's body is kept for the case that the endpoint refuses it unseen.
    pub replay_bytes: usize,
}

/// How an endpoint is connected to.
#[derive(Clone, Copy, Debug)]
pub struct Dial<'a> {
    /// Where.
    pub endpoint: SocketAddr,
    /// `None`: plain TCP.
    pub tls: Option<&'a Client>,
    /// What is to be spoken.
    pub protocol: Protocol,
    /// What the endpoint is told about the client, if it is. Such a connection is that client's alone.
    pub addresses: Option<Addresses>,
}

/// What connections must have in common so that one can take the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    endpoint: SocketAddr,
    /// The one that made it; 0 over plain TCP.
    tls: u64,
}

impl Line {
    /// Where it leads.
    pub fn endpoint(self) -> SocketAddr {
        self.endpoint
    }
}

impl Dial<'_> {
    /// What the connection can stand in for.
    pub fn line(&self) -> Line {
        Line { endpoint: self.endpoint, tls: self.tls.map_or(0, Client::id) }
    }

    /// Connects.
    pub(super) async fn socket(self, deadline: &Deadline) -> Result<Socket, Error> {
        let stream = before(deadline, self.tcp()).await??;
        let Some(client) = self.tls else { return Ok(Socket::Plain(stream)) };
        // On the heap and gone when it is done.
        let connecting = Box::pin(self.shake_hands(client, stream));
        match before(deadline, connecting).await? {
            Ok(socket) => Ok(socket),
            Err(error) => {
                if client.may_tell() {
                    let (endpoint, name) = (self.endpoint, client.name(self.endpoint.ip()));
                    let name = name.to_str();
                    tracing::warn!(%endpoint, %name, %error, "an endpoint agrees on no TLS");
                }
                Err(Kind::UpstreamTls.into())
            }
        }
    }

    /// Whether what was connected speaks HTTP/2.
    pub(super) fn is_http2(&self, socket: &Socket) -> bool {
        match self.protocol {
            Protocol::Auto => socket.protocol() == socket::Protocol::Http2,
            Protocol::Http1 => false,
            Protocol::Http2 => true,
        }
    }

    async fn shake_hands(self, client: &Client, stream: TcpStream) -> io::Result<Socket> {
        let name = client.name(self.endpoint.ip());
        let stream = client.connector(self.protocol).connect(name, stream).await?;
        let socket = Socket::Tls(Box::new(TlsStream::Client(stream)));
        let is_http2 = socket.protocol() == socket::Protocol::Http2;
        if self.protocol == Protocol::Http2 && !is_http2 {
            return Err(io::Error::other("it does not offer HTTP/2 by ALPN"));
        }
        Ok(socket)
    }

    async fn tcp(self) -> Result<TcpStream, Error> {
        let connected = TcpStream::connect(self.endpoint).await;
        let mut stream = connected.map_err(|error| connect_error(&error))?;
        // Failing that, small requests are only slower.
        stream.set_nodelay(true).ok();
        if let Some(addresses) = self.addresses {
            let written = stream.write_all(&encode_v2(addresses)).await;
            written.map_err(|_| Error::from(Kind::UpstreamConnect))?;
        }
        Ok(stream)
    }
}

/// What `work` comes to, unless the deadline passes before.
pub(super) async fn before<T>(
    deadline: &Deadline,
    work: impl Future<Output = T>,
) -> Result<T, Error> {
    let mut work = pin!(work);
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending if deadline.has_passed() => Poll::Ready(Err(deadline.error())),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// A lack of descriptors, ports or memory is the gateway's fault, everything else the endpoint's.
fn connect_error(error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::EADDRNOTAVAIL | libc::ENOBUFS | libc::ENOMEM) => {
            Kind::Overloaded.into()
        }
        Some(libc::ETIMEDOUT) => Kind::UpstreamTimeout.into(),
        _ => Kind::UpstreamConnect.into(),
    }
}
