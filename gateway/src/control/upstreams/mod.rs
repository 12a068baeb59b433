//! The services behind the gateway as `control` looks after them.

pub(super) mod health;
pub(super) mod views;

use std::net::SocketAddr;
use std::sync::Arc;

use super::Control;
use crate::config::{Config, Target};
use crate::observe::Registry;
use crate::request::Snapshot;
use crate::tls::client::Clients;
use crate::upstream::directory::Directory;

/// Whether a configuration asks for the built-in service.
pub(super) fn uses_echo(config: &Config) -> bool {
    let mut endpoints = config.upstreams.iter().flat_map(|upstream| &upstream.endpoints);
    endpoints.any(|endpoint| endpoint.target == Target::Echo)
}

impl Control {
    /// Puts the configuration in force as it is compiled now.
    pub(super) fn publish_snapshot(&mut self) {
        let (clients, counters) = (self.certificates.clients(), &self.shared.counters);
        let snapshot = snapshot(&self.config, &mut self.directory, clients, self.echo, counters);
        self.shared.snapshot.store(snapshot);
    }

    /// Asks endpoints what the configuration in force wants asked.
    pub(super) fn configure_checks(&mut self) {
        self.checks.configure(&self.config, &self.directory, self.certificates.clients());
    }
}

/// Compiles a configuration, with its endpoints put in force.
pub(super) fn snapshot(
    config: &Arc<Config>,
    directory: &mut Directory,
    clients: &Clients,
    echo: Option<SocketAddr>,
    counters: &Registry,
) -> Arc<Snapshot> {
    directory.set_own(config.zone.as_deref(), echo);
    let snapshot = Arc::new(Snapshot::new(Arc::clone(config), directory, clients, counters));
    directory.keep(config);
    snapshot
}
