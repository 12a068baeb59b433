//! Asks endpoints how they are, each at times of its own, and says so to those who choose among them. Knows nothing of
//! what requests find out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};

use crate::base::random::random;
use crate::base::time::Now;
use crate::config::{Config, Health};
use crate::tls::client::{Client, Clients};
use crate::upstream::balance::Group;
use crate::upstream::directory::Directory;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::probe::probe;

/// Endpoints that are asked at the same time, of all services together.
const PROBES_MAX: usize = 64;
/// An endpoint that was added is asked for the first time after this at the latest.
const LOOK: Duration = Duration::from_millis(500);

/// The checks of all services.
pub(in crate::control) struct Checks {
    slots: Rc<Semaphore>,
    running: HashMap<String, Running>,
}

/// The checks of one service.
struct Running {
    health: Health,
    group: Arc<Group>,
    /// What its endpoints are shaken hands with by, as it is now.
    tls: Tls,
    task: AbortHandle,
}

type Tls = Rc<RefCell<Option<Arc<Client>>>>;

impl Checks {
    /// None yet.
    pub(in crate::control) fn new() -> Self {
        Self { slots: Rc::new(Semaphore::new(PROBES_MAX)), running: HashMap::new() }
    }

    /// Checks what a configuration wants checked. What it says as before goes on as before.
    pub(in crate::control) fn configure(
        &mut self,
        config: &Config,
        directory: &Directory,
        clients: &Clients,
    ) {
        let mut before = std::mem::take(&mut self.running);
        for group in directory.groups() {
            let of = config.upstreams.iter().find(|upstream| upstream.name == group.name());
            let health = of.and_then(|upstream| upstream.health.clone());
            let Some((of, health)) = of.zip(health) else { continue };
            let client = of.tls.as_ref().and_then(|tls| clients.get(tls).cloned());
            let held = before.remove(group.name());
            let same = |held: &Running| held.health == health && Arc::ptr_eq(&held.group, group);
            let entry = match held {
                Some(held) if same(&held) => {
                    held.tls.replace(client);
                    held
                }
                held => {
                    held.into_iter().for_each(|held| held.task.abort());
                    let tls = Rc::new(RefCell::new(client));
                    let group = Arc::clone(group);
                    let how = (health.clone(), Rc::clone(&tls));
                    let run = run(Arc::clone(&group), how, Rc::clone(&self.slots));
                    Running { health, group, tls, task: spawn_local(run).abort_handle() }
                }
            };
            self.running.insert(group.name().to_owned(), entry);
        }
        for Running { group, task, .. } in before.into_values() {
            task.abort();
            // Nobody will ask again, so what was found out says nothing any more.
            for endpoint in group.set().endpoints() {
                group.check(&endpoint.state, Ok(()), Now::read());
            }
        }
    }
}

/// What the last checks of an endpoint said.
#[derive(Clone, Copy, Debug)]
struct Tally {
    due: Instant,
    asked: bool,
    is_healthy: Option<bool>,
    /// Checks in a row that said the opposite.
    against: u32,
}

impl Tally {
    /// Takes note of a check and answers what the endpoint is taken for. The first one is believed at once.
    fn count(&mut self, passed: bool, health: &Health) -> bool {
        let needed = if passed { health.healthy_after } else { health.unhealthy_after };
        self.against = if self.is_healthy == Some(passed) { 0 } else { self.against + 1 };
        if self.is_healthy.is_none() || self.against >= needed {
            (self.is_healthy, self.against) = (Some(passed), 0);
        }
        self.is_healthy.unwrap_or(passed)
    }
}

async fn run(group: Arc<Group>, (health, tls): (Health, Tls), slots: Rc<Semaphore>) {
    let mut tallies: HashMap<u64, Tally> = HashMap::new();
    let mut asking = JoinSet::new();
    loop {
        let set = group.set();
        let now = Instant::now();
        tallies.retain(|id, _| set.endpoints().iter().any(|one| one.state.id() == *id));
        for endpoint in set.endpoints() {
            let new = Tally { due: now, asked: false, is_healthy: None, against: 0 };
            let tally = tallies.entry(endpoint.state.id()).or_insert(new);
            if tally.due <= now && !tally.asked {
                tally.asked = true;
                let (endpoint, health) = (endpoint.clone(), health.clone());
                let (slots, tls) = (Rc::clone(&slots), Rc::clone(&tls));
                asking.spawn_local(async move {
                    let slot = slots.acquire().await;
                    let client = tls.borrow().clone();
                    let result = probe(&health, endpoint.address, client.as_deref()).await;
                    drop(slot);
                    (endpoint, result)
                });
            }
        }
        let waiting = tallies.values().filter(|tally| !tally.asked).map(|tally| tally.due);
        let next = waiting.min().unwrap_or(now + LOOK).min(now + LOOK);
        tokio::select! {
            Some(answered) = asking.join_next() => {
                let Ok((endpoint, result)) = answered else {
                    // Only a panic, which has been reported; do not run into it without a pause.
                    sleep(LOOK).await;
                    continue;
                };
                if let Some(tally) = tallies.get_mut(&endpoint.state.id()) {
                    tally.asked = false;
                    tally.due = Instant::now() + spread(health.interval);
                    take(&group, &endpoint, (tally, &health), result);
                }
            }
            () = sleep_until(next) => {}
        }
    }
}

fn take(
    group: &Group,
    endpoint: &Endpoint,
    (tally, health): (&mut Tally, &Health),
    result: Result<(), String>,
) {
    let healthy = tally.count(result.is_ok(), health);
    let said = match (healthy, result) {
        (true, _) => Ok(()),
        (false, Err(error)) => Err(error),
        (false, Ok(())) => Err("passed a check, and must pass more in a row".to_owned()),
    };
    let why = said.clone().err();
    if group.check(&endpoint.state, said, Now::read()) {
        let (upstream, endpoint) = (group.name(), endpoint.address);
        match why {
            None => tracing::info!(upstream, %endpoint, "endpoint healthy"),
            Some(why) => tracing::warn!(upstream, %endpoint, why, "endpoint unhealthy"),
        }
    }
}

/// A tenth more or less, so that not all gateways ask at once.
fn spread(time: Duration) -> Duration {
    let permille = 900 + u32::try_from(random() % 201).unwrap_or(0);
    time.saturating_mul(permille) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Probe, Protocol};

    #[test]
    fn one_check_says_little_except_the_first() {
        let health = Health {
            probe: Probe::Tcp,
            interval: LOOK,
            timeout: LOOK,
            healthy_after: 2,
            unhealthy_after: 3,
            port: None,
            tls: false,
            proxy_protocol: false,
            protocol: Protocol::Http1,
        };
        let said = |checks: &[bool]| {
            let due = Instant::from_std(crate::base::time::instant());
            let mut tally = Tally { due, asked: false, is_healthy: None, against: 0 };
            checks.iter().map(|passed| tally.count(*passed, &health)).collect::<Vec<_>>()
        };
        assert_eq!(said(&[false, true, true]), [false, false, true]);
        assert_eq!(said(&[true, false, false, true]), [true; 4]);
        assert_eq!(said(&[true, false, false, false, true]), [true, true, true, false, false]);
    }
}
