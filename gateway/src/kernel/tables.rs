//! The maps in the kernel: written as a difference, read as they are.
//!
//! Rules are written through mappings of the program's own memory; the other maps by system calls.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{Array, Map, MapData, MapError};
use gateway_common::layout::{self, Hits, PROFILES_MAX, Profile};
use ipnet::IpNet;
use thiserror::Error;

use super::counters::Counters;
use crate::rules::classify::Entry;
use crate::rules::tables::mapping::Mapping;
use crate::rules::tables::{Memory, RoomError, RuleTables};

/// Why the maps could not be read or written.
#[derive(Debug, Error)]
pub enum TablesError {
    /// More rules than fit.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The memory of a map.
    #[error("map {map}: its memory cannot be reached: {source}")]
    Memory {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error("map {map}: {}", chain(source))]
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
}

/// The maps of one ABI version.
pub struct Tables {
    /// The rules.
    pub rules: RuleTables,
    /// What the program counted.
    pub counters: Counters,
    profiles: Array<MapData, Profile>,
    ports: Array<MapData, u64>,
    memory_bytes: u64,
}

impl Tables {
    /// Opens the maps that `find` finds by their names, and reads which rules they hold. `capacity` bounds the rules of
    /// one family.
    pub fn open(
        find: impl Fn(&str) -> Result<MapData, MapError>,
        capacity: u32,
    ) -> Result<Self, TablesError> {
        let data = |map: &'static str| find(map).map_err(failed(map));
        let mapped = |map: &'static str| mapping(map, &data(map)?);
        let seed: Array<_, u64> = open_as(layout::SEED, data(layout::SEED)?)?;
        let memory = Memory {
            tables: [mapped(layout::TABLE_V4)?, mapped(layout::TABLE_V6)?],
            filters_v4: [
                mapped(layout::NETWORKS_V4)?,
                mapped(layout::FILTER_V4)?,
                mapped(layout::SHORT_V4)?,
                mapped(layout::BLOCKS_V4)?,
            ],
            filters_v6: [mapped(layout::FILTER_V6)?, mapped(layout::LENGTHS_V6)?],
            seed: seed.get(&0, 0).map_err(failed(layout::SEED))?,
        };
        Ok(Self {
            rules: RuleTables::open(memory, capacity),
            profiles: open_as(layout::PROFILES, data(layout::PROFILES)?)?,
            ports: open_as(layout::PORTS, data(layout::PORTS)?)?,
            counters: Counters::open(&find)?,
            memory_bytes: memory_bytes(&find)?,
        })
    }

    /// What the maps cost the host, by the kernel's own account (unit: bytes).
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Writes the buckets of all profiles, the default one first.
    pub fn write_profiles(&mut self, profiles: &[Profile]) -> Result<(), TablesError> {
        for index in 0..PROFILES_MAX {
            let profile = profiles.get(index as usize).copied().unwrap_or(Profile::UNLIMITED);
            self.profiles.set(index, profile, 0).map_err(failed(layout::PROFILES))?;
        }
        Ok(())
    }

    /// Writes the ports that buckets apply to.
    pub fn write_ports(&mut self, ports: &BTreeSet<u16>) -> Result<(), TablesError> {
        for word in 0..layout::PORT_WORDS {
            let bits = (0..64u32).filter(|bit| {
                u16::try_from(word * 64 + bit).is_ok_and(|port| ports.contains(&port))
            });
            let value = bits.fold(0u64, |value, bit| value | 1 << bit);
            let held = self.ports.get(&word, 0).map_err(failed(layout::PORTS))?;
            if held != value {
                self.ports.set(word, value, 0).map_err(failed(layout::PORTS))?;
            }
        }
        Ok(())
    }

    /// What the dry run of a list has met, where nothing else holds for the prefix.
    pub fn tried(&self, prefix: &IpNet) -> Option<Hits> {
        self.rules.held(prefix, false).filter(|(head, _)| head.is_trial())?;
        Some(self.rules.hits(prefix, false))
    }

    /// The rules that the kernel holds for a prefix, read from its memory now, each with what it has met.
    pub fn held(&self, prefix: &IpNet) -> Vec<(Entry, Hits)> {
        let read = |second: bool| {
            let (head, span) = self.rules.held(prefix, second)?;
            Some((Entry::of(head, span)?, self.rules.hits(prefix, second)))
        };
        [false, true].into_iter().filter_map(read).collect()
    }
}

/// The kernel tells it of every map that a process has open (`memlock` of bpf_map_show_fdinfo, kernel/bpf/syscall.c).
fn memory_bytes(find: &impl Fn(&str) -> Result<MapData, MapError>) -> Result<u64, TablesError> {
    let mut sum = 0;
    for map in layout::maps() {
        let data = find(map).map_err(failed(map))?;
        let path = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
        let told = std::fs::read_to_string(path);
        let told = told.map_err(|source| TablesError::Memory { map, source })?;
        let bytes = told.lines().find_map(|line| line.strip_prefix("memlock:"));
        sum += bytes.and_then(|bytes| bytes.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

pub(super) fn mapping(map: &'static str, data: &MapData) -> Result<Mapping, TablesError> {
    let info = data.info().map_err(failed(map))?;
    let bytes = info.max_entries() as usize * info.value_size() as usize;
    Mapping::new(data.fd(), bytes).map_err(|source| TablesError::Memory { map, source })
}

pub(super) fn open_as<T: TryFrom<Map, Error = MapError>>(
    name: &'static str,
    data: MapData,
) -> Result<T, TablesError> {
    Map::from_map_data(data).and_then(T::try_from).map_err(failed(name))
}

pub(super) fn failed(map: &'static str) -> impl Fn(MapError) -> TablesError {
    move |source| TablesError::Map { map, source }
}

/// An error and everything below it: aya's own text often leaves out what the kernel said.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
