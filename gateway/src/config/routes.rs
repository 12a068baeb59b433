//! `routes`: which requests go where. Refuses a route that an earlier one leaves nothing for.

use std::collections::HashMap;

use http::Method;

use super::at::At;
use super::diagnostic::{did_you_mean, suggestion};
use super::pattern;
use super::raw::RawRoute;
use super::tree::shorten;
use super::value::name;
use super::{PathPattern, Route, Segment, Upstream};

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];

pub(super) fn routes(raw: &[RawRoute], upstreams: &[Upstream], at: At<'_>) -> Vec<Route> {
    let indices: HashMap<&str, usize> =
        upstreams.iter().enumerate().map(|(index, one)| (one.name.as_str(), index)).collect();
    let mut taken = Taken::default();
    let mut found = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let at = at.item(index);
        let upstream = indices.get(raw.upstream.as_str()).copied();
        if upstream.is_none() {
            unknown_upstream(&raw.upstream, upstreams, at.key("upstream"));
        }
        let pattern = at.key("match");
        let path = pattern::path(&raw.pattern.path, pattern.key("path"));
        let host = raw.pattern.host.as_deref().map(|text| host(text, pattern.key("host")));
        let methods = methods(&raw.pattern.methods, pattern.key("methods"));
        let (Some(path), Some(methods)) = (path, methods) else { continue };
        if host == Some(None) {
            continue;
        }
        let host = host.flatten();
        let name = route_name(raw, host.as_deref(), &path, &methods, at);
        let upstream_index = upstream.unwrap_or_default();
        let priority = raw.priority;
        let route = Route { name, host, path, methods, upstream: upstream_index, priority };
        taken.check(&route, raw.name.is_some(), at);
        if upstream.is_some() {
            found.push(route);
        }
    }
    found
}

fn unknown_upstream(name: &str, upstreams: &[Upstream], at: At<'_>) {
    let message = format!("there is no upstream `{}`", shorten(name));
    match suggestion(name, upstreams.iter().map(|upstream| upstream.name.as_str())) {
        Some(help) => at.error_with_help(message, help),
        None => at.error_with_help(message, "add it to `upstreams`"),
    }
}

/// A host in lower case, without a port or a final dot.
fn host(text: &str, at: At<'_>) -> Option<String> {
    let shown = shorten(text);
    let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bracketed.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()) {
        return Some(host);
    }
    let label = |label: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(good)
    };
    if host.len() <= 253 && host.split('.').all(label) {
        return Some(host);
    }
    let help = if host.contains('*') {
        "there are no wildcards for hosts: leave `host` out for any host".to_owned()
    } else if let Some((name, _)) = host.split_once("://") {
        format!("write the host alone, without `{name}://` and path")
    } else if let Some((name, _)) = host.split_once(':').filter(|(name, _)| !name.is_empty()) {
        format!("write it without the port: {}", shorten(name))
    } else {
        "write a host name such as api.example.com, other alphabets in punycode".to_owned()
    };
    at.error_with_help(format!("`{shown}` is no host"), help);
    None
}

pub(super) fn methods(raw: &[String], at: At<'_>) -> Option<Vec<Method>> {
    let mut found: Vec<Method> = Vec::new();
    let mut good = true;
    for (index, text) in raw.iter().enumerate() {
        let at = at.item(index);
        match method(text) {
            Ok(method) if found.contains(&method) => {
                at.error_with_help(format!("`{method}` is given twice"), "remove one of the two");
            }
            Ok(method) => found.push(method),
            Err(help) => {
                at.error_with_help(format!("`{}` is no method", shorten(text)), help);
                good = false;
            }
        }
    }
    good.then_some(found)
}

fn method(text: &str) -> Result<Method, String> {
    if text == "CONNECT" {
        return Err("the gateway makes no tunnels: remove it".to_owned());
    }
    if METHODS.contains(&text) {
        return Method::from_bytes(text.as_bytes()).map_err(|error| error.to_string());
    }
    let extension = text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    match did_you_mean(text, METHODS) {
        Some(known) => Err(format!("did you mean `{known}`?")),
        None if extension && !text.is_empty() && text.len() <= 32 => {
            Method::from_bytes(text.as_bytes()).map_err(|error| error.to_string())
        }
        None => Err(format!("write one in capitals, such as {}", METHODS.join(", "))),
    }
}

fn route_name(
    raw: &RawRoute,
    host: Option<&str>,
    path: &PathPattern,
    methods: &[Method],
    at: At<'_>,
) -> String {
    if let Some(own) = &raw.name {
        name(own, "a route", at.key("name"));
        return own.clone();
    }
    let methods: Vec<&str> = methods.iter().map(Method::as_str).collect();
    let space = if methods.is_empty() { "" } else { " " };
    format!("{}{space}{}{path}", methods.join(","), host.unwrap_or_default())
}

/// Host and pattern without names: what a route matches, but for its methods.
type Shape = (Option<String>, String);

/// What earlier routes have taken, each with its line.
#[derive(Default)]
struct Taken {
    names: HashMap<String, usize>,
    /// The methods, `None` for all of them.
    shapes: HashMap<Shape, Vec<(Option<Method>, usize)>>,
}

impl Taken {
    fn check(&mut self, route: &Route, own_name: bool, at: At<'_>) {
        let shape = (route.host.clone(), shape(&route.path));
        let taken = self.shapes.entry(shape).or_default();
        let all = taken.iter().find(|(method, _)| method.is_none()).map(|(_, line)| *line);
        let by = |method: &Method| {
            let same = taken.iter().find(|(other, _)| other.as_ref() == Some(method));
            same.map(|(_, line)| *line).or(all)
        };
        let lines: Option<Vec<usize>> = route.methods.iter().map(by).collect();
        // An empty list of methods is every method, so only a route without methods covers it.
        let covering =
            if route.methods.is_empty() { all } else { lines.and_then(|l| l.last().copied()) };
        if let Some(line) = covering {
            at.key("match").key("path").error_with_help(
                format!("this route never matches: `{}` is taken before", route.path),
                format!("the earlier route is in line {line}: remove one of the two"),
            );
            return;
        }
        let line = at.key("match").key("path").line();
        if route.methods.is_empty() {
            taken.push((None, line));
        }
        taken.extend(route.methods.iter().map(|method| (Some(method.clone()), line)));
        if let Some(line) = self.names.insert(route.name.clone(), line)
            && own_name
        {
            at.key("name").error_with_help(
                format!("the name `{}` is given twice", shorten(&route.name)),
                format!("the first is in the route of line {line}: choose another name"),
            );
        }
    }
}

/// The pattern without the names of its captures: what it matches.
fn shape(path: &PathPattern) -> String {
    let mut shape = String::new();
    for segment in &path.segments {
        match segment {
            Segment::Literal(text) => shape.extend(["/", text]),
            Segment::Capture(_) => shape.push_str("/{}"),
        }
    }
    if path.rest.is_some() {
        shape.push_str("/{*}");
    }
    shape
}
