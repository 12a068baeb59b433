//! The handshake of TLS. Whoever speaks plain HTTP instead is told so.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use rustls::{CertificateError, Error};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use crate::base::signal::Signal;
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

/// A handshake that came to nothing, and what that says about the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) failure: HandshakeFailure,
    pub(super) signal: Option<Signal>,
}

impl Failed {
    /// It was not done in time.
    pub(super) fn in_time(signal: Option<Signal>) -> Self {
        Self { failure: HandshakeFailure::TimedOut, signal }
    }

    fn by_client(failure: HandshakeFailure) -> Self {
        Self { failure, signal: Some(Signal::TlsFailed) }
    }

    /// What honest clients do, too.
    fn excused(failure: HandshakeFailure) -> Self {
        Self { failure, signal: None }
    }
}

/// Shakes hands over `stream`. Only a client that has begun takes one of the `handshakes`. What it would say about the
/// client to break off now is noted in `late`.
pub(super) async fn handshake(
    server: &Server,
    stream: TcpStream,
    (handshakes, late): (&Handshakes, &Cell<Option<Signal>>),
) -> Result<(Socket, Session), Failed> {
    let mut first = [0];
    late.set(Some(Signal::NoRequest));
    match stream.peek(&mut first).await {
        Ok(1) if first == [HANDSHAKE] => {}
        Ok(1) if first.iter().all(u8::is_ascii_alphabetic) => {
            explain(stream).await.ok();
            return Err(Failed::by_client(HandshakeFailure::PlainHttp));
        }
        Ok(1..) => return Err(Failed::by_client(HandshakeFailure::Broken)),
        _ => {
            let signal = Some(Signal::NoRequest);
            return Err(Failed { failure: HandshakeFailure::Broken, signal });
        }
    }
    // Whoever has to wait for its turn is not slow by itself.
    late.set(None);
    let permit = match handshakes.enter_now() {
        None => handshakes.enter().await,
        permit => {
            late.set(Some(Signal::SlowRequest));
            permit
        }
    };
    let stream = server.acceptor().accept(stream).await.map_err(|error| why(&error))?;
    drop(permit);
    let session = Session::of(stream.get_ref().1, server.forwards(), utc());
    // It was verified; what is left is that it has ended since, or has names that cannot be read.
    let session = session.ok_or(Failed::excused(HandshakeFailure::ClientCertificate))?;
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

/// A client that does not trust the certificate says so by an alert; a certificate of a client that is missing, or only
/// too old, is as a credential that is.
fn why(error: &io::Error) -> Failed {
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        let has_left = matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof);
        let signal = has_left.then_some(Signal::TlsFailed);
        return Failed { failure: HandshakeFailure::Broken, signal };
    };
    match error {
        Error::General(text) if text == NO_CERTIFICATE => {
            Failed::by_client(HandshakeFailure::UnknownSni)
        }
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => {
            Failed::by_client(HandshakeFailure::Incompatible)
        }
        Error::NoCertificatesPresented
        | Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => Failed::excused(HandshakeFailure::ClientCertificate),
        Error::InvalidCertificate(_) => Failed::by_client(HandshakeFailure::ClientCertificate),
        Error::AlertReceived(_) => Failed::excused(HandshakeFailure::Alert),
        Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::InvalidMessage(_)
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord
        | Error::DecryptError => Failed::by_client(HandshakeFailure::Broken),
        _ => Failed::excused(HandshakeFailure::Broken),
    }
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, InvalidMessage, PeerIncompatible};

    use super::*;

    #[test]
    fn only_what_a_client_does_against_tls_is_held_against_it() {
        let of = |error: Error| why(&io::Error::other(error)).signal;
        let bad = Some(Signal::TlsFailed);
        assert_eq!(of(Error::General(NO_CERTIFICATE.to_owned())), bad);
        assert_eq!(of(Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon)), bad);
        assert_eq!(of(Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge)), bad);
        assert_eq!(of(Error::InvalidCertificate(CertificateError::UnknownIssuer)), bad);
        assert_eq!(why(&io::ErrorKind::UnexpectedEof.into()).signal, bad);
        assert_eq!(of(Error::InvalidCertificate(CertificateError::Expired)), None);
        assert_eq!(of(Error::NoCertificatesPresented), None);
        for alert in [AlertDescription::UnknownCA, AlertDescription::BadCertificate] {
            assert_eq!(of(Error::AlertReceived(alert)), None);
        }
        assert_eq!(of(Error::General("no signature".to_owned())), None, "the gateway's own");
        assert_eq!(of(Error::FailedToGetRandomBytes), None, "the gateway's own");
        assert_eq!(why(&io::ErrorKind::OutOfMemory.into()).signal, None, "the gateway's own");
    }
}
