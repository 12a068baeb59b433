//! Whether a predicate holds. Each costs one walk along what it looks at.

use std::borrow::Cow;

use http::header::{COOKIE, HeaderMap};

use super::Ask;
use crate::base::path::decoded;
use crate::config::{Predicate, Subject, Wanted};

/// Whether it holds of the request.
pub(super) fn holds(predicate: &Predicate, ask: &Ask<'_>) -> bool {
    let wanted = |value: &[u8]| is(&predicate.wanted, value);
    let found = match &predicate.subject {
        Subject::Header(name) => {
            ask.headers.get_all(name).iter().any(|value| wanted(value.as_bytes()))
        }
        Subject::Query(name) => parameters(ask.query.unwrap_or_default())
            .any(|(key, value)| form(key).as_ref() == name.as_bytes() && wanted(&form(value))),
        Subject::Cookie(name) => {
            cookies(ask.headers).any(|(key, value)| key == name.as_bytes() && wanted(value))
        }
    };
    found != (predicate.wanted == Wanted::Present(false))
}

/// The first cookie of this name.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    cookies(headers).find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
}

fn is(wanted: &Wanted, value: &[u8]) -> bool {
    match wanted {
        // Whatever is there is what must not be there: turned round by the caller.
        Wanted::Present(_) => true,
        Wanted::Exact(text) => value == text.as_bytes(),
        Wanted::Prefix(text) => value.starts_with(text.as_bytes()),
        Wanted::Regex(regex) => regex.is_match(value),
    }
}

/// Names and values of a query as they were sent.
fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// A name or value of a query, decoded as forms are: `+` is a blank.
fn form(text: &str) -> Cow<'_, [u8]> {
    if !text.bytes().any(|byte| byte == b'+' || byte == b'%') {
        return text.as_bytes().into();
    }
    decoded(&text.replace('+', " ")).into_owned().into()
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let lines = headers.get_all(COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(|pair| {
        let pair = pair.trim_ascii();
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        Some((pair.get(..equals)?, pair.get(equals + 1..)?))
    })
}
