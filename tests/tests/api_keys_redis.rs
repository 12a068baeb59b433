//! API keys that several gateways share, with a real Redis: what one makes opens at the other, what one revokes is
//! refused there within a second, and without Redis nobody is told that a key is wrong.
#![expect(clippy::disallowed_methods, reason = "a second is as long as it says")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use gateway::shared::registry::FRESH;
use harness::gateway::Gateway;
use harness::metrics::Page;
use harness::redis::Redis;
use harness::site::PATIENCE;
use harness::{Result, client::Client, wait_for};
use serde_json::{Value, json};

/// A gateway that knows the keys in `redis`, and where it listens; `stale_for` as it is where it is not said.
fn gateway(redis: &Redis, stale_for: Option<&str>) -> Result<(Gateway<'static>, SocketAddr)> {
    let api_key = stale_for.map_or(
        json!({"registry": "redis"}),
        |time| json!({"registry": "redis", "stale_for": time}),
    );
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "state": {"redis": {
            "addresses": [redis.address.to_string()], "timeout": "1s", "connect_timeout": "5s",
        }},
        "auth": {"partners": {"api_key": api_key}},
        "routes": [{
            "match": {"path": "/{rest*}"}, "auth": "partners", "respond": {"status": 204},
        }],
    });
    let mut gateway = Gateway::unprivileged(None, config)?;
    gateway.start()?;
    Ok((gateway, listen))
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn create(gateway: &Gateway<'_>, consumer: &str) -> Result<Value> {
    // A connection comes back on its own time, as the answer says.
    wait_for("a new key", PATIENCE, || {
        let made = gateway.cli(&["keys", "create", "--consumer", consumer, "--json"])?;
        if made.stderr.contains("does not answer") {
            return Ok(None);
        }
        made.ok()?.json().map(Some)
    })
}

fn list(gateway: &Gateway<'_>, more: &[&str]) -> Result<Vec<Value>> {
    gateway.cli(&[&["keys", "list", "--json"], more].concat())?.ok()?.json_lines()
}

fn status(listen: SocketAddr, key: &Value) -> Result<u16> {
    let mut client = Client::connect_here(None, listen, PATIENCE)?;
    let key = text(key, "key");
    let request = format!("GET / HTTP/1.1\r\nHost: h\r\nX-API-Key: {key}\r\n\r\n");
    client.send(request.as_bytes())?;
    Ok(client.receive()?.status)
}

fn until(wanted: u16, listen: SocketAddr, key: &Value) -> Result {
    wait_for("another answer", Duration::from_secs(20), || {
        Ok((status(listen, key)? == wanted).then_some(()))
    })
}

#[test]
fn what_one_gateway_does_holds_at_the_other() -> Result {
    let redis = Redis::start()?;
    let ((one, at_one), (two, at_two)) =
        (gateway(&redis, Some("5m"))?, gateway(&redis, Some("5m"))?);
    let old = create(&one, "acme")?;
    for listen in [at_one, at_two] {
        until(204, listen, &old)?;
    }
    let new = two.cli(&["keys", "rotate", text(&old, "id"), "--json"])?.ok()?.json()?;
    for listen in [at_one, at_two] {
        until(204, listen, &new)?;
        ensure!(status(listen, &old)? == 204, "the time of grace is over too early");
    }
    let other = create(&one, "globex")?;
    assert_eq!(list(&two, &[])?.len(), 3);
    let of_globex = list(&two, &["--consumer", "globex"])?;
    assert_eq!(of_globex.len(), 1);
    assert!(of_globex.iter().all(|key| key.get("id") == other.get("id")));

    one.cli(&["keys", "revoke", text(&old, "id"), text(&other, "id")])?.ok()?;
    let revoked = Instant::now();
    // Within a second, and a machine that is busy may take longer to ask.
    while status(at_two, &old)? != 401 {
        ensure!(revoked.elapsed() < Duration::from_secs(5), "it still opens the other gateway");
    }
    until(401, at_one, &old)?;
    assert_eq!(status(at_two, &new)?, 204);
    one.cli(&["keys", "rotate", text(&old, "id")])?.refused(1, "is revoked")?;
    let everything = redis.ask(&["KEYS", "*"])? + &one.log() + &two.log();
    assert!(!everything.contains(text(&new, "key")), "a key has leaked");
    Ok(())
}

#[test]
fn explain_looks_keys_up_where_they_are() -> Result {
    let mut redis = Redis::start()?;
    let (gateway, _) = gateway(&redis, Some("5m"))?;
    let key = create(&gateway, "acme")?;
    let config = gateway.config().display().to_string();
    let explain = |key: &str| {
        let field = format!("X-API-Key: {key}");
        let arguments = ["explain", &config, "GET", "http://h/", "-H", &field, "--json"];
        gateway.cli(&arguments)?.ok()?.json()
    };
    let found = explain(text(&key, "key"))?;
    assert_eq!((&found["caller"]["consumer"], &found["status"]), (&json!("acme"), &json!(204)));
    gateway.cli(&["keys", "revoke", text(&key, "id")])?.ok()?;
    let found = explain(text(&key, "key"))?;
    assert_eq!(found["caller"]["reason"], "revoked API key");
    redis.kill()?;
    let found = explain(text(&key, "key"))?;
    assert_eq!(found["caller"]["outcome"], "unavailable");
    Ok(())
}

#[test]
fn without_redis_remembered_keys_go_on_for_a_while_and_none_is_called_wrong() -> Result {
    let mut redis = Redis::start()?;
    let ((lasting, at_lasting), (_brief, at_brief)) =
        (gateway(&redis, Some("1h"))?, gateway(&redis, None)?);
    let [known, unknown] = [create(&lasting, "acme")?, create(&lasting, "acme")?];
    until(204, at_lasting, &known)?;
    // The state that it is remembered by is the one after the second key.
    std::thread::sleep(FRESH * 2);
    for listen in [at_lasting, at_brief] {
        until(204, listen, &known)?;
    }
    redis.kill()?;
    until(503, at_brief, &known)?;
    until(503, at_lasting, &unknown)?;
    assert_eq!(status(at_lasting, &known)?, 204, "it is remembered");
    wait_for("an alarm", PATIENCE, || {
        let page = Page::of(&lasting.cli(&["metrics"])?.ok()?.stdout)?;
        let unknown = page.value(r#"gateway_api_keys_unknown_seconds{authenticator="partners"}"#);
        let is_said = lasting.log().contains("keys that are remembered go on, revoked ones too");
        Ok((unknown > Some(0) && is_said).then_some(()))
    })?;
    lasting.cli(&["keys", "create", "--consumer", "acme"])?.refused(1, "does not answer")?;
    redis.start_again()?;
    // It comes back without its keys.
    until(401, at_brief, &known)?;
    until(401, at_lasting, &known)?;
    let again = create(&lasting, "acme")?;
    until(204, at_brief, &again)
}

#[test]
fn a_revocation_that_was_heard_of_holds_without_redis_whatever_is_stale() -> Result {
    let mut redis = Redis::start()?;
    let ((lasting, at_lasting), (other, _)) =
        (gateway(&redis, Some("1h"))?, gateway(&redis, Some("1h"))?);
    let [revoked, kept] = [create(&lasting, "acme")?, create(&lasting, "acme")?];
    std::thread::sleep(FRESH * 2);
    until(204, at_lasting, &revoked)?;
    // Nobody asks at this gateway between the change and the end of Redis, so no request has shown it the change.
    other.cli(&["keys", "revoke", text(&revoked, "id")])?.ok()?;
    std::thread::sleep(FRESH * 2);
    redis.kill()?;
    std::thread::sleep(FRESH * 2);
    assert_eq!(status(at_lasting, &revoked)?, 503);
    assert_eq!(status(at_lasting, &kept)?, 503, "what it was remembered by has changed");
    Ok(())
}

#[test]
fn a_registry_without_a_redis_is_a_mistake_in_the_configuration() -> Result {
    let config = json!({
        "listen": [{"address": "127.0.0.1:1"}],
        "auth": {"partners": {"api_key": {"registry": "redis"}}},
    });
    let mut gateway = Gateway::unprivileged(None, config)?;
    let refused = gateway.start_refused()?;
    refused.refused(2, "there is no Redis to keep keys in")
}
