//! Where a test of the user-space door runs: as root a network namespace of its own, otherwise free ports of the
//! loopback interface.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

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

    /// An address that nobody listens on.
    pub fn free_address(&self) -> Result<SocketAddr> {
        Ok(self.enter(|| TcpListener::bind("127.0.0.1:0"))??.local_addr()?)
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
