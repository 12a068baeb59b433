//! `kernel`: interfaces, lists, profiles. Refuses lists that contradict themselves, everybody-prefixes, and blocks of
//! addresses that nobody may block.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use gateway_common::bucket::Bucket;
use gateway_common::layout::PROFILES_MAX;
use ipnet::IpNet;

use super::at::At;
use super::diagnostic::suggestion;
use super::lists::Lists;
use super::raw::{RawAttach, RawHostLimits, RawKernel, RawOnExit, RawProtectedPorts};
use super::tree::shorten;
use super::value::{absolute_path, count, name, one_prefix, ports, prefixes, rate};
use super::{Attach, HostLimits, Kernel, OnExit, Profile, ProtectedPorts, SourceLimit};
use crate::base::prefix::display;

/// The kernel's IFNAMSIZ without its final zero.
const INTERFACE_NAME_BYTES: usize = 15;
/// Of the highest rate of events, 1000/s: beyond it telling of a flood becomes work of its own.
const EVENT_INTERVAL_MIN_NS: u64 = 1_000_000;
/// Of the highest rate of answers to new connections, 100000/s: beyond it a flood of SYN is a flood of RST.
const RESET_INTERVAL_MIN_NS: u64 = 10_000;
/// Rules and sources that one table may hold: beyond it is more memory than a host gives.
const TABLE_MAX: u64 = 1 << 24;

/// `folder` is the file's; `protected` are the other prefixes that no rule may block, each with what it is.
pub(super) fn kernel(
    raw: &RawKernel,
    folder: &Path,
    mut protected: Vec<(IpNet, String)>,
    at: At<'_>,
) -> Kernel {
    let Lists { allow_files, deny_files, feeds } = super::lists::lists(raw, folder, at);
    protected.extend(feeds.iter().filter_map(|feed| {
        Some((feed.address()?.into(), format!("the address of the feed `{}`", feed.name)))
    }));
    let (allow, deny, never_block) = lists(raw, at);
    let profiles = profiles(raw, at.key("profiles"));
    let limits = limits(raw, &profiles, at.key("limits"));

    protected.extend(never_block.iter().map(|(net, _)| (*net, "in `never_block`".to_owned())));
    contradictions(&allow, &deny, &limits, at);
    refuse_blocks(&protected, &deny, &limits, at);
    let max_rules = table(raw.max_rules, at.key("max_rules"));
    let written = [&allow, &deny, &never_block].into_iter().flatten().map(|(net, _)| *net);
    room(written.chain(limits.iter().map(|(limit, _)| limit.source)), max_rules, at);
    let max_sources = table(raw.max_sources, at.key("max_sources"));
    let (new_sources, unknown_sources) = newcomers(raw, max_sources, at);
    Kernel {
        interfaces: interfaces(&raw.interfaces, at.key("interfaces")),
        attach: attach(raw.attach),
        on_exit: match raw.on_exit {
            RawOnExit::Keep => OnExit::Keep,
            RawOnExit::Detach => OnExit::Detach,
        },
        pins: absolute_path(&raw.pins, at.key("pins")).unwrap_or_default(),
        dry_run: raw.dry_run,
        allow: only_prefixes(allow),
        deny: only_prefixes(deny),
        allow_files,
        deny_files,
        feeds,
        never_block: only_prefixes(never_block),
        management_ports: ports(&raw.management_ports, at.key("management_ports")),
        protected_ports: protected_ports(&raw.protected_ports, at.key("protected_ports")),
        default_profile: raw
            .default_profile
            .as_ref()
            .and_then(|name| profile(name, &profiles, at.key("default_profile"))),
        profiles,
        limits: limits.into_iter().map(|(limit, _)| limit).collect(),
        events: events(&raw.events, at.key("events")),
        resets: resets(&raw.resets, at.key("resets")),
        max_rules,
        max_sources,
        new_sources,
        unknown_sources,
        hygiene: raw.hygiene,
        host_limits: host_limits(&raw.host_limits, at.key("host_limits")),
        ipv6_source_length: source_length(raw.ipv6_source_length, at.key("ipv6_source_length")),
    }
}

/// The buckets of the whole host: of sources that are given buckets of their own, and of packets of all others.
///
/// Without a setting a sixteenth of the table a second and at most a quarter at once, so that nobody who sends within
/// some seconds is forgotten, whatever arrives meanwhile.
fn newcomers(raw: &RawKernel, max_sources: u32, at: At<'_>) -> (Bucket, Bucket) {
    let by_table = || {
        let most = u64::from(max_sources);
        Bucket::per_second((most / 16).max(1), (most / 4).max(1)).unwrap_or(Bucket::UNLIMITED)
    };
    let of = |text: &Option<String>, at| text.as_ref().and_then(|text| rate(text, at));
    let new_sources = of(&raw.new_sources, at.key("new_sources"));
    let unknown_sources = of(&raw.unknown_sources, at.key("unknown_sources"));
    let (new, unknown) =
        (new_sources.unwrap_or_else(by_table), unknown_sources.unwrap_or(Bucket::UNLIMITED));
    if new_sources.is_some_and(|new| new.is_unlimited()) && !unknown.is_unlimited() {
        at.key("unknown_sources").error_with_help(
            "no source is unknown while `new_sources` is unlimited",
            "give `new_sources` a rate, or remove it",
        );
    }
    (new, unknown)
}

/// The rate at which dropped packets are reported, if any are.
fn events(text: &str, at: At<'_>) -> Option<Bucket> {
    let bucket = rate_or_off(text, at)?;
    if bucket.interval_ns < EVENT_INTERVAL_MIN_NS {
        at.error_with_help(
            format!("`{}` reports more than anybody reads", shorten(text)),
            "events are a sample, and the totals count every packet: write off or at most 1000/s",
        );
    }
    Some(bucket)
}

/// The rate at which `reset` rules answer, if they do.
fn resets(text: &str, at: At<'_>) -> Option<Bucket> {
    let bucket = rate_or_off(text, at)?;
    if bucket.interval_ns < RESET_INTERVAL_MIN_NS {
        at.error_with_help(
            format!("`{}` answers a flood with a flood", shorten(text)),
            "beyond the rate packets are dropped without an answer: write off or at most 100000/s",
        );
    }
    Some(bucket)
}

fn rate_or_off(text: &str, at: At<'_>) -> Option<Bucket> {
    if text.trim() == "off" { None } else { rate(text, at) }
}

fn host_limits(raw: &RawHostLimits, at: At<'_>) -> HostLimits {
    HostLimits {
        udp: bucket(raw.udp.as_deref(), at.key("udp")),
        fragments: bucket(raw.fragments.as_deref(), at.key("fragments")),
    }
}

fn bucket(text: Option<&str>, at: At<'_>) -> Bucket {
    text.and_then(|text| rate(text, at)).unwrap_or(Bucket::UNLIMITED)
}

/// From what a registry gives an operator to what a subscriber has at least.
fn source_length(bits: u64, at: At<'_>) -> u8 {
    count(bits, 32..=64, at).and_then(|bits| u8::try_from(bits).ok()).unwrap_or(64)
}

type List = Vec<(IpNet, usize)>;

/// `allow`, `deny` and `never_block`, each prefix with its place in the list.
fn lists(raw: &RawKernel, at: At<'_>) -> (List, List, List) {
    let list = |texts, key, what, help| somebody(texts, at.key(key), what, help);
    let allow = list(
        &raw.allow,
        "allow",
        "lets everybody past every limit",
        "name the sources to let in; to open the kernel door for all write attach: off",
    );
    let deny = list(
        &raw.deny,
        "deny",
        "denies everybody",
        "name the sources to keep out; to let in only those in `allow`, deny both halves: \
         0.0.0.0/1 and 128.0.0.0/1, or ::/1 and 8000::/1",
    );
    let never_block = list(
        &raw.never_block,
        "never_block",
        "leaves nobody to block",
        "name the addresses that must never be blocked, or write attach: off",
    );
    (allow, deny, never_block)
}

fn attach(raw: RawAttach) -> Attach {
    match raw {
        RawAttach::Auto => Attach::Auto,
        RawAttach::Native => Attach::Native,
        RawAttach::Generic => Attach::Generic,
        RawAttach::Off => Attach::Off,
    }
}

fn table(number: u64, at: At<'_>) -> u32 {
    let number = count(number, 1..=TABLE_MAX, at);
    number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
}

fn only_prefixes(list: List) -> Vec<IpNet> {
    list.into_iter().map(|(net, _)| net).collect()
}

fn interfaces(names: &[String], at: At<'_>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let at = at.item(index);
        let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        let shown = shorten(name);
        if name.len() > INTERFACE_NAME_BYTES {
            at.error_with_help(
                format!("`{shown}` is too long for an interface: {} bytes", name.len()),
                format!("a name has at most {INTERFACE_NAME_BYTES} bytes; `ip link` lists them"),
            );
        } else if name.is_empty() || name == "." || name == ".." || name.contains(odd) {
            at.error_with_help(
                format!("`{shown}` cannot be the name of an interface"),
                "write a name that `ip link` lists, such as eth0",
            );
        } else if found.contains(name) {
            at.error_with_help(
                format!("interface `{shown}` is given twice"),
                "remove one of the two",
            );
        } else {
            found.push(name.clone());
        }
    }
    found
}

fn protected_ports(raw: &RawProtectedPorts, at: At<'_>) -> ProtectedPorts {
    match raw {
        RawProtectedPorts::Listeners => ProtectedPorts::Listeners,
        RawProtectedPorts::Ports(numbers) => {
            if numbers.is_empty() {
                at.on_key().error_with_help(
                    "without a protected port no bucket applies to anything",
                    "write `listeners`, or the ports that buckets apply to",
                );
            }
            ProtectedPorts::Ports(ports(numbers, at))
        }
    }
}

fn profiles(raw: &RawKernel, at: At<'_>) -> Vec<Profile> {
    // One place in the kernel's table is the default's.
    let most = PROFILES_MAX as usize - 1;
    if raw.profiles.0.len() > most {
        at.on_key().error_with_help(
            format!("{} profiles are too many", raw.profiles.0.len()),
            format!("the map PROFILES has room for {most}, which no setting changes"),
        );
    }
    let entries = raw.profiles.0.iter().enumerate();
    entries
        .map(|(index, (own_name, raw))| {
            let at = at.entry(index);
            name(own_name, "a profile", at.on_key());
            if raw.packets.is_none() && raw.connections.is_none() {
                let help = "give it packets, connections or both: {packets: 20000/s}";
                at.error_with_help(format!("profile `{own_name}` limits nothing"), help);
            }
            Profile {
                name: own_name.clone(),
                packets: bucket(raw.packets.as_deref(), at.key("packets")),
                connections: bucket(raw.connections.as_deref(), at.key("connections")),
            }
        })
        .collect()
}

fn profile(name: &str, profiles: &[Profile], at: At<'_>) -> Option<usize> {
    let found = profiles.iter().position(|profile| profile.name == name);
    if found.is_none() {
        let message = format!("there is no profile `{}`", shorten(name));
        match suggestion(name, profiles.iter().map(|profile| profile.name.as_str())) {
            Some(help) => at.error_with_help(message, help),
            None => at.error_with_help(message, "add it to `kernel.profiles`"),
        }
    }
    found
}

fn limits(raw: &RawKernel, profiles: &[Profile], at: At<'_>) -> Vec<(SourceLimit, usize)> {
    let mut lines: HashMap<IpNet, usize> = HashMap::new();
    let mut found = Vec::new();
    for (index, limit) in raw.limits.iter().enumerate() {
        let at = at.item(index);
        let source = one_prefix(&limit.source, at.key("source"));
        let profile = profile(&limit.profile, profiles, at.key("profile"));
        let Some(source) = source else { continue };
        let at = at.key("source");
        if source.prefix_len() == 0 {
            at.error_with_help(
                format!("`{source}` is everybody"),
                "name the profile of everybody by `default_profile`",
            );
        } else if let Some(line) = lines.get(&source) {
            at.error_with_help(
                format!("`{}` has two limits", display(&source)),
                format!("the first is in line {line}: remove one of the two"),
            );
        } else {
            lines.insert(source, at.line());
            found.extend(profile.map(|profile| (SourceLimit { source, profile }, index)));
        }
    }
    found
}

/// A list of prefixes, each once, with its place in the list. Reports those that are everybody.
pub(super) fn somebody(texts: &[String], at: At<'_>, what: &str, help: &str) -> List {
    let mut list = prefixes(texts, at);
    list.retain(|(net, index)| {
        let everybody = net.prefix_len() == 0;
        if everybody {
            at.item(*index).error_with_help(format!("`{net}` {what}"), help);
        }
        !everybody
    });
    list
}

/// Reports a prefix that two lists decide differently about.
fn contradictions(
    allow: &[(IpNet, usize)],
    deny: &[(IpNet, usize)],
    limits: &[(SourceLimit, usize)],
    at: At<'_>,
) {
    let mut first: HashMap<IpNet, (&str, usize)> = HashMap::new();
    for (net, index) in allow {
        first.insert(*net, ("allow", at.key("allow").item(*index).line()));
    }
    let limits = limits.iter().map(|(limit, index)| {
        (limit.source, "limits", at.key("limits").item(*index).key("source"))
    });
    let deny = deny.iter().map(|(net, index)| (*net, "deny", at.key("deny").item(*index)));
    for (net, list, at) in limits.chain(deny) {
        match first.get(&net) {
            Some((other, line)) => at.error_with_help(
                format!("`{}` is in `{other}` and in `{list}`", display(&net)),
                format!("the other is in line {line} and would win: remove one of the two"),
            ),
            None => {
                first.insert(net, (list, at.line()));
            }
        }
    }
}

/// Reports what would block an address that nobody may block. A wider rule applies around it and is fine.
fn refuse_blocks(
    protected: &[(IpNet, String)],
    deny: &[(IpNet, usize)],
    limits: &[(SourceLimit, usize)],
    at: At<'_>,
) {
    let deny = deny.iter().map(|(net, index)| (*net, "denied", at.key("deny").item(*index)));
    let limits = limits.iter().map(|(limit, index)| {
        (limit.source, "limited", at.key("limits").item(*index).key("source"))
    });
    // By length, so that long lists beside many endpoints cost no product of the two.
    let mut by_net: HashMap<IpNet, &str> = HashMap::new();
    for (net, why) in protected {
        by_net.entry(*net).or_insert(why);
    }
    let lengths: BTreeSet<u8> = by_net.keys().map(IpNet::prefix_len).collect();
    for (net, what, at) in deny.chain(limits) {
        let around = lengths.range(..=net.prefix_len()).find_map(|length| {
            let around = IpNet::new(net.addr(), *length).ok()?.trunc();
            by_net.get(&around).map(|why| (around, *why))
        });
        let Some((around, why)) = around else { continue };
        let inside = if around == net {
            format!("it is {why}")
        } else {
            format!("it lies in {}, which is {why}", display(&around))
        };
        at.error_with_help(
            format!("`{}` cannot be {what}: {inside}", display(&net)),
            "remove one of the two; a wider prefix applies around protected addresses",
        );
    }
}

/// Reports more rules than the tables hold.
fn room(rules: impl Iterator<Item = IpNet>, max_rules: u32, at: At<'_>) {
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = rules.partition(|net| net.addr().is_ipv4());
    let (family, count) =
        if v4.len() >= v6.len() { ("IPv4", v4.len()) } else { ("IPv6", v6.len()) };
    if max_rules > 0 && count > max_rules as usize {
        at.key("max_rules").error_with_help(
            format!("{count} {family} rules do not fit into a table of {max_rules}"),
            format!("write max_rules: {} or more", count.next_power_of_two()),
        );
    }
}
