//! What the header fields of a request become on their way to a service, and those of its answer on the way back.

use http::header::{Entry, FORWARDED, HOST, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode, Version};

use crate::base::id::RequestId;
use crate::base::random::random;
use crate::config::Config;
use crate::http::body::RequestBody;
use crate::http::h1::upgrade::{self, WebSocket};
use crate::http::headers::{
    CLIENT_CERT, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID, remove_forged,
    remove_hop_by_hop, value,
};
use crate::http::trace_context::TraceContext;
use crate::request::Connection;

/// The id of a request: a new one, or the one that a trusted proxy has given it.
pub(super) fn request_id(headers: &HeaderMap, peer_is_trusted: bool) -> HeaderValue {
    match headers.get(X_REQUEST_ID) {
        Some(id) if peer_is_trusted && is_request_id(id.as_bytes()) => id.clone(),
        _ => value(RequestId::generate().as_str()),
    }
}

/// What may stand in a log, a header and a JSON document without being taken for anything else.
fn is_request_id(id: &[u8]) -> bool {
    (1..=128).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// Where in which trace the request is, if anybody wants to know.
pub(super) fn trace<'c>(
    config: &'c Config,
    headers: &HeaderMap,
    peer_is_trusted: bool,
    id: &HeaderValue,
) -> Option<TraceContext<'c>> {
    let tracing = config.tracing.as_ref()?;
    Some(TraceContext::of(tracing, headers, peer_is_trusted, id, random))
}

/// Makes of the head of a request that came over `connection` the one that the service gets, and returns its body.
pub(super) fn request(
    head: &mut Parts,
    body: RequestBody,
    id: &HeaderValue,
    (connection, peer_is_trusted): (&Connection, bool),
) -> RequestBody {
    let headers = &mut head.headers;
    remove_hop_by_hop(headers);
    remove_forged(headers, peer_is_trusted);
    headers.insert(X_REQUEST_ID, id.clone());
    append_peer(headers, &connection.client_text);
    if !headers.contains_key(FORWARDED) {
        let host = headers.get(HOST).cloned();
        if let (Some(host), Entry::Vacant(entry)) = (host, headers.entry(X_FORWARDED_HOST)) {
            entry.insert(host);
        }
    }
    if let Some(certificate) = connection.client_certificate()
        && let Some(value) = &certificate.header
    {
        headers.insert(CLIENT_CERT, value.clone());
    }
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static(connection.scheme()));
    let wants_tunnel = head.extensions.get::<WebSocket>().is_some();
    if wants_tunnel {
        upgrade::ask(headers);
    }
    head.version = Version::HTTP_11;
    if wants_tunnel { body.unbounded() } else { body }
}

/// The answer as the client gets it.
pub(super) fn response<B>(mut response: Response<B>, id: HeaderValue) -> Response<B> {
    remove_hop_by_hop(response.headers_mut());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        upgrade::ask(response.headers_mut());
    }
    response.headers_mut().insert(X_REQUEST_ID, id);
    *response.version_mut() = Version::HTTP_11;
    response
}

/// One line with everybody that the request came through: a service that reads only the first line misses nobody.
fn append_peer(headers: &mut HeaderMap, peer: &HeaderValue) {
    let before = headers.get_all(X_FORWARDED_FOR).iter();
    let mut line: Vec<_> = before.map(|value| value.to_str().unwrap_or("unknown")).collect();
    let line = if line.is_empty() {
        peer.clone()
    } else {
        line.push(peer.to_str().unwrap_or_default());
        value(&line.join(", "))
    };
    headers.insert(X_FORWARDED_FOR, line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_from_a_trusted_proxy_only() {
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, HeaderValue::from_static("a-1_b.2"));
        assert_eq!(request_id(&headers, true), "a-1_b.2");
        assert_ne!(request_id(&headers, false), "a-1_b.2");
        for bad in ["", "a b", "a\"b", &"a".repeat(129)] {
            headers.insert(X_REQUEST_ID, HeaderValue::from_str(bad).unwrap());
            assert_eq!(request_id(&headers, true).len(), 32, "{bad}");
        }
    }

    #[test]
    fn the_peer_is_appended_to_whom_the_request_came_through() {
        let peer = &HeaderValue::from_static("10.0.0.2");
        let mut headers = HeaderMap::new();
        append_peer(&mut headers, peer);
        assert_eq!(headers[X_FORWARDED_FOR], "10.0.0.2");
        headers.append(X_FORWARDED_FOR, HeaderValue::from_static("192.0.2.1"));
        append_peer(&mut headers, peer);
        assert_eq!(headers.get_all(X_FORWARDED_FOR).iter().count(), 1);
        assert_eq!(headers[X_FORWARDED_FOR], "10.0.0.2, 192.0.2.1, 10.0.0.2");
    }
}
