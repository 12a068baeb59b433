//! Claims that are verified, or that an issuer stands for: whether they hold now and here, and who calls by them. A
//! claim of the wrong type is refused, never passed over.

use std::time::Duration;

use serde_json::{Map, Value};

use super::Identity;
use crate::base::time::UtcMillis;
use crate::config::{Audience, ClaimPath, ClaimRules};

/// Claims by their names.
pub(super) type Claims = Map<String, Value>;

/// What the log says of claims that hold no longer.
pub(super) const EXPIRED: &str = "the token has expired";

/// Why claims do not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// They did.
    Expired,
    /// They never did here.
    Bad(&'static str),
}

impl From<&'static str> for Unfit {
    fn from(reason: &'static str) -> Self {
        Self::Bad(reason)
    }
}

/// Whether claims hold at `now`. The moment is that from which on they do not; `None`: they say nothing of it.
pub(super) fn check(
    claims: &Claims,
    rules: &ClaimRules,
    now: UtcMillis,
) -> Result<Option<UtcMillis>, Unfit> {
    let until = time(claims, "exp")?.map(|expiry| expiry.after(rules.leeway));
    if until.is_some_and(|until| now >= until) {
        return Err(Unfit::Expired);
    }
    let latest = now.after(rules.leeway);
    if time(claims, "nbf")?.is_some_and(|from| from > latest) {
        return Err("the token is not valid yet".into());
    }
    if time(claims, "iat")?.is_some_and(|issued| issued > latest) {
        return Err("the token was issued in the future".into());
    }
    for name in ["sub", "jti", "azp", "client_id"] {
        text(claims, name)?;
    }
    let issuer = text(claims, "iss")?;
    let is_known = |issuer: &str| rules.issuers.iter().any(|one| one == issuer);
    if !rules.issuers.is_empty() && !issuer.is_some_and(is_known) {
        return Err("the token's issuer is another one".into());
    }
    audience(claims, &rules.audience)?;
    if rules.required.iter().any(|path| path.find(claims).is_none_or(Value::is_null)) {
        return Err("the token lacks a claim that is required".into());
    }
    Ok(until)
}

/// Who calls by claims that hold.
pub(super) fn identity(
    claims: Claims,
    rules: &ClaimRules,
    authenticator: &str,
) -> Result<Identity, &'static str> {
    let from = &rules.identity;
    Ok(Identity {
        authenticator: authenticator.into(),
        user: name(&claims, &from.user)?,
        consumer: name(&claims, &from.consumer)?,
        key: None,
        tenant: name(&claims, &from.tenant)?,
        plan: name(&claims, &from.plan)?,
        roles: names(&claims, &from.roles, false)?,
        scopes: names(&claims, &from.scopes, true)?,
        groups: names(&claims, &from.groups, false)?,
        claims,
        ..Identity::default()
    })
}

/// How long claims hold from `now` on, if they say so.
pub(super) fn left(until: Option<UtcMillis>, now: UtcMillis) -> Duration {
    until.map_or(Duration::MAX, |until| until.since(now))
}

/// A `NumericDate` (RFC 7519, section 2). What is before 1970 is the beginning of 1970.
pub(super) fn time(claims: &Claims, name: &str) -> Result<Option<UtcMillis>, &'static str> {
    const MILLIS: u64 = 1000;
    let Some(value) = claims.get(name) else { return Ok(None) };
    let number = match value {
        Value::Number(number) => number,
        _ => return Err("a time in the token is no number"),
    };
    let millis = match (number.as_u64(), number.as_f64()) {
        (Some(seconds), _) => seconds.saturating_mul(MILLIS),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` ends at the bounds of u64, which is what is meant"
        )]
        (None, Some(seconds)) => (seconds * 1000.0) as u64,
        (None, None) => return Err("a time in the token is no number"),
    };
    Ok(Some(UtcMillis(millis)))
}

/// A claim that is a text wherever it is there at all.
pub(super) fn text<'c>(claims: &'c Claims, name: &str) -> Result<Option<&'c str>, &'static str> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err("a claim of the token is of the wrong type"),
    }
}

fn audience(claims: &Claims, wanted: &Audience) -> Result<(), &'static str> {
    const MISTYPED: &str = "the token's audience is of the wrong type";
    let of: Vec<&str> = match claims.get("aud") {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) => {
            let texts = list.iter().map(Value::as_str).collect::<Option<_>>();
            texts.ok_or(MISTYPED)?
        }
        Some(_) => return Err(MISTYPED),
    };
    match wanted {
        Audience::Any => Ok(()),
        Audience::Of(names) if names.is_empty() && of.is_empty() => Ok(()),
        Audience::Of(names) if names.iter().any(|name| of.contains(&name.as_str())) => Ok(()),
        Audience::Of(_) => Err("the token is for somebody else"),
    }
}

fn first<'c>(claims: &'c Claims, paths: &[ClaimPath]) -> Option<&'c Value> {
    paths.iter().filter_map(|path| path.find(claims)).find(|value| !value.is_null())
}

/// Some issuers number what they name.
fn name(claims: &Claims, paths: &[ClaimPath]) -> Result<Option<Box<str>>, &'static str> {
    match first(claims, paths) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.as_str().into())),
        Some(Value::Number(number)) if !number.is_f64() => Ok(Some(number.to_string().into())),
        Some(_) => Err("a claim that says who calls is of the wrong type"),
    }
}

/// A list of texts, or one text: of several names only where spaces are between them.
fn names(
    claims: &Claims,
    paths: &[ClaimPath],
    by_spaces: bool,
) -> Result<Vec<Box<str>>, &'static str> {
    const MISTYPED: &str = "a claim that says what the caller may is of the wrong type";
    match first(claims, paths) {
        None => Ok(Vec::new()),
        Some(Value::String(text)) if by_spaces => {
            Ok(text.split_ascii_whitespace().map(Box::from).collect())
        }
        Some(Value::String(text)) => Ok(vec![text.as_str().into()]),
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|one| one.as_str().map(Box::from)).collect::<Option<_>>();
            texts.ok_or(MISTYPED)
        }
        Some(_) => Err(MISTYPED),
    }
}
