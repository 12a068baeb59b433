//! The addresses that must never be blocked, and why each of them is one.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::base::prefix::{self, canonical};

/// Prefixes that no rule may block, each with its reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protected {
    prefixes: BTreeMap<IpNet, String>,
}

impl Protected {
    /// Adds a prefix; a second reason for the same one is added to the first.
    pub fn add(&mut self, prefix: IpNet, reason: &str) {
        let reasons = self.prefixes.entry(canonical(prefix)).or_default();
        if reasons.is_empty() {
            reasons.push_str(reason);
        } else if !reasons.split(", ").any(|held| held == reason) {
            reasons.push_str(", ");
            reasons.push_str(reason);
        }
    }

    /// Adds a single address.
    pub fn add_address(&mut self, address: IpAddr, reason: &str) {
        self.add(IpNet::from(address), reason);
    }

    /// The protected prefix that `prefix` lies inside, so that a rule for it would block protected addresses alone.
    pub fn covering(&self, prefix: &IpNet) -> Option<(&IpNet, &str)> {
        self.iter().find(|(protected, _)| protected.contains(prefix))
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

/// The other ends of established TCP connections to local `ports`: whoever administers the host at this moment.
pub fn established_peers(ports: &[u16]) -> Vec<IpAddr> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| parse_established(&table, ports))
        .collect()
}

fn parse_resolvers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next())
        // A link-local resolver has its interface behind a percent sign.
        .filter_map(|address| address.split('%').next()?.parse().ok())
        .collect()
}

/// Reads the kernel's table of TCP sockets (net/ipv4/tcp_ipv4.c, `get_tcp4_sock`): addresses in hexadecimal, each word
/// of them in host byte order, ports in hexadecimal, state 01 for established.
fn parse_established(table: &str, ports: &[u16]) -> Vec<IpAddr> {
    const ESTABLISHED: &str = "01";
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split_whitespace().skip(1);
            let (_, local_port) = columns.next()?.split_once(':')?;
            let (remote, _) = columns.next()?.split_once(':')?;
            let port = u16::from_str_radix(local_port, 16).ok()?;
            (columns.next()? == ESTABLISHED && ports.contains(&port)).then_some(())?;
            parse_address(remote)
        })
        .collect()
}

fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |index: usize| {
        u32::from_str_radix(hex.get(index * 8..index * 8 + 8)?, 16).ok().map(u32::to_ne_bytes)
    };
    let address = match hex.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(address.to_canonical())
}

/// `10.0.0.11 (upstream users)`, for messages.
pub fn describe((prefix, reason): (&IpNet, &str)) -> String {
    format!("{} ({reason})", prefix::display(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn resolvers_are_read_with_and_without_an_interface() {
        let text = "# c\nnameserver 192.0.2.53\n nameserver fe80::1%eth0 \noptions ndots:1\n";
        let expected: Vec<IpAddr> = vec!["192.0.2.53".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(parse_resolvers(text), expected);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn only_established_peers_of_the_ports_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
            0: 0100007F:0016 0200007F:D431 01 00000000:00000000\n\
            1: 0100007F:0016 0300007F:D431 06 00000000:00000000\n\
            2: 0100007F:1F90 0400007F:D431 01 00000000:00000000\n\
            3: 0000000000000000FFFF00000100007F:0016 0000000000000000FFFF00000500007F:AAAA 01 0\n\
            broken line\n";
        let expected: Vec<IpAddr> =
            vec!["127.0.0.2".parse().unwrap(), "127.0.0.5".parse().unwrap()];
        assert_eq!(parse_established(table, &[22]), expected);
    }

    #[test]
    fn the_loopback_address_is_our_own() {
        let own = own_addresses();
        assert!(
            own.iter().any(|(name, ip)| name == "lo" && *ip == IpAddr::V4(Ipv4Addr::LOCALHOST))
        );
    }
}
