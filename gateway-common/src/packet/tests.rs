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

/// As it is always read.
fn read(frame: &[u8]) -> Frame {
    parse(frame, false)
}

fn ip(source: Source, transport: Transport) -> Frame {
    Frame::Ip(match source {
        Source::V4(source) => Packet::v4(source, transport),
        Source::V6(source) => Packet::v6(source, transport),
    })
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
    assert_eq!(read(&tcp_v4()[..]), ip(v4_source(), SYN_443));
    assert_eq!(read(&tcp_v6()[..]), ip(v6_source(), SYN_443));
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
fn udp_has_ports() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4(V4, [10, 0, 0, 1], 64)
        .udp(1, 53)
        .write(&mut frame, &[1, 2, 3])
        .unwrap();
    assert_eq!(read(&frame[..]), ip(v4_source(), Transport::udp(53)));
    assert_eq!(source_port(&frame[..]), Some(1));
}

#[test]
fn arp_is_not_ip() {
    let mut frame = vec![0xff; 12];
    frame.extend([0x08, 0x06]);
    assert_eq!(read(&frame[..]), Frame::NotIp);
}

#[test]
fn one_and_two_tags_are_looked_through_and_a_third_is_not() {
    for frame in [tcp_v4(), tcp_v6()] {
        let plain = read(&frame[..]);
        assert_eq!(read(&tag(&frame, &[0x8100])[..]), plain);
        assert_eq!(read(&tag(&frame, &[0x88a8, 0x8100])[..]), plain);
        assert_eq!(read(&tag(&frame, &[0x9100, 0x8100])[..]), plain);
        assert_eq!(read(&tag(&frame, &[0x8100, 0x8100, 0x8100])[..]), Frame::Unparsed);
    }
}

#[test]
fn every_truncation_keeps_the_source_once_it_is_read() {
    for (frame, source, source_end) in
        [(tcp_v4(), v4_source(), 14 + 16), (tcp_v6(), v6_source(), 14 + 24)]
    {
        for length in 0..frame.len() {
            match read(&frame[..length]) {
                Frame::Unparsed => assert!(length < source_end, "{length}"),
                Frame::Ip(packet) => {
                    assert!(length >= source_end, "{length}");
                    assert_eq!(packet.source(), source);
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
    assert_eq!(read(&frame[..]), ip(v4_source(), SYN_443));
}

#[test]
fn an_impossible_ipv4_header_length_leaves_the_source() {
    let mut frame = tcp_v4();
    frame[14] = 0x44;
    assert_eq!(read(&frame[..]), ip(v4_source(), Transport::OTHER));
}

#[test]
fn fragments_first_and_later() {
    for (offset, expected) in [(0, SYN_443), (1, Transport::OTHER), (185, Transport::OTHER)] {
        let expected = expected.fragment();
        assert!(expected.is_fragment());
        let mut frame = tcp_v4();
        let fragment = 0x2000 | IpFragOffset::try_new(offset).unwrap().value();
        frame[20..22].copy_from_slice(&fragment.to_be_bytes());
        assert_eq!(read(&frame[..]), ip(v4_source(), expected), "offset {offset}");

        let mut payload = vec![6, 0];
        payload.extend((offset << 3 | 1).to_be_bytes());
        payload.extend([0, 0, 0, 1]);
        payload.extend(TCP_HEADER);
        assert_eq!(read(&v6_with(44, &payload)[..]), ip(v6_source(), expected), "v6 {offset}");
    }
}

#[test]
fn a_first_fragment_too_short_for_its_flags_is_malformed_however_it_is_padded() {
    let mut frame = tcp_v4();
    frame[16..18].copy_from_slice(&28u16.to_be_bytes());
    frame[20] = 0x20;
    assert_eq!(read(&frame[..]), ip(v4_source(), Transport::MALFORMED.fragment()));

    let mut payload = vec![6, 0, 0, 1, 0, 0, 0, 1];
    payload.extend(&TCP_HEADER[..8]);
    let malformed = Transport::MALFORMED.fragment();
    assert!(malformed.is_malformed());
    assert_eq!(read(&v6_with(44, &payload)[..]), ip(v6_source(), malformed));
}

#[test]
fn a_whole_packet_with_a_fragment_header_is_no_fragment() {
    let mut payload = vec![6, 0, 0, 0, 0, 0, 0, 1];
    payload.extend(TCP_HEADER);
    assert_eq!(read(&v6_with(44, &payload)[..]), ip(v6_source(), SYN_443));
}

#[test]
fn group_membership_is_told_from_what_else_has_no_port() {
    let message = |kind| read(&v6_with(0, &[58, 0, 5, 2, 0, 0, 1, 0, kind, 0, 0, 0])[..]);
    for kind in [130, 131, 132, 143] {
        assert_eq!(message(kind), ip(v6_source(), Transport::MEMBERSHIP));
    }
    assert_eq!(message(128), ip(v6_source(), Transport::OTHER));
    let mut frame = tcp_v4();
    frame[23] = 2;
    assert_eq!(read(&frame[..]), ip(v4_source(), Transport::MEMBERSHIP));
    assert_eq!(Transport::MEMBERSHIP.port(), None);
}

#[test]
fn extension_headers_are_walked_to_a_bound() {
    let chain = |count: usize| {
        let mut payload = Vec::new();
        for index in 0..count {
            payload.extend([if index + 1 == count { 6 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        payload.extend(TCP_HEADER);
        read(&v6_with(if count == 0 { 6 } else { 60 }, &payload)[..])
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
    assert_eq!(read(&v6_with(51, &payload)[..]), ip(v6_source(), SYN_443));
}

#[test]
fn neighbour_discovery_is_told_from_what_only_looks_like_it() {
    let mut frame = v6_with(58, &[135, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(read(&frame[..]), ip(v6_source(), Transport::OTHER), "forwarded: hop limit 64");
    frame[21] = 255;
    assert_eq!(read(&frame[..]), Frame::Neighbour);
    frame[54] = 128;
    assert_eq!(read(&frame[..]), ip(v6_source(), Transport::OTHER), "an echo request");
    frame[54] = 135;
    frame[18..20].copy_from_slice(&1u16.to_be_bytes());
    assert_eq!(read(&frame[..]), ip(v6_source(), Transport::OTHER), "ends before its code");
}

#[test]
fn a_length_of_zero_is_bounded_by_the_frame() {
    let mut frame = tcp_v6();
    frame[18..20].fill(0);
    assert_eq!(read(&frame[..]), ip(v6_source(), SYN_443));
    assert_eq!(read(&frame[..60]), ip(v6_source(), Transport::MALFORMED));
}

/// Whether `change` to a good frame makes it malformed, but only to whoever is strict.
fn is_odd(mut frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> bool {
    let is_malformed = |frame: &[u8], strict| match parse(frame, strict) {
        Frame::Ip(packet) => packet.transport.is_malformed(),
        other => panic!("{other:?}"),
    };
    assert!(!is_malformed(&frame, true), "good as it was");
    change(&mut frame);
    assert!(!is_malformed(&frame, false));
    is_malformed(&frame, true)
}

fn udp_v6(length: u16) -> Vec<u8> {
    let mut payload = vec![0, 1, 0, 53];
    payload.extend(length.to_be_bytes());
    payload.resize(16, 0);
    v6_with(17, &payload)
}

#[test]
fn versions_and_lengths_that_contradict_themselves() {
    assert!(is_odd(tcp_v4(), |frame| frame[14] = 0x55));
    assert!(is_odd(tcp_v4(), |frame| frame[14] = 0x44));
    assert!(is_odd(udp_v6(16), |frame| frame[14] = 0x40));
    assert!(is_odd(tcp_v4(), |frame| frame[17] += 1), "ends behind the frame");
    assert!(is_odd(udp_v6(16), |frame| frame[19] += 1));
    assert!(!is_odd(tcp_v4(), |frame| frame.push(0)), "padded");
    assert!(!is_odd(tcp_v4(), |frame| frame[16..18].fill(0)), "aggregated");
    assert!(is_odd(tcp_v4(), |frame| (frame[14], frame[23]) = (0x4f, 50)), "ends in its header");
}

#[test]
fn transport_headers_that_do_not_fit_their_packet() {
    assert!(is_odd(tcp_v4(), |frame| frame[46] = 0x40));
    assert!(is_odd(tcp_v4(), |frame| frame[46] = 0x60));
    assert!(is_odd(udp_v6(16), |frame| frame[59] = 17));
    assert!(is_odd(udp_v6(16), |frame| frame[59] = 7));
    assert!(is_odd(udp_v6(16), |frame| frame[19] = 7));
    assert!(is_odd(udp_v6(16), |frame| frame[19] = 3));
    assert!(!is_odd(udp_v6(16), |frame| frame[59] = 0), "a jumbogram");
    assert!(!is_odd(udp_v6(16), |frame| frame[59] = 8));
}

/// Where the total length is left to the frame, that may end within the header.
#[test]
fn a_udp_header_that_is_cut_off_is_malformed_to_whoever_is_strict() {
    let mut frame = tcp_v4();
    frame.truncate(14 + 20);
    frame[16..18].fill(0);
    frame[23] = UDP;
    frame.extend([0x13, 0x88, 0x20, 0xff]);
    let transport = |strict| match parse(frame.as_slice(), strict) {
        Frame::Ip(packet) => packet.transport,
        other => panic!("{other:?}"),
    };
    assert_eq!(transport(false), Transport::udp(0x20ff));
    assert_eq!(transport(true), Transport::MALFORMED);
}

#[test]
fn extension_headers_that_end_behind_their_packet() {
    let options = |next| v6_with(60, &[next, 0, 1, 4, 0, 0, 0, 0]);
    assert!(is_odd(options(59), |frame| frame[54] = 60), "the next one is not there");
    assert!(is_odd(options(59), |frame| frame[54] = 44));
    assert!(!is_odd(options(59), |frame| frame[54] = 50), "not looked into");
}

#[test]
fn fragments_that_cannot_be() {
    let field = |frame: &mut Vec<u8>, field: u16| {
        frame[20..22].copy_from_slice(&field.to_be_bytes());
    };
    assert!(is_odd(tcp_v4(), |frame| field(frame, 0x2001)), "starts within the flags of TCP");
    assert!(!is_odd(tcp_v4(), |frame| field(frame, 0x2002)));
    assert!(is_odd(tcp_v4(), |frame| field(frame, 0x1fff)), "ends behind the longest packet");
    assert!(!is_odd(tcp_v4(), |frame| field(frame, 0x1ffa)), "65,532 bytes");
    let mut first = tcp_v4();
    field(&mut first, 0x2000);
    assert!(!is_odd(first, |frame| frame[46] = 0xf0), "the rest follows");

    let fragment = |offset: u16| {
        let mut payload = vec![6, 0];
        payload.extend((offset << 3 | 1).to_be_bytes());
        payload.extend([0, 0, 0, 1]);
        payload.extend(TCP_HEADER);
        v6_with(44, &payload)
    };
    assert!(is_odd(fragment(2), |frame| frame[56..58].fill(0xff)));
}

proptest! {
    /// Being strict finds some malformed, and changes nothing else.
    #[test]
    fn strict_or_not_it_is_the_same_packet(
        mut frame in proptest::collection::vec(any::<u8>(), 34..120),
        six: bool,
        next in prop::sample::select(&[0u8, 6, 17, 43, 44, 51, 58, 60, 1][..]),
    ) {
        frame[12..15].copy_from_slice(if six { &[0x86, 0xdd, 0x60] } else { &[8, 0, 0x45] });
        frame[if six { 20 } else { 23 }] = next;
        match (parse(&frame[..], false), parse(&frame[..], true)) {
            (Frame::Ip(loose), Frame::Ip(strict)) => {
                prop_assert_eq!(loose.source(), strict.source());
                prop_assert!(strict.transport.is_malformed() || strict == loose);
            }
            (loose, strict) => prop_assert_eq!(loose, strict),
        }
    }

    #[test]
    fn no_bytes_make_it_panic(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        read(&frame[..]);
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
        let parsed = read(&frame[..]);
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
                    prop_assert_eq!(packet.source(), source);
                    if let Some(etherparse::TransportSlice::Tcp(tcp)) = reference.transport
                        && let Some(port) = packet.transport.port()
                    {
                        prop_assert_eq!(port, tcp.destination_port());
                        prop_assert_eq!(source_port(frame.as_slice()), Some(tcp.source_port()));
                    }
                }
                Frame::Neighbour => prop_assert!(six),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
