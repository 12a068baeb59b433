//! What the reference calls a default is one: a file that writes all of them means what a file without them means.

use super::*;

const REFERENCE: &str = include_str!("../../../../docs/configuration.md");

/// The keys of the table behind a heading whose default is a value, with that value.
fn defaults(heading: &str) -> Vec<(&'static str, &'static str)> {
    let (_, section) = REFERENCE.split_once(&format!("\n{heading}\n")).expect(heading);
    let rows = section.lines().take_while(|line| !line.starts_with('#')).filter_map(|line| {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let key = code(cells.next()?)?;
        let default = cells.nth(1)?;
        let is_number = default.starts_with(|first: char| first.is_ascii_digit());
        let value = code(default).or_else(|| Some(default).filter(|_| is_number));
        let value = value.filter(|value| value.starts_with('[') || !value.contains(' '));
        Some((key, value?)).filter(|_| !key.contains("[]"))
    });
    rows.collect()
}

/// What stands between the only two backticks.
fn code(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`').filter(|text| !text.contains('`'))
}

/// Keys with dots between as sections within sections.
fn section(pairs: &[(&str, &str)]) -> String {
    let mut sections: Vec<(&str, Vec<(&str, &str)>)> = Vec::new();
    for (key, value) in pairs {
        let (first, rest) = key.split_once('.').unwrap_or((key, ""));
        match sections.iter_mut().find(|(name, _)| *name == first) {
            Some((_, within)) => within.push((rest, value)),
            None => sections.push((first, vec![(rest, value)])),
        }
    }
    let written = sections.iter().map(|(name, within)| match within.as_slice() {
        [("", value)] => format!("{name}: {value}"),
        within => format!("{name}: {}", section(within)),
    });
    format!("{{{}}}", written.collect::<Vec<_>>().join(", "))
}

#[test]
fn the_defaults_of_the_reference_are_the_defaults() {
    // Where it stands, and what there must be for the rest to mean anything.
    let sections: [(_, _, &[_]); 9] = [
        ("## `access_log`", "access_log: $", &[("path", "stdout")]),
        ("## `tracing`", "tracing: $", &[("propagate", "[w3c]")]),
        ("## `bounds`", "bounds: $", &[]),
        ("## `discovery`", "discovery: $", &[]),
        (
            "## `upstreams.NAME`",
            "upstreams: {a: $}",
            &[("endpoints", "['127.0.0.1:1']"), ("tls.verify", "true"), ("hedge.after", "p95")],
        ),
        ("### `upstreams.NAME.retry`", "upstreams: {a: {endpoints: [echo], retry: $}}", &[]),
        ("### `upstreams.NAME.health`", "upstreams: {a: {endpoints: [echo], health: $}}", &[]),
        (
            "### `upstreams.NAME.breaker`",
            "upstreams: {a: {endpoints: [echo], breaker: $}}",
            &[("failure_share", "50%"), ("fallback.body", "a")],
        ),
        (
            "### `upstreams.NAME.concurrency`",
            "upstreams: {a: {endpoints: [echo], concurrency: $}}",
            &[("limit", "adaptive")],
        ),
    ];
    for (heading, text, needed) in sections {
        let read = |pairs: &[(&str, &str)]| {
            let text = text.replace('$', &section(pairs));
            with(&text).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
        };
        let mut written = needed.to_vec();
        let is_new = |(key, _): &(&str, _)| needed.iter().all(|(needed, _)| needed != key);
        written.extend(defaults(heading).into_iter().filter(is_new));
        assert!(written.len() > needed.len() + 1, "{heading}: {written:?}");
        assert_eq!(read(&written), read(needed), "{heading}: {written:?}");
    }
}
