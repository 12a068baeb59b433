//! `identity.token`: who calls, as a token that services verify by keys which the gateway publishes. The keys
//! themselves are never in the file, and not looked at here.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use http::HeaderName;
use serde::Deserialize;

use super::at::At;
use super::auth::{ClaimPath, texts};
use super::forms::OneOrList;
use super::identity::{CLAIMS_MAX, OFF, claim_path};
use super::secret::{RawSecret, SecretSource, secret};
use super::tree::shorten;
use super::value::interval;
use crate::base::path;

/// Where the keys are published.
const JWKS_PATH: &str = "/.well-known/gateway-identity/jwks.json";
const PATH_BYTES_MAX: usize = 256;
const LIFETIMES: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(3600);
const PREVIOUS_KEYS_MAX: usize = 8;
const ISSUER_BYTES_MAX: usize = 1024;

/// What services are told of callers in a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityToken {
    /// The field that it is in.
    pub header: HeaderName,
    /// What it is signed by.
    pub key: SecretSource,
    /// What services may still, or soon, meet signatures by.
    pub previous_keys: Vec<SecretSource>,
    /// Who says so.
    pub issuer: String,
    /// Who it is for; empty for whoever reads it.
    pub audience: Vec<String>,
    /// How long it holds.
    pub lifetime: Duration,
    /// Verified claims that are passed on, each by the name that it has there.
    pub claims: Vec<(Box<str>, ClaimPath)>,
    /// Where the keys are published; `None`: nowhere.
    pub jwks_path: Option<String>,
}

/// As typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIdentityToken {
    /// Default: `X-Identity-Token`.
    #[serde(default)]
    pub(super) header: Option<String>,
    key: RawSecret,
    #[serde(default)]
    previous_keys: Vec<RawSecret>,
    issuer: String,
    #[serde(default)]
    audience: Option<OneOrList<String>>,
    #[serde(default)]
    lifetime: Option<String>,
    #[serde(default)]
    claims: Option<OneOrList<String>>,
    #[serde(default)]
    jwks_path: Option<String>,
}

/// What is put in `header`; `None` where that or anything else could not be read.
pub(super) fn token(
    raw: &RawIdentityToken,
    header: Option<HeaderName>,
    folder: &Path,
    at: At<'_>,
) -> Option<IdentityToken> {
    let key = secret(&raw.key, folder, at.key("key"));
    let lifetime = raw.lifetime.as_deref().unwrap_or("60s");
    let lifetime = interval(lifetime, LIFETIMES, at.key("lifetime"));
    let audience = raw.audience.as_ref().map(|raw| texts(raw, at.key("audience")));
    let path = raw.jwks_path.as_deref().unwrap_or(JWKS_PATH);
    let jwks_path = (path != OFF).then(|| jwks_path(path, at.key("jwks_path")));
    let previous_keys = previous_keys(&raw.previous_keys, folder, at.key("previous_keys"));
    let claims = claims(raw.claims.as_ref(), at.key("claims"));
    if raw.issuer.is_empty() || raw.issuer.len() > ISSUER_BYTES_MAX {
        let message = format!("an issuer has 1 to {ISSUER_BYTES_MAX} bytes");
        let help = "write what services find in `iss`, such as https://api.example.com";
        at.key("issuer").error_with_help(message, help);
    }
    Some(IdentityToken {
        header: header?,
        key: key?,
        previous_keys,
        issuer: raw.issuer.clone(),
        audience: audience.unwrap_or_default(),
        lifetime: lifetime?,
        claims,
        jwks_path: jwks_path.flatten(),
    })
}

fn previous_keys(raw: &[RawSecret], folder: &Path, at: At<'_>) -> Vec<SecretSource> {
    if raw.len() > PREVIOUS_KEYS_MAX {
        let message = format!("{} previous keys are too many", raw.len());
        let help = format!("keep at most {PREVIOUS_KEYS_MAX}: a key is of use for one lifetime");
        at.on_key().error_with_help(message, help);
    }
    let keys = raw.iter().enumerate();
    keys.filter_map(|(index, raw)| secret(raw, folder, at.item(index))).collect()
}

fn claims(raw: Option<&OneOrList<String>>, at: At<'_>) -> Vec<(Box<str>, ClaimPath)> {
    let typed = raw.into_iter().flat_map(|raw| raw.each(at));
    let claims: Vec<_> = typed
        .filter_map(|(text, at)| Some((text.as_str().into(), claim_path(text, at)?)))
        .collect();
    if claims.len() > CLAIMS_MAX {
        let message = format!("{} claims are too many", claims.len());
        at.on_key().error_with_help(message, format!("name at most {CLAIMS_MAX}"));
    }
    claims
}

/// Requests are compared with it as they came, so it has one spelling.
fn jwks_path(text: &str, at: At<'_>) -> Option<String> {
    let normal = path::Path::of(text);
    let is_good = text.len() <= PATH_BYTES_MAX && text != "/" && !text.contains('?');
    if is_good && normal.is_some_and(|normal| normal.as_str() == text) {
        return Some(text.to_owned());
    }
    at.error_with_help(
        format!("`{}` is no path for keys", shorten(text)),
        format!("write one such as {JWKS_PATH}, or `{OFF}` to publish them elsewhere"),
    );
    None
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Errors, parse};
    use super::*;

    fn with(token: &str) -> Result<Config, Errors> {
        let listen = "listen: [{address: 127.0.0.1:80}]";
        parse("/etc/a.yaml", &format!("{listen}\nidentity: {{token: {token}}}"))
    }

    #[test]
    fn what_is_left_out_has_its_default_and_no_client_says_it() {
        let told = with("{key: {file: a.pem}, issuer: i}").unwrap().told.unwrap();
        let expected = IdentityToken {
            header: HeaderName::from_static("x-identity-token"),
            key: SecretSource::File("/etc/a.pem".into()),
            previous_keys: Vec::new(),
            issuer: "i".to_owned(),
            audience: Vec::new(),
            lifetime: Duration::from_secs(60),
            claims: Vec::new(),
            jwks_path: Some("/.well-known/gateway-identity/jwks.json".to_owned()),
        };
        assert_eq!(told.token, Some(expected));
        let told = with(
            "{key: {env: KEY}, issuer: i, header: X-T, audience: [a, b], lifetime: 1h, \
             claims: email, jwks_path: off, previous_keys: [{file: b.pem}]}",
        );
        let told = told.unwrap().told.unwrap();
        for name in ["x-identity-token", "x-t"] {
            assert!(told.removed.iter().any(|removed| removed == name), "{name}");
        }
        let token = told.token.unwrap();
        assert_eq!(token.audience, ["a", "b"]);
        assert_eq!(token.claims, [("email".into(), ClaimPath::parse("email").unwrap())]);
        assert_eq!(token.previous_keys, [SecretSource::File("/etc/b.pem".into())]);
        assert_eq!((token.jwks_path, token.lifetime), (None, Duration::from_secs(3600)));
    }

    #[test]
    fn mistakes_are_named() {
        let good = |rest: &str| format!("{{key: {{file: a}}, issuer: i, {rest}}}");
        for (section, message) in [
            ("{issuer: i}".to_owned(), "`key`"),
            ("{key: {file: a}}".to_owned(), "`issuer`"),
            ("{key: abc, issuer: i}".to_owned(), "a secret does not belong into this file"),
            ("{key: {file: a}, issuer: ''}".to_owned(), "an issuer has 1 to 1024 bytes"),
            (good("header: X-Roles"), "told two things"),
            (good("header: Authorization"), "for credentials"),
            (good("header: off"), "leave the section out"),
            (good("lifetime: 4s"), "write 5s to 1h"),
            (good("lifetime: 2h"), "write 5s to 1h"),
            (good("audience: ['']"), "this is empty"),
            (good("claims: a..b"), "no path to a claim"),
            (good("jwks_path: jwks"), "no path for keys"),
            (good("jwks_path: /a/../b"), "no path for keys"),
            (good("jwks_path: '/a?b'"), "no path for keys"),
            (good("jwks_path: /%61"), "no path for keys"),
            (good("previous_keys: [abc]"), "a secret does not belong into this file"),
            (good("key_file: a"), "unknown"),
        ] {
            let errors = with(&section).expect_err(&section).to_string();
            assert!(errors.contains(message), "{section}: {errors}");
        }
        let many = format!("previous_keys: [{}]", "{file: a},".repeat(9));
        assert!(with(&good(&many)).unwrap_err().to_string().contains("9 previous keys"));
        let many = format!("claims: [{}]", "a,".repeat(33));
        assert!(with(&good(&many)).unwrap_err().to_string().contains("33 claims are too many"));
    }
}
