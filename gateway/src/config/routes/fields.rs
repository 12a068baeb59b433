//! Header fields that a route sets, adds and removes. Refuses those that the gateway itself answers for.

use http::{HeaderName, HeaderValue};

use super::HeaderChanges;
use crate::config::at::At;
use crate::config::raw::{Named, RawHeaderChanges};
use crate::config::tree::shorten;

/// Fields that one list may name.
const FIELDS_MAX: usize = 32;
/// Bytes of a value.
const VALUE_BYTES_MAX: usize = 4096;

/// Framing and what is for one hop only.
const FRAMING: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
];
/// Who the client is: whoever could set it could forge it.
const CLIENT: [&str; 2] = ["forwarded", "x-forwarded-for"];

pub(super) fn of_request(raw: &RawHeaderChanges, at: At<'_>) -> HeaderChanges {
    let found = changes(raw, &[&FRAMING[..], &CLIENT].concat(), at);
    let host = |name: &HeaderName| *name == http::header::HOST;
    if found.remove.iter().any(host) || found.add.iter().any(|(name, _)| host(name)) {
        let help = "write `set: {Host: ...}` for the host that the service is to see";
        at.on_key().error_with_help("a request has exactly one header `host`", help);
    }
    found
}

pub(super) fn of_response(raw: &RawHeaderChanges, at: At<'_>) -> HeaderChanges {
    changes(raw, &FRAMING, at)
}

fn changes(raw: &RawHeaderChanges, refused: &[&str], at: At<'_>) -> HeaderChanges {
    let removed = raw.remove.iter().enumerate().filter_map(|(index, name)| {
        let at = at.key("remove").item(index);
        header_name(name, at).filter(|name| may_change(name, refused, at))
    });
    let remove: Vec<_> = removed.collect();
    bound(remove.len(), at.key("remove"));
    HeaderChanges {
        remove,
        set: fields(&raw.set, refused, at.key("set")),
        add: fields(&raw.add, refused, at.key("add")),
    }
}

/// Names and values, without those that are `refused`.
pub(super) fn fields(
    raw: &Named<String>,
    refused: &[&str],
    at: At<'_>,
) -> Vec<(HeaderName, HeaderValue)> {
    bound(raw.0.len(), at);
    let entries = raw.0.iter().enumerate();
    entries
        .filter_map(|(index, (name, text))| {
            let at = at.entry(index);
            let name = header_name(name, at.on_key());
            let name = name.filter(|name| may_change(name, refused, at.on_key()));
            name.zip(value(text, at))
        })
        .collect()
}

/// What the gateway's own answers may not say.
pub(super) fn answer_fields(raw: &Named<String>, at: At<'_>) -> Vec<(HeaderName, HeaderValue)> {
    fields(raw, &FRAMING, at)
}

/// The name of a header field.
pub(in crate::config) fn header_name(text: &str, at: At<'_>) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    if name.is_none() {
        at.error_with_help(
            format!("`{}` is no name of a header field", shorten(text)),
            "write letters, digits and `-`, such as X-Version",
        );
    }
    name
}

/// Letters, digits and the marks that names in HTTP may have.
pub(super) fn is_token(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= 256 && text.bytes().all(good)
}

fn value(text: &str, at: At<'_>) -> Option<HeaderValue> {
    let value = Some(text).filter(|text| text.len() <= VALUE_BYTES_MAX && text.trim() == *text);
    let value = value.and_then(|text| HeaderValue::from_str(text).ok());
    if value.is_none() {
        at.error_with_help(
            format!("`{}` is no value of a header field", shorten(text)),
            format!("write one line of at most {VALUE_BYTES_MAX} bytes, no blanks around it"),
        );
    }
    value
}

fn may_change(name: &HeaderName, refused: &[&str], at: At<'_>) -> bool {
    let refused = refused.contains(&name.as_str());
    if refused {
        at.error_with_help(
            format!("the header `{name}` is the gateway's own"),
            "remove it: the gateway sets it for each request and answer as it must be",
        );
    }
    !refused
}

fn bound(count: usize, at: At<'_>) {
    if count > FIELDS_MAX {
        at.on_key().error_with_help(
            format!("{count} header fields are too many"),
            format!("write at most {FIELDS_MAX}"),
        );
    }
}
