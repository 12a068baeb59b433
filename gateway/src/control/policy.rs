//! The rules and everything that enforces them, changed together: the store first, then the kernel, then user space.
//! What cannot be enforced is undone in the store, so that nobody is told of a rule that is not.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use gateway_common::rule::{Action, Origin};
use ipnet::IpNet;

use crate::admin::api::{Add, Done, ListAction, Refusal, Remove};
use crate::base::prefix::{self, display};
use crate::base::time::Now;
use crate::config::Config;
use crate::kernel::Door;
use crate::kernel::guard::{self, Compiled};
use crate::kernel::tables::TablesError;
use crate::rules::classify::Classifier;
use crate::rules::protected::{Protected, describe};
use crate::rules::{Rule, RuleSet, Until};
use crate::store::Store;

use super::protect;

/// Prefixes shorter than this cover so much that somebody has to say yes. (bits)
const LARGE_V4_BITS: u8 = 8;
/// The same for IPv6; the shortest prefix that a registry hands out is a /12, an operator's usually a /32.
const LARGE_V6_BITS: u8 = 20;
/// Protected addresses named in one message.
const NAMED_MAX: usize = 5;

/// The rules and what enforces them.
pub struct Policy {
    rules: RuleSet,
    protected: Protected,
    compiled: Compiled,
    store: Store,
    /// The kernel door, when it is open.
    pub door: Option<Door>,
    /// What the workers look up. Empty in a dry run.
    classifier: Arc<ArcSwap<Classifier>>,
    dry_run: bool,
}

impl Policy {
    /// The policy of a configuration and of what the store kept.
    pub fn new(
        config: &Config,
        protected: Protected,
        store: Store,
        now: Now,
    ) -> Result<Self, crate::store::StoreError> {
        let mut rules = RuleSet::default();
        for rule in store.rules(now)? {
            rules.insert(rule);
        }
        let mut policy = Self {
            rules,
            protected: Protected::default(),
            compiled: Compiled::default(),
            store,
            door: None,
            classifier: Arc::default(),
            dry_run: false,
        };
        policy.configure(config, protected, now);
        Ok(policy)
    }

    /// Takes over the rules of a configuration, without telling the kernel.
    pub fn configure(&mut self, config: &Config, protected: Protected, now: Now) {
        self.rules.replace(&[Origin::Configuration], protect::configured(config, now.utc));
        self.dry_run = config.kernel.dry_run;
        self.protect(protected, now);
        self.compile();
    }

    /// What the workers look up.
    pub fn classifier(&self) -> Arc<ArcSwap<Classifier>> {
        Arc::clone(&self.classifier)
    }

    /// What is to be enforced.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// All rules, enforced or not.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// The store, to be handed to another user.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether drops are only counted.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Lets user space enforce what is compiled now.
    pub fn publish(&self) {
        let classifier =
            if self.dry_run { Classifier::default() } else { self.compiled.classifier() };
        self.classifier.store(Arc::new(classifier));
    }

    /// Takes note of the protected addresses as they are now. Answers whether they have changed.
    pub fn refresh(&mut self, protected: Protected, now: Now) -> Result<bool, TablesError> {
        if protected == self.protected {
            return Ok(false);
        }
        self.protect(protected, now);
        self.enforce()?;
        Ok(true)
    }

    /// Makes rules: all of them or none.
    pub fn add(&mut self, add: &Add, now: Now) -> Result<Done, Refusal> {
        if add.prefixes.is_empty() {
            return Err(Refusal::usage(
                "no prefix given: write 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32",
            ));
        }
        let mut done = Done::default();
        let mut put = Vec::new();
        for text in &add.prefixes {
            let prefix = prefix::parse(text).map_err(Refusal::usage)?;
            let rule = self.rule(prefix, add, now)?;
            self.comment(&rule, &mut done);
            put.push(rule);
        }
        self.change(&put, &[]).map_err(Refusal::failed)?;
        Ok(done)
    }

    /// Takes rules back: all of them or none.
    pub fn remove(&mut self, remove: &Remove) -> Result<Done, Refusal> {
        let action = action_of(remove.action);
        let mut done = Done::default();
        let mut gone = Vec::new();
        for text in &remove.prefixes {
            let prefix = prefix::parse(text).map_err(Refusal::usage)?;
            let made_by = |origin: &Origin| {
                self.rules.find(prefix, *origin).is_some_and(|rule| rule.action == action)
            };
            let origins: Vec<Origin> =
                [Origin::Operator, Origin::Forced].into_iter().filter(made_by).collect();
            if origins.is_empty() {
                return Err(self.not_removable(prefix, action));
            }
            gone.extend(origins.into_iter().map(|origin| (prefix, origin)));
            done.done.push(format!("{} {} removed", action.name(), display(&prefix)));
        }
        self.change(&[], &gone).map_err(Refusal::failed)?;
        for (prefix, _) in gone {
            if let Some(winner) = self.compiled.enforced.get(&prefix) {
                let (action, origin) = (winner.first.action().name(), winner.first.origin.name());
                let prefix = display(&prefix);
                done.notes.push(format!("{prefix} is still under {action} by {origin}"));
            }
        }
        Ok(done)
    }

    /// Takes out what has ended. Answers how many rules that were.
    pub fn expire(&mut self, now: Now) -> anyhow::Result<usize> {
        if self.rules.next_end().is_none_or(|end| end > now.boot) {
            return Ok(0);
        }
        let over = self.rules.expire(now.boot);
        let keys: Vec<_> = over.iter().map(|rule| (rule.prefix, rule.origin)).collect();
        self.enforce()?;
        self.store.change(&[], &keys)?;
        Ok(over.len())
    }

    /// Makes kernel and user space enforce the rules as they are.
    pub fn enforce(&mut self) -> Result<(), TablesError> {
        let before = std::mem::take(&mut self.compiled);
        self.compile();
        if let Some(door) = &mut self.door
            && let Err(error) = door.apply(&self.compiled)
        {
            self.compiled = before;
            return Err(error);
        }
        self.publish();
        Ok(())
    }

    fn protect(&mut self, protected: Protected, now: Now) {
        self.rules.replace(&[Origin::Protected], protect::rules(&protected, now.utc));
        self.protected = protected;
    }

    fn compile(&mut self) {
        self.compiled = guard::compile(&self.rules, &self.protected);
        for ((prefix, origin), refused) in &self.compiled.held_back {
            let (prefix, origin) = (display(prefix), origin.name());
            tracing::warn!(prefix, origin, reason = %refused, "rule held back");
        }
    }

    /// The rule that a command makes for one prefix.
    fn rule(&self, prefix: IpNet, add: &Add, now: Now) -> Result<Rule, Refusal> {
        let action = action_of(add.action);
        let least = if prefix.addr().is_ipv4() { LARGE_V4_BITS } else { LARGE_V6_BITS };
        if prefix.prefix_len() < least && !add.yes {
            let family = if prefix.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            let share = match prefix.prefix_len() {
                0 => format!("all of {family}"),
                length => format!("1/{} of all {family} addresses", 1u64 << length),
            };
            return Err(Refusal::failed(format!(
                "{prefix} is {share}: add --yes if that is meant"
            )));
        }
        let mut origin = Origin::Operator;
        if action != Action::Allow
            && let Err(refused) = guard::clear(&self.protected, prefix, origin)
        {
            if !add.force {
                return Err(Refusal::failed(refused));
            }
            origin = Origin::Forced;
        }
        Ok(Rule {
            prefix,
            action,
            origin,
            profile: 0,
            reason: add.reason.clone(),
            created: now.utc,
            until: Until::after(now, add.for_ms.map(Duration::from_millis)),
        })
    }

    /// Says what will be done, and what else the rule meets.
    fn comment(&self, rule: &Rule, done: &mut Done) {
        let prefix = display(&rule.prefix);
        let until = rule.until.utc.map(|end| format!(" until {}", end.display()));
        let action = rule.action.name();
        done.done.push(format!("{action} {prefix}{}", until.unwrap_or_default()));
        if let Some(held) = self.rules.find(rule.prefix, rule.origin) {
            done.notes.push(format!("{prefix}: replaces `{}` by operator", held.action.name()));
        }
        if rule.action == Action::Allow {
            return;
        }
        let spared: Vec<String> = self.protected.inside(&rule.prefix).map(describe).collect();
        if !spared.is_empty() {
            let named = spared.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
            let more = match spared.len().saturating_sub(NAMED_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            done.notes.push(format!("{prefix}: applies around {named}{more}, never blocked"));
        }
    }

    fn not_removable(&self, prefix: IpNet, action: Action) -> Refusal {
        let shown = display(&prefix);
        let others: Vec<&str> = Origin::ALL
            .into_iter()
            .filter(|origin| {
                self.rules.find(prefix, *origin).is_some_and(|rule| rule.action == action)
            })
            .map(Origin::name)
            .collect();
        Refusal::failed(if others.contains(&"configuration") {
            format!(
                "{} {shown} comes from the configuration: take it out there and run `gateway reload`",
                action.name()
            )
        } else {
            format!("there is no {0} rule for {shown}: see `gateway {0} list`", action.name())
        })
    }

    /// Changes the store, then the kernel and user space; what cannot be enforced is undone everywhere.
    fn change(&mut self, put: &[Rule], remove: &[(IpNet, Origin)]) -> anyhow::Result<()> {
        let before = self.rules.clone();
        self.store.change(put, remove)?;
        for (prefix, origin) in remove {
            self.rules.remove(*prefix, *origin);
        }
        for rule in put {
            self.rules.insert(rule.clone());
        }
        let Err(error) = self.enforce() else { return Ok(()) };
        let touched =
            put.iter().map(|rule| (rule.prefix, rule.origin)).chain(remove.iter().copied());
        let touched: Vec<(IpNet, Origin)> = touched.collect();
        let old: Vec<Rule> = touched
            .iter()
            .filter_map(|(prefix, origin)| before.find(*prefix, *origin).cloned())
            .collect();
        self.rules = before;
        self.store.change(&old, &touched)?;
        self.enforce()?;
        Err(error.into())
    }
}

fn action_of(action: ListAction) -> Action {
    match action {
        ListAction::Allow => Action::Allow,
        ListAction::Deny => Action::Deny,
    }
}
