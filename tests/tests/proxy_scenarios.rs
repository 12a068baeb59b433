//! The user-space door through the real binary, without privileges. As root each test has a network namespace of its
//! own and the gateway runs as `nobody`; otherwise the tests use free ports of the loopback interface.
#![expect(clippy::disallowed_methods, reason = "tests measure real time from outside")]

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use harness::Result;
use harness::gateway::Gateway;
use harness::origin::Reply;
use harness::site::Site;
use serde_json::{Value, json};

fn config(listen: SocketAddr, endpoint: &str) -> Value {
    json!({
        "listen": [{"address": listen.to_string()}],
        "kernel": {"interfaces": ["lo"]},
        "upstreams": {"service": {
            "endpoints": [endpoint],
            "timeout": {"connect": "500ms", "response": "500ms"},
        }},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    })
}

#[test]
fn curl_through_the_embedded_default() -> Result {
    let site = Site::new()?;
    let mut gateway = Gateway::embedded(site.namespace.as_ref())?;
    gateway.start()?;
    let log = gateway.log();
    assert!(log.contains("127.0.0.1:8080"), "it says where it listens:\n{log}");
    let output = site.curl(&["-i", "http://127.0.0.1:8080/hello"])?;
    let answer = String::from_utf8(output.stdout)?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("/hello"), "it shows what the service saw: {answer}");
    gateway.stop()
}

#[test]
fn without_privileges_lists_are_enforced_at_accept() -> Result {
    let site = Site::new()?;
    let listen = site.free_address()?;
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config(listen, "echo"))?;
    gateway.start()?;
    let kernel = gateway.status()?["kernel"].clone();
    assert_eq!(kernel["enforcing"], json!(false));
    assert!(kernel["note"].as_str().is_some_and(|note| note.contains("CAP_BPF")), "{kernel}");

    let other: IpAddr = "127.0.0.2".parse()?;
    assert_eq!(site.connect(Some(other), listen)?.get("/")?.status, 200);
    let mut open = site.connect(Some(other), listen)?;
    assert_eq!(open.get("/")?.status, 200);
    gateway.cli(&["deny", "add", "127.0.0.2"])?.ok()?;
    let refused = site.connect(Some(other), listen).and_then(|mut client| client.get("/"));
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(site.connect(None, listen)?.get("/")?.status, 200);
    let rules = gateway.cli(&["deny", "list"])?.ok()?.json_lines()?;
    assert_eq!(rules[0]["enforced"], json!("user space"), "{rules:?}");

    gateway.kill9()?;
    gateway.start()?;
    let refused = site.connect(Some(other), listen).and_then(|mut client| client.get("/"));
    assert!(refused.is_err(), "the rule survives kill -9: {refused:?}");
    gateway.cli(&["deny", "remove", "127.0.0.2"])?.ok()?;
    assert_eq!(site.connect(Some(other), listen)?.get("/")?.status, 200);
    Ok(())
}

#[test]
fn the_service_sees_the_client_and_not_what_the_client_claims() -> Result {
    let site = Site::new()?;
    let listen = site.free_address()?;
    let origin = site.origin(|_| Reply::Answer(200, "ok"))?;
    let config = config(listen, &origin.address.to_string());
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let mut client = site.connect(Some("127.0.0.3".parse()?), listen)?;
    client.send(
        b"POST /a HTTP/1.1\r\nhost: api.test\r\nx-forwarded-for: 192.0.2.1\r\n\
          connection: x-secret, keep-alive, x-forwarded-for, X-Forwarded-Proto, x-request-id\r\n\
          connection: host, authorization, content-length\r\nauthorization: a\r\nx-secret: 1\r\n\
          content-length: 4\r\n\r\nbody",
    )?;
    let answer = client.receive()?;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    let seen = origin.requests();
    let [request] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(request.line, "POST /a HTTP/1.1");
    assert_eq!(request.header("x-forwarded-for"), Some("127.0.0.3"));
    assert_eq!(request.header("host"), Some("api.test"));
    assert_eq!(request.header("x-secret"), None, "named in Connection: hop by hop");
    assert!(request.header("x-request-id").is_some());
    assert_eq!(request.header("x-forwarded-proto"), Some("http"));
    assert_eq!(request.header("authorization"), Some("a"), "for whoever is to verify it");
    assert_eq!(request.body, b"body");
    Ok(())
}

#[test]
fn a_sick_service_is_told_apart_and_nothing_internal_leaks() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|request| match request.line.split(' ').nth(1) {
        Some("/hang") => Reply::Hang,
        Some("/close") => Reply::Close,
        Some("/rubbish") => Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        _ => Reply::Answer(200, "ok"),
    })?;
    let (listen, nobody) = (site.free_address()?, site.free_address()?);
    let mut config = config(listen, &origin.address.to_string());
    config["upstreams"]["gone"] = json!({"endpoints": [nobody.to_string()]});
    config["routes"] = json!([
        {"match": {"path": "/gone"}, "upstream": "gone"},
        {"match": {"path": "/{rest*}"}, "upstream": "service"},
    ]);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    for (path, status) in [("/gone", 502), ("/hang", 504), ("/close", 502), ("/rubbish", 502)] {
        let start = Instant::now();
        let answer = site.connect(None, listen)?.get(path)?;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{path}");
        let problem: Value = serde_json::from_slice(&answer.body)?;
        assert_eq!(problem["status"], json!(status), "{path}");
        for internal in [origin.address.to_string(), nobody.to_string(), "SSH".to_owned()] {
            assert!(!answer.text().contains(&internal), "{path}: {}", answer.text());
        }
        assert!(start.elapsed() < Duration::from_secs(3), "{path} took {:?}", start.elapsed());
    }
    assert_eq!(site.connect(None, listen)?.get("/fine")?.status, 200);
    Ok(())
}

#[test]
fn check_shows_every_error_at_once_with_its_place() -> Result {
    let site = Site::new()?;
    let gateway = Gateway::embedded(site.namespace.as_ref())?;
    gateway.write_config_text(
        "listen:\n  - address: 127.0.0.1:99999\nkernel:\n  denny: []\n  deny: [198.18.0.1/24]\n",
    )?;
    let path = gateway.config().display().to_string();
    let answer = gateway.cli(&["check", &path])?;
    assert_eq!(answer.code, Some(2), "{answer}");
    let said = format!("{answer}");
    for part in ["99999", "denny", "deny", "198.18.0.0/24"] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    Ok(())
}

#[test]
fn a_port_in_use_is_named() -> Result {
    let site = Site::new()?;
    let taken = site.enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let listen = taken.local_addr()?;
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config(listen, "echo"))?;
    gateway.start_refused()?.refused(1, &format!("{listen}: the port is in use"))
}
