//! The addresses that must never be blocked, and why each of them is one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::base::prefix::{self, Cover, canonical};

/// Prefixes that no rule may block, each with its reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protected {
    prefixes: BTreeMap<IpNet, String>,
    own: BTreeSet<IpNet>,
    cover: Cover,
}

impl Protected {
    /// Adds a prefix; a second reason for the same one is added to the first.
    pub fn add(&mut self, prefix: IpNet, reason: &str) {
        let reasons = self.prefixes.entry(canonical(prefix)).or_default();
        if reasons.is_empty() {
            reasons.push_str(reason);
            self.cover = self.prefixes.keys().copied().collect();
        } else if !reasons.split(", ").any(|held| held == reason) {
            reasons.push_str(", ");
            reasons.push_str(reason);
        }
    }

    /// Adds a single address.
    pub fn add_address(&mut self, address: IpAddr, reason: &str) {
        self.add(IpNet::from(address), reason);
    }

    /// Adds an address that an interface of this host has.
    pub fn add_own(&mut self, address: IpAddr, interface: &str) {
        self.add_address(address, &format!("own address on {interface}"));
        // On another link another host may have the same one.
        let is_link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if !is_link_local {
            self.own.insert(canonical(IpNet::from(address)));
        }
    }

    /// Whether nobody else can have the address.
    pub fn is_own(&self, prefix: &IpNet) -> bool {
        self.own.contains(prefix)
    }

    /// The protected prefix that `prefix` lies inside, so that a rule for it would block protected addresses alone.
    pub fn covering(&self, prefix: &IpNet) -> Option<(&IpNet, &str)> {
        let found = self.cover.covering(prefix)?;
        self.prefixes.get_key_value(found).map(|(prefix, reason)| (prefix, reason.as_str()))
    }

    /// The protected prefixes that lie inside `prefix`: a rule for it applies around them.
    pub fn inside(&self, prefix: &IpNet) -> impl Iterator<Item = (&IpNet, &str)> {
        self.iter()
            .filter(move |(protected, _)| prefix.contains(*protected) && *protected != prefix)
    }

    /// All of them with their reasons.
    pub fn iter(&self) -> impl Iterator<Item = (&IpNet, &str)> {
        self.prefixes.iter().map(|(prefix, reason)| (prefix, reason.as_str()))
    }
}

/// The addresses assigned to this host's interfaces: the addresses, not the networks that they lie in.
pub fn own_addresses() -> Vec<(String, IpAddr)> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) => IpAddr::V6(v6.ip()),
                _ => return None,
            };
            Some((interface.interface_name, ip))
        })
        .collect()
}

/// The resolvers that the host asks.
pub fn resolvers() -> Vec<IpAddr> {
    parse_resolvers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn parse_resolvers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next())
        // A link-local resolver has its interface behind a percent sign.
        .filter_map(|address| address.split('%').next()?.parse().ok())
        .collect()
}

/// `10.0.0.11 (upstream users)`, for messages.
pub fn describe((prefix, reason): (&IpNet, &str)) -> String {
    format!("{} ({reason})", prefix::display(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn inside_and_around() {
        let mut protected = Protected::default();
        protected.add("10.1.0.0/16".parse().unwrap(), "trusted proxy");
        protected.add_address("10.0.0.11".parse().unwrap(), "upstream users");
        protected.add_address("10.0.0.11".parse().unwrap(), "resolver");
        let covering = |prefix: &str| protected.covering(&prefix.parse().unwrap()).map(describe);
        assert_eq!(covering("10.1.2.3/32").unwrap(), "10.1.0.0/16 (trusted proxy)");
        assert_eq!(covering("10.0.0.11/32").unwrap(), "10.0.0.11 (upstream users, resolver)");
        assert_eq!(covering("10.0.0.0/8"), None);
        assert_eq!(protected.inside(&"10.0.0.0/8".parse().unwrap()).count(), 2);
        assert_eq!(protected.inside(&"10.1.0.0/16".parse().unwrap()).count(), 0);
    }

    #[test]
    fn an_own_address_is_told_from_what_others_may_have_too() {
        let mut protected = Protected::default();
        protected.add_own("192.0.2.1".parse().unwrap(), "eth0");
        protected.add_own("fe80::1".parse().unwrap(), "docker0");
        protected.add_own("169.254.0.1".parse().unwrap(), "eth1");
        protected.add_address("192.0.2.53".parse().unwrap(), "resolver");
        let own = protected.iter().filter(|(prefix, _)| protected.is_own(prefix));
        let own: Vec<String> = own.map(describe).collect();
        assert_eq!(own, ["192.0.2.1 (own address on eth0)"]);
        assert_eq!(protected.iter().count(), 4);
    }

    #[test]
    fn resolvers_are_read_with_and_without_an_interface() {
        let text = "# c\nnameserver 192.0.2.53\n nameserver fe80::1%eth0 \noptions ndots:1\n";
        let expected: Vec<IpAddr> = vec!["192.0.2.53".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(parse_resolvers(text), expected);
    }

    #[test]
    fn the_loopback_address_is_our_own() {
        let own = own_addresses();
        assert!(
            own.iter().any(|(name, ip)| name == "lo" && *ip == IpAddr::V4(Ipv4Addr::LOCALHOST))
        );
    }
}
