//! The program in the kernel, attached to nothing and pinned nowhere: for tests of its verdicts and for measurements.
//! What is written here enforces nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError};
use aya::programs::{ProgramError, Xdp};
use gateway_common::bucket::Bucket;
use gateway_common::layout::{self, Counter, Hits, Profile};
use gateway_common::rule::{Action, OWN_ADDRESS, Origin};
use gateway_common::source::SourceKey;
use gateway_common::table::{Head, Span, TagV4};
use gateway_common::verdict::Reason;
use ipnet::IpNet;

use super::DoorError;
use super::counters::Count;
use super::host::Host;
use super::object::{Capacity, LoadError, Switches, load_apart};
use super::tables::{Tables, TablesError};
use crate::base::time::BootTime;
use crate::rules::tables::{Pair, tag_v4};

/// The program and its maps.
pub struct Trial {
    object: Ebpf,
    tables: Tables,
    /// The networks with IPv4 rules.
    networks: BTreeSet<TagV4>,
}

impl Trial {
    /// Loads it.
    pub fn load(switches: Switches, capacity: Capacity) -> Result<Self, DoorError> {
        let object = load_apart(switches, capacity)?;
        let tables = Tables::open(|name| map(&object, name), capacity.rules)?;
        Ok(Self { object, tables, networks: BTreeSet::new() })
    }

    /// The tables once more, as another process would open them.
    pub fn reopen(&self, capacity: u32) -> Result<Tables, TablesError> {
        Tables::open(|name| self.map(name), capacity)
    }

    /// A map of the program.
    pub fn map(&self, name: &str) -> Result<MapData, MapError> {
        map(&self.object, name)
    }

    /// The program, to be run.
    pub fn program(&self) -> Result<&Xdp, DoorError> {
        let missing = || LoadError::Broken("it has no program".to_owned());
        let program = self.object.program(layout::PROGRAM).ok_or_else(missing)?;
        program.try_into().map_err(|error: ProgramError| LoadError::Program(error).into())
    }

    /// Writes one rule without an end, in the place of those that the prefix has.
    pub fn put(&mut self, prefix: IpNet, action: Action, profile: u8) -> Result<(), TablesError> {
        let head = Head::new(action, Origin::Operator, profile, false);
        self.write(prefix, ((head, Span::ALWAYS), None))
    }

    /// Writes two rules by what they do and when they hold.
    pub fn put_pair(
        &mut self,
        prefix: IpNet,
        first: (Action, Span),
        second: (Action, Span),
    ) -> Result<(), TablesError> {
        let head = |action, second| Head::new(action, Origin::Operator, 0, second);
        let second = (head(second.0, true), second.1);
        self.write(prefix, ((head(first.0, false), first.1), Some(second)))
    }

    /// Takes the rules of a prefix out.
    pub fn remove(&mut self, prefix: IpNet) {
        if let Some(tag) = tag_v4(&prefix) {
            self.networks.remove(&tag);
        }
        self.tables.rules.remove(prefix, Some(&self.networks));
    }

    fn write(&mut self, prefix: IpNet, rules: Pair) -> Result<(), TablesError> {
        let written = self.tables.rules.put(prefix, rules);
        match written {
            // What was there is still there, and what was begun is not.
            Err(_) if !self.tables.rules.has(&prefix) => self.remove(prefix),
            _ => self.networks.extend(tag_v4(&prefix)),
        }
        Ok(written?)
    }

    /// Writes a rule for an address as one of the host's own.
    pub fn own(&mut self, address: IpAddr) -> Result<(), TablesError> {
        let head = Head::new(Action::Allow, Origin::Protected, OWN_ADDRESS, false);
        self.write(IpNet::from(address), ((head, Span::ALWAYS), None))
    }

    /// Says that the rules for the host's own addresses are right at `now`.
    pub fn vouch(&self, now: BootTime) -> Result<(), TablesError> {
        Host::open(|name| self.map(name))?.vouch(now)
    }

    /// Writes the packet buckets of all profiles, the default one first.
    pub fn profiles(&mut self, profiles: &[Bucket]) -> Result<(), TablesError> {
        let connections = Bucket::UNLIMITED;
        let profiles = profiles.iter().map(|packets| Profile { packets: *packets, connections });
        self.tables.write_profiles(&profiles.collect::<Vec<_>>())
    }

    /// Writes the default profile.
    pub fn default_profile(&mut self, profile: Profile) -> Result<(), TablesError> {
        self.tables.write_profiles(&[profile])
    }

    /// Lets buckets apply to these ports.
    pub fn protect(&mut self, ports: impl IntoIterator<Item = u16>) -> Result<(), TablesError> {
        self.tables.write_ports(&ports.into_iter().collect())
    }

    /// What the first or the second rule of a prefix has met.
    pub fn hits(&self, prefix: IpNet, second: bool) -> Hits {
        self.tables.rules.hits(&prefix, second)
    }

    /// How many sources have a packet bucket.
    pub fn sources(&self) -> Result<usize, MapError> {
        let none = || MapError::InvalidName { name: layout::BUCKETS.to_owned() };
        let map = self.object.map(layout::BUCKETS).ok_or_else(none)?;
        Ok(HashMap::<_, SourceKey, u64>::try_from(map)?.keys().count())
    }

    /// What was done for one reason with packets that no rule decided about: read at once, where all counters take
    /// a millisecond or more.
    pub fn counter(&self, reason: Reason) -> Result<Counter, TablesError> {
        self.tables.counters.of_others(reason)
    }

    /// All counters.
    pub fn counters(&self) -> Result<Vec<Count>, TablesError> {
        self.tables.counters.all()
    }
}

fn map(object: &Ebpf, name: &str) -> Result<MapData, MapError> {
    match object.map(name) {
        Some(
            Map::Array(map) | Map::PerCpuArray(map) | Map::LruHashMap(map) | Map::RingBuf(map),
        ) => MapData::from_id(map.info()?.id()),
        _ => Err(MapError::InvalidName { name: name.to_owned() }),
    }
}
