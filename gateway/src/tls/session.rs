//! What a handshake has agreed on, kept for as long as the connection lives.

use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};

/// A session with a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// The cipher suite.
    pub cipher_suite: &'static str,
    /// The host that the client named, in lower case.
    pub server_name: Option<Box<str>>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

impl Session {
    /// What was agreed on over `connection`, whose handshake is done.
    pub fn of(connection: &ServerConnection) -> Self {
        let suite = connection.negotiated_cipher_suite();
        Self {
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "TLSv1.2",
            },
            cipher_suite: suite.and_then(|suite| suite.suite().as_str()).unwrap_or_default(),
            server_name: connection.server_name().map(Box::from),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }
}
