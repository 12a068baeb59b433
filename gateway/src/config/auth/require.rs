//! `routes[].require`: what callers must be. Of several alternatives one is enough.

use serde::Deserialize;

use super::consumers::words;
use super::expression::{Expression, expression};
use crate::config::PathPattern;
use crate::config::at::At;
use crate::config::forms::{Named, OneOrList};
use crate::config::routes::methods;
use crate::config::tree::shorten;
use http::Method;

/// Segments of a path to a claim.
const DEPTH_MAX: usize = 8;

/// What callers must be: one of these. None: known is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Require(pub Vec<Alternative>);

/// What callers must be, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alternative {
    /// For requests of these methods alone; empty for any.
    pub methods: Vec<Method>,
    /// One of these consumers; empty for any.
    pub consumers: Vec<String>,
    /// In one of these groups; empty for any.
    pub groups: Vec<String>,
    /// With one of these roles; empty for any.
    pub roles: Vec<String>,
    /// With all of these scopes.
    pub scopes: Vec<String>,
    /// With all of these claims: each is this text, number or truth value, or a list that has it.
    pub claims: Vec<(ClaimPath, String)>,
    /// What must hold besides.
    pub when: Option<Expression>,
}

/// Where a claim is, as `realm_access.roles`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath(Vec<Box<str>>);

impl ClaimPath {
    /// The members from the outermost on; a name with dots in it, as `https://example.com/roles`, is written in quotes
    /// inside of the text: `"https://example.com/roles".admin`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut segments: Vec<Box<str>> = Vec::new();
        let mut rest = text;
        loop {
            let (segment, after) = match rest.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => rest.split_at(rest.find('.').unwrap_or(rest.len())),
            };
            if segment.is_empty() || segments.len() == DEPTH_MAX {
                return None;
            }
            segments.push(segment.into());
            if after.is_empty() {
                return Some(Self(segments));
            }
            rest = after.strip_prefix('.')?;
        }
    }

    /// What `claims` has there.
    pub fn find<'c>(
        &self,
        claims: &'c serde_json::Map<String, serde_json::Value>,
    ) -> Option<&'c serde_json::Value> {
        let (first, rest) = self.0.split_first()?;
        rest.iter().try_fold(claims.get(&**first)?, |value, name| value.get(&**name))
    }
}

/// One alternative or several.
pub(in crate::config) type RawRequire = OneOrList<RawAlternative>;

/// As typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawAlternative {
    methods: Vec<String>,
    consumers: Vec<String>,
    groups: Vec<String>,
    roles: Vec<String>,
    scopes: Vec<String>,
    claims: Named<String>,
    when: Option<String>,
}

/// What a route asks for whose pattern is `path`; `None` where that could not be read.
pub(super) fn require(raw: &RawRequire, path: Option<&PathPattern>, at: At<'_>) -> Require {
    Require(raw.each(at).filter_map(|(raw, at)| alternative(raw, path, at)).collect())
}

fn alternative(
    raw: &RawAlternative,
    path: Option<&PathPattern>,
    at: At<'_>,
) -> Option<Alternative> {
    let claims = raw.claims.0.iter().enumerate().filter_map(|(index, (path, value))| {
        let at = at.key("claims").entry(index);
        let found = ClaimPath::parse(path);
        if found.is_none() {
            at.on_key().error_with_help(
                format!("`{}` is no path to a claim", shorten(path)),
                "write the names from the outermost on, with dots between: realm_access.roles",
            );
        }
        Some((found?, value.clone()))
    });
    let when = match (&raw.when, path) {
        (Some(text), Some(path)) => Some(expression(text, path, at.key("when"))?),
        _ => None,
    };
    let alternative = Alternative {
        when,
        claims: claims.collect(),
        methods: methods(&raw.methods, at.key("methods"))?,
        consumers: words(&raw.consumers, at.key("consumers")),
        groups: words(&raw.groups, at.key("groups")),
        roles: words(&raw.roles, at.key("roles")),
        scopes: words(&raw.scopes, at.key("scopes")),
    };
    if alternative == Alternative::default() && raw.when.is_none() {
        let help = "name `roles`, `scopes`, `groups`, `consumers`, `claims`, `methods` or `when`";
        at.on_key().error_with_help("this requires nothing", help);
    }
    Some(alternative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_found_by_their_path() {
        let text = r#"{"a": {"b": [1]}, "https://x.y/r": {"c": true}, "s": "t"}"#;
        let claims = serde_json::from_str(text).unwrap();
        let found = |path: &str| ClaimPath::parse(path)?.find(&claims).map(ToString::to_string);
        assert_eq!(found("a.b").unwrap(), "[1]");
        assert_eq!(found(r#""https://x.y/r".c"#).unwrap(), "true");
        assert_eq!(found("s").unwrap(), "\"t\"");
        for none in ["a.c", "s.t", "a.b.0", "x"] {
            assert!(ClaimPath::parse(none).is_some() && found(none).is_none(), "{none}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "\"a", "\"a\"b", "a.b.c.d.e.f.g.h.i"] {
            assert!(ClaimPath::parse(bad).is_none(), "{bad}");
        }
    }
}
