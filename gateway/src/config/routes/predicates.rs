//! `match.headers`, `match.query` and `match.cookies`: what must hold of a request besides host, path and method.

use std::fmt;

use http::HeaderName;
use http::header::HOST;

use super::fields::{header_name, is_token};
use super::{Predicate, Regex, Subject, Wanted};
use crate::config::at::At;
use crate::config::raw::{Named, RawMatch, RawWanted, TextOr};
use crate::config::tree::shorten;

/// Predicates of one route.
const PREDICATES_MAX: usize = 8;
/// Bytes of a regular expression.
const REGEX_BYTES_MAX: usize = 1024;

impl fmt::Display for Predicate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Subject::Header(name) => write!(formatter, "header `{name}` "),
            Subject::Query(name) => write!(formatter, "query parameter `{name}` "),
            Subject::Cookie(name) => write!(formatter, "cookie `{name}` "),
        }?;
        match &self.wanted {
            Wanted::Present(true) => formatter.write_str("is there"),
            Wanted::Present(false) => formatter.write_str("is not there"),
            Wanted::Exact(text) => write!(formatter, "is `{text}`"),
            Wanted::Prefix(text) => write!(formatter, "begins with `{text}`"),
            Wanted::Regex(regex) => write!(formatter, "matches `{}`", regex.as_str()),
        }
    }
}

impl Predicate {
    /// Whether it holds wherever `other` does, as far as can be told.
    pub(super) fn follows_from(&self, other: &Self) -> bool {
        if self.subject != other.subject {
            return false;
        }
        match (&self.wanted, &other.wanted) {
            (one, same) if one == same => true,
            (Wanted::Present(true), other) => *other != Wanted::Present(false),
            (Wanted::Prefix(short), Wanted::Exact(text) | Wanted::Prefix(text)) => {
                text.starts_with(short.as_str())
            }
            (Wanted::Regex(regex), Wanted::Exact(text)) => regex.is_match(text.as_bytes()),
            _ => false,
        }
    }
}

pub(super) fn predicates(raw: &RawMatch, at: At<'_>) -> Option<Vec<Predicate>> {
    let header = |name: &str, at: At<'_>| header(name, at).map(Subject::Header);
    let query = |name: &str, _: At<'_>| Some(Subject::Query(name.to_owned()));
    let cookie = |name: &str, at: At<'_>| cookie_name(name, at).map(Subject::Cookie);
    let mut found = Vec::new();
    let good = read(&raw.headers, header, at.key("headers"), &mut found)
        & read(&raw.query, query, at.key("query"), &mut found)
        & read(&raw.cookies, cookie, at.key("cookies"), &mut found);
    if found.len() > PREDICATES_MAX {
        at.on_key().error_with_help(
            format!("{} conditions are too many for one route", found.len()),
            format!("a route has at most {PREDICATES_MAX} headers, parameters and cookies"),
        );
    }
    good.then_some(found)
}

fn read(
    raw: &Named<TextOr<RawWanted>>,
    subject: impl Fn(&str, At<'_>) -> Option<Subject>,
    at: At<'_>,
    found: &mut Vec<Predicate>,
) -> bool {
    let mut good = true;
    for (index, (name, raw)) in raw.0.iter().enumerate() {
        let at = at.entry(index);
        let subject = subject(name, at.on_key());
        match subject.zip(wanted(raw, at)) {
            Some((subject, wanted)) => found.push(Predicate { subject, wanted }),
            None => good = false,
        }
    }
    good
}

fn header(name: &str, at: At<'_>) -> Option<HeaderName> {
    let name = header_name(name, at)?;
    if name == HOST {
        at.error_with_help("the header `host` is matched by its own key", "write `host: ...`");
        return None;
    }
    Some(name)
}

/// The name of a cookie.
pub(super) fn cookie_name(name: &str, at: At<'_>) -> Option<String> {
    if is_token(name) {
        return Some(name.to_owned());
    }
    at.error_with_help(
        format!("`{}` is no name of a cookie", shorten(name)),
        "write letters, digits, `-` and `_`, such as canary",
    );
    None
}

fn wanted(raw: &TextOr<RawWanted>, at: At<'_>) -> Option<Wanted> {
    let section = match raw {
        TextOr::Text(text) => return Some(Wanted::Exact(text.clone())),
        TextOr::Section(section) => section,
    };
    let regex = |text: &String| regex(text, at.key("regex"));
    let wanted = [
        section.exact.clone().map(|text| Some(Wanted::Exact(text))),
        section.prefix.clone().map(|text| Some(Wanted::Prefix(text))),
        section.regex.as_ref().map(|text| regex(text).map(Wanted::Regex)),
        section.present.map(|present| Some(Wanted::Present(present))),
    ];
    let mut wanted = wanted.into_iter().flatten();
    match (wanted.next(), wanted.next()) {
        (Some(wanted), None) => wanted,
        _ => {
            at.error_with_help(
                "exactly one of `exact`, `prefix`, `regex` and `present` must be given",
                "write one of them, or a text alone for `exact`",
            );
            None
        }
    }
}

fn regex(text: &str, at: At<'_>) -> Option<Regex> {
    if text.len() > REGEX_BYTES_MAX {
        at.error_with_help(
            format!("the expression has {} bytes", text.len()),
            format!("write at most {REGEX_BYTES_MAX}"),
        );
        return None;
    }
    match Regex::new(text) {
        Ok(regex) => Some(regex),
        Err(error) => {
            at.error_with_help(
                format!("`{}` is no regular expression that can be used", shorten(text)),
                error.trim_start_matches("error: ").to_owned(),
            );
            None
        }
    }
}
