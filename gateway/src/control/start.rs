//! From a configuration to a running gateway, in the one order that works: whatever needs privileges first, then their
//! end, then threads.

use std::collections::VecDeque;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Uid;

use super::certificates::{self, Certificates};
use super::feedback::Feedback;
use super::handover::Inlets;
use super::monitor::Monitor;
use super::names::{Names, look_up_new};
use super::others::{self, Others};
use super::policy::Policy;
use super::privileges::{self, Target};
use super::reload::READ_MAX;
use super::sessions::Sessions;
use super::sources::{Sources, files};
use super::upstreams::health::Checks;
use super::upstreams::{snapshot, uses_echo};
use super::{Control, RunError, access_log, addresses, keys, protect, read, redis};
use crate::admin::handover::{Inheritance, Predecessor};
use crate::admin::server;
use crate::auth::Authenticators;
use crate::base::folder;
use crate::base::time::{Now, instant};
use crate::config::{AUDIT_FILES, Attach, Config};
use crate::feedback::Reporter;
use crate::kernel::pins::Pins;
use crate::kernel::{Door, DoorError, Opened, attach, lists};
use crate::limit::{Limits, no_room};
use crate::listen::sockets::{Inherited, Sockets, bind_one};
use crate::listen::{self, Shared};
use crate::observe::Registry;
use crate::observe::access_log::AccessLog;
use crate::observe::access_log::sink::Sink;
use crate::observe::audit::{self, Trail};
use crate::request::{Compiled, Routes};
use crate::shared::Redis;
use crate::store::{self, Store, StoreError};
use crate::tls::store as tls;
use crate::upstream::directory::Directory;
use crate::upstream::echo::Echo;

/// Everything that needed privileges, before any thread exists.
pub(super) struct Started {
    path: Option<PathBuf>,
    config: Arc<Config>,
    certificates: tls::Store,
    authenticators: Authenticators,
    limits: Limits,
    redis: Option<Redis>,
    secrets: others::Secrets,
    policy: Policy,
    sessions: Sessions,
    pins: Pins,
    sockets: Sockets,
    inlets: Inlets,
    predecessor: Option<Predecessor>,
    echo: Option<Echo>,
    log: Option<Sink>,
    trail: audit::Sink,
    target: Target,
    capabilities: Vec<&'static str>,
    kernel_note: Option<String>,
}

/// Binds, opens, loads and attaches, then drops privileges. With `replace`, what another gateway has bound, opened and
/// loaded becomes this one's.
pub(super) fn start(path: Option<&Path>, replace: bool) -> Result<Started, RunError> {
    let config = Arc::new(read(path).map_err(RunError::Configuration)?);
    let path = path.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    raise_descriptor_limit();
    let target = privileges::target(config.user.as_deref()).map_err(RunError::failed)?;
    // Those that only root may read are read now, and stay as they are until they change.
    let certificates =
        certificates::read(&config, &target.name).map_err(RunError::Configuration)?;
    let redis = redis::made(&config, None).map_err(RunError::Failed)?;
    let secrets = others::secrets(&config, None).map_err(RunError::Failed)?;
    let authenticators = Authenticators::new(&config, &Authenticators::default(), redis.as_ref());
    let authenticators = authenticators.map_err(RunError::Failed)?;
    let limits = Limits::new(&config, config.workers, &Limits::default(), redis.as_ref());
    let limits = limits.map_err(|error| RunError::Failed(no_room(&error)))?;
    let inheritance = match replace {
        true => Inheritance::ask(&config.admin.socket).map_err(RunError::failed)?,
        false => None,
    };
    let Bound { sockets, inlets, mut predecessor } = bind(&config, inheritance, target.uid)?;
    let echo = uses_echo(&config).then(Echo::bind).transpose().map_err(RunError::failed)?;
    let ours = [&store::FILES[..], &AUDIT_FILES].concat();
    let is_given = folder::prepare(&config.state.dir, (target.uid, target.gid), &ours)
        .map_err(|error| RunError::Failed(format!("state.dir: {error}")))?;
    access_log::prepare(&config, &target).map_err(RunError::failed)?;
    if let Some(predecessor) = &mut predecessor {
        predecessor.release().map_err(RunError::failed)?;
    }
    let store = open_store(&config.state.dir).map_err(RunError::failed)?;
    authenticators.open().and_then(|()| authenticators.begin()).map_err(RunError::Failed)?;
    let mut sessions = Sessions::default();
    sessions.look_all(&config.kernel.management_ports);
    let protected = protect::collect(&config, echo.as_ref().map(Echo::address), [], &sessions);
    let mut pins = Pins::at(&config.kernel.pins);
    let store = (store, lists::seats(&pins));
    let mut policy =
        Policy::new(&config, protected, store, Now::read()).map_err(RunError::failed)?;
    let kernel_note = open_door(&mut policy, &mut pins, &config, &target)?;
    policy.publish(Now::read()).map_err(RunError::failed)?;
    if Uid::effective().is_root() {
        give_away(&policy, &config, &target)?;
        if is_given {
            let (dir, Target { uid, gid, .. }) = (&config.state.dir, &target);
            chown(dir, Some(*uid), Some(*gid)).map_err(RunError::failed)?;
        }
    }
    let capabilities =
        privileges::drop_to(&target, policy.door.is_some()).map_err(RunError::failed)?;
    let log = access_log::open(&config, &target.name).map_err(RunError::failed)?;
    let trail = super::audit::open(&config).map_err(RunError::failed)?;
    Ok(Started {
        secrets,
        path,
        config,
        certificates,
        authenticators,
        limits,
        redis,
        policy,
        sessions,
        pins,
        sockets,
        inlets,
        predecessor,
        echo,
        log,
        trail,
        target,
        capabilities,
        kernel_note,
    })
}

impl Started {
    /// Starts the threads. Runs inside of the runtime of `control`.
    pub(super) async fn open(mut self) -> Result<(Control, Inlets, Option<Predecessor>), RunError> {
        // As the user that it is now, who will have to read them again.
        let readings = files::read_first(&self.config, &self.target.name, READ_MAX).await;
        let mut sources = Sources::new(&self.target.name);
        sources.configure(&mut self.policy, (&*self.config, readings), Now::read());
        self.redis.as_ref().map_or(Ok(()), Redis::start).map_err(RunError::failed)?;
        let address = self.echo.as_ref().map(Echo::address);
        let mut names = self.look_up(&sources).await;
        self.echo.map_or(Ok(()), Echo::spawn).map_err(RunError::failed)?;
        self.certificates.look_again(&self.target.name);
        let mut certificates = Certificates::new(&self.target.name);
        let compiled = certificates.compile(&self.config, self.certificates);
        certificates.configure(&self.config, compiled.map_err(RunError::Failed)?);
        let counters = Registry::new(self.config.workers);
        let mut directory = Directory::new(self.config.workers);
        names.configure(&self.config, &mut directory);
        let own = (address, &counters);
        let authenticators = Arc::new(self.authenticators);
        let compiled = Compiled {
            config: Arc::clone(&self.config),
            routes: Arc::new(Routes::new(&self.config, &counters)),
            authenticators: Arc::clone(&authenticators),
            limits: Arc::new(self.limits),
        };
        let first = snapshot(compiled, &mut directory, certificates.clients(), own);
        let mut checks = Checks::new();
        checks.configure(&self.config, &directory, certificates.clients());
        let (reporter, reports) = Reporter::new();
        let shared = Shared {
            snapshot: Arc::new(ArcSwap::new(first)),
            listeners: certificates.listeners(),
            rules: self.policy.classifier(),
            counters,
            access_log: AccessLog::start(self.log).map_err(RunError::failed)?,
            reporter,
        };
        redis::exchange(self.redis.as_ref(), &shared.snapshot);
        let door = serve(self.sockets, &shared, (&authenticators, self.predecessor.as_mut()))?;
        let mut monitor = Monitor::new();
        monitor.watch(self.policy.door.as_ref());
        let control = Control {
            others: Others::start(&self.config, self.redis.as_ref(), self.secrets),
            feedback: Feedback::new(reports, &self.config, &self.policy),
            path: self.path,
            keys: keys::Desk::new(&authenticators, &self.config),
            config: self.config,
            policy: self.policy,
            sessions: self.sessions,
            sources,
            names,
            certificates,
            authenticators,
            redis: self.redis,
            reloads: VecDeque::new(),
            pins: self.pins,
            detached: false,
            door,
            shared,
            echo: address,
            directory,
            retired: Vec::new(),
            checks,
            target: self.target,
            capabilities: self.capabilities,
            kernel_note: self.kernel_note,
            monitor,
            trail: Trail::start(self.trail).map_err(RunError::failed)?,
            started: instant(),
        };
        Ok((control, self.inlets, self.predecessor))
    }

    /// Finds the endpoints that have names, and protects them before anything is sent there. Whoever cannot be found
    /// is looked up again later.
    async fn look_up(&mut self, sources: &Sources) -> Names {
        let mut names = Names::new(sources.sender());
        names.restore(&self.config);
        names.learn(&self.config, look_up_new(&self.config, |_| false).await);
        names.tell_restored();
        if let Some(redis) = &self.redis {
            redis.looked_at().await;
        }
        let echo = self.echo.as_ref().map(Echo::address);
        let peers = sources.peers().chain(names.peers()).chain(redis::peers(self.redis.as_ref()));
        let protected = protect::collect(&self.config, echo, peers, &self.sessions);
        protect::refresh(&mut self.policy, protected, Now::read());
        names
    }
}

/// Starts the workers, who know what the predecessor has accepted. It is asked as late as can be: it accepts no more.
fn serve(
    sockets: Sockets,
    shared: &Shared,
    (authenticators, predecessor): (&Authenticators, Option<&mut Predecessor>),
) -> Result<listen::Door, RunError> {
    let accepted = predecessor.map(Predecessor::accepted).transpose().map_err(RunError::failed)?;
    accepted.iter().for_each(|accepted| authenticators.take_over(accepted));
    listen::Door::open(sockets, shared).map_err(RunError::failed)
}

/// What is listened on.
struct Bound {
    sockets: Sockets,
    inlets: Inlets,
    predecessor: Option<Predecessor>,
}

/// Binds whatever is not inherited from a running gateway or from the service manager.
fn bind(config: &Config, inheritance: Option<Inheritance>, user: u32) -> Result<Bound, RunError> {
    let (tcp, admin, predecessor) = match inheritance {
        Some(Inheritance { tcp, admin, predecessor }) => (tcp, admin, Some(predecessor)),
        None => (from_manager(), None, None),
    };
    let mut inherited = Inherited::new(tcp);
    let sockets = Sockets::bind(&addresses(config), config.workers, &mut inherited);
    let sockets = sockets.map_err(RunError::failed)?;
    let metrics = match config.metrics.listen {
        Some(address) => match inherited.take(address).map_err(RunError::failed)?.pop() {
            Some(socket) => Some(socket),
            None => Some(bind_one(address).map_err(RunError::failed)?),
        },
        None => None,
    };
    let admin = match admin {
        Some(admin) => admin,
        None => server::bind(&config.admin.socket, user).map_err(RunError::failed)?,
    };
    let left: Vec<String> = inherited.left().iter().map(ToString::to_string).collect();
    if predecessor.is_none() && !left.is_empty() {
        let sockets = left.join(", ");
        tracing::warn!(sockets, "the service manager passes sockets that `listen` does not name");
    }
    Ok(Bound { sockets, inlets: Inlets { admin, metrics }, predecessor })
}

/// The sockets that systemd has bound for this process (sd_listen_fds(3)).
fn from_manager() -> Vec<std::net::TcpListener> {
    let mut passed = listenfd::ListenFd::from_env();
    (0..passed.len()).filter_map(|index| passed.take_tcp_listener(index).ok().flatten()).collect()
}

/// Opens the store. A command that looks into it while no gateway runs has it for a moment only.
fn open_store(directory: &Path) -> Result<Store, StoreError> {
    const ATTEMPTS: usize = 20;
    const PAUSE: Duration = Duration::from_millis(100);
    for _ in 1..ATTEMPTS {
        match Store::open(directory) {
            Err(StoreError::InUse { .. }) => std::thread::sleep(PAUSE),
            opened => return opened,
        }
    }
    Store::open(directory)
}

/// Opens the kernel door as far as the configuration and the host allow. The answer says why it is shut, or why it is
/// not as good as it could be.
pub(super) fn open_door(
    policy: &mut Policy,
    pins: &mut Pins,
    config: &Config,
    target: &Target,
) -> Result<Option<String>, RunError> {
    let kernel = &config.kernel;
    if kernel.attach == Attach::Off || kernel.interfaces.is_empty() {
        let why = if kernel.attach == Attach::Off {
            "kernel.attach is off"
        } else {
            "kernel.interfaces names none"
        };
        // Where this user may not look, what is left there shows on the interfaces.
        if matches!(pins.exist(), Ok(true)) {
            pins.remove_all().map_err(RunError::failed)?;
        }
        return Ok(Some(format!("{why}; user space enforces alone{}", leftovers(config))));
    }
    match Door::open(pins, config, policy.wanted(Now::read()), target.uid) {
        Ok(Opened { door, attached, removed }) => {
            for folder in removed {
                tracing::info!(folder, "pins of another version removed");
            }
            policy.door = Some(door);
            let fallbacks = attached.into_iter().filter_map(|attached| {
                let reason = attached.fallback?;
                Some(format!("{} not in native mode because {reason}", attached.interface))
            });
            let fallbacks: Vec<String> = fallbacks.collect();
            Ok((!fallbacks.is_empty()).then(|| fallbacks.join("; ")))
        }
        Err(error) if kernel.attach == Attach::Auto && error.is_lack_of_support() => {
            Ok(Some(format!("user space enforces alone: {error}{}", leftovers(config))))
        }
        Err(error @ DoorError::Privileges(_)) => Err(RunError::Failed(format!(
            "kernel.attach asks for the kernel door: {error}; or set kernel.attach: auto"
        ))),
        Err(error) => Err(RunError::failed(error)),
    }
}

/// What is to be said where the kernel door is shut and an interface runs a program all the same.
fn leftovers(config: &Config) -> String {
    let runs = |name: &&String| attach::running(name).is_ok_and(|running| running.is_some());
    let names: Vec<&str> = config.kernel.interfaces.iter().filter(runs).map(|n| &**n).collect();
    match names.as_slice() {
        [] => String::new(),
        names => format!(
            "; {} still runs an XDP program, and where an earlier gateway left it, it goes on \
             enforcing that one's rules: `gateway kernel detach` as root ends that",
            names.join(", ")
        ),
    }
}

/// Hands what root made to the user that the daemon becomes.
fn give_away(policy: &Policy, config: &Config, target: &Target) -> Result<(), RunError> {
    let Target { uid, gid, .. } = *target;
    policy.store().give_to(uid, gid).map_err(RunError::failed)?;
    server::give_to(&config.admin.socket, uid, gid).map_err(RunError::failed)?;
    if let Some(door) = &policy.door {
        door.give_to(uid, gid).map_err(RunError::failed)?;
    }
    Ok(())
}

/// A proxy needs two descriptors a request; the usual soft limit of 1024 is for other programs.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
