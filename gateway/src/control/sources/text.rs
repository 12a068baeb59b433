//! The text of a list becomes entries: of a file whole or not at all, of a feed without a few lines that cannot be
//! read.

use std::fmt;
use std::io::{self, BufRead};

use crate::rules::entries::{Builder, Entries};
use crate::rules::parse::{self, Errors, LineError};

/// Lines that are named when they cannot be read.
const NAMED_MAX: usize = 20;
/// Of so many lines of a feed one may be unreadable.
pub(super) const LINES_PER_BAD_ONE: u64 = 100;

/// Why a text is no list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// What is wrong, the first things of it, each with where it is.
    pub messages: Vec<String>,
    /// Lines that are wrong, too.
    pub more: u64,
}

impl Unread {
    pub(super) fn new(message: String) -> Self {
        Self { messages: vec![message], more: 0 }
    }

    fn lines(place: &str, errors: &Errors) -> Self {
        let named = errors.first.iter().take(NAMED_MAX);
        let messages =
            named.map(|LineError { line, reason, .. }| format!("{place}{line}: {reason}"));
        let messages: Vec<String> = messages.collect();
        let more = errors.total.saturating_sub(messages.len() as u64);
        Self { messages, more }
    }

    /// Lines that are wrong.
    pub(super) fn total(&self) -> u64 {
        self.messages.len() as u64 + self.more
    }

    /// Everything that is known, a line each.
    pub fn in_full(&self) -> impl Iterator<Item = String> {
        let more = (self.more > 0).then(|| format!("and {} more", lines(self.more)));
        self.messages.iter().cloned().chain(more)
    }
}

impl fmt::Display for Unread {
    /// In one line.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut messages = self.messages.iter();
        formatter.write_str(messages.next().map_or("", String::as_str))?;
        match messages.count() as u64 + self.more {
            0 => Ok(()),
            more => write!(formatter, "; and {} more", lines(more)),
        }
    }
}

/// The entries of a file. `place` says where it is.
pub(super) fn file(input: impl BufRead, place: &str) -> Result<Entries, Unread> {
    let read = read(input).map_err(|error| Unread::new(format!("{place}: {error}")))?;
    match read.errors.total {
        0 => Ok(read.entries),
        _ => Err(Unread::lines(&format!("{place}:"), &read.errors)),
    }
}

/// The entries of a feed, and the lines that were left out. The error reads on after what the feed is called.
pub(super) fn feed(input: impl BufRead) -> Result<(Entries, Option<Unread>), String> {
    let read = read(input).map_err(|error| format!("cannot be read: {error}"))?;
    let bad = read.errors.total;
    let unread = Unread::lines("line ", &read.errors);
    if bad * LINES_PER_BAD_ONE <= bad + read.lines {
        return Ok((read.entries, (bad > 0).then_some(unread)));
    }
    Err(format!(
        "has {} that cannot be read, more than 1 in {LINES_PER_BAD_ONE}: {unread}",
        lines(bad)
    ))
}

pub(super) fn lines(count: u64) -> String {
    match count {
        1 => "1 line".to_owned(),
        count => format!("{count} lines"),
    }
}

struct Read {
    entries: Entries,
    errors: Errors,
    /// Lines with an entry.
    lines: u64,
}

fn read(input: impl BufRead) -> io::Result<Read> {
    let mut builder = Builder::default();
    let (mut too_many, mut lines, mut last) = (None, 0, 0);
    let mut everybody = Errors::default();
    let mut errors = parse::read(input, |item| {
        lines += u64::from(item.line != last);
        last = item.line;
        if item.prefix.prefix_len() == 0 {
            let reason = format!("{} is everybody", item.prefix);
            everybody.total += 1;
            if everybody.first.len() < NAMED_MAX {
                everybody.first.push(LineError { line: item.line, text: String::new(), reason });
            }
        } else if too_many.is_none() {
            too_many = builder.add(item.entry()).err();
        }
    })?;
    if let Some(error) = too_many {
        return Err(io::Error::other(error));
    }
    errors.total += everybody.total;
    errors.first.extend(everybody.first);
    errors.first.sort_by_key(|error| error.line);
    Ok(Read { entries: builder.build(), errors, lines })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let entries = file("192.0.2.1\n# a comment\n198.51.100.0/24\n".as_bytes(), "f").unwrap();
        assert_eq!(entries.len(), 2);
        assert!(file("# nobody\n".as_bytes(), "f").unwrap().is_empty());
        let unread = file("192.0.2.1\n192.0.2.300\n0.0.0.0/0\n".as_bytes(), "f").unwrap_err();
        assert!(unread.messages[0].starts_with("f:2: "), "{unread}");
        assert_eq!(unread.messages[1], "f:3: 0.0.0.0/0 is everybody");
        assert!(unread.to_string().ends_with("; and 1 line more"), "{unread}");
        let unread = file("?\n".repeat(1000).as_bytes(), "f").unwrap_err();
        assert_eq!(unread.in_full().count(), NAMED_MAX + 1);
        assert_eq!(unread.in_full().last().unwrap(), "and 980 lines more");
    }

    #[test]
    fn a_feed_may_have_one_bad_line_in_a_hundred() {
        let good: String = (0..99).map(|last| format!("192.0.2.{last}\n")).collect();
        let (entries, bad) = feed(format!("{good}?\n").as_bytes()).unwrap();
        let bad = bad.unwrap();
        assert_eq!((entries.len(), bad.total()), (99, 1));
        assert!(bad.to_string().starts_with("line 100: `?`"), "{bad}");
        assert_eq!(feed(good.as_bytes()).unwrap().1, None);
        let error = feed(format!("{good}?\n?\n").as_bytes()).unwrap_err();
        assert!(error.starts_with("has 2 lines that cannot be read"), "{error}");
        assert!(error.contains("line 100: "), "{error}");
    }
}
