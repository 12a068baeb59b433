//! Rules and verdicts as people see them, read from where they are enforced: the kernel's word comes from the kernel.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use gateway_common::layout::Hits;
use gateway_common::rule::{Action, FOREVER, Origin};
use ipnet::IpNet;

use crate::admin::api::{Answer, CounterView, InterfaceStatus, KernelStatus, ListQuery, Refusal};
use crate::admin::monitor::{EventView, RuleMetView, SourceView};
use crate::admin::rules::{RuleCounts, RuleView, Why};
use crate::base::prefix::display;
use crate::base::time::{BootTime, Now, UtcMillis};
use crate::kernel::Door;
use crate::kernel::events::{Dropped, RuleMet};
use crate::kernel::interfaces::Seen;
use crate::kernel::tables::TablesError;
use crate::rules::classify::Entry;
use crate::rules::list::List;
use crate::rules::protected::own_addresses;
use crate::rules::{Place, RuleRef};
use gateway_common::verdict::Verdict;

use super::policy::confirm::UNCONFIRMED;
use super::policy::{Policy, bans};

/// The rules that are asked for, as many as the limit allows.
pub fn list(policy: &Policy, query: &ListQuery, now: Now) -> Result<Answer, Refusal> {
    let origin = match &query.origin {
        Some(name) => Some(origin_of(name)?),
        None => None,
    };
    if let Some(name) = &query.list
        && policy.rules().list(name).is_none()
    {
        return Err(Refusal::failed(format!("there is no list {name:?}: see `gateway lists`")));
    }
    let wanted = |rule: &RuleRef<'_>| {
        query.action.is_none_or(|action| action.holds(rule.action))
            && query.list.as_deref().is_none_or(|name| rule.list == Some(name))
            && origin.is_none_or(|origin| rule.origin == origin)
            && query.inside.is_none_or(|prefix| prefix.contains(&rule.prefix))
    };
    let running = is_running(policy);
    let limit = query.limit.max(1);
    let shown = |rule: &RuleRef<'_>| view(policy, rule, running, now);
    if query.by_packets {
        let rules = most_hit(policy, policy.rules().listed(None).filter(wanted), limit);
        return Ok(Answer::Rules { rules: rules.iter().map(shown).collect(), next: None });
    }
    let from = match (&query.after, &query.list) {
        // Straight to the list: no other rule is wanted.
        (None, Some(name)) => Listed::of_list(policy, name),
        (after, _) => Listed::Behind(after.as_ref()),
    };
    let mut rules = from.rules(policy).filter(wanted);
    let page: Vec<RuleRef<'_>> = rules.by_ref().take(limit).collect();
    let last = page.last().filter(|_| rules.next().is_some());
    let next = last.map(|rule| Place {
        list: rule.list.map(str::to_owned),
        prefix: rule.prefix,
        origin: rule.origin,
    });
    Ok(Answer::Rules { rules: page.iter().map(shown).collect(), next })
}

/// Where a page begins.
enum Listed<'a> {
    Behind(Option<&'a Place>),
    List(&'a List),
}

impl<'a> Listed<'a> {
    fn of_list(policy: &'a Policy, name: &str) -> Self {
        policy.rules().list(name).map_or(Self::Behind(None), Self::List)
    }

    fn rules(self, policy: &'a Policy) -> Box<dyn Iterator<Item = RuleRef<'a>> + 'a> {
        match self {
            Self::Behind(place) => Box::new(policy.rules().listed(place)),
            Self::List(list) => Box::new(list.after(None)),
        }
    }
}

/// The rules that met the most packets, those first.
fn most_hit<'a>(
    policy: &Policy,
    rules: impl Iterator<Item = RuleRef<'a>>,
    limit: usize,
) -> Vec<RuleRef<'a>> {
    let mut most: BTreeMap<(Reverse<u64>, usize), RuleRef<'a>> = BTreeMap::new();
    for (place, rule) in rules.enumerate() {
        let packets =
            policy.door.as_ref().and_then(|door| held(door, &rule)).map_or(0, |hits| hits.packets);
        let least = most.last_key_value().map(|((Reverse(packets), _), _)| *packets);
        if most.len() == limit && least >= Some(packets) {
            continue;
        }
        most.insert((Reverse(packets), place), rule);
        if most.len() > limit {
            most.pop_last();
        }
    }
    most.into_values().collect()
}

fn origin_of(name: &str) -> Result<Origin, Refusal> {
    Origin::ALL.into_iter().find(|origin| origin.name() == name).ok_or_else(|| {
        let names = Origin::ALL.map(Origin::name).join(", ");
        Refusal::usage(format!("there is no origin {name:?}: it is one of {names}"))
    })
}

/// What happens to an address.
pub fn why(policy: &Policy, address: IpAddr, now: Now) -> Result<Why, Refusal> {
    let address = address.to_canonical();
    let decided = policy.reader().and_then(|reader| reader.find(address, now.boot));
    let running = is_running(policy);
    let mut rule = None;
    let mut others = Vec::new();
    for candidate in policy.rules().covering(address) {
        let seen = view(policy, &candidate, running, now);
        let decides = decided.is_some_and(|(prefix, entry)| {
            prefix == candidate.prefix
                && (entry.origin, entry.action) == (candidate.origin, candidate.action)
                && policy.winner(prefix, now).is_some_and(|winner| winner == candidate)
        });
        match decides {
            true => rule = Some(seen),
            false => others.push(seen),
        }
    }
    others.reverse();
    if rule.is_none() {
        rule = decided.map(|decided| left_behind(policy, decided, running, now));
    }
    let action = decided.map(|(_, entry)| entry.action);
    let bans = bans::views::about(policy, address, now);
    Ok(Why {
        address,
        verdict: verdict(policy, action, running),
        rule,
        others,
        bans,
        scores: Vec::new(),
    })
}

/// A rule that the tables have and that nobody remembers: one that a gateway had not written down when it was killed,
/// or that the configuration has no more.
fn left_behind(
    policy: &Policy,
    (prefix, entry): (IpNet, Entry),
    running: bool,
    now: Now,
) -> RuleView {
    let held = policy.door.as_ref().map(|door| door.held(&prefix)).unwrap_or_default();
    let hits = held.into_iter().find(|(other, _)| *other == entry).map(|(_, hits)| hits);
    let enforced = if running && !policy.is_dry_run() { "kernel" } else { "nowhere" };
    let view = RuleView {
        prefix: display(&prefix),
        action: entry.action.name().to_owned(),
        profile: None,
        origin: entry.origin.name().to_owned(),
        list: None,
        reason: String::new(),
        created_utc_ms: UtcMillis(0),
        until_utc_ms: (entry.until != BootTime(FOREVER)).then(|| now.utc_of(entry.until)),
        enforced: enforced.to_owned(),
        note: Some("nobody remembers it: the next start of the gateway takes it out".to_owned()),
        packets: 0,
        last_packet_utc_ms: None,
    };
    met(view, hits, now)
}

/// The kernel door as the kernel reports it.
pub fn kernel(
    policy: &Policy,
    notes: impl Iterator<Item = String>,
) -> Result<KernelStatus, TablesError> {
    let joined = |notes: Vec<String>| (!notes.is_empty()).then(|| notes.join("; "));
    let Some(door) = &policy.door else {
        return Ok(KernelStatus {
            enforcing: false,
            note: joined(notes.collect()),
            dry_run: policy.is_dry_run(),
            interfaces: Vec::new(),
            memory_bytes: 0,
            counters: Vec::new(),
        });
    };
    let interfaces = door.interfaces().into_iter();
    let interfaces: Vec<InterfaceStatus> =
        interfaces.map(|Seen { name, mode, note }| InterfaceStatus { name, mode, note }).collect();
    let note = joined(notes.collect());
    let counters = door
        .counters()
        .all()?
        .into_iter()
        .map(|count| CounterView {
            reason: count.reason.name().to_owned(),
            verdict: match count.reason.verdict() {
                Verdict::Pass => "pass".to_owned(),
                Verdict::Drop => "drop".to_owned(),
            },
            packets: count.done.packets,
            bytes: count.done.bytes,
            dry_run_packets: count.would.packets,
        })
        .collect();
    Ok(KernelStatus {
        enforcing: interfaces.iter().any(|interface| interface.mode.is_some()),
        note,
        dry_run: policy.is_dry_run(),
        interfaces,
        memory_bytes: door.memory_bytes(),
        counters,
    })
}

/// A dropped packet.
pub fn event(policy: &Policy, event: &Dropped) -> EventView {
    let list = |met: &RuleMet| {
        let is_met = |rule: &RuleRef<'_>| (rule.action, rule.origin) == (met.action, met.origin);
        policy.rules().of(met.prefix).find(is_met)?.list.map(str::to_owned)
    };
    EventView {
        number: event.number,
        time_utc_ms: event.time,
        source: event.source,
        reason: event.reason.name().to_owned(),
        rule: event.rule.as_ref().map(|met| RuleMetView { list: list(met), ..rule_met(met) }),
        protocol: event.protocol.to_owned(),
        source_port: event.ports.map(|(source, _)| source),
        port: event.ports.map(|(_, destination)| destination),
        interface: event.interface.to_string(),
        dry_run: event.dry_run,
    }
}

/// A source with its number of events and the last of them.
pub fn source((events, last): (u64, &Dropped)) -> SourceView {
    SourceView { source: last.source, events, reason: last.reason.name().to_owned() }
}

/// A rule as packets meet it.
pub fn rule_met(rule: &RuleMet) -> RuleMetView {
    RuleMetView {
        prefix: display(&rule.prefix),
        action: rule.action.name().to_owned(),
        origin: rule.origin.name().to_owned(),
        list: None,
    }
}

/// How many rules of each kind there are.
pub fn counts(policy: &Policy) -> RuleCounts {
    let mut counts = RuleCounts { held_back: policy.held_back(), ..RuleCounts::default() };
    let own = policy.rules().iter().map(|rule| (rule.origin, rule.action, 1));
    let lists = policy.rules().lists().map(|list| (list.origin(), list.action, list.entries.len()));
    for (origin, action, count) in own.chain(lists) {
        match (origin, action) {
            (Origin::Protected, _) => counts.protected += count,
            (_, Action::Allow) => counts.allow += count,
            (_, Action::Limit) => counts.limit += count,
            (_, Action::Deny | Action::Reset) => counts.deny += count,
        }
    }
    counts
}

/// One rule.
pub fn rule(policy: &Policy, rule: &RuleRef<'_>, now: Now) -> RuleView {
    view(policy, rule, is_running(policy), now)
}

fn view(policy: &Policy, rule: &RuleRef<'_>, running: bool, now: Now) -> RuleView {
    let winner = policy.winner(rule.prefix, now);
    let in_front = winner.as_ref() == Some(rule);
    let held = policy.door.as_ref().and_then(|door| held(door, rule));
    if rule.dry_run {
        let note = Some("dry run of its list: counted, not enforced".to_owned());
        return RuleView { note, ..met(shown(rule, "nowhere", now), held, now) };
    }
    let kernel = in_front && held.is_some() && running;
    // A bucket is the kernel's alone; everything else the proxy enforces too.
    let user_space =
        in_front && policy.is_serving() && !policy.is_dry_run() && rule.action != Action::Limit;
    let enforced = match (kernel && !policy.is_dry_run(), user_space) {
        (true, true) => "both",
        (true, false) => "kernel",
        (false, true) => "user space",
        (false, false) => "nowhere",
    };
    let note = match (policy.refuses(rule), winner) {
        (Some(refused), _) => Some(refused.to_string()),
        (None, Some(winner)) if !in_front => {
            let list = winner.list.map(|list| format!(" {list}")).unwrap_or_default();
            Some(format!("{} by {}{list} wins", winner.action.name(), winner.origin.name()))
        }
        _ if policy.lacks_profile(rule) => {
            let name = rule.profile_name;
            Some(format!("there is no profile {name} any more: the default one holds"))
        }
        _ if policy.waits(rule) => Some(UNCONFIRMED.to_owned()),
        _ if policy.is_dry_run() => Some("dry run: counted, not enforced".to_owned()),
        _ => None,
    };
    RuleView { note, ..met(shown(rule, enforced, now), held, now) }
}

/// The same with what the kernel says that it has met.
fn met(rule: RuleView, held: Option<Hits>, now: Now) -> RuleView {
    let Some(Hits { packets, last_ns }) = held else { return rule };
    let last_packet_utc_ms = (packets > 0).then(|| now.utc_of(BootTime(last_ns)));
    RuleView { packets, last_packet_utc_ms, ..rule }
}

/// A rule as it was made.
fn shown(rule: &RuleRef<'_>, enforced: &str, now: Now) -> RuleView {
    RuleView {
        prefix: display(&rule.prefix),
        action: rule.action.name().to_owned(),
        profile: (rule.action == Action::Limit).then(|| rule.profile_name.to_owned()),
        origin: rule.origin.name().to_owned(),
        list: rule.list.map(str::to_owned),
        reason: rule.reason.to_owned(),
        created_utc_ms: rule.created,
        until_utc_ms: rule.until.utc_at(now),
        enforced: enforced.to_owned(),
        note: None,
        packets: 0,
        last_packet_utc_ms: None,
    }
}

/// What the kernel's copy of a rule has met, if the kernel has it.
fn held(door: &Door, rule: &RuleRef<'_>) -> Option<Hits> {
    if rule.dry_run {
        return door.tried(&rule.prefix);
    }
    let same = |entry: &Entry| (entry.origin, entry.action) == (rule.origin, rule.action);
    door.held(&rule.prefix).into_iter().find(|(entry, _)| same(entry)).map(|(_, hits)| hits)
}

/// Whether the kernel runs the program on any interface.
fn is_running(policy: &Policy) -> bool {
    policy.door.as_ref().is_some_and(|door| door.running().iter().any(|(_, mode)| mode.is_some()))
}

fn verdict(policy: &Policy, action: Option<Action>, running: bool) -> String {
    let sentence = match (action, running) {
        (Some(Action::Deny | Action::Reset | Action::Limit), false) if !policy.is_serving() => {
            "a rule is against it and nothing enforces that: no gateway runs, nor its XDP program"
        }
        (Some(Action::Reset), true) if policy.has_resets() => {
            "reset: its packets are dropped in the kernel, which answers new connections with TCP RST"
        }
        (Some(Action::Reset), true) => {
            "reset: its packets are dropped in the kernel, without an answer as kernel.resets is off"
        }
        (Some(Action::Reset), false) => {
            "reset: its connections are reset in user space as soon as they are accepted"
        }
        (Some(Action::Deny), true) => "denied: its packets are dropped in the kernel",
        (Some(Action::Deny), false) => {
            "denied: its connections are closed in user space as soon as they are accepted"
        }
        (Some(Action::Allow), _) => "allowed: no list and no packet bucket stops it",
        (Some(Action::Limit), true) => {
            "limited: its packets pass within the buckets of the profile that its rule names"
        }
        (Some(Action::Limit), false) => "would be limited, but the kernel door is not open",
        (None, _) => "no rule: it passes within the default profile",
    };
    match policy.is_dry_run() {
        true => format!("{sentence} (dry run: nothing is dropped)"),
        false => sentence.to_owned(),
    }
}

/// The addresses that no interface has.
pub fn absent(listen: &[SocketAddr]) -> Vec<String> {
    let own = own_addresses();
    let is_here = |address: &&SocketAddr| {
        let ip = address.ip();
        ip.is_unspecified() || ip.is_loopback() || own.iter().any(|(_, own)| *own == ip)
    };
    listen.iter().filter(|address| !is_here(address)).map(ToString::to_string).collect()
}
