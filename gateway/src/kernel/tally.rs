//! Counts on their way from one map to another. The program adds to some without asking anybody; what is carried lies
//! in others of the same map, which no program knows of.
//!
//! A kill loses nothing and doubles nothing: where a count goes to is marked while it is under way, in the same store
//! that adds it, so that whoever goes on knows whether it has arrived, and whoever goes back knows what to take out.
//! See [`MOVING`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use aya::Pod;
use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues};
use gateway_common::layout::Counter;

use crate::rules::tables::table::MOVING;

/// What can be counted.
pub trait Tally: Pod + Default + PartialEq {
    /// Both, without marks.
    fn plus(self, other: Self) -> Self;
    /// The same, on its way.
    fn marked(self) -> Self;
    /// Whether it is on its way.
    fn is_marked(&self) -> bool;
}

impl Tally for u64 {
    fn plus(self, other: Self) -> Self {
        (self & !MOVING) + (other & !MOVING)
    }

    fn marked(self) -> Self {
        self | MOVING
    }

    fn is_marked(&self) -> bool {
        self & MOVING != 0
    }
}

impl Tally for Counter {
    fn plus(self, other: Self) -> Self {
        Self { packets: self.packets.plus(other.packets), bytes: self.bytes + other.bytes }
    }

    fn marked(self) -> Self {
        Self { packets: self.packets.marked(), ..self }
    }

    fn is_marked(&self) -> bool {
        self.packets.is_marked()
    }
}

/// A map of counts, of each CPU its share.
pub type Counts<T> = PerCpuArray<MapData, T>;

/// Which counts go to which.
pub type Targets = BTreeMap<u32, Vec<u32>>;

/// Those that are pinned at `pin`; `None` where there is no such pin.
pub fn open<T: Tally>(pin: &Path) -> Result<Option<Counts<T>>, MapError> {
    if !pin.try_exists().map_err(MapError::IoError)? {
        return Ok(None);
    }
    MapData::from_pin(pin).and_then(Map::from_map_data).and_then(Counts::try_from).map(Some)
}

/// The sum over CPUs.
pub fn sum<'a, T: Tally + 'a>(shares: impl Iterator<Item = &'a T>) -> T {
    shares.fold(T::default(), |sum, share| sum.plus(*share))
}

/// Writes a count that no program adds to, so that whose share it is means nothing.
pub fn set<T: Tally>(map: &mut Counts<T>, index: u32, value: T) -> Result<(), MapError> {
    let mut shares = vec![T::default(); map.get(&index, 0)?.len()];
    if let Some(first) = shares.first_mut() {
        *first = value;
    }
    map.set(index, PerCpuValues::try_from(shares).map_err(MapError::IoError)?, 0)
}

/// Moves what some counts hold to another one, which no program adds to.
pub fn shift<T: Tally>(
    (old, from): (&mut Counts<T>, &[u32]),
    (new, target): (&mut Counts<T>, u32),
) -> Result<(), MapError> {
    let mut found = Vec::new();
    for index in from {
        let count = sum(old.get(index, 0)?.iter());
        if count != T::default() {
            found.push((*index, count));
        }
    }
    let held = new.get(&target, 0)?;
    let has_arrived = held.iter().any(Tally::is_marked);
    if found.is_empty() && !has_arrived {
        return Ok(());
    }
    let arriving = found.iter().map(|(_, count)| count).filter(|_| !has_arrived);
    let total = sum(held.iter().chain(arriving));
    if !has_arrived {
        set(new, target, total.marked())?;
    }
    for (index, _) in found {
        set(old, index, T::default())?;
    }
    set(new, target, total)
}

/// The counts among some that are on their way, and what they hold.
pub fn arrived<T: Tally>(map: &Counts<T>, among: Range<u32>) -> Result<BTreeMap<u32, T>, MapError> {
    let mut arrived = BTreeMap::new();
    for index in among {
        let held = map.get(&index, 0)?;
        if held.iter().any(Tally::is_marked) {
            arrived.insert(index, sum(held.iter()));
        }
    }
    Ok(arrived)
}

/// Takes out of a map what has arrived elsewhere.
pub fn take_out<T: Tally>(
    old: &mut Counts<T>,
    arrived: &BTreeMap<u32, T>,
    targets: &Targets,
) -> Result<(), MapError> {
    let gone = targets.iter().filter(|(target, _)| arrived.contains_key(target));
    for index in gone.flat_map(|(_, from)| from) {
        set(old, *index, T::default())?;
    }
    Ok(())
}
