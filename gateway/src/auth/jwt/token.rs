//! A token as it came: three parts, of which only the header is understood before the signature has been verified.
//! Takes what RFC 7515 says a compact serialization is and nothing beside it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use crate::auth::json;

/// A token whose signature has not been verified.
pub(super) struct Token<'t> {
    pub(super) algorithm: Algorithm,
    /// The key's name, to be compared with names that are known and for nothing else.
    pub(super) key_id: Option<String>,
    /// In lower case, without `application/`.
    token_type: Option<String>,
    /// What the signature is over.
    pub(super) signed: &'t [u8],
    pub(super) signature: Vec<u8>,
    claims: &'t [u8],
}

impl<'t> Token<'t> {
    /// Of at most `max_bytes`. `jwk`, `jku`, `x5c`, `x5u` and whatever else a header may say is not looked at: keys
    /// come from the configuration alone.
    pub(super) fn parse(text: &'t [u8], max_bytes: usize) -> Result<Self, &'static str> {
        if text.len() > max_bytes {
            return Err("the token is too long");
        }
        let mut parts = text.split(|byte| *byte == b'.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("the token has not three parts");
        };
        if signature.is_empty() {
            return Err("the token is not signed");
        }
        let signed = text.get(..header.len() + 1 + claims.len()).unwrap_or_default();
        let bytes = decode(header).ok_or("the token's header is no base64url")?;
        let header = json::object(&bytes).ok_or("the token's header is no plain JSON object")?;
        // Extensions that must be understood: none is. Payloads that are not encoded, or compressed, are no claims.
        if ["crit", "b64", "zip", "enc"].iter().any(|name| header.contains_key(*name)) {
            return Err("the token's header asks for more than is understood here");
        }
        let algorithm = match header.get("alg") {
            Some(Value::String(name)) => Algorithm::named(name),
            _ => None,
        };
        Ok(Self {
            algorithm: algorithm.ok_or("the token's algorithm is none that is taken")?,
            key_id: text_of(&header, "kid")?.map(str::to_owned),
            token_type: text_of(&header, "typ")?.map(short_type),
            signed,
            signature: decode(signature).ok_or("the token's signature is no base64url")?,
            claims,
        })
    }

    /// Whether it says that it is of this type.
    pub(super) fn is_of(&self, token_type: &str) -> bool {
        self.token_type.as_deref() == Some(token_type)
    }

    /// What it says. Only for a token whose signature has been verified.
    pub(super) fn claims(&self) -> Result<Map<String, Value>, &'static str> {
        let bytes = decode(self.claims).ok_or("the token's claims are no base64url")?;
        json::object(&bytes).ok_or("the token's claims are no plain JSON object")
    }
}

/// Canonical base64url without padding: each sequence of bytes has one spelling.
pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

fn text_of<'h>(
    header: &'h Map<String, Value>,
    name: &str,
) -> Result<Option<&'h str>, &'static str> {
    match header.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err("the token's header has a member of the wrong type"),
    }
}

fn short_type(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    lower.strip_prefix("application/").unwrap_or(&lower).to_owned()
}
