//! `routes` as typed.

use serde::Deserialize;

use super::{Named, Section, TextOr};
use crate::config::Priority;
use crate::config::auth::{RawAuth, RawRequire};
use crate::config::limits::RawLimit;

/// Which requests, and what is done with them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawRoute {
    /// Default: made from the pattern.
    #[serde(default)]
    pub(in crate::config) name: Option<String>,
    #[serde(rename = "match")]
    pub(in crate::config) pattern: RawMatch,
    /// One of `upstream`, `redirect` and `respond`.
    #[serde(default)]
    pub(in crate::config) upstream: Option<RawTargets>,
    #[serde(default)]
    pub(in crate::config) redirect: Option<RawRedirect>,
    #[serde(default)]
    pub(in crate::config) respond: Option<RawRespond>,
    /// What keeps a client with one of several upstreams.
    #[serde(default)]
    pub(in crate::config) sticky: Option<TextOr<RawSticky>>,
    /// Path and query for the service. Default: those of the request.
    #[serde(default)]
    pub(in crate::config) rewrite: Option<String>,
    /// Size of a request's body. Default: `bounds.body_bytes`.
    #[serde(default)]
    pub(in crate::config) body_bytes: Option<String>,
    #[serde(default)]
    pub(in crate::config) request_headers: RawHeaderChanges,
    #[serde(default)]
    pub(in crate::config) response_headers: RawHeaderChanges,
    #[serde(default)]
    pub(in crate::config) encoded_slash: RawAmbiguity,
    #[serde(default)]
    pub(in crate::config) path_parameters: RawAmbiguity,
    #[serde(default)]
    pub(in crate::config) priority: Priority,
    /// Default: what the upstream says.
    #[serde(default)]
    pub(in crate::config) timeout: Option<RawRouteTimeout>,
    /// Who may take it. Default: everybody, where there is no `auth` section.
    #[serde(default)]
    pub(in crate::config) auth: Option<RawAuth>,
    /// What callers must be. Default: known.
    #[serde(default)]
    pub(in crate::config) require: Option<RawRequire>,
    /// How much they may.
    #[serde(default)]
    pub(in crate::config) limits: Vec<RawLimit>,
    /// What a request takes of limits. Default: 1.
    #[serde(default)]
    pub(in crate::config) cost: Option<u64>,
}

/// How long requests of the route may take. Default: what the upstream says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawRouteTimeout {
    #[serde(default)]
    pub(in crate::config) connect: Option<String>,
    #[serde(default)]
    pub(in crate::config) response: Option<String>,
    #[serde(default)]
    pub(in crate::config) whole: Option<String>,
    /// Default: `bounds.idle_timeout`.
    #[serde(default)]
    pub(in crate::config) stream_idle: Option<String>,
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
    #[serde(default)]
    pub(in crate::config) headers: Named<TextOr<RawWanted>>,
    #[serde(default)]
    pub(in crate::config) query: Named<TextOr<RawWanted>>,
    #[serde(default)]
    pub(in crate::config) cookies: Named<TextOr<RawWanted>>,
}

/// What a header field, parameter or cookie must be: exactly one of these. A text alone is `exact`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawWanted {
    #[serde(default)]
    pub(in crate::config) exact: Option<String>,
    #[serde(default)]
    pub(in crate::config) prefix: Option<String>,
    #[serde(default)]
    pub(in crate::config) regex: Option<String>,
    #[serde(default)]
    pub(in crate::config) present: Option<bool>,
}

impl Section for RawWanted {
    const EXPECTED: &'static str =
        "a text or a section with `exact`, `prefix`, `regex` or `present`";
}

/// The name of an upstream, or several with their weights.
#[derive(Debug)]
pub(in crate::config) enum RawTargets {
    One(String),
    Several(Vec<TextOr<RawTarget>>),
}

/// One of several upstreams.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawTarget {
    pub(in crate::config) name: String,
    #[serde(default = "weight")]
    pub(in crate::config) weight: u64,
}

impl Section for RawTarget {
    const EXPECTED: &'static str = "the name of an upstream or a section with `name` and `weight`";
}

/// The weight of an upstream that has none of its own.
pub(in crate::config) fn weight() -> u64 {
    1
}

/// `client_address`, or one of these.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawSticky {
    #[serde(default)]
    pub(in crate::config) cookie: Option<String>,
    #[serde(default)]
    pub(in crate::config) header: Option<String>,
}

impl Section for RawSticky {
    const EXPECTED: &'static str = "`client_address` or a section with `cookie` or `header`";
}

/// Where the client is sent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawRedirect {
    #[serde(default = "redirect_status")]
    pub(in crate::config) status: u64,
    pub(in crate::config) to: String,
}

fn redirect_status() -> u64 {
    307
}

/// What the gateway answers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawRespond {
    #[serde(default = "respond_status")]
    pub(in crate::config) status: u64,
    #[serde(default)]
    pub(in crate::config) headers: Named<String>,
    #[serde(default)]
    pub(in crate::config) body: String,
}

fn respond_status() -> u64 {
    200
}

/// What becomes of header fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawHeaderChanges {
    pub(in crate::config) set: Named<String>,
    pub(in crate::config) add: Named<String>,
    pub(in crate::config) remove: Vec<String>,
}

/// What is done with a path that some servers read as another one.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RawAmbiguity {
    #[default]
    SameRoute,
    Keep,
    Refuse,
}
