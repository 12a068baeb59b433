//! What is known against sources, or prefixes: what each rule counted, and the last signals.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use super::rules::{Rule, Rules, SLICES};
use super::table::{LEVELS, Table};
use super::window::{Seen, Window};
use crate::base::signal::Signal;
use crate::base::time::{BootTime, UtcMillis};
use crate::feedback::decision::{SIGNALS_MAX, SignalView, Subject};
use crate::feedback::evidence::Evidence;

/// Whoever is half way to a decision is not forgotten for newcomers.
const KEEP_FROM: u8 = LEVELS as u8 / 2;
/// Signals that are kept on average; beyond it nobody's list grows.
const KEPT_PER_SUSPECT: usize = 4;
/// Bytes of a request's id that are kept.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// One source or prefix. 56 bytes, 72 for each rule that counted something of it, 96 and the id for each signal.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspect {
    counted: Vec<Counted>,
    kept: VecDeque<Kept>,
}

/// What one rule counted.
#[derive(Clone, Debug)]
struct Counted {
    rule: u32,
    window: Window<SLICES>,
    /// Of a prefix: by when.
    sources: Seen,
}

/// A signal as it is remembered.
#[derive(Clone, Debug)]
struct Kept {
    at: UtcMillis,
    signal: Signal,
    source: IpAddr,
    /// A copy: the original is a part of everything that was read with it.
    request_id: Option<Box<str>>,
    route: Option<Arc<str>>,
    limit: Option<Arc<str>>,
    reason: Option<&'static str>,
}

/// All of a kind.
#[derive(Clone, Debug)]
pub(super) struct Suspects {
    table: Table<Suspect>,
    kept: usize,
    kept_most: usize,
    /// Forgotten for others.
    pub(super) evicted: u64,
    /// Not remembered, for everybody else was half way to a decision.
    pub(super) turned_away: u64,
}

impl Suspects {
    pub(super) fn new(most: u32) -> Self {
        let most = most as usize;
        Self {
            table: Table::new(most, KEEP_FROM),
            kept: 0,
            kept_most: most.saturating_mul(KEPT_PER_SUSPECT),
            evicted: 0,
            turned_away: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn get(&self, subject: &Subject) -> Option<&Suspect> {
        self.table.get(subject)
    }

    /// Notes a signal, and lets `count` have the suspect; `None` where there is no room for it.
    pub(super) fn note<T>(
        &mut self,
        subject: Subject,
        evidence: &Evidence,
        (rules, now): (&Rules, BootTime),
        count: impl FnOnce(&mut Suspect) -> T,
    ) -> Option<T> {
        let known = self.table.find(&subject);
        let place = known.or_else(|| self.newcomer(subject, rules, now))?;
        let suspect = self.table.value(place)?;
        let is_long = suspect.kept.len() >= SIGNALS_MAX;
        if is_long || (self.kept >= self.kept_most && !suspect.kept.is_empty()) {
            suspect.kept.pop_front();
            self.kept = self.kept.saturating_sub(1);
        }
        suspect.kept.push_back(Kept::of(evidence));
        self.kept += 1;
        let counted = count(suspect);
        let level = suspect.level(rules, now);
        self.table.touch(place, level);
        Some(counted)
    }

    fn newcomer(&mut self, subject: Subject, rules: &Rules, now: BootTime) -> Option<u32> {
        // So that what has become unimportant is found, however rarely anybody sweeps.
        if self.table.is_full() {
            self.sweep(1, rules, now);
        }
        if self.table.is_full() && !self.evict() {
            self.turned_away += 1;
            return None;
        }
        Some(self.table.insert(subject, Suspect::default()))
    }

    /// What a decision was made of is used up.
    pub(super) fn use_up(&mut self, subject: &Subject, used: &Rule, rules: &Rules, now: BootTime) {
        let Some(place) = self.table.find(subject) else { return };
        let Some(suspect) = self.table.value(place) else { return };
        suspect.counted.retain(|counted| counted.rule != used.number);
        let level = suspect.level(rules, now);
        self.table.touch(place, level);
    }

    pub(super) fn remove(&mut self, subject: &Subject) {
        if let Some(gone) = self.table.remove(subject) {
            self.kept = self.kept.saturating_sub(gone.kept.len());
        }
    }

    /// Ages the next few, and forgets those against whom nothing counts any more.
    pub(super) fn sweep(&mut self, entries: usize, rules: &Rules, now: BootTime) {
        let gone = self.table.sweep(entries, |suspect| {
            let counts = |counted: &Counted| {
                let rule = rules.find(counted.rule);
                rule.is_some_and(|rule| counted.window.sum(rule.slice(now)) > 0)
            };
            suspect.counted.retain(counts);
            (!suspect.counted.is_empty()).then(|| suspect.level(rules, now))
        });
        let kept: usize = gone.iter().map(|(_, suspect)| suspect.kept.len()).sum();
        self.kept = self.kept.saturating_sub(kept);
    }

    fn evict(&mut self) -> bool {
        let Some((_, gone)) = self.table.evict() else { return false };
        self.kept = self.kept.saturating_sub(gone.kept.len());
        self.evicted += 1;
        true
    }
}

impl Suspect {
    /// Counts a signal for a rule, of this source.
    pub(super) fn count(&mut self, rule: &Rule, weight: u32, source: u64, now: BootTime) {
        let index = self.counted.iter().position(|counted| counted.rule == rule.number);
        let index = index.unwrap_or_else(|| {
            self.counted.reserve_exact(1);
            let (window, sources) = (Window::EMPTY, Seen::default());
            self.counted.push(Counted { rule: rule.number, window, sources });
            self.counted.len() - 1
        });
        let Some(counted) = self.counted.get_mut(index) else { return };
        let slice = rule.slice(now);
        counted.window.add(slice, weight);
        if let Some(most) = rule.sources() {
            counted.sources.note(source, slice, most as usize);
        }
    }

    /// What a rule counted, in thousandths, and from how many sources.
    pub(super) fn score(&self, rule: &Rule, now: BootTime) -> (u64, u32) {
        let Some(counted) = self.counted.iter().find(|counted| counted.rule == rule.number) else {
            return (0, 0);
        };
        let sources = rule.sources().map_or(1, |_| counted.sources.since(rule.since(now)));
        (counted.window.sum(rule.slice(now)), sources)
    }

    /// The last signals, the oldest first.
    pub(super) fn signals(&self) -> Vec<SignalView> {
        self.kept.iter().map(Kept::view).collect()
    }

    /// How near it is to a decision, in eighths.
    fn level(&self, rules: &Rules, now: BootTime) -> u8 {
        let shares = self.counted.iter().filter_map(|counted| {
            let rule = rules.find(counted.rule)?;
            (counted.window.sum(rule.slice(now)) * LEVELS as u64).checked_div(rule.wanted)
        });
        u8::try_from(shares.max().unwrap_or(0)).unwrap_or(u8::MAX)
    }
}

impl Kept {
    fn of(evidence: &Evidence) -> Self {
        let request_id = evidence.request_id.as_ref().and_then(|id| id.to_str().ok());
        let request_id = request_id.filter(|id| id.len() <= REQUEST_ID_BYTES_MAX);
        Self {
            at: evidence.at.utc,
            signal: evidence.signal,
            source: evidence.source.ip(),
            request_id: request_id.map(Box::from),
            route: evidence.route.clone(),
            limit: evidence.limit.clone(),
            reason: evidence.reason,
        }
    }

    fn view(&self) -> SignalView {
        SignalView {
            at: self.at,
            signal: self.signal.name().to_owned(),
            source: self.source,
            request_id: self.request_id.as_deref().map(str::to_owned),
            route: self.route.as_deref().map(str::to_owned),
            limit: self.limit.as_deref().map(str::to_owned),
            reason: self.reason.map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Suspects {
        /// Signals that are kept, and how many may be.
        pub(in crate::feedback::score) fn kept(&self) -> (usize, usize) {
            (self.kept, self.kept_most + self.table.len())
        }
    }

    #[test]
    fn the_sizes_are_as_documented() {
        assert_eq!(size_of::<Suspect>(), 56);
        assert_eq!((size_of::<Counted>(), size_of::<Kept>()), (72, 96));
    }
}
