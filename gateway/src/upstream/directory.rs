//! The endpoints of all services, as `control` keeps them: what is known about an endpoint stays as long as anybody
//! uses it, whatever configuration comes or goes. Workers never look here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use super::balance::{Group, Set};
use super::endpoint::{Endpoint, EndpointState};
use super::guard::Guard;
use crate::base::time::Now;
use crate::config::{self, Name, Target};
use crate::discovery::Found;

/// The services by their names, and their endpoints by their addresses.
#[derive(Debug)]
pub struct Directory {
    workers: usize,
    /// Where the built-in service is.
    echo: Option<SocketAddr>,
    /// Where the gateway is.
    zone: Option<Arc<str>>,
    /// What names stand for.
    found: HashMap<Name, Arc<[Found]>>,
    groups: BTreeMap<String, Arc<Group>>,
    guards: HashMap<String, Arc<Guard>>,
    states: HashMap<(String, SocketAddr), Weak<EndpointState>>,
    next_id: u64,
}

impl Directory {
    /// Without any service, for so many workers.
    pub fn new(workers: usize) -> Self {
        let (found, groups, guards, states) = Default::default();
        Self { workers, echo: None, zone: None, found, groups, guards, states, next_id: 0 }
    }

    /// The gateway is in this zone, and the built-in service is served there.
    pub fn set_own(&mut self, zone: Option<&str>, echo: Option<SocketAddr>) {
        self.zone = zone.map(Arc::from);
        self.echo = echo;
    }

    /// A name stands for these, from the next time on that services with it are put in force.
    pub fn set_found(&mut self, name: &Name, found: Arc<[Found]>) {
        self.found.insert(name.clone(), found);
    }

    /// The endpoints of a service, put in force as configured and found. Who comes to be there twice is there as first
    /// said.
    pub fn group(&mut self, upstream: &config::Upstream, now: Now) -> Arc<Group> {
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for endpoint in &upstream.endpoints {
            let zone: Option<Arc<str>> = endpoint.zone.as_deref().map(Arc::from);
            for (address, weight) in self.addresses(endpoint) {
                if endpoints.iter().all(|held| held.address != address) {
                    let state = self.state(&upstream.name, address, now);
                    endpoints.push(Endpoint { address, weight, zone: zone.clone(), state });
                }
            }
        }
        let set = Set::new(endpoints, upstream.balance.clone(), self.zone.clone());
        match self.groups.get(&upstream.name) {
            Some(group) => {
                group.replace(set, now);
                Arc::clone(group)
            }
            None => {
                let group = Arc::new(Group::new(&upstream.name, set));
                self.groups.insert(upstream.name.clone(), Arc::clone(&group));
                group
            }
        }
    }

    /// What stands before the service called `name`.
    pub fn guard(&mut self, name: &str) -> Arc<Guard> {
        let guard = self.guards.entry(name.to_owned()).or_insert_with(|| Guard::new(self.workers));
        Arc::clone(guard)
    }

    /// All services, by their names.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.values()
    }

    /// The endpoints that a service has no more and that still have requests to answer.
    pub fn draining(&self, group: &Group) -> Vec<(SocketAddr, Arc<EndpointState>)> {
        let set = group.set();
        let is_gone = |state: &EndpointState| {
            state.totals().active > 0
                && !set.endpoints().iter().any(|endpoint| endpoint.state.id() == state.id())
        };
        let of_group = self.states.iter().filter(|((upstream, _), _)| upstream == group.name());
        let known = of_group.filter_map(|((_, address), state)| Some((*address, state.upgrade()?)));
        let mut gone: Vec<_> = known.filter(|(_, state)| is_gone(state)).collect();
        gone.sort_by_key(|(address, _)| *address);
        gone
    }

    /// The services and addresses of the endpoints that anybody still uses, also those that are no more.
    pub fn in_use(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        let used = self.states.iter().filter(|(_, state)| state.strong_count() > 0);
        used.map(|((upstream, address), _)| (upstream.as_str(), *address))
    }

    /// Forgets the services that `config` does not have, and the endpoints that nobody uses.
    pub fn keep(&mut self, config: &config::Config) {
        let has = |name: &str| config.upstreams.iter().any(|upstream| upstream.name == name);
        self.groups.retain(|name, _| has(name));
        self.guards.retain(|name, _| has(name));
        self.states.retain(|_, state| state.strong_count() > 0);
        let endpoints = config.upstreams.iter().flat_map(|upstream| &upstream.endpoints);
        let names: HashSet<&Name> = endpoints
            .filter_map(|endpoint| match &endpoint.target {
                Target::Name(name) => Some(name),
                Target::Address(_) | Target::Echo => None,
            })
            .collect();
        self.found.retain(|name, _| names.contains(name));
    }

    /// Where an endpoint of the configuration is, with weights.
    fn addresses(&self, endpoint: &config::Endpoint) -> Vec<(SocketAddr, u32)> {
        match &endpoint.target {
            Target::Address(address) => vec![(*address, endpoint.weight)],
            Target::Echo => self.echo.iter().map(|echo| (*echo, endpoint.weight)).collect(),
            Target::Name(name) => {
                let found = self.found.get(name).into_iter().flat_map(|found| found.iter());
                found.map(|one| (one.address, one.weight.unwrap_or(endpoint.weight))).collect()
            }
        }
    }

    fn state(&mut self, upstream: &str, address: SocketAddr, now: Now) -> Arc<EndpointState> {
        let key = (upstream.to_owned(), address);
        if let Some(state) = self.states.get(&key).and_then(Weak::upgrade) {
            return state;
        }
        self.next_id += 1;
        let state = Arc::new(EndpointState::new(self.next_id, self.workers, now));
        self.states.insert(key, Arc::downgrade(&state));
        state
    }
}
