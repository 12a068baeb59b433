//! Which interface is counted where: under its name, in a slot of the counters that it keeps while it goes and comes,
//! and until somebody else needs it. No interface is refused: one without a slot is counted with all others that have
//! none.
//!
//! ```text
//! interface ──index──▶ SLOTS ──slot──▶ COUNTERS      the program, for each packet
//!           ──name───▶ INTERFACES ──slot──▶          what is shown, whatever index the name had at the time
//! ```

use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError};
use gateway_common::layout::{self, InterfaceName, SLOT_OTHERS, SLOT_WORDS, slot_of, slot_word};
use nix::net::if_::if_nametoindex;

use super::tables::{TablesError, failed, open_as};

/// What the interfaces without a slot are called together. One that has this name is among them.
pub const OTHERS: &str = "_other";

/// The slots.
pub struct Slots {
    words: Array<MapData, u64>,
    names: Names,
}

type Names = Array<MapData, InterfaceName>;

impl Slots {
    /// Those in the maps that `find` finds by their names.
    pub fn open(find: impl Fn(&str) -> Result<MapData, MapError>) -> Result<Self, TablesError> {
        let data = |map: &'static str| find(map).map_err(failed(map));
        Ok(Self {
            words: open_as(layout::SLOTS, data(layout::SLOTS)?)?,
            names: open_as(layout::INTERFACES, data(layout::INTERFACES)?)?,
        })
    }

    /// The slot of an interface. One that has none is given one that is nobody's; [`SLOT_OTHERS`] where there is none.
    pub fn place(&mut self, interface: &str) -> Result<u32, TablesError> {
        let Some(name) = name(interface) else { return Ok(SLOT_OTHERS) };
        let names = read(&self.names).map_err(failed(layout::INTERFACES))?;
        let of = |wanted| (SLOT_OTHERS + 1..).zip(&names).find(|(_, name)| **name == wanted);
        if let Some((slot, _)) = of(name) {
            return Ok(slot);
        }
        let Some((slot, _)) = of(NOBODY) else { return Ok(SLOT_OTHERS) };
        self.names.set(slot, name, 0).map_err(failed(layout::INTERFACES))?;
        Ok(slot)
    }

    /// Sees to it that an interface has a slot, and is counted there if it is here. Answers the slot.
    pub fn seat(&mut self, interface: &str) -> Result<u32, TablesError> {
        let slot = self.place(interface)?;
        if let Ok(index) = if_nametoindex(interface) {
            self.seat_at(index, slot)?;
        }
        Ok(slot)
    }

    /// Lets the interface with this index be counted in a slot.
    pub fn seat_at(&mut self, index: u32, slot: u32) -> Result<(), TablesError> {
        let (at, word) = (index % SLOT_WORDS, slot_word(index, slot));
        let held = self.words.get(&at, 0).map_err(failed(layout::SLOTS))?;
        // Of two that share a word the first keeps it for as long as it is here: else they would take it in turns.
        if held == word || self.is_of_another(held, index)? {
            return Ok(());
        }
        self.words.set(at, word, 0).map_err(failed(layout::SLOTS))
    }

    /// The slots that are somebody's, and whose.
    pub fn in_use(&self) -> Result<Vec<(u32, String)>, TablesError> {
        let names = read(&self.names).map_err(failed(layout::INTERFACES))?;
        let named = (SLOT_OTHERS + 1..).zip(&names).filter(|(_, name)| **name != NOBODY);
        let named = named.map(|(slot, name)| (slot, text(name)));
        Ok(std::iter::once((SLOT_OTHERS, OTHERS.to_owned())).chain(named).collect())
    }

    /// Whether a word belongs to another interface than that with this index, and that one is here.
    fn is_of_another(&self, word: u64, index: u32) -> Result<bool, TablesError> {
        let holder = (word >> 32) as u32;
        let slot = slot_of(word, holder);
        if holder == index || slot == SLOT_OTHERS {
            return Ok(false);
        }
        let name = self.names.get(&slot, 0).map_err(failed(layout::INTERFACES))?;
        Ok(if_nametoindex(text(&name).as_str()) == Ok(holder))
    }
}

/// The names in the map that is pinned at `pin`, slot by slot after that of the others, empty for what is nobody's.
/// None where that cannot be read.
pub fn names_at(pin: &Path) -> Vec<String> {
    let names = MapData::from_pin(pin).and_then(Map::from_map_data).and_then(Names::try_from);
    let names = names.and_then(|names| read(&names));
    names.unwrap_or_default().iter().map(text).collect()
}

/// Whether interfaces of these find no slot, by the map that is pinned at `pin`, while others that are not among them
/// have one.
pub fn are_taken(pin: &Path, interfaces: &[String]) -> bool {
    let names = names_at(pin);
    let is_wanted = |held: &&String| interfaces.contains(held);
    let lacking = interfaces.iter().filter(|wanted| !names.contains(wanted)).count();
    let (free, held): (Vec<_>, Vec<_>) = names.iter().partition(|held| held.is_empty());
    lacking > free.len() && !held.iter().all(is_wanted)
}

const NOBODY: InterfaceName = [0; 16];

/// As the kernel writes it. `None` for what cannot be, and for what would be taken for the others.
fn name(interface: &str) -> Option<InterfaceName> {
    let mut name = NOBODY;
    // The last byte is a zero.
    let (text, _) =
        name.split_at_mut_checked(interface.len()).filter(|(_, end)| !end.is_empty())?;
    text.copy_from_slice(interface.as_bytes());
    (interface != OTHERS).then_some(name)
}

fn text(name: &InterfaceName) -> String {
    let bytes = name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// All but that of the others. Another version may have more or fewer.
fn read(names: &Names) -> Result<Vec<InterfaceName>, MapError> {
    (SLOT_OTHERS + 1..names.len()).map(|slot| names.get(&slot, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_the_kernel_has_them() {
        assert_eq!(name("eth0").map(|name| text(&name)).as_deref(), Some("eth0"));
        assert!(name("a23456789012345").is_some());
        for none in ["a234567890123456", "a2345678901234567", OTHERS] {
            assert_eq!(name(none), None, "{none}");
        }
    }
}
