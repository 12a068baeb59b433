//! One message between gateways: what became of a source, when, by whose word, and the signature without which nobody
//! believes it. What arrives is refused with a reason, whatever it is; nothing in it makes anybody panic.
//!
//! ```text
//! 1 SIGNATURE ORDER JSON       SIGNATURE: HMAC-SHA256 of version, group, ORDER and JSON, 64 hexadecimal digits
//!                              ORDER: made, instance and sequence, 16 hexadecimal digits each
//! ```

use std::fmt;
use std::time::Duration;

use aws_lc_rs::hmac;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::base::prefix;
use crate::base::secret::Secret;
use crate::base::text::{excerpt, is_hidden};
use crate::base::time::UtcMillis;
use crate::config::Measure;
use crate::feedback::decision::{Place, Story, Subject};

/// Bytes of a message.
pub const MESSAGE_BYTES_MAX: usize = 4096;
/// A ban lasts no longer, so that it is known when a lift can contradict none any more.
pub const LASTS_MAX: Duration = Duration::from_hours(31 * 24);
/// How far a message may be ahead of the clock here.
pub const AHEAD_MAX: Duration = Duration::from_mins(5);
/// Keys that are believed at a time: one, and those before and after it.
pub const KEYS_MAX: usize = 4;

const SECRET_BYTES: std::ops::RangeInclusive<usize> = 32..=1024;
/// Lengths of the widest prefixes of IPv4 and IPv6 that a message may be about. (bits)
const PREFIX_BITS_MIN: [u8; 2] = [8, 16];
/// Characters of a reason or a note.
pub const TEXT_CHARS_MAX: usize = 256;
const NAME_CHARS_MAX: usize = 128;
const NOTES_MAX: usize = 4;
const SIGNALS_MAX: usize = 4;
const TIMES_MAX: u32 = 1 << 16;
const SIGNATURE_DIGITS: usize = 64;
const ORDER_DIGITS: usize = 48;
/// The version, the signature, the order and a space after each.
const HEAD_BYTES: usize = 2 + SIGNATURE_DIGITS + 1 + ORDER_DIGITS + 1;

/// What became of a source. Of two about the same the later one holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Which of two is the later one.
    pub order: Order,
    /// About whom.
    pub subject: Subject,
    /// What became of it.
    pub what: What,
    /// The name of the gateway, for people.
    pub gateway: String,
}

/// Of two changes the one with the higher order is later, whoever sees them in whatever order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Order {
    /// When, by the clock of who made it, and later than any change that was known there.
    pub made: UtcMillis,
    /// Who made it: a random number for each start of a gateway.
    pub instance: u64,
    /// Which change of that one.
    pub sequence: u64,
}

/// What became of a source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// It is held off until then.
    Ban(Ban),
    /// It is held off until it is lifted. The time is that until which the message counts, and is renewed.
    Pin(Ban),
    /// It is free, and whoever scores it takes that as a lesson.
    Lift,
    /// It is free, and nothing is remembered of it.
    Forget,
}

/// How a source is held off, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "RawBan", from = "RawBan")]
pub struct Ban {
    /// What is done.
    pub measure: Measure,
    /// The rule that decided, or who did.
    pub rule: String,
    /// Until when.
    pub until: UtcMillis,
    /// Which time it is, from 1.
    pub times: u32,
    /// What led to it.
    pub story: Story,
}

/// Why a message is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// It has more than [`MESSAGE_BYTES_MAX`] bytes.
    Oversized,
    /// It is of a version that is not known here.
    Version,
    /// It is none.
    Malformed,
    /// No known key has signed it.
    Forged,
    /// It is more than [`AHEAD_MAX`] ahead of the clock here.
    Future,
    /// It is so old that it can change nothing any more.
    Over,
    /// Something later is known of that source.
    Old,
    /// It is known.
    Replayed,
    /// There is no room for it.
    Full,
}

impl Refused {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Oversized,
        Self::Version,
        Self::Malformed,
        Self::Forged,
        Self::Future,
        Self::Over,
        Self::Old,
        Self::Replayed,
        Self::Full,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Oversized => "oversized",
            Self::Version => "version",
            Self::Malformed => "malformed",
            Self::Forged => "forged",
            Self::Future => "future",
            Self::Over => "over",
            Self::Old => "old",
            Self::Replayed => "replayed",
            Self::Full => "full",
        }
    }
}

impl Message {
    /// Until when it can contradict anything: afterwards every ban from before it is over, too.
    pub fn counts_until(&self) -> UtcMillis {
        let any = self.order.made.after(LASTS_MAX);
        match &self.what {
            What::Pin(ban) => any.max(ban.until),
            What::Ban(_) | What::Lift | What::Forget => any,
        }
    }

    /// The ban, if there is one at `now`.
    pub fn ban(&self, now: UtcMillis) -> Option<&Ban> {
        match &self.what {
            What::Ban(ban) => (ban.until > now).then_some(ban),
            What::Pin(ban) => Some(ban),
            What::Lift | What::Forget => None,
        }
    }

    /// What two messages about the same subject are compared by.
    pub fn rank(&self) -> (Order, UtcMillis) {
        let until = match &self.what {
            What::Ban(ban) | What::Pin(ban) => ban.until,
            What::Lift | What::Forget => UtcMillis(0),
        };
        (self.order, until)
    }

    fn is_sound(&self) -> bool {
        let made = self.order.made;
        let ends_well = match &self.what {
            What::Ban(ban) => ban.until <= made.after(LASTS_MAX),
            // Renewed by somebody whose clock may be ahead; whoever reads it bounds it by its own.
            What::Pin(ban) => ban.until >= made,
            What::Lift | What::Forget => true,
        };
        let ban_is_sound = match &self.what {
            What::Ban(ban) | What::Pin(ban) => ban.is_sound(),
            What::Lift | What::Forget => true,
        };
        !is_wide(&self.subject.prefix)
            && ends_well
            && ban_is_sound
            && is_text(&self.gateway, NAME_CHARS_MAX)
    }
}

impl Ban {
    /// As others may be told of it: nothing longer than a message takes, nothing that moves a cursor.
    pub fn short(mut self) -> Self {
        self.rule = short(&self.rule, NAME_CHARS_MAX);
        self.times = self.times.clamp(1, TIMES_MAX);
        if let Measure::SlowDown { profile } = &mut self.measure {
            *profile = short(profile, NAME_CHARS_MAX);
        }
        let story = &mut self.story;
        story.score = if story.score.is_finite() { story.score } else { 0.0 };
        story.wanted = if story.wanted.is_finite() { story.wanted } else { 0.0 };
        story.notes.truncate(NOTES_MAX);
        story.notes.iter_mut().for_each(|note| *note = short(note, TEXT_CHARS_MAX));
        story.signals.drain(..story.signals.len().saturating_sub(SIGNALS_MAX));
        for signal in &mut story.signals {
            signal.signal = short(&signal.signal, NAME_CHARS_MAX);
            let told = [&mut signal.request_id, &mut signal.route, &mut signal.limit];
            for text in told.into_iter().chain([&mut signal.reason]).flatten() {
                *text = short(text, NAME_CHARS_MAX);
            }
        }
        self
    }

    fn is_sound(&self) -> bool {
        let is_profile = |profile: &str| !profile.is_empty() && is_text(profile, NAME_CHARS_MAX);
        let measure = match &self.measure {
            Measure::SlowDown { profile } => is_profile(profile),
            Measure::Ban | Measure::Reset => true,
        };
        let Story { notes, signals, .. } = &self.story;
        measure
            && is_text(&self.rule, NAME_CHARS_MAX)
            && (1..=TIMES_MAX).contains(&self.times)
            && notes.len() <= NOTES_MAX
            && notes.iter().all(|note| is_text(note, TEXT_CHARS_MAX))
            && signals.len() <= SIGNALS_MAX
            && signals.iter().all(|signal| {
                let told = [&signal.request_id, &signal.route, &signal.limit, &signal.reason];
                is_text(&signal.signal, NAME_CHARS_MAX)
                    && told.into_iter().flatten().all(|text| is_text(text, NAME_CHARS_MAX))
            })
    }
}

/// Whether a prefix is wider than any ban may be.
pub fn is_wide(prefix: &IpNet) -> bool {
    let [ipv4, ipv6] = PREFIX_BITS_MIN;
    prefix.prefix_len() < if prefix.addr().is_ipv4() { ipv4 } else { ipv6 }
}

/// Escaping makes a text longer than it was cut to.
fn short(text: &str, chars_max: usize) -> String {
    let shown = excerpt(text, chars_max);
    shown.chars().take(chars_max).collect()
}

fn is_text(text: &str, chars_max: usize) -> bool {
    text.chars().take(chars_max + 1).count() <= chars_max && !text.chars().any(is_hidden)
}

/// What gateways sign with and believe. Those of one group have one in common.
pub struct Keys {
    group: String,
    keys: Vec<hmac::Key>,
}

impl Keys {
    /// The first of `secrets` signs, each is believed; what is signed for one `group` means nothing in another.
    pub fn new(group: &str, secrets: &[Secret]) -> Result<Self, String> {
        if secrets.is_empty() || secrets.len() > KEYS_MAX {
            return Err(format!("{} keys: name 1 to {KEYS_MAX}", secrets.len()));
        }
        let key = |secret: &Secret| match secret.bytes() {
            bytes if SECRET_BYTES.contains(&bytes.len()) => {
                Ok(hmac::Key::new(hmac::HMAC_SHA256, bytes))
            }
            bytes => Err(format!(
                "a key of {} bytes is out of bounds: make one of {} to {}, such as by `openssl \
                 rand -hex 32`",
                bytes.len(),
                SECRET_BYTES.start(),
                SECRET_BYTES.end()
            )),
        };
        let keys = secrets.iter().map(key).collect::<Result<_, _>>()?;
        Ok(Self { group: group.to_owned(), keys })
    }

    /// The message as it is sent, of at most [`MESSAGE_BYTES_MAX`]. Its story may be cut for that.
    pub fn seal(&self, message: &Message) -> Vec<u8> {
        let mut body = Body::of(message);
        let mut json = body.json();
        while HEAD_BYTES + json.len() > MESSAGE_BYTES_MAX && body.cut() {
            json = body.json();
        }
        let Order { made, instance, sequence } = message.order;
        self.sign(&format!("{:016x}{instance:016x}{sequence:016x}", made.0), json.as_bytes())
    }

    /// Signs an order and what is said, whatever they are.
    pub fn sign(&self, order: &str, json: &[u8]) -> Vec<u8> {
        let signature = self.keys.first().map(|key| {
            let mut context = hmac::Context::with_key(key);
            self.signed(order, json).for_each(|part| context.update(part));
            context.sign()
        });
        let bytes = signature.as_ref().map(AsRef::as_ref).unwrap_or_default();
        let head = format!("1 {} {order} ", hex(bytes));
        [head.as_bytes(), json].concat()
    }

    /// What somebody sent, if it can be believed at `now`.
    pub fn open(&self, bytes: &[u8], now: UtcMillis) -> Result<Message, Refused> {
        let (signature, order, json) = parts(bytes)?;
        let text: Vec<u8> = self.signed(order, json).flatten().copied().collect();
        let signature = unhex(signature).ok_or(Refused::Malformed)?;
        if !self.keys.iter().any(|key| hmac::verify(key, &text, &signature).is_ok()) {
            return Err(Refused::Forged);
        }
        read(order, json, now)
    }

    /// Whether a message that can be believed is signed by the key that signs now.
    pub fn is_latest(&self, bytes: &[u8]) -> bool {
        let Ok((_, order, json)) = parts(bytes) else { return false };
        self.sign(order, json) == bytes
    }

    /// What is signed. No two messages have the same.
    fn signed<'a>(&'a self, order: &'a str, json: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let head = ["gateway spread 1\n", &self.group, "\n", order, " "];
        head.map(str::as_bytes).into_iter().chain([json])
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} keys of {}", self.keys.len(), self.group)
    }
}

/// Splits a message into its signature, its order and what it says.
fn parts(bytes: &[u8]) -> Result<(&str, &str, &[u8]), Refused> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Refused::Oversized);
    }
    let Some(rest) = bytes.strip_prefix(b"1 ") else {
        let is_other = bytes.first().is_some_and(u8::is_ascii_digit);
        return Err(if is_other { Refused::Version } else { Refused::Malformed });
    };
    let digits = |part: &'_ [u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let cut = rest.split_at_checked(SIGNATURE_DIGITS).and_then(|(signature, rest)| {
        let (order, rest) = rest.strip_prefix(b" ")?.split_at_checked(ORDER_DIGITS)?;
        let json = rest.strip_prefix(b" ")?;
        let is_sound = digits(signature) && digits(order);
        let text = |part| std::str::from_utf8(part).ok().filter(|_| is_sound);
        Some((text(signature)?, text(order)?, json))
    });
    cut.ok_or(Refused::Malformed)
}

/// Understands what a message says that is signed well.
fn read(order: &str, json: &[u8], now: UtcMillis) -> Result<Message, Refused> {
    let number = |at: usize| {
        let digits = order.get(at * 16..(at + 1) * 16)?;
        u64::from_str_radix(digits, 16).ok()
    };
    let order = number(0).zip(number(1)).zip(number(2));
    let ((made, instance), sequence) = order.ok_or(Refused::Malformed)?;
    let order = Order { made: UtcMillis(made), instance, sequence };
    let body: Body = serde_json::from_slice(json).map_err(|_| Refused::Malformed)?;
    let message = body.message(order).ok_or(Refused::Malformed)?;
    if !message.is_sound() {
        return Err(Refused::Malformed);
    }
    let latest = now.after(AHEAD_MAX);
    let renewed_ahead = matches!(&message.what, What::Pin(ban)
        if ban.until > latest.after(LASTS_MAX));
    if order.made > latest || renewed_ahead {
        return Err(Refused::Future);
    }
    if message.counts_until() <= now {
        return Err(Refused::Over);
    }
    Ok(message)
}

/// What a message says besides its order.
#[derive(Serialize, Deserialize)]
struct Body {
    prefix: String,
    place: Place,
    gateway: String,
    what: What,
}

impl Body {
    fn of(message: &Message) -> Self {
        let Subject { prefix, place } = message.subject;
        let what = message.what.clone();
        Self { prefix: prefix::display(&prefix), place, gateway: message.gateway.clone(), what }
    }

    fn message(self, order: Order) -> Option<Message> {
        let prefix = prefix::parse(&self.prefix).ok()?;
        let subject = Subject { prefix, place: self.place };
        Some(Message { order, subject, what: self.what, gateway: self.gateway })
    }

    fn json(&self) -> String {
        // Strings, numbers that are finite and nothing else: it has a text.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Leaves out what it can best be understood without. Whether there was anything.
    fn cut(&mut self) -> bool {
        let (What::Ban(ban) | What::Pin(ban)) = &mut self.what else { return false };
        let Story { notes, signals, .. } = &mut ban.story;
        if signals.is_empty() {
            return notes.pop().is_some();
        }
        signals.remove(0);
        true
    }
}

/// A ban as it is sent and kept.
#[derive(Clone, Serialize, Deserialize)]
struct RawBan {
    measure: RawMeasure,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    profile: String,
    rule: String,
    until: UtcMillis,
    times: u32,
    #[serde(default)]
    story: Story,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawMeasure {
    Ban,
    SlowDown,
    Reset,
}

impl From<Ban> for RawBan {
    fn from(ban: Ban) -> Self {
        let (measure, profile) = match ban.measure {
            Measure::Ban => (RawMeasure::Ban, String::new()),
            Measure::SlowDown { profile } => (RawMeasure::SlowDown, profile),
            Measure::Reset => (RawMeasure::Reset, String::new()),
        };
        let Ban { rule, until, times, story, .. } = ban;
        Self { measure, profile, rule, until, times, story }
    }
}

impl From<RawBan> for Ban {
    fn from(raw: RawBan) -> Self {
        let measure = match raw.measure {
            RawMeasure::Ban => Measure::Ban,
            // Without a profile it is malformed, which is found where all is checked.
            RawMeasure::SlowDown => Measure::SlowDown { profile: raw.profile },
            RawMeasure::Reset => Measure::Reset,
        };
        let RawBan { rule, until, times, story, .. } = raw;
        Self { measure, rule, until, times, story }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks_exact(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests;
