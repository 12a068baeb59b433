//! The tree as a serde deserializer that does not stop at the first error: what is wrong is reported, made a hole in
//! the tree, and the tree is read again. A hole reads as anything, so one mistake hides no other.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer as _,
    MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use super::diagnostic::{Problem, Span, did_you_mean, suggestion};
use super::tree::{Entry, Node, Value, shorten};

/// Passes over the tree, so mistakes that are explained in one run.
const PASSES_MAX: usize = 100;

/// Reads a `T`. `None` when there are too many mistakes to go on.
pub(super) fn read<T: DeserializeOwned>(tree: &mut Node, problems: &mut Vec<Problem>) -> Option<T> {
    for _ in 0..PASSES_MAX {
        match T::deserialize(&*tree) {
            Ok(value) => return Some(value),
            Err(error) => problems.push(error.punch(tree)),
        }
    }
    let last = problems.last().map(|problem| problem.span).unwrap_or_default();
    problems.push(Problem::new(last, "too many errors: not all are shown"));
    None
}

/// What is wrong at the end of `path`.
#[derive(Debug)]
pub(super) struct Error {
    kind: Kind,
    /// Indices of children, the innermost first.
    path: Vec<usize>,
}

#[derive(Debug)]
enum Kind {
    Value { message: String, help: Option<String> },
    UnknownKey { message: String, meant: Option<&'static str>, help: Option<String> },
    Missing(&'static str),
}

impl Error {
    fn value(message: impl Into<String>) -> Self {
        Self { kind: Kind::Value { message: message.into(), help: None }, path: Vec::new() }
    }

    fn expected(what: impl fmt::Display, found: &Node) -> Self {
        Self::value(format!("expected {what}, found {}", found.describe()))
    }

    fn under(mut self, index: usize) -> Self {
        self.path.push(index);
        self
    }

    /// Takes what is wrong out of the tree.
    fn punch(self, tree: &mut Node) -> Problem {
        let mut path: Vec<usize> = self.path.into_iter().rev().collect();
        match self.kind {
            Kind::Value { message, help } => {
                let Some((node, _)) = node_at(tree, &path) else {
                    return Problem { span: tree.span, message, help, is_secret: false };
                };
                node.value = Value::Hole;
                Problem { span: node.span, message, help, is_secret: false }
            }
            Kind::UnknownKey { message, meant, help } => {
                let index = path.pop().unwrap_or_default();
                let entries = match node_at(tree, &path) {
                    Some((Node { value: Value::Map(entries), .. }, _)) => Some(entries),
                    _ => None,
                };
                let span = entries.and_then(|entries| rename(entries, index, meant));
                Problem { span: span.unwrap_or(tree.span), message, help, is_secret: false }
            }
            Kind::Missing(field) => {
                let problem = |span| Problem::new(span, format!("`{field}` is missing"));
                let Some((node, span)) = node_at(tree, &path) else { return problem(tree.span) };
                let hole = Node { span, value: Value::Hole };
                if let Value::Map(entries) = &mut node.value {
                    entries.push(Entry { key: field.to_owned(), key_span: span, value: hole });
                } else {
                    *node = hole;
                }
                problem(span).help(format!("add `{field}: ...` here"))
            }
        }
    }
}

/// Gives an unknown key the name that was probably meant, so that its value is read too and not missed; removes it
/// when there is none.
fn rename(entries: &mut Vec<Entry>, index: usize, meant: Option<&str>) -> Option<Span> {
    let span = entries.get(index)?.key_span;
    match meant.filter(|name| entries.iter().all(|entry| entry.key != *name)) {
        Some(name) => name.clone_into(&mut entries.get_mut(index)?.key),
        None => drop(entries.remove(index)),
    }
    Some(span)
}

/// The node at the end of `path`, and where it is best shown: at its key if it has one.
fn node_at<'t>(tree: &'t mut Node, path: &[usize]) -> Option<(&'t mut Node, Span)> {
    let mut span = tree.span;
    let mut node = tree;
    for index in path {
        if let Value::Map(entries) = &node.value {
            span = entries.get(*index)?.key_span;
            node = node.child_mut(*index)?;
        } else {
            node = node.child_mut(*index)?;
            span = node.span;
        }
    }
    Some((node, span))
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Value { message, .. } | Kind::UnknownKey { message, .. } => {
                formatter.write_str(message)
            }
            Kind::Missing(field) => write!(formatter, "`{field}` is missing"),
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::value(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Str(text) => format!("`{}`", shorten(text)),
            Unexpected::Map => "a section with keys".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Unit => "nothing".to_owned(),
            other => other.to_string(),
        };
        Self::value(format!("expected {expected}, found {found}"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let message = format!("unknown key `{}`", shorten(field));
        let meant = did_you_mean(field, expected.iter().copied());
        let help = suggestion(field, expected.iter().copied());
        Self { kind: Kind::UnknownKey { message, meant, help }, path: Vec::new() }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { kind: Kind::Missing(field), path: Vec::new() }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let number = match &self.value {
                Value::Scalar { text, plain: true } => digits(text),
                Value::Hole => Some(1),
                Value::Scalar { .. } | Value::List(_) | Value::Map(_) => None,
            };
            match number.and_then(|number| <$type>::try_from(number).ok()) {
                Some(number) => visitor.$visit(number),
                None => {
                    let what = if <$type>::BITS > 32 {
                        "a whole number".to_owned()
                    } else {
                        format!("a whole number from 0 to {}", <$type>::MAX)
                    };
                    Err(Error::expected(what, self))
                }
            }
        }
    )*};
}

/// Digits alone: no sign, no separator, no octal.
fn digits(text: &str) -> Option<u64> {
    let all = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Error;

    numbers! {
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => visitor.visit_unit(),
            Value::Scalar { text, .. } => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            Value::Map(entries) => visitor.visit_map(Entries::new(entries)),
            Value::Hole => visitor.visit_none(),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Scalar { text, plain: true } if text == "true" => visitor.visit_bool(true),
            Value::Scalar { text, plain: true } if text == "false" => visitor.visit_bool(false),
            Value::Hole => visitor.visit_bool(false),
            _ => Err(Error::expected("true or false", self)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => Err(Error::expected("text", self)),
            Value::Scalar { text, plain: true } if matches!(text.as_str(), "true" | "false") => {
                Err(Error::expected("text (quote it if you mean the word)", self))
            }
            Value::Scalar { text, .. } => visitor.visit_borrowed_str(text),
            Value::Hole => visitor.visit_str(""),
            Value::List(_) | Value::Map(_) => Err(Error::expected("text", self)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    /// `null` and `~` are none; a value that was left out is a mistake of the type within.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Hole => visitor.visit_none(),
            Value::Scalar { text, .. } if self.is_null() && !text.is_empty() => {
                visitor.visit_none()
            }
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::List(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            Value::Hole => visitor.visit_seq(Items([].iter().enumerate())),
            _ if self.is_null() => visitor.visit_seq(Items([].iter().enumerate())),
            _ => Err(Error::expected("a list", self)),
        }
    }

    /// A section whose keys are all commented out is an empty one.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Map(entries) => visitor.visit_map(Entries::new(entries)),
            Value::Hole => visitor.visit_map(Entries::new(&[])),
            _ if self.is_null() => visitor.visit_map(Entries::new(&[])),
            _ => Err(Error::expected("a section with keys", self)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if matches!(self.value, Value::Hole) {
            return visitor.visit_map(Holes { fields: fields.iter(), hole: self });
        }
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let known = variants.iter().copied();
        let name = match &self.value {
            Value::Hole => variants.first(),
            Value::Scalar { text, .. } => variants.iter().find(|name| *name == text),
            Value::List(_) | Value::Map(_) => None,
        };
        let Some(name) = name else {
            let names: Vec<_> = known.clone().map(|name| format!("`{name}`")).collect();
            let message = format!("expected {}, found {}", names.join(" or "), self.describe());
            let help = match &self.value {
                Value::Scalar { text, .. } => did_you_mean(text, known),
                _ => None,
            };
            let help = help.map(|name| format!("did you mean `{name}`?"));
            return Err(Error { kind: Kind::Value { message, help }, path: Vec::new() });
        };
        let name: StrDeserializer<'_, Error> = name.into_deserializer();
        visitor.visit_enum(name)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple
        tuple_struct identifier
    }
}

struct Items<'t>(std::iter::Enumerate<std::slice::Iter<'t, Node>>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some((index, node)) = self.0.next() else { return Ok(None) };
        seed.deserialize(node).map(Some).map_err(|error| error.under(index))
    }
}

struct Entries<'t> {
    entries: std::iter::Enumerate<std::slice::Iter<'t, Entry>>,
    current: Option<(usize, &'t Node)>,
}

impl<'t> Entries<'t> {
    fn new(entries: &'t [Entry]) -> Self {
        Self { entries: entries.iter().enumerate(), current: None }
    }
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((index, entry)) = self.entries.next() else { return Ok(None) };
        self.current = Some((index, &entry.value));
        let key: StrDeserializer<'_, Error> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.under(index))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((index, node)) = self.current.take() else {
            return Err(Error::value("a value without a key"));
        };
        seed.deserialize(node).map_err(|error| error.under(index))
    }
}

/// Every field of a struct that could not be read.
struct Holes<'t> {
    fields: std::slice::Iter<'static, &'static str>,
    hole: &'t Node,
}

impl<'de> MapAccess<'de> for Holes<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some(field) = self.fields.next() else { return Ok(None) };
        let key: StrDeserializer<'_, Error> = field.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(self.hole)
    }
}
