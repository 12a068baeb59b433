//! Scores: what is known against each source, and when that is enough. Pure: no clock but that of the reports, no
//! lock, no effect; the same reports make the same decisions.
//!
//! Bounded whatever happens: of `feedback.max_sources` sources and as many prefixes it is remembered what they did, of
//! as many others that they were served, and of as many what was decided about them. Nobody is decided about by what
//! others did, which can but hold a decision back.

mod ceiling;
mod good;
mod judge;
mod known;
mod others;
mod past;
mod rules;
mod suspect;
mod table;
mod window;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use self::ceiling::Ceilings;
use self::good::GoodTraffic;
pub use self::known::{Known, Numbers, ScoreView};
use self::past::Past;
pub use self::past::Remembered;
use self::rules::Rules;
use self::suspect::Suspects;
use super::decision::{Decision, Held, Place, Subject};
use super::evidence::{Evidence, Good, Report, Source};
use crate::base::signal::Signal;
use crate::base::time::{BootTime, Now, UtcMillis};
use crate::config::Feedback;

/// How long a route is under pressure after it was last reported.
const PRESSURE_NS: u64 = 10_000_000_000;
/// Routes under pressure that are remembered.
const ROUTES_MAX: usize = 4096;
/// A tick looks at this part of each table, so that all are looked at within as many ticks.
const SWEEP_PART: usize = 64;

/// What is known of all sources.
#[derive(Clone, Debug)]
pub struct Scores {
    config: Arc<Feedback>,
    /// Length of sources, of IPv4 and of IPv6. (bits)
    source_bits: [u8; 2],
    rules: Rules,
    sources: Suspects,
    prefixes: Suspects,
    good: GoodTraffic,
    past: Past,
    ceilings: Ceilings,
    /// Of decisions that others made.
    of_others: Ceilings,
    /// Routes that were under pressure of late, and when last.
    pressed: HashMap<Arc<str>, BootTime>,
    /// The newest moment of all reports: nothing goes back behind it.
    now: Now,
    signals: [u64; Signal::ALL.len()],
    decisions: Vec<(Arc<str>, Option<Held>, u64)>,
}

impl Scores {
    /// Knows nothing yet. A source of IPv6 is a prefix of this length.
    pub fn new(config: &Arc<Feedback>, ipv6_source_length: u8) -> Self {
        let mut scores = Self {
            config: config.clone(),
            source_bits: [32, ipv6_source_length],
            rules: Rules::default(),
            sources: Suspects::new(config.max_sources),
            prefixes: Suspects::new(config.max_sources),
            good: GoodTraffic::new(config.max_sources),
            past: Past::new(config.max_sources),
            ceilings: Ceilings::default(),
            of_others: Ceilings::default(),
            pressed: HashMap::new(),
            now: Now { boot: BootTime(0), utc: UtcMillis(0) },
            signals: [0; Signal::ALL.len()],
            decisions: Vec::new(),
        };
        scores.rules.configure(config);
        scores
    }

    /// Takes over a new configuration. Evidence is kept for rules that count the same; all of it is forgotten where
    /// `max_sources`, `prefixes` or the length of sources change. What was decided is remembered.
    pub fn configure(&mut self, config: &Arc<Feedback>, ipv6_source_length: u8) {
        let old = std::mem::replace(&mut self.config, config.clone());
        let bits = [32, ipv6_source_length];
        let of = |feedback: &Feedback| (feedback.max_sources, feedback.prefix_bits);
        if of(&old) != of(config) || self.source_bits != bits {
            self.source_bits = bits;
            self.sources = Suspects::new(config.max_sources);
            self.prefixes = Suspects::new(config.max_sources);
            self.good = GoodTraffic::new(config.max_sources);
            self.past.resize(config.max_sources);
        }
        if old.dry_run != config.dry_run {
            self.past.forget_dry_runs();
            self.ceilings = Ceilings::default();
            self.of_others = Ceilings::default();
        }
        self.rules.configure(config);
        let rules = &self.config.rules;
        self.decisions.retain(|(name, ..)| rules.iter().any(|rule| rule.name == *name));
    }

    /// Takes in a report. What it tips, if anything, is decided once: the source, its prefix, or both.
    ///
    /// A decision that is not `held` counts as enforced from then on; whoever cannot enforce it says so by
    /// [`Scores::refused`].
    pub fn observe(&mut self, report: &Report) -> Vec<Decision> {
        match report {
            Report::Odd(evidence) => {
                self.advance(evidence.at);
                self.odd(evidence)
            }
            Report::Good(served, at) => {
                self.advance(*at);
                served.iter().for_each(|good| self.served(good));
                Vec::new()
            }
            Report::Pressure(route, at) => {
                self.advance(*at);
                self.pressed(route);
                Vec::new()
            }
        }
    }

    /// Ages what nobody asks for. Call it about once a second; decisions do not depend on it.
    pub fn tick(&mut self, now: Now) {
        self.advance(now);
        let entries = (self.config.max_sources as usize / SWEEP_PART).max(SWEEP_PART);
        let now = self.now.boot;
        self.sources.sweep(entries, &self.rules, now);
        self.prefixes.sweep(entries, &self.rules, now);
        self.good.sweep(entries, now);
        self.past.tick(now);
    }

    /// A decision could not be enforced: it counts neither for its subject nor for the ceilings, and is not repeated
    /// while it would have held.
    pub fn refused(&mut self, subject: Subject, rule: &str, now: Now) {
        self.advance(now);
        let now = self.now.boot;
        self.past.change(subject, now, |record| record.refused(rule, now));
        self.ceilings.give_back(&subject);
    }

    /// Somebody took a ban back. The evidence is gone, and for an hour it takes twice as much of it, for each lift.
    pub fn lift(&mut self, subject: Subject, now: Now) {
        self.advance(now);
        let now = self.now.boot;
        self.suspects(&subject).remove(&subject);
        self.past.change(subject, now, |record| record.lifted(now));
    }

    /// Forgets what was done and what was decided; who was served there is not forgotten, for that protects them.
    pub fn forget(&mut self, subject: Subject, now: Now) {
        self.advance(now);
        self.suspects(&subject).remove(&subject);
        self.past.remove(&subject);
    }

    /// What must survive a restart.
    pub fn snapshot(&self, now: Now) -> Vec<Remembered> {
        self.past.remembered(now)
    }

    /// Takes over what was remembered before a restart, or what holds by somebody else's decision: a ban that was
    /// pinned, or that another gateway made.
    pub fn restore(&mut self, remembered: &Remembered, now: Now) {
        self.advance(now);
        self.past.restore(remembered, self.now);
    }

    /// What is known of an address: of its source and its prefix, over connections of its own and by what trusted
    /// proxies say.
    pub fn known(&self, address: IpAddr, now: Now) -> Vec<Known> {
        let now = if now.boot > self.now.boot { now } else { self.now };
        let places = [Place::Kernel, Place::UserSpace];
        let subjects = places.iter().flat_map(|place| {
            let source = subject_of(address, *place, self.source_bits);
            let prefix = subject_of(address, *place, self.config.prefix_bits);
            [source, prefix].into_iter().flatten()
        });
        subjects.filter_map(|subject| self.known_of(subject, now)).collect()
    }

    /// Numbers for metrics.
    pub fn numbers(&self) -> Numbers {
        Numbers {
            sources: self.sources.len(),
            prefixes: self.prefixes.len(),
            remembered: self.past.len(),
            evicted: self.sources.evicted + self.prefixes.evicted,
            turned_away: self.sources.turned_away + self.prefixes.turned_away,
            signals: self.signals,
            decisions: self.decisions.clone(),
        }
    }

    /// Time never goes back: what is reported late is taken as of the newest.
    fn advance(&mut self, at: Now) {
        if at.boot > self.now.boot {
            self.now = at;
        }
    }

    fn served(&mut self, good: &Good) {
        let Some(both) = self.subjects(good.source) else { return };
        let what = (good.consumer, good.requests);
        self.good.note(both, what, self.config.shared.consumers, self.now.boot);
    }

    fn pressed(&mut self, route: &Arc<str>) {
        let now = self.now.boot;
        if self.pressed.len() >= ROUTES_MAX && !self.pressed.contains_key(route) {
            self.pressed.retain(|_, last| is_pressed(*last, now));
            if self.pressed.len() >= ROUTES_MAX {
                return;
            }
        }
        self.pressed.insert(route.clone(), now);
    }

    /// A source, and the prefix that it lies in.
    fn subjects(&self, source: Source) -> Option<(Subject, Subject)> {
        let place = match source {
            Source::Peer(_) => Place::Kernel,
            Source::Believed(_) => Place::UserSpace,
        };
        let prefix = subject_of(source.ip(), place, self.config.prefix_bits);
        subject_of(source.ip(), place, self.source_bits).zip(prefix)
    }

    fn is_under_pressure(&self, evidence: &Evidence) -> bool {
        let route = evidence.route.as_ref().filter(|_| !self.pressed.is_empty());
        let last = route.and_then(|route| self.pressed.get(route));
        last.is_some_and(|last| is_pressed(*last, self.now.boot))
    }

    fn suspects(&mut self, subject: &Subject) -> &mut Suspects {
        match subject.prefix.prefix_len() >= bits_of(subject.prefix.addr(), self.source_bits) {
            true => &mut self.sources,
            false => &mut self.prefixes,
        }
    }
}

fn is_pressed(last: BootTime, now: BootTime) -> bool {
    last.0.saturating_add(PRESSURE_NS) > now.0
}

/// The source or prefix that an address lies in.
fn subject_of(address: IpAddr, place: Place, bits: [u8; 2]) -> Option<Subject> {
    let prefix = IpNet::new(address, bits_of(address, bits)).ok()?.trunc();
    Some(Subject { prefix, place })
}

fn bits_of(address: IpAddr, [ipv4, ipv6]: [u8; 2]) -> u8 {
    if address.is_ipv4() { ipv4 } else { ipv6 }
}
