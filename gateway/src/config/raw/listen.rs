//! `listen` as typed.

use serde::Deserialize;

use super::{Section, TextOr};

/// One listening address.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawListener {
    /// `ip:port`.
    pub(in crate::config) address: String,
    /// Default: plain TCP.
    #[serde(default)]
    pub(in crate::config) tls: Option<RawTls>,
    /// Default: none.
    #[serde(default)]
    pub(in crate::config) proxy_protocol: Option<RawProxyProtocol>,
    /// Default: none.
    #[serde(default)]
    pub(in crate::config) redirect: Option<RawHttpsRedirect>,
}

/// Whose connections begin with a header of the PROXY protocol.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawProxyProtocol {
    /// At least one.
    pub(in crate::config) from: Vec<String>,
}

/// `https`, alone or as `{port: ...}`.
pub(in crate::config) type RawHttpsRedirect = TextOr<RawHttpsRedirectSection>;

/// Where clients are sent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawHttpsRedirectSection {
    /// Of https.
    pub(in crate::config) port: u16,
}

impl Section for RawHttpsRedirectSection {
    const EXPECTED: &'static str = "`https` or a section with `port`";
}

/// Strict-Transport-Security (RFC 6797).
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawHsts {
    /// How long browsers remember it.
    pub(in crate::config) max_age: String,
    pub(in crate::config) include_subdomains: bool,
    pub(in crate::config) preload: bool,
}

impl Default for RawHsts {
    fn default() -> Self {
        Self { max_age: "365d".to_owned(), include_subdomains: false, preload: false }
    }
}

/// TLS of a listener.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawTls {
    /// At least one.
    pub(in crate::config) certificates: Vec<RawCertificate>,
    #[serde(default)]
    pub(in crate::config) unknown_sni: RawUnknownSni,
    /// `1.2` or `1.3`.
    #[serde(default = "min_version")]
    pub(in crate::config) min_version: String,
    /// IANA names. Default: all that rustls deems safe.
    #[serde(default)]
    pub(in crate::config) cipher_suites: Vec<String>,
    #[serde(default = "session_tickets")]
    pub(in crate::config) session_tickets: bool,
    /// Default: nobody is asked for one.
    #[serde(default)]
    pub(in crate::config) client_certificates: Option<RawClientCertificates>,
    /// Default: none.
    #[serde(default)]
    pub(in crate::config) hsts: Option<RawHsts>,
}

/// Certificates of clients.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawClientCertificates {
    /// PEM file of the authorities that issue them.
    pub(in crate::config) ca: String,
    /// PEM file of what these have revoked. Default: none.
    #[serde(default)]
    pub(in crate::config) crl: Option<String>,
    #[serde(default)]
    pub(in crate::config) mode: RawClientCertificateMode,
    /// Send the certificate to services.
    #[serde(default)]
    pub(in crate::config) forward: bool,
}

/// Whether clients must have one.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RawClientCertificateMode {
    #[default]
    Required,
    Optional,
}

fn min_version() -> String {
    "1.2".to_owned()
}

fn session_tickets() -> bool {
    true
}

/// A certificate and its key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawCertificate {
    /// PEM file: the certificate, then those that lead to its authority.
    pub(in crate::config) cert: String,
    /// PEM file of the private key.
    pub(in crate::config) key: String,
    /// For clients that name no host, or none that a certificate has. Default: the first.
    #[serde(default)]
    pub(in crate::config) default: bool,
}

/// What a client gets that names a host which no certificate has.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RawUnknownSni {
    #[default]
    Default,
    Refuse,
}
