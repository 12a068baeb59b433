//! No text makes the parser of expressions panic, whatever the pattern of the route.
#![no_main]

use std::sync::LazyLock;

use gateway::config::{PathPattern, Segment, read_expression};
use libfuzzer_sys::fuzz_target;

static PATTERN: LazyLock<PathPattern> = LazyLock::new(|| PathPattern {
    segments: vec![Segment::Literal("a".to_owned()), Segment::Capture("id".to_owned())],
    rest: Some("rest".to_owned()),
});

fuzz_target!(|text: &str| {
    if let Some(expression) = read_expression(text, &PATTERN) {
        // What was read is the same however often it is read.
        assert_eq!(read_expression(text, &PATTERN), Some(expression));
    }
});
