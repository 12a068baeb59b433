//! The attacks: who does what, how often.

use anyhow::Result;
use harness::topology::Host;

use super::frames::Frames;
use super::http::{Connections, Plan, Sources};

/// One attack.
pub(super) struct Case {
    /// As the report calls it.
    pub(super) name: &'static str,
    pub(super) what: What,
}

/// What an attacker does.
#[derive(Clone, Copy)]
pub(super) enum What {
    /// The first segments of TCP connections from addresses that are made up.
    Syn,
    /// Datagrams and fragments from addresses that are made up.
    UdpAndFragments,
    /// Requests with a wrong credential over real connections.
    Requests {
        /// From where.
        sources: Sources,
        /// Requests a second of all of them together; `None`: as fast as can be.
        per_second: Option<u32>,
    },
}

/// All of them.
pub(super) const ALL: [Case; 7] = [
    Case { name: "syn_flood", what: What::Syn },
    Case { name: "http_1", what: What::Requests { sources: Sources::Many(1), per_second: None } },
    Case {
        name: "http_100",
        what: What::Requests { sources: Sources::Many(100), per_second: None },
    },
    Case {
        name: "http_10000",
        what: What::Requests { sources: Sources::Many(10_000), per_second: None },
    },
    Case {
        name: "stuffing",
        what: What::Requests { sources: Sources::Many(300), per_second: Some(150) },
    },
    Case {
        name: "behind_nat",
        what: What::Requests { sources: Sources::Own, per_second: Some(150) },
    },
    Case { name: "udp_fragments", what: What::UdpAndFragments },
];

/// What an attacker has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Packets, or attempts to connect.
    pub(crate) sent: u64,
    /// Requests that were answered, with whatever status.
    pub(crate) answered: u64,
}

impl Case {
    /// Whether honest clients have the attacker's address.
    pub(super) fn is_behind_nat(&self) -> bool {
        matches!(self.what, What::Requests { sources: Sources::Own, .. })
    }
}

/// An attack under way. It ends when it is dropped.
pub(super) enum Attack {
    Frames(Frames),
    Connections(Connections),
}

impl Attack {
    pub(super) fn start(case: &Case, attacker: &Host) -> Result<Self> {
        Ok(match case.what {
            What::Syn => Self::Frames(Frames::syn(attacker)?),
            What::UdpAndFragments => Self::Frames(Frames::udp_and_fragments(attacker)?),
            What::Requests { sources, per_second } => {
                let plan = Plan::attack(sources, per_second);
                Self::Connections(Connections::start(attacker, plan)?)
            }
        })
    }

    pub(super) fn counts(&self) -> Counts {
        match self {
            Self::Frames(frames) => Counts { sent: frames.sent(), answered: 0 },
            Self::Connections(connections) => connections.counts(),
        }
    }
}
