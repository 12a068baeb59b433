//! `gateway lists`: the lists that are in force and those of the configuration, where each comes from, and what is
//! wrong with it.

use super::output::Output;
use super::place::Place;
use super::{Failure, ListsVerb, ask, unexpected};
use crate::admin::api::{Answer, ListName, Request};
use crate::admin::rules::ListView;
use crate::base::time::UtcMillis;

pub(super) fn run(place: &Place, verb: Option<ListsVerb>, output: &Output) -> Result<(), Failure> {
    let request = match verb {
        None => return show(place, output),
        Some(ListsVerb::Refresh { name }) => Request::RefreshList(ListName { name }),
        Some(ListsVerb::Accept { name }) => Request::AcceptList(ListName { name }),
    };
    match ask(place, &request)? {
        Answer::Done(done) => Ok(output.done(&done)?),
        _ => Err(unexpected()),
    }
}

fn show(place: &Place, output: &Output) -> Result<(), Failure> {
    let Answer::Lists { lists } = ask(place, &Request::Lists)? else { return Err(unexpected()) };
    if output.is_json() {
        return Ok(lists.iter().try_for_each(|list| output.object(list))?);
    }
    if lists.is_empty() {
        return Ok(output.line("there is no list: `gateway deny import FILE` makes one")?);
    }
    let header = ["name", "action", "kind", "entries", "packets", "read", "source", "note"];
    Ok(output.table(&header, lists.iter().map(row).collect())?)
}

fn row(list: &ListView) -> Vec<String> {
    let notes = [list.dry_run.then(|| "dry run".to_owned()), list.note.clone()];
    vec![
        list.name.clone(),
        list.action.clone(),
        list.kind.clone(),
        list.entries.to_string(),
        list.packets.map(|packets| packets.to_string()).unwrap_or_default(),
        match list.created_utc_ms {
            UtcMillis(0) => "never".to_owned(),
            read => read.display(),
        },
        list.source.clone(),
        notes.into_iter().flatten().collect::<Vec<_>>().join("; "),
    ]
}
