//! Collects the addresses that must never be blocked, from the configuration and from the host as it is now.

use std::net::{IpAddr, SocketAddr};

use gateway_common::rule::{Action, OWN_ADDRESS, Origin};

use super::policy::Policy;
use super::sessions::Sessions;
use crate::base::time::{Now, UtcMillis};
use crate::config::{Config, Target};
use crate::rules::protected::{Protected, own_addresses, resolvers};
use crate::rules::{Rule, Until};
use crate::upstream::directory::Directory;

/// Every protected prefix with its reasons. `echo` is where the built-in service listens, `peers` are those whose
/// addresses were looked up.
pub fn collect(
    config: &Config,
    echo: Option<SocketAddr>,
    peers: impl IntoIterator<Item = (String, IpAddr)>,
    sessions: &Sessions,
) -> Protected {
    let mut protected = Protected::default();
    for (interface, address) in own_addresses() {
        protected.add_own(address, &interface);
    }
    for address in resolvers() {
        protected.add_address(address, "resolver");
    }
    for resolver in &config.discovery.resolvers {
        protected.add_address(resolver.ip(), "resolver");
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
                Target::Name(_) => None,
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
    let feedback = config.feedback.as_ref();
    let crowdsec = feedback.and_then(|feedback| feedback.crowdsec.as_ref()?.address());
    if let Some(address) = crowdsec {
        protected.add_address(address, "feedback.crowdsec");
    }
    for (why, address) in peers {
        protected.add_address(address, &why);
    }
    for address in sessions.peers() {
        protected.add_address(address, "connected to a management port");
    }
    protected
}

/// Every protected prefix of a gateway that runs: also of endpoints that are no more and have requests to answer.
pub(super) fn gather(
    (config, echo): (&Config, Option<SocketAddr>),
    peers: impl IntoIterator<Item = (String, IpAddr)>,
    directory: &Directory,
    sessions: &Sessions,
) -> Protected {
    let mut protected = collect(config, echo, peers, sessions);
    for (upstream, address) in directory.in_use() {
        if protected.covering(&address.ip().into()).is_none() {
            protected.add_address(address.ip(), &format!("upstream {upstream}, as it was"));
        }
    }
    protected
}

/// Puts them in force.
pub(super) fn refresh(policy: &mut Policy, protected: Protected, now: Now) {
    let refreshed = policy.refresh(protected, now).and_then(|changed| {
        policy.door.as_mut().map_or(Ok(()), |door| door.vouch(now.boot))?;
        Ok(changed)
    });
    match refreshed {
        Ok(true) => tracing::info!("protected addresses changed"),
        Ok(false) => {}
        Err(error) => tracing::error!(%error, "protected addresses could not be updated"),
    }
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
