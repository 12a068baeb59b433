//! Requests by route and by upstream: one block a worker for each, found once per configuration and never looked up
//! while a request is served. Blocks are known by name and outlive configurations, so that a reload loses and mixes
//! nothing. Only so many names get blocks of their own; the others share one.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::histogram::{Durations, Histogram};
use super::resilience::{Counts, Resilience};
use super::{CLASSES, Counter};
use crate::base::error::Kind;

/// The name under which those are counted that have no block of their own. No route or upstream can be called so: a
/// name begins with a letter or digit, and what is made from a pattern has a slash.
pub const OTHER: &str = "_other";

/// What one worker counts of one route or upstream. Two cache lines apart from the next, as all blocks.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Traffic {
    statuses: [Counter; CLASSES.len()],
    abandoned: Counter,
    errors: [Counter; Kind::ALL.len()],
    request_bytes: Counter,
    response_bytes: Counter,
    durations: Histogram,
    /// What was done because it was sick, of an upstream.
    pub resilience: Resilience,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct End {
    /// The status of the answer; `None` if the client left before.
    pub status: Option<u16>,
    /// The error that it ended in.
    pub error: Option<Kind>,
    /// How long it took; `None` if it did not get that far.
    pub duration: Option<Duration>,
    /// Bytes of its body that came in.
    pub request_bytes: u64,
    /// Bytes of the answer's body that went out.
    pub response_bytes: u64,
}

impl Traffic {
    /// A request ended. Only the owning worker may say so.
    pub fn ended(&self, end: &End) {
        match end.status {
            Some(status) => {
                let class = usize::from(status / 100).wrapping_sub(1);
                if let Some(counter) = self.statuses.get(class) {
                    counter.add(1);
                }
            }
            None => self.abandoned.add(1),
        }
        if let Some(counter) = end.error.and_then(|kind| self.errors.get(kind as usize)) {
            counter.add(1);
        }
        if let Some(duration) = end.duration {
            self.durations.add(duration);
        }
        self.request_bytes.add(end.request_bytes);
        self.response_bytes.add(end.response_bytes);
    }
}

/// The blocks of one name, one a worker.
#[derive(Clone, Debug)]
pub struct Series(Arc<[Traffic]>);

impl Series {
    fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Traffic::default()).collect())
    }

    /// The block of a worker.
    pub fn of(&self, worker: usize) -> Option<&Traffic> {
        self.0.get(worker)
    }

    fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        self.0.iter().for_each(|block| sum.add(block));
        sum
    }

    fn is_held_elsewhere(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// All series of a kind.
#[derive(Debug)]
pub(super) struct Table {
    workers: usize,
    by_name: BTreeMap<String, Series>,
    other: Series,
    /// What those had counted whose place was given to others.
    gone: Sum,
}

impl Table {
    pub(super) fn new(workers: usize) -> Self {
        let other = Series::new(workers);
        Self { workers, by_name: BTreeMap::new(), other, gone: Sum::default() }
    }

    /// The series of these names in their order, at most `max` of them with one of their own. A name that was known
    /// keeps its series. Where there are too many, those give way first that no configuration in use names.
    pub(super) fn series(&mut self, names: &[&str], max: usize) -> Vec<Series> {
        let wanted: HashSet<&str> = names.iter().copied().collect();
        let known = wanted.iter().filter(|name| self.by_name.contains_key(**name)).count();
        let unknown = names.iter().copied().filter(|name| !self.by_name.contains_key(*name));
        let added: Vec<&str> = unknown.take(max.saturating_sub(known)).collect();
        self.make_room((self.by_name.len() + added.len()).saturating_sub(max), &wanted);
        for name in added {
            self.by_name.insert(name.to_owned(), Series::new(self.workers));
        }
        let of = |name: &&str| self.by_name.get(*name).unwrap_or(&self.other).clone();
        names.iter().map(of).collect()
    }

    fn make_room(&mut self, mut surplus: usize, wanted: &HashSet<&str>) {
        let gone = &mut self.gone;
        self.by_name.retain(|name, series| {
            // A request in flight still counts there.
            let stays =
                surplus == 0 || wanted.contains(name.as_str()) || series.is_held_elsewhere();
            if !stays {
                surplus -= 1;
                gone.merge(&series.sum());
            }
            stays
        });
    }

    /// What was counted under each name.
    pub(super) fn sums(&self) -> Vec<(String, Sum)> {
        let mut other = self.other.sum();
        other.merge(&self.gone);
        let named = self.by_name.iter().map(|(name, series)| (name.clone(), series.sum()));
        let other = (other != Sum::default()).then(|| (OTHER.to_owned(), other));
        named.chain(other).collect()
    }
}

/// What all workers counted of one route or upstream since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Answers by class of status.
    pub statuses: [u64; CLASSES.len()],
    /// Requests whose client left before the head of an answer.
    pub abandoned: u64,
    /// Errors by kind, in the order of [`Kind::ALL`].
    pub errors: [u64; Kind::ALL.len()],
    /// Bytes of bodies that came in.
    pub request_bytes: u64,
    /// Bytes of bodies that went out.
    pub response_bytes: u64,
    /// How long it took.
    pub durations: Durations,
    /// What was done because it was sick, of an upstream.
    pub resilience: Counts,
}

impl Sum {
    /// Requests that ended.
    pub fn requests(&self) -> u64 {
        self.statuses.iter().sum::<u64>() + self.abandoned
    }

    fn add(&mut self, block: &Traffic) {
        let Traffic { statuses, abandoned, errors, request_bytes, response_bytes, .. } = block;
        add_each(&mut self.statuses, statuses.iter().map(Counter::value));
        add_each(&mut self.errors, errors.iter().map(Counter::value));
        self.abandoned += abandoned.value();
        self.request_bytes += request_bytes.value();
        self.response_bytes += response_bytes.value();
        self.durations.add(&block.durations);
        self.resilience.add(&block.resilience);
    }

    fn merge(&mut self, other: &Self) {
        add_each(&mut self.statuses, other.statuses.iter().copied());
        add_each(&mut self.errors, other.errors.iter().copied());
        self.abandoned += other.abandoned;
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        self.durations.merge(&other.durations);
        self.resilience.merge(&other.resilience);
    }
}

fn add_each(sums: &mut [u64], values: impl Iterator<Item = u64>) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(series: &Series, worker: usize, requests: usize) {
        let end = End { status: Some(200), request_bytes: 1, ..End::default() };
        (0..requests).for_each(|_| series.of(worker).unwrap().ended(&end));
    }

    fn requests(table: &Table) -> Vec<(String, u64)> {
        table.sums().into_iter().map(|(name, sum)| (name, sum.requests())).collect()
    }

    #[test]
    fn a_name_keeps_its_count_from_one_configuration_to_the_next() {
        let mut table = Table::new(2);
        let first = table.series(&["a", "b"], 10);
        count(&first[0], 0, 1);
        count(&first[0], 1, 2);
        count(&first[1], 1, 4);
        let second = table.series(&["b", "c"], 10);
        count(&second[0], 0, 8);
        // A request in flight ends after the reload.
        count(&first[0], 0, 16);
        let expected = [("a", 19), ("b", 12), ("c", 0)];
        assert_eq!(requests(&table), expected.map(|(name, count)| (name.to_owned(), count)));
        assert_eq!(second[0].of(2).map(|_| ()), None);
    }

    #[test]
    fn beyond_the_bound_names_share_one_series_and_no_count_is_lost() {
        let mut table = Table::new(1);
        let first = table.series(&["a", "b", "c", "d"], 2);
        first.iter().for_each(|series| count(series, 0, 1));
        let names = |table: &Table| requests(table).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(names(&table), ["a", "b", OTHER]);
        drop(first);
        let second = table.series(&["b", "e", "f"], 2);
        second.iter().for_each(|series| count(series, 0, 1));
        let expected = [("b", 2), ("e", 1), (OTHER, 4)];
        assert_eq!(requests(&table), expected.map(|(name, count)| (name.to_owned(), count)));
        assert_eq!(table.sums().iter().map(|(_, sum)| sum.request_bytes).sum::<u64>(), 7);
    }

    #[test]
    fn a_series_in_use_does_not_give_way() {
        let mut table = Table::new(1);
        let in_flight = table.series(&["a"], 1);
        let next = table.series(&["b"], 1);
        count(&in_flight[0], 0, 1);
        count(&next[0], 0, 1);
        assert_eq!(requests(&table).len(), 2, "until the request has ended there are two");
        assert_eq!(requests(&table).iter().map(|(_, count)| count).sum::<u64>(), 2);
    }
}
