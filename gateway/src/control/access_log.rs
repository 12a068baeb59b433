//! Opens what the access log is written to, as the user that the daemon is and will have to open it again as.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt as _, lchown};

use nix::unistd::Uid;

use super::Control;
use super::privileges::Target;
use crate::config::{Config, Destination};
use crate::observe::access_log::sink::Sink;

/// Makes the folder of the log if it is not there, for `target`, whom nobody else lets make one in the system's.
pub(super) fn prepare(config: &Config, target: &Target) -> Result<(), String> {
    let Some(Destination::File(path)) = destination(config) else { return Ok(()) };
    let Some(folder) = path.parent().filter(|folder| !folder.exists()) else { return Ok(()) };
    let made = DirBuilder::new().mode(0o750).create(folder).and_then(|()| {
        match Uid::effective().is_root() {
            true => lchown(folder, Some(target.uid), Some(target.gid)),
            false => Ok(()),
        }
    });
    made.map_err(|error| format!("access_log.path: {} cannot be made: {error}", folder.display()))
}

/// Opens what the configuration names; `user` is who does.
pub(super) fn open(config: &Config, user: &str) -> Result<Option<Sink>, String> {
    let Some(destination) = destination(config) else { return Ok(None) };
    let (opened, name) = match destination {
        Destination::Stdout => (Sink::stdout(), "stdout".to_owned()),
        Destination::Stderr => (Sink::stderr(), "stderr".to_owned()),
        Destination::File(path) => (Sink::open(path), path.display().to_string()),
    };
    opened.map(Some).map_err(|error| {
        let help = match error.raw_os_error() {
            Some(libc::ENXIO) => "nobody reads from that pipe".to_owned(),
            _ => format!("the user {user} must be allowed to write it, also after a rotation"),
        };
        format!("access_log.path: {name} cannot be opened: {error}; {help}")
    })
}

fn destination(config: &Config) -> Option<&Destination> {
    config.access_log.as_ref().map(|log| &log.destination)
}

impl Control {
    /// Opens the logs again, because somebody has moved the files away. Beside the loop: a folder may not answer.
    pub(super) fn reopen_logs(&self) {
        self.trail.reopen();
        let (config, user) = (std::sync::Arc::clone(&self.config), self.target.name.clone());
        let log = self.shared.access_log.clone();
        drop(tokio::task::spawn_blocking(move || match open(&config, &user) {
            Ok(sink) => {
                log.switch(sink);
                tracing::info!("access log opened again");
            }
            Err(error) => tracing::error!(error, "the access log goes on where it was"),
        }));
    }
}
