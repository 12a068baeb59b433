//! Bans as people see them: what the kernel does about them is read from the kernel.

use std::net::IpAddr;
use std::ops::Bound;

use gateway_common::rule::Origin;

use super::{HeldBack, Policy, is_for_ever, profile};
use crate::admin::api::Answer;
use crate::admin::bans::{BanQuery, BanView, PAGE_MAX_BANS};
use crate::base::prefix::display;
use crate::base::time::Now;
use crate::config::Measure;
use crate::control::views;
use crate::feedback::ban::Ban;
use crate::feedback::decision::{Decision, Place, Story, Subject};

/// The bans that are asked for, as many as the limit allows.
pub(in crate::control) fn list(policy: &Policy, query: &BanQuery, now: Now) -> Answer {
    let limit = query.limit.clamp(1, PAGE_MAX_BANS);
    if query.held {
        let held = policy.bans.held().rev().take(limit);
        let bans = held.map(|held| unsigned(held_view(held))).collect();
        return Answer::Bans { bans, next: None };
    }
    let from = query.after.map_or(Bound::Unbounded, Bound::Excluded);
    let holding = policy.bans.records.range((from, Bound::Unbounded));
    let mut holding = holding.filter(|(_, ban)| ban.holds(now.boot));
    let page: Vec<_> = holding.by_ref().take(limit).collect();
    let next = page.last().map(|(subject, _)| **subject).filter(|_| holding.next().is_some());
    let shown = page.into_iter().map(|(subject, ban)| unsigned(view(policy, subject, ban, now)));
    Answer::Bans { bans: shown.collect(), next }
}

/// Everything that is known about bans of an address, with their stories: those that hold first.
pub(in crate::control) fn about(policy: &Policy, address: IpAddr, now: Now) -> Vec<BanView> {
    let covers = |subject: &Subject| subject.prefix.contains(&address);
    let known = policy.bans.records.iter().filter(|(subject, _)| covers(subject));
    let mut known: Vec<BanView> =
        known.map(|(subject, ban)| view(policy, subject, ban, now)).collect();
    known.sort_by_key(|ban| ban.state != "holds");
    let held = policy.bans.held().rev().filter(|held| covers(&held.decision.subject));
    known.extend(held.map(held_view));
    known
}

fn view(policy: &Policy, subject: &Subject, ban: &Ban, now: Now) -> BanView {
    let holds = ban.holds(now.boot);
    let state = match (holds, ban.was_lifted()) {
        (true, _) => "holds",
        (false, Some(_)) => "lifted",
        (false, None) => "ended",
    };
    let base = BanView {
        prefix: display(&subject.prefix),
        place: subject.place,
        state: state.to_owned(),
        measure: name(&ban.measure).to_owned(),
        profile: Some(profile(&ban.measure)).filter(|name| !name.is_empty()).map(str::to_owned),
        rule: ban.rule.clone(),
        author: ban.author.to_string(),
        made_utc_ms: ban.made,
        until_utc_ms: ban.end.until().utc_at(now).filter(|_| !is_for_ever(&ban.end)),
        times: ban.times,
        pinned: ban.pinned,
        lifted_utc_ms: ban.lifts.clone(),
        enforced: "nowhere".to_owned(),
        note: None,
        packets: 0,
        last_packet_utc_ms: None,
        story: ban.story.clone(),
    };
    if !holds {
        return base;
    }
    match subject.place {
        Place::Kernel => match policy.rules.find(subject.prefix, Origin::Ban) {
            Some(rule) => {
                let seen = views::rule(policy, &rule.as_ref(), now);
                BanView {
                    enforced: seen.enforced,
                    note: seen.note,
                    packets: seen.packets,
                    last_packet_utc_ms: seen.last_packet_utc_ms,
                    ..base
                }
            }
            None => base,
        },
        Place::UserSpace => {
            let refused = policy.guard.clear(subject.prefix, Origin::Ban).err();
            let note = match refused {
                Some(refused) => Some(refused.to_string()),
                None if policy.is_dry_run() => Some("dry run: not enforced".to_owned()),
                None => None,
            };
            let enforced = match note.is_none() && policy.is_serving() {
                true => "user space",
                false => "nowhere",
            };
            BanView { enforced: enforced.to_owned(), note, ..base }
        }
    }
}

fn held_view(HeldBack { decision, author, why }: &HeldBack) -> BanView {
    let Decision { subject, rule, measure, lasts, times, at, story, .. } = decision;
    BanView {
        prefix: display(&subject.prefix),
        place: subject.place,
        state: "held".to_owned(),
        measure: name(measure).to_owned(),
        profile: Some(profile(measure)).filter(|name| !name.is_empty()).map(str::to_owned),
        rule: rule.to_string(),
        author: author.to_string(),
        made_utc_ms: at.utc,
        until_utc_ms: Some(at.utc.after(*lasts)),
        times: *times,
        pinned: false,
        lifted_utc_ms: Vec::new(),
        enforced: "nowhere".to_owned(),
        note: Some(why.clone()),
        packets: 0,
        last_packet_utc_ms: None,
        story: story.clone(),
    }
}

/// Without its signals, of which a listing would have too many.
fn unsigned(ban: BanView) -> BanView {
    BanView { story: Story { signals: Vec::new(), ..ban.story }, ..ban }
}

/// The name of a measure.
pub(in crate::control) fn name(measure: &Measure) -> &'static str {
    match measure {
        Measure::Ban => "ban",
        Measure::SlowDown { .. } => "slow_down",
        Measure::Reset => "reset",
    }
}
