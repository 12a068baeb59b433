//! What others decide about sources, through the real binary: `gateway ban` and `gateway unban`, and the commands of
//! the action for fail2ban as fail2ban would run them.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::gateway::{Gateway, NOBODY, built};
use harness::{Result, wait_for};
use serde_json::{Value, json};

const ACTION: &str = include_str!("../../deploy/fail2ban/gateway.conf");
const PATIENCE: Duration = Duration::from_secs(20);

fn gateway() -> Result<Gateway<'static>> {
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {
            "attach": "off",
            "never_block": ["198.51.100.17"],
            "allow": ["198.51.100.32/28"],
        },
        "routes": [{"match": {"path": "/{rest*}"}, "respond": {"status": 204}}],
    });
    let mut gateway = Gateway::unprivileged(None, config)?;
    gateway.start()?;
    Ok(gateway)
}

/// The bans that hold.
fn bans(gateway: &Gateway<'_>) -> Result<Vec<Value>> {
    gateway.cli(&["bans", "list", "--json"])?.ok()?.json_lines()
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[test]
fn a_program_bans_through_the_same_guard_and_takes_back_its_own() -> Result {
    let gateway = gateway()?;
    let ban = |more: &[&str]| {
        let fixed = ["ban", "--for", "4h", "--reason", "ssh", "--from", "watcher"];
        gateway.cli(&[&fixed, more].concat())
    };
    ban(&["203.0.113.7", "2001:db8::/64"])?.ok()?;
    let held = bans(&gateway)?;
    assert_eq!(held.len(), 2, "{held:?}");
    for ban in &held {
        assert_eq!((text(ban, "rule"), text(ban, "author")), ("ssh", "outside watcher"));
        assert_eq!((text(ban, "measure"), text(ban, "enforced")), ("ban", "user space"));
    }
    let why = gateway.cli(&["why", "203.0.113.7"])?.ok()?.stdout;
    assert!(why.contains("ssh") && why.contains("watcher"), "{why}");

    // All or none, and nobody who is protected.
    ban(&["203.0.113.8", "198.51.100.17"])?.refused(1, "198.51.100.17")?;
    ban(&["127.0.0.1"])?.refused(1, "127.0.0.1")?;
    ban(&["0.0.0.0/0"])?.refused(2, "too wide")?;
    ban(&["203.0.113.8", "--measure", "slow_down", "--profile", "none"])?
        .refused(1, "no `none`")?;
    ban(&["203.0.113.8", "--profile", "none"])?.refused(2, "only slow_down")?;
    let long = ["ban", "203.0.113.8", "--for", "32d", "--reason", "x"];
    gateway.cli(&long)?.refused(2, "at most 31 days")?;
    gateway
        .cli(&["ban", "203.0.113.8", "--for", "1h", "--reason", "a\u{1b}b"])?
        .refused(2, "plain")?;
    assert_eq!(bans(&gateway)?.len(), 2);

    // Nobody else's.
    gateway.cli(&["ban", "203.0.113.9", "--for", "1h", "--reason", "by hand"])?.ok()?;
    let unban = |prefix: &str, from: &str| gateway.cli(&["unban", prefix, "--from", from]);
    assert!(unban("203.0.113.9", "watcher")?.ok()?.stdout.contains("not banned by watcher"));
    assert!(unban("203.0.113.7", "another")?.ok()?.stdout.contains("not banned by another"));
    assert_eq!(bans(&gateway)?.len(), 3);
    assert!(unban("203.0.113.7", "watcher")?.ok()?.stdout.contains("free again"));
    unban("2001:db8::/64", "watcher")?.ok()?;
    let left = bans(&gateway)?;
    assert!(left.iter().all(|ban| text(ban, "prefix") == "203.0.113.9"), "{left:?}");
    // A ban is weaker than what an operator allows, and is shown as that.
    ban(&["198.51.100.33"])?.ok()?;
    let why = gateway.cli(&["why", "198.51.100.33"])?.ok()?.stdout;
    assert!(why.contains("allow"), "{why}");
    ban(&["203.0.113.12", "--believed", "--measure", "reset"])?.ok()?;
    let believed = bans(&gateway)?;
    assert!(believed.iter().any(|ban| text(ban, "place") == "user_space"), "{believed:?}");
    Ok(())
}

/// A command of the action, its tags filled in as fail2ban does.
fn command(name: &str, tags: &[(&str, &str)]) -> Result<String> {
    let line = ACTION.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
    let mut line = line.with_context(|| format!("there is no {name}"))?.to_owned();
    for (tag, value) in tags {
        line = line.replace(&format!("<{tag}>"), value);
    }
    ensure!(!line.contains('<'), "a tag is left: {line}");
    Ok(line)
}

fn run(command: &str) -> Result {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]);
    // As the user of the gateway, whom its admin socket is for.
    if nix::unistd::geteuid().is_root() {
        shell.uid(NOBODY).gid(NOBODY);
    }
    let done = shell.output()?;
    ensure!(done.status.success(), "{command}: {done:?}");
    Ok(())
}

#[test]
fn fail2ban_bans_and_unbans_and_an_end_of_its_own_is_no_error() -> Result {
    let gateway = gateway()?;
    let own = format!("{} --socket {}", built()?.display(), gateway.socket().display());
    let ban = |ip: &str, bantime: &str| {
        let tags = [("gateway", &*own), ("ip", ip), ("bantime", bantime), ("name", "sshd")];
        run(&command("actionban", &[&tags[..], &[("measure", "ban")]].concat())?)
    };
    let unban = |ip: &str| run(&command("actionunban", &[("gateway", &own), ("ip", ip)])?);
    run(&command("actioncheck", &[("gateway", &own)])?)?;
    ban("203.0.113.7", "600")?;
    ban("2001:db8::7", "-1")?;
    ban("203.0.113.8", "1")?;
    let held = bans(&gateway)?;
    assert!(held.iter().all(|ban| text(ban, "author") == "outside fail2ban"), "{held:?}");
    assert!(held.iter().all(|ban| text(ban, "rule") == "sshd"), "{held:?}");
    wait_for("the end of the shortest", PATIENCE, || {
        Ok((bans(&gateway)?.len() == 2).then_some(()))
    })?;
    // fail2ban unbans what has ended here a moment before.
    unban("203.0.113.8")?;
    unban("203.0.113.7")?;
    unban("2001:db8::7")?;
    assert!(bans(&gateway)?.is_empty());
    Ok(())
}
