//! A frame in packet memory, read and written at offsets.
//!
//! It owns the bounds check before each access, in the one form that the verifier follows:
//! `start + offset + length > end`.
//! It refuses whatever does not lie in the frame's first buffer, which holds every header that is looked at.
#![expect(unsafe_code, reason = "packet memory is raw addresses")]

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use gateway_common::packet::{Chain, Transport};
use gateway_common::reader::Reader;

use crate::hygiene;

/// The shortest Ethernet frame without its checksum (IEEE 802.3, section 4A.4.2). Not every driver pads what a program
/// sends, so a frame that is cut keeps that length if it had it. What is left then are its sender's own bytes.
const FRAME_BYTES_MIN: u64 = 60;

/// The first buffer of a frame.
pub(crate) struct Memory {
    start: usize,
    end: usize,
    ctx: *mut xdp_md,
}

impl Memory {
    #[inline(always)]
    pub(crate) fn of(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end(), ctx: ctx.ctx }
    }

    /// `T` is one of the integers below: any bytes are a value of it.
    #[inline(always)]
    fn read<T>(&self, offset: usize) -> Option<T> {
        if self.start + offset + size_of::<T>() > self.end {
            return None;
        }
        let address = (self.start + offset) as *const T;
        // SAFETY: the kernel keeps start..end readable while the program runs, the check above put the whole of `T`
        // inside of it (the verifier proves both again at load), and an integer has no invalid bytes.
        Some(unsafe { address.read_unaligned() })
    }

    /// Writes words as big-endian ones, and answers where they end. `None`: they do not fit, and nothing is written.
    #[inline(always)]
    pub(crate) fn write<const WORDS: usize>(
        &self,
        offset: usize,
        words: [u32; WORDS],
    ) -> Option<usize> {
        let end = offset + size_of::<[u32; WORDS]>();
        if self.start + end > self.end {
            return None;
        }
        let address = (self.start + offset) as *mut [u32; WORDS];
        // SAFETY: as above, for the whole of the words; nobody else uses the frame while the program runs.
        unsafe { address.write_unaligned(words.map(u32::to_be)) };
        Some(end)
    }

    /// Lets the frame end there, or a little later. No address in it holds any more.
    #[inline(always)]
    pub(crate) fn cut(self, end: usize) -> bool {
        // SAFETY: the context is the one that the kernel called this program with.
        let length = unsafe { bpf_xdp_get_buff_len(self.ctx) };
        let end = (end as u64).max(length.min(FRAME_BYTES_MIN));
        // SAFETY: as above.
        unsafe { bpf_xdp_adjust_tail(self.ctx, (end as i64 - length as i64) as i32) == 0 }
    }
}

impl Reader for Memory {
    #[inline(always)]
    fn byte(&self, offset: usize) -> Option<u8> {
        self.read(offset)
    }

    #[inline(always)]
    fn be16(&self, offset: usize) -> Option<u16> {
        self.read(offset).map(u16::from_be)
    }

    #[inline(always)]
    fn be32(&self, offset: usize) -> Option<u32> {
        self.read(offset).map(u32::from_be)
    }

    #[inline(always)]
    fn be64(&self, offset: usize) -> Option<u64> {
        self.read(offset).map(u64::from_be)
    }

    #[inline(always)]
    fn reaches(&self, end: usize) -> bool {
        // SAFETY: the context is the one that the kernel called this program with.
        end <= self.end - self.start || end as u64 <= unsafe { bpf_xdp_get_buff_len(self.ctx) }
    }

    #[inline(always)]
    fn follow(&self, chain: Chain) -> Transport {
        let Chain { header, at, end, .. } = chain;
        Transport::from_bits(follow(self.ctx, header.into(), at as u64, end as u64))
    }
}

/// A global function, which the verifier proves once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn follow(ctx: *mut xdp_md, header: u32, at: u64, end: u64) -> u32 {
    let ctx = XdpContext::new(ctx);
    // Behind two tags and the fixed header it is less, which the verifier cannot see from here.
    let at = (at & 0x7f) as usize;
    let strict = hygiene::is_strict(&ctx);
    let chain = Chain { header: header as u8, at, end: end as usize, strict };
    chain.walk(&Memory::of(&ctx)).bits()
}
