//! How the services behind the gateway stand, for people and for Prometheus.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::admin::upstreams::{EndpointView, NameView, UpstreamView};
use crate::control::names::Names;
use crate::observe::prometheus::Page;
use crate::upstream::balance::{Group, Set};
use crate::upstream::directory::Directory;
use crate::upstream::endpoint::{Condition, EndpointState};

/// What an endpoint is called that is gone and has requests to finish.
const DRAINING: &str = "draining";

/// All services, by their names.
pub(in crate::control) fn all(directory: &Directory, names: &Names) -> Vec<UpstreamView> {
    let views = |group: &Arc<Group>| view(directory, group, names.views(group.name()));
    directory.groups().map(views).collect()
}

fn view(directory: &Directory, group: &Group, names: Vec<NameView>) -> UpstreamView {
    let set = group.set();
    let endpoints = set.endpoints().iter().map(|endpoint| EndpointView {
        zone: endpoint.zone.as_deref().map(str::to_owned),
        weight: endpoint.weight,
        condition: endpoint.state.condition().name().to_owned(),
        ..endpoint_view(endpoint.address, &endpoint.state)
    });
    let gone = directory.draining(group).into_iter();
    let gone = gone.map(|(address, state)| endpoint_view(address, &state));
    UpstreamView {
        name: group.name().to_owned(),
        balance: set.balance().algorithm.name().to_owned(),
        panic: is_panic(&set),
        ejections_refused: group.ejections_refused(),
        endpoints: endpoints.chain(gone).collect(),
        names,
    }
}

fn endpoint_view(address: SocketAddr, state: &EndpointState) -> EndpointView {
    let (since_utc_ms, why) = state.history();
    let totals = state.totals();
    EndpointView {
        address: address.to_string(),
        zone: None,
        weight: 0,
        condition: DRAINING.to_owned(),
        since_utc_ms,
        why,
        active: totals.active,
        requests: totals.requests,
        failures: totals.failures,
        failures_in_a_row: state.failures_in_a_row(),
        ejections: totals.ejections,
    }
}

fn is_panic(set: &Set) -> bool {
    let is_usable = |state: &EndpointState| state.condition() == Condition::Healthy;
    let usable = set.endpoints().iter().filter(|endpoint| is_usable(&endpoint.state)).count();
    set.balance().is_panic(usable, set.endpoints().len())
}

/// The same as metrics. Every label is from the configuration or from discovery, which is bounded.
pub(in crate::control) fn page(page: &mut Page, upstreams: &[UpstreamView]) {
    let help = "Endpoints of an upstream, by condition.";
    let mut family = page.gauge("gateway_upstream_endpoints", help);
    let conditions = Condition::ALL.into_iter().map(Condition::name).chain([DRAINING]);
    for upstream in upstreams {
        for condition in conditions.clone() {
            let of = upstream.endpoints.iter().filter(|one| one.condition == condition).count();
            family.with(&[("upstream", &upstream.name), ("condition", condition)], of as u64);
        }
    }
    let help = "1 while so few endpoints are usable that all are used.";
    let mut family = page.gauge("gateway_upstream_panic", help);
    for upstream in upstreams {
        family.with(&[("upstream", &upstream.name)], upstream.panic.into());
    }
    let help = "Ejections that were refused because too many endpoints were ejected.";
    let mut family = page.counter("gateway_upstream_ejections_refused_total", help);
    for upstream in upstreams {
        family.with(&[("upstream", &upstream.name)], upstream.ejections_refused);
    }
    let mut gauge = |name, help, value: fn(&EndpointView) -> u64| {
        let mut family = page.gauge(name, help);
        for (upstream, one) in endpoints(upstreams) {
            family.with(&[("upstream", upstream), ("endpoint", &one.address)], value(one));
        }
    };
    let help = "1 if the endpoint is neither unhealthy nor ejected.";
    gauge("gateway_endpoint_healthy", help, |one| {
        (one.condition == Condition::Healthy.name()).into()
    });
    let help = "Requests that the endpoint has not answered to the end.";
    gauge("gateway_endpoint_requests_active", help, |one| one.active);
    let mut counter = |name, help, value: fn(&EndpointView) -> u64| {
        let mut family = page.counter(name, help);
        for (upstream, one) in endpoints(upstreams) {
            family.with(&[("upstream", upstream), ("endpoint", &one.address)], value(one));
        }
    };
    let help = "Requests that were sent to the endpoint, each attempt.";
    counter("gateway_endpoint_requests_total", help, |one| one.requests);
    let help = "Requests that the endpoint failed: no connection, no answer, or a status of 5xx.";
    counter("gateway_endpoint_failures_total", help, |one| one.failures);
    let help = "How often the endpoint was ejected.";
    counter("gateway_endpoint_ejections_total", help, |one| one.ejections);
}

fn endpoints(upstreams: &[UpstreamView]) -> impl Iterator<Item = (&str, &EndpointView)> {
    upstreams.iter().flat_map(|upstream| {
        upstream.endpoints.iter().map(|endpoint| (upstream.name.as_str(), endpoint))
    })
}
