//! Another binary takes over: of an older or a newer ABI, whose maps this one cannot go on with. No packet of a denied
//! source passes meanwhile, and no count is lost.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use gateway_common::layout::{self, ABI, COUNTERS_LEN, Counter, SLOTS_LEN};
use gateway_common::verdict::Reason;
use harness::frames::{Path, Sender};
use harness::gateway::Gateway;
use harness::origin::{Origin, Reply};
use harness::topology::Topology;
use harness::{Result, require_root};
use serde_json::{Value, json};

const UDP_PORT: u16 = 9000;
const DENIED: &str = "198.18.0.1";

fn origin(hosts: &Topology) -> Result<Origin> {
    let address = SocketAddr::new(hosts.upstream.v4(), 9000);
    Origin::start(Some(&hosts.upstream.namespace), address, |_| Reply::Answer(200, "served"))
}

fn folder(gateway: &Gateway<'_>, abi: u32) -> PathBuf {
    gateway.pins().join(format!("abi-{abi}"))
}

/// Turns what is pinned into what a gateway of another ABI version would have left: the link runs its program on its
/// maps, and this version has none.
fn pretend(gateway: &Gateway<'_>, abi: u32) -> Result {
    Ok(fs::rename(folder(gateway, ABI), folder(gateway, abi))?)
}

fn names(folder: &std::path::Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder)?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Packets that the one deny rule has met.
fn hits(gateway: &Gateway<'_>) -> Result<u64> {
    let rules = gateway.cli(&["deny", "list", "--json"])?.ok()?.json_lines()?;
    Ok(rules.first().and_then(|rule| rule["packets"].as_u64()).unwrap_or(0))
}

/// Sends datagrams of the denied source while `work` runs. Answers how many, none of which may have arrived.
fn under_flood(hosts: &Topology, work: impl FnOnce() -> Result) -> Result<u64> {
    const PACKETS_MAX: u64 = 100_000;
    let socket = hosts.gateway.datagrams(UDP_PORT)?;
    let frame = Path::new(&hosts.attacker, DENIED.parse()?).udp(UDP_PORT, b"x")?;
    let sender = Sender::new(&hosts.attacker)?;
    let ending = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| -> Result<u64> {
        let flood = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while !ending.load(Ordering::Relaxed) && sent < PACKETS_MAX {
                sender.send(&frame)?;
                sent += 1;
                std::thread::sleep(Duration::from_micros(100));
            }
            Ok(sent)
        });
        let done = work();
        ending.store(true, Ordering::Relaxed);
        let sent = flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        done.and(sent)
    })?;
    assert!(sent > 100, "only {sent} packets");
    assert!(socket.recv_from(&mut [0; 16]).is_err(), "a packet of {sent} slipped through");
    Ok(sent)
}

fn takes_over_from(abi: u32) -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    gateway.stop()?;
    pretend(&gateway, abi)?;
    if let Some(interfaces) = config.pointer_mut("/kernel/interfaces") {
        *interfaces = json!(["to_attacker", "to_client"]);
    }
    gateway.write_config(config)?;
    // With no daemon, the command line says that it cannot read what the other version left.
    gateway.cli(&["deny", "list"])?.refused(1, "no pins of this version")?;

    let sent = under_flood(&hosts, || gateway.start())?;
    assert_eq!(gateway.kernel_packets("deny")?, sent, "counted by either program");
    assert_eq!(hits(&gateway)?, sent);
    assert_eq!(names(&gateway.pins())?, [format!("abi-{ABI}"), "links".to_owned()]);
    assert_eq!(names(&gateway.pins().join("links"))?, ["to_attacker", "to_client"]);

    // Back and forth once more, with counts that were carried already, and after a kill.
    gateway.kill9()?;
    pretend(&gateway, abi)?;
    let more = under_flood(&hosts, || gateway.start())?;
    assert_eq!(gateway.kernel_packets("deny")?, sent + more);
    assert_eq!(hits(&gateway)?, sent + more);
    // Each under the name of its interface, though the other version gave the names other places.
    assert_eq!(gateway.kernel_packets_over("to_attacker", "deny")?, Some(sent + more));
    assert_eq!(gateway.kernel_packets_over("_other", "deny")?, Some(0));
    Ok(())
}

#[test]
fn an_upgrade_of_the_abi_lets_nothing_through_and_loses_no_count() -> Result {
    takes_over_from(ABI - 1)
}

#[test]
fn a_downgrade_of_the_abi_lets_nothing_through_and_loses_no_count() -> Result {
    takes_over_from(ABI + 1)
}

#[test]
fn a_refused_start_leaves_what_another_version_enforces() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["deny"] = json!([DENIED]);
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    gateway.stop()?;
    pretend(&gateway, ABI + 1)?;
    config["kernel"]["max_rules"] = json!(1);
    gateway.write_config(config.clone())?;
    under_flood(&hosts, || gateway.start_refused()?.refused(1, "max_rules"))?;
    config["kernel"]["max_rules"] = json!(64);
    gateway.write_config(config)?;
    under_flood(&hosts, || gateway.start())?;
    assert_eq!(names(&gateway.pins())?, [format!("abi-{ABI}"), "links".to_owned()]);
    Ok(())
}

#[test]
fn a_change_of_size_keeps_every_count_as_it_is() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["deny"] = json!([DENIED]);
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    let mut sent = 0;
    for (size, value) in [("max_sources", 1000), ("max_rules", 1000), ("max_rules", 100_000)] {
        config["kernel"][size] = json!(value);
        gateway.write_config(config.clone())?;
        sent += under_flood(&hosts, || {
            gateway.cli(&["reload"])?.ok()?;
            // A reload alone is soon done.
            std::thread::sleep(Duration::from_millis(100));
            Ok(())
        })?;
        assert_eq!((gateway.kernel_packets("deny")?, hits(&gateway)?), (sent, sent), "{size}");
    }
    Ok(())
}

/// A kill before the new maps have their places: the link runs on them, and what they count is not what is shown.
#[test]
fn a_start_that_was_killed_half_way_loses_no_count() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    let sent = under_flood(&hosts, || {
        std::thread::sleep(Duration::from_millis(100));
        gateway.kill9()?;
        let pins = folder(&gateway, ABI);
        for name in layout::COUNTER_MAPS {
            fs::rename(pins.join(name), pins.join(format!("{name}-next")))?;
        }
        gateway.start()
    })?;
    assert_eq!(gateway.kernel_packets("deny")?, sent);
    assert_eq!(gateway.kernel_packets_over("to_attacker", "deny")?, Some(sent));
    let pinned = names(&folder(&gateway, ABI))?;
    assert!(!pinned.iter().any(|name| name.contains('-')), "{pinned:?}");
    Ok(())
}

/// The counters of a newer version have more reasons, those of an older one fewer, or none by interface, and the first
/// of all had no half for what was carried. A map with two halves says at its end how they are made.
#[test]
fn counters_of_another_length_are_added_up_by_reason() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    let ours = Reason::ALL.len() as u32;
    let runs = COUNTERS_LEN / ours;
    for (abi, halves, runs, theirs) in [
        (ABI + 1, 2, runs + 2, ours + 3),
        (ABI - 1, 2, runs, Reason::Deny as u32 + 1),
        (ABI - 1, 2, runs / SLOTS_LEN, ours),
        (ABI, 1, 2, 12),
    ] {
        gateway.start()?;
        gateway.stop()?;
        if abi != ABI {
            pretend(&gateway, abi)?;
        }
        let pin = folder(&gateway, abi).join(layout::COUNTERS);
        fs::remove_file(&pin)?;
        let definition =
            aya_obj::Map::new_from_params(6, 4, 16, halves * runs * theirs + halves - 1, 0);
        MapData::create(definition, layout::COUNTERS, None)?.pin(&pin)?;
        let map = Map::from_map_data(MapData::from_pin(&pin)?)?;
        let mut counters = PerCpuArray::<_, Counter>::try_from(map)?;
        let shares = counters.get(&0, 0)?.len();
        if halves == 2 {
            let mut shape = vec![Counter::default(); shares];
            shape[0] = Counter { packets: runs.into(), bytes: theirs.into() };
            counters.set(halves * runs * theirs, PerCpuValues::try_from(shape)?, 0)?;
        }
        // Every CPU counted one packet of a deny, and as much was carried before; so did what only they may know.
        for reason in [Reason::Deny as u32, theirs - 1] {
            for half in 0..halves {
                let one = vec![Counter { packets: 1, bytes: 100 }; shares];
                counters.set(half * runs * theirs + reason, PerCpuValues::try_from(one)?, 0)?;
            }
        }
        gateway.start()?;
        let status = gateway.status()?;
        let all = status.pointer("/kernel/counters").and_then(Value::as_array);
        for count in all.into_iter().flatten() {
            let known = Reason::ALL.iter().find(|reason| count["reason"] == reason.name());
            let number = known.map(|reason| *reason as u32);
            let counted = number == Some(Reason::Deny as u32) || number == Some(theirs - 1);
            if count["verdict"] == "drop" {
                let expected = if counted { u64::from(halves) * shares as u64 } else { 0 };
                assert_eq!(count["packets"], json!(expected), "ABI {abi}: {count}");
            }
        }
        let total = u64::from(halves) * shares as u64;
        assert_eq!(gateway.kernel_packets_over("_other", "deny")?, Some(total));
        gateway.stop()?;
    }
    Ok(())
}
