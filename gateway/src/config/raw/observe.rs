//! `access_log` as typed.

use serde::Deserialize;

/// Where changes are written down.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawAudit {
    /// Path of a file. Default: `audit.jsonl` in `state.dir`.
    pub(in crate::config) path: Option<String>,
    /// A file that is as large is put aside.
    pub(in crate::config) max_size: String,
}

impl Default for RawAudit {
    fn default() -> Self {
        Self { path: None, max_size: "64MiB".to_owned() }
    }
}

/// Where requests are written down, and how.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawAccessLog {
    /// `off`, `stdout`, `stderr` or the path of a file.
    pub(in crate::config) path: String,
    /// `json` or a template.
    pub(in crate::config) format: String,
    /// Header fields of requests that are written down too.
    pub(in crate::config) headers: Vec<String>,
    /// Parameters of queries whose values are not.
    pub(in crate::config) redact_query: Vec<String>,
    /// Share of the requests without an error that are written down.
    pub(in crate::config) sample: String,
}

impl Default for RawAccessLog {
    fn default() -> Self {
        let redacted = ["access_token", "api_key", "code", "password", "secret", "token"];
        Self {
            path: "off".to_owned(),
            format: "json".to_owned(),
            headers: Vec::new(),
            redact_query: redacted.map(str::to_owned).into(),
            sample: "100%".to_owned(),
        }
    }
}
