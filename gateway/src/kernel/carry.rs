//! What earlier maps had counted, carried into those that took over from them: a change of ABI in either direction, or
//! of a size, loses no packet from the sums.
//!
//! The program adds to its own half of the counters without asking anybody, so nothing may be written there while it
//! runs. What was carried lies in a second half, which no program knows of, and behind that how the halves are made, so
//! that any version reads those of any other. Reasons keep their numbers for ever, and new ones come behind. What an
//! interface has counted follows its name from slot to slot; where that has none it goes to the others.
//! A kill at it loses nothing and doubles nothing, see [`tally`].

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use std::{fs, iter};

use aya::maps::{MapData, MapError};
use gateway_common::layout::{self, COUNTERS_LEN, Counter, ORIGINS_LEN, SLOT_OTHERS};
use gateway_common::verdict::Reason;
use rustix::thread::{MembarrierCommand, membarrier};
use thiserror::Error;

use super::pins::Pins;
use super::slots::{self, Slots};
use super::tables::{Tables, TablesError, chain, failed as failed_at, mapping};
use super::tally::{self, Counts, Targets};
use super::{buckets, lists, object};
use crate::rules::tables::{Memory, RuleTables};

/// Entries of the map of counters: those of the program, in the same order those that were carried, and a [`Shape`].
pub const ENTRIES: u32 = 2 * COUNTERS_LEN + 1;
/// The map before there was a second half.
const ENTRIES_BEFORE: u32 = 24;
/// Kinds of runs: what was done, and what a dry run would have done.
const KINDS: u32 = 2;
/// Runs of one slot.
const SLOT_RUNS: u32 = ORIGINS_LEN * KINDS;

/// How a map of counters is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    halves: u32,
    /// Runs of one counter a reason in each half, slot after slot. New ones come behind, and every second is a dry
    /// run's.
    runs: u32,
    reasons: u32,
}

impl Shape {
    const OURS: Self = Self {
        halves: 2,
        runs: COUNTERS_LEN / Reason::ALL.len() as u32,
        reasons: Reason::ALL.len() as u32,
    };
    const BEFORE: Self = Self { halves: 1, runs: 2, reasons: 12 };

    /// The counters without what is behind them.
    fn counters(self) -> u32 {
        self.halves * self.runs * self.reasons
    }

    /// As it stands in the map.
    fn entry(self) -> Counter {
        Counter { packets: self.runs.into(), bytes: self.reasons.into() }
    }

    fn of(map: &Counters) -> Result<Option<Self>, MapError> {
        if map.len() == ENTRIES_BEFORE {
            return Ok(Some(Self::BEFORE));
        }
        let Some(last) = map.len().checked_sub(1) else { return Ok(None) };
        let Counter { packets, bytes } = tally::sum(map.get(&last, 0)?.iter());
        let (Ok(runs), Ok(reasons)) = (u32::try_from(packets), u32::try_from(bytes)) else {
            return Ok(None);
        };
        let fits = u64::from(last) == 2 * packets * bytes && runs > 0 && reasons > 0;
        // Before it is described nothing counts there.
        let fits = fits || (last, runs, reasons) == (ENTRIES - 1, 0, 0);
        Ok(fits.then_some(Self { halves: 2, runs, reasons }))
    }

    /// Each counter of `into` with those that are carried to it: of the same reason, origin and kind, in the slots for
    /// which `seats` says its own.
    fn targets(self, into: Self, seats: &[u32]) -> Targets {
        let mut targets = Targets::new();
        for index in 0..self.counters() {
            let (run, reason) = (index / self.reasons % self.runs, index % self.reasons);
            let slot = seats.get((run / SLOT_RUNS) as usize).copied().unwrap_or(SLOT_OTHERS);
            let run = slot * SLOT_RUNS + run % SLOT_RUNS;
            if reason < into.reasons && run < into.runs {
                let target = (into.runs + run) * into.reasons + reason;
                targets.entry(target).or_default().push(index);
            }
        }
        targets
    }
}

/// Why the counters could not be carried.
#[derive(Debug, Error)]
#[error("the counters of {map} cannot be carried over: {reason}")]
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

/// Writes into the map of counters that is pinned at `pin` how it is made.
pub fn describe(pin: &Path) -> Result<(), CarryError> {
    let described = tally::open(pin).and_then(|map| match map {
        Some(mut map) => tally::set(&mut map, ENTRIES - 1, Shape::OURS.entry()),
        None => Ok(()),
    });
    described.map_err(failed(pin))
}

/// Moves all that was counted in the folder `from`, where no link runs the program any more, to what is in force: the
/// counters, what the same rules have met where the tables have the shape of ours, and the buckets of sources. What
/// cannot be read is told and starts anew: it keeps no gateway from starting.
pub fn all(from: &Path, pins: &Pins, tables: &mut Tables) {
    let stays = |name: &str| is_same(&from.join(name), &pins.map(name));
    if !stays(layout::COUNTERS) {
        let counters = counters(from, &pins.maps(), &mut tables.counters.slots);
        for error in
            [counters, met_by_lists(from, &pins.maps())].into_iter().filter_map(Result::err)
        {
            tracing::error!(%error, "counters start anew");
        }
    }
    if !stays(layout::TABLE_V4) {
        match rules_in(from) {
            Ok(before) => before.iter().for_each(|before| tables.rules.inherit(before)),
            Err(error) => tracing::error!(%error, "what rules have met starts anew"),
        }
    }
    buckets::carry(from, &pins.maps(), true);
}

/// Moves what the counters pinned in the folder `from` hold to the carried ones of those in the folder `into`, whose
/// slots these are.
fn counters(from: &Path, into: &Path, slots: &mut Slots) -> Result<(), CarryError> {
    let [names, counts] = [layout::INTERFACES, layout::COUNTERS].map(|name| from.join(name));
    let into = into.join(layout::COUNTERS);
    let Some(mut old) = tally::open(&counts).map_err(failed(&counts))? else { return Ok(()) };
    let Some(mut new) = tally::open(&into).map_err(failed(&into))? else { return Ok(()) };
    let shape = Shape::of(&old).map_err(failed(&counts))?.ok_or_else(|| CarryError {
        map: counts.display().to_string(),
        reason: format!("{} entries of an unknown order", old.len()),
    })?;
    let seats = seats(&names, slots).map_err(|error| CarryError {
        map: counts.display().to_string(),
        reason: error.to_string(),
    })?;
    for (target, from) in shape.targets(Shape::OURS, &seats) {
        tally::shift((&mut old, &from), (&mut new, target)).map_err(failed(&into))?;
    }
    Ok(())
}

/// The same of what lists have met.
fn met_by_lists(from: &Path, into: &Path) -> Result<(), CarryError> {
    let (Some(mut old), Some(mut new)) = (open_lists(from)?, open_lists(into)?) else {
        return Ok(());
    };
    for (target, indexes) in lists::targets(from, into) {
        let moved = tally::shift((&mut old, &indexes), (&mut new, target));
        moved.map_err(failed(&into.join(layout::LISTS)))?;
    }
    Ok(())
}

/// Ends what somebody began who moved counts to maps that are not in force now, and was killed at it: what has arrived
/// there is taken out where it came from, before anything counts there again. `others` are all that are not in force.
pub fn end_what_was_begun(others: &[PathBuf], pins: &Pins) -> Result<(), TablesError> {
    for into in others {
        let all = others.iter().cloned().chain([pins.maps()]);
        let rest: Vec<PathBuf> = all.filter(|from| from != into && from.exists()).collect();
        // A map that stays is in force: whoever goes on with it ends that.
        let stays = |name: &str| is_same(&into.join(name), &pins.map(name));
        if !stays(layout::COUNTERS)
            && let Err(error) = take_out(&rest, into)
        {
            tracing::error!(%error, "a count may be there twice");
        }
        if rest.is_empty() || stays(layout::TABLE_V4) {
            continue;
        }
        if let Some(held) = rules_in(into)?.filter(RuleTables::is_inheriting) {
            for from in &rest {
                rules_in(from)?.iter().for_each(|from| held.end_inherit(from));
            }
        }
    }
    Ok(())
}

/// Takes the counters out of the folders `rest` that have arrived in the folder `into` and are marked there.
fn take_out(rest: &[PathBuf], into: &Path) -> Result<(), CarryError> {
    let pin = into.join(layout::COUNTERS);
    let is_another = |from: &&PathBuf| !is_same(&from.join(layout::COUNTERS), &pin);
    let rest: Vec<&PathBuf> = rest.iter().filter(is_another).collect();
    if rest.is_empty() {
        return Ok(());
    }
    take_out_counters(&rest, into)?;
    let Some(mut new) = open_lists(into)? else { return Ok(()) };
    let pin = into.join(layout::LISTS);
    let arrived = tally::arrived(&new, lists::CARRIED).map_err(failed(&pin))?;
    if arrived.is_empty() {
        return Ok(());
    }
    for from in rest {
        let Some(mut old) = open_lists(from)? else { continue };
        tally::take_out(&mut old, &arrived, &lists::targets(from, into)).map_err(failed(&pin))?;
    }
    let mut all = arrived.into_iter();
    all.try_for_each(|(index, total)| tally::set(&mut new, index, total)).map_err(failed(&pin))
}

fn take_out_counters(rest: &[&PathBuf], into: &Path) -> Result<(), CarryError> {
    let pin = into.join(layout::COUNTERS);
    let Some(mut new): Option<Counters> = tally::open(&pin).map_err(failed(&pin))? else {
        return Ok(());
    };
    let Some(shape) = Shape::of(&new).map_err(failed(&pin))? else { return Ok(()) };
    let carried = shape.runs * shape.reasons..shape.counters();
    let arrived = tally::arrived(&new, carried).map_err(failed(&pin))?;
    if arrived.is_empty() {
        return Ok(());
    }
    let theirs = slots::names_at(&into.join(layout::INTERFACES));
    let seat_of = |name: &String| {
        let at = theirs.iter().position(|held| held == name).filter(|_| !name.is_empty());
        at.map_or(SLOT_OTHERS, |at| SLOT_OTHERS + 1 + at as u32)
    };
    for from in rest {
        let pin = from.join(layout::COUNTERS);
        let Some(mut old): Option<Counters> = tally::open(&pin).map_err(failed(&pin))? else {
            continue;
        };
        let Some(from_shape) = Shape::of(&old).map_err(failed(&pin))? else { continue };
        let names = slots::names_at(&from.join(layout::INTERFACES));
        let seats: Vec<u32> = iter::once(SLOT_OTHERS).chain(names.iter().map(seat_of)).collect();
        let targets = from_shape.targets(shape, &seats);
        tally::take_out(&mut old, &arrived, &targets).map_err(failed(&pin))?;
    }
    let mut all = arrived.into_iter();
    all.try_for_each(|(index, total)| tally::set(&mut new, index, total)).map_err(failed(&pin))
}

/// What lists have met, in a folder where that is laid out as ours.
fn open_lists(folder: &Path) -> Result<Option<Counts<u64>>, CarryError> {
    let pin = folder.join(layout::LISTS);
    if !object::has_our(folder, &[layout::LISTS, layout::LIST_NAMES]) {
        return Ok(None);
    }
    let counts = tally::open(&pin).map_err(failed(&pin))?;
    Ok(counts.filter(|counts: &Counts<u64>| counts.len() == lists::CARRIED.end))
}

/// The tables of rules in a folder, where they have the shape of ours. Their filters may have another one.
fn rules_in(folder: &Path) -> Result<Option<RuleTables>, TablesError> {
    let [seed, v4, v6] = [layout::SEED, layout::TABLE_V4, layout::TABLE_V6];
    let Some(found) = object::seed_in(folder).filter(|_| object::has_our(folder, &[seed, v4, v6]))
    else {
        return Ok(None);
    };
    let mapped = |map: &'static str| {
        let data = MapData::from_pin(folder.join(map)).map_err(failed_at(map))?;
        mapping(map, &data)
    };
    let own = Memory::own(1).map_err(|source| TablesError::Memory { map: v4, source })?;
    let memory = Memory { tables: [mapped(v4)?, mapped(v6)?], seed: found, ..own };
    Ok(Some(RuleTables::open(memory, u32::MAX)))
}

/// Whether two pins are two names of one map.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    let number = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.ino());
    number(one).is_some_and(|one| number(other) == Some(one))
}

/// Our slot for each of those whose names are pinned at `names`.
fn seats(names: &Path, slots: &mut Slots) -> Result<Vec<u32>, TablesError> {
    let names = slots::names_at(names);
    let named = names.iter().map(|name| match name.as_str() {
        "" => Ok(SLOT_OTHERS),
        name => slots.place(name),
    });
    iter::once(Ok(SLOT_OTHERS)).chain(named).collect()
}

type Counters = Counts<Counter>;

fn failed(pin: &Path) -> impl Fn(MapError) -> CarryError {
    let map = pin.display().to_string();
    move |error| CarryError { map: map.clone(), reason: chain(&error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_common::layout::{SLOTS_LEN, counter_index};
    use gateway_common::rule::Origin;

    const OURS: Shape = Shape::OURS;

    fn targets(shape: Shape) -> Targets {
        let same: Vec<u32> = (0..SLOTS_LEN).collect();
        targets_by(shape, &same)
    }

    fn targets_by(shape: Shape, seats: &[u32]) -> Targets {
        shape.targets(OURS, seats)
    }

    #[test]
    fn both_halves_of_the_same_counter_meet() {
        let expected = |index| (COUNTERS_LEN + index, vec![index, COUNTERS_LEN + index]);
        assert_eq!(targets(OURS), (0..COUNTERS_LEN).map(expected).collect());
        assert_eq!(OURS.counters() + 1, ENTRIES);
    }

    #[test]
    fn reasons_that_one_side_does_not_know_are_left_out() {
        // A newer version with three reasons more, an older one with two less: the dry run's run starts elsewhere.
        for reasons in [OURS.reasons + 3, OURS.reasons - 2] {
            let all = targets(Shape { reasons, ..OURS });
            let known = OURS.reasons.min(reasons);
            assert_eq!(all.len() as u32, OURS.runs * known);
            let last = &all[&(COUNTERS_LEN + OURS.reasons + known - 1)];
            let index = reasons + known - 1;
            assert_eq!(*last, [index, OURS.runs * reasons + index]);
        }
    }

    #[test]
    fn runs_that_one_side_does_not_know_are_added_to_the_first_of_their_kind() {
        let all = targets(Shape { runs: OURS.runs + 2, ..OURS });
        assert_eq!(all.len() as u32, COUNTERS_LEN);
        assert_eq!(all[&COUNTERS_LEN].len(), 4);
        assert_eq!(all[&(COUNTERS_LEN + OURS.reasons)].len(), 4);
    }

    #[test]
    fn what_was_counted_without_slots_goes_to_the_others() {
        let all = targets(Shape { runs: SLOT_RUNS, ..OURS });
        let half = SLOT_RUNS * OURS.reasons;
        let expected = |index| (COUNTERS_LEN + index, vec![index, half + index]);
        assert_eq!(all, (0..half).map(expected).collect());
    }

    #[test]
    fn counts_follow_the_names_and_keep_their_origins() {
        // The first interface moved from slot 1 to 2; the second has none any more, and the third never had one.
        let all = targets_by(OURS, &[SLOT_OTHERS, 2, SLOT_OTHERS]);
        for dry_run in [false, true] {
            let at = |slot| counter_index(slot, Reason::Deny, Origin::Feed as u32, dry_run);
            let of = |slots: &[u32]| -> Vec<u32> {
                [0, COUNTERS_LEN]
                    .iter()
                    .flat_map(|h| slots.iter().map(move |s| h + at(*s)))
                    .collect()
            };
            assert_eq!(all[&(COUNTERS_LEN + at(2))], of(&[1]));
            let rest: Vec<u32> = (0..SLOTS_LEN).filter(|slot| *slot != 1).collect();
            assert_eq!(all[&(COUNTERS_LEN + at(SLOT_OTHERS))], of(&rest));
        }
    }

    #[test]
    fn the_first_layout_has_no_second_half() {
        let all = targets(Shape::BEFORE);
        assert!(all.values().all(|from| from.len() == 1));
        assert_eq!(all[&(COUNTERS_LEN + Reason::Connections as u32)], [11]);
        assert_eq!(Shape::BEFORE.counters(), ENTRIES_BEFORE);
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
