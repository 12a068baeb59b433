//! What is dropped because nothing honest sends it, whoever the source. A switch each, and none of it on the loopback
//! interface, whose packets come from the host itself.

use aya_ebpf::programs::XdpContext;
use gateway_common::hygiene::{is_impossible, is_martian};
use gateway_common::packet::{Packet, Transport};
use gateway_common::rule::{Action, OWN_ADDRESS};
use gateway_common::verdict::Reason;

use crate::classify::Ruling;
use crate::{clock, maps};

/// Whether headers that contradict themselves are malformed.
#[inline(always)]
pub(crate) fn is_strict(ctx: &XdpContext) -> bool {
    maps::headers_are_checked() && !is_spared(ctx)
}

/// Whether nothing can have sent the packet from there.
#[inline(always)]
pub(crate) fn is_from_nowhere(ctx: &XdpContext, packet: Packet) -> bool {
    maps::sources_are_checked() && is_martian(packet.source(), packet.transport) && !is_spared(ctx)
}

/// Why a packet that no rule drops is dropped all the same.
#[inline(always)]
pub(crate) fn check(ctx: &XdpContext, transport: Transport, ruling: &Ruling) -> Option<Reason> {
    if maps::sources_are_checked() && is_own(ruling) && !is_spared(ctx) {
        return Some(Reason::Martian);
    }
    if maps::tcp_flags_are_checked()
        && transport.tcp_flags().is_some_and(is_impossible)
        && !is_spared(ctx)
    {
        return Some(Reason::TcpFlags);
    }
    None
}

/// Whether the host itself has the address of the source. Its rule says so, so that only the packets of an `allow` rule
/// are asked; and while nobody looks after the rules, the address may have moved to another host.
#[inline(always)]
fn is_own(ruling: &Ruling) -> bool {
    ruling.action == Some(Action::Allow)
        && ruling.profile == u16::from(OWN_ADDRESS)
        && clock::boot_tick_ns() < maps::own_addresses_hold_until_ns()
}

#[inline(always)]
fn is_spared(ctx: &XdpContext) -> bool {
    let loopback = maps::loopback();
    loopback != 0 && ctx.ingress_ifindex() == loopback as usize
}
