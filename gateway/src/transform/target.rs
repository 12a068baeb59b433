//! Targets made from a route's template. Whatever a capture puts into a path, the path has its normal form afterwards
//! or the request is refused; into a host it puts one label, into a query it puts text.

use std::fmt::Write as _;

use http::uri::{PathAndQuery, Uri};

use crate::base::error::{Error, Kind};
use crate::base::path::Path;
use crate::config::{Part, PathPattern, Template};

/// Bytes of a target, as many as [`PathAndQuery`] takes.
const TARGET_BYTES_MAX: usize = 65_534;

/// Gives a request the path and query that the service is to see.
pub fn rewrite(template: &Template, pattern: &PathPattern, uri: &mut Uri) -> Result<(), Error> {
    let target = expand(template, pattern, uri, None)?;
    let target = PathAndQuery::try_from(target).map_err(|_| refused())?;
    *uri = Uri::from(target);
    Ok(())
}

/// The target that the template makes of the request for `uri` at `host`. The path of `uri` has its normal form and
/// matches `pattern`.
pub fn expand(
    template: &Template,
    pattern: &PathPattern,
    uri: &Uri,
    host: Option<&str>,
) -> Result<String, Error> {
    let source = Source { captures: pattern.values(uri.path()), uri, host };
    source.target(template).ok_or_else(refused)
}

fn refused() -> Error {
    Error::new(Kind::BadRequest, "what the path captures has no place in the target that it is for")
}

struct Source<'a> {
    captures: Vec<&'a str>,
    uri: &'a Uri,
    host: Option<&'a str>,
}

impl Source<'_> {
    fn target(&self, template: &Template) -> Option<String> {
        let mut target = self.text(&template.origin, |text, part| {
            let label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            let name = |byte: u8| label(byte) || b".:[]".contains(&byte);
            let value = match part {
                Part::Host => self.host.filter(|host| host.bytes().all(name)),
                _ => self.value(part).filter(|value| value.bytes().all(label)),
            };
            text.push_str(value.filter(|value| !value.is_empty())?);
            Some(())
        })?;
        let path = self.text(&template.path, |text, part| {
            text.push_str(self.value(part)?);
            Some(())
        })?;
        target.push_str(Path::of(&path)?.as_str());
        let query = match &template.query {
            None => self.uri.query().unwrap_or_default().to_owned(),
            Some(parts) => self.query(parts)?,
        };
        if !query.is_empty() {
            target.push('?');
            target.push_str(&query);
        }
        (target.len() <= TARGET_BYTES_MAX).then_some(target)
    }

    /// Captures as text, the client's query as it is. An empty one leaves no `&` behind.
    fn query(&self, parts: &[Part]) -> Option<String> {
        let query = self.text(parts, |text, part| {
            if *part == Part::Query {
                text.push_str(self.uri.query().unwrap_or_default());
                return Some(());
            }
            for byte in self.value(part)?.bytes() {
                if byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte) {
                    text.push(char::from(byte));
                } else {
                    write!(text, "%{byte:02X}").ok()?;
                }
            }
            Some(())
        })?;
        Some(query.trim_matches('&').to_owned())
    }

    /// The parts one after the other, those that are no text as `put` has them.
    fn text(
        &self,
        parts: &[Part],
        put: impl Fn(&mut String, &Part) -> Option<()>,
    ) -> Option<String> {
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Text(fixed) => text.push_str(fixed),
                _ => put(&mut text, part)?,
            }
            if text.len() > TARGET_BYTES_MAX {
                return None;
            }
        }
        Some(text)
    }

    fn value<'p>(&'p self, part: &'p Part) -> Option<&'p str> {
        match part {
            Part::Text(text) => Some(text),
            Part::Capture(number) => self.captures.get(*number).copied(),
            Part::Host => self.host,
            Part::Path => Some(self.uri.path()),
            Part::Query => self.uri.query(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Action, Route, parse};
    use proptest::prelude::*;

    fn route(pattern: &str, action: &str) -> Route {
        let text = format!(
            "listen: [{{address: 127.0.0.1:80}}]\nupstreams: {{u: {{endpoints: [echo]}}}}\n\
             routes: [{{match: {{path: '{pattern}'}}, {action}}}]"
        );
        parse("a.yaml", &text).unwrap_or_else(|errors| panic!("{errors}")).routes.remove(0)
    }

    fn rewritten(pattern: &str, template: &str, target: &str) -> Option<String> {
        let route = route(pattern, &format!("upstream: u, rewrite: '{template}'"));
        let Action::Forward(forward) = &route.action else { panic!("{route:?}") };
        let mut uri = target.parse().unwrap();
        let template = forward.rewrite.as_ref().unwrap();
        rewrite(template, &route.path, &mut uri).ok().map(|()| uri.to_string())
    }

    fn location(pattern: &str, template: &str, target: &str) -> Option<String> {
        let route = route(pattern, &format!("redirect: {{to: '{template}'}}"));
        let Action::Redirect(redirect) = &route.action else { panic!("{route:?}") };
        let uri = target.parse().unwrap();
        expand(&redirect.to, &route.path, &uri, Some("api.test")).ok()
    }

    #[test]
    fn captures_go_where_the_template_says() {
        for (pattern, template, target, expected) in [
            ("/api/{rest*}", "/{rest}", "/api/", Some("/")),
            ("/api/{rest*}", "/{rest}", "/api/a/b%2Fc?d=e", Some("/a/b%2Fc?d=e")),
            ("/{a}/{b}/{c*}", "/x-{b}/{a}.{b}/{c}", "/1/2/3/4", Some("/x-2/1.2/3/4")),
            ("/{a}/{rest*}", "/v1{path}", "/1/2?q", Some("/v1/1/2?q")),
            ("/{id}", "/x?id={id}", "/a&b=c%26%2F?d=e", Some("/x?id=a%26b%3Dc%26%2F")),
            ("/{id}", "/x?id={id}&{query}", "/1?d=e", Some("/x?id=1&d=e")),
            ("/{id}", "/x?id={id}&{query}", "/1", Some("/x?id=1")),
            ("/{id}", "/x?", "/1?d=e", Some("/x")),
            ("/{id}", "/%61/{id}", "/1", Some("/a/1")),
        ] {
            assert_eq!(rewritten(pattern, template, target).as_deref(), expected, "{target}");
        }
    }

    #[test]
    fn no_capture_makes_another_path_of_it() {
        for (pattern, template, target) in [
            ("/a/{rest*}", "/.{rest}", "/a/"),
            ("/a/{rest*}", "/x/{rest}/y", "/a/"),
            ("/a/{rest*}", "/x/.{rest}", "/a/./b"),
            ("/a/{b}", "/x/.{b};", "/a/."),
        ] {
            assert_eq!(rewritten(pattern, template, target), None, "{template} {target}");
        }
        let long = format!("/a/{}", "x".repeat(40_000));
        assert_eq!(rewritten("/a/{b}", "/{b}/{b}", &long), None);
    }

    #[test]
    fn redirects() {
        for (pattern, template, target, expected) in [
            ("/{rest*}", "https://{host}{path}", "/a/b?c", Some("https://api.test/a/b?c")),
            ("/{rest*}", "https://www.test", "/a/b?c", Some("https://www.test/?c")),
            ("/{rest*}", "https://www.test?", "/a/b?c", Some("https://www.test/")),
            ("/{tenant}/{rest*}", "https://{tenant}.test/{rest}", "/a/b", Some("https://a.test/b")),
            ("/old/{rest*}", "/new/{rest}?from=old", "/old/x?c", Some("/new/x?from=old")),
            ("/{tenant}/{rest*}", "https://{tenant}.test/", "/a.evil.test%2F/b", None),
            ("/{tenant}/{rest*}", "https://{tenant}.test/", "/a@evil.test:80/b", None),
            ("/{rest*}", "/{rest}", "//evil.test", None),
        ] {
            assert_eq!(location(pattern, template, target).as_deref(), expected, "{target}");
        }
    }

    proptest! {
        #[test]
        fn what_is_rewritten_has_the_normal_form(path in "(/[a.;%25F]{0,4}){1,4}") {
            if let Some(normal) = Path::of(&path) {
                for template in ["/x{rest}", "/x/.{rest}", "/{rest}/", "/{rest}.", "/{rest};{rest}"] {
                    let target = format!("/a{}", normal.as_str());
                    if let Some(new) = rewritten("/a/{rest*}", template, &target) {
                        prop_assert_eq!(Path::of(&new).unwrap().into_changed(), None);
                    }
                }
            }
        }
    }
}
