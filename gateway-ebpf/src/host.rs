//! The buckets of the host as a whole, for what has no bucket of its source: UDP to ports that nobody protects, and
//! fragments.
//!
//! One word each for all CPUs. Only what is admitted writes it, so that at most the rate of the bucket contends for its
//! cache line, and a flood only reads it.

use gateway_common::layout::{HOST_FRAGMENTS, HOST_UDP};
use gateway_common::packet::Transport;
use gateway_common::verdict::{Reason, Verdict};

use crate::clock;
use crate::maps::{self, Word};

/// Times that a bucket is tried when other CPUs keep changing it.
const ATTEMPTS_MAX: u32 = 8;

/// Charges a packet, which passes for `reason` otherwise, to the host's buckets.
#[inline(always)]
pub(crate) fn admit(transport: Transport, reason: Reason) -> Reason {
    let (udp, fragments) = (maps::host_udp(), maps::host_fragments());
    let is_spare = |port| !maps::is_protected(port);
    let (line, bucket, refused) = if reason.verdict() == Verdict::Drop {
        return reason;
    } else if !fragments.is_unlimited() && transport.is_fragment() {
        (HOST_FRAGMENTS, fragments, Reason::HostFragments)
    } else if !udp.is_unlimited() && transport.udp_port().is_some_and(is_spare) {
        (HOST_UDP, udp, Reason::HostUdp)
    } else {
        return reason;
    };
    let Some(word) = Word::of_host(line) else { return reason };
    let now_ns = clock::monotonic_ns();
    for _ in 0..ATTEMPTS_MAX {
        let before = word.load();
        let taken = bucket.take(before, now_ns);
        if taken.word == before || word.exchange(before, taken.word) {
            return if taken.admitted { reason } else { refused };
        }
    }
    Reason::Contended
}
