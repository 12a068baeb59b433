//! `upstreams`: the services behind the gateway. Refuses an endpoint that is the gateway itself.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::at::At;
use super::balance::balance;
use super::breaker::breaker;
use super::concurrency::concurrency;
use super::health::health;
use super::hedge::hedge;
use super::listen::is_own;
use super::raw::{Named, RawEndpoint, RawUpstream};
use super::retry::retry;
use super::tls::upstream_tls;
use super::value::{count, duration, name, socket_address};
use super::{Endpoint, Health, Listener, Probe, Protocol, Target, Upstream};

/// No endpoint takes more than so many times the requests of another.
const WEIGHT_MAX: u64 = 1000;
/// Endpoints of one upstream.
const ENDPOINTS_MAX: usize = 512;

/// Every upstream, also one with mistakes, so that routes refer to what the file has.
pub(super) fn upstreams(
    raw: &Named<RawUpstream>,
    folder: &Path,
    listeners: &[Listener],
    at: At<'_>,
) -> Vec<Upstream> {
    let entries = raw.0.iter().enumerate();
    entries
        .map(|(index, (name, raw))| upstream(name, raw, (folder, listeners), at.entry(index)))
        .collect()
}

fn upstream(
    own_name: &str,
    raw: &RawUpstream,
    (folder, listeners): (&Path, &[Listener]),
    at: At<'_>,
) -> Upstream {
    name(own_name, "an upstream", at.on_key());
    let timeout = at.key("timeout");
    let time = |text: &str, key| duration(text, timeout.key(key)).unwrap_or(Duration::ZERO);
    let idle_connections = count(raw.idle_connections, 0..=65_536, at.key("idle_connections"));
    Upstream {
        name: own_name.to_owned(),
        endpoints: endpoints(own_name, &raw.endpoints, listeners, at.key("endpoints")),
        protocol: protocol(raw, at),
        balance: balance(raw, at),
        health: raw.health.as_ref().and_then(|section| {
            let health = health(section, at.key("health"))?;
            refuse_plain_checks(raw, &health, at.key("health"));
            Some(health)
        }),
        connect_timeout: time(&raw.timeout.connect, "connect"),
        response_timeout: time(&raw.timeout.response, "response"),
        whole_timeout: raw.timeout.whole.as_ref().map(|text| time(text, "whole")),
        retry: retry(&raw.retry, at.key("retry")),
        hedge: raw.hedge.as_ref().and_then(|raw| hedge(raw, at.key("hedge"))),
        breaker: raw.breaker.as_ref().map(|raw| breaker(raw, at.key("breaker"))),
        concurrency: raw.concurrency.as_ref().map(|raw| concurrency(raw, at.key("concurrency"))),
        idle_connections: idle_connections.unwrap_or_default(),
        idle_timeout: time(&raw.timeout.idle, "idle"),
        tls: raw.tls.as_ref().map(|tls| upstream_tls(tls, folder, at.key("tls"))),
        proxy_protocol: raw.proxy_protocol.is_some(),
    }
}

/// What endpoints are asked over. Refuses to share connections between clients where each is said to be of one.
fn protocol(raw: &RawUpstream, at: At<'_>) -> Protocol {
    let Some(protocol) = raw.protocol else {
        let may_choose = raw.tls.is_some() && raw.proxy_protocol.is_none();
        return if may_choose { Protocol::Auto } else { Protocol::Http1 };
    };
    if protocol != Protocol::Http1 && raw.proxy_protocol.is_some() {
        at.key("proxy_protocol").on_key().error_with_help(
            "connections of HTTP/2 are shared by clients, and the PROXY protocol names one",
            format!("take out either `protocol: {}` or `proxy_protocol`", protocol.name()),
        );
    }
    if protocol == Protocol::Auto && raw.tls.is_none() {
        at.key("protocol").error_with_help(
            "endpoints choose the protocol while TLS is agreed on, and this upstream has no TLS",
            "write `http1`, or `h2` if the service speaks it from the first byte, or add `tls`",
        );
    }
    protocol
}

/// Refuses checks that speak plain HTTP to a service that expects something else first: all of them would fail.
fn refuse_plain_checks(raw: &RawUpstream, health: &Health, at: At<'_>) {
    if health.probe != Probe::Tcp && (raw.tls.is_some() || raw.proxy_protocol.is_some()) {
        at.on_key().error_with_help(
            "health checks speak neither TLS nor the PROXY protocol, which this upstream expects",
            "check that it takes connections, by `type: tcp`",
        );
    }
}

fn endpoints(
    upstream: &str,
    raw: &[RawEndpoint],
    listeners: &[Listener],
    at: At<'_>,
) -> Vec<Endpoint> {
    if raw.len() > ENDPOINTS_MAX {
        at.on_key().error_with_help(
            format!("upstream `{upstream}` has {} endpoints", raw.len()),
            format!("an upstream has at most {ENDPOINTS_MAX}: make several"),
        );
    }
    if raw.is_empty() {
        at.on_key().error_with_help(
            format!("upstream `{upstream}` has no endpoint"),
            "add one, such as: endpoints: [10.0.0.11:8080]",
        );
    }
    let mut found = Vec::new();
    for (index, endpoint) in raw.iter().enumerate() {
        let at = at.item(index);
        let (text, weight, zone, at) = match endpoint {
            RawEndpoint::Text(text) => (text, Some(1), None, at),
            RawEndpoint::Section(section) => {
                let weight = count(section.weight, 1..=WEIGHT_MAX, at.key("weight"));
                let zone = section.zone.clone();
                let zone = zone.filter(|zone| name(zone, "a zone", at.key("zone")));
                (&section.address, weight, zone, at.key("address"))
            }
        };
        let target = if text == "echo" {
            Target::Echo
        } else {
            match address(text, listeners, at) {
                Some(address) => Target::Address(address),
                None => continue,
            }
        };
        if found.iter().any(|held: &Endpoint| held.target == target) {
            at.error_with_help(
                format!("`{text}` is given twice in upstream `{upstream}`"),
                "remove one of the two",
            );
        } else {
            let weight = weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(1);
            found.push(Endpoint { target, weight, zone });
        }
    }
    found
}

fn address(text: &str, listeners: &[Listener], at: At<'_>) -> Option<SocketAddr> {
    let address = socket_address(text, at)?;
    if is_own(listeners, address) {
        at.error_with_help(
            format!("`{address}` is where the gateway itself listens: requests would go round"),
            "write the address of the service, or `echo` for the built-in one",
        );
        return None;
    }
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        at.error_with_help(
            format!("`{address}` is the address of no single host"),
            "write the address of the service, such as 127.0.0.1:3000",
        );
        return None;
    }
    Some(address)
}
