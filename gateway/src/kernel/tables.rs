//! The maps in the kernel: written as a difference, read as they are.
//!
//! What the kernel holds is remembered here, so that a change costs what it changes. Additions come before removals: an
//! address goes from its old verdict to its new one without a moment in between.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use gateway_common::bucket::Bucket;
use gateway_common::layout::{
    self, Counter, Hits, LENGTH_WORDS, PROFILES_MAX, RuleKeyV4, RuleKeyV6, counter_index,
    length_bit_v4, length_bit_v6,
};
use gateway_common::rule::{Entry, Rules};
use gateway_common::source::{Source, V6};
use gateway_common::verdict::Reason;
use ipnet::IpNet;
use thiserror::Error;

use super::guard::{Cleared, ClearedPair, Compiled};
use crate::base::time::BootTime;

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
    rules_v4: HashMap<MapData, RuleKeyV4, Rules>,
    rules_v6: HashMap<MapData, RuleKeyV6, Rules>,
    lengths: Array<MapData, u64>,
    hits: Array<MapData, Hits>,
    profiles: Array<MapData, Bucket>,
    ports: Array<MapData, u64>,
    counters: PerCpuArray<MapData, Counter>,
    /// Rules of one family that fit.
    capacity: u32,
    held: BTreeMap<IpNet, Rules>,
    slots: Slots,
    /// What rules have met in maps that these take over from, by prefix, origin and action.
    inherited: BTreeMap<(IpNet, u8, u8), Hits>,
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
    /// Opens the maps by the path that `path` gives for each name, and reads which rules they hold.
    pub fn open(path: impl Fn(&str) -> std::path::PathBuf) -> Result<Self, TablesError> {
        let data = |map: &'static str| MapData::from_pin(path(map)).map_err(failed(map));
        let rules_v4 = data(layout::RULES_V4)?;
        let capacity = rules_v4.info().map_err(failed(layout::RULES_V4))?.max_entries();
        let mut tables = Self {
            rules_v4: open_as(layout::RULES_V4, rules_v4)?,
            rules_v6: open_as(layout::RULES_V6, data(layout::RULES_V6)?)?,
            lengths: open_as(layout::LENGTHS, data(layout::LENGTHS)?)?,
            hits: open_as(layout::HITS, data(layout::HITS)?)?,
            profiles: open_as(layout::PROFILES, data(layout::PROFILES)?)?,
            ports: open_as(layout::PORTS, data(layout::PORTS)?)?,
            counters: open_as(layout::COUNTERS, data(layout::COUNTERS)?)?,
            capacity,
            held: BTreeMap::new(),
            slots: Slots::default(),
            inherited: BTreeMap::new(),
        };
        tables.read_rules()?;
        Ok(tables)
    }

    /// Lets the same rules go on counting from what they have met in `before`.
    pub fn inherit(&mut self, before: &Self) -> Result<(), TablesError> {
        for (prefix, rules) in &before.held {
            for entry in [rules.first, rules.second].into_iter().filter(|entry| entry.action != 0) {
                let hits = before.hits(&entry)?;
                self.inherited.insert((*prefix, entry.origin, entry.action), hits);
            }
        }
        Ok(())
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
        let fits = |six: bool| {
            let is = |prefix: &&IpNet| matches!(prefix, IpNet::V6(_)) == six;
            let added = wanted.keys().filter(|prefix| !self.held.contains_key(*prefix));
            let count = self.held.keys().filter(is).count() + added.filter(is).count();
            count <= self.capacity as usize
        };
        // Only a table without room for both makes room first.
        let removals_first = !(fits(false) && fits(true));
        if removals_first {
            self.remove(&gone)?;
        }
        // A length is marked before its first rule exists and forgotten after its last one is gone.
        self.write_lengths(lengths_of(wanted.keys().chain(self.held.keys())))?;
        for (prefix, pair) in wanted {
            self.write(*prefix, pair)?;
        }
        if !removals_first {
            self.remove(&gone)?;
        }
        self.inherited.clear();
        self.write_lengths(lengths_of(self.held.keys()))
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
        self.write_lengths(lengths_of(self.held.keys().chain(after.keys())))?;
        for (prefix, pair) in changed {
            self.write(*prefix, pair)?;
        }
        self.remove(&gone)?;
        self.write_lengths(lengths_of(self.held.keys()))
    }

    /// Writes the buckets of all profiles, the default one first.
    pub fn write_profiles(&mut self, profiles: &[Bucket]) -> Result<(), TablesError> {
        for index in 0..PROFILES_MAX {
            let bucket = profiles.get(index as usize).copied().unwrap_or(Bucket::UNLIMITED);
            self.profiles.set(index, bucket, 0).map_err(failed(layout::PROFILES))?;
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

    /// What the kernel holds for a prefix, read from it now.
    pub fn rules(&self, prefix: &IpNet) -> Result<Option<Rules>, TablesError> {
        let length = u32::from(prefix.prefix_len());
        let found = match Source::from(prefix.addr()) {
            Source::V4(address) => self.rules_v4.get(&RuleKeyV4::new(address, length), 0),
            Source::V6(address) => self.rules_v6.get(&RuleKeyV6::new(address, length), 0),
        };
        match found {
            Ok(rules) => Ok(Some(rules)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(failed(layout::RULES_V4)(source)),
        }
    }

    /// The rule that decides about packets from `address` now, read from the kernel as its program reads it.
    pub fn find(
        &self,
        address: std::net::IpAddr,
        now: BootTime,
    ) -> Result<Option<(IpNet, Entry)>, TablesError> {
        let full = IpNet::from(address.to_canonical());
        for length in (0..=full.prefix_len()).rev() {
            let Ok(prefix) = IpNet::new(full.addr(), length) else { continue };
            let prefix = prefix.trunc();
            let live = self.rules(&prefix)?.and_then(|rules| rules.live(now.0).copied());
            if let Some(entry) = live {
                return Ok(Some((prefix, entry)));
            }
        }
        Ok(None)
    }

    /// What a rule has met so far; nothing if its slot has gone to another.
    pub fn hits(&self, entry: &Entry) -> Result<Hits, TablesError> {
        let hits = self.hits.get(&entry.slot, 0).map_err(failed(layout::HITS))?;
        Ok(if hits.generation == entry.generation { hits } else { Hits::default() })
    }

    fn read_rules(&mut self) -> Result<(), TablesError> {
        for item in self.rules_v4.iter() {
            let (key, rules) = item.map_err(failed(layout::RULES_V4))?;
            if let Some(prefix) = prefix_of(Source::V4(key.address), u64::from(key.length)) {
                self.held.insert(prefix, rules);
            }
        }
        for item in self.rules_v6.iter() {
            let (key, rules) = item.map_err(failed(layout::RULES_V6))?;
            let address = V6 { high: key.high, low: key.low };
            if let Some(prefix) = prefix_of(Source::V6(address), key.length) {
                self.held.insert(prefix, rules);
            }
        }
        self.slots = Slots::new(self.held.values().flat_map(slots_of));
        Ok(())
    }

    fn write(&mut self, prefix: IpNet, pair: &ClearedPair) -> Result<(), TablesError> {
        let held = self.held.get(&prefix).copied().unwrap_or_default();
        let rules = Rules {
            first: self.entry(prefix, &pair.first, &held)?,
            second: match &pair.second {
                Some(rule) => self.entry(prefix, rule, &held)?,
                None => Entry::default(),
            },
        };
        if rules == held {
            return Ok(());
        }
        let length = u32::from(prefix.prefix_len());
        match Source::from(prefix.addr()) {
            Source::V4(address) => self
                .rules_v4
                .insert(RuleKeyV4::new(address, length), rules, 0)
                .map_err(failed(layout::RULES_V4))?,
            Source::V6(address) => self
                .rules_v6
                .insert(RuleKeyV6::new(address, length), rules, 0)
                .map_err(failed(layout::RULES_V6))?,
        }
        self.held.insert(prefix, rules);
        let kept: Vec<u32> = slots_of(&rules).collect();
        self.slots.free.extend(slots_of(&held).filter(|slot| !kept.contains(slot)));
        Ok(())
    }

    /// The entry of a rule: with the slot that it has, so that it keeps its hits, or with a fresh one.
    fn entry(&mut self, prefix: IpNet, rule: &Cleared, held: &Rules) -> Result<Entry, TablesError> {
        let same = |entry: &&Entry| {
            entry.origin == rule.origin as u8 && entry.action == rule.action() as u8
        };
        if let Some(entry) = [&held.first, &held.second].into_iter().find(same) {
            return Ok(rule.entry(entry.slot, entry.generation));
        }
        let slot = self.slots.take();
        let old = self.hits.get(&slot, 0).map_err(failed(layout::HITS))?;
        let generation = old.generation.wrapping_add(1);
        let key = (prefix, rule.origin as u8, rule.action() as u8);
        let met = self.inherited.remove(&key).unwrap_or_default();
        self.hits.set(slot, Hits { generation, ..met }, 0).map_err(failed(layout::HITS))?;
        Ok(rule.entry(slot, generation))
    }

    fn remove(&mut self, prefixes: &[IpNet]) -> Result<(), TablesError> {
        for prefix in prefixes {
            let length = u32::from(prefix.prefix_len());
            let removed = match Source::from(prefix.addr()) {
                Source::V4(address) => self.rules_v4.remove(&RuleKeyV4::new(address, length)),
                Source::V6(address) => self.rules_v6.remove(&RuleKeyV6::new(address, length)),
            };
            match removed {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(failed(layout::RULES_V4)(source)),
            }
            if let Some(rules) = self.held.remove(prefix) {
                self.slots.free.extend(slots_of(&rules));
            }
        }
        Ok(())
    }

    fn write_lengths(&mut self, words: [u64; LENGTH_WORDS as usize]) -> Result<(), TablesError> {
        for (index, word) in (0..).zip(words) {
            self.lengths.set(index, word, 0).map_err(failed(layout::LENGTHS))?;
        }
        Ok(())
    }
}

/// Which slots of the table of hits are free.
#[derive(Debug, Default)]
struct Slots {
    free: Vec<u32>,
    next: u32,
}

impl Slots {
    fn new(used: impl Iterator<Item = u32>) -> Self {
        let used: BTreeSet<u32> = used.collect();
        let next = used.last().map_or(0, |slot| slot.saturating_add(1));
        let free = (0..next).filter(|slot| !used.contains(slot)).collect();
        Self { free, next }
    }

    /// A free slot. The table has two for each prefix of each family, so there is one whenever the prefix itself fits;
    /// past its end the kernel refuses the write.
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            let slot = self.next;
            self.next += 1;
            slot
        })
    }
}

fn slots_of(rules: &Rules) -> impl Iterator<Item = u32> + use<> {
    [rules.first, rules.second].into_iter().filter(|rule| rule.action != 0).map(|rule| rule.slot)
}

fn lengths_of<'a>(prefixes: impl Iterator<Item = &'a IpNet>) -> [u64; LENGTH_WORDS as usize] {
    let mut words = [0; LENGTH_WORDS as usize];
    for prefix in prefixes {
        let length = u32::from(prefix.prefix_len());
        let (index, bit) = match prefix {
            IpNet::V4(_) => (0, length_bit_v4(length)),
            IpNet::V6(_) => length_bit_v6(length),
        };
        if let Some(word) = words.get_mut(index as usize) {
            *word |= bit;
        }
    }
    words
}

fn prefix_of(source: Source, length: u64) -> Option<IpNet> {
    IpNet::new(source.into(), u8::try_from(length).ok()?).ok()
}

/// Refuses more rules of one family than a table holds.
pub fn check_capacity<'a>(
    prefixes: impl Iterator<Item = &'a IpNet>,
    capacity: u32,
) -> Result<(), TablesError> {
    let (v4, v6): (Vec<&IpNet>, Vec<&IpNet>) =
        prefixes.partition(|prefix| matches!(prefix, IpNet::V4(_)));
    for (family, wanted) in [("IPv4", v4.len()), ("IPv6", v6.len())] {
        if wanted > capacity as usize {
            return Err(TablesError::Full { family, wanted, capacity });
        }
    }
    Ok(())
}

fn open_as<T: TryFrom<Map, Error = MapError>>(
    name: &'static str,
    data: MapData,
) -> Result<T, TablesError> {
    Map::from_map_data(data).and_then(T::try_from).map_err(failed(name))
}

fn failed(map: &'static str) -> impl Fn(MapError) -> TablesError {
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
