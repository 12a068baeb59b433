//! What is known of a name, and when to ask again. What was found last stays until something else is found: nothing
//! that a resolver says or fails to say takes the last address away. Reads no clock and throws no dice.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Addresses, Answer, Found, Outcome, Place, Trouble};
use crate::base::time::UtcMillis;
use crate::config::Discovery;

/// The first pause after a lookup that brought nothing; each one more doubles it.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// And no longer than this.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// When a lookup has ended, on both clocks, with something random to spread the next ones.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For the next lookup.
    pub instant: Instant,
    /// For people.
    pub utc: UtcMillis,
    /// Any number.
    pub random: u64,
}

/// What was found last of a name, for the next start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    resolved: UtcMillis,
    found: Vec<Found>,
    hosts: Hosts,
}

/// Addresses by host and family.
type Hosts = BTreeMap<String, [Vec<IpAddr>; 2]>;

impl Kept {
    /// When it was found.
    pub fn resolved(&self) -> UtcMillis {
        self.resolved
    }
}

/// What is known of a name.
#[derive(Clone, Debug)]
pub struct State {
    hosts: Hosts,
    found: Vec<Found>,
    /// Addresses beyond [`Discovery::max_addresses`].
    left_out: usize,
    resolved: Option<UtcMillis>,
    /// Nothing was found since the start.
    is_restored: bool,
    failures: u32,
    trouble: Option<Trouble>,
    due: Instant,
}

/// What was new about an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// What came of the lookup as a whole.
    pub outcome: Outcome,
    /// The addresses are others than before.
    pub changed: bool,
    /// The trouble is another than before, or is over.
    pub told: bool,
}

impl State {
    /// Of a name that nothing is known about, due at once.
    pub fn new(now: Instant) -> Self {
        Self {
            hosts: BTreeMap::new(),
            found: Vec::new(),
            left_out: 0,
            resolved: None,
            is_restored: false,
            failures: 0,
            trouble: None,
            due: now,
        }
    }

    /// Of a name of which this was found before the start, and which is due at once.
    pub fn restored(kept: Kept, now: Instant) -> Self {
        let Kept { resolved, found, hosts } = kept;
        Self { hosts, found, resolved: Some(resolved), is_restored: true, ..Self::new(now) }
    }

    /// What was found last, for the next start; `None` if nothing was.
    pub fn keep(&self) -> Option<Kept> {
        let (found, hosts) = (self.found.clone(), self.hosts.clone());
        self.resolved.map(|resolved| Kept { resolved, found, hosts })
    }

    /// Whether it is what was found before the start.
    pub fn is_restored(&self) -> bool {
        self.is_restored
    }

    /// The addresses to use, in their order.
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// Addresses that were left out because there are too many.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// When a lookup last found addresses.
    pub fn resolved(&self) -> Option<UtcMillis> {
        self.resolved
    }

    /// Lookups since one found addresses.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// What was wrong with the last lookup, if anything.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// When to look it up again.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// To be looked up again, for other settings hold.
    pub fn hurry(&mut self, now: Instant) {
        self.due = self.due.min(now);
    }

    /// Takes over what a lookup brought.
    pub fn take(&mut self, answer: Answer, terms: &Discovery, now: Moment) -> News {
        let Answer { places, hosts, ttl } = answer;
        let (fresh, trouble) = match places {
            Err(trouble) => (None, Some(trouble)),
            Ok(places) => self.merge(&places, hosts),
        };
        let before = (self.found.clone(), self.trouble.take());
        let outcome = match (fresh, &trouble) {
            (Some((hosts, mut found)), _) => {
                self.left_out = found.len().saturating_sub(terms.max_addresses);
                found.truncate(terms.max_addresses);
                (self.hosts, self.found) = (hosts, found);
                (self.resolved, self.is_restored, self.failures) = (Some(now.utc), false, 0);
                self.due = now.instant + refresh_after(ttl.unwrap_or_default(), terms, now.random);
                Outcome::Found
            }
            (None, trouble) => {
                self.failures = self.failures.saturating_add(1);
                self.due = now.instant + retry_after(self.failures, terms, now.random);
                trouble.as_ref().map_or(Outcome::Empty, |trouble| trouble.outcome)
            }
        };
        self.trouble = trouble;
        News { outcome, changed: self.found != before.0, told: self.trouble != before.1 }
    }

    /// The addresses of the hosts: what was found now, and what was known of those of whom nothing was. `None` where
    /// nothing was found at all.
    fn merge(
        &self,
        places: &[Place],
        mut answers: BTreeMap<String, Addresses>,
    ) -> (Option<(Hosts, Vec<Found>)>, Option<Trouble>) {
        let mut trouble = None;
        let mut fresh = false;
        let mut hosts = BTreeMap::new();
        for Place { host, .. } in places {
            let Some(answer) = answers.remove(host) else { continue };
            let known = self.hosts.get(host).cloned().unwrap_or_default();
            let is_found = |family: &Option<Result<Vec<IpAddr>, _>>| {
                family.as_ref().is_some_and(|found| found.as_ref().is_ok_and(|all| !all.is_empty()))
            };
            let host_found = answer.iter().any(is_found);
            fresh |= host_found;
            let mut merged = answer.into_iter().zip(known).map(|(family, known)| match family {
                Some(Ok(found)) => found,
                // It has addresses, and none of this family: that is an answer.
                Some(Err(Trouble { outcome: Outcome::Empty, .. })) if host_found => Vec::new(),
                Some(Err(why)) => {
                    trouble.get_or_insert(why);
                    known
                }
                None => Vec::new(),
            });
            let families = [merged.next().unwrap_or_default(), merged.next().unwrap_or_default()];
            hosts.insert(host.clone(), families);
        }
        if !fresh {
            return (None, trouble);
        }
        let found = addresses(places, &hosts);
        (Some((hosts, found)), trouble)
    }
}

/// Each address once, in an order that does not depend on that of the records, which resolvers rotate.
fn addresses(places: &[Place], hosts: &Hosts) -> Vec<Found> {
    let of = |place: &Place| {
        let all = hosts.get(&place.host).into_iter().flatten().flatten().copied();
        let (port, weight) = (place.port, place.weight);
        let found = move |ip: IpAddr| SocketAddr::new(ip.to_canonical(), port);
        all.map(move |ip| Found { address: found(ip), weight }).collect::<Vec<_>>()
    };
    let mut found: Vec<Found> = places.iter().flat_map(of).collect();
    found.sort();
    found.dedup_by_key(|found| found.address);
    found
}

/// A little before the records end, so that nothing is used for longer than it may be.
fn refresh_after(ttl: Duration, terms: &Discovery, random: u64) -> Duration {
    let time = ttl.clamp(terms.min_interval, terms.max_interval);
    let permille = 900 + u32::try_from(random % 101).unwrap_or(0);
    (time.saturating_mul(permille) / 1000).max(terms.min_interval)
}

/// The more have failed in a row, the later; up to a tenth less, so that not all gateways ask at once.
fn retry_after(failures: u32, terms: &Discovery, random: u64) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(6));
    let time = doubled.min(RETRY_MAX).min(terms.max_interval);
    let permille = 900 + u32::try_from(random % 101).unwrap_or(0);
    time.saturating_mul(permille) / 1000
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::time::instant;
    use crate::config;

    fn terms() -> Discovery {
        config::embedded().unwrap().discovery
    }

    fn moment() -> Moment {
        Moment { instant: instant(), utc: UtcMillis(1000), random: 0 }
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn trouble(outcome: Outcome) -> Trouble {
        Trouble { outcome, why: outcome.name().to_owned() }
    }

    type Part<'a> = Result<&'a [&'a str], Outcome>;

    /// The answer about one host on port 80.
    fn answer(v4: Part<'_>, v6: Part<'_>) -> Answer {
        let part = |part: Part<'_>| Some(part.map(ips).map_err(trouble));
        let place = Place { host: "a".to_owned(), port: 80, weight: None };
        let hosts = BTreeMap::from([("a".to_owned(), [part(v4), part(v6)])]);
        Answer { places: Ok(vec![place]), hosts, ttl: Some(Duration::from_secs(30)) }
    }

    fn shown(state: &State) -> Vec<String> {
        state.found().iter().map(|found| found.address.to_string()).collect()
    }

    #[test]
    fn what_was_found_last_stays_until_something_else_is_found() {
        let mut state = State::new(instant());
        let mut take = |v4, v6| {
            let news = state.take(answer(v4, v6), &terms(), moment());
            (news.outcome, news.changed, news.told, shown(&state))
        };
        let found = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        use Outcome::{Empty, Failed, Found, TimedOut};
        assert_eq!(take(Err(Empty), Err(Empty)), (Empty, false, true, vec![]));
        assert_eq!(take(Err(Empty), Err(Empty)), (Empty, false, false, vec![]), "told once");
        let one = found(&["10.0.0.1:80", "[2001:db8::1]:80"]);
        let v4: Part<'_> = Ok(&["10.0.0.1"]);
        assert_eq!(take(v4, Ok(&["2001:db8::1"])), (Found, true, true, one.clone()));
        for (v4, v6, outcome) in [
            (Err(Empty), Err(Empty), Empty),
            (Err(Failed), Err(Failed), Failed),
            (Err(TimedOut), Err(Empty), TimedOut),
            (Ok(&[][..]), Ok(&[][..]), Empty),
        ] {
            assert_eq!(take(v4, v6), (outcome, false, true, one.clone()));
        }
        assert_eq!(take(v4, Err(TimedOut)), (Found, false, true, one), "its last IPv6 address");
        assert_eq!(take(v4, Err(Empty)), (Found, true, true, found(&["10.0.0.1:80"])));
        let two = found(&["10.0.0.2:80", "10.0.0.3:80"]);
        let rotated = [&["10.0.0.2", "10.0.0.3"][..], &["10.0.0.3", "10.0.0.2", "10.0.0.3"]];
        assert_eq!(take(Ok(rotated[0]), Err(Empty)), (Found, true, false, two.clone()));
        assert_eq!(take(Ok(rotated[1]), Err(Empty)), (Found, false, false, two));
    }

    #[test]
    fn hosts_of_a_service_fail_and_change_apart() {
        let place =
            |host: &str, weight| Place { host: host.to_owned(), port: 1, weight: Some(weight) };
        let of = |hosts: [(&str, Part<'_>); 2]| {
            let addresses = |part: Part<'_>| [Some(part.map(ips).map_err(trouble)), None];
            let hosts = hosts.map(|(host, part)| (host.to_owned(), addresses(part)));
            Answer {
                places: Ok(vec![place("a", 1), place("b", 2)]),
                hosts: hosts.into(),
                ttl: None,
            }
        };
        let mut state = State::new(instant());
        state.take(of([("a", Ok(&["10.0.0.1"])), ("b", Ok(&["10.0.0.2"]))]), &terms(), moment());
        let news = state.take(
            of([("a", Err(Outcome::Failed)), ("b", Ok(&["10.0.0.3"]))]),
            &terms(),
            moment(),
        );
        assert_eq!(news, News { outcome: Outcome::Found, changed: true, told: true });
        assert_eq!(shown(&state), ["10.0.0.1:1", "10.0.0.3:1"]);
        assert_eq!(state.found()[1].weight, Some(2));
        let lost =
            Answer { places: Err(trouble(Outcome::TimedOut)), hosts: BTreeMap::new(), ttl: None };
        assert_eq!(state.take(lost, &terms(), moment()).outcome, Outcome::TimedOut);
        assert_eq!((state.found().len(), state.failures()), (2, 1));
    }

    #[test]
    fn too_many_addresses_are_left_out() {
        let all: Vec<String> = (0..=255).map(|last| format!("10.0.0.{last}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let mut state = State::new(instant());
        state.take(answer(Ok(&all), Err(Outcome::Empty)), &terms(), moment());
        assert_eq!((state.found().len(), state.left_out()), (32, 256 - 32));
        state.take(answer(Ok(&all[..2]), Err(Outcome::Empty)), &terms(), moment());
        assert_eq!((state.found().len(), state.left_out()), (2, 0));
    }

    proptest! {
        #[test]
        fn lookups_keep_to_the_ttl_within_bounds(
            ttl in 0u64..200_000, min in 1u64..4000, more in 0u64..90_000, random: u64
        ) {
            let (min, max) = (Duration::from_secs(min), Duration::from_secs(min + more));
            let terms = Discovery { min_interval: min, max_interval: max, ..terms() };
            let mut state = State::new(instant());
            let now = Moment { random, ..moment() };
            let ttl = Duration::from_secs(ttl);
            let found = answer(Ok(&["10.0.0.1"]), Err(Outcome::Empty));
            state.take(Answer { ttl: Some(ttl), ..found }, &terms, now);
            let wait = state.due() - now.instant;
            prop_assert!((min..=max).contains(&wait));
            prop_assert!(wait <= ttl.max(min), "{wait:?}");
            prop_assert!(wait >= ttl.min(max) * 9 / 10, "{wait:?}");
        }

        #[test]
        fn failures_are_tried_again_ever_later_and_never_too_late(
            failures in 1usize..40, max in 1u64..90_000, random: u64
        ) {
            let max = Duration::from_secs(max);
            let min_interval = Duration::from_secs(1);
            let terms = Discovery { min_interval, max_interval: max, ..terms() };
            let mut state = State::new(instant());
            let now = Moment { random, ..moment() };
            let mut last = Duration::ZERO;
            for _ in 0..failures {
                state.take(answer(Err(Outcome::Failed), Err(Outcome::Empty)), &terms, now);
                let wait = state.due() - now.instant;
                prop_assert!(wait >= last, "{wait:?} after {last:?}");
                prop_assert!(wait >= RETRY_FIRST * 9 / 10);
                prop_assert!(wait <= RETRY_MAX.min(max));
                last = wait;
            }
            state.take(answer(Ok(&["10.0.0.1"]), Err(Outcome::Empty)), &terms, now);
            state.take(answer(Err(Outcome::Failed), Err(Outcome::Failed)), &terms, now);
            prop_assert!(state.due() - now.instant <= RETRY_FIRST, "from the beginning again");
        }
    }
}
