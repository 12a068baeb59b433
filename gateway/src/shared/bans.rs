//! Where gateways tell each other about sources: a log that each follows, and the state that it leads to, for whoever
//! has missed too much of the log. What is said there, and who may say it, is for others; here it is bytes with a head
//! that says which of two is later.
//!
//! `PREFIX:{bans}:log` is a stream, `PREFIX:{bans}:state` a hash by subject, and `PREFIX:{bans}:epoch` a word that is
//! another one in another Redis, or in one that was emptied.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use tokio::time::timeout;

use super::nodes::slot_of;
use super::script::Script;
use super::stream::{Driver, Node};
use super::{Redis, Unavailable};
use crate::base::random::random;

/// Entries of the log, about: a tenth more before Redis throws any away.
pub const LOG_ENTRIES_MAX: usize = 10_000;
/// How old an entry of the log may become, once another one is written.
pub const LOG_AGE_MAX: Duration = Duration::from_hours(24);
/// Subjects in the state.
pub const STATE_ENTRIES_MAX: usize = 65_536;
/// How long all of it stays after the last word.
pub const KEPT_FOR: Duration = Duration::from_hours(32 * 24);
/// Entries that are read or written at a time.
pub const BATCH_MAX: usize = 64;
/// How long the server holds back an answer when there is nothing to say.
const BLOCK: Duration = Duration::from_secs(1);

/// Takes note of messages: in the log, and in the state those that are not older than what is there. The head of a
/// message says so: 48 digits after the first 67 bytes.
const PUBLISH: &str = "\
local epoch = redis.call('GET', KEYS[3])
if not epoch then
  epoch = ARGV[1]
  redis.call('SET', KEYS[3], epoch)
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 6, #ARGV, 2 do
  local before, after = redis.call('HGET', KEYS[2], ARGV[i]), ARGV[i + 1]
  if before ~= after then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'm', after)
    local newer = before and string.sub(before, 68, 115) <= string.sub(after, 68, 115)
    if newer or not before and redis.call('HLEN', KEYS[2]) < tonumber(ARGV[5]) then
      redis.call('HSET', KEYS[2], ARGV[i], after)
    end
  end
end
redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', math.max(now - ARGV[3], 0)))
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[4]) end
return {epoch, string.format('%.0f', now)}";

/// Says which Redis it is, and from where to where the log goes.
const LOOK: &str = "\
local epoch = redis.call('GET', KEYS[3])
if not epoch then
  epoch = ARGV[1]
  redis.call('SET', KEYS[3], epoch)
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
return {epoch, first and first[1] or '0-0', last and last[1] or '0-0'}";

/// Takes out what is there, if it still is.
const REMOVE: &str = "\
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])";

/// The place of an entry in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// When it was written, by the clock of Redis.
    pub millis: u64,
    /// Which one of that millisecond.
    pub sequence: u64,
}

impl fmt::Display for EntryId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.millis, self.sequence)
    }
}

impl FromStr for EntryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (millis, sequence) = text.split_once('-').ok_or(())?;
        let number = |digits: &str| digits.parse().map_err(|_| ());
        Ok(Self { millis: number(millis)?, sequence: number(sequence)? })
    }
}

/// Which Redis it is, and what its log reaches over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The word of this Redis.
    pub epoch: Vec<u8>,
    /// The first entry of the log; zero: there is none.
    pub first: EntryId,
    /// The last one.
    pub last: EntryId,
}

impl Reach {
    /// Whether who has read up to `seen` has missed nothing that is no longer in the log.
    pub fn has_all_after(&self, epoch: &[u8], seen: EntryId) -> bool {
        let begins = self.first != EntryId::default() && self.first <= seen;
        epoch == self.epoch && begins && seen <= self.last
    }
}

/// What Redis says when it has taken note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The word of this Redis.
    pub epoch: Vec<u8>,
    /// Its clock. (ms since the epoch)
    pub utc_ms: u64,
}

/// A part of the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatePage {
    /// Subjects and what is said of them. One that changes meanwhile may come twice.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the next part begins; `None`: there are no more.
    pub next: Option<u64>,
}

/// Where gateways tell each other about sources. Each method is done within `state.redis.connect_timeout`.
#[derive(Clone, Debug)]
pub struct Board {
    redis: Redis,
    publish: Arc<Script>,
    look: Arc<Script>,
    remove: Arc<Script>,
}

impl Board {
    /// The one in this Redis.
    pub fn new(redis: &Redis) -> Self {
        let script = |text| Arc::new(Script::new(text));
        Self {
            redis: redis.clone(),
            publish: script(PUBLISH),
            look: script(LOOK),
            remove: script(REMOVE),
        }
    }

    /// The Redis that it is in.
    pub fn redis(&self) -> &Redis {
        &self.redis
    }

    /// Tells the others; at most [`BATCH_MAX`] messages by subject. After an error they may or may not have been told.
    pub async fn publish(&self, messages: &[(String, Vec<u8>)]) -> Result<Published, Unavailable> {
        let [entries, age] = [LOG_ENTRIES_MAX.to_string(), LOG_AGE_MAX.as_millis().to_string()];
        let [kept, state] = [KEPT_FOR.as_secs().to_string(), STATE_ENTRIES_MAX.to_string()];
        let numbers = [word(), entries, age, kept, state].map(String::into_bytes);
        let told = messages.iter().take(BATCH_MAX);
        let told = told.flat_map(|(subject, text)| [subject.clone().into_bytes(), text.clone()]);
        let arguments: Vec<Vec<u8>> = numbers.into_iter().chain(told).collect();
        let answer =
            self.publish.run(&self.redis, &self.keys(), &arguments, self.patience()).await?;
        let parts = texts(answer).and_then(|parts| <[Vec<u8>; 2]>::try_from(parts).ok());
        let [epoch, utc] = parts.ok_or(Unavailable::Refused)?;
        let utc_ms = std::str::from_utf8(&utc).ok().and_then(|text| text.parse().ok());
        Ok(Published { epoch, utc_ms: utc_ms.ok_or(Unavailable::Refused)? })
    }

    /// Which Redis it is, and what its log reaches over.
    pub async fn look(&self) -> Result<Reach, Unavailable> {
        let arguments = [word(), KEPT_FOR.as_secs().to_string()];
        let answer = self.look.run(&self.redis, &self.keys(), &arguments, self.patience()).await?;
        let parts = texts(answer).and_then(|parts| <[Vec<u8>; 3]>::try_from(parts).ok());
        let [epoch, first, last] = parts.ok_or(Unavailable::Refused)?;
        let ids = entry_id(&first).zip(entry_id(&last));
        let (first, last) = ids.ok_or(Unavailable::Refused)?;
        Ok(Reach { epoch, first, last })
    }

    /// A part of the state from `cursor` on, 0 for the first.
    pub async fn state(&self, cursor: u64) -> Result<StatePage, Unavailable> {
        let key = self.key("state");
        let mut scan = Cmd::new();
        scan.arg("HSCAN").arg(&key).arg(cursor.to_string()).arg("COUNT").arg(BATCH_MAX);
        let answer = self.redis.call_patiently(key.as_bytes(), &scan).await?;
        page(answer).ok_or(Unavailable::Refused)
    }

    /// Takes a message out of the state, if it is still the one that was read.
    pub async fn remove(&self, subject: &[u8], message: &[u8]) -> Result<(), Unavailable> {
        let key = [self.key("state")];
        self.remove.run(&self.redis, &key, &[subject, message], self.patience()).await.map(drop)
    }

    /// A connection that follows the log.
    pub async fn follow(&self) -> Result<Follower, String> {
        let (inner, key) = (&self.redis.0, self.key("log"));
        let node = self.node(&key).ok_or("it is not known which server has the log")?;
        let within = inner.config.connect_timeout;
        let connecting = inner.connector.connect(&node, &inner.connector.data);
        let connected = timeout(within, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        match connected {
            Ok((connection, driver)) => {
                Ok(Follower { board: self.clone(), key, node, connection, driver })
            }
            Err(error) => {
                inner.look.notify_one();
                inner.complain(&node, &error);
                Err(format!("{}: {error}", node.address))
            }
        }
    }

    fn patience(&self) -> Duration {
        self.redis.config().connect_timeout
    }

    fn node(&self, key: &str) -> Option<Node> {
        let inner = &self.redis.0;
        let slot = if inner.is_cluster() { slot_of(key.as_bytes()) } else { 0 };
        inner.topology.load().of(slot).cloned()
    }

    fn key(&self, name: &str) -> String {
        format!("{}:{{bans}}:{name}", self.redis.config().prefix)
    }

    fn keys(&self) -> [String; 3] {
        ["log", "state", "epoch"].map(|name| self.key(name))
    }
}

/// A connection of its own, because nothing else can be asked on one that waits.
pub struct Follower {
    board: Board,
    key: String,
    node: Node,
    connection: MultiplexedConnection,
    driver: Driver,
}

impl Follower {
    /// What comes after an entry, as soon as there is anything; nothing after a second without. After an error there
    /// is to be another follower.
    pub async fn next(&mut self, after: EntryId) -> Result<Vec<(EntryId, Vec<u8>)>, String> {
        if self.board.node(&self.key).as_ref() != Some(&self.node) {
            return Err("another server has the log".to_owned());
        }
        let mut read = Cmd::new();
        read.arg("XREAD").arg("COUNT").arg(BATCH_MAX);
        read.arg("BLOCK").arg(BLOCK.as_millis().to_string());
        read.arg("STREAMS").arg(&self.key).arg(after.to_string());
        let inner = &self.board.redis.0;
        let asking = self.connection.send_packed_command(&read);
        let answer = tokio::select! {
            answer = timeout(BLOCK + inner.config.connect_timeout, asking) => answer,
            () = &mut self.driver => return Err("it closed the connection".to_owned()),
        };
        match answer {
            Err(_) => Err("no answer in time".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(Value::ServerError(error))) => {
                inner.look.notify_one();
                Err(error.to_string())
            }
            Ok(Ok(answer)) => entries(answer).ok_or_else(|| "its answer is no log".to_owned()),
        }
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Follower").field("node", &self.node).finish_non_exhaustive()
    }
}

/// What a Redis is called that has no name yet.
fn word() -> String {
    format!("{:016x}{:016x}", random(), random())
}

fn texts(answer: Value) -> Option<Vec<Vec<u8>>> {
    let Value::Array(parts) = answer else { return None };
    parts.into_iter().map(text).collect()
}

fn text(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

fn entry_id(bytes: &[u8]) -> Option<EntryId> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn page(answer: Value) -> Option<StatePage> {
    let Value::Array(parts) = answer else { return None };
    let [cursor, fields] = <[Value; 2]>::try_from(parts).ok()?;
    let next = std::str::from_utf8(&text(cursor)?).ok()?.parse().ok()?;
    let mut fields = texts(fields)?.into_iter();
    let mut entries = Vec::with_capacity(fields.len() / 2);
    while let (Some(subject), Some(message)) = (fields.next(), fields.next()) {
        entries.push((subject, message));
    }
    Some(StatePage { entries, next: (next != 0).then_some(next) })
}

/// Understands what XREAD says about one stream. An entry that is none of ours has no bytes.
fn entries(answer: Value) -> Option<Vec<(EntryId, Vec<u8>)>> {
    let streams = match answer {
        Value::Nil => return Some(Vec::new()),
        Value::Array(streams) => streams,
        _ => return None,
    };
    let Value::Array(stream) = streams.into_iter().next()? else { return None };
    let [_, Value::Array(listed)] = <[Value; 2]>::try_from(stream).ok()? else { return None };
    let entry = |entry: Value| {
        let Value::Array(parts) = entry else { return None };
        let [id, fields] = <[Value; 2]>::try_from(parts).ok()?;
        let id = entry_id(&text(id)?)?;
        let fields = texts(fields).and_then(|fields| <[Vec<u8>; 2]>::try_from(fields).ok());
        let message = fields.filter(|[name, _]| name == b"m").map(|[_, message]| message);
        Some((id, message.unwrap_or_default()))
    };
    listed.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn id(millis: u64, sequence: u64) -> EntryId {
        EntryId { millis, sequence }
    }

    #[test]
    fn a_log_reaches_as_far_back_as_its_first_entry() {
        let epoch = b"one".to_vec();
        let reach = Reach { epoch: epoch.clone(), first: id(5, 1), last: id(9, 0) };
        let has = |seen| reach.has_all_after(&epoch, seen);
        assert!(has(id(5, 1)) && has(id(7, 0)) && has(id(9, 0)));
        assert!(!has(id(5, 0)), "what came between may be gone");
        assert!(!has(id(9, 1)), "this Redis has not seen it");
        assert!(!reach.has_all_after(b"two", id(7, 0)));
        let empty = Reach { first: EntryId::default(), last: EntryId::default(), ..reach };
        assert!(!empty.has_all_after(&epoch, EntryId::default()));
    }

    #[test]
    fn ids_are_numbers_and_nothing_else() {
        assert_eq!("17-3".parse(), Ok(id(17, 3)));
        assert_eq!(id(17, 3).to_string(), "17-3");
        for nonsense in ["", "17", "-", "a-1", "1-a", "1-2-3", "99999999999999999999-0"] {
            assert_eq!(nonsense.parse::<EntryId>(), Err(()), "{nonsense}");
        }
    }

    #[test]
    fn what_a_log_says_is_taken_and_nonsense_is_not() {
        let entry = |id: &str, fields: &[&str]| {
            let fields = fields.iter().map(|field| bulk(field)).collect();
            Value::Array(vec![bulk(id), Value::Array(fields)])
        };
        let answer =
            |listed| Value::Array(vec![Value::Array(vec![bulk("log"), Value::Array(listed)])]);
        let good = answer(vec![entry("1-0", &["m", "text"]), entry("1-1", &["x", "y"])]);
        let found = vec![(id(1, 0), b"text".to_vec()), (id(1, 1), Vec::new())];
        assert_eq!(entries(good), Some(found));
        assert_eq!(entries(Value::Nil), Some(Vec::new()));
        for nonsense in [
            Value::Int(1),
            Value::Array(Vec::new()),
            Value::Array(vec![Value::Nil]),
            answer(vec![Value::Nil]),
            answer(vec![entry("x", &["m", "text"])]),
        ] {
            assert_eq!(entries(nonsense.clone()), None, "{nonsense:?}");
        }
    }

    #[test]
    fn what_a_scan_says_is_taken_and_nonsense_is_not() {
        let fields = Value::Array(["a", "1", "b", "2"].map(bulk).to_vec());
        let found = page(Value::Array(vec![bulk("7"), fields.clone()])).unwrap();
        let pair = |one: &str, other: &str| (one.as_bytes().to_vec(), other.as_bytes().to_vec());
        assert_eq!((found.entries, found.next), (vec![pair("a", "1"), pair("b", "2")], Some(7)));
        let last = page(Value::Array(vec![bulk("0"), Value::Array(Vec::new())]));
        assert_eq!(last, Some(StatePage::default()));
        for nonsense in [Value::Nil, Value::Array(vec![bulk("x"), fields]), Value::Int(0)] {
            assert_eq!(page(nonsense), None);
        }
    }
}
