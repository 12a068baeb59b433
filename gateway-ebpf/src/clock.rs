//! Two clocks, neither of them free: reading one costs as much as finding a rule.
//!
//! Rules begin and end by CLOCK_BOOTTIME, which goes on while the machine sleeps. Each CPU reads it once in a timer
//! tick, so they may do so one tick (one to ten milliseconds) late. Buckets need nanoseconds and only differences:
//! CLOCK_MONOTONIC is the cheaper, and they do not refill while the machine sleeps.
#![expect(unsafe_code, reason = "every helper of the kernel is declared unsafe")]

use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_ktime_get_ns};

use crate::maps;

/// The time of buckets.
#[inline(always)]
pub(crate) fn monotonic_ns() -> u64 {
    // SAFETY: it takes nothing and touches no memory.
    unsafe { bpf_ktime_get_ns() }
}

/// Timer ticks of the kernel, one to ten milliseconds long.
#[inline(always)]
pub(crate) fn tick() -> u64 {
    // SAFETY: as above. It is no call: the kernel makes a load of it.
    unsafe { bpf_jiffies64() }
}

/// The time of rules, to the nanosecond.
#[inline(always)]
pub(crate) fn boot_ns() -> u64 {
    // SAFETY: as above.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The time of rules.
#[inline(always)]
pub(crate) fn boot_tick_ns() -> u64 {
    maps::once_a_tick(tick(), boot_ns)
}
