//! The only maker of [`SafeToBlock`], without which no rule that can drop a packet is built.

use gateway_common::rule::{Action, Origin};
use gateway_common::table::{Head, Span};
use ipnet::IpNet;
use thiserror::Error;

use crate::base::prefix::{Cover, display};
use crate::base::time::BootTime;
use crate::rules::protected::{Protected, describe};
use crate::rules::tables::Pair;
use crate::rules::{RuleRef, RuleSet};

/// Proof that a rule which can drop packets was held against the protected addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SafeToBlock(());

/// Why a rule may not be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// It lies inside of what must never be blocked.
    #[error("{} must never be blocked, for it is in {protected}", display(prefix))]
    Protected {
        /// The prefix of the rule.
        prefix: IpNet,
        /// The protected prefix and the reason why it is one.
        protected: String,
    },
    /// A feed or a ban has no say where somebody at the command line has let in.
    #[error("{} lies in {}, which an operator allows", display(prefix), display(allowed))]
    Allowed {
        /// The prefix of the rule.
        prefix: IpNet,
        /// The prefix that is let in.
        allowed: IpNet,
    },
}

/// What rules are held against.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    protected: Protected,
    /// What operators let in.
    allowed: Cover,
}

impl Guard {
    /// Guards these addresses, and what the rules of operators let in.
    pub fn new(protected: Protected, rules: &RuleSet) -> Self {
        let mut guard = Self { protected, allowed: Cover::default() };
        guard.follow(rules);
        guard
    }

    /// What operators let in may have changed.
    pub fn follow(&mut self, rules: &RuleSet) {
        let allows = |action, origin| action == Action::Allow && origin == Origin::Operator;
        let allows = rules.iter().filter(|rule| allows(rule.action, rule.origin));
        self.allowed = allows.map(|rule| rule.prefix).collect();
    }

    /// The addresses that must never be blocked.
    pub fn protected(&self) -> &Protected {
        &self.protected
    }

    /// Whether a rule for this prefix may be held back.
    pub fn covers_all_of(&self, prefix: &IpNet) -> bool {
        self.protected.covering(prefix).is_some() || self.allowed.covering(prefix).is_some()
    }

    /// The prefixes inside of which rules may be held back.
    pub fn covers(&self) -> impl Iterator<Item = &IpNet> {
        self.protected.iter().map(|(prefix, _)| prefix).chain(self.allowed.iter())
    }

    /// Holds a rule for `prefix` against them.
    ///
    /// A prefix inside a protected one is refused, unless somebody at the command line insisted. A wider one is safe:
    /// the protected addresses inside it keep their own, more specific allow rules. What operators let in, feeds and
    /// bans do not touch, however specific they are.
    pub fn clear(&self, prefix: IpNet, origin: Origin) -> Result<SafeToBlock, Refused> {
        if origin < Origin::Protected
            && let Some(found) = self.protected.covering(&prefix)
        {
            return Err(Refused::Protected { prefix, protected: describe(found) });
        }
        if origin <= Origin::Feed
            && let Some(allowed) = self.allowed.covering(&prefix)
        {
            return Err(Refused::Allowed { prefix, allowed: *allowed });
        }
        Ok(SafeToBlock(()))
    }

    /// Why a rule is held back, if it is.
    pub fn refuses(&self, rule: &RuleRef<'_>) -> Option<Refused> {
        match rule.action {
            Action::Allow => None,
            _ => self.clear(rule.prefix, rule.origin).err(),
        }
    }

    /// The rule that holds for a prefix now, of those that are not held back.
    pub fn winner<'a>(
        &self,
        rules: &'a RuleSet,
        prefix: IpNet,
        now: BootTime,
    ) -> Option<RuleRef<'a>> {
        let winners = rules.winners(prefix, now, |rule| self.refuses(rule).is_none());
        winners.first.filter(|first| first.from <= now).or(winners.second)
    }

    /// The rules that a prefix is to have in the tables, of those that are not held back.
    pub fn winners(&self, rules: &RuleSet, prefix: IpNet, now: BootTime) -> Option<ClearedPair> {
        let cleared = |rule: RuleRef<'_>| Cleared::of(&rule, self);
        let winners = rules.winners(prefix, now, |rule| cleared(*rule).is_some());
        let tried = winners.trial.and_then(cleared);
        match winners.first.and_then(cleared) {
            Some(first) => {
                let second = winners.second.and_then(cleared);
                Some(ClearedPair { first, second, tried: tried.is_some(), trial: false })
            }
            None => Some(ClearedPair { first: tried?, second: None, tried: true, trial: true }),
        }
    }
}

/// A rule that may go into the kernel: it lets packets through, or it was cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleared {
    /// Who made it.
    pub origin: Origin,
    from: BootTime,
    until: BootTime,
    profile: u8,
    effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Allow,
    Block(Action, SafeToBlock),
}

impl Cleared {
    fn of(rule: &RuleRef<'_>, guard: &Guard) -> Option<Self> {
        let effect = match rule.action {
            Action::Allow => Effect::Allow,
            action => Effect::Block(action, guard.clear(rule.prefix, rule.origin).ok()?),
        };
        let RuleRef { origin, from, profile, .. } = *rule;
        Some(Self { origin, from, until: rule.until.boot, profile, effect })
    }

    /// What it does.
    pub fn action(&self) -> Action {
        match self.effect {
            Effect::Allow => Action::Allow,
            Effect::Block(action, SafeToBlock(())) => action,
        }
    }

    /// As the tables have it.
    fn head(&self, second: bool) -> (Head, Span) {
        let head = Head::new(self.action(), self.origin, self.profile, second);
        (head, Span::between_ns(self.from.0, self.until.0))
    }
}

/// The rules of one prefix that come to hold. The first holds whenever it may; else the second does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClearedPair {
    /// The stronger one.
    pub first: Cleared,
    /// Holds before the first begins or after it has ended.
    pub second: Option<Cleared>,
    /// Whether the dry run of a list would drop the packets of the prefix.
    tried: bool,
    /// Whether the first is that dry run, and decides nothing.
    trial: bool,
}

impl ClearedPair {
    /// As the tables have them.
    pub fn heads(&self) -> Pair {
        let mark = |(head, span): (Head, Span)| match (self.trial, self.tried) {
            (true, _) => (head.trial(), span),
            (false, true) => (head.tried(), span),
            (false, false) => (head, span),
        };
        (mark(self.first.head(false)), self.second.map(|rule| mark(rule.head(true))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::apply::{Wanted, apply_all};
    use super::*;
    use crate::base::time::UtcMillis;
    use crate::rules::classify::Classifier;
    use crate::rules::tables::{Memory, RuleTables};
    use crate::rules::{Rule, Until};
    use proptest::prelude::*;

    fn protected() -> Protected {
        let mut protected = Protected::default();
        protected.add("10.1.0.0/16".parse().unwrap(), "trusted proxy");
        protected.add_address("10.0.0.11".parse().unwrap(), "upstream users");
        protected
    }

    fn guard() -> Guard {
        Guard::new(protected(), &RuleSet::default())
    }

    fn rule(prefix: IpNet, action: Action, origin: Origin) -> Rule {
        Rule {
            prefix,
            action,
            origin,
            profile: 0,
            profile_name: String::new(),
            reason: String::new(),
            created: UtcMillis(0),
            until: Until::NEVER,
        }
    }

    #[test]
    fn inside_a_protected_prefix_is_refused_unless_forced() {
        let prefix = "10.0.0.11/32".parse().unwrap();
        let refused = guard().clear(prefix, Origin::Operator).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "10.0.0.11 must never be blocked, for it is in 10.0.0.11 (upstream users)"
        );
        assert!(guard().clear(prefix, Origin::Ban).is_err());
        assert!(guard().clear(prefix, Origin::Forced).is_ok());
        assert!(guard().clear("10.0.0.0/8".parse().unwrap(), Origin::Operator).is_ok());
    }

    #[test]
    fn feeds_and_bans_have_no_say_where_an_operator_lets_in() {
        let mut rules = RuleSet::default();
        rules.insert(rule("192.0.2.0/24".parse().unwrap(), Action::Allow, Origin::Operator));
        let guard = Guard::new(protected(), &rules);
        let prefix = "192.0.2.7/32".parse().unwrap();
        for origin in [Origin::Ban, Origin::Feed] {
            let refused = guard.clear(prefix, origin).unwrap_err().to_string();
            assert_eq!(refused, "192.0.2.7 lies in 192.0.2.0/24, which an operator allows");
        }
        assert!(guard.clear(prefix, Origin::List).is_ok());
        assert!(guard.clear("192.0.0.0/16".parse().unwrap(), Origin::Feed).is_ok());
    }

    proptest! {
        /// However the rules are, a protected address is let through unless somebody forced it.
        #[test]
        fn no_unforced_rule_blocks_a_protected_address(
            rules in proptest::collection::vec((0u32..16, 8u8..=32, 1u8..=3, 1u8..=5), 0..30),
        ) {
            let protected = protected();
            let mut set = RuleSet::default();
            for (prefix, reason) in protected.iter() {
                let mut own = rule(*prefix, Action::Allow, Origin::Protected);
                own.reason = reason.to_owned();
                set.insert(own);
            }
            for (bits, length, action, origin) in rules {
                let address = std::net::Ipv4Addr::from(0x0a00_0000 | bits << 14 | bits);
                let prefix = IpNet::new(address.into(), length).unwrap().trunc();
                set.insert(rule(
                    prefix,
                    Action::from_number(action).unwrap(),
                    Origin::from_number(origin).unwrap(),
                ));
            }
            let guard = Guard::new(protected, &set);
            let mut tables = RuleTables::open(Memory::own(64).unwrap(), 64);
            let now = BootTime(5);
            let wanted = Wanted { rules: &set, guard: &guard, now, complete: true };
            apply_all(&mut tables, wanted).unwrap();
            let classifier = Classifier::new(tables.reader());
            for address in ["10.0.0.11", "10.1.0.0", "10.1.77.3", "10.1.255.255"] {
                let action = classifier.action(address.parse().unwrap(), BootTime(5));
                prop_assert_eq!(action, Some(Action::Allow), "{}", address);
            }
        }
    }
}
