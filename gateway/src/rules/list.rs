//! A list: prefixes of which all are denied, or let in, on the word of one file or feed.

use std::sync::Arc;

use gateway_common::rule::{Action, FOREVER, Origin};
use gateway_common::table::TagV4;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::entries::{Entries, Entry};
use super::{RuleRef, Until};
use crate::base::time::{BootTime, Now, UtcMillis};

/// Length of a name.
pub const NAME_MAX_CHARS: usize = 64;

/// A list in force.
#[derive(Clone, Debug)]
pub struct List {
    /// Its name, which no other list has.
    pub name: String,
    /// What is done with the packets of its prefixes.
    pub action: Action,
    /// Who keeps it.
    pub kind: Kind,
    /// Where it comes from: a path, an address, or who imported it.
    pub source: String,
    /// Whether it only counts what it would do.
    pub dry_run: bool,
    /// Why, for the entries that do not say so themselves.
    pub reason: String,
    /// When this version of it was read.
    pub created: UtcMillis,
    /// The same moment on both clocks, which turns the ends of its entries into the kernel's time.
    pub clocks: Now,
    /// Its prefixes.
    pub entries: Arc<Entries>,
    /// The version before, until somebody confirms this one.
    pub before: Option<Before>,
    /// Entries that ended until then are not there any more.
    pub swept: BootTime,
    /// Where the kernel counts it; given by the set of rules that it is in.
    pub seat: u8,
}

/// Who keeps a list, and so who may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Somebody at the command line.
    Import,
    /// The configuration, which names a file.
    File,
    /// The configuration, which names an address to fetch it from.
    Feed,
}

impl Kind {
    /// The name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::File => "file",
            Self::Feed => "feed",
        }
    }
}

/// The version of a list that comes back unless the one after it is confirmed.
#[derive(Clone, Debug)]
pub struct Before {
    /// When it comes back.
    pub deadline: Until,
    /// When it was replaced.
    pub replaced: UtcMillis,
    /// Where it came from.
    pub source: String,
    /// Why, for the entries that do not say so themselves.
    pub reason: String,
    /// When it was read.
    pub created: UtcMillis,
    /// Its prefixes.
    pub entries: Arc<Entries>,
}

impl List {
    /// On whose word its entries are rules.
    pub fn origin(&self) -> Origin {
        match self.kind {
            Kind::Import | Kind::File => Origin::List,
            Kind::Feed => Origin::Feed,
        }
    }

    /// Whether the entries of another version decide the same, so that only those that differ have to be changed.
    pub fn decides_like(&self, other: &Self) -> bool {
        let of = |list: &Self| (list.action, list.origin(), list.dry_run, list.seat);
        of(self) == of(other) && self.before.is_none() && other.before.is_none()
    }

    /// The rules of a prefix: one, or two while a change waits to be confirmed.
    pub fn find(&self, prefix: IpNet) -> impl Iterator<Item = RuleRef<'_>> {
        let now = self.entries.find(prefix);
        let before = self.before.as_ref().and_then(|before| before.entries.find(prefix));
        self.rules(now, before)
    }

    /// Every rule inside of a prefix, that one included.
    pub fn inside(&self, prefix: IpNet) -> impl Iterator<Item = RuleRef<'_>> {
        let now = self.entries.inside(prefix).flat_map(move |entry| {
            let before = self.before.as_ref().and_then(|before| before.entries.find(entry.prefix));
            self.rules(Some(entry), before)
        });
        let before = self.before.iter().flat_map(move |before| before.entries.inside(prefix));
        let gone = before.filter(|entry| self.entries.find(entry.prefix).is_none());
        now.chain(gone.flat_map(|entry| self.rules(None, Some(entry))))
    }

    /// Its prefixes; those of both versions while a change waits to be confirmed.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let before = self.before.iter().flat_map(|before| before.entries.iter());
        self.entries.iter().chain(before).map(|entry| entry.prefix)
    }

    /// At most how many of IPv4 and of IPv6 that are.
    pub fn prefixes_max(&self) -> [usize; 2] {
        let before = self.before.as_ref().map_or([0, 0], |before| before.entries.counts());
        let [v4, v6] = self.entries.counts();
        [v4 + before[0], v6 + before[1]]
    }

    /// Its entries as rules, those behind `prefix` where there is one.
    pub fn after(&self, prefix: Option<IpNet>) -> impl Iterator<Item = RuleRef<'_>> {
        let all = prefix.is_none().then(|| self.entries.iter());
        let some = prefix.map(|prefix| self.entries.after(prefix));
        let entries = all.into_iter().flatten().chain(some.into_iter().flatten());
        entries.filter_map(|entry| {
            let before = self.before.as_ref().and_then(|before| before.entries.find(entry.prefix));
            self.rules(Some(entry), before).next()
        })
    }

    /// The IPv4 networks with an address from `first` to `last`.
    pub fn within(&self, first: u32, last: u32) -> impl Iterator<Item = TagV4> {
        let before = self.before.iter().flat_map(move |before| before.entries.within(first, last));
        self.entries.within(first, last).chain(before)
    }

    /// When the next of its entries ends; [`FOREVER`] for never.
    pub fn next_end(&self) -> BootTime {
        let ends = self.entries.notes.iter().filter(|note| note.until_ms != 0);
        let ends = ends.map(|note| self.clocks.boot_of(UtcMillis(note.until_ms)));
        let deadline = self.before.as_ref().map(|before| before.deadline.boot);
        ends.filter(|end| *end > self.swept).chain(deadline).min().unwrap_or(BootTime(FOREVER))
    }

    /// Takes out the entries that have ended, and puts back the version before if nobody confirmed this one. Answers
    /// the prefixes that are concerned.
    pub fn expire(&mut self, now: BootTime) -> Vec<IpNet> {
        if self.next_end() > now {
            return Vec::new();
        }
        let old = Arc::clone(&self.entries);
        if let Some(before) = self.before.take_if(|before| before.deadline.boot <= now) {
            (self.source, self.reason) = (before.source, before.reason);
            (self.created, self.entries) = (before.created, before.entries);
        }
        let clocks = self.clocks;
        let live = |entry: &Entry<'_>| entry.until.is_none_or(|end| clocks.boot_of(end) > now);
        self.entries = Arc::new(self.entries.retain(live));
        self.swept = now;
        old.difference(&self.entries).map(|(prefix, _)| prefix).collect()
    }

    /// The rule of an entry of the version that was made for this reason, then.
    fn rule<'a>(
        &'a self,
        entry: Entry<'a>,
        (reason, created): (&'a str, UtcMillis),
    ) -> RuleRef<'a> {
        let action = match self.action {
            Action::Deny if entry.resets => Action::Reset,
            action => action,
        };
        RuleRef {
            prefix: entry.prefix,
            action,
            origin: self.origin(),
            profile: self.seat,
            profile_name: "",
            reason: if entry.reason.is_empty() { reason } else { entry.reason },
            created,
            from: BootTime(0),
            until: Until::at(self.clocks, entry.until),
            list: Some(&self.name),
            dry_run: self.dry_run,
        }
    }

    /// The rules of one prefix that both versions are asked about.
    fn rules<'a>(
        &'a self,
        now: Option<Entry<'a>>,
        before: Option<Entry<'a>>,
    ) -> impl Iterator<Item = RuleRef<'a>> {
        let mut now = now.map(|entry| self.rule(entry, (&self.reason, self.created)));
        let was = self.before.as_ref().zip(before);
        let mut before =
            was.map(|(before, entry)| self.rule(entry, (&before.reason, before.created)));
        if let Some(Before { deadline, .. }) = &self.before {
            let does = |rule: RuleRef<'a>| (rule.until, rule.action);
            if now.map(does) == before.map(does) {
                before = None;
            } else {
                if let Some(rule) = now.as_mut().filter(|rule| deadline.boot < rule.until.boot) {
                    rule.until = *deadline;
                }
                if let Some(rule) = &mut before {
                    rule.from = deadline.boot;
                }
            }
        }
        now.into_iter().chain(before)
    }
}
