//! Interfaces that come and go: a VPN, a bond, a card that is slow to start. Each is attached to when it is there,
//! tried again where that was refused, and reported meanwhile; none stands in another's way.

use std::time::{Duration, Instant};

use super::attach::{self, Absence, AttachError, Attached};
use super::netlink::Mode;
use super::pins::Pins;
use super::slots::Slots;
use crate::config::Attach;

/// Between two attempts on an interface that refuses, doubled after each up to the longest.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(64);

/// The interfaces of the configuration.
#[derive(Debug)]
pub struct Interfaces {
    wish: Attach,
    all: Vec<Interface>,
}

#[derive(Debug)]
struct Interface {
    name: String,
    state: State,
    /// Why it came to run in a lesser mode than the driver's own, where it came later.
    fallback: Option<String>,
    /// Until when it is left alone, and how long after that.
    pause: Option<(Instant, Duration)>,
}

/// How an interface stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Attached,
    Absent(Absence),
    Refused(String),
}

/// What became of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It came, or its program was put back.
    Attached(Attached),
    /// It went away.
    Absent(String, Absence),
    /// The program cannot be attached to it for now, as the text says.
    Refused(String),
}

/// An interface as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// What it runs.
    pub mode: Option<Mode>,
    /// Why it runs nothing, or not in native mode.
    pub note: Option<String>,
}

impl Interfaces {
    /// Those of a configuration, all of which are taken for attached until somebody looks.
    pub fn new(names: &[String], wish: Attach) -> Self {
        let all = names.iter().map(|name| Interface {
            name: name.clone(),
            state: State::Attached,
            fallback: None,
            pause: None,
        });
        Self { wish, all: all.collect() }
    }

    /// Attaches to what has come and is bare, and answers what is not as it was when it was last looked at.
    pub fn look_after(&mut self, pins: &Pins, slots: &mut Slots, now: Instant) -> Vec<Change> {
        let wish = self.wish;
        let look = |interface: &mut Interface| interface.look_after(wish, (pins, slots), now);
        self.all.iter_mut().filter_map(look).collect()
    }

    /// Each as it is now.
    pub fn seen(&self, pins: &Pins) -> Vec<Seen> {
        let seen = |interface: &Interface| {
            let name = interface.name.clone();
            let absence = attach::absence(&name, pins).map(|absence| absence.to_string());
            match &interface.state {
                // Somebody else's program may run there, which does not enforce.
                State::Refused(reason) => {
                    Seen { name, mode: None, note: Some(absence.unwrap_or_else(|| reason.clone())) }
                }
                State::Attached | State::Absent(_) => {
                    let running = attach::running(&name).ok().flatten();
                    let mode = running.map(|running| running.mode);
                    let fallback = interface.fallback.as_ref().filter(|_| mode.is_some());
                    let fallback = fallback.map(|why| format!("not in native mode because {why}"));
                    Seen { name, mode, note: absence.or(fallback) }
                }
            }
        };
        self.all.iter().map(seen).collect()
    }
}

impl Interface {
    fn look_after(
        &mut self,
        wish: Attach,
        (pins, slots): (&Pins, &mut Slots),
        now: Instant,
    ) -> Option<Change> {
        if let Some(absence) = attach::absence(&self.name, pins) {
            (self.pause, self.fallback) = (None, None);
            let change = Change::Absent(self.name.clone(), absence.clone());
            return self.enter(State::Absent(absence)).then_some(change);
        }
        if self.pause.is_some_and(|(until, _)| now < until) {
            return None;
        }
        // Before its first packet.
        if let Err(error) = slots.seat(&self.name) {
            tracing::error!(interface = self.name, %error, "it is counted with others");
        }
        match self.attach(wish, pins) {
            Ok(attached) => {
                self.pause = None;
                self.state = State::Attached;
                if let Some(attached) = &attached {
                    self.fallback.clone_from(&attached.fallback);
                }
                attached.map(Change::Attached)
            }
            // It went while it was looked at, which the next look finds.
            Err(AttachError::Absent { .. }) => None,
            Err(error) => {
                let pause = self.pause.map_or(PAUSE_FIRST, |(_, pause)| pause);
                self.pause = Some((now + pause, (pause * 2).min(PAUSE_LONGEST)));
                let reason = error.to_string();
                let change = Change::Refused(reason.clone());
                self.enter(State::Refused(reason)).then_some(change)
            }
        }
    }

    /// Attaches unless the program runs already.
    fn attach(&self, wish: Attach, pins: &Pins) -> Result<Option<Attached>, AttachError> {
        attach::check(&self.name, pins)?;
        if attach::running(&self.name)?.is_some() {
            return Ok(None);
        }
        attach::attach_pinned(&self.name, wish, pins)
    }

    /// Whether that is another state than before.
    fn enter(&mut self, state: State) -> bool {
        let changed = self.state != state;
        self.state = state;
        changed
    }
}

impl Change {
    /// Says so in the log.
    pub fn log(&self) {
        match self {
            Self::Attached(Attached { interface, mode, fallback }) => {
                let (mode, fallback) = (mode.name(), fallback.as_deref());
                tracing::info!(interface, mode, fallback, "attached");
            }
            Self::Absent(interface, absence) => {
                tracing::warn!(interface, reason = %absence, "nothing to attach to");
            }
            Self::Refused(reason) => {
                tracing::error!(reason, "not attached; it is tried again, ever more seldom");
            }
        }
    }
}
