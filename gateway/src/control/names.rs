//! The names of endpoints: looks them up when they are due, beside the loop of `control`, and hands what was found to
//! those who protect addresses and send requests, in this order. What a configuration has in common with the one before
//! stays known; what was found last outlives the process.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, spawn, spawn_local};
use tokio::time::{Instant, timeout_at};

use super::sources::Event;
use super::{Control, background};
use crate::admin::upstreams::NameView;
use crate::base::random::random;
use crate::base::time::{Now, UtcMillis, instant, utc};
use crate::config::{Config, Name, Target};
use crate::discovery::dns::Client;
use crate::discovery::state::{Kept, Moment, State};
use crate::discovery::{Answer, Found, Outcome};
use crate::observe::prometheus::Page;
use crate::rules::protected::own_addresses;
use crate::store;
use crate::upstream::directory::Directory;

/// Names that are looked up at the same time.
const LOOKUPS_MAX: usize = 32;
/// A start or a reload waits no longer for names, whatever `discovery.timeout` is.
const FIRST_MAX: Duration = Duration::from_secs(10);

/// How old may be what was found before a start: addresses that are nobody's any more are given to others.
const KEPT_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often it is written that nothing has changed.
const KEEP_EVERY: Duration = Duration::from_secs(600);

/// A lookup at its end.
pub(super) type Lookup = (Name, Answer);

/// The names of the configuration in force.
pub(super) struct Names {
    client: Option<Client>,
    known: BTreeMap<Name, Known>,
    /// Lookups by what came of them, see [`Outcome::ALL`].
    counts: [u64; Outcome::ALL.len()],
    /// For the next start: whether there is something to write, when that was written, and whether it still is.
    unkept: bool,
    kept: Option<std::time::Instant>,
    keeping: Option<oneshot::Receiver<()>>,
    events: mpsc::Sender<Event>,
}

struct Known {
    state: State,
    /// Services that have it among their endpoints.
    upstreams: Vec<String>,
    /// Being looked up.
    asked: bool,
    /// Addresses that are not used, for they are the gateway's own or no single host's.
    refused: Vec<SocketAddr>,
}

/// Looks up the names of a configuration that nothing is known about, as long as a start may wait.
pub(super) async fn look_up_new(config: &Config, is_known: impl Fn(&Name) -> bool) -> Vec<Lookup> {
    let mut names: Vec<Name> = of(config).into_keys().filter(|name| !is_known(name)).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let client = Client::new(&config.discovery);
    // A service takes two questions, one after the other.
    let wait = config.discovery.timeout.saturating_mul(2).min(FIRST_MAX);
    let until = Instant::from_std(instant()) + wait;
    let (mut asking, mut found) = (JoinSet::new(), Vec::new());
    loop {
        while let Some(name) = names.pop_if(|_| asking.len() < LOOKUPS_MAX) {
            let client = client.clone();
            asking.spawn(async move {
                let answer = client.lookup(&name).await;
                (name, answer)
            });
        }
        match timeout_at(until, asking.join_next()).await {
            Ok(Some(ended)) => found.extend(ended.ok()),
            Ok(None) | Err(_) => return found,
        }
    }
}

/// The names of a configuration, with the services that have them.
fn of(config: &Config) -> BTreeMap<Name, Vec<String>> {
    let mut names: BTreeMap<Name, Vec<String>> = BTreeMap::new();
    for upstream in &config.upstreams {
        for endpoint in &upstream.endpoints {
            if let Target::Name(name) = &endpoint.target {
                names.entry(name.clone()).or_default().push(upstream.name.clone());
            }
        }
    }
    names
}

impl Names {
    /// None yet; what is found is sent as events.
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        let (client, kept, keeping) = Default::default();
        let (known, counts) = Default::default();
        Self { client, known, counts, unkept: false, kept, keeping, events }
    }

    /// What was found before the start of the names of a configuration: it stands where nothing is found now.
    pub(super) fn restore(&mut self, config: &Config) {
        let read = store::names::read::<BTreeMap<String, Kept>>(&config.state.dir);
        let mut kept = read.unwrap_or_else(|error| {
            tracing::warn!(%error, "what names stood for before the start is not known");
            None
        });
        let (now, utc) = (instant(), utc());
        for name in of(config).into_keys() {
            let Some(kept) = kept.as_mut().and_then(|kept| kept.remove(&name.to_string())) else {
                continue;
            };
            let age = Duration::from_millis(utc.0.saturating_sub(kept.resolved().0));
            if age < KEPT_MAX {
                self.known.insert(name, Known::new(State::restored(kept, now)));
            }
        }
    }

    /// Says which names stand for what was found before the start.
    pub(super) fn tell_restored(&self) {
        for (name, known) in self.known.iter().filter(|(_, known)| known.state.is_restored()) {
            let found_at = known.state.resolved().map(UtcMillis::display);
            let addresses = known.state.found().len();
            tracing::warn!(%name, addresses, found_at, "not found: what it stood for last is used");
        }
    }

    /// Writes down what was found, for the next start: beside the loop, and one after the other.
    fn keep(&mut self, config: &Config) {
        let is_writing = |writing: &mut oneshot::Receiver<()>| {
            matches!(writing.try_recv(), Err(TryRecvError::Empty))
        };
        if !self.unkept || self.keeping.as_mut().is_some_and(is_writing) {
            return;
        }
        (self.unkept, self.kept) = (false, Some(instant()));
        let kept = self.known.iter();
        let kept = kept.filter_map(|(name, known)| Some((name.to_string(), known.state.keep()?)));
        let kept: BTreeMap<String, Kept> = kept.collect();
        let folder = config.state.dir.clone();
        let writing = background::begin("names", move || keep_in(&folder, &kept));
        self.keeping = writing.ok();
    }

    /// The names of which addresses are known.
    pub(super) fn resolved(&self) -> Vec<Name> {
        let resolved = self.known.iter().filter(|(_, known)| known.state.resolved().is_some());
        resolved.map(|(name, _)| name.clone()).collect()
    }

    /// Takes over what was found for a configuration that is about to be put in force. Until it is, nothing that was
    /// known is lost.
    pub(super) fn learn(&mut self, config: &Config, found: Vec<Lookup>) {
        for (name, upstreams) in of(config) {
            let new = || Known::new(State::new(instant()));
            self.known.entry(name).or_insert_with(new).upstreams = upstreams;
        }
        for (name, answer) in found {
            self.take(&name, answer, config);
        }
    }

    /// A configuration is in force: forgets the names that it does not have, and gives `directory` what is found.
    pub(super) fn configure(&mut self, config: &Config, directory: &mut Directory) {
        self.learn(config, Vec::new());
        let names = of(config);
        self.known.retain(|name, _| names.contains_key(name));
        let is_changed =
            self.client.as_ref().is_some_and(|client| client.is_stale(&config.discovery));
        if is_changed {
            self.client = None;
            self.known.values_mut().for_each(|known| known.state.hurry(instant()));
        }
        for (name, known) in &mut self.known {
            directory.set_found(name, known.usable(name, config));
        }
    }

    /// Begins the lookups that are due.
    pub(super) fn tick(&mut self, config: &Config, now: std::time::Instant) {
        self.keep(config);
        let asked = self.known.values().filter(|known| known.asked).count();
        let due = |(_, known): &(&Name, &mut Known)| !known.asked && known.state.due() <= now;
        let mut due: Vec<_> = self.known.iter_mut().filter(due).collect();
        if due.is_empty() {
            return;
        }
        if self.client.as_ref().is_some_and(|client| client.is_stale(&config.discovery)) {
            self.client = None;
        }
        let client = self.client.get_or_insert_with(|| Client::new(&config.discovery));
        // Whoever waits longest.
        due.sort_by_key(|(_, known)| known.state.due());
        for (name, known) in due.into_iter().take(LOOKUPS_MAX.saturating_sub(asked)) {
            known.asked = true;
            let (name, client, events) = (name.clone(), client.clone(), self.events.clone());
            spawn_local(async move {
                let asked = name.clone();
                let answer = spawn(async move { client.lookup(&asked).await }).await;
                let answer = answer.unwrap_or_else(|_| Answer::broken());
                drop(events.send(Event::Name(Box::new((name, answer)))).await);
            });
        }
    }

    /// Takes note of a lookup. Answers whether others are found than before.
    pub(super) fn take(&mut self, name: &Name, answer: Answer, config: &Config) -> bool {
        let Some(known) = self.known.get_mut(name) else { return false };
        known.asked = false;
        let now = Moment { instant: instant(), utc: utc(), random: random() };
        let news = known.state.take(answer, &config.discovery, now);
        if let Some(count) = self.counts.get_mut(news.outcome as usize) {
            *count += 1;
        }
        let is_old = |kept| now.instant.saturating_duration_since(kept) >= KEEP_EVERY;
        self.unkept |=
            news.outcome == Outcome::Found && (news.changed || self.kept.is_none_or(is_old));
        let count = known.state.found().len();
        match known.state.trouble() {
            Some(trouble) if news.told => {
                let why = &trouble.why;
                let message = match count {
                    0 => "nothing was found: no request can be sent there",
                    _ => "not all was found: what was found before stays",
                };
                tracing::warn!(%name, why, addresses = count, message);
            }
            None if news.told => tracing::info!(%name, addresses = count, "all was found again"),
            _ => {}
        }
        if news.changed {
            let left_out = known.state.left_out();
            tracing::info!(%name, addresses = count, left_out, "addresses changed");
        }
        news.changed
    }

    /// All addresses that were found, with why they are talked to.
    pub(super) fn peers(&self) -> impl Iterator<Item = (String, IpAddr)> {
        self.known.iter().flat_map(|(name, known)| {
            let why = format!("upstream {} ({name})", known.upstreams.join(" "));
            let found =
                known.state.found().iter().filter(|one| !known.refused.contains(&one.address));
            found.map(move |one| (why.clone(), one.address.ip()))
        })
    }

    /// The names of a service.
    pub(super) fn views(&self, upstream: &str) -> Vec<NameView> {
        let (now, utc) = (instant(), utc());
        let of = self
            .known
            .iter()
            .filter(|(_, known)| known.upstreams.iter().any(|one| one == upstream));
        of.map(|(name, known)| known.view(name, now, utc)).collect()
    }

    /// How lookups go, for Prometheus.
    pub(super) fn page(&self) -> String {
        let mut page = Page::default();
        if self.known.is_empty() {
            return page.text();
        }
        let help = "Lookups of names of endpoints, by result.";
        let mut lookups = page.counter("gateway_discovery_lookups_total", help);
        for (outcome, count) in Outcome::ALL.into_iter().zip(self.counts) {
            lookups.with(&[("result", outcome.name())], count);
        }
        let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for known in self.known.values() {
            for upstream in &known.upstreams {
                let (addresses, stale) = sums.entry(upstream).or_default();
                *addresses += known.state.found().len() as u64;
                *stale += u64::from(known.state.failures() > 0);
            }
        }
        let help = "Addresses that the names of an upstream stand for.";
        let mut addresses = page.gauge("gateway_discovery_addresses", help);
        for (upstream, (count, _)) in &sums {
            addresses.with(&[("upstream", upstream)], *count);
        }
        let help = "Names of an upstream whose last lookup found nothing: older addresses stay.";
        let mut stale = page.gauge("gateway_discovery_stale_names", help);
        for (upstream, (_, count)) in &sums {
            stale.with(&[("upstream", upstream)], *count);
        }
        page.text()
    }
}

impl Known {
    fn new(state: State) -> Self {
        Self { state, upstreams: Vec::new(), asked: false, refused: Vec::new() }
    }

    /// What requests may be sent to.
    fn usable(&mut self, name: &Name, config: &Config) -> Arc<[Found]> {
        let found = self.state.found().iter().copied();
        let (usable, refused): (Vec<Found>, Vec<Found>) =
            found.partition(|found| !is_no_service(config, found.address));
        let refused: Vec<SocketAddr> = refused.iter().map(|found| found.address).collect();
        if refused != self.refused && !refused.is_empty() {
            tracing::warn!(%name, ?refused, "not used: the gateway's own, or no single host's");
        }
        self.refused = refused;
        usable.into()
    }

    fn view(&self, name: &Name, now: std::time::Instant, utc: UtcMillis) -> NameView {
        let refused = match self.refused.as_slice() {
            [] => None,
            refused => {
                let all: Vec<String> = refused.iter().map(ToString::to_string).collect();
                let all = all.join(", ");
                Some(format!("{all} not used: the gateway's own, or no single host's"))
            }
        };
        let left_out = match self.state.left_out() {
            0 => None,
            count => Some(format!("{count} more addresses are left out: discovery.max_addresses")),
        };
        let trouble = self.state.trouble().map(|trouble| trouble.why.clone());
        let restored = "found before the start, and not since".to_owned();
        let restored = self.state.is_restored().then_some(restored);
        let notes: Vec<String> =
            [trouble, restored, refused, left_out].into_iter().flatten().collect();
        let addresses = self.state.found().iter().map(|found| found.address.to_string());
        NameView {
            name: name.to_string(),
            addresses: addresses.collect(),
            resolved_utc_ms: self.state.resolved(),
            next_utc_ms: utc.after(self.state.due().saturating_duration_since(now)),
            failures: self.state.failures(),
            note: (!notes.is_empty()).then(|| notes.join("; ")),
        }
    }
}

fn keep_in(folder: &Path, kept: &BTreeMap<String, Kept>) {
    if let Err(error) = store::names::write(folder, kept) {
        tracing::warn!(%error, "what names stand for is not kept for the next start");
    }
}

/// Whether requests there would come round to the gateway, or reach no single host.
fn is_no_service(config: &Config, address: SocketAddr) -> bool {
    let ip = address.ip();
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast || config.is_own(address) {
        return true;
    }
    let own = config.listen.iter().map(|listener| listener.address).chain(config.metrics.listen);
    let mut everywhere =
        own.filter(|own| own.port() == address.port() && own.ip().is_unspecified());
    everywhere.next().is_some() && own_addresses().iter().any(|(_, own)| *own == ip)
}

impl Control {
    /// Puts what a lookup has found in force: whoever is sent requests is protected before.
    pub(super) fn take_name(&mut self, (name, answer): Lookup) {
        if !self.names.take(&name, answer, &self.config) {
            return;
        }
        let now = Now::read();
        let Some(known) = self.names.known.get_mut(&name) else { return };
        let usable = known.usable(&name, &self.config);
        let upstreams = known.upstreams.clone();
        self.protect(now);
        self.directory.set_found(&name, usable);
        for upstream in self.config.upstreams.iter().filter(|one| upstreams.contains(&one.name)) {
            self.directory.group(upstream, now);
        }
        self.directory.keep(&self.config);
    }
}
