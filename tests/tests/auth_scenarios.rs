//! Who may take a route, whatever way there is to know callers, through the real binary.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::Context as _;
use harness::authority::{Authority, Pair};
use harness::gateway::Gateway;
use harness::metrics::Page;
use harness::origin::Reply;
use harness::site::Site;
use harness::{Result, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);

struct Door<'a> {
    site: &'a Site,
    authority: &'a Authority,
    listen: SocketAddr,
}

impl Door<'_> {
    /// Status and head of the answer to `curl OPTIONS https://api.test/PATH`.
    fn ask(&self, path: &str, client: Option<&Pair>, options: &[&str]) -> Result<(u16, String)> {
        let Self { site, authority, listen } = self;
        let resolve = format!("api.test:{}:{}", listen.port(), listen.ip());
        let url = format!("https://api.test:{}/{path}", listen.port());
        let ca = authority.ca().display().to_string();
        let mut arguments = vec!["-i", "--cacert", &ca, "--resolve", &resolve, &url];
        let pair =
            client.map(|pair| (pair.cert.display().to_string(), pair.key.display().to_string()));
        if let Some((cert, key)) = &pair {
            arguments.extend(["--cert", cert, "--key", key]);
        }
        arguments.extend(options);
        let said = String::from_utf8(site.curl(&arguments)?.stdout)?;
        let status = said.split(' ').nth(1).and_then(|text| text.parse().ok());
        Ok((status.context("no answer")?, said))
    }
}

fn config(listen: SocketAddr, tls: Value, endpoint: SocketAddr) -> Value {
    json!({
        "listen": [{"address": listen.to_string(), "tls": tls}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "auth": {
            "ops": {"mtls": {"clients": [{"dns": "ops.test", "consumer": "ops"}]}},
            "meters": {"mtls": {"clients": [{"dns": "meter.test", "consumer": "meters"}]}},
        },
        "consumers": {"ops": {"roles": ["admin"]}},
        "upstreams": {"service": {"endpoints": [endpoint.to_string()]}},
        "routes": [
            {"match": {"path": "/open"}, "auth": "anonymous", "upstream": "service"},
            {"match": {"path": "/either"}, "auth": ["meters", "ops"], "upstream": "service"},
            {"match": {"path": "/maybe"}, "auth": ["meters", "anonymous"], "upstream": "service"},
            {"match": {"path": "/admin"}, "auth": ["meters", "ops"], "require": {"roles": ["admin"]},
             "upstream": "service"},
            {"match": {"path": "/read"}, "auth": ["ops", "anonymous"],
             "require": [{"methods": ["GET"]}, {"roles": ["admin"]}], "upstream": "service"},
            {"match": {"path": "/fixed"}, "auth": "ops", "respond": {"body": "for ops"}},
        ],
    })
}

#[test]
fn a_route_believes_its_own_authenticators_in_order_and_anonymous_is_who_shows_nothing() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let server = authority.issue("server", &["api.test"])?;
    let ops = authority.issue("ops", &["ops.test"])?;
    let meter = authority.issue("meter", &["meter.test"])?;
    let nobody = authority.issue("nobody", &["nobody.test"])?;
    let origin = site.origin(|_| Reply::Answer(200, "ok"))?;
    let listen = site.free_address()?;
    let folder = tempfile::tempdir()?;
    // The daemon writes it as a user of its own.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777))?;
    let log = folder.path().join("access.log");
    let tls = json!({
        "certificates": [server.json()],
        "client_certificates": {"ca": authority.ca(), "mode": "optional"},
    });
    let mut config = config(listen, tls, origin.address);
    config["access_log"] = json!({"path": log});
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let door = Door { site: &site, authority: &authority, listen };
    let status = |path: &str, client, options: &[&str]| {
        Ok::<_, anyhow::Error>(door.ask(path, client, options)?.0)
    };
    for (path, statuses) in [
        // Nothing shown, ops, meter, a certificate of nobody.
        ("open", [200, 200, 200, 200]),
        ("either", [401, 200, 200, 401]),
        ("maybe", [200, 401, 200, 401]),
        ("admin", [401, 200, 403, 401]),
        ("fixed", [401, 200, 401, 401]),
    ] {
        for (client, expected) in
            [None, Some(&ops), Some(&meter), Some(&nobody)].into_iter().zip(statuses)
        {
            assert_eq!(status(path, client, &["--http1.1"])?, expected, "{path}");
            assert_eq!(status(path, client, &["--http2"])?, expected, "{path} over HTTP/2");
        }
    }
    assert_eq!(status("read", None, &[])?, 200);
    assert_eq!(status("read", None, &["-X", "POST"])?, 401);
    assert_eq!(status("read", Some(&ops), &["-X", "POST"])?, 200);
    let asked = origin.requests().len();
    let (_, refused) = door.ask("admin", Some(&nobody), &[])?;
    assert!(refused.to_ascii_lowercase().contains("www-authenticate: "), "{refused}");
    assert!(refused.contains("application/problem+json"), "{refused}");
    assert_eq!(origin.requests().len(), asked, "a refused request went on");

    let lines = wait_for("the log", PATIENCE, || {
        let lines = fs::read_to_string(&log)?;
        Ok((lines.lines().count() == 44).then_some(lines))
    })?;
    let last: Value = serde_json::from_str(lines.lines().last().context("empty")?)?;
    assert_eq!(last["error"], "unauthenticated");
    assert_eq!(last["reason"], "no client with this certificate");
    let of_ops = lines.lines().filter(|line| line.contains(r#""consumer":"ops""#)).count();
    assert_eq!(of_ops, 7, "{lines}");
    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    let counted = |outcome: &str| {
        let series =
            format!(r#"gateway_authentications_total{{authenticator="ops",outcome="{outcome}"}}"#);
        page.value(&series)
    };
    assert_eq!(counted("known"), Some(7));
    assert!(counted("refused") > Some(0) && counted("absent") > Some(0));
    gateway.stop()
}

#[test]
fn a_route_that_forgets_to_say_who_may_take_it_is_a_mistake() -> Result {
    let site = Site::new()?;
    let listen = site.free_address()?;
    let mut config = config(listen, json!(null), "127.0.0.1:1".parse()?);
    config["routes"] = json!([{"match": {"path": "/{rest*}"}, "upstream": "service"}]);
    let gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    let config = gateway.config().display().to_string();
    let said = gateway.cli(&["check", &config])?;
    assert_eq!(said.code, Some(2), "{said}");
    let mistake = &said.json_lines()?[0];
    assert_eq!(mistake["message"], "the route does not say who may take it");
    assert_eq!(mistake["help"], "add `auth: NAME` with one of meters, ops, anonymous");
    Ok(())
}

#[test]
fn explain_says_who_would_be_calling_and_what_becomes_of_who_may_not() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let ops = authority.issue("ops", &["ops.test"])?;
    let meter = authority.issue("meter", &["meter.test"])?;
    let listen = site.free_address()?;
    let config = config(listen, json!(null), "127.0.0.1:1".parse()?);
    let gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    let config = gateway.config().display().to_string();
    let explain = |path: &str, client: Option<&Pair>| {
        let url = format!("https://api.test/{path}");
        let cert = client.map(|pair| pair.cert.display().to_string());
        let mut arguments = vec!["explain", &config, "GET", &url];
        arguments.extend(cert.iter().flat_map(|cert| ["--cert", cert]));
        gateway.cli(&[&arguments[..], &["--json"]].concat())?.ok()?.json()
    };
    let known = explain("admin", Some(&ops))?;
    let caller = json!({
        "outcome": "known", "authenticator": "ops", "consumer": "ops", "roles": ["admin"],
    });
    assert_eq!((&known["outcome"], &known["caller"]), (&json!("forward"), &caller));
    let forbidden = explain("admin", Some(&meter))?;
    assert_eq!((&forbidden["outcome"], &forbidden["status"]), (&json!("refuse"), &json!(403)));
    let nobody = explain("admin", None)?;
    assert_eq!((&nobody["outcome"], &nobody["status"]), (&json!("refuse"), &json!(401)));
    assert_eq!(
        nobody["upstreams"][0]["name"], "service",
        "where it would go is shown all the same"
    );
    assert_eq!(explain("maybe", None)?["caller"]["outcome"], "anonymous");
    assert_eq!(explain("open", None)?["status"], Value::Null);
    Ok(())
}
