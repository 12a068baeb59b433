//! The buckets of a source, of its packets and of its new connections: who is charged, and what happens when several
//! CPUs charge at once.
#![expect(unsafe_code, reason = "a global function has an exported name")]

use aya_ebpf::programs::XdpContext;
use gateway_common::bucket::Bucket;
use gateway_common::layout::Profile;
use gateway_common::packet::Transport;
use gateway_common::source::SourceKey;
use gateway_common::verdict::Reason;

use crate::maps::{self, Word};
use crate::newcomers::{self, OWN, SHARED};
use crate::{clock, sockets};

/// Times that a bucket is tried when other CPUs keep changing it.
const ATTEMPTS_MAX: u32 = 8;

/// Charges the packet to its source's buckets. `None`: no bucket applies.
#[inline(always)]
pub(crate) fn admit(
    ctx: &XdpContext,
    source: &SourceKey,
    transport: Transport,
    profile: u16,
) -> Option<Reason> {
    if !maps::buckets_are_on() || !is_charged(transport) {
        return None;
    }
    let Profile { packets, connections } = maps::profile(profile)?;
    let opens = transport.opens_connection() && !connections.is_unlimited();
    if packets.is_unlimited() && !opens {
        return None;
    }
    let now_ns = clock::monotonic_ns();
    let mut shares = false;
    if opens {
        let SourceKey { bits, kind } = source.connections();
        let Bucket { interval_ns, depth_ns } = connections;
        match charge_connection(bits, kind, interval_ns, depth_ns, now_ns) {
            ADMITTED => {}
            ADMITTED_SHARED => shares = true,
            outcome => return Some(reason(outcome, Reason::Connections)),
        }
    }
    if packets.is_unlimited() {
        return Some(Reason::WithinLimit);
    }
    let standing = || {
        // Who was let in to a shared bucket above is not asked twice.
        if shares {
            return SHARED;
        }
        let is_connected = || transport.continues_connection() && sockets::has_connection(ctx);
        newcomers::standing(source, now_ns, is_connected)
    };
    Some(reason(charge(source, &packets, now_ns, standing), Reason::Limit))
}

/// What became of a charge.
pub(crate) const ADMITTED: u32 = 0;
const ADMITTED_SHARED: u32 = 1;
const REFUSED: u32 = 2;
const CONTENDED: u32 = 3;
const UNKNOWN: u32 = 4;

#[inline(always)]
fn reason(outcome: u32, refused: Reason) -> Reason {
    match outcome {
        ADMITTED | ADMITTED_SHARED => Reason::WithinLimit,
        REFUSED => refused,
        UNKNOWN => Reason::UnknownSources,
        _ => Reason::Contended,
    }
}

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
    let source = SourceKey { bits, kind };
    let standing = || newcomers::standing(&source, now_ns, || false);
    charge(&source, &Bucket { interval_ns, depth_ns }, now_ns, standing)
}

/// Takes one from the bucket of a source, or from what stands in for it.
#[inline(always)]
fn charge(source: &SourceKey, bucket: &Bucket, now_ns: u64, standing: impl FnOnce() -> u32) -> u32 {
    let mut shares = false;
    let word = match Word::of(source) {
        Some(word) => Some(word),
        None => match standing() {
            OWN => {
                let taken = bucket.take(0, now_ns);
                if Word::make(source, taken.word) {
                    return if taken.admitted { ADMITTED } else { REFUSED };
                }
                // Whoever finds that another CPU made it first takes from that one: two would be two bursts.
                Word::of(source)
            }
            SHARED => {
                shares = true;
                Word::shared(source)
            }
            _ => return UNKNOWN,
        },
    };
    match word.map_or(CONTENDED, |word| spend(&word, bucket, now_ns)) {
        ADMITTED if shares => ADMITTED_SHARED,
        outcome => outcome,
    }
}

/// Takes one from a bucket: whether there was one, or whether other CPUs were always faster.
#[inline(always)]
pub(crate) fn spend(word: &Word, bucket: &Bucket, now_ns: u64) -> u32 {
    for _ in 0..ATTEMPTS_MAX {
        let before = word.load();
        let taken = bucket.take(before, now_ns);
        if taken.word == before || word.exchange(before, taken.word) {
            return if taken.admitted { ADMITTED } else { REFUSED };
        }
    }
    CONTENDED
}

/// Later fragments and unknown transports have no port that could spare them. (What is malformed never gets here.)
#[inline(always)]
fn is_charged(transport: Transport) -> bool {
    transport.port().is_none_or(maps::is_protected)
}
