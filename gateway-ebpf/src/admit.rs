//! The buckets of a source, of its packets and of its new connections: who is charged, and what happens when several CPUs
//! charge at once.

use gateway_common::bucket::Bucket;
use gateway_common::layout::Profile;
use gateway_common::packet::Transport;
use gateway_common::source::SourceKey;
use gateway_common::verdict::Reason;

use crate::clock;
use crate::maps::{self, Word};

/// Times that a bucket is tried when other CPUs keep changing it.
const ATTEMPTS_MAX: u32 = 8;

/// Charges the packet to its source's buckets. `None`: no bucket applies.
#[inline(always)]
pub(crate) fn admit(source: &SourceKey, transport: Transport, profile: u16) -> Option<Reason> {
    if !maps::buckets_are_on() || !is_charged(transport) {
        return None;
    }
    let Profile { packets, connections } = maps::profile(profile)?;
    let opens = is_opening(transport) && !connections.is_unlimited();
    if packets.is_unlimited() && !opens {
        return None;
    }
    let now_ns = clock::monotonic_ns();
    if opens {
        match charge(&source.connections(), &connections, now_ns) {
            Some(true) => {}
            Some(false) => return Some(Reason::Connections),
            None => return Some(Reason::Contended),
        }
    }
    if packets.is_unlimited() {
        return Some(Reason::WithinLimit);
    }
    Some(match charge(source, &packets, now_ns) {
        Some(true) => Reason::WithinLimit,
        Some(false) => Reason::Limit,
        None => Reason::Contended,
    })
}

/// Takes one from a bucket: whether there was one, `None` when other CPUs were always faster.
#[inline(always)]
fn charge(key: &SourceKey, bucket: &Bucket, now_ns: u64) -> Option<bool> {
    for _ in 0..ATTEMPTS_MAX {
        match Word::of(key) {
            Some(word) => {
                let before = word.load();
                let taken = bucket.take(before, now_ns);
                if taken.word == before || word.exchange(before, taken.word) {
                    return Some(taken.admitted);
                }
            }
            // Whoever finds that another CPU made it first takes from that one: two would be two bursts.
            None => {
                let taken = bucket.take(0, now_ns);
                if Word::make(key, taken.word) {
                    return Some(taken.admitted);
                }
            }
        }
    }
    None
}

/// A SYN without ACK: the first packet of a connection (RFC 9293, section 3.5).
#[inline(always)]
fn is_opening(transport: Transport) -> bool {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    matches!(transport, Transport::Tcp { flags, .. } if flags & (SYN | ACK) == SYN)
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
