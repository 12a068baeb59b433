//! A TCP segment's addresses and ports in the bytes that they have on the wire, as the kernel's socket lookup takes
//! them. It is read only where it must be known whether a segment belongs to a connection, so it goes by the plain ways
//! alone: behind IPv6 extension headers or in fragments nothing is found.

use crate::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_OFFSET, ETHERTYPE_OLD_SERVICE_VLAN,
    ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, TCP, VLAN_TAGS_MAX,
};
use crate::reader::Reader;

/// Both ends of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Source, destination, both ports: the `ipv4` part of the kernel's `bpf_sock_tuple`.
    V4([u32; 3]),
    /// The same for IPv6.
    V6([u32; 9]),
}

/// Reads both ends of a frame that starts with its Ethernet header.
#[inline(always)]
pub fn flow<R: Reader + ?Sized>(frame: &R) -> Option<Flow> {
    let mut at = ETHERTYPE_OFFSET;
    for _ in 0..=VLAN_TAGS_MAX {
        match frame.be16(at)? {
            ETHERTYPE_IPV4 => return ipv4(frame, at + 2),
            ETHERTYPE_IPV6 => return ipv6(frame, at + 2),
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN | ETHERTYPE_OLD_SERVICE_VLAN => at += 4,
            _ => return None,
        }
    }
    None
}

#[inline(always)]
fn ipv4<R: Reader + ?Sized>(frame: &R, start: usize) -> Option<Flow> {
    const MORE_OR_OFFSET: u16 = 0x3fff;
    let header_length = usize::from(frame.byte(start)? & 0x0f) * 4;
    let fragment = frame.be16(start + 6)? & MORE_OR_OFFSET;
    if frame.byte(start + 9)? != TCP || fragment != 0 || header_length < 20 {
        return None;
    }
    let source = wire(frame, start + 12)?;
    let destination = wire(frame, start + 16)?;
    let ports = wire(frame, start + header_length)?;
    Some(Flow::V4([source, destination, ports]))
}

#[inline(always)]
fn ipv6<R: Reader + ?Sized>(frame: &R, start: usize) -> Option<Flow> {
    if frame.byte(start + 6)? != TCP {
        return None;
    }
    let mut words = [0; 9];
    for (index, word) in words.iter_mut().enumerate() {
        // The ports follow the addresses without a gap.
        *word = wire(frame, start + 8 + index * 4)?;
    }
    Some(Flow::V6(words))
}

/// Four bytes as they lie in the frame.
#[inline(always)]
fn wire<R: Reader + ?Sized>(frame: &R, offset: usize) -> Option<u32> {
    frame.be32(offset).map(u32::to_be)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;
    use std::vec::Vec;

    const ENDS_V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x9c, 0x40, 0x01, 0xbb];

    fn frame_v4(options: &[u8]) -> Vec<u8> {
        let mut header = etherparse::Ipv4Header::new(
            20,
            64,
            etherparse::IpNumber::TCP,
            [192, 0, 2, 7],
            [10, 0, 0, 1],
        )
        .unwrap();
        header.options = options.try_into().unwrap();
        let step = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
            .tcp(40_000, 443, 1, 1024);
        let mut frame = Vec::new();
        step.write(&mut frame, &[]).unwrap();
        frame
    }

    fn bytes(flow: Flow) -> Vec<u8> {
        let words = match &flow {
            Flow::V4(words) => words.as_slice(),
            Flow::V6(words) => words.as_slice(),
        };
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn both_ends_are_what_is_on_the_wire() {
        for options in [&[][..], &[1, 1, 1, 0], &[1; 40]] {
            assert_eq!(bytes(flow(frame_v4(options).as_slice()).unwrap()), ENDS_V4);
        }
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv6([7; 16], [9; 16], 64)
            .tcp(40_000, 443, 1, 1024)
            .write(&mut frame, &[])
            .unwrap();
        let ends = [&[7; 16][..], &[9; 16], &ENDS_V4[8..]].concat();
        assert_eq!(bytes(flow(frame.as_slice()).unwrap()), ends);
    }

    #[test]
    fn tags_are_looked_through_and_nothing_else_is() {
        let plain = frame_v4(&[]);
        let tagged =
            |count: usize| [&plain[..12], &[0x81, 0, 0, 5].repeat(count), &plain[12..]].concat();
        assert_eq!(bytes(flow(tagged(2).as_slice()).unwrap()), ENDS_V4);
        assert_eq!(flow(tagged(3).as_slice()), None);
        let mut fragment = plain.clone();
        fragment[20] = 0x20;
        assert_eq!(flow(fragment.as_slice()), None);
        let mut udp = plain.clone();
        udp[23] = 17;
        assert_eq!(flow(udp.as_slice()), None);
        assert_eq!(flow(&plain[..37]), None);
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(frame in proptest::collection::vec(any::<u8>(), 0..120)) {
            flow(frame.as_slice());
        }
    }
}
