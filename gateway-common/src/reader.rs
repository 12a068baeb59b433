//! Bounds-checked reads from a packet. The XDP program implements [`Reader`] over raw packet memory, tests and the
//! fuzzer over a slice, and the parser is generic over it, so that one parser is what all of them run.

use crate::packet::{Chain, Transport};

/// Reads big-endian integers at byte offsets from the start of a frame.
///
/// Every read answers `None` when a byte of it lies outside of the frame.
pub trait Reader {
    /// The byte at `offset`.
    fn byte(&self, offset: usize) -> Option<u8>;
    /// Two bytes in network order.
    fn be16(&self, offset: usize) -> Option<u16>;
    /// Four bytes in network order.
    fn be32(&self, offset: usize) -> Option<u32>;
    /// Eight bytes in network order.
    fn be64(&self, offset: usize) -> Option<u64>;
    /// Whether the frame, also where it cannot be read, has so many bytes.
    fn reaches(&self, end: usize) -> bool;
    /// The port that is looked for in a transport header at `offset`: that of the destination.
    #[inline(always)]
    fn port(&self, offset: usize) -> Option<u16> {
        self.be16(offset + 2)
    }
    /// Follows the headers of an IPv6 packet that do not begin with TCP or UDP. For the XDP program that is a call, so
    /// that the others do not pay for the loop.
    #[inline(always)]
    fn follow(&self, chain: Chain) -> Transport {
        chain.walk(self)
    }
}

/// Reads a frame with the ports of sources where those of destinations are looked for.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a, R: Reader + ?Sized>(pub &'a R);

impl<R: Reader + ?Sized> Reader for Sources<'_, R> {
    #[inline(always)]
    fn byte(&self, offset: usize) -> Option<u8> {
        self.0.byte(offset)
    }

    #[inline(always)]
    fn be16(&self, offset: usize) -> Option<u16> {
        self.0.be16(offset)
    }

    #[inline(always)]
    fn be32(&self, offset: usize) -> Option<u32> {
        self.0.be32(offset)
    }

    #[inline(always)]
    fn be64(&self, offset: usize) -> Option<u64> {
        self.0.be64(offset)
    }

    #[inline(always)]
    fn reaches(&self, end: usize) -> bool {
        self.0.reaches(end)
    }

    #[inline(always)]
    fn port(&self, offset: usize) -> Option<u16> {
        self.0.be16(offset)
    }
}

impl Reader for [u8] {
    fn byte(&self, offset: usize) -> Option<u8> {
        self.get(offset).copied()
    }

    fn be16(&self, offset: usize) -> Option<u16> {
        array(self, offset).map(u16::from_be_bytes)
    }

    fn be32(&self, offset: usize) -> Option<u32> {
        array(self, offset).map(u32::from_be_bytes)
    }

    fn be64(&self, offset: usize) -> Option<u64> {
        array(self, offset).map(u64::from_be_bytes)
    }

    fn reaches(&self, end: usize) -> bool {
        end <= self.len()
    }
}

fn array<const N: usize>(frame: &[u8], offset: usize) -> Option<[u8; N]> {
    frame.get(offset..offset.checked_add(N)?)?.try_into().ok()
}
