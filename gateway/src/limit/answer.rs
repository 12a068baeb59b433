//! What callers are told: `X-RateLimit-Limit`, `-Remaining` and `-Reset` as many services have them, and `RateLimit`
//! and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-10. A service's own fields of these names do not
//! stand beside ours.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName};

use super::algorithm::Verdict;
use crate::config::{Allowance, Limiting, Period, Rate, RateAlgorithm};
use crate::http::headers;

const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Digits of a `u64`.
const NUMBER_MAX_BYTES: usize = 20;

/// What is the same in all answers about one limit.
#[derive(Debug)]
pub(super) struct Told {
    /// Its name as a string of structured fields (RFC 9651).
    name: String,
    most: u64,
    /// The same as text. Texts are copied into answers: who holds a value that is cloned, all workers would count in
    /// one place.
    most_text: String,
    policy: String,
    /// Of all fields together.
    most_bytes: usize,
}

impl Told {
    pub(super) fn new(name: &str, allowance: &Allowance) -> Self {
        let name = format!("\"{name}\"");
        let (most, window) = policy(allowance);
        let window = window.map(|seconds| format!(";w={seconds}")).unwrap_or_default();
        let policy = format!("{name};q={most}{window}");
        let most_text = most.to_string();
        let numbers = 2 * NUMBER_MAX_BYTES;
        let most_bytes = most_text.len() + name.len() + policy.len() + 2 * (numbers + ";r=".len());
        Self { name, most, most_text, policy, most_bytes }
    }

    /// What is left of at best.
    pub(super) fn most(&self) -> u64 {
        self.most
    }

    pub(super) fn write(&self, common: &Limiting, verdict: &Verdict, fields: &mut HeaderMap) {
        let mut digits = [itoa::Buffer::new(); 2];
        let [remaining, reset] = &mut digits;
        let remaining = remaining.format(verdict.remaining);
        let reset = reset.format(seconds(verdict.reset_ns));
        // All values are parts of one allocation.
        let mut texts = BytesMut::with_capacity(self.most_bytes);
        let mut tell = |name, parts: &[&str]| {
            parts.iter().for_each(|part| texts.extend_from_slice(part.as_bytes()));
            fields.insert(name, headers::shared_value(texts.split().freeze()));
        };
        if common.x_ratelimit {
            tell(X_LIMIT, &[&self.most_text]);
            tell(X_REMAINING, &[remaining]);
            tell(X_RESET, &[reset]);
        }
        if common.ratelimit {
            tell(LIMIT, &[&self.name, ";r=", remaining, ";t=", reset]);
            tell(POLICY, &[&self.policy]);
        }
    }
}

/// What there is at most, and in how many seconds it comes. Of a bucket that is what fits in and the time to fill it.
fn policy(allowance: &Allowance) -> (u64, Option<u64>) {
    match *allowance {
        Allowance::Rate(Rate { count, period, algorithm }) => {
            let most = match algorithm {
                RateAlgorithm::TokenBucket(burst) => burst,
                RateAlgorithm::LeakyBucket(queue) => queue.saturating_add(1),
                _ => count,
            };
            let filled = u128::from(most) * period.as_nanos() / u128::from(count.max(1));
            (most.into(), Some(seconds(u64::try_from(filled).unwrap_or(u64::MAX)).max(1)))
        }
        Allowance::Quota(count, Period::Day) => (count.into(), Some(86_400)),
        Allowance::Quota(count, Period::Month) => (count.into(), None),
        Allowance::Concurrency(count) => (count.into(), None),
    }
}

/// Whole seconds, those that have begun included.
fn seconds(ns: u64) -> u64 {
    ns.div_ceil(1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::time::Duration;

    #[test]
    fn fields_say_what_is_left_and_until_when() {
        let rate = |algorithm| {
            let period = Duration::from_secs(60);
            Allowance::Rate(Rate { count: 100, period, algorithm })
        };
        let cases = [
            (rate(RateAlgorithm::SlidingWindow), "\"api\";q=100;w=60"),
            (rate(RateAlgorithm::TokenBucket(20)), "\"api\";q=20;w=12"),
            (rate(RateAlgorithm::LeakyBucket(9)), "\"api\";q=10;w=6"),
            (Allowance::Quota(5, Period::Day), "\"api\";q=5;w=86400"),
            (Allowance::Quota(5, Period::Month), "\"api\";q=5"),
        ];
        let verdict = Verdict { admitted: true, remaining: 3, reset_ns: 2_000_000_001, wait_ns: 0 };
        let common = |x_ratelimit, ratelimit| Limiting {
            x_ratelimit,
            ratelimit,
            ipv6_prefix: 64,
            default_plan: None,
        };
        for (allowance, policy) in cases {
            let mut fields = HeaderMap::new();
            fields.insert(LIMIT, HeaderValue::from_static("the service's"));
            Told::new("api", &allowance).write(&common(true, true), &verdict, &mut fields);
            assert_eq!(fields[POLICY], policy);
            assert_eq!(fields[LIMIT], "\"api\";r=3;t=3");
            assert_eq!(fields[X_REMAINING], "3");
            assert_eq!(fields[X_RESET], "3");
            assert_eq!(fields.len(), 5);
        }
        let mut fields = HeaderMap::new();
        let told = Told::new("api", &Allowance::Quota(5, Period::Day));
        told.write(&common(false, false), &verdict, &mut fields);
        assert!(fields.is_empty());
    }
}
