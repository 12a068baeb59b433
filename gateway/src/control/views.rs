//! Rules and verdicts as people see them, read from where they are enforced: the kernel's word comes from the kernel.

use std::net::IpAddr;

use gateway_common::rule::{Action, Origin};

use crate::admin::api::{
    CounterView, InterfaceStatus, KernelStatus, ListAction, Refusal, RuleCounts, RuleView, Why,
};
use crate::base::prefix::display;
use crate::base::time::Now;
use crate::kernel::Door;
use crate::kernel::interfaces::Seen;
use crate::kernel::tables::TablesError;
use crate::rules::Rule;
use crate::rules::classify::Entry;
use gateway_common::verdict::Verdict;

use super::policy::Policy;

/// The rules of one list, or all of them without the protected addresses.
pub fn list(policy: &Policy, action: Option<ListAction>) -> Result<Vec<RuleView>, Refusal> {
    let wanted = |rule: &&Rule| match action {
        Some(ListAction::Allow) => rule.action == Action::Allow,
        Some(ListAction::Deny) => rule.action == Action::Deny,
        None => true,
    };
    let rules = policy.rules().iter().filter(wanted);
    let running = is_running(policy);
    rules.map(|rule| view(policy, rule, running)).collect::<Result<_, _>>().map_err(Refusal::failed)
}

/// What happens to an address.
pub fn why(policy: &Policy, address: IpAddr, now: Now) -> Result<Why, Refusal> {
    let address = address.to_canonical();
    let decided = match &policy.door {
        Some(door) => door.find(address, now.boot).map(|(prefix, entry, _)| (prefix, entry)),
        None => policy.compiled().classifier().find(address, now.boot),
    };
    let mut rule = None;
    let mut others = Vec::new();
    let covering = policy.rules().iter().filter(|rule| rule.prefix.contains(&address));
    let running = is_running(policy);
    for candidate in covering {
        let seen = view(policy, candidate, running).map_err(Refusal::failed)?;
        let decides = decided.is_some_and(|(prefix, entry)| {
            prefix == candidate.prefix && entry.origin == candidate.origin
        });
        match decides {
            true => rule = Some(seen),
            false => others.push(seen),
        }
    }
    others.reverse();
    let action = decided.map(|(_, entry)| entry.action);
    Ok(Why { address, verdict: verdict(policy, action, running), rule, others })
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
        .counters()?
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

/// How many rules of each kind there are.
pub fn counts(policy: &Policy) -> RuleCounts {
    let mut counts =
        RuleCounts { held_back: policy.compiled().held_back.len(), ..RuleCounts::default() };
    for rule in policy.rules().iter() {
        match (rule.origin, rule.action) {
            (Origin::Protected, _) => counts.protected += 1,
            (_, Action::Allow) => counts.allow += 1,
            (_, Action::Limit) => counts.limit += 1,
            (_, Action::Deny | Action::Reset) => counts.deny += 1,
        }
    }
    counts
}

fn view(policy: &Policy, rule: &Rule, running: bool) -> Result<RuleView, TablesError> {
    let held = match &policy.door {
        Some(door) => held(door, rule),
        None => None,
    };
    let refused = policy.compiled().held_back.get(&(rule.prefix, rule.origin));
    let winner = policy.compiled().enforced.get(&rule.prefix);
    let in_front = winner.is_some_and(|winner| winner.first.origin == rule.origin);
    let kernel = held.is_some() && running;
    // A bucket is the kernel's alone; everything else the proxy enforces too.
    let user_space =
        in_front && policy.is_serving() && !policy.is_dry_run() && rule.action != Action::Limit;
    let enforced = match (kernel && !policy.is_dry_run(), user_space) {
        (true, true) => "both",
        (true, false) => "kernel",
        (false, true) => "user space",
        (false, false) => "nowhere",
    };
    let note = match (refused, winner) {
        (Some(refused), _) => Some(refused.to_string()),
        (None, Some(winner)) if !in_front => {
            Some(format!("{} by {} wins", winner.first.action().name(), winner.first.origin.name()))
        }
        _ if policy.is_dry_run() => Some("dry run: counted, not enforced".to_owned()),
        _ => None,
    };
    Ok(RuleView {
        prefix: display(&rule.prefix),
        action: rule.action.name().to_owned(),
        origin: rule.origin.name().to_owned(),
        reason: rule.reason.clone(),
        created_utc_ms: rule.created,
        until_utc_ms: rule.until.utc,
        enforced: enforced.to_owned(),
        note,
        packets: held.unwrap_or(0),
    })
}

/// The packets that the kernel's copy of a rule has met, if the kernel has it.
fn held(door: &Door, rule: &Rule) -> Option<u64> {
    let same = |entry: &Entry| (entry.origin, entry.action) == (rule.origin, rule.action);
    door.held(&rule.prefix).into_iter().find(|(entry, _)| same(entry)).map(|(_, hits)| hits.packets)
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
        (Some(Action::Deny | Action::Reset), true) => {
            "denied: its packets are dropped in the kernel"
        }
        (Some(Action::Deny | Action::Reset), false) => {
            "denied: its connections are closed in user space as soon as they are accepted"
        }
        (Some(Action::Allow), _) => "allowed: no list and no packet bucket stops it",
        (Some(Action::Limit), true) => {
            "limited: its packets pass within a bucket of its own profile"
        }
        (Some(Action::Limit), false) => "would be limited, but the kernel door is not open",
        (None, _) => "no rule: it passes within the default profile",
    };
    match policy.is_dry_run() {
        true => format!("{sentence} (dry run: nothing is dropped)"),
        false => sentence.to_owned(),
    }
}
