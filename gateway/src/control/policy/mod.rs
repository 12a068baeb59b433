//! The rules and everything that enforces them, changed together: the store first, then the kernel, then user space.
//! What cannot be enforced is undone in the store, so that nobody is told of a rule that is not. Lists are large, and
//! written while they are enforced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use gateway_common::rule::{Action, Origin};
use ipnet::IpNet;

use crate::base::prefix::display;
use crate::base::time::Now;
use crate::config::Config;
use crate::kernel::Door;
use crate::kernel::apply::{Wanted, apply, apply_all};
use crate::kernel::guard::{Guard, Refused};
use crate::kernel::tables::TablesError;
use crate::rules::classify::Classifier;
use crate::rules::protected::Protected;
use crate::rules::seats::Seats;
use crate::rules::tables::{Memory, Reader, RuleTables};
use crate::rules::{Change, Key, Rule, RuleRef, RuleSet};
use crate::store::Store;

use super::protect;

pub(super) mod bans;
pub(super) mod confirm;
pub(super) mod lists;
mod manual;

use bans::Bans;

/// Profiles that one message names.
const PROFILES_TOLD_MAX: usize = 10;

/// The rules and what enforces them.
pub struct Policy {
    rules: RuleSet,
    guard: Guard,
    /// How often whom it spares may have changed.
    guard_changes: u64,
    store: Store,
    bans: Bans,
    /// The kernel door, when it is open.
    pub door: Option<Door>,
    /// What is enforced where the kernel door is shut.
    own: Option<RuleTables>,
    /// What the workers look up. Empty in a dry run.
    classifier: Arc<ArcSwap<Classifier>>,
    /// Rules that the guard keeps out of the tables, by prefix.
    held_back: BTreeMap<IpNet, usize>,
    dry_run: bool,
    /// Whether `reset` rules answer.
    resets: bool,
    max_rules: u32,
    /// Names of the profiles in the order of the configuration.
    profiles: Vec<String>,
    /// Whether the proxy runs, which enforces too.
    serving: bool,
    /// Why what is enforced is not what ought to be, since the last attempt to change it.
    lag: Option<String>,
    changed: bool,
}

impl Policy {
    /// The policy of a configuration and of what the store kept, with the seats that lists had before.
    pub fn new(
        config: &Config,
        protected: Protected,
        (store, seats): (Store, Seats),
        now: Now,
    ) -> Result<Self, crate::store::StoreError> {
        let mut rules = store.rule_set(seats, now)?;
        let (bans, of_bans) = Bans::load(&store, now)?;
        of_bans.into_iter().for_each(|rule| drop(rules.insert(rule)));
        let mut policy = Self {
            rules,
            guard: Guard::default(),
            guard_changes: 0,
            store,
            bans,
            door: None,
            own: None,
            classifier: Arc::default(),
            held_back: BTreeMap::new(),
            dry_run: false,
            resets: false,
            max_rules: 0,
            profiles: Vec::new(),
            serving: true,
            lag: None,
            changed: false,
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
        self.rules.replace(Origin::Protected, protect::rules(&protected, now.utc));
        self.profiles = config.kernel.profiles.iter().map(|one| one.name.clone()).collect();
        self.rules.place_profiles(|name| profile_place(&self.profiles, name).unwrap_or(0));
        self.dry_run = config.kernel.dry_run;
        self.resets = config.kernel.resets.is_some();
        self.max_rules = config.kernel.max_rules;
        self.guard = Guard::new(protected, &self.rules);
        self.guard_changes += 1;
        self.held_back.clear();
        let prefixes: Vec<IpNet> = self.guarded().collect();
        self.look_for_held_back(prefixes);
        self.lag = None;
    }

    /// What the workers look up.
    pub fn classifier(&self) -> Arc<ArcSwap<Classifier>> {
        Arc::clone(&self.classifier)
    }

    /// What is to be enforced.
    pub fn wanted(&self, now: Now) -> Wanted<'_> {
        let Self { rules, guard, serving, .. } = self;
        Wanted { rules, guard, now: now.boot, complete: *serving }
    }

    /// The rule that holds for a prefix.
    pub fn winner(&self, prefix: IpNet, now: Now) -> Option<RuleRef<'_>> {
        self.guard.winner(&self.rules, prefix, now.boot)
    }

    /// Looks up what the tables hold; `None` where there are none.
    pub fn reader(&self) -> Option<Reader> {
        let own = || self.own.as_ref().map(RuleTables::reader);
        self.door.as_ref().map(Door::reader).or_else(own)
    }

    /// How many prefixes of IPv4 and of IPv6 the tables have room for.
    pub fn room(&mut self) -> [usize; 2] {
        let tables = self.door.as_mut().map(Door::rules).or(self.own.as_mut());
        tables.map_or([0; 2], |tables| {
            tables.prefixes().map(|held| (tables.capacity() as usize).saturating_sub(held))
        })
    }

    /// All rules, enforced or not.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Why a rule is held back, if it is.
    pub fn refuses(&self, rule: &RuleRef<'_>) -> Option<Refused> {
        self.guard.refuses(rule)
    }

    /// Another number whenever the guard may judge in another way.
    pub fn guard_changes(&self) -> u64 {
        self.guard_changes
    }

    /// How many rules are held back.
    pub fn held_back(&self) -> usize {
        self.held_back.values().sum()
    }

    /// Why they are, those that `notes_max` bounds.
    pub fn held_back_notes(&self, notes_max: usize) -> Vec<String> {
        let rules = self.held_back.keys().flat_map(|prefix| self.rules.of(*prefix));
        let refused = rules.filter_map(|rule| self.guard.refuses(&rule));
        let mut notes: Vec<String> = refused.take(notes_max).map(|note| note.to_string()).collect();
        if let Some(more @ 1..) = self.held_back().checked_sub(notes.len()) {
            notes.push(format!("and {more} more rules are held back"));
        }
        notes
    }

    /// Whether a rule limits by a profile that the configuration has not.
    pub fn lacks_profile(&self, rule: &RuleRef<'_>) -> bool {
        rule.action == Action::Limit && profile_place(&self.profiles, rule.profile_name).is_none()
    }

    /// What there is to know about rules that limit by profiles that the configuration has not.
    pub fn lacking_profiles(&self) -> Option<String> {
        let lacking: Vec<&Rule> =
            self.rules.iter().filter(|rule| self.lacks_profile(&rule.as_ref())).collect();
        let names: BTreeSet<&str> = lacking.iter().map(|rule| rule.profile_name.as_str()).collect();
        let names = names.into_iter().take(PROFILES_TOLD_MAX).collect::<Vec<_>>().join(", ");
        (!lacking.is_empty()).then(|| {
            format!(
                "limits of {} prefixes name profiles that kernel.profiles has not ({names}): the \
                 default profile holds for them, see `gateway limit list`",
                lacking.len()
            )
        })
    }

    /// The store, to be handed to another user.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether what is enforced has changed since it was last [`seen`](Self::seen).
    pub fn has_changed(&self) -> bool {
        self.changed
    }

    /// Open connections have been held against what is enforced now.
    pub fn seen(&mut self) {
        self.changed = false;
        self.bans.take_closing(0);
    }

    /// All of them are to be held against it.
    pub fn look_again(&mut self) {
        self.changed = true;
    }

    /// Whether drops are only counted.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether the kernel answers what `reset` rules are about.
    pub fn has_resets(&self) -> bool {
        self.resets
    }

    /// Lets user space enforce what the tables hold now: those of the kernel, or its own where there are none.
    pub fn publish(&mut self, now: Now) -> Result<(), TablesError> {
        let reader = match &self.door {
            Some(door) => {
                self.own = None;
                door.reader()
            }
            None => {
                let mut tables = match self.own.take() {
                    Some(tables) if tables.capacity() == self.max_rules => tables,
                    _ => own_tables(self.max_rules)?,
                };
                apply_all(&mut tables, self.wanted(now))?;
                self.own.insert(tables).reader()
            }
        };
        self.publish_believed(now)?;
        self.show(reader);
        Ok(())
    }

    /// Whoever has a connection open is to be looked at again.
    fn show(&mut self, reader: Reader) {
        self.changed = true;
        let classifier = match self.dry_run {
            true => Classifier::default(),
            false => Classifier::new(reader).with_believed(self.bans.reader()),
        };
        self.classifier.store(Arc::new(classifier));
    }

    /// Why what is enforced lags behind what ought to be, if it does.
    pub fn lag(&self) -> Option<&str> {
        self.lag.as_deref()
    }

    /// Takes note of the protected addresses as they are now, and tries again what failed before. Answers whether there
    /// was anything to do.
    pub fn refresh(&mut self, protected: Protected, now: Now) -> Result<bool, TablesError> {
        if protected == *self.guard.protected() {
            if self.lag.is_none() {
                return Ok(false);
            }
            self.enforce_all(now)?;
            return Ok(true);
        }
        let mut changed =
            self.rules.replace(Origin::Protected, protect::rules(&protected, now.utc));
        let guarded = std::mem::replace(&mut self.guard, Guard::new(protected, &self.rules));
        self.guard_changes += 1;
        let moved: Vec<IpNet> = {
            let prefixes = |guard: &Guard| guard.protected().iter().map(|(p, _)| *p).collect();
            let (old, new): (BTreeSet<IpNet>, BTreeSet<IpNet>) =
                (prefixes(&guarded), prefixes(&self.guard));
            old.symmetric_difference(&new).copied().collect()
        };
        for prefix in &moved {
            changed.extend(self.rules.inside(*prefix).map(|rule| rule.prefix));
        }
        self.guard_believed(moved, now)?;
        match self.lag {
            Some(_) => self.enforce_all(now)?,
            None => self.enforce(changed.into_iter().collect(), now)?,
        }
        Ok(true)
    }

    /// Takes out what has ended. Answers how many rules that were.
    pub fn expire(&mut self, now: Now) -> anyhow::Result<usize> {
        if self.rules.next_end().is_none_or(|end| end > now.boot) {
            self.expire_bans(&[], now)?;
            return Ok(0);
        }
        let expired = self.rules.expire(now.boot);
        let is_ban = |(_, origin): &&Key| *origin == Origin::Ban;
        let bans: Vec<IpNet> = expired.over.iter().filter(is_ban).map(|key| key.0).collect();
        self.expire_bans(&bans, now)?;
        let count = expired.prefixes().count();
        for ((prefix, origin), _) in &expired.unconfirmed {
            let (prefix, origin) = (display(prefix), origin.name());
            tracing::warn!(prefix, origin, "put back: nobody confirmed the change");
        }
        let mut change = expired.change();
        self.enforce_change(&change, expired.entries, now)?;
        // Those are kept elsewhere, and remembered.
        change.remove.retain(|(_, origin)| *origin != Origin::Ban);
        self.store.change(&change)?;
        for name in expired.unconfirmed_lists {
            tracing::warn!(list = name, "put back: nobody confirmed the new version");
            self.settle_list(&name, now)?;
        }
        Ok(count)
    }

    /// Makes kernel and user space enforce all rules as they are.
    fn enforce_all(&mut self, now: Now) -> Result<(), TablesError> {
        let Self { rules, guard, serving, door, .. } = self;
        let wanted = Wanted { rules, guard, now: now.boot, complete: *serving };
        if let Some(door) = door {
            door.seat_lists(rules.seats())?;
            apply_all(door.rules(), wanted)?;
        }
        self.lag = None;
        self.publish(now)
    }

    /// Makes kernel and user space enforce what changed about these prefixes.
    fn enforce(&mut self, prefixes: Vec<IpNet>, now: Now) -> Result<(), TablesError> {
        if let Some(reader) = self.write(prefixes, now)? {
            self.show(reader);
        }
        Ok(())
    }

    /// Writes what changed about these prefixes. Answers who looks it up, if anybody does.
    fn write(&mut self, prefixes: Vec<IpNet>, now: Now) -> Result<Option<Reader>, TablesError> {
        self.look_for_held_back(prefixes.iter().copied());
        let Self { rules, guard, serving, door, own, .. } = self;
        let wanted = Wanted { rules, guard, now: now.boot, complete: *serving };
        let Some(tables) = door.as_mut().map(Door::rules).or(own.as_mut()) else { return Ok(None) };
        if let Err(error) = apply(tables, wanted, prefixes.iter().copied()) {
            self.lag = Some(error.to_string());
            return Err(error.into());
        }
        Ok(Some(tables.reader()))
    }

    /// The prefixes whose rules may be held back.
    fn guarded(&self) -> impl Iterator<Item = IpNet> {
        let inside = |prefix: &IpNet| self.rules.inside(*prefix).map(|rule| rule.prefix);
        self.guard.covers().flat_map(inside)
    }

    /// Notes which rules of these prefixes are held back, and says so when one is that was not.
    fn look_for_held_back(&mut self, prefixes: impl IntoIterator<Item = IpNet>) {
        const TOLD_MAX: usize = 20;
        let mut told = 0;
        for prefix in prefixes {
            if !self.guard.covers_all_of(&prefix) {
                if !self.held_back.is_empty() {
                    self.held_back.remove(&prefix);
                }
                continue;
            }
            let refused: Vec<_> = self
                .rules
                .of(prefix)
                .filter_map(|rule| Some((rule.origin, self.guard.refuses(&rule)?)))
                .collect();
            if refused.is_empty() {
                self.held_back.remove(&prefix);
                continue;
            }
            if self.held_back.insert(prefix, refused.len()) == Some(refused.len()) {
                continue;
            }
            for (origin, refused) in refused {
                told += 1;
                if told <= TOLD_MAX {
                    let (prefix, origin) = (display(&prefix), origin.name());
                    tracing::warn!(prefix, origin, reason = %refused, "rule held back");
                }
            }
        }
        if told > TOLD_MAX {
            tracing::warn!(more = told - TOLD_MAX, "more rules held back");
        }
    }

    /// Changes the store, then the kernel and user space; what cannot be enforced is undone everywhere.
    fn change(&mut self, change: &Change, now: Now) -> anyhow::Result<()> {
        self.store.change(change)?;
        let undo = self.rules.change(change);
        let Err(error) = self.enforce_change(change, Vec::new(), now) else { return Ok(()) };
        self.rules.change(&undo);
        // Both are tried, whatever becomes of the other.
        let enforced = self.enforce_change(change, Vec::new(), now);
        self.store.change(&undo).with_context(|| {
            format!("{error}; and it could not be undone in the store, so the next start tries it")
        })?;
        enforced?;
        self.lag = None;
        Err(error.into())
    }

    /// Enforces what a change is about, and what the entries of lists are that changed with it.
    fn enforce_change(
        &mut self,
        change: &Change,
        entries: Vec<IpNet>,
        now: Now,
    ) -> Result<(), TablesError> {
        let mut changed: BTreeSet<IpNet> = entries.into_iter().collect();
        changed.extend(change.keys().map(|(prefix, _)| prefix));
        // What an operator lets in, feeds and bans inside of it have no say about.
        let by_operators = change.keys().filter(|(_, origin)| *origin == Origin::Operator);
        let by_operators: Vec<IpNet> = by_operators.map(|(prefix, _)| prefix).collect();
        for prefix in &by_operators {
            changed.extend(self.rules.inside(*prefix).map(|rule| rule.prefix));
        }
        self.guard.follow(&self.rules);
        self.guard_changes += u64::from(!by_operators.is_empty());
        self.guard_believed(by_operators, now)?;
        self.enforce(changed.into_iter().collect(), now)
    }
}

/// The place of a profile in the kernel's table, where the default one has the first.
fn profile_place(profiles: &[String], name: &str) -> Option<u8> {
    let index = profiles.iter().position(|profile| profile == name)?;
    u8::try_from(index + 1).ok()
}

/// Tables of this process, for where the kernel door is shut.
fn own_tables(max_rules: u32) -> Result<RuleTables, TablesError> {
    let memory = Memory::own(max_rules);
    let memory = memory.map_err(|source| TablesError::Memory { map: "rules", source })?;
    Ok(RuleTables::open(memory, max_rules))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{Add, ListAction};
    use crate::base::time::{BootTime, UtcMillis};
    use crate::rules::entries::Builder;
    use crate::rules::list::Kind;
    use crate::rules::list_file::{ActionName, Header};

    const NOW: Now = Now { boot: BootTime(1_000_000_000), utc: UtcMillis(1_800_000_000_000) };

    #[test]
    fn what_a_feed_says_comes_into_force_when_the_allow_around_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let config = crate::config::embedded().unwrap();
        let mut policy =
            Policy::new(&config, Protected::default(), (store, Seats::default()), NOW).unwrap();
        policy.publish(NOW).unwrap();
        let add = Add {
            action: ListAction::Allow,
            prefixes: vec!["192.0.2.0/24".to_owned()],
            profile: None,
            for_ms: Some(60_000),
            reason: String::new(),
            force: false,
            yes: false,
            confirm_within_ms: None,
        };
        policy.add(&add, NOW).unwrap();
        let mut builder = Builder::default();
        builder.push("192.0.2.7/32".parse().unwrap(), None, "").unwrap();
        let header = Header::new("drop", ActionName::Deny, Kind::Feed, "a feed");
        let list = lists::list_of(header, builder.build(), NOW);
        policy.replace_list("drop", Some(list), NOW).unwrap();
        let action = |policy: &Policy, now: Now| {
            let found = policy.reader().unwrap().find("192.0.2.7".parse().unwrap(), now.boot);
            found.map(|(_, entry)| entry.action)
        };
        assert_eq!(action(&policy, NOW), Some(Action::Allow));
        assert_eq!(policy.held_back(), 1);
        let later = Now { boot: BootTime(62_000_000_000), utc: UtcMillis(NOW.utc.0 + 61_000) };
        policy.expire(later).unwrap();
        assert_eq!(action(&policy, later), Some(Action::Deny));
        assert_eq!(policy.held_back(), 0);
    }
}
