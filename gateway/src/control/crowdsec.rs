//! The crowdsec of the configuration: asked beside the loop, from time to time, and what it decided is carried out in
//! turns, so that nobody waits for a long answer. Whatever becomes of it, what was heard last holds until it ends.
//!
//! ```text
//! all that holds ──answer──▶ what has changed ──answer──▶ …
//!    ▲  ▲──failure, later and later──┘                │
//!    └───────────────────failure──────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use std::vec::IntoIter;

use http::{HeaderName, HeaderValue, Uri};
use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking, spawn_local};
use tokio::time::sleep;

use super::feedback::Feedback;
use super::policy::Policy;
use super::policy::bans::Outcome;
use crate::admin::crowdsec::CrowdsecView;
use crate::base::random::random;
use crate::base::secret::Secret;
use crate::base::time::{BootTime, Now, UtcMillis};
use crate::config::{Config, FeedbackCrowdsec, Measure, SecretSource};
use crate::feedback::ban::{Author, Ban};
pub(super) use crate::feedback::crowdsec::NAME;
use crate::feedback::crowdsec::{ANSWER_BYTES_MAX, Heard, Verdict, read};
use crate::feedback::decision::{Decision, Held, Place, Story, Subject};
use crate::observe::prometheus::Page;
use crate::outbound::{Bounds, Client, FetchError, Reason, display};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For all of an answer. Those with everything are long.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Who does not answer is asked again after twice as long each time, but not later than this, unless `every` is.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Decisions that are carried out at once; the rest follows, after whatever else waits. So many connections are closed
/// one by one.
const TURN: usize = 64;
/// Times of the same decision differ by how long answers take.
const SLACK: Duration = Duration::from_secs(5);

/// What becomes of decisions: those of [`Outcome`], and what is found out before.
const RESULTS: [&str; 9] = [
    "enforced",
    "standing",
    "withdrawn",
    "dry_run",
    "guarded",
    "failed",
    "lifted",
    "skipped",
    "wide",
];

/// Where the key is.
pub(super) fn places(config: &Config) -> &[SecretSource] {
    let crowdsec = config.feedback.as_ref().and_then(|feedback| feedback.crowdsec.as_ref());
    crowdsec.map(|crowdsec| std::slice::from_ref(&crowdsec.key)).unwrap_or_default()
}

/// What cannot be sent is a mistake in the configuration, and is found now.
pub(super) fn checked(key: Option<Secret>) -> Result<Option<Secret>, String> {
    if key.as_ref().is_some_and(|key| HeaderValue::from_bytes(key.bytes()).is_err()) {
        return Err("the key has characters that no header field has: write it in one line, as \
                    `cscli bouncers add` shows it"
            .to_owned());
    }
    Ok(key)
}

/// What became of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Became {
    /// It was understood.
    Understood,
    /// There was no connection.
    Unreachable,
    /// It took too long, or broke off.
    Broken,
    /// The key is not known there.
    Forbidden,
    /// Another status.
    Status,
    /// It was too long.
    TooLarge,
    /// It was no stream of decisions.
    Malformed,
}

impl Became {
    const ALL: [(Self, &str); 7] = [
        (Self::Understood, "understood"),
        (Self::Unreachable, "unreachable"),
        (Self::Broken, "broken"),
        (Self::Forbidden, "forbidden"),
        (Self::Status, "status"),
        (Self::TooLarge, "too_large"),
        (Self::Malformed, "malformed"),
    ];

    fn of(reason: &Reason) -> Self {
        match reason {
            Reason::Url
            | Reason::NoAuthorities
            | Reason::Lookup(_)
            | Reason::Connect(..)
            | Reason::Tls(_) => Self::Unreachable,
            Reason::Timeout(..) | Reason::Broken(_) => Self::Broken,
            Reason::Status(status) if matches!(status.as_u16(), 401 | 403) => Self::Forbidden,
            Reason::TooLarge(_) => Self::TooLarge,
            Reason::Html(_) | Reason::Encoding(_) | Reason::Empty => Self::Malformed,
            Reason::Status(_)
            | Reason::Location(_)
            | Reason::Redirects
            | Reason::SecretRedirect
            | Reason::Downgrade => Self::Status,
        }
    }
}

/// What was asked for, and what came of it.
struct Answer {
    /// All that holds, or what has changed.
    whole: bool,
    /// Addresses that were talked to.
    peers: Vec<IpAddr>,
    heard: Result<Heard, (Became, String)>,
    at: Now,
}

/// The crowdsec.
pub(super) struct Crowdsec {
    config: FeedbackCrowdsec,
    key: Secret,
    /// Asks for as long as it is there.
    asking: Option<Asking>,
    /// An answer that was not looked at yet.
    arrived: Option<Answer>,
    work: Work,
    peers: Vec<IpAddr>,
    failure: Option<String>,
    figures: Figures,
}

struct Asking {
    answers: mpsc::Receiver<Answer>,
    task: AbortHandle,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is still to be carried out of an answer.
#[derive(Default)]
struct Work {
    whole: bool,
    at: Option<Now>,
    deleted: IntoIter<IpNet>,
    new: IntoIter<Verdict>,
}

#[derive(Default)]
struct Figures {
    answers: [u64; Became::ALL.len()],
    /// Failures since there was an answer.
    failures: u64,
    answered: Option<UtcMillis>,
    /// Decisions by what became of them.
    decisions: BTreeMap<&'static str, u64>,
}

impl Figures {
    fn decided(&mut self, result: &'static str, count: u64) {
        *self.decisions.entry(result).or_default() += count;
    }
}

impl Crowdsec {
    /// The one of a configuration, which goes on where it is the one `before`.
    pub(super) fn new((config, key): (&FeedbackCrowdsec, &Secret), before: Option<Self>) -> Self {
        let figures = match before {
            Some(before) if before.config == *config && before.key == *key => return before,
            Some(before) => before.figures,
            None => Figures::default(),
        };
        let mut crowdsec = Self {
            config: config.clone(),
            key: key.clone(),
            asking: None,
            arrived: None,
            work: Work::default(),
            peers: Vec::new(),
            failure: None,
            figures,
        };
        crowdsec.resume();
        crowdsec
    }

    /// Asks no more.
    pub(super) fn pause(&mut self) {
        self.asking = None;
    }

    /// Asks, for all that holds at first.
    pub(super) fn resume(&mut self) {
        let (sender, answers) = mpsc::channel(1);
        let run = run(self.config.clone(), self.key.clone(), sender);
        self.asking = Some(Asking { answers, task: spawn_local(run).abort_handle() });
    }

    /// Addresses that it has.
    pub(super) fn peers(&self) -> &[IpAddr] {
        &self.peers
    }

    /// Waits until there is something to do. Whoever stops waiting loses nothing.
    pub(super) async fn arrived(&mut self) {
        if !self.work.is_done() || self.arrived.is_some() {
            return;
        }
        match &mut self.asking {
            Some(asking) => self.arrived = asking.answers.recv().await,
            None => std::future::pending().await,
        }
        if self.arrived.is_none() {
            // Its task has panicked, and said so.
            self.failure = Some("it is not asked any more, see the log: reload".to_owned());
            self.asking = None;
        }
    }

    /// Whether it was asked at another address than before, which is to be protected.
    pub(super) fn has_moved(&mut self) -> bool {
        let peers = self.arrived.as_mut().map(|answer| std::mem::take(&mut answer.peers));
        match peers.filter(|peers| !peers.is_empty() && *peers != self.peers) {
            Some(peers) => {
                self.peers = peers;
                true
            }
            None => false,
        }
    }

    /// Carries out what was heard, as much as is done in one turn.
    pub(super) fn take(
        &mut self,
        (policy, feedback): (&mut Policy, &mut Feedback),
        (dry_run, now): (bool, Now),
    ) {
        if let Some(answer) = self.arrived.take() {
            self.hear(answer, policy, now);
        }
        let deleted: Vec<IpNet> = self.work.deleted.by_ref().take(TURN).collect();
        match policy.withdraw(&deleted, (&author(), now)) {
            Ok(count) => self.figures.decided("withdrawn", count as u64),
            Err(refusal) => {
                tracing::error!(error = refusal.error, "what crowdsec takes back stays in force");
            }
        }
        for _ in deleted.len()..TURN {
            let Some(verdict) = self.work.new.next() else { return };
            let result = self.carry_out(&verdict, (policy, feedback), (dry_run, now));
            self.figures.decided(result, 1);
        }
    }

    /// Takes note of an answer, and of what is to be done about it.
    fn hear(&mut self, answer: Answer, policy: &Policy, now: Now) {
        let became = match &answer.heard {
            Ok(_) => Became::Understood,
            Err((became, _)) => *became,
        };
        if let Some(count) = self.figures.answers.get_mut(became as usize) {
            *count += 1;
        }
        let heard = match answer.heard {
            Ok(heard) => heard,
            Err((_, failure)) => {
                self.figures.failures += 1;
                if self.failure.as_ref() != Some(&failure) {
                    tracing::warn!(failure, "crowdsec: its bans stay until they end");
                }
                self.failure = Some(failure);
                return;
            }
        };
        if answer.whole {
            let decisions = heard.new.len();
            tracing::info!(url = display(&self.config.url), decisions, "crowdsec answers");
        }
        (self.failure, self.figures.failures) = (None, 0);
        self.figures.answered = Some(answer.at.utc);
        self.figures.decided("skipped", heard.skipped);
        self.figures.decided("wide", heard.wide);
        let deleted = match answer.whole {
            true => stale(policy, &heard.new, (answer.at, now)),
            false => heard.deleted,
        };
        self.work = Work {
            whole: answer.whole,
            at: Some(answer.at),
            deleted: deleted.into_iter(),
            new: heard.new.into_iter(),
        };
    }

    /// Answers what became of it.
    fn carry_out(
        &self,
        verdict: &Verdict,
        (policy, feedback): (&mut Policy, &mut Feedback),
        (dry_run, now): (bool, Now),
    ) -> &'static str {
        let subject = Subject { prefix: verdict.prefix, place: Place::Kernel };
        let passed = self.work.at.map_or(0, |at| now.boot.0.saturating_sub(at.boot.0));
        let lasts = verdict.lasts.saturating_sub(Duration::from_nanos(passed));
        if lasts.is_zero() {
            return "skipped";
        }
        let known = policy.bans().find(&subject);
        if self.work.whole && known.is_some_and(|ban| ban.lifts_that_teach(now) > 0) {
            return "lifted";
        }
        let by = known.and_then(|ban| ban.by(&author(), now.boot));
        if by.is_some_and(|ban| after(ban.end.until().boot, SLACK) >= after(now.boot, lasts)) {
            return "standing";
        }
        let decision = Decision {
            subject,
            rule: verdict.scenario.as_str().into(),
            measure: Measure::Ban,
            lasts,
            times: 1,
            at: now,
            story: Story::default(),
            held: dry_run.then_some(Held::DryRun),
        };
        let outcome: Outcome = feedback.decide(policy, (&decision, &author()), now);
        outcome.name()
    }

    /// As `gateway status` shows it.
    pub(super) fn view(&self, policy: &Policy, now: Now) -> CrowdsecView {
        CrowdsecView {
            url: display(&self.config.url),
            up: self.failure.is_none() && self.figures.answered.is_some(),
            error: self.failure.clone(),
            answered_utc_ms: self.figures.answered,
            failures: self.figures.failures,
            bans: held_off(policy, now),
        }
    }
}

impl Work {
    fn is_done(&self) -> bool {
        self.deleted.as_slice().is_empty() && self.new.as_slice().is_empty()
    }
}

fn author() -> Author {
    Author::Outside(NAME.to_owned())
}

/// Whom crowdsec holds off here, and by an answer that has all that holds does not any more, or not for so long.
fn stale(policy: &Policy, new: &[Verdict], (at, now): (Now, Now)) -> Vec<IpNet> {
    let is_stale = |(subject, ban): &(&Subject, &Arc<Ban>)| {
        let Some(by) = ban.by(&author(), now.boot).filter(|_| !ban.pinned) else { return false };
        let said = new.binary_search_by_key(&subject.prefix, |verdict| verdict.prefix);
        let said = said.ok().and_then(|place| new.get(place));
        said.is_none_or(|said| by.end.until().boot > after(at.boot, said.lasts + SLACK))
    };
    let stale = policy.bans().iter().filter(|(subject, _)| subject.place == Place::Kernel);
    stale.filter(is_stale).map(|(subject, _)| subject.prefix).collect()
}

/// How many bans hold that it made.
fn held_off(policy: &Policy, now: Now) -> usize {
    let theirs = author();
    policy.bans().iter().filter(|(_, ban)| ban.author == theirs && ban.holds(now.boot)).count()
}

fn after(at: BootTime, time: Duration) -> BootTime {
    BootTime(at.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
}

/// Asks for as long as somebody listens. Whoever does not take an answer is not asked for the next one.
async fn run(config: FeedbackCrowdsec, key: Secret, answers: mpsc::Sender<Answer>) {
    let (mut client, mut whole, mut failures) = (None, true, 0u32);
    loop {
        let mut peers = Vec::new();
        let heard = ask((&config, &key), &mut client, whole, &mut peers).await;
        failures = if heard.is_ok() { 0 } else { failures.saturating_add(1) };
        let answer = Answer { whole, peers, heard, at: Now::read() };
        // It takes what it has sent as heard, whether or not that has arrived.
        whole = failures > 0;
        if answers.send(answer).await.is_err() {
            return;
        }
        sleep(pause(config.every, failures, random())).await;
    }
}

async fn ask(
    (config, key): (&FeedbackCrowdsec, &Secret),
    client: &mut Option<Client>,
    whole: bool,
    peers: &mut Vec<IpAddr>,
) -> Result<Heard, (Became, String)> {
    let unreachable = |error: &dyn ToString| (Became::Unreachable, error.to_string());
    let known = match client.take() {
        Some(known) => known,
        None => {
            let ca = config.ca.clone();
            // A file is read where nobody waits.
            let made = spawn_blocking(move || Client::new(ca.as_deref())).await;
            let made = made.map_err(|error| unreachable(&error))?;
            made.map_err(|error| unreachable(&error))?
        }
    };
    let url: Uri = config.question(whole).parse().map_err(|error| unreachable(&error))?;
    let mut key = HeaderValue::from_bytes(key.bytes()).map_err(|error| unreachable(&error))?;
    key.set_sensitive(true);
    let bounds = Bounds {
        connect_timeout: CONNECT_TIMEOUT,
        total_timeout: TIMEOUT,
        body_max_bytes: ANSWER_BYTES_MAX,
    };
    let field = (HeaderName::from_static("x-api-key"), &key);
    let bytes = known.get_as(&url, field, bounds, peers).await.map_err(|error| explain(&error))?;
    // After a failure the authorities are read anew.
    *client = Some(known);
    let read = spawn_blocking(move || read(&bytes, whole)).await;
    let malformed = |error: String| (Became::Malformed, format!("{} {error}", display(&url)));
    read.map_err(|error| malformed(error.to_string()))?.map_err(malformed)
}

fn explain(error: &FetchError) -> (Became, String) {
    let became = Became::of(&error.reason);
    let help = match became {
        Became::Forbidden => {
            ": the key of feedback.crowdsec is not one of its bouncers, `cscli bouncers add NAME` \
             makes one"
        }
        _ => "",
    };
    (became, format!("{error}{help}"))
}

/// Time until it is asked again, a tenth more or less, so that not all gateways come at once.
fn pause(every: Duration, failures: u32, random: u64) -> Duration {
    let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    let pause = every.saturating_mul(doubled).min(every.max(RETRY_MAX));
    let permille = 900 + u32::try_from(random % 201).unwrap_or(0);
    pause.saturating_mul(permille) / 1000
}

/// Figures as Prometheus reads them.
pub(super) fn page(crowdsec: Option<&Crowdsec>, policy: &Policy, now: Now) -> String {
    let mut page = Page::default();
    let Some(crowdsec) = crowdsec else { return page.text() };
    let view = crowdsec.view(policy, now);
    page.gauge("gateway_feedback_crowdsec_up", "1 if crowdsec answered when it was asked last.")
        .only(view.up.into());
    page.gauge("gateway_feedback_crowdsec_bans", "Bans that hold and that crowdsec decided last.")
        .only(view.bans as u64);
    let help = "When crowdsec last answered, in seconds of Unix time, or 0 for never.";
    let answered = view.answered_utc_ms.map_or(0, |at| at.0 / 1000);
    page.gauge("gateway_feedback_crowdsec_answered_time_seconds", help).only(answered);
    let help = "What became of asking crowdsec.";
    let mut answers = page.counter("gateway_feedback_crowdsec_answers_total", help);
    for ((_, name), count) in Became::ALL.iter().zip(crowdsec.figures.answers) {
        answers.with(&[("result", name)], count);
    }
    let help = "Decisions of crowdsec, by what became of them.";
    let mut decisions = page.counter("gateway_feedback_crowdsec_decisions_total", help);
    for result in RESULTS {
        let count = crowdsec.figures.decisions.get(result).copied().unwrap_or_default();
        decisions.with(&[("result", result)], count);
    }
    page.text()
}

#[cfg(test)]
mod tests;
