//! Where services are whose endpoints have names: `dns` asks, `state` decides what stays in force and when to ask
//! again. Knows no upstream and puts nothing in force.

pub mod dns;
pub mod state;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One address that a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Found {
    /// Address and port.
    pub address: SocketAddr,
    /// Its share of the requests, as the records say; `None` where they say nothing about it.
    pub weight: Option<u32>,
}

/// What a lookup of one name brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The hosts that stand for the name, or why that is not known.
    pub places: Result<Vec<Place>, Trouble>,
    /// Their addresses, by host.
    pub hosts: BTreeMap<String, Addresses>,
    /// How long the shortest-lived record may be used; `None` if there was none.
    pub ttl: Option<Duration>,
}

/// A host that stands for a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// See [`Found::weight`].
    pub weight: Option<u32>,
}

/// The addresses of a host by family, or why they are not known: IPv4, then IPv6. `None` for a family that was not
/// asked for.
pub type Addresses = [Option<Result<Vec<IpAddr>, Trouble>>; 2];

/// Why a question brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Of which kind.
    pub outcome: Outcome,
    /// In words.
    pub why: String,
}

impl Trouble {
    /// A question that a mistake in the program has ended.
    pub fn broken() -> Self {
        Self { outcome: Outcome::Failed, why: "the lookup broke off, see the log".to_owned() }
    }
}

impl Answer {
    /// Of a lookup that a mistake in the program has ended.
    pub fn broken() -> Self {
        Self { places: Err(Trouble::broken()), hosts: BTreeMap::new(), ttl: None }
    }
}

/// What came of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Addresses.
    Found,
    /// There is no such name, or it has no addresses.
    Empty,
    /// No resolver could say: SERVFAIL, REFUSED, something that is no DNS, no resolver at all.
    Failed,
    /// No resolver has answered in time.
    TimedOut,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Found, Self::Empty, Self::Failed, Self::TimedOut];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Empty => "empty",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
        }
    }
}
