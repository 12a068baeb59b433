//! Certificates and keys: read at the start, at each reload and when a file changes. Whatever is wrong with a new
//! version, the last good one stays in force, and connections stay in any case.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking, spawn_local};
use tokio::time::MissedTickBehavior;

use super::Control;
use crate::admin::certificates::CertificateView;
use crate::base::time::utc;
use crate::config::{Config, Errors};
use crate::request::listener::Listeners;
use crate::tls::client::Clients;
use crate::tls::store::{Store, Watch};

/// Time between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between two complaints about the same certificates.
const TELL_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads what a configuration names: all of it, or what is wrong. A start goes on with a certificate that has expired,
/// for the others must not go down with it.
pub fn read(config: &Config, user: &str) -> Result<Store, Errors> {
    let (store, errors) = Store::default().read(config, user, utc());
    if errors.is_empty() { Ok(store) } else { Err(Errors::from(errors)) }
}

/// The same where `before` does not have it. Nobody means to add a certificate that has expired.
pub fn read_again(config: &Config, before: &Store, user: &str) -> Result<Store, Errors> {
    let now = utc();
    let (store, mut errors) = before.read(config, user, now);
    errors.extend(store.expired_since(before, now));
    if errors.is_empty() { Ok(store) } else { Err(Errors::from(errors)) }
}

/// What a configuration asks for, compiled.
pub(super) struct Compiled {
    store: Store,
    listeners: Listeners,
    clients: Clients,
}

/// The certificates in force.
pub(super) struct Certificates {
    user: String,
    store: Store,
    listeners: Arc<ArcSwap<Listeners>>,
    clients: Clients,
    told: Option<Instant>,
    watcher: Option<AbortHandle>,
    /// What is read for an earlier configuration is nobody's any more.
    generation: u64,
    sender: mpsc::Sender<(u64, Store)>,
    events: mpsc::Receiver<(u64, Store)>,
}

impl Certificates {
    /// None yet. Files are read as `user`.
    pub(super) fn new(user: &str) -> Self {
        let (sender, events) = mpsc::channel(1);
        Self {
            user: user.to_owned(),
            store: Store::default(),
            listeners: Arc::default(),
            clients: Clients::default(),
            told: None,
            watcher: None,
            generation: 0,
            sender,
            events,
        }
    }

    /// What the workers follow.
    pub(super) fn listeners(&self) -> Arc<ArcSwap<Listeners>> {
        Arc::clone(&self.listeners)
    }

    /// What was read.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Compiles what a configuration asks for from what was read for it.
    pub(super) fn compile(&self, config: &Config, store: Store) -> Result<Compiled, String> {
        let listeners = Listeners::new(config, &store, &self.listeners.load())?;
        let clients = Clients::new(config, &store, &self.clients)?;
        Ok(Compiled { store, listeners, clients })
    }

    /// What services are talked to by.
    pub(super) fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Puts in force what was compiled, and looks after the files from now on.
    pub(super) fn configure(&mut self, config: &Arc<Config>, compiled: Compiled) {
        self.listeners.store(Arc::new(compiled.listeners));
        (self.store, self.clients) = (compiled.store, compiled.clients);
        self.generation += 1;
        self.told = None;
        if let Some(watcher) = self.watcher.take() {
            watcher.abort();
        }
        let watch = Watch::new(&self.store);
        if !watch.is_empty() {
            let reader = (Arc::clone(config), self.store.clone(), self.user.clone());
            let looking = look(watch, reader, (self.generation, self.sender.clone()));
            self.watcher = Some(spawn_local(looking).abort_handle());
        }
    }

    /// What was read because a file changed.
    pub(super) async fn changed(&mut self) -> Store {
        loop {
            match self.events.recv().await {
                Some((generation, store)) if generation == self.generation => return store,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Puts in force what was read because a file changed. Answers whether services are talked to by something else.
    fn take(&mut self, config: &Arc<Config>, store: Store) -> bool {
        match self.compile(config, store) {
            Ok(compiled) => {
                let other = !compiled.clients.is_same(&self.clients);
                self.configure(config, compiled);
                tracing::info!("certificates were read again");
                other
            }
            Err(error) => {
                tracing::error!(%error, "the certificates before stay in force");
                false
            }
        }
    }

    /// Tells once a day what is wrong, or soon will be.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY) {
            self.told = Some(now);
            for note in self.notes() {
                tracing::warn!("{note}");
            }
        }
    }

    /// What is wrong, or soon will be.
    pub(super) fn notes(&self) -> Vec<String> {
        self.store.notes(utc())
    }

    /// Every certificate, in the order of their files.
    pub(super) fn views(&self) -> Vec<CertificateView> {
        let view = |(files, pair): (&crate::config::CertificateFiles, &crate::tls::pair::Pair)| {
            CertificateView {
                file: files.cert.display().to_string(),
                names: pair.names.clone(),
                not_after: pair.not_after,
            }
        };
        let mut views: Vec<_> = self.store.certificates().map(view).collect();
        views.sort_by(|one, other| one.file.cmp(&other.file));
        views
    }
}

impl Control {
    /// Puts in force what was read because a file changed.
    pub(super) fn renew_certificates(&mut self, store: Store) {
        if self.certificates.take(&self.config, store) {
            let held = self.shared.snapshot.load_full();
            self.publish_snapshot(Arc::clone(held.routes()), Arc::clone(held.limits()));
            self.configure_checks();
        }
    }
}

/// Looks again and again, on a thread where a folder that does not answer keeps nobody else waiting.
async fn look(
    mut watch: Watch,
    (config, store, user): (Arc<Config>, Store, String),
    (generation, sender): (u64, mpsc::Sender<(u64, Store)>),
) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (config, store, user) = (Arc::clone(&config), store.clone(), user.clone());
        let looked = spawn_blocking(move || {
            let read = watch.look().then(|| store.read(&config, &user, utc()).0);
            (watch, read)
        });
        let Ok((back, read)) = looked.await else {
            tracing::error!("certificates are not watched any more: restart the gateway");
            return;
        };
        watch = back;
        if let Some(read) = read {
            // Whoever takes it begins to look anew.
            drop(sender.send((generation, read)).await);
            return;
        }
    }
}
