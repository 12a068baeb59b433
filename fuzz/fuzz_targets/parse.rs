//! No frame makes the parser panic, cutting one off changes nothing about a source that was read, being strict only
//! finds some malformed, and what is answered with a reset is a whole SYN that is no shorter than the answer.
#![no_main]

use gateway_common::packet::{Frame, Packet, parse};
use gateway_common::reset::{Answer, Reset, answer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| {
    let whole = parse(frame, false);
    match (whole, parse(frame, true)) {
        (Frame::Ip(loose), Frame::Ip(strict)) => {
            assert_eq!(loose.source(), strict.source());
            assert!(strict.transport.is_malformed() || strict == loose, "{strict:?} of {loose:?}");
        }
        (loose, strict) => assert_eq!(loose, strict),
    }
    if let Some(Answer { at, packet, .. }) = answer(frame) {
        let Frame::Ip(syn) = whole else { panic!("{whole:?} is answered") };
        assert!(syn.transport.opens_connection() && !syn.transport.is_fragment(), "{syn:?}");
        let bytes = match packet {
            Reset::V4(words) => size_of_val(&words),
            Reset::V6(words) => size_of_val(&words),
        };
        assert!(at + bytes <= frame.len(), "{packet:?}");
    }
    for length in 0..frame.len().min(256) {
        match (whole, parse(&frame[..length], false)) {
            (Frame::Ip(whole), Frame::Ip(cut)) => {
                assert_eq!(cut.source(), whole.source(), "cut at {length}");
                if cut.transport != whole.transport {
                    assert!(is_less(cut), "cut at {length}: {cut:?} of {whole:?}");
                }
            }
            (_, Frame::Unparsed) => {}
            // Where the type of the message is cut off, only the source is left.
            (Frame::Neighbour, Frame::Ip(cut)) => assert!(is_less(cut), "cut at {length}: {cut:?}"),
            (whole, cut) => assert_eq!(cut, whole, "cut at {length}"),
        }
    }
});

/// What is left of a transport header that was cut off.
fn is_less(packet: Packet) -> bool {
    packet.transport.port().is_none()
}
