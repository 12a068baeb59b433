//! From a source to the rule that decides about it: the live one with the longest prefix.
//!
//! Filters say first whether any rule touches the source at all, which for most is one load and the end of it. Then only
//! the lengths that rules have there are looked up, the longest first. An expired rule makes the walk go on, so that
//! it cannot hide the shorter one that covers it.
//!
//! The host itself, which most rules name, is looked up in place. The walks over prefixes, and what they look up, are
//! global functions to the verifier: it proves each once, whatever led there.
#![expect(unsafe_code, reason = "a global function has an exported name")]

use gateway_common::layout::{hits_index, length_bit_v6};
use gateway_common::rule::Action;
use gateway_common::source::{Source, V6};
use gateway_common::table::{
    CELLS, Head, LONG_V6, MIDDLE_V6, PROBES_MAX, Span, TagV4, TagV6, WORDS_V4, WORDS_V6,
    is_continued, is_taken, length_bit_v4,
};

use crate::clock;
use crate::maps::{self, load};

/// What a walk answers where there is no rule: no action, and the default profile.
const NO_RULE: u32 = 0;
/// What a look-up answers that did not get to the end. No head is that.
const FURTHER: u32 = u32::MAX;
/// Buckets that are read in place, where the verifier follows each with all that comes after. Of hosts at most one in
/// fifty lies further on and takes a call.
const PROBES_IN_PLACE: u32 = 2;

/// Of the first word of lengths of either family: whether hosts have rules.
const HOSTS: u64 = length_bit_v4(32);
const _: () = assert!(matches!(length_bit_v6(128), (0, HOSTS)));

/// What the rules say about a packet.
pub(crate) struct Ruling {
    /// `None`: no rule.
    pub(crate) action: Option<Action>,
    /// The profile that `Limit` and no rule at all are held to.
    pub(crate) profile: u16,
}

/// Finds the rule for `source` and counts the hit.
#[inline(always)]
pub(crate) fn classify(source: Source) -> Ruling {
    let found = Head::from_bits(match source {
        _ if !maps::rules_are_on() => NO_RULE,
        Source::V4(address) => classify_v4(address),
        Source::V6(address) => classify_v6(address),
    });
    Ruling { action: found.action(), profile: u16::from(found.profile()) }
}

#[inline(always)]
fn classify_v4(address: u32) -> u32 {
    if !maps::is_touched_v4(address) {
        return NO_RULE;
    }
    let lengths = maps::lengths_v4(address);
    if lengths & HOSTS != 0 {
        let mut found = find_v4(address, 32, PROBES_IN_PLACE);
        if found == FURTHER {
            found = prefix_v4(address, 32);
        }
        if found != NO_RULE {
            return found;
        }
    }
    if lengths & !HOSTS == 0 { NO_RULE } else { walk_v4(address) }
}

#[inline(always)]
fn classify_v6(address: V6) -> u32 {
    let [first, second, third] = [0, 1, 2].map(maps::lengths_v6);
    if first | second | third == 0 {
        return NO_RULE;
    }
    if first & HOSTS != 0 && maps::is_touched_v6(address.high, LONG_V6) {
        let mut found = find_v6(address, 128, PROBES_IN_PLACE);
        if found == FURTHER {
            found = prefix_v6(address.high, address.low, 128);
        }
        if found != NO_RULE {
            return found;
        }
    }
    if first & !HOSTS | second | third == 0 {
        return NO_RULE;
    }
    walk_v6(address.high, address.low)
}

/// The prefixes of an IPv4 host, without the host itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_v4(address: u32) -> u32 {
    let mut lengths = maps::lengths_v4(address) & !HOSTS;
    for _ in 0..32 {
        if lengths == 0 {
            break;
        }
        let length = 32 - lengths.trailing_zeros().min(32);
        lengths &= lengths - 1;
        let found = prefix_v4(address, length);
        if found != NO_RULE {
            return found;
        }
    }
    NO_RULE
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn prefix_v4(address: u32, length: u32) -> u32 {
    find_v4(address, length, PROBES_MAX)
}

/// The prefixes of an IPv6 host, without the host itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_v6(high: u64, low: u64) -> u32 {
    let long = maps::is_touched_v6(high, LONG_V6);
    let middle = maps::is_touched_v6(high, MIDDLE_V6);
    let mut skipped = HOSTS;
    for word in 0..3 {
        let mut lengths = maps::lengths_v6(word) & !skipped;
        skipped = 0;
        for _ in 0..64 {
            if lengths == 0 {
                break;
            }
            let length = 128u32.saturating_sub(64 * word + lengths.trailing_zeros());
            lengths &= lengths - 1;
            let possible = match length {
                LONG_V6.. => long,
                MIDDLE_V6.. => middle,
                _ => true,
            };
            if !possible {
                continue;
            }
            let found = prefix_v6(high, low, length);
            if found != NO_RULE {
                return found;
            }
        }
    }
    NO_RULE
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn prefix_v6(high: u64, low: u64, length: u32) -> u32 {
    find_v6(V6 { high, low }, length, PROBES_MAX)
}

/// The live rule of one IPv4 prefix; [`FURTHER`] if that may lie beyond `probes` buckets.
#[inline(always)]
fn find_v4(address: u32, length: u32, probes: u32) -> u32 {
    let tag = TagV4::new(address, length);
    let (mut second, mut second_hits) = (NO_RULE, 0);
    for probe in 0..probes {
        let Some((index, bucket)) = maps::bucket_v4(tag, probe) else { return NO_RULE };
        for cell in 0..CELLS {
            let head = load(&bucket[cell * WORDS_V4]);
            if TagV4::of(head) != tag || !is_taken(head) {
                continue;
            }
            let span = Span::of(load(&bucket[cell * WORDS_V4 + 1]));
            // The cell may have been given to another rule between the two reads.
            if load(&bucket[cell * WORDS_V4]) != head || !span.holds(clock::boot_tick_ns()) {
                continue;
            }
            let hits = hits_index(index, cell);
            if !Head::of(head).is_second() {
                maps::count_hit_v4(hits, clock::boot_tick_ns());
                return Head::of(head).bits();
            }
            (second, second_hits) = (Head::of(head).bits(), hits);
        }
        if !is_continued(load(&bucket[0])) {
            break;
        }
        if probes < PROBES_MAX && probe + 1 == probes {
            return FURTHER;
        }
    }
    if second != NO_RULE {
        maps::count_hit_v4(second_hits, clock::boot_tick_ns());
    }
    second
}

/// The live rule of one IPv6 prefix; [`FURTHER`] if that may lie beyond `probes` buckets.
#[inline(always)]
fn find_v6(address: V6, length: u32, probes: u32) -> u32 {
    let tag = TagV6::new(address, length);
    let (mut second, mut second_hits) = (NO_RULE, 0);
    for probe in 0..probes {
        let Some((index, bucket)) = maps::bucket_v6(tag, probe) else { return NO_RULE };
        for cell in 0..CELLS {
            let at = cell * WORDS_V6;
            let head = load(&bucket[at + 2]);
            if TagV6::length_of(head) != length || !is_taken(head) {
                continue;
            }
            if load(&bucket[at]) != tag.address.high || load(&bucket[at + 1]) != tag.address.low {
                continue;
            }
            let span = Span::of(load(&bucket[at + 3]));
            // The cell may have been given to another rule between the reads; its version differs then.
            if load(&bucket[at + 2]) != head || !span.holds(clock::boot_tick_ns()) {
                continue;
            }
            let hits = hits_index(index, cell);
            if !Head::of(head).is_second() {
                maps::count_hit_v6(hits, clock::boot_tick_ns());
                return Head::of(head).bits();
            }
            (second, second_hits) = (Head::of(head).bits(), hits);
        }
        if !is_continued(load(&bucket[2])) {
            break;
        }
        if probes < PROBES_MAX && probe + 1 == probes {
            return FURTHER;
        }
    }
    if second != NO_RULE {
        maps::count_hit_v6(second_hits, clock::boot_tick_ns());
    }
    second
}
