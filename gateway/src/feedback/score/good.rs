//! What was served well of late: how much of it a decision would hit, and how many callers share a source.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::table::{LEVELS, Table};
use super::window::{Seen, Window};
use crate::base::time::BootTime;
use crate::feedback::decision::{Place, Subject};

/// It is remembered in minutes, for ten of them.
const SLICES: usize = 10;
const SLICE_NS: u64 = 60_000_000_000;
const WHILE_NS: u64 = SLICES as u64 * SLICE_NS;
/// How old what is known of wide prefixes may be: it takes a look at everything.
const SUMS_NS: u64 = 10_000_000_000;
/// Requests of one source that count, so that nobody makes itself important.
const REQUESTS_MAX: u64 = 100;
/// Consumers of one source that are told apart, unless it takes more to call it shared.
const CONSUMERS_MIN: usize = 8;

/// One source or prefix that was served.
#[derive(Clone, Debug)]
struct Served {
    /// Where it lies, or what it is.
    prefix: Subject,
    requests: Window<SLICES>,
    /// By when.
    consumers: Seen,
}

#[derive(Clone, Debug)]
pub(super) struct GoodTraffic {
    sources: Table<Served>,
    prefixes: Table<Served>,
    total: Window<SLICES>,
    sums: Option<Sums>,
}

/// The requests of all prefixes up to each one, in their order.
#[derive(Clone, Debug)]
struct Sums {
    at: BootTime,
    /// Of all places.
    all: Vec<(IpAddr, u64)>,
    /// Of believed addresses.
    believed: Vec<(IpAddr, u64)>,
}

impl GoodTraffic {
    pub(super) fn new(most: u32) -> Self {
        let table = || Table::new(most as usize, LEVELS as u8);
        Self { sources: table(), prefixes: table(), total: Window::EMPTY, sums: None }
    }

    /// Notes requests of a source, which lies in a prefix, by a consumer if one is known.
    pub(super) fn note(
        &mut self,
        (source, prefix): (Subject, Subject),
        (consumer, requests): (Option<u64>, u32),
        shared: u32,
        now: BootTime,
    ) {
        let slice = now.0 / SLICE_NS;
        self.make_room(&source, &prefix);
        let counted = self.sources.get(&source).map_or(0, |served| served.requests.sum(slice));
        let counted = REQUESTS_MAX.saturating_sub(counted).min(u64::from(requests)) as u32;
        self.total.add(slice, counted);
        let most = CONSUMERS_MIN.max(shared as usize);
        for (table, subject) in [(&mut self.sources, source), (&mut self.prefixes, prefix)] {
            let place = table.find(&subject).unwrap_or_else(|| {
                let (requests, consumers) = (Window::EMPTY, Seen::default());
                table.insert(subject, Served { prefix, requests, consumers })
            });
            let Some(served) = table.value(place) else { continue };
            served.requests.add(slice, counted);
            if let Some(consumer) = consumer {
                served.consumers.note(consumer, now.0, most);
            }
            let level = served.level(now);
            table.touch(place, level);
        }
    }

    /// Different consumers that were served at any of these within the last ten minutes, as far as they are told apart.
    pub(super) fn consumers(
        &self,
        subjects: impl IntoIterator<Item = Subject>,
        now: BootTime,
    ) -> u32 {
        let served = subjects.into_iter().filter_map(|subject| self.served(&subject));
        let who: BTreeSet<u64> =
            served.flat_map(|served| served.consumers.who_since(since(now))).collect();
        u32::try_from(who.len()).unwrap_or(u32::MAX)
    }

    /// Good requests of a subject, and of all.
    pub(super) fn requests(&self, subject: &Subject, now: BootTime) -> (u64, u64) {
        let slice = now.0 / SLICE_NS;
        let own = self.served(subject).map_or(0, |served| served.requests.sum(slice));
        (own, self.total.sum(slice))
    }

    /// Good requests of all.
    pub(super) fn total(&self, now: BootTime) -> u64 {
        self.total.sum(now.0 / SLICE_NS)
    }

    /// Good requests within a prefix that is wider than those that sources are added up by, as of ten seconds ago at
    /// most; of all places, unless it is about believed addresses alone.
    pub(super) fn within(&mut self, subject: &Subject, now: BootTime) -> u64 {
        let is_old = |sums: &Sums| sums.at.0.saturating_add(SUMS_NS) <= now.0;
        if self.sums.as_ref().is_none_or(is_old) {
            self.sums = Some(self.sum_up(now));
        }
        let Some(sums) = &self.sums else { return 0 };
        let sums = match subject.place {
            Place::Kernel => &sums.all,
            Place::UserSpace => &sums.believed,
        };
        let (first, last) = (subject.prefix.network(), subject.prefix.broadcast());
        let before = |count: usize| {
            count.checked_sub(1).and_then(|place| sums.get(place)).map_or(0, |(_, sum)| *sum)
        };
        let from = sums.partition_point(|(address, _)| *address < first);
        let to = sums.partition_point(|(address, _)| *address <= last);
        before(to).saturating_sub(before(from))
    }

    fn sum_up(&self, now: BootTime) -> Sums {
        let slice = now.0 / SLICE_NS;
        let counts = self.prefixes.iter().map(|(one, served)| (one, served.requests.sum(slice)));
        let mut counts: Vec<(&Subject, u64)> = counts.filter(|(_, count)| *count > 0).collect();
        counts.sort_unstable_by_key(|(one, _)| one.prefix.addr());
        let sums = |places: &[Place]| {
            let mut sum = 0;
            let counts = counts.iter().filter(|(one, _)| places.contains(&one.place));
            let sums = counts.map(|(one, count)| {
                sum += count;
                (one.prefix.addr(), sum)
            });
            sums.collect()
        };
        Sums {
            at: now,
            all: sums(&[Place::Kernel, Place::UserSpace]),
            believed: sums(&[Place::UserSpace]),
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.sources.len() + self.prefixes.len()
    }

    pub(super) fn sweep(&mut self, entries: usize, now: BootTime) {
        let slice = now.0 / SLICE_NS;
        for table in [&mut self.sources, &mut self.prefixes] {
            table.sweep(entries, |served| {
                let level = served.level(now);
                (level > 0 || served.requests.sum(slice) > 0).then_some(level)
            });
        }
    }

    fn make_room(&mut self, source: &Subject, prefix: &Subject) {
        if self.sources.get(source).is_none()
            && self.sources.is_full()
            && let Some((_, gone)) = self.sources.evict()
        {
            self.total.subtract(&gone.requests);
            if let Some(around) = self.prefixes.get_mut(&gone.prefix) {
                around.requests.subtract(&gone.requests);
            }
        }
        if self.prefixes.get(prefix).is_none() && self.prefixes.is_full() {
            self.prefixes.evict();
        }
    }

    fn served(&self, subject: &Subject) -> Option<&Served> {
        self.sources.get(subject).or_else(|| self.prefixes.get(subject))
    }
}

impl Served {
    /// Where callers are known the knowledge protects them, so it goes last.
    fn level(&self, now: BootTime) -> u8 {
        self.consumers.since(since(now)).min(2) as u8
    }
}

fn since(now: BootTime) -> u64 {
    now.0.saturating_sub(WHILE_NS)
}
