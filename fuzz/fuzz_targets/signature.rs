//! No header fields make the reader of HTTP Message Signatures panic, and a base that it builds has one line a
//! component and the parameters as the last.
#![no_main]

use gateway::auth::signature_base;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let (described, signature, field) = input;
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("example.com"));
    for (name, bytes) in [("signature-input", described), ("signature", signature), ("a", field)] {
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            headers.append(name, value);
        }
    }
    if let Some(base) = signature_base(&headers) {
        let last = base.lines().last().unwrap_or_default();
        assert!(last.starts_with("\"@signature-params\": ("), "{base:?}");
        assert!(base.lines().all(|line| line.starts_with('"')), "{base:?}");
    }
});
