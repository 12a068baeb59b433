//! The rules and everything that enforces them, changed together: the store first, then the kernel, then user space.
//! What cannot be enforced is undone in the store, so that nobody is told of a rule that is not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use gateway_common::rule::{Action, Origin};
use ipnet::IpNet;

use crate::admin::api::{Add, Done, ListAction, Refusal, Remove};
use crate::base::prefix::{self, display};
use crate::base::time::Now;
use crate::config::Config;
use crate::kernel::Door;
use crate::kernel::guard::{self, Compiled};
use crate::kernel::tables::{TablesError, check_capacity};
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
/// Length of a reason: a sentence, not a report.
const REASON_MAX_CHARS: usize = 200;
/// Longest time that a rule with an end may hold.
const FOR_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

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
    max_rules: u32,
    /// Whether the proxy runs, which enforces too.
    serving: bool,
    /// Why what is enforced is not what ought to be, since the last attempt to change it.
    lag: Option<String>,
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
            max_rules: 0,
            serving: true,
            lag: None,
        };
        policy.configure(config, protected, now);
        Ok(policy)
    }

    /// The policy while no gateway runs: the kernel alone enforces it.
    pub fn offline(self, door: Option<Door>) -> Self {
        Self { door, serving: false, ..self }
    }

    /// Whether user space enforces, too.
    pub fn is_serving(&self) -> bool {
        self.serving
    }

    /// Takes over the rules of a configuration, without telling the kernel.
    pub fn configure(&mut self, config: &Config, protected: Protected, now: Now) {
        self.rules.replace(Origin::Configuration, protect::configured(config, now.utc));
        self.dry_run = config.kernel.dry_run;
        self.max_rules = config.kernel.max_rules;
        self.protect(protected, now);
        self.compile();
        self.lag = None;
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

    /// Why what is enforced lags behind what ought to be, if it does.
    pub fn lag(&self) -> Option<&str> {
        self.lag.as_deref()
    }

    /// Takes note of the protected addresses as they are now, and tries again what failed before. Answers whether there
    /// was anything to do.
    pub fn refresh(&mut self, protected: Protected, now: Now) -> Result<bool, TablesError> {
        if protected == self.protected && self.lag.is_none() {
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
        check(add)?;
        let mut done = Done::default();
        let mut put = Vec::new();
        for text in &add.prefixes {
            let prefix = prefix::parse(text).map_err(Refusal::usage)?;
            let rule = self.rule(prefix, add, now)?;
            self.comment(&rule, &mut done);
            put.push(rule);
        }
        self.check_room(&put).map_err(Refusal::failed)?;
        self.change(&put, &[]).map_err(Refusal::failed)?;
        for rule in &put {
            self.note_winner(rule.prefix, Some(rule.origin), &mut done);
        }
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
            self.note_winner(prefix, None, &mut done);
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
        let before = self.compile();
        let applied = match &mut self.door {
            Some(door) if self.serving => door.apply(&self.compiled),
            // The file may have been changed since a gateway read it, which is not for this to put in force.
            Some(door) => door.apply_difference(&before, &self.compiled),
            None => Ok(()),
        };
        if let Err(error) = applied {
            self.compiled = before;
            self.lag = Some(error.to_string());
            return Err(error);
        }
        self.lag = None;
        self.publish();
        Ok(())
    }

    fn protect(&mut self, protected: Protected, now: Now) {
        self.rules.replace(Origin::Protected, protect::rules(&protected, now.utc));
        self.protected = protected;
    }

    /// Answers what was compiled before.
    fn compile(&mut self) -> Compiled {
        let compiled = guard::compile(&self.rules, &self.protected);
        let before = std::mem::replace(&mut self.compiled, compiled);
        for (key, refused) in &self.compiled.held_back {
            if !before.held_back.contains_key(key) {
                let (prefix, origin) = (display(&key.0), key.1.name());
                tracing::warn!(prefix, origin, reason = %refused, "rule held back");
            }
        }
        before
    }

    /// The kernel's tables have an end of their own; user space alone has the same one.
    fn check_room(&self, put: &[Rule]) -> Result<(), TablesError> {
        if self.door.is_some() {
            return Ok(());
        }
        let prefixes: BTreeSet<&IpNet> =
            self.compiled.enforced.keys().chain(put.iter().map(|rule| &rule.prefix)).collect();
        check_capacity(prefixes.into_iter(), self.max_rules)
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
                return Err(Refusal::failed(format!(
                    "{refused}: insist with --force if it is to be, all the same"
                )));
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
            let (action, origin) = (held.action.name(), held.origin.name());
            done.notes.push(format!("{prefix}: replaces `{action}` by {origin}"));
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

    /// Says so when another rule than the one by `origin` holds for a prefix.
    fn note_winner(&self, prefix: IpNet, origin: Option<Origin>, done: &mut Done) {
        let winner = self.compiled.enforced.get(&prefix).map(|winner| winner.first);
        if let Some(winner) = winner.filter(|winner| Some(winner.origin) != origin) {
            let (action, origin) = (winner.action().name(), winner.origin.name());
            let prefix = display(&prefix);
            done.notes.push(format!("{prefix} is still under {action} by {origin}"));
        }
    }

    fn not_removable(&self, prefix: IpNet, action: Action) -> Refusal {
        let (shown, name) = (display(&prefix), action.name());
        let held =
            |origin: Origin| self.rules.find(prefix, origin).filter(|rule| rule.action == action);
        Refusal::failed(if held(Origin::Configuration).is_some() {
            format!(
                "{name} {shown} comes from the configuration: \
                 take it out there and run `gateway reload`"
            )
        } else if let Some(rule) = held(Origin::Protected) {
            format!("{shown} ({}) is always let in, nobody put it on the list", rule.reason)
        } else {
            format!("there is no {name} rule for {shown}: see `gateway {name} list`")
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
        // Both are tried, whatever becomes of the other.
        let enforced = self.enforce();
        self.store.change(&old, &touched).with_context(|| {
            format!("{error}; and it could not be undone in the store, so the next start tries it")
        })?;
        enforced?;
        Err(error.into())
    }
}

/// Refuses what the rule of a command cannot say.
fn check(add: &Add) -> Result<(), Refusal> {
    let length = add.reason.chars().count();
    if length > REASON_MAX_CHARS {
        return Err(Refusal::usage(format!(
            "the reason has {length} characters: at most {REASON_MAX_CHARS} are kept"
        )));
    }
    if let Some(odd) = add.reason.chars().find(|c| is_hidden(*c)) {
        return Err(Refusal::usage(format!(
            "the reason has {} in it: write one line of plain text",
            odd.escape_unicode()
        )));
    }
    match add.for_ms.map(Duration::from_millis) {
        Some(Duration::ZERO) => {
            Err(Refusal::usage("a rule for no time is none: write --for 10m, or leave it out"))
        }
        Some(time) if time > FOR_MAX => Err(Refusal::usage(
            "--for has an end at 100 years: leave it out for a rule without one",
        )),
        _ => Ok(()),
    }
}

/// Whether a terminal does something else with it than to show it: move the cursor, turn the line around.
fn is_hidden(c: char) -> bool {
    let turns = ['\u{200e}', '\u{200f}'].contains(&c)
        || ('\u{2028}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c);
    c.is_control() || turns
}

fn action_of(action: ListAction) -> Action {
    match action {
        ListAction::Allow => Action::Allow,
        ListAction::Deny => Action::Deny,
    }
}
