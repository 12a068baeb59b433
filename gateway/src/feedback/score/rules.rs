//! Rules as they are scored. A rule that a reload does not change in what it counts keeps its number, by which evidence
//! is kept.

use std::time::Duration;

use crate::base::signal::Signal;
use crate::base::time::BootTime;
use crate::config::{Feedback, FeedbackBy, FeedbackRule};

/// Slices of the time of a rule.
pub(super) const SLICES: usize = 8;

#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// What evidence for it is kept by.
    pub(super) number: u32,
    pub(super) spec: FeedbackRule,
    /// The score that it takes, in thousandths.
    pub(super) wanted: u64,
    /// Bits of [`Signal::ALL`].
    signals: u16,
    slice_ns: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    pub(super) all: Vec<Rule>,
    given_out: u32,
}

impl Rules {
    /// Takes over the rules of a file.
    pub(super) fn configure(&mut self, config: &Feedback) {
        let old = std::mem::take(&mut self.all);
        for spec in &config.rules {
            let same = old.iter().find(|old| counts_the_same(&old.spec, spec));
            let number = same.map_or(self.given_out, |old| old.number);
            self.given_out += u32::from(same.is_none());
            let signals = spec.signals.iter().fold(0, |bits, signal| bits | 1 << *signal as u16);
            let per_ns = u64::try_from(spec.per.as_nanos()).unwrap_or(u64::MAX);
            self.all.push(Rule {
                number,
                spec: spec.clone(),
                wanted: u64::from(spec.count) * 1000,
                signals,
                slice_ns: (per_ns / SLICES as u64).max(1),
            });
        }
    }

    /// The rule of this number, unless a reload took it away.
    pub(super) fn find(&self, number: u32) -> Option<&Rule> {
        self.all.iter().find(|rule| rule.number == number)
    }
}

/// Whether evidence for one is evidence for the other.
fn counts_the_same(old: &FeedbackRule, new: &FeedbackRule) -> bool {
    let by_prefix = |rule: &FeedbackRule| matches!(rule.by, FeedbackBy::Prefix { .. });
    old.name == new.name
        && old.signals == new.signals
        && old.limit == new.limit
        && old.per == new.per
        && by_prefix(old) == by_prefix(new)
        && old.under_pressure == new.under_pressure
}

impl Rule {
    /// Whether it counts this.
    pub(super) fn counts(&self, signal: Signal, limit: Option<&str>, under_pressure: bool) -> bool {
        self.signals & (1 << signal as u16) != 0
            && (!self.spec.under_pressure || under_pressure)
            && match &self.spec.limit {
                Some(own) if signal == Signal::RateLimited => limit == Some(own),
                _ => true,
            }
    }

    pub(super) fn slice(&self, at: BootTime) -> u64 {
        at.0 / self.slice_ns
    }

    /// The oldest slice that counts.
    pub(super) fn since(&self, at: BootTime) -> u64 {
        self.slice(at).saturating_sub(SLICES as u64 - 1)
    }

    /// Different sources that it takes; `None` where it is by source.
    pub(super) fn sources(&self) -> Option<u32> {
        match self.spec.by {
            FeedbackBy::Source => None,
            FeedbackBy::Prefix { sources } => Some(sources),
        }
    }

    /// How long the next time lasts, of so many.
    pub(super) fn lasts(&self, times: u32) -> Duration {
        let doubled = 1_u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX);
        self.spec.lasts.saturating_mul(doubled).min(self.spec.doubling_up_to)
    }
}
