//! Routes as meant: what a request must be, and what is done with it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::config::auth::Access;
use crate::config::concurrency::Priority;
use crate::config::limits::CallerLimit;

/// Which requests, and what is done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name in logs and metrics; by default made from its pattern. Each once.
    pub name: String,
    /// Of which host.
    pub host: HostPattern,
    /// The pattern of the path.
    pub path: PathPattern,
    /// The methods; empty for any.
    pub methods: Vec<Method>,
    /// What must hold besides.
    pub predicates: Vec<Predicate>,
    /// What is done with `%2F` in a path.
    pub encoded_slash: Ambiguity,
    /// What is done with `;` in a path.
    pub path_parameters: Ambiguity,
    /// How important its requests are to the upstream.
    pub priority: Priority,
    /// Who may take it; `None`: nobody asks.
    pub access: Option<Access>,
    /// How much callers may here, besides what holds for all routes.
    pub limits: Vec<CallerLimit>,
    /// What a request takes of limits, at least 1.
    pub cost: u32,
    /// What is done with the request.
    pub action: Action,
    /// What becomes of the header fields that the service gets.
    pub request_headers: HeaderChanges,
    /// What becomes of the header fields that the client gets.
    pub response_headers: HeaderChanges,
}

impl Route {
    /// A route of every request for `path`, to the upstream of this index.
    pub fn new(name: &str, path: PathPattern, upstream: usize) -> Self {
        let upstream = WeightedUpstream { upstream, name: String::new(), weight: 1 };
        let forward = Forward {
            upstreams: vec![upstream],
            sticky: None,
            rewrite: None,
            body_bytes: None,
            timeouts: Timeouts::default(),
        };
        Self {
            name: name.to_owned(),
            host: HostPattern::Any,
            path,
            methods: Vec::new(),
            predicates: Vec::new(),
            encoded_slash: Ambiguity::SameRoute,
            path_parameters: Ambiguity::SameRoute,
            priority: Priority::Normal,
            access: None,
            limits: Vec::new(),
            cost: 1,
            action: Action::Forward(forward),
            request_headers: HeaderChanges::default(),
            response_headers: HeaderChanges::default(),
        }
    }
}

/// Which hosts, in lower case without a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// All of them.
    Any,
    /// This one.
    Exact(String),
    /// Those that end in this, which begins with a dot: `*.example.com` is `.example.com` with at least one label
    /// before it.
    Wildcard(String),
}

/// `/api/users/{id}` or `/static/{rest*}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// The segments between slashes. A path that ends in `/` has an empty literal at its end, so `/` alone is one
    /// empty literal.
    pub segments: Vec<Segment>,
    /// Whether anything may follow (`{name*}`), and under which name. `/static/{rest*}` takes `/static/` and all below,
    /// not `/static`.
    pub rest: Option<String>,
}

/// One segment of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// This text, in the normal form of [`crate::base::path`].
    Literal(String),
    /// Any text, under a name.
    Capture(String),
}

/// Something that must hold of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predicate {
    /// What is looked at.
    pub subject: Subject,
    /// What it must be.
    pub wanted: Wanted,
}

/// What of a request is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A header field.
    Header(HeaderName),
    /// A parameter of the query, decoded.
    Query(String),
    /// A cookie.
    Cookie(String),
}

/// What something must be. Where it is there several times, one of them is enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// There or not there.
    Present(bool),
    /// This text.
    Exact(String),
    /// A text that begins with this one.
    Prefix(String),
    /// A text that this describes as a whole.
    Regex(Regex),
}

/// A regular expression for whole texts, matched in linear time.
#[derive(Clone, Debug)]
pub struct Regex {
    text: String,
    whole: regex::bytes::Regex,
}

impl Regex {
    /// Bytes that a compiled expression may take.
    const COMPILED_BYTES_MAX: usize = 1 << 20;

    /// Reads an expression; the error says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        // Alone first, so that nothing in it can close the group that it is put into.
        regex::bytes::RegexBuilder::new(text)
            .size_limit(Self::COMPILED_BYTES_MAX)
            .build()
            .and_then(|_| {
                regex::bytes::RegexBuilder::new(&format!(r"\A(?:{text})\z"))
                    .size_limit(Self::COMPILED_BYTES_MAX)
                    .dfa_size_limit(Self::COMPILED_BYTES_MAX)
                    .build()
            })
            .map(|whole| Self { text: text.to_owned(), whole })
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => "it is too large once it is compiled".to_owned(),
                error => error.to_string().lines().last().unwrap_or_default().to_owned(),
            })
    }

    /// Whether it describes all of `text`.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.whole.is_match(text)
    }

    /// As typed.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Regex {}

/// What is done with a path that some servers read as another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguity {
    /// It is taken as it is if it leads to the same route either way; otherwise it is refused.
    SameRoute,
    /// It is taken as it is.
    Keep,
    /// It is refused.
    Refuse,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A service answers it.
    Forward(Forward),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// The gateway answers it.
    Respond(Respond),
}

/// Which service answers, and what it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// At least one, their weights not all zero.
    pub upstreams: Vec<WeightedUpstream>,
    /// What keeps a client with one of several upstreams.
    pub sticky: Option<Sticky>,
    /// Path and query that the service gets; `None` for those of the request.
    pub rewrite: Option<Template>,
    /// Bytes of a request's body; `None` for `bounds.body_bytes`.
    pub body_bytes: Option<u64>,
    /// How long its requests may take.
    pub timeouts: Timeouts,
}

/// How long requests of one route may take; `None` where the upstream says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect to an endpoint.
    pub connect: Option<Duration>,
    /// From the last byte of the request to the head of the answer.
    pub response: Option<Duration>,
    /// From the choice of an endpoint to the last byte of the answer.
    pub whole: Option<Duration>,
    /// Between two pieces of a body, in the place of [`crate::config::Bounds::idle_timeout`].
    pub stream_idle: Option<Duration>,
}

/// One of the services of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedUpstream {
    /// Index in [`super::Config::upstreams`].
    pub upstream: usize,
    /// Its name, by which sticky clients find it again.
    pub name: String,
    /// Its share, by the sum of all.
    pub weight: u32,
}

/// What keeps a client with one of several upstreams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// The value of this cookie; who has none is given one.
    Cookie(String),
    /// The value of this header field; without one any target is chosen.
    Header(HeaderName),
    /// The address of the client.
    ClientAddress,
    /// The consumer, or who else is known to call; anonymous callers go by chance.
    Consumer,
}

/// Where the client is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// What `Location` says.
    pub to: Template,
}

/// What the gateway answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: StatusCode,
    /// Header fields, `Content-Type` among them where there is a body.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body; empty for 204, 205 and 304.
    pub body: Bytes,
}

/// A target of a request, to be made from another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// What stands before the path: nothing, or scheme and authority.
    pub origin: Vec<Part>,
    /// The path.
    pub path: Vec<Part>,
    /// What stands behind the `?`; `None` for the query of the request.
    pub query: Option<Vec<Part>>,
}

/// A part of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// As it is.
    Text(String),
    /// A capture of the route's path, by its number in the order of the pattern, the rest last.
    Capture(usize),
    /// The host of the request without its port.
    Host,
    /// The path of the request.
    Path,
    /// The query of the request.
    Query,
}

/// What becomes of header fields: `remove` first, then `set`, then `add`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// Fields that are removed.
    pub remove: Vec<HeaderName>,
    /// Fields that have this value and no other.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Lines that are added to those that are there.
    pub add: Vec<(HeaderName, HeaderValue)>,
}
