//! `gateway deny` and `gateway allow`: the two lists that people keep by hand.

use super::output::Output;
use super::place::Place;
use super::{AddArgs, Failure, ListVerb, ask, unexpected};
use crate::admin::api::{Add, Answer, ListAction, Remove, Request, RuleView};

pub(super) fn run(
    place: &Place,
    action: ListAction,
    verb: ListVerb,
    output: &Output,
) -> Result<(), Failure> {
    let request = match verb {
        ListVerb::Add(arguments) => Request::Add(add(action, arguments)),
        ListVerb::Remove { prefixes } => Request::Remove(Remove { action, prefixes }),
        ListVerb::List => Request::List(Some(action)),
    };
    match ask(place, &request)? {
        Answer::Rules { rules } => show(&rules, output),
        Answer::Done(done) => Ok(output.done(&done)?),
        _ => Err(unexpected()),
    }
}

fn add(action: ListAction, arguments: AddArgs) -> Add {
    let AddArgs { prefixes, duration, reason, force, yes } = arguments;
    let for_ms = duration.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    Add { action, prefixes, for_ms, reason, force, yes }
}

fn show(rules: &[RuleView], output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        for rule in rules {
            output.object(rule)?;
        }
        return Ok(());
    }
    if rules.is_empty() {
        return Ok(output.line("the list is empty")?);
    }
    Ok(output.table(&HEADER, rules.iter().map(row).collect())?)
}

/// The columns of a rule.
pub(super) const HEADER: [&str; 7] =
    ["prefix", "action", "origin", "until", "enforced", "packets", "reason"];

/// A rule in these columns.
pub(super) fn row(rule: &RuleView) -> Vec<String> {
    let reason = match &rule.note {
        Some(note) if rule.reason.is_empty() => note.clone(),
        Some(note) => format!("{} ({note})", rule.reason),
        None => rule.reason.clone(),
    };
    vec![
        rule.prefix.clone(),
        rule.action.clone(),
        rule.origin.clone(),
        rule.until_utc_ms.map_or_else(|| "for ever".to_owned(), |until| until.display()),
        rule.enforced.clone(),
        rule.packets.to_string(),
        reason,
    ]
}
