//! `gateway why`: what happens to an address, and the story behind it.

use std::net::IpAddr;

use super::list::{HEADER, row};
use super::output::Output;
use super::place::Place;
use super::{Failure, ask, unexpected};
use crate::admin::api::{Answer, Request};

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
        let facts = [
            ("rule", format!("{} {}{profile}", rule.action, rule.prefix)),
            ("made by", rule.origin.clone()),
            ("reason", reason.to_owned()),
            ("since", rule.created_utc_ms.display()),
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
    if !why.others.is_empty() {
        output.line("other rules that cover it:")?;
        output.table(&HEADER, why.others.iter().map(row).collect())?;
    }
    Ok(())
}
