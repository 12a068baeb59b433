//! Limits as configured, compiled: what each route, plan and consumer is asked, and what goes on with what was counted
//! before.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::algorithm::fixed_window::FixedWindow;
use super::algorithm::leaky_bucket::LeakyBucket;
use super::algorithm::sliding_log::SlidingLog;
use super::algorithm::sliding_window::SlidingWindow;
use super::algorithm::token_bucket::TokenBucket;
use super::answer::Told;
use super::counter::{Counter, Memory, Terms};
use super::exchange::Exchange;
use super::held::Held;
use super::together::Together;
use super::{Counting, Limit, Limits, OfRoute, Turn, is_of_caller};
use crate::base::random::random;
use crate::config::{
    Action, Allowance, AuthKind, CallerLimit, Config, Forward, KeyRegistry, Per, Rate,
    RateAlgorithm, Route, Sticky,
};
use crate::observe::outcomes::Outcomes;
use crate::shared::Redis;

impl Limits {
    /// Those of `config`, for so many workers. What is counted by one that was there before goes on. `redis` is what
    /// several gateways share, if they do.
    pub fn new(
        config: &Config,
        workers: usize,
        before: &Self,
        redis: Option<&Redis>,
    ) -> io::Result<Self> {
        let mut new = Self {
            all: Vec::new(),
            routes: Vec::new(),
            plans: HashMap::new(),
            consumers: HashMap::new(),
            default_plan: Box::default(),
            common: config.limited.common.clone(),
            redis: redis.cloned(),
            exchange: match before.all.is_empty() {
                true => Exchange::new(workers),
                false => before.exchange.clone(),
            },
            seed: if before.seed == 0 { random() } else { before.seed },
        };
        let known = before.all.iter();
        let known: HashMap<&str, &Limit> = known.map(|it| (&*it.config.name, it)).collect();
        let compile = |limits: &[CallerLimit], all: &mut Vec<Limit>| {
            limits
                .iter()
                .map(|limit| {
                    let before = known.get(&*limit.name).copied();
                    all.push(Limit::new(limit, config, workers, before)?);
                    Ok(all.len() - 1)
                })
                .collect::<io::Result<Box<[usize]>>>()
        };
        let common = compile(&config.limited.limits, &mut new.all)?;
        for plan in &config.limited.plans {
            let limits = compile(&plan.limits, &mut new.all)?;
            new.plans.insert(plan.name.as_str().into(), limits);
        }
        for consumer in config.consumers.iter().filter(|one| !one.limits.is_empty()) {
            let limits = compile(&consumer.limits, &mut new.all)?;
            new.consumers.insert(consumer.name.as_str().into(), limits);
        }
        let default =
            config.limited.common.default_plan.and_then(|index| config.limited.plans.get(index));
        let default = default.and_then(|plan| new.plans.get(plan.name.as_str()));
        new.default_plan = default.cloned().unwrap_or_default();
        for route in &config.routes {
            let own = compile(&route.limits, &mut new.all)?;
            let asked = common.iter().chain(&own).copied();
            new.routes.push(new.of_route(asked, (route, config)));
        }
        Ok(new)
    }

    fn of_route(
        &self,
        asked: impl Iterator<Item = usize>,
        (route, config): (&Route, &Config),
    ) -> OfRoute {
        let Route { action, cost, .. } = route;
        let by_caller = |forward: &Forward| forward.sticky == Some(Sticky::Consumer);
        // Where the caller decides about the upstream, that is known no sooner than the caller.
        let upstream_is_late = matches!(action, Action::Forward(forward) if by_caller(forward));
        let is_late =
            |per: &Per| is_of_caller(per) || upstream_is_late && matches!(per, Per::Upstream);
        let by_address = |index: &usize| {
            let per = self.all.get(*index).map(|limit| &*limit.config.per).unwrap_or_default();
            per.contains(&Per::ClientAddress) && !per.iter().any(is_late)
        };
        let (mut screened, mut admitted): (Vec<usize>, Vec<usize>) = asked.partition(by_address);
        let mut late = Vec::new();
        if is_known_cheaply(route, config) && self.asks_redis_later(&admitted, route) {
            (late, screened) = screened.into_iter().partition(|index| self.is_together(*index));
            admitted.splice(0..0, late.iter().copied());
        }
        for list in [&mut screened, &mut admitted] {
            list.sort_by_key(|index| self.all.get(*index).is_none_or(|limit| limit.is_shared()));
        }
        let [screened, late, admitted] = [screened, late, admitted].map(Into::into);
        OfRoute { screened, late, admitted, cost: *cost }
    }

    /// Whether Redis may have to be asked once it is known who calls.
    fn asks_redis_later(&self, admitted: &[usize], route: &Route) -> bool {
        let has_callers = route.access.as_ref().is_some_and(|it| !it.authenticators.is_empty());
        let of_callers = self.plans.values().chain(self.consumers.values()).flatten();
        let of_callers = of_callers.filter(|_| has_callers);
        admitted.iter().chain(of_callers).any(|index| self.is_together(*index))
    }

    fn is_together(&self, index: usize) -> bool {
        self.all.get(index).is_some_and(|limit| limit.turn() == Turn::Together)
    }
}

impl Limit {
    fn new(
        limit: &CallerLimit,
        config: &Config,
        workers: usize,
        before: Option<&Self>,
    ) -> io::Result<Self> {
        let keys = limit.keys.min(keys_there_are(limit, config));
        let counting = match terms(&limit.allowance) {
            Some(terms) => {
                let same = before.and_then(|before| match &before.counting {
                    Counting::Local(counter) if before.reads_like(limit) => Some(counter.memory()),
                    _ => None,
                });
                let same = same.filter(|memory| memory.keys() == keys);
                let memory =
                    same.map_or_else(|| Memory::new(keys, &terms), |it| Ok(Arc::clone(it)));
                Counting::Local(Counter::new(terms, memory?))
            }
            None => {
                let same = before.and_then(|before| match &before.counting {
                    Counting::InFlight(held) if before.reads_like(limit) => Some(held),
                    _ => None,
                });
                let same = same.filter(|held| held.keys() == keys);
                Counting::InFlight(same.map_or_else(|| Held::new(keys), |it| Ok(Arc::clone(it)))?)
            }
        };
        let outcomes = before.map(|before| before.outcomes.clone());
        Ok(Self {
            counting,
            together: Together::new(limit, before.and_then(|before| before.together.as_ref())),
            outcomes: outcomes.unwrap_or_else(|| Outcomes::new(workers)),
            told: Told::new(&limit.name, &limit.allowance),
            config: limit.clone(),
        })
    }

    /// Whether what was counted for this limit means the same for `other`.
    fn reads_like(&self, other: &CallerLimit) -> bool {
        self.config.per == other.per
            && match (self.config.allowance, other.allowance) {
                (Allowance::Rate(own), Allowance::Rate(other)) => {
                    let same = own.algorithm.name() == other.algorithm.name();
                    let is_log = matches!(own.algorithm, RateAlgorithm::SlidingLog);
                    same && own.period == other.period && (!is_log || own.count == other.count)
                }
                (Allowance::Quota(_, own), Allowance::Quota(_, other)) => own == other,
                (Allowance::Concurrency(_), Allowance::Concurrency(_)) => true,
                _ => false,
            }
    }
}

/// Whether nothing costly is done to find out who calls: nobody is asked, or what a credential says is there already.
fn is_known_cheaply(route: &Route, config: &Config) -> bool {
    let mut asked = route.access.iter().flat_map(|access| &access.authenticators);
    asked.all(|index| match config.auth.get(*index).map(|one| &one.kind) {
        Some(AuthKind::Mtls(_)) => true,
        Some(AuthKind::ApiKey(keys)) => keys.registry == KeyRegistry::Embedded,
        _ => false,
    })
}

/// How many different keys a limit can meet, where the configuration says it.
fn keys_there_are(limit: &CallerLimit, config: &Config) -> usize {
    let of = |per: &Per| match per {
        Per::Global => 1,
        Per::Route => config.routes.len(),
        Per::Upstream => config.upstreams.len(),
        _ => usize::MAX,
    };
    limit.per.iter().map(of).fold(1, usize::saturating_mul).max(1)
}

/// What comes in a time; `None` for what is in flight.
fn terms(allowance: &Allowance) -> Option<Terms> {
    let Rate { count, period, algorithm } = match *allowance {
        Allowance::Rate(rate) => rate,
        Allowance::Quota(limit, period) => {
            return Some(Terms::Quota(FixedWindow { limit }, period));
        }
        Allowance::Concurrency(_) => return None,
    };
    let window_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
    let interval_ns =
        (window_ns.saturating_add(u64::from(count) / 2) / u64::from(count.max(1))).max(1);
    Some(match algorithm {
        RateAlgorithm::TokenBucket(burst) => {
            Terms::TokenBucket(TokenBucket { interval_ns, burst: burst.into() })
        }
        RateAlgorithm::LeakyBucket(queue) => {
            Terms::LeakyBucket(LeakyBucket { interval_ns, queue: queue.into() })
        }
        RateAlgorithm::FixedWindow => Terms::FixedWindow(FixedWindow { limit: count }, window_ns),
        RateAlgorithm::SlidingWindow => {
            Terms::SlidingWindow(SlidingWindow { limit: count, window_ns })
        }
        RateAlgorithm::SlidingLog => {
            Terms::SlidingLog(SlidingLog { limit: count, window_us: window_ns / 1000 })
        }
    })
}
