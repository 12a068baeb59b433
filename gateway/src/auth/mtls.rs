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

fn has(certificate: &ClientCertificate, name: &CertificateName) -> bool {
    certificate.names.iter().any(|there| match (there, name) {
        (AlternativeName::Dns(there), CertificateName::Dns(name))
        | (AlternativeName::Uri(there), CertificateName::Uri(name))
        | (AlternativeName::Email(there), CertificateName::Email(name)) => there == name,
        _ => false,
    }) || matches!(name, CertificateName::Subject(name) if *name == certificate.subject)
}
