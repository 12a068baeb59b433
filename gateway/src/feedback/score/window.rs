//! Sums over the last while, kept in slices of it: what is older than all slices is gone, exactly.

/// How much there was in each of the last `N` slices of time. Slices are numbered from the beginning of the clock.
#[derive(Clone, Debug)]
pub(super) struct Window<const N: usize> {
    newest: u64,
    slices: [u32; N],
}

impl<const N: usize> Window<N> {
    pub(super) const EMPTY: Self = Self { newest: 0, slices: [0; N] };

    /// Adds to a slice, from which on older ones may be forgotten. Slices never go back.
    pub(super) fn add(&mut self, slice: u64, amount: u32) {
        if slice >= self.newest.saturating_add(N as u64) {
            self.slices = [0; N];
        } else {
            (self.newest + 1..=slice).for_each(|passed| self.set(passed, 0));
        }
        self.newest = self.newest.max(slice);
        let there = self.amount(self.newest);
        self.set(self.newest, there.saturating_add(amount));
    }

    /// The sum of the slices that end with this one.
    pub(super) fn sum(&self, slice: u64) -> u64 {
        self.live(slice).map(|(_, amount)| u64::from(amount)).sum()
    }

    /// Takes out what another window had put in.
    pub(super) fn subtract(&mut self, other: &Self) {
        for (slice, amount) in other.live(self.newest) {
            self.set(slice, self.amount(slice).saturating_sub(amount));
        }
    }

    /// The slices that count at the time of `slice`.
    fn live(&self, slice: u64) -> impl Iterator<Item = (u64, u32)> {
        let kept = (0..N as u64).filter_map(|back| self.newest.checked_sub(back));
        let kept = kept.filter(move |kept| kept.saturating_add(N as u64) > slice);
        kept.map(|kept| (kept, self.amount(kept)))
    }

    fn amount(&self, slice: u64) -> u32 {
        self.slices.get((slice % N as u64) as usize).copied().unwrap_or(0)
    }

    fn set(&mut self, slice: u64, amount: u32) {
        if let Some(kept) = self.slices.get_mut((slice % N as u64) as usize) {
            *kept = amount;
        }
    }
}

/// Who was seen lately, told apart by a number: the last ones, so that there are as many of a time as there were, up to
/// the bound.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(Vec<(u64, u64)>);

impl Seen {
    /// Notes somebody. `most` are remembered.
    pub(super) fn note(&mut self, who: u64, when: u64, most: usize) {
        if let Some((_, last)) = self.0.iter_mut().find(|(known, _)| *known == who) {
            *last = when;
        } else if self.0.len() < most {
            self.0.push((who, when));
        } else if let Some(oldest) = self.0.iter_mut().min_by_key(|(_, last)| *last) {
            *oldest = (who, when);
        }
    }

    /// How many were seen at this time or later.
    pub(super) fn since(&self, when: u64) -> u32 {
        self.who_since(when).map(|_| 1).sum()
    }

    /// Who was.
    pub(super) fn who_since(&self, when: u64) -> impl Iterator<Item = u64> {
        self.0.iter().filter(move |(_, last)| *last >= when).map(|(who, _)| *who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_window_is_the_sum_of_its_last_slices(
            steps in prop::collection::vec((0_u64..20, 0_u32..100), 1..60),
            later in 0_u64..20,
        ) {
            let (mut window, mut all, mut slice) = (Window::<8>::EMPTY, Vec::new(), 0);
            for (step, amount) in steps {
                slice += step;
                window.add(slice, amount);
                all.push((slice, u64::from(amount)));
            }
            let now = slice + later;
            let model: u64 = all.iter().filter(|(at, _)| at + 8 > now).map(|(_, sum)| sum).sum();
            prop_assert_eq!(window.sum(now), model);
        }

        #[test]
        fn what_is_subtracted_was_never_there(
            steps in prop::collection::vec((0_u64..4, 0_u32..100, any::<bool>()), 1..60),
        ) {
            let [mut both, mut one, mut other] = [const { Window::<8>::EMPTY }; 3];
            let mut slice = 0;
            for (step, amount, whose) in steps {
                slice += step;
                both.add(slice, amount);
                (if whose { &mut one } else { &mut other }).add(slice, amount);
            }
            both.subtract(&one);
            prop_assert_eq!(both.sum(slice), other.sum(slice));
        }

        #[test]
        fn as_many_are_seen_as_there_were_up_to_the_bound(
            steps in prop::collection::vec((0_u64..6, 0_u64..3), 1..60),
            most in 1_usize..5,
            within in 0_u64..20,
        ) {
            let (mut seen, mut all, mut now) = (Seen::default(), Vec::new(), 100);
            for (who, step) in steps {
                now += step;
                seen.note(who, now, most);
                all.push((who, now));
            }
            let late = all.iter().filter(|(_, at)| *at >= now - within).map(|(who, _)| who);
            let model = late.collect::<std::collections::HashSet<_>>().len().min(most);
            prop_assert_eq!(seen.since(now - within) as usize, model);
        }
    }
}
