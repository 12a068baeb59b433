//! Stand-in until the route table is merged.

use http::Method;

use crate::config::{Route, Segment};

/// Routes.
#[derive(Debug)]
pub struct Table(Vec<Route>);

/// Found.
#[derive(Clone, Copy, Debug)]
pub struct Routed {
    route: usize,
    upstream: usize,
}

impl Routed {
    /// Index.
    pub fn route(&self) -> usize {
        self.route
    }

    /// Index.
    pub fn upstream(&self) -> usize {
        self.upstream
    }
}

/// Not found.
#[derive(Debug)]
pub enum Refused {
    /// No.
    NotFound,
    /// No.
    MethodNotAllowed {
        /// Methods.
        allow: Vec<Method>,
    },
    /// No.
    BadPath,
}

impl Table {
    /// A table.
    pub fn new(routes: &[Route]) -> Self {
        Self(routes.to_vec())
    }

    /// Looks.
    pub fn find(
        &self,
        method: &Method,
        _host: Option<&str>,
        path: &str,
    ) -> Result<Routed, Refused> {
        let Some(rest) = path.strip_prefix('/') else { return Err(Refused::BadPath) };
        let mut allow = Vec::new();
        for (route, entry) in self.0.iter().enumerate() {
            let mut segments = rest.split('/');
            let fits = entry.path.segments.iter().all(|segment| match (segment, segments.next()) {
                (Segment::Literal(text), Some(found)) => text == found,
                (Segment::Capture(_), found) => found.is_some(),
                _ => false,
            });
            if !fits || (entry.path.rest.is_none() && segments.next().is_some()) {
                continue;
            }
            if entry.methods.is_empty() || entry.methods.contains(method) {
                return Ok(Routed { route, upstream: entry.upstream });
            }
            allow.extend(entry.methods.iter().cloned());
        }
        if allow.is_empty() {
            Err(Refused::NotFound)
        } else {
            Err(Refused::MethodNotAllowed { allow })
        }
    }
}
