//! The sliding counter: what was taken in this window, and of the window before as much as still lies within the last
//! window's length, as if it had come evenly. Two words: the present window and the one before, each with its number
//! in the upper half and what was taken in the lower one.

use super::Verdict;
use super::fixed_window::{FixedWindow, Window, join, split};

/// So many in any window's length, by that estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// What may be taken.
    pub limit: u32,
    /// Nanoseconds of a window, above zero.
    pub window_ns: u64,
}

/// The words of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// The window that was counted in last.
    pub current: u64,
    /// The one before.
    pub previous: u64,
}

impl SlidingWindow {
    /// Takes `cost` of what is left at `now_ns`.
    pub fn take(&self, words: Words, now_ns: u64, cost: u32) -> (Words, Verdict) {
        let window_ns = self.window_ns.max(1);
        let number = now_ns / window_ns;
        let passed = now_ns - number * window_ns;
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let (seen, count) = split(words.current);
        let (before, before_count) = split(words.previous);
        // Somebody whose clock was read later has begun a later window, or is about to.
        let is_closing = seen == number && before == seen && seen > 0;
        let (index, passed) = match seen > number || is_closing {
            true => (seen.saturating_add(u32::from(is_closing)), 0),
            false => (number, passed),
        };
        let (words, current, previous) = if seen == index {
            let follows = before.checked_add(1) == Some(index);
            (words, count, if follows { before_count } else { 0 })
        } else {
            let follows = seen.checked_add(1) == Some(index);
            (
                Words { current: join(index, 0), previous: words.current },
                0,
                if follows { count } else { 0 },
            )
        };
        let left = window_ns - passed;
        let taken = current.checked_add(cost);
        let taken = taken.filter(|taken| self.has_room(*taken, previous, left));
        let count = taken.unwrap_or(current);
        let verdict = Verdict {
            admitted: taken.is_some(),
            remaining: self.room(count, previous, left),
            reset_ns: match (count, previous) {
                (0, 0) => 0,
                (0, _) => left,
                _ => left.saturating_add(window_ns),
            },
            wait_ns: if taken.is_some() { 0 } else { self.wait_ns(current, previous, left, cost) },
        };
        (Words { current: join(index, count), ..words }, verdict)
    }

    /// The present window's word with `cost` less that was taken at `taken_ns`. What was counted in a later window
    /// stays there, and what has become the window before stays, too.
    pub fn give_back(&self, current: u64, taken_ns: u64, cost: u32) -> u64 {
        let window = FixedWindow { limit: self.limit };
        window.give_back(current, Window::at(taken_ns, self.window_ns), cost)
    }

    /// Whether so much in this window, and so much in the one before with `left` nanoseconds of this one to come, is
    /// within the limit. In whole numbers, so that nothing is rounded.
    fn has_room(&self, current: u32, previous: u32, left: u64) -> bool {
        let window = u128::from(self.window_ns.max(1));
        let used = u128::from(previous) * u128::from(left) + u128::from(current) * window;
        used <= u128::from(self.limit) * window
    }

    fn room(&self, current: u32, previous: u32, left: u64) -> u64 {
        let fading =
            (u128::from(previous) * u128::from(left)).div_ceil(u128::from(self.window_ns.max(1)));
        let used = u64::try_from(fading).unwrap_or(u64::MAX).saturating_add(current.into());
        u64::from(self.limit).saturating_sub(used)
    }

    /// When `cost` more than `current` is within the limit: in this window, once enough of the one before has faded, or
    /// in the next one, once enough of this one has.
    fn wait_ns(&self, current: u32, previous: u32, left: u64, cost: u32) -> u64 {
        let window_ns = self.window_ns.max(1);
        // How much of the window may be left when so much is still to fade.
        let fades = |room: u32, fading: u32| {
            let most = u128::from(room) * u128::from(window_ns);
            let most = most.checked_div(fading.into()).unwrap_or(u128::MAX);
            u64::try_from(most).unwrap_or(u64::MAX).min(window_ns)
        };
        if let Some(room) = self.limit.checked_sub(current).and_then(|room| room.checked_sub(cost))
        {
            return left.saturating_sub(fades(room, previous));
        }
        let room = self.limit.saturating_sub(cost);
        left.saturating_add(window_ns - fades(room, current))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn what_came_in_the_window_before_fades_evenly() {
        let limit = SlidingWindow { limit: 10, window_ns: 1000 };
        let (words, verdict) = limit.take(Words::default(), 5_500, 10);
        assert_eq!(verdict, Verdict { admitted: true, remaining: 0, reset_ns: 1500, wait_ns: 0 });
        let (words, refused) = limit.take(words, 5_999, 1);
        assert_eq!(refused.wait_ns, 101, "a tenth of the next window lets one in");
        assert!(!limit.take(words, 6_099, 1).1.admitted);
        let (words, one) = limit.take(words, 6_100, 1);
        assert!(one.admitted && one.remaining == 0);
        assert_eq!(limit.take(words, 6_500, 1).1.remaining, 3);
        assert_eq!(limit.take(words, 8_000, 1).1.remaining, 9, "two windows later nothing counts");
    }

    proptest! {
        /// The model keeps a count for every window there ever was and weighs two of them as a fraction.
        #[test]
        fn agrees_with_counts_of_all_windows(
            window in 1u64..500,
            most in 1u32..20,
            steps in proptest::collection::vec((0u64..400, 1u32..25), 1..200),
        ) {
            let limit = SlidingWindow { limit: most, window_ns: window };
            let (mut words, mut now) = (Words::default(), window * 3);
            let mut counts: HashMap<u64, u64> = HashMap::new();
            for (gap, cost) in steps {
                now += gap;
                let used = |counts: &HashMap<u64, u64>, at: u64| {
                    let index = at / window;
                    let count = |index| counts.get(&index).copied().unwrap_or_default();
                    count(index - 1) * (window - at % window) + count(index) * window
                };
                let fits = |counts: &HashMap<u64, u64>, at| {
                    used(counts, at) + u64::from(cost) * window <= u64::from(most) * window
                };
                let expected = fits(&counts, now);
                let (next, verdict) = limit.take(words, now, cost);
                prop_assert_eq!(verdict.admitted, expected);
                if expected {
                    *counts.entry(now / window).or_default() += u64::from(cost);
                } else if cost <= most {
                    prop_assert!(fits(&counts, now + verdict.wait_ns));
                    prop_assert!(!fits(&counts, now + verdict.wait_ns - 1));
                }
                let left = (u64::from(most) * window).saturating_sub(used(&counts, now)) / window;
                prop_assert_eq!(verdict.remaining, left);
                prop_assert_eq!(used(&counts, now + verdict.reset_ns), 0);
                words = next;
            }
        }

        #[test]
        fn no_word_clock_or_cost_overflows(
            limit: u32, window_ns: u64, current: u64, previous: u64, now: u64, cost: u32,
        ) {
            SlidingWindow { limit, window_ns }.take(Words { current, previous }, now, cost);
        }
    }
}
