//! Commands that are answered once what they ask for has been done beside the loop of `control`.

use tokio::sync::oneshot;

use super::audit;
use crate::admin::api::{Answer, Refusal};
use crate::observe::audit::Trail;

/// Somebody who waits for an answer.
pub(super) struct Later {
    pub(super) trail: Trail,
    pub(super) uid: u32,
    /// As the audit trail has it.
    pub(super) command: String,
    pub(super) reply: oneshot::Sender<Result<Answer, Refusal>>,
}

impl Later {
    /// Answers, and leaves a trace of it.
    pub(super) fn answer(self, answer: Result<Answer, Refusal>) {
        audit::command(&self.trail, self.uid, &self.command, &answer);
        // Whoever asked may have gone; what was done stays done.
        drop(self.reply.send(answer));
    }
}
