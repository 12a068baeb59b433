//! `gateway bans`: what the gateway's own decisions hold off, and what people think of it.

use clap::{Args, Subcommand};

use super::output::Output;
use super::place::Place;
use super::{Failure, ask, unexpected};
use crate::admin::api::{Answer, Request};
use crate::admin::bans::{
    BanNames, BanQuery, BanRequest, BanView, FeedbackView, PAGE_MAX_BANS, Took,
};

/// Bans in one table for people, unless they ask for more.
const TABLE_BANS: usize = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum BansVerb {
    /// Show the bans that hold, by prefix
    List(ListArgs),
    /// Take bans back, all of them or none; for an hour it takes twice the evidence to ban them again
    Lift(NamesArgs),
    /// Let bans hold until they are lifted
    Pin(NamesArgs),
    /// Take bans back, and remember nothing of them: how often there were, and that they were lifted
    Forget(NamesArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Instead the last decisions that were not carried out, the newest first, and why
    #[arg(long)]
    held: bool,
    /// Bans to show at most [default: 1000 on a terminal, else all]
    #[arg(long, value_name = "BANS")]
    limit: Option<usize>,
}

#[derive(Debug, Args)]
pub(super) struct NamesArgs {
    /// Addresses or prefixes, as `gateway bans list` shows them
    #[arg(required = true)]
    prefixes: Vec<String>,
}

pub(super) fn run(place: &Place, verb: BansVerb, output: &Output) -> Result<(), Failure> {
    let named = |NamesArgs { prefixes }| BanNames { prefixes };
    let request = match verb {
        BansVerb::List(arguments) => return list(place, &arguments, output),
        BansVerb::Lift(names) => BanRequest::Lift(named(names)),
        BansVerb::Pin(names) => BanRequest::Pin(named(names)),
        BansVerb::Forget(names) => BanRequest::Forget(named(names)),
    };
    match ask(place, &Request::Bans(request))? {
        Answer::Done(done) => Ok(output.done(&done)?),
        _ => Err(unexpected()),
    }
}

fn list(place: &Place, arguments: &ListArgs, output: &Output) -> Result<(), Failure> {
    let usual = if output.is_json() { usize::MAX } else { TABLE_BANS };
    let mut left = arguments.limit.unwrap_or(usual);
    let mut query = BanQuery { held: arguments.held, ..BanQuery::default() };
    let mut rows = Vec::new();
    let mut more = true;
    while more && left > 0 {
        query.limit = left.min(PAGE_MAX_BANS);
        let Answer::Bans { bans, next } = ask(place, &Request::Bans(BanRequest::List(query)))?
        else {
            return Err(unexpected());
        };
        left -= bans.len().min(left);
        for ban in &bans {
            match output.is_json() {
                true => output.object(ban)?,
                false => rows.push(row(ban)),
            }
        }
        more = next.is_some();
        query = BanQuery { held: arguments.held, limit: 0, after: next };
    }
    if output.is_json() {
        return Ok(());
    }
    if rows.is_empty() {
        return Ok(output.line(match arguments.held {
            true => "no decision was held back",
            false => "nobody is banned",
        })?);
    }
    let shown = rows.len();
    output.table(&HEADER, rows)?;
    if more {
        output.line(&format!("the first {shown}; more with --limit, all with --json"))?;
    }
    Ok(())
}

const HEADER: [&str; 9] =
    ["prefix", "measure", "rule", "by", "until", "times", "enforced", "packets", "note"];

fn row(ban: &BanView) -> Vec<String> {
    vec![
        ban.prefix.clone(),
        measure(ban),
        ban.rule.clone(),
        ban.author.clone(),
        until(ban),
        ban.times.to_string(),
        ban.enforced.clone(),
        ban.packets.to_string(),
        ban.note.clone().unwrap_or_default(),
    ]
}

/// How the way back stands, in one line.
pub(super) fn line(view: &FeedbackView) -> String {
    let FeedbackView { dry_run, rules, bans, held, lag, reaction, durable: _ } = view;
    let dry_run = if *dry_run { ", dry run: nothing is enforced" } else { "" };
    let lag = lag.as_ref().map(|lag| format!(", bans not on the disk: {lag}"));
    let took =
        |took: &Took| format!(", 99 % enforced within {:.2} ms", took.p99_us as f64 / 1000.0);
    let reaction = reaction.as_ref().map(took).unwrap_or_default();
    let lag = lag.unwrap_or_default();
    format!("{rules} rules, {bans} bans, {held} held back{reaction}{dry_run}{lag}")
}

/// What is done, and to what.
pub(super) fn measure(ban: &BanView) -> String {
    let profile = ban.profile.as_ref().map(|profile| format!(" to {profile}"));
    format!("{}{}", ban.measure, profile.unwrap_or_default())
}

/// When it ends.
pub(super) fn until(ban: &BanView) -> String {
    match (ban.pinned, ban.until_utc_ms) {
        (true, _) => "pinned".to_owned(),
        (false, Some(until)) => until.display(),
        (false, None) => "for ever".to_owned(),
    }
}
