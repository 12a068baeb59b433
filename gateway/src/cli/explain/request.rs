//! The request that is asked about, from a command line.

use http::header::HOST;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Uri};

use super::ExplainArgs;

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
    for field in &arguments.headers {
        let bad = || format!("`{field}` is no header field: write 'Name: value'");
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
