//! Opaque tokens that an issuer is asked about, through the real binary, whatever the issuer does.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use harness::gateway::Gateway;
use harness::idp::{Idp, Mood, now, reply};
use harness::origin::{Origin, Reply};
use harness::site::Site;
use harness::{Result, wait_for};
use serde_json::{Value, json};

/// Longer than anything here takes; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct House {
    site: Site,
    idp: Idp,
    service: Origin,
    listen: SocketAddr,
    folder: tempfile::TempDir,
}

impl House {
    fn new() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let site = Site::new()?;
        let idp = Idp::start(&site)?;
        let service = site.origin(|_| Reply::Answer(200, "ok"))?;
        let (listen, folder) = (site.free_address()?, tempfile::tempdir()?);
        // The daemon reads it as a user of its own.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        std::fs::write(folder.path().join("secret"), "s3cr:t\n")?;
        Ok(Self { site, idp, service, listen, folder })
    }

    fn gateway(&self, options: Value) -> Result<Gateway<'_>> {
        let secret = self.folder.path().join("secret").display().to_string();
        let mut section = json!({
            "url": self.idp.introspection_url(),
            "client_id": "gate way",
            "client_secret": {"file": secret},
            "timeout": "500ms",
            "pause": "1s",
        });
        let members = section.as_object_mut().context("not an object")?;
        members.extend(options.as_object().context("not an object")?.clone());
        members.retain(|_, value| !value.is_null());
        let config = json!({
            "listen": [{"address": self.listen.to_string()}],
            "workers": 2,
            "kernel": {"attach": "off"},
            "auth": {"opaque": {"introspection": section}},
            "upstreams": {"service": {"endpoints": [self.service.address.to_string()]}},
            "routes": [
                {"match": {"path": "/write"}, "auth": "opaque", "require": {"scopes": ["write"]},
                 "upstream": "service"},
                {"match": {"path": "/{rest*}"}, "auth": "opaque", "upstream": "service"},
            ],
        });
        let mut gateway = Gateway::unprivileged(self.site.namespace.as_ref(), config)?;
        gateway.start()?;
        Ok(gateway)
    }

    fn ask(&self, path: &str, token: &str) -> Result<u16> {
        let mut client = self.site.connect(None, self.listen)?;
        client.send(&head(path, token))?;
        Ok(client.receive()?.status)
    }

    fn becomes(&self, token: &str, status: u16) -> Result {
        let what = format!("status {status}");
        wait_for(&what, PATIENCE, || Ok((self.ask("/", token)? == status).then_some(())))
    }

    fn calls(&self) -> usize {
        self.idp.introspections().len()
    }
}

fn head(path: &str, token: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n").into_bytes()
}

#[test]
fn active_tokens_reach_the_service_and_the_gateway_says_who_it_is() -> Result {
    let house = House::new()?;
    house.idp.grant("good", json!({"active": true, "sub": "ann", "scope": "read write"}));
    house.idp.grant("reads", json!({"active": true, "sub": "ann", "scope": "read"}));
    let gateway = house.gateway(json!({}))?;
    assert_eq!((house.ask("/", "good")?, house.ask("/write", "good")?), (200, 200));
    assert_eq!((house.ask("/", "reads")?, house.ask("/write", "reads")?), (200, 403));
    assert_eq!((house.ask("/", "unknown")?, house.ask("/", "a%20b\u{e9}")?), (401, 401));
    let served = house.service.requests();
    let first = served.first().and_then(|request| request.header("authorization"));
    assert_eq!(first, Some("Bearer good"), "it is not stripped unless that is configured");
    let asked = house.idp.introspections();
    assert_eq!(asked.len(), 3, "each token once, and what is no token never");
    let first = asked.first().context("no call")?;
    // `gate%20way:s3cr%3At`: each half is encoded for itself.
    assert_eq!(first.header("authorization"), Some("Basic Z2F0ZSUyMHdheTpzM2NyJTNBdA=="));
    assert_eq!(first.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(first.body, b"token=good&token_type_hint=access_token");
    assert!(!gateway.log().contains("s3cr"), "{}", gateway.log());
    drop(gateway);

    let post = house.gateway(json!({"client_auth": "post"}))?;
    assert_eq!(house.ask("/", "good")?, 200);
    drop(post);
    let secret = house.folder.path().join("secret").display().to_string();
    let bearer = json!({"client_id": null, "client_secret": null, "bearer": {"file": secret}});
    let _bearer = house.gateway(bearer)?;
    assert_eq!(house.ask("/", "good")?, 200);
    let asked = house.idp.introspections();
    let [.., post, bearer] = asked.as_slice() else { anyhow::bail!("no calls") };
    let form =
        "token=good&token_type_hint=access_token&client_id=gate%20way&client_secret=s3cr%3At";
    assert_eq!((post.body.as_slice(), post.header("authorization")), (form.as_bytes(), None));
    assert_eq!(bearer.header("authorization"), Some("Bearer s3cr:t"));
    Ok(())
}

#[test]
fn ten_thousand_requests_with_a_hundred_tokens_make_a_hundred_calls() -> Result {
    const CLIENTS: usize = 20;
    const REQUESTS: usize = 500;
    const TOKENS: usize = 100;
    let house = House::new()?;
    for number in 0..TOKENS {
        house.idp.grant(&format!("token-{number}"), json!({"active": true, "sub": "ann"}));
    }
    let _gateway = house.gateway(json!({"timeout": "20s", "cache": "1h"}))?;
    let one = |client: usize| -> Result<usize> {
        let mut connection = house.site.connect(None, house.listen)?;
        let mut good = 0;
        for number in 0..REQUESTS {
            let token = format!("token-{}", (client * 37 + number) % TOKENS);
            connection.send(&head("/", &token))?;
            good += usize::from(connection.receive()?.status == 200);
        }
        Ok(good)
    };
    let good: usize = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|client| scope.spawn(move || one(client).unwrap_or(0))).collect();
        clients.into_iter().map(|client| client.join().unwrap_or(0)).sum()
    });
    assert_eq!(good, CLIENTS * REQUESTS);
    assert_eq!(house.calls(), TOKENS);
    Ok(())
}

#[test]
fn one_connection_serves_one_question_after_the_other_and_a_dead_one_is_replaced() -> Result {
    let house = House::new()?;
    house.idp.feel(Mood::Ill(Reply::Answer(200, r#"{"active": true, "sub": "ann"}"#)));
    let _gateway = house.gateway(json!({"timeout": "20s"}))?;
    for number in 0..20 {
        assert_eq!(house.ask("/", &format!("kept-{number}"))?, 200);
    }
    assert_eq!((house.calls(), house.idp.connections()), (20, 1));
    // Answers, says that it goes on, and goes: what is asked next meets a connection that has ended.
    let text = r#"{"active": true, "sub": "ann"}"#;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
    house.idp.feel(Mood::Ill(Reply::Bytes(format!("{head}{text}").into_bytes())));
    for number in 0..20 {
        assert_eq!(house.ask("/", &format!("ended-{number}"))?, 200);
    }
    assert_eq!(house.calls(), 40);
    Ok(())
}

#[test]
fn an_answer_holds_until_the_token_expires_and_no_longer() -> Result {
    let house = House::new()?;
    let until = json!({"active": true, "sub": "ann", "exp": now() + 3});
    house.idp.grant("short", until);
    let _gateway = house.gateway(json!({"cache": "1h", "leeway": "0s"}))?;
    assert_eq!(house.ask("/", "short")?, 200);
    house.idp.grant("short", json!({"active": false}));
    house.becomes("short", 401)?;
    assert_eq!(house.calls(), 2);
    Ok(())
}

/// Whatever the issuer says instead of an answer: new tokens are answered with 503, and known ones go on.
fn is_no_answer(ills: impl IntoIterator<Item = (&'static str, Reply)>) -> Result<String> {
    let house = House::new()?;
    house.idp.grant("known", json!({"active": true, "sub": "ann"}));
    let gateway = house.gateway(json!({"cache": "1h", "failures": 1000}))?;
    assert_eq!(house.ask("/", "known")?, 200);
    for (number, (name, ill)) in ills.into_iter().enumerate() {
        house.idp.feel(Mood::Ill(ill));
        assert_eq!(house.ask("/", &format!("new-{number}"))?, 503, "{name}");
        assert_eq!(house.ask("/", "known")?, 200, "{name}");
    }
    Ok(gateway.log())
}

fn json_reply(text: &str) -> Reply {
    reply(200, "application/json", text)
}

#[test]
fn a_huge_answer_is_none() -> Result {
    let huge = format!("{{\"active\": true, \"x\": \"{}\"}}", "x".repeat(100_000));
    let log = is_no_answer([("huge", json_reply(&huge))])?;
    assert!(log.contains("answered with more than 65536 bytes"), "{log}");
    Ok(())
}

#[test]
fn a_slow_answer_is_none() -> Result {
    let stalls = b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{\"active\":";
    is_no_answer([("silent", Reply::Hang), ("slow", Reply::Stall(stalls))]).map(drop)
}

#[test]
fn an_empty_answer_is_none() -> Result {
    is_no_answer([("empty", json_reply("")), ("without a word", json_reply("{}"))]).map(drop)
}

#[test]
fn a_web_page_is_no_answer() -> Result {
    is_no_answer([
        ("a web page", reply(200, "text/html", r#"{"active": true}"#)),
        ("a web page that says it is JSON", json_reply("<html></html>")),
    ])
    .map(drop)
}

#[test]
fn an_issuer_that_is_ill_says_nothing_about_tokens() -> Result {
    is_no_answer([
        ("down", reply(503, "text/plain", "busy")),
        ("our secret is wrong", reply(401, "application/json", r#"{"active": true}"#)),
        ("sent elsewhere", reply(302, "text/plain", "over there")),
        ("gone", Reply::Close),
    ])
    .map(drop)
}

#[test]
fn what_does_not_say_true_or_false_is_no_answer() -> Result {
    is_no_answer([
        ("no object", json_reply("true")),
        ("a text", json_reply(r#"{"active": "true"}"#)),
        ("a number", json_reply(r#"{"active": 1}"#)),
        ("both", json_reply(r#"{"active": false, "active": true}"#)),
    ])
    .map(drop)
}

#[test]
fn claims_of_an_answer_that_do_not_hold_are_401() -> Result {
    let house = House::new()?;
    let _gateway = house.gateway(json!({}))?;
    house.idp.grant("mistyped", json!({"active": true, "sub": 1}));
    house.idp.grant("expired", json!({"active": true, "exp": now() - 100}));
    assert_eq!((house.ask("/", "mistyped")?, house.ask("/", "expired")?), (401, 401));
    Ok(())
}

#[test]
fn an_issuer_that_is_down_is_left_alone_for_a_while_and_found_again() -> Result {
    let house = House::new()?;
    house.idp.grant("good", json!({"active": true, "sub": "ann"}));
    house.idp.feel(Mood::Ill(reply(503, "text/plain", "busy")));
    let _gateway = house.gateway(json!({"failures": 3, "pause": "1h"}))?;
    for number in 0..50 {
        assert_eq!(house.ask("/", &format!("token-{number}"))?, 503);
    }
    assert_eq!(house.calls(), 3);
    drop(_gateway);

    let _gateway = house.gateway(json!({"failures": 3, "pause": "1s"}))?;
    for _ in 0..5 {
        assert_eq!(house.ask("/", "good")?, 503);
    }
    house.idp.feel(Mood::Well);
    house.becomes("good", 200)
}

#[test]
fn a_token_that_is_not_active_is_asked_about_once() -> Result {
    let house = House::new()?;
    let _gateway = house.gateway(json!({"inactive_cache": "5m"}))?;
    for _ in 0..20 {
        assert_eq!(house.ask("/", "unknown")?, 401);
    }
    assert_eq!(house.calls(), 1);
    Ok(())
}
