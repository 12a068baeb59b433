//! The services behind the gateway as `control` looks after them.

pub(super) mod health;
pub(super) mod views;

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Control, background};
use crate::config::{Config, Target};
use crate::limit::Limits;
use crate::observe::Registry;
use crate::request::{Compiled, Routes, Snapshot};
use crate::tls::client::Clients;
use crate::upstream::directory::Directory;

/// Whether a configuration asks for the built-in service.
pub(super) fn uses_echo(config: &Config) -> bool {
    let mut endpoints = config.upstreams.iter().flat_map(|upstream| &upstream.endpoints);
    endpoints.any(|endpoint| endpoint.target == Target::Echo)
}

impl Control {
    /// Puts the configuration in force as it is compiled now.
    pub(super) fn publish_snapshot(&mut self, routes: Arc<Routes>, limits: Arc<Limits>) {
        let (clients, own) = (self.certificates.clients(), (self.echo, &self.shared.counters));
        let compiled = Compiled {
            config: Arc::clone(&self.config),
            routes,
            authenticators: Arc::clone(&self.authenticators),
            limits,
        };
        let snapshot = snapshot(compiled, &mut self.directory, clients, own);
        self.retired.push(self.shared.snapshot.swap(snapshot));
    }

    /// Frees what no request uses any more. Freeing tens of thousands of routes takes long enough to be noticed, so
    /// it must not be the last request that does it.
    pub(super) fn free_retired(&mut self) {
        let unused: Vec<_> =
            self.retired.extract_if(.., |retired| Arc::strong_count(retired) == 1).collect();
        if !unused.is_empty() {
            // Where there is no thread to be had, they are freed here.
            drop(background::begin("free", move || drop(unused)));
        }
    }

    /// Asks endpoints what the configuration in force wants asked.
    pub(super) fn configure_checks(&mut self) {
        self.checks.configure(&self.config, &self.directory, self.certificates.clients());
    }
}

/// Compiles a configuration, with its endpoints put in force.
pub(super) fn snapshot(
    compiled: Compiled,
    directory: &mut Directory,
    clients: &Clients,
    (echo, counters): (Option<SocketAddr>, &Registry),
) -> Arc<Snapshot> {
    directory.set_own(compiled.config.zone.as_deref(), echo);
    let snapshot = Arc::new(Snapshot::new(compiled, directory, clients, counters));
    directory.keep(&snapshot.config);
    snapshot
}
