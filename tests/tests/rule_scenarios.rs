//! Rules by the list and on trial, through the real binary: import and export, dry runs, changes that nobody confirms,
//! connections that are open when their peer is denied.
#![expect(clippy::disallowed_methods, reason = "tests measure real time from outside")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use harness::client::{Client, get};
use harness::gateway::Gateway;
use harness::origin::{Origin, Reply};
use harness::topology::{Host, Topology};
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough to be told that nobody listens.
const TELLS: Duration = Duration::from_millis(500);

fn origin(hosts: &Topology) -> Result<Origin> {
    let address = SocketAddr::new(hosts.upstream.v4(), 9000);
    Origin::start(Some(&hosts.upstream.namespace), address, |_| Reply::Answer(200, "served"))
}

fn is_let_in(host: &Host, source: IpAddr) -> bool {
    get(&host.namespace, Some(source), host.target()).is_ok_and(|answer| answer.status == 200)
}

fn file(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| anyhow::anyhow!("{} is no text", path.display()))
}

#[test]
fn a_list_is_imported_as_a_difference_and_exported_as_it_was() -> Result {
    require_root()?;
    let folder = tempfile::tempdir()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    let attacker = &hosts.attacker;
    let [one, two] = [attacker.add_v4(21)?, attacker.add_v4(22)?];
    let drop = file(
        folder.path(),
        "drop.txt",
        &format!("# published\n{one} ; SBL1\n192.0.2.0-192.0.2.9\r\n2001:db8:bad::/48 # why not\n"),
    )?;
    gateway.cli(&["deny", "import", text(&drop)?, "--reason", "published"])?.ok()?;
    assert!(!is_let_in(attacker, one) && is_let_in(attacker, two));
    let why = gateway.cli(&["why", &one.to_string(), "--json"])?.ok()?.json()?;
    assert_eq!(why.pointer("/rule/list"), Some(&json!("drop")), "{why}");
    assert_eq!(why.pointer("/rule/reason"), Some(&json!("SBL1")), "{why}");
    assert_eq!(why.pointer("/rule/enforced"), Some(&json!("both")), "{why}");

    // What stays keeps what it has met; what goes is let in.
    let met = |gateway: &Gateway<'_>| -> Result<u64> {
        let rules = gateway.cli(&["deny", "list", "--inside", &one.to_string()])?.ok()?;
        Ok(rules.json()?["packets"].as_u64().unwrap_or(0))
    };
    let before = met(&gateway)?;
    assert!(before > 0);
    file(folder.path(), "drop.txt", &format!("{one} ; SBL1\n{two}\n"))?;
    let done = gateway.cli(&["deny", "import", text(&drop)?])?.ok()?;
    assert!(done.stdout.contains("2 entries, 1 added or changed, "), "{done}");
    assert!(!is_let_in(attacker, one) && !is_let_in(attacker, two));
    assert!(met(&gateway)? >= before);

    gateway.cli(&["deny", "add", "198.51.100.7", "--reason", "by hand", "--for", "1h"])?.ok()?;
    let exported = folder.path().join("exported.json");
    gateway.cli(&["deny", "export", text(&exported)?])?.ok()?;
    gateway.cli(&["deny", "remove", "198.51.100.7"])?.ok()?;
    gateway.cli(&["deny", "remove", "--list", "drop"])?.ok()?;
    assert!(is_let_in(attacker, one));
    gateway.cli(&["deny", "import", text(&exported)?, "--list", "again"])?.ok()?;
    assert!(!is_let_in(attacker, one));
    let list = |gateway: &Gateway<'_>| -> Result<Vec<Value>> {
        let mut rules = gateway.cli(&["deny", "list"])?.ok()?.json_lines()?;
        rules.iter_mut().for_each(|rule| {
            rule["packets"] = Value::Null;
            rule["last_packet_utc_ms"] = Value::Null;
        });
        Ok(rules)
    };
    let listed = list(&gateway)?;
    let of = |prefix: &str| listed.iter().find(|rule| rule["prefix"] == prefix).cloned();
    let by_hand = of("198.51.100.7").unwrap_or(Value::Null);
    assert_eq!(by_hand["reason"], "by hand");
    assert!(by_hand["until_utc_ms"].is_u64(), "{by_hand}");
    assert_eq!(listed.len(), 3);

    gateway.kill9()?;
    assert!(!is_let_in(attacker, one), "the kernel goes on");
    gateway.start()?;
    assert_eq!(list(&gateway)?, listed, "and the list is kept");
    Ok(())
}

#[test]
fn a_list_with_a_bad_line_is_refused_unless_told_to_skip_it() -> Result {
    require_root()?;
    let folder = tempfile::tempdir()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["max_rules"] = json!(40);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let none = |gateway: &Gateway<'_>| gateway.cli(&["deny", "list"])?.ok()?.json_lines();
    let bad = file(folder.path(), "bad.txt", "192.0.2.1\n192.0.2.300\n\n192.0.2.7/24\n")?;
    let refused = gateway.cli(&["deny", "import", text(&bad)?])?;
    for told in ["--skip-invalid", "\"line\":2", "\"line\":4"] {
        refused.refused(1, told)?;
    }
    assert_eq!(none(&gateway)?, Vec::<Value>::new());
    gateway.cli(&["deny", "import", text(&bad)?, "--skip-invalid"])?.ok()?;
    assert_eq!(none(&gateway)?.len(), 1);

    let huge = file(folder.path(), "huge.txt", "0.0.0.0/1\n")?;
    gateway.cli(&["deny", "import", text(&huge)?])?.refused(1, "add --yes")?;
    let wide: Vec<String> = (20..33).map(|first| format!("{first}.0.0.0/8")).collect();
    let together = file(folder.path(), "together.txt", &wide.join("\n"))?;
    let told = "5.1 % of all IPv4 addresses (218,103,808 addresses): add --yes";
    gateway.cli(&["deny", "import", text(&together)?])?.refused(1, told)?;
    let add: Vec<&str> = ["deny", "add"].into_iter().chain(wide.iter().map(|w| &**w)).collect();
    gateway.cli(&add)?.refused(1, told)?;
    gateway.cli(add.get(..14).unwrap_or_default())?.ok()?;
    gateway.cli(&[&["deny", "remove"], add.get(2..14).unwrap_or_default()].concat())?.ok()?;
    gateway.cli(&["deny", "import", text(&together)?, "--yes"])?.ok()?;
    gateway.cli(&["deny", "remove", "--list", "together"])?.ok()?;
    let many: String = (0..200).map(|last| format!("198.51.100.{last}\n")).collect();
    let many = file(folder.path(), "many.txt", &many)?;
    gateway.cli(&["deny", "import", text(&many)?])?.refused(1, "raise kernel.max_rules")?;
    let empty = file(folder.path(), "empty.txt", "# nothing\n")?;
    gateway.cli(&["deny", "import", text(&empty)?])?.refused(1, "has no entry")?;
    let named = file(folder.path(), "My List.txt", "192.0.2.1\n")?;
    gateway.cli(&["deny", "import", text(&named)?])?.refused(2, "--list")?;
    gateway.cli(&["deny", "import", "/nowhere.txt"])?.refused(1, "No such file")?;
    let array = file(folder.path(), "array.txt", "[{\"prefix\":\"192.0.2.1\"}]\n")?;
    gateway.cli(&["deny", "import", text(&array)?])?.refused(1, "an object a line")?;
    // Nobody who is denied is let in because of a name.
    gateway
        .cli(&["allow", "import", text(&many)?, "--list", "bad"])?
        .refused(1, "is one of deny now")?;
    gateway
        .cli(&["allow", "import", text(&named)?, "--list", "a", "--dry-run"])?
        .refused(2, "drops")?;
    gateway.cli(&["deny", "remove", "--list", "nowhere"])?.refused(1, "gateway lists")?;
    assert_eq!(none(&gateway)?.len(), 1, "nothing of it was left");
    assert_eq!(gateway.cli(&["lists"])?.ok()?.json_lines()?.len(), 1);
    Ok(())
}

#[test]
fn the_dry_run_of_a_list_counts_and_lets_in() -> Result {
    require_root()?;
    let folder = tempfile::tempdir()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    let attacker = &hosts.attacker;
    let [tried, covered] = [attacker.add_v4(31)?, attacker.add_v4(32)?];
    let list = file(folder.path(), "trial.txt", &format!("{tried}\n{covered}\n"))?;
    gateway.cli(&["deny", "import", text(&list)?, "--dry-run"])?.ok()?;
    assert!(is_let_in(attacker, tried));
    let rule = gateway.cli(&["deny", "list", "--inside", &tried.to_string()])?.ok()?.json()?;
    assert!(rule["packets"].as_u64() > Some(0), "{rule}");
    assert_eq!(rule["enforced"], "nowhere");
    let status = gateway.status()?;
    let counters = status["kernel"]["counters"].as_array().cloned().unwrap_or_default();
    let deny = counters.iter().find(|counter| counter["reason"] == "deny").cloned();
    let deny = deny.unwrap_or(Value::Null);
    assert!(deny["dry_run_packets"].as_u64() > Some(0), "{deny}");
    assert_eq!(deny["packets"], 0);
    // It hides no rule that covers it.
    gateway.cli(&["deny", "add", &format!("{covered}/31")])?.ok()?;
    assert!(!is_let_in(attacker, covered));
    gateway.cli(&["deny", "import", text(&list)?])?.ok()?;
    assert!(!is_let_in(attacker, tried), "and then it is meant");
    Ok(())
}

#[test]
fn what_nobody_confirms_is_put_back_also_when_the_gateway_is_killed() -> Result {
    require_root()?;
    let folder = tempfile::tempdir()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    let attacker = &hosts.attacker;
    let [added, removed, listed, unlisted] = [41, 42, 43, 44].map(|host| attacker.add_v4(host));
    let (added, removed, listed, unlisted) = (added?, removed?, listed?, unlisted?);
    gateway.cli(&["deny", "add", &removed.to_string()])?.ok()?;
    let within = ["--confirm-within", "6s"];
    let list = file(folder.path(), "late.txt", &format!("{listed}\n"))?;
    let gone = file(folder.path(), "gone.txt", &format!("{unlisted}\n"))?;
    gateway.cli(&["deny", "import", text(&gone)?, "--reason", "why it was"])?.ok()?;
    let change = |gateway: &Gateway<'_>| -> Result<Instant> {
        let now = Instant::now();
        gateway.cli(&[&["deny", "add", &added.to_string()], &within[..]].concat())?.ok()?;
        let done =
            gateway.cli(&[&["deny", "remove", &removed.to_string()], &within[..]].concat())?;
        assert!(!done.ok()?.stdout.contains("still"), "it is what comes back");
        gateway.cli(&[&["deny", "remove", "--list", "gone"], &within[..]].concat())?.ok()?;
        gateway.cli(&[&["deny", "import", text(&list)?], &within[..]].concat())?.ok()?;
        Ok(now)
    };
    let sources = [added, removed, listed, unlisted];
    let state = || sources.map(|source| is_let_in(attacker, source));
    let (before, after) = ([true, false, true, false], [false, true, false, true]);
    let lists = |gateway: &Gateway<'_>| -> Result<Vec<Value>> {
        let lists = gateway.cli(&["lists"])?.ok()?.json_lines()?;
        Ok(lists.iter().map(|list| json!([list["name"], list["entries"]])).collect())
    };

    change(&gateway)?;
    gateway.kill9()?;
    // With the daemon gone nobody answers, but whoever is let in is told so.
    let answers = |source| {
        let connected =
            Client::connect(&attacker.namespace, Some(source), attacker.target(), TELLS);
        connected.err().is_some_and(|error| format!("{error:#}").contains("refused"))
    };
    wait_for("the kernel to put it back", PATIENCE, || {
        Ok((sources.map(answers) == before).then_some(()))
    })?;
    gateway.start()?;
    assert_eq!(state(), before, "and the store agrees");
    assert_eq!(lists(&gateway)?, [json!(["gone", 1])]);
    let why = gateway.cli(&["why", &unlisted.to_string(), "--json"])?.ok()?.json()?;
    assert_eq!(why.pointer("/rule/reason"), Some(&json!("why it was")), "{why}");

    change(&gateway)?;
    wait_for("the gateway to put it back", PATIENCE, || {
        Ok((lists(&gateway)? == [json!(["gone", 1])]).then_some(()))
    })?;
    assert_eq!(state(), before);

    let began = change(&gateway)?;
    let waiting = gateway.cli(&["lists"])?.ok()?.stdout;
    assert_eq!(waiting.matches("waits for `gateway confirm`").count(), 2, "{waiting}");
    gateway.cli(&["confirm"])?.ok()?;
    sleep(Duration::from_secs(8).saturating_sub(began.elapsed()));
    assert_eq!(state(), after, "it was confirmed");
    assert_eq!(lists(&gateway)?, [json!(["late", 1])]);
    gateway.kill9()?;
    gateway.start()?;
    assert_eq!(state(), after);
    let nothing = gateway.cli(&["confirm"])?.ok()?;
    assert!(nothing.stdout.contains("nothing waits"), "{nothing}");
    gateway
        .cli(&["deny", "add", "192.0.2.1", "--confirm-within", "25h"])?
        .refused(2, "1s to 24h")?;
    Ok(())
}

/// Nor does a start forget it that finds nothing in the kernel, as after a reboot.
#[test]
fn what_nobody_confirms_is_put_back_also_after_a_detach() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    let attacker = &hosts.attacker;
    let [added, removed] = [51, 52].map(|host| attacker.add_v4(host));
    let (added, removed) = (added?, removed?);
    gateway.cli(&["deny", "add", &removed.to_string()])?.ok()?;
    for change in [["deny", "add", &added.to_string()], ["deny", "remove", &removed.to_string()]] {
        gateway.cli(&[&change[..], &["--confirm-within", "6s"]].concat())?.ok()?;
    }
    gateway.kill9()?;
    gateway.cli(&["kernel", "detach"])?.ok()?;
    gateway.start()?;
    wait_for("the next gateway to put it back", PATIENCE, || {
        let state = [added, removed].map(|source| is_let_in(attacker, source));
        Ok((state == [true, false]).then_some(()))
    })
}

#[test]
fn whoever_is_denied_loses_the_connection_that_is_open() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    // User space alone: the kernel would keep even the end of the connection from its peer's answer.
    config["kernel"]["attach"] = json!("off");
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let (client, attacker) = (&hosts.client, &hosts.attacker);
    let connect = |host: &Host| Client::connect(&host.namespace, None, host.target(), PATIENCE);
    let (mut kept, mut lost) = (connect(client)?, connect(attacker)?);
    assert_eq!((kept.get("/")?.status, lost.get("/")?.status), (200, 200));
    gateway.cli(&["deny", "add", &attacker.v4().to_string()])?.ok()?;
    assert_eq!(lost.read_to_end()?, b"", "closed without being asked anything");
    assert_eq!(kept.get("/")?.status, 200);
    Ok(())
}
