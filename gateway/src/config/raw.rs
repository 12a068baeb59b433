//! The configuration as typed: plain types, one per section, with the defaults that a reader of the file may rely on.
//! Texts are not understood here; that is for the section files beside this one.

use serde::Deserialize;

use super::Hygiene;
pub(super) use super::forms::{Named, Section, TextOr};

/// A whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Raw {
    /// Where clients connect. At least one.
    pub(super) listen: Vec<RawListener>,
    /// Worker threads. Default: one per CPU that the process may use.
    pub(super) workers: Option<u64>,
    /// The user that the daemon becomes. Default: `gateway`, else `nobody`.
    pub(super) user: Option<String>,
    /// Peers whose `X-Forwarded-For` is believed.
    pub(super) trusted_proxies: Vec<String>,
    pub(super) state: RawState,
    pub(super) admin: RawAdmin,
    pub(super) metrics: RawMetrics,
    pub(super) kernel: RawKernel,
    pub(super) bounds: RawBounds,
    pub(super) upstreams: Named<RawUpstream>,
    pub(super) routes: Vec<RawRoute>,
}

/// One listening address.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListener {
    /// `ip:port`.
    pub(super) address: String,
}

/// Where state is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawState {
    /// Default: `/var/lib/gateway` for root.
    pub(super) dir: Option<String>,
}

/// The administrative interface.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawAdmin {
    /// Default: `/run/gateway/admin.sock` for root.
    pub(super) socket: Option<String>,
}

/// Metrics over TCP.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawMetrics {
    /// `ip:port`. Default: nowhere.
    pub(super) listen: Option<String>,
}

/// The kernel door.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawKernel {
    /// Interfaces to attach to; none: user space enforces alone.
    pub(super) interfaces: Vec<String>,
    pub(super) attach: RawAttach,
    pub(super) on_exit: RawOnExit,
    /// Folder in a BPF file system.
    pub(super) pins: String,
    /// Count what would be dropped and drop nothing.
    pub(super) dry_run: bool,
    pub(super) allow: Vec<String>,
    pub(super) deny: Vec<String>,
    pub(super) allow_files: Vec<RawListFile>,
    pub(super) deny_files: Vec<RawListFile>,
    pub(super) feeds: Vec<RawFeed>,
    pub(super) never_block: Vec<String>,
    /// TCP ports whose established peers are never blocked.
    pub(super) management_ports: Vec<u16>,
    pub(super) protected_ports: RawProtectedPorts,
    /// The profile of sources without a rule. Default: no bucket for them.
    pub(super) default_profile: Option<String>,
    pub(super) profiles: Named<RawProfile>,
    pub(super) limits: Vec<RawLimit>,
    /// A rate of dropped packets that are reported as events, or `off`.
    pub(super) events: String,
    /// Rules of one address family that the kernel's tables hold.
    pub(super) max_rules: u64,
    /// Sources whose buckets the kernel remembers.
    pub(super) max_sources: u64,
    pub(super) hygiene: Hygiene,
    pub(super) host_limits: RawHostLimits,
    /// A rate of sources that are given buckets of their own. Default: by `max_sources`.
    pub(super) new_sources: Option<String>,
    /// A rate of packets of all the others together. Default: unlimited.
    pub(super) unknown_sources: Option<String>,
    /// Bits of an IPv6 address that tell one source from another.
    pub(super) ipv6_source_length: u64,
}

impl Default for RawKernel {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            attach: RawAttach::Auto,
            on_exit: RawOnExit::Keep,
            pins: "/sys/fs/bpf/gateway".to_owned(),
            dry_run: false,
            allow: Vec::new(),
            deny: Vec::new(),
            allow_files: Vec::new(),
            deny_files: Vec::new(),
            feeds: Vec::new(),
            never_block: Vec::new(),
            management_ports: vec![22],
            protected_ports: RawProtectedPorts::Listeners,
            default_profile: None,
            profiles: Named(Vec::new()),
            limits: Vec::new(),
            events: "10/s".to_owned(),
            max_rules: gateway_common::layout::RULES_DEFAULT.into(),
            max_sources: gateway_common::layout::BUCKETS_DEFAULT.into(),
            hygiene: Hygiene::ON,
            host_limits: RawHostLimits::default(),
            new_sources: None,
            unknown_sources: None,
            ipv6_source_length: 64,
        }
    }
}

/// What the host as a whole takes of what no source's bucket holds. Default: everything.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawHostLimits {
    /// A rate of UDP packets to ports that are not protected.
    pub(super) udp: Option<String>,
    /// A rate of fragments.
    pub(super) fragments: Option<String>,
}

/// Which XDP mode to ask for.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawAttach {
    Auto,
    Native,
    Generic,
    Off,
}

/// What an orderly end does with the programs in the kernel.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawOnExit {
    Keep,
    Detach,
}

/// `listeners`, or a list of ports.
#[derive(Debug)]
pub(super) enum RawProtectedPorts {
    Listeners,
    Ports(Vec<u16>),
}

/// Named buckets; at least one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProfile {
    /// A rate such as `20000/s burst 40000`, or `unlimited`, which is the default.
    #[serde(default)]
    pub(super) packets: Option<String>,
    /// A rate of new TCP connections.
    #[serde(default)]
    pub(super) connections: Option<String>,
}

/// A source with a profile of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimit {
    pub(super) source: String,
    pub(super) profile: String,
}

/// A file of prefixes: its path, alone or as `{path: ...}`.
pub(super) type RawListFile = TextOr<RawListFileSection>;

/// A file of prefixes with more to say than its path.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListFileSection {
    pub(super) path: String,
    /// Default: the name of the file without what follows its last dot.
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) dry_run: bool,
}

impl Section for RawListFileSection {
    const EXPECTED: &'static str = "the path of a file or a section with `path`";
}

/// A list that is fetched.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFeed {
    pub(super) name: String,
    /// `http://` or `https://`.
    pub(super) url: String,
    /// Time between two fetches.
    #[serde(default = "feed::every")]
    pub(super) every: String,
    #[serde(default)]
    pub(super) action: RawFeedAction,
    #[serde(default)]
    pub(super) dry_run: bool,
    /// A file of certificates. Default: the system's.
    #[serde(default)]
    pub(super) ca: Option<String>,
    /// For one fetch.
    #[serde(default = "feed::timeout")]
    pub(super) timeout: String,
    /// Of one version.
    #[serde(default = "feed::max_bytes")]
    pub(super) max_bytes: String,
    /// Share of the last good version's entries that must be left.
    #[serde(default = "feed::min_entries")]
    pub(super) min_entries: String,
    /// Share of the last good version's entries that may be there.
    #[serde(default = "feed::max_entries")]
    pub(super) max_entries: String,
    /// Share of the addresses of a family that may be covered.
    #[serde(default = "feed::max_address_share")]
    pub(super) max_address_share: String,
}

/// What a feed says if nothing else is said.
mod feed {
    pub(super) fn every() -> String {
        "1h".to_owned()
    }

    pub(super) fn timeout() -> String {
        "60s".to_owned()
    }

    pub(super) fn max_bytes() -> String {
        "64MiB".to_owned()
    }

    pub(super) fn min_entries() -> String {
        "50%".to_owned()
    }

    pub(super) fn max_entries() -> String {
        "1000%".to_owned()
    }

    pub(super) fn max_address_share() -> String {
        "5%".to_owned()
    }
}

/// What is done with the sources of a feed.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawFeedAction {
    #[default]
    Deny,
    Allow,
}

/// What a client may make the gateway hold or wait for.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawBounds {
    /// Client connections in all workers together.
    pub(super) connections: u64,
    /// Header fields of a request.
    pub(super) header_count: u64,
    /// Size of a request's head, and of an answer's.
    pub(super) head_bytes: String,
    /// Size of a request's body.
    pub(super) body_bytes: String,
    /// Time for a request's head to arrive.
    pub(super) head_timeout: String,
    /// Time between two pieces of a body.
    pub(super) idle_timeout: String,
    /// Time that a connection may wait for its next request.
    pub(super) keep_alive_timeout: String,
    /// Time that requests in flight have when the gateway ends.
    pub(super) drain_timeout: String,
}

impl Default for RawBounds {
    fn default() -> Self {
        Self {
            connections: 65_536,
            header_count: 100,
            head_bytes: "64KiB".to_owned(),
            body_bytes: "10MiB".to_owned(),
            head_timeout: "10s".to_owned(),
            idle_timeout: "60s".to_owned(),
            keep_alive_timeout: "75s".to_owned(),
            drain_timeout: "30s".to_owned(),
        }
    }
}

/// A service.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUpstream {
    /// At least one.
    pub(super) endpoints: Vec<RawEndpoint>,
    #[serde(default)]
    pub(super) timeout: RawTimeout,
    /// Idle connections kept to one endpoint by one worker.
    #[serde(default = "idle_connections")]
    pub(super) idle_connections: u64,
}

fn idle_connections() -> u64 {
    64
}

/// `ip:port` or `echo`, alone or as `{address: ...}`.
pub(super) type RawEndpoint = TextOr<RawEndpointSection>;

/// An endpoint with more to say than its address.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEndpointSection {
    pub(super) address: String,
}

impl Section for RawEndpointSection {
    const EXPECTED: &'static str = "`ip:port`, `echo` or a section with `address`";
}

/// How long an upstream may take.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTimeout {
    /// To connect to an endpoint.
    pub(super) connect: String,
    /// From the last byte of the request to the head of the answer.
    pub(super) response: String,
    /// How long an idle connection is kept.
    pub(super) idle: String,
}

impl Default for RawTimeout {
    fn default() -> Self {
        Self { connect: "1s".to_owned(), response: "10s".to_owned(), idle: "60s".to_owned() }
    }
}

/// Which requests go where.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    /// Default: made from the pattern.
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(rename = "match")]
    pub(super) pattern: RawMatch,
    /// Name of an upstream.
    pub(super) upstream: String,
}

/// Which requests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMatch {
    /// Default: any.
    #[serde(default)]
    pub(super) host: Option<String>,
    pub(super) path: String,
    /// Default: any.
    #[serde(default)]
    pub(super) methods: Vec<String>,
}
