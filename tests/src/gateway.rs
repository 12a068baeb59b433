//! The gateway's own process as a guard: a configuration, a folder, a private BPF file system for its pins, the
//! daemon and its command line. Dropping it ends the process and everything that it left in the kernel.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use crate::metrics::Page;
use crate::namespace::{Namespace, is_leftover, unique};
use crate::wall_clock::WallClock;
use crate::{Result, wait_for};

pub(crate) const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(20);
const COMMAND: Duration = Duration::from_secs(60);
/// The user and group `nobody`.
pub const NOBODY: u32 = 65_534;

/// What a command of the gateway answered.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The exit status; `None` after a signal.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Itself if the exit status is 0, else an error with all that it said.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.code == Some(0), "exit status {:?}, not 0: {self}", self.code);
        Ok(self)
    }

    /// Fails unless the exit status is `code` and the error output has `text` in it, in any case.
    pub fn refused(&self, code: i32, text: &str) -> Result {
        ensure!(self.code == Some(code), "exit status {:?}, not {code}: {self}", self.code);
        let complaint = self.stderr.to_lowercase();
        ensure!(complaint.contains(&text.to_lowercase()), "{text:?} is not in: {self}");
        Ok(())
    }

    /// The one JSON object on standard output.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not one JSON object: {self}"))
    }

    /// The JSON objects on standard output, one a line.
    pub fn json_lines(&self) -> Result<Vec<Value>> {
        let parse = |line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"));
        self.stdout.lines().map(parse).collect()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { code, stdout, stderr } = self;
        write!(formatter, "status {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// A gateway, running or not. It must not outlive its namespace.
#[derive(Debug)]
pub struct Gateway<'n> {
    folder: PathBuf,
    /// Where it is not the one that was built beside the test.
    binary: Option<PathBuf>,
    namespace: Option<&'n Namespace>,
    unprivileged: bool,
    embedded: bool,
    notify: Option<PathBuf>,
    wall_clock: Option<WallClock>,
    child: Option<Child>,
}

impl<'n> Gateway<'n> {
    /// A gateway as root in `namespace`, with `config` (JSON is YAML) to which state, admin socket and pins are added.
    pub fn new(namespace: &'n Namespace, config: Value) -> Result<Self> {
        let gateway = Self::prepare(Some(namespace), false)?;
        let pins = gateway.folder.join("bpf");
        fs::create_dir(&pins)?;
        mount(Some("bpf"), &pins, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("cannot mount a BPF file system at {pins:?}"))?;
        gateway.write_config(config)?;
        Ok(gateway)
    }

    /// A gateway without privileges: as `nobody` when the test is root, else as whoever runs the test.
    pub fn unprivileged(namespace: Option<&'n Namespace>, config: Value) -> Result<Self> {
        let gateway = Self::prepare(namespace, true)?;
        gateway.write_config(config)?;
        Ok(gateway)
    }

    /// As [`Self::unprivileged`], with the configuration that is embedded in the binary.
    pub fn embedded(namespace: Option<&'n Namespace>) -> Result<Self> {
        let mut gateway = Self::prepare(namespace, true)?;
        gateway.embedded = true;
        Ok(gateway)
    }

    /// Runs this binary instead of the one that was built beside the test.
    pub fn with_binary(mut self, binary: PathBuf) -> Self {
        self.binary = Some(binary);
        self
    }

    /// Lets the daemon tell a service manager that listens there how it stands.
    pub fn with_manager(mut self, socket: PathBuf) -> Self {
        self.notify = Some(socket);
        self
    }

    /// Has the daemon and its commands go by a wall clock of their own.
    pub fn with_wall_clock(mut self) -> Result<Self> {
        self.wall_clock = Some(WallClock::new(&self.folder)?);
        Ok(self)
    }

    /// Sets that clock to so many seconds ahead of the host's.
    pub fn set_wall_clock(&self, ahead_seconds: i64) -> Result {
        self.wall_clock.as_ref().context("it goes by the host's")?.set(ahead_seconds)
    }

    /// Writes the configuration, state, admin socket and pins added.
    pub fn write_config(&self, mut config: Value) -> Result {
        let root = config.as_object_mut().context("the configuration is not an object")?;
        set(root, "state", "dir", &self.folder.join("state"))?;
        set(root, "admin", "socket", &self.folder.join("admin.sock"))?;
        set(root, "kernel", "pins", &self.pins())?;
        self.write_config_text(&serde_json::to_string_pretty(&config)?)
    }

    /// Writes the configuration as it is.
    pub fn write_config_text(&self, text: &str) -> Result {
        Ok(fs::write(self.config(), text)?)
    }

    /// Path of the configuration.
    pub fn config(&self) -> PathBuf {
        self.folder.join("gateway.yaml")
    }

    /// The folder of its state.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The folder of its pins.
    pub fn pins(&self) -> PathBuf {
        self.folder.join("bpf/gateway")
    }

    /// Path of its admin socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    /// What the daemon has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) -> Result {
        self.spawn(&["run"])?;
        self.answers()
    }

    /// Has another gateway take this one's place, and waits until it has.
    pub fn replace(&mut self) -> Result {
        let old = self.child.take();
        self.spawn(&["run", "--replace"])?;
        let mut old = old.context("the gateway is not running")?;
        let ended = wait_for("the old gateway's end", STOP, || {
            if let Some(status) = self.exit_status()? {
                bail!("the successor ended with {status}:\n{}", self.log());
            }
            Ok(old.try_wait()?)
        });
        if ended.is_err() {
            old.kill()?;
            old.wait()?;
        }
        let status = ended?;
        ensure!(status.success(), "the old gateway ended with {status}:\n{}", self.log());
        self.answers()
    }

    /// Starts the daemon by this command, which is made of [`Gateway::command`], and waits until it answers.
    pub fn start_by(&mut self, command: Command) -> Result {
        self.spawn_by(command)?;
        self.answers()
    }

    fn answers(&mut self) -> Result {
        let start = Instant::now();
        loop {
            if let Some(status) = self.exit_status()? {
                bail!("the gateway ended with {status}:\n{}", self.log());
            }
            if self.cli(&["status"])?.code == Some(0) {
                return Ok(());
            }
            if start.elapsed() > START {
                bail!("the gateway does not answer within {START:?}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the daemon where it is expected to refuse, and returns its last words.
    pub fn start_refused(&mut self) -> Result<Outcome> {
        self.spawn(&["run"])?;
        let waited = wait_for("the gateway's end", START, || self.exit_status());
        let status = waited.with_context(|| format!("it should refuse:\n{}", self.log()))?;
        Ok(Outcome { code: status.code(), stdout: String::new(), stderr: self.log() })
    }

    /// Ends the daemon in order and waits for it.
    pub fn stop(&mut self) -> Result {
        self.signal(Signal::SIGTERM)?;
        self.ended()
    }

    /// Waits until the daemon has ended in order by itself.
    pub fn ended(&mut self) -> Result {
        let status = wait_for("the gateway's end", STOP, || self.exit_status())?;
        ensure!(status.success(), "the gateway ended with {status}:\n{}", self.log());
        Ok(())
    }

    /// Memory of the daemon that is in use (unit: KiB).
    pub fn resident_kib(&self) -> Result<u64> {
        let child = self.child.as_ref().context("the gateway is not running")?;
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no VmRSS")?.parse()?)
    }

    /// Kills the daemon as a crash would.
    pub fn kill9(&mut self) -> Result {
        self.signal(Signal::SIGKILL)?;
        wait_for("the gateway's death", STOP, || self.exit_status())?;
        Ok(())
    }

    /// Waits until the daemon is gone, however it went.
    pub fn gone(&mut self) -> Result<ExitStatus> {
        wait_for("the gateway's end", STOP, || self.exit_status())
    }

    /// The process of the daemon.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the gateway is not running")?.id())
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) -> Result {
        let child = self.child.as_ref().context("the gateway is not running")?;
        kill(Pid::from_raw(child.id().try_into()?), signal)?;
        Ok(())
    }

    /// Runs a command of the gateway beside the daemon and returns its answer.
    pub fn cli(&self, arguments: &[&str]) -> Result<Outcome> {
        let mut command = self.command(arguments)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.launch(&mut command)?;
        let pid = Pid::from_raw(child.id().try_into()?);
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        // Reads both pipes while it waits, so that a long answer never blocks the command.
        std::thread::spawn(move || drop(sender.send(child.wait_with_output())));
        let Ok(output) = receiver.recv_timeout(COMMAND) else {
            kill(pid, Signal::SIGKILL)?;
            bail!("gateway {} did not end within {COMMAND:?}", arguments.join(" "));
        };
        let output = output?;
        Ok(Outcome {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// `gateway status --json`.
    pub fn status(&self) -> Result<Value> {
        self.cli(&["status", "--json"])?.ok()?.json()
    }

    /// The XDP mode of each interface as `status` shows it.
    pub fn modes(&self) -> Result<Vec<(String, String)>> {
        let status = self.status()?;
        let interfaces = status.pointer("/kernel/interfaces").and_then(Value::as_array);
        let text = |value: &Value, key| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let pair = |interface| {
            Some((text(interface, "name")?, text(interface, "mode").unwrap_or_default()))
        };
        Ok(interfaces.into_iter().flatten().filter_map(pair).collect())
    }

    /// Packets that the kernel has counted for `reason`, 0 without a kernel door.
    pub fn kernel_packets(&self, reason: &str) -> Result<u64> {
        Ok(packets_by_reason(&self.status()?).get(reason).and_then(Value::as_u64).unwrap_or(0))
    }

    /// The same of those that came over one interface, as the metrics have it; `None` for one without a series.
    pub fn kernel_packets_over(&self, interface: &str, reason: &str) -> Result<Option<u64>> {
        let page = Page::of(&self.cli(&["metrics"])?.ok()?.stdout)?;
        let begin = format!("gateway_kernel_packets_total{{reason=\"{reason}\",");
        let end = format!(",interface=\"{interface}\"}}");
        let all = page.samples.iter();
        let mut of = all.filter(|(name, _)| name.starts_with(&begin) && name.ends_with(&end));
        let first = of.next().map(|(_, value)| *value as u64);
        Ok(first.map(|first| of.fold(first, |sum, (_, value)| sum + *value as u64)))
    }

    fn prepare(namespace: Option<&'n Namespace>, unprivileged: bool) -> Result<Self> {
        let folder = std::env::temp_dir().join(unique());
        fs::create_dir(&folder).with_context(|| format!("cannot make {folder:?}"))?;
        let mut gateway = Self {
            folder: folder.clone(),
            binary: None,
            namespace,
            unprivileged,
            embedded: false,
            notify: None,
            wall_clock: None,
            child: None,
        };
        // The daemon gives up root for a user who must still reach its folder.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        fs::create_dir(folder.join("state"))?;
        if gateway.demoted() {
            // The folder of the build may be closed to others.
            let binary = folder.join("binary");
            // By a process of its own: a descriptor that is open for writing here would go to the processes that other
            // tests start meanwhile, and a file with a writer cannot be run.
            let copied = Command::new("cp").arg(built()?).arg(&binary).status()?;
            ensure!(copied.success(), "cp ended with {copied}");
            gateway.binary = Some(binary);
            for path in [folder.clone(), folder.join("state")] {
                chown(path, Some(NOBODY), Some(NOBODY))?;
            }
        }
        Ok(gateway)
    }

    fn demoted(&self) -> bool {
        self.unprivileged && nix::unistd::geteuid().is_root()
    }

    /// A command of the gateway, to be started in its namespace by whoever needs more than its answer.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(self.binary.clone().map_or_else(built, Ok)?);
        command.args(arguments).current_dir("/").env_remove("GATEWAY_CONFIG");
        if self.embedded {
            command.env("XDG_RUNTIME_DIR", &self.folder).env("XDG_STATE_HOME", &self.folder);
        } else {
            command.env("GATEWAY_CONFIG", self.config());
        }
        if let Some(clock) = &self.wall_clock {
            clock.give_to(&mut command);
        }
        if self.demoted() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Ok(command)
    }

    fn launch(&self, command: &mut Command) -> Result<Child> {
        match self.namespace {
            Some(namespace) => namespace.spawn(command),
            None => command.spawn().context("cannot start the gateway"),
        }
    }

    fn spawn(&mut self, arguments: &[&str]) -> Result {
        let mut command = self.command(arguments)?;
        command.stdin(Stdio::null());
        self.spawn_by(command)
    }

    pub(crate) fn spawn_by(&mut self, mut command: Command) -> Result {
        ensure!(self.child.is_none(), "the gateway runs already");
        let log = File::options().create(true).append(true).open(self.folder.join("log"))?;
        // A group of its own: Ctrl-C is for the test, which ends the daemon itself.
        command.process_group(0).stdout(log.try_clone()?).stderr(log);
        if let Some(socket) = &self.notify {
            command.env("NOTIFY_SOCKET", socket);
        }
        self.child = Some(self.launch(&mut command)?);
        Ok(())
    }

    pub(crate) fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.as_mut().context("the gateway is not running")?.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the gateway's log\n{}", self.log());
        }
        if let Some(mut child) = self.child.take() {
            // Already ended, or ended by this.
            drop(child.kill());
            drop(child.wait());
        }
        remove(&self.folder);
    }
}

/// The packets of each reason in an answer of `status --json`.
pub fn packets_by_reason(status: &Value) -> Map<String, Value> {
    let counters = status.pointer("/kernel/counters").and_then(Value::as_array);
    let pair = |counter: &Value| {
        Some((counter.get("reason")?.as_str()?.to_owned(), counter.get("packets")?.clone()))
    };
    counters.into_iter().flatten().filter_map(pair).collect()
}

/// Removes the folders of runs that were killed.
pub(crate) fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if is_leftover(&entry.file_name().to_string_lossy()) {
            remove(&entry.path());
        }
    }
}

fn remove(folder: &Path) {
    // Without its mount there are no pins, without pins no programs. Most folders of other users have none.
    umount2(&folder.join("bpf"), MntFlags::MNT_DETACH).ok();
    if let Err(error) = fs::remove_dir_all(folder) {
        eprintln!("{} stays behind: {error}", folder.display());
    }
}

/// The binary under test: GATEWAY_BIN, or the one that was built beside this test.
pub fn built() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GATEWAY_BIN") {
        return Ok(PathBuf::from(path));
    }
    let executable = std::env::current_exe()?;
    executable
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("gateway"))
        .find(|path| path.is_file())
        .context("no gateway beside the tests; run `cargo build -p gateway`, or set GATEWAY_BIN")
}

fn set(root: &mut Map<String, Value>, section: &str, key: &str, path: &Path) -> Result {
    let path = path.to_str().context("a path is not text")?;
    root.entry(section)
        .or_insert_with(|| json!({}))
        .as_object_mut()
        .with_context(|| format!("{section} is not an object"))?
        .insert(key.to_owned(), json!(path));
    Ok(())
}
