//! `auth`, `consumers` and what routes ask of callers: who may be known how, and what they must be.

mod algorithm;
mod api_key;
mod basic;
mod claims;
mod consumers;
mod expression;
mod hmac;
mod introspection;
mod jwt;
mod mtls;
mod place;
mod private_url;
mod require;

use super::PathPattern;
use super::at::At;
use super::diagnostic::suggestion;
use super::forms::{Named, OneOrList};
use super::raw::RawRoute;
use super::tree::shorten;
use super::value::name;
use serde::Deserialize;
use std::path::Path;

pub use self::algorithm::JwtAlgorithm;
pub use self::api_key::{ApiKey, KeyRegistry};
pub use self::basic::Basic;
pub use self::claims::{Audience, ClaimRules, IdentityClaims};
pub use self::consumers::Consumer;
pub use self::expression::{
    Comparison, Decimal, Expression, List, Operand, Subject as Fact, read_expression,
};
pub use self::hmac::{Hmac, HmacKey, HmacProof};
pub use self::introspection::{Introspection, IntrospectionClient};
pub use self::jwt::{JwksUrl, Jwt, JwtKeys};
pub use self::mtls::{CertificateName, Mtls};
pub use self::place::CredentialPlace;
pub use self::require::{Alternative, ClaimPath, Require};

pub(super) use self::claims::texts;
pub(super) use self::consumers::{RawConsumer, consumers};
pub(super) use self::require::RawRequire;

use self::api_key::RawApiKey;
use self::basic::RawBasic;
use self::hmac::RawHmac;
use self::introspection::RawIntrospection;
use self::jwt::RawJwt;
use self::mtls::RawMtls;

/// The word for callers that are not known.
const ANONYMOUS: &str = "anonymous";
/// What an authenticator may be.
const KINDS: &str = "`api_key`, `basic`, `hmac`, `introspection`, `jwt` and `mtls`";

/// A way to know callers, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticator {
    /// Each once, in the order of the file.
    pub name: String,
    /// How callers are known.
    pub kind: AuthKind,
}

impl Authenticator {
    /// Where requests have what proves who somebody is, besides the field `Authorization`.
    pub fn places(&self) -> &[CredentialPlace] {
        match &self.kind {
            AuthKind::ApiKey(api_key) => &api_key.places,
            AuthKind::Introspection(introspection) => &introspection.places,
            AuthKind::Jwt(jwt) => &jwt.places,
            AuthKind::Basic(_) | AuthKind::Hmac(_) | AuthKind::Mtls(_) => &[],
        }
    }
}

/// How callers are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthKind {
    /// By API keys.
    ApiKey(ApiKey),
    /// By name and password.
    Basic(Basic),
    /// By the signature of the request.
    Hmac(Hmac),
    /// By a token that an issuer is asked about.
    Introspection(Box<Introspection>),
    /// By a token that is verified here.
    Jwt(Box<Jwt>),
    /// By the certificate that the client has shown in the TLS handshake.
    Mtls(Mtls),
}

/// Who may take a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Indices in [`super::Config::auth`], in the order in which they are asked.
    pub authenticators: Vec<usize>,
    /// Whether callers without any credential are served too.
    pub anonymous: bool,
    /// What callers must be.
    pub require: Require,
}

/// How callers are known: exactly one of these.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawAuthenticator {
    api_key: Option<RawApiKey>,
    basic: Option<RawBasic>,
    hmac: Option<RawHmac>,
    introspection: Option<RawIntrospection>,
    jwt: Option<RawJwt>,
    mtls: Option<RawMtls>,
}

/// `auth: NAME` or a list of names.
pub(super) type RawAuth = OneOrList<String>;

/// The section as meant. What could not be read has been reported.
pub(super) fn authenticators(
    raw: &Named<RawAuthenticator>,
    folder: &Path,
    at: At<'_>,
) -> Vec<Authenticator> {
    let one = |(index, (called, raw)): (usize, &(String, RawAuthenticator))| {
        let at = at.entry(index);
        let good = name(called, "an authenticator", at.on_key());
        if called == ANONYMOUS {
            let message = "`anonymous` stands for callers that are not known";
            at.on_key().error_with_help(message, "choose another name");
        }
        let kind = kind((called, raw), folder, at)?;
        good.then(|| Authenticator { name: called.clone(), kind })
    };
    raw.0.iter().enumerate().filter_map(one).collect()
}

/// Reports registries in a Redis that there is not.
pub(super) fn check_registries(raw: &Named<RawAuthenticator>, has_redis: bool, at: At<'_>) {
    for (index, (_, raw)) in raw.0.iter().enumerate() {
        let registry = raw.api_key.as_ref().map(|raw| raw.registry);
        if registry == Some(KeyRegistry::Redis) && !has_redis {
            at.entry(index).key("api_key").key("registry").error_with_help(
                "there is no Redis to keep keys in",
                "add `state.redis`, or leave `registry` out",
            );
        }
    }
}

fn kind((called, raw): (&str, &RawAuthenticator), folder: &Path, at: At<'_>) -> Option<AuthKind> {
    let RawAuthenticator { api_key, basic, hmac, introspection, jwt, mtls } = raw;
    let api_key = api_key.as_ref();
    let api_key = api_key.map(|raw| api_key::api_key(raw, at.key("api_key")).map(AuthKind::ApiKey));
    let basic = basic
        .as_ref()
        .map(|raw| basic::basic(called, raw, folder, at.key("basic")).map(AuthKind::Basic));
    let hmac = hmac.as_ref().map(|raw| hmac::hmac(raw, folder, at.key("hmac")).map(AuthKind::Hmac));
    let introspection = introspection.as_ref().map(|raw| {
        let meant = introspection::introspection(raw, folder, at.key("introspection"));
        meant.map(|meant| AuthKind::Introspection(Box::new(meant)))
    });
    let jwt = jwt.as_ref().map(|raw| {
        let jwt = jwt::jwt(raw, folder, at.key("jwt"));
        jwt.map(|jwt| AuthKind::Jwt(Box::new(jwt)))
    });
    let mtls = mtls.as_ref().map(|raw| mtls::mtls(raw, at.key("mtls")).map(AuthKind::Mtls));
    let mut given = [api_key, basic, hmac, introspection, jwt, mtls].into_iter().flatten();
    let Some(kind) = given.next() else {
        let help = format!("add one of {KINDS}");
        at.on_key().error_with_help("this does not say how callers are known", help);
        return None;
    };
    if given.next().is_some() {
        let help = "give each way a name of its own; routes may list several";
        at.on_key().error_with_help("callers are known in one way here", help);
    }
    kind
}

/// Who may take a route; `None`: nobody asks.
pub(super) fn access(
    raw: &RawRoute,
    path: Option<&PathPattern>,
    (authenticators, typed): (&[Authenticator], &Named<RawAuthenticator>),
    at: At<'_>,
) -> Option<Access> {
    let names = typed.0.iter().map(|(name, _)| name.as_str());
    let Some(auth) = &raw.auth else {
        if !typed.0.is_empty() && !at.key("auth").is_hole() {
            let names: Vec<&str> = names.chain([ANONYMOUS]).collect();
            at.error_with_help(
                "the route does not say who may take it",
                format!("add `auth: NAME` with one of {}", names.join(", ")),
            );
        }
        if raw.require.is_some() {
            at.key("require").on_key().error_with_help(
                "`require` means nothing where nobody is known",
                "add `auth: NAME` to the route, or remove it",
            );
        }
        return None;
    };
    let at_auth = at.key("auth");
    if auth.each(at_auth).next().is_none() {
        let help = "name an authenticator, or write `anonymous`";
        at_auth.on_key().error_with_help("the route has no way to know anybody", help);
    }
    let mut access =
        Access { authenticators: Vec::new(), anonymous: false, require: Require::default() };
    for (called, at) in auth.each(at_auth) {
        if called == ANONYMOUS {
            access.anonymous = true;
            continue;
        }
        match authenticators.iter().position(|one| one.name == *called) {
            Some(index) if access.authenticators.contains(&index) => {
                let message = format!("`{}` is given twice", shorten(called));
                at.error_with_help(message, "remove one of the two");
            }
            Some(index) => access.authenticators.push(index),
            // Its mistakes have been reported.
            None if names.clone().any(|name| name == called) => {}
            None => {
                let message = format!("there is no authenticator `{}`", shorten(called));
                let help = suggestion(called, names.clone().chain([ANONYMOUS]));
                at.error_with_help(message, help.unwrap_or_else(|| "add it to `auth`".to_owned()));
            }
        }
    }
    if let Some(raw) = &raw.require {
        access.require = require::require(raw, path, at.key("require"));
    }
    Some(access)
}
