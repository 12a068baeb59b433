//! New connections of sources under a `reset` rule, answered with TCP RST. One bucket bounds what the host answers, so
//! that nobody who spoofs sources makes it send more than that; an answer is never longer than what it answers.
#![expect(unsafe_code, reason = "a global function has an exported name")]

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use gateway_common::layout::HOST_RESETS;
use gateway_common::packet::Transport;
use gateway_common::reset::{Answer, Reset, answer as answer_to};
use gateway_common::verdict::Reason;

use crate::admit::{ADMITTED, spend};
use crate::memory::Memory;
use crate::{clock, maps};

/// What becomes of a packet under a `reset` rule.
#[inline(always)]
pub(crate) fn decide(ctx: &XdpContext, transport: Transport) -> Reason {
    if maps::resets().is_unlimited() || maps::is_dry_run() || !transport.opens_connection() {
        return Reason::Reset;
    }
    match take(ctx.ctx) {
        TAKEN => Reason::ResetAnswered,
        NONE_LEFT => Reason::ResetLimit,
        _ => Reason::Reset,
    }
}

const NOT_ANSWERED: u32 = 0;
const TAKEN: u32 = 1;
const NONE_LEFT: u32 = 2;

/// Takes an answer from the bucket of all sources. A global function, as the next: the verifier proves it once, and
/// packets under other rules do not pay for it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn take(ctx: *mut xdp_md) -> u32 {
    if answer_to(&Memory::of(&XdpContext::new(ctx))).is_none() {
        return NOT_ANSWERED;
    }
    match maps::Word::of_host(HOST_RESETS) {
        Some(word) if spend(&word, &maps::resets(), clock::monotonic_ns()) == ADMITTED => TAKEN,
        _ => NONE_LEFT,
    }
}

/// Makes the answer of a frame that has one, and sends it back to where it came from.
#[inline(always)]
pub(crate) fn answer(ctx: &XdpContext) -> u32 {
    send_back(ctx.ctx)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn send_back(ctx: *mut xdp_md) -> u32 {
    let memory = Memory::of(&XdpContext::new(ctx));
    let Some(Answer { ethernet, at, packet }) = answer_to(&memory) else { return XDP_DROP };
    let end = match packet {
        Reset::V4(words) => memory.write(at, words),
        Reset::V6(words) => memory.write(at, words),
    };
    let (Some(end), Some(_)) = (end, memory.write(0, ethernet)) else { return XDP_DROP };
    if memory.cut(end) { XDP_TX } else { XDP_DROP }
}
