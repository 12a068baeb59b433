//! The request that is asked about, from a command line.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Uri};

use super::ExplainArgs;
use crate::config::Bounds;
use crate::http::deadline::Deadline;
use crate::http::unread::Unread;

/// Header fields of one file.
const FIELDS_MAX_BYTES: u64 = 1 << 20;

/// The head as it would arrive, and the scheme of the connection.
pub(super) fn head(arguments: &ExplainArgs) -> Result<(Parts, &'static str), String> {
    let method = Method::from_bytes(arguments.method.as_bytes())
        .map_err(|_| format!("`{}` is no method: write one such as GET", arguments.method))?;
    let url = &arguments.url;
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => ("http", rest),
        Some(("https", rest)) => ("https", rest),
        Some((other, _)) => return Err(format!("the scheme `{other}` is none of http and https")),
        None if url.starts_with('/') => ("http", url.as_str()),
        None => return Err(format!("`{url}` is no URL: write http:// or https:// before it")),
    };
    let path = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(path).unwrap_or((rest, ""));
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let uri: Uri = path.parse().map_err(|error| {
        format!("`{path}` cannot stand in a request: {error}; percent-encode what is in it")
    })?;
    let mut head = Request::new(()).into_parts().0;
    (head.method, head.uri) = (method, uri);
    for (number, field) in (1..).zip(&fields(&arguments.headers)?) {
        // What it says is not repeated: it may well be a credential.
        let bad = || format!("number {number} is no header field: write 'Name: value'");
        let (name, value) = field.split_once(':').ok_or_else(bad)?;
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| bad())?;
        head.headers.append(name, value);
    }
    if !head.headers.contains_key(HOST) {
        let host = HeaderValue::from_str(authority);
        let host = host.map_err(|_| format!("`{authority}` is no host"))?;
        head.headers.insert(HOST, host);
    }
    Ok((head, scheme))
}

/// The body as it would arrive.
pub(super) fn body(file: &Path, bounds: &Bounds) -> Result<Unread, String> {
    let bytes = fs::read(file).map_err(|error| unread(&file.display().to_string(), &error))?;
    Ok(Unread::of(bytes.into(), &Rc::new(Deadline::new(bounds))))
}

/// Those that were given, and those of the files that were named.
fn fields(given: &[String]) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for one in given {
        let Some(file) = one.strip_prefix('@') else {
            all.push(one.clone());
            continue;
        };
        let text = match file {
            "-" => text_of(io::stdin().lock()),
            file => File::open(file).and_then(text_of),
        };
        let text = text.map_err(|error| unread(file, &error))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        all.extend(lines.map(str::to_owned));
    }
    Ok(all)
}

fn text_of(input: impl Read) -> io::Result<String> {
    let mut text = String::new();
    let length = input.take(FIELDS_MAX_BYTES + 1).read_to_string(&mut text)?;
    match length as u64 <= FIELDS_MAX_BYTES {
        true => Ok(text),
        false => Err(io::Error::other(format!("it has more than {FIELDS_MAX_BYTES} bytes"))),
    }
}

fn unread(file: &str, error: &io::Error) -> String {
    format!("{file} cannot be read: {error}")
}
