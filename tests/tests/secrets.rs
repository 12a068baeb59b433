//! What proves who somebody is, and what the gateway itself proves it by, is shown nowhere: whatever comes in, in log,
//! access log, audit trail, metrics, listings, explanations, errors and answers.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Stdio;

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harness::authority::{Authority, Pair};
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
/// Of the daemon, and of whoever gives it commands.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("TEST_SIGNING", "signing-secret-of-the-environment-0123456789"),
    ("TEST_BEARER", "bearer-token-of-the-gateway-in-the-environment"),
    ("TEST_SHARED", "secret-of-an-issuer-in-the-environment-0123456789-0123456789-0123456789"),
    ("TEST_BROKEN", BROKEN),
];
/// Of a form that no secret has.
const BROKEN: &str = "hunter2\nhunter2";

fn config(
    [listen, secure, endpoint]: [SocketAddr; 3],
    idp: &Idp,
    folder: &Path,
    [server, client]: &[Pair; 2],
) -> Value {
    let route = |path: &str, auth: &str| {
        json!({"match": {"path": path}, "auth": auth, "upstream": "service",
               "limits": [{"per": ["key", "user"], "rate": "1000/h"}]})
    };
    json!({
        "listen": [
            {"address": listen.to_string()},
            {"address": secure.to_string(),
             "tls": {"certificates": [{"cert": server.cert, "key": server.key}]}},
        ],
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
                {"id": "two", "consumer": "acme", "secret": {"env": "TEST_SIGNING"}},
            ]}},
            "bearer": {"introspection": {
                "url": idp.introspection_url(), "bearer": {"env": "TEST_BEARER"},
            }},
            "issued": {"jwt": {"secret": {"env": "TEST_SHARED"}}},
            "admins": {"basic": {"htpasswd": folder.join("users")}},
            "shared": {"jwt": {"secret": {"file": folder.join("shared")}}},
        },
        "upstreams": {
            "service": {"endpoints": [endpoint.to_string()]},
            // It speaks no TLS, which is said.
            "proven": {"endpoints": [endpoint.to_string()], "tls": {
                "client_certificate": {"cert": client.cert, "key": client.key},
            }},
        },
        "routes": [
            {"match": {"path": "/proven"}, "auth": "anonymous", "upstream": "proven"},
            route("/bearer", "bearer"), route("/issued", "issued"),
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

/// What a private key says in PEM.
fn lines(pem: &str) -> impl Iterator<Item = &str> {
    pem.lines().filter(|line| !line.starts_with("-----"))
}

/// Requests whose credentials hold, those whose do not, and one that nobody can answer: a target and a header field
/// each.
fn requests(key: &str, token: &str, good: &str, wrong: &str) -> [Vec<(String, String)>; 3] {
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
        ("/bearer".to_owned(), format!("Authorization: Bearer {OPAQUE}x")),
        ("/issued".to_owned(), format!("Authorization: Bearer {token}")),
    ];
    [holds, does_not, vec![("/proven".to_owned(), "Accept: text/plain".to_owned())]]
}

/// What a command says to somebody who has the same environment.
fn cli(site: &Site, gateway: &Gateway<'_>, arguments: &[&str]) -> Result<String> {
    let mut command = gateway.command(arguments)?;
    command.envs(ENVIRONMENT).stdin(Stdio::null());
    let output = site.enter(|| command.output())??;
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    Ok(format!("{} {said}", output.status))
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
    let explained = cli(site, gateway, &[&["explain", &file, "GET", &url][..], &options].concat())?;
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
        &["deny", "list"],
        &["limit", "list"],
        &["reload"],
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
    let authority = Authority::new()?;
    let pairs = [authority.issue("server", &["h"])?, authority.issue("client", &["gateway"])?];
    let [server, client] = [&pairs[0].key, &pairs[1].key].map(fs::read_to_string);
    let private = [pem, server?, client?];
    let origin = site.origin(|_| Reply::Answer(200, "ok"))?;
    let (idp, listen, secure) = (Idp::start(&site)?, site.free_address()?, site.free_address()?);
    idp.grant(OPAQUE, json!({"active": true, "sub": "ann"}));
    let config = config([listen, secure, origin.address], &idp, folder.path(), &pairs);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    let mut command = gateway.command(&["run"])?;
    command.envs(ENVIRONMENT);
    gateway.start_by(command)?;
    let made = gateway.cli(&["keys", "create", "--consumer", "acme", "--json"])?.ok()?.json()?;
    let text = |name: &str| made[name].as_str().unwrap_or_default().to_owned();
    let (key, id) = (text("key"), text("id"));
    let token = idp.token(&json!({"sub": "ann", "exp": now() + 600}))?;
    let (correct, staple) = ("correct horse", "staple battery");
    let [password, wrong] = [correct, staple].map(|word| STANDARD.encode(format!("ann:{word}")));

    let mut shown = String::new();
    for (requests, status) in requests(&key, &token, &password, &wrong).iter().zip([200, 401, 502])
    {
        for request in requests {
            shown += &told((&site, &gateway, listen), request, status)?;
        }
    }
    // Nor what is made of it by a listener that wants TLS.
    let mut client = site.connect(None, secure)?;
    client.send(format!("GET / HTTP/1.1\r\nX-API-Key: {key}\r\n\r\n").as_bytes())?;
    client.read_to_end()?;
    shown += &commands(&gateway, &key, &id)?;
    gateway.stop()?;
    for file in ["access.log", "audit.jsonl"] {
        shown += &fs::read_to_string(folder.path().join(file))?;
    }
    shown += &gateway.log();
    assert!(shown.contains("\"query\":\"a=b&ticket=***\""), "the access log is in it: {shown}");
    let of_callers = [&*key, &token, &password, &wrong, correct, staple, OPAQUE];
    let as_sent = STANDARD.encode(format!("gateway:{CLIENT}"));
    let of_files = [HASH, SIGNING, CLIENT, REDIS, SHARED, &as_sent];
    let secrets =
        of_callers.into_iter().chain(of_files).chain(ENVIRONMENT.map(|(_, secret)| secret));
    for secret in secrets.chain(private.iter().flat_map(|pem| lines(pem))) {
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
    for what in ["mem", "environ"] {
        assert_eq!(fs::metadata(format!("{process}/{what}"))?.uid(), 0, "{what}");
    }
    gateway.stop()
}

/// Whatever has not the form that a secret needs, and in whatever place: errors name the place.
#[test]
fn a_secret_that_is_broken_is_not_repeated() -> Result {
    let (site, folder) = (Site::new()?, tempfile::tempdir()?);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let file = folder.path().join("broken");
    let listen = site.free_address()?;
    let pair = Authority::new()?.issue("server", &["h"])?;
    let with = |section: &str, value: Value| {
        let mut config = json!({
            "listen": [{"address": listen.to_string()}],
            "kernel": {"attach": "off"},
            "routes": [{"match": {"path": "/"}, "respond": {"status": 204}}],
        });
        config[section] = value;
        config
    };
    let auth = |kind: &str, config: Value| with("auth", json!({"one": {kind: config}}));
    let hmac = |secret: Value| {
        auth("hmac", json!({"keys": [{"id": "one", "consumer": "acme", "secret": secret}]}))
    };
    let introspection = |name: &str, secret: Value| {
        auth("introspection", json!({"url": "http://127.0.0.1:1/", name: secret}))
    };
    let token = |key: Value| {
        with("identity", json!({"token": {"key": key, "issuer": "https://a/", "audience": "b"}}))
    };
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{BROKEN}\n-----END PRIVATE KEY-----\n");
    let oct = json!({"keys": [{"kty": "oct", "alg": "HS256", "k": BROKEN}]}).to_string();
    let (in_file, in_env) = (json!({"file": file}), json!({"env": "TEST_BROKEN"}));
    let tls = json!([{"address": listen.to_string(),
        "tls": {"certificates": [{"cert": pair.cert, "key": file}]}}]);
    let client = json!({"service": {"endpoints": ["127.0.0.1:1"],
        "tls": {"client_certificate": {"cert": pair.cert, "key": file}}}});
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), with("audit", json!({})))?;
    let mut command = gateway.command(&["run"])?;
    command.envs(ENVIRONMENT);
    gateway.start_by(command)?;
    for (what, text, config) in [
        ("hmac", BROKEN, hmac(in_file.clone())),
        ("hmac", BROKEN, hmac(in_env.clone())),
        ("jwt", BROKEN, auth("jwt", json!({"secret": in_file}))),
        ("jwt", BROKEN, auth("jwt", json!({"secret": in_env}))),
        ("jwks_file", BROKEN, auth("jwt", json!({"jwks_file": file}))),
        ("jwks_file", &oct, auth("jwt", json!({"jwks_file": file}))),
        ("pem", &pem, auth("jwt", json!({"pem": file}))),
        ("htpasswd", BROKEN, auth("basic", json!({"htpasswd": file}))),
        ("htpasswd", "ann:hunter2", auth("basic", json!({"htpasswd": file}))),
        ("bearer", BROKEN, introspection("bearer", in_file.clone())),
        ("bearer", BROKEN, introspection("bearer", in_env.clone())),
        ("identity", BROKEN, token(in_file.clone())),
        ("identity", &pem, token(in_file.clone())),
        ("identity", BROKEN, token(in_env.clone())),
        ("listener", BROKEN, with("listen", tls.clone())),
        ("listener", &pem, with("listen", tls)),
        ("upstream", &pem, with("upstreams", client)),
    ] {
        fs::write(&file, text)?;
        gateway.write_config(config)?;
        let path = gateway.config().display().to_string();
        let said = cli(&site, &gateway, &["reload"])?;
        assert!(!said.starts_with("exit status: 0"), "{what}: {text:?} is taken: {said}");
        let checked = cli(&site, &gateway, &["check", &path])?;
        let explained = cli(&site, &gateway, &["explain", &path, "GET", "http://h/"])?;
        let said = [said, checked, explained].concat();
        assert!(!said.contains("hunter2"), "{what}: {said}");
    }
    let said = cli(&site, &gateway, &["status", "--json"])? + &gateway.log();
    assert!(!said.contains("hunter2"), "{said}");
    gateway.stop()
}
