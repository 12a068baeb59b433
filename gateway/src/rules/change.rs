//! Changes of the rules that were made by themselves: made, undone, and put back when nobody confirms them.

use gateway_common::rule::Origin;
use ipnet::IpNet;

use super::{Rule, RuleRef, Until};
use crate::base::time::UtcMillis;

/// What becomes of a rule, or of the lack of one, unless somebody confirms in time how it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// When the change was made.
    pub made: UtcMillis,
    /// The end of the time to confirm it.
    pub deadline: Until,
    /// What there is then, with the same prefix and origin.
    pub then: Option<Rule>,
}

/// By what a rule that was made by itself is known.
pub type Key = (IpNet, Origin);

/// What becomes of rules that were made by themselves, in one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Rules that are made, in the place of those with the same prefix and origin.
    pub put: Vec<Rule>,
    /// Rules that are taken out.
    pub remove: Vec<Key>,
    /// What waits to be confirmed from now on.
    pub pend: Vec<(Key, Pending)>,
    /// What waits no longer.
    pub settle: Vec<Key>,
}

impl Change {
    /// Every prefix and origin that is concerned.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        let put = self.put.iter().map(|rule| (rule.prefix, rule.origin));
        let pend = self.pend.iter().map(|(key, _)| *key);
        put.chain(pend).chain(self.remove.iter().copied()).chain(self.settle.iter().copied())
    }
}

impl Pending {
    /// The rule as it will be.
    pub(super) fn then(&self) -> Option<RuleRef<'_>> {
        let rule = self.then.as_ref()?.as_ref();
        Some(RuleRef { from: self.deadline.boot, ..rule })
    }
}

/// What [`super::RuleSet::expire`] changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Rules that ended.
    pub over: Vec<Key>,
    /// Changes that nobody confirmed, which were undone.
    pub unconfirmed: Vec<(Key, Pending)>,
    /// Names of lists that went back to the version before, for the same reason.
    pub unconfirmed_lists: Vec<String>,
    /// Prefixes of the entries of lists that ended.
    pub entries: Vec<IpNet>,
}

impl Expired {
    /// Every prefix that has other rules now.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let own = self.over.iter().chain(self.unconfirmed.iter().map(|(key, _)| key));
        own.map(|key| key.0).chain(self.entries.iter().copied())
    }

    /// What the store has to know of it.
    pub fn change(&self) -> Change {
        let then = |(_, pending): &(Key, Pending)| pending.then.clone();
        let is_over = |rule: &Rule| self.over.contains(&(rule.prefix, rule.origin));
        let put = self.unconfirmed.iter().filter_map(then).filter(|rule| !is_over(rule));
        let gone = self.unconfirmed.iter().filter(|(_, pending)| pending.then.is_none());
        Change {
            put: put.collect(),
            remove: self.over.iter().copied().chain(gone.map(|(key, _)| *key)).collect(),
            pend: Vec::new(),
            settle: self.unconfirmed.iter().map(|(key, _)| *key).collect(),
        }
    }
}
