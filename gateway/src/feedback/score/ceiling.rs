//! What all decisions together may do, so that no rule bans everybody.

use std::cmp::Ordering;
use std::collections::VecDeque;

use crate::base::time::BootTime;
use crate::config::{Ceiling, Share};
use crate::feedback::decision::{Held, Subject};

const MINUTE_NS: u64 = 60_000_000_000;
const WHILE_NS: u64 = 10 * MINUTE_NS;
/// Decisions within ten minutes that may hit any share: small sites have few clients.
const FREE: usize = 3;

/// The decisions of the last ten minutes that were enforced: at most ten times those of a minute.
#[derive(Clone, Debug, Default)]
pub(super) struct Ceilings {
    /// Each with the good requests that it hit, by time.
    enforced: VecDeque<(BootTime, u64, Subject)>,
    hit: u64,
}

impl Ceilings {
    /// Whether one more would be too much, that hits so many of all good requests.
    pub(super) fn holds(
        &mut self,
        (hits, all): (u64, u64),
        ceiling: &Ceiling,
        now: BootTime,
    ) -> Option<Held> {
        self.forget(now);
        let minute =
            self.enforced.partition_point(|(at, ..)| at.0.saturating_add(MINUTE_NS) <= now.0);
        if self.enforced.len() - minute >= ceiling.bans_per_minute as usize {
            return Some(Held::BansPerMinute);
        }
        let share = ceiling.good_share.compare(self.hit.saturating_add(hits), all);
        let is_bound = ceiling.good_share < Share::WHOLE && self.enforced.len() >= FREE;
        (is_bound && hits > 0 && share == Ordering::Greater).then_some(Held::GoodShare)
    }

    /// The same of somebody else's decision. How many there are in a minute is nothing to go by: a list begins with
    /// thousands. A wider prefix than a source is never free.
    pub(super) fn holds_other(
        &mut self,
        (hits, all): (u64, u64),
        is_source: bool,
        (ceiling, now): (&Ceiling, BootTime),
    ) -> Option<Held> {
        self.forget(now);
        let is_free = is_source && self.enforced.len() < FREE;
        let is_bound = ceiling.good_share < Share::WHOLE && !is_free;
        let share = ceiling.good_share.compare(self.hit.saturating_add(hits), all);
        (is_bound && hits > 0 && share == Ordering::Greater).then_some(Held::GoodShare)
    }

    /// Good requests that the decisions of the last ten minutes hit.
    pub(super) fn hit(&self) -> u64 {
        self.hit
    }

    /// One was made.
    pub(super) fn count(&mut self, subject: Subject, hits: u64, now: BootTime) {
        self.enforced.push_back((now, hits, subject));
        self.hit += hits;
    }

    /// The last one about this subject was not enforced after all.
    pub(super) fn give_back(&mut self, subject: &Subject) {
        let last = self.enforced.iter().rposition(|(_, _, whose)| whose == subject);
        if let Some((_, hits, _)) = last.and_then(|last| self.enforced.remove(last)) {
            self.hit -= hits;
        }
    }

    fn forget(&mut self, now: BootTime) {
        while let Some((_, hits, _)) =
            self.enforced.pop_front_if(|(at, ..)| at.0.saturating_add(WHILE_NS) <= now.0)
        {
            self.hit -= hits;
        }
    }
}
