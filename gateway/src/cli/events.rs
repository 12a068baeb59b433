//! `gateway events`: packets that the kernel door dropped, as they come. A sample: the counters of `gateway status` and
//! `gateway metrics` count every one.

use std::net::SocketAddr;

use clap::Args;
use gateway_common::verdict::Reason;
use ipnet::IpNet;

use super::output::Output;
use super::place::Place;
use super::{Failure, ask, unexpected};
use crate::admin::api::{Answer, Request};
use crate::admin::monitor::{EventView, Events};
use crate::admin::query;
use crate::base::prefix;
use crate::kernel::events::Filter;

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Go on with those to come, until somebody ends it
    #[arg(long, short)]
    follow: bool,
    /// The last so many
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = limit)]
    limit: usize,
    /// Only those of sources in this prefix
    #[arg(long, value_name = "PREFIX", value_parser = prefix::parse)]
    source: Option<IpNet>,
    /// Only those that were dropped for this reason
    #[arg(long, value_name = "REASON", value_parser = query::reason)]
    reason: Option<Reason>,
}

pub(super) fn run(place: &Place, arguments: &EventsArgs, output: &Output) -> Result<(), Failure> {
    let EventsArgs { follow, limit, source, reason } = *arguments;
    let filter = Filter { source, reason };
    let mut query = query::Events { after: 0, limit, filter, wait: false };
    loop {
        let answer = ask(place, &Request::Events(query))?;
        let Answer::Events(Events { events, last, missed }) = answer else {
            return Err(unexpected());
        };
        if missed > 0 {
            anstream::eprintln!("note: {missed} events went by before they were read");
        }
        for event in &events {
            show(event, output)?;
        }
        if !follow {
            return match events.is_empty() && !output.is_json() {
                true => Ok(output.line("no packet was dropped and reported yet")?),
                false => Ok(()),
            };
        }
        query = query::Events { after: last, limit: query::EVENTS_MAX, filter, wait: true };
    }
}

fn limit(text: &str) -> Result<usize, String> {
    let number = text.parse().map_err(|_| "it is no number".to_owned())?;
    query::limit(number).map_err(|refusal| refusal.error)
}

fn show(event: &EventView, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return Ok(output.object(event)?);
    }
    let EventView { source, reason, protocol, interface, .. } = event;
    let to = match event.port {
        Some(port) => format!("{protocol} {port}"),
        None => protocol.clone(),
    };
    let rule = match &event.rule {
        Some(rule) => {
            let list = rule.list.as_ref().map(|list| format!(" {list}")).unwrap_or_default();
            format!("  {} {} by {}{list}", rule.action, rule.prefix, rule.origin)
        }
        None => String::new(),
    };
    let spared = if event.dry_run { "  (dry run: it passed)" } else { "" };
    let time = event.time_utc_ms.display();
    let from = match event.source_port {
        Some(port) => SocketAddr::new(*source, port).to_string(),
        None => source.to_string(),
    };
    Ok(output
        .line(&format!("{time}  {reason:<11}  {from:<21}  {to:<9}  {interface}{rule}{spared}"))?)
}
