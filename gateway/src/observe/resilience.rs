//! What is done about services that are sick, counted by upstream.

use std::collections::BTreeMap;

use super::Counter;
use super::prometheus::Page;

/// Why a request was sent once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// No endpoint could be connected to.
    ConnectFailure,
    /// The connection broke, or what came was no HTTP, before the head of an answer was whole.
    Reset,
    /// The head of the answer did not come in time.
    Timeout,
    /// The answer had a status that asks for it.
    Status,
}

/// Why a request was not sent once more that might have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAgain {
    /// The budget of retries was used up.
    Budget,
    /// `timeout.whole` left no time.
    Deadline,
    /// More of its body had gone through than is kept.
    Body,
}

/// What came of a second attempt beside the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hedge {
    /// It answered first.
    Won,
    /// The first attempt did.
    Lost,
    /// Neither did.
    Failed,
    /// The client left before either did.
    Abandoned,
}

impl Hedge {
    /// As it is written in metrics and logs.
    pub fn name(self) -> &'static str {
        HEDGES.get(self as usize).copied().unwrap_or_default()
    }
}

/// Why there was no second attempt though it was time for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoHedge {
    /// The budget of retries had nothing to spare.
    Budget,
    /// The service is at its limit of concurrency.
    Concurrency,
    /// There is no other endpoint.
    Endpoint,
}

/// One of the four things that are counted.
struct Family {
    /// As `gateway status` calls it.
    key: &'static str,
    metric: &'static str,
    help: &'static str,
    /// What tells its counters apart, and their values of that.
    label: &'static str,
    values: &'static [&'static str],
}

const HEDGES: [&str; 4] = ["won", "lost", "failed", "abandoned"];

const FAMILIES: [Family; 4] = [
    Family {
        key: "retries",
        metric: "gateway_upstream_retries_total",
        help: "Requests that were sent once more, by reason.",
        label: "reason",
        values: &["connect_failure", "reset", "timeout", "status"],
    },
    Family {
        key: "retries_refused",
        metric: "gateway_upstream_retries_refused_total",
        help: "Requests that were not sent once more though they might have been, by reason.",
        label: "reason",
        values: &["budget", "deadline", "body"],
    },
    Family {
        key: "hedges",
        metric: "gateway_upstream_hedges_total",
        help: "Requests that were sent to a second endpoint beside the first, by result.",
        label: "result",
        values: &HEDGES,
    },
    Family {
        key: "hedges_refused",
        metric: "gateway_upstream_hedges_refused_total",
        help: "Requests that were not though it was time for it, by reason.",
        label: "reason",
        values: &["budget", "concurrency", "endpoint"],
    },
];

/// Values of all families.
const COUNTERS: usize = 14;

/// What one worker counts of one upstream.
#[derive(Debug, Default)]
pub struct Resilience([Counter; COUNTERS]);

impl Resilience {
    /// A request is sent once more.
    pub fn again(&self, reason: Again) {
        self.add(0, reason as usize);
    }

    /// A request is not sent once more.
    pub fn not_again(&self, reason: NotAgain) {
        self.add(1, reason as usize);
    }

    /// A request was sent to a second endpoint beside the first.
    pub fn hedge(&self, result: Hedge) {
        self.add(2, result as usize);
    }

    /// A request was not.
    pub fn no_hedge(&self, reason: NoHedge) {
        self.add(3, reason as usize);
    }

    fn add(&self, family: usize, value: usize) {
        let before: usize = FAMILIES.iter().take(family).map(|family| family.values.len()).sum();
        if let Some(counter) = self.0.get(before + value) {
            counter.add(1);
        }
    }
}

/// What all workers counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; COUNTERS]);

impl Counts {
    pub(super) fn add(&mut self, block: &Resilience) {
        self.0.iter_mut().zip(&block.0).for_each(|(sum, counter)| *sum += counter.value());
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, count)| *sum += count);
    }

    /// As `gateway status` shows it: by what was counted, then by reason or result.
    pub fn by_name(&self) -> BTreeMap<&'static str, BTreeMap<&'static str, u64>> {
        let counts =
            |index: usize| FAMILIES.get(index).map(|it| (it.key, self.of(index).collect()));
        (0..FAMILIES.len()).filter_map(counts).collect()
    }

    fn of(&self, family: usize) -> impl Iterator<Item = (&'static str, u64)> {
        let before = FAMILIES.iter().take(family).map(|family| family.values.len()).sum();
        let values = FAMILIES.get(family).map_or(&[][..], |family| family.values);
        values.iter().copied().zip(self.0.into_iter().skip(before))
    }
}

/// What was counted of each upstream, as metrics.
pub fn page(page: &mut Page, upstreams: &[(&str, Counts)]) {
    for (index, family) in FAMILIES.iter().enumerate() {
        let mut samples = page.counter(family.metric, family.help);
        for (upstream, counts) in upstreams {
            for (value, count) in counts.of(index) {
                samples.with(&[("upstream", *upstream), (family.label, value)], count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_under_its_name() {
        let (one, other) = (Resilience::default(), Resilience::default());
        one.again(Again::ConnectFailure);
        one.not_again(NotAgain::Body);
        one.hedge(Hedge::Abandoned);
        one.no_hedge(NoHedge::Endpoint);
        other.no_hedge(NoHedge::Endpoint);
        let [mut counts, mut more] = [Counts::default(); 2];
        counts.add(&one);
        more.add(&other);
        counts.merge(&more);
        let found = counts.by_name().into_iter().flat_map(|(key, counts)| {
            counts.into_iter().filter(|(_, n)| *n > 0).map(move |(value, n)| (key, value, n))
        });
        let expected = [
            ("hedges", "abandoned", 1),
            ("hedges_refused", "endpoint", 2),
            ("retries", "connect_failure", 1),
            ("retries_refused", "body", 1),
        ];
        assert_eq!(found.collect::<Vec<_>>(), expected);
        assert_eq!(FAMILIES.iter().map(|family| family.values.len()).sum::<usize>(), COUNTERS);
    }
}
