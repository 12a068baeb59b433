//! What feedback does to packets, through the real binary between hosts: each measure, what is open of whoever is
//! banned, what a kill leaves behind, and prefixes.
#![expect(clippy::indexing_slicing, reason = "helpers of tests fail like tests")]

use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, ensure};
use harness::bans::{self, Connecting, PATIENCE};
use harness::client::Client;
use harness::gateway::Gateway;
use harness::http2::{Frame, Http2, kind, request};
use harness::origin::{Origin, Reply};
use harness::topology::{Host, Topology};
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

/// So much is missed until something is done.
const COUNT: usize = 20;

const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                        upgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A gateway that does this to whoever asks for too much that is not there.
fn config(hosts: &Topology, measure: (&str, Value)) -> Value {
    let mut rule = json!({
        "name": "lost",
        "when": {"signal": "not_found", "count": COUNT, "per": "10m"},
    });
    rule[measure.0] = measure.1;
    let mut config = hosts.config(upstream(hosts));
    config["routes"] = json!([
        {"match": {"path": "/ok"}, "respond": {"body": "ok"}},
        {"match": {"path": "/service/{rest*}"}, "upstream": "origin"},
    ]);
    config["feedback"] = json!({"rules": [rule]});
    config
}

fn ban() -> (&'static str, Value) {
    ("ban", json!({"for": "10m"}))
}

fn upstream(hosts: &Topology) -> SocketAddr {
    SocketAddr::new(hosts.upstream.v4(), 9000)
}

fn start<'n>(hosts: &'n Topology, config: Value) -> Result<Gateway<'n>> {
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    Ok(gateway)
}

fn connect(host: &Host) -> Result<Client> {
    bans::connect(&host.namespace, host.v4(), host.target())
}

fn connecting(host: &Host) -> Result<Connecting> {
    bans::connecting(&host.namespace, host.v4(), host.target())
}

/// Asks for so much that something is done.
fn misbehave(host: &Host) -> Result {
    bans::miss(&mut connect(host)?, COUNT)
}

fn is_served(host: &Host) -> Result {
    let status = bans::get(&mut connect(host)?, "/ok", "")?;
    ensure!(status == 200, "{status}");
    Ok(())
}

#[test]
fn a_slow_down_holds_the_source_to_its_profile_and_nobody_else() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let slow_down = json!({"profile": "tight", "for": "10m"});
    let mut config = config(&hosts, ("slow_down", slow_down));
    config["kernel"]["profiles"] = json!({
        "tight": {"packets": "1/h burst 100", "connections": "1/h burst 2"},
    });
    let gateway = start(&hosts, config)?;
    let [attacker, client] = [&hosts.attacker, &hosts.client];
    let mut open = connect(attacker)?;
    misbehave(attacker)?;
    let ban = bans::made(&gateway, &attacker.v4().to_string())?;
    assert_eq!((&ban["measure"], &ban["profile"]), (&json!("slow_down"), &json!("tight")));
    assert_eq!((&ban["enforced"], &ban["place"]), (&json!("kernel"), &json!("kernel")));
    assert_eq!(bans::get(&mut open, "/ok", "")?, 200, "what is open goes on");
    let made = (0..4).map(|_| connecting(attacker)).collect::<Result<Vec<_>>>()?;
    assert_eq!(
        made,
        [Connecting::Made, Connecting::Made, Connecting::Silence, Connecting::Silence]
    );
    assert!(gateway.kernel_packets("connections")? >= 2);
    let mut answers = 0;
    while answers < 100 && bans::get(&mut open, "/ok", "").is_ok() {
        answers += 1;
    }
    assert!((1..100).contains(&answers), "{answers} answers with 100 packets");
    assert!(gateway.kernel_packets("limit")? >= 1);
    for _ in 0..200 {
        is_served(client)?;
    }
    gateway.cli(&["bans", "lift", &attacker.v4().to_string()])?.ok()?;
    is_served(attacker)
}

#[test]
fn a_reset_has_new_connections_refused_at_once_and_nobody_elses() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let mut config = config(&hosts, ("reset", json!({"for": "10m"})));
    // Answers of a program in native mode take one at the other end of a veth pair.
    config["kernel"]["attach"] = json!("generic");
    let gateway = start(&hosts, config)?;
    let [attacker, client] = [&hosts.attacker, &hosts.client];
    let mut idle = connect(attacker)?;
    assert_eq!(bans::get(&mut idle, "/ok", "")?, 200);
    let neighbour = attacker.add_v4(9)?;
    misbehave(attacker)?;
    let ban = bans::made(&gateway, &attacker.v4().to_string())?;
    assert_eq!((&ban["measure"], &ban["enforced"]), (&json!("reset"), &json!("both")));
    for _ in 0..10 {
        assert_eq!(connecting(attacker)?, Connecting::Refused);
    }
    assert!(gateway.kernel_packets("reset_answered")? >= 10);
    bans::ended(&mut idle)?;
    let mut other = bans::connect(&attacker.namespace, neighbour, attacker.target())?;
    assert_eq!(bans::get(&mut other, "/ok", "")?, 200);
    is_served(client)
}

/// A source is served as this says until the test lets go of it.
struct Guest {
    idle: Client,
    waiting: Client,
    tunnel: Client,
    http2: Http2,
}

impl Guest {
    fn of(host: &Host) -> Result<Self> {
        let mut idle = connect(host)?;
        assert_eq!(bans::get(&mut idle, "/ok", "")?, 200);
        let mut waiting = connect(host)?;
        waiting.send(b"GET /service/hang HTTP/1.1\r\nhost: test\r\n\r\n")?;
        let mut tunnel = connect(host)?;
        assert_eq!(bans::get(&mut tunnel, "/service/chat", UPGRADE)?, 101);
        let dial = || Http2::connect_from(host.v4(), host.target(), &[], PATIENCE);
        let mut http2 = host.namespace.enter(dial)??;
        http2.frames(&[Frame::headers(1, true, &request("GET", "/ok"))])?;
        http2.wait(|frame| frame.kind == kind::HEADERS && frame.stream == 1)?;
        http2.frames(&[Frame::headers(3, true, &request("GET", "/service/hang"))])?;
        Ok(Self { idle, waiting, tunnel, http2 })
    }
}

#[test]
fn what_is_open_of_a_banned_or_denied_source_is_closed_and_nothing_else() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin =
        Origin::start(Some(&hosts.upstream.namespace), upstream(&hosts), |request| match request
            .line
            .as_str()
        {
            "GET /service/chat HTTP/1.1" => Reply::Stall(SWITCH),
            _ => Reply::Hang,
        })?;
    let mut config = config(&hosts, ban());
    config["upstreams"]["origin"]["timeout"] = json!({"response": "1h"});
    let gateway = start(&hosts, config)?;
    let mut good = Guest::of(&hosts.client)?;
    let mut bad = Guest::of(&hosts.attacker)?;
    let busy = |count: usize| {
        wait_for("the service", PATIENCE, || Ok((origin.open_connections() == count).then_some(())))
    };
    busy(6)?;
    misbehave(&hosts.attacker)?;
    bans::made(&gateway, &hosts.attacker.v4().to_string())?;
    for client in [&mut bad.idle, &mut bad.waiting, &mut bad.tunnel] {
        bans::ended(client)?;
    }
    bad.http2.goodbye()?;
    // What they have asked for is not done any more.
    busy(3)?;
    assert_eq!(bans::get(&mut good.idle, "/ok", "")?, 200);
    good.http2.frames(&[Frame::headers(5, true, &request("GET", "/ok"))])?;
    good.http2.wait(|frame| frame.kind == kind::HEADERS && frame.stream == 5)?;
    good.tunnel.send(b"still here")?;
    let requests = &gateway.status()?["proxy"]["requests"];
    assert_eq!(requests["active"], json!(3), "{requests}");

    // A rule that somebody makes does the same.
    gateway.cli(&["deny", "add", &hosts.client.v4().to_string()])?.ok()?;
    for client in [&mut good.idle, &mut good.waiting, &mut good.tunnel] {
        bans::ended(client)?;
    }
    good.http2.goodbye()?;
    busy(0)
}

#[test]
fn a_ban_that_was_kept_holds_while_nobody_runs_and_has_its_story_afterwards() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let mut gateway = start(&hosts, config(&hosts, ban()))?;
    let attacker = &hosts.attacker;
    let source = attacker.v4().to_string();
    misbehave(attacker)?;
    bans::made(&gateway, &source)?;
    // A command is on the disk before it answers, and whatever was decided before it.
    gateway.cli(&["ban", "203.0.113.9", "--for", "1h", "--reason", "by hand"])?.ok()?;
    gateway.kill9()?;
    assert_eq!(connecting(attacker)?, Connecting::Silence);
    assert_eq!(connecting(&hosts.client)?, Connecting::Refused, "nobody listens, and packets pass");
    let mut stories = Vec::new();
    for enforced in ["kernel", "both"] {
        let why = bans::why(&gateway, &source)?;
        let ban = &why["bans"][0];
        assert_eq!((&ban["rule"], &ban["enforced"]), (&json!("lost"), &json!(enforced)), "{why}");
        assert!(ban["packets"].as_u64() > Some(0), "{why}");
        stories.push(ban["story"].clone());
        if enforced == "kernel" {
            gateway.start()?;
        }
    }
    assert_eq!(stories[0], stories[1]);
    assert_eq!(stories[1]["score"], json!(COUNT as f64));
    assert!(stories[1].pointer("/signals/0/request_id").is_some_and(Value::is_string));
    assert_eq!(connecting(attacker)?, Connecting::Silence);
    assert_eq!(bans::prefixes(&gateway)?, [source.as_str(), "203.0.113.9"]);
    Ok(())
}

/// Has the daemon die as soon as it writes anything to a file: a ban is in the kernel before that.
fn dies_at_the_first_write(gateway: &Gateway<'_>) -> Result {
    let pid = gateway.pid()?.to_string();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let id = |name: &str| -> Result<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let id = line.and_then(|line| line.split_whitespace().next());
        Ok(id.with_context(|| format!("no {name}"))?.parse()?)
    };
    // Limits of a process are its user's to set.
    let mut command = Command::new("prlimit");
    command.uid(id("Uid:")?).gid(id("Gid:")?);
    let done = command.args(["--pid", &pid, "--fsize=0", "--core=0"]).output()?;
    ensure!(done.status.success(), "{done:?}");
    Ok(())
}

#[test]
fn a_ban_that_was_not_kept_yet_holds_until_the_next_start_and_can_be_lifted_before() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let mut gateway = start(&hosts, config(&hosts, ban()))?;
    let attacker = &hosts.attacker;
    let source = attacker.v4().to_string();
    for is_lifted in [false, true] {
        dies_at_the_first_write(&gateway)?;
        misbehave(attacker)?;
        let status = gateway.gone()?;
        assert!(!status.success(), "{status}");
        assert_eq!(connecting(attacker)?, Connecting::Silence, "it is in force");
        assert_eq!(connecting(&hosts.client)?, Connecting::Refused);
        let why = bans::why(&gateway, &source)?;
        let rule = &why["rule"];
        assert_eq!((&rule["action"], &rule["origin"]), (&json!("deny"), &json!("ban")), "{why}");
        assert_eq!(rule["enforced"], json!("kernel"), "{why}");
        assert!(rule["until_utc_ms"].is_u64(), "it ends: {why}");
        let note = rule["note"].as_str().unwrap_or_default();
        assert!(note.contains("next start"), "{why}");
        if is_lifted {
            gateway.cli(&["bans", "lift", &source])?.ok()?;
            assert_eq!(connecting(attacker)?, Connecting::Refused, "nobody listens");
        }
        gateway.start()?;
        assert_eq!(bans::prefixes(&gateway)?, Vec::<String>::new());
        is_served(attacker)?;
    }
    Ok(())
}

/// Sources of one prefix that do what none of them may do alone, from the attacker's link.
fn many(
    hosts: &Topology,
    gateway: &Gateway<'_>,
    (prefix, sources): (&str, [IpAddr; 10]),
) -> Result {
    let attacker = &hosts.attacker;
    let each = COUNT / sources.len();
    for source in sources {
        let target = SocketAddr::new(attacker.gateway_for(source), harness::topology::PORT);
        let mut client = bans::connect(&attacker.namespace, source, target)?;
        bans::miss(&mut client, each)?;
    }
    let ban = bans::made(gateway, prefix)?;
    assert_eq!((&ban["rule"], &ban["enforced"]), (&json!("together"), &json!("both")));
    for source in sources {
        let target = SocketAddr::new(attacker.gateway_for(source), harness::topology::PORT);
        let done = bans::connecting(&attacker.namespace, source, target)?;
        assert_eq!(done, Connecting::Silence, "{source}");
    }
    let why = bans::why(gateway, sources[0])?;
    assert_eq!(why.pointer("/bans/0/story/sources"), Some(&json!(10)), "{why}");
    Ok(())
}

#[test]
fn many_sources_of_a_prefix_are_banned_together_and_one_alone_never() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let mut config = config(&hosts, ban());
    config["feedback"] = json!({"rules": [{
        "name": "together",
        "when": {"signal": "not_found", "count": COUNT, "per": "10m", "by": "prefix", "sources": 10},
        "ban": {"for": "10m"},
    }]});
    let gateway = start(&hosts, config)?;
    let attacker = &hosts.attacker;
    attacker.namespace.ip("route add local 198.18.0.0/15 dev lo")?;
    let alone: IpAddr = "198.18.7.1".parse()?;
    let mut lone = bans::connect(&attacker.namespace, alone, attacker.target())?;
    bans::miss(&mut lone, 3 * COUNT)?;
    let v4 = std::array::from_fn(|host| IpAddr::from([198, 18, 5, host as u8 + 1]));
    many(&hosts, &gateway, ("198.18.5.0/24", v4))?;
    let v6: [IpAddr; 10] =
        std::array::from_fn(|net| IpAddr::from([0xfd00, 0xbad, 5, net as u16 + 1, 0, 0, 0, 1]));
    for address in v6 {
        attacker.namespace.ip(&format!("address add {address}/128 dev lo nodad"))?;
    }
    many(&hosts, &gateway, ("fd00:bad:5::/48", v6))?;
    wait_for("all of the one alone to be scored", PATIENCE, || {
        let known = bans::known(&gateway, "198.18.7.0/24", alone)?.unwrap_or_default();
        let score = known.pointer("/scores/0/score").and_then(Value::as_f64);
        Ok((score == Some(3.0 * COUNT as f64)).then_some(()))
    })?;
    assert_eq!(bans::prefixes(&gateway)?, ["198.18.5.0/24", "fd00:bad:5::/48"]);
    assert_eq!(bans::get(&mut lone, "/ok", "")?, 200);
    is_served(&hosts.client)
}
