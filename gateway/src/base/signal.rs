//! What the proxy notices about a client, in the words of configuration, metrics and stories.

/// Something odd that a client did. What an upstream or the gateway itself is to blame for is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// A credential was refused.
    AuthFailed,
    /// The caller is known and may not.
    Forbidden,
    /// A limit was reached.
    RateLimited,
    /// What was sent contradicts the protocol, or is beyond its bounds.
    Malformed,
    /// A head, a body or a handshake did not arrive in time, or an answer was read too slowly.
    SlowRequest,
    /// TLS was begun and came to nothing by the client's doing.
    TlsFailed,
    /// A connection was closed before any request was read from it. Browsers and balancers do that, too.
    NoRequest,
    /// A path that only scanners ask for, and that is not there.
    Scanner,
    /// What was asked for is not there.
    NotFound,
    /// A tunnel was asked for in a way that was refused.
    WebsocketAbuse,
}

impl Signal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::AuthFailed,
        Self::Forbidden,
        Self::RateLimited,
        Self::Malformed,
        Self::SlowRequest,
        Self::TlsFailed,
        Self::NoRequest,
        Self::Scanner,
        Self::NotFound,
        Self::WebsocketAbuse,
    ];

    /// Its name in the configuration, in metrics and in stories.
    pub fn name(self) -> &'static str {
        match self {
            Self::AuthFailed => "auth_failed",
            Self::Forbidden => "forbidden",
            Self::RateLimited => "rate_limited",
            Self::Malformed => "malformed",
            Self::SlowRequest => "slow_request",
            Self::TlsFailed => "tls_failed",
            Self::NoRequest => "no_request",
            Self::Scanner => "scanner",
            Self::NotFound => "not_found",
            Self::WebsocketAbuse => "websocket_abuse",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique() {
        for (number, signal) in Signal::ALL.into_iter().enumerate() {
            assert_eq!(signal as usize, number, "{signal:?}");
        }
        let names: std::collections::HashSet<_> = Signal::ALL.map(Signal::name).into();
        assert_eq!(names.len(), Signal::ALL.len());
    }
}
