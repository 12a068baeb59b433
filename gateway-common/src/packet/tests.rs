//! One named frame a case, then properties held against an independent parser.

use super::*;
use etherparse::{IpFragOffset, PacketBuilder};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const V4: [u8; 4] = [192, 0, 2, 7];
const V6_BYTES: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7];

fn v4_source() -> Source {
    Source::V4(u32::from_be_bytes(V4))
}

fn v6_source() -> Source {
    Source::V6(V6 { high: 0x2001_0db8_0001_0002, low: 7 })
}

fn tcp_v4() -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4(V4, [10, 0, 0, 1], 64)
        .tcp(40_000, 443, 1, 1024)
        .syn()
        .write(&mut frame, &[])
        .unwrap();
    frame
}

fn tcp_v6() -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv6(V6_BYTES, [9; 16], 64)
        .tcp(40_000, 443, 1, 1024)
        .syn()
        .write(&mut frame, &[])
        .unwrap();
    frame
}

/// An IPv6 packet whose payload is `payload`, the first header of which is `next`.
fn v6_with(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0u8; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next, 64]);
    frame.extend(V6_BYTES);
    frame.extend([9; 16]);
    frame.extend(payload);
    frame
}

fn tag(frame: &[u8], ethertypes: &[u16]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for ethertype in ethertypes {
        tagged.extend(ethertype.to_be_bytes());
        tagged.extend([0, 5]);
    }
    tagged.extend(&frame[12..]);
    tagged
}

fn ip(source: Source, transport: Transport) -> Frame {
    Frame::Ip(Packet { source, transport })
}

const SYN_443: Transport = Transport::tcp(443, 2);
const TCP_HEADER: [u8; 20] = {
    let mut header = [0; 20];
    header[2] = 1;
    header[3] = 187;
    header[12] = 0x50;
    header[13] = 2;
    header
};

#[test]
fn tcp_over_both_families() {
    assert_eq!(parse(&tcp_v4()[..]), ip(v4_source(), SYN_443));
    assert_eq!(parse(&tcp_v6()[..]), ip(v6_source(), SYN_443));
}

#[test]
fn only_a_syn_without_ack_opens_a_connection() {
    let opens = |flags| Transport::tcp(443, flags).opens_connection();
    assert!(opens(0x02) && opens(0xc2), "with congestion bits too");
    assert!(!opens(0x12) && !opens(0x10) && !opens(0x04));
    assert!(!Transport::udp(0xffff).opens_connection() && !Transport::OTHER.opens_connection());
    assert_eq!(Transport::OTHER.port().or(Transport::MALFORMED.port()), None);
    assert_eq!((Transport::tcp(80, 0xff).port(), Transport::udp(0).port()), (Some(80), Some(0)));
}

#[test]
fn udp_has_a_port() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4(V4, [10, 0, 0, 1], 64)
        .udp(1, 53)
        .write(&mut frame, &[1, 2, 3])
        .unwrap();
    assert_eq!(parse(&frame[..]), ip(v4_source(), Transport::udp(53)));
}

#[test]
fn arp_is_not_ip() {
    let mut frame = vec![0xff; 12];
    frame.extend([0x08, 0x06]);
    assert_eq!(parse(&frame[..]), Frame::NotIp);
}

#[test]
fn one_and_two_tags_are_looked_through_and_a_third_is_not() {
    for frame in [tcp_v4(), tcp_v6()] {
        let plain = parse(&frame[..]);
        assert_eq!(parse(&tag(&frame, &[0x8100])[..]), plain);
        assert_eq!(parse(&tag(&frame, &[0x88a8, 0x8100])[..]), plain);
        assert_eq!(parse(&tag(&frame, &[0x9100, 0x8100])[..]), plain);
        assert_eq!(parse(&tag(&frame, &[0x8100, 0x8100, 0x8100])[..]), Frame::Unparsed);
    }
}

#[test]
fn every_truncation_keeps_the_source_once_it_is_read() {
    for (frame, source, source_end) in
        [(tcp_v4(), v4_source(), 14 + 16), (tcp_v6(), v6_source(), 14 + 24)]
    {
        for length in 0..frame.len() {
            match parse(&frame[..length]) {
                Frame::Unparsed => assert!(length < source_end, "{length}"),
                Frame::Ip(packet) => {
                    assert!(length >= source_end, "{length}");
                    assert_eq!(packet.source, source);
                }
                other => panic!("{length}: {other:?}"),
            }
        }
    }
}

#[test]
fn ipv4_options_shift_the_transport() {
    let mut frame = tcp_v4();
    frame[14] = 0x46;
    frame[17] += 4;
    frame.splice(34..34, [1, 1, 1, 0]);
    assert_eq!(parse(&frame[..]), ip(v4_source(), SYN_443));
}

#[test]
fn an_impossible_ipv4_header_length_leaves_the_source() {
    let mut frame = tcp_v4();
    frame[14] = 0x44;
    assert_eq!(parse(&frame[..]), ip(v4_source(), Transport::OTHER));
}

#[test]
fn fragments_first_and_later() {
    for (offset, expected) in [(0, SYN_443), (1, Transport::OTHER), (185, Transport::OTHER)] {
        let mut frame = tcp_v4();
        let fragment = 0x2000 | IpFragOffset::try_new(offset).unwrap().value();
        frame[20..22].copy_from_slice(&fragment.to_be_bytes());
        assert_eq!(parse(&frame[..]), ip(v4_source(), expected), "offset {offset}");

        let mut payload = vec![6, 0];
        payload.extend((offset << 3 | 1).to_be_bytes());
        payload.extend([0, 0, 0, 1]);
        payload.extend(TCP_HEADER);
        assert_eq!(parse(&v6_with(44, &payload)[..]), ip(v6_source(), expected), "v6 {offset}");
    }
}

#[test]
fn a_first_fragment_too_short_for_its_flags_is_malformed_however_it_is_padded() {
    let mut frame = tcp_v4();
    frame[16..18].copy_from_slice(&28u16.to_be_bytes());
    frame[20] = 0x20;
    assert_eq!(parse(&frame[..]), ip(v4_source(), Transport::MALFORMED));

    let mut payload = vec![6, 0, 0, 1, 0, 0, 0, 1];
    payload.extend(&TCP_HEADER[..8]);
    assert_eq!(parse(&v6_with(44, &payload)[..]), ip(v6_source(), Transport::MALFORMED));
}

#[test]
fn extension_headers_are_walked_to_a_bound() {
    let chain = |count: usize| {
        let mut payload = Vec::new();
        for index in 0..count {
            payload.extend([if index + 1 == count { 6 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        payload.extend(TCP_HEADER);
        parse(&v6_with(if count == 0 { 6 } else { 60 }, &payload)[..])
    };
    for count in 0..=EXTENSION_HEADERS_MAX {
        assert_eq!(chain(count), ip(v6_source(), SYN_443), "{count} headers");
    }
    assert_eq!(chain(EXTENSION_HEADERS_MAX + 1), ip(v6_source(), Transport::OTHER));
}

#[test]
fn an_authentication_header_counts_in_words_of_four() {
    let mut payload = vec![6, 4];
    payload.resize(24, 0);
    payload.extend(TCP_HEADER);
    assert_eq!(parse(&v6_with(51, &payload)[..]), ip(v6_source(), SYN_443));
}

#[test]
fn neighbour_discovery_is_told_from_what_only_looks_like_it() {
    let mut frame = v6_with(58, &[135, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(parse(&frame[..]), ip(v6_source(), Transport::OTHER), "forwarded: hop limit 64");
    frame[21] = 255;
    assert_eq!(parse(&frame[..]), Frame::Neighbour);
    frame[54] = 128;
    assert_eq!(parse(&frame[..]), ip(v6_source(), Transport::OTHER), "an echo request");
    frame[54] = 135;
    frame[18..20].copy_from_slice(&1u16.to_be_bytes());
    assert_eq!(parse(&frame[..]), ip(v6_source(), Transport::OTHER), "ends before its code");
}

#[test]
fn a_length_of_zero_is_bounded_by_the_frame() {
    let mut frame = tcp_v6();
    frame[18..20].fill(0);
    assert_eq!(parse(&frame[..]), ip(v6_source(), SYN_443));
    assert_eq!(parse(&frame[..60]), ip(v6_source(), Transport::MALFORMED));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        parse(&frame[..]);
    }

    /// Bytes that start like IP, so that the deeper paths are reached.
    #[test]
    fn agrees_with_an_independent_parser(
        six: bool,
        mut frame in proptest::collection::vec(any::<u8>(), 60..200),
        next in prop::sample::select(&[0u8, 6, 17, 43, 44, 51, 58, 60, 1][..]),
    ) {
        let payload = (frame.len() - 14) as u16;
        if six {
            frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
            frame[18..20].copy_from_slice(&(payload - 40).to_be_bytes());
            frame[20] = next;
        } else {
            frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
            frame[16..18].copy_from_slice(&payload.to_be_bytes());
            frame[23] = next;
        }
        let parsed = parse(&frame[..]);
        if let Ok(reference) = etherparse::SlicedPacket::from_ethernet(&frame) {
            let source = match reference.net {
                Some(etherparse::NetSlice::Ipv4(ref v4)) => {
                    Source::from(std::net::IpAddr::V4(v4.header().source_addr()))
                }
                Some(etherparse::NetSlice::Ipv6(ref v6)) => {
                    Source::from(std::net::IpAddr::V6(v6.header().source_addr()))
                }
                _ => return Ok(()),
            };
            match parsed {
                Frame::Ip(packet) => {
                    prop_assert_eq!(packet.source, source);
                    if let Some(etherparse::TransportSlice::Tcp(tcp)) = reference.transport
                        && let Some(port) = packet.transport.port()
                    {
                        prop_assert_eq!(port, tcp.destination_port());
                    }
                }
                Frame::Neighbour => prop_assert!(six),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
