//! The policies that a request would meet, as names of settings and their values. Every field of an upstream is named
//! here, so that a new one cannot be left out.

use std::fmt;
use std::net::IpAddr;

use humantime::format_duration;
use ipnet::IpNet;
use serde::Serialize;

use crate::base::prefix;
use crate::config::{
    Action, Adaptive, Algorithm, Ambiguity, Attach, Bounds, Breaker, CallerLimit, Concurrency,
    Config, Endpoint, FailureSet, FailureShare, Forward, HashKey, HeaderChanges, Health, Hedge,
    Kernel, Limit, Limited, Name, Priority, Probe, Retry, Route, Sticky, Target, Timeouts,
    Upstream, UpstreamTls,
};

/// The choice that depends on who asks.
pub(super) const BY_ADDRESS: Option<Sticky> = Some(Sticky::ClientAddress);

/// A setting and its value.
#[derive(Debug, Serialize)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) value: String,
}

/// An upstream that the request may go to.
#[derive(Debug, Serialize)]
pub(super) struct Way {
    pub(super) name: String,
    /// Parts of `of` that it gets by chance.
    weight: u32,
    of: u64,
    /// Whether the request goes there for certain.
    chosen: bool,
    endpoints: Vec<String>,
    pub(super) policies: Vec<Policy>,
}

/// What the configuration makes of an address. Lists, and rules that were made at run time, are not in it.
#[derive(Debug, Serialize)]
pub(super) struct Source {
    address: IpAddr,
    /// `allow`, `deny`, `limit` or `none`.
    action: &'static str,
    prefix: Option<String>,
    /// The setting that says so.
    setting: Option<String>,
}

impl Source {
    /// How it is kept out, if it is: by whom, and what it meets.
    pub(super) fn is_denied(&self, config: &Config) -> Option<String> {
        let Kernel { attach, interfaces, dry_run, .. } = &config.kernel;
        let is_denied = self.action == "deny" && !dry_run;
        let (prefix, setting) = self.prefix.as_ref().zip(self.setting.as_ref())?;
        let mut how = format!("{prefix} is denied by {setting}: its ");
        if *attach == Attach::Off || interfaces.is_empty() {
            how.push_str("connections are closed as they are accepted");
        } else {
            how.push_str("packets are dropped on ");
            how.push_str(&interfaces.join(", "));
        }
        if !config.trusted_proxies.is_empty() {
            how.push_str("; 403 where one of trusted_proxies names it");
        }
        is_denied.then_some(how)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.address, self.action)?;
        if let (Some(prefix), Some(setting)) = (&self.prefix, &self.setting) {
            write!(formatter, " by {setting} ({prefix})")?;
        }
        write!(formatter, "; `gateway why {}` knows lists and bans too", self.address)
    }
}

pub(super) fn policy(name: &str, value: impl fmt::Display) -> Policy {
    Policy { name: name.to_owned(), value: value.to_string() }
}

/// The rule of the configuration that decides about `address`: protected before all, then the most specific.
pub(super) fn source(config: &Config, address: IpAddr) -> Source {
    let kernel = &config.kernel;
    let protected =
        [("kernel.never_block", &kernel.never_block), ("trusted_proxies", &config.trusted_proxies)];
    let protected =
        protected.into_iter().flat_map(|(key, nets)| nets.iter().map(move |net| (key, net)));
    let listed = |action, key: &str, net: &IpNet, rank| {
        (rank, net.prefix_len(), action, key.to_owned(), *net)
    };
    let profile = |index: usize| {
        kernel.profiles.get(index).map(|profile| profile.name.as_str()).unwrap_or_default()
    };
    let rules = protected
        .map(|(key, net)| listed("allow", key, net, 2))
        .chain(kernel.allow.iter().map(|net| listed("allow", "kernel.allow", net, 1)))
        .chain(kernel.deny.iter().map(|net| listed("deny", "kernel.deny", net, 1)))
        .chain(kernel.limits.iter().map(|limit| {
            let key = format!("kernel.limits, profile {}", profile(limit.profile));
            listed("limit", &key, &limit.source, 1)
        }));
    let best = rules.filter(|(.., net)| net.contains(&address)).max_by_key(|rule| (rule.0, rule.1));
    match (best, kernel.default_profile) {
        (Some((_, _, action, setting, net)), _) => {
            Source { address, action, prefix: Some(prefix::display(&net)), setting: Some(setting) }
        }
        (None, Some(index)) => Source {
            address,
            action: "limit",
            prefix: None,
            setting: Some(format!("kernel.default_profile {}", profile(index))),
        },
        (None, None) => Source { address, action: "none", prefix: None, setting: None },
    }
}

/// What holds for every request.
pub(super) fn bounds(bounds: &Bounds) -> Vec<Policy> {
    vec![
        policy("bounds.header_count", bounds.header_count),
        policy("bounds.head_bytes", bounds.head_bytes),
        policy("bounds.target_bytes", bounds.target_bytes),
        policy("bounds.body_bytes", bounds.body_bytes),
        policy("bounds.body_bytes_per_second", bounds.body_bytes_per_second),
        policy("bounds.head_timeout", format_duration(bounds.head_timeout)),
        policy("bounds.idle_timeout", format_duration(bounds.idle_timeout)),
    ]
}

/// Whether the route says nothing else.
pub(super) fn holds(policy: &Policy, route: &Route) -> bool {
    policy.name != "bounds.body_bytes" || own_body_bytes(route).is_none()
}

fn own_body_bytes(route: &Route) -> Option<u64> {
    match &route.action {
        Action::Forward(forward) => forward.body_bytes,
        Action::Redirect(_) | Action::Respond(_) => None,
    }
}

/// Who may take the route.
fn callers(config: &Config, route: &Route) -> String {
    let Some(access) = &route.access else { return "everybody".to_owned() };
    let names = access.authenticators.iter().filter_map(|index| config.auth.get(*index));
    let names = names.map(|one| one.name.as_str());
    let names: Vec<&str> = names.chain(access.anonymous.then_some("anonymous")).collect();
    names.join(", ")
}

/// What the route says besides where the request goes.
pub(super) fn of_route(config: &Config, route: &Route) -> Vec<Policy> {
    let ambiguity = |ambiguity| match ambiguity {
        Ambiguity::SameRoute => "same_route",
        Ambiguity::Keep => "keep",
        Ambiguity::Refuse => "refuse",
    };
    let priority = match route.priority {
        Priority::Low => "low",
        Priority::Normal => "normal",
        Priority::High => "high",
        Priority::Critical => "critical",
    };
    let mut found = vec![
        policy("auth", callers(config, route)),
        policy("priority", priority),
        policy("encoded_slash", ambiguity(route.encoded_slash)),
        policy("path_parameters", ambiguity(route.path_parameters)),
    ];
    found.extend(own_body_bytes(route).map(|bytes| policy("body_bytes", bytes)));
    found.extend(limits(config.limited.limits.iter().chain(&route.limits)));
    if route.cost > 1 {
        found.push(policy("cost", route.cost));
    }
    if let Action::Forward(Forward { timeouts, .. }) = &route.action {
        let Timeouts { connect, response, whole, stream_idle } = *timeouts;
        let times = [
            ("timeout.connect", connect),
            ("timeout.response", response),
            ("timeout.whole", whole),
            ("timeout.stream_idle", stream_idle),
        ];
        found.extend(times.into_iter().filter_map(|(key, time)| {
            let of =
                if key == "timeout.stream_idle" { "bounds.idle_timeout" } else { "the upstream's" };
            Some(policy(key, format!("{}, instead of {of}", format_duration(time?))))
        }));
    }
    let changes = [
        ("request_headers", &route.request_headers),
        ("response_headers", &route.response_headers),
    ];
    for (key, HeaderChanges { remove, set, add }) in changes {
        found.extend(remove.iter().map(|name| policy(&format!("{key}.remove"), name)));
        for (verb, fields) in [("set", set), ("add", add)] {
            found.extend(fields.iter().map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes());
                policy(&format!("{key}.{verb}"), format!("{name}: {value}"))
            }));
        }
    }
    found
}

/// What its caller may besides, by its own limits or its plan.
pub(super) fn of_caller(
    config: &Config,
    consumer: Option<&str>,
    plan: Option<&str>,
) -> Vec<Policy> {
    let Limited { common, plans, .. } = &config.limited;
    let own = consumer.and_then(|name| config.consumers.iter().find(|one| one.name == name));
    let own = own.map(|consumer| &consumer.limits).filter(|limits| !limits.is_empty());
    let named = plan.and_then(|name| plans.iter().find(|plan| plan.name == name));
    let plan = named.or_else(|| common.default_plan.and_then(|index| plans.get(index)));
    let found = own.or_else(|| plan.map(|plan| &plan.limits));
    limits(found.into_iter().flatten()).collect()
}

fn limits<'l>(list: impl Iterator<Item = &'l CallerLimit>) -> impl Iterator<Item = Policy> {
    list.map(|limit| {
        let per: Vec<String> = limit.per.iter().map(ToString::to_string).collect();
        let value = format!("{}, per {}", limit.allowance, per.join(", "));
        policy(&format!("limits.{}", limit.name), value)
    })
}

/// Where the request goes, in words.
pub(super) fn of_choice(forward: &Forward, config: &Config, chosen: Option<usize>) -> String {
    let name = |index: usize| config.upstreams.get(index).map(|upstream| upstream.name.as_str());
    if let Some(name) = chosen.and_then(name) {
        return format!("to {name}");
    }
    let names: Vec<_> = forward.upstreams.iter().map(|one| one.name.as_str()).collect();
    let how = match &forward.sticky {
        None => "by chance".to_owned(),
        Some(Sticky::Cookie(cookie)) => format!("by chance, then by the cookie `{cookie}`"),
        Some(Sticky::Header(header)) => format!("by chance, for there is no header `{header}`"),
        Some(Sticky::ClientAddress) => "by the client's address (--from)".to_owned(),
        Some(Sticky::Consumer) => "by the consumer, and by chance whoever is not known".to_owned(),
    };
    format!("to one of {} {how}", names.join(", "))
}

/// The upstreams of the route, or the one that is chosen.
pub(super) fn ways(forward: &Forward, config: &Config, chosen: Option<usize>) -> Vec<Way> {
    let of = forward.upstreams.iter().map(|one| u64::from(one.weight)).sum();
    let ways = forward.upstreams.iter().filter(|one| chosen.is_none_or(|it| it == one.upstream));
    let ways = ways.filter_map(|one| {
        let upstream = config.upstreams.get(one.upstream)?;
        let (endpoints, mut policies) = of_upstream(upstream);
        if forward.upstreams.len() > 1 {
            policies.insert(0, policy("weight", format!("{} of {of}", one.weight)));
        }
        let (name, chosen) = (upstream.name.clone(), chosen.is_some());
        Some(Way { name, weight: one.weight, of, chosen, endpoints, policies })
    });
    ways.collect()
}

/// Who is trusted, and under which name.
fn tls_of(tls: &UpstreamTls) -> String {
    let trusted = match (&tls.ca, tls.verify) {
        (_, false) => "verifies nobody".to_owned(),
        (Some(files), true) => format!("trusts {}", files.ca.display()),
        (None, true) => "trusts the system's authorities".to_owned(),
    };
    let name = tls.server_name.as_deref().unwrap_or("the address of the endpoint");
    let own = tls.client_certificate.as_ref();
    let own = own.map(|files| format!(", shows {}", files.cert.display()));
    format!("{trusted}, name {name}{}", own.unwrap_or_default())
}

/// Its endpoints, and its settings with them.
fn of_upstream(upstream: &Upstream) -> (Vec<String>, Vec<Policy>) {
    let Upstream {
        name: _,
        endpoints,
        protocol,
        balance,
        health,
        connect_timeout,
        response_timeout,
        whole_timeout,
        retry,
        hedge,
        breaker,
        concurrency,
        idle_connections,
        idle_timeout,
        tls,
        proxy_protocol,
    } = upstream;
    let shown: Vec<(String, String)> = endpoints.iter().map(described).collect();
    let mut found: Vec<Policy> = shown
        .iter()
        .map(|(target, more)| policy("endpoint", format!("{target} ({more})")))
        .collect();
    let bound = balance.bound.map(|share| share.to_string());
    let whole = whole_timeout.map(|time| format_duration(time).to_string());
    found.extend([
        policy("protocol", protocol.name()),
        policy("balance", algorithm(&balance.algorithm)),
        policy("balance.bound", bound.as_deref().unwrap_or("none")),
        policy("slow_start", format_duration(balance.slow_start)),
        policy("panic_threshold", balance.panic_threshold),
        policy("timeout.connect", format_duration(*connect_timeout)),
        policy("timeout.response", format_duration(*response_timeout)),
        policy("timeout.whole", whole.as_deref().unwrap_or("none")),
        policy("timeout.idle", format_duration(*idle_timeout)),
        policy("idle_connections", idle_connections),
        policy("tls", tls.as_ref().map_or_else(|| "none".to_owned(), tls_of)),
        policy("proxy_protocol", if *proxy_protocol { "v2" } else { "none" }),
    ]);
    found.extend(match &balance.ejection {
        None => vec![policy("ejection", "off")],
        Some(ejection) => vec![
            policy("ejection.failures", ejection.failures),
            policy("ejection.time", format_duration(ejection.time)),
            policy("ejection.max_time", format_duration(ejection.max_time)),
            policy("ejection.max_ejected", ejection.max_ejected),
        ],
    });
    found.extend(health.as_ref().map_or_else(|| vec![policy("health", "none")], checks));
    found.extend(retries(retry));
    found.extend(match hedge {
        None => vec![policy("hedge", "none")],
        Some(Hedge { after, budget }) => {
            vec![policy("hedge.after", after), policy("hedge.budget", budget)]
        }
    });
    found.extend(breaking(breaker.as_ref()));
    found.extend(limiting(concurrency.as_ref()));
    (shown.into_iter().map(|(target, _)| target).collect(), found)
}

/// Where an endpoint is, and what more is said about it.
fn described(endpoint: &Endpoint) -> (String, String) {
    let Endpoint { target, weight, zone } = endpoint;
    let (target, weight) = match target {
        Target::Address(address) => (address.to_string(), format!("weight {weight}")),
        Target::Echo => ("echo".to_owned(), format!("weight {weight}")),
        Target::Name(name @ Name::Host { .. }) => {
            (name.to_string(), format!("weight {weight} for each address that is found"))
        }
        Target::Name(name @ Name::Service(_)) => {
            (name.to_string(), "weights as its records say".to_owned())
        }
    };
    let zone = zone.as_ref().map(|zone| format!(", zone {zone}"));
    (target, format!("{weight}{}", zone.unwrap_or_default()))
}

fn algorithm(algorithm: &Algorithm) -> String {
    match algorithm {
        Algorithm::RoundRobin | Algorithm::LeastRequests | Algorithm::RandomTwo => {
            algorithm.name().to_owned()
        }
        Algorithm::Hash(HashKey::Header(name)) => format!("hash of the header `{name}`"),
        Algorithm::Hash(HashKey::Cookie(name)) => format!("hash of the cookie `{name}`"),
        Algorithm::Hash(HashKey::Path) => "hash of the path".to_owned(),
        Algorithm::Hash(HashKey::Consumer) => "hash of the consumer".to_owned(),
        Algorithm::Hash(HashKey::Client) => "hash of the client's address".to_owned(),
    }
}

fn checks(health: &Health) -> Vec<Policy> {
    let asked = match &health.probe {
        Probe::Tcp => "tcp".to_owned(),
        Probe::Http { path, .. } => format!("http {path}"),
        Probe::Grpc { service, .. } => format!("grpc {service}").trim_end().to_owned(),
    };
    vec![
        policy("health", if health.tls { format!("{asked} over TLS") } else { asked }),
        policy("health.interval", format_duration(health.interval)),
        policy("health.timeout", format_duration(health.timeout)),
        policy("health.healthy_after", health.healthy_after),
        policy("health.unhealthy_after", health.unhealthy_after),
    ]
}

fn retries(retry: &Retry) -> Vec<Policy> {
    let Retry { attempts, on, methods, backoff, budget, buffer_bytes } = retry;
    if *attempts < 2 {
        return vec![policy("retry.attempts", attempts)];
    }
    let methods: Vec<&str> = methods.iter().map(http::Method::as_str).collect();
    let (first, max) = (format_duration(backoff.first), format_duration(backoff.max));
    vec![
        policy("retry.attempts", attempts),
        policy("retry.on", failures(on)),
        policy("retry.methods", methods.join(", ")),
        policy("retry.backoff", format!("{first}..{max}")),
        policy("retry.budget", budget),
        policy("retry.buffer_bytes", buffer_bytes),
    ]
}

fn failures(on: &FailureSet) -> String {
    let statuses: Vec<String> = on.statuses.iter().map(ToString::to_string).collect();
    let named =
        [(on.connect_failure, "connect_failure"), (on.reset, "reset"), (on.timeout, "timeout")];
    let named = named.into_iter().filter(|(is_on, _)| *is_on).map(|(_, name)| name);
    let on: Vec<&str> = named.chain(statuses.iter().map(String::as_str)).collect();
    on.join(", ")
}

fn breaking(breaker: Option<&Breaker>) -> Vec<Policy> {
    let Some(breaker) = breaker else { return vec![policy("breaker", "none")] };
    let per = match (breaker.of_upstream, breaker.of_endpoints) {
        (true, true) => "both",
        (true, false) => "upstream",
        (false, _) => "endpoint",
    };
    let fallback = breaker.fallback.as_ref().map(|fallback| fallback.status.as_u16());
    let mut found = vec![
        policy("breaker.open_for", format_duration(breaker.open_for)),
        policy("breaker.half_open", breaker.half_open),
        policy("breaker.on", failures(&breaker.on)),
        policy("breaker.per", per),
        policy("breaker.fallback.status", fallback.unwrap_or(503)),
    ];
    found.extend(breaker.failures.map(|failures| policy("breaker.failures", failures)));
    if let Some(FailureShare { share, window, min_requests }) = breaker.share {
        found.extend([
            policy("breaker.failure_share", share),
            policy("breaker.window", format_duration(window)),
            policy("breaker.min_requests", min_requests),
        ]);
    }
    found
}

fn limiting(concurrency: Option<&Concurrency>) -> Vec<Policy> {
    let Some(Concurrency { limit, queue, wait }) = concurrency else {
        return vec![policy("concurrency", "none")];
    };
    let limit = match limit {
        Limit::Fixed(limit) => limit.to_string(),
        Limit::Adaptive(Adaptive { min, max }) => format!("adaptive, {min} to {max}"),
    };
    vec![
        policy("concurrency.limit", limit),
        policy("concurrency.queue", queue),
        policy("concurrency.wait", format_duration(*wait)),
    ]
}
