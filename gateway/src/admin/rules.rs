//! Rules and lists as people see them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::bans::BanView;
use crate::base::time::UtcMillis;
use crate::feedback::score::Known;

/// Rules by action.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCounts {
    /// Made by somebody to let in.
    pub allow: usize,
    /// Made by somebody to drop.
    pub deny: usize,
    /// With a profile of their own.
    pub limit: usize,
    /// Addresses that must never be blocked.
    pub protected: usize,
    /// Not enforced, because they lie inside protected addresses.
    pub held_back: usize,
}

/// A rule as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// Whose packets.
    pub prefix: String,
    /// What is done with them.
    pub action: String,
    /// The profile that a `limit` rule holds its sources to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Who made it.
    pub origin: String,
    /// The list that it is an entry of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// Why.
    pub reason: String,
    /// When it was made; 0 where nobody remembers.
    pub created_utc_ms: UtcMillis,
    /// When it ends.
    pub until_utc_ms: Option<UtcMillis>,
    /// Where it is enforced at this moment: `kernel`, `user space`, `both` or `nowhere`.
    pub enforced: String,
    /// Why it is enforced nowhere, or only after another one ends.
    pub note: Option<String>,
    /// Packets that it decided about in the kernel.
    pub packets: u64,
    /// When it met the last of them.
    #[serde(default)]
    pub last_packet_utc_ms: Option<UtcMillis>,
}

/// A list as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListView {
    /// Its name.
    pub name: String,
    /// What is done with the packets of its prefixes.
    pub action: String,
    /// Who keeps it: `import`, `file` or `feed`.
    pub kind: String,
    /// Where it comes from.
    pub source: String,
    /// Whether it only counts what it would do.
    pub dry_run: bool,
    /// Its entries.
    pub entries: usize,
    /// When this version of it was read; 0 where none was.
    pub created_utc_ms: UtcMillis,
    /// What they take in this process.
    pub memory_bytes: usize,
    /// When its source was last read with success, be it that nothing was new; 0 for never.
    pub checked_utc_ms: UtcMillis,
    /// Attempts since then that failed.
    pub failures: u32,
    /// Whether a newer version waits for somebody to accept it.
    pub held_back: bool,
    /// Why this version is not the newest, if it is not.
    pub note: Option<String>,
    /// Packets that met a rule of it, since there is a list of this name; `None` where the kernel does not count them.
    #[serde(default)]
    pub packets: Option<u64>,
}

/// What happens to an address, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// The address.
    pub address: IpAddr,
    /// In one sentence.
    pub verdict: String,
    /// The rule that decides.
    pub rule: Option<RuleView>,
    /// Other rules that cover the address, most specific first.
    pub others: Vec<RuleView>,
    /// What is known about bans of it, those that hold first, with all that led to them.
    #[serde(default)]
    pub bans: Vec<BanView>,
    /// What is noticed of it, and what each rule of `feedback` counts.
    #[serde(default)]
    pub scores: Vec<Known>,
}
