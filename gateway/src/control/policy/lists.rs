//! Lists put in force and taken back: in the tables as a difference, while they are written beside what the disk has.
//! Both are done before anybody is told so; a kill before that leaves the version before on the disk, and the next
//! start goes back to it.

use std::sync::Arc;

use gateway_common::rule::Action;
use ipnet::IpNet;

use super::Policy;
use super::confirm::UNCONFIRMED;
use super::manual::large;
use crate::admin::api::{Done, PutList, Refusal, RemoveList};
use crate::admin::rules::ListView;
use crate::base::time::{BootTime, Now};
use crate::kernel::tables::TablesError;
use crate::rules::entries::Entries;
use crate::rules::list::{Kind, List, NAME_MAX_CHARS};
use crate::rules::list_file::Header;
use crate::rules::seats::SEAT_OTHERS;
use crate::store::lists::Writing;

/// Lists that there may be.
const LISTS_MAX: usize = 256;

impl Policy {
    /// Puts an imported list in force.
    pub fn put_list(&mut self, put: PutList, now: Now) -> Result<Done, Refusal> {
        let PutList { mut header, entries, yes, confirm_within_ms } = put;
        header.kind = Kind::Import;
        check_name(&header.name).map_err(Refusal::usage)?;
        if header.dry_run && header.action.name() == "allow" {
            return Err(Refusal::usage(
                "--dry-run is for what drops: an allow list that lets nobody in does nothing",
            ));
        }
        let prefixes = || entries.iter().map(|entry| entry.prefix);
        if !yes
            && header.action.name() == "deny"
            && let Some(large) = large("the list covers", prefixes)
        {
            return Err(Refusal::large(large));
        }
        if let Some(held) = self.rules.list(&header.name).filter(|held| held.kind != Kind::Import) {
            return Err(Refusal::failed(format!(
                "the list {} comes from the configuration ({}): choose another name with --list",
                held.name, held.source
            )));
        }
        let action = Action::from(header.action);
        if let Some(held) = self.rules.list(&header.name).filter(|held| held.action != action) {
            return Err(Refusal::failed(format!(
                "the list {} is one of {} now: choose another name with --list, or take that one \
                 back first with `gateway {} remove --list {}`",
                held.name,
                held.action.name(),
                held.action.name(),
                held.name
            )));
        }
        let mut done = Done::default();
        let mut list = list_of(header, entries, now);
        self.confirmed_list(&mut list, confirm_within_ms, now, &mut done)?;
        let (name, action, count) = (list.name.clone(), list.action.name(), list.entries.len());
        let is_new = self.rules.list(&name).is_none();
        let (added, removed) =
            self.replace_list(&name, Some(list), now).map_err(Refusal::failed)?;
        done.done.push(match is_new {
            false => format!(
                "{action} list {name}: {count} entries, {added} added or changed, {removed} removed"
            ),
            true => format!("{action} list {name}: {count} entries"),
        });
        if let Some(held_back @ 1..) = self.list_held_back(&name) {
            done.notes.push(format!(
                "{held_back} of its entries are held back: see `gateway {action} list --list {name}`"
            ));
        }
        Ok(done)
    }

    /// Takes an imported list back.
    pub fn remove_list(&mut self, remove: &RemoveList, now: Now) -> Result<Done, Refusal> {
        let action = Action::from(remove.action);
        let held = self.rules.list(&remove.name).filter(|list| list.action == action);
        let Some(list) = held else {
            return Err(Refusal::failed(format!(
                "there is no {} list {:?}: see `gateway lists`",
                action.name(),
                remove.name
            )));
        };
        let count = list.entries.len();
        if list.kind != Kind::Import {
            return Err(Refusal::failed(format!(
                "the list {} comes from the configuration ({}): take it out there and run \
                 `gateway reload`",
                list.name, list.source
            )));
        }
        let mut done = Done::default();
        // One that may come back stays as a list of nothing.
        let mut none = List { entries: Arc::default(), before: None, ..list.clone() };
        self.confirmed_list(&mut none, remove.confirm_within_ms, now, &mut done)?;
        let none = none.before.is_some().then_some(none);
        self.replace_list(&remove.name, none, now).map_err(Refusal::failed)?;
        done.done.push(format!("{} list {}: {count} entries removed", action.name(), remove.name));
        Ok(done)
    }

    /// Puts a list of the configuration in force. Answers how many entries came or changed, and how many went.
    pub(in crate::control) fn put_configured(
        &mut self,
        list: List,
        now: Now,
    ) -> anyhow::Result<(usize, usize)> {
        let of = |list: &List| (list.kind, list.action, list.dry_run);
        match self.rules.list(&list.name) {
            Some(held) if held.kind == Kind::Import => {
                anyhow::bail!(
                    "somebody imported a list {}: take that one back with `gateway {} remove \
                     --list {}`, or name this one otherwise",
                    held.name,
                    held.action.name(),
                    held.name
                )
            }
            Some(held)
                if of(held) == of(&list)
                    && held.source == list.source
                    && held.entries == list.entries =>
            {
                return Ok((0, 0));
            }
            _ => {}
        }
        let name = list.name.clone();
        self.replace_list(&name, Some(list), now)
    }

    /// The lists as people see them.
    pub fn list_views(&self) -> Vec<ListView> {
        let view = |list: &List| ListView {
            name: list.name.clone(),
            action: list.action.name().to_owned(),
            kind: list.kind.name().to_owned(),
            source: list.source.clone(),
            dry_run: list.dry_run,
            entries: list.entries.len(),
            created_utc_ms: list.created,
            memory_bytes: list.entries.memory_bytes(),
            checked_utc_ms: list.created,
            failures: 0,
            held_back: false,
            note: list.before.is_some().then(|| UNCONFIRMED.to_owned()),
            packets: self.met_by(list),
        };
        self.rules.lists().map(view).collect()
    }

    /// Packets that met a rule of a list; `None` where the kernel does not count them.
    pub fn met_by(&self, list: &List) -> Option<u64> {
        let door = self.door.as_ref().filter(|_| list.seat != SEAT_OTHERS)?;
        door.counters().lists.packets(list.seat).ok()
    }

    /// Puts a list in the place of the one of this name, or none: in the tables and in the store. What one of the two
    /// does not take is undone in the other. Answers how many entries came or changed, and how many went.
    pub(in crate::control) fn replace_list(
        &mut self,
        name: &str,
        list: Option<List>,
        now: Now,
    ) -> anyhow::Result<(usize, usize)> {
        if list.is_some() && self.rules.list(name).is_none() {
            let count = self.rules.lists().count();
            anyhow::ensure!(
                count < LISTS_MAX,
                "there are {count} lists already, as many as may be, which no setting changes: join some, or take \
                 one back with remove --list"
            );
        }
        let before = self.rules.list(name).cloned();
        let writing = list.as_ref().map(|list| self.store.begin_list(list)).transpose()?;
        let error = match self.exchange(name, list, now) {
            Ok(changes) => {
                let kept = match writing {
                    Some(writing) => writing.finish(),
                    None => self.store.remove_list(name),
                };
                match kept {
                    Ok(()) => return Ok(changes),
                    Err(error) => anyhow::Error::from(error),
                }
            }
            Err(error) => {
                writing.into_iter().for_each(Writing::abandon);
                error.into()
            }
        };
        self.exchange(name, before, now)?;
        self.lag = None;
        Err(error)
    }

    /// Exchanges a list in the set and enforces what is different. Answers how many entries came or changed, and how
    /// many went.
    fn exchange(
        &mut self,
        name: &str,
        list: Option<List>,
        now: Now,
    ) -> Result<(usize, usize), TablesError> {
        let old = match list {
            Some(list) => self.rules.insert_list(list),
            None => self.rules.remove_list(name),
        };
        if let Some(door) = &mut self.door {
            door.seat_lists(self.rules.seats())?;
        }
        let new = self.rules.list(name);
        let none = Entries::default();
        let [before, after] =
            [old.as_ref(), new].map(|list| list.map_or(&none, |list| &list.entries));
        let mut counts = (0, 0);
        let counted = before.difference(after).map(|(prefix, is_there)| {
            let count = if is_there { &mut counts.0 } else { &mut counts.1 };
            *count += 1;
            prefix
        });
        let changed: Vec<IpNet> = match (&old, new) {
            (Some(old), Some(new)) if old.decides_like(new) => counted.collect(),
            (old, new) => {
                counted.for_each(drop);
                old.iter().chain(new).flat_map(List::prefixes).collect()
            }
        };
        self.enforce(changed, now)?;
        Ok(counts)
    }

    fn list_held_back(&self, name: &str) -> Option<usize> {
        let list = self.rules.list(name)?;
        let has = |prefix: &&IpNet| list.entries.find(**prefix).is_some();
        Some(self.held_back.keys().filter(has).count())
    }
}

/// A list that is read now.
pub(in crate::control) fn list_of(
    header: Header,
    entries: impl Into<Arc<Entries>>,
    now: Now,
) -> List {
    let mut list = List {
        name: header.name,
        action: header.action.into(),
        kind: header.kind,
        source: header.source,
        dry_run: header.dry_run,
        reason: header.reason,
        created: now.utc,
        clocks: now,
        entries: entries.into(),
        before: None,
        swept: BootTime(0),
        seat: SEAT_OTHERS,
    };
    list.expire(now.boot);
    list
}

/// Refuses a name that would not do as one of a file.
pub(in crate::control) fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if (1..=NAME_MAX_CHARS).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no name for a list: 1 to {NAME_MAX_CHARS} of a to z, 0 to 9, - and _; \
         choose one with --list"
    ))
}
