//! What feedback decides by more than the signals of one address, through the real binary without privileges: routes
//! under pressure, callers that share an address, and addresses that only a proxy names.
#![expect(clippy::indexing_slicing, reason = "helpers of tests fail like tests")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, ensure};
use gateway::http::h1::upgrade::accept;
use harness::bans::{self, PATIENCE};
use harness::client::Client;
use harness::gateway::Gateway;
use harness::http2::{Frame, Http2, kind, request};
use harness::origin::{Origin, Reply};
use harness::site::Site;
use harness::{Result, wait_for};
use serde_json::{Value, json};

/// So often a credential may be refused.
const COUNT: usize = 10;

/// 127.0.0.1 is the host's own, and spared.
const BAD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const GOOD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 4));
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

const WRONG: &str = "x-api-key: gw_live_0000000000000000000000000000000000000\r\n";
const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

struct House {
    site: Site,
    listen: SocketAddr,
    service: Origin,
}

impl House {
    fn new() -> Result<Self> {
        let site = Site::new()?;
        let service = site.origin(|request| match request.line.split(' ').nth(1) {
            Some("/busy/hang" | "/open/hang") => Reply::Hang,
            Some("/open/chat") => {
                let key = request.header("sec-websocket-key").unwrap_or_default();
                let proof = accept(key.as_bytes());
                let head = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                     upgrade: websocket\r\nsec-websocket-accept: {proof}\r\n\r\n"
                );
                Reply::Stall(head.leak().as_bytes())
            }
            _ => Reply::Answer(200, "ok"),
        })?;
        Ok(Self { listen: site.free_address()?, service, site })
    }

    fn start(&self, when: Value) -> Result<Gateway<'_>> {
        let service = json!({"endpoints": [self.service.address.to_string()]});
        let mut busy = service.clone();
        busy["timeout"] = json!({"response": "100ms"});
        let mut rule = json!({
            "name": "stuffing",
            "when": {"signal": "auth_failed", "count": COUNT, "per": "1h"},
            "ban": {"for": "10m"},
        });
        for (key, value) in when.as_object().into_iter().flatten() {
            rule["when"][key] = value.clone();
        }
        let config = json!({
            "listen": [{"address": self.listen.to_string()}],
            "workers": 1,
            "kernel": {"attach": "off"},
            "trusted_proxies": [format!("{PROXY}/32")],
            "auth": {"keys": {"api_key": {}}},
            "upstreams": {"busy": busy, "service": service},
            "routes": [
                {"name": "busy", "match": {"path": "/busy/{rest*}"}, "upstream": "busy", "auth": "keys"},
                {"name": "quiet", "match": {"path": "/quiet"}, "upstream": "service", "auth": "keys"},
                {"name": "open", "match": {"path": "/open/{rest*}"}, "upstream": "service",
                 "auth": "anonymous"},
            ],
            "feedback": {"rules": [rule]},
        });
        let mut gateway = Gateway::unprivileged(self.site.namespace.as_ref(), config)?;
        gateway.start()?;
        Ok(gateway)
    }

    fn connect(&self, source: IpAddr) -> Result<Client> {
        self.site.enter(|| Client::connect_here(Some(source), self.listen, PATIENCE))?
    }

    fn get(&self, source: IpAddr, path: &str, fields: &str) -> Result<u16> {
        bans::get(&mut self.connect(source)?, path, fields)
    }

    /// Wrong keys over one connection.
    fn guess(&self, source: IpAddr, path: &str) -> Result {
        let mut client = self.connect(source)?;
        for _ in 0..COUNT {
            let status = bans::get(&mut client, path, WRONG)?;
            ensure!(status == 401, "{status}");
        }
        Ok(())
    }
}

/// A field with a new key of a consumer.
fn key(gateway: &Gateway<'_>, consumer: &str) -> Result<String> {
    let made = gateway.cli(&["keys", "create", "--consumer", consumer, "--json"])?.ok()?.json()?;
    let key = made.get("key").and_then(Value::as_str).context("no key")?;
    Ok(format!("x-api-key: {key}\r\n"))
}

#[test]
fn a_rule_for_hard_times_decides_only_about_routes_that_are_under_pressure() -> Result {
    let house = House::new()?;
    let gateway = house.start(json!({"under_pressure": true}))?;
    let good = key(&gateway, "acme")?;
    for _ in 0..3 {
        house.guess(BAD, "/busy/a")?;
    }
    bans::noticed(&gateway, "auth_failed", 3 * COUNT as u64)?;
    assert_eq!(bans::prefixes(&gateway)?, Vec::<String>::new());
    // However slow the machine is, some of it happens within the time that pressure lasts.
    wait_for("a decision under pressure", PATIENCE, || {
        assert_eq!(house.get(GOOD, "/busy/hang", &good)?, 504);
        house.guess(ELSEWHERE, "/quiet")?;
        let guessed = house.guess(BAD, "/busy/a");
        if bans::prefixes(&gateway)?.is_empty() {
            // Whoever is banned meanwhile finds the connection closed.
            guessed?;
            return Ok(None);
        }
        Ok(Some(()))
    })?;
    assert_eq!(bans::prefixes(&gateway)?, [BAD.to_string()], "not for what was on another route");
    assert_eq!(house.get(GOOD, "/busy/a", &good)?, 200, "who is slow to be served is no suspect");
    Ok(())
}

#[test]
fn callers_that_share_an_address_do_not_pay_for_an_attacker_behind_it() -> Result {
    let house = House::new()?;
    let gateway = house.start(json!({}))?;
    let keys = [key(&gateway, "acme")?, key(&gateway, "globex")?];
    for key in &keys {
        assert_eq!(house.get(GOOD, "/quiet", key)?, 200);
    }
    wait_for("both to be known", PATIENCE, || {
        let known = bans::known(&gateway, &format!("{GOOD}/32"), GOOD)?.unwrap_or_default();
        Ok((known.get("consumers") == Some(&json!(2))).then_some(()))
    })?;
    for source in [GOOD, BAD] {
        house.guess(source, "/quiet")?;
    }
    bans::made(&gateway, &BAD.to_string())?;
    let held = bans::held(&gateway, &GOOD.to_string())?;
    assert_eq!((&held["note"], &held["enforced"]), (&json!("shared"), &json!("nowhere")));
    let why = bans::why(&gateway, GOOD)?;
    let note = why.pointer("/bans/0/story/notes/0").and_then(Value::as_str).unwrap_or_default();
    assert!(note.starts_with("2 known callers were served here"), "{why}");
    assert_eq!(bans::prefixes(&gateway)?, [BAD.to_string()]);
    for key in &keys {
        assert_eq!(house.get(GOOD, "/quiet", key)?, 200);
    }
    Ok(())
}

#[test]
fn a_banned_address_that_a_proxy_names_loses_its_tunnels_and_nobody_else_behind_it() -> Result {
    let house = House::new()?;
    let gateway = house.start(json!({}))?;
    let of = |client: IpAddr| format!("x-forwarded-for: {client}\r\n");
    let tunnel = |client: IpAddr| -> Result<Client> {
        let mut tunnel = house.connect(PROXY)?;
        let status = bans::get(&mut tunnel, "/open/chat", &format!("{UPGRADE}{}", of(client)))?;
        ensure!(status == 101, "{status}");
        Ok(tunnel)
    };
    let (mut bad, mut worse, mut good) = (tunnel(BAD)?, tunnel(ELSEWHERE)?, tunnel(GOOD)?);
    // All over one connection of the proxy, each in a stream of its own.
    let dial = || Http2::connect_from(PROXY, house.listen, &[], PATIENCE);
    let mut streams = house.site.enter(dial)??;
    for (stream, client) in [(1, BAD), (3, GOOD), (5, ELSEWHERE)] {
        let client = client.to_string();
        let fields = [
            (":protocol", "websocket"),
            ("sec-websocket-version", "13"),
            ("x-forwarded-for", &client),
        ];
        let head = [&request("CONNECT", "/open/chat")[..], &fields].concat();
        streams.frames(&[Frame::headers(stream, false, &head)])?;
        ensure!(streams.is_fine(stream)?, "no tunnel");
    }
    let mut proxy = house.connect(PROXY)?;
    // The first ban of such an address has every connection looked at, a later one its own alone.
    for (client, tunnel, stream) in [(BAD, &mut bad, 1), (ELSEWHERE, &mut worse, 5)] {
        for _ in 0..COUNT {
            assert_eq!(bans::get(&mut proxy, "/quiet", &format!("{WRONG}{}", of(client)))?, 401);
        }
        bans::made(&gateway, &client.to_string())?;
        bans::ended(tunnel)?;
        let reset = streams.wait(|frame| frame.kind == kind::RST_STREAM)?;
        assert_eq!(reset.stream, stream);
        assert_eq!(bans::get(&mut proxy, "/open/a", &of(client))?, 403);
    }
    assert_eq!(bans::get(&mut proxy, "/open/a", &of(GOOD))?, 200);
    good.send(b"still here")?;
    streams.frames(&[Frame::new(kind::DATA, 0, 3, "still here")])?;
    streams.frames(&[Frame::headers(7, true, &request("GET", "/open/a"))])?;
    assert!(streams.is_fine(7)?);
    wait_for("the two other tunnels alone", PATIENCE, || {
        Ok((gateway.status()?["proxy"]["requests"]["active"] == json!(2)).then_some(()))
    })
}

#[test]
fn callers_behind_a_proxy_do_not_pay_for_an_attacker_at_their_address() -> Result {
    let house = House::new()?;
    let gateway = house.start(json!({}))?;
    for consumer in ["acme", "globex"] {
        let fields = format!("x-forwarded-for: {GOOD}\r\n{}", key(&gateway, consumer)?);
        assert_eq!(house.get(PROXY, "/quiet", &fields)?, 200);
    }
    wait_for("both to be known", PATIENCE, || {
        let known = bans::known(&gateway, &format!("{GOOD}/32"), GOOD)?.unwrap_or_default();
        Ok((known.get("consumers") == Some(&json!(2))).then_some(()))
    })?;
    // Over connections of its own, which a ban would end where packets arrive: theirs would be refused, too.
    house.guess(GOOD, "/quiet")?;
    let held = bans::held(&gateway, &GOOD.to_string())?;
    assert_eq!((&held["note"], &held["place"]), (&json!("shared"), &json!("kernel")));
    house.guess(BAD, "/quiet")?;
    bans::made(&gateway, &BAD.to_string())?;
    assert_eq!(bans::prefixes(&gateway)?, [BAD.to_string()]);
    Ok(())
}
