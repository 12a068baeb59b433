//! Patterns of paths: `/api/users/{id}`, `/static/{rest*}`.

use std::fmt;

use super::{PathPattern, Segment};
use crate::base::path::Path;
use crate::config::at::At;
use crate::config::tree::shorten;

impl PathPattern {
    /// The names of its captures, the rest last.
    pub fn captures(&self) -> impl Iterator<Item = &str> {
        let names = self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::Capture(name) => Some(name.as_str()),
        });
        names.chain(self.rest.as_deref())
    }

    /// What its captures are in `path`, which matches it, in the same order.
    pub fn values<'p>(&self, path: &'p str) -> Vec<&'p str> {
        let mut values = Vec::new();
        let mut rest = path.strip_prefix('/');
        for segment in &self.segments {
            let (value, below) = match rest.unwrap_or_default().split_once('/') {
                Some((value, below)) => (value, Some(below)),
                None => (rest.unwrap_or_default(), None),
            };
            if matches!(segment, Segment::Capture(_)) {
                values.push(value);
            }
            rest = below;
        }
        values.extend(self.rest.as_ref().map(|_| rest.unwrap_or_default()));
        values
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => write!(formatter, "/{text}")?,
                Segment::Capture(name) => write!(formatter, "/{{{name}}}")?,
            }
        }
        self.rest.iter().try_for_each(|name| write!(formatter, "/{{{name}*}}"))
    }
}

/// Reads a pattern or reports why it is none.
pub(super) fn path(text: &str, at: At<'_>) -> Option<PathPattern> {
    match parse(text) {
        Ok(pattern) => Some(pattern),
        Err((message, help)) => {
            at.error_with_help(message, help);
            None
        }
    }
}

fn parse(text: &str) -> Result<PathPattern, (String, String)> {
    let shown = shorten(text);
    let Some(inner) = text.strip_prefix('/') else {
        let message = format!("the path `{shown}` does not start with `/`");
        return Err((message, format!("write `/{shown}`")));
    };
    if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic() || "?#\\\"<>^`|".contains(*c)) {
        let message = format!("the path `{shown}` has the character {odd:?}");
        let help = "a path as requests have it is printable ASCII without ? and #, other \
                    characters percent-encoded";
        return Err((message, help.to_owned()));
    }
    let mut pattern = PathPattern { segments: Vec::new(), rest: None };
    let mut names: Vec<&str> = Vec::new();
    let last = inner.split('/').count() - 1;
    for (index, text) in inner.split('/').enumerate() {
        if let Some(name) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            let (name, rest) = name.strip_suffix('*').map_or((name, false), |name| (name, true));
            capture_name(name, text)?;
            if names.contains(&name) {
                let message = format!("the name `{name}` is given twice in `{shown}`");
                return Err((message, "every capture has a name of its own".to_owned()));
            }
            names.push(name);
            if rest && index != last {
                let message = format!("`{text}` takes the rest of the path, but more follows");
                return Err((message, format!("write `{{{name}}}` for one segment")));
            } else if rest {
                pattern.rest = Some(name.to_owned());
            } else {
                pattern.segments.push(Segment::Capture(name.to_owned()));
            }
        } else {
            pattern.segments.push(Segment::Literal(literal(text, index == last)?));
        }
    }
    Ok(pattern)
}

fn capture_name(name: &str, text: &str) -> Result<(), (String, String)> {
    let good = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    if good {
        return Ok(());
    }
    let help = "write letters, digits and `_`, such as {id}, or {rest*} at the end";
    Err((format!("`{}` has no name that can be used", shorten(text)), help.to_owned()))
}

/// A literal in its normal form.
fn literal(text: &str, last: bool) -> Result<String, (String, String)> {
    let shown = shorten(text);
    if text.contains(['{', '}', '*']) {
        let help = "write {name} for one whole segment or {name*} for the rest of the path";
        return Err((format!("`{shown}` is only partly a capture"), help.to_owned()));
    }
    if text.is_empty() && !last {
        let help = "requests with `//` are refused, so this would never match: write one `/`";
        return Err(("the path has an empty segment".to_owned(), help.to_owned()));
    }
    if matches!(text.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..") {
        let help = "requests with dot segments are refused: write the path that is meant";
        return Err((format!("the path has the segment `{shown}`"), help.to_owned()));
    }
    let path = format!("/{text}");
    let Some(normal) = Path::of(&path) else {
        let help = "requests with it are refused: control characters, `\\`, a `%` without two \
                    hexadecimal digits, `..;`";
        return Err((format!("the path has the segment `{shown}`"), help.to_owned()));
    };
    Ok(normal.as_str().strip_prefix('/').unwrap_or_default().to_owned())
}
