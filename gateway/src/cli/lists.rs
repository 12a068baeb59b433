//! `gateway lists`: the lists that are in force, and where each comes from.

use super::output::Output;
use super::place::Place;
use super::{Failure, ask, unexpected};
use crate::admin::api::{Answer, ListView, Request};

pub(super) fn run(place: &Place, output: &Output) -> Result<(), Failure> {
    let Answer::Lists { lists } = ask(place, &Request::Lists)? else { return Err(unexpected()) };
    if output.is_json() {
        return Ok(lists.iter().try_for_each(|list| output.object(list))?);
    }
    if lists.is_empty() {
        return Ok(output.line("there is no list: `gateway deny import FILE` makes one")?);
    }
    let header = ["name", "action", "kind", "entries", "read", "source", "note"];
    Ok(output.table(&header, lists.iter().map(row).collect())?)
}

fn row(list: &ListView) -> Vec<String> {
    let notes = [list.dry_run.then(|| "dry run".to_owned()), list.note.clone()];
    vec![
        list.name.clone(),
        list.action.clone(),
        list.kind.clone(),
        list.entries.to_string(),
        list.created_utc_ms.display(),
        list.source.clone(),
        notes.into_iter().flatten().collect::<Vec<_>>().join("; "),
    ]
}
