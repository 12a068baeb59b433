//! `access_log`: what is written down of requests, and where. Refuses to write down what proves who somebody is.

use std::path::PathBuf;

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};

use super::Share;
use super::at::At;
use super::auth::{Authenticator, CredentialPlace};
use super::diagnostic::suggestion;
use super::raw::RawAccessLog;
use super::tree::shorten;
use super::value::{absolute_path, share};

/// Header fields that are written down of one request.
const HEADERS_MAX: usize = 16;
/// Names of parameters that are redacted.
const REDACTED_MAX: usize = 256;
/// Bytes of a template.
const TEMPLATE_BYTES_MAX: usize = 4096;

/// The access log, where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// Where it is written.
    pub destination: Destination,
    /// What a line looks like.
    pub format: Format,
    /// Header fields of requests; [`Field::Header`] refers to them by index.
    pub headers: Vec<HeaderName>,
    /// What is left out of queries.
    pub redact: Redact,
    /// Share of the requests without an error that are written down; those with one all are.
    pub sample: Share,
}

/// Where an access log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The standard output of the process.
    Stdout,
    /// Its standard error.
    Stderr,
    /// A file.
    File(PathBuf),
}

/// What a line looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object with every field that there is.
    Json,
    /// These one behind the other.
    Template(Vec<Piece>),
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// As it stands.
    Text(String),
    /// What a request has there.
    Field(Field),
}

/// Parameters of queries whose values are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redact {
    /// All of them.
    All,
    /// Those with these names, in lower case.
    Names(Vec<String>),
}

/// Something about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "they are called as in the log, which docs/configuration.md explains"
)]
pub enum Field {
    Time,
    RequestId,
    TraceId,
    SpanId,
    Client,
    Peer,
    Method,
    Host,
    Path,
    Query,
    Protocol,
    Tls,
    Status,
    Route,
    Authenticator,
    Consumer,
    User,
    Upstream,
    Endpoint,
    Attempts,
    Hedge,
    WaitUs,
    ConnectUs,
    ResponseUs,
    FirstByteUs,
    TotalUs,
    BytesIn,
    BytesOut,
    Complete,
    Error,
    Blame,
    Reason,
    Limit,
    /// One of [`AccessLog::headers`].
    Header(usize),
}

impl Field {
    /// All of them but header fields, in the order of a JSON line.
    pub const ALL: [Self; 33] = [
        Self::Time,
        Self::RequestId,
        Self::TraceId,
        Self::SpanId,
        Self::Client,
        Self::Peer,
        Self::Method,
        Self::Host,
        Self::Path,
        Self::Query,
        Self::Protocol,
        Self::Tls,
        Self::Status,
        Self::Route,
        Self::Authenticator,
        Self::Consumer,
        Self::User,
        Self::Upstream,
        Self::Endpoint,
        Self::Attempts,
        Self::Hedge,
        Self::WaitUs,
        Self::ConnectUs,
        Self::ResponseUs,
        Self::FirstByteUs,
        Self::TotalUs,
        Self::BytesIn,
        Self::BytesOut,
        Self::Complete,
        Self::Error,
        Self::Blame,
        Self::Reason,
        Self::Limit,
    ];

    /// What it is called in templates and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::RequestId => "request_id",
            Self::TraceId => "trace_id",
            Self::SpanId => "span_id",
            Self::Client => "client",
            Self::Peer => "peer",
            Self::Method => "method",
            Self::Host => "host",
            Self::Path => "path",
            Self::Query => "query",
            Self::Protocol => "protocol",
            Self::Tls => "tls",
            Self::Status => "status",
            Self::Route => "route",
            Self::Authenticator => "authenticator",
            Self::Consumer => "consumer",
            Self::User => "user",
            Self::Upstream => "upstream",
            Self::Endpoint => "endpoint",
            Self::Attempts => "attempts",
            Self::Hedge => "hedge",
            Self::WaitUs => "wait_us",
            Self::ConnectUs => "connect_us",
            Self::ResponseUs => "response_us",
            Self::FirstByteUs => "first_byte_us",
            Self::TotalUs => "total_us",
            Self::BytesIn => "bytes_in",
            Self::BytesOut => "bytes_out",
            Self::Complete => "complete",
            Self::Error => "error",
            Self::Blame => "blame",
            Self::Reason => "reason",
            Self::Limit => "limit",
            Self::Header(_) => "headers",
        }
    }
}

/// `None`: no log.
pub(super) fn access_log(
    raw: &RawAccessLog,
    auth: &[Authenticator],
    at: At<'_>,
) -> Option<AccessLog> {
    let mut headers = Headers::new(auth);
    for (index, name) in raw.headers.iter().enumerate() {
        headers.add(name, at.key("headers").item(index));
    }
    let format = match raw.format.as_str() {
        "json" => Format::Json,
        template => Format::Template(pieces(template, &mut headers, at.key("format"))),
    };
    let redact = redact(&raw.redact_query, auth, at.key("redact_query"));
    let sample = share(&raw.sample, Share::ZERO..=Share::WHOLE, at.key("sample"));
    let destination = match raw.path.as_str() {
        "off" => return None,
        "stdout" => Destination::Stdout,
        "stderr" => Destination::Stderr,
        path if path.starts_with('/') => Destination::File(absolute_path(path, at.key("path"))?),
        other => {
            at.key("path").error_with_help(
                format!("`{}` is nowhere to write to", shorten(other)),
                "write off, stdout, stderr or an absolute path such as /var/log/gateway/access.log",
            );
            return None;
        }
    };
    let (headers, sample) = (headers.written, sample.unwrap_or(Share::ZERO));
    Some(AccessLog { destination, format, headers, redact, sample })
}

/// Header fields that are written down, and those that never are.
struct Headers {
    written: Vec<HeaderName>,
    secret: Vec<HeaderName>,
}

impl Headers {
    fn new(auth: &[Authenticator]) -> Self {
        let places = auth.iter().flat_map(Authenticator::places);
        let names = places.filter_map(|place| match place {
            CredentialPlace::Header(name, _) => Some(name.clone()),
            CredentialPlace::Cookie(_) | CredentialPlace::Query(_) => None,
        });
        let secret = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].into_iter().chain(names);
        Self { written: Vec::new(), secret: secret.collect() }
    }

    /// The index of a header field, which is added where it is new.
    fn add(&mut self, text: &str, at: At<'_>) -> Option<usize> {
        let shown = shorten(text);
        let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
            at.error_with_help(
                format!("`{shown}` is no name of a header field"),
                "write one such as user-agent",
            );
            return None;
        };
        if self.secret.contains(&name) {
            at.error_with_help(
                format!("`{shown}` proves who somebody is: whoever reads the log could be them"),
                "remove it; such header fields are never written down",
            );
            return None;
        }
        if let Some(index) = self.written.iter().position(|known| *known == name) {
            return Some(index);
        }
        if self.written.len() == HEADERS_MAX {
            at.error_with_help(
                "too many header fields are to be written down",
                format!("write at most {HEADERS_MAX}"),
            );
            return None;
        }
        self.written.push(name);
        Some(self.written.len() - 1)
    }
}

/// Where credentials are looked for goes without saying.
fn redact(names: &[String], auth: &[Authenticator], at: At<'_>) -> Redact {
    if names.iter().any(|name| name == "*") {
        return Redact::All;
    }
    if names.len() > REDACTED_MAX {
        at.error_with_help(
            format!("{} names are too many", names.len()),
            format!("write at most {REDACTED_MAX}, or [\"*\"] for all"),
        );
    }
    let mut found = Vec::new();
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() || name.contains(['&', '=', '?', '#']) || name.len() > 128 {
            at.item(index).error_with_help(
                format!("`{}` is no name of a parameter", shorten(name)),
                "write it as it stands in a query before `=`, or \"*\" for all",
            );
        }
        found.push(name.to_ascii_lowercase());
    }
    for place in auth.iter().flat_map(Authenticator::places) {
        if let CredentialPlace::Query(name) = place {
            found.push(name.to_ascii_lowercase());
        }
    }
    found.sort();
    found.dedup();
    Redact::Names(found)
}

/// `{field}` and `{header.NAME}` between text; `{{` and `}}` stand for braces.
fn pieces(template: &str, headers: &mut Headers, at: At<'_>) -> Vec<Piece> {
    if template.len() > TEMPLATE_BYTES_MAX || template.contains(char::is_control) {
        at.error_with_help(
            "a template is one line",
            format!("write no line breaks and at most {TEMPLATE_BYTES_MAX} bytes"),
        );
        return Vec::new();
    }
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = template;
    while let Some(at_brace) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at_brace);
        text.push_str(before);
        if let Some(after) = from.strip_prefix("{{").or_else(|| from.strip_prefix("}}")) {
            text.extend(from.chars().next());
            rest = after;
            continue;
        }
        let named = from.strip_prefix('{').and_then(|from| from.split_once('}'));
        let Some((name, after)) = named else {
            at.error_with_help(
                "a brace of the template has no other half",
                "write {status} for a field, and {{ or }} for a brace",
            );
            return pieces;
        };
        if !text.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut text)));
        }
        pieces.extend(field(name, headers, at).map(Piece::Field));
        rest = after;
    }
    text.push_str(rest);
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
    if !pieces.iter().any(|piece| matches!(piece, Piece::Field(_))) {
        at.error_with_help(
            format!("`{}` says nothing about a request", shorten(template)),
            "write json, or a template such as \"{time} {client} {method} {path} {status}\"",
        );
    }
    pieces
}

fn field(name: &str, headers: &mut Headers, at: At<'_>) -> Option<Field> {
    if let Some(name) = name.strip_prefix("header.") {
        return headers.add(name, at).map(Field::Header);
    }
    let found = Field::ALL.into_iter().find(|field| field.name() == name);
    if found.is_none() {
        let message = format!("there is no field `{}`", shorten(name));
        let names = Field::ALL.map(Field::name).into_iter().chain(["header.NAME"]);
        match suggestion(name, names) {
            Some(help) => at.error_with_help(message, help),
            None => at.error(message),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Errors, parse};
    use super::*;

    fn with(section: &str) -> Result<Config, Errors> {
        parse("a.yaml", &format!("listen: [{{address: 127.0.0.1:80}}]\naccess_log: {section}"))
    }

    fn log(section: &str) -> AccessLog {
        with(section).unwrap().access_log.unwrap()
    }

    #[track_caller]
    fn refused(section: &str, message: &str) {
        let errors = with(section).expect_err(section).to_string();
        assert!(errors.contains(message), "{errors}");
    }

    #[test]
    fn there_is_none_unless_it_is_asked_for() {
        assert_eq!(with("{}").unwrap().access_log, None);
        assert_eq!(with("{path: off, format: '{status}'}").unwrap().access_log, None);
        let log = log("{path: /var/log/a}");
        assert_eq!(log.destination, Destination::File("/var/log/a".into()));
        assert_eq!((log.format, log.sample), (Format::Json, Share::WHOLE));
        let redacted = Redact::Names(
            ["access_token", "api_key", "code", "password", "secret", "token"]
                .map(str::to_owned)
                .into(),
        );
        assert_eq!(log.redact, redacted);
    }

    #[test]
    fn a_template_is_text_and_fields() {
        let log = log("{path: stdout, format: 'a{{{status}}} {header.Referer}{header.referer}'}");
        assert_eq!(
            log.format,
            Format::Template(vec![
                Piece::Text("a{".to_owned()),
                Piece::Field(Field::Status),
                Piece::Text("} ".to_owned()),
                Piece::Field(Field::Header(0)),
                Piece::Field(Field::Header(0)),
            ])
        );
        assert_eq!(log.headers, ["referer"]);
    }

    #[test]
    fn mistakes_are_named() {
        refused("{path: log.txt}", "`log.txt` is nowhere to write to");
        refused("{path: /a/../b}", "is no absolute path");
        refused("{path: stdout, format: '{statsu}'}", "did you mean `status`?");
        refused("{path: stdout, format: '{status'}", "has no other half");
        refused("{path: stdout, format: 'a}'}", "has no other half");
        refused("{path: stdout, format: text}", "says nothing about a request");
        refused("{path: stdout, format: \"{status}\\n\"}", "one line");
        refused("{path: stdout, headers: [Cookie]}", "proves who somebody is");
        refused("{path: off, format: '{header.authorization}'}", "proves who somebody is");
        refused("{path: stdout, headers: ['a b']}", "no name of a header field");
        refused("{path: stdout, redact_query: ['a=b']}", "no name of a parameter");
        refused("{path: stdout, sample: 101%}", "out of bounds");
    }

    #[test]
    fn where_credentials_are_looked_for_is_never_written_down() {
        let with = |section: &str| {
            parse(
                "a.yaml",
                &format!(
                    "listen: [{{address: 127.0.0.1:80}}]\n\
                     auth: {{a: {{api_key: {{key: [{{header: X-Token}}, {{query: Ticket}}]}}}}}}\n\
                     access_log: {section}"
                ),
            )
        };
        for section in
            ["{path: stdout, headers: [x-token]}", "{path: off, format: '{header.X-Token}'}"]
        {
            let errors = with(section).expect_err(section).to_string();
            assert!(errors.contains("proves who somebody is"), "{errors}");
        }
        let config = with("{path: stdout, redact_query: [b]}").unwrap();
        let redacted = Redact::Names(["b", "ticket"].map(str::to_owned).into());
        assert_eq!(config.access_log.unwrap().redact, redacted);
    }

    #[test]
    fn names_of_fields_are_unique() {
        let names: std::collections::HashSet<_> = Field::ALL.map(Field::name).into();
        assert_eq!(names.len(), Field::ALL.len());
    }
}
