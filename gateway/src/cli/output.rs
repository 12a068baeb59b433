//! How results are written: tables and sentences for people, JSON lines for programs.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::admin::api::Done;

/// Where output goes and in which form.
pub(super) struct Output {
    json: bool,
}

impl Output {
    /// JSON if it is asked for, or if nobody watches.
    pub(super) fn new(json: bool) -> Self {
        Self { json: json || !io::stdout().is_terminal() }
    }

    /// Whether programs read it.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// One JSON object on a line of its own.
    pub(super) fn object(&self, value: &impl Serialize) -> io::Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, value)?;
        out.write_all(b"\n")
    }

    /// A line of text.
    pub(super) fn line(&self, text: &str) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{text}")
    }

    /// A table under a heading.
    pub(super) fn table(&self, header: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(header.iter().map(|title| title.to_uppercase()));
        table.add_rows(rows);
        table.column_iter_mut().for_each(|column| {
            column.set_padding((0, 2));
        });
        self.line(table.trim_fmt().as_str())
    }

    /// What was done, and what to know about it.
    pub(super) fn done(&self, done: &Done) -> io::Result<()> {
        if self.json {
            return self.object(done);
        }
        for line in &done.done {
            self.line(line)?;
        }
        for note in &done.notes {
            self.line(&format!("note: {note}"))?;
        }
        Ok(())
    }

    /// An error, on the error stream.
    pub(super) fn error(&self, text: &str) {
        if self.json {
            anstream::eprintln!("{}", serde_json::json!({ "error": text }));
        } else {
            let style = anstyle::Style::new().bold();
            anstream::eprintln!("{style}error:{style:#} {text}");
        }
    }
}
