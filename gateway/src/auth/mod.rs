//! Who is calling, and whether they may. Only [`authorize`] makes an [`Authorized`], without which nothing is sent to a
//! service.
//!
//! A route names the authenticators that it believes, in order. The first that knows the caller decides who it is. A
//! credential that does not hold is nobody's: the next authenticator is asked, for two issuers may share a header, but
//! the caller is never taken for an anonymous one. Where a credential cannot be checked now, and nobody else knows the
//! caller, the answer says so, and never that the credential is bad.

mod api_key;
mod basic;
mod checker;
mod claims;
mod expression;
mod forward;
mod hmac;
mod identity;
mod identity_token;
mod introspection;
mod json;
mod jwt;
mod memory;
mod mtls;
mod place;
mod require;
mod watched;

use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::request::Parts;
use http::uri::Uri;

pub use self::forward::{Forward, Made};
pub use self::hmac::{Asked, Questions, signature_base};
pub use self::identity::{Consumers, Identity};
pub use self::jwt::usable_keys;
pub use self::memory::{Digest, Memory, digest_of};

use self::checker::Checker;

use crate::base::address::ClientAddr;
use crate::base::error::{Error, Kind};
use crate::base::time::{Moment, Now};
use crate::config::{self, Access, AuthKind, Config};
use crate::http::headers::Names;
use crate::http::unread::Unread;
use crate::observe::outcomes::Outcomes;
use crate::shared::Redis;
use crate::store::StoreError;
use crate::store::keys::Registry;
use crate::store::nonces::{self, Mark};
use crate::tls::session::ClientCertificate;

/// What an authenticator is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The head of the request: one Host, the target in origin form and its path in normal form.
    pub head: &'a Parts,
    /// Path and query as the client has sent them, which is what signatures are over.
    pub target: &'a Uri,
    /// Whom the request is believed to come from.
    pub client: ClientAddr,
    /// What the client has proven to be in the TLS handshake.
    pub certificate: Option<&'a ClientCertificate>,
    /// Whether it came over TLS.
    pub is_tls: bool,
    /// What comes behind the head, for whoever must see all of it; `None` where there is no request but its head.
    pub body: Option<&'a Unread>,
    /// What time it is.
    pub moment: &'a Moment,
}

/// What an authenticator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request has no credential of this kind.
    Absent,
    /// This is who calls.
    Known(Arc<Identity>),
    /// A credential that does not hold, and why: for the log, without anything of the credential.
    Refused(&'static str),
    /// One that did hold: it is only too old. Whoever holds it has not guessed.
    Expired(&'static str),
    /// It cannot be checked now, and why.
    Unavailable(&'static str),
    /// The request cannot be read, whoever calls.
    Failed(Error),
}

/// What an authenticator says, in the order in which it is counted.
const OUTCOMES: [&str; 4] = ["known", "absent", "refused", "unavailable"];

impl Answer {
    fn outcome(&self) -> usize {
        match self {
            Self::Known(_) => 0,
            Self::Absent => 1,
            Self::Refused(_) | Self::Expired(_) | Self::Failed(_) => 2,
            Self::Unavailable(_) => 3,
        }
    }
}

/// A request whose caller may make it. Only [`authorize`] makes one.
#[derive(Clone, Debug)]
pub struct Authorized {
    identity: Option<Arc<Identity>>,
}

impl Authorized {
    /// Who calls; `None` is nobody in particular.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.identity.as_ref()
    }
}

/// All ways to know callers, compiled. Shared by the workers.
#[derive(Debug, Default)]
pub struct Authenticators {
    all: Vec<Authenticator>,
    workers: usize,
    keys: Option<Registry>,
    forward: Option<Forward>,
    state_dir: PathBuf,
    /// Whether it was written where nonces are remembered.
    is_marked: AtomicBool,
}

/// A way to know callers.
#[derive(Debug)]
struct Authenticator {
    /// As configured, by which the next configuration finds what it may take over.
    config: config::Authenticator,
    kind: Checker,
    outcomes: Outcomes<{ OUTCOMES.len() }>,
}

/// What one worker remembers, by authenticator.
#[derive(Debug)]
pub struct Memories {
    worker: usize,
    all: Vec<Memory>,
    forged: Option<Rc<Names>>,
}

impl Memories {
    /// The names that no field after a body may have.
    pub fn forged(&self) -> Option<&Rc<Names>> {
        self.forged.as_ref()
    }
}

impl Authenticators {
    /// Those of `config`, with their secrets and keys read. What has not changed since `before` goes on with what it
    /// knows. `redis` is what several gateways share, if they do. The error names the authenticator.
    pub fn new(config: &Config, before: &Self, redis: Option<&Redis>) -> Result<Self, String> {
        Self::with(config, before, (redis, redis))
    }

    /// Those of `config`, who say of a request what they would say if it came. They use nothing up: keys may be in
    /// `redis`, and nonces are in none.
    pub fn explaining(config: &Config, redis: Option<&Redis>) -> Result<Self, String> {
        let all = Self::with(config, &Self::default(), (redis, None))?;
        all.signed().for_each(|(_, hmac)| hmac.accept_all());
        Ok(all)
    }

    fn with(
        config: &Config,
        before: &Self,
        (keys_redis, nonces_redis): (Option<&Redis>, Option<&Redis>),
    ) -> Result<Self, String> {
        let consumers = Arc::new(Consumers::new(&config.consumers));
        let keys = before.keys.clone().unwrap_or_else(|| Registry::at(&config.state.dir));
        let marks = nonces::read(&config.state.dir);
        let all = config.auth.iter().map(|one| {
            let same = before.all.iter().find(|before| before.config.name == one.name);
            let redis = match one.kind {
                AuthKind::ApiKey(_) => keys_redis,
                _ => nonces_redis,
            };
            let before_it = (same.map(|before| &before.kind), marks.get(&one.name).copied());
            let kind = Checker::new(one, ((&keys, redis), &consumers), before_it);
            let kind = kind.map_err(|error| format!("auth.{}: {error}", one.name))?;
            let outcomes = same.filter(|_| before.workers == config.workers);
            let outcomes = outcomes.map(|before| before.outcomes.clone());
            let outcomes = outcomes.unwrap_or_else(|| Outcomes::new(config.workers));
            Ok(Authenticator { config: one.clone(), kind, outcomes })
        });
        let all = all.collect::<Result<_, String>>()?;
        let forward = config.told.as_ref().map(Forward::new).transpose()?;
        Ok(Self {
            all,
            workers: config.workers,
            keys: Some(keys),
            forward,
            state_dir: config.state.dir.clone(),
            is_marked: AtomicBool::new(false),
        })
    }

    /// Opens what callers are looked up in. The folder of the state must be there.
    pub fn open(&self) -> Result<(), String> {
        let has_keys = self.all.iter().any(|one| match &one.kind {
            Checker::ApiKey(api_key) => api_key.is_embedded(),
            _ => false,
        });
        let keys = self.keys.as_ref().filter(|_| has_keys);
        keys.map_or(Ok(()), |keys| keys.open().map(drop).map_err(|error| error.to_string()))
    }

    /// Says on the disk that a process remembers nonces which no other knows, before it accepts one.
    pub fn begin(&self) -> Result<(), String> {
        self.mark(|mark| mark.place == 0).map_err(|error| error.to_string())
    }

    /// Writes where nonces are remembered, of those who are `wanted`.
    fn mark(&self, wanted: impl Fn(Mark) -> bool) -> Result<(), StoreError> {
        let before = nonces::read(&self.state_dir);
        let mut marks = before.clone();
        let own = self.signed().map(|(name, hmac)| (name.to_owned(), hmac.mark()));
        marks.extend(own.filter(|(_, mark)| wanted(*mark)));
        if marks == before { Ok(()) } else { nonces::keep(&self.state_dir, &marks) }
    }

    /// The API keys, which one gateway has once.
    pub fn keys(&self) -> Option<&Registry> {
        self.keys.as_ref()
    }

    /// What services are told about callers.
    pub fn forward(&self) -> Option<&Forward> {
        self.forward.as_ref()
    }

    /// Takes credentials out of a request that its route believes, where they are not for services.
    pub fn strip(&self, access: Option<&Access>, head: &mut Parts) {
        let authenticators = access.iter().flat_map(|access| &access.authenticators);
        for one in authenticators.filter_map(|index| self.all.get(*index)) {
            match &one.kind {
                Checker::ApiKey(api_key) => api_key.strip(head),
                Checker::Basic(basic) => basic.strip(head),
                Checker::Introspection(introspection) => introspection.strip(head),
                Checker::Jwt(jwt) => jwt.strip(head),
                Checker::Hmac(_) | Checker::Mtls(_) => {}
            }
        }
    }

    /// What the worker of this number begins with.
    pub fn memories(&self, worker: usize) -> Memories {
        let all = self.all.iter().map(|one| Memory::new(one.kind.remembers())).collect();
        let forged = self.forward.as_ref().map(|forward| Rc::new(forward.removed().clone()));
        Memories { worker, all, forged }
    }

    /// How often requests were answered how, by authenticator.
    pub fn outcomes(&self) -> impl Iterator<Item = (&str, [(&'static str, u64); 4])> {
        self.all.iter().map(|one| (one.config.name.as_str(), one.outcomes.sums(OUTCOMES)))
    }

    /// For how long it has not been known which API keys of Redis were revoked, by authenticator.
    pub fn unknown_for(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.all.iter().filter_map(|one| match &one.kind {
            Checker::ApiKey(api_key) => Some((one.config.name.as_str(), api_key.unknown_for()?)),
            _ => None,
        })
    }

    /// Whether callers can be known at all.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Looks after what changes by itself: files, keys of issuers. Called about once a second, by whoever has put this
    /// in force.
    pub fn tick(&self, now: Now) {
        // Only now: what is not in force yet leaves nothing in Redis, and what was before may have used its memory.
        if !self.is_marked.swap(true, Ordering::Relaxed)
            && let Err(error) = self.mark(|_| true)
        {
            tracing::warn!(%error, "after a restart, signed requests from before it are refused");
        }
        self.all.iter().for_each(|one| one.kind.tick(now));
    }

    /// Does as [`Self::tick`] while a successor may change what is known about keys, of which this process is not told.
    pub fn tick_beside(&self, now: Now) {
        if let Some(keys) = self.keys.as_ref().and_then(Registry::opened) {
            keys.look_again();
        }
        self.tick(now);
    }

    /// What a successor must know so that what is accepted once is accepted by one of the two. Until [`Self::resume`]
    /// it is asked about such requests; they are refused here where it does not know how to answer.
    pub fn hand_over(&self, answers: bool) -> (Vec<u8>, Option<Questions>) {
        let (successor, questions) = answers.then(hmac::Successor::new).unzip();
        let mut bytes = Vec::new();
        for (name, hmac) in self.signed() {
            hmac.hand_over(successor.as_ref()).write(name, &mut bytes);
        }
        (bytes, questions)
    }

    /// The answer to what a predecessor asks.
    pub async fn decide(&self, asked: &Asked) -> u8 {
        let decided = match self.signed().find(|(name, _)| *name == asked.name) {
            Some((_, hmac)) => hmac.decide(asked).await,
            None => Err(hmac::Refused::Handed),
        };
        Asked::answer(decided)
    }

    /// Goes on where a predecessor has handed `bytes` over.
    pub fn take_over(&self, bytes: &[u8]) {
        let handed = hmac::Handed::read(bytes).unwrap_or_default();
        for (name, hmac) in self.signed() {
            let handed = handed.iter().find(|(known, _)| *known == name);
            hmac.take_over(handed.map(|(_, handed)| handed));
        }
    }

    /// Serves on: the successor has ended.
    pub fn resume(&self) {
        self.signed().for_each(|(_, hmac)| hmac.resume());
    }

    fn signed(&self) -> impl Iterator<Item = (&str, &hmac::Hmac)> {
        self.all.iter().filter_map(|one| match &one.kind {
            Checker::Hmac(hmac) => Some((one.config.name.as_str(), &**hmac)),
            _ => None,
        })
    }

    /// The addresses that are talked to, and whose they are.
    pub fn peers(&self) -> Vec<(String, IpAddr)> {
        let peers = self.all.iter().flat_map(|one| {
            let what = format!("asked by the authenticator `{}`", one.config.name);
            one.kind.peers().into_iter().map(move |address| (what.clone(), address))
        });
        peers.collect()
    }

    async fn known(
        &self,
        access: &Access,
        ask: &Ask<'_>,
        memories: &Memories,
    ) -> Result<Option<Arc<Identity>>, Error> {
        let (mut refused, mut unavailable) = (None, None);
        let (mut has_expired, mut may_be_guessed) = (false, false);
        for index in &access.authenticators {
            let Some((one, memory)) = self.all.get(*index).zip(memories.all.get(*index)) else {
                continue;
            };
            let answer = one.kind.authenticate(ask, memory).await;
            one.outcomes.count(memories.worker, answer.outcome());
            match answer {
                Answer::Absent => {}
                Answer::Known(identity) => return Ok(Some(identity)),
                Answer::Refused(reason) => {
                    refused = refused.or(Some(reason));
                    may_be_guessed |= matches!(one.kind, Checker::Basic(_));
                }
                Answer::Expired(reason) => {
                    refused = refused.or(Some(reason));
                    has_expired = true;
                }
                Answer::Unavailable(reason) => unavailable = unavailable.or(Some(reason)),
                Answer::Failed(error) => return Err(error),
            }
        }
        match (unavailable, refused) {
            (Some(reason), _) => Err(Error::from(Kind::AuthUnavailable).because(reason)),
            (None, None) if access.anonymous => Ok(None),
            (None, None) => Err(self.unauthenticated(
                access,
                "this needs a credential; see the header WWW-Authenticate",
            )),
            (None, Some(reason)) => {
                let error = self.unauthenticated(access, "the credential is not valid here");
                let error = error.because(reason);
                // Of two that share a header, one has never heard of what the other once knew; a password is another
                // credential, and no old token beside it makes a guess at it good.
                Err(if has_expired && !may_be_guessed { error.expired() } else { error })
            }
        }
    }

    fn unauthenticated(&self, access: &Access, detail: &'static str) -> Error {
        let mut challenges: Vec<String> = Vec::new();
        for one in access.authenticators.iter().filter_map(|index| self.all.get(*index)) {
            let challenge = one.kind.challenge();
            if !challenges.contains(&challenge) {
                challenges.push(challenge);
            }
        }
        Error::unauthenticated(detail, challenges.join(", "))
    }
}

/// Finds out who calls and whether they may: by `access`, what their route says of it.
pub async fn authorize(
    access: Option<&Access>,
    (authenticators, memories): (&Authenticators, &Memories),
    ask: Ask<'_>,
) -> Result<Authorized, Error> {
    let Some(access) = access else { return Ok(Authorized { identity: None }) };
    // On the heap, for most routes have nobody to ask.
    let identity = Box::pin(authenticators.known(access, &ask, memories)).await?;
    if require::allows(&access.require, identity.as_deref(), (ask.head, ask.client)) {
        return Ok(Authorized { identity });
    }
    Err(match identity {
        Some(_) => Kind::Forbidden.into(),
        None => {
            let detail = "this needs a credential; see the header WWW-Authenticate";
            authenticators.unauthenticated(access, detail)
        }
    })
}
