//! Text of clients in a line of a log: nothing that they send ends a line, a string or a field, or moves a terminal.

/// Bytes of one value that are written down.
pub const VALUE_BYTES_MAX: usize = 4096;
/// What stands behind a value that was longer.
const CUT: &[u8] = b"...";
const DIGITS: [u8; 16] = *b"0123456789abcdef";

/// Writes `value` between quotes, as JSON. What is no UTF-8 is written as U+FFFD.
pub fn json(value: &[u8], out: &mut Vec<u8>) {
    let (value, rest) = cut(value);
    out.push(b'"');
    if value.iter().all(|byte| is_plain(*byte)) {
        out.extend_from_slice(value);
    } else {
        for chunk in value.utf8_chunks() {
            chunk.valid().chars().for_each(|character| json_character(character, out));
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Writes `value` for a template: printable ASCII as it is but for quotes and backslashes, every other byte as `\xNN`.
pub fn text(value: &[u8], out: &mut Vec<u8>) {
    let (value, rest) = cut(value);
    if value.iter().all(|byte| is_plain(*byte)) {
        out.extend_from_slice(value);
    } else {
        for byte in value {
            match byte {
                byte if is_plain(*byte) => out.push(*byte),
                byte => out.extend_from_slice(&[b'\\', b'x', digit(byte >> 4), digit(*byte)]),
            }
        }
    }
    out.extend_from_slice(rest);
}

fn json_character(character: char, out: &mut Vec<u8>) {
    match character {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        // Control characters, and those that turn the direction of writing or end a line for some readers.
        '\u{0}'..='\u{1f}'
        | '\u{7f}'..='\u{9f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => {
            let code = character as u32;
            let nibble = |shift: u32| digit((code >> shift) as u8);
            out.extend_from_slice(b"\\u");
            out.extend([12, 8, 4, 0].map(nibble));
        }
        other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

fn digit(byte: u8) -> u8 {
    DIGITS.get(usize::from(byte & 0xf)).copied().unwrap_or(b'0')
}

fn cut(value: &[u8]) -> (&[u8], &'static [u8]) {
    match value.get(..VALUE_BYTES_MAX) {
        Some(begin) if value.len() > VALUE_BYTES_MAX => (begin, CUT),
        _ => (value, b""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: fn(&[u8], &mut Vec<u8>), value: &[u8]) -> String {
        let mut out = Vec::new();
        write(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_could_forge_a_line_is_escaped() {
        let evil = "a\"}\r\n{\"b\\\u{1b}[31m\u{85}\u{202e}é".as_bytes();
        assert_eq!(written(json, evil), r#""a\"}\u000d\u000a{\"b\\\u001b[31m\u0085\u202eé""#);
        assert_eq!(
            written(text, evil),
            r"a\x22}\x0d\x0a{\x22b\x5c\x1b[31m\xc2\x85\xe2\x80\xae\xc3\xa9"
        );
        assert_eq!(written(json, b"a\xffb"), "\"a\u{fffd}b\"");
    }

    #[test]
    fn long_values_are_cut() {
        let long = vec![b'a'; VALUE_BYTES_MAX + 1];
        assert_eq!(written(json, &long).len(), VALUE_BYTES_MAX + 2 + CUT.len());
        assert!(written(text, &long).ends_with("a..."));
        assert!(!written(text, &long[1..]).ends_with("..."));
    }

    proptest! {
        #[test]
        fn json_is_read_as_what_it_was(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let written = written(json, &value);
            prop_assert!(!written.chars().any(char::is_control));
            let read: String = serde_json::from_str(&written).unwrap();
            prop_assert_eq!(read, String::from_utf8_lossy(&value));
        }

        #[test]
        fn text_is_printable_and_can_be_undone(
            value in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let written = written(text, &value);
            prop_assert!(written.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"'));
            let mut parts = written.split("\\x");
            let mut undone = parts.next().unwrap().as_bytes().to_vec();
            for part in parts {
                undone.push(u8::from_str_radix(&part[..2], 16).unwrap());
                undone.extend(part[2..].bytes());
            }
            prop_assert_eq!(undone, value);
        }
    }
}
