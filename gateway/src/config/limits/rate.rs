//! How much a limit is: `rate` with its `algorithm` and `queue`, `quota`, or `concurrency`.

use std::time::Duration;

use humantime::format_duration;

use super::read::RawLimit;
use super::{Allowance, Period, Rate, RateAlgorithm};
use crate::config::at::At;
use crate::config::diagnostic::suggestion;
use crate::config::tree::shorten;
use crate::config::value::{rate_parts, within_u32};

const COUNT_MAX: u64 = 1_000_000_000;
/// Entries of a sliding log: each is eight bytes of every key.
const LOG_MAX: u64 = 10_000;
/// Bytes that the logs of one limit may come to, at two cells a key.
const LOG_BYTES_MAX: u64 = 1 << 30;
const CONCURRENCY_MAX: u64 = (1 << 20) - 1;
const QUEUE_MAX: u64 = 1 << 16;
/// No request waits longer for its turn.
const TURN_MAX: Duration = Duration::from_secs(60);
const RATE_PER_SECOND_MAX: u64 = 10_000_000;

pub(super) fn allowance(raw: &RawLimit, at: At<'_>) -> Option<Allowance> {
    let given = [
        ("rate", raw.rate.is_some()),
        ("quota", raw.quota.is_some()),
        ("concurrency", raw.concurrency.is_some()),
    ];
    let kinds: Vec<&str> = given.iter().filter(|it| it.1).map(|it| it.0).collect();
    if kinds.len() != 1 {
        let holes = given.iter().any(|(key, _)| at.key(key).is_hole());
        if !holes {
            at.error_with_help(
                match kinds.len() {
                    0 => "the limit does not say how much".to_owned(),
                    _ => format!("the limit has `{}`", kinds.join("` and `")),
                },
                "write one of `rate`, `quota` and `concurrency`; several are several limits",
            );
        }
        return None;
    }
    if raw.rate.is_none() {
        refuse_of_rates(raw, at);
    }
    if let Some(text) = &raw.quota {
        return quota(text, at.key("quota"));
    }
    if let Some(number) = raw.concurrency {
        let number = within_u32(number, 1..=CONCURRENCY_MAX, at.key("concurrency"));
        return number.map(Allowance::Concurrency);
    }
    rate(raw, raw.rate.as_deref().unwrap_or_default(), at)
}

/// What means nothing where there is no rate.
fn refuse_of_rates(raw: &RawLimit, at: At<'_>) {
    let given = [("algorithm", raw.algorithm.is_some()), ("queue", raw.queue.is_some())];
    for (key, _) in given.into_iter().filter(|(_, given)| *given) {
        let message = format!("`{key}` means nothing without `rate`");
        at.key(key).on_key().error_with_help(message, "remove it");
    }
}

fn quota(text: &str, at: At<'_>) -> Option<Allowance> {
    let parts = text.trim().split_once('/').and_then(|(count, period)| {
        let period = match period.trim() {
            "day" => Period::Day,
            "month" => Period::Month,
            _ => return None,
        };
        Some((count.trim().parse::<u64>().ok()?, period))
    });
    let Some((number, period)) = parts else {
        at.error_with_help(
            format!("`{}` is no quota", shorten(text)),
            "write a count and day or month, such as 10000/day",
        );
        return None;
    };
    let number = within_u32(number, 1..=COUNT_MAX, at)?;
    Some(Allowance::Quota(number, period))
}

fn rate(raw: &RawLimit, text: &str, at: At<'_>) -> Option<Allowance> {
    let at_rate = at.key("rate");
    let Some((count, seconds, burst)) = rate_parts(text) else {
        at_rate.error_with_help(
            format!("`{}` is no rate", shorten(text)),
            "write a count and s, min or h, such as 100/min, 5/15min or 100/s burst 200",
        );
        return None;
    };
    let most = RATE_PER_SECOND_MAX.saturating_mul(seconds).min(COUNT_MAX);
    let count = within_u32(count, 1..=most, at_rate)?;
    if !(1..=86_400).contains(&seconds) {
        at_rate.error_with_help("a rate is counted over 1s to 24h", "write a `quota` for longer");
        return None;
    }
    let period = Duration::from_secs(seconds);
    let algorithm = algorithm(raw, (count, period, burst), at)?;
    Some(Allowance::Rate(Rate { count, period, algorithm }))
}

fn algorithm(
    raw: &RawLimit,
    (count, period, burst): (u32, Duration, Option<u64>),
    at: At<'_>,
) -> Option<RateAlgorithm> {
    const NAMES: [&str; 5] =
        ["token_bucket", "leaky_bucket", "fixed_window", "sliding_window", "sliding_log"];
    let called = raw.algorithm.as_deref().unwrap_or("token_bucket");
    if burst.is_some() && called != "token_bucket" {
        at.key("rate").error_with_help(
            format!("`burst` means nothing for `{}`", shorten(called)),
            "remove it, or write algorithm: token_bucket",
        );
    }
    if raw.queue.is_some() && called != "leaky_bucket" {
        at.key("queue").on_key().error_with_help(
            format!("`queue` means nothing for `{}`: nobody waits", shorten(called)),
            "remove it, or write algorithm: leaky_bucket",
        );
    }
    match called {
        "token_bucket" => {
            let burst = burst.unwrap_or(count.into());
            within_u32(burst, 1..=COUNT_MAX, at.key("rate")).map(RateAlgorithm::TokenBucket)
        }
        "leaky_bucket" => queue(raw, (count, period), at).map(RateAlgorithm::LeakyBucket),
        "fixed_window" => Some(RateAlgorithm::FixedWindow),
        "sliding_window" => Some(RateAlgorithm::SlidingWindow),
        "sliding_log" if u64::from(count) <= LOG_MAX => Some(RateAlgorithm::SlidingLog),
        "sliding_log" => {
            at.key("rate").error_with_help(
                format!("a sliding log of {count} entries for every key"),
                format!("write at most {LOG_MAX}, or algorithm: sliding_window"),
            );
            None
        }
        _ => {
            let help = suggestion(called, NAMES);
            at.key("algorithm").error_with_help(
                format!("there is no algorithm `{}`", shorten(called)),
                help.unwrap_or_else(|| format!("write one of {}", NAMES.join(", "))),
            );
            None
        }
    }
}

/// How many may wait in a leaky bucket, none longer than a minute.
fn queue(raw: &RawLimit, (count, period): (u32, Duration), at: At<'_>) -> Option<u32> {
    let Some(queue) = raw.queue else {
        if !at.key("queue").is_hole() {
            at.error_with_help(
                "a leaky bucket has a queue, in which requests wait for their turn",
                "add `queue`, such as queue: 10",
            );
        }
        return None;
    };
    let at = at.key("queue");
    let queue = within_u32(queue, 1..=QUEUE_MAX, at)?;
    let longest = period.saturating_mul(queue) / count;
    if longest > TURN_MAX {
        at.error_with_help(
            format!(
                "the last of {queue} would wait {}",
                format_duration(Duration::from_secs(longest.as_secs()))
            ),
            format!(
                "no request waits longer than {}: make the queue shorter",
                format_duration(TURN_MAX)
            ),
        );
        return None;
    }
    Some(queue)
}

pub(super) fn check_log(allowance: &Allowance, keys: usize, at: At<'_>) {
    let Allowance::Rate(Rate { count, algorithm: RateAlgorithm::SlidingLog, .. }) = allowance
    else {
        return;
    };
    let entries = LOG_BYTES_MAX / 16;
    let keys = u64::try_from(keys).unwrap_or(u64::MAX);
    if keys.saturating_mul(u64::from(*count)) > entries {
        at.error_with_help(
            format!("{count} times for each of {keys} keys do not fit into 1 GiB"),
            format!(
                "write `keys: {}` or less, or algorithm: sliding_window",
                (entries / u64::from(*count).max(1)).max(1)
            ),
        );
    }
}
