//! TLS through the real binary, with real peers: curl and openssl.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use gateway::http::proxy_protocol::{Addresses, encode_v2};
use harness::authority::{Authority, End, Kind, Pair};
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use harness::origin::Reply;
use harness::site::{PATIENCE, Site};
use harness::{Result, require_root, wait_for};
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

/// What openssl says after a handshake, and a request whose answer ends the connection.
fn openssl(site: &Site, listen: SocketAddr, arguments: &str) -> Result<String> {
    let request = r"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let command = format!(
        "printf '{request}' | timeout 10 openssl s_client -ign_eof -connect {listen} {arguments}"
    );
    Ok(text(&site.run("sh", &["-c", &command])?))
}

/// The common name of the certificate that a client is shown.
fn shown(site: &Site, listen: SocketAddr, arguments: &str) -> Result<String> {
    let said = openssl(site, listen, arguments)?;
    let subject = said.lines().find_map(|line| line.strip_prefix("subject="));
    let name = subject.and_then(|subject| subject.split("CN = ").nth(1));
    let name = name.and_then(|name| name.split(',').next());
    Ok(name.map_or(said.clone(), str::to_owned))
}

#[test]
fn certificates_are_chosen_by_name_and_by_what_the_client_understands() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let first = authority.issue("first", &["first.test"])?;
    let ecdsa = authority.issue("a-ecdsa", &["a.test"])?;
    let rsa = authority.issue_as("a-rsa", &["a.test"], Kind::Rsa, End::Late)?;
    let wild = authority.issue("wild", &["*.wild.test"])?;
    let mut default = authority.issue("default", &["default.test"])?.json();
    default["default"] = json!(true);
    let certificates = json!([first.json(), rsa.json(), ecdsa.json(), wild.json(), default]);
    let listen = site.free_address()?;
    let tls = json!({"certificates": certificates});
    let mut gateway =
        Gateway::unprivileged(site.namespace.as_ref(), config(listen, tls.clone(), "echo"))?;
    gateway.start()?;
    for (arguments, name) in [
        ("-servername a.test", "a-ecdsa"),
        ("-servername A.Test", "a-ecdsa"),
        ("-servername a.test -sigalgs RSA-PSS+SHA256", "a-rsa"),
        ("-servername a.test -tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256", "a-rsa"),
        ("-servername one.wild.test", "wild"),
        ("-servername one.two.wild.test", "default"),
        ("-servername wild.test", "default"),
        ("-servername nobody.test", "default"),
        ("-noservername", "default"),
    ] {
        assert_eq!(shown(&site, listen, arguments)?, name, "{arguments}");
    }
    let old = openssl(&site, listen, "-tls1_1 -cipher ALL:@SECLEVEL=0")?;
    assert!(old.contains("Cipher is (NONE)"), "{old}");
    let weak = openssl(&site, listen, "-tls1_2 -cipher AES128-SHA:@SECLEVEL=0")?;
    assert!(weak.contains("Cipher is (NONE)"), "{weak}");

    let mut tls = tls;
    tls["unknown_sni"] = json!("refuse");
    gateway.write_config(config(listen, tls, "echo"))?;
    gateway.cli(&["reload"])?.ok()?;
    let refused = openssl(&site, listen, "-servername nobody.test")?;
    assert!(refused.contains("Cipher is (NONE)"), "{refused}");
    assert_eq!(counter(&gateway, "/handshakes/failed/unknown_sni")?, 1);
    assert_eq!(shown(&site, listen, "-noservername")?, "default");
    Ok(())
}

#[test]
fn a_renewed_certificate_takes_over_and_nobody_notices() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let pair = authority.issue("one", &["api.test"])?;
    let listen = site.free_address()?;
    let config = config(listen, json!({"certificates": [pair.json()]}), "echo");
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let session = authority.folder().join("session");
    let session = session.display();
    for version in ["-tls1_3", "-tls1_2"] {
        let said = openssl(&site, listen, &format!("{version} -sess_out {session}.{version}"))?;
        assert!(said.contains("New, TLSv1"), "{said}");
    }

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result {
        let load = scope.spawn(|| -> Result<usize> {
            let mut served = 0;
            while !done.load(Ordering::Relaxed) && served < 1000 {
                let answer = curl(&site, &authority, ("api.test", listen), &[])?;
                assert!(answer.status.success(), "{}", text(&answer));
                served += 1;
            }
            Ok(served)
        });
        for round in 0..3 {
            let name = format!("renewed-{round}");
            let renewed = authority.issue(&name, &["api.test"])?;
            std::fs::rename(renewed.key, &pair.key)?;
            std::fs::rename(renewed.cert, &pair.cert)?;
            if round == 0 {
                gateway.cli(&["reload"])?.ok()?;
            }
            wait_for(&name, PATIENCE, || {
                Ok((shown(&site, listen, "-servername api.test")? == name).then_some(()))
            })?;
        }
        done.store(true, Ordering::Relaxed);
        let served = load.join().map_err(|_| anyhow::anyhow!("a request failed"))??;
        assert!(served > 3, "{served}");
        Ok(())
    })?;

    std::fs::write(&pair.key, "no key")?;
    wait_for("a complaint", PATIENCE, || {
        let notes = gateway.status()?["certificate_notes"].to_string();
        Ok(notes.contains("no private key in it").then_some(()))
    })?;
    assert_eq!(shown(&site, listen, "-servername api.test")?, "renewed-2");
    let answer = gateway.cli(&["reload"])?.ok()?;
    assert!(answer.to_string().contains("the one before stays in force"), "{answer}");

    for version in ["-tls1_3", "-tls1_2"] {
        let said = openssl(&site, listen, &format!("{version} -sess_in {session}.{version}"))?;
        assert!(said.contains("Reused, TLSv1"), "{version}: {said}");
    }
    assert!(counter(&gateway, "/handshakes/done/resumed")? >= 2);
    let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
    assert!(metrics.contains("gateway_tls_certificate_not_after_seconds{file="), "{metrics}");
    Ok(())
}

#[test]
fn what_cannot_be_used_is_named_before_anybody_connects() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let listen = site.free_address()?;
    let one = authority.issue("one", &["api.test"])?;
    let other = authority.issue("other", &["api.test"])?;
    let past = authority.issue_as("past", &["api.test"], Kind::Ecdsa, End::Past)?;
    let mixed = json!({"cert": one.cert, "key": other.key});
    let tls = |pair: Value| config(listen, json!({"certificates": [pair]}), "echo");
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), tls(mixed))?;
    let path = gateway.config().display().to_string();
    let answer = gateway.cli(&["check", &path])?;
    let complaint = "this key is not the one of the certificate";
    assert!(answer.code == Some(2) && answer.stdout.contains(complaint), "{answer}");
    gateway.start_refused()?.refused(2, "other.key")?;

    gateway.write_config(tls(past.json()))?;
    let answer = gateway.cli(&["check", &path])?;
    assert!(answer.stdout.contains("this certificate expired on 2020-01-01"), "{answer}");
    gateway.start()?;
    let notes = gateway.status()?["certificate_notes"].to_string();
    assert!(notes.contains("past.pem: expired on 2020-01-01"), "{notes}");
    gateway.stop()?;

    gateway.write_config(tls(one.json()))?;
    gateway.start()?;
    gateway.write_config(tls(past.json()))?;
    gateway.cli(&["reload"])?.refused(2, "past.pem")?;
    let mut suites = json!({"certificates": [one.json()]});
    suites["cipher_suites"] = json!(["TLS_AES_256_GCM_SHA385"]);
    gateway.write_config(config(listen, suites, "echo"))?;
    gateway.cli(&["reload"])?.refused(2, "did you mean `TLS_AES_256_GCM_SHA384`?")?;
    assert_eq!(shown(&site, listen, "-servername api.test")?, "one");
    Ok(())
}

#[test]
fn keys_that_only_root_may_read_are_read_once_and_said_so() -> Result {
    require_root()?;
    let namespace = Namespace::new("host")?;
    let authority = Authority::new()?;
    let pair = authority.issue("one", &["api.test"])?;
    std::fs::set_permissions(&pair.key, Permissions::from_mode(0o600))?;
    let site = Site { namespace: Some(namespace) };
    let listen = site.free_address()?;
    let mut config = config(listen, json!({"certificates": [pair.json()]}), "echo");
    config["user"] = json!("nobody");
    let namespace = site.namespace.as_ref().context("made above")?;
    let mut gateway = Gateway::new(namespace, config)?;
    gateway.start()?;
    let notes = gateway.status()?["certificate_notes"].to_string();
    assert!(notes.contains("the gateway runs as nobody"), "{notes}");
    assert!(notes.contains("chgrp nobody"), "{notes}");
    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(shown(&site, listen, "-servername api.test")?, "one");
    Ok(())
}

#[test]
fn clients_prove_who_they_are() -> Result {
    let (site, authority, strangers) = (Site::new()?, Authority::new()?, Authority::new()?);
    let server = authority.issue("server", &["api.test"])?;
    let client = authority.issue("client", &["client.test"])?;
    let stranger = strangers.issue("stranger", &["client.test"])?;
    let crl = authority.revoke(&[])?;
    let origin = site.origin(|_| Reply::Answer(200, "ok"))?;
    let listen = site.free_address()?;
    let config = |mode: &str, forward: bool| {
        let clients = json!({"ca": authority.ca(), "crl": crl, "mode": mode, "forward": forward});
        let tls = json!({"certificates": [server.json()], "client_certificates": clients});
        config(listen, tls, &origin.address.to_string())
    };
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config("required", true))?;
    gateway.start()?;
    let ask = |pair: Option<&Pair>, more: &[&str]| -> Result<bool> {
        let mut arguments: Vec<String> = more.iter().map(|text| (*text).to_owned()).collect();
        if let Some(Pair { cert, key, .. }) = pair {
            let (cert, key) = (cert.display().to_string(), key.display().to_string());
            arguments.extend(["--cert".to_owned(), cert, "--key".to_owned(), key]);
        }
        arguments.extend(["--header".to_owned(), "Client_Cert: forged".to_owned()]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let answer = curl(&site, &authority, ("api.test", listen), &arguments)?;
        Ok(answer.status.success() && answer.stdout == b"ok")
    };
    let last = || origin.requests().pop().context("the service was asked");
    for version in [&["--tls-max", "1.2"][..], &["--tlsv1.3"]] {
        assert!(!ask(None, version)? && !ask(Some(&stranger), version)?, "{version:?}");
        assert!(ask(Some(&client), version)?, "{version:?}");
        let request = last()?;
        let header = request.header("client-cert").context("no Client-Cert")?.to_owned();
        assert!(header.starts_with(":MII") && header.ends_with(':'), "{header}");
        assert_eq!(request.header("client_cert"), None);
    }
    assert_eq!(counter(&gateway, "/handshakes/failed/client_certificate")?, 4);

    gateway.write_config(config("optional", false))?;
    gateway.cli(&["reload"])?.ok()?;
    assert!(ask(None, &[])? && ask(Some(&client), &[])? && !ask(Some(&stranger), &[])?);
    let request = last()?;
    assert_eq!((request.header("client-cert"), request.header("client_cert")), (None, None));

    authority.revoke(&[&client])?;
    wait_for("the revocation", PATIENCE, || Ok((!ask(Some(&client), &[])?).then_some(())))?;
    Ok(())
}

#[test]
fn a_session_of_a_door_without_certificates_opens_none_that_wants_them() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let server = authority.issue("server", &["api.test"])?;
    let listen = site.free_address()?;
    let mut tls = json!({"certificates": [server.json()]});
    let mut gateway =
        Gateway::unprivileged(site.namespace.as_ref(), config(listen, tls.clone(), "echo"))?;
    gateway.start()?;
    let session = authority.folder().join("session");
    let session = session.display();
    openssl(&site, listen, &format!("-sess_out {session}"))?;
    let again = openssl(&site, listen, &format!("-sess_in {session} -sess_out {session}"))?;
    assert!(again.contains("Reused, TLSv1.3"), "{again}");
    tls["client_certificates"] = json!({"ca": authority.ca()});
    gateway.write_config(config(listen, tls, "echo"))?;
    gateway.cli(&["reload"])?.ok()?;
    let refused = openssl(&site, listen, &format!("-sess_in {session}"))?;
    assert!(!refused.contains("200 OK") && !refused.contains("Reused"), "{refused}");
    assert_eq!(counter(&gateway, "/handshakes/failed/client_certificate")?, 1);
    Ok(())
}

#[test]
fn sessions_are_not_resumed_where_tickets_are_off() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let server = authority.issue("server", &["api.test"])?;
    let listen = site.free_address()?;
    let tls = json!({"certificates": [server.json()], "session_tickets": false});
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config(listen, tls, "echo"))?;
    gateway.start()?;
    for version in ["-tls1_3", "-tls1_2"] {
        let session = authority.folder().join(version);
        let first = openssl(&site, listen, &format!("{version} -sess_out {}", session.display()))?;
        assert!(first.contains("New, TLSv1"), "{first}");
        // Without a ticket openssl may have nothing to keep.
        if session.exists() {
            let again = format!("{version} -sess_in {}", session.display());
            let again = openssl(&site, listen, &again)?;
            assert!(again.contains("New, TLSv1"), "{again}");
        }
    }
    assert_eq!(counter(&gateway, "/handshakes/done/resumed")?, 0);
    Ok(())
}

#[test]
fn services_are_talked_to_over_tls_and_only_those_that_prove_who_they_are() -> Result {
    let (site, authority, strangers) = (Site::new()?, Authority::new()?, Authority::new()?);
    let server = authority.issue("service", &["users.internal"])?;
    let client = authority.issue("gateway", &["gateway.internal"])?;
    let inner = site.free_address()?;
    let listen = site.free_address()?;
    // Another gateway is the service: it says what it saw.
    let clients = json!({"ca": authority.ca(), "mode": "optional", "forward": true});
    let tls = json!({"certificates": [server.json()], "client_certificates": clients});
    let mut service = Gateway::unprivileged(site.namespace.as_ref(), config(inner, tls, "echo"))?;
    service.start()?;
    let outer = |tls: Value| {
        json!({
            "listen": [{"address": listen.to_string()}],
            "workers": 1,
            "kernel": {"attach": "off"},
            "upstreams": {"users": {"endpoints": [inner.to_string()], "tls": tls}},
            "routes": [{"match": {"path": "/{rest*}"}, "upstream": "users"}],
        })
    };
    let good = json!({
        "ca": authority.ca(), "server_name": "users.internal", "client_certificate": client.json(),
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), outer(good.clone()))?;
    gateway.start()?;
    for _ in 0..3 {
        let answer = site.connect(None, listen)?.get("/")?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().contains("client-cert"), "{}", answer.text());
    }
    assert_eq!(counter(&service, "/handshakes/done/full")?, 1, "connections are kept");

    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(site.connect(None, listen)?.get("/")?.status, 200);
    assert_eq!(counter(&service, "/handshakes/done/full")?, 1, "and go on after a reload");

    for (wrong, says) in [
        (json!({"ca": strangers.ca(), "server_name": "users.internal"}), "invalid peer"),
        (json!({"ca": authority.ca(), "server_name": "other.internal"}), "not valid for name"),
        (json!({"ca": authority.ca()}), "not valid for name"),
    ] {
        gateway.write_config(outer(wrong.clone()))?;
        gateway.cli(&["reload"])?.ok()?;
        let answer = site.connect(None, listen)?.get("/")?;
        assert_eq!(answer.status, 502, "{wrong}");
        for internal in ["certificate", "internal", &inner.to_string()] {
            assert!(!answer.text().contains(internal), "{}", answer.text());
        }
        assert!(gateway.log().contains(says), "{wrong}: {}", gateway.log());
    }
    assert_eq!(counter(&gateway, "/requests/errors/upstream_tls")?, 3);

    gateway.write_config(outer(json!({"verify": false})))?;
    gateway.cli(&["reload"])?.ok()?;
    let answer = site.connect(None, listen)?.get("/")?;
    assert!(answer.status == 200 && !answer.text().contains("client-cert"), "{}", answer.text());

    gateway.write_config(outer(good))?;
    gateway.cli(&["reload"])?.ok()?;
    let before = counter(&service, "/handshakes/done/full")?;
    let renewed = authority.issue("renewed", &["gateway.internal"])?;
    std::fs::rename(renewed.key, &client.key)?;
    std::fs::rename(renewed.cert, &client.cert)?;
    wait_for("a connection by the renewed certificate", PATIENCE, || {
        assert_eq!(site.connect(None, listen)?.get("/")?.status, 200);
        let done = counter(&service, "/handshakes/done/full")?;
        Ok((done >= before + 2).then_some(()))
    })?;
    Ok(())
}

#[test]
fn services_are_asked_over_http_2_and_tls() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let server = authority.issue("service", &["users.internal"])?;
    let (inner, listen) = (site.free_address()?, site.free_address()?);
    let tls = json!({"certificates": [server.json()]});
    let mut service = Gateway::unprivileged(site.namespace.as_ref(), config(inner, tls, "echo"))?;
    service.start()?;
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "kernel": {"attach": "off"},
        "upstreams": {"users": {
            "endpoints": [inner.to_string()], "protocol": "h2",
            "tls": {"ca": authority.ca(), "server_name": "users.internal"},
        }},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "users"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let mut client = site.connect(None, listen)?;
    for _ in 0..3 {
        assert_eq!(client.get("/")?.status, 200);
    }
    assert_eq!(counter(&service, "/handshakes/done/full")?, 1);
    Ok(())
}

#[test]
fn a_plain_service_behind_tls_settings_is_a_bad_gateway() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "plain"))?;
    let listen = site.free_address()?;
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "kernel": {"attach": "off"},
        "upstreams": {"users": {
            "endpoints": [origin.address.to_string()], "tls": {"verify": false},
            "timeout": {"connect": "500ms"},
        }},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "users"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let status = site.connect(None, listen)?.get("/")?.status;
    assert!([502, 504].contains(&status), "{status}");
    Ok(())
}

#[test]
fn the_proxy_protocol_says_who_the_client_is_where_it_may() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "ok"))?;
    let listen = site.free_address()?;
    let config = json!({
        "listen": [{
            "address": listen.to_string(), "proxy_protocol": {"from": ["127.0.0.4/32"]},
        }],
        "bounds": {"handshake_timeout": "300ms"},
        "kernel": {"attach": "off"},
        "upstreams": {"service": {"endpoints": [origin.address.to_string()]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let sender = Some("127.0.0.4".parse()?);
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let v2 = encode_v2(Addresses {
        source: "[2001:db8::7]:1".parse()?,
        destination: "[2001:db8::1]:443".parse()?,
    });
    let lines: [(&[u8], &str); 4] = [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 443\r\n", "192.0.2.7"),
        (&v2, "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.4"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0", "127.0.0.4"),
    ];
    for (header, client) in lines {
        // In one piece, and byte by byte.
        let mut whole = site.connect(sender, listen)?;
        whole.send(&[header, &request[..]].concat())?;
        assert_eq!(whole.receive()?.status, 200, "{client}");
        let mut pieces = site.connect(sender, listen)?;
        for byte in header.iter().chain(request) {
            pieces.send(&[*byte])?;
        }
        assert_eq!(pieces.receive()?.status, 200, "{client}");
        for request in origin.requests().iter().rev().take(2) {
            assert_eq!(request.header("x-forwarded-for"), Some(client));
        }
    }

    gateway.cli(&["deny", "add", "192.0.2.7"])?.ok()?;
    let mut denied = site.connect(sender, listen)?;
    denied.send(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 443\r\n")?;
    assert_eq!(denied.read_to_end()?, b"");
    let told = gateway.cli(&["deny", "add", "127.0.0.4"])?;
    assert_ne!(told.code, Some(0), "a sender is protected: {told}");

    let mut bare = site.connect(sender, listen)?;
    bare.send(request)?;
    drop(bare.read_to_end());
    let mut slow = site.connect(sender, listen)?;
    slow.send(b"PROXY TCP4")?;
    assert_eq!(slow.read_to_end()?, b"");
    let stranger = site.connect(Some("127.0.0.5".parse()?), listen);
    drop(stranger.and_then(|mut stranger| stranger.read_to_end()));
    for (reason, count) in [("proxy_header", 2), ("proxy_sender", 1), ("denied", 1)] {
        wait_for(reason, PATIENCE, || {
            let found = counter(&gateway, &format!("/connections/refused/{reason}"))?;
            Ok((found == count).then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn the_proxy_protocol_goes_before_tls_and_on_to_services() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let pair = authority.issue("api", &["api.test"])?;
    let (outer, inner) = (site.free_address()?, site.free_address()?);
    // The inner gateway takes what the outer one sends.
    let mut inside = config(inner, json!({"certificates": [pair.json()]}), "echo");
    inside["listen"][0]["proxy_protocol"] = json!({"from": ["127.0.0.1"]});
    let mut service = Gateway::unprivileged(site.namespace.as_ref(), inside)?;
    service.start()?;
    let outside = json!({
        "listen": [{"address": outer.to_string()}],
        "kernel": {"attach": "off"},
        "upstreams": {"service": {
            "endpoints": [inner.to_string()], "proxy_protocol": "v2",
            "tls": {"ca": authority.ca(), "server_name": "api.test"},
        }},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), outside)?;
    gateway.start()?;
    for client in ["127.0.0.6", "127.0.0.7"] {
        let answer = site.connect(Some(client.parse()?), outer)?.get("/")?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().contains(&format!("\"{client}\"")), "{}", answer.text());
    }
    assert_eq!(counter(&service, "/connections/refused/proxy_header")?, 0);
    Ok(())
}

#[test]
fn plain_http_is_sent_to_https_and_browsers_remember_it() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let pair = authority.issue("api", &["api.test"])?;
    let (plain, listen) = (site.free_address()?, site.free_address()?);
    let tls = json!({
        "certificates": [pair.json()], "hsts": {"include_subdomains": true, "preload": true},
    });
    let mut config = config(listen, tls, "echo");
    let redirect = json!({"address": plain.to_string(), "redirect": {"port": listen.port()}});
    config["listen"].as_array_mut().context("a list")?.push(redirect);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let mut client = site.connect(None, plain)?;
    client.send(b"GET /a?b HTTP/1.1\r\nhost: api.test\r\n\r\n")?;
    let answer = client.receive()?;
    let location = format!("https://api.test:{}/a?b", listen.port());
    assert_eq!((answer.status, answer.header("location")), (301, Some(&*location)));
    client.send(b"POST /a HTTP/1.1\r\nhost: api.test\r\ncontent-length: 1\r\n\r\nx")?;
    assert_eq!(client.receive()?.status, 308);
    let resolve = format!("api.test:{}:127.0.0.1", listen.port());
    let ca = authority.ca();
    let said = text(&site.curl(&[
        "-sSi",
        "-L",
        "--cacert",
        &ca.to_string_lossy(),
        "--resolve",
        &resolve,
        "-H",
        "host: api.test",
        &format!("http://{plain}/followed"),
    ])?);
    assert!(said.contains("/followed") && said.contains("200"), "{said}");
    let hsts = "strict-transport-security: max-age=31536000; includeSubDomains; preload";
    assert_eq!(said.to_lowercase().matches(&hsts.to_lowercase()).count(), 1, "{said}");
    Ok(())
}
