//! Which gateway is meant: its configuration names its admin socket, its state and its pins.

use std::path::{Path, PathBuf};

use super::Failure;
use crate::config::{self, Config};

/// Where a packaged gateway has its configuration.
const USUAL: &str = "/etc/gateway/gateway.yaml";

/// What the command line said about it.
pub(super) struct Place {
    /// `--config`.
    pub(super) config: Option<PathBuf>,
    /// `--socket`.
    pub(super) socket: Option<PathBuf>,
}

impl Place {
    /// The admin socket.
    pub(super) fn socket(&self) -> Result<PathBuf, Failure> {
        match &self.socket {
            Some(socket) => Ok(socket.clone()),
            None => Ok(self.read()?.admin.socket),
        }
    }

    /// The folder of pins.
    pub(super) fn pins(&self) -> Result<PathBuf, Failure> {
        Ok(self.read()?.kernel.pins)
    }

    /// The configuration, or the embedded one where it cannot be read: a gateway must be reachable, and its programs
    /// removable, also while its file is broken.
    fn read(&self) -> Result<Config, Failure> {
        let path = match &self.config {
            Some(path) => Some(path.as_path()),
            None => Some(Path::new(USUAL)).filter(|path| path.exists()),
        };
        let embedded = || config::embedded().map_err(|errors| Failure::Usage(errors.to_string()));
        let Some(path) = path else { return embedded() };
        config::read(path).or_else(|errors| {
            anstream::eprintln!(
                "note: {} has {} errors (`gateway check {0}` shows them); \
                 the usual places are assumed",
                path.display(),
                errors.count()
            );
            embedded()
        })
    }
}
