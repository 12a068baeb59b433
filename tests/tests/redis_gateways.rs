//! Several gateways that count together in one Redis, through the real binary: what they give together, and what a
//! client meets while Redis is paused, gone or back.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harness::client::Client;
use harness::gateway::Gateway;
use harness::metrics::{Page, family};
use harness::redis::Redis as Server;
use harness::{Result, wait_for};
use serde_json::{Value, json};

const DOCUMENTED: &str = include_str!("../../docs/metrics.md");
const PATIENCE: Duration = Duration::from_secs(20);

fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A gateway with these limits on its only route.
fn config(address: SocketAddr, server: &Server, limits: &Value) -> Value {
    json!({
        "listen": [{"address": address.to_string()}],
        "workers": 2,
        "state": {"redis": {"addresses": [server.address.to_string()], "timeout": "300ms"}},
        "routes": [{"match": {"path": "/{rest*}"}, "limits": limits, "respond": {"status": 204}}],
    })
}

fn status(address: SocketAddr) -> Result<u16> {
    Ok(Client::connect_here(None, address, PATIENCE)?.get("/")?.status)
}

/// How often a command was given.
fn calls(server: &Server, command: &str) -> Result<u64> {
    let all = server.ask(&["INFO", "commandstats"])?;
    let start = format!("cmdstat_{command}:calls=");
    let count = all.lines().find_map(|line| line.strip_prefix(&start)?.split(',').next());
    Ok(count.unwrap_or("0").parse()?)
}

#[test]
fn gateways_give_together_what_a_limit_says_and_go_on_without_redis_as_configured() -> Result {
    let mut server = Server::start()?;
    let limits = json!([
        {"name": "shared", "per": "global", "rate": "10/24h", "count": "redis"},
        {"name": "strict", "per": "client_address", "rate": "1000/24h", "count": "redis"},
        {"name": "own", "per": "global", "rate": "1000/s"},
    ]);
    let (one, two) = (free_address()?, free_address()?);
    let mut gateways = Vec::new();
    for address in [one, two] {
        let mut gateway = Gateway::unprivileged(None, config(address, &server, &limits))?;
        gateway.start()?;
        gateways.push(gateway);
    }
    let statuses = |count: usize| -> Result<Vec<u16>> {
        (0..count).map(|number| status(if number % 2 == 0 { one } else { two })).collect()
    };
    assert_eq!(statuses(10)?, [204; 10]);
    assert_eq!(statuses(4)?, [429; 4]);
    let answer = Client::connect_here(None, one, PATIENCE)?.get("/")?;
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert_eq!(answer.header("x-ratelimit-remaining"), Some("0"));

    // Without Redis each gateway counts by itself, and nobody is told that his credential is bad.
    server.kill()?;
    wait_for("counting in process", PATIENCE, || Ok((status(one)? == 204).then_some(())))?;
    let page = Page::of(&gateways[0].cli(&["metrics"])?.ok()?.stdout)?;
    let fallbacks = page.value(r#"gateway_limit_fallbacks_total{limit="shared",fallback="local"}"#);
    assert!(fallbacks > Some(0), "{page:?}");
    let names = page.samples.keys().map(|series| family(series));
    for name in names.filter(|name| name.contains("_redis_") || name.contains("_fallbacks_")) {
        assert!(DOCUMENTED.contains(&format!("`{name}`")), "{name} is not documented");
    }
    // It refuses instead, where that is what the configuration says.
    let strict = json!([
        {"per": "global", "rate": "10/24h", "count": "redis", "when_unavailable": "refuse"},
    ]);
    gateways[0].write_config(config(one, &server, &strict))?;
    gateways[0].cli(&["reload"])?.ok()?;
    assert_eq!(status(one)?, 503);
    server.start_again()?;
    // Back by itself, and counting together from the beginning, for Redis is another one.
    wait_for("Redis", PATIENCE, || Ok((status(one)? == 204).then_some(())))?;
    for gateway in &mut gateways {
        gateway.stop()?;
    }
    Ok(())
}

#[test]
fn a_redis_that_hangs_costs_a_client_no_more_than_deadlines() -> Result {
    let server = Server::start()?;
    let limits = json!([
        {"per": "global", "rate": "1000000/s", "count": "redis", "when_unavailable": "refuse"},
        {"name": "at-once", "per": "client_address", "concurrency": 10, "count": "redis"},
        {"name": "a-day", "per": "client_address", "quota": "1000/day", "count": "redis"},
    ]);
    let address = free_address()?;
    let mut gateway = Gateway::unprivileged(None, config(address, &server, &limits))?;
    gateway.start()?;
    for _ in 0..5 {
        assert_eq!(status(address)?, 204);
    }
    assert_eq!(calls(&server, "evalsha")?, 5, "one call a request");
    assert_eq!(calls(&server, "eval")?, 1, "and the first once more, with the script");
    server.pause()?;
    for _ in 0..50 {
        assert_eq!(status(address)?, 503);
    }
    server.resume()?;
    wait_for("Redis", PATIENCE, || Ok((status(address)? == 204).then_some(())))?;
    gateway.stop()
}

/// Of `secret`, by crypt(3).
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

#[test]
fn a_request_is_one_call_unless_a_costly_credential_is_checked_in_between() -> Result {
    let (server, folder) = (Server::start()?, tempfile::tempdir()?);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let users = folder.path().join("users");
    fs::write(&users, format!("ann:{HASH}\n"))?;
    let address = free_address()?;
    let route = |path: &str, auth: Value| {
        json!({"match": {"path": path}, "auth": auth, "respond": {"status": 204},
               "limits": [{"per": "route", "rate": "1000/24h", "count": "redis"}]})
    };
    let mut gateway = Gateway::unprivileged(
        None,
        json!({
            "listen": [{"address": address.to_string()}],
            "workers": 2,
            "kernel": {"attach": "off"},
            "state": {"redis": {"addresses": [server.address.to_string()], "timeout": "1s"}},
            "auth": {"keys": {"api_key": {}}, "admins": {"basic": {"htpasswd": users}}},
            "limits": [{"per": "client_address", "rate": "40/24h", "count": "redis"}],
            "plans": {"free": {"limits": [{"per": "consumer", "rate": "1000/24h", "count": "redis"}]}},
            "limiting": {"default_plan": "free"},
            "routes": [
                route("/open", json!("anonymous")), route("/keys", json!("keys")),
                route("/admins", json!("admins")), route("/either", json!(["keys", "admins"])),
            ],
        }),
    )?;
    gateway.start()?;
    let made = gateway.cli(&["keys", "create", "--consumer", "acme", "--json"])?.ok()?.json()?;
    let key = format!("X-API-Key: {}\r\n", made["key"].as_str().unwrap_or_default());
    let [right, wrong] = ["ann:secret", "ann:guess"]
        .map(|pair| format!("Authorization: Basic {}\r\n", STANDARD.encode(pair)));
    let ask = |path: &str, field: &str| {
        let mut client = Client::connect_here(None, address, PATIENCE)?;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n{field}\r\n").as_bytes())?;
        Ok::<_, anyhow::Error>(client.receive()?.status)
    };
    assert_eq!(ask("/open", "")?, 204, "the script is known now");
    for (path, field, status, wanted) in [
        ("/open", "", 204, 1),
        ("/keys", &*key, 204, 1),
        ("/keys", "X-API-Key: guess\r\n", 401, 1),
        ("/admins", &right, 204, 2),
        ("/admins", &wrong, 401, 1),
        ("/either", &key, 204, 2),
    ] {
        let before = calls(&server, "evalsha")?;
        for _ in 0..5 {
            assert_eq!(ask(path, field)?, status, "{path} {field}");
        }
        assert_eq!(calls(&server, "evalsha")? - before, 5 * wanted, "{path} {field}");
    }
    // Of the limit by address 31 are taken, and whoever guesses takes of it as well.
    let guesses = (0..12).map(|_| ask("/keys", "X-API-Key: guess\r\n"));
    let guesses = guesses.collect::<Result<Vec<_>>>()?;
    assert_eq!(guesses, [[401; 9].as_slice(), &[429; 3]].concat());
    assert_eq!([ask("/open", "")?, ask("/keys", &key)?, ask("/admins", &right)?], [429; 3]);
    gateway.stop()
}

/// Four gateways that tell each other every 100 ms what they gave away. Each alone would give the whole quota.
#[test]
fn synchronised_gateways_stop_soon_after_the_limit_and_nothing_waits_for_redis() -> Result {
    const LIMIT: usize = 60;
    let mut server = Server::start()?;
    let limits = json!([
        {"name": "quota", "per": "global", "quota": format!("{LIMIT}/day"), "count": "synchronised"},
        {"name": "bucket", "per": "client_address", "rate": "1000/24h", "count": "synchronised"},
    ]);
    let mut gateways = Vec::new();
    for _ in 0..4 {
        let address = free_address()?;
        let mut gateway = Gateway::unprivileged(None, config(address, &server, &limits))?;
        gateway.start()?;
        gateways.push((address, gateway));
    }
    let mut given = 0;
    wait_for("an end of the quota everywhere", PATIENCE, || {
        let mut refused = 0;
        for (address, _) in &gateways {
            match status(*address)? {
                429 => refused += 1,
                _ => given += 1,
            }
        }
        Ok((refused == gateways.len()).then_some(()))
    })?;
    println!("{given} of {LIMIT} were given by four gateways");
    assert!((LIMIT..=2 * LIMIT).contains(&given), "{given}");
    let page = Page::of(&gateways[0].1.cli(&["metrics"])?.ok()?.stdout)?;
    assert_eq!(page.value("gateway_limit_unreported_total"), Some(0), "{page:?}");
    assert!(DOCUMENTED.contains("`gateway_limit_unreported_total`"));
    // Another gateway learns of it as soon as it gives something away itself.
    let address = free_address()?;
    let mut late = Gateway::unprivileged(None, config(address, &server, &limits))?;
    late.start()?;
    wait_for("the end of the quota", PATIENCE, || {
        given += usize::from(status(address)? == 204);
        Ok((status(address)? == 429).then_some(()))
    })?;
    assert!(given <= 3 * LIMIT, "{given}");
    // Without Redis it goes on by itself.
    server.kill()?;
    assert_eq!(status(address)?, 429);
    for (_, mut gateway) in gateways {
        gateway.stop()?;
    }
    late.stop()
}
