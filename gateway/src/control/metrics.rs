//! The metrics: which figure has which name and labels. Every label has few values, whatever clients send.
//! docs/metrics.md says what each is good for.

use std::collections::BTreeMap;

use gateway_common::layout::Counter;
use gateway_common::rule::Origin;
use gateway_common::verdict::Verdict;

use super::guards;
use super::upstreams::views;
use crate::admin::api::Status;
use crate::admin::rules::ListView;
use crate::auth::Authenticators;
use crate::base::error::Kind as ErrorKind;
use crate::base::time::UtcMillis;
use crate::config::Config;
use crate::kernel::Door;
use crate::kernel::census;
use crate::kernel::counters::{Count, origins};
use crate::kernel::tables::TablesError;
use crate::limit::Limits;
use crate::observe::prometheus::{Family, Page};
use crate::observe::resilience;
use crate::observe::traffic::{OTHER, Sum};
use crate::observe::{ByName, CLASSES, Snapshot};
use crate::rules::list::Kind;

/// What does not need the kernel.
pub(super) fn page(
    (status, started): (&Status, UtcMillis),
    config: &Config,
    (proxy, by_name): (&Snapshot, &ByName),
) -> String {
    let mut page = Page::default();
    page.gauge("gateway_info", "The version of the gateway.")
        .with(&[("version", &status.version)], 1);
    page.gauge("gateway_start_time_seconds", "When the gateway started, in seconds of Unix time.")
        .only(started.0 / 1000);
    let rules = &status.rules;
    let mut lists = page.gauge("gateway_rules", "Rules of all origins, enforced or not, by list.");
    for (list, count) in [
        ("allow", rules.allow),
        ("deny", rules.deny),
        ("limit", rules.limit),
        ("protected", rules.protected),
        ("held_back", rules.held_back),
    ] {
        lists.with(&[("list", list)], count as u64);
    }
    let kernel = &status.kernel;
    page.gauge("gateway_kernel_enforcing", "1 if rules are enforced in the kernel.")
        .only(kernel.enforcing.into());
    page.gauge("gateway_kernel_dry_run", "1 if the kernel counts drops and drops nothing.")
        .only(kernel.dry_run.into());
    let help = "1 if the XDP program runs on the interface, in the mode that the kernel reports.";
    let mut attached = page.gauge("gateway_kernel_interface_attached", help);
    for interface in &kernel.interfaces {
        let mode = interface.mode.map_or("none", |mode| mode.name());
        let labels = [("interface", interface.name.as_str()), ("mode", mode)];
        attached.with(&labels, interface.mode.is_some().into());
    }
    page.gauge("gateway_kernel_tables_bytes", "Memory of the kernel's maps, as it accounts it.")
        .only(kernel.memory_bytes);
    page.gauge("gateway_kernel_rules_max", "Rules of one family that fit: kernel.max_rules.")
        .only(config.kernel.max_rules.into());
    page.gauge("gateway_kernel_buckets_max", "Buckets that are remembered: kernel.max_sources.")
        .only(config.kernel.max_sources.into());
    certificates(&mut page, status);
    connections(&mut page, proxy);
    requests(&mut page, proxy);
    proxy.feedback.page(&mut page);
    traffic(&mut page, &ROUTE, &by_name.routes);
    traffic(&mut page, &UPSTREAM, &by_name.upstreams);
    let upstreams = by_name.upstreams.iter().map(|(name, sum)| (name.as_str(), sum.resilience));
    resilience::page(&mut page, &upstreams.collect::<Vec<_>>());
    guards::page(&mut page, &status.guards);
    views::page(&mut page, &status.upstreams);
    page.text()
}

/// Lines of the audit trail that were not written.
pub(super) fn audit(lost: u64) -> String {
    let mut page = Page::default();
    let help = "Lines of the audit trail that could not be written.";
    page.counter("gateway_audit_lines_lost_total", help).only(lost);
    page.text()
}

/// What was found out about callers: the first `max` authenticators each, the others together.
pub(super) fn authentications(authenticators: &Authenticators, max: usize) -> String {
    let mut page = Page::default();
    if !authenticators.is_empty() {
        let help = "Requests that an authenticator was asked about, by what it said.";
        let mut asked = page.counter("gateway_authentications_total", help);
        outcomes(&mut asked, ["authenticator", "outcome"], authenticators.outcomes(), max);
    }
    let mut unknown = authenticators.unknown_for().take(max).peekable();
    if unknown.peek().is_some() {
        let help = "For how long it has not been known which API keys were revoked.";
        let mut gauge = page.gauge("gateway_api_keys_unknown_seconds", help);
        for (authenticator, time) in unknown {
            gauge.with(&[("authenticator", authenticator)], time.as_secs());
        }
    }
    page.text()
}

/// What limits have decided: the first `max` each, the others together.
pub(super) fn limits(limits: &Limits, max: usize) -> String {
    let mut page = Page::default();
    let mut decisions = limits.outcomes().peekable();
    if decisions.peek().is_some() {
        let help = "Requests that a limit was asked about, by what it decided.";
        let mut asked = page.counter("gateway_limit_decisions_total", help);
        outcomes(&mut asked, ["limit", "outcome"], decisions, max);
    }
    let mut fallbacks = limits.fallbacks().peekable();
    if fallbacks.peek().is_some() {
        let help =
            "Requests that a limit of all gateways decided about without Redis, by what it did.";
        let mut asked = page.counter("gateway_limit_fallbacks_total", help);
        outcomes(&mut asked, ["limit", "fallback"], fallbacks, max);
    }
    if let Some(unreported) = limits.unreported() {
        let help = "What synchronised limits gave away and other gateways will not learn of.";
        page.counter("gateway_limit_unreported_total", help).only(unreported);
    }
    page.text()
}

/// Counts by name and outcome: the first `max` names have series of their own.
fn outcomes<'n, const N: usize>(
    family: &mut Family<'_>,
    labels: [&'static str; 2],
    mut all: impl Iterator<Item = (&'n str, [(&'static str, u64); N])>,
    max: usize,
) {
    let others = |first: [(&'static str, u64); N], more: [(&'static str, u64); N]| {
        let mut more = more.into_iter();
        first.map(|(outcome, sum)| (outcome, sum + more.next().map_or(0, |(_, count)| count)))
    };
    let own: Vec<_> = all.by_ref().take(max).collect();
    let others = all.map(|(_, counts)| counts).reduce(others).map(|counts| (OTHER, counts));
    let [name_label, outcome_label] = labels;
    for (name, counts) in own.into_iter().chain(others) {
        for (outcome, count) in counts {
            family.with(&[(name_label, name), (outcome_label, outcome)], count);
        }
    }
}

fn certificates(page: &mut Page, status: &Status) {
    let help = "When a certificate of a listener ends, in seconds of Unix time, by its file.";
    let mut ends = page.gauge("gateway_tls_certificate_not_after_seconds", help);
    for certificate in &status.certificates {
        ends.with(&[("file", &certificate.file)], certificate.not_after.0 / 1000);
    }
}

fn connections(page: &mut Page, proxy: &Snapshot) {
    let connections = &proxy.connections;
    page.counter("gateway_connections_accepted_total", "Connections of clients, refused ones too.")
        .only(connections.accepted);
    page.gauge("gateway_connections_open", "Connections of clients that are open.")
        .only(connections.open);
    let help = "Connections of clients that rest between two requests, parked.";
    page.gauge("gateway_connections_parked", help).only(connections.parked);
    let help = "Connections closed before a request was read, by reason.";
    let mut refused = page.counter("gateway_connections_refused_total", help);
    for (reason, count) in &connections.refused {
        refused.with(&[("reason", reason)], *count);
    }
    let help = "Streams of HTTP/2 refused before their requests were seen, by reason.";
    let mut streams = page.counter("gateway_streams_refused_total", help);
    for (reason, count) in &connections.streams_refused {
        streams.with(&[("reason", reason)], *count);
    }
    let help = "Connections closed because of what a client did or did not do, by reason.";
    page.counter("gateway_connections_failed_total", help)
        .with(&[("reason", "head_malformed")], connections.heads_malformed)
        .with(&[("reason", "head_timed_out")], connections.heads_timed_out)
        .with(&[("reason", "reader_timed_out")], connections.readers_timed_out)
        .with(&[("reason", "tunnel_timed_out")], connections.tunnels_timed_out)
        .with(&[("reason", "frame_malformed")], connections.frames_malformed)
        .with(&[("reason", "flood")], connections.floods);
    page.counter("gateway_access_log_lines_total", "Lines of the access log, lost ones too.")
        .only(proxy.access_log.lines);
    let help = "Lines that were lost, by reason.";
    page.counter("gateway_access_log_lines_lost_total", help)
        .with(&[("reason", "queue_full")], proxy.access_log.lost_queue_full)
        .with(&[("reason", "write_failed")], proxy.access_log.lost_write_failed);
    let help = "TLS handshakes with clients, in full or by resuming a session.";
    let mut done = page.counter("gateway_tls_handshakes_total", help);
    for (kind, count) in &proxy.handshakes.done {
        done.with(&[("kind", kind)], *count);
    }
    let help = "TLS handshakes with clients that came to nothing, by reason.";
    let mut failed = page.counter("gateway_tls_handshakes_failed_total", help);
    for (reason, count) in &proxy.handshakes.failed {
        failed.with(&[("reason", reason)], *count);
    }
    page.counter("gateway_received_bytes_total", "Bytes read from clients.")
        .only(proxy.bytes_received);
    page.counter("gateway_sent_bytes_total", "Bytes written to clients.").only(proxy.bytes_sent);
    page.counter("gateway_upstream_connections_opened_total", "Connections opened to endpoints.")
        .only(proxy.upstream.opened);
    let help = "Requests that found a connection to their endpoint.";
    page.counter("gateway_upstream_connections_reused_total", help).only(proxy.upstream.reused);
}

fn requests(page: &mut Page, proxy: &Snapshot) {
    let requests = &proxy.requests;
    page.gauge("gateway_requests_active", "Requests that are being answered.")
        .only(requests.active);
    let mut answered =
        page.counter("gateway_requests_total", "Requests that were answered, by class of status.");
    for (status, count) in &requests.answered {
        answered.with(&[("status", status)], *count);
    }
    let help = "Requests that the gateway itself answered with an error, by kind.";
    let mut errors = page.counter("gateway_request_errors_total", help);
    for (kind, count) in &requests.errors {
        errors.with(&[("kind", kind)], *count);
    }
    let help = "Requests whose client left before the head of an answer.";
    page.counter("gateway_requests_abandoned_total", help).only(requests.abandoned);
    page.counter(
        "gateway_answers_broken_total",
        "Answers that broke off midway, from either side.",
    )
    .only(requests.broken);
}

/// The metrics of requests by one name, each with its help.
struct Names {
    label: &'static str,
    requests: [&'static str; 2],
    errors: [&'static str; 2],
    request_bytes: [&'static str; 2],
    response_bytes: [&'static str; 2],
    duration: [&'static str; 2],
}

const ROUTE: Names = Names {
    label: "route",
    requests: ["gateway_route_requests_total", "Requests by route and class of status."],
    errors: ["gateway_route_errors_total", "Requests that ended in an error, by kind."],
    request_bytes: ["gateway_route_request_bytes_total", "Bytes of bodies from clients."],
    response_bytes: ["gateway_route_response_bytes_total", "Bytes of bodies to clients."],
    duration: [
        "gateway_route_duration_seconds",
        "Time from the head of a request to the end of its answer.",
    ],
};

const UPSTREAM: Names = Names {
    label: "upstream",
    requests: [
        "gateway_upstream_requests_total",
        "Requests that were sent to an upstream, by class of the status that the client got.",
    ],
    errors: [
        "gateway_upstream_errors_total",
        "Requests that were sent to an upstream and ended in an error, by kind.",
    ],
    request_bytes: ["gateway_upstream_request_bytes_total", "Bytes of bodies to an upstream."],
    response_bytes: ["gateway_upstream_response_bytes_total", "Bytes of bodies of its answers."],
    duration: [
        "gateway_upstream_duration_seconds",
        "Time from sending a request to the head of its answer.",
    ],
};

/// What was never asked for shows its requests, which are none, so that no first increase is lost, and nothing else.
fn traffic(page: &mut Page, names: &Names, by_name: &[(String, Sum)]) {
    let [name, help] = names.requests;
    let mut requests = page.counter(name, help);
    for (own, sum) in by_name {
        for (status, count) in CLASSES.iter().zip(&sum.statuses) {
            requests.with(&[(names.label, own), ("status", status)], *count);
        }
        requests.with(&[(names.label, own), ("status", "abandoned")], sum.abandoned);
    }
    let [name, help] = names.errors;
    let mut errors = page.counter(name, help);
    for (own, sum) in by_name {
        for (kind, count) in ErrorKind::ALL.into_iter().zip(&sum.errors).filter(|(_, n)| **n > 0) {
            errors.with(&[(names.label, own), ("kind", kind.name())], *count);
        }
    }
    let used = || by_name.iter().filter(|(_, sum)| sum.requests() > 0);
    let [name, help] = names.request_bytes;
    let mut bytes = page.counter(name, help);
    for (own, sum) in used() {
        bytes.with(&[(names.label, own)], sum.request_bytes);
    }
    let [name, help] = names.response_bytes;
    let mut bytes = page.counter(name, help);
    for (own, sum) in used() {
        bytes.with(&[(names.label, own)], sum.response_bytes);
    }
    let [name, help] = names.duration;
    let mut durations = page.histogram(name, help);
    for (own, sum) in used() {
        durations.durations(&[(names.label, own)], &sum.durations);
    }
}

/// The lists, each by its name: there are no more than may be.
pub(super) fn lists(lists: &[ListView]) -> String {
    let mut page = Page::default();
    let mut entries = page.gauge("gateway_list_entries", "Entries of a list in force.");
    for list in lists {
        let labels = [("list", &list.name), ("kind", &list.kind), ("action", &list.action)];
        entries.with(&labels.map(|(label, value)| (label, value.as_str())), list.entries as u64);
    }
    let mut each = |kinds: &[&str], name, help, value: &dyn Fn(&ListView) -> u64| {
        let mut family = page.gauge(name, help);
        for list in lists.iter().filter(|list| kinds.contains(&list.kind.as_str())) {
            family.with(&[("list", &list.name)], value(list));
        }
    };
    let [import, file, feed] = [Kind::Import, Kind::File, Kind::Feed].map(Kind::name);
    let help = "When the version of a list in force was read, in seconds of Unix time; 0: none is.";
    each(&[import, file, feed], "gateway_list_version_time_seconds", help, &|list| {
        list.created_utc_ms.0 / 1000
    });
    let help = "When a feed was last fetched with success, in seconds of Unix time; 0: never.";
    each(&[feed], "gateway_list_fetched_time_seconds", help, &|list| list.checked_utc_ms.0 / 1000);
    let help = "Attempts to read a list that failed since one did not.";
    each(&[file, feed], "gateway_list_failures", help, &|list| list.failures.into());
    let help = "1 if a newer version of a list waits for somebody to accept it.";
    each(&[file, feed], "gateway_list_held_back", help, &|list| list.held_back.into());
    let help =
        "Packets that met a rule of a list, also in a dry run, since there is one of this name.";
    let mut packets = page.counter("gateway_kernel_list_packets_total", help);
    for (list, met) in lists.iter().filter_map(|list| Some((list, list.packets?))) {
        packets.with(&[("list", &list.name)], met);
    }
    page.text()
}

/// What the kernel's counters say.
pub(super) fn kernel(door: &Door, events: u64) -> Result<String, TablesError> {
    let mut page = Page::default();
    let slots = door.counters().slots.in_use()?;
    let mut samples = Vec::new();
    for (slot, interface) in &slots {
        for origin in origins() {
            let by = [
                ("origin", origin.map_or("none", Origin::name)),
                ("interface", interface.as_str()),
            ];
            for count in door.counters().of(*slot, origin)? {
                sample(&count, by, &mut samples);
            }
        }
    }
    let help = "Packets by reason, by what became of them, by who made the rule that decided, and \
                by interface.";
    let mut packets = page.counter("gateway_kernel_packets_total", help);
    for (labels, counter) in &samples {
        packets.with(labels, counter.packets);
    }
    let help = "Bytes of the frames of these packets.";
    let mut bytes = page.counter("gateway_kernel_bytes_total", help);
    for (labels, counter) in &samples {
        bytes.with(labels, counter.bytes);
    }
    let help = "Dropped packets that were reported as events, a sample.";
    page.counter("gateway_kernel_events_total", help).only(events);
    Ok(page.text())
}

type Labels<'a> = [(&'static str, &'a str); 4];

/// Every reason has a series from the start, so that no first increase is lost; most origins of most reasons cannot be.
fn sample<'a>(
    count: &Count,
    [origin, interface]: [(&'static str, &'a str); 2],
    samples: &mut Vec<(Labels<'a>, Counter)>,
) {
    let verdict = match count.reason.verdict() {
        Verdict::Pass => "pass",
        Verdict::Drop => "drop",
    };
    let mut add = |counter: Counter, verdict| {
        samples.push((
            [("reason", count.reason.name()), ("verdict", verdict), origin, interface],
            counter,
        ));
    };
    if count.done.packets > 0 || origin.1 == "none" {
        add(count.done, verdict);
    }
    if count.would.packets > 0 {
        add(count.would, "would_drop");
    }
}

/// The rules that the kernel holds.
pub(super) fn rules(counts: &BTreeMap<census::Kind, u64>) -> String {
    let mut page = Page::default();
    let help = "Rules that the kernel holds, by family, by who made them and by what they do.";
    let mut rules = page.gauge("gateway_kernel_rules", help);
    for (kind, count) in counts {
        let family = if kind.v4 { "ipv4" } else { "ipv6" };
        let labels =
            [("family", family), ("origin", kind.origin.name()), ("action", kind.action.name())];
        rules.with(&labels, *count);
    }
    page.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_names_than_there_is_room_for_share_their_series() {
        let text = |max| {
            let all = ["a", "b", "c", "d"].iter().zip(1..);
            let all = all.map(|(name, count)| (*name, [("yes", count), ("no", 10 * count)]));
            let mut page = Page::default();
            outcomes(&mut page.counter("x_total", "What x is."), ["who", "what"], all, max);
            page.text().lines().skip(2).map(str::to_owned).collect::<Vec<_>>()
        };
        let bounded = [
            r#"x_total{who="a",what="yes"} 1"#,
            r#"x_total{who="a",what="no"} 10"#,
            r#"x_total{who="b",what="yes"} 2"#,
            r#"x_total{who="b",what="no"} 20"#,
            r#"x_total{who="_other",what="yes"} 7"#,
            r#"x_total{who="_other",what="no"} 70"#,
        ];
        assert_eq!(text(2), bounded);
        assert_eq!(text(0).len(), 2);
        assert!(text(4).iter().all(|line| !line.contains("_other")));
    }
}
