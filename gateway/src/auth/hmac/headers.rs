//! Signatures in four header fields: `X-API-Key`, `X-Timestamp`, `X-Nonce` and `X-Signature`. What is signed is exact
//! to the byte, as docs/signatures.md has it; a field that is there twice or is written in another way is refused.

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, HeaderName};

use super::{Message, nonce_is_good};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-timestamp");
const NONCE: HeaderName = HeaderName::from_static("x-nonce");
const SIGNATURE: HeaderName = HeaderName::from_static("x-signature");

/// Digits of a timestamp: beyond the year 30,000.
const TIMESTAMP_DIGITS: usize = 12;

/// What the four fields say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signed<'a> {
    pub(super) key: &'a str,
    /// In seconds since the epoch.
    pub(super) timestamp: u64,
    pub(super) nonce: &'a str,
    pub(super) signature: [u8; 32],
}

impl<'a> Signed<'a> {
    /// What the fields say; `None` without an `X-Signature`.
    pub(super) fn of(headers: &'a HeaderMap) -> Result<Option<Self>, &'static str> {
        if !headers.contains_key(SIGNATURE) {
            return Ok(None);
        }
        let signature = once(headers, &SIGNATURE, "X-Signature is there more than once")?;
        let key = once(headers, &API_KEY, "X-API-Key is missing or there more than once")?;
        let timestamp =
            once(headers, &TIMESTAMP, "X-Timestamp is missing or there more than once")?;
        let nonce = once(headers, &NONCE, "X-Nonce is missing or there more than once")?;
        if !nonce_is_good(nonce) {
            return Err("X-Nonce is no nonce");
        }
        Ok(Some(Self {
            key,
            timestamp: seconds(timestamp).ok_or("X-Timestamp is no number of seconds")?,
            nonce,
            signature: hex(signature).ok_or("X-Signature is no 64 hexadecimal digits")?,
        }))
    }

    /// The string that is signed, for a body with this digest. A line has no line end in it: none of what the first
    /// four consist of may have one.
    pub(super) fn text(&self, message: &Message<'_>, body: &[u8]) -> String {
        use std::fmt::Write as _;
        let Self { timestamp, nonce, .. } = self;
        let (method, target) = (message.method, message.target);
        let mut text = format!("{method}\n{target}\n{timestamp}\n{nonce}\n");
        for byte in digest(&SHA256, body).as_ref() {
            // Writing to a string does not fail.
            let _written = write!(text, "{byte:02x}");
        }
        text
    }
}

fn once<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    reason: &'static str,
) -> Result<&'a str, &'static str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| reason),
        _ => Err(reason),
    }
}

/// Digits without a sign or leading zeros, so that a number is written in one way.
fn seconds(text: &str) -> Option<u64> {
    let good = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    (good && text.len() <= TIMESTAMP_DIGITS).then(|| text.parse().ok()).flatten()
}

fn hex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::super::key::Verifier;
    use super::super::vectors::{self, Vector};
    use super::*;
    use http::{HeaderValue, Method};

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    const GOOD: [(&str, &str); 4] = [
        ("x-api-key", "partner-1"),
        ("x-timestamp", "1700000000"),
        ("x-nonce", "0123456789abcdef"),
        ("x-signature", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"),
    ];

    #[test]
    fn the_documented_vectors_hold() {
        let key = Verifier::shared(vectors::SECRET).unwrap();
        for Vector { method, target, body, text, signature } in vectors::HEADERS {
            let fields = headers(&[GOOD[0], GOOD[1], GOOD[2], ("x-signature", signature)]);
            let signed = Signed::of(&fields).unwrap().unwrap();
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let message = Message { method: &method, target, headers: &fields, scheme: "https" };
            assert_eq!(signed.text(&message, body.as_bytes()), text);
            assert!(key.verifies(text.as_bytes(), &signed.signature), "{method} {target}");
        }
    }

    #[test]
    fn a_request_without_a_signature_has_no_credential_of_this_kind() {
        assert!(Signed::of(&headers(&GOOD[..3])).unwrap().is_none());
    }

    #[test]
    fn a_field_that_is_missing_or_there_twice_is_refused() {
        for (index, field) in GOOD.into_iter().enumerate() {
            let mut twice = GOOD.to_vec();
            twice.push(field);
            assert!(Signed::of(&headers(&twice)).is_err(), "{index} twice");
            let mut without = GOOD.to_vec();
            without.remove(index);
            assert!(index == 3 || Signed::of(&headers(&without)).is_err(), "without {index}");
        }
    }

    #[test]
    fn a_value_is_written_in_one_way() {
        for (index, bad) in [
            (1, "01700000000"),
            (1, "+1700000000"),
            (1, "1700000000.0"),
            (1, "1700000000 "),
            (1, "99999999999999999999"),
            (1, ""),
            (2, "short"),
            (2, "0123456789abcde\t"),
            (2, "0123456789abcde f"),
            (2, &"a".repeat(129)),
            (3, "00112233445566778899AABBCCDDEEFF00112233445566778899AABBCCDDEEFF"),
            (3, "00112233445566778899aabbccddeeff00112233445566778899aabbccddee"),
            (3, "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff00"),
            (3, "zz112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"),
            (3, ""),
        ] {
            let mut fields = GOOD.to_vec();
            fields[index].1 = bad;
            assert!(Signed::of(&headers(&fields)).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_part_of_a_request_changes_what_is_signed() {
        let fields = headers(&GOOD);
        let signed = Signed::of(&fields).unwrap().unwrap();
        let text = |method: &Method, target, signed: Signed<'_>, body: &[u8]| {
            signed.text(&Message { method, target, headers: &fields, scheme: "https" }, body)
        };
        let first = text(&Method::GET, "/a?b", signed, b"");
        for other in [
            text(&Method::PUT, "/a?b", signed, b""),
            text(&Method::GET, "/a?b=", signed, b""),
            text(&Method::GET, "/a?%62", signed, b""),
            text(&Method::GET, "/A?b", signed, b""),
            text(&Method::GET, "/a?b", Signed { timestamp: 1, ..signed }, b""),
            text(&Method::GET, "/a?b", Signed { nonce: "1123456789abcdef", ..signed }, b""),
            text(&Method::GET, "/a?b", signed, b"\n"),
        ] {
            assert_ne!(other, first);
        }
    }
}
