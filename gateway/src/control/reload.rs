//! Reload: whole or not at all. What can fail is done first; what was done is undone when a later step fails.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::certificates;
use super::later::Later;
use super::names::{Lookup, look_up_new};
use super::sources::files::{self, Reading};
use super::sources::{Event, Sources};
use super::start::open_door;
use super::upstreams::uses_echo;
use super::{Control, access_log, addresses, background, others, protect, read, redis};
use crate::admin::api::{Answer, Done, Refusal};
use crate::auth::Authenticators;
use crate::base::time::Now;
use crate::config::{Attach, Config};
use crate::kernel::Door;
use crate::kernel::interfaces::Seen;
use crate::limit::{Limits, no_room};
use crate::listen::sockets::{Inherited, Sockets};
use crate::observe::access_log::sink::Sink;
use crate::route::Table;
use crate::shared::Redis;
use crate::tls::store::Store;
use crate::upstream::echo::Echo;

/// Reloads that wait for one to end. Whoever signals once more will be served by the last of them.
const RELOADS_MAX: usize = 16;
/// Time to read the configuration with its files.
pub(super) const READ_MAX: Duration = Duration::from_secs(45);
/// Rules that are held back, named in one message.
const HELD_BACK_NOTES_MAX: usize = 20;

/// A configuration with its files as they were read.
pub(super) struct Prepared {
    config: Config,
    routes: Table,
    authenticators: Authenticators,
    limits: Limits,
    redis: Option<Redis>,
    secrets: others::Secrets,
    files: Vec<Reading>,
    log: Option<Sink>,
    certificates: Store,
    /// Names of endpoints that nothing was known about.
    found: Vec<Lookup>,
}

impl Control {
    /// Has the configuration read again and put in force, for somebody or for a signal.
    pub(super) fn queue_reload(&mut self, later: Option<Later>) {
        if self.reloads.len() >= RELOADS_MAX {
            if let Some(later) = later {
                later.answer(Err(Refusal::failed("too many wait for a reload: try again")));
            }
            return;
        }
        self.reloads.push_back(later);
        if self.reloads.len() == 1 {
            self.begin_reload();
        }
    }

    /// Reads beside the loop: files are long, and a folder may be one that does not answer.
    fn begin_reload(&self) {
        let (path, user) = (self.path.clone(), self.target.name.clone());
        let (events, before) = (self.sources.sender(), self.certificates.store().clone());
        let (known, authenticators) = (self.names.resolved(), Arc::clone(&self.authenticators));
        let (redis, snapshot) = (self.redis.clone(), self.shared.snapshot.load_full());
        let (before_config, secrets) = (Arc::clone(&self.config), self.others.secrets.clone());
        tokio::task::spawn_local(async move {
            let reading = background::begin("reload", move || {
                let config = read(path.as_deref()).map_err(|errors| unchanged_usage(&errors))?;
                let files = files::read_all(&config, &user);
                let log = access_log::open(&config, &user).map_err(|error| unchanged(&error))?;
                let certificates = certificates::read_again(&config, &before, &user);
                let certificates = certificates.map_err(|errors| unchanged_usage(&errors))?;
                let routes = Table::new(&config.routes);
                let redis = redis::made(&config, redis.as_ref());
                let redis = redis.map_err(|error| unchanged_usage(&error))?;
                let secrets = others::secrets(&config, Some((&before_config, &secrets)));
                let secrets = secrets.map_err(|error| unchanged_usage(&error))?;
                let authenticators = Authenticators::new(&config, &authenticators, redis.as_ref());
                let authenticators = authenticators.map_err(|error| unchanged_usage(&error))?;
                let limits =
                    Limits::new(&config, config.workers, snapshot.limits(), redis.as_ref());
                let limits = limits.map_err(|error| unchanged(&no_room(&error)))?;
                authenticators.open().map_err(|error| unchanged(&error))?;
                authenticators.begin().map_err(|error| unchanged(&error))?;
                let found = Vec::new();
                Ok(Prepared {
                    config,
                    routes,
                    authenticators,
                    limits,
                    redis,
                    secrets,
                    files,
                    log,
                    certificates,
                    found,
                })
            });
            let reading = async {
                reading
                    .map_err(|error| unchanged(&error))?
                    .await
                    .map_err(|_| unchanged(&"reading the configuration has failed, see the log"))?
            };
            let mut prepared = match timeout(READ_MAX, reading).await {
                Ok(prepared) => prepared,
                Err(_) => Err(unchanged(&format!(
                    "the configuration and its files could not be read within {} s",
                    READ_MAX.as_secs()
                ))),
            };
            if let Ok(Prepared { config, found, redis, .. }) = &mut prepared {
                *found = look_up_new(config, |name| known.contains(name)).await;
                if let Some(redis) = redis
                    && redis.start().is_ok()
                {
                    redis.looked_at().await;
                }
            }
            drop(events.send(Event::Reload(Box::new(prepared))).await);
        });
    }

    /// Puts in force what was read, and begins the next reload.
    pub(super) fn end_reload(&mut self, prepared: Result<Prepared, Refusal>) {
        let answer = prepared.and_then(|prepared| {
            let reloaded = self.reload(prepared);
            if reloaded.is_err() {
                // Those of the configuration that was not put in force are nobody's.
                self.names.configure(&self.config, &mut self.directory);
            }
            reloaded
        });
        match (self.reloads.pop_front().flatten(), answer) {
            (Some(later), answer) => later.answer(answer.map(Answer::Done)),
            (None, Ok(_)) => tracing::info!("configuration reloaded"),
            (None, Err(refusal)) => {
                tracing::error!(error = refusal.error, "configuration not reloaded");
            }
        }
        if !self.reloads.is_empty() {
            self.begin_reload();
        }
    }

    /// Puts a configuration in force.
    fn reload(&mut self, prepared: Prepared) -> Result<Done, Refusal> {
        let Prepared { config, routes, authenticators, limits, redis, .. } = prepared;
        let Prepared { files, log, certificates, found, secrets, .. } = prepared;
        let config = Arc::new(config);
        self.check_fixed(&config)?;
        Sources::check(&self.policy, &config, &files)
            .map_err(|refusal| unchanged_usage(&refusal.error))?;
        let compiled = self.certificates.compile(&config, certificates);
        let compiled = compiled.map_err(|error| unchanged(&error))?;
        let (old, new) = (addresses(&self.config), addresses(&config));
        check_overlaps(&old, &new)?;
        let added: Vec<_> = new.iter().filter(|address| !old.contains(address)).copied().collect();
        let sockets = Sockets::bind(&added, config.workers, &mut Inherited::default());
        let sockets = sockets.map_err(|error| unchanged(&error))?;
        if uses_echo(&config) && self.echo.is_none() {
            let echo = Echo::bind().map_err(|error| unchanged(&error))?;
            let address = echo.address();
            echo.spawn().map_err(|error| unchanged(&error))?;
            self.echo = Some(address);
        }
        self.names.learn(&config, found);
        let reloaded = self.reload_kernel(&config, redis.as_ref());
        self.monitor.watch(self.policy.door.as_ref());
        reloaded?;
        self.policy.publish(Now::read()).map_err(|error| unchanged(&error))?;
        self.certificates.configure(&config, compiled);
        self.shared.access_log.switch(log);
        self.config = config;
        self.feedback.configure(&self.config, &self.policy, Now::read());
        self.authenticators = Arc::new(authenticators);
        self.redis = redis;
        redis::exchange(self.redis.as_ref(), &self.shared.snapshot);
        self.others.configure(&self.config, self.redis.as_ref(), secrets);
        self.names.configure(&self.config, &mut self.directory);
        self.publish_snapshot(Arc::new(routes), Arc::new(limits));
        self.configure_checks();
        let about_lists =
            self.sources.configure(&mut self.policy, (&self.config, files), Now::read());
        self.door.listen(new, sockets).map_err(Refusal::failed)?;
        let held_back = self.policy.held_back_notes(HELD_BACK_NOTES_MAX).into_iter();
        let interfaces = self.policy.door.as_ref().map(Door::interfaces).unwrap_or_default();
        let bare = interfaces.into_iter().filter(|seen| seen.mode.is_none());
        let bare = bare.filter_map(|Seen { name, note, .. }| {
            Some(format!("{name} is not attached: {}", note?))
        });
        let notes = held_back.chain(self.kernel_note.clone()).chain(bare).chain(about_lists);
        let notes = notes.chain(self.certificates.notes()).chain(self.policy.lacking_profiles());
        let notes = notes.collect();
        Ok(Done { done: vec!["configuration reloaded".to_owned()], notes })
    }

    /// Refuses what only a restart can change.
    fn check_fixed(&self, new: &Config) -> Result<(), Refusal> {
        let old = &self.config;
        let fixed = [
            ("workers", old.workers != new.workers),
            ("user", old.user != new.user),
            ("state.dir", old.state.dir != new.state.dir),
            ("admin.socket", old.admin != new.admin),
            ("audit", old.audit != new.audit),
            ("metrics.listen", old.metrics.listen != new.metrics.listen),
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
    pub(super) fn reload_kernel(
        &mut self,
        config: &Config,
        new: Option<&Redis>,
    ) -> Result<(), Refusal> {
        let now = Now::read();
        let was_open = self.policy.door.is_some();
        self.sessions.look_all(&config.kernel.management_ports);
        let protected = |config: &Config| {
            let peers = self.sources.peers().chain(self.names.peers());
            let peers = peers.chain(self.authenticators.peers()).chain(self.others.peers());
            let peers = peers.chain(redis::peers(self.redis.as_ref())).chain(redis::peers(new));
            protect::gather((config, self.echo), peers, &self.directory, &self.sessions)
        };
        self.policy.configure(config, protected(config), now);
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
        self.policy.configure(&old, protected(&old), now);
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

fn unchanged_usage(error: &impl Display) -> Refusal {
    Refusal::usage(format!("{error}\nnothing was changed, the old one serves on"))
}

fn unchanged(error: &impl Display) -> Refusal {
    Refusal::failed(format!("{error}; nothing was changed, the old one serves on"))
}
