//! The services behind the gateway as `control` looks after them.

pub(super) mod health;
pub(super) mod views;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::{Config, Target};
use crate::observe::Registry;
use crate::request::Snapshot;
use crate::upstream::directory::Directory;

/// Whether a configuration asks for the built-in service.
pub(super) fn uses_echo(config: &Config) -> bool {
    let mut endpoints = config.upstreams.iter().flat_map(|upstream| &upstream.endpoints);
    endpoints.any(|endpoint| endpoint.target == Target::Echo)
}

/// Compiles a configuration, with its endpoints put in force.
pub(super) fn snapshot(
    config: &Arc<Config>,
    directory: &mut Directory,
    echo: Option<SocketAddr>,
    counters: &Registry,
) -> Arc<Snapshot> {
    directory.set_own(config.zone.as_deref(), echo);
    let snapshot = Arc::new(Snapshot::new(Arc::clone(config), directory, counters));
    directory.keep(config);
    snapshot
}
