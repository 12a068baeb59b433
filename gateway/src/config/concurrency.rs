//! `concurrency`: how many requests a service has at once, and what becomes of those beyond; the `priority` of routes.

use std::time::Duration;

use serde::Deserialize;

use super::at::At;
use super::raw::{Section, TextOr};
use super::tree::shorten;
use super::value::{duration, within_u32};

const LIMIT_MAX: u64 = 1 << 20;
const QUEUE_MAX: u64 = 1 << 16;

/// How many requests a service has at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concurrency {
    /// So many.
    pub limit: Limit,
    /// Requests beyond that wait.
    pub queue: u32,
    /// How long they do.
    pub wait: Duration,
}

/// A number of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// This one.
    Fixed(u32),
    /// What the latency of the service says.
    Adaptive(Adaptive),
}

/// The bounds of a limit that adapts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adaptive {
    /// It never falls below.
    pub min: u32,
    /// It never rises above.
    pub max: u32,
}

/// How important the requests of a route are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// The first to be refused.
    Low,
    /// What is said of most.
    #[default]
    Normal,
    /// More than others.
    High,
    /// The last to be refused.
    Critical,
}

/// `concurrency: 100`, or a section.
pub(super) type RawConcurrency = TextOr<RawConcurrencySection>;

/// A limit with more to say than its number.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConcurrencySection {
    /// A number or `adaptive`.
    limit: String,
    /// Of an adaptive limit. Default: 10.
    #[serde(default)]
    min: Option<u64>,
    /// Of an adaptive limit. Default: 1000.
    #[serde(default)]
    max: Option<u64>,
    /// Requests that wait. Default: none.
    #[serde(default)]
    queue: u64,
    /// How long they do.
    #[serde(default = "wait")]
    wait: String,
}

impl Section for RawConcurrencySection {
    const EXPECTED: &'static str = "a number, `adaptive` or a section with `limit`";
}

fn wait() -> String {
    "1s".to_owned()
}

pub(super) fn concurrency(raw: &RawConcurrency, at: At<'_>) -> Concurrency {
    let section = match raw {
        RawConcurrency::Text(text) => {
            let limit = limit(text, None, None, (at, at));
            return Concurrency { limit, queue: 0, wait: Duration::ZERO };
        }
        RawConcurrency::Section(section) => section,
    };
    let RawConcurrencySection { min, max, .. } = section;
    Concurrency {
        limit: limit(&section.limit, *min, *max, (at, at.key("limit"))),
        queue: within_u32(section.queue, 0..=QUEUE_MAX, at.key("queue")).unwrap_or_default(),
        wait: duration(&section.wait, at.key("wait")).unwrap_or_default(),
    }
}

fn limit(text: &str, min: Option<u64>, max: Option<u64>, (at, own): (At<'_>, At<'_>)) -> Limit {
    if text == "adaptive" {
        let bound = |raw: Option<u64>, default, key| {
            within_u32(raw.unwrap_or(default), 1..=LIMIT_MAX, at.key(key)).unwrap_or_default()
        };
        let bounds = Adaptive { min: bound(min, 10, "min"), max: bound(max, 1000, "max") };
        if bounds.min > bounds.max {
            at.key("min").error_with_help(
                format!("the limit cannot lie between {} and {}", bounds.min, bounds.max),
                "write the smaller one as `min`",
            );
        }
        return Limit::Adaptive(bounds);
    }
    for (key, bound) in [("min", min), ("max", max)] {
        if bound.is_some() {
            at.key(key).on_key().error_with_help(
                format!("`{key}` means nothing for a limit that does not adapt"),
                "remove it, or write limit: adaptive",
            );
        }
    }
    match text.parse() {
        Ok(number) => Limit::Fixed(within_u32(number, 1..=LIMIT_MAX, own).unwrap_or_default()),
        Err(_) => {
            own.error_with_help(
                format!("`{}` is no number of requests", shorten(text)),
                "write one such as 100, or adaptive",
            );
            Limit::Fixed(0)
        }
    }
}
