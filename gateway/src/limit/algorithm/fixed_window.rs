//! So many in each window of time: of the clock for rates, of the calendar for quotas. One word holds the number of the
//! window in its upper half and what was taken in it in its lower one.
//!
//! A clock that is set back does not hand out a window twice: what was counted in a later window goes on to be counted
//! there until the clock has caught up. Only a calendar that was more than a whole window ahead and comes back begins
//! anew, so that a date by mistake locks nobody out for years.

use super::Verdict;

/// The window that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its number; the next one has one more.
    pub index: u32,
    /// Nanoseconds until it ends.
    pub left_ns: u64,
    /// Nanoseconds of the one after it.
    pub next_ns: u64,
    /// Whether its clock may be wrong by more than a window.
    pub may_jump: bool,
}

impl Window {
    /// The window of `length_ns` (above zero) at `now_ns`, of those that follow each other from time zero.
    pub fn at(now_ns: u64, length_ns: u64) -> Self {
        let length_ns = length_ns.max(1);
        let index = now_ns / length_ns;
        let left_ns = length_ns - (now_ns - index * length_ns);
        // 32 bits of the shortest window, a second, are 136 years of uptime.
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Self { index, left_ns, next_ns: length_ns, may_jump: false }
    }
}

/// So many in each window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedWindow {
    /// What may be taken in a window.
    pub limit: u32,
}

impl FixedWindow {
    /// Takes `cost` of what `word` leaves of the window.
    pub fn take(&self, word: u64, window: Window, cost: u32) -> (u64, Verdict) {
        let (index, count) = split(word);
        // Who read his clock before others counts where they do.
        let ahead = index.checked_sub(window.index).filter(|ahead| !window.may_jump || *ahead <= 1);
        let (index, count, left_ns) = match ahead {
            Some(ahead) => {
                let more_ns = window.next_ns.saturating_mul(ahead.into());
                (index, count, window.left_ns.saturating_add(more_ns))
            }
            None => (window.index, 0, window.left_ns),
        };
        let taken = count.checked_add(cost).filter(|taken| *taken <= self.limit);
        let count = taken.unwrap_or(count);
        let verdict = Verdict {
            admitted: taken.is_some(),
            remaining: self.limit.saturating_sub(count).into(),
            reset_ns: if count > 0 { left_ns } else { 0 },
            wait_ns: if taken.is_some() { 0 } else { left_ns },
        };
        (join(index, count), verdict)
    }

    /// Gives back `cost` that was taken in `window`. What was counted in a later one stays there.
    pub fn give_back(&self, word: u64, window: Window, cost: u32) -> u64 {
        let (index, count) = split(word);
        if index == window.index { join(index, count.saturating_sub(cost)) } else { word }
    }
}

/// The number of the window in a word, and what was taken in it.
pub fn split(word: u64) -> (u32, u32) {
    let [count, index] = [word & u64::from(u32::MAX), word >> 32].map(u32::try_from);
    (index.unwrap_or_default(), count.unwrap_or_default())
}

/// The word of a window.
pub fn join(index: u32, count: u32) -> u64 {
    u64::from(index) << 32 | u64::from(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_window_admits_its_limit_and_the_next_one_begins_anew() {
        let limit = FixedWindow { limit: 2 };
        let (word, _) = limit.take(0, Window::at(1030, 100), 1);
        let (word, second) = limit.take(word, Window::at(1030, 100), 1);
        assert_eq!(second, Verdict { admitted: true, remaining: 0, reset_ns: 70, wait_ns: 0 });
        let (word, third) = limit.take(word, Window::at(1099, 100), 1);
        assert_eq!(third, Verdict { admitted: false, remaining: 0, reset_ns: 1, wait_ns: 1 });
        assert_eq!(limit.take(word, Window::at(1100, 100), 2).1.remaining, 0);
    }

    #[test]
    fn a_clock_that_is_set_back_hands_out_nothing_twice() {
        let limit = FixedWindow { limit: 5 };
        let (word, _) = limit.take(0, Window::at(210, 100), 5);
        let (word, back) = limit.take(word, Window::at(190, 100), 1);
        assert!(!back.admitted);
        assert_eq!(back.wait_ns, 110, "until the window ends that is counted in");
        assert!(!limit.take(word, Window::at(250, 100), 1).1.admitted);
        assert!(limit.take(word, Window::at(300, 100), 1).1.admitted);
    }

    #[test]
    fn a_date_by_mistake_locks_nobody_out() {
        let limit = FixedWindow { limit: 5 };
        let (word, _) = limit.take(0, Window::at(90_000, 100), 5);
        let back = Window::at(200, 100);
        assert!(!limit.take(word, back, 1).1.admitted);
        assert!(limit.take(word, Window { may_jump: true, ..back }, 1).1.admitted);
    }

    proptest! {
        #[test]
        fn agrees_with_a_count_a_window(
            length in 1u64..1000,
            most in 1u32..20,
            steps in proptest::collection::vec((0u64..700, 1u32..25), 1..200),
        ) {
            let limit = FixedWindow { limit: most };
            let (mut word, mut now) = (0, length);
            let mut counts: HashMap<u64, u32> = HashMap::new();
            for (gap, cost) in steps {
                now += gap;
                let count = counts.entry(now / length).or_default();
                let fits = *count + cost <= most;
                let (next, verdict) = limit.take(word, Window::at(now, length), cost);
                prop_assert_eq!(verdict.admitted, fits);
                *count += if fits { cost } else { 0 };
                prop_assert_eq!(verdict.remaining, u64::from(most - *count));
                prop_assert_eq!(verdict.wait_ns, if fits { 0 } else { length - now % length });
                word = next;
            }
        }

        /// Wherever the clock goes by at most a window at a time, no window gives more than its limit.
        #[test]
        fn no_window_gives_more_than_its_limit_whatever_the_clock_does(
            steps in proptest::collection::vec((0u32..100, -1i32..=1), 1..300),
        ) {
            let limit = FixedWindow { limit: 7 };
            let (mut word, mut index) = (0, 50u32);
            let mut given: HashMap<u32, u32> = HashMap::new();
            for (times, step) in steps {
                index = index.saturating_add_signed(step);
                // The word must not be two windows ahead: that is the mistaken date.
                index = index.max(split(word).0.saturating_sub(1));
                for _ in 0..times {
                    let window = Window { index, left_ns: 1, next_ns: 1, may_jump: true };
                    let (next, verdict) = limit.take(word, window, 1);
                    word = next;
                    *given.entry(split(word).0).or_default() += u32::from(verdict.admitted);
                }
            }
            prop_assert!(given.values().all(|given| *given <= 7), "{:?}", given);
        }

        #[test]
        fn no_word_window_or_cost_overflows(
            limit: u32, word: u64, index: u32, left_ns: u64, next_ns: u64, cost: u32,
        ) {
            let window = Window { index, left_ns, next_ns, may_jump: index % 2 == 0 };
            FixedWindow { limit }.take(word, window, cost);
        }
    }
}
