//! What earlier routes have taken: names, and requests that a later route would wait for in vain.

use std::collections::HashMap;

use http::Method;

use super::{HostPattern, Match, PathPattern, Predicate, Segment};
use crate::base::path::decoded;
use crate::config::at::At;
use crate::config::tree::shorten;
use crate::config::value;

/// Routes that share host and path. They are tried one after the other, so their number is what a request may cost.
const SAME_PATH_MAX: usize = 64;

/// Host and pattern without names: what a route matches, but for its methods and predicates.
type Shape = (HostPattern, Vec<Step>);

#[derive(PartialEq, Eq, Hash)]
enum Step {
    Literal(Vec<u8>),
    Capture,
    Rest,
}

/// What earlier routes have taken, each with its line.
#[derive(Default)]
pub(super) struct Taken {
    names: HashMap<String, usize>,
    shapes: HashMap<Shape, Vec<Earlier>>,
}

struct Earlier {
    /// Empty for any.
    methods: Vec<Method>,
    predicates: Vec<Predicate>,
    line: usize,
}

impl Taken {
    /// The name of a route: its own, or one that is made from what it matches.
    pub(super) fn name(&mut self, own: Option<&str>, route: &Match, at: At<'_>) -> String {
        let line = at.key("match").key("path").line();
        let name = match own {
            Some(own) => own.to_owned(),
            None => {
                let methods: Vec<&str> = route.methods.iter().map(Method::as_str).collect();
                let space = if methods.is_empty() { "" } else { " " };
                let name = format!("{}{space}{}{}", methods.join(","), route.host, route.path);
                let other = (2..).map(|number| format!("{name} #{number}"));
                let mut names = std::iter::once(name.clone()).chain(other);
                names.find(|name| !self.names.contains_key(name)).unwrap_or_default()
            }
        };
        let earlier = self.names.insert(name.clone(), line);
        if own.is_some() {
            value::name(&name, "a route", at.key("name"));
            if let Some(line) = earlier {
                at.key("name").error_with_help(
                    format!("the name `{}` is given twice", shorten(&name)),
                    format!("the first is in the route of line {line}: choose another name"),
                );
            }
        }
        name
    }

    /// Refuses a route that would never match, and one too many.
    pub(super) fn check(&mut self, route: &Match, at: At<'_>) {
        let taken = self.shapes.entry((route.host.clone(), shape(&route.path))).or_default();
        if let Some(line) = covered(route, taken) {
            at.error_with_help(
                format!("this route never matches: `{}` is taken before", route.path),
                format!("the earlier route is in line {line}: remove one of the two"),
            );
            return;
        }
        if taken.len() == SAME_PATH_MAX {
            at.error_with_help(
                format!("more than {SAME_PATH_MAX} routes have this host and path"),
                "they are tried one after the other: tell them apart by host or path",
            );
        }
        taken.push(Earlier {
            methods: route.methods.clone(),
            predicates: route.predicates.clone(),
            line: at.line(),
        });
    }
}

/// The line of the route that leaves this one nothing, the last of several that do so together.
fn covered(route: &Match, earlier: &[Earlier]) -> Option<usize> {
    let holds =
        |predicate: &Predicate| route.predicates.iter().any(|other| predicate.follows_from(other));
    let mut covering = earlier.iter().filter(|one| one.predicates.iter().all(holds));
    let covering: Vec<&Earlier> = covering.by_ref().collect();
    if let Some(all) = covering.iter().find(|one| one.methods.is_empty()) {
        return Some(all.line);
    }
    let by = |method: &Method| {
        covering.iter().find(|one| one.methods.contains(method)).map(|one| one.line)
    };
    let lines: Option<Vec<usize>> = route.methods.iter().map(by).collect();
    // An empty list of methods is every method, so only a route without methods covers it.
    lines.and_then(|lines| lines.into_iter().max())
}

fn shape(path: &PathPattern) -> Vec<Step> {
    let steps = path.segments.iter().map(|segment| match segment {
        Segment::Literal(text) => Step::Literal(decoded(text).into_owned()),
        Segment::Capture(_) => Step::Capture,
    });
    steps.chain(path.rest.as_ref().map(|_| Step::Rest)).collect()
}
