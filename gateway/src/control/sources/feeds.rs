//! One feed: when it is fetched, what came of it, and whether that is believed. Fetches run beside the loop of
//! `control`; what they bring is judged there.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};

use super::text::{self, Unread};
use crate::admin::api::{Answer, Done, Refusal};
use crate::base::time::UtcMillis;
use crate::config::Feed;
use crate::control::later::Later;
use crate::outbound::{Bounds, Client, Fetched, Validators, display};
use crate::rules::entries::Entries;
use crate::rules::feed::{HeldBack, Summary, check};
use crate::rules::list::List;

/// Time until a fetch that failed is tried again; doubled after each.
const RETRY_FIRST: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The addresses of a feed that are protected: those of its last fetches.
const PEERS_MAX: usize = 32;
/// Whoever waits for a fetch is told after so long that it goes on.
const WAIT_MAX: Duration = Duration::from_secs(40);

/// A version of a feed.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) entries: Arc<Entries>,
    summary: Summary,
    /// Lines that could not be read.
    pub(super) left_out: Option<Unread>,
    pub(super) validators: Validators,
}

/// What a fetch brought; `None` where nothing has changed.
pub(super) type Brought = Result<Option<Version>, String>;

/// A fetch at its end.
#[derive(Debug)]
pub(in crate::control) struct FeedEvent {
    pub(super) name: String,
    /// Which fetch.
    pub(super) serial: u64,
    /// Addresses that were talked to.
    pub(super) peers: Vec<IpAddr>,
    pub(super) brought: Brought,
}

/// A feed of the configuration.
pub(super) struct State {
    pub(super) feed: Feed,
    /// Its URL as it may be shown.
    pub(super) source: String,
    /// Of the version that was taken last, held back or not.
    validators: Validators,
    due: Instant,
    /// Fetches since one worked.
    pub(super) failures: u32,
    /// When the last one worked; 0 for never.
    pub(super) checked: UtcMillis,
    /// Why the last fetch brought nothing.
    error: Option<String>,
    /// Lines of the version in force that could not be read.
    left_out: Option<Unread>,
    held: Option<(Version, HeldBack)>,
    fetching: Option<(u64, JoinHandle<()>)>,
    peers: Vec<IpAddr>,
    /// Who waits for the fetch that runs, since when.
    served: Vec<(Instant, Later)>,
    /// Who waits for the one after it: the one that runs may bring what was there before they asked.
    waiting: Vec<(Instant, Later)>,
}

impl State {
    /// A feed that is to be fetched at once, of which there is the version of these `validators`.
    pub(super) fn new(feed: Feed, validators: Validators, now: Instant) -> Self {
        Self {
            source: display(&feed.url),
            feed,
            validators,
            due: now,
            failures: 0,
            checked: UtcMillis(0),
            error: None,
            left_out: None,
            held: None,
            fetching: None,
            peers: Vec::new(),
            served: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// What is to be known about it.
    pub(super) fn note(&self) -> Option<String> {
        let held = self.held.as_ref().map(|(_, why)| about_held(&self.feed.name, why));
        let failed = self.error.as_ref().map(|error| match self.failures {
            0 | 1 => error.clone(),
            failures => format!("{error} ({failures} failures in a row)"),
        });
        let notes: Vec<String> =
            held.into_iter().chain(failed).chain(self.about_left_out()).collect();
        (!notes.is_empty()).then(|| notes.join("; "))
    }

    fn about_left_out(&self) -> Option<String> {
        let unread = self.left_out.as_ref()?;
        let lines = text::lines(unread.total());
        Some(format!("{lines} left out that cannot be read: {unread}"))
    }

    /// What was done, for whoever asked for it.
    pub(super) fn done(&self, done: String) -> Done {
        Done { done: vec![done], notes: self.about_left_out().into_iter().collect() }
    }

    /// Addresses that it was fetched from.
    pub(super) fn peers(&self) -> &[IpAddr] {
        &self.peers
    }

    /// Since when it waits to be fetched, if it does.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let asked = self.waiting.first().map(|(asked, _)| *asked);
        let due = asked.map_or(self.due, |asked| asked.min(self.due));
        Some(due).filter(|due| self.fetching.is_none() && *due <= now)
    }

    pub(super) fn is_fetching(&self) -> bool {
        self.fetching.is_some()
    }

    /// Takes note of a fetch that was begun.
    pub(super) fn begin(&mut self, serial: u64, task: JoinHandle<()>) {
        self.fetching = Some((serial, task));
        self.served.append(&mut self.waiting);
    }

    /// Lets somebody wait for the next fetch, which begins as soon as it may.
    pub(super) fn fetch_for(&mut self, later: Later, now: Instant) {
        self.waiting.push((now, later));
    }

    /// Tells those who have waited too long.
    pub(super) fn release(&mut self, now: Instant) {
        let is_old = |waiting: &mut (Instant, Later)| now.duration_since(waiting.0) >= WAIT_MAX;
        let name = &self.feed.name;
        let waiting = self.waiting.extract_if(.., is_old);
        for (_, later) in waiting.chain(self.served.extract_if(.., is_old)) {
            let done = format!("feed {name}: is still being fetched, see `gateway lists`");
            later.answer(Ok(Answer::Done(Done { done: vec![done], notes: Vec::new() })));
        }
    }

    /// Ends the fetch of this serial. Whether that is the one that is awaited.
    pub(super) fn end(&mut self, serial: u64, peers: &[IpAddr]) -> bool {
        if self.fetching.as_ref().is_none_or(|(awaited, _)| *awaited != serial) {
            return false;
        }
        self.fetching = None;
        self.peers.retain(|peer| !peers.contains(peer));
        self.peers.splice(0..0, peers.iter().copied());
        self.peers.truncate(PEERS_MAX);
        true
    }

    /// Whether a version may take the place of the one in force. One that may not is kept, for somebody to accept it.
    pub(super) fn judge(
        &mut self,
        version: Version,
        held: Option<&List>,
    ) -> Result<Version, String> {
        // Another feed at another URL may be as large as it likes.
        let old = held.filter(|list| list.source == self.source);
        let old =
            old.map(|list| Summary { entries: list.entries.len() as u64, ..Summary::default() });
        match check(old, version.summary, &self.feed.bounds) {
            Ok(()) => Ok(version),
            Err(why) => {
                (self.failures, self.error) = (0, None);
                self.validators = version.validators.clone();
                self.held = Some((version, why));
                Err(self.note().unwrap_or_default())
            }
        }
    }

    /// Whether a version is held back.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// The version that is held back.
    pub(super) fn take_held(&mut self) -> Option<(Version, HeldBack)> {
        self.held.take()
    }

    /// Holds a version back again.
    pub(super) fn hold(&mut self, held: (Version, HeldBack)) {
        self.held = Some(held);
    }

    /// A version is in force.
    pub(super) fn took(&mut self, Version { validators, left_out, .. }: Version) {
        if let Some(unread) = left_out.as_ref().filter(|_| left_out != self.left_out) {
            let (list, lines) = (&self.feed.name, unread.in_full().collect::<Vec<_>>().join("; "));
            tracing::warn!(list, lines, "lines of a feed left out that cannot be read");
        }
        (self.validators, self.left_out, self.held) = (validators, left_out, None);
    }

    /// A fetch worked, whatever it brought: the next is in due time.
    pub(super) fn succeeded(&mut self, now: Instant, utc: UtcMillis) {
        self.failures = 0;
        self.checked = utc;
        self.error = None;
        self.due = now + spread(self.feed.every);
    }

    /// A fetch failed, or what it brought cannot be put in force.
    pub(super) fn failed(&mut self, error: String, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.error = Some(error);
        self.due = now + spread(retry_after(self.failures, self.feed.every));
    }

    /// Tells those who wait for the fetch that has ended.
    pub(super) fn answer(&mut self, answer: &Result<Done, Refusal>) {
        for (_, later) in self.served.drain(..) {
            later.answer(answer.clone().map(Answer::Done));
        }
    }

    /// Begins a fetch.
    pub(super) fn fetch(&self, user: &str) -> impl Future<Output = (Vec<IpAddr>, Brought)> + use<> {
        let (feed, validators, user) =
            (self.feed.clone(), self.validators.clone(), user.to_owned());
        async move {
            let mut peers = Vec::new();
            let brought = fetch(feed, validators, &user, &mut peers).await;
            (peers, brought)
        }
    }
}

/// What is to be known about a version that is held back.
pub(super) fn about_held(name: &str, why: &HeldBack) -> String {
    format!("held back: it {why}; `gateway lists accept {name}` puts it in force all the same")
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.fetching {
            task.abort();
        }
        self.served.append(&mut self.waiting);
        self.answer(&Err(Refusal::failed(
            "the configuration was read again meanwhile: see `gateway lists`, or ask once more",
        )));
    }
}

async fn fetch(feed: Feed, validators: Validators, user: &str, peers: &mut Vec<IpAddr>) -> Brought {
    let Feed { url, ca, timeout, max_bytes, .. } = feed;
    // Both files and megabytes are read where nobody waits.
    let client = spawn_blocking(move || Client::new(ca.as_deref())).await;
    let client = client.map_err(|error| error.to_string())?;
    let client = client.map_err(|error| format!("{error} (the gateway runs as {user})"))?;
    let bounds = Bounds {
        connect_timeout: CONNECT_TIMEOUT.min(timeout),
        total_timeout: timeout,
        body_max_bytes: max_bytes,
    };
    let fetched = client.fetch(&url, &validators, bounds, peers).await;
    let (bytes, validators) = match fetched.map_err(|error| error.to_string())? {
        Fetched::NotModified => return Ok(None),
        Fetched::Body { bytes, validators } => (bytes, validators),
    };
    let shown = display(&url);
    let read = spawn_blocking(move || {
        let (entries, left_out) = text::feed(bytes.as_slice())?;
        drop(bytes);
        let summary = Summary::of_sorted(entries.iter().map(|entry| entry.prefix));
        Ok::<_, String>(Version { entries: Arc::new(entries), summary, left_out, validators })
    });
    let version = read.await.map_err(|error| error.to_string())?;
    version.map(Some).map_err(|error| format!("{shown} {error}"))
}

/// Time until the next attempt after so many failures.
fn retry_after(failures: u32, every: Duration) -> Duration {
    let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    RETRY_FIRST.saturating_mul(doubled).min(every)
}

/// A tenth more or less, so that not all gateways come at once.
fn spread(time: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) % 1001;
    let permille = 900 + u32::try_from(random % 201).unwrap_or(0);
    time.saturating_mul(permille) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FeedBounds, Share};
    use gateway_common::rule::Action;

    fn state() -> State {
        let feed = Feed {
            name: "drop".to_owned(),
            url: "http://192.0.2.1/drop.txt?key=secret".parse().unwrap(),
            every: Duration::from_secs(3600),
            action: Action::Deny,
            dry_run: false,
            ca: None,
            timeout: Duration::from_secs(60),
            max_bytes: 1 << 20,
            bounds: FeedBounds {
                min_entries: Share::per_million(500_000),
                max_entries: Share::per_million(10_000_000),
                max_address_share: Share::per_million(50_000),
            },
        };
        State::new(feed, Validators::default(), crate::base::time::instant())
    }

    fn version(text: &str) -> Version {
        let (entries, left_out) = text::feed(text.as_bytes()).unwrap();
        let summary = Summary::of_sorted(entries.iter().map(|entry| entry.prefix));
        Version { entries: Arc::new(entries), summary, left_out, validators: Validators::default() }
    }

    #[test]
    fn failures_are_tried_again_later_and_later_but_not_later_than_every() {
        let hour = Duration::from_secs(3600);
        let seconds = |failures| retry_after(failures, hour).as_secs();
        assert_eq!(
            [1, 2, 3, 9, 10, 40, u32::MAX].map(seconds),
            [10, 20, 40, 2560, 3600, 3600, 3600]
        );
        for _ in 0..100 {
            let spread = spread(hour).as_secs();
            assert!((3240..=3960).contains(&spread), "{spread}");
        }
        let mut state = state();
        let now = state.due;
        assert!(state.due(now).is_some());
        state.failed("it broke".to_owned(), now);
        assert!(
            state.due(now + Duration::from_secs(8)).is_none()
                && state.due(now + Duration::from_secs(11)).is_some()
        );
        assert_eq!(state.note().unwrap(), "it broke");
        state.failed("it broke".to_owned(), now);
        assert_eq!(state.note().unwrap(), "it broke (2 failures in a row)");
        state.succeeded(now, UtcMillis(1));
        assert_eq!(state.note(), None);
        assert!(
            state.due(now + Duration::from_secs(3200)).is_none()
                && state.due(now + Duration::from_secs(4000)).is_some()
        );
    }

    #[test]
    fn a_version_beyond_its_bounds_is_held_back_until_somebody_accepts_it() {
        let mut state = state();
        assert!(state.judge(version("192.0.2.1\n"), None).is_ok());
        state.failed("it broke".to_owned(), state.due);
        let error = state.judge(version("0.0.0.0/2\n"), None).unwrap_err();
        assert!(error.starts_with("held back: it covers 25 % of IPv4"), "{error}");
        assert!(error.contains("`gateway lists accept drop`"), "{error}");
        assert!(!error.contains("it broke"), "that was before: {error}");
        let (held, _) = state.take_held().unwrap();
        assert_eq!(held.entries.len(), 1);
        assert!(state.take_held().is_none());
    }

    #[tokio::test]
    async fn addresses_are_kept_the_last_first_and_only_of_the_fetch_that_is_awaited() {
        let mut state = state();
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        assert!(!state.end(1, &[address(9)]), "nothing is awaited");
        for serial in 0..40u8 {
            state.begin(serial.into(), tokio::spawn(async {}));
            assert!(!state.end(99, &[address(9)]));
            assert!(state.end(serial.into(), &[address(serial), address(200)]));
        }
        assert_eq!(state.peers().len(), PEERS_MAX);
        assert_eq!(state.peers()[..3], [address(39), address(200), address(38)]);
    }
}
