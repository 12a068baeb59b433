//! What scores tell: of an address for whoever asks why, and in numbers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base::signal::Signal;
use crate::base::time::UtcMillis;
use crate::feedback::decision::{Held, SignalView, Subject};

/// What is known of a source, or of the prefix that it lies in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// Whom.
    pub subject: Subject,
    /// What each rule counts of it, in the order of the file. Rules that count nothing are left out.
    pub scores: Vec<ScoreView>,
    /// Different consumers that were served there within the last ten minutes.
    pub consumers: u32,
    /// Good requests of the last ten minutes, each source counted with at most 100.
    pub good_requests: u64,
    /// How many decisions the next one would be counted with: 1 for the first.
    pub next_time: u32,
    /// What is in force, or would be but for `dry_run`, and until when.
    pub in_force: Vec<(String, UtcMillis)>,
    /// Why it takes more than the rules say: a sentence each.
    pub notes: Vec<String>,
    /// The last signals, the oldest first.
    pub signals: Vec<SignalView>,
}

/// What one rule counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreView {
    /// Name of the rule.
    pub rule: String,
    /// What it counted within its time.
    pub score: f64,
    /// What it takes.
    pub wanted: f64,
    /// Different sources that it came from; 1 where it is by source.
    pub sources: u32,
    /// Different sources that it takes.
    pub wanted_sources: u32,
}

/// Numbers for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Sources against whom something is known.
    pub sources: usize,
    /// Prefixes against which something is known.
    pub prefixes: usize,
    /// Subjects whose decisions or lifts still mean something.
    pub remembered: usize,
    /// Sources and prefixes that were forgotten for others.
    pub evicted: u64,
    /// Signals of which nothing was remembered, for all others were half way to a decision.
    pub turned_away: u64,
    /// Signals, in the order of [`Signal::ALL`].
    pub signals: [u64; Signal::ALL.len()],
    /// Decisions by rule, and why they were held, if they were.
    pub decisions: Vec<(Arc<str>, Option<Held>, u64)>,
}
