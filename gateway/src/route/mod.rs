//! Which route a request takes: by host, path, method, header, query and cookie; and which of its upstreams.
//!
//! A route matches when all that it asks for holds. Of those that match, one of the request's host goes before one of a
//! wildcard, the longest first, and that before one of any host; then the more specific path, compared segment by
//! segment: literal before capture before rest; then the earlier in the file. If routes match but for the method, the
//! request is refused with the methods that they take.
//!
//! Paths are matched in their normal form ([`Path`]), segment by segment as they decode: `%40` is `@`. What is left to
//! servers to read in two ways – `%2F` as a slash or not, `;` as the end of a segment or not – must lead to the same
//! route either way, unless the route says otherwise.

mod destination;
mod predicate;
mod table;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;

use http::{HeaderMap, Method};
use thiserror::Error;

pub use self::destination::Destination;
use self::table::Paths;
use crate::base::path::{Path, Reading};
use crate::config::{Ambiguity, HostPattern, Route};

/// Bytes of the longest name of a host (RFC 1035, section 3.1).
const HOST_BYTES_MAX: usize = 253;

/// All routes, made once per configuration. Looking one up takes a hash per segment, however many there are.
#[derive(Clone, Debug, Default)]
pub struct Table {
    hosts: HashMap<Box<str>, Paths>,
    /// By what follows the `*`.
    wildcards: HashMap<Box<str>, Paths>,
    /// The dots of the longest wildcard.
    wildcard_dots_max: usize,
    any_host: Paths,
    /// By route.
    ambiguities: Box<[Ambiguities]>,
}

#[derive(Clone, Copy, Debug)]
struct Ambiguities {
    slashes: Ambiguity,
    parameters: Ambiguity,
}

/// What a route is looked up by.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The method.
    pub method: &'a Method,
    /// As in the header `Host` or the authority.
    pub host: Option<&'a str>,
    /// The path.
    pub path: &'a Path<'a>,
    /// What follows the `?`.
    pub query: Option<&'a str>,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

/// A request that has a route. Only [`Table::find`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    route: usize,
}

/// Why a request has no route.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// 400: a path that the gateway and the service could read differently.
    #[error("the path can be read as that of another route")]
    Ambiguous {
        /// How a service may read it.
        reading: Reading,
    },
    /// 404: no route matches.
    #[error("no route matches")]
    NotFound,
    /// 405: routes match but for the method.
    #[error("no route matches the method")]
    MethodNotAllowed {
        /// What the header `Allow` says, each once, in alphabetical order.
        allow: Vec<Method>,
    },
}

/// A route whose host and path match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Index in [`crate::config::Config::routes`].
    pub route: usize,
    /// Whether it takes the method.
    pub takes_method: bool,
    /// The first of its predicates that does not hold.
    pub missed: Option<usize>,
}

impl Table {
    /// A table of the routes of a configuration.
    pub fn new(routes: &[Route]) -> Self {
        let mut table = Self::default();
        for (index, route) in routes.iter().enumerate() {
            let paths = match &route.host {
                HostPattern::Exact(host) => table.hosts.entry(host.as_str().into()).or_default(),
                HostPattern::Wildcard(suffix) => {
                    let dots = suffix.matches('.').count();
                    table.wildcard_dots_max = table.wildcard_dots_max.max(dots);
                    table.wildcards.entry(suffix.as_str().into()).or_default()
                }
                HostPattern::Any => &mut table.any_host,
            };
            paths.insert(route, index);
        }
        let ambiguities = routes.iter().map(|route| Ambiguities {
            slashes: route.encoded_slash,
            parameters: route.path_parameters,
        });
        table.ambiguities = ambiguities.collect();
        table
    }

    /// The route of a request.
    pub fn find(&self, ask: &Ask<'_>) -> Result<Routed, Refused> {
        let route = self.first(ask).ok_or_else(|| self.refused(ask))?;
        let ambiguity = ask.path.ambiguity();
        if ambiguity.slashes || ambiguity.parameters {
            self.check_readings(ask, route, ambiguity)?;
        }
        Ok(Routed { route })
    }

    /// Every route of the host and path of a request, in the order in which they are tried.
    pub fn candidates(&self, ask: &Ask<'_>) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        self.each_host(ask.host, |paths| -> Option<()> {
            paths.each(ask.path, |ending| -> Option<()> {
                candidates.push(Candidate {
                    route: ending.route,
                    takes_method: ending.takes(ask.method),
                    missed: ending.predicates.iter().position(|one| !predicate::holds(one, ask)),
                });
                None
            })
        });
        candidates
    }

    fn first(&self, ask: &Ask<'_>) -> Option<usize> {
        self.each_host(ask.host, |paths| {
            paths.each(ask.path, |ending| {
                let found = ending.takes(ask.method) && ending.holds(ask);
                found.then_some(ending.route)
            })
        })
    }

    fn refused(&self, ask: &Ask<'_>) -> Refused {
        let mut allow = Vec::new();
        self.each_host(ask.host, |paths| -> Option<()> {
            paths.each(ask.path, |ending| -> Option<()> {
                if ending.holds(ask) {
                    allow.extend_from_slice(&ending.methods);
                }
                None
            })
        });
        if allow.is_empty() {
            return Refused::NotFound;
        }
        allow.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        allow.dedup();
        Refused::MethodNotAllowed { allow }
    }

    /// Refuses a path that leads elsewhere when it is read as some servers do.
    fn check_readings(
        &self,
        ask: &Ask<'_>,
        route: usize,
        ambiguity: Reading,
    ) -> Result<(), Refused> {
        let settings = self.ambiguities.get(route).copied();
        let (slashes, parameters) = settings
            .map_or((Ambiguity::Refuse, Ambiguity::Refuse), |settings| {
                (settings.slashes, settings.parameters)
            });
        let refused = Reading {
            slashes: ambiguity.slashes && slashes == Ambiguity::Refuse,
            parameters: ambiguity.parameters && parameters == Ambiguity::Refuse,
        };
        if refused.slashes || refused.parameters {
            return Err(Refused::Ambiguous { reading: refused });
        }
        let slashes = ambiguity.slashes && slashes == Ambiguity::SameRoute;
        let parameters = ambiguity.parameters && parameters == Ambiguity::SameRoute;
        let readings = [(slashes, false), (false, parameters), (slashes, parameters)];
        for (slashes, parameters) in readings {
            if !slashes && !parameters {
                continue;
            }
            let reading = Reading { slashes, parameters };
            let path = ask.path.read(reading);
            let other = path.and_then(|path| self.first(&Ask { path: &path, ..*ask }));
            if other != Some(route) {
                return Err(Refused::Ambiguous { reading });
            }
        }
        Ok(())
    }

    /// Shows `visit` the routes of each host that matches, the most specific first, until it has an answer.
    fn each_host<T>(
        &self,
        host: Option<&str>,
        mut visit: impl FnMut(&Paths) -> Option<T>,
    ) -> Option<T> {
        let name = host.map(name_of);
        let named = name.as_deref().filter(|_| !self.hosts.is_empty());
        let exact = named.and_then(|name| self.hosts.get(name));
        if let Some(found) = exact.and_then(&mut visit) {
            return Some(found);
        }
        let name = name.as_deref().filter(|name| name.len() <= HOST_BYTES_MAX);
        if let Some(name) = name.filter(|_| !self.wildcards.is_empty()) {
            let dots = name.matches('.').count();
            let long = dots.saturating_sub(self.wildcard_dots_max);
            let suffixes = name.match_indices('.').skip(long).filter(|(index, _)| *index > 0);
            let suffixes = suffixes.filter_map(|(index, _)| name.get(index..));
            let found =
                suffixes.filter_map(|suffix| self.wildcards.get(suffix)).find_map(&mut visit);
            if found.is_some() {
                return found;
            }
        }
        visit(&self.any_host)
    }
}

impl Routed {
    /// Index in [`crate::config::Config::routes`].
    pub fn route(self) -> usize {
        self.route
    }
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
