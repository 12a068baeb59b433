//! What earlier maps had counted, carried into those that took over from them: a change of ABI in either direction, or
//! of a size, loses no packet from the sums.
//!
//! The program adds to its own half of the counters without asking anybody, so nothing may be written there while it
//! runs. What was carried lies in the other half, which no program knows of. Counters of other ABI versions are read by
//! number: reasons keep theirs for ever, and new ones come behind.

use std::path::Path;
use std::thread;
use std::time::Duration;

use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues};
use gateway_common::layout::{self, COUNTERS_LEN, Counter};
use gateway_common::verdict::Reason;
use rustix::thread::{MembarrierCommand, membarrier};
use thiserror::Error;

use super::object;
use super::pins::Pins;
use super::tables::{Tables, chain};

/// Entries of the map of counters: those of the program, and behind them in the same order those that were carried.
pub const ENTRIES: u32 = 2 * COUNTERS_LEN;
/// Runs of one counter a reason that the program's half is made of.
const RUNS: u32 = COUNTERS_LEN / Reason::ALL.len() as u32;
/// The map before there was a second half.
const ENTRIES_BEFORE: u32 = 24;
const RUNS_BEFORE: u32 = 2;

/// Why the counters could not be carried. The old ones are still there, and the next start tries again.
#[derive(Debug, Error)]
#[error(
    "the counters of {map} cannot be carried over: {reason}; `gateway kernel detach` starts anew without them"
)]
pub struct CarryError {
    map: String,
    reason: String,
}

/// Waits until no CPU runs a program any more whose links were updated, for only then its counters stand still.
pub fn let_finish() {
    // The kernel's own wait for its readers, programs among them (kernel/sched/membarrier.c).
    if membarrier(MembarrierCommand::Global).is_err() {
        const LONGER_THAN_ANY_POLL: Duration = Duration::from_millis(50);
        thread::sleep(LONGER_THAN_ANY_POLL);
    }
}

/// Adds what the counters pinned at `from` hold to the carried ones of those at `into`.
pub fn counters(from: &Path, into: &Path) -> Result<(), CarryError> {
    let told = |path: &Path| {
        let map = path.display().to_string();
        move |error: MapError| CarryError { map: map.clone(), reason: chain(&error) }
    };
    let Some(old) = open(from).map_err(told(from))? else { return Ok(()) };
    let Some(mut new) = open(into).map_err(told(into))? else { return Ok(()) };
    let entries = old.len();
    for (index, target) in pairs(entries) {
        let found = old.get(&index, 0).map_err(told(from))?;
        let held = new.get(&target, 0).map_err(told(into))?;
        let sum = sum(found.iter().chain(held.iter()));
        if sum == Counter::default() {
            continue;
        }
        // Nobody adds to these, so which CPU's share it is means nothing.
        let mut shares = vec![Counter::default(); held.len()];
        if let Some(first) = shares.first_mut() {
            *first = sum;
        }
        let shares = PerCpuValues::try_from(shares).map_err(MapError::IoError);
        shares.and_then(|shares| new.set(target, shares, 0)).map_err(told(into))?;
    }
    Ok(())
}

/// Carries all that can be read in the folder of another ABI version: the counters, and what the same rules have met
/// where the tables have the shape of ours.
pub fn all(folder: &Path, pins: &Pins, tables: &Tables) -> Result<(), CarryError> {
    let pin = folder.join(layout::COUNTERS);
    counters(&pin, &pins.map(layout::COUNTERS))?;
    // At once, so that a start after a kill does not carry it twice.
    let removed = pins.remove(&pin);
    removed.map_err(|error| CarryError {
        map: pin.display().to_string(),
        reason: error.to_string(),
    })?;
    if object::has_our_rule_maps(folder) {
        // The others are only there to be opened.
        let find = |name: &str| match layout::RULE_MAPS.contains(&name) {
            true => MapData::from_pin(folder.join(name)),
            false => MapData::from_pin(pins.map(name)),
        };
        match Tables::open(find, u32::MAX) {
            Ok(before) => tables.inherit(&before),
            Err(error) => tracing::warn!(%error, "what rules have met starts anew"),
        }
    }
    Ok(())
}

/// The sum over CPUs.
pub fn sum<'a>(shares: impl Iterator<Item = &'a Counter>) -> Counter {
    shares.fold(Counter::default(), |sum, share| Counter {
        packets: sum.packets + share.packets,
        bytes: sum.bytes + share.bytes,
    })
}

type Counters = PerCpuArray<MapData, Counter>;

/// `None` where there is no such pin.
fn open(path: &Path) -> Result<Option<Counters>, MapError> {
    if !path.try_exists().map_err(MapError::IoError)? {
        return Ok(None);
    }
    MapData::from_pin(path).and_then(Map::from_map_data).and_then(Counters::try_from).map(Some)
}

/// Each entry of a map with so many, and the one that it is carried to: the same run and reason in the second half.
fn pairs(entries: u32) -> impl Iterator<Item = (u32, u32)> {
    let (halves, runs) = match entries {
        ENTRIES_BEFORE => (1, RUNS_BEFORE),
        _ => (2, RUNS),
    };
    let reasons = (entries / halves / runs).max(1);
    let ours = Reason::ALL.len() as u32;
    (0..entries).filter_map(move |index| {
        let (run, reason) = (index / reasons % runs, index % reasons);
        (reason < ours).then_some((index, COUNTERS_LEN + run * ours + reason))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn targets(entries: u32) -> BTreeMap<u32, Vec<u32>> {
        let mut targets = BTreeMap::<u32, Vec<u32>>::new();
        for (from, to) in pairs(entries) {
            targets.entry(to).or_default().push(from);
        }
        targets
    }

    #[test]
    fn both_halves_of_the_same_counter_meet() {
        let all = targets(ENTRIES);
        let expected = |index| (COUNTERS_LEN + index, vec![index, COUNTERS_LEN + index]);
        assert_eq!(all, (0..COUNTERS_LEN).map(expected).collect());
    }

    #[test]
    fn reasons_that_one_side_does_not_know_are_left_out() {
        let ours = Reason::ALL.len() as u32;
        // A newer version with three reasons more, an older one with two less: the dry run's run starts elsewhere.
        for theirs in [ours + 3, ours - 2] {
            let all = targets(2 * RUNS * theirs);
            let known = ours.min(theirs);
            assert_eq!(all.len() as u32, RUNS * known);
            let last = &all[&(COUNTERS_LEN + ours + known - 1)];
            let index = theirs + known - 1;
            assert_eq!(*last, [index, RUNS * theirs + index]);
        }
    }

    #[test]
    fn the_first_layout_has_no_second_half() {
        let all = targets(ENTRIES_BEFORE);
        assert!(all.values().all(|from| from.len() == 1));
        assert_eq!(all[&(COUNTERS_LEN + Reason::Connections as u32)], [11]);
    }

    #[test]
    fn reasons_keep_their_numbers_for_ever() {
        let names = [
            "not_ip",
            "unparsed",
            "neighbour",
            "no_rule",
            "allow",
            "within_limit",
            "deny",
            "limit",
            "reset",
            "malformed",
            "contended",
            "connections",
        ];
        assert_eq!(names[..], Reason::ALL.map(Reason::name)[..names.len()]);
    }
}
