//! The one place where an error becomes an answer: a problem document (RFC 9457) that says what the client needs and
//! nothing about what is behind the gateway.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use serde::Serialize;

use crate::base::error::{Error, Kind};
use crate::http::headers;

/// The document, with its members in the order of the standard.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    request_id: &'a str,
}

/// The answer to a request that ended in `error`.
pub fn response(error: &Error, request_id: HeaderValue) -> Response<Bytes> {
    let status = status(error.kind());
    let problem = Problem {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or_default(),
        status: status.as_u16(),
        detail: error.detail(),
        request_id: request_id.to_str().unwrap_or_default(),
    };
    let mut response = Response::new(serde_json::to_vec(&problem).unwrap_or_default().into());
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    fields.insert(headers::X_REQUEST_ID, request_id);
    if let Some(allow) = error.allow() {
        fields.insert(ALLOW, headers::value(allow));
    }
    if let Some(challenges) = error.challenges() {
        fields.insert(WWW_AUTHENTICATE, headers::value(challenges));
    }
    if let Some(seconds) = error.retry_after_seconds() {
        fields.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The status that tells a client of it.
pub fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::BadRequest | Kind::RequestBroken => StatusCode::BAD_REQUEST,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Denied | Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Kind::NoRoute => StatusCode::NOT_FOUND,
        Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Kind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        Kind::TargetTooLong => StatusCode::URI_TOO_LONG,
        Kind::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Kind::RequestTimeout | Kind::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
        Kind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::UpstreamConnect
        | Kind::UpstreamTls
        | Kind::UpstreamReset
        | Kind::UpstreamProtocol => StatusCode::BAD_GATEWAY,
        Kind::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        Kind::UpstreamUnavailable
        | Kind::BreakerOpen
        | Kind::ConcurrencyLimit
        | Kind::Shed
        | Kind::AuthUnavailable
        | Kind::LimitUnavailable
        | Kind::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::Blame;

    #[test]
    fn the_document_is_small_and_says_what_to_do() {
        let response = response(&Kind::NoRoute.into(), headers::value("7f"));
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(
            str::from_utf8(response.body()).unwrap(),
            r#"{"type":"about:blank","title":"Not Found","status":404,"#.to_owned()
                + r#""detail":"no route matches this host and path","request_id":"7f"}"#
        );
    }

    #[test]
    fn the_class_of_the_status_follows_the_blame() {
        for kind in Kind::ALL {
            let status = status(kind);
            // A method that nobody here speaks is the one exception of the standard.
            let client = status.is_client_error() || kind == Kind::NotImplemented;
            assert_eq!(client, kind.blame() == Blame::Client, "{kind:?}");
        }
    }

    #[test]
    fn headers_that_belong_to_the_status() {
        let refused = Error::method_not_allowed("GET, HEAD".to_owned());
        assert_eq!(response(&refused, headers::value("")).headers()[ALLOW], "GET, HEAD");
        let open = Error::breaker_open(std::time::Duration::from_millis(2001));
        assert_eq!(response(&open, headers::value("")).headers()[RETRY_AFTER], "3");
        let overloaded = response(&Kind::Overloaded.into(), headers::value(""));
        assert_eq!(overloaded.headers()[RETRY_AFTER], "1");
    }
}
