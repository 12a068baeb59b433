//! What one thread counts of its calls, and what all of them have.

use std::sync::Arc;
use std::time::Duration;

use super::Unavailable;
use crate::observe::Counter;
use crate::observe::histogram::{Durations, Histogram};

/// What one thread counts.
#[derive(Debug, Default)]
pub(super) struct Counts {
    errors: [Counter; Unavailable::ALL.len()],
    /// Of calls that were answered.
    took: Histogram,
}

/// What all threads have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// How long answers took.
    pub took: Durations,
    /// Calls without an answer, by the number of the reason.
    pub errors: [u64; Unavailable::ALL.len()],
}

impl Counts {
    /// One call.
    pub(super) fn add(&self, error: Option<Unavailable>, took: Duration) {
        match error {
            None => self.took.add(took),
            Some(error) => {
                if let Some(counter) = self.errors.get(error as usize) {
                    counter.add(1);
                }
            }
        }
    }
}

impl Sum {
    pub(super) fn of(all: &[Arc<Counts>]) -> Self {
        let mut sum = Self::default();
        for counts in all {
            sum.took.add(&counts.took);
            for (error, counter) in sum.errors.iter_mut().zip(&counts.errors) {
                *error += counter.value();
            }
        }
        sum
    }
}
