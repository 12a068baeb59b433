//! Who is attacked: each with what it has against that, configured as its manual says, in front of the same origin.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::client::Client;
use harness::gateway::{Gateway, packets_by_reason};
use harness::namespace::Namespace;
use harness::topology::{PORT, Topology};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::reaction::took;

/// What the peers know honest clients by.
const KEY: &str = "an-honest-client-of-the-bench";
/// Whom the gateway knows.
const CONSUMERS: [&str; 4] = ["ada", "ben", "cleo", "dan"];
const ORIGIN_PORT: u16 = 9000;
const START: Duration = Duration::from_secs(10);

/// One of those who are attacked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The gateway, both doors, what it learns enforced by the kernel.
    Loop,
    /// The gateway with its kernel door shut.
    WithoutKernel,
    Nginx,
    Haproxy,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Loop, Self::WithoutKernel, Self::Nginx, Self::Haproxy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Loop => "gateway",
            Self::WithoutKernel => "gateway-without-kernel",
            Self::Nginx => "nginx-limit-req",
            Self::Haproxy => "haproxy-stick-table",
        }
    }
}

/// One of them, running, with the origin behind it.
pub(super) struct Subject<'h> {
    keys: Vec<String>,
    gateway: Option<Gateway<'h>>,
    /// These end with it.
    _programs: Vec<Program>,
    _folder: TempDir,
}

impl<'h> Subject<'h> {
    /// `bans_per_minute`: other than the default, of the gateway.
    pub(super) fn start(
        kind: Kind,
        bans_per_minute: Option<u32>,
        hosts: &'h Topology,
        binary: &Path,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("gateway-bench-").tempdir()?;
        // As root, workers run as users who must still reach it.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        let origin = SocketAddr::new(hosts.upstream.v4(), ORIGIN_PORT);
        let behind =
            nginx(&hosts.upstream.namespace, folder.path(), "origin", &origin_conf(origin))?;
        let mut programs = vec![behind];
        let (mut keys, mut gateway) = (vec![KEY.to_owned()], None);
        match kind {
            Kind::Loop | Kind::WithoutKernel => {
                let feedback = match bans_per_minute {
                    Some(most) => json!({"ceiling": {"bans_per_minute": most}}),
                    None => json!({}),
                };
                let config = gateway_config(hosts, origin, kind == Kind::Loop, feedback);
                let mut new = Gateway::new(&hosts.gateway, config)?.with_binary(binary.to_owned());
                new.start()?;
                keys = CONSUMERS
                    .map(|consumer| create_key(&new, consumer))
                    .into_iter()
                    .collect::<Result<_>>()?;
                gateway = Some(new);
            }
            Kind::Nginx => {
                let conf = nginx_conf(origin);
                programs.push(nginx(&hosts.gateway, folder.path(), "subject", &conf)?);
            }
            Kind::Haproxy => {
                let file = folder.path().join("haproxy.cfg");
                fs::write(&file, haproxy_conf(origin))?;
                let mut command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(file);
                programs.push(Program::start(&hosts.gateway, &mut command)?);
            }
        }
        Ok(Self { keys, gateway, _programs: programs, _folder: folder })
    }

    /// What honest clients show.
    pub(super) fn keys(&self) -> &[String] {
        &self.keys
    }

    /// Whether it serves those with the key and refuses others.
    pub(super) fn check(&mut self, hosts: &Topology) -> Result<()> {
        let (client, key) = (&hosts.client, self.keys.first().context("no key")?);
        let target = client.target();
        let ask = |key: &str| -> Result<u16> {
            client.namespace.enter(|| -> Result<u16> {
                let mut client = Client::connect_here(None, target, START)?;
                let request = format!("GET / HTTP/1.1\r\nHost: api\r\nX-API-Key: {key}\r\n\r\n");
                client.send(request.as_bytes())?;
                Ok(client.receive()?.status)
            })?
        };
        harness::wait_for("the subject", START, || {
            Ok(ask(key).ok().filter(|status| *status == 200))
        })?;
        let refused = ask("wrong")?;
        ensure!(refused == 401, "a wrong key was answered with {refused}");
        Ok(())
    }

    /// What only it can say.
    pub(super) fn figures(&self) -> Result<Vec<(&'static str, f64)>> {
        let Some(gateway) = &self.gateway else { return Ok(Vec::new()) };
        let status = gateway.status()?;
        let packets = packets_by_reason(&status);
        let of = |reason: &str| packets.get(reason).and_then(Value::as_f64).unwrap_or(0.0);
        let bans = gateway.cli(&["bans", "list", "--json"])?.ok()?.json_lines()?.len();
        let dropped = [
            "deny",
            "reset",
            "connections",
            "limit",
            "unknown_sources",
            "host_udp",
            "host_fragments",
        ];
        let dropped = dropped.map(of).iter().sum();
        let mut figures = vec![("bans", bans as f64), ("dropped_in_kernel", dropped)];
        if let Some([_, p50, p99]) = took(&status, "reaction") {
            figures.extend([("reaction_p50_ms", p50), ("reaction_p99_ms", p99)]);
        }
        Ok(figures)
    }

    /// How often, and how long, from the evidence to the map, and from there to the disk.
    pub(super) fn took(&self) -> Result<[[f64; 3]; 2]> {
        let status = self.gateway.as_ref().context("only of the gateway")?.status()?;
        let of = |name| took(&status, name).with_context(|| format!("no `{name}` in the status"));
        Ok([of("reaction")?, of("durable")?])
    }
}

fn gateway_config(
    hosts: &Topology,
    origin: SocketAddr,
    with_kernel: bool,
    feedback: Value,
) -> Value {
    let mut config = hosts.config(origin);
    let kernel = json!({
        "interfaces": [hosts.client.gateway_interface, hosts.attacker.gateway_interface],
        "attach": if with_kernel { "native" } else { "off" },
        "default_profile": "public",
        "profiles": {"public": {"packets": "200000/s burst 400000", "connections": "200/s burst 400"}},
        "unknown_sources": "2000/s burst 4000",
        "host_limits": {"udp": "1000/s burst 1000", "fragments": "1000/s burst 1000"},
    });
    let rest = json!({
        "workers": 1,
        "kernel": kernel,
        "auth": {"partners": {"api_key": {"header": "X-API-Key"}}},
        "feedback": feedback,
        "routes": [{"match": {"path": "/{rest*}"}, "auth": "partners", "upstream": "origin"}],
    });
    if let (Some(config), Some(rest)) = (config.as_object_mut(), rest.as_object()) {
        config.extend(rest.clone());
    }
    config
}

fn create_key(gateway: &Gateway<'_>, consumer: &str) -> Result<String> {
    let made = gateway.cli(&["keys", "create", "--consumer", consumer, "--json"])?.ok()?.json()?;
    Ok(made.get("key").and_then(Value::as_str).context("no key was made")?.to_owned())
}

fn origin_conf(listen: SocketAddr) -> String {
    format!(
        "daemon off; worker_processes 1; pid origin.pid;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 1000000000;\n\
         server {{ listen {listen}; location / {{ return 200 'hello from the origin'; }} }} }}\n"
    )
}

/// A wrong key is refused behind `limit_req`, so that guessing is limited by address; a good one is not limited.
fn nginx_conf(origin: SocketAddr) -> String {
    format!(
        "daemon off; worker_processes 1; pid subject.pid;\n\
         events {{ worker_connections 8192; }}\n\
         http {{ access_log off; error_log stderr crit; keepalive_requests 1000000000;\n\
         map $http_x_api_key $known {{ default 0; \"{KEY}\" 1; }}\n\
         map $known $stranger {{ 0 $binary_remote_addr; 1 \"\"; }}\n\
         limit_req_zone $stranger zone=strangers:32m rate=20r/m; limit_req_status 429;\n\
         upstream origin {{ server {origin}; keepalive 64; }}\n\
         server {{ listen {PORT} backlog=4096;\n\
         location / {{ limit_req zone=strangers burst=20 nodelay; auth_request /known;\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_pass http://origin; }}\n\
         location = /known {{ internal; if ($known = 0) {{ return 401; }} return 204; }} }} }}\n"
    )
}

/// Whoever showed twenty wrong keys within a minute is turned away as it connects.
fn haproxy_conf(origin: SocketAddr) -> String {
    format!(
        "global\n  maxconn 8192\n  nbthread 1\n\
         defaults\n  mode http\n  timeout connect 2s\n  timeout client 30s\n  timeout server 30s\n\
         \x20 http-reuse always\n\
         frontend api\n  bind :{PORT} backlog 4096\n\
         \x20 stick-table type ip size 200k expire 10m store gpc0,gpc0_rate(60s)\n\
         \x20 tcp-request connection track-sc0 src\n\
         \x20 tcp-request connection reject if {{ sc0_gpc0_rate gt 20 }}\n\
         \x20 acl known req.hdr(x-api-key) -m str {KEY}\n\
         \x20 http-request sc-inc-gpc0(0) if !known\n\
         \x20 http-request deny deny_status 429 if !known {{ sc0_gpc0_rate gt 20 }}\n\
         \x20 http-request deny deny_status 401 if !known\n\
         \x20 default_backend origin\n\
         backend origin\n  server origin {origin}\n"
    )
}

fn nginx(namespace: &Namespace, folder: &Path, name: &str, conf: &str) -> Result<Program> {
    let prefix = folder.join(name);
    fs::create_dir(&prefix)?;
    fs::set_permissions(&prefix, Permissions::from_mode(0o755))?;
    let file = prefix.join("nginx.conf");
    fs::write(&file, conf)?;
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-p"]).arg(&prefix).arg("-c").arg(&file);
    Program::start(namespace, &mut command)
}

/// A program and all that it started.
struct Program(Child);

impl Program {
    fn start(namespace: &Namespace, command: &mut Command) -> Result<Self> {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin")).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(namespace.spawn(command)?))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(leader) = i32::try_from(self.0.id()) {
            killpg(Pid::from_raw(leader), Signal::SIGKILL).ok();
        }
        drop(self.0.wait());
    }
}
