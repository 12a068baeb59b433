//! What a crowdsec says to its bouncers: which addresses are held off from now on, and which no longer. It understands
//! the answers of `/v1/decisions/stream`, and neither asks for them nor does anything about them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::spread::message::{LASTS_MAX, is_wide};
use crate::base::prefix::{self, PrefixError, canonical};
use crate::base::text::excerpt;

/// What its bans are by.
pub const NAME: &str = "crowdsec";
/// Bytes of an answer. Fifty thousand decisions are about twelve million, and a whole answer has those that have ended,
/// too.
pub const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Decisions of a list of an answer.
pub const DECISIONS_MAX: usize = 65_536;
const SCENARIO_CHARS_MAX: usize = 128;
/// Digits behind a point that count: more are less than a nanosecond of an hour.
const FRACTION_DIGITS_MAX: usize = 15;

/// What was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Who is held off from now on, each once, in the order of the prefixes.
    pub new: Vec<Verdict>,
    /// Who is not any more, each once. Of a whole answer this is nobody: who is not held off is not in it.
    pub deleted: Vec<IpNet>,
    /// Decisions about something else than addresses, for something else than a ban, simulated ones, and such as cannot
    /// be understood.
    pub skipped: u64,
    /// Decisions about prefixes that are wider than any ban may be.
    pub wide: u64,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// About whom.
    pub prefix: IpNet,
    /// How long.
    pub lasts: Duration,
    /// Why, as crowdsec calls it.
    pub scenario: String,
}

/// Everything that holds. The list must be there, be it empty: what is no answer at all must not set everybody free.
#[derive(Deserialize)]
struct Whole {
    #[serde(deserialize_with = "Option::deserialize")]
    new: Option<Decisions>,
}

/// What has changed.
#[derive(Deserialize)]
struct News {
    #[serde(deserialize_with = "Option::deserialize")]
    new: Option<Decisions>,
    #[serde(default)]
    deleted: Option<Decisions>,
}

/// A list, of which nothing is kept that is not understood.
#[derive(Default)]
struct Decisions {
    verdicts: Vec<Verdict>,
    skipped: u64,
    wide: u64,
}

#[derive(Deserialize)]
struct RawDecision<'a> {
    #[serde(borrow)]
    value: Cow<'a, str>,
    #[serde(borrow)]
    scope: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    duration: Cow<'a, str>,
    #[serde(borrow, default)]
    scenario: Option<Cow<'a, str>>,
    #[serde(default)]
    simulated: Option<bool>,
}

/// Why a decision is left out.
enum LeftOut {
    Skipped,
    Wide,
}

/// Understands an answer: a `whole` one, or what has changed since the last one.
pub fn read(bytes: &[u8], whole: bool) -> Result<Heard, String> {
    let read = match whole {
        true => serde_json::from_slice(bytes).map(|Whole { new }| (new, None)),
        false => serde_json::from_slice(bytes).map(|News { new, deleted }| (new, deleted)),
    };
    let (new, deleted) = read.map_err(|error| format!("said no stream of decisions: {error}"))?;
    let (new, deleted) = (new.unwrap_or_default(), deleted.unwrap_or_default());
    let (mut skipped, wide) = (new.skipped + deleted.skipped, new.wide + deleted.wide);
    let mut verdicts = new.verdicts;
    let all = verdicts.len();
    // What has ended on its way is none.
    verdicts.retain(|verdict| !verdict.lasts.is_zero());
    skipped += (all - verdicts.len()) as u64;
    verdicts.sort_unstable_by_key(|one| (one.prefix, std::cmp::Reverse(one.lasts)));
    verdicts.dedup_by_key(|one| one.prefix);
    let mut deleted: Vec<IpNet> = deleted.verdicts.iter().map(|one| one.prefix).collect();
    deleted.sort_unstable();
    deleted.dedup();
    Ok(Heard { new: verdicts, deleted, skipped, wide })
}

impl<'de> Deserialize<'de> for Decisions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(List)
    }
}

/// Understands one after the other, so that what is left out takes no memory.
struct List;

impl<'de> Visitor<'de> for List {
    type Value = Decisions;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of decisions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Decisions, A::Error> {
        let mut decisions = Decisions::default();
        while let Some(raw) = list.next_element::<RawDecision<'de>>()? {
            match raw.verdict() {
                Ok(_) if decisions.verdicts.len() >= DECISIONS_MAX => {
                    return Err(A::Error::custom(format!("more than {DECISIONS_MAX} decisions")));
                }
                Ok(verdict) => decisions.verdicts.push(verdict),
                Err(LeftOut::Skipped) => decisions.skipped += 1,
                Err(LeftOut::Wide) => decisions.wide += 1,
            }
        }
        Ok(decisions)
    }
}

impl RawDecision<'_> {
    /// Which addresses are, or were, to be banned. One that has ended lasts for no time.
    fn verdict(&self) -> Result<Verdict, LeftOut> {
        let is_address = ["ip", "range"].iter().any(|scope| self.scope.eq_ignore_ascii_case(scope));
        let is_real = self.kind.eq_ignore_ascii_case("ban") && self.simulated != Some(true);
        if !is_address || !is_real {
            return Err(LeftOut::Skipped);
        }
        let prefix = match prefix::parse(&self.value) {
            Ok(prefix) => prefix,
            // Ranges are kept there as they were typed.
            Err(PrefixError::HostBits { network, .. }) => canonical(network),
            Err(_) => return Err(LeftOut::Skipped),
        };
        if is_wide(&prefix) {
            return Err(LeftOut::Wide);
        }
        let lasts = duration(&self.duration).ok_or(LeftOut::Skipped)?.min(LASTS_MAX);
        let scenario = self.scenario.as_deref().filter(|scenario| !scenario.is_empty());
        let scenario = excerpt(scenario.unwrap_or(NAME), SCENARIO_CHARS_MAX);
        Ok(Verdict { prefix, lasts, scenario })
    }
}

/// A time as Go writes it: `3h59m57.123s`. One that has passed is none at all.
pub fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("\u{b5}s", 1_000),
        ("\u{3bc}s", 1_000),
        ("ms", 1_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
    ];
    let (is_past, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut nanos = None;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(end)?;
        let (unit, factor) = UNITS.into_iter().find(|(unit, _)| tail.starts_with(unit))?;
        nanos = Some(part(number, factor)?.checked_add(nanos.unwrap_or(0))?);
        rest = tail.strip_prefix(unit)?;
    }
    nanos.map(|nanos| if is_past { Duration::ZERO } else { Duration::from_nanos(nanos) })
}

/// So much of a unit, which has this many nanoseconds: `57.123` of seconds. What is less than a nanosecond is left out.
fn part(number: &str, unit_ns: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut digits = whole.bytes().chain(fraction.bytes()).peekable();
    digits.peek()?;
    if !digits.all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    let fraction = fraction.get(..FRACTION_DIGITS_MAX).unwrap_or(fraction);
    let parts = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? };
    let nanos = u64::try_from(fraction * u128::from(unit_ns) / parts).ok()?;
    whole.checked_mul(unit_ns)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (text, expected) in [
            ("3h59m57.5s", Some(14_397_500_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            ("250ms", Some(250_000_000)),
            ("4h", Some(14_400_000_000_000)),
            (".5s", Some(500_000_000)),
            ("1.000000001s", Some(1_000_000_001)),
            ("1.23\u{b5}s2\u{3bc}s", Some(3_230)),
            ("-3s", Some(0)),
            ("0", Some(0)),
            ("1000000ns", Some(1_000_000)),
            ("", None),
            ("-", None),
            ("4", None),
            ("h", None),
            (".s", None),
            ("4x", None),
            ("1.2.3s", None),
            ("5124095h", Some(18_446_742_000_000_000_000)),
            ("5124096h", None),
        ] {
            assert_eq!(duration(text), expected.map(Duration::from_nanos), "{text}");
        }
        assert_eq!(duration(&format!("{}h", "9".repeat(400))), None);
        assert_eq!(
            duration(&format!("0.{}s", "9".repeat(400))),
            Some(Duration::from_nanos(999_999_999))
        );
    }

    /// As Duration.String() of Go's package time does.
    fn as_go_writes(nanos: u64) -> String {
        let decimals = |whole: u64, fraction: u64, digits: usize| {
            let text = format!("{whole}.{fraction:0digits$}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        match nanos {
            0 => "0s".to_owned(),
            1..1_000 => format!("{nanos}ns"),
            1_000..1_000_000 => format!("{}\u{b5}s", decimals(nanos / 1000, nanos % 1000, 3)),
            1_000_000..1_000_000_000 => {
                format!("{}ms", decimals(nanos / 1_000_000, nanos % 1_000_000, 6))
            }
            _ => {
                let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
                let tail = format!("{}s", decimals(seconds % 60, rest, 9));
                match (seconds / 3600, seconds / 60 % 60) {
                    (0, 0) => tail,
                    (0, minutes) => format!("{minutes}m{tail}"),
                    (hours, minutes) => format!("{hours}h{minutes}m{tail}"),
                }
            }
        }
    }

    #[test]
    fn bans_of_addresses_are_taken_and_all_else_is_left_out() {
        let answer = json!({
            "new": [
                {"id": 1, "origin": "crowdsec", "scenario": "crowdsecurity/ssh-bf", "scope": "Ip",
                 "type": "ban", "value": "203.0.113.7", "duration": "3h59m57.1s", "uuid": "x"},
                {"scope": "ip", "type": "ban", "value": "203.0.113.7", "duration": "1h"},
                {"origin": "CAPI", "scope": "Range", "type": "ban", "value": "2001:db8::/32",
                 "duration": "9000h", "scenario": "a\u{1b}b"},
                {"scope": "Range", "type": "ban", "value": "198.51.100.9/24", "duration": "1h",
                 "scenario": null},
                {"scope": "Country", "type": "ban", "value": "XX", "duration": "4h"},
                {"scope": "Ip", "type": "captcha", "value": "203.0.113.8", "duration": "4h"},
                {"scope": "Ip", "type": "ban", "value": "203.0.113.9", "duration": "-4s"},
                {"scope": "ip", "type": "ban", "value": "203.0.113.9", "duration": "4h",
                 "simulated": true},
                {"scope": "Range", "type": "ban", "value": "0.0.0.0/0", "duration": "4h"},
                {"scope": "Ip", "type": "ban", "value": "nobody", "duration": "4h"},
            ],
            "deleted": [
                {"scope": "Ip", "type": "ban", "value": "203.0.113.10", "duration": "-1.5s"},
                {"scope": "Ip", "type": "ban", "value": "203.0.113.10", "duration": "-9s"},
            ],
        });
        let bytes = answer.to_string().into_bytes();
        let heard = read(&bytes, false).unwrap();
        assert_eq!(heard.deleted, ["203.0.113.10/32".parse().unwrap()]);
        assert_eq!((heard.new.len(), heard.skipped, heard.wide), (3, 5, 1));
        let [range, ip, v6] = heard.new.as_slice() else { panic!("{heard:?}") };
        assert_eq!((&*range.scenario, range.prefix), (NAME, "198.51.100.0/24".parse().unwrap()));
        assert_eq!((&*ip.scenario, ip.lasts.as_millis()), ("crowdsecurity/ssh-bf", 14_397_100));
        assert_eq!((&*v6.scenario, v6.lasts), ("a\\u{1b}b", LASTS_MAX));
        let whole = read(&bytes, true).unwrap();
        assert_eq!(whole, Heard { deleted: Vec::new(), ..heard });
        for nothing in [&b"{\"new\": null, \"deleted\": null}"[..], b"{\"new\": []}"] {
            assert_eq!(read(nothing, false).unwrap(), Heard::default());
            assert_eq!(read(nothing, true).unwrap(), Heard::default());
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for bad in
            ["", "[]", "{}", "{\"deleted\": []}", "{\"new\": 3}", "{\"new\": [{}]}", "<html>"]
        {
            for whole in [false, true] {
                let error = read(bad.as_bytes(), whole).unwrap_err();
                assert!(error.contains("no stream of decisions"), "{bad}: {error}");
            }
        }
        let one = r#"{"scope":"Ip","type":"ban","value":"203.0.113.7","duration":"4h"}"#;
        let many = format!("{{\"new\":[{}]}}", vec![one; DECISIONS_MAX + 1].join(","));
        assert!(read(many.as_bytes(), true).unwrap_err().contains("more than 65536"));
    }

    proptest! {
        #[test]
        fn a_time_is_read_again_as_it_was(nanos in any::<u64>(), shift in 0_u32..64) {
            let nanos = nanos >> shift;
            prop_assert_eq!(duration(&as_go_writes(nanos)), Some(Duration::from_nanos(nanos)));
            prop_assert_eq!(duration(&format!("-{}", as_go_writes(nanos))), Some(Duration::ZERO));
        }

        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..500), text in ".*") {
            read(&bytes, false).ok();
            duration(&text);
        }
    }
}
