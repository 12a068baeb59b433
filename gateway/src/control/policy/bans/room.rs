//! Room for bans: what means nothing any more goes, and what means least makes room. What others decide takes none of
//! the room that the gateway's own decisions may need.

use std::sync::Arc;

use super::{Bans, PURGE_EVERY_NS};
use crate::base::time::{BootTime, Now, UtcMillis};
use crate::feedback::ban::{Author, Ban};
use crate::feedback::decision::Subject;

/// An eighth of all room is for the gateway's own decisions and those of its operators.
const OWN_PART: usize = 8;
/// So many at a time make room, so that not everything is looked at for each.
const MADE_PART: usize = 64;
/// How long nobody looks for room where there was none. (ns)
const FULL_NS: u64 = 1_000_000_000;

impl Bans {
    /// Makes room for one subject: what holds no longer and means least goes. Answers whether there is any.
    pub(super) fn make_room(&mut self, subject: &Subject, author: &Author, now: Now) -> bool {
        let max = self.room_of(author);
        if self.records.len() < max || self.records.contains_key(subject) {
            return true;
        }
        if now.boot < self.full_until {
            return false;
        }
        let over = self.records.iter().filter(|(_, ban)| !ban.holds(now.boot));
        let mut over: Vec<(UtcMillis, Subject)> =
            over.map(|(subject, ban)| (ban.forgotten(now), *subject)).collect();
        let wanted = (self.records.len() + 1 - max).max(self.max / MADE_PART).min(over.len());
        if wanted == 0 {
            self.full_until = BootTime(now.boot.0.saturating_add(FULL_NS));
            return false;
        }
        over.select_nth_unstable(wanted - 1);
        over.truncate(wanted);
        over.into_iter().for_each(|(_, least)| self.keep(least, None));
        self.records.len() < max
    }

    /// How many there may be at once for `author` to make one more.
    pub(super) fn room_of(&self, author: &Author) -> usize {
        match author {
            Author::Feedback | Author::User(_) => self.max,
            Author::Outside(_) | Author::Gateway(_) => self.max - self.max / OWN_PART,
        }
    }

    /// Forgets what means nothing any more.
    pub(super) fn purge(&mut self, now: Now) {
        if now.boot < self.purge_at {
            return;
        }
        self.purge_at = BootTime(now.boot.0.saturating_add(PURGE_EVERY_NS));
        let is_past = |_: &Subject, ban: &mut Arc<Ban>| ban.forgotten(now) <= now.utc;
        let past: Vec<Subject> =
            self.records.extract_if(.., is_past).map(|(subject, _)| subject).collect();
        past.into_iter().for_each(|subject| self.write(subject, None));
    }
}
