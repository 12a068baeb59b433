//! What gRPC asks of a gateway: its clients read errors in fields of their own, not in statuses, and say how long they
//! wait.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::base::error::Error;
use crate::http::headers;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

const MEDIA_TYPE: &str = "application/grpc";

/// No call is bounded by more than this, the longest that a configuration may say.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether a message is one of gRPC: `application/grpc`, alone or with the encoding of its messages behind it.
pub fn is_grpc(fields: &HeaderMap) -> bool {
    let parts = fields.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    parts.and_then(|kind| kind.split_at_checked(MEDIA_TYPE.len())).is_some_and(|(kind, rest)| {
        kind.eq_ignore_ascii_case(MEDIA_TYPE.as_bytes())
            && matches!(rest.first(), None | Some(b'+' | b';'))
    })
}

/// How long the client waits for a call as a whole: up to eight digits and a unit. Anything else bounds nothing.
pub fn timeout(fields: &HeaderMap) -> Option<Duration> {
    let text = fields.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    };
    Some(timeout.min(MAX_TIMEOUT))
}

/// What a client of gRPC is told instead of `problem`: an answer that is nothing but trailers.
pub fn response(mut problem: Response<Bytes>, error: &Error) -> Response<Bytes> {
    let code = code(problem.status());
    *problem.status_mut() = StatusCode::OK;
    *problem.body_mut() = Bytes::new();
    let fields = problem.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    fields.insert(GRPC_STATUS, code.into());
    fields.insert(GRPC_MESSAGE, headers::value(error.detail()));
    problem
}

/// The code of gRPC for a status: as its own table has it for clients, and closer where that says no more than that
/// something was wrong.
fn code(status: StatusCode) -> u16 {
    const UNKNOWN: u16 = 2;
    const DEADLINE_EXCEEDED: u16 = 4;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match status.as_u16() {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 | 405 | 501 => UNIMPLEMENTED,
        408 | 504 => DEADLINE_EXCEEDED,
        413 | 414 | 431 => RESOURCE_EXHAUSTED,
        429 | 502 | 503 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::Kind;
    use crate::http::problem;

    fn with(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn the_media_type_tells() {
        for (kind, is) in [
            ("application/grpc", true),
            ("Application/gRPC+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(&with(CONTENT_TYPE, kind)), is, "{kind}");
        }
    }

    #[test]
    fn timeouts_have_a_number_and_a_unit() {
        for (text, timeout) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(MAX_TIMEOUT)),
            ("250m", Some(Duration::from_millis(250))),
            ("7n", Some(Duration::from_nanos(7))),
            ("123456789S", None),
            ("1", None),
            ("S", None),
            ("-1S", None),
            ("1s", None),
            ("", None),
        ] {
            assert_eq!(super::timeout(&with(GRPC_TIMEOUT, text)), timeout, "{text}");
        }
    }

    #[test]
    fn every_error_is_told_in_trailers_alone() {
        for kind in Kind::ALL {
            let error = Error::from(kind);
            let answer = response(problem::response(&error, headers::value("7f")), &error);
            assert_eq!(answer.status(), StatusCode::OK);
            assert!(answer.body().is_empty());
            assert_ne!(answer.headers()[GRPC_STATUS], "2", "{kind:?}");
            // What is no printable ASCII, and `%`, would have to be encoded.
            let message = answer.headers()[GRPC_MESSAGE].to_str().unwrap();
            assert!(!message.is_empty() && !message.contains('%'), "{message}");
        }
    }
}
