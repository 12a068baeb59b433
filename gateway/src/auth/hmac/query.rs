//! One parameter of a query, as RFC 9421 (section 2.2.8) reads it: decoded as a form, and encoded again in one way.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The value of the parameter whose name is encoded as `name`; `None` unless it is there exactly once.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    let mut found = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (one, value) = pair.split_once('=').unwrap_or((pair, ""));
        if again(one)? != name {
            continue;
        }
        if found.is_some() {
            return None;
        }
        found = Some(again(value)?);
    }
    found
}

/// Decoded and encoded again; `None` for what is no UTF-8 or has a `%` without two hexadecimal digits.
fn again(text: &str) -> Option<String> {
    let mut encoded = String::with_capacity(text.len());
    for byte in decoded(text)?.bytes() {
        if byte.is_ascii_alphanumeric() || b"*-._".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _written = write!(encoded, "%{byte:02X}");
        }
    }
    Some(encoded)
}

fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| {
                    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
                };
                digit(rest.next()?)? << 4 | digit(rest.next()?)?
            }
            _ => byte,
        });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_of_the_rfc() {
        // RFC 9421, section 2.2.8.
        let query = "param=value&foo=bar&baz=batman&qux=";
        assert_eq!(parameter(query, "baz").as_deref(), Some("batman"));
        assert_eq!(parameter(query, "qux").as_deref(), Some(""));
        assert_eq!(parameter(query, "param").as_deref(), Some("value"));
        let query = "var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace\
                     &fa%C3%A7ade%22%3A%20=something";
        assert_eq!(
            parameter(query, "var").as_deref(),
            Some("this%20is%20a%20big%0Amultiline%20value")
        );
        assert_eq!(parameter(query, "bar").as_deref(), Some("with%20plus%20whitespace"));
        assert_eq!(parameter(query, "fa%C3%A7ade%22%3A%20").as_deref(), Some("something"));
    }

    #[test]
    fn what_is_there_twice_or_not_at_all_is_no_parameter() {
        assert_eq!(parameter("a=1&a=2", "a"), None);
        assert_eq!(parameter("a=1&%61=2", "a"), None, "twice in another spelling");
        assert_eq!(parameter("", "a"), None);
        assert_eq!(parameter("a=%", "a"), None);
        assert_eq!(parameter("a=%zz", "a"), None);
        assert_eq!(parameter("a=%ff", "a"), None);
    }
}
