//! From an endpoint's address to a socket that HTTP can be spoken over: TCP, then the PROXY protocol and TLS where the
//! service has them, all of it within the deadline to connect.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::base::error::{Error, Kind};
use crate::config::Protocol;
use crate::http::deadline::Deadline;
use crate::http::proxy_protocol::{Addresses, encode_v2};
use crate::http::socket::{self, Socket};
use crate::tls::client::Client;

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
        let name = client.name(self.endpoint.ip());
        // On the heap and gone when it is done.
        let connecting = Box::pin(client.connector(self.protocol).connect(name.clone(), stream));
        let connected = before(deadline, connecting).await?.and_then(|stream| {
            let socket = Socket::Tls(Box::new(TlsStream::Client(stream)));
            let is_h2 = socket.protocol() == socket::Protocol::Http2;
            if self.protocol == Protocol::Http2 && !is_h2 {
                return Err(io::Error::other("it does not offer HTTP/2 by ALPN"));
            }
            Ok(socket)
        });
        match connected {
            Ok(socket) => Ok(socket),
            Err(error) => {
                if client.may_tell() {
                    let (endpoint, name) = (self.endpoint, name.to_str());
                    tracing::warn!(%endpoint, %name, %error, "an endpoint agrees on no TLS");
                }
                Err(Kind::UpstreamTls.into())
            }
        }
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

async fn before<T>(deadline: &Deadline, work: impl Future<Output = T>) -> Result<T, Error> {
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
