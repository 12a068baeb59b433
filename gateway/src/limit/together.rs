//! Limits that all gateways count together, in Redis: what is asked there, and what is done when it does not answer.
//!
//! All limits of a request that are counted there are asked by one call, after those that are counted in process and
//! before those that make it wait or hold it. Without an answer each is counted in process, or refuses, as configured;
//! it never says anything about who calls. What Redis has counted stays counted if one in process refuses after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::algorithm::Verdict;
use super::key::Asked;
use super::{Inquiry, Limit, Limits, Permits, Standing, refused};
use crate::base::error::{Error, Kind};
use crate::base::time::Moment;
use crate::config::{
    Allowance, CallerLimit, CountedIn, Period, Rate, RateAlgorithm, WhenUnavailable,
};
use crate::shared::count::{self, Item, Terms};

/// A limit that all gateways count together.
#[derive(Debug)]
pub(super) struct Together {
    /// The same in every gateway: of the name, and of how it counts.
    id: u64,
    terms: Terms,
    when: WhenUnavailable,
    synchronised: bool,
    fallbacks: Fallbacks,
}

/// Requests that were decided about without Redis.
#[derive(Clone, Debug, Default)]
pub(super) struct Fallbacks(Arc<[AtomicU64; 2]>);

impl Fallbacks {
    fn count(&self, is_local: bool) {
        let [local, refused] = &*self.0;
        let counter = if is_local { local } else { refused };
        // Rare, and beside a call over the network.
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn sums(&self) -> [(&'static str, u64); 2] {
        let [local, refused] = &*self.0;
        [("local", local), ("refuse", refused)]
            .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }
}

impl Together {
    /// `None` for a limit that each gateway counts by itself.
    pub(super) fn new(limit: &CallerLimit, before: Option<&Self>) -> Option<Self> {
        let (when, synchronised) = match limit.counted_in {
            CountedIn::Process => return None,
            CountedIn::Redis(when) => (when, false),
            CountedIn::Synchronised => (WhenUnavailable::Local, true),
        };
        // A limit that counts otherwise does not read what was written.
        let id = xxh3_64(format!("{} {}", limit.name, kind(&limit.allowance)).as_bytes());
        let fallbacks = before.map(|before| before.fallbacks.clone()).unwrap_or_default();
        Some(Self { id, terms: terms(&limit.allowance), when, synchronised, fallbacks })
    }

    /// Whether it is counted in process, and told of.
    pub(super) fn is_synchronised(&self) -> bool {
        self.synchronised
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn terms(&self) -> Terms {
        self.terms
    }
}

impl Limits {
    /// How often each limit that is counted in Redis was decided about without it, and how.
    pub fn fallbacks(&self) -> impl Iterator<Item = (&str, [(&'static str, u64); 2])> {
        self.all.iter().filter_map(|limit| {
            let together = limit.together.as_ref().filter(|it| !it.synchronised)?;
            Some((&*limit.config.name, together.fallbacks.sums()))
        })
    }

    /// Asks all limits of these that are counted in Redis.
    pub(super) async fn ask_together(
        &self,
        limits: impl Iterator<Item = &usize> + Clone,
        asked: (&Inquiry<'_>, Asked<'_>, u32),
        permits: &mut Permits,
    ) -> Result<(), (Error, usize)> {
        let (inquiry, key, cost) = asked;
        let together = || {
            limits.clone().filter_map(|index| {
                let limit = self.all.get(*index)?;
                let together = limit.together.as_ref()?;
                (!together.synchronised).then_some((*index, limit, together))
            })
        };
        let item = |(_, limit, together): (usize, &Limit, &Together)| Item {
            whose: key.digest(&limit.config.per, self.common.ipv6_prefix),
            limit: together.id,
            terms: together.terms,
            cost,
        };
        let items: Vec<Item> = together().map(item).collect();
        if items.is_empty() {
            return Ok(());
        }
        let taken = match &self.redis {
            Some(redis) => redis.take(&items).await.ok(),
            None => None,
        };
        let Some(taken) = taken else {
            return self.ask_in_place(together(), asked, permits).await;
        };
        let mut wait = Duration::ZERO;
        for ((index, limit, _), said) in together().zip(&taken.verdicts) {
            let Some(verdict) = said.map(verdict) else { continue };
            let waits = verdict.wait_ns > 0;
            limit.decided(inquiry.worker, verdict.admitted, waits);
            if !matches!(limit.config.allowance, Allowance::Concurrency(_)) {
                self.stands(inquiry, Standing { limit: index, verdict });
            }
            let until = Duration::from_nanos(verdict.wait_ns);
            if !verdict.admitted {
                return Err((refused(&limit.config.allowance, until), index));
            }
            wait = wait.max(until);
        }
        permits.together.extend(taken.permit);
        if wait > Duration::ZERO {
            inquiry.deadline.pause(wait).await;
        }
        Ok(())
    }

    /// Asks the same limits without Redis, each as it is configured.
    async fn ask_in_place<'l>(
        &'l self,
        limits: impl Iterator<Item = (usize, &'l Limit, &'l Together)> + Clone,
        asked: (&Inquiry<'_>, Asked<'_>, u32),
        permits: &mut Permits,
    ) -> Result<(), (Error, usize)> {
        let taken = Moment::at(asked.0.deadline.moment.now());
        for (index, limit, together) in limits.clone() {
            let is_local = together.when == WhenUnavailable::Local;
            together.fallbacks.count(is_local);
            let answer = match is_local {
                true => self.ask_local((index, limit), asked, permits).await,
                false => Err((Kind::LimitUnavailable.into(), index)),
            };
            if let Err((error, index)) = answer {
                let counted = limits.map(|(index, limit, _)| (index, limit));
                self.give_back(counted, asked, (index, &taken));
                return Err((error, index));
            }
        }
        Ok(())
    }
}

fn verdict(said: count::Verdict) -> Verdict {
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Verdict {
        admitted: said.admitted,
        remaining: said.remaining,
        reset_ns: ns(said.reset),
        wait_ns: ns(said.wait),
    }
}

fn kind(allowance: &Allowance) -> String {
    match allowance {
        Allowance::Rate(Rate { period, algorithm, .. }) => {
            format!("{} {}", algorithm.name(), period.as_secs())
        }
        Allowance::Quota(_, Period::Day) => "day".to_owned(),
        Allowance::Quota(_, Period::Month) => "month".to_owned(),
        Allowance::Concurrency(_) => "concurrency".to_owned(),
    }
}

fn terms(allowance: &Allowance) -> Terms {
    let Rate { count: limit, period, algorithm } = match *allowance {
        Allowance::Rate(rate) => rate,
        Allowance::Quota(limit, Period::Day) => return Terms::Day { limit },
        Allowance::Quota(limit, Period::Month) => return Terms::Month { limit },
        Allowance::Concurrency(limit) => return Terms::Concurrency { limit },
    };
    let window_us = u64::try_from(period.as_micros()).unwrap_or(u64::MAX);
    let window_ns = window_us.saturating_mul(1000);
    let interval_ns = ((window_ns + u64::from(limit) / 2) / u64::from(limit.max(1))).max(1);
    match algorithm {
        RateAlgorithm::TokenBucket(burst) => {
            Terms::TokenBucket { interval_ns, burst: burst.into() }
        }
        RateAlgorithm::LeakyBucket(queue) => {
            Terms::LeakyBucket { interval_ns, queue: queue.into() }
        }
        RateAlgorithm::FixedWindow => Terms::FixedWindow { window_us, limit },
        RateAlgorithm::SlidingWindow => Terms::SlidingWindow { window_us, limit },
        RateAlgorithm::SlidingLog => Terms::SlidingLog { window_us, limit },
    }
}
