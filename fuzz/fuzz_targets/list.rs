//! No list makes the reader panic, whatever the pieces are in which it arrives, and what was read is read again.
#![no_main]

use std::io::BufReader;

use gateway::base::prefix::display;
use gateway::rules::parse::{Errors, REASON_CHARS_MAX, read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (items, errors) = all(bytes, 1 << 16);
    assert_eq!(all(bytes, 3), (items.clone(), errors.clone()));
    let lines = bytes.split(|byte| *byte == b'\n').count() as u64;
    assert!(errors.total <= lines && errors.first.len() as u64 <= errors.total);
    assert!(errors.first.iter().all(|error| (1..=lines).contains(&error.line)));
    for (line, prefix, reason) in items {
        assert!((1..=lines).contains(&line));
        assert!(reason.chars().count() <= REASON_CHARS_MAX && !reason.contains(char::is_control));
        // Behind a comment sign a reason is never an entry.
        let text = format!("{prefix} # {reason}");
        let (again, errors) = all(text.as_bytes(), 1 << 16);
        assert_eq!((again.len(), errors.total), (1, 0), "{text}");
        assert_eq!(again[0].1, prefix, "{text}");
    }
});

fn all(bytes: &[u8], capacity: usize) -> (Vec<(u64, String, String)>, Errors) {
    let mut items = Vec::new();
    let errors = read(BufReader::with_capacity(capacity, bytes), |item| {
        items.push((item.line, display(&item.prefix), item.reason.to_owned()));
    });
    (items, errors.expect("memory can be read"))
}
