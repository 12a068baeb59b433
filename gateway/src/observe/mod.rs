//! Counts what happens to connections and requests: one block a worker, merged when somebody looks.
//!
//! A block has one writer and shares no cache line with another, so that counting costs a plain store. Reading never
//! stops a worker.

pub mod access_log;
pub mod audit;
pub mod histogram;
pub mod outcomes;
pub mod prometheus;
pub mod resilience;
pub mod signals;
pub mod traffic;
pub mod trail;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::base::error::Kind;
use resilience::Counts;
use traffic::{Series, Sum, Table};

/// Why a connection was closed before any request was read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A rule denies the peer.
    Denied,
    /// `bounds.connections` was reached.
    TooMany,
    /// `bounds.connections_per_source` was reached.
    PerSource,
    /// The peer is none of the senders that the listener's PROXY protocol is for.
    ProxySender,
    /// No valid header of the PROXY protocol arrived in time.
    ProxyHeader,
}

impl Refusal {
    const ALL: [Self; 5] =
        [Self::Denied, Self::TooMany, Self::PerSource, Self::ProxySender, Self::ProxyHeader];

    fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::TooMany => "too_many",
            Self::PerSource => "connections_per_source",
            Self::ProxySender => "proxy_sender",
            Self::ProxyHeader => "proxy_header",
        }
    }
}

/// Why a stream of HTTP/2 was refused before anybody saw its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRefusal {
    /// It contradicts the protocol.
    Protocol,
    /// Its head is larger than the bound.
    HeadTooLarge,
    /// `bounds.streams` was reached.
    TooMany,
    /// It brought more than it had room for.
    FlowControl,
    /// It was closed already.
    Closed,
}

impl StreamRefusal {
    const ALL: [Self; 5] =
        [Self::Protocol, Self::HeadTooLarge, Self::TooMany, Self::FlowControl, Self::Closed];

    fn name(self) -> &'static str {
        match self {
            Self::Protocol => "protocol_error",
            Self::HeadTooLarge => "head_too_large",
            Self::TooMany => "too_many",
            Self::FlowControl => "flow_control",
            Self::Closed => "stream_closed",
        }
    }
}

/// Why a TLS handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The client did not get done in time.
    TimedOut,
    /// The client speaks plain HTTP.
    PlainHttp,
    /// The client names a host that no certificate has, and `unknown_sni` is `refuse`.
    UnknownSni,
    /// No version, cipher suite, signature or protocol that both sides speak.
    Incompatible,
    /// The client has no certificate, or none that is accepted.
    ClientCertificate,
    /// The client broke off with an alert: it does not trust the certificate, most likely.
    Alert,
    /// The client left, or sent what is no TLS.
    Broken,
}

impl HandshakeFailure {
    const ALL: [Self; 7] = [
        Self::TimedOut,
        Self::PlainHttp,
        Self::UnknownSni,
        Self::Incompatible,
        Self::ClientCertificate,
        Self::Alert,
        Self::Broken,
    ];

    /// Its name in metrics and stories.
    pub fn name(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::PlainHttp => "plain_http",
            Self::UnknownSni => "unknown_sni",
            Self::Incompatible => "incompatible",
            Self::ClientCertificate => "client_certificate",
            Self::Alert => "alert",
            Self::Broken => "broken",
        }
    }
}

/// One number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. Only the owning worker may: it is no atomic addition, which would cost a locked instruction.
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Takes one back, under the same condition.
    pub fn subtract_one(&self) {
        self.add(u64::MAX);
    }

    /// The number.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker counts. Two cache lines apart from every other block, because CPUs fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// The number of the worker.
    pub worker: usize,
    /// Connections accepted from the kernel, those refused after that included.
    pub connections_accepted: Counter,
    /// Connections that are open.
    pub connections_open: Counter,
    /// Those of them that rest between two requests.
    pub connections_parked: Counter,
    refused: [Counter; Refusal::ALL.len()],
    streams_refused: [Counter; StreamRefusal::ALL.len()],
    handshakes: [Counter; 2],
    handshakes_failed: [Counter; HandshakeFailure::ALL.len()],
    /// Connections closed because a request's head was not HTTP or beyond a bound.
    pub heads_malformed: Counter,
    /// Connections closed because a request's head did not arrive in time.
    pub heads_timed_out: Counter,
    /// Connections and streams closed because a reader was too slow for an answer's body.
    pub readers_timed_out: Counter,
    /// Tunnels closed because nothing went through them.
    pub tunnels_timed_out: Counter,
    /// Connections closed because what was sent is not HTTP/2.
    pub frames_malformed: Counter,
    /// Connections of HTTP/2 closed because of too many frames that asked for nothing, or streams that were reset.
    pub floods: Counter,
    /// Requests that are being answered.
    pub requests_active: Counter,
    statuses: [Counter; 5],
    /// Requests whose client left before the head of an answer.
    pub requests_abandoned: Counter,
    /// Answers that broke off midway, from either side. They are among the statuses too.
    pub answers_broken: Counter,
    errors: [Counter; Kind::ALL.len()],
    /// Connections opened to endpoints.
    pub upstream_connections_opened: Counter,
    /// Requests that found a connection in the pool.
    pub upstream_connections_reused: Counter,
    /// Lines for the access log, dropped ones too.
    pub log_lines: Counter,
    /// Lines that were dropped because too many waited to be written.
    pub log_lines_dropped: Counter,
    /// What clients did that may count against them.
    pub signals: signals::Signals,
    /// Bytes read from clients.
    pub bytes_received: Counter,
    /// Bytes written to clients.
    pub bytes_sent: Counter,
}

impl Counters {
    /// A connection was refused.
    pub fn refused(&self, reason: Refusal) {
        if let Some(counter) = self.refused.get(reason as usize) {
            counter.add(1);
        }
    }

    /// A stream was refused.
    pub fn stream_refused(&self, reason: StreamRefusal) {
        if let Some(counter) = self.streams_refused.get(reason as usize) {
            counter.add(1);
        }
    }

    /// A TLS handshake came to nothing.
    pub fn handshake_failed(&self, failure: HandshakeFailure) {
        if let Some(counter) = self.handshakes_failed.get(failure as usize) {
            counter.add(1);
        }
    }

    /// A TLS handshake was done, in full or by resuming a session.
    pub fn handshake_done(&self, resumed: bool) {
        if let Some(counter) = self.handshakes.get(usize::from(resumed)) {
            counter.add(1);
        }
    }

    /// A request ended in this error.
    pub fn failed(&self, kind: Kind) {
        if let Some(counter) = self.errors.get(kind as usize) {
            counter.add(1);
        }
    }

    /// A request got an answer with this status.
    pub fn answered(&self, status: u16) {
        if let Some(counter) = self.statuses.get(usize::from(status / 100).wrapping_sub(1)) {
            counter.add(1);
        }
    }
}

/// The blocks of all workers.
#[derive(Clone, Debug)]
pub struct Registry {
    blocks: Arc<[Arc<Counters>]>,
    /// For whoever compiles a configuration and whoever looks, never for a worker.
    traffic: Arc<Mutex<Tables>>,
}

/// Requests by name.
#[derive(Debug)]
struct Tables {
    routes: Table,
    upstreams: Table,
}

/// What was counted by route and by upstream, each with its name.
#[derive(Clone, Debug, Default)]
pub struct ByName {
    /// By route; the time is that of the whole request.
    pub routes: Vec<(String, Sum)>,
    /// By upstream; the time is from the request to the head of the answer.
    pub upstreams: Vec<(String, Sum)>,
}

impl Registry {
    /// Blocks for so many workers.
    pub fn new(workers: usize) -> Self {
        let block = |worker| Arc::new(Counters { worker, ..Counters::default() });
        let tables = Tables { routes: Table::new(workers), upstreams: Table::new(workers) };
        Self { blocks: (0..workers).map(block).collect(), traffic: Arc::new(Mutex::new(tables)) }
    }

    /// The blocks, one a worker.
    pub fn blocks(&self) -> &[Arc<Counters>] {
        &self.blocks
    }

    /// The series of routes in the order of their names, at most `max` of them with one of their own.
    pub fn routes(&self, names: &[&str], max: usize) -> Vec<Series> {
        self.with_tables(|tables| tables.routes.series(names, max))
    }

    /// The same for upstreams.
    pub fn upstreams(&self, names: &[&str], max: usize) -> Vec<Series> {
        self.with_tables(|tables| tables.upstreams.series(names, max))
    }

    /// Everything added up.
    pub fn snapshot(&self) -> Snapshot {
        let mut sum = Snapshot::default();
        for block in self.blocks.iter() {
            sum.add(block);
        }
        let mut resilience = Counts::default();
        let upstreams = self.with_tables(|tables| tables.upstreams.sums());
        upstreams.iter().for_each(|(_, upstream)| resilience.merge(&upstream.resilience));
        sum.upstream.resilience = resilience.by_name();
        sum
    }

    /// What was counted by route and by upstream.
    pub fn by_name(&self) -> ByName {
        self.with_tables(|tables| ByName {
            routes: tables.routes.sums(),
            upstreams: tables.upstreams.sums(),
        })
    }

    fn with_tables<T>(&self, work: impl FnOnce(&mut Tables) -> T) -> T {
        work(&mut self.traffic.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What all workers counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Connections from clients.
    pub connections: Connections,
    /// TLS with clients.
    pub handshakes: Handshakes,
    /// Requests.
    pub requests: Requests,
    /// Connections to endpoints.
    pub upstream: Upstream,
    /// Lines of the access log.
    pub access_log: LogLines,
    /// What clients did that may count against them.
    pub feedback: signals::Snapshot,
    /// Bytes read from clients.
    pub bytes_received: u64,
    /// Bytes written to clients.
    pub bytes_sent: u64,
}

/// Connections from clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// Accepted from the kernel, those refused after that included.
    pub accepted: u64,
    /// Open now.
    pub open: u64,
    /// Those of them that rest between two requests.
    pub parked: u64,
    /// Closed before any request was read, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Streams of HTTP/2 refused before their requests were seen, by reason.
    pub streams_refused: BTreeMap<&'static str, u64>,
    /// Closed because a request's head was not HTTP or beyond a bound.
    pub heads_malformed: u64,
    /// Closed because a request's head did not arrive in time.
    pub heads_timed_out: u64,
    /// Closed because a reader was too slow; streams of HTTP/2 too.
    pub readers_timed_out: u64,
    /// Closed because nothing went through a tunnel; streams of HTTP/2 too.
    pub tunnels_timed_out: u64,
    /// Closed because what was sent is not HTTP/2.
    pub frames_malformed: u64,
    /// Closed because of too many frames of HTTP/2 that asked for nothing, or streams that were reset.
    pub floods: u64,
}

/// TLS handshakes with clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Handshakes {
    /// Done, in `full` or by resuming a session.
    pub done: BTreeMap<&'static str, u64>,
    /// Come to nothing, by reason.
    pub failed: BTreeMap<&'static str, u64>,
}

/// Requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Being answered now.
    pub active: u64,
    /// Answered, by class of status.
    pub answered: BTreeMap<&'static str, u64>,
    /// The client left before the head of an answer.
    pub abandoned: u64,
    /// Answers that broke off midway.
    pub broken: u64,
    /// Answered by the gateway itself because of an error, by kind.
    pub errors: BTreeMap<&'static str, u64>,
}

/// Connections to endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Upstream {
    /// Opened.
    pub opened: u64,
    /// Found in the pool instead.
    pub reused: u64,
    /// What was done about services that are sick: what it was, then why or with which result.
    #[serde(flatten)]
    pub resilience: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
}

/// Lines of the access log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LogLines {
    /// All of them, lost ones too.
    pub lines: u64,
    /// Lost because too many waited to be written.
    pub lost_queue_full: u64,
    /// Lost because they could not be written. No worker knows; `control` does.
    pub lost_write_failed: u64,
}

/// Classes of statuses.
pub const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl Snapshot {
    fn add(&mut self, block: &Counters) {
        let connections = &mut self.connections;
        connections.accepted += block.connections_accepted.value();
        connections.open += block.connections_open.value();
        connections.parked += block.connections_parked.value();
        connections.heads_malformed += block.heads_malformed.value();
        connections.heads_timed_out += block.heads_timed_out.value();
        connections.readers_timed_out += block.readers_timed_out.value();
        connections.tunnels_timed_out += block.tunnels_timed_out.value();
        connections.frames_malformed += block.frames_malformed.value();
        connections.floods += block.floods.value();
        for (reason, counter) in Refusal::ALL.into_iter().zip(&block.refused) {
            *connections.refused.entry(reason.name()).or_default() += counter.value();
        }
        for (reason, counter) in StreamRefusal::ALL.into_iter().zip(&block.streams_refused) {
            *connections.streams_refused.entry(reason.name()).or_default() += counter.value();
        }
        for (kind, counter) in ["full", "resumed"].into_iter().zip(&block.handshakes) {
            *self.handshakes.done.entry(kind).or_default() += counter.value();
        }
        for (why, counter) in HandshakeFailure::ALL.into_iter().zip(&block.handshakes_failed) {
            *self.handshakes.failed.entry(why.name()).or_default() += counter.value();
        }
        self.requests.active += block.requests_active.value();
        self.requests.abandoned += block.requests_abandoned.value();
        self.requests.broken += block.answers_broken.value();
        for (class, counter) in CLASSES.into_iter().zip(&block.statuses) {
            *self.requests.answered.entry(class).or_default() += counter.value();
        }
        for (kind, counter) in Kind::ALL.into_iter().zip(&block.errors) {
            *self.requests.errors.entry(kind.name()).or_default() += counter.value();
        }
        self.upstream.opened += block.upstream_connections_opened.value();
        self.upstream.reused += block.upstream_connections_reused.value();
        self.access_log.lines += block.log_lines.value();
        self.access_log.lost_queue_full += block.log_lines_dropped.value();
        self.feedback.add(&block.signals);
        self.bytes_received += block.bytes_received.value();
        self.bytes_sent += block.bytes_sent.value();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_add_up() {
        let registry = Registry::new(2);
        for block in registry.blocks() {
            block.answered(204);
            block.failed(Kind::Denied);
            block.refused(Refusal::TooMany);
            block.connections_open.add(2);
            block.connections_open.subtract_one();
        }
        let snapshot = registry.snapshot();
        assert_eq!(snapshot.requests.answered["2xx"], 2);
        assert_eq!(snapshot.requests.errors["denied"], 2);
        assert_eq!(snapshot.connections.refused["too_many"], 2);
        assert_eq!(snapshot.connections.open, 2);
    }
}
