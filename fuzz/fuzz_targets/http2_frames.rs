//! Frames are found wherever they are cut, and whether a head is due is what the frames, walked slowly, say.
#![no_main]

use gateway::listen::h2::frames::{Frames, PREFACE};
use libfuzzer_sys::fuzz_target;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Whether a head is due after all of `bytes`, which came in pieces of this size; `None` after a flood.
fn read(bytes: &[u8], piece: usize) -> Option<bool> {
    let mut frames = Frames::default();
    frames.received(PREFACE).ok()?;
    for piece in bytes.chunks(piece) {
        frames.received(piece).ok()?;
    }
    Some(frames.head_is_due())
}

/// The same, frame by frame.
fn reference(mut bytes: &[u8]) -> bool {
    let (mut begun, mut in_block) = (false, false);
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        begun = true;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let is_head = matches!(head[3], HEADERS | CONTINUATION);
        if is_head {
            in_block = head[4] & END_HEADERS == 0;
        }
        if rest.len() < length {
            return in_block || is_head;
        }
        bytes = &rest[length..];
    }
    !begun || in_block
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    // Floods depend on the clock too.
    for piece in [bytes.len(), usize::from(piece)] {
        if let Some(due) = read(bytes, piece.max(1)) {
            assert_eq!(due, reference(bytes), "in pieces of {piece}");
        }
    }
});
