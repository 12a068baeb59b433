//! `hedge`: when a request that waits for its answer is sent to another endpoint as well.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use humantime::format_duration;
use serde::Deserialize;

use super::Share;
use super::at::At;
use super::tree::shorten;
use super::value::{interval, share, share_of};

const DELAYS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);
/// `p50` and `p99.9`.
const PERCENTILES: RangeInclusive<Share> =
    Share::per_million(500_000)..=Share::per_million(999_000);

/// When a request is sent to another endpoint as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// How long after it was first sent on its way.
    pub after: HedgeAfter,
    /// Hedges at most, as a share of requests.
    pub budget: Share,
}

/// How long a request waits for the head of its answer before it is hedged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeAfter {
    /// So long.
    Time(Duration),
    /// As long as this share of the last answers took at most.
    Percentile(Share),
}

impl fmt::Display for HedgeAfter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => format_duration(*time).fmt(formatter),
            Self::Percentile(share) => {
                write!(formatter, "p{}", share.to_string().trim_end_matches('%'))
            }
        }
    }
}

/// `hedge` as typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHedge {
    /// `100ms` or `p95`.
    after: String,
    /// A share of requests.
    #[serde(default = "budget")]
    budget: String,
}

fn budget() -> String {
    "10%".to_owned()
}

pub(super) fn hedge(raw: &RawHedge, at: At<'_>) -> Option<Hedge> {
    let after = after(&raw.after, at.key("after"));
    let budget = share(&raw.budget, Share::ZERO..=Share::WHOLE, at.key("budget"));
    Some(Hedge { after: after?, budget: budget? })
}

fn after(text: &str, at: At<'_>) -> Option<HedgeAfter> {
    let Some(percentile) = text.trim().strip_prefix('p') else {
        return interval(text, DELAYS, at).map(HedgeAfter::Time);
    };
    let share = share_of(&format!("{percentile}%")).filter(|share| PERCENTILES.contains(share));
    if share.is_none() {
        let message = format!("`{}` is no percentile from p50 to p99.9", shorten(text));
        at.error_with_help(message, "write one such as p95, or a duration such as 100ms");
    }
    share.map(HedgeAfter::Percentile)
}
