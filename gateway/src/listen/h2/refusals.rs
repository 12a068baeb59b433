//! Streams that h2 refuses without showing them to anybody: they are seen in what it writes. The gateway itself resets
//! streams for other reasons (NO_ERROR, INTERNAL_ERROR, CANCEL), so that the code says who did.

use std::collections::VecDeque;

use crate::listen::h2::frames::{END_STREAM, HEADERS, RST_STREAM, Scan};
use crate::observe::StreamRefusal;

/// Gaps in the numbers of streams that are remembered.
const GAPS_MAX: usize = 16;

/// Which streams h2 has shown: their numbers rise, so what it passed over it shows no more.
#[derive(Debug, Default)]
pub(super) struct Shown {
    last: u32,
    /// The first and the last that were passed over, the latest gaps alone.
    gaps: VecDeque<(u32, u32)>,
}

impl Shown {
    /// h2 shows a stream.
    pub(super) fn show(&mut self, stream: u32) {
        let next = self.last + self.last % 2 + 1;
        if stream > next {
            self.gaps.truncate(GAPS_MAX - 1);
            self.gaps.push_front((next, stream - 1));
        }
        self.last = self.last.max(stream);
    }

    fn has(&self, stream: u32) -> bool {
        let is_in = |(first, last): &(u32, u32)| (*first..=*last).contains(&stream);
        stream <= self.last && !self.gaps.iter().any(is_in)
    }
}

/// The frames that are written to one client.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    scan: Scan,
    /// The last stream whose head was too large.
    answered: u32,
}

impl Refusals {
    /// h2 wrote `bytes`. A stream that it answers and has not shown had too large a head.
    pub(super) fn wrote(
        &mut self,
        mut bytes: &[u8],
        shown: &Shown,
        mut refused: impl FnMut(StreamRefusal),
    ) {
        loop {
            if let Some(code) = self.reset_by(bytes)
                && let Some(reason) = self.reason(code)
            {
                refused(reason);
            }
            let Some(frame) = self.scan.next(&mut bytes) else { return };
            let stream = self.scan.stream();
            if frame.kind == HEADERS && frame.flags & END_STREAM != 0 && !shown.has(stream) {
                self.answered = stream;
                refused(StreamRefusal::HeadTooLarge);
            }
        }
    }

    /// The code of a reset whose last byte is in `bytes`: none is above 255.
    fn reset_by(&self, bytes: &[u8]) -> Option<u8> {
        let last = self.scan.left.checked_sub(1).filter(|_| self.scan.kind == RST_STREAM)?;
        bytes.get(last).copied()
    }

    /// By RFC 9113, section 7. A stream whose head is too large is reset too, unless the client has ended it.
    fn reason(&self, code: u8) -> Option<StreamRefusal> {
        match code {
            1 if self.answered == self.scan.stream() => None,
            1 => Some(StreamRefusal::Protocol),
            3 => Some(StreamRefusal::FlowControl),
            5 => Some(StreamRefusal::Closed),
            7 => Some(StreamRefusal::TooMany),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    proptest! {
        #[test]
        fn resets_are_told_apart_however_they_are_cut(cut in 1usize..50) {
            let bytes = [
                frame(HEADERS, 4, 1, b"head"),
                frame(HEADERS, 5, 1, b"trailers"),
                frame(0, 1, 1, &[7; 100]),
                frame(RST_STREAM, 0, 3, &[0, 0, 0, 7]),
                frame(RST_STREAM, 0, 5, &[0, 0, 0, 8]),
                frame(HEADERS, 5, 7, b"431"),
                frame(RST_STREAM, 0, 7, &[0, 0, 0, 1]),
                frame(RST_STREAM, 0, 9, &[0, 0, 0, 1]),
                frame(HEADERS, 5, 11, b"204"),
                frame(HEADERS, 5, 13, b"431"),
                frame(4, 0, 0, b""),
            ];
            let (mut refusals, mut seen) = (Refusals::default(), Vec::new());
            let mut shown = Shown::default();
            [1, 11].into_iter().for_each(|stream| shown.show(stream));
            for piece in bytes.concat().chunks(cut) {
                refusals.wrote(piece, &shown, |reason| seen.push(reason));
            }
            use StreamRefusal::{HeadTooLarge, Protocol, TooMany};
            prop_assert_eq!(seen, [TooMany, HeadTooLarge, Protocol, HeadTooLarge]);
        }
    }
}
