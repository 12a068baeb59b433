//! `routes` as typed.

use serde::Deserialize;

use crate::config::Priority;

/// Which requests go where.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawRoute {
    /// Default: made from the pattern.
    #[serde(default)]
    pub(in crate::config) name: Option<String>,
    #[serde(rename = "match")]
    pub(in crate::config) pattern: RawMatch,
    /// Name of an upstream.
    pub(in crate::config) upstream: String,
    #[serde(default)]
    pub(in crate::config) priority: Priority,
}

/// Which requests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawMatch {
    /// Default: any.
    #[serde(default)]
    pub(in crate::config) host: Option<String>,
    pub(in crate::config) path: String,
    /// Default: any.
    #[serde(default)]
    pub(in crate::config) methods: Vec<String>,
}
