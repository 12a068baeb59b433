//! `least_requests` and `random_two`: who has the fewest requests for its weight, of all or of two drawn by weight.

use std::cmp::Ordering;

use super::round_robin::RoundRobin;

/// Whoever has the fewest of all, in turn where several have.
pub(super) fn of_all(
    weights: &[u32],
    turns: &mut RoundRobin,
    active: impl Fn(usize) -> u64,
    is_free: impl Fn(usize) -> bool,
) -> Option<usize> {
    let mut least: Option<(u64, u32)> = None;
    for (index, weight) in weights.iter().enumerate().filter(|(index, _)| is_free(*index)) {
        let load = (active(index), *weight);
        if least.is_none_or(|least| compare(load, least) == Ordering::Less) {
            least = Some(load);
        }
    }
    let least = least?;
    let load = |index: usize| weights.get(index).map(|weight| (active(index), *weight));
    turns.next(weights, |index| {
        is_free(index) && load(index).is_some_and(|load| compare(load, least) == Ordering::Equal)
    })
}

/// Whoever has fewer of two that are drawn; `random` makes a number below another.
pub(super) fn of_two(
    weights: &[u32],
    mut random: impl FnMut(u64) -> u64,
    active: impl Fn(usize) -> u64,
    is_free: impl Fn(usize) -> bool,
) -> Option<usize> {
    let free = || (0..).zip(weights).filter(|(index, _)| is_free(*index));
    let mut draw = |but: Option<usize>| {
        let others = || free().filter(|(index, _)| Some(*index) != but);
        let total: u64 = others().map(|(_, weight)| u64::from(*weight)).sum();
        let mut left = if total == 0 { return None } else { random(total) };
        others().find_map(|(index, weight)| {
            let weight = u64::from(*weight);
            if left < weight {
                return Some(index);
            }
            left -= weight;
            None
        })
    };
    let first = draw(None)?;
    let Some(second) = draw(Some(first)) else { return Some(first) };
    let load = |index: usize| (active(index), weights.get(index).copied().unwrap_or(1));
    let fewer = compare(load(second), load(first)) == Ordering::Less;
    Some(if fewer { second } else { first })
}

/// Requests for each part of the weight.
fn compare(one: (u64, u32), other: (u64, u32)) -> Ordering {
    (u128::from(one.0) * u128::from(other.1)).cmp(&(u128::from(other.0) * u128::from(one.1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_idle_take_turns_by_weight() {
        let mut turns = RoundRobin::new(&[2, 1]);
        let mut next = || of_all(&[2, 1], &mut turns, |_| 0, |_| true).unwrap();
        assert_eq!([next(), next(), next()], [0, 1, 0]);
        assert_eq!(of_all(&[], &mut RoundRobin::default(), |_| 0, |_| true), None);
    }

    #[test]
    fn two_are_drawn_by_weight_and_the_less_busy_one_is_taken() {
        let draws = |numbers: [u64; 2], active: [u64; 3]| {
            let mut numbers = numbers.into_iter();
            of_two(&[2, 1, 1], |_| numbers.next().unwrap(), |index| active[index], |_| true)
        };
        assert_eq!(draws([1, 1], [0, 0, 0]), Some(0), "the first drawn of equals");
        assert_eq!(draws([2, 1], [0, 9, 0]), Some(0));
        assert_eq!(draws([3, 2], [0, 0, 5]), Some(1), "of the others, the third part");
        assert_eq!(of_two(&[3], |_| 0, |_| 7, |_| true), Some(0));
        assert_eq!(of_two(&[3, 3], |_| 0, |_| 7, |_| false), None);
    }

    proptest! {
        #[test]
        fn nobody_free_has_fewer_than_the_one_that_is_taken(
            endpoints in prop::collection::vec((1u32..100, 0u64..1000, any::<bool>()), 1..20),
        ) {
            let weights: Vec<u32> = endpoints.iter().map(|(weight, ..)| *weight).collect();
            let mut turns = RoundRobin::new(&weights);
            let active = |index: usize| endpoints[index].1;
            let free = |index: usize| endpoints[index].2;
            let found = of_all(&weights, &mut turns, active, free);
            prop_assert_eq!(found.is_some(), endpoints.iter().any(|(.., free)| *free));
            let Some(found) = found else { return Ok(()) };
            let load = (endpoints[found].1, endpoints[found].0);
            for (weight, active, free) in &endpoints {
                prop_assert!(!free || compare(load, (*active, *weight)) != Ordering::Greater);
            }
        }
    }
}
