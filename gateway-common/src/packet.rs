//! From a frame to what a decision needs: the source, and which bucket it is charged to.
//!
//! Once the source address is read it decides, whatever follows it: one extension header too many, a later fragment or
//! a truncated transport header is no way around a rule. Reads of the transport header end where the IP packet ends, so
//! Ethernet padding is never taken for ports or flags.
//!
//! Reads stand one after the other and not in tuples, of which the compiler makes something that the verifier cannot
//! follow.

use crate::reader::Reader;
use crate::source::{Source, V6};

/// Tags that are looked through: a customer tag within a service tag (IEEE 802.1ad).
pub const VLAN_TAGS_MAX: usize = 2;
/// IPv6 extension headers that are looked through: the order of RFC 8200 has six before the one that is encrypted.
pub const EXTENSION_HEADERS_MAX: usize = 6;

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Not IPv4 or IPv6.
    NotIp,
    /// The source address lies beyond the end of the frame, or behind more tags than are looked through.
    Unparsed,
    /// IPv6 neighbour discovery from the link itself.
    Neighbour,
    /// An IP packet.
    Ip(Packet),
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The source address.
    pub source: Source,
    /// What is known of its transport.
    pub transport: Transport,
}

/// The transport header of a packet, as far as decisions need it.
///
/// One word, all of it always defined: of an enumeration the compiler leaves undefined what a variant does not have,
/// and moves that around too, which the kernel's verifier refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport(u32);

impl Transport {
    /// A later fragment, another protocol, or a header that is not there.
    pub const OTHER: Self = Self(0);
    /// TCP too short for its flags: nothing honest sends it (RFC 1858, section 3).
    pub const MALFORMED: Self = Self(1 << Self::KIND_SHIFT);

    const KIND_SHIFT: u32 = 24;
    const FLAGS_SHIFT: u32 = 16;
    const UDP: u32 = 2;
    const TCP: u32 = 3;

    /// A TCP segment, or the first fragment of one: its destination port and its flags byte, FIN 1, SYN 2, RST 4,
    /// PSH 8, ACK 16, URG 32 (RFC 9293).
    #[inline(always)]
    pub const fn tcp(port: u16, flags: u8) -> Self {
        Self(Self::TCP << Self::KIND_SHIFT | (flags as u32) << Self::FLAGS_SHIFT | port as u32)
    }

    /// A UDP datagram, or the first fragment of one: its destination port.
    #[inline(always)]
    pub const fn udp(port: u16) -> Self {
        Self(Self::UDP << Self::KIND_SHIFT | port as u32)
    }

    /// As a number.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// From [`Transport::bits`].
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The name in events.
    pub const fn name(self) -> &'static str {
        match self.0 >> Self::KIND_SHIFT {
            Self::TCP => "tcp",
            Self::UDP => "udp",
            _ => "other",
        }
    }

    /// The destination port, where it is known.
    #[inline(always)]
    pub const fn port(self) -> Option<u16> {
        if self.0 >> Self::KIND_SHIFT >= Self::UDP { Some(self.0 as u16) } else { None }
    }

    /// Whether it is the first packet of a connection: a SYN without ACK (RFC 9293, section 3.5).
    #[inline(always)]
    pub const fn opens_connection(self) -> bool {
        const SYN: u32 = 0x02;
        const ACK: u32 = 0x10;
        let flags = self.0 >> Self::FLAGS_SHIFT & (SYN | ACK);
        self.0 >> Self::KIND_SHIFT == Self::TCP && flags == SYN
    }

    /// Whether it is TCP and does not open a connection, so that an honest sender has one.
    #[inline(always)]
    pub const fn continues_connection(self) -> bool {
        self.0 >> Self::KIND_SHIFT == Self::TCP && !self.opens_connection()
    }
}

pub(crate) const ETHERTYPE_OFFSET: usize = 12;
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(crate) const ETHERTYPE_VLAN: u16 = 0x8100;
pub(crate) const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
pub(crate) const ETHERTYPE_OLD_SERVICE_VLAN: u16 = 0x9100;

pub(crate) const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Reads a frame that starts with its Ethernet header.
#[inline(always)]
pub fn parse<R: Reader + ?Sized>(frame: &R) -> Frame {
    let mut at = ETHERTYPE_OFFSET;
    for _ in 0..=VLAN_TAGS_MAX {
        let Some(ethertype) = frame.be16(at) else { return Frame::Unparsed };
        match ethertype {
            ETHERTYPE_IPV4 => return ipv4(frame, at + 2),
            ETHERTYPE_IPV6 => return ipv6(frame, at + 2),
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN | ETHERTYPE_OLD_SERVICE_VLAN => at += 4,
            _ => return Frame::NotIp,
        }
    }
    Frame::Unparsed
}

/// Where an IP packet ends, as an offset in the frame.
///
/// A length of 0 stands for a packet longer than its length field can say (a jumbogram of RFC 2675, or one that the
/// kernel aggregated before a generic-mode program saw it); the frame's own end bounds it then.
#[inline(always)]
fn packet_end(length: u16, end: usize) -> usize {
    if length == 0 { usize::MAX } else { end }
}

#[inline(always)]
fn ipv4<R: Reader + ?Sized>(frame: &R, start: usize) -> Frame {
    let Some(source) = frame.be32(start + 12) else { return Frame::Unparsed };
    let transport = ipv4_transport(frame, start);
    Frame::Ip(Packet { source: Source::V4(source), transport })
}

#[inline(always)]
fn ipv4_transport<R: Reader + ?Sized>(frame: &R, start: usize) -> Transport {
    const FRAGMENT_OFFSET: u16 = 0x1fff;
    let Some(first) = frame.byte(start) else { return Transport::OTHER };
    let Some(length) = frame.be16(start + 2) else { return Transport::OTHER };
    let Some(fragment) = frame.be16(start + 6) else { return Transport::OTHER };
    let Some(protocol) = frame.byte(start + 9) else { return Transport::OTHER };
    let header_length = usize::from(first & 0x0f) * 4;
    if header_length < 20 || first >> 4 != 4 || fragment & FRAGMENT_OFFSET != 0 {
        return Transport::OTHER;
    }
    let end = packet_end(length, start + usize::from(length));
    transport(frame, protocol, start + header_length, end)
}

#[inline(always)]
fn ipv6<R: Reader + ?Sized>(frame: &R, start: usize) -> Frame {
    let Some(high) = frame.be64(start + 8) else { return Frame::Unparsed };
    let Some(low) = frame.be64(start + 16) else { return Frame::Unparsed };
    let source = Source::V6(V6 { high, low });
    let unknown = Frame::Ip(Packet { source, transport: Transport::OTHER });
    let Some(version) = frame.byte(start) else { return unknown };
    let Some(length) = frame.be16(start + 4) else { return unknown };
    let Some(next) = frame.byte(start + 6) else { return unknown };
    let Some(hop_limit) = frame.byte(start + 7) else { return unknown };
    if version >> 4 != 6 {
        return unknown;
    }
    let at = start + 40;
    let end = packet_end(length, at + usize::from(length));
    if next == ICMPV6 && is_neighbour_discovery(frame, at, end, hop_limit) {
        return Frame::Neighbour;
    }
    Frame::Ip(Packet { source, transport: ipv6_transport(frame, next, at, end) })
}

/// Router and neighbour solicitation, advertisement and redirect (RFC 4861, types 133 to 137). A hop limit of 255 shows
/// that no router forwarded it, and RFC 6980 forbids fragmenting it, so it stands directly behind the fixed header.
#[inline(always)]
fn is_neighbour_discovery<R: Reader + ?Sized>(
    frame: &R,
    at: usize,
    end: usize,
    hop_limit: u8,
) -> bool {
    if hop_limit != 255 || at + 2 > end {
        return false;
    }
    matches!(frame.byte(at), Some(133..=137)) && frame.byte(at + 1) == Some(0)
}

#[inline(always)]
fn ipv6_transport<R: Reader + ?Sized>(
    frame: &R,
    first_header: u8,
    first_at: usize,
    end: usize,
) -> Transport {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    const MOBILITY: u8 = 135;
    const HOST_IDENTITY: u8 = 139;
    const SHIM6: u8 = 140;

    let (mut header, mut at) = (first_header, first_at);
    for _ in 0..=EXTENSION_HEADERS_MAX {
        let length = match header {
            HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION | MOBILITY | HOST_IDENTITY
            | SHIM6 => {
                if at + 2 > end {
                    return Transport::OTHER;
                }
                let Some(units) = frame.byte(at + 1) else { return Transport::OTHER };
                match header {
                    // Its length counts words of four bytes, without the first two (RFC 4302, section 2.2).
                    AUTHENTICATION => (usize::from(units) + 2) * 4,
                    _ => (usize::from(units) + 1) * 8,
                }
            }
            FRAGMENT => {
                if at + 8 > end {
                    return Transport::OTHER;
                }
                let Some(offset_and_flags) = frame.be16(at + 2) else { return Transport::OTHER };
                if offset_and_flags >> 3 != 0 {
                    return Transport::OTHER;
                }
                8
            }
            _ => return transport(frame, header, at, end),
        };
        let Some(next) = frame.byte(at) else { return Transport::OTHER };
        header = next;
        at += length;
    }
    Transport::OTHER
}

#[inline(always)]
fn transport<R: Reader + ?Sized>(frame: &R, protocol: u8, at: usize, end: usize) -> Transport {
    match protocol {
        TCP => {
            if at + 14 > end {
                return Transport::MALFORMED;
            }
            let Some(port) = frame.be16(at + 2) else { return Transport::MALFORMED };
            let Some(flags) = frame.byte(at + 13) else { return Transport::MALFORMED };
            Transport::tcp(port, flags)
        }
        UDP => {
            if at + 4 > end {
                return Transport::OTHER;
            }
            match frame.be16(at + 2) {
                Some(port) => Transport::udp(port),
                None => Transport::OTHER,
            }
        }
        _ => Transport::OTHER,
    }
}

#[cfg(test)]
mod tests;
