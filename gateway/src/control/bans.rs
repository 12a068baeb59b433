//! Bans as commands change and list them, and the connections of those that are banned.

use super::policy::bans::commands::Verb;
use super::policy::bans::views;
use super::{Control, Policy, audit};
use crate::admin::api::{Answer, Refusal};
use crate::admin::bans::BanRequest;
use crate::base::time::Now;
use crate::feedback::ban::Author;

/// Subjects whose connections are closed by one order. Beyond it every connection is looked at.
const CLOSED_MAX: usize = 64;

impl Control {
    /// Carries out a command about bans.
    pub(super) fn bans(&mut self, request: BanRequest, uid: u32) -> Result<Answer, Refusal> {
        let answer = answer(&mut self.policy, request, (uid, Now::read()));
        self.note_bans();
        answer
    }

    /// Writes down what happened to bans.
    pub(super) fn note_bans(&mut self) {
        for change in self.policy.take_ban_changes() {
            audit::ban(&self.trail, &change);
        }
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
    request: BanRequest,
    (uid, now): (u32, Now),
) -> Result<Answer, Refusal> {
    let (verb, names) = match request {
        BanRequest::List(query) => return Ok(views::list(policy, &query, now)),
        BanRequest::Lift(names) => (Verb::Lift, names),
        BanRequest::Pin(names) => (Verb::Pin, names),
        BanRequest::Forget(names) => (Verb::Forget, names),
    };
    let (done, _) = policy.change_bans(verb, &names.prefixes, (&Author::User(uid), now))?;
    Ok(Answer::Done(done))
}
