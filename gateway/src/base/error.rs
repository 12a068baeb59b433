//! The error of the request path: what went wrong, whose fault it is, whether trying again may help.
//!
//! It knows nothing of HTTP statuses (`http::problem` maps it) and carries no text that a client must not read.

use std::fmt;
use std::time::Duration;

/// Whose fault an error is. An upstream's or the gateway's fault never counts against a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client sent what it must not, or too slowly.
    Client,
    /// The service behind did not answer as it should.
    Upstream,
    /// The gateway itself lacks something.
    Gateway,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request contradicts the protocol.
    BadRequest,
    /// The target of the request is longer than the bound.
    TargetTooLong,
    /// The head of the request is larger than the bounds, or has more fields.
    HeadTooLarge,
    /// The head of the request did not arrive in time.
    HeadTimeout,
    /// A rule denies the client's address.
    Denied,
    /// Nobody knows who the caller is.
    Unauthenticated,
    /// The caller is known and may not.
    Forbidden,
    /// The caller has used up what it may.
    RateLimited,
    /// No route fits.
    NoRoute,
    /// The route has other methods.
    MethodNotAllowed,
    /// A method that the gateway does not speak.
    NotImplemented,
    /// The request's body did not arrive in time.
    RequestTimeout,
    /// The request's body broke off.
    RequestBroken,
    /// The request's body is larger than the bound.
    BodyTooLarge,
    /// No endpoint could be connected to.
    UpstreamConnect,
    /// No endpoint could prove who it is, or agreed on TLS.
    UpstreamTls,
    /// An endpoint did not connect, take the request or answer in time.
    UpstreamTimeout,
    /// The endpoint closed the connection before its answer was whole.
    UpstreamReset,
    /// The endpoint's answer is not HTTP.
    UpstreamProtocol,
    /// The breaker of the service is open: it failed too often.
    BreakerOpen,
    /// The service has as many requests as it may at once.
    ConcurrencyLimit,
    /// The service is nearly at that limit, and other requests are more important.
    Shed,
    /// The service has no endpoint that may take a request.
    UpstreamUnavailable,
    /// Who the caller is cannot be checked at the moment.
    AuthUnavailable,
    /// What the caller has used cannot be counted at the moment.
    LimitUnavailable,
    /// The gateway has no descriptor, port or memory left for the request.
    Overloaded,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 26] = [
        Self::BadRequest,
        Self::TargetTooLong,
        Self::HeadTooLarge,
        Self::HeadTimeout,
        Self::Denied,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::RateLimited,
        Self::NoRoute,
        Self::MethodNotAllowed,
        Self::NotImplemented,
        Self::RequestTimeout,
        Self::RequestBroken,
        Self::BodyTooLarge,
        Self::UpstreamConnect,
        Self::UpstreamTls,
        Self::UpstreamTimeout,
        Self::UpstreamReset,
        Self::UpstreamProtocol,
        Self::BreakerOpen,
        Self::ConcurrencyLimit,
        Self::Shed,
        Self::UpstreamUnavailable,
        Self::AuthUnavailable,
        Self::LimitUnavailable,
        Self::Overloaded,
    ];

    /// Its name in metrics and status.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadTimeout => "head_timeout",
            Self::Denied => "denied",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::RateLimited => "rate_limited",
            Self::NoRoute => "no_route",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NotImplemented => "not_implemented",
            Self::RequestTimeout => "request_timeout",
            Self::RequestBroken => "request_broken",
            Self::BodyTooLarge => "body_too_large",
            Self::UpstreamConnect => "upstream_connect",
            Self::UpstreamTls => "upstream_tls",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::BreakerOpen => "breaker_open",
            Self::ConcurrencyLimit => "concurrency_limit",
            Self::Shed => "shed",
            Self::UpstreamUnavailable => "upstream_unavailable",
            Self::AuthUnavailable => "auth_unavailable",
            Self::LimitUnavailable => "limit_unavailable",
            Self::Overloaded => "overloaded",
        }
    }

    /// Whose fault it is.
    pub fn blame(self) -> Blame {
        match self {
            Self::BadRequest
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::HeadTimeout
            | Self::Denied
            | Self::Unauthenticated
            | Self::Forbidden
            | Self::RateLimited
            | Self::NoRoute
            | Self::MethodNotAllowed
            | Self::NotImplemented
            | Self::RequestTimeout
            | Self::RequestBroken
            | Self::BodyTooLarge => Blame::Client,
            Self::UpstreamConnect
            | Self::UpstreamTls
            | Self::UpstreamTimeout
            | Self::UpstreamReset
            | Self::UpstreamProtocol
            | Self::UpstreamUnavailable
            | Self::BreakerOpen => Blame::Upstream,
            Self::ConcurrencyLimit
            | Self::Shed
            | Self::AuthUnavailable
            | Self::LimitUnavailable
            | Self::Overloaded => Blame::Gateway,
        }
    }

    /// Whether nothing reached a service, so that the same request may be sent once more without harm.
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Self::UpstreamConnect
                | Self::UpstreamTls
                | Self::UpstreamUnavailable
                | Self::BreakerOpen
                | Self::ConcurrencyLimit
                | Self::Shed
                | Self::RateLimited
                | Self::AuthUnavailable
                | Self::LimitUnavailable
                | Self::Overloaded
        )
    }
}

/// Why a request was not answered by the service that it was meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    detail: &'static str,
    /// What the header field says that belongs to the kind.
    told: Option<Box<str>>,
    reason: Option<&'static str>,
    is_expired: bool,
    /// Rounded up. A word less than a duration, which errors are handed about by.
    retry_after_seconds: u32,
}

impl Error {
    /// An error with a sentence for the client: what was wrong and what to do.
    pub fn new(kind: Kind, detail: &'static str) -> Self {
        Self { kind, detail, told: None, reason: None, is_expired: false, retry_after_seconds: 0 }
    }

    /// The route has other methods: `allow` lists them as in the header of that name.
    pub fn method_not_allowed(allow: String) -> Self {
        Self { told: Some(allow.into()), ..Kind::MethodNotAllowed.into() }
    }

    /// Nobody knows who the caller is: `challenges` say how it may tell, as in `WWW-Authenticate`.
    pub fn unauthenticated(detail: &'static str, challenges: String) -> Self {
        Self { told: Some(challenges.into()), ..Self::new(Kind::Unauthenticated, detail) }
    }

    /// The caller has used up what it may, for so long.
    pub fn rate_limited(detail: &'static str, retry_after: Duration) -> Self {
        let retry_after_seconds = seconds(retry_after);
        Self { retry_after_seconds, ..Self::new(Kind::RateLimited, detail) }
    }

    /// The breaker of the service stays open for so long.
    pub fn breaker_open(retry_after: Duration) -> Self {
        Self { retry_after_seconds: seconds(retry_after), ..Kind::BreakerOpen.into() }
    }

    /// The same with what the log says of it, which is not for the client.
    pub fn because(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    /// The same about a credential that did hold and is only too old.
    pub fn expired(self) -> Self {
        Self { is_expired: true, ..self }
    }

    /// Whether it is about such a credential.
    pub fn is_expired(&self) -> bool {
        self.is_expired
    }

    /// What the log says of it.
    pub fn reason(&self) -> Option<&'static str> {
        self.reason
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The sentence for the client.
    pub fn detail(&self) -> &'static str {
        self.detail
    }

    /// Seconds after which trying again may help, at least 1; `None` where it would not.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        match self.kind {
            Kind::UpstreamUnavailable
            | Kind::BreakerOpen
            | Kind::ConcurrencyLimit
            | Kind::Shed
            | Kind::RateLimited
            | Kind::AuthUnavailable
            | Kind::LimitUnavailable
            | Kind::Overloaded => Some(u64::from(self.retry_after_seconds).max(1)),
            _ => None,
        }
    }

    /// The methods of the route, if that is what was wrong.
    pub fn allow(&self) -> Option<&str> {
        self.told.as_deref().filter(|_| self.kind == Kind::MethodNotAllowed)
    }

    /// How a caller may tell who it is, if that is what was wrong.
    pub fn challenges(&self) -> Option<&str> {
        self.told.as_deref().filter(|_| self.kind == Kind::Unauthenticated)
    }
}

fn seconds(time: Duration) -> u32 {
    let started = u64::from(time.subsec_nanos() > 0);
    u32::try_from(time.as_secs().saturating_add(started)).unwrap_or(u32::MAX)
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self::new(
            kind,
            match kind {
                Kind::BadRequest => "the request contradicts HTTP",
                Kind::TargetTooLong => "the request target is longer than accepted here",
                Kind::HeadTooLarge => "the head of the request is larger than accepted here",
                Kind::HeadTimeout => "the head of the request did not arrive in time",
                Kind::Denied => "requests from this address are not accepted",
                Kind::Unauthenticated => "this needs a credential; see the header WWW-Authenticate",
                Kind::Forbidden => "the caller may not do this",
                Kind::RateLimited => "too many requests; try again later",
                Kind::NoRoute => "no route matches this host and path",
                Kind::MethodNotAllowed => "this method is not offered here; see the header Allow",
                Kind::NotImplemented => "this method is not supported",
                Kind::RequestTimeout => "the request body did not arrive in time",
                Kind::RequestBroken => "the request body broke off",
                Kind::BodyTooLarge => "the request body is larger than accepted here",
                Kind::UpstreamConnect | Kind::UpstreamTls => "the service cannot be reached",
                Kind::UpstreamTimeout => "the service did not answer in time",
                Kind::UpstreamReset => "the service closed the connection before it had answered",
                Kind::UpstreamProtocol => "the service gave an answer that is not valid HTTP",
                Kind::BreakerOpen => "the service is out of order; try again later",
                Kind::ConcurrencyLimit => "the service is busy; try again",
                Kind::Shed => "the service is busy with what is more important; try again",
                Kind::UpstreamUnavailable => "the service is not available at the moment",
                Kind::AuthUnavailable => "credentials cannot be checked at the moment; try again",
                Kind::LimitUnavailable => "requests cannot be counted at the moment; try again",
                Kind::Overloaded => "too much is going on at the moment; try again",
            },
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.detail)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number, "{kind:?}");
        }
        let names: std::collections::HashSet<_> = Kind::ALL.map(Kind::name).into();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
