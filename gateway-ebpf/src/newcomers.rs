//! A source that has no bucket of its own: whether it is given one, shares one with others, or is refused.
//!
//! Whoever sends from random sources makes the source of each packet a new one. So that others lose nothing by it,
//! buckets are given out at a bounded rate; beyond it sources share a fixed number of buckets, and all of these sources
//! together may be held to a rate. Who has a TCP connection is no stranger, whatever the rates say.
#![expect(unsafe_code, reason = "a global function has an exported name")]

use gateway_common::layout::{HOST_NEW_SOURCES, HOST_UNKNOWN_SOURCES};
use gateway_common::source::SourceKey;

use crate::admit::{ADMITTED, spend};
use crate::maps::{self, Word};

/// What a source without a bucket gets: one of its own, from now on.
pub(crate) const OWN: u32 = 0;
/// For this packet, one that it shares with others.
pub(crate) const SHARED: u32 = 1;
/// Nothing.
pub(crate) const NONE: u32 = 2;

/// What a source without a bucket gets. `is_connected` is asked only when it would otherwise get none of its own.
#[inline(always)]
pub(crate) fn standing(
    source: &SourceKey,
    now_ns: u64,
    is_connected: impl FnOnce() -> bool,
) -> u32 {
    if maps::new_sources().is_unlimited() {
        return OWN;
    }
    let SourceKey { bits, kind } = *source;
    if newcomer(bits, kind, now_ns) == OWN || is_connected() {
        OWN
    } else if maps::unknown_sources().is_unlimited() {
        SHARED
    } else {
        unknown(now_ns)
    }
}

/// Whether a bucket is given out. A source that has its other bucket is known, and is given this one too. Global, as
/// the next: the verifier proves them once, and a known source does not pay for them.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn newcomer(bits: u64, kind: u64, now_ns: u64) -> u32 {
    let is_known = Word::of(&SourceKey { bits, kind }.other()).is_some();
    let given = is_known
        || Word::of_host(HOST_NEW_SOURCES)
            .is_some_and(|word| spend(&word, &maps::new_sources(), now_ns) == ADMITTED);
    if given { OWN } else { NONE }
}

/// Takes one from the bucket of all sources without one of their own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn unknown(now_ns: u64) -> u32 {
    let admitted = Word::of_host(HOST_UNKNOWN_SOURCES)
        .is_some_and(|word| spend(&word, &maps::unknown_sources(), now_ns) == ADMITTED);
    if admitted { SHARED } else { NONE }
}
