//! The configuration: `Raw` as typed in YAML, [`Config`] as meant.
//!
//! Reading is strict and complete: an unknown key, a key given twice or a value that cannot be is an error, and all
//! errors are found in one run, each with its file, line, column, the offending text and a suggestion. What is in a
//! [`Config`] has been checked: names resolve, prefixes have no host bits, at least one thing is listened on.

mod access_log;
mod at;
mod audit;
mod auth;
mod balance;
mod bounds;
mod breaker;
mod concurrency;
mod de;
mod diagnostic;
mod discovery;
mod feedback;
mod forms;
mod health;
mod hedge;
mod hidden;
mod identity;
mod identity_token;
mod kernel;
mod limits;
mod listen;
mod lists;
mod paths;
mod raw;
mod redis;
mod retry;
mod routes;
mod secret;
mod tls;
mod tracing;
mod tree;
mod upstreams;
mod value;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gateway_common::bucket::Bucket;
use ipnet::IpNet;
use serde::Deserialize;

pub use self::access_log::{AccessLog, Destination, Field, Format, Piece, Redact};
pub use self::audit::{AUDIT_FILES, Audit};
pub use self::auth::{
    Access, Alternative, ApiKey, Audience, AuthKind, Authenticator, Basic, CertificateName,
    ClaimPath, ClaimRules, Comparison, Consumer, CredentialPlace, Decimal, Expression, Fact, Hmac,
    HmacKey, HmacProof, IdentityClaims, Introspection, IntrospectionClient, JwksUrl, Jwt,
    JwtAlgorithm, JwtKeys, KeyRegistry, List, Mtls, Operand, Require, read_expression,
};
pub use self::balance::{Algorithm, Balance, Ejection, HashKey};
pub use self::breaker::{Breaker, FailureShare, Fallback};
pub use self::concurrency::{Adaptive, Concurrency, Limit, Priority};
pub use self::diagnostic::{Diagnostic, Errors, Place};
pub use self::discovery::{Discovery, Family, Name};
pub use self::feedback::{
    Ceiling, Feedback, FeedbackBy, FeedbackCrowdsec, FeedbackRule, FeedbackSpread, Measure,
    SharedSource,
};
pub use self::health::{Health, Probe};
pub use self::hedge::{Hedge, HedgeAfter};
pub use self::identity::{Attribute, Told};
pub use self::identity_token::IdentityToken;
pub use self::limits::{
    Allowance, CallerLimit, CountedIn, Limited, Limiting, Per, Period, Plan, Rate, RateAlgorithm,
    WhenUnavailable,
};
pub use self::lists::{Feed, FeedBounds, ListFile, Share};
pub use self::paths::{Paths, default_paths};
pub use self::redis::{Redis, RedisAddress, RedisMode, RedisTls};
pub use self::retry::{Backoff, FailureSet, Retry};
pub use self::routes::{
    Action, Ambiguity, Forward, HeaderChanges, HostPattern, Part, PathPattern, Predicate, Redirect,
    Regex, Respond, Route, Segment, Sticky, Subject, Template, Timeouts, Wanted, WeightedUpstream,
};
pub use self::secret::{SecretSource, without_line_end};
pub use self::tls::{
    AuthorityFiles, CertificateFiles, ClientCertificates, Tls, UnknownSni, UpstreamTls,
};
pub use self::tracing::{TraceFormat, TraceTrust, Tracing};

use self::at::At;
use self::diagnostic::{Problem, Span, explain};
use self::raw::Raw;

/// The configuration of a gateway that was given none.
const EMBEDDED: &str = include_str!("default.yaml");

/// Threads; more than any host has CPUs.
const WORKERS_MAX: u64 = 1024;

/// Reads a file.
pub fn read(path: &Path) -> Result<Config, Errors> {
    let file = path.display().to_string();
    let bytes = bytes_of(path).map_err(|error| {
        Errors::from(Diagnostic {
            message: format!("the configuration cannot be read: {error}"),
            help: Some(format!("check that {file} exists and that this user may read it")),
            place: None,
            file: file.clone(),
        })
    })?;
    match String::from_utf8(bytes) {
        Ok(text) => parse_in(folder_of(path), &file, &text),
        Err(error) => Err(not_text(&file, &error)),
    }
}

/// Reads a text; `file` is what it is called in messages, and paths in it are relative to the folder of that.
pub fn parse(file: &str, text: &str) -> Result<Config, Errors> {
    parse_in(Path::new(file).parent().map(Path::to_owned).unwrap_or_default(), file, text)
}

fn parse_in(folder: PathBuf, file: &str, text: &str) -> Result<Config, Errors> {
    match understand(&folder, text, &[]) {
        (Some(config), problems) if problems.is_empty() => Ok(config),
        (_, problems) => Err(explain(file, text, problems)),
    }
}

/// Where a gateway with this configuration is to be found: its admin socket and its pins. A file with mistakes in it
/// still says so unless the mistake is there, for a gateway must be reachable while somebody edits its file.
pub fn places(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let text = String::from_utf8(bytes_of(path).ok()?).ok()?;
    let folder = folder_of(path);
    // Whoever asks waits for it, and tens of thousands of routes have nothing to say here; unless something is said
    // there that is referred to here.
    let config = understand(&folder, &text, &["admin", "kernel"]).0;
    let config = config.or_else(|| understand(&folder, &text, &[]).0)?;
    let (socket, pins) = (config.admin.socket, config.kernel.pins);
    (socket.is_absolute() && pins.is_absolute()).then_some((socket, pins))
}

fn bytes_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than is accepted, so that `parse` says that it is too long.
    let limit = tree::FILE_BYTES_MAX as u64 + 1;
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The folder of a file, from the root on: the daemon's working directory may change.
fn folder_of(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    whole.parent().map(Path::to_owned).unwrap_or_default()
}

/// As much of a text as makes sense, and what does not: `sections` of it, or all if none is named.
fn understand(folder: &Path, text: &str, sections: &[&str]) -> (Option<Config>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut tree = match tree::read(text, sections, &mut problems) {
        Ok(tree) => tree,
        Err(problem) => {
            problems.push(problem);
            return (None, problems);
        }
    };
    let Some(raw) = de::read::<Raw>(&mut tree, &mut problems) else { return (None, problems) };
    let problems = RefCell::new(problems);
    let config = meant(folder, &raw, At::root(&tree, &problems));
    (Some(config), problems.into_inner())
}

/// What a gateway does that was given no file.
pub fn embedded() -> Result<Config, Errors> {
    parse("the embedded configuration", EMBEDDED)
}

/// The sections as meant. What could not be read is reported, and stands in the result only until it is thrown away.
fn meant(folder: &Path, raw: &Raw, at: At<'_>) -> Config {
    let defaults = default_paths();
    let path = |text: &Option<String>, default, at| match text {
        Some(text) => value::absolute_path(text, at).unwrap_or_default(),
        None => default,
    };
    let listen = listen::listeners(&raw.listen, folder, at.key("listen"));
    let trusted_proxies = kernel::somebody(
        &raw.trusted_proxies,
        at.key("trusted_proxies"),
        "lets anybody forge the address that a request comes from",
        "name the addresses of your load balancers",
    );
    let trusted_proxies: Vec<IpNet> = trusted_proxies.into_iter().map(|(net, _)| net).collect();
    let metrics = listen::metrics(&raw.metrics, &listen, at.key("metrics"));
    let own = metrics.listen.map(Listener::plain);
    let own: Vec<Listener> = listen.iter().cloned().chain(own).collect();
    let discovery = discovery::discovery(&raw.discovery, at.key("discovery"));
    let around = upstreams::Around { folder, listeners: &own, discovery: &discovery };
    let upstreams = upstreams::upstreams(&raw.upstreams, around, at.key("upstreams"));
    let protected = protected(&listen, &trusted_proxies, (&upstreams, &discovery));
    let auth = auth::authenticators(&raw.auth, folder, at.key("auth"));
    auth::check_registries(&raw.auth, raw.state.redis.is_some(), at.key("auth"));
    let referred = routes::Around { upstreams: &upstreams, auth: (&auth, &raw.auth) };
    let mut limits = limits::Reader::new(&raw.limiting);
    let limited = limits.limited(raw, at);
    let routes = routes::routes(&raw.routes, referred, &mut limits, at.key("routes"));
    let consumers = auth::consumers(&raw.consumers, at.key("consumers"));
    let consumers = limits.consumers(consumers, (raw, &limited.plans), at);
    let kernel = kernel::kernel(&raw.kernel, folder, protected, at.key("kernel"));
    let named = names_of_limits(&limited, &consumers, &routes);
    let state_dir = path(&raw.state.dir, defaults.state_dir, at.key("state").key("dir"));
    Config {
        feedback: feedback::feedback(raw, (&kernel, &named), folder, at),
        kernel,
        routes,
        workers: match raw.workers {
            Some(workers) => {
                value::count(workers, 1..=WORKERS_MAX, at.key("workers")).unwrap_or_default()
            }
            None => std::thread::available_parallelism().map_or(1, usize::from),
        },
        zone: raw.zone.clone().filter(|zone| value::name(zone, "a zone", at.key("zone"))),
        user: raw.user.as_ref().filter(|user| user_name(user, at.key("user"))).cloned(),
        audit: audit::audit(&raw.audit, &state_dir, at.key("audit")),
        state: State {
            dir: state_dir,
            redis: raw
                .state
                .redis
                .as_ref()
                .map(|raw| redis::redis(raw, folder, at.key("state").key("redis"))),
        },
        admin: Admin {
            socket: path(&raw.admin.socket, defaults.admin_socket, at.key("admin").key("socket")),
        },
        metrics,
        access_log: access_log::access_log(&raw.access_log, &auth, at.key("access_log")),
        tracing: tracing::tracing(&raw.tracing, at.key("tracing")),
        bounds: bounds::bounds(&raw.bounds, at.key("bounds")),
        listen,
        trusted_proxies,
        consumers,
        limited,
        told: identity::identity(raw.identity.as_ref(), &auth, folder, at.key("identity")),
        discovery,
        upstreams,
        auth,
    }
}

fn names_of_limits<'c>(
    limited: &'c Limited,
    consumers: &'c [Consumer],
    routes: &'c [Route],
) -> Vec<&'c str> {
    let plans = limited.plans.iter().flat_map(|plan| &plan.limits);
    let consumers = consumers.iter().flat_map(|consumer| &consumer.limits);
    let routes = routes.iter().flat_map(|route| &route.limits);
    let all = limited.limits.iter().chain(plans).chain(consumers).chain(routes);
    all.map(|limit| limit.name.as_str()).collect()
}

/// What the file itself says must never be blocked, besides `kernel.never_block`.
fn protected(
    listen: &[Listener],
    trusted_proxies: &[IpNet],
    (upstreams, discovery): (&[Upstream], &Discovery),
) -> Vec<(IpNet, String)> {
    let proxies = trusted_proxies.iter().map(|net| (*net, "in `trusted_proxies`".to_owned()));
    let senders = listen.iter().flat_map(|listener| &listener.proxy_protocol_from);
    let senders = senders.map(|net| (*net, "a sender of the PROXY protocol".to_owned()));
    let own = listen
        .iter()
        .filter(|listener| !listener.address.ip().is_unspecified())
        .map(|listener| (listener.address.ip().into(), "the gateway's own".to_owned()));
    let endpoints = upstreams.iter().flat_map(|upstream| {
        upstream.endpoints.iter().filter_map(|endpoint| match endpoint.target {
            Target::Address(address) => {
                let what = format!("an endpoint of the upstream `{}`", upstream.name);
                Some((address.ip().into(), what))
            }
            Target::Echo | Target::Name(_) => None,
        })
    });
    let resolvers = discovery.resolvers.iter();
    let resolvers = resolvers.map(|resolver| (resolver.ip().into(), "a resolver".to_owned()));
    proxies.chain(senders).chain(own).chain(endpoints).chain(resolvers).collect()
}

fn user_name(text: &str, at: At<'_>) -> bool {
    let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let good = rest && first && text.len() <= 32;
    if !good {
        at.error_with_help(
            format!("`{}` is no name of a user", tree::shorten(text)),
            "write the name of a system user, such as gateway",
        );
    }
    good
}

fn not_text(file: &str, error: &std::string::FromUtf8Error) -> Errors {
    let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
    let valid = String::from_utf8_lossy(valid);
    let line = valid.split('\n').count();
    let column = valid.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    // The bad byte itself cannot be shown.
    let text = format!("{valid}\u{fffd}");
    let problem = Problem::new(Span { line, column, width: 1 }, "this byte is no UTF-8")
        .help("save the file as UTF-8");
    explain(file, &text, vec![problem])
}

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
    /// Where changes are written down.
    pub audit: Audit,
    /// Metrics.
    pub metrics: Metrics,
    /// What is written down of requests; `None`: nothing.
    pub access_log: Option<AccessLog>,
    /// Which traces requests belong to; `None`: that is left to clients and upstreams.
    pub tracing: Option<Tracing>,
    /// The kernel door.
    pub kernel: Kernel,
    /// What a client may make the gateway hold or wait for.
    pub bounds: Bounds,
    /// The zone that the gateway is in, whose endpoints it prefers.
    pub zone: Option<String>,
    /// How endpoints that have names are looked up.
    pub discovery: Discovery,
    /// Services behind the gateway, in the order of the file. Routes refer to them by index.
    pub upstreams: Vec<Upstream>,
    /// Ways to know callers, in the order of the file. Routes refer to them by index.
    pub auth: Vec<Authenticator>,
    /// What is known of callers beside their credentials.
    pub consumers: Vec<Consumer>,
    /// How much callers may, whatever the route.
    pub limited: Limited,
    /// What services are told about callers; `None`: nobody asks who they are.
    pub told: Option<Told>,
    /// What becomes of what clients do; `None`: nothing is noticed.
    pub feedback: Option<Arc<Feedback>>,
    /// Routes in the order of the file.
    pub routes: Vec<Route>,
}

impl Config {
    /// Whether a connection to `address` from this host ends at the gateway, as far as the file tells.
    pub fn is_own(&self, address: SocketAddr) -> bool {
        let metrics = self.metrics.listen.map(Listener::plain);
        listen::is_own(&self.listen, address)
            || metrics.is_some_and(|metrics| listen::is_own(&[metrics], address))
    }
}

/// One listening address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Address and port; the port is not 0.
    pub address: SocketAddr,
    /// `None`: plain TCP.
    pub tls: Option<Tls>,
    /// Who alone may connect, each connection beginning with a header of the PROXY protocol; empty: there are none.
    pub proxy_protocol_from: Vec<IpNet>,
    /// The port of https that every request is sent to instead.
    pub redirect: Option<u16>,
}

impl Listener {
    /// One that takes plain TCP and asks nothing else.
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None, proxy_protocol_from: Vec::new(), redirect: None }
    }
}

/// Where state is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// A directory that the gateway owns: the store of rules.
    pub dir: PathBuf,
    /// What several gateways share; `None`: each is on its own.
    pub redis: Option<Redis>,
}

/// The administrative interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Path of the Unix socket (mode 0600).
    pub socket: PathBuf,
}

/// Metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Where they are served to anybody who asks; `None`: only over the admin socket.
    pub listen: Option<SocketAddr>,
    /// Routes, and upstreams, with series of their own; the others share one.
    pub max_names: usize,
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
    /// Files of prefixes that are let in. Names are unique among these, `deny_files` and `feeds`.
    pub allow_files: Vec<ListFile>,
    /// Files of prefixes that are dropped.
    pub deny_files: Vec<ListFile>,
    /// Lists that are fetched.
    pub feeds: Vec<Feed>,
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
    /// What is dropped because nothing honest sends it.
    pub hygiene: Hygiene,
    /// What the host as a whole takes of what no source's bucket holds.
    pub host_limits: HostLimits,
    /// Bits of an IPv6 address that tell one source's buckets from another's (32 to 64).
    pub ipv6_source_length: u8,
    /// Dropped packets that are reported as events, by all CPUs together; `None` for none.
    pub events: Option<Bucket>,
    /// New connections that `reset` rules answer, of all sources together; `None` for none.
    pub resets: Option<Bucket>,
    /// Rules of one address family that the kernel's tables hold (unit: rules).
    pub max_rules: u32,
    /// Sources whose buckets the kernel remembers (unit: sources).
    pub max_sources: u32,
    /// Sources that are given buckets of their own; beyond it they share some.
    pub new_sources: Bucket,
    /// Packets of all sources together that share buckets.
    pub unknown_sources: Bucket,
}

/// What the kernel door drops because nothing honest sends it. By default all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hygiene {
    /// TCP with flags that no state of it sends.
    pub tcp_flags: bool,
    /// Sources that cannot be, and the host's own addresses.
    pub martian: bool,
    /// Headers that contradict themselves, each other or the frame.
    pub malformed: bool,
}

impl Default for Hygiene {
    fn default() -> Self {
        Self::ON
    }
}

impl Hygiene {
    /// All of it is.
    pub const ON: Self = Self { tcp_flags: true, martian: true, malformed: true };
    /// Nothing is.
    pub const OFF: Self = Self { tcp_flags: false, martian: false, malformed: false };
}

/// What the host as a whole takes of what no source's bucket holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// UDP to ports that are not protected.
    pub udp: Bucket,
    /// Fragments.
    pub fragments: Bucket,
}

impl HostLimits {
    /// It takes everything.
    pub const NONE: Self = Self { udp: Bucket::UNLIMITED, fragments: Bucket::UNLIMITED };
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
    /// New TCP connections of one source; [`Bucket::UNLIMITED`] for none.
    pub connections: Bucket,
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
    /// Client connections of one source.
    pub connections_per_source: usize,
    /// Age from which a connection ends with its next answer, or up to a tenth sooner.
    pub connection_lifetime: Duration,
    /// Requests of one connection.
    pub connection_requests: u32,
    /// Requests at once over one connection of HTTP/2.
    pub streams: u32,
    /// Header fields of a request.
    pub header_count: usize,
    /// Bytes of a request's head, and of an answer's.
    pub head_bytes: usize,
    /// Bytes of a request's target.
    pub target_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: u64,
    /// Bytes of a body that a client must send or take in a second, but for pauses of `idle_timeout`; 0 for none.
    pub body_bytes_per_second: u64,
    /// Time for what comes before HTTP: a TLS handshake.
    pub handshake_timeout: Duration,
    /// Handshakes at the same time, in all workers together.
    pub handshakes: usize,
    /// Time for a request's head to arrive.
    pub head_timeout: Duration,
    /// Time between two pieces of a body, from either side, in either direction.
    pub idle_timeout: Duration,
    /// Time that a connection may wait for its next request.
    pub keep_alive_timeout: Duration,
    /// Time that a tunnel may stay open without a byte in either direction.
    pub tunnel_idle_timeout: Duration,
    /// Time that requests in flight have to finish when the gateway ends.
    pub drain_timeout: Duration,
}

/// What a service is asked over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    /// HTTP/2 or HTTP/1.1, as each endpoint chooses when TLS is agreed on (ALPN, RFC 7301).
    #[serde(rename = "auto")]
    Auto,
    /// HTTP/1.1, one request a connection at a time.
    #[serde(rename = "http1")]
    Http1,
    /// HTTP/2 by prior knowledge, many requests a connection.
    #[serde(rename = "h2")]
    Http2,
}

impl Protocol {
    /// As it is written in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Http1 => "http1",
            Self::Http2 => "h2",
        }
    }
}

/// A service behind the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// Where it is served. At least one.
    pub endpoints: Vec<Endpoint>,
    /// What it is asked over.
    pub protocol: Protocol,
    /// How one of them is chosen.
    pub balance: Balance,
    /// How they are asked whether they are well; `None` for not at all.
    pub health: Option<Health>,
    /// Time to connect to an endpoint.
    pub connect_timeout: Duration,
    /// Time from the last byte of the request to the head of the answer.
    pub response_timeout: Duration,
    /// Time from the choice of an endpoint to the last byte of the answer; `None` for no bound.
    pub whole_timeout: Option<Duration>,
    /// When a request is sent once more.
    pub retry: Retry,
    /// When a request is sent to another endpoint as well; `None` for never.
    pub hedge: Option<Hedge>,
    /// When it is left alone because it fails; `None` for never.
    pub breaker: Option<Breaker>,
    /// How many requests it has at once; `None` for any number.
    pub concurrency: Option<Concurrency>,
    /// Idle connections kept to one endpoint by one worker.
    pub idle_connections: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// `None`: plain TCP.
    pub tls: Option<UpstreamTls>,
    /// Whether endpoints are told where a connection comes from, by version 2 of the PROXY protocol.
    pub proxy_protocol: bool,
}

/// Where a service is, with what is said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub target: Target,
    /// Its share of the requests, beside those of the others; at least 1.
    pub weight: u32,
    /// The zone that it is in.
    pub zone: Option<String>,
}

impl From<Target> for Endpoint {
    fn from(target: Target) -> Self {
        Self { target, weight: 1, zone: None }
    }
}

/// One place of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address and port.
    Address(SocketAddr),
    /// The gateway's own echo service, for trying things out.
    Echo,
    /// Whatever a lookup finds.
    Name(Name),
}
