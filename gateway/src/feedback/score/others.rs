//! Decisions that somebody else made, and how much of what is served well of late they would hit: whoever can tell this
//! gateway whom to hold off must not be able to hold off everybody. They have a budget of their own, so that none of
//! them takes anything from what is decided here.

use super::{Scores, bits_of, subject_of};
use crate::base::time::{BootTime, Now};
use crate::config::Share;
use crate::feedback::decision::{Held, Subject};

impl Scores {
    /// Why a decision of somebody else would be too much, if it would.
    pub fn holds_other(&mut self, subject: &Subject, now: Now) -> Option<(Held, String)> {
        self.advance(now);
        let now = self.now.boot;
        let (hits, all) = self.hit_by(subject, now);
        let ceiling = self.config.ceiling;
        let is_source = has_bits(subject, self.source_bits);
        let held = self.of_others.holds_other((hits, all), is_source, (&ceiling, now))?;
        let note = format!(
            "it would hit {hits} good requests of the last ten minutes, together with earlier \
             decisions of others {} of {all}, and no more than {} may be \
             (feedback.ceiling.good_share)",
            self.of_others.hit() + hits,
            ceiling.good_share
        );
        Some((held, note))
    }

    /// One is in force from now on.
    pub fn other_enforced(&mut self, subject: Subject, now: Now) {
        self.advance(now);
        let now = self.now.boot;
        let (hits, _) = self.hit_by(&subject, now);
        if hits > 0 && self.config.ceiling.good_share < Share::WHOLE {
            self.of_others.give_back(&subject);
            self.of_others.count(subject, hits, now);
        }
    }

    /// Good requests that a decision about any prefix hits, at most, and all of them.
    pub(super) fn hit_by(&mut self, subject: &Subject, now: BootTime) -> (u64, u64) {
        let all = self.good.total(now);
        let levels = [self.source_bits, self.prefix_bits()];
        let Some(bits) = levels.into_iter().find(|bits| has_bits(subject, *bits)) else {
            return (self.good.within(subject, now), all);
        };
        let around = subject_of(subject.prefix.addr(), subject.place, bits);
        (around.map_or(0, |around| self.hit_at(around, now)), all)
    }

    /// Good requests that a decision about a source hits, or about a prefix that sources are added up by.
    pub(super) fn hit_at(&self, subject: Subject, now: BootTime) -> u64 {
        subject.felt().map(|one| self.good.requests(&one, now).0).sum()
    }

    fn prefix_bits(&self) -> [u8; 2] {
        self.config.prefix_bits
    }
}

/// Whether it is a prefix of at least this length.
fn has_bits(subject: &Subject, bits: [u8; 2]) -> bool {
    subject.prefix.prefix_len() >= bits_of(subject.prefix.addr(), bits)
}
