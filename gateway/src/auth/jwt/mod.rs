//! Signed tokens (RFC 7519), verified here by keys of the configuration. A token decides nothing about how it is
//! verified: each key has its algorithms, and a token is held against the key or is refused.
//!
//! In order: found, bounded, split; key and signature; only then what it says; whether it is revoked.

mod algorithm;
mod issuer;
mod key;
mod key_set;
mod revocation;
mod token;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::request::Parts;

use self::issuer::{Issuer, Renewed};
use self::key::Key;
use self::key_set::{KeySet, Verdict};
use self::revocation::Revoked;
use self::token::Token;
use super::claims::Unfit;
use super::place::{Found, find, strip};
use super::watched::Watched;
use super::{Answer, Ask, Consumers, Identity, Memory, claims, digest_of};
use crate::base::time::{Now, UtcMillis};
use crate::config::{self, JwtKeys};

/// A file of keys (unit: bytes).
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Knows callers by signed tokens.
#[derive(Debug)]
pub(super) struct Jwt {
    name: Box<str>,
    config: config::Jwt,
    consumers: Arc<Consumers>,
    keys: Keys,
    revoked: Option<Watched<Revoked>>,
    /// Counts the versions of files of keys and revoked tokens.
    generation: AtomicU64,
}

#[derive(Debug)]
enum Keys {
    Fixed(KeySet),
    File(Watched<KeySet>),
    Issuer(Arc<Issuer>),
}

/// How many keys of a set as issuers publish it (RFC 7517) can be used; the error says why none can.
pub fn usable_keys(jwks: &[u8]) -> Result<usize, String> {
    KeySet::of_jwks(jwks, false, &[]).map(|keys| keys.len())
}

/// Why a token is not taken.
enum Refusal {
    Bad(&'static str),
    Expired,
    Later(&'static str),
}

impl From<&'static str> for Refusal {
    fn from(reason: &'static str) -> Self {
        Self::Bad(reason)
    }
}

impl From<Unfit> for Refusal {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Expired => Self::Expired,
            Unfit::Bad(reason) => Self::Bad(reason),
        }
    }
}

impl Jwt {
    /// Reads the files of keys; takes over what `before` knows of the same issuer.
    pub(super) fn new(
        name: &str,
        config: &config::Jwt,
        consumers: &Arc<Consumers>,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let revoked = config.revoked.as_deref();
        let revoked = revoked
            .map(|path| Watched::new(path, revocation::FILE_BYTES_MAX, Revoked::parse))
            .transpose()?;
        Ok(Self {
            name: name.into(),
            config: config.clone(),
            consumers: Arc::clone(consumers),
            keys: Keys::new(config, before.map(|before| &before.keys))?,
            revoked,
            generation: AtomicU64::new(0),
        })
    }

    /// Callers whom a worker remembers.
    pub(super) fn remembers(&self) -> usize {
        self.config.remember
    }

    /// Takes the token out of a request, where it is not for services.
    pub(super) fn strip(&self, head: &mut Parts) {
        if self.config.strip {
            self.config.places.iter().for_each(|place| strip(place, head, |_| true));
        }
    }

    /// As in `WWW-Authenticate` (RFC 6750, section 3).
    pub(super) fn challenge(&self) -> String {
        format!("Bearer realm=\"{}\"", self.name)
    }

    /// Who calls, by a token in one of the places.
    pub(super) async fn authenticate(&self, ask: &Ask<'_>, memory: &Memory) -> Answer {
        let token = match find(&self.config.places, ask.head) {
            Found::Nothing => return Answer::Absent,
            Found::Several => return Answer::Refused("there is more than one token"),
            Found::One(token) => token,
        };
        // Before anything that it stands for: what changes meanwhile makes the result be forgotten.
        let (generation, now) = (self.generation(), ask.moment.now());
        let digest = (self.config.remember > 0 && token.len() <= self.config.token_bytes)
            .then(|| digest_of(&token));
        if let Some(known) = digest.and_then(|digest| memory.get(&digest, generation, now)) {
            return Answer::Known(known);
        }
        match self.verify(&token, now).await {
            Ok((identity, until)) => {
                let identity = Arc::new(identity);
                if let Some(digest) = digest {
                    let time = claims::left(until, now.utc);
                    memory.put(digest, generation, (now, time), Arc::clone(&identity));
                }
                Answer::Known(identity)
            }
            Err(Refusal::Bad(reason)) => Answer::Refused(reason),
            Err(Refusal::Expired) => Answer::Expired(claims::EXPIRED),
            Err(Refusal::Later(reason)) => Answer::Unavailable(reason),
        }
    }

    /// Looks after keys and files. Needs a tokio runtime.
    pub(super) fn tick(&self, now: Now) {
        let keys = match &self.keys {
            Keys::Fixed(_) => Ok(false),
            Keys::File(keys) => keys.tick(),
            Keys::Issuer(issuer) => {
                issuer.tick(now);
                Ok(false)
            }
        };
        let revoked = self.revoked.as_ref().map_or(Ok(false), Watched::tick);
        for changed in [keys, revoked] {
            let authenticator = &*self.name;
            match changed {
                Ok(true) => {
                    tracing::info!(authenticator, "a file has changed and was read");
                    self.generation.fetch_add(1, Ordering::Release);
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(authenticator, error, "the last good one stays"),
            }
        }
    }

    /// Whom keys come from.
    pub(super) fn peers(&self) -> Vec<IpAddr> {
        match &self.keys {
            Keys::Issuer(issuer) => issuer.peers(),
            Keys::Fixed(_) | Keys::File(_) => Vec::new(),
        }
    }

    /// Of either counter, which only grow.
    fn generation(&self) -> u64 {
        let files = self.generation.load(Ordering::Acquire);
        match &self.keys {
            Keys::Issuer(issuer) => files.wrapping_add(issuer.generation()),
            Keys::Fixed(_) | Keys::File(_) => files,
        }
    }

    async fn verify(
        &self,
        token: &[u8],
        now: Now,
    ) -> Result<(Identity, Option<UtcMillis>), Refusal> {
        let token = Token::parse(token, self.config.token_bytes)?;
        if self.config.token_type.as_deref().is_some_and(|wanted| !token.is_of(wanted)) {
            return Err("the token is of another type".into());
        }
        match self.keys.verify(&token, now).await? {
            Verdict::Good => {}
            Verdict::UnknownKey => return Err("the token names a key that is not known".into()),
            Verdict::Bad(reason) => return Err(reason.into()),
        }
        let claims = token.claims()?;
        let until = claims::check(&claims, &self.config.rules, now.utc)?;
        if let Some(revoked) = &self.revoked
            && revoked.load().has(&claims)?
        {
            return Err("the token is revoked".into());
        }
        let identity = claims::identity(claims, &self.config.rules, &self.name)?;
        Ok((self.consumers.complete(identity), until))
    }
}

impl Keys {
    fn new(config: &config::Jwt, before: Option<&Self>) -> Result<Self, String> {
        let only = config.algorithms.clone();
        Ok(match &config.keys {
            JwtKeys::Secret(source) => {
                let key = Key::of_secret(source.read()?.bytes(), &only);
                let key = key.map_err(|reason| format!("the key in {source} {reason}"))?;
                Self::Fixed(KeySet::new(vec![key]))
            }
            JwtKeys::File(path) => {
                let parse = move |bytes: &[u8]| KeySet::of_jwks(bytes, true, &only);
                Self::File(Watched::new(path, FILE_BYTES_MAX, parse)?)
            }
            JwtKeys::Pem(path) => {
                let parse = move |bytes: &[u8]| Key::of_pem(bytes, &only).map(KeySet::new);
                Self::File(Watched::new(path, FILE_BYTES_MAX, parse)?)
            }
            JwtKeys::Url(url) => match before {
                Some(Self::Issuer(issuer)) if issuer.is(url, &only) => {
                    Self::Issuer(Arc::clone(issuer))
                }
                _ => Self::Issuer(Arc::new(Issuer::new(url, &only)?)),
            },
        })
    }

    async fn verify(&self, token: &Token<'_>, now: Now) -> Result<Verdict, Refusal> {
        let issuer = match self {
            Self::Fixed(keys) => return Ok(keys.verify(token)),
            Self::File(keys) => return Ok(keys.load().verify(token)),
            Self::Issuer(issuer) => issuer,
        };
        let known = issuer.keys().as_ref().map(|keys| keys.verify(token));
        if let Some(verdict) = known.filter(|verdict| *verdict != Verdict::UnknownKey) {
            return Ok(verdict);
        }
        match (issuer.renewed(now).await, &*issuer.keys()) {
            (Renewed::Crowded, _) => Err(Refusal::Later("too many wait for the issuer's keys")),
            (outcome, Some(keys)) => match keys.verify(token) {
                // It may be a key that the issuer would tell about if it could.
                Verdict::UnknownKey if outcome == Renewed::Failed => {
                    Err(Refusal::Later("the issuer's keys cannot be fetched"))
                }
                verdict => Ok(verdict),
            },
            (_, None) => Err(Refusal::Later("the issuer's keys cannot be fetched")),
        }
    }
}
