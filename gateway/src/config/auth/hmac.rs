//! `auth.NAME.hmac`: whose signatures are believed, and what they must be over.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use serde::Deserialize;

use super::consumers::word;
use crate::config::at::At;
use crate::config::diagnostic::suggestion;
use crate::config::secret::{RawSecret, SecretSource, secret};
use crate::config::tree::shorten;
use crate::config::value::{count, file_path, interval, size};

/// Keys of one authenticator.
const KEYS_MAX: usize = 65_536;
/// Names that must be covered besides.
const COVER_MAX: usize = 32;
const SKEW_MAX: Duration = Duration::from_secs(3600);
/// A body that is signed is held in memory.
const BODY_BYTES_MAX: u64 = 64 << 20;
const NONCES_MIN: u64 = 1000;
const NONCES_MAX: u64 = 1 << 24;

const HEADERS: &str = "headers";
const RFC9421: &str = "rfc9421";
/// What can be covered besides fields, without a parameter.
const DERIVED: [&str; 7] =
    ["@method", "@target-uri", "@authority", "@scheme", "@request-target", "@path", "@query"];

/// Callers by the signatures of their requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hmac {
    /// Whether `X-Signature` and its fields are read.
    pub headers: bool,
    /// Whether `Signature` and `Signature-Input` are read.
    pub rfc9421: bool,
    /// How far a client's clock may be from the gateway's.
    pub skew: Duration,
    /// The bound of a signed body.
    pub body_bytes: u64,
    /// Nonces that are remembered at once.
    pub nonces: usize,
    /// What signatures by RFC 9421 must cover besides the least that is safe.
    pub cover: Vec<String>,
    /// Each id once. At least one.
    pub keys: Vec<HmacKey>,
}

/// A key and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HmacKey {
    /// What clients call it.
    pub id: String,
    /// Whose it is.
    pub consumer: String,
    /// What its signatures are verified by.
    pub proof: HmacProof,
}

/// What signatures are verified by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HmacProof {
    /// A secret that both sides have.
    Secret(SecretSource),
    /// A file in PEM.
    PublicKey(PathBuf),
}

/// As typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHmac {
    #[serde(default)]
    formats: Option<Vec<String>>,
    #[serde(default = "default_skew")]
    skew: String,
    #[serde(default = "default_body_bytes")]
    body_bytes: String,
    #[serde(default = "default_nonces")]
    nonces: u64,
    #[serde(default)]
    cover: Vec<String>,
    keys: Vec<RawKey>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    id: String,
    consumer: String,
    #[serde(default)]
    secret: Option<RawSecret>,
    #[serde(default)]
    public_key: Option<String>,
}

fn default_skew() -> String {
    "5m".to_owned()
}

fn default_body_bytes() -> String {
    "1MiB".to_owned()
}

fn default_nonces() -> u64 {
    1_000_000
}

pub(super) fn hmac(raw: &RawHmac, folder: &Path, at: At<'_>) -> Option<Hmac> {
    let skew = interval(&raw.skew, Duration::from_secs(1)..=SKEW_MAX, at.key("skew"));
    let body_bytes = size(&raw.body_bytes, 0..=BODY_BYTES_MAX, at.key("body_bytes"));
    let nonces = count(raw.nonces, NONCES_MIN..=NONCES_MAX, at.key("nonces"));
    let (headers, rfc9421) = formats(raw.formats.as_deref(), at.key("formats"));
    let cover = cover(&raw.cover, at.key("cover"));
    let keys = keys(&raw.keys, folder, at.key("keys"));
    if let (false, Some(key)) = (rfc9421, keys.iter().find(|key| key.is_public())) {
        let message = format!("the key `{}` is public, which only `{RFC9421}` uses", key.id);
        at.key("formats").error_with_help(message, format!("add `{RFC9421}` to `formats`"));
    }
    Some(Hmac {
        headers,
        rfc9421,
        skew: skew?,
        body_bytes: body_bytes?,
        nonces: nonces?,
        cover,
        keys,
    })
}

impl HmacKey {
    fn is_public(&self) -> bool {
        matches!(self.proof, HmacProof::PublicKey(_))
    }
}

fn formats(raw: Option<&[String]>, at: At<'_>) -> (bool, bool) {
    let Some(raw) = raw else { return (true, true) };
    let known = [HEADERS, RFC9421];
    for (index, text) in raw.iter().enumerate().filter(|(_, text)| !known.contains(&text.as_str()))
    {
        let message = format!("`{}` is no format of signatures", shorten(text));
        at.item(index).error_with_help(message, suggestion(text, known).unwrap_or_default());
    }
    if raw.is_empty() {
        let help = format!("write `{HEADERS}`, `{RFC9421}` or both");
        at.on_key().error_with_help("no signature has none of the formats", help);
    }
    let has = |format: &str| raw.iter().any(|text| text == format);
    (has(HEADERS), has(RFC9421))
}

fn cover(raw: &[String], at: At<'_>) -> Vec<String> {
    if raw.len() > COVER_MAX {
        let message = format!("{} components are more than {COVER_MAX}", raw.len());
        at.on_key().error_with_help(message, "require what matters");
    }
    for (index, text) in raw.iter().enumerate() {
        let is_field = || HeaderName::from_lowercase(text.as_bytes()).is_ok();
        if !DERIVED.contains(&text.as_str()) && (text.starts_with('@') || !is_field()) {
            let help = format!(
                "write the name of a field in lower case, or one of {}",
                DERIVED.join(", ")
            );
            let message = format!("`{}` is nothing that can be required", shorten(text));
            at.item(index).error_with_help(message, help);
        }
    }
    raw.to_vec()
}

fn keys(raw: &[RawKey], folder: &Path, at: At<'_>) -> Vec<HmacKey> {
    if raw.is_empty() || raw.len() > KEYS_MAX {
        let message = format!("an authenticator with {} keys cannot be", raw.len());
        at.on_key().error_with_help(message, format!("name 1 to {KEYS_MAX}"));
    }
    let mut lines = std::collections::HashMap::new();
    let one = |(index, raw): (usize, &RawKey)| {
        let at = at.item(index);
        let RawKey { id, consumer, secret: typed, public_key } = raw;
        let good = word(id, at.key("id")) & word(consumer, at.key("consumer"));
        if let Some(line) = lines.insert(id.clone(), at.key("id").line()) {
            let help = format!("the other is in line {line}: give each key an id of its own");
            at.key("id").error_with_help(format!("`{}` is given twice", shorten(id)), help);
        }
        let proof = match (typed, public_key) {
            (Some(typed), None) => secret(typed, folder, at.key("secret")).map(HmacProof::Secret),
            (None, Some(path)) => {
                file_path(path, folder, at.key("public_key")).map(HmacProof::PublicKey)
            }
            _ => {
                let help = "write `secret: {file: PATH}` or `public_key: PATH`";
                at.error_with_help("a key is either a shared secret or a public key", help);
                None
            }
        };
        let proof = proof?;
        good.then(|| HmacKey { id: id.clone(), consumer: consumer.clone(), proof })
    };
    raw.iter().enumerate().filter_map(one).collect()
}
