//! What requests say about their clients: the one place where a refusal becomes a signal.
//!
//! A request makes at most one. The first of these that can count is it: what the gateway refused by the client's
//! fault, then a path that only scanners ask for, then a tunnel that was refused, then what was not there, then an
//! answer that was read too slowly. Without `feedback` in the configuration nothing of a request is kept for this.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use http::StatusCode;
use http::header::HeaderValue;
use http::request::Parts;
use http::uri::PathAndQuery;
use tokio::time::Instant;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::auth::Identity;
use crate::base::address::ClientAddr;
use crate::base::error::{Blame, Kind};
use crate::base::path::Path;
use crate::base::signal::Signal;
use crate::base::time::Now;
use crate::config::Feedback;
use crate::feedback::Reporter;
use crate::feedback::evidence::{Evidence, Report, Source};
use crate::feedback::good::Tally;
use crate::feedback::paths::ScannerPaths;
use crate::http::h1::upgrade::{WebSocket, names_websocket};
use crate::observe::signals::Signals;

/// How long a route that is under pressure is so without being said to be again.
const PRESSURE_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// What a configuration looks for.
#[derive(Debug)]
pub(super) struct Watch {
    /// A bit for each signal that weighs anything, and that some rule counts if there are any.
    counted: u16,
    /// Whether some rule asks for pressure.
    pressure: bool,
    scanner_paths: ScannerPaths,
}

/// What is kept of a request for the case that its end says something.
#[derive(Debug)]
pub(super) struct Noted {
    id: HeaderValue,
    asked: Option<PathAndQuery>,
    is_upgrade: bool,
    client: Cell<ClientAddr>,
    consumer: Cell<Option<u64>>,
    is_excused: Cell<bool>,
}

/// How a request ended, as far as it says something about its client.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    pub(super) status: Option<StatusCode>,
    pub(super) error: Option<Kind>,
    /// The client did not take its answer in time.
    pub(super) is_read_slowly: bool,
}

impl Watch {
    pub(super) fn new(feedback: &Feedback) -> Self {
        let weighs = Signal::ALL.into_iter().zip(feedback.weights);
        let weighs = weighs.filter(|(_, weight)| *weight > 0).map(|(signal, _)| signal);
        let rules = &feedback.rules;
        // Without any rule signals are counted all the same, for metrics.
        let is_used = |signal: &Signal| {
            rules.is_empty() || rules.iter().any(|rule| rule.signals.contains(signal))
        };
        Self {
            counted: weighs.filter(is_used).fold(0, |bits, signal| bits | bit(signal)),
            pressure: rules.iter().any(|rule| rule.under_pressure),
            scanner_paths: ScannerPaths::new(&feedback.scanner_paths),
        }
    }

    /// Whether a signal can count at all.
    pub(super) fn counts(&self, signal: Signal) -> bool {
        self.counted & bit(signal) != 0
    }

    /// What the end of a request says about its client.
    pub(super) fn signal(&self, noted: &Noted, end: &End) -> Option<Signal> {
        let status = end.status.filter(|_| end.error.is_none());
        if let Some(kind) = end.error
            && (kind.blame() != Blame::Client || kind == Kind::Denied || noted.is_excused.get())
        {
            return None;
        }
        let is_gone = status == Some(StatusCode::GONE);
        let is_missing = status == Some(StatusCode::NOT_FOUND) || end.error == Some(Kind::NoRoute);
        let is_refused = end.error.is_some() || status.is_some_and(says_no);
        let is_scan = || (is_missing || is_gone) && self.scanner_paths.has(&noted.path());
        let candidates = [
            end.error.and_then(of_refusal),
            (self.counts(Signal::Scanner) && is_scan()).then_some(Signal::Scanner),
            (noted.is_upgrade && is_refused).then_some(Signal::WebsocketAbuse),
            is_missing.then_some(Signal::NotFound),
            end.is_read_slowly.then_some(Signal::SlowRequest),
        ];
        candidates.into_iter().flatten().find(|signal| self.counts(*signal))
    }

    /// Whether the end of a request says that its route has more to do than it can.
    pub(super) fn is_pressed(&self, has_queued: bool, error: Option<Kind>) -> bool {
        self.pressure && (has_queued || error.is_some_and(says_pressure))
    }
}

fn bit(signal: Signal) -> u16 {
    1 << signal as u16
}

/// What an error says that is the client's fault. A body that is too large or breaks off, a method that is not there
/// and what nobody implements happen to honest clients every day.
fn of_refusal(kind: Kind) -> Option<Signal> {
    match kind {
        Kind::BadRequest | Kind::TargetTooLong | Kind::HeadTooLarge => Some(Signal::Malformed),
        Kind::HeadTimeout | Kind::RequestTimeout => Some(Signal::SlowRequest),
        Kind::Unauthenticated => Some(Signal::AuthFailed),
        Kind::Forbidden => Some(Signal::Forbidden),
        Kind::RateLimited => Some(Signal::RateLimited),
        Kind::NoRoute
        | Kind::MethodNotAllowed
        | Kind::NotImplemented
        | Kind::RequestBroken
        | Kind::BodyTooLarge
        | Kind::Denied
        | Kind::UpstreamConnect
        | Kind::UpstreamTls
        | Kind::UpstreamTimeout
        | Kind::UpstreamReset
        | Kind::UpstreamProtocol
        | Kind::BreakerOpen
        | Kind::ConcurrencyLimit
        | Kind::Shed
        | Kind::UpstreamUnavailable
        | Kind::AuthUnavailable
        | Kind::LimitUnavailable
        | Kind::Overloaded => None,
    }
}

/// Whether a service refuses by `status` what it blames on the client. A credential may be missing or too old, and
/// whose rate it is that is used up it does not say.
fn says_no(status: StatusCode) -> bool {
    let spared = [StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS];
    status.is_client_error() && !spared.contains(&status)
}

fn says_pressure(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::ConcurrencyLimit
            | Kind::Shed
            | Kind::Overloaded
            | Kind::UpstreamTimeout
            | Kind::BreakerOpen
    )
}

impl Noted {
    /// Of a request from `client`, or of what was none.
    pub(super) fn of(head: Option<&Parts>, id: &HeaderValue, client: ClientAddr) -> Box<Self> {
        let is_upgrade = |head: &Parts| {
            head.extensions.get::<WebSocket>().is_some() || names_websocket(&head.headers)
        };
        Box::new(Self {
            id: id.clone(),
            asked: head.and_then(|head| head.uri.path_and_query().cloned()),
            is_upgrade: head.is_some_and(is_upgrade),
            client: Cell::new(client),
            consumer: Cell::new(None),
            is_excused: Cell::new(false),
        })
    }

    /// Whom the request is believed to come from.
    pub(super) fn client(&self, client: ClientAddr) {
        self.client.set(client);
    }

    /// Whom it comes from, as far as anybody knows.
    pub(super) fn believed(&self) -> ClientAddr {
        self.client.get()
    }

    /// Who calls.
    pub(super) fn caller(&self, identity: &Identity) {
        let Identity { authenticator, consumer, user, .. } = identity;
        self.consumer.set(match (consumer, user) {
            (Some(consumer), _) => Some(xxh3_64(consumer.as_bytes())),
            // Two issuers may give one name to two people.
            (None, Some(user)) => {
                Some(xxh3_64_with_seed(user.as_bytes(), xxh3_64(authenticator.as_bytes())))
            }
            (None, None) => None,
        });
    }

    /// The error that the request ends in says nothing about its client.
    pub(super) fn excuse(&self, is_excused: bool) {
        self.is_excused.set(is_excused);
    }

    /// As the router reads it.
    fn path(&self) -> String {
        let path = self.asked.as_ref().map_or("", PathAndQuery::path);
        Path::of(path).and_then(Path::into_changed).unwrap_or_else(|| path.to_owned())
    }
}

/// What a request had when it ended, for whoever asks why.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Story<'a> {
    pub(super) route: Option<&'a str>,
    pub(super) limit: Option<&'a str>,
    pub(super) reason: Option<&'static str>,
}

/// What one worker reports.
#[derive(Debug)]
pub(super) struct Desk {
    reporter: Reporter,
    good: RefCell<Tally>,
    /// Whatever the gateway ends by ending itself is nobody's doing.
    is_closed: Cell<bool>,
}

impl Desk {
    pub(super) fn new(reporter: Reporter) -> Self {
        Self { reporter, good: RefCell::default(), is_closed: Cell::new(false) }
    }

    /// Reports nothing more.
    pub(super) fn close(&self) {
        self.is_closed.set(true);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Reports something odd.
    pub(super) fn odd(
        &self,
        signal: Signal,
        source: Source,
        (noted, story): (Option<&Noted>, Story<'_>),
        counters: &Signals,
    ) {
        counters.noticed(signal);
        let told = self.reporter.odd(Evidence {
            signal,
            source,
            at: Now::read(),
            request_id: noted.map(|noted| noted.id.clone()),
            route: story.route.map(Arc::from),
            limit: story.limit.map(Arc::from),
            reason: story.reason,
        });
        if !told {
            counters.reports_lost.add(1);
        }
    }

    /// A request from `source` was served well.
    pub(super) fn good(&self, source: Source, noted: &Noted, counters: &Signals) {
        let full = self.good.borrow_mut().add(source, noted.consumer.get());
        if let Some(goods) = full {
            let told = self.reporter.takes_long()
                && self.reporter.report(Report::Good(goods, Now::read()));
            if !told {
                counters.reports_lost.add(1);
            }
        }
    }

    /// Tells of what went well since the last time. Called about once a second.
    pub(super) fn flush(&self, counters: &Signals) {
        let mut good = self.good.borrow_mut();
        // What cannot be told now is told later.
        if !good.is_empty() && self.reporter.takes_long() {
            let told = self.reporter.report(Report::Good(good.take(), Now::read()));
            if !told {
                counters.reports_lost.add(1);
            }
        }
    }

    /// A route has more to do than it can. It is told at most once a second.
    pub(super) fn pressure(
        &self,
        (route, told): (&str, &Cell<Option<Instant>>),
        now: Instant,
        counters: &Signals,
    ) {
        let is_due = |told: Instant| now.saturating_duration_since(told) >= PRESSURE_EVERY;
        if self.is_closed() || !told.get().is_none_or(is_due) {
            return;
        }
        told.set(Some(now));
        if !self.reporter.report(Report::Pressure(route.into(), Now::read())) {
            counters.reports_lost.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::base::address::PeerAddr;
    use crate::config::{Ceiling, FeedbackBy, FeedbackRule, Measure, Share, SharedSource};
    use crate::feedback::evidence::Good;
    use Signal::{
        AuthFailed, Forbidden, Malformed, NotFound, RateLimited, Scanner, SlowRequest,
        WebsocketAbuse,
    };

    fn feedback(signals: &[Signal], weights: [u32; Signal::ALL.len()]) -> Feedback {
        let rule = FeedbackRule {
            name: "test".into(),
            signals: signals.to_vec(),
            limit: None,
            count: 1,
            per: Duration::from_secs(1),
            by: FeedbackBy::Source,
            under_pressure: false,
            measure: Measure::Ban,
            lasts: Duration::from_secs(1),
            doubling_up_to: Duration::from_secs(1),
        };
        Feedback {
            dry_run: false,
            rules: vec![rule],
            weights,
            scanner_paths: ["/.env", "/wp-*"].map(Box::from).into(),
            max_sources: 1,
            prefix_bits: [24, 48],
            shared: SharedSource { consumers: 2, evidence: None },
            ceiling: Ceiling { bans_per_minute: 1, good_share: Share::WHOLE },
            spread: None,
            crowdsec: None,
        }
    }

    fn watch(signals: &[Signal]) -> Watch {
        Watch::new(&feedback(signals, [1000; Signal::ALL.len()]))
    }

    fn all() -> Watch {
        watch(&Signal::ALL)
    }

    fn source() -> Source {
        Source::Peer(PeerAddr::of_socket("192.0.2.7:1".parse().unwrap()))
    }

    fn noted(target: &str, is_upgrade: bool) -> Box<Noted> {
        let mut head = http::Request::get(target).body(()).unwrap().into_parts().0;
        if is_upgrade {
            head.extensions.insert(WebSocket);
        }
        let id = HeaderValue::from_static("7f");
        Noted::of(Some(&head), &id, ClientAddr::believed(source().ip()))
    }

    fn status(status: u16) -> End {
        End { status: Some(StatusCode::from_u16(status).unwrap()), ..End::default() }
    }

    fn error(kind: Kind) -> End {
        // As the client gets it.
        let problem = crate::http::problem::response(&kind.into(), HeaderValue::from_static("7f"));
        End { error: Some(kind), status: Some(problem.status()), ..End::default() }
    }

    #[test]
    fn each_kind_of_error_is_decided_about() {
        let signals = [
            (Kind::BadRequest, Some(Malformed)),
            (Kind::TargetTooLong, Some(Malformed)),
            (Kind::HeadTooLarge, Some(Malformed)),
            (Kind::HeadTimeout, Some(SlowRequest)),
            (Kind::Denied, None),
            (Kind::Unauthenticated, Some(AuthFailed)),
            (Kind::Forbidden, Some(Forbidden)),
            (Kind::RateLimited, Some(RateLimited)),
            (Kind::NoRoute, Some(NotFound)),
            (Kind::MethodNotAllowed, None),
            (Kind::NotImplemented, None),
            (Kind::RequestTimeout, Some(SlowRequest)),
            (Kind::RequestBroken, None),
            (Kind::BodyTooLarge, None),
            (Kind::UpstreamConnect, None),
            (Kind::UpstreamTls, None),
            (Kind::UpstreamTimeout, None),
            (Kind::UpstreamReset, None),
            (Kind::UpstreamProtocol, None),
            (Kind::BreakerOpen, None),
            (Kind::ConcurrencyLimit, None),
            (Kind::Shed, None),
            (Kind::UpstreamUnavailable, None),
            (Kind::AuthUnavailable, None),
            (Kind::LimitUnavailable, None),
            (Kind::Overloaded, None),
        ];
        assert_eq!(signals.map(|(kind, _)| kind), Kind::ALL);
        for (kind, signal) in signals {
            assert_eq!(all().signal(&noted("/a", false), &error(kind)), signal, "{kind:?}");
        }
    }

    #[test]
    fn what_is_excused_says_nothing_at_all() {
        for kind in [Kind::Unauthenticated, Kind::RateLimited, Kind::RequestTimeout] {
            let noted = noted("/.env", true);
            noted.excuse(true);
            assert_eq!(all().signal(&noted, &error(kind)), None, "{kind:?}");
        }
    }

    #[test]
    fn statuses_of_services_say_what_is_not_there_and_nothing_else() {
        for number in 100..600 {
            let signal = (number == 404).then_some(NotFound);
            assert_eq!(all().signal(&noted("/a", false), &status(number)), signal, "{number}");
            let signal = matches!(number, 404 | 410).then_some(Scanner);
            assert_eq!(all().signal(&noted("/.env", false), &status(number)), signal, "{number}");
            let refused = matches!(number, 400..500) && !matches!(number, 401 | 429);
            let signal = refused.then_some(WebsocketAbuse);
            assert_eq!(all().signal(&noted("/a", true), &status(number)), signal, "{number}");
        }
        let fallback = End { error: Some(Kind::BreakerOpen), ..status(404) };
        assert_eq!(all().signal(&noted("/.env", true), &fallback), None);
    }

    #[test]
    fn a_path_is_looked_up_as_the_router_reads_it() {
        for target in ["/%2eenv", "/.env?x=1", "/.ENV", "/wp%2Dlogin.php"] {
            let noted = noted(target, false);
            assert_eq!(all().signal(&noted, &error(Kind::NoRoute)), Some(Scanner), "{target}");
        }
        assert_eq!(all().signal(&noted("/a/.env", false), &status(404)), Some(NotFound));
    }

    #[test]
    fn the_first_that_counts_is_the_one() {
        let ended = |watch: &Watch| watch.signal(&noted("/.env", true), &status(404));
        assert_eq!(ended(&all()), Some(Scanner));
        assert_eq!(ended(&watch(&[WebsocketAbuse, NotFound])), Some(WebsocketAbuse));
        assert_eq!(ended(&watch(&[NotFound])), Some(NotFound));
        assert_eq!(ended(&watch(&[SlowRequest])), None);
        let upgrade = noted("/", true);
        assert_eq!(all().signal(&upgrade, &error(Kind::Forbidden)), Some(Forbidden));
        assert_eq!(all().signal(&upgrade, &error(Kind::MethodNotAllowed)), Some(WebsocketAbuse));
        let slow = End { is_read_slowly: true, ..status(200) };
        assert_eq!(all().signal(&noted("/", false), &slow), Some(SlowRequest));
    }

    #[test]
    fn what_weighs_nothing_does_not_count() {
        let mut weights = [1000; Signal::ALL.len()];
        weights[NotFound as usize] = 0;
        let watch = Watch::new(&feedback(&Signal::ALL, weights));
        assert_eq!(watch.signal(&noted("/a", false), &status(404)), None);
        assert!(watch.counts(Scanner) && !watch.counts(NotFound));
        let watch = Watch::new(&Feedback { rules: Vec::new(), ..feedback(&[], weights) });
        assert!(watch.counts(Scanner) && !watch.counts(NotFound));
    }

    #[test]
    fn pressure_is_asked_for_and_is_what_a_service_cannot_do() {
        let mut feedback = feedback(&Signal::ALL, [1000; Signal::ALL.len()]);
        assert!(!Watch::new(&feedback).is_pressed(true, Some(Kind::Shed)));
        feedback.rules[0].under_pressure = true;
        let watch = Watch::new(&feedback);
        let pressed = Kind::ALL.into_iter().filter(|kind| watch.is_pressed(false, Some(*kind)));
        let all = [
            Kind::UpstreamTimeout,
            Kind::BreakerOpen,
            Kind::ConcurrencyLimit,
            Kind::Shed,
            Kind::Overloaded,
        ];
        assert_eq!(pressed.collect::<Vec<_>>(), all);
        assert!(watch.is_pressed(true, None) && !watch.is_pressed(false, None));
    }

    #[tokio::test(start_paused = true)]
    async fn pressure_is_told_once_a_second() {
        let (reporter, mut inbox) = Reporter::new();
        let (desk, counters, told) = (Desk::new(reporter), Signals::default(), Cell::new(None));
        let mut seen = 0;
        for _ in 0..25 {
            desk.pressure(("api", &told), Instant::now(), &counters);
            tokio::time::advance(Duration::from_millis(100)).await;
            while inbox.try_recv().is_ok() {
                seen += 1;
            }
        }
        assert_eq!(seen, 3);
        desk.close();
        tokio::time::advance(Duration::from_secs(2)).await;
        desk.pressure(("api", &told), Instant::now(), &counters);
        assert!(inbox.try_recv().is_err());
    }

    #[test]
    fn what_nobody_reads_is_lost_and_counted() {
        let (reporter, mut inbox) = Reporter::new();
        let (desk, counters) = (Desk::new(reporter), Signals::default());
        let noted = noted("/", false);
        desk.good(source(), &noted, &counters);
        let max = crate::feedback::REPORTS_MAX;
        for _ in 0..max + 3 {
            desk.odd(NotFound, source(), (Some(&noted), Story::default()), &counters);
        }
        assert_eq!(counters.reports_lost.value(), 3);
        desk.flush(&counters);
        assert_eq!(counters.reports_lost.value(), 3, "what went well waits");
        let mut odd = 0;
        while let Ok(Report::Odd(evidence)) = inbox.try_recv() {
            odd += 1;
            assert_eq!(evidence.request_id, Some(HeaderValue::from_static("7f")));
        }
        assert_eq!(odd, max);
        desk.flush(&counters);
        let Ok(Report::Good(good, _)) = inbox.try_recv() else { panic!("nothing went well") };
        assert_eq!(*good, [Good { source: source(), consumer: None, requests: 1 }]);
    }

    #[test]
    fn a_caller_is_its_consumer_or_else_its_user() {
        let hash = |authenticator: &str, consumer: Option<&str>, user: Option<&str>| {
            let noted = noted("/", false);
            noted.caller(&Identity {
                authenticator: authenticator.into(),
                consumer: consumer.map(Box::from),
                user: user.map(Box::from),
                ..Identity::default()
            });
            noted.consumer.get()
        };
        assert_eq!(hash("a", None, None), None);
        assert_eq!(hash("a", Some("c"), Some("u")), hash("b", Some("c"), None));
        assert_ne!(hash("a", None, Some("u")), hash("b", None, Some("u")));
        assert_ne!(hash("a", Some("c"), None), hash("a", Some("d"), None));
    }

    proptest! {
        #[test]
        fn nobody_answers_for_what_others_do(
            kind in proptest::sample::select(Kind::ALL.to_vec()),
            number in 100u16..600,
            target in prop_oneof!["/[a-z.]{0,6}", Just("/.env".to_owned())],
            (is_upgrade, is_read_slowly) in any::<(bool, bool)>(),
            mask in any::<u16>(),
        ) {
            let signals = Signal::ALL.into_iter().filter(|signal| mask & bit(*signal) != 0);
            let watch = watch(&signals.collect::<Vec<_>>());
            let end = End { error: Some(kind), is_read_slowly, ..status(number) };
            let signal = watch.signal(&noted(&target, is_upgrade), &end);
            if kind.blame() != Blame::Client || kind == Kind::Denied {
                prop_assert_eq!(signal, None);
            }
            prop_assert!(signal.is_none_or(|signal| mask & bit(signal) != 0));
        }
    }
}
