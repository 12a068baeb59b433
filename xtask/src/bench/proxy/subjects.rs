//! The proxies that are compared and the origin behind them: started with equal work, pinned, checked, and ended with
//! everything that they started when they are dropped.

use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::client::Client;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Cpus;

/// Ours, as the report calls it.
pub(super) const GATEWAY: &str = "gateway";
/// Ours, in another build.
pub(super) const BASELINE: &str = "gateway-baseline";

/// What the origin answers.
pub(super) const BODY: &str = concat!(
    r#"{"id":4711,"name":"Ada Lovelace","mail":"ada@example.com","#,
    r#""roles":["reader","writer"],"active":true,"score":98.2500}"#
);

const START: Duration = Duration::from_secs(10);
const END: Duration = Duration::from_secs(3);

/// Everything that runs.
pub(super) struct Field {
    /// In the order of the first round.
    pub(super) subjects: Vec<Subject>,
    /// These end after the subjects.
    _origin: Running,
    _folder: TempDir,
}

/// One proxy.
pub(super) struct Subject {
    /// As the report calls it.
    pub(super) name: &'static str,
    /// Where it listens.
    pub(super) address: SocketAddr,
    is_http: bool,
    processes: Vec<i32>,
    _running: Running,
}

/// A program and all that it started.
pub(super) struct Running(Child);

impl Field {
    pub(super) fn new(binary: &Path, baseline: Option<&Path>, cpus: Cpus) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("gateway-bench-").tempdir()?;
        // As root, workers run as users who must still reach it.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        let setting = Setting { folder: folder.path(), cpus, origin: free_address()? };
        let origin = setting.nginx("origin", cpus.rest, &origin_server(setting.origin))?;
        answering(setting.origin)?;
        let mut subjects = vec![
            setting.gateway(GATEWAY, binary)?,
            setting.nginx_proxy()?,
            setting.haproxy("haproxy", true)?,
            setting.haproxy("haproxy-tcp", false)?,
        ];
        if let Some(baseline) = baseline {
            subjects.push(setting.gateway(BASELINE, baseline)?);
        }
        Ok(Self { subjects, _origin: origin, _folder: folder })
    }
}

struct Setting<'a> {
    folder: &'a Path,
    cpus: Cpus,
    origin: SocketAddr,
}

impl Setting<'_> {
    fn gateway(&self, name: &'static str, binary: &Path) -> anyhow::Result<Subject> {
        let address = free_address()?;
        let config = json!({
            "listen": [{"address": address}],
            "workers": 1,
            "state": {"dir": self.folder.join(format!("{name}.state"))},
            "admin": {"socket": self.folder.join(format!("{name}.sock"))},
            "kernel": {"attach": "off"},
            "upstreams": {"origin": {"endpoints": [self.origin]}},
            "routes": [{"match": {"path": "/{rest*}"}, "upstream": "origin"}],
        });
        let file = self.write(&format!("{name}.yaml"), &config.to_string())?;
        let mut command = pinned(self.cpus.subject, &binary.to_string_lossy());
        self.subject(name, address, true, command.arg("run").arg(file))
    }

    fn nginx_proxy(&self) -> anyhow::Result<Subject> {
        let address = free_address()?;
        let running =
            self.nginx("nginx", self.cpus.subject, &proxy_server(address, self.origin))?;
        Subject::new("nginx", address, true, running)
    }

    fn nginx(&self, name: &str, cpu: usize, server: &str) -> anyhow::Result<Running> {
        let folder = self.folder.join(name);
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        let config = nginx_config(server);
        let file = self.write(&format!("{name}.conf"), &config)?;
        let mut command = pinned(cpu, "nginx");
        // Where it is compiled to log to is not everybody's.
        command.args(["-e", "stderr", "-p"]).arg(&folder).arg("-c").arg(file);
        Running::start(command.stderr(self.log(name)?))
    }

    fn haproxy(&self, name: &'static str, is_http: bool) -> anyhow::Result<Subject> {
        let address = free_address()?;
        let config = haproxy_config(address, self.origin, is_http);
        let file = self.write(&format!("{name}.cfg"), &config)?;
        let mut command = pinned(self.cpus.subject, "haproxy");
        self.subject(name, address, is_http, command.args(["-db", "-f"]).arg(file))
    }

    fn subject(
        &self,
        name: &'static str,
        address: SocketAddr,
        is_http: bool,
        command: &mut Command,
    ) -> anyhow::Result<Subject> {
        let running = Running::start(command.stdout(self.log(name)?).stderr(self.log(name)?))?;
        let log = || fs::read_to_string(self.folder.join(format!("{name}.log")));
        Subject::new(name, address, is_http, running)
            .with_context(|| format!("{name} said\n{}", log().unwrap_or_default()))
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<std::path::PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn log(&self, name: &str) -> anyhow::Result<File> {
        let path = self.folder.join(format!("{name}.log"));
        Ok(File::options().create(true).append(true).open(path)?)
    }
}

impl Subject {
    fn new(
        name: &'static str,
        address: SocketAddr,
        is_http: bool,
        running: Running,
    ) -> anyhow::Result<Self> {
        answering(address)?;
        let processes = running.processes()?;
        Ok(Self { name, address, is_http, processes, _running: running })
    }

    /// Whether it does the work that it is measured at.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.check_answers().with_context(|| format!("{} does not do its work", self.name))
    }

    fn check_answers(&self) -> anyhow::Result<()> {
        let mut client = Client::connect_here(None, self.address, START)?;
        let answer = client.get("/")?;
        ensure!(answer.status == 200 && answer.text() == BODY, "it answered {answer:?}");
        if !self.is_http {
            return Ok(());
        }
        let seen = client.get("/seen")?;
        let id = seen.header("x-request-id").context("the client got no X-Request-Id")?.to_owned();
        let seen: Value = serde_json::from_str(&seen.text())?;
        let host = seen.get("host").cloned().unwrap_or_default();
        let expected = json!({
            "host": host, "forwarded_host": host, "for": "127.0.0.1", "proto": "http", "id": id
        });
        ensure!(seen == expected, "the origin saw {seen}, not {expected}");
        ensure!(id.len() >= 32 && host != "", "the origin saw {seen}");
        Ok(())
    }

    /// Time on the CPU since the start, of all its processes.
    pub(super) fn cpu_ns(&self) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for process in &self.processes {
            for task in fs::read_dir(format!("/proc/{process}/task"))? {
                let schedstat = fs::read_to_string(task?.path().join("schedstat"))?;
                let ns = schedstat.split(' ').next().context("schedstat is empty")?;
                sum += ns.parse::<f64>()?;
            }
        }
        Ok(sum)
    }

    /// Memory that is resident, of all its processes.
    pub(super) fn rss_kib(&self) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for process in &self.processes {
            let status = fs::read_to_string(format!("/proc/{process}/status"))?;
            let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let rss = rss.and_then(|rss| rss.trim().strip_suffix(" kB")).context("no VmRSS")?;
            sum += rss.trim().parse::<f64>()?;
        }
        Ok(sum)
    }
}

impl Running {
    /// Starts it in a process group of its own: Ctrl-C is for the bench, which ends it.
    pub(super) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let name = format!("{command:?}");
        let child = command.stdin(Stdio::null()).process_group(0).spawn();
        Ok(Self(child.with_context(|| format!("cannot start {name}"))?))
    }

    pub(super) fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }

    pub(super) fn stdout(&mut self) -> Option<&mut ChildStdout> {
        self.0.stdout.as_mut()
    }

    /// All processes of its group.
    fn processes(&self) -> anyhow::Result<Vec<i32>> {
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that has just ended is nobody's.
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            if group(&stat) == Some(self.0.id()) {
                processes.push(process);
            }
        }
        Ok(processes)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Ok(leader) = i32::try_from(self.0.id()).map(Pid::from_raw) else { return };
        // The leader is asked first, because only it can collect its workers.
        kill(leader, Signal::SIGTERM).ok();
        harness::wait_for("its end", END, || Ok(self.0.try_wait()?)).ok();
        // Whatever is left of them.
        killpg(leader, Signal::SIGKILL).ok();
        drop(self.0.wait());
    }
}

/// The process group in a line of `/proc/PID/stat`. The name before it may contain anything.
fn group(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

/// A program that may be where only root looks.
pub(super) fn command(program: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("env");
    command.arg(program).env("PATH", format!("{path}:/usr/sbin"));
    command
}

/// A program on one CPU.
pub(super) fn pinned(cpu: usize, program: &str) -> Command {
    let mut command = command("taskset");
    command.args(["--cpu-list", &cpu.to_string(), program]);
    command
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn answering(address: SocketAddr) -> anyhow::Result<()> {
    let what = format!("listening on {address}");
    harness::wait_for(&what, START, || Ok(TcpStream::connect(address).ok().map(drop)))
}

fn nginx_config(server: &str) -> String {
    format!(
        "daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; tcp_nodelay on; default_type application/json;
  keepalive_timeout 1h; keepalive_requests 1000000000;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f;
  uwsgi_temp_path u; scgi_temp_path s;
  {server}
}}
"
    )
}

fn origin_server(address: SocketAddr) -> String {
    let fields = [
        ("host", "host"),
        ("for", "x_forwarded_for"),
        ("proto", "x_forwarded_proto"),
        ("forwarded_host", "x_forwarded_host"),
        ("id", "x_request_id"),
    ];
    let seen = fields.map(|(key, name)| format!(r#""{key}":"$http_{name}""#)).join(",");
    format!(
        "server {{ listen {address};
    location / {{ return 200 '{BODY}'; }}
    location = /seen {{ return 200 '{{{seen}}}'; }} }}"
    )
}

fn proxy_server(address: SocketAddr, origin: SocketAddr) -> String {
    format!(
        "upstream origin {{ server {origin}; keepalive 64; keepalive_requests 1000000000; }}
  server {{ listen {address};
    add_header X-Request-Id $request_id;
    location / {{
      proxy_pass http://origin; proxy_http_version 1.1;
      proxy_set_header Connection ''; proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Request-Id $request_id;
    }} }}"
    )
}

fn haproxy_config(address: SocketAddr, origin: SocketAddr, is_http: bool) -> String {
    let work = if is_http {
        "  mode http
  option forwardfor
  unique-id-format %{+X}o%ci%cp%fi%fp%Ts%rt%pid
  unique-id-header X-Request-Id
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-response set-header X-Request-Id %[unique-id]
  http-reuse always"
    } else {
        "  mode tcp"
    };
    format!(
        "global
  nbthread 1
  maxconn 4096
defaults
  timeout connect 1s
  timeout client 75s
  timeout server 60s
listen bench
  bind {address}
{work}
  server origin {origin}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_small_json() {
        assert_eq!(BODY.len(), 116);
        assert!(serde_json::from_str::<Value>(BODY).is_ok());
    }

    #[test]
    fn a_group_is_found_behind_any_name() {
        assert_eq!(group("12 (a) b (c)) S 1 99 99 0 -1"), Some(99));
        assert_eq!(group(""), None);
    }
}
