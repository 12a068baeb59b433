//! What is agreed on with clients before and beside HTTP, by the address that they connected to.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::config::Config;
use crate::tls::server::Server;
use crate::tls::store::Store;

/// A listener, compiled. It never changes; a new one takes its place, also when only a certificate was renewed.
#[derive(Clone, Debug, Default)]
pub struct Listener {
    /// `None`: plain TCP.
    pub tls: Option<Server>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Listeners(HashMap<SocketAddr, Listener>);

impl Listeners {
    /// Compiles the listeners of `config` from what `store` has read. Sessions that began under `before` can be
    /// resumed.
    pub fn new(config: &Config, store: &Store, before: &Self) -> Result<Self, String> {
        let compiled = config.listen.iter().map(|listener| {
            let address = listener.address;
            let before = before.get(address).and_then(|before| before.tls.as_ref());
            let tls = listener.tls.as_ref().map(|tls| Server::new(tls, store, before));
            let tls = tls.transpose().map_err(|error| format!("listen {address}: tls: {error}"))?;
            Ok((address, Listener { tls }))
        });
        Ok(Self(compiled.collect::<Result<_, String>>()?))
    }

    /// The one at `address`.
    pub fn get(&self, address: SocketAddr) -> Option<&Listener> {
        self.0.get(&address)
    }
}
