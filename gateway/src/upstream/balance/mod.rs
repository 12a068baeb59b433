//! Which endpoint takes a request. `control` puts the endpoints of a service in force; each worker decides by a view
//! of its own, which it makes anew only when something has changed.

mod round_robin;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use self::round_robin::RoundRobin;
use super::Upstream;
use super::endpoint::{Block, Endpoint, Outcome};
use crate::observe::Counter;

/// The endpoints of a service. It stays the same for as long as a configuration names the service.
#[derive(Debug)]
pub struct Group {
    name: String,
    set: ArcSwap<Set>,
    /// Counts what makes a view out of date.
    changes: AtomicU64,
}

/// The endpoints that are in force.
#[derive(Debug)]
pub struct Set {
    endpoints: Box<[Endpoint]>,
}

impl Set {
    /// These, in their order.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self { endpoints: endpoints.into() }
    }

    /// All of them.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

impl Group {
    /// Of the service called `name`.
    pub fn new(name: &str, set: Set) -> Self {
        Self { name: name.to_owned(), set: ArcSwap::from_pointee(set), changes: AtomicU64::new(1) }
    }

    /// The service.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The endpoints that are in force.
    pub fn set(&self) -> Arc<Set> {
        self.set.load_full()
    }

    /// Puts others in force. Requests that are under way finish where they are.
    pub fn replace(&self, set: Set) {
        self.set.store(Arc::new(set));
        self.changes.fetch_add(1, Ordering::Release);
    }
}

/// The endpoints of a service as one worker sees them.
#[derive(Debug)]
pub struct View {
    group: Arc<Group>,
    worker: usize,
    /// The state of the group that it was made of.
    made_of: Cell<u64>,
    plan: RefCell<Plan>,
}

/// What a worker decides by.
#[derive(Debug, Default)]
struct Plan {
    members: Box<[Rc<Member>]>,
    weights: Box<[u32]>,
    round_robin: RoundRobin,
}

/// An endpoint with what a worker needs to count its requests.
#[derive(Debug)]
struct Member {
    endpoint: Endpoint,
    worker: usize,
}

impl View {
    /// What the worker of this number sees.
    pub fn new(group: &Arc<Group>, worker: usize) -> Self {
        let (made_of, plan) = (Cell::new(0), RefCell::default());
        Self { group: Arc::clone(group), worker, made_of, plan }
    }

    fn follow(&self) {
        let changes = self.group.changes.load(Ordering::Acquire);
        if self.made_of.replace(changes) == changes {
            return;
        }
        let set = self.group.set();
        let member = |endpoint: &Endpoint| {
            Rc::new(Member { endpoint: endpoint.clone(), worker: self.worker })
        };
        *self.plan.borrow_mut() = Plan {
            members: set.endpoints().iter().map(member).collect(),
            weights: set.endpoints().iter().map(|endpoint| endpoint.weight).collect(),
            round_robin: RoundRobin::default(),
        };
    }

    fn pick(&self, tried: &Tried) -> Option<Rc<Member>> {
        self.follow();
        let Plan { members, weights, round_robin } = &mut *self.plan.borrow_mut();
        let is_free = |index: usize| members.get(index).is_some_and(|member| !tried.has(member));
        let index = round_robin.next(weights, is_free)?;
        members.get(index).cloned()
    }
}

/// What the endpoint for one request is picked by.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Where the request goes.
    pub upstream: &'a Upstream,
    /// The endpoints as the worker sees them.
    pub view: &'a View,
}

impl Choice<'_> {
    /// An endpoint that is not among those `tried`, and from now on is. `None` when there is none left.
    pub fn pick(&self, tried: &mut Tried) -> Option<Picked> {
        let member = self.view.pick(tried)?;
        tried.0.push(member.endpoint.state.id());
        Some(Picked::new(member))
    }

    /// Whether there is one.
    pub fn has_more(&self, tried: &Tried) -> bool {
        self.view.follow();
        self.view.plan.borrow().members.iter().any(|member| !tried.has(member))
    }
}

/// The endpoints that a request was tried on. It takes no memory until a second one is.
#[derive(Clone, Debug, Default)]
pub struct Tried(Vec<u64>);

impl Tried {
    fn has(&self, member: &Member) -> bool {
        self.0.contains(&member.endpoint.state.id())
    }
}

/// An endpoint that was picked for a request, and is busy with it until this is dropped.
#[derive(Debug)]
pub struct Picked(Rc<Member>);

impl Picked {
    fn new(member: Rc<Member>) -> Self {
        let picked = Self(member);
        picked.count(|block| &block.requests, 1);
        picked.count(|block| &block.active, 1);
        picked
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
        if let Some(block) = self.0.endpoint.state.of_worker(self.0.worker) {
            block.requests.subtract_one();
        }
    }

    /// Takes note of what came of the request: once for each attempt, and once more where the answer breaks off.
    pub fn observe(&self, outcome: Outcome) {
        if outcome.is_failure() == Some(true) {
            self.count(|block| &block.failures, 1);
        }
        self.0.endpoint.state.observe(outcome);
    }

    fn count(&self, counter: fn(&Block) -> &Counter, amount: u64) {
        if let Some(block) = self.0.endpoint.state.of_worker(self.0.worker) {
            counter(block).add(amount);
        }
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        if let Some(block) = self.0.endpoint.state.of_worker(self.0.worker) {
            block.active.subtract_one();
        }
    }
}
