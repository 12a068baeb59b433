//! `routes`: which requests go where, and what becomes of them. Refuses a route that an earlier one leaves nothing for.

mod action;
mod fields;
mod host;
mod methods;
mod pattern;
mod predicates;
mod taken;
mod template;
mod types;

#[cfg(test)]
mod tests;

pub use self::types::{
    Action, Ambiguity, Forward, HeaderChanges, HostPattern, Part, PathPattern, Predicate, Redirect,
    Regex, Respond, Route, Segment, Sticky, Subject, Template, Timeouts, Wanted, WeightedUpstream,
};

pub(super) use self::fields::header_name;
pub(super) use self::methods::methods;

use http::Method;

use self::action::Upstreams;
use self::taken::Taken;
use super::at::At;
use super::auth::{self, RawAuthenticator};
use super::forms::Named;
use super::limits;
use super::raw::{RawAmbiguity, RawMatch, RawRoute};
use super::{Authenticator, Upstream};
use crate::base::path::Path;

/// What a route matches.
struct Match {
    host: HostPattern,
    path: PathPattern,
    methods: Vec<Method>,
    predicates: Vec<Predicate>,
}

/// What routes refer to.
#[derive(Clone, Copy)]
pub(super) struct Around<'c> {
    pub(super) upstreams: &'c [Upstream],
    pub(super) auth: (&'c [Authenticator], &'c Named<RawAuthenticator>),
}

pub(super) fn routes(
    raw: &[RawRoute],
    around: Around<'_>,
    limits: &mut limits::Reader<'_>,
    at: At<'_>,
) -> Vec<Route> {
    let upstreams = Upstreams::new(around.upstreams);
    let mut taken = Taken::default();
    let routes = raw.iter().enumerate();
    let route = |(index, raw)| {
        let at = at.item(index);
        let route = route(raw, &upstreams, &mut taken, at);
        let access = auth::access(raw, route.as_ref().map(|route| &route.path), around.auth, at);
        let cost = limits::cost(raw, at);
        let prefix = route.as_ref().map(|route| &*route.name).unwrap_or_default();
        let list = limits::List { prefix, per: None, cost };
        let limits = limits.list(&raw.limits, list, at.key("limits"));
        Some(Route { access, limits, cost, ..route? })
    };
    routes.filter_map(route).collect()
}

/// Reads all of a route before it gives up, so that every mistake is found.
fn route(
    raw: &RawRoute,
    upstreams: &Upstreams<'_>,
    taken: &mut Taken,
    at: At<'_>,
) -> Option<Route> {
    let pattern = matching(&raw.pattern, at.key("match"));
    let captures = pattern.as_ref().map(|pattern| pattern.path.captures().collect::<Vec<_>>());
    let action = action::action(raw, captures.as_deref(), upstreams, at);
    let request_headers = fields::of_request(&raw.request_headers, at.key("request_headers"));
    let response_headers = fields::of_response(&raw.response_headers, at.key("response_headers"));
    let pattern = pattern?;
    check_ambiguity(raw, &pattern.path, at.key("match").key("path"));
    let name = taken.name(raw.name.as_deref(), &pattern, at);
    taken.check(&pattern, at.key("match").key("path"));
    let Match { host, path, methods, predicates } = pattern;
    Some(Route {
        name,
        host,
        path,
        methods,
        predicates,
        encoded_slash: ambiguity(raw.encoded_slash),
        path_parameters: ambiguity(raw.path_parameters),
        priority: raw.priority,
        access: None,
        limits: Vec::new(),
        cost: 1,
        action: action?,
        request_headers,
        response_headers,
    })
}

fn matching(raw: &RawMatch, at: At<'_>) -> Option<Match> {
    let path = pattern::path(&raw.path, at.key("path"));
    let host = match &raw.host {
        Some(text) => host::host(text, at.key("host")),
        None => Some(HostPattern::Any),
    };
    let methods = methods(&raw.methods, at.key("methods"));
    let predicates = predicates::predicates(raw, at);
    Some(Match { host: host?, path: path?, methods: methods?, predicates: predicates? })
}

fn ambiguity(raw: RawAmbiguity) -> Ambiguity {
    match raw {
        RawAmbiguity::SameRoute => Ambiguity::SameRoute,
        RawAmbiguity::Keep => Ambiguity::Keep,
        RawAmbiguity::Refuse => Ambiguity::Refuse,
    }
}

/// A pattern that has what its route refuses would never match.
fn check_ambiguity(raw: &RawRoute, path: &PathPattern, at: At<'_>) {
    let literals = path.segments.iter().filter_map(|segment| match segment {
        Segment::Literal(text) => Some(format!("/{text}")),
        Segment::Capture(_) => None,
    });
    let (mut slashes, mut parameters) = (false, false);
    for literal in literals {
        let ambiguity = Path::of(&literal).map(|path| path.ambiguity());
        slashes |= ambiguity.is_some_and(|ambiguity| ambiguity.slashes);
        parameters |= ambiguity.is_some_and(|ambiguity| ambiguity.parameters);
    }
    let keys = [
        (slashes, raw.encoded_slash, "`%2F`", "encoded_slash"),
        (parameters, raw.path_parameters, "`;`", "path_parameters"),
    ];
    for (present, setting, what, key) in keys {
        if present && !matches!(setting, RawAmbiguity::Keep) {
            at.error_with_help(
                format!("the path has {what}, which this route refuses"),
                format!("add `{key}: keep` to the route"),
            );
        }
    }
}
