//! `auth.NAME.basic`: which users, and what their verification may take.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::consumers::word;
use crate::config::at::At;
use crate::config::tree::shorten;
use crate::config::value::{count, file_path, interval};

const REMEMBER_MAX: Duration = Duration::from_secs(3600);
const VERIFICATIONS_MAX: u64 = 256;
const WAITING_MAX: u64 = 4096;
/// Bytes of a realm.
const REALM_BYTES_MAX: usize = 128;

/// Callers by name and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basic {
    /// The file of users.
    pub htpasswd: PathBuf,
    /// What browsers show.
    pub realm: String,
    /// Whose users they are.
    pub consumer: Option<String>,
    /// Whether services get requests without the password.
    pub strip: bool,
    /// How long a right password is remembered.
    pub remember: Duration,
    /// Passwords that are verified at once.
    pub verifications: usize,
    /// Passwords that wait for it.
    pub waiting: usize,
}

/// As typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBasic {
    htpasswd: String,
    #[serde(default)]
    realm: Option<String>,
    #[serde(default)]
    consumer: Option<String>,
    #[serde(default = "default_strip")]
    strip: bool,
    #[serde(default = "default_remember")]
    remember: String,
    #[serde(default)]
    verifications: Option<u64>,
    #[serde(default = "default_waiting")]
    waiting: u64,
}

fn default_strip() -> bool {
    true
}

fn default_remember() -> String {
    "5m".to_owned()
}

fn default_waiting() -> u64 {
    64
}

pub(super) fn basic(name: &str, raw: &RawBasic, folder: &Path, at: At<'_>) -> Option<Basic> {
    let htpasswd = file_path(&raw.htpasswd, folder, at.key("htpasswd"));
    let remember = Duration::from_secs(1)..=REMEMBER_MAX;
    let remember = interval(&raw.remember, remember, at.key("remember"));
    // The workers need the other half of the CPUs.
    let half = std::thread::available_parallelism().map_or(1, |cpus| (cpus.get() / 2).max(1));
    let verifications = match raw.verifications {
        Some(number) => count(number, 1..=VERIFICATIONS_MAX, at.key("verifications")),
        None => Some(half.min(VERIFICATIONS_MAX as usize)),
    };
    let waiting = count(raw.waiting, 0..=WAITING_MAX, at.key("waiting"));
    let realm = raw.realm.clone().unwrap_or_else(|| name.to_owned());
    let printable = |byte: u8| (b' '..=b'~').contains(&byte) && !b"\"\\".contains(&byte);
    if realm.len() > REALM_BYTES_MAX || !realm.bytes().all(printable) {
        at.key("realm").error_with_help(
            format!("`{}` is no realm", shorten(&realm)),
            format!("write at most {REALM_BYTES_MAX} printable characters of ASCII, no quotes"),
        );
    }
    let consumer = raw.consumer.as_ref().filter(|text| word(text, at.key("consumer")));
    Some(Basic {
        htpasswd: htpasswd?,
        realm,
        consumer: consumer.cloned(),
        strip: raw.strip,
        remember: remember?,
        verifications: verifications?,
        waiting: waiting?,
    })
}
