//! Clock jumps, forward and backward, through the real binary: evidence, bans and what lifting has taught go by clocks
//! that nobody can set.
#![expect(clippy::indexing_slicing, reason = "helpers of tests fail like tests")]

use std::net::SocketAddr;
use std::time::SystemTime;

use anyhow::Context as _;
use harness::bans::{self, Connecting, PATIENCE};
use harness::gateway::Gateway;
use harness::topology::{Host, Topology};
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

/// So much is missed until somebody is banned.
const COUNT: usize = 20;
const DAY: i64 = 24 * 60 * 60;
const BAN_MS: u64 = 10 * 60 * 1000;

fn start(hosts: &Topology) -> Result<Gateway<'_>> {
    let mut config = hosts.config(SocketAddr::new(hosts.upstream.v4(), 9000));
    config["routes"] = json!([{"match": {"path": "/ok"}, "respond": {"body": "ok"}}]);
    config["upstreams"] = json!({});
    config["feedback"] = json!({"rules": [{
        "name": "lost",
        "when": {"signal": "not_found", "count": COUNT, "per": "1h"},
        "ban": {"for": "10m"},
    }]});
    let mut gateway = Gateway::new(&hosts.gateway, config)?.with_wall_clock()?;
    gateway.start()?;
    Ok(gateway)
}

fn miss(host: &Host, times: usize) -> Result {
    bans::miss(&mut bans::connect(&host.namespace, host.v4(), host.target())?, times)
}

/// The wall clock of a gateway that is so far ahead. (milliseconds)
fn wall_ms(ahead_seconds: i64) -> Result<u64> {
    #[expect(clippy::disallowed_methods, reason = "it is the clock that this is about")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
    u64::try_from(now)?.checked_add_signed(ahead_seconds * 1000).context("before all time")
}

/// Waits until the gateway has looked for what is over, by something that is.
fn looks_for_what_is_over(gateway: &Gateway<'_>) -> Result {
    let trail = gateway.config().with_file_name("state").join("audit.jsonl");
    let expired = || -> Result<usize> {
        Ok(std::fs::read_to_string(&trail)?.matches("\"what\":\"expired\"").count())
    };
    let before = expired()?;
    gateway.cli(&["ban", "203.0.113.9", "--for", "1s", "--reason", "short"])?.ok()?;
    wait_for("what is short to be over", PATIENCE, || Ok((expired()? > before).then_some(())))
}

#[test]
fn clock_jumps_make_no_evidence_and_take_none() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let gateway = start(&hosts)?;
    let attacker = &hosts.attacker;
    miss(attacker, COUNT / 2)?;
    bans::noticed(&gateway, "not_found", COUNT as u64 / 2)?;
    gateway.set_wall_clock(DAY)?;
    miss(attacker, COUNT / 2 - 1)?;
    bans::noticed(&gateway, "not_found", COUNT as u64 - 1)?;
    assert_eq!(bans::prefixes(&gateway)?, Vec::<String>::new());
    gateway.set_wall_clock(-DAY)?;
    miss(attacker, 1)?;
    let ban = bans::made(&gateway, &attacker.v4().to_string())?;
    assert_eq!(ban.pointer("/story/score"), Some(&json!(COUNT as f64)));
    let why = bans::why(&gateway, attacker.v4())?;
    let signals = why.pointer("/bans/0/story/signals").and_then(Value::as_array);
    let times: Vec<u64> =
        signals.into_iter().flatten().filter_map(|signal| signal["at"].as_u64()).collect();
    let day_ms = DAY.unsigned_abs() * 1000;
    let (first, last) = (times[0], times[times.len() - 1]);
    assert!(first > last + day_ms / 2, "the gateway goes by the clock of the test: {times:?}");
    Ok(())
}

#[test]
fn clock_jumps_end_no_ban_and_prolong_none_also_over_a_restart() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let mut gateway = start(&hosts)?;
    let attacker = &hosts.attacker;
    let source = attacker.v4().to_string();
    miss(attacker, COUNT)?;
    bans::made(&gateway, &source)?;
    for ahead in [DAY, -DAY] {
        gateway.set_wall_clock(ahead)?;
        for _ in 0..2 {
            looks_for_what_is_over(&gateway)?;
            let target = attacker.target();
            let done = bans::connecting(&attacker.namespace, attacker.v4(), target)?;
            assert_eq!(done, Connecting::Silence, "{ahead}");
            assert_eq!(bans::prefixes(&gateway)?, [source.as_str()], "{ahead}");
            let until = bans::list(&gateway, &[])?[0]["until_utc_ms"].as_u64();
            let left = until.context("no end")?.saturating_sub(wall_ms(ahead)?);
            assert!((1..=BAN_MS).contains(&left), "{left} ms");
            gateway.kill9()?;
            gateway.start()?;
        }
    }
    gateway.cli(&["bans", "lift", &source])?.ok()?;
    // What lifting has taught is known, an hour or a day later by that clock.
    gateway.set_wall_clock(DAY)?;
    gateway.kill9()?;
    gateway.start()?;
    miss(attacker, 2 * COUNT - 1)?;
    bans::noticed(&gateway, "not_found", 2 * COUNT as u64 - 1)?;
    assert_eq!(bans::prefixes(&gateway)?, Vec::<String>::new());
    miss(attacker, 1)?;
    bans::made(&gateway, &source)?;
    Ok(())
}
