//! From an address to a connection that has logged in: TCP, TLS, `AUTH` and `SELECT`. Bounds nothing by itself: whoever
//! connects says how long it may take.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, crypto};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::base::secret::Secret;
use crate::config::{Redis, RedisMode, RedisTls};

/// Requests that wait to be written to one connection. Those that have been written wait too: see `link`.
const BUFFER_MAX: usize = 1024;

/// What is needed to connect to any server of it.
pub(super) struct Connector {
    tls: Option<Tls>,
    /// To those that hold keys.
    pub(super) data: Login,
    /// To Sentinels.
    pub(super) sentinel: Login,
    /// A digest of all secrets and authorities, by which a change of them is seen.
    pub(super) material: Vec<u8>,
}

/// Who the gateway is to a server.
pub(super) struct Login {
    user: Option<String>,
    password: Option<Secret>,
    database: u32,
}

struct Tls {
    connector: TlsConnector,
    name: Option<ServerName<'static>>,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) address: SocketAddr,
    /// What it was found by, for its certificate.
    pub(super) host: Arc<str>,
}

impl Connector {
    /// Reads the files that `config` names, and its secrets.
    pub(super) fn new(config: &Redis) -> Result<Self, String> {
        let secret = |source: &Option<crate::config::SecretSource>, key: &str| {
            let read = source.as_ref().map(crate::config::SecretSource::read).transpose();
            read.map_err(|error| format!("state.redis.{key}: {error}"))
        };
        let data = Login {
            user: config.user.clone(),
            password: secret(&config.password, "password")?,
            database: config.database,
        };
        let sentinel = match &config.mode {
            RedisMode::Sentinel { user, password, .. } => {
                let password = secret(password, "sentinel_password")?;
                Login { user: user.clone(), password, database: 0 }
            }
            RedisMode::Standalone | RedisMode::Cluster => {
                Login { user: None, password: None, database: 0 }
            }
        };
        let mut material = Context::new(&SHA256);
        for password in [&data.password, &sentinel.password] {
            let bytes = password.as_ref().map(Secret::bytes).unwrap_or_default();
            material.update(&(bytes.len() as u64).to_le_bytes());
            material.update(bytes);
        }
        let tls = config.tls.as_ref().map(|tls| Tls::new(tls, &mut material)).transpose();
        let tls = tls.map_err(|error| format!("state.redis.tls: {error}"))?;
        Ok(Self { tls, data, sentinel, material: material.finish().as_ref().to_vec() })
    }

    /// Connects to `node` and logs in. The future that comes with the connection moves its bytes and ends with it.
    pub(super) async fn connect(
        &self,
        node: &Node,
        login: &Login,
    ) -> Result<(MultiplexedConnection, Driver), String> {
        let stream = TcpStream::connect(node.address).await.map_err(|error| error.to_string())?;
        // A request waits for its answer, never for the next one.
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let Some(tls) = &self.tls else { return handshake(stream, login).await };
        let name = match &tls.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(node.host.to_string())
                .unwrap_or_else(|_| ServerName::from(node.address.ip())),
        };
        let stream = tls.connector.connect(name, stream).await;
        handshake(stream.map_err(|error| format!("TLS: {error}"))?, login).await
    }
}

/// What moves the bytes of a connection.
pub(super) type Driver = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

async fn handshake<S>(stream: S, login: &Login) -> Result<(MultiplexedConnection, Driver), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut info = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name()
        .set_db(i64::from(login.database));
    if let Some(password) = &login.password {
        let text = std::str::from_utf8(password.bytes()).map_err(|_| "the password is no text")?;
        info = info.set_password(text);
    }
    if let Some(user) = &login.user {
        info = info.set_username(user);
    }
    let config = AsyncConnectionConfig::new()
        .set_pipeline_buffer_size(BUFFER_MAX)
        .set_response_timeout(None);
    let made = MultiplexedConnection::new_with_config(&info, stream, config).await;
    let (connection, driver) = made.map_err(|error| error.to_string())?;
    Ok((connection, Box::pin(driver)))
}

impl Tls {
    fn new(tls: &RedisTls, material: &mut Context) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        match &tls.ca {
            Some(path) => add_file(&mut roots, path)
                .map_err(|error| format!("{} cannot be used: {error}", path.display()))?,
            None => {
                // One that cannot be read is one less to trust.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        for root in &roots.roots {
            material.update(&root.subject_public_key_info);
        }
        if roots.is_empty() {
            return Err("there is no authority to trust: name a file of them by `ca`".to_owned());
        }
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = tls.server_name.clone().and_then(|name| ServerName::try_from(name).ok());
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    /// All of a system's authorities together take a quarter of it.
    const BYTES_MAX: u64 = 1 << 20;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    let read = file
        .and_then(|file| io::Read::read_to_end(&mut io::Read::take(file, BYTES_MAX), &mut bytes));
    read.map_err(|error| error.to_string())?;
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(())
}
