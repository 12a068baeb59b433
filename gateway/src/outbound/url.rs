//! URLs: what a connection needs of one, where a redirect leads, what may be shown.

use http::Uri;

/// What is needed to call a URL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
    /// What `Host` says.
    pub(super) authority: String,
    pub(super) path_and_query: String,
}

impl Target {
    pub(super) fn of(url: &Uri) -> Option<Self> {
        let tls = match url.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = url.host().filter(|host| !host.is_empty())?;
        let authority = match url.port_u16() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        Some(Self {
            tls,
            host: bare.unwrap_or(host).to_owned(),
            port: url.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority,
            // Never empty: of `http://host?query` it is `/?query`.
            path_and_query: format!("{}{query}", url.path()),
        })
    }
}

/// Where a `Location` leads, seen from `base` (RFC 3986, section 5.2, but for dot segments, which are the server's).
pub(super) fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let path = base.path();
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let absolute = location.split_once("://").is_some_and(|(scheme, _)| {
        scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    });
    let joined = if absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.is_empty() || location.starts_with('?') {
        format!("{scheme}://{authority}{path}{location}")
    } else {
        format!("{scheme}://{authority}{folder}/{location}")
    };
    joined.parse().ok().filter(|url| Target::of(url).is_some())
}

/// The URL without what may be a secret: user and query.
pub fn display(url: &Uri) -> String {
    let Some(target) = Target::of(url) else { return url.to_string() };
    let scheme = if target.tls { "https" } else { "http" };
    let query = if url.query().is_some() { "?..." } else { "" };
    format!("{scheme}://{}{}{query}", target.authority, url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let target = |text: &str| Target::of(&text.parse().unwrap());
        let local = target("http://user:word@[::1]:8080?a=b").unwrap();
        assert_eq!((local.host.as_str(), local.port, local.tls), ("::1", 8080, false));
        assert_eq!(
            (local.authority.as_str(), local.path_and_query.as_str()),
            ("[::1]:8080", "/?a=b")
        );
        assert_eq!(target("HTTPS://feeds.example.com/a").unwrap().port, 443);
        assert_eq!((target("ftp://a/b"), target("/b"), target("a:80")), (None, None, None));
    }

    #[test]
    fn redirects() {
        let from = |location| {
            let base = "https://a.example/lists/drop.txt?k=1".parse().unwrap();
            join(&base, location).map(|url| url.to_string())
        };
        let cases = [
            ("https://b.example/x", Some("https://b.example/x")),
            ("//b.example/x", Some("https://b.example/x")),
            ("/x?y=1#z", Some("https://a.example/x?y=1")),
            ("x.txt", Some("https://a.example/lists/x.txt")),
            ("/to?url=http://c.example", Some("https://a.example/to?url=http://c.example")),
            ("?k=2", Some("https://a.example/lists/drop.txt?k=2")),
            ("ftp://b.example/x", None),
            ("https://", None),
            ("/a b", None),
        ];
        for (location, expected) in cases {
            assert_eq!(from(location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn a_key_in_a_url_is_not_shown() {
        let url = "https://user:word@a.example:444/list?key=secret".parse().unwrap();
        assert_eq!(display(&url), "https://a.example:444/list?...");
    }
}
