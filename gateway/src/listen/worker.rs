//! One worker: accepts, keeps its connections within their bounds, takes orders, drains.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, spawn_local, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::base::address::{ClientAddr, PeerAddr};
use crate::base::signal::Signal;
use crate::config::Config;
use crate::feedback::decision::{Place, Subject};
use crate::feedback::evidence::Source;
use crate::http::deadline::Deadline;
use crate::http::lifetime::Lifetime;
use crate::http::proxy_protocol::Addresses;
use crate::http::socket;
use crate::listen::Shared;
use crate::listen::connection::{self, Stream};
use crate::listen::parking::{Parked, Parking};
use crate::listen::preface::{self, Handshakes};
use crate::listen::sources::Sources;
use crate::observe::{Counters, Refusal, access_log};
use crate::request::listener::{Listener, Listeners};
use crate::request::{self, Arrival};

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Listen on exactly these addresses; the sockets are for those that are new.
    Listen { addresses: Vec<SocketAddr>, sockets: Vec<Socket> },
    /// Close the connections of those whom a rule denies by now.
    Recheck,
    /// The same, where it can only be these.
    Close(Arc<[Subject]>),
    /// Stop listening, finish what is in flight, end.
    Drain,
}

/// A listening socket and its address.
pub(super) type Socket = (SocketAddr, std::net::TcpListener);

/// How often idle connections to services are looked through, and those of clients that are parked.
const SWEEP: Duration = Duration::from_secs(1);

/// A table for so many connections is not worth making smaller.
const FEW: usize = 64;

/// How long to wait when no descriptor is left: a busy loop would take the time from those who could free one.
const EXHAUSTED: Duration = Duration::from_millis(20);

/// One worker, on its own thread.
pub(super) struct Worker {
    requests: Rc<request::Worker>,
    listeners: RefCell<Cache<Arc<ArcSwap<Listeners>>, Arc<Listeners>>>,
    handshakes: Handshakes,
    /// What is open in all workers.
    sources: Arc<Sources>,
    open: RefCell<Open>,
    parking: Parking,
    draining: Cell<bool>,
    none_left: Notify,
}

/// The connections of this worker, each with what it takes to tell it something.
#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Told>,
}

impl Open {
    /// What is gone takes no memory, also after a crowd.
    fn forget(&mut self, number: u64) {
        self.connections.remove(&number);
        let (length, capacity) = (self.connections.len(), self.connections.capacity());
        if capacity > FEW && length < capacity / 4 {
            self.connections.shrink_to(2 * length);
        }
    }
}

struct Told {
    whom: Whom,
    denied: Rc<Cell<bool>>,
    waker: Waker,
}

/// Who is at the other end of a connection.
struct Whom {
    peer: IpAddr,
    /// Whom a PROXY protocol sender speaks for.
    client: Option<ClientAddr>,
}

impl Whom {
    /// Whether a rule about `subject` may concern it.
    fn is_of(&self, subject: &Subject) -> bool {
        let is_believed = || self.client.is_some_and(|one| subject.prefix.contains(&one.ip()));
        let is_peer = subject.place == Place::Kernel && subject.prefix.contains(&self.peer);
        is_peer || is_believed()
    }
}

struct Listening {
    inlet: Rc<Inlet>,
    accepting: JoinHandle<()>,
}

/// A listening socket, and what is agreed on with those who come through it.
struct Inlet {
    socket: TcpListener,
    address: SocketAddr,
    /// As it was for the last connection. One whose address is listened on no more stays as it was.
    listener: RefCell<(Arc<Listeners>, Rc<Listener>)>,
}

impl Worker {
    pub(super) fn new(
        number: usize,
        shared: &Shared,
        counters: Arc<Counters>,
        sources: Arc<Sources>,
    ) -> io::Result<Rc<Self>> {
        let log = shared.access_log.buffer(Arc::clone(&counters));
        let parking = Parking::new(Arc::clone(&counters))?;
        Ok(Rc::new(Self {
            requests: Rc::new(request::Worker::new(
                number,
                &shared.snapshot,
                &shared.rules,
                counters,
                (log, shared.reporter.clone()),
            )),
            listeners: RefCell::new(Cache::new(Arc::clone(&shared.listeners))),
            handshakes: Handshakes::new(),
            sources,
            open: RefCell::default(),
            parking,
            draining: Cell::new(false),
            none_left: Notify::new(),
        }))
    }

    /// Serves until it is told to drain and has.
    pub(super) fn run(
        self: Rc<Self>,
        sockets: Vec<Socket>,
        orders: mpsc::Receiver<Order>,
    ) -> io::Result<()> {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_io().enable_time().build_local(LocalOptions::default())?;
        runtime.block_on(self.serve(sockets, orders))
    }

    async fn serve(
        self: Rc<Self>,
        sockets: Vec<Socket>,
        mut orders: mpsc::Receiver<Order>,
    ) -> io::Result<()> {
        let mut listening = HashMap::new();
        self.listen(sockets, &mut listening)?;
        let awake = self.parking.watch()?;
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flush = interval(access_log::FLUSH_EVERY);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Listen { addresses, sockets }) => {
                        listening.extract_if(|address, _| !addresses.contains(address))
                            .for_each(|(_, gone)| self.close(&gone));
                        self.listen(sockets, &mut listening)?;
                    }
                    Some(Order::Recheck) => {
                        self.recheck(|_| true);
                        self.requests.cut_tunnels(|_| true);
                    }
                    Some(Order::Close(subjects)) => {
                        self.recheck(|whom| subjects.iter().any(|subject| whom.is_of(subject)));
                        let is_of = |subject: &Subject, client| subject.prefix.contains(&client);
                        self.requests
                            .cut_tunnels(|client| subjects.iter().any(|one| is_of(one, client)));
                    }
                    Some(Order::Drain) | None => break,
                },
                awake = awake.ready() => {
                    let mut awake = awake?;
                    if self.take_awake()? {
                        awake.clear_ready();
                    } else {
                        yield_now().await;
                    }
                }
                _ = sweep.tick() => {
                    self.requests.sweep();
                    // Whoever has asked for something meanwhile is not closed.
                    while !self.take_awake()? {
                        yield_now().await;
                    }
                    self.parking.sweep();
                }
                _ = flush.tick(), if self.requests.is_logging() => self.requests.flush_log(),
            }
        }
        listening.drain().for_each(|(_, gone)| self.close(&gone));
        self.drain().await
    }

    fn listen(
        self: &Rc<Self>,
        sockets: Vec<Socket>,
        listening: &mut HashMap<SocketAddr, Listening>,
    ) -> io::Result<()> {
        for (address, socket) in sockets {
            let socket = TcpListener::from_std(socket)?;
            let inlet = Rc::new(Inlet { socket, address, listener: RefCell::default() });
            let accepting = spawn_local(Rc::clone(self).accept(Rc::clone(&inlet)));
            listening.insert(address, Listening { inlet, accepting });
        }
        Ok(())
    }

    /// Ends listening on a socket. Connections that the kernel has completed are accepted before, because closing the
    /// socket would reset them.
    fn close(self: &Rc<Self>, gone: &Listening) {
        gone.accepting.abort();
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok((stream, peer))) = gone.inlet.socket.poll_accept(&mut context) {
            self.accepted(stream, peer, &gone.inlet);
        }
    }

    async fn accept(self: Rc<Self>, inlet: Rc<Inlet>) {
        loop {
            match poll_fn(|context| inlet.socket.poll_accept(context)).await {
                Ok((stream, peer)) => self.accepted(stream, peer, &inlet),
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => sleep(EXHAUSTED).await,
            }
        }
    }

    fn accepted(self: &Rc<Self>, stream: TcpStream, from: SocketAddr, inlet: &Inlet) {
        let counters = &self.requests.counters;
        counters.connections_accepted.add(1);
        let peer = PeerAddr::of_socket(from);
        if self.requests.denies(peer.ip()) {
            if self.requests.resets(peer.ip()) {
                // What fails has been closed already.
                stream.set_zero_linger().ok();
            }
            return counters.refused(Refusal::Denied);
        }
        let listener = self.listener(inlet);
        if !listener.admits(peer.ip()) {
            return counters.refused(Refusal::ProxySender);
        }
        let config = self.requests.config();
        let slot = Slot::take(self, peer);
        if slot.taken_before >= config.bounds.connections {
            return counters.refused(Refusal::TooMany);
        }
        // Who sends headers of the PROXY protocol speaks for many.
        if !listener.speaks_proxy_protocol() && !slot.admits_source(peer.ip()) {
            return counters.refused(Refusal::PerSource);
        }
        let to = listener.asks_for_destination.then(|| stream.local_addr().ok()).flatten();
        let addresses = Addresses { source: from, destination: to.unwrap_or(inlet.address) };
        if listener.has_preface() {
            self.handshakes.fit(&config);
            spawn_local(preface::serve(slot, listener, (stream, peer, addresses)));
            return;
        }
        let arrival = Arrival { peer, addresses, tls: None };
        let connection = request::Connection::new(&self.requests, listener, arrival);
        let deadline = Rc::new(Deadline::new(&config.bounds));
        let socket = socket::Socket::Plain(stream);
        spawn_local(connection::serve(slot, connection, (Stream::New(socket), deadline)));
    }

    fn listener(&self, inlet: &Inlet) -> Rc<Listener> {
        let mut cache = self.listeners.borrow_mut();
        let listeners = cache.load();
        let (followed, listener) = &mut *inlet.listener.borrow_mut();
        if !Arc::ptr_eq(followed, listeners) {
            *followed = Arc::clone(listeners);
            if let Some(found) = listeners.get(inlet.address) {
                *listener = Rc::new(found.of_worker());
            }
        }
        Rc::clone(listener)
    }

    /// Goes on with some of those parked whose clients have come back; whether that were all.
    fn take_awake(&self) -> io::Result<bool> {
        self.parking.take_awake(|Parked { socket, slot, listener, addresses, lifetime }| {
            // What the runtime has no room for is closed.
            let Ok(stream) = TcpStream::from_std(socket) else { return };
            let arrival = Arrival { peer: slot.peer, addresses, tls: None };
            let connection = request::Connection::resumed(&self.requests, listener, arrival);
            spawn_local(connection::resume(slot, connection, (stream, lifetime)));
        })
    }

    fn denies(&self, whom: &Whom) -> bool {
        let believed = |client| self.requests.denies_believed(client);
        self.requests.denies(whom.peer) || whom.client.is_some_and(believed)
    }

    /// Closes the connections of those whom a rule denies by now, among those that `may` tells.
    fn recheck(&self, may: impl Fn(&Whom) -> bool) {
        let denied = |whom: &Whom| may(whom) && self.denies(whom);
        for told in self.open.borrow().connections.values().filter(|told| denied(&told.whom)) {
            told.denied.set(true);
            told.waker.wake_by_ref();
        }
        for parked in self.parking.take(|slot| denied(&slot.whom())) {
            if parked.slot.is_reset() {
                // What fails has been closed already.
                SockRef::from(&parked.socket).set_linger(Some(Duration::ZERO)).ok();
            }
            self.requests.counters.refused(Refusal::Denied);
        }
    }

    /// Lets what is in flight finish, for as long as it may.
    async fn drain(&self) -> io::Result<()> {
        self.draining.set(true);
        self.requests.stop_noticing();
        // Who has come back by now is answered.
        while !self.take_awake()? {}
        drop(self.parking.take(|_| true));
        for told in self.open.borrow().connections.values() {
            told.waker.wake_by_ref();
        }
        let limit = self.requests.config().bounds.drain_timeout;
        // What is not done by then is dropped with the runtime.
        timeout(limit, self.none_left()).await.ok();
        Ok(())
    }

    async fn none_left(&self) {
        while self.requests.counters.connections_open.value() > 0 {
            self.none_left.notified().await;
        }
    }
}

/// A connection that broke before it was accepted says nothing about the next one.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// One connection among all that may be open.
pub(super) struct Slot {
    worker: Rc<Worker>,
    number: u64,
    taken_before: usize,
    /// Where its source is counted.
    source: Cell<Option<usize>>,
    peer: PeerAddr,
    client: Cell<Option<ClientAddr>>,
    /// Whether a rule denies the peer since; there once somebody is to be told so.
    denied: OnceCell<Rc<Cell<bool>>>,
}

impl Slot {
    fn take(worker: &Rc<Worker>, peer: PeerAddr) -> Self {
        worker.requests.counters.connections_open.add(1);
        let taken_before = worker.sources.open();
        let mut open = worker.open.borrow_mut();
        open.next += 1;
        let (worker, denied) = (Rc::clone(worker), OnceCell::new());
        let (client, source) = (Cell::new(None), Cell::new(None));
        Self { worker, number: open.next, taken_before, source, peer, client, denied }
    }

    /// Counts the connection as one of `source`: whether it may have so many.
    pub(super) fn admits_source(&self, source: IpAddr) -> bool {
        let config = self.config();
        let max = config.bounds.connections_per_source;
        if max >= config.bounds.connections {
            return true;
        }
        let sources = &self.worker.sources;
        let Some((cell, count)) = sources.enter(source, config.kernel.ipv6_source_length) else {
            return true;
        };
        self.source.set(Some(cell));
        let admitted = count <= max || self.worker.requests.spares(source);
        if !admitted {
            sources.complain(source, max);
        }
        admitted
    }

    /// Has `waker` woken when the worker begins to drain, and when the peer is denied, which it may be by now.
    pub(super) fn register(&self, waker: &Waker) {
        let (denied, whom) = (Rc::clone(self.denied.get_or_init(Rc::default)), self.whom());
        denied.set(self.worker.denies(&whom));
        let told = Told { whom, denied, waker: waker.clone() };
        self.worker.open.borrow_mut().connections.insert(self.number, told);
    }

    /// Parks the connection until its client comes back or `until`; its task ends. Whatever the worker is told, it sees
    /// to itself meanwhile.
    pub(super) fn park(
        mut self,
        (listener, addresses): (Rc<Listener>, Addresses),
        (stream, lifetime): (TcpStream, Lifetime),
        until: Instant,
    ) {
        let worker = Rc::clone(&self.worker);
        worker.open.borrow_mut().forget(self.number);
        self.denied.take();
        let parked = |socket| Parked { socket, slot: self, listener, addresses, lifetime };
        let parked = stream.into_std().map(parked);
        // What cannot be parked is closed.
        parked.and_then(|parked| worker.parking.park(parked, until)).ok();
    }

    fn whom(&self) -> Whom {
        Whom { peer: self.peer.ip(), client: self.client.get() }
    }

    /// From now on rules about `client` concern the connection too.
    pub(super) fn believe(&self, client: ClientAddr) {
        self.client.set(Some(client));
    }

    /// The client did something odd; `reason` is what a story says of it. Nobody answers for what a rule ended.
    pub(super) fn notice(&self, signal: Signal, reason: &'static str) {
        let peer = || Source::Peer(self.peer);
        let source = self.client.get().map_or_else(peer, Source::Believed);
        if !self.is_denied() {
            self.worker.requests.notice(signal, source, reason);
        }
    }

    /// Whether a rule denies the peer since it was let in.
    pub(super) fn is_denied(&self) -> bool {
        self.denied.get().is_some_and(|denied| denied.get())
    }

    /// Whether that rule wants the connection ended by a TCP RST.
    pub(super) fn is_reset(&self) -> bool {
        let requests = self.requests();
        requests.resets(self.peer.ip())
            || self.client.get().is_some_and(|one| requests.resets_believed(one))
    }

    pub(super) fn is_draining(&self) -> bool {
        self.worker.draining.get()
    }

    pub(super) fn config(&self) -> Arc<Config> {
        self.worker.requests.config()
    }

    pub(super) fn requests(&self) -> &Rc<request::Worker> {
        &self.worker.requests
    }

    pub(super) fn handshakes(&self) -> &Handshakes {
        &self.worker.handshakes
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.worker.requests.counters
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.worker.sources.close(self.source.get());
        self.worker.requests.counters.connections_open.subtract_one();
        self.worker.open.borrow_mut().forget(self.number);
        self.worker.none_left.notify_one();
    }
}
