//! What is done about services that are sick, counted.

use std::collections::BTreeMap;

use serde::Serialize;

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

const HEDGES: [&str; 4] = ["won", "lost", "failed", "abandoned"];
const NO_HEDGES: [&str; 3] = ["budget", "concurrency", "endpoint"];
const AGAIN: [&str; 4] = ["connect_failure", "reset", "timeout", "status"];
const NOT_AGAIN: [&str; 3] = ["budget", "deadline", "body"];

/// What one worker counts.
#[derive(Debug, Default)]
pub struct Resilience {
    retries: [Counter; AGAIN.len()],
    retries_refused: [Counter; NOT_AGAIN.len()],
    hedges: [Counter; HEDGES.len()],
    hedges_refused: [Counter; NO_HEDGES.len()],
}

impl Resilience {
    /// A request is sent once more.
    pub fn again(&self, reason: Again) {
        if let Some(counter) = self.retries.get(reason as usize) {
            counter.add(1);
        }
    }

    /// A request was sent to a second endpoint beside the first.
    pub fn hedge(&self, result: Hedge) {
        if let Some(counter) = self.hedges.get(result as usize) {
            counter.add(1);
        }
    }

    /// A request was not.
    pub fn no_hedge(&self, reason: NoHedge) {
        if let Some(counter) = self.hedges_refused.get(reason as usize) {
            counter.add(1);
        }
    }

    /// A request is not sent once more.
    pub fn not_again(&self, reason: NotAgain) {
        if let Some(counter) = self.retries_refused.get(reason as usize) {
            counter.add(1);
        }
    }
}

/// What all workers counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Requests that were sent once more, by reason.
    pub retries: BTreeMap<&'static str, u64>,
    /// Those that were not, by reason.
    pub retries_refused: BTreeMap<&'static str, u64>,
    /// Requests that were sent to a second endpoint beside the first, by what came of that.
    pub hedges: BTreeMap<&'static str, u64>,
    /// Those that were not though it was time for it, by reason.
    pub hedges_refused: BTreeMap<&'static str, u64>,
}

impl Snapshot {
    pub(super) fn add(&mut self, block: &Resilience) {
        add(&mut self.retries, AGAIN, &block.retries);
        add(&mut self.retries_refused, NOT_AGAIN, &block.retries_refused);
        add(&mut self.hedges, HEDGES, &block.hedges);
        add(&mut self.hedges_refused, NO_HEDGES, &block.hedges_refused);
    }

    /// The same as metrics.
    pub fn page(&self, page: &mut Page) {
        let help = "Requests that were sent once more, by reason.";
        samples(page, ("gateway_upstream_retries_total", help), "reason", &self.retries);
        let help = "Requests that were not sent once more though they might have been, by reason.";
        let name = "gateway_upstream_retries_refused_total";
        samples(page, (name, help), "reason", &self.retries_refused);
        let help = "Requests that were sent to a second endpoint beside the first, by result.";
        samples(page, ("gateway_upstream_hedges_total", help), "result", &self.hedges);
        let help = "Requests that were not though it was time for it, by reason.";
        let name = "gateway_upstream_hedges_refused_total";
        samples(page, (name, help), "reason", &self.hedges_refused);
    }
}

fn add<const N: usize>(
    sum: &mut BTreeMap<&'static str, u64>,
    names: [&'static str; N],
    counters: &[Counter; N],
) {
    for (name, counter) in names.into_iter().zip(counters) {
        *sum.entry(name).or_default() += counter.value();
    }
}

fn samples(
    page: &mut Page,
    (name, help): (&'static str, &'static str),
    label: &'static str,
    counts: &BTreeMap<&'static str, u64>,
) {
    let mut family = page.counter(name, help);
    for (value, count) in counts {
        family.with(&[(label, value)], *count);
    }
}
