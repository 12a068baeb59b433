//! `gateway status`: how the running gateway stands.

use std::time::Duration;

use super::output::Output;
use super::place::Place;
use super::{Failure, ask, bans, unexpected};
use crate::admin::api::{Answer, InterfaceStatus, KernelStatus, Request, Status};
use crate::admin::guards;
use crate::admin::upstreams::{EndpointView, NameView, UpstreamView};
use crate::admin::{crowdsec, redis, spread};
use crate::base::time::utc;

pub(super) fn run(place: &Place, output: &Output) -> Result<(), Failure> {
    let Answer::Status(status) = ask(place, &Request::Status)? else { return Err(unexpected()) };
    if output.is_json() {
        return Ok(output.object(&status)?);
    }
    let Status { version, pid, config, user, workers, rules, .. } = &*status;
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let capabilities = match status.capabilities.as_slice() {
        [] => "no capabilities".to_owned(),
        some => some.join(" "),
    };
    output.line(&format!("gateway {version}, process {pid}, up {uptime}"))?;
    output.line(&format!("  configuration  {config}"))?;
    output.line(&format!("  user           {user}, {capabilities}"))?;
    output.line(&format!("  listening      {} ({workers} workers)", status.listen.join(", ")))?;
    if !status.listen_absent.is_empty() {
        let absent = status.listen_absent.join(", ");
        output.line(&format!("                 no interface has the address of {absent} yet"))?;
    }
    output.line(&format!("  kernel door    {}", door(&status.kernel)))?;
    output.line(&format!(
        "  rules          {} deny, {} allow, {} limit, {} protected, {} held back",
        rules.deny, rules.allow, rules.limit, rules.protected, rules.held_back
    ))?;
    for note in &status.lists {
        output.line(&format!("  list           {note}"))?;
    }
    for note in &status.certificate_notes {
        output.line(&format!("  certificate    {note}"))?;
    }
    if let Some(view) = &status.feedback {
        output.line(&format!("  feedback       {}", bans::line(view)))?;
    }
    if let Some(view) = &status.redis {
        output.line(&format!("  redis          {}", redis::line(view)))?;
    }
    if let Some(view) = &status.spread {
        output.line(&format!("  other gateways {}", spread::line(view)))?;
    }
    if let Some(view) = &status.crowdsec {
        output.line(&format!("  crowdsec       {}", crowdsec::line(view)))?;
    }
    for line in guards::lines(&status.guards) {
        output.line(&format!("  upstream       {line}"))?;
    }
    let row = |counter: &crate::admin::api::CounterView| {
        let (reason, verdict) = (counter.reason.clone(), counter.verdict.clone());
        let numbers = [counter.packets, counter.bytes, counter.dry_run_packets];
        [reason, verdict].into_iter().chain(numbers.map(|number| number.to_string())).collect()
    };
    if !status.kernel.counters.is_empty() {
        output.line("")?;
        let header = ["reason", "verdict", "packets", "bytes", "dry run"];
        output.table(&header, status.kernel.counters.iter().map(row).collect())?;
    }
    endpoints(&status.upstreams, output)?;
    names(&status.upstreams, output)?;
    output.line("")?;
    proxy(&status.proxy, "", output)
}

/// The endpoints of all services, with what is wrong with them.
fn endpoints(upstreams: &[UpstreamView], output: &Output) -> Result<(), Failure> {
    let now = utc();
    let row = |upstream: &UpstreamView, endpoint: &EndpointView| {
        let seconds = now.since(endpoint.since_utc_ms).as_secs();
        let since = humantime::format_duration(Duration::from_secs(seconds)).to_string();
        let in_a_row = u64::from(endpoint.failures_in_a_row);
        let numbers = [endpoint.active, endpoint.requests, endpoint.failures, in_a_row];
        let words =
            [&upstream.name, &endpoint.address, &endpoint.condition, &since].map(Clone::clone);
        let why = endpoint.why.clone().unwrap_or_default();
        let numbers = numbers.map(|number| number.to_string());
        let success = success(endpoint.requests, endpoint.failures);
        let rest = [success, endpoint.ejections.to_string(), why];
        words.into_iter().chain(numbers).chain(rest).collect()
    };
    let rows: Vec<Vec<String>> = upstreams
        .iter()
        .flat_map(|upstream| upstream.endpoints.iter().map(move |one| row(upstream, one)))
        .collect();
    if !rows.is_empty() {
        output.line("")?;
        let header = [
            "upstream",
            "endpoint",
            "condition",
            "for",
            "active",
            "requests",
            "failures",
            "in a row",
            "success",
            "ejections",
            "why",
        ];
        output.table(&header, rows)?;
    }
    for upstream in upstreams.iter().filter(|upstream| upstream.panic) {
        output.line(&format!("{}: too few endpoints are usable: all are used", upstream.name))?;
    }
    Ok(())
}

/// The share of requests that were not failed, in percent, rounded down so that only all are 100.
fn success(requests: u64, failures: u64) -> String {
    let tenths = requests.saturating_sub(failures).saturating_mul(1000).checked_div(requests);
    tenths.map_or_else(|| "-".to_owned(), |tenths| format!("{}.{}%", tenths / 10, tenths % 10))
}

/// The names of endpoints, with what they stand for and how old that is.
fn names(upstreams: &[UpstreamView], output: &Output) -> Result<(), Failure> {
    let now = utc();
    let seconds = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
    let row = |upstream: &UpstreamView, name: &NameView| {
        let age = name.resolved_utc_ms.map(|resolved| seconds(now.since(resolved)).to_string());
        vec![
            upstream.name.clone(),
            name.name.clone(),
            name.addresses.len().to_string(),
            age.unwrap_or_else(|| "never".to_owned()),
            seconds(name.next_utc_ms.since(now)).to_string(),
            name.failures.to_string(),
            name.note.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<Vec<String>> = upstreams
        .iter()
        .flat_map(|upstream| upstream.names.iter().map(move |name| row(upstream, name)))
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let header = ["upstream", "name", "addresses", "found before", "next in", "failures", "why"];
    Ok(output.table(&header, rows)?)
}

fn door(kernel: &KernelStatus) -> String {
    let interfaces: Vec<String> = kernel
        .interfaces
        .iter()
        .map(|InterfaceStatus { name, mode, note }| match (mode, note) {
            (Some(mode), _) => format!("{name}: {}", mode.name()),
            (None, Some(note)) => format!("{name}: not attached ({note})"),
            (None, None) => format!("{name}: not attached"),
        })
        .collect();
    let mut text = if kernel.enforcing { "open".to_owned() } else { "shut".to_owned() };
    for part in interfaces.into_iter().chain(kernel.note.clone()) {
        text.push_str(", ");
        text.push_str(&part);
    }
    if kernel.dry_run {
        text.push_str(", dry run: nothing is dropped");
    }
    if kernel.memory_bytes > 0 {
        let tenths = kernel.memory_bytes * 10 / (1024 * 1024);
        text.push_str(&format!(", {}.{} MiB of tables", tenths / 10, tenths % 10));
    }
    text
}

/// The proxy's counters, a line each, zeros left out.
fn proxy(value: &serde_json::Value, name: &str, output: &Output) -> Result<(), Failure> {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, field) in fields {
                let name = if name.is_empty() { key.clone() } else { format!("{name} {key}") };
                proxy(field, &name, output)?;
            }
            Ok(())
        }
        serde_json::Value::Number(number) if number.as_u64() == Some(0) => Ok(()),
        other => Ok(output.line(&format!("{name}: {other}"))?),
    }
}

#[cfg(test)]
mod tests {
    use super::success;

    #[test]
    fn only_who_failed_nothing_is_at_a_hundred_percent() {
        let shown = [(0, 0), (7, 0), (1_000_000, 1), (3, 1), (2, 2), (1, 2)];
        let shown = shown.map(|(requests, failures)| success(requests, failures));
        assert_eq!(shown, ["-", "100.0%", "99.9%", "66.6%", "0.0%", "0.0%"]);
    }
}
