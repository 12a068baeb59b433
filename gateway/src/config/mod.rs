//! The configuration: `Raw` as typed in YAML, [`Config`] as meant.
//!
//! Reading is strict and complete: an unknown key, a key given twice or a value that cannot be is an error, and all
//! errors are found in one run, each with its file, line, column, the offending text and a suggestion. What is in a
//! [`Config`] has been checked: names resolve, prefixes have no host bits, at least one thing is listened on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use gateway_common::bucket::Bucket;
use http::Method;
use ipnet::IpNet;

/// A whole configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where clients connect. At least one.
    pub listen: Vec<Listener>,
    /// Worker threads; by default one per CPU that the process may use.
    pub workers: usize,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The user that the daemon becomes once it holds its sockets and maps; `None` for the first of `gateway` and
    /// `nobody` that exists.
    pub user: Option<String>,
    /// Where state is kept.
    pub state: State,
    /// The administrative interface.
    pub admin: Admin,
    /// The kernel door.
    pub kernel: Kernel,
    /// What a client may make the gateway hold or wait for.
    pub bounds: Bounds,
    /// Services behind the gateway, in the order of the file. Routes refer to them by index.
    pub upstreams: Vec<Upstream>,
    /// Routes in the order of the file.
    pub routes: Vec<Route>,
}

/// One listening address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Address and port; the port is not 0.
    pub address: SocketAddr,
}

/// Where state is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// A directory that the gateway owns: the store of rules.
    pub dir: PathBuf,
}

/// The administrative interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Path of the Unix socket (mode 0600).
    pub socket: PathBuf,
}

/// The kernel door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Interfaces to attach to. Empty: user space enforces alone.
    pub interfaces: Vec<String>,
    /// Which XDP mode to ask for.
    pub attach: Attach,
    /// What an orderly end does with the programs.
    pub on_exit: OnExit,
    /// Folder in a BPF file system where programs, maps and links are pinned.
    pub pins: PathBuf,
    /// Count what would be dropped and drop nothing.
    pub dry_run: bool,
    /// Prefixes that are always let in.
    pub allow: Vec<IpNet>,
    /// Prefixes that are dropped.
    pub deny: Vec<IpNet>,
    /// Prefixes that no rule may block, in addition to those that the gateway finds by itself.
    pub never_block: Vec<IpNet>,
    /// TCP ports whose established peers are never blocked.
    pub management_ports: Vec<u16>,
    /// The ports that buckets apply to.
    pub protected_ports: ProtectedPorts,
    /// Profiles in the order of the file.
    pub profiles: Vec<Profile>,
    /// Index in `profiles` of the one for sources without a rule; `None`: no bucket for them.
    pub default_profile: Option<usize>,
    /// Sources with a profile of their own.
    pub limits: Vec<SourceLimit>,
    /// Rules of one address family that the kernel's tables hold (unit: rules).
    pub max_rules: u32,
    /// Sources whose buckets the kernel remembers (unit: sources).
    pub max_sources: u32,
}

/// Which XDP mode to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Native where the driver has it, else generic.
    Auto,
    /// Native or an error.
    Native,
    /// Generic or an error.
    Generic,
    /// No kernel door: user space enforces alone.
    Off,
}

/// What an orderly end does with the programs in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// They go on enforcing.
    Keep,
    /// They are detached and removed.
    Detach,
}

/// The ports that buckets apply to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProtectedPorts {
    /// Those that the gateway listens on.
    Listeners,
    /// These.
    Ports(Vec<u16>),
}

/// A named bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// Packets of one source; [`Bucket::UNLIMITED`] for none.
    pub packets: Bucket,
}

/// A source with a profile of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLimit {
    /// Whose packets.
    pub source: IpNet,
    /// Index in [`Kernel::profiles`].
    pub profile: usize,
}

/// What a client may make the gateway hold or wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Client connections in all workers together.
    pub connections: usize,
    /// Header fields of a request.
    pub header_count: usize,
    /// Bytes of a request's head, and of an answer's.
    pub head_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: u64,
    /// Time for a request's head to arrive.
    pub head_timeout: Duration,
    /// Time between two pieces of a body, from either side, in either direction.
    pub idle_timeout: Duration,
    /// Time that a connection may wait for its next request.
    pub keep_alive_timeout: Duration,
    /// Time that requests in flight have to finish when the gateway ends.
    pub drain_timeout: Duration,
}

/// A service behind the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// Where it is served. At least one.
    pub endpoints: Vec<Endpoint>,
    /// Time to connect to an endpoint.
    pub connect_timeout: Duration,
    /// Time from the last byte of the request to the head of the answer.
    pub response_timeout: Duration,
    /// Idle connections kept to one endpoint by one worker.
    pub idle_connections: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
}

/// One address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An address and port.
    Address(SocketAddr),
    /// The gateway's own echo service, for trying things out.
    Echo,
}

/// Which requests go where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name in logs and metrics; by default made from its pattern.
    pub name: String,
    /// The host in lower case without a port; `None` for any.
    pub host: Option<String>,
    /// The pattern of the path.
    pub path: PathPattern,
    /// The methods; empty for any.
    pub methods: Vec<Method>,
    /// Index in [`Config::upstreams`].
    pub upstream: usize,
}

/// `/api/users/{id}` or `/static/{rest*}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// The segments between slashes.
    pub segments: Vec<Segment>,
    /// Whether anything may follow (`{name*}`), and under which name.
    pub rest: Option<String>,
}

/// One segment of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// This text.
    Literal(String),
    /// Any text, under a name.
    Capture(String),
}
