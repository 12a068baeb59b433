//! What went well of late, by source and caller: one small table a worker, so that noticing it costs a request one look
//! at one place, and telling it one report a second.

use std::net::IpAddr;

use super::evidence::{Good, Source};
use crate::base::random::mix;

/// Places of the table. Two callers whose place is the same take it from each other.
const CELLS: usize = 256;

/// Counts that have lost their place and were not told yet.
const EVICTED_MAX: usize = 256;

/// The table. It takes no memory before its first use.
#[derive(Debug, Default)]
pub struct Tally {
    cells: Box<[Option<Good>]>,
    evicted: Vec<Good>,
}

impl Tally {
    /// One more request of a caller was served well. The answer, if there is any, is to be told now, to make room.
    pub fn add(&mut self, source: Source, consumer: Option<u64>) -> Option<Box<[Good]>> {
        if self.cells.is_empty() {
            self.cells = vec![None; CELLS].into();
        }
        let place = usize::try_from(hash(source, consumer)).unwrap_or(0) % CELLS;
        let cell = self.cells.get_mut(place)?;
        if let Some(good) = cell
            && good.source == source
            && good.consumer == consumer
        {
            good.requests = good.requests.saturating_add(1);
            return None;
        }
        self.evicted.extend(cell.replace(Good { source, consumer, requests: 1 }));
        (self.evicted.len() >= EVICTED_MAX).then(|| std::mem::take(&mut self.evicted).into())
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.evicted.is_empty() && self.cells.iter().all(Option::is_none)
    }

    /// All that was not told yet, at most 512 counts.
    pub fn take(&mut self) -> Box<[Good]> {
        let cells = self.cells.iter_mut().filter_map(Option::take);
        std::mem::take(&mut self.evicted).into_iter().chain(cells).collect()
    }
}

fn hash(source: Source, consumer: Option<u64>) -> u64 {
    let address = match source.ip() {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (bits >> 64) as u64 ^ (bits as u64).rotate_left(29)
        }
    };
    mix(address ^ consumer.unwrap_or_default().rotate_left(17))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::base::address::ClientAddr;

    fn source(number: u32) -> Source {
        Source::Believed(ClientAddr::believed(IpAddr::V4(number.into())))
    }

    proptest! {
        #[test]
        fn what_is_told_is_what_was_added(
            requests in proptest::collection::vec((0u32..2000, option::of(0u64..3)), 0..3000),
        ) {
            let mut tally = Tally::default();
            let (mut added, mut told) = (HashMap::new(), HashMap::new());
            let mut tell = |goods: Box<[Good]>| {
                prop_assert!(goods.len() <= CELLS + EVICTED_MAX);
                for Good { source, consumer, requests } in goods {
                    *told.entry((source, consumer)).or_insert(0) += requests;
                }
                Ok(())
            };
            for (number, consumer) in requests {
                *added.entry((source(number), consumer)).or_insert(0) += 1;
                if let Some(goods) = tally.add(source(number), consumer) {
                    tell(goods)?;
                }
            }
            tell(tally.take())?;
            prop_assert!(tally.is_empty());
            prop_assert_eq!(told, added);
        }
    }

    #[test]
    fn one_caller_takes_one_place() {
        let mut tally = Tally::default();
        assert!(tally.is_empty());
        for _ in 0..1000 {
            assert_eq!(tally.add(source(7), Some(1)), None);
        }
        assert_eq!(*tally.take(), [Good { source: source(7), consumer: Some(1), requests: 1000 }]);
    }
}
