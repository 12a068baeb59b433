//! `gateway deny import`: a file becomes a list. It is read here, with the rights of whoever asks, and put in force by
//! the gateway as a difference.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use super::list::milliseconds;
use super::output::Output;
use super::place::Place;
use super::progress::{self, Counted};
use super::{Failure, ImportArgs, ask, unexpected};
use crate::admin::api::{Answer, PutList, Request};
use crate::rules::entries::{Builder, Entries};
use crate::rules::list::Kind;
use crate::rules::list_file::{ActionName, Header};
use crate::rules::parse::{self, Errors};

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// Name of what comes from the standard input.
const STDIN: &str = "-";

pub(super) fn run(
    place: &Place,
    action: ActionName,
    arguments: ImportArgs,
    output: &Output,
) -> Result<(), Failure> {
    let ImportArgs { file, list, reason, dry_run, skip_invalid, yes, confirm_within } = arguments;
    let confirm_within_ms = confirm_within.map(milliseconds);
    let name = match list {
        Some(name) => name,
        None => name_of(&file)?,
    };
    let source = match file.as_os_str() == STDIN {
        true => "standard input".to_owned(),
        false => std::path::absolute(&file).unwrap_or_else(|_| file.clone()).display().to_string(),
    };
    let entries = read(&file, skip_invalid, output)?;
    let mut header = Header::new(&name, action, Kind::Import, &source);
    header.reason = reason;
    header.dry_run = dry_run;
    let bar = progress::waiting("putting it in force");
    let put = PutList { header, entries, yes, confirm_within_ms };
    let answer = ask(place, &Request::PutList(Box::new(put)));
    bar.finish_and_clear();
    match answer? {
        Answer::Done(done) => Ok(output.done(&done)?),
        _ => Err(unexpected()),
    }
}

/// The name of the file in letters that a list may have.
fn name_of(file: &Path) -> Result<String, Failure> {
    if file.as_os_str() == STDIN {
        return Err(Failure::Usage(
            "the standard input has no name: choose one for the list with --list".to_owned(),
        ));
    }
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().to_lowercase());
    Ok(stem.unwrap_or_default())
}

fn read(file: &Path, skip_invalid: bool, output: &Output) -> Result<Entries, Failure> {
    let shown = file.display();
    let failed = |error: io::Error| Failure::Failed(format!("{shown}: {error}"));
    let (input, length): (Box<dyn BufRead>, Option<u64>) = match file.as_os_str() == STDIN {
        true => (Box::new(io::stdin().lock()), None),
        false => {
            let file = File::open(file).map_err(failed)?;
            let length = file.metadata().map_err(failed)?.len();
            (Box::new(BufReader::with_capacity(BUFFER_BYTES, file)), Some(length))
        }
    };
    let bar = progress::bytes("reading", length);
    let mut builder = Builder::default();
    let mut too_many = None;
    let input = Counted { inner: input, bar: bar.clone() };
    let errors = parse::read(input, |item| {
        if too_many.is_none() {
            too_many = builder.add(item.entry()).err();
        }
    });
    bar.finish_and_clear();
    let errors = errors.map_err(failed)?;
    if let Some(error) = too_many {
        return Err(Failure::Failed(format!("{shown}: {error}")));
    }
    report(file, &errors, output);
    if errors.total > 0 && !skip_invalid {
        return Err(Failure::Failed(format!(
            "{shown}: {} cannot be read, see above; nothing was changed: correct them, or leave \
             them out with --skip-invalid",
            lines(errors.total)
        )));
    }
    let entries = builder.build();
    if entries.is_empty() {
        return Err(Failure::Failed(format!(
            "{shown} has no entry; nothing was changed: to take a list back there is remove --list"
        )));
    }
    Ok(entries)
}

fn report(file: &Path, errors: &Errors, output: &Output) {
    let file = file.display();
    for error in &errors.first {
        let (line, text, reason) = (error.line, &error.text, &error.reason);
        match output.is_json() {
            true => anstream::eprintln!(
                "{}",
                serde_json::json!({ "file": file.to_string(), "line": line, "text": text, "error": reason })
            ),
            false => anstream::eprintln!("{file}:{line}: {reason}"),
        }
    }
    if let Some(more @ 1..) = errors.total.checked_sub(errors.first.len() as u64) {
        anstream::eprintln!("{file}: and {} more", lines(more));
    }
}

fn lines(count: u64) -> String {
    match count {
        1 => "1 line".to_owned(),
        count => format!("{count} lines"),
    }
}
