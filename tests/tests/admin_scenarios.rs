//! Commands over the admin socket through the real binary, without privileges: what is refused and how, what is kept,
//! and who may ask at all.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use harness::Result;
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use serde_json::{Value, json};

/// As root in a namespace of its own, else on a free port of the loopback.
fn namespace() -> Result<Option<Namespace>> {
    nix::unistd::geteuid().is_root().then(|| Namespace::new("host")).transpose()
}

fn config(kernel: Value) -> Result<Value> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok(json!({
        "listen": [{"address": free.to_string()}],
        "kernel": kernel,
        "upstreams": {"echo": {"endpoints": ["echo"]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "echo"}],
    }))
}

fn rules(gateway: &Gateway<'_>) -> Result<Vec<Value>> {
    gateway.cli(&["deny", "list", "--json"])?.ok()?.json_lines()
}

#[test]
fn what_a_rule_cannot_say_is_refused_and_the_gateway_goes_on() -> Result {
    let namespace = namespace()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(json!({}))?)?;
    gateway.start()?;
    let long = "x".repeat(201);
    for (arguments, why) in [
        // humantime panics when it is asked to display the year 22026.
        (["--for", "20000y"], "100 years"),
        (["--for", "0s"], "no time"),
        (["--reason", "red\u{1b}[31m"], "\\u{1b}"),
        (["--reason", "two\nlines"], "\\u{a}"),
        (["--reason", "turned \u{202e}round"], "\\u{202e}"),
        (["--reason", &long], "200"),
    ] {
        let mut command = vec!["deny", "add", "198.18.0.1"];
        command.extend(arguments);
        let answer = gateway.cli(&command)?;
        let complaint = answer.stderr.replace("\\\\", "\\");
        assert_eq!(answer.code, Some(2), "{answer}");
        assert!(complaint.contains(why), "{why:?} is not in: {answer}");
    }
    assert_eq!(rules(&gateway)?, Vec::<Value>::new());
    gateway.cli(&["deny", "add", "198.18.0.1", "--for", "100y", "--reason", "é — fine"])?.ok()?;
    assert_eq!(rules(&gateway)?[0]["reason"], json!("é — fine"));
    Ok(())
}

#[test]
fn a_list_has_an_end_also_without_the_kernel() -> Result {
    let namespace = namespace()?;
    let config = config(json!({"max_rules": 20}))?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config)?;
    gateway.start()?;
    let many: Vec<String> = (0..21).map(|last| format!("198.18.0.{last}")).collect();
    let mut command = vec!["deny", "add"];
    command.extend(many.iter().map(String::as_str));
    let refused = gateway.cli(&command)?;
    refused.refused(
        1,
        "IPv4 rules do not fit into the IPv4 table of user space, which has room for 20, ",
    )?;
    refused.refused(1, "raise kernel.max_rules")?;
    assert_eq!(rules(&gateway)?, Vec::<Value>::new());
    gateway.cli(&["deny", "add", "198.18.0.1"])?.ok()?;
    Ok(())
}

#[test]
fn what_was_acknowledged_is_there_after_kill_9() -> Result {
    let namespace = namespace()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(json!({}))?)?;
    gateway.start()?;
    gateway.cli(&["deny", "add", "198.18.0.1", "--for", "1h"])?.ok()?;
    gateway.cli(&["deny", "add", "198.18.0.2", "--for", "1s"])?.ok()?;
    gateway.kill9()?;
    gateway.start()?;
    let before = rules(&gateway)?;
    assert_eq!(before[0]["prefix"], json!("198.18.0.1"));
    assert_eq!(before[0]["enforced"], json!("user space"));
    gateway.cli(&["deny", "remove", "198.18.0.1"])?.ok()?;
    gateway.kill9()?;
    std::thread::sleep(std::time::Duration::from_millis(1100));
    gateway.start()?;
    assert_eq!(rules(&gateway)?, Vec::<Value>::new());
    Ok(())
}

#[test]
fn the_socket_is_private_and_bodies_are_bounded() -> Result {
    let namespace = namespace()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(json!({}))?)?;
    gateway.start()?;
    assert_eq!(fs::metadata(gateway.socket())?.permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(gateway.socket())?;
    let bytes = 17 << 20;
    write!(stream, "POST /v1/rules HTTP/1.1\r\nhost: gateway\r\ncontent-length: {bytes}\r\n\r\n")?;
    // It may answer and close before all of it is there.
    let block = vec![b' '; 1 << 20];
    for _ in 0..17 {
        if stream.write_all(&block).is_err() {
            break;
        }
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 413");
    assert_eq!(gateway.cli(&["status"])?.code, Some(0));
    // More connections than are served at once, all of them silent: they are closed after two seconds.
    let silent = (0..40).map(|_| UnixStream::connect(gateway.socket()));
    let silent: Vec<UnixStream> = silent.collect::<std::io::Result<_>>()?;
    assert_eq!(gateway.cli(&["status"])?.code, Some(0));
    drop(silent);
    Ok(())
}

#[test]
fn a_socket_left_behind_is_replaced_one_in_use_is_not() -> Result {
    let namespace = namespace()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(json!({}))?)?;
    let other = UnixListener::bind(gateway.socket())?;
    fs::set_permissions(gateway.socket(), fs::Permissions::from_mode(0o666))?;
    gateway.start_refused()?.refused(1, "another gateway answers")?;
    drop(other);
    gateway.start()?;
    gateway.stop()?;
    fs::write(gateway.socket(), "somebody's notes")?;
    gateway.start_refused()?.refused(1, "is no socket")?;
    assert_eq!(fs::read_to_string(gateway.socket())?, "somebody's notes");
    Ok(())
}
