//! The buckets of sources, their own and those that they share, and those of the host as a whole, carried from maps of
//! another size or ABI version into those that take over: nobody is given a fresh burst because the gateway got another
//! version or more room.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapError};
use gateway_common::layout::{self, HOST_OWN, Line};
use gateway_common::source::SourceKey;

use super::carry::is_same;
use super::object;
use super::tables::{chain, failed, mapping};
use crate::base::time::{instant, monotonic_ns};

/// A start or reload waits no longer for them, each of the two times that they are carried.
const TIME_MAX: Duration = Duration::from_secs(4);
/// Full buckets that are carried: 24 MiB while that lasts.
const FULL_MAX: usize = 1 << 20;

/// A map of buckets, and how many it holds.
type Buckets = (HashMap<MapData, SourceKey, u64>, u32);

/// Carries the buckets that are pinned in the folder `from` into those in the folder `into`. Of two words of a source
/// the later stays, so it may be done again, and while programs run on both. The log tells what is not carried, and so
/// is full.
///
/// `full`: also those that are full, as far as there is room.
pub fn carry(from: &Path, into: &Path, full: bool) {
    sources(from, into, full);
    if object::seed_in(from) == object::seed_in(into) {
        words(from, into, layout::SHARED, |_| true);
    } else if from.join(layout::SHARED).exists() {
        tracing::warn!("buckets that sources share are full again");
    }
    // One of its lines is no bucket, and by another clock.
    let line = size_of::<Line>() / size_of::<u64>();
    words(from, into, layout::HOST, |word| word / line != HOST_OWN as usize);
}

fn sources(from: &Path, into: &Path, full: bool) {
    let [from_pin, into_pin] = [from, into].map(|folder| folder.join(layout::BUCKETS));
    if is_same(&from_pin, &into_pin) || !object::has_our(from, &[layout::BUCKETS]) {
        return;
    }
    match open(&from_pin).and_then(|old| copy(&old, &mut open(&into_pin)?, full)) {
        Ok(true) => {}
        Ok(false) => tracing::warn!("there was no time to carry all buckets over: some are full"),
        Err(error) => tracing::warn!(error = chain(&error), "buckets of sources are full again"),
    }
}

/// First those that are not full, then, where `full` says so and as far as they push nobody out, the others, which only
/// tell who is known. Whether there was time for all that are not full.
fn copy((old, had): &Buckets, (new, room): &mut Buckets, full: bool) -> Result<bool, MapError> {
    let (begun, now_ns) = (instant(), monotonic_ns());
    // The kernel evicts before the last place is taken.
    let mut room = *room as usize / 4 * 3;
    let mut later = Vec::new();
    // A key that is evicted while it is looked at has the kernel begin anew.
    for bucket in old.iter().take(2 * *had as usize) {
        let (source, word) = bucket?;
        if word > now_ns {
            put(new, source, word)?;
            room = room.saturating_sub(1);
        } else if full && later.len() < room.min(FULL_MAX) {
            later.push((source, word));
        }
        if begun.elapsed() > TIME_MAX {
            return Ok(false);
        }
    }
    let in_time = |_: &_| begun.elapsed() <= TIME_MAX;
    let mut later = later.into_iter().take(room).take_while(in_time);
    later.try_for_each(|(source, word)| put(new, source, word))?;
    Ok(true)
}

fn put(
    new: &mut HashMap<MapData, SourceKey, u64>,
    source: SourceKey,
    word: u64,
) -> Result<(), MapError> {
    match new.get(&source, 0) {
        Ok(held) if held >= word => Ok(()),
        _ => new.insert(source, word, 0),
    }
}

/// Those that are the words of a mapped array, each at the number that it has in both, where `is_bucket` says so.
fn words(from: &Path, into: &Path, map: &'static str, is_bucket: impl Fn(usize) -> bool) {
    let [from_pin, into_pin] = [from, into].map(|folder| folder.join(map));
    if is_same(&from_pin, &into_pin) || !object::has_our(from, &[map]) {
        return;
    }
    let mapped =
        |pin| MapData::from_pin(pin).map_err(failed(map)).and_then(|data| mapping(map, &data));
    match mapped(&from_pin).and_then(|old| Ok((old, mapped(&into_pin)?))) {
        Ok((old, new)) if old.words().len() == new.words().len() => {
            let both = old.words().iter().zip(new.words()).enumerate();
            for (_, (old, new)) in both.filter(|(index, _)| is_bucket(*index)) {
                new.fetch_max(old.load(Ordering::Acquire), Ordering::AcqRel);
            }
        }
        Ok(_) => tracing::warn!(map, "another size: its buckets are full again"),
        Err(error) => tracing::warn!(map, %error, "its buckets are full again"),
    }
}

fn open(pin: &Path) -> Result<Buckets, MapError> {
    let data = MapData::from_pin(pin)?;
    let size = data.info()?.max_entries();
    Ok((Map::from_map_data(data)?.try_into()?, size))
}
