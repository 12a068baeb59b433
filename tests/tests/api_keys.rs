//! API keys through the real binary: what is made is kept and shown once, what is rotated holds for its time of grace,
//! what is revoked opens nothing.

use std::io::Write;
use std::process::Stdio;

use harness::Result;
use harness::gateway::{Gateway, Outcome};
use harness::namespace::Namespace;
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
        (&["revoke", "gw_live_x"], 2, "16 hexadecimal digits"),
        (&["revoke", "0000000000000000"], 1, "`gateway keys list`"),
        (&["rotate", "0000000000000000", "--grace", "soon"], 2, "--grace"),
    ] {
        let command: Vec<&str> = ["keys"].iter().chain(arguments).copied().collect();
        gateway.cli(&command)?.refused(code, complaint)?;
    }
    assert_eq!(list(&gateway, &[])?, Vec::<Value>::new());
    Ok(())
}
