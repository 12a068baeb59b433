//! API keys through the real binary: what is made is kept and shown once, what is rotated holds for its time of grace,
//! what is revoked opens nothing.

#![expect(clippy::disallowed_methods, reason = "a time of grace is as long as it says")]

use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gateway::base::time::utc;
use gateway::store::keys::{KeyRecord, Keys};
use harness::gateway::{Gateway, Outcome};
use harness::namespace::Namespace;
use harness::origin::{Origin, Reply, Request};
use harness::site::{PATIENCE, Site};
use harness::successor::Successor;
use harness::{Result, wait_for};
use serde_json::{Value, json};

/// As root in a namespace of its own, else on a free port of the loopback.
fn namespace() -> Result<Option<Namespace>> {
    nix::unistd::geteuid().is_root().then(|| Namespace::new("host")).transpose()
}

fn config() -> Result<Value> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok(json!({
        "listen": [{"address": free.to_string()}],
        "upstreams": {"echo": {"endpoints": ["echo"]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "echo"}],
    }))
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_default()
}

fn create(gateway: &Gateway<'_>, more: &[&str]) -> Result<Value> {
    let mut command = vec!["keys", "create", "--json"];
    command.extend(more);
    gateway.cli(&command)?.ok()?.json()
}

fn list(gateway: &Gateway<'_>, more: &[&str]) -> Result<Vec<Value>> {
    let mut command = vec!["keys", "list", "--json"];
    command.extend(more);
    gateway.cli(&command)?.ok()?.json_lines()
}

fn with_input(gateway: &Gateway<'_>, arguments: &[&str], input: &str) -> Result<Outcome> {
    let mut command = gateway.command(arguments)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child
        .stdin
        .take()
        .ok_or("no input")
        .map_err(anyhow::Error::msg)?
        .write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    Ok(Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[test]
fn what_was_made_is_there_after_kill_9_and_the_key_is_shown_once() -> Result {
    let namespace = namespace()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config()?)?;
    gateway.start()?;
    assert_eq!(list(&gateway, &[])?, Vec::<Value>::new());
    let more = ["--consumer", "acme", "--plan", "gold", "--scope", "read", "--scope", "write"];
    let more = [&more[..], &["--for", "90d", "--label", "the nightly export"]].concat();
    let made = create(&gateway, &more)?;
    gateway.kill9()?;
    gateway.start()?;
    let key = text(&made, "key");
    assert!(key.starts_with("gw_live_") && key.len() == 46, "{key}");
    let [kept] = &list(&gateway, &[])?[..] else { panic!("not one key") };
    for name in ["id", "consumer", "plan", "scopes", "label", "created_utc_ms", "until_utc_ms"] {
        assert_eq!(kept[name], made[name], "{name}");
    }
    assert_eq!((text(kept, "state"), text(kept, "consumer")), ("active", "acme"));
    assert_eq!(kept.get("key"), None);
    let log = gateway.log();
    assert!(log.contains("keys create --consumer"), "no audit trail: {log}");
    assert!(!log.contains(key) && !log.contains(&key[8..40]), "the key is in the log");
    Ok(())
}

#[test]
fn both_keys_hold_for_the_time_of_grace_and_what_ended_cannot_be_rotated() -> Result {
    let namespace = namespace()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config()?)?;
    gateway.start()?;
    let old = create(&gateway, &["--consumer", "acme", "--scope", "read"])?;
    let id = text(&old, "id");
    let new = gateway.cli(&["keys", "rotate", id, "--grace", "1h", "--json"])?.ok()?.json()?;
    assert_eq!((text(&new, "consumer"), &new["scopes"]), ("acme", &json!(["read"])));
    let states = |keys: &[Value]| {
        let mut states: Vec<_> = keys.iter().map(|key| text(key, "state").to_owned()).collect();
        states.sort_unstable();
        states
    };
    assert_eq!(states(&list(&gateway, &[])?), ["active", "retiring"]);
    gateway.cli(&["keys", "rotate", id])?.refused(1, text(&new, "id"))?;
    gateway.cli(&["keys", "revoke", id])?.ok()?;
    gateway.cli(&["keys", "rotate", id])?.refused(1, "revoked")?;
    let none = ["keys", "rotate", text(&new, "id"), "--grace", "0s", "--json"];
    gateway.cli(&none)?.ok()?;
    assert_eq!(states(&list(&gateway, &[])?), ["active", "expired", "revoked"]);
    Ok(())
}

#[test]
fn a_list_has_pages_and_goes_by_consumer() -> Result {
    let namespace = namespace()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config()?)?;
    gateway.start()?;
    for consumer in ["globex", "acme", "globex", "acme", "acme-eu"] {
        create(&gateway, &["--consumer", consumer])?;
    }
    let consumers = |more: &[&str]| -> Result<Vec<String>> {
        let keys = list(&gateway, more)?;
        Ok(keys.iter().map(|key| text(key, "consumer").to_owned()).collect())
    };
    assert_eq!(consumers(&[])?, ["acme", "acme", "acme-eu", "globex", "globex"]);
    assert_eq!(consumers(&["--limit", "3"])?, ["acme", "acme", "acme-eu"]);
    assert_eq!(consumers(&["--consumer", "acme"])?, ["acme", "acme"]);
    assert_eq!(consumers(&["--consumer", "nobody"])?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_key_that_was_found_is_revoked_by_itself_also_while_no_gateway_runs() -> Result {
    let namespace = namespace()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config()?)?;
    gateway.start()?;
    let [one, two] = [(); 2].map(|()| create(&gateway, &["--consumer", "acme"]));
    let (one, two) = (one?, two?);
    gateway.kill9()?;
    let found = format!("{}\n\n{}\n", text(&one, "key"), text(&two, "id"));
    let revoked = with_input(&gateway, &["keys", "revoke", "-"], &found)?.ok()?;
    assert!(revoked.stderr.contains("no gateway is running"), "{revoked}");
    assert!(!format!("{revoked}").contains(text(&one, "key")), "{revoked}");
    assert_eq!(list(&gateway, &[])?.len(), 2);
    gateway.cli(&["keys", "create", "--consumer", "acme"])?.refused(1, "gateway run")?;
    gateway.start()?;
    let keys = list(&gateway, &[])?;
    assert!(keys.len() == 2 && keys.iter().all(|key| key["state"] == "revoked"), "{keys:?}");
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused_with_the_way_out() -> Result {
    let namespace = namespace()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config()?)?;
    gateway.start()?;
    for (arguments, code, complaint) in [
        (&["create"][..], 2, "--consumer"),
        (&["create", "--consumer", "a b"], 2, "`a b` is no name of a consumer"),
        (&["create", "--consumer", "a", "--scope", "x,y"], 2, "name of a scope"),
        (&["create", "--consumer", "a", "--for", "20y"], 2, "ten years"),
        (&["create", "--consumer", "a", "--for", "0s"], 2, "opens nothing"),
        (&["revoke", "gw_live_x"], 2, "16 hexadecimal digits"),
        (&["revoke", "0000000000000000"], 1, "`gateway keys list`"),
        (&["rotate", "0000000000000000", "--grace", "soon"], 2, "--grace"),
    ] {
        let command: Vec<&str> = ["keys"].iter().chain(arguments).copied().collect();
        gateway.cli(&command)?.refused(code, complaint)?;
    }
    assert_eq!(list(&gateway, &[])?, Vec::<Value>::new());
    let gold = create(&gateway, &["--consumer", "acme", "--plan", "gold"])?;
    assert!(gold["notes"].to_string().contains("no plan `gold` yet"), "{gold}");
    Ok(())
}

/// A gateway that asks for API keys in front of `origin`, and where it listens.
fn asking<'s>(
    site: &'s Site,
    origin: &Origin,
    api_key: Value,
) -> Result<(Gateway<'s>, SocketAddr)> {
    let listen = site.free_address()?;
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 2,
        "kernel": {"attach": "off"},
        "auth": {"partners": {"api_key": api_key}},
        "plans": {"gold": {"limits": [{"rate": "1000000/s"}]}},
        "consumers": {"acme": {"plan": "gold", "tenant": "eu"}},
        "upstreams": {"service": {"endpoints": [origin.address.to_string()]}},
        "routes": [
            {"match": {"path": "/{rest*}"}, "auth": "partners", "upstream": "service"},
            {"match": {"path": "/read"}, "auth": "partners", "require": {"scopes": ["read"]},
             "upstream": "service"},
            {"match": {"path": "/open"}, "auth": "anonymous", "upstream": "service"},
        ],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    Ok((gateway, listen))
}

/// The status of a request on a connection of its own.
fn status(site: &Site, listen: SocketAddr, target: &str, fields: &str) -> Result<u16> {
    let mut client = site.connect(None, listen)?;
    let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}\r\n");
    client.send(request.as_bytes())?;
    Ok(client.receive()?.status)
}

fn shown(key: &str) -> String {
    format!("X-API-Key: {key}\r\n")
}

fn ok(_: &Request) -> Reply {
    Reply::Answer(200, "")
}

#[test]
fn who_shows_a_key_is_known_and_the_service_does_not_see_it() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    let (gateway, listen) = asking(&site, &origin, json!({}))?;
    let made = create(&gateway, &["--consumer", "acme", "--scope", "write"])?;
    let key = text(&made, "key");
    let mut broken = key.to_owned();
    broken.replace_range(10..11, if &key[10..11] == "a" { "b" } else { "a" });
    let twice = shown(key).repeat(2);
    for (fields, expected) in [
        (String::new(), 401),
        (shown("secret"), 401),
        (shown(&broken), 401),
        (shown("gw_live_0123456789ABCDEFGHIJKLMNOPQRSTUV2qq2kc"), 401),
        (twice, 401),
        (format!("Authorization: Bearer {key}\r\n"), 401),
        (shown(key), 200),
    ] {
        assert_eq!(status(&site, listen, "/", &fields)?, expected, "{fields:?}");
    }
    assert_eq!(status(&site, listen, "/read", &shown(key))?, 403);
    let seen = origin.requests();
    let [seen] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(seen.header("x-api-key"), None);
    let told = ["x-consumer", "x-scopes", "x-tenant", "x-user-id"].map(|name| seen.header(name));
    assert_eq!(told, [Some("acme"), Some("write"), Some("eu"), None]);
    let everything = format!("{}{}", gateway.log(), gateway.cli(&["metrics"])?);
    assert!(!everything.contains(&key[8..40]), "the key has leaked");
    let refused = {
        let mut client = site.connect(None, listen)?;
        client.get("/")?
    };
    assert_eq!(refused.header("www-authenticate"), Some("ApiKey realm=\"partners\""));
    Ok(())
}

/// One path and the methods for it.
const SPELLINGS: [&str; 13] = [
    "GET /admin/x",
    "HEAD /admin/x",
    "OPTIONS /admin/x",
    "POST /admin/x",
    "TRACE /admin/x",
    "BREW /admin/x",
    "get /admin/x",
    "GET http://h/admin/x",
    "GET http://other/admin/x",
    "GET /%61dmin/x",
    "GET /adm%69n/%78",
    "GET /admin/",
    "GET /admin/x?y",
];

/// What another server may take for the same path.
const READ_IN_ANOTHER_WAY: [&str; 24] = [
    "GET //admin/x",
    "GET ///admin//x",
    "GET /./admin/x",
    "GET /open/../admin/x",
    "GET /a/%2e%2e/admin/x",
    "GET /a/.%2E/admin/x",
    "GET /open/..%2fadmin/x",
    "GET /open/%2e%2e%2Fadmin/x",
    "GET /admin%2Fx",
    "GET /%2fadmin/x",
    "GET /admin;a=b/x",
    "GET /..;/admin/x",
    "GET /open/..;/admin/x",
    "GET /\\admin/x",
    "GET /open/..\\admin/x",
    "GET /open/..%5cadmin/x",
    "GET /ad%00min/x",
    "GET /admin/x#f",
    "GET *",
    "OPTIONS *",
    "GET /%c0%ae%c0%ae/admin/x",
    "GET http://h//admin/x",
    "CONNECT h:80",
    "GET admin/x",
];

#[test]
fn no_method_and_no_spelling_of_a_path_slips_past_authentication() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    let listen = site.free_address()?;
    // Whatever is not under /admin/ is for everybody.
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "kernel": {"attach": "off"},
        "auth": {"partners": {"api_key": {}}},
        "upstreams": {"service": {"endpoints": [origin.address.to_string()]}},
        "routes": [
            {"match": {"path": "/admin/{rest*}"}, "auth": "partners", "upstream": "service"},
            {"match": {"path": "/{rest*}"}, "auth": "anonymous", "upstream": "service"},
        ],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let asked = |line: &str| -> Result<u16> {
        let mut client = site.connect(None, listen)?;
        client.send(format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes())?;
        let said = client.read("HTTP/1.1 200".len())?;
        Ok(String::from_utf8_lossy(&said).rsplit(' ').next().unwrap_or_default().parse()?)
    };
    for line in SPELLINGS {
        assert!([400, 401].contains(&asked(line)?), "{line}");
    }
    for line in READ_IN_ANOTHER_WAY {
        assert!([400, 401, 501].contains(&asked(line)?), "{line}");
    }
    assert_eq!(origin.requests().len(), 0, "something has slipped past");
    for open in ["GET /open", "GET /admins/x", "HEAD /open"] {
        assert_eq!(asked(open)?, 200, "{open}");
    }
    gateway.stop()
}

#[test]
fn a_key_is_taken_from_where_it_is_looked_for_and_taken_out_there() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    let places = json!([
        {"header": "Authorization"},
        {"header": "Authorization", "scheme": "ApiKey"},
        {"query": "api_key"},
        {"cookie": "key"},
    ]);
    let (gateway, listen) = asking(&site, &origin, json!({"key": places, "prefix": "acme"}))?;
    let made = create(&gateway, &["--consumer", "acme"])?;
    let key = text(&made, "key");
    assert!(key.starts_with("acme_") && key.len() == 43, "{key}");
    for (target, fields, seen) in [
        ("/a".to_owned(), format!("Authorization: bearer {key}\r\n"), "GET /a HTTP/1.1"),
        ("/a?b=1".to_owned(), format!("Authorization: ApiKey {key}\r\n"), "GET /a?b=1 HTTP/1.1"),
        (format!("/a?b=%20&api%5Fkey={key}&c"), String::new(), "GET /a?b=%20&c HTTP/1.1"),
        (format!("/a?api_key={key}"), "Cookie: a=1\r\n".to_owned(), "GET /a HTTP/1.1"),
        ("/a".to_owned(), format!("Cookie: a=1; key={key}; b=2\r\n"), "GET /a HTTP/1.1"),
    ] {
        assert_eq!(status(&site, listen, &target, &fields)?, 200, "{target} {fields}");
        let last = origin.requests().pop();
        let last = last.ok_or_else(|| anyhow::anyhow!("nothing was sent"))?;
        assert_eq!(last.line, seen);
        assert!(!format!("{last:?}").contains(key), "{last:?}");
        let cookie = last.header("cookie").map(|cookie| cookie.starts_with("a=1"));
        assert_eq!(cookie, fields.contains("Cookie").then_some(true), "other cookies stay");
    }
    Ok(())
}

#[test]
fn what_is_revoked_while_it_is_in_use_is_refused_from_the_next_request_on() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    let (gateway, listen) = asking(&site, &origin, json!({}))?;
    let made = create(&gateway, &["--consumer", "acme"])?;
    let fields = shown(text(&made, "key"));
    // Both workers remember it.
    for _ in 0..20 {
        assert_eq!(status(&site, listen, "/", &fields)?, 200);
    }
    gateway.cli(&["keys", "revoke", text(&made, "id")])?.ok()?;
    for _ in 0..20 {
        assert_eq!(status(&site, listen, "/", &fields)?, 401);
    }
    Ok(())
}

#[test]
fn the_old_key_opens_until_grace_ends_and_the_new_one_goes_on() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    let (gateway, listen) = asking(&site, &origin, json!({}))?;
    let old = create(&gateway, &["--consumer", "acme"])?;
    let rotate = ["keys", "rotate", text(&old, "id"), "--grace", "3s", "--json"];
    let begun = Instant::now();
    let new = gateway.cli(&rotate)?.ok()?.json()?;
    let of = |key: &Value| status(&site, listen, "/", &shown(text(key, "key")));
    assert_eq!(of(&new)?, 200);
    let first = of(&old)?;
    assert!(first == 200 || begun.elapsed() > Duration::from_secs(2), "within grace: {first}");
    wait_for("the end of grace", Duration::from_secs(20), || Ok((of(&old)? == 401).then_some(())))?;
    assert!(begun.elapsed() >= Duration::from_secs(3), "grace was shorter than promised");
    assert_eq!(of(&new)?, 200);
    Ok(())
}

#[test]
fn while_one_gateway_takes_the_place_of_another_every_key_opens() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    // Nearly every request looks its key up.
    let (mut gateway, listen) = asking(&site, &origin, json!({"remember": 1}))?;
    let keys: Vec<Value> =
        (0..8).map(|_| create(&gateway, &["--consumer", "acme"])).collect::<Result<_>>()?;
    let (asked, done) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| -> Result {
        let asking = scope.spawn(|| -> Result {
            for key in keys.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                anyhow::ensure!(status(&site, listen, "/", &shown(text(key, "key")))? == 200);
                asked.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let enough = |more: u32| {
            let wanted = asked.load(Ordering::Relaxed) + more;
            wait_for("requests", Duration::from_secs(20), || {
                let is_over = asking.is_finished() || asked.load(Ordering::Relaxed) >= wanted;
                Ok(is_over.then_some(()))
            })
        };
        let replaced = (|| {
            enough(20)?;
            gateway.replace()?;
            enough(20)
        })();
        done.store(true, Ordering::Relaxed);
        let asked = asking.join().map_err(|_| anyhow::anyhow!("the requests panicked"))?;
        replaced.and(asked)
    })?;
    let more = create(&gateway, &["--consumer", "acme"])?;
    assert_eq!(status(&site, listen, "/", &shown(text(&more, "key")))?, 200);
    let [first, ..] = &keys[..] else { panic!("no keys") };
    gateway.cli(&["keys", "revoke", text(first, "id")])?.ok()?;
    assert_eq!(status(&site, listen, "/", &shown(text(first, "key")))?, 401);
    Ok(())
}

#[test]
fn what_another_process_revokes_is_refused_also_by_the_one_that_is_being_replaced() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    let (gateway, listen) = asking(&site, &origin, json!({}))?;
    let key = create(&gateway, &["--consumer", "acme"])?;
    let ask = || status(&site, listen, "/", &shown(text(&key, "key")));
    // Both workers remember it.
    for _ in 0..8 {
        assert_eq!(ask()?, 200);
    }
    let mut successor = Successor::of(&gateway)?;
    successor.release()?;
    let folder = gateway.config().parent().expect("a folder").join("state");
    let keys = Keys::open(&folder)?;
    let (digest, record) = keys.named(text(&key, "id").parse().expect("an id"))?.expect("a key");
    keys.put([&(digest, KeyRecord { revoked: Some(utc()), ..record })])?;
    // Left to itself, a worker goes by what it remembers for a minute.
    wait_for("the end of a key", PATIENCE, || Ok((ask()? == 401).then_some(())))?;
    Ok(())
}

#[test]
fn explain_says_whose_a_key_is_without_showing_it() -> Result {
    let site = Site::new()?;
    let origin = site.origin(ok)?;
    let (gateway, listen) = asking(&site, &origin, json!({}))?;
    let made = create(&gateway, &["--consumer", "acme", "--scope", "read"])?;
    let config = gateway.config();
    let config = config.to_str().unwrap_or_default();
    let (url, field) = (format!("http://{listen}/"), format!("X-API-Key: {}", text(&made, "key")));
    let explain = ["explain", config, "GET", &url, "-H", &field, "--json"];
    let shown = gateway.cli(&explain)?.ok()?;
    assert_eq!(shown.json()?["caller"]["consumer"], "acme", "{shown}");
    assert_eq!(shown.json()?["caller"]["key"], made["id"], "{shown}");
    assert!(!shown.stdout.contains(&text(&made, "key")[8..40]), "{shown}");
    let explain = ["explain", config, "GET", &url, "-H", "@-", "--json"];
    let piped = with_input(&gateway, &explain, &format!("Accept: */*\n\n{field}\n"))?.ok()?;
    assert_eq!(piped.json()?["caller"], shown.json()?["caller"], "{piped}");
    let bare = with_input(&gateway, &explain, text(&made, "key"))?;
    bare.refused(2, "number 1 is no header field")?;
    assert!(!format!("{bare}").contains(&text(&made, "key")[8..40]), "{bare}");
    Ok(())
}
