//! How the guards of services stand, for status and metrics.

use tokio::time::Instant;

use crate::admin::guards::{BreakerView, ConcurrencyView, GuardView, RecentView};
use crate::base::time::instant;
use crate::config;
use crate::observe::prometheus::Page;
use crate::request::Snapshot;
use crate::upstream::Upstream;
use crate::upstream::breaker::{Breaker, State};

/// The services that have any.
pub(super) fn views(snapshot: &Snapshot) -> Vec<GuardView> {
    let services = snapshot.upstreams().iter().map(view);
    services.filter(|view| !view.breakers.is_empty() || view.concurrency.is_some()).collect()
}

fn view(upstream: &Upstream) -> GuardView {
    let mut breakers = Vec::new();
    if let Some((terms, own)) = upstream.breaker() {
        if terms.of_upstream {
            breakers.push(breaker(None, own, terms));
        }
        if terms.of_endpoints {
            let set = upstream.group().set();
            let endpoints = set.endpoints().iter();
            breakers.extend(endpoints.map(|endpoint| {
                breaker(Some(endpoint.address.to_string()), &endpoint.state.breaker, terms)
            }));
        }
    }
    let concurrency = upstream.concurrency().map(|(terms, limiter)| ConcurrencyView {
        limit: limiter.limit(terms),
        active: limiter.active(),
        waiting: limiter.waiting(),
    });
    GuardView { upstream: upstream.group().name().to_owned(), breakers, concurrency }
}

fn breaker(endpoint: Option<String>, breaker: &Breaker, terms: &config::Breaker) -> BreakerView {
    let state = breaker.state().name().to_owned();
    let recent = breaker.recent(terms, Instant::from_std(instant()));
    let recent = recent.map(|(requests, failures)| RecentView { requests, failures });
    BreakerView { endpoint, state, opened: breaker.opened(), recent }
}

/// The same as metrics. `endpoint` is empty for a service as a whole.
pub(super) fn page(page: &mut Page, guards: &[GuardView]) {
    let breakers = || {
        guards.iter().flat_map(|guard| {
            guard.breakers.iter().map(|breaker| (guard.upstream.as_str(), breaker))
        })
    };
    let help = "1 for the state that a circuit breaker is in.";
    let mut states = page.gauge("gateway_upstream_breaker_state", help);
    for (upstream, BreakerView { endpoint, state, .. }) in breakers() {
        for name in State::ALL.map(State::name) {
            let endpoint = endpoint.as_deref().unwrap_or_default();
            let labels = [("upstream", upstream), ("endpoint", endpoint), ("state", name)];
            states.with(&labels, (name == state).into());
        }
    }
    let help = "How often a circuit breaker opened.";
    let mut opened = page.counter("gateway_upstream_breaker_opened_total", help);
    for (upstream, BreakerView { endpoint, opened: count, .. }) in breakers() {
        let endpoint = endpoint.as_deref().unwrap_or_default();
        opened.with(&[("upstream", upstream), ("endpoint", endpoint)], *count);
    }
    type Number = fn(&ConcurrencyView) -> u32;
    let limits: [(_, _, Number); 3] = [
        ("gateway_upstream_concurrency_limit", "Requests at once.", |view| view.limit),
        ("gateway_upstream_concurrency_active", "Requests under way.", |view| view.active),
        ("gateway_upstream_concurrency_waiting", "Requests that wait.", |view| view.waiting),
    ];
    for (name, help, number) in limits {
        let mut family = page.gauge(name, help);
        for guard in guards {
            if let Some(view) = &guard.concurrency {
                family.with(&[("upstream", &guard.upstream)], number(view).into());
            }
        }
    }
}
