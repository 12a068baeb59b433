//! How the gateway stands, for whoever asks.

use super::{Control, guards, redis, spread, upstreams, views};
use crate::admin::api::{Refusal, Status};
use crate::base::time::{Now, instant};
use crate::observe;

impl Control {
    /// What the workers have counted, and what only the writer of the log knows.
    pub(super) fn counted(&self) -> observe::Snapshot {
        let mut counted = self.shared.counters.snapshot();
        counted.access_log.lost_write_failed = self.shared.access_log.failed();
        counted
    }

    pub(super) fn status(&self) -> Result<Status, Refusal> {
        let proxy = serde_json::to_value(self.counted()).map_err(Refusal::failed)?;
        let path = self.path.as_ref().map(|path| path.display().to_string());
        let lag = self.policy.lag().map(|lag| format!("not up to date: {lag}"));
        let notes = self.kernel_note.clone().into_iter().chain(lag);
        let notes = notes.chain(self.policy.lacking_profiles());
        let kernel = views::kernel(&self.policy, notes);
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: instant().duration_since(self.started).as_secs(),
            config: path.unwrap_or_else(|| "embedded default".to_owned()),
            user: self.target.name.clone(),
            capabilities: self.capabilities.iter().map(|name| (*name).to_owned()).collect(),
            listen: self.door.addresses().iter().map(ToString::to_string).collect(),
            listen_absent: views::absent(self.door.addresses()),
            workers: self.config.workers,
            kernel: kernel.map_err(Refusal::failed)?,
            rules: views::counts(&self.policy),
            lists: self.sources.notes(),
            upstreams: upstreams::views::all(&self.directory, &self.names),
            certificates: self.certificates.views(),
            certificate_notes: self.certificates.notes(),
            guards: guards::views(&self.shared.snapshot.load()),
            feedback: self.feedback_view(),
            redis: self.redis.as_ref().map(redis::view),
            spread: self.others.spread.as_ref().map(spread::view),
            crowdsec: self.others.crowdsec.as_ref().map(|one| one.view(&self.policy, Now::read())),
            proxy,
        })
    }
}
