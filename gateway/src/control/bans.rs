//! Bans as commands change and list them, and the connections of those that are banned.

use super::feedback::Feedback;
use super::policy::bans::commands::Verb;
use super::policy::bans::{Outcome, views};
use super::{Control, Policy, audit};
use crate::admin::api::{Answer, Refusal};
use crate::admin::bans::BanRequest;
use crate::base::time::Now;
use crate::feedback::ban::Author;
use crate::feedback::decision::Decision;

/// Subjects whose connections are closed by one order. Beyond it every connection is looked at.
const CLOSED_MAX: usize = 64;

impl Control {
    /// Carries out a command about bans.
    pub(super) fn bans(&mut self, request: BanRequest, uid: u32) -> Result<Answer, Refusal> {
        let now = Now::read();
        if request.changes() {
            // Whoever connected to a management port a moment ago must not lock themselves out.
            self.protect_everybody(now);
        }
        let dry_run = self.is_feedback_dry();
        let feedback = Some(&mut self.feedback);
        let answer = answer(&mut self.policy, feedback, request, (uid, dry_run, now));
        self.note_bans();
        answer
    }

    /// Writes down what happened to bans.
    pub(super) fn note_bans(&mut self) {
        let (changes, now) = (self.policy.take_ban_changes(), Now::read());
        for change in &changes {
            audit::ban(&self.trail, change);
            self.others.tell(change, now);
        }
        self.feedback.changed(&changes, now);
    }

    /// Where rules changed, closes the connections of those whom they deny by now.
    pub(super) fn recheck(&mut self) {
        if !self.policy.has_changed() {
            let closing = self.policy.take_closing(CLOSED_MAX);
            let told = |closing| self.door.close(&closing).is_ok();
            if closing.is_some_and(|closing| closing.is_empty() || told(closing)) {
                return;
            }
            // Too many, or a worker takes no orders now: all are looked at as soon as it does.
            self.policy.look_again();
        }
        if self.door.recheck().is_ok() {
            self.policy.seen();
        }
    }
}

/// Carries out a command about bans, with or without a running gateway.
pub(super) fn answer(
    policy: &mut Policy,
    feedback: Option<&mut Feedback>,
    request: BanRequest,
    (uid, dry_run, now): (u32, bool, Now),
) -> Result<Answer, Refusal> {
    let (verb, names) = match request {
        BanRequest::List(query) => return Ok(views::list(policy, &query, now)),
        BanRequest::Lift(names) => (Verb::Lift, names),
        BanRequest::Pin(names) => (Verb::Pin, names),
        BanRequest::Forget(names) => (Verb::Forget, names),
        BanRequest::Make(asked) => {
            let made = policy.make_bans(&asked, (uid, dry_run), now, &mut decide(feedback, now));
            return made.map(Answer::Done);
        }
        BanRequest::Withdraw(asked) => return policy.withdraw_bans(&asked, now).map(Answer::Done),
    };
    let (done, _) = policy.change_bans(verb, &names.prefixes, (&Author::User(uid), now))?;
    Ok(Answer::Done(done))
}

/// Carries decisions out, as everybody's are where a gateway runs.
fn decide(
    mut feedback: Option<&mut Feedback>,
    now: Now,
) -> impl FnMut(&mut Policy, &Decision, &Author) -> Outcome {
    move |policy, decision, author| match &mut feedback {
        Some(feedback) => feedback.decide(policy, (decision, author), now),
        None => policy.enforce_ban(decision, author, now),
    }
}
