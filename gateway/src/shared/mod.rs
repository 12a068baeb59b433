//! What several gateways share: Redis or Valkey, behind a type that never makes anybody wait for longer than it is
//! told to.
//!
//! Every thread that asks has a connection of its own to every server that it asks. An answer, redirects and all, has
//! `state.redis.timeout`; what is down is known to be down, and asking it costs nothing. It knows nothing of limits,
//! keys or requests beyond the scripts and stores that lie beside it, and decides nothing about what is to be done
//! without it.

pub mod bans;
pub mod count;
mod counts;
mod link;
mod nodes;
mod nonces;
pub mod permit;
pub mod registry;
pub mod script;
mod stream;
mod tend;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redis::{Cmd, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{error::Elapsed, timeout};

pub use self::counts::Sum;
pub use self::tend::{NodeStatus, Status};

use self::counts::Counts;
use self::link::Link;
use self::nodes::{Finder, Topology, slot_of};
use self::stream::{Connector, Node};
use crate::base::time::instant;
use crate::config;

/// Servers that one command is sent to, one after the other.
const REDIRECTS_MAX: usize = 3;
/// Time between two lines in the log about the same trouble.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// The Redis or Valkey that several gateways share. Clones are the same.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

/// Why there is no answer. None of them says anything about whoever the question was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// It is known to be out of reach; nothing was sent, or the connection broke.
    Down,
    /// No answer within the deadline. What was asked may have been done.
    Timeout,
    /// More requests wait for it than may.
    Busy,
    /// It answered that it cannot: it is full, loading, a replica, or forbids it.
    Refused,
}

impl Unavailable {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Down, Self::Timeout, Self::Busy, Self::Refused];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Timeout => "timeout",
            Self::Busy => "busy",
            Self::Refused => "refused",
        }
    }
}

struct Inner {
    id: u64,
    config: config::Redis,
    connector: Connector,
    topology: ArcSwap<Topology>,
    /// A number for each topology.
    news: watch::Sender<u64>,
    /// Somebody thinks that the topology is another by now.
    look: Arc<Notify>,
    /// Every address that was talked to, or is going to be.
    peers: Mutex<BTreeSet<IpAddr>>,
    /// A block for each thread that has asked.
    counts: Mutex<Vec<Arc<Counts>>>,
    complained: Mutex<Option<Instant>>,
    status: Mutex<Status>,
    registry: registry::Watched,
    /// Whether its thread has been started.
    started: AtomicBool,
    runtime: OnceLock<tokio::runtime::Handle>,
    /// Whether its thread has been given something else to do.
    has_work: AtomicBool,
}

/// What one thread has of one [`Redis`].
struct Here {
    id: u64,
    counts: Arc<Counts>,
    links: Vec<Arc<Link>>,
}

thread_local! {
    static HERE: RefCell<Vec<Here>> = const { RefCell::new(Vec::new()) };
}

impl Redis {
    /// Reads the files and variables that `config` names. Connects to nothing.
    pub fn read(config: &config::Redis) -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let inner = Inner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            config: config.clone(),
            connector: Connector::new(config)?,
            topology: ArcSwap::from_pointee(Finder::known(config)),
            news: watch::Sender::new(0),
            look: Arc::default(),
            peers: Mutex::default(),
            counts: Mutex::default(),
            complained: Mutex::default(),
            status: Mutex::default(),
            registry: registry::Watched::default(),
            started: AtomicBool::new(false),
            runtime: OnceLock::new(),
            has_work: AtomicBool::new(false),
        };
        inner.tell(inner.topology.load().nodes().iter().map(|node| node.address.ip()));
        Ok(Self(Arc::new(inner)))
    }

    /// What it was made of.
    pub fn config(&self) -> &config::Redis {
        &self.0.config
    }

    /// Every address that is talked to. No rule may ever block one.
    pub fn peers(&self) -> Vec<IpAddr> {
        locked(&self.0.peers).iter().copied().collect()
    }

    /// Whether `other` has the same configuration, secrets and authorities.
    pub fn is_same(&self, other: &Self) -> bool {
        let (own, other) = (&self.0, &other.0);
        own.config == other.config && own.connector.material == other.connector.material
    }

    /// How it is, as it was seen within the last seconds.
    pub fn status(&self) -> Status {
        locked(&self.0.status).clone()
    }

    /// What all threads have counted.
    pub fn sum(&self) -> Sum {
        Sum::of(&locked(&self.0.counts))
    }

    /// Sends a command about `key` within the deadline for requests.
    pub(crate) async fn call(&self, key: &[u8], command: &Cmd) -> Result<Value, Unavailable> {
        self.call_or(key, command, None, self.0.config.timeout).await
    }

    /// Sends a command about `key` for somebody who can wait: within `state.redis.connect_timeout`.
    async fn call_patiently(&self, key: &[u8], command: &Cmd) -> Result<Value, Unavailable> {
        self.call_or(key, command, None, self.0.config.connect_timeout).await
    }

    /// Sends a command about `key` within `deadline`; `unknown` instead, if its script is not known there.
    async fn call_or(
        &self,
        key: &[u8],
        command: &Cmd,
        unknown: Option<&(dyn Fn() -> Cmd + Sync)>,
        deadline: Duration,
    ) -> Result<Value, Unavailable> {
        let began = instant();
        let counts = self.0.counts();
        let slot = if self.0.is_cluster() { slot_of(key) } else { 0 };
        let mut last = None;
        let asking = self.0.ask(slot, (command, unknown), deadline, &mut last);
        let answer = match timeout(deadline, asking).await {
            Ok(answer) => answer,
            Err(Elapsed { .. }) => {
                if let Some(link) = last.filter(|link| link.failed()) {
                    self.0.complain(&link.node, "no answers within `state.redis.timeout`");
                    self.0.look.notify_one();
                }
                Err(Unavailable::Timeout)
            }
        };
        counts.add(answer.as_ref().err().copied(), began.elapsed());
        answer
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Redis").field("addresses", &self.0.config.addresses).finish()
    }
}

/// What an answer means for what comes next.
enum Next {
    Done(Value),
    /// The script is not known there.
    Unknown,
    /// Another server has the key; `true` for this once only.
    Elsewhere(Node, bool),
    /// This one says no. `true`: to everybody.
    No(bool),
}

impl Inner {
    fn is_cluster(&self) -> bool {
        matches!(self.config.mode, config::RedisMode::Cluster)
    }

    async fn ask(
        self: &Arc<Self>,
        slot: u16,
        (command, unknown): (&Cmd, Option<&(dyn Fn() -> Cmd + Sync)>),
        deadline: Duration,
        last: &mut Option<Arc<Link>>,
    ) -> Result<Value, Unavailable> {
        let mut node = self.topology.load().of(slot).cloned().ok_or(Unavailable::Down)?;
        let (mut asking, mut whole) = (false, None);
        for _ in 0..REDIRECTS_MAX {
            let link = last.insert(self.link(&node));
            let sent = link.send(whole.as_ref().unwrap_or(command), asking, deadline).await;
            let answer = match sent {
                Ok(answer) => answer,
                Err(error) => {
                    // Nothing was sent, or the connection is being made anew already.
                    self.look.notify_one();
                    return Err(error);
                }
            };
            match self.next(answer) {
                Next::Done(value) => {
                    link.succeeded();
                    return Ok(value);
                }
                Next::Unknown => whole = unknown.map(|whole| whole()),
                Next::Elsewhere(other, once) => (node, asking) = (other, once),
                Next::No(everybody) => {
                    if everybody {
                        link.give_up();
                    }
                    return Err(Unavailable::Refused);
                }
            }
        }
        Err(Unavailable::Refused)
    }

    fn next(&self, answer: Value) -> Next {
        let Value::ServerError(error) = answer else { return Next::Done(answer) };
        let code = error.code();
        match code {
            "NOSCRIPT" => return Next::Unknown,
            "MOVED" | "ASK" => {
                // The rest has changed, too. Who is not known yet is talked to once everybody knows the address.
                self.look.notify_one();
                let place = error.details().and_then(|place| place.split(' ').nth(1)?.parse().ok());
                let node = place.and_then(|place| self.topology.load().at(place).cloned());
                return node.map_or(Next::No(false), |node| Next::Elsewhere(node, code == "ASK"));
            }
            _ => {}
        }
        self.say(&format!("Redis refuses: {error}"));
        let everybody = ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "BUSY"];
        let everybody = everybody.contains(&code);
        if everybody {
            self.look.notify_one();
        }
        Next::No(everybody)
    }

    /// This thread's connection to a server.
    fn link(self: &Arc<Self>, node: &Node) -> Arc<Link> {
        self.here(|here| {
            if let Some(link) = here.links.iter().find(|link| link.node == *node)
                && !link.is_over()
            {
                return Arc::clone(link);
            }
            here.links.retain(|link| !link.is_over());
            let link = Link::open(self, node.clone());
            here.links.push(Arc::clone(&link));
            link
        })
    }

    fn counts(&self) -> Arc<Counts> {
        self.here(|here| Arc::clone(&here.counts))
    }

    fn here<T>(&self, look: impl FnOnce(&mut Here) -> T) -> T {
        HERE.with_borrow_mut(|all| {
            if let Some(here) = all.iter_mut().find(|here| here.id == self.id) {
                return look(here);
            }
            // Those that nobody else has are of one that is no more.
            all.retain(|here| Arc::strong_count(&here.counts) > 1);
            let counts = Arc::new(Counts::default());
            locked(&self.counts).push(Arc::clone(&counts));
            let mut here = Here { id: self.id, counts, links: Vec::new() };
            let found = look(&mut here);
            all.push(here);
            found
        })
    }

    fn tell(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        locked(&self.peers).extend(addresses);
    }

    fn complain(&self, node: &Node, error: &str) {
        self.say(&format!("Redis at {} cannot be used: {error}", node.address));
    }

    /// One line now and then, however many requests meet the same trouble.
    fn say(&self, message: &str) {
        let mut complained = locked(&self.complained);
        if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            *complained = Some(instant());
            tracing::warn!("{message}");
        }
    }
}

/// In lower case.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digit = |half: u8| DIGITS.get(usize::from(half)).copied().unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
