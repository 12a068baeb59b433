//! `rewrite` and `redirect.to`: targets that are made from a request, with its captures in braces.

use super::{Part, Template};
use crate::base::path::Path;
use crate::config::at::At;
use crate::config::diagnostic::suggestion;
use crate::config::tree::shorten;

/// A mistake and what to do about it.
type Wrong = (String, String);

const BYTES_MAX: usize = 4096;

/// A path, with or without a query. `captures`: the names in the route's path.
pub(super) fn rewrite(text: &str, captures: &[&str], at: At<'_>) -> Option<Template> {
    reported(template(text, captures, &["path", "query"], false), at)
}

/// A path or an `http://` or `https://` URL.
pub(super) fn redirect(text: &str, captures: &[&str], at: At<'_>) -> Option<Template> {
    reported(template(text, captures, &["host", "path", "query"], true), at)
}

fn reported(read: Result<Template, Wrong>, at: At<'_>) -> Option<Template> {
    match read {
        Ok(template) => Some(template),
        Err((message, help)) => {
            at.error_with_help(message, help);
            None
        }
    }
}

fn template(
    text: &str,
    captures: &[&str],
    reserved: &[&str],
    may_have_origin: bool,
) -> Result<Template, Wrong> {
    let shown = shorten(text);
    if text.len() > BYTES_MAX {
        let message = format!("the target has {} bytes", text.len());
        return Err((message, format!("write at most {BYTES_MAX}")));
    }
    if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic() || "#\\\"<>^`|".contains(*c)) {
        let message = format!("the target `{shown}` has the character {odd:?}");
        let help = "write printable ASCII without #, other characters percent-encoded";
        return Err((message, help.to_owned()));
    }
    let (text, query) = match text.split_once('?') {
        Some((text, query)) => (text, Some(query)),
        None => (text, None),
    };
    let (origin, path) = if may_have_origin { origin(text) } else { ("", text) };
    let parts = |text: &str| parts(text, captures, reserved);
    let template = Template {
        origin: parts(origin)?,
        path: if path.is_empty() && !origin.is_empty() {
            vec![Part::Text("/".to_owned())]
        } else {
            parts(path)?
        },
        query: query.map(parts).transpose()?,
    };
    check(&template, &shown, may_have_origin)?;
    Ok(template)
}

/// Scheme and authority, and what follows.
fn origin(text: &str) -> (&str, &str) {
    let schemes = ["http://", "https://"];
    let Some(rest) = schemes.iter().find_map(|scheme| text.strip_prefix(scheme)) else {
        return ("", text);
    };
    let path = [rest.find('/'), rest.find("{path}")].into_iter().flatten().min();
    let split = text.len() - rest.len() + path.unwrap_or(rest.len());
    text.split_at_checked(split).unwrap_or((text, ""))
}

fn parts(text: &str, captures: &[&str], reserved: &[&str]) -> Result<Vec<Part>, Wrong> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let braces = || {
            let help =
                "write {name} for a capture of the route's path; a brace itself is %7B or %7D";
            (format!("`{}` has braces without a name in them", shorten(text)), help.to_owned())
        };
        let (name, after) = after.split_once('}').ok_or_else(braces)?;
        if before.contains('}') || name.contains('{') {
            return Err(braces());
        }
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        parts.push(part(name, captures, reserved)?);
        rest = after;
    }
    if rest.contains('}') {
        return Err((format!("`{}` has a brace too many", shorten(text)), "remove it".to_owned()));
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}

fn part(name: &str, captures: &[&str], reserved: &[&str]) -> Result<Part, Wrong> {
    let own = match name {
        "host" => Some(Part::Host),
        "path" => Some(Part::Path),
        "query" => Some(Part::Query),
        _ => None,
    };
    let own = own.filter(|_| reserved.contains(&name));
    let capture = captures.iter().position(|capture| *capture == name).map(Part::Capture);
    match (own, capture) {
        (Some(_), Some(_)) => Err((
            format!("`{{{name}}}` is a capture of this route and the {name} of the request"),
            "give the capture another name".to_owned(),
        )),
        (Some(part), None) | (None, Some(part)) => Ok(part),
        (None, None) => {
            let known = captures.iter().chain(reserved).copied();
            let help = suggestion(name, known).unwrap_or_default();
            Err((format!("there is no capture `{}`", shorten(name)), help))
        }
    }
}

/// Tries the template with captures that have one letter.
fn check(template: &Template, shown: &str, may_have_origin: bool) -> Result<(), Wrong> {
    let kinds = [
        (template.origin.as_slice(), [Part::Path, Part::Query]),
        (template.path.as_slice(), [Part::Host, Part::Query]),
        (template.query.as_deref().unwrap_or_default(), [Part::Host, Part::Path]),
    ];
    for (parts, misplaced) in kinds {
        if parts.iter().any(|part| misplaced.contains(part)) {
            let help = "write https://{host}{path}?{query}, each in its place";
            return Err((format!("`{shown}` has a part where it cannot be"), help.to_owned()));
        }
    }
    let example = |parts: &[Part]| -> String {
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Path => "/x".to_owned(),
            Part::Capture(_) | Part::Host | Part::Query => "x".to_owned(),
        };
        parts.iter().map(text).collect()
    };
    let origin = example(&template.origin);
    let good = origin.is_empty()
        || origin.parse::<http::Uri>().is_ok_and(|uri| {
            uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        });
    if !good {
        let help = "write https:// and a host, such as https://www.example.com/{rest}";
        return Err((format!("`{shown}` has no host that can be"), help.to_owned()));
    }
    let path = example(&template.path);
    if !path.starts_with('/') {
        let message = format!("`{shown}` does not start with `/`");
        let help = if may_have_origin { ", or with http:// or https://" } else { "" };
        return Err((message, format!("write the whole path from `/`{help}")));
    }
    if Path::of(&path).is_none() {
        let help = "a path has no dot segments, no `//` and no `%` without two hexadecimal digits";
        return Err((format!("`{shown}` is no path that the gateway would take"), help.to_owned()));
    }
    Ok(())
}
