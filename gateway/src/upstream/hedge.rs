//! Hedging: a request that waits for the head of its answer is sent to another endpoint as well, and who answers first
//! has it. The other attempt is dropped, which closes its connection or resets its stream, and says nothing about its
//! endpoint.
//!
//! Each of the two has a deadline of its own meanwhile, so that what one waits for is no business of the other.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::request::Parts;
use http_body::Body as _;
use tokio::time::sleep;

use crate::base::error::Kind;
use crate::config::{self, HedgeAfter, Share};
use crate::http::body::RequestBody;
use crate::http::deadline::Deadline;
use crate::http::h1::upgrade::WebSocket;
use crate::observe::resilience::{Hedge, NoHedge, Resilience};
use crate::upstream::Upstream;
use crate::upstream::balance::Tried;
use crate::upstream::concurrency::{self, Permit};
use crate::upstream::connection::Failure;
use crate::upstream::retry::Effort;
use crate::upstream::send::{Answered, Client, Way};

type Came = Result<Answered, Failure>;

/// No timer fires sooner.
const DELAY_MIN: Duration = Duration::from_millis(1);

/// When a request is hedged; `None` if it never is: it has a body, or it is none that a service may see twice without
/// anybody noticing.
pub(super) fn terms(
    upstream: &Upstream,
    head: &Parts,
    body: &RequestBody,
) -> Option<config::Hedge> {
    let hedge = upstream.hedge?;
    let may_be = head.method.is_safe()
        && body.is_end_stream()
        && head.extensions.get::<WebSocket>().is_none();
    may_be.then_some(hedge)
}

impl Client {
    /// Sends a request without a body once, and once more to another endpoint if there is no answer after a while.
    pub(super) async fn hedged(
        &self,
        way: &Way<'_>,
        tried: &RefCell<Tried>,
        head: &Parts,
        (terms, effort): (config::Hedge, &Effort<'_>),
    ) -> Came {
        let Way { local, deadline, .. } = *way;
        let share = match terms.after {
            HedgeAfter::Time(after) => {
                return self.race(way, tried, head, (after, terms.budget, effort)).await;
            }
            HedgeAfter::Percentile(share) => share,
        };
        let began = deadline.now();
        let came = match local.first_bytes.percentile(share, began) {
            None => self.attempt(way, tried, head, RequestBody::empty(deadline)).await,
            Some(after) => {
                let after = after.max(DELAY_MIN);
                self.race(way, tried, head, (after, terms.budget, effort)).await
            }
        };
        // An attempt that was dropped would have taken longer: it counts beyond the percentile, as it should. One that
        // failed says nothing about how long an answer takes.
        let is_slow = |kind| kind == Kind::UpstreamTimeout;
        let counts = match &came {
            Ok(answered) => !answered.response.status().is_server_error(),
            Err(Failure::Unsent(_, error) | Failure::Final(error)) => is_slow(error.kind()),
        };
        if counts {
            let now = deadline.now();
            local.first_bytes.sample(now.saturating_duration_since(began), now);
        }
        came
    }

    async fn race(
        &self,
        way: &Way<'_>,
        tried: &RefCell<Tried>,
        head: &Parts,
        (after, budget, effort): (Duration, Share, &Effort<'_>),
    ) -> Came {
        let attempts = [way.deadline.fork(), way.deadline.fork()];
        let race = Race::new(way.deadline, way.resilience, &attempts);
        let [one, other] = &attempts;
        let [one_way, other_way] = [one, other].map(|deadline| Way { deadline, ..*way });
        let sent = self.attempt(&one_way, tried, head, RequestBody::empty(one));
        let mut first = pin!(one.drive(sent));
        if let Some(came) = within(after, first.as_mut()).await {
            return race.ends(0, came);
        }
        // Held until one of the two is left, which has the place of the request.
        let Some(_permit) = may_hedge(way, tried, (budget, effort)) else {
            return race.ends(0, first.await);
        };
        race.result.set(Some(Hedge::Abandoned));
        let sent = self.attempt(&other_way, tried, head, RequestBody::empty(other));
        let (winner, came) = first_of(first, pin!(other.drive(sent))).await;
        race.result.set(Some(match (&came, winner) {
            (Err(_), _) => Hedge::Failed,
            (Ok(_), 0) => Hedge::Lost,
            (Ok(_), _) => Hedge::Won,
        }));
        race.ends(winner, came)
    }
}

/// The permit of a second attempt, if there may be one and it takes one.
fn may_hedge(
    way: &Way<'_>,
    tried: &RefCell<Tried>,
    (budget, effort): (Share, &Effort<'_>),
) -> Option<Option<Permit>> {
    let Way { choice, local, priority, .. } = *way;
    let upstream = choice.upstream;
    let refused = |reason| {
        way.resilience.no_hedge(reason);
        None
    };
    if !choice.has_more(tried) {
        return refused(NoHedge::Endpoint);
    }
    let priority = (priority, upstream.top_priority);
    let permit = upstream.concurrency.as_ref();
    let permit = permit.map(|terms| concurrency::enter_now(local, terms, priority));
    if matches!(permit, Some(None)) {
        return refused(NoHedge::Concurrency);
    }
    if !effort.has_spare(budget) {
        return refused(NoHedge::Budget);
    }
    Some(permit.flatten())
}

/// What the attempts leave to the request, also when it is given up midway.
struct Race<'d> {
    deadline: &'d Deadline,
    counters: &'d Resilience,
    attempts: [Rc<Deadline>; 2],
    winner: Cell<usize>,
    /// `None` while there is one attempt.
    result: Cell<Option<Hedge>>,
}

impl<'d> Race<'d> {
    fn new(deadline: &'d Deadline, counters: &'d Resilience, attempts: &[Rc<Deadline>; 2]) -> Self {
        let (winner, result) = Default::default();
        Self { deadline, counters, attempts: attempts.clone(), winner, result }
    }

    fn ends(self, winner: usize, came: Came) -> Came {
        self.winner.set(winner);
        let deadline = self.deadline;
        drop(self);
        if came.is_ok() {
            deadline.answered();
        }
        came
    }
}

impl Drop for Race<'_> {
    fn drop(&mut self) {
        let [one, other] = &self.attempts;
        // What the last one says stands.
        let order = if self.winner.get() == 0 { [other, one] } else { [one, other] };
        order.iter().for_each(|attempt| self.deadline.trail.join(&attempt.trail));
        if let Some(result) = self.result.get() {
            self.deadline.trail.hedged(result);
            self.counters.hedge(result);
        }
    }
}

/// What comes of `attempt` in so short a time.
async fn within(time: Duration, mut attempt: Pin<&mut impl Future<Output = Came>>) -> Option<Came> {
    let mut delay = pin!(sleep(time));
    poll_fn(|context| match attempt.as_mut().poll(context) {
        Poll::Ready(came) => Poll::Ready(Some(came)),
        Poll::Pending => delay.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// The first that answers, and its number. A failure, or an answer that says that the service cannot, waits for the
/// other one to do better: nobody is worse off for having been hedged.
async fn first_of(
    first: Pin<&mut impl Future<Output = Came>>,
    second: Pin<&mut impl Future<Output = Came>>,
) -> (usize, Came) {
    let mut running: [Option<Pin<&mut dyn Future<Output = Came>>>; 2] = [Some(first), Some(second)];
    let mut kept: Option<(usize, Came)> = None;
    poll_fn(|context| {
        for (number, slot) in running.iter_mut().enumerate() {
            let Some(attempt) = slot else { continue };
            let Poll::Ready(came) = attempt.as_mut().poll(context) else { continue };
            *slot = None;
            if came.as_ref().is_ok_and(|it| !it.response.status().is_server_error()) {
                return Poll::Ready((number, came));
            }
            if !matches!(kept, Some((_, Ok(_)))) {
                kept = Some((number, came));
            }
        }
        let is_over = running.iter().all(Option::is_none);
        kept.take_if(|_| is_over).map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
