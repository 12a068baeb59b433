//! The XDP program: the prebuilt object is loaded with the constants and sizes of the configuration, onto the maps that
//! are already pinned where these fit.

use aya::maps::MapInfo;
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use gateway_common::layout::{self, Settings};
use thiserror::Error;

use super::pins::{Pins, PinsError};
use super::tables::chain;

/// What `cargo xtask ebpf` built; a test holds it against the hash of its sources.
static OBJECT: &[u8] = include_bytes_aligned!("../../../gateway-ebpf/prebuilt/gateway.bpf.o");

/// Name of the program's pin.
pub const PROGRAM_PIN: &str = "program";

/// The maps that are taken over together or not at all: each rule has a slot in the table of hits.
const RULES: [&str; 3] = [layout::RULES_V4, layout::RULES_V6, layout::HITS];

/// Why the program could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The object or one of its maps.
    #[error("the kernel did not take the XDP program's maps: {}", chain(.0))]
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

/// Sizes of the maps that are settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Rules of one address family.
    pub rules: u32,
    /// Sources whose buckets are remembered.
    pub sources: u32,
}

impl Capacity {
    /// Entries of a map, where it is a setting. A prefix has two rules at most, and there are two families.
    fn entries(self, map: &str) -> Option<u32> {
        match map {
            layout::RULES_V4 | layout::RULES_V6 => Some(self.rules),
            layout::HITS => Some(self.rules.saturating_mul(4)),
            layout::BUCKETS => Some(self.sources),
            _ => None,
        }
    }
}

/// The program in the kernel, not yet attached.
pub struct Loaded {
    object: Ebpf,
    /// Maps that did not fit what was pinned and wait under a name of their own.
    pub replaced: Vec<&'static str>,
}

/// Loads the program. Pinned maps of the right shape are taken over with all they hold; the others are made anew beside
/// them and take their places when [`Loaded::settle`] is called.
pub fn load(pins: &Pins, settings: Settings, capacity: Capacity) -> Result<Loaded, LoadError> {
    let replaced = misfits(pins, capacity)?;
    let mut loader = EbpfLoader::new();
    loader.override_global(layout::SETTINGS, &settings, true);
    for name in layout::MAPS {
        let path = if replaced.contains(&name) { pins.next(name) } else { pins.map(name) };
        loader.map_pin_path(name, path);
        if let Some(entries) = capacity.entries(name) {
            loader.map_max_entries(name, entries);
        }
    }
    let object = loader.load(OBJECT)?;
    let mut loaded = Loaded { object, replaced };
    loaded.program()?.load()?;
    Ok(loaded)
}

impl Loaded {
    /// The program, for attaching.
    pub fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        let program = self.object.program_mut(layout::PROGRAM);
        let program = program.ok_or_else(|| LoadError::Broken("it has no program".to_owned()))?;
        Ok(program.try_into()?)
    }

    /// Pins the program and lets the new maps take the places of the old, once the links run it.
    pub fn settle(mut self, pins: &Pins) -> Result<(), LoadError> {
        let pinned = self.program()?.pin(pins.next(PROGRAM_PIN));
        pinned.map_err(|error| LoadError::Broken(chain(&error)))?;
        pins.promote(PROGRAM_PIN)?;
        for name in &self.replaced {
            pins.promote(name)?;
        }
        Ok(())
    }
}

/// The pinned maps whose type or sizes are not those that the program wants: aya would take them over unseen.
fn misfits(pins: &Pins, capacity: Capacity) -> Result<Vec<&'static str>, LoadError> {
    let object = aya_obj::Object::parse(OBJECT).map_err(|e| LoadError::Broken(e.to_string()))?;
    let mut misfits = Vec::new();
    for name in layout::MAPS {
        let Some(map) = object.maps.get(name) else {
            return Err(LoadError::Broken(format!("it has no map {name}")));
        };
        let pinned = match MapInfo::from_pin(pins.map(name)) {
            Ok(pinned) => pinned,
            // What is there is no map of anybody's, or there is nothing.
            Err(_) => {
                if pins.map(name).exists() {
                    misfits.push(name);
                }
                continue;
            }
        };
        let entries = capacity.entries(name).unwrap_or(map.max_entries());
        let kind = pinned.map_type().map(|kind| kind as u32).ok();
        let fits = kind == Some(map.map_type())
            && pinned.key_size() == map.key_size()
            && pinned.value_size() == map.value_size()
            && pinned.max_entries() == entries;
        if !fits {
            misfits.push(name);
        }
    }
    if RULES.iter().any(|name| misfits.contains(name)) {
        misfits.retain(|name| !RULES.contains(name));
        misfits.extend(RULES);
    }
    Ok(misfits)
}
