//! An API gateway with two doors and one policy: an XDP program decides about packets, a proxy about requests, and what
//! the proxy learns the kernel enforces.
//!
//! Modules are ranked and import only lower ranks; ARCHITECTURE.md has the table and `cargo xtask tidy` checks it.

pub mod admin;
pub mod auth;
pub mod base;
pub mod cli;
pub mod config;
pub mod control;
pub mod discovery;
pub mod feedback;
pub mod http;
pub mod kernel;
pub mod limit;
pub mod listen;
pub mod observe;
pub mod outbound;
pub mod request;
pub mod route;
pub mod rules;
pub mod shared;
pub mod store;
pub mod tls;
pub mod transform;
pub mod upstream;
