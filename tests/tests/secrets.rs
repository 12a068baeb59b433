//! What proves who somebody is, and what the gateway itself proves it by, is shown nowhere: whatever comes in, in log,
//! access log, audit trail, metrics, listings, explanations and answers.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

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
        },
        "upstreams": {"service": {"endpoints": [endpoint.to_string()]}},
        "routes": [
            route("/keys", "keys"), route("/tokens", "tokens"), route("/opaque", "opaque"),
            route("/signed", "signed"), route("/admins", "admins"),
        ],
    })
}

#[test]
fn what_proves_who_somebody_is_is_shown_nowhere() -> Result {
    let (site, folder) = (Site::new()?, tempfile::tempdir()?);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    for (name, text) in
        [("signing", SIGNING), ("client", CLIENT), ("users", &format!("ann:{HASH}"))]
    {
        fs::write(folder.path().join(name), text)?;
    }
    let origin = site.origin(|_| Reply::Answer(200, "ok"))?;
    let (idp, listen) = (Idp::start(&site)?, site.free_address()?);
    idp.grant(OPAQUE, json!({"active": true, "sub": "ann"}));
    let config = config(listen, origin.address, &idp, folder.path());
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let made = gateway.cli(&["keys", "create", "--consumer", "acme", "--json"])?.ok()?.json()?;
    let key = made["key"].as_str().expect("a key").to_owned();
    let token = idp.token(&json!({"sub": "ann", "exp": now() + 600}))?;
    let password = STANDARD.encode("ann:correct horse");
    let wrong = STANDARD.encode("ann:staple battery");

    let good = [
        ("/keys".to_owned(), format!("X-API-Key: {key}")),
        (format!("/keys?a=b&ticket={key}"), String::new()),
        (format!("/keys?%74icke%54=x&%74icket={key}"), String::new()),
        ("/tokens".to_owned(), format!("Authorization: Bearer {token}")),
        (format!("/tokens?Proof={token}"), "Referer: http://a/?x".to_owned()),
        ("/tokens".to_owned(), format!("Cookie: session={token}")),
        ("/opaque".to_owned(), format!("Authorization: Bearer {OPAQUE}")),
        ("/admins".to_owned(), format!("Authorization: Basic {password}")),
    ];
    let bad = [
        (format!("/keys?ticket={key}x"), format!("Referer: http://a/?ticket={key}&Proof={token}")),
        (format!("/tokens?proof={token}x"), format!("Authorization: Bearer {token}x")),
        ("/opaque".to_owned(), format!("Authorization: Bearer {OPAQUE}x")),
        ("/admins".to_owned(), format!("Authorization: Basic {wrong}")),
        ("/signed".to_owned(), format!("X-API-Key: one\r\nX-Signature: {SIGNING}")),
    ];
    let mut shown = String::new();
    let all = good.iter().map(|one| (one, 200)).chain(bad.iter().map(|one| (one, 401)));
    for ((target, field), status) in all {
        let ask = || -> Result<_> {
            let mut client = site.connect(None, listen)?;
            let end = if field.is_empty() { "\r\n" } else { "\r\n\r\n" };
            client.send(format!("GET {target} HTTP/1.1\r\nHost: h\r\n{field}{end}").as_bytes())?;
            client.receive()
        };
        let answer = wait_for("keys of the issuer", PATIENCE, || {
            Ok(Some(ask()?).filter(|answer| answer.status != 503))
        })?;
        assert_eq!(answer.status, status, "{target} {field}");
        shown += &format!("{:?} {}", answer.headers, answer.text());
        // It answers on standard output; what it was given is the user's own.
        let file = gateway.config().display().to_string();
        let url = format!("http://h{}", target.split('?').next().unwrap_or_default());
        let field = field.split("\r\n").next().filter(|field| !field.is_empty());
        let options = field.map_or(Vec::new(), |field| vec!["-H", field]);
        let explained = gateway.cli(&[&["explain", &file, "GET", &url][..], &options].concat())?;
        shown += &explained.to_string();
    }
    for refused in [&["keys", "revoke", &key][..], &["keys", "rotate", &key]] {
        let refused = gateway.cli(refused)?;
        refused.refused(2, "a whole key")?;
        assert!(refused.stderr.contains(made["id"].as_str().expect("an id")), "{refused}");
        shown += &refused.to_string();
    }
    for listing in [&["status"][..], &["metrics"], &["keys", "list"], &["check"]] {
        shown += &gateway.cli(listing)?.to_string();
    }
    gateway.stop()?;
    for file in ["access.log", "audit.jsonl"] {
        shown += &fs::read_to_string(folder.path().join(file))?;
    }
    shown += &gateway.log();
    assert!(
        shown.contains("\"query\":\"a=b&ticket=***\""),
        "the access log is part of it: {shown}"
    );
    let (correct, staple) = ("correct horse", "staple battery");
    for secret in [&*key, &token, &password, &wrong, correct, staple, HASH, SIGNING, CLIENT, OPAQUE]
    {
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
