//! Attacks on feedback itself, through the real binary between hosts: who makes another address look guilty, fills what
//! is remembered, or would have everybody banned.
#![expect(clippy::indexing_slicing, reason = "helpers of tests fail like tests")]

use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use harness::bans::{self, Connecting, PATIENCE};
use harness::client::Client;
use harness::frames::{Path, Sender};
use harness::gateway::Gateway;
use harness::topology::{Host, PORT, Topology};
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

/// Where connections begin with a header of the PROXY protocol.
const PROXY_PORT: u16 = PORT + 1;
/// So much is missed until something is done.
const COUNT: usize = 20;

fn config(hosts: &Topology, feedback: Value) -> Value {
    let mut config = hosts.config(SocketAddr::new(hosts.upstream.v4(), 9000));
    config["routes"] = json!([{"match": {"path": "/ok"}, "respond": {"body": "ok"}}]);
    config["upstreams"] = json!({});
    config["feedback"] = feedback;
    config
}

fn rule(signal: &str, count: usize) -> Value {
    json!({
        "name": "rule",
        "when": {"signal": signal, "count": count, "per": "1h"},
        "ban": {"for": "10m"},
    })
}

fn start<'n>(hosts: &'n Topology, config: Value) -> Result<Gateway<'n>> {
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    Ok(gateway)
}

fn connect(host: &Host) -> Result<Client> {
    bans::connect(&host.namespace, host.v4(), host.target())
}

fn is_served(host: &Host) -> Result {
    let status = bans::get(&mut connect(host)?, "/ok", "")?;
    ensure!(status == 200, "{status}");
    Ok(())
}

/// Lets the attacker be any of the sources that are routed to it.
fn be_many(hosts: &Topology) -> Result {
    hosts.attacker.namespace.ip("route add local 198.18.0.0/15 dev lo")
}

/// Each source asks once for `path`, over a connection of its own.
fn each(hosts: &Topology, sources: impl Iterator<Item = IpAddr> + Send, path: &str) -> Result {
    let target = hosts.attacker.target();
    hosts.attacker.namespace.enter(|| -> Result {
        for source in sources {
            let mut client = Client::connect_here(Some(source), target, PATIENCE)?;
            bans::get(&mut client, path, "")?;
        }
        Ok(())
    })?
}

#[test]
fn forged_and_half_open_handshakes_make_nobody_guilty() -> Result {
    const FORGED: u16 = 20_000;
    const HALF_OPEN: u16 = 2000;
    const KNOCKS: usize = 3;
    require_root()?;
    let hosts = Topology::new()?;
    let knocks = json!({"rules": [rule("no_request", KNOCKS)], "weights": {"no_request": 1}});
    let gateway = start(&hosts, config(&hosts, knocks))?;
    let [attacker, client] = [&hosts.attacker, &hosts.client];
    let mut open = connect(client)?;
    let sender = Sender::new(attacker)?;
    let as_client = Path::new(attacker, client.v4());
    for number in 0..FORGED {
        sender.send(&as_client.syn(20_000 + number, PORT)?)?;
        if number % 1000 == 0 {
            assert_eq!(bans::get(&mut open, "/ok", "")?, 200);
            is_served(client)?;
        }
    }
    // From where nobody answers what the gateway answers.
    for number in 0..HALF_OPEN {
        let [high, low] = number.to_be_bytes();
        let nobody = Path::new(attacker, [198, 18, high, low].into());
        sender.send(&nobody.syn(40_000, PORT)?)?;
    }
    assert_eq!(bans::get(&mut open, "/ok", "")?, 200);
    is_served(client)?;
    // Whoever completes the same handshakes is guilty.
    for _ in 0..KNOCKS {
        connect(attacker)?;
    }
    bans::made(&gateway, &attacker.v4().to_string())?;
    assert_eq!(bans::prefixes(&gateway)?, [attacker.v4().to_string()]);
    assert_eq!(bans::list(&gateway, &["--held"])?, Vec::<Value>::new());
    let signals = "gateway_feedback_signals_total{signal=\"no_request\"}";
    assert_eq!(bans::metric(&gateway, signals)?, KNOCKS as u64);
    assert_eq!(bans::get(&mut open, "/ok", "")?, 200);
    is_served(client)
}

#[test]
fn a_forged_header_of_whoever_is_not_trusted_makes_only_its_sender_guilty() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let gateway = start(&hosts, config(&hosts, json!({"rules": [rule("not_found", COUNT)]})))?;
    let [attacker, client] = [&hosts.attacker, &hosts.client];
    let victim = client.v4();
    let mut forger = connect(attacker)?;
    for field in [
        format!("x-forwarded-for: {victim}\r\n"),
        format!("forwarded: for={victim}\r\n"),
        format!("x-real-ip: {victim}\r\nx-forwarded-for: {victim}, {victim}\r\n"),
        format!("x-forwarded-for: {victim}\r\nx-forwarded-for: {}\r\n", attacker.gateway_v4()),
    ] {
        for _ in 0..COUNT / 4 {
            assert_eq!(bans::get(&mut forger, "/nothing", &field)?, 404);
        }
    }
    let ban = bans::made(&gateway, &attacker.v4().to_string())?;
    assert_eq!((&ban["place"], &ban["enforced"]), (&json!("kernel"), &json!("both")));
    assert_eq!(bans::prefixes(&gateway)?, [attacker.v4().to_string()]);
    let known = |who: IpAddr| bans::known(&gateway, &format!("{who}/32"), who);
    assert!(known(attacker.v4())?.is_some());
    assert_eq!(known(victim)?, None);
    is_served(client)
}

#[test]
fn a_proxy_header_is_believed_of_those_who_may_send_it_and_in_user_space_alone() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let [attacker, client] = [&hosts.attacker, &hosts.client];
    let (sender, untrusted) = (attacker.add_v4(9)?, attacker.add_v4(8)?);
    let mut config = config(&hosts, json!({"rules": [rule("not_found", COUNT)]}));
    config["listen"] = json!([
        {"address": format!("0.0.0.0:{PORT}")},
        {"address": format!("0.0.0.0:{PROXY_PORT}"), "proxy_protocol": {"from": [sender]}},
    ]);
    let gateway = start(&hosts, config)?;
    let target = SocketAddr::new(attacker.gateway_v4(), PROXY_PORT);
    let victim = client.v4();
    let claim = |from: IpAddr, claimed: IpAddr| -> Result<Client> {
        let mut connection = bans::connect(&attacker.namespace, from, target)?;
        let header = format!("PROXY TCP4 {claimed} {} 40000 {PROXY_PORT}\r\n", target.ip());
        connection.send(header.as_bytes())?;
        Ok(connection)
    };
    for _ in 0..COUNT {
        let Ok(mut refused) = claim(untrusted, victim) else { continue };
        drop(refused.send(b"GET /nothing HTTP/1.1\r\nhost: test\r\n\r\n"));
        bans::ended(&mut refused)?;
    }
    let mut believed = claim(sender, victim)?;
    bans::miss(&mut believed, COUNT)?;
    let ban = bans::made(&gateway, &victim.to_string())?;
    assert_eq!((&ban["place"], &ban["enforced"]), (&json!("user_space"), &json!("user space")));
    assert_eq!(ban.pointer("/story/score"), Some(&json!(COUNT as f64)), "of the trusted one's");
    assert_eq!(bans::prefixes(&gateway)?, [victim.to_string()]);
    bans::ended(&mut believed)?;
    bans::ended(&mut claim(sender, victim)?)?;
    let other = [203, 0, 113, 7].into();
    assert_eq!(bans::get(&mut claim(sender, other)?, "/ok", "")?, 200);
    for _ in 0..10 {
        is_served(client)?;
    }
    assert_eq!(gateway.kernel_packets("deny")?, 0, "no packet of it is dropped");
    Ok(())
}

#[test]
fn a_flood_of_sources_pushes_out_none_that_is_half_way_to_a_decision() -> Result {
    const REMEMBERED_MAX: u64 = 1024;
    const FLOOD: u16 = 3000;
    require_root()?;
    let hosts = Topology::new()?;
    be_many(&hosts)?;
    let rules = json!({"rules": [rule("not_found", COUNT)], "max_sources": REMEMBERED_MAX});
    let gateway = start(&hosts, config(&hosts, rules))?;
    let attacker = &hosts.attacker;
    let mut suspect = connect(attacker)?;
    bans::miss(&mut suspect, COUNT - 1)?;
    bans::noticed(&gateway, "not_found", COUNT as u64 - 1)?;
    let sources = (0..FLOOD).map(|number| {
        let [high, low] = number.to_be_bytes();
        IpAddr::from([198, 18, high, low])
    });
    each(&hosts, sources, "/nothing")?;
    bans::noticed(&gateway, "not_found", COUNT as u64 - 1 + u64::from(FLOOD))?;
    for what in ["sources", "prefixes", "decided"] {
        let series = format!("gateway_feedback_remembered{{what=\"{what}\"}}");
        assert!(bans::metric(&gateway, &series)? <= REMEMBERED_MAX, "{what}");
    }
    assert!(bans::metric(&gateway, "gateway_feedback_evicted_total")? > u64::from(FLOOD) / 2);
    assert_eq!(bans::metric(&gateway, "gateway_feedback_reports_lost_total")?, 0);
    assert_eq!(bans::prefixes(&gateway)?, Vec::<String>::new());
    bans::miss(&mut suspect, 1)?;
    let source = attacker.v4();
    bans::made(&gateway, &source.to_string())?;
    let done = bans::connecting(&attacker.namespace, source, attacker.target())?;
    assert_eq!(done, Connecting::Silence);
    assert_eq!(bans::prefixes(&gateway)?, [source.to_string()]);
    is_served(&hosts.client)
}

/// Neighbours in a prefix of its own.
fn neighbours(net: u8, count: u8) -> impl Iterator<Item = IpAddr> + Clone + Send {
    (1..=count).map(move |host| IpAddr::from([198, 18, net, host]))
}

/// Waits until so many decisions of the neighbours were made, and answers how many of them are not carried out.
fn decided(gateway: &Gateway<'_>, net: u8, count: u8, why: &str) -> Result<usize> {
    wait_for("decisions", PATIENCE, || {
        let is_one = |ban: &&Value| {
            let prefix = ban.get("prefix").and_then(Value::as_str).unwrap_or_default();
            prefix.starts_with(&format!("198.18.{net}."))
        };
        let made = bans::list(gateway, &[])?.iter().filter(is_one).count();
        let held = bans::list(gateway, &["--held"])?;
        let held: Vec<&Value> = held.iter().filter(is_one).collect();
        for ban in &held {
            ensure!(ban.get("note").and_then(Value::as_str) == Some(why), "{ban}");
        }
        Ok((made + held.len() == usize::from(count)).then_some(held.len()))
    })
}

#[test]
fn a_rule_that_would_ban_everybody_is_stopped_by_the_ceilings() -> Result {
    const GUESTS: u8 = 12;
    const REQUESTS: usize = 10;
    /// So many decisions of ten minutes may hit any share.
    const FREE: usize = 3;
    require_root()?;
    let hosts = Topology::new()?;
    be_many(&hosts)?;
    let hasty = |ceiling: Value| json!({"rules": [rule("not_found", 1)], "ceiling": ceiling});
    let gateway = start(&hosts, config(&hosts, hasty(json!({}))))?;
    for _ in 0..REQUESTS {
        each(&hosts, neighbours(1, GUESTS), "/ok")?;
    }
    for guest in neighbours(1, GUESTS) {
        wait_for("what went well to be told", PATIENCE, || {
            let known = bans::known(&gateway, &format!("{guest}/32"), guest)?.unwrap_or_default();
            let good = known.get("good_requests").and_then(Value::as_u64);
            Ok((good == Some(REQUESTS as u64)).then_some(()))
        })?;
    }
    // One bad link on the front page.
    each(&hosts, neighbours(1, GUESTS), "/nothing")?;
    let held = decided(&gateway, 1, GUESTS, "good_share")?;
    assert_eq!(held, usize::from(GUESTS) - FREE);
    let series = "gateway_feedback_decisions_total\
                  {rule=\"rule\",measure=\"ban\",result=\"good_share\"}";
    assert_eq!(bans::metric(&gateway, series)?, held as u64);
    let log = gateway.log();
    assert!(log.contains("a decision was not carried out"), "{log}");
    each(&hosts, neighbours(1, GUESTS).skip(FREE), "/ok")?;
    is_served(&hosts.client)?;

    // The same without a share: so many a minute, and no more.
    let ceiling = json!({"good_share": "100%", "bans_per_minute": 5});
    gateway.write_config(config(&hosts, hasty(ceiling)))?;
    gateway.cli(&["reload"])?.ok()?;
    each(&hosts, neighbours(2, 60), "/nothing")?;
    assert!(decided(&gateway, 2, 60, "bans_per_minute")? > 0);
    is_served(&hosts.client)
}
