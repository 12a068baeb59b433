//! Heads of HTTP/1 messages as they are sent. What a message says about its own length is decided here and nowhere
//! else, whatever fields of that name the other side had.

use std::cell::Cell;

use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, EXPECT, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::{Method, StatusCode, request, response};

use crate::base::time;
use crate::http::h1::output::{Coding, field};

/// What a head says about the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none, and nothing is said about it.
    None,
    /// There is none, but the length says what another method or time would have brought.
    AsSaid,
    /// So many bytes.
    Exact(u64),
    /// In chunks.
    Chunked,
    /// All until the connection ends.
    UntilClose,
}

impl Framing {
    /// That of an answer with a body of so many bytes, to a client that asked for the head alone, or that knows chunks.
    pub(super) fn of_answer(
        status: StatusCode,
        exact_bytes: Option<u64>,
        (is_head, knows_chunks): (bool, bool),
    ) -> Self {
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Self::UntilClose;
        }
        if is_head || status == StatusCode::NOT_MODIFIED {
            return Self::AsSaid;
        }
        if status.is_informational() || status == StatusCode::NO_CONTENT {
            return Self::None;
        }
        match exact_bytes {
            Some(bytes) => Self::Exact(bytes),
            None if knows_chunks => Self::Chunked,
            None => Self::UntilClose,
        }
    }

    pub(super) fn coding(self) -> Coding {
        if self == Self::Chunked { Coding::Chunked } else { Coding::Identity }
    }

    /// How many bytes are to be sent, if that is known.
    pub(super) fn exact(self) -> Option<u64> {
        match self {
            Self::None | Self::AsSaid => Some(0),
            Self::Exact(bytes) => Some(bytes),
            Self::Chunked | Self::UntilClose => None,
        }
    }
}

/// What an answer says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Future {
    /// Nothing: it stays open, as by default.
    Default,
    /// It stays open, although by default it would not.
    KeepAlive,
    /// It is closed.
    Close,
    /// It becomes something else, as fields of the head say.
    Upgrade,
}

/// Room for most heads, and for a small body behind them.
const USUAL_BYTES: usize = 1024;

/// Writes the head of a request for an endpoint.
pub(super) fn request(to: &mut Vec<u8>, head: &request::Parts, framing: Framing) {
    to.reserve(USUAL_BYTES);
    to.extend_from_slice(head.method.as_str().as_bytes());
    to.push(b' ');
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    to.extend_from_slice(target.as_bytes());
    to.extend_from_slice(b" HTTP/1.1\r\n");
    let mut has_length = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
    for (name, value) in &head.headers {
        has_length |= *name == CONTENT_LENGTH;
        // The gateway itself tells the client to go on.
        if !is_framing(name) && *name != EXPECT {
            field(to, name, value.as_bytes());
        }
    }
    match framing {
        Framing::None if has_length => length(to, Framing::Exact(0)),
        framing => length(to, framing),
    }
    to.extend_from_slice(b"\r\n");
}

/// Writes the head of an answer for a client.
pub(super) fn answer(to: &mut Vec<u8>, head: &response::Parts, framing: Framing, future: Future) {
    to.reserve(USUAL_BYTES);
    to.extend_from_slice(b"HTTP/1.1 ");
    to.extend_from_slice(head.status.as_str().as_bytes());
    to.push(b' ');
    to.extend_from_slice(head.status.canonical_reason().unwrap_or_default().as_bytes());
    to.extend_from_slice(b"\r\n");
    answer_fields(to, &head.headers, framing, future);
    length(to, framing);
    to.extend_from_slice(match future {
        Future::Close => b"connection: close\r\n\r\n".as_slice(),
        Future::KeepAlive => b"connection: keep-alive\r\n\r\n",
        Future::Default | Future::Upgrade => b"\r\n",
    });
}

fn answer_fields(to: &mut Vec<u8>, headers: &HeaderMap, framing: Framing, future: Future) {
    let mut has_date = false;
    for (name, value) in headers {
        has_date |= *name == DATE;
        let is_kept = if *name == CONNECTION {
            future == Future::Upgrade
        } else {
            !is_framing(name) || *name == CONTENT_LENGTH && framing == Framing::AsSaid
        };
        if is_kept {
            field(to, name, value.as_bytes());
        }
    }
    if !has_date {
        field(to, &DATE, &date());
    }
}

fn is_framing(name: &HeaderName) -> bool {
    *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING
}

fn length(to: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::Exact(bytes) => {
            let mut digits = itoa::Buffer::new();
            field(to, &CONTENT_LENGTH, digits.format(bytes).as_bytes());
        }
        Framing::Chunked => to.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::None | Framing::AsSaid | Framing::UntilClose => {}
    }
}

const DATE_BYTES: usize = "Sun, 06 Nov 1994 08:49:37 GMT".len();

/// The field `Date` of an answer that comes without (RFC 9110, section 6.6.1).
pub fn date_value() -> Option<HeaderValue> {
    HeaderValue::from_bytes(&date()).ok()
}

/// The time as HTTP writes it, formatted once a second.
fn date() -> [u8; DATE_BYTES] {
    thread_local! {
        static LAST: Cell<(u64, [u8; DATE_BYTES])> = const { Cell::new((0, [b' '; DATE_BYTES])) };
    }
    let second = time::utc().0 / 1000;
    let (last, text) = LAST.get();
    if last == second {
        return text;
    }
    let moment = std::time::UNIX_EPOCH + std::time::Duration::from_secs(second);
    let text = httpdate::fmt_http_date(moment).into_bytes().try_into().unwrap_or(text);
    LAST.set((second, text));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response, StatusCode};

    fn sent(method: &str, fields: &[(&str, &str)], framing: Framing) -> String {
        let mut builder = Request::builder().method(method).uri("/a?b");
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let mut to = Vec::new();
        request(&mut to, &builder.body(()).unwrap().into_parts().0, framing);
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn a_request_says_its_length_once_and_expects_nothing() {
        let fields = [("host", "h"), ("content-length", "7"), ("expect", "100-continue")];
        let begin = "GET /a?b HTTP/1.1\r\nhost: h\r\n";
        let of_seven = format!("{begin}content-length: 7\r\n\r\n");
        assert_eq!(sent("GET", &fields, Framing::Exact(7)), of_seven);
        let chunked = format!("{begin}transfer-encoding: chunked\r\n\r\n");
        assert_eq!(sent("GET", &fields, Framing::Chunked), chunked);
        assert_eq!(sent("GET", &fields[..1], Framing::None), format!("{begin}\r\n"));
        let empty = "POST /a?b HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(sent("POST", &fields[..1], Framing::None), empty);
    }

    #[test]
    fn an_answer_says_what_becomes_of_the_connection() {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::NOT_FOUND;
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, 9.into());
        headers.insert(DATE, HeaderValue::from_static("today"));
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        let head = response.into_parts().0;
        let sent = |framing, future| {
            let mut to = Vec::new();
            answer(&mut to, &head, framing, future);
            String::from_utf8(to).unwrap()
        };
        let begin = "HTTP/1.1 404 Not Found\r\n";
        for (framing, future, rest) in [
            (Framing::AsSaid, Future::Default, "content-length: 9\r\ndate: today\r\n\r\n"),
            (
                Framing::Exact(3),
                Future::Close,
                "date: today\r\ncontent-length: 3\r\nconnection: close\r\n\r\n",
            ),
            (Framing::UntilClose, Future::Close, "date: today\r\nconnection: close\r\n\r\n"),
            (
                Framing::Chunked,
                Future::KeepAlive,
                "date: today\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n",
            ),
            (Framing::None, Future::Upgrade, "date: today\r\nconnection: upgrade\r\n\r\n"),
        ] {
            assert_eq!(sent(framing, future), format!("{begin}{rest}"));
        }
    }

    #[test]
    fn the_date_is_one() {
        let text = String::from_utf8(date().to_vec()).unwrap();
        assert!(httpdate::parse_http_date(&text).is_ok(), "{text}");
    }
}
