//! How often something has decided what, where there are few outcomes: one block a worker, as all that is counted on
//! the way of a request.

use std::sync::Arc;

use super::Counter;

/// How often each of so many outcomes came.
#[derive(Clone, Debug)]
pub struct Outcomes<const N: usize>(Arc<[Block<N>]>);

/// Those of one worker. Two cache lines apart from the next, as all blocks.
#[derive(Debug)]
#[repr(align(128))]
struct Block<const N: usize>([Counter; N]);

impl<const N: usize> Outcomes<N> {
    /// None so far, for so many workers.
    pub fn new(workers: usize) -> Self {
        let block = |_| Block(std::array::from_fn(|_| Counter::default()));
        Self((0..workers).map(block).collect())
    }

    /// Counts one, by its number. Only the owning worker may.
    pub fn count(&self, worker: usize, outcome: usize) {
        if let Some(counter) = self.0.get(worker).and_then(|block| block.0.get(outcome)) {
            counter.add(1);
        }
    }

    /// All workers together, by what the outcomes are called.
    pub fn sums(&self, names: [&'static str; N]) -> [(&'static str, u64); N] {
        let mut outcome = 0;
        names.map(|name| {
            let counters = self.0.iter().filter_map(|block| block.0.get(outcome));
            let sum = counters.map(Counter::value).sum();
            outcome += 1;
            (name, sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_added_up_over_workers() {
        let outcomes = Outcomes::new(2);
        for (worker, outcome) in [(0, 1), (1, 1), (1, 0), (2, 0), (0, 3)] {
            outcomes.count(worker, outcome);
        }
        assert_eq!(outcomes.sums(["a", "b", "c"]), [("a", 1), ("b", 2), ("c", 0)]);
    }
}
