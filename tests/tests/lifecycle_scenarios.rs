//! How a gateway gives its place to another one, how it ends, and who may have bound its sockets.

use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::client::{Client, get};
use harness::frames::{Path, Sender};
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use harness::origin::{Origin, Reply};
use harness::successor::Successor;
use harness::topology::Topology;
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);
const DENIED: &str = "198.18.0.1";

/// Something that requests wait for.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicBool>);

impl Gate {
    fn pass(&self) -> Result {
        wait_for("the gate's opening", Duration::from_secs(30), || {
            Ok(self.0.load(Ordering::Relaxed).then_some(()))
        })
    }

    fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An origin whose `/slow` waits for the gate.
fn origin(hosts: &Topology, gate: &Gate) -> Result<Origin> {
    let gate = gate.clone();
    let address = SocketAddr::new(hosts.upstream.v4(), 9000);
    Origin::start(Some(&hosts.upstream.namespace), address, move |request| {
        if request.line.contains("/slow") && gate.pass().is_err() {
            return Reply::Close;
        }
        Reply::Answer(200, "served")
    })
}

fn pid(gateway: &Gateway<'_>) -> Result<Value> {
    gateway.status()?.get("pid").cloned().context("status without pid")
}

/// Requests on connections of their own, one after the other, and packets of a denied source, until told to end.
/// Answers how many requests got their answer and how many packets were sent.
fn traffic(hosts: &Topology, ending: &AtomicBool) -> Result<(u64, u64)> {
    let packets = AtomicU64::new(0);
    let frame = Path::new(&hosts.attacker, DENIED.parse()?).udp(9000, b"x")?;
    let sender = Sender::new(&hosts.attacker)?;
    let served = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ending.load(Ordering::Relaxed) && sender.send(&frame).is_ok() {
                packets.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut served = 0;
        while !ending.load(Ordering::Relaxed) {
            let answer = get(&hosts.client.namespace, None, hosts.client.target());
            let status = answer.map_err(|error| error.context(format!("after {served} requests")));
            ensure!(status?.status == 200);
            served += 1;
        }
        Ok(served)
    });
    ending.store(true, Ordering::Relaxed);
    Ok((served?, packets.into_inner()))
}

#[test]
fn a_replacement_refuses_no_connection_and_leaves_no_moment_without_enforcement() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let gate = Gate::default();
    let origin = origin(&hosts, &gate)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    let (first, before) = (pid(&gateway)?, gateway.kernel_packets("deny")?);
    let target = hosts.client.target();
    let mut busy = Client::connect(&hosts.client.namespace, None, target, PATIENCE)?;
    busy.send(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n")?;
    wait_for("a request in flight", PATIENCE, || {
        Ok(gateway.status()?["proxy"]["requests"]["active"].as_u64().filter(|active| *active > 0))
    })?;

    let ending = AtomicBool::new(false);
    let (served, sent) = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| traffic(&hosts, &ending));
        let replaced = (|| {
            for _ in 0..2 {
                // What the first one has in flight keeps it from ending until it is answered.
                let gate = gate.clone();
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(500));
                    gate.open();
                });
                gateway.replace()?;
            }
            Ok(())
        })();
        ending.store(true, Ordering::Relaxed);
        let traffic = traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        replaced.and(traffic)
    })?;
    assert!(served > 20 && sent > 20, "{served} requests, {sent} packets");
    assert_eq!(busy.receive()?.status, 200, "a request in flight is answered by the old one");
    assert_ne!(pid(&gateway)?, first);
    assert_eq!(gateway.kernel_packets("deny")? - before, sent, "every packet was dropped");
    gateway.cli(&["deny", "remove", DENIED])?.ok()?;
    gateway.stop()
}

#[test]
fn a_successor_that_breaks_off_leaves_the_old_one_as_it_was() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = origin(&hosts, &Gate::default())?;
    let config = hosts.config(origin.address);
    let mut gateway = Gateway::new(&hosts.gateway, config.clone())?;
    gateway.start()?;
    gateway.cli(&["deny", "add", DENIED])?.ok()?;
    let first = pid(&gateway)?;

    // It goes at once; it goes once store and kernel are its own.
    drop(Successor::of(&gateway)?);
    let mut successor = Successor::of(&gateway)?;
    successor.release()?;
    assert_eq!(get(&hosts.client.namespace, None, hosts.client.target())?.status, 200);
    drop(successor);
    gateway.cli(&["deny", "add", "198.18.0.9"])?.ok()?;
    let rules = gateway.cli(&["deny", "list"])?.ok()?.json_lines()?;
    assert!(rules.len() == 2 && rules.iter().all(|rule| rule["enforced"] == "both"), "{rules:?}");

    let mut broken = config.clone();
    broken["listen"] = json!([{"address": "nowhere"}]);
    gateway.write_config(broken)?;
    let refused = gateway.cli(&["run", "--replace"])?;
    assert!(refused.code == Some(2) && refused.stdout.contains("nowhere"), "{refused}");
    gateway.write_config(config)?;
    assert_eq!(pid(&gateway)?, first);
    gateway.replace()?;
    assert_ne!(pid(&gateway)?, first);
    gateway.stop()
}

#[test]
fn who_takes_over_in_the_background_is_the_main_process_of_the_service_from_then_on() -> Result {
    require_root()?;
    let host = Namespace::new("host")?;
    let good = config("127.0.0.1:8080".parse()?);
    let gateway = Gateway::unprivileged(Some(&host), good.clone())?;
    let path = gateway.socket().with_file_name("notify.sock");
    let manager = UnixDatagram::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    manager.set_read_timeout(Some(PATIENCE * 2))?;
    let told = || -> Result<String> {
        let mut message = [0; 256];
        let length = manager.recv(&mut message)?;
        Ok(String::from_utf8_lossy(&message[..length]).trim().to_owned())
    };
    let mut gateway = gateway.with_manager(path.clone());
    gateway.start()?;
    assert_eq!(told()?, "READY=1");
    let first = pid(&gateway)?;
    let upgrade = |gateway: &Gateway<'_>| -> Result<Option<i32>> {
        let mut command = gateway.command(&["run", "--replace", "--background"])?;
        command.arg(gateway.config()).env("NOTIFY_SOCKET", &path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(host.enter(|| command.status())??.code())
    };
    gateway.write_config(json!({"listen": "nowhere"}))?;
    assert_eq!(upgrade(&gateway)?, Some(2));
    assert_eq!(pid(&gateway)?, first, "the old one serves on");
    gateway.write_config(good)?;
    assert_eq!(upgrade(&gateway)?, Some(0));
    let second = pid(&gateway)?;
    assert_ne!(second, first);
    assert_eq!([told()?, told()?], [format!("MAINPID={second}"), "READY=1".to_owned()]);
    gateway.ended()?;
    assert_eq!(get(&host, None, "127.0.0.1:8080".parse()?)?.status, 200);
    gateway.cli(&["drain"])?.ok()?;
    assert_eq!(told()?, "STOPPING=1");
    wait_for("its end", PATIENCE, || Ok((!gateway.socket().exists()).then_some(())))
}

#[test]
fn replacing_nothing_is_a_start() -> Result {
    require_root()?;
    let host = Namespace::new("host")?;
    let mut gateway = Gateway::unprivileged(Some(&host), config("127.0.0.1:8080".parse()?))?;
    let mut command = gateway.command(&["run", "--replace"])?;
    command.stdin(Stdio::null());
    gateway.start_by(command)?;
    gateway.stop()
}

#[test]
fn who_was_started_with_its_signals_blocked_hears_them() -> Result {
    require_root()?;
    let host = Namespace::new("host")?;
    let mut gateway = Gateway::unprivileged(Some(&host), config("127.0.0.1:8080".parse()?))?;
    let daemon = gateway.command(&["run"])?;
    let mut command = Command::new("env");
    command
        .arg("--block-signal=HUP,TERM,INT,USR1")
        .arg(daemon.get_program())
        .args(daemon.get_args());
    command.env("GATEWAY_CONFIG", gateway.config()).stdin(Stdio::null());
    gateway.start_by(command)?;
    gateway.stop()
}

#[test]
fn drain_lets_what_is_in_flight_finish_and_ends_the_process() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let gate = Gate::default();
    let origin = origin(&hosts, &gate)?;
    let mut gateway = Gateway::new(&hosts.gateway, hosts.config(origin.address))?;
    gateway.start()?;
    let target = hosts.client.target();
    let mut busy = Client::connect(&hosts.client.namespace, None, target, PATIENCE)?;
    busy.send(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n")?;
    wait_for("a request in flight", PATIENCE, || {
        Ok(gateway.status()?["proxy"]["requests"]["active"].as_u64().filter(|active| *active > 0))
    })?;
    let said = gateway.cli(&["drain"])?.ok()?;
    assert!(said.stdout.contains("1 requests in flight"), "{said}");
    wait_for("the end of listening", PATIENCE, || {
        Ok(get(&hosts.client.namespace, None, target).is_err().then_some(()))
    })?;
    gate.open();
    let answer = busy.receive()?;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    gateway.ended()?;
    gateway.cli(&["drain"])?.refused(1, "no gateway")
}

fn config(listen: SocketAddr) -> Value {
    json!({
        "listen": [{"address": listen.to_string()}],
        "kernel": {"attach": "off"},
        "upstreams": {"service": {"endpoints": ["echo"]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    })
}

#[test]
fn sockets_that_the_service_manager_has_bound_are_listened_on() -> Result {
    require_root()?;
    let host = Namespace::new("host")?;
    let bound = host.enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let address = bound.local_addr()?;
    let mut config = config(address);
    config["workers"] = json!(2);
    let mut gateway = Gateway::unprivileged(Some(&host), config)?;
    let daemon = gateway.command(&["run"])?;
    // As systemd does it: the socket is descriptor 3, and its number is for this process alone.
    let mut command = Command::new("sh");
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
    command.args(["-c", script]).arg(daemon.get_program()).args(daemon.get_args());
    command.env("GATEWAY_CONFIG", gateway.config()).current_dir("/");
    command.stdin(OwnedFd::from(bound));
    gateway.start_by(command)?;
    for _ in 0..8 {
        assert_eq!(get(&host, None, address)?.status, 200);
    }
    gateway.stop()
}
