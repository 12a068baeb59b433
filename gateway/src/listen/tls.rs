//! The handshake of TLS. Whoever speaks plain HTTP instead is told so.

use std::io;
use std::time::Duration;

use rustls::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use crate::base::time::utc;
use crate::http::socket::Socket;
use crate::listen::preface::Handshakes;
use crate::observe::HandshakeFailure;
use crate::tls::server::{NO_CERTIFICATE, Server};
use crate::tls::session::Session;

/// The first byte of a handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

const PLAIN_HTTP: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n\
                          content-length: 49\r\nconnection: close\r\n\r\n\
                          this port speaks HTTPS: use https:// in the URL.\n";
/// What a client has sent by then would be answered with a reset, which may overtake the text (unit: bytes).
const LINGER_BYTES: u64 = 64 * 1024;
const LINGER: Duration = Duration::from_secs(1);

/// Shakes hands over `stream`. Only a client that has begun takes one of the `handshakes`.
pub(super) async fn handshake(
    server: &Server,
    stream: TcpStream,
    handshakes: &Handshakes,
) -> Result<(Socket, Session), HandshakeFailure> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1) if first == [HANDSHAKE] => {}
        Ok(1) if first.iter().all(u8::is_ascii_alphabetic) => {
            explain(stream).await.ok();
            return Err(HandshakeFailure::PlainHttp);
        }
        _ => return Err(HandshakeFailure::Broken),
    }
    let permit = handshakes.enter().await;
    let stream = server.acceptor().accept(stream).await.map_err(|error| why(&error))?;
    drop(permit);
    let session = Session::of(stream.get_ref().1, server.forwards(), utc());
    let session = session.ok_or(HandshakeFailure::ClientCertificate)?;
    Ok((Socket::Tls(Box::new(TlsStream::Server(stream))), session))
}

async fn explain(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(PLAIN_HTTP.as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = stream.take(LINGER_BYTES);
    let read = async {
        while rest.read(&mut [0; 4096]).await? > 0 {}
        io::Result::Ok(())
    };
    timeout(LINGER, read).await.unwrap_or(Ok(()))
}

fn why(error: &io::Error) -> HandshakeFailure {
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        return HandshakeFailure::Broken;
    };
    match error {
        Error::General(text) if text == NO_CERTIFICATE => HandshakeFailure::UnknownSni,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => HandshakeFailure::Incompatible,
        Error::NoCertificatesPresented | Error::InvalidCertificate(_) => {
            HandshakeFailure::ClientCertificate
        }
        Error::AlertReceived(_) => HandshakeFailure::Alert,
        _ => HandshakeFailure::Broken,
    }
}
