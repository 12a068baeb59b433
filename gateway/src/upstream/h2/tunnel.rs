//! WebSockets over HTTP/2 (RFC 8441): asked for by extended CONNECT instead of an upgrade, and told to the rest of the
//! gateway as if there had been one.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use h2::ext::Protocol;
use http::header::{
    CONTENT_LENGTH, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
};
use http::{Method, Request, StatusCode, response};

/// What an answer proves that it read the request by (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

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

fn accept(key: &[u8]) -> String {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
    BASE64_STANDARD.encode(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_of_the_rfc() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
