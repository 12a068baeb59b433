//! Commands that are answered once what they ask for has been done beside the loop of `control`.

use tokio::sync::oneshot;

use crate::admin::api::{Answer, Refusal};

/// Somebody who waits for an answer.
pub(super) struct Later {
    pub(super) uid: u32,
    /// As the audit trail has it.
    pub(super) command: String,
    pub(super) reply: oneshot::Sender<Result<Answer, Refusal>>,
}

impl Later {
    /// Answers, and leaves a trace of it.
    pub(super) fn answer(self, answer: Result<Answer, Refusal>) {
        audit(self.uid, &self.command, &answer);
        // Whoever asked may have gone; what was done stays done.
        drop(self.reply.send(answer));
    }
}

/// Leaves a trace of a command and of what became of it.
pub(super) fn audit(uid: u32, command: &str, answer: &Result<Answer, Refusal>) {
    let error = answer.as_ref().err().map(|refusal| refusal.error.as_str());
    tracing::info!(target: "audit", uid, command, refused = error, "command");
}
