//! `listen[].tls` and `upstreams.NAME.tls`: which certificates, and what is agreed on with clients. Looks at no file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::CipherSuite;
use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
use rustls::pki_types::ServerName;

use super::at::At;
use super::diagnostic::suggestion;
use super::raw::{
    RawCertificate, RawClientCertificateMode, RawClientCertificates, RawHsts, RawTls,
    RawUnknownSni, RawUpstreamTls,
};
use super::tree::shorten;
use super::value::{file_path, interval};

/// Certificates of one listener. Each is read, parsed and watched.
const CERTIFICATES_MAX: usize = 10_000;

/// TLS of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// At least one.
    pub certificates: Vec<CertificateFiles>,
    /// Index in `certificates` of the one for clients that name no host.
    pub default: usize,
    /// What a client gets that names a host which no certificate has.
    pub unknown_sni: UnknownSni,
    /// Whether TLS 1.2 is spoken beside 1.3.
    pub tls12: bool,
    /// The only cipher suites; empty for all that are safe.
    pub cipher_suites: Vec<CipherSuite>,
    /// Whether clients may resume a session without another full handshake.
    pub session_tickets: bool,
    /// `None`: nobody is asked for one.
    pub client_certificates: Option<ClientCertificates>,
    /// What browsers are told by `Strict-Transport-Security`.
    pub hsts: Option<String>,
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// Who issues them.
    pub authorities: AuthorityFiles,
    /// Whether a client without one is served too.
    pub optional: bool,
    /// Whether services are sent the certificate.
    pub forward: bool,
}

/// Files of authorities; absolute in a configuration that was read from a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AuthorityFiles {
    /// PEM file of their certificates.
    pub ca: PathBuf,
    /// PEM file of what they have revoked.
    pub crl: Option<PathBuf>,
}

/// A certificate and its key; absolute in a configuration that was read from a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertificateFiles {
    /// PEM file: the certificate, then those that lead to its authority.
    pub cert: PathBuf,
    /// PEM file of the private key.
    pub key: PathBuf,
}

/// What a client gets that names a host which no certificate has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownSni {
    /// The default certificate.
    Default,
    /// No handshake.
    Refuse,
}

pub(super) fn tls(raw: &RawTls, folder: &Path, at: At<'_>) -> Tls {
    let tls12 = is_1_2_spoken(&raw.min_version, at.key("min_version"));
    let cipher_suites = cipher_suites(&raw.cipher_suites, at.key("cipher_suites"));
    if !tls12 && !cipher_suites.is_empty() && !cipher_suites.iter().any(is_of_1_3) {
        at.key("cipher_suites").on_key().error_with_help(
            "none of these cipher suites is of TLS 1.3, and `min_version` allows nothing else",
            "add one, such as TLS_AES_256_GCM_SHA384, or take `min_version` out",
        );
    }
    Tls {
        certificates: certificates(&raw.certificates, folder, at.key("certificates")),
        default: default(&raw.certificates, at.key("certificates")),
        unknown_sni: match raw.unknown_sni {
            RawUnknownSni::Default => UnknownSni::Default,
            RawUnknownSni::Refuse => UnknownSni::Refuse,
        },
        tls12,
        cipher_suites,
        session_tickets: raw.session_tickets,
        client_certificates: raw
            .client_certificates
            .as_ref()
            .and_then(|raw| client_certificates(raw, folder, at.key("client_certificates"))),
        hsts: raw.hsts.as_ref().and_then(|raw| hsts(raw, at.key("hsts"))),
    }
}

fn hsts(raw: &RawHsts, at: At<'_>) -> Option<String> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let age = interval(&raw.max_age, Duration::ZERO..=DAY * 731, at.key("max_age"))?;
    if raw.preload && (!raw.include_subdomains || age < DAY * 365) {
        at.key("preload").error_with_help(
            "browsers preload only what holds for all subdomains and at least a year",
            "add `include_subdomains: true` and `max_age: 365d`, or take `preload` out",
        );
    }
    let subdomains = if raw.include_subdomains { "; includeSubDomains" } else { "" };
    let preload = if raw.preload { "; preload" } else { "" };
    Some(format!("max-age={}{subdomains}{preload}", age.as_secs()))
}

fn client_certificates(
    raw: &RawClientCertificates,
    folder: &Path,
    at: At<'_>,
) -> Option<ClientCertificates> {
    let ca = file_path(&raw.ca, folder, at.key("ca"));
    let crl = raw.crl.as_ref().map(|crl| file_path(crl, folder, at.key("crl")));
    let authorities = AuthorityFiles { ca: ca?, crl: crl.flatten() };
    let optional = matches!(raw.mode, RawClientCertificateMode::Optional);
    Some(ClientCertificates { authorities, optional, forward: raw.forward })
}

/// TLS to the endpoints of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// Who is trusted; `None`: whom the system trusts.
    pub ca: Option<AuthorityFiles>,
    /// The name that certificates must have; `None`: the address of the endpoint.
    pub server_name: Option<String>,
    /// What the gateway proves who it is by.
    pub client_certificate: Option<CertificateFiles>,
    /// Whether certificates are verified at all.
    pub verify: bool,
}

pub(super) fn upstream_tls(raw: &RawUpstreamTls, folder: &Path, at: At<'_>) -> UpstreamTls {
    let ca = raw.ca.as_ref().and_then(|ca| file_path(ca, folder, at.key("ca")));
    if !raw.verify && raw.ca.is_some() {
        at.key("ca").on_key().error_with_help(
            "nobody is verified, so that these authorities are of no use",
            "take out either `ca` or `verify: false`",
        );
    }
    if let Some(name) = &raw.server_name
        && ServerName::try_from(name.as_str()).is_err()
    {
        at.key("server_name").error_with_help(
            format!("`{}` is no name of a host", shorten(name)),
            "write one such as users.internal, or take it out for the address of the endpoint",
        );
    }
    let client_certificate = raw.client_certificate.as_ref().and_then(|raw| {
        let at = at.key("client_certificate");
        let cert = file_path(&raw.cert, folder, at.key("cert"));
        let key = file_path(&raw.key, folder, at.key("key"));
        Some(CertificateFiles { cert: cert?, key: key? })
    });
    UpstreamTls {
        ca: ca.map(|ca| AuthorityFiles { ca, crl: None }),
        server_name: raw.server_name.clone(),
        client_certificate,
        verify: raw.verify,
    }
}

fn certificates(raw: &[RawCertificate], folder: &Path, at: At<'_>) -> Vec<CertificateFiles> {
    if raw.is_empty() {
        at.on_key().error_with_help(
            "TLS needs a certificate",
            "add one, such as: certificates: [{cert: tls/api.pem, key: tls/api.key}]",
        );
    }
    if raw.len() > CERTIFICATES_MAX {
        at.on_key().error(format!("{} certificates are more than {CERTIFICATES_MAX}", raw.len()));
    }
    let mut found: Vec<CertificateFiles> = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let at = at.item(index);
        let cert = file_path(&raw.cert, folder, at.key("cert"));
        let key = file_path(&raw.key, folder, at.key("key"));
        let Some((cert, key)) = cert.zip(key) else { continue };
        let files = CertificateFiles { cert, key };
        if found.contains(&files) {
            at.key("cert").error_with_help(
                format!("`{}` is given twice", shorten(&raw.cert)),
                "remove one of the two",
            );
        }
        found.push(files);
    }
    found
}

fn default(raw: &[RawCertificate], at: At<'_>) -> usize {
    let mut defaults = raw.iter().enumerate().filter(|(_, raw)| raw.default);
    let default = defaults.next().map_or(0, |(index, _)| index);
    if let Some((index, _)) = defaults.next() {
        at.item(index).key("default").error_with_help(
            "there is one default certificate",
            format!("the other is in line {}: remove one of the two", at.item(default).line()),
        );
    }
    default
}

fn is_1_2_spoken(text: &str, at: At<'_>) -> bool {
    match text {
        "1.2" => true,
        "1.3" => false,
        _ => {
            at.error_with_help(
                format!("`{}` is no version of TLS that is spoken here", shorten(text)),
                "write 1.2 or 1.3; older ones are broken",
            );
            true
        }
    }
}

fn cipher_suites(raw: &[String], at: At<'_>) -> Vec<CipherSuite> {
    let known: Vec<(String, CipherSuite)> =
        ALL_CIPHER_SUITES.iter().map(|suite| (name(suite.suite()), suite.suite())).collect();
    let mut found = Vec::new();
    for (index, text) in raw.iter().enumerate() {
        let at = at.item(index);
        match known.iter().find(|(name, _)| name == text) {
            Some((_, suite)) if found.contains(suite) => {
                at.error_with_help(format!("`{text}` is given twice"), "remove one of the two");
            }
            Some((_, suite)) => found.push(*suite),
            None => {
                let names = known.iter().map(|(name, _)| name.as_str());
                let message = format!("`{}` is no cipher suite that is spoken here", shorten(text));
                at.error_with_help(message, suggestion(text, names).unwrap_or_default());
            }
        }
    }
    found
}

/// The name that IANA has for it.
fn name(suite: CipherSuite) -> String {
    let name = suite.as_str().unwrap_or_default();
    name.strip_prefix("TLS13_").map_or_else(|| name.to_owned(), |rest| format!("TLS_{rest}"))
}

fn is_of_1_3(suite: &CipherSuite) -> bool {
    suite.as_str().is_some_and(|name| name.starts_with("TLS13_"))
}
