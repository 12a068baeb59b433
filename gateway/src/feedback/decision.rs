//! Decisions: what is to be done about whom, and why. They are made by scores and carried out by `control`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::base::time::{Now, UtcMillis};
use crate::config::Measure;

/// Whom a decision is about, and where it may be enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// The addresses.
    pub prefix: IpNet,
    /// Where it is enforced.
    pub place: Place,
}

impl Subject {
    /// Wherever a decision about it is felt: one about packets holds for the same addresses behind a proxy, too.
    pub fn felt(self) -> impl Iterator<Item = Self> {
        let behind = (self.place == Place::Kernel).then_some(Place::UserSpace);
        [Some(self.place), behind].into_iter().flatten().map(move |place| Self { place, ..self })
    }
}

/// Where a decision may be enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Wherever packets from there arrive: the evidence was gathered over completed TCP handshakes.
    Kernel,
    /// In user space alone, about requests that a trusted proxy says come from there.
    UserSpace,
}

/// One decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// About whom.
    pub subject: Subject,
    /// Name of the rule of `feedback.rules`.
    pub rule: Arc<str>,
    /// What is to be done.
    pub measure: Measure,
    /// For how long.
    pub lasts: Duration,
    /// Which time it is, from 1: each doubles the time.
    pub times: u32,
    /// When it was made: the moment of the evidence that tipped the score.
    pub at: Now,
    /// The evidence, the last of it.
    pub story: Story,
    /// Why it is only shown, if it is.
    pub held: Option<Held>,
}

/// Why a decision is not enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// `feedback.dry_run` is set.
    DryRun,
    /// Several known callers share the source, and the evidence is not enough for that.
    Shared,
    /// `feedback.ceiling.bans_per_minute` was reached.
    BansPerMinute,
    /// `feedback.ceiling.good_share` would have been passed.
    GoodShare,
}

impl Held {
    /// Its name in metrics and stories.
    pub fn name(self) -> &'static str {
        match self {
            Self::DryRun => "dry_run",
            Self::Shared => "shared",
            Self::BansPerMinute => "bans_per_minute",
            Self::GoodShare => "good_share",
        }
    }
}

/// What led to a decision, for whoever asks why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// The score when it was told, of all signals that the rule counts.
    pub score: f64,
    /// The score that it takes.
    pub wanted: f64,
    /// Different sources that the signals came from; 1 but for prefixes.
    pub sources: u32,
    /// Different consumers that were served at the source within the last ten minutes.
    pub consumers: u32,
    /// Why it takes more than the rule says, or less is done: a sentence each.
    pub notes: Vec<String>,
    /// The last signals, the oldest first, at most [`SIGNALS_MAX`].
    pub signals: Vec<SignalView>,
}

/// Signals that a story keeps.
pub const SIGNALS_MAX: usize = 16;

/// One signal as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalView {
    /// When.
    pub at: UtcMillis,
    /// Its name.
    pub signal: String,
    /// Who did it.
    pub source: std::net::IpAddr,
    /// The id of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The limit that refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// What the access log says of the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kernel => "kernel",
            Self::UserSpace => "user space",
        })
    }
}
