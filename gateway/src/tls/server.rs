//! TLS of listeners, compiled: certificates by name, versions and cipher suites, tickets.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio_rustls::TlsAcceptor;

use super::names::Names;
use super::provider;
use super::store::Store;
use crate::config;

/// What is spoken over TLS, the better first (RFC 7301).
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What rustls says where no certificate may be shown to a client.
pub const NO_CERTIFICATE: &str = "no server certificate chain resolved";

/// TLS of one listener.
#[derive(Clone)]
pub struct Server {
    config: Arc<ServerConfig>,
    /// What made sessions that clients may resume.
    tickets: Option<Arc<dyn ProducesTickets>>,
}

impl Server {
    /// Compiles the TLS section of a listener from what `store` has read. The tickets of `before` are honoured by the
    /// new one too.
    pub fn new(
        tls: &config::Tls,
        store: &Store,
        before: Option<&Self>,
    ) -> Result<Self, rustls::Error> {
        let mut provider = (*provider()).clone();
        if !tls.cipher_suites.is_empty() {
            provider.cipher_suites.retain(|known| tls.cipher_suites.contains(&known.suite()));
        }
        let pairs = tls.certificates.iter().filter_map(|files| store.pair(files).cloned());
        let names = Names::new(&pairs.collect::<Vec<_>>(), tls.default, tls.unknown_sni);
        let versions: &[&SupportedProtocolVersion] =
            if tls.tls12 { &[&TLS13, &TLS12] } else { &[&TLS13] };
        let builder = ServerConfig::builder_with_provider(Arc::new(provider));
        let builder = builder.with_protocol_versions(versions)?.with_no_client_auth();
        let mut config = builder.with_cert_resolver(Arc::new(names));
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        // A cache of sessions would be one lock for all workers; tickets need none.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let tickets = match before.and_then(|before| before.tickets.clone()) {
            _ if !tls.session_tickets => None,
            Some(tickets) => Some(tickets),
            None => Some(Ticketer::new()?),
        };
        if let Some(tickets) = &tickets {
            config.ticketer = Arc::clone(tickets);
        }
        Ok(Self { config: Arc::new(config), tickets })
    }

    /// What takes the handshake of a client.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").finish_non_exhaustive()
    }
}
