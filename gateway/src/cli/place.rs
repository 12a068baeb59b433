//! Which gateway is meant: its configuration names its admin socket, its state and its pins.

use std::path::{Path, PathBuf};

use super::Failure;
use crate::config;

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
            None => Ok(self.places()?.0),
        }
    }

    /// The folder of pins.
    pub(super) fn pins(&self) -> Result<PathBuf, Failure> {
        let (own_socket, pins) = self.places()?;
        match &self.socket {
            Some(socket) if *socket != own_socket => Err(Failure::Usage(format!(
                "{} does not say where the gateway's pins are: name its configuration with --config",
                socket.display()
            ))),
            _ => Ok(pins),
        }
    }

    /// The configuration; `None` for the embedded one.
    pub(super) fn file(&self) -> Option<&Path> {
        match &self.config {
            Some(path) => Some(path.as_path()),
            None => Some(Path::new(USUAL)).filter(|path| path.exists()),
        }
    }

    fn places(&self) -> Result<(PathBuf, PathBuf), Failure> {
        if let Some(path) = self.file() {
            if let Some(places) = config::places(path) {
                return Ok(places);
            }
            anstream::eprintln!(
                "note: {} cannot be read (`gateway check` says why): the usual places are assumed; \
                 --socket names another",
                path.display()
            );
        }
        let embedded = config::embedded().map_err(|errors| Failure::Usage(errors.to_string()))?;
        Ok((embedded.admin.socket, embedded.kernel.pins))
    }
}
