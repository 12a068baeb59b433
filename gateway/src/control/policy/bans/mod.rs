//! Bans: decisions carried out. The guard comes first, always; then the tables, those of the kernel for sources whose
//! packets arrive from there, and tables of their own for addresses that are only believed; then the store, behind the
//! loop. What people and others ask for is in [`commands`].
//!
//! ```text
//!            decision                      over                 forgotten
//! (nothing) ──────────▶ holds ─────────────────────▶ remembered ─────────▶ (nothing)
//!                       │  ▲ pin: for ever               │  ▲
//!                       │  └──── decision ───────────────┘  │
//!                       └──────────── lift ─────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use gateway_common::rule::{Action, Origin};
use ipnet::IpNet;

use super::{Policy, own_tables, profile_place};
use crate::base::time::{BootTime, Now, boot};
use crate::config::Measure;
use crate::feedback::ban::{Author, Ban, Change, What, action, is_for_ever, profile, strength};
use crate::feedback::decision::{Decision, Held, Place, Subject};
use crate::kernel::apply::{Wanted, apply, apply_all};
use crate::kernel::tables::TablesError;
use crate::observe::histogram::Durations;
use crate::rules::tables::{Reader, RuleTables};
use crate::rules::{Rule, RuleSet, Until};
use crate::store::bans::{Batch, Behind};
use crate::store::{Store, StoreError};

pub(in crate::control) mod commands;
mod outside;
mod room;
#[cfg(test)]
pub(in crate::control) mod tests;
pub(in crate::control) mod views;

/// Subjects that are banned or remembered at once.
const BANS_MAX: usize = 65_536;
/// Prefixes of one family in the tables for believed addresses.
const BELIEVED_MAX: u32 = 65_536;
/// Decisions that were not carried out, kept to be shown.
const HELD_MAX: usize = 1024;
/// How often it is looked for what means nothing any more. (ns)
const PURGE_EVERY_NS: u64 = 60 * 1_000_000_000;

/// What became of a decision.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is enforced since this moment.
    Enforced(BootTime),
    /// Something stronger holds already, or the same for longer.
    Standing,
    /// It is only shown.
    Held(Held),
    /// The guard is against it.
    Guarded(String),
    /// It cannot be.
    Failed(String),
}

impl Outcome {
    /// Its name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Enforced(_) => "enforced",
            Self::Standing => "standing",
            Self::Held(held) => held.name(),
            Self::Guarded(_) => "guarded",
            Self::Failed(_) => "failed",
        }
    }
}

/// All bans, and what is remembered of earlier ones.
pub struct Bans {
    records: BTreeMap<Subject, Arc<Ban>>,
    /// Those of believed addresses, as rules.
    believed: RuleSet,
    /// Where these are looked up; `None` before there is one.
    tables: Option<RuleTables>,
    behind: Behind<Ban>,
    /// What happened since somebody took note of it.
    changes: Vec<Change>,
    /// Decisions that were not carried out, the last of each subject, the oldest first.
    held: VecDeque<HeldBack>,
    /// Whose connections are to be closed.
    closing: BTreeSet<Subject>,
    purge_at: BootTime,
    /// Until when there is no room, and nobody looks for any.
    full_until: BootTime,
    max: usize,
}

/// A decision that was not carried out.
pub struct HeldBack {
    /// The decision.
    pub decision: Decision,
    /// Who made it.
    pub author: Author,
    /// Why it was not.
    pub why: String,
}

impl Bans {
    /// Those that a store kept, and the rules of those that hold and that packets meet.
    pub(super) fn load(store: &Store, now: Now) -> Result<(Self, Vec<Rule>), StoreError> {
        let mut bans = Self {
            records: BTreeMap::new(),
            believed: RuleSet::default(),
            tables: None,
            behind: Behind::new(store),
            changes: Vec::new(),
            held: VecDeque::new(),
            closing: BTreeSet::new(),
            purge_at: BootTime(0),
            full_until: BootTime(0),
            max: BANS_MAX,
        };
        let (mut rules, mut moved) = (Vec::new(), Batch::new());
        for (key, mut ban) in store.bans::<Ban>()? {
            let subject: Subject = key.parse().map_err(|error| store.bad_entry(&key, error))?;
            let is_moved = ban.move_to_this_boot(store, now);
            if ban.holds(now.boot) {
                let rule = rule(subject.prefix, &ban);
                match subject.place {
                    Place::Kernel => rules.push(rule),
                    Place::UserSpace => drop(bans.believed.insert(rule)),
                }
            }
            let ban = Arc::new(ban);
            if is_moved {
                moved.insert(key, Some(Arc::clone(&ban)));
            }
            bans.records.insert(subject, ban);
        }
        // From now on they are kept by this boot's clock.
        store.write_bans(&moved)?;
        Ok((bans, rules))
    }

    /// What is known about a subject.
    pub fn find(&self, subject: &Subject) -> Option<&Arc<Ban>> {
        self.records.get(subject)
    }

    /// Everything that is known.
    pub fn iter(&self) -> impl Iterator<Item = (&Subject, &Arc<Ban>)> {
        self.records.iter()
    }

    /// How many hold that are enforced in one place.
    pub fn holding(&self, now: BootTime, place: Place) -> usize {
        let holds = |(one, ban): &(&Subject, &Arc<Ban>)| one.place == place && ban.holds(now);
        self.records.iter().filter(holds).count()
    }

    /// Decisions that were not carried out and why, the oldest first.
    pub fn held(&self) -> impl DoubleEndedIterator<Item = &HeldBack> {
        self.held.iter()
    }

    /// What looks up the bans of believed addresses.
    pub(super) fn reader(&self) -> Option<Reader> {
        self.tables.as_ref().map(RuleTables::reader)
    }

    /// See [`Policy::take_closing`].
    pub(super) fn take_closing(&mut self, max: usize) -> Option<Arc<[Subject]>> {
        let closing = std::mem::take(&mut self.closing);
        (closing.len() <= max).then(|| closing.into_iter().collect())
    }

    fn write(&self, subject: Subject, ban: Option<Arc<Ban>>) {
        self.behind.put(subject.to_string(), ban);
    }

    /// Remembers a ban, or nothing any more, here and in the store.
    fn keep(&mut self, subject: Subject, ban: Option<Arc<Ban>>) {
        self.write(subject, ban.clone());
        self.full_until = BootTime(0);
        match ban {
            Some(ban) => self.records.insert(subject, ban),
            None => self.records.remove(&subject),
        };
    }

    fn note(&mut self, subject: Subject, what: What, author: Author) {
        let ban = self.records.get(&subject).cloned();
        self.changes.push(Change { subject, what, author, ban, decision: None });
    }

    /// Notes a decision that is not carried out.
    fn hold(&mut self, decision: &Decision, author: &Author, (what, why): (What, String)) {
        let subject = decision.subject;
        self.held.retain(|other| other.decision.subject != subject);
        if self.held.len() >= HELD_MAX {
            self.held.pop_front();
        }
        let author = author.clone();
        let (held, by) = (decision.clone(), author.clone());
        self.held.push_back(HeldBack { decision: held, author: by, why });
        let decision = Some(Box::new(decision.clone()));
        self.changes.push(Change { subject, what, author, ban: None, decision });
    }
}

impl Policy {
    /// Carries a decision out, unless the guard is against it.
    pub fn enforce_ban(&mut self, decision: &Decision, author: &Author, now: Now) -> Outcome {
        let outcome = match decision.held {
            Some(held) => Outcome::Held(held),
            None => self.try_ban(decision, author, now),
        };
        let told = match &outcome {
            Outcome::Enforced(_) | Outcome::Standing => return outcome,
            Outcome::Held(held) => (What::Held(held.name()), held.name().to_owned()),
            Outcome::Guarded(why) | Outcome::Failed(why) => {
                (What::Refused(why.clone()), why.clone())
            }
        };
        self.bans.hold(decision, author, told);
        outcome
    }

    fn try_ban(&mut self, decision: &Decision, author: &Author, now: Now) -> Outcome {
        let Decision { subject, measure, lasts, .. } = decision;
        if let Err(refused) = self.guard.clear(subject.prefix, Origin::Ban) {
            return Outcome::Guarded(refused.to_string());
        }
        if let Err(why) = self.fits(subject, measure) {
            return Outcome::Failed(why);
        }
        if !self.bans.make_room(subject, author, now) {
            let max = self.bans.room_of(author);
            return Outcome::Failed(format!("there are {max} bans, as many as may be"));
        }
        let before = self.bans.records.get(subject).cloned();
        let standing = before.as_ref().filter(|ban| ban.holds(now.boot));
        let pinned = standing.is_some_and(|standing| standing.pinned);
        let until = Until::after(now, Some(*lasts));
        let mut ban = Ban {
            rule: decision.rule.to_string(),
            measure: measure.clone(),
            author: author.clone(),
            made: standing.map_or(now.utc, |standing| standing.made),
            decided: now.utc,
            end: self.store.end(if pinned { Until::NEVER } else { until }),
            lasts_ms: u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX),
            times: decision.times,
            lifts: before.as_ref().map(|ban| ban.lifts.clone()).unwrap_or_default(),
            pinned,
            story: decision.story.clone(),
            beneath: Vec::new(),
        };
        if let Some(standing) = standing {
            let held = strength(&standing.measure);
            let is_longer = standing.end.until().boot >= until.boot;
            if held > strength(measure) || held == strength(measure) && is_longer {
                self.stand(subject, standing, &ban, now);
                return Outcome::Standing;
            }
            if let Author::Outside(_) = author {
                ban.lay_beneath(standing, now.boot);
            }
        }
        let what = if standing.is_some() { What::Extended } else { What::Made };
        if let Err(error) = self.put_ban(subject, &ban, now) {
            return Outcome::Failed(error.to_string());
        }
        let enforced = boot();
        self.bans.held.retain(|held| held.decision.subject != *subject);
        self.bans.keep(*subject, Some(Arc::new(ban)));
        self.bans.note(*subject, what, author.clone());
        // What is slowed down goes on.
        if action(measure) != Action::Limit {
            self.bans.closing.insert(*subject);
        }
        Outcome::Enforced(enforced)
    }

    /// Notes what was decided about a subject that is held off as much, where whoever did that may take it back.
    fn stand(&mut self, subject: &Subject, standing: &Ban, other: &Ban, now: Now) {
        if matches!(standing.author, Author::Outside(_)) && standing.author != other.author {
            let mut both = standing.clone();
            both.lay_beneath(other, now.boot);
            self.bans.keep(*subject, Some(Arc::new(both)));
        }
    }

    /// Whether a measure can be taken about a subject at all.
    fn fits(&self, subject: &Subject, measure: &Measure) -> Result<(), String> {
        let Measure::SlowDown { profile } = measure else { return Ok(()) };
        if subject.place == Place::UserSpace {
            return Err("it is an address that a proxy named, and only packets can be slowed down"
                .to_owned());
        }
        match profile_place(&self.profiles, profile) {
            Some(_) => Ok(()),
            None => Err(format!("kernel.profiles has no `{profile}`")),
        }
    }

    /// Puts the rule of a ban in force, in the place of the one that its subject had.
    fn put_ban(&mut self, subject: &Subject, ban: &Ban, now: Now) -> Result<(), TablesError> {
        let mut rule = rule(subject.prefix, ban);
        rule.profile = profile_place(&self.profiles, &rule.profile_name).unwrap_or(0);
        let before = self.rules_of(subject.place).insert(rule);
        let Err(error) = self.write_ban(subject, now) else { return Ok(()) };
        match before {
            Some(before) => drop(self.rules_of(subject.place).insert(before)),
            None => drop(self.rules_of(subject.place).remove(subject.prefix, Origin::Ban)),
        }
        // What could not be written takes no room; if this fails too, the lag stays and is tried again.
        if self.write_ban(subject, now).is_ok() {
            self.lag = None;
        }
        Err(error)
    }

    /// Takes the rule of a ban out.
    fn take_ban(&mut self, subject: &Subject, now: Now) -> Result<(), TablesError> {
        self.rules_of(subject.place).remove(subject.prefix, Origin::Ban);
        self.write_ban(subject, now)
    }

    fn rules_of(&mut self, place: Place) -> &mut RuleSet {
        match place {
            Place::Kernel => &mut self.rules,
            Place::UserSpace => &mut self.bans.believed,
        }
    }

    /// Writes what the rules say about a subject. Nobody's connection is looked at: the workers read the same memory.
    fn write_ban(&mut self, subject: &Subject, now: Now) -> Result<(), TablesError> {
        match subject.place {
            Place::Kernel => self.write(vec![subject.prefix], now).map(drop),
            Place::UserSpace => self.write_believed([subject.prefix], now),
        }
    }

    /// Writes what the rules say about believed addresses. The first time there are tables from then on.
    fn write_believed<const N: usize>(
        &mut self,
        prefixes: [IpNet; N],
        now: Now,
    ) -> Result<(), TablesError> {
        if self.bans.tables.is_none() {
            self.bans.tables = Some(own_tables(BELIEVED_MAX)?);
            if let Some(reader) = self.reader() {
                self.show(reader);
            }
        }
        self.apply_believed(prefixes.into_iter(), now)
    }

    fn apply_believed(
        &mut self,
        prefixes: impl ExactSizeIterator<Item = IpNet> + Clone,
        now: Now,
    ) -> Result<(), TablesError> {
        let Self { guard, bans: Bans { believed, tables, .. }, .. } = self;
        let Some(tables) = tables else { return Ok(()) };
        let wanted = Wanted { rules: believed, guard, now: now.boot, complete: true };
        Ok(apply(tables, wanted, prefixes)?)
    }

    /// Writes all bans of believed addresses.
    pub(super) fn publish_believed(&mut self, now: Now) -> Result<(), TablesError> {
        let Self { guard, bans: Bans { believed, tables, .. }, .. } = self;
        if tables.is_none() && believed.iter().next().is_none() {
            return Ok(());
        }
        if tables.is_none() {
            *tables = Some(own_tables(BELIEVED_MAX)?);
        }
        let Some(tables) = tables else { return Ok(()) };
        let wanted = Wanted { rules: believed, guard, now: now.boot, complete: true };
        Ok(apply_all(tables, wanted)?)
    }

    /// The guard may judge bans of believed addresses inside of these prefixes in another way.
    pub(super) fn guard_believed(
        &mut self,
        prefixes: impl IntoIterator<Item = IpNet>,
        now: Now,
    ) -> Result<(), TablesError> {
        if self.bans.tables.is_none() {
            return Ok(());
        }
        let inside = prefixes.into_iter().flat_map(|prefix| self.bans.believed.inside(prefix));
        let inside: Vec<IpNet> = inside.map(|rule| rule.prefix).collect();
        self.apply_believed(inside.into_iter(), now)
    }

    /// Takes out the bans of believed addresses that have ended, notes those of packets that `over` has, and forgets
    /// what means nothing any more.
    pub(super) fn expire_bans(&mut self, over: &[IpNet], now: Now) -> Result<(), TablesError> {
        let believed = match self.bans.believed.next_end() {
            Some(end) if end <= now.boot => self.bans.believed.expire(now.boot).over,
            _ => Vec::new(),
        };
        let believed: Vec<IpNet> = believed.into_iter().map(|(prefix, _)| prefix).collect();
        let kernel = over.iter().map(|prefix| (*prefix, Place::Kernel));
        let ended = kernel.chain(believed.iter().map(|prefix| (*prefix, Place::UserSpace)));
        for (prefix, place) in ended {
            self.bans.note(Subject { prefix, place }, What::Expired, Author::Feedback);
        }
        self.bans.purge(now);
        self.apply_believed(believed.into_iter(), now)
    }

    /// The bans.
    pub fn bans(&self) -> &Bans {
        &self.bans
    }

    /// What happened to bans since it was last asked for.
    pub fn take_ban_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.bans.changes)
    }

    /// Whose connections are to be closed since it was last asked for; `None`: too many to be told one by one.
    pub fn take_closing(&mut self, max: usize) -> Option<Arc<[Subject]>> {
        self.bans.take_closing(max)
    }

    /// Why bans are not on the disk, if some are not for longer than they may.
    pub fn bans_lag(&self) -> Option<String> {
        self.bans.behind.failed()
    }

    /// From each change of bans to its being on the disk.
    pub fn bans_durable(&self) -> Durations {
        self.bans.behind.durable()
    }

    /// Waits until every ban is on the disk.
    pub fn flush_bans(&self) -> Result<(), StoreError> {
        self.bans.behind.flush()
    }

    /// Lets another process have the store.
    pub fn release_store(&mut self) {
        if let Err(error) = self.flush_bans() {
            tracing::error!(%error, "the last bans are not handed over");
        }
        self.bans.behind.release();
        self.store.release();
    }

    /// Takes it back.
    pub fn reopen_store(&mut self) -> Result<(), StoreError> {
        self.store.reopen()?;
        self.bans.behind.reopen(&self.store);
        Ok(())
    }
}

/// The rule of a ban. Which place its profile has, only the configuration knows.
fn rule(prefix: IpNet, ban: &Ban) -> Rule {
    Rule {
        prefix,
        action: action(&ban.measure),
        origin: Origin::Ban,
        profile: 0,
        profile_name: profile(&ban.measure).to_owned(),
        reason: ban.reason(),
        created: ban.made,
        until: ban.end.until(),
    }
}
