//! Honest clients: wrk with a good credential over a few connections, as fast as it is answered.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use harness::topology::Host;
use serde_json::Value;

const CONNECTIONS: u32 = 32;
/// Prints what was measured as one line of JSON (wrk's SCRIPTING file has the names).
const SCRIPT: &str = r#"
local at = 0
request = function()
  at = at % #keys + 1
  wrk.headers["X-API-Key"] = keys[at]
  return wrk.format()
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"us":%d,"p50_us":%d,"p99_us":%d,"failed":%d}\n',
    summary.requests - e.status, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"#;

/// What honest clients got.
#[derive(Clone, Copy, Debug)]
pub(super) struct Honest {
    /// Answered well.
    pub(super) requests_per_second: f64,
    pub(super) p99_ms: f64,
    /// Requests that were not answered, or not well.
    pub(super) failed: f64,
}

impl Honest {
    /// `keys`: of those who take turns.
    pub(super) fn run(client: &Host, keys: &[String], seconds: u32) -> Result<Self> {
        let script = tempfile::Builder::new().prefix("gateway-bench-").suffix(".lua").tempfile()?;
        fs::write(script.path(), format!("local keys = {{'{}'}}{SCRIPT}", keys.join("','")))?;
        let mut command = Command::new("wrk");
        command.args(["--threads", "1", "--latency", "--timeout", "2s", "--script"]);
        command.arg(script.path());
        command.args([format!("--connections={CONNECTIONS}"), format!("--duration={seconds}s")]);
        command.arg(format!("http://{}/", client.target()));
        let output = client.namespace.output(command.stdin(Stdio::null()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "wrk ended with {}: {said}", output.status);
        Self::parse(&said).with_context(|| format!("wrk said\n{said}"))
    }

    fn parse(said: &str) -> Result<Self> {
        let line = said.lines().find(|line| line.starts_with('{')).context("no summary")?;
        let summary: Value = serde_json::from_str(line)?;
        let number =
            |name: &str| summary.get(name).and_then(Value::as_f64).context("a figure is missing");
        Ok(Self {
            requests_per_second: number("requests")? / (number("us")? / 1e6),
            p99_ms: number("p99_us")? / 1000.0,
            failed: number("failed")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_found_among_what_wrk_says() {
        let said = "Running 1s test\n{\"requests\":500,\"us\":2000000,\"p50_us\":1,\"p99_us\":1500,\"failed\":3}\n";
        let honest = Honest::parse(said).unwrap();
        assert_eq!((honest.requests_per_second, honest.p99_ms, honest.failed), (250.0, 1.5, 3.0));
        assert!(Honest::parse("nothing").is_err());
    }
}
