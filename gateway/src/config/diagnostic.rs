//! What is wrong with a file: where, what, and what to do about it. For people in the compiler's style, for programs
//! as one JSON object a line. Decides nothing.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

use super::hidden::Hidden;

/// Characters of a long line that are shown around the offending text.
const EXCERPT_CHARS: usize = 100;
/// Mistakes that are explained; the others are counted.
const SHOWN_MAX: usize = 100;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file, as it was named by whoever gave it.
    pub file: String,
    /// Where in the file; `None` when it could not be read at all.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// A place in a file and what stands there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Characters that are meant.
    pub width: usize,
    /// The line, or what of a long one stands around the column; tabs and control characters as spaces.
    pub text: String,
    /// Characters of the line before `text`.
    #[serde(skip)]
    skipped: usize,
}

impl Place {
    /// A place in a text of these lines. What lies outside of it is moved to its nearest end.
    fn new(lines: &[&str], span: Span) -> Self {
        let line = span.line.clamp(1, lines.len().max(1));
        let text = lines.get(line - 1).copied().unwrap_or_default();
        // A byte order mark has no width of its own.
        let text = text.trim_start_matches('\u{feff}').trim_end();
        let length = text.chars().count();
        let column = span.column.clamp(1, length + 1);
        let width = span.width.clamp(1, (length + 1 - column).max(1));
        let skipped =
            if length > EXCERPT_CHARS { column.saturating_sub(EXCERPT_CHARS / 3) } else { 0 };
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        let text = text.chars().skip(skipped).take(EXCERPT_CHARS).map(clean).collect();
        Self { line, column, width, text, skipped }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "error: {}", self.message)?;
        let Some(place) = &self.place else {
            write!(formatter, "  --> {}", self.file)?;
            return self.help.iter().try_for_each(|help| write!(formatter, "\n   = help: {help}"));
        };
        let margin = place.line.to_string().len();
        let column = place.column - 1 - place.skipped;
        let width = place.width.min((EXCERPT_CHARS - column).max(1));
        writeln!(formatter, "{:margin$}--> {}:{}:{}", "", self.file, place.line, place.column)?;
        writeln!(formatter, "{:margin$} |", "")?;
        writeln!(formatter, "{} | {}", place.line, place.text)?;
        write!(formatter, "{:margin$} | {:column$}{:^<width$}", "", "", "")?;
        self.help.iter().try_for_each(|help| write!(formatter, "\n{:margin$} = help: {help}", ""))
    }
}

/// Everything that is wrong with a configuration, in the order of the file. At least one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    shown: Vec<Diagnostic>,
    /// Mistakes that were found, also those beyond [`SHOWN_MAX`].
    count: usize,
}

impl Errors {
    /// How many mistakes the file has, also those that are not shown.
    pub fn count(&self) -> usize {
        self.count
    }

    /// One after the other, the first hundred.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.shown.iter()
    }

    /// One JSON object a line.
    pub fn json_lines(&self) -> String {
        let lines = self.iter().filter_map(|diagnostic| serde_json::to_string(diagnostic).ok());
        lines.flat_map(|line| [line, "\n".to_owned()]).collect()
    }
}

impl From<Vec<Diagnostic>> for Errors {
    fn from(mut shown: Vec<Diagnostic>) -> Self {
        let count = shown.len();
        shown.truncate(SHOWN_MAX);
        Self { shown, count }
    }
}

impl From<Diagnostic> for Errors {
    fn from(diagnostic: Diagnostic) -> Self {
        Self { shown: vec![diagnostic], count: 1 }
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|diagnostic| write!(formatter, "{diagnostic}\n\n"))?;
        match (self.count, self.shown.len()) {
            (1, _) => write!(formatter, "1 error")?,
            (count, shown) if count > shown => {
                write!(formatter, "{count} errors, the first {shown} are shown")?;
            }
            (count, _) => write!(formatter, "{count} errors")?,
        }
        write!(formatter, "; nothing of the file is applied")
    }
}

impl std::error::Error for Errors {}

/// A place as the parser counts: line and column from 1, on one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) width: usize,
}

/// A diagnostic before it has seen the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) span: Span,
    pub(super) message: String,
    pub(super) help: Option<String>,
    /// Whether what stands there must not be shown.
    pub(super) is_secret: bool,
}

impl Problem {
    pub(super) fn new(span: Span, message: impl Into<String>) -> Self {
        Self { span, message: message.into(), help: None, is_secret: false }
    }

    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// Problems as diagnostics, each once, in the order of the file, without what is hidden.
pub(super) fn explain(file: &str, text: &str, mut problems: Vec<Problem>) -> Errors {
    problems.sort_by(|one, other| (one.span, &one.message).cmp(&(other.span, &other.message)));
    problems.dedup();
    let count = problems.len();
    let mut hidden = Hidden::of(text);
    problems.iter().filter(|problem| problem.is_secret).for_each(|one| hidden.hide(one.span));
    let lines: Vec<Cow<'_, str>> =
        text.lines().enumerate().map(|(index, line)| hidden.line(index + 1, line)).collect();
    let lines: Vec<&str> = lines.iter().map(|line| &**line).collect();
    let shown = problems.into_iter().take(SHOWN_MAX).map(|problem| Diagnostic {
        file: file.to_owned(),
        place: Some(Place::new(&lines, problem.span)),
        message: hidden.message(problem.message),
        help: problem.help,
    });
    Errors { shown: shown.collect(), count }
}

/// The one of `known` that `typed` was probably meant to be.
pub(super) fn did_you_mean<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    // Long texts are no typing mistakes, and comparing them costs the square of their length.
    if typed.len() > 64 {
        return None;
    }
    let allowed = typed.chars().count().div_ceil(3);
    known
        .into_iter()
        .map(|name| (strsim::osa_distance(&typed, &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

/// The help for a name that does not exist: what was probably meant, or what there is.
pub(super) fn suggestion<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<String> {
    /// Beyond this a list helps nobody.
    const SHOWN: usize = 24;
    if let Some(name) = did_you_mean(typed, known.clone()) {
        return Some(format!("did you mean `{name}`?"));
    }
    let names: Vec<_> = known.into_iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    (!names.is_empty()).then(|| format!("known here: {}", names.join(", ")))
}
