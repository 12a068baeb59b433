//! The thread that looks after the servers: which they are, whether they answer, and whether registered keys changed.
//! No request waits for it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};

use super::nodes::{Finder, Topology};
use super::{Inner, Redis, locked};
use crate::base::time::instant;
use crate::config::{RedisAddress, RedisMode};

/// How often every server is asked whether it is well.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How often Sentinels are asked who is the master.
const SENTINEL_EVERY: Duration = Duration::from_secs(1);
/// How often a Cluster is asked who has what, and names are looked up.
const FIND_EVERY: Duration = Duration::from_secs(10);
/// However many ask for it, no sooner than this after the last time.
const FIND_PAUSE: Duration = Duration::from_millis(100);

/// How the servers are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Those that have keys.
    pub nodes: Vec<NodeStatus>,
    /// Why it is not known which they are, or whether that is still so.
    pub error: Option<String>,
}

/// How one server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Where it is.
    pub address: SocketAddr,
    /// How long its last answer took; `None`: it did not answer in time.
    pub round_trip: Option<Duration>,
}

impl Status {
    /// Whether every key can be asked for.
    pub fn is_up(&self) -> bool {
        !self.nodes.is_empty() && self.nodes.iter().all(|node| node.round_trip.is_some())
    }
}

impl Redis {
    /// Starts looking after it, on a thread of its own that ends with the last clone.
    pub fn start(&self) -> io::Result<()> {
        if self.0.started.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        // It is started once.
        self.0.runtime.set(runtime.handle().clone()).ok();
        let shared = Arc::downgrade(&self.0);
        thread::Builder::new().name("redis".to_owned()).spawn(move || {
            runtime.block_on(tend(shared));
            // A look-up that hangs holds nobody up.
            runtime.shutdown_background();
        })?;
        Ok(())
    }

    /// Runs `work` on that thread, for as long as it lasts. Only the first is taken, and none before [`Self::start`].
    pub fn beside(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = self.0.runtime.get()
            && !self.0.has_work.swap(true, Ordering::Relaxed)
        {
            runtime.spawn(work);
        }
    }

    /// Waits until it has been looked at once, or for as long as connecting may take.
    pub async fn looked_at(&self) {
        let mut news = self.0.news.subscribe();
        let first = news.wait_for(|number| *number > 0);
        timeout(self.0.config.connect_timeout, first).await.ok();
    }
}

/// When what is due.
struct Due {
    find: Instant,
    ping: Instant,
    registry: Instant,
}

async fn tend(shared: Weak<Inner>) {
    let Some(look) = shared.upgrade().map(|shared| Arc::clone(&shared.look)) else { return };
    let now = instant();
    let mut due = Due { find: now, ping: now, registry: now };
    // Who answered last.
    let mut first = 0;
    loop {
        let Some(inner) = shared.upgrade() else { return };
        if due.find <= instant() {
            inner.find(&mut first).await;
            due.find = instant() + inner.find_every();
        }
        if due.ping <= instant() {
            inner.ping_all().await;
            due.ping = instant() + PING_EVERY;
        }
        if due.registry <= instant() {
            if let Some(every) = inner.registry.look(&inner).await {
                due.registry = instant() + every;
            } else {
                due.registry = instant() + PING_EVERY;
            }
        }
        drop(inner);
        let next = due.find.min(due.ping).min(due.registry);
        tokio::select! {
            () = sleep(next.saturating_duration_since(instant())) => {}
            () = look.notified() => {
                sleep(FIND_PAUSE).await;
                due.find = instant();
                due.registry = instant();
            }
        }
    }
}

impl Inner {
    fn find_every(&self) -> Duration {
        match (&self.config.mode, self.config.addresses.first()) {
            (RedisMode::Sentinel { .. }, _) => SENTINEL_EVERY,
            _ => FIND_EVERY,
        }
    }

    async fn find(&self, first: &mut usize) {
        let is_known = matches!(
            (&self.config.mode, self.config.addresses.first()),
            (RedisMode::Standalone, Some(RedisAddress::Address(_)))
        );
        let error = if is_known { None } else { self.find_now(first).await.err() };
        if let Some(error) = &error {
            self.say(&format!("state.redis: {error}"));
        }
        locked(&self.status).error = error;
        self.news.send_if_modified(|number| {
            let is_first = *number == 0;
            *number = (*number).max(1);
            is_first
        });
    }

    async fn find_now(&self, first: &mut usize) -> Result<(), String> {
        let before = self.topology.load_full();
        let tell = |address| self.tell([address]);
        let finder = Finder { config: &self.config, connector: &self.connector, tell: &tell };
        let found = finder.find(&before, first).await?;
        if found != *before {
            self.adopt(found);
        }
        Ok(())
    }

    fn adopt(&self, topology: Topology) {
        let addresses: Vec<String> =
            topology.nodes().iter().map(|node| node.address.to_string()).collect();
        tracing::info!(servers = addresses.join(", "), "Redis is at other addresses now");
        self.topology.store(Arc::new(topology));
        self.news.send_modify(|number| *number += 1);
    }

    async fn ping_all(self: &Arc<Self>) {
        let topology = self.topology.load_full();
        let mut nodes = Vec::new();
        for node in topology.nodes() {
            let link = self.link(node);
            let began = instant();
            let ping = redis::cmd("PING");
            let asking = link.send(&ping, false, self.config.timeout);
            let answer = timeout(self.config.timeout, asking).await;
            let is_well = match answer {
                Ok(Ok(answer)) => !matches!(answer, redis::Value::ServerError(_)),
                Ok(Err(_)) => false,
                Err(_) => {
                    link.failed();
                    false
                }
            };
            let round_trip = is_well.then(|| began.elapsed());
            nodes.push(NodeStatus { address: node.address, round_trip });
        }
        locked(&self.status).nodes = nodes;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread ends at once.
        self.look.notify_one();
        self.registry.asked.store(false, Ordering::Relaxed);
    }
}
