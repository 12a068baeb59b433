//! The rules that benches load: random, and the same in every run. It measures nothing.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use harness::programs::Prefix;
use ipnet::IpNet;

/// How long the prefixes are.
#[derive(Clone, Copy)]
pub(super) enum Lengths {
    /// All IPv4 hosts.
    Hosts,
    /// IPv4: of ten six hosts, two /24, and two anything from /16 to /31.
    Mixed,
    /// IPv4 hosts, and as many IPv6 prefixes: of four two hosts, a /64 and a /48.
    BothFamilies,
}

/// The same numbers in every run (SplitMix64).
#[derive(Default)]
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    /// The next number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Prefixes without end, some of them twice.
pub(super) fn random(lengths: Lengths) -> impl Iterator<Item = Prefix> {
    let mut numbers = SplitMix::default();
    (0..).filter_map(move |index: usize| {
        let bits = numbers.next();
        let (address, length) = match lengths {
            Lengths::BothFamilies if index % 2 == 1 => {
                let address = Ipv6Addr::from_bits(u128::from(bits) << 64 | u128::from(!bits));
                // Of the addresses that are given out: 2000::/3.
                let address = Ipv6Addr::from_bits(address.to_bits() >> 3 | 1 << 125);
                (address.into(), [128, 64, 128, 48].get(index / 2 % 4).copied()?)
            }
            _ => (v4(bits), v4_length(lengths, index, bits)),
        };
        let prefix = IpNet::new(address, length).ok()?.trunc();
        Some((prefix.addr(), u32::from(length)))
    })
}

/// So many of `prefixes`, none twice.
pub(super) fn distinct(prefixes: impl Iterator<Item = Prefix>, count: usize) -> Vec<Prefix> {
    let mut seen = HashSet::with_capacity(count);
    prefixes.filter(|prefix| seen.insert(*prefix)).take(count).collect()
}

/// A line a prefix, hosts without their length.
pub(super) fn lines(prefixes: &[Prefix]) -> String {
    prefixes.iter().map(|prefix| text(prefix) + "\n").collect()
}

/// As people write it.
pub(super) fn text(prefix: &Prefix) -> String {
    let (address, length) = prefix;
    if is_host(prefix) { address.to_string() } else { format!("{address}/{length}") }
}

/// Whether it is one address.
pub(super) fn is_host((address, length): &Prefix) -> bool {
    *length == if address.is_ipv4() { 32 } else { 128 }
}

fn v4(bits: u64) -> IpAddr {
    Ipv4Addr::from_bits((bits >> 32) as u32).into()
}

fn v4_length(lengths: Lengths, index: usize, bits: u64) -> u8 {
    match (lengths, index % 10) {
        (Lengths::Hosts | Lengths::BothFamilies, _) | (Lengths::Mixed, 0..6) => 32,
        (Lengths::Mixed, 6..8) => 24,
        (Lengths::Mixed, _) => 16 + (bits as u8) % 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_as_they_are_described_and_the_same_each_time() {
        let list = distinct(random(Lengths::BothFamilies), 1000);
        let count = |length, six| {
            list.iter().filter(|(address, l)| *l == length && address.is_ipv6() == six).count()
        };
        assert_eq!([count(32, false), count(128, true)], [500, 250]);
        assert_eq!([count(64, true), count(48, true)], [125, 125]);
        assert_eq!(list, distinct(random(Lengths::BothFamilies), 1000));
        let mixed: Vec<Prefix> = random(Lengths::Mixed).take(100).collect();
        assert_eq!(mixed.iter().filter(|prefix| is_host(prefix)).count(), 60);
        assert!(lines(&mixed).lines().all(|line| line.parse::<IpAddr>().is_ok()
            || line.parse::<IpNet>().is_ok_and(|prefix| prefix == prefix.trunc())));
    }

    #[test]
    fn what_comes_twice_is_taken_once() {
        let host = (IpAddr::from([192, 0, 2, 1]), 32);
        let other = (IpAddr::from([192, 0, 2, 2]), 32);
        assert_eq!(distinct([host, host, other, host].into_iter(), 2), [host, other]);
    }
}
