//! Collects the addresses that must never be blocked, from the configuration and from the host as it is now.

use std::net::{IpAddr, SocketAddr};

use gateway_common::rule::{Action, OWN_ADDRESS, Origin};

use crate::base::time::UtcMillis;
use crate::config::{Config, Target};
use crate::rules::protected::{Protected, own_addresses, resolvers};
use crate::rules::{Rule, Until};

/// Every protected prefix with its reasons. `echo` is where the built-in service listens, `feeds` is what feeds were
/// fetched from, `sessions` who is connected to a management port.
pub fn collect<'a>(
    config: &Config,
    echo: Option<SocketAddr>,
    feeds: impl IntoIterator<Item = (&'a str, IpAddr)>,
    sessions: Vec<IpAddr>,
) -> Protected {
    let mut protected = Protected::default();
    for (interface, address) in own_addresses() {
        protected.add_own(address, &interface);
    }
    for address in resolvers() {
        protected.add_address(address, "resolver");
    }
    for prefix in &config.trusted_proxies {
        protected.add(*prefix, "trusted proxy");
    }
    for prefix in config.listen.iter().flat_map(|listener| &listener.proxy_protocol_from) {
        protected.add(*prefix, "PROXY protocol sender");
    }
    for prefix in &config.kernel.never_block {
        protected.add(*prefix, "never_block");
    }
    for upstream in &config.upstreams {
        for endpoint in &upstream.endpoints {
            let address = match endpoint.target {
                Target::Address(address) => Some(address),
                Target::Echo => echo,
            };
            if let Some(address) = address {
                protected.add_address(address.ip(), &format!("upstream {}", upstream.name));
            }
        }
    }
    for feed in &config.kernel.feeds {
        if let Some(address) = feed.address() {
            protected.add_address(address, &format!("feed {}", feed.name));
        }
    }
    for (feed, address) in feeds {
        protected.add_address(address, &format!("feed {feed}"));
    }
    for address in sessions {
        protected.add_address(address, "connected to a management port");
    }
    protected
}

/// The rules that the protected addresses are.
pub fn rules(protected: &Protected, now: UtcMillis) -> impl Iterator<Item = Rule> {
    protected.iter().map(move |(prefix, reason)| Rule {
        prefix: *prefix,
        action: Action::Allow,
        origin: Origin::Protected,
        profile: if protected.is_own(prefix) { OWN_ADDRESS } else { 0 },
        profile_name: String::new(),
        reason: reason.to_owned(),
        created: now,
        until: Until::NEVER,
    })
}

/// The rules that the configuration makes.
pub fn configured(config: &Config, now: UtcMillis) -> Vec<Rule> {
    let rule = |prefix, action, profile_name, key: &str| Rule {
        prefix,
        action,
        origin: Origin::Configuration,
        profile: 0,
        profile_name,
        reason: format!("kernel.{key}"),
        created: now,
        until: Until::NEVER,
    };
    let kernel = &config.kernel;
    let allow =
        kernel.allow.iter().map(|prefix| rule(*prefix, Action::Allow, String::new(), "allow"));
    let deny = kernel.deny.iter().map(|prefix| rule(*prefix, Action::Deny, String::new(), "deny"));
    let limits = kernel.limits.iter().map(|limit| {
        let profile = kernel.profiles.get(limit.profile).map(|profile| profile.name.clone());
        rule(limit.source, Action::Limit, profile.unwrap_or_default(), "limits")
    });
    allow.chain(deny).chain(limits).collect()
}
