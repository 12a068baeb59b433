//! From a frame to what a decision needs: the source, and which bucket it is charged to.
//!
//! Once the source address is read it decides, whatever follows it: one extension header too many, a later fragment or
//! a truncated transport header is no way around a rule. Reads of the transport header end where the IP packet ends, so
//! Ethernet padding is never taken for ports or flags.
//!
//! Reads stand one after the other and not in tuples, of which the compiler makes something that the verifier cannot
//! follow.

use crate::reader::{Reader, Sources};
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
///
/// Of its source, too, all words are always defined, for the reason that [`Transport`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub(crate) source: V6,
    pub(crate) family: u64,
    /// What is known of its transport.
    pub transport: Transport,
}

impl Packet {
    const V4: u64 = 4;
    const V6: u64 = 6;

    /// One of IPv4.
    #[inline(always)]
    pub const fn v4(source: u32, transport: Transport) -> Self {
        Self { source: V6 { high: 0, low: source as u64 }, family: Self::V4, transport }
    }

    /// One of IPv6.
    #[inline(always)]
    pub const fn v6(source: V6, transport: Transport) -> Self {
        Self { source, family: Self::V6, transport }
    }

    /// The source address.
    #[inline(always)]
    pub const fn source(self) -> Source {
        if self.family == Self::V4 {
            Source::V4(self.source.low as u32)
        } else {
            Source::V6(self.source)
        }
    }
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
    /// TCP too short for its flags, which nothing honest sends (RFC 1858, section 3), or what `strict` finds.
    pub const MALFORMED: Self = Self(1 << Self::KIND_SHIFT);
    /// Who listens to which multicast group: IGMP or MLD (RFC 9777).
    pub const MEMBERSHIP: Self = Self(2 << Self::KIND_SHIFT);

    const KIND_SHIFT: u32 = 24;
    const KIND: u32 = 0xf;
    const FLAGS_SHIFT: u32 = 16;
    const UDP: u32 = 3;
    const TCP: u32 = 4;
    const FRAGMENT: u32 = 1 << 31;

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
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The same, of a fragment.
    #[inline(always)]
    pub const fn fragment(self) -> Self {
        Self(self.0 | Self::FRAGMENT)
    }

    /// Whether it is a fragment, the first or a later one.
    #[inline(always)]
    pub const fn is_fragment(self) -> bool {
        self.0 & Self::FRAGMENT != 0
    }

    /// Whether it is [`Self::MALFORMED`].
    #[inline(always)]
    pub const fn is_malformed(self) -> bool {
        self.kind() == Self::MALFORMED.kind()
    }

    /// Whether it is [`Self::MEMBERSHIP`].
    #[inline(always)]
    pub const fn is_membership(self) -> bool {
        self.kind() == Self::MEMBERSHIP.kind()
    }

    #[inline(always)]
    const fn kind(self) -> u32 {
        self.0 >> Self::KIND_SHIFT & Self::KIND
    }

    /// The name in events.
    pub const fn name(self) -> &'static str {
        match self.kind() {
            Self::TCP => "tcp",
            Self::UDP => "udp",
            _ => "other",
        }
    }

    /// The destination port, where it is known.
    #[inline(always)]
    pub const fn port(self) -> Option<u16> {
        if self.kind() >= Self::UDP { Some(self.0 as u16) } else { None }
    }

    /// The destination port of a UDP datagram.
    #[inline(always)]
    pub const fn udp_port(self) -> Option<u16> {
        if self.kind() == Self::UDP { Some(self.0 as u16) } else { None }
    }

    /// The flags byte of a TCP segment.
    #[inline(always)]
    pub const fn tcp_flags(self) -> Option<u8> {
        if self.kind() == Self::TCP { Some((self.0 >> Self::FLAGS_SHIFT) as u8) } else { None }
    }

    /// Whether it is the first packet of a connection: a SYN without ACK (RFC 9293, section 3.5).
    #[inline(always)]
    pub const fn opens_connection(self) -> bool {
        const SYN: u32 = 0x02;
        const ACK: u32 = 0x10;
        let flags = self.0 >> Self::FLAGS_SHIFT & (SYN | ACK);
        self.kind() == Self::TCP && flags == SYN
    }

    /// Whether it is TCP and does not open a connection, so that an honest sender has one.
    #[inline(always)]
    pub const fn continues_connection(self) -> bool {
        self.kind() == Self::TCP && !self.opens_connection()
    }
}

pub(crate) const ETHERTYPE_OFFSET: usize = 12;
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(crate) const ETHERTYPE_VLAN: u16 = 0x8100;
pub(crate) const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
pub(crate) const ETHERTYPE_OLD_SERVICE_VLAN: u16 = 0x9100;

const IGMP: u8 = 2;
pub(crate) const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Reads a frame that starts with its Ethernet header.
///
/// `strict` also finds malformed what the host's own stack would refuse: versions and lengths that contradict each
/// other or the frame, fragments that end beyond the longest packet; and those that overlap the flags of TCP (RFC
/// 1858, section 4).
#[inline(always)]
pub fn parse<R: Reader + ?Sized>(frame: &R, strict: bool) -> Frame {
    let mut at = ETHERTYPE_OFFSET;
    for _ in 0..=VLAN_TAGS_MAX {
        let Some(ethertype) = frame.be16(at) else { return Frame::Unparsed };
        match ethertype {
            ETHERTYPE_IPV4 => return ipv4(frame, at + 2, strict),
            ETHERTYPE_IPV6 => return ipv6(frame, at + 2, strict),
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN | ETHERTYPE_OLD_SERVICE_VLAN => at += 4,
            _ => return Frame::NotIp,
        }
    }
    Frame::Unparsed
}

/// The source port of a frame that starts with its Ethernet header, where [`Transport::port`] knows that of the
/// destination. Only what is reported needs it, so that a frame is read once more for it, and others do not pay.
#[inline(always)]
pub fn source_port<R: Reader + ?Sized>(frame: &R) -> Option<u16> {
    match parse(&Sources(frame), false) {
        Frame::Ip(packet) => packet.transport.port(),
        _ => None,
    }
}

/// Where an IP packet ends, as an offset in the frame.
///
/// A length of 0 stands for a packet longer than its length field can say (a jumbogram of RFC 2675, or one that the
/// kernel aggregated before a generic-mode program saw it); the frame's own end bounds it then.
#[inline(always)]
fn packet_end(length: u16, end: usize) -> usize {
    if length == 0 { usize::MAX } else { end }
}

/// What a header is that contradicts itself.
#[inline(always)]
fn odd(strict: bool) -> Transport {
    if strict { Transport::MALFORMED } else { Transport::OTHER }
}

#[inline(always)]
fn ipv4<R: Reader + ?Sized>(frame: &R, start: usize, strict: bool) -> Frame {
    let Some(source) = frame.be32(start + 12) else { return Frame::Unparsed };
    let transport = ipv4_transport(frame, start, strict);
    Frame::Ip(Packet::v4(source, transport))
}

#[inline(always)]
fn ipv4_transport<R: Reader + ?Sized>(frame: &R, start: usize, strict: bool) -> Transport {
    const MORE_FRAGMENTS: u16 = 0x2000;
    const FRAGMENT_OFFSET: u16 = 0x1fff;
    let Some(first) = frame.byte(start) else { return Transport::OTHER };
    let Some(length) = frame.be16(start + 2) else { return Transport::OTHER };
    let Some(fragment) = frame.be16(start + 6) else { return Transport::OTHER };
    let Some(protocol) = frame.byte(start + 9) else { return Transport::OTHER };
    let header_length = usize::from(first & 0x0f) * 4;
    if header_length < 20 || first >> 4 != 4 {
        return odd(strict);
    }
    let end = packet_end(length, start + usize::from(length));
    let at = start + header_length;
    if strict && length != 0 && (at > end || !frame.reaches(end)) {
        return Transport::MALFORMED;
    }
    if fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) == 0 {
        return transport(frame, protocol, at, end, strict);
    }
    let offset = fragment & FRAGMENT_OFFSET;
    if offset != 0 {
        let overlaps = offset == 1 && protocol == TCP;
        return match strict && (overlaps || is_beyond(offset, start, end)) {
            true => Transport::MALFORMED.fragment(),
            false => Transport::OTHER.fragment(),
        };
    }
    transport(frame, protocol, at, end, false).fragment()
}

#[inline(always)]
fn ipv6<R: Reader + ?Sized>(frame: &R, start: usize, strict: bool) -> Frame {
    let Some(high) = frame.be64(start + 8) else { return Frame::Unparsed };
    let Some(low) = frame.be64(start + 16) else { return Frame::Unparsed };
    let source = V6 { high, low };
    let unknown = Frame::Ip(Packet::v6(source, Transport::OTHER));
    let Some(version) = frame.byte(start) else { return unknown };
    let Some(length) = frame.be16(start + 4) else { return unknown };
    let Some(next) = frame.byte(start + 6) else { return unknown };
    let Some(hop_limit) = frame.byte(start + 7) else { return unknown };
    if version >> 4 != 6 {
        return Frame::Ip(Packet::v6(source, odd(strict)));
    }
    let at = start + 40;
    let end = packet_end(length, at + usize::from(length));
    if next == ICMPV6 && is_neighbour_discovery(frame, at, end, hop_limit) {
        return Frame::Neighbour;
    }
    if strict && length != 0 && !frame.reaches(end) {
        return Frame::Ip(Packet::v6(source, Transport::MALFORMED));
    }
    let transport = match next {
        TCP | UDP => transport(frame, next, at, end, strict),
        _ => frame.follow(Chain { header: next, at, end, strict }),
    };
    Frame::Ip(Packet::v6(source, transport))
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

/// The headers of an IPv6 packet behind the fixed one.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    /// What the first one is.
    pub header: u8,
    /// Where it lies in the frame.
    pub at: usize,
    /// Where the packet ends in the frame.
    pub end: usize,
    /// Find malformed what contradicts itself.
    pub strict: bool,
}

impl Chain {
    /// Walks it to the transport header.
    #[inline(always)]
    pub fn walk<R: Reader + ?Sized>(self, frame: &R) -> Transport {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const AUTHENTICATION: u8 = 51;
        const DESTINATION: u8 = 60;
        const MOBILITY: u8 = 135;
        const HOST_IDENTITY: u8 = 139;
        const SHIM6: u8 = 140;

        let Self { mut header, mut at, end, strict } = self;
        let mut fragmented = false;
        for _ in 0..=EXTENSION_HEADERS_MAX {
            let length = match header {
                HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION | MOBILITY | HOST_IDENTITY
                | SHIM6 => {
                    if at + 2 > end {
                        return odd(strict);
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
                        return odd(strict);
                    }
                    let Some(offset_and_flags) = frame.be16(at + 2) else {
                        return Transport::OTHER;
                    };
                    let offset = offset_and_flags >> 3;
                    if offset != 0 {
                        return match strict && is_beyond(offset, at + 8, end) {
                            true => Transport::MALFORMED.fragment(),
                            false => Transport::OTHER.fragment(),
                        };
                    }
                    // One without others is a whole packet (RFC 6946).
                    fragmented |= offset_and_flags & 1 != 0;
                    8
                }
                _ if fragmented => return transport(frame, header, at, end, false).fragment(),
                _ => return transport(frame, header, at, end, strict),
            };
            let Some(next) = frame.byte(at) else { return Transport::OTHER };
            header = next;
            at += length;
        }
        Transport::OTHER
    }
}

/// Whether what lies from `at` to `end` of a later fragment lies beyond the longest packet.
#[inline(always)]
fn is_beyond(offset: u16, at: usize, end: usize) -> bool {
    end.saturating_add(usize::from(offset) * 8) > at + usize::from(u16::MAX)
}

/// `strict` is only for what is no fragment, which may end before its transport does.
#[inline(always)]
fn transport<R: Reader + ?Sized>(
    frame: &R,
    protocol: u8,
    at: usize,
    end: usize,
    strict: bool,
) -> Transport {
    match protocol {
        TCP => {
            if at + 14 > end {
                return Transport::MALFORMED;
            }
            let Some(port) = frame.port(at) else { return Transport::MALFORMED };
            let Some(flags) = frame.byte(at + 13) else { return Transport::MALFORMED };
            if strict {
                let Some(offset) = frame.byte(at + 12) else { return Transport::MALFORMED };
                let length = usize::from(offset >> 4) * 4;
                if length < 20 || at + length > end {
                    return Transport::MALFORMED;
                }
            }
            Transport::tcp(port, flags)
        }
        UDP => {
            if at + 4 > end {
                return odd(strict);
            }
            let Some(port) = frame.port(at) else { return Transport::OTHER };
            if strict {
                let Some(length) = frame.be16(at + 4) else { return Transport::MALFORMED };
                // 0 is a jumbogram's (RFC 2675), and the stack takes it from others too.
                if at + 8 > end || (length != 0 && !(8..=end - at).contains(&usize::from(length))) {
                    return Transport::MALFORMED;
                }
            }
            Transport::udp(port)
        }
        IGMP => Transport::MEMBERSHIP,
        // Query, report and done of MLD, and report of MLDv2.
        ICMPV6 if at < end && matches!(frame.byte(at), Some(130..=132 | 143)) => {
            Transport::MEMBERSHIP
        }
        _ => Transport::OTHER,
    }
}

#[cfg(test)]
mod tests;
