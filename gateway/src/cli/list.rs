//! `gateway deny` and `gateway allow`, the rules that people keep by hand and by list, and `gateway limit`, the
//! profiles that they hold sources to.

use std::time::Duration;

use super::output::Output;
use super::place::Place;
use super::{
    AddArgs, Failure, LimitVerb, ListArgs, ListVerb, RuleArgs, RulesArgs, SortBy, ask, export,
    import, insist, unexpected,
};
use crate::admin::api::{
    Add, Answer, ListAction, ListQuery, PAGE_MAX_RULES, Remove, RemoveList, Request,
};
use crate::admin::rules::RuleView;
use crate::base::prefix;
use crate::rules::list_file::ActionName;

/// Rules in one table for people, unless they ask for more.
const TABLE_RULES: usize = 1000;

pub(super) fn run(
    place: &Place,
    action: ActionName,
    verb: ListVerb,
    output: &Output,
) -> Result<(), Failure> {
    let request = match verb {
        ListVerb::Add(AddArgs { prefixes, reset, rule }) => {
            let action = match (action, reset) {
                (ActionName::Allow, true) => {
                    return Err(Failure::Usage("--reset is for `gateway deny add`".to_owned()));
                }
                (ActionName::Deny, true) => ListAction::Reset,
                (_, false) => action.into(),
            };
            Request::Add(add(action, prefixes, None, rule))
        }
        ListVerb::Remove { list: Some(name), confirm_within, .. } => {
            let confirm_within_ms = confirm_within.map(milliseconds);
            Request::RemoveList(RemoveList { action, name, confirm_within_ms })
        }
        ListVerb::Remove { prefixes, list: None, confirm_within } => {
            let confirm_within_ms = confirm_within.map(milliseconds);
            Request::Remove(Remove { action: action.into(), prefixes, confirm_within_ms })
        }
        ListVerb::List(ListArgs { list, rules }) => {
            let query = ListQuery { list, ..ListQuery::default() };
            return show(place, action.into(), query, rules, output);
        }
        ListVerb::Import(arguments) => return import::run(place, action, arguments, output),
        ListVerb::Export { file, list } => return export::run(place, action.into(), &file, list),
    };
    done(place, request, output)
}

/// `gateway limit`.
pub(super) fn limit(place: &Place, verb: LimitVerb, output: &Output) -> Result<(), Failure> {
    let action = ListAction::Limit;
    let request = match verb {
        LimitVerb::Set { prefixes, profile, rule } => {
            Request::Add(add(action, prefixes, Some(profile), rule))
        }
        LimitVerb::Remove { prefixes, confirm_within } => {
            let confirm_within_ms = confirm_within.map(milliseconds);
            Request::Remove(Remove { action, prefixes, confirm_within_ms })
        }
        LimitVerb::List(rules) => {
            return show(place, action, ListQuery::default(), rules, output);
        }
    };
    done(place, request, output)
}

/// `gateway confirm`.
pub(super) fn confirm(place: &Place, output: &Output) -> Result<(), Failure> {
    done(place, Request::Confirm, output)
}

fn done(place: &Place, request: Request, output: &Output) -> Result<(), Failure> {
    match insist::sure(request, |request| ask(place, request))? {
        Answer::Done(done) => Ok(output.done(&done)?),
        _ => Err(unexpected()),
    }
}

/// A time as the gateway is told of it.
pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn add(action: ListAction, prefixes: Vec<String>, profile: Option<String>, rule: RuleArgs) -> Add {
    let RuleArgs { duration, reason, force, yes, confirm_within } = rule;
    let (for_ms, confirm_within_ms) =
        (duration.map(milliseconds), confirm_within.map(milliseconds));
    Add { action, prefixes, profile, for_ms, reason, force, yes, confirm_within_ms }
}

fn show(
    place: &Place,
    action: ListAction,
    query: ListQuery,
    arguments: RulesArgs,
    output: &Output,
) -> Result<(), Failure> {
    let RulesArgs { origin, inside, sort, limit } = arguments;
    let inside = inside.map(|text| prefix::parse(&text)).transpose();
    let by_packets = sort == SortBy::Packets;
    let query = ListQuery {
        action: Some(action),
        origin,
        inside: inside.map_err(|error| Failure::Usage(error.to_string()))?,
        by_packets,
        ..query
    };
    let most = if by_packets { PAGE_MAX_RULES } else { usize::MAX };
    let usual = if output.is_json() { usize::MAX } else { TABLE_RULES };
    let limit = limit.unwrap_or(usual).min(most);
    let mut rows = Vec::new();
    let is_all = pages(place, query, limit, |rule| {
        if output.is_json() {
            return Ok(output.object(&rule)?);
        }
        rows.push(row(&rule));
        Ok(())
    })?;
    if output.is_json() {
        return Ok(());
    }
    if rows.is_empty() {
        return Ok(output.line("there are no such rules")?);
    }
    let shown = rows.len();
    output.table(&HEADER, rows)?;
    if !is_all {
        output.line(&format!("the first {shown}; more with --limit, all with --json"))?;
    }
    Ok(())
}

/// Asks for rules page by page and hands them over one by one, at most `limit`. Answers whether that was all of them.
pub(super) fn pages(
    place: &Place,
    mut query: ListQuery,
    limit: usize,
    mut each: impl FnMut(RuleView) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let mut left = limit;
    while left > 0 {
        query.limit = left;
        let Answer::Rules { rules, next } = ask(place, &Request::List(query.clone()))? else {
            return Err(unexpected());
        };
        left -= rules.len().min(left);
        rules.into_iter().try_for_each(&mut each)?;
        if next.is_none() {
            return Ok(true);
        }
        query.after = next;
    }
    Ok(false)
}

/// The columns of a rule.
pub(super) const HEADER: [&str; 8] =
    ["prefix", "action", "origin", "until", "enforced", "packets", "last packet", "reason"];

/// A rule in these columns.
pub(super) fn row(rule: &RuleView) -> Vec<String> {
    let reason = match &rule.note {
        Some(note) if rule.reason.is_empty() => note.clone(),
        Some(note) => format!("{} ({note})", rule.reason),
        None => rule.reason.clone(),
    };
    let origin = match &rule.list {
        Some(list) => format!("{} {list}", rule.origin),
        None => rule.origin.clone(),
    };
    vec![
        rule.prefix.clone(),
        match &rule.profile {
            Some(profile) => format!("{} {profile}", rule.action),
            None => rule.action.clone(),
        },
        origin,
        rule.until_utc_ms.map_or_else(|| "for ever".to_owned(), |until| until.display()),
        rule.enforced.clone(),
        rule.packets.to_string(),
        rule.last_packet_utc_ms.map_or_else(String::new, |last| last.display()),
        reason,
    ]
}
