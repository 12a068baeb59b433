//! What no honest packet looks like: flags that no state of TCP sends, and sources that cannot be.
//!
//! It owns what is possible, and refuses little that the host's own stack, or its connection tracking, would not refuse
//! further on: dropping that here harms nobody.

use crate::packet::Transport;
use crate::source::{Source, V6};

/// Whether no state of TCP sends these flags. What is left out of the reckoning is PSH and the bits of congestion
/// control; what is possible is what the kernel's connection tracking takes for it (`tcp_valid_flags` of
/// net/netfilter/nf_conntrack_proto_tcp.c).
#[inline(always)]
pub const fn is_impossible(tcp_flags: u8) -> bool {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;
    const URG: u8 = 0x20;
    const POSSIBLE: u64 = 1 << SYN
        | 1 << (SYN | URG)
        | 1 << (SYN | ACK)
        | 1 << RST
        | 1 << (RST | ACK)
        | 1 << (FIN | ACK)
        | 1 << (FIN | ACK | URG)
        | 1 << ACK
        | 1 << (ACK | URG);
    POSSIBLE >> (tcp_flags & (FIN | SYN | RST | ACK | URG)) & 1 == 0
}

/// Whether nothing can have sent a packet from there over a wire: multicast, broadcast, loopback, IPv4-mapped, and
/// unspecified, but for what a host sends before it has an address: DHCP, IGMP (RFC 9776, section 4.2.13) and MLD
/// (RFC 3590). Duplicate address detection is neighbour discovery and decided before.
#[inline(always)]
pub const fn is_martian(source: Source, transport: Transport) -> bool {
    match source {
        Source::V4(address) => match address >> 24 {
            127 | 224..=239 => true,
            // The rest of 0.0.0.0/8 and of 240.0.0.0/4 is unicast to the stack, and used as such.
            0 => address == 0 && !precedes_address(transport),
            255 => address == u32::MAX,
            _ => false,
        },
        Source::V6(V6 { high: 0, low: 0 }) => !precedes_address(transport),
        Source::V6(V6 { high: 0, low }) => low == 1 || low >> 32 == 0xffff,
        Source::V6(V6 { high, .. }) => high >> 56 == 0xff,
    }
}

/// Whether a host sends it before it has an address.
#[inline(always)]
const fn precedes_address(transport: Transport) -> bool {
    const DHCP_SERVER: u16 = 67;
    transport.is_membership() || matches!(transport.udp_port(), Some(DHCP_SERVER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn flags_of_every_honest_segment_are_possible() {
        for flags in [0x02, 0x12, 0x10, 0x18, 0x11, 0x19, 0x04, 0x14, 0x30, 0x38, 0x31, 0x22] {
            for congestion in [0, 0x40, 0x80, 0xc0] {
                assert!(!is_impossible(flags | congestion), "{flags:#x}");
            }
        }
    }

    #[test]
    fn flags_of_scanners_are_impossible() {
        // Null, FIN, PSH, URG, Xmas, SYN+FIN, SYN+RST, FIN+RST, FIN+SYN+RST+ACK, all.
        for flags in [0x00, 0x01, 0x08, 0x20, 0x29, 0x03, 0x06, 0x05, 0x17, 0x3f] {
            assert!(is_impossible(flags) && is_impossible(flags | 0xc0), "{flags:#x}");
        }
        let possible = (0..=u8::MAX).filter(|flags| !is_impossible(*flags)).count();
        assert_eq!(possible, 9 * 8, "nine sets, and three bits that do not count");
    }

    #[test]
    fn martians_and_their_neighbours() {
        let is_martian = |address: &str, transport| {
            is_martian(address.parse::<IpAddr>().unwrap().into(), transport)
        };
        for (martian, beside) in [
            ("127.0.0.1", "126.255.255.255"),
            ("127.255.255.255", "128.0.0.0"),
            ("224.0.0.1", "223.255.255.255"),
            ("239.255.255.255", "240.0.0.0"),
            ("255.255.255.255", "255.255.255.254"),
            ("0.0.0.0", "0.0.0.1"),
            ("::", "::2"),
            ("::1", "0:0:0:1::1"),
            ("::ffff:192.0.2.1", "::fffe:192.0.2.1"),
            ("ff02::1", "fe80::1"),
            ("ffff::", "feff:ffff::"),
        ] {
            for transport in [Transport::tcp(443, 2), Transport::udp(53), Transport::OTHER] {
                assert!(is_martian(martian, transport), "{martian}");
                assert!(!is_martian(beside, transport), "{beside}");
            }
        }
    }

    #[test]
    fn hosts_without_an_address_are_heard() {
        let unspecified = [Source::V4(0), Source::V6(V6 { high: 0, low: 0 })];
        for source in unspecified {
            assert!(
                !is_martian(source, Transport::udp(67)) && is_martian(source, Transport::udp(68))
            );
            assert!(!is_martian(source, Transport::MEMBERSHIP));
            assert!(is_martian(source, Transport::tcp(67, 2)));
        }
        assert!(is_martian(Source::V4(0xe000_0001), Transport::MEMBERSHIP));
    }
}
