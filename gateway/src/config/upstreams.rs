//! `upstreams`: the services behind the gateway. Refuses an endpoint that is the gateway itself.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::at::At;
use super::balance::balance;
use super::breaker::breaker;
use super::concurrency::concurrency;
use super::discovery::{host_and_port, is_name, service};
use super::health::health;
use super::hedge::hedge;
use super::listen::is_own;
use super::raw::{Named, RawEndpoint, RawEndpointSection, RawUpstream, TextOr};
use super::retry::retry;
use super::tls::upstream_tls;
use super::value::{count, duration, name, socket_address, within_u32};
use super::{
    Discovery, Endpoint, Health, Listener, Name, Probe, Protocol, Target, Upstream, UpstreamTls,
};

/// No endpoint takes more than so many times the requests of another.
const WEIGHT_MAX: u64 = 1000;
/// Endpoints of one upstream.
const ENDPOINTS_MAX: usize = 512;

/// What an upstream is read with of the rest of the file.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) folder: &'a Path,
    /// Where the gateway itself is.
    pub(super) listeners: &'a [Listener],
    pub(super) discovery: &'a Discovery,
}

/// Every upstream, also one with mistakes, so that routes refer to what the file has.
pub(super) fn upstreams(raw: &Named<RawUpstream>, around: Around<'_>, at: At<'_>) -> Vec<Upstream> {
    let entries = raw.0.iter().enumerate();
    entries.map(|(index, (name, raw))| upstream(name, raw, around, at.entry(index))).collect()
}

fn upstream(own_name: &str, raw: &RawUpstream, around: Around<'_>, at: At<'_>) -> Upstream {
    name(own_name, "an upstream", at.on_key());
    let timeout = at.key("timeout");
    let time = |text: &str, key| duration(text, timeout.key(key)).unwrap_or(Duration::ZERO);
    let idle_connections = count(raw.idle_connections, 0..=65_536, at.key("idle_connections"));
    let endpoints = endpoints(own_name, &raw.endpoints, around, at.key("endpoints"));
    let tls = raw.tls.as_ref().map(|tls| {
        let at = at.key("tls");
        let mut tls = upstream_tls(tls, around.folder, at);
        name_certificates(&mut tls, &endpoints, at);
        tls
    });
    Upstream {
        name: own_name.to_owned(),
        endpoints,
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
        tls,
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

/// Where endpoints have a name, certificates must have it too.
fn name_certificates(tls: &mut UpstreamTls, endpoints: &[Endpoint], at: At<'_>) {
    let is_name = |endpoint: &Endpoint| matches!(endpoint.target, Target::Name(_));
    if tls.server_name.is_some() || !tls.verify || !endpoints.iter().any(is_name) {
        return;
    }
    let host = |endpoint: &Endpoint| match &endpoint.target {
        Target::Name(Name::Host { host, .. }) => Some(host.trim_end_matches('.').to_owned()),
        _ => None,
    };
    let first = endpoints.first().and_then(host);
    if first.is_some() && endpoints.iter().all(|endpoint| host(endpoint) == first) {
        tls.server_name = first;
        return;
    }
    at.on_key().error_with_help(
        "which name certificates must have does not follow from the endpoints",
        "write it, such as tls: {server_name: api.internal}",
    );
}

fn endpoints(upstream: &str, raw: &[RawEndpoint], around: Around<'_>, at: At<'_>) -> Vec<Endpoint> {
    if raw.is_empty() {
        at.on_key().error_with_help(
            format!("upstream `{upstream}` has no endpoint"),
            "add one, such as: endpoints: [10.0.0.11:8080]",
        );
    }
    let mut found: Vec<Endpoint> = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let at = at.item(index);
        let Some((endpoint, text, at)) = endpoint(raw, around.listeners, at) else { continue };
        if found.iter().any(|held| held.target == endpoint.target) {
            at.error_with_help(
                format!("`{text}` is given twice in upstream `{upstream}`"),
                "remove one of the two",
            );
        } else {
            found.push(endpoint);
        }
    }
    refuse_too_many(upstream, &found, around.discovery, at);
    found
}

fn refuse_too_many(upstream: &str, found: &[Endpoint], discovery: &Discovery, at: At<'_>) {
    let is_name = |endpoint: &&Endpoint| matches!(endpoint.target, Target::Name(_));
    let names = found.iter().filter(is_name).count();
    let most = found.len() - names + names * discovery.max_addresses;
    if most <= ENDPOINTS_MAX {
        return;
    }
    let (message, help) = match names {
        0 => ("has", "make several".to_owned()),
        names => {
            let each = discovery.max_addresses;
            let help =
                format!("{names} names bring up to {each} each: lower `discovery.max_addresses`");
            ("may come to have", help)
        }
    };
    at.on_key().error_with_help(
        format!("upstream `{upstream}` {message} {most} endpoints"),
        format!("an upstream has at most {ENDPOINTS_MAX}: {help}"),
    );
}

/// An endpoint with the text that says where it is, and the place of that.
fn endpoint<'r, 'a>(
    raw: &'r RawEndpoint,
    listeners: &[Listener],
    at: At<'a>,
) -> Option<(Endpoint, &'r str, At<'a>)> {
    let section = match raw {
        TextOr::Text(text) => {
            return Some((target(text, listeners, at)?.into(), text, at));
        }
        TextOr::Section(section) => section,
    };
    let RawEndpointSection { address, srv, weight, zone } = section;
    let zone = zone.clone().filter(|zone| name(zone, "a zone", at.key("zone")));
    let weight = weight.map(|weight| within_u32(weight, 1..=WEIGHT_MAX, at.key("weight")));
    let (target, text, at) = match (address, srv) {
        (Some(text), None) => {
            let at = at.key("address");
            (target(text, listeners, at)?, text, at)
        }
        (None, Some(text)) => {
            if weight.is_some() {
                at.key("weight").error_with_help(
                    "the records of a service have weights of their own",
                    "take `weight` out",
                );
            }
            let at = at.key("srv");
            (Target::Name(service(text, at)?), text, at)
        }
        _ => {
            at.error_with_help(
                "an endpoint has either `address` or `srv`",
                "write one such as {address: api.internal:8080} or {srv: _http._tcp.api.internal}",
            );
            return None;
        }
    };
    let weight = weight.flatten().unwrap_or(1);
    Some((Endpoint { target, weight, zone }, text, at))
}

fn target(text: &str, listeners: &[Listener], at: At<'_>) -> Option<Target> {
    match text {
        "echo" => Some(Target::Echo),
        name if is_name(name) => host_and_port(name, at).map(Target::Name),
        address => self::address(address, listeners, at).map(Target::Address),
    }
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
