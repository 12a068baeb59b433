//! `hash`: the same key goes to the same endpoint for as long as that one is usable.
//!
//! A key has a slot in a table, and each slot the endpoint that wins it by its own draw (rendezvous hashing). Who comes
//! wins slots for itself and who goes leaves its own to the others; nobody else's move. A key whose endpoint is sick
//! draws another slot, so that its load spreads over all the others, and comes back with the endpoint. The same holds
//! for one whose endpoint has more requests than a bound allows, if there is one.

use std::net::SocketAddr;

use xxhash_rust::xxh3::xxh3_64;

use crate::config::Share;

/// Slots; a power of two.
const SLOTS: usize = 1 << 15;
/// Slots that a key draws before it takes whoever is next.
const DRAWS_MAX: u64 = 32;

/// The endpoints by slot.
#[derive(Clone, Debug)]
pub(super) struct Slots(Box<[u16]>);

impl Slots {
    /// Of endpoints with their weights. Every gateway with the same ones has the same table.
    pub(super) fn new(endpoints: &[(SocketAddr, u32)]) -> Self {
        let seeds: Vec<(u64, f64)> = endpoints
            .iter()
            .map(|(address, weight)| (key(address.to_string().as_bytes()), f64::from(*weight)))
            .collect();
        let equal = endpoints.windows(2).all(|pair| matches!(pair, [(_, a), (_, b)] if a == b));
        let slots = (0..SLOTS as u64).map(|slot| {
            let draw = |(seed, _): &(u64, f64)| mix(seed ^ mix(slot));
            let winner = match equal {
                true => (0..).zip(&seeds).max_by_key(|(_, seed)| draw(seed)),
                // An exponential draw with the weight as its rate: the least wins in proportion to it.
                false => (0..).zip(&seeds).min_by(|(_, one), (_, other)| {
                    let time = |seed: &(u64, f64)| -unit(draw(seed)).ln() / seed.1;
                    time(one).total_cmp(&time(other))
                }),
            };
            winner.map_or(0, |(index, _)| index)
        });
        Self(slots.collect())
    }

    /// The endpoint of `key` among those that `is_free` says may be taken, out of `count`.
    pub(super) fn find(
        &self,
        key: u64,
        count: usize,
        is_free: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let is_free = |index: usize| index < count && is_free(index);
        let mut last = 0;
        for draw in 0..DRAWS_MAX {
            last = self.slot(if draw == 0 { key } else { mix(key.wrapping_add(draw)) });
            if is_free(last) {
                return Some(last);
            }
        }
        (last..count).chain(0..last).find(|index| is_free(*index))
    }

    fn slot(&self, key: u64) -> usize {
        let index = usize::try_from(key % SLOTS as u64).unwrap_or(0);
        self.0.get(index).copied().map_or(0, usize::from)
    }
}

/// How many requests an endpoint may have: its part by weight of all that there are and the one that is to come, and
/// so much more (V. Mirrokni, M. Thorup, M. Zadimoghaddam, Consistent Hashing with Bounded Loads, 2018; HAProxy's
/// `hash-balance-factor`). Rounded up, so that there is always room somewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    per_million: u32,
    requests: u64,
    weight: u64,
}

impl Bound {
    /// For endpoints with these requests and weights.
    pub(super) fn new(share: Share, endpoints: impl Iterator<Item = (u64, u32)>) -> Self {
        let all = |(requests, weights): (u64, u64), (active, weight): (u64, u32)| {
            (requests + active, weights + u64::from(weight))
        };
        let (requests, weight) = endpoints.fold((0, 0), all);
        Self { per_million: share.parts_per_million(), requests: requests + 1, weight }
    }

    /// Whether one that has so many may have one more.
    pub(super) fn allows(&self, active: u64, weight: u32) -> bool {
        let allowed = u128::from(self.per_million) * u128::from(self.requests) * u128::from(weight);
        u128::from(active) * u128::from(self.weight) * 1_000_000 < allowed
    }
}

/// The key of a text.
pub(super) fn key(text: &[u8]) -> u64 {
    xxh3_64(text)
}

/// The finalizer of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Above 0 and below 1.
fn unit(value: u64) -> f64 {
    let high = u32::try_from(value >> 32).unwrap_or(0);
    (f64::from(high) + 0.5) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEYS: u64 = 20_000;

    fn endpoints(weights: &[u32]) -> Vec<(SocketAddr, u32)> {
        let address = |index| SocketAddr::from(([10, 0, 0, index], 8080));
        (1..).map(address).zip(weights.iter().copied()).collect()
    }

    /// The address that each key goes to.
    fn placed(endpoints: &[(SocketAddr, u32)]) -> Vec<SocketAddr> {
        let slots = Slots::new(endpoints);
        let place = |number: u64| slots.find(key(&number.to_le_bytes()), endpoints.len(), |_| true);
        (0..KEYS).map(|number| endpoints[place(number).unwrap()].0).collect()
    }

    #[test]
    fn every_gateway_has_the_same_table() {
        let slots = Slots::new(&endpoints(&[1; 5]));
        let first: Vec<u16> = slots.0.iter().take(12).copied().collect();
        assert_eq!(
            first,
            [2, 4, 1, 0, 2, 4, 2, 3, 3, 0, 3, 0],
            "a change of this table moves everybody's sessions"
        );
        assert!(Slots::new(&[]).find(7, 0, |_| true).is_none());
    }

    #[test]
    fn who_is_sick_spreads_over_all_the_others_and_nobody_else_moves() {
        let endpoints = endpoints(&[1; 10]);
        let slots = Slots::new(&endpoints);
        let mut spread = [0u64; 10];
        for number in 0..KEYS {
            let key = key(&number.to_le_bytes());
            let home = slots.find(key, 10, |_| true).unwrap();
            let now = slots.find(key, 10, |index| index != 3).unwrap();
            assert!(home == 3 || now == home);
            if home == 3 {
                spread[now] += 1;
            }
        }
        let fair = spread.iter().sum::<u64>() / 9;
        let even = |count: &u64| (fair / 2..fair * 2).contains(count);
        assert_eq!(spread.iter().filter(|count| even(count)).count(), 9, "{spread:?}");
        assert_eq!(slots.find(7, 10, |index| index == 9), Some(9));
        assert_eq!(slots.find(7, 10, |_| false), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn who_goes_moves_its_own_keys_only(
            weights in prop::collection::vec(1u32..5, 2..12),
            gone in any::<prop::sample::Index>(),
        ) {
            let all = endpoints(&weights);
            let gone = gone.index(all.len());
            let mut left = all.clone();
            let (gone, _) = left.remove(gone);
            let mut moved = 0u64;
            for (before, after) in placed(&all).into_iter().zip(placed(&left)) {
                prop_assert!(before == after || before == gone, "{before} became {after}");
                moved += u64::from(before != after);
            }
            let weight = all.iter().find(|(address, _)| *address == gone).unwrap().1;
            let fair = KEYS * u64::from(weight) / u64::from(weights.iter().sum::<u32>());
            prop_assert!(moved > fair * 4 / 5 && moved < fair * 6 / 5, "{moved}, not {fair}");
        }
    }
}
