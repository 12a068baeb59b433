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

/// Listening sockets that somebody else has bound: the gateway that this one takes the place of, or the service
/// manager.
#[derive(Debug, Default)]
pub struct Inherited(Vec<TcpListener>);

impl Inherited {
    /// Made of these.
    pub fn new(sockets: Vec<TcpListener>) -> Self {
        Self(sockets)
    }

    /// Those that listen on `address`, ready to be used.
    pub fn take(&mut self, address: SocketAddr) -> io::Result<Vec<TcpListener>> {
        let is_meant = |socket: &mut TcpListener| socket.local_addr().ok() == Some(address);
        let found: Vec<_> = self.0.extract_if(.., is_meant).collect();
        for socket in &found {
            socket.set_nonblocking(true)?;
            socket2::SockRef::from(socket).set_tcp_nodelay(true)?;
        }
        Ok(found)
    }

    /// Where those listen that nobody has taken.
    pub fn left(&self) -> Vec<SocketAddr> {
        self.0.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }
}

/// Sockets by address, for each worker one.
#[derive(Debug, Default)]
pub struct Sockets {
    workers: usize,
    by_address: Vec<(SocketAddr, Vec<TcpListener>)>,
}

impl Sockets {
    /// Binds `addresses` for so many workers: all of them or none. What is `inherited` is used first.
    ///
    /// The workers' sockets share their port (SO_REUSEPORT), and with that a second gateway of the same user would
    /// share it too, silently taking half of the connections. So each address is first bound alone.
    pub fn bind(
        addresses: &[SocketAddr],
        workers: usize,
        inherited: &mut Inherited,
    ) -> Result<Self, BindError> {
        let mut by_address = Vec::new();
        for address in addresses {
            let failed = |error| explain(*address, error);
            let sockets = complete(inherited.take(*address).map_err(failed)?, workers);
            by_address.push((*address, sockets.map_err(failed)?));
        }
        for (address, sockets) in &by_address {
            if sockets.is_empty() {
                open(*address, false).map_err(|error| explain(*address, error))?;
            }
        }
        for (address, sockets) in &mut by_address {
            // For port 0, the first socket is given a port and the others share it.
            let mut bound = *address;
            while sockets.len() < workers {
                let socket = open(bound, true).map_err(|error| explain(bound, error))?;
                bound = socket.local_addr().map_err(|error| explain(bound, error))?;
                sockets.push(socket);
            }
            *address = bound;
        }
        Ok(Self { workers, by_address })
    }

    /// Where they listen.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.by_address.iter().map(|(address, _)| *address).collect()
    }

    /// Another handle of each, for whoever comes after this gateway.
    pub(super) fn handles(&self) -> io::Result<Vec<(SocketAddr, TcpListener)>> {
        let of = |(address, sockets): &(SocketAddr, Vec<TcpListener>)| {
            let address = *address;
            sockets.iter().map(move |socket| Ok((address, socket.try_clone()?))).collect::<Vec<_>>()
        };
        self.by_address.iter().flat_map(of).collect()
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

/// One inherited socket for each worker. Where there are fewer and the port is not shared, workers share a socket.
fn complete(mut sockets: Vec<TcpListener>, workers: usize) -> io::Result<Vec<TcpListener>> {
    let Some(first) = sockets.first() else { return Ok(sockets) };
    if !socket2::SockRef::from(first).reuse_port()? {
        let more = (sockets.len()..workers).map(|_| first.try_clone());
        let more = more.collect::<io::Result<Vec<_>>>()?;
        sockets.extend(more);
    }
    sockets.truncate(workers);
    Ok(sockets)
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

    fn none() -> Inherited {
        Inherited::default()
    }

    #[test]
    fn inherited_sockets_are_shared_by_the_workers_or_joined_by_more() {
        for shares_port in [false, true] {
            let socket = open("127.0.0.1:0".parse().unwrap(), shares_port).unwrap();
            let address = socket.local_addr().unwrap();
            let other = open("127.0.0.1:0".parse().unwrap(), false).unwrap();
            let left = other.local_addr().unwrap();
            let mut inherited = Inherited::new(vec![socket, other]);
            let sockets = Sockets::bind(&[address], 3, &mut inherited).unwrap();
            assert_eq!(sockets.addresses(), [address]);
            assert_eq!(sockets.handles().unwrap().len(), 3);
            assert_eq!(inherited.left(), [left]);
        }
    }

    #[test]
    fn a_port_in_use_is_an_error_although_it_could_be_shared() {
        let first = Sockets::bind(&["127.0.0.1:0".parse().unwrap()], 2, &mut none()).unwrap();
        let addresses = first.addresses();
        let error = Sockets::bind(&addresses, 2, &mut none()).unwrap_err().to_string();
        let address = addresses[0];
        assert!(
            error.contains(&format!("cannot listen on {address}: the port is in use")),
            "{error}"
        );
        assert!(error.contains(&format!("ss -ltnp 'sport = :{}'", address.port())), "{error}");
        drop(first);
        assert_eq!(Sockets::bind(&addresses, 2, &mut none()).unwrap().by_worker().len(), 2);
    }

    #[test]
    fn an_address_that_the_host_does_not_have_yet_is_listened_on() {
        let addresses =
            ["192.0.2.1:18080", "[2001:db8::1]:18080"].map(|text| text.parse().unwrap());
        assert_eq!(Sockets::bind(&addresses, 1, &mut none()).unwrap().addresses(), addresses);
    }
}
