//! The rule set: who made which rule, which of them wins, and until when.
//!
//! One prefix can have one rule of each origin. Within a prefix the higher origin wins; between prefixes the longer one
//! does, which is for the lookup to find. What must never be blocked is in [`protected`].

use std::collections::BTreeMap;

use gateway_common::rule::{Action, FOREVER, Origin};
use ipnet::IpNet;

use crate::base::time::{BootTime, Now, UtcMillis};

pub mod classify;
pub mod protected;
pub mod sockets;

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
    /// the host itself [`gateway_common::rule::OWN_ADDRESS`]; otherwise 0.
    pub profile: u8,
    /// Why, in the words of whoever made it.
    pub reason: String,
    /// When it was made.
    pub created: UtcMillis,
    /// First moment at which it holds no longer.
    pub until: Until,
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

impl Until {
    /// No end.
    pub const NEVER: Self = Self { boot: BootTime(FOREVER), utc: None };

    /// The end of what begins now and lasts so long.
    pub fn after(now: Now, duration: Option<std::time::Duration>) -> Self {
        duration.map_or(Self::NEVER, |duration| {
            let utc = now.utc.after(duration);
            Self { boot: now.boot_of(utc), utc: Some(utc) }
        })
    }
}

impl Rule {
    /// Whether it has ended.
    pub fn is_over(&self, now: BootTime) -> bool {
        self.until.boot <= now
    }

    /// Order within one prefix: the greater rule wins.
    fn rank(&self) -> (Origin, u8) {
        let action = match self.action {
            Action::Allow => 3,
            Action::Limit => 2,
            Action::Deny => 1,
            Action::Reset => 0,
        };
        (self.origin, action)
    }
}

/// All rules.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    rules: BTreeMap<(IpNet, Origin), Rule>,
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

    /// The rule of a prefix and origin.
    pub fn find(&self, prefix: IpNet, origin: Origin) -> Option<&Rule> {
        self.rules.get(&(prefix, origin))
    }

    /// Every rule, by prefix and then by origin.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.values()
    }

    /// Puts the rules of `origin` in the place of all that it had. What stays the same stays as old as it is.
    pub fn replace(&mut self, origin: Origin, rules: impl IntoIterator<Item = Rule>) {
        let before: BTreeMap<_, _> =
            self.rules.extract_if(.., |(_, other), _| *other == origin).collect();
        for mut rule in rules {
            if let Some(held) = before.get(&(rule.prefix, rule.origin))
                && (held.action, held.profile) == (rule.action, rule.profile)
            {
                rule.created = held.created;
            }
            // Two of one origin for one prefix: the one that would win stays.
            let weaker = |held: &Rule| held.rank() < rule.rank();
            if self.find(rule.prefix, rule.origin).is_none_or(weaker) {
                self.insert(rule);
            }
        }
    }

    /// Takes out what has ended.
    pub fn expire(&mut self, now: BootTime) -> Vec<Rule> {
        self.rules.extract_if(.., |_, rule| rule.is_over(now)).map(|(_, rule)| rule).collect()
    }

    /// When the next rule ends.
    pub fn next_end(&self) -> Option<BootTime> {
        self.rules.values().map(|rule| rule.until.boot).filter(|end| end.0 != FOREVER).min()
    }

    /// For each prefix the rule that holds and the one that takes over when it ends, among those that `keep` admits.
    pub fn winners<'a>(&'a self, keep: impl Fn(&Rule) -> bool) -> BTreeMap<IpNet, Winners<'a>> {
        let mut candidates: BTreeMap<IpNet, Vec<&Rule>> = BTreeMap::new();
        for rule in self.rules.values().filter(|rule| keep(rule)) {
            candidates.entry(rule.prefix).or_default().push(rule);
        }
        candidates
            .into_iter()
            .filter_map(|(prefix, mut rules)| {
                rules.sort_by_key(|rule| std::cmp::Reverse(rule.rank()));
                let mut rules = rules.into_iter();
                let first = rules.next()?;
                let second = rules.find(|rule| rule.until.boot > first.until.boot);
                Some((prefix, Winners { first, second }))
            })
            .collect()
    }
}

/// The rules of one prefix that come to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Winners<'a> {
    /// Holds now.
    pub first: &'a Rule,
    /// Holds when the first has ended.
    pub second: Option<&'a Rule>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: Now = Now { boot: BootTime(1_000_000_000), utc: UtcMillis(1_800_000_000_000) };

    fn rule(prefix: &str, action: Action, origin: Origin, seconds: Option<u64>) -> Rule {
        Rule {
            prefix: prefix.parse().unwrap(),
            action,
            origin,
            profile: 0,
            reason: String::new(),
            created: NOW.utc,
            until: Until::after(NOW, seconds.map(Duration::from_secs)),
        }
    }

    fn set(rules: impl IntoIterator<Item = Rule>) -> RuleSet {
        let mut set = RuleSet::default();
        for rule in rules {
            set.insert(rule);
        }
        set
    }

    #[test]
    fn the_higher_origin_wins_within_a_prefix() {
        let set = set([
            rule("10.0.0.0/8", Action::Allow, Origin::Feed, None),
            rule("10.0.0.0/8", Action::Deny, Origin::Operator, None),
            rule("10.0.0.0/8", Action::Allow, Origin::Configuration, None),
        ]);
        let winners = set.winners(|_| true);
        let winner = winners[&"10.0.0.0/8".parse().unwrap()];
        assert_eq!(winner.first.origin, Origin::Operator);
        assert_eq!(winner.second, None, "it never ends, so nobody takes over");
    }

    #[test]
    fn what_outlives_the_winner_takes_over() {
        let set = set([
            rule("10.0.0.0/8", Action::Deny, Origin::Feed, None),
            rule("10.0.0.0/8", Action::Deny, Origin::List, Some(5)),
            rule("10.0.0.0/8", Action::Allow, Origin::Operator, Some(60)),
        ]);
        let winners = set.winners(|_| true);
        let winner = winners[&"10.0.0.0/8".parse().unwrap()];
        assert_eq!(winner.first.origin, Origin::Operator);
        assert_eq!(winner.second.unwrap().origin, Origin::Feed);
    }

    #[test]
    fn what_has_ended_is_taken_out() {
        let mut set = set([
            rule("10.0.0.0/8", Action::Deny, Origin::Operator, Some(5)),
            rule("11.0.0.0/8", Action::Deny, Origin::Operator, None),
        ]);
        assert_eq!(set.next_end(), Some(BootTime(6_000_000_000)));
        assert!(set.expire(BootTime(5_999_999_999)).is_empty());
        assert_eq!(set.expire(BootTime(6_000_000_000)).len(), 1);
        assert_eq!(set.next_end(), None);
    }

    #[test]
    fn a_rule_that_is_replaced_by_itself_keeps_its_age() {
        let old = rule("10.0.0.0/8", Action::Deny, Origin::Configuration, None);
        let mut set = set([old.clone()]);
        let again = Rule { created: NOW.utc.after(Duration::from_secs(60)), ..old.clone() };
        let other = Rule { action: Action::Allow, ..again.clone() };
        set.replace(Origin::Configuration, [again]);
        assert_eq!(set.find(old.prefix, old.origin), Some(&old));
        set.replace(Origin::Configuration, [other.clone()]);
        assert_eq!(set.find(old.prefix, old.origin), Some(&other));
    }

    #[test]
    fn replacing_an_origin_leaves_the_others() {
        let mut set = set([
            rule("10.0.0.0/8", Action::Deny, Origin::Operator, None),
            rule("11.0.0.0/8", Action::Deny, Origin::Configuration, None),
        ]);
        set.replace(
            Origin::Configuration,
            [
                rule("12.0.0.0/8", Action::Deny, Origin::Configuration, None),
                rule("12.0.0.0/8", Action::Allow, Origin::Configuration, None),
            ],
        );
        let rules: Vec<_> = set.iter().map(|rule| (rule.prefix.to_string(), rule.action)).collect();
        assert_eq!(
            rules,
            [("10.0.0.0/8".to_owned(), Action::Deny), ("12.0.0.0/8".to_owned(), Action::Allow)]
        );
    }
}
