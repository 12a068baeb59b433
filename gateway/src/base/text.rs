//! Text from outside on its way to a terminal, a log or the store.

/// Whether a terminal does something else with it than to show it: move the cursor, turn the line around.
pub fn is_hidden(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

/// Bytes of a name of a consumer, plan, role, scope, group or tenant.
pub const NAME_MAX_BYTES: usize = 128;

/// Whether `text` is a name that a header field can list: no space, comma, quote or control character in it.
pub fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_graphic() && !b",;\"'\\".contains(&byte);
    (1..=NAME_MAX_BYTES).contains(&text.len()) && text.bytes().all(good)
}

/// The first `max_chars` characters, what cannot be seen written as Rust would escape it.
pub fn excerpt(text: &str, max_chars: usize) -> String {
    let shown = text.chars().take(max_chars);
    let mut excerpt: String = shown
        .map(|c| if is_hidden(c) { c.escape_unicode().to_string() } else { c.to_string() })
        .collect();
    if text.chars().nth(max_chars).is_some() {
        excerpt.push_str("...");
    }
    excerpt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_moves_no_cursor() {
        assert_eq!(excerpt("a\tb\u{202e}c \u{e9}", 9), "a\\u{9}b\\u{202e}c \u{e9}");
        assert_eq!(excerpt("abcdef", 3), "abc...");
        assert_eq!(excerpt("abc", 3), "abc");
    }
}
