//! The administrative interface: HTTP and JSON over a Unix socket of mode 0600.
//!
//! It speaks to `control` by a bounded channel of typed commands and decides nothing itself. Who called is taken from
//! the socket (SO_PEERCRED) and goes into the audit trail.

pub mod api;
pub mod client;
pub mod server;
