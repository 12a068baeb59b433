//! The endpoints of all services, as `control` keeps them: what is known about an endpoint stays as long as anybody
//! uses it, whatever configuration comes or goes. Workers never look here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use super::balance::{Group, Set};
use super::endpoint::{Endpoint, EndpointState};
use super::guard::Guard;
use crate::config::{self, Target};

/// The services by their names, and their endpoints by their addresses.
#[derive(Debug)]
pub struct Directory {
    workers: usize,
    /// Where the built-in service is.
    echo: Option<SocketAddr>,
    groups: HashMap<String, Arc<Group>>,
    guards: HashMap<String, Arc<Guard>>,
    states: HashMap<(String, SocketAddr), Weak<EndpointState>>,
    next_id: u64,
}

impl Directory {
    /// Without any service, for so many workers.
    pub fn new(workers: usize) -> Self {
        let (groups, guards, states) = Default::default();
        Self { workers, echo: None, groups, guards, states, next_id: 0 }
    }

    /// The built-in service is served there.
    pub fn set_echo(&mut self, address: Option<SocketAddr>) {
        self.echo = address;
    }

    /// The endpoints of a service, put in force as configured.
    pub fn group(&mut self, upstream: &config::Upstream) -> Arc<Group> {
        let endpoints = upstream.endpoints.iter().filter_map(|endpoint| {
            let address = match endpoint.target {
                Target::Address(address) => address,
                Target::Echo => self.echo?,
            };
            Some((address, endpoint.weight))
        });
        let endpoints: Vec<(SocketAddr, u32)> = endpoints.collect();
        let set = endpoints.into_iter().map(|(address, weight)| {
            let state = self.state(&upstream.name, address);
            Endpoint { address, weight, state }
        });
        let set = Set::new(set.collect());
        match self.groups.get(&upstream.name) {
            Some(group) => {
                group.replace(set);
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
        let guard = self.guards.entry(name.to_owned()).or_insert_with(Guard::new);
        Arc::clone(guard)
    }

    /// Forgets the services that `config` does not have, and the endpoints that nobody uses.
    pub fn keep(&mut self, config: &config::Config) {
        let has = |name: &str| config.upstreams.iter().any(|upstream| upstream.name == name);
        self.groups.retain(|name, _| has(name));
        self.guards.retain(|name, _| has(name));
        self.states.retain(|_, state| state.strong_count() > 0);
    }

    fn state(&mut self, upstream: &str, address: SocketAddr) -> Arc<EndpointState> {
        let key = (upstream.to_owned(), address);
        if let Some(state) = self.states.get(&key).and_then(Weak::upgrade) {
            return state;
        }
        self.next_id += 1;
        let state = Arc::new(EndpointState::new(self.next_id, self.workers));
        self.states.insert(key, Arc::downgrade(&state));
        state
    }
}
