//! Which routes were tried, and why each was passed over.

use std::cmp::Reverse;

use http::request::Parts;
use serde::Serialize;

use crate::base::path::Path;
use crate::config::{Config, HostPattern, Route};
use crate::request::target;
use crate::route::{Ask, Candidate, Table};

/// Routes of other hosts, or else of other paths, that are named where none matches.
const OTHERS_MAX: usize = 10;

/// A route, and what became of it.
#[derive(Debug, Serialize)]
pub(super) struct Tried {
    pub(super) route: String,
    /// Whether it is the one.
    pub(super) taken: bool,
    pub(super) verdict: String,
}

/// The routes of the request's host and path in the order in which they are tried, or else those of its path alone, or
/// else those whose paths begin most like it.
pub(super) fn tried(config: &Config, table: &Table, head: &Parts) -> Vec<Tried> {
    let Some(path) = Path::of(head.uri.path()) else { return Vec::new() };
    let ask = Ask {
        method: &head.method,
        host: target::host(head),
        path: &path,
        query: head.uri.query(),
        headers: &head.headers,
    };
    let candidates = table.candidates(&ask);
    if candidates.is_empty() {
        return of_other_hosts(config, &ask);
    }
    let mut is_taken = false;
    let tried = candidates.iter().filter_map(|candidate| {
        let route = config.routes.get(candidate.route)?;
        let verdict = verdict(route, candidate, &ask);
        let taken = verdict.is_none() && !is_taken;
        is_taken |= taken;
        let verdict = match verdict {
            None if taken => "matches".to_owned(),
            None => "matches too, but comes after one that does".to_owned(),
            Some(verdict) => verdict,
        };
        Some(Tried { route: route.name.clone(), taken, verdict })
    });
    tried.collect()
}

/// Why it does not match, if so.
fn verdict(route: &Route, candidate: &Candidate, ask: &Ask<'_>) -> Option<String> {
    if let Some(missed) = candidate.missed {
        let predicate = route.predicates.get(missed)?;
        return Some(format!("no: it asks that {predicate}"));
    }
    if candidate.takes_method {
        return None;
    }
    let methods: Vec<_> = route.methods.iter().map(http::Method::as_str).collect();
    Some(format!("no: it takes {}, not {}", methods.join(", "), ask.method))
}

fn of_other_hosts(config: &Config, ask: &Ask<'_>) -> Vec<Tried> {
    let any_host = |route: &Route| Route { host: HostPattern::Any, ..route.clone() };
    let any_host: Vec<Route> = config.routes.iter().map(any_host).collect();
    let candidates = Table::new(&any_host).candidates(ask);
    let routes = candidates.iter().filter_map(|candidate| config.routes.get(candidate.route));
    let tried = routes.take(OTHERS_MAX).map(|route| Tried {
        route: route.name.clone(),
        taken: false,
        verdict: format!("no: it is for the host {}", route.host),
    });
    let tried: Vec<Tried> = tried.collect();
    if tried.is_empty() { of_other_paths(config, ask) } else { tried }
}

fn of_other_paths(config: &Config, ask: &Ask<'_>) -> Vec<Tried> {
    let asked = ask.path.as_str();
    let mut others: Vec<(usize, String, &Route)> = config
        .routes
        .iter()
        .map(|route| {
            let path = route.path.to_string();
            let same = path.bytes().zip(asked.bytes()).take_while(|(one, other)| one == other);
            (same.count(), path, route)
        })
        .collect();
    others.sort_by_key(|(same, ..)| Reverse(*same));
    let tried = others.into_iter().take(OTHERS_MAX).map(|(_, path, route)| Tried {
        route: route.name.clone(),
        taken: false,
        verdict: format!("no: its path is {path}"),
    });
    tried.collect()
}
