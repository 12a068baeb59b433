//! What workers report: what was odd, by whom, and how that is known; and what was fine.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;

use crate::base::address::{ClientAddr, PeerAddr};
use crate::base::signal::Signal;
use crate::base::time::Now;

/// By whom something was done, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The other end of a TCP connection whose handshake is complete: packets come from there.
    Peer(PeerAddr),
    /// An address that a trusted proxy named, which the kernel must never hear of.
    Believed(ClientAddr),
}

impl Source {
    /// The source of requests of `client` over connections of `peer`.
    pub fn of(peer: PeerAddr, client: ClientAddr) -> Self {
        match peer.ip() == client.ip() {
            true => Self::Peer(peer),
            false => Self::Believed(client),
        }
    }

    /// The address.
    pub fn ip(self) -> IpAddr {
        match self {
            Self::Peer(peer) => peer.ip(),
            Self::Believed(client) => client.ip(),
        }
    }
}

/// One signal and what proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// What was odd.
    pub signal: Signal,
    /// Who did it.
    pub source: Source,
    /// When.
    pub at: Now,
    /// The id of the request; `None` for what was none.
    pub request_id: Option<HeaderValue>,
    /// The route that the request had.
    pub route: Option<Arc<str>>,
    /// The limit that refused it.
    pub limit: Option<Arc<str>>,
    /// What the access log says of the reason.
    pub reason: Option<&'static str>,
}

/// Requests of one caller that were served well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Good {
    /// Where they came from.
    pub source: Source,
    /// Hash of the consumer's name, or of the user's where there is none; `None`: nobody was known.
    pub consumer: Option<u64>,
    /// How many there were.
    pub requests: u32,
}

/// What a worker reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Something odd.
    Odd(Box<Evidence>),
    /// What went well of late. Nobody is woken for it.
    Good(Box<[Good]>, Now),
    /// A route cannot serve all that it is asked for.
    Pressure(Arc<str>, Now),
}
