//! How much callers may. [`Limits::screen`] asks the limits by address, before anything that costs more is done for a
//! request; [`Limits::admit`] asks the others, once it is known who calls, and alone makes an [`Admitted`], without
//! which nothing is sent to a service. Where it costs nothing to know who calls, it also asks those by address that are
//! counted in Redis, so that a request is one call.
//!
//! Limits are asked one after the other: those that tell callers apart before those that all share, then those that
//! make a request wait, and last those of what is in flight. The first that refuses ends it, so a caller who is over a
//! limit of its own takes nothing of what others share; and what was taken before is given back.

pub mod algorithm;
mod answer;
pub mod calendar;
mod compile;
pub mod counter;
mod exchange;
mod give_back;
pub mod held;
pub mod key;
pub mod table;
mod together;

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use crate::auth::{Authorized, Identity};
use crate::base::error::{Error, Kind};
use crate::config::{Allowance, CallerLimit, Limiting, Per, Rate, RateAlgorithm};
use crate::http::deadline::Deadline;
use crate::observe::outcomes::Outcomes;
use crate::shared::{self, Redis};
use algorithm::Verdict;
use answer::Told;
use counter::Counter;
use exchange::Exchange;
use held::{Held, Permit, Refused};
use key::Asked;
use together::Together;

pub use exchange::EXCHANGE_EVERY;
pub use key::Caller;

/// All limits of a configuration, compiled. Shared by the workers.
#[derive(Debug, Default)]
pub struct Limits {
    all: Vec<Limit>,
    /// What is asked of each route, in their order.
    routes: Vec<OfRoute>,
    plans: HashMap<Box<str>, Box<[usize]>>,
    /// Of the consumers that have limits of their own.
    consumers: HashMap<Box<str>, Box<[usize]>>,
    default_plan: Box<[usize]>,
    common: Limiting,
    seed: u64,
    /// Where limits are counted that all gateways count together.
    redis: Option<Redis>,
    exchange: Exchange,
}

/// What a limit decides, in the order in which it is counted.
const OUTCOMES: [&str; 3] = ["admitted", "delayed", "refused"];

/// One limit.
#[derive(Debug)]
struct Limit {
    config: CallerLimit,
    counting: Counting,
    /// Where it is counted by all gateways; then `counting` is for when that is out of reach.
    together: Option<Together>,
    outcomes: Outcomes<{ OUTCOMES.len() }>,
    told: Told,
}

/// Where it is counted.
#[derive(Debug)]
enum Counting {
    /// In this process, what comes in a time.
    Local(Counter),
    /// In this process, what is in flight.
    InFlight(Arc<Held>),
}

#[derive(Debug, Default)]
struct OfRoute {
    /// By address, before the caller is known.
    screened: Box<[usize]>,
    /// By address, too, and among those of `admitted`: where the caller is known cheaply, what is counted in Redis is
    /// asked by one call.
    late: Box<[usize]>,
    admitted: Box<[usize]>,
    cost: u32,
}

/// A request that is within the limits by address.
#[derive(Debug, Default)]
pub struct Screened {
    permits: Permits,
}

/// A request that may be sent on: its caller may make it, and is within all limits. As long as it lives, it is one of
/// those that are in flight.
#[derive(Debug)]
pub struct Admitted {
    authorized: Authorized,
    _permits: Permits,
}

impl Admitted {
    /// Who may have it sent.
    pub fn authorized(&self) -> &Authorized {
        &self.authorized
    }
}

/// Most requests have none, and of the others most one.
#[derive(Debug, Default)]
struct Permits {
    first: Option<Permit>,
    more: Vec<Permit>,
    together: Vec<shared::permit::Permit>,
}

impl Permits {
    fn add(&mut self, permit: Permit) {
        match &self.first {
            None => self.first = Some(permit),
            Some(_) => self.more.push(permit),
        }
    }
}

/// How a caller stands with one limit, after a request.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The number of the limit.
    limit: usize,
    verdict: Verdict,
}

/// Who is asked about, by whom, and what is left behind.
#[derive(Clone, Copy, Debug)]
pub struct Inquiry<'a> {
    /// Who asks for what.
    pub caller: Caller<'a>,
    /// The worker that asks.
    pub worker: usize,
    /// What waits for a turn.
    pub deadline: &'a Deadline,
    /// How the caller stands with the limit that leaves least, once it is known.
    pub standing: &'a Cell<Option<Standing>>,
}

/// Limits in the order in which they are asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Counts,
    Together,
    Waits,
    Holds,
}

impl Limits {
    /// Asks the limits by address.
    pub async fn screen(&self, asked: &Inquiry<'_>) -> Result<Screened, (Error, usize)> {
        let mut screened = Screened::default();
        if let Some(of) = self.routes.get(asked.caller.route.0).filter(|it| !it.screened.is_empty())
        {
            let key = Asked { caller: &asked.caller, identity: None };
            self.ask(of.screened.iter(), (asked, key, of.cost), &mut screened.permits).await?;
        }
        Ok(screened)
    }

    /// Asks the limits by address that [`Self::admit`] would have asked, of a request that goes no further: they are
    /// there for those who guess, too.
    pub async fn turn_away(&self, asked: &Inquiry<'_>) -> Result<(), (Error, usize)> {
        let of = self.routes.get(asked.caller.route.0).filter(|of| !of.late.is_empty());
        let Some(of) = of else { return Ok(()) };
        let key = Asked { caller: &asked.caller, identity: None };
        self.ask(of.late.iter(), (asked, key, of.cost), &mut Permits::default()).await
    }

    /// Asks all others. The error comes with the number of the limit that refused.
    pub async fn admit(
        &self,
        authorized: Authorized,
        screened: Screened,
        asked: &Inquiry<'_>,
    ) -> Result<Admitted, (Error, usize)> {
        let mut permits = screened.permits;
        let identity = authorized.identity().map(|identity| &**identity);
        let of_caller = identity.map_or_else(Default::default, |identity| self.of_caller(identity));
        let of = self.routes.get(asked.caller.route.0);
        let of_route = of.map(|of| &*of.admitted).unwrap_or_default();
        if !of_caller.is_empty() || !of_route.is_empty() {
            let key = Asked { caller: &asked.caller, identity };
            let cost = of.map_or(1, |of| of.cost);
            let limits = of_caller.iter().chain(of_route);
            self.ask(limits, (asked, key, cost), &mut permits).await?;
        }
        Ok(Admitted { authorized, _permits: permits })
    }

    /// Writes how the caller stands into an answer, in the place of what a service says about limits of its own.
    pub fn tell(&self, standing: Standing, fields: &mut HeaderMap) {
        if let Some(limit) = self.all.get(standing.limit) {
            limit.told.write(&self.common, &standing.verdict, fields);
        }
    }

    /// The name of a limit, by its number.
    pub fn name(&self, limit: usize) -> Option<&str> {
        self.all.get(limit).map(|limit| &*limit.config.name)
    }

    /// Whether what a limit counts together is one caller's: only then does its refusal say something about whoever is
    /// refused. A header field and the name of a tenant are shared by whoever sends it and whoever belongs to it.
    pub fn is_of_one_caller(&self, limit: usize) -> bool {
        let is_one =
            |per: &Per| matches!(per, Per::Consumer | Per::User | Per::Key | Per::ClientAddress);
        self.all.get(limit).is_some_and(|limit| limit.config.per.iter().any(is_one))
    }

    /// What each limit has decided, by its name: how often it admitted, made wait and refused.
    pub fn outcomes(&self) -> impl Iterator<Item = (&str, [(&'static str, u64); 3])> {
        self.all.iter().map(|limit| (&*limit.config.name, limit.outcomes.sums(OUTCOMES)))
    }

    /// The limits of a caller: its own, or those of its plan.
    fn of_caller(&self, identity: &Identity) -> &[usize] {
        let own = identity.consumer.as_ref().and_then(|name| self.consumers.get(name));
        let plan = || identity.plan.as_ref().and_then(|name| self.plans.get(name));
        own.or_else(plan).unwrap_or(&self.default_plan)
    }

    async fn ask(
        &self,
        limits: impl Iterator<Item = &usize> + Clone,
        asked: (&Inquiry<'_>, Asked<'_>, u32),
        permits: &mut Permits,
    ) -> Result<(), (Error, usize)> {
        let moment = &asked.0.deadline.moment;
        let mut taken = None;
        for turn in [Turn::Counts, Turn::Together, Turn::Waits, Turn::Holds] {
            let answer = match turn {
                // On the heap, for few requests go there.
                Turn::Together if self.of_turn(limits.clone(), turn).next().is_some() => {
                    Box::pin(self.ask_together(limits.clone(), asked, permits)).await
                }
                Turn::Together => Ok(()),
                _ => self.ask_each(self.of_turn(limits.clone(), turn), asked, permits).await,
            };
            if let Err((error, index)) = answer {
                let counted = self.of_turn(limits, Turn::Counts);
                self.give_back(counted, asked, (index, taken.as_ref().unwrap_or(moment)));
                return Err((error, index));
            }
            if turn == Turn::Counts {
                taken = Some(moment.clone());
            }
        }
        Ok(())
    }

    fn of_turn<'i, 'l>(
        &'l self,
        limits: impl Iterator<Item = &'i usize>,
        turn: Turn,
    ) -> impl Iterator<Item = (usize, &'l Limit)> {
        limits.filter_map(move |index| {
            let limit = self.all.get(*index).filter(|limit| limit.turn() == turn)?;
            Some((*index, limit))
        })
    }

    async fn ask_each(
        &self,
        limits: impl Iterator<Item = (usize, &Limit)>,
        asked: (&Inquiry<'_>, Asked<'_>, u32),
        permits: &mut Permits,
    ) -> Result<(), (Error, usize)> {
        for limit in limits {
            self.ask_local(limit, asked, permits).await?;
        }
        Ok(())
    }

    async fn ask_local(
        &self,
        (index, limit): (usize, &Limit),
        (inquiry, key, cost): (&Inquiry<'_>, Asked<'_>, u32),
        permits: &mut Permits,
    ) -> Result<(), (Error, usize)> {
        let hash = key.hash(&limit.config.per, self.seed, self.common.ipv6_prefix);
        let verdict = match &limit.counting {
            Counting::Local(counter) => counter.take(hash, cost, &inquiry.deadline.moment),
            Counting::InFlight(held) => {
                let permit = limit.enter(held, hash, inquiry.worker);
                permits.add(permit.map_err(|error| (error, index))?);
                return Ok(());
            }
        };
        let waits = verdict.wait_ns > 0;
        limit.decided(inquiry.worker, verdict.admitted, waits);
        self.stands(inquiry, Standing { limit: index, verdict });
        let wait = Duration::from_nanos(verdict.wait_ns);
        if !verdict.admitted {
            return Err((refused(&limit.config.allowance, wait), index));
        }
        if let Some(together) = limit.together.as_ref().filter(|it| it.is_synchronised()) {
            let whose = || key.digest(&limit.config.per, self.common.ipv6_prefix);
            self.exchange.owe(inquiry.worker, (together.id(), hash), cost, whose);
        }
        inquiry.deadline.pause(wait).await;
        Ok(())
    }

    /// Keeps the standing with the limit that leaves the smallest share.
    fn stands(&self, inquiry: &Inquiry<'_>, new: Standing) {
        let share = |standing: Standing| {
            let most = self.all.get(standing.limit).map_or(1, |limit| limit.told.most());
            (u128::from(standing.verdict.remaining) << 32) / u128::from(most.max(1))
        };
        let is_tighter = |held: Standing| !new.verdict.admitted || share(new) < share(held);
        if inquiry.standing.get().is_none_or(is_tighter) {
            inquiry.standing.set(Some(new));
        }
    }
}

impl Limit {
    fn turn(&self) -> Turn {
        if self.together.as_ref().is_some_and(|together| !together.is_synchronised()) {
            return Turn::Together;
        }
        match self.config.allowance {
            Allowance::Rate(Rate { algorithm: RateAlgorithm::LeakyBucket(_), .. }) => Turn::Waits,
            Allowance::Rate(_) | Allowance::Quota(..) => Turn::Counts,
            Allowance::Concurrency(_) => Turn::Holds,
        }
    }

    /// Whether callers take of it together.
    fn is_shared(&self) -> bool {
        let shared = |per: &Per| matches!(per, Per::Route | Per::Upstream | Per::Global);
        self.config.per.iter().all(shared)
    }

    /// Counts a decision.
    fn decided(&self, worker: usize, is_admitted: bool, waits: bool) {
        let outcome = match (is_admitted, waits) {
            (true, false) => 0,
            (true, true) => 1,
            (false, _) => 2,
        };
        self.outcomes.count(worker, outcome);
    }

    fn enter(&self, held: &Arc<Held>, hash: u128, worker: usize) -> Result<Permit, Error> {
        let Allowance::Concurrency(limit) = self.config.allowance else {
            return Err(Kind::LimitUnavailable.into());
        };
        let entered = held.enter(hash, limit);
        self.decided(worker, entered.is_ok(), false);
        entered.map(|(permit, _)| permit).map_err(|refused| match refused {
            Refused::Limit => {
                Error::rate_limited("too many requests at once; try again", Duration::ZERO)
            }
            Refused::Room => Kind::LimitUnavailable.into(),
        })
    }
}

/// That limits cannot be kept, in words.
pub fn no_room(error: &io::Error) -> String {
    format!("no memory for the keys of limits: {error}; lower `limiting.keys` or `keys` of a limit")
}

/// Whether a part says who calls.
fn is_of_caller(per: &Per) -> bool {
    matches!(per, Per::Consumer | Per::User | Per::Key | Per::Tenant)
}

fn refused(allowance: &Allowance, wait: Duration) -> Error {
    let detail = match allowance {
        Allowance::Quota(..) => "the quota is used up; see the header Retry-After",
        _ => "too many requests; see the header Retry-After",
    };
    Error::rate_limited(detail, wait)
}
