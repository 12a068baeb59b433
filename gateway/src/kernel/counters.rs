//! The program's counters: one of each CPU for every reason and origin, read as sums.

use aya::maps::{MapData, MapError, PerCpuArray};
use gateway_common::layout::{self, COUNTERS_LEN, Counter, counter_index};
use gateway_common::rule::Origin;
use gateway_common::verdict::Reason;

use super::carry;
use super::tables::{TablesError, failed, open_as};

/// The counters.
pub struct Counters(PerCpuArray<MapData, Counter>);

/// A counter summed over the CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// What it counts.
    pub reason: Reason,
    /// What was done.
    pub done: Counter,
    /// What a dry run would have done.
    pub would: Counter,
}

impl Counters {
    /// Those in the map that `find` finds by its name.
    pub fn open(find: impl Fn(&str) -> Result<MapData, MapError>) -> Result<Self, TablesError> {
        let map = layout::COUNTERS;
        Ok(Self(open_as(map, find(map).map_err(failed(map))?)?))
    }

    /// All counters, in the order of their reasons.
    pub fn all(&self) -> Result<Vec<Count>, TablesError> {
        let mut sums = self.of(None)?;
        for origin in Origin::ALL {
            for (sum, count) in sums.iter_mut().zip(self.of(Some(origin))?) {
                sum.done = carry::sum([sum.done, count.done].iter());
                sum.would = carry::sum([sum.would, count.would].iter());
            }
        }
        Ok(sums)
    }

    /// The counters of packets that a rule of one origin decided about, or none, in the order of their reasons.
    pub fn of(&self, origin: Option<Origin>) -> Result<Vec<Count>, TablesError> {
        let origin = origin.map_or(0, |origin| origin as u32);
        let sum = |reason, dry_run| -> Result<Counter, TablesError> {
            let index = counter_index(reason, origin, dry_run);
            let read = |index| self.0.get(&index, 0).map_err(failed(layout::COUNTERS));
            let (counted, carried) = (read(index)?, read(COUNTERS_LEN + index)?);
            Ok(carry::sum(counted.iter().chain(carried.iter())))
        };
        let count =
            |reason| Ok(Count { reason, done: sum(reason, false)?, would: sum(reason, true)? });
        Reason::ALL.into_iter().map(count).collect()
    }
}
