//! The one normal form of a path, which route, auth and service all see.
//!
//! Percent-encoded letters, digits and `-._~` are decoded and hexadecimal digits are in capitals (RFC 3986, section
//! 6.2.2), and what no path may have as it is becomes percent-encoded. Refused is what servers read in more than one
//! way: dot segments, empty segments, backslashes and control characters, plain or encoded, a `%` without two
//! hexadecimal digits, and bytes longer than UTF-8 would have them. `%2F` counts as a slash for this, and the
//! parameters behind a `;` hide neither a dot segment nor an empty one.

use std::borrow::Cow;

/// A path in its normal form. Only [`Path::of`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    text: Cow<'a, str>,
    /// Whether anything is percent-encoded.
    encoded: bool,
    slashes: bool,
    parameters: bool,
}

/// How a server may read a path other than as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// `%2F` as a slash.
    pub slashes: bool,
    /// Without `;` and what follows it in a segment.
    pub parameters: bool,
}

impl<'a> Path<'a> {
    /// The normal form of `path`, the part of a request's target before the `?`; `None` where it has none.
    pub fn of(path: &'a str) -> Option<Self> {
        let mut rest = path.strip_prefix('/')?.as_bytes();
        let mut normal =
            Self { text: path.into(), encoded: false, slashes: false, parameters: false };
        let mut writer = Writer { path: path.as_bytes(), copied: 0, changed: Vec::new() };
        let mut segment = Segment::Empty;
        while let Some((first, below)) = rest.split_first() {
            let class = class(*first);
            // Nearly every byte is one of these.
            if class == Class::Text {
                segment = if segment == Segment::Parameters { segment } else { Segment::Text };
                rest = below;
                continue;
            }
            let (byte, below) = match (class, below) {
                (Class::Percent, [high, low, below @ ..]) => {
                    (nibble(*high)? << 4 | nibble(*low)?, below)
                }
                (Class::Percent | Class::Bad, _) => return None,
                _ => (*first, below),
            };
            segment = segment.then(byte)?;
            if class == Class::Percent || class == Class::Other {
                if is_overlong(byte, below) {
                    return None;
                }
                normal.encoded |= writer.write(rest, below, byte);
                normal.slashes |= byte == b'/';
            }
            normal.parameters |= byte == b';';
            rest = below;
        }
        if matches!(segment, Segment::Dot | Segment::DotDot) {
            return None;
        }
        if let Some(changed) = writer.finish() {
            normal.text = String::from_utf8(changed).ok()?.into();
        }
        Some(normal)
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The text, if it is another one than was given.
    pub fn into_changed(self) -> Option<String> {
        match self.text {
            Cow::Borrowed(_) => None,
            Cow::Owned(text) => Some(text),
        }
    }

    /// Whether [`decoded`] would change any of its segments.
    pub fn is_encoded(&self) -> bool {
        self.encoded
    }

    /// What in it some servers read in another way.
    pub fn ambiguity(&self) -> Reading {
        Reading { slashes: self.slashes, parameters: self.parameters }
    }

    /// The path as such a server reads it.
    pub fn read(&self, reading: Reading) -> Option<Path<'static>> {
        let mut text = self.text.replace("%3B", ";");
        if reading.slashes {
            text = text.replace("%2F", "/");
        }
        if reading.parameters {
            let plain = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
            text = text.split('/').map(plain).collect::<Vec<_>>().join("/");
        }
        let Path { text, encoded, slashes, parameters } = Path::of(&text)?;
        Some(Path { text: text.into_owned().into(), encoded, slashes, parameters })
    }
}

/// The bytes that a segment, or a part of a query, stands for. What is no escape stays as it is.
pub fn decoded(segment: &str) -> Cow<'_, [u8]> {
    let bytes = segment.as_bytes();
    if !bytes.contains(&b'%') {
        return bytes.into();
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, below)) = rest.split_first() {
        let escape = match rest {
            [b'%', high, low, below @ ..] => nibble(*high).zip(nibble(*low)).zip(Some(below)),
            _ => None,
        };
        let (byte, below) = match escape {
            Some(((high, low), below)) => (high << 4 | low, below),
            None => (*first, below),
        };
        decoded.push(byte);
        rest = below;
    }
    decoded.into()
}

/// The changed path, as far as it was written.
struct Writer<'a> {
    path: &'a [u8],
    /// Bytes of `path` that are written.
    copied: usize,
    changed: Vec<u8>,
}

impl Writer<'_> {
    /// Writes the byte that stands at the beginning of `rest` and before `below`. Says whether it is percent-encoded.
    fn write(&mut self, rest: &[u8], below: &[u8], byte: u8) -> bool {
        let from = self.path.len() - rest.len();
        let length = rest.len() - below.len();
        let escape = [b'%', digit(byte >> 4), digit(byte & 0xf)];
        let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let written = if unreserved { &[byte][..] } else { &escape[..] };
        if rest.get(..length) != Some(written) {
            self.changed.extend_from_slice(self.path.get(self.copied..from).unwrap_or_default());
            self.changed.extend_from_slice(written);
            self.copied = from + length;
        }
        !unreserved
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        if self.copied == 0 {
            return None;
        }
        self.changed.extend_from_slice(self.path.get(self.copied..).unwrap_or_default());
        Some(self.changed)
    }
}

/// What a segment consists of so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Segment {
    Empty,
    Dot,
    DotDot,
    /// Nothing but parameters.
    Parameters,
    Text,
}

impl Segment {
    /// With one more byte, as it decodes; `None` where the path cannot be read in one way only.
    fn then(self, byte: u8) -> Option<Self> {
        Some(match (byte, self) {
            (b'\\' | 0..0x20 | 0x7f, _) => return None,
            (b'/', Self::Text) => Self::Empty,
            (b'/', _) => return None,
            (b'.', Self::Empty) => Self::Dot,
            (b'.', Self::Dot) => Self::DotDot,
            // Some servers cut parameters off before they look for dot segments and empty ones.
            (b';', Self::Dot | Self::DotDot) => return None,
            (b';', Self::Empty) | (_, Self::Parameters) => Self::Parameters,
            _ => Self::Text,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Is itself, and makes a segment an ordinary one.
    Text,
    /// Is itself, and matters: `/`, `.`, `;`.
    Mark,
    Percent,
    /// No path may have it as it is.
    Other,
    Bad,
}

const fn class(byte: u8) -> Class {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => Class::Text,
        b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@' => {
            Class::Text
        }
        b'/' | b'.' | b';' => Class::Mark,
        b'%' => Class::Percent,
        b'\\' | b'?' | b'#' | 0..=0x20 | 0x7f => Class::Bad,
        _ => Class::Other,
    }
}

/// Whether `byte` begins a character in more bytes than UTF-8 has for it: some decoders take `%C0%AE` for a dot.
fn is_overlong(byte: u8, below: &[u8]) -> bool {
    let next = || match below {
        [b'%', high, low, ..] => nibble(*high).zip(nibble(*low)).map(|(high, low)| high << 4 | low),
        _ => None,
    };
    match byte {
        0xc0 | 0xc1 => true,
        0xe0 => next().is_some_and(|next| (0x80..0xa0).contains(&next)),
        0xf0 => next().is_some_and(|next| (0x80..0x90).contains(&next)),
        _ => false,
    }
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(path: &str) -> Option<String> {
        Path::of(path).map(|path| path.as_str().to_owned())
    }

    #[test]
    fn paths_that_could_be_read_in_two_ways_have_no_normal_form() {
        let bad = [
            "",
            "*",
            "a",
            "/..",
            "/.",
            "/a/../b",
            "/a/./b",
            "/a/%2e%2E/b",
            "/a/.%2e",
            "/a/%2e",
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/%2fa",
            "/a%2f%2fb",
            "/a/..%2fb",
            "/a%2f..",
            "/a\\b",
            "/a%5Cb",
            "/a%00",
            "/a\0",
            "/a%0d%0ab",
            "/a\n",
            "/%7f",
            "/a/..;x/b",
            "/a/.;",
            "/;/a",
            "/a/;x=1/b",
            "/a/..%3bx/b",
            "/a b",
            "/%",
            "/%2",
            "/%zz",
            "/a%u002e",
            "/a?b",
            "/a#b",
            "/%c0%ae",
            "/%c1x",
            "/%e0%80%ae",
            "/%f0%80%80%ae",
            "/a%2f.%2fb",
            "/%2e%2e;/a",
        ];
        for path in bad {
            assert_eq!(of(path), None, "{path:?}");
        }
    }

    #[test]
    fn every_spelling_of_a_path_has_one_normal_form() {
        let same = [
            "/",
            "/a/",
            "/...",
            "/a/..b",
            "/.well-known/x",
            "/a%2Fb",
            "/a%2F",
            "/a;x=1/b",
            "/;jsessionid=1",
            "/%252e%252E/",
            "/a..",
            "/a.",
            "/a/.b./c",
            "/users/@me",
            "/a%40b",
            "/a%3Bb",
            "/A-._~!$&'()*+,;=:@",
            "/a+b",
            "/a%2Bb",
        ];
        for path in same {
            assert_eq!(of(path).as_deref(), Some(path));
            assert_eq!(Path::of(path).unwrap().into_changed(), None, "{path}");
        }
        for (path, normal) in [
            ("/%41%7e%2D", "/A~-"),
            ("/a%2eb/%2e%2e%2e", "/a.b/..."),
            ("/a%2fb%c3%a9", "/a%2Fb%C3%A9"),
            ("/caf\u{e9}/x", "/caf%C3%A9/x"),
            ("/{a}|\"^", "/%7Ba%7D%7C%22%5E"),
            ("/%e0%a0%80x%61", "/%E0%A0%80xa"),
        ] {
            assert_eq!(of(path).as_deref(), Some(normal), "{path}");
        }
    }

    #[test]
    fn what_servers_read_in_another_way_is_known() {
        let path = |text| Path::of(text).unwrap();
        let both = Reading { slashes: true, parameters: true };
        let slashes = Reading { slashes: true, parameters: false };
        let parameters = Reading { slashes: false, parameters: true };
        let read = |text, reading| path(text).read(reading).map(|path| path.as_str().to_owned());
        assert_eq!(path("/a%2fb").ambiguity(), slashes);
        assert_eq!(path("/a%3bb").ambiguity(), parameters);
        assert_eq!(path("/a;b%2F").ambiguity(), both);
        assert!(path("/a%40b").is_encoded() && !path("/%41").is_encoded());
        assert_eq!(read("/a%2Fb;c/d", slashes).unwrap(), "/a/b;c/d");
        assert_eq!(read("/a%2Fb;c/d%3Be", parameters).unwrap(), "/a%2Fb/d");
        assert_eq!(read("/a;x%2Fb", parameters).unwrap(), "/a");
        assert_eq!(read("/a;x%2Fb", both).unwrap(), "/a/b");
        assert_eq!(decoded("a%40%2Fb%"), b"a@/b%".as_slice());
    }

    /// Bytes that matter, in every spelling.
    fn spelled() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            "[a/.;%\\\\]",
            "[/a]",
            proptest::sample::select(vec![
                "%2e", "%2F", "%3b", "%41", "%5c", "%25", "%c0", "\u{e9}"
            ])
            .prop_map(str::to_owned),
        ];
        proptest::collection::vec(part, 0..12).prop_map(|parts| format!("/{}", parts.concat()))
    }

    proptest! {
        #[test]
        fn a_normal_form_is_its_own_and_means_the_same(path in spelled()) {
            if let Some(normal) = Path::of(&path) {
                let text = normal.as_str();
                let again = Path::of(text).expect("a normal form has one");
                prop_assert_eq!(again.clone().into_changed(), None);
                prop_assert_eq!(again.ambiguity(), normal.ambiguity());
                prop_assert_eq!(decoded(text), decoded(&path));
            }
        }

        #[test]
        fn no_reading_of_a_normal_form_has_dot_segments_or_empty_ones(path in spelled()) {
            let Some(normal) = Path::of(&path) else { return Ok(()) };
            for bits in 0..4 {
                let reading = Reading { slashes: bits & 1 != 0, parameters: bits & 2 != 0 };
                let read = normal.read(reading);
                let Some(read) = read else { return Err(TestCaseError::fail(path)) };
                let text = String::from_utf8_lossy(&decoded(read.as_str())).into_owned();
                let mut segments = text.split('/').skip(1).peekable();
                while let Some(segment) = segments.next() {
                    prop_assert!(segment != "." && segment != "..", "{path:?}: {text:?}");
                    let empty = segment.is_empty() && segments.peek().is_some();
                    prop_assert!(!empty, "{path:?}: {text:?}");
                }
                prop_assert!(!text.contains('\\'));
            }
        }

        #[test]
        fn nothing_makes_it_panic(path: String) {
            if let Some(path) = Path::of(&path) {
                let _ = path.read(Reading { slashes: true, parameters: true });
            }
        }
    }
}
