//! The proxies that are compared: started with equal work, pinned, checked, and ended with everything that they started
//! when they are dropped.

use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::client::Client;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Cpus;
use super::cases::{Case, Port, With};
use super::configs::{self, Places};
use super::load::Target;
use super::origins;

/// Ours, as the report calls it.
pub(super) const GATEWAY: &str = "gateway";
/// Ours, in another build.
pub(super) const BASELINE: &str = "gateway-baseline";
/// Ours, with ten routes where the other has ten thousand.
pub(super) const TEN_ROUTES: &str = "gateway-ten-routes";
/// Ours, with ten thousand routes.
pub(super) const MANY_ROUTES: &str = "gateway-many-routes";
const RELAY: &str = "haproxy-tcp";

const START: Duration = Duration::from_secs(10);
const END: Duration = Duration::from_secs(15);

/// Everything that runs.
pub(super) struct Field {
    /// In the order of the first round.
    pub(super) subjects: Vec<Subject>,
    binary: PathBuf,
    /// These end after the subjects.
    _origins: [Running; 2],
    folder: TempDir,
}

/// One proxy.
pub(in crate::bench) struct Subject {
    /// As the report calls it.
    pub(in crate::bench) name: &'static str,
    places: Places,
    processes: Vec<i32>,
    _running: Running,
}

/// A program and all that it started.
pub(in crate::bench) struct Running(Child);

impl Field {
    pub(super) fn new(binary: &Path, baseline: Option<&Path>, cpus: Cpus) -> anyhow::Result<Self> {
        let (mut field, behind) = Self::empty(binary, cpus)?;
        let setting = Setting { folder: field.folder.path(), cpus, binary };
        field.subjects = vec![
            setting.gateway(GATEWAY, &behind, 0)?,
            setting.nginx(&behind)?,
            setting.haproxy("haproxy", &behind)?,
            setting.haproxy(RELAY, &behind)?,
            setting.gateway(TEN_ROUTES, &behind, 10)?,
            setting.gateway(MANY_ROUTES, &behind, 10_000)?,
        ];
        if let Some(binary) = baseline {
            let other = Setting { binary, ..setting }.gateway(BASELINE, &behind, 0)?;
            field.subjects.push(other);
        }
        Ok(field)
    }

    /// The gateway without anybody to compare it with.
    pub(super) fn alone(binary: &Path, cpus: Cpus) -> anyhow::Result<Self> {
        let (mut field, behind) = Self::empty(binary, cpus)?;
        let setting = Setting { folder: field.folder.path(), cpus, binary };
        field.subjects = vec![setting.gateway(GATEWAY, &behind, 0)?];
        Ok(field)
    }

    /// What is behind the subjects, and none of them.
    fn empty(binary: &Path, cpus: Cpus) -> anyhow::Result<(Self, configs::Origins)> {
        let folder = tempfile::Builder::new().prefix("gateway-bench-").tempdir()?;
        // As root, workers run as users who must still reach it.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        configs::certificate(folder.path())?;
        let [origin, grpc] = free_addresses()?;
        let setting = Setting { folder: folder.path(), cpus, binary };
        let origins = [setting.origin(origin)?, setting.grpc_origin(grpc)?];
        let behind = configs::Origins { origin, grpc, echo: origins::echo(cpus.rest)? };
        let binary = binary.to_owned();
        Ok((Self { subjects: Vec::new(), binary, _origins: origins, folder }, behind))
    }

    /// Those who take part in a case.
    pub(super) fn of(&self, case: &Case) -> Vec<&Subject> {
        let takes_part = |subject: &&Subject| match subject.name {
            TEN_ROUTES | MANY_ROUTES => case.field == With::Routes,
            _ if case.field == With::Routes => false,
            RELAY => case.field == With::Relay,
            _ => true,
        };
        self.subjects.iter().filter(takes_part).collect()
    }

    /// The gateway with many routes.
    pub(super) fn many_routes(&self) -> anyhow::Result<&Subject> {
        self.subjects.iter().find(|subject| subject.name == MANY_ROUTES).context("no such gateway")
    }

    /// Gives it forty thousand to read.
    pub(super) fn write_many_routes(&self) -> anyhow::Result<()> {
        let file = self.many_routes_file();
        let config: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        let config = configs::with_routes(config, 40_000);
        Ok(fs::write(&file, serde_json::to_string_pretty(&config)?)?)
    }

    /// Lets it read them.
    pub(super) fn reload_many_routes(&self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(self.many_routes_file()).arg("reload");
        let output = command.output()?;
        ensure!(output.status.success(), "reload: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn many_routes_file(&self) -> PathBuf {
        self.folder.path().join(format!("{MANY_ROUTES}.yaml"))
    }

    /// Ends the subjects and answers what the gateway noted of itself.
    pub(super) fn into_profile(mut self) -> anyhow::Result<Vec<u8>> {
        self.subjects.clear();
        profile(self.folder.path(), GATEWAY)
    }

    /// Empties the access logs: they are written, and nobody reads them.
    pub(super) fn forget_logs(&self) -> anyhow::Result<()> {
        forget_logs(self.folder.path())
    }
}

/// Empties the access logs in a folder.
pub(in crate::bench) fn forget_logs(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "access") {
            File::options().write(true).open(path)?.set_len(0)?;
        }
    }
    Ok(())
}

/// What an instrumented build noted in a folder until it ended.
pub(in crate::bench) fn profile(folder: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let profile = fs::read(folder.join(profile_name(name)))?;
    ensure!(!profile.is_empty(), "the build that counts wrote nothing: did it end by itself?");
    Ok(profile)
}

fn profile_name(name: &str) -> String {
    format!("{name}.profile")
}

/// Where subjects are, and of which build.
pub(in crate::bench) struct Setting<'a> {
    pub(in crate::bench) folder: &'a Path,
    pub(in crate::bench) cpus: Cpus,
    pub(in crate::bench) binary: &'a Path,
}

impl Setting<'_> {
    fn gateway(
        &self,
        name: &'static str,
        behind: &configs::Origins,
        routes: usize,
    ) -> anyhow::Result<Subject> {
        // One listener speaks both without TLS.
        let [plain, tls] = free_addresses()?;
        let places = Places { plain, tls, h2c: plain };
        let config = configs::gateway(name, self.folder, &places, behind);
        self.configured(name, places, &configs::with_routes(config, routes))
    }

    /// A gateway of this configuration, which is kept as `NAME.yaml`.
    pub(in crate::bench) fn configured(
        &self,
        name: &'static str,
        places: Places,
        config: &Value,
    ) -> anyhow::Result<Subject> {
        let file = self.write(&format!("{name}.yaml"), &config.to_string())?;
        let mut command = pinned(self.cpus.subject, &self.binary.to_string_lossy());
        // A build that notes what it does writes that here when it ends; any other one does not look.
        let profile = self.write(&profile_name(name), "")?;
        fs::set_permissions(&profile, Permissions::from_mode(0o666))?;
        command.env("LLVM_PROFILE_FILE", profile);
        self.subject(name, places, command.arg("run").arg(file))
    }

    fn nginx(&self, behind: &configs::Origins) -> anyhow::Result<Subject> {
        let places = Places::free()?;
        let config = configs::nginx(self.folder, &places, behind);
        let mut command = self.nginx_command("nginx", self.cpus.subject, &config)?;
        self.subject("nginx", places, &mut command)
    }

    fn haproxy(&self, name: &'static str, behind: &configs::Origins) -> anyhow::Result<Subject> {
        let places = Places::free()?;
        let config = match name {
            RELAY => configs::relay(&places, behind),
            _ => configs::haproxy(self.folder, &places, behind),
        };
        let file = self.write(&format!("{name}.cfg"), &config)?;
        let mut command = pinned(self.cpus.subject, "haproxy");
        command.args(["-db", "-f"]).arg(file);
        self.subject(name, places, &mut command)
    }

    /// The service behind them.
    pub(in crate::bench) fn origin(&self, address: SocketAddr) -> anyhow::Result<Running> {
        let files = self.folder.join("files");
        fs::create_dir_all(&files)?;
        for (name, bytes) in origins::FILES {
            fs::write(files.join(name), vec![b'x'; bytes])?;
        }
        let config = configs::origin(&files, address);
        let running =
            Running::start(&mut self.nginx_command("origin", self.cpus.rest, &config)?)?;
        answering(address)?;
        Ok(running)
    }

    fn grpc_origin(&self, address: SocketAddr) -> anyhow::Result<Running> {
        let files = self.folder.join("files/grpc");
        fs::create_dir_all(&files)?;
        fs::write(files.join("answer"), origins::GRPC_MESSAGE)?;
        let mut command = pinned(self.cpus.rest, "nghttpd");
        command.args(["--no-tls", "--trailer=grpc-status: 0", "--address=127.0.0.1"]);
        command.arg("--htdocs").arg(self.folder.join("files")).arg(address.port().to_string());
        let running = Running::start(command.stdout(Stdio::null()).stderr(self.log("nghttpd")?))?;
        answering(address)?;
        Ok(running)
    }

    fn nginx_command(&self, name: &str, cpu: usize, config: &str) -> anyhow::Result<Command> {
        let folder = self.folder.join(name);
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        let file = self.write(&format!("{name}.conf"), config)?;
        let mut command = pinned(cpu, "nginx");
        // Where it is compiled to log to is not everybody's.
        command.args(["-e", "stderr", "-p"]).arg(&folder).arg("-c").arg(file);
        command.stderr(self.log(name)?);
        Ok(command)
    }

    fn subject(
        &self,
        name: &'static str,
        places: Places,
        command: &mut Command,
    ) -> anyhow::Result<Subject> {
        // What HAProxy writes there is its access log.
        let access = self.folder.join(format!("{name}.access"));
        let access_file = File::options().create(true).append(true).open(&access)?;
        // The gateway opens it as the user that it becomes.
        fs::set_permissions(&access, Permissions::from_mode(0o666))?;
        let running = Running::start(command.stdout(access_file).stderr(self.log(name)?))?;
        let log = || fs::read_to_string(self.folder.join(format!("{name}.log")));
        Subject::new(name, places, running)
            .with_context(|| format!("{name} said\n{}", log().unwrap_or_default()))
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn log(&self, name: &str) -> anyhow::Result<File> {
        let path = self.folder.join(format!("{name}.log"));
        Ok(File::options().create(true).append(true).open(path)?)
    }
}

impl Places {
    fn free() -> anyhow::Result<Self> {
        let [plain, tls, h2c] = free_addresses()?;
        Ok(Self { plain, tls, h2c })
    }
}

impl Subject {
    fn new(name: &'static str, places: Places, running: Running) -> anyhow::Result<Self> {
        answering(places.plain)?;
        let processes = running.processes()?;
        Ok(Self { name, places, processes, _running: running })
    }

    /// Its listener without TLS.
    pub(in crate::bench) fn plain(&self) -> Target {
        Target { address: self.places.plain, is_tls: false }
    }

    /// What to load.
    pub(super) fn port(&self, port: Port) -> Target {
        let Places { tls, h2c, .. } = self.places;
        match port {
            Port::Plain => self.plain(),
            Port::Tls => Target { address: tls, is_tls: true },
            Port::H2c => Target { address: h2c, is_tls: false },
        }
    }

    /// Whether it does the work that it is measured at.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.check_answers().with_context(|| format!("{} does not do its work", self.name))
    }

    fn check_answers(&self) -> anyhow::Result<()> {
        let mut client = Client::connect_here(None, self.places.plain, START)?;
        let answer = client.get("/")?;
        ensure!(answer.status == 200 && answer.text() == origins::BODY, "it answered {answer:?}");
        if self.name == RELAY {
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
    pub(in crate::bench) fn cpu_ns(&self) -> anyhow::Result<f64> {
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

/// Some of loopback that nobody listens at. All are held until the last is found, for one that is free again may be
/// given out twice.
pub(in crate::bench) fn free_addresses<const N: usize>() -> anyhow::Result<[SocketAddr; N]> {
    let listen = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let held = (0..N).map(listen).collect::<Result<Vec<_>, _>>()?;
    let addresses = held.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    addresses.try_into().map_err(|_| anyhow::anyhow!("not {N} free addresses"))
}

fn answering(address: SocketAddr) -> anyhow::Result<()> {
    let what = format!("listening on {address}");
    harness::wait_for(&what, START, || Ok(TcpStream::connect(address).ok().map(drop)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_small_json() {
        assert_eq!(origins::BODY.len(), 116);
        assert!(serde_json::from_str::<Value>(origins::BODY).is_ok());
    }

    #[test]
    fn a_group_is_found_behind_any_name() {
        assert_eq!(group("12 (a) b (c)) S 1 99 99 0 -1"), Some(99));
        assert_eq!(group(""), None);
    }
}
