//! No path or host makes the table panic, and what it routes has no segment that a normalizer would remove.
#![no_main]

use std::sync::LazyLock;

use gateway::config::parse;
use gateway::route::{Refused, Table};
use http::Method;
use libfuzzer_sys::fuzz_target;

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let text = "
listen: [{address: 127.0.0.1:80}]
upstreams: {u: {endpoints: [echo]}}
routes:
  - {match: {path: '/{rest*}'}, upstream: u}
  - {match: {path: '/a/{b}/c', methods: [GET]}, upstream: u}
  - {match: {path: '/a/{b}/{c*}'}, upstream: u}
  - {match: {host: h, path: '/a/b', methods: [PUT]}, upstream: u}
";
    Table::new(&parse("fuzz.yaml", text).expect("a valid configuration").routes)
});

fuzz_target!(|input: (&str, &str)| {
    let (host, path) = input;
    match TABLE.find(&Method::GET, Some(host), path) {
        Ok(_) => {
            let decoded = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/");
            let mut segments = decoded.split('/').skip(1).peekable();
            while let Some(segment) = segments.next() {
                assert!(segment != "." && segment != "..", "{path:?}");
                assert!(!segment.is_empty() || segments.peek().is_none(), "{path:?}");
            }
            assert!(!path.contains('\\') && !path.contains('\0'));
        }
        Err(refused) => assert_eq!(refused, Refused::BadPath, "{path:?}"),
    }
});
