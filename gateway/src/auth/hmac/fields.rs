//! Header fields as RFC 9421 reads them, and structured fields read strictly: a key that is there twice is refused,
//! where the format itself would let the last one win.

use http::{HeaderMap, HeaderName};
use sfv::visitor::{DictionaryVisitor, EntryVisitor, Ignored};
use sfv::{Dictionary, KeyRef, Parser};

/// All lines of a field as one (RFC 9421, section 2.1); `None` if there is none or it has more than visible ASCII.
pub(super) fn combined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut text = String::new();
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    for (index, line) in lines.enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        text.push_str(line.to_str().ok()?.trim_matches([' ', '\t']));
    }
    Some(text)
}

/// A dictionary in which each key is there once.
pub(super) fn dictionary(text: &str) -> Option<Dictionary> {
    Parser::new(text).parse_dictionary_with_visitor(Once(Vec::new())).ok()?;
    Parser::new(text).parse().ok()
}

/// Keys of a dictionary; nobody sends more signatures or digests.
const KEYS_MAX: usize = 16;

struct Once<'de>(Vec<&'de str>);

#[derive(Debug, thiserror::Error)]
#[error("a key is there twice, or there are too many")]
struct Twice;

impl<'de> DictionaryVisitor<'de> for Once<'de> {
    type Out = ();
    type Error = Twice;

    fn entry(&mut self, key: &'de KeyRef) -> Result<impl EntryVisitor<'de>, Twice> {
        if self.0.contains(&key.as_str()) || self.0.len() == KEYS_MAX {
            return Err(Twice);
        }
        self.0.push(key.as_str());
        Ok(Ignored)
    }

    fn finish(self) -> Result<(), Twice> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn lines_are_trimmed_and_joined() {
        let mut headers = HeaderMap::new();
        let name = HeaderName::from_static("a");
        assert_eq!(combined(&headers, &name), None);
        headers.append("a", HeaderValue::from_static(" b\t"));
        headers.append("a", HeaderValue::from_static(""));
        headers.append("a", HeaderValue::from_static("c"));
        assert_eq!(combined(&headers, &name).unwrap(), "b, , c");
        headers.append("a", HeaderValue::from_bytes(b"\xe4").unwrap());
        assert_eq!(combined(&headers, &name), None);
    }

    #[test]
    fn a_key_is_there_once() {
        assert!(dictionary("a=1, b=2").is_some());
        assert!(dictionary("a=1, b=2, a=1").is_none());
        let many: Vec<String> = (0..=KEYS_MAX).map(|number| format!("k{number}")).collect();
        assert!(dictionary(&many.join(",")).is_none());
        assert!(dictionary(&many[1..].join(",")).is_some());
    }
}
