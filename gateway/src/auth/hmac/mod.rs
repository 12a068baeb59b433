//! Signed requests.

#![allow(dead_code)]

mod digest;
mod fields;
mod headers;
mod key;
mod message;
mod nonces;
mod query;
#[cfg(test)]
mod vectors;

use http::{HeaderMap, Method};

/// Bytes of a nonce: enough that nobody guesses one, and no more than a name needs.
const NONCE_BYTES: std::ops::RangeInclusive<usize> = 16..=128;

/// What of a request signatures are over.
#[derive(Clone, Copy, Debug)]
struct Message<'a> {
    method: &'a Method,
    /// Path and query as the client has sent them.
    target: &'a str,
    headers: &'a HeaderMap,
    /// `https` or `http`.
    scheme: &'static str,
}

fn nonce_is_good(nonce: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    NONCE_BYTES.contains(&nonce.len()) && nonce.bytes().all(good)
}
