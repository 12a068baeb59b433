//! What a `reset` rule answers a new connection with: TCP RST, by which honest software fails at once instead of
//! waiting until it has had enough.
//!
//! It owns which SYN is answered, and with what. Refused is whatever is not the plain SYN of one host to another: an
//! answer to a group would come from many, and one to a packet with options or fragments is owed to nobody.

use crate::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_OFFSET, ETHERTYPE_OLD_SERVICE_VLAN,
    ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, TCP, VLAN_TAGS_MAX,
};
use crate::reader::Reader;

/// Words of an Ethernet header's two addresses.
const ETHERNET_WORDS: usize = 3;
/// Words of the IPv4 header, without options.
const IPV4_WORDS: usize = 5;
/// Words of the IPv6 header.
const IPV6_WORDS: usize = 10;
/// Words of the TCP header, without options.
const TCP_WORDS: usize = 5;
/// Bytes of that header.
const TCP_BYTES: u32 = 4 * TCP_WORDS as u32;
/// As the kernel's own answers have it.
const HOP_LIMIT: u32 = 64;

/// What takes the place of a SYN, in words of the machine that are big-endian in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The Ethernet addresses, from the start of the frame.
    pub ethernet: [u32; ETHERNET_WORDS],
    /// Where the IP header begins. The tags before it stay as they are.
    pub at: usize,
    /// What stands there. Nothing follows.
    pub packet: Reset,
}

/// An IP packet with a TCP RST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Of IPv4.
    V4([u32; IPV4_WORDS + TCP_WORDS]),
    /// Of IPv6.
    V6([u32; IPV6_WORDS + TCP_WORDS]),
}

/// The answer to a frame that starts with its Ethernet header, if there is one. It is never longer than the frame.
#[inline(always)]
pub fn answer<R: Reader + ?Sized>(frame: &R) -> Option<Answer> {
    const GROUP: u32 = 1 << 24;
    let [first, second, third] = [frame.be32(0)?, frame.be32(4)?, frame.be32(8)?];
    // The first bit on the wire of either address (IEEE 802.3, section 3.2.3).
    if (first | second << 16) & GROUP != 0 {
        return None;
    }
    let ethernet =
        [second << 16 | third >> 16, third << 16 | first >> 16, first << 16 | second >> 16];
    let mut at = ETHERTYPE_OFFSET;
    for _ in 0..=VLAN_TAGS_MAX {
        let ethertype = frame.be16(at)?;
        at += 2;
        match ethertype {
            ETHERTYPE_IPV4 => return Some(Answer { ethernet, at, packet: ipv4(frame, at)? }),
            ETHERTYPE_IPV6 => return Some(Answer { ethernet, at, packet: ipv6(frame, at)? }),
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN | ETHERTYPE_OLD_SERVICE_VLAN => at += 2,
            _ => return None,
        }
    }
    None
}

#[inline(always)]
fn ipv4<R: Reader + ?Sized>(frame: &R, start: usize) -> Option<Reset> {
    const NO_OPTIONS: u8 = 0x45;
    const MORE_OR_OFFSET: u16 = 0x3fff;
    const DONT_FRAGMENT: u32 = 0x4000;
    const BYTES: u32 = 4 * IPV4_WORDS as u32 + TCP_BYTES;
    let (first, fragment) = (frame.byte(start)?, frame.be16(start + 6)?);
    let (protocol, length) = (frame.byte(start + 9)?, frame.be16(start + 2)?);
    if first != NO_OPTIONS || fragment & MORE_OR_OFFSET != 0 || protocol != TCP {
        return None;
    }
    let (source, destination) = (frame.be32(start + 12)?, frame.be32(start + 16)?);
    if is_group_v4(source) || is_group_v4(destination) {
        return None;
    }
    let tcp = segment(frame, start + 4 * IPV4_WORDS, start + usize::from(length))?;
    let [a, b, c] =
        [(NO_OPTIONS as u32) << 24 | BYTES, DONT_FRAGMENT, HOP_LIMIT << 24 | (TCP as u32) << 16];
    let addresses = sum([destination, source]);
    let header = checksum(sum([a, b, c]) + addresses);
    let [d, e, f, g, h] = finished(tcp, addresses);
    Some(Reset::V4([a, b, c | header, destination, source, d, e, f, g, h]))
}

#[inline(always)]
fn ipv6<R: Reader + ?Sized>(frame: &R, start: usize) -> Option<Reset> {
    const VERSION: u32 = 6 << 28;
    let (first, next, length) =
        (frame.byte(start)?, frame.byte(start + 6)?, frame.be16(start + 4)?);
    if u32::from(first >> 4) != VERSION >> 28 || next != TCP {
        return None;
    }
    let word = |index: usize| frame.be32(start + 8 + 4 * index);
    let source = [word(0)?, word(1)?, word(2)?, word(3)?];
    let destination = [word(4)?, word(5)?, word(6)?, word(7)?];
    if is_group_v6(source) || is_group_v6(destination) {
        return None;
    }
    let at = start + 4 * IPV6_WORDS;
    let tcp = segment(frame, at, at + usize::from(length))?;
    let [d, e, f, g, h] = finished(tcp, sum(destination) + sum(source));
    let second = TCP_BYTES << 16 | (TCP as u32) << 8 | HOP_LIMIT;
    let ([i, j, k, l], [m, n, o, p]) = (destination, source);
    Some(Reset::V6([VERSION, second, i, j, k, l, m, n, o, p, d, e, f, g, h]))
}

/// What a segment from `at` to `end` of the frame is answered with, by RFC 9293, section 3.10.7.1: RST and ACK, the
/// sequence number 0, and all that it has is acknowledged, the SYN as one byte. The checksum is still missing.
#[inline(always)]
fn segment<R: Reader + ?Sized>(frame: &R, at: usize, end: usize) -> Option<[u32; TCP_WORDS]> {
    const FIN_SYN_RST_ACK: u16 = 0x17;
    const SYN: u16 = 0x02;
    const RST_ACK: u32 = 0x14;
    let (ports, sequence) = (frame.be32(at)?, frame.be32(at + 4)?);
    let offset_and_flags = frame.be16(at + 12)?;
    let header = usize::from(offset_and_flags >> 12) * 4;
    let is_whole = header >= TCP_BYTES as usize && at + header <= end && frame.reaches(end);
    if !is_whole || offset_and_flags & FIN_SYN_RST_ACK != SYN {
        return None;
    }
    let payload = (end - at - header) as u32;
    let acknowledged = sequence.wrapping_add(1).wrapping_add(payload);
    let flags = (TCP_BYTES / 4) << 28 | RST_ACK << 16;
    Some([ports.rotate_left(16), 0, acknowledged, flags, 0])
}

/// The same with its checksum, for which the sum of both IP addresses is needed (RFC 9293, section 3.1).
#[inline(always)]
fn finished(tcp: [u32; TCP_WORDS], addresses: u64) -> [u32; TCP_WORDS] {
    let [a, b, c, d, _] = tcp;
    let checksum = checksum(sum(tcp) + addresses + TCP as u64 + TCP_BYTES as u64);
    [a, b, c, d, checksum << 16]
}

#[inline(always)]
fn sum<const WORDS: usize>(words: [u32; WORDS]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(word);
    }
    sum
}

/// The internet checksum (RFC 1071) of words that were added up, at most 2^16 of them.
#[inline(always)]
const fn checksum(sum: u64) -> u32 {
    // Each step keeps the sum as it is modulo 2^16 - 1.
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16) as u32
}

/// Multicast or broadcast, which no connection has at either end (RFC 9293, section 3.9.2.3).
#[inline(always)]
const fn is_group_v4(address: u32) -> bool {
    address >> 28 == 0xe || address == u32::MAX
}

#[inline(always)]
const fn is_group_v6([first, ..]: [u32; 4]) -> bool {
    first >> 24 == 0xff
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The frame as it is sent, in the place of `syn`.
    fn written(syn: &[u8], answer: &Answer) -> Vec<u8> {
        let packet = match &answer.packet {
            Reset::V4(words) => words.as_slice(),
            Reset::V6(words) => words.as_slice(),
        };
        let bytes = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_be_bytes()).collect()
        };
        [&bytes(&answer.ethernet)[..], &syn[12..answer.at], &bytes(packet)].concat()
    }

    fn syn(six: bool, sequence: u32, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 7], [2, 1, 1, 1, 1, 9]);
        let step = match six {
            true => link.ipv6([7; 16], [9; 16], 5),
            false => link.ipv4([192, 0, 2, 7], [10, 0, 0, 1], 5),
        };
        let step = step.tcp(40_000, 443, sequence, 64_240).syn().options_raw(options).unwrap();
        let mut frame = Vec::new();
        step.write(&mut frame, payload).unwrap();
        frame
    }

    fn tagged(frame: &[u8], count: usize) -> Vec<u8> {
        [&frame[..12], &[0x81, 0, 0, 5].repeat(count), &frame[12..]].concat()
    }

    proptest! {
        /// Held against etherparse, which knows nothing of the code here.
        #[test]
        fn the_answer_is_what_the_rfc_says_with_right_checksums(
            six: bool,
            tags in 0usize..=2,
            sequence: u32,
            options in 0usize..=10,
            payload in 0usize..200,
        ) {
            let syn = syn(six, sequence, &[1].repeat(options * 4), &[7].repeat(payload));
            let frame = tagged(&syn, tags);
            let reset = written(&frame, &answer(frame.as_slice()).unwrap());
            prop_assert!(reset.len() <= frame.len());
            prop_assert_eq!(&reset[12..12 + 4 * tags], &frame[12..12 + 4 * tags]);
            let reset = [&reset[..12], &reset[12 + 4 * tags..]].concat();
            prop_assert_eq!(&reset[..6], &syn[6..12]);
            prop_assert_eq!(&reset[6..12], &syn[..6]);
            let parsed = SlicedPacket::from_ethernet(&reset).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = parsed.transport else { panic!("no TCP") };
            let tcp_header = tcp.to_header();
            let expected = sequence.wrapping_add(1).wrapping_add(payload as u32);
            prop_assert_eq!((tcp.source_port(), tcp.destination_port()), (443, 40_000));
            prop_assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (0, expected));
            prop_assert!(tcp.rst() && tcp.ack() && !tcp.syn() && !tcp.fin() && !tcp.psh());
            prop_assert_eq!((tcp.options().len(), tcp.payload().len()), (0, 0));
            match parsed.net.unwrap() {
                etherparse::NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                    prop_assert_eq!(header.source, [10, 0, 0, 1]);
                    prop_assert_eq!(header.destination, [192, 0, 2, 7]);
                    prop_assert_eq!((header.time_to_live, header.total_len), (64, 40));
                    let right = tcp_header.calc_checksum_ipv4(&header, &[]).unwrap();
                    prop_assert_eq!(tcp.checksum(), right);
                }
                etherparse::NetSlice::Ipv6(ip) => {
                    let header = ip.header().to_header();
                    prop_assert_eq!((header.source, header.destination), ([9; 16], [7; 16]));
                    prop_assert_eq!((header.hop_limit, header.payload_length), (64, 20));
                    let right = tcp_header.calc_checksum_ipv6(&header, &[]).unwrap();
                    prop_assert_eq!(tcp.checksum(), right);
                }
                other => panic!("{other:?}"),
            }
        }

        #[test]
        fn no_frame_makes_it_panic_or_is_answered_with_more(
            six: bool,
            mut tail in proptest::collection::vec(any::<u8>(), 0..120),
            at in 0usize..120,
        ) {
            answer(tail.as_slice());
            // And what is nearly a SYN.
            let mut frame = syn(six, 1, &[], b"payload");
            tail.truncate(4);
            for (byte, odd) in frame.iter_mut().skip(at).zip(tail) {
                *byte = odd;
            }
            for length in 0..=frame.len() {
                if let Some(answer) = answer(&frame[..length]) {
                    prop_assert!(written(&frame, &answer).len() <= length);
                }
            }
        }
    }

    #[test]
    fn nothing_but_a_plain_syn_of_one_host_to_another_is_answered() {
        let with = |six, changes: &[(usize, u8)]| {
            let mut frame = syn(six, 1, &[], &[]);
            changes.iter().for_each(|(at, byte)| frame[*at] = *byte);
            answer(frame.as_slice())
        };
        assert!(with(false, &[]).is_some() && with(true, &[]).is_some());
        for (name, changes) in [
            ("a group as destination address", &[(0, 3)][..]),
            ("a group as source address", &[(6, 3)]),
            ("IP options", &[(14, 0x46)]),
            ("another version", &[(14, 0x65)]),
            ("a length of 0", &[(16, 0), (17, 0)]),
            ("a length beyond the frame", &[(17, 41)]),
            ("a length within the header", &[(17, 39)]),
            ("the first fragment", &[(20, 0x20)]),
            ("a later fragment", &[(21, 1)]),
            ("UDP", &[(23, 17)]),
            ("multicast as source", &[(26, 224)]),
            ("multicast as destination", &[(30, 239)]),
            ("broadcast", &[(30, 255), (31, 255), (32, 255), (33, 255)]),
            ("a header too short", &[(46, 0x40)]),
            ("a header beyond the packet", &[(46, 0x60)]),
            ("SYN and ACK", &[(47, 0x12)]),
            ("SYN and RST", &[(47, 0x06)]),
            ("SYN and FIN", &[(47, 0x03)]),
            ("ACK", &[(47, 0x10)]),
            ("RST", &[(47, 0x04)]),
            ("no IP", &[(12, 0x08), (13, 0x06)]),
        ] {
            assert_eq!(with(false, changes), None, "{name}");
        }
        for (name, changes) in [
            ("another version", &[(14, 0x45)][..]),
            ("extension headers", &[(20, 60)]),
            ("a fragment", &[(20, 44)]),
            ("a length of 0", &[(19, 0)]),
            ("a length beyond the frame", &[(19, 21)]),
            ("multicast as source", &[(22, 0xff)]),
            ("multicast as destination", &[(38, 0xff)]),
            ("SYN and ACK", &[(67, 0x12)]),
        ] {
            assert_eq!(with(true, changes), None, "{name}");
        }
        assert_eq!(answer(tagged(&syn(false, 1, &[], &[]), 3).as_slice()), None);
    }

    #[test]
    fn ecn_changes_nothing() {
        let mut frame = syn(false, 1, &[], &[]);
        frame[47] |= 0xc0;
        assert!(answer(frame.as_slice()).is_some());
    }
}
