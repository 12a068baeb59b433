//! What a `reset` rule answers: by `BPF_PROG_TEST_RUN`, frame by frame, with checksums that are reckoned here once
//! more; and through the real binary, whose refused clients are told so at once.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail like tests"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use aya::programs::{TestRun, TestRunOptions};
use etherparse::PacketBuilder;
use gateway::kernel::object::{Capacity, Switches};
use gateway::kernel::trial::Trial;
use gateway_common::bucket::Bucket;
use gateway_common::rule::Action;
use gateway_common::verdict::Reason;
use harness::client::get;
use harness::gateway::Gateway;
use harness::origin::{Origin, Reply};
use harness::site::PATIENCE;
use harness::topology::{Host, PORT, Topology};
use harness::{Result, bpf, programs, require_root, wait_for};
use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

const SMALL: Capacity = Capacity { rules: 1024, sources: 1024 };
const ON: Switches = Switches { resets: Bucket::per(3600, 1, 100), ..Switches::RULES };

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
const SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0, 0, 0, 7));
const BOTH: [IpAddr; 2] = [SOURCE, SOURCE_V6];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const GATEWAY_MAC: [u8; 6] = [2, 1, 1, 1, 1, 9];
const OPTIONS: [u8; 8] = [2, 4, 5, 0xb4, 1, 1, 4, 2];
const SEQUENCE: u32 = u32::MAX - 3;

/// The program, loaded and attached to nothing, with a `reset` rule for either source.
struct Door(Trial);

impl Door {
    fn with(switches: Switches) -> Self {
        let loaded = Trial::load(switches, SMALL);
        let mut trial =
            loaded.unwrap_or_else(|error| panic!("loading an XDP program takes root: {error}"));
        for source in BOTH {
            trial.put(IpNet::from(source), Action::Reset, 0).unwrap();
        }
        Self(trial)
    }

    /// What becomes of a frame: the verdict and the frame itself.
    fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = [0; 2048];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        };
        let ran = self.0.program().unwrap().test_run(options).unwrap();
        (ran.return_value, out[..ran.data_size_out as usize].to_vec())
    }

    /// The answer to a frame, which must be counted with all of its bytes.
    fn answers(&self, frame: &[u8]) -> Vec<u8> {
        let before = self.counted(Reason::ResetAnswered);
        let (verdict, answer) = self.run(frame);
        assert_eq!(verdict, XDP_TX);
        let expected = (before.0 + 1, before.1 + frame.len() as u64);
        assert_eq!(self.counted(Reason::ResetAnswered), expected);
        answer
    }

    fn drops(&self, name: &str, frame: &[u8], reason: Reason) {
        let before = self.counted(reason).0;
        assert_eq!(self.run(frame), (XDP_DROP, frame.to_vec()), "{name}");
        assert_eq!(self.counted(reason).0, before + 1, "{name}");
    }

    fn counted(&self, reason: Reason) -> (u64, u64) {
        let counters = self.0.counters().unwrap();
        let done = counters.iter().find(|count| count.reason == reason).unwrap().done;
        (done.packets, done.bytes)
    }
}

fn syn(source: IpAddr, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC);
    let step = match source {
        IpAddr::V4(source) => link.ipv4(source.octets(), [10, 0, 0, 1], 5),
        IpAddr::V6(source) => link.ipv6(source.octets(), [9; 16], 5),
    };
    let mut frame = Vec::new();
    let step = step.tcp(40_000, 443, SEQUENCE, 64_240).syn().options_raw(options).unwrap();
    step.write(&mut frame, payload).unwrap();
    frame
}

fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// By RFC 1071: with its checksum in it, what it was made over adds up to this.
fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    words.fold(0, |sum, word| {
        let sum = u32::from(sum) + word;
        (sum as u16) + (sum >> 16) as u16
    })
}

#[test]
fn a_syn_is_answered_with_a_reset_that_its_sender_believes() {
    let door = Door::with(ON);
    for source in BOTH {
        for tags in [&[][..], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0x20, 7, 0x81, 0, 0, 5]] {
            for (options, payload) in [(&[][..], &[][..]), (&OPTIONS, &[]), (&OPTIONS, b"hello")] {
                let frame = tagged(&syn(source, options, payload), tags);
                let answer = door.answers(&frame);
                // What is behind the packet is padding: not every card takes less than 60 bytes.
                let bytes = 14 + tags.len() + if source.is_ipv4() { 40 } else { 60 };
                assert_eq!(answer.len(), bytes.max(frame.len().min(60)));
                assert_eq!(answer[..6], CLIENT_MAC);
                assert_eq!(answer[6..12], GATEWAY_MAC);
                assert_eq!(answer[12..12 + tags.len()], *tags);
                let packet = &answer[14 + tags.len()..];
                let (addresses, tcp) = match source {
                    IpAddr::V4(source) => {
                        let (header, tcp) = packet.split_at(20);
                        let fixed = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6];
                        assert_eq!((&header[..10], sum(&[header])), (&fixed[..], u16::MAX));
                        assert_eq!(header[12..], [&[10, 0, 0, 1][..], &source.octets()].concat());
                        (&header[12..], tcp)
                    }
                    IpAddr::V6(source) => {
                        let (header, tcp) = packet.split_at(40);
                        assert_eq!(header[..8], [0x60, 0, 0, 0, 0, 20, 6, 64]);
                        assert_eq!(header[8..], [&[9; 16][..], &source.octets()].concat());
                        (&header[8..], tcp)
                    }
                };
                let tcp = &tcp[..20];
                let acknowledged = SEQUENCE.wrapping_add(1 + payload.len() as u32).to_be_bytes();
                let ports = [443u16.to_be_bytes(), 40_000u16.to_be_bytes()].concat();
                assert_eq!(
                    tcp[..16],
                    [&ports[..], &[0; 4], &acknowledged, &[0x50, 0x14, 0, 0][..]].concat()
                );
                assert_eq!(tcp[18..], [0, 0], "urgent");
                assert_eq!(sum(&[addresses, &[0, 6, 0, 20], tcp]), u16::MAX);
            }
        }
    }
}

#[test]
fn all_else_of_the_source_is_dropped_without_an_answer() {
    let door = Door::with(ON);
    let with = |source, changes: &[(usize, u8)]| {
        let mut frame = syn(source, &OPTIONS, b"x");
        changes.iter().for_each(|(at, byte)| frame[*at] = *byte);
        frame
    };
    for (name, changes) in [
        ("ACK", &[(47, 0x10)][..]),
        ("SYN and ACK", &[(47, 0x12)]),
        ("RST", &[(47, 0x04)]),
        ("SYN and FIN", &[(47, 0x03)]),
        ("UDP", &[(23, 17)]),
        ("ICMP", &[(23, 1)]),
        ("the first fragment", &[(20, 0x20)]),
        ("a later fragment", &[(21, 2)]),
        ("IP options", &[(14, 0x46)]),
        ("to a group of stations", &[(0, 0xff)]),
        ("to a group of hosts", &[(30, 224)]),
        ("of a group of stations", &[(6, 1)]),
        ("a TCP header too short", &[(46, 0x40)]),
        ("longer than its frame", &[(17, 0xff)]),
    ] {
        door.drops(name, &with(SOURCE, changes), Reason::Reset);
    }
    for (name, changes) in [
        ("ACK", &[(67, 0x10)][..]),
        ("a destination option first", &[(20, 60), (54, 6), (55, 0)]),
        ("a fragment", &[(20, 44), (54, 6)]),
        ("longer than its frame", &[(19, 0xff)]),
    ] {
        door.drops(name, &with(SOURCE_V6, changes), Reason::Reset);
    }
    let three = tagged(&syn(SOURCE, &[], &[]), &[0x81, 0, 0, 5].repeat(3));
    assert_eq!(door.run(&three), (XDP_PASS, three), "as unparsed, whatever the rules");
}

#[test]
fn all_sources_share_one_bucket_and_beyond_it_nothing_is_answered() {
    let door = Door::with(Switches { resets: Bucket::per(3600, 1, 3), ..Switches::RULES });
    for source in [SOURCE, SOURCE_V6, SOURCE] {
        door.answers(&syn(source, &OPTIONS, &[]));
    }
    for source in BOTH {
        door.drops("beyond", &syn(source, &OPTIONS, &[]), Reason::ResetLimit);
    }
    let mut acknowledgement = syn(SOURCE, &OPTIONS, &[]);
    acknowledgement[47] = 0x10;
    door.drops("no SYN", &acknowledgement, Reason::Reset);
    assert_eq!(door.0.hits(IpNet::from(SOURCE), false).packets, 4);
    assert_eq!(door.0.hits(IpNet::from(SOURCE_V6), false).packets, 2);
}

#[test]
fn a_dry_run_answers_nothing_and_off_is_off() {
    let frame = syn(SOURCE, &OPTIONS, &[]);
    Door::with(Switches { resets: None, ..ON }).drops("off", &frame, Reason::Reset);
    let door = Door::with(Switches { dry_run: true, ..ON });
    assert_eq!(door.run(&frame), (XDP_PASS, frame));
    let counters = door.0.counters().unwrap();
    let would = counters.iter().filter(|count| count.would.packets > 0);
    let would: Vec<_> = would.map(|count| (count.reason, count.would.packets)).collect();
    assert_eq!(would, [(Reason::Reset, 1)]);
}

fn origin(hosts: &Topology) -> Result<Origin> {
    let address = SocketAddr::new(hosts.upstream.v4(), 9000);
    Origin::start(Some(&hosts.upstream.namespace), address, |_| Reply::Answer(200, "served"))
}

/// What veth wants of the other end before it takes what a program in native mode sends.
fn receive_natively(host: &Host) -> Result<OwnedFd> {
    let program = programs::pass()?;
    let attached =
        || -> Result<OwnedFd> { Ok(bpf::attach(program.as_fd(), if_nametoindex("eth0")?)?) };
    host.namespace.enter(attached)?
}

/// What curl says: its exit status and message.
fn curl(host: &Host, source: IpAddr, patience: &str) -> Result<(Option<i32>, String)> {
    let target = SocketAddr::new(host.gateway_for(source), PORT);
    let (interface, url) = (source.to_string(), format!("http://{target}/"));
    let output = host.namespace.output(Command::new("curl").args([
        "--silent",
        "--show-error",
        "--max-time",
        patience,
        "--interface",
        &interface,
        &url,
    ]))?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

const OTHER_PORT: u16 = 9001;
const REFUSED: i32 = 7;
const TIMED_OUT: i32 = 28;

#[track_caller]
fn assert_refused((status, message): (Option<i32>, String)) {
    assert_eq!(status, Some(REFUSED), "{message}");
    assert!(!message.contains("imed out"), "{message}");
}

fn is_refused_at_once(mode: &str) -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["attach"] = json!(mode);
    config["kernel"]["resets"] = json!("1/h burst 4");
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let attacker = &hosts.attacker;
    let _native = receive_natively(attacker)?;
    let neighbour = attacker.add_v4(9)?;
    // Of another service of the host, which knows of no rule.
    let listener =
        hosts.gateway.enter(|| TcpListener::bind((attacker.gateway_v4(), OTHER_PORT)))??;
    let other = SocketAddr::new(attacker.gateway_v4(), OTHER_PORT);
    let mut open = attacker.namespace.enter(|| TcpStream::connect(other))??;
    let mut accepted = listener.accept()?.0;
    accepted.set_read_timeout(Some(Duration::from_millis(300)))?;

    let (v4, v6) = (attacker.v4().to_string(), attacker.v6().to_string());
    let done = gateway.cli(&["deny", "add", &v4, &v6, "--reset", "--reason", "a scanner"])?.ok()?;
    assert!(done.stdout.contains(&format!("reset {v4}")), "{}", done.stdout);
    for source in [attacker.v4(), attacker.v6(), attacker.v4(), attacker.v6()] {
        assert_refused(curl(attacker, source, "20")?);
    }
    assert_eq!(gateway.kernel_packets("reset_answered")?, 4);
    assert_eq!(get(&attacker.namespace, Some(neighbour), attacker.target())?.status, 200);

    // The packets of a connection that was open before are dropped without an answer.
    let dropped = gateway.kernel_packets("reset")?;
    open.write_all(b"too late")?;
    wait_for("dropped packets", PATIENCE, || {
        Ok((gateway.kernel_packets("reset")? > dropped).then_some(()))
    })?;
    assert!(accepted.read(&mut [0; 8]).is_err());
    assert_eq!(gateway.kernel_packets("reset_answered")?, 4);

    // Beyond the rate nobody is told.
    let (status, message) = curl(attacker, attacker.v4(), "2")?;
    assert_eq!(status, Some(TIMED_OUT), "{message}");
    assert!(gateway.kernel_packets("reset_limit")? >= 1);
    assert_eq!(gateway.kernel_packets("reset_answered")?, 4);
    is_shown(&gateway, &v4)?;

    gateway.cli(&["deny", "remove", &v4, &v6])?.ok()?;
    gateway.cli(&["deny", "remove", &v4])?.refused(1, "there is no deny rule")?;
    assert_eq!(get(&attacker.namespace, Some(attacker.v4()), attacker.target())?.status, 200);
    Ok(())
}

/// Every view knows the action.
fn is_shown(gateway: &Gateway<'_>, source: &str) -> Result {
    let why = gateway.cli(&["why", source, "--json"])?.ok()?.json()?;
    assert_eq!(why.pointer("/rule/action"), Some(&json!("reset")), "{why}");
    assert_eq!(why.pointer("/rule/enforced"), Some(&json!("both")), "{why}");
    assert!(why.pointer("/rule/packets").and_then(Value::as_u64) > Some(2), "{why}");
    assert!(why.pointer("/rule/last_packet_utc_ms").is_some_and(Value::is_u64), "{why}");
    assert!(why["verdict"].as_str().is_some_and(|said| said.contains("TCP RST")), "{why}");
    let listed = gateway.cli(&["deny", "list"])?.ok()?.json_lines()?;
    assert!(listed.len() == 2 && listed.iter().all(|rule| rule["action"] == "reset"), "{listed:?}");
    let events = gateway.cli(&["events", "--reason", "reset_answered"])?.ok()?.json_lines()?;
    let met = events.first().and_then(|event| event.pointer("/rule/action"));
    assert_eq!(met, Some(&json!("reset")), "{events:?}");
    let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
    let answered = "reason=\"reset_answered\",verdict=\"drop\",origin=\"operator\"";
    assert!(metrics.contains(answered), "{metrics}");
    assert!(metrics.contains("origin=\"operator\",action=\"reset\"} 1"), "{metrics}");
    Ok(())
}

#[test]
fn a_reset_source_is_refused_at_once_in_native_mode() -> Result {
    is_refused_at_once("native")
}

#[test]
fn a_reset_source_is_refused_at_once_in_generic_mode() -> Result {
    is_refused_at_once("generic")
}

#[test]
fn a_reset_rule_is_kept_and_goes_by_its_own_rank() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["attach"] = json!("generic");
    config["kernel"]["resets"] = json!("off");
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    let source = hosts.attacker.v4().to_string();
    gateway.cli(&["allow", "add", "192.0.2.1", "--reset"])?.refused(2, "deny add")?;
    let done = gateway.cli(&["deny", "add", &source, "--reset", "--for", "1h"])?.ok()?;
    assert!(
        done.stderr.contains("kernel.resets is off")
            || done.stdout.contains("kernel.resets is off")
    );
    assert_eq!(curl(&hosts.attacker, hosts.attacker.v4(), "1")?.0, Some(TIMED_OUT));
    gateway.kill9()?;
    config["kernel"]["resets"] = json!("100/s");
    gateway.write_config(config)?;
    gateway.start()?;
    assert_refused(curl(&hosts.attacker, hosts.attacker.v4(), "20")?);
    // The same origin and prefix: the later command holds.
    gateway.cli(&["deny", "add", &source])?.ok()?;
    assert_eq!(curl(&hosts.attacker, hosts.attacker.v4(), "1")?.0, Some(TIMED_OUT));
    let why = gateway.cli(&["why", &source, "--json"])?.ok()?.json()?;
    assert_eq!(why.pointer("/rule/action"), Some(&json!("deny")), "{why}");
    Ok(())
}

#[test]
fn without_the_kernel_door_user_space_resets_what_it_accepts() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts)?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["attach"] = json!("off");
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let attacker = &hosts.attacker;
    let mut open = attacker.namespace.enter(|| TcpStream::connect(attacker.target()))??;
    open.set_read_timeout(Some(PATIENCE))?;
    let is_open = || -> Result<bool> {
        Ok(gateway.cli(&["metrics"])?.ok()?.stdout.contains("gateway_connections_open 1"))
    };
    wait_for("the connection", PATIENCE, || Ok(is_open()?.then_some(())))?;
    let source = attacker.v4().to_string();
    gateway.cli(&["deny", "add", &source, "--reset"])?.ok()?;
    let ended = open.read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(ended, Err(ErrorKind::ConnectionReset), "what was open");
    let mut later = attacker.namespace.enter(|| TcpStream::connect(attacker.target()))??;
    later.set_read_timeout(Some(PATIENCE))?;
    let ended = later.read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(ended, Err(ErrorKind::ConnectionReset), "what came later");
    // And a denied one is closed in order.
    gateway.cli(&["deny", "add", &source])?.ok()?;
    let mut denied = attacker.namespace.enter(|| TcpStream::connect(attacker.target()))??;
    denied.set_read_timeout(Some(Duration::from_secs(5)))?;
    assert_eq!(denied.read(&mut [0; 1]).map_err(|error| error.kind()), Ok(0));
    Ok(())
}
