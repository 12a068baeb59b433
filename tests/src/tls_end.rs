//! TLS in front of plain services, as a load balancer ends it: it chooses the protocol that a test tells it to, and
//! remembers what it chose.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::Result;
use crate::authority::Pair;
use crate::site::Site;

/// The service behind each protocol.
#[derive(Clone, Copy, Debug)]
pub struct Behind {
    /// What gets connections that speak HTTP/1.1, or have not chosen.
    pub http1: SocketAddr,
    /// What gets connections that speak HTTP/2.
    pub http2: SocketAddr,
}

#[derive(Default)]
struct Shared {
    alpn: Mutex<Vec<&'static str>>,
    chosen: Mutex<Vec<String>>,
    open: AtomicUsize,
    most: AtomicUsize,
}

/// The running end. It ends when it is dropped, with its connections.
pub struct TlsEnd {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _end: oneshot::Sender<()>,
}

impl TlsEnd {
    /// Listens at the site with the certificate of `pair` and takes the protocols of `alpn`; none: it knows no ALPN.
    pub fn start(site: &Site, pair: &Pair, alpn: &[&'static str], behind: Behind) -> Result<Self> {
        let listener = site.enter(|| TcpListener::bind("127.0.0.1:0"))??;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let (end, ended) = oneshot::channel();
        let this = Self { address, shared: Arc::clone(&shared), _end: end };
        this.choose(alpn);
        let pair = pair.clone();
        // A thread that is started inside stays inside.
        site.enter(|| {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async move {
                    tokio::select! {
                        done = accept(listener, &pair, &shared, behind) => done,
                        _ = ended => Ok(()),
                    }
                })
            })
        })?;
        Ok(this)
    }

    /// From now on it takes these protocols.
    pub fn choose(&self, alpn: &[&'static str]) {
        *self.shared.alpn.lock().unwrap_or_else(PoisonError::into_inner) = alpn.to_vec();
    }

    /// What was chosen, a connection each; empty where nothing was.
    pub fn chosen(&self) -> Vec<String> {
        self.shared.chosen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The most connections that were open at the same time.
    pub fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: TcpListener,
    pair: &Pair,
    shared: &Arc<Shared>,
    behind: Behind,
) -> Result {
    let certificate = CertificateDer::from_pem_file(&pair.cert)?;
    let key = PrivateKeyDer::from_pem_file(&pair.key)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth();
        let mut config = config.with_single_cert(vec![certificate.clone()], key.clone_key())?;
        let alpn = shared.alpn.lock().unwrap_or_else(PoisonError::into_inner);
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        drop(alpn);
        let shared = Arc::clone(shared);
        // Who leaves midway is of no interest here.
        tokio::spawn(async move { pass(stream, config, &shared, behind).await });
    }
}

async fn pass(stream: TcpStream, config: ServerConfig, shared: &Shared, behind: Behind) -> Result {
    let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
    let chosen = stream.get_ref().1.alpn_protocol().unwrap_or_default();
    let chosen = String::from_utf8_lossy(chosen).into_owned();
    let target = if chosen == "h2" { behind.http2 } else { behind.http1 };
    shared.chosen.lock().unwrap_or_else(PoisonError::into_inner).push(chosen);
    let open = shared.open.fetch_add(1, Ordering::Relaxed) + 1;
    shared.most.fetch_max(open, Ordering::Relaxed);
    let mut service = TcpStream::connect(target).await.context("nobody is behind")?;
    let done = copy_bidirectional(&mut stream, &mut service).await;
    shared.open.fetch_sub(1, Ordering::Relaxed);
    done?;
    Ok(())
}
