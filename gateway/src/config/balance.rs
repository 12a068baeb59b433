//! `upstreams.NAME.balance`, `slow_start`, `panic_threshold` and `ejection`: which endpoint takes a request, and which
//! takes none for a while.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::HeaderName;

use super::Share;
use super::at::At;
use super::diagnostic::suggestion;
use super::forms::TextOr;
use super::raw::{RawBalance, RawEjection, RawHash, RawHashSection, RawUpstream};
use super::tree::shorten;
use super::value::{count, interval, share};

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Among those that may be.
    pub algorithm: Algorithm,
    /// With [`Algorithm::Hash`]: no endpoint has more requests than this share of what is its by weight; `None` for
    /// however many.
    pub bound: Option<Share>,
    /// Time in which an endpoint that came or came back grows to its weight; zero for none.
    pub slow_start: Duration,
    /// When fewer are usable than this share, all are used.
    pub panic_threshold: Share,
    /// When an endpoint takes no requests for a while; `None` for never.
    pub ejection: Option<Ejection>,
}

impl Balance {
    /// Whether so few of the endpoints are usable that all are used.
    pub fn is_panic(&self, usable: usize, of: usize) -> bool {
        self.panic_threshold.compare(usable as u64, of as u64).is_lt()
    }
}

/// How one of several endpoints is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// One after the other.
    RoundRobin,
    /// The one with the fewest requests.
    LeastRequests,
    /// The one with fewer requests of two that are drawn.
    RandomTwo,
    /// The same one for the same key.
    Hash(HashKey),
}

impl Algorithm {
    /// Its name in configuration and status.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastRequests => "least_requests",
            Self::RandomTwo => "random_two",
            Self::Hash(_) => "hash",
        }
    }
}

/// What of a request is its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The first field with this name.
    Header(HeaderName),
    /// The first cookie with this name.
    Cookie(String),
    /// The path without the query.
    Path,
    /// The client's address.
    Client,
    /// The consumer, or who else is known to call.
    Consumer,
}

/// When an endpoint takes no requests for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// After so many failures in a row; at least 1.
    pub failures: u32,
    /// For how long; each time that soon follows for as much longer.
    pub time: Duration,
    /// And no longer than this.
    pub max_time: Duration,
    /// Share of the endpoints that may be ejected at once. The last one never is.
    pub max_ejected: Share,
}

const PERCENT: u32 = 10_000;

impl Default for Balance {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::RoundRobin,
            bound: None,
            slow_start: Duration::ZERO,
            panic_threshold: Share::per_million(50 * PERCENT),
            ejection: Some(Ejection::default()),
        }
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failures: 5,
            time: Duration::from_secs(30),
            max_time: Duration::from_secs(300),
            max_ejected: Share::per_million(50 * PERCENT),
        }
    }
}

const TIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const SHARES: RangeInclusive<Share> = Share::ZERO..=Share::WHOLE;
/// At 100 % nobody would have room for a request more than the others.
const BOUNDS: RangeInclusive<Share> =
    Share::per_million(101 * PERCENT)..=Share::per_million(1000 * PERCENT);
const ALGORITHMS: [&str; 4] = ["round_robin", "least_requests", "random_two", "{hash: client}"];

/// What an upstream says about it.
pub(super) fn balance(raw: &RawUpstream, at: At<'_>) -> Balance {
    let slow_start = raw.slow_start.as_ref();
    let slow_start = slow_start.and_then(|text| {
        interval(text, Duration::ZERO..=Duration::from_secs(3600), at.key("slow_start"))
    });
    let panic_threshold = share(&raw.panic_threshold, SHARES, at.key("panic_threshold"));
    Balance {
        algorithm: algorithm(&raw.balance, at.key("balance")).unwrap_or(Algorithm::RoundRobin),
        bound: bound(&raw.balance, at.key("balance")),
        slow_start: slow_start.unwrap_or_default(),
        panic_threshold: panic_threshold.unwrap_or(Share::ZERO),
        ejection: ejection(&raw.ejection, at.key("ejection")),
    }
}

fn algorithm(raw: &RawBalance, at: At<'_>) -> Option<Algorithm> {
    match raw {
        TextOr::Text(text) => match text.as_str() {
            "round_robin" => Some(Algorithm::RoundRobin),
            "least_requests" => Some(Algorithm::LeastRequests),
            "random_two" => Some(Algorithm::RandomTwo),
            "hash" => {
                at.error_with_help(
                    "`hash` does not say what the key of a request is",
                    "write it behind, such as balance: {hash: client}",
                );
                None
            }
            other => {
                let message = format!("`{}` is no way to balance", shorten(other));
                at.error_with_help(message, suggestion(other, ALGORITHMS).unwrap_or_default());
                None
            }
        },
        TextOr::Section(section) => hash(&section.hash, at.key("hash")).map(Algorithm::Hash),
    }
}

fn bound(raw: &RawBalance, at: At<'_>) -> Option<Share> {
    let TextOr::Section(section) = raw else { return None };
    share(section.bound.as_ref()?, BOUNDS, at.key("bound"))
}

fn hash(raw: &RawHash, at: At<'_>) -> Option<HashKey> {
    let section = match raw {
        TextOr::Text(text) if text == "client" => return Some(HashKey::Client),
        TextOr::Text(text) if text == "consumer" => return Some(HashKey::Consumer),
        TextOr::Text(text) => {
            let message = format!("`{}` is no key of a request", shorten(text));
            at.error_with_help(message, KEYS);
            return None;
        }
        TextOr::Section(section) => section,
    };
    match section {
        RawHashSection { header: Some(name), cookie: None, path: None } => {
            let parsed = name.parse().ok().map(HashKey::Header);
            if parsed.is_none() {
                let message = format!("`{}` is no name of a header field", shorten(name));
                at.key("header").error_with_help(message, "write one such as X-Session-Id");
            }
            parsed
        }
        RawHashSection { header: None, cookie: Some(name), path: None } => {
            let token =
                |byte: u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte);
            if name.is_empty() || name.len() > 256 || !name.bytes().all(token) {
                let message = format!("`{}` is no name of a cookie", shorten(name));
                at.key("cookie").error_with_help(message, "write one such as session");
                return None;
            }
            Some(HashKey::Cookie(name.clone()))
        }
        RawHashSection { header: None, cookie: None, path: Some(true) } => Some(HashKey::Path),
        _ => {
            at.on_key().error_with_help("a request has one key", KEYS);
            None
        }
    }
}

const KEYS: &str =
    "write one of `client`, `consumer`, `{header: NAME}`, `{cookie: NAME}` and `{path: true}`";

fn ejection(raw: &RawEjection, at: At<'_>) -> Option<Ejection> {
    let raw = match raw {
        TextOr::Text(text) if text == "off" => return None,
        TextOr::Text(text) => {
            at.error_with_help(
                format!("`{}` is not `off`", shorten(text)),
                "write `off`, or a section such as {failures: 5, time: 30s}, or leave it out",
            );
            return None;
        }
        TextOr::Section(section) => section,
    };
    let failures = count(raw.failures, 1..=100_000, at.key("failures"))?;
    let time = interval(&raw.time, TIMES, at.key("time"));
    let max_time = interval(&raw.max_time, TIMES, at.key("max_time"));
    let max_ejected = share(&raw.max_ejected, SHARES, at.key("max_ejected"));
    let (time, max_time) = (time?, max_time?);
    if max_time < time {
        at.key("max_time").error_with_help(
            "`max_time` is less than `time`",
            "write a longer one, or leave it out",
        );
    }
    let failures = u32::try_from(failures).unwrap_or(u32::MAX);
    Some(Ejection { failures, time, max_time, max_ejected: max_ejected? })
}
