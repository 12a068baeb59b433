//! API keys: by the SHA-256 of a key, whose it is and how long it holds. The key itself is never here.
//!
//! A file of its own, which two gateways may have open at a time: while one takes the place of the other, both find
//! every key, and what either changes is seen by both (`ConcurrencyMode::MultiWriter` of redb). A change is on the disk
//! before it returns, and a file that was left by `kill -9` opens without being read through. What has ended is listed
//! for another thirty days, then forgotten.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use redb::{
    ConcurrencyMode, Database, ReadableDatabase as _, ReadableTableMetadata as _, TableDefinition,
    TableError,
};
use serde::{Deserialize, Serialize};

use super::{StoreError, database_error, io_error};
use crate::base::time::UtcMillis;

/// The SHA-256 of a key.
pub type Digest = [u8; 32];

/// Keys that the store takes. Half as many made a file of 4.1 GB (`cargo xtask bench policy --case keys`).
pub const KEYS_MAX: u64 = 20_000_000;
/// How long a key is listed after its end.
pub const KEPT_AFTER_END: Duration = Duration::from_hours(30 * 24);
/// The folder of a gateway has this file beside the one of its rules.
pub(super) const FILE: &str = "keys.redb";

const KEYS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("keys");
/// The keys of each consumer: its name, a zero and the digest.
const BY_CONSUMER: TableDefinition<'_, &[u8], ()> = TableDefinition::new("by_consumer");
/// What ends, in this order.
const BY_END: TableDefinition<'_, (u64, &[u8; 32]), ()> = TableDefinition::new("by_end");
/// Pages of the file that stay in memory; what the system has cached costs a copy.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// The name of a key: the first 64 bits of its digest, which tell nothing about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

/// What is known about a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Whose it is.
    pub consumer: String,
    /// In the place of its consumer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// What it may be used for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// What it is for, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// When it was made.
    pub created: UtcMillis,
    /// Until when it holds; for ever without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<UtcMillis>,
    /// When it was taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<UtcMillis>,
    /// The key that took its place, and holds after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<KeyId>,
}

/// Whether a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It does.
    Active,
    /// Another has taken its place, and it holds for the rest of the time of grace.
    Retiring,
    /// Its time is over.
    Expired,
    /// It was taken back.
    Revoked,
}

/// Where a page of keys ended.
pub type KeyPlace = (String, KeyId);

/// The keys of this process, opened when somebody first needs them.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Place>);

#[derive(Debug)]
struct Place {
    directory: PathBuf,
    opened: OnceLock<Keys>,
    /// Whoever opens them.
    turn: Mutex<()>,
}

/// The keys in one directory.
#[derive(Debug)]
pub struct Keys {
    database: Database,
    path: PathBuf,
    generation: AtomicU64,
}

impl KeyId {
    /// The name of the key with this digest.
    pub fn of(digest: &Digest) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *digest;
        Self([a, b, c, d, e, f, g, h])
    }

    /// The bytes that the digest begins with.
    pub fn bytes(self) -> [u8; 8] {
        self.0
    }

    /// The lowest and the highest digest of a key of this name.
    fn digests(self) -> (Digest, Digest) {
        let [mut low, mut high] = [[0; 32], [u8::MAX; 32]];
        for digest in [&mut low, &mut high] {
            digest.iter_mut().zip(self.0).for_each(|(at, byte)| *at = byte);
        }
        (low, high)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_id = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bits = u64::from_str_radix(text, 16).ok().filter(|_| is_id);
        let bits = bits.ok_or("an id has 16 hexadecimal digits: `gateway keys list` shows it")?;
        Ok(Self(bits.to_be_bytes()))
    }
}

impl Serialize for KeyId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl KeyRecord {
    /// When it ended or will end.
    pub fn end(&self) -> Option<UtcMillis> {
        [self.expires, self.revoked].into_iter().flatten().min()
    }

    /// Whether it holds.
    pub fn state(&self, now: UtcMillis) -> KeyState {
        match (self.revoked, self.expires) {
            (Some(_), _) => KeyState::Revoked,
            (None, Some(expires)) if expires <= now => KeyState::Expired,
            _ if self.replaced_by.is_some() => KeyState::Retiring,
            _ => KeyState::Active,
        }
    }
}

impl KeyState {
    /// Whether it opens anything.
    pub fn holds(self) -> bool {
        matches!(self, Self::Active | Self::Retiring)
    }

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl Registry {
    /// Those in this directory.
    pub fn at(directory: &Path) -> Self {
        let directory = directory.to_owned();
        Self(Arc::new(Place { directory, opened: OnceLock::new(), turn: Mutex::new(()) }))
    }

    /// The keys, if they were opened before. Waits for nothing.
    pub fn opened(&self) -> Option<&Keys> {
        self.0.opened.get()
    }

    /// The keys, opened now if need be.
    pub fn open(&self) -> Result<&Keys, StoreError> {
        let _turn = self.0.turn.lock();
        match self.0.opened.get() {
            Some(keys) => Ok(keys),
            None => {
                let keys = Keys::open(&self.0.directory)?;
                Ok(self.0.opened.get_or_init(|| keys))
            }
        }
    }
}

impl Keys {
    /// Opens the keys in a directory that is there, or begins with none.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(FILE);
        let mut builder = Database::builder();
        builder.set_concurrency_mode(ConcurrencyMode::MultiWriter).set_cache_size(CACHE_BYTES);
        let database = builder.create(&path).map_err(|error| database_error(&path, error))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(|source| io_error(&path, source))?;
        let keys = Self { database, path, generation: AtomicU64::new(0) };
        keys.prepare()?;
        Ok(keys)
    }

    /// Whether there are any in a directory, as far as this user may see.
    pub fn exist(directory: &Path) -> bool {
        directory.join(FILE).exists()
    }

    /// Grows with every change after which a key that was found may hold no longer, or mean something else. New keys
    /// change nothing about others.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Has keys that were found looked up again, for another process may have changed what is known about them.
    pub fn look_again(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// What is known about the key with this digest.
    pub fn find(&self, digest: &Digest) -> Result<Option<KeyRecord>, StoreError> {
        let transaction = self.database.begin_read().map_err(|error| self.failed(error))?;
        let table = transaction.open_table(KEYS).map_err(|error| self.failed(error))?;
        let found = table.get(digest).map_err(|error| self.failed(error))?;
        found.map(|found| self.read(digest, found.value())).transpose()
    }

    /// The key of this name.
    pub fn named(&self, id: KeyId) -> Result<Option<(Digest, KeyRecord)>, StoreError> {
        let transaction = self.database.begin_read().map_err(|error| self.failed(error))?;
        let table = transaction.open_table(KEYS).map_err(|error| self.failed(error))?;
        let (low, high) = id.digests();
        let mut range = table.range::<&Digest>(&low..=&high).map_err(|error| self.failed(error))?;
        let Some(entry) = range.next() else { return Ok(None) };
        let (digest, value) = entry.map_err(|error| self.failed(error))?;
        let digest = *digest.value();
        Ok(Some((digest, self.read(&digest, value.value())?)))
    }

    /// Makes keys, or changes what is known about some: in one transaction, on the disk when this returns.
    pub fn put<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a (Digest, KeyRecord)>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.database.begin_write().map_err(|error| self.failed(error))?;
        transaction.set_quick_repair(true);
        let mut changes = false;
        {
            let mut table = transaction.open_table(KEYS).map_err(|error| self.failed(error))?;
            let mut by_consumer =
                transaction.open_table(BY_CONSUMER).map_err(|error| self.failed(error))?;
            let mut by_end = transaction.open_table(BY_END).map_err(|error| self.failed(error))?;
            for (digest, record) in keys {
                let value = serde_json::to_vec(record)
                    .map_err(|error| self.bad_entry(digest, &error.to_string()))?;
                let before = table
                    .insert(digest, value.as_slice())
                    .map_err(|error| self.failed(error))?
                    .map(|before| self.read(digest, before.value()))
                    .transpose()?;
                changes |= before.is_some();
                if let Some(end) = before.as_ref().and_then(KeyRecord::end) {
                    by_end.remove((end.0, digest)).map_err(|error| self.failed(error))?;
                }
                if let Some(end) = record.end() {
                    by_end.insert((end.0, digest), ()).map_err(|error| self.failed(error))?;
                }
                by_consumer
                    .insert(index(&record.consumer, digest).as_slice(), ())
                    .map_err(|error| self.failed(error))?;
            }
        }
        transaction.commit().map_err(|error| self.failed(error))?;
        if changes {
            self.generation.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// A page of keys by consumer, of one alone if it is named, behind a place.
    pub fn page(
        &self,
        consumer: Option<&str>,
        after: Option<&KeyPlace>,
        limit: usize,
    ) -> Result<Vec<(KeyId, KeyRecord)>, StoreError> {
        let transaction = self.database.begin_read().map_err(|error| self.failed(error))?;
        let table = transaction.open_table(KEYS).map_err(|error| self.failed(error))?;
        let by_consumer =
            transaction.open_table(BY_CONSUMER).map_err(|error| self.failed(error))?;
        let first = match (after, consumer) {
            // Behind every digest of that name.
            (Some((consumer, id)), _) => {
                let mut place = index(consumer, &id.digests().1);
                place.push(0);
                place
            }
            (None, Some(consumer)) => index(consumer, &[]),
            (None, None) => Vec::new(),
        };
        let prefix = consumer.map_or_else(Vec::new, |consumer| index(consumer, &[]));
        let mut page = Vec::new();
        let range = by_consumer.range(first.as_slice()..).map_err(|error| self.failed(error))?;
        for entry in range.take(limit) {
            let (key, ()) =
                entry.map(|(key, unit)| (key, unit.value())).map_err(|e| self.failed(e))?;
            let Some(digest) = key.value().last_chunk::<32>() else { continue };
            if !key.value().starts_with(&prefix) {
                break;
            }
            let found = table.get(digest).map_err(|error| self.failed(error))?;
            let Some(found) = found else { continue };
            page.push((KeyId::of(digest), self.read(digest, found.value())?));
        }
        Ok(page)
    }

    /// How many there are.
    pub fn count(&self) -> Result<u64, StoreError> {
        let transaction = self.database.begin_read().map_err(|error| self.failed(error))?;
        let table = transaction.open_table(KEYS).map_err(|error| self.failed(error))?;
        table.len().map_err(|error| self.failed(error))
    }

    /// Forgets keys that ended more than [`KEPT_AFTER_END`] ago, at most `max` of them. Answers how many.
    pub fn purge(&self, now: UtcMillis, max: usize) -> Result<usize, StoreError> {
        let kept_ms = u64::try_from(KEPT_AFTER_END.as_millis()).unwrap_or(u64::MAX);
        let last = (now.0.saturating_sub(kept_ms), &[u8::MAX; 32]);
        let over = self.over(last, max)?;
        if over.is_empty() {
            return Ok(0);
        }
        let mut transaction = self.database.begin_write().map_err(|error| self.failed(error))?;
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(KEYS).map_err(|error| self.failed(error))?;
            let mut by_consumer =
                transaction.open_table(BY_CONSUMER).map_err(|error| self.failed(error))?;
            let mut by_end = transaction.open_table(BY_END).map_err(|error| self.failed(error))?;
            for (end, digest) in &over {
                by_end.remove((*end, digest)).map_err(|error| self.failed(error))?;
                let found = table.remove(digest).map_err(|error| self.failed(error))?;
                let Some(found) = found else { continue };
                let record = self.read(digest, found.value())?;
                let place = index(&record.consumer, digest);
                by_consumer.remove(place.as_slice()).map_err(|error| self.failed(error))?;
            }
        }
        transaction.commit().map_err(|error| self.failed(error))?;
        Ok(over.len())
    }

    /// Makes the tables of a new file.
    fn prepare(&self) -> Result<(), StoreError> {
        let reading = self.database.begin_read().map_err(|error| self.failed(error))?;
        match reading.open_table(KEYS) {
            Ok(_) => return Ok(()),
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(self.failed(error)),
        }
        drop(reading);
        self.put([])
    }

    fn over(&self, last: (u64, &[u8; 32]), max: usize) -> Result<Vec<(u64, Digest)>, StoreError> {
        let transaction = self.database.begin_read().map_err(|error| self.failed(error))?;
        let by_end = transaction.open_table(BY_END).map_err(|error| self.failed(error))?;
        let mut over = Vec::new();
        for entry in by_end.range(..=last).map_err(|error| self.failed(error))?.take(max) {
            let (key, _) = entry.map_err(|error| self.failed(error))?;
            let (end, digest) = key.value();
            over.push((end, *digest));
        }
        Ok(over)
    }

    fn read(&self, digest: &Digest, value: &[u8]) -> Result<KeyRecord, StoreError> {
        serde_json::from_slice(value).map_err(|error| self.bad_entry(digest, &error.to_string()))
    }

    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        database_error(&self.path, error)
    }

    fn bad_entry(&self, digest: &Digest, reason: &str) -> StoreError {
        StoreError::Entry {
            path: self.path.display().to_string(),
            key: KeyId::of(digest).to_string(),
            reason: reason.to_owned(),
        }
    }
}

/// The place of a key among those of its consumer.
fn index(consumer: &str, digest: &[u8]) -> Vec<u8> {
    [consumer.as_bytes(), &[0], digest].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

    fn key(number: u8, consumer: &str) -> (Digest, KeyRecord) {
        let record = KeyRecord {
            consumer: consumer.to_owned(),
            plan: None,
            scopes: vec!["read".to_owned()],
            label: String::new(),
            created: NOW,
            expires: None,
            revoked: None,
            replaced_by: None,
        };
        ([number; 32], record)
    }

    #[test]
    fn what_was_put_is_found_by_digest_and_name_also_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path()).unwrap();
        let [one, two] = [key(1, "acme"), key(2, "globex")];
        keys.put([&one, &two]).unwrap();
        drop(keys);
        let keys = Keys::open(folder.path()).unwrap();
        assert_eq!(keys.find(&one.0).unwrap(), Some(one.1.clone()));
        assert_eq!(keys.named(KeyId::of(&two.0)).unwrap(), Some(two));
        assert_eq!(keys.find(&[3; 32]).unwrap(), None);
        assert_eq!(keys.named("0303030303030303".parse().unwrap()).unwrap(), None);
        assert_eq!(keys.count().unwrap(), 2);
    }

    #[test]
    fn two_gateways_see_what_either_changes() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = [(); 2].map(|()| Keys::open(folder.path()).unwrap());
        let mut key = key(1, "acme");
        old.put([&key]).unwrap();
        assert_eq!(new.find(&key.0).unwrap(), Some(key.1.clone()));
        key.1.revoked = Some(NOW);
        new.put([&key]).unwrap();
        assert_eq!(old.find(&key.0).unwrap().unwrap().state(NOW), KeyState::Revoked);
        drop(old);
        new.put([&self::key(2, "acme")]).unwrap();
        assert_eq!(new.count().unwrap(), 2);
    }

    #[test]
    fn only_a_change_of_what_was_there_makes_workers_forget() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path()).unwrap();
        keys.put([&key(1, "acme")]).unwrap();
        assert_eq!(keys.generation(), 0);
        keys.put([&key(1, "acme")]).unwrap();
        assert_eq!(keys.generation(), 1);
    }

    #[test]
    fn pages_go_by_consumer_and_name_each_key_once() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path()).unwrap();
        let all: Vec<_> =
            (0..30).map(|number| key(number, ["a", "ab", "b"][usize::from(number) % 3])).collect();
        keys.put(&all).unwrap();
        for (consumer, wanted) in [(None, 30), (Some("a"), 10), (Some("ab"), 10), (Some("c"), 0)] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = keys.page(consumer, after.as_ref(), 7).unwrap();
                let Some((id, last)) = page.last() else { break };
                after = Some((last.consumer.clone(), *id));
                seen.extend(page);
            }
            assert_eq!(seen.len(), wanted, "{consumer:?}");
            assert!(seen.is_sorted_by_key(|(id, record)| (record.consumer.clone(), *id)));
            assert!(seen.iter().all(|(_, key)| consumer.is_none_or(|one| key.consumer == one)));
        }
    }

    #[test]
    fn what_has_ended_is_forgotten_after_its_time_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path()).unwrap();
        let [mut ending, mut revoked, lasting] = [key(1, "a"), key(2, "a"), key(3, "a")];
        ending.1.expires = Some(NOW);
        keys.put([&ending, &revoked, &lasting]).unwrap();
        revoked.1.revoked = Some(NOW.after(Duration::from_secs(1)));
        ending.1.expires = Some(NOW.after(Duration::from_secs(2)));
        keys.put([&ending, &revoked]).unwrap();
        let at = |seconds| NOW.after(KEPT_AFTER_END).after(Duration::from_secs(seconds));
        for (seconds, max, forgotten) in [(0, 9, 0), (1, 9, 1), (2, 0, 0), (3, 9, 1), (9, 9, 0)] {
            assert_eq!(keys.purge(at(seconds), max).unwrap(), forgotten, "{seconds}");
        }
        let left = keys.page(None, None, 9).unwrap();
        assert_eq!(left, [(KeyId::of(&lasting.0), lasting.1)]);
    }

    #[test]
    fn a_key_has_one_state_at_a_time() {
        let (_, mut record) = key(1, "acme");
        assert_eq!(record.state(NOW), KeyState::Active);
        record.expires = Some(NOW.after(Duration::from_secs(1)));
        record.replaced_by = Some(KeyId([0; 8]));
        assert_eq!(record.state(NOW), KeyState::Retiring);
        assert_eq!(record.state(NOW.after(Duration::from_secs(1))), KeyState::Expired);
        record.revoked = Some(NOW);
        assert_eq!(record.state(NOW), KeyState::Revoked);
        assert!(!record.state(NOW).holds());
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = KeyId::of(&[0x0a; 32]);
        assert_eq!(id.to_string(), "0a0a0a0a0a0a0a0a");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "0a0a0a0a0a0a0a0", "+a0a0a0a0a0a0a0a", "0a0a0a0a0a0a0a0a0"] {
            assert!(bad.parse::<KeyId>().is_err(), "{bad}");
        }
    }
}
