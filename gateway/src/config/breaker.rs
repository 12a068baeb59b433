//! `breaker`: when a service that fails is left alone, and what is answered meanwhile.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;

use super::Share;
use super::at::At;
use super::raw::Named;
use super::retry::{FailureSet, failures};
use super::tree::shorten;
use super::value::{count, duration, interval, share, within_u32};

/// Failures in a row, and probes at once.
const COUNT_MAX: u64 = 10_000;
const BODY_BYTES_MAX: usize = 64 << 10;
const WINDOWS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const MIN_REQUESTS_MAX: u64 = 1_000_000;

/// When a service that fails is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row that open it; `None` for however many.
    pub failures: Option<u32>,
    /// What share of failures opens it; `None` for whatever share.
    pub share: Option<FailureShare>,
    /// How long it stays open.
    pub open_for: Duration,
    /// Requests that it lets through after that, all of which have to pass for it to close.
    pub half_open: u32,
    /// What counts as a failure.
    pub on: FailureSet,
    /// Whether there is one for the service as a whole, counting requests after their retries.
    pub of_upstream: bool,
    /// Whether there is one for each endpoint, counting what is sent to it.
    pub of_endpoints: bool,
    /// What is answered while that of the service is open; `None` for 503.
    pub fallback: Option<Fallback>,
}

/// Failures among the requests of a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureShare {
    /// That is too much.
    pub share: Share,
    /// Of the requests that ended within this time.
    pub window: Duration,
    /// Fewer say nothing.
    pub min_requests: u32,
}

/// An answer that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// Its status.
    pub status: StatusCode,
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Default for Breaker {
    fn default() -> Self {
        let on = FailureSet {
            connect_failure: true,
            reset: true,
            timeout: true,
            statuses: vec![502, 503, 504],
        };
        Self {
            failures: Some(5),
            share: None,
            open_for: Duration::from_secs(30),
            half_open: 1,
            on,
            of_upstream: true,
            of_endpoints: false,
            fallback: None,
        }
    }
}

/// `breaker` as typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawBreaker {
    /// Default: 5, or any number where `failure_share` is given.
    failures: Option<u64>,
    /// Default: any.
    failure_share: Option<String>,
    /// Default: 10s.
    window: Option<String>,
    /// Default: 20.
    min_requests: Option<u64>,
    /// Default: 30s.
    open_for: Option<String>,
    /// Default: 1.
    half_open: Option<u64>,
    /// Default: what a service that is down does.
    on: Option<Vec<String>>,
    per: RawPer,
    /// Default: 503.
    fallback: Option<RawFallback>,
}

/// What has a breaker of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawPer {
    #[default]
    Upstream,
    Endpoint,
    Both,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFallback {
    #[serde(default = "ok")]
    status: u64,
    #[serde(default)]
    headers: Named<String>,
    #[serde(default)]
    body: String,
}

fn ok() -> u64 {
    200
}

pub(super) fn breaker(raw: &RawBreaker, at: At<'_>) -> Breaker {
    let default = Breaker::default();
    let number = |raw: Option<u64>, default, key| {
        raw.map_or(Some(default), |raw| within_u32(raw, 1..=COUNT_MAX, at.key(key)))
    };
    let open_for = raw.open_for.as_ref().map(|text| duration(text, at.key("open_for")));
    let in_a_row = number(raw.failures, 5, "failures").unwrap_or_default();
    let any_number = raw.failures.is_none() && raw.failure_share.is_some();
    Breaker {
        failures: (!any_number).then_some(in_a_row),
        share: failure_share(raw, at),
        open_for: open_for.unwrap_or(Some(default.open_for)).unwrap_or_default(),
        half_open: number(raw.half_open, default.half_open, "half_open").unwrap_or_default(),
        on: raw.on.as_ref().map_or(default.on, |on| failures(on, at.key("on"))),
        of_upstream: raw.per != RawPer::Endpoint,
        of_endpoints: raw.per != RawPer::Upstream,
        fallback: raw.fallback.as_ref().map(|raw| fallback(raw, at.key("fallback"))),
    }
}

fn failure_share(raw: &RawBreaker, at: At<'_>) -> Option<FailureShare> {
    let Some(text) = &raw.failure_share else {
        let given =
            [("window", raw.window.is_some()), ("min_requests", raw.min_requests.is_some())];
        for (key, _) in given.into_iter().filter(|(_, given)| *given) {
            let message = format!("`{key}` means nothing without `failure_share`");
            at.key(key).on_key().error_with_help(message, "add `failure_share: 50%`, or remove it");
        }
        return None;
    };
    let share = share(text, Share::per_million(1)..=Share::WHOLE, at.key("failure_share"));
    let window = raw.window.as_deref().unwrap_or("10s");
    let window = interval(window, WINDOWS, at.key("window"));
    let min_requests =
        within_u32(raw.min_requests.unwrap_or(20), 1..=MIN_REQUESTS_MAX, at.key("min_requests"));
    Some(FailureShare { share: share?, window: window?, min_requests: min_requests? })
}

fn fallback(raw: &RawFallback, at: At<'_>) -> Fallback {
    let status = count(raw.status, 200..=599, at.key("status")).unwrap_or_default();
    let status = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    if raw.body.len() > BODY_BYTES_MAX {
        at.key("body").error_with_help(
            format!("the body has {} bytes", raw.body.len()),
            format!("write at most {BODY_BYTES_MAX}"),
        );
    }
    let mut headers = HeaderMap::new();
    for (index, (name, value)) in raw.headers.0.iter().enumerate() {
        let at = at.key("headers").entry(index);
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            (Ok(name), _) if is_framing(&name) => at
                .on_key()
                .error_with_help(format!("the gateway itself sets `{name}`"), "remove it"),
            (Ok(name), Ok(value)) => drop(headers.append(name, value)),
            (Err(_), _) => at.on_key().error_with_help(
                format!("`{}` is no name of a header field", shorten(name)),
                "write one such as content-type",
            ),
            (_, Err(_)) => at.error_with_help(
                format!("`{}` cannot be in a header field", shorten(value)),
                "write visible characters and spaces",
            ),
        }
    }
    let body = Bytes::copy_from_slice(raw.body.as_bytes());
    Fallback { status: status.unwrap_or_default(), headers, body }
}

/// What says where a message ends, or is of one connection.
fn is_framing(name: &HeaderName) -> bool {
    use http::header::{CONNECTION, CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING, UPGRADE};
    [CONNECTION, CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(name)
}
