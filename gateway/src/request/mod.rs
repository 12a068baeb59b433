//! Requests: what they are decided by, and the ordered page of their life ([`serve`]).

mod access_log;
pub mod account;
pub mod listener;
mod prepare;
pub mod serve;
mod signals;
pub mod target;
mod tunnels;

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use http::HeaderValue;
use tokio::time::Instant;

use crate::auth::{Authenticators, Memories};
use crate::base::address::{ClientAddr, PeerAddr};
use crate::base::signal::Signal;
use crate::base::time;
use crate::config::{self, Config};
use crate::feedback::Reporter;
use crate::feedback::evidence::Source;
use crate::http::proxy_protocol::Addresses;
use crate::http::{forwarded, headers};
use crate::limit::Limits;
use crate::observe::access_log::Buffer;
use crate::observe::traffic::Series;
use crate::observe::{Counters, Registry};
use crate::request::listener::Listener;
use crate::route;
use crate::rules::classify::Classifier;
use crate::tls::client::Clients;
use crate::tls::session::{ClientCertificate, Session};
use crate::upstream::balance::View;
use crate::upstream::directory::Directory;
use crate::upstream::send::Client;
use crate::upstream::{Local, Upstream};
use access_log::Log;
use gateway_common::rule::{Action, Origin};
use signals::{Desk, Noted, Story, Watch};
use tunnels::Tunnels;

/// A configuration, compiled. It never changes; a new one takes its place.
#[derive(Debug)]
pub struct Snapshot {
    /// What it was compiled from.
    pub config: Arc<Config>,
    routes: Arc<Routes>,
    authenticators: Arc<Authenticators>,
    limits: Arc<Limits>,
    upstreams: Vec<Upstream>,
    /// What is looked for in what clients do.
    watch: Option<Watch>,
    /// What is counted by upstream, in the order of the upstreams.
    upstream_series: Vec<Series>,
}

/// What of a configuration was compiled before.
#[derive(Debug)]
pub struct Compiled {
    /// What it was compiled from.
    pub config: Arc<Config>,
    /// Its routes.
    pub routes: Arc<Routes>,
    /// Its ways to know callers.
    pub authenticators: Arc<Authenticators>,
    /// Its limits.
    pub limits: Arc<Limits>,
}

/// The routes of a configuration, compiled, with what is counted by each.
#[derive(Debug)]
pub struct Routes {
    table: route::Table,
    /// In the order of the routes.
    series: Vec<Series>,
}

impl Routes {
    /// Compiles those of a configuration, which takes milliseconds where there are tens of thousands. What is counted
    /// by name goes on in `counters`.
    pub fn new(config: &Config, counters: &Registry) -> Self {
        let names: Vec<&str> = config.routes.iter().map(|route| &*route.name).collect();
        let series = counters.routes(&names, config.metrics.max_names);
        Self { table: route::Table::new(&config.routes), series }
    }
}

impl Snapshot {
    /// Compiles the rest of a configuration, and puts its endpoints in force. What is counted by name goes on in
    /// `counters`.
    pub fn new(
        compiled: Compiled,
        directory: &mut Directory,
        clients: &Clients,
        counters: &Registry,
    ) -> Self {
        let Compiled { config, routes, authenticators, limits } = compiled;
        let upstreams = config.upstreams.iter();
        let upstreams =
            upstreams.map(|service| Upstream::new(service, &config.bounds, directory, clients));
        let mut upstreams: Vec<Upstream> = upstreams.collect();
        for route in &config.routes {
            let config::Action::Forward(forward) = &route.action else { continue };
            for target in &forward.upstreams {
                if let Some(upstream) = upstreams.get_mut(target.upstream) {
                    upstream.serves(route.priority);
                }
            }
        }
        let upstream_names: Vec<&str> = config.upstreams.iter().map(|one| &*one.name).collect();
        let max = config.metrics.max_names;
        Self {
            watch: config.feedback.as_deref().map(Watch::new),
            routes,
            authenticators,
            limits,
            upstreams,
            upstream_series: counters.upstreams(&upstream_names, max),
            config,
        }
    }

    /// The routes, as they are looked up.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// The ways to know callers.
    pub fn authenticators(&self) -> &Arc<Authenticators> {
        &self.authenticators
    }

    /// How much callers may.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// The services, in the order of the configuration.
    pub fn upstreams(&self) -> &[Upstream] {
        &self.upstreams
    }
}

/// The rules that user space decides by. They change more often than the configuration, so they are swapped apart.
pub type Rules = Arc<ArcSwap<Classifier>>;

/// What the requests of one worker share. Nothing here is waited for: it belongs to the worker's thread.
#[derive(Debug)]
pub struct Worker {
    snapshot: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    current: RefCell<Rc<Current>>,
    rules: RefCell<Followed>,
    client: Client,
    log: Log,
    desk: Desk,
    tunnels: Tunnels,
    /// What this worker counts.
    pub counters: Arc<Counters>,
}

/// A snapshot and what a worker remembers as long as it holds. Counting its holders is not shared between workers.
#[derive(Debug)]
struct Current {
    snapshot: Arc<Snapshot>,
    /// The endpoints as the worker sees them, by upstream.
    views: Vec<View>,
    /// What is remembered of the upstreams, in their order.
    locals: Vec<Rc<Local>>,
    /// Whom the worker knows.
    memories: Memories,
    /// When each route was last said to be under pressure.
    pressed: Box<[Cell<Option<Instant>>]>,
}

/// The rules as they are, and how often they have changed.
#[derive(Debug)]
struct Followed {
    cache: Cache<Rules, Arc<Classifier>>,
    held: Arc<Classifier>,
    changes: u64,
}

impl Current {
    /// A snapshot has the upstreams of its configuration; those that the one before it had too are remembered.
    fn new(snapshot: Arc<Snapshot>, before: Option<&Self>, client: &Client) -> Rc<Self> {
        let views = snapshot.upstreams.iter().map(|upstream| client.view(upstream)).collect();
        let before = before.iter().flat_map(|before| {
            let names = before.snapshot.config.upstreams.iter().map(|service| &*service.name);
            names.zip(&before.locals)
        });
        let before: HashMap<&str, &Rc<Local>> = before.collect();
        let services = snapshot.config.upstreams.iter().zip(&snapshot.upstreams);
        let local = |(service, upstream): (&config::Upstream, &Upstream)| {
            Local::of(upstream, before.get(&*service.name).copied())
        };
        let locals = services.map(local).collect();
        let memories = snapshot.authenticators.memories(client.worker());
        let watched = snapshot.watch.as_ref().map_or(0, |_| snapshot.config.routes.len());
        let pressed = vec![Cell::new(None); watched].into();
        Rc::new(Self { snapshot, views, locals, memories, pressed })
    }
}

impl Worker {
    /// The worker of this number, which follows `snapshot` and `rules`, writes its requests down to `log`, and tells
    /// `reporter` what clients do.
    pub fn new(
        number: usize,
        snapshot: &Arc<ArcSwap<Snapshot>>,
        rules: &Rules,
        counters: Arc<Counters>,
        (log, reporter): (Buffer, Reporter),
    ) -> Self {
        let mut cache = Cache::new(Arc::clone(snapshot));
        let current = Arc::clone(cache.load());
        let client = Client::new(number, Arc::clone(&counters));
        Self {
            snapshot: RefCell::new(cache),
            current: RefCell::new(Current::new(current, None, &client)),
            client,
            rules: RefCell::new(Followed {
                cache: Cache::new(Arc::clone(rules)),
                held: rules.load_full(),
                changes: 1,
            }),
            log: Log::new(log),
            desk: Desk::new(reporter),
            tunnels: Tunnels::default(),
            counters,
        }
    }

    /// The configuration as it is now.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.current().snapshot.config)
    }

    /// Whether requests are written down.
    pub fn is_logging(&self) -> bool {
        self.current.borrow().snapshot.config.access_log.is_some()
    }

    /// Hands over what was written down.
    pub fn flush_log(&self) {
        self.log.flush();
    }

    /// Whether a rule keeps `address` out. A profile limits packets, not requests.
    pub fn denies(&self, address: IpAddr) -> bool {
        matches!(self.action(address), Some(Action::Deny | Action::Reset))
    }

    /// Whether a rule keeps requests out that are believed to come from `client`.
    pub fn denies_believed(&self, client: ClientAddr) -> bool {
        matches!(self.action_believed(client), Some(Action::Deny | Action::Reset))
    }

    /// Cuts the tunnels of clients that only a proxy names and that a rule denies by now, among those that `may` tells.
    pub fn cut_tunnels(&self, may: impl Fn(IpAddr) -> bool) {
        self.tunnels.cut(|client| may(client.ip()) && self.denies_believed(client));
    }

    /// Whether that rule wants `address` told so by a TCP RST.
    pub fn resets(&self, address: IpAddr) -> bool {
        self.action(address) == Some(Action::Reset)
    }

    /// The same of whom a connection is believed to come from.
    pub fn resets_believed(&self, client: ClientAddr) -> bool {
        self.action_believed(client) == Some(Action::Reset)
    }

    fn action(&self, address: IpAddr) -> Option<Action> {
        let rules = &self.rules().held;
        if rules.is_empty() { None } else { rules.action(address, time::boot()) }
    }

    fn action_believed(&self, client: ClientAddr) -> Option<Action> {
        let rules = &self.rules().held;
        let find = || rules.find_believed(client.ip(), time::boot());
        if rules.is_empty() { None } else { find().map(|(_, entry)| entry.action) }
    }

    /// Whether `address` is one that must never be blocked, or that many clients share.
    pub fn spares(&self, address: IpAddr) -> bool {
        let trusted = &self.current().snapshot.config.trusted_proxies;
        let is_protected = || {
            let found = self.rules().held.find(address, time::boot());
            found.is_some_and(|(_, entry)| entry.origin == Origin::Protected)
        };
        forwarded::is_trusted(trusted, address) || is_protected()
    }

    fn rules(&self) -> Ref<'_, Followed> {
        let mut followed = self.rules.borrow_mut();
        let Followed { cache, held, changes } = &mut *followed;
        let rules = cache.load();
        if !Arc::ptr_eq(rules, held) {
            *held = Arc::clone(rules);
            *changes += 1;
        }
        drop(followed);
        self.rules.borrow()
    }

    /// Drops idle connections to endpoints that are of no more use, and tells of what went well. Called about once a
    /// second.
    pub fn sweep(&self) {
        self.client.sweep(&self.current().views);
        self.desk.flush(&self.counters.signals);
    }

    /// The gateway ends: what it cuts short is nobody's doing.
    pub fn stop_noticing(&self) {
        self.desk.close();
    }

    /// A client did something odd without a request, and `reason` is what a story says of it.
    pub fn notice(&self, signal: Signal, source: Source, reason: &'static str) {
        let counts = self.current().snapshot.watch.as_ref().is_some_and(|it| it.counts(signal));
        if counts {
            let story = Story { reason: Some(reason), ..Story::default() };
            self.odd(signal, source, (None, story));
        }
    }

    fn odd(&self, signal: Signal, source: Source, what: (Option<&Noted>, Story<'_>)) {
        if !self.desk.is_closed() && !self.spares(source.ip()) {
            self.desk.odd(signal, source, what, &self.counters.signals);
        }
    }

    fn good(&self, source: Source, noted: &Noted) {
        self.desk.good(source, noted, &self.counters.signals);
    }

    fn pressed(&self, current: &Current, route: usize, now: Instant) {
        let name = current.snapshot.config.routes.get(route).map(|route| &*route.name);
        if let Some(route) = name.zip(current.pressed.get(route)) {
            self.desk.pressure(route, now, &self.counters.signals);
        }
    }

    fn current(&self) -> Rc<Current> {
        let mut cache = self.snapshot.borrow_mut();
        let snapshot = cache.load();
        let mut current = self.current.borrow_mut();
        if !Arc::ptr_eq(snapshot, &current.snapshot) {
            let before = Some(&**current);
            *current = Current::new(Arc::clone(snapshot), before, &self.client);
        }
        Rc::clone(&current)
    }
}

/// A connection that has just been agreed on.
#[derive(Debug)]
pub struct Arrival {
    /// The other end of its socket.
    pub peer: PeerAddr,
    /// Where it comes from and where it went to, as the socket or a PROXY protocol sender says.
    pub addresses: Addresses,
    /// What the TLS handshake agreed on; `None` over plain TCP.
    pub tls: Option<Session>,
}

/// One connection of a client.
#[derive(Debug)]
pub struct Connection {
    worker: Rc<Worker>,
    /// The other end of its socket.
    peer: PeerAddr,
    /// Whom requests come from, unless a trusted proxy says more.
    client: ClientAddr,
    /// The same as text, written once for all requests of the connection.
    client_text: HeaderValue,
    /// Where it comes from and where it went to.
    addresses: Addresses,
    /// What the listener asks for.
    listener: Rc<Listener>,
    /// What the TLS handshake agreed on; `None` over plain TCP.
    pub tls: Option<Session>,
    /// The state of the rules that let the peer in.
    admitted: Cell<u64>,
    /// Whether anything came over it that was answered.
    has_asked: Cell<bool>,
}

impl Connection {
    /// A connection, which the rules have yet to let in.
    pub fn new(worker: &Rc<Worker>, listener: Rc<Listener>, arrival: Arrival) -> Rc<Self> {
        let Arrival { peer, addresses, tls } = arrival;
        let client = ClientAddr::believed(addresses.source.ip());
        let client_text = headers::value(&client.to_string());
        Rc::new(Self {
            worker: Rc::clone(worker),
            peer,
            client,
            client_text,
            addresses,
            listener,
            tls,
            admitted: Cell::new(0),
            has_asked: Cell::new(false),
        })
    }

    /// A connection that has rested between two requests, without TLS.
    pub fn resumed(worker: &Rc<Worker>, listener: Rc<Listener>, arrival: Arrival) -> Rc<Self> {
        let connection = Self::new(worker, listener, arrival);
        connection.has_asked.set(true);
        connection
    }

    /// What was said when it was made.
    pub fn origin(&self) -> (Rc<Listener>, Addresses) {
        (Rc::clone(&self.listener), self.addresses)
    }

    /// Whether anything came over it that was answered.
    pub fn has_asked(&self) -> bool {
        self.has_asked.get()
    }

    /// Who is to answer for a request, and how that is known.
    fn source(&self, noted: &Noted) -> Source {
        match self.listener.speaks_proxy_protocol() {
            true => Source::Believed(noted.believed()),
            false => Source::of(self.peer, noted.believed()),
        }
    }

    /// Who the client has proven to be by its certificate.
    pub fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.tls.as_ref()?.client_certificate.as_deref()
    }

    /// `https` or `http`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Whether no rule keeps the peer out. It is asked once for each state of the rules, so that a rule that is made
    /// while a connection is open ends it also where no kernel door does.
    pub fn admits_peer(&self) -> bool {
        let changes = self.worker.rules().changes;
        if self.admitted.get() == changes {
            return true;
        }
        let admitted = !self.worker.denies(self.peer.ip());
        if admitted {
            self.admitted.set(changes);
        }
        admitted
    }
}
