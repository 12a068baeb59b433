//! Enforcement and the process: what outlives it, what it takes over, what it refuses, and how it is ended for good.

use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::client::get;
use harness::frames::{Path, Sender};
use harness::gateway::Gateway;
use harness::origin::{Origin, Reply};
use harness::topology::{PORT, Topology};
use harness::{Result, require_root};
use serde_json::{Value, json};

const UDP_PORT: u16 = 9000;
const DENIED: &str = "198.18.0.1";

fn origin(hosts: &Topology) -> Result<Origin> {
    let address = SocketAddr::new(hosts.upstream.v4(), 9000);
    Origin::start(Some(&hosts.upstream.namespace), address, |_| Reply::Answer(200, "served"))
}

/// Sends one datagram from `source` through the attacker's link and says whether it reaches a socket on the gateway.
fn passes(hosts: &Topology, source: &str) -> Result<bool> {
    let socket = hosts.gateway.datagrams(UDP_PORT)?;
    let source: IpAddr = source.parse()?;
    Sender::new(&hosts.attacker)?.send(&Path::new(&hosts.attacker, source).udp(UDP_PORT, b"x")?)?;
    Ok(socket.recv_from(&mut [0; 16]).is_ok())
}

/// Whether any interface of the gateway's host runs an XDP program, asked of the kernel and not of the gateway.
fn has_xdp(hosts: &Topology) -> Result<bool> {
    let listing = hosts.gateway.output(Command::new("ip").args(["-json", "link", "show"]))?;
    let links: Vec<Value> = serde_json::from_slice(&listing.stdout)?;
    Ok(links.iter().any(|link| link.get("xdp").is_some()))
}

#[test]
fn enforcement_outlives_kill_9_and_a_restart_takes_it_over() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED, "--reason", "kept"])?.ok()?;
    for _ in 0..3 {
        assert!(!passes(&hosts, DENIED)?);
    }
    gateway.kill9()?;
    assert!(!passes(&hosts, DENIED)?, "a dead process must not open the door");
    assert!(passes(&hosts, "198.18.0.2")?);
    assert!(has_xdp(&hosts)?);

    gateway.start()?;
    let rules = gateway.cli(&["deny", "list", "--json"])?.ok()?.json_lines()?;
    assert_eq!(rules.len(), 1, "{rules:?}");
    assert_eq!((&rules[0]["reason"], &rules[0]["origin"]), (&json!("kept"), &json!("operator")));
    assert_eq!(gateway.kernel_packets("deny")?, 4, "counters go on, also over what met no process");
    assert_eq!(rules[0]["packets"], json!(4));
    assert!(!passes(&hosts, DENIED)?);
    assert_eq!(get(&hosts.client.namespace, None, hosts.client.target())?.status, 200);
    Ok(())
}

#[test]
fn a_restart_leaves_no_moment_without_enforcement() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    let socket = hosts.gateway.datagrams(UDP_PORT)?;
    let frame = Path::new(&hosts.attacker, DENIED.parse()?).udp(UDP_PORT, b"x")?;
    let sender = Sender::new(&hosts.attacker)?;
    let before = gateway.kernel_packets("deny")?;

    let ending = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| -> Result<u64> {
        let flood = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while !ending.load(Ordering::Relaxed) {
                sender.send(&frame)?;
                sent += 1;
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok(sent)
        });
        let restarts = (|| {
            gateway.stop()?;
            gateway.start()?;
            gateway.kill9()?;
            gateway.start()
        })();
        ending.store(true, Ordering::Relaxed);
        let sent = flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        restarts.and(sent)
    })?;
    assert!(sent > 100, "only {sent} packets");
    assert!(socket.recv_from(&mut [0; 16]).is_err(), "a packet of {sent} slipped through");
    assert_eq!(gateway.kernel_packets("deny")? - before, sent, "every packet was counted");
    Ok(())
}

#[test]
fn detach_removes_every_trace_with_and_without_a_daemon() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    gateway.stop()?;
    assert!(has_xdp(&hosts)?, "a configured gateway stays pinned");
    assert!(gateway.log().contains("kernel detach"), "it says how to detach:\n{}", gateway.log());
    gateway.cli(&["kernel", "detach"])?.ok()?;
    assert!(!has_xdp(&hosts)? && !gateway.pins().exists());
    assert!(passes(&hosts, DENIED)?);
    gateway.cli(&["kernel", "detach"])?.ok()?;

    gateway.start()?;
    assert!(has_xdp(&hosts)? && !passes(&hosts, DENIED)?);
    gateway.cli(&["kernel", "detach"])?.ok()?;
    assert!(!has_xdp(&hosts)? && !gateway.pins().exists());
    assert_eq!(gateway.status()?.pointer("/kernel/enforcing"), Some(&json!(false)));
    assert_eq!(get(&hosts.client.namespace, None, hosts.client.target())?.status, 200);
    Ok(())
}

#[test]
fn a_foreign_program_is_left_alone_and_named() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    // What is pinned elsewhere is somebody else's, even where it is another gateway's.
    let mut first = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    first.start()?;
    first.cli(&["deny", "add", DENIED])?.ok()?;
    let mut config = hosts.config(origin.address);
    config["listen"] = json!([{"address": "0.0.0.0:8081"}]);
    let mut second = Gateway::new(&hosts.gateway, config)?;
    let refusal = second.start_refused()?;
    refusal.refused(1, "to_client already runs xdp program")?;
    assert!(!passes(&hosts, DENIED)?, "the first one's program still decides");
    Ok(())
}

#[test]
fn a_port_in_use_is_named_and_what_was_enforced_stays() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    gateway.stop()?;
    let taken = hosts.gateway.enter(|| TcpListener::bind(("0.0.0.0", PORT)))??;
    gateway.start_refused()?.refused(1, "8080: the port is in use")?;
    assert!(!passes(&hosts, DENIED)?);
    drop(taken);
    gateway.start()?;
    assert!(!passes(&hosts, DENIED)?);
    Ok(())
}

#[test]
fn a_reload_is_whole_or_not_at_all() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["deny"] = json!([DENIED]);
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    let client = &hosts.client;
    assert!(!passes(&hosts, DENIED)?);

    let mut bad = config.clone();
    bad["kernel"]["deny"] = json!(["198.18.0.2"]);
    bad["kernel"]["denny"] = json!([]);
    gateway.write_config(bad)?;
    let answer = gateway.cli(&["reload"])?;
    assert_eq!(answer.code, Some(2), "{answer}");
    assert!(format!("{answer}").contains("denny"), "{answer}");
    assert!(!passes(&hosts, DENIED)? && passes(&hosts, "198.18.0.2")?);
    assert_eq!(get(&client.namespace, None, client.target())?.text(), "served");

    config["kernel"]["deny"] = json!(["198.18.0.2"]);
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    assert!(passes(&hosts, DENIED)? && !passes(&hosts, "198.18.0.2")?);
    assert_eq!(get(&client.namespace, None, client.target())?.text(), "served");
    Ok(())
}

#[test]
fn a_rule_with_an_end_ends_by_itself() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["deny"] = json!(["198.18.0.0/24"]);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    gateway.cli(&["allow", "add", DENIED, "--for", "2s"])?.ok()?;
    assert!(passes(&hosts, DENIED)?, "the more specific rule wins");
    gateway.kill9()?;
    std::thread::sleep(Duration::from_millis(2200));
    assert!(!passes(&hosts, DENIED)?, "it ends without a process, and the wider rule holds again");
    Ok(())
}

#[test]
fn the_service_manager_waits_until_the_rules_are_in_force() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["deny"] = json!([DENIED]);
    let gateway = Gateway::new(&hosts.gateway, config)?;
    let path = gateway.socket().with_file_name("notify.sock");
    let manager = UnixDatagram::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    manager.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut gateway = gateway.with_manager(path);
    let told = || -> Result<String> {
        let mut message = [0; 256];
        let length = manager.recv(&mut message)?;
        Ok(String::from_utf8_lossy(&message[..length]).trim().to_owned())
    };
    std::thread::scope(|scope| -> Result {
        let ready = scope.spawn(|| -> Result<_> { Ok((told()?, passes(&hosts, DENIED)?)) });
        gateway.start()?;
        let ready = ready.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        assert_eq!(ready, ("READY=1".to_owned(), false));
        Ok(())
    })?;
    gateway.stop()?;
    assert_eq!(told()?, "STOPPING=1");
    Ok(())
}

#[test]
fn a_folder_of_others_is_neither_given_away_nor_believed() -> Result {
    const OTHER: u32 = 1;
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    let folder = gateway.socket().with_file_name("shared");
    let state = folder.join("state");
    fs::create_dir_all(&state)?;
    let text = fs::read_to_string(gateway.config())?;
    let mut config: Value = serde_json::from_str(&text)?;
    config["state"]["dir"] = json!(state);
    gateway.write_config_text(&config.to_string())?;

    // Like /var: root's, with other things in it.
    fs::write(state.join("mail"), "")?;
    gateway.start_refused()?.refused(1, "holds other things and user 65534 may not write there")?;
    assert_eq!(fs::metadata(&state)?.uid(), 0, "not given away");
    assert!(!state.join("gateway.redb").exists());
    fs::remove_file(state.join("mail"))?;
    gateway.start()?;
    assert_ne!(fs::metadata(&state)?.uid(), 0, "its own is given to the user that it becomes");
    gateway.stop()?;

    // Like /tmp, where somebody was faster.
    fs::set_permissions(&folder, Permissions::from_mode(0o1777))?;
    chown(&state, Some(OTHER), None)?;
    gateway
        .start_refused()?
        .refused(1, "belongs to user 1, in a folder where everybody may write")?;
    gateway.cli(&["deny", "list"])?.refused(1, "belongs to user 1")?;
    config["admin"]["socket"] = json!(state.join("admin.sock"));
    gateway.write_config_text(&config.to_string())?;
    gateway.cli(&["status"])?.refused(1, "belongs to user 1")?;
    Ok(())
}
