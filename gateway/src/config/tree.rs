//! YAML as a tree that knows where everything stands. Refuses what a configuration has no use for (tags, several
//! documents, keys that are no text) and whatever would cost more than the file is worth.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, StrInput};

use super::diagnostic::{Problem, Span};
use super::hidden::without_user;

/// Bytes of a file.
pub(super) const FILE_BYTES_MAX: usize = 16 << 20;
/// Levels of a tree. The deepest key of a configuration has six.
const DEPTH_MAX: usize = 32;
/// Nodes and bytes of text, [`NODE_WEIGHT`] a node, with all aliases expanded.
const WEIGHT_MAX: usize = 128 << 20;
/// About what a node costs in memory.
const NODE_WEIGHT: usize = 96;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Text, quoted or not.
    Scalar { text: String, plain: bool },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file, each key once.
    Map(Vec<Entry>),
    /// Something wrong that has been reported: reads as anything, and nothing is said about it again.
    Hole,
}

/// A key and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_span: Span,
    pub(super) value: Node,
}

impl Node {
    /// Whether it is `null`, `~` or nothing at all.
    pub(super) fn is_null(&self) -> bool {
        let Value::Scalar { text, plain: true } = &self.value else { return false };
        matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }

    /// What it is, for a message.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => "nothing".to_owned(),
            Value::Scalar { text, .. } => format!("`{}`", shorten(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a section with keys".to_owned(),
            Value::Hole => "something unreadable".to_owned(),
        }
    }

    /// The child at `index`.
    pub(super) fn child_mut(&mut self, index: usize) -> Option<&mut Self> {
        match &mut self.value {
            Value::List(items) => items.get_mut(index),
            Value::Map(entries) => entries.get_mut(index).map(|entry| &mut entry.value),
            Value::Scalar { .. } | Value::Hole => None,
        }
    }

    fn weigh(&self) -> Weight {
        let children = match &self.value {
            Value::Scalar { text, .. } => {
                return Weight { total: NODE_WEIGHT + text.len(), depth: 1 };
            }
            Value::Hole => return Weight { total: NODE_WEIGHT, depth: 1 },
            Value::List(items) => items.iter().map(Self::weigh).reduce(Weight::and),
            Value::Map(entries) => {
                let weights = entries.iter().map(|entry| {
                    let value = entry.value.weigh();
                    Weight { total: value.total + entry.key.len(), ..value }
                });
                weights.reduce(Weight::and)
            }
        };
        let children = children.unwrap_or_default();
        Weight { total: children.total + NODE_WEIGHT, depth: children.depth + 1 }
    }
}

/// A text for a message: one line, not too long, and no user in it if it is a URL.
pub(super) fn shorten(text: &str) -> String {
    const CHARS: usize = 60;
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let text = without_user(text);
    let mut short: String = text.chars().take(CHARS).map(clean).collect();
    if text.chars().nth(CHARS).is_some() {
        short.push_str("...");
    }
    short
}

/// Reads a text, of whose sections only those that are named matter if any is. What is wrong but leaves a tree is
/// added to `problems`; a syntax error leaves none.
pub(super) fn read(
    text: &str,
    sections: &[&str],
    problems: &mut Vec<Problem>,
) -> Result<Node, Problem> {
    let start = Span { line: 1, column: 1, width: 1 };
    if text.len() > FILE_BYTES_MAX {
        let message = format!("the file is longer than {} MiB", FILE_BYTES_MAX >> 20);
        return Err(Problem::new(start, message)
            .help("long lists belong to the command line: gateway deny import"));
    }
    let mut options = granit_parser::options! {
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    options.set_emit_comments(false);
    let parser = Parser::new_from_str_with_options(text, options);
    let mut builder = Builder {
        text,
        parser,
        sections,
        anchors: HashMap::new(),
        weight: 0,
        problems,
        null_at: start,
    };
    builder.document()
}

#[derive(Clone, Copy, Default)]
struct Weight {
    total: usize,
    depth: usize,
}

impl Weight {
    fn and(self, other: Self) -> Self {
        Self { total: self.total.saturating_add(other.total), depth: self.depth.max(other.depth) }
    }
}

struct Builder<'a> {
    text: &'a str,
    parser: Parser<'a, StrInput<'a>>,
    sections: &'a [&'a str],
    anchors: HashMap<usize, Node>,
    weight: usize,
    problems: &'a mut Vec<Problem>,
    /// Where a value that was left out is shown: at its key.
    null_at: Span,
}

impl<'a> Builder<'a> {
    fn document(&mut self) -> Result<Node, Problem> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) if root.is_some() => {
                    return Err(Problem::new(span, "a second document starts here")
                        .help("a configuration is one document: remove the line `---`"));
                }
                Event::DocumentStart(..) => {
                    let (event, span) = self.next()?;
                    root = Some(self.node(event, span, 1)?);
                }
                Event::StreamEnd => break,
                _ => return Err(Problem::new(span, "expected the end of the file")),
            }
        }
        let span = Span { line: 1, column: 1, width: 1 };
        Ok(root.unwrap_or(Node { span, value: Value::Map(Vec::new()) }))
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), Problem> {
        match self.parser.next() {
            Some(Ok((event, span))) => {
                let place = self.place(&span.start, &span.end);
                if event.tag().is_some() {
                    // It is not repeated: it may be a password that begins with an exclamation mark.
                    return Err(Problem::new(place, "a tag means nothing here")
                        .help("remove it, or put a text that begins with ! in quotes"));
                }
                Ok((event, place))
            }
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Err(Problem::new(self.null_at, "the file ends too early")),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Problem> {
        if depth > DEPTH_MAX {
            return Err(too_deep(span));
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                self.charge(NODE_WEIGHT + text.len(), span)?;
                let plain = style == ScalarStyle::Plain;
                // The parser shows a value that was left out as a `~` of no width.
                let node = if plain && span.width == 0 {
                    let value = Value::Scalar { text: String::new(), plain };
                    Node { span: self.null_at, value }
                } else {
                    Node { span, value: Value::Scalar { text: text.into_owned(), plain } }
                };
                return self.remember(node, anchor);
            }
            Event::SequenceStart(_, anchor, _) => (self.list(span, depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map(span, depth)?, anchor),
            Event::Alias(anchor) => return self.alias(anchor, span, depth),
            _ => return Err(Problem::new(span, "expected a value")),
        };
        self.remember(Node { span, value }, anchor)
    }

    fn list(&mut self, span: Span, depth: usize) -> Result<Value, Problem> {
        self.charge(NODE_WEIGHT, span)?;
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::List(items));
            }
            self.null_at = span;
            items.push(self.node(event, span, depth + 1)?);
        }
    }

    fn map(&mut self, span: Span, depth: usize) -> Result<Value, Problem> {
        self.charge(NODE_WEIGHT, span)?;
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: HashMap<String, Span> = HashMap::new();
        loop {
            let (event, key_span) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(Value::Map(entries)),
                Event::Scalar(key, _, 0, _) => key.into_owned(),
                _ => {
                    return Err(Problem::new(key_span, "a key must be plain text"));
                }
            };
            self.charge(key.len(), key_span)?;
            self.null_at = key_span;
            let (event, span) = self.next()?;
            if depth == 1 && !self.sections.is_empty() && !self.sections.contains(&&*key) {
                self.pass(event)?;
                continue;
            }
            let value = self.node(event, span, depth + 1)?;
            if let Some(first) = places.get(&key) {
                let message = format!("`{}` is given twice", shorten(&key));
                let help = format!(
                    "the first is in line {}, column {}: keep one of the two",
                    first.line, first.column
                );
                self.problems.push(Problem::new(key_span, message).help(help));
            } else {
                places.insert(key.clone(), key_span);
                entries.push(Entry { key, key_span, value });
            }
        }
    }

    /// Passes a value over.
    fn pass(&mut self, mut event: Event<'a>) -> Result<(), Problem> {
        let mut depth = 0;
        loop {
            match event {
                Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
                Event::SequenceEnd | Event::MappingEnd => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
            event = self.next()?.0;
        }
    }

    fn alias(&mut self, anchor: usize, span: Span, depth: usize) -> Result<Node, Problem> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(Problem::new(span, "the alias stands inside of what it refers to"));
        };
        let weight = node.weigh();
        if depth + weight.depth > DEPTH_MAX {
            return Err(too_deep(span));
        }
        let node = node.clone();
        self.charge(weight.total, span)?;
        Ok(node)
    }

    fn remember(&mut self, node: Node, anchor: usize) -> Result<Node, Problem> {
        if anchor != 0 {
            self.charge(node.weigh().total, node.span)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn charge(&mut self, weight: usize, span: Span) -> Result<(), Problem> {
        self.weight = self.weight.saturating_add(weight);
        if self.weight > WEIGHT_MAX {
            let message =
                format!("the file with its aliases takes more than {} MiB", WEIGHT_MAX >> 20);
            return Err(Problem::new(span, message).help("write fewer or shorter aliases"));
        }
        Ok(())
    }

    fn syntax(&self, error: &ScanError) -> Problem {
        let marker = error.marker();
        let span = self.place(marker, marker);
        if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
            return too_deep(span);
        }
        Problem::new(span, format!("this is no YAML: {}", error.info()))
            .help("check indentation, quotes and brackets here and in the line before")
    }

    /// The place from `start` to `end`, cut off at the end of its first line.
    fn place(&self, start: &Marker, end: &Marker) -> Span {
        let width = if end.line() == start.line() {
            end.col().saturating_sub(start.col())
        } else {
            // Only here: a file may be one long line, and each key would read all of it.
            let rest = start.byte_offset().and_then(|offset| self.text.get(offset..));
            let line = rest.and_then(|rest| rest.lines().next()).unwrap_or_default();
            line.trim_end().chars().count()
        };
        Span { line: start.line().max(1), column: start.col() + 1, width }
    }
}

fn too_deep(span: Span) -> Problem {
    Problem::new(span, format!("this is nested deeper than {DEPTH_MAX} levels"))
        .help("no key of a configuration lies that deep")
}
