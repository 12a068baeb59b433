//! `limits`, `plans` and `limiting`: how much callers may, of which kind, and by what they are told apart.

mod rate;
mod read;

use std::fmt;
use std::time::Duration;

use http::HeaderName;
use humantime::format_duration;
use serde::Deserialize;

pub(super) use self::read::{List, RawHeader, RawLimit, RawLimiting, RawPlan, Reader, cost};

/// What all limits have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limiting {
    /// Whether callers are told by `X-RateLimit-Limit`, `-Remaining` and `-Reset`.
    pub x_ratelimit: bool,
    /// Whether callers are told by `RateLimit` and `RateLimit-Policy`.
    pub ratelimit: bool,
    /// Bits of an IPv6 address that tell one client from another.
    pub ipv6_prefix: u8,
    /// Index in [`Limited::plans`] of the one for callers that have none; `None`: none.
    pub default_plan: Option<usize>,
}

/// How much callers may, whatever the route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    /// What all limits have in common.
    pub common: Limiting,
    /// The limits of all routes.
    pub limits: Vec<CallerLimit>,
    /// Tiers of limits, in the order of the file.
    pub plans: Vec<Plan>,
}

/// A tier of limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Each once.
    pub name: String,
    /// What its callers may.
    pub limits: Vec<CallerLimit>,
}

/// How much callers may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerLimit {
    /// Its name in metrics, the log and answers. Each once in a file.
    pub name: String,
    /// What its key is made of, at least one part.
    pub per: Vec<Per>,
    /// How much.
    pub allowance: Allowance,
    /// Keys that are remembered.
    pub keys: usize,
    /// Where it is counted.
    pub counted_in: CountedIn,
}

/// Where a limit is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CountedIn {
    /// In each gateway by itself.
    #[default]
    Process,
    /// In Redis, by all gateways together.
    Redis(WhenUnavailable),
    /// In each gateway, which tells the others.
    Synchronised,
}

/// What is done while Redis does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenUnavailable {
    /// Each gateway counts by itself.
    #[default]
    Local,
    /// Requests are refused.
    Refuse,
}

/// A part of a key: requests that have all parts in common are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Per {
    /// The party that calls.
    Consumer,
    /// The person that the party calls for.
    User,
    /// The credential.
    Key,
    /// Whom the caller belongs to.
    Tenant,
    /// The address of the client.
    ClientAddress,
    /// The value of a header field.
    Header(HeaderName),
    /// The route.
    Route,
    /// The service.
    Upstream,
    /// All requests.
    Global,
}

/// How much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// So many in a time.
    Rate(Rate),
    /// So many in a part of the calendar.
    Quota(u32, Period),
    /// So many at once.
    Concurrency(u32),
}

/// So many in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many.
    pub count: u32,
    /// In this time: whole seconds.
    pub period: Duration,
    /// How they are counted.
    pub algorithm: RateAlgorithm,
}

/// How requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateAlgorithm {
    /// A bucket of so many tokens.
    TokenBucket(u32),
    /// An even pace with so many waiting.
    LeakyBucket(u32),
    /// Windows one after the other.
    FixedWindow,
    /// Any window's length, by two counts.
    SlidingWindow,
    /// Any window's length, by a list of times.
    SlidingLog,
}

/// A part of the calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From the first to the first.
    Month,
}

impl RateAlgorithm {
    /// As configured.
    pub fn name(self) -> &'static str {
        match self {
            Self::TokenBucket(_) => "token_bucket",
            Self::LeakyBucket(_) => "leaky_bucket",
            Self::FixedWindow => "fixed_window",
            Self::SlidingWindow => "sliding_window",
            Self::SlidingLog => "sliding_log",
        }
    }
}

impl Allowance {
    /// What one request may cost at most.
    pub fn capacity(&self) -> u32 {
        match self {
            Self::Rate(Rate { algorithm: RateAlgorithm::TokenBucket(burst), .. }) => *burst,
            Self::Rate(Rate { algorithm: RateAlgorithm::LeakyBucket(queue), .. }) => {
                queue.saturating_add(1)
            }
            Self::Rate(Rate { count, .. }) | Self::Quota(count, _) => *count,
            Self::Concurrency(_) => u32::MAX,
        }
    }
}

impl fmt::Display for Allowance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate(Rate { count, period, algorithm }) => {
                write!(formatter, "{count} in {}", format_duration(*period))?;
                match algorithm {
                    RateAlgorithm::TokenBucket(burst) => write!(formatter, ", burst {burst}")?,
                    RateAlgorithm::LeakyBucket(queue) => write!(formatter, ", queue {queue}")?,
                    _ => {}
                }
                write!(formatter, ", {}", algorithm.name())
            }
            Self::Quota(count, Period::Day) => write!(formatter, "{count} a day of UTC"),
            Self::Quota(count, Period::Month) => write!(formatter, "{count} a month of UTC"),
            Self::Concurrency(count) => write!(formatter, "{count} at once"),
        }
    }
}

impl fmt::Display for Per {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Consumer => formatter.write_str("consumer"),
            Self::User => formatter.write_str("user"),
            Self::Key => formatter.write_str("key"),
            Self::Tenant => formatter.write_str("tenant"),
            Self::ClientAddress => formatter.write_str("client_address"),
            Self::Header(name) => write!(formatter, "header.{name}"),
            Self::Route => formatter.write_str("route"),
            Self::Upstream => formatter.write_str("upstream"),
            Self::Global => formatter.write_str("global"),
        }
    }
}
