//! What was decided, counted by reason on this CPU, and turned into what the kernel does.
#![expect(unsafe_code, reason = "every helper of the kernel is declared unsafe")]

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::generated::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use gateway_common::layout::counter_index;
use gateway_common::verdict::{Reason, Verdict};

use crate::maps;

/// Counts the frame and answers what becomes of it.
#[inline(always)]
pub(crate) fn account(ctx: &XdpContext, reason: Reason) -> u32 {
    let drops = reason.verdict() == Verdict::Drop;
    let spared = drops && maps::is_dry_run();
    maps::count(counter_index(reason, spared), frame_bytes(ctx));
    if drops && !spared { XDP_DROP } else { XDP_PASS }
}

/// With all of its buffers: `data_end - data` is only the first.
#[inline(always)]
fn frame_bytes(ctx: &XdpContext) -> u64 {
    // SAFETY: the context is the one that the kernel called this program with.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) }
}
