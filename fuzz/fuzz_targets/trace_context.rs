//! Whatever a peer says about traces, what is written for the next hop is a context that is read back as it was meant.
#![no_main]

use gateway::config::{Share, TraceFormat, TraceTrust, Tracing};
use gateway::http::trace_context::TraceContext;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 8] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
];

fuzz_target!(|fields: Vec<(u8, &[u8])>| {
    let mut headers = HeaderMap::new();
    for (name, value) in fields.into_iter().take(16) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            let name = NAMES[usize::from(name) % NAMES.len()];
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let id = HeaderValue::from_static("none");
    for format in [TraceFormat::W3c, TraceFormat::B3, TraceFormat::B3Multi] {
        let tracing =
            Tracing { propagate: vec![format], trust: TraceTrust::Everyone, sample: Share::ZERO };
        let mut headers = headers.clone();
        let context = TraceContext::of(&tracing, &headers, false, &id, || 2);
        assert!(context.trace_id != 0 && context.span_id != 0);
        context.write(&mut headers);
        let sent = headers.clone();
        let next = TraceContext::of(&tracing, &headers, false, &id, || 2);
        assert_eq!(next.trace_id, context.trace_id);
        next.write(&mut headers);
        // The next hop differs from this one only in where it comes from.
        for name in ["traceparent", "tracestate", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"] {
            assert_eq!(sent.get(name), headers.get(name), "{name}");
        }
    }
});
