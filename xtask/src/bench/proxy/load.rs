//! One round of load by wrk or h2load, and what it says about it. A round with any failed request is an error, no
//! measurement.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::Run;
use super::subjects::{Running, pinned};

/// What is loaded.
#[derive(Clone, Copy)]
pub(in crate::bench) struct Target {
    pub(in crate::bench) address: SocketAddr,
    pub(in crate::bench) is_tls: bool,
}

/// Load by wrk: each connection has one request at a time, HTTP/1.1.
pub(in crate::bench) struct Wrk {
    pub(in crate::bench) path: &'static str,
    pub(in crate::bench) connections: u32,
    /// A connection for each request.
    pub(in crate::bench) close: bool,
}

/// Load by h2load.
pub(in crate::bench) struct H2load {
    pub(in crate::bench) path: &'static str,
    pub(in crate::bench) clients: u32,
    /// Requests at a time on each connection.
    pub(in crate::bench) streams: u32,
    pub(in crate::bench) kind: Kind,
}

/// What h2load speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Kind {
    Http1,
    Http2,
    /// HTTP/2 with the header fields and a message of gRPC.
    Grpc,
}

/// What a round came to.
#[derive(Debug, PartialEq)]
pub(in crate::bench) struct Load {
    pub(in crate::bench) requests: f64,
    pub(in crate::bench) requests_per_second: f64,
    pub(in crate::bench) p50_us: f64,
    pub(in crate::bench) p99_us: f64,
}

impl Target {
    fn url(self, path: &str) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.address)
    }
}

impl Wrk {
    pub(in crate::bench) fn run(&self, target: Target, run: &Run) -> anyhow::Result<Load> {
        self.run_with(target, run, None)
    }

    /// With this header field in every request.
    pub(in crate::bench) fn run_with(
        &self,
        target: Target,
        run: &Run,
        field: Option<&str>,
    ) -> anyhow::Result<Load> {
        let mut command = pinned(run.cpus.rest, "wrk");
        command.args(["--threads", "1", "--latency", "--timeout", "10s"]);
        command.args(["--connections".to_owned(), self.connections.to_string()]);
        command.args(["--duration".to_owned(), format!("{}s", run.seconds)]);
        if self.close {
            command.args(["--header", "Connection: close"]);
        }
        if let Some(field) = field {
            command.args(["--header", field]);
        }
        let said = output(command.arg(target.url(self.path)), run, run.seconds)?;
        parse_wrk(&said).with_context(|| format!("wrk said\n{said}"))
    }
}

impl H2load {
    /// At `rate` requests per second, or as fast as can be.
    pub(in crate::bench) fn run(
        &self,
        target: Target,
        run: &Run,
        rate: Option<f64>,
    ) -> anyhow::Result<Load> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let mut command = pinned(run.cpus.rest, "h2load");
        command.args([format!("--clients={}", self.clients)]);
        command.args([format!("--max-concurrent-streams={}", self.streams)]);
        command.args([format!("--duration={}", run.seconds), "--warm-up-time=0".to_owned()]);
        command.arg("--log-file").arg(&log);
        if let Some(rate) = rate {
            command.arg(format!("--rps={:.0}", (rate / f64::from(self.clients)).max(1.0)));
        }
        match self.kind {
            Kind::Http1 => drop(command.arg("--h1")),
            Kind::Http2 => {}
            Kind::Grpc => {
                let message = folder.path().join("message");
                fs::write(&message, super::origins::GRPC_MESSAGE)?;
                command.args(["--header=content-type: application/grpc", "--header=te: trailers"]);
                command.arg("--data").arg(message);
            }
        }
        let said = output(command.arg(target.url(self.path)), run, run.seconds)?;
        let log = fs::read_to_string(log)?;
        parse_h2load(&said, &log, f64::from(run.seconds))
            .with_context(|| format!("h2load said\n{said}"))
    }
}

/// Runs it to its end.
fn output(command: &mut Command, run: &Run, seconds: u32) -> anyhow::Result<String> {
    let mut running = Running::start(command.stdout(Stdio::piped()))?;
    let patience = Duration::from_secs(u64::from(seconds) + 20);
    harness::wait_for("the end of the load", patience, || {
        Ok((run.interrupted.load(Ordering::Relaxed) || running.has_ended()?).then_some(()))
    })?;
    run.check()?;
    let mut said = String::new();
    running.stdout().context("it has no output")?.read_to_string(&mut said)?;
    Ok(said)
}

fn parse_wrk(said: &str) -> anyhow::Result<Load> {
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

/// The totals are of what it said, the latencies of its log: start, status and duration in microseconds.
fn parse_h2load(said: &str, log: &str, seconds: f64) -> anyhow::Result<Load> {
    let line = |label: &str| {
        let mut lines = said.lines().filter_map(|line| line.strip_prefix(label));
        lines.next().with_context(|| format!("`{label}` is missing"))
    };
    let number = |line: &str, what: &str| -> anyhow::Result<f64> {
        let mut parts = line.split(',').filter_map(|part| part.trim().strip_suffix(what));
        let found = parts.next().with_context(|| format!("`{what}` is missing in {line}"))?;
        Ok(found.trim().parse()?)
    };
    let requests = line("requests:")?;
    for trouble in ["failed", "errored", "timeout"] {
        ensure!(number(requests, trouble)? == 0.0, "requests failed: {requests}");
    }
    let statuses = line("status codes:")?;
    let answered = number(statuses, "2xx")?;
    for other in ["3xx", "4xx", "5xx"] {
        ensure!(number(statuses, other)? == 0.0, "requests failed: {statuses}");
    }
    ensure!(answered > 0.0, "not one request was answered");
    let times = log.lines().filter_map(|line| line.split('\t').nth(2)?.parse::<f64>().ok());
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    Ok(Load {
        requests: answered,
        requests_per_second: answered / seconds,
        p50_us: quantile(&times, 50)?,
        p99_us: quantile(&times, 99)?,
    })
}

/// Of sorted values, that which so many percent of them do not exceed.
pub(in crate::bench) fn quantile(sorted: &[f64], percent: usize) -> anyhow::Result<f64> {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().context("nothing was measured")
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

    const WRK: &str = "Running 1s test @ http://127.0.0.1:1/\n  Latency Distribution\n     50%    1.27ms\n     \
                       75%    1.40ms\n     99%  950.00us\n  45321 requests in 1.10s, 9.99MB read\n\
                       Requests/sec:  41200.91\nTransfer/sec:      9.08MB\n";
    const H2LOAD: &str = "finished in 2.00s, 2.00 req/s, 1KB/s\n\
        requests: 4 total, 4 started, 4 done, 4 succeeded, 0 failed, 0 errored, 0 timeout\n\
        status codes: 4 2xx, 0 3xx, 0 4xx, 0 5xx\n";
    const LOG: &str = "1\t200\t30\n2\t200\t10\n3\t200\t40\n4\t200\t20\n";

    #[test]
    fn what_wrk_says_is_read() {
        let load = Load {
            requests: 45_321.0,
            requests_per_second: 41_200.91,
            p50_us: 1270.0,
            p99_us: 950.0,
        };
        assert_eq!(parse_wrk(WRK).unwrap(), load);
        assert_eq!(microseconds("1.50s").unwrap(), 1.5e6);
    }

    #[test]
    fn what_h2load_says_is_read() {
        let load = Load { requests: 4.0, requests_per_second: 2.0, p50_us: 20.0, p99_us: 40.0 };
        assert_eq!(parse_h2load(H2LOAD, LOG, 2.0).unwrap(), load);
    }

    #[test]
    fn a_round_with_failed_requests_is_no_measurement() {
        for trouble in ["Socket errors: connect 0, read 3", "Non-2xx or 3xx responses: 1"] {
            assert!(parse_wrk(&format!("{WRK}  {trouble}\n")).is_err());
        }
        assert!(parse_wrk("").is_err());
        for (good, bad) in
            [("0 failed", "1 failed"), ("0 5xx", "1 5xx"), ("0 timeout", "2 timeout")]
        {
            assert!(parse_h2load(&H2LOAD.replace(good, bad), LOG, 2.0).is_err());
        }
        assert!(parse_h2load(H2LOAD, "", 2.0).is_err());
    }
}
