//! The embedded store: what was acknowledged to somebody survives `kill -9`, a restart and a reboot.
//!
//! One file: rules by prefix and origin and bans by subject, as JSON. Every change of rules is one transaction that is
//! on the disk before it returns; bans follow within moments. Times are UTC; the kernel's own time is kept beside them
//! and believed within the same boot, so that a step of the wall clock changes no live expiry.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gateway_common::rule::{Action, Origin};
use ipnet::IpNet;
use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::base::time::{BootTime, Now, UtcMillis};
use crate::rules::list_file::Malformed;
use crate::rules::seats::Seats;
use crate::rules::{Change, Key, Pending, Rule, RuleSet, Until};

pub mod bans;
pub mod keys;
pub mod lists;
pub mod names;
pub mod nonces;
pub mod spread;

const RULES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rules");
/// What waits to be confirmed, by the key of its rule.
const PENDING: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("pending");
/// What the rules of commands do.
const ACTIONS: [Action; 4] = [Action::Allow, Action::Deny, Action::Limit, Action::Reset];
const FILE: &str = "gateway.redb";
/// What the gateway puts into `state.dir`.
pub const FILES: [&str; 5] = [FILE, keys::FILE, spread::FILE, nonces::FILE, lists::FOLDER];

/// Why the store could not be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// It was released for another process.
    #[error("the store is being handed over to another gateway: try again in a moment")]
    Released,
    /// Another process has it.
    #[error(
        "{path} is in use by another gateway: end that one, or give this one a state.dir of its own"
    )]
    InUse {
        /// The file.
        path: String,
    },
    /// The directory or file cannot be used.
    #[error("{path}: {source}; state.dir must be a directory that the gateway may write to")]
    Io {
        /// The file or directory.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a store, or is broken.
    #[error("{path}: {source}; move it away to start with an empty one")]
    Database {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: Box<redb::Error>,
    },
    /// What is written behind cannot be.
    #[error("{path}: {reason}; what was asked for is not on the disk, so nothing is promised")]
    Behind {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A list file is not one, or is broken.
    #[error("{path}: {source}; move it away to start without this list, and import it again")]
    List {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: Malformed,
    },
    /// An entry makes no sense.
    #[error("{path}: the entry {key} cannot be read ({reason}); it was written by another version")]
    Entry {
        /// The file.
        path: String,
        /// Its key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The open store. The file is locked against a second one.
pub struct Store {
    /// `None` while it is released.
    database: Option<Arc<Database>>,
    path: PathBuf,
    boot: String,
}

/// A rule as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    action: String,
    /// Name of the profile of a `limit` rule.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    profile: String,
    reason: String,
    created: UtcMillis,
    until: Option<UtcMillis>,
    /// The boot in which `until_boot` means anything.
    boot: String,
    until_boot: BootNanos,
}

/// A change that waits to be confirmed as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct StoredPending {
    /// Absent where an earlier version wrote it.
    #[serde(default)]
    made: Option<UtcMillis>,
    deadline: UtcMillis,
    /// The boot in which `deadline_boot` means anything.
    boot: String,
    deadline_boot: BootNanos,
    then: Option<Stored>,
}

type BootNanos = u64;
type Waiting = Vec<(Key, Pending)>;

impl Store {
    /// Opens the store in a directory, making both if they are not there.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let created = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        created.map_err(|source| io_error(directory, source))?;
        let path = directory.join(FILE);
        let database = Some(Arc::new(database(&path)?));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(|source| io_error(&path, source))?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Self { database, path, boot: boot.trim().to_owned() })
    }

    /// Lets another process have it. Until it is reopened every use is an error.
    pub fn release(&mut self) {
        self.database = None;
    }

    /// Takes it back after [`Store::release`].
    pub fn reopen(&mut self) -> Result<(), StoreError> {
        if self.database.is_none() {
            self.database = Some(Arc::new(database(&self.path)?));
        }
        Ok(())
    }

    /// Whether there is one in a directory, as far as this user may see.
    pub fn exists(directory: &Path) -> bool {
        directory.join(FILE).exists()
    }

    /// Everything that has not ended. `seats`: those of the lists.
    pub fn rule_set(&self, seats: Seats, now: Now) -> Result<RuleSet, StoreError> {
        let mut set = RuleSet::with_seats(seats);
        for rule in self.rules(now)? {
            set.insert(rule);
        }
        let (pending, of_other_boots) = self.pending(now)?;
        self.change(&Change { pend: of_other_boots, ..Change::default() })?;
        set.change(&Change { pend: pending, ..Change::default() });
        let mut lists = self.lists(now)?;
        // Those that have a seat first: as long as they are not there, they seem to be gone.
        lists.sort_by_key(|list| !set.seats().has(&list.name));
        lists.into_iter().for_each(|list| drop(set.insert_list(list)));
        // What nobody confirmed while no gateway ran has gone back in the kernel already.
        self.change(&set.expire(now.boot).change())?;
        Ok(set)
    }

    /// What waits to be confirmed, and which of that was kept by the clock of another boot.
    fn pending(&self, now: Now) -> Result<(Waiting, Waiting), StoreError> {
        let transaction = self.database()?.begin_read().map_err(|error| self.failed(error))?;
        let table = match transaction.open_table(PENDING) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Default::default()),
            Err(error) => return Err(self.failed(error)),
        };
        let (mut pending, mut of_other_boots) = (Vec::new(), Vec::new());
        for entry in table.iter().map_err(|error| self.failed(error))? {
            let (key, value) = entry.map_err(|error| self.failed(error))?;
            let bad = |reason: String| self.bad_entry(key.value(), reason);
            let stored: StoredPending =
                serde_json::from_slice(value.value()).map_err(|error| bad(error.to_string()))?;
            let then = stored.then.map(|then| self.rule(key.value(), then, now)).transpose()?;
            let made = stored.made.unwrap_or(UtcMillis(0));
            let span = (made, Some(stored.deadline));
            let deadline = self.until(span, &stored.boot, stored.deadline_boot, now);
            let (prefix, origin) = self.key_of(key.value())?;
            let then = then.map(|(rule, _)| rule);
            let one = ((prefix, origin), Pending { made, deadline, then });
            if stored.boot != self.boot {
                of_other_boots.push(one.clone());
            }
            pending.push(one);
        }
        Ok((pending, of_other_boots))
    }

    /// Every rule that has not ended. Those that have are forgotten, and those of another boot are kept from now on by
    /// this boot's clock.
    fn rules(&self, now: Now) -> Result<Vec<Rule>, StoreError> {
        let transaction = self.database()?.begin_read().map_err(|error| self.failed(error))?;
        let table = match transaction.open_table(RULES) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(self.failed(error)),
        };
        let (mut rules, mut over, mut of_other_boots) = (Vec::new(), Vec::new(), Vec::new());
        for entry in table.iter().map_err(|error| self.failed(error))? {
            let (key, value) = entry.map_err(|error| self.failed(error))?;
            let (rule, is_of_this_boot) = self.read(key.value(), value.value(), now)?;
            if rule.is_over(now.boot) {
                over.push((rule.prefix, rule.origin));
                continue;
            }
            if !is_of_this_boot {
                of_other_boots.push(rule.clone());
            }
            rules.push(rule);
        }
        if !over.is_empty() || !of_other_boots.is_empty() {
            let change = Change { put: of_other_boots, remove: over, ..Change::default() };
            self.change(&change)?;
        }
        Ok(rules)
    }

    /// Makes a change in one transaction: on the disk when this returns, or not at all.
    pub fn change(&self, change: &Change) -> Result<(), StoreError> {
        let Change { put, remove, pend, settle } = change;
        if change.keys().next().is_none() {
            return Ok(());
        }
        let transaction = self.database()?.begin_write().map_err(|error| self.failed(error))?;
        if !pend.is_empty() || !settle.is_empty() {
            let mut table = transaction.open_table(PENDING).map_err(|error| self.failed(error))?;
            for (prefix, origin) in settle {
                let key = key(prefix, *origin);
                table.remove(key.as_str()).map_err(|error| self.failed(error))?;
            }
            for ((prefix, origin), Pending { made, deadline, then }) in pend {
                let key = key(prefix, *origin);
                let stored = StoredPending {
                    made: Some(*made),
                    deadline: deadline.utc.unwrap_or(UtcMillis(u64::MAX)),
                    boot: self.boot.clone(),
                    deadline_boot: deadline.boot.0,
                    then: then.as_ref().map(|rule| self.stored(rule)),
                };
                let value = serde_json::to_vec(&stored)
                    .map_err(|error| self.bad_entry(&key, error.to_string()))?;
                table.insert(key.as_str(), value.as_slice()).map_err(|error| self.failed(error))?;
            }
        }
        {
            let mut table = transaction.open_table(RULES).map_err(|error| self.failed(error))?;
            for (prefix, origin) in remove {
                let key = key(prefix, *origin);
                table.remove(key.as_str()).map_err(|error| self.failed(error))?;
            }
            for rule in put {
                let key = key(&rule.prefix, rule.origin);
                let value = serde_json::to_vec(&self.stored(rule))
                    .map_err(|error| self.bad_entry(&key, error.to_string()))?;
                table.insert(key.as_str(), value.as_slice()).map_err(|error| self.failed(error))?;
            }
        }
        transaction.commit().map_err(|error| self.failed(error))
    }

    /// Hands the files to the user that the daemon becomes.
    pub fn give_to(&self, user: u32, group: u32) -> Result<(), StoreError> {
        let mut paths = vec![self.path.clone()];
        let others = [keys::FILE, names::FILE, nonces::FILE];
        let others = others.map(|file| self.path.with_file_name(file));
        paths.extend(others.into_iter().filter(|path| path.exists()));
        paths.extend(self.list_paths()?);
        for path in paths {
            chown(&path, Some(user), Some(group)).map_err(|source| io_error(&path, source))?;
        }
        Ok(())
    }

    fn stored(&self, rule: &Rule) -> Stored {
        Stored {
            action: rule.action.name().to_owned(),
            profile: rule.profile_name.clone(),
            reason: rule.reason.clone(),
            created: rule.created,
            until: rule.until.utc,
            boot: self.boot.clone(),
            until_boot: rule.until.boot.0,
        }
    }

    /// The rule of an entry, and whether its end needs no reading by this boot's clock.
    fn read(&self, key: &str, value: &[u8], now: Now) -> Result<(Rule, bool), StoreError> {
        let stored: Stored = serde_json::from_slice(value)
            .map_err(|error| self.bad_entry(key, error.to_string()))?;
        self.rule(key, stored, now)
    }

    fn rule(&self, key: &str, stored: Stored, now: Now) -> Result<(Rule, bool), StoreError> {
        let (prefix, origin) = self.key_of(key)?;
        let action = ACTIONS.into_iter().find(|action| action.name() == stored.action);
        let action =
            action.ok_or_else(|| self.bad_entry(key, "its action is unknown".to_owned()))?;
        let is_of_this_boot = stored.until.is_none() || stored.boot == self.boot;
        let span = (stored.created, stored.until);
        let until = self.until(span, &stored.boot, stored.until_boot, now);
        let Stored { profile: profile_name, reason, created, .. } = stored;
        // Which place a profile has, only the configuration knows.
        let profile = 0;
        let rule = Rule { prefix, action, origin, profile, profile_name, reason, created, until };
        Ok((rule, is_of_this_boot))
    }

    /// The end of what was made at a time of the wall clock, as it is kept: within one boot the kernel's clock is
    /// believed. After a reboot it is the wall clock, but if that is wrong nothing lasts longer than it was made for.
    fn until(
        &self,
        (made, utc): (UtcMillis, Option<UtcMillis>),
        boot: &str,
        boot_ns: BootNanos,
        now: Now,
    ) -> Until {
        let Some(end) = utc else { return Until::NEVER };
        if boot == self.boot {
            return Until { boot: BootTime(boot_ns), utc };
        }
        let latest = now.utc.after(end.since(made));
        // What is kept stays the moment that was meant: the clock may be right after the next reboot.
        Until { boot: now.boot_of(end.min(latest)), utc }
    }

    fn key_of(&self, key: &str) -> Result<Key, StoreError> {
        let bad = |reason: &str| self.bad_entry(key, reason.to_owned());
        let (prefix, origin) = key.split_once(' ').ok_or_else(|| bad("its key has no origin"))?;
        let prefix = prefix.parse().map_err(|_| bad("its key has no prefix"))?;
        let origin = Origin::ALL.into_iter().find(|known| known.name() == origin);
        Ok((prefix, origin.ok_or_else(|| bad("its origin is unknown"))?))
    }

    fn database(&self) -> Result<&Database, StoreError> {
        self.database.as_deref().ok_or(StoreError::Released)
    }

    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        database_error(&self.path, error)
    }

    /// An entry of this store makes no sense.
    pub fn bad_entry(&self, key: &str, reason: String) -> StoreError {
        StoreError::Entry { path: self.path.display().to_string(), key: key.to_owned(), reason }
    }
}

fn key(prefix: &IpNet, origin: Origin) -> String {
    format!("{prefix} {}", origin.name())
}

fn database(path: &Path) -> Result<Database, StoreError> {
    Database::create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => {
            StoreError::InUse { path: path.display().to_string() }
        }
        DatabaseError::Storage(redb::StorageError::Io(source))
            if source.kind() != io::ErrorKind::InvalidData =>
        {
            io_error(path, source)
        }
        other => database_error(path, other),
    })
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { path: path.display().to_string(), source }
}

fn database_error(path: &Path, source: impl Into<redb::Error>) -> StoreError {
    StoreError::Database { path: path.display().to_string(), source: Box::new(source.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::entries::Builder;
    use crate::rules::list::{Before, Kind, List};
    use std::time::Duration;

    const NOW: Now = Now { boot: BootTime(9_000_000_000), utc: UtcMillis(1_800_000_000_000) };

    fn rule(prefix: &str, seconds: Option<u64>) -> Rule {
        Rule {
            prefix: prefix.parse().unwrap(),
            action: Action::Deny,
            origin: Origin::Operator,
            profile: 0,
            profile_name: String::new(),
            reason: "scans".to_owned(),
            created: NOW.utc,
            until: Until::after(NOW, seconds.map(Duration::from_secs)),
        }
    }

    fn put(put: Vec<Rule>) -> Change {
        Change { put, ..Change::default() }
    }

    #[test]
    fn what_nobody_confirmed_is_undone_also_while_no_gateway_runs() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let [new, old] = ["192.0.2.1/32", "192.0.2.2/32"].map(|prefix| rule(prefix, None));
        let key = |rule: &Rule| (rule.prefix, rule.origin);
        let deadline = Until::after(NOW, Some(Duration::from_secs(60)));
        let pend = vec![
            (key(&new), Pending { made: NOW.utc, deadline, then: None }),
            (key(&old), Pending { made: NOW.utc, deadline, then: Some(old.clone()) }),
        ];
        store.change(&Change { put: vec![new.clone()], pend, ..Change::default() }).unwrap();
        let set = store.rule_set(Seats::default(), NOW).unwrap();
        assert_eq!((set.iter().count(), set.pending().count()), (1, 2));
        let late = Now { boot: deadline.boot, utc: deadline.utc.unwrap() };
        for _ in 0..2 {
            let set = store.rule_set(Seats::default(), late).unwrap();
            assert!(set.iter().eq([&old]), "the new one is gone, the old one is back");
            assert_eq!(set.pending().count(), 0);
        }
    }

    #[test]
    fn what_was_put_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let rules = [rule("192.0.2.1/32", None), rule("2001:db8::/32", Some(60))];
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.rules(NOW).unwrap(), []);
        store.change(&put(rules.to_vec())).unwrap();
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.rules(NOW).unwrap(), rules);
        let remove = vec![(rules[0].prefix, Origin::Operator)];
        store.change(&Change { remove, ..Change::default() }).unwrap();
        assert_eq!(store.rules(NOW).unwrap(), rules[1..]);
    }

    #[test]
    fn a_clock_step_within_one_boot_changes_no_expiry_and_a_reboot_goes_by_the_wall_clock() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.change(&put(vec![rule("192.0.2.1/32", Some(60))])).unwrap();
        let stepped = Now { boot: BootTime(10_000_000_000), utc: UtcMillis(NOW.utc.0 + 3_600_000) };
        assert_eq!(store.rules(stepped).unwrap()[0].until.boot, BootTime(69_000_000_000));
        store.boot = "another boot".to_owned();
        let early = Now { boot: BootTime(1_000_000_000), utc: UtcMillis(NOW.utc.0 + 30_000) };
        let until = BootTime(31_000_000_000);
        assert_eq!(store.rules(early).unwrap()[0].until.boot, until);
        // From now on that boot's clock decides: a step and a second start change nothing.
        let stepped = Now { boot: BootTime(2_000_000_000), utc: stepped.utc };
        assert_eq!(store.rules(stepped).unwrap()[0].until.boot, until);
        store.boot = "a third boot".to_owned();
        assert_eq!(store.rules(stepped).unwrap(), [], "an hour later by the only clock left");
        assert_eq!(store.rules(early).unwrap(), [], "what has ended does not come back");
    }

    #[test]
    fn after_a_reboot_with_a_wrong_clock_nothing_lasts_longer_than_it_was_made_for() {
        const MINUTE_MS: u64 = 60_000;
        const MONTH_MS: u64 = 30 * 24 * 60 * MINUTE_MS;
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let limited = rule("192.0.2.1/32", Some(3600));
        let deadline = Until::after(NOW, Some(Duration::from_secs(60)));
        let pend = Pending { made: NOW.utc, deadline, then: None };
        let mut list = list("drop".to_owned());
        let mut builder = Builder::default();
        builder.push("198.51.100.0/24".parse().unwrap(), None, "").unwrap();
        list.before = Some(Before {
            deadline,
            replaced: NOW.utc,
            source: String::new(),
            reason: String::new(),
            created: UtcMillis(0),
            entries: Arc::new(builder.build()),
        });
        store.put_list(&list).unwrap();
        let pend = vec![((limited.prefix, limited.origin), pend)];
        store.change(&Change { put: vec![limited], pend, ..Change::default() }).unwrap();
        let at = |boot_s: u64, utc: u64| Now {
            boot: BootTime(boot_s * 1_000_000_000),
            utc: UtcMillis(utc),
        };
        // Nothing kept the clock while the host was off: it is a month behind.
        store.boot = "behind".to_owned();
        let behind = at(10, NOW.utc.0 - MONTH_MS);
        let set = store.rule_set(Seats::default(), behind).unwrap();
        let ends = |set: &RuleSet| {
            let rule = set.iter().next().map(|rule| rule.until.boot.0 / 1_000_000_000);
            let pending = set.pending().next().map(|(_, one)| one.deadline.boot.0 / 1_000_000_000);
            let before = set.lists().next().and_then(|list| list.before.as_ref());
            (rule, pending, before.map(|before| before.deadline.boot.0 / 1_000_000_000))
        };
        assert_eq!(ends(&set), (Some(3610), Some(70), Some(70)));
        let later = at(40, behind.utc.0 + 2 * MONTH_MS);
        assert_eq!(
            ends(&store.rule_set(Seats::default(), later).unwrap()),
            ends(&set),
            "of this boot by now"
        );
        // With a clock that is right the moment that was meant is the end.
        store.boot = "right".to_owned();
        let right = at(10, NOW.utc.0 + 59 * MINUTE_MS);
        assert_eq!(store.rules(right).unwrap()[0].until.boot, BootTime(70_000_000_000));
    }

    fn list(name: String) -> List {
        List {
            name,
            action: Action::Deny,
            kind: Kind::Import,
            source: String::new(),
            dry_run: false,
            reason: String::new(),
            created: NOW.utc,
            clocks: NOW,
            entries: Arc::default(),
            before: None,
            swept: BootTime(0),
            seat: 0,
        }
    }

    #[test]
    fn no_list_loses_its_seat_to_one_that_is_read_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let seated: Vec<String> = (0..254).map(|number| format!("m-{number}")).collect();
        for name in ["a", "m-0", "m-253", "z"] {
            let mut builder = Builder::default();
            builder.push("198.51.100.0/24".parse().unwrap(), None, "").unwrap();
            let entries = Arc::new(builder.build());
            store.put_list(&List { entries, ..list(name.to_owned()) }).unwrap();
        }
        let set = store.rule_set(Seats::of(seated.clone()), NOW).unwrap();
        let seat = |name: &str| set.list(name).unwrap().seat;
        assert_eq!(["m-0", "m-253"].map(seat), [2, 255]);
        assert_eq!(["a", "z"].map(seat), [3, 4], "of those that are gone");
    }

    #[test]
    fn a_second_gateway_and_a_broken_file_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let second = Store::open(folder.path()).err().unwrap();
        assert!(second.to_string().contains("in use by another gateway"), "{second}");
        drop(store);
        fs::write(folder.path().join(FILE), "not a database, but long enough to be looked at")
            .unwrap();
        let broken = Store::open(folder.path()).err().unwrap();
        assert!(broken.to_string().contains("move it away"), "{broken}");
    }
}
