//! `feedback`: what clients have to do to be held off, for how long, and what never happens to them.

mod crowdsec;
mod defaults;
mod read;
mod spread;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::crowdsec::FeedbackCrowdsec;
pub(super) use self::read::{RawFeedback, feedback};
pub use self::spread::FeedbackSpread;
use super::Share;
use crate::base::signal::Signal;

/// What becomes of what the proxy notices about clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feedback {
    /// Decisions are made, shown and counted, and nothing is enforced.
    pub dry_run: bool,
    /// What decides, in the order of the file.
    pub rules: Vec<FeedbackRule>,
    /// What each signal counts, in thousandths, in the order of [`Signal::ALL`].
    pub weights: [u32; Signal::ALL.len()],
    /// Paths that only scanners ask for, in lower case. One that ends in `*` stands for all that begin so.
    pub scanner_paths: Arc<[Box<str>]>,
    /// Sources that are remembered at once, and as many prefixes.
    pub max_sources: u32,
    /// Length of the prefixes that sources are added up by, of IPv4 and of IPv6, each shorter than a source. (bits)
    pub prefix_bits: [u8; 2],
    /// When several callers share a source.
    pub shared: SharedSource,
    /// What all decisions together may do.
    pub ceiling: Ceiling,
    /// How other gateways are told, and heard.
    pub spread: Option<FeedbackSpread>,
    /// Whose decisions are carried out here, too.
    pub crowdsec: Option<FeedbackCrowdsec>,
}

/// One rule: what has to be noticed how often, and what is done then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedbackRule {
    /// What it is called in stories and metrics.
    pub name: Arc<str>,
    /// The signals that count.
    pub signals: Vec<Signal>,
    /// Of [`Signal::RateLimited`] only those by the limit of this name; `None`: by any.
    pub limit: Option<String>,
    /// So many of them, each as often as it weighs.
    pub count: u32,
    /// Within this time.
    pub per: Duration,
    /// Whose they are.
    pub by: FeedbackBy,
    /// Only what was noticed on routes that were under pressure.
    pub under_pressure: bool,
    /// What is done.
    pub measure: Measure,
    /// How long, the first time.
    pub lasts: Duration,
    /// Each further time twice as long, up to this.
    pub doubling_up_to: Duration,
}

/// Whose signals are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedbackBy {
    /// One source's: an IPv4 address, or an IPv6 prefix of `kernel.ipv6_source_length`.
    Source,
    /// Those of a prefix, and at least so many sources in it have to be among them.
    Prefix {
        /// Different sources.
        sources: u32,
    },
}

/// What is done about a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Its packets are dropped.
    Ban,
    /// It is held to a profile of `kernel.profiles`.
    SlowDown {
        /// Name of the profile.
        profile: String,
    },
    /// As a ban, and its new connections are answered with a reset, so that honest software fails at once.
    Reset,
}

/// A source that several known callers use, as behind carrier NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedSource {
    /// So many different consumers, all of whom were served within the last ten minutes, share a source.
    pub consumers: u32,
    /// It takes so many times the evidence; `None`: there is never enough, and people decide.
    pub evidence: Option<u32>,
}

/// What all decisions together may do. Beyond it they are shown and not enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceiling {
    /// Decisions that are enforced within a minute.
    pub bans_per_minute: u32,
    /// Share of the recent good traffic that the decisions of the last ten minutes may have hit.
    pub good_share: Share,
}
