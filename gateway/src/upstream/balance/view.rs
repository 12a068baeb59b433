//! The endpoints of a service as one worker sees them: made anew only when something has changed, and shared with
//! nobody.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::group::{Group, Set};
use super::hash::Bound;
use super::plan::{ALL, Candidate, Plan};
use super::round_robin::RoundRobin;
use super::{Member, Tried, least};
use crate::base::random::random;
use crate::base::time::{self, BootTime};
use crate::config::Algorithm;
use crate::upstream::endpoint::Condition;

/// What one worker decides by.
#[derive(Debug)]
pub struct View {
    group: Arc<Group>,
    worker: usize,
    /// The state of the group that it was made of.
    made_of: Cell<u64>,
    held: RefCell<Held>,
}

#[derive(Debug)]
struct Held {
    set: Arc<Set>,
    members: Vec<Rc<Member>>,
    tiers: [Tier; 2],
    local_share: u32,
    /// What the local zone has not taken yet of what it could, in requests of a thousand.
    local_owed: u32,
    until: Option<BootTime>,
}

/// Endpoints that are as good as each other.
#[derive(Debug, Default)]
struct Tier {
    members: Vec<usize>,
    weights: Vec<u32>,
    turns: RoundRobin,
}

impl View {
    /// What the worker of this number sees.
    pub fn new(group: &Arc<Group>, worker: usize) -> Self {
        let held = Held {
            set: group.set(),
            members: Vec::new(),
            tiers: Default::default(),
            local_share: ALL,
            local_owed: 0,
            until: None,
        };
        let (made_of, held) = (Cell::new(0), RefCell::new(held));
        Self { group: Arc::clone(group), worker, made_of, held }
    }

    /// The addresses that requests may go to.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.follow(time::boot);
        let held = self.held.borrow();
        let addresses: Vec<_> = held.members.iter().map(|one| one.endpoint.address).collect();
        addresses.into_iter()
    }

    pub(super) fn pick(
        &self,
        key: Option<u64>,
        tried: &Tried,
        now: impl FnOnce() -> BootTime,
    ) -> Option<Rc<Member>> {
        self.follow(now);
        self.held.borrow_mut().pick(key, tried)
    }

    pub(super) fn has_more(&self, tried: &Tried, now: impl FnOnce() -> BootTime) -> bool {
        self.follow(now);
        let held = self.held.borrow();
        let indices = held.tiers.iter().flat_map(|tier| &tier.members);
        indices.filter_map(|index| held.members.get(*index)).any(|member| !tried.has(member))
    }

    /// Reads the clock only while somebody starts slowly, or something has changed.
    fn follow(&self, now: impl FnOnce() -> BootTime) {
        let changes = self.group.changes();
        let changed = self.made_of.replace(changes) != changes;
        let until = self.held.borrow().until;
        if !changed && until.is_none() {
            return;
        }
        let now = now();
        let mut held = self.held.borrow_mut();
        if changed {
            held.replace(&self.group, self.worker);
        }
        if changed || until.is_some_and(|until| now >= until) {
            held.plan(self.worker, now);
        }
    }
}

impl Held {
    fn replace(&mut self, group: &Arc<Group>, worker: usize) {
        let set = group.set();
        if !self.members.is_empty() && Arc::ptr_eq(&set, &self.set) {
            return;
        }
        let members = set.endpoints().iter().map(|endpoint| {
            Rc::new(Member { endpoint: endpoint.clone(), worker, group: Arc::clone(group) })
        });
        self.members = members.collect();
        self.set = set;
    }

    fn plan(&mut self, worker: usize, now: BootTime) {
        let candidates: Vec<Candidate> =
            self.members.iter().map(|one| self.candidate(one)).collect();
        let Plan { tiers, local_share, until, .. } =
            Plan::new(&candidates, self.set.balance(), now);
        let old = std::mem::take(&mut self.tiers);
        let mut tiers = tiers.into_iter().zip(old).map(|(tier, old)| {
            let (members, weights): (Vec<usize>, Vec<u32>) = tier.into_iter().unzip();
            // Who is next stays so while the same take part.
            let turns = match members == old.members {
                true => old.turns.with(&weights),
                false => RoundRobin::new(&weights).begin_at(worker),
            };
            Tier { members, weights, turns }
        });
        self.tiers = [tiers.next().unwrap_or_default(), tiers.next().unwrap_or_default()];
        (self.local_share, self.until) = (local_share, until);
    }

    fn candidate(&self, member: &Member) -> Candidate {
        let endpoint = &member.endpoint;
        Candidate {
            weight: endpoint.weight,
            usable: endpoint.state.condition() == Condition::Healthy,
            local: self.set.is_local(endpoint),
            ready_since: endpoint.state.ready_since(),
        }
    }

    /// From the zone whose turn it is, else from the other one.
    fn pick(&mut self, key: Option<u64>, tried: &Tried) -> Option<Rc<Member>> {
        let [first, second] = if self.is_local_turn(key) { [0, 1] } else { [1, 0] };
        let index = self.pick_in(first, key, tried).or_else(|| self.pick_in(second, key, tried))?;
        self.members.get(index).cloned()
    }

    /// A key's zone is always the same while the share is.
    fn is_local_turn(&mut self, key: Option<u64>) -> bool {
        if self.local_share == ALL {
            return true;
        }
        if let (Algorithm::Hash(_), Some(key)) = (&self.set.balance().algorithm, key) {
            return (key >> 32) % u64::from(ALL) < u64::from(self.local_share);
        }
        self.local_owed += self.local_share;
        let local = self.local_owed >= ALL;
        self.local_owed -= if local { ALL } else { 0 };
        local
    }

    fn pick_in(&mut self, tier: usize, key: Option<u64>, tried: &Tried) -> Option<usize> {
        let Self { set, members, tiers, .. } = self;
        let Tier { members: indices, weights, turns } = tiers.get_mut(tier)?;
        let member = |index: usize| indices.get(index).and_then(|index| members.get(*index));
        let is_free = |index: usize| member(index).is_some_and(|one| !tried.has(one));
        let active = |index: usize| member(index).map_or(0, |one| one.active());
        let index = match (&set.balance().algorithm, key, set.slots()) {
            (Algorithm::Hash(_), Some(key), Some(slots)) => {
                let all = &*indices;
                let is_free = |index: usize| {
                    all.binary_search(&index).is_ok()
                        && members.get(index).is_some_and(|one| !tried.has(one))
                };
                let load = |index: usize| {
                    let one = members.get(index)?;
                    Some((one.active(), one.endpoint.weight))
                };
                let find =
                    |is_free: &dyn Fn(usize) -> bool| slots.find(key, members.len(), is_free);
                let bound = set
                    .balance()
                    .bound
                    .map(|share| Bound::new(share, all.iter().filter_map(|index| load(*index))));
                let found = bound.and_then(|bound| {
                    let has_room = |index| {
                        load(index).is_some_and(|(active, weight)| bound.allows(active, weight))
                    };
                    find(&|index| is_free(index) && has_room(index))
                });
                // Those that have room were tried: others are better than nobody.
                return found.or_else(|| find(&is_free));
            }
            (Algorithm::LeastRequests, ..) => least::of_all(weights, turns, active, is_free),
            (Algorithm::RandomTwo, ..) => {
                least::of_two(weights, |below| random() % below.max(1), active, is_free)
            }
            (Algorithm::RoundRobin | Algorithm::Hash(_), ..) => turns.next(weights, is_free),
        };
        index.and_then(|index| indices.get(index).copied())
    }
}
