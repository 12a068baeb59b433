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

const AGAIN: [&str; 4] = ["connect_failure", "reset", "timeout", "status"];
const NOT_AGAIN: [&str; 3] = ["budget", "deadline", "body"];

/// What one worker counts.
#[derive(Debug, Default)]
pub struct Resilience {
    retries: [Counter; AGAIN.len()],
    retries_refused: [Counter; NOT_AGAIN.len()],
}

impl Resilience {
    /// A request is sent once more.
    pub fn again(&self, reason: Again) {
        if let Some(counter) = self.retries.get(reason as usize) {
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
}

impl Snapshot {
    pub(super) fn add(&mut self, block: &Resilience) {
        add(&mut self.retries, AGAIN, &block.retries);
        add(&mut self.retries_refused, NOT_AGAIN, &block.retries_refused);
    }

    /// The same as metrics.
    pub fn page(&self, page: &mut Page) {
        let help = "Requests that were sent once more, by reason.";
        samples(page, "gateway_upstream_retries_total", help, &self.retries);
        let help = "Requests that were not sent once more though they might have been, by reason.";
        samples(page, "gateway_upstream_retries_refused_total", help, &self.retries_refused);
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
    name: &'static str,
    help: &'static str,
    counts: &BTreeMap<&'static str, u64>,
) {
    let mut family = page.counter(name, help);
    for (reason, count) in counts {
        family.with(&[("reason", reason)], *count);
    }
}
