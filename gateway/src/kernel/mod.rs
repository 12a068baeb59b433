//! The kernel door: enforces the rules by XDP. Never sees a request.
//!
//! [`Door::open`] loads the program and puts it in force with its maps filled, or leaves everything as it was. What it
//! does outlives the process; an opened door only writes the maps and reads what the kernel reports.

use std::collections::BTreeSet;
use std::time::Instant;

use aya::maps::MapData;
use gateway_common::layout::{self, Hits, Profile, SLOT_OTHERS, SLOTS_LEN};
use ipnet::IpNet;
use thiserror::Error;

use crate::base::time::{BootTime, Now};
use crate::config::{self, ProtectedPorts};
use crate::rules::classify::Entry;
use crate::rules::seats::Seats;
use crate::rules::tables::{Reader, RuleTables};

pub mod apply;
pub mod attach;
pub mod buckets;
pub mod carry;
pub mod census;
pub mod counters;
pub mod events;
pub mod guard;
pub mod host;
pub mod interfaces;
pub mod lists;
pub mod netlink;
pub mod object;
pub mod pins;
pub mod ring;
pub mod slots;
pub mod support;
pub mod tables;
pub mod tally;
pub mod trial;

use apply::Wanted;
use attach::{AttachError, Attached, Relinked};
use census::Census;
use counters::Counters;
use host::Host;
use interfaces::{Change, Interfaces, Seen};
use object::{Capacity, LoadError, Loaded, Switches};
use pins::{Pins, PinsError};
use ring::Ring;
use slots::{OTHERS, Slots};
use tables::{Tables, TablesError};

/// Why the kernel door is shut.
#[derive(Debug, Error)]
pub enum DoorError {
    /// The process may not open it.
    #[error("{} missing: start the gateway as root, or as a service with these capabilities", .0.join(" and "))]
    Privileges(Vec<&'static str>),
    /// The pins.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The program.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An interface.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The maps.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// What was done could not be undone.
    #[error("{0}; and {1}")]
    Half(Box<DoorError>, String),
}

impl DoorError {
    /// Whether the host cannot have a kernel door, so that user space may enforce alone. Anything else is a mistake
    /// that somebody has to correct.
    pub fn is_lack_of_support(&self) -> bool {
        matches!(self, Self::Privileges(_))
            || matches!(self, Self::Load(error @ (LoadError::Object(_) | LoadError::Program(_)))
                if !error.is_out_of_memory())
            || matches!(self, Self::Pins(PinsError::NoFileSystem { .. }))
    }
}

/// The open kernel door.
pub struct Door {
    pins: Pins,
    tables: Tables,
    host: Host,
    interfaces: Interfaces,
}

/// What opening the door came to.
pub struct Opened {
    /// The door.
    pub door: Door,
    /// The interfaces that it was attached to anew, each with its mode.
    pub attached: Vec<Attached>,
    /// Pin folders of other ABI versions that were cleared away.
    pub removed: Vec<String>,
}

impl Door {
    /// Loads the program, fills the maps and attaches it to every interface of the configuration that is here; the
    /// others may come. A program that is attached already is replaced in one step, and stays when an interface refuses
    /// the new one. `owner` is the user whose pins are taken over besides root's.
    pub fn open(
        pins: &mut Pins,
        config: &config::Config,
        wanted: Wanted<'_>,
        owner: u32,
    ) -> Result<Opened, DoorError> {
        let kernel = &config.kernel;
        let missing = support::missing();
        if !missing.is_empty() {
            return Err(DoorError::Privileges(missing));
        }
        pins.prepare(owner)?;
        let pins = pins.clone();
        for interface in &kernel.interfaces {
            attach::check(interface, &pins)?;
        }
        if let Err(error) = recover(&pins) {
            tracing::warn!(%error, "what a start left that was killed cannot be cleared up first");
        }
        Self::take_over(&pins, config, wanted)
    }

    fn take_over(
        pins: &Pins,
        config: &config::Config,
        wanted: Wanted<'_>,
    ) -> Result<Opened, DoorError> {
        let kernel = &config.kernel;
        let capacity = Capacity { rules: kernel.max_rules, sources: kernel.max_sources };
        let mut loaded = object::load(pins, switches(kernel), capacity, &kernel.interfaces)?;
        let mut links = Links::default();
        let switched = switch(&mut loaded, &mut links, (pins, config, wanted));
        let (mut tables, host) = switched.map_err(|error| {
            let undone = links.relinked.iter().rev().filter_map(|link| link.undo(pins).err());
            let left = undone.reduce(|all, one| format!("{all}; {one}"));
            // What led to the error is worth telling, not that its remains are left to the next start.
            if !links.ran {
                drop(pins.remove_other(&loaded.staged));
            }
            drop(recover(pins));
            match left {
                Some(left) => DoorError::Half(Box::new(error), left),
                None => error,
            }
        })?;
        let removed = settle(pins, &mut tables).unwrap_or_else(|error| {
            // What is wanted is in force all the same.
            tracing::error!(%error, "what was in force before stays until the next start");
            Vec::new()
        });
        let attached = links.relinked.into_iter().filter_map(|link| link.attached).collect();
        let interfaces = Interfaces::new(&kernel.interfaces, kernel.attach);
        let door = Self { pins: pins.clone(), tables, host, interfaces };
        Ok(Opened { door, attached, removed })
    }

    /// The door that a gateway left open, if one did.
    pub fn pinned(pins: &Pins) -> Result<Option<Self>, DoorError> {
        if !pins.exist()? {
            return Ok(None);
        }
        let interfaces = pins.linked()?;
        if interfaces.is_empty() {
            return Ok(None);
        }
        pins.check_version()?;
        recover(pins)?;
        // No bound: whoever opens a door that was left takes rules back and adds none.
        let tables = Tables::open(|name| MapData::from_pin(pins.map(name)), u32::MAX)?;
        let host = Host::open(|name| MapData::from_pin(pins.map(name)))?;
        let interfaces = Interfaces::new(&interfaces, config::Attach::Auto);
        Ok(Some(Self { pins: pins.clone(), tables, host, interfaces }))
    }

    /// The rules that the kernel enforces.
    pub fn rules(&mut self) -> &mut RuleTables {
        &mut self.tables.rules
    }

    /// Says whose the seats of lists are, see [`lists::Lists::seat`].
    pub fn seat_lists(&mut self, seats: &Seats) -> Result<(), TablesError> {
        self.tables.counters.lists.seat(seats)
    }

    /// Somebody who looks up what the kernel enforces.
    pub fn reader(&self) -> Reader {
        self.tables.rules.reader()
    }

    /// Says that the rules for the host's own addresses are right at `now`.
    pub fn vouch(&mut self, now: BootTime) -> Result<(), TablesError> {
        self.host.vouch(now)
    }

    /// What the maps cost the host (unit: bytes).
    pub fn memory_bytes(&self) -> u64 {
        self.tables.memory_bytes()
    }

    /// What the program counted.
    pub fn counters(&self) -> &Counters {
        &self.tables.counters
    }

    /// What each interface runs at this moment, as the kernel reports it: `None` where nothing does.
    pub fn running(&self) -> Vec<(String, Option<netlink::Mode>)> {
        self.interfaces().into_iter().map(|seen| (seen.name, seen.mode)).collect()
    }

    /// Each interface at this moment, with the reason where it runs nothing.
    pub fn interfaces(&self) -> Vec<Seen> {
        self.interfaces.seen(&self.pins)
    }

    /// Attaches to interfaces that have come, and tells what changed since the last time.
    pub fn look_after(&mut self, now: Instant) -> Vec<Change> {
        self.interfaces.look_after(&self.pins, &mut self.tables.counters.slots, now)
    }

    /// What the dry run of a list has met, where nothing else holds for the prefix.
    pub fn tried(&self, prefix: &IpNet) -> Option<Hits> {
        self.tables.tried(prefix)
    }

    /// The rules that the kernel holds for a prefix, each with what it has met.
    pub fn held(&self, prefix: &IpNet) -> Vec<(Entry, Hits)> {
        self.tables.held(prefix)
    }

    /// Where the program reports dropped packets. Runs inside of a runtime.
    pub fn ring(&self) -> Result<Ring, TablesError> {
        let map = layout::EVENTS;
        let data = MapData::from_pin(self.pins.map(map));
        Ring::open(data.map_err(|source| TablesError::Map { map, source })?)
    }

    /// The tables, to be counted by another thread.
    pub fn census(&self) -> Result<Census, TablesError> {
        Census::open(|map| MapData::from_pin(self.pins.map(map)))
    }

    /// Hands the pins to the user that the daemon becomes.
    pub fn give_to(&self, user: u32, group: u32) -> Result<(), PinsError> {
        self.pins.give_to(user, group)
    }

    /// Ends all enforcement in the kernel and removes every pin. Answers the interfaces.
    pub fn detach(&self) -> Result<Vec<String>, PinsError> {
        self.pins.remove_all()
    }
}

/// Gives the interfaces their slots of the counters, first those that had one before, and last those that are about to
/// be taken off.
fn seat(slots: &mut Slots, interfaces: &[String], pins: &Pins) -> Result<(), DoorError> {
    let before = slots::names_at(&pins.map(layout::INTERFACES));
    let (known, new): (Vec<_>, Vec<_>) = interfaces.iter().partition(|name| before.contains(name));
    let linked = pins.linked()?;
    for interface in known.into_iter().chain(new).chain(&linked) {
        if slots.seat(interface)? == SLOT_OTHERS {
            tracing::warn!(
                interface,
                "counted as {OTHERS}: the map {} has slots for {} interfaces, which no setting changes",
                layout::INTERFACES,
                SLOTS_LEN - 1
            );
        }
    }
    Ok(())
}

/// What was done to links on the way to what is wanted.
#[derive(Default)]
struct Links {
    relinked: Vec<Relinked>,
    /// Whether any of them ran what was loaded, which then may have counted.
    ran: bool,
}

/// Puts a loaded program in force. New links come first, and those that are not wanted any more go, for only that can
/// be refused, and undone; the rules follow once nothing stands in their way, then one step makes all of it what is in
/// force, and last the links that are only given another program follow. After an error what was done to `links` is to
/// be undone.
fn switch(
    loaded: &mut Loaded,
    links: &mut Links,
    (pins, config, wanted): (&Pins, &config::Config, Wanted<'_>),
) -> Result<(Tables, Host), DoorError> {
    let kernel = &config.kernel;
    let staged = loaded.staged.clone();
    let find = |name: &str| MapData::from_pin(staged.join(name));
    let mut tables = Tables::open(find, kernel.max_rules)?;
    if let Err(error) = carry::describe(&staged.join(layout::COUNTERS)) {
        tracing::error!(%error, "another version will not be able to read them");
    }
    apply::check(&tables.rules, wanted).map_err(TablesError::from)?;
    seat(&mut tables.counters.slots, &kernel.interfaces, pins)?;
    tables.counters.lists.seat(wanted.rules.seats())?;
    for interface in &kernel.interfaces {
        match attach::is_updatable(interface, kernel.attach, pins) {
            Ok(true) => {}
            Ok(false) => match attach::attach(loaded.program()?, interface, kernel.attach, pins) {
                Err(AttachError::Absent { .. }) => {}
                attached => {
                    links.relinked.push(attached?);
                    links.ran = true;
                }
            },
            Err(AttachError::Absent { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for linked in pins.linked()?.into_iter().filter(|linked| !kernel.interfaces.contains(linked)) {
        links.relinked.push(attach::detach(linked, pins)?);
    }
    tables.write_profiles(&profiles(kernel))?;
    tables.write_ports(&protected_ports(config))?;
    apply::apply_all(&mut tables.rules, wanted).map_err(TablesError::from)?;
    let mut host = Host::open(find)?;
    host.vouch(Now::read().boot)?;
    // Before anybody is let in by them; what is taken from the old ones meanwhile follows as the counters do.
    for before in pins.others()?.into_iter().chain([pins.maps()]) {
        buckets::carry(&before, &staged, false);
    }
    pins.commit(&staged)?;
    links.ran = true;
    if let Err(error) = attach::update_all(pins) {
        pins.revoke(&staged)?;
        return Err(error.into());
    }
    Ok((tables, host))
}

/// Ends what took over: every link runs what is in force, and what all others have counted moves there. It may be
/// killed anywhere and done again. Answers the folders of other ABI versions that are gone.
fn settle(pins: &Pins, tables: &mut Tables) -> Result<Vec<String>, DoorError> {
    let others = pins.others()?;
    if others.is_empty() {
        return Ok(Vec::new());
    }
    attach::update_all(pins)?;
    carry::let_finish();
    let mut removed = Vec::new();
    for folder in others {
        carry::all(&folder, pins, tables);
        removed.extend(pins.remove_other(&folder)?);
    }
    Ok(removed)
}

/// Goes on where somebody was killed, or was refused: forward where that one had put in force what it began, else back.
fn recover(pins: &Pins) -> Result<(), DoorError> {
    let others = pins.others()?;
    if others.is_empty() {
        return Ok(());
    }
    carry::end_what_was_begun(&others, pins)?;
    if pins.maps().exists() {
        let mut tables = Tables::open(|name| MapData::from_pin(pins.map(name)), u32::MAX)?;
        settle(pins, &mut tables)?;
    } else if pins.linked()?.is_empty() {
        // Nobody runs any of it, and what other versions counted is not ours to forget.
        pins.staged()?.iter().try_for_each(|staged| pins.remove_other(staged).map(drop))?;
    }
    Ok(())
}

/// What of the program is executed at all.
fn switches(kernel: &config::Kernel) -> Switches {
    // A command may assign any of them at any time.
    let buckets = !kernel.profiles.is_empty();
    // The protected addresses are rules, so there always are some.
    Switches {
        rules: true,
        buckets,
        dry_run: kernel.dry_run,
        ipv6_source_length: kernel.ipv6_source_length,
        new_sources: kernel.new_sources,
        unknown_sources: kernel.unknown_sources,
        events: kernel.events,
        resets: kernel.resets,
        hygiene: kernel.hygiene,
        spare_loopback: kernel.interfaces.iter().any(|interface| interface == "lo"),
        host_limits: kernel.host_limits,
    }
}

/// The profiles as the kernel's table has them: the default one first, then all in the order of the configuration.
fn profiles(kernel: &config::Kernel) -> Vec<Profile> {
    let of = |profile: &config::Profile| Profile {
        packets: profile.packets,
        connections: profile.connections,
    };
    let default = kernel.default_profile.and_then(|index| kernel.profiles.get(index));
    let default = default.map_or(Profile::UNLIMITED, of);
    std::iter::once(default).chain(kernel.profiles.iter().map(of)).collect()
}

fn protected_ports(config: &config::Config) -> BTreeSet<u16> {
    match &config.kernel.protected_ports {
        ProtectedPorts::Listeners => config.listen.iter().map(|on| on.address.port()).collect(),
        ProtectedPorts::Ports(ports) => ports.iter().copied().collect(),
    }
}
