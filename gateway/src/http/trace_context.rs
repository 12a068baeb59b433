//! Trace contexts: which trace a request belongs to, as W3C Trace Context and B3 say it, read from whoever is believed
//! and written for the next hop. Refuses to repair: a context with anything wrong in it begins a new trace.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::base::random::mix;
use crate::config::{Share, TraceFormat, TraceTrust, Tracing};
use crate::http::headers::{is_spelling, value};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const X_B3_TRACEID: HeaderName = HeaderName::from_static("x-b3-traceid");
const X_B3_SPANID: HeaderName = HeaderName::from_static("x-b3-spanid");
const X_B3_PARENTSPANID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const X_B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const X_B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

static KNOWN: [HeaderName; 8] = [
    TRACEPARENT,
    TRACESTATE,
    B3,
    X_B3_TRACEID,
    X_B3_SPANID,
    X_B3_PARENTSPANID,
    X_B3_SAMPLED,
    X_B3_FLAGS,
];

/// Hexadecimal digits of ids.
const TRACE_DIGITS: usize = 32;
const SHORT_TRACE_DIGITS: usize = 16;
const SPAN_DIGITS: usize = 16;
/// Bytes of `traceparent` that every version has.
const TRACEPARENT_BYTES: usize = 55;
/// What is propagated of `tracestate` (W3C Trace Context, sections 3.3.1.1 and 3.3.1.5).
const STATE_BYTES_MAX: usize = 512;
const STATE_MEMBERS_MAX: usize = 32;
/// Bytes of a key and of a value in `tracestate`.
const STATE_PART_BYTES_MAX: usize = 256;

/// The place of a request in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext<'c> {
    /// The trace; not 0.
    pub trace_id: u128,
    /// The hop to the upstream; not 0.
    pub span_id: u64,
    /// The hop before it, where the trace began there.
    parent: Option<u64>,
    sampled: bool,
    state: Option<HeaderValue>,
    propagate: &'c [TraceFormat],
}

impl<'c> TraceContext<'c> {
    /// Goes on with the trace of a peer that is believed, else begins one, with the id of the request where that can
    /// be one.
    pub fn of(
        tracing: &'c Tracing,
        headers: &HeaderMap,
        peer_is_trusted: bool,
        request_id: &HeaderValue,
        mut random: impl FnMut() -> u64,
    ) -> Self {
        let is_believed = match tracing.trust {
            TraceTrust::TrustedProxies => peer_is_trusted,
            TraceTrust::Everyone => true,
            TraceTrust::Nobody => false,
        };
        let received = if is_believed { read(headers) } else { None }.unwrap_or_default();
        let span_id = random().max(1);
        let trace_id = received.ids.map(|(trace_id, _)| trace_id);
        let trace_id = trace_id.or_else(|| id(request_id.as_bytes(), TRACE_DIGITS));
        let trace_id =
            trace_id.unwrap_or_else(|| (u128::from(random()) << 64 | u128::from(random())).max(1));
        Self {
            trace_id,
            span_id,
            parent: received.ids.map(|(_, parent)| parent),
            sampled: received.sampled.unwrap_or_else(|| is_sampled(trace_id, tracing.sample)),
            state: received.state,
            propagate: &tracing.propagate,
        }
    }

    /// Puts it in the place of whatever `headers` say about traces, in any spelling.
    pub fn write(&self, headers: &mut HeaderMap) {
        let is_known = |name: &&HeaderName| {
            KNOWN.iter().any(|known| is_spelling(name.as_str(), known.as_str()))
        };
        let received: Vec<HeaderName> = headers.keys().filter(is_known).cloned().collect();
        for name in received {
            headers.remove(name);
        }
        let Self { trace_id, span_id, parent, .. } = self;
        let sampled = u8::from(self.sampled);
        for format in self.propagate {
            match format {
                TraceFormat::W3c => {
                    let text = format!("00-{trace_id:032x}-{span_id:016x}-{sampled:02x}");
                    headers.insert(TRACEPARENT, value(&text));
                    if let Some(state) = &self.state {
                        headers.insert(TRACESTATE, state.clone());
                    }
                }
                TraceFormat::B3 => {
                    let parent = parent.map(|parent| format!("-{parent:016x}"));
                    let parent = parent.unwrap_or_default();
                    let text = format!("{trace_id:032x}-{span_id:016x}-{sampled}{parent}");
                    headers.insert(B3, value(&text));
                }
                TraceFormat::B3Multi => {
                    headers.insert(X_B3_TRACEID, value(&format!("{trace_id:032x}")));
                    headers.insert(X_B3_SPANID, value(&format!("{span_id:016x}")));
                    if let Some(parent) = parent {
                        headers.insert(X_B3_PARENTSPANID, value(&format!("{parent:016x}")));
                    }
                    headers.insert(X_B3_SAMPLED, HeaderValue::from(u16::from(self.sampled)));
                }
            }
        }
    }
}

/// What a peer says.
#[derive(Default)]
struct Received {
    /// The trace and the hop that led here; B3 may leave them to whoever is asked.
    ids: Option<(u128, u64)>,
    /// B3 may leave it open.
    sampled: Option<bool>,
    state: Option<HeaderValue>,
}

/// The first format that is there speaks for all.
fn read(headers: &HeaderMap) -> Option<Received> {
    if headers.contains_key(TRACEPARENT) {
        w3c(headers)
    } else if headers.contains_key(B3) {
        b3(lone(headers, &B3)?)
    } else {
        b3_multi(headers)
    }
}

/// `00-TRACE-SPAN-FLAGS`; what a later version has behind that is its own affair.
fn w3c(headers: &HeaderMap) -> Option<Received> {
    let (known, rest) = lone(headers, &TRACEPARENT)?.split_at_checked(TRACEPARENT_BYTES)?;
    let mut parts = known.split(|byte| *byte == b'-');
    let version = hex(parts.next()?, 2)?;
    let trace_id = id(parts.next()?, TRACE_DIGITS)?;
    let span_id = span(parts.next()?)?;
    let flags = hex(parts.next()?, 2)?;
    let is_good = match (version, rest) {
        (0xff, _) => false,
        (_, []) => true,
        (version, [next, ..]) => version > 0 && *next == b'-',
    };
    (is_good && !known.iter().any(u8::is_ascii_uppercase)).then(|| Received {
        ids: Some((trace_id, span_id)),
        sampled: Some(flags & 1 == 1),
        state: state(headers),
    })
}

/// All lines of `tracestate` as one, or nothing where one is too much or wrong.
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let lines: Vec<&[u8]> = headers.get_all(TRACESTATE).iter().map(HeaderValue::as_bytes).collect();
    let text = lines.join(&b","[..]);
    let members = text.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let mut members = members.filter(|member| !member.is_empty()).peekable();
    members.peek()?;
    let is_good = text.len() <= STATE_BYTES_MAX
        && members.clone().count() <= STATE_MEMBERS_MAX
        && members.all(is_state_member);
    is_good.then(|| HeaderValue::from_bytes(&text).ok()).flatten()
}

/// `key=value`
fn is_state_member(member: &[u8]) -> bool {
    let mut parts = member.split(|byte| *byte == b'=');
    let (Some(key), Some(value), None) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bounds = 1..=STATE_PART_BYTES_MAX;
    bounds.contains(&key.len())
        && bounds.contains(&value.len())
        && key.first().is_some_and(is_plain)
        && key.iter().all(|byte| is_plain(byte) || b"_-*/@".contains(byte))
        && value.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

/// `TRACE-SPAN`, `TRACE-SPAN-STATE`, `TRACE-SPAN-STATE-PARENT`, or the state alone.
fn b3(text: &[u8]) -> Option<Received> {
    let decision = |state: &[u8]| match state {
        b"1" | b"d" => Some(true),
        b"0" => Some(false),
        _ => None,
    };
    if let Some(sampled) = decision(text) {
        return Some(Received { sampled: Some(sampled), ..Received::default() });
    }
    let mut parts = text.split(|byte| *byte == b'-');
    let ids = (b3_trace_id(parts.next()?)?, span(parts.next()?)?);
    let sampled = match parts.next() {
        Some(state) => Some(decision(state)?),
        None => None,
    };
    if let Some(parent) = parts.next() {
        hex(parent, SPAN_DIGITS)?;
    }
    parts.next().is_none().then_some(Received { ids: Some(ids), sampled, state: None })
}

/// The same with a header field for each part.
fn b3_multi(headers: &HeaderMap) -> Option<Received> {
    let ids = match (lone(headers, &X_B3_TRACEID)?, lone(headers, &X_B3_SPANID)?) {
        (b"", b"") => None,
        (trace_id, span_id) => Some((b3_trace_id(trace_id)?, span(span_id)?)),
    };
    let sampled = match (lone(headers, &X_B3_FLAGS)?, lone(headers, &X_B3_SAMPLED)?) {
        (b"1", _) | (b"" | b"0", b"1" | b"true") => Some(true),
        (b"" | b"0", b"0" | b"false") => Some(false),
        (b"" | b"0", b"") => None,
        _ => return None,
    };
    let parent = lone(headers, &X_B3_PARENTSPANID)?;
    (parent.is_empty() || hex(parent, SPAN_DIGITS).is_some()).then_some(Received {
        ids,
        sampled,
        state: None,
    })
}

/// What a field says, nothing if it is not there; `None` where two of them may contradict each other.
fn lone<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map_or(&b""[..], HeaderValue::as_bytes);
    values.next().is_none().then_some(first)
}

fn b3_trace_id(digits: &[u8]) -> Option<u128> {
    id(digits, TRACE_DIGITS).or_else(|| id(digits, SHORT_TRACE_DIGITS))
}

fn span(digits: &[u8]) -> Option<u64> {
    id(digits, SPAN_DIGITS).and_then(|id| u64::try_from(id).ok())
}

/// An id is not 0.
fn id(digits: &[u8], length: usize) -> Option<u128> {
    hex(digits, length).filter(|id| *id != 0)
}

fn hex(digits: &[u8], length: usize) -> Option<u128> {
    let mut digits = Some(digits).filter(|digits| digits.len() == length)?.iter();
    digits.try_fold(0, |number, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(number << 4 | u128::from(digit))
    })
}

/// Whoever has the same share decides the same about a trace.
fn is_sampled(trace_id: u128, share: Share) -> bool {
    let number = mix((trace_id >> 64) as u64 ^ trace_id as u64);
    let whole = u64::from(Share::WHOLE.parts_per_million());
    number % whole < u64::from(share.parts_per_million())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [TraceFormat; 3] = [TraceFormat::W3c, TraceFormat::B3, TraceFormat::B3Multi];
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";
    static REQUEST: HeaderValue = HeaderValue::from_static("0123456789abcdef0123456789ABCDEF");
    const NEW: u128 = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;

    fn tracing(propagate: &[TraceFormat], trust: TraceTrust, sample: Share) -> Tracing {
        Tracing { propagate: propagate.into(), trust, sample }
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        map
    }

    /// What an upstream gets where everybody is believed, and nothing is sampled that nobody wants to be.
    fn sent(propagate: &[TraceFormat], fields: &[(&str, &str)]) -> Vec<(String, String)> {
        let tracing = tracing(propagate, TraceTrust::Everyone, Share::ZERO);
        let mut headers = map(fields);
        let context = TraceContext::of(&tracing, &headers, false, &REQUEST, || 7);
        context.write(&mut headers);
        let field = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        headers.iter().map(field).collect()
    }

    fn w3c_of(fields: &[(&str, &str)]) -> String {
        let sent = sent(&[TraceFormat::W3c], fields);
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent[0].1.clone()
    }

    fn is_new(fields: &[(&str, &str)]) -> bool {
        w3c_of(fields) == format!("00-{NEW:032x}-0000000000000007-00")
    }

    #[test]
    fn a_w3c_context_is_continued_in_every_format() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let fields = [
            ("traceparent", &*parent),
            ("tracestate", "a=1"),
            ("tracestate", "b@c=2, "),
            ("x", "y"),
        ];
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            sent(&ALL, &fields),
            [
                text("x", "y"),
                text("traceparent", &format!("00-{TRACE}-0000000000000007-01")),
                text("tracestate", "a=1,b@c=2, "),
                text("b3", &format!("{TRACE}-0000000000000007-1-{SPAN}")),
                text("x-b3-traceid", TRACE),
                text("x-b3-spanid", "0000000000000007"),
                text("x-b3-parentspanid", SPAN),
                text("x-b3-sampled", "1"),
            ]
        );
        assert_eq!(sent(&[], &fields), [text("x", "y")]);
    }

    #[test]
    fn a_w3c_context_is_read_strictly() {
        let of = |text: &str| is_new(&[("traceparent", text)]);
        let good = format!("00-{TRACE}-{SPAN}-00");
        assert!(!of(&good) && !of(&good.replacen("00", "fe", 1)));
        assert!(!of(&format!("cc-{TRACE}-{SPAN}-09-What the future brings")));
        assert!(of(&good.replacen("00", "ff", 1)));
        assert!(of(&format!("{good}-more")) && of(&format!("cc-{TRACE}-{SPAN}-01.more")));
        assert!(of(&good.to_uppercase()));
        assert!(of(&format!("00-{:032}-{SPAN}-00", 0)) && of(&format!("00-{TRACE}-{:016}-00", 0)));
        for at in 0..good.len() {
            assert!(of(&good[..at]), "{at}");
            let mut bad = good.clone();
            bad.replace_range(at..=at, "+");
            assert!(of(&bad), "{bad}");
        }
        assert!(is_new(&[("traceparent", &good), ("traceparent", &good)]));
        let b3 = format!("{TRACE}-{SPAN}");
        assert!(is_new(&[("traceparent", "00"), ("b3", &b3)]), "the first format speaks for all");
    }

    #[test]
    fn the_state_goes_with_its_context_and_is_bounded() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let kept = |state: &str| {
            let fields = [("traceparent", &*parent), ("tracestate", state)];
            sent(&[TraceFormat::W3c], &fields).len() == 2
        };
        let members = |count: usize| vec!["a=1"; count].join(",");
        assert!(kept("a=b c,, 1/_-*@= ~ ") && kept(&members(32)) && !kept(&members(33)));
        let long = |length: usize| format!("a={},b={}", "x".repeat(256), "x".repeat(length));
        assert!(kept(&long(251)) && !kept(&long(252)));
        for bad in ["", " , ", "a", "a=", "=b", "A=b", "a=b=c", "a b=c", "a=\u{e9}", "_a=b"] {
            assert!(!kept(bad), "{bad}");
        }
        let key = "k".repeat(257);
        assert!(kept(&format!("{}=1", &key[1..])) && !kept(&format!("{key}=1")));
        assert!(is_new(&[("traceparent", "00"), ("tracestate", "a=b")]));
        assert!(is_new(&[("tracestate", "a=b")]));
    }

    #[test]
    fn b3_is_continued_in_all_of_its_forms() {
        let b3 = |text: &str| w3c_of(&[("b3", text)]);
        let continued = |flags: &str| format!("00-{TRACE}-0000000000000007-{flags}");
        for (end, flags) in [("", "00"), ("-0", "00"), ("-1", "01"), ("-d", "01")] {
            assert_eq!(b3(&format!("{TRACE}-{SPAN}{end}")), continued(flags));
        }
        assert_eq!(b3(&format!("{TRACE}-{SPAN}-1-{SPAN}").to_uppercase()), continued("01"));
        let short = format!("00-{:0>32}-0000000000000007-01", SPAN);
        assert_eq!(b3(&format!("{SPAN}-{SPAN}-1")), short);
        let new = |flags: &str| format!("00-{NEW:032x}-0000000000000007-{flags}");
        assert_eq!((b3("1"), b3("d"), b3("0")), (new("01"), new("01"), new("00")));
        for bad in [
            "",
            "2",
            "-",
            "11",
            TRACE,
            "1-",
            &format!("{TRACE}-{SPAN}-"),
            &format!("{TRACE}-{SPAN}-2"),
            &format!("{TRACE}-{SPAN}-1-"),
            &format!("{TRACE}-{SPAN}-1-{SPAN}-"),
            &format!("{}-{SPAN}-1", &TRACE[1..]),
        ] {
            assert!(is_new(&[("b3", bad)]), "{bad}");
        }

        let ids = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
        let multi = |more: &[(&str, &str)]| w3c_of(&[&ids[..], more].concat());
        assert_eq!(multi(&[]), continued("00"));
        assert_eq!(multi(&[("x-b3-sampled", "1")]), continued("01"));
        assert_eq!(multi(&[("x-b3-sampled", "0"), ("x-b3-flags", "1")]), continued("01"));
        assert_eq!(multi(&[("x-b3-parentspanid", SPAN)]), continued("00"));
        assert_eq!(multi(&[("x-b3-sampled", "2")]), new("00"));
        assert_eq!(multi(&[("x-b3-parentspanid", "1")]), new("00"));
        assert_eq!(multi(&[("x-b3-spanid", SPAN)]), new("00"), "two of them");
        assert_eq!(w3c_of(&[("x-b3-sampled", "1")]), new("01"));
        assert!(is_new(&ids[..1]) && is_new(&ids[1..]));
    }

    #[test]
    fn only_who_is_trusted_is_believed_and_what_others_say_is_removed() {
        let fields = [("b3", "1"), ("X_B3_TraceId", TRACE), ("traceparent", "00"), ("b4", "1")];
        assert_eq!(sent(&[], &fields), [("b4".to_owned(), "1".to_owned())]);
        let text = format!("{TRACE}-{SPAN}-1");
        for (trust, is_trusted, expected) in [
            (TraceTrust::TrustedProxies, true, true),
            (TraceTrust::TrustedProxies, false, false),
            (TraceTrust::Everyone, false, true),
            (TraceTrust::Nobody, true, false),
        ] {
            let tracing = tracing(&ALL, trust, Share::ZERO);
            let headers = map(&[("b3", &text)]);
            let context = TraceContext::of(&tracing, &headers, is_trusted, &REQUEST, || 7);
            assert_eq!(context.trace_id != NEW, expected, "{trust:?}");
            assert_eq!((context.sampled, context.parent.is_some()), (expected, expected));
        }
    }

    #[test]
    fn a_request_id_that_is_no_trace_id_is_replaced() {
        let tracing = tracing(&ALL, TraceTrust::Nobody, Share::WHOLE);
        for id in ["a", "00000000000000000000000000000000", "0123456789abcdef0123456789abcdeg"] {
            let id = HeaderValue::from_static(id);
            let headers = HeaderMap::new();
            let context = TraceContext::of(&tracing, &headers, true, &id, || 5);
            assert_eq!(context.trace_id, 5 << 64 | 5);
            let context = TraceContext::of(&tracing, &headers, true, &id, || 0);
            assert_eq!((context.trace_id, context.span_id), (1, 1), "0 is no id");
        }
    }

    #[test]
    fn a_share_of_new_traces_is_sampled() {
        let quarter = Share::per_million(250_000);
        let sampled = (1..=10_000u128).filter(|id| is_sampled(*id << 40, quarter)).count();
        assert!((2300..2700).contains(&sampled), "{sampled}");
        assert!((1..1000).all(|id| is_sampled(id, Share::WHOLE) && !is_sampled(id, Share::ZERO)));
    }

    /// Texts that are nearly contexts, and any others.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            "[0f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-0[0-9](-x)?",
            "([0-9a-fA-F]{32}|[0-9a-f]{16})-[0-9a-f]{16}(-[01d](-[0-9a-f]{16})?)?",
            "[0-9a-f]{16}|[0-9a-f]{32}|[01d]|true|false",
            "[a-z]=[ -~]{0,9}(,[a-z]=[ -~]{0,9}){0,40}",
            "[ -~]{0,60}",
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_nothing_makes_it_fail(
            fields in proptest::collection::vec((0..KNOWN.len(), text()), 0..6),
            format in 0..ALL.len(),
            random: u64,
        ) {
            let tracing = tracing(&ALL[format..=format], TraceTrust::Everyone, Share::ZERO);
            let fields: Vec<(&str, &str)> =
                fields.iter().map(|(name, text)| (KNOWN[*name].as_str(), &**text)).collect();
            let mut headers = map(&fields);
            let first = TraceContext::of(&tracing, &headers, true, &REQUEST, || random);
            prop_assert!(first.trace_id != 0 && first.span_id != 0);
            first.write(&mut headers);
            let other = HeaderValue::from_static("other");
            let next = TraceContext::of(&tracing, &headers, true, &other, || 1);
            prop_assert_eq!((next.trace_id, next.sampled), (first.trace_id, first.sampled));
            prop_assert_eq!(next.parent, Some(first.span_id));
            if ALL[format] == TraceFormat::W3c {
                prop_assert_eq!(next.state, first.state);
            }
        }

        #[test]
        fn a_context_with_a_wrong_byte_begins_a_new_trace(
            at in 0..55usize, byte in "[g-zG-Z_ .+]"
        ) {
            let mut text = format!("00-{TRACE}-{SPAN}-01");
            text.replace_range(at..=at, &byte);
            prop_assert!(is_new(&[("traceparent", &text)]), "{}", text);
            let mut text = format!("{TRACE}-{SPAN}-1-{SPAN}");
            text.replace_range(at..=at, &byte);
            prop_assert!(is_new(&[("b3", &text)]), "{}", text);
        }
    }
}
