//! `auth.NAME.introspection`: tokens that only their issuer understands, which is asked about them (RFC 7662).

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use serde::Deserialize;

use super::claims::{Audience, ClaimRules, RawIdentityClaims, RawRules, rules};
use super::jwt::{TOKEN_BYTES, places};
use super::place::{CredentialPlace, RawPlace};
use super::private_url::private_url;
use crate::config::SecretSource;
use crate::config::at::At;
use crate::config::forms::OneOrList;
use crate::config::secret::{RawSecret, secret};
use crate::config::value::{count, file_path, interval, size, within_u32};

const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(60);
const CACHES: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(86_400);
/// What an issuer says no to may be good a moment later, when it has been told everywhere.
const INACTIVE_CACHES: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(300);
const PAUSES: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
/// Answers that are kept: about 2 KiB each.
const REMEMBERED_MAX: u64 = 1 << 20;
const CALLS_MAX: u64 = 1024;
const FAILURES_MAX: u64 = 10_000;

/// Tokens that an issuer is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introspection {
    /// https, or http on this host.
    pub url: Uri,
    /// PEM file of the authorities that are trusted; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// How the gateway proves who it is.
    pub client: IntrospectionClient,
    /// For an answer, and for a request that waits for one.
    pub timeout: Duration,
    /// Calls at the same time, in all workers together.
    pub calls: usize,
    /// How long an answer holds, unless the token expires before.
    pub cache: Duration,
    /// How long a token is remembered that is not active.
    pub inactive_cache: Duration,
    /// Answers that are kept in all, and callers that each worker remembers.
    pub remember: usize,
    /// Failures in a row after which the issuer is left alone.
    pub failures: u32,
    /// For how long it is.
    pub pause: Duration,
    /// What answers must say, and who calls then.
    pub rules: ClaimRules,
    /// Where tokens are, by precedence. At least one.
    pub places: Vec<CredentialPlace>,
    /// Whether services get requests without the token.
    pub strip: bool,
    /// Bytes of a token.
    pub token_bytes: usize,
}

/// How the gateway proves who it is (RFC 6749, section 2.3.1; RFC 7662, section 2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntrospectionClient {
    /// `client_secret_basic`: id and secret in the field `Authorization`.
    Basic(String, SecretSource),
    /// `client_secret_post`: id and secret in the form.
    Post(String, SecretSource),
    /// A token in the field `Authorization`.
    Bearer(SecretSource),
}

/// As typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawIntrospection {
    url: String,
    /// Default: the system's authorities.
    #[serde(default)]
    ca: Option<String>,
    /// This and `client_secret`, or `bearer`.
    #[serde(default)]
    client_id: Option<String>,
    #[serde(default)]
    client_secret: Option<RawSecret>,
    #[serde(default)]
    client_auth: Option<RawClientAuth>,
    #[serde(default)]
    bearer: Option<RawSecret>,
    #[serde(default)]
    timeout: Option<String>,
    #[serde(default)]
    calls: Option<u64>,
    #[serde(default)]
    cache: Option<String>,
    #[serde(default)]
    inactive_cache: Option<String>,
    #[serde(default)]
    remember: Option<u64>,
    #[serde(default)]
    failures: Option<u64>,
    #[serde(default)]
    pause: Option<String>,
    /// Default: any.
    #[serde(default)]
    issuer: Option<OneOrList<String>>,
    /// Default: any.
    #[serde(default)]
    audience: Option<OneOrList<String>>,
    #[serde(default)]
    leeway: Option<String>,
    #[serde(default)]
    required_claims: Option<OneOrList<String>>,
    #[serde(default)]
    claims: RawIdentityClaims,
    /// Default: `Authorization: Bearer`.
    #[serde(default)]
    token: Option<OneOrList<RawPlace>>,
    #[serde(default)]
    strip: bool,
    #[serde(default)]
    token_bytes: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawClientAuth {
    Basic,
    Post,
}

pub(super) fn introspection(
    raw: &RawIntrospection,
    folder: &Path,
    at: At<'_>,
) -> Option<Introspection> {
    let time = |text: &Option<String>, default, bounds, key| {
        interval(text.as_deref().unwrap_or(default), bounds, at.key(key))
    };
    let url = private_url(&raw.url, "https://idp.example.com/introspect", at.key("url"));
    let ca = raw.ca.as_ref().map(|ca| file_path(ca, folder, at.key("ca")));
    let client = client(raw, folder, at);
    let timeout = time(&raw.timeout, "2s", TIMEOUTS, "timeout");
    let cache = time(&raw.cache, "1m", CACHES, "cache");
    let inactive_cache = time(&raw.inactive_cache, "5s", INACTIVE_CACHES, "inactive_cache");
    let pause = time(&raw.pause, "5s", PAUSES, "pause");
    let calls = count(raw.calls.unwrap_or(32), 1..=CALLS_MAX, at.key("calls"));
    let remember = count(raw.remember.unwrap_or(10_000), 1..=REMEMBERED_MAX, at.key("remember"));
    let failures = within_u32(raw.failures.unwrap_or(5), 1..=FAILURES_MAX, at.key("failures"));
    let token_bytes = raw.token_bytes.as_deref().unwrap_or("8KiB");
    let token_bytes = size(token_bytes, TOKEN_BYTES, at.key("token_bytes"));
    let places = places(raw.token.as_ref(), at.key("token"));
    let rules = claims(raw, at);
    Some(Introspection {
        url: url?,
        ca: ca.flatten(),
        client: client?,
        timeout: timeout?,
        calls: calls?,
        cache: cache?,
        inactive_cache: inactive_cache?,
        remember: remember?,
        failures: failures?,
        pause: pause?,
        rules: rules?,
        places,
        strip: raw.strip,
        token_bytes: token_bytes.and_then(|bytes| usize::try_from(bytes).ok())?,
    })
}

/// The issuer knows who asks, so that it may say for whom the token is as it likes.
fn claims(raw: &RawIntrospection, at: At<'_>) -> Option<ClaimRules> {
    let nothing = OneOrList::List(Vec::new());
    let typed = RawRules {
        issuer: raw.issuer.as_ref(),
        audience: raw.audience.as_ref(),
        leeway: raw.leeway.as_deref().unwrap_or("30s"),
        required: raw.required_claims.as_ref().unwrap_or(&nothing),
        claims: &raw.claims,
    };
    let rules = rules(&typed, at)?;
    Some(match raw.audience {
        Some(_) => rules,
        None => ClaimRules { audience: Audience::Any, ..rules },
    })
}

fn client(raw: &RawIntrospection, folder: &Path, at: At<'_>) -> Option<IntrospectionClient> {
    let RawIntrospection { client_id, client_secret, client_auth, bearer, .. } = raw;
    match (client_id, client_secret, bearer) {
        (Some(id), Some(raw), None) => {
            let source = secret(raw, folder, at.key("client_secret"))?;
            if id.is_empty() || !id.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
                let help = "write the id that the issuer knows the gateway by";
                at.key("client_id").error_with_help("this is no id of a client", help);
            }
            Some(match client_auth {
                Some(RawClientAuth::Post) => IntrospectionClient::Post(id.clone(), source),
                _ => IntrospectionClient::Basic(id.clone(), source),
            })
        }
        (None, None, Some(raw)) => {
            if client_auth.is_some() {
                let message = "`client_auth` is about `client_id` and `client_secret`";
                at.key("client_auth").on_key().error_with_help(message, "remove it");
            }
            secret(raw, folder, at.key("bearer")).map(IntrospectionClient::Bearer)
        }
        _ => {
            at.on_key().error_with_help(
                "the issuer answers only those who say who they are",
                "write `client_id: ID` and `client_secret: {file: FILE}`, or `bearer: {file: FILE}`",
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::AuthKind;
    use super::*;
    use crate::config::{Errors, parse};

    fn with(section: &str) -> Result<Introspection, Errors> {
        let text = format!(
            "listen: [{{address: 127.0.0.1:80}}]\nauth: {{x: {{introspection: {section}}}}}"
        );
        parse("/etc/gateway.yaml", &text).map(|config| match &config.auth[0].kind {
            AuthKind::Introspection(introspection) => (**introspection).clone(),
            other => panic!("{other:?}"),
        })
    }

    fn bearer(rest: &str) -> String {
        format!("{{url: 'https://idp/i', bearer: {{env: T}}, {rest}}}")
    }

    #[test]
    fn the_shortest_section_has_safe_defaults() {
        let introspection =
            with("{url: 'https://idp.example.com/i', client_id: gw, client_secret: {env: SECRET}}");
        let introspection = introspection.unwrap();
        let secret = SecretSource::Env("SECRET".to_owned());
        assert_eq!(introspection.client, IntrospectionClient::Basic("gw".to_owned(), secret));
        let Introspection { timeout, cache, inactive_cache, pause, .. } = introspection;
        let seconds = [timeout, cache, inactive_cache, pause].map(|time| time.as_secs());
        assert_eq!(seconds, [2, 60, 5, 5]);
        assert_eq!((introspection.calls, introspection.failures), (32, 5));
        assert_eq!(introspection.rules.audience, Audience::Any);
        assert!(introspection.rules.required.is_empty());
        assert_eq!(introspection.places, [CredentialPlace::bearer()]);
    }

    #[test]
    fn the_gateway_proves_who_it_is_in_three_ways() {
        let secret = SecretSource::File("/etc/s".into());
        let post =
            "{url: 'https://idp/i', client_id: gw, client_auth: post, client_secret: {file: s}}";
        let client = IntrospectionClient::Post("gw".to_owned(), secret);
        assert_eq!(with(post).unwrap().client, client);
        let source = SecretSource::Env("T".to_owned());
        assert_eq!(with(&bearer("")).unwrap().client, IntrospectionClient::Bearer(source));
    }

    #[test]
    fn mistakes_are_named() {
        for (section, message) in [
            ("{url: 'https://idp/i'}".to_owned(), "only those who say who they are"),
            (bearer("client_id: a"), "only those who say who they are"),
            (bearer("client_auth: post"), "`client_auth` is about `client_id`"),
            (
                "{url: 'https://i/', client_id: a, client_secret: b}".to_owned(),
                "does not belong into",
            ),
            ("{url: 'http://idp/i', bearer: {env: T}}".to_owned(), "write https://idp/i"),
            ("{bearer: {env: T}}".to_owned(), "`url`"),
            (bearer("timeout: 1ms"), "write 50ms to 1m"),
            (bearer("calls: 0"), "write 1 to 1024"),
            (bearer("cache: 2d"), "write 0s to 1day"),
            (bearer("inactive_cache: 1h"), "write 0s to 5m"),
            (bearer("remember: 0"), "write 1 to 1048576"),
            (bearer("failures: 0"), "write 1 to 10000"),
            (bearer("pause: 2h"), "write 100ms to 1h"),
            (bearer("token_bytes: 1"), "write 256 to 65536 bytes"),
            (bearer("cach: 1s"), "did you mean `cache`?"),
        ] {
            let errors = with(&section).expect_err(&section).to_string();
            assert!(errors.contains(message) && errors.contains(":2:"), "{section}: {errors}");
        }
    }
}
