//! Interfaces that come late, go, return, change their names or their namespaces, and carry frames larger than a page.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use gateway::kernel::netlink::Links;
use harness::frames::{Path, Sender};
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use harness::origin::{Origin, Reply};
use harness::topology::{Host, Topology};
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

const UDP_PORT: u16 = 9000;
const DENIED: &str = "198.18.0.1";
const OTHER: &str = "198.18.0.2";
const PATIENCE: Duration = Duration::from_secs(10);

fn origin(hosts: &Topology) -> Result<Origin> {
    let address = SocketAddr::new(hosts.upstream.v4(), 9000);
    Origin::start(Some(&hosts.upstream.namespace), address, |_| Reply::Answer(200, "served"))
}

/// A configuration that denies one source on these interfaces.
fn config(hosts: &Topology, origin: &Origin, interfaces: &[&str]) -> Value {
    let mut config = hosts.config(origin.address);
    if let Some(kernel) = config.get_mut("kernel").and_then(Value::as_object_mut) {
        kernel.insert("interfaces".to_owned(), json!(interfaces));
        kernel.insert("deny".to_owned(), json!([DENIED]));
    }
    config
}

/// Sends one datagram over the link of `host` and says whether it reaches a socket on the gateway.
fn passes(gateway: &Namespace, host: &Host, source: &str) -> Result<bool> {
    let source: IpAddr = source.parse()?;
    let frame = Path::new(host, source).udp(UDP_PORT, b"x")?;
    let socket = gateway.datagrams(UDP_PORT)?;
    Sender::new(host)?.send(&frame)?;
    Ok(socket.recv_from(&mut [0; 16]).is_ok())
}

/// Waits until the gateway shows an interface in this mode; empty for none.
fn wait_for_mode(gateway: &Gateway<'_>, interface: &str, mode: &str) -> Result {
    let what = format!("{interface} in mode {mode:?}");
    wait_for(&what, PATIENCE, || {
        let is = |(name, found): &(String, String)| name == interface && found == mode;
        Ok(gateway.modes()?.iter().any(is).then_some(()))
    })
}

/// What the gateway says of an interface that runs nothing.
fn note(gateway: &Gateway<'_>, interface: &str) -> Result<String> {
    let status = gateway.status()?;
    let all = status.pointer("/kernel/interfaces").and_then(Value::as_array);
    let one = all.into_iter().flatten().find(|one| one["name"] == interface);
    Ok(one.and_then(|one| one["note"].as_str()).unwrap_or_default().to_owned())
}

/// How many lines of the log name this interface and this event.
fn told(gateway: &Gateway<'_>, interface: &str, event: &str) -> usize {
    let log = gateway.log();
    let event = format!("\"message\":\"{event}\"");
    let interface = format!("\"interface\":\"{interface}\"");
    log.lines().filter(|line| line.contains(&event) && line.contains(&interface)).count()
}

#[test]
fn one_that_comes_late_lets_not_even_its_first_packet_slip() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let late = Host::new("late", "late0", 4)?;
    let config = config(&hosts, &origin, &["late0"]);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    assert_eq!(gateway.status()?.pointer("/kernel/enforcing"), Some(&json!(false)));
    let missing = note(&gateway, "late0")?;
    assert!(missing.contains("there is no such interface here, only lo, to_"), "{missing}");

    late.link(&hosts.gateway)?;
    wait_for_mode(&gateway, "late0", "native")?;
    assert_eq!(note(&gateway, "late0")?, "");
    late.up(&hosts.gateway)?;
    assert!(!passes(&hosts.gateway, &late, DENIED)?);
    assert!(passes(&hosts.gateway, &late, OTHER)?);
    assert_eq!(gateway.kernel_packets("deny")?, 1);
    assert_eq!(told(&gateway, "late0", "nothing to attach to"), 1, "{}", gateway.log());
    assert_eq!(told(&gateway, "late0", "attached"), 1, "{}", gateway.log());
    Ok(())
}

/// Without them, a second may pass until the gateway looks.
#[test]
fn the_kernel_tells_of_links_at_once() -> Result {
    require_root()?;
    let host = Namespace::new("news")?;
    let told = host.enter(|| -> Result<_> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let links = Links::listen()?;
            host.ip("link add news0 type veth peer name news1")?;
            Ok(tokio::time::timeout(PATIENCE, links.changed()).await)
        })
    })??;
    assert_eq!(told, Ok(()));
    Ok(())
}

#[test]
fn after_a_reboot_rules_wait_for_the_interface() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let card = Host::new("card", "card0", 4)?;
    card.link(&hosts.gateway)?;
    card.up(&hosts.gateway)?;
    let mut gateway = Gateway::new(&hosts.gateway, config(&hosts, &origin, &["card0"]))?;
    gateway.start()?;
    let added = "198.18.0.3";
    gateway.cli(&["deny", "add", added, "--reason", "before the reboot"])?.ok()?;
    gateway.kill9()?;
    // What a reboot leaves: the disk. Pins are gone, and the card is not there yet.
    gateway.cli(&["kernel", "detach"])?.ok()?;
    hosts.gateway.ip("link delete card0")?;
    assert!(!gateway.pins().exists());

    gateway.start()?;
    card.link(&hosts.gateway)?;
    wait_for_mode(&gateway, "card0", "native")?;
    card.up(&hosts.gateway)?;
    for denied in [DENIED, added] {
        assert!(!passes(&hosts.gateway, &card, denied)?, "{denied}");
    }
    assert!(passes(&hosts.gateway, &card, OTHER)?);
    Ok(())
}

#[test]
fn one_that_goes_and_returns_is_attached_to_again_and_disturbs_no_other() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let again = Host::new("again", "again0", 4)?;
    again.link(&hosts.gateway)?;
    again.up(&hosts.gateway)?;
    let config = config(&hosts, &origin, &["to_attacker", "again0"]);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    assert!(!passes(&hosts.gateway, &again, DENIED)?);
    for round in 1..=2 {
        hosts.gateway.ip("link delete again0")?;
        wait_for_mode(&gateway, "again0", "")?;
        assert!(note(&gateway, "again0")?.contains("as soon as it appears"));
        assert!(!passes(&hosts.gateway, &hosts.attacker, DENIED)?);
        again.link(&hosts.gateway)?;
        wait_for_mode(&gateway, "again0", "native")?;
        again.up(&hosts.gateway)?;
        assert!(!passes(&hosts.gateway, &again, DENIED)?);
        assert_eq!(gateway.kernel_packets("deny")?, 1 + 2 * round, "counters go on");
    }
    // Also where nobody watched: the pinned link of the old one is dead.
    gateway.kill9()?;
    hosts.gateway.ip("link delete again0")?;
    again.link(&hosts.gateway)?;
    again.up(&hosts.gateway)?;
    gateway.start()?;
    assert!(!passes(&hosts.gateway, &again, DENIED)?);
    assert!(!passes(&hosts.gateway, &hosts.attacker, DENIED)?);
    assert_eq!(gateway.kernel_packets("deny")?, 7);
    Ok(())
}

/// What was counted of denied packets over each of these interfaces.
fn denied<const N: usize>(gateway: &Gateway<'_>, over: [&str; N]) -> Result<[Option<u64>; N]> {
    let mut counted = [None; N];
    for (interface, counted) in over.iter().zip(&mut counted) {
        *counted = gateway.kernel_packets_over(interface, "deny")?;
    }
    Ok(counted)
}

fn index(gateway: &Namespace, interface: &str) -> Result<u32> {
    gateway.enter(|| Ok(nix::net::if_::if_nametoindex(interface)?))?
}

#[test]
fn each_is_counted_under_its_name_whatever_index_it_has() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let again = Host::new("again", "again0", 4)?;
    again.link(&hosts.gateway)?;
    again.up(&hosts.gateway)?;
    let config = config(&hosts, &origin, &["to_attacker", "again0", "never0"]);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let interfaces = ["to_attacker", "again0", "never0", "_other"];
    assert_eq!(denied(&gateway, interfaces)?, [Some(0); 4], "from the start");
    for _ in 0..3 {
        assert!(!passes(&hosts.gateway, &hosts.attacker, DENIED)?);
    }
    assert!(!passes(&hosts.gateway, &again, DENIED)?);
    assert_eq!(denied(&gateway, interfaces)?, [3, 1, 0, 0].map(Some));

    let first = index(&hosts.gateway, "again0")?;
    hosts.gateway.ip("link delete again0")?;
    wait_for_mode(&gateway, "again0", "")?;
    assert_eq!(denied(&gateway, interfaces)?, [3, 1, 0, 0].map(Some));
    again.link(&hosts.gateway)?;
    wait_for_mode(&gateway, "again0", "native")?;
    again.up(&hosts.gateway)?;
    let second = index(&hosts.gateway, "again0")?;
    assert!(!passes(&hosts.gateway, &again, DENIED)?);
    assert_eq!(denied(&gateway, interfaces)?, [3, 2, 0, 0].map(Some));

    // Once more where nobody watches.
    gateway.kill9()?;
    assert!(!passes(&hosts.gateway, &hosts.attacker, DENIED)?);
    hosts.gateway.ip("link delete again0")?;
    again.link(&hosts.gateway)?;
    again.up(&hosts.gateway)?;
    gateway.start()?;
    let third = index(&hosts.gateway, "again0")?;
    assert!(!passes(&hosts.gateway, &again, DENIED)?);
    assert_eq!(denied(&gateway, interfaces)?, [4, 3, 0, 0].map(Some));
    assert_eq!(gateway.kernel_packets("deny")?, 7);
    assert!(first != second && second != third, "{first}, {second}, {third}: nothing was tried");
    Ok(())
}

#[test]
fn more_than_fifteen_are_counted_together_and_no_count_is_lost_when_they_change() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let absent: Vec<String> = (0..15).map(|number| format!("absent{number}")).collect();
    let absent: Vec<&str> = absent.iter().map(String::as_str).collect();
    let with =
        |present: &[&str], absent: &[&str]| config(&hosts, &origin, &[present, absent].concat());
    let mut gateway = Gateway::new(&hosts.gateway, with(&["to_attacker"], &absent[..14]))?;
    gateway.start()?;
    let flood = |host: &Host| -> Result {
        assert!(!passes(&hosts.gateway, host, DENIED)?);
        assert!(!passes(&hosts.gateway, host, DENIED)?);
        Ok(())
    };
    let shown = ["to_attacker", "to_client", "_other"];
    flood(&hosts.attacker)?;
    assert_eq!(denied(&gateway, shown)?, [Some(2), None, Some(0)]);

    // Both of the new ones want the place of the one that is gone.
    gateway.write_config(with(&["to_client"], &absent))?;
    gateway.cli(&["reload"])?.ok()?;
    flood(&hosts.client)?;
    assert_eq!(denied(&gateway, shown)?, [None, Some(2), Some(2)], "what the first had counted");
    assert_eq!(gateway.kernel_packets("deny")?, 4);

    // Whoever has a place keeps it, in whatever order they are named.
    gateway.write_config(with(&["to_attacker", "to_client"], &absent[..14]))?;
    gateway.cli(&["reload"])?.ok()?;
    flood(&hosts.attacker)?;
    flood(&hosts.client)?;
    assert_eq!(denied(&gateway, shown)?, [None, Some(4), Some(4)]);
    gateway.kill9()?;
    flood(&hosts.attacker)?;
    gateway.start()?;
    assert_eq!(denied(&gateway, shown)?, [None, Some(4), Some(6)]);
    assert_eq!(gateway.kernel_packets("deny")?, 10);
    assert_eq!(gateway.modes()?.iter().filter(|(_, mode)| mode == "native").count(), 2);
    Ok(())
}

#[test]
fn one_that_runs_a_foreign_program_is_tried_again_and_the_others_go_on() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let shared = Host::new("shared", "first0", 4)?;
    shared.link(&hosts.gateway)?;
    shared.up(&hosts.gateway)?;
    let mut first = Gateway::new(&hosts.gateway, config(&hosts, &origin, &["first0"]))?;
    first.start()?;
    first.stop()?;
    let mut config = config(&hosts, &origin, &["to_attacker", "second0"]);
    config["listen"] = json!([{"address": "0.0.0.0:8081"}]);
    let mut second = Gateway::new(&hosts.gateway, config)?;
    second.start()?;
    hosts.gateway.ip("link set first0 down\nlink set first0 name second0")?;
    let seen = wait_for("the refusal", PATIENCE, || {
        Ok(Some(note(&second, "second0")?)
            .filter(|note| note.contains("which is not the gateway's")))
    })?;
    assert!(seen.contains("second0 already runs XDP program"), "{seen}");
    assert!(!passes(&hosts.gateway, &hosts.attacker, DENIED)?);
    let tries = second.log().matches("tried again, ever more seldom").count();
    assert_eq!(tries, 1, "{}", second.log());

    first.cli(&["kernel", "detach"])?.ok()?;
    wait_for_mode(&second, "second0", "native")
}

#[test]
fn one_whose_driver_has_no_native_mode_runs_in_generic_mode_and_says_why() -> Result {
    const WHY: &str = "not in native mode because its driver has no native mode";
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let bridge = |name: &str| hosts.gateway.ip(&format!("link add {name} type bridge"));
    bridge("first0")?;
    let mut config = config(&hosts, &origin, &["to_attacker", "first0", "later0"]);
    config["kernel"]["attach"] = json!("auto");
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let modes = |later: &str| {
        [("to_attacker", "native"), ("first0", "generic"), ("later0", later)]
            .map(|(name, mode)| (name.to_owned(), mode.to_owned()))
    };
    assert_eq!(gateway.modes()?, modes(""));
    let about_first = format!("first0 {WHY}");
    let status = gateway.status()?;
    let about = status.pointer("/kernel/note").and_then(Value::as_str).unwrap_or_default();
    assert!(about.contains(&about_first) && !about.contains("to_attacker"), "{status}");

    bridge("later0")?;
    wait_for_mode(&gateway, "later0", "generic")?;
    assert_eq!(gateway.modes()?, modes("generic"));
    assert_eq!(note(&gateway, "later0")?, WHY);
    let told = gateway.cli(&["status"])?.ok()?.stdout;
    assert!(told.contains(&about_first) && told.matches(WHY).count() == 2, "{told}");
    Ok(())
}

#[test]
fn one_that_is_given_another_name_keeps_its_program() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway =
        Gateway::new(&hosts.gateway, config(&hosts, &origin, &["to_client", "to_attacker"]))?;
    gateway.start()?;
    hosts.gateway.ip("link set to_attacker down\nlink set to_attacker name wan0")?;
    wait_for_mode(&gateway, "to_attacker", "")?;
    let renamed = note(&gateway, "to_attacker")?;
    assert!(renamed.contains("it is called wan0 now"), "{renamed}");
    gateway.write_config(config(&hosts, &origin, &["to_client", "wan0"]))?;
    gateway.cli(&["reload"])?.ok()?;
    let both = ["to_client", "wan0"].map(|name| (name.to_owned(), "native".to_owned()));
    assert_eq!(gateway.modes()?, both);

    // Two that change places.
    hosts.gateway.ip("link set to_client down\nlink set to_client name old0\n\
         link set wan0 name to_client\nlink set old0 name wan0")?;
    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(gateway.modes()?, both);
    hosts.gateway.ip("link set to_client up\nroute add 198.18.0.0/15 via 10.0.2.2")?;
    let passes = |source| passes(&hosts.gateway, &hosts.attacker, source);
    wait_for("the link", PATIENCE, || Ok(passes(OTHER)?.then_some(())))?;
    assert!(!passes(DENIED)?);
    Ok(())
}

#[test]
fn one_in_another_namespace_is_refused_with_its_name() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let guest = Host::new("guest", "guest0", 4)?;
    guest.link(&hosts.gateway)?;
    guest.up(&hosts.gateway)?;
    let elsewhere = Namespace::new("elsewhere")?;
    let names = ["to_attacker", "guest0"];
    let mut gateway = Gateway::new(&hosts.gateway, config(&hosts, &origin, &names))?;
    gateway.start()?;
    hosts.gateway.ip(&format!("link set guest0 netns {}", elsewhere.name()))?;
    wait_for_mode(&gateway, "guest0", "")?;
    let moved = note(&gateway, "guest0")?;
    assert!(moved.contains("moved to another network namespace"), "{moved}");
    assert!(!passes(&hosts.gateway, &hosts.attacker, DENIED)?);
    let told = format!("guest0 is in the network namespace {}", elsewhere.name());
    gateway.cli(&["reload"])?.refused(1, &told)?;

    gateway.kill9()?;
    let refusal = gateway.start_refused()?;
    refusal.refused(1, &told)?;
    refusal.refused(1, "kernel.interfaces")?;
    assert!(!passes(&hosts.gateway, &hosts.attacker, DENIED)?, "what was enforced stays");

    gateway.write_config(config(&hosts, &origin, &["to_attacker"]))?;
    gateway.start()?;
    // The kernel takes a link off when it gets to it (bpf_link_put in kernel/bpf/syscall.c).
    wait_for("the program to be off there, too", PATIENCE, || {
        let mut show = std::process::Command::new("ip");
        let listing = elsewhere.output(show.args(["link", "show", "guest0"]))?;
        Ok((!String::from_utf8(listing.stdout)?.contains("xdp")).then_some(()))
    })?;

    // One that never was here.
    gateway.stop()?;
    gateway.write_config(config(&hosts, &origin, &names))?;
    gateway.start_refused()?.refused(1, "guest0 netns 1")?;
    assert!(!passes(&hosts.gateway, &hosts.attacker, DENIED)?, "what was enforced stays");

    // A gateway that runs has fewer rights, and says the same.
    gateway.write_config(config(&hosts, &origin, &["to_attacker"]))?;
    gateway.start()?;
    gateway.write_config(config(&hosts, &origin, &names))?;
    let refusal = gateway.cli(&["reload"])?;
    refusal.refused(1, &told)?;
    refusal.refused(1, "guest0 netns 1")?;
    assert_eq!(gateway.modes()?, [("to_attacker".to_owned(), "native".to_owned())]);
    Ok(())
}

#[test]
fn frames_of_nine_thousand_bytes_meet_the_same_verdicts_in_native_mode() -> Result {
    const MTU: usize = 9000;
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let attacker = &hosts.attacker;
    hosts.gateway.ip(&format!("link set to_attacker mtu {MTU}"))?;
    attacker.namespace.ip(&format!("link set eth0 mtu {MTU}"))?;
    let mut config = config(&hosts, &origin, &["to_attacker"]);
    config["kernel"]["deny"] = json!([DENIED, "fd00:bad::1"]);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    assert_eq!(gateway.modes()?, [("to_attacker".to_owned(), "native".to_owned())]);
    let socket = hosts.gateway.datagrams(UDP_PORT)?;
    let sender = Sender::new(attacker)?;
    let mut buffer = vec![0; MTU];
    for (source, denied, headers) in [
        (DENIED, true, 28),
        (OTHER, false, 28),
        ("fd00:bad::1", true, 48),
        ("fd00:bad::2", false, 48),
    ] {
        let payload = vec![7; MTU - headers];
        let before = (gateway.kernel_packets("deny")?, bytes(&gateway, "deny")?);
        let frame = Path::new(attacker, source.parse()?).udp(UDP_PORT, &payload)?;
        assert_eq!(frame.len(), MTU + 14);
        sender.send(&frame)?;
        let received = socket.recv_from(&mut buffer).ok().map(|(length, _)| length);
        assert_eq!(received, (!denied).then_some(payload.len()), "{source}");
        let after = (gateway.kernel_packets("deny")?, bytes(&gateway, "deny")?);
        let expected = if denied { (1, frame.len() as u64) } else { (0, 0) };
        assert_eq!(
            (after.0 - before.0, after.1 - before.1),
            expected,
            "{source}: all of its bytes"
        );
    }
    Ok(())
}

fn bytes(gateway: &Gateway<'_>, reason: &str) -> Result<u64> {
    let status = gateway.status()?;
    let all = status.pointer("/kernel/counters").and_then(Value::as_array);
    let one = all.into_iter().flatten().find(|one| one["reason"] == reason);
    Ok(one.and_then(|one| one["bytes"].as_u64()).unwrap_or(0))
}
