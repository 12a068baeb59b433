//! Bans and lifts of several gateways: each tells the others what it did, and all come to know the same.
//!
//! What is known lies in a ledger, in memory and on the disk. A thread of its own follows the log in Redis, tells what
//! was done here, and compares with the state in Redis whenever the log alone cannot say what was missed. While there
//! is no Redis, what is done here waits. Nothing here enforces anything: whoever does is told that there are news.
//!
//! ```text
//! tell ──▶ ledger ──▶ outgoing ──▶ log and state in Redis ──▶ every other gateway
//!            │ ▲
//!   disk ◀───┘ └──── merge ◀── follow (or compare) ◀── log (or state) in Redis
//!                      └──▶ news ──▶ control
//! ```

pub mod ledger;
pub mod message;
mod run;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use self::ledger::{Ledger, Merged};
use self::message::{Keys, Message, Refused, What};
use super::decision::Subject;
use crate::base::random::random;
use crate::base::time::{UtcMillis, instant};
use crate::shared::Redis;
use crate::shared::bans::{Board, EntryId};
use crate::store::StoreError;
use crate::store::spread::Messages;

/// Between two lines in the log about messages that are refused.
const COMPLAIN_EVERY_S: u64 = 10;

/// What is known here of what gateways did, and the thread that talks to the others.
pub struct Spread {
    shared: Arc<Shared>,
    link: Option<watch::Sender<Option<Arc<Link>>>>,
    thread: Option<JoinHandle<()>>,
}

/// Where the others are, and what they are believed by.
struct Link {
    board: Board,
    keys: Keys,
}

struct Shared {
    gateway: String,
    state: Mutex<State>,
    /// There are news.
    arrived: Notify,
    /// There is something to be told.
    publish: Notify,
    /// There is something to be kept.
    changed: Notify,
    /// What is in Redis is not what it was: compare.
    compare: Notify,
    refused: [AtomicU64; Refused::ALL.len()],
    received: AtomicU64,
    sent: AtomicU64,
}

struct State {
    ledger: Ledger,
    instance: u64,
    /// Whom others did something about.
    news: BTreeSet<Subject>,
    /// Those of them that were on the disk at the start, and nothing was heard of since.
    recalled: BTreeSet<Subject>,
    /// What is not on the disk yet.
    dirty: BTreeSet<Subject>,
    position: Position,
    health: Health,
    complained: Option<Instant>,
}

/// How far the log was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    /// The word of that Redis.
    epoch: Vec<u8>,
    millis: u64,
    sequence: u64,
}

/// A message as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    message: Message,
    /// The others were not told of it yet.
    #[serde(default)]
    outgoing: bool,
}

/// What somebody did about a source.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// What became of it.
    pub message: Message,
    /// It was known before this gateway started, and what was done here since then may not have been told.
    pub recalled: bool,
}

/// How it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether the log is being followed.
    pub up: bool,
    /// Why not.
    pub error: Option<String>,
    /// Sources that something is known about.
    pub known: usize,
    /// What the others were not told yet.
    pub outgoing: usize,
    /// How far the clock here is ahead of that of Redis, when it was last compared. (ms)
    pub ahead_ms: Option<i64>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages of others that were believed.
    pub received: u64,
    /// Messages that the others were told.
    pub sent: u64,
    /// Messages that were refused, in the order of [`Refused::ALL`].
    pub refused: [u64; Refused::ALL.len()],
}

impl Spread {
    /// Knows what was kept in a directory, and starts its thread. It talks to nobody before [`Self::link`].
    pub fn start(directory: &Path, gateway: &str) -> Result<Self, StoreError> {
        let messages = Messages::open(directory)?;
        let kept = messages.load()?;
        let instance = random();
        let mut ledger = Ledger::new(instance);
        let mut news = BTreeSet::new();
        for (key, value) in kept.messages {
            // What another version wrote comes back from the others.
            let Ok(Kept { message, outgoing }) = serde_json::from_slice(&value) else {
                tracing::warn!("what was kept of {key} cannot be read, and is left out");
                continue;
            };
            let subject = message.subject;
            if ledger.merge(message, UtcMillis(0)).is_ok() {
                news.insert(subject);
            }
            if outgoing {
                ledger.tell(subject);
            }
        }
        let position = kept.position.and_then(|text| serde_json::from_slice(&text).ok());
        let state = State {
            ledger,
            instance,
            recalled: news.clone(),
            news,
            dirty: BTreeSet::new(),
            position: position.unwrap_or_default(),
            health: Health::default(),
            complained: None,
        };
        let shared = Arc::new(Shared::new(gateway, state));
        let (link, linked) = watch::channel(None);
        let thread = thread::Builder::new().name("spread".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || run::run(&shared, messages, linked)
        });
        let thread = thread.map_err(|source| StoreError::Io {
            path: "the thread that tells other gateways".to_owned(),
            source,
        })?;
        Ok(Self { shared, link: Some(link), thread: Some(thread) })
    }

    /// Talks to the others there from now on, or to nobody.
    pub fn link(&self, others: Option<(&Redis, Keys)>) {
        let link = others.map(|(redis, keys)| Arc::new(Link { board: Board::new(redis), keys }));
        let Some(sender) = &self.link else { return };
        if sender.borrow().is_some() {
            // What another key has signed was passed over in the log, and is looked at again in the state.
            self.shared.state().position = Position::default();
        }
        sender.send_replace(link);
    }

    /// Tells the others what became of a source here.
    pub fn tell(&self, subject: Subject, what: What, now: UtcMillis) {
        let what = match what {
            What::Ban(ban) => What::Ban(ban.short()),
            What::Pin(ban) => What::Pin(ban.short()),
            What::Lift | What::Forget => what,
        };
        {
            let mut state = self.shared.state();
            state.ledger.make(subject, what, &self.shared.gateway, now);
            state.news.remove(&subject);
            state.dirty.insert(subject);
        }
        self.shared.changed.notify_one();
        self.shared.publish.notify_one();
    }

    /// Waits until others have done something. What is there already counts.
    pub async fn arrived(&self) {
        while self.shared.state().news.is_empty() {
            self.shared.arrived.notified().await;
        }
    }

    /// What is known of those that others did something about since this was last asked, at most `max` of them.
    pub fn news(&self, max: usize) -> Vec<News> {
        let mut state = self.shared.state();
        let mut news = Vec::new();
        while let Some(subject) = state.news.pop_first() {
            let recalled = state.recalled.remove(&subject);
            let known = state.ledger.known(&subject).cloned();
            news.extend(known.map(|message| News { message, recalled }));
            if news.len() >= max {
                break;
            }
        }
        news
    }

    /// What is known of these is to be done once more.
    pub fn again(&self, subjects: impl IntoIterator<Item = Subject>) {
        self.shared.state().news.extend(subjects);
        self.shared.arrived.notify_one();
    }

    /// What is known about a source.
    pub fn known(&self, subject: &Subject) -> Option<Message> {
        self.shared.state().ledger.known(subject).cloned()
    }

    /// How it is.
    pub fn health(&self) -> Health {
        let state = self.shared.state();
        let (known, outgoing) = (state.ledger.len(), state.ledger.outgoing_len());
        Health { known, outgoing, ..state.health.clone() }
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut refused = self.shared.refused.iter().map(count);
        Counts {
            received: count(&self.shared.received),
            sent: count(&self.shared.sent),
            refused: std::array::from_fn(|_| refused.next().unwrap_or_default()),
        }
    }
}

impl Drop for Spread {
    fn drop(&mut self) {
        // The thread ends when nobody can tell it any more whom to talk to, and keeps what there is first.
        self.link = None;
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl fmt::Debug for Spread {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Spread").field("gateway", &self.shared.gateway).finish()
    }
}

impl Shared {
    fn new(gateway: &str, state: State) -> Self {
        Self {
            gateway: gateway.to_owned(),
            state: Mutex::new(state),
            arrived: Notify::new(),
            publish: Notify::new(),
            changed: Notify::new(),
            compare: Notify::new(),
            refused: Default::default(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what another gateway said.
    fn hear(&self, message: Message, now: UtcMillis) -> Result<Merged, Refused> {
        let mut state = self.state();
        let (subject, of_own) = (message.subject, message.order.instance == state.instance);
        let merged = state.ledger.merge(message, now)?;
        state.dirty.insert(subject);
        if merged == Merged::News && !of_own {
            state.news.insert(subject);
            state.recalled.remove(&subject);
            self.arrived.notify_one();
        }
        drop(state);
        self.received.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
        Ok(merged)
    }

    /// Counts what was refused, and says now and then what nobody should have sent.
    fn refuse(&self, why: Refused) {
        if let Some(counter) = self.refused.get(why as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(why, Refused::Old | Refused::Replayed | Refused::Over) {
            return;
        }
        let mut state = self.state();
        if state.complained.is_none_or(|at| at.elapsed().as_secs() >= COMPLAIN_EVERY_S) {
            state.complained = Some(instant());
            tracing::warn!(reason = why.name(), "what is said in Redis about sources was refused");
        }
    }

    fn set_health(&self, up: bool, error: Option<String>) {
        let health = &mut self.state().health;
        (health.up, health.error) = (up, error);
    }
}

impl Position {
    fn seen(&self) -> EntryId {
        EntryId { millis: self.millis, sequence: self.sequence }
    }
}

#[cfg(test)]
mod tests;
