//! A request as a line of the access log: what is kept of it until its end, and how that is written. Where nothing is
//! configured nothing is kept.

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, Uri, Version};
use tokio::time::Instant;

use crate::auth::Identity;
use crate::base::address::{ClientAddr, PeerAddr};
use crate::base::error::{Blame, Kind};
use crate::base::path::decoded;
use crate::base::time::{UtcMillis, utc};
use crate::config::{AccessLog, Field, Format, Piece, Redact, Share};
use crate::http::trace_context::TraceContext;
use crate::observe::access_log::{Buffer, escape};
use crate::observe::trail::Times;

/// What stands in the place of a value that is not written down.
const REDACTED: &[u8] = b"***";
/// How long a look at the wall clock is good for: it may be set meanwhile.
const CLOCK_GOOD: Duration = Duration::from_secs(1);

/// What is kept of a request.
#[derive(Debug)]
pub(super) struct Entry {
    id: HeaderValue,
    /// The ids of the trace and of the hop to the upstream.
    trace: Cell<Option<(u128, u64)>>,
    peer: IpAddr,
    client: Cell<IpAddr>,
    /// `None` for what was no request, as long as nobody knows what it would have asked for.
    asked: Option<Asked>,
}

/// What was asked for.
#[derive(Debug)]
struct Asked {
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    version: Version,
    headers: Box<[Option<HeaderValue>]>,
}

/// How the request ended.
#[derive(Debug)]
pub(super) struct Ended<'a> {
    pub(super) tls: Option<&'static str>,
    pub(super) route: Option<&'a str>,
    pub(super) upstream: Option<&'a str>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) attempts: u32,
    pub(super) hedge: Option<&'static str>,
    pub(super) status: Option<StatusCode>,
    pub(super) error: Option<Kind>,
    pub(super) reason: Option<&'static str>,
    pub(super) caller: Option<&'a Identity>,
    pub(super) limit: Option<&'a str>,
    pub(super) is_whole: bool,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) times: Times,
    pub(super) now: Instant,
}

impl Entry {
    /// What the log wants of this request.
    pub(super) fn of(
        log: &AccessLog,
        head: Option<&Parts>,
        id: &HeaderValue,
        (peer, client): (PeerAddr, ClientAddr),
    ) -> Box<Self> {
        let asked = head.map(|head| Asked::of(log, head));
        let (id, trace, peer) = (id.clone(), Cell::new(None), peer.ip());
        Box::new(Self { id, trace, peer, client: Cell::new(client.ip()), asked })
    }

    /// What was no request would have asked for this.
    pub(super) fn would_ask(&mut self, log: &AccessLog, head: &Parts) {
        self.asked = Some(Asked::of(log, head));
    }

    /// The trace that the request belongs to.
    pub(super) fn traced(&self, context: &TraceContext<'_>) {
        self.trace.set(Some((context.trace_id, context.span_id)));
    }

    /// Whom the request is believed to come from.
    pub(super) fn client(&self, client: ClientAddr) {
        self.client.set(client.ip());
    }
}

impl Asked {
    fn of(log: &AccessLog, Parts { method, uri, version, headers, .. }: &Parts) -> Self {
        Self {
            method: method.clone(),
            uri: uri.clone(),
            host: headers.get(http::header::HOST).cloned(),
            version: *version,
            headers: log.headers.iter().map(|name| headers.get(name).cloned()).collect(),
        }
    }
}

/// What a worker writes its lines with.
#[derive(Debug)]
pub(super) struct Log {
    buffer: RefCell<Buffer>,
    clock: RefCell<Option<Clock>>,
    /// Of what is to be sampled, what has added up (unit: millionths of a line).
    sampled: Cell<u64>,
}

impl Log {
    pub(super) fn new(buffer: Buffer) -> Self {
        Self { buffer: RefCell::new(buffer), clock: RefCell::default(), sampled: Cell::new(0) }
    }

    /// Hands over what waits.
    pub(super) fn flush(&self) {
        self.buffer.borrow_mut().flush();
    }

    /// Writes the line of a request that has ended.
    pub(super) fn write(&self, log: &AccessLog, entry: &Entry, ended: &Ended<'_>) {
        let is_good = ended.error.is_none()
            && ended.is_whole
            && ended.status.is_some_and(|status| status.as_u16() < 400);
        if is_good && !self.is_sampled(log.sample) {
            return;
        }
        let mut clock = self.clock.borrow_mut();
        let clock = Clock::at(&mut clock, ended.now);
        let line = Line { log, entry, ended, clock: RefCell::new(clock) };
        self.buffer.borrow_mut().line(|out| match &log.format {
            Format::Json => line.json(out),
            Format::Template(pieces) => line.template(pieces, out),
        });
    }

    /// Exact in the long run and evenly spread.
    fn is_sampled(&self, share: Share) -> bool {
        let sum = self.sampled.get() + u64::from(share.parts_per_million());
        let whole = u64::from(Share::WHOLE.parts_per_million());
        self.sampled.set(sum % whole);
        sum >= whole
    }
}

/// The wall clock, read once a second, and the second that was written last: most lines share it.
#[derive(Debug)]
struct Clock {
    read: Instant,
    utc: UtcMillis,
    second: u64,
    text: String,
}

impl Clock {
    fn at(clock: &mut Option<Self>, now: Instant) -> &mut Self {
        let is_old = |clock: &Self| now.saturating_duration_since(clock.read) >= CLOCK_GOOD;
        if clock.as_ref().is_some_and(is_old) {
            *clock = None;
        }
        clock.get_or_insert_with(|| {
            let text = String::new();
            Self { read: Instant::now(), utc: utc(), second: u64::MAX, text }
        })
    }

    /// Writes the moment `at` as RFC 3339 in UTC with milliseconds.
    fn write(&mut self, at: Instant, out: &mut Vec<u8>) {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(0);
        let utc = match at.checked_duration_since(self.read) {
            Some(later) => self.utc.0 + ms(later),
            None => self.utc.0.saturating_sub(ms(self.read - at)),
        };
        let (second, millis) = (utc / 1000, (utc % 1000) as u32);
        if second != self.second {
            self.second = second;
            self.text = UtcMillis(second * 1000).display();
        }
        out.extend_from_slice(self.text.trim_end_matches('Z').as_bytes());
        let digit = |unit: u32| b'0' + (millis / unit % 10) as u8;
        out.extend([b'.', digit(100), digit(10), digit(1), b'Z']);
    }
}

/// What a request has in a field.
enum Value<'a> {
    Absent,
    Moment,
    /// What only the gateway says: names and numbers of its own.
    Own(&'a str),
    /// What somebody else said.
    Foreign(&'a [u8]),
    Query(&'a str),
    Number(u64),
    TraceId(u128),
    SpanId(u64),
    Address(IpAddr),
    Socket(SocketAddr),
    Flag(bool),
}

struct Line<'a> {
    log: &'a AccessLog,
    entry: &'a Entry,
    ended: &'a Ended<'a>,
    clock: RefCell<&'a mut Clock>,
}

impl<'l> Line<'l> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut before = b'{';
        for field in Field::ALL {
            let value = self.value(field);
            if matches!(value, Value::Absent) {
                continue;
            }
            out.extend([before, b'"']);
            before = b',';
            out.extend_from_slice(field.name().as_bytes());
            out.extend_from_slice(b"\":");
            let is_bare = matches!(value, Value::Number(_) | Value::Flag(_));
            match value {
                Value::Foreign(text) => escape::json(text, out),
                Value::Own(text) => escape::json(text.as_bytes(), out),
                Value::Query(query) => escape::json(&self.redacted(query.as_bytes()), out),
                value if is_bare => self.plain(value, out),
                value => {
                    out.push(b'"');
                    self.plain(value, out);
                    out.push(b'"');
                }
            }
        }
        self.json_headers(out);
        out.push(b'}');
    }

    fn json_headers(&self, out: &mut Vec<u8>) {
        let mut before: &[u8] = b",\"headers\":{";
        let values = self.entry.asked.as_ref().map(|asked| &*asked.headers).unwrap_or_default();
        let named = self.log.headers.iter().zip(values);
        for (name, value) in named.filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            out.extend_from_slice(before);
            before = b",";
            escape::json(name.as_str().as_bytes(), out);
            out.push(b':');
            escape::json(&self.header(name, value), out);
        }
        if before == b"," {
            out.push(b'}');
        }
    }

    fn template(&self, pieces: &[Piece], out: &mut Vec<u8>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Field(Field::Header(index)) => {
                    let name = self.log.headers.get(*index);
                    let asked = self.entry.asked.as_ref();
                    let value = asked.and_then(|asked| asked.headers.get(*index)?.as_ref());
                    match name.zip(value) {
                        Some((name, value)) => escape::text(&self.header(name, value), out),
                        None => out.push(b'-'),
                    }
                }
                Piece::Field(field) => match self.value(*field) {
                    Value::Absent | Value::Foreign([]) | Value::Own("") => out.push(b'-'),
                    Value::Foreign(text) => escape::text(text, out),
                    Value::Own(text) => escape::text(text.as_bytes(), out),
                    Value::Query(query) => escape::text(&self.redacted(query.as_bytes()), out),
                    value => self.plain(value, out),
                },
            }
        }
    }

    fn value(&self, field: Field) -> Value<'l> {
        let (entry, ended) = (self.entry, self.ended);
        let text = |text: Option<&'static str>| text.map_or(Value::Absent, Value::Own);
        let foreign = |text: Option<&'l [u8]>| text.map_or(Value::Absent, Value::Foreign);
        let (asked, trace) = (entry.asked.as_ref(), entry.trace.get());
        let caller = ended.caller;
        match field {
            Field::Time => Value::Moment,
            Field::RequestId => Value::Foreign(entry.id.as_bytes()),
            Field::TraceId => trace.map_or(Value::Absent, |(id, _)| Value::TraceId(id)),
            Field::SpanId => trace.map_or(Value::Absent, |(_, id)| Value::SpanId(id)),
            Field::Client => Value::Address(entry.client.get()),
            Field::Peer => Value::Address(entry.peer),
            Field::Method => foreign(asked.map(|asked| asked.method.as_str().as_bytes())),
            Field::Host => foreign(asked.and_then(|asked| Some(asked.host.as_ref()?.as_bytes()))),
            Field::Path => foreign(asked.map(|asked| asked.uri.path().as_bytes())),
            Field::Query => {
                asked.and_then(|asked| asked.uri.query()).map_or(Value::Absent, Value::Query)
            }
            Field::Protocol => text(asked.and_then(|asked| protocol(asked.version))),
            Field::Tls => text(ended.tls),
            Field::Status => {
                let status = ended.status.map(|status| Value::Number(status.as_u16().into()));
                status.unwrap_or(Value::Absent)
            }
            Field::Route => ended.route.map_or(Value::Absent, Value::Own),
            Field::Authenticator => foreign(caller.map(|caller| caller.authenticator.as_bytes())),
            Field::Consumer => {
                foreign(caller.and_then(|one| Some(one.consumer.as_ref()?.as_bytes())))
            }
            Field::User => foreign(caller.and_then(|one| Some(one.user.as_ref()?.as_bytes()))),
            Field::Reason => text(ended.reason),
            Field::Limit => ended.limit.map_or(Value::Absent, Value::Own),
            Field::Upstream => ended.upstream.map_or(Value::Absent, Value::Own),
            Field::Endpoint => ended.endpoint.map_or(Value::Absent, Value::Socket),
            Field::Attempts => Value::Number(ended.attempts.into()),
            Field::Hedge => text(ended.hedge),
            Field::WaitUs => us(Some(ended.times.wait)),
            Field::ConnectUs => us(Some(ended.times.connect)),
            Field::ResponseUs => us(ended.times.response),
            Field::FirstByteUs => us(ended.times.first_byte),
            Field::TotalUs => us(Some(ended.times.total)),
            Field::BytesIn => Value::Number(ended.received_bytes),
            Field::BytesOut => Value::Number(ended.sent_bytes),
            Field::Complete => Value::Flag(ended.is_whole),
            Field::Error => text(ended.error.map(Kind::name)),
            Field::Blame => text(ended.error.map(|kind| match kind.blame() {
                Blame::Client => "client",
                Blame::Upstream => "upstream",
                Blame::Gateway => "gateway",
            })),
            Field::Header(_) => Value::Absent,
        }
    }

    /// What needs no escaping.
    fn plain(&self, value: Value<'_>, out: &mut Vec<u8>) {
        // Writing to memory cannot fail.
        match value {
            Value::Moment => {
                let began = self.ended.now.checked_sub(self.ended.times.total);
                self.clock.borrow_mut().write(began.unwrap_or(self.ended.now), out);
            }
            Value::Number(number) => decimal(number, out),
            Value::TraceId(id) => drop(write!(out, "{id:032x}")),
            Value::SpanId(id) => drop(write!(out, "{id:016x}")),
            Value::Address(address) => drop(write!(out, "{address}")),
            Value::Socket(address) => drop(write!(out, "{address}")),
            Value::Flag(flag) => out.extend_from_slice(if flag { b"true" } else { b"false" }),
            Value::Absent | Value::Own(_) | Value::Foreign(_) | Value::Query(_) => {}
        }
    }

    /// Whoever links to a page says in `Referer` what that page was asked for.
    fn header<'v>(&self, name: &http::HeaderName, value: &'v HeaderValue) -> Bytes<'v> {
        let value = value.as_bytes();
        match value.iter().position(|byte| *byte == b'?') {
            Some(mark) if name == http::header::REFERER => {
                let (before, query) = value.split_at(mark + 1);
                Bytes::Owned([before, &*self.redacted(query)].concat())
            }
            _ => Bytes::Borrowed(value),
        }
    }

    fn redacted<'v>(&self, query: &'v [u8]) -> Bytes<'v> {
        let is_secret = |name: &[u8]| match &self.log.redact {
            Redact::All => true,
            Redact::Names(names) => {
                // In any spelling, for a credential is found in any.
                let name = str::from_utf8(name).map_or(name.into(), decoded);
                names.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(&name))
            }
        };
        let name_of = |parameter: &[u8]| {
            let end = parameter.iter().position(|byte| *byte == b'=');
            end.filter(|end| parameter.get(..*end).is_some_and(&is_secret))
        };
        let parameters = || query.split(|byte| *byte == b'&');
        if !parameters().any(|parameter| name_of(parameter).is_some()) {
            return Bytes::Borrowed(query);
        }
        let mut out = Vec::with_capacity(query.len());
        for (index, parameter) in parameters().enumerate() {
            if index > 0 {
                out.push(b'&');
            }
            match name_of(parameter) {
                Some(end) => {
                    out.extend_from_slice(parameter.get(..=end).unwrap_or_default());
                    out.extend_from_slice(REDACTED);
                }
                None => out.extend_from_slice(parameter),
            }
        }
        Bytes::Owned(out)
    }
}

type Bytes<'v> = std::borrow::Cow<'v, [u8]>;

fn us(duration: Option<Duration>) -> Value<'static> {
    let us = duration.map(|duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    us.map_or(Value::Absent, Value::Number)
}

fn protocol(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("HTTP/1.0"),
        Version::HTTP_11 => Some("HTTP/1.1"),
        Version::HTTP_2 => Some("HTTP/2"),
        Version::HTTP_3 => Some("HTTP/3"),
        _ => None,
    }
}

/// `write!` would take five times as long, a dozen times a line.
fn decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        length += 1;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(20 - length..).unwrap_or_default());
}
