//! Who may take requests, and in what proportion: health, slow start, zones and the panic threshold become two lists of
//! weights, of the local zone and of the others. Knows no clock and no endpoint.

use std::time::Duration;

use crate::base::time::BootTime;
use crate::config::Balance;

/// An endpoint as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) weight: u32,
    /// Neither unhealthy nor ejected.
    pub(super) usable: bool,
    /// In the zone of the gateway.
    pub(super) local: bool,
    /// When it came or came back; 0 if it was there from the start.
    pub(super) ready_since: BootTime,
}

/// What to choose by, until something changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Indices and weights: those of the zone of the gateway, and the others. Where zones make no difference, all are
    /// among the first.
    pub(super) tiers: [Vec<(usize, u32)>; 2],
    /// Requests of a thousand that the first takes.
    pub(super) local_share: u32,
    /// Too few are usable to go by that.
    pub(super) panic: bool,
    /// When somebody who starts slowly is due more.
    pub(super) until: Option<BootTime>,
}

/// Requests of a thousand.
pub(super) const ALL: u32 = 1000;
/// A zone is relied on for all requests while so many of a thousand of its endpoints are usable: 1 / 1.4.
const OVERPROVISIONED: u64 = 1400;
/// What somebody who starts slowly takes at first (unit: percent of its weight).
const SLOW_START_MIN: u64 = 10;
const SLOW_START_STEPS: u32 = 50;
const SLOW_START_STEP_MIN: Duration = Duration::from_millis(10);

impl Plan {
    pub(super) fn new(candidates: &[Candidate], terms: &Balance, now: BootTime) -> Self {
        let usable = candidates.iter().filter(|candidate| candidate.usable).count();
        let panic = terms.is_panic(usable, candidates.len());
        let starting = |candidate: &Candidate| {
            slow_start_percent(candidate.ready_since, terms.slow_start, now) < 100
        };
        let any_starting =
            candidates.iter().any(|candidate| candidate.usable && starting(candidate));
        let weight = |candidate: &Candidate| match any_starting {
            true => {
                let percent = slow_start_percent(candidate.ready_since, terms.slow_start, now);
                candidate.weight.saturating_mul(u32::try_from(percent).unwrap_or(100))
            }
            false => candidate.weight,
        };
        let local_share = if panic { None } else { local_share(candidates) };
        let mut tiers = [Vec::new(), Vec::new()];
        let [local, others] = &mut tiers;
        for (index, candidate) in candidates.iter().enumerate() {
            if candidate.usable || panic {
                let first = local_share.is_none() || candidate.local;
                if first { &mut *local } else { &mut *others }.push((index, weight(candidate)));
            }
        }
        let step = (terms.slow_start / SLOW_START_STEPS).max(SLOW_START_STEP_MIN);
        let until = any_starting.then(|| after(now, step));
        Self { tiers, local_share: local_share.unwrap_or(ALL), panic, until }
    }
}

/// How much of its weight somebody has who is there since then, in percent. It only grows, up to 100.
fn slow_start_percent(ready_since: BootTime, slow_start: Duration, now: BootTime) -> u64 {
    let whole = u64::try_from(slow_start.as_nanos()).unwrap_or(u64::MAX);
    let passed = now.0.saturating_sub(ready_since.0);
    if ready_since.0 == 0 || passed >= whole {
        return 100;
    }
    let percent = u128::from(passed) * 100 / u128::from(whole.max(1));
    u64::try_from(percent).unwrap_or(100).clamp(SLOW_START_MIN, 100)
}

/// Requests of a thousand for the local zone; `None` where zones make no difference.
fn local_share(candidates: &[Candidate]) -> Option<u32> {
    let sum = |of: &dyn Fn(&&Candidate) -> bool| -> u64 {
        candidates.iter().filter(of).map(|candidate| u64::from(candidate.weight)).sum()
    };
    let (all, elsewhere) = (sum(&|one| one.local), sum(&|one| !one.local));
    if all == 0 || elsewhere == 0 {
        return None;
    }
    let usable = sum(&|one| one.local && one.usable);
    let elsewhere = sum(&|one| !one.local && one.usable);
    if elsewhere == 0 {
        return Some(if usable > 0 { ALL } else { 0 });
    }
    let share = usable.saturating_mul(OVERPROVISIONED) / all;
    u32::try_from(share.min(u64::from(ALL))).ok()
}

fn after(now: BootTime, time: Duration) -> BootTime {
    BootTime(now.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Share;

    const SECOND: u64 = 1_000_000_000;
    const FINE: Candidate =
        Candidate { weight: 1, usable: true, local: false, ready_since: BootTime(0) };
    const SICK: Candidate = Candidate { usable: false, ..FINE };
    const LOCAL: Candidate = Candidate { local: true, ..FINE };

    fn plan(candidates: &[Candidate], terms: &Balance) -> Plan {
        Plan::new(candidates, terms, BootTime(100 * SECOND))
    }

    #[test]
    fn the_sick_are_left_out_until_too_few_are_well() {
        let held = plan(&[FINE, SICK, FINE, SICK], &Balance::default());
        assert_eq!(held.tiers, [vec![(0, 1), (2, 1)], vec![]]);
        assert!(!held.panic && held.until.is_none());
        let held = plan(&[FINE, SICK, SICK], &Balance::default());
        assert!(held.panic && held.tiers[0].len() == 3, "all rather than one: {held:?}");
        let never = Balance { panic_threshold: Share::ZERO, ..Balance::default() };
        assert_eq!(plan(&[FINE, SICK, SICK], &never).tiers[0], [(0, 1)]);
        assert_eq!(plan(&[SICK, SICK], &never).tiers[0], []);
        assert_eq!(plan(&[], &Balance::default()).tiers[0], []);
    }

    #[test]
    fn the_local_zone_spills_over_when_too_few_of_it_are_well() {
        let local_sick = Candidate { local: true, ..SICK };
        let share = |candidates: &[Candidate]| plan(candidates, &Balance::default()).local_share;
        assert_eq!(share(&[LOCAL, LOCAL, FINE]), 1000);
        assert_eq!(share(&[LOCAL, LOCAL, LOCAL, local_sick, FINE]), 1000, "75 % is enough");
        assert_eq!(share(&[LOCAL, local_sick, FINE, FINE]), 700);
        assert_eq!(share(&[local_sick, FINE, FINE]), 0);
        assert_eq!(share(&[LOCAL, local_sick, SICK]), 1000, "there is nobody else: panic");
        assert_eq!(share(&[LOCAL, LOCAL, local_sick, SICK]), 1000, "there is nobody else");
        let held = plan(&[FINE, LOCAL, SICK], &Balance::default());
        assert_eq!(held.tiers, [vec![(1, 1)], vec![(0, 1)]]);
        assert_eq!(plan(&[FINE, FINE], &Balance::default()).tiers[0].len(), 2, "nobody is local");
    }

    #[test]
    fn a_slow_start_is_measured_against_the_others() {
        let terms = Balance { slow_start: Duration::from_secs(10), ..Balance::default() };
        let late = |seconds| Candidate { ready_since: BootTime(seconds * SECOND), ..FINE };
        let held = plan(&[Candidate { weight: 3, ..FINE }, late(96), late(100)], &terms);
        assert_eq!(held.tiers[0], [(0, 300), (1, 40), (2, 10)]);
        assert_eq!(held.until, Some(BootTime(100 * SECOND + SECOND / 5)));
        let held = plan(&[FINE, late(90)], &terms);
        assert_eq!((held.tiers[0].as_slice(), held.until), ([(0, 1), (1, 1)].as_slice(), None));
        let sick = Candidate { usable: false, ..late(99) };
        assert_eq!(plan(&[FINE, FINE, sick], &terms).until, None);
    }

    proptest! {
        #[test]
        fn a_slow_start_only_grows_and_ends(
            since in 1u64..1000 * SECOND,
            slow_start in 0u64..100_000,
            mut steps in prop::collection::vec(0u64..200 * SECOND, 1..20),
        ) {
            steps.sort_unstable();
            let slow_start = Duration::from_millis(slow_start);
            let mut last = 0;
            for step in steps {
                let now = BootTime(since + step);
                let percent = slow_start_percent(BootTime(since), slow_start, now);
                prop_assert!((last.max(10)..=100).contains(&percent));
                prop_assert!(percent == 100 || Duration::from_nanos(step) < slow_start);
                last = percent;
            }
        }

        #[test]
        fn somebody_is_left_wherever_somebody_is_well(
            shape in prop::collection::vec((1u32..1000, any::<bool>(), any::<bool>()), 1..30),
            threshold in 0u32..1_000_001,
        ) {
            let candidates: Vec<_> = shape.into_iter()
                .map(|(weight, usable, local)| Candidate { weight, usable, local, ..FINE })
                .collect();
            let panic_threshold = Share::per_million(threshold);
            let terms = Balance { panic_threshold, ..Balance::default() };
            let held = plan(&candidates, &terms);
            let expected = candidates.iter().filter(|one| one.usable || held.panic).count();
            let [local, others] = &held.tiers;
            prop_assert_eq!(local.len() + others.len(), expected);
            prop_assert!(held.local_share == 0 || !local.is_empty() || expected == 0);
            prop_assert!(held.local_share == ALL || !others.is_empty());
        }
    }
}
