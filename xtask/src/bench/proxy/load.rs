//! One round of load by wrk, and what it says about it. A round with any failed request is an error, no measurement.

use std::io::Read;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::subjects::{Running, pinned};

/// Connections that are kept alive for the whole round, each with one request at a time.
pub(super) const CONNECTIONS: u32 = 64;

/// What a round came to.
#[derive(Debug, PartialEq)]
pub(super) struct Load {
    pub(super) requests: f64,
    pub(super) requests_per_second: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

pub(super) fn run(
    target: SocketAddr,
    cpu: usize,
    seconds: u32,
    interrupted: &AtomicBool,
) -> anyhow::Result<Load> {
    let mut command = pinned(cpu, "wrk");
    command.args(["--threads", "1", "--latency"]);
    command.args(["--connections".to_owned(), CONNECTIONS.to_string()]);
    command.args(["--duration".to_owned(), format!("{seconds}s"), format!("http://{target}/")]);
    let mut wrk = Running::start(command.stdout(Stdio::piped()))?;
    let patience = Duration::from_secs(u64::from(seconds) + 10);
    harness::wait_for("the end of wrk", patience, || {
        Ok((interrupted.load(Ordering::Relaxed) || wrk.has_ended()?).then_some(()))
    })?;
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    let mut said = String::new();
    wrk.stdout().context("wrk has no output")?.read_to_string(&mut said)?;
    parse(&said).with_context(|| format!("wrk said\n{said}"))
}

fn parse(said: &str) -> anyhow::Result<Load> {
    for trouble in ["Socket errors", "Non-2xx"] {
        ensure!(!said.contains(trouble), "requests failed");
    }
    let after = |label: &str| {
        let mut lines = said.lines().filter_map(|line| line.trim().strip_prefix(label));
        lines.next().map(str::trim).with_context(|| format!("`{label}` is missing"))
    };
    let requests = said.lines().find_map(|line| line.trim().split_once(" requests in "));
    let (requests, _) = requests.context("the number of requests is missing")?;
    let load = Load {
        requests: requests.parse()?,
        requests_per_second: after("Requests/sec:")?.parse()?,
        p50_us: microseconds(after("50%")?)?,
        p99_us: microseconds(after("99%")?)?,
    };
    ensure!(load.requests > 0.0, "not one request was answered");
    Ok(load)
}

fn microseconds(text: &str) -> anyhow::Result<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let found = units.into_iter().find_map(|(unit, us)| Some((text.strip_suffix(unit)?, us)));
    let (number, us) = found.with_context(|| format!("{text} is no time"))?;
    Ok((number.parse::<f64>()? * us).round())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Running 1s test @ http://127.0.0.1:1/\n  Latency Distribution\n     50%    1.27ms\n     \
                        75%    1.40ms\n     99%  950.00us\n  45321 requests in 1.10s, 9.99MB read\n\
                        Requests/sec:  41200.91\nTransfer/sec:      9.08MB\n";

    #[test]
    fn what_wrk_says_is_read() {
        let load = Load {
            requests: 45_321.0,
            requests_per_second: 41_200.91,
            p50_us: 1270.0,
            p99_us: 950.0,
        };
        assert_eq!(parse(SAID).unwrap(), load);
        assert_eq!(microseconds("1.50s").unwrap(), 1.5e6);
    }

    #[test]
    fn a_round_with_failed_requests_is_no_measurement() {
        for trouble in ["Socket errors: connect 0, read 3", "Non-2xx or 3xx responses: 1"] {
            assert!(parse(&format!("{SAID}  {trouble}\n")).is_err());
        }
        assert!(parse("").is_err());
    }
}
