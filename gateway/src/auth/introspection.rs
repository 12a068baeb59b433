//! Tokens that only their issuer understands, which is asked about them (RFC 7662): once for all requests and workers
//! that wait for the same answer, a few at a time, and not at all for a while after it has failed.
//!
//! ```text
//! closed ──`failures` in a row──▶ paused ──`pause` is over──▶ one call ──answer──▶ closed
//!                                   ▲─────────failure──────────────┘
//! ```

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::request::Parts;
use quick_cache::sync::Cache;
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::claims::Unfit;
use super::place::{Found, find, strip};
use super::{Answer, Ask, Consumers, Digest, Identity, Memory, claims, digest_of, json};
use crate::base::time::{BootTime, Now};
use crate::config::{self, IntrospectionClient};
use crate::outbound::{Bounds, Client, Form, display};

/// Those of well-known issuers have 1 KiB (unit: bytes).
const BODY_BYTES_MAX: u64 = 64 << 10;
/// Tokens whose answers are waited for at the same time.
const WAITING_MAX: usize = 1024;
const AWAY: &str = "the issuer does not answer";

/// Knows callers by what an issuer says of their tokens.
#[derive(Debug)]
pub(super) struct Introspection {
    name: Box<str>,
    consumers: Arc<Consumers>,
    shared: Arc<Shared>,
}

/// What all workers share.
struct Shared {
    name: Box<str>,
    config: config::Introspection,
    client: Client,
    credentials: Credentials,
    answers: Cache<Digest, Kept>,
    calls: Semaphore,
    state: Mutex<State>,
}

/// How the gateway proves who it is.
#[derive(PartialEq, Eq)]
struct Credentials {
    authorization: Option<HeaderValue>,
    /// Members of the form beside the token.
    form: String,
}

#[derive(Default)]
struct State {
    waiting: HashMap<Digest, watch::Receiver<Option<Outcome>>>,
    failures: u32,
    paused_until: BootTime,
    /// What was said in the log last.
    failure: Option<String>,
    peers: Vec<IpAddr>,
}

/// An answer while it holds.
#[derive(Clone)]
struct Kept {
    verdict: Verdict,
    from: Now,
    time: std::time::Duration,
}

/// What an issuer says of a token.
#[derive(Clone)]
enum Verdict {
    Active(Arc<Identity>),
    Refused(&'static str),
    /// It was active once.
    Expired(&'static str),
}

#[derive(Clone)]
enum Outcome {
    Answered(Kept),
    Failed,
}

impl Introspection {
    /// Reads the secret; takes over what `before` has been told.
    pub(super) fn new(
        name: &str,
        config: &config::Introspection,
        consumers: &Arc<Consumers>,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let credentials = Credentials::read(&config.client)?;
        let same = before
            .map(|before| &before.shared)
            .filter(|shared| shared.config == *config && shared.credentials == credentials);
        let shared = match same {
            Some(shared) => Arc::clone(shared),
            None => Arc::new(Shared {
                name: name.into(),
                client: Client::new(config.ca.as_deref()).map_err(|error| error.to_string())?,
                credentials,
                answers: Cache::new(config.remember),
                calls: Semaphore::new(config.calls),
                state: Mutex::default(),
                config: config.clone(),
            }),
        };
        Ok(Self { name: name.into(), consumers: Arc::clone(consumers), shared })
    }

    /// Callers whom a worker remembers.
    pub(super) fn remembers(&self) -> usize {
        self.shared.config.remember
    }

    /// Takes the token out of a request, where it is not for services.
    pub(super) fn strip(&self, head: &mut Parts) {
        if self.shared.config.strip {
            self.shared.config.places.iter().for_each(|place| strip(place, head, |_| true));
        }
    }

    /// As in `WWW-Authenticate` (RFC 6750, section 3).
    pub(super) fn challenge(&self) -> String {
        format!("Bearer realm=\"{}\"", self.name)
    }

    /// Whom is asked.
    pub(super) fn peers(&self) -> Vec<IpAddr> {
        self.shared.state().peers.clone()
    }

    /// Who calls, by a token in one of the places.
    pub(super) async fn authenticate(&self, ask: &Ask<'_>, memory: &Memory) -> Answer {
        let config = &self.shared.config;
        let token = match find(&config.places, ask.head) {
            Found::Nothing => return Answer::Absent,
            Found::Several => return Answer::Refused("there is more than one token"),
            Found::One(token) => token,
        };
        if token.len() > config.token_bytes {
            return Answer::Refused("the token is too long");
        }
        // RFC 6749, appendix A.12.
        if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
            return Answer::Refused("the token is none");
        }
        let (digest, now) = (digest_of(&token), ask.moment.now());
        if let Some(known) = memory.get(&digest, 0, now) {
            return Answer::Known(known);
        }
        match self.shared.answer(digest, &token, now).await {
            Ok(Kept { verdict: Verdict::Active(identity), from, time }) => {
                let identity = Arc::new(self.consumers.complete((*identity).clone()));
                memory.put(digest, 0, (from, time), Arc::clone(&identity));
                Answer::Known(identity)
            }
            Ok(Kept { verdict: Verdict::Refused(reason), .. }) => Answer::Refused(reason),
            Ok(Kept { verdict: Verdict::Expired(reason), .. }) => Answer::Expired(reason),
            Err(reason) => Answer::Unavailable(reason),
        }
    }
}

impl Shared {
    async fn answer(
        self: &Arc<Self>,
        digest: Digest,
        token: &[u8],
        now: Now,
    ) -> Result<Kept, &'static str> {
        if let Some(kept) = self.kept(&digest, now) {
            return Ok(kept);
        }
        let mut waiting = {
            let mut state = self.state();
            match state.waiting.get(&digest) {
                Some(waiting) => waiting.clone(),
                None => {
                    // It may have come since.
                    if let Some(kept) = self.kept(&digest, now) {
                        return Ok(kept);
                    }
                    self.call(&mut state, digest, token, now)?
                }
            }
        };
        let answered = timeout(self.config.timeout, waiting.wait_for(Option::is_some)).await;
        match answered.ok().and_then(Result::ok).as_deref() {
            Some(Some(Outcome::Answered(kept))) => Ok(kept.clone()),
            _ => Err(AWAY),
        }
    }

    fn kept(&self, digest: &Digest, now: Now) -> Option<Kept> {
        self.answers.get(digest).filter(|kept| kept.holds(now))
    }

    /// In a task of its own, so that it goes on when the first who asked does not wait any more.
    fn call(
        self: &Arc<Self>,
        state: &mut State,
        digest: Digest,
        token: &[u8],
        now: Now,
    ) -> Result<watch::Receiver<Option<Outcome>>, &'static str> {
        let is_probing = state.failures >= self.config.failures;
        if now.boot < state.paused_until || (is_probing && !state.waiting.is_empty()) {
            return Err("the issuer is left alone for a while");
        }
        if state.waiting.len() >= WAITING_MAX {
            return Err("too many tokens wait for the issuer");
        }
        let (sender, receiver) = watch::channel(None);
        state.waiting.insert(digest, receiver.clone());
        let call = Call { shared: Arc::clone(self), digest, sender };
        tokio::spawn(call.run(self.form(token)));
        Ok(receiver)
    }

    fn form(&self, token: &[u8]) -> String {
        let others = &self.credentials.form;
        format!("token={}&token_type_hint=access_token{others}", encoded(token))
    }

    async fn ask(&self, form: String) -> Result<Vec<u8>, String> {
        let waited = timeout(self.config.timeout, self.calls.acquire()).await;
        let Ok(Ok(_permit)) = waited else { return Err("too many calls at once".to_owned()) };
        let bounds = Bounds {
            connect_timeout: self.config.timeout,
            total_timeout: self.config.timeout,
            body_max_bytes: BODY_BYTES_MAX,
        };
        let form = Form { body: &form, authorization: self.credentials.authorization.as_ref() };
        let mut peers = Vec::new();
        let answer = self.client.post(&self.config.url, form, bounds, &mut peers).await;
        // Over a connection that was there, nobody new is talked to.
        if !peers.is_empty() {
            self.state().peers = peers;
        }
        answer.map_err(|error| error.to_string())
    }

    /// What an answer means from `now` on.
    fn understand(&self, answer: &[u8], now: Now) -> Result<Kept, &'static str> {
        let mut members = json::object(answer).ok_or("answered what is no plain JSON object")?;
        let inactive = |verdict| Kept { verdict, from: now, time: self.config.inactive_cache };
        match members.remove("active") {
            Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => {
                return Ok(inactive(Verdict::Refused("the token is not active")));
            }
            _ => return Err("answered without saying whether the token is active"),
        }
        let rules = &self.config.rules;
        let known = claims::check(&members, rules, now.utc).and_then(|until| {
            Ok((claims::identity(members, rules, &self.name)?, claims::left(until, now.utc)))
        });
        Ok(match known {
            Ok((identity, left)) => Kept {
                verdict: Verdict::Active(Arc::new(identity)),
                from: now,
                time: left.min(self.config.cache),
            },
            Err(Unfit::Bad(reason)) => inactive(Verdict::Refused(reason)),
            Err(Unfit::Expired) => inactive(Verdict::Expired(claims::EXPIRED)),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verdict {
    /// The same, knowing what was said of the token before: issuers do not tell what was never active from what is not
    /// any more (RFC 7662, section 2.2).
    fn after(self, before: Option<&Self>) -> Self {
        match (self, before) {
            (Self::Refused(reason), Some(Self::Active(_) | Self::Expired(_))) => {
                Self::Expired(reason)
            }
            (verdict, _) => verdict,
        }
    }
}

impl Kept {
    /// By either clock: a step of one makes nothing last longer.
    fn holds(&self, now: Now) -> bool {
        let nanos = u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX);
        now.boot.0 < self.from.boot.0.saturating_add(nanos)
            && now.utc < self.from.utc.after(self.time)
    }
}

/// A call that is going on. When it is dropped, on whatever way, nobody waits for it any more.
struct Call {
    shared: Arc<Shared>,
    digest: Digest,
    sender: watch::Sender<Option<Outcome>>,
}

impl Call {
    async fn run(self, form: String) {
        let shared = &self.shared;
        let answer = shared.ask(form).await;
        let now = Now::read();
        let kept = answer.and_then(|answer| {
            let kept = shared.understand(&answer, now);
            kept.map_err(|reason| format!("{} {reason}", display(&shared.config.url)))
        });
        let mut state = shared.state();
        let authenticator = &*shared.name;
        let outcome = match kept {
            Ok(kept) => {
                if state.failure.take().is_some() {
                    tracing::info!(authenticator, "the issuer answers again");
                }
                state.failures = 0;
                let before = shared.answers.get(&self.digest).map(|before| before.verdict);
                let kept = Kept { verdict: kept.verdict.after(before.as_ref()), ..kept };
                shared.answers.insert(self.digest, kept.clone());
                Outcome::Answered(kept)
            }
            Err(failure) => {
                state.failures = state.failures.saturating_add(1);
                if state.failures >= shared.config.failures {
                    let pause = u64::try_from(shared.config.pause.as_nanos()).unwrap_or(u64::MAX);
                    state.paused_until = BootTime(now.boot.0.saturating_add(pause));
                }
                if state.failure.as_ref() != Some(&failure) {
                    tracing::warn!(authenticator, failure, "tokens cannot be checked");
                    state.failure = Some(failure);
                }
                Outcome::Failed
            }
        };
        drop(state);
        self.sender.send_replace(Some(outcome));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.shared.state().waiting.remove(&self.digest);
    }
}

impl Credentials {
    fn read(client: &IntrospectionClient) -> Result<Self, String> {
        let field = |scheme: &str, text: &[u8]| {
            let value = [scheme.as_bytes(), b" ", text].concat();
            let mut value = HeaderValue::from_bytes(&value)
                .map_err(|_| "the secret has characters that cannot be sent".to_owned())?;
            value.set_sensitive(true);
            Ok::<_, String>(Some(value))
        };
        Ok(match client {
            IntrospectionClient::Basic(id, source) => {
                // Encoded before they are joined (RFC 6749, section 2.3.1).
                let pair =
                    format!("{}:{}", encoded(id.as_bytes()), encoded(source.read()?.bytes()));
                let authorization = field("Basic", STANDARD.encode(pair).as_bytes())?;
                Self { authorization, form: String::new() }
            }
            IntrospectionClient::Post(id, source) => {
                let (id, secret) = (encoded(id.as_bytes()), encoded(source.read()?.bytes()));
                let form = format!("&client_id={id}&client_secret={secret}");
                Self { authorization: None, form }
            }
            IntrospectionClient::Bearer(source) => Self {
                authorization: field("Bearer", source.read()?.bytes())?,
                form: String::new(),
            },
        })
    }
}

/// As in a form: nothing but unreserved characters (RFC 3986, section 2.3) stays as it is.
fn encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_was_active_has_expired_and_one_that_never_was_is_refused() {
        let active = || Verdict::Active(Arc::default());
        let (refused, expired) = (|| Verdict::Refused("x"), || Verdict::Expired("x"));
        for before in [active(), expired()] {
            assert!(matches!(refused().after(Some(&before)), Verdict::Expired("x")));
        }
        assert!(matches!(refused().after(None), Verdict::Refused("x")));
        assert!(matches!(refused().after(Some(&refused())), Verdict::Refused("x")));
        assert!(matches!(expired().after(None), Verdict::Expired("x")));
        assert!(matches!(active().after(Some(&expired())), Verdict::Active(_)));
    }
}
