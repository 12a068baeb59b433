//! What black-box tests of the gateway stand on: hosts made of network namespaces, raw frames, a scripted origin, a
//! small client, and the gateway's own process as a guard.
//!
//! Everything here cleans up when it is dropped, and what a killed run left behind is swept by the next one. Nothing
//! here knows the gateway from the inside: it is a binary with a configuration, a command line and sockets.
#![expect(clippy::disallowed_methods, reason = "tests measure real time, from outside the gateway")]

pub mod authority;
pub mod bans;
pub mod bpf;
pub mod client;
pub mod dns;
pub mod frames;
pub mod gateway;
pub mod h2_service;
pub mod http2;
pub mod idp;
pub mod lapi;
pub mod metrics;
pub mod namespace;
pub mod origin;
pub mod programs;
pub mod redis;
pub mod site;
mod strace;
pub mod successor;
pub mod tls_end;
pub mod topology;
pub mod wall_clock;

use std::io::{self, Read};
use std::time::{Duration, Instant};

use anyhow::bail;

/// What every test and helper here returns.
pub type Result<T = ()> = anyhow::Result<T>;

/// Fails where kernel tests and the lab cannot run: they never pass without having run.
pub fn require_root() -> Result {
    if !nix::unistd::geteuid().is_root() {
        bail!("this needs root for namespaces, raw sockets and XDP; run it as root");
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    for (bit, name) in [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")] {
        if effective & (1 << bit) == 0 {
            bail!("this needs {name}, which this root lacks; give it to the container");
        }
    }
    Ok(())
}

/// Asks `probe` every 20 ms until it answers, for at most `patience`.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if start.elapsed() > patience {
            bail!("{what} did not happen within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads once. Where a socket has a timeout, to stop this process and to let it go on ends a read without a word of
/// the other side (signal(7), `EINTR`): then once more.
pub fn read_once(mut from: impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}
