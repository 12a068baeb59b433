//! The kernel door where things go wrong: tables that are full or of another size, pins of others, reloads that are
//! refused, programs that somebody took off. What was enforced stays enforced, and what is said is true.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::chown;
use std::process::Command;
use std::time::Duration;

use harness::client::Client;
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use harness::{Result, require_root, wait_for};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const DENIED: &str = "127.0.0.2";

/// A host with its loopback and one end of a veth pair, which has a native mode where the loopback has none.
fn host() -> Result<Namespace> {
    let host = Namespace::new("host")?;
    host.ip("link add eth0 type veth peer name eth1\nlink set eth0 up\nlink set eth1 up")?;
    Ok(host)
}

/// A gateway on the loopback with `kernel` added.
fn config(kernel: Value) -> Value {
    let mut merged = json!({"interfaces": ["lo"]});
    if let (Some(merged), Some(kernel)) = (merged.as_object_mut(), kernel.as_object()) {
        merged.extend(kernel.clone());
    }
    json!({
        "listen": [{"address": "127.0.0.1:8080"}],
        "kernel": merged,
        "upstreams": {"echo": {"endpoints": ["echo"]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "echo"}],
    })
}

/// Whether a connection from `source` to the gateway is made: the kernel door drops it before it can be.
fn connects(host: &Namespace, source: &str) -> Result<bool> {
    let target: SocketAddr = "127.0.0.1:8080".parse()?;
    Ok(Client::connect(host, Some(source.parse()?), target, Duration::from_millis(500)).is_ok())
}

/// The interfaces that run an XDP program, asked of the kernel, with the ids of the programs.
fn programs(host: &Namespace) -> Result<Vec<(String, u64)>> {
    let listing = host.output(Command::new("ip").args(["-json", "link", "show"]))?;
    let links: Vec<Value> = serde_json::from_slice(&listing.stdout)?;
    let program = |link: &Value| {
        let id = link.pointer("/xdp/prog/id")?.as_u64()?;
        Some((link.get("ifname")?.as_str()?.to_owned(), id))
    };
    Ok(links.iter().filter_map(program).collect())
}

fn rules(gateway: &Gateway<'_>) -> Result<Vec<Value>> {
    gateway.cli(&["deny", "list", "--json"])?.ok()?.json_lines()
}

fn pinned_maps(gateway: &Gateway<'_>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for version in fs::read_dir(gateway.pins())? {
        let version = version?;
        if version.file_name().to_string_lossy().starts_with("abi-") {
            for pin in fs::read_dir(version.path())? {
                names.push(pin?.file_name().to_string_lossy().into_owned());
            }
        }
    }
    names.sort();
    Ok(names)
}

#[test]
fn a_full_table_refuses_and_keeps_what_it_has() -> Result {
    require_root()?;
    let host = host()?;
    // Two for the addresses of the loopback and of the link, the rest for rules; resolvers may take one or two.
    let mut gateway = Gateway::new(&host, config(json!({"max_rules": 8})))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    let many: Vec<String> = (0..8).map(|last| format!("192.0.2.{last}")).collect();
    let mut command = vec!["deny", "add"];
    command.extend(many.iter().map(String::as_str));
    let refused = gateway.cli(&command)?;
    refused.refused(1, "IPv4 rules do not fit into the map TABLE_V4, which has room for 8, ")?;
    refused.refused(1, "raise kernel.max_rules")?;
    let many: Vec<String> = (0..9).map(|last| format!("2001:db8::{last}")).collect();
    let many = [&["deny", "add"][..], &many.iter().map(String::as_str).collect::<Vec<_>>()];
    gateway.cli(&many.concat())?.refused(1, "the map TABLE_V6, which has room for 8, ")?;
    assert_eq!(rules(&gateway)?.len(), 1, "all or none");
    assert!(!connects(&host, DENIED)?);
    gateway.kill9()?;
    gateway.start()?;
    assert_eq!(rules(&gateway)?.len(), 1, "nothing is left of it in the store");

    // A table that is too small for what is there.
    gateway.write_config(config(json!({"max_rules": 1})))?;
    gateway.cli(&["reload"])?.refused(1, "nothing was changed")?;
    assert!(!connects(&host, DENIED)?);
    gateway.stop()?;
    gateway.start_refused()?.refused(1, "raise kernel.max_rules")?;
    assert!(!connects(&host, DENIED)?, "the programs of before go on");
    assert!(!pinned_maps(&gateway)?.iter().any(|name| name.ends_with("-next")));
    Ok(())
}

#[test]
fn tables_of_another_size_take_rules_and_counters_over() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({})))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    assert!(!connects(&host, DENIED)?);
    let dropped = gateway.kernel_packets("deny")?;
    assert!(dropped > 0);
    let before = programs(&host)?;
    gateway.stop()?;
    gateway.write_config(config(json!({"max_rules": 1000, "max_sources": 1000})))?;
    gateway.start()?;
    assert_ne!(programs(&host)?, before, "the program was replaced");
    assert_eq!(gateway.kernel_packets("deny")?, dropped);
    assert_eq!(rules(&gateway)?[0]["packets"], json!(dropped));
    assert!(!connects(&host, DENIED)?);
    assert!(rules(&gateway)?[0]["packets"].as_u64() > Some(dropped), "and counts on");
    Ok(())
}

#[test]
fn an_interface_that_refuses_leaves_all_as_it_was() -> Result {
    require_root()?;
    let host = host()?;
    let refusing = json!({"interfaces": ["eth0", "lo"], "attach": "native"});
    let mut gateway = Gateway::new(&host, config(refusing.clone()))?;
    gateway.start_refused()?.refused(1, "lo in native mode: its driver has no native mode")?;
    assert_eq!(programs(&host)?, [], "nothing by halves");

    gateway.write_config(config(json!({})))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    gateway.write_config(config(refusing))?;
    gateway.cli(&["reload"])?.refused(1, "nothing was changed")?;
    let names = |host: &Namespace| -> Result<Vec<String>> {
        Ok(programs(host)?.into_iter().map(|(name, _)| name).collect())
    };
    assert_eq!(names(&host)?, ["lo"]);
    assert!(!connects(&host, DENIED)?);
    gateway.stop()?;
    gateway.start_refused()?.refused(1, "native mode")?;
    assert_eq!(names(&host)?, ["lo"], "in the mode of before, by the program of before");
    assert!(!connects(&host, DENIED)?);
    Ok(())
}

/// A mount on the link's pin keeps it from being removed.
#[test]
fn an_interface_that_cannot_be_let_go_of_leaves_all_as_it_was() -> Result {
    require_root()?;
    let host = host()?;
    let before = config(json!({"interfaces": ["eth0", "lo"], "deny": [DENIED]}));
    let after = config(json!({"deny": ["127.0.0.3"]}));
    let mut gateway = Gateway::new(&host, before.clone())?;
    gateway.start()?;
    let pin = gateway.pins().join("links/eth0");
    mount(Some(&pin), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let decides_as_before = |gateway: &Gateway<'_>| -> Result {
        assert!(!connects(&host, DENIED)? && connects(&host, "127.0.0.3")?);
        assert_eq!(programs(&host)?.len(), 2);
        let pins = fs::read_dir(gateway.pins())?.count();
        assert_eq!(pins, 2, "one version, and the links");
        Ok(())
    };
    gateway.write_config(after.clone())?;
    gateway.cli(&["reload"])?.refused(1, "busy")?;
    decides_as_before(&gateway)?;
    gateway.kill9()?;
    let ids = programs(&host)?;
    gateway.start_refused()?.refused(1, "links/eth0: Device or resource busy")?;
    assert!(!connects(&host, DENIED)?);
    assert_eq!(programs(&host)?, ids, "by the program of before");
    gateway.write_config(before)?;
    gateway.start()?;
    decides_as_before(&gateway)?;

    umount2(&pin, MntFlags::MNT_DETACH)?;
    gateway.write_config(after)?;
    gateway.cli(&["reload"])?.ok()?;
    assert!(connects(&host, DENIED)? && !connects(&host, "127.0.0.3")?);
    assert_eq!(programs(&host)?.len(), 1);
    Ok(())
}

#[test]
fn a_reload_that_is_refused_changes_nothing() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({"deny": [DENIED]})))?;
    gateway.start()?;
    let taken = host.enter(|| TcpListener::bind("127.0.0.1:8081"))??;
    let mut port = config(json!({"deny": ["127.0.0.3"]}));
    port["listen"] = json!([{"address": "127.0.0.1:8080"}, {"address": "127.0.0.1:8081"}]);
    let mut moved = port.clone();
    moved["listen"] = json!([{"address": "0.0.0.0:8080"}]);
    let native = config(json!({"deny": ["127.0.0.3"], "attach": "native"}));
    for (bad, why) in [(port, "8081"), (moved, "restart"), (native, "no native mode")] {
        gateway.write_config(bad)?;
        gateway.cli(&["reload"])?.refused(1, why)?;
        let before = gateway.log().matches("configuration not reloaded").count();
        gateway.signal(Signal::SIGHUP)?;
        wait_for("the refusal of the signal", Duration::from_secs(5), || {
            let refused = gateway.log().matches("configuration not reloaded").count();
            Ok((refused > before).then_some(()))
        })?;
        assert!(!connects(&host, DENIED)? && connects(&host, "127.0.0.3")?, "{why}");
        assert_eq!(rules(&gateway)?[0]["prefix"], json!(DENIED), "{why}");
        assert_eq!(gateway.status()?["listen"], json!(["127.0.0.1:8080"]), "{why}");
    }
    drop(taken);
    Ok(())
}

#[test]
fn a_program_that_somebody_took_off_is_put_back_and_that_is_told() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({})))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    assert_eq!(rules(&gateway)?[0]["enforced"], json!("both"));
    assert!(!gateway.log().contains(r#""message":"attached""#), "{}", gateway.log());
    // The kernel gives a link up when its last pin goes.
    fs::remove_file(gateway.pins().join("links/lo"))?;
    wait_for("a new link", Duration::from_secs(10), || {
        let told = gateway.log().contains(r#""message":"attached","interface":"lo""#);
        Ok((told && !programs(&host)?.is_empty()).then_some(()))
    })?;
    assert!(gateway.pins().join("links/lo").exists());
    assert_eq!(rules(&gateway)?[0]["enforced"], json!("both"));
    assert!(!connects(&host, DENIED)?);
    Ok(())
}

#[test]
fn status_says_what_the_tables_cost() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({"max_rules": 1000})))?;
    gateway.start()?;
    let cost = |gateway: &Gateway| -> Result<u64> {
        let status = gateway.status()?;
        Ok(status.pointer("/kernel/memory_bytes").and_then(Value::as_u64).unwrap_or(0))
    };
    let small = cost(&gateway)?;
    gateway.write_config(config(json!({"max_rules": 1_000_000})))?;
    gateway.cli(&["reload"])?.ok()?;
    let large = cost(&gateway)?;
    // Two families of cells, at most 60 % full, of 16 and 32 bytes, and as much again and half for their hits.
    assert!(large - small > 1_000_000 * (16 + 32 + 2 * 16), "{small} and then {large}");
    Ok(())
}

#[test]
fn what_others_left_at_the_pins_is_cleared_away_or_refused() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({})))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    gateway.stop()?;
    // Another version's folder with a map, and a program where a map should be.
    let old = gateway.pins().join("abi-0");
    fs::create_dir(&old)?;
    let folder = fs::read_dir(gateway.pins())?.filter_map(|entry| Some(entry.ok()?.path()));
    let ours = format!("abi-{}", gateway_common::layout::ABI);
    let folder = folder.into_iter().find(|path| path.ends_with(&ours)).unwrap_or_default();
    fs::rename(folder.join("TABLE_V4"), old.join("TABLE_V4"))?;
    fs::rename(folder.join("program"), folder.join("TABLE_V4"))?;
    gateway.start()?;
    assert!(!old.exists() && gateway.log().contains("abi-0"), "it says what it removed");
    assert!(!connects(&host, DENIED)?);
    assert_eq!(rules(&gateway)?[0]["enforced"], json!("both"));
    gateway.stop()?;
    chown(gateway.pins(), Some(1), Some(1))?;
    gateway.start_refused()?.refused(1, "belongs to user 1")?;
    assert!(!connects(&host, DENIED)?);
    Ok(())
}

#[test]
fn without_a_bpf_file_system_it_says_how_to_get_one() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({})))?;
    let mut elsewhere = config(json!({"attach": "generic"}));
    let folder = gateway.config().with_file_name("state");
    elsewhere["state"] = json!({"dir": folder});
    elsewhere["admin"] = json!({"socket": gateway.socket()});
    elsewhere["kernel"]["pins"] = json!(folder.join("pins"));
    gateway.write_config_text(&elsewhere.to_string())?;
    gateway.start_refused()?.refused(1, "mount -t bpf bpf")?;
    elsewhere["kernel"]["attach"] = json!("auto");
    gateway.write_config_text(&elsewhere.to_string())?;
    gateway.start()?;
    let status = gateway.status()?;
    let note = status.pointer("/kernel/note").and_then(Value::as_str).unwrap_or_default();
    assert!(note.contains("user space enforces alone") && note.contains("mount -t bpf"), "{note}");
    Ok(())
}

#[test]
fn a_deny_of_what_becomes_protected_waits_and_a_forced_one_holds() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({})))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    assert!(!connects(&host, DENIED)?);
    gateway.write_config(config(json!({"never_block": [DENIED]})))?;
    let answer = gateway.cli(&["reload"])?.ok()?;
    assert!(answer.stdout.contains(DENIED), "it says what is held back: {answer}");
    assert!(connects(&host, DENIED)?);
    let rule = &rules(&gateway)?[0];
    assert_eq!(rule["enforced"], json!("nowhere"), "{rule}");
    assert_eq!(gateway.status()?.pointer("/rules/held_back"), Some(&json!(1)));
    gateway.cli(&["deny", "add", DENIED])?.refused(1, "--force")?;
    gateway.cli(&["deny", "add", DENIED, "--force"])?.ok()?;
    assert!(!connects(&host, DENIED)?);
    let allow = gateway.cli(&["allow", "add", DENIED])?.ok()?;
    assert!(allow.stdout.contains("still under deny by forced"), "{allow}");
    gateway.cli(&["deny", "remove", DENIED])?.ok()?;
    assert!(connects(&host, DENIED)?);
    Ok(())
}

#[test]
fn every_thread_has_the_named_capabilities_and_no_more() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({})))?;
    gateway.start()?;
    let status = gateway.status()?;
    // Of linux/capability.h: NET_BIND_SERVICE, NET_ADMIN, PERFMON, BPF.
    let mask = format!("{:016x}", (1u64 << 10) | (1 << 12) | (1 << 38) | (1 << 39));
    let threads = fs::read_dir(format!("/proc/{}/task", status["pid"]))?;
    let threads: Vec<_> = threads.collect::<std::io::Result<_>>()?;
    assert!(threads.len() > 1, "{threads:?}");
    for thread in threads {
        let status = fs::read_to_string(thread.path().join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(field("Uid:").iter().all(|uid| uid != "0"), "{status}");
        assert!(field("Groups:").iter().all(|group| group != "0"), "{status}");
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(set), [mask.as_str()], "{status}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{status}");
        }
        assert_eq!(field("NoNewPrivs:"), ["1"], "{status}");
    }
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    let audit = gateway.log().lines().find(|line| line.contains("deny add")).map(str::to_owned);
    assert!(audit.is_some_and(|line| line.contains("\"uid\":0")), "{}", gateway.log());
    Ok(())
}

#[test]
fn detach_removes_only_what_belongs_to_the_gateway_that_is_meant() -> Result {
    require_root()?;
    let (one, other) = (host()?, host()?);
    let mut first = Gateway::new(&one, config(json!({})))?;
    let mut second = Gateway::new(&other, config(json!({})))?;
    first.start()?;
    second.start()?;
    // The first one's configuration, the second one's socket.
    let socket = second.socket();
    let socket = socket.to_str().unwrap_or_default();
    first.cli(&["--socket", socket, "kernel", "detach"])?.ok()?;
    assert_eq!(programs(&other)?, []);
    first.cli(&["--socket", socket, "kernel", "detach"])?.refused(2, "--config")?;
    assert_eq!(programs(&one)?.len(), 1, "the first one goes on");
    second.stop()?;
    first.cli(&["deny", "list"])?.ok()?;
    first.stop()?;
    first.cli(&["kernel", "detach"])?.ok()?;
    assert_eq!(programs(&one)?, [], "at once, not some time after");
    Ok(())
}

#[test]
fn rules_are_shown_and_taken_back_while_no_gateway_runs() -> Result {
    require_root()?;
    let host = host()?;
    let mut gateway = Gateway::new(&host, config(json!({"deny": ["127.0.0.3"]})))?;
    gateway.cli(&["deny", "list"])?.refused(1, "no gateway answers")?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED, "127.0.0.4"])?.ok()?;
    gateway.kill9()?;
    assert!(!connects_at_all(&host, DENIED)?);
    let shown = rules(&gateway)?;
    assert_eq!(shown.len(), 3, "{shown:?}");
    assert!(shown.iter().all(|rule| rule["enforced"] == json!("kernel")), "{shown:?}");
    let why = gateway.cli(&["why", DENIED, "--json"])?.ok()?.json()?;
    assert!(why.pointer("/rule/packets").and_then(Value::as_u64) > Some(0), "{why}");

    // What was written into the file since then is for the next gateway.
    gateway.write_config(config(json!({"deny": ["127.0.0.5"]})))?;
    gateway.cli(&["deny", "remove", DENIED])?.ok()?;
    gateway.cli(&["deny", "add", DENIED])?.refused(1, "no gateway answers")?;
    for (source, passes) in [(DENIED, true), ("127.0.0.3", false), ("127.0.0.5", true)] {
        assert_eq!(connects_at_all(&host, source)?, passes, "{source}");
    }
    gateway.cli(&["kernel", "detach"])?.ok()?;
    assert!(rules(&gateway)?.iter().all(|rule| rule["enforced"] == json!("nowhere")));
    gateway.start()?;
    assert!(connects(&host, DENIED)? && !connects(&host, "127.0.0.4")?);
    assert!(!connects(&host, "127.0.0.5")?);
    Ok(())
}

/// Whether packets from `source` come through to a socket that is not the gateway's.
fn connects_at_all(host: &Namespace, source: &str) -> Result<bool> {
    let listener = host.enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let patience = Duration::from_millis(500);
    let target = listener.local_addr()?;
    Ok(Client::connect(host, Some(source.parse()?), target, patience).is_ok())
}
