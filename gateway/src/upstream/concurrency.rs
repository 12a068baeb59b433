//! How many requests a service has at once: those beyond are refused at once, or wait in a queue that is bounded in
//! length and time.
//!
//! The count is one number that all workers share, so the limit is exact however unevenly connections fall on workers;
//! docs/decisions/concurrency-limits.md says what that costs. Those who wait do so in a queue of their worker, first
//! come, first served, and are woken when a request of their worker ends; that one of another worker has ended they see
//! within [`LOOK_AGAIN`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::base::error::{Error, Kind};
use crate::config::{Concurrency, Limit, Priority};
use crate::http::deadline::Deadline;
use crate::upstream::Local;
use crate::upstream::adaptive::Shared;
use crate::upstream::shed::part;

const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What all workers share of one service.
#[derive(Debug, Default)]
pub struct Limiter {
    active: AtomicU32,
    waiting: AtomicU32,
    pub(super) adaptive: Shared,
}

/// Those of one worker who wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    next: Cell<u64>,
}

/// A place among the requests that the service has. It is free again when this is dropped.
#[derive(Debug)]
pub struct Permit(Rc<Local>);

impl Limiter {
    /// The limit as it is.
    pub fn limit(&self, terms: &Concurrency) -> u32 {
        match terms.limit {
            Limit::Fixed(limit) => limit,
            Limit::Adaptive(bounds) => self.adaptive.limit(bounds),
        }
    }

    /// Requests that the service has.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    fn enter(&self, limit: u32) -> bool {
        add_below(&self.active, limit)
    }
}

/// Takes a place for a request of `own` priority, `top` being the highest of the service's routes.
pub(super) async fn enter(
    local: &Rc<Local>,
    terms: &Concurrency,
    (own, top): (Priority, Priority),
    deadline: &Deadline,
) -> Result<Permit, Error> {
    if let Some(permit) = enter_now(local, terms, (own, top)) {
        return Ok(permit);
    }
    let limiter = &local.guard.limiter;
    if own < top {
        return Err(Kind::Shed.into());
    }
    if !add_below(&limiter.waiting, terms.queue) {
        return Err(Kind::ConcurrencyLimit.into());
    }
    deadline.trail.queue();
    let number = local.queue.next.get();
    local.queue.next.set(number.wrapping_add(1));
    local.queue.waiting.borrow_mut().push_back((number, Waker::noop().clone()));
    let waiting = Waiting { local, number };
    waiting.until_first(terms, deadline).await
}

/// The same, if there is one and nobody waits for it.
pub(super) fn enter_now(
    local: &Rc<Local>,
    terms: &Concurrency,
    (own, top): (Priority, Priority),
) -> Option<Permit> {
    let limiter = &local.guard.limiter;
    let nobody_waits = local.queue.waiting.borrow().is_empty();
    let is_free = nobody_waits && limiter.enter(part(limiter.limit(terms), own, top));
    is_free.then(|| Permit(Rc::clone(local)))
}

/// Adds one to what is below `limit`.
fn add_below(count: &AtomicU32, limit: u32) -> bool {
    let add = |count: u32| (count < limit).then(|| count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
}

/// One who waits. Whoever gives up leaves the queue by dropping it.
struct Waiting<'l> {
    local: &'l Rc<Local>,
    number: u64,
}

impl Waiting<'_> {
    async fn until_first(self, terms: &Concurrency, deadline: &Deadline) -> Result<Permit, Error> {
        let limiter = &self.local.guard.limiter;
        let until = deadline.now() + terms.wait;
        let look_again = |deadline: &Deadline| {
            deadline.wait(LOOK_AGAIN.min(until.saturating_duration_since(deadline.now())));
        };
        look_again(deadline);
        poll_fn(|context| {
            if self.is_first(context) && limiter.enter(limiter.limit(terms)) {
                return Poll::Ready(Ok(Permit(Rc::clone(self.local))));
            }
            if deadline.now() >= until || !deadline.leaves(Duration::ZERO) {
                return Poll::Ready(Err(Kind::ConcurrencyLimit.into()));
            }
            if deadline.has_passed() {
                look_again(deadline);
            }
            Poll::Pending
        })
        .await
    }

    /// Whether nobody waits longer. Whoever it is that comes after is woken by the one before.
    fn is_first(&self, context: &Context<'_>) -> bool {
        let mut waiting = self.local.queue.waiting.borrow_mut();
        if let Some((_, waker)) = waiting.iter_mut().find(|(number, _)| *number == self.number) {
            waker.clone_from(context.waker());
        }
        waiting.front().is_some_and(|(number, _)| *number == self.number)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.local.guard.limiter.waiting.fetch_sub(1, Ordering::Relaxed);
        self.local.queue.waiting.borrow_mut().retain(|(number, _)| *number != self.number);
        self.local.queue.wake();
    }
}

impl Queue {
    fn wake(&self) {
        if let Some((_, waker)) = self.waiting.borrow().front() {
            waker.wake_by_ref();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.guard.limiter.active.fetch_sub(1, Ordering::Relaxed);
        self.0.queue.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::deadline::tests::bounds;
    use crate::upstream::guard::Guard;

    fn terms(limit: u32, queue: u32) -> Concurrency {
        Concurrency { limit: Limit::Fixed(limit), queue, wait: Duration::from_secs(1) }
    }

    /// Takes a place, with a timer as a connection has it.
    async fn take(local: &Rc<Local>, terms: &Concurrency, own: Priority) -> Result<Permit, Kind> {
        let deadline = Deadline::new(&bounds());
        let entered = enter(local, terms, (own, Priority::Critical), &deadline);
        let mut entered = std::pin::pin!(entered);
        loop {
            let timer = async {
                let at =
                    if deadline.at() > deadline.now() { deadline.at() } else { deadline.now() };
                tokio::time::sleep_until(at).await;
            };
            tokio::select! {
                biased;
                done = &mut entered => return done.map_err(|error| error.kind()),
                () = timer => {
                    deadline.check();
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_beyond_are_refused_the_least_important_first() {
        let local = Local::new(Guard::new(1));
        let terms = terms(10, 0);
        let mut held = Vec::new();
        for (own, room) in [(Priority::Low, 7), (Priority::Normal, 1), (Priority::Critical, 2)] {
            for _ in 0..room {
                held.push(take(&local, &terms, own).await.unwrap());
            }
            let refused = take(&local, &terms, own).await.unwrap_err();
            let top = own == Priority::Critical;
            assert_eq!(refused, if top { Kind::ConcurrencyLimit } else { Kind::Shed });
        }
        assert_eq!(local.guard.limiter.active(), 10);
        held.pop();
        assert!(take(&local, &terms, Priority::Critical).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_are_served_in_order_and_leave_in_time() {
        let local = Local::new(Guard::new(1));
        let terms = terms(1, 2);
        let held = take(&local, &terms, Priority::Critical).await.unwrap();
        let order = RefCell::new(Vec::new());
        let wait = |number: u32| {
            let (local, order) = (&local, &order);
            async move {
                let permit = take(local, &terms, Priority::Critical).await;
                order
                    .borrow_mut()
                    .push((number, permit.as_ref().map(|_| ()).map_err(|kind| *kind)));
                permit
            }
        };
        let release = async {
            assert_eq!(local.guard.limiter.waiting(), 2);
            drop(held);
        };
        let (first, second, third, ()) = tokio::join!(biased; wait(1), wait(2), wait(3), release);
        // The third found the queue full, the first took what was released, the second waited in vain.
        let full = Err(Kind::ConcurrencyLimit);
        assert_eq!(*order.borrow(), [(3, full), (1, Ok(())), (2, full)]);
        assert!(first.is_ok() && second.is_err() && third.is_err());
        assert_eq!(local.guard.limiter.waiting(), 0);
        drop(first);
        assert_eq!(local.guard.limiter.active(), 0);
    }
}
