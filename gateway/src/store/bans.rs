//! Bans as they are kept, by subject, as JSON. They are enforced first and written behind: one thread takes all that
//! has changed since it last did, and puts it on the disk in one transaction. It knows keys and values, and no ban.
//!
//! ```text
//! put ──▶ what changed, the last value of each key ──▶ thread ──▶ one transaction
//!                        ▲                               │
//!                        └──────── not written: again ◀──┘ in a second
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, database_error};
use crate::base::time::{BootTime, Now, UtcMillis, instant};
use crate::observe::histogram::{Durations, Histogram};
use crate::rules::Until;

const BANS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("bans");
/// How long what could not be written waits for the next attempt.
const RETRY: Duration = Duration::from_secs(1);

/// An end as it is kept: within one boot the kernel's clock is believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// On the wall clock; `None` for never.
    pub utc: Option<UtcMillis>,
    /// The boot in which `boot_ns` means anything.
    boot: String,
    boot_ns: u64,
}

impl End {
    /// On both clocks, as [`Store::end`] has made it in this boot.
    pub fn until(&self) -> Until {
        Until { boot: BootTime(self.boot_ns), utc: self.utc }
    }
}

impl Store {
    /// An end as it is kept.
    pub fn end(&self, until: Until) -> End {
        End { utc: until.utc, boot: self.boot.clone(), boot_ns: until.boot.0 }
    }

    /// An end that was kept, as one of this boot.
    pub fn end_now(&self, end: &End, now: Now) -> End {
        match end.boot == self.boot {
            true => end.clone(),
            false => self.end(Until::at(now, end.utc)),
        }
    }

    /// Writes bans before anybody makes some.
    pub fn write_bans<T: Serialize>(&self, batch: &Batch<T>) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        write(self.database()?, batch).map_err(|error| self.failed(error))
    }

    /// All bans with their keys.
    pub fn bans<T: DeserializeOwned>(&self) -> Result<Vec<(String, T)>, StoreError> {
        let transaction = self.database()?.begin_read().map_err(|error| self.failed(error))?;
        let table = match transaction.open_table(BANS) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(self.failed(error)),
        };
        let mut bans = Vec::new();
        for entry in table.iter().map_err(|error| self.failed(error))? {
            let (key, value) = entry.map_err(|error| self.failed(error))?;
            let ban = serde_json::from_slice(value.value());
            let ban = ban.map_err(|error| self.bad_entry(key.value(), error.to_string()))?;
            bans.push((key.value().to_owned(), ban));
        }
        Ok(bans)
    }
}

/// Writes bans behind those who make them. There is no thread before there is something to write: one that began before
/// the daemon gave up its privileges would keep them.
#[derive(Debug)]
pub struct Behind<T> {
    shared: Arc<Shared<T>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    path: String,
}

/// Values by key; `None`: it is gone.
pub type Batch<T> = BTreeMap<String, Option<Arc<T>>>;

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// How long the oldest change of each transaction waited to be on the disk.
    durable: Histogram,
}

#[derive(Debug)]
struct State<T> {
    /// What has changed. It has as many entries as there are bans, at most.
    queue: Batch<T>,
    /// Since when the oldest of them waits.
    since: Option<Instant>,
    /// `None` while another process has the store.
    database: Option<Arc<Database>>,
    writing: bool,
    /// Attempts that failed, and what the last one died of.
    failures: u64,
    failed: Option<String>,
    /// Somebody waits.
    hurry: bool,
    ending: bool,
}

impl<T: Serialize + Send + Sync + 'static> Behind<T> {
    /// Writes to a store.
    pub fn new(store: &Store) -> Self {
        let state = State {
            queue: BTreeMap::new(),
            since: None,
            database: store.database.clone(),
            writing: false,
            failures: 0,
            failed: None,
            hurry: false,
            ending: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            durable: Histogram::default(),
        });
        Self { shared, thread: Mutex::default(), path: store.path.display().to_string() }
    }

    /// Has the value of a key written, or taken out.
    pub fn put(&self, key: String, value: Option<Arc<T>>) {
        let mut state = self.shared.lock();
        state.queue.insert(key, value);
        state.since.get_or_insert_with(instant);
        drop(state);
        self.shared.changed.notify_all();
        self.begin();
    }

    /// Waits until everything is on the disk, or cannot be put there.
    pub fn flush(&self) -> Result<(), StoreError> {
        if !self.shared.lock().queue.is_empty() && !self.begin() {
            return Err(self.unwritten(self.failed()));
        }
        let mut state = self.shared.lock();
        let failures = state.failures;
        while !state.queue.is_empty() || state.writing {
            if state.failures > failures || state.database.is_none() {
                return Err(self.unwritten(state.failed.clone()));
            }
            state.hurry = true;
            self.shared.changed.notify_all();
            state = self.shared.wait(state);
        }
        Ok(())
    }

    fn unwritten(&self, failed: Option<String>) -> StoreError {
        let reason = failed.unwrap_or_else(|| "it is released".to_owned());
        StoreError::Behind { path: self.path.clone(), reason }
    }

    /// Begins the thread, if it has not begun. Answers whether there is one.
    fn begin(&self) -> bool {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_some() {
            return true;
        }
        let begun = thread::Builder::new().name("bans".to_owned()).spawn({
            let (shared, path) = (Arc::clone(&self.shared), self.path.clone());
            move || run(&shared, &path)
        });
        match begun {
            Ok(begun) => *thread = Some(begun),
            Err(error) => {
                tracing::error!(%error, "bans are enforced and not on the disk yet");
                self.shared.lock().failed = Some(error.to_string());
            }
        }
        thread.is_some()
    }

    /// Why the last attempt to write failed, if it did.
    pub fn failed(&self) -> Option<String> {
        self.shared.lock().failed.clone()
    }

    /// From a change to its being on the disk: the oldest of each transaction.
    pub fn durable(&self) -> Durations {
        let mut durations = Durations::default();
        durations.add(&self.shared.durable);
        durations
    }

    /// Lets go of the store, once what is being written is.
    pub fn release(&self) {
        let mut state = self.shared.lock();
        state.database = None;
        while state.writing {
            state = self.shared.wait(state);
        }
    }

    /// Writes to a store that was opened again.
    pub fn reopen(&self, store: &Store) {
        self.shared.lock().database = store.database.clone();
        self.shared.changed.notify_all();
    }
}

impl<T> Drop for Behind<T> {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.changed.notify_all();
        // It writes what there is first. One that panicked has said so.
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(thread.take().map(JoinHandle::join));
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

fn run<T: Serialize>(shared: &Shared<T>, path: &str) {
    let mut state = shared.lock();
    loop {
        let work = state.database.clone().filter(|_| !state.queue.is_empty());
        let Some(database) = work else {
            if state.ending {
                return;
            }
            state = shared.wait(state);
            continue;
        };
        let batch = std::mem::take(&mut state.queue);
        let since = state.since.take();
        state.writing = true;
        state.hurry = false;
        drop(state);
        let written =
            write(&database, &batch).map_err(|error| database_error(path.as_ref(), error));
        drop(database);
        state = shared.lock();
        state.writing = false;
        state.failed = written.as_ref().err().map(ToString::to_string);
        if let Err(error) = &written {
            tracing::error!(%error, "bans are enforced and not on the disk yet");
            state.failures += 1;
            for (key, value) in batch {
                // What has changed once more is newer.
                state.queue.entry(key).or_insert(value);
            }
            state.since = since;
        } else if let Some(since) = since {
            shared.durable.add(instant().duration_since(since));
        }
        shared.changed.notify_all();
        if written.is_err() {
            if state.ending {
                return;
            }
            let wait = |state: &mut State<T>| !state.hurry && !state.ending;
            let waited = shared.changed.wait_timeout_while(state, RETRY, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One transaction.
fn write<T: Serialize>(database: &Database, batch: &Batch<T>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(BANS)?;
        for (key, value) in batch {
            match value {
                Some(value) => {
                    let bytes = serde_json::to_vec(&**value).map_err(io::Error::from)?;
                    table.insert(key.as_str(), bytes.as_slice())?;
                }
                None => {
                    table.remove(key.as_str())?;
                }
            }
        }
    }
    Ok(transaction.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(store: &Store) -> Vec<(String, u32)> {
        store.bans().unwrap()
    }

    #[test]
    fn what_was_flushed_is_there_and_the_last_value_of_a_key_counts() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let behind = Behind::<u32>::new(&store);
        for value in 0..1000 {
            behind.put("a".to_owned(), Some(Arc::new(value)));
            behind.put("b".to_owned(), (value % 2 == 0).then(|| Arc::new(value)));
        }
        behind.flush().unwrap();
        assert_eq!(kept(&store), [("a".to_owned(), 999)]);
        behind.put("c".to_owned(), Some(Arc::new(7)));
        drop(behind);
        assert_eq!(kept(&store).len(), 2, "the end writes what there is");
    }

    #[test]
    fn each_transaction_says_how_long_its_oldest_change_waited() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let behind = Behind::<u32>::new(&store);
        behind.put("a".to_owned(), Some(Arc::new(1)));
        behind.flush().unwrap();
        assert_eq!(behind.durable().count(), 1);
        behind.release();
        store.release();
        behind.put("b".to_owned(), Some(Arc::new(2)));
        assert_eq!(behind.durable().count(), 1, "it is not on the disk");
        store.reopen().unwrap();
        behind.reopen(&store);
        behind.flush().unwrap();
        assert_eq!(behind.durable().count(), 2);
    }

    #[test]
    fn a_released_store_belongs_to_others_and_what_came_meanwhile_is_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let behind = Behind::<u32>::new(&store);
        behind.put("a".to_owned(), Some(Arc::new(1)));
        behind.flush().unwrap();
        behind.release();
        store.release();
        behind.put("b".to_owned(), Some(Arc::new(2)));
        assert!(behind.flush().is_err(), "nothing is promised meanwhile");
        let other = Store::open(folder.path()).unwrap();
        assert_eq!(kept(&other), [("a".to_owned(), 1)]);
        drop(other);
        store.reopen().unwrap();
        behind.reopen(&store);
        behind.flush().unwrap();
        assert_eq!(kept(&store), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    }

    #[test]
    fn an_end_is_by_the_kernels_clock_within_a_boot_and_by_the_wall_clock_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let now = Now { boot: BootTime(5_000_000_000), utc: UtcMillis(1_800_000_000_000) };
        let end = store.end(Until::after(now, Some(Duration::from_secs(60))));
        let stepped = Now { boot: BootTime(6_000_000_000), utc: UtcMillis(now.utc.0 + 9_000_000) };
        assert_eq!(store.end_now(&end, stepped).until().boot, BootTime(65_000_000_000));
        store.boot = "another".to_owned();
        let early = Now { boot: BootTime(1_000_000_000), utc: UtcMillis(now.utc.0 + 30_000) };
        assert_eq!(store.end_now(&end, early).until().boot, BootTime(31_000_000_000));
    }
}
