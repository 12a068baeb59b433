//! The XDP program. This page is the life of a packet; each step is a module.
//!
//! It owns the verdict about a packet, decided by its source. It keeps no state about a connection, answers nothing but
//! what a `reset` rule says, and lets pass what it does not understand.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the target's atomics exist as intrinsics only")]

mod account;
mod admit;
mod classify;
mod clock;
mod host;
mod hygiene;
mod kernel;
mod maps;
mod memory;
mod newcomers;
mod report;
mod reset;
mod sockets;

use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use gateway_common::event::Ruled;
use gateway_common::packet::{Frame, Packet, parse};
use gateway_common::rule::Action;
use gateway_common::source::SourceKey;
use gateway_common::verdict::Reason;

use crate::account::account;
use crate::admit::admit;
use crate::classify::{Ruling, classify};
use crate::memory::Memory;
use crate::report::report;

/// Runs for every frame of the interfaces that it is attached to. `frags`: also where frames are larger than a page.
#[xdp(frags)]
fn gateway(ctx: XdpContext) -> u32 {
    let packet = match parse(&Memory::of(&ctx), hygiene::is_strict(&ctx)) {
        Frame::NotIp => return account(&ctx, Reason::NotIp, Ruled::NONE),
        Frame::Unparsed => return account(&ctx, Reason::Unparsed, Ruled::NONE),
        Frame::Neighbour => return account(&ctx, Reason::Neighbour, Ruled::NONE),
        Frame::Ip(packet) => packet,
    };
    let (reason, rule) = decide(&ctx, packet);
    let verdict = account(&ctx, reason, rule);
    report(&ctx, packet, reason, rule);
    if reason == Reason::ResetAnswered { reset::answer(&ctx) } else { verdict }
}

#[inline(always)]
fn decide(ctx: &XdpContext, packet: Packet) -> (Reason, Ruled) {
    if hygiene::is_from_nowhere(ctx, packet) {
        return (Reason::Martian, Ruled::NONE);
    }
    let (source, transport) = (packet.source(), packet.transport);
    let bucket = SourceKey::packets(source, maps::source_mask_v6());
    let ruling = classify(source);
    let Ruling { action, rule, profile } = ruling;
    let passed = match action {
        Some(Action::Deny) => return (Reason::Deny, rule),
        Some(Action::Reset) => return (reset::decide(ctx, transport), rule),
        _ if transport.is_malformed() => return (Reason::Malformed, rule),
        _ if let Some(reason) = hygiene::check(ctx, transport, &ruling) => return (reason, rule),
        Some(Action::Allow) => return (Reason::Allow, rule),
        Some(Action::Limit) => Reason::WithinLimit,
        None => Reason::NoRule,
    };
    let reason = admit(ctx, &bucket, transport, profile).unwrap_or(passed);
    (host::admit(transport, reason), rule)
}
