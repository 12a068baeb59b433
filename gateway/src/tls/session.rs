//! What a handshake has agreed on, kept for as long as the connection lives.

use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use rustls::pki_types::CertificateDer;
use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use super::pair::end;
use crate::base::time::UtcMillis;

/// A session with a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// The cipher suite.
    pub cipher_suite: &'static str,
    /// The host that the client named, in lower case.
    pub server_name: Option<Box<str>>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// Who the client has proven to be.
    pub client_certificate: Option<Box<ClientCertificate>>,
}

/// The certificate of a client, which has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its subject, as in `CN=service, O=Example`.
    pub subject: String,
    /// The common names in the subject.
    pub common_names: Vec<String>,
    /// Its alternative names.
    pub names: Vec<AlternativeName>,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// The SHA-256 of all of it.
    pub fingerprint: [u8; 32],
    /// What services are sent as `Client-Cert` (RFC 9440), if they are.
    pub header: Option<HeaderValue>,
}

/// A name that an authority vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlternativeName {
    /// A host.
    Dns(String),
    /// A mailbox.
    Email(String),
    /// A URI, such as a SPIFFE ID.
    Uri(String),
    /// An address.
    Ip(IpAddr),
}

impl Session {
    /// What was agreed on over `connection`, whose handshake is done. `None` if the certificate of the client is not
    /// valid any more or cannot be read; a session that is resumed was verified earlier.
    pub fn of(connection: &ServerConnection, forwards: bool, now: UtcMillis) -> Option<Self> {
        let suite = connection.negotiated_cipher_suite();
        let client_certificate = match connection.peer_certificates().and_then(<[_]>::first) {
            Some(leaf) => Some(Box::new(ClientCertificate::of(leaf, forwards, now)?)),
            None => None,
        };
        Some(Self {
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "TLSv1.2",
            },
            cipher_suite: suite.and_then(|suite| suite.suite().as_str()).unwrap_or_default(),
            server_name: connection.server_name().map(Box::from),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            client_certificate,
        })
    }
}

impl ClientCertificate {
    /// What `leaf` says, if it has not ended by `now`; `forwards`: services are sent it too.
    pub fn of(leaf: &CertificateDer<'_>, forwards: bool, now: UtcMillis) -> Option<Self> {
        let (_, parsed) = parse_x509_certificate(leaf).ok()?;
        if end(&parsed) <= now {
            return None;
        }
        let subject = parsed.subject();
        let common_names = subject.iter_common_name().filter_map(|name| name.as_str().ok());
        let header = forwards.then(|| format!(":{}:", STANDARD.encode(leaf)));
        let mut fingerprint = [0; 32];
        let digest = digest(&SHA256, leaf);
        fingerprint.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        Some(Self {
            fingerprint,
            subject: subject.to_string(),
            common_names: common_names.map(str::to_owned).collect(),
            names: alternative_names(&parsed)?,
            serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            header: header.and_then(|text| HeaderValue::from_str(&text).ok()),
        })
    }
}

fn alternative_names(parsed: &X509Certificate<'_>) -> Option<Vec<AlternativeName>> {
    let names = parsed.subject_alternative_name().ok()?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(AlternativeName::Dns(name.to_ascii_lowercase())),
        GeneralName::RFC822Name(name) => Some(AlternativeName::Email((*name).to_owned())),
        GeneralName::URI(uri) => Some(AlternativeName::Uri((*uri).to_owned())),
        GeneralName::IPAddress(bytes) => address(bytes).map(AlternativeName::Ip),
        _ => None,
    });
    Some(names.collect())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
