//! Raw Ethernet frames, built here and sent past the network stack: what an attacker can send and a socket cannot.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FlowLabel,
    Ipv6Header, Ipv6RawExtHeader, PacketBuilder,
};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket};

use crate::Result;
use crate::topology::Host;

const ETHERNET_BYTES: usize = 14;
const MAC_BYTES: usize = 12;
const HOP_LIMIT: u8 = 64;
/// Where datagrams that are built here come from.
pub const UDP_SOURCE_PORT: u16 = 40_001;
/// Times that a frame is sent when the link is full, a millisecond apart.
const ATTEMPTS_MAX: u32 = 1000;

/// From where to where: builds frames.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    source: IpAddr,
    destination: IpAddr,
}

impl Path {
    /// From `host`, which claims to be `source`, to the gateway.
    pub fn new(host: &Host, source: IpAddr) -> Self {
        Self {
            source_mac: host.mac(),
            destination_mac: host.gateway_mac(),
            source,
            destination: host.gateway_for(source),
        }
    }

    /// A UDP datagram.
    pub fn udp(&self, port: u16, payload: &[u8]) -> Result<Vec<u8>> {
        self.udp_behind(Ipv6Extensions::default(), port, payload)
    }

    /// A UDP datagram behind a hop-by-hop and a destination options header (IPv6 only).
    pub fn udp_behind_extension_headers(&self, port: u16, payload: &[u8]) -> Result<Vec<u8>> {
        ensure!(self.source.is_ipv6(), "extension headers are IPv6's");
        // One PadN option of six bytes (RFC 8200, section 4.2).
        let padding = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 4, 0, 0, 0, 0])?;
        let extensions = Ipv6Extensions {
            hop_by_hop_options: Some(padding.clone()),
            destination_options: Some(padding),
            ..Ipv6Extensions::default()
        };
        self.udp_behind(extensions, port, payload)
    }

    /// A UDP datagram in two fragments (IPv4 only). Only the first has the port.
    pub fn udp_fragments(&self, port: u16, payload: &[u8]) -> Result<[Vec<u8>; 2]> {
        const FIRST_BYTES: usize = 16;
        let whole = self.udp(port, payload)?;
        let (ethernet, packet) = whole.split_at(ETHERNET_BYTES);
        let (header, datagram) = Ipv4Header::from_slice(packet)?;
        ensure!(datagram.len() > FIRST_BYTES, "too little to split");
        let (first, later) = datagram.split_at(FIRST_BYTES);
        let piece = |bytes: &[u8], offset: usize, more: bool| -> Result<Vec<u8>> {
            let mut header = header.clone();
            header.dont_fragment = false;
            header.more_fragments = more;
            header.identification = 7;
            header.fragment_offset = IpFragOffset::try_new(u16::try_from(offset / 8)?)?;
            header.set_payload_len(bytes.len())?;
            header.header_checksum = header.calc_header_checksum();
            Ok([ethernet, &header.to_bytes(), bytes].concat())
        };
        Ok([piece(first, 0, true)?, piece(later, FIRST_BYTES, false)?])
    }

    /// The first segment of a TCP connection.
    pub fn syn(&self, source_port: u16, port: u16) -> Result<Vec<u8>> {
        let step = PacketBuilder::ethernet2(self.source_mac, self.destination_mac)
            .ip(self.headers(Ipv6Extensions::default())?)
            .tcp(source_port, port, 1, 64_240)
            .syn();
        let mut frame = Vec::with_capacity(step.size(0));
        step.write(&mut frame, &[])?;
        Ok(frame)
    }

    fn udp_behind(&self, extensions: Ipv6Extensions, port: u16, payload: &[u8]) -> Result<Vec<u8>> {
        let step = PacketBuilder::ethernet2(self.source_mac, self.destination_mac)
            .ip(self.headers(extensions)?)
            .udp(UDP_SOURCE_PORT, port);
        let mut frame = Vec::with_capacity(step.size(payload.len()));
        step.write(&mut frame, payload)?;
        Ok(frame)
    }

    fn headers(&self, extensions: Ipv6Extensions) -> Result<IpHeaders> {
        Ok(match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => IpHeaders::Ipv4(
                Ipv4Header::new(
                    0,
                    HOP_LIMIT,
                    IpNumber::UDP,
                    source.octets(),
                    destination.octets(),
                )?,
                Ipv4Extensions::default(),
            ),
            (source, destination) => IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: 0,
                    next_header: IpNumber::UDP,
                    hop_limit: HOP_LIMIT,
                    source: octets(source),
                    destination: octets(destination),
                },
                extensions,
            ),
        })
    }
}

/// `frame` with a VLAN tag (IEEE 802.1Q) in front of what it carries. Tags stack.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(MAC_BYTES.min(frame.len()));
    [addresses, &0x8100_u16.to_be_bytes(), &vlan.to_be_bytes(), rest].concat()
}

/// A packet socket on a host's link to the gateway.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
}

impl Sender {
    /// Opens it.
    pub fn new(host: &Host) -> Result<Self> {
        host.namespace.enter(|| -> Result<Self> {
            // The address of an interface in this listing is one that a packet socket can be bound to as it is.
            let address = getifaddrs()?
                .filter(|entry| entry.interface_name == "eth0")
                .find_map(|entry| entry.address?.as_link_addr().copied())
                .context("eth0 is missing in a host of the test")?;
            // Protocol 0: it sends and never receives.
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
                .context("cannot open a packet socket")?;
            bind(socket.as_raw_fd(), &address).context("cannot bind a packet socket")?;
            Ok(Self { socket })
        })?
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> Result {
        for _ in 0..ATTEMPTS_MAX {
            match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
                // The other end of the link has not come to read what was sent before.
                Err(Errno::ENOBUFS) => std::thread::sleep(Duration::from_millis(1)),
                sent => return sent.map(drop).context("cannot send a frame"),
            }
        }
        bail!("the link stays full")
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{SlicedPacket, TransportSlice};

    fn path(source: &str, destination: &str) -> Path {
        Path {
            source_mac: [2, 0, 0, 0, 1, 2],
            destination_mac: [2, 0, 0, 0, 1, 1],
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn udp_port(frame: &[u8]) -> Option<u16> {
        match SlicedPacket::from_ethernet(frame).unwrap().transport {
            Some(TransportSlice::Udp(udp)) => Some(udp.destination_port()),
            _ => None,
        }
    }

    #[test]
    fn frames_carry_what_their_names_say() {
        let (v4, v6) = (path("10.0.1.2", "10.0.1.1"), path("fd00:1::2", "fd00:1::1"));
        assert_eq!(udp_port(&v4.udp(53, b"x").unwrap()), Some(53));
        assert_eq!(udp_port(&v6.udp(53, b"x").unwrap()), Some(53));
        assert_eq!(udp_port(&v6.udp_behind_extension_headers(53, b"x").unwrap()), Some(53));
        assert_eq!(udp_port(&tagged(&tagged(&v4.udp(53, b"x").unwrap(), 7), 8)), Some(53));
        let syn = v6.syn(1, 80).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = SlicedPacket::from_ethernet(&syn).unwrap().transport
        else {
            panic!("no TCP in {syn:?}");
        };
        assert!(tcp.syn() && !tcp.ack() && tcp.destination_port() == 80);
    }

    #[test]
    fn fragments_are_parts_of_one_datagram_and_only_the_first_is_its_start() {
        let path = path("10.0.1.2", "10.0.1.1");
        let [first, later] = path.udp_fragments(53, &[0; 40]).unwrap();
        let header = |frame: &[u8]| Ipv4Header::from_slice(&frame[14..]).unwrap().0;
        assert!(header(&first).more_fragments && header(&first).fragment_offset.value() == 0);
        assert!(!header(&later).more_fragments && header(&later).fragment_offset.value() == 2);
        assert_eq!(header(&first).identification, header(&later).identification);
        assert_eq!(header(&later).header_checksum, header(&later).calc_header_checksum());
    }
}
