//! How evidence becomes a decision: what it counts for, whether that is enough, and what holds it back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Scores;
use super::known::{Known, ScoreView};
use super::past::{HoldKind, after};
use super::rules::Rule;
use crate::base::time::{BootTime, Now};
use crate::feedback::ban::strength;
use crate::feedback::decision::{Decision, Held, Story, Subject};
use crate::feedback::evidence::Evidence;

/// What is held by a ceiling may be decided soon after; what is shared, when that may have changed.
const HELD_BY_CEILING: Duration = Duration::from_secs(60);
const HELD_BY_SHARING: Duration = Duration::from_secs(600);

/// What a rule has found of a subject.
#[derive(Clone, Copy)]
struct Found {
    /// Index of the rule.
    rule: usize,
    score: u64,
    sources: u32,
}

/// How much it takes after all.
struct Wanted {
    /// In thousandths.
    score: u64,
    consumers: u32,
    is_shared: bool,
    notes: Vec<String>,
}

impl Scores {
    /// Counts a signal for its source and its prefix.
    pub(super) fn odd(&mut self, evidence: &Evidence) -> Vec<Decision> {
        let index = evidence.signal as usize;
        if let Some(count) = self.signals.get_mut(index) {
            *count += 1;
        }
        let weight = self.config.weights.get(index).copied().unwrap_or(0);
        if weight == 0 {
            return Vec::new();
        }
        let Some((source, prefix)) = self.subjects(evidence.source) else { return Vec::new() };
        let found = [(source, false), (prefix, true)];
        let decisions = found.into_iter().filter_map(|(subject, by_prefix)| {
            let found = self.count(evidence, (subject, by_prefix), (number_of(source), weight))?;
            self.decide(subject, found)
        });
        decisions.collect()
    }

    /// What is known of a subject, if anything is.
    pub(super) fn known_of(&self, subject: Subject, now: Now) -> Option<Known> {
        let at = now.boot;
        let suspect = self.sources.get(&subject).or_else(|| self.prefixes.get(&subject));
        let (record, consumers) = (self.past.get(&subject), self.good.consumers([subject], at));
        let (good_requests, _) = self.good.requests(&subject, at);
        if suspect.is_none() && record.is_none() && consumers == 0 && good_requests == 0 {
            return None;
        }
        let mut notes = Vec::new();
        let scores = self.rules.all.iter().filter_map(|rule| {
            let (score, sources) = suspect.map(|suspect| suspect.score(rule, at))?;
            let wanted = self.wanted(subject, rule, at);
            let view = ScoreView {
                rule: rule.spec.name.to_string(),
                score: in_whole(score),
                wanted: in_whole(wanted.score),
                sources,
                wanted_sources: rule.sources().unwrap_or(1),
            };
            notes = wanted.notes;
            (score > 0).then_some(view)
        });
        Some(Known {
            subject,
            scores: scores.collect(),
            consumers,
            good_requests,
            next_time: record.map_or(1, |record| record.next_time(at)),
            in_force: record
                .into_iter()
                .flat_map(|record| record.in_force(at))
                .map(|(rule, until)| (rule.to_string(), now.utc_of(until)))
                .collect(),
            notes,
            signals: suspect.map(|suspect| suspect.signals()).unwrap_or_default(),
        })
    }

    /// Lets every rule count a signal, and gives the strongest of those for which it is enough now.
    fn count(
        &mut self,
        evidence: &Evidence,
        (subject, by_prefix): (Subject, bool),
        (source, weight): (u64, u32),
    ) -> Option<Found> {
        let pressed = self.is_under_pressure(evidence);
        let limit = evidence.limit.as_deref();
        let counts = |rule: &Rule| {
            rule.sources().is_some() == by_prefix && rule.counts(evidence.signal, limit, pressed)
        };
        if !self.rules.all.iter().any(counts) {
            return None;
        }
        let (rules, now) = (&self.rules, self.now.boot);
        let suspects = if by_prefix { &mut self.prefixes } else { &mut self.sources };
        let record = self.past.get(&subject);
        let enough = suspects.note(subject, evidence, (rules, now), |suspect| {
            let mut enough = Vec::new();
            for (index, rule) in rules.all.iter().enumerate().filter(|(_, rule)| counts(rule)) {
                if record.is_some_and(|record| record.is_in_force(rule, now)) {
                    continue;
                }
                suspect.count(rule, weight, source, now);
                let (score, sources) = suspect.score(rule, now);
                if score >= rule.wanted && sources >= rule.sources().unwrap_or(1) {
                    enough.push(Found { rule: index, score, sources });
                }
            }
            enough
        })?;
        self.strongest(subject, &enough)
    }

    /// The strongest of those rules that want no more than that and have anything to decide; of equals the first.
    fn strongest(&self, subject: Subject, enough: &[Found]) -> Option<Found> {
        let now = self.now.boot;
        let ripe = enough.iter().filter_map(|found| {
            let rule = self.rules.all.get(found.rule)?;
            let record = self.past.get(&subject);
            let blocked = record.is_some_and(|record| record.blocks(rule, now));
            let is_enough = !blocked && found.score >= self.wanted(subject, rule, now).score;
            is_enough.then_some((strength(&rule.spec.measure), *found))
        });
        ripe.rev().max_by_key(|(strength, _)| *strength).map(|(_, found)| found)
    }

    /// How much evidence it takes about somebody, and why.
    fn wanted(&self, subject: Subject, rule: &Rule, now: BootTime) -> Wanted {
        let (lenience, lifts) =
            self.past.get(&subject).map_or((1, 0), |record| record.lenience(now));
        let mut notes = Vec::new();
        if lifts > 0 {
            notes.push(format!(
                "it was lifted {} within the last hour, so it takes {lenience} times the evidence",
                Times(lifts)
            ));
        }
        let (shared, consumers) = (self.config.shared, self.good.consumers(subject.felt(), now));
        let is_shared = consumers >= shared.consumers;
        if is_shared {
            let who = format!("{consumers} known callers were served here within ten minutes");
            notes.push(match shared.evidence {
                Some(times) => format!("{who}, so it takes {times} times the evidence"),
                None => format!("{who}, so no evidence is enough"),
            });
        }
        let times = shared.evidence.filter(|_| is_shared).map_or(1, u64::from);
        let score = rule.wanted.saturating_mul(lenience).saturating_mul(times);
        Wanted { score, consumers, is_shared: is_shared && shared.evidence.is_none(), notes }
    }

    /// Makes the decision, and remembers that.
    fn decide(&mut self, subject: Subject, found: Found) -> Option<Decision> {
        let (at, config) = (self.now, self.config.clone());
        let rule = self.rules.all.get(found.rule)?;
        let Wanted { score: wanted, consumers, is_shared, mut notes } =
            self.wanted(subject, rule, at.boot);
        let good = (self.hit_at(subject, at.boot), self.good.total(at.boot));
        let held = match is_shared {
            true => Some(Held::Shared),
            false => self.ceilings.holds(good, &config.ceiling, at.boot),
        };
        notes.extend(held.and_then(|held| self.why_held(held, good)));
        let suspects = if rule.sources().is_some() { &self.prefixes } else { &self.sources };
        let signals = suspects.get(&subject).map(|suspect| suspect.signals()).unwrap_or_default();

        let next = |record: &super::past::Record| record.next_time(at.boot);
        let times = self.past.get(&subject).map_or(1, next);
        let kind = if config.dry_run { HoldKind::DryRun } else { HoldKind::Enforced };
        self.past.change(subject, at.boot, |record| match held {
            None => record.decided(rule, times, kind, at.boot),
            Some(Held::Shared) => record.said(rule, after(at.boot, HELD_BY_SHARING)),
            Some(_) => record.said(rule, after(at.boot, HELD_BY_CEILING)),
        });
        if held.is_none() {
            self.ceilings.count(subject, good.0, at.boot);
            let by_prefix = rule.sources().is_some();
            let suspects = if by_prefix { &mut self.prefixes } else { &mut self.sources };
            suspects.use_up(&subject, rule, &self.rules, at.boot);
        }
        let held = held.or(config.dry_run.then_some(Held::DryRun));
        let name = rule.spec.name.clone();
        let (measure, lasts) = (rule.spec.measure.clone(), rule.lasts(times));
        self.tell(&name, held);
        Some(Decision {
            subject,
            rule: name,
            measure,
            lasts,
            times,
            at,
            story: Story {
                score: in_whole(found.score),
                wanted: in_whole(wanted),
                sources: found.sources,
                consumers,
                notes,
                signals,
            },
            held,
        })
    }

    fn tell(&mut self, name: &Arc<str>, decided: Option<Held>) {
        let same =
            |(rule, held, _): &&mut (Arc<str>, Option<Held>, u64)| rule == name && *held == decided;
        match self.decisions.iter_mut().find(same) {
            Some((.., count)) => *count += 1,
            None => self.decisions.push((name.clone(), decided, 1)),
        }
    }

    fn why_held(&self, held: Held, (hits, all): (u64, u64)) -> Option<String> {
        let ceiling = &self.config.ceiling;
        match held {
            // What is shared has its note.
            Held::Shared | Held::DryRun => None,
            Held::BansPerMinute => Some(format!(
                "{} decisions were enforced within a minute, and no more may be \
                 (feedback.ceiling.bans_per_minute)",
                ceiling.bans_per_minute
            )),
            Held::GoodShare => Some(format!(
                "it would hit {hits} good requests of the last ten minutes, together with \
                 earlier decisions {} of {all}, and no more than {} may be \
                 (feedback.ceiling.good_share)",
                self.ceilings.hit() + hits,
                ceiling.good_share
            )),
        }
    }
}

/// A number for each source of a prefix, exactly: what tells sources apart are 64 bits at most.
fn number_of(source: Subject) -> u64 {
    match source.prefix.addr() {
        std::net::IpAddr::V4(address) => u64::from(address.to_bits()),
        std::net::IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

fn in_whole(thousandths: u64) -> f64 {
    thousandths as f64 / 1000.0
}

/// Once, twice, or so many times.
struct Times(u32);

impl fmt::Display for Times {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => formatter.write_str("once"),
            2 => formatter.write_str("twice"),
            times => write!(formatter, "{times} times"),
        }
    }
}
