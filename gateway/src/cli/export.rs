//! `gateway deny export`: rules as lines that `import` reads again, with their reasons and ends.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use super::list::pages;
use super::place::Place;
use super::{Failure, progress};
use crate::admin::api::{ListAction, ListQuery};
use crate::admin::rules::RuleView;
use crate::base::time::UtcMillis;

/// What a rule is made of again.
#[derive(Debug, Serialize)]
struct Line<'a> {
    prefix: &'a str,
    /// Only where it is another one than the list's.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    until_utc_ms: Option<UtcMillis>,
}

pub(super) fn run(
    place: &Place,
    action: ListAction,
    file: &Path,
    list: Option<String>,
) -> Result<(), Failure> {
    let query = ListQuery { action: Some(action), list, ..ListQuery::default() };
    if file.as_os_str() == "-" {
        return write(place, query, io::stdout().lock());
    }
    // Beside it and renamed: a file that is watched or read by others is never half there.
    let unfinished = file.with_added_extension("unfinished");
    let failed = |error: io::Error| Failure::Failed(format!("{}: {error}", file.display()));
    let written = write(place, query, File::create(&unfinished).map_err(failed)?);
    match written {
        Ok(()) => std::fs::rename(&unfinished, file).map_err(failed),
        Err(error) => {
            // The error that led here is the one to tell.
            std::fs::remove_file(&unfinished).ok();
            Err(error)
        }
    }
}

fn write(place: &Place, query: ListQuery, out: impl Write) -> Result<(), Failure> {
    let bar = progress::waiting("exporting");
    let mut out = BufWriter::new(out);
    let usual = query.action.map(ListAction::name);
    let written = pages(place, query, usize::MAX, |rule| {
        let RuleView { prefix, action, reason, until_utc_ms, .. } = &rule;
        let action = Some(action.as_str()).filter(|action| Some(*action) != usual);
        let line = Line { prefix, action, reason, until_utc_ms: *until_utc_ms };
        serde_json::to_writer(&mut out, &line).map_err(io::Error::from)?;
        Ok(out.write_all(b"\n")?)
    });
    bar.finish_and_clear();
    written?;
    Ok(out.flush()?)
}
