//! A key: what it is made of, and the one set of algorithms that it is good for, fixed when it is read. No token can
//! make it be used in another way.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ParsedPublicKey, RsaPublicKeyComponents};
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use serde_json::{Map, Value};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521,
    OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::algorithm::{self, Algorithm, Kind};
use super::token::decode;

/// Bytes of an RSA modulus: 2048 to 8192 bits.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
/// Those of [`OpenSSL` and `AWS-LC`](https://github.com/aws/aws-lc): 33 bits.
const EXPONENT_BYTES_MAX: usize = 5;

/// A key that verifies signatures.
pub(super) struct Key {
    id: Option<Box<str>>,
    /// Each algorithm once, at least one.
    verifiers: Vec<(Algorithm, Verifier)>,
}

enum Verifier {
    Secret(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

enum Material<'m> {
    Secret(&'m [u8]),
    Rsa {
        n: &'m [u8],
        e: &'m [u8],
    },
    /// A point of a curve: uncompressed (SEC 1, section 2.3.3), or the 32 bytes of Ed25519.
    Curve(Kind, &'m [u8]),
}

impl Key {
    /// A secret that the issuer has, too. The reason why it is none fits after "the key".
    pub(super) fn of_secret(bytes: &[u8], only: &[Algorithm]) -> Result<Self, &'static str> {
        Self::new(None, &Material::Secret(bytes), None, only)
    }

    /// A member of a set (RFC 7517, section 4). `are_secrets_taken`: nobody else can read the set.
    pub(super) fn of_jwk(
        jwk: &Map<String, Value>,
        are_secrets_taken: bool,
        only: &[Algorithm],
    ) -> Result<Self, &'static str> {
        let text = |name| match jwk.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err("has a member of the wrong type"),
        };
        let bytes = |name| {
            let text = text(name)?.ok_or("lacks a member")?;
            decode(text.as_bytes()).ok_or("has a member that is no base64url")
        };
        if text("use")?.is_some_and(|purpose| purpose != "sig") || !may_verify(jwk) {
            return Err("is not for signatures");
        }
        let named = match text("alg")? {
            Some(name) => Some(Algorithm::named(name).ok_or("is for an unknown algorithm")?),
            None => None,
        };
        let id = text("kid")?;
        match text("kty")? {
            Some("RSA") => {
                let (n, e) = (bytes("n")?, bytes("e")?);
                Self::new(id, &Material::Rsa { n: &n, e: &e }, named, only)
            }
            Some("EC") => {
                let (kind, length) = match text("crv")? {
                    Some("P-256") => (Kind::P256, 32),
                    Some("P-384") => (Kind::P384, 48),
                    Some("P-521") => (Kind::P521, 66),
                    _ => return Err("is of an unknown curve"),
                };
                let (x, y) = (bytes("x")?, bytes("y")?);
                if x.len() != length || y.len() != length {
                    return Err("has a coordinate of the wrong length");
                }
                let point = [&[4], x.as_slice(), &y].concat();
                Self::new(id, &Material::Curve(kind, &point), named, only)
            }
            Some("OKP") if text("crv")? == Some("Ed25519") => {
                let point = bytes("x")?;
                Self::new(id, &Material::Curve(Kind::Ed25519, &point), named, only)
            }
            Some("oct") if are_secrets_taken => {
                Self::new(id, &Material::Secret(&bytes("k")?), named, only)
            }
            Some("oct") => Err("is a secret that everybody can read"),
            _ => Err("is of an unknown type"),
        }
    }

    /// All keys of a PEM file: public keys and certificates, of which only the key counts.
    pub(super) fn of_pem(text: &[u8], only: &[Algorithm]) -> Result<Vec<Self>, String> {
        let mut keys = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
            let (kind, der) = section.map_err(|error| format!("is no PEM: {error}"))?;
            let key = match kind {
                SectionKind::PublicKey => {
                    let info = SubjectPublicKeyInfo::from_der(&der);
                    let (_, info) = info.map_err(|_| "has a public key that cannot be read")?;
                    Self::of_info(&info, only)
                }
                SectionKind::Certificate => {
                    let certificate = X509Certificate::from_der(&der);
                    let (_, certificate) =
                        certificate.map_err(|_| "has a certificate that cannot be read")?;
                    Self::of_info(certificate.public_key(), only)
                }
                SectionKind::PrivateKey
                | SectionKind::RsaPrivateKey
                | SectionKind::EcPrivateKey => {
                    return Err("has a private key in it, which belongs to the issuer alone: \
                                name a file with the public key"
                        .to_owned());
                }
                _ => continue,
            };
            keys.push(key.map_err(|reason| format!("has a key that {reason}"))?);
        }
        if keys.is_empty() {
            return Err("has neither a public key nor a certificate in it".to_owned());
        }
        Ok(keys)
    }

    fn of_info(info: &SubjectPublicKeyInfo<'_>, only: &[Algorithm]) -> Result<Self, &'static str> {
        const UNREADABLE: &str = "cannot be read";
        let point = &*info.subject_public_key.data;
        let kind = &info.algorithm.algorithm;
        if *kind == OID_SIG_ED25519 {
            return Self::new(None, &Material::Curve(Kind::Ed25519, point), None, only);
        }
        if *kind == OID_PKCS1_RSAENCRYPTION {
            return match info.parsed() {
                Ok(PublicKey::RSA(key)) => {
                    let material = Material::Rsa { n: key.modulus, e: key.exponent };
                    Self::new(None, &material, None, only)
                }
                _ => Err(UNREADABLE),
            };
        }
        if *kind != OID_KEY_TYPE_EC_PUBLIC_KEY {
            return Err("is of an unknown type");
        }
        let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        let curve = curve.ok_or(UNREADABLE)?;
        let kinds = [
            (OID_EC_P256, Kind::P256),
            (OID_NIST_EC_P384, Kind::P384),
            (OID_NIST_EC_P521, Kind::P521),
        ];
        let known = kinds.iter().find(|(oid, _)| *oid == curve);
        let (_, kind) = known.ok_or("is of an unknown curve")?;
        Self::new(None, &Material::Curve(*kind, point), None, only)
    }

    /// `named` is the one algorithm that the key itself names, `only` what the configuration leaves; empty is all.
    fn new(
        id: Option<&str>,
        material: &Material<'_>,
        named: Option<Algorithm>,
        only: &[Algorithm],
    ) -> Result<Self, &'static str> {
        let kind = material.kind()?;
        let good = |algorithm: &Algorithm| {
            kind.fits(*algorithm)
                && named.is_none_or(|named| named == *algorithm)
                && (only.is_empty() || only.contains(algorithm))
        };
        let mut verifiers = Vec::new();
        for algorithm in Algorithm::ALL.into_iter().filter(good) {
            let verifier = material.verifier(algorithm).ok_or("does not lie on its curve")?;
            verifiers.push((algorithm, verifier));
        }
        if verifiers.is_empty() {
            return Err(match material {
                Material::Secret(_) => "is too short for its algorithm: HS256 needs 32 bytes",
                _ => "is good for no algorithm that is allowed",
            });
        }
        Ok(Self { id: id.map(Box::from), verifiers })
    }

    /// Its name, where it has one.
    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Whether signatures by `algorithm` may be verified by it.
    pub(super) fn is_for(&self, algorithm: Algorithm) -> bool {
        self.verifiers.iter().any(|(good, _)| *good == algorithm)
    }

    /// Whether `signature` over `signed` is by this key and `algorithm`. Secrets are compared in constant time.
    pub(super) fn verify(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        let verifier = self.verifiers.iter().find(|(good, _)| *good == algorithm);
        match verifier {
            Some((_, Verifier::Secret(key))) => hmac::verify(key, signed, signature).is_ok(),
            Some((_, Verifier::Public(key))) => key.verify_sig(signed, signature).is_ok(),
            None => false,
        }
    }
}

impl Material<'_> {
    fn kind(&self) -> Result<Kind, &'static str> {
        match self {
            Self::Secret(bytes) => Ok(Kind::Secret(bytes.len())),
            Self::Curve(kind, _) => Ok(*kind),
            Self::Rsa { n, e } => {
                let [n, e] = [n, e].map(|number| without_zeros(number));
                let odd = |number: &[u8]| number.last().is_some_and(|byte| byte & 1 == 1);
                if !MODULUS_BYTES.contains(&n.len()) {
                    return Err("is not of 2048 to 8192 bits");
                }
                if !odd(n) || !odd(e) || e == [1] || e.len() > EXPONENT_BYTES_MAX {
                    return Err("is no RSA key");
                }
                Ok(Kind::Rsa)
            }
        }
    }

    fn verifier(&self, algorithm: Algorithm) -> Option<Verifier> {
        let public = match self {
            Self::Secret(bytes) => {
                let key = hmac::Key::new(algorithm::hmac(algorithm)?, bytes);
                return Some(Verifier::Secret(Box::new(key)));
            }
            Self::Rsa { n, e } => {
                let [n, e] = [n, e].map(|number| without_zeros(number));
                let parameters = algorithm::rsa(algorithm)?;
                RsaPublicKeyComponents { n, e }.to_parsed_public_key(parameters)
            }
            Self::Curve(_, point) => ParsedPublicKey::new(algorithm::curve(algorithm)?, point),
        };
        public.ok().map(Verifier::Public)
    }
}

/// Some issuers begin numbers with a zero byte, as DER does.
fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// Whether `key_ops`, if it is there, has `verify` in it (RFC 7517, section 4.3).
fn may_verify(jwk: &Map<String, Value>) -> bool {
    match jwk.get("key_ops") {
        None => true,
        Some(Value::Array(operations)) => operations.iter().any(|one| one == "verify"),
        Some(_) => false,
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let algorithms: Vec<Algorithm> = self.verifiers.iter().map(|(one, _)| *one).collect();
        let mut shown = formatter.debug_struct("Key");
        shown.field("id", &self.id).field("algorithms", &algorithms).finish()
    }
}
