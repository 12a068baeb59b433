//! What a request is for: one host and one path, the same for the route, the rules and the service. Where the request
//! leaves room for two readings it is refused.

use std::net::Ipv6Addr;

use bytes::Bytes;
use http::header::{HOST, HeaderValue, LOCATION};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{Method, Response, StatusCode, Version};

use crate::base::error::{Error, Kind};
use crate::base::path::{Path, Reading};
use crate::http::headers::value;
use crate::route::{Ask, Refused, Routed, Table};

/// Leaves the target in origin form and exactly one `Host`, or says what is wrong with them. `scheme` is the only one
/// that the target may have; `None` where it may have any.
pub fn normalise(head: &mut Parts, scheme: Option<&str>) -> Result<(), Error> {
    if head.method == Method::CONNECT {
        return Err(Error::new(Kind::NotImplemented, "tunnels (CONNECT) are not supported"));
    }
    check_host(head)?;
    if head.uri.authority().is_some() {
        from_absolute_form(head, scheme)?;
    }
    Ok(())
}

/// The host without its port.
pub fn host(head: &Parts) -> Option<&str> {
    let host = head.headers.get(HOST)?.to_str().ok()?;
    let host = match host.rsplit_once(':') {
        // The colons of an IPv6 address stand between brackets.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    (!host.is_empty()).then_some(host)
}

/// The answer that sends a client to the same place over https, at `port`. It is an error if nobody says which host.
pub fn redirect(head: &Parts, port: u16) -> Result<Response<Bytes>, Error> {
    let host = host(head).ok_or(Error::new(Kind::BadRequest, "the header Host is missing"))?;
    let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let location = match port {
        443 => format!("https://{host}{path}"),
        port => format!("https://{host}:{port}{path}"),
    };
    let mut response = Response::new(Bytes::new());
    // Older clients know only the one that lets them change the method.
    *response.status_mut() = match head.method {
        Method::GET | Method::HEAD => StatusCode::MOVED_PERMANENTLY,
        _ => StatusCode::PERMANENT_REDIRECT,
    };
    response.headers_mut().insert(LOCATION, value(&location));
    Ok(response)
}

/// The route of a request, whose path is left in its normal form; and its target as it was sent, if that was another.
pub fn route(routes: &Table, head: &mut Parts) -> Result<(Routed, Option<Uri>), Error> {
    let bad_path = || Error::new(Kind::BadRequest, "the path can be read in two ways");
    let path = Path::of(head.uri.path()).ok_or_else(bad_path)?;
    let ask = Ask {
        method: &head.method,
        host: host(head),
        path: &path,
        query: head.uri.query(),
        headers: &head.headers,
    };
    let routed = routes.find(&ask).map_err(|refused| match refused {
        Refused::NotFound => Kind::NoRoute.into(),
        Refused::MethodNotAllowed { allow } => {
            let allow: Vec<_> = allow.iter().map(Method::as_str).collect();
            Error::method_not_allowed(allow.join(", "))
        }
        Refused::Ambiguous { reading } => ambiguous(reading),
    })?;
    let Some(mut target) = path.into_changed() else { return Ok((routed, None)) };
    if let Some(query) = head.uri.query() {
        target.push('?');
        target.push_str(query);
    }
    let normal = Uri::from(PathAndQuery::try_from(target).map_err(|_| bad_path())?);
    Ok((routed, Some(std::mem::replace(&mut head.uri, normal))))
}

fn ambiguous(reading: Reading) -> Error {
    let detail = match reading {
        Reading { slashes: true, parameters: false } => {
            "the path has an encoded slash (%2F), which is not taken here"
        }
        Reading { slashes: false, .. } => "the path has a semicolon, which is not taken here",
        Reading { .. } => "the path has an encoded slash (%2F) and a semicolon, not taken here",
    };
    Error::new(Kind::BadRequest, detail)
}

fn check_host(head: &mut Parts) -> Result<(), Error> {
    let bad = |detail| Err(Error::new(Kind::BadRequest, detail));
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if host.to_str().is_ok_and(is_host) => Ok(()),
        (Some(_), None) => bad("the header Host is no host"),
        (Some(_), Some(_)) => bad("the header Host is there more than once"),
        // HTTP/1.0 did without; the service is asked by HTTP/1.1, which has an empty one for that.
        (None, _) if head.version == Version::HTTP_10 => {
            head.headers.insert(HOST, HeaderValue::from_static(""));
            Ok(())
        }
        (None, _) => bad("the header Host is missing"),
    }
}

/// Whether a text is a name or an address with at most one port (RFC 9110, section 7.2), or nothing. A second port or a
/// bracket that stays open, a list and what is percent-encoded mean one host to us and another one to a service.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.rsplit_once(':') {
        // The colons of an IPv6 address stand between brackets.
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (text, ""),
    };
    let is_digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let is_port = port.is_empty() || is_digits && port.parse::<u16>().is_ok();
    let is_name = match name.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(address) => address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => (!name.is_empty() || text.is_empty()) && name.bytes().all(may_be_in_name),
    };
    is_port && is_name
}

/// Unreserved characters, and delimiters but for the comma.
fn may_be_in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(&byte)
}

/// `GET http://host/path`, as a client says it to a proxy.
fn from_absolute_form(head: &mut Parts, scheme: Option<&str>) -> Result<(), Error> {
    let authority = head.uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let host = head.headers.get(HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    if !authority.as_bytes().eq_ignore_ascii_case(host) {
        let detail = "the request target and the header Host name different hosts";
        return Err(Error::new(Kind::BadRequest, detail));
    }
    if scheme.is_some() && head.uri.scheme_str() != scheme {
        return Err(Error::new(Kind::BadRequest, "the request target has another scheme"));
    }
    let path = head.uri.path_and_query().cloned();
    head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(target: &str, hosts: &[&str]) -> Parts {
        let mut request = Request::get(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn normalised(target: &str, hosts: &[&str]) -> Result<String, &'static str> {
        let mut head = head(target, hosts);
        normalise(&mut head, Some("http")).map_err(|error| error.detail())?;
        Ok(format!("{} {}", host(&head).unwrap_or("-"), head.uri))
    }

    #[test]
    fn one_host_and_a_path_are_left() {
        assert_eq!(normalised("/a?b", &["h:80"]).unwrap(), "h /a?b");
        assert_eq!(normalised("/", &["[::1]:80"]).unwrap(), "[::1] /");
        assert_eq!(normalised("/", &["[::1]"]).unwrap(), "[::1] /");
        assert_eq!(normalised("/", &["a_b.test.:"]).unwrap(), "a_b.test. /");
        assert_eq!(normalised("/", &[""]).unwrap(), "- /");
        assert_eq!(normalised("http://H/a?b", &["h"]).unwrap(), "h /a?b");
        assert_eq!(normalised("http://h", &["h"]).unwrap(), "h /");
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for (target, hosts) in [
            ("/", &[] as &[&str]),
            ("/", &["a", "a"]),
            ("/", &["a@b"]),
            ("/", &["a/b"]),
            ("/", &["a b"]),
            ("/", &["a:80:80"]),
            ("/", &["a:+80"]),
            ("/", &["a:65536"]),
            ("/", &[":80"]),
            ("/", &["::1"]),
            ("/", &["[::1"]),
            ("/", &["[::1]a"]),
            ("/", &["[a]"]),
            ("/", &["a,b"]),
            ("/", &["a%2eb"]),
            ("http://a/", &["b"]),
            ("http://u@a/", &["a"]),
            ("http://a:80/", &["a"]),
            ("https://a/", &["a"]),
            ("a:80", &["a:80"]),
        ] {
            assert!(normalised(target, hosts).is_err(), "{target} {hosts:?}");
        }
    }

    #[test]
    fn the_scheme_is_the_one_that_is_asked_for() {
        assert!(normalise(&mut head("https://a/", &["a"]), Some("https")).is_ok());
        assert!(normalise(&mut head("http://a/", &["a"]), Some("https")).is_err());
        assert!(normalise(&mut head("https://a/", &["a"]), None).is_ok());
    }

    #[test]
    fn a_redirect_keeps_host_and_path_and_changes_the_port() {
        let to = |target: &str, host: &str, port| {
            let response = redirect(&head(target, &[host]), port).unwrap();
            response.headers()[LOCATION].to_str().unwrap().to_owned()
        };
        assert_eq!(to("/a?b", "h:80", 443), "https://h/a?b");
        assert_eq!(to("/", "[::1]:80", 8443), "https://[::1]:8443/");
        assert!(redirect(&head("/", &[""]), 443).is_err());
    }

    #[test]
    fn http_1_0_needs_no_host() {
        let mut head = head("/", &[]);
        head.version = Version::HTTP_10;
        assert!(normalise(&mut head, Some("http")).is_ok());
        assert_eq!(head.headers[HOST], "");
    }
}
