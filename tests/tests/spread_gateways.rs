//! Three gateways that tell each other about sources, through the real binary and a real Redis: what one bans or lifts,
//! all do, but for what one of them protects.

use std::time::Duration;

use harness::gateway::Gateway;
use harness::metrics::{Page, family};
use harness::redis::Redis;
use harness::{Result, wait_for};
use serde_json::{Value, json};

const DOCUMENTED: &str = include_str!("../../docs/metrics.md");
const PATIENCE: Duration = Duration::from_secs(30);
const KEY: &str = "0123456789abcdef0123456789abcdef";

fn config(redis: &Redis, never_block: &[&str], key: &str) -> Result<Value> {
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok(json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {"attach": "off", "never_block": never_block},
        "state": {"redis": {
            "addresses": [redis.address.to_string()], "timeout": "1s", "connect_timeout": "2s",
        }},
        "feedback": {"spread": {"key": {"file": key}}},
        "routes": [{"match": {"path": "/{rest*}"}, "respond": {"status": 204}}],
    }))
}

fn is_banned(gateway: &Gateway<'_>, address: &str) -> Result<bool> {
    let bans = gateway.cli(&["bans", "list", "--json"])?.ok()?.json_lines()?;
    Ok(bans.iter().any(|ban| ban.get("prefix").and_then(Value::as_str) == Some(address)))
}

/// Waits until it is so at all of them.
fn until(gateways: &[Gateway<'_>], address: &str, banned: bool) -> Result {
    wait_for(&format!("{address} banned: {banned}"), PATIENCE, || {
        for gateway in gateways {
            if is_banned(gateway, address)? != banned {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

fn ban(gateway: &Gateway<'_>, address: &str) -> Result {
    gateway.cli(&["ban", address, "--for", "1h", "--reason", "ssh", "--from", "watcher"])?.ok()?;
    Ok(())
}

#[test]
fn what_one_gateway_does_all_do_but_for_what_is_protected_there() -> Result {
    let mut redis = Redis::start()?;
    let folder = tempfile::tempdir()?;
    let key = folder.path().join("key");
    std::fs::write(&key, KEY)?;
    for path in [folder.path(), &key] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode)?;
    }
    let key = key.display().to_string();
    let mut gateways = Vec::new();
    for never_block in [&[][..], &[], &["203.0.113.8/31"]] {
        let mut gateway = Gateway::unprivileged(None, config(&redis, never_block, &key)?)?;
        gateway.start()?;
        gateways.push(gateway);
    }
    let [one, two, three] = gateways.as_slice() else { unreachable!() };
    ban(one, "203.0.113.7")?;
    until(&gateways, "203.0.113.7", true)?;
    let why = three.cli(&["why", "203.0.113.7"])?.ok()?.stdout;
    assert!(why.contains("ssh") && why.contains("gateway "), "{why}");

    // The guard there holds, and it is shown.
    ban(two, "203.0.113.9")?;
    until(&gateways[..2], "203.0.113.9", true)?;
    wait_for("it is shown where it is not done", PATIENCE, || {
        let held = three.cli(&["bans", "list", "--held", "--json"])?.ok()?.stdout;
        Ok(held.contains("203.0.113.9").then_some(()))
    })?;
    assert!(!is_banned(three, "203.0.113.9")?);
    // It is tried again when that protection ends, unless it was taken back meanwhile.
    ban(two, "203.0.113.8")?;
    two.cli(&["bans", "lift", "203.0.113.8"])?.ok()?;
    three.write_config(config(&redis, &[], &key)?)?;
    three.cli(&["reload"])?.ok()?;
    until(&gateways, "203.0.113.9", true)?;
    until(&gateways, "203.0.113.8", false)?;

    // Taken back by another one than made it.
    three.cli(&["bans", "lift", "203.0.113.7"])?.ok()?;
    until(&gateways, "203.0.113.7", false)?;

    // Both sides change without Redis, and agree with an empty one.
    redis.kill()?;
    ban(one, "203.0.113.10")?;
    ban(two, "203.0.113.11")?;
    two.cli(&["bans", "lift", "203.0.113.9"])?.ok()?;
    redis.start_again()?;
    until(&gateways, "203.0.113.10", true)?;
    until(&gateways, "203.0.113.11", true)?;
    until(&gateways, "203.0.113.9", false)?;
    let page = Page::of(&one.cli(&["metrics"])?.ok()?.stdout)?;
    assert_eq!(page.value("gateway_feedback_spread_up"), Some(1));
    let names = page.samples.keys().map(|series| family(series));
    for name in names.filter(|name| name.contains("_spread_")) {
        assert!(DOCUMENTED.contains(&format!("`{name}`")), "{name} is not documented");
    }
    assert_eq!(one.status()?.pointer("/spread/up"), Some(&json!(true)));

    // A pin, and a gateway that comes back after it.
    let mut gateways = gateways;
    gateways[2].kill9()?;
    gateways[0].cli(&["bans", "pin", "203.0.113.10"])?.ok()?;
    gateways[0].cli(&["bans", "forget", "203.0.113.11"])?.ok()?;
    gateways[2].start()?;
    until(&gateways, "203.0.113.11", false)?;
    wait_for("a pin everywhere", PATIENCE, || {
        for gateway in &gateways {
            let bans = gateway.cli(&["bans", "list", "--json"])?.ok()?.json_lines()?;
            if !bans.iter().any(|ban| ban.get("pinned") == Some(&json!(true))) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

#[test]
fn who_has_another_key_is_not_believed() -> Result {
    let redis = Redis::start()?;
    let folder = tempfile::tempdir()?;
    let mode = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), mode())?;
    let mut gateways = Vec::new();
    for (name, secret) in [("a", KEY.to_owned()), ("b", KEY.replace('0', "1"))] {
        let key = folder.path().join(name);
        std::fs::write(&key, secret)?;
        std::fs::set_permissions(&key, mode())?;
        let key = key.display().to_string();
        let mut gateway = Gateway::unprivileged(None, config(&redis, &[], &key)?)?;
        gateway.start()?;
        gateways.push(gateway);
    }
    ban(&gateways[0], "203.0.113.7")?;
    let forged = r#"gateway_feedback_spread_refused_total{reason="forged"}"#;
    wait_for("a message that is refused", PATIENCE, || {
        let page = Page::of(&gateways[1].cli(&["metrics"])?.ok()?.stdout)?;
        Ok((page.value(forged) > Some(0)).then_some(()))
    })?;
    assert!(!is_banned(&gateways[1], "203.0.113.7")?);
    // A key that is none is a mistake that is found before anything changes.
    std::fs::write(folder.path().join("b"), "short")?;
    gateways[1].cli(&["reload"])?.refused(2, "feedback.spread")?;
    std::fs::write(folder.path().join("b"), KEY)?;
    gateways[1].cli(&["reload"])?.ok()?;
    until(&gateways, "203.0.113.7", true)
}
