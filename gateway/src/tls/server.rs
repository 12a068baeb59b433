//! TLS of listeners, compiled: certificates by name, versions and cipher suites, tickets.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{Error, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::TlsAcceptor;

use super::authorities::Authorities;
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
    /// Who issues certificates of clients, and whether they may do without one.
    clients: Option<(Arc<Authorities>, bool)>,
    forwards: bool,
}

impl Server {
    /// Compiles the TLS section of a listener from what `store` has read. Tickets of `before` are honoured by the new
    /// one too.
    pub fn new(tls: &config::Tls, store: &Store, before: Option<&Self>) -> Result<Self, Error> {
        let provider = provider_of(tls);
        let pairs = tls.certificates.iter().filter_map(|files| store.pair(files).cloned());
        let names = Names::new(&pairs.collect::<Vec<_>>(), tls.default, tls.unknown_sni);
        let versions: &[&SupportedProtocolVersion] =
            if tls.tls12 { &[&TLS13, &TLS12] } else { &[&TLS13] };
        let clients = tls.client_certificates.as_ref();
        let forwards = clients.is_some_and(|clients| clients.forward);
        let clients = clients.and_then(|clients| {
            Some((Arc::clone(store.authorities(&clients.authorities)?), clients.optional))
        });
        let verifier = verifier(clients.as_ref(), &provider)?;
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(versions)?.with_client_cert_verifier(verifier);
        let mut config = builder.with_cert_resolver(Arc::new(names));
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        // A cache of sessions would be one lock for all workers; tickets need none.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // Who resumes a session is not verified again: where other clients are let in, all have to begin anew.
        let before = before.filter(|before| same_clients(&before.clients, &clients));
        let tickets = match before.and_then(|before| before.tickets.clone()) {
            _ if !tls.session_tickets => None,
            Some(tickets) => Some(tickets),
            None => Some(Ticketer::new()?),
        };
        if let Some(tickets) = &tickets {
            config.ticketer = Arc::clone(tickets);
        }
        Ok(Self { config: Arc::new(config), tickets, clients, forwards })
    }

    /// What takes the handshake of a client.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// Whether services are sent the certificates of clients.
    pub fn forwards(&self) -> bool {
        self.forwards
    }
}

fn provider_of(tls: &config::Tls) -> Arc<CryptoProvider> {
    let mut provider = provider();
    if !tls.cipher_suites.is_empty() {
        let suites = &mut Arc::make_mut(&mut provider).cipher_suites;
        suites.retain(|known| tls.cipher_suites.contains(&known.suite()));
    }
    provider
}

fn verifier(
    clients: Option<&(Arc<Authorities>, bool)>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let Some((authorities, optional)) = clients else {
        return Ok(WebPkiClientVerifier::no_client_auth());
    };
    let roots = Arc::clone(&authorities.roots);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    let builder = builder.with_crls(authorities.revoked.iter().cloned());
    let builder = builder.only_check_end_entity_revocation();
    let builder = if *optional { builder.allow_unauthenticated() } else { builder };
    builder.build().map_err(|error| Error::General(error.to_string()))
}

fn same_clients(
    one: &Option<(Arc<Authorities>, bool)>,
    other: &Option<(Arc<Authorities>, bool)>,
) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some((one, one_optional)), Some((other, other_optional))) => {
            Arc::ptr_eq(one, other) && one_optional == other_optional
        }
        _ => false,
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").finish_non_exhaustive()
    }
}
