//! The way back: reports of workers become decisions, and decisions are carried out, one turn of the loop after the
//! other. A turn takes only so many reports, so that nobody who commands waits for a flood.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Control;
use super::policy::Policy;
use super::policy::bans::{Outcome, views};
use crate::admin::bans::{FeedbackView, Took};
use crate::base::time::{Now, instant};
use crate::config::Config;
use crate::feedback::ban::{Author, Change, What};
use crate::feedback::decision::{Decision, Held, Place, Subject};
use crate::feedback::evidence::Report;
use crate::feedback::score::{Known, Numbers, Scores};
use crate::observe::histogram::{Durations, Histogram};
use crate::observe::prometheus::Page;

/// Reports of one turn.
const TURN_REPORTS: usize = 256;
/// The same alert is raised again after so long.
const ALERT_EVERY: Duration = Duration::from_secs(60);
/// How often, at most, bans make the gateway look who must not be banned by now.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Series of decisions. A reload may bring rules of other names.
const SERIES_MAX: usize = 4096;

/// What has become of reports.
pub(super) struct Feedback {
    reports: mpsc::Receiver<Report>,
    /// `None`: nothing is decided.
    scores: Option<Scores>,
    /// The reports of this turn.
    turn: Vec<Report>,
    figures: Figures,
    alerted: BTreeMap<&'static str, Instant>,
    looked: Option<Instant>,
}

/// What is counted.
#[derive(Default)]
struct Figures {
    /// Decisions by rule, measure and what became of them.
    decisions: BTreeMap<(String, &'static str, &'static str), u64>,
    /// From the evidence to the return of the map update.
    reaction: Histogram,
}

impl Figures {
    fn count(&mut self, decision: &Decision, author: &Author, outcome: &Outcome) {
        let rule = match author {
            Author::Feedback => decision.rule.to_string(),
            // Names that others give are theirs to choose.
            Author::User(_) => "_user".to_owned(),
            Author::Outside(_) => "_outside".to_owned(),
            Author::Gateway(_) => "_gateway".to_owned(),
        };
        let key = (rule, views::name(&decision.measure), outcome.name());
        if self.decisions.len() < SERIES_MAX || self.decisions.contains_key(&key) {
            *self.decisions.entry(key).or_default() += 1;
        }
        if let (Outcome::Enforced(at), Author::Feedback) = (outcome, author) {
            let took = at.0.saturating_sub(decision.at.boot.0);
            self.reaction.add(Duration::from_nanos(took));
        }
    }

    fn add_to(&self, page: &mut Page, policy: &Policy, now: Now) {
        let help = "Decisions about sources, by rule, measure and what became of them.";
        let mut decisions = page.counter("gateway_feedback_decisions_total", help);
        for ((rule, measure, result), count) in &self.decisions {
            let labels = [("rule", rule.as_str()), ("measure", measure), ("result", result)];
            decisions.with(&labels, *count);
        }
        let help = "Bans that hold, by where they are enforced.";
        let mut bans = page.gauge("gateway_feedback_bans", help);
        for (name, place) in [("kernel", Place::Kernel), ("user_space", Place::UserSpace)] {
            bans.with(&[("place", name)], policy.bans().holding(now.boot, place) as u64);
        }
        let help = "Time from the evidence that tips a score to the return of the map update.";
        page.histogram("gateway_feedback_reaction_seconds", help).durations(&[], &self.reaction());
        let help = "Time from a change of bans to its being on the disk, of the oldest in each transaction.";
        let durable = policy.bans_durable();
        page.histogram("gateway_feedback_durable_seconds", help).durations(&[], &durable);
    }

    fn reaction(&self) -> Durations {
        let mut durations = Durations::default();
        durations.add(&self.reaction);
        durations
    }
}

/// What is noticed, and what is remembered of it.
fn numbers(page: &mut Page, numbers: &Numbers) {
    let help = "Sources and prefixes of which something is remembered.";
    page.gauge("gateway_feedback_remembered", help)
        .with(&[("what", "sources")], numbers.sources as u64)
        .with(&[("what", "prefixes")], numbers.prefixes as u64)
        .with(&[("what", "decided")], numbers.remembered as u64);
    let help = "Sources and prefixes that were forgotten for others.";
    page.counter("gateway_feedback_evicted_total", help).only(numbers.evicted);
    let help = "Signals of which nothing was remembered, for want of room.";
    page.counter("gateway_feedback_turned_away_total", help).only(numbers.turned_away);
}

impl Feedback {
    /// Takes what workers report from now on.
    pub(super) fn new(reports: mpsc::Receiver<Report>, config: &Config, policy: &Policy) -> Self {
        let mut feedback = Self {
            reports,
            scores: None,
            turn: Vec::with_capacity(TURN_REPORTS),
            figures: Figures::default(),
            alerted: BTreeMap::new(),
            looked: None,
        };
        feedback.configure(config, policy, Now::read());
        feedback
    }

    /// Waits for reports, those of one turn. Whoever stops waiting loses none.
    pub(super) async fn next(&mut self) {
        self.reports.recv_many(&mut self.turn, TURN_REPORTS).await;
    }

    /// Whether so much time has passed since it was last asked.
    fn is_time(last: &mut Option<Instant>, every: Duration) -> bool {
        let now = instant();
        let is_time = last.is_none_or(|last| now.duration_since(last) >= every);
        if is_time {
            *last = Some(now);
        }
        is_time
    }

    /// Raises an alert where people should look.
    fn alert(&mut self, decision: &Decision, outcome: &Outcome) {
        let why = match outcome {
            Outcome::Enforced(_) | Outcome::Standing | Outcome::Held(Held::DryRun) => return,
            Outcome::Held(held) => held.name(),
            Outcome::Guarded(why) | Outcome::Failed(why) => why.as_str(),
        };
        let mut last = self.alerted.get(outcome.name()).copied();
        if !Self::is_time(&mut last, ALERT_EVERY) {
            return;
        }
        self.alerted.extend(last.map(|last| (outcome.name(), last)));
        let Decision { rule, subject, story, .. } = decision;
        let (score, prefix) = (story.score, subject.prefix);
        tracing::warn!(
            %prefix, %rule, score, why,
            "a decision was not carried out: see `gateway bans list --held`"
        );
    }
}

impl Feedback {
    /// All figures.
    fn page(&self, policy: &Policy, now: Now) -> String {
        let mut page = Page::default();
        self.figures.add_to(&mut page, policy, now);
        if let Some(scores) = &self.scores {
            numbers(&mut page, &scores.numbers());
        }
        page.text()
    }

    /// Takes over a configuration. Whoever begins to score knows of the bans that there are.
    pub(super) fn configure(&mut self, config: &Config, policy: &Policy, now: Now) {
        let length = config.kernel.ipv6_source_length;
        match (&config.feedback, &mut self.scores) {
            (None, _) => self.scores = None,
            (Some(feedback), Some(scores)) => scores.configure(feedback, length),
            (Some(feedback), None) => {
                let mut scores = Scores::new(feedback, length);
                let known = policy.bans().iter();
                known.for_each(|(one, ban)| scores.restore(&ban.remembered(*one, now), now));
                self.scores = Some(scores);
            }
        }
    }

    /// What is known of an address.
    pub(super) fn known(&self, address: IpAddr, now: Now) -> Vec<Known> {
        self.scores.as_ref().map(|scores| scores.known(address, now)).unwrap_or_default()
    }

    /// Ages what nobody asks for.
    pub(super) fn tick(&mut self, now: Now) {
        if let Some(scores) = &mut self.scores {
            scores.tick(now);
        }
    }

    /// Scores the reports of this turn, and carries out what is decided. Answers whether anything was enforced.
    fn take(&mut self, policy: &mut Policy, read: impl Fn() -> Now) -> bool {
        let mut turn = std::mem::take(&mut self.turn);
        let mut enforced = false;
        for report in turn.drain(..) {
            let scores = self.scores.as_mut();
            for decision in scores.map(|scores| scores.observe(&report)).unwrap_or_default() {
                let outcome = self.decide(policy, (&decision, &Author::Feedback), read());
                enforced |= matches!(outcome, Outcome::Enforced(_));
            }
        }
        self.turn = turn;
        enforced
    }

    /// Carries a decision out, whoever made it, and counts what became of it.
    pub(super) fn decide(
        &mut self,
        policy: &mut Policy,
        (decision, author): (&Decision, &Author),
        now: Now,
    ) -> Outcome {
        let beyond = self.beyond_ceiling(policy, (decision, author), now);
        let decision = beyond.as_ref().unwrap_or(decision);
        let outcome = policy.enforce_ban(decision, author, now);
        if is_judged(author)
            && let (Outcome::Enforced(_), Some(scores)) = (&outcome, &mut self.scores)
        {
            scores.other_enforced(decision.subject, now);
        }
        self.figures.count(decision, author, &outcome);
        self.alert(decision, &outcome);
        if let (Outcome::Guarded(_) | Outcome::Failed(_), Author::Feedback, Some(scores)) =
            (&outcome, author, &mut self.scores)
        {
            scores.refused(decision.subject, &decision.rule, now);
        }
        outcome
    }

    /// What others decided as it is shown, if it would hit too much of what is served well.
    fn beyond_ceiling(
        &mut self,
        policy: &Policy,
        (decision, author): (&Decision, &Author),
        now: Now,
    ) -> Option<Decision> {
        let subject = &decision.subject;
        let holds = policy.bans().find(subject).is_some_and(|ban| ban.holds(now.boot));
        // Whom the guard spares is not held for another reason, and what holds hits nobody anew.
        if !is_judged(author) || decision.held.is_some() || holds || policy.is_guarded(subject) {
            return None;
        }
        let (held, note) = self.scores.as_mut()?.holds_other(subject, now)?;
        let mut story = decision.story.clone();
        story.notes.push(note);
        Some(Decision { held: Some(held), story, ..decision.clone() })
    }

    /// Whether a decision of somebody else would hit too much of what is served well.
    pub(super) fn is_beyond_ceiling(&mut self, subject: &Subject, now: Now) -> bool {
        let scores = self.scores.as_mut();
        scores.is_some_and(|scores| scores.holds_other(subject, now).is_some())
    }

    /// Others than the scores have changed bans.
    pub(super) fn changed(&mut self, changes: &[Change], now: Now) {
        let Some(scores) = &mut self.scores else { return };
        for Change { subject, what, author, ban, .. } in changes {
            match (what, ban) {
                (What::Lifted, _) => scores.lift(*subject, now),
                (What::Forgotten, _) => scores.forget(*subject, now),
                (What::Made | What::Extended, _) if *author == Author::Feedback => {}
                (What::Made | What::Extended | What::Shortened | What::Pinned, Some(ban)) => {
                    scores.restore(&ban.remembered(*subject, now), now);
                }
                _ => {}
            }
        }
    }
}

/// Whether what somebody decided is held to what it would hit. The scores have seen to that themselves, and people know
/// what they do.
fn is_judged(author: &Author) -> bool {
    match author {
        Author::Feedback | Author::User(_) => false,
        Author::Outside(_) | Author::Gateway(_) => true,
    }
}

impl Control {
    /// Scores the reports of one turn, and carries out what is decided.
    pub(super) fn take_reports(&mut self) {
        if self.feedback.take(&mut self.policy, Now::read) {
            self.spare_who_must_not_be_banned();
        }
        self.note_bans();
        self.recheck();
    }

    /// Whoever connected to a management port a moment ago is protected, also from the ban of a moment ago.
    pub(super) fn spare_who_must_not_be_banned(&mut self) {
        if Feedback::is_time(&mut self.feedback.looked, LOOK_EVERY) {
            self.protect_everybody(Now::read());
        }
    }

    /// How the way back stands.
    pub(super) fn feedback_view(&self) -> Option<FeedbackView> {
        let feedback = self.config.feedback.as_ref()?;
        let now = Now::read().boot;
        let bans = self.policy.bans();
        Some(FeedbackView {
            dry_run: feedback.dry_run,
            rules: feedback.rules.len(),
            bans: bans.holding(now, Place::Kernel) + bans.holding(now, Place::UserSpace),
            held: bans.held().count(),
            lag: self.policy.bans_lag(),
            reaction: Took::of(&self.feedback.figures.reaction()),
            durable: Took::of(&self.policy.bans_durable()),
        })
    }

    /// The figures of the way back.
    pub(super) fn feedback_page(&self) -> String {
        match self.config.feedback {
            Some(_) => self.feedback.page(&self.policy, Now::read()),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::bans::commands::Verb;
    use super::super::policy::bans::tests::{NOW, after, decision, policy, subject};
    use super::*;
    use crate::base::address::PeerAddr;
    use crate::base::signal::Signal;
    use crate::feedback::evidence::{Evidence, Good, Source};

    fn config() -> Config {
        let text = "{listen: [{address: '127.0.0.1:8080'}], feedback: {rules: [\
            {name: stuffing, when: {signal: auth_failed, count: 3, per: 1m}, ban: {for: 10m}}]}}";
        crate::config::parse("gateway.yaml", text).unwrap()
    }

    fn feedback(policy: &Policy) -> (Feedback, mpsc::Sender<Report>) {
        let (reports, inbox) = mpsc::channel(1024);
        let mut feedback = Feedback::new(inbox, &Config { feedback: None, ..config() }, policy);
        feedback.configure(&config(), policy, NOW);
        (feedback, reports)
    }

    fn odd(address: &str, at: Now) -> Report {
        let peer = PeerAddr::of_socket(format!("{address}:1024").parse().unwrap());
        Report::Odd(Box::new(Evidence {
            signal: Signal::AuthFailed,
            source: Source::Peer(peer),
            at,
            request_id: None,
            route: None,
            limit: None,
            reason: None,
        }))
    }

    /// Reports so often, and answers whether anything was enforced.
    fn reported(feedback: &mut Feedback, policy: &mut Policy, times: usize, at: Now) -> bool {
        feedback.turn.extend((0..times).map(|_| odd("192.0.2.7", at)));
        feedback.take(policy, || at)
    }

    #[test]
    fn a_turn_takes_so_many_reports_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut policy = policy(&folder, NOW);
        let (mut feedback, reports) = feedback(&policy);
        for _ in 0..TURN_REPORTS + 3 {
            reports.try_send(Report::Pressure("users".into(), NOW)).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for expected in [TURN_REPORTS, 3] {
            runtime.block_on(feedback.next());
            assert_eq!(feedback.turn.len(), expected);
            assert!(!feedback.take(&mut policy, || NOW));
            assert!(feedback.turn.is_empty());
        }
    }

    #[test]
    fn what_was_lifted_takes_twice_the_evidence_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = policy(&folder, NOW);
        let (mut scoring, _reports) = feedback(&first);
        assert!(!reported(&mut scoring, &mut first, 2, NOW));
        assert!(reported(&mut scoring, &mut first, 1, NOW));
        let lift =
            first.change_bans(Verb::Lift, &["192.0.2.7".to_owned()], (&Author::User(0), NOW));
        lift.unwrap();
        scoring.changed(&first.take_ban_changes(), NOW);
        assert!(!reported(&mut scoring, &mut first, 3, after(Duration::from_secs(1))));
        drop(first);
        let mut second = policy(&folder, NOW);
        let (mut scoring, _reports) = feedback(&second);
        let later = after(Duration::from_secs(2));
        assert!(!reported(&mut scoring, &mut second, 5, later));
        assert!(reported(&mut scoring, &mut second, 1, later));
        let text = scoring.page(&second, later);
        for series in [
            "gateway_feedback_decisions_total{rule=\"stuffing\",measure=\"ban\",result=\"enforced\"} 1\n",
            "gateway_feedback_bans{place=\"kernel\"} 1\n",
            "gateway_feedback_reaction_seconds_count 1\n",
            "gateway_feedback_remembered{what=\"decided\"} 1\n",
        ] {
            assert!(text.contains(series), "{series}{text}");
        }
    }

    #[test]
    fn what_the_guard_refuses_is_not_decided_over_and_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut policy = policy(&folder, NOW);
        let (mut feedback, _reports) = feedback(&policy);
        feedback.turn.extend((0..30).map(|_| odd("10.0.0.5", NOW)));
        assert!(!feedback.take(&mut policy, || NOW));
        assert_eq!(policy.take_ban_changes().len(), 1);
        assert!(feedback.page(&policy, NOW).contains("result=\"guarded\"} 1\n"));
    }

    fn good(address: &str, requests: u32) -> Good {
        let peer = PeerAddr::of_socket(format!("{address}:1024").parse().unwrap());
        Good { source: Source::Peer(peer), consumer: None, requests }
    }

    #[test]
    fn whoever_tells_whom_to_hold_off_cannot_hold_off_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let mut policy = policy(&folder, NOW);
        let (mut feedback, _reports) = feedback(&policy);
        // Five thousand requests of a hundred clients: a tenth is five hundred, or ten of them.
        let served = (0..100).map(|last| good(&format!("192.0.2.{last}"), 50));
        feedback.turn.push(Report::Good(served.collect(), NOW));
        feedback.take(&mut policy, || NOW);
        let mut decide = |prefix: &str, author: &Author, at: Now| {
            let one = decision(subject(prefix, Place::Kernel), Duration::from_secs(60));
            let outcome = feedback.decide(&mut policy, (&one, author), at);
            outcome.name()
        };
        let peer = Author::Gateway("other".to_owned());
        let program = Author::Outside("crowdsec".to_owned());
        // Prefixes of any length around them, never.
        for wide in ["192.0.0.0/8", "192.0.2.0/24", "192.0.2.0/25"] {
            assert_eq!(decide(wide, &peer, NOW), "good_share", "{wide}");
            assert_eq!(decide(wide, &program, NOW), "good_share", "{wide}");
        }
        // So many single ones, of all others together, and whoever is not served as many as they like.
        for last in 0..10 {
            let author = if last % 2 == 0 { &peer } else { &program };
            assert_eq!(decide(&format!("192.0.2.{last}/32"), author, NOW), "enforced", "{last}");
        }
        for last in 0..200 {
            assert_eq!(decide(&format!("198.51.100.{last}/32"), &program, NOW), "enforced");
        }
        assert_eq!(decide("192.0.2.10/32", &peer, NOW), "good_share");
        assert_eq!(decide("198.51.0.0/16", &peer, NOW), "enforced");
        assert_eq!(decide("192.0.2.3/32", &peer, NOW), "standing");
        assert_eq!(decide("10.0.0.5/32", &peer, NOW), "guarded");
        // A person knows.
        assert_eq!(decide("192.0.2.0/24", &Author::User(7), NOW), "enforced");
        // Ten minutes later it is another budget.
        let late = after(Duration::from_secs(601));
        assert_eq!(decide("192.0.2.10/32", &peer, late), "enforced");
        let held = policy.bans().held().find(|held| held.decision.subject.prefix.prefix_len() == 8);
        let held = held.unwrap();
        assert_eq!((held.author.clone(), &*held.why), (program, "good_share"));
        assert!(held.decision.story.notes[0].contains("5000 good requests"), "{:?}", held.decision);
        assert!(
            feedback
                .page(&policy, NOW)
                .contains("rule=\"_gateway\",measure=\"ban\",result=\"good_share\"} 4\n")
        );
    }

    #[test]
    fn names_from_outside_make_no_series() {
        let folder = tempfile::tempdir().unwrap();
        let mut policy = policy(&folder, NOW);
        let (mut feedback, _reports) = feedback(&policy);
        for last in 0..9 {
            let one = subject(&format!("192.0.2.{last}/32"), Place::Kernel);
            let rule = format!("chosen-{last}").into();
            let decision = Decision { rule, ..decision(one, Duration::from_secs(60)) };
            let author = Author::Outside("crowd".to_owned());
            feedback.decide(&mut policy, (&decision, &author), NOW);
        }
        let text = feedback.page(&policy, NOW);
        let series = "rule=\"_outside\",measure=\"ban\",result=\"enforced\"} 9";
        assert!(text.contains(series), "{text}");
        assert!(text.contains("gateway_feedback_reaction_seconds_count 0"), "{text}");
    }
}
