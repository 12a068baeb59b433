//! Callers by the signature of their request: four header fields, or HTTP Message Signatures (RFC 9421). What is
//! signed is what the client has sent, before anything is rewritten; nothing of a body goes on before its digest was
//! checked, and a nonce is used up only by a signature that holds.

mod digest;
mod fields;
mod handed;
mod headers;
mod key;
mod message;
mod nonces;
mod query;
mod successor;
#[cfg(test)]
mod vectors;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest as sha256};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};

pub(super) use self::handed::Handed;
use self::key::{Source, Verifier};
pub(super) use self::nonces::Refused;
use self::nonces::{Nonce, Nonces};
pub(super) use self::successor::Successor;
pub use self::successor::{Asked, Questions};
use super::{Answer, Ask, Consumers, Identity};
use crate::base::time::utc;
use crate::config::{self, RedisMode};
use crate::shared::Redis;
use crate::store::nonces::Mark;

/// Bytes of a nonce: enough that nobody guesses one, and no more than a name needs.
const NONCE_BYTES: std::ops::RangeInclusive<usize> = 16..=128;
/// Keys whose files are looked at a second.
const LOOKS: usize = 1024;
/// Where nonces are remembered that only this process knows.
const MEMORY: u64 = 0;

/// Whoever has one of these keys.
#[derive(Debug)]
pub(super) struct Hmac {
    name: Box<str>,
    config: config::Hmac,
    keys: HashMap<Box<str>, Key>,
    nonces: Arc<Nonces>,
    /// What several gateways share decides for all of them.
    redis: Option<Redis>,
    /// Which Redis that is, or the memory of this process.
    place: u64,
    /// Since which second all nonces are there.
    since: AtomicU64,
    /// The key whose file is looked at next.
    next: AtomicUsize,
    /// What was signed before this second may have been forgotten, with a smaller skew than there is now.
    known_from: u64,
}

#[derive(Debug)]
struct Key {
    source: Source,
    identity: Arc<Identity>,
}

/// What of a request signatures are over.
#[derive(Clone, Copy, Debug)]
struct Message<'a> {
    method: &'a Method,
    /// Path and query as the client has sent them.
    target: &'a str,
    headers: &'a HeaderMap,
    /// `https` or `http`.
    scheme: &'static str,
}

impl Hmac {
    /// Reads the keys. Nonces that were used stay used: they are those of `before`, or of the process before this one,
    /// which left `mark`.
    pub(super) fn new(
        (name, config): (&str, &config::Hmac),
        consumers: &Consumers,
        redis: Option<&Redis>,
        (before, mark): (Option<&Self>, Option<Mark>),
    ) -> Result<Self, String> {
        let mut keys = HashMap::new();
        for one in &config.keys {
            let source = Source::read(&one.proof);
            let source = source.map_err(|error| format!("the key `{}`: {error}", one.id))?;
            let identity = Identity {
                authenticator: name.into(),
                consumer: Some(one.consumer.as_str().into()),
                key: Some(one.id.as_str().into()),
                ..Identity::default()
            };
            let identity = Arc::new(consumers.complete(identity));
            keys.insert(one.id.as_str().into(), Key { source, identity });
        }
        let now = utc().0 / 1000;
        let place = redis.map_or(MEMORY, place);
        let since = match (before.map(Self::mark).or(mark), redis) {
            (Some(mark), Some(_)) if mark.place == place => mark.since,
            // Redis knows what was used before.
            (None, Some(_)) => 0,
            (None, None) => now,
            // In this very second there may have been another process.
            (Some(_), _) => now + 1,
        };
        let nonces = before.map(|before| Arc::clone(&before.nonces));
        let nonces = nonces.unwrap_or_else(|| Arc::new(Nonces::new(since)));
        let known_from = before.map_or(0, |before| {
            let skews = (before.config.skew.as_secs(), config.skew.as_secs());
            before.known_from.max(known_from(skews, (before.place, place), now))
        });
        Ok(Self {
            name: name.into(),
            config: config.clone(),
            keys,
            nonces,
            redis: redis.cloned(),
            place,
            since: AtomicU64::new(since),
            next: AtomicUsize::new(0),
            known_from,
        })
    }

    /// What the next process must know.
    pub(super) fn mark(&self) -> Mark {
        Mark { place: self.place, since: self.since.load(Ordering::Relaxed) }
    }

    /// Reads keys again whose files have changed, a part of them each time.
    pub(super) fn tick(&self) {
        let count = self.keys.len();
        let first = self.next.load(Ordering::Relaxed);
        let first = if first < count { first } else { 0 };
        self.next.store(first + LOOKS, Ordering::Relaxed);
        let authenticator = &*self.name;
        for (key, one) in self.keys.iter().skip(first).take(LOOKS) {
            match one.source.tick() {
                Ok(false) => {}
                Ok(true) => tracing::info!(authenticator, %key, "read again"),
                Err(error) => tracing::warn!(authenticator, error, "the key stays as it was"),
            }
        }
    }

    /// Who has signed the request.
    pub(super) async fn authenticate(&self, ask: &Ask<'_>) -> Answer {
        let message = Message {
            method: &ask.head.method,
            target: ask.target.path_and_query().map_or("/", PathAndQuery::as_str),
            headers: &ask.head.headers,
            scheme: if ask.is_tls { "https" } else { "http" },
        };
        match self.signer(ask, &message).await {
            Ok(Some(identity)) => Answer::Known(Arc::clone(identity)),
            Ok(None) => Answer::Absent,
            Err(answer) => answer,
        }
    }

    /// What a successor must know. From now on it decides, unless it cannot be asked and Redis decides for both.
    pub(super) fn hand_over(&self, successor: Option<&Successor>) -> Handed {
        let (known_from, used) = if successor.is_none() && self.redis.is_some() {
            self.nonces.all()
        } else {
            self.nonces.hand_over(successor.cloned())
        };
        let known_from = known_from.max(self.known_from);
        Handed { place: self.place, skew_s: self.config.skew.as_secs(), known_from, used }
    }

    /// Goes on where a predecessor has handed over, which has accepted nothing since. Of one that did not know this
    /// authenticator nothing is known.
    pub(super) fn take_over(&self, handed: Option<&Handed>) {
        let now = utc().0 / 1000;
        match handed {
            Some(handed) => {
                let skews = (handed.skew_s, self.config.skew.as_secs());
                let places = (handed.place, self.place);
                let from = known_from(skews, places, now).max(handed.known_from);
                self.nonces.take_over(from, &handed.used);
                if handed.place != self.place {
                    self.since.store(now + 1, Ordering::Relaxed);
                }
            }
            None if self.redis.is_some() => {}
            None => self.nonces.begin_at(now + 1),
        }
    }

    /// Knows of no nonce, and that none was used.
    pub(super) fn accept_all(&self) {
        self.nonces.take_over(0, &[]);
    }

    /// Decides again: the successor that was told has ended, and nobody knows what it has accepted.
    pub(super) fn resume(&self) {
        if self.nonces.is_handed() {
            self.nonces.begin_at(utc().0 / 1000 + 1);
        }
    }

    /// Whether what a predecessor asks about is accepted, by the clock and the skew here.
    pub(super) async fn decide(&self, asked: &Asked) -> Result<(), Refused> {
        let now = utc().0 / 1000;
        if now.abs_diff(asked.signed) > self.config.skew.as_secs() {
            return Err(Refused::Forgotten);
        }
        self.is_new(asked.nonce, asked.signed)?;
        self.remember(asked.nonce, asked.signed, now).await
    }

    async fn signer(
        &self,
        ask: &Ask<'_>,
        message: &Message<'_>,
    ) -> Result<Option<&Arc<Identity>>, Answer> {
        let config::Hmac { headers, rfc9421, .. } = self.config;
        let fields = headers.then(|| headers::Signed::of(message.headers)).transpose();
        let known = |key: &str| self.keys.contains_key(key);
        let described = rfc9421.then(|| message::Signed::of(message.headers, known)).transpose();
        match (fields.map_err(Answer::Refused)?.flatten(), described) {
            (Some(signed), Ok(None | Some(None))) => {
                self.by_fields(&signed, ask, message).await.map(Some)
            }
            (None, Ok(Some(Some(signed)))) => {
                self.by_description(&signed, ask, message).await.map(Some)
            }
            (None, Ok(None | Some(None))) => Ok(None),
            (None, Err(reason)) => Err(Answer::Refused(reason)),
            (Some(_), _) => Err(Answer::Refused("the request is signed in two ways")),
        }
    }

    async fn by_fields(
        &self,
        signed: &headers::Signed<'_>,
        ask: &Ask<'_>,
        message: &Message<'_>,
    ) -> Result<&Arc<Identity>, Answer> {
        let key = self.keys.get(signed.key).filter(|key| key.source.with(Verifier::is_shared));
        let key = key.ok_or(Answer::Refused("no such key"))?;
        let timely = self.is_timely(signed.timestamp, ask);
        let nonce = Nonce::of(signed.key, signed.nonce);
        if timely.is_ok() {
            self.is_new(nonce, signed.timestamp).map_err(answer)?;
        }
        let body = self.body(ask).await?;
        let text = signed.text(message, &body);
        if !key.source.with(|key| key.verifies(text.as_bytes(), &signed.signature)) {
            return Err(Answer::Refused("the signature does not hold"));
        }
        timely.map_err(Answer::Expired)?;
        self.remember(nonce, signed.timestamp, seconds(ask)).await.map_err(answer)?;
        Ok(&key.identity)
    }

    async fn by_description(
        &self,
        signed: &message::Signed,
        ask: &Ask<'_>,
        message: &Message<'_>,
    ) -> Result<&Arc<Identity>, Answer> {
        let key = self.keys.get(signed.key.as_str()).ok_or(Answer::Refused("no such key"))?;
        let (created, nonce) = self.is_described(signed, key).map_err(Answer::Refused)?;
        let timely = match signed.expires {
            Some(expires) if expires <= seconds(ask) => Err("the signature has expired"),
            _ => self.is_timely(created, ask),
        };
        if timely.is_ok() {
            self.is_new(nonce, created).map_err(answer)?;
        }
        let base = signed.base(message).map_err(Answer::Refused)?;
        if !key.source.with(|key| key.verifies(base.as_bytes(), &signed.signature)) {
            return Err(Answer::Refused("the signature does not hold"));
        }
        timely.map_err(Answer::Expired)?;
        let body = self.body(ask).await?;
        if signed.covers_body() {
            digest::verify(message.headers, &body).map_err(Answer::Refused)?;
        } else if !body.is_empty() {
            return Err(Answer::Refused("the signature does not cover content-digest"));
        }
        self.remember(nonce, created, seconds(ask)).await.map_err(answer)?;
        Ok(&key.identity)
    }

    /// What a description must say: everything that is required, and nothing that contradicts the key.
    fn is_described(
        &self,
        signed: &message::Signed,
        key: &Key,
    ) -> Result<(u64, Nonce), &'static str> {
        signed.covers_enough(&self.config.cover)?;
        let algorithm = key.source.with(Verifier::algorithm);
        if signed.algorithm.as_ref().is_some_and(|named| named != algorithm) {
            return Err("the signature names another algorithm than its key has");
        }
        let created = signed.created.ok_or("the signature does not say when it was created")?;
        let nonce = signed.nonce.as_deref().ok_or("the signature has no nonce")?;
        if !nonce_is_good(nonce) {
            return Err("the nonce of the signature is no nonce");
        }
        Ok((created, Nonce::of(&signed.key, nonce)))
    }

    /// Who has signed well, but not now, is told so only after the signature was found to hold.
    fn is_timely(&self, signed: u64, ask: &Ask<'_>) -> Result<(), &'static str> {
        if seconds(ask).abs_diff(signed) > self.config.skew.as_secs() {
            return Err("signed too long ago, or by a clock that is ahead");
        }
        Ok(())
    }

    /// The whole body, of which nothing has gone on yet.
    async fn body(&self, ask: &Ask<'_>) -> Result<Bytes, Answer> {
        let Some(body) = ask.body else { return Ok(Bytes::new()) };
        body.whole(self.config.body_bytes).await.map_err(Answer::Failed)
    }

    /// Refuses what is known to be used before anything costly is done. What decides is [`Self::remember`].
    fn is_new(&self, nonce: Nonce, signed: u64) -> Result<(), Refused> {
        if signed < self.known_from {
            return Err(Refused::Forgotten);
        }
        // Beside Redis there are those that were used before there was one.
        match self.nonces.check(nonce, signed) {
            // It is asked about what is worth it.
            Err(Refused::Handed) => Ok(()),
            known => known,
        }
    }

    /// Uses the nonce up in the second `now`: for all gateways that share Redis, for this process, or at the successor
    /// that decides for both.
    async fn remember(&self, nonce: Nonce, signed: u64, now: u64) -> Result<(), Refused> {
        let decided = match &self.redis {
            Some(redis) => self.remember_in(redis, nonce, (signed, now)).await,
            None => {
                let expired = now.saturating_sub(self.config.skew.as_secs());
                self.nonces.remember(nonce, signed, expired, self.config.nonces)
            }
        };
        if decided == Err(Refused::Handed)
            && let Some(successor) = self.nonces.successor()
        {
            return successor.accepts(&Asked { name: self.name.to_string(), nonce, signed }).await;
        }
        decided
    }

    async fn remember_in(
        &self,
        redis: &Redis,
        nonce: Nonce,
        (signed, now): (u64, u64),
    ) -> Result<(), Refused> {
        self.nonces.check(nonce, signed)?;
        // One second more, for both clocks are read to the second.
        let until = signed.saturating_add(self.config.skew.as_secs() + 1);
        let keep = Duration::from_secs(until.saturating_sub(now).max(1));
        match redis.is_first(&self.name, &nonce.0, keep).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refused::Used),
            Err(_) => Err(Refused::Away),
        }
    }
}

/// The first second of which everything is still known after a change of the skew, in seconds, or of where nonces are
/// remembered: what this process has in its memory it goes on looking at, what another Redis knows it does not.
fn known_from((skew_before, skew): (u64, u64), (place_before, place): (u64, u64), now: u64) -> u64 {
    if place_before != MEMORY && place_before != place {
        return now + 1;
    }
    if skew_before < skew { now.saturating_sub(skew_before) } else { 0 }
}

/// A number for where this Redis keeps nonces, which is another one for any other.
fn place(redis: &Redis) -> u64 {
    let config::Redis { addresses, mode, database, prefix, .. } = redis.config();
    let master = match mode {
        RedisMode::Sentinel { master, .. } => master,
        RedisMode::Standalone | RedisMode::Cluster => "",
    };
    let text = format!("{addresses:?} {} {master} {database} {prefix}", mode.name());
    let digest = sha256(&SHA256, text.as_bytes());
    let number = digest.as_ref().first_chunk().map_or(MEMORY, |bytes| u64::from_be_bytes(*bytes));
    number.max(1)
}

fn seconds(ask: &Ask<'_>) -> u64 {
    ask.moment.utc().0 / 1000
}

fn answer(refused: Refused) -> Answer {
    match refused {
        Refused::Used => Answer::Refused("the nonce was used before"),
        Refused::Forgotten => Answer::Refused("signed before what is still known of nonces"),
        Refused::Full => Answer::Unavailable("the table of nonces is full"),
        Refused::Handed => Answer::Unavailable("another gateway takes over"),
        Refused::Away => Answer::Unavailable("Redis cannot be asked about the nonce"),
    }
}

fn nonce_is_good(nonce: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    NONCE_BYTES.contains(&nonce.len()) && nonce.bytes().all(good)
}

/// What would be signed, for the fuzz target: nothing that clients send makes it panic.
pub fn signature_base(headers: &HeaderMap) -> Option<String> {
    let message = Message { method: &Method::GET, target: "/a?b=c", headers, scheme: "https" };
    let signed = message::Signed::of(headers, |_| true).ok()??;
    signed.base(&message).ok()
}
