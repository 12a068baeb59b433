//! What is answered to those who look on: events and `top`, the same types on both sides.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::api::KernelStatus;
use crate::base::time::UtcMillis;

/// Dropped packets that were reported: a sample, for the counters count every one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Oldest first.
    pub events: Vec<EventView>,
    /// What to ask for more after.
    pub last: u64,
    /// Events that came and went since what was asked after.
    pub missed: u64,
}

/// One dropped packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Counts up from 1 since the gateway started.
    pub number: u64,
    /// When.
    pub time_utc_ms: UtcMillis,
    /// Whose packet.
    pub source: IpAddr,
    /// Why it was dropped.
    pub reason: String,
    /// The rule that decided.
    pub rule: Option<RuleMetView>,
    /// `tcp`, `udp` or `other`.
    pub protocol: String,
    /// Its source port.
    pub source_port: Option<u16>,
    /// Its destination port.
    pub port: Option<u16>,
    /// Where it came in.
    pub interface: String,
    /// It passed all the same, for this is a dry run.
    pub dry_run: bool,
}

/// A rule as packets meet it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleMetView {
    /// Whose packets.
    pub prefix: String,
    /// What is done with them.
    pub action: String,
    /// Who made it.
    pub origin: String,
    /// The list that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
}

/// What goes on, as numbers that only grow; rates are what lies between two of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Top {
    /// Milliseconds since the host's boot.
    pub time_boot_ms: u64,
    /// The kernel door.
    pub kernel: KernelStatus,
    /// The sources with most events of the last minute.
    pub sources: Vec<SourceView>,
    /// The rules that have met most packets.
    pub busiest: Vec<RuleHitsView>,
    /// What the proxy did.
    pub proxy: serde_json::Value,
}

/// A source whose packets are dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceView {
    /// Its address.
    pub source: IpAddr,
    /// Its events, a sample of its packets.
    pub events: u64,
    /// Why the last one was dropped.
    pub reason: String,
}

/// A rule and what it has met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleHitsView {
    /// The rule.
    pub rule: RuleMetView,
    /// Packets that it decided about.
    pub packets: u64,
}
