//! What was decided before: what holds, how often there was something to decide, and what lifting has taught.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::rules::Rule;
use crate::base::time::{BootTime, Now, UtcMillis};
use crate::config::Measure;
use crate::feedback::ban::strength;
use crate::feedback::decision::Subject;

/// For so long a lift asks for more evidence.
const LENIENT_NS: u64 = 3_600_000_000_000;
/// Lifts that count; it then takes a thousand times the evidence.
const LIFTS_MAX: u32 = 10;
/// Times that count: nothing lasts longer than 30 days, so that no more than 22 doublings matter.
const TIMES_MAX: u32 = 32;

/// What is remembered of a subject and must survive a restart.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// Whom.
    pub subject: Subject,
    /// How many decisions count.
    pub times: u32,
    /// How long the last one was for. (milliseconds)
    pub lasts_ms: u64,
    /// When the last one ends, or has.
    pub until: UtcMillis,
    /// The rule that decided last and what it does, by which nothing more is decided until then.
    pub holds: Option<(Arc<str>, Measure)>,
    /// How often it was lifted of late.
    pub lifts: u32,
    /// Until when that asks for more evidence.
    pub lenient_until: UtcMillis,
}

/// What is remembered of one subject.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    times: u32,
    lasts: Duration,
    /// End of the last one.
    until: BootTime,
    lifts: u32,
    lenient_until: BootTime,
    holds: Vec<Hold>,
}

/// Why nothing more is decided for a while.
#[derive(Clone, Debug)]
struct Hold {
    rule: Arc<str>,
    measure: Measure,
    until: BootTime,
    kind: HoldKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HoldKind {
    /// It is enforced.
    Enforced,
    /// It would be.
    DryRun,
    /// It was said, and is not said again so soon.
    Said,
}

#[derive(Clone, Debug)]
pub(super) struct Past {
    most: usize,
    records: HashMap<Subject, Record>,
    /// Which record means nothing any more, and when.
    ends: BTreeSet<(BootTime, Subject)>,
}

impl Past {
    pub(super) fn new(most: u32) -> Self {
        Self { most: most as usize, records: HashMap::new(), ends: BTreeSet::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn get(&self, subject: &Subject) -> Option<&Record> {
        self.records.get(subject)
    }

    /// Changes what is remembered of a subject. Beyond the bound that goes first which would go first anyhow.
    pub(super) fn change<T>(
        &mut self,
        subject: Subject,
        now: BootTime,
        change: impl FnOnce(&mut Record) -> T,
    ) -> T {
        let record = self.records.entry(subject).or_default();
        self.ends.remove(&(record.forgotten(), subject));
        record.holds.retain(|hold| hold.until > now);
        let changed = change(record);
        self.ends.insert((record.forgotten(), subject));
        if self.records.len() > self.most {
            self.forget_first();
        }
        changed
    }

    pub(super) fn remove(&mut self, subject: &Subject) {
        if let Some(gone) = self.records.remove(subject) {
            self.ends.remove(&(gone.forgotten(), *subject));
        }
    }

    /// Forgets what means nothing any more, and what a smaller bound has no room for.
    pub(super) fn tick(&mut self, now: BootTime) {
        while self.ends.first().is_some_and(|(end, _)| *end <= now)
            || self.records.len() > self.most
        {
            self.forget_first();
        }
    }

    pub(super) fn resize(&mut self, most: u32) {
        self.most = most as usize;
    }

    /// What would have been enforced in a dry run is no past.
    pub(super) fn forget_dry_runs(&mut self) {
        let is_dry = |hold: &Hold| hold.kind == HoldKind::DryRun;
        let dry = self.records.iter().filter(|(_, record)| record.holds.iter().any(is_dry));
        let dry: Vec<Subject> = dry.map(|(subject, _)| *subject).collect();
        dry.iter().for_each(|subject| self.remove(subject));
    }

    /// Everything, in the order of the subjects.
    pub(super) fn remembered(&self, now: Now) -> Vec<Remembered> {
        let utc_of = |boot: BootTime| match boot.0 {
            0 => UtcMillis(0),
            _ => now.utc_of(boot),
        };
        let all = self.records.iter().map(|(subject, record)| {
            let enforced = |hold: &&Hold| hold.kind == HoldKind::Enforced && hold.until > now.boot;
            let holds = record.holds.iter().filter(enforced).max_by_key(|hold| hold.until);
            Remembered {
                subject: *subject,
                times: record.times,
                lasts_ms: u64::try_from(record.lasts.as_millis()).unwrap_or(u64::MAX),
                until: utc_of(record.until),
                holds: holds.map(|hold| (hold.rule.clone(), hold.measure.clone())),
                lifts: record.lifts,
                lenient_until: utc_of(record.lenient_until),
            }
        });
        let mut all: Vec<Remembered> = all.collect();
        all.sort_by_key(|remembered| remembered.subject);
        all
    }

    /// Takes over what was remembered, here or elsewhere, in the place of what is known of that subject.
    pub(super) fn restore(&mut self, remembered: &Remembered, now: Now) {
        let boot_of = |utc: UtcMillis| match utc.0 {
            0 => BootTime(0),
            _ => now.boot_of(utc),
        };
        let until = boot_of(remembered.until);
        let holds = remembered.holds.as_ref().map(|(rule, measure)| {
            let (rule, measure) = (rule.clone(), measure.clone());
            Hold { rule, measure, until, kind: HoldKind::Enforced }
        });
        self.change(remembered.subject, now.boot, |record| {
            *record = Record {
                times: remembered.times.min(TIMES_MAX),
                lasts: Duration::from_millis(remembered.lasts_ms),
                until,
                lifts: remembered.lifts.min(LIFTS_MAX),
                lenient_until: boot_of(remembered.lenient_until),
                holds: holds.into_iter().collect(),
            };
        });
    }

    fn forget_first(&mut self) {
        if let Some((_, subject)) = self.ends.pop_first() {
            self.records.remove(&subject);
        }
    }
}

impl Record {
    /// Which time the next decision is.
    pub(super) fn next_time(&self, now: BootTime) -> u32 {
        let good = now.0.saturating_sub(self.until.0);
        let decayed = match u64::try_from(self.lasts.as_nanos()).unwrap_or(u64::MAX) {
            0 => u64::MAX,
            lasts => good / lasts,
        };
        let left = u64::from(self.times).saturating_sub(decayed);
        u32::try_from(left).unwrap_or(TIMES_MAX).min(TIMES_MAX - 1) + 1
    }

    /// By how much what has been lifted multiplies the evidence, and how many lifts that is.
    pub(super) fn lenience(&self, now: BootTime) -> (u64, u32) {
        match self.lenient_until > now {
            true => (1 << self.lifts, self.lifts),
            false => (1, 0),
        }
    }

    /// Whether this rule has decided, and that holds: then it counts nothing.
    pub(super) fn is_in_force(&self, rule: &Rule, now: BootTime) -> bool {
        let same = |hold: &&Hold| hold.rule == rule.spec.name && hold.kind != HoldKind::Said;
        self.holds.iter().filter(same).any(|hold| hold.until > now)
    }

    /// Whether the rule has nothing to decide: it has said so, or what holds does as much.
    pub(super) fn blocks(&self, rule: &Rule, now: BootTime) -> bool {
        let holding = self.holds.iter().filter(|hold| hold.until > now);
        let mut holding = holding.map(|hold| {
            hold.rule == rule.spec.name
                || hold.kind != HoldKind::Said
                    && strength(&hold.measure) >= strength(&rule.spec.measure)
        });
        holding.any(|blocks| blocks)
    }

    /// A decision was made that is in force from now on, or would be.
    pub(super) fn decided(&mut self, rule: &Rule, times: u32, kind: HoldKind, now: BootTime) {
        self.times = times;
        self.lasts = rule.lasts(times);
        self.until = self.until.max(after(now, self.lasts));
        self.hold(rule, after(now, self.lasts), kind);
    }

    /// A decision was shown and is not shown again until then.
    pub(super) fn said(&mut self, rule: &Rule, until: BootTime) {
        self.hold(rule, until, HoldKind::Said);
    }

    /// The decision of this rule is not in force after all, and is not repeated while it would have been.
    pub(super) fn refused(&mut self, rule: &str, now: BootTime) {
        let enforced = |hold: &&mut Hold| &*hold.rule == rule && hold.kind != HoldKind::Said;
        for hold in self.holds.iter_mut().filter(enforced) {
            hold.kind = HoldKind::Said;
            self.times = self.times.saturating_sub(1);
        }
        self.until = self.until.min(now);
    }

    pub(super) fn lifted(&mut self, now: BootTime) {
        let before = if self.lenient_until > now { self.lifts } else { 0 };
        self.lifts = (before + 1).min(LIFTS_MAX);
        self.lenient_until = BootTime(now.0.saturating_add(LENIENT_NS));
        self.holds.clear();
        self.times = self.times.saturating_sub(1);
        self.until = self.until.min(now);
    }

    /// What is in force, and until when.
    pub(super) fn in_force(&self, now: BootTime) -> impl Iterator<Item = (&Arc<str>, BootTime)> {
        let holding = self.holds.iter().filter(move |hold| hold.until > now);
        let in_force = holding.filter(|hold| hold.kind != HoldKind::Said);
        in_force.map(|hold| (&hold.rule, hold.until))
    }

    fn hold(&mut self, rule: &Rule, until: BootTime, kind: HoldKind) {
        let (name, measure) = (rule.spec.name.clone(), rule.spec.measure.clone());
        self.holds.retain(|hold| hold.rule != name);
        self.holds.push(Hold { rule: name, measure, until, kind });
    }

    /// When it means nothing any more.
    fn forgotten(&self) -> BootTime {
        let decayed = after(self.until, self.lasts.saturating_mul(self.times));
        let held = self.holds.iter().map(|hold| hold.until).max().unwrap_or_default();
        decayed.max(held).max(self.lenient_until)
    }
}

pub(super) fn after(at: BootTime, duration: Duration) -> BootTime {
    BootTime(at.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
}
