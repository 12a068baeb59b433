//! The one protocol that a connection may be upgraded to: WebSocket (RFC 6455). After the answer 101 the gateway reads
//! no more of it, but it holds that answer to the request. Any other `Upgrade` is removed on the way, as for a hop that
//! does not know it.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{Method, Version};

use crate::base::random::random;

/// Marks a request that asks to become a WebSocket.
#[derive(Clone, Copy, Debug)]
pub struct WebSocket;

/// Characters of 16 bytes in base64.
const KEY_BYTES: usize = 24;

/// Whether a request that has no body asks for a WebSocket by the letter.
pub(super) fn is_websocket(head: &Parts) -> bool {
    let only = |name| {
        let mut values = head.headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
    };
    head.method == Method::GET
        && head.version == Version::HTTP_11
        && names_websocket(&head.headers)
        && only(SEC_WEBSOCKET_VERSION) == Some(b"13")
        && only(SEC_WEBSOCKET_KEY).is_some_and(is_key)
}

/// Whether `Upgrade` names WebSocket and nothing else.
pub fn names_websocket(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(UPGRADE).iter();
    values.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && values.next().is_none()
}

/// Whether an answer is one to the request with this key, and not one that somebody has kept (RFC 6455, section 4.1).
pub(super) fn accepts(headers: &HeaderMap, key: &[u8]) -> bool {
    let mut values = headers.get_all(SEC_WEBSOCKET_ACCEPT).iter();
    values.next().is_some_and(|value| value.as_bytes() == accept(key).as_bytes())
        && values.next().is_none()
}

/// What an answer to the request with this key says.
pub fn accept(key: &[u8]) -> String {
    /// Section 1.3.
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat()))
}

/// Puts back what is for one hop only.
pub fn ask(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// A key for a request that the gateway makes: 16 random bytes in base64.
pub fn key() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u128::from(random()) << 64 | u128::from(random());
    // 21 characters of six bits, and one of the last two bits.
    let shifted = (0..21).map(|at| bits >> (122 - 6 * at)).chain([bits << 4]);
    let letter = |bits: u128| ALPHABET.get((bits & 0x3f) as usize).copied().map(char::from);
    shifted.filter_map(letter).chain(['=', '=']).collect()
}

fn is_key(key: &[u8]) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    key.len() == KEY_BYTES && key.strip_suffix(b"==").is_some_and(|key| key.iter().all(is_base64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_belongs_to_its_key() {
        let key = b"dGhlIHNhbXBsZSBub25jZQ==";
        let accept = HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let mut headers = HeaderMap::new();
        assert!(!accepts(&headers, key));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept.clone());
        assert!(accepts(&headers, key) && !accepts(&headers, &key[1..]));
        headers.append(SEC_WEBSOCKET_ACCEPT, accept);
        assert!(!accepts(&headers, key), "twice");
    }

    #[test]
    fn keys_are_keys_and_differ() {
        let (one, other) = (key(), key());
        assert!(is_key(one.as_bytes()), "{one}");
        let bits = one.strip_suffix("==").unwrap();
        assert!(bits.ends_with(['A', 'Q', 'g', 'w']), "bits too many: {one}");
        assert_ne!(one, other);
    }
}
