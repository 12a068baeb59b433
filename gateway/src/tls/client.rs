//! TLS towards services, compiled: whom to trust, which name to ask for, what to show.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::authorities::{Authorities, system};
use super::pair::Pair;
use super::provider;
use super::store::Store;
use crate::base::time::Now;
use crate::config::{Config, Protocol, UpstreamTls};

/// Time between two complaints about the same service (unit: seconds).
const TELL_EVERY_S: u64 = 10;

/// TLS to the endpoints of a service.
pub struct Client {
    id: u64,
    /// The endpoint chooses.
    auto: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
    authorities: Option<Arc<Authorities>>,
    pair: Option<Arc<Pair>>,
    /// When a failure was last told of, in seconds of CLOCK_BOOTTIME.
    told_s: AtomicU64,
}

/// All of them, by what the configuration says. Services that say the same share one.
#[derive(Clone, Debug, Default)]
pub struct Clients(HashMap<UpstreamTls, Arc<Client>>);

impl Clients {
    /// Compiles what `config` says from what `store` has read. What `before` has stays where nothing has changed, and
    /// with it the connections that were made by it.
    pub fn new(config: &Config, store: &Store, before: &Self) -> Result<Self, String> {
        let mut clients = HashMap::new();
        for upstream in &config.upstreams {
            let Some(tls) = &upstream.tls else { continue };
            let client = match before.get(tls).filter(|before| before.is_made_of(tls, store)) {
                Some(before) => Arc::clone(before),
                None => Arc::new(
                    Client::new(tls, store)
                        .map_err(|error| format!("upstreams.{}.tls: {error}", upstream.name))?,
                ),
            };
            clients.insert(tls.clone(), client);
        }
        Ok(Self(clients))
    }

    /// The one for this part of the configuration.
    pub fn get(&self, tls: &UpstreamTls) -> Option<&Arc<Client>> {
        self.0.get(tls)
    }

    /// Whether both are the same, so that nothing has to be put in force.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(tls, client): (&UpstreamTls, &Arc<Client>)| {
            other.get(tls).is_some_and(|other| Arc::ptr_eq(client, other))
        };
        self.0.len() == other.0.len() && self.0.iter().all(same)
    }
}

impl Client {
    fn new(tls: &UpstreamTls, store: &Store) -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (authorities, pair) = material(tls, store);
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions()?;
        let builder = if tls.verify {
            let roots = authorities.as_ref().map_or_else(system, |own| Arc::clone(&own.roots));
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
            builder
                .with_webpki_verifier(verifier.map_err(|error| Error::General(error.to_string()))?)
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        };
        let mut config = match &pair {
            Some(pair) => {
                let key = Arc::new(SingleCertAndKey::from((*pair.key).clone()));
                builder.with_client_cert_resolver(key)
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let auto = Arc::new(config.clone());
        // One name a protocol: the configuration says which is spoken (RFC 7301).
        config.alpn_protocols = vec![b"h2".to_vec()];
        let http2 = Arc::new(config.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = tls.server_name.clone().and_then(|name| ServerName::try_from(name).ok());
        let (http1, id) = (Arc::new(config), NEXT.fetch_add(1, Ordering::Relaxed));
        Ok(Self { id, auto, http1, http2, name, authorities, pair, told_s: AtomicU64::new(0) })
    }

    fn is_made_of(&self, tls: &UpstreamTls, store: &Store) -> bool {
        let same = (self.authorities.as_ref(), self.pair.as_ref());
        let (authorities, pair) = material(tls, store);
        same.0.map(Arc::as_ptr) == authorities.as_ref().map(Arc::as_ptr)
            && same.1.map(Arc::as_ptr) == pair.as_ref().map(Arc::as_ptr)
    }

    /// What tells its connections from those of every other one.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What shakes hands with an endpoint.
    pub fn connector(&self, protocol: Protocol) -> TlsConnector {
        TlsConnector::from(Arc::clone(match protocol {
            Protocol::Auto => &self.auto,
            Protocol::Http1 => &self.http1,
            Protocol::Http2 => &self.http2,
        }))
    }

    /// The name that the certificate of the endpoint at `address` must have.
    pub fn name(&self, address: IpAddr) -> ServerName<'static> {
        self.name.clone().unwrap_or_else(|| ServerName::IpAddress(address.into()))
    }

    /// Whether a failure is to be told of now: each is counted, and a few are logged.
    pub fn may_tell(&self) -> bool {
        let now_s = Now::read().boot.0 / 1_000_000_000;
        let told_s = self.told_s.load(Ordering::Relaxed);
        (told_s == 0 || now_s >= told_s + TELL_EVERY_S)
            && self
                .told_s
                .compare_exchange(told_s, now_s.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

fn material(tls: &UpstreamTls, store: &Store) -> (Option<Arc<Authorities>>, Option<Arc<Pair>>) {
    let authorities = tls.ca.as_ref().and_then(|ca| store.authorities(ca).cloned());
    let pair = tls.client_certificate.as_ref().and_then(|files| store.pair(files).cloned());
    (authorities, pair)
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Trusts whoever answers, as `verify: false` asks for. That they have the key of their certificate is still verified.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
