//! What the rules of each list have met, counted by the program under the list's seat. What other maps had counted lies
//! behind that, as with all counters.

use std::ops::Range;
use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError};
use gateway_common::layout::{self, ListName, SEATS_LEN};
use gateway_common::rule::SEAT_FIRST;

use super::pins::Pins;
use super::tables::{TablesError, failed, open_as};
use super::tally::{self, Counts, Targets};
use crate::rules::seats::Seats;

/// Those that were carried.
pub const CARRIED: Range<u32> = SEATS_LEN..2 * SEATS_LEN;

/// The lists' counters.
pub struct Lists {
    counts: Counts<u64>,
    names: Names,
}

type Names = Array<MapData, ListName>;

impl Lists {
    /// Those in the maps that `find` finds by their names.
    pub fn open(find: impl Fn(&str) -> Result<MapData, MapError>) -> Result<Self, TablesError> {
        let data = |map: &'static str| find(map).map_err(failed(map));
        Ok(Self {
            counts: open_as(layout::LISTS, data(layout::LISTS)?)?,
            names: open_as(layout::LIST_NAMES, data(layout::LIST_NAMES)?)?,
        })
    }

    /// Says whose the seats are. Has to be done before the rules of a list name its seat, and when those of the list
    /// that had it before are gone: what that one has met is forgotten.
    pub fn seat(&mut self, seats: &Seats) -> Result<(), TablesError> {
        for (seat, list) in seats.iter() {
            let (seat, wanted) = (u32::from(seat), name(list));
            if self.names.get(&seat, 0).map_err(failed(layout::LIST_NAMES))? == wanted {
                continue;
            }
            for index in [seat, CARRIED.start + seat] {
                tally::set(&mut self.counts, index, 0).map_err(failed(layout::LISTS))?;
            }
            self.names.set(seat, wanted, 0).map_err(failed(layout::LIST_NAMES))?;
        }
        Ok(())
    }

    /// Packets that met a rule of the list with this seat, since it has it.
    pub fn packets(&self, seat: u8) -> Result<u64, TablesError> {
        let read = |index| self.counts.get(&index, 0).map_err(failed(layout::LISTS));
        let (seat, behind) = (u32::from(seat), CARRIED.start);
        let (counted, carried) = (read(seat)?, read(behind + seat)?);
        Ok(tally::sum(counted.iter().chain(carried.iter())))
    }
}

/// The seats that the lists have in the maps that are pinned, or had in those of another version.
pub fn seats(pins: &Pins) -> Seats {
    let others = pins.others().unwrap_or_default();
    let folders = std::iter::once(pins.maps()).chain(others);
    let mut held = folders.map(|folder| names_at(&folder.join(layout::LIST_NAMES)));
    Seats::of(held.find(|names| !names.is_empty()).unwrap_or_default())
}

/// Which counts of the map of lists in one folder go to which of those in another: under the same name.
pub fn targets(from: &Path, into: &Path) -> Targets {
    let [from, into] = [from, into].map(|folder| names_at(&folder.join(layout::LIST_NAMES)));
    let named = from.iter().enumerate().filter(|(_, name)| !name.is_empty());
    named
        .filter_map(|(at, name)| {
            let seat = |at: usize| u32::from(SEAT_FIRST) + at as u32;
            let target = seat(into.iter().position(|other| other == name)?);
            Some((CARRIED.start + target, vec![seat(at), CARRIED.start + seat(at)]))
        })
        .collect()
}

/// The names in the map that is pinned at `pin`, from [`SEAT_FIRST`] on, empty for what is nobody's. None where that
/// cannot be read.
fn names_at(pin: &Path) -> Vec<String> {
    let names = MapData::from_pin(pin).and_then(Map::from_map_data).and_then(Names::try_from);
    let read = |names: &Names| {
        (u32::from(SEAT_FIRST)..names.len()).map(|seat| names.get(&seat, 0)).collect()
    };
    let names: Result<Vec<ListName>, MapError> = names.and_then(|names| read(&names));
    names.unwrap_or_default().iter().map(text).collect()
}

fn name(list: &str) -> ListName {
    let mut name: ListName = [0; 64];
    name.iter_mut().zip(list.bytes()).for_each(|(to, byte)| *to = byte);
    name
}

fn text(name: &ListName) -> String {
    let bytes = name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::list::NAME_MAX_CHARS;

    #[test]
    fn every_name_of_a_list_fits() {
        for list in ["drop", &"x".repeat(NAME_MAX_CHARS)] {
            assert_eq!(text(&name(list)), list);
        }
    }
}
