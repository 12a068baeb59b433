//! TLS through the real binary, with real peers: curl and openssl.

use std::net::SocketAddr;
use std::process::Output;

use harness::authority::Authority;
use harness::gateway::Gateway;
use harness::origin::Reply;
use harness::site::{PATIENCE, Site};
use harness::{Result, wait_for};
use serde_json::{Value, json};

fn config(listen: SocketAddr, tls: Value, endpoint: &str) -> Value {
    json!({
        "listen": [{"address": listen.to_string(), "tls": tls}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "upstreams": {"service": {"endpoints": [endpoint]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    })
}

/// What curl says of `https://HOST/`, which it takes to be at `listen`.
fn curl(
    site: &Site,
    authority: &Authority,
    (host, listen): (&str, SocketAddr),
    more: &[&str],
) -> Result<Output> {
    let resolve = format!("{host}:{}:{}", listen.port(), listen.ip());
    let (ca, url) = (authority.ca(), format!("https://{host}:{}/", listen.port()));
    let ca = ca.to_string_lossy();
    let common = ["--cacert", &ca, "--resolve", &resolve, &url];
    site.curl(&[&common[..], more].concat())
}

fn text(output: &Output) -> String {
    let Output { stdout, stderr, .. } = output;
    format!("{}{}", String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr))
}

/// A counter of `status`, such as `/handshakes/failed/timed_out`.
fn counter(gateway: &Gateway<'_>, pointer: &str) -> Result<u64> {
    let status = gateway.status()?;
    let found = status.pointer(&format!("/proxy{pointer}"));
    Ok(found.and_then(Value::as_u64).unwrap_or(0))
}

#[test]
fn curl_over_both_versions_and_the_service_hears_of_https() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let pair = authority.issue("api", &["api.test"])?;
    let origin = site.origin(|_| Reply::Answer(200, "over tls"))?;
    let listen = site.free_address()?;
    let tls = json!({"certificates": [pair.json()]});
    let config = config(listen, tls, &origin.address.to_string());
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    for (version, limit) in [("TLSv1.3", "1.3"), ("TLSv1.2", "1.2")] {
        let arguments = ["-v", "--http1.1", "--tls-max", limit];
        let said = text(&curl(&site, &authority, ("api.test", listen), &arguments)?);
        assert!(said.contains("over tls"), "{said}");
        assert!(said.contains(&format!("SSL connection using {version}")), "{said}");
        assert!(said.contains("ALPN: server accepted http/1.1"), "{said}");
    }
    let said = text(&curl(&site, &authority, ("api.test", listen), &["-v", "--http2"])?);
    assert!(said.contains("over tls") && said.contains("< HTTP/2 200"), "{said}");
    let seen = origin.requests();
    assert_eq!(seen.len(), 3);
    for request in seen {
        assert_eq!(request.header("x-forwarded-proto"), Some("https"));
    }
    assert_eq!(counter(&gateway, "/handshakes/done/full")?, 3);
    gateway.stop()
}

#[test]
fn versions_and_suites_are_held_to() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let pair = authority.issue("api", &["api.test"])?;
    let listen = site.free_address()?;
    let tls = json!({
        "certificates": [pair.json()], "min_version": "1.3",
        "cipher_suites": ["TLS_AES_128_GCM_SHA256"],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config(listen, tls, "echo"))?;
    gateway.start()?;
    let said = text(&curl(&site, &authority, ("api.test", listen), &["-v"])?);
    assert!(said.contains("TLS_AES_128_GCM_SHA256"), "{said}");
    let old = curl(&site, &authority, ("api.test", listen), &["--tls-max", "1.2"])?;
    assert!(!old.status.success(), "{}", text(&old));
    let other = ["--tls13-ciphers", "TLS_AES_256_GCM_SHA384"];
    let other = curl(&site, &authority, ("api.test", listen), &other)?;
    assert!(!other.status.success(), "{}", text(&other));
    assert_eq!(counter(&gateway, "/handshakes/failed/incompatible")?, 2);
    Ok(())
}

#[test]
fn who_shakes_no_hands_is_told_or_counted() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let pair = authority.issue("api", &["api.test"])?;
    let listen = site.free_address()?;
    let mut config = config(listen, json!({"certificates": [pair.json()]}), "echo");
    config["bounds"] = json!({"handshake_timeout": "300ms"});
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;

    let answer = site.connect(None, listen)?.get("/")?;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("https://"), "{}", answer.text());

    let mut garbage = site.connect(None, listen)?;
    garbage.send(b"\x16\x03\x01\x00\x05garbage")?;
    garbage.read_to_end()?;
    let mut slow = site.connect(None, listen)?;
    slow.send(b"\x16\x03")?;
    assert_eq!(slow.read_to_end()?, b"");
    let mut silent = site.connect(None, listen)?;
    assert_eq!(silent.read_to_end()?, b"");

    for (reason, count) in [("plain_http", 1), ("broken", 1), ("timed_out", 2)] {
        wait_for(reason, PATIENCE, || {
            let found = counter(&gateway, &format!("/handshakes/failed/{reason}"))?;
            Ok((found == count).then_some(()))
        })?;
    }
    let said = curl(&site, &authority, ("api.test", listen), &[])?;
    assert!(said.status.success(), "{}", text(&said));
    Ok(())
}

#[test]
fn a_rule_ends_a_handshake_too() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let pair = authority.issue("api", &["api.test"])?;
    let listen = site.free_address()?;
    let config = config(listen, json!({"certificates": [pair.json()]}), "echo");
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let mut begun = site.connect(Some("127.0.0.9".parse()?), listen)?;
    begun.send(b"\x16\x03")?;
    wait_for("the connection", PATIENCE, || {
        Ok((counter(&gateway, "/connections/open")? == 1).then_some(()))
    })?;
    gateway.cli(&["deny", "add", "127.0.0.9"])?.ok()?;
    assert_eq!(begun.read_to_end()?, b"");
    assert_eq!(counter(&gateway, "/connections/refused/denied")?, 1);
    Ok(())
}
