//! When a request that failed is sent once more, and how long before that.
//!
//! Where nothing was sent, going on to the next endpoint is no retry: it costs nobody anything. Once something was
//! sent, a request is sent again only if its method allows it, if its body is still there and if nothing of an answer
//! went to the client. When a connection breaks, a request goes on to another endpoint at once, the first time even if
//! the budget is used up: what was in flight at an endpoint that died must not fail while another one lives, and once a
//! request cannot bury a service.

use std::rc::Rc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::request::Parts;
use http::{HeaderMap, Response};
use http_body::Body as _;

use crate::base::error::{Error, Kind};
use crate::base::random::random;
use crate::base::time::utc;
use crate::config::{Backoff, Retry, Share};
use crate::http::body::{Replay, RequestBody};
use crate::http::deadline::Deadline;
use crate::http::h1::upgrade::WebSocket;
use crate::observe::resilience::{Again, NotAgain, Resilience};
use crate::upstream::budget::Budget;

/// What is left of the will to send one request.
pub(super) struct Effort<'a> {
    policy: &'a Retry,
    budget: &'a Budget,
    counters: &'a Resilience,
    deadline: &'a Rc<Deadline>,
    /// What it takes to send it again; `None` if it must not be.
    copy: Option<Copy>,
    retries: u32,
    has_failed_over: bool,
}

/// The body that is sent again.
enum Copy {
    /// There is none.
    Empty,
    /// What went through of it, and the rest.
    Kept(Replay),
}

impl<'a> Effort<'a> {
    /// Counts a request, and keeps of it what sending it again takes.
    pub(super) fn new(
        policy: &'a Retry,
        (budget, counters): (&'a Budget, &'a Resilience),
        deadline: &'a Rc<Deadline>,
        head: &Parts,
        body: RequestBody,
    ) -> (Self, RequestBody) {
        budget.request(deadline.now());
        let (copy, body) = if !may_be_sent_again(policy, head, &body) {
            (None, body)
        } else if body.is_end_stream() {
            (Some(Copy::Empty), body)
        } else {
            let (body, replay) = body.keep(policy.buffer_bytes);
            (Some(Copy::Kept(replay)), body)
        };
        let this =
            Self { policy, budget, counters, deadline, copy, retries: 0, has_failed_over: false };
        (this, body)
    }

    /// The body of the request, which is to be sent once more after `error`, and the pause before it. It is `unsent` if
    /// no endpoint took it; `other` is whether an endpoint is left that was not tried yet.
    pub(super) fn after(
        &mut self,
        error: &Error,
        unsent: Option<RequestBody>,
        other: bool,
    ) -> Option<(RequestBody, Duration)> {
        let on = &self.policy.on;
        let (reason, wanted) = match error.kind() {
            // It would be no other the next moment.
            Kind::BreakerOpen => return None,
            _ if unsent.is_some() => (Again::ConnectFailure, on.connect_failure),
            Kind::UpstreamReset | Kind::UpstreamProtocol => (Again::Reset, on.reset),
            Kind::UpstreamTimeout => (Again::Timeout, on.timeout),
            _ => return None,
        };
        if !wanted {
            return None;
        }
        self.again(reason, unsent, other)
    }

    /// The same after an answer whose status asks for it. An answer that says when to come again says so to the client
    /// if that is later than a pause may be.
    pub(super) fn after_answer<B>(
        &mut self,
        answer: &Response<B>,
    ) -> Option<(RequestBody, Duration)> {
        if !self.policy.on.statuses.contains(&answer.status().as_u16()) {
            return None;
        }
        let asked = retry_after(answer.headers());
        if asked > self.policy.backoff.max {
            return None;
        }
        let (body, pause) = self.again(Again::Status, None, false)?;
        Some((body, pause.max(asked)))
    }

    /// Whether the budget has something to spare for a hedge, which then is taken, and `hedges` are not too large a
    /// share of requests.
    pub(super) fn has_spare(&self, hedges: Share) -> bool {
        self.budget.spare(self.policy.budget, hedges, self.deadline.now())
    }

    fn again(
        &mut self,
        reason: Again,
        unsent: Option<RequestBody>,
        other: bool,
    ) -> Option<(RequestBody, Duration)> {
        let sent = self.retries as usize + 1;
        if sent >= self.policy.attempts || unsent.is_none() && self.copy.is_none() {
            return None;
        }
        let fails_over = reason == Again::Reset && other && !self.has_failed_over;
        let pause = match fails_over {
            true => Duration::ZERO,
            false => pause(self.policy.backoff, self.retries, random()),
        };
        let body = match unsent {
            Some(body) => Some(body),
            None => self.copy.as_ref().and_then(|copy| copy.again(self.deadline)),
        };
        let Some(body) = body else { return self.not_again(NotAgain::Body) };
        if let Some(refused) = self.refused(fails_over, pause) {
            return self.not_again(refused);
        }
        self.counters.again(reason);
        self.retries += 1;
        self.has_failed_over |= fails_over;
        Some((body, pause))
    }

    fn refused(&self, fails_over: bool, pause: Duration) -> Option<NotAgain> {
        let now = self.deadline.now();
        if !self.deadline.leaves(pause) {
            Some(NotAgain::Deadline)
        } else if fails_over {
            self.budget.charge(now);
            None
        } else {
            (!self.budget.withdraw(self.policy.budget, now)).then_some(NotAgain::Budget)
        }
    }

    fn not_again<T>(&self, reason: NotAgain) -> Option<T> {
        self.counters.not_again(reason);
        None
    }
}

impl Copy {
    fn again(&self, deadline: &Rc<Deadline>) -> Option<RequestBody> {
        match self {
            Self::Empty => Some(RequestBody::empty(deadline)),
            Self::Kept(replay) => replay.again(deadline),
        }
    }
}

/// Whether a request may reach a service twice, and its body is worth being kept for that.
fn may_be_sent_again(policy: &Retry, head: &Parts, body: &RequestBody) -> bool {
    let on = &policy.on;
    let body_bytes = body.size_hint().lower();
    policy.attempts > 1
        // What goes through a tunnel is not kept.
        && head.extensions.get::<WebSocket>().is_none()
        && (on.reset || on.timeout || !on.statuses.is_empty())
        && policy.methods.contains(&head.method)
        && body_bytes <= policy.buffer_bytes as u64
}

/// The pause before the retry with this number, the first being 0: any length up to an upper end that doubles, "full
/// jitter" (M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015), so that those who failed
/// together do not come back together.
fn pause(backoff: Backoff, number: u32, random: u64) -> Duration {
    let doubled = 1u32.checked_shl(number).unwrap_or(u32::MAX);
    let end = backoff.first.saturating_mul(doubled).min(backoff.max);
    let end_us = end.as_micros();
    let us = (u128::from(random) * (end_us + 1)) >> 64;
    Duration::from_micros(u64::try_from(us).unwrap_or(u64::MAX))
}

/// When an answer asks to be tried again: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Duration {
    let Some(text) = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()) else {
        return Duration::ZERO;
    };
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Duration::from_secs(text.parse().unwrap_or(u64::MAX));
    }
    let until = httpdate::parse_http_date(text).ok();
    let until = until.and_then(|date| date.duration_since(std::time::SystemTime::UNIX_EPOCH).ok());
    until.unwrap_or_default().saturating_sub(Duration::from_millis(utc().0))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pause_is_within_its_range(
            first in 1u64..60_000,
            more in 0u64..60_000,
            number in 0u32..100,
            random: u64,
        ) {
            let backoff = Backoff {
                first: Duration::from_millis(first),
                max: Duration::from_millis(first + more),
            };
            let pause = pause(backoff, number, random);
            prop_assert!(pause <= backoff.max);
            prop_assert!(number >= 32 || pause <= backoff.first * 2u32.pow(number.min(31)));
        }
    }

    #[test]
    fn pauses_take_their_whole_range() {
        let ms = Duration::from_millis;
        let backoff = Backoff { first: ms(25), max: ms(250) };
        assert_eq!(pause(backoff, 0, 0), Duration::ZERO);
        let longest: Vec<_> = (0..6).map(|number| pause(backoff, number, u64::MAX)).collect();
        assert_eq!(longest, [25, 50, 100, 200, 250, 250].map(ms));
    }

    #[test]
    fn a_service_says_when_to_come_again() {
        let asked = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers)
        };
        assert_eq!(retry_after(&HeaderMap::new()), Duration::ZERO);
        assert_eq!(asked("120"), Duration::from_secs(120));
        assert_eq!(asked("99999999999999999999999"), Duration::from_secs(u64::MAX));
        assert_eq!(asked("soon"), Duration::ZERO);
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Duration::ZERO);
        assert!(asked("Tue, 31 Dec 2199 23:59:59 GMT") > Duration::from_secs(365 * 86_400));
    }
}
