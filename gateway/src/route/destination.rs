//! Which of several upstreams a request goes to: by weight and chance, or by what a client keeps.
//!
//! A sticky choice gives each upstream a score from a hash of its name and the client's value, and the highest wins
//! (weighted rendezvous hashing). So every worker and every gateway chooses the same, and where weights change, only as
//! many clients move as must, all of them to upstreams that gained.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{Routed, predicate};
use crate::config::{Forward, Sticky, WeightedUpstream};

/// A request that has an upstream. Only [`Routed::choose`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    upstream: Option<usize>,
    cookie: Option<String>,
}

impl Destination {
    /// Index in [`crate::config::Config::upstreams`]; `None` until it is known who calls, where that decides.
    pub fn upstream(&self) -> Option<usize> {
        self.upstream
    }

    /// The same, now that it is known who calls; `None` for nobody that is known.
    pub fn of_caller(
        mut self,
        forward: &Forward,
        caller: Option<&str>,
        random: impl FnOnce() -> u64,
    ) -> Self {
        if self.upstream.is_none() {
            let target = match caller {
                Some(caller) => by_value(&forward.upstreams, caller.as_bytes()),
                None => by_weight(&forward.upstreams, random()),
            };
            self.upstream = target.map(|target| target.upstream);
        }
        self
    }

    /// The cookie that keeps the client with it, as `Set-Cookie` says it; `secure`: over TLS only.
    pub fn cookie(self, secure: bool) -> Option<HeaderValue> {
        let secure = if secure { "; Secure" } else { "" };
        HeaderValue::try_from(self.cookie? + "; Path=/; HttpOnly; SameSite=Lax" + secure).ok()
    }
}

impl Routed {
    /// The upstream of a request by its route. `random` is asked only where chance decides.
    pub fn choose(
        self,
        forward: &Forward,
        headers: &HeaderMap,
        client: IpAddr,
        random: impl FnOnce() -> u64,
    ) -> Destination {
        if let [only] = forward.upstreams.as_slice() {
            return Destination { upstream: Some(only.upstream), cookie: None };
        }
        let mut cookie = None;
        let target = match &forward.sticky {
            None => by_weight(&forward.upstreams, random()),
            Some(Sticky::Consumer) => None,
            Some(Sticky::ClientAddress) => {
                by_value(&forward.upstreams, client.to_string().as_bytes())
            }
            Some(Sticky::Header(name)) => match headers.get(name) {
                Some(value) => by_value(&forward.upstreams, value.as_bytes()),
                None => by_weight(&forward.upstreams, random()),
            },
            Some(Sticky::Cookie(name)) => match predicate::cookie(headers, name) {
                Some(value) => by_value(&forward.upstreams, value),
                None => {
                    let value = format!("{:016x}", random());
                    cookie = Some(format!("{name}={value}"));
                    by_value(&forward.upstreams, value.as_bytes())
                }
            },
        };
        Destination { upstream: target.map(|target| target.upstream), cookie }
    }
}

/// The target whose share of all weights `random` falls into.
fn by_weight(upstreams: &[WeightedUpstream], random: u64) -> Option<&WeightedUpstream> {
    let total: u64 = upstreams.iter().map(|target| u64::from(target.weight)).sum();
    // The upper half of the product: the remainder without a division, and without its bias.
    let mut place = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    upstreams.iter().find(|target| {
        let weight = u64::from(target.weight);
        let here = place < weight;
        place = place.saturating_sub(weight);
        here
    })
}

fn by_value<'t>(upstreams: &'t [WeightedUpstream], value: &[u8]) -> Option<&'t WeightedUpstream> {
    let score = |target: &WeightedUpstream| {
        let hash = xxh3_64_with_seed(value, xxh3_64(target.name.as_bytes()));
        // In (0, 1), exactly as a double has it.
        let share = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        f64::from(target.weight) / -share.ln()
    };
    let weighed = upstreams.iter().filter(|target| target.weight > 0);
    weighed.max_by(|one, other| score(one).total_cmp(&score(other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Timeouts;
    use proptest::prelude::*;

    fn upstreams(weights: &[u32]) -> Vec<WeightedUpstream> {
        let target = |(upstream, weight): (usize, &u32)| WeightedUpstream {
            upstream,
            name: format!("u{upstream}"),
            weight: *weight,
        };
        weights.iter().enumerate().map(target).collect()
    }

    fn forward(sticky: Option<Sticky>) -> Forward {
        Forward {
            upstreams: upstreams(&[10, 90]),
            sticky,
            rewrite: None,
            body_bytes: None,
            timeouts: Timeouts::default(),
        }
    }

    fn choose(sticky: Option<Sticky>, headers: &[(&str, &str)], random: u64) -> Destination {
        let forward = forward(sticky);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        Routed { route: 0 }.choose(&forward, &map, "192.0.2.1".parse().unwrap(), || random)
    }

    #[test]
    fn chance_follows_the_weights_exactly() {
        let two = upstreams(&[10, 90]);
        let shares = |count: u64| {
            let chosen =
                (0..count).map(|index| by_weight(&two, (u64::MAX / count + 1) * index).unwrap());
            chosen.filter(|target| target.upstream == 0).count()
        };
        assert_eq!(shares(100), 10);
        assert_eq!(shares(100_000), 10_000);
        assert_eq!(by_weight(&upstreams(&[0, 1, 0]), u64::MAX).unwrap().upstream, 1);
        assert_eq!(by_weight(&upstreams(&[0, 1, 0]), 0).unwrap().upstream, 1);
        assert_eq!(choose(None, &[], 0).upstream(), Some(0));
        assert_eq!(choose(None, &[], u64::MAX).upstream(), Some(1));
    }

    #[test]
    fn a_client_that_keeps_something_stays_where_it_was() {
        let cookie = || Some(Sticky::Cookie("canary".to_owned()));
        let first = choose(cookie(), &[("cookie", "a=b")], 7);
        let line = first.clone().cookie(true).unwrap();
        assert_eq!(line, "canary=0000000000000007; Path=/; HttpOnly; SameSite=Lax; Secure");
        assert!(!first.clone().cookie(false).unwrap().to_str().unwrap().contains("Secure"));
        let kept = "a=b; canary=0000000000000007";
        for random in 0..100 {
            let again = choose(cookie(), &[("cookie", kept)], random);
            assert_eq!((again.upstream(), again.cookie(true)), (first.upstream(), None));
        }
        let header = || Some(Sticky::Header(http::HeaderName::from_static("x-user")));
        let chosen: Vec<Option<usize>> = (0..2000)
            .map(|user| choose(header(), &[("x-user", &user.to_string())], 0).upstream())
            .collect();
        let canary = chosen.iter().filter(|upstream| **upstream == Some(0)).count();
        assert!((120..280).contains(&canary), "{canary} of 2000, not about 200");
        let address = choose(Some(Sticky::ClientAddress), &[], 0);
        assert_eq!(address, choose(Some(Sticky::ClientAddress), &[], u64::MAX));
    }

    #[test]
    fn a_consumer_stays_where_it_was_once_it_is_known() {
        let forward = forward(Some(Sticky::Consumer));
        let open = || choose(Some(Sticky::Consumer), &[], 0);
        assert_eq!(open().upstream(), None);
        let of =
            |caller: Option<&str>, random| open().of_caller(&forward, caller, || random).upstream();
        let mut canary = 0;
        for number in 0..2000 {
            let caller = number.to_string();
            let upstream = of(Some(&caller), 0);
            assert_eq!(upstream, of(Some(&caller), u64::MAX));
            canary += usize::from(upstream == Some(0));
        }
        assert!((120..280).contains(&canary), "{canary} of 2000, not about 200");
        assert_eq!([of(None, 0), of(None, u64::MAX)], [Some(0), Some(1)]);
        let chosen = choose(None, &[], u64::MAX);
        assert_eq!(chosen.clone().of_caller(&forward, Some("a"), || 0), chosen);
    }

    proptest! {
        #[test]
        fn whoever_moves_goes_to_an_upstream_that_gained(
            before in proptest::collection::vec(0_u32..100, 2..6), gains in 0..6_usize,
            more in 1_u32..100, value: u64,
        ) {
            let gains = gains % before.len();
            let mut after = before.clone();
            after[gains] += more;
            let at = |weights: &[u32]| {
                by_value(&upstreams(weights), &value.to_be_bytes()).map(|target| target.upstream)
            };
            let (old, new) = (at(&before), at(&after));
            prop_assert!(old == new || new == Some(gains), "{old:?} to {new:?}");
        }

        #[test]
        fn a_target_without_weight_gets_nothing(
            weights in proptest::collection::vec(0_u32..3, 1..6), random: u64,
        ) {
            let upstreams = upstreams(&weights);
            let by_value = by_value(&upstreams, &random.to_be_bytes());
            for target in [by_weight(&upstreams, random), by_value] {
                prop_assert_eq!(target.is_some(), weights.iter().any(|weight| *weight > 0));
                prop_assert!(target.is_none_or(|target| target.weight > 0));
            }
        }
    }
}
