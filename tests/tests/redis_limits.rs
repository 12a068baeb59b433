//! The script that counts limits in Redis, against a real server: each algorithm agrees with an exact model for any
//! sequence of requests, and many gateways together never give more than there is.
#![expect(clippy::disallowed_methods, reason = "a wait for a server has a bound")]
#![expect(clippy::unwrap_used, reason = "what helps tests fails as they do")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use gateway::config::{self, RedisAddress, RedisMode};
use gateway::shared::count::{Item, Taken, Terms, Verdict};
use gateway::shared::{Redis, Unavailable};
use harness::redis::{Cluster, Redis as Server};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const SCRIPT: &str = include_str!("../../gateway/src/shared/count.lua");
const DAY_US: u64 = 86_400_000_000;

/// The script with a clock that the test sets, the last argument, and with keys that stay.
fn with_clock() -> String {
    let clock = "redis.call('TIME')";
    assert_eq!(SCRIPT.matches(clock).count(), 1);
    let injected = "{ math.floor(ARGV[#ARGV] / 1000000), ARGV[#ARGV] % 1000000 }";
    // Keys end by the server's own clock, which the test does not set.
    let ends =
        ["'PX', math.max(1, math.ceil(left / 1000))", "math.ceil((moment + length - now) / 1000)"];
    let late = ["'PX', 1000000000", "1000000000"];
    ends.iter().zip(late).fold(SCRIPT.replace(clock, injected), |script, (end, late)| {
        assert_eq!(script.matches(end).count(), 1, "{end}");
        script.replace(end, late)
    })
}

/// A connection that runs the script at times of the test's choice.
struct Bench {
    connection: BufReader<TcpStream>,
    script: String,
    keys: u64,
}

impl Bench {
    fn new(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut bench = Self { connection: BufReader::new(stream), script: String::new(), keys: 0 };
        bench.send(&["SCRIPT", "LOAD", &with_clock()]);
        bench.script = bench.text();
        bench
    }

    /// A key that nobody has used.
    fn key(&mut self) -> String {
        self.keys += 1;
        format!("k{}", self.keys)
    }

    /// What the script says: admitted, left, microseconds to the reset, microseconds to wait.
    fn take(
        &mut self,
        key: &str,
        (name, a, b): (&str, u64, u64),
        cost: u64,
        now_us: u64,
    ) -> [u64; 4] {
        let numbers = [a, b, cost, now_us].map(|number| number.to_string());
        let [a, b, cost, now] = numbers.each_ref().map(String::as_str);
        let script = self.script.clone();
        self.send(&["EVALSHA", &script, "1", key, "", "", name, a, b, cost, now]);
        assert_eq!(self.line(), "*4");
        [(); 4].map(|()| self.line().strip_prefix(':').unwrap().parse().unwrap())
    }

    fn send(&mut self, parts: &[&str]) {
        let mut text = format!("*{}\r\n", parts.len());
        for part in parts {
            text.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
        self.connection.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.connection.read_line(&mut line).unwrap();
        assert!(!line.starts_with('-'), "{line}");
        line.trim_end().to_owned()
    }

    fn text(&mut self) -> String {
        let length: usize = self.line().strip_prefix('$').unwrap().parse().unwrap();
        let mut bytes = vec![0; length + 2];
        self.connection.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap().trim_end().to_owned()
    }
}

fn check<S: Strategy>(strategy: S, test: impl Fn(&mut Bench, S::Value)) {
    let server = Server::start().unwrap();
    let bench = std::cell::RefCell::new(Bench::new(&server));
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    let run = |value| {
        test(&mut bench.borrow_mut(), value);
        Ok(())
    };
    TestRunner::new(config).run(&strategy, run).unwrap();
}

/// Gaps in microseconds, and costs.
fn steps(gap_us: u64, cost: u64) -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((0..gap_us, 1..cost), 1..80)
}

/// Some time in 2026, in microseconds.
const START_US: u64 = 1_780_000_000_000_000;

#[test]
fn a_token_bucket_and_a_leaky_one_agree_with_a_counted_bucket() {
    let strategy = (1u64..1_000_000, 1u64..40, any::<bool>(), steps(5_000, 45));
    check(strategy, |bench, (interval_ns, burst, leaks, steps)| {
        let (key, depth) = (bench.key(), interval_ns * burst);
        let terms = match leaks {
            false => ("token_bucket", interval_ns, burst),
            true => ("leaky_bucket", interval_ns, burst - 1),
        };
        let (mut now, mut tokens) = (START_US, depth);
        for (gap, cost) in steps {
            now += gap;
            tokens = (tokens + gap * 1000).min(depth);
            let wanted = cost * interval_ns;
            let fits = tokens >= wanted;
            let ahead = depth - tokens;
            let wait_ns = match (fits, leaks) {
                (true, false) => 0,
                (true, true) => ahead,
                (false, _) => wanted - tokens,
            };
            tokens -= if fits { wanted } else { 0 };
            let reset = (depth - tokens).div_ceil(1000);
            let expected = [fits.into(), tokens / interval_ns, reset, wait_ns.div_ceil(1000)];
            assert_eq!(bench.take(&key, terms, cost, now), expected);
        }
    });
}

#[test]
fn a_fixed_window_agrees_with_a_count_a_window() {
    let strategy = (1_000u64..1_000_000, 1u64..20, steps(700_000, 25));
    check(strategy, |bench, (length, limit, steps)| {
        let (key, mut now) = (bench.key(), START_US);
        let mut counts: HashMap<u64, u64> = HashMap::new();
        for (gap, cost) in steps {
            now += gap;
            let count = counts.entry(now / length).or_default();
            let fits = *count + cost <= limit;
            *count += if fits { cost } else { 0 };
            let left_us = length - now % length;
            let reset = if *count > 0 { left_us } else { 0 };
            let wait = if fits { 0 } else { left_us };
            let said = bench.take(&key, ("fixed_window", length, limit), cost, now);
            assert_eq!(said, [fits.into(), limit - *count, reset, wait]);
        }
    });
}

#[test]
fn a_sliding_window_agrees_with_counts_of_all_windows() {
    let strategy = (1_000u64..500_000, 1u64..20, steps(400_000, 25));
    check(strategy, |bench, (length, limit, steps)| {
        let (key, mut now) = (bench.key(), START_US);
        let mut counts: HashMap<u64, u64> = HashMap::new();
        let used = |counts: &HashMap<u64, u64>, at: u64| {
            let count = |index| counts.get(&index).copied().unwrap_or_default();
            let index = at / length;
            count(index - 1) * (length - at % length) + count(index) * length
        };
        for (gap, cost) in steps {
            now += gap;
            let fits =
                |counts: &HashMap<u64, u64>, at| used(counts, at) + cost * length <= limit * length;
            let expected = fits(&counts, now);
            let [admitted, left, reset, wait] =
                bench.take(&key, ("sliding_window", length, limit), cost, now);
            assert_eq!(admitted, u64::from(expected));
            if expected {
                *counts.entry(now / length).or_default() += cost;
                assert_eq!(wait, 0);
            } else if cost <= limit {
                assert!(fits(&counts, now + wait), "{wait}");
                assert!(!fits(&counts, now + wait - 1), "{wait}");
            }
            assert_eq!(left, (limit * length).saturating_sub(used(&counts, now)) / length);
            assert_eq!(used(&counts, now + reset), 0);
        }
    });
}

#[test]
fn a_sliding_log_agrees_with_a_list_of_times() {
    let strategy = (1u64..12, 1_000u64..500_000, steps(200_000, 14));
    check(strategy, |bench, (limit, length, steps)| {
        let (key, mut now) = (bench.key(), START_US);
        let mut times: Vec<u64> = Vec::new();
        for (gap, cost) in steps {
            now += gap;
            let live =
                |at: u64, times: &[u64]| times.iter().filter(|t| **t + length > at).count() as u64;
            let fits = live(now, &times) + cost <= limit;
            let [admitted, left, reset, wait] =
                bench.take(&key, ("sliding_log", length, limit), cost, now);
            assert_eq!(admitted, u64::from(fits));
            if fits {
                times.extend((0..cost).map(|_| now));
                assert_eq!(wait, 0);
            } else if cost <= limit {
                assert!(live(now + wait, &times) + cost <= limit);
                assert!(live(now + wait - 1, &times) + cost > limit);
            }
            assert_eq!(left, limit - live(now, &times));
            assert_eq!(live(now + reset, &times), 0);
        }
    });
}

/// The calendar that the model goes by is the one of humantime, which the gateway uses nowhere for this.
#[test]
fn a_quota_ends_where_the_calendar_says() {
    let server = Server::start().unwrap();
    let mut bench = Bench::new(&server);
    let us = |text: &str| {
        let time = humantime::parse_rfc3339(text).unwrap();
        time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_micros() as u64
    };
    for (name, now, end) in [
        ("day", "2026-02-28T23:59:59Z", "2026-03-01T00:00:00Z"),
        ("day", "2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("month", "2024-02-29T12:00:00Z", "2024-03-01T00:00:00Z"),
        ("month", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("month", "2100-02-28T00:00:00Z", "2100-03-01T00:00:00Z"),
        ("month", "2026-12-31T23:59:59.999Z", "2027-01-01T00:00:00Z"),
    ] {
        let (key, now, end) = (bench.key(), us(now), us(end));
        assert_eq!(bench.take(&key, (name, 0, 2), 2, now), [1, 0, end - now, 0], "{name} {end}");
        assert_eq!(bench.take(&key, (name, 0, 2), 1, end - 1), [0, 0, 1, 1]);
        let [admitted, left, ..] = bench.take(&key, (name, 0, 2), 1, end);
        assert_eq!((admitted, left), (1, 1), "{name} {end}");
    }
}

/// A clock that goes back, as after a failover, hands out nothing twice, and one that was years ahead locks nobody out.
#[test]
fn a_clock_that_jumps_hands_out_nothing_twice() {
    let server = Server::start().unwrap();
    let mut bench = Bench::new(&server);
    let second = 1_000_000;
    for terms in [
        ("token_bucket", 1_000_000_000, 3),
        ("leaky_bucket", 1_000_000_000, 2),
        ("fixed_window", second, 3),
        ("sliding_window", second, 3),
        ("sliding_log", second, 3),
        ("day", 0, 3),
    ] {
        let (key, now) = (bench.key(), START_US + 1);
        assert_eq!(bench.take(&key, terms, 3, now)[0], 1, "{terms:?}");
        assert_eq!(bench.take(&key, terms, 1, now - second / 2)[0], 0, "{terms:?}");
        let key = bench.key();
        assert_eq!(bench.take(&key, terms, 3, now + 400 * DAY_US)[0], 1, "{terms:?}");
        let mut later = now;
        while bench.take(&key, terms, 1, later)[0] == 0 {
            later += second;
            assert!(later < now + 10 * second, "{terms:?} never comes back");
        }
    }
}

fn config(servers: &[Server]) -> config::Redis {
    config::Redis {
        addresses: servers.iter().map(|s| RedisAddress::Address(s.address)).collect(),
        mode: if servers.len() > 1 { RedisMode::Cluster } else { RedisMode::Standalone },
        database: 0,
        user: None,
        password: None,
        tls: None,
        prefix: "test".to_owned(),
        timeout: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(2),
    }
}

async fn connect(servers: &[Server]) -> Redis {
    let redis = Redis::read(&config(servers)).unwrap();
    redis.start().unwrap();
    redis.looked_at().await;
    redis
}

/// A limit that a test does not live to see the end of.
fn item(whose: u8, limit: u32) -> Item {
    let terms = Terms::FixedWindow { window_us: 31 * DAY_US, limit };
    Item { whose: [whose; 16], limit: limit.into(), terms, cost: 1 }
}

fn all_admitted(said: Result<Taken, Unavailable>) -> bool {
    said.unwrap().verdicts.iter().all(|verdict| verdict.is_some_and(|verdict| verdict.admitted))
}

#[tokio::test]
async fn of_several_limits_all_are_taken_of_or_none() {
    let server = [Server::start().unwrap()];
    let redis = connect(&server).await;
    let (own, all) = (item(1, 2), item(2, 3));
    assert!(all_admitted(redis.take(&[own, all]).await));
    assert!(all_admitted(redis.take(&[own, all]).await));
    for _ in 0..5 {
        let said = redis.take(&[own, all]).await.unwrap().verdicts;
        let said: Vec<_> = said.into_iter().flatten().map(|v| (v.admitted, v.remaining)).collect();
        assert_eq!(said, [(false, 0), (true, 1)], "the refused ones took nothing of the other");
    }
    let other = item(3, 2);
    assert!(all_admitted(redis.take(&[other, all]).await));
    assert!(!all_admitted(redis.take(&[other, all]).await));
    let stats = server[0].ask(&["INFO", "commandstats"]).unwrap();
    assert!(stats.contains("cmdstat_evalsha:calls=9,"), "one call a request: {stats}");
}

#[tokio::test]
async fn in_a_cluster_the_first_refusal_ends_it_and_later_limits_keep_what_they_have() {
    let cluster = Cluster::start().unwrap();
    let redis = connect(&cluster.nodes).await;
    let (own, all) = (item(1, 2), item(2, 3));
    assert!(all_admitted(redis.take(&[own, all]).await));
    assert!(all_admitted(redis.take(&[own, all]).await));
    for _ in 0..5 {
        let said = redis.take(&[own, all]).await.unwrap().verdicts;
        assert!(!said[0].unwrap().admitted && said[1].is_none(), "{said:?}");
    }
    let said = redis.take(&[all]).await.unwrap().verdicts;
    assert_eq!(said[0].unwrap().remaining, 0, "exactly two were taken before");
}

#[tokio::test]
async fn a_permit_is_given_back_renewed_and_ends_with_who_had_it() {
    let server = [Server::start().unwrap()];
    let redis = connect(&server).await;
    let (terms, rate) = (Terms::Concurrency { limit: 2 }, item(1, 3));
    let all = [Item { whose: [9; 16], limit: 9, terms, cost: 1 }, rate];
    let take = async || redis.take(&all).await.unwrap();
    let first = take().await;
    let second = take().await;
    assert!(first.permit.is_some() && second.permit.is_some());
    let third = take().await;
    assert!(third.permit.is_none() && !third.verdicts[0].unwrap().admitted);
    drop(first);
    let again = loop {
        let again = take().await;
        if again.permit.is_some() {
            break again;
        }
    };
    let fourth = take().await;
    assert_eq!(fourth.verdicts[1].unwrap().remaining, 0, "three were taken of the rate");
    // Somebody who dies gives nothing back, and takes nothing with him for longer than a lease.
    let key = server[0].ask(&["KEYS", "*:9"]).unwrap();
    let left: i64 = server[0].ask(&["PTTL", &key]).unwrap().parse().unwrap();
    assert!((1..=10_000).contains(&left), "{left}");
    // An empty server learns of those that are under way by their renewals.
    server[0].ask(&["FLUSHALL"]).unwrap();
    let start = std::time::Instant::now();
    while server[0].ask(&["ZCARD", &key]).unwrap() != "2" {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing is renewed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop((second, again));
    while server[0].ask(&["EXISTS", &key]).unwrap() != "0" {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing is given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_was_given_away_is_reported_whether_there_is_room_or_not() {
    let server = [Server::start().unwrap()];
    let redis = connect(&server).await;
    let bucket = Terms::TokenBucket { interval_ns: 1_000_000_000_000, burst: 10 };
    let bucket = Item { whose: [1; 16], limit: 1, terms: bucket, cost: 7 };
    let quota = Item { terms: Terms::Month { limit: 10 }, limit: 2, ..bucket };
    let left = async || {
        let said = redis.report(&[bucket, quota]).await.unwrap();
        said.into_iter().map(|verdict| verdict.unwrap().remaining).collect::<Vec<_>>()
    };
    assert_eq!(left().await, [3, 3]);
    assert_eq!(left().await, [0, 0], "fourteen of ten");
    assert!(!all_admitted(redis.take(&[Item { cost: 1, ..bucket }]).await));
    let looked = redis.report(&[Item { cost: 0, ..quota }]).await.unwrap();
    assert_eq!(looked[0].unwrap().remaining, 0);
}

/// What is reported again may be counted twice, so a report is not given up as soon as a request would be.
#[tokio::test]
async fn a_report_waits_for_a_server_that_is_late() {
    let server = [Server::start().unwrap()];
    let (timeout, patience) = (Duration::from_millis(50), Duration::from_secs(20));
    let config = config::Redis { timeout, connect_timeout: patience, ..config(&server) };
    let redis = Redis::read(&config).unwrap();
    redis.start().unwrap();
    redis.looked_at().await;
    let quota = [Item { terms: Terms::Month { limit: 10 }, ..item(1, 10) }];
    let left =
        |said: Result<Vec<Option<Verdict>>, Unavailable>| said.unwrap()[0].unwrap().remaining;
    assert_eq!(left(redis.report(&quota).await), 9);
    server[0].pause().unwrap();
    let resume = async {
        tokio::time::sleep(4 * timeout).await;
        server[0].resume().unwrap();
    };
    let (said, ()) = tokio::join!(redis.report(&quota), resume);
    assert_eq!(left(said), 8);
}

#[test]
fn many_gateways_together_give_exactly_what_there_is() {
    const LIMIT: u32 = 500;
    let server = [Server::start().unwrap()];
    let count = |terms: Terms, whose: u8| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let config = config(&server);
                std::thread::spawn(move || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let redis = Redis::read(&config).unwrap();
                        let mut given = 0;
                        for _ in 0..LIMIT / 2 {
                            let item = Item { whose: [whose; 16], limit: 1, terms, cost: 1 };
                            given += u32::from(all_admitted(redis.take(&[item]).await));
                        }
                        given
                    })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>()
    };
    let window_us = 31 * DAY_US;
    let interval_ns = 1_000_000_000_000;
    let (limit, burst) = (LIMIT, LIMIT.into());
    for (number, terms) in [
        Terms::TokenBucket { interval_ns, burst },
        Terms::LeakyBucket { interval_ns, queue: burst - 1 },
        Terms::FixedWindow { window_us, limit },
        Terms::SlidingWindow { window_us, limit },
        Terms::SlidingLog { window_us, limit },
        Terms::Month { limit },
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(count(terms, number as u8), LIMIT, "{terms:?}");
    }
    let keys = server[0].ask(&["DBSIZE"]).unwrap();
    assert_eq!(keys, "6");
    for key in server[0].ask(&["KEYS", "*"]).unwrap().lines() {
        let left: i64 = server[0].ask(&["PTTL", key]).unwrap().parse().unwrap();
        assert!(left > 0, "{key} is kept for ever");
    }
}
