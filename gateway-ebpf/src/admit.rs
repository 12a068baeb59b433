//! The buckets of a source, of its packets and of its new connections: who is charged, and what happens when several
//! CPUs charge at once.
#![expect(unsafe_code, reason = "a global function has an exported name")]

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
    let opens = transport.opens_connection() && !connections.is_unlimited();
    if packets.is_unlimited() && !opens {
        return None;
    }
    let now_ns = clock::monotonic_ns();
    if opens {
        let SourceKey { bits, kind } = source.connections();
        let Bucket { interval_ns, depth_ns } = connections;
        match charge_connection(bits, kind, interval_ns, depth_ns, now_ns) {
            ADMITTED => {}
            REFUSED => return Some(Reason::Connections),
            _ => return Some(Reason::Contended),
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

const ADMITTED: u32 = 0;
const REFUSED: u32 = 1;
const CONTENDED: u32 = 2;

/// Takes one from a bucket of connections. A global function, for which packets that open none do not pay, and which
/// the verifier proves once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn charge_connection(
    bits: u64,
    kind: u64,
    interval_ns: u64,
    depth_ns: u64,
    now_ns: u64,
) -> u32 {
    match charge(&SourceKey { bits, kind }, &Bucket { interval_ns, depth_ns }, now_ns) {
        Some(true) => ADMITTED,
        Some(false) => REFUSED,
        None => CONTENDED,
    }
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

/// Later fragments and unknown transports have no port that could spare them. (What is malformed never gets here.)
#[inline(always)]
fn is_charged(transport: Transport) -> bool {
    transport.port().is_none_or(maps::is_protected)
}
