//! `retry`: when a request that failed is sent once more. Refuses what could not be kept, as a pause without an end.

use std::time::Duration;

use http::Method;
use serde::Deserialize;

use super::Share;
use super::at::At;
use super::diagnostic::did_you_mean;
use super::routes::methods;
use super::tree::shorten;
use super::value::{count, interval, share, size};

/// Times that one request may be sent.
const ATTEMPTS_MAX: u64 = 10;
const BACKOFF_MIN: Duration = Duration::from_millis(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Bytes of a body that are kept for one request.
const BUFFER_BYTES_MAX: u64 = 16 << 20;

/// When a request is sent once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Times that a request may be sent, the first included.
    pub attempts: usize,
    /// Failures after which it is.
    pub on: FailureSet,
    /// Methods that may reach a service twice.
    pub methods: Vec<Method>,
    /// Pauses before it is.
    pub backoff: Backoff,
    /// Retries at most, as a share of requests.
    pub budget: Share,
    /// Bytes of a request's body that are kept for a retry.
    pub buffer_bytes: usize,
}

/// Ways in which a service fails.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailureSet {
    /// No endpoint could be connected to.
    pub connect_failure: bool,
    /// The connection broke, or what came was no HTTP, before the head of an answer was whole.
    pub reset: bool,
    /// The head of the answer did not come in time.
    pub timeout: bool,
    /// The answer has one of these statuses.
    pub statuses: Vec<u16>,
}

/// The bounds of pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Upper end of the first pause; it doubles with each one after it.
    pub first: Duration,
    /// No pause is longer.
    pub max: Duration,
}

/// `retry` as typed.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawRetry {
    /// Times that a request may be sent, the first included.
    attempts: u64,
    /// `connect_failure`, `reset`, `timeout` or statuses.
    on: Vec<String>,
    /// Default: the idempotent ones.
    methods: Option<Vec<String>>,
    /// `25ms..250ms`
    backoff: String,
    /// A share of requests.
    budget: String,
    /// Size of a body that is kept.
    buffer: String,
}

impl Default for RawRetry {
    fn default() -> Self {
        Self {
            attempts: 3,
            on: ["connect_failure", "reset"].map(str::to_owned).into(),
            methods: None,
            backoff: "25ms..250ms".to_owned(),
            budget: "20%".to_owned(),
            buffer: "64KiB".to_owned(),
        }
    }
}

/// What may be sent twice with the effect of once (RFC 9110, section 9.2.2).
const IDEMPOTENT: [Method; 6] =
    [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS, Method::TRACE];

pub(super) fn retry(raw: &RawRetry, at: At<'_>) -> Retry {
    let own = raw.methods.as_ref().map(|raw| methods(raw, at.key("methods")).unwrap_or_default());
    let buffer = size(&raw.buffer, 0..=BUFFER_BYTES_MAX, at.key("buffer"));
    Retry {
        attempts: count(raw.attempts, 1..=ATTEMPTS_MAX, at.key("attempts")).unwrap_or_default(),
        on: failures(&raw.on, at.key("on")),
        methods: own.unwrap_or_else(|| IDEMPOTENT.into()),
        backoff: backoff(&raw.backoff, at.key("backoff")),
        budget: share(&raw.budget, Share::ZERO..=Share::WHOLE, at.key("budget"))
            .unwrap_or(Share::ZERO),
        buffer_bytes: buffer.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or_default(),
    }
}

pub(super) fn failures(raw: &[String], at: At<'_>) -> FailureSet {
    const WORDS: [&str; 3] = ["connect_failure", "reset", "timeout"];
    let mut on = FailureSet::default();
    for (index, text) in raw.iter().enumerate() {
        let at = at.item(index);
        let status = text.parse::<u16>().ok().filter(|status| is_retried(*status));
        let again = match (text.as_str(), status) {
            ("connect_failure", _) => std::mem::replace(&mut on.connect_failure, true),
            ("reset", _) => std::mem::replace(&mut on.reset, true),
            ("timeout", _) => std::mem::replace(&mut on.timeout, true),
            (_, Some(status)) => {
                let again = on.statuses.contains(&status);
                on.statuses.push(status);
                again
            }
            _ => {
                let help = match did_you_mean(text, WORDS) {
                    Some(word) => format!("did you mean `{word}`?"),
                    None => format!("write {}, 429 or a status from 500 to 599", WORDS.join(", ")),
                };
                let message = format!("`{}` is no way to fail", shorten(text));
                at.error_with_help(message, help);
                false
            }
        };
        if again {
            let message = format!("`{}` is given twice", shorten(text));
            at.error_with_help(message, "remove one of the two");
        }
    }
    on
}

/// The statuses by which a service says that it could not, rather than that the request is wrong.
fn is_retried(status: u16) -> bool {
    status == 429 || (500..=599).contains(&status)
}

/// `25ms..250ms`
fn backoff(text: &str, at: At<'_>) -> Backoff {
    let none = Backoff { first: Duration::ZERO, max: Duration::ZERO };
    let Some((first, max)) = text.split_once("..") else {
        at.error_with_help(
            format!("`{}` is no range of pauses", shorten(text)),
            "write the first one's upper end and the longest, such as 25ms..250ms",
        );
        return none;
    };
    let pause = |text: &str| interval(text, BACKOFF_MIN..=BACKOFF_MAX, at);
    let (Some(first), Some(max)) = (pause(first), pause(max)) else { return none };
    if first > max {
        at.error_with_help(
            format!("`{}` ends before it begins", shorten(text)),
            "write the shorter one first, such as 25ms..250ms",
        );
    }
    Backoff { first, max }
}
