//! `feedback` as typed, and how it is read. Refuses rules that could never decide, and those that nobody could enforce.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::crowdsec::{RawCrowdsec, crowdsec};
use super::spread::{RawSpread, spread};
use super::{Ceiling, Feedback, FeedbackBy, FeedbackRule, Measure, SharedSource, defaults};
use crate::base::signal::Signal;
use crate::config::at::At;
use crate::config::diagnostic::suggestion;
use crate::config::forms::{Named, OneOrList};
use crate::config::raw::Raw;
use crate::config::tree::shorten;
use crate::config::value::{count, interval, name, share, within_u32};
use crate::config::{Kernel, Profile, Share};

const RULES_MAX: usize = 32;
const COUNT_MAX: u64 = 1_000_000;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Longer than that an address rarely belongs to the same person.
const LASTS_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Sources that are told apart of a prefix.
const SOURCES: RangeInclusive<u64> = 2..=128;
const WEIGHT_MAX: u32 = 100_000;
const SCANNER_PATHS_MAX: usize = 1024;
const SCANNER_PATH_BYTES_MAX: usize = 256;
const MAX_SOURCES: RangeInclusive<u64> = 1024..=1 << 22;
/// Shorter prefixes are whole providers.
const IPV4_PREFIXES: RangeInclusive<u64> = 16..=31;
const IPV6_PREFIX_MIN: u64 = 24;
const CONSUMERS: RangeInclusive<u64> = 2..=64;
const EVIDENCE: RangeInclusive<u64> = 1..=1000;
const BANS_PER_MINUTE: RangeInclusive<u64> = 1..=10_000;

/// `feedback` as typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawFeedback {
    dry_run: bool,
    /// Default: those of [`defaults`].
    rules: Option<Vec<RawRule>>,
    weights: Named<String>,
    /// Default: those of [`defaults`].
    scanner_paths: Option<Vec<String>>,
    /// Default: 65536.
    max_sources: Option<u64>,
    prefixes: RawPrefixes,
    shared: RawShared,
    ceiling: RawCeiling,
    spread: Option<RawSpread>,
    crowdsec: Option<RawCrowdsec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: String,
    when: RawWhen,
    /// Exactly one of these three.
    #[serde(default)]
    ban: Option<RawLasts>,
    #[serde(default)]
    slow_down: Option<RawSlowDown>,
    #[serde(default)]
    reset: Option<RawLasts>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWhen {
    signal: OneOrList<String>,
    count: u64,
    per: String,
    /// Of rate_limited.
    #[serde(default)]
    limit: Option<String>,
    #[serde(default)]
    by: RawBy,
    /// Of a prefix. Default: 10.
    #[serde(default)]
    sources: Option<u64>,
    #[serde(default)]
    under_pressure: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawBy {
    #[default]
    Source,
    Prefix,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLasts {
    #[serde(rename = "for")]
    lasts: String,
    /// Default: as long as the first time.
    #[serde(default)]
    doubling_up_to: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSlowDown {
    profile: String,
    #[serde(rename = "for")]
    lasts: String,
    /// Default: as long as the first time.
    #[serde(default)]
    doubling_up_to: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawPrefixes {
    /// Default: 24.
    ipv4: Option<u64>,
    /// Default: 48, or 8 bits less than a source has.
    ipv6: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawShared {
    consumers: u64,
    /// A number or `never`.
    evidence: String,
}

impl Default for RawShared {
    fn default() -> Self {
        Self { consumers: 2, evidence: NEVER.to_owned() }
    }
}

const NEVER: &str = "never";

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawCeiling {
    bans_per_minute: u64,
    good_share: String,
}

impl Default for RawCeiling {
    fn default() -> Self {
        Self { bans_per_minute: 60, good_share: "10%".to_owned() }
    }
}

/// What rules refer to.
#[derive(Clone, Copy)]
struct Around<'a> {
    profiles: &'a [Profile],
    /// Names of all limits.
    limits: &'a [&'a str],
}

type Weights = [u32; Signal::ALL.len()];

pub(in crate::config) fn feedback(
    raw: &Raw,
    (kernel, limits): (&Kernel, &[&str]),
    folder: &Path,
    at: At<'_>,
) -> Option<Arc<Feedback>> {
    let has_redis = raw.state.redis.is_some();
    let (raw, at) = (raw.feedback.as_ref()?, at.key("feedback"));
    let around = Around { profiles: &kernel.profiles, limits };
    let weights = weights(&raw.weights, at.key("weights"));
    Some(Arc::new(Feedback {
        dry_run: raw.dry_run,
        rules: match &raw.rules {
            Some(raw) => rules(raw, &weights, around, at.key("rules")),
            None => defaults::rules(),
        },
        weights,
        scanner_paths: match &raw.scanner_paths {
            Some(raw) => scanner_paths(raw, at.key("scanner_paths")),
            None => defaults::SCANNER_PATHS.map(Box::from).into(),
        },
        max_sources: raw.max_sources.map_or(65_536, |most| {
            within_u32(most, MAX_SOURCES, at.key("max_sources")).unwrap_or_default()
        }),
        prefix_bits: prefix_bits(&raw.prefixes, kernel.ipv6_source_length, at.key("prefixes")),
        shared: shared(&raw.shared, at.key("shared")),
        ceiling: ceiling(&raw.ceiling, at.key("ceiling")),
        spread: raw
            .spread
            .as_ref()
            .and_then(|raw| spread(raw, (folder, has_redis), at.key("spread"))),
        crowdsec: raw.crowdsec.as_ref().and_then(|raw| crowdsec(raw, folder, at.key("crowdsec"))),
    }))
}

fn signal(text: &str, at: At<'_>) -> Option<Signal> {
    let found = Signal::ALL.into_iter().find(|signal| signal.name() == text);
    if found.is_none() {
        let help = suggestion(text, Signal::ALL.map(Signal::name)).unwrap_or_default();
        at.error_with_help(format!("there is no signal `{}`", shorten(text)), help);
    }
    found
}

fn weights(raw: &Named<String>, at: At<'_>) -> Weights {
    let mut weights = Signal::ALL.map(defaults::weight);
    for (index, (key, text)) in raw.0.iter().enumerate() {
        let at = at.entry(index);
        let Some(signal) = signal(key, at.on_key()) else { continue };
        let thousandths = thousandths(text).filter(|weight| *weight <= WEIGHT_MAX);
        match (thousandths, weights.get_mut(signal as usize)) {
            (Some(thousandths), Some(weight)) => *weight = thousandths,
            _ => at.error_with_help(
                format!("`{}` is no weight", shorten(text)),
                "write 0 to 100, with up to three decimals, such as 2 or 0.5; 0 counts nothing",
            ),
        }
    }
    weights
}

/// `2` or `0.5`.
fn thousandths(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || fraction.len() > 3 {
        return None;
    }
    let fraction: u32 = format!("{fraction:0<3}").parse().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(fraction)
}

fn rules(raw: &[RawRule], weights: &Weights, around: Around<'_>, at: At<'_>) -> Vec<FeedbackRule> {
    if raw.len() > RULES_MAX {
        let message = format!("these are {} rules", raw.len());
        at.on_key().error_with_help(message, format!("write at most {RULES_MAX}"));
    }
    let mut taken: HashMap<&str, usize> = HashMap::new();
    let mut rules = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let at = at.item(index);
        if name(&raw.name, "a rule", at.key("name")) {
            if let Some(line) = taken.get(raw.name.as_str()) {
                at.key("name").error_with_help(
                    format!("two rules are called `{}`", raw.name),
                    format!("the other is in line {line}: give one of them another name"),
                );
            }
            taken.insert(&raw.name, at.key("name").line());
        }
        rules.extend(rule(raw, weights, around, at));
    }
    rules
}

/// All that is wrong with it at once.
fn rule(raw: &RawRule, weights: &Weights, around: Around<'_>, at: At<'_>) -> Option<FeedbackRule> {
    let when = at.key("when");
    let signals = signals(&raw.when.signal, weights, when.key("signal"));
    let limit = raw.when.limit.as_ref();
    let limit = limit.and_then(|limit| self::limit(limit, &signals, around, when.key("limit")));
    let count = within_u32(raw.when.count, 1..=COUNT_MAX, when.key("count"));
    let per = interval(&raw.when.per, SECOND..=DAY, when.key("per"));
    let by = by(&raw.when, when);
    let (measure, [lasts, doubling_up_to]) = measure(raw, around, at)?;
    Some(FeedbackRule {
        name: raw.name.as_str().into(),
        signals,
        limit,
        count: count?,
        per: per?,
        by: by?,
        under_pressure: raw.when.under_pressure,
        measure,
        lasts,
        doubling_up_to,
    })
}

fn signals(raw: &OneOrList<String>, weights: &Weights, at: At<'_>) -> Vec<Signal> {
    let mut found = Vec::new();
    for (text, at) in raw.each(at).filter(|(_, at)| !at.is_hole()) {
        let Some(signal) = signal(text, at) else { return Vec::new() };
        if found.contains(&signal) {
            at.error_with_help(format!("`{text}` is given twice"), "remove one of the two");
        }
        found.push(signal);
    }
    let weigh = |signal: &Signal| weights.get(*signal as usize).is_some_and(|weight| *weight > 0);
    if found.is_empty() {
        at.on_key().error_with_help("no signal is named", "name one, such as auth_failed");
    } else if !found.iter().any(weigh) {
        at.error_with_help(
            "what counts nothing never decides",
            "give one of these signals a weight in `feedback.weights`",
        );
    }
    found
}

fn limit(text: &str, signals: &[Signal], around: Around<'_>, at: At<'_>) -> Option<String> {
    if !signals.contains(&Signal::RateLimited) {
        at.on_key().error_with_help(
            "`limit` means nothing without the signal rate_limited",
            "remove it, or name rate_limited as `signal`",
        );
    }
    if !around.limits.contains(&text) {
        let help = suggestion(text, around.limits.iter().copied());
        let help = help.unwrap_or_else(|| "add it to `limits`, with this `name`".to_owned());
        at.error_with_help(format!("there is no limit `{}`", shorten(text)), help);
        return None;
    }
    Some(text.to_owned())
}

fn by(raw: &RawWhen, at: At<'_>) -> Option<FeedbackBy> {
    match (raw.by, raw.sources) {
        (RawBy::Source, None) => Some(FeedbackBy::Source),
        (RawBy::Source, Some(_)) => {
            at.key("sources").on_key().error_with_help(
                "`sources` means nothing where each source is by itself",
                "remove it, or write by: prefix",
            );
            None
        }
        (RawBy::Prefix, sources) => {
            let sources = within_u32(sources.unwrap_or(10), SOURCES, at.key("sources"))?;
            Some(FeedbackBy::Prefix { sources })
        }
    }
}

fn measure(raw: &RawRule, around: Around<'_>, at: At<'_>) -> Option<(Measure, [Duration; 2])> {
    let lasts = |raw: &RawLasts, at| lasts(&raw.lasts, raw.doubling_up_to.as_deref(), at);
    match (&raw.ban, &raw.slow_down, &raw.reset) {
        (Some(raw), None, None) => Some((Measure::Ban, lasts(raw, at.key("ban"))?)),
        (None, None, Some(raw)) => Some((Measure::Reset, lasts(raw, at.key("reset"))?)),
        (None, Some(raw), None) => {
            let at = at.key("slow_down");
            let profile = profile(&raw.profile, around, at.key("profile"));
            let lasts = self::lasts(&raw.lasts, raw.doubling_up_to.as_deref(), at);
            Some((Measure::SlowDown { profile: profile? }, lasts?))
        }
        (None, None, None)
            if ["ban", "slow_down", "reset"].iter().any(|key| at.key(key).is_hole()) =>
        {
            None
        }
        _ => {
            at.error_with_help(
                "a rule does exactly one thing",
                "write one of ban: {for: 10m}, reset: {for: 10m} and \
                 slow_down: {profile: NAME, for: 10m}",
            );
            None
        }
    }
}

fn profile(text: &str, around: Around<'_>, at: At<'_>) -> Option<String> {
    let profiles = around.profiles.iter().map(|profile| profile.name.as_str());
    if profiles.clone().any(|name| name == text) {
        return Some(text.to_owned());
    }
    let help = suggestion(text, profiles);
    let help = help.unwrap_or_else(|| "add it to `kernel.profiles`".to_owned());
    at.error_with_help(format!("there is no profile `{}`", shorten(text)), help);
    None
}

fn lasts(first: &str, most: Option<&str>, at: At<'_>) -> Option<[Duration; 2]> {
    let lasts = interval(first, SECOND..=LASTS_MAX, at.key("for"));
    let most_at = at.key("doubling_up_to");
    let most = most.map(|most| interval(most, SECOND..=LASTS_MAX, most_at));
    let lasts = lasts?;
    let most = most.unwrap_or(Some(lasts))?;
    if most < lasts {
        most_at.error_with_help(
            "`doubling_up_to` is less than `for`",
            "write the longest time here, or leave it out: then it is the same each time",
        );
    }
    Some([lasts, most])
}

fn scanner_paths(raw: &[String], at: At<'_>) -> Arc<[Box<str>]> {
    if raw.len() > SCANNER_PATHS_MAX {
        let message = format!("these are {} paths", raw.len());
        at.on_key().error_with_help(message, format!("write at most {SCANNER_PATHS_MAX}"));
    }
    let mut seen = HashSet::new();
    let mut paths = Vec::new();
    for (index, text) in raw.iter().enumerate() {
        let at = at.item(index);
        let path = text.to_ascii_lowercase();
        let beginning = path.strip_suffix('*').unwrap_or(&path);
        let is_path = beginning.starts_with('/')
            && beginning.bytes().all(|byte| byte.is_ascii_graphic() && !b"*?#".contains(&byte))
            && path.len() <= SCANNER_PATH_BYTES_MAX;
        if !is_path {
            at.error_with_help(
                format!("`{}` is no path of scanners", shorten(text)),
                "write one such as /.env or /wp-*: from the first `/` on, without a query, `*` \
                 only at its end, at most 256 bytes",
            );
        } else if path == "/*" {
            at.error_with_help("`/*` is every path", "name paths that only scanners ask for");
        } else if !seen.insert(path.clone()) {
            let message = format!("`{}` is given twice", shorten(text));
            at.error_with_help(message, "remove one of the two: upper and lower case are the same");
        } else {
            paths.push(path.into());
        }
    }
    paths.into()
}

fn prefix_bits(raw: &RawPrefixes, source: u8, at: At<'_>) -> [u8; 2] {
    let source = u64::from(source);
    let ipv4 = count(raw.ipv4.unwrap_or(24), IPV4_PREFIXES, at.key("ipv4"));
    let ipv6 = match raw.ipv6 {
        None => Some(source.saturating_sub(8).min(48)),
        Some(bits) if (IPV6_PREFIX_MIN..source).contains(&bits) => Some(bits),
        Some(bits) => {
            at.key("ipv6").error_with_help(
                format!("{bits} is out of bounds"),
                format!(
                    "write {IPV6_PREFIX_MIN} to {}: a source has {source} bits \
                     (`kernel.ipv6_source_length`)",
                    source.saturating_sub(1)
                ),
            );
            None
        }
    };
    [ipv4.and_then(|bits| u8::try_from(bits).ok()), ipv6.and_then(|bits| u8::try_from(bits).ok())]
        .map(Option::unwrap_or_default)
}

fn shared(raw: &RawShared, at: At<'_>) -> SharedSource {
    let text = raw.evidence.as_str();
    let times = text.parse().ok().filter(|times| EVIDENCE.contains(times));
    if text != NEVER && times.is_none() {
        at.key("evidence").error_with_help(
            format!("`{}` is no evidence", shorten(text)),
            "write never, or how many times the evidence it takes: 1 to 1000",
        );
    }
    SharedSource {
        consumers: within_u32(raw.consumers, CONSUMERS, at.key("consumers")).unwrap_or_default(),
        evidence: times.and_then(|times| u32::try_from(times).ok()),
    }
}

fn ceiling(raw: &RawCeiling, at: At<'_>) -> Ceiling {
    let bans = within_u32(raw.bans_per_minute, BANS_PER_MINUTE, at.key("bans_per_minute"));
    let good = share(&raw.good_share, Share::ZERO..=Share::WHOLE, at.key("good_share"));
    Ceiling { bans_per_minute: bans.unwrap_or_default(), good_share: good.unwrap_or(Share::ZERO) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{only, with};

    fn read(keys: &str) -> Feedback {
        let text = format!(
            "kernel: {{profiles: {{tight: {{packets: 10/s}}}}}}\n\
             limits: [{{name: logins, per: client_address, rate: 5/min}}]\n\
             feedback: {{{keys}}}"
        );
        let feedback = with(&text).unwrap_or_else(|errors| panic!("{errors}")).feedback;
        Arc::unwrap_or_clone(feedback.unwrap())
    }

    /// That a rule has exactly this mistake.
    fn rule(when: &str, what: &str, message: &str, pointed: &str) {
        only(
            &format!("feedback: {{rules: [{{name: a,\n when: {when},\n {what}}}]}}"),
            message,
            pointed,
        );
    }

    const WHEN: &str = "{signal: auth_failed, count: 20, per: 1m}";
    const BAN: &str = "ban: {for: 10m}";

    #[test]
    fn without_the_section_nothing_is_noticed_and_an_empty_one_has_defaults() {
        assert_eq!(with("").unwrap().feedback, None);
        assert_eq!(with("feedback: null").unwrap().feedback, None);
        let defaults = read("");
        assert_eq!(with("feedback:").unwrap().feedback.as_deref(), Some(&defaults));
        let Feedback { dry_run, rules, weights, scanner_paths, max_sources, .. } = &defaults;
        assert_eq!((*dry_run, *max_sources, defaults.prefix_bits), (false, 65_536, [24, 48]));
        assert_eq!(defaults.shared, SharedSource { consumers: 2, evidence: None });
        let good_share = Share::per_million(100_000);
        assert_eq!(defaults.ceiling, Ceiling { bans_per_minute: 60, good_share });
        assert_eq!(
            (weights[Signal::AuthFailed as usize], weights[Signal::NoRequest as usize]),
            (1000, 0)
        );
        assert!(scanner_paths.contains(&"/.env*".into()));
        let names: HashSet<_> = rules.iter().map(|rule| &rule.name).collect();
        assert_eq!(names.len(), rules.len());
        assert!(rules.iter().all(|rule| rule.lasts <= rule.doubling_up_to));
        // What is written down is what holds.
        let documented = include_str!("../../../../docs/feedback.md");
        let documented = documented.split("### The default rules").last().unwrap();
        for rule in rules {
            let lasts = humantime::format_duration(rule.lasts);
            let row =
                documented.lines().find(|line| line.contains(&format!("| `{}` |", rule.name)));
            let row = row.unwrap_or_else(|| panic!("{} is not documented", rule.name));
            let per = humantime::format_duration(rule.per).to_string();
            assert!(
                row.contains(&format!("`{}` {} in {}", rule.signals[0].name(), rule.count, per)),
                "{row}"
            );
            assert!(row.contains(&lasts.to_string()), "{row}: {lasts}");
        }
        for path in scanner_paths.iter() {
            assert!(documented.contains(&format!("`{path}`")), "{path} is not documented");
        }
    }

    #[test]
    fn the_defaults_are_paths_and_rules_that_a_file_could_have() {
        let paths = defaults::SCANNER_PATHS.map(|path| format!("'{path}'")).join(", ");
        let read = read(&format!("scanner_paths: [{paths}]"));
        assert_eq!(*read.scanner_paths, defaults::SCANNER_PATHS.map(Box::<str>::from));
    }

    #[test]
    fn everything_can_be_said() {
        let own = read(
            "dry_run: true, weights: {scanner: 2, not_found: 0.5}, \
             scanner_paths: [/.ENV, '/wp-*'], max_sources: 2048, \
             prefixes: {ipv4: 22, ipv6: 40}, shared: {consumers: 5, evidence: 20}, \
             ceiling: {bans_per_minute: 5, good_share: 0.5%}, rules: [\
             {name: stuffing, reset: {for: 1m, doubling_up_to: 1h}, \
             when: {signal: auth_failed, count: 200, per: 10m, by: prefix, sources: 12}}, \
             {name: eager, slow_down: {profile: tight, for: 2m}, when: {limit: logins, \
             signal: [rate_limited, not_found], count: 3, per: 5s, under_pressure: true}}]",
        );
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert_eq!((own.dry_run, own.max_sources, own.prefix_bits), (true, 2048, [22, 40]));
        assert_eq!(own.weights[Signal::Scanner as usize], 2000);
        assert_eq!(own.weights[Signal::NotFound as usize], 500);
        assert_eq!(*own.scanner_paths, ["/.env", "/wp-*"].map(Box::<str>::from));
        assert_eq!(own.shared, SharedSource { consumers: 5, evidence: Some(20) });
        let good_share = Share::per_million(5000);
        assert_eq!(own.ceiling, Ceiling { bans_per_minute: 5, good_share });
        let [stuffing, eager] = &own.rules[..] else { panic!("{:?}", own.rules) };
        assert_eq!(stuffing.by, FeedbackBy::Prefix { sources: 12 });
        assert_eq!((stuffing.count, stuffing.per), (200, minutes(10)));
        assert_eq!(stuffing.measure, Measure::Reset);
        assert_eq!((stuffing.lasts, stuffing.doubling_up_to), (minutes(1), minutes(60)));
        assert_eq!(eager.signals, [Signal::RateLimited, Signal::NotFound]);
        assert_eq!(eager.limit.as_deref(), Some("logins"));
        assert!(eager.under_pressure && eager.by == FeedbackBy::Source);
        assert_eq!(eager.measure, Measure::SlowDown { profile: "tight".to_owned() });
        assert_eq!((eager.lasts, eager.doubling_up_to), (minutes(2), minutes(2)));
    }

    #[test]
    fn rules_that_cannot_be_are_pointed_at() {
        let when = |more: &str| format!("{{signal: auth_failed, count: 20, per: 1m, {more}}}");
        rule(
            "{signal: auth_fail, count: 1, per: 1m}",
            BAN,
            "there is no signal `auth_fail`",
            "auth_fail",
        );
        rule("{signal: [], count: 1, per: 1m}", BAN, "no signal is named", "signal");
        rule(
            "{signal: [scanner, scanner], count: 1, per: 1m}",
            BAN,
            "`scanner` is given twice",
            "scanner",
        );
        rule(
            "{signal: no_request, count: 1, per: 1m}",
            BAN,
            "what counts nothing never decides",
            "no_request",
        );
        rule("{signal: scanner, count: 0, per: 1m}", BAN, "0 is out of bounds", "0");
        rule("{signal: scanner, count: 1, per: 25h}", BAN, "`25h` is out of bounds", "25h");
        rule("{signal: scanner, count: 1, per: 500ms}", BAN, "`500ms` is out of bounds", "500ms");
        rule("{signal: scanner, count: 1}", BAN, "`per` is missing", "when");
        rule(&when("by: net"), BAN, "expected `source` or `prefix`, found `net`", "net");
        rule(
            &when("sources: 3"),
            BAN,
            "`sources` means nothing where each source is by itself",
            "sources",
        );
        rule(&when("by: prefix, sources: 129"), BAN, "129 is out of bounds", "129");
        only(
            &format!(
                "limits: [{{name: x, per: global, rate: 5/s}}]\n\
                 feedback: {{rules: [{{name: a,\n when: {},\n {BAN}}}]}}",
                when("limit: x")
            ),
            "`limit` means nothing without the signal rate_limited",
            "limit",
        );
        rule(
            "{signal: rate_limited, limit: login, count: 1, per: 1m}",
            BAN,
            "there is no limit `login`",
            "login",
        );
        rule(WHEN, "ban: {for: 10m}, reset: {for: 1m}", "a rule does exactly one thing", "{");
        only(
            &format!("feedback: {{rules: [{{name: a, when: {WHEN}}}]}}"),
            "a rule does exactly one thing",
            "{",
        );
        rule(WHEN, "ban: {}", "`for` is missing", "ban");
        rule(WHEN, "ban: {for: 31d}", "`31d` is out of bounds", "31d");
        rule(
            WHEN,
            "ban: {for: 1h, doubling_up_to: 1m}",
            "`doubling_up_to` is less than `for`",
            "1m",
        );
        rule(WHEN, "slow_down: {profile: tight, for: 1m}", "there is no profile `tight`", "tight");
        let twice = format!("{{name: a, when: {WHEN}, {BAN}}}");
        only(
            &format!("feedback: {{rules: [{twice},\n {twice}]}}"),
            "two rules are called `a`",
            "a",
        );
    }

    #[test]
    fn suggestions_name_what_there_is() {
        let text = "kernel: {profiles: {tight: {packets: 10/s}}}\n\
                    limits: [{name: logins, per: global, rate: 5/s}]\n\
                    feedback: {rules: [{name: a, slow_down: {profile: tigth, for: 1m}, \
                    when: {signal: [rate_limit], limit: login, count: 1, per: 1m}}]}";
        let errors = with(text).unwrap_err().to_string();
        for help in
            ["did you mean `rate_limited`?", "did you mean `logins`?", "did you mean `tight`?"]
        {
            assert!(errors.contains(help), "{help}: {errors}");
        }
    }

    #[test]
    fn the_section_has_bounds() {
        let wrong = |keys: &str, message: &str, pointed: &str| {
            only(&format!("feedback: {{{keys}}}"), message, pointed);
        };
        wrong("weights: {scaner: 1}", "there is no signal `scaner`", "scaner");
        for weight in ["100.001", "0.0001", "-1", "x", "1.", ".5"] {
            wrong(
                &format!("weights: {{scanner: {weight}}}"),
                &format!("`{weight}` is no weight"),
                weight,
            );
        }
        for path in ["env", "/a?b", "/a*b", "/**", "'/a b'"] {
            let message = format!("`{}` is no path of scanners", path.trim_matches('\''));
            wrong(&format!("scanner_paths: [{path}]"), &message, path);
        }
        wrong("scanner_paths: ['/*']", "`/*` is every path", "'/*'");
        wrong("scanner_paths: [/.env, /.ENV]", "`/.ENV` is given twice", "/.ENV");
        wrong("max_sources: 1023", "1023 is out of bounds", "1023");
        wrong("prefixes: {ipv4: 32}", "32 is out of bounds", "32");
        wrong("prefixes: {ipv4: 15}", "15 is out of bounds", "15");
        wrong("prefixes: {ipv6: 64}", "64 is out of bounds", "64");
        wrong("shared: {consumers: 1}", "1 is out of bounds", "1");
        wrong("shared: {evidence: 0}", "`0` is no evidence", "0");
        wrong("shared: {evidence: nevr}", "`nevr` is no evidence", "nevr");
        wrong("ceiling: {bans_per_minute: 0}", "0 is out of bounds", "0");
        wrong("ceiling: {good_share: 101%}", "101% is out of bounds", "101%");
        wrong("dryrun: true", "unknown key `dryrun`", "dryrun");
    }

    #[test]
    fn prefixes_are_shorter_than_sources() {
        let bits = |length: u8, own: &str| {
            let text = format!(
                "kernel: {{ipv6_source_length: {length}}}\nfeedback: {{prefixes: {{{own}}}}}"
            );
            with(&text).map(|config| config.feedback.unwrap().prefix_bits[1])
        };
        assert_eq!(
            (bits(64, "").unwrap(), bits(48, "").unwrap(), bits(32, "").unwrap()),
            (48, 40, 24)
        );
        assert_eq!(bits(56, "ipv6: 55").unwrap(), 55);
        assert!(bits(48, "ipv6: 48").unwrap_err().to_string().contains("write 24 to 47"));
    }

    #[test]
    fn numbers_have_bounds_of_their_own() {
        let rules = |count: usize| {
            let rules = (0..count).map(|index| format!("{{name: a{index}, when: {WHEN}, {BAN}}}"));
            format!("feedback: {{rules: [{}]}}", rules.collect::<Vec<_>>().join(", "))
        };
        assert_eq!(with(&rules(RULES_MAX)).unwrap().feedback.unwrap().rules.len(), RULES_MAX);
        only(&rules(RULES_MAX + 1), "these are 33 rules", "rules");
        let paths: Vec<String> = (0..=SCANNER_PATHS_MAX).map(|index| format!("/{index}")).collect();
        let text = format!("feedback: {{scanner_paths: [{}]}}", paths.join(", "));
        only(&text, "these are 1025 paths", "scanner_paths");
        assert_eq!(read("rules: []").rules, []);
    }
}
