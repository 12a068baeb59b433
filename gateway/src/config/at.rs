//! A cursor over the tree for the sections: it knows where a value stands, and reports what is wrong with it. Says
//! nothing about what has been reported already.

use std::cell::RefCell;

use super::diagnostic::{Problem, Span};
use super::tree::{Node, Value};

/// A place in the tree.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    node: Option<&'a Node>,
    /// The value's place; that of the nearest thing around it when it is left out.
    span: Span,
    key_span: Span,
    hole: bool,
    problems: &'a RefCell<Vec<Problem>>,
}

impl<'a> At<'a> {
    pub(super) fn root(node: &'a Node, problems: &'a RefCell<Vec<Problem>>) -> Self {
        Self { node: Some(node), span: node.span, key_span: node.span, hole: false, problems }
    }

    /// The value of a key.
    pub(super) fn key(self, name: &str) -> Self {
        let Some(Node { value: Value::Map(entries), .. }) = self.node else {
            return Self { node: None, ..self };
        };
        match entries.iter().position(|entry| entry.key == name) {
            Some(index) => self.entry(index),
            None => Self { node: None, span: self.key_span, ..self },
        }
    }

    /// The value of the key at `index`.
    pub(super) fn entry(self, index: usize) -> Self {
        match self.node {
            Some(Node { value: Value::Map(entries), .. }) if index < entries.len() => {
                entries.get(index).map_or(self, |entry| self.child(&entry.value, entry.key_span))
            }
            _ => Self { node: None, ..self },
        }
    }

    /// An item of a list.
    pub(super) fn item(self, index: usize) -> Self {
        match self.node {
            Some(Node { value: Value::List(items), .. }) => {
                items.get(index).map_or(self, |item| self.child(item, item.span))
            }
            _ => Self { node: None, ..self },
        }
    }

    /// The key instead of its value.
    pub(super) fn on_key(self) -> Self {
        Self { span: self.key_span, ..self }
    }

    /// So many characters of the text that stands here, behind so many others; `None` where the file has it in another
    /// form, with escapes or over several lines.
    pub(super) fn within(self, from: usize, width: usize) -> Option<Self> {
        let Some(Node { value: Value::Scalar { text, plain }, .. }) = self.node else {
            return None;
        };
        let quote = usize::from(!plain);
        let is_as_typed = self.span.width == text.chars().count() + 2 * quote;
        let column = self.span.column + quote + from;
        is_as_typed.then_some(Self { span: Span { column, width, ..self.span }, ..self })
    }

    /// Whether something stands here that could not be read, and was reported.
    pub(super) fn is_hole(self) -> bool {
        self.hole
    }

    /// The line, to point at it from another place.
    pub(super) fn line(self) -> usize {
        self.span.line
    }

    /// Reports what is wrong here.
    pub(super) fn error(self, message: impl Into<String>) {
        self.report(Problem::new(self.span, message));
    }

    /// Reports what is wrong here and what to do about it.
    pub(super) fn error_with_help(self, message: impl Into<String>, help: impl Into<String>) {
        self.report(Problem::new(self.span, message).help(help));
    }

    /// The same about what must not be shown.
    pub(super) fn secret_error(self, message: impl Into<String>, help: impl Into<String>) {
        let problem = Problem::new(self.span, message).help(help);
        self.report(Problem { is_secret: true, ..problem });
    }

    fn report(self, problem: Problem) {
        if !self.hole {
            self.problems.borrow_mut().push(problem);
        }
    }

    fn child(self, node: &'a Node, key_span: Span) -> Self {
        let hole = self.hole || matches!(node.value, Value::Hole);
        Self { node: Some(node), span: node.span, key_span, hole, ..self }
    }
}
