//! What workers have noticed about clients, counted.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Counter;
use super::prometheus::Page;
use crate::base::signal::Signal;

/// What one worker counts.
#[derive(Debug, Default)]
pub struct Signals {
    noticed: [Counter; Signal::ALL.len()],
    /// Reports that there was no room for.
    pub reports_lost: Counter,
}

impl Signals {
    /// Something odd was noticed.
    pub fn noticed(&self, signal: Signal) {
        if let Some(counter) = self.noticed.get(signal as usize) {
            counter.add(1);
        }
    }
}

/// What all workers counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Noticed, by signal, lost ones too.
    pub signals: BTreeMap<&'static str, u64>,
    /// Reports that were lost because too many waited to be read.
    pub reports_lost: u64,
}

impl Snapshot {
    pub(super) fn add(&mut self, block: &Signals) {
        for (signal, counter) in Signal::ALL.into_iter().zip(&block.noticed) {
            *self.signals.entry(signal.name()).or_default() += counter.value();
        }
        self.reports_lost += block.reports_lost.value();
    }

    /// The same as metrics.
    pub fn page(&self, page: &mut Page) {
        let help = "What clients did that may count against them, by signal.";
        let mut signals = page.counter("gateway_feedback_signals_total", help);
        for (signal, count) in &self.signals {
            signals.with(&[("signal", signal)], *count);
        }
        let help = "Reports of workers that were lost because too many waited to be read.";
        page.counter("gateway_feedback_reports_lost_total", help).only(self.reports_lost);
    }
}
