//! Where in a request a credential is.

use http::HeaderName;
use http::header::AUTHORIZATION;
use serde::Deserialize;

use crate::config::at::At;
use crate::config::tree::shorten;

/// Where a credential is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialPlace {
    /// In a header field, after the name of a scheme and a space if there is one.
    Header(HeaderName, Option<String>),
    /// In the cookie of this name.
    Cookie(String),
    /// In the parameter of the query with this name.
    Query(String),
}

/// As typed: exactly one of `header`, `cookie` and `query`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawPlace {
    header: Option<String>,
    /// Default: `Bearer` in the field `Authorization`, none in others.
    scheme: Option<String>,
    cookie: Option<String>,
    query: Option<String>,
}

const HELP: &str = "write one of {header: Authorization}, {cookie: NAME} and {query: NAME}";

impl CredentialPlace {
    /// The field `Authorization`, scheme Bearer (RFC 6750, section 2.1).
    pub(super) fn bearer() -> Self {
        Self::Header(AUTHORIZATION, Some("Bearer".to_owned()))
    }
}

pub(super) fn place(raw: &RawPlace, at: At<'_>) -> Option<CredentialPlace> {
    let RawPlace { header, scheme, cookie, query } = raw;
    if scheme.is_some() && header.is_none() {
        let at = at.key("scheme").on_key();
        at.error_with_help("a scheme is only in a header field", "add `header`, or remove it");
    }
    match (header, cookie, query) {
        (Some(name), None, None) => {
            let name = field(name, at.key("header"))?;
            let scheme = match scheme {
                Some(scheme) if token(scheme) => Some(scheme.clone()),
                Some(scheme) => {
                    let message = format!("`{}` is no name of a scheme", shorten(scheme));
                    at.key("scheme").error_with_help(message, "write one such as Bearer");
                    None
                }
                None => (name == AUTHORIZATION).then(|| "Bearer".to_owned()),
            };
            Some(CredentialPlace::Header(name, scheme))
        }
        (None, Some(name), None) => {
            if token(name) {
                return Some(CredentialPlace::Cookie(name.clone()));
            }
            let message = format!("`{}` is no name of a cookie", shorten(name));
            at.key("cookie").error_with_help(message, "write one such as session");
            None
        }
        (None, None, Some(name)) => {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            if !name.is_empty() && name.bytes().all(plain) {
                return Some(CredentialPlace::Query(name.clone()));
            }
            let message = format!("`{}` is no name of a parameter", shorten(name));
            at.key("query").error_with_help(message, "write one such as access_token");
            None
        }
        _ => {
            at.error_with_help("a credential is in one place", HELP);
            None
        }
    }
}

fn field(text: &str, at: At<'_>) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    if name.is_none() {
        let message = format!("`{}` is no name of a header field", shorten(text));
        at.error_with_help(message, "write one such as Authorization");
    }
    name
}

/// RFC 9110, section 5.6.2.
fn token(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= 128 && text.bytes().all(good)
}
