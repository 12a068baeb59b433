//! `gateway deny import`: a file becomes a list. It is read here, with the rights of whoever asks, and put in force by
//! the gateway as a difference.

use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use indicatif::ProgressBar;

use super::list::milliseconds;
use super::output::Output;
use super::place::Place;
use super::progress::{self, Counted};
use super::{Failure, ImportArgs, ask, insist, unexpected};
use crate::admin::api::{Answer, PutList, Request};
use crate::base::stamp::Stamp;
use crate::rules::entries::{Builder, Entries, TooManyNotes};
use crate::rules::list::Kind;
use crate::rules::list_file::{ActionName, Header};
use crate::rules::parse::{self, ERRORS_MAX, Errors};

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// From so many on, a file is read by two.
const HALVED_MIN_BYTES: u64 = 1024 * 1024;
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
    let put = PutList { header, entries: Arc::new(entries), yes, confirm_within_ms };
    let answer = insist::sure(Request::PutList(Box::new(put)), |request| {
        let bar = progress::waiting("putting it in force");
        let answer = ask(place, request);
        bar.finish_and_clear();
        answer
    });
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
    let part = match file.as_os_str() == STDIN {
        true => read_stream(io::stdin().lock()),
        false => File::open(file).and_then(|file| read_file(&file)),
    };
    let Part { builder, too_many, errors } = part.map_err(failed)?;
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

/// What has no length that is known beforehand.
fn read_stream(input: impl BufRead) -> io::Result<Part> {
    let bar = progress::bytes("reading", None);
    let part = Part::read(input, &bar);
    bar.finish_and_clear();
    part
}

fn read_file(file: &File) -> io::Result<Part> {
    let before = file.metadata()?;
    if !before.is_file() {
        return read_stream(BufReader::with_capacity(BUFFER_BYTES, file));
    }
    let bar = progress::bytes("reading", Some(before.len()));
    let part = unchanged(file, &before, || match before.len() {
        0..HALVED_MIN_BYTES => Part::read(from(file, 0), &bar),
        length => read_halves(file, length, &bar),
    });
    bar.finish_and_clear();
    part
}

/// What is read of a file that is afterwards as it was `before`: else it may be cut off in the middle of an address.
fn unchanged<T>(
    file: &File,
    before: &Metadata,
    read: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let part = read()?;
    if Stamp::of(&file.metadata()?) != Stamp::of(before) {
        return Err(io::Error::other(
            "it changed while it was read; nothing was changed: try again",
        ));
    }
    Ok(part)
}

/// Both halves at once.
fn read_halves(file: &File, length: u64, bar: &ProgressBar) -> io::Result<Part> {
    let middle = length / 2;
    let middle = middle + from(file, middle).skip_until(b'\n')? as u64;
    let (first, second) = thread::scope(|scope| {
        let second = scope.spawn(|| Part::read(from(file, middle), bar));
        (Part::read(from(file, 0).take(middle), bar), second.join())
    });
    let mut second = second.map_err(|_| io::Error::other("its reader panicked"))??;
    if !second.errors.first.is_empty() {
        let lines = count_lines(from(file, 0).take(middle))?;
        second.errors.first.iter_mut().for_each(|error| error.line += lines);
    }
    Ok(first?.with(second))
}

fn from(file: &File, at: u64) -> BufReader<At<'_>> {
    BufReader::with_capacity(BUFFER_BYTES, At { file, at })
}

/// What was read of a file, or of a part of it.
struct Part {
    builder: Builder,
    too_many: Option<TooManyNotes>,
    errors: Errors,
}

impl Part {
    fn read(input: impl BufRead, bar: &ProgressBar) -> io::Result<Self> {
        let (mut builder, mut too_many) = (Builder::default(), None);
        let input = Counted { inner: input, bar: bar.clone() };
        let errors = parse::read(input, |item| {
            if too_many.is_none() {
                too_many = builder.add(item.entry()).err();
            }
        })?;
        Ok(Self { builder, too_many, errors })
    }

    /// Together with what follows it.
    fn with(mut self, next: Self) -> Self {
        let too_many = self.too_many.or(next.too_many);
        let too_many = too_many.or_else(|| self.builder.append(next.builder).err());
        self.errors.total += next.errors.total;
        self.errors.first.extend(next.errors.first);
        self.errors.first.truncate(ERRORS_MAX);
        Self { too_many, ..self }
    }
}

/// A file from some place on, whoever else reads it.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

fn count_lines(mut input: impl BufRead) -> io::Result<u64> {
    let mut lines = 0;
    while input.skip_until(b'\n')? > 0 {
        lines += 1;
    }
    Ok(lines)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_that_changes_while_it_is_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        fs::write(&path, "192.0.2.1\n198.51.100.1").unwrap();
        let (file, length) =
            (File::open(&path).unwrap(), |file: &File| file.metadata().map(|m| m.len()));
        let before = file.metadata().unwrap();
        assert_eq!(unchanged(&file, &before, || length(&file)).unwrap(), 22);
        for change in ["192.0.2.1\n198.51.100.12\n", "192.0.2.1\n203.0.113.11"] {
            let before = file.metadata().unwrap();
            let refused = unchanged(&file, &before, || fs::write(&path, change)).unwrap_err();
            assert!(refused.to_string().contains("changed while it was read"), "{refused}");
        }
    }
}
