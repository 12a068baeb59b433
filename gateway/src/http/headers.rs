//! Header fields that concern one connection only and never cross the gateway (RFC 9110, section 7.6.1), and header
//! fields that only a proxy may set.

use bytes::Bytes;
use http::header::{
    CONNECTION, FORWARDED, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};

/// `Keep-Alive`.
pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// `Proxy-Connection`, which no standard knows and some clients send.
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// `X-Request-Id`.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `X-Forwarded-For`.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Host`.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// `X-Forwarded-Proto`.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// `Client-Cert` (RFC 9440).
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");

const HOP_COUNT: usize = 8;
static HOP_BY_HOP: [HeaderName; HOP_COUNT] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
];

/// Removes what is for one hop only: the known names and those that `Connection` lists.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // A look along the names is cheaper than one search for each of eight that are seldom there.
    let mut present = [false; HOP_COUNT];
    for name in headers.keys() {
        for (known, present) in HOP_BY_HOP.iter().zip(&mut present) {
            *present |= name == known;
        }
    }
    let [connection, ..] = present;
    if connection {
        for name in listed_in_connection(headers) {
            headers.remove(name);
        }
    }
    for (name, present) in HOP_BY_HOP.iter().zip(present) {
        if present {
            headers.remove(name);
        }
    }
}

/// Removes from the fields after a body what belongs before it (RFC 9110, section 6.5.1): whoever merges the two would
/// take it for a part of the head.
pub fn remove_forbidden_trailers(trailers: &mut HeaderMap) {
    let forbidden: Vec<HeaderName> =
        trailers.keys().filter(|name| is_forbidden_trailer(name)).cloned().collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

/// Framing, routing, what a request is decided by, credentials, what an answer is handled by, and what its content is.
fn is_forbidden_trailer(name: &HeaderName) -> bool {
    const FORBIDDEN: [&str; 25] = [
        "host",
        "max-forwards",
        "expect",
        "range",
        "cookie",
        "forwarded",
        "trailer",
        "age",
        "expires",
        "date",
        "location",
        "vary",
        "warning",
        "pragma",
        "retry-after",
        "set-cookie",
        "set-cookie2",
        "www-authenticate",
        "authorization",
        "authentication-info",
        "cache-control",
        "origin",
        "referer",
        "upgrade",
        "server",
    ];
    let name = name.as_str();
    FORBIDDEN.contains(&name)
        || ["content-", "if-", "accept", "access-control-", "proxy-", "sec-"]
            .iter()
            .any(|begin| name.starts_with(begin))
        || says_who_the_client_is(name)
        || HOP_BY_HOP.iter().any(|known| known == name)
}

/// Removes what only a proxy may say about the client, under any spelling that a service may take for it: some read
/// `X_Forwarded_For` as `X-Forwarded-For`. A trusted proxy is believed, but not in the other spellings.
pub fn remove_forged(headers: &mut HeaderMap, peer_is_trusted: bool) {
    let forged = |name: &&HeaderName| {
        let name = name.as_str();
        let begin = name.as_bytes().first();
        // Nearly every header is passed over by its first letter.
        matches!(begin, Some(b'x' | b'f' | b't' | b'c'))
            && says_who_the_client_is(name)
            && (!peer_is_trusted || name.contains('_'))
    };
    let forged: Vec<HeaderName> = headers.keys().filter(forged).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

/// Names that only the gateway writes, in every spelling.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// With `-` where a name has `_`.
    plain: Vec<Box<[u8]>>,
    /// A bit for each length below 64 that one of them has.
    lengths: u64,
}

impl Names {
    /// These names.
    pub fn new(names: &[HeaderName]) -> Self {
        let plain = |name: &HeaderName| name.as_str().bytes().map(plain).collect();
        let names: Vec<Box<[u8]>> = names.iter().map(plain).collect();
        let lengths = names.iter().fold(0, |bits, name| bits | Self::bit(name.len()));
        Self { plain: names, lengths }
    }

    /// Whether a service may take `name` for one of them.
    pub fn have(&self, name: &HeaderName) -> bool {
        let name = name.as_str();
        let same = |known: &[u8]| {
            known.len() == name.len()
                && name.bytes().zip(known).all(|(one, other)| plain(one) == *other)
        };
        self.lengths & Self::bit(name.len()) != 0 && self.plain.iter().any(|known| same(known))
    }

    /// Removes every field that has one of them.
    pub fn remove_from(&self, headers: &mut HeaderMap) {
        if headers.keys().any(|name| self.have(name)) {
            let forged: Vec<HeaderName> =
                headers.keys().filter(|name| self.have(name)).cloned().collect();
            for name in forged {
                headers.remove(name);
            }
        }
    }

    fn bit(length: usize) -> u64 {
        1 << length.min(63)
    }
}

fn says_who_the_client_is(name: &str) -> bool {
    let same = |known: &str| is_spelling(name, known);
    let begins = |known: &str| {
        name.len() > known.len()
            && name.bytes().zip(known.bytes()).all(|(one, other)| plain(one) == other)
    };
    begins("x-forwarded-")
        || same(FORWARDED.as_str())
        || same(X_REQUEST_ID.as_str())
        || same("x-real-ip")
        || same("x-client-ip")
        || same("true-client-ip")
        || same(CLIENT_CERT.as_str())
        || same("client-cert-chain")
}

/// Whether a service may take `name` for `known`.
pub fn is_spelling(name: &str, known: &str) -> bool {
    name.len() == known.len()
        && name.bytes().zip(known.bytes()).all(|(one, other)| plain(one) == other)
}

fn plain(letter: u8) -> u8 {
    if letter == b'_' { b'-' } else { letter }
}

fn listed_in_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let names = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = names.flat_map(|value| value.split(',')).map(str::trim);
    let known = |name: &&str| {
        ["close", "keep-alive"].iter().any(|option| name.eq_ignore_ascii_case(option))
    };
    names
        .filter(|name| !known(name))
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        // Whoever lists these wants a service to miss what it decides by.
        .filter(|name| !PROTECTED.contains(name))
        .collect()
}

/// Header fields that no `Connection` takes away: without them the service would see another request.
static PROTECTED: [HeaderName; 3] =
    [http::header::HOST, http::header::CONTENT_LENGTH, http::header::AUTHORIZATION];

/// A value that is known to be good; the empty value stands for one that is not, which cannot be.
pub fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The same of text that is shared.
pub fn shared_value(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            )
        };
        let mut map = HeaderMap::new();
        for (name, value) in fields.iter().map(field) {
            map.append(name, value);
        }
        map
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        map.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn what_is_for_one_hop_is_removed_with_what_connection_lists() {
        let mut headers = map(&[
            ("Connection", "close, X-Once"),
            ("connection", "x-twice"),
            ("X-Once", "1"),
            ("X-Twice", "2"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "websocket"),
            ("Proxy-Authorization", "Basic eA=="),
            ("Proxy-Connection", "keep-alive"),
            ("Accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(names(&headers), ["accept"]);
    }

    #[test]
    fn connection_cannot_take_away_what_a_service_decides_by() {
        let mut headers = map(&[
            ("Connection", "host, authorization, content-length"),
            ("Host", "a"),
            ("Authorization", "b"),
            ("Content-Length", "0"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers.len(), 3);
    }

    #[test]
    fn what_clients_say_about_themselves_is_removed_in_every_spelling() {
        let fields = [
            ("X-Forwarded-For", "1"),
            ("x_forwarded_for", "2"),
            ("X-Forwarded_Proto", "3"),
            ("Forwarded", "for=4"),
            ("X_Real_IP", "5"),
            ("True-Client-IP", "6"),
            ("X-Request-Id", "7"),
            ("Client-Cert", "7"),
            ("client_cert_chain", "7"),
            ("X-Forward", "8"),
            ("From", "9"),
        ];
        let mut headers = map(&fields);
        remove_forged(&mut headers, false);
        assert_eq!(headers.len(), 2);
        assert!(headers.contains_key("x-forward") && headers.contains_key("from"));
        let mut headers = map(&fields);
        remove_forged(&mut headers, true);
        assert!(headers.contains_key("x-forwarded-for") && headers.contains_key("forwarded"));
        assert!(headers.keys().all(|name| !name.as_str().contains('_')), "{headers:?}");
    }
}
