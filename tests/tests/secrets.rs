//! What proves who somebody is, and what the gateway itself proves it by, is shown nowhere: whatever comes in, in log,
//! access log, audit trail, metrics, listings, explanations and answers.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harness::gateway::{Gateway, NOBODY};
use harness::idp::{Idp, now};
use harness::origin::Reply;
use harness::site::{PATIENCE, Site};
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

/// Of `correct horse`, by crypt(3).
const HASH: &str = "$2b$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e";
const SIGNING: &str = "signing-secret-of-a-partner-0123456789";
const CLIENT: &str = "client-secret-of-the-gateway";
const OPAQUE: &str = "opaque-token-of-ann";
const REDIS: &str = "password-of-the-gateway-at-redis";
const SHARED: &str = "secret-that-the-issuer-shares-with-the-gateway-0123456789-0123456789";

fn config(listen: SocketAddr, endpoint: SocketAddr, idp: &Idp, folder: &Path) -> Value {
    let route = |path: &str, auth: &str| {
        json!({"match": {"path": path}, "auth": auth, "upstream": "service",
               "limits": [{"per": ["key", "user"], "rate": "1000/h"}]})
    };
    json!({
        "listen": [{"address": listen.to_string()}],
        "kernel": {"attach": "off"},
        "access_log": {"path": folder.join("access.log"), "headers": ["Referer"]},
        "audit": {"path": folder.join("audit.jsonl")},
        // Nobody is there, which is said.
        "state": {"redis": {"addresses": ["127.0.0.1:1"], "password": {"file": folder.join("redis")}}},
        "identity": {"token": {
            "key": {"file": folder.join("identity")}, "issuer": "https://a/", "audience": "b",
        }},
        "auth": {
            "keys": {"api_key": {"key": [{"header": "X-API-Key"}, {"query": "ticket"}]}},
            "tokens": {"jwt": {
                "jwks": idp.jwks_url(),
                "token": [{"header": "Authorization"}, {"query": "Proof"}, {"cookie": "session"}],
            }},
            "opaque": {"introspection": {
                "url": idp.introspection_url(), "client_id": "gateway",
                "client_secret": {"file": folder.join("client")},
            }},
            "signed": {"hmac": {"keys": [
                {"id": "one", "consumer": "acme", "secret": {"file": folder.join("signing")}},
            ]}},
            "admins": {"basic": {"htpasswd": folder.join("users")}},
            "shared": {"jwt": {"secret": {"file": folder.join("shared")}}},
        },
        "upstreams": {"service": {"endpoints": [endpoint.to_string()]}},
        "routes": [
            route("/keys", "keys"), route("/tokens", "tokens"), route("/opaque", "opaque"),
            route("/signed", "signed"), route("/admins", "admins"), route("/shared", "shared"),
        ],
    })
}

/// A key that tokens for services are signed by.
fn identity_key() -> Result<String> {
    let encoded = STANDARD.encode(Ed25519KeyPair::generate()?.to_pkcs8v1()?);
    Ok(format!("-----BEGIN PRIVATE KEY-----\n{encoded}\n-----END PRIVATE KEY-----\n"))
}

/// Requests whose credentials hold, and those whose do not: a target and a header field each.
fn requests(key: &str, token: &str, good: &str, wrong: &str) -> [Vec<(String, String)>; 2] {
    let none = String::new();
    let holds = vec![
        ("/keys".to_owned(), format!("X-API-Key: {key}")),
        (format!("/keys?a=b&ticket={key}"), none.clone()),
        (format!("/keys?%74icke%54=x&%74icket={key}"), none),
        ("/tokens".to_owned(), format!("Authorization: Bearer {token}")),
        (format!("/tokens?Proof={token}"), "Referer: http://a/?x".to_owned()),
        ("/tokens".to_owned(), format!("Cookie: session={token}")),
        ("/opaque".to_owned(), format!("Authorization: Bearer {OPAQUE}")),
        ("/admins".to_owned(), format!("Authorization: Basic {good}")),
    ];
    let does_not = vec![
        (format!("/keys?ticket={key}x"), format!("Referer: http://a/?ticket={key}&Proof={token}")),
        (format!("/tokens?proof={token}x"), format!("Authorization: Bearer {token}x")),
        ("/opaque".to_owned(), format!("Authorization: Bearer {OPAQUE}x")),
        ("/admins".to_owned(), format!("Authorization: Basic {wrong}")),
        ("/signed".to_owned(), format!("X-API-Key: one\r\nX-Signature: {SIGNING}")),
        ("/shared".to_owned(), format!("Authorization: Bearer {SHARED}")),
    ];
    [holds, does_not]
}

/// What a request is answered, and what `gateway explain` says of it.
fn told(
    (site, gateway, listen): (&Site, &Gateway<'_>, SocketAddr),
    (target, field): &(String, String),
    status: u16,
) -> Result<String> {
    let answer = wait_for("keys of the issuer", PATIENCE, || {
        let mut client = site.connect(None, listen)?;
        let end = if field.is_empty() { "\r\n" } else { "\r\n\r\n" };
        client.send(format!("GET {target} HTTP/1.1\r\nHost: h\r\n{field}{end}").as_bytes())?;
        Ok(Some(client.receive()?).filter(|answer| answer.status != 503))
    })?;
    assert_eq!(answer.status, status, "{target} {field}");
    let file = gateway.config().display().to_string();
    // What was asked is said again, for whoever has typed it.
    let url = format!("http://h{}", target.split('?').next().unwrap_or_default());
    let field = field.split("\r\n").next().filter(|field| !field.is_empty());
    let options = field.map_or(Vec::new(), |field| vec!["-H", field]);
    let explained = gateway.cli(&[&["explain", &file, "GET", &url][..], &options].concat())?;
    Ok(format!("{:?} {} {explained}", answer.headers, answer.text()))
}

/// What the commands of an operator say, also where they are given a key instead of its id.
fn commands(gateway: &Gateway<'_>, key: &str, id: &str) -> Result<String> {
    let mut said = String::new();
    for verb in ["revoke", "rotate"] {
        let refused = gateway.cli(&["keys", verb, key])?;
        refused.refused(2, "a whole key")?;
        assert!(refused.stderr.contains(id), "{refused}");
        said += &refused.to_string();
    }
    let config = gateway.config().display().to_string();
    for listing in [
        &["status"][..],
        &["metrics"],
        &["keys", "list"],
        &["check", &config],
        &["top", "--once"],
        &["why", "127.0.0.1"],
        &["bans", "list"],
    ] {
        said += &gateway.cli(listing)?.ok()?.to_string();
        said += &gateway.cli(&[listing, &["--json"]].concat())?.ok()?.to_string();
    }
    // What anybody on the host may see of the process.
    said += &fs::read_to_string(format!("/proc/{}/cmdline", gateway.pid()?))?;
    Ok(said)
}

#[test]
fn what_proves_who_somebody_is_is_shown_nowhere() -> Result {
    let (site, folder) = (Site::new()?, tempfile::tempdir()?);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    let users = format!("ann:{HASH}");
    let pem = identity_key()?;
    let files = [
        ("signing", SIGNING),
        ("client", CLIENT),
        ("users", &users),
        ("redis", REDIS),
        ("shared", SHARED),
        ("identity", &pem),
    ];
    for (name, text) in files {
        fs::write(folder.path().join(name), text)?;
    }
    let own = pem.lines().nth(1).unwrap_or_default();
    let origin = site.origin(|_| Reply::Answer(200, "ok"))?;
    let (idp, listen) = (Idp::start(&site)?, site.free_address()?);
    idp.grant(OPAQUE, json!({"active": true, "sub": "ann"}));
    let config = config(listen, origin.address, &idp, folder.path());
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let made = gateway.cli(&["keys", "create", "--consumer", "acme", "--json"])?.ok()?.json()?;
    let text = |name: &str| made[name].as_str().unwrap_or_default().to_owned();
    let (key, id) = (text("key"), text("id"));
    let token = idp.token(&json!({"sub": "ann", "exp": now() + 600}))?;
    let (correct, staple) = ("correct horse", "staple battery");
    let [password, wrong] = [correct, staple].map(|word| STANDARD.encode(format!("ann:{word}")));

    let mut shown = String::new();
    for (requests, status) in requests(&key, &token, &password, &wrong).iter().zip([200, 401]) {
        for request in requests {
            shown += &told((&site, &gateway, listen), request, status)?;
        }
    }
    shown += &commands(&gateway, &key, &id)?;
    gateway.stop()?;
    for file in ["access.log", "audit.jsonl"] {
        shown += &fs::read_to_string(folder.path().join(file))?;
    }
    shown += &gateway.log();
    assert!(shown.contains("\"query\":\"a=b&ticket=***\""), "the access log is in it: {shown}");
    let of_callers = [&*key, &token, &password, &wrong, correct, staple, OPAQUE];
    for secret in of_callers.into_iter().chain([HASH, SIGNING, CLIENT, REDIS, SHARED, own]) {
        let place = shown.find(secret).map(|at| {
            let around = at.saturating_sub(200)..(at + 200).min(shown.len());
            shown.get(around).unwrap_or_default().to_owned()
        });
        assert_eq!(place, None, "{secret}");
    }
    Ok(())
}

#[test]
fn what_is_in_memory_is_for_nobody_but_root() -> Result {
    require_root()?;
    let site = Site::new()?;
    let config = json!({
        "listen": [{"address": site.free_address()?.to_string()}],
        "kernel": {"attach": "off"},
        "upstreams": {"service": {"endpoints": ["echo"]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let process = format!("/proc/{}", gateway.pid()?);
    let status = fs::read_to_string(format!("{process}/status"))?;
    assert!(status.contains(&format!("Uid:\t{NOBODY}\t{NOBODY}")), "{status}");
    // As proc(5) says of a process that leaves no core and that others of its user may not trace.
    assert_eq!(fs::metadata(format!("{process}/mem"))?.uid(), 0);
    gateway.stop()
}
