//! The administrative interface: HTTP and JSON over a Unix socket of mode 0600; and
//! metrics over TCP where the configuration says so.
//!
//! It speaks to `control` by a bounded channel of typed commands and decides nothing itself. Who called is taken from
//! the socket (SO_PEERCRED) and goes into the audit trail.

pub mod api;
pub mod asker;
pub mod bans;
pub mod certificates;
pub mod client;
pub mod crowdsec;
pub mod guards;
pub mod handover;
pub mod keys;
pub mod monitor;
pub mod query;
pub mod redis;
pub mod refusal;
pub mod rules;
pub mod scrape;
pub mod server;
pub mod spread;
pub mod upstreams;
