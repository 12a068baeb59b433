//! The only place where objects are wired: start, commands, reload, signals, shutdown.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::admin::api::{
    Answer, Command, Done, ListQuery, PAGE_MAX_RULES, Refusal, Request, Status,
};
use crate::admin::asker::Asker;
use crate::admin::handover::Successor;
use crate::admin::rules::{ListView, Why};
use crate::admin::server;
use crate::auth::Authenticators;
use crate::base::time::{Now, instant};
use crate::config::{self, Config, OnExit};
use crate::kernel::interfaces::Change;
use crate::kernel::netlink::Links;
use crate::kernel::pins::Pins;
use crate::listen;
use crate::observe::audit::Trail;
use crate::request::Snapshot;
use crate::shared::Redis;
use crate::upstream::directory::Directory;

mod access_log;
mod audit;
mod background;
mod bans;
pub mod certificates;
mod crowdsec;
mod feedback;
mod guards;
mod handover;
mod keys;
mod later;
mod metrics;
mod monitor;
mod names;
pub mod offline;
mod others;
pub mod policy;
pub mod privileges;
pub mod protect;
mod redis;
mod reload;
pub mod sessions;
mod signals;
pub mod sources;
mod spread;
mod start;
mod status;
mod upstreams;
pub mod views;

use certificates::Certificates;
use feedback::Feedback;
use handover::Inlets;
use later::Later;
use monitor::Monitor;
use names::Names;
use others::Others;
use policy::Policy;
use privileges::Target;
use sessions::Sessions;
use signals::{Order, Signals};
use sources::{Event, Sources};
use upstreams::health::Checks;

/// How often expiries are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks at the host's addresses and connections.
const PROTECT_EVERY_TICKS: u64 = 5;

/// Why the gateway does not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The configuration has errors.
    #[error("{0}")]
    Configuration(config::Errors),
    /// Something that the configuration asks for cannot be had.
    #[error("{0}")]
    Failed(String),
}

impl RunError {
    fn failed(error: impl ToString) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Starts a gateway, shows how it stands, and serves until it is told to end. Answers what is left in the kernel.
///
/// With `replace` it takes the place of the gateway that runs, if one does.
pub fn run(
    path: Option<&Path>,
    replace: bool,
    announce: impl FnOnce(&Status),
) -> Result<Ended, RunError> {
    let started = start::start(path, replace)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(RunError::failed)?;
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, async {
        let (control, inlets, predecessor) = started.open().await?;
        if let Some(predecessor) = predecessor {
            // Before the one that it has watched ends.
            tell_manager(NotifyState::MainPid(std::process::id()));
            let questions = predecessor.serving().map_err(RunError::failed)?;
            let snapshot = Arc::clone(&control.shared.snapshot);
            tokio::task::spawn_local(handover::decide(questions, snapshot));
        }
        announce(&control.status().map_err(|refusal| RunError::Failed(refusal.error))?);
        tell_manager(NotifyState::Ready);
        control.serve(inlets).await
    });
    drop(local);
    // A file in a folder that does not answer must not keep the gateway from ending.
    runtime.shutdown_background();
    ended
}

/// How a gateway ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing is left in the kernel.
    Detached,
    /// The programs go on enforcing.
    Enforcing(Vec<String>),
    /// Another gateway has taken over.
    Replaced,
}

/// A running gateway.
struct Control {
    /// `None`: the embedded default.
    path: Option<PathBuf>,
    config: Arc<Config>,
    policy: Policy,
    keys: keys::Desk,
    sessions: Sessions,
    sources: Sources,
    names: Names,
    certificates: Certificates,
    authenticators: Arc<Authenticators>,
    redis: Option<Redis>,
    others: Others,
    /// Reloads that were asked for: the first is under way, and has somebody who waits for it unless a signal began it.
    reloads: VecDeque<Option<Later>>,
    pins: Pins,
    /// Somebody took the programs out of the kernel; only a restart brings them back.
    detached: bool,
    door: listen::Door,
    shared: listen::Shared,
    echo: Option<SocketAddr>,
    directory: Directory,
    /// Compiled configurations that requests were still using when another took their place.
    retired: Vec<Arc<Snapshot>>,
    checks: Checks,
    target: Target,
    capabilities: Vec<&'static str>,
    kernel_note: Option<String>,
    monitor: Monitor,
    /// Where changes are written down.
    trail: Trail,
    /// What becomes of what the workers notice about clients.
    feedback: Feedback,
    started: Instant,
}

impl Control {
    async fn serve(mut self, inlets: Inlets) -> Result<Ended, RunError> {
        let mut signals = Signals::new().map_err(RunError::failed)?;
        let (commands, mut inbox) = mpsc::channel(server::QUEUE_COMMANDS);
        let (successors, mut successor) = mpsc::channel(1);
        let asker = Asker::new(commands, successors, self.monitor.news());
        let mut serving = inlets.serve(&asker)?;
        let links = Links::listen().inspect_err(|error| {
            tracing::warn!(%error, "interfaces that come and go are noticed once a second only");
        });
        let links = links.ok();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut count = 0u64;
        let replaced = loop {
            tokio::select! {
                Some(command) = inbox.recv() => {
                    let drain = command.request == Request::Drain;
                    self.command(command);
                    if drain {
                        break false;
                    }
                    self.recheck();
                }
                Some(stream) = successor.recv() => {
                    let inlets = (&inlets, &mut serving, &asker);
                    if self.hand_over(Successor::new(stream), inlets).await? {
                        break true;
                    }
                }
                () = self.feedback.next() => self.take_reports(),
                event = self.sources.next() => {
                    self.done_beside(event);
                    self.recheck();
                }
                store = self.certificates.changed() => {
                    self.renew_certificates(store);
                }
                () = self.others.arrived() => {
                    self.hear();
                    self.recheck();
                    // There may be more at once, and others want something, too.
                    tokio::task::yield_now().await;
                }
                () = changed(links.as_ref()) => self.look_after_interfaces(),
                _ = ticks.tick() => {
                    count += 1;
                    self.tick(count.is_multiple_of(PROTECT_EVERY_TICKS));
                    self.recheck();
                    if let Some(worker) = self.door.lost_worker() {
                        return Err(RunError::Failed(format!(
                            "worker {worker} has died, see above; the kernel goes on enforcing, \
                             restart the gateway"
                        )));
                    }
                }
                order = signals.next() => match order {
                    Order::Reload => self.queue_reload(None),
                    Order::Reopen => self.reopen_logs(),
                    Order::End => break false,
                },
            }
        };
        drop(serving);
        self.end(&mut signals, replaced).await
    }

    /// Lets requests finish, then leaves the kernel as the configuration says. A second signal does not wait.
    async fn end(self, signals: &mut Signals, replaced: bool) -> Result<Ended, RunError> {
        let Self { config, policy, mut door, shared, trail, authenticators, .. } = self;
        tracing::info!("ending: no new connections, requests in flight finish");
        if !replaced {
            tell_manager(NotifyState::Stopping);
        }
        door.drain().map_err(RunError::failed)?;
        let joined = tokio::task::spawn_blocking(|| door.join());
        tokio::select! {
            joined = handover::ticking(&authenticators, joined) => {
                joined.map_err(RunError::failed)?.map_err(RunError::failed)?;
            }
            () = signals.end() => tracing::warn!("requests in flight were cut off"),
        }
        let log = shared.access_log;
        let finish = move || (log.finish(), trail.finish());
        tokio::task::spawn_blocking(finish).await.map_err(RunError::failed)?;
        if replaced {
            return Ok(Ended::Replaced);
        }
        if let Err(error) = std::fs::remove_file(&config.admin.socket) {
            tracing::debug!(%error, "the admin socket stays; the next start replaces it");
        }
        match policy.door {
            None => Ok(Ended::Detached),
            Some(door) if config.kernel.on_exit == OnExit::Detach => {
                door.detach().map_err(RunError::failed)?;
                Ok(Ended::Detached)
            }
            Some(door) => {
                let on = door.running().into_iter().filter(|(_, mode)| mode.is_some());
                Ok(Ended::Enforcing(on.map(|(name, _)| name).collect()))
            }
        }
    }

    fn command(&mut self, command: Command) {
        let Command { request, uid, reply } = command;
        let told = request.changes().then(|| request.to_string());
        let look = self.look(&request);
        match (request, told) {
            (Request::Reload, Some(command)) => {
                self.queue_reload(Some(Later { trail: self.trail.clone(), uid, command, reply }));
            }
            (Request::Keys(request), _) => {
                let with = (&*self.config, self.redis.as_ref());
                self.keys.begin(request, with, (&self.trail, uid, reply));
            }
            (Request::Bans(request), told) => {
                let answer = self.bans(request, uid);
                if let Some(command) = told {
                    audit::command(&self.trail, uid, &command, &answer);
                }
                // Whoever asked may have gone; what was done stays done.
                drop(reply.send(answer));
            }
            (Request::RefreshList(name), Some(command)) => {
                let later = Later { trail: self.trail.clone(), uid, command, reply };
                self.sources.refresh(&self.policy, &name.name, later, instant());
            }
            (request, told) => {
                let answer = self.answer(request);
                if let Some(command) = told {
                    audit::command(&self.trail, uid, &command, &answer);
                }
                match look {
                    Some(look) => self.monitor.complete(answer, look, reply),
                    // Whoever asked may have gone; what was done stays done.
                    None => drop(reply.send(answer)),
                }
            }
        }
    }

    /// Takes over what was done beside the loop.
    fn done_beside(&mut self, event: Event) {
        let now = Now::read();
        match event {
            Event::Reload(prepared) => self.end_reload(*prepared),
            Event::Name(found) => self.take_name(*found),
            Event::File(event) => self.sources.take_file(&mut self.policy, *event, now),
            Event::Feed(event) => {
                if self.sources.ended(&event) {
                    // The version may deny those that it came from.
                    self.protect(now);
                    self.sources.take_feed(&mut self.policy, *event, now);
                }
                self.sources.tick(instant());
            }
        }
    }

    /// The lists, with what is wrong with those of the configuration.
    fn lists(&self) -> Vec<ListView> {
        let mut lists = self.policy.list_views();
        self.sources.annotate(&mut lists);
        lists
    }

    fn answer(&mut self, request: Request) -> Result<Answer, Refusal> {
        let now = Now::read();
        if request.changes() {
            // Whoever connected to a management port a moment ago must not lock themselves out.
            self.protect_everybody(now);
        }
        match request {
            Request::Status => Ok(Answer::Status(Box::new(self.status()?))),
            Request::List(query) => {
                let limit = query.limit.min(PAGE_MAX_RULES);
                views::list(&self.policy, &ListQuery { limit, ..query }, now)
            }
            Request::Lists => Ok(Answer::Lists { lists: self.lists() }),
            Request::AcceptList(list) => {
                self.sources.accept(&mut self.policy, &list.name, now).map(Answer::Done)
            }
            Request::RemoveList(remove) => self.policy.remove_list(&remove, now).map(Answer::Done),
            Request::Why(address) => {
                let why = views::why(&self.policy, address, now)?;
                let scores = self.feedback.known(address, now);
                Ok(Answer::Why(Box::new(Why { scores, ..why })))
            }
            Request::Events(query) => self.events(&query),
            Request::Metrics => self.metrics(),
            Request::Top(_) => self.top(),
            Request::Add(add) => self.policy.add(&add, now).map(Answer::Done),
            Request::PutList(put) if self.sources.has(&put.header.name) => {
                let name = &put.header.name;
                Err(Refusal::failed(format!(
                    "the configuration has a list {name}: choose another name with --list"
                )))
            }
            Request::PutList(put) => self.policy.put_list(*put, now).map(Answer::Done),
            Request::Remove(remove) => self.policy.remove(&remove, now).map(Answer::Done),
            Request::Confirm => self.policy.confirm(now).map(Answer::Done),
            Request::Reload | Request::RefreshList(_) | Request::Keys(_) | Request::Bans(_) => {
                Err(Refusal::failed("this is answered later"))
            }
            Request::Detach => self.detach().map(Answer::Done),
            Request::Drain => Ok(Answer::Done(self.about_to_drain())),
        }
    }

    fn tick(&mut self, protect: bool) {
        let now = Now::read();
        self.sources.tick(instant());
        self.names.tick(&self.config, instant());
        self.certificates.tick(instant());
        self.keys.tick(now);
        self.authenticators.tick(now);
        self.feedback.tick(now);
        match self.policy.expire(now) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "rules ended"),
            Err(error) => tracing::error!(%error, "rules that ended could not be taken out"),
        }
        self.note_bans();
        self.sources.make_use_of_room(&mut self.policy, now);
        self.look_after_interfaces();
        self.free_retired();
        self.directory.groups().for_each(|group| group.release(now));
        if protect {
            self.protect(now);
        }
        self.look_again_at_others(now);
    }

    fn look_after_interfaces(&mut self) {
        if let Some(door) = &mut self.policy.door {
            door.look_after(instant()).iter().for_each(Change::log);
        }
    }

    /// Looks for protected addresses anew, before somebody's change.
    fn protect_everybody(&mut self, now: Now) {
        self.sessions.look_all(&self.config.kernel.management_ports);
        self.refresh_protected(now);
    }

    fn protect(&mut self, now: Now) {
        self.sessions.look(&self.config.kernel.management_ports, now.boot);
        self.refresh_protected(now);
    }

    fn refresh_protected(&mut self, now: Now) {
        let config = (&*self.config, self.echo);
        let (peers, directory) = (self.peers(), &self.directory);
        let protected = protect::gather(config, peers, directory, &self.sessions);
        protect::refresh(&mut self.policy, protected, now);
    }

    fn about_to_drain(&self) -> Done {
        let active = self.shared.counters.snapshot().requests.active;
        let limit = humantime::format_duration(self.config.bounds.drain_timeout);
        let done = format!(
            "no new connections from now on; {active} requests in flight have {limit} to finish"
        );
        Done { done: vec![done], notes: Vec::new() }
    }

    /// Whose addresses were looked up, and for what.
    fn peers(&self) -> impl Iterator<Item = (String, IpAddr)> {
        let looked_up = self.sources.peers().chain(self.names.peers());
        let looked_up = looked_up.chain(self.authenticators.peers()).chain(self.others.peers());
        looked_up.chain(redis::peers(self.redis.as_ref()))
    }

    fn detach(&mut self) -> Result<Done, Refusal> {
        let Some(door) = &self.policy.door else {
            let notes = vec!["the running gateway has no kernel door open".to_owned()];
            return Ok(Done { done: Vec::new(), notes });
        };
        let interfaces = door.detach().map_err(Refusal::failed)?;
        self.policy.door = None;
        self.monitor.watch(None);
        self.detached = true;
        self.kernel_note = Some("detached on request; a restart opens it again".to_owned());
        Ok(Done {
            done: interfaces.iter().map(|interface| format!("{interface}: detached")).collect(),
            notes: vec!["user space goes on enforcing; a restart attaches again".to_owned()],
        })
    }
}

async fn changed(links: Option<&Links>) {
    match links {
        Some(links) => links.changed().await,
        None => std::future::pending().await,
    }
}

/// Tells systemd, if it asked to be told (sd_notify(3)).
fn tell_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

fn addresses(config: &Config) -> Vec<SocketAddr> {
    config.listen.iter().map(|listener| listener.address).collect()
}

fn read(path: Option<&Path>) -> Result<Config, config::Errors> {
    path.map_or_else(config::embedded, config::read)
}
