//! The buckets of sources, carried from maps of another size or ABI version into those that take over: nobody is given
//! a fresh burst because the gateway got another version or more room.

use std::path::Path;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapError};
use gateway_common::layout;
use gateway_common::source::SourceKey;

use super::carry::is_same;
use super::object;
use super::tables::chain;
use crate::base::time::{instant, monotonic_ns};

/// A start or reload waits no longer for them, each of the two times that they are carried.
const TIME_MAX: Duration = Duration::from_secs(4);

/// A map of buckets, and how many it holds.
type Buckets = (HashMap<MapData, SourceKey, u64>, u32);

/// Carries the buckets that are pinned in the folder `from` into those in the folder `into`. Of two words of a source
/// the later stays, so it may be done again, and while programs run on both. The log tells what is not carried, and so
/// is full.
pub fn carry(from: &Path, into: &Path) {
    let [from_pin, into_pin] = [from, into].map(|folder| folder.join(layout::BUCKETS));
    if is_same(&from_pin, &into_pin) || !object::has_our(from, &[layout::BUCKETS]) {
        return;
    }
    match open(&from_pin).and_then(|old| copy(&old, &mut open(&into_pin)?)) {
        Ok(true) => {}
        Ok(false) => tracing::warn!("there was no time to carry all buckets over: some are full"),
        Err(error) => tracing::warn!(error = chain(&error), "buckets of sources are full again"),
    }
}

/// First those that are not full, then, as far as they push nobody out, the others, which only tell who is known.
/// Whether there was time for all.
fn copy((old, had): &Buckets, (new, room): &mut Buckets) -> Result<bool, MapError> {
    let (begun, now_ns) = (instant(), monotonic_ns());
    // The kernel evicts before the last place is taken.
    let mut room = *room / 4 * 3;
    for is_full in [false, true] {
        // A key that is evicted while it is looked at has the kernel begin anew.
        for bucket in old.iter().take(2 * *had as usize) {
            let (source, word) = bucket?;
            if begun.elapsed() > TIME_MAX {
                return Ok(false);
            }
            if (word <= now_ns) != is_full {
                continue;
            }
            if is_full && room == 0 {
                return Ok(true);
            }
            room = room.saturating_sub(1);
            if !new.get(&source, 0).is_ok_and(|held| held >= word) {
                new.insert(source, word, 0)?;
            }
        }
    }
    Ok(true)
}

fn open(pin: &Path) -> Result<Buckets, MapError> {
    let data = MapData::from_pin(pin)?;
    let size = data.info()?.max_entries();
    Ok((Map::from_map_data(data)?.try_into()?, size))
}
