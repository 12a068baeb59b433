//! What tokens must say, and which of it says who calls: the same for those that are verified here and those that an
//! issuer is asked about.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;

use super::ClaimPath;
use crate::config::at::At;
use crate::config::forms::OneOrList;
use crate::config::tree::shorten;
use crate::config::value::interval;

/// More than any clock of a host that asks for the time is wrong by.
const LEEWAYS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);
/// Of issuers, of audiences, of paths of one kind.
const NAMES_MAX: usize = 64;

/// What tokens must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRules {
    /// One of these in `iss`; empty for whatever it says, if anything.
    pub issuers: Vec<String>,
    /// Whom tokens are for.
    pub audience: Audience,
    /// How far apart the clocks may be.
    pub leeway: Duration,
    /// What must be there.
    pub required: Vec<ClaimPath>,
    /// Which claims say who calls.
    pub identity: IdentityClaims,
}

/// Whom tokens are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Whomever.
    Any,
    /// One of these in `aud`. None: tokens that are for somebody are refused (RFC 7519, section 4.1.3).
    Of(Vec<String>),
}

/// Which claims say who calls: of each kind the first that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityClaims {
    /// The person.
    pub user: Vec<ClaimPath>,
    /// The party that plans belong to.
    pub consumer: Vec<ClaimPath>,
    /// Whom it belongs to.
    pub tenant: Vec<ClaimPath>,
    /// Its tier of limits.
    pub plan: Vec<ClaimPath>,
    /// A list, or one as text.
    pub roles: Vec<ClaimPath>,
    /// A list, or a text with spaces between.
    pub scopes: Vec<ClaimPath>,
    /// A list, or one as text.
    pub groups: Vec<ClaimPath>,
}

/// As typed, of either kind.
#[derive(Debug)]
pub(super) struct RawRules<'r> {
    pub(super) issuer: Option<&'r OneOrList<String>>,
    pub(super) audience: Option<&'r OneOrList<String>>,
    pub(super) leeway: &'r str,
    pub(super) required: &'r OneOrList<String>,
    pub(super) claims: &'r RawIdentityClaims,
}

/// `claims` as typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawIdentityClaims {
    user: Option<OneOrList<String>>,
    consumer: Option<OneOrList<String>>,
    tenant: Option<OneOrList<String>>,
    plan: Option<OneOrList<String>>,
    roles: Option<OneOrList<String>>,
    scopes: Option<OneOrList<String>>,
    groups: Option<OneOrList<String>>,
}

pub(super) fn rules(raw: &RawRules<'_>, at: At<'_>) -> Option<ClaimRules> {
    let names = |raw: Option<&OneOrList<String>>, key| {
        raw.map(|raw| texts(raw, at.key(key))).unwrap_or_default()
    };
    let audiences = names(raw.audience, "audience");
    let audience = if audiences == ["*"] { Audience::Any } else { Audience::Of(audiences) };
    if let Audience::Of(names) = &audience
        && names.iter().any(|name| name == "*")
    {
        let help = "write `audience: \"*\"` alone for any, or only the names";
        at.key("audience").error_with_help("`*` stands for any audience", help);
    }
    let of = |raw: &Option<OneOrList<String>>, key, default: &[&str]| {
        let at = at.key("claims").key(key);
        let default = || default.iter().filter_map(|path| ClaimPath::parse(path)).collect();
        raw.as_ref().map_or_else(default, |raw| paths(raw, at))
    };
    let claims = raw.claims;
    Some(ClaimRules {
        issuers: names(raw.issuer, "issuer"),
        audience,
        leeway: interval(raw.leeway, LEEWAYS, at.key("leeway"))?,
        required: paths(raw.required, at.key("required_claims")),
        identity: IdentityClaims {
            user: of(&claims.user, "user", &["sub"]),
            consumer: of(&claims.consumer, "consumer", &["azp", "client_id"]),
            tenant: of(&claims.tenant, "tenant", &[]),
            plan: of(&claims.plan, "plan", &[]),
            roles: of(&claims.roles, "roles", &["roles"]),
            scopes: of(&claims.scopes, "scopes", &["scope", "scp"]),
            groups: of(&claims.groups, "groups", &["groups"]),
        },
    })
}

/// Texts that stand in tokens letter by letter, each once.
pub(in crate::config) fn texts(raw: &OneOrList<String>, at: At<'_>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (text, at) in raw.each(at) {
        if text.is_empty() {
            at.error_with_help("this is empty", "write what the token says, letter by letter");
        } else if found.contains(text) {
            let message = format!("`{}` is given twice", shorten(text));
            at.error_with_help(message, "remove one of the two");
        } else {
            found.push(text.clone());
        }
    }
    bounded(found.len(), at);
    found
}

fn paths(raw: &OneOrList<String>, at: At<'_>) -> Vec<ClaimPath> {
    let mut found = Vec::new();
    for (text, at) in raw.each(at) {
        match ClaimPath::parse(text) {
            Some(path) => found.push(path),
            None => at.error_with_help(
                format!("`{}` is no path to a claim", shorten(text)),
                "write the names from the outermost on, with dots between: realm_access.roles",
            ),
        }
    }
    bounded(found.len(), at);
    found
}

fn bounded(count: usize, at: At<'_>) {
    if count > NAMES_MAX {
        at.error_with_help(format!("{count} are too many"), format!("write at most {NAMES_MAX}"));
    }
}
