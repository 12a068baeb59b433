//! `kernel` as typed.

use serde::Deserialize;

use super::{Named, Section, TextOr};
use crate::config::Hygiene;

/// The kernel door.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawKernel {
    /// Interfaces to attach to; none: user space enforces alone.
    pub(in crate::config) interfaces: Vec<String>,
    pub(in crate::config) attach: RawAttach,
    pub(in crate::config) on_exit: RawOnExit,
    /// Folder in a BPF file system.
    pub(in crate::config) pins: String,
    /// Count what would be dropped and drop nothing.
    pub(in crate::config) dry_run: bool,
    pub(in crate::config) allow: Vec<String>,
    pub(in crate::config) deny: Vec<String>,
    pub(in crate::config) allow_files: Vec<RawListFile>,
    pub(in crate::config) deny_files: Vec<RawListFile>,
    pub(in crate::config) feeds: Vec<RawFeed>,
    pub(in crate::config) never_block: Vec<String>,
    /// TCP ports whose established peers are never blocked.
    pub(in crate::config) management_ports: Vec<u16>,
    pub(in crate::config) protected_ports: RawProtectedPorts,
    /// The profile of sources without a rule. Default: no bucket for them.
    pub(in crate::config) default_profile: Option<String>,
    pub(in crate::config) profiles: Named<RawProfile>,
    pub(in crate::config) limits: Vec<RawLimit>,
    /// A rate of dropped packets that are reported as events, or `off`.
    pub(in crate::config) events: String,
    /// A rate of new connections that `reset` rules answer, or `off`.
    pub(in crate::config) resets: String,
    /// Rules of one address family that the kernel's tables hold.
    pub(in crate::config) max_rules: u64,
    /// Sources whose buckets the kernel remembers.
    pub(in crate::config) max_sources: u64,
    pub(in crate::config) hygiene: Hygiene,
    pub(in crate::config) host_limits: RawHostLimits,
    /// A rate of sources that are given buckets of their own. Default: by `max_sources`.
    pub(in crate::config) new_sources: Option<String>,
    /// A rate of packets of all the others together. Default: unlimited.
    pub(in crate::config) unknown_sources: Option<String>,
    /// Bits of an IPv6 address that tell one source from another.
    pub(in crate::config) ipv6_source_length: u64,
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
            resets: "1000/s burst 100".to_owned(),
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
pub(in crate::config) struct RawHostLimits {
    /// A rate of UDP packets to ports that are not protected.
    pub(in crate::config) udp: Option<String>,
    /// A rate of fragments.
    pub(in crate::config) fragments: Option<String>,
}

/// Which XDP mode to ask for.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RawAttach {
    Auto,
    Native,
    Generic,
    Off,
}

/// What an orderly end does with the programs in the kernel.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RawOnExit {
    Keep,
    Detach,
}

/// `listeners`, or a list of ports.
#[derive(Debug)]
pub(in crate::config) enum RawProtectedPorts {
    Listeners,
    Ports(Vec<u16>),
}

/// Named buckets; at least one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawProfile {
    /// A rate such as `20000/s burst 40000`, or `unlimited`, which is the default.
    #[serde(default)]
    pub(in crate::config) packets: Option<String>,
    /// A rate of new TCP connections.
    #[serde(default)]
    pub(in crate::config) connections: Option<String>,
}

/// A source with a profile of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawLimit {
    pub(in crate::config) source: String,
    pub(in crate::config) profile: String,
}

/// A file of prefixes: its path, alone or as `{path: ...}`.
pub(in crate::config) type RawListFile = TextOr<RawListFileSection>;

/// A file of prefixes with more to say than its path.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawListFileSection {
    pub(in crate::config) path: String,
    /// Default: the name of the file without what follows its last dot.
    #[serde(default)]
    pub(in crate::config) name: Option<String>,
    #[serde(default)]
    pub(in crate::config) dry_run: bool,
    /// Share of the entries of the version in force that must be left.
    #[serde(default = "list_file::min_entries")]
    pub(in crate::config) min_entries: String,
}

impl Section for RawListFileSection {
    const EXPECTED: &'static str = "the path of a file or a section with `path`";
}

/// What a file says if nothing else is said.
mod list_file {
    pub(in crate::config) fn min_entries() -> String {
        "0%".to_owned()
    }
}

/// A list that is fetched.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawFeed {
    pub(in crate::config) name: String,
    /// `http://` or `https://`.
    pub(in crate::config) url: String,
    /// Time between two fetches.
    #[serde(default = "feed::every")]
    pub(in crate::config) every: String,
    #[serde(default)]
    pub(in crate::config) action: RawFeedAction,
    #[serde(default)]
    pub(in crate::config) dry_run: bool,
    /// A file of certificates. Default: the system's.
    #[serde(default)]
    pub(in crate::config) ca: Option<String>,
    /// For one fetch.
    #[serde(default = "feed::timeout")]
    pub(in crate::config) timeout: String,
    /// Of one version.
    #[serde(default = "feed::max_bytes")]
    pub(in crate::config) max_bytes: String,
    /// Share of the last good version's entries that must be left.
    #[serde(default = "feed::min_entries")]
    pub(in crate::config) min_entries: String,
    /// Share of the last good version's entries that may be there.
    #[serde(default = "feed::max_entries")]
    pub(in crate::config) max_entries: String,
    /// Share of the addresses of a family that may be covered.
    #[serde(default = "feed::max_address_share")]
    pub(in crate::config) max_address_share: String,
}

/// What a feed says if nothing else is said.
mod feed {
    pub(in crate::config) fn every() -> String {
        "1h".to_owned()
    }

    pub(in crate::config) fn timeout() -> String {
        "60s".to_owned()
    }

    pub(in crate::config) fn max_bytes() -> String {
        "64MiB".to_owned()
    }

    pub(in crate::config) fn min_entries() -> String {
        "50%".to_owned()
    }

    pub(in crate::config) fn max_entries() -> String {
        "1000%".to_owned()
    }

    pub(in crate::config) fn max_address_share() -> String {
        "5%".to_owned()
    }
}

/// What is done with the sources of a feed.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RawFeedAction {
    #[default]
    Deny,
    Allow,
}
