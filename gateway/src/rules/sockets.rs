//! The other ends of established TCP connections, asked of the kernel by local port (sock_diag(7)): it sends only those
//! that match, however many sockets a busy proxy has.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::SockProtocol;

use crate::base::netlink::{ALL, ask, message};

/// The other ends of established TCP connections to the local `ports`.
pub fn established_peers(ports: &[u16]) -> io::Result<Vec<SocketAddr>> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    let mut peers = Vec::new();
    for port in ports {
        for family in [AF_INET, AF_INET6] {
            let request = message(SOCK_DIAG_BY_FAMILY, ALL, &question(family, *port));
            ask(SockProtocol::NetlinkSockDiag, &request, SOCK_DIAG_BY_FAMILY, |socket| {
                peers.extend(peer(socket));
            })?;
        }
    }
    Ok(peers)
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// An `inet_diag_req_v2` for established TCP sockets, and a filter program for one local port (linux/inet_diag.h): at
/// least the port, and at most the port. An operation jumps ahead by its second byte where it is true and by its last
/// two where it is not; past the end by four is a refusal.
fn question(family: u8, port: u16) -> Vec<u8> {
    const TCP: u8 = 6;
    const ESTABLISHED: u32 = 1 << 1;
    const SOCKET_ID_BYTES: usize = 48;
    const BYTECODE: u16 = 1;
    const AT_LEAST: u8 = 2;
    const AT_MOST: u8 = 3;

    let mut question = vec![family, TCP, 0, 0];
    question.extend(ESTABLISHED.to_ne_bytes());
    question.extend([0; SOCKET_ID_BYTES]);
    question.extend(20u16.to_ne_bytes());
    question.extend(BYTECODE.to_ne_bytes());
    for (operation, refused) in [(AT_LEAST, 20u16), (AT_MOST, 12)] {
        question.extend([operation, 8]);
        question.extend(refused.to_ne_bytes());
        question.extend([0, 0]);
        question.extend(port.to_ne_bytes());
    }
    question
}

/// The remote end of an `inet_diag_msg`.
fn peer(socket: &[u8]) -> Option<SocketAddr> {
    const REMOTE_PORT: usize = 6;
    const REMOTE_ADDRESS: usize = 24;
    let address: [u8; 16] = socket.get(REMOTE_ADDRESS..REMOTE_ADDRESS + 16)?.try_into().ok()?;
    let port = u16::from_be_bytes(*socket.get(REMOTE_PORT..)?.first_chunk()?);
    let address = match *socket.first()? {
        AF_INET => {
            let [a, b, c, d, ..] = address;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(address)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn only_peers_of_the_port_are_found_in_either_family() {
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            let Ok(listener) = TcpListener::bind((address, 0)) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert!(established_peers(&[port]).unwrap().is_empty(), "it only listens");
            let client = TcpStream::connect((address, port)).unwrap();
            let accepted = listener.accept().unwrap();
            assert_eq!(established_peers(&[port]).unwrap(), [client.local_addr().unwrap()]);
            assert!(established_peers(&[port.wrapping_add(1)]).unwrap().is_empty());
            drop((client, accepted));
        }
    }

    #[test]
    fn a_mapped_peer_is_the_address_that_its_packets_carry() {
        let mut socket = vec![0; 72];
        socket[0] = AF_INET6;
        socket[6..8].copy_from_slice(&40_000u16.to_be_bytes());
        socket[34..40].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 7]);
        assert_eq!(peer(&socket), Some("192.0.2.7:40000".parse().unwrap()));
        assert_eq!(peer(&socket[..30]), None);
    }
}
