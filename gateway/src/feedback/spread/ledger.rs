//! What is known to have become of each source, of all that any gateway of the group said: the latest change of each.
//! Whoever has heard of the same changes, in whatever order and however often, knows the same.
//!
//! A change is kept for as long as it can contradict an older one: so a ban that is heard of after its lift stays
//! lifted. It is pure; who made a change, who is told of it and who keeps it is for others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::message::{LASTS_MAX, Message, Order, Refused, What};
use crate::base::time::UtcMillis;
use crate::feedback::decision::Subject;

/// Sources that something is known about. Of more, those that count for the shortest time are forgotten.
pub const SUBJECTS_MAX: usize = 65_536;
/// A pin whose message counts for less than this is renewed.
const RENEW_BELOW: Duration = LASTS_MAX.saturating_sub(Duration::from_hours(24));

/// What is known.
#[derive(Debug)]
pub struct Ledger {
    instance: u64,
    sequence: u64,
    entries: BTreeMap<Subject, Entry>,
    by_end: BTreeSet<(UtcMillis, Subject)>,
    outgoing: BTreeSet<Subject>,
    subjects_max: usize,
}

#[derive(Debug)]
struct Entry {
    message: Message,
    /// Until when it can contradict anything that was ever heard here.
    keep: UtcMillis,
}

/// What hearing of a change changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// Something became of that source.
    News,
    /// It is what was known, and counts for longer.
    Renewed,
}

impl Ledger {
    /// Knows nothing yet. `instance` is another number at each start.
    pub fn new(instance: u64) -> Self {
        Self::with_room(instance, SUBJECTS_MAX)
    }

    fn with_room(instance: u64, subjects_max: usize) -> Self {
        Self {
            instance,
            sequence: 0,
            entries: BTreeMap::new(),
            by_end: BTreeSet::new(),
            outgoing: BTreeSet::new(),
            subjects_max,
        }
    }

    /// Writes down what became of a source here. It is later than whatever was known about it.
    pub fn make(&mut self, subject: Subject, what: What, gateway: &str, now: UtcMillis) {
        let known = self.entries.get(&subject).map(|entry| entry.message.order.made);
        let made = known.map_or(now, |known| now.max(UtcMillis(known.0.saturating_add(1))));
        self.sequence += 1;
        let order = Order { made, instance: self.instance, sequence: self.sequence };
        let mut what = what;
        match &mut what {
            What::Ban(ban) => ban.until = ban.until.min(made.after(LASTS_MAX)),
            What::Pin(ban) => ban.until = made.after(LASTS_MAX),
            What::Lift | What::Forget => {}
        }
        let message = Message { order, subject, what, gateway: gateway.to_owned() };
        if self.put(message).is_ok() {
            self.outgoing.insert(subject);
        }
    }

    /// Hears of what became of a source elsewhere.
    pub fn merge(&mut self, message: Message, now: UtcMillis) -> Result<Merged, Refused> {
        if message.counts_until() <= now {
            return Err(Refused::Over);
        }
        let Some(known) = self.entries.get_mut(&message.subject) else {
            return self.put(message).map(|()| Merged::News);
        };
        let (rank, known_rank) = (message.rank(), known.message.rank());
        if rank > known_rank {
            let renewed = rank.0 == known_rank.0;
            self.outgoing.remove(&message.subject);
            self.put(message)?;
            return Ok(if renewed { Merged::Renewed } else { Merged::News });
        }
        let keep = known.keep.max(message.counts_until());
        let before = std::mem::replace(&mut known.keep, keep);
        self.by_end.remove(&(before, message.subject));
        self.by_end.insert((keep, message.subject));
        Err(if rank == known_rank { Refused::Replayed } else { Refused::Old })
    }

    fn put(&mut self, message: Message) -> Result<(), Refused> {
        let subject = message.subject;
        let mut keep = message.counts_until();
        if let Some(before) = self.entries.get(&subject) {
            keep = keep.max(before.keep);
            self.by_end.remove(&(before.keep, subject));
        } else if self.entries.len() >= self.subjects_max {
            let first = self.by_end.first().copied().filter(|first| *first < (keep, subject));
            let (_, first) = first.ok_or(Refused::Full)?;
            self.remove(first);
        }
        self.by_end.insert((keep, subject));
        self.entries.insert(subject, Entry { message, keep });
        Ok(())
    }

    fn remove(&mut self, subject: Subject) {
        if let Some(entry) = self.entries.remove(&subject) {
            self.by_end.remove(&(entry.keep, subject));
            self.outgoing.remove(&subject);
        }
    }

    /// Forgets what can contradict nothing any more; about whom.
    pub fn expire(&mut self, now: UtcMillis) -> Vec<Subject> {
        let mut over = Vec::new();
        while let Some((_, subject)) = self.by_end.first().copied().filter(|(end, _)| *end <= now) {
            self.remove(subject);
            over.push(subject);
        }
        over
    }

    /// Makes pins count for longer; about whom. Only for a gateway that knows what the others know: a pin that was
    /// lifted while it was away must not come back.
    pub fn renew(&mut self, now: UtcMillis) -> Vec<Subject> {
        let soon = now.after(RENEW_BELOW);
        let mut renewed = Vec::new();
        for (subject, entry) in &mut self.entries {
            if let What::Pin(ban) = &mut entry.message.what
                && ban.until < soon
            {
                ban.until = now.after(LASTS_MAX);
                renewed.push((*subject, entry.message.counts_until()));
            }
        }
        for (subject, keep) in &renewed {
            if let Some(entry) = self.entries.get_mut(subject) {
                self.by_end.remove(&(entry.keep, *subject));
                entry.keep = entry.keep.max(*keep);
                self.by_end.insert((entry.keep, *subject));
                self.outgoing.insert(*subject);
            }
        }
        renewed.into_iter().map(|(subject, _)| subject).collect()
    }

    /// What is known about a source.
    pub fn known(&self, subject: &Subject) -> Option<&Message> {
        self.entries.get(subject).map(|entry| &entry.message)
    }

    /// All that is known.
    pub fn iter(&self) -> impl Iterator<Item = &Message> {
        self.entries.values().map(|entry| &entry.message)
    }

    /// How many sources something is known about.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the others have not been told yet.
    pub fn outgoing(&self) -> impl Iterator<Item = &Message> {
        self.outgoing.iter().filter_map(|subject| self.known(subject))
    }

    /// How much that is.
    pub fn outgoing_len(&self) -> usize {
        self.outgoing.len()
    }

    /// Whether the others are to be told of what is known about a source.
    pub fn is_outgoing(&self, subject: &Subject) -> bool {
        self.outgoing.contains(subject)
    }

    /// The others are to be told of what is known about a source.
    pub fn tell(&mut self, subject: Subject) {
        if self.entries.contains_key(&subject) {
            self.outgoing.insert(subject);
        }
    }

    /// The others were told of this, which may not be the latest any more.
    pub fn told(&mut self, subject: &Subject, rank: (Order, UtcMillis)) {
        if self.known(subject).is_some_and(|known| known.rank() == rank) {
            self.outgoing.remove(subject);
        }
    }
}

#[cfg(test)]
mod tests;
