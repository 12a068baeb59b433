//! From a source to the rule that decides about it: the live one with the longest prefix.
//!
//! Only lengths that have rules are looked up, the longest first. An expired rule makes the walk go on, so that it
//! cannot hide the shorter one that covers it.
//!
//! The host itself, which most rules name, is looked up in place. The walks over prefixes are global functions to the
//! verifier: it proves each once, whatever led there, where it would otherwise follow a hundred and twenty-eight
//! lengths again for every kind of packet.
#![expect(unsafe_code, reason = "a global function has an exported name")]

use gateway_common::layout::{RuleKeyV4, RuleKeyV6, length_bit_v4, length_bit_v6};
use gateway_common::rule::{Action, Rules};
use gateway_common::source::{Source, V6};

use crate::clock;
use crate::maps;

/// The profile of a source without a rule.
const DEFAULT_PROFILE: u16 = 0;

/// Of the first word of lengths of either family: whether hosts have rules.
const HOSTS: u64 = length_bit_v4(32);
const _: () = assert!(matches!(length_bit_v6(128), (1, HOSTS)));

/// What the rules say about a packet.
pub(crate) struct Ruling {
    /// `None`: no rule.
    pub(crate) action: Option<Action>,
    /// The profile that `Limit` and no rule at all are held to.
    pub(crate) profile: u16,
}

impl Ruling {
    const NO_RULE: u32 = DEFAULT_PROFILE as u32;

    /// Global functions return a number.
    #[inline(always)]
    const fn pack(action: u8, profile: u16) -> u32 {
        (action as u32) << 16 | profile as u32
    }

    #[inline(always)]
    const fn unpack(packed: u32) -> Self {
        Self { action: Action::from_number((packed >> 16) as u8), profile: packed as u16 }
    }
}

/// Finds the rule for `source` and counts the hit.
#[inline(always)]
pub(crate) fn classify(source: Source) -> Ruling {
    Ruling::unpack(match source {
        _ if !maps::rules_are_on() => Ruling::NO_RULE,
        Source::V4(address) => classify_v4(address),
        Source::V6(address) => classify_v6(address),
    })
}

#[inline(always)]
fn classify_v4(address: u32) -> u32 {
    let lengths = maps::lengths(0);
    if lengths & HOSTS != 0
        && let Some(found) = live(maps::rules_v4(RuleKeyV4::new(address, 32)))
    {
        return found;
    }
    if lengths & !HOSTS == 0 { Ruling::NO_RULE } else { walk_v4(address) }
}

#[inline(always)]
fn classify_v6(address: V6) -> u32 {
    let [first, second, third] = [1, 2, 3].map(maps::lengths);
    if first & HOSTS != 0
        && let Some(found) = live(maps::rules_v6(RuleKeyV6::new(address, 128)))
    {
        return found;
    }
    if first & !HOSTS | second | third == 0 {
        return Ruling::NO_RULE;
    }
    walk_v6(address.high, address.low)
}

/// The prefixes of an IPv4 host, without the host itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_v4(address: u32) -> u32 {
    let mut lengths = maps::lengths(0) & !HOSTS;
    for _ in 0..32 {
        if lengths == 0 {
            break;
        }
        let length = 32 - lengths.trailing_zeros().min(32);
        lengths &= lengths - 1;
        if let Some(found) = live(maps::rules_v4(RuleKeyV4::new(address, length))) {
            return found;
        }
    }
    Ruling::NO_RULE
}

/// The prefixes of an IPv6 host, without the host itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_v6(high: u64, low: u64) -> u32 {
    let mut skipped = HOSTS;
    for word in 0..3 {
        let mut lengths = maps::lengths(1 + word) & !skipped;
        skipped = 0;
        for _ in 0..64 {
            if lengths == 0 {
                break;
            }
            let length = 128u32.saturating_sub(64 * word + lengths.trailing_zeros());
            lengths &= lengths - 1;
            let key = RuleKeyV6::new(V6 { high, low }, length);
            if let Some(found) = live(maps::rules_v6(key)) {
                return found;
            }
        }
    }
    Ruling::NO_RULE
}

#[inline(always)]
fn live(rules: Option<&Rules>) -> Option<u32> {
    let rules = rules?;
    let now_ns = clock::boot_tick_ns();
    let rule = *rules.live(now_ns)?;
    maps::count_hit(rule.slot, now_ns);
    Some(Ruling::pack(rule.action, rule.profile))
}
