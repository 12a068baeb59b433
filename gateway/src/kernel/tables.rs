//! The maps in the kernel: written as a difference, read as they are.
//!
//! Rules are written through mappings of the program's own memory; the other maps by system calls. Additions come
//! before removals: an address goes from its old verdict to its new one without a moment in between.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray};
use gateway_common::layout::{self, Counter, Hits, PROFILES_MAX, Profile, counter_index};
use gateway_common::source::Source;
use gateway_common::table::{Head, Span, TagV4, TagV6};
use gateway_common::verdict::Reason;
use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

use super::filters::{FiltersV4, FiltersV6};
use super::guard::{ClearedPair, Compiled};
use super::mapping::Mapping;
use super::table::{Family, NoRoom, Table, V4Cells, V6Cells};
use crate::base::prefix::display;
use crate::base::time::BootTime;
use crate::rules::classify::Entry;

/// Why the maps could not be read or written.
#[derive(Debug, Error)]
pub enum TablesError {
    /// More rules than fit. Nothing was changed.
    #[error(
        "{wanted} {family} rules do not fit into a table of {capacity}, protected addresses \
         included: raise kernel.max_rules"
    )]
    Full {
        /// IPv4 or IPv6.
        family: &'static str,
        /// Rules that there would be.
        wanted: usize,
        /// Rules that fit.
        capacity: u32,
    },
    /// The rules before it crowd the place where this one would have to lie.
    #[error("{} finds no room among the rules that share its buckets: raise kernel.max_rules", display(.0))]
    Crowded(IpNet),
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
    v4: Table<V4Cells>,
    v6: Table<V6Cells>,
    filters_v4: FiltersV4,
    filters_v6: FiltersV6,
    profiles: Array<MapData, Profile>,
    ports: Array<MapData, u64>,
    counters: PerCpuArray<MapData, Counter>,
    /// Rules of one family that may be.
    capacity: u32,
    memory_bytes: u64,
    held: BTreeMap<IpNet, Written>,
}

/// What the tables hold for a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    first: (Head, Span),
    second: Option<(Head, Span)>,
}

/// A counter summed over the CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// What it counts.
    pub reason: Reason,
    /// What was done.
    pub done: Counter,
    /// What a dry run would have done.
    pub would: Counter,
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
        let seed = seed.get(&0, 0).map_err(failed(layout::SEED))?;
        let mask = |map: &'static str| -> Result<u32, TablesError> {
            let info = data(map)?.info().map_err(failed(map))?;
            Ok(info.max_entries().saturating_sub(1))
        };
        let (table_v4, hits_v4) = (mapped(layout::TABLE_V4)?, mapped(layout::HITS_V4)?);
        let (table_v6, hits_v6) = (mapped(layout::TABLE_V6)?, mapped(layout::HITS_V6)?);
        let v4 = Table::new(table_v4, hits_v4, seed, mask(layout::TABLE_V4)?);
        let v6: Table<V6Cells> = Table::new(table_v6, hits_v6, seed, mask(layout::TABLE_V6)?);
        let (networks, lengths) = (mapped(layout::FILTER_V6)?, mapped(layout::LENGTHS_V6)?);
        let mut tables = Self {
            filters_v4: FiltersV4::new(mapped(layout::FILTER_V4)?, mapped(layout::BLOCKS_V4)?),
            filters_v6: FiltersV6::new(networks, lengths, seed),
            v4,
            v6,
            profiles: open_as(layout::PROFILES, data(layout::PROFILES)?)?,
            ports: open_as(layout::PORTS, data(layout::PORTS)?)?,
            counters: open_as(layout::COUNTERS, data(layout::COUNTERS)?)?,
            capacity,
            memory_bytes: memory_bytes(&find)?,
            held: BTreeMap::new(),
        };
        let v4 = tables.v4.iter().map(|held| (prefix_v4(held.tag), held.head, held.span));
        let v6 = tables.v6.iter().map(|held| (prefix_v6(held.tag), held.head, held.span));
        tables.held = by_prefix(v4.chain(v6));
        for prefix in tables.held.keys() {
            match tag(prefix) {
                Tag::V4(tag) => tables.filters_v4.add(tag),
                Tag::V6(tag) => tables.filters_v6.add(tag),
            }
        }
        Ok(tables)
    }

    /// Adds what the same rules have met in the maps that these take over from.
    pub fn inherit(&self, before: &Self) {
        for (prefix, written) in &before.held {
            for (head, _) in [Some(written.first), written.second].into_iter().flatten() {
                let same = |held: &Written| {
                    let both = [Some(held.first), held.second].into_iter().flatten();
                    let same = |other: &Head| {
                        (other.action(), other.origin()) == (head.action(), head.origin())
                    };
                    both.map(|(head, _)| head).find(same)
                };
                if let Some(now) = self.held.get(prefix).and_then(same) {
                    let hits = before.hits(prefix, head.is_second());
                    match tag(prefix) {
                        Tag::V4(tag) => self.v4.add_hits(tag, now.is_second(), hits),
                        Tag::V6(tag) => self.v6.add_hits(tag, now.is_second(), hits),
                    }
                }
            }
        }
    }

    /// What the maps cost the host, by the kernel's own account (unit: bytes).
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Refuses more rules than fit.
    pub fn check(&self, compiled: &Compiled) -> Result<(), TablesError> {
        check_capacity(compiled.enforced.keys(), self.capacity)
    }

    /// Makes the kernel hold exactly these rules.
    pub fn apply(&mut self, compiled: &Compiled) -> Result<(), TablesError> {
        self.check(compiled)?;
        let wanted = &compiled.enforced;
        let gone: Vec<IpNet> =
            self.held.keys().filter(|prefix| !wanted.contains_key(*prefix)).copied().collect();
        self.replace(wanted.iter(), gone)
    }

    /// Makes the kernel hold what differs between two sets of rules, and leaves all others.
    pub fn apply_difference(
        &mut self,
        before: &Compiled,
        after: &Compiled,
    ) -> Result<(), TablesError> {
        let (before, after) = (&before.enforced, &after.enforced);
        let changed = after.iter().filter(|(prefix, pair)| before.get(*prefix) != Some(*pair));
        let gone: Vec<IpNet> =
            before.keys().filter(|prefix| !after.contains_key(*prefix)).copied().collect();
        self.replace(changed, gone)
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

    /// All counters, in the order of their reasons.
    pub fn counters(&self) -> Result<Vec<Count>, TablesError> {
        let sum = |index: u32| -> Result<Counter, TablesError> {
            let values = self.counters.get(&index, 0).map_err(failed(layout::COUNTERS))?;
            Ok(values.iter().fold(Counter::default(), |sum, value| Counter {
                packets: sum.packets + value.packets,
                bytes: sum.bytes + value.bytes,
            }))
        };
        Reason::ALL
            .into_iter()
            .map(|reason| {
                let done = sum(counter_index(reason, false))?;
                Ok(Count { reason, done, would: sum(counter_index(reason, true))? })
            })
            .collect()
    }

    /// The rules that the kernel holds for a prefix, read from its memory now, each with what it has met.
    pub fn held(&self, prefix: &IpNet) -> Vec<(Entry, Hits)> {
        let read = |second: bool| {
            let (head, span) = match tag(prefix) {
                Tag::V4(tag) => self.v4.find(tag, second).map(|held| (held.head, held.span)),
                Tag::V6(tag) => self.v6.find(tag, second).map(|held| (held.head, held.span)),
            }?;
            Some((entry(head, span)?, self.hits(prefix, second)))
        };
        [false, true].into_iter().filter_map(read).collect()
    }

    /// The rule that decides about packets from `address` now, read from the kernel's memory as its program reads it.
    pub fn find(&self, address: IpAddr, now: BootTime) -> Option<(IpNet, Entry, Hits)> {
        let full = IpNet::from(address.to_canonical());
        (0..=full.prefix_len()).rev().find_map(|length| {
            let prefix = IpNet::new(full.addr(), length).ok()?.trunc();
            let live = self.held(&prefix).into_iter().find(|(entry, _)| now < entry.until)?;
            Some((prefix, live.0, live.1))
        })
    }

    /// What the first or the second rule of a prefix has met.
    pub(super) fn hits(&self, prefix: &IpNet, second: bool) -> Hits {
        match tag(prefix) {
            Tag::V4(tag) => self.v4.hits(tag, second),
            Tag::V6(tag) => self.v6.hits(tag, second),
        }
    }

    /// Additions that find no room wait until the removals have made some.
    fn replace<'a>(
        &mut self,
        wanted: impl Iterator<Item = (&'a IpNet, &'a ClearedPair)>,
        gone: Vec<IpNet>,
    ) -> Result<(), TablesError> {
        let crowded: Vec<_> =
            wanted.filter(|(prefix, pair)| self.write(**prefix, pair).is_err()).collect();
        for prefix in gone {
            self.remove(prefix);
        }
        crowded.into_iter().try_for_each(|(prefix, pair)| self.write(*prefix, pair))
    }

    fn write(&mut self, prefix: IpNet, pair: &ClearedPair) -> Result<(), TablesError> {
        self.put(prefix, pair.first.head(false), pair.second.map(|rule| rule.head(true)))
    }

    /// Writes the rules of a prefix. If they find no room, a new one is not begun.
    pub(super) fn put(
        &mut self,
        prefix: IpNet,
        first: (Head, Span),
        second: Option<(Head, Span)>,
    ) -> Result<(), TablesError> {
        let wanted = Written { first, second };
        let held = self.held.get(&prefix).copied();
        if held == Some(wanted) {
            return Ok(());
        }
        let written = match tag(&prefix) {
            Tag::V4(tag) => {
                if held.is_none() {
                    self.filters_v4.add(tag);
                }
                put_pair(&mut self.v4, tag, held, wanted)
            }
            Tag::V6(tag) => {
                if held.is_none() {
                    self.filters_v6.add(tag);
                }
                put_pair(&mut self.v6, tag, held, wanted)
            }
        };
        self.held.insert(prefix, *written.as_ref().unwrap_or_else(|partly| partly));
        if written.is_ok() {
            return Ok(());
        }
        if held.is_none() {
            self.remove(prefix);
        }
        Err(TablesError::Crowded(prefix))
    }

    /// Takes the rules of a prefix out.
    pub(super) fn remove(&mut self, prefix: IpNet) {
        if self.held.remove(&prefix).is_none() {
            return;
        }
        match tag(&prefix) {
            Tag::V4(tag) => {
                self.v4.remove(tag, false);
                self.v4.remove(tag, true);
                let shorter = |length| prefix_v4(TagV4::new(tag.address(), length));
                let covers =
                    (0..tag.length()).any(|length| self.held.contains_key(&shorter(length)));
                self.filters_v4.remove(tag, covers, |first, last| self.held_v4(first, last));
            }
            Tag::V6(tag) => {
                self.v6.remove(tag, false);
                self.v6.remove(tag, true);
                self.filters_v6.remove(tag);
            }
        }
    }

    /// The IPv4 rules whose network address lies in a range.
    fn held_v4(&self, first: u32, last: u32) -> impl Iterator<Item = TagV4> {
        let (first, last) = (TagV4::new(first, 32), TagV4::new(last, 32));
        let start = IpNet::V4(Ipv4Net::from(std::net::Ipv4Addr::from(first.address())));
        let start = IpNet::new(start.addr(), 0).unwrap_or(start);
        self.held.range(start..=prefix_v4(last)).filter_map(|(prefix, _)| match tag(prefix) {
            Tag::V4(tag) => Some(tag),
            Tag::V6(_) => None,
        })
    }
}

enum Tag {
    V4(TagV4),
    V6(TagV6),
}

fn tag(prefix: &IpNet) -> Tag {
    let length = u32::from(prefix.prefix_len());
    match Source::from(prefix.addr()) {
        Source::V4(address) => Tag::V4(TagV4::new(address, length)),
        Source::V6(address) => Tag::V6(TagV6::new(address, length)),
    }
}

/// Writes the rules of a prefix over those that it `held`. If one finds no room, the error is what the table has then.
fn put_pair<F: Family>(
    table: &mut Table<F>,
    tag: F::Tag,
    held: Option<Written>,
    wanted: Written,
) -> Result<Written, Written> {
    let Written { first, second } = wanted;
    // The second must not decide before the first does, nor be missing when that ends, should this process be killed.
    let is_outlived = held.is_some_and(|held| first.1.until <= held.first.1.until);
    let mut partly = held.unwrap_or(wanted);
    if is_outlived && let Some((head, span)) = second {
        table.put(tag, head, span).map_err(|NoRoom| partly)?;
        partly.second = second;
    }
    table.put(tag, first.0, first.1).map_err(|NoRoom| partly)?;
    partly.first = first;
    match second {
        Some((head, span)) => table.put(tag, head, span).map_err(|NoRoom| partly)?,
        None => table.remove(tag, true),
    }
    Ok(wanted)
}

fn by_prefix(rules: impl Iterator<Item = (IpNet, Head, Span)>) -> BTreeMap<IpNet, Written> {
    let mut firsts = BTreeMap::new();
    let mut seconds = BTreeMap::new();
    for (prefix, head, span) in rules {
        let half = if head.is_second() { &mut seconds } else { &mut firsts };
        half.insert(prefix, (head, span));
    }
    let mut held: BTreeMap<IpNet, Written> = firsts
        .into_iter()
        .map(|(prefix, first)| (prefix, Written { first, second: seconds.remove(&prefix) }))
        .collect();
    // A second without a first was left by a process that was killed between the two.
    held.extend(
        seconds
            .into_iter()
            .map(|(prefix, second)| (prefix, Written { first: second, second: Some(second) })),
    );
    held
}

fn entry(head: Head, span: Span) -> Option<Entry> {
    let (action, origin) = (head.action()?, head.origin()?);
    Some(Entry { action, origin, until: BootTime(span.end_ns()) })
}

fn prefix_v4(tag: TagV4) -> IpNet {
    prefix(Source::V4(tag.address()), tag.length())
}

fn prefix_v6(tag: TagV6) -> IpNet {
    prefix(Source::V6(tag.address), tag.length)
}

fn prefix(source: Source, length: u32) -> IpNet {
    let address = IpAddr::from(source);
    let length = u8::try_from(length).unwrap_or(u8::MAX);
    IpNet::new(address, length).unwrap_or_else(|_| IpNet::from(address))
}

/// Refuses more rules of one family than `capacity`.
pub fn check_capacity<'a>(
    prefixes: impl Iterator<Item = &'a IpNet>,
    capacity: u32,
) -> Result<(), TablesError> {
    let (mut v4, mut v6) = (0, 0);
    for prefix in prefixes {
        match prefix {
            IpNet::V4(_) => v4 += 1,
            IpNet::V6(_) => v6 += 1,
        }
    }
    for (family, wanted) in [("IPv4", v4), ("IPv6", v6)] {
        if wanted > capacity as usize {
            return Err(TablesError::Full { family, wanted, capacity });
        }
    }
    Ok(())
}

/// The kernel tells it of every map that a process has open (`memlock` of bpf_map_show_fdinfo, kernel/bpf/syscall.c).
fn memory_bytes(find: &impl Fn(&str) -> Result<MapData, MapError>) -> Result<u64, TablesError> {
    let mut sum = 0;
    for map in layout::RULE_MAPS.into_iter().chain(layout::OTHER_MAPS) {
        let data = find(map).map_err(failed(map))?;
        let path = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
        let told = std::fs::read_to_string(path);
        let told = told.map_err(|source| TablesError::Memory { map, source })?;
        let bytes = told.lines().find_map(|line| line.strip_prefix("memlock:"));
        sum += bytes.and_then(|bytes| bytes.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

fn mapping(map: &'static str, data: &MapData) -> Result<Mapping, TablesError> {
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
