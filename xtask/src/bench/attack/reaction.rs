//! Case `reaction`: from the evidence that tips a score to the return of the map update, and from there to the disk,
//! as the gateway itself measures both, while it serves half of what it can.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::http::{Connections, Plan, Sources};
use super::subjects::{Kind, Subject};
use super::{Bench, CPU_OURS, Cpus, ONSET, RATE};

pub(super) const NAME: &str = "reaction";
/// How often each source tries a credential: the default rules ban it at the twentieth.
const TRIES: u32 = 25;
/// Sources, each in a network of its own: a decision each.
const SOURCES: u32 = 500;
/// Wrong credentials a second of all of them.
const WRONG_PER_SECOND: u32 = 500;
/// So many bans are not held back.
const BANS_PER_MINUTE: u32 = 10_000;
/// Honest connections at once, and requests over each.
const HONEST: usize = 32;
const REQUESTS: u32 = 50;
const SECONDS: u32 = 10;

impl Bench {
    /// One round.
    pub(super) fn reaction(&self) -> Result<Vec<(&'static str, f64)>> {
        let ceiling = Some(BANS_PER_MINUTE);
        let mut subject = Subject::start(Kind::Loop, ceiling, &self.hosts, &self.binary)?;
        subject.check(&self.hosts)?;
        let most = self.honest(&subject, None)?.0;
        let half = most / 2.0;
        let attack = Plan::attack(Sources::Apart(SOURCES, TRIES), Some(WRONG_PER_SECOND));
        let attack = Connections::start(&self.hosts.attacker, attack)?;
        let (served, busy) = self.honest(&subject, Some(half))?;
        drop(attack);
        let [reaction, durable] = subject.took()?;
        ensure!(reaction[0] > 50.0, "only {} bans: nothing was measured", reaction[0]);
        Ok(vec![
            (RATE, served.round()),
            ("most_requests_per_second", most.round()),
            ("busy_share_ours", busy),
            ("bans", reaction[0]),
            ("reaction_p50_ms", reaction[1]),
            ("reaction_p99_ms", reaction[2]),
            ("durable_p50_ms", durable[1]),
            ("durable_p99_ms", durable[2]),
        ])
    }

    /// Requests a second of honest clients on the attacker's CPU, and how busy the other one was meanwhile.
    fn honest(&self, subject: &Subject<'_>, per_second: Option<f64>) -> Result<(f64, f64)> {
        let key = subject.keys().first().context("no key")?.clone();
        let per_second = per_second.map(|rate| (rate / f64::from(REQUESTS)).max(1.0) as u32);
        let plan =
            Plan { sources: Sources::Own, per_second, at_once: HONEST, requests: REQUESTS, key };
        let honest = Connections::start(&self.hosts.client, plan)?;
        std::thread::sleep(ONSET);
        let (before, answered) = (Cpus::now()?, honest.counts().answered);
        std::thread::sleep(std::time::Duration::from_secs(SECONDS.into()));
        let (after, now) = (Cpus::now()?, honest.counts().answered);
        self.check()?;
        let idle = (after.idle_ms(CPU_OURS) - before.idle_ms(CPU_OURS)).max(0.0);
        let busy = 1.0 - idle / (f64::from(SECONDS) * 1000.0);
        Ok(((now - answered) as f64 / f64::from(SECONDS), (busy * 100.0).round() / 100.0))
    }
}

/// Count, median and 99th percentile in milliseconds of one of the two, as `gateway status` has them.
pub(super) fn took(status: &Value, name: &str) -> Option<[f64; 3]> {
    let of = |figure: &str| status.pointer(&format!("/feedback/{name}/{figure}"))?.as_f64();
    Some([of("count")?, of("p50_us")? / 1000.0, of("p99_us")? / 1000.0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_shown_in_milliseconds() {
        let reaction = json!({"count": 3, "p50_us": 120, "p99_us": 2000});
        let status = json!({"feedback": {"reaction": reaction}});
        assert_eq!(took(&status, "reaction"), Some([3.0, 0.12, 2.0]));
        assert_eq!(took(&status, "durable"), None);
    }
}
