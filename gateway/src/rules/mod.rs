//! The rule set: who made which rule, which of them wins, and until when.
//!
//! Rules that people and the gateway make one by one are kept one by one, at most one of each origin for a prefix.
//! Lists have millions of entries and are kept as [`list::List`]s, of which any number may name a prefix. Within a
//! prefix the higher origin wins; between prefixes the longer one does, which is for the lookup to find. What must
//! never be blocked is in [`protected`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::{Bound, RangeInclusive};

use gateway_common::rule::{Action, FOREVER, Origin};
use gateway_common::table::TagV4;
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::base::time::{BootTime, Now, UtcMillis};

mod address;
pub mod change;
pub mod classify;
pub mod entries;
pub mod feed;
pub mod list;
pub mod list_file;
pub mod parse;
pub mod protected;
pub mod seats;
pub mod sockets;
pub mod tables;

pub use change::{Change, Expired, Key, Pending};
use list::List;
use seats::Seats;
use tables::tag_v4;

/// One rule, as somebody made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whose packets.
    pub prefix: IpNet,
    /// What is done with them.
    pub action: Action,
    /// Who made it.
    pub origin: Origin,
    /// Index of the profile of a `limit` rule in the kernel's table of profiles; of an `allow` rule for an address of
    /// the host itself [`gateway_common::rule::OWN_ADDRESS`]; of a rule from a list its seat; otherwise 0.
    pub profile: u8,
    /// Name of the profile of a `limit` rule, by which it finds its place among others; otherwise empty.
    pub profile_name: String,
    /// Why, in the words of whoever made it.
    pub reason: String,
    /// When it was made.
    pub created: UtcMillis,
    /// First moment at which it holds no longer.
    pub until: Until,
}

/// A rule of the set, made by itself or an entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleRef<'a> {
    /// Whose packets.
    pub prefix: IpNet,
    /// What is done with them.
    pub action: Action,
    /// Who made it.
    pub origin: Origin,
    /// See [`Rule::profile`].
    pub profile: u8,
    /// See [`Rule::profile_name`].
    pub profile_name: &'a str,
    /// Why.
    pub reason: &'a str,
    /// When it was made, or its list was read.
    pub created: UtcMillis,
    /// First moment at which it holds; 0 where it always did.
    pub from: BootTime,
    /// First moment at which it holds no longer.
    pub until: Until,
    /// Name of the list that it is an entry of.
    pub list: Option<&'a str>,
    /// Whether it only counts what it would do.
    pub dry_run: bool,
}

/// When a rule ends. Both clocks are kept: the kernel's, which no clock step touches, decides within one boot; the wall
/// clock's means the same after a reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Until {
    /// On the kernel's clock; [`FOREVER`] for never.
    pub boot: BootTime,
    /// On the wall clock; `None` for never.
    pub utc: Option<UtcMillis>,
}

/// What the two clocks differ by where one of them was set. (milliseconds)
const CLOCK_SET_MS: u64 = 1000;

impl Until {
    /// No end.
    pub const NEVER: Self = Self { boot: BootTime(FOREVER), utc: None };

    /// The end of what begins now and lasts so long.
    pub fn after(now: Now, duration: Option<std::time::Duration>) -> Self {
        Self::at(now, duration.map(|duration| now.utc.after(duration)))
    }

    /// The end at a moment of the wall clock, for whom both clocks stand as they do `now`.
    pub fn at(now: Now, utc: Option<UtcMillis>) -> Self {
        utc.map_or(Self::NEVER, |utc| Self { boot: now.boot_of(utc), utc: Some(utc) })
    }

    /// The end by the wall clock as it stands `now`, which may have been set since it was noted; `None` for never. What
    /// ended before this boot is as it was noted.
    pub fn utc_at(&self, now: Now) -> Option<UtcMillis> {
        let noted = self.utc?;
        let by_boot = now.utc_of(self.boot);
        // Both clocks are not read in the same instant.
        let is_set = noted.0.abs_diff(by_boot.0) >= CLOCK_SET_MS;
        Some(if is_set && self.boot > BootTime(0) { by_boot } else { noted })
    }
}

impl Rule {
    /// Whether it has ended.
    pub fn is_over(&self, now: BootTime) -> bool {
        self.until.boot <= now
    }

    /// As one of the set.
    pub fn as_ref(&self) -> RuleRef<'_> {
        let Self { prefix, action, origin, profile, profile_name, reason, created, until } = self;
        RuleRef {
            prefix: *prefix,
            action: *action,
            origin: *origin,
            profile: *profile,
            profile_name,
            reason,
            created: *created,
            from: BootTime(0),
            until: *until,
            list: None,
            dry_run: false,
        }
    }
}

impl RuleRef<'_> {
    /// Order within one prefix: the greater rule wins. Of two that decide alike, the one that ends last.
    fn rank(&self) -> (Origin, u8, BootTime) {
        let action = match self.action {
            Action::Allow => 3,
            Action::Limit => 2,
            Action::Deny => 1,
            Action::Reset => 0,
        };
        (self.origin, action, self.until.boot)
    }
}

/// All rules.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    rules: BTreeMap<(IpNet, Origin), Rule>,
    /// Changes of the rules above that wait to be confirmed.
    pending: BTreeMap<(IpNet, Origin), Pending>,
    /// By name.
    lists: BTreeMap<String, List>,
    seats: Seats,
}

impl RuleSet {
    /// Puts a rule in, in the place of the one of the same prefix and origin, which is returned.
    pub fn insert(&mut self, rule: Rule) -> Option<Rule> {
        self.rules.insert((rule.prefix, rule.origin), rule)
    }

    /// Takes a rule out.
    pub fn remove(&mut self, prefix: IpNet, origin: Origin) -> Option<Rule> {
        self.rules.remove(&(prefix, origin))
    }

    /// The rule of a prefix and origin that was made by itself.
    pub fn find(&self, prefix: IpNet, origin: Origin) -> Option<&Rule> {
        self.rules.get(&(prefix, origin))
    }

    /// Every rule that was made by itself, by prefix and then by origin.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.values()
    }

    /// Gives every rule that limits the place that its profile has now, by the profile's name.
    pub fn place_profiles(&mut self, place: impl Fn(&str) -> u8) {
        let pending = self.pending.values_mut().filter_map(|pending| pending.then.as_mut());
        let rules = self.rules.values_mut().chain(pending);
        for rule in rules.filter(|rule| rule.action == Action::Limit) {
            rule.profile = place(&rule.profile_name);
        }
    }

    /// The lists by name.
    pub fn lists(&self) -> impl Iterator<Item = &List> {
        self.lists.values()
    }

    /// A list by its name.
    pub fn list(&self, name: &str) -> Option<&List> {
        self.lists.get(name)
    }

    /// Puts a list in, in the place of the one of the same name, which is returned.
    pub fn insert_list(&mut self, mut list: List) -> Option<List> {
        list.seat = self.seats.place(&list.name, |held| !self.lists.contains_key(held));
        self.lists.insert(list.name.clone(), list)
    }

    /// Takes a list out.
    pub fn remove_list(&mut self, name: &str) -> Option<List> {
        self.lists.remove(name)
    }

    /// The changes that wait to be confirmed.
    pub fn pending(&self) -> impl Iterator<Item = (&(IpNet, Origin), &Pending)> {
        self.pending.iter()
    }

    /// What becomes of the rule of a prefix and origin if nobody confirms it.
    pub fn find_pending(&self, key: &Key) -> Option<&Pending> {
        self.pending.get(key)
    }

    /// Makes a change. Answers the one that undoes it.
    pub fn change(&mut self, change: &Change) -> Change {
        let mut undo = Change::default();
        let puts = change.put.iter().map(|rule| ((rule.prefix, rule.origin), Some(rule)));
        for (key, rule) in puts.chain(change.remove.iter().map(|key| (*key, None))) {
            let old = match rule {
                Some(rule) => self.rules.insert(key, rule.clone()),
                None => self.rules.remove(&key),
            };
            match old {
                Some(old) => undo.put.push(old),
                None => undo.remove.push(key),
            }
        }
        let pends = change.pend.iter().map(|(key, pending)| (*key, Some(pending)));
        for (key, pending) in pends.chain(change.settle.iter().map(|key| (*key, None))) {
            let old = match pending {
                Some(pending) => self.pending.insert(key, pending.clone()),
                None => self.pending.remove(&key),
            };
            match old {
                Some(old) => undo.pend.push((key, old)),
                None => undo.settle.push(key),
            }
        }
        undo
    }

    /// Every rule as listings have them: those that were made by themselves by prefix and origin, then those of the
    /// lists by name and prefix. From behind a place on, where there is one.
    pub fn listed(&self, after: Option<&Place>) -> impl Iterator<Item = RuleRef<'_>> {
        let own_after = after.filter(|place| place.list.is_none());
        let start = own_after
            .map_or(Bound::Unbounded, |place| Bound::Excluded((place.prefix, place.origin)));
        let in_list = after.and_then(|place| Some((place.list.as_deref()?, place.prefix)));
        let own = self.rules.range((start, Bound::Unbounded));
        let own = own.map(|(key, rule)| self.until_confirmed(key, rule));
        let own = in_list.is_none().then_some(own).into_iter().flatten();
        let lists = in_list.map_or(Bound::Unbounded, |(name, _)| Bound::Included(name));
        let lists = self.lists.range::<str, _>((lists, Bound::Unbounded));
        own.chain(lists.flat_map(move |(name, list)| {
            let prefix = in_list.filter(|(at, _)| at == name).map(|(_, prefix)| prefix);
            list.after(prefix)
        }))
    }

    /// Every prefix that has rules, some of them more than once.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let own = self.rules.keys().chain(self.pending.keys()).map(|key| key.0);
        own.chain(self.lists.values().flat_map(List::prefixes))
    }

    /// At most so many prefixes of IPv4 and of IPv6 have rules; fewer, if some have several.
    pub fn prefixes_max(&self) -> [usize; 2] {
        let own = self.rules.keys().chain(self.pending.keys());
        own.map(|(prefix, _)| {
            [usize::from(prefix.addr().is_ipv4()), usize::from(prefix.addr().is_ipv6())]
        })
        .chain(self.lists.values().map(List::prefixes_max))
        .fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]])
    }

    /// Every rule that a prefix has.
    pub fn of(&self, prefix: IpNet) -> impl Iterator<Item = RuleRef<'_>> {
        let own = self.rules.range(keys(prefix)).map(|(key, rule)| self.until_confirmed(key, rule));
        let pending = self.pending.range(keys(prefix)).filter_map(|(_, pending)| pending.then());
        let lists = self.lists.values().flat_map(move |list| list.find(prefix));
        own.chain(pending).chain(lists)
    }

    /// Every rule whose prefix lies in `prefix`, itself included.
    pub fn inside(&self, prefix: IpNet) -> impl Iterator<Item = RuleRef<'_>> {
        let start = (IpNet::new(prefix.network(), 0).unwrap_or(prefix), Origin::Ban);
        let last = prefix.broadcast();
        let own = self.rules.range(start..).take_while(move |(key, _)| key.0.addr() <= last);
        let own = own.map(|(key, rule)| self.until_confirmed(key, rule));
        let pending = self.pending.range(start..).take_while(move |(key, _)| key.0.addr() <= last);
        let pending = pending.filter_map(|(_, pending)| pending.then());
        let own = own.chain(pending).filter(move |rule| prefix.contains(&rule.prefix));
        own.chain(self.lists.values().flat_map(move |list| list.inside(prefix)))
    }

    /// Every rule whose prefix contains `address`, the shortest prefix first.
    pub fn covering(&self, address: IpAddr) -> impl Iterator<Item = RuleRef<'_>> {
        let full = IpNet::from(address);
        (0..=full.prefix_len()).flat_map(move |length| {
            let prefix = IpNet::new(full.addr(), length).map_or(full, |prefix| prefix.trunc());
            self.of(prefix)
        })
    }

    /// Puts the rules of `origin` in the place of all that it had. What stays the same stays as old as it is. Answers
    /// the prefixes that have other rules now.
    pub fn replace(
        &mut self,
        origin: Origin,
        rules: impl IntoIterator<Item = Rule>,
    ) -> BTreeSet<IpNet> {
        let before: BTreeMap<_, _> =
            self.rules.extract_if(.., |(_, other), _| *other == origin).collect();
        for mut rule in rules {
            if let Some(held) = before.get(&(rule.prefix, rule.origin))
                && (held.action, &held.profile_name) == (rule.action, &rule.profile_name)
            {
                rule.created = held.created;
            }
            // Two of one origin for one prefix: the one that would win stays.
            let weaker = |held: &Rule| held.as_ref().rank() < rule.as_ref().rank();
            if self.find(rule.prefix, rule.origin).is_none_or(weaker) {
                self.insert(rule);
            }
        }
        let mut changed: BTreeSet<IpNet> = before
            .values()
            .filter(|rule| self.find(rule.prefix, origin) != Some(rule))
            .map(|rule| rule.prefix)
            .collect();
        let now = self.rules.values().filter(|rule| rule.origin == origin);
        changed.extend(
            now.filter(|rule| !before.contains_key(&(rule.prefix, origin))).map(|rule| rule.prefix),
        );
        changed
    }

    /// Takes out what has ended, and puts back what was not confirmed in time.
    pub fn expire(&mut self, now: BootTime) -> Expired {
        let pending = self.pending.extract_if(.., |_, pending| pending.deadline.boot <= now);
        let unconfirmed: Vec<_> = pending.collect();
        for (key, pending) in &unconfirmed {
            match &pending.then {
                Some(rule) => self.rules.insert(*key, rule.clone()),
                None => self.rules.remove(key),
            };
        }
        let over = self.rules.extract_if(.., |_, rule| rule.is_over(now)).map(|(key, _)| key);
        let late = |list: &&List| list.before.as_ref().is_some_and(|b| b.deadline.boot <= now);
        let late = self.lists.values().filter(late).map(|list| list.name.clone());
        Expired {
            over: over.collect(),
            unconfirmed,
            unconfirmed_lists: late.collect(),
            entries: self.lists.values_mut().flat_map(|list| list.expire(now)).collect(),
        }
    }

    /// When the next rule ends, or begins again.
    pub fn next_end(&self) -> Option<BootTime> {
        let own = self.rules.values().map(|rule| rule.until.boot);
        let pending = self.pending.values().map(|pending| pending.deadline.boot);
        let lists = self.lists.values().map(List::next_end);
        own.chain(pending).chain(lists).filter(|end| end.0 != FOREVER).min()
    }

    /// The rules that come to hold for a prefix, among those that `keep` admits.
    pub fn winners(
        &self,
        prefix: IpNet,
        now: BootTime,
        keep: impl Fn(&RuleRef<'_>) -> bool,
    ) -> Winners<'_> {
        let mut rules = self.of(prefix).filter(|rule| rule.until.boot > now && keep(rule));
        let Some(only) = rules.next() else { return Winners::default() };
        let Some(other) = rules.next() else {
            return match only.dry_run {
                true => Winners { trial: Some(only), ..Winners::default() },
                false => Winners { first: Some(only), ..Winners::default() },
            };
        };
        let rules: Vec<RuleRef<'_>> = [only, other].into_iter().chain(rules).collect();
        let admitted = |admits: &dyn Fn(&RuleRef<'_>) -> bool| {
            let real = rules.iter().copied().filter(|rule| !rule.dry_run);
            real.filter(|rule| admits(rule)).collect::<Vec<_>>().into_iter()
        };
        let at = |moment: BootTime| {
            let holds = |rule: &RuleRef<'_>| rule.from <= moment && moment < rule.until.boot;
            admitted(&holds).max_by_key(RuleRef::rank)
        };
        let live = at(now);
        let beats = |rule: &RuleRef<'_>, live: RuleRef<'_>| {
            rule.rank() > live.rank() && rule.from < live.until.boot
        };
        let next = admitted(&|rule| rule.from > now && live.is_none_or(|live| beats(rule, live)));
        let next = next.min_by_key(|rule| (rule.from, Reverse(rule.rank())));
        let trial = rules.iter().copied().filter(|rule| rule.dry_run).max_by_key(RuleRef::rank);
        let trial = trial.filter(|trial| live.is_none_or(|live| trial.rank() > live.rank()));
        match next {
            Some(next) => Winners { first: Some(next), second: live, trial },
            None => {
                Winners { first: live, second: live.and_then(|live| at(live.until.boot)), trial }
            }
        }
    }

    /// A rule as it is until the end of the time to confirm it.
    fn until_confirmed<'a>(&self, key: &(IpNet, Origin), rule: &'a Rule) -> RuleRef<'a> {
        let mut rule = rule.as_ref();
        if let Some(pending) = self.pending.get(key)
            && pending.deadline.boot < rule.until.boot
        {
            rule.until = pending.deadline;
        }
        rule
    }
}

fn keys(prefix: IpNet) -> RangeInclusive<(IpNet, Origin)> {
    (prefix, Origin::Ban)..=(prefix, Origin::Forced)
}

/// The place of a rule in listings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The list that it is an entry of.
    pub list: Option<String>,
    /// Its prefix.
    pub prefix: IpNet,
    /// Number of the origin that made it.
    #[serde(with = "origin_number")]
    pub origin: Origin,
}

/// An origin as its number.
mod origin_number {
    use gateway_common::rule::Origin;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(origin: &Origin, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u8(*origin as u8)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Origin, D::Error> {
        let number = u8::deserialize(from)?;
        Origin::from_number(number).ok_or_else(|| D::Error::custom("no origin has this number"))
    }
}

/// The rules of one prefix that come to hold. The first holds whenever it may; else the second does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Winners<'a> {
    /// The stronger one.
    pub first: Option<RuleRef<'a>>,
    /// Holds before the first begins or after it has ended.
    pub second: Option<RuleRef<'a>>,
    /// Would hold now if it were not for a dry run.
    pub trial: Option<RuleRef<'a>>,
}

impl tables::Networks for RuleSet {
    fn within(&self, first: u32, last: u32) -> impl Iterator<Item = TagV4> {
        let key = |address: u32, length, origin| {
            let address = Ipv4Addr::from(address);
            // The length must not mask the address here, only order it.
            (IpNet::V4(Ipv4Net::new(address, length).unwrap_or(Ipv4Net::from(address))), origin)
        };
        let range = key(first, 0, Origin::Ban)..=key(last, 32, Origin::Forced);
        let own = self.rules.range(range).filter_map(|((prefix, _), _)| tag_v4(prefix));
        own.chain(self.lists.values().flat_map(move |list| list.within(first, last)))
    }
}

#[cfg(test)]
mod tests;
