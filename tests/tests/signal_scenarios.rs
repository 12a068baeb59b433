//! What clients do and what is made of it, through the real binary: each signal is provoked once by a real client, and
//! what is no fault of a client makes none. Clients come from 127.0.0.2, for 127.0.0.1 is the host's own and spared.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use gateway::base::signal::Signal;
use harness::authority::{Authority, Pair};
use harness::client::Client;
use harness::gateway::Gateway;
use harness::http2::{Frame, Http2, kind, request};
use harness::idp::{Idp, now};
use harness::metrics::Page;
use harness::origin::{Origin, Reply, Request};
use harness::site::{PATIENCE, Site};
use harness::{Result, wait_for};
use serde_json::{Value, json};

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// More than sockets and buffers hold.
const LARGE_BYTES: usize = 32 << 20;

struct House {
    site: Site,
    idp: Idp,
    service: Origin,
    pair: Pair,
    plain: SocketAddr,
    tls: SocketAddr,
    _authority: Authority,
}

fn answer(request: &Request) -> Reply {
    match request.line.split(' ').nth(1).unwrap_or_default() {
        "/service/ok" => Reply::Answer(200, "ok"),
        "/.git/config" => Reply::Answer(410, "gone"),
        "/service/fail" => Reply::Answer(500, "failed"),
        "/service/unauthorized" => Reply::Answer(401, "who are you"),
        "/service/busy" => Reply::Answer(429, "not now"),
        "/service/hang" => Reply::Hang,
        "/service/close" => Reply::Close,
        "/service/large" => {
            let head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
            Reply::Bytes([head, vec![b'x'; LARGE_BYTES]].concat())
        }
        _ => Reply::Answer(404, "nothing here"),
    }
}

impl House {
    fn new() -> Result<Self> {
        let site = Site::new()?;
        let authority = Authority::new()?;
        Ok(Self {
            idp: Idp::start(&site)?,
            service: site.origin(answer)?,
            pair: authority.issue("api", &["api.test"])?,
            plain: site.free_address()?,
            tls: site.free_address()?,
            site,
            _authority: authority,
        })
    }

    fn config(&self) -> Result<Value> {
        let service = self.service.address.to_string();
        let nobody = self.site.free_address()?.to_string();
        let jwt = json!({"jwks": {"url": self.idp.jwks_url()}});
        Ok(json!({
            "listen": [
                {"address": self.plain.to_string()},
                {"address": self.tls.to_string(), "tls": {
                    "certificates": [self.pair.json()], "unknown_sni": "refuse"}},
            ],
            "workers": 1,
            "kernel": {"attach": "off"},
            "trusted_proxies": ["127.0.0.9"],
            "bounds": {"head_timeout": "1s", "handshake_timeout": "1s", "idle_timeout": "1s",
                       "keep_alive_timeout": "1s", "body_bytes": "1KiB"},
            "auth": {"staff": {"jwt": jwt}},
            "upstreams": {
                "service": {"endpoints": [service], "timeout": {"response": "300ms"}},
                "nobody": {"endpoints": [nobody], "breaker": {"failures": 1, "open_for": "1h"}},
            },
            "routes": [
                {"name": "service", "auth": "anonymous", "match": {"path": "/service/{rest*}"},
                 "upstream": "service"},
                {"name": "nobody", "auth": "anonymous", "match": {"path": "/nobody"},
                 "upstream": "nobody"},
                {"name": "staff", "match": {"path": "/staff"}, "auth": "staff",
                 "respond": {"body": "staff"}},
                {"name": "admin", "match": {"path": "/admin"}, "auth": "staff",
                 "require": {"roles": ["admin"]}, "respond": {"body": "admin"}},
                {"name": "own", "auth": "anonymous", "match": {"path": "/own"},
                 "respond": {"body": "own"},
                 "limits": [{"name": "own", "per": "client_address", "rate": "1/h"}]},
                {"name": "crowd", "auth": "anonymous", "match": {"path": "/crowd"},
                 "respond": {"body": "crowd"},
                 "limits": [{"name": "crowd", "per": "route", "rate": "1/h"}]},
                {"name": "old", "auth": "anonymous", "match": {"path": "/.git/config"},
                 "upstream": "service"},
                {"name": "post", "auth": "anonymous", "match": {"path": "/post", "methods": ["POST"]},
                 "upstream": "service"},
            ],
            "feedback": {"rules": [], "weights": {"no_request": 1}},
        }))
    }

    fn start(&self) -> Result<Gateway<'_>> {
        self.start_with(self.config()?)
    }

    fn start_with(&self, config: Value) -> Result<Gateway<'_>> {
        let mut gateway = Gateway::unprivileged(self.site.namespace.as_ref(), config)?;
        gateway.start()?;
        Ok(gateway)
    }

    fn connect(&self, target: SocketAddr) -> Result<Client> {
        self.site.connect(Some(CLIENT), target)
    }

    /// The status for `GET PATH` with these fields, over a connection of its own.
    fn get(&self, path: &str, fields: &str) -> Result<u16> {
        self.get_from(CLIENT, path, fields)
    }

    fn get_from(&self, source: IpAddr, path: &str, fields: &str) -> Result<u16> {
        let mut client = self.site.connect(Some(source), self.plain)?;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n").as_bytes())?;
        Ok(client.receive()?.status)
    }

    /// Sends `bytes` and reads until the gateway has had enough.
    fn talk(&self, target: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut client = self.connect(target)?;
        client.send(bytes)?;
        // A reset is as good an end as any.
        Ok(client.read_to_end().unwrap_or_default())
    }

    fn bearer(&self, claims: &Value) -> Result<String> {
        Ok(format!("authorization: Bearer {}\r\n", self.idp.token(claims)?))
    }

    fn http2(&self) -> Result<Http2> {
        self.site.enter(|| Http2::connect_from(CLIENT, self.plain, &[], PATIENCE))?
    }
}

/// What was noticed, by signal; those that never were are left out.
fn noticed(gateway: &Gateway<'_>) -> Result<BTreeMap<&'static str, u64>> {
    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    assert_eq!(page.value("gateway_feedback_reports_lost_total"), Some(0));
    let all = Signal::ALL.into_iter().map(|signal| {
        let series = format!("gateway_feedback_signals_total{{signal=\"{}\"}}", signal.name());
        Ok((signal.name(), page.value(&series).with_context(|| format!("no {series}"))?))
    });
    let mut all = all.collect::<Result<BTreeMap<_, _>>>()?;
    all.retain(|_, count| *count > 0);
    Ok(all)
}

/// Waits until what was noticed is `before`, and `more` of one signal.
fn becomes(
    gateway: &Gateway<'_>,
    before: &BTreeMap<&'static str, u64>,
    (signal, more): (Signal, u64),
) -> Result<BTreeMap<&'static str, u64>> {
    let mut wanted = before.clone();
    *wanted.entry(signal.name()).or_default() += more;
    let mut last = BTreeMap::new();
    let done = wait_for(signal.name(), PATIENCE, || {
        last = noticed(gateway)?;
        Ok((last == wanted).then_some(()))
    });
    done.with_context(|| format!("{last:?} instead of {wanted:?}"))?;
    Ok(wanted)
}

#[test]
fn each_signal_is_made_by_what_a_client_does() -> Result {
    let house = House::new()?;
    let gateway = house.start()?;
    let mut before = noticed(&gateway)?;
    assert_eq!(before, BTreeMap::new());
    let forged = house.bearer(&json!({"sub": "ann"}))?.replace("ey", "eY");
    let ann = house.bearer(&json!({"sub": "ann"}))?;
    assert_eq!(house.get("/own", "")?, 200);
    let unfinished: &[u8] = b"GET / HTTP/1.1\r\nhost";
    let stalled: &[u8] = b"POST /post HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n123";
    let status = |wanted: u16, path: &str, fields: &str| {
        let status = house.get(path, fields)?;
        assert_eq!(status, wanted, "{path}");
        Ok(())
    };
    let talk = |target: SocketAddr, bytes: &[u8]| house.talk(target, bytes).map(drop);
    let http2 = |frames: &[Frame]| {
        let mut client = house.http2()?;
        client.frames(frames)?;
        client.goodbye().ok();
        Ok(())
    };
    let steps: [(&str, Signal, &dyn Fn() -> Result); 19] = [
        ("a forged token", Signal::AuthFailed, &|| status(401, "/staff", &forged)),
        ("no admin", Signal::Forbidden, &|| status(403, "/admin", &ann)),
        ("its own rate", Signal::RateLimited, &|| status(429, "/own", "")),
        ("no head", Signal::Malformed, &|| talk(house.plain, b"nonsense\r\n\r\n")),
        ("two hosts", Signal::Malformed, &|| status(400, "/", "host: b\r\n")),
        ("no frame", Signal::Malformed, &|| http2(&[Frame::new(kind::DATA, 0, 0, "on no stream")])),
        ("a flood", Signal::Malformed, &|| http2(&vec![Frame::settings(&[]); 2000])),
        ("half a head", Signal::SlowRequest, &|| talk(house.plain, unfinished)),
        ("half a preface", Signal::SlowRequest, &|| talk(house.plain, b"PRI * HTT")),
        ("half a body", Signal::SlowRequest, &|| talk(house.plain, stalled)),
        ("half a handshake", Signal::SlowRequest, &|| talk(house.tls, b"\x16\x03\x01\x00\xff")),
        ("no TLS", Signal::TlsFailed, &|| talk(house.tls, b"\x00\x01\x02\x03")),
        ("no such host", Signal::TlsFailed, &|| {
            let url = format!("https://nobody.test:{}/", house.tls.port());
            let resolve = format!("nobody.test:{}:127.0.0.1", house.tls.port());
            let arguments = ["--interface", "127.0.0.2", "--insecure", "--resolve", &resolve, &url];
            house.site.curl(&arguments).map(drop)
        }),
        ("nothing", Signal::NoRequest, &|| house.connect(house.plain).map(drop)),
        ("nothing for long", Signal::NoRequest, &|| talk(house.plain, b"")),
        ("a scanner", Signal::Scanner, &|| status(404, "/%2Eenv", "")),
        ("what was there once", Signal::Scanner, &|| status(410, "/.git/config", "")),
        ("what is not there", Signal::NotFound, &|| status(404, "/nothing", "")),
        ("what the service lacks", Signal::NotFound, &|| status(404, "/service/nothing", "")),
    ];
    for (what, signal, step) in steps {
        step().with_context(|| what.to_owned())?;
        before = becomes(&gateway, &before, (signal, 1)).with_context(|| what.to_owned())?;
    }
    Ok(())
}

#[test]
fn tunnels_that_are_refused_and_readers_that_do_not_read() -> Result {
    let house = House::new()?;
    let gateway = house.start()?;
    let mut before = noticed(&gateway)?;
    for (path, status) in [("/service/nothing", 404), ("/nothing", 404), ("/post", 405)] {
        assert_eq!(house.get(path, UPGRADE)?, status);
        before = becomes(&gateway, &before, (Signal::WebsocketAbuse, 1))?;
    }
    // A version that nobody speaks, and the same over HTTP/2.
    assert_eq!(house.get("/nothing", &UPGRADE.replace("13", "7"))?, 404);
    before = becomes(&gateway, &before, (Signal::WebsocketAbuse, 1))?;
    let mut client = house.http2()?;
    let fields = [(":protocol", "websocket"), ("sec-websocket-version", "13")];
    let head = [&request("CONNECT", "/nothing")[..], &fields].concat();
    client.frames(&[Frame::headers(1, false, &head)])?;
    client.wait(|frame| frame.kind == kind::HEADERS && frame.stream == 1)?;
    before = becomes(&gateway, &before, (Signal::WebsocketAbuse, 1))?;
    // What else is refused about such a request goes before, and a scanner's path too.
    assert_eq!(house.get("/.env", UPGRADE)?, 404);
    before = becomes(&gateway, &before, (Signal::Scanner, 1))?;
    let mut reader = house.connect(house.plain)?;
    reader.send(b"GET /service/large HTTP/1.1\r\nhost: a\r\n\r\n")?;
    becomes(&gateway, &before, (Signal::SlowRequest, 1))?;
    Ok(())
}

#[test]
fn what_is_no_fault_of_the_client_is_no_signal() -> Result {
    let house = House::new()?;
    let gateway = house.start()?;
    let get = |wanted: u16, path: &str, fields: &str| {
        let status = house.get(path, fields)?;
        assert_eq!(status, wanted, "{path}");
        Ok::<_, anyhow::Error>(())
    };
    // What services do.
    get(500, "/service/fail", "")?;
    get(504, "/service/hang", "")?;
    get(502, "/service/close", "")?;
    for _ in 0..2 {
        assert!([502, 503].contains(&house.get("/nobody", "")?));
    }
    get(401, "/service/unauthorized", UPGRADE)?;
    get(429, "/service/busy", UPGRADE)?;
    // What others have used up.
    assert_eq!(house.get_from([127, 0, 0, 3].into(), "/crowd", "")?, 200);
    get(429, "/crowd", "")?;
    // No credential, an old one; the issuer is not there.
    get(401, "/staff", "")?;
    get(401, "/staff", &house.bearer(&json!({"exp": now() - 100}))?)?;
    get(401, "/staff", &(UPGRADE.to_owned() + &house.bearer(&json!({"exp": now() - 100}))?))?;
    // What honest clients do every day.
    get(405, "/post", "")?;
    let long =
        b"POST /post HTTP/1.1\r\nhost: a\r\ncontent-length: 9999\r\nconnection: close\r\n\r\n";
    assert!(house.talk(house.plain, long)?.starts_with(b"HTTP/1.1 413"));
    let mut leaves = house.connect(house.plain)?;
    leaves.send(b"GET /service/hang HTTP/1.1\r\nhost: a\r\n\r\n")?;
    drop(leaves);
    let url = format!("https://api.test:{}/", house.tls.port());
    let resolve = format!("api.test:{}:127.0.0.1", house.tls.port());
    let curl = house.site.curl(&["--interface", "127.0.0.2", "--resolve", &resolve, &url])?;
    assert_eq!(curl.status.code(), Some(60), "it trusts nobody that it does not know");
    // Those who must never be blocked: the host itself, and a trusted proxy that speaks for nobody.
    for spared in [[127, 0, 0, 1], [127, 0, 0, 9]] {
        assert_eq!(house.get_from(spared.into(), "/.env", "")?, 404);
        let mut client = house.site.connect(Some(spared.into()), house.plain)?;
        client.send(b"nonsense\r\n\r\n")?;
        assert_eq!(client.receive()?.status, 400);
    }
    let named = "x-forwarded-for: 127.0.0.1\r\n";
    assert_eq!(house.get_from([127, 0, 0, 9].into(), "/.env", named)?, 404);
    // Whom a rule denies.
    gateway.cli(&["deny", "add", "127.0.0.5"])?.ok()?;
    let mut denied = house.site.connect(Some([127, 0, 0, 5].into()), house.plain)?;
    assert!(denied.get("/.env").is_err());
    let named = "x-forwarded-for: 127.0.0.5\r\n";
    assert_eq!(house.get_from([127, 0, 0, 9].into(), "/.env", named)?, 403);
    // One that counts, after all of them, for all are the same worker's.
    get(404, "/nothing", "")?;
    becomes(&gateway, &BTreeMap::new(), (Signal::NotFound, 1))?;
    Ok(())
}

#[test]
fn without_the_section_and_without_weight_nothing_is_noticed() -> Result {
    let house = House::new()?;
    let mut config = house.config()?;
    config.as_object_mut().context("no object")?.remove("feedback");
    let gateway = house.start_with(config.clone())?;
    for _ in 0..2 {
        assert_eq!(house.get("/.env", "")?, 404);
        house.talk(house.plain, b"nonsense\r\n\r\n")?;
    }
    assert_eq!(noticed(&gateway)?, BTreeMap::new());
    // A reload is enough, also for connections that are open; and a signal that no rule counts is none.
    let mut open = house.connect(house.plain)?;
    assert_eq!(open.get("/nothing")?.status, 404);
    let only = json!({"name": "lost", "when": {"signal": "not_found", "count": 1000, "per": "1m"},
                      "ban": {"for": "1m"}});
    config["feedback"] = json!({"rules": [only]});
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    house.talk(house.plain, b"nonsense\r\n\r\n")?;
    assert_eq!(open.get("/nothing")?.status, 404);
    assert_eq!(open.get("/.env")?.status, 404);
    becomes(&gateway, &BTreeMap::new(), (Signal::NotFound, 2))?;
    Ok(())
}
