//! Choosing as a worker does it: views of groups whose endpoints come, go and fall sick.

use std::collections::HashMap;
use std::time::Duration;

use http::Request;
use proptest::prelude::*;

use super::*;
use crate::base::error::Kind;
use crate::base::time::{BootTime, UtcMillis};
use crate::config::{Balance, Ejection, Share};
use crate::upstream::endpoint::{Condition, EndpointState};

fn at(seconds: u64) -> Now {
    Now { boot: BootTime(seconds * 1_000_000_000), utc: UtcMillis(seconds * 1000) }
}

/// Endpoints by port, with weight and zone.
fn endpoints(all: &[(u16, u32, Option<&str>)]) -> Vec<Endpoint> {
    let endpoint = |&(port, weight, zone): &(u16, u32, Option<&str>)| Endpoint {
        address: SocketAddr::from(([10, 0, 0, 1], port)),
        weight,
        zone: zone.map(Arc::from),
        state: Arc::new(EndpointState::new(port.into(), 1, at(1))),
    };
    all.iter().map(endpoint).collect()
}

fn group(endpoints: &[Endpoint], balance: Balance, zone: Option<&str>) -> Arc<Group> {
    Arc::new(Group::new("users", Set::new(endpoints.to_vec(), balance, zone.map(Arc::from))))
}

fn by(algorithm: Algorithm) -> Balance {
    Balance { algorithm, ..Balance::default() }
}

fn pick(view: &View, key: Option<u64>) -> Option<Picked> {
    view.pick(key, &Tried::default(), || at(100).boot).map(Picked::new)
}

/// How many of so many requests each port gets, one after the other.
fn shares(view: &View, requests: u64) -> HashMap<u16, u64> {
    let mut shares = HashMap::new();
    for number in 0..requests {
        let picked = pick(view, Some(hash::key(&number.to_le_bytes()))).unwrap();
        *shares.entry(picked.address().port()).or_default() += 1;
    }
    shares
}

#[test]
fn a_request_is_tried_on_each_endpoint_once_and_none_is_left_busy() {
    let all = endpoints(&[(1, 1, None), (2, 3, None), (3, 1, None)]);
    for algorithm in [
        Algorithm::RoundRobin,
        Algorithm::LeastRequests,
        Algorithm::RandomTwo,
        Algorithm::Hash(HashKey::Client),
    ] {
        let view = View::new(&group(&all, by(algorithm), None), 0);
        let mut tried = Tried::default();
        let mut ports = Vec::new();
        while let Some(member) = view.pick(Some(7), &tried, || at(100).boot) {
            tried.add(&member);
            let picked = Picked::new(member);
            assert_eq!(picked.endpoint().state.totals().active, 1);
            ports.push(picked.address().port());
        }
        ports.sort_unstable();
        assert_eq!(ports, [1, 2, 3]);
    }
    assert_eq!(all[0].state.totals().active, 0);
    assert_eq!(all[0].state.totals().requests, 4);
}

proptest! {
    #[test]
    fn no_endpoint_has_more_than_its_bound_and_keys_stay_at_home_below_it(
        weights in prop::collection::vec(1u32..5, 1..8),
        percent in 101u32..300,
        steps in prop::collection::vec((0u64..20, any::<Option<prop::sample::Index>>()), 1..200),
    ) {
        let all: Vec<(u16, u32, Option<&str>)> =
            (1..).zip(&weights).map(|(port, weight)| (port, *weight, None)).collect();
        let all = endpoints(&all);
        let free = View::new(&group(&all, by(Algorithm::Hash(HashKey::Client)), None), 0);
        let bound = Some(Share::per_million(percent * 10_000));
        let balance = Balance { bound, ..by(Algorithm::Hash(HashKey::Client)) };
        let view = View::new(&group(&all, balance, None), 0);
        let total_weight = u64::from(weights.iter().sum::<u32>());
        let mut held: Vec<Picked> = Vec::new();
        for (number, ends) in steps {
            if let Some(ends) = ends.filter(|_| !held.is_empty()) {
                held.swap_remove(ends.index(held.len()));
            }
            let key = Some(hash::key(&number.to_le_bytes()));
            let home = free.pick(key, &Tried::default(), || at(100).boot).unwrap();
            let requests = held.len() as u64 + 1;
            let allowed = |endpoint: &Endpoint| {
                let part = u64::from(percent) * requests * u64::from(endpoint.weight);
                part.div_ceil(100 * total_weight)
            };
            let has_room = home.active() < allowed(&home.endpoint);
            let picked = pick(&view, key).unwrap();
            let endpoint = picked.endpoint();
            let active = endpoint.state.totals().active;
            prop_assert!(active <= allowed(endpoint), "{active} of {}", allowed(endpoint));
            prop_assert_eq!(picked.address() == home.endpoint.address, has_room);
            held.push(picked);
        }
    }
}

#[test]
fn a_bound_leaves_a_request_somebody_to_try() {
    let all = endpoints(&[(1, 1, None), (2, 1000, None)]);
    let bound = Some(Share::per_million(1_010_000));
    let balance = Balance { bound, ..by(Algorithm::Hash(HashKey::Client)) };
    let view = View::new(&group(&all, balance, None), 0);
    let port = |picked: Picked| picked.address().port();
    let key = (0..1 << 15).find(|key| port(pick(&view, Some(*key)).unwrap()) == 1).unwrap();
    let _held = pick(&view, Some(key)).unwrap();
    let mut tried = Tried::default();
    let mut ports = Vec::new();
    while let Some(member) = view.pick(Some(key), &tried, || at(100).boot) {
        tried.add(&member);
        ports.push(member.endpoint.address.port());
    }
    assert_eq!(ports, [2, 1], "the one that is full only when there is nobody else");
}

#[test]
fn the_least_busy_one_is_taken() {
    let all = endpoints(&[(1, 1, None), (2, 2, None)]);
    let view = View::new(&group(&all, by(Algorithm::LeastRequests), None), 0);
    let held: Vec<Picked> = (0..9).map(|_| pick(&view, None).unwrap()).collect();
    let of = |port| held.iter().filter(|picked| picked.address().port() == port).count();
    assert_eq!((of(1), of(2)), (3, 6), "twice the requests for twice the weight");
    let view = View::new(&group(&all, by(Algorithm::RandomTwo), None), 0);
    let more: Vec<Picked> = (0..9).map(|_| pick(&view, None).unwrap()).collect();
    let of = |port| more.iter().filter(|picked| picked.address().port() == port).count();
    assert_eq!((of(1), of(2)), (3, 6), "of two, both are drawn");
}

#[test]
fn changes_are_followed_and_who_is_sick_is_left_out() {
    let all = endpoints(&[(1, 1, None), (2, 1, None), (3, 1, None)]);
    let group = group(&all, Balance::default(), None);
    let view = View::new(&group, 0);
    assert_eq!(shares(&view, 6), HashMap::from([(1, 2), (2, 2), (3, 2)]));
    assert!(group.check(&all[1].state, Err("refused".to_owned()), at(2)));
    assert_eq!(shares(&view, 6), HashMap::from([(1, 3), (3, 3)]));
    group.check(&all[0].state, Err("refused".to_owned()), at(2));
    assert_eq!(shares(&view, 6).len(), 3, "one of three is less than half: panic");
    group.check(&all[0].state, Ok(()), at(3));
    group.replace(Set::new(all[..2].to_vec(), Balance::default(), None), at(4));
    assert_eq!(shares(&view, 6), HashMap::from([(1, 6)]));
    group.replace(Set::new(Vec::new(), Balance::default(), None), at(5));
    assert!(pick(&view, None).is_none());
}

#[test]
fn who_fails_too_often_is_ejected_and_comes_back_slowly() {
    let all = endpoints(&[(1, 1, None), (2, 1, None)]);
    let terms = Ejection { failures: 3, time: Duration::from_secs(30), ..Ejection::default() };
    let slow_start = Duration::from_secs(100);
    let balance = Balance { ejection: Some(terms), slow_start, ..Balance::default() };
    let group = group(&all, balance, None);
    let view = View::new(&group, 0);
    for _ in 0..3 {
        let [one, other] = [pick(&view, None).unwrap(), pick(&view, None).unwrap()];
        let (sick, well) = if one.address().port() == 1 { (one, other) } else { (other, one) };
        sick.observe(Outcome::Failed(Kind::UpstreamConnect));
        well.observe(Outcome::Answered(http::StatusCode::OK));
    }
    assert_eq!(all[0].state.condition(), Condition::Ejected);
    let (_, why) = all[0].state.history();
    assert_eq!(why.unwrap(), "3 failures in a row, the last: upstream_connect");
    assert_eq!(shares(&view, 10), HashMap::from([(2, 10)]));
    for _ in 0..6 {
        pick(&view, None).unwrap().observe(Outcome::Failed(Kind::UpstreamTimeout));
    }
    assert_eq!(all[1].state.condition(), Condition::Healthy, "the other half stays");
    assert_eq!(group.ejections_refused(), 2);
    let ended = Now { boot: BootTime(u64::MAX - 1), utc: UtcMillis(0) };
    group.release(ended);
    assert_eq!(all[0].state.condition(), Condition::Healthy);
    let shares = (0..110).fold([0; 2], |mut shares, _| {
        let member = view.pick(None, &Tried::default(), || ended.boot).unwrap();
        shares[usize::from(member.endpoint.address.port()) - 1] += 1;
        shares
    });
    assert_eq!(shares, [10, 100], "a tenth of the other's at first");
}

#[test]
fn the_local_zone_comes_first_and_the_other_when_it_is_tried_or_sick() {
    let all = endpoints(&[(1, 1, Some("a")), (2, 1, Some("a")), (3, 1, Some("b")), (4, 1, None)]);
    for algorithm in [Algorithm::RoundRobin, Algorithm::Hash(HashKey::Path)] {
        let by_turn = algorithm == Algorithm::RoundRobin;
        let group = group(&all, by(algorithm), Some("a"));
        let view = View::new(&group, 0);
        let local = shares(&view, 1000);
        assert_eq!(local.len(), 2, "{local:?}");
        group.check(&all[0].state, Err(String::new()), at(2));
        let spilt = shares(&view, 1000);
        let range = if by_turn { 700..=700 } else { 600..=800 };
        assert!(range.contains(&spilt[&2]) && spilt[&3] > 50 && spilt[&4] > 50, "{spilt:?}");
        group.check(&all[0].state, Ok(()), at(3));
        let mut tried = Tried::default();
        for last in [false, false, true, true] {
            let member = view.pick(Some(1), &tried, || at(100).boot).unwrap();
            assert_eq!(member.endpoint.address.port() > 2, last);
            tried.add(&member);
        }
    }
}

#[test]
fn keys_are_read_from_requests() {
    let request = |build: fn(http::request::Builder) -> http::request::Builder| {
        build(Request::get("/a/b?c=d")).body(()).unwrap().into_parts().0
    };
    let client: IpAddr = "192.0.2.1".parse().unwrap();
    let of =
        |by: HashKey, request: &Parts| key(&Algorithm::Hash(by), request, (client, Some("acme")));
    let bare = request(|bare| bare);
    let header = || HashKey::Header("x-session-id".parse().unwrap());
    let cookie = || HashKey::Cookie("id".to_owned());
    assert_eq!(of(header(), &bare), None);
    assert_eq!(of(cookie(), &bare), None);
    assert_eq!(of(HashKey::Path, &bare), Some(hash::key(b"/a/b")));
    assert_eq!(of(HashKey::Consumer, &bare), Some(hash::key(b"acme")));
    assert_eq!(key(&Algorithm::Hash(HashKey::Consumer), &bare, (client, None)), None);
    assert_eq!(of(HashKey::Client, &bare), Some(hash::key(&[192, 0, 2, 1])));
    let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
    let by_client = Algorithm::Hash(HashKey::Client);
    assert_eq!(key(&by_client, &bare, (mapped, None)), of(HashKey::Client, &bare));
    assert_eq!(key(&Algorithm::RoundRobin, &bare, (client, None)), None);
    let full = request(|full| {
        full.header("x-session-id", "7").header("cookie", "uid=1; sid=2").header("cookie", "id=3")
    });
    assert_eq!(of(header(), &full), Some(hash::key(b"7")));
    assert_eq!(of(cookie(), &full), Some(hash::key(b"3")));
}

#[test]
fn nobody_is_ejected_where_that_is_off_or_alone() {
    let all = endpoints(&[(1, 1, None)]);
    let whole = Ejection { failures: 1, max_ejected: Share::WHOLE, ..Ejection::default() };
    for ejection in [None, Some(whole)] {
        let view = View::new(&group(&all, Balance { ejection, ..Balance::default() }, None), 0);
        for _ in 0..5 {
            pick(&view, None).unwrap().observe(Outcome::Failed(Kind::UpstreamReset));
        }
        assert_eq!(all[0].state.condition(), Condition::Healthy);
    }
}
