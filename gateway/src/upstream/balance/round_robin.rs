//! `round_robin`: everybody in turn, as often as the weights say and as evenly as they allow (nginx' smooth weighted
//! round robin).

/// Whose turn it is.
#[derive(Clone, Debug, Default)]
pub(super) struct RoundRobin {
    equal: bool,
    /// What each is owed; nobody while all weigh the same.
    owed: Vec<i64>,
    next: usize,
}

impl RoundRobin {
    /// A cycle by these weights from its beginning.
    pub(super) fn new(weights: &[u32]) -> Self {
        Self::default().with(weights)
    }

    /// The same cycle, by other weights of the same endpoints.
    pub(super) fn with(self, weights: &[u32]) -> Self {
        let equal = weights.windows(2).all(|pair| pair.first() == pair.last());
        Self { equal, ..self }
    }

    /// Another one begins first than in the cycles of others.
    pub(super) fn begin_at(self, first: usize) -> Self {
        Self { next: first, ..self }
    }

    /// The next of those that `is_free` says may be taken. The weights are those that it was made by.
    pub(super) fn next(
        &mut self,
        weights: &[u32],
        is_free: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        match self.equal {
            true => self.in_turn(weights.len(), is_free),
            false => self.by_weight(weights, is_free),
        }
    }

    fn in_turn(&mut self, count: usize, is_free: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.next.checked_rem(count).unwrap_or(0);
        let found = (start..count).chain(0..start).find(|index| is_free(*index))?;
        self.next = found + 1;
        Some(found)
    }

    fn by_weight(&mut self, weights: &[u32], is_free: impl Fn(usize) -> bool) -> Option<usize> {
        self.owed.resize(weights.len(), 0);
        let mut total = 0;
        let mut most: Option<(usize, i64)> = None;
        for (index, (owed, weight)) in self.owed.iter_mut().zip(weights).enumerate() {
            if !is_free(index) {
                continue;
            }
            *owed += i64::from(*weight);
            total += i64::from(*weight);
            if most.is_none_or(|(_, held)| *owed > held) {
                most = Some((index, *owed));
            }
        }
        let (index, _) = most?;
        if let Some(owed) = self.owed.get_mut(index) {
            *owed -= total;
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(weights: &[u32], count: usize) -> Vec<usize> {
        let mut turns = RoundRobin::new(weights);
        (0..count).map(|_| turns.next(weights, |_| true).unwrap()).collect()
    }

    #[test]
    fn evenly_and_in_the_order_of_the_file() {
        assert_eq!(order(&[1, 1, 1], 5), [0, 1, 2, 0, 1]);
        assert_eq!(order(&[5, 1, 1], 7), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(RoundRobin::default().next(&[], |_| true), None);
        assert_eq!(RoundRobin::new(&[1, 2]).next(&[1, 2], |_| false), None);
    }

    proptest! {
        #[test]
        fn a_cycle_has_everybody_as_often_as_the_weights_say(
            weights in prop::collection::vec(1u32..50, 1..20),
            cycles in 1usize..4,
        ) {
            let cycle: u32 = weights.iter().sum();
            let equal = weights.iter().all(|weight| *weight == weights[0]);
            let cycle = if equal { weights.len() } else { cycle as usize };
            let order = order(&weights, cycle * cycles);
            for (index, weight) in weights.iter().enumerate() {
                let expected = if equal { cycles } else { *weight as usize * cycles };
                prop_assert_eq!(order.iter().filter(|found| **found == index).count(), expected);
            }
        }

        #[test]
        fn only_those_who_may_are_taken(
            weights in prop::collection::vec(1u32..9, 1..9),
            free in prop::collection::vec(any::<bool>(), 9),
            count in 1usize..40,
        ) {
            let mut turns = RoundRobin::new(&weights);
            let any_free = free.iter().take(weights.len()).any(|free| *free);
            for _ in 0..count {
                let found = turns.next(&weights, |index| free[index]);
                prop_assert_eq!(found.is_some(), any_free);
                prop_assert!(found.is_none_or(|index| free[index]));
            }
        }
    }
}
