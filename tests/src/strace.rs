//! Starts of the gateway under strace(1): what they ask the kernel for, and their deaths at it.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use nix::sys::signal::Signal;

use crate::gateway::{Gateway, START};
use crate::{Result, wait_for};

impl Gateway<'_> {
    /// Starts the daemon and waits until it answers. Answers each of these system calls that it made, as strace writes
    /// them.
    pub fn start_traced(&mut self, calls: &str) -> Result<Vec<String>> {
        let file = self.config().with_file_name("calls");
        self.start_by(self.under_strace(&file, format!("trace={calls}"))?)?;
        Ok(fs::read_to_string(file)?.lines().map(str::to_owned).collect())
    }

    /// Starts the daemon, which is killed when it makes this system call for the `nth` time, counted from 1.
    pub fn start_killed(&mut self, call: &str, nth: usize) -> Result {
        let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
        let command = self.under_strace(Path::new("/dev/null"), inject)?;
        self.spawn_by(command)?;
        let status = wait_for("the gateway's death", START, || self.exit_status())?;
        let killed = status.signal() == Some(Signal::SIGKILL as i32);
        ensure!(killed, "the gateway ended with {status}:\n{}", self.log());
        Ok(())
    }

    fn under_strace(&self, file: &Path, expression: String) -> Result<Command> {
        let gateway = self.command(&["run"])?;
        let mut command = Command::new("strace");
        // It is the daemon's grandchild, so that the daemon is ours.
        command.args(["-D", "-qqq", "-o"]).arg(file).args(["-e", &expression]);
        command.arg(gateway.get_program()).args(gateway.get_args()).current_dir("/");
        for (key, value) in gateway.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        Ok(command)
    }
}
