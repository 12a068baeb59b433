//! Reload: whole or not at all. What can fail is done first; what was done is undone when a later step fails.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;

use super::start::open_door;
use super::{Control, addresses, protect, read, snapshot, uses_echo};
use crate::admin::api::{Done, Refusal};
use crate::base::time::Now;
use crate::config::{Attach, Config};
use crate::kernel::Door;
use crate::kernel::interfaces::Seen;
use crate::listen::sockets::Sockets;
use crate::upstream::echo::Echo;

/// Rules that are held back, named in one message.
const HELD_BACK_NOTES_MAX: usize = 20;

impl Control {
    /// Reads the configuration again and puts it in force.
    pub(super) fn reload(&mut self) -> Result<Done, Refusal> {
        let config = read(self.path.as_deref()).map_err(|errors| {
            Refusal::usage(format!("{errors}\nnothing was changed, the old one serves on"))
        })?;
        let config = Arc::new(config);
        self.check_fixed(&config)?;
        let (old, new) = (addresses(&self.config), addresses(&config));
        check_overlaps(&old, &new)?;
        let added: Vec<_> = new.iter().filter(|address| !old.contains(address)).copied().collect();
        let sockets = Sockets::bind(&added, config.workers).map_err(|error| unchanged(&error))?;
        if uses_echo(&config) && self.echo.is_none() {
            let echo = Echo::bind().map_err(|error| unchanged(&error))?;
            let address = echo.address();
            echo.spawn().map_err(|error| unchanged(&error))?;
            self.echo = Some(address);
        }
        let reloaded = self.reload_kernel(&config);
        self.monitor.watch(self.policy.door.as_ref());
        reloaded?;
        self.policy.publish(Now::read()).map_err(|error| unchanged(&error))?;
        self.shared.snapshot.store(snapshot(&config, self.echo));
        self.config = config;
        self.door.listen(new, sockets).map_err(Refusal::failed)?;
        let held_back = self.policy.held_back_notes(HELD_BACK_NOTES_MAX).into_iter();
        let interfaces = self.policy.door.as_ref().map(Door::interfaces).unwrap_or_default();
        let bare = interfaces.into_iter().filter_map(|Seen { name, note, .. }| {
            Some(format!("{name} is not attached: {}", note?))
        });
        let notes = held_back.chain(self.kernel_note.clone()).chain(bare).collect();
        Ok(Done { done: vec!["configuration reloaded".to_owned()], notes })
    }

    /// Refuses what only a restart can change.
    fn check_fixed(&self, new: &Config) -> Result<(), Refusal> {
        let old = &self.config;
        let fixed = [
            ("workers", old.workers != new.workers),
            ("user", old.user != new.user),
            ("state.dir", old.state != new.state),
            ("admin.socket", old.admin != new.admin),
            ("metrics.listen", old.metrics != new.metrics),
            ("kernel.pins", old.kernel.pins != new.kernel.pins),
        ];
        match fixed.iter().find(|(_, changed)| *changed) {
            Some((key, _)) => Err(Refusal::failed(format!(
                "{key} cannot change while the gateway runs: restart it; nothing was changed"
            ))),
            None => Ok(()),
        }
    }

    /// Puts rules and kernel settings in force, or leaves the old ones.
    fn reload_kernel(&mut self, config: &Config) -> Result<(), Refusal> {
        let now = Now::read();
        let was_open = self.policy.door.is_some();
        self.policy.configure(config, protect::collect(config, self.echo), now);
        if self.detached {
            return Ok(());
        }
        let before = self.policy.door.take();
        let opened = open_door(&mut self.policy, &mut self.pins, config, &self.target);
        let wanted = config.kernel.attach != Attach::Off && !config.kernel.interfaces.is_empty();
        let error = match opened {
            Ok(note) if !was_open || self.policy.door.is_some() || !wanted => {
                self.kernel_note = note;
                return Ok(());
            }
            Ok(note) => note.unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        let old = Arc::clone(&self.config);
        self.policy.configure(&old, protect::collect(&old, self.echo), now);
        if open_door(&mut self.policy, &mut self.pins, &old, &self.target).is_err() {
            self.policy.door = before;
        }
        Err(unchanged(&error))
    }
}

/// Refuses to go from one address to another that it overlaps, as from 0.0.0.0 to 127.0.0.1: the old one has the port
/// until the new one is there.
fn check_overlaps(old: &[SocketAddr], new: &[SocketAddr]) -> Result<(), Refusal> {
    let overlap = |one: &SocketAddr, other: &SocketAddr| {
        one.port() == other.port() && (one.ip().is_unspecified() || other.ip().is_unspecified())
    };
    let moved = new.iter().filter(|address| !old.contains(address)).find_map(|to| {
        let from = old.iter().find(|from| !new.contains(from) && overlap(from, to))?;
        Some((from, to))
    });
    match moved {
        Some((from, to)) => Err(unchanged(&format!(
            "listen: {from} cannot become {to} while the gateway runs: restart it"
        ))),
        None => Ok(()),
    }
}

fn unchanged(error: &impl Display) -> Refusal {
    Refusal::failed(format!("{error}; nothing was changed, the old one serves on"))
}
