//! The keys that an issuer publishes: looked at from time to time, and when a token names a key that is not known yet,
//! then at most once a cooldown and once for all who wait. While the issuer is away, those that are known go on.
//!
//! ```text
//! resting ──refresh is due, or an unknown key after the cooldown──▶ looking ──answer──▶ resting (next: refresh)
//!                                                                      └─────failure──▶ resting (next: cooldown)
//! ```

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwapOption, Guard};
use tokio::sync::watch;
use tokio::time::timeout;

use super::algorithm::Algorithm;
use super::key_set::KeySet;
use crate::base::time::{BootTime, Now};
use crate::config::JwksUrl;
use crate::outbound::{Bounds, Client, Fetched, Validators, display};

/// Those of the largest providers are a tenth of it (unit: bytes).
const BODY_BYTES_MAX: u64 = 1 << 20;
/// Requests that wait for keys at the same time.
const WAITING_MAX: usize = 1024;

/// The keys that an issuer publishes.
pub(super) struct Issuer {
    config: JwksUrl,
    only: Vec<Algorithm>,
    client: Client,
    /// `None` until they were seen for the first time.
    keys: ArcSwapOption<KeySet>,
    /// Counts the versions of `keys`.
    generation: AtomicU64,
    state: Mutex<State>,
    /// Counts the looks that have ended.
    ended: watch::Sender<u64>,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct State {
    is_looking: bool,
    /// When to look again though nothing happens.
    refresh_at: BootTime,
    /// Since when an unknown key is a reason to look again.
    cool_at: BootTime,
    /// Why the last look failed.
    failure: Option<String>,
    validators: Validators,
    body: Vec<u8>,
    peers: Vec<IpAddr>,
}

/// What became of waiting for keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewed {
    /// They were looked at just now, or not long ago.
    Fresh,
    /// The issuer does not answer as it should.
    Failed,
    /// Too many wait already.
    Crowded,
}

impl Issuer {
    /// Knows no key yet.
    pub(super) fn new(config: &JwksUrl, only: &[Algorithm]) -> Result<Self, String> {
        Ok(Self {
            config: config.clone(),
            only: only.to_vec(),
            client: Client::new(config.ca.as_deref()).map_err(|error| error.to_string())?,
            keys: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            state: Mutex::default(),
            ended: watch::Sender::new(0),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Whether it is what such a configuration would make.
    pub(super) fn is(&self, config: &JwksUrl, only: &[Algorithm]) -> bool {
        self.config == *config && self.only == only
    }

    /// The keys, if they were ever seen.
    pub(super) fn keys(&self) -> Guard<Option<Arc<KeySet>>> {
        self.keys.load()
    }

    /// Another number for other keys.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The addresses that were talked to last.
    pub(super) fn peers(&self) -> Vec<IpAddr> {
        self.state().peers.clone()
    }

    /// Looks at the keys when that is due. Needs a tokio runtime.
    pub(super) fn tick(self: &Arc<Self>, now: Now) {
        let mut state = self.state();
        if !state.is_looking && now.boot >= state.refresh_at {
            self.look(&mut state, now);
        }
    }

    /// Waits until the keys have been looked at, unless that was not long ago.
    pub(super) async fn renewed(self: &Arc<Self>, now: Now) -> Renewed {
        let mut ended = self.ended.subscribe();
        {
            let mut state = self.state();
            if !state.is_looking {
                if now.boot < state.cool_at {
                    return state.outcome();
                }
                self.look(&mut state, now);
            }
        }
        let Some(_place) = Place::take(&self.waiting) else { return Renewed::Crowded };
        match timeout(self.config.timeout, ended.changed()).await {
            Ok(_) => self.state().outcome(),
            Err(_) => Renewed::Failed,
        }
    }

    /// In a task of its own, so that it goes on when nobody waits any more.
    fn look(self: &Arc<Self>, state: &mut State, now: Now) {
        state.is_looking = true;
        state.cool_at = after(now.boot, self.config.cooldown);
        state.refresh_at = after(now.boot, self.config.refresh);
        let look = Look { issuer: Arc::clone(self), retry_at: state.cool_at };
        tokio::spawn(look.run(state.validators.clone()));
    }

    fn take(&self, fetched: Fetched, state: &mut State) -> Result<(), String> {
        let Fetched::Body { bytes, validators } = fetched else { return Ok(()) };
        if bytes != state.body {
            let keys = KeySet::of_jwks(&bytes, false, &self.only)?;
            tracing::info!(url = display(&self.config.url), keys = keys.len(), "keys of an issuer");
            self.keys.store(Some(Arc::new(keys)));
            self.generation.fetch_add(1, Ordering::Release);
            state.body = bytes;
        }
        state.validators = validators;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn outcome(&self) -> Renewed {
        if self.failure.is_some() { Renewed::Failed } else { Renewed::Fresh }
    }
}

/// A look that is going on. When it is dropped, on whatever way, everybody who waits hears of it.
struct Look {
    issuer: Arc<Issuer>,
    retry_at: BootTime,
}

impl Look {
    async fn run(self, validators: Validators) {
        let issuer = &*self.issuer;
        let bounds = Bounds {
            connect_timeout: issuer.config.timeout,
            total_timeout: issuer.config.timeout,
            body_max_bytes: BODY_BYTES_MAX,
        };
        let mut peers = Vec::new();
        let url = &issuer.config.url;
        let fetched = issuer.client.fetch(url, &validators, bounds, &mut peers).await;
        let mut state = issuer.state();
        state.peers = peers;
        let taken = fetched.map_err(|error| error.to_string()).and_then(|fetched| {
            let taken = issuer.take(fetched, &mut state);
            taken.map_err(|reason| format!("{} {reason}", display(url)))
        });
        let failure = taken.err();
        if failure != state.failure {
            match &failure {
                Some(failure) => {
                    tracing::warn!(failure, "the keys of an issuer stay as they were");
                }
                None => tracing::info!(url = display(url), "the issuer is back"),
            }
        }
        if failure.is_some() {
            state.refresh_at = self.retry_at;
        }
        state.failure = failure;
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.issuer.state().is_looking = false;
        self.issuer.ended.send_modify(|looks| *looks += 1);
    }
}

/// A place among those who wait.
struct Place<'w>(&'w AtomicUsize);

impl<'w> Place<'w> {
    fn take(waiting: &'w AtomicUsize) -> Option<Self> {
        let place = Self(waiting);
        // One that is too many leaves again at once.
        (waiting.fetch_add(1, Ordering::Relaxed) < WAITING_MAX).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn after(time: BootTime, duration: Duration) -> BootTime {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    BootTime(time.0.saturating_add(nanos))
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Issuer").field("config", &self.config).finish_non_exhaustive()
    }
}
