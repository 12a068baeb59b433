//! The door: sockets, the threads that accept from them, and the end of it all.
//!
//! One thread a worker with one runtime, its own sockets, its own connections to services. What the workers share is
//! read only or counted apart; none waits for another.

mod connection;
pub mod h2;
mod parking;
mod preface;
mod proxy_protocol;
pub mod sockets;
mod sources;
mod tls;
mod worker;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::feedback::Reporter;
use crate::feedback::decision::Subject;
use crate::observe::Registry;
use crate::observe::access_log::AccessLog;
use crate::request::listener::Listeners;
use crate::request::{Rules, Snapshot};
use sockets::Sockets;
use sources::Sources;
use worker::{Order, Worker};

/// What the workers share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// What is agreed on with clients, by listener.
    pub listeners: Arc<ArcSwap<Listeners>>,
    /// The rules in force.
    pub rules: Rules,
    /// What is counted, a block for each worker.
    pub counters: Registry,
    /// Where requests are written down.
    pub access_log: AccessLog,
    /// Where it is told what clients do.
    pub reporter: Reporter,
}

/// The door while it is open.
#[derive(Debug)]
pub struct Door {
    workers: Vec<Handle>,
    addresses: Vec<SocketAddr>,
    /// For whoever comes after this gateway.
    handles: Vec<(SocketAddr, TcpListener)>,
}

#[derive(Debug)]
struct Handle {
    orders: mpsc::Sender<Order>,
    thread: thread::JoinHandle<io::Result<()>>,
}

/// Orders that a worker has not got round to. It takes them at once.
const MAX_ORDERS: usize = 8;

impl Door {
    /// Starts one worker for each block of counters.
    pub fn open(sockets: Sockets, shared: &Shared) -> io::Result<Self> {
        let addresses = sockets.addresses();
        let handles = sockets.handles()?;
        let sources = Arc::new(Sources::new(shared.snapshot.load().config.bounds.connections));
        let mut workers = Vec::new();
        let blocks = shared.counters.blocks();
        for (number, (counters, sockets)) in blocks.iter().zip(sockets.by_worker()).enumerate() {
            let (orders, inbox) = mpsc::channel(MAX_ORDERS);
            let (shared, counters) = (shared.clone(), Arc::clone(counters));
            let sources = Arc::clone(&sources);
            let thread = thread::Builder::new().name(format!("worker-{number}"));
            let thread = thread.spawn(move || {
                Worker::new(number, &shared, counters, sources)?.run(sockets, inbox)
            })?;
            workers.push(Handle { orders, thread });
        }
        Ok(Self { workers, addresses, handles })
    }

    /// The sockets that are listened on, those of all workers.
    pub fn sockets(&self) -> impl Iterator<Item = &TcpListener> {
        self.handles.iter().map(|(_, socket)| socket)
    }

    /// The addresses that are listened on.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Listens on exactly `addresses` from now on: on those in `new` and on those kept. Connections stay.
    pub fn listen(&mut self, addresses: Vec<SocketAddr>, new: Sockets) -> io::Result<()> {
        // A socket closes with its last handle.
        self.handles.retain(|(address, _)| addresses.contains(address));
        self.handles.extend(new.handles()?);
        for (worker, sockets) in self.workers.iter().zip(new.by_worker()) {
            worker.order(Order::Listen { addresses: addresses.clone(), sockets })?;
        }
        self.addresses = addresses;
        Ok(())
    }

    /// Closes the connections of those whom a rule denies by now. Fails while a worker takes no orders.
    pub fn recheck(&self) -> io::Result<()> {
        self.workers.iter().try_for_each(|worker| worker.order(Order::Recheck))
    }

    /// Closes the connections of these, as far as a rule denies them. Fails while a worker takes no orders.
    pub fn close(&self, subjects: &Arc<[Subject]>) -> io::Result<()> {
        let order = || Order::Close(Arc::clone(subjects));
        self.workers.iter().try_for_each(|worker| worker.order(order()))
    }

    /// The number of a worker that has ended without being told to, if one has: it panicked, or its runtime broke.
    pub fn lost_worker(&self) -> Option<usize> {
        self.workers.iter().position(|worker| worker.thread.is_finished())
    }

    /// Stops listening and lets the requests in flight finish, for at most `bounds.drain_timeout`.
    pub fn drain(&mut self) -> io::Result<()> {
        self.handles.clear();
        self.workers.iter().try_for_each(|worker| worker.order(Order::Drain))
    }

    /// Waits until the last worker has ended, which is after [`Door::drain`].
    pub fn join(self) -> io::Result<()> {
        for worker in self.workers {
            let panicked = |_| io::Error::other("a worker panicked");
            worker.thread.join().map_err(panicked)??;
        }
        Ok(())
    }
}

impl Handle {
    fn order(&self, order: Order) -> io::Result<()> {
        self.orders.try_send(order).map_err(|_| io::Error::other("a worker takes no orders"))
    }
}
