//! `gateway why`: what happens to an address, and the story behind it.

use std::net::IpAddr;

use super::bans::{measure, until};
use super::list::{HEADER, row};
use super::output::Output;
use super::place::Place;
use super::{Failure, ask, unexpected};
use crate::admin::api::{Answer, Request};
use crate::admin::bans::BanView;
use crate::base::prefix::display;
use crate::base::time::UtcMillis;
use crate::feedback::decision::SignalView;
use crate::feedback::score::{Known, ScoreView};

pub(super) fn run(place: &Place, address: IpAddr, output: &Output) -> Result<(), Failure> {
    let Answer::Why(why) = ask(place, &Request::Why(address))? else { return Err(unexpected()) };
    if output.is_json() {
        return Ok(output.object(&why)?);
    }
    output.line(&format!("{}: {}", why.address, why.verdict))?;
    if let Some(rule) = &why.rule {
        let until =
            rule.until_utc_ms.map_or_else(|| "for ever".to_owned(), |until| until.display());
        let reason = if rule.reason.is_empty() { "none given" } else { &rule.reason };
        let profile = rule.profile.as_ref().map(|profile| format!(" to {profile}"));
        let profile = profile.unwrap_or_default();
        let since = match rule.created_utc_ms {
            UtcMillis(0) => "unknown".to_owned(),
            since => since.display(),
        };
        let facts = [
            ("rule", format!("{} {}{profile}", rule.action, rule.prefix)),
            ("made by", rule.origin.clone()),
            ("reason", reason.to_owned()),
            ("since", since),
            ("until", until),
            ("enforced", rule.enforced.clone()),
            ("packets", rule.packets.to_string()),
        ];
        for (name, value) in facts {
            output.line(&format!("  {name:<9} {value}"))?;
        }
        if let Some(note) = &rule.note {
            output.line(&format!("  {:<9} {note}", "note"))?;
        }
    }
    // The same signals count for a source, its prefix and several rules: each is shown once.
    let mut shown = Vec::new();
    let is_told = |ban: &BanView| {
        let rule = why.rule.as_ref().filter(|_| ban.state == "holds");
        rule.is_some_and(|rule| rule.origin == "ban" && rule.prefix == ban.prefix)
    };
    why.bans.iter().try_for_each(|ban| story((ban, is_told(ban)), &mut shown, output))?;
    why.scores.iter().try_for_each(|known| scores(known, &mut shown, output))?;
    if !why.others.is_empty() {
        output.line("other rules that cover it:")?;
        output.table(&HEADER, why.others.iter().map(row).collect())?;
    }
    Ok(())
}

/// What led to a ban, and what became of it, unless that was told of its rule.
fn story<'a>(
    (ban, is_told): (&'a BanView, bool),
    shown: &mut Shown<'a>,
    output: &Output,
) -> Result<(), Failure> {
    let headline = match ban.state.as_str() {
        "holds" => "a ban holds".to_owned(),
        "held" => "a decision was not carried out".to_owned(),
        "ended" => "a ban that is over, and is remembered".to_owned(),
        state => format!("a ban that was {state}, and is remembered"),
    };
    output.line(&format!("{}: {headline}", ban.prefix))?;
    let told = &ban.story;
    // Whom people and programs ban, they have evidence of their own against.
    let evidence = |text: String| if told.wanted > 0.0 { text } else { String::new() };
    let lifted: Vec<String> = ban.lifted_utc_ms.iter().map(|lift| lift.display()).collect();
    let of_rule = |text: String| if is_told { String::new() } else { text };
    let until = if ban.pinned { until(ban) } else { of_rule(until(ban)) };
    let facts = [
        ("measure", format!("{} ({})", measure(ban), ban.place)),
        ("rule", format!("{}, by {}", ban.rule, ban.author)),
        ("score", evidence(format!("{:.1} of {:.1}", told.score, told.wanted))),
        ("sources", evidence(told.sources.to_string())),
        ("consumers", evidence(told.consumers.to_string())),
        ("since", of_rule(ban.made_utc_ms.display())),
        ("until", until),
        ("times", ban.times.to_string()),
        ("lifted", lifted.join(", ")),
        ("enforced", of_rule(ban.enforced.clone())),
        ("packets", of_rule(ban.packets.to_string())),
        ("note", of_rule(ban.note.clone().unwrap_or_default())),
    ];
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        output.line(&format!("  {name:<9} {value}"))?;
    }
    for note in &told.notes {
        output.line(&format!("  {:<9} {note}", "because"))?;
    }
    signals(&told.signals, shown, output)
}

/// What is known of a source that may come to a ban.
fn scores<'a>(known: &'a Known, shown: &mut Shown<'a>, output: &Output) -> Result<(), Failure> {
    let (prefix, place) = (display(&known.subject.prefix), known.subject.place);
    output.line(&format!(
        "{prefix} ({place}): {} good requests of {} consumers within ten minutes",
        known.good_requests, known.consumers
    ))?;
    for note in &known.notes {
        output.line(&format!("  {:<9} {note}", "because"))?;
    }
    let row = |score: &ScoreView| {
        let of = |have: f64, wanted: f64| format!("{have:.1} of {wanted:.1}");
        let sources = format!("{} of {}", score.sources, score.wanted_sources);
        vec![score.rule.clone(), of(score.score, score.wanted), sources]
    };
    if !known.scores.is_empty() {
        output.table(&["rule", "score", "sources"], known.scores.iter().map(row).collect())?;
    }
    signals(&known.signals, shown, output)
}

/// Signals that were shown before.
type Shown<'a> = Vec<&'a SignalView>;

fn signals<'a>(
    signals: &'a [SignalView],
    shown: &mut Shown<'a>,
    output: &Output,
) -> Result<(), Failure> {
    let new: Vec<&SignalView> = signals.iter().filter(|signal| !shown.contains(signal)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let header = ["when", "signal", "source", "request", "route", "limit", "reason"];
    output.table(&header, new.iter().map(|new| signal(new)).collect())?;
    shown.extend(new);
    Ok(())
}

fn signal(signal: &SignalView) -> Vec<String> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    vec![
        signal.at.display(),
        signal.signal.clone(),
        signal.source.to_string(),
        text(&signal.request_id),
        text(&signal.route),
        text(&signal.limit),
        text(&signal.reason),
    ]
}
