//! Which route a request takes: by host, path and method.
//!
//! A route matches when all that it asks for holds. Of those that match, one of the request's host goes before one of
//! any host; then the more specific path, compared segment by segment: literal before capture before rest; then the
//! earlier in the file. If routes match but for the method, the request is refused with the methods that they take.
//!
//! Paths are matched as received, without decoding. So that no service behind the gateway can take a path for another
//! one than was routed, whatever a common normalizer would change the segments of is refused: dot segments, empty
//! segments, backslashes and control characters, plain or percent-encoded; `%2F` counts as a slash for this, and the
//! parameters after `;` do not hide a dot segment. `%2F` elsewhere is a part of its segment.

mod path;
mod table;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;

use http::Method;
use thiserror::Error;

use self::table::Paths;
use crate::config::Route;

/// All routes, made once per configuration. Looking one up takes a hash per segment, however many there are.
#[derive(Clone, Debug, Default)]
pub struct Table {
    hosts: HashMap<Box<str>, Paths>,
    any_host: Paths,
}

/// A request that has a route. Only [`Table::find`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    route: usize,
    upstream: usize,
}

/// Why a request has no route.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// 400: a path that the gateway and the service could read differently.
    #[error("the path has dot segments, empty segments, backslashes or control characters")]
    BadPath,
    /// 404: no route matches host and path.
    #[error("no route matches")]
    NotFound,
    /// 405: routes match host and path, none of them the method.
    #[error("no route matches the method")]
    MethodNotAllowed {
        /// What the header `Allow` says, each once, in alphabetical order.
        allow: Vec<Method>,
    },
}

impl Table {
    /// A table of the routes of a configuration.
    pub fn new(routes: &[Route]) -> Self {
        let mut table = Self::default();
        for (index, route) in routes.iter().enumerate() {
            let paths = match &route.host {
                Some(host) => table.hosts.entry(host.as_str().into()).or_default(),
                None => &mut table.any_host,
            };
            let routed = Routed { route: index, upstream: route.upstream };
            paths.insert(&route.path, &route.methods, routed);
        }
        table
    }

    /// The route of a request: `host` as in its `Host` header or authority, `path` without the query.
    pub fn find(&self, method: &Method, host: Option<&str>, path: &str) -> Result<Routed, Refused> {
        if !path::is_plain(path) {
            return Err(Refused::BadPath);
        }
        let of_host = host.and_then(|host| self.hosts.get(name_of(host).as_ref()));
        let candidates = || of_host.into_iter().chain([&self.any_host]);
        candidates()
            .find_map(|paths| paths.find(path, method))
            .ok_or_else(|| refused(candidates(), path))
    }
}

impl Routed {
    /// Index in [`crate::config::Config::routes`].
    pub fn route(self) -> usize {
        self.route
    }

    /// Index in [`crate::config::Config::upstreams`].
    pub fn upstream(self) -> usize {
        self.upstream
    }
}

fn refused<'t>(candidates: impl Iterator<Item = &'t Paths>, path: &str) -> Refused {
    let mut allow = Vec::new();
    candidates.for_each(|paths| paths.methods(path, &mut allow));
    if allow.is_empty() {
        return Refused::NotFound;
    }
    allow.sort_by(|one, other| one.as_str().cmp(other.as_str()));
    allow.dedup();
    Refused::MethodNotAllowed { allow }
}

/// A host as configured: lower case, no port, no final dot.
fn name_of(host: &str) -> Cow<'_, str> {
    let name = match host.rfind(':') {
        // In `[::1]` the last colon is the address's own.
        Some(colon) if !host.get(colon..).is_some_and(|rest| rest.contains(']')) => {
            host.get(..colon).unwrap_or(host)
        }
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}
