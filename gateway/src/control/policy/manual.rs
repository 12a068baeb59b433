//! Rules that people make and take back one by one, with what they ought to know about it.

use std::collections::BTreeSet;
use std::time::Duration;

use gateway_common::rule::{Action, Origin};
use ipnet::IpNet;

use super::{Policy, profile_place};
use crate::admin::api::{Add, Done, ListAction, Refusal, Remove};
use crate::base::prefix::{self, display};
use crate::base::text::is_hidden;
use crate::base::time::Now;
use crate::config::Share;
use crate::rules::feed::{Grouped, Summary, percent};
use crate::rules::protected::describe;
use crate::rules::{Change, Rule, Until};

/// Prefixes shorter than this cover so much that somebody has to say yes. (bits)
const LARGE_V4_BITS: u8 = 8;
/// The same for IPv6; the shortest prefix that a registry hands out is a /12, an operator's usually a /32.
const LARGE_V6_BITS: u8 = 20;
/// So does more than this of a family, in however many prefixes: what a feed is held back for unless configured
/// otherwise.
const LARGE_SHARE: Share = Share::per_million(50_000);
/// Protected addresses named in one message.
const NAMED_MAX: usize = 5;
/// Length of a reason: a sentence, not a report.
const REASON_MAX_CHARS: usize = 200;
/// Longest time that a rule with an end may hold.
const FOR_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

impl Policy {
    /// Makes rules: all of them or none.
    pub fn add(&mut self, add: &Add, now: Now) -> Result<Done, Refusal> {
        if add.prefixes.is_empty() {
            return Err(Refusal::usage(
                "no prefix given: write 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32",
            ));
        }
        check(add)?;
        let mut done = Done::default();
        let mut put = Vec::new();
        for text in &add.prefixes {
            let prefix = prefix::parse(text).map_err(Refusal::usage)?;
            let rule = self.rule(prefix, add, now)?;
            self.comment(&rule, &mut done);
            put.push(rule);
        }
        let all: BTreeSet<IpNet> = put.iter().map(|rule| rule.prefix).collect();
        if !add.yes
            && let Some(large) = large("these prefixes cover", || all.iter().copied())
        {
            return Err(Refusal::large(large));
        }
        let change = Change { put: put.clone(), ..Change::default() };
        let change = self.confirmed(change, add.confirm_within_ms, now, &mut done)?;
        self.change(&change, now).map_err(Refusal::failed)?;
        for rule in &put {
            self.note_winner(rule.prefix, Some(rule.origin), now, &mut done);
        }
        Ok(done)
    }

    /// Takes rules back: all of them or none.
    pub fn remove(&mut self, remove: &Remove, now: Now) -> Result<Done, Refusal> {
        let action = Action::from(remove.action);
        let mut done = Done::default();
        let mut gone = Vec::new();
        for text in &remove.prefixes {
            let prefix = prefix::parse(text).map_err(Refusal::usage)?;
            let made_by = |origin: &Origin| {
                self.rules
                    .find(prefix, *origin)
                    .is_some_and(|rule| remove.action.holds(rule.action))
            };
            let origins: Vec<Origin> =
                [Origin::Operator, Origin::Forced].into_iter().filter(made_by).collect();
            if origins.is_empty() {
                return Err(self.not_removable(prefix, remove.action));
            }
            gone.extend(origins.into_iter().map(|origin| (prefix, origin)));
            done.done.push(format!("{} {} removed", action.name(), display(&prefix)));
        }
        let change = Change { remove: gone.clone(), ..Change::default() };
        let change = self.confirmed(change, remove.confirm_within_ms, now, &mut done)?;
        self.change(&change, now).map_err(Refusal::failed)?;
        for (prefix, origin) in gone {
            // One that waits to be confirmed is what comes back, and not what is still there.
            if self.rules.find_pending(&(prefix, origin)).is_none() {
                self.note_winner(prefix, None, now, &mut done);
            }
        }
        Ok(done)
    }

    /// The rule that a command makes for one prefix.
    fn rule(&self, prefix: IpNet, add: &Add, now: Now) -> Result<Rule, Refusal> {
        let action = Action::from(add.action);
        let (profile, profile_name) = self.profile(add)?;
        let mut origin = Origin::Operator;
        if action != Action::Allow
            && let Err(refused) = self.guard.clear(prefix, origin)
        {
            if !add.force {
                return Err(Refusal::failed(format!(
                    "{refused}: insist with --force if it is to be, all the same"
                )));
            }
            origin = Origin::Forced;
        }
        Ok(Rule {
            prefix,
            action,
            origin,
            profile,
            profile_name,
            reason: add.reason.clone(),
            created: now.utc,
            until: Until::after(now, add.for_ms.map(Duration::from_millis)),
        })
    }

    /// The place and the name of the profile that a command names.
    fn profile(&self, add: &Add) -> Result<(u8, String), Refusal> {
        match (&add.profile, add.action) {
            (Some(name), ListAction::Limit) => match profile_place(&self.profiles, name) {
                Some(place) => Ok((place, name.clone())),
                None => Err(Refusal::failed(no_profile(&self.profiles, name))),
            },
            (None, ListAction::Allow | ListAction::Deny | ListAction::Reset) => {
                Ok((0, String::new()))
            }
            (None, ListAction::Limit) => Err(Refusal::usage("which profile? name one")),
            (Some(_), _) => Err(Refusal::usage("a profile is for `gateway limit set` alone")),
        }
    }

    /// Says what will be done, and what else the rule meets.
    fn comment(&self, rule: &Rule, done: &mut Done) {
        let prefix = display(&rule.prefix);
        let until = rule.until.utc.map(|end| format!(" until {}", end.display()));
        let action = rule.action.name();
        let limited = rule.action == Action::Limit;
        let profile = if limited { format!(" to {}", rule.profile_name) } else { String::new() };
        done.done.push(format!("{action} {prefix}{profile}{}", until.unwrap_or_default()));
        if limited && self.door.is_none() {
            done.notes.push(format!("{prefix}: limited by nobody while the kernel door is shut"));
        }
        if rule.action == Action::Reset && self.door.is_some() && !self.resets {
            done.notes.push(format!("{prefix}: not answered, as kernel.resets is off"));
        }
        if let Some(held) = self.rules.find(rule.prefix, rule.origin) {
            let (action, origin) = (held.action.name(), held.origin.name());
            done.notes.push(format!("{prefix}: replaces `{action}` by {origin}"));
        }
        if rule.action == Action::Allow {
            return;
        }
        let spared: Vec<String> =
            self.guard.protected().inside(&rule.prefix).map(describe).collect();
        if !spared.is_empty() {
            let named = spared.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
            let more = match spared.len().saturating_sub(NAMED_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            done.notes.push(format!("{prefix}: applies around {named}{more}, never blocked"));
        }
    }

    /// Says so when another rule than the one by `origin` holds for a prefix.
    fn note_winner(&self, prefix: IpNet, origin: Option<Origin>, now: Now, done: &mut Done) {
        let winner = self.wanted(now).winners(prefix).map(|winners| winners.first);
        if let Some(winner) = winner.filter(|winner| Some(winner.origin) != origin) {
            let (action, origin) = (winner.action().name(), winner.origin.name());
            let prefix = display(&prefix);
            done.notes.push(format!("{prefix} is still under {action} by {origin}"));
        }
    }

    fn not_removable(&self, prefix: IpNet, action: ListAction) -> Refusal {
        let (shown, name) = (display(&prefix), Action::from(action).name());
        let find = |origin: Origin| self.rules.find(prefix, origin);
        let held = |origin| find(origin).filter(|rule| action.holds(rule.action));
        Refusal::failed(if held(Origin::Configuration).is_some() {
            format!(
                "{name} {shown} comes from the configuration: \
                 take it out there and run `gateway reload`"
            )
        } else if let Some(rule) = held(Origin::Protected) {
            format!("{shown} ({}) is always let in, nobody put it on the list", rule.reason)
        } else {
            format!("there is no {name} rule for {shown}: see `gateway {name} list`")
        })
    }
}

/// What prefixes cover, in words, if it is so much that somebody has to say yes. In order of their addresses.
pub(super) fn large<I: Iterator<Item = IpNet>>(
    covers: &str,
    prefixes: impl Fn() -> I,
) -> Option<String> {
    let summary = Summary::of_sorted(prefixes());
    let one =
        prefixes().find(is_large).map(|prefix| format!("{prefix} is {}", share_of_all(&prefix)));
    if summary.entries == 1 {
        return one;
    }
    let total = summary.beyond(LARGE_SHARE).map(|(family, covered, of)| {
        let (share, counted) = (percent(covered, of), counted(family == "IPv4", covered.into()));
        format!("{covers} {share} % of all {family} addresses ({counted})")
    });
    one.into_iter().chain(total).reduce(|one, total| format!("{one}, and {total}"))
}

/// Whether a prefix covers so much that somebody has to say yes.
fn is_large(prefix: &IpNet) -> bool {
    let least = if prefix.addr().is_ipv4() { LARGE_V4_BITS } else { LARGE_V6_BITS };
    prefix.prefix_len() < least
}

/// How much of its family a prefix of at most 63 bits covers, in words.
fn share_of_all(prefix: &IpNet) -> String {
    let is_v4 = prefix.addr().is_ipv4();
    let (family, bits) = if is_v4 { ("IPv4", 32) } else { ("IPv6", 64) };
    let length = prefix.prefix_len().min(63);
    let counted = counted(is_v4, 1u128 << (bits - length));
    match length {
        0 => format!("all of {family} ({counted})"),
        length => format!("1/{} of all {family} addresses ({counted})", 1u64 << length),
    }
}

/// Addresses of IPv4, or networks of IPv6, of which each has more addresses than anybody can count.
fn counted(is_v4: bool, count: u128) -> String {
    let unit = if is_v4 { "addresses" } else { "networks of /64" };
    format!("{} {unit}", Grouped(count))
}

fn no_profile(profiles: &[String], name: &str) -> String {
    let name = name.escape_debug().take(REASON_MAX_CHARS).collect::<String>();
    let known = profiles.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if profiles.len() > NAMED_MAX { ", ..." } else { "" };
    match profiles {
        [] => format!(
            "there is no profile `{name}`: add it to kernel.profiles and run `gateway reload`"
        ),
        _ => format!("there is no profile `{name}`: kernel.profiles has {known}{more}"),
    }
}

/// Refuses what the rule of a command cannot say.
fn check(add: &Add) -> Result<(), Refusal> {
    let length = add.reason.chars().count();
    if length > REASON_MAX_CHARS {
        return Err(Refusal::usage(format!(
            "the reason has {length} characters: at most {REASON_MAX_CHARS} are kept"
        )));
    }
    if let Some(odd) = add.reason.chars().find(|c| is_hidden(*c)) {
        return Err(Refusal::usage(format!(
            "the reason has {} in it: write one line of plain text",
            odd.escape_unicode()
        )));
    }
    match add.for_ms.map(Duration::from_millis) {
        Some(Duration::ZERO) => {
            Err(Refusal::usage("a rule for no time is none: write --for 10m, or leave it out"))
        }
        Some(time) if time > FOR_MAX => Err(Refusal::usage(
            "--for has an end at 100 years: leave it out for a rule without one",
        )),
        _ => Ok(()),
    }
}
