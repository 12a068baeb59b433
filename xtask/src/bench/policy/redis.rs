//! What one call of Redis adds to the time of a request, beside a bare round trip to the same server. The pace is
//! moderate, so that it is the call which is measured and no queue.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::redis::Redis;
use serde_json::json;

use super::super::proxy::load::{H2load, Kind, Load, quantile};
use super::super::proxy::{Run, subjects::Subject};
use super::super::report::{Comparison, Report};
use super::requests::{Bed, Credential, Pair, Policy, RATE, WITH, WITHOUT, get, on_cpu, rounded};
use crate::test;

/// A `PING` and its answer, as the report calls it.
const ROUND_TRIP: &str = "round_trip";
const FIGURES: [&str; 2] = ["added_p50_us", "added_p99_us"];
/// Requests and round trips a second, one at a time.
const PER_SECOND: u32 = 1000;
const LOAD: H2load = H2load { path: "/", clients: 1, streams: 1, kind: Kind::Http1 };
const PATIENCE: Duration = Duration::from_secs(10);
const PING: &[u8] = b"PING\r\n";
const PONG: &[u8] = b"+PONG\r\n";

/// What is held against the round trip.
pub(super) fn comparisons() -> [Comparison; 2] {
    FIGURES.map(|figure| Comparison { figure, subject: WITH, peer: ROUND_TRIP })
}

pub(super) fn redis(bed: &Bed, case: &str, report: &mut Report) -> anyhow::Result<()> {
    if !test::found("redis-server") {
        report.skip(case, "redis-server is not installed");
        return Ok(());
    }
    for round in 1..=bed.rounds {
        measure(bed, (case, round), report)?;
    }
    Ok(())
}

fn measure(bed: &Bed, (case, round): (&str, u32), report: &mut Report) -> anyhow::Result<()> {
    let run = &bed.run;
    let redis = on_cpu(run.cpus.rest, Redis::start)?;
    let policy = policy(redis.address);
    let pair = Pair::start(bed, &policy)?;
    harness::wait_for("the gateway's connection to Redis", PATIENCE, || {
        Ok((get(&pair.with, "/", None)?.status == 200).then_some(()))
    })?;
    pair.check(&policy)?;
    let short = Run { seconds: 1, ..run.clone() };
    for subject in pair.in_turn(round) {
        load(subject, &short)?;
    }
    let [mut with, mut without] = [None, None];
    for subject in pair.in_turn(round) {
        let before = calls(&redis)?;
        let load = load(subject, run)?;
        let asked = calls(&redis)? - before;
        if subject.name == WITH {
            ensure!(asked >= load.requests, "{asked} calls for {} requests", load.requests);
            with = Some(load);
        } else {
            ensure!(asked == 0.0, "{asked} calls without a limit");
            without = Some(load);
        }
    }
    let (with, without) = with.zip(without).context("one was not measured")?;
    for (name, load) in [(WITH, &with), (WITHOUT, &without)] {
        let mut figures = vec![
            ("requests_per_second", load.requests_per_second),
            ("latency_p50_us", load.p50_us),
            ("latency_p99_us", load.p99_us),
        ];
        if name == WITH {
            let added = [with.p50_us - without.p50_us, with.p99_us - without.p99_us];
            figures.extend(FIGURES.into_iter().zip(added));
        }
        report.round(case, name, round, &figures);
    }
    let trips = on_cpu(run.cpus.subject, || round_trips(redis.address, PER_SECOND * run.seconds))?;
    let trips: Vec<_> = FIGURES.into_iter().zip(trips.map(rounded)).collect();
    report.round(case, ROUND_TRIP, round, &trips);
    Ok(())
}

/// One call a request. It waits long, so that a machine which is late once does not end the run.
fn policy(redis: SocketAddr) -> Policy {
    let limit =
        json!({"per": "route", "rate": RATE, "count": "redis", "when_unavailable": "refuse"});
    Policy {
        sections: json!({"state": {"redis": {"addresses": [redis], "timeout": "100ms"}}}),
        route: json!({"limits": [limit]}),
        credential: Credential::Nothing,
        told: "|".to_owned(),
        is_limited: true,
    }
}

fn load(subject: &Subject, run: &Run) -> anyhow::Result<Load> {
    let load = LOAD.run(subject.plain(), run, Some(f64::from(PER_SECOND)));
    load.with_context(|| format!("load on {}", subject.name))
}

/// Scripts that it was called for so far.
pub(super) fn calls(redis: &Redis) -> anyhow::Result<f64> {
    let said = redis.ask(&["INFO", "commandstats"])?;
    let line = said.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    let Some((calls, _)) = line.and_then(|line| line.split_once(',')) else { return Ok(0.0) };
    Ok(calls.parse()?)
}

/// The median and the 99th percentile of so many, in microseconds.
fn round_trips(redis: SocketAddr, count: u32) -> anyhow::Result<[f64; 2]> {
    let mut stream = TcpStream::connect_timeout(&redis, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        stream.write_all(PING)?;
        let mut answer = [0; PONG.len()];
        stream.read_exact(&mut answer)?;
        let took = began.elapsed();
        ensure!(answer == *PONG, "Redis answered {answer:?}");
        times.push(took.as_nanos() as f64 / 1000.0);
        // At the same pace as the requests: who has slept wakes up slowly.
        thread::sleep(Duration::from_secs(1) / PER_SECOND);
    }
    times.sort_by(f64::total_cmp);
    Ok([quantile(&times, 50)?, quantile(&times, 99)?])
}
