//! `auth.NAME.mtls`: whose certificate is whose.

use std::net::IpAddr;

use serde::Deserialize;

use super::consumers::word;
use crate::config::at::At;
use crate::config::tree::shorten;

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
    /// An alternative name: an address.
    Ip(IpAddr),
    /// A host with one label before this, which begins with a dot: `*.example.com`.
    DnsBelow(String),
    /// A URI that goes on behind this, which ends in a slash: `spiffe://example.com/ns/*`.
    UriBelow(String),
    /// A mailbox at this host, which begins with the sign: `*@example.com`.
    EmailAt(String),
    /// The SHA-256 of the certificate.
    Fingerprint([u8; 32]),
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
    #[serde(default)]
    ip: Option<String>,
    #[serde(default)]
    fingerprint: Option<String>,
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
    let RawClient { consumer, subject, dns, uri, email, ip, fingerprint } = raw;
    let names = [
        ("subject", subject),
        ("dns", dns),
        ("uri", uri),
        ("email", email),
        ("ip", ip),
        ("fingerprint", fingerprint),
    ];
    let mut names = names.iter().filter_map(|(key, text)| text.as_deref().map(|text| (*key, text)));
    let (Some((key, text)), None) = (names.next(), names.next()) else {
        at.error_with_help(
            "a client has one name",
            "write one of `subject`, `dns`, `uri`, `email`, `ip` and `fingerprint` beside `consumer`",
        );
        return None;
    };
    let name = if (1..=NAME_BYTES_MAX).contains(&text.len()) {
        name(key, text).map_err(|help| (format!("`{}` names no certificate", shorten(text)), help))
    } else {
        let message = format!("the name has {} bytes", text.len());
        Err((message, format!("write 1 to {NAME_BYTES_MAX}")))
    };
    let name = name.map_err(|(message, help)| at.key(key).error_with_help(message, help)).ok();
    word(consumer, at.key("consumer")).then_some((name?, consumer.clone()))
}

/// What a text names; the error says what to write. A `*` stands for something in one place alone.
fn name(key: &str, text: &str) -> Result<CertificateName, String> {
    let (stars, text) = (text.matches('*').count(), text.to_owned());
    match key {
        "subject" => Ok(CertificateName::Subject(text)),
        "dns" => {
            let text = text.to_ascii_lowercase();
            match text.strip_prefix('*') {
                Some(rest) if stars == 1 && rest.starts_with('.') && rest.len() > 1 => {
                    Ok(CertificateName::DnsBelow(rest.to_owned()))
                }
                None if stars == 0 => Ok(CertificateName::Dns(text)),
                _ => Err("write a host, or `*.example.com` for one label before it".to_owned()),
            }
        }
        "uri" => match text.strip_suffix('*') {
            Some(rest) if stars == 1 && rest.ends_with('/') && !rest.ends_with("//") => {
                Ok(CertificateName::UriBelow(rest.to_owned()))
            }
            None if stars == 0 => Ok(CertificateName::Uri(text)),
            _ => Err("write a URI, or `spiffe://example.com/ns/*` for all below".to_owned()),
        },
        "email" => match text.strip_prefix('*') {
            Some(rest) if stars == 1 && rest.starts_with('@') && rest.len() > 1 => {
                Ok(CertificateName::EmailAt(rest.to_ascii_lowercase()))
            }
            None if stars == 0 => Ok(CertificateName::Email(text)),
            _ => Err("write a mailbox, or `*@example.com` for all at a host".to_owned()),
        },
        "ip" => {
            let ip = text.parse().map(CertificateName::Ip);
            ip.map_err(|_| {
                "write an address, such as 192.0.2.1; prefixes are in no certificate".to_owned()
            })
        }
        _ => fingerprint(&text).map(CertificateName::Fingerprint).ok_or_else(|| {
            "write the SHA-256 of the certificate in hexadecimal, as \
             `openssl x509 -fingerprint -sha256` prints it"
                .to_owned()
        }),
    }
}

/// 64 hexadecimal digits, in pairs with colons between them or without.
fn fingerprint(text: &str) -> Option<[u8; 32]> {
    let with_colons = text.contains(':');
    let good = |(index, byte): (usize, u8)| {
        if with_colons && index % 3 == 2 { byte == b':' } else { byte.is_ascii_hexdigit() }
    };
    if text.len() != if with_colons { 95 } else { 64 } || !text.bytes().enumerate().all(good) {
        return None;
    }
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let pairs =
        (0..32).map(|index| u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok());
    pairs.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_in_one_place() {
        for (key, text) in [
            ("dns", "*.Example.com"),
            ("dns", "a.example.com"),
            ("uri", "spiffe://example.com/ns/*"),
            ("uri", "spiffe://example.com/ns/a"),
            ("email", "*@example.com"),
            ("email", "a@example.com"),
            ("ip", "2001:db8::1"),
            ("subject", "CN=*"),
        ] {
            assert!(name(key, text).is_ok(), "{key} {text}");
        }
        for (key, text) in [
            ("dns", "*"),
            ("dns", "*."),
            ("dns", "*example.com"),
            ("dns", "a.*.com"),
            ("dns", "*.*.com"),
            ("uri", "*"),
            ("uri", "spiffe://*"),
            ("uri", "spiffe://example.com/a*"),
            ("uri", "spiffe://example.com/*/b"),
            ("email", "*"),
            ("email", "*@"),
            ("email", "a*@example.com"),
            ("ip", "192.0.2.0/24"),
        ] {
            assert!(name(key, text).is_err(), "{key} {text}");
        }
    }

    #[test]
    fn a_fingerprint_is_read_as_openssl_prints_it() {
        let plain = "00".repeat(31) + "aB";
        let colons = vec!["00"; 31].join(":") + ":AB";
        assert_eq!(fingerprint(&plain).unwrap()[31], 0xab);
        assert_eq!(fingerprint(&plain), fingerprint(&colons));
        for bad in [
            "",
            "00",
            &"zz".repeat(32),
            &(colons.clone() + ":"),
            &plain[1..],
            &"0:".repeat(48)[1..],
        ] {
            assert_eq!(fingerprint(bad), None, "{bad}");
        }
    }
}
