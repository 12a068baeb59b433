//! The services behind the gateway and their endpoints as people see them.

use serde::{Deserialize, Serialize};

use crate::base::time::UtcMillis;

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamView {
    /// Its name.
    pub name: String,
    /// How its endpoints are chosen.
    pub balance: String,
    /// So few endpoints are usable that all are used.
    pub panic: bool,
    /// Ejections that were refused because too many were ejected.
    pub ejections_refused: u64,
    /// Its endpoints, and those that it has no more and that have requests to finish.
    pub endpoints: Vec<EndpointView>,
    /// The names that endpoints are looked up by.
    pub names: Vec<NameView>,
}

/// A name that endpoints are looked up by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameView {
    /// `host:port`, or the name of a service.
    pub name: String,
    /// What it stands for.
    pub addresses: Vec<String>,
    /// When addresses were last found; `None` for never.
    pub resolved_utc_ms: Option<UtcMillis>,
    /// When it is looked up again.
    pub next_utc_ms: UtcMillis,
    /// Lookups since one found addresses.
    pub failures: u32,
    /// What is wrong with it.
    pub note: Option<String>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// Where it is.
    pub address: String,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// Its share of the requests, beside those of the others; 0 while it drains.
    pub weight: u32,
    /// `healthy`, `unhealthy`, `ejected` or `draining`.
    pub condition: String,
    /// Since when.
    pub since_utc_ms: UtcMillis,
    /// Why.
    pub why: Option<String>,
    /// Requests that it has not answered to the end.
    pub active: u64,
    /// Requests that were sent to it.
    pub requests: u64,
    /// Requests that it failed.
    pub failures: u64,
    /// How many of them it failed one after the other, up to now.
    pub failures_in_a_row: u32,
    /// How often it was ejected.
    pub ejections: u64,
}
