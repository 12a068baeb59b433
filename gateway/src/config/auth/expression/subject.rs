//! What an expression may ask for, by its name.

use http::HeaderName;

use super::lexer::Token;
use super::parser::{DEPTH_MAX, Parser};
use super::{Mistake, Subject};
use crate::config::diagnostic::suggestion;
use crate::config::{PathPattern, Segment};

const NAMES: [&str; 15] = [
    "authenticator",
    "consumer",
    "user",
    "key",
    "tenant",
    "plan",
    "roles",
    "scopes",
    "groups",
    "claims",
    "method",
    "path",
    "headers",
    "client",
    "has",
];

impl Parser<'_> {
    /// The subject that begins with `name`, the word at `first`.
    pub(super) fn subject(&mut self, name: &str, first: usize) -> Result<Subject, Mistake> {
        let subject = match name {
            "authenticator" => Subject::Authenticator,
            "consumer" => return self.consumer(),
            "user" => Subject::User,
            "key" => Subject::Key,
            "tenant" => Subject::Tenant,
            "plan" => Subject::Plan,
            "roles" => Subject::Roles,
            "scopes" => Subject::Scopes,
            "groups" => Subject::Groups,
            "method" => Subject::Method,
            "claims" => return self.claim(first),
            "headers" => return self.header(first),
            "path" => return self.capture(),
            _ => {
                let help = suggestion(name, NAMES).unwrap_or_default();
                return Err(self.mistake_at(
                    first,
                    format!("`{name}` is nothing that is known here"),
                    help,
                ));
            }
        };
        match self.peek() {
            Token::Symbol("." | "[") => {
                let place = (self.next + usize::from(*self.peek() == Token::Symbol(".")))
                    .min(self.tokens.len());
                let message = format!("`{name}` has nothing below it");
                Err(self.mistake_at(place, message, "only claims, headers, consumer and path have"))
            }
            _ => Ok(subject),
        }
    }

    fn consumer(&mut self) -> Result<Subject, Mistake> {
        let Some(below) = self.below()? else { return Ok(Subject::Consumer) };
        match below.as_str() {
            "name" => Ok(Subject::Consumer),
            "plan" => Ok(Subject::Plan),
            "tenant" => Ok(Subject::Tenant),
            _ => {
                let help = suggestion(&below, ["name", "plan", "tenant"]).unwrap_or_default();
                let message = format!("a consumer has no `{below}`");
                Err(self.mistake_at(self.next - 1, message, help))
            }
        }
    }

    fn claim(&mut self, first: usize) -> Result<Subject, Mistake> {
        let mut names = Vec::new();
        while let Some(name) = self.below()? {
            names.push(name);
        }
        if names.is_empty() || names.len() > DEPTH_MAX {
            let help = "write claims.NAME or claims[\"NAME\"]";
            return Err(self.mistake_at(first, "this names no claim", help));
        }
        Ok(Subject::Claim(names))
    }

    fn header(&mut self, first: usize) -> Result<Subject, Mistake> {
        if *self.peek() != Token::Symbol("[") {
            return Err(self.mistake_at(
                first,
                "this names no header",
                "write headers[\"X-Name\"]",
            ));
        }
        let name = self.below()?.unwrap_or_default();
        HeaderName::from_bytes(name.as_bytes()).map(Subject::Header).map_err(|_| {
            let message = format!("`{name}` is no name of a header");
            self.mistake_at(self.next - 2, message, "write one such as headers[\"X-Name\"]")
        })
    }

    /// `path`, or what the pattern of the route captures under a name.
    fn capture(&mut self) -> Result<Subject, Mistake> {
        let Some(name) = self.below()? else { return Ok(Subject::Path) };
        let PathPattern { segments, rest } = self.path;
        let found = segments.iter().position(|segment| *segment == Segment::Capture(name.clone()));
        let rest = || (rest.as_ref() == Some(&name)).then_some(Subject::Rest(segments.len()));
        found.map(Subject::Segment).or_else(rest).ok_or_else(|| {
            let message = format!("the path of the route captures no `{name}`");
            let help = format!("it is {}; write path for all of it", self.path);
            self.mistake_at(self.next - 1, message, help)
        })
    }

    /// `.name` or `["name"]`, if one follows.
    fn below(&mut self) -> Result<Option<String>, Mistake> {
        match self.peek() {
            Token::Symbol(".") => {
                self.next += 1;
                let place = self.next;
                match self.take() {
                    Token::Name(name) => Ok(Some(name)),
                    _ => Err(self.mistake_at(
                        place,
                        "a name stands behind the point",
                        "write one, or [\"name\"]",
                    )),
                }
            }
            Token::Symbol("[") => {
                self.next += 1;
                let place = self.next;
                let Token::Text(name) = self.take() else {
                    return Err(self.mistake_at(
                        place,
                        "a text stands in the brackets",
                        "write one, such as [\"name\"]",
                    ));
                };
                self.expect("]")?;
                Ok(Some(name))
            }
            _ => Ok(None),
        }
    }
}
