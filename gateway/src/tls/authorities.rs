//! Authorities whose certificates are trusted, and what they have revoked, read from files.

use std::sync::{Arc, LazyLock};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::pair::{PEM, problem, read};
use crate::config::{AuthorityFiles, Diagnostic};

/// The authorities that the system trusts, as they were when somebody first asked.
pub(super) fn system() -> Arc<RootCertStore> {
    static SYSTEM: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        // One that cannot be read is one less to trust.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    Arc::clone(&SYSTEM)
}

/// Authorities.
#[derive(Debug)]
pub struct Authorities {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) revoked: Vec<CertificateRevocationListDer<'static>>,
}

impl Authorities {
    /// Reads them as the user of this process, who is called `user`.
    pub fn read(files: &AuthorityFiles, user: &str) -> Result<Self, Box<Diagnostic>> {
        let ca = &files.ca;
        let pem = read(ca, user)?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate =
                certificate.map_err(|error| problem(ca, format!("no PEM file: {error}"), PEM))?;
            roots.add(certificate).map_err(|error| {
                problem(ca, format!("a certificate in it cannot be trusted: {error}"), PEM)
            })?;
        }
        if roots.is_empty() {
            return Err(problem(ca, "no certificate in it", PEM));
        }
        let mut revoked = Vec::new();
        if let Some(crl) = &files.crl {
            const LIST: &str = "write revocation lists as PEM: -----BEGIN X509 CRL-----";
            for list in CertificateRevocationListDer::pem_slice_iter(&read(crl, user)?) {
                let list =
                    list.map_err(|error| problem(crl, format!("no PEM file: {error}"), LIST))?;
                revoked.push(list);
            }
            if revoked.is_empty() {
                return Err(problem(crl, "no revocation list in it", LIST));
            }
        }
        Ok(Self { roots: Arc::new(roots), revoked })
    }
}
