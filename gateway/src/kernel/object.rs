//! The XDP program: the prebuilt object is loaded with the constants and sizes of the configuration, onto the maps that
//! are already pinned where these fit.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use gateway_common::bucket::Bucket;
use gateway_common::layout::{self, Settings};
use gateway_common::source::mask64;
use gateway_common::table::buckets_for;
use thiserror::Error;

use super::carry;
use super::pins::{Pins, PinsError};
use super::slots;
use super::tables::chain;
use crate::config::{HostLimits, Hygiene};
use crate::rules::tables::{filter_bits_for, random_seed};

/// What `cargo xtask ebpf` built; a test holds it against the hash of its sources.
static OBJECT: &[u8] = include_bytes_aligned!("../../../gateway-ebpf/prebuilt/gateway.bpf.o");

/// Index of the loopback interface in every network namespace (LOOPBACK_IFINDEX of the kernel's
/// include/net/flow.h, which it insists on).
const LOOPBACK_INDEX: u32 = 1;

/// Name of the program's pin.
pub const PROGRAM_PIN: &str = "program";

/// Why the program could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The object or one of its maps.
    #[error(
        "the kernel did not take the XDP program's maps: {}; where memory is short, lower \
         kernel.max_rules and kernel.max_sources", chain(.0)
    )]
    Object(#[from] EbpfError),
    /// The verifier, or a kernel without what the program uses.
    #[error("the kernel did not take the XDP program: {}", chain(.0))]
    Program(#[from] ProgramError),
    /// The embedded object is not what it should be.
    #[error("the embedded kernel object is broken: {0}")]
    Broken(String),
    /// A pin.
    #[error(transparent)]
    Pins(#[from] PinsError),
}

impl LoadError {
    /// Whether the tables are larger than the host can spare, which a smaller `kernel.max_rules` mends.
    pub fn is_out_of_memory(&self) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let found = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            if found == Some(libc::ENOMEM) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Sizes of the maps that are settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Rules of one address family.
    pub rules: u32,
    /// Sources whose buckets are remembered.
    pub sources: u32,
}

impl Capacity {
    /// Entries of a map, where it is a setting.
    fn entries(self, map: &str) -> Option<u32> {
        let buckets = buckets_for(self.rules);
        match map {
            layout::TABLE_V4 | layout::TABLE_V6 => Some(buckets),
            layout::FILTER_V6 => Some(filter_bits_for(self.rules) / 64),
            layout::BUCKETS => Some(self.sources),
            layout::COUNTERS => Some(carry::ENTRIES),
            _ => None,
        }
    }
}

/// What of the program's constants the configuration decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// Look at rules.
    pub rules: bool,
    /// Look at packet buckets.
    pub buckets: bool,
    /// Count what would be dropped and drop nothing.
    pub dry_run: bool,
    /// Bits of an IPv6 address that tell one source's buckets from another's (1 to 64).
    pub ipv6_source_length: u8,
    /// Of sources that are given a bucket of their own; unlimited: every source is.
    pub new_sources: Bucket,
    /// Of packets from sources that have none.
    pub unknown_sources: Bucket,
    /// Drops that are reported; `None` for none.
    pub events: Option<Bucket>,
    /// New connections that `reset` rules answer; `None` for none.
    pub resets: Option<Bucket>,
    /// What is dropped because nothing honest sends it.
    pub hygiene: Hygiene,
    /// Spare the loopback interface that.
    pub spare_loopback: bool,
    /// The buckets of the host as a whole.
    pub host_limits: HostLimits,
}

impl Switches {
    /// Rules and nothing else.
    pub const RULES: Self = Self {
        rules: true,
        buckets: false,
        dry_run: false,
        ipv6_source_length: 64,
        hygiene: Hygiene::OFF,
        spare_loopback: false,
        host_limits: HostLimits::NONE,
        new_sources: Bucket::UNLIMITED,
        unknown_sources: Bucket::UNLIMITED,
        events: None,
        resets: None,
    };
}

/// The program in the kernel, not yet attached.
pub struct Loaded {
    object: Ebpf,
    /// Where it and its maps are pinned.
    pub staged: PathBuf,
}

/// Loads the program and pins it in a folder that is to take the place of what is in force. Pinned maps of the right
/// shape are taken over with all they hold; the others are made anew. So are those that count where `interfaces` lack
/// slots that others do not need any more.
pub fn load(
    pins: &Pins,
    switches: Switches,
    capacity: Capacity,
    interfaces: &[String],
) -> Result<Loaded, LoadError> {
    let mut kept = fitting(pins, capacity)?;
    if slots::are_taken(&pins.map(layout::INTERFACES), interfaces) {
        kept.retain(|name| !layout::COUNTER_MAPS.contains(name));
    }
    let staged = pins.stage(kept.into_iter())?;
    let loaded = load_pinned(pins, &staged, switches, capacity);
    if loaded.is_err() {
        // The error is worth telling, and not that the next start clears up.
        drop(pins.remove_other(&staged));
    }
    Ok(Loaded { object: loaded?, staged })
}

/// Loads the program on the maps that are pinned in a folder, and pins it and all others there.
fn load_pinned(
    pins: &Pins,
    staged: &Path,
    switches: Switches,
    capacity: Capacity,
) -> Result<Ebpf, LoadError> {
    let folders = [staged.to_owned(), pins.maps()].into_iter().chain(pins.others()?);
    let seed = folders.into_iter().find_map(|folder| seed_in(&folder)).unwrap_or_else(random_seed);
    let settings = settings(seed, switches, capacity);
    let mut loader = EbpfLoader::new();
    for name in layout::maps() {
        loader.map_pin_path(name, staged.join(name));
    }
    let mut object = load_with(&mut loader, &settings, capacity)?;
    let pinned = program(&mut object)?.pin(staged.join(PROGRAM_PIN));
    pinned.map_err(|error| LoadError::Broken(chain(&error)))?;
    Ok(object)
}

/// Loads the program with maps of its own that nobody else sees.
pub fn load_apart(switches: Switches, capacity: Capacity) -> Result<Ebpf, LoadError> {
    let settings = settings(random_seed(), switches, capacity);
    load_with(&mut EbpfLoader::new(), &settings, capacity)
}

fn settings(seed: u64, switches: Switches, capacity: Capacity) -> Settings {
    let mask = buckets_for(capacity.rules) - 1;
    Settings {
        seed,
        new_sources: switches.new_sources,
        unknown_sources: switches.unknown_sources,
        source_mask_v6: mask64(u32::from(switches.ipv6_source_length)),
        table_mask_v4: mask,
        table_mask_v6: mask,
        filter_mask_v6: filter_bits_for(capacity.rules) - 1,
        rules: u32::from(switches.rules),
        buckets: u32::from(switches.buckets),
        dry_run: u32::from(switches.dry_run),
        tcp_flags: u32::from(switches.hygiene.tcp_flags),
        martian: u32::from(switches.hygiene.martian),
        malformed: u32::from(switches.hygiene.malformed),
        loopback: if switches.spare_loopback { LOOPBACK_INDEX } else { 0 },
        events: switches.events.unwrap_or(Bucket::UNLIMITED),
        host_udp: switches.host_limits.udp,
        host_fragments: switches.host_limits.fragments,
        resets: switches.resets.unwrap_or(Bucket::UNLIMITED),
    }
}

fn load_with<'a>(
    loader: &mut EbpfLoader<'a>,
    settings: &'a Settings,
    capacity: Capacity,
) -> Result<Ebpf, LoadError> {
    loader.override_global(layout::SETTINGS, settings, true);
    for name in layout::maps() {
        if let Some(entries) = capacity.entries(name) {
            loader.map_max_entries(name, entries);
        }
    }
    let mut object = loader.load(OBJECT)?;
    let kept = object.map_mut(layout::SEED);
    let kept = kept.ok_or_else(|| LoadError::Broken("it has no seed".to_owned()))?;
    let kept = Array::<_, u64>::try_from(kept).and_then(|mut kept| kept.set(0, settings.seed, 0));
    kept.map_err(|error| LoadError::Broken(chain(&error)))?;
    program(&mut object)?.load()?;
    Ok(object)
}

/// The program of an object.
fn program(object: &mut Ebpf) -> Result<&mut Xdp, LoadError> {
    let program = object.program_mut(layout::PROGRAM);
    let program = program.ok_or_else(|| LoadError::Broken("it has no program".to_owned()))?;
    Ok(program.try_into()?)
}

/// What the maps in a folder are hashed with: once something that nobody can guess, because whoever is banned chooses
/// the addresses, and from then on the same, so that sources find the buckets that they share in the maps that follow.
pub fn seed_in(folder: &Path) -> Option<u64> {
    let kept = MapData::from_pin(folder.join(layout::SEED))
        .and_then(Map::from_map_data)
        .and_then(Array::<_, u64>::try_from)
        .and_then(|kept| kept.get(&0, 0));
    // Before it is written it is zero.
    kept.ok().filter(|seed| *seed != 0)
}

impl Loaded {
    /// The program, for attaching.
    pub fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        program(&mut self.object)
    }
}

/// The pinned maps whose type and sizes are those that the program wants: aya would take over others unseen. Those of
/// the rules belong together, and so do those that count.
fn fitting(pins: &Pins, capacity: Capacity) -> Result<Vec<&'static str>, LoadError> {
    let object = aya_obj::Object::parse(OBJECT).map_err(|e| LoadError::Broken(e.to_string()))?;
    let mut fitting = Vec::new();
    for name in layout::maps() {
        let Some(map) = object.maps.get(name) else {
            return Err(LoadError::Broken(format!("it has no map {name}")));
        };
        let entries = capacity.entries(name).unwrap_or(map.max_entries());
        let fits = |pinned: MapInfo| is_alike(&pinned, map) && pinned.max_entries() == entries;
        if MapInfo::from_pin(pins.map(name)).is_ok_and(fits) {
            fitting.push(name);
        }
    }
    for group in [layout::RULE_MAPS.as_slice(), &layout::COUNTER_MAPS] {
        if !group.iter().all(|name| fitting.contains(name)) {
            fitting.retain(|name| !group.contains(name));
        }
    }
    Ok(fitting)
}

/// Whether maps that are pinned in a folder have the shapes of ours, whatever their sizes.
pub fn has_our(folder: &Path, maps: &[&str]) -> bool {
    let Ok(object) = aya_obj::Object::parse(OBJECT) else { return false };
    maps.iter().all(|name| {
        let pinned = MapInfo::from_pin(folder.join(name));
        object.maps.get(*name).is_some_and(|map| pinned.is_ok_and(|pinned| is_alike(&pinned, map)))
    })
}

fn is_alike(pinned: &MapInfo, map: &aya_obj::Map) -> bool {
    pinned.map_type().is_ok_and(|kind| kind as u32 == map.map_type())
        && pinned.key_size() == map.key_size()
        && pinned.value_size() == map.value_size()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::maps::MapError;

    #[test]
    fn a_host_without_memory_is_told_from_one_without_support() {
        let refused = |code| {
            let io_error = io::Error::from_raw_os_error(code);
            let error = MapError::CreateError { name: "TABLE_V4".to_owned(), io_error };
            LoadError::Object(EbpfError::MapError(error))
        };
        assert!(refused(libc::ENOMEM).is_out_of_memory());
        assert!(!refused(libc::EINVAL).is_out_of_memory());
        assert!(refused(libc::ENOMEM).to_string().contains("lower kernel.max_rules"));
    }
}
