//! Heads of HTTP/1 messages (RFC 9112), read by the letter. What the standard lets a recipient repair is refused: the
//! next one along the way might repair it to something else, and that difference is what request smuggling lives on.

use std::ops::Range;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request, Response, StatusCode, Version, request, response};
use memchr::memchr;

use crate::base::error::{Error, Kind};
use crate::config::Bounds;
use crate::http::h1::decoder::Length;
use crate::http::h1::upgrade::{self, WebSocket};

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// All of it.
    pub head_bytes: usize,
    /// Its header fields.
    pub header_count: usize,
    /// The target of a request.
    pub target_bytes: usize,
}

impl Limits {
    /// The limits that `bounds` set.
    pub fn new(bounds: &Bounds) -> Self {
        let Bounds { head_bytes, header_count, target_bytes, .. } = *bounds;
        Self { head_bytes, header_count, target_bytes }
    }
}

/// The longest method that anybody has registered has 17 letters; with version and spaces it is what a request line has
/// besides the target.
const METHOD_AND_VERSION_BYTES: usize = 64;

/// What is wrong with a target that is not all visible ASCII.
pub const MUST_BE_ENCODED: &str = "the request target has characters that must be percent-encoded";

/// What is wrong with an `Expect` other than `100-continue`.
pub const UNKNOWN_EXPECTATION: &str = "the header Expect asks for what nobody knows";

/// Header fields that the gateway adds on the way, so that the map has room for them from the start.
const ADDED_FIELDS: usize = 6;

/// What lines are read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The head of a request. One empty line before it is passed over (RFC 9112, section 2.2).
    Request,
    /// The head of an answer.
    Answer,
    /// The fields after a chunked body.
    Trailers,
}

/// Looks for the end of a section in bytes that come piece by piece, each looked at once.
#[derive(Debug)]
pub struct Scan {
    section: Section,
    begin: usize,
    line: usize,
    looked: usize,
    lines: usize,
}

impl Scan {
    /// Nothing was looked at yet.
    pub fn new(section: Section) -> Self {
        Self { section, begin: 0, line: 0, looked: 0, lines: 0 }
    }

    /// Where in `bytes` the section is, once all of it is there: its lines with the empty one at the end. `bytes` are
    /// those of last time and more.
    pub fn find(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<Range<usize>>, Error> {
        if self.lines == 0 {
            self.check_begin(bytes)?;
        }
        while let Some(length) = bytes.get(self.looked..).and_then(|rest| memchr(b'\n', rest)) {
            let end = self.looked + length;
            let line = bytes.get(self.line..end).and_then(|line| line.strip_suffix(b"\r"));
            let is_empty =
                line.ok_or_else(|| bad("a line of the head ends without CR"))?.is_empty();
            self.check_request_line(end, limits)?;
            (self.line, self.looked) = (end + 1, end + 1);
            if !is_empty {
                self.lines += 1;
                self.check_size(end + 1, limits)?;
                continue;
            }
            match self.section {
                Section::Request if self.lines == 0 && self.begin == 0 => {
                    self.begin = end + 1;
                    self.check_begin(bytes)?;
                }
                Section::Request | Section::Answer if self.lines == 0 => {
                    return Err(bad("the head begins with empty lines"));
                }
                _ => {
                    self.check_size(end + 1, limits)?;
                    return Ok(Some(self.begin..end + 1));
                }
            }
        }
        self.looked = bytes.len();
        self.check_request_line(bytes.len(), limits)?;
        self.check_size(bytes.len(), limits)?;
        Ok(None)
    }

    /// Whoever speaks another protocol may never send a line's end.
    fn check_begin(&self, bytes: &[u8]) -> Result<(), Error> {
        const HTTP: &[u8] = b"HTTP/1.";
        let begin = bytes.get(self.begin..).unwrap_or_default();
        match (self.section, begin) {
            (Section::Request, [TLS_HANDSHAKE, ..]) => {
                Err(bad("this port speaks HTTP without TLS; connect by http://"))
            }
            (Section::Request, [first, ..])
                if !first.is_ascii_graphic() && *first != b'\r' && *first != b'\n' =>
            {
                Err(bad("this is not a request line"))
            }
            (Section::Answer, _) if begin.iter().zip(HTTP).any(|(one, other)| one != other) => {
                Err(bad("this is not a status line"))
            }
            _ => Ok(()),
        }
    }

    /// Before the size of the head, so that the answer does not depend on how much has come.
    fn check_request_line(&self, end: usize, limits: &Limits) -> Result<(), Error> {
        let is_request_line = self.section == Section::Request && self.lines == 0;
        if is_request_line && end - self.begin > limits.target_bytes + METHOD_AND_VERSION_BYTES {
            return Err(Kind::TargetTooLong.into());
        }
        Ok(())
    }

    fn check_size(&self, end: usize, limits: &Limits) -> Result<(), Error> {
        let first_line = usize::from(self.section != Section::Trailers);
        if self.lines > limits.header_count + first_line {
            return Err(Error::new(
                Kind::HeadTooLarge,
                "there are more header fields than accepted here",
            ));
        }
        if end - self.begin > limits.head_bytes {
            return Err(Kind::HeadTooLarge.into());
        }
        Ok(())
    }
}

/// The first byte of a TLS record that opens a connection.
const TLS_HANDSHAKE: u8 = 0x16;

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// Method, target and header fields.
    pub parts: request::Parts,
    /// What follows.
    pub length: Length,
    /// Whether the client may want to send another request.
    pub persistent: bool,
    /// Whether the client waits for leave to send the body.
    pub expects_continue: bool,
    /// Whether the client reads trailers.
    pub takes_trailers: bool,
}

/// Reads the head of a request, as [`Scan::find`] has found it.
pub fn request(head: &Bytes, limits: &Limits) -> Result<RequestHead, Error> {
    let (mut parts, begin) = request_line(head, limits)?;
    let mut said = Said::default();
    parts.headers = fields(head, begin, Some(&mut said))?;
    said.check(parts.version)?;
    let is_current = parts.version == Version::HTTP_11;
    if said.upgrade
        && upgrade::is_websocket(&parts)
        && said.content_length.is_none()
        && !said.chunked
    {
        parts.extensions.insert(WebSocket);
    }
    if said.expects_other {
        return Err(bad(UNKNOWN_EXPECTATION));
    }
    Ok(RequestHead {
        parts,
        length: said.length().unwrap_or(Length::Exact(0)),
        persistent: said.persistent(is_current),
        expects_continue: said.expects_continue && is_current,
        takes_trailers: said.takes_trailers && is_current,
    })
}

/// What the request line of a head says that is refused, which may not all be there: method, target and version.
pub fn asked(head: &[u8], limits: &Limits) -> Option<request::Parts> {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let line = head.get(..=memchr(b'\n', head)?)?;
    request_line(&Bytes::copy_from_slice(line), limits).ok().map(|(parts, _)| parts)
}

/// The first line, and where the second begins.
fn request_line(head: &Bytes, limits: &Limits) -> Result<(request::Parts, usize), Error> {
    let (line, begin) = first_line(head);
    let not_a_line = || bad("this is not a request line");
    let method = memchr(b' ', line).ok_or_else(not_a_line)?;
    let version =
        line.len().checked_sub(VERSION_BYTES + 1).filter(|space| line.get(*space) == Some(&b' '));
    let version = version.filter(|space| *space > method).ok_or_else(not_a_line)?;
    let mut parts = Request::new(()).into_parts().0;
    parts.version = read_version(line.get(version + 1..))?;
    parts.method = line
        .get(..method)
        .and_then(|method| Method::from_bytes(method).ok())
        .ok_or_else(not_a_line)?;
    parts.uri = target(head.slice(method + 1..version), limits)?;
    Ok((parts, begin))
}

/// The head of an answer.
#[derive(Debug)]
pub struct AnswerHead {
    /// Status and header fields.
    pub parts: response::Parts,
    /// What follows.
    pub length: Length,
    /// Whether the endpoint takes another request.
    pub persistent: bool,
    /// Whether the connection is now a tunnel.
    pub upgraded: bool,
}

/// Reads the head of an answer, as [`Scan::find`] has found it. To the method HEAD there comes no body.
pub fn answer(head: &Bytes, to_head: bool) -> Result<AnswerHead, Error> {
    let (line, begin) = first_line(head);
    let (version, rest) =
        line.split_at_checked(VERSION_BYTES).ok_or_else(|| bad("this is not a status line"))?;
    let mut parts = Response::new(()).into_parts().0;
    parts.version = read_version(Some(version))?;
    parts.status = status(rest).ok_or_else(|| bad("this is not a status line"))?;
    let mut said = Said::default();
    parts.headers = fields(head, begin, Some(&mut said))?;
    said.check(parts.version)?;
    let has_none = to_head
        || parts.status.is_informational()
        || parts.status == StatusCode::NO_CONTENT
        || parts.status == StatusCode::NOT_MODIFIED;
    let length =
        if has_none { Length::Exact(0) } else { said.length().unwrap_or(Length::UntilClose) };
    if parts.status.is_informational() || parts.status == StatusCode::NO_CONTENT {
        parts.headers.remove(CONTENT_LENGTH);
    }
    let upgraded = parts.status == StatusCode::SWITCHING_PROTOCOLS
        && said.upgrade
        && upgrade::names_websocket(&parts.headers);
    let persistent =
        said.persistent(parts.version == Version::HTTP_11) && length != Length::UntilClose;
    Ok(AnswerHead { parts, length, persistent, upgraded })
}

/// Reads the fields after a chunked body, as [`Scan::find`] has found them.
pub fn trailers(section: &Bytes) -> Result<HeaderMap, Error> {
    fields(section, 0, None)
}

/// The first line, and where the second begins. A CR alone ends no line: what stands behind it would be taken for the
/// first field, or for the end of all.
fn first_line(head: &Bytes) -> (&[u8], usize) {
    let end = memchr(b'\n', head).unwrap_or_default();
    (head.get(..end).and_then(|line| line.strip_suffix(b"\r")).unwrap_or_default(), end + 1)
}

const VERSION_BYTES: usize = "HTTP/1.1".len();

fn read_version(version: Option<&[u8]>) -> Result<Version, Error> {
    match version {
        Some(b"HTTP/1.1") => Ok(Version::HTTP_11),
        Some(b"HTTP/1.0") => Ok(Version::HTTP_10),
        _ => Err(bad("only HTTP/1.0 and HTTP/1.1 are spoken here")),
    }
}

/// ` 200 OK`; the reason may be empty, and some leave out the space before it.
fn status(rest: &[u8]) -> Option<StatusCode> {
    let (code, reason) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    let is_reason =
        reason.is_empty() || reason.first() == Some(&b' ') && reason.iter().all(is_text);
    let status = StatusCode::from_bytes(code).ok().filter(|status| status.as_u16() < 600)?;
    is_reason.then_some(status)
}

/// The target: visible ASCII without a fragment, which a parser would drop without a word.
fn target(target: Bytes, limits: &Limits) -> Result<Uri, Error> {
    if target.len() > limits.target_bytes {
        return Err(Kind::TargetTooLong.into());
    }
    if !target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#') {
        return Err(bad(MUST_BE_ENCODED));
    }
    let uri = if target.first() == Some(&b'/') {
        PathAndQuery::from_maybe_shared(target).map(Uri::from)
    } else {
        Uri::from_maybe_shared(target)
    };
    uri.map_err(|_| bad("the request target is not valid"))
}

/// What the header fields say about this message and this connection.
#[derive(Debug, Default)]
struct Said {
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    expects_continue: bool,
    expects_other: bool,
    takes_trailers: bool,
}

impl Said {
    fn note(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Error> {
        if *name == CONTENT_LENGTH {
            if self.content_length.is_some() {
                return Err(bad("the header Content-Length is there more than once"));
            }
            self.content_length = Some(content_length(value)?);
        } else if *name == TRANSFER_ENCODING {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(bad("the header Transfer-Encoding is not exactly `chunked`"));
            }
            self.chunked = true;
        } else if *name == CONNECTION {
            for option in options(value) {
                self.close |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
            }
        } else if *name == EXPECT {
            let known = value.eq_ignore_ascii_case(b"100-continue");
            self.expects_continue |= known;
            self.expects_other |= !known;
        } else if *name == TE {
            self.takes_trailers |=
                options(value).any(|option| option.eq_ignore_ascii_case(b"trailers"));
        }
        Ok(())
    }

    fn check(&self, version: Version) -> Result<(), Error> {
        if self.chunked && self.content_length.is_some() {
            return Err(bad("there are both Content-Length and Transfer-Encoding"));
        }
        if self.chunked && version == Version::HTTP_10 {
            return Err(bad("HTTP/1.0 has no Transfer-Encoding"));
        }
        Ok(())
    }

    fn length(&self) -> Option<Length> {
        if self.chunked { Some(Length::Chunked) } else { self.content_length.map(Length::Exact) }
    }

    fn persistent(&self, is_current: bool) -> bool {
        !self.close && (is_current || self.keep_alive)
    }
}

/// Digits and nothing else: no sign, no list, no blank.
fn content_length(value: &[u8]) -> Result<u64, Error> {
    let digits =
        str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| bad("the header Content-Length is no number"))
}

fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// The fields in the lines from `at` on, up to the empty one. Their values are parts of `head`.
fn fields(head: &Bytes, mut at: usize, mut said: Option<&mut Said>) -> Result<HeaderMap, Error> {
    let mut lines = 0;
    let rest = head.get(at..).unwrap_or_default();
    lines += memchr::memchr_iter(b'\n', rest).count();
    let mut fields = HeaderMap::with_capacity(lines + ADDED_FIELDS);
    while let Some(length) = head.get(at..).and_then(|rest| memchr(b'\n', rest)) {
        let line = head.get(at..at + length).and_then(|line| line.strip_suffix(b"\r"));
        let line = line.ok_or_else(|| bad("a line of the head ends without CR"))?;
        if line.is_empty() {
            break;
        }
        let colon = memchr(b':', line).ok_or_else(|| bad("a header field has no colon"))?;
        let (name, value) = line.split_at_checked(colon).unwrap_or_default();
        let name = HeaderName::from_bytes(name)
            .map_err(|_| bad("the name of a header field is not valid"))?;
        let before = 1 + value.iter().skip(1).take_while(|byte| is_blank(**byte)).count();
        let after = value.iter().skip(before).rev().take_while(|byte| is_blank(**byte)).count();
        let value = head.slice(at + colon + before..at + line.len() - after);
        if let Some(said) = &mut said {
            said.note(&name, &value)?;
        }
        let value = HeaderValue::from_maybe_shared(value)
            .map_err(|_| bad("the value of a header field has control characters"))?;
        fields.append(name, value);
        at += length + 1;
    }
    Ok(fields)
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn bad(detail: &'static str) -> Error {
    Error::new(Kind::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { head_bytes: 500, header_count: 5, target_bytes: 100 };

    /// What comes of `bytes`, given in pieces: the request and where it ends.
    fn read(bytes: &[u8], piece: usize) -> Result<Option<(RequestHead, usize)>, Error> {
        let mut scan = Scan::new(Section::Request);
        let mut end = 0;
        loop {
            end = (end + piece).min(bytes.len());
            if let Some(found) = scan.find(&bytes[..end], &LIMITS)? {
                let head = Bytes::copy_from_slice(&bytes[found.clone()]);
                return Ok(Some((request(&head, &LIMITS)?, found.end)));
            }
            if end == bytes.len() {
                return Ok(None);
            }
        }
    }

    fn detail(bytes: &[u8]) -> &'static str {
        read(bytes, bytes.len().max(1)).map(|read| assert!(read.is_some())).unwrap_err().detail()
    }

    fn with(line: &str) -> Vec<u8> {
        format!("POST / HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n").into_bytes()
    }

    fn accepted(bytes: &[u8]) -> RequestHead {
        read(bytes, bytes.len()).unwrap().unwrap().0
    }

    #[test]
    fn a_request_is_read() {
        let bytes = b"\r\nGET /a?b HTTP/1.1\r\nHost: h\r\nX-A:\t 1  \r\nx-a:\r\n\r\nrest";
        let (head, end) = read(bytes, bytes.len()).unwrap().unwrap();
        assert_eq!(end, bytes.len() - 4);
        assert_eq!(
            (head.parts.method.as_str(), head.parts.uri.to_string()),
            ("GET", "/a?b".into())
        );
        let values: Vec<_> = head.parts.headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["1", ""]);
        assert_eq!(head.length, Length::Exact(0));
        assert!(head.persistent && !head.expects_continue && !head.takes_trailers);
        let head =
            accepted(&with("Transfer-Encoding: Chunked\r\nConnection: TE, close\r\nTE: trailers"));
        assert_eq!(head.length, Length::Chunked);
        assert!(!head.persistent && head.takes_trailers);
        assert_eq!(accepted(&with("Content-Length: 007")).length, Length::Exact(7));
        let old = b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n";
        let head = accepted(old);
        assert!(!head.persistent && !head.expects_continue);
        assert!(accepted(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").persistent);
    }

    #[test]
    fn a_cr_alone_ends_no_first_line() {
        for line in ["GET / HTTP/1.0\rX", "GET / HTTP/1.0\r", "GET / HTTP/1.1\r\r"] {
            let head = format!("{line}\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
            assert!(read(head.as_bytes(), head.len()).is_err(), "{line:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for line in [
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1\r\nContent-Length: 2",
            "Content-Length: 1, 1",
            "Content-Length: +5",
            "Content-Length: -0",
            "Content-Length: 0x5",
            "Content-Length: 5 5",
            "Content-Length:",
            "Content-Length: 99999999999999999999",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: \u{b}chunked",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding:",
            "Transfer-Encoding : chunked",
            " Transfer-Encoding: chunked",
            "X: a\r\n Transfer-Encoding: chunked",
            "X: a\r\n\tb",
            "X: a\nTransfer-Encoding: chunked",
            "X: a\rTransfer-Encoding: chunked",
            "X: a\0",
            "X: a\u{7f}",
            "X\0: a",
            "X a: b",
            ": b",
            "X",
            "Expect: 200-ok",
        ] {
            assert_eq!(read(&with(line), 4096).unwrap_err().kind(), Kind::BadRequest, "{line:?}");
        }
        for head in [
            "GET /\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.2\r\n\r\n",
            "GET / HTTP/1.10\r\n\r\n",
            "GET / http/1.1\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET /  HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1 \r\n\r\n",
            " GET / HTTP/1.1\r\n\r\n",
            "GET\t/ HTTP/1.1\r\n\r\n",
            "GET /a b HTTP/1.1\r\n\r\n",
            "GET /a#b HTTP/1.1\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\n\r\n",
            "GET /\0 HTTP/1.1\r\n\r\n",
            "GET HTTP/1.1\r\n\r\n",
            "G(T / HTTP/1.1\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "\nGET / HTTP/1.1\r\n\r\n",
            "\rGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\n\n",
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(
                read(head.as_bytes(), 4096).unwrap_err().kind(),
                Kind::BadRequest,
                "{head:?}"
            );
        }
    }

    #[test]
    fn whoever_speaks_something_else_is_told_at_once() {
        assert!(detail(b"\x16\x03\x01\x02\x00\x01").contains("TLS"));
        assert!(read(b"\x00\x00\x00\x01", 1).is_err());
        let mut scan = Scan::new(Section::Answer);
        assert!(scan.find(b"HTT", &LIMITS).is_ok());
        assert!(scan.find(b"HTTP/2", &LIMITS).is_err());
    }

    #[test]
    fn every_bound_has_its_error() {
        let kind = |bytes: &str| read(bytes.as_bytes(), 7).unwrap_err().kind();
        assert_eq!(kind(&"x".repeat(200)), Kind::TargetTooLong);
        assert_eq!(
            kind(&format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100))),
            Kind::TargetTooLong
        );
        assert_eq!(kind(&format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(500))), Kind::HeadTooLarge);
        let both = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(600));
        for piece in [1, 7, 300, both.len()] {
            let error = read(both.as_bytes(), piece).unwrap_err();
            assert_eq!(error.kind(), Kind::TargetTooLong, "{piece}");
        }
        assert_eq!(
            kind(&format!("GET / HTTP/1.1\r\n{}", "X: x\r\n".repeat(6))),
            Kind::HeadTooLarge
        );
        let most = format!("GET /{} HTTP/1.1\r\n{}\r\n", "x".repeat(99), "X: x\r\n".repeat(5));
        assert_eq!(accepted(most.as_bytes()).parts.headers.len(), 5);
    }

    fn answered(text: &str, to_head: bool) -> Result<AnswerHead, Error> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let found = Scan::new(Section::Answer).find(&bytes, &LIMITS)?.unwrap();
        answer(&bytes.slice(found), to_head)
    }

    #[test]
    fn an_answer_is_read() {
        for (text, to_head, length, persistent) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", false, Length::Exact(3), true),
            ("HTTP/1.1 200\r\nContent-Length: 3\r\n\r\n", true, Length::Exact(0), true),
            ("HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", false, Length::Chunked, true),
            ("HTTP/1.1 200 OK\r\n\r\n", false, Length::UntilClose, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", false, Length::Exact(3), false),
            ("HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", false, Length::Exact(0), true),
            ("HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\n", false, Length::Exact(0), true),
            ("HTTP/1.1 200 a\tb\r\nConnection: close\r\n\r\n", true, Length::Exact(0), false),
        ] {
            let head = answered(text, to_head).unwrap();
            assert_eq!((head.length, head.persistent), (length, persistent), "{text:?}");
        }
    }

    #[test]
    fn an_answer_that_could_be_read_in_two_ways_is_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\nX: y\n\n",
            "HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 600 OK\r\n\r\n",
            "HTTP/1.1 200 O\0K\r\n\r\n",
            "HTTP/1.1 200 OK\r!\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert!(answered(text, false).is_err(), "{text:?}");
        }
    }

    /// What the grammar says, read slowly.
    fn is_valid(head: &str) -> bool {
        let is_token = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
        };
        let mut lines = head.split_once("\r\n\r\n").unwrap().0.split("\r\n");
        let first: Vec<&str> = lines.next().unwrap().split(' ').collect();
        let [method, target, "HTTP/1.1"] = *first else { return false };
        // What browsers send as it is beside what RFC 3986 allows; the normal form of a path encodes it.
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let has_only = |text: &str, not: &[u8]| {
            text.bytes().all(|b| b.is_ascii_graphic() && !not.contains(&b))
        };
        let is_target =
            path.starts_with('/') && has_only(path, b"#<>`") && has_only(query, b"#<>\"");
        is_token(method)
            && is_target
            && lines.all(|line| {
                line.split_once(':').is_some_and(|(name, value)| {
                    is_token(name) && value.bytes().all(|b| b == b'\t' || b >= b' ' && b != 0x7f)
                })
            })
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            line in "((\r\n)?[A-Z ]{0,4}/[a-z#]{0,3} ?HTTP/1\\.[01])?",
            fields in "(\r?\n[A-Za-z: ]{0,6}){0,4}",
            end in "\r\n\r\n[\\x00-\\x7f]{0,3}",
            piece in 1_usize..9,
        ) {
            let text = [line, fields, end].concat();
            let describe = |read: Result<Option<(RequestHead, usize)>, Error>| {
                read.map(|read| read.map(|(head, end)| (format!("{head:?}"), end)))
            };
            let pieces = describe(read(text.as_bytes(), piece));
            prop_assert_eq!(pieces, describe(read(text.as_bytes(), text.len())));
        }

        #[test]
        fn what_is_read_is_what_the_grammar_says(
            text in "(GET|P@T) /[ -~]{0,3} HTTP/1\\.[12](\r\n[A-Z ]{0,2}[:\r]?[\\x00-\\x7f]{0,3}){0,3}",
        ) {
            let text = format!("{text}\r\n\r\n");
            let is_read = matches!(read(text.as_bytes(), text.len()), Ok(Some(_)));
            prop_assert_eq!(is_read, is_valid(&text), "{:?}", text);
        }
    }
}
