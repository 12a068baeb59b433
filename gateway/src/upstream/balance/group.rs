//! The endpoints of a service, and which of them are ejected. Ejections of one service take turns, so that there are
//! never more than allowed; they are rare, and nobody else waits for anybody.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::hash::Slots;
use crate::base::time::Now;
use crate::config::{Algorithm, Balance, Share};
use crate::upstream::endpoint::{Endpoint, EndpointState};

/// The endpoints of a service. It stays the same for as long as a configuration names the service.
#[derive(Debug)]
pub struct Group {
    name: String,
    set: ArcSwap<Set>,
    /// Counts what makes a view out of date.
    changes: AtomicU64,
    /// Ejections that were refused because too many were ejected.
    refused: AtomicU64,
    turn: Mutex<()>,
}

/// The endpoints that are in force, and how to choose among them.
#[derive(Debug)]
pub struct Set {
    endpoints: Box<[Endpoint]>,
    balance: Balance,
    /// The zone of the gateway.
    zone: Option<Arc<str>>,
    slots: Option<Slots>,
}

impl Set {
    /// These, in their order; `zone` is the one of the gateway.
    pub fn new(endpoints: Vec<Endpoint>, balance: Balance, zone: Option<Arc<str>>) -> Self {
        let slots = matches!(balance.algorithm, Algorithm::Hash(_)).then(|| {
            let shares: Vec<(SocketAddr, u32)> =
                endpoints.iter().map(|endpoint| (endpoint.address, endpoint.weight)).collect();
            Slots::new(&shares)
        });
        Self { endpoints: endpoints.into(), balance, zone, slots }
    }

    /// All of them.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// How to choose.
    pub fn balance(&self) -> &Balance {
        &self.balance
    }

    pub(super) fn slots(&self) -> Option<&Slots> {
        self.slots.as_ref()
    }

    /// Whether an endpoint is where the gateway is.
    pub fn is_local(&self, endpoint: &Endpoint) -> bool {
        self.zone.is_some() && endpoint.zone == self.zone
    }

    fn has(&self, state: &EndpointState) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.state.id() == state.id())
    }

    fn ejected(&self) -> impl Iterator<Item = &EndpointState> {
        let states = self.endpoints.iter().map(|endpoint| &*endpoint.state);
        states.filter(|state| state.is_ejected())
    }

    /// Whether so many may be ejected. Never all of them.
    fn allows(&self, ejected: usize) -> bool {
        let most = self.balance.ejection.as_ref().map_or(Share::ZERO, |terms| terms.max_ejected);
        let of = self.endpoints.len();
        most.compare(ejected as u64, of as u64).is_le() && (ejected == 0 || ejected < of)
    }
}

impl Group {
    /// Of the service called `name`.
    pub fn new(name: &str, set: Set) -> Self {
        Self {
            name: name.to_owned(),
            set: ArcSwap::from_pointee(set),
            changes: AtomicU64::new(1),
            refused: AtomicU64::new(0),
            turn: Mutex::default(),
        }
    }

    /// The service.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The endpoints that are in force.
    pub fn set(&self) -> Arc<Set> {
        self.set.load_full()
    }

    /// Counts what makes a view out of date.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Ejections that were refused because too many were ejected.
    pub fn ejections_refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Puts others in force. Requests that are under way finish where they are. Those that were not there before start
    /// slowly, and of those that are ejected no more stay so than the new ones allow.
    pub fn replace(&self, set: Set, now: Now) {
        let _turn = self.turn();
        let old = self.set();
        if !old.endpoints.is_empty() {
            let added = set.endpoints.iter().filter(|endpoint| !old.has(&endpoint.state));
            added.for_each(|endpoint| endpoint.state.joins(now));
        }
        while let Some(state) = set.ejected().next().filter(|_| !set.allows(set.ejected().count()))
        {
            state.release(now);
        }
        self.set.store(Arc::new(set));
        self.changed();
    }

    /// Takes note of what a check says. Answers whether that is news.
    pub fn check(&self, state: &EndpointState, result: Result<(), String>, now: Now) -> bool {
        let news = state.set_healthy(result.is_ok(), result.err(), now);
        if news {
            self.changed();
        }
        news
    }

    /// Takes an endpoint out for a while, if that leaves enough of the others. Answers whether it did.
    pub fn eject(&self, endpoint: &Endpoint, why: String, now: Now) -> bool {
        let _turn = self.turn();
        let set = self.set();
        let Some(terms) = &set.balance.ejection else { return false };
        if endpoint.state.is_ejected() || !set.has(&endpoint.state) {
            return false;
        }
        let (upstream, address) = (&self.name, endpoint.address);
        if !set.allows(set.ejected().count() + 1) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        tracing::warn!(upstream, endpoint = %address, why, "endpoint ejected");
        endpoint.state.eject(terms, why, now);
        self.changed();
        true
    }

    /// Lets those take requests again whose time is over.
    pub fn release(&self, now: Now) {
        let set = self.set();
        let mut due = set.endpoints().iter().filter(|one| one.state.is_due(now.boot)).peekable();
        if due.peek().is_none() {
            return;
        }
        let _turn = self.turn();
        for endpoint in due {
            tracing::info!(upstream = self.name, endpoint = %endpoint.address, "ejection over");
            endpoint.state.release(now);
        }
        self.changed();
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::base::time::{BootTime, UtcMillis};
    use crate::config::Ejection;

    fn at(seconds: u64) -> Now {
        Now { boot: BootTime(seconds * 1_000_000_000), utc: UtcMillis(seconds * 1000) }
    }

    fn endpoint(id: u64) -> Endpoint {
        let address = SocketAddr::from(([10, 0, 0, 1], u16::try_from(id).unwrap()));
        let state = Arc::new(EndpointState::new(id, 1, at(1)));
        Endpoint { address, weight: 1, zone: None, state }
    }

    fn set(endpoints: &[Endpoint], max_ejected: u32) -> Set {
        let max_ejected = Share::per_million(max_ejected * 10_000);
        let time = Duration::from_secs(10);
        let ejection = Some(Ejection { time, max_ejected, ..Ejection::default() });
        Set::new(endpoints.to_vec(), Balance { ejection, ..Balance::default() }, None)
    }

    #[test]
    fn who_comes_later_starts_slowly() {
        let (first, second) = (endpoint(1), endpoint(2));
        let group = Group::new("users", set(std::slice::from_ref(&first), 50));
        group.replace(set(&[first.clone(), second.clone()], 50), at(5));
        assert_eq!(first.state.ready_since(), BootTime(0));
        assert_eq!(second.state.ready_since(), at(5).boot);
        assert_eq!(group.changes(), 2);
        let group = Group::new("unresolved", set(&[], 50));
        let first = endpoint(3);
        group.replace(set(std::slice::from_ref(&first), 50), at(5));
        assert_eq!(first.state.ready_since(), BootTime(0), "there is nobody to be gentle beside");
    }

    proptest! {
        #[test]
        fn never_more_are_ejected_than_allowed(
            count in 1usize..12,
            share in 0u32..101,
            steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>(), 0u64..8), 1..80),
        ) {
            let all: Vec<Endpoint> = (1..=12).map(endpoint).collect();
            let mut now = 1;
            let mut count = count;
            let group = Group::new("users", set(&all[..count], share));
            for (step, index, number) in steps {
                now += number;
                match step {
                    0 | 1 => drop(group.eject(index.get(&all), String::new(), at(now))),
                    2 => group.release(at(now)),
                    _ => {
                        count = 1 + index.index(all.len());
                        group.replace(set(&all[..count], share), at(now));
                    }
                }
                let set = group.set();
                let ejected = set.ejected().count();
                prop_assert!(ejected * 100 <= count * share as usize, "{ejected} of {count}");
                prop_assert!(ejected < count);
            }
        }
    }
}
