//! A few of the packets that were dropped, told to user space. Whatever the flood, the host reports no more than the
//! configuration says; where nobody reads and the buffer is full, nothing is reported. Totals never depend on it.
#![expect(unsafe_code, reason = "a global function has an exported name")]

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use gateway_common::event::{Event, Ruled};
use gateway_common::packet::{self, Packet};
use gateway_common::verdict::{Reason, Verdict};

use crate::clock;
use crate::maps;
use crate::memory::Memory;

/// Reports the packet if it was dropped, or would have been but for a dry run, and a report is due. Each CPU asks for
/// one once in a timer tick, so that a flood pays for a comparison.
#[inline(always)]
pub(crate) fn report(ctx: &XdpContext, packet: Packet, reason: Reason, rule: Ruled) {
    let drops = reason.verdict() == Verdict::Drop;
    let tried = rule.head().is_tried() && !drops;
    if !(drops || tried) || !maps::may_report(clock::tick) {
        return;
    }
    let reason = if tried { Reason::Deny } else { reason };
    let time_ns = due();
    if time_ns == 0 {
        return;
    }
    maps::report(&Event {
        time_ns,
        interface: ctx.ingress_ifindex() as u32,
        dry_run: u32::from(tried || maps::is_dry_run()),
        rule: rule.bits(),
        reason: reason as u32,
        source_port: source_port(ctx.ctx) as u16,
        ..Event::of(packet)
    });
}

/// The time, if a report is due, and 0 if not. A global function, for which packets that are not reported do not pay;
/// one that is not would have a name that depends on the folder that it was compiled in.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn due() -> u64 {
    let now_ns = clock::boot_ns();
    if maps::take_report(now_ns) { now_ns } else { 0 }
}

/// The source port, 0 where there is none. As above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn source_port(ctx: *mut xdp_md) -> u32 {
    packet::source_port(&Memory::of(&XdpContext::new(ctx))).map_or(0, u32::from)
}
