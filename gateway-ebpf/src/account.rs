//! What was decided, counted by interface, reason and the rule's origin on this CPU, and turned into what the kernel
//! does.
#![expect(unsafe_code, reason = "every helper of the kernel is declared unsafe")]

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::generated::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use gateway_common::event::Ruled;
use gateway_common::layout::counter_index;
use gateway_common::verdict::{Reason, Verdict};

use crate::maps;

/// Counts the frame and answers what becomes of it.
#[inline(always)]
pub(crate) fn account(ctx: &XdpContext, reason: Reason, rule: Ruled) -> u32 {
    let drops = reason.verdict() == Verdict::Drop;
    let spared = drops && maps::is_dry_run();
    let origin = rule.head().origin_number();
    let bytes = frame_bytes(ctx);
    let slot = maps::slot(ctx.ingress_ifindex() as u32);
    maps::count(counter_index(slot, reason, origin, spared), bytes);
    if rule.head().is_tried() && !drops {
        maps::count(counter_index(slot, Reason::Deny, origin, true), bytes);
    }
    if drops && !spared { XDP_DROP } else { XDP_PASS }
}

/// Longer than this and a frame may go on in further buffers: drivers fill the first, which holds at least 1,472 bytes.
const ONE_BUFFER_MAX: u64 = 1024;

/// With all of its buffers. Most frames have one, and need no helper: a call costs ten nanoseconds where returns are
/// guarded against speculation.
#[inline(always)]
fn frame_bytes(ctx: &XdpContext) -> u64 {
    let first = (ctx.data_end() - ctx.data()) as u64;
    if first <= ONE_BUFFER_MAX {
        return first;
    }
    // SAFETY: the context is the one that the kernel called this program with.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) }
}
