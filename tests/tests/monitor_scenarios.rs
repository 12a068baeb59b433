//! What is to be seen of the gateway at work, through the real binary: events of dropped packets, metrics, `top`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::client::{Client, get};
use harness::frames::{Path, Sender, UDP_SOURCE_PORT};
use harness::gateway::{Gateway, NOBODY};
use harness::metrics::{Page, family};
use harness::namespace::Namespace;
use harness::origin::{Origin, Reply};
use harness::topology::Topology;
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

const UDP_PORT: u16 = 9000;
const METRICS: &str = "127.0.0.1:9100";
const DOCUMENTED: &str = include_str!("../../docs/metrics.md");
const PATIENCE: Duration = Duration::from_secs(10);

fn origin(hosts: &Topology) -> Result<Origin> {
    let address = SocketAddr::new(hosts.upstream.v4(), 9000);
    Origin::start(Some(&hosts.upstream.namespace), address, |_| Reply::Answer(200, "served"))
}

/// Events as `gateway events` writes them, with more arguments.
fn events(gateway: &Gateway<'_>, more: &[&str]) -> Result<Vec<Value>> {
    gateway.cli(&[&["events", "--json"], more].concat())?.ok()?.json_lines()
}

/// Sends the frame until an event of this source is there: a report is due once in a timer tick.
fn reported(gateway: &Gateway<'_>, sender: &Sender, frame: &[u8], source: &str) -> Result<Value> {
    wait_for(&format!("an event of {source}"), PATIENCE, || {
        sender.send(frame)?;
        Ok(events(gateway, &["--source", source])?.pop())
    })
}

/// Packets that are dropped: whose, the frame, the reason, the rule, the protocol and both ports.
type Dropped = (&'static str, Vec<u8>, &'static str, Value, &'static str, Value);

fn dropped(hosts: &Topology) -> Result<[Dropped; 5]> {
    let path = |source: &str| -> Result<Path> { Ok(Path::new(&hosts.attacker, source.parse()?)) };
    let fragments = path("198.18.7.8")?.udp_fragments(UDP_PORT, &[0; 64])?;
    let behind = path("fd00:bad:0:7::8")?.udp_behind_extension_headers(53, b"x")?;
    Ok([
        (
            "198.18.7.7",
            path("198.18.7.7")?.syn(40_000, 443)?,
            "deny",
            json!({"prefix": "198.18.7.0/24", "action": "deny", "origin": "operator"}),
            "tcp",
            json!([40_000, 443]),
        ),
        (
            "fd00:bad:0:7::7",
            path("fd00:bad:0:7::7")?.udp(53, b"x")?,
            "deny",
            json!({"prefix": "fd00:bad:0:7::/64", "action": "deny", "origin": "configuration"}),
            "udp",
            json!([UDP_SOURCE_PORT, 53]),
        ),
        (
            "198.18.7.8",
            fragments[1].clone(),
            "deny",
            json!({"prefix": "198.18.7.0/24", "action": "deny", "origin": "operator"}),
            "other",
            json!([null, null]),
        ),
        (
            "fd00:bad:0:7::8",
            behind,
            "deny",
            json!({"prefix": "fd00:bad:0:7::/64", "action": "deny", "origin": "configuration"}),
            "udp",
            json!([UDP_SOURCE_PORT, 53]),
        ),
        (
            "198.18.9.9",
            path("198.18.9.9")?.udp(UDP_PORT, b"x")?,
            "limit",
            Value::Null,
            "udp",
            json!([UDP_SOURCE_PORT, UDP_PORT]),
        ),
    ])
}

#[test]
fn a_dropped_packet_is_reported_with_what_it_met() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["events"] = json!("1000/s");
    config["kernel"]["deny"] = json!(["fd00:bad:0:7::/64"]);
    config["kernel"]["profiles"] = json!({"tight": {"packets": "1/h"}});
    config["kernel"]["default_profile"] = json!("tight");
    config["kernel"]["protected_ports"] = json!([UDP_PORT]);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    // The hosts themselves speak up now and then, and the default profile is tight.
    let ours = |more: &[&str]| events(&gateway, &[&["--source", "198.18.0.0/15"], more].concat());
    assert_eq!(ours(&[])?, Vec::<Value>::new());
    gateway.cli(&["deny", "add", "198.18.7.0/24"])?.ok()?;
    let sender = Sender::new(&hosts.attacker)?;
    for (source, frame, reason, rule, protocol, ports) in dropped(&hosts)? {
        let event = reported(&gateway, &sender, &frame, source)?;
        let source: IpAddr = source.parse()?;
        assert_eq!(event["source"], json!(source), "{event}");
        assert_eq!((&event["reason"], &event["rule"]), (&json!(reason), &rule), "{event}");
        assert_eq!(event["protocol"], json!(protocol), "{event}");
        assert_eq!(json!([event["source_port"], event["port"]]), ports, "{event}");
        assert_eq!(event["interface"], json!("to_attacker"), "{event}");
        assert_eq!(event["dry_run"], json!(false), "{event}");
    }
    let all = ours(&["--limit", "4096"])?;
    let limited = ours(&["--limit", "4096", "--reason", "limit"])?;
    assert!(limited.len() < all.len() && limited.iter().all(|event| event["reason"] == "limit"));
    assert_eq!(ours(&["--limit", "1"])?, all[all.len() - 1..]);
    let numbers: Vec<Option<u64>> = all.iter().map(|event| event["number"].as_u64()).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    Ok(())
}

#[test]
fn who_follows_the_events_is_told_of_each() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", "198.18.7.0/24"])?.ok()?;
    let sender = Sender::new(&hosts.attacker)?;
    let frame = |source: &str| -> Result<Vec<u8>> {
        Path::new(&hosts.attacker, source.parse()?).udp(UDP_PORT, b"x")
    };
    reported(&gateway, &sender, &frame("198.18.7.1")?, "198.18.7.1")?;
    let mut command = gateway.command(&["events", "--follow", "--source", "198.18.7.0/25"])?;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut follower = hosts.gateway.spawn(&mut command)?;
    let lines = BufReader::new(follower.stdout.take().context("no output")?).lines();
    let (sent, received) = std::sync::mpsc::sync_channel(1000);
    std::thread::spawn(move || {
        lines.map_while(std::io::Result::ok).try_for_each(|line| sent.send(line))
    });
    let next = || -> Result<Value> {
        Ok(serde_json::from_str(&received.recv_timeout(PATIENCE).context("no further event")?)?)
    };
    let first = next()?;
    assert_eq!(first["source"], json!("198.18.7.1"));
    gateway.cli(&["reload"])?.ok()?;
    // Ten a second are reported, and these come after each other.
    for host in [200, 2, 201, 3] {
        let source = format!("198.18.7.{host}");
        reported(&gateway, &sender, &frame(&source)?, &source)?;
    }
    let mut seen = BTreeSet::new();
    while !seen.contains("198.18.7.3") {
        let event = next()?;
        seen.extend(event["source"].as_str().map(str::to_owned));
    }
    seen.remove("198.18.7.1");
    assert_eq!(seen, BTreeSet::from(["198.18.7.2".to_owned(), "198.18.7.3".to_owned()]));
    follower.kill()?;
    follower.wait()?;
    Ok(())
}

#[test]
fn an_event_names_the_list_whose_rule_decided() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["events"] = json!("1000/s");
    config["kernel"]["deny_files"] = json!([{"path": "drop.txt", "name": "scanners"}]);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    let folder = gateway.config();
    fs::write(folder.with_file_name("drop.txt"), "198.18.7.0/24 # seen last week\n")?;
    fs::write(folder.with_file_name("bought.txt"), "198.18.8.0/24\n")?;
    gateway.start()?;
    let bought = folder.with_file_name("bought.txt");
    gateway.cli(&["deny", "import", bought.to_str().context("no text")?])?.ok()?;
    gateway.cli(&["deny", "add", "198.18.9.0/24"])?.ok()?;
    let sender = Sender::new(&hosts.attacker)?;
    for (source, list) in [
        ("198.18.7.7", json!("scanners")),
        ("198.18.8.8", json!("bought")),
        ("198.18.9.9", Value::Null),
    ] {
        let frame = Path::new(&hosts.attacker, source.parse()?).udp(UDP_PORT, b"x")?;
        let event = reported(&gateway, &sender, &frame, source)?;
        assert_eq!(event["rule"]["list"], list, "{event}");
        assert!(event["rule"]["prefix"].is_string(), "{event}");
    }
    let shown = gateway.cli(&["events"])?.ok()?.stdout;
    assert!(shown.contains("scanners") && shown.contains("bought"), "{shown}");
    Ok(())
}

#[test]
fn what_the_rules_of_each_list_have_met_is_counted_under_its_name() -> Result {
    const TRIED: &str = "198.18.9.9";
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["deny_files"] = json!([
        {"path": "scanners.txt"},
        {"path": "tried.txt", "dry_run": true},
    ]);
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = gateway.config().with_file_name(name);
        fs::write(&path, text)?;
        Ok(path.to_str().context("no text")?.to_owned())
    };
    file("scanners.txt", "198.18.7.0/24\nfd00:bad::/48\n")?;
    file("tried.txt", TRIED)?;
    let bought = file("bought.txt", "198.18.8.0/24\n")?;
    let other = file("other.txt", "198.18.8.0/24\n")?;
    gateway.start()?;
    gateway.cli(&["deny", "import", &bought])?.ok()?;
    gateway.cli(&["deny", "add", "198.18.7.1"])?.ok()?;
    let sender = Sender::new(&hosts.attacker)?;
    let socket = hosts.gateway.datagrams(UDP_PORT)?;
    let send = |sources: &[&str]| -> Result {
        for source in sources {
            sender.send(&Path::new(&hosts.attacker, source.parse()?).udp(UDP_PORT, b"x")?)?;
        }
        // What passes comes after all that was sent before.
        sender.send(&Path::new(&hosts.attacker, "198.18.6.6".parse()?).udp(UDP_PORT, b"end")?)?;
        wait_for("the last packet", PATIENCE, || {
            let mut text = [0; 3];
            Ok(socket.recv(&mut text).ok().filter(|_| text == *b"end"))
        })?;
        Ok(())
    };
    let met = |gateway: &Gateway<'_>| -> Result<BTreeMap<String, u64>> {
        let lists = gateway.cli(&["lists", "--json"])?.ok()?.json_lines()?;
        let met =
            |list: &Value| Some((list["name"].as_str()?.to_owned(), list["packets"].as_u64()?));
        Ok(lists.iter().filter_map(met).collect())
    };
    let expected = |counts: &[(&str, u64)]| -> BTreeMap<String, u64> {
        counts.iter().map(|(name, packets)| ((*name).to_owned(), *packets)).collect()
    };
    // The operator's rule decides about a host of the first list, whose that packet is not.
    send(&["198.18.7.7", "198.18.7.1", "fd00:bad::7", "198.18.8.8", TRIED, TRIED, TRIED])?;
    assert_eq!(met(&gateway)?, expected(&[("scanners", 2), ("bought", 1), ("tried", 3)]));
    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    for (list, packets) in [("scanners", 2), ("bought", 1), ("tried", 3)] {
        let series = format!(r#"gateway_kernel_list_packets_total{{list="{list}"}}"#);
        assert_eq!(page.value(&series), Some(packets), "{list}");
    }

    // One list goes and another comes; the rest goes on counting, with no gateway, too, and in maps of another size.
    gateway.cli(&["deny", "remove", "--list", "bought"])?.ok()?;
    gateway.cli(&["deny", "import", &other])?.ok()?;
    gateway.kill9()?;
    send(&["198.18.8.8", "198.18.7.7"])?;
    let after = expected(&[("scanners", 3), ("other", 1), ("tried", 3)]);
    assert_eq!(met(&gateway)?, after);
    config["kernel"]["max_rules"] = json!(1000);
    gateway.write_config(config)?;
    gateway.start()?;
    assert_eq!(met(&gateway)?, after);
    send(&["198.18.7.7"])?;
    assert_eq!(met(&gateway)?.get("scanners"), Some(&4));
    // Whoever comes back under the same name has counted, too.
    gateway.cli(&["deny", "import", &bought])?.ok()?;
    assert_eq!(met(&gateway)?.get("bought"), Some(&1));
    Ok(())
}

#[test]
fn a_flood_is_a_few_events_and_every_packet_is_counted() -> Result {
    const BATCH: u64 = 1000;
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["events"] = json!("1/h burst 3");
    config["kernel"]["dry_run"] = json!(true);
    config["kernel"]["deny"] = json!(["198.18.7.0/24"]);
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    let sender = Sender::new(&hosts.attacker)?;
    let frame = Path::new(&hosts.attacker, "198.18.7.7".parse()?).udp(UDP_PORT, b"x")?;
    let mut sent = 0;
    let mut flood = |packets: u64| -> Result {
        sent += packets;
        (0..packets).try_for_each(|_| sender.send(&frame))
    };
    let seen = wait_for("three events", PATIENCE, || {
        flood(BATCH)?;
        Ok(Some(events(&gateway, &[])?).filter(|seen| seen.len() >= 3))
    })?;
    assert!(seen.iter().all(|event| event["dry_run"] == json!(true)), "{seen:?}");
    flood(BATCH)?;
    let labels =
        r#"reason="deny",verdict="would_drop",origin="configuration",interface="to_attacker""#;
    let counted = |gateway: &Gateway<'_>| -> Result<Option<u64>> {
        let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
        Ok(page.value(&format!("gateway_kernel_packets_total{{{labels}}}")))
    };
    gateway.kill9()?;
    flood(1)?;
    config["kernel"]["events"] = json!("off");
    gateway.write_config(config.clone())?;
    gateway.start()?;
    gateway.cli(&["events"])?.refused(1, "kernel.events is off")?;
    flood(1)?;
    wait_for("every packet", PATIENCE, || Ok(counted(&gateway)?.filter(|all| *all == sent)))?;
    config["kernel"]["events"] = json!("1/h burst 3");
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(events(&gateway, &[])?, Vec::<Value>::new(), "three were all, and none while off");
    Ok(())
}

#[test]
fn what_was_dropped_while_no_gateway_ran_is_told_by_the_next() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", "198.18.7.0/24"])?.ok()?;
    gateway.kill9()?;
    let frame = Path::new(&hosts.attacker, "198.18.7.7".parse()?).udp(UDP_PORT, b"x")?;
    Sender::new(&hosts.attacker)?.send(&frame)?;
    gateway.start()?;
    let told = wait_for("an event", PATIENCE, || Ok(events(&gateway, &[])?.pop()))?;
    assert_eq!(told["source"], json!("198.18.7.7"));
    Ok(())
}

#[test]
fn metrics_add_up_and_prometheus_could_read_them() -> Result {
    const PACKETS: u64 = 20;
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["metrics"] = json!({"listen": METRICS});
    config["kernel"]["deny"] = json!(["198.18.7.0/24"]);
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    gateway.cli(&["deny", "add", "198.18.8.0/24", "fd00:bad::/48"])?.ok()?;
    let sender = Sender::new(&hosts.attacker)?;
    let mut bytes = 0;
    for source in ["198.18.7.7", "198.18.8.8"] {
        let frame = Path::new(&hosts.attacker, source.parse()?).udp(UDP_PORT, b"x")?;
        bytes = PACKETS * frame.len() as u64;
        for _ in 0..PACKETS {
            sender.send(&frame)?;
        }
    }
    assert_eq!(get(&hosts.client.namespace, None, hosts.client.target())?.text(), "served");
    wait_for("every packet", PATIENCE, || {
        Ok(Some(gateway.kernel_packets("deny")?).filter(|packets| *packets == 2 * PACKETS))
    })?;

    let mut scraper = Client::connect(&hosts.gateway, None, METRICS.parse()?, PATIENCE)?;
    let scraped = scraper.get("/metrics")?;
    assert_eq!(scraped.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let page = Page::of(&scraped.text())?;
    for origin in ["configuration", "operator"] {
        let labels = format!(r#"reason="deny",verdict="drop",origin="{origin}""#);
        let labels = format!(r#"{{{labels},interface="to_attacker"}}"#);
        let value = |name: &str| page.value(&format!("gateway_kernel_{name}_total{labels}"));
        assert_eq!((value("packets"), value("bytes")), (Some(PACKETS), Some(bytes)), "{origin}");
    }
    let denied = r#"gateway_kernel_rules{family="ipv4",origin="operator",action="deny"}"#;
    assert_eq!(page.value(denied), Some(1));
    assert_eq!(page.value(&denied.replace("ipv4", "ipv6")), Some(1));
    assert_eq!(page.value(r#"gateway_requests_total{status="2xx"}"#), Some(1));
    assert_eq!(page.value("gateway_kernel_enforcing"), Some(1));
    let attached = r#"gateway_kernel_interface_attached{interface="to_attacker",mode="native"}"#;
    assert_eq!(page.value(attached), Some(1));
    // All of a reason together are what `status` counts, whose listing has neither origins nor interfaces.
    let status = gateway.status()?;
    for counter in status["kernel"]["counters"].as_array().context("no counters")? {
        let reason = format!(r#"gateway_kernel_packets_total{{reason={},"#, counter["reason"]);
        let of_reason = page.samples.iter().filter(|(series, _)| series.starts_with(&reason));
        let sum = of_reason.map(|(_, value)| *value).sum::<f64>() as u64;
        let grown = counter["packets"].as_u64() >= Some(sum);
        assert!(
            grown && (counter["verdict"] == "pass" || counter["packets"] == json!(sum)),
            "{counter}"
        );
    }

    for series in page.samples.keys() {
        let name = family(series);
        assert!(DOCUMENTED.contains(&format!("`{name}`")), "{name} is not documented");
    }

    // The same series over the admin socket, nothing else over TCP, and nothing at all for who says nothing.
    let own = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    let series = |page: &Page| page.samples.keys().cloned().collect::<Vec<_>>();
    assert_eq!(series(&own), series(&page));
    assert_eq!(scraper.get("/v1/status")?.status, 404);
    scraper.send(b"POST /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")?;
    assert_eq!(scraper.receive()?.status, 405);
    gateway.cli(&["metrics", "--json"])?.ok()?;
    Ok(())
}

#[test]
fn metrics_without_a_kernel_door_are_those_of_the_proxy() -> Result {
    let namespace = nix::unistd::geteuid().is_root().then(|| Namespace::new("host")).transpose()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), proxy_only()?)?;
    gateway.start()?;
    gateway.cli(&["deny", "add", "198.18.7.0/24"])?.ok()?;
    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    assert_eq!(page.value(r#"gateway_rules{list="deny"}"#), Some(1));
    assert_eq!(page.value("gateway_kernel_enforcing"), Some(0));
    assert!(page.samples.keys().all(|series| !series.contains("packets")), "{page:?}");
    gateway.cli(&["events"])?.refused(1, "the kernel door is shut")?;
    gateway.cli(&["events", "--follow"])?.refused(1, "the kernel door is shut")?;
    let top = gateway.cli(&["top", "--once", "--json"])?.ok()?.json()?;
    assert_eq!(top["kernel"]["enforcing"], json!(false));
    assert_eq!(top["requests"]["statuses"][1]["status"], json!("2xx"));
    Ok(())
}

#[test]
fn what_cannot_be_looked_at_is_refused() -> Result {
    let namespace = nix::unistd::geteuid().is_root().then(|| Namespace::new("host")).transpose()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), proxy_only()?)?;
    for command in [["events", "--follow"], ["top", "--once"], ["metrics", "--json"]] {
        gateway.cli(&command)?.refused(1, "no gateway answers")?;
    }
    gateway.start()?;
    for (command, why) in [
        (["events", "--source", "192.0.2.1/24"], "host bits"),
        (["events", "--reason", "allow"], "packets are not dropped for `allow`: deny"),
        (["events", "--limit", "0"], "1 to 4096"),
        (["events", "--limit", "many"], "no number"),
        (["top", "--rules", "101"], "1 to 100 rules"),
    ] {
        gateway.cli(&command)?.refused(2, why)?;
    }
    // The same over the socket, where there is no command line in front.
    for query in ["limit=0", "reason=allow", "source=x", "colour=red", "wait=maybe"] {
        let mut socket = std::os::unix::net::UnixStream::connect(gateway.socket())?;
        write!(socket, "GET /v1/events?{query} HTTP/1.1\r\nhost: gateway\r\n\r\n")?;
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line)?;
        assert!(line.starts_with("HTTP/1.1 400"), "{query}: {line}");
    }
    Ok(())
}

#[test]
fn metrics_where_somebody_else_listens_are_an_error_at_the_start() -> Result {
    let namespace = nix::unistd::geteuid().is_root().then(|| Namespace::new("host")).transpose()?;
    let bind = || std::net::TcpListener::bind("127.0.0.1:0");
    let taken = match &namespace {
        Some(namespace) => namespace.enter(bind)??,
        None => bind()?,
    };
    let mut config = proxy_only()?;
    config["metrics"] = json!({"listen": taken.local_addr()?.to_string()});
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config)?;
    gateway.start_refused()?.refused(1, "the port is in use")?;
    Ok(())
}

#[test]
fn top_shows_rates_sources_and_the_busiest_rules() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", "198.18.7.0/24", "198.18.8.8", "198.18.9.0/24"])?.ok()?;
    let sender = Sender::new(&hosts.attacker)?;
    for (source, packets) in [("198.18.8.8", 30), ("198.18.7.7", 20)] {
        let frame = Path::new(&hosts.attacker, source.parse()?).udp(UDP_PORT, b"x")?;
        reported(&gateway, &sender, &frame, source)?;
        for _ in 0..packets {
            sender.send(&frame)?;
        }
    }
    let top = gateway.cli(&["top", "--once", "--json"])?.ok()?.json()?;
    let prefixes = |top: &Value| -> Vec<Value> {
        let rules = top["rules"].as_array().into_iter().flatten();
        let denying = rules.filter(|rule| rule["rule"]["action"] == "deny");
        denying.map(|rule| rule["rule"]["prefix"].clone()).collect()
    };
    // Rules that have met nothing are none of the busiest.
    assert_eq!(prefixes(&top), ["198.18.8.8", "198.18.7.0/24"], "{top}");
    let sources = top["sources"].as_array().into_iter().flatten();
    let names: BTreeSet<_> = sources.filter_map(|one| one["source"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["198.18.7.7", "198.18.8.8"]), "{top}");
    let mut reasons = top["reasons"].as_array().into_iter().flatten();
    let denied = reasons.find(|one| one["reason"] == "deny").context("no deny")?;
    assert!(denied["packets"].as_u64() >= Some(50), "{denied}");
    assert!(denied["packets_per_second"].is_u64(), "{denied}");
    let few = gateway.cli(&["top", "--once", "--json", "--rules", "1"])?.ok()?.json()?;
    assert_eq!(few["rules"].as_array().map(Vec::len), Some(1), "{few}");
    Ok(())
}

/// On a terminal, which `script` makes: the screen is given back when `q` is pressed.
#[test]
fn top_gives_the_terminal_back() -> Result {
    let namespace = nix::unistd::geteuid().is_root().then(|| Namespace::new("host")).transpose()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), proxy_only()?)?;
    gateway.start()?;
    let mut script = on_terminal((&gateway, namespace.as_ref()), &["top"], |top| {
        format!("stty -g; {top}; stty -g")
    })?;
    let mut keys = script.stdin.take().context("no input")?;
    let mut output = BufReader::new(script.stdout.take().context("no output")?);
    let mut shown = Vec::new();
    while !String::from_utf8_lossy(&shown).contains("q ends it") {
        ensure!(output.read_until(b't', &mut shown)? > 0, "{}", String::from_utf8_lossy(&shown));
    }
    keys.write_all(b"q")?;
    keys.flush()?;
    std::io::Read::read_to_end(&mut output, &mut shown)?;
    assert!(script.wait()?.success());
    let shown = String::from_utf8(shown)?;
    let (entered, left) = (shown.find("\x1b[?1049h"), shown.find("\x1b[?1049l"));
    assert!(entered.is_some() && entered < left, "{shown:?}");
    let lines: Vec<&str> = shown.lines().map(str::trim).collect();
    let last = lines.last().and_then(|line| line.split("\x1b[?1049l").nth(1));
    assert_eq!(lines.first().copied(), last, "the terminal's settings are as before: {shown:?}");
    Ok(())
}

#[test]
fn progress_is_shown_on_a_terminal_and_nowhere_else() -> Result {
    let namespace = nix::unistd::geteuid().is_root().then(|| Namespace::new("host")).transpose()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), proxy_only()?)?;
    gateway.start()?;
    let first = Ipv4Addr::new(198, 18, 0, 0).to_bits();
    let hosts = (first..first + 60_000).map(|host| format!("{}\n", Ipv4Addr::from_bits(host)));
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(hosts.collect::<String>().as_bytes())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    let path = file.path().to_str().context("no text")?;
    let import = ["deny", "import", path, "--list", "long"];
    let script = on_terminal((&gateway, namespace.as_ref()), &import, str::to_owned)?;
    let shown = String::from_utf8(script.wait_with_output()?.stdout)?;
    assert!(shown.contains("reading [") && shown.contains("putting it in force"), "{shown:?}");
    assert!(shown.ends_with("deny list long: 60000 entries\r\n"), "{shown:?}");
    let piped = gateway.cli(&import)?.ok()?;
    assert_eq!(piped.stderr, "");
    Ok(())
}

/// Where nobody can be asked it is refused, which other tests see.
#[test]
fn whoever_denies_very_much_on_a_terminal_is_asked() -> Result {
    let namespace = nix::unistd::geteuid().is_root().then(|| Namespace::new("host")).transpose()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), proxy_only()?)?;
    gateway.start()?;
    let answered = |arguments: &[&str], answer: &str| -> Result<(bool, String)> {
        let mut script = on_terminal((&gateway, namespace.as_ref()), arguments, str::to_owned)?;
        script.stdin.take().context("no keys")?.write_all(answer.as_bytes())?;
        let done = script.wait_with_output()?;
        Ok((done.status.success(), String::from_utf8(done.stdout)?))
    };
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(b"198.18.0.0/15\n0.0.0.0/1\n")?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    let path = file.path().to_str().context("no text")?;
    let v4 =
        "128.0.0.0/2 is 1/4 of all IPv4 addresses (1,073,741,824 addresses). Is that meant? [y/N]";
    let v6 = "2400::/8 is 1/256 of all IPv6 addresses (72,057,594,037,927,936 networks of /64). Is";
    let list = "0.0.0.0/1 is 1/2 of all IPv4 addresses (2,147,483,648 addresses), and the list covers 50.1 % of all \
                IPv4 addresses (2,147,614,720 addresses). Is";
    for (command, question, after, added) in [
        (&["deny", "add", "128.0.0.0/2"][..], v4, "deny 128.0.0.0/2\r\n", 1),
        (&["allow", "add", "2400::/8"], v6, "allow 2400::/8\r\n", 1),
        (&["deny", "import", path, "--list", "half"], list, "deny list half: 2 entries\r\n", 2),
    ] {
        let held = || -> Result<usize> {
            Ok(gateway.cli(&[command[0], "list"])?.ok()?.json_lines()?.len())
        };
        let before = held()?;
        for no in ["n\n", "\n", "nonsense\n", "\u{4}"] {
            let (done, shown) = answered(command, no)?;
            assert!(!done && shown.contains(question), "{no:?}: {shown:?}");
            assert!(shown.ends_with("nothing was changed\r\n"), "{no:?}: {shown:?}");
            assert_eq!(held()?, before);
        }
        let (done, shown) = answered(command, "y\n")?;
        assert!(done && shown.contains(question) && shown.ends_with(after), "{shown:?}");
        assert_eq!(held()?, before + added);
    }
    Ok(())
}

/// Runs a command on a terminal, whose keys and screen are pipes here. `around` makes a line for the shell of it.
fn on_terminal(
    (gateway, namespace): (&Gateway<'_>, Option<&Namespace>),
    arguments: &[&str],
    around: impl Fn(&str) -> String,
) -> Result<Child> {
    let plain = gateway.command(arguments)?;
    let words: Vec<_> = std::iter::once(plain.get_program()).chain(plain.get_args()).collect();
    let words: Option<Vec<&str>> = words.into_iter().map(|word| word.to_str()).collect();
    let line = around(&words.context("no text")?.join(" "));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    command.env("GATEWAY_CONFIG", gateway.config());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    if namespace.is_some() {
        command.uid(NOBODY).gid(NOBODY);
    }
    match namespace {
        Some(namespace) => namespace.spawn(&mut command),
        None => Ok(command.spawn()?),
    }
}

fn proxy_only() -> Result<Value> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok(json!({
        "listen": [{"address": free.to_string()}],
        "upstreams": {"echo": {"endpoints": ["echo"]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "echo"}],
    }))
}
