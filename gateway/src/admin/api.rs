//! What is asked over the admin socket and what is answered, the same types on both sides.

use std::fmt;
use std::net::IpAddr;

use gateway_common::rule::Action;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::bans::{BanRequest, BanView, FeedbackView};
use super::certificates::CertificateView;
use super::crowdsec::CrowdsecView;
use super::guards::GuardView;
use super::keys::{KeyRequest, KeyView, NewKey};
use super::monitor::{Events, Top};
use super::query;
use super::redis::RedisView;
pub use super::refusal::Refusal;
use super::rules::{ListView, RuleCounts, RuleView, Why};
use super::spread::SpreadView;
use super::upstreams::UpstreamView;
use crate::feedback::decision::Subject;
use crate::kernel::netlink::Mode;
use crate::rules::Place;
use crate::rules::entries::Entries;
use crate::rules::list_file::{ActionName, Header};

/// One command on its way to `control`.
#[derive(Debug)]
pub struct Command {
    /// What is asked.
    pub request: Request,
    /// The numeric user who asks.
    pub uid: u32,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Answer, Refusal>>,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// How things stand.
    Status,
    /// A page of the rules.
    List(ListQuery),
    /// The lists that are in force.
    Lists,
    /// Put a list in force, in the place of the one of the same name.
    PutList(Box<PutList>),
    /// Take a list back with all of its entries.
    RemoveList(RemoveList),
    /// Read a list of the configuration again now.
    RefreshList(ListName),
    /// Put the version of a file or feed in force that is held back.
    AcceptList(ListName),
    /// Make rules.
    Add(Add),
    /// Take rules back.
    Remove(Remove),
    /// Keep what waits to be confirmed.
    Confirm,
    /// Explain what happens to an address.
    Why(IpAddr),
    /// Dropped packets that were reported.
    Events(query::Events),
    /// All figures, as Prometheus reads them.
    Metrics,
    /// API keys.
    Keys(KeyRequest),
    /// Bans.
    Bans(BanRequest),
    /// What goes on, with so many of the busiest rules.
    Top(usize),
    /// Read the configuration again.
    Reload,
    /// Take the programs out of the kernel.
    Detach,
    /// End: no new connections, requests in flight finish.
    Drain,
}

/// What people keep rules for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListAction {
    /// Let in, past every bucket.
    Allow,
    /// Dropped.
    Deny,
    /// Held to a profile of their own.
    Limit,
    /// Dropped, and new connections answered with TCP RST. Kept among those that are denied.
    Reset,
}

impl ListAction {
    /// The name in listings.
    pub fn name(self) -> &'static str {
        Action::from(self).name()
    }

    /// Whether rules that do this are kept among those.
    pub fn holds(self, action: Action) -> bool {
        Action::from(self) == action || self == Self::Deny && action == Action::Reset
    }
}

impl From<ActionName> for ListAction {
    fn from(action: ActionName) -> Self {
        match action {
            ActionName::Allow => Self::Allow,
            ActionName::Deny => Self::Deny,
        }
    }
}

impl From<ListAction> for Action {
    fn from(action: ListAction) -> Self {
        match action {
            ListAction::Allow => Self::Allow,
            ListAction::Deny => Self::Deny,
            ListAction::Limit => Self::Limit,
            ListAction::Reset => Self::Reset,
        }
    }
}

/// Which rules are asked for: a page of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListQuery {
    /// With this action; all without it.
    pub action: Option<ListAction>,
    /// Of this list.
    pub list: Option<String>,
    /// Made by this origin.
    pub origin: Option<String>,
    /// Inside of this prefix.
    pub inside: Option<IpNet>,
    /// Those with the most packets first, and only one page of them.
    pub by_packets: bool,
    /// Rules of the page, at most [`PAGE_MAX_RULES`].
    pub limit: usize,
    /// Behind this place, which a page names for the next one.
    pub after: Option<Place>,
}

/// Rules of one page.
pub const PAGE_MAX_RULES: usize = 10_000;

/// A list to be put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutList {
    /// What it is called, and what it does.
    pub header: Header,
    /// Its entries.
    pub entries: std::sync::Arc<Entries>,
    /// Deny very large prefixes too.
    pub yes: bool,
    /// See [`Add::confirm_within_ms`].
    pub confirm_within_ms: Option<u64>,
}

/// A list to be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveList {
    /// What its entries do.
    pub action: ActionName,
    /// Its name.
    pub name: String,
    /// Put it back after this time (unit: milliseconds) unless somebody confirms.
    pub confirm_within_ms: Option<u64>,
}

/// A list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListName {
    /// Its name.
    pub name: String,
}

/// New rules, all or none of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// What they do.
    pub action: ListAction,
    /// Prefixes as people write them.
    pub prefixes: Vec<String>,
    /// Name of the profile that [`ListAction::Limit`] holds them to.
    #[serde(default)]
    pub profile: Option<String>,
    /// How long they hold, in milliseconds; for ever without it.
    pub for_ms: Option<u64>,
    /// Why, for whoever asks later.
    #[serde(default)]
    pub reason: String,
    /// Deny protected addresses too.
    #[serde(default)]
    pub force: bool,
    /// Deny very large prefixes too.
    #[serde(default)]
    pub yes: bool,
    /// Put it back unless [`Request::Confirm`] comes within so many milliseconds.
    pub confirm_within_ms: Option<u64>,
}

/// Rules to take back, all or none of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// Of which list.
    pub action: ListAction,
    /// Prefixes as people write them.
    pub prefixes: Vec<String>,
    /// See [`Add::confirm_within_ms`].
    pub confirm_within_ms: Option<u64>,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Why`].
    Why(Box<Why>),
    /// To [`Request::List`].
    Rules {
        /// The rules.
        rules: Vec<RuleView>,
        /// Where the next page begins, if there is one.
        #[serde(default)]
        next: Option<Place>,
    },
    /// To [`Request::Lists`].
    Lists {
        /// The lists.
        lists: Vec<ListView>,
    },
    /// To [`KeyRequest::List`].
    Keys {
        /// The keys.
        keys: Vec<KeyView>,
        /// Where the next page begins, if there is one.
        #[serde(default)]
        next: Option<String>,
    },
    /// To [`BanRequest::List`].
    Bans {
        /// The bans, or the decisions that were not carried out.
        bans: Vec<BanView>,
        /// Behind which the next page begins, if there is one.
        #[serde(default)]
        next: Option<Subject>,
    },
    /// To [`KeyRequest::Create`] and [`KeyRequest::Rotate`].
    NewKey(Box<NewKey>),
    /// To [`Request::Events`].
    Events(Events),
    /// To [`Request::Top`].
    Top(Box<Top>),
    /// To everything that changes something.
    Done(Done),
    /// To [`Request::Metrics`]. Goes over the socket as it is.
    Metrics(String),
}

/// What was done, and what whoever asked should know about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// A line for each thing that was done.
    pub done: Vec<String>,
    /// A line for each thing to know.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Request {
    /// Says that the many addresses are meant.
    pub fn insist(&mut self) {
        match self {
            Self::Add(add) => add.yes = true,
            Self::PutList(put) => put.yes = true,
            _ => {}
        }
    }

    /// Whether it changes anything, and so belongs into the audit trail.
    pub fn changes(&self) -> bool {
        match self {
            Self::Add(_)
            | Self::Remove(_)
            | Self::PutList(_)
            | Self::RemoveList(_)
            | Self::RefreshList(_)
            | Self::AcceptList(_)
            | Self::Confirm
            | Self::Reload
            | Self::Detach
            | Self::Drain => true,
            Self::Keys(request) => request.changes(),
            Self::Bans(request) => request.changes(),
            Self::Status
            | Self::List(_)
            | Self::Lists
            | Self::Why(_)
            | Self::Events(_)
            | Self::Metrics
            | Self::Top(_) => false,
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As it was typed: `reset` is what `deny add --reset` makes.
        let name = |action: ListAction| match action {
            ListAction::Reset => ListAction::Deny.name(),
            _ => action.name(),
        };
        match self {
            Self::Status => formatter.write_str("status"),
            Self::List(query) => write!(formatter, "{} list", query.action.map_or("rules", name)),
            Self::Lists => formatter.write_str("lists"),
            Self::PutList(put) => {
                let Header { name, action, source, .. } = &put.header;
                let entries = put.entries.len();
                write!(formatter, "{} import {source:?} --list {name:?}", action.name())?;
                write!(formatter, " ({entries} entries)")
            }
            Self::RemoveList(remove) => {
                write!(formatter, "{} remove --list {:?}", remove.action.name(), remove.name)
            }
            Self::RefreshList(list) => write!(formatter, "lists refresh {:?}", list.name),
            Self::AcceptList(list) => write!(formatter, "lists accept {:?}", list.name),
            Self::Add(add) => {
                let (verb, prefixes) = (name(add.action), first_of(&add.prefixes));
                match &add.profile {
                    Some(profile) => write!(formatter, "{verb} set {prefixes} {profile:?}")?,
                    None => write!(formatter, "{verb} add {prefixes}")?,
                }
                if add.action == ListAction::Reset {
                    formatter.write_str(" --reset")?;
                }
                if let Some(milliseconds) = add.for_ms {
                    write!(formatter, " --for {milliseconds}ms")?;
                }
                if add.force {
                    formatter.write_str(" --force")?;
                }
                write!(formatter, " --reason {:?}", add.reason)
            }
            Self::Remove(remove) => {
                write!(formatter, "{} remove {}", name(remove.action), first_of(&remove.prefixes))
            }
            Self::Keys(request) => request.fmt(formatter),
            Self::Bans(request) => request.fmt(formatter),
            Self::Confirm => formatter.write_str("confirm"),
            Self::Why(address) => write!(formatter, "why {address}"),
            Self::Events(_) => formatter.write_str("events"),
            Self::Metrics => formatter.write_str("metrics"),
            Self::Top(_) => formatter.write_str("top"),
            Self::Reload => formatter.write_str("reload"),
            Self::Detach => formatter.write_str("kernel detach"),
            Self::Drain => formatter.write_str("drain"),
        }
    }
}

/// The prefixes of a command for the audit trail, which one command must not flood. They have not been read yet, so
/// whatever is odd in them is escaped.
pub(super) fn first_of(prefixes: &[String]) -> String {
    const NAMED_MAX: usize = 20;
    const NAMED_MAX_CHARS: usize = 64;
    let named = prefixes.iter().take(NAMED_MAX);
    let mut named: Vec<String> =
        named.map(|text| text.escape_debug().take(NAMED_MAX_CHARS).collect()).collect();
    if let Some(more @ 1..) = prefixes.len().checked_sub(NAMED_MAX) {
        named.push(format!("and {more} more"));
    }
    named.join(" ")
}

/// How things stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of the binary.
    pub version: String,
    /// Of the daemon.
    pub pid: u32,
    /// Since it started.
    pub uptime_seconds: u64,
    /// Path of the configuration, or `embedded default`.
    pub config: String,
    /// User that the daemon runs as.
    pub user: String,
    /// Capabilities that it kept.
    pub capabilities: Vec<String>,
    /// Addresses that it listens on.
    pub listen: Vec<String>,
    /// Those of them whose address no interface has yet.
    #[serde(default)]
    pub listen_absent: Vec<String>,
    /// Worker threads.
    pub workers: usize,
    /// The kernel door.
    pub kernel: KernelStatus,
    /// Rules by action, and what was held back.
    pub rules: RuleCounts,
    /// What is wrong with lists of the configuration, each with its name.
    #[serde(default)]
    pub lists: Vec<String>,
    /// The services behind it.
    #[serde(default)]
    pub upstreams: Vec<UpstreamView>,
    /// Certificates of listeners.
    #[serde(default)]
    pub certificates: Vec<CertificateView>,
    /// What is wrong with certificates, or soon will be.
    #[serde(default)]
    pub certificate_notes: Vec<String>,
    /// Breakers and limits of upstreams.
    #[serde(default)]
    pub guards: Vec<GuardView>,
    /// What becomes of what is noticed about clients; without a section `feedback` none.
    #[serde(default)]
    pub feedback: Option<FeedbackView>,
    /// What several gateways share.
    #[serde(default)]
    pub redis: Option<RedisView>,
    /// How other gateways are told about sources, and heard.
    #[serde(default)]
    pub spread: Option<SpreadView>,
    /// The crowdsec whose decisions are carried out; `None` without `feedback.crowdsec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crowdsec: Option<CrowdsecView>,
    /// What the proxy did, as its counters have it.
    pub proxy: serde_json::Value,
}

/// The kernel door.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelStatus {
    /// Whether rules are enforced in the kernel.
    pub enforcing: bool,
    /// Why not, or why not as well as it could.
    pub note: Option<String>,
    /// Whether drops are only counted.
    pub dry_run: bool,
    /// Each interface with the mode that the kernel reports.
    pub interfaces: Vec<InterfaceStatus>,
    /// What its tables cost the host.
    pub memory_bytes: u64,
    /// Packets by reason since the maps were made.
    pub counters: Vec<CounterView>,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// As the kernel reports it; none when nothing runs there.
    pub mode: Option<Mode>,
    /// Why nothing runs there, and what becomes of it.
    #[serde(default)]
    pub note: Option<String>,
}

/// One counter of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterView {
    /// Name of the reason.
    pub reason: String,
    /// `pass` or `drop`.
    pub verdict: String,
    /// Packets.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Packets that would have been dropped were it not a dry run.
    pub dry_run_packets: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audit_trail_has_one_bounded_line_for_a_command() {
        let mut prefixes = vec!["1.2.3.4\nuid=0 \u{1b}[2J".to_owned(), "x".repeat(1000)];
        prefixes.extend((0..100).map(|last| format!("192.0.2.{last}")));
        let line =
            Request::Remove(Remove { action: ListAction::Deny, prefixes, confirm_within_ms: None })
                .to_string();
        assert!(!line.contains(char::is_control), "{line}");
        assert!(line.len() < 1000 && line.ends_with("and 82 more"), "{line}");
    }

    #[test]
    fn the_audit_trail_has_what_was_typed() {
        let add = |action, profile: Option<&str>| {
            let add = Add {
                action,
                prefixes: vec!["192.0.2.1".to_owned()],
                profile: profile.map(str::to_owned),
                for_ms: None,
                reason: "x".to_owned(),
                force: false,
                yes: false,
                confirm_within_ms: None,
            };
            Request::Add(add).to_string()
        };
        assert_eq!(add(ListAction::Deny, None), "deny add 192.0.2.1 --reason \"x\"");
        assert_eq!(add(ListAction::Reset, None), "deny add 192.0.2.1 --reset --reason \"x\"");
        let limited = add(ListAction::Limit, Some("tight"));
        assert_eq!(limited, "limit set 192.0.2.1 \"tight\" --reason \"x\"");
    }
}
