//! WebSockets over HTTP/2 (RFC 8441): asked for by extended CONNECT instead of an upgrade, and told to the rest of the
//! gateway as if there had been one.

use h2::ext::Protocol;
use http::header::{
    CONTENT_LENGTH, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
};
use http::{Method, Request, StatusCode, response};

use crate::http::h1::upgrade::accept;

/// Asks for a tunnel.
pub(super) fn ask(request: &mut Request<()>) {
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request.headers_mut().remove(SEC_WEBSOCKET_KEY);
}

/// Whether the endpoint agrees. Then its answer becomes the one that a request with `asked` has over HTTP/1.1.
pub(super) fn is_granted(answer: &mut response::Parts, asked: &HeaderMap) -> bool {
    if !answer.status.is_success() {
        return false;
    }
    answer.status = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers.remove(CONTENT_LENGTH);
    let key = asked.get(SEC_WEBSOCKET_KEY).map_or(&b""[..], HeaderValue::as_bytes);
    if let Ok(proof) = HeaderValue::from_str(&accept(key)) {
        answer.headers.insert(SEC_WEBSOCKET_ACCEPT, proof);
    }
    true
}
