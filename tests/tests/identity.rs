//! What services are told about callers, through the real binary: nothing that a client says about itself gets through,
//! over HTTP/1 and HTTP/2, before and after the body, known or not.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::mpsc::{Receiver, sync_channel};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use harness::Result;
use harness::client::Response;
use harness::gateway::Gateway;
use harness::http2::{Frame, Http2, block, flag, kind, request};
use harness::origin::{Origin, Reply, Request};
use harness::site::{PATIENCE, Site};
use serde_json::{Value, json};

/// Under what names, and how written, somebody might say who they are.
const FORGED: [&str; 9] = [
    "X-User-Id",
    "x-user-id",
    "X_User_Id",
    "X-USER_ID",
    "X-Roles",
    "x_roles",
    "X-Consumer",
    "X_Tenant",
    "X-Scopes",
];

fn ok(_: &Request) -> Reply {
    Reply::Answer(200, "")
}

/// A gateway with this section in front of `service`, the key of a caller, and where it listens.
fn gateway<'s>(
    site: &'s Site,
    service: SocketAddr,
    identity: Value,
) -> Result<(Gateway<'s>, String, SocketAddr)> {
    let listen = site.free_address()?;
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "auth": {"partners": {"api_key": {}}},
        "consumers": {"acme": {"tenant": "eu", "roles": ["buyer", "50%_off"]}},
        "identity": identity,
        "upstreams": {"service": {"endpoints": [service.to_string()]}},
        "routes": [{
            "match": {"path": "/{rest*}"}, "auth": ["partners", "anonymous"], "upstream": "service",
        }],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let create = ["keys", "create", "--consumer", "acme", "--scope", "read", "--json"];
    let made = gateway.cli(&create)?.ok()?.json()?;
    let key = made.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok((gateway, key, listen))
}

fn last(origin: &Origin) -> Result<Request> {
    origin.requests().pop().ok_or_else(|| anyhow::anyhow!("nothing was sent"))
}

/// What a service was told of a caller, by the names that it may read as these.
fn told(request: &Request) -> Vec<(String, String)> {
    let names = ["x-user-id", "x-roles", "x-consumer", "x-tenant", "x-scopes"];
    let is_one = |name: &str| names.contains(&&*name.replace('_', "-"));
    request.headers.iter().filter(|(name, _)| is_one(name)).cloned().collect()
}

fn pairs(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut pairs: Vec<_> =
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    pairs.sort();
    pairs
}

fn known() -> Vec<(String, String)> {
    pairs(&[
        ("x-roles", "buyer,50%25_off"),
        ("x-consumer", "acme"),
        ("x-tenant", "eu"),
        ("x-scopes", "read"),
    ])
}

#[test]
fn what_clients_say_about_themselves_never_gets_through_over_http1() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    let (_gateway, key, listen) = gateway(&site, origin.address, json!({}))?;
    let forged: String = FORGED.iter().map(|name| format!("{name}: admin\r\n")).collect();
    let connection = format!("Connection: {}\r\n", FORGED.join(", "));
    let key = format!("X-API-Key: {key}\r\n");
    for (fields, expected) in [
        (forged.clone(), Vec::new()),
        (format!("{connection}{forged}"), Vec::new()),
        (format!("{forged}{key}"), known()),
        (format!("{key}{connection}{forged}"), known()),
    ] {
        let mut client = site.connect(None, listen)?;
        client.send(format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n").as_bytes())?;
        assert_eq!(client.receive()?.status, 200, "{fields}");
        let mut told = told(&last(&origin)?);
        told.sort();
        assert_eq!(told, expected, "{fields}");
    }
    Ok(())
}

#[test]
fn what_clients_say_about_themselves_never_gets_through_over_http2() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    let (_gateway, key, listen) = gateway(&site, origin.address, json!({}))?;
    let names: Vec<String> = FORGED.iter().map(|name| name.to_ascii_lowercase()).collect();
    let mut client = site.enter(|| Http2::connect(listen, &[], PATIENCE))??;
    for (stream, key, expected) in [(1, None, Vec::new()), (3, Some(key), known())] {
        let mut fields = request("GET", "/").to_vec();
        fields.extend(names.iter().map(|name| (name.as_str(), "admin")));
        fields.extend(key.as_deref().map(|key| ("x-api-key", key)));
        client.frames(&[Frame::headers(stream, true, &fields)])?;
        assert!(client.is_fine(stream)?);
        let mut told = told(&last(&origin)?);
        told.sort();
        assert_eq!(told, expected);
    }
    Ok(())
}

/// A service that hands over what it got up to the field `x-sum` behind a body.
fn service_with_trailers(site: &Site) -> Result<(SocketAddr, Receiver<String>)> {
    let listener = site.enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let address = listener.local_addr()?;
    let (sender, receiver) = sync_channel(16);
    // It ends with the process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(|stream| stream.ok()) {
            stream.set_read_timeout(Some(PATIENCE)).ok();
            let (mut text, mut buffer) = (String::new(), [0; 4096]);
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                text.push_str(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()));
                if text.ends_with("x-sum: 1\r\n\r\n") {
                    sender.send(std::mem::take(&mut text)).ok();
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok();
                }
            }
        }
    });
    Ok((address, receiver))
}

#[test]
fn what_clients_say_about_themselves_after_the_body_never_gets_through() -> Result {
    let site = Site::new()?;
    let (service, seen) = service_with_trailers(&site)?;
    let (_gateway, _key, listen) = gateway(&site, service, json!({"plan": "X-Plan"}))?;
    let forged = || FORGED.iter().chain(&["X_Plan"]);
    let mut client = site.connect(None, listen)?;
    let trailers: String = forged().map(|name| format!("{name}: admin\r\n")).collect();
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{head}2\r\nab\r\n0\r\n{trailers}x-sum: 1\r\n\r\n").as_bytes())?;
    assert_eq!(client.receive()?.status, 200);
    let over_http1 = seen.recv_timeout(PATIENCE)?;

    let mut client = site.enter(|| Http2::connect(listen, &[], PATIENCE))??;
    let names: Vec<String> = forged().map(|name| name.to_ascii_lowercase()).collect();
    let mut fields: Vec<_> = names.iter().map(|name| (name.as_str(), "admin")).collect();
    fields.push(("x-sum", "1"));
    client.frames(&[
        Frame::headers(1, false, &request("POST", "/")),
        Frame::new(kind::DATA, 0, 1, *b"ab"),
        Frame::new(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, 1, block(&fields)),
    ])?;
    assert!(client.is_fine(1)?);
    for seen in [over_http1, seen.recv_timeout(PATIENCE)?] {
        assert!(seen.ends_with("\r\n0\r\nx-sum: 1\r\n\r\n"), "{seen}");
        assert!(!seen.contains("admin"), "{seen}");
    }
    Ok(())
}

#[test]
fn names_are_free_and_what_is_off_is_not_told_and_still_not_taken_from_clients() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    let section = json!({
        "roles": "X-Caller-Roles", "consumer": "off", "scopes": "off", "key": "X-Key-Id",
        "authenticator": "X-Known-By",
    });
    let (_gateway, key, listen) = gateway(&site, origin.address, section)?;
    let mut client = site.connect(None, listen)?;
    client.send(
        format!(
            "GET / HTTP/1.1\r\nHost: h\r\nX-API-Key: {key}\r\nX-Consumer: admin\r\nX-Roles: admin\r\n\
             x_caller_roles: admin\r\nX-Key-Id: 1\r\n\r\n"
        )
        .as_bytes(),
    )?;
    assert_eq!(client.receive()?.status, 200);
    let seen = last(&origin)?;
    assert_eq!(told(&seen), pairs(&[("x-tenant", "eu")]));
    assert_eq!(seen.header("x-caller-roles"), Some("buyer,50%25_off"));
    assert_eq!(seen.header("x-key-id").map(str::len), Some(16));
    assert_eq!(seen.header("x-known-by"), Some("partners"));
    assert!(!format!("{seen:?}").contains("admin"), "{seen:?}");
    Ok(())
}

#[test]
fn a_reload_changes_what_is_told_of_callers_that_were_known_before() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    let (gateway, key, listen) = gateway(&site, origin.address, json!({}))?;
    let mut client = site.connect(None, listen)?;
    let mut ask = || -> Result<Request> {
        client.send(format!("GET / HTTP/1.1\r\nHost: h\r\nX-API-Key: {key}\r\n\r\n").as_bytes())?;
        assert_eq!(client.receive()?.status, 200);
        last(&origin)
    };
    assert_eq!(ask()?.header("x-tenant"), Some("eu"));
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(gateway.config())?)?;
    config["identity"] = json!({"tenant": "X-Org"});
    config["consumers"]["acme"]["tenant"] = json!("us");
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    let seen = ask()?;
    assert_eq!((seen.header("x-tenant"), seen.header("x-org")), (None, Some("us")));
    Ok(())
}

fn new_key() -> Result<String> {
    let text = STANDARD.encode(Ed25519KeyPair::generate()?.to_pkcs8v1()?);
    Ok(format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"))
}

/// What a token says that holds by one of these keys.
fn verified(token: &str, keys: &Value) -> Result<Value> {
    let decode = |text: &Value| URL_SAFE_NO_PAD.decode(text.as_str().unwrap_or_default());
    let parts: Vec<Value> = token.split('.').map(Value::from).collect();
    let [header, claims, signature] = parts.as_slice() else { anyhow::bail!("no token: {token}") };
    let header: Value = serde_json::from_slice(&decode(header)?)?;
    let known = keys.get("keys").and_then(Value::as_array).into_iter().flatten();
    let is_named = |key: &&Value| ["kid", "alg"].iter().all(|it| key.get(it) == header.get(it));
    let x = known.filter(is_named).find_map(|key| key.get("x"));
    let x = decode(x.ok_or_else(|| anyhow::anyhow!("no key for {header}"))?)?;
    let signed = token.rsplit_once('.').map_or("", |(signed, _)| signed);
    UnparsedPublicKey::new(&ED25519, x).verify(signed.as_bytes(), &decode(signature)?)?;
    Ok(serde_json::from_slice(&decode(claims)?)?)
}

#[test]
fn a_service_gets_a_token_that_holds_by_the_published_keys_and_never_that_of_a_client() -> Result {
    let (site, folder) = (Site::new()?, tempfile::tempdir()?);
    let origin = site.origin(ok)?;
    let file = |name: &str| folder.path().join(name);
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    std::fs::write(file("first"), new_key()?)?;
    std::fs::write(file("second"), new_key()?)?;
    let token = json!({
        "key": {"file": file("first")}, "issuer": "gate", "audience": "orders", "lifetime": "10m",
    });
    let (gateway, key, listen) = gateway(&site, origin.address, json!({"token": token}))?;
    let path = "/.well-known/gateway-identity/jwks.json";
    let mut client = site.connect(None, listen)?;
    let mut ask = |method: &str, path: &str, fields: &str| -> Result<Response> {
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\n").as_bytes())?;
        client.receive()
    };
    let keys = ask("GET", path, "")?;
    assert_eq!(keys.header("content-type"), Some("application/jwk-set+json"));
    assert_eq!(keys.header("cache-control"), Some("public, max-age=300"));
    assert!(!keys.text().contains("\"d\""), "{}", keys.text());
    let refused = ask("POST", path, "Content-Length: 0\r\n")?;
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")));
    assert!(origin.requests().is_empty(), "a service has seen what is for the gateway");
    let (config, url) = (gateway.config().display().to_string(), format!("http://h{path}"));
    let said = gateway.cli(&["explain", &config, "GET", &url, "--json"])?.ok()?.json()?;
    assert_eq!((&said["status"], &said["route"]), (&json!(200), &Value::Null), "{said}");
    let keys: Value = serde_json::from_str(&keys.text())?;

    let forged = "X-Identity-Token: forged\r\nx_identity_token: forged\r\n";
    assert_eq!(ask("GET", "/", forged)?.status, 200);
    assert!(!format!("{:?}", last(&origin)?).contains("forged"));
    let known = format!("{forged}X-API-Key: {key}\r\n");
    let told = |answer: Response| -> Result<(String, Request)> {
        assert_eq!(answer.status, 200);
        let seen = last(&origin)?;
        Ok((seen.header("x-identity-token").unwrap_or_default().to_owned(), seen))
    };
    let (token, seen) = told(ask("GET", "/", &known)?)?;
    assert!(!format!("{seen:?}").contains("forged"), "{seen:?}");
    let claims = verified(&token, &keys)?;
    for (name, value) in [
        ("iss", json!("gate")),
        ("aud", json!("orders")),
        ("sub", json!("acme")),
        ("tenant", json!("eu")),
        ("roles", json!(["buyer", "50%_off"])),
        ("scopes", json!(["read"])),
    ] {
        assert_eq!(claims[name], value, "{name}");
    }
    assert_eq!(claims["exp"].as_u64(), claims["iat"].as_u64().map(|issued| issued + 600));
    assert_eq!(told(ask("GET", "/", &known)?)?.0, token, "it is signed once");

    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(gateway.config())?)?;
    config["identity"]["token"]["previous_keys"] = json!([{"file": file("first")}]);
    config["identity"]["token"]["key"] = json!({"file": file("second")});
    gateway.write_config(config.clone())?;
    gateway.cli(&["reload"])?.ok()?;
    let (renewed, _) = told(ask("GET", "/", &known)?)?;
    assert!(verified(&renewed, &keys).is_err(), "it is signed by the new key");
    let keys: Value = serde_json::from_str(&ask("GET", path, "")?.text())?;
    assert_eq!(verified(&renewed, &keys)?["sub"], verified(&token, &keys)?["sub"]);

    config["identity"]["token"]["key"] = json!({"file": file("none")});
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.refused(2, "openssl genpkey -algorithm ed25519 -out FILE")?;
    Ok(())
}
