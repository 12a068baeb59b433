//! Signals, and what each asks for.

use std::io;

use nix::sys::signal::{self, SigSet};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Those that the gateway listens to.
pub(super) struct Signals {
    reload: Signal,
    reopen: Signal,
    terminate: Signal,
    interrupt: Signal,
}

/// What a signal asks for.
#[derive(PartialEq, Eq)]
pub(super) enum Order {
    Reload,
    Reopen,
    End,
}

impl Signals {
    /// Who was started with these blocked, as a child of a program that waits for them by `sigwait` is, hears them too.
    pub(super) fn new() -> io::Result<Self> {
        let heard = [signal::SIGHUP, signal::SIGUSR1, signal::SIGTERM, signal::SIGINT];
        heard.into_iter().collect::<SigSet>().thread_unblock()?;
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.reload.recv() => Order::Reload,
            _ = self.reopen.recv() => Order::Reopen,
            _ = self.terminate.recv() => Order::End,
            _ = self.interrupt.recv() => Order::End,
        }
    }

    pub(super) async fn end(&mut self) {
        while self.next().await != Order::End {}
    }
}
