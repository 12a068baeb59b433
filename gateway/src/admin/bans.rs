//! Bans over the admin socket: what is asked, and bans as people see them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::api::first_of;
use crate::base::time::UtcMillis;
use crate::feedback::decision::{Place, Story, Subject};
use crate::observe::histogram::Durations;

/// Bans of one page.
pub const PAGE_MAX_BANS: usize = 10_000;

/// What can be asked about bans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BanRequest {
    /// A page of them.
    List(BanQuery),
    /// Take some back: all of them or none.
    Lift(BanNames),
    /// Let some hold until they are lifted.
    Pin(BanNames),
    /// Take some back, and remember nothing of them.
    Forget(BanNames),
    /// Make some for somebody outside: all of them or none.
    Make(MakeBans),
    /// Take back what a program had made.
    Withdraw(WithdrawBans),
}

/// Bans that somebody outside asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MakeBans {
    /// Prefixes as people write them.
    pub prefixes: Vec<String>,
    /// How long. (ms)
    pub for_ms: u64,
    /// Why.
    pub reason: String,
    /// What is done.
    #[serde(default)]
    pub measure: Means,
    /// Name of the profile of [`Means::SlowDown`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The program that has decided; `None`: whoever asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// They are addresses that a trusted proxy names.
    #[serde(default)]
    pub believed: bool,
}

/// What is done about a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Means {
    /// Its packets are dropped.
    #[default]
    Ban,
    /// New connections are answered with a reset.
    Reset,
    /// It is held to a profile.
    SlowDown,
}

/// Bans of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithdrawBans {
    /// Prefixes as people write them.
    pub prefixes: Vec<String>,
    /// The program that had decided.
    pub from: String,
}

/// Which bans are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BanQuery {
    /// Instead of bans the last decisions that were not carried out.
    pub held: bool,
    /// Bans of the page, at most [`PAGE_MAX_BANS`].
    pub limit: usize,
    /// Behind this one, which a page names for the next one.
    pub after: Option<Subject>,
}

/// Some bans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BanNames {
    /// Prefixes as people write them.
    pub prefixes: Vec<String>,
}

/// A ban as people see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BanView {
    /// Whose packets, or whose requests.
    pub prefix: String,
    /// Where it may be enforced.
    pub place: Place,
    /// `holds`, `ended`, `lifted` or `held`, which is a decision that was not carried out.
    pub state: String,
    /// `ban`, `slow_down` or `reset`.
    pub measure: String,
    /// The profile that a `slow_down` holds its sources to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The rule that decided last.
    pub rule: String,
    /// Who decided last.
    pub author: String,
    /// When it was made.
    pub made_utc_ms: UtcMillis,
    /// When it ends, or has; for ever without it.
    #[serde(default)]
    pub until_utc_ms: Option<UtcMillis>,
    /// How many decisions count, each of which doubles the time.
    pub times: u32,
    /// Whether it holds until it is lifted.
    pub pinned: bool,
    /// When it was lifted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lifted_utc_ms: Vec<UtcMillis>,
    /// Where it is enforced at this moment: `kernel`, `user space`, `both` or `nowhere`.
    pub enforced: String,
    /// Why it is enforced nowhere, or not carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Packets that it decided about in the kernel.
    pub packets: u64,
    /// When it met the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_packet_utc_ms: Option<UtcMillis>,
    /// What led to it; signals are told by `gateway why` alone.
    pub story: Story,
}

/// How the way back stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedbackView {
    /// Decisions are only shown.
    pub dry_run: bool,
    /// Rules of `feedback.rules`.
    pub rules: usize,
    /// Bans that hold.
    pub bans: usize,
    /// Subjects whose last decision was not carried out.
    pub held: usize,
    /// Why bans are not on the disk, if some are not for longer than they may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<String>,
    /// From the evidence that tips a score to the return of the map update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reaction: Option<Took>,
    /// From a change of bans to its being on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable: Option<Took>,
}

/// How long something took since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// So many times.
    pub count: u64,
    /// Half of them took no longer. (µs)
    pub p50_us: u64,
    /// All but one of a hundred took no longer. (µs)
    pub p99_us: u64,
}

impl Took {
    /// `None` if it never happened.
    pub fn of(durations: &Durations) -> Option<Self> {
        let [p50_us, p99_us] = [0.5, 0.99].map(|share| durations.quantile_us(share));
        Some(Self { count: durations.count(), p50_us: p50_us?, p99_us: p99_us? })
    }
}

impl BanRequest {
    /// Whether it changes anything, and so belongs into the audit trail.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::List(_))
    }
}

/// As the audit trail has it: one bounded line, whatever is odd escaped.
impl fmt::Display for BanRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, names) = match self {
            Self::List(_) => return formatter.write_str("bans list"),
            Self::Lift(names) => ("lift", names),
            Self::Pin(names) => ("pin", names),
            Self::Forget(names) => ("forget", names),
            Self::Make(MakeBans { prefixes, for_ms, reason, from, .. }) => {
                let time = humantime::format_duration(Duration::from_millis(*for_ms));
                write!(formatter, "ban {} --for {time}", first_of(prefixes))?;
                write!(formatter, " --reason {reason:?}")?;
                return match from {
                    Some(from) => write!(formatter, " --from {from:?}"),
                    None => Ok(()),
                };
            }
            Self::Withdraw(WithdrawBans { prefixes, from }) => {
                return write!(formatter, "unban {} --from {from:?}", first_of(prefixes));
            }
        };
        write!(formatter, "bans {verb} {}", first_of(&names.prefixes))
    }
}
