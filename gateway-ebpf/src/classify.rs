//! From a source to the rule that decides about it: the live one with the longest prefix.
//!
//! Filters say first whether any rule touches the source at all, which for most is one load and the end of it. Then
//! only the lengths that rules have there are looked up, the longest first. An expired rule makes the walk go on, so
//! that it cannot hide the shorter one that covers it.
//!
//! The host itself, which most rules name, is looked up in place, in two buckets, beyond which hardly any lookup goes.
//! The walks over prefixes, and what they look up, are global functions to the verifier: it proves each once, whatever
//! led there.
#![expect(unsafe_code, reason = "a global function has an exported name")]

use gateway_common::event::Ruled;
use gateway_common::layout::length_bit_v6;
use gateway_common::rule::Action;
use gateway_common::source::{Source, V6};
use gateway_common::table::{
    CELLS, Head, LONG_V6, MIDDLE_V6, PROBES_MAX, Span, TagV4, TagV6, WORDS_V4, WORDS_V6,
    cell_index, is_continued, is_same_rule, is_taken, length_bit_v4,
};

use crate::clock;
use crate::maps::{self, load};

/// What a walk answers where there is no rule: no action, and the default profile.
const NO_RULE: u32 = Ruled::NONE.bits();

/// Of the first word of lengths of either family: whether hosts have rules.
const HOSTS: u64 = length_bit_v4(32);
const _: () = assert!(matches!(length_bit_v6(128), (0, HOSTS)));

/// What the rules say about a packet.
pub(crate) struct Ruling {
    /// `None`: no rule.
    pub(crate) action: Option<Action>,
    /// The rule itself.
    pub(crate) rule: Ruled,
    /// The profile that `Limit` and no rule at all are held to.
    pub(crate) profile: u16,
}

/// Finds the rule for `source` and counts the hit.
#[inline(always)]
pub(crate) fn classify(source: Source) -> Ruling {
    let rule = Ruled::from_bits(match source {
        _ if !maps::rules_are_on() => NO_RULE,
        Source::V4(address) => classify_v4(address),
        Source::V6(address) => classify_v6(address),
    });
    let found = rule.head();
    Ruling { action: found.action(), rule, profile: u16::from(found.profile()) }
}

#[inline(always)]
fn classify_v4(address: u32) -> u32 {
    let lengths = maps::lengths_v4(address);
    if lengths & HOSTS != 0 {
        let mut found = scan_v4(address, 32, 0);
        if !is_settled(found) {
            found = follow(found, scan_v4(address, 32, 1));
        }
        let found = if is_settled(found) { decide_v4(found, 32) } else { prefix_v4(address, 32) };
        if decides(found) || lengths & !HOSTS == 0 {
            return found;
        }
        return walk_v4(address, lengths) | found;
    }
    if lengths == 0 { NO_RULE } else { walk_v4(address, lengths) }
}

#[inline(always)]
fn classify_v6(address: V6) -> u32 {
    let [first, second, third] = [0, 1, 2].map(maps::lengths_v6);
    if first | second | third == 0 {
        return NO_RULE;
    }
    if first & HOSTS != 0 && maps::is_touched_v6(address.high, LONG_V6) {
        let mut found = scan_v6(address, 128, 0);
        if !is_settled(found) {
            found = follow(found, scan_v6(address, 128, 1));
        }
        let found = match is_settled(found) {
            true => decide_v6(found, 128),
            false => prefix_v6(address.high, address.low, 128),
        };
        if decides(found) || first & !HOSTS | second | third == 0 {
            return found;
        }
        return walk_v6(address.high, address.low) | found;
    }
    if first & !HOSTS | second | third == 0 {
        return NO_RULE;
    }
    walk_v6(address.high, address.low)
}

/// The prefixes of an IPv4 host, without the host itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_v4(address: u32, lengths: u64) -> u32 {
    let mut lengths = lengths & !HOSTS;
    let mut trace = NO_RULE;
    for _ in 0..32 {
        if lengths == 0 {
            break;
        }
        let length = 32 - lengths.trailing_zeros().min(32);
        lengths &= lengths - 1;
        if !may_have_v4(address, length) {
            continue;
        }
        let found = prefix_v4(address, length);
        if decides(found) {
            return found | trace;
        }
        trace |= found;
    }
    trace
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn prefix_v4(address: u32, length: u32) -> u32 {
    let mut found = scan_v4(address, length, 0);
    for probe in 1..PROBES_MAX {
        if is_settled(found) {
            break;
        }
        found = follow(found, further_v4(address, length, probe));
    }
    decide_v4(found, length)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn further_v4(address: u32, length: u32, probe: u32) -> u64 {
    scan_v4(address, length, probe)
}

/// The prefixes of an IPv6 host, without the host itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_v6(high: u64, low: u64) -> u32 {
    let mut possible = [!HOSTS, u64::MAX];
    if !maps::is_touched_v6(high, LONG_V6) {
        possible = without(possible, LONG_V6, 128);
    }
    if !maps::is_touched_v6(high, MIDDLE_V6) {
        possible = without(possible, MIDDLE_V6, LONG_V6 - 1);
    }
    let mut trace = NO_RULE;
    for chunk in 0..CHUNKS_V6 {
        let word = chunk / 8;
        let lengths =
            (maps::lengths_v6(word) & possible[word as usize]) >> (8 * (chunk % 8)) & 0xff;
        if lengths == 0 {
            continue;
        }
        let longest = 128 - 8 * chunk;
        let mut lengths = candidates_v6(high, low, longest, lengths as u32) & 0xff;
        for _ in 0..8 {
            if lengths == 0 {
                break;
            }
            let found = prefix_v6(high, low, longest.saturating_sub(lengths.trailing_zeros()));
            if decides(found) {
                return found | trace;
            }
            trace |= found;
            lengths &= lengths - 1;
        }
    }
    let (word, everybody) = length_bit_v6(0);
    match maps::lengths_v6(word) & everybody {
        0 => trace,
        _ => prefix_v6(high, low, 0) | trace,
    }
}

/// The lengths of IPv6 in eights, without 0.
const CHUNKS_V6: u32 = 16;

/// Which of eight lengths take more than a look at their buckets to say that they have no rule: bit 0 is the `longest`.
/// A call for each length would cost more than all of them here, and in place they are more than the verifier follows,
/// which is also why nothing here branches that need not.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn candidates_v6(high: u64, low: u64, longest: u32, lengths: u32) -> u32 {
    let (second_half, mut found) = (if longest > 64 { u64::MAX } else { 0 }, 0);
    for bit in 0..8 {
        if lengths >> bit & 1 == 0 {
            continue;
        }
        let length = longest.wrapping_sub(bit);
        // By the kernel's instructions as by these, only the last six bits count: in either half the right ones.
        let mask = u64::MAX.wrapping_shl(128u32.wrapping_sub(length));
        let address = V6 { high: high & (mask | second_half), low: low & mask & second_half };
        let Some((_, bucket)) = maps::bucket_v6(TagV6 { address, length }, 0) else { continue };
        let mut may = is_continued(load(&bucket[2]));
        for cell in 0..CELLS {
            let at = cell * WORDS_V6;
            may |= (TagV6::length_of(load(&bucket[at + 2])) == length)
                & (load(&bucket[at]) == address.high);
        }
        found |= u32::from(may) << bit;
    }
    found
}

/// The words of IPv6 lengths without those from `shortest` to `longest`.
#[inline(always)]
const fn without(mut words: [u64; 2], shortest: u32, longest: u32) -> [u64; 2] {
    let mut length = shortest;
    while length <= longest {
        let (word, bit) = length_bit_v6(length);
        words[word as usize] &= !bit;
        length += 1;
    }
    words
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn prefix_v6(high: u64, low: u64, length: u32) -> u32 {
    let mut found = scan_v6(V6 { high, low }, length, 0);
    for probe in 1..PROBES_MAX {
        if is_settled(found) {
            break;
        }
        found = follow(found, further_v6(high, low, length, probe));
    }
    decide_v6(found, length)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn further_v6(high: u64, low: u64, length: u32, probe: u32) -> u64 {
    scan_v6(V6 { high, low }, length, probe)
}

/// Of what a scan found: the rule, none if its action is 0. Above it the number of its cell.
const RULE: u64 = 0xff_ffff;
/// Of what a scan found: the prefix may have rules further on.
const CONTINUES: u64 = 1 << 24;
const CELL_SHIFT: u32 = 32;

/// Whether no further bucket can change what was found.
#[inline(always)]
fn is_settled(found: u64) -> bool {
    found & CONTINUES == 0 || (is_taken(found) && !Head::of(found & RULE).is_second())
}

/// What two buckets in a row say together.
#[inline(always)]
fn follow(found: u64, next: u64) -> u64 {
    if is_taken(next) { next } else { found & !CONTINUES | next & CONTINUES }
}

/// Whether what was looked up is a rule that decides, and not just the trace of a trial.
#[inline(always)]
fn decides(found: u32) -> bool {
    is_taken(found as u64)
}

/// A trial leaves nothing but the trace that there was one. Without a branch, which the verifier would follow both ways
/// for everything that comes after.
#[inline(always)]
fn ruled(head: Head, length: u32) -> u32 {
    let trial = u32::from(head.is_trial()).wrapping_neg();
    Ruled::new(head, length).bits() & !trial | Head::TRIED_BITS & trial
}

#[inline(always)]
fn decide_v4(found: u64, length: u32) -> u32 {
    if !is_taken(found) {
        return NO_RULE;
    }
    let head = Head::of(found & RULE);
    count_list(head);
    maps::count_hit_v4((found >> CELL_SHIFT) as u32, clock::boot_tick_ns());
    ruled(head, length)
}

#[inline(always)]
fn decide_v6(found: u64, length: u32) -> u32 {
    if !is_taken(found) {
        return NO_RULE;
    }
    let head = Head::of(found & RULE);
    count_list(head);
    maps::count_hit_v6((found >> CELL_SHIFT) as u32, clock::boot_tick_ns());
    ruled(head, length)
}

#[inline(always)]
fn count_list(head: Head) {
    if head.seat() != 0 {
        count_list_at(head.seat().into());
    }
}

/// A call, because in place the verifier would follow both of its ends through everything that comes after.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_list_at(seat: u32) -> u32 {
    maps::count_list(seat);
    seat
}

/// Whether it takes more than a look at its bucket to say that a prefix has no rule. For most it does not, and they
/// need no call.
#[inline(always)]
fn may_have_v4(address: u32, length: u32) -> bool {
    let tag = TagV4::new(address, length);
    let Some((_, bucket)) = maps::bucket_v4(tag, 0) else { return false };
    let mut may = is_continued(load(&bucket[0]));
    for cell in 0..CELLS {
        may |= TagV4::of(load(&bucket[cell * WORDS_V4])) == tag;
    }
    may
}

/// What one bucket says about an IPv4 prefix: its live rule, the first before the second.
#[inline(always)]
fn scan_v4(address: u32, length: u32, probe: u32) -> u64 {
    let tag = TagV4::new(address, length);
    let Some((index, bucket)) = maps::bucket_v4(tag, probe) else { return 0 };
    let continues = if is_continued(load(&bucket[0])) { CONTINUES } else { 0 };
    let mut found = continues;
    for cell in 0..CELLS {
        let mut head = load(&bucket[cell * WORDS_V4]);
        if TagV4::of(head) != tag || !is_taken(head) {
            continue;
        }
        let span = load(&bucket[cell * WORDS_V4 + 1]);
        // The cell may have been given to another rule between the two reads.
        let before = core::mem::replace(&mut head, load(&bucket[cell * WORDS_V4]));
        if !is_same_rule(before, head) {
            continue;
        }
        let span = span_of(before, head, span, &bucket[cell * WORDS_V4 + 1]);
        if !span.holds(clock::boot_tick_ns()) {
            continue;
        }
        found = rule(head, cell_index(index, cell)) | continues;
        if !Head::of(head).is_second() {
            return found;
        }
    }
    found
}

/// What one bucket says about an IPv6 prefix: its live rule, the first before the second.
#[inline(always)]
fn scan_v6(address: V6, length: u32, probe: u32) -> u64 {
    let tag = TagV6::new(address, length);
    let Some((index, bucket)) = maps::bucket_v6(tag, probe) else { return 0 };
    let continues = if is_continued(load(&bucket[2])) { CONTINUES } else { 0 };
    let mut found = continues;
    for cell in 0..CELLS {
        let at = cell * WORDS_V6;
        let mut head = load(&bucket[at + 2]);
        if TagV6::length_of(head) != length || !is_taken(head) {
            continue;
        }
        if load(&bucket[at]) != tag.address.high || load(&bucket[at + 1]) != tag.address.low {
            continue;
        }
        let span = load(&bucket[at + 3]);
        // The cell may have been given to another rule between the reads; its version differs then.
        let before = core::mem::replace(&mut head, load(&bucket[at + 2]));
        if !is_same_rule(before, head) {
            continue;
        }
        let span = span_of(before, head, span, &bucket[at + 3]);
        if !span.holds(clock::boot_tick_ns()) {
            continue;
        }
        found = rule(head, cell_index(index, cell)) | continues;
        if !Head::of(head).is_second() {
            return found;
        }
    }
    found
}

#[inline(always)]
fn rule(head: u64, cell: u32) -> u64 {
    u64::from(Head::of(head).bits()) | u64::from(cell) << CELL_SHIFT
}

/// The span that belongs to `head`, which was `before` ahead of the first reading of the span. If the rule changed in
/// between, that may be the one of the old head; what is read now is not.
#[inline(always)]
fn span_of(before: u64, head: u64, first: u64, again: &u64) -> Span {
    Span::of(if Head::of(before) == Head::of(head) { first } else { load(again) })
}
