//! The budget of retries: what keeps a sick service from being buried in them.
//!
//! In any [`WINDOW_SECONDS`] seconds one worker retries at most a share of the requests that it had for the upstream,
//! and [`RESERVE_PER_SECOND`] a second besides, so that a quiet service is retried too. It is the budget of Finagle
//! (`RetryBudget.apply`: a share, a minimum a second, a window of ten seconds) and linkerd, counted by whole seconds.

use std::cell::Cell;

use tokio::time::Instant;

use crate::config::Share;

/// The window that requests and retries are counted in.
pub(super) const WINDOW_SECONDS: u64 = 10;
/// Retries a second that need no requests.
pub(super) const RESERVE_PER_SECOND: u64 = 1;

/// The budget of one worker for one upstream.
#[derive(Debug)]
pub(super) struct Budget {
    epoch: Instant,
    seconds: [Second; WINDOW_SECONDS as usize],
}

#[derive(Debug, Default)]
struct Second {
    number: Cell<u64>,
    requests: Cell<u64>,
    /// Hedges are among them.
    retries: Cell<u64>,
    hedges: Cell<u64>,
}

impl Budget {
    /// A budget whose time begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self { epoch: now, seconds: Default::default() }
    }

    /// A request is sent for the first time.
    pub(super) fn request(&self, now: Instant) {
        if let Some(second) = self.second(now) {
            second.requests.set(second.requests.get() + 1);
        }
    }

    /// Takes one retry out, if there is one.
    pub(super) fn withdraw(&self, share: Share, now: Instant) -> bool {
        self.take(share, RESERVE_PER_SECOND * WINDOW_SECONDS, now)
    }

    /// Takes one out for a hedge, which a request can do without: if the share alone leaves one, and `hedges` are not
    /// too large a share by themselves.
    pub(super) fn spare(&self, share: Share, hedges: Share, now: Instant) -> bool {
        let (requests, hedged) = self.within(now, |second| second.hedges.get());
        let is_taken = hedges.compare(hedged + 1, requests).is_le() && self.take(share, 0, now);
        if is_taken && let Some(second) = self.second(now) {
            second.hedges.set(second.hedges.get() + 1);
        }
        is_taken
    }

    fn take(&self, share: Share, reserve: u64, now: Instant) -> bool {
        let (requests, retries) = self.within(now, |second| second.retries.get());
        let beyond_reserve = (retries + 1).saturating_sub(reserve);
        let is_left = share.compare(beyond_reserve, requests).is_le();
        if is_left {
            self.charge(now);
        }
        is_left
    }

    /// The requests in the window, and what else `count` finds in it.
    fn within(&self, now: Instant, count: impl Fn(&Second) -> u64) -> (u64, u64) {
        let present = self.number(now);
        let seconds = self.seconds.iter();
        let seconds = seconds.filter(|second| second.number.get() + WINDOW_SECONDS > present);
        seconds.fold((0, 0), |(requests, counted), second| {
            (requests + second.requests.get(), counted + count(second))
        })
    }

    /// Takes one retry out, whether there is one or not.
    pub(super) fn charge(&self, now: Instant) {
        if let Some(second) = self.second(now) {
            second.retries.set(second.retries.get() + 1);
        }
    }

    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_secs()
    }

    /// The present second, forgotten what was counted there a window ago.
    fn second(&self, now: Instant) -> Option<&Second> {
        let number = self.number(now);
        let second = self.seconds.get((number % WINDOW_SECONDS) as usize)?;
        if second.number.replace(number) != number {
            second.requests.set(0);
            second.retries.set(0);
            second.hedges.set(0);
        }
        Some(second)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Request,
        Withdraw,
        Spare,
        Charge,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            1 => (0u64..5000).prop_map(Step::Wait),
            6 => Just(Step::Request),
            6 => Just(Step::Withdraw),
            3 => Just(Step::Spare),
            1 => Just(Step::Charge),
        ];
        proptest::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn the_budget_is_never_exceeded(
            steps in steps(),
            percent in 0u32..=100,
            hedge_percent in 0u32..=100,
        ) {
            let share = Share::per_million(percent * 10_000);
            let hedge_share = Share::per_million(hedge_percent * 10_000);
            let start = crate::base::time::instant().into();
            let budget = Budget::new(start);
            let mut now_ms = 0;
            let [mut requests, mut retries, mut hedges]: [Vec<u64>; 3] = Default::default();
            for step in steps {
                let second = now_ms / 1000;
                let now = start + Duration::from_millis(now_ms);
                let within = |times: &[u64]| {
                    times.iter().filter(|at| **at + WINDOW_SECONDS > second).count() as u64
                };
                match step {
                    Step::Wait(ms) => now_ms += ms,
                    Step::Request => {
                        requests.push(second);
                        budget.request(now);
                    }
                    Step::Charge => {
                        retries.push(second);
                        budget.charge(now);
                    }
                    Step::Withdraw | Step::Spare => {
                        let may_use_reserve = matches!(step, Step::Withdraw);
                        let reserve =
                            u64::from(may_use_reserve) * RESERVE_PER_SECOND * WINDOW_SECONDS;
                        let most = within(&requests) * u64::from(percent) / 100 + reserve;
                        let most_hedges = within(&requests) * u64::from(hedge_percent) / 100;
                        let is_left = within(&retries) < most
                            && (may_use_reserve || within(&hedges) < most_hedges);
                        let taken = match may_use_reserve {
                            true => budget.withdraw(share, now),
                            false => budget.spare(share, hedge_share, now),
                        };
                        prop_assert_eq!(taken, is_left);
                        if is_left {
                            retries.push(second);
                        }
                        if is_left && !may_use_reserve {
                            hedges.push(second);
                        }
                    }
                }
            }
        }
    }
}
