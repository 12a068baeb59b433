//! From a host and port to a stream of bytes: look-up, TCP, TLS. Trusts the system's authorities or one file's, never
//! anybody else.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, crypto};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Reason;
use super::url::Target;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// All of a system's authorities together take a quarter of it (unit: bytes).
const CA_BYTES_MAX: u64 = 1 << 20;

/// Why a file of authorities is of no use.
#[derive(Debug, Error)]
#[error("the certificates of authorities in {path} cannot be used: {reason}")]
pub struct CaError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Either kind of connection.
pub(super) type Stream = Box<dyn Duplex>;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

pub(super) struct Connector {
    /// `None` on a host without authorities.
    tls: Option<TlsConnector>,
}

impl Connector {
    pub(super) fn new(ca: Option<&Path>) -> Result<Self, CaError> {
        let roots = match ca {
            Some(path) => {
                read_roots(path).map_err(|reason| CaError { path: path.to_owned(), reason })?
            }
            None => {
                let mut roots = RootCertStore::empty();
                // One that cannot be read is one less to trust.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                roots
            }
        };
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().ok();
        let tls = builder.filter(|_| !roots.is_empty()).map(|builder| {
            let mut config = builder.with_root_certificates(roots).with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            TlsConnector::from(Arc::new(config))
        });
        Ok(Self { tls })
    }

    /// Connects to the first address that takes it. Each has an equal share of the time, so that a dead one hides no
    /// other.
    pub(super) async fn connect(
        &self,
        target: &Target,
        time: Duration,
        peers: &mut Vec<IpAddr>,
    ) -> Result<Stream, Reason> {
        let found = lookup_host((target.host.as_str(), target.port)).await;
        let addresses: Vec<SocketAddr> =
            found.map_err(Reason::Lookup)?.take(ADDRESSES_MAX).collect();
        for address in addresses.iter().map(|address| address.ip().to_canonical()) {
            if !peers.contains(&address) {
                peers.push(address);
            }
        }
        let tcp = connect_any(&addresses, time).await?;
        // Failing that, a small request is only slower.
        tcp.set_nodelay(true).ok();
        if !target.tls {
            return Ok(Box::new(tcp));
        }
        let connector = self.tls.as_ref().ok_or(Reason::NoAuthorities)?;
        let name = ServerName::try_from(target.host.clone()).map_err(|_| Reason::Url)?;
        Ok(Box::new(connector.connect(name, tcp).await.map_err(Reason::Tls)?))
    }
}

async fn connect_any(addresses: &[SocketAddr], time: Duration) -> Result<TcpStream, Reason> {
    let share = time / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    let none = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut reason = Reason::Lookup(none);
    for address in addresses {
        let connected = timeout(share, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => reason = Reason::Connect(*address, error),
        }
    }
    Err(reason)
}

fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(CA_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > CA_BYTES_MAX {
        return Err(format!("the file is longer than {CA_BYTES_MAX} bytes"));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("there is none in it: write them as PEM".to_owned());
    }
    Ok(roots)
}
