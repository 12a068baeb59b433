//! Lists of sources as people publish them: a prefix, address or range a line, with comments, with text behind it, or
//! as JSON lines.
//!
//! Every line that cannot be read is counted and the first hundred are explained; nothing is guessed, so host bits are
//! an error and so is a second address on a line. Knows nothing of files and of what the entries are for.

use std::borrow::Cow;
use std::io::{self, BufRead};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gateway_common::rule::Action;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde_json::Value;

use super::{address, entries};
use crate::base::prefix;
use crate::base::text::{excerpt, is_hidden};
use crate::base::time::UtcMillis;

/// A longer line is an error, and is not kept in memory (unit: bytes).
pub const LINE_BYTES_MAX: usize = 4096;
/// Lines that are explained; the others are counted.
pub const ERRORS_MAX: usize = 100;
/// What is kept of a reason (unit: characters).
pub const REASON_CHARS_MAX: usize = 200;

/// Longer than any prefix or range, so that a message never repeats a whole page.
const ENTRY_BYTES_MAX: usize = 100;
/// What is shown of a line (unit: characters).
const EXCERPT_CHARS: usize = 80;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The addresses that are IPv4 in IPv6's clothes: `::ffff:0:0/96`.
const MAPPED: std::ops::RangeInclusive<u128> = 0xffff_0000_0000..=0xffff_ffff_ffff;

/// One entry of a list. A range is as many as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// The line that it stands in, from 1.
    pub line: u64,
    /// Whose packets.
    pub prefix: IpNet,
    /// When the entry ends, which may have been.
    pub until: Option<UtcMillis>,
    /// The text behind the entry or the JSON field, without what a terminal would act on and at most
    /// [`REASON_CHARS_MAX`] long; empty for none.
    pub reason: &'a str,
    /// Whether a JSON line says that the prefix is not only denied but reset.
    pub resets: bool,
}

impl<'a> Item<'a> {
    /// As an entry of a list.
    pub fn entry(&self) -> entries::Entry<'a> {
        let Self { prefix, until, reason, resets, .. } = *self;
        entries::Entry { prefix, until, reason, resets }
    }
}

/// A line that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// Its number, from 1.
    pub line: u64,
    /// How it begins, control characters escaped.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Every line that cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// The first [`ERRORS_MAX`] of them.
    pub first: Vec<LineError>,
    /// All of them, counted.
    pub total: u64,
}

/// Reads a list and hands over its entries in their order. An error is one of `input`: what was read before it has
/// been handed over.
pub fn read(mut input: impl BufRead, mut each: impl FnMut(Item<'_>)) -> io::Result<Errors> {
    let mut reader = Reader::default();
    // The beginning of a line that `input` has not shown to its end.
    let mut begun = Vec::new();
    let mut too_long = false;
    loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            if too_long || !begun.is_empty() {
                reader.line(&begun, too_long, &mut each);
            }
            return Ok(reader.errors);
        }
        let mut rest = buffer;
        loop {
            if begun.is_empty()
                && let Some(after) = reader.bare(rest, &mut each)
            {
                rest = after;
                continue;
            }
            let Some((line, after)) = split_line(rest) else { break };
            rest = after;
            if begun.is_empty() {
                reader.line(line, line.len() > LINE_BYTES_MAX, &mut each);
                continue;
            }
            too_long |= keep(&mut begun, line);
            reader.line(&begun, too_long, &mut each);
            begun.clear();
            too_long = false;
        }
        too_long |= keep(&mut begun, rest);
        let read = buffer.len();
        input.consume(read);
    }
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// Adds what fits into a line; says whether something did not.
fn keep(begun: &mut Vec<u8>, more: &[u8]) -> bool {
    let room = LINE_BYTES_MAX - begun.len();
    begun.extend_from_slice(more.get(..room).unwrap_or(more));
    more.len() > room
}

#[derive(Default)]
struct Reader {
    line: u64,
    errors: Errors,
    /// The reason of the present line where it has to be cleaned; kept for its memory.
    cleaned: String,
}

impl Reader {
    /// A line that is a prefix and nothing else, as most are. Answers what follows it.
    fn bare<'b>(&mut self, bytes: &'b [u8], each: &mut impl FnMut(Item<'_>)) -> Option<&'b [u8]> {
        let (prefix, [b'\n', after @ ..] | [b'\r', b'\n', after @ ..]) = address::begin(bytes)?
        else {
            return None;
        };
        self.line += 1;
        each(Item { line: self.line, prefix, until: None, reason: "", resets: false });
        Some(after)
    }

    fn line(&mut self, bytes: &[u8], too_long: bool, each: &mut impl FnMut(Item<'_>)) {
        self.line += 1;
        let bytes = match bytes.strip_prefix(BYTE_ORDER_MARK) {
            Some(bytes) if self.line == 1 => bytes,
            _ => bytes,
        };
        let bytes = bytes.trim_ascii();
        let read = match bytes {
            _ if too_long => Err(format!("the line is longer than {LINE_BYTES_MAX} bytes")),
            [] | [b'#' | b';', ..] | [b'/', b'/', ..] => Ok(()),
            [b'{', ..] => self.json(bytes, each),
            [b'<', ..] => Err("this is HTML or XML, no list of prefixes".to_owned()),
            [b'['] | [b'[', b'{' | b'"', ..] => {
                Err("this is a JSON array: write an object a line, as `jq -c '.[]'` does"
                    .to_owned())
            }
            _ => self.plain(bytes, each),
        };
        if let Err(reason) = read {
            self.errors.total += 1;
            if self.errors.first.len() < ERRORS_MAX {
                let shown = bytes.get(..EXCERPT_CHARS * 4).unwrap_or(bytes);
                let text = excerpt(&String::from_utf8_lossy(shown), EXCERPT_CHARS);
                self.errors.first.push(LineError { line: self.line, text, reason });
            }
        }
    }

    fn plain(&mut self, bytes: &[u8], each: &mut impl FnMut(Item<'_>)) -> Result<(), String> {
        let (entry, rest) = split_entry(bytes);
        let (entry, rest) = match spaced_range(rest) {
            Some((end, rest)) => (Entry::range(entry, end)?, rest),
            None => (Entry::read(entry)?, rest),
        };
        let rest = rest.trim_ascii_start();
        if is_address_like(split_entry(rest).0) {
            return Err("two addresses: write a line for each, or `a-b` for a range".to_owned());
        }
        let text = String::from_utf8_lossy(rest);
        let text = text.trim_start_matches(['#', ';', '/', ' ', '\t']);
        self.hand_over(entry, (None, text, false), each);
        Ok(())
    }

    fn json(&mut self, bytes: &[u8], each: &mut impl FnMut(Item<'_>)) -> Result<(), String> {
        let object: Object<'_> = serde_json::from_slice(bytes).map_err(|error| {
            let error = excerpt(&error.to_string(), EXCERPT_CHARS);
            format!("this is no JSON object of a prefix: {error}")
        })?;
        if object.prefix.is_empty() {
            // The line at the end of a list that says when it was made.
            return match object.kind.as_deref() {
                Some("metadata") => Ok(()),
                _ => {
                    Err("there is no `prefix`, `cidr`, `network` or `ip` in this object".to_owned())
                }
            };
        }
        let entry = Entry::read(object.prefix.as_bytes())?;
        let reason = object.reason.or(object.sblid).unwrap_or_default();
        // Whatever others mean by their actions.
        let resets = object.action.as_ref().and_then(Value::as_str) == Some(Action::Reset.name());
        self.hand_over(entry, (object.until_utc_ms, &reason, resets), each);
        Ok(())
    }

    fn hand_over(
        &mut self,
        entry: Entry,
        (until, reason, resets): (Option<UtcMillis>, &str, bool),
        each: &mut impl FnMut(Item<'_>),
    ) {
        let reason = clean(reason, &mut self.cleaned);
        let line = self.line;
        match entry {
            Entry::Prefix(prefix) => each(Item { line, prefix, until, reason, resets }),
            Entry::Range(range) => {
                range.for_each(|prefix| each(Item { line, prefix, until, reason, resets }));
            }
        }
    }
}

/// What is used of a JSON line: those of Spamhaus (`cidr`, `sblid`), of `gateway deny list --json`, and their like.
#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow, default, alias = "cidr", alias = "network", alias = "ip")]
    prefix: Cow<'a, str>,
    #[serde(default)]
    until_utc_ms: Option<UtcMillis>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    action: Option<Value>,
    #[serde(default)]
    sblid: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

/// The entry at the start of a line and everything behind it.
fn split_entry(bytes: &[u8]) -> (&[u8], &[u8]) {
    let mut previous = 0;
    let end = bytes.iter().position(|byte| {
        let comment = *byte == b'/' && previous == b'/';
        previous = *byte;
        byte.is_ascii_whitespace() || matches!(byte, b'#' | b';') || comment
    });
    let end = match end {
        // The first of the two slashes belongs to the comment.
        Some(end) if bytes.get(end) == Some(&b'/') => end - 1,
        Some(end) => end,
        None => bytes.len(),
    };
    bytes.split_at_checked(end).unwrap_or((bytes, &[]))
}

/// The end of a range that is written with spaces, and what follows it.
fn spaced_range(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = rest.trim_ascii_start().strip_prefix(b"-")?;
    let (end, rest) = split_entry(rest.trim_ascii_start());
    is_address_like(end).then_some((end, rest))
}

/// Whether somebody meant an address here, even a wrong one. Neither `12:30:45` nor a hardware address is one.
fn is_address_like(bytes: &[u8]) -> bool {
    let count = |wanted| bytes.iter().filter(|byte| **byte == wanted).count();
    let known = |byte: &u8| byte.is_ascii_hexdigit() || b".:/-".contains(byte);
    let v6 = count(b':') >= 6 || bytes.windows(2).any(|two| two == b"::");
    (v6 || count(b'.') >= 3) && bytes.iter().all(known)
}

enum Entry {
    Prefix(IpNet),
    Range(Range),
}

impl Entry {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        if let Some(prefix) = address::read(bytes) {
            return Ok(Self::Prefix(prefix));
        }
        if let Some(at) = bytes.iter().position(|byte| *byte == b'-')
            && let Some((first, [b'-', last @ ..])) = bytes.split_at_checked(at)
            && is_address_like(first)
        {
            return Self::range(first, last);
        }
        let text = text_of(bytes)?;
        let error = match prefix::parse(text) {
            Ok(prefix) => return Ok(Self::Prefix(prefix)),
            Err(error) => error.to_string(),
        };
        Err(excerpt(&error, error.len()))
    }

    fn range(first: &[u8], last: &[u8]) -> Result<Self, String> {
        let address = |bytes| {
            let text = text_of(bytes)?;
            let address = text.parse::<IpAddr>().map_err(|_| {
                let shown = excerpt(text, ENTRY_BYTES_MAX);
                format!("`{shown}` is no address: write a range as 192.0.2.1-192.0.2.9")
            })?;
            Ok::<_, String>(address.to_canonical())
        };
        let (first, last) = (address(first)?, address(last)?);
        let (bits, from, to) = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                (32, first.to_bits().into(), last.to_bits().into())
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => (128, first.to_bits(), last.to_bits()),
            _ => return Err("a range has both ends in one address family".to_owned()),
        };
        if from > to {
            return Err(format!("the range ends before it begins: write {last}-{first}"));
        }
        // A prefix of it could be the IPv4 one of everybody.
        if bits == 128 && from < *MAPPED.start() && to > *MAPPED.end() {
            return Err(
                "the range has ::ffff:0:0/96 in it, which is all of IPv4: leave it out".to_owned()
            );
        }
        Ok(Self::Range(Range { bits, from, to }))
    }
}

fn text_of(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= ENTRY_BYTES_MAX);
    text.ok_or_else(|| "this is no address or prefix".to_owned())
}

/// Addresses of one family from the first to the last.
struct Range {
    bits: u32,
    from: u128,
    to: u128,
}

impl Iterator for Range {
    type Item = IpNet;

    /// The largest prefix that begins where the rest does: so there are at most two of each length.
    fn next(&mut self) -> Option<IpNet> {
        let span = self.to.checked_sub(self.from)?;
        let fits = span.checked_add(1).map_or(128, u128::ilog2);
        let host_bits = fits.min(self.from.trailing_zeros()).min(self.bits);
        let length = u8::try_from(self.bits - host_bits).ok()?;
        let address = self.from;
        match 1u128.checked_shl(host_bits).and_then(|size| address.checked_add(size)) {
            Some(next) => self.from = next,
            // Nothing comes after the last address of all.
            None => (self.from, self.to) = (1, 0),
        }
        if self.bits == 32 {
            let address = Ipv4Addr::from_bits(u32::try_from(address).ok()?);
            return Ipv4Net::new(address, length).ok().map(IpNet::V4);
        }
        Ipv6Net::new(Ipv6Addr::from_bits(address), length).ok().map(IpNet::V6)
    }
}

/// The reason as it is kept.
fn clean<'a>(text: &'a str, cleaned: &'a mut String) -> &'a str {
    let text = text.trim();
    let plain = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if plain && text.len() <= REASON_CHARS_MAX {
        return text;
    }
    cleaned.clear();
    cleaned.extend(text.chars().map(|c| if is_hidden(c) { ' ' } else { c }).take(REASON_CHARS_MAX));
    cleaned.trim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prefix::display;
    use proptest::prelude::*;

    type Read = (u64, String, Option<u64>, String);

    fn all(bytes: &[u8]) -> (Vec<Read>, Errors) {
        let mut items = Vec::new();
        let errors = read(bytes, |item| {
            let until = item.until.map(|until| until.0);
            items.push((item.line, display(&item.prefix), until, item.reason.to_owned()));
        });
        (items, errors.unwrap())
    }

    /// The entries of a list without mistakes: prefix and reason.
    #[track_caller]
    fn good(text: &str) -> Vec<(String, String)> {
        let (items, errors) = all(text.as_bytes());
        assert_eq!(errors, Errors::default(), "{text}");
        items.into_iter().map(|(_, prefix, _, reason)| (prefix, reason)).collect()
    }

    #[track_caller]
    fn prefixes(text: &str) -> String {
        let prefixes: Vec<String> = good(text).into_iter().map(|(prefix, _)| prefix).collect();
        prefixes.join(" ")
    }

    /// Why a line is none of a list.
    #[track_caller]
    fn wrong(line: &str) -> String {
        let (items, errors) = all(line.as_bytes());
        assert!(items.is_empty() && errors.total == 1, "{line}: {items:?} {errors:?}");
        errors.first[0].reason.clone()
    }

    /// What published lists look like, to the byte.
    #[test]
    fn the_formats_that_people_publish() {
        let cases: [(&str, &[(&str, &str)]); 7] = [
            (
                "; Spamhaus DROP List 2024/03/22 - (c) 2024 The Spamhaus Project SLU\n\
                 ; Last-Modified: Fri, 22 Mar 2024 12:20:20 GMT\n\
                 1.10.16.0/20 ; SBL256894\n1.19.0.0/16 ; SBL434604\n",
                &[("1.10.16.0/20", "SBL256894"), ("1.19.0.0/16", "SBL434604")],
            ),
            (
                "; Spamhaus DROPv6 List\n2001:678:738::/48 ; SBL635837\r\n",
                &[("2001:678:738::/48", "SBL635837")],
            ),
            (
                "{\"cidr\":\"1.10.16.0/20\",\"sblid\":\"SBL256894\",\"rir\":\"apnic\"}\n\
                 {\"type\":\"metadata\",\"timestamp\":1711110020,\"size\":92,\"records\":2}\n",
                &[("1.10.16.0/20", "SBL256894")],
            ),
            (
                "#\n# firehol_level1\n#\n# ipv4 hash:net ipset\n#\n0.0.0.0/8\n1.10.16.0/20\n\
                 223.254.0.0/16\n",
                &[("0.0.0.0/8", ""), ("1.10.16.0/20", ""), ("223.254.0.0/16", "")],
            ),
            ("\u{feff}# a list of a Windows editor\r\n\r\n192.0.2.7\r\n", &[("192.0.2.7", "")]),
            (
                "198.51.100.1#4#2#Malicious Host#CN\n  198.51.100.2\t\n// none\n2001:DB8::1//own",
                &[
                    ("198.51.100.1", "4#2#Malicious Host#CN"),
                    ("198.51.100.2", ""),
                    ("2001:db8::1", "own"),
                ],
            ),
            (
                "1.2.3.4 12:30:45\n1.2.3.5 # not 1.2.3.6\n1.2.3.7 - by hand\n::ffff:1.2.3.8",
                &[
                    ("1.2.3.4", "12:30:45"),
                    ("1.2.3.5", "not 1.2.3.6"),
                    ("1.2.3.7", "- by hand"),
                    ("1.2.3.8", ""),
                ],
            ),
        ];
        for (text, expected) in cases {
            let read = good(text);
            let read: Vec<(&str, &str)> =
                read.iter().map(|(prefix, reason)| (prefix.as_str(), reason.as_str())).collect();
            assert_eq!(read, expected, "{text}");
        }
    }

    #[test]
    fn what_the_command_line_prints_is_read_with_its_end_and_reason() {
        let text = "{\"prefix\":\"203.0.113.0/24\",\"action\":\"deny\",\"origin\":\"operator\",\
            \"reason\":\"a \\\"scan\\\"\",\"created_utc_ms\":1,\"until_utc_ms\":1800000000000,\
            \"enforced\":\"both\",\"note\":null,\"packets\":7}\n\
            {\"ip\":\"2001:db8::1\",\"until_utc_ms\":null}\n{\"network\":\"192.0.2.0-192.0.2.2\"}";
        let (items, errors) = all(text.as_bytes());
        assert_eq!(errors.total, 0);
        let read = |line, prefix: &str, until, reason: &str| {
            (line, prefix.to_owned(), until, reason.to_owned())
        };
        assert_eq!(
            items,
            [
                read(1, "203.0.113.0/24", Some(1_800_000_000_000), "a \"scan\""),
                read(2, "2001:db8::1", None, ""),
                read(3, "192.0.2.0/31", None, ""),
                read(3, "192.0.2.2", None, ""),
            ]
        );
    }

    #[test]
    fn only_a_json_line_resets_and_other_actions_mean_what_they_mean_to_others() {
        let text = "{\"prefix\":\"192.0.2.1\",\"action\":\"reset\"}\n\
            {\"prefix\":\"192.0.2.2\",\"action\":\"deny\"}\n{\"ip\":\"192.0.2.3\",\"action\":7}\n\
            192.0.2.4 reset";
        let mut resets = Vec::new();
        let errors = read(text.as_bytes(), |item| resets.push(item.resets)).unwrap();
        assert_eq!((errors.total, resets), (0, vec![true, false, false, false]));
    }

    #[test]
    fn ranges() {
        assert_eq!(prefixes("192.0.2.0-192.0.2.255"), "192.0.2.0/24");
        assert_eq!(prefixes("192.0.2.1 - 192.0.2.4 ; some"), "192.0.2.1 192.0.2.2/31 192.0.2.4");
        assert_eq!(prefixes("192.0.2.9 -192.0.2.9"), "192.0.2.9");
        assert_eq!(prefixes("0.0.0.0-255.255.255.255"), "0.0.0.0/0");
        assert_eq!(prefixes("2001:db8::-2001:db8::2"), "2001:db8::/127 2001:db8::2");
        assert_eq!(prefixes("8000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "8000::/1");
        assert_eq!(prefixes("::ffff:192.0.2.1-192.0.2.1"), "192.0.2.1");
        let worst = |text| prefixes(text).split(' ').count();
        assert_eq!(worst("0.0.0.1-255.255.255.254"), 62);
        assert_eq!(worst("8000::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"), 252);
        assert!(wrong("192.0.2.9-192.0.2.1").ends_with("write 192.0.2.1-192.0.2.9"));
        assert!(wrong("192.0.2.9-::1").contains("one address family"));
        assert!(wrong("::-ffff::").contains("all of IPv4"));
        assert!(wrong("192.0.2.1-192.0.2.999").contains("`192.0.2.999` is no address"));
        assert!(wrong("192.0.2.1 - 192.0.2.999").contains("`192.0.2.999` is no address"));
        assert!(wrong("192.0.2.1-20").contains("`20` is no address"));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        assert!(wrong("1.2.3.4/8").contains("host bits set: write 1.0.0.0/8"));
        assert!(wrong("1.2.3.0/33").contains("out of range"));
        assert!(wrong("1.2.3.0\t1.2.3.255\t24\tDSHIELD").contains("two addresses"));
        assert!(wrong("2001:db8::1 2001:db8::2").contains("two addresses"));
        assert!(wrong("bad-host.example").contains("`bad-host.example` is no address or prefix"));
        assert!(wrong("<!DOCTYPE html>").contains("HTML"));
        assert!(wrong("<html lang=\"en\">").contains("HTML"));
        assert!(wrong("{\"cidr\": 7}").starts_with("this is no JSON object of a prefix"));
        assert!(wrong("{\"type\":\"route\"}").contains("no `prefix`"));
        assert!(wrong("{\"prefix\":\"1.2.3.4/8\"}").contains("host bits"));
        assert!(wrong("{\"prefix\":\"1.2.3.4\",\"ip\":\"1.2.3.5\"}").contains("duplicate field"));
        for odd in ["01.2.3.4", "1.2.3.4,5", "256.1.1.1", "1.2.3", "1.2.3.4/", "1.2.3.4."] {
            assert!(wrong(odd).contains("no address or prefix"), "{odd}");
        }
        let (_, errors) = all(b"1.2.3.4\n\x1b[2J\xff\xe2\x80\xae\n");
        let odd = LineError {
            line: 2,
            text: "\\u{1b}[2J\u{fffd}\\u{202e}".to_owned(),
            reason: "this is no address or prefix".to_owned(),
        };
        assert_eq!(errors, Errors { first: vec![odd], total: 1 });
    }

    #[test]
    fn everything_about_a_line_is_bounded() {
        let long = "#".repeat(LINE_BYTES_MAX);
        assert_eq!(prefixes(&format!("{long}\n1.2.3.4")), "1.2.3.4");
        assert!(wrong(&format!("{long}#")).contains("longer than 4096"));
        let text = format!("{}\n192.0.2.1 {}\n", "x".repeat(1_000_000), "r".repeat(3000));
        // Whatever the pieces are in which a list arrives.
        for capacity in [1, 7, 4096, 1 << 21] {
            let input = io::BufReader::with_capacity(capacity, text.as_bytes());
            let mut reasons = Vec::new();
            let errors = read(input, |item| reasons.push(item.reason.len())).unwrap();
            assert_eq!((reasons, errors.total), (vec![REASON_CHARS_MAX], 1));
            assert_eq!(errors.first[0].text, format!("{}...", "x".repeat(EXCERPT_CHARS)));
        }
        let (_, errors) = all("x\n".repeat(1000).as_bytes());
        assert_eq!((errors.first.len(), errors.total), (ERRORS_MAX, 1000));
        assert_eq!(errors.first[99].line, 100);
    }

    #[test]
    fn a_reason_turns_no_line_around() {
        assert_eq!(good("1.2.3.4 ; a\u{202e}b\x1bc\u{e9}")[0].1, "a b c\u{e9}");
        let (items, _) = all(b"1.2.3.4 # caf\xe9");
        assert_eq!(items[0].3, "caf\u{fffd}");
    }

    #[test]
    fn an_error_of_the_input_is_handed_on() {
        struct Broken;
        impl io::Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let input = io::BufReader::new(io::Read::chain(b"1.2.3.4\n1.2".as_slice(), Broken));
        let mut count = 0;
        let error = read(input, |_| count += 1).unwrap_err();
        assert_eq!((count, error.kind()), (1, io::ErrorKind::ConnectionReset));
    }

    fn numbers(address: IpAddr) -> (u32, u128) {
        match address {
            IpAddr::V4(address) => (32, address.to_bits().into()),
            IpAddr::V6(address) => (128, address.to_bits()),
        }
    }

    proptest! {
        #[test]
        fn what_is_displayed_is_read_again(address: IpAddr, length in 0u8..=128) {
            let length = if address.is_ipv4() { length % 33 } else { length };
            let prefix = prefix::canonical(IpNet::new(address, length).unwrap().trunc());
            let shown = display(&prefix);
            prop_assert_eq!(prefixes(&format!("{shown}\n{prefix} ; why")), format!("{shown} {shown}"));
        }

        /// The quick way through a line and the ordinary one, which it must take where there is a blank.
        #[test]
        fn a_bare_line_is_read_like_any_other(
            lines in proptest::collection::vec(
                "[0-9]{1,3}(\\.[0-9]{1,3}){3}(/[0-9]{1,2})?|\
                 [0-9a-f]{0,5}(:{1,2}[0-9a-f]{0,4}){1,8}(/[0-9]{1,3})?|#",
                0..20,
            ),
            end in "\r?\n",
            capacity in 1usize..100,
        ) {
            let with = |end: &str| {
                let text: String = lines.iter().flat_map(|line| [line.as_str(), end]).collect();
                let input = io::BufReader::with_capacity(capacity, text.as_bytes());
                let mut items = Vec::new();
                let errors = read(input, |item| items.push((item.line, item.prefix)));
                (items, errors.unwrap())
            };
            prop_assert_eq!(with(&end), with(" \n"));
        }

        #[test]
        fn a_range_covers_exactly_its_addresses(one: IpAddr, shift in 0u32..128, size: u128) {
            let one = one.to_canonical();
            let (bits, from) = numbers(one);
            let max = u128::MAX >> (128 - bits);
            let to = from.saturating_add(size >> shift).min(max);
            prop_assume!(bits == 32 || from > *MAPPED.end());
            let last = match one {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::from_bits(u32::try_from(to).unwrap())),
                IpAddr::V6(_) => IpAddr::from(Ipv6Addr::from_bits(to)),
            };
            let mut expected = Some(from);
            let mut count = 0;
            let errors = read(format!("{one}-{last}").as_bytes(), |item| {
                assert_eq!(Some(numbers(item.prefix.network()).1), expected);
                expected = numbers(item.prefix.broadcast()).1.checked_add(1);
                count += 1;
            });
            prop_assert_eq!(errors.unwrap().total, 0);
            prop_assert_eq!(expected, to.checked_add(1));
            let most = if bits == 32 { 62 } else { 254 };
            prop_assert!(count <= most);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            drop(all(&bytes));
        }

        #[test]
        fn no_shape_makes_it_panic(
            text in "([0-9a-f.:/#; \\-\n\r\t\u{feff}]|//|::|1\\.2\\.3\\.4|\\{\"ip\":\"){0,60}",
        ) {
            let (items, errors) = all(text.as_bytes());
            let last = items.last().map_or(0, |item| item.0);
            prop_assert!(last <= text.split('\n').count() as u64);
            prop_assert_eq!(errors.first.len() as u64, errors.total);
        }
    }
}
