//! `upstreams.NAME.balance` and what belongs to it, as typed.

use serde::Deserialize;

use super::{Section, TextOr};

/// An algorithm, or `{hash: ...}`.
pub(in crate::config) type RawBalance = TextOr<RawBalanceSection>;

/// An algorithm that has something to be told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawBalanceSection {
    pub(in crate::config) hash: RawHash,
    /// Of the average load. Default: none.
    #[serde(default)]
    pub(in crate::config) bound: Option<String>,
}

impl Section for RawBalanceSection {
    const EXPECTED: &'static str = "`round_robin`, `least_requests`, `random_two` or `{hash: ...}`";
}

/// `client`, `consumer`, or what of a request the key is.
pub(in crate::config) type RawHash = TextOr<RawHashSection>;

/// Exactly one of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawHashSection {
    pub(in crate::config) header: Option<String>,
    pub(in crate::config) cookie: Option<String>,
    pub(in crate::config) path: Option<bool>,
}

impl Section for RawHashSection {
    const EXPECTED: &'static str =
        "`client`, `consumer`, `{header: NAME}`, `{cookie: NAME}` or `{path: true}`";
}

/// `off`, or when an endpoint is ejected.
pub(in crate::config) type RawEjection = TextOr<RawEjectionSection>;

/// When an endpoint is ejected, and for how long.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawEjectionSection {
    /// Failures in a row.
    pub(in crate::config) failures: u64,
    /// The first time; each time that soon follows takes as much longer.
    pub(in crate::config) time: String,
    pub(in crate::config) max_time: String,
    /// Share of the endpoints that may be ejected.
    pub(in crate::config) max_ejected: String,
}

impl Default for RawEjectionSection {
    fn default() -> Self {
        Self {
            failures: 5,
            time: "30s".to_owned(),
            max_time: "5m".to_owned(),
            max_ejected: "50%".to_owned(),
        }
    }
}

impl Section for RawEjectionSection {
    const EXPECTED: &'static str = "`off` or a section with `failures`, `time` and the like";
}
