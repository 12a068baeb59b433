//! The keys that signatures are verified with. A key has one algorithm, which nothing in a message changes.

use std::fmt;
use std::path::Path;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PSS_2048_8192_SHA512,
    VerificationAlgorithm,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS,
    OID_SIG_ED25519, Oid,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::super::watched::Watched;
use crate::config::{HmacProof, SecretSource, without_line_end};

/// Bytes of a shared secret: what SHA-256 is worth, and no more than anybody needs.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 32..=1024;

/// A file with a secret or a public key (unit: bytes).
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A key where it comes from: a file is read again when it changes.
#[derive(Debug)]
pub(super) enum Source {
    File(Watched<Verifier>),
    Environment(Verifier),
}

impl Source {
    pub(super) fn read(proof: &HmacProof) -> Result<Self, String> {
        let file = |path: &Path, parse: fn(&[u8]) -> Result<Verifier, String>| {
            let parse = move |bytes: &[u8]| {
                parse(bytes).map_err(|error| format!("cannot be used: {error}"))
            };
            Watched::new(path, FILE_BYTES_MAX, parse).map(Self::File)
        };
        match proof {
            HmacProof::Secret(SecretSource::File(path)) => {
                file(path, |bytes| Verifier::shared(without_line_end(bytes)))
            }
            HmacProof::Secret(source @ SecretSource::Env(_)) => {
                Verifier::shared(source.read()?.bytes()).map(Self::Environment)
            }
            HmacProof::PublicKey(path) => file(path, Verifier::public),
        }
    }

    /// Looks at the key as it is now.
    pub(super) fn with<T>(&self, look: impl FnOnce(&Verifier) -> T) -> T {
        match self {
            Self::File(file) => look(&file.load()),
            Self::Environment(verifier) => look(verifier),
        }
    }

    /// Reads the file again if it is another one. `Ok(true)`: there is a new key. An error is returned once.
    pub(super) fn tick(&self) -> Result<bool, String> {
        match self {
            Self::File(file) => file.tick(),
            Self::Environment(_) => Ok(false),
        }
    }
}

/// What a signature is verified with.
pub(super) enum Verifier {
    /// `hmac-sha256`, with a secret that both sides share.
    Shared(Box<hmac::Key>),
    /// Anything with a public key.
    Public(&'static str, Box<ParsedPublicKey>),
}

impl Verifier {
    /// A shared secret.
    pub(super) fn shared(secret: &[u8]) -> Result<Self, String> {
        if !SECRET_BYTES.contains(&secret.len()) {
            let [min, max] = [SECRET_BYTES.start(), SECRET_BYTES.end()];
            return Err(format!(
                "a secret of {} bytes is out of bounds: make one of {min} to {max}, such as by \
                 `openssl rand -hex 32`",
                secret.len()
            ));
        }
        Ok(Self::Shared(Box::new(hmac::Key::new(hmac::HMAC_SHA256, secret))))
    }

    /// A public key in PEM: Ed25519, P-256 or RSA, which is used with PSS and SHA-512.
    pub(super) fn public(pem: &[u8]) -> Result<Self, String> {
        let kinds = "write one of Ed25519, P-256 or RSA (2048 to 8192 bits) as PEM, which begins \
                     with BEGIN PUBLIC KEY";
        let refused = || format!("this is no public key that is known here: {kinds}");
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| refused())?;
        let (rest, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| refused())?;
        let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        let (name, algorithm) = kind(&info.algorithm.algorithm, curve.as_ref())
            .filter(|_| rest.is_empty())
            .ok_or_else(refused)?;
        let key = ParsedPublicKey::new(algorithm, der.as_ref()).map_err(|_| refused())?;
        Ok(Self::Public(name, Box::new(key)))
    }

    /// The name of its algorithm in the registry of RFC 9421.
    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            Self::Shared(_) => "hmac-sha256",
            Self::Public(name, _) => name,
        }
    }

    /// Whether it is a shared secret.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(_))
    }

    /// Whether `signature` is this key's over `text`. Shared secrets are compared in constant time.
    pub(super) fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Shared(key) => hmac::verify(key, text, signature).is_ok(),
            Self::Public(_, key) => key.verify_sig(text, signature).is_ok(),
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.algorithm())
    }
}

fn kind(
    algorithm: &Oid<'_>,
    curve: Option<&Oid<'_>>,
) -> Option<(&'static str, &'static dyn VerificationAlgorithm)> {
    if *algorithm == OID_SIG_ED25519 {
        Some(("ed25519", &ED25519))
    } else if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(&OID_EC_P256) {
        Some(("ecdsa-p256-sha256", &ECDSA_P256_SHA256_FIXED))
    } else if *algorithm == OID_PKCS1_RSAENCRYPTION || *algorithm == OID_PKCS1_RSASSAPSS {
        Some(("rsa-pss-sha512", &RSA_PSS_2048_8192_SHA512))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors;
    use super::*;

    #[test]
    fn the_algorithm_is_that_of_the_key() {
        let name = |pem: &str| Verifier::public(pem.as_bytes()).map(|key| key.algorithm());
        assert_eq!(name(vectors::ED25519), Ok("ed25519"));
        assert_eq!(name(vectors::P256), Ok("ecdsa-p256-sha256"));
        assert_eq!(name(vectors::RSA), Ok("rsa-pss-sha512"));
        assert!(Verifier::shared(&[1; 32]).unwrap().is_shared());
    }

    #[test]
    fn what_is_no_key_is_refused_with_what_to_do() {
        for bad in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(Verifier::public(bad.as_bytes()).unwrap_err().contains("BEGIN PUBLIC KEY"));
        }
        assert!(Verifier::shared(b"short").unwrap_err().contains("openssl rand"));
    }

    #[test]
    fn a_secret_is_in_no_debug_output() {
        let key = Verifier::shared(b"0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(format!("{key:?}"), "hmac-sha256");
    }
}
