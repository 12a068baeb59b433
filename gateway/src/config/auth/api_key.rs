//! `auth.NAME.api_key`: where callers show their keys, what those look like, and who knows them.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::HeaderName;
use http::header::AUTHORIZATION;
use serde::Deserialize;

use super::place::{CredentialPlace, RawPlace, place};
use crate::base::api_key;
use crate::config::at::At;
use crate::config::forms::OneOrList;
use crate::config::routes::header_name;
use crate::config::tree::shorten;
use crate::config::value;

const HEADER: HeaderName = HeaderName::from_static("x-api-key");
/// Places of one credential.
const PLACES_MAX: usize = 8;
/// Keys that a worker remembers.
const REMEMBER: usize = 10_000;
const REMEMBER_MAX: u64 = 1_000_000;
const STALE_FOR: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24);

/// Callers by API keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Where a key is, by precedence.
    pub places: Vec<CredentialPlace>,
    /// What keys begin with.
    pub prefix: String,
    /// Whether services get requests without the key.
    pub strip: bool,
    /// How many keys each worker remembers.
    pub remember: usize,
    /// Who knows the keys.
    pub registry: KeyRegistry,
    /// How long remembered keys go on while Redis is out of reach.
    pub stale_for: Duration,
}

/// Who knows the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRegistry {
    /// This gateway alone.
    #[default]
    Embedded,
    /// All gateways that share a Redis.
    Redis,
}

/// As typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawApiKey {
    header: Option<String>,
    key: Option<OneOrList<RawPlace>>,
    prefix: Option<String>,
    strip: Option<bool>,
    remember: Option<u64>,
    pub(super) registry: KeyRegistry,
    stale_for: Option<String>,
}

pub(super) fn api_key(raw: &RawApiKey, at: At<'_>) -> Option<ApiKey> {
    let prefix = raw.prefix.clone().unwrap_or_else(|| api_key::PREFIX.to_owned());
    if !api_key::is_prefix(&prefix) {
        at.key("prefix").error_with_help(
            format!("`{}` is no prefix of keys", shorten(&prefix)),
            format!(
                "write small letters and digits with single underscores between, at most {} bytes, \
                 such as {}",
                api_key::PREFIX_MAX_BYTES,
                api_key::PREFIX
            ),
        );
    }
    let remember = match raw.remember {
        Some(remember) => value::count(remember, 1..=REMEMBER_MAX, at.key("remember"))?,
        None => REMEMBER,
    };
    let places = places(raw, at)?;
    let stale_for = match &raw.stale_for {
        Some(text) => value::interval(text, STALE_FOR, at.key("stale_for"))?,
        // Whoever wants keys to outlive Redis gives up that a revoked one does not.
        None => Duration::ZERO,
    };
    let (strip, registry) = (raw.strip.unwrap_or(true), raw.registry);
    Some(ApiKey { places, prefix, strip, remember, registry, stale_for })
}

fn places(raw: &RawApiKey, at: At<'_>) -> Option<Vec<CredentialPlace>> {
    let (header, key) = (&raw.header, &raw.key);
    let places: Vec<CredentialPlace> = match (header, key) {
        (Some(_), Some(_)) => {
            let help = "remove `header`, and write {header: NAME} below `key`";
            at.key("header").on_key().error_with_help("`header` and `key` say the same", help);
            return None;
        }
        (Some(name), None) => {
            let name = header_name(name, at.key("header"))?;
            let scheme = (name == AUTHORIZATION).then(|| "ApiKey".to_owned());
            vec![CredentialPlace::Header(name, scheme)]
        }
        (None, Some(key)) => {
            let places = key.each(at.key("key")).map(|(raw, at)| place(raw, at));
            places.collect::<Option<_>>()?
        }
        (None, None) => vec![CredentialPlace::Header(HEADER, None)],
    };
    if places.is_empty() || places.len() > PLACES_MAX {
        let message = format!("a key has {} places", places.len());
        at.key("key").on_key().error_with_help(message, format!("name 1 to {PLACES_MAX}"));
    }
    Some(places)
}
