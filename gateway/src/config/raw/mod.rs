//! The configuration as typed: plain types, one per section, with the defaults that a reader of the file may rely on.
//! Texts are not understood here; that is for the section files beside this one.

mod balance;
mod kernel;
mod listen;
mod observe;
mod routes;
mod upstreams;

use serde::Deserialize;

pub(super) use self::balance::*;
pub(super) use self::kernel::*;
pub(super) use self::listen::*;
pub(super) use self::observe::*;
pub(super) use self::routes::*;
pub(super) use self::upstreams::*;
use super::auth::{RawAuthenticator, RawConsumer};
use super::discovery::RawDiscovery;
use super::feedback::RawFeedback;
pub(super) use super::forms::{Named, Section, TextOr};
use super::identity::RawIdentity;
use super::limits::{RawLimit, RawLimiting, RawPlan};
use super::redis::RawRedis;
use super::tracing::RawTracing;

/// A whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Raw {
    /// Where clients connect. At least one.
    pub(in crate::config) listen: Vec<RawListener>,
    /// Worker threads. Default: one per CPU that the process may use.
    pub(in crate::config) workers: Option<u64>,
    /// The user that the daemon becomes. Default: `gateway`, else `nobody`.
    pub(in crate::config) user: Option<String>,
    /// Peers whose `X-Forwarded-For` is believed.
    pub(in crate::config) trusted_proxies: Vec<String>,
    pub(in crate::config) state: RawState,
    pub(in crate::config) admin: RawAdmin,
    pub(in crate::config) metrics: RawMetrics,
    pub(in crate::config) audit: RawAudit,
    pub(in crate::config) access_log: RawAccessLog,
    pub(in crate::config) tracing: RawTracing,
    pub(in crate::config) kernel: RawKernel,
    pub(in crate::config) bounds: RawBounds,
    /// Where the gateway is. Default: nowhere in particular.
    pub(in crate::config) zone: Option<String>,
    pub(in crate::config) discovery: RawDiscovery,
    pub(in crate::config) upstreams: Named<RawUpstream>,
    /// Ways to know callers.
    pub(in crate::config) auth: Named<RawAuthenticator>,
    pub(in crate::config) consumers: Named<RawConsumer>,
    /// What all limits have in common.
    pub(in crate::config) limiting: RawLimiting,
    pub(in crate::config) plans: Named<RawPlan>,
    /// Limits of all routes.
    pub(in crate::config) limits: Vec<RawLimit>,
    /// Default: the usual fields, where callers can be known.
    pub(in crate::config) identity: Option<RawIdentity>,
    /// Default: nothing is noticed.
    pub(in crate::config) feedback: Option<RawFeedback>,
    pub(in crate::config) routes: Vec<RawRoute>,
}

/// Where state is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawState {
    /// Default: `/var/lib/gateway` for root.
    pub(in crate::config) dir: Option<String>,
    /// What several gateways share. Default: nothing.
    pub(in crate::config) redis: Option<RawRedis>,
}

/// The administrative interface.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawAdmin {
    /// Default: `/run/gateway/admin.sock` for root.
    pub(in crate::config) socket: Option<String>,
}

/// Metrics over TCP.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawMetrics {
    /// `ip:port`. Default: nowhere.
    pub(in crate::config) listen: Option<String>,
    /// Routes, and upstreams, with series of their own.
    pub(in crate::config) max_names: u64,
}

impl Default for RawMetrics {
    fn default() -> Self {
        Self { listen: None, max_names: 1000 }
    }
}

/// What a client may make the gateway hold or wait for.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawBounds {
    /// Client connections in all workers together.
    pub(in crate::config) connections: u64,
    /// Client connections of one source. Default: a quarter of all.
    pub(in crate::config) connections_per_source: Option<u64>,
    /// Age from which a connection ends with its next answer.
    pub(in crate::config) connection_lifetime: String,
    /// Requests of one connection.
    pub(in crate::config) connection_requests: u64,
    /// Requests at once over one connection of HTTP/2.
    pub(in crate::config) streams: u64,
    /// Header fields of a request.
    pub(in crate::config) header_count: u64,
    /// Size of a request's head, and of an answer's.
    pub(in crate::config) head_bytes: String,
    /// Size of a request's target.
    pub(in crate::config) target_bytes: String,
    /// Size of a request's body.
    pub(in crate::config) body_bytes: String,
    /// Bytes of a body that a client must send or take in a second; 0 for none.
    pub(in crate::config) body_bytes_per_second: String,
    /// Time for what comes before HTTP: a TLS handshake.
    pub(in crate::config) handshake_timeout: String,
    /// Handshakes at the same time, in all workers together.
    pub(in crate::config) handshakes: u64,
    /// Time for a request's head to arrive.
    pub(in crate::config) head_timeout: String,
    /// Time between two pieces of a body.
    pub(in crate::config) idle_timeout: String,
    /// Time that a connection may wait for its next request.
    pub(in crate::config) keep_alive_timeout: String,
    /// Time that a tunnel may stay open without a byte.
    pub(in crate::config) tunnel_idle_timeout: String,
    /// Time that requests in flight have when the gateway ends.
    pub(in crate::config) drain_timeout: String,
}

impl Default for RawBounds {
    fn default() -> Self {
        Self {
            connections: 65_536,
            connections_per_source: None,
            connection_lifetime: "1h".to_owned(),
            connection_requests: 1_000_000,
            streams: 128,
            header_count: 100,
            head_bytes: "64KiB".to_owned(),
            target_bytes: "8KiB".to_owned(),
            body_bytes: "10MiB".to_owned(),
            body_bytes_per_second: "240".to_owned(),
            handshake_timeout: "10s".to_owned(),
            handshakes: 4096,
            head_timeout: "10s".to_owned(),
            idle_timeout: "60s".to_owned(),
            keep_alive_timeout: "75s".to_owned(),
            tunnel_idle_timeout: "10m".to_owned(),
            drain_timeout: "30s".to_owned(),
        }
    }
}
