//! What goes on, for whoever looks: the events of the kernel door, metrics and `top`. Looking changes nothing, and what
//! takes long is counted by another thread, one look after the other.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::JoinHandle;

use super::{Control, crowdsec, metrics, redis, spread, views};
use crate::admin::api::{Answer, Refusal, Request};
use crate::admin::monitor::{Events, RuleHitsView, Top};
use crate::admin::query;
use crate::base::time::{Now, UtcMillis, utc};
use crate::kernel::Door;
use crate::kernel::census::Census;
use crate::kernel::events::Log;

/// How far back the sources of `top` are looked for.
const SOURCES_WINDOW: Duration = Duration::from_secs(60);
/// Sources that `top` shows.
const SOURCES_MAX: usize = 20;

/// The events, and who reads them.
pub(super) struct Monitor {
    started: UtcMillis,
    log: Rc<RefCell<Log>>,
    reader: Option<JoinHandle<()>>,
    /// A look at tables of millions takes memory bandwidth from the program itself.
    turn: Rc<Mutex<()>>,
}

impl Monitor {
    /// Begins with the gateway.
    pub(super) fn new() -> Self {
        Self { started: utc(), log: Rc::default(), reader: None, turn: Rc::default() }
    }

    /// Reads the events of a door that was opened, in the place of those of an earlier one.
    pub(super) fn watch(&mut self, door: Option<&Door>) {
        if let Some(reader) = self.reader.take() {
            reader.abort();
        }
        let Some(door) = door else { return };
        let mut ring = match door.ring() {
            Ok(ring) => ring,
            Err(error) => return tracing::error!(%error, "there are no events of dropped packets"),
        };
        let log = Rc::clone(&self.log);
        self.reader = Some(tokio::task::spawn_local(async move {
            loop {
                let read = ring.read(|event| log.borrow_mut().push(&event, Now::read())).await;
                if let Err(error) = read {
                    return tracing::error!(%error, "no more events of dropped packets");
                }
            }
        }));
    }

    /// Word of each event.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.log.borrow().watch()
    }

    /// Sends an answer when what is only in the kernel's tables has been added to it.
    pub(super) fn complete(&self, answer: Result<Answer, Refusal>, look: Look, reply: Reply) {
        let turn = Rc::clone(&self.turn);
        tokio::task::spawn_local(async move {
            let _turn = turn.lock().await;
            let counted = tokio::task::spawn_blocking(move || look.add_to(answer)).await;
            // Whoever asked may have gone.
            drop(reply.send(counted.map_err(Refusal::failed).and_then(|answer| answer)));
        });
    }
}

/// Where an answer goes.
type Reply = oneshot::Sender<Result<Answer, Refusal>>;

/// What is to be counted in the tables.
pub(super) enum Look {
    /// Rules by kind.
    Kinds(Census),
    /// The busiest rules, so many.
    Busiest(Census, usize),
}

impl Look {
    fn add_to(self, answer: Result<Answer, Refusal>) -> Result<Answer, Refusal> {
        let mut answer = answer?;
        match (self, &mut answer) {
            (Self::Kinds(census), Answer::Metrics(text)) => {
                text.push_str(&metrics::rules(&census.count()));
            }
            (Self::Busiest(census, most), Answer::Top(top)) => {
                let busiest = census.busiest(most).into_iter();
                top.busiest = busiest
                    .map(|hits| RuleHitsView {
                        rule: views::rule_met(&hits.rule),
                        packets: hits.packets,
                    })
                    .collect();
            }
            _ => {}
        }
        Ok(answer)
    }
}

impl Control {
    /// What is to be counted before a request is answered.
    pub(super) fn look(&self, request: &Request) -> Option<Look> {
        let door = self.policy.door.as_ref()?;
        let census = || {
            let census = door.census();
            census.map_err(|error| tracing::error!(%error, "the rules cannot be counted")).ok()
        };
        match request {
            Request::Metrics => census().map(Look::Kinds),
            Request::Top(most @ 1..) => census().map(|census| Look::Busiest(census, *most)),
            _ => None,
        }
    }

    /// The events that a query asks for.
    pub(super) fn events(&self, query: &query::Events) -> Result<Answer, Refusal> {
        if self.policy.door.is_none() {
            return Err(Refusal::failed(
                "the kernel door is shut, and only that reports what it drops: `gateway status` \
                 says why it is",
            ));
        }
        if self.config.kernel.events.is_none() {
            return Err(Refusal::failed(
                "kernel.events is off: write a rate such as 10/s and `gateway reload`",
            ));
        }
        let page = self.monitor.log.borrow().page(query.after, query.limit, &query.filter);
        Ok(Answer::Events(Events {
            events: page.events.iter().map(|event| views::event(&self.policy, event)).collect(),
            last: page.last,
            missed: page.missed,
        }))
    }

    /// Everything that `top` shows, without the busiest rules.
    pub(super) fn top(&self) -> Result<Answer, Refusal> {
        let now = Now::read();
        let window = u64::try_from(SOURCES_WINDOW.as_millis()).unwrap_or(u64::MAX);
        let since = UtcMillis(now.utc.0.saturating_sub(window));
        let log = self.monitor.log.borrow();
        let sources = log.sources(since, SOURCES_MAX);
        let status = self.status()?;
        Ok(Answer::Top(Box::new(Top {
            time_boot_ms: now.boot.0 / 1_000_000,
            kernel: status.kernel,
            sources: sources.into_iter().map(views::source).collect(),
            busiest: Vec::new(),
            proxy: status.proxy,
        })))
    }

    /// All metrics, without those that are counted in the tables.
    pub(super) fn metrics(&self) -> Result<Answer, Refusal> {
        let events = self.monitor.log.borrow().count();
        let status = self.status()?;
        let door = self.policy.door.as_ref();
        let text = metrics::page(
            (&status, self.monitor.started),
            &self.config,
            (&self.counted(), &self.shared.counters.by_name()),
        );
        let kernel = door.map(|door| metrics::kernel(door, events)).transpose();
        let kernel = kernel.map_err(Refusal::failed)?.unwrap_or_default();
        let max = self.config.metrics.max_names;
        let names = self.names.page();
        let names = names + &metrics::authentications(&self.authenticators, max);
        let names = names + &metrics::audit(self.trail.lost()) + &self.feedback_page();
        let names = names + &redis::page(self.redis.as_ref());
        let names = names + &spread::page(self.others.spread.as_ref());
        let crowdsec = self.others.crowdsec.as_ref();
        let names = names + &crowdsec::page(crowdsec, &self.policy, Now::read());
        let names = names + &metrics::limits(self.shared.snapshot.load().limits(), max);
        Ok(Answer::Metrics(text + &names + &metrics::lists(&self.lists()) + &kernel))
    }
}
