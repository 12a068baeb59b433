//! The kernel door through the real binary: whose packets pass, whose are dropped, and what is said about it.
#![expect(clippy::disallowed_methods, reason = "tests measure real time from outside")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::client::{Client, get};
use harness::frames::{Path, Sender, tagged};
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use harness::origin::{Origin, Reply};
use harness::topology::{PORT, Topology};
use harness::{Result, require_root, wait_for};
use serde_json::json;

/// Where the tests listen for raw datagrams.
const UDP_PORT: u16 = 9000;
const UDP_PORT_UNPROTECTED: u16 = 9001;

fn origin(hosts: &Topology) -> Result<Origin> {
    let address = SocketAddr::new(hosts.upstream.v4(), 9000);
    Origin::start(Some(&hosts.upstream.namespace), address, |_| Reply::Answer(200, "served"))
}

/// A listener for datagrams beside the gateway.
fn listener(hosts: &Topology, port: u16) -> Result<UdpSocket> {
    let socket = hosts.gateway.enter(|| UdpSocket::bind(("::", port)))??;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    Ok(socket)
}

/// The sources of all datagrams that have arrived, once no more arrive.
fn arrived(socket: &UdpSocket) -> Vec<IpAddr> {
    let mut buffer = [0; 2048];
    let receive = || socket.recv_from(&mut buffer).ok().map(|(_, from)| from.ip().to_canonical());
    std::iter::from_fn(receive).collect()
}

#[test]
fn a_denied_source_is_dropped_in_native_mode_while_others_pass() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    let native = ["to_client", "to_attacker"].map(|name| (name.to_owned(), "native".to_owned()));
    assert_eq!(gateway.modes()?, native);

    let (client, attacker) = (&hosts.client, &hosts.attacker);
    let neighbour = attacker.add_v4(9)?;
    assert_eq!(get(&attacker.namespace, None, attacker.target())?.text(), "served");
    let denied = attacker.v4().to_string();
    gateway.cli(&["deny", "add", &denied, "--reason", "a scanner"])?.ok()?;
    assert!(get(&attacker.namespace, Some(attacker.v4()), attacker.target()).is_err());
    assert_eq!(get(&attacker.namespace, Some(neighbour), attacker.target())?.status, 200);
    assert_eq!(get(&client.namespace, None, client.target())?.status, 200);
    assert!(gateway.kernel_packets("deny")? > 0);

    let why = gateway.cli(&["why", &denied, "--json"])?.ok()?.json()?;
    assert_eq!(why.pointer("/rule/reason"), Some(&json!("a scanner")), "{why}");
    assert_eq!(why.pointer("/rule/origin"), Some(&json!("operator")), "{why}");
    assert!(why.pointer("/rule/packets").and_then(|n| n.as_u64()) > Some(0), "{why}");
    gateway.cli(&["deny", "remove", &denied])?.ok()?;
    assert_eq!(get(&attacker.namespace, Some(attacker.v4()), attacker.target())?.status, 200);
    Ok(())
}

#[test]
fn no_tag_fragment_or_header_hides_a_denied_source() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", "198.18.7.0/24", "fd00:bad:0:7::/64"])?.ok()?;
    let socket = listener(&hosts, UDP_PORT)?;
    let sender = Sender::new(&hosts.attacker)?;
    // The same frames of a denied source, and of one just beside it.
    for (v4, v6, denied) in
        [("198.18.7.7", "fd00:bad:0:7::7", true), ("198.18.8.7", "fd00:bad:0:8::7", false)]
    {
        let v4 = Path::new(&hosts.attacker, v4.parse()?);
        let v6 = Path::new(&hosts.attacker, v6.parse()?);
        let plain = v4.udp(UDP_PORT, b"x")?;
        let [first, later] = v4.udp_fragments(UDP_PORT, &[0; 64])?;
        let frames = [
            ("a VLAN tag", tagged(&plain, 7)),
            ("two VLAN tags", tagged(&tagged(&plain, 7), 8)),
            ("plain", plain),
            ("the first fragment", first),
            ("a later fragment", later),
            ("IPv6", v6.udp(UDP_PORT, b"x")?),
            ("extension headers", v6.udp_behind_extension_headers(UDP_PORT, b"x")?),
            ("IPv6 behind a VLAN tag", tagged(&v6.udp(UDP_PORT, b"x")?, 7)),
        ];
        for (name, frame) in frames {
            let before = gateway.kernel_packets("deny")?;
            sender.send(&frame)?;
            let counted = wait_for(name, Duration::from_secs(1), || {
                Ok(Some(gateway.kernel_packets("deny")?).filter(|now| !denied || *now > before))
            })?;
            assert_eq!(counted, before + u64::from(denied), "{name}");
        }
        // Frames with a tag are for a VLAN that nobody has here; plain, both fragments as one, and two of IPv6 arrive.
        assert_eq!(arrived(&socket).len(), if denied { 0 } else { 4 });
    }
    Ok(())
}

#[test]
fn nobody_borrows_the_address_of_the_gateway_or_of_a_group() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["host_limits"] = json!({"fragments": "1/h burst 3"});
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let socket = listener(&hosts, UDP_PORT)?;
    let attacker = &hosts.attacker;
    let sender = Sender::new(attacker)?;
    let own = [attacker.gateway_v4(), attacker.gateway_v6()];
    for source in own.into_iter().chain(["224.0.0.7".parse()?, "ff0e::7".parse()?]) {
        let before = gateway.kernel_packets("martian")?;
        sender.send(&Path::new(attacker, source).udp(UDP_PORT, b"x")?)?;
        wait_for("a martian", Duration::from_secs(1), || {
            Ok(Some(()).filter(|()| gateway.kernel_packets("martian").is_ok_and(|n| n > before)))
        })?;
    }
    // Three fragments of four are within the host's burst, so that the second datagram stays in pieces.
    for source in ["198.18.8.7", "198.18.8.8"] {
        for fragment in Path::new(attacker, source.parse()?).udp_fragments(UDP_PORT, &[0; 64])? {
            sender.send(&fragment)?;
        }
    }
    assert_eq!(arrived(&socket), ["198.18.8.7".parse::<IpAddr>()?]);
    assert_eq!(gateway.kernel_packets("host_fragments")?, 1);
    assert_eq!(get(&attacker.namespace, None, attacker.target())?.status, 200);
    Ok(())
}

#[test]
fn a_source_over_its_bucket_loses_packets_and_its_neighbour_none() -> Result {
    const PACKETS: usize = 1000;
    const BURST: usize = 20;
    const NEIGHBOUR_EVERY: usize = 100;
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["profiles"] = json!({"tight": {"packets": "10/s burst 20"}});
    config["kernel"]["default_profile"] = json!("tight");
    config["kernel"]["protected_ports"] = json!([UDP_PORT]);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let (socket, unprotected) =
        (listener(&hosts, UDP_PORT)?, listener(&hosts, UDP_PORT_UNPROTECTED)?);
    let (loud, quiet): (IpAddr, IpAddr) = ("198.18.0.1".parse()?, "198.18.0.2".parse()?);
    let sender = Sender::new(&hosts.attacker)?;
    let frame = |source, port| Path::new(&hosts.attacker, source).udp(port, b"x");

    let start = Instant::now();
    for number in 0..PACKETS {
        sender.send(&frame(loud, UDP_PORT)?)?;
        if number % NEIGHBOUR_EVERY == 0 {
            sender.send(&frame(quiet, UDP_PORT)?)?;
            sender.send(&frame(loud, UDP_PORT_UNPROTECTED)?)?;
        }
    }
    let refilled = start.elapsed().as_secs() as usize * 10 + 10;
    let sources = arrived(&socket);
    let of = |source: IpAddr| sources.iter().filter(|arrived| **arrived == source).count();
    assert_eq!(of(quiet), PACKETS / NEIGHBOUR_EVERY);
    assert!((BURST..=BURST + refilled).contains(&of(loud)), "{} of {PACKETS}", of(loud));
    assert_eq!(gateway.kernel_packets("limit")?, (PACKETS - of(loud)) as u64);
    assert_eq!(arrived(&unprotected).len(), PACKETS / NEIGHBOUR_EVERY);
    Ok(())
}

#[test]
fn a_profile_set_by_command_holds_at_once_without_a_fresh_burst_and_is_kept() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    let (wide, tight) = (json!({"packets": "1/h burst 60"}), json!({"packets": "1/h burst 20"}));
    config["kernel"]["profiles"] = json!({"wide": wide, "tight": tight});
    config["kernel"]["protected_ports"] = json!([UDP_PORT]);
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    let socket = listener(&hosts, UDP_PORT)?;
    let sender = Sender::new(&hosts.attacker)?;
    let admitted = |source: &str, packets: usize| -> Result<usize> {
        let frame = Path::new(&hosts.attacker, source.parse()?).udp(UDP_PORT, b"x")?;
        (0..packets).try_for_each(|_| sender.send(&frame))?;
        Ok(arrived(&socket).len())
    };
    let (loud, neighbour) = ("198.18.0.1", "198.18.0.2");
    assert_eq!(admitted(loud, 100)?, 100, "no profile holds for it");
    gateway.cli(&["limit", "set", "198.18.0.0/30", "wide", "--reason", "a partner"])?.ok()?;
    assert_eq!(admitted(loud, 30)?, 30);
    let set = gateway.cli(&["limit", "set", loud, "198.18.0.3", "tight", "--for", "1h"])?.ok()?;
    assert!(set.stdout.contains("limit 198.18.0.1 to tight until"), "{set}");
    assert_eq!(admitted(loud, 30)?, 0, "it had more than the new profile allows");
    assert_eq!(admitted(neighbour, 100)?, 60);

    let why = gateway.cli(&["why", neighbour, "--json"])?.ok()?.json()?;
    assert_eq!(why.pointer("/rule/profile"), Some(&json!("wide")), "{why}");
    assert_eq!(why.pointer("/rule/reason"), Some(&json!("a partner")), "{why}");
    assert_eq!(why.pointer("/rule/enforced"), Some(&json!("kernel")), "{why}");
    let listed = gateway.cli(&["limit", "list", "--inside", loud])?.ok()?.json()?;
    assert_eq!((&listed["profile"], &listed["packets"]), (&json!("tight"), &json!(30)), "{listed}");
    gateway.cli(&["limit", "set", loud, "none"])?.refused(1, "has tight, wide")?;
    gateway.cli(&["limit", "set", "10.0.3.2", "tight"])?.refused(1, "upstream")?;
    gateway.cli(&["limit", "remove", "198.18.0.9"])?.refused(1, "limit list")?;

    // Another place in the table of profiles, and the name is what counts.
    gateway.kill9()?;
    config["kernel"]["profiles"] = json!({"any": {"packets": "9000/s"}, "tight": tight});
    gateway.write_config(config)?;
    gateway.start()?;
    assert_eq!(admitted(loud, 30)?, 0);
    let told = gateway.status()?.pointer("/kernel/note").cloned().unwrap_or_default();
    assert!(told.as_str().is_some_and(|told| told.contains("(wide)")), "{told}");
    assert_eq!(admitted(neighbour, 100)?, 100, "its profile is gone and there is no default one");

    gateway.kill9()?;
    gateway.cli(&["limit", "remove", loud])?.ok()?;
    assert_eq!(admitted(loud, 30)?, 30, "as around it");
    gateway.start()?;
    let left = gateway.cli(&["limit", "list"])?.ok()?.json_lines()?;
    assert_eq!(left.len(), 2, "{left:?}");
    Ok(())
}

/// Sends SYNs to the gateway from so many sources of both families, no two alike.
fn flood(hosts: &Topology, sources: u32) -> Result {
    let sender = Sender::new(&hosts.attacker)?;
    for number in 0..sources {
        let source = match number % 2 {
            0 => IpAddr::from(Ipv4Addr::from_bits(0xc612_0000 | number)),
            _ => Ipv6Addr::from_bits(0xfd00_0bad << 96 | u128::from(number) << 64).into(),
        };
        sender.send(&Path::new(&hosts.attacker, source).syn(40_000, PORT)?)?;
    }
    Ok(())
}

#[test]
fn a_flood_of_spoofed_sources_locks_no_known_client_out_and_gets_no_further_than_it_may() -> Result
{
    const SOURCES: u32 = 20_000;
    const MAY: u64 = 30 + 70;
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["profiles"] =
        json!({"public": {"packets": "100000/s", "connections": "10000/s"}});
    config["kernel"]["default_profile"] = json!("public");
    config["kernel"]["new_sources"] = json!("1/h burst 30");
    config["kernel"]["unknown_sources"] = json!("1/h burst 70");
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let client = &hosts.client;
    assert_eq!(get(&client.namespace, None, client.target())?.status, 200);
    std::thread::scope(|scope| -> Result {
        let flood = scope.spawn(|| flood(&hosts, SOURCES));
        let mut answers = 0;
        while !flood.is_finished() || answers < 20 {
            assert_eq!(get(&client.namespace, None, client.target())?.text(), "served");
            answers += 1;
        }
        flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let refused = gateway.kernel_packets("unknown_sources")?;
    assert!(refused <= u64::from(SOURCES) && refused + MAY >= u64::from(SOURCES), "{refused}");
    assert_eq!(gateway.kernel_packets("connections")? + gateway.kernel_packets("limit")?, 0);
    Ok(())
}

#[test]
fn a_flood_of_spoofed_udp_and_fragments_gets_no_further_than_the_host_takes() -> Result {
    const SOURCES: u32 = 3000;
    const MAY: usize = 40;
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    let may = format!("1/h burst {MAY}");
    config["kernel"]["host_limits"] = json!({"udp": may, "fragments": may});
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let socket = listener(&hosts, UDP_PORT)?;
    let (attacker, client) = (&hosts.attacker, &hosts.client);
    let mut open =
        Client::connect(&client.namespace, None, client.target(), Duration::from_secs(20))?;
    let flood = || -> Result {
        let sender = Sender::new(attacker)?;
        for number in 0..SOURCES {
            let source = IpAddr::from(Ipv4Addr::from_bits(0xc612_0000 | number));
            let path = Path::new(attacker, source);
            sender.send(&path.udp(UDP_PORT, b"x")?)?;
            let [first, later] = path.udp_fragments(UDP_PORT, &[0; 64])?;
            sender.send(&first)?;
            sender.send(&later)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result {
        let flood = scope.spawn(flood);
        let mut answers = 0;
        while !flood.is_finished() || answers < 20 {
            assert_eq!(open.get("/")?.status, 200);
            assert_eq!(get(&client.namespace, None, client.target())?.text(), "served");
            answers += 1;
        }
        flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let all = u64::from(SOURCES);
    assert_eq!(gateway.kernel_packets("host_udp")?, all - MAY as u64);
    assert_eq!(gateway.kernel_packets("host_fragments")?, 2 * all - MAY as u64);
    assert!(arrived(&socket).len() <= MAY + MAY / 2);
    Ok(())
}

#[test]
fn beyond_the_rate_of_new_sources_a_new_client_is_served_all_the_same() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["profiles"] =
        json!({"public": {"packets": "100000/s", "connections": "10000/s"}});
    config["kernel"]["default_profile"] = json!("public");
    config["kernel"]["new_sources"] = json!("1/h burst 5");
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    flood(&hosts, 5000)?;
    let client = &hosts.client;
    let mut connection =
        Client::connect(&client.namespace, None, client.target(), Duration::from_secs(5))?;
    assert_eq!(connection.get("/")?.status, 200);
    assert_eq!(gateway.kernel_packets("unknown_sources")?, 0);

    // Its connection makes it known: when strangers are shut out at once, it goes on.
    config["kernel"]["unknown_sources"] = json!("1/h burst 1");
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    flood(&hosts, 5000)?;
    assert!(gateway.kernel_packets("unknown_sources")? > 0);
    assert_eq!(connection.get("/")?.status, 200);
    assert_eq!(get(&client.namespace, None, client.target())?.status, 200);
    Ok(())
}

#[test]
fn a_dry_run_counts_and_drops_nothing() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["dry_run"] = json!(true);
    config["kernel"]["deny"] = json!(["198.18.0.0/15"]);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let socket = listener(&hosts, UDP_PORT)?;
    let frame = Path::new(&hosts.attacker, "198.18.0.1".parse()?).udp(UDP_PORT, b"x")?;
    Sender::new(&hosts.attacker)?.send(&frame)?;
    assert_eq!(arrived(&socket).len(), 1);
    let status = gateway.status()?;
    let counters = status.pointer("/kernel/counters").and_then(|all| all.as_array());
    let denied = counters.into_iter().flatten().find(|counter| counter["reason"] == "deny");
    let denied = denied.map(|counter| (&counter["packets"], &counter["dry_run_packets"]));
    assert_eq!(denied, Some((&json!(0), &json!(1))), "{status}");
    Ok(())
}

#[test]
fn what_the_gateway_depends_on_cannot_be_denied() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["interfaces"] = json!(["to_client", "to_attacker", "to_upstream"]);
    config["kernel"]["never_block"] = json!(["198.18.0.9"]);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let upstream = hosts.upstream.v4().to_string();
    gateway.cli(&["deny", "add", &upstream])?.refused(1, "upstream")?;
    let own = hosts.client.gateway_v4().to_string();
    gateway.cli(&["deny", "add", &own])?.refused(1, "own address")?;
    gateway.cli(&["deny", "add", "198.18.0.9"])?.refused(1, "never_block")?;
    // One bad prefix spoils the whole command.
    gateway.cli(&["deny", "add", "198.18.0.10", &upstream])?.refused(1, "upstream")?;
    assert_eq!(
        gateway.cli(&["deny", "list"])?.ok()?.json_lines()?,
        Vec::<serde_json::Value>::new()
    );

    let around = gateway.cli(&["deny", "add", "10.0.3.0/24"])?.ok()?;
    assert!(around.stdout.contains(&upstream), "it says what is left out: {around}");
    assert_eq!(get(&hosts.client.namespace, None, hosts.client.target())?.status, 200);
    Ok(())
}

#[test]
fn prefixes_that_cannot_be_meant_are_refused() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    for (prefix, why) in [
        ("198.18.0.1/24", "198.18.0.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("300.1.1.1", "300.1.1.1"),
        ("fd00::/200", "fd00::/200"),
    ] {
        let answer = gateway.cli(&["deny", "add", prefix])?;
        assert!(matches!(answer.code, Some(1 | 2)), "{prefix}: {answer}");
        assert!(answer.stderr.contains(why), "{prefix}: {answer}");
    }
    assert_eq!(get(&hosts.client.namespace, None, hosts.client.target())?.status, 200);
    Ok(())
}

/// What the README tells a newcomer to do as root.
#[test]
fn on_loopback_the_kernel_door_is_generic_and_says_so() -> Result {
    require_root()?;
    let host = Namespace::new("host")?;
    let config = json!({
        "listen": [{"address": "127.0.0.1:8080"}],
        "kernel": {"interfaces": ["lo"], "on_exit": "detach"},
        "upstreams": {"echo": {"endpoints": ["echo"]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "echo"}],
    });
    let mut gateway = Gateway::new(&host, config)?;
    gateway.start()?;
    assert_eq!(gateway.modes()?, [("lo".to_owned(), "generic".to_owned())]);
    assert!(gateway.log().contains("generic"), "{}", gateway.log());
    let target: SocketAddr = "127.0.0.1:8080".parse()?;
    let other: IpAddr = "127.0.0.2".parse()?;
    assert_eq!(get(&host, Some(other), target)?.status, 200);
    gateway.cli(&["deny", "add", "127.0.0.2"])?.ok()?;
    let patience = Duration::from_millis(500);
    let refused = Client::connect(&host, Some(other), target, patience);
    assert!(refused.is_err(), "127.0.0.2 still connects");
    assert_eq!(get(&host, None, target)?.status, 200);
    gateway.cli(&["deny", "add", "127.0.0.1"])?.refused(1, "own address")?;
    gateway.stop()?;
    // The daemon may not remove its own folder from root's, but nothing is left in it.
    let left = std::fs::read_dir(gateway.pins()).map_or(0, Iterator::count);
    assert_eq!(left, 0, "`on_exit: detach` detaches when it ends");
    let listing = host.output(Command::new("ip").args(["-json", "link", "show", "lo"]))?;
    assert!(!String::from_utf8(listing.stdout)?.contains("xdp"));
    Ok(())
}
