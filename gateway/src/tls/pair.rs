//! A certificate and its key, read from two files. Refused are a key that is another certificate's and what TLS could
//! not use; a certificate that has expired is refused where it would be new.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, SignatureAlgorithm};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use super::provider;
use crate::base::time::UtcMillis;
use crate::config::{CertificateFiles, Diagnostic};

/// A chain of many certificates takes a hundredth of it (unit: bytes).
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate that can be served.
#[derive(Debug)]
pub struct Pair {
    /// The chain and what signs with the key.
    pub key: Arc<CertifiedKey>,
    /// The host names of the certificate in lower case, wildcards as they are written.
    pub names: Vec<String>,
    /// When it is not valid any more.
    pub not_after: UtcMillis,
}

impl Pair {
    /// Reads a certificate and its key as the user of this process, who is called `user`.
    pub fn read(files: &CertificateFiles, user: &str) -> Result<Self, Box<Diagnostic>> {
        let (cert, key) = (&files.cert, &files.key);
        let (chain_pem, key_pem) = (read(cert, user)?, read(key, user)?);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain_pem).collect();
        let chain = chain.map_err(|error| problem(cert, format!("no PEM file: {error}"), PEM))?;
        let leaf = chain.first().ok_or_else(|| problem(cert, "no certificate in it", PEM))?;
        let (names, not_after) = names_and_end(leaf)
            .map_err(|why| problem(cert, why, "have its authority issue it anew"))?;
        let private = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|_| problem(key, "no private key in it", "write it as PEM, not encrypted"))?;
        let key = CertifiedKey::from_der(chain, private, &provider()).map_err(|error| {
            let Error::InconsistentKeys(_) = error else {
                let other = "use a key that TLS can use: ECDSA P-256, Ed25519 or RSA";
                return problem(key, format!("this key cannot be used: {error}"), other);
            };
            let message = format!("this key is not the one of the certificate {}", cert.display());
            problem(key, message, "name the two files that belong together")
        })?;
        Ok(Self { key: Arc::new(key), names, not_after })
    }

    /// What the key signs with.
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.key.key.algorithm()
    }
}

/// What to do about a file of certificates.
pub(super) const PEM: &str = "write it as PEM: -----BEGIN CERTIFICATE-----";

/// What is wrong with a file.
pub(super) fn problem(path: &Path, message: impl Into<String>, help: &str) -> Box<Diagnostic> {
    let file = path.display().to_string();
    let help = Some(help.to_owned());
    Box::new(Diagnostic { file, place: None, message: message.into(), help })
}

/// Reads a file of PEM.
pub(super) fn read(path: &Path, user: &str) -> Result<Vec<u8>, Box<Diagnostic>> {
    let file = open(path, user)?;
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| unreadable(path, &error, user))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(problem(path, "this file has more than 1 MiB", NAME));
    }
    Ok(bytes)
}

/// Opens a file that is to be read as the user of this process, who is called `user`.
pub(super) fn open(path: &Path, user: &str) -> Result<File, Box<Diagnostic>> {
    // Nobody waits for the other end of a named pipe.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let opened = opened.and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = opened.map_err(|error| unreadable(path, &error, user))?;
    if !metadata.is_file() {
        return Err(problem(path, "this is no regular file", NAME));
    }
    Ok(file)
}

const NAME: &str = "name the file that is meant";

fn unreadable(path: &Path, error: &io::Error, user: &str) -> Box<Diagnostic> {
    let place = path.display();
    let help = match error.kind() {
        io::ErrorKind::PermissionDenied => &format!(
            "the gateway runs as {user}, who must be allowed to read it and to enter its folder: \
             chgrp {user} {place} && chmod 640 {place}"
        ),
        _ => NAME,
    };
    problem(path, format!("this file cannot be read: {error}"), help)
}

fn names_and_end(leaf: &CertificateDer<'_>) -> Result<(Vec<String>, UtcMillis), String> {
    let (_, parsed) = parse_x509_certificate(leaf)
        .map_err(|error| format!("the certificate cannot be read: {error}"))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| format!("the names of the certificate cannot be read: {error}"))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Ok((names.collect(), end(&parsed)))
}

/// When a certificate is not valid any more.
pub(super) fn end(certificate: &X509Certificate<'_>) -> UtcMillis {
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    UtcMillis(seconds.saturating_mul(1000))
}
