//! How often a limit has decided what: one block a worker, as all that is counted on the way of a request.

use std::sync::Arc;

use crate::observe::Counter;

/// What one limit has decided.
#[derive(Clone, Debug)]
pub(super) struct Outcomes(Arc<[Block]>);

/// What it has decided for one worker. Two cache lines apart from the next, as all blocks.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Block([Counter; NAMES.len()]);

const NAMES: [&str; 3] = ["admitted", "delayed", "refused"];

impl Outcomes {
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Block::default()).collect())
    }

    /// Counts a decision. Only the owning worker may.
    pub(super) fn count(&self, worker: usize, is_admitted: bool, waits: bool) {
        let index = match (is_admitted, waits) {
            (true, false) => 0,
            (true, true) => 1,
            (false, _) => 2,
        };
        if let Some(counter) = self.0.get(worker).and_then(|block| block.0.get(index)) {
            counter.add(1);
        }
    }

    /// All workers together.
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
    fn decisions_are_added_up_over_workers() {
        let outcomes = Outcomes::new(2);
        for (worker, is_admitted, waits) in
            [(0, true, false), (1, true, true), (0, false, true), (1, false, true), (2, true, true)]
        {
            outcomes.count(worker, is_admitted, waits);
        }
        assert_eq!(outcomes.sums(), [("admitted", 1), ("delayed", 1), ("refused", 2)]);
    }
}
