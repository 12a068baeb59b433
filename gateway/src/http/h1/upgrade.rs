//! The one protocol that a connection may be upgraded to: WebSocket (RFC 6455). After the answer 101 the gateway reads
//! no more of it. Any other `Upgrade` is removed on the way, as for a hop that does not know it.

use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{Method, Version};

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
pub(super) fn names_websocket(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(UPGRADE).iter();
    values.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && values.next().is_none()
}

/// Puts back what is for one hop only.
pub fn ask(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

fn is_key(key: &[u8]) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    key.len() == KEY_BYTES && key.strip_suffix(b"==").is_some_and(|key| key.iter().all(is_base64))
}
