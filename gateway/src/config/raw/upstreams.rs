//! `upstreams` as typed.

use serde::Deserialize;

use super::{RawBalance, RawEjection, RawEjectionSection, Section, TextOr};
use crate::config::Protocol;
use crate::config::breaker::RawBreaker;
use crate::config::concurrency::RawConcurrency;
use crate::config::health::RawHealth;
use crate::config::hedge::RawHedge;
use crate::config::retry::RawRetry;

/// A service.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawUpstream {
    /// At least one.
    pub(in crate::config) endpoints: Vec<RawEndpoint>,
    /// Default: `auto` where there is TLS and no PROXY protocol, `http1` elsewhere.
    #[serde(default)]
    pub(in crate::config) protocol: Option<Protocol>,
    /// How one of them is chosen.
    #[serde(default = "balance")]
    pub(in crate::config) balance: RawBalance,
    /// Time in which an endpoint grows to its weight. Default: none.
    #[serde(default)]
    pub(in crate::config) slow_start: Option<String>,
    /// Share of usable endpoints below which all are used.
    #[serde(default = "panic_threshold")]
    pub(in crate::config) panic_threshold: String,
    /// Default: nobody asks.
    #[serde(default)]
    pub(in crate::config) health: Option<RawHealth>,
    #[serde(default = "ejection")]
    pub(in crate::config) ejection: RawEjection,
    #[serde(default)]
    pub(in crate::config) timeout: RawTimeout,
    #[serde(default)]
    pub(in crate::config) retry: RawRetry,
    /// Default: never.
    #[serde(default)]
    pub(in crate::config) hedge: Option<RawHedge>,
    /// Default: none.
    #[serde(default)]
    pub(in crate::config) breaker: Option<RawBreaker>,
    /// Default: no limit.
    #[serde(default)]
    pub(in crate::config) concurrency: Option<RawConcurrency>,
    /// Idle connections kept to one endpoint by one worker.
    #[serde(default = "idle_connections")]
    pub(in crate::config) idle_connections: u64,
    /// Default: plain TCP.
    #[serde(default)]
    pub(in crate::config) tls: Option<RawUpstreamTls>,
    /// Default: none.
    #[serde(default)]
    pub(in crate::config) proxy_protocol: Option<RawProxyProtocolVersion>,
}

/// TLS to the endpoints of a service.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawUpstreamTls {
    /// PEM file of the authorities that are trusted. Default: the system's.
    pub(in crate::config) ca: Option<String>,
    /// The name that certificates must have. Default: the address of the endpoint.
    pub(in crate::config) server_name: Option<String>,
    /// What the gateway proves who it is by.
    pub(in crate::config) client_certificate: Option<RawClientCertificate>,
    pub(in crate::config) verify: bool,
}

impl Default for RawUpstreamTls {
    fn default() -> Self {
        Self { ca: None, server_name: None, client_certificate: None, verify: true }
    }
}

/// A certificate and its key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawClientCertificate {
    /// PEM file.
    pub(in crate::config) cert: String,
    /// PEM file of the private key.
    pub(in crate::config) key: String,
}

/// What connections to endpoints begin with.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RawProxyProtocolVersion {
    V2,
}

fn balance() -> RawBalance {
    TextOr::Text("round_robin".to_owned())
}

fn panic_threshold() -> String {
    "50%".to_owned()
}

fn ejection() -> RawEjection {
    TextOr::Section(RawEjectionSection::default())
}

fn idle_connections() -> u64 {
    1024
}

/// `ip:port`, `host:port` or `echo`, alone or as `{address: ...}`, or `{srv: ...}`.
pub(in crate::config) type RawEndpoint = TextOr<RawEndpointSection>;

/// An endpoint with more to say than its address.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawEndpointSection {
    /// This or `srv`.
    #[serde(default)]
    pub(in crate::config) address: Option<String>,
    /// The name of a service.
    #[serde(default)]
    pub(in crate::config) srv: Option<String>,
    /// Its share of the requests. Default: 1.
    #[serde(default)]
    pub(in crate::config) weight: Option<u64>,
    /// Where it is. Default: nowhere in particular.
    #[serde(default)]
    pub(in crate::config) zone: Option<String>,
}

impl Section for RawEndpointSection {
    const EXPECTED: &'static str =
        "`ip:port`, `host:port`, `echo` or a section with `address` or `srv`";
}

/// How long an upstream may take.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawTimeout {
    /// To connect to an endpoint.
    pub(in crate::config) connect: String,
    /// From the last byte of the request to the head of the answer.
    pub(in crate::config) response: String,
    /// How long an idle connection is kept.
    pub(in crate::config) idle: String,
    /// From the choice of an endpoint to the last byte of the answer. Default: no bound.
    pub(in crate::config) whole: Option<String>,
}

impl Default for RawTimeout {
    fn default() -> Self {
        let [connect, response, idle] = ["1s", "10s", "60s"].map(str::to_owned);
        Self { connect, response, idle, whole: None }
    }
}
