//! What lies between two looks, as rates; for programs, and as lines for people.

use serde::Serialize;
use serde_json::Value;

use crate::admin::api::{CounterView, InterfaceStatus, KernelStatus};
use crate::admin::monitor::{RuleHitsView, RuleMetView, SourceView, Top};

/// What `top` shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct View {
    kernel: Door,
    reasons: Vec<ReasonRate>,
    sources: Vec<SourceView>,
    rules: Vec<RuleRate>,
    requests: Requests,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Door {
    enforcing: bool,
    dry_run: bool,
    note: Option<String>,
    interfaces: Vec<InterfaceStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ReasonRate {
    reason: String,
    verdict: String,
    packets: u64,
    dry_run_packets: u64,
    packets_per_second: u64,
    dry_run_packets_per_second: u64,
    bytes_per_second: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct RuleRate {
    rule: RuleMetView,
    packets: u64,
    packets_per_second: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Requests {
    connections_open: u64,
    connections_per_second: u64,
    active: u64,
    per_second: u64,
    statuses: Vec<StatusRate>,
    received_bytes_per_second: u64,
    sent_bytes_per_second: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct StatusRate {
    status: String,
    requests: u64,
    per_second: u64,
}

/// A line for people.
pub(super) struct Line {
    /// Its text.
    pub(super) text: String,
    /// Whether it stands above others.
    pub(super) heading: bool,
}

impl View {
    /// What went on between two looks. Where they are one, every rate is 0.
    pub(super) fn between(before: &Top, now: &Top) -> Self {
        let milliseconds = now.time_boot_ms.saturating_sub(before.time_boot_ms).max(1);
        // A restart in between makes numbers smaller.
        let rate = |before: u64, now: u64| {
            let more = u128::from(now.saturating_sub(before)) * 1000 / u128::from(milliseconds);
            u64::try_from(more).unwrap_or(u64::MAX)
        };
        let reason = |now: &CounterView| {
            let mut counters = before.kernel.counters.iter();
            let before = counters.find(|before| before.reason == now.reason);
            let was = |count: fn(&CounterView) -> u64| before.map_or(0, count);
            ReasonRate {
                reason: now.reason.clone(),
                verdict: now.verdict.clone(),
                packets: now.packets,
                dry_run_packets: now.dry_run_packets,
                packets_per_second: rate(was(|count| count.packets), now.packets),
                dry_run_packets_per_second: rate(
                    was(|count| count.dry_run_packets),
                    now.dry_run_packets,
                ),
                bytes_per_second: rate(was(|count| count.bytes), now.bytes),
            }
        };
        let rule = |now: &RuleHitsView| {
            let before = before.busiest.iter().find(|before| before.rule == now.rule);
            // A rule that comes up among the busiest has had its packets before.
            let was = before.map_or(now.packets, |before| before.packets);
            let rule = now.rule.clone();
            RuleRate { rule, packets: now.packets, packets_per_second: rate(was, now.packets) }
        };
        Self {
            kernel: Door::of(&now.kernel),
            reasons: now.kernel.counters.iter().map(reason).collect(),
            sources: now.sources.clone(),
            rules: now.busiest.iter().map(rule).collect(),
            requests: Requests::between(&before.proxy, &now.proxy, rate),
        }
    }

    /// As people read it, the most important first.
    pub(super) fn lines(&self) -> Vec<Line> {
        let mut lines = vec![heading(&self.kernel.line())];
        let Requests { connections_open, active, per_second, .. } = self.requests;
        lines.push(text(format!(
            "proxy: {per_second} requests/s, {active} active, {connections_open} connections, \
             {}/s new, {} in, {} out",
            self.requests.connections_per_second,
            bytes(self.requests.received_bytes_per_second),
            bytes(self.requests.sent_bytes_per_second),
        )));
        let statuses = self.requests.statuses.iter();
        let statuses = statuses.map(|status| format!("{} {}/s", status.status, status.per_second));
        lines.push(text(format!("       {}", statuses.collect::<Vec<_>>().join("  "))));
        if !self.reasons.is_empty() {
            lines.push(text(String::new()));
            lines.push(heading("REASON        VERDICT  PACKETS/S     BYTES/S       PACKETS"));
        }
        for rate in self.reasons.iter().filter(|rate| rate.packets + rate.dry_run_packets > 0) {
            let ReasonRate { reason, verdict, packets, packets_per_second, .. } = rate;
            let volume = bytes(rate.bytes_per_second);
            let spared = match rate.dry_run_packets {
                0 => String::new(),
                spared => {
                    format!("  dry run: {spared}, {}/s", rate.dry_run_packets_per_second)
                }
            };
            lines.push(text(format!(
                "{reason:<13} {verdict:<7} {packets_per_second:>10} {volume:>11} {packets:>13}{spared}"
            )));
        }
        if !self.rules.is_empty() {
            lines.push(text(String::new()));
            lines.push(heading(
                "RULE                                        PACKETS/S       PACKETS",
            ));
        }
        for rate in &self.rules {
            let RuleMetView { prefix, action, origin, .. } = &rate.rule;
            let rule = format!("{action} {prefix} by {origin}");
            let RuleRate { packets, packets_per_second, .. } = rate;
            lines.push(text(format!("{rule:<42} {packets_per_second:>10} {packets:>13}")));
        }
        if !self.sources.is_empty() {
            lines.push(text(String::new()));
            lines.push(heading("SOURCE OF DROPS (sampled, last minute)         EVENTS  REASON"));
        }
        for SourceView { source, events, reason } in &self.sources {
            let source = source.to_string();
            lines.push(text(format!("{source:<42} {events:>10}  {reason}")));
        }
        lines
    }
}

impl Door {
    fn of(kernel: &KernelStatus) -> Self {
        let KernelStatus { enforcing, dry_run, note, interfaces, .. } = kernel.clone();
        Self { enforcing, dry_run, note, interfaces }
    }

    fn line(&self) -> String {
        let names: Vec<String> = self
            .interfaces
            .iter()
            .map(|on| format!("{} {}", on.name, on.mode.map_or("not attached", |mode| mode.name())))
            .collect();
        let state = match (self.enforcing, self.dry_run) {
            (false, _) => "shut",
            (true, true) => "open, dry run: nothing is dropped",
            (true, false) => "open",
        };
        let mut text = format!("kernel door {state}");
        for part in names.into_iter().chain(self.note.clone()) {
            text.push_str(", ");
            text.push_str(&part);
        }
        text
    }
}

impl Requests {
    fn between(before: &Value, now: &Value, rate: impl Fn(u64, u64) -> u64) -> Self {
        let number = |value: &Value, path: &str| {
            value.pointer(path).and_then(Value::as_u64).unwrap_or_default()
        };
        let per_second = |path: &str| rate(number(before, path), number(now, path));
        let answered = now.pointer("/requests/answered").and_then(Value::as_object);
        let statuses: Vec<StatusRate> = answered
            .into_iter()
            .flatten()
            .map(|(status, requests)| StatusRate {
                status: status.clone(),
                requests: requests.as_u64().unwrap_or_default(),
                per_second: per_second(&format!("/requests/answered/{status}")),
            })
            .collect();
        Self {
            connections_open: number(now, "/connections/open"),
            connections_per_second: per_second("/connections/accepted"),
            active: number(now, "/requests/active"),
            per_second: statuses.iter().map(|status| status.per_second).sum(),
            statuses,
            received_bytes_per_second: per_second("/bytes_received"),
            sent_bytes_per_second: per_second("/bytes_sent"),
        }
    }
}

fn heading(text: &str) -> Line {
    Line { text: text.to_owned(), heading: true }
}

fn text(text: String) -> Line {
    Line { text, heading: false }
}

/// Bytes a second, to three digits.
fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s"];
    let mut units = UNITS.into_iter();
    let mut unit = units.next().unwrap_or_default();
    let mut tenths = u128::from(number) * 10;
    for next in units {
        if tenths < 10_000 {
            break;
        }
        (tenths, unit) = (tenths / 1000, next);
    }
    match tenths {
        1..100 if unit != "B/s" => format!("{}.{} {unit}", tenths / 10, tenths % 10),
        _ => format!("{} {unit}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn look(time_boot_ms: u64, packets: u64, answered: u64) -> Top {
        let rule = json!({"prefix": "192.0.2.0/24", "action": "deny", "origin": "feed"});
        serde_json::from_value(json!({
            "time_boot_ms": time_boot_ms,
            "kernel": {
                "enforcing": true, "note": null, "dry_run": false, "memory_bytes": 0,
                "interfaces": [{"name": "eth0", "mode": "native"}],
                "counters": [{
                    "reason": "deny", "verdict": "drop", "packets": packets,
                    "bytes": packets * 100, "dry_run_packets": 0,
                }],
            },
            "sources": [{"source": "192.0.2.7", "events": 3, "reason": "deny"}],
            "busiest": [{"rule": rule, "packets": packets}],
            "proxy": {
                "requests": {"active": 1, "answered": {"2xx": answered, "5xx": 7}},
                "connections": {"open": 2, "accepted": answered},
                "bytes_received": 0, "bytes_sent": answered * 1000,
            },
        }))
        .unwrap()
    }

    #[test]
    fn rates_are_what_lies_between_two_looks() {
        let view = View::between(&look(10_000, 100, 50), &look(12_000, 5100, 60));
        let shown = serde_json::to_value(&view).unwrap();
        let at = |path: &str| shown.pointer(path).cloned().unwrap_or_default();
        assert_eq!(at("/reasons/0/packets_per_second"), json!(2500));
        assert_eq!(at("/reasons/0/bytes_per_second"), json!(250_000));
        assert_eq!(at("/rules/0/packets_per_second"), json!(2500));
        assert_eq!(at("/rules/0/rule/prefix"), json!("192.0.2.0/24"));
        assert_eq!(at("/requests/per_second"), json!(5));
        assert_eq!(
            at("/requests/statuses/1"),
            json!({"status": "5xx", "requests": 7, "per_second": 0})
        );
        let lines: Vec<String> = view.lines().into_iter().map(|line| line.text).collect();
        assert_eq!(lines[0], "kernel door open, eth0 native");
        assert!(lines.iter().any(|line| line.starts_with("deny          drop          2500")));
    }

    #[test]
    fn a_restart_in_between_is_no_flood() {
        let view = View::between(&look(10_000, 100, 50), &look(9_000, 0, 0));
        assert_eq!(view.reasons[0].packets_per_second, 0);
        let once = look(10_000, 100, 50);
        assert_eq!(View::between(&once, &once).requests.per_second, 0);
    }

    #[test]
    fn volumes_have_three_digits() {
        let shown = [0, 999, 1000, 9_990, 123_456, 1_500_000, u64::MAX].map(bytes);
        let expected =
            ["0 B/s", "999 B/s", "1.0 kB/s", "9.9 kB/s", "123 kB/s", "1.5 MB/s", "18446 PB/s"];
        assert_eq!(shown, expected);
    }
}
