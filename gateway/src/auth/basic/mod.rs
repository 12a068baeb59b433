//! Callers by name and password (RFC 7617) against an htpasswd file. Verification is costly by design, so it happens
//! on threads of its own, a bounded number at once and a bounded number waiting; what was found out is remembered for
//! a while, by a keyed digest, never by the password. The file is read again when it has changed.

mod htpasswd;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::Guard;
use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use quick_cache::unsync::Cache;
use tokio::sync::{OnceCell, Semaphore};

use self::htpasswd::{FILE_BYTES_MAX, USER_BYTES_MAX, Users};
use super::watched::Watched;
use super::{Answer, Ask, Consumers, Digest, Identity, Memory};
use crate::base::time::BootTime;
use crate::config;

/// Bytes of a password.
const PASSWORD_BYTES_MAX: usize = 256;
/// Wrong credentials that are remembered, so that repeating one costs nothing.
const FAILED_MAX: usize = 4096;
/// For how long.
const FAILED_TIME: Duration = Duration::from_secs(10);

/// The users of one file.
pub(super) struct Basic {
    name: Box<str>,
    config: config::Basic,
    consumers: Arc<Consumers>,
    users: Watched<Users>,
    /// What digests of credentials are made with: they say nothing outside of this process.
    key: hmac::Key,
    gate: Arc<Semaphore>,
    /// What is being verified or waits for it. Requests with the same credential share one.
    flights: Mutex<HashMap<Name, Arc<OnceCell<bool>>>>,
    failed: Mutex<Cache<Digest, (u64, BootTime)>>,
}

/// A credential and the generation of the users that it is checked by.
type Name = (Digest, u64);

/// A name and a password, as a client says them.
struct Credential {
    user: String,
    password: Vec<u8>,
    digest: Digest,
}

impl Basic {
    /// Reads the file.
    pub(super) fn new(
        name: &str,
        config: &config::Basic,
        consumers: &Arc<Consumers>,
    ) -> Result<Self, String> {
        let users = Watched::new(&config.htpasswd, FILE_BYTES_MAX, Users::parse)?;
        let mut seed = [0; 32];
        rand::fill(&mut seed).map_err(|_| "the system has no random numbers".to_owned())?;
        Ok(Self {
            name: name.into(),
            config: config.clone(),
            consumers: Arc::clone(consumers),
            users,
            key: hmac::Key::new(hmac::HMAC_SHA256, &seed),
            gate: Arc::new(Semaphore::new(config.verifications)),
            flights: Mutex::default(),
            failed: Mutex::new(Cache::new(FAILED_MAX)),
        })
    }

    /// Who says the right password.
    pub(super) async fn authenticate(&self, ask: &Ask<'_>, memory: &Memory) -> Answer {
        let credential = match self.credential(&ask.head.headers) {
            Ok(Some(credential)) => credential,
            Ok(None) => return Answer::Absent,
            Err(reason) => return Answer::Refused(reason),
        };
        let Credential { digest, .. } = credential;
        let users = Guard::into_inner(self.users.load());
        let (now, generation) = (ask.moment.now(), users.generation());
        if let Some(identity) = memory.get(&digest, generation, now) {
            return Answer::Known(identity);
        }
        let wrong = Answer::Refused("the user does not exist or has another password");
        let failed = lock(&self.failed).get(&digest).copied();
        if failed.is_some_and(|(of, until)| of == generation && now.boot < until) {
            return wrong;
        }
        let user = credential.user.clone();
        match self.verified(credential, users).await {
            None => Answer::Unavailable("too many passwords are being verified"),
            Some(false) => {
                let nanos = u64::try_from(FAILED_TIME.as_nanos()).unwrap_or(u64::MAX);
                let until = BootTime(now.boot.0.saturating_add(nanos));
                lock(&self.failed).insert(digest, (generation, until));
                wrong
            }
            Some(true) => {
                let identity = Identity {
                    authenticator: self.name.clone(),
                    consumer: self.config.consumer.as_deref().map(Box::from),
                    user: Some(user.into()),
                    ..Identity::default()
                };
                let identity = Arc::new(self.consumers.complete(identity));
                let time = (now, self.config.remember);
                memory.put(digest, generation, time, Arc::clone(&identity));
                Answer::Known(identity)
            }
        }
    }

    /// Takes the password out of a request.
    pub(super) fn strip(&self, head: &mut Parts) {
        let values = head.headers.get_all(AUTHORIZATION);
        if self.config.strip && values.iter().any(|value| basic(value).is_some()) {
            head.headers.remove(AUTHORIZATION);
        }
    }

    /// As in `WWW-Authenticate`.
    pub(super) fn challenge(&self) -> String {
        format!("Basic realm=\"{}\", charset=\"UTF-8\"", self.config.realm)
    }

    /// Reads the file again if it has changed. While nothing can be made of it, the users stay as they were.
    pub(super) fn tick(&self) {
        let authenticator = &*self.name;
        match self.users.tick() {
            Ok(false) => {}
            Ok(true) => tracing::info!(authenticator, users = ?**self.users.load(), "read again"),
            Err(error) => {
                tracing::warn!(authenticator, error, "the users stay as they were");
            }
        }
    }

    fn credential(&self, headers: &HeaderMap) -> Result<Option<Credential>, &'static str> {
        let values = headers.get_all(AUTHORIZATION);
        let Some(encoded) = values.iter().find_map(basic) else { return Ok(None) };
        if values.iter().nth(1).is_some() {
            return Err("Authorization is there more than once");
        }
        if encoded.len() > (USER_BYTES_MAX + 1 + PASSWORD_BYTES_MAX).div_ceil(3) * 4 {
            return Err("the name or the password is too long");
        }
        let plain = STANDARD.decode(encoded).map_err(|_| "the credential is no base64")?;
        let colon = plain.iter().position(|byte| *byte == b':').ok_or("there is no password")?;
        let (user, password) = plain.split_at_checked(colon).unwrap_or_default();
        let password = password.get(1..).unwrap_or_default();
        let user = std::str::from_utf8(user).map_err(|_| "the name is no UTF-8")?;
        if user.len() > USER_BYTES_MAX || password.len() > PASSWORD_BYTES_MAX {
            return Err("the name or the password is too long");
        }
        if user.is_empty() || user.chars().any(char::is_control) {
            return Err("the name is empty or has control characters");
        }
        let mut digest = Digest::default();
        let tag = hmac::sign(&self.key, &plain);
        digest.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        Ok(Some(Credential { user: user.to_owned(), password: password.to_vec(), digest }))
    }

    /// Whether the password is right; `None` if too many are being verified.
    async fn verified(&self, credential: Credential, users: Arc<Users>) -> Option<bool> {
        let flight = self.flight((credential.digest, users.generation()))?;
        let verify = async || {
            let permit = Arc::clone(&self.gate).acquire_owned().await.map_err(|_| ())?;
            let check = users.check(&credential.user).ok_or(())?;
            let password = credential.password.clone();
            let verification = tokio::task::spawn_blocking(move || {
                let verifies = check.verifies(&password);
                // Who asked may be gone, but the CPU was busy until now.
                drop(permit);
                verifies
            });
            verification.await.map_err(|_| ())
        };
        flight.cell.get_or_try_init(verify).await.ok().copied()
    }

    fn flight(&self, name: Name) -> Option<Flight<'_>> {
        let mut flights = lock(&self.flights);
        if !flights.contains_key(&name)
            && flights.len() >= self.config.verifications + self.config.waiting
        {
            return None;
        }
        let cell = Arc::clone(flights.entry(name).or_default());
        Some(Flight { of: self, name, cell })
    }
}

/// One request's part in a verification. The last one out takes it off the list, also if it was cancelled.
struct Flight<'a> {
    of: &'a Basic,
    name: Name,
    cell: Arc<OnceCell<bool>>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flights = lock(&self.of.flights);
        // The list's own and this one: clones are made under the lock alone.
        if Arc::strong_count(&self.cell) == 2 {
            flights.remove(&self.name);
        }
    }
}

impl std::fmt::Debug for Basic {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Basic").field("config", &self.config).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stands behind the scheme, whose case does not matter.
fn basic(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, rest) = value.as_bytes().split_at_checked(5)?;
    let rest = rest.strip_prefix(b" ")?;
    scheme.eq_ignore_ascii_case(b"basic").then_some(rest.trim_ascii())
}
