//! Callers by the certificate that they have shown in the TLS handshake, which has verified it.

use std::sync::Arc;

use super::{Answer, Ask, Consumers, Identity};
use crate::config::{self, CertificateName};
use crate::tls::session::{AlternativeName, ClientCertificate};

/// Whose certificate is whose.
#[derive(Debug)]
pub(super) struct Mtls {
    /// Made once: whoever shows the certificate is the same caller.
    clients: Vec<(CertificateName, Arc<Identity>)>,
}

impl Mtls {
    pub(super) fn new(name: &str, config: &config::Mtls, consumers: &Consumers) -> Self {
        let clients = config.clients.iter().map(|(certificate, consumer)| {
            let identity = Identity {
                authenticator: name.into(),
                consumer: Some(consumer.as_str().into()),
                key: key(certificate),
                ..Identity::default()
            };
            (certificate.clone(), Arc::new(consumers.complete(identity)))
        });
        Self { clients: clients.collect() }
    }

    pub(super) fn authenticate(&self, ask: &Ask<'_>) -> Answer {
        let Some(certificate) = ask.certificate else { return Answer::Absent };
        let found = self.clients.iter().find(|(name, _)| has(certificate, name));
        found.map_or(Answer::Refused("no client with this certificate"), |(_, identity)| {
            Answer::Known(Arc::clone(identity))
        })
    }
}

/// A fingerprint is the id of one certificate; names are had by those that follow it, too.
fn key(name: &CertificateName) -> Option<Box<str>> {
    let CertificateName::Fingerprint(digest) = name else { return None };
    Some(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
}

fn has(certificate: &ClientCertificate, name: &CertificateName) -> bool {
    match name {
        CertificateName::Subject(name) => *name == certificate.subject,
        CertificateName::Fingerprint(digest) => *digest == certificate.fingerprint,
        name => certificate.names.iter().any(|there| fits(there, name)),
    }
}

fn fits(there: &AlternativeName, name: &CertificateName) -> bool {
    match (there, name) {
        (AlternativeName::Dns(there), CertificateName::Dns(name))
        | (AlternativeName::Uri(there), CertificateName::Uri(name))
        | (AlternativeName::Email(there), CertificateName::Email(name)) => there == name,
        (AlternativeName::Ip(there), CertificateName::Ip(name)) => there == name,
        (AlternativeName::Dns(there), CertificateName::DnsBelow(below)) => {
            let label = there.strip_suffix(below.as_str()).unwrap_or_default();
            // A certificate for all hosts of a domain is none of one of them.
            !label.is_empty() && !label.contains(['.', '*'])
        }
        (AlternativeName::Uri(there), CertificateName::UriBelow(above)) => {
            let rest = there.strip_prefix(above.as_str()).unwrap_or_default();
            // What servers read as another place is not below.
            !rest.is_empty() && !rest.split('/').any(|segment| matches!(segment, "" | "." | ".."))
        }
        (AlternativeName::Email(there), CertificateName::EmailAt(host)) => {
            there.rsplit_once('@').is_some_and(|(user, at)| {
                !user.is_empty()
                    && host.strip_prefix('@').is_some_and(|host| at.eq_ignore_ascii_case(host))
            })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> ClientCertificate {
        ClientCertificate {
            subject: "CN=meter-7, O=Example".to_owned(),
            common_names: vec!["meter-7".to_owned()],
            names: vec![
                AlternativeName::Dns("meter-7.example.com".to_owned()),
                AlternativeName::Uri("spiffe://example.com/ns/meters/7".to_owned()),
                AlternativeName::Email("ann@Example.com".to_owned()),
                AlternativeName::Ip([192, 0, 2, 7].into()),
            ],
            serial: "01".to_owned(),
            fingerprint: [7; 32],
            header: None,
        }
    }

    #[test]
    fn names_fit_exactly_or_by_their_star() {
        let text = str::to_owned;
        for name in [
            CertificateName::Subject(text("CN=meter-7, O=Example")),
            CertificateName::Dns(text("meter-7.example.com")),
            CertificateName::DnsBelow(text(".example.com")),
            CertificateName::Uri(text("spiffe://example.com/ns/meters/7")),
            CertificateName::UriBelow(text("spiffe://example.com/ns/")),
            CertificateName::Email(text("ann@Example.com")),
            CertificateName::EmailAt(text("@example.com")),
            CertificateName::Ip([192, 0, 2, 7].into()),
            CertificateName::Fingerprint([7; 32]),
        ] {
            assert!(has(&certificate(), &name), "{name:?}");
        }
        for name in [
            CertificateName::Subject(text("CN=meter-7")),
            CertificateName::Subject(text("meter-7.example.com")),
            CertificateName::Dns(text("meter-7")),
            CertificateName::Dns(text("spiffe://example.com/ns/meters/7")),
            CertificateName::DnsBelow(text(".com")),
            CertificateName::DnsBelow(text(".meter-7.example.com")),
            CertificateName::UriBelow(text("spiffe://example.com/ns/meters/7/")),
            CertificateName::EmailAt(text("@ample.com")),
            CertificateName::Ip([192, 0, 2, 8].into()),
            CertificateName::Fingerprint([8; 32]),
        ] {
            assert!(!has(&certificate(), &name), "{name:?}");
        }
    }

    #[test]
    fn a_star_in_a_certificate_or_a_path_that_leads_elsewhere_is_not_below() {
        let dns = CertificateName::DnsBelow(".example.com".to_owned());
        let uri = CertificateName::UriBelow("spiffe://example.com/ns/".to_owned());
        for there in ["*.example.com", "a.b.example.com", ".example.com", "example.com"] {
            assert!(!fits(&AlternativeName::Dns(there.to_owned()), &dns), "{there}");
        }
        for there in ["", "../admin", "a/../../admin", "a//b", "a/", "."] {
            let there = format!("spiffe://example.com/ns/{there}");
            assert!(!fits(&AlternativeName::Uri(there.clone()), &uri), "{there}");
        }
    }
}
