//! A chunked body is read as the grammar, read slowly, says; and pieces make no difference.
#![no_main]

use gateway::http::h1::chunked::{Chunked, Step};
use libfuzzer_sys::fuzz_target;

/// Content and the number of bytes up to the trailers: `Err` if refused, `Ok(None)` if not whole.
type Read = Result<Option<(Vec<u8>, usize)>, ()>;

fn decoded(input: &[u8], piece: usize) -> Read {
    let mut chunked = Chunked::default();
    let (mut content, mut at, mut end) = (Vec::new(), 0, 0);
    while end < input.len() {
        end = (end + piece).min(input.len());
        loop {
            let (used, step) = chunked.step(&input[at..end]).map_err(drop)?;
            at += used;
            match step {
                Step::Data(bytes) => {
                    assert!(bytes > 0);
                    content.extend_from_slice(&input[at..at + bytes]);
                    at += bytes;
                }
                Step::Trailers => return Ok(Some((content, at))),
                Step::More => break,
            }
        }
    }
    Ok(None)
}

/// The same for whole input of small chunks, without states.
fn reference(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut content, mut at) = (Vec::new(), 0);
    loop {
        let line = at + input[at..].windows(2).position(|pair| pair == b"\r\n")?;
        let text = &input[at..line];
        let (digits, extension) =
            text.split_at(text.iter().position(|b| *b == b';').unwrap_or(text.len()));
        let valid = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
        let is_plain = |byte: &u8| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f;
        if !valid || !extension.iter().all(is_plain) {
            return None;
        }
        let length = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        at = line + 2;
        if length == 0 {
            return Some((content, at));
        }
        let end = at.checked_add(length)?;
        content.extend_from_slice(input.get(at..end)?);
        if input.get(end..end + 2)? != b"\r\n" {
            return None;
        }
        at = end + 2;
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = decoded(bytes, bytes.len().max(1));
    assert_eq!(decoded(bytes, usize::from(piece).max(1)), whole);
    let whole = whole.ok().flatten();
    // Long extensions are refused for what they cost.
    if bytes.len() < 4096 || whole.is_some() {
        assert_eq!(whole, reference(bytes));
    }
});
