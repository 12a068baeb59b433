//! What is agreed on with clients before and beside HTTP, by the address that they connected to.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use http::HeaderValue;
use ipnet::IpNet;

use crate::config::{self, Config};
use crate::http::headers;
use crate::tls::server::Server;
use crate::tls::store::Store;

/// A listener, compiled. It never changes; a new one takes its place, also when only a certificate was renewed.
#[derive(Clone, Debug, Default)]
pub struct Listener {
    /// `None`: plain TCP.
    pub tls: Option<Server>,
    /// Who alone may connect, with a header of the PROXY protocol; empty: there are none.
    proxy_protocol_from: Vec<IpNet>,
    /// The port of https that every request is sent to instead.
    pub(super) redirect: Option<u16>,
    /// `Strict-Transport-Security`.
    pub(super) hsts: Option<HeaderValue>,
    /// Whether it matters which of the host's addresses a client has connected to.
    pub asks_for_destination: bool,
}

impl Listener {
    fn new(
        config: &config::Listener,
        store: &Store,
        before: Option<&Self>,
    ) -> Result<Self, rustls::Error> {
        let before = before.and_then(|before| before.tls.as_ref());
        let tls = config.tls.as_ref().map(|tls| Server::new(tls, store, before)).transpose()?;
        let hsts = config.tls.as_ref().and_then(|tls| tls.hsts.as_deref());
        Ok(Self {
            tls,
            proxy_protocol_from: config.proxy_protocol_from.clone(),
            redirect: config.redirect,
            hsts: hsts.map(headers::value),
            asks_for_destination: false,
        })
    }

    /// One of its own for a worker: counting who holds a value is not shared between workers.
    pub fn of_worker(&self) -> Self {
        let hsts =
            self.hsts.as_ref().and_then(|hsts| HeaderValue::from_bytes(hsts.as_bytes()).ok());
        Self { hsts, ..self.clone() }
    }

    /// Whether there is anything to agree on before HTTP.
    pub fn has_preface(&self) -> bool {
        self.tls.is_some() || self.speaks_proxy_protocol()
    }

    /// Whether connections begin with a header of the PROXY protocol.
    pub fn speaks_proxy_protocol(&self) -> bool {
        !self.proxy_protocol_from.is_empty()
    }

    /// Whether `peer` may connect at all.
    pub fn admits(&self, peer: IpAddr) -> bool {
        let from = &self.proxy_protocol_from;
        from.is_empty() || from.iter().any(|prefix| prefix.contains(&peer))
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Listeners(HashMap<SocketAddr, Listener>);

impl Listeners {
    /// Compiles the listeners of `config` from what `store` has read. Sessions that began under `before` can be
    /// resumed.
    pub fn new(config: &Config, store: &Store, before: &Self) -> Result<Self, String> {
        let tells = config.upstreams.iter().any(|upstream| upstream.proxy_protocol);
        let compiled = config.listen.iter().map(|listener| {
            let address = listener.address;
            let compiled = Listener::new(listener, store, before.get(address))
                .map_err(|error| format!("listen {address}: tls: {error}"))?;
            let asks_for_destination = tells && address.ip().is_unspecified();
            Ok((address, Listener { asks_for_destination, ..compiled }))
        });
        Ok(Self(compiled.collect::<Result<_, String>>()?))
    }

    /// The one at `address`.
    pub fn get(&self, address: SocketAddr) -> Option<&Listener> {
        self.0.get(&address)
    }
}
