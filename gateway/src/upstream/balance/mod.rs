//! Which endpoint takes a request. `control` puts the endpoints of a service in force; each worker decides by a view
//! of its own. Sends nothing, and asks no endpoint how it is.

mod group;
mod hash;
mod least;
mod plan;
mod round_robin;
mod view;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use http::header;
use http::header::{COOKIE, HeaderMap};
use http::request::Parts;

pub use self::group::{Group, Set};
pub use self::view::View;

use super::Upstream;
use super::endpoint::{Block, Endpoint, Outcome};
use crate::base::time::{self, Now};
use crate::config::{Algorithm, HashKey};
use crate::observe::Counter;

/// What the endpoint for one request is picked by.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Where the request goes.
    pub upstream: &'a Upstream,
    /// The endpoints as the worker sees them.
    pub view: &'a View,
    /// What sends the same clients to the same endpoints.
    pub key: Option<u64>,
}

impl Choice<'_> {
    /// An endpoint that is not among those `tried`, and from now on is. `None` when there is none left.
    pub fn pick(&self, tried: &RefCell<Tried>) -> Option<Picked> {
        let mut tried = tried.borrow_mut();
        let member = self.view.pick(self.key, &tried, time::boot)?;
        tried.add(&member);
        Some(Picked::new(member))
    }

    /// Whether there is one.
    pub fn has_more(&self, tried: &RefCell<Tried>) -> bool {
        self.view.has_more(&tried.borrow(), time::boot)
    }
}

/// The key of a request from `client`, sent by the caller of this name, where the service is chosen by one.
pub fn key(
    algorithm: &Algorithm,
    head: &Parts,
    (client, caller): (IpAddr, Option<&str>),
) -> Option<u64> {
    let Algorithm::Hash(by) = algorithm else { return None };
    let key = match by {
        HashKey::Header(name) => hash::key(head.headers.get(name)?.as_bytes()),
        HashKey::Cookie(name) => hash::key(cookie(&head.headers, name)?),
        HashKey::Path => hash::key(head.uri.path().as_bytes()),
        HashKey::Consumer => hash::key(caller?.as_bytes()),
        HashKey::Client => match client.to_canonical() {
            IpAddr::V4(v4) => hash::key(&v4.octets()),
            IpAddr::V6(v6) => hash::key(&v6.octets()),
        },
    };
    Some(key)
}

/// The first cookie of this name.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let lines = headers.get_all(COOKIE).iter().map(header::HeaderValue::as_bytes);
    let mut pairs = lines.flat_map(|line| line.split(|byte| *byte == b';'));
    pairs.find_map(|pair| {
        pair.trim_ascii().strip_prefix(name.as_bytes())?.trim_ascii_start().strip_prefix(b"=")
    })
}

/// The endpoints that a request was tried on. It takes no memory until the first one has failed.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    last: Option<u64>,
    before: Vec<u64>,
}

impl Tried {
    fn add(&mut self, member: &Member) {
        self.before.extend(self.last.replace(member.endpoint.state.id()));
    }

    fn has(&self, member: &Member) -> bool {
        let id = member.endpoint.state.id();
        self.last == Some(id) || self.before.contains(&id)
    }
}

/// An endpoint with what a worker needs to count its requests.
#[derive(Debug)]
struct Member {
    endpoint: Endpoint,
    worker: usize,
    group: Arc<Group>,
}

impl Member {
    fn active(&self) -> u64 {
        self.block().map_or(0, |block| block.active.value())
    }

    fn block(&self) -> Option<&Block> {
        self.endpoint.state.of_worker(self.worker)
    }

    fn count(&self, counter: fn(&Block) -> &Counter) {
        if let Some(block) = self.block() {
            counter(block).add(1);
        }
    }
}

/// An endpoint that was picked for a request, and is busy with it until this is dropped.
#[derive(Debug)]
pub struct Picked(Rc<Member>);

impl Picked {
    fn new(member: Rc<Member>) -> Self {
        member.count(|block| &block.requests);
        member.count(|block| &block.active);
        Self(member)
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.0.endpoint.address
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// The request was not sent to it after all.
    pub fn unsent(&self) {
        if let Some(block) = self.0.block() {
            block.requests.subtract_one();
        }
    }

    /// Takes note of what came of the request: once for each attempt, and once more where the answer breaks off. Who
    /// fails too often is ejected.
    pub fn observe(&self, outcome: Outcome) {
        let Member { endpoint, group, .. } = &*self.0;
        let in_a_row = endpoint.state.observe(outcome);
        if outcome.is_failure() != Some(true) {
            return;
        }
        self.0.count(|block| &block.failures);
        let set = group.set();
        let Some(terms) = &set.balance().ejection else { return };
        // Where it may not be, it is not asked for again with each failure.
        if in_a_row.is_multiple_of(terms.failures) {
            let last = outcome.describe();
            let why = format!("{in_a_row} failures in a row, the last: {last}");
            group.eject(endpoint, why, Now::read());
        }
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        if let Some(block) = self.0.block() {
            block.active.subtract_one();
        }
    }
}
