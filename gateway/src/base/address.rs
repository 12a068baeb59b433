//! Two kinds of address that must never be mixed: the one that the socket has, and the one that is believed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The address at the other end of the socket. Packets come from it, so only it may become a rule in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(IpAddr);

impl PeerAddr {
    /// The peer of an accepted connection. An IPv4 address that a dual-stack socket shows as `::ffff:a.b.c.d` is the
    /// IPv4 address that its packets carry.
    pub fn of_socket(address: SocketAddr) -> Self {
        Self(address.ip().to_canonical())
    }

    /// The address itself.
    pub fn ip(self) -> IpAddr {
        self.0
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The address that a request is believed to come from: the peer's, or what a trusted proxy says. User space decides
/// by it; the kernel never hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(IpAddr);

impl ClientAddr {
    /// The client of a peer that is no trusted proxy: the peer itself.
    pub fn from_peer(peer: PeerAddr) -> Self {
        Self(peer.0)
    }

    /// An address that a trusted proxy named.
    pub fn believed(address: IpAddr) -> Self {
        Self(address.to_canonical())
    }

    /// The address itself.
    pub fn ip(self) -> IpAddr {
        self.0
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_address_that_the_packets_carry() {
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:80".parse().unwrap();
        assert_eq!(PeerAddr::of_socket(mapped).ip(), "192.0.2.1".parse::<IpAddr>().unwrap());
    }
}
