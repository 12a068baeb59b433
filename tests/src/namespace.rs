//! Network namespaces as guards: made with a name of their own, deleted when dropped.
//!
//! They are entered by `setns`, never by `ip netns exec`: that makes a private mount namespace, and what is pinned in a
//! BPF file system mounted there dies with its last process.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Result, wait_for};

const FOLDER: &str = "/run/netns";
const PREFIX: &str = "gateway-test-";

/// A network namespace with its loopback up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one. `role` is the last part of its name, for people.
    pub fn new(role: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let name = format!("{}-{role}", unique());
        ip(&["netns", "add", &name], "")?;
        let namespace = Self { name };
        // Addresses work at once, and a frame is judged by its source alone, not by the way back to it.
        namespace.enter(|| -> Result {
            for setting in [
                "ipv6/conf/all/accept_dad",
                "ipv6/conf/default/accept_dad",
                "ipv4/conf/all/rp_filter",
                "ipv4/conf/default/rp_filter",
            ] {
                fs::write(Path::new("/proc/sys/net").join(setting), "0")
                    .with_context(|| format!("cannot set {setting}"))?;
            }
            Ok(())
        })??;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside; a line is a command.
    pub fn ip(&self, lines: &str) -> Result {
        ip(&["-n", &self.name, "-batch", "-"], lines)
    }

    /// Runs `work` on a thread inside. Sockets that it opens and processes that it starts stay inside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = Path::new(FOLDER).join(&self.name);
        let namespace = File::open(&path).with_context(|| format!("no namespace at {path:?}"))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || -> Result<T> {
                setns(&namespace, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter {path:?}"))?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A socket for datagrams inside, which are waited for at most 300 ms. The last one on this port may live on for a
    /// moment in a process that another test is just starting.
    pub fn datagrams(&self, port: u16) -> Result<UdpSocket> {
        let socket = wait_for("a free port", Duration::from_secs(10), || {
            match self.enter(|| UdpSocket::bind(("::", port)))? {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
                bound => Ok(Some(bound?)),
            }
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(socket)
    }

    /// Starts a process inside.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().to_owned();
        self.enter(|| command.spawn())?.with_context(|| format!("cannot start {program:?}"))
    }

    /// Runs a process inside to its end.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let program = command.get_program().to_owned();
        self.enter(|| command.output())?.with_context(|| format!("cannot start {program:?}"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// A name that no other test on this machine has: the process and a counter.
pub(crate) fn unique() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Whether `name` was made by [`unique`] in a process that is gone.
pub(crate) fn is_leftover(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next())
        .filter(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
        .is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

/// Deletes what killed runs left: their namespaces with the processes inside, and their folders.
fn sweep() {
    for entry in fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_leftover(&name) {
            delete(&name);
        }
    }
    crate::gateway::sweep();
}

fn delete(name: &str) {
    let listing = Command::new("ip").args(["netns", "pids", name]).output();
    let pids = listing.map(|output| output.stdout).unwrap_or_default();
    for pid in String::from_utf8_lossy(&pids).lines().filter_map(|line| line.parse().ok()) {
        // It may have ended meanwhile; either way it is gone.
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    if let Err(error) = ip(&["netns", "delete", name], "") {
        eprintln!("namespace {name} stays behind: {error:#}");
    }
}

fn ip(arguments: &[&str], stdin: &str) -> Result {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start ip; install iproute2")?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(stdin.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("ip {} failed: {}\n{stdin}", arguments.join(" "), complaint.trim());
    }
    Ok(())
}
