//! Keys that all gateways know: records by the SHA-256 of a secret, in hashes of a few thousand, and one word that
//! changes with every change, by which each gateway knows within [`FRESH`] that what it remembers is no longer so.
//! What a record says is for whoever writes it.
//!
//! A record is in the hash `PREFIX:keys:{NNN}`, NNN the first twelve bits of its digest. The word is `PREFIX:keys`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::{Cmd, Value};

use super::script::Script;
use super::{Inner, Redis, Unavailable, locked};
use crate::base::random::random;
use crate::base::time::instant;

/// What is remembered of a record may be relied on for so long after it was so: a second, less what those who remember
/// may add to it.
pub const FRESH: Duration = Duration::from_millis(900);
/// How often the word is read.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The bytes of a record.
pub const RECORD_BYTES_MAX: usize = 16 << 10;
/// Hashes that records lie in.
const BUCKETS: u16 = 4096;

/// The digest that a record is found by.
pub type Digest = [u8; 32];

/// What one gateway knows of the word.
#[derive(Default)]
pub(super) struct Watched {
    /// Whether anybody wants to know.
    pub(super) asked: AtomicBool,
    generation: AtomicU64,
    seen: Mutex<Option<Seen>>,
}

struct Seen {
    word: Vec<u8>,
    at: Instant,
}

/// The keys that all gateways know. Each method is done within a deadline; an error says nothing about any key.
#[derive(Clone, Debug)]
pub struct Registry {
    redis: Redis,
    exchange: Arc<Script>,
}

/// Where the next page of a listing begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    bucket: u16,
    at: u64,
}

/// As it is written between two pages.
impl fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.bucket, self.at)
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (bucket, at) = text.split_once(':').ok_or(())?;
        let bucket = bucket.parse().ok().filter(|bucket| *bucket < BUCKETS).ok_or(())?;
        Ok(Self { bucket, at: at.parse().map_err(|_| ())? })
    }
}

/// A page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Records in no particular order. One that changes meanwhile may come twice.
    pub records: Vec<(Digest, Vec<u8>)>,
    /// `None`: there are no more.
    pub next: Option<Cursor>,
}

/// Writes a record if it is still what it was.
const EXCHANGE: &str = "\
local before = redis.call('HGET', KEYS[1], ARGV[1])
if before ~= (ARGV[2] ~= '' and ARGV[2]) then return 0 end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1])
else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
return 1";

impl Redis {
    /// The registry of keys. From now on changes are watched for.
    pub fn registry(&self) -> Registry {
        if !self.0.registry.asked.swap(true, Ordering::Relaxed) {
            self.0.look.notify_one();
        }
        Registry { redis: self.clone(), exchange: Arc::new(Script::new(EXCHANGE)) }
    }
}

impl Registry {
    /// The number of the present state, which costs nothing to ask for. What [`Self::find`] said may be remembered
    /// for as long as the number stays; `None`: nobody knows, so nothing that is remembered may be used. Ask for it
    /// before `find`, and remember the answer under that number.
    pub fn generation(&self) -> Option<u64> {
        self.last_seen().filter(|(_, age)| *age < FRESH).map(|(generation, _)| generation)
    }

    /// The number of the state that was seen last, and how long ago; `None`: none ever was. What it is since is not
    /// known, but every change that this gateway has heard of is in it.
    pub fn last_seen(&self) -> Option<(u64, Duration)> {
        let watched = &self.redis.0.registry;
        let seen = locked(&watched.seen);
        let age = seen.as_ref()?.at.elapsed();
        Some((watched.generation.load(Ordering::Relaxed), age))
    }

    /// The record of a digest, within `state.redis.timeout`.
    pub async fn find(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Unavailable> {
        let bucket = self.bucket(bucket_of(digest));
        let mut command = Cmd::new();
        command.arg("HGET").arg(&bucket).arg(&digest[..]);
        match self.redis.call(bucket.as_bytes(), &command).await? {
            Value::BulkString(record) => Ok(Some(record)),
            Value::Nil => Ok(None),
            _ => Err(Unavailable::Refused),
        }
    }

    /// Writes a record where there is `before` (`None`: no record), and makes every gateway forget what it knew;
    /// `after` being `None` removes it. Whether there was `before`. Once this is answered, no gateway goes by the old
    /// record for longer than [`FRESH`]. After an error it may or may not have been written: do it again.
    pub async fn exchange(
        &self,
        digest: &Digest,
        before: Option<&[u8]>,
        after: Option<&[u8]>,
    ) -> Result<bool, Unavailable> {
        if after.is_some_and(|record| record.is_empty() || record.len() > RECORD_BYTES_MAX) {
            return Err(Unavailable::Refused);
        }
        let bucket = self.bucket(bucket_of(digest));
        let arguments = [&digest[..], before.unwrap_or_default(), after.unwrap_or_default()];
        let patience = self.redis.config().connect_timeout;
        let done = self.exchange.run(&self.redis, &[bucket], &arguments, patience).await;
        // This gateway knows now, whether it ever reads the word again or not.
        self.redis.0.registry.generation.fetch_add(1, Ordering::Relaxed);
        let done = done?;
        // Also where nothing was written: an earlier attempt may have got no further.
        let word = self.word();
        let mut change = Cmd::new();
        change.arg("SET").arg(&word).arg(format!("{:016x}{:016x}", random(), random()));
        self.redis.call_patiently(word.as_bytes(), &change).await?;
        self.redis.0.look.notify_one();
        Ok(done == Value::Int(1))
    }

    /// The first record whose digest begins with these bytes, for somebody who can wait.
    pub async fn beginning(
        &self,
        first: [u8; 8],
    ) -> Result<Option<(Digest, Vec<u8>)>, Unavailable> {
        let [one, two, ..] = first;
        let key = self.bucket((u16::from(one) << 4) | u16::from(two >> 4));
        let mut at = 0;
        loop {
            let mut scan = Cmd::new();
            scan.arg("HSCAN").arg(&key).arg(at.to_string()).arg("COUNT").arg("1000");
            let answer = self.redis.call_patiently(key.as_bytes(), &scan).await?;
            let mut found = Vec::new();
            at = records(answer, &mut found).ok_or(Unavailable::Refused)?;
            let one = found.into_iter().find(|(digest, _)| digest.starts_with(&first));
            if one.is_some() || at == 0 {
                return Ok(one);
            }
        }
    }

    /// About `count` records from `cursor` on (at most 1000). Within `state.redis.connect_timeout`.
    pub async fn page(&self, cursor: Cursor, count: usize) -> Result<Page, Unavailable> {
        let mut page = Page::default();
        let Cursor { mut bucket, mut at } = cursor;
        let count = count.clamp(1, 1000);
        while bucket < BUCKETS && page.records.len() < count {
            let key = self.bucket(bucket);
            let mut scan = Cmd::new();
            let left = (count - page.records.len()).to_string();
            scan.arg("HSCAN").arg(&key).arg(at.to_string()).arg("COUNT").arg(left);
            let answer = self.redis.call_patiently(key.as_bytes(), &scan).await?;
            at = records(answer, &mut page.records).ok_or(Unavailable::Refused)?;
            if at == 0 {
                bucket += 1;
            }
        }
        page.next = (bucket < BUCKETS).then_some(Cursor { bucket, at });
        Ok(page)
    }

    fn bucket(&self, number: u16) -> String {
        format!("{}:keys:{{{number:03x}}}", self.redis.config().prefix)
    }

    fn word(&self) -> String {
        format!("{}:keys", self.redis.config().prefix)
    }
}

impl Watched {
    /// Reads the word, if anybody wants to know; after how long again.
    pub(super) async fn look(&self, shared: &Arc<Inner>) -> Option<Duration> {
        if !self.asked.load(Ordering::Relaxed) {
            return None;
        }
        let key = format!("{}:keys", shared.config.prefix);
        let mut read = Cmd::new();
        read.arg("GET").arg(&key);
        // Before it is asked: whatever changes from now on is not in the answer.
        let at = instant();
        let redis = Redis(Arc::clone(shared));
        let word = match redis.call(key.as_bytes(), &read).await {
            Ok(Value::BulkString(word)) => word,
            Ok(Value::Nil) => Vec::new(),
            Ok(_) | Err(_) => return Some(LOOK_EVERY),
        };
        let mut seen = locked(&self.seen);
        if seen.as_ref().is_none_or(|seen| seen.word != word) {
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
        *seen = Some(Seen { word, at });
        Some(LOOK_EVERY)
    }
}

fn bucket_of(digest: &Digest) -> u16 {
    (u16::from(digest[0]) << 4) | u16::from(digest[1] >> 4)
}

/// Takes what a scan found; where it goes on.
fn records(answer: Value, found: &mut Vec<(Digest, Vec<u8>)>) -> Option<u64> {
    let Value::Array(parts) = answer else { return None };
    let Ok([Value::BulkString(cursor), Value::Array(fields)]) = <[Value; 2]>::try_from(parts)
    else {
        return None;
    };
    for pair in fields.chunks_exact(2) {
        if let [Value::BulkString(digest), Value::BulkString(record)] = pair
            && let Ok(digest) = Digest::try_from(digest.as_slice())
        {
            found.push((digest, record.clone()));
        }
    }
    std::str::from_utf8(&cursor).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::hex;
    use super::*;

    #[test]
    fn a_bucket_is_the_first_twelve_bits() {
        let mut digest = [0; 32];
        (digest[0], digest[1]) = (0xab, 0xcd);
        assert_eq!(bucket_of(&digest), 0xabc);
        assert_eq!(bucket_of(&[0xff; 32]), BUCKETS - 1);
        assert_eq!(hex(&digest[..2]), "abcd");
    }

    #[test]
    fn what_a_scan_says_is_taken_and_nonsense_is_not() {
        let text = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
        let fields = vec![text(&[7; 32]), text(b"record"), text(b"short"), text(b"no")];
        let mut found = Vec::new();
        let answer = Value::Array(vec![text(b"17"), Value::Array(fields)]);
        assert_eq!(records(answer, &mut found), Some(17));
        assert_eq!(found, [([7; 32], b"record".to_vec())]);
        for nonsense in [Value::Nil, Value::Array(vec![text(b"0")]), Value::Int(3)] {
            assert_eq!(records(nonsense, &mut found), None);
        }
    }
}
