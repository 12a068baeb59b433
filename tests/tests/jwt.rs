//! Signed tokens through the real binary, whatever the issuer does.

use std::fs;
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
}

impl House {
    fn new() -> Result<Self> {
        let site = Site::new()?;
        let idp = Idp::start(&site)?;
        let service = site.origin(|_| Reply::Answer(200, "ok"))?;
        let listen = site.free_address()?;
        Ok(Self { site, idp, service, listen })
    }

    /// A gateway whose one authenticator is this one; nothing is remembered, so that every answer is by the keys.
    fn gateway(&self, jwt: Value) -> Result<Gateway<'_>> {
        let mut jwt = jwt;
        jwt.as_object_mut().context("not an object")?.insert("remember".to_owned(), 0.into());
        let config = json!({
            "listen": [{"address": self.listen.to_string()}],
            "workers": 2,
            "kernel": {"attach": "off"},
            "auth": {"staff": {"jwt": jwt}},
            "upstreams": {"service": {"endpoints": [self.service.address.to_string()]}},
            "routes": [
                {"match": {"path": "/admin"}, "auth": "staff", "require": {"roles": ["admin"]},
                 "upstream": "service"},
                {"match": {"path": "/{rest*}"}, "auth": "staff", "upstream": "service"},
            ],
        });
        let mut gateway = Gateway::unprivileged(self.site.namespace.as_ref(), config)?;
        gateway.start()?;
        Ok(gateway)
    }

    fn jwks(&self) -> Value {
        json!({"jwks": {"url": self.idp.jwks_url(), "cooldown": "1s", "timeout": "500ms"}})
    }

    /// The status for `GET PATH` with this token.
    fn ask(&self, path: &str, token: &str) -> Result<u16> {
        let mut client = self.site.connect(None, self.listen)?;
        let head =
            format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n");
        client.send(head.as_bytes())?;
        Ok(client.receive()?.status)
    }

    /// Waits until that is the status.
    fn becomes(&self, token: &str, status: u16) -> Result {
        let what = format!("status {status}");
        wait_for(&what, PATIENCE, || Ok((self.ask("/", token)? == status).then_some(())))
    }
}

#[test]
fn good_tokens_reach_the_service_and_bad_ones_do_not() -> Result {
    let house = House::new()?;
    let mut jwt = house.jwks();
    jwt["issuer"] = "https://idp.test/".into();
    jwt["audience"] = "api".into();
    jwt["strip"] = true.into();
    let _gateway = house.gateway(jwt)?;
    let claims = json!({"iss": "https://idp.test/", "aud": ["api", "other"], "sub": "ann"});
    let good = house.idp.token(&claims)?;
    assert_eq!(house.ask("/", &good)?, 200);
    assert_eq!(house.ask("/admin", &good)?, 403);
    let mut admin = claims.clone();
    admin["roles"] = json!(["admin"]);
    assert_eq!(house.ask("/admin", &house.idp.token(&admin)?)?, 200);
    let served = house.service.requests();
    assert_eq!(served.len(), 2);
    assert!(served.iter().all(|request| request.header("authorization").is_none()));

    let changed = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        house.idp.token(&claims)
    };
    let signature = good.rsplit('.').next().unwrap_or_default();
    let none = good.replacen(good.split('.').next().unwrap_or_default(), "eyJhbGciOiJub25lIn0", 1);
    for bad in [
        changed("exp", (now() - 100).into())?,
        changed("nbf", (now() + 100).into())?,
        changed("iss", "https://other.test/".into())?,
        changed("aud", "other".into())?,
        changed("exp", "soon".into())?,
        good.replacen(signature, "", 1),
        good.replacen(signature, &"A".repeat(86), 1),
        none.clone(),
        none.replacen(signature, "", 1),
        "opaque".to_owned(),
        "a".repeat(10_000),
        String::new(),
    ] {
        assert_eq!(house.ask("/", &bad)?, 401, "{bad}");
    }
    assert_eq!(house.service.requests().len(), 2, "a refused request costs the service nothing");
    let bare = house.site.connect(None, house.listen)?.get("/")?;
    assert_eq!(
        (bare.status, bare.header("www-authenticate")),
        (401, Some("Bearer realm=\"staff\""))
    );
    assert_eq!(house.idp.jwks_calls(), 1);
    Ok(())
}

#[test]
fn a_new_key_is_found_at_once_and_made_up_ones_cost_the_issuer_nothing() -> Result {
    let house = House::new()?;
    let mut jwt = house.jwks();
    jwt["jwks"]["cooldown"] = "1h".into();
    let _gateway = house.gateway(jwt)?;
    let first = house.idp.token(&json!({}))?;
    house.becomes(&first, 200)?;
    let calls = house.idp.jwks_calls();
    assert_eq!(calls, 1);
    for number in 0..50 {
        let made_up = house.idp.token_by(&format!("made up {number}"), &json!({}))?;
        assert_eq!(house.ask("/", &made_up)?, 401);
    }
    assert_eq!(house.idp.jwks_calls(), calls, "the cooldown is not over");
    drop(_gateway);

    let house = House::new()?;
    let _gateway = house.gateway(house.jwks())?;
    house.becomes(&house.idp.token(&json!({}))?, 200)?;
    house.idp.rotate(0)?;
    house.becomes(&house.idp.token(&json!({}))?, 200)?;
    assert!(house.idp.jwks_calls() >= 2);
    Ok(())
}

#[test]
fn requests_that_wait_for_keys_cost_the_issuer_one_call() -> Result {
    let house = House::new()?;
    house.idp.feel(Mood::Ill(Reply::Hang));
    let mut jwt = house.jwks();
    jwt["jwks"]["cooldown"] = "1h".into();
    jwt["jwks"]["timeout"] = "2s".into();
    let _gateway = house.gateway(jwt)?;
    let token = house.idp.token(&json!({}))?;
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asks: Vec<_> =
            (0..40).map(|_| scope.spawn(|| house.ask("/", &token).unwrap_or_default())).collect();
        asks.into_iter().map(|ask| ask.join().unwrap_or_default()).collect()
    });
    assert!(statuses.iter().all(|status| *status == 503), "{statuses:?}");
    assert_eq!(house.idp.jwks_calls(), 1);
    Ok(())
}

/// Whatever the issuer says instead of a set of keys: those that are known go on, and are changed when it is well.
fn is_no_set_of_keys(ills: impl IntoIterator<Item = (&'static str, Reply)>) -> Result<String> {
    let house = House::new()?;
    let gateway = house.gateway(house.jwks())?;
    let known = house.idp.token(&json!({}))?;
    house.becomes(&known, 200)?;
    for (name, ill) in ills {
        house.idp.feel(Mood::Ill(ill));
        let calls = house.idp.jwks_calls();
        let unknown = house.idp.token_by("unknown", &json!({}))?;
        wait_for("a look at the keys", PATIENCE, || {
            let status = house.ask("/", &unknown)?;
            assert!(matches!(status, 401 | 503), "{name}: {status}");
            Ok((status == 503 && house.idp.jwks_calls() > calls).then_some(()))
        })?;
        assert_eq!(house.ask("/", &known)?, 200, "{name}");
    }
    house.idp.feel(Mood::Well);
    house.idp.rotate(0)?;
    house.becomes(&house.idp.token(&json!({}))?, 200)?;
    assert_eq!(house.ask("/", &known)?, 401, "its key is gone");
    Ok(gateway.log())
}

fn json_reply(text: &str) -> Reply {
    reply(200, "application/json", text)
}

#[test]
fn a_huge_answer_is_no_set_of_keys() -> Result {
    let keys: Vec<Value> = (0..10_000)
        .map(|number| json!({"kty": "OKP", "crv": "Ed25519", "kid": number.to_string()}))
        .collect();
    let log = is_no_set_of_keys([
        ("ten thousand keys", json_reply(&json!({"keys": keys}).to_string())),
        ("huge", json_reply(&"x".repeat(2 << 20))),
    ])?;
    assert!(log.contains("has 10000 keys, which is more than 1000"), "{log}");
    assert!(log.contains("answered with more than 1048576 bytes"), "{log}");
    Ok(())
}

#[test]
fn a_slow_answer_is_no_set_of_keys() -> Result {
    let stalls = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"ke";
    is_no_set_of_keys([("silent", Reply::Hang), ("slow", Reply::Stall(stalls))]).map(drop)
}

#[test]
fn an_empty_answer_is_no_set_of_keys() -> Result {
    is_no_set_of_keys([
        ("empty", json_reply("")),
        ("an empty set", json_reply(r#"{"keys": []}"#)),
        ("unknown types", json_reply(r#"{"keys": [{"kty": "AKP"}]}"#)),
    ])
    .map(drop)
}

#[test]
fn a_web_page_is_no_set_of_keys() -> Result {
    is_no_set_of_keys([
        ("a web page", reply(200, "text/html", "<html>log in</html>")),
        ("a web page that says it is JSON", json_reply("<html></html>")),
    ])
    .map(drop)
}

#[test]
fn keys_that_are_known_go_on_while_the_issuer_is_ill() -> Result {
    is_no_set_of_keys([
        ("down", reply(503, "text/plain", "busy")),
        ("gone", Reply::Close),
        ("no set", json_reply(r#"{"error": "busy"}"#)),
        ("no HTTP", Reply::Raw(b"220 smtp ready\r\n")),
    ])
    .map(drop)
}

#[test]
fn without_any_key_the_answer_is_503_until_the_issuer_is_back() -> Result {
    let house = House::new()?;
    house.idp.feel(Mood::Ill(reply(500, "text/plain", "no")));
    let _gateway = house.gateway(house.jwks())?;
    let token = house.idp.token(&json!({}))?;
    assert_eq!(house.ask("/", &token)?, 503);
    assert_eq!(house.site.connect(None, house.listen)?.get("/")?.status, 401);
    house.idp.feel(Mood::Well);
    house.becomes(&token, 200)
}

#[test]
fn a_token_is_revoked_while_the_gateway_runs() -> Result {
    let house = House::new()?;
    let folder = tempfile::tempdir()?;
    let list = folder.path().join("revoked");
    fs::write(&list, "# nobody yet\n")?;
    readable(folder.path())?;
    let mut jwt = house.jwks();
    jwt["revoked"] = list.display().to_string().into();
    let gateway = house.gateway(jwt)?;
    let token = house.idp.token(&json!({"jti": "t1", "sub": "ann"}))?;
    let other = house.idp.token(&json!({"jti": "t2", "sub": "ann"}))?;
    house.becomes(&token, 200)?;
    replace(&list, "jti t1\n")?;
    house.becomes(&token, 401)?;
    assert_eq!(house.ask("/", &other)?, 200);
    replace(&list, "what is this\n")?;
    wait_for("a complaint", PATIENCE, || Ok(gateway.log().contains("line 1").then_some(())))?;
    assert_eq!((house.ask("/", &token)?, house.ask("/", &other)?), (401, 200));
    Ok(())
}

#[test]
fn keys_in_files_are_watched_and_mistakes_refuse_the_start() -> Result {
    let house = House::new()?;
    let folder = tempfile::tempdir()?;
    readable(folder.path())?;
    let file = folder.path().join("keys.json");
    fs::write(&file, "{}")?;
    let jwt = json!({"jwks_file": file.display().to_string()});
    let error = house.gateway(jwt.clone()).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("auth.staff: ") && error.contains("has no list `keys`"), "{error}");
    let published = |idp: &Idp| -> Result<String> {
        let address = idp.jwks_url();
        Ok(String::from_utf8(house.site.curl(&[&address])?.stdout)?)
    };
    replace(&file, &published(&house.idp)?)?;
    let _gateway = house.gateway(jwt)?;
    let old = house.idp.token(&json!({}))?;
    assert_eq!(house.ask("/", &old)?, 200);
    house.idp.rotate(0)?;
    let new = house.idp.token(&json!({}))?;
    assert_eq!(house.ask("/", &new)?, 401);
    replace(&file, &published(&house.idp)?)?;
    house.becomes(&new, 200)?;
    assert_eq!(house.ask("/", &old)?, 401);
    Ok(())
}

/// In one step, as an operator should.
fn replace(path: &std::path::Path, text: &str) -> Result {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, path)?)
}

/// The daemon reads it as a user of its own.
fn readable(folder: &std::path::Path) -> Result {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?)
}
