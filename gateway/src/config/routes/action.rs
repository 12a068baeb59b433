//! What a route does: `upstream` with `sticky` and `rewrite`, `redirect`, or `respond`.

use std::collections::HashMap;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};

use super::fields::{answer_fields, header_name};
use super::predicates::cookie_name;
use super::template;
use super::{Action, Forward, Redirect, Respond, Sticky, Timeouts, WeightedUpstream};
use crate::config::Upstream;
use crate::config::at::At;
use crate::config::bounds::body_bytes;
use crate::config::diagnostic::suggestion;
use crate::config::raw::{
    RawRedirect, RawRespond, RawRoute, RawRouteTimeout, RawSticky, RawTargets, TextOr,
    weight as default_weight,
};
use crate::config::tree::shorten;
use crate::config::value::{count, duration};

/// Upstreams of one route.
const TARGETS_MAX: usize = 32;
const WEIGHT_MAX: u64 = 1_000_000;
/// Bytes of an answer of the gateway's own.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The upstreams of the file by name.
pub(super) struct Upstreams<'c> {
    all: &'c [Upstream],
    indices: HashMap<&'c str, usize>,
}

impl<'c> Upstreams<'c> {
    pub(super) fn new(all: &'c [Upstream]) -> Self {
        let indices = all.iter().enumerate().map(|(index, one)| (one.name.as_str(), index));
        Self { all, indices: indices.collect() }
    }

    fn find(&self, name: &str, at: At<'_>) -> Option<usize> {
        let found = self.indices.get(name).copied();
        if found.is_none() {
            let message = format!("there is no upstream `{}`", shorten(name));
            match suggestion(name, self.all.iter().map(|upstream| upstream.name.as_str())) {
                Some(help) => at.error_with_help(message, help),
                None => at.error_with_help(message, "add it to `upstreams`"),
            }
        }
        found
    }
}

/// What a route does; `captures` are the names in its path, if that could be read.
pub(super) fn action(
    raw: &RawRoute,
    captures: Option<&[&str]>,
    upstreams: &Upstreams<'_>,
    at: At<'_>,
) -> Option<Action> {
    let given = [
        ("upstream", raw.upstream.is_some()),
        ("redirect", raw.redirect.is_some()),
        ("respond", raw.respond.is_some()),
    ];
    let mut given = given.iter().filter(|(_, given)| *given).map(|(key, _)| *key);
    let Some(first) = given.next() else {
        if ["upstream", "redirect", "respond"].iter().any(|key| at.key(key).is_hole()) {
            return None;
        }
        let help = "add `upstream: NAME`, `redirect: {to: ...}` or `respond: {...}`";
        at.error_with_help("the route says nothing about what to do", help);
        return None;
    };
    for other in given {
        at.key(other).on_key().error_with_help(
            format!("`{other}` cannot stand beside `{first}`"),
            "a route does one of `upstream`, `redirect` and `respond`: remove the others",
        );
    }
    if raw.upstream.is_none() {
        for key in ["sticky", "rewrite", "body_bytes", "timeout", "request_headers"] {
            only_with_upstream(raw, key, at.key(key));
        }
    }
    match (&raw.upstream, &raw.redirect, &raw.respond) {
        (Some(targets), ..) => forward(raw, targets, captures, upstreams, at).map(Action::Forward),
        (_, Some(raw), _) => redirect(raw, captures, at.key("redirect")).map(Action::Redirect),
        (.., Some(raw)) => respond(raw, at.key("respond")).map(Action::Respond),
        _ => None,
    }
}

fn only_with_upstream(raw: &RawRoute, key: &str, at: At<'_>) {
    let headers = &raw.request_headers;
    let given = match key {
        "sticky" => raw.sticky.is_some(),
        "rewrite" => raw.rewrite.is_some(),
        "body_bytes" => raw.body_bytes.is_some(),
        "timeout" => raw.timeout.is_some(),
        _ => !(headers.set.0.is_empty() && headers.add.0.is_empty() && headers.remove.is_empty()),
    };
    if given {
        let message = format!("`{key}` means nothing without `upstream`");
        at.on_key().error_with_help(message, "remove it: no service sees the request");
    }
}

fn forward(
    raw: &RawRoute,
    targets_raw: &RawTargets,
    captures: Option<&[&str]>,
    upstreams: &Upstreams<'_>,
    at: At<'_>,
) -> Option<Forward> {
    let targets = targets(targets_raw, upstreams, at.key("upstream"));
    let sticky = raw.sticky.as_ref().map(|raw| sticky(raw, at.key("sticky")));
    if sticky.is_some() && matches!(targets_raw, RawTargets::One(_)) {
        at.key("sticky").on_key().error_with_help(
            "`sticky` means nothing with one upstream",
            "write several, such as: upstream: [{name: new, weight: 5}, {name: old, weight: 95}]",
        );
    }
    if matches!(sticky, Some(Some(Sticky::Consumer))) && raw.auth.is_none() {
        at.key("sticky").error_with_help(
            "nobody is known on this route, so all would go by chance",
            "add `auth: NAME` to the route, or write {cookie: NAME}, {header: NAME} or client_address",
        );
    }
    let rewrite = raw.rewrite.as_ref().zip(captures);
    let rewrite = rewrite.map(|(text, names)| template::rewrite(text, names, at.key("rewrite")));
    let body_bytes = raw.body_bytes.as_ref().map(|text| body_bytes(text, at.key("body_bytes")));
    Some(Forward {
        upstreams: targets?,
        sticky: sticky.unwrap_or(Some(Sticky::ClientAddress)).filter(|_| raw.sticky.is_some()),
        rewrite: rewrite.flatten(),
        body_bytes: body_bytes.flatten(),
        timeouts: raw
            .timeout
            .as_ref()
            .map(|raw| timeouts(raw, at.key("timeout")))
            .unwrap_or_default(),
    })
}

fn timeouts(raw: &RawRouteTimeout, at: At<'_>) -> Timeouts {
    let time = |raw: &Option<String>, key| duration(raw.as_ref()?, at.key(key));
    Timeouts {
        connect: time(&raw.connect, "connect"),
        response: time(&raw.response, "response"),
        whole: time(&raw.whole, "whole"),
        stream_idle: time(&raw.stream_idle, "stream_idle"),
    }
}

fn targets(
    raw: &RawTargets,
    upstreams: &Upstreams<'_>,
    at: At<'_>,
) -> Option<Vec<WeightedUpstream>> {
    let list = match raw {
        RawTargets::One(name) => {
            let upstream = upstreams.find(name, at)?;
            return Some(vec![WeightedUpstream { upstream, name: name.clone(), weight: 1 }]);
        }
        RawTargets::Several(list) => list,
    };
    if list.is_empty() || list.len() > TARGETS_MAX {
        at.on_key().error_with_help(
            format!("a route with {} upstreams cannot be", list.len()),
            format!("name 1 to {TARGETS_MAX}"),
        );
        return None;
    }
    let mut found: Vec<WeightedUpstream> = Vec::new();
    let mut good = true;
    for (index, raw) in list.iter().enumerate() {
        let at = at.item(index);
        let (name, weight, name_at) = match raw {
            TextOr::Text(name) => (name, default_weight(), at),
            TextOr::Section(raw) => (&raw.name, raw.weight, at.key("name")),
        };
        let weight = count(weight, 0..=WEIGHT_MAX, at.key("weight"));
        let weight = weight.and_then(|weight| u32::try_from(weight).ok());
        let Some((upstream, weight)) = upstreams.find(name, name_at).zip(weight) else {
            good = false;
            continue;
        };
        if found.iter().any(|target| target.upstream == upstream) {
            name_at.error_with_help(
                format!("the upstream `{}` is given twice", shorten(name)),
                "add their weights and remove one of the two",
            );
        }
        found.push(WeightedUpstream { upstream, name: name.clone(), weight });
    }
    if good && found.iter().all(|target| target.weight == 0) {
        let help = "give at least one of them a weight above 0";
        at.on_key().error_with_help("no upstream of this route would get a request", help);
    }
    good.then_some(found)
}

fn sticky(raw: &TextOr<RawSticky>, at: At<'_>) -> Option<Sticky> {
    match raw {
        TextOr::Text(text) if text == "client_address" => Some(Sticky::ClientAddress),
        TextOr::Text(text) if text == "consumer" => Some(Sticky::Consumer),
        TextOr::Section(RawSticky { cookie: Some(name), header: None }) => {
            cookie_name(name, at.key("cookie")).map(Sticky::Cookie)
        }
        TextOr::Section(RawSticky { cookie: None, header: Some(name) }) => {
            header_name(name, at.key("header")).map(Sticky::Header)
        }
        _ => {
            at.error_with_help(
                "`sticky` is one of four things",
                "write {cookie: NAME}, {header: NAME}, client_address or consumer",
            );
            None
        }
    }
}

fn redirect(raw: &RawRedirect, captures: Option<&[&str]>, at: At<'_>) -> Option<Redirect> {
    let status = u16::try_from(raw.status)
        .ok()
        .filter(|status| matches!(status, 301 | 302 | 303 | 307 | 308));
    if status.is_none() {
        at.key("status").error_with_help(
            format!("{} is no status of a redirect", raw.status),
            "write 307 or 302 for now, 308 or 301 for good, 303 for another page by GET",
        );
    }
    let to = template::redirect(&raw.to, captures?, at.key("to"));
    Some(Redirect { status: StatusCode::from_u16(status?).ok()?, to: to? })
}

fn respond(raw: &RawRespond, at: At<'_>) -> Option<Respond> {
    let status = count(raw.status, 200..=599, at.key("status"));
    let status = status.and_then(|status| u16::try_from(status).ok());
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let mut headers = answer_fields(&raw.headers, at.key("headers"));
    if raw.body.len() > BODY_BYTES_MAX {
        at.key("body").on_key().error_with_help(
            format!("the body has {} bytes", raw.body.len()),
            format!("write at most {BODY_BYTES_MAX}; a service can answer more"),
        );
    }
    if !raw.body.is_empty() {
        if matches!(raw.status, 204 | 205 | 304) {
            let message = format!("an answer with status {} has no body", raw.status);
            at.key("body").on_key().error_with_help(message, "remove it, or write another status");
        }
        if headers.iter().all(|(name, _)| *name != CONTENT_TYPE) {
            let text = HeaderValue::from_static("text/plain; charset=utf-8");
            headers.push((CONTENT_TYPE, text));
        }
    }
    Some(Respond { status: status?, headers, body: Bytes::from(raw.body.clone()) })
}
