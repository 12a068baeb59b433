//! Limits as typed, and whose requests each counts together. Names are given out here, each once in a file.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use http::HeaderName;
use serde::Deserialize;

use super::rate::{allowance, check_log};
use super::{
    Allowance, CallerLimit, CountedIn, Limited, Limiting, Per, Plan, Rate, RateAlgorithm,
    WhenUnavailable,
};
use crate::config::Consumer;
use crate::config::at::At;
use crate::config::diagnostic::suggestion;
use crate::config::forms::{Named, OneOrList, TextOr};
use crate::config::raw::{Raw, RawRoute};
use crate::config::tree::shorten;
use crate::config::value::{count, name, within_u32};

/// Limits of one list.
const LIST_MAX: usize = 32;
/// Parts of one key.
const PARTS_MAX: usize = 8;
const KEYS: RangeInclusive<u64> = 1..=100_000_000;
const COST_MAX: u64 = 1_000_000;

/// `limiting` as typed.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawLimiting {
    headers: Vec<String>,
    /// Keys that a limit remembers unless it says otherwise.
    keys: u64,
    ipv6_prefix: u64,
    default_plan: Option<String>,
}

impl Default for RawLimiting {
    fn default() -> Self {
        let headers = [X_RATELIMIT, RATELIMIT].map(str::to_owned).to_vec();
        Self { headers, keys: 100_000, ipv6_prefix: 64, default_plan: None }
    }
}

const X_RATELIMIT: &str = "x_ratelimit";
const RATELIMIT: &str = "ratelimit";

/// One of `plans` as typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawPlan {
    limits: Vec<RawLimit>,
}

/// A limit as typed: exactly one of `rate`, `quota` and `concurrency`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawLimit {
    /// Default: where it stands and what it is by.
    pub(super) name: Option<String>,
    pub(super) per: Option<OneOrList<RawPer>>,
    pub(super) rate: Option<String>,
    /// Default: token_bucket.
    pub(super) algorithm: Option<String>,
    /// Of a leaky bucket.
    pub(super) queue: Option<u64>,
    pub(super) quota: Option<String>,
    pub(super) concurrency: Option<u64>,
    /// Default: `limiting.keys`.
    pub(super) keys: Option<u64>,
    pub(super) count: RawCount,
    pub(super) when_unavailable: Option<WhenUnavailable>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawCount {
    #[default]
    Local,
    Redis,
    Synchronised,
}

/// A word, or `header: NAME`.
type RawPer = TextOr<RawHeader>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawHeader {
    header: String,
}

/// Reads the limits of a file, each list with the names that are taken.
pub(in crate::config) struct Reader<'r> {
    common: &'r RawLimiting,
    taken: HashSet<String>,
    has_redis: bool,
    /// The highest cost of all routes.
    cost: u32,
}

/// Where a list of limits stands.
#[derive(Clone, Copy)]
pub(in crate::config) struct List<'l> {
    /// What the names of its limits begin with.
    pub(in crate::config) prefix: &'l str,
    /// What they are by unless they say it.
    pub(in crate::config) per: Option<&'l Per>,
    /// The highest cost of a request that they may meet.
    pub(in crate::config) cost: u32,
}

const WORDS: [(&str, Per); 8] = [
    ("consumer", Per::Consumer),
    ("user", Per::User),
    ("key", Per::Key),
    ("tenant", Per::Tenant),
    ("client_address", Per::ClientAddress),
    ("route", Per::Route),
    ("upstream", Per::Upstream),
    ("global", Per::Global),
];

/// What a request to a route costs.
pub(in crate::config) fn cost(raw: &RawRoute, at: At<'_>) -> u32 {
    let cost = raw.cost.map(|cost| within_u32(cost, 1..=COST_MAX, at.key("cost")));
    cost.flatten().unwrap_or(1)
}

fn highest_cost(raw: &Raw) -> u32 {
    let costs = raw.routes.iter().filter_map(|route| u32::try_from(route.cost?).ok());
    costs.max().unwrap_or(1)
}

/// `limiting` as meant.
fn limiting(raw: &RawLimiting, plans: &[Plan], at: At<'_>) -> Limiting {
    let (mut x_ratelimit, mut ratelimit) = (false, false);
    for (index, text) in raw.headers.iter().enumerate() {
        match text.as_str() {
            X_RATELIMIT => x_ratelimit = true,
            RATELIMIT => ratelimit = true,
            _ => at.key("headers").item(index).error_with_help(
                format!("there are no header fields `{}`", shorten(text)),
                suggestion(text, [X_RATELIMIT, RATELIMIT])
                    .unwrap_or_else(|| format!("write {X_RATELIMIT} or {RATELIMIT}")),
            ),
        }
    }
    let prefix = count(raw.ipv6_prefix, 32..=128, at.key("ipv6_prefix"));
    count(raw.keys, KEYS, at.key("keys"));
    let default_plan = raw.default_plan.as_ref();
    Limiting {
        x_ratelimit,
        ratelimit,
        ipv6_prefix: prefix.and_then(|bits| u8::try_from(bits).ok()).unwrap_or_default(),
        default_plan: default_plan.and_then(|name| plan_of(name, plans, at.key("default_plan"))),
    }
}

/// The index of a plan.
fn plan_of(called: &str, plans: &[Plan], at: At<'_>) -> Option<usize> {
    let found = plans.iter().position(|plan| plan.name == called);
    if found.is_none() {
        let help = suggestion(called, plans.iter().map(|plan| plan.name.as_str()));
        at.error_with_help(
            format!("there is no plan `{}`", shorten(called)),
            help.unwrap_or_else(|| "add it to `plans`".to_owned()),
        );
    }
    found
}

impl<'r> Reader<'r> {
    pub(in crate::config) fn new(common: &'r RawLimiting) -> Self {
        Self { common, taken: HashSet::new(), has_redis: false, cost: 1 }
    }

    /// What holds for all routes.
    pub(in crate::config) fn limited(&mut self, raw: &Raw, at: At<'_>) -> Limited {
        self.cost = highest_cost(raw);
        self.has_redis = raw.state.redis.is_some();
        let list = List { prefix: "", per: None, cost: self.cost };
        let limits = self.list(&raw.limits, list, at.key("limits"));
        let plans = self.plans(&raw.plans, at.key("plans"));
        let common = limiting(&raw.limiting, &plans, at.key("limiting"));
        Limited { common, limits, plans }
    }

    /// Consumers with limits of their own; their plans must be there.
    pub(in crate::config) fn consumers(
        &mut self,
        mut consumers: Vec<Consumer>,
        (raw, plans): (&Raw, &[Plan]),
        at: At<'_>,
    ) -> Vec<Consumer> {
        let at = at.key("consumers");
        for (index, (called, raw)) in raw.consumers.0.iter().enumerate() {
            let at = at.entry(index);
            if let Some(plan) = &raw.plan {
                plan_of(plan, plans, at.key("plan"));
            }
            let list = List { prefix: called, per: Some(&Per::Consumer), cost: self.cost };
            let limits = self.list(&raw.limits, list, at.key("limits"));
            if let Some(consumer) = consumers.iter_mut().find(|one| one.name == *called) {
                consumer.limits = limits;
            }
        }
        consumers
    }

    fn plans(&mut self, raw: &Named<RawPlan>, at: At<'_>) -> Vec<Plan> {
        let mut plans = Vec::new();
        for (index, (called, raw)) in raw.0.iter().enumerate() {
            let at = at.entry(index);
            name(called, "a plan", at.on_key());
            let list = List { prefix: called, per: Some(&Per::Consumer), cost: self.cost };
            let limits = self.list(&raw.limits, list, at.key("limits"));
            plans.push(Plan { name: called.clone(), limits });
        }
        plans
    }

    pub(in crate::config) fn list(
        &mut self,
        raw: &[RawLimit],
        list: List<'_>,
        at: At<'_>,
    ) -> Vec<CallerLimit> {
        if raw.len() > LIST_MAX {
            let message = format!("these are {} limits", raw.len());
            at.on_key().error_with_help(message, format!("write at most {LIST_MAX}"));
        }
        let limits = raw.iter().enumerate();
        limits.filter_map(|(index, raw)| self.limit(raw, list, at.item(index))).collect()
    }

    fn limit(&mut self, raw: &RawLimit, list: List<'_>, at: At<'_>) -> Option<CallerLimit> {
        let per = per(raw, list.per, at);
        let allowance = allowance(raw, at);
        let keys = count(raw.keys.unwrap_or(self.common.keys), KEYS, at.key("keys"));
        let (per, allowance, keys) = (per?, allowance?, keys?);
        check_log(&allowance, keys, at);
        if list.cost > allowance.capacity() {
            at.error_with_help(
                format!("a request that costs {} is never admitted: {allowance}", list.cost),
                "allow more at once, or lower the `cost` of the route",
            );
        }
        let name = self.name(raw, list, &per, at);
        let counted_in = self.counted_in(raw, &allowance, at);
        Some(CallerLimit { name, per, allowance, keys, counted_in })
    }

    fn counted_in(&self, raw: &RawLimit, allowance: &Allowance, at: At<'_>) -> CountedIn {
        if raw.count != RawCount::Redis && raw.when_unavailable.is_some() {
            at.key("when_unavailable").on_key().error_with_help(
                "`when_unavailable` means nothing where each gateway counts by itself",
                "remove it, or write count: redis",
            );
        }
        if raw.count == RawCount::Local {
            return CountedIn::Process;
        }
        if !self.has_redis {
            at.key("count").error_with_help(
                "there is no Redis to count in",
                "add `state.redis`, or write count: local",
            );
        }
        if raw.count == RawCount::Redis {
            return CountedIn::Redis(raw.when_unavailable.unwrap_or_default());
        }
        let bucket = matches!(
            allowance,
            Allowance::Quota(..)
                | Allowance::Rate(Rate { algorithm: RateAlgorithm::TokenBucket(_), .. })
        );
        if !bucket {
            at.key("count").error_with_help(
                format!("what is synchronised is a token bucket or a quota, not {allowance}"),
                "write count: redis, or algorithm: token_bucket",
            );
        }
        CountedIn::Synchronised
    }

    /// The name that is given, or one that says where the limit stands and what it is by.
    fn name(&mut self, raw: &RawLimit, list: List<'_>, per: &[Per], at: At<'_>) -> String {
        if let Some(given) = &raw.name {
            let at = at.key("name");
            if name(given, "a limit", at) && !self.taken.insert(given.clone()) {
                let message = format!("there is another limit `{given}`");
                at.error_with_help(message, "give each a name of its own");
            }
            return given.clone();
        }
        let prefix = list.prefix.chars().map(|sign| match sign {
            sign if sign.is_ascii_alphanumeric() || "-_.".contains(sign) => sign,
            _ => '_',
        });
        let prefix: String = prefix.collect();
        let parts: Vec<String> = per.iter().map(ToString::to_string).collect();
        let parts = parts.join("-");
        let base = if prefix.is_empty() { parts } else { format!("{prefix}.{parts}") };
        let numbered = (2..).map(|number| format!("{base}.{number}"));
        let mut names = std::iter::once(base.clone()).chain(numbered);
        names.find(|name| self.taken.insert(name.clone())).unwrap_or_default()
    }
}

fn per(raw: &RawLimit, default: Option<&Per>, at: At<'_>) -> Option<Vec<Per>> {
    let at_per = at.key("per");
    let Some(typed) = &raw.per else {
        if default.is_none() && !at_per.is_hole() {
            at.error_with_help(
                "the limit does not say whose requests are counted together",
                "add `per`, such as per: client_address, user, consumer or global",
            );
        }
        return default.map(|per| vec![per.clone()]);
    };
    let mut found = Vec::new();
    for (raw, at) in typed.each(at_per) {
        let part = part(raw, at)?;
        if found.contains(&part) {
            at.error_with_help(format!("`{part}` is given twice"), "remove one of the two");
        }
        found.push(part);
    }
    if found.is_empty() || found.len() > PARTS_MAX {
        let message = format!("a key of {} parts", found.len());
        at_per.on_key().error_with_help(message, format!("name 1 to {PARTS_MAX}"));
        return None;
    }
    if found.len() > 1 && found.contains(&Per::Global) {
        let help = "remove it, or the others";
        at_per.on_key().error_with_help("`global` tells nobody apart, the others do", help);
    }
    Some(found)
}

fn part(raw: &RawPer, at: At<'_>) -> Option<Per> {
    match raw {
        TextOr::Text(text) => {
            let found = WORDS.iter().find(|(word, _)| word == text);
            if found.is_none() {
                let words = WORDS.iter().map(|(word, _)| *word);
                let help = suggestion(text, words.clone()).unwrap_or_else(|| {
                    let words: Vec<&str> = words.collect();
                    format!("write one of {}, or {{header: NAME}}", words.join(", "))
                });
                at.error_with_help(format!("nobody is told apart by `{}`", shorten(text)), help);
            }
            found.map(|(_, per)| per.clone())
        }
        TextOr::Section(RawHeader { header }) => {
            let found = HeaderName::from_bytes(header.as_bytes()).ok();
            if found.is_none() {
                at.key("header").error_with_help(
                    format!("`{}` is no name of a header field", shorten(header)),
                    "write one such as X-App-Id",
                );
            }
            found.map(Per::Header)
        }
    }
}
