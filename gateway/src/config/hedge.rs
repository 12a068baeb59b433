//! `hedge`: when a request that waits for its answer is sent to another endpoint as well.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;

use super::at::At;
use super::value::interval;

const DELAYS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);

/// When a request is sent to another endpoint as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// How long after it was first sent on its way.
    pub after: Duration,
}

/// `hedge` as typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHedge {
    after: String,
}

pub(super) fn hedge(raw: &RawHedge, at: At<'_>) -> Option<Hedge> {
    interval(&raw.after, DELAYS, at.key("after")).map(|after| Hedge { after })
}
