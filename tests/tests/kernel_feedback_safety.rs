//! The default rules through the real binary between hosts: what each attack over real connections comes to, and whom
//! it never hits.
#![expect(clippy::indexing_slicing, reason = "helpers of tests fail like tests")]

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use harness::bans::{self, Connecting, PATIENCE};
use harness::client::Client;
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use harness::topology::{Host, Topology};
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

/// What `credential_stuffing` takes within a minute.
const STUFFING: usize = 20;
/// What `distributed_credential_stuffing` takes of a prefix within ten.
const DISTRIBUTED: usize = 200;
const SSH: u16 = 22;

const WRONG: &str = "x-api-key: gw_live_0000000000000000000000000000000000000\r\n";

fn start(hosts: &Topology) -> Result<Gateway<'_>> {
    let mut config = hosts.config(SocketAddr::new(hosts.upstream.v4(), 9000));
    // Answers of a program in native mode take one at the other end of a veth pair.
    config["kernel"]["attach"] = json!("generic");
    config["upstreams"] = json!({});
    config["auth"] = json!({"keys": {"api_key": {}}});
    config["routes"] = json!([
        {"match": {"path": "/ok"}, "auth": "anonymous", "respond": {"body": "ok"}},
        {"match": {"path": "/few"}, "auth": "anonymous", "respond": {"body": "ok"},
         "limits": [{"per": "client_address", "rate": "1/h burst 5"}]},
        {"match": {"path": "/known"}, "auth": "keys", "respond": {"body": "ok"}},
    ]);
    config["feedback"] = json!({});
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    Ok(gateway)
}

fn connect(host: &Host, source: IpAddr) -> Result<Client> {
    bans::connect(&host.namespace, source, host.target())
}

fn is_served(host: &Host) -> Result {
    let status = bans::get(&mut connect(host, host.v4())?, "/ok", "")?;
    ensure!(status == 200, "{status}");
    Ok(())
}

/// So many wrong keys over one connection.
fn guess(host: &Host, source: IpAddr, times: usize) -> Result {
    let mut client = connect(host, source)?;
    for _ in 0..times {
        let status = bans::get(&mut client, "/known", WRONG)?;
        ensure!(status == 401, "{status}");
    }
    Ok(())
}

/// A field with a new key of a consumer.
fn key(gateway: &Gateway<'_>, consumer: &str) -> Result<String> {
    let made = gateway.cli(&["keys", "create", "--consumer", consumer, "--json"])?.ok()?.json()?;
    let key = made.get("key").and_then(Value::as_str).context("no key")?;
    Ok(format!("x-api-key: {key}\r\n"))
}

fn becomes(host: &Host, source: IpAddr, what: Connecting) -> Result {
    let done = bans::connecting(&host.namespace, source, host.target())?;
    ensure!(done == what, "{source}: {done:?}, not {what:?}");
    Ok(())
}

#[test]
fn an_http_flood_is_reset_where_packets_arrive_and_nobody_else_is() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let gateway = start(&hosts)?;
    let attacker = &hosts.attacker;
    let neighbour = attacker.add_v4(9)?;
    let mut requests = 0;
    // Whoever does not hear 429 goes on until nobody answers.
    wait_for("the end of the flood", PATIENCE, || {
        let Ok(mut flood) = connect(attacker, attacker.v4()) else { return Ok(Some(())) };
        while bans::get(&mut flood, "/few", "").is_ok() {
            requests += 1;
            if requests % 50 == 0 {
                is_served(&hosts.client)?;
            }
        }
        Ok(None)
    })?;
    ensure!(requests > 100, "{requests}");
    let ban = bans::made(&gateway, &attacker.v4().to_string())?;
    assert_eq!((&ban["rule"], &ban["measure"]), (&json!("rate_limited"), &json!("reset")));
    becomes(attacker, attacker.v4(), Connecting::Refused)?;
    assert!(gateway.kernel_packets("reset_answered")? > 0);
    becomes(attacker, neighbour, Connecting::Made)?;
    is_served(&hosts.client)
}

#[test]
fn credential_stuffing_is_banned_from_one_source_and_from_many_of_a_network() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let gateway = start(&hosts)?;
    let attacker = &hosts.attacker;
    attacker.namespace.ip("route add local 198.18.0.0/15 dev lo")?;
    let honest = key(&gateway, "acme")?;
    let mut open = connect(&hosts.client, hosts.client.v4())?;
    assert_eq!(bans::get(&mut open, "/known", &honest)?, 200);

    guess(attacker, attacker.v4(), STUFFING)?;
    let ban = bans::made(&gateway, &attacker.v4().to_string())?;
    let told = (&ban["rule"], &ban["measure"], &ban["enforced"]);
    assert_eq!(told, (&json!("credential_stuffing"), &json!("ban"), &json!("both")));
    becomes(attacker, attacker.v4(), Connecting::Silence)?;

    // None of them does what one may not.
    let mut left = DISTRIBUTED;
    for host in 1.. {
        let times = left.min(STUFFING - 2);
        guess(attacker, [198, 18, 5, host].into(), times)?;
        left -= times;
        if left == 0 {
            break;
        }
    }
    let ban = bans::made(&gateway, "198.18.5.0/24")?;
    assert_eq!(ban["rule"], json!("distributed_credential_stuffing"));
    becomes(attacker, [198, 18, 5, 200].into(), Connecting::Silence)?;
    becomes(attacker, [198, 18, 6, 1].into(), Connecting::Made)?;
    assert_eq!(bans::list(&gateway, &[])?.len(), 2);
    assert_eq!(bans::get(&mut open, "/known", &honest)?, 200);
    Ok(())
}

#[test]
fn honest_callers_behind_the_same_nat_as_an_attacker_are_not_banned_with_it() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let gateway = start(&hosts)?;
    let nat = &hosts.client;
    let keys = [key(&gateway, "acme")?, key(&gateway, "globex")?];
    for key in &keys {
        assert_eq!(bans::get(&mut connect(nat, nat.v4())?, "/known", key)?, 200);
    }
    wait_for("both to be known", PATIENCE, || {
        let known = bans::known(&gateway, &format!("{}/32", nat.v4()), nat.v4())?;
        Ok((known.unwrap_or_default().get("consumers") == Some(&json!(2))).then_some(()))
    })?;
    guess(nat, nat.v4(), 3 * STUFFING)?;
    let held = bans::held(&gateway, &nat.v4().to_string())?;
    assert_eq!((&held["note"], &held["enforced"]), (&json!("shared"), &json!("nowhere")));
    bans::noticed(&gateway, "auth_failed", 3 * STUFFING as u64)?;
    assert_eq!(bans::prefixes(&gateway)?, Vec::<String>::new());
    for key in &keys {
        assert_eq!(bans::get(&mut connect(nat, nat.v4())?, "/known", key)?, 200);
    }
    assert_eq!(gateway.kernel_packets("deny")? + gateway.kernel_packets("reset")?, 0);
    Ok(())
}

/// What listens for SSH beside the gateway.
fn listener(namespace: &Namespace) -> Result<TcpListener> {
    Ok(namespace.enter(|| TcpListener::bind(("0.0.0.0", SSH)))??)
}

#[test]
fn whoever_has_a_session_on_a_management_port_is_not_banned_until_it_ends() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let ssh = listener(&hosts.gateway)?;
    let gateway = start(&hosts)?;
    let attacker = &hosts.attacker;
    let source = attacker.v4().to_string();
    let target = SocketAddr::new(attacker.gateway_v4(), SSH);
    let session = bans::connect(&attacker.namespace, attacker.v4(), target)?;
    let (accepted, _) = ssh.accept()?;
    // A command may be that of this session: from now on it is one, however young.
    let refused = gateway.cli(&["ban", &source, "--for", "1h", "--reason", "by hand"])?;
    refused.refused(1, "connected to a management port")?;
    guess(attacker, attacker.v4(), 2 * STUFFING)?;
    is_served(attacker)?;
    // What was done meanwhile is scored by the time that what another did is.
    guess(&hosts.client, hosts.client.v4(), STUFFING)?;
    bans::made(&gateway, &hosts.client.v4().to_string())?;
    assert_eq!(bans::prefixes(&gateway)?, [hosts.client.v4().to_string()]);

    drop((session, accepted));
    wait_for("the end of the session to be noticed", PATIENCE, || {
        let why = bans::why(&gateway, attacker.v4())?;
        Ok(why.get("rule").is_none_or(Value::is_null).then_some(()))
    })?;
    guess(attacker, attacker.v4(), STUFFING)?;
    bans::made(&gateway, &source)?;
    becomes(attacker, attacker.v4(), Connecting::Silence)?;
    let again = Client::connect(
        &attacker.namespace,
        Some(attacker.v4()),
        target,
        Duration::from_millis(700),
    );
    assert!(again.is_err(), "nor does it get to the management port");
    Ok(())
}

#[test]
fn a_ban_for_an_address_that_is_being_allowed_at_that_moment_never_shuts_it_out() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let gateway = start(&hosts)?;
    let attacker = &hosts.attacker;
    for round in 0..6 {
        let source = attacker.add_v4(10 + round)?;
        let text = source.to_string();
        let mut client = connect(attacker, source)?;
        for _ in 1..STUFFING {
            assert_eq!(bans::get(&mut client, "/known", WRONG)?, 401);
        }
        // Whichever comes first.
        std::thread::scope(|scope| -> Result {
            let allow = scope.spawn(|| gateway.cli(&["allow", "add", &text])?.ok());
            assert_eq!(bans::get(&mut client, "/known", WRONG)?, 401);
            allow.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(())
        })?;
        becomes(attacker, source, Connecting::Made)?;
        let was_banned = wait_for("the decision", PATIENCE, || {
            if bans::prefixes(&gateway)?.contains(&text) {
                return Ok(Some(true));
            }
            let held = bans::list(&gateway, &["--held"])?;
            let held = held.iter().find(|held| held["prefix"] == json!(text));
            let note = held.and_then(|held| held["note"].as_str());
            Ok(note.map(|note| note.contains("which an operator allows")).map(|said| !said))
        })?;
        becomes(attacker, source, Connecting::Made)?;
        gateway.cli(&["allow", "remove", &text])?.ok()?;
        let then = if was_banned { Connecting::Silence } else { Connecting::Made };
        becomes(attacker, source, then)?;
    }
    Ok(())
}
