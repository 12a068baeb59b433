//! Listening sockets: one for each address and worker, all bound before privileges are dropped and threads exist.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

/// Connections that the kernel completes and nobody has accepted yet, for one socket (its own bound is
/// `net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// Why an address cannot be listened on.
#[derive(Debug, Error)]
pub enum BindError {
    /// Somebody else does.
    #[error(
        "cannot listen on {0}: the port is in use; \
         find who has it with `ss -ltnp 'sport = :{port}'`, end it or listen elsewhere",
        port = .0.port()
    )]
    InUse(SocketAddr),
    /// Not for this user.
    #[error(
        "cannot listen on {0}: ports below 1024 need CAP_NET_BIND_SERVICE; \
         start as root or listen on a higher port"
    )]
    Denied(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, #[source] io::Error),
}

/// Sockets by address, for each worker one.
#[derive(Debug, Default)]
pub struct Sockets {
    workers: usize,
    by_address: Vec<(SocketAddr, Vec<TcpListener>)>,
}

impl Sockets {
    /// Binds `addresses` for so many workers: all of them or none.
    ///
    /// The workers' sockets share their port (SO_REUSEPORT), and with that a second gateway of the same user would
    /// share it too, silently taking half of the connections. So each address is first bound alone.
    pub fn bind(addresses: &[SocketAddr], workers: usize) -> Result<Self, BindError> {
        for address in addresses {
            open(*address, false).map_err(|error| explain(*address, error))?;
        }
        let mut by_address = Vec::new();
        for address in addresses {
            // For port 0, the first socket is given a port and the others share it.
            let mut bound = *address;
            let mut sockets = Vec::new();
            for _ in 0..workers {
                let socket = open(bound, true).map_err(|error| explain(bound, error))?;
                bound = socket.local_addr().map_err(|error| explain(bound, error))?;
                sockets.push(socket);
            }
            by_address.push((bound, sockets));
        }
        Ok(Self { workers, by_address })
    }

    /// Where they listen.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.by_address.iter().map(|(address, _)| *address).collect()
    }

    /// The sockets of each worker in turn.
    pub(super) fn by_worker(self) -> Vec<Vec<(SocketAddr, TcpListener)>> {
        let mut by_worker: Vec<Vec<_>> = (0..self.workers).map(|_| Vec::new()).collect();
        for (address, sockets) in self.by_address {
            for (worker, socket) in by_worker.iter_mut().zip(sockets) {
                worker.push((address, socket));
            }
        }
        by_worker
    }
}

/// Binds an address for one.
pub fn bind_one(address: SocketAddr) -> Result<TcpListener, BindError> {
    open(address, false).map_err(|error| explain(address, error))
}

fn open(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a gateway that has just ended may still linger on the port.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it, which saves a call for each.
    socket.set_tcp_nodelay(true)?;
    match socket.bind(&address.into()) {
        // The address may come with its interface, long after the rules had to be in force.
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            match address {
                SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
                SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
            }
            socket.bind(&address.into())?;
        }
        bound => bound?,
    }
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn explain(address: SocketAddr, error: io::Error) -> BindError {
    match error.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(address),
        io::ErrorKind::PermissionDenied => BindError::Denied(address),
        _ => BindError::Other(address, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_an_error_although_it_could_be_shared() {
        let first = Sockets::bind(&["127.0.0.1:0".parse().unwrap()], 2).unwrap();
        let addresses = first.addresses();
        let error = Sockets::bind(&addresses, 2).unwrap_err().to_string();
        let address = addresses[0];
        assert!(
            error.contains(&format!("cannot listen on {address}: the port is in use")),
            "{error}"
        );
        assert!(error.contains(&format!("ss -ltnp 'sport = :{}'", address.port())), "{error}");
        drop(first);
        assert_eq!(Sockets::bind(&addresses, 2).unwrap().by_worker().len(), 2);
    }

    #[test]
    fn an_address_that_the_host_does_not_have_yet_is_listened_on() {
        let addresses =
            ["192.0.2.1:18080", "[2001:db8::1]:18080"].map(|text| text.parse().unwrap());
        assert_eq!(Sockets::bind(&addresses, 1).unwrap().addresses(), addresses);
    }
}
