//! A head is accepted only if the grammar, read slowly, accepts it; and pieces make no difference.
#![no_main]

use bytes::Bytes;
use gateway::http::h1::head::{Limits, Scan, Section, answer, request};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { head_bytes: 4096, header_count: 20, target_bytes: 256 };

/// Where the section ends, looked for in pieces of this size; `None` if it is refused or not whole.
fn found(section: Section, bytes: &[u8], piece: usize) -> Option<Bytes> {
    let mut scan = Scan::new(section);
    let mut end = 0;
    while end < bytes.len() {
        end = (end + piece).min(bytes.len());
        if let Some(found) = scan.find(&bytes[..end], &LIMITS).ok()? {
            return Some(Bytes::copy_from_slice(&bytes[found]));
        }
    }
    None
}

fn is_token(text: &[u8]) -> bool {
    let is_symbol = |byte: &u8| b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || is_symbol(byte))
}

fn lines(head: &[u8]) -> Vec<&[u8]> {
    let text = head.strip_suffix(b"\r\n\r\n").expect("the empty line");
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    lines
}

/// What every field must be, and how many say something about the length.
fn check_fields(lines: &[&[u8]]) {
    let (mut lengths, mut codings) = (0, 0);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').expect("a colon");
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        assert!(is_token(name), "{line:?}");
        assert!(
            value.iter().all(|byte| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f),
            "{line:?}"
        );
        if name.eq_ignore_ascii_case(b"content-length") {
            lengths += 1;
            assert!(!value.is_empty() && value.iter().all(u8::is_ascii_digit), "{line:?}");
        }
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            codings += 1;
            assert!(value.eq_ignore_ascii_case(b"chunked"), "{line:?}");
        }
    }
    assert!(lengths + codings <= 1, "{lines:?}");
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    for section in [Section::Request, Section::Answer] {
        let head = found(section, bytes, usize::from(piece).max(1));
        assert_eq!(head, found(section, bytes, bytes.len().max(1)));
        let Some(head) = head else { continue };
        let accepted = match section {
            Section::Request => request(&head, &LIMITS).map(|head| {
                assert!(head.parts.headers.len() <= LIMITS.header_count);
            }),
            _ => answer(&head, false).map(drop),
        };
        if accepted.is_ok() {
            let lines = lines(&head);
            assert!(!head.iter().any(|byte| *byte == 0), "{head:?}");
            check_fields(&lines[1..]);
        }
    }
});
