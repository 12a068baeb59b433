//! Hands over to a gateway that takes this one's place. While it starts, the workers serve on and nothing else happens
//! here: two must not write to the store, nor to the kernel.

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::MissedTickBehavior;

use super::{Control, RunError};
use crate::admin::asker::Asker;
use crate::admin::handover::{Successor, Wanted};
use crate::admin::{scrape, server};
use crate::auth::{Asked, Authenticators, Questions};
use crate::base::time::Now;
use crate::request::Snapshot;

/// How often the store is tried again that a successor has not let go of yet.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);
const REOPEN_ATTEMPTS: usize = 50;
/// How often callers are looked up anew while another gateway may change what is known about them: what it revokes is
/// to be refused here within a second.
const TICK: Duration = Duration::from_millis(250);

/// Where `control` is asked.
pub(super) struct Inlets {
    pub(super) admin: StdUnixListener,
    pub(super) metrics: Option<StdTcpListener>,
}

/// The inlets while they are served.
pub(super) struct Serving(Vec<JoinHandle<()>>);

impl Inlets {
    pub(super) fn serve(&self, asker: &Asker) -> Result<Serving, RunError> {
        let admin = self.admin.try_clone().and_then(UnixListener::from_std);
        let admin = admin.map_err(RunError::failed)?;
        let mut serving = vec![spawn_local(server::serve(admin, asker.clone()))];
        if let Some(metrics) = &self.metrics {
            let metrics = metrics.try_clone().and_then(TcpListener::from_std);
            let metrics = metrics.map_err(RunError::failed)?;
            serving.push(spawn_local(scrape::serve(metrics, asker.clone())));
        }
        Ok(Serving(serving))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Control {
    /// Hands everything over; answers whether the successor serves. If not, this gateway goes on as before.
    pub(super) async fn hand_over(
        &mut self,
        mut successor: Successor,
        (inlets, serving, asker): (&Inlets, &mut Serving, &Asker),
    ) -> Result<bool, RunError> {
        tracing::info!(successor = successor.pid(), "handing over");
        // What one of the two is told, the other is not.
        self.others.pause();
        let own = [inlets.admin.as_fd()].into_iter();
        let own = own.chain(inlets.metrics.as_ref().map(|socket| socket.as_fd()));
        let sockets: Vec<BorrowedFd<'_>> =
            own.chain(self.door.sockets().map(|on| on.as_fd())).collect();
        let offered = successor.offer(&sockets).await;
        let mut handed = false;
        let result = match offered {
            Ok(()) => {
                *serving = Serving(Vec::new());
                self.policy.release_store();
                let authenticators = Arc::clone(&self.authenticators);
                let giving = give(&authenticators, &mut successor, &mut handed);
                ticking(&authenticators, giving).await
            }
            Err(error) => Err(error),
        };
        let error = match result {
            Ok(questions) => {
                if let Some(questions) = questions {
                    // They come from what is still in flight, and end with it.
                    spawn_local(questions.put(successor.into_stream()));
                }
                return Ok(true);
            }
            Err(error) => error,
        };
        tracing::error!(%error, "the successor did not start; this gateway serves on");
        if handed {
            self.authenticators.resume();
        }
        self.take_back().await;
        self.others.resume();
        *serving = inlets.serve(asker)?;
        Ok(false)
    }

    async fn take_back(&mut self) {
        for attempt in 1..=REOPEN_ATTEMPTS {
            match self.policy.reopen_store() {
                Ok(()) => break,
                Err(error) if attempt == REOPEN_ATTEMPTS => {
                    tracing::error!(%error, "no rule can be changed until a restart");
                }
                Err(_) => tokio::time::sleep(REOPEN_PAUSE).await,
            }
        }
        // The successor may have put its own program and maps in the place of this one's.
        let config = Arc::clone(&self.config);
        if let Err(refusal) = self.reload_kernel(&config, None) {
            tracing::error!(error = refusal.error, "the kernel door is not this gateway's again");
        }
    }
}

/// Waits until the successor serves, and tells it before what nobody may accept again; says in `handed` whether it did.
/// The answer is what it is to be asked from then on.
async fn give(
    authenticators: &Authenticators,
    successor: &mut Successor,
    handed: &mut bool,
) -> io::Result<Option<Questions>> {
    match successor.release().await? {
        Wanted::Nothing => Ok(None),
        Wanted::Accepted { answers } => {
            *handed = true;
            let (accepted, questions) = authenticators.hand_over(answers);
            successor.tell(&accepted).await?;
            Ok(questions)
        }
    }
}

/// Answers what a predecessor asks about what it still has in flight, by `snapshot` as it is then, until it has ended.
pub(super) async fn decide(mut predecessor: UnixStream, snapshot: Arc<ArcSwap<Snapshot>>) {
    while let Ok(asked) = Asked::read(&mut predecessor).await {
        let authenticators = Arc::clone(snapshot.load().authenticators());
        if predecessor.write_u8(authenticators.decide(&asked).await).await.is_err() {
            return;
        }
    }
}

/// Waits for `work` while another gateway may change what callers are known by.
pub(super) async fn ticking<T>(
    authenticators: &Authenticators,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => authenticators.tick_beside(Now::read()),
        }
    }
}
