//! `auth.NAME.jwt`: signed tokens, which are verified here (RFC 7519). Looks at no file and at no issuer.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use serde::Deserialize;

use super::algorithm::JwtAlgorithm;
use super::claims::{ClaimRules, RawIdentityClaims, RawRules, rules};
use super::place::{CredentialPlace, RawPlace, place};
use super::private_url::private_url;
use crate::config::SecretSource;
use crate::config::at::At;
use crate::config::diagnostic::suggestion;
use crate::config::forms::{OneOrList, Section, TextOr};
use crate::config::secret::{RawSecret, secret};
use crate::config::tree::shorten;
use crate::config::value::{count, file_path, interval, size};

const REFRESHES: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(86_400);
const COOLDOWNS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
/// No token of a person is longer, and no head could carry it (unit: bytes).
pub(super) const TOKEN_BYTES: RangeInclusive<u64> = 256..=64 << 10;
/// Tokens that one worker remembers: about 2 KiB each.
const REMEMBERED_MAX: u64 = 1 << 20;
const PLACES_MAX: usize = 8;

/// Signed tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwt {
    /// Where the keys are.
    pub keys: JwtKeys,
    /// The only algorithms; empty for all that a key is good for.
    pub algorithms: Vec<JwtAlgorithm>,
    /// What tokens must say, and who calls then.
    pub rules: ClaimRules,
    /// Where tokens are, by precedence. At least one.
    pub places: Vec<CredentialPlace>,
    /// The type that tokens must name in `typ`, in lower case; `None` for whichever.
    pub token_type: Option<String>,
    /// Whether services get requests without the token.
    pub strip: bool,
    /// Bytes of a token.
    pub token_bytes: usize,
    /// The file of tokens that hold no longer.
    pub revoked: Option<PathBuf>,
    /// Verified tokens that one worker remembers until they expire.
    pub remember: usize,
}

/// Where the keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtKeys {
    /// An issuer publishes them.
    Url(JwksUrl),
    /// A file as an issuer would publish it.
    File(PathBuf),
    /// A PEM file of public keys or certificates.
    Pem(PathBuf),
    /// The only key is a secret that the issuer has, too.
    Secret(SecretSource),
}

/// Where an issuer publishes its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksUrl {
    /// https, or http on this host.
    pub url: Uri,
    /// PEM file of the authorities that are trusted; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// How often it is looked at.
    pub refresh: Duration,
    /// The pause between two looks that tokens of unknown keys cause, and after one that failed.
    pub cooldown: Duration,
    /// For an answer, and for a request that waits for it.
    pub timeout: Duration,
}

/// `jwt` as typed.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawJwt {
    jwks: Option<TextOr<RawJwks>>,
    jwks_file: Option<String>,
    pem: Option<String>,
    secret: Option<RawSecret>,
    /// Default: all that a key is good for.
    algorithms: Option<OneOrList<String>>,
    /// Default: any.
    issuer: Option<OneOrList<String>>,
    /// Default: tokens that are for nobody in particular.
    audience: Option<OneOrList<String>>,
    leeway: String,
    required_claims: OneOrList<String>,
    claims: RawIdentityClaims,
    /// Default: `Authorization: Bearer`.
    token: Option<OneOrList<RawPlace>>,
    /// Default: any.
    token_type: Option<String>,
    strip: bool,
    token_bytes: String,
    /// Default: none.
    revoked: Option<String>,
    remember: u64,
}

impl Default for RawJwt {
    fn default() -> Self {
        Self {
            jwks: None,
            jwks_file: None,
            pem: None,
            secret: None,
            algorithms: None,
            issuer: None,
            audience: None,
            leeway: "30s".to_owned(),
            required_claims: OneOrList::One("exp".to_owned()),
            claims: RawIdentityClaims::default(),
            token: None,
            token_type: None,
            strip: false,
            token_bytes: "8KiB".to_owned(),
            revoked: None,
            remember: 10_000,
        }
    }
}

/// Where an issuer publishes its keys, and how it is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawJwks {
    url: String,
    /// Default: the system's authorities.
    #[serde(default)]
    ca: Option<String>,
    #[serde(default)]
    refresh: Option<String>,
    #[serde(default)]
    cooldown: Option<String>,
    #[serde(default)]
    timeout: Option<String>,
}

impl Section for RawJwks {
    const EXPECTED: &'static str = "a URL or a section with `url`";
}

pub(super) fn jwt(raw: &RawJwt, folder: &Path, at: At<'_>) -> Option<Jwt> {
    let keys = keys(raw, folder, at);
    let typed = RawRules {
        issuer: raw.issuer.as_ref(),
        audience: raw.audience.as_ref(),
        leeway: &raw.leeway,
        required: &raw.required_claims,
        claims: &raw.claims,
    };
    let rules = rules(&typed, at);
    let places = places(raw.token.as_ref(), at.key("token"));
    let algorithms = algorithms(raw.algorithms.as_ref(), at.key("algorithms"));
    let token_bytes = size(&raw.token_bytes, TOKEN_BYTES, at.key("token_bytes"));
    let remember = count(raw.remember, 0..=REMEMBERED_MAX, at.key("remember"));
    let token_type = raw.token_type.as_ref().and_then(|text| token_type(text, at));
    let revoked = raw.revoked.as_ref().map(|text| file_path(text, folder, at.key("revoked")));
    Some(Jwt {
        keys: keys?,
        algorithms,
        rules: rules?,
        places,
        token_type,
        strip: raw.strip,
        token_bytes: token_bytes.and_then(|bytes| usize::try_from(bytes).ok())?,
        revoked: revoked.flatten(),
        remember: remember?,
    })
}

/// Where bearer tokens are.
pub(super) fn places(raw: Option<&OneOrList<RawPlace>>, at: At<'_>) -> Vec<CredentialPlace> {
    let Some(raw) = raw else { return vec![CredentialPlace::bearer()] };
    let found: Vec<CredentialPlace> = raw.each(at).filter_map(|(raw, at)| place(raw, at)).collect();
    let given = raw.each(at).count();
    if given == 0 || given > PLACES_MAX {
        let help = format!("name 1 to {PLACES_MAX} places, such as {{header: Authorization}}");
        at.on_key().error_with_help(format!("{given} places of tokens are out of bounds"), help);
    }
    found
}

fn keys(raw: &RawJwt, folder: &Path, at: At<'_>) -> Option<JwtKeys> {
    let file = |text: &String, at| file_path(text, folder, at);
    match (&raw.jwks, &raw.jwks_file, &raw.pem, &raw.secret) {
        (Some(jwks), None, None, None) => jwks_url(jwks, folder, at.key("jwks")).map(JwtKeys::Url),
        (None, Some(text), None, None) => file(text, at.key("jwks_file")).map(JwtKeys::File),
        (None, None, Some(text), None) => file(text, at.key("pem")).map(JwtKeys::Pem),
        (None, None, None, Some(raw)) => secret(raw, folder, at.key("secret")).map(JwtKeys::Secret),
        _ => {
            at.on_key().error_with_help(
                "the keys of tokens are in one place",
                "write one of `jwks: URL`, `jwks_file: FILE`, `pem: FILE` and `secret: {file: FILE}`",
            );
            None
        }
    }
}

fn jwks_url(raw: &TextOr<RawJwks>, folder: &Path, at: At<'_>) -> Option<JwksUrl> {
    let example = "https://idp.example.com/keys";
    let (url, section) = match raw {
        TextOr::Text(text) => (private_url(text, example, at), None),
        TextOr::Section(section) => {
            (private_url(&section.url, example, at.key("url")), Some(section))
        }
    };
    let time = |pick: fn(&RawJwks) -> Option<&String>, default, bounds, key| {
        let text = section.and_then(pick).map_or(default, String::as_str);
        interval(text, bounds, at.key(key))
    };
    let ca = section.and_then(|raw| raw.ca.as_ref());
    let ca = ca.map(|ca| file_path(ca, folder, at.key("ca")));
    let refresh = time(|raw| raw.refresh.as_ref(), "5m", REFRESHES, "refresh");
    let cooldown = time(|raw| raw.cooldown.as_ref(), "10s", COOLDOWNS, "cooldown");
    let timeout = time(|raw| raw.timeout.as_ref(), "5s", TIMEOUTS, "timeout");
    Some(JwksUrl {
        url: url?,
        ca: ca.flatten(),
        refresh: refresh?,
        cooldown: cooldown?,
        timeout: timeout?,
    })
}

fn algorithms(raw: Option<&OneOrList<String>>, at: At<'_>) -> Vec<JwtAlgorithm> {
    let mut found = Vec::new();
    for (text, at) in raw.into_iter().flat_map(|raw| raw.each(at)) {
        match JwtAlgorithm::named(text) {
            Some(algorithm) if found.contains(&algorithm) => {
                at.error_with_help(format!("`{text}` is given twice"), "remove one of the two");
            }
            Some(algorithm) => found.push(algorithm),
            None if text.eq_ignore_ascii_case("none") => {
                let help = "remove it: a token that nobody signed says nothing about anybody";
                at.error_with_help("`none` is no signature", help);
            }
            None => {
                let names = JwtAlgorithm::ALL.map(JwtAlgorithm::name);
                let all = format!("write some of {}", names.join(", "));
                let message = format!("`{}` is no algorithm that is taken here", shorten(text));
                at.error_with_help(message, suggestion(text, names).unwrap_or(all));
            }
        }
    }
    if raw.is_some_and(|raw| raw.each(at).next().is_none()) {
        at.on_key().error_with_help("no algorithm is left", "name one, such as ES256");
    }
    found
}

/// Without the prefix that may be left out, and in lower case (RFC 7515, section 4.1.9).
fn token_type(text: &str, at: At<'_>) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let short = lower.strip_prefix("application/").unwrap_or(&lower);
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
    if !short.is_empty() && short.len() <= 128 && short.bytes().all(good) {
        return Some(short.to_owned());
    }
    let message = format!("`{}` is no type of tokens", shorten(text));
    at.key("token_type").error_with_help(message, "write one such as at+jwt");
    None
}

#[cfg(test)]
mod tests {
    use super::super::AuthKind;
    use super::*;
    use crate::config::{Audience, Errors, parse};

    fn with(section: &str) -> Result<Jwt, Errors> {
        let text = format!("listen: [{{address: 127.0.0.1:80}}]\nauth: {{x: {{jwt: {section}}}}}");
        parse("/etc/gateway.yaml", &text).map(|config| match &config.auth[0].kind {
            AuthKind::Jwt(jwt) => (**jwt).clone(),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_shortest_section_has_safe_defaults() {
        let jwt = with("{jwks: 'https://idp.example.com/keys'}").unwrap();
        let JwtKeys::Url(url) = &jwt.keys else { panic!("{:?}", jwt.keys) };
        assert_eq!(url.url, "https://idp.example.com/keys");
        let seconds = [url.refresh, url.cooldown, url.timeout].map(|time| time.as_secs());
        assert_eq!(seconds, [300, 10, 5]);
        assert_eq!(jwt.places, [CredentialPlace::bearer()]);
        assert_eq!(jwt.rules.audience, Audience::Of(Vec::new()));
        assert_eq!((jwt.rules.required.len(), jwt.rules.leeway.as_secs()), (1, 30));
        assert_eq!((jwt.token_bytes, jwt.remember, jwt.revoked), (8192, 10_000, None));
    }

    #[test]
    fn keys_are_in_files_too() {
        let keys = |section: &str| with(section).unwrap().keys;
        assert_eq!(keys("{pem: a.pem}"), JwtKeys::Pem("/etc/a.pem".into()));
        assert_eq!(keys("{jwks_file: a.json}"), JwtKeys::File("/etc/a.json".into()));
        let secret = SecretSource::Env("SECRET".to_owned());
        assert_eq!(keys("{secret: {env: SECRET}}"), JwtKeys::Secret(secret));
        for local in ["http://127.0.0.1:80/k", "http://[::1]/k", "http://localhost:8080/k"] {
            assert!(with(&format!("{{jwks: '{local}'}}")).is_ok(), "{local}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let pem = |rest: &str| format!("{{pem: a.pem, {rest}}}");
        for (section, message) in [
            ("{}".to_owned(), "the keys of tokens are in one place"),
            (pem("jwks: 'https://a/'"), "the keys of tokens are in one place"),
            ("{jwks: 'http://idp.example.com/keys'}".to_owned(), "write https://idp.example.com"),
            ("{jwks: 'http://localhost.evil/k'}".to_owned(), "could say who is calling"),
            ("{jwks: 'https://a:b@idp/keys'}".to_owned(), "has a user in it"),
            ("{jwks: keys.json}".to_owned(), "is no http:// or https:// URL"),
            ("{jwks: {url: 'https://a/', refresh: 1s}}".to_owned(), "write 10s to 1day"),
            ("{jwks: {url: 'https://a/', cooldown: 1ms}}".to_owned(), "write 1s to 1h"),
            ("{jwks: {url: 'https://a/', timeout: 2m}}".to_owned(), "write 100ms to 1m"),
            ("{jwks: {ur: 'https://a/'}}".to_owned(), "did you mean `url`?"),
            ("{secret: hunter2}".to_owned(), "a secret does not belong into this file"),
            (pem("algorithms: none"), "`none` is no signature"),
            (pem("algorithms: ES265"), "did you mean `ES256`?"),
            (pem("algorithms: [ES256, ES256]"), "is given twice"),
            (pem("algorithms: []"), "no algorithm is left"),
            (pem("audience: [a, '*']"), "`*` stands for any audience"),
            (pem("issuer: ['']"), "this is empty"),
            (pem("leeway: 1h"), "write 0s to 10m"),
            (pem("required_claims: a..b"), "is no path to a claim"),
            (pem("claims: {role: a}"), "did you mean `roles`?"),
            (pem("claims: {roles: .a}"), "is no path to a claim"),
            (pem("token: {header: a, cookie: b}"), "a credential is in one place"),
            (pem("token: {cookie: b, scheme: x}"), "a scheme is only in a header field"),
            (pem("token: {header: 'a b'}"), "is no name of a header field"),
            (pem("token: {query: 'a=b'}"), "is no name of a parameter"),
            (pem("token: {cookie: 'a b'}"), "is no name of a cookie"),
            (pem("token: []"), "0 places of tokens are out of bounds"),
            (pem("token_type: 'a b'"), "is no type of tokens"),
            (pem("token_bytes: 1MiB"), "write 256 to 65536 bytes"),
            (pem("remember: 10000000"), "write 0 to 1048576"),
            (pem("revoked: ../a"), "is no path of a file"),
        ] {
            let errors = with(&section).expect_err(&section).to_string();
            assert!(errors.contains(message) && errors.contains(":2:"), "{section}: {errors}");
        }
    }
}
