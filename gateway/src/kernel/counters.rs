//! The program's counters: one of each CPU for every interface, reason and origin, read as sums.

use aya::maps::{MapData, MapError, PerCpuArray};
use gateway_common::layout::{self, COUNTERS_LEN, Counter, SLOT_OTHERS, counter_index};
use gateway_common::rule::Origin;
use gateway_common::verdict::Reason;

use super::lists::Lists;
use super::slots::Slots;
use super::tables::{TablesError, failed, open_as};
use super::tally;

/// The counters.
pub struct Counters {
    counts: PerCpuArray<MapData, Counter>,
    /// Whose they are.
    pub slots: Slots,
    /// What the rules of each list have met.
    pub lists: Lists,
}

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
        let counts = open_as(map, find(map).map_err(failed(map))?)?;
        Ok(Self { counts, slots: Slots::open(&find)?, lists: Lists::open(find)? })
    }

    /// All counters, in the order of their reasons.
    pub fn all(&self) -> Result<Vec<Count>, TablesError> {
        let zero = |reason| Count { reason, done: Counter::default(), would: Counter::default() };
        let mut sums: Vec<Count> = Reason::ALL.into_iter().map(zero).collect();
        for (slot, _) in self.slots.in_use()? {
            for origin in origins() {
                for (sum, count) in sums.iter_mut().zip(self.of(slot, origin)?) {
                    sum.done = tally::sum([sum.done, count.done].iter());
                    sum.would = tally::sum([sum.would, count.would].iter());
                }
            }
        }
        Ok(sums)
    }

    /// The counters in one slot of packets that a rule of one origin decided about, or none, in the order of their
    /// reasons.
    pub fn of(&self, slot: u32, origin: Option<Origin>) -> Result<Vec<Count>, TablesError> {
        let origin = origin.map_or(0, |origin| origin as u32);
        let sum = |reason, dry_run| self.sum(counter_index(slot, reason, origin, dry_run));
        let count =
            |reason| Ok(Count { reason, done: sum(reason, false)?, would: sum(reason, true)? });
        Reason::ALL.into_iter().map(count).collect()
    }

    /// What was done for one reason with packets that no rule decided about, on interfaces without a slot of their own.
    pub fn of_others(&self, reason: Reason) -> Result<Counter, TablesError> {
        self.sum(counter_index(SLOT_OTHERS, reason, 0, false))
    }

    fn sum(&self, index: u32) -> Result<Counter, TablesError> {
        let read = |index| self.counts.get(&index, 0).map_err(failed(layout::COUNTERS));
        let (counted, carried) = (read(index)?, read(COUNTERS_LEN + index)?);
        Ok(tally::sum(counted.iter().chain(carried.iter())))
    }
}

/// Who can have made the rule that decided; `None` where none did.
pub fn origins() -> impl Iterator<Item = Option<Origin>> {
    std::iter::once(None).chain(Origin::ALL.map(Some))
}
