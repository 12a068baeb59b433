//! How often an authenticator has said what: one block a worker, as all that is counted on the way of a request.

use std::sync::Arc;

use super::Answer;
use crate::observe::Counter;

/// What one authenticator has said.
#[derive(Clone, Debug)]
pub(super) struct Outcomes(Arc<[Block]>);

/// What it has said to one worker. Two cache lines apart from the next, as all blocks.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Block([Counter; NAMES.len()]);

/// The answers by their numbers.
const NAMES: [&str; 4] = ["known", "absent", "refused", "unavailable"];

impl Outcomes {
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Block::default()).collect())
    }

    /// Counts an answer. Only the owning worker may.
    pub(super) fn count(&self, worker: usize, answer: &Answer) {
        let index = match answer {
            Answer::Known(_) => 0,
            Answer::Absent => 1,
            Answer::Refused(_) | Answer::Expired(_) | Answer::Failed(_) => 2,
            Answer::Unavailable(_) => 3,
        };
        if let Some(counter) = self.0.get(worker).and_then(|block| block.0.get(index)) {
            counter.add(1);
        }
    }

    /// All workers together, by what was said.
    pub(super) fn sums(&self) -> [(&'static str, u64); NAMES.len()] {
        let mut index = 0;
        NAMES.map(|name| {
            let counters = self.0.iter().filter_map(|block| block.0.get(index));
            let sum = counters.map(Counter::value).sum();
            index += 1;
            (name, sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_added_up_over_workers() {
        let outcomes = Outcomes::new(2);
        outcomes.count(0, &Answer::Refused("x"));
        outcomes.count(1, &Answer::Refused("y"));
        outcomes.count(1, &Answer::Known(Arc::default()));
        outcomes.count(2, &Answer::Absent);
        let sums = [("known", 1), ("absent", 0), ("refused", 2), ("unavailable", 0)];
        assert_eq!(outcomes.sums(), sums);
    }
}
