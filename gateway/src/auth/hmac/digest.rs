//! `Content-Digest` (RFC 9530): whether a body is the one that was signed. Every digest that is known here must fit,
//! and there must be one.

use aws_lc_rs::digest::{Algorithm, SHA256, SHA512, digest};
use http::{HeaderMap, HeaderName};
use sfv::{BareItem, ListEntry};
use subtle::ConstantTimeEq as _;

use super::fields::{combined, dictionary};

pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

const ALGORITHMS: [(&str, &Algorithm); 2] = [("sha-256", &SHA256), ("sha-512", &SHA512)];

/// Says what is wrong unless the field `Content-Digest` fits `body`.
pub(super) fn verify(headers: &HeaderMap, body: &[u8]) -> Result<(), &'static str> {
    let text = combined(headers, &CONTENT_DIGEST).ok_or("Content-Digest is missing")?;
    let digests = dictionary(&text).ok_or("Content-Digest is no list of digests")?;
    let mut known = 0;
    for (name, algorithm) in ALGORITHMS {
        let Some(entry) = digests.get(name) else { continue };
        let ListEntry::Item(item) = entry else {
            return Err("Content-Digest is no list of digests");
        };
        let BareItem::ByteSequence(wanted) = &item.bare_item else {
            return Err("Content-Digest is no list of digests");
        };
        if !bool::from(digest(algorithm, body).as_ref().ct_eq(wanted)) {
            return Err("the body has another digest than Content-Digest says");
        }
        known += 1;
    }
    if known == 0 { Err("Content-Digest has neither sha-256 nor sha-512") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    /// The digests of `{"hello": "world"}` in RFC 9530, appendix B.
    const BODY: &[u8] = b"{\"hello\": \"world\"}";
    const SHA_256: &str = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";
    const SHA_512: &str = "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+\
        AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";

    fn verified(values: &[&str], body: &[u8]) -> Result<(), &'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_DIGEST, HeaderValue::from_str(value).unwrap());
        }
        verify(&headers, body)
    }

    #[test]
    fn digests_of_rfc_9530_fit_their_body() {
        assert_eq!(verified(&[SHA_256], BODY), Ok(()));
        assert_eq!(verified(&[SHA_512], BODY), Ok(()));
        assert_eq!(verified(&[SHA_256, SHA_512], BODY), Ok(()));
        assert_eq!(verified(&[SHA_256, "unixsum=:AAA=:"], BODY), Ok(()));
    }

    #[test]
    fn one_digest_that_does_not_fit_is_one_too_many() {
        assert!(verified(&[SHA_256], b"").is_err());
        let wrong = "sha-512=:AAAA:";
        assert!(verified(&[SHA_256, wrong], BODY).is_err(), "truncated");
        assert!(verified(&["sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE="], BODY).is_err());
        assert!(verified(&["sha-256"], BODY).is_err());
        assert!(verified(&["sha-256=(:AAAA:)"], BODY).is_err());
        assert!(verified(&[], BODY).is_err());
        assert!(verified(&["unixsum=:AAA=:"], BODY).is_err());
        assert!(
            verified(&["SHA-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"], BODY).is_err()
        );
        assert!(verified(&[wrong, SHA_512], BODY).is_err(), "the same label twice");
    }
}
