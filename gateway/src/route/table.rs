//! The patterns of one host as a tree of segments. Knows nothing of hosts.

use std::collections::HashMap;

use http::Method;

use super::{Ask, predicate};
use crate::base::path::{Path, decoded};
use crate::config::{Predicate, Route, Segment};

/// Every pattern of one host.
#[derive(Clone, Debug, Default)]
pub(super) struct Paths {
    root: Node,
}

/// Where patterns with the same beginning part.
#[derive(Clone, Debug, Default)]
struct Node {
    /// By the bytes that they stand for.
    literals: HashMap<Box<[u8]>, Self>,
    capture: Option<Box<Self>>,
    /// Routes whose pattern ends here.
    end: Vec<Ending>,
    /// Routes that take whatever follows.
    rest: Vec<Ending>,
}

/// What one route asks for besides host and path.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    /// Empty for any.
    pub(super) methods: Box<[Method]>,
    pub(super) predicates: Box<[Predicate]>,
    pub(super) route: usize,
}

impl Ending {
    pub(super) fn takes(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }

    /// Whether all predicates hold.
    pub(super) fn holds(&self, ask: &Ask<'_>) -> bool {
        self.predicates.iter().all(|predicate| predicate::holds(predicate, ask))
    }
}

impl Paths {
    /// Adds a route, behind those with the same pattern.
    pub(super) fn insert(&mut self, route: &Route, index: usize) {
        let mut node = &mut self.root;
        for segment in &route.path.segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(decoded(text).into()).or_default(),
                Segment::Capture(_) => node.capture.get_or_insert_default(),
            };
        }
        let endings = if route.path.rest.is_some() { &mut node.rest } else { &mut node.end };
        endings.push(Ending {
            methods: route.methods.as_slice().into(),
            predicates: route.predicates.as_slice().into(),
            route: index,
        });
    }

    /// Shows `visit` the routes of every pattern that matches, the most specific first, until it has an answer.
    pub(super) fn each<T>(
        &self,
        path: &Path<'_>,
        mut visit: impl FnMut(&Ending) -> Option<T>,
    ) -> Option<T> {
        let text = path.as_str().strip_prefix('/');
        if path.is_encoded() {
            self.root.walk::<true, T>(text, &mut visit)
        } else {
            self.root.walk::<false, T>(text, &mut visit)
        }
    }
}

impl Node {
    /// `path` is what follows the last slash that was taken, `None` when nothing is left. Each node is entered at most
    /// once and the depth is that of the deepest pattern, however long the path.
    fn walk<const ENCODED: bool, T>(
        &self,
        path: Option<&str>,
        visit: &mut impl FnMut(&Ending) -> Option<T>,
    ) -> Option<T> {
        let Some(path) = path else { return self.end.iter().find_map(visit) };
        let (segment, below) = match path.split_once('/') {
            Some((segment, below)) => (segment, Some(below)),
            None => (path, None),
        };
        let literal = if ENCODED {
            self.literals.get(decoded(segment).as_ref())
        } else {
            self.literals.get(segment.as_bytes())
        };
        if let Some(found) = literal.and_then(|next| next.walk::<ENCODED, T>(below, visit)) {
            return Some(found);
        }
        let capture = self.capture.as_ref().filter(|_| !segment.is_empty());
        if let Some(found) = capture.and_then(|next| next.walk::<ENCODED, T>(below, visit)) {
            return Some(found);
        }
        self.rest.iter().find_map(visit)
    }
}
