//! One thread's connection to one server, and what happens when it fails. A request waits for an answer, and for a
//! connection only while the first one is being made; what is down costs it nothing and comes back by itself.
//!
//! ```text
//!               made, answers PING                3 failures in a row, or closed
//!   Connecting ────────────────────▶ Up ───────────────────────────────────────▶ Down
//!        │                           ▲                                            │
//!        └───────────── fails ───────┼────────────────────────────────────────────┤
//!                                    └── made again, answers PING (20 ms to 1 s) ◀┘
//! ```

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::stream::{Driver, Node};
use super::{Inner, Unavailable};
use crate::base::random::random;
use crate::base::time::instant;
use crate::config::RedisMode;

/// Failures in a row after which nobody waits any more.
pub(super) const FAILURES_MAX: u32 = 3;
/// Requests that wait for answers of one server in one thread.
pub(super) const WAITING_MAX: usize = 4096;
/// Between two attempts to connect; each doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A connection that lasted so long is made again at once.
const LASTING: Duration = Duration::from_secs(1);

/// One thread's connection to one server.
pub(super) struct Link {
    pub(super) node: Node,
    state: Mutex<State>,
    /// It is up, or will not be soon.
    decided: Notify,
    /// It is to be made anew.
    broken: Notify,
    failures: AtomicU32,
    waiting: AtomicUsize,
    /// Whether a request was answered since it is up.
    answered: AtomicBool,
    /// Nobody keeps it any more.
    over: AtomicBool,
}

enum State {
    Connecting(Instant),
    Up(MultiplexedConnection),
    Down,
}

impl Link {
    /// Begins to connect. The link lives as long as the server is one of those that have keys.
    pub(super) fn open(shared: &Arc<Inner>, node: Node) -> Arc<Self> {
        let link = Arc::new(Self {
            node,
            state: Mutex::new(State::Connecting(instant())),
            decided: Notify::new(),
            broken: Notify::new(),
            failures: AtomicU32::new(0),
            waiting: AtomicUsize::new(0),
            answered: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let news = shared.news.subscribe();
        tokio::spawn(keep(Arc::clone(&link), Arc::downgrade(shared), news));
        link
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Sends one command, or with `asking` two of which the second counts. Waits for as long as the caller polls.
    pub(super) async fn send(
        &self,
        command: &Cmd,
        asking: bool,
        patience: Duration,
    ) -> Result<Value, Unavailable> {
        let mut connection = self.connection(patience).await?;
        let _waiting = Waiting::enter(&self.waiting).ok_or(Unavailable::Busy)?;
        let answer = if asking {
            let mut both = redis::pipe();
            both.add_command(redis::cmd("ASKING")).add_command(command.clone());
            let answers = connection.send_packed_commands(&both, 0, 2).await;
            answers.map(|mut answers| answers.pop().unwrap_or(Value::Nil))
        } else {
            connection.send_packed_command(command).await
        };
        answer.map_err(|_| Unavailable::Down)
    }

    /// An answer came.
    pub(super) fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.answered.store(true, Ordering::Relaxed);
    }

    /// None came, or one that says that none will. Whether that was one too many.
    pub(super) fn failed(&self) -> bool {
        let in_row = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let too_many = in_row >= FAILURES_MAX;
        if too_many {
            self.give_up();
        }
        too_many
    }

    /// Whoever comes is told so at once until it has been connected to again.
    pub(super) fn give_up(&self) {
        *self.state() = State::Down;
        self.decided.notify_waiters();
        self.broken.notify_one();
    }

    async fn connection(&self, patience: Duration) -> Result<MultiplexedConnection, Unavailable> {
        loop {
            let mut decided = pin!(self.decided.notified());
            decided.as_mut().enable();
            match &*self.state() {
                State::Up(connection) => return Ok(connection.clone()),
                State::Connecting(since) if since.elapsed() < patience => {}
                State::Connecting(_) | State::Down => return Err(Unavailable::Down),
            }
            decided.await;
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.decided.notify_waiters();
    }

    /// Connects and is well until it is not. How long it was; `None` when nobody wants it any more.
    async fn live(
        &self,
        shared: &Weak<Inner>,
        news: &mut watch::Receiver<u64>,
    ) -> Option<Duration> {
        let (connection, driver) = {
            let shared = shared.upgrade()?;
            let connecting = self.connect(&shared);
            let connected = timeout(shared.config.connect_timeout, connecting).await;
            let connected = connected.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            match connected {
                Ok(connected) => connected,
                Err(error) => {
                    shared.complain(&self.node, &error);
                    return Some(Duration::ZERO);
                }
            }
        };
        self.failures.store(0, Ordering::Relaxed);
        self.answered.store(false, Ordering::Relaxed);
        self.set(State::Up(connection));
        let since = instant();
        let mut driver = pin!(driver);
        loop {
            tokio::select! {
                () = &mut driver => return Some(since.elapsed()),
                // Those who gave up may have meant an earlier connection.
                () = self.broken.notified() => if matches!(*self.state(), State::Down) {
                    return Some(since.elapsed());
                },
                changed = news.changed() => {
                    if changed.is_err() || !is_wanted(shared, &self.node) {
                        return None;
                    }
                }
            }
        }
    }

    async fn connect(&self, shared: &Inner) -> Result<(MultiplexedConnection, Driver), String> {
        let connector = &shared.connector;
        let (mut connection, mut driver) = connector.connect(&self.node, &connector.data).await?;
        let by_sentinel = matches!(shared.config.mode, RedisMode::Sentinel { .. });
        let question = redis::cmd(if by_sentinel { "ROLE" } else { "PING" });
        let asking = timeout(shared.config.timeout, connection.send_packed_command(&question));
        let answer = tokio::select! {
            answer = asking => answer,
            () = &mut driver => return Err("it closed the connection".to_owned()),
        };
        match answer {
            Err(_) => Err("no answer within `state.redis.timeout`".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(Value::ServerError(error))) => Err(error.to_string()),
            // Sentinel said so, but it may have been a while ago.
            Ok(Ok(Value::Array(role))) if by_sentinel && !is_master(&role) => {
                Err("it is no master".to_owned())
            }
            Ok(Ok(_)) => Ok((connection, driver)),
        }
    }
}

fn is_master(role: &[Value]) -> bool {
    matches!(role.first(), Some(Value::BulkString(name)) if name == b"master")
}

fn is_wanted(shared: &Weak<Inner>, node: &Node) -> bool {
    shared.upgrade().is_some_and(|shared| shared.topology.load().at(node.address).is_some())
}

/// Connects for as long as anybody wants it.
async fn keep(link: Arc<Link>, shared: Weak<Inner>, mut news: watch::Receiver<u64>) {
    let mut pause = PAUSE_MIN;
    loop {
        let lived = link.live(&shared, &mut news).await;
        let again = is_wanted(&shared, &link.node);
        let gave_up = matches!(*link.state(), State::Down);
        if again && !gave_up && lived.is_some_and(|time| time >= LASTING) {
            // Closed by the other side, which may be there all the same: whoever comes now may wait for it.
            link.set(State::Connecting(instant()));
            pause = PAUSE_MIN;
            continue;
        }
        link.set(State::Down);
        if let Some(shared) = shared.upgrade() {
            shared.look.notify_one();
        }
        if !again {
            link.over.store(true, Ordering::Relaxed);
            return;
        }
        if link.answered.swap(false, Ordering::Relaxed) {
            pause = PAUSE_MIN;
        }
        // Many workers and many gateways: not all at once.
        let part = 768 + (random() % 512) as u32;
        sleep(pause * part / 1024).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One request among those that wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(waiting: &'a AtomicUsize) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let entered = Self(waiting);
        (before < WAITING_MAX).then_some(entered)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
