//! Whether a TCP segment belongs to a connection of this host: one that is established, being made or just closed.
//! It asks the kernel, keeps nothing, and takes whatever it cannot read for a segment without one.
#![expect(unsafe_code, reason = "every helper of the kernel is declared unsafe")]

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple, xdp_md};
use aya_ebpf::helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::XdpContext;
use gateway_common::flow::{Flow, flow};

use crate::memory::Memory;

/// The kernel's TCP_LISTEN, in which a socket belongs to nobody yet.
const LISTEN: u32 = 10;

/// Whether it does. In the namespace of the interface that the frame came in by.
#[inline(always)]
pub(crate) fn has_connection(ctx: &XdpContext) -> bool {
    is_connected(ctx.ctx) != 0
}

/// Global: the verifier proves it once, and who does not ask does not pay for it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_connected(ctx: *mut xdp_md) -> u32 {
    let found = match flow(&Memory::of(&XdpContext::new(ctx))) {
        Some(Flow::V4(mut ends)) => lookup(ctx, &mut ends),
        Some(Flow::V6(mut ends)) => lookup(ctx, &mut ends),
        None => return 0,
    };
    if found.is_null() {
        return 0;
    }
    // SAFETY: the kernel has lent a socket, which is readable until it is given back.
    let state = unsafe { core::ptr::read_volatile(&raw const (*found).state) };
    // SAFETY: it was lent above and is used no more.
    unsafe { bpf_sk_release(found.cast()) };
    u32::from(state != LISTEN)
}

#[inline(always)]
fn lookup<const WORDS: usize>(ctx: *mut xdp_md, ends: &mut [u32; WORDS]) -> *mut bpf_sock {
    let tuple: *mut bpf_sock_tuple = (&raw mut *ends).cast();
    let (bytes, namespace) = (size_of_val(ends) as u32, BPF_F_CURRENT_NETNS as i64 as u64);
    // SAFETY: the context is the one that the kernel called this program with, and it reads so many bytes of the tuple,
    // by which it tells one family from the other.
    unsafe { bpf_skc_lookup_tcp(ctx.cast(), tuple, bytes, namespace, 0) }
}
