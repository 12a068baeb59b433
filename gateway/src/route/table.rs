//! The patterns of one host as a tree of segments. Knows nothing of hosts.

use std::collections::HashMap;

use http::Method;

use super::Routed;
use crate::config::{PathPattern, Segment};

/// Every pattern of one host.
#[derive(Clone, Debug, Default)]
pub(super) struct Paths {
    root: Node,
}

/// Where patterns with the same beginning part.
#[derive(Clone, Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, Self>,
    capture: Option<Box<Self>>,
    /// Routes whose pattern ends here.
    end: Vec<Ending>,
    /// Routes that take whatever follows.
    rest: Vec<Ending>,
}

/// What one route takes of its path.
#[derive(Clone, Debug)]
struct Ending {
    /// Empty for any.
    methods: Vec<Method>,
    routed: Routed,
}

impl Paths {
    /// Adds a route. Of two with the same pattern and method the first added is found.
    pub(super) fn insert(&mut self, pattern: &PathPattern, methods: &[Method], routed: Routed) {
        let mut node = &mut self.root;
        for segment in &pattern.segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.as_str().into()).or_default(),
                Segment::Capture(_) => node.capture.get_or_insert_default(),
            };
        }
        let endings = if pattern.rest.is_some() { &mut node.rest } else { &mut node.end };
        endings.push(Ending { methods: methods.to_vec(), routed });
    }

    /// The most specific route that takes this method.
    pub(super) fn find(&self, path: &str, method: &Method) -> Option<Routed> {
        let mut found = None;
        self.root.walk(path.strip_prefix('/'), &mut |endings| {
            let takes =
                |ending: &&Ending| ending.methods.is_empty() || ending.methods.contains(method);
            found = endings.iter().find(takes).map(|ending| ending.routed);
            found.is_some()
        });
        found
    }

    /// Adds the methods that routes of this path take.
    pub(super) fn methods(&self, path: &str, methods: &mut Vec<Method>) {
        self.root.walk(path.strip_prefix('/'), &mut |endings| {
            methods.extend(endings.iter().flat_map(|ending| ending.methods.iter().cloned()));
            false
        });
    }
}

impl Node {
    /// Shows `visit` the routes of every pattern that matches, the most specific first, until it says that it is done.
    /// `path` is what follows the last slash that was taken, `None` when nothing is left. Each node is entered at most
    /// once and the depth is that of the deepest pattern, however long the path.
    fn walk(&self, path: Option<&str>, visit: &mut impl FnMut(&[Ending]) -> bool) -> bool {
        let Some(path) = path else { return visit(&self.end) };
        let (segment, below) = match path.split_once('/') {
            Some((segment, below)) => (segment, Some(below)),
            None => (path, None),
        };
        self.literals.get(segment).is_some_and(|next| next.walk(below, visit))
            || (!segment.is_empty()
                && self.capture.as_ref().is_some_and(|next| next.walk(below, visit)))
            || visit(&self.rest)
    }
}
