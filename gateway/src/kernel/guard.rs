//! The only maker of [`SafeToBlock`], without which no rule that can drop a packet is built.

use std::collections::BTreeMap;

use gateway_common::rule::{Action, Entry, Origin, Rules};
use ipnet::IpNet;
use thiserror::Error;

use crate::base::prefix::display;
use crate::base::time::BootTime;
use crate::rules::protected::{Protected, describe};
use crate::rules::{Rule, RuleSet};

/// Proof that a rule which can drop packets was held against the protected addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SafeToBlock(());

/// Why a rule may not be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{} must never be blocked, for it is in {protected}: insist with --force if it is to be, all the same",
    display(prefix)
)]
pub struct Refused {
    /// The prefix of the rule.
    pub prefix: IpNet,
    /// The protected prefix and the reason why it is one.
    pub protected: String,
}

/// Holds a rule for `prefix` against the protected addresses.
///
/// A prefix inside a protected one is refused, unless somebody at the command line insisted. A wider one is safe: the
/// protected addresses inside it keep their own, more specific allow rules.
pub fn clear(protected: &Protected, prefix: IpNet, origin: Origin) -> Result<SafeToBlock, Refused> {
    match protected.covering(&prefix) {
        Some(found) if origin < Origin::Protected => {
            Err(Refused { prefix, protected: describe(found) })
        }
        _ => Ok(SafeToBlock(())),
    }
}

/// A rule that may go into the kernel: it lets packets through, or it was cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleared {
    /// Who made it.
    pub origin: Origin,
    /// First moment at which it holds no longer.
    pub until: BootTime,
    profile: u16,
    effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Allow,
    Block(Action, SafeToBlock),
}

impl Cleared {
    fn of(rule: &Rule, protected: &Protected) -> Result<Self, Refused> {
        let effect = match rule.action {
            Action::Allow => Effect::Allow,
            action => Effect::Block(action, clear(protected, rule.prefix, rule.origin)?),
        };
        Ok(Self { origin: rule.origin, until: rule.until.boot, profile: rule.profile, effect })
    }

    /// What it does.
    pub fn action(&self) -> Action {
        match self.effect {
            Effect::Allow => Action::Allow,
            Effect::Block(action, SafeToBlock(())) => action,
        }
    }

    /// As the maps hold it, with its hits counted in `slot`.
    pub fn entry(&self, slot: u32, generation: u32) -> Entry {
        Entry {
            active_from: 0,
            active_until: self.until.0,
            slot,
            generation,
            action: self.action() as u8,
            origin: self.origin as u8,
            profile: self.profile,
            reserved: 0,
        }
    }
}

/// The rules of one prefix that come to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClearedPair {
    /// Holds now.
    pub first: Cleared,
    /// Holds when the first has ended.
    pub second: Option<Cleared>,
}

/// Everything that is to be enforced, and what was held back.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// By prefix.
    pub enforced: BTreeMap<IpNet, ClearedPair>,
    /// Rules that lie inside protected prefixes, by prefix and origin.
    pub held_back: BTreeMap<(IpNet, Origin), Refused>,
}

/// Makes of all rules the ones that are enforced.
pub fn compile(rules: &RuleSet, protected: &Protected) -> Compiled {
    let mut held_back = BTreeMap::new();
    for rule in rules.iter() {
        if let Err(refused) = Cleared::of(rule, protected) {
            held_back.insert((rule.prefix, rule.origin), refused);
        }
    }
    let winners = rules.winners(|rule| !held_back.contains_key(&(rule.prefix, rule.origin)));
    let enforced = winners
        .into_iter()
        .filter_map(|(prefix, pair)| {
            let first = Cleared::of(pair.first, protected).ok()?;
            let second = pair.second.and_then(|rule| Cleared::of(rule, protected).ok());
            Some((prefix, ClearedPair { first, second }))
        })
        .collect();
    Compiled { enforced, held_back }
}

impl Compiled {
    /// As user space looks them up, where no hits are counted.
    pub fn classifier(&self) -> crate::rules::classify::Classifier {
        crate::rules::classify::Classifier::new(self.enforced.iter().map(|(prefix, pair)| {
            let second = pair.second.map(|rule| rule.entry(0, 0)).unwrap_or_default();
            (*prefix, Rules { first: pair.first.entry(0, 0), second })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::UtcMillis;
    use crate::rules::Until;
    use proptest::prelude::*;

    fn protected() -> Protected {
        let mut protected = Protected::default();
        protected.add("10.1.0.0/16".parse().unwrap(), "trusted proxy");
        protected.add_address("10.0.0.11".parse().unwrap(), "upstream users");
        protected
    }

    fn rule(prefix: IpNet, action: Action, origin: Origin) -> Rule {
        Rule {
            prefix,
            action,
            origin,
            profile: 0,
            reason: String::new(),
            created: UtcMillis(0),
            until: Until::NEVER,
        }
    }

    #[test]
    fn inside_a_protected_prefix_is_refused_unless_forced() {
        let prefix = "10.0.0.11/32".parse().unwrap();
        let refused = clear(&protected(), prefix, Origin::Operator).unwrap_err();
        assert_eq!(refused.protected, "10.0.0.11 (upstream users)");
        assert!(clear(&protected(), prefix, Origin::Ban).is_err());
        assert!(clear(&protected(), prefix, Origin::Forced).is_ok());
        assert!(clear(&protected(), "10.0.0.0/8".parse().unwrap(), Origin::Operator).is_ok());
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
            let classifier = compile(&set, &protected).classifier();
            for address in ["10.0.0.11", "10.1.0.0", "10.1.77.3", "10.1.255.255"] {
                let action = classifier.action(address.parse().unwrap(), BootTime(5));
                prop_assert_eq!(action, Some(Action::Allow), "{}", address);
            }
        }
    }
}
