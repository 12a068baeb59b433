//! Where a test of the user-space door runs: as root a network namespace of its own, otherwise free ports of the
//! loopback interface.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::Context;
use socket2::{Domain, Socket, Type};

use crate::Result;
use crate::client::Client;
use crate::namespace::Namespace;
use crate::origin::{Origin, Reply, Request};

/// How long anything may take that ought to happen at once.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The place.
#[derive(Debug)]
pub struct Site {
    /// As root.
    pub namespace: Option<Namespace>,
}

impl Site {
    /// A place that nobody else has.
    pub fn new() -> Result<Self> {
        let namespace = nix::unistd::geteuid().is_root().then(|| Namespace::new("host"));
        Ok(Self { namespace: namespace.transpose()? })
    }

    /// Does something there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        match &self.namespace {
            Some(namespace) => namespace.enter(work),
            None => Ok(work()),
        }
    }

    /// An address that nobody listens on. Nobody has to find it: a socket that listened would live on for a moment in a
    /// process that another test is just starting, and be in the way of whoever is to listen there.
    pub fn free_address(&self) -> Result<SocketAddr> {
        self.enter(|| -> Result<SocketAddr> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
            socket.local_addr()?.as_socket().context("not an address")
        })?
    }

    /// A service that follows `script`.
    pub fn origin(
        &self,
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Result<Origin> {
        Origin::start(self.namespace.as_ref(), "127.0.0.1:0".parse()?, script)
    }

    /// A connection from `source`.
    pub fn connect(&self, source: Option<IpAddr>, target: SocketAddr) -> Result<Client> {
        self.enter(|| Client::connect_here(source, target, PATIENCE))?
    }

    /// What curl says.
    pub fn curl(&self, arguments: &[&str]) -> Result<Output> {
        let common = ["--silent", "--show-error", "--max-time", "5"];
        self.run("curl", &[&common, arguments].concat())
    }

    /// What a program says until it ends.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        Ok(self.enter(|| command.output())??)
    }
}
