//! What a client sends besides requests and their bodies, counted as it passes: h2 answers frames and keeps them to
//! itself, and a flood of those that ask for nothing would cost work for as long as the client likes.
//!
//! Only the heads of frames are looked at. Whatever is wrong with them is h2's to find.

use std::cell::Cell;

use tokio::time::Instant;

/// The 24 bytes that HTTP/2 begins with (RFC 9113, section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Streams that a client may reset at once, and how many more a second. Beyond that it may reset half of those that it
/// opens: honest clients give up on some requests, and an attack is nothing but resets (CVE-2023-44487).
const RESETS: Rate = Rate { burst: 400, per_second: 20 };
const RESET_COSTS: u32 = 2;
const RESET_EARNED_BY_STREAM: u32 = 1;

/// Frames of all kinds that carry no body. Streams, bodies and what the client is sent earn what they need.
const FRAMES: Rate = Rate { burst: 10_000, per_second: 100 };
const FRAME_COSTS: u32 = 1;
/// Each may change the window of every stream.
const SETTINGS_COSTS: u32 = 10;
const EARNED_BY_STREAM: u32 = 8;
const EARNED_BY_DATA: u32 = 2;
/// Some clients update two windows for each piece that they read.
const EARNED_BY_PIECE: u32 = 4;
const EARNED_BY_KIB: u32 = 1;

/// The client did too much that asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood;

/// The frames of one client.
#[derive(Debug)]
pub struct Frames {
    scan: Scan,
    has_begun: bool,
    resets: Allowance,
    frames: Allowance,
}

impl Default for Frames {
    /// A connection that has yet to send its first byte.
    fn default() -> Self {
        Self {
            scan: Scan { left: PREFACE.len(), kind: u8::MAX, ..Scan::default() },
            has_begun: false,
            resets: Allowance::new(RESETS),
            frames: Allowance::new(FRAMES),
        }
    }
}

impl Frames {
    /// The client sent `bytes`.
    pub fn received(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while let Some(frame) = self.scan.next(&mut bytes) {
            self.has_begun = true;
            self.charge(&frame)?;
        }
        Ok(())
    }

    /// Whether the client has yet to send its first frame, or has begun a head and not ended it.
    pub fn head_is_due(&self) -> bool {
        let Scan { in_block, kind, left, .. } = self.scan;
        !self.has_begun || in_block || left > 0 && matches!(kind, HEADERS | CONTINUATION)
    }

    /// A stream was opened.
    pub fn opened(&self) {
        self.resets.earn(RESET_EARNED_BY_STREAM);
        self.frames.earn(EARNED_BY_STREAM);
    }

    /// The client is sent a piece of a body.
    pub fn sent(&self, bytes: usize) {
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
        self.frames.earn(kib.saturating_mul(EARNED_BY_KIB).saturating_add(EARNED_BY_PIECE));
    }

    fn charge(&self, frame: &Head) -> Result<(), Flood> {
        let cost = match frame.kind {
            DATA if frame.length > 0 => {
                self.frames.earn(EARNED_BY_DATA);
                return Ok(());
            }
            DATA if frame.flags & END_STREAM != 0 => return Ok(()),
            RST_STREAM if !self.resets.spend(RESET_COSTS) => return Err(Flood),
            SETTINGS => SETTINGS_COSTS,
            _ => FRAME_COSTS,
        };
        if self.frames.spend(cost) { Ok(()) } else { Err(Flood) }
    }
}

/// The head of a frame.
#[derive(Debug)]
pub(super) struct Head {
    length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
}

/// Finds the heads of frames in a stream of bytes.
#[derive(Debug, Default)]
pub(super) struct Scan {
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    /// What is to be passed over before the next head.
    pub(super) left: usize,
    /// Of the frame that is passed over.
    pub(super) kind: u8,
    /// Whether fields were begun that no frame has ended.
    in_block: bool,
}

impl Scan {
    /// The stream of the frame that is passed over.
    pub(super) fn stream(&self) -> u32 {
        let [.., a, b, c, d] = self.head;
        u32::from_be_bytes([a, b, c, d])
    }

    /// The next head that is whole.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        let (_, rest) = bytes.split_at_checked(self.left).unwrap_or((bytes, &[]));
        self.left -= bytes.len() - rest.len();
        *bytes = rest;
        let missing = self.head.get_mut(self.head_bytes..)?;
        let taken = missing.len().min(bytes.len());
        let (begin, rest) = bytes.split_at_checked(taken)?;
        missing.get_mut(..taken)?.copy_from_slice(begin);
        *bytes = rest;
        self.head_bytes += taken;
        if self.head_bytes < HEAD_BYTES {
            return None;
        }
        self.head_bytes = 0;
        let [high, middle, low, kind, flags, ..] = self.head;
        self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.kind = kind;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.in_block = flags & END_HEADERS == 0;
        }
        Some(Head { length: self.left, kind, flags })
    }
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u32,
    per_second: u32,
}

/// What may still be spent. The clock is read only when nothing is left.
#[derive(Debug)]
struct Allowance {
    rate: Rate,
    left: Cell<u32>,
    refilled: Cell<Instant>,
}

impl Allowance {
    fn new(rate: Rate) -> Self {
        Self { rate, left: Cell::new(rate.burst), refilled: Cell::new(Instant::now()) }
    }

    fn earn(&self, amount: u32) {
        self.left.set(self.left.get().saturating_add(amount).min(self.rate.burst));
    }

    fn spend(&self, amount: u32) -> bool {
        if self.left.get() < amount {
            self.refill();
        }
        let left = self.left.get().checked_sub(amount);
        left.is_some_and(|left| {
            self.left.set(left);
            true
        })
    }

    fn refill(&self) {
        let now = Instant::now();
        let tenths = (now - self.refilled.get()).as_millis() / 100;
        if tenths > 0 {
            self.refilled.set(now);
            let tenths = u32::try_from(tenths).unwrap_or(u32::MAX);
            self.earn(tenths.saturating_mul(self.rate.per_second) / 10);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + payload, 0xaa);
        frame
    }

    fn connection() -> Frames {
        let mut frames = Frames::default();
        frames.received(PREFACE).unwrap();
        frames
    }

    fn until_flood(frames: &mut Frames, bytes: &[u8]) -> usize {
        for count in 0..1_000_000 {
            if frames.received(bytes) == Err(Flood) {
                return count;
            }
        }
        panic!("no bound")
    }

    #[tokio::test(start_paused = true)]
    async fn floods_end() {
        let reset = frame(RST_STREAM, 0, 4);
        assert_eq!(until_flood(&mut connection(), &reset), 200);
        assert_eq!(until_flood(&mut connection(), &frame(6, 0, 8)), 10_000);
        assert_eq!(until_flood(&mut connection(), &frame(SETTINGS, 0, 6)), 1_000);
        assert_eq!(until_flood(&mut connection(), &frame(DATA, 0, 0)), 10_000);
        assert_eq!(until_flood(&mut connection(), &frame(0xee, 0, 0)), 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn time_and_use_give_back() {
        let mut frames = connection();
        let reset = frame(RST_STREAM, 0, 4);
        until_flood(&mut frames, &reset);
        frames.received(&reset[HEAD_BYTES..]).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(until_flood(&mut frames, &reset), 10);
        frames.received(&reset[HEAD_BYTES..]).unwrap();
        for _ in 0..1_000_000 {
            frames.opened();
            frames.opened();
            frames.received(&frame(HEADERS, END_HEADERS, 10)).unwrap();
            frames.received(&frame(HEADERS, END_HEADERS, 10)).unwrap();
            frames.received(&reset).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_due_until_its_last_frame() {
        let mut frames = connection();
        assert!(frames.head_is_due());
        frames.received(&frame(SETTINGS, 0, 0)).unwrap();
        assert!(!frames.head_is_due());
        let (begin, end) = (&frame(HEADERS, END_HEADERS, 20), [0xaa; 1]);
        frames.received(&begin[..28]).unwrap();
        assert!(frames.head_is_due());
        frames.received(&end).unwrap();
        assert!(!frames.head_is_due());
        frames.received(&frame(HEADERS, 0, 20)).unwrap();
        assert!(frames.head_is_due());
        frames.received(&frame(CONTINUATION, 0, 20)).unwrap();
        assert!(frames.head_is_due());
        frames.received(&frame(CONTINUATION, END_HEADERS, 20)).unwrap();
        assert!(!frames.head_is_due());
    }

    proptest! {
        #[test]
        fn frames_are_found_however_they_are_cut(
            kinds in proptest::collection::vec((0u8..12, any::<u8>(), 0usize..300), 0..20),
            cuts in proptest::collection::vec(1usize..40, 1..400),
        ) {
            let bytes: Vec<u8> = kinds.iter().flat_map(|(k, f, l)| frame(*k, *f, *l)).collect();
            let mut scan = Scan::default();
            let mut found = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (mut now, later) = rest.split_at((*cut).min(rest.len()));
                while let Some(head) = scan.next(&mut now) {
                    found.push((head.kind, head.flags, head.length));
                }
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, kinds);
        }
    }
}
