//! How long a connection may stay as it is.
//!
//! A client connection has at most one request at a time, and whatever it waits for, it waits for one thing. So one
//! deadline and one timer a connection serve every wait, where a timer a wait would cost several a request: whoever
//! knows what is waited for next moves the deadline, and the connection's task looks at it when its timer fires.
//!
//! ```text
//!            first byte          head read           body sent           head of the answer
//!   Idle ───────────────▶ Head ───────────▶ Upload ───────────▶ Answer ───────────▶ Download
//!    ▲                                                                                 │
//!    └──────────────────────────────── end of the answer ──────────────────────────────┘
//! ```
//!
//! A WebSocket goes from `Answer` to `Tunnel` and ends there; a connection that is refused goes to `Linger`. A request
//! may have a bound as a whole: no wait of it, whatever for, goes beyond.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::base::error::{Error, Kind};
use crate::base::time::Moment;
use crate::config::Bounds;
use crate::http::pace::Pace;
use crate::observe::trail::{Times, Trail};

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of its head.
    Head,
    /// Its body, or the upstream that takes it.
    Upload,
    /// A connection to the upstream, or the head of its answer.
    Answer,
    /// The body of the answer, or the client that takes it.
    Download,
    /// Either side of a tunnel.
    Tunnel,
    /// The client, to notice that it was refused.
    Linger,
}

/// Time for a client that is still sending to notice its answer. To close on what it sends would destroy the answer.
const LINGER: Duration = Duration::from_secs(2);

/// So long a connection waits for its next request before it [may rest](Deadline::may_rest). Requests of one page or
/// one loop follow each other sooner and never meet it. One that comes later costs what going on from rest costs, some
/// microseconds, once a second at most.
pub const REST_AFTER: Duration = Duration::from_secs(1);

/// Longer than anything may take.
const LENT: Duration = Duration::from_secs(7 * 86_400);

/// What of a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// Not enough to do anything.
    Nothing,
    /// So much that the connection may rest.
    Rest,
    /// All of it.
    End,
}

/// The deadline of one client connection.
#[derive(Debug)]
pub struct Deadline {
    /// What the request that is served leaves behind: whoever moves the deadline knows what happens.
    pub trail: Trail,
    /// The other clocks since the task was woken.
    pub moment: Moment,
    at: Cell<Instant>,
    /// The time since the task was woken, once somebody has asked for it: reading the clock for each of the five or six
    /// moves of a small request would be a percent of its cost.
    now: Cell<Option<Instant>>,
    phase: Cell<Phase>,
    reached: Cell<Reached>,
    may_rest: Cell<bool>,
    /// A rule denies the client by now.
    is_cut: Cell<bool>,
    /// Whether the last one to be asked for a piece of the request's body was the client.
    client_is_asked: Cell<bool>,
    /// The end of the connection that a body found out about and only the request can answer.
    fault: Cell<Option<Kind>>,
    response_timeout: Cell<Duration>,
    /// When the request as a whole must be over.
    whole: Cell<Option<Instant>>,
    head_timeout: Duration,
    idle_timeout: Duration,
    /// The same for the request that is served.
    stream_idle: Cell<Duration>,
    keep_alive_timeout: Duration,
    tunnel_idle_timeout: Duration,
    pace: Pace,
}

impl Deadline {
    /// The deadline of a connection that has just been accepted: its first head is due.
    pub fn new(bounds: &Bounds) -> Self {
        Self {
            trail: Trail::default(),
            moment: Moment::default(),
            at: Cell::new(Instant::now() + bounds.head_timeout),
            now: Cell::new(None),
            phase: Cell::new(Phase::Head),
            reached: Cell::new(Reached::Nothing),
            may_rest: Cell::new(false),
            is_cut: Cell::new(false),
            client_is_asked: Cell::new(false),
            fault: Cell::new(None),
            response_timeout: Cell::new(Duration::ZERO),
            whole: Cell::new(None),
            head_timeout: bounds.head_timeout,
            idle_timeout: bounds.idle_timeout,
            stream_idle: Cell::new(bounds.idle_timeout),
            keep_alive_timeout: bounds.keep_alive_timeout,
            tunnel_idle_timeout: bounds.tunnel_idle_timeout,
            pace: Pace::new(bounds),
        }
    }

    /// Called when the task of the connection is woken: time has passed.
    pub fn woken(&self) {
        self.now.set(None);
        self.moment.pass();
    }

    /// When it is.
    pub fn at(&self) -> Instant {
        self.at.get()
    }

    /// From now on somebody is to look also when the connection has waited for its next request for a while.
    pub fn may_rest(&self) {
        self.may_rest.set(true);
    }

    /// When somebody is to look.
    pub fn due(&self) -> Instant {
        let waits = self.phase.get() == Phase::Idle && self.reached.get() == Reached::Nothing;
        match waits && self.may_rest.get() {
            true => self.at() - self.keep_alive_timeout.saturating_sub(REST_AFTER),
            false => self.at(),
        }
    }

    /// What is waited for.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Whether it has passed and nobody has moved it since.
    pub fn has_passed(&self) -> bool {
        self.reached.get() == Reached::End
    }

    /// Whether the next request has not come for a while, so that the connection may rest.
    pub fn has_rested(&self) -> bool {
        self.reached.get() == Reached::Rest
    }

    /// A rule denies the client by now: what is under way ends.
    pub fn cut(&self) {
        self.is_cut.set(true);
    }

    /// Whether a rule denies the client by now.
    pub fn is_cut(&self) -> bool {
        self.is_cut.get()
    }

    /// The gateway ends. Whoever has just connected, or begun to send a head, is about to send a request that nobody
    /// else will answer: answers whether that is so, and leaves it `grace` at most.
    pub fn awaits_head(&self, grace: Duration) -> bool {
        let awaits = self.phase.get() == Phase::Head;
        if awaits {
            self.at.set(self.at.get().min(self.now() + grace));
        }
        awaits
    }

    /// Called when the timer fires: whether it is time rather than the deadline moved.
    pub fn check(&self) -> bool {
        self.woken();
        let is_due = self.now() >= self.due();
        if is_due {
            let is_over = self.now() >= self.at();
            self.reached.set(if is_over { Reached::End } else { Reached::Rest });
        }
        is_due
    }

    /// The head of a request was read.
    pub fn begun(&self) {
        self.trail.begin(self.now());
        self.pace.begin();
    }

    /// The client sent bytes.
    pub fn client_sent(&self) {
        match self.phase.get() {
            Phase::Idle => self.enter(Phase::Head, self.head_timeout),
            // A head has one deadline as a whole: a byte now and then must not prolong it.
            Phase::Head | Phase::Answer | Phase::Linger => {}
            // There only what is of the body counts, and whoever reads that says so.
            Phase::Upload if self.pace.is_kept() => {}
            Phase::Upload | Phase::Download | Phase::Tunnel => self.piece(),
        }
    }

    /// The client took bytes.
    pub fn client_took(&self, bytes: usize) {
        self.pace.moved(bytes, self.now());
        match self.phase.get() {
            // The end of an answer is written after its body has ended.
            Phase::Idle => self.enter(Phase::Idle, self.keep_alive_timeout),
            Phase::Head | Phase::Answer | Phase::Linger => {}
            Phase::Upload | Phase::Download | Phase::Tunnel => self.piece(),
        }
    }

    /// The client does not take what is there for it.
    pub fn client_blocks(&self) {
        if self.phase.get() == Phase::Download {
            self.await_client();
        }
    }

    /// Whether the client is what is waited for in a download.
    pub fn client_is_blocking(&self) -> bool {
        self.phase.get() == Phase::Download && self.pace.is_running()
    }

    /// The client sends messages when it has any: it keeps no pace.
    pub fn client_takes_its_time(&self) {
        self.pace.suspend();
    }

    /// From now on the request as a whole takes no longer than `whole`, until its answer is at its end.
    pub fn bound(&self, whole: Option<Duration>) {
        self.whole.set(whole.map(|whole| self.now() + whole));
    }

    /// From now on the bodies of the request and its answer may rest for so long between two pieces, until the answer
    /// is at its end.
    pub fn stream_idle(&self, timeout: Duration) {
        self.stream_idle.set(timeout);
    }

    /// Whether a wait of so long ends before the request as a whole must.
    pub fn leaves(&self, wait: Duration) -> bool {
        self.whole.get().is_none_or(|whole| self.now() + wait < whole)
    }

    /// A deadline of its own for one of several attempts at the request, none of whose waits goes beyond the request as
    /// a whole. From now on this one waits for nothing: each attempt is to be driven by its own.
    pub fn fork(&self) -> Rc<Self> {
        self.phase.set(Phase::Answer);
        self.reached.set(Reached::Nothing);
        self.at.set(self.now() + LENT);
        Rc::new(Self {
            trail: Trail::default(),
            moment: Moment::default(),
            at: self.at.clone(),
            now: Cell::new(None),
            phase: self.phase.clone(),
            reached: Cell::new(Reached::Nothing),
            may_rest: Cell::new(false),
            is_cut: Cell::new(false),
            client_is_asked: Cell::new(false),
            fault: Cell::new(None),
            response_timeout: self.response_timeout.clone(),
            whole: self.whole.clone(),
            stream_idle: self.stream_idle.clone(),
            pace: self.pace.clone(),
            ..*self
        })
    }

    /// Does `work` and wakes it when this deadline has passed, which nobody else looks at.
    pub async fn drive<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut timer = pin!(sleep_until(self.at()));
        poll_fn(|context| {
            self.woken();
            loop {
                if let Poll::Ready(done) = work.as_mut().poll(context) {
                    return Poll::Ready(done);
                }
                // Whoever waits was asked what to do and did nothing.
                if self.has_passed() {
                    return Poll::Pending;
                }
                loop {
                    timer.as_mut().reset(self.at());
                    ready!(timer.as_mut().poll(context));
                    if self.check() {
                        break;
                    }
                }
            }
        })
        .await
    }

    /// The request waits here, for its turn.
    pub fn wait(&self, wait: Duration) {
        self.enter(Phase::Answer, wait);
    }

    /// Waits, before a request is tried once more.
    pub async fn pause(&self, wait: Duration) {
        if wait.is_zero() {
            return;
        }
        self.wait(wait);
        // Whoever looks after the timer polls the request when it fires.
        poll_fn(|_| if self.has_passed() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// The request has failed: what follows is the gateway's own answer, which has all the time that a client may take.
    pub fn refused(&self) {
        self.whole.set(None);
        self.stream_idle.set(self.idle_timeout);
        self.answered();
    }

    /// A connection to an endpoint is made.
    pub fn connect(&self, connect_timeout: Duration) {
        self.trail.connecting(self.now());
        self.enter(Phase::Answer, connect_timeout);
    }

    /// A request is sent; `response_timeout` begins with its last byte.
    pub fn send(&self, has_body: bool, response_timeout: Duration) {
        self.client_is_asked.set(false);
        self.trail.sending(self.now());
        self.pace.reset(self.stream_idle.get());
        if has_body {
            self.response_timeout.set(response_timeout);
            self.enter(Phase::Upload, self.stream_idle.get());
        } else {
            self.enter(Phase::Answer, response_timeout);
        }
    }

    /// The request's body is read in full before anything is sent.
    pub fn collect(&self) {
        self.client_is_asked.set(false);
        self.pace.reset(self.idle_timeout);
        self.response_timeout.set(self.idle_timeout);
        self.enter(Phase::Upload, self.idle_timeout);
    }

    /// The client is asked for the next piece of the request's body.
    pub fn ask_client(&self) {
        self.client_is_asked.set(true);
        if self.phase.get() == Phase::Upload && self.pace.is_kept() {
            self.await_client();
        }
    }

    /// The client sent so much of the request's body.
    pub fn client_piece(&self, bytes: usize) {
        if self.phase.get() == Phase::Upload {
            self.pace.moved(bytes, self.now());
        }
        self.piece();
    }

    /// A piece of a body went through.
    pub fn piece(&self) {
        self.client_is_asked.set(false);
        match self.phase.get() {
            phase @ (Phase::Upload | Phase::Download) => self.enter(phase, self.stream_idle.get()),
            Phase::Tunnel => self.tunnel(),
            Phase::Idle | Phase::Head | Phase::Answer | Phase::Linger => {}
        }
    }

    /// The last piece of the request's body went through.
    pub fn uploaded(&self) {
        if self.phase.get() == Phase::Upload {
            self.enter(Phase::Answer, self.response_timeout.get());
        }
    }

    /// The head of the answer is there.
    pub fn answered(&self) {
        self.trail.answered(self.now());
        self.pace.reset(self.stream_idle.get());
        self.enter(Phase::Download, self.stream_idle.get());
    }

    /// Both sides agreed on a tunnel.
    pub fn tunnel(&self) {
        self.whole.set(None);
        self.enter(Phase::Tunnel, self.tunnel_idle_timeout);
    }

    /// The connection ends as soon as the client has noticed.
    pub fn linger(&self) {
        self.enter(Phase::Linger, LINGER);
    }

    /// The answer is at its end. Answers how long everything took.
    pub fn ended(&self) -> Times {
        self.whole.set(None);
        self.stream_idle.set(self.idle_timeout);
        self.enter(Phase::Idle, self.keep_alive_timeout);
        self.trail.times(self.now())
    }

    /// A body found out why the request cannot go on.
    pub fn fail(&self, kind: Kind) {
        self.fault.set(Some(kind));
    }

    /// What a body found out, once.
    pub fn take_fault(&self) -> Option<Error> {
        self.fault.take().map(Error::from)
    }

    /// The error of having waited in vain.
    pub fn error(&self) -> Error {
        if self.phase.get() == Phase::Upload && self.client_is_asked.get() {
            Kind::RequestTimeout.into()
        } else {
            Kind::UpstreamTimeout.into()
        }
    }

    /// The client has what its pace leaves it, and no more than there was.
    fn await_client(&self) {
        let until = self.pace.wait(self.now());
        self.at.set(self.at.get().min(until));
    }

    fn enter(&self, phase: Phase, wait: Duration) {
        self.phase.set(phase);
        self.reached.set(Reached::Nothing);
        let at = self.now() + wait;
        self.at.set(self.whole.get().map_or(at, |whole| at.min(whole)));
    }

    /// The time since the task was woken.
    pub fn now(&self) -> Instant {
        let now = self.now.get().unwrap_or_else(Instant::now);
        self.now.set(Some(now));
        now
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn bounds() -> Bounds {
        Bounds {
            connections: 1,
            connections_per_source: 1,
            connection_lifetime: Duration::from_secs(1000),
            connection_requests: 2,
            streams: 1,
            header_count: 1,
            head_bytes: 8192,
            body_bytes: 1,
            body_bytes_per_second: 10,
            handshake_timeout: Duration::from_secs(1),
            handshakes: 1,
            head_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(2),
            keep_alive_timeout: Duration::from_secs(3),
            tunnel_idle_timeout: Duration::from_secs(4),
            target_bytes: 8192,
            drain_timeout: Duration::ZERO,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_prolong_a_body_and_never_a_head() {
        let deadline = Deadline::new(&bounds());
        let start = Instant::now();
        tokio::time::advance(Duration::from_millis(900)).await;
        deadline.woken();
        deadline.client_sent();
        assert_eq!(deadline.at(), start + Duration::from_secs(1));
        deadline.send(true, Duration::from_secs(9));
        deadline.client_piece(100);
        assert_eq!(deadline.at(), Instant::now() + Duration::from_secs(2));
        deadline.uploaded();
        assert_eq!(deadline.at(), Instant::now() + Duration::from_secs(9));
        deadline.answered();
        deadline.ended();
        deadline.client_took(1);
        assert_eq!(deadline.at(), Instant::now() + Duration::from_secs(3));
        deadline.client_sent();
        assert_eq!(deadline.phase(), Phase::Head);
    }

    #[tokio::test(start_paused = true)]
    async fn blame_is_on_the_side_that_was_asked() {
        let deadline = Deadline::new(&bounds());
        deadline.send(true, Duration::from_secs(9));
        assert_eq!(deadline.error().kind(), Kind::UpstreamTimeout);
        deadline.ask_client();
        assert_eq!(deadline.error().kind(), Kind::RequestTimeout);
        deadline.piece();
        assert_eq!(deadline.error().kind(), Kind::UpstreamTimeout);
    }

    #[tokio::test(start_paused = true)]
    async fn no_wait_goes_beyond_the_whole() {
        let deadline = Deadline::new(&bounds());
        let start = Instant::now();
        let seconds = Duration::from_secs;
        deadline.bound(Some(seconds(5)));
        deadline.connect(seconds(3));
        assert_eq!(deadline.at(), start + seconds(3));
        deadline.send(false, seconds(9));
        assert_eq!(deadline.at(), start + seconds(5));
        assert!(deadline.leaves(seconds(4)) && !deadline.leaves(seconds(5)));
        tokio::time::advance(seconds(4)).await;
        deadline.woken();
        deadline.answered();
        assert_eq!(deadline.at(), start + seconds(5));
        deadline.refused();
        assert_eq!(deadline.at(), start + seconds(6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_is_due_has_a_grace_when_the_gateway_ends_and_no_more_than_its_time() {
        let deadline = Deadline::new(&bounds());
        let start = Instant::now();
        assert!(deadline.awaits_head(Duration::from_secs(9)));
        assert_eq!(deadline.at(), start + Duration::from_secs(1));
        assert!(deadline.awaits_head(Duration::from_millis(10)));
        assert_eq!(deadline.at(), start + Duration::from_millis(10));
        deadline.send(false, Duration::from_secs(9));
        assert!(!deadline.awaits_head(Duration::ZERO));
        deadline.ended();
        assert!(!deadline.awaits_head(Duration::ZERO), "idle between two requests");
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_has_its_own_time_and_none_more_than_the_request() {
        let deadline = Deadline::new(&bounds());
        let start = Instant::now();
        let seconds = Duration::from_secs;
        deadline.bound(Some(seconds(5)));
        let [one, other] = [deadline.fork(), deadline.fork()];
        let wait = async |deadline: &Deadline, times: &[u64]| {
            for time in times {
                deadline.pause(seconds(*time)).await;
            }
            deadline.now() - start
        };
        let both =
            async { tokio::join!(one.drive(wait(&one, &[1, 2])), other.drive(wait(&other, &[9]))) };
        assert_eq!(both.await, (seconds(3), seconds(5)));
        assert!(deadline.at() > Instant::now() && !deadline.has_passed());
        deadline.woken();
        deadline.answered();
        assert_eq!(deadline.at(), start + seconds(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_may_rest_once_its_next_request_has_not_come_for_a_while() {
        let mut bounds = bounds();
        bounds.keep_alive_timeout = 9 * REST_AFTER;
        let deadline = Deadline::new(&bounds);
        deadline.may_rest();
        let start = Instant::now();
        assert_eq!(deadline.due(), deadline.at(), "not before its first request");
        deadline.ended();
        assert_eq!((deadline.due(), deadline.at()), (start + REST_AFTER, start + 9 * REST_AFTER));
        tokio::time::advance(REST_AFTER / 2).await;
        assert!(!deadline.check() && !deadline.has_rested());
        tokio::time::advance(REST_AFTER / 2).await;
        assert!(deadline.check() && deadline.has_rested() && !deadline.has_passed());
        assert!(deadline.due() == deadline.at() && !deadline.check(), "it is told once");
        deadline.client_sent();
        assert!(!deadline.has_rested() && deadline.due() == deadline.at(), "a head is due");
        deadline.ended();
        tokio::time::advance(9 * REST_AFTER).await;
        assert!(deadline.check() && deadline.has_passed() && !deadline.has_rested());
        bounds.keep_alive_timeout = REST_AFTER;
        let brief = Deadline::new(&bounds);
        brief.may_rest();
        brief.ended();
        assert_eq!(brief.due(), brief.at(), "it would be closed at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_moved_deadline_has_not_passed() {
        let deadline = Deadline::new(&bounds());
        tokio::time::advance(Duration::from_secs(1)).await;
        deadline.woken();
        assert!(deadline.check());
        deadline.answered();
        assert!(!deadline.has_passed());
        assert!(!deadline.check());
    }
}
