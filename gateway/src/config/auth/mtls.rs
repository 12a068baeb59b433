//! `auth.NAME.mtls`: whose certificate is whose.

use serde::Deserialize;

use super::consumers::word;
use crate::config::at::At;

/// Bytes of a name in a certificate.
const NAME_BYTES_MAX: usize = 1024;
/// Clients of one authenticator.
const CLIENTS_MAX: usize = 10_000;

/// Consumers by their certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mtls {
    /// The first that fits decides.
    pub clients: Vec<(CertificateName, String)>,
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateName {
    /// The whole subject, as in `CN=service, O=Example`.
    Subject(String),
    /// An alternative name: a host, in lower case.
    Dns(String),
    /// An alternative name: a URI, such as a SPIFFE ID.
    Uri(String),
    /// An alternative name: a mailbox.
    Email(String),
}

/// As typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMtls {
    clients: Vec<RawClient>,
}

/// Exactly one name, and whose it is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClient {
    consumer: String,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    dns: Option<String>,
    #[serde(default)]
    uri: Option<String>,
    #[serde(default)]
    email: Option<String>,
}

pub(super) fn mtls(raw: &RawMtls, at: At<'_>) -> Option<Mtls> {
    let at = at.key("clients");
    if raw.clients.is_empty() || raw.clients.len() > CLIENTS_MAX {
        let message = format!("an authenticator with {} clients cannot be", raw.clients.len());
        at.on_key().error_with_help(message, format!("name 1 to {CLIENTS_MAX}"));
    }
    let clients = raw.clients.iter().enumerate().map(|(index, raw)| client(raw, at.item(index)));
    Some(Mtls { clients: clients.collect::<Option<_>>()? })
}

fn client(raw: &RawClient, at: At<'_>) -> Option<(CertificateName, String)> {
    let RawClient { consumer, subject, dns, uri, email } = raw;
    let names = [
        subject.clone().map(|name| ("subject", CertificateName::Subject(name))),
        dns.as_ref().map(|name| ("dns", CertificateName::Dns(name.to_ascii_lowercase()))),
        uri.clone().map(|name| ("uri", CertificateName::Uri(name))),
        email.clone().map(|name| ("email", CertificateName::Email(name))),
    ];
    let mut names = names.into_iter().flatten();
    let (Some((key, name)), None) = (names.next(), names.next()) else {
        at.error_with_help(
            "a client has one name",
            "write one of `subject`, `dns`, `uri` and `email` beside `consumer`",
        );
        return None;
    };
    let (CertificateName::Subject(text)
    | CertificateName::Dns(text)
    | CertificateName::Uri(text)
    | CertificateName::Email(text)) = &name;
    let good = (1..=NAME_BYTES_MAX).contains(&text.len());
    if !good {
        let message = format!("the name has {} bytes", text.len());
        at.key(key).error_with_help(message, format!("write 1 to {NAME_BYTES_MAX}"));
    }
    (word(consumer, at.key("consumer")) && good).then(|| (name, consumer.clone()))
}
