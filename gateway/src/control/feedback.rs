//! The way back: reports of workers become decisions, and decisions are carried out, one turn of the loop after the
//! other. A turn takes only so many reports, so that nobody who commands waits for a flood.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Control;
use super::policy::Policy;
use super::policy::bans::{Outcome, views};
use crate::admin::bans::FeedbackView;
use crate::base::time::{Now, instant};
use crate::feedback::ban::{Author, Change, What};
use crate::feedback::decision::{Decision, Held, Place, Subject};
use crate::feedback::evidence::Report;
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

/// What turns reports into decisions.
pub(super) trait Scoring {
    /// Takes a report, and decides.
    fn observe(&mut self, report: &Report) -> Option<Decision>;
    /// A decision is enforced, or was not carried out.
    fn carried_out(&mut self, decision: &Decision, enforced: bool);
    /// Somebody took a ban back: its evidence counts no more, and for a time it takes more of it.
    fn lifted(&mut self, subject: &Subject, now: Now);
    /// Nothing is to be remembered about a subject.
    fn forgotten(&mut self, subject: &Subject);
}

/// What has become of reports.
pub(super) struct Feedback {
    reports: mpsc::Receiver<Report>,
    /// `None`: nothing is decided.
    scores: Option<Box<dyn Scoring>>,
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

    fn page(&self, policy: &Policy, now: Now) -> String {
        let mut page = Page::default();
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
        let mut durations = Durations::default();
        durations.add(&self.reaction);
        page.histogram("gateway_feedback_reaction_seconds", help).durations(&[], &durations);
        page.text()
    }
}

impl Feedback {
    /// Takes what workers report from now on.
    pub(super) fn new(reports: mpsc::Receiver<Report>) -> Self {
        Self {
            reports,
            scores: None,
            turn: Vec::with_capacity(TURN_REPORTS),
            figures: Figures::default(),
            alerted: BTreeMap::new(),
            looked: None,
        }
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
    /// Scores the reports of this turn, and carries out what is decided. Answers whether anything was enforced.
    fn take(&mut self, policy: &mut Policy, read: impl Fn() -> Now) -> bool {
        let mut turn = std::mem::take(&mut self.turn);
        let mut enforced = false;
        for report in turn.drain(..) {
            let scores = self.scores.as_mut();
            if let Some(decision) = scores.and_then(|scores| scores.observe(&report)) {
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
        let outcome = policy.enforce_ban(decision, author, now);
        self.figures.count(decision, author, &outcome);
        self.alert(decision, &outcome);
        if let Some(scores) = &mut self.scores {
            let is_enforced = matches!(outcome, Outcome::Enforced(_) | Outcome::Standing);
            scores.carried_out(decision, is_enforced);
        }
        outcome
    }

    /// Somebody changed bans.
    pub(super) fn changed(&mut self, changes: &[Change], now: Now) {
        let Some(scores) = &mut self.scores else { return };
        for Change { subject, what, .. } in changes {
            match what {
                What::Lifted => scores.lifted(subject, now),
                What::Forgotten => scores.forgotten(subject),
                _ => {}
            }
        }
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
        })
    }

    /// The figures of the way back.
    pub(super) fn feedback_page(&self) -> String {
        match self.config.feedback {
            Some(_) => self.feedback.figures.page(&self.policy, Now::read()),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::bans::tests::{NOW, after, decision, policy, subject};
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// Decides what it was told to, and notes what it hears.
    #[derive(Default)]
    struct Script {
        decisions: Vec<Decision>,
        heard: Rc<RefCell<Vec<String>>>,
    }

    impl Scoring for Script {
        fn observe(&mut self, _: &Report) -> Option<Decision> {
            self.decisions.pop()
        }

        fn carried_out(&mut self, decision: &Decision, enforced: bool) {
            self.heard.borrow_mut().push(format!("{} {enforced}", decision.subject.prefix));
        }

        fn lifted(&mut self, subject: &Subject, _: Now) {
            self.heard.borrow_mut().push(format!("lifted {}", subject.prefix));
        }

        fn forgotten(&mut self, subject: &Subject) {
            self.heard.borrow_mut().push(format!("forgotten {}", subject.prefix));
        }
    }

    fn feedback(decisions: Vec<Decision>) -> (Feedback, mpsc::Sender<Report>, Heard) {
        let (reports, inbox) = mpsc::channel(1024);
        let (script, mut feedback) = (Script::default(), Feedback::new(inbox));
        let heard = Rc::clone(&script.heard);
        feedback.scores = Some(Box::new(Script { decisions, ..script }));
        (feedback, reports, heard)
    }

    type Heard = Rc<RefCell<Vec<String>>>;

    fn report() -> Report {
        Report::Pressure("users".into(), NOW)
    }

    #[test]
    fn a_turn_takes_so_many_reports_and_no_more() {
        let (mut feedback, reports, _) = feedback(Vec::new());
        for _ in 0..TURN_REPORTS + 3 {
            reports.try_send(report()).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut policy = policy(&folder, NOW);
        for expected in [TURN_REPORTS, 3] {
            runtime.block_on(feedback.next());
            assert_eq!(feedback.turn.len(), expected);
            assert!(!feedback.take(&mut policy, || NOW));
            assert!(feedback.turn.is_empty());
        }
    }

    #[test]
    fn decisions_are_carried_out_and_whoever_scores_hears_what_became_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut policy = policy(&folder, NOW);
        let minute = Duration::from_secs(60);
        let good = decision(subject("192.0.2.7/32", Place::Kernel), minute);
        let held = Decision {
            held: Some(Held::GoodShare),
            ..decision(subject("192.0.2.8/32", Place::Kernel), minute)
        };
        let spared = decision(subject("10.0.0.5/32", Place::Kernel), minute);
        let (mut feedback, _reports, heard) = feedback(vec![good, held, spared]);
        feedback.turn.extend([report(), report(), report(), report()]);
        assert!(feedback.take(&mut policy, || NOW));
        let expected = ["10.0.0.5/32 false", "192.0.2.8/32 false", "192.0.2.7/32 true"];
        assert_eq!(*heard.borrow(), expected);
        let text = feedback.figures.page(&policy, NOW);
        for result in ["enforced", "good_share", "guarded"] {
            let series = format!("measure=\"ban\",result=\"{result}\"}} 1\n");
            assert!(text.contains(&series), "{text}");
        }
        assert!(text.contains("gateway_feedback_bans{place=\"kernel\"} 1\n"), "{text}");
        assert!(text.contains("gateway_feedback_reaction_seconds_count 1\n"), "{text}");
        let changes = policy.take_ban_changes();
        feedback.changed(&changes, NOW);
        assert_eq!(heard.borrow().len(), 3, "what it decided itself it need not hear again");
    }

    #[test]
    fn names_from_outside_make_no_series() {
        let folder = tempfile::tempdir().unwrap();
        let mut policy = policy(&folder, NOW);
        let (mut feedback, _reports, _) = feedback(Vec::new());
        for last in 0..9 {
            let one = subject(&format!("192.0.2.{last}/32"), Place::Kernel);
            let rule = format!("chosen-{last}").into();
            let decision = Decision { rule, ..decision(one, Duration::from_secs(60)) };
            let author = Author::Outside("crowd".to_owned());
            feedback.decide(&mut policy, (&decision, &author), after(Duration::from_secs(1)));
        }
        let text = feedback.figures.page(&policy, NOW);
        assert!(
            text.contains("rule=\"_outside\",measure=\"ban\",result=\"enforced\"} 9"),
            "{text}"
        );
        assert!(text.contains("gateway_feedback_reaction_seconds_count 0"), "{text}");
    }
}
