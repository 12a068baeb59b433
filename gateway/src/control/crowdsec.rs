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

use http::HeaderValue;
use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};

use self::ask::{Answer, Became, run};
use super::feedback::Feedback;
use super::others::{WAITING_MAX, may_change};
use super::policy::Policy;
use super::policy::bans::Outcome;
use crate::admin::crowdsec::CrowdsecView;
use crate::base::secret::Secret;
use crate::base::time::{BootTime, Now, UtcMillis};
use crate::config::{Config, FeedbackCrowdsec, Measure, SecretSource};
use crate::feedback::ban::{Author, Ban};
pub(super) use crate::feedback::crowdsec::NAME;
use crate::feedback::crowdsec::Verdict;
use crate::feedback::decision::{Decision, Held, Place, Story, Subject};
use crate::observe::prometheus::Page;
use crate::outbound::display;

mod ask;

/// Decisions that are carried out at once; the rest follows, after whatever else waits. So many connections are closed
/// one by one.
const TURN: usize = 64;
/// Times of the same decision differ by how long answers take.
const SLACK: Duration = Duration::from_secs(5);

/// What becomes of decisions: those of [`Outcome`], and what is found out before.
const RESULTS: [&str; 10] = [
    "enforced",
    "standing",
    "withdrawn",
    "dry_run",
    "good_share",
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

/// The crowdsec.
pub(super) struct Crowdsec {
    config: FeedbackCrowdsec,
    key: Secret,
    /// Asks for as long as it is there.
    asking: Option<Asking>,
    /// An answer that was not looked at yet.
    arrived: Option<Answer>,
    work: Work,
    /// What was decided and not done, for now, and until when it holds.
    waiting: BTreeMap<IpNet, (Verdict, BootTime)>,
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
    at: BootTime,
    deleted: IntoIter<IpNet>,
    new: IntoIter<Verdict>,
    /// What waited, each with its end.
    again: Vec<(Verdict, BootTime)>,
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
            waiting: BTreeMap::new(),
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
        deleted.iter().for_each(|prefix| drop(self.waiting.remove(prefix)));
        for _ in deleted.len()..TURN {
            let next = self.work.new.next();
            let next = next.map(|verdict| (after(self.work.at, verdict.lasts), verdict));
            let again = || self.work.again.pop().map(|(verdict, end)| (end, verdict));
            let Some((end, verdict)) = next.or_else(again) else { return };
            let result = self.carry_out((&verdict, end), (policy, feedback), (dry_run, now));
            self.figures.decided(result, 1);
            self.waiting.remove(&verdict.prefix);
            if may_change(result) && self.waiting.len() < WAITING_MAX {
                self.waiting.insert(verdict.prefix, (verdict, end));
            }
        }
    }

    /// Takes those out of what waits that may be carried out by now, and forgets those that have ended.
    pub(super) fn look_again(&mut self, may: &mut dyn FnMut(&Subject) -> bool, now: Now) {
        self.waiting.retain(|_, (_, end)| *end > now.boot);
        let place = Place::Kernel;
        let may = |prefix: &IpNet, _: &mut _| may(&Subject { prefix: *prefix, place });
        self.work.again.extend(self.waiting.extract_if(.., may).map(|(_, waited)| waited));
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
        if answer.whole {
            // What still holds is in it.
            self.waiting.clear();
            self.work.again.clear();
        }
        self.work = Work {
            whole: answer.whole,
            at: answer.at.boot,
            deleted: deleted.into_iter(),
            new: heard.new.into_iter(),
            again: std::mem::take(&mut self.work.again),
        };
    }

    /// Answers what became of it.
    fn carry_out(
        &self,
        (verdict, end): (&Verdict, BootTime),
        (policy, feedback): (&mut Policy, &mut Feedback),
        (dry_run, now): (bool, Now),
    ) -> &'static str {
        let subject = Subject { prefix: verdict.prefix, place: Place::Kernel };
        let lasts = Duration::from_nanos(end.0.saturating_sub(now.boot.0));
        if lasts.is_zero() {
            return "skipped";
        }
        let known = policy.bans().find(&subject);
        if self.work.whole && known.is_some_and(|ban| ban.lifts_that_teach(now) > 0) {
            return "lifted";
        }
        let by = known.and_then(|ban| ban.by(&author(), now.boot));
        if by.is_some_and(|ban| after(ban.end.until().boot, SLACK) >= end) {
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
        let is_empty = self.deleted.as_slice().is_empty() && self.new.as_slice().is_empty();
        is_empty && self.again.is_empty()
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
