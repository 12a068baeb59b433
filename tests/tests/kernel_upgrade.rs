//! Another binary takes over: of an older or a newer ABI, whose maps this one cannot go on with. No packet of a denied
//! source passes meanwhile, and no count is lost.

use std::fs;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
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

/// Packets that rules of the one list have met.
fn met_by_list(gateway: &Gateway<'_>) -> Result<u64> {
    let lists = gateway.cli(&["lists", "--json"])?.ok()?.json_lines()?;
    Ok(lists.first().and_then(|list| list["packets"].as_u64()).unwrap_or(0))
}

/// Sends datagrams of the denied source while `work` runs, and some more. Answers how many, none of which may have
/// arrived.
fn under_flood(hosts: &Topology, work: impl FnOnce() -> Result) -> Result<u64> {
    const PACKETS: RangeInclusive<u64> = 100..=100_000;
    let socket = hosts.gateway.datagrams(UDP_PORT)?;
    let frame = Path::new(&hosts.attacker, DENIED.parse()?).udp(UDP_PORT, b"x")?;
    let sender = Sender::new(&hosts.attacker)?;
    let ending = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| -> Result<u64> {
        let flood = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while sent < *PACKETS.start()
                || !ending.load(Ordering::Relaxed) && sent < *PACKETS.end()
            {
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
    // The maps that only one of them has.
    for map in ["NETWORKS_V4", "SHORT_V4", "LISTS", "LIST_NAMES"] {
        fs::remove_file(folder(&gateway, abi).join(map))?;
    }
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
            Ok(())
        })?;
        assert_eq!((gateway.kernel_packets("deny")?, hits(&gateway)?), (sent, sent), "{size}");
    }
    Ok(())
}

/// Whoever has used its burst up has used it up, whatever maps its bucket lies in.
#[test]
fn no_source_is_given_a_fresh_burst_by_other_maps() -> Result {
    const BURST: usize = 5;
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["profiles"] = json!({"slow": {"packets": format!("1/h burst {BURST}")}});
    config["kernel"]["default_profile"] = json!("slow");
    config["kernel"]["protected_ports"] = json!([UDP_PORT]);
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    let sender = Sender::new(&hosts.attacker)?;
    let socket = hosts.gateway.datagrams(UDP_PORT)?;
    let admitted = |source: &str| -> Result<usize> {
        let frame = Path::new(&hosts.attacker, source.parse()?).udp(UDP_PORT, b"x")?;
        (0..2 * BURST).try_for_each(|_| sender.send(&frame))?;
        Ok(std::iter::from_fn(|| socket.recv_from(&mut [0; 16]).ok()).count())
    };
    assert_eq!(admitted("198.18.0.7")?, BURST);
    for size in [1000, 500_000, 10_000] {
        config["kernel"]["max_sources"] = json!(size);
        gateway.write_config(config.clone())?;
        gateway.cli(&["reload"])?.ok()?;
        assert_eq!(admitted("198.18.0.7")?, 0, "{size} sources");
        assert_eq!(admitted(&format!("198.18.1.{}", size % 251))?, BURST);
    }
    for abi in [ABI - 1, ABI + 1] {
        gateway.kill9()?;
        pretend(&gateway, abi)?;
        gateway.start()?;
        assert_eq!(admitted("198.18.0.7")?, 0, "from ABI {abi}");
    }
    Ok(())
}

/// Nor are those that share a bucket because buckets are given out slowly, nor the host as a whole.
#[test]
fn what_a_flood_has_used_up_is_used_up_in_other_maps_too() -> Result {
    const BURST: usize = 5;
    const UNPROTECTED: u16 = UDP_PORT + 1;
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["profiles"] = json!({"slow": {"packets": format!("1/h burst {BURST}")}});
    config["kernel"]["default_profile"] = json!("slow");
    config["kernel"]["protected_ports"] = json!([UDP_PORT]);
    config["kernel"]["new_sources"] = json!("1/h burst 1");
    config["kernel"]["host_limits"] = json!({"udp": format!("1/h burst {BURST}")});
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    let sender = Sender::new(&hosts.attacker)?;
    let sockets = [hosts.gateway.datagrams(UDP_PORT)?, hosts.gateway.datagrams(UNPROTECTED)?];
    let admitted = |source: &str| -> Result<[usize; 2]> {
        let path = Path::new(&hosts.attacker, source.parse()?);
        for port in [UDP_PORT, UNPROTECTED] {
            let frame = path.udp(port, b"x")?;
            (0..2 * BURST).try_for_each(|_| sender.send(&frame))?;
        }
        Ok(sockets
            .each_ref()
            .map(|socket| std::iter::from_fn(|| socket.recv_from(&mut [0; 16]).ok()).count()))
    };
    // The first source, whosever it is, is given a bucket of its own, and those after it share one.
    assert_eq!(admitted("198.18.0.1")?, [BURST; 2]);
    assert_eq!(admitted("198.18.0.7")?, [BURST, 0]);
    for abi in [ABI - 1, ABI + 1] {
        gateway.kill9()?;
        pretend(&gateway, abi)?;
        gateway.start()?;
        assert_eq!(admitted("198.18.0.7")?, [0, 0], "from ABI {abi}");
    }
    config["kernel"]["max_rules"] = json!(1000);
    config["kernel"]["max_sources"] = json!(1000);
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(admitted("198.18.0.7")?, [0, 0], "in maps of other sizes");
    assert_eq!(admitted("198.18.0.8")?, [BURST, 0], "whoever shares with nobody has a burst");
    Ok(())
}

/// What changes pins, links and maps.
const STEPS: &str = "linkat,renameat2,rename,membarrier,unlink,rmdir,mkdir,mkdirat,bpf";

/// The numbers of the steps at which a start is worth killing: all that change what is in force or what was counted, of
/// the many others the first and the last.
fn worth_killing_at(steps: &[String]) -> Result<Vec<usize>> {
    let committed = steps.iter().position(|step| step.starts_with("renameat2"));
    let committed = committed.context("nothing is put in force")?;
    let mut at = Vec::new();
    for alike in ["linkat", "mkdir", "OBJ_PIN", "unlink"] {
        let all = (1..).zip(steps).filter(|(_, step)| step.contains(alike));
        let all: Vec<usize> = all.map(|(number, _)| number).collect();
        at.extend(all.first().into_iter().chain(all.last()));
    }
    for alike in ["renameat2", "membarrier", "rmdir", "LINK_CREATE", "LINK_UPDATE"] {
        let all = (1..).zip(steps).filter(|(_, step)| step.contains(alike));
        at.extend(all.map(|(number, _)| number));
    }
    // Of the counters the denied source's is the last one, and its list's comes after it: each is marked, taken out
    // where it was counted and where it was carried to, the mark removed. That comes some steps earlier or later if the
    // hosts themselves spoke up meanwhile, and takes two steps or more.
    const EARLIER: usize = 16;
    const LATER: usize = 8;
    let moving = (1..).zip(steps).skip(committed + 1);
    let moving = moving.take_while(|(_, step)| !step.starts_with("re") && !step.starts_with("un"));
    let counts = moving.filter(|(_, step)| step.contains("MAP_UPDATE")).map(|(number, _)| number);
    let counts: Vec<usize> = counts.collect();
    // None where the maps of counters stay.
    let last = counts.chunk_by(|one, next| next - one < EARLIER).filter_map(<[usize]>::last);
    for last in last.rev().take(2) {
        at.extend((last.saturating_sub(EARLIER)..=last + LATER).step_by(2));
    }
    at.sort_unstable();
    at.dedup();
    Ok(at)
}

/// Kills starts at one step after the other, under a flood. Whatever they leave, nothing passes, the commands say what
/// is enforced, and the next start has every count. `prepare` gives each start something to change, `between` comes
/// after the kill.
fn killed_at_every_step(
    prepare: impl Fn(&Gateway<'_>, &mut Value, usize) -> Result,
    between: impl Fn(&Gateway<'_>) -> Result,
) -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    let drop = gateway.config().with_file_name("drop.txt");
    fs::write(&drop, DENIED)?;
    gateway.cli(&["deny", "import", drop.to_str().context("no text")?])?.ok()?;
    let mut sent = 0;
    // The second time as ever after, with something to take out at both places.
    let mut steps = Vec::new();
    for _ in 0..2 {
        gateway.kill9()?;
        sent += under_flood(&hosts, || Ok(()))?;
        prepare(&gateway, &mut config, 0)?;
        gateway.write_config(config.clone())?;
        steps = gateway.start_traced(STEPS)?;
    }
    for number in worth_killing_at(&steps)? {
        let step = steps.get(number - 1).context("no such step")?;
        let call = step.split('(').next().unwrap_or_default();
        let same = steps.iter().take(number).filter(|step| step.starts_with(&format!("{call}(")));
        let nth = same.count();
        gateway.kill9()?;
        prepare(&gateway, &mut config, number)?;
        gateway.write_config(config.clone())?;
        sent += under_flood(&hosts, || gateway.start_killed(call, nth))?;
        between(&gateway)?;
        let listed = gateway.cli(&["deny", "list", "--json"])?;
        if listed.code == Some(0) {
            assert_eq!(hits(&gateway)?, sent, "without a daemon, after {step}");
        } else {
            // What is in force is still the other version's.
            listed.refused(1, "no pins of this version")?;
        }
        sent += under_flood(&hosts, || gateway.start())?;
        let counts = (
            gateway.kernel_packets("deny")?,
            gateway.kernel_packets_over("to_attacker", "deny")?,
            hits(&gateway)?,
            met_by_list(&gateway)?,
        );
        assert_eq!(counts, (sent, Some(sent), sent, sent), "after {step}");
        assert_eq!(names(&gateway.pins())?, [format!("abi-{ABI}"), "links".to_owned()]);
    }
    Ok(())
}

#[test]
fn a_start_with_other_sizes_may_be_killed_anywhere() -> Result {
    let resize = |_: &Gateway<'_>, config: &mut Value, _: usize| {
        let kernel = &config["kernel"];
        let was = |key: &str| kernel[key].as_u64().unwrap_or(0);
        let (rules, sources) = (was("max_rules"), was("max_sources"));
        config["kernel"]["max_rules"] = json!(if rules == 1000 { 100_000 } else { 1000 });
        config["kernel"]["max_sources"] = json!(if sources == 1000 { 2000 } else { 1000 });
        Ok(())
    };
    killed_at_every_step(resize, |_| Ok(()))
}

#[test]
fn a_start_of_another_abi_may_be_killed_anywhere() -> Result {
    killed_at_every_step(of_another_abi, |_| Ok(()))
}

fn of_another_abi(gateway: &Gateway<'_>, _: &mut Value, number: usize) -> Result {
    pretend(gateway, if number.is_multiple_of(2) { ABI + 1 } else { ABI - 1 })
}

/// The version of before starts again: what it had counted is its own, and what was counted meanwhile is another's.
#[test]
fn a_start_of_another_abi_that_was_killed_anywhere_may_be_gone_back_from() -> Result {
    killed_at_every_step(of_another_abi, |gateway| {
        let ours = folder(gateway, ABI);
        let before = [ABI - 1, ABI + 1].map(|abi| folder(gateway, abi));
        let Some(before) = before.iter().find(|folder| folder.exists()) else { return Ok(()) };
        let aside = gateway.pins().join("aside");
        let is_begun = ours.exists();
        if is_begun {
            fs::rename(&ours, &aside)?;
        }
        fs::rename(before, &ours)?;
        if is_begun {
            fs::rename(&aside, before)?;
        }
        Ok(())
    })
}

/// An interface that a start takes off while other maps take over: what came over it until then is counted.
#[test]
fn an_interface_that_is_taken_off_keeps_its_counts() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    gateway.stop()?;
    pretend(&gateway, ABI - 1)?;
    config["kernel"]["interfaces"] = json!(["to_client"]);
    gateway.write_config(config)?;
    let socket = hosts.gateway.datagrams(UDP_PORT)?;
    let frame = Path::new(&hosts.attacker, DENIED.parse()?).udp(UDP_PORT, b"x")?;
    let sender = Sender::new(&hosts.attacker)?;
    let ending = AtomicBool::new(false);
    let [sent, arrived] = std::thread::scope(|scope| -> Result<_> {
        let flood = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while !ending.load(Ordering::Relaxed) {
                sender.send(&frame)?;
                sent += 1;
                std::thread::sleep(Duration::from_micros(50));
            }
            Ok(sent)
        });
        let arrivals = scope.spawn(|| {
            let mut arrived = 0;
            loop {
                match socket.recv_from(&mut [0; 16]) {
                    Ok(_) => arrived += 1,
                    // A pause of the sender's is no end.
                    Err(_) if ending.load(Ordering::Relaxed) => break,
                    Err(_) => {}
                }
            }
            arrived
        });
        let started = gateway.start();
        ending.store(true, Ordering::Relaxed);
        let sent = flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let arrived = arrivals.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        started?;
        Ok([sent?, arrived])
    })?;
    assert!(arrived > 0 && arrived < sent);
    assert_eq!(gateway.kernel_packets("deny")?, sent - arrived);
    assert_eq!(gateway.kernel_packets_over("to_attacker", "deny")?, Some(sent - arrived));
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
