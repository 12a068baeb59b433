//! A certificate authority for tests: it issues certificates into a folder that is gone with it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_RSA_SHA256, RevokedCertParams, date_time_ymd,
};
use serde_json::{Value, json};

use crate::Result;
use crate::namespace::unique;

/// What a key signs with.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// ECDSA on P-256.
    Ecdsa,
    /// RSA with 2048 bits.
    Rsa,
}

/// When a certificate ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// Long after the test.
    Late,
    /// Long before it.
    Past,
}

/// The authority.
pub struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, on disk.
#[derive(Clone, Debug)]
pub struct Pair {
    /// PEM file of the certificate.
    pub cert: PathBuf,
    /// PEM file of the key.
    pub key: PathBuf,
    serial: u64,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(unique());
        fs::create_dir(&folder).with_context(|| format!("cannot make {folder:?}"))?;
        // Also for a gateway that runs as somebody else.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.join("ca.pem"), issuer.pem())?;
        Ok(Self { folder, issuer })
    }

    /// The folder of everything that it issues.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// PEM file of its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// PEM file of what it has revoked: these certificates, and no other.
    pub fn revoke(&self, revoked: &[&Pair]) -> Result<PathBuf> {
        let entry = |pair: &&Pair| RevokedCertParams {
            serial_number: pair.serial.into(),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.folder.join("crl.pem");
        replace(&path, &params.signed_by(&self.issuer)?.pem()?)?;
        Ok(path)
    }

    /// Issues a certificate for `names` into files called `file`, over those that are there.
    pub fn issue(&self, file: &str, names: &[&str]) -> Result<Pair> {
        self.issue_as(file, names, Kind::Ecdsa, End::Late)
    }

    /// The same, with a key of this kind and this end.
    pub fn issue_as(&self, file: &str, names: &[&str], kind: Kind, end: End) -> Result<Pair> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, file);
        params.distinguished_name.push(DnType::OrganizationName, "tests");
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if matches!(end, End::Past) {
            (params.not_before, params.not_after) =
                (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
        }
        let key = KeyPair::generate_for(match kind {
            Kind::Ecdsa => &PKCS_ECDSA_P256_SHA256,
            Kind::Rsa => &PKCS_RSA_SHA256,
        })?;
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(serial.into());
        let certificate = params.signed_by(&key, &self.issuer)?;
        let pair = Pair {
            cert: self.folder.join(format!("{file}.pem")),
            key: self.folder.join(format!("{file}.key")),
            serial,
        };
        replace(&pair.cert, &certificate.pem())?;
        replace(&pair.key, &key.serialize_pem())?;
        Ok(pair)
    }
}

impl Pair {
    /// As a configuration names it.
    pub fn json(&self) -> Value {
        json!({"cert": self.cert, "key": self.key})
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} stays behind: {error}", self.folder.display());
        }
    }
}

/// Puts a file in the place of another at once, as those do who renew certificates.
pub fn replace(path: &Path, text: &str) -> Result {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(&new, path)?)
}
