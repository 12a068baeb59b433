//! The packet bucket of a source: who is charged, and what happens when several CPUs charge at once.

use gateway_common::packet::Transport;
use gateway_common::source::SourceKey;
use gateway_common::verdict::Reason;

use crate::clock;
use crate::maps::{self, Word};

/// Times that a bucket is tried when other CPUs keep changing it.
const ATTEMPTS_MAX: u32 = 8;

/// Charges the packet to its source's bucket. `None`: no bucket applies.
#[inline(always)]
pub(crate) fn admit(source: &SourceKey, transport: Transport, profile: u16) -> Option<Reason> {
    if !maps::buckets_are_on() || !is_charged(transport) {
        return None;
    }
    let bucket = maps::profile(profile)?;
    if bucket.is_unlimited() {
        return None;
    }
    let now_ns = clock::monotonic_ns();
    for _ in 0..ATTEMPTS_MAX {
        match Word::of(source) {
            Some(word) => {
                let before = word.load();
                let taken = bucket.take(before, now_ns);
                if taken.word == before || word.exchange(before, taken.word) {
                    return Some(if taken.admitted { Reason::WithinLimit } else { Reason::Limit });
                }
            }
            // Whoever finds that another CPU made it first takes from that one: two would be two bursts.
            None => {
                let taken = bucket.take(0, now_ns);
                if Word::make(source, taken.word) {
                    return Some(if taken.admitted { Reason::WithinLimit } else { Reason::Limit });
                }
            }
        }
    }
    Some(Reason::Contended)
}

/// Later fragments and unknown transports have no port that could spare them.
#[inline(always)]
fn is_charged(transport: Transport) -> bool {
    match transport {
        Transport::Tcp { port, .. } | Transport::Udp { port } => maps::is_protected(port),
        Transport::Other => true,
        Transport::Malformed => false,
    }
}
