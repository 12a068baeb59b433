//! `identity`: what services are told about callers, in which header fields. Whatever clients send under these names,
//! in any spelling, never reaches a service, also where nobody is known.

use std::path::Path;

use http::HeaderName;
use http::header::AUTHORIZATION;
use serde::Deserialize;

use super::at::At;
use super::auth::{Authenticator, ClaimPath};
use super::forms::Named;
use super::identity_token::{IdentityToken, RawIdentityToken, token};
use super::routes::header_name;
use super::tree::shorten;

/// Claims that are told.
pub(super) const CLAIMS_MAX: usize = 32;
/// What stands for nothing.
pub(super) const OFF: &str = "off";
/// The field of the token.
const TOKEN: &str = "x-identity-token";
/// Fields by which messages are framed and routed, or that the gateway writes by other rules.
const TAKEN: [&str; 22] = [
    "accept",
    "client-cert",
    "client-cert-chain",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-real-ip",
    "x-request-id",
];

/// One thing about a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// The person.
    User,
    /// What it is.
    Roles,
    /// The party that calls.
    Consumer,
    /// Whom it belongs to.
    Tenant,
    /// What it was granted.
    Scopes,
    /// What it belongs to.
    Groups,
    /// Its tier.
    Plan,
    /// The id of its credential.
    Key,
    /// What knows it.
    Authenticator,
    /// A verified claim.
    Claim(ClaimPath),
}

/// What services are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Each field with what it says.
    pub fields: Vec<(HeaderName, Attribute)>,
    /// The same, signed.
    pub token: Option<IdentityToken>,
    /// Names that never come from clients: those in use, and the usual ones that are off.
    pub removed: Vec<HeaderName>,
}

/// As typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawIdentity {
    user: Option<String>,
    roles: Option<String>,
    consumer: Option<String>,
    tenant: Option<String>,
    scopes: Option<String>,
    groups: Option<String>,
    plan: Option<String>,
    key: Option<String>,
    authenticator: Option<String>,
    claims: Named<String>,
    token: Option<RawIdentityToken>,
}

/// What services are told, where callers can be known or the section is there.
pub(super) fn identity(
    raw: Option<&RawIdentity>,
    auth: &[Authenticator],
    folder: &Path,
    at: At<'_>,
) -> Option<Told> {
    let usual = RawIdentity::default();
    let raw = raw.or((!auth.is_empty()).then_some(&usual));
    raw.map(|raw| told(raw, folder, at))
}

fn told(raw: &RawIdentity, folder: &Path, at: At<'_>) -> Told {
    let attributes = [
        ("user", &raw.user, Some("x-user-id"), Attribute::User),
        ("roles", &raw.roles, Some("x-roles"), Attribute::Roles),
        ("consumer", &raw.consumer, Some("x-consumer"), Attribute::Consumer),
        ("tenant", &raw.tenant, Some("x-tenant"), Attribute::Tenant),
        ("scopes", &raw.scopes, Some("x-scopes"), Attribute::Scopes),
        ("groups", &raw.groups, None, Attribute::Groups),
        ("plan", &raw.plan, None, Attribute::Plan),
        ("key", &raw.key, None, Attribute::Key),
        ("authenticator", &raw.authenticator, None, Attribute::Authenticator),
    ];
    let mut told = Told { fields: Vec::new(), token: None, removed: Vec::new() };
    for (key, typed, usual, attribute) in attributes {
        let usual = usual.map(HeaderName::from_static);
        told.removed.extend(usual.clone());
        let name = match typed.as_deref() {
            None => usual,
            Some(OFF) => None,
            Some(typed) => name(typed, &told, at.key(key)),
        };
        told.fields.extend(name.map(|name| (name, attribute)));
    }
    claims(&raw.claims, &mut told, at.key("claims"));
    if let Some(raw) = &raw.token {
        let at = at.key("token");
        let header = token_header(raw.header.as_deref(), &told, at.key("header"));
        told.removed.push(HeaderName::from_static(TOKEN));
        told.removed.extend(header.clone());
        told.token = token(raw, header, folder, at);
    }
    for (name, _) in &told.fields {
        if !told.removed.contains(name) {
            told.removed.push(name.clone());
        }
    }
    told
}

fn claims(raw: &Named<String>, told: &mut Told, at: At<'_>) {
    if raw.0.len() > CLAIMS_MAX {
        let message = format!("{} claims are too many", raw.0.len());
        at.on_key().error_with_help(message, format!("name at most {CLAIMS_MAX}"));
    }
    for (index, (typed, path)) in raw.0.iter().enumerate() {
        let at = at.entry(index);
        let Some(path) = claim_path(path, at) else { continue };
        let name = name(typed, told, at.on_key());
        told.fields.extend(name.map(|name| (name, Attribute::Claim(path))));
    }
}

/// Where a claim is.
pub(super) fn claim_path(text: &str, at: At<'_>) -> Option<ClaimPath> {
    let path = ClaimPath::parse(text);
    if path.is_none() {
        at.error_with_help(
            format!("`{}` is no path to a claim", shorten(text)),
            "write the names from the outermost on, with dots between: realm_access.roles",
        );
    }
    path
}

fn token_header(typed: Option<&str>, told: &Told, at: At<'_>) -> Option<HeaderName> {
    if typed == Some(OFF) {
        at.error_with_help("a token needs a header", "leave the section out for no token");
        return None;
    }
    name(typed.unwrap_or(TOKEN), told, at)
}

fn name(typed: &str, told: &Told, at: At<'_>) -> Option<HeaderName> {
    let name = header_name(typed, at)?;
    // Services that read `X_Roles` as `X-Roles` must not be told two things by one name.
    let plain = |name: &HeaderName| name.as_str().replace('_', "-");
    if TAKEN.contains(&&*plain(&name)) || name.as_str().starts_with("x-forwarded-") {
        let help = "choose a name of its own, such as X-User-Id";
        at.error_with_help(format!("the header `{}` says something else", shorten(typed)), help);
        return None;
    }
    if name == AUTHORIZATION {
        let help = "name another field; services take this one for the caller's credential";
        at.error_with_help("the header `authorization` is for credentials", help);
        return None;
    }
    if told.fields.iter().any(|(other, _)| plain(other) == plain(&name)) {
        let message = format!("the header `{}` is told two things", shorten(typed));
        at.error_with_help(message, "give each a name of its own");
        return None;
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Errors, parse};

    fn with(section: &str) -> Result<Config, Errors> {
        parse("a.yaml", &format!("listen: [{{address: 127.0.0.1:80}}]\nidentity: {section}"))
    }

    fn names(section: &str) -> Vec<String> {
        let told = with(section).unwrap().told.unwrap();
        told.fields.iter().map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn what_is_usual_is_told_unless_it_is_off_and_never_taken_from_clients() {
        let nothing = parse("a.yaml", "listen: [{address: 127.0.0.1:80}]").unwrap();
        assert_eq!(nothing.told, None);
        let usual = ["x-user-id", "x-roles", "x-consumer", "x-tenant", "x-scopes"];
        assert_eq!(names("{}"), usual);
        assert_eq!(names("{user: off, roles: X-R, key: X-Key-Id}").join(" "), {
            "x-r x-consumer x-tenant x-scopes x-key-id"
        });
        let told = with("{user: off, claims: {X-Mail: email}}").unwrap().told.unwrap();
        for name in usual.iter().chain(&["x-mail"]) {
            assert!(told.removed.iter().any(|removed| removed == name), "{name}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (section, message) in [
            ("{user: X User}", "no name of a header field"),
            ("{user: Host}", "says something else"),
            ("{user: X_Request_Id}", "says something else"),
            ("{user: Authorization}", "for credentials"),
            ("{user: X_Roles, roles: X-Roles}", "told two things"),
            ("{claims: {X-Roles: a}}", "told two things"),
            ("{claims: {X-A: a..b}}", "no path to a claim"),
            ("{usr: X-A}", "did you mean `user`?"),
        ] {
            let errors = with(section).expect_err(section).to_string();
            assert!(errors.contains(message), "{errors}");
        }
    }
}
