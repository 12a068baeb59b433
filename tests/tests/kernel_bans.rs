//! The loop through the real binary: what a client does at the second door shuts the first one, is told, is taken back,
//! and never hits whom it must not.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::client::Client;
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

const BAD: &str = "127.0.0.2";
const GOOD: &str = "127.0.0.3";
const PATIENCE: Duration = Duration::from_secs(10);
/// So often a credential may be refused.
const COUNT: usize = 20;

fn host() -> Result<Namespace> {
    Namespace::new("host")
}

/// A gateway on the loopback that asks for API keys and bans who has wrong ones.
fn config(feedback: Value, kernel: Value) -> Value {
    let mut rules = json!({"rules": [{
        "name": "stuffing",
        "when": {"signal": "auth_failed", "count": COUNT, "per": "10m"},
        "ban": {"for": "10m", "doubling_up_to": "1h"},
    }]});
    let mut merged = json!({"interfaces": ["lo"]});
    for (into, more) in [(&mut rules, feedback), (&mut merged, kernel)] {
        if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
            into.extend(more);
        }
    }
    json!({
        "listen": [{"address": "127.0.0.1:8080"}],
        "trusted_proxies": ["127.0.0.9/32"],
        "kernel": merged,
        "auth": {"keys": {"api_key": {}}},
        "upstreams": {"echo": {"endpoints": ["echo"]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "echo", "auth": "keys"}],
        "feedback": rules,
    })
}

fn connect(host: &Namespace, source: &str, patience: Duration) -> Result<Client> {
    let target: SocketAddr = "127.0.0.1:8080".parse()?;
    Client::connect(host, Some(source.parse::<IpAddr>()?), target, patience)
}

/// Whether a connection is made: the kernel door drops it before it can be.
fn connects(host: &Namespace, source: &str) -> bool {
    connect(host, source, Duration::from_millis(500)).is_ok()
}

/// A request with a wrong key over an open connection; answers the status.
fn wrong(client: &mut Client, forwarded: Option<&str>) -> Result<u16> {
    let forwarded = forwarded.map(|client| format!("x-forwarded-for: {client}\r\n"));
    let key = "gw_live_0000000000000000000000000000000000000";
    client.send(
        format!(
            "GET /a HTTP/1.1\r\nhost: test\r\nx-api-key: {key}\r\n{}\r\n",
            forwarded.unwrap_or_default()
        )
        .as_bytes(),
    )?;
    Ok(client.receive()?.status)
}

/// So many wrong keys over one connection, which stays open.
fn guess(host: &Namespace, source: &str, times: usize) -> Result<Client> {
    let mut client = connect(host, source, PATIENCE)?;
    for _ in 0..times {
        assert_eq!(wrong(&mut client, None)?, 401);
    }
    Ok(client)
}

fn bans(gateway: &Gateway<'_>, more: &[&str]) -> Result<Vec<Value>> {
    gateway.cli(&[&["bans", "list", "--json"], more].concat())?.ok()?.json_lines()
}

fn banned(gateway: &Gateway<'_>) -> Result<Value> {
    wait_for("the ban", PATIENCE, || Ok(bans(gateway, &[])?.into_iter().next()))
}

fn held(gateway: &Gateway<'_>) -> Result<Value> {
    wait_for("the decision", PATIENCE, || Ok(bans(gateway, &["--held"])?.into_iter().next()))
}

fn why(gateway: &Gateway<'_>, address: &str) -> Result<Value> {
    gateway.cli(&["why", address, "--json"])?.ok()?.json()
}

/// Waits until everything that was done so far has been scored: the last signal is one of this source.
fn scored(gateway: &Gateway<'_>, address: &str, times: usize) -> Result {
    wait_for("the score", PATIENCE, || {
        let why = why(gateway, address)?;
        let score = why.pointer("/scores/0/scores/0/score").and_then(Value::as_f64);
        Ok((score >= Some(times as f64)).then_some(()))
    })
}

fn trail(gateway: &Gateway<'_>) -> Result<Vec<Value>> {
    let path = gateway.config().with_file_name("state").join("audit.jsonl");
    let text = std::fs::read_to_string(path)?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn told(gateway: &Gateway<'_>, what: &str) -> Result<Value> {
    wait_for("the audit trail", PATIENCE, || {
        Ok(trail(gateway)?.into_iter().find(|line| line["what"] == what))
    })
}

#[test]
fn wrong_credentials_shut_the_kernel_door_which_is_told_and_taken_back() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({}), json!({})))?;
    gateway.start()?;
    let _stays = guess(&host, GOOD, COUNT - 1)?;
    let mut idle = connect(&host, BAD, PATIENCE)?;
    assert_eq!(wrong(&mut idle, None)?, 401);
    drop(guess(&host, BAD, COUNT - 1)?);
    let ban = banned(&gateway)?;
    assert_eq!((&ban["prefix"], &ban["rule"]), (&json!(BAD), &json!("stuffing")));
    assert_eq!((&ban["place"], &ban["enforced"]), (&json!("kernel"), &json!("both")));
    assert!(!connects(&host, BAD), "its packets are dropped");
    wait_for("its connections to be closed", PATIENCE, || {
        let open = gateway.status()?.pointer("/proxy/connections/open").and_then(Value::as_u64);
        Ok((open == Some(1)).then_some(()))
    })?;
    assert!(connects(&host, GOOD), "one below the count");
    let story = why(&gateway, BAD)?;
    let ban = &story["bans"][0];
    assert!(ban["packets"].as_u64() > Some(0), "{story}");
    assert_eq!(ban["story"]["score"], json!(COUNT as f64));
    let signals = ban["story"]["signals"].as_array().map_or(0, Vec::len);
    assert_eq!(signals, 16, "the last ones, {story}");
    assert!(ban.pointer("/story/signals/0/request_id").is_some_and(Value::is_string), "{story}");
    assert_eq!(told(&gateway, "made")?["who"], "feedback");

    gateway.cli(&["bans", "lift", BAD])?.ok()?;
    assert!(connects(&host, BAD));
    let lifted = told(&gateway, "lifted")?;
    assert!(lifted["who"].as_str().is_some_and(|who| who.starts_with("user ")), "{lifted}");
    drop(guess(&host, BAD, COUNT)?);
    scored(&gateway, BAD, COUNT)?;
    assert_eq!(bans(&gateway, &[])?, Vec::<Value>::new(), "it takes twice the evidence");
    drop(guess(&host, BAD, COUNT)?);
    assert_eq!(banned(&gateway)?["times"], 1, "one that was lifted does not count");
    gateway.cli(&["bans", "forget", BAD])?.ok()?;
    assert!(connects(&host, BAD));
    assert_eq!(why(&gateway, BAD)?["bans"], json!([]));
    Ok(())
}

#[test]
fn a_ban_outlives_kill_9_a_successor_and_the_gateway_itself() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({}), json!({})))?;
    gateway.start()?;
    drop(guess(&host, BAD, COUNT)?);
    banned(&gateway)?;
    gateway.cli(&["bans", "pin", BAD])?.ok()?;
    gateway.kill9()?;
    assert!(!connects(&host, BAD), "the kernel goes on");
    let left = bans(&gateway, &[])?;
    assert_eq!((&left[0]["pinned"], &left[0]["enforced"]), (&json!(true), &json!("kernel")));
    gateway.start()?;
    assert!(!connects(&host, BAD));
    gateway.replace()?;
    assert_eq!(bans(&gateway, &[])?.len(), 1);
    assert!(!connects(&host, BAD));
    gateway.kill9()?;
    gateway.cli(&["bans", "lift", BAD])?.ok()?;
    assert!(connects_to_nobody(&host, BAD)?, "its packets pass again");
    assert!(told(&gateway, "lifted")?["who"].as_str() != Some("feedback"));
    gateway.start()?;
    assert!(connects(&host, BAD));
    assert_eq!(bans(&gateway, &[])?, Vec::<Value>::new());
    Ok(())
}

/// Whether a connection is refused by the host: nobody listens, and the packets arrive.
fn connects_to_nobody(host: &Namespace, source: &str) -> Result<bool> {
    let refused = connect(host, source, Duration::from_secs(2)).err();
    let error = refused.and_then(|error| {
        error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>().map(|io| io.kind()))
    });
    Ok(error == Some(std::io::ErrorKind::ConnectionRefused))
}

#[test]
fn a_ban_is_on_the_disk_within_moments_of_its_being_made() -> Result {
    require_root()?;
    let host = host()?;
    // Nothing in the kernel remembers it where there is no door.
    let mut gateway = Gateway::new(&host, config(json!({}), json!({"attach": "off"})))?;
    gateway.start()?;
    drop(guess(&host, BAD, COUNT)?);
    let ban = banned(&gateway)?;
    assert_eq!(ban["enforced"], "user space");
    // The bound that is promised.
    std::thread::sleep(Duration::from_millis(100));
    gateway.kill9()?;
    gateway.start()?;
    assert_eq!(bans(&gateway, &[])?[0]["prefix"], BAD);
    let mut client = connect(&host, BAD, PATIENCE)?;
    assert_eq!(client.read_to_end()?, b"", "it is closed before a request is read");
    Ok(())
}

#[test]
fn what_must_not_be_banned_is_not_and_whoever_is_allowed_later_is_let_in() -> Result {
    require_root()?;
    let host = host()?;
    let never = json!({"never_block": ["127.0.0.4/32"]});
    let mut gateway = Gateway::new(&host, config(json!({}), never))?;
    gateway.start()?;
    drop(guess(&host, "127.0.0.4", COUNT)?);
    gateway.cli(&["allow", "add", GOOD])?.ok()?;
    drop(guess(&host, GOOD, COUNT)?);
    let decision = held(&gateway)?;
    assert_eq!(decision["prefix"], GOOD, "of what is never blocked not even a signal counts");
    let note = decision["note"].as_str().unwrap_or_default();
    assert!(note.contains("which an operator allows"), "{note}");
    assert_eq!(told(&gateway, "refused")?["why"], note);
    assert!(connects(&host, GOOD) && connects(&host, "127.0.0.4"));
    drop(guess(&host, BAD, COUNT)?);
    banned(&gateway)?;
    assert!(!connects(&host, BAD));
    gateway.cli(&["allow", "add", "127.0.0.0/30"])?.ok()?;
    assert!(connects(&host, BAD), "an operator's word, also if it comes later");
    let ban = &bans(&gateway, &[])?[0];
    assert_eq!(ban["enforced"], "nowhere");
    Ok(())
}

#[test]
fn a_believed_address_is_kept_out_of_requests_and_no_packet_of_it_is_dropped() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({}), json!({})))?;
    gateway.start()?;
    let mut proxy = connect(&host, "127.0.0.9", PATIENCE)?;
    for _ in 0..COUNT {
        assert_eq!(wrong(&mut proxy, Some(BAD))?, 401);
    }
    let ban = banned(&gateway)?;
    assert_eq!((&ban["place"], &ban["enforced"]), (&json!("user_space"), &json!("user space")));
    let mut proxy = connect(&host, "127.0.0.9", PATIENCE)?;
    assert_eq!(wrong(&mut proxy, Some(BAD))?, 403);
    let mut proxy = connect(&host, "127.0.0.9", PATIENCE)?;
    assert_eq!(wrong(&mut proxy, Some(GOOD))?, 401, "others behind the proxy are not concerned");
    drop(guess(&host, BAD, 1)?);
    gateway.cli(&["bans", "lift", BAD])?.ok()?;
    let mut proxy = connect(&host, "127.0.0.9", PATIENCE)?;
    assert_eq!(wrong(&mut proxy, Some(BAD))?, 401);
    Ok(())
}

#[test]
fn in_a_dry_run_decisions_are_shown_and_counted_and_nobody_is_banned() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({"dry_run": true}), json!({})))?;
    gateway.start()?;
    drop(guess(&host, BAD, COUNT)?);
    assert_eq!(held(&gateway)?["note"], "dry_run");
    assert!(connects(&host, BAD));
    let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
    let series = "rule=\"stuffing\",measure=\"ban\",result=\"dry_run\"} 1";
    assert!(metrics.contains(series), "{metrics}");
    // The dry run of the kernel door: the rule is there and drops nothing.
    gateway.write_config(config(json!({}), json!({"dry_run": true})))?;
    gateway.cli(&["reload"])?.ok()?;
    drop(guess(&host, GOOD, COUNT)?);
    assert_eq!(banned(&gateway)?["enforced"], "nowhere");
    assert!(connects(&host, GOOD));
    Ok(())
}

#[test]
fn a_ban_ends_by_itself() -> Result {
    require_root()?;
    let host = host()?;
    let rules = json!({"rules": [{
        "name": "short",
        "when": {"signal": "auth_failed", "count": 3, "per": "1m"},
        "ban": {"for": "2s", "doubling_up_to": "2s"},
    }]});
    let mut gateway = Gateway::new(&host, config(rules, json!({})))?;
    gateway.start()?;
    drop(guess(&host, BAD, 3)?);
    assert_eq!(told(&gateway, "made")?["prefix"], BAD);
    assert_eq!(told(&gateway, "expired")?["prefix"], BAD);
    assert!(connects(&host, BAD));
    assert_eq!(bans(&gateway, &[])?, Vec::<Value>::new());
    Ok(())
}
