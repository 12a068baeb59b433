//! Bans: what became of decisions, and what is remembered of them. A ban that has ended or was lifted is remembered for
//! as long as it makes the next decision about its subject another one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use gateway_common::rule::{Action, FOREVER};
use serde::{Deserialize, Serialize};

use super::decision::{Decision, Place, Story, Subject};
use super::score::Remembered;
use crate::base::time::{BootTime, Now, UtcMillis};
use crate::config::Measure;
use crate::store::bans::End;

/// For so long a lifted subject needs twice the evidence, for each time that it was lifted.
pub const LIFT_TEACHES: Duration = Duration::from_secs(3600);
/// Lifts that are remembered of one subject.
const LIFTS_MAX: usize = 8;
/// Decisions of others that lie beneath the one that holds.
const BENEATH_MAX: usize = 4;

/// What is known about the ban of one subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ban {
    /// The rule of `feedback.rules` that decided last, or what somebody outside calls it.
    pub rule: String,
    /// What is done.
    pub measure: Measure,
    /// Who decided last.
    pub author: Author,
    /// When it was made; what prolongs it leaves that as it is.
    pub made: UtcMillis,
    /// When the last decision was made.
    pub decided: UtcMillis,
    /// When it ends, or has.
    pub end: End,
    /// For how long the last decision was.
    pub lasts_ms: u64,
    /// How many decisions count, each of which doubles the time.
    pub times: u32,
    /// When somebody took it back, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lifts: Vec<UtcMillis>,
    /// Whether it holds until somebody lifts it.
    #[serde(default)]
    pub pinned: bool,
    /// What led to the last decision.
    pub story: Story,
    /// What others decided and holds, too, once each, where whoever decided last may take that back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beneath: Vec<Ban>,
}

/// Who changes bans.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    /// The gateway's own rules.
    Feedback,
    /// A user of the host at the command line, by number.
    User(u32),
    /// Something else that watches, by the name that it gives.
    Outside(String),
    /// Another gateway, by its name.
    Gateway(String),
}

impl Ban {
    /// Whether it holds.
    pub fn holds(&self, now: BootTime) -> bool {
        self.end.until().boot > now
    }

    /// How long the last decision was for.
    pub fn lasts(&self) -> Duration {
        Duration::from_millis(self.lasts_ms)
    }

    /// First moment at which it means nothing any more: its times have decayed, and its lifts teach nothing. What else
    /// watches has its own memory.
    pub fn forgotten(&self) -> UtcMillis {
        let Some(end) = self.end.utc else { return UtcMillis(u64::MAX) };
        let decay = match self.author {
            Author::Outside(_) => Duration::ZERO,
            _ => self.lasts().saturating_mul(self.times),
        };
        let taught = self.lifts.last().map(|lift| lift.after(LIFT_TEACHES));
        end.after(decay).max(taught.unwrap_or(UtcMillis(0)))
    }

    /// As scores remember it.
    pub fn remembered(&self, subject: Subject, now: Now) -> Remembered {
        let holds = self.holds(now.boot);
        let lenient = self.lifts.last().map_or(UtcMillis(0), |lift| lift.after(LIFT_TEACHES));
        Remembered {
            subject,
            times: self.times,
            lasts_ms: self.lasts_ms,
            until: self.end.utc.unwrap_or(UtcMillis(u64::MAX)),
            holds: holds.then(|| (self.rule.as_str().into(), self.measure.clone())),
            lifts: u32::try_from(self.lifts_that_teach(now)).unwrap_or(u32::MAX),
            lenient_until: lenient,
        }
    }

    /// How many lifts still ask for more evidence.
    pub fn lifts_that_teach(&self, now: Now) -> usize {
        self.lifts.iter().filter(|lift| lift.after(LIFT_TEACHES) > now.utc).count()
    }

    /// Somebody took it back.
    pub fn lifted(&mut self, now: Now, end: End) {
        self.pinned = false;
        self.end = end;
        self.beneath.clear();
        // It was none that should count.
        self.times = self.times.saturating_sub(1);
        self.lifts.push(now.utc);
        if self.lifts.len() > LIFTS_MAX {
            self.lifts.remove(0);
        }
    }

    /// What `author` decided of it, if that holds.
    pub fn by(&self, author: &Author, now: BootTime) -> Option<&Self> {
        let all = std::iter::once(self).chain(&self.beneath);
        all.filter(|one| one.holds(now)).find(|one| one.author == *author)
    }

    /// Notes what somebody else decided, too, in the place of what they had decided before. There are only so many:
    /// those go that end first.
    pub fn lay_beneath(&mut self, other: &Self, now: BootTime) {
        let others = other.beneath.iter().chain([other]);
        for other in others.filter(|other| other.author != self.author) {
            self.beneath.retain(|one| one.holds(now) && one.author != other.author);
            self.beneath.push(Self { beneath: Vec::new(), ..other.clone() });
        }
        self.beneath.sort_by_key(|one| std::cmp::Reverse(one.end.until().boot));
        self.beneath.truncate(BENEATH_MAX);
    }

    /// What holds of it without what `author` decided, if anything does.
    pub fn without(&self, author: &Author, now: BootTime) -> Option<Self> {
        let others = self.beneath.iter().filter(|one| one.author != *author && one.holds(now));
        let mut others: Vec<Self> = others.cloned().collect();
        if self.author != *author {
            return Some(Self { beneath: others, ..self.clone() });
        }
        let key = |one: &Self| (strength(&one.measure), one.end.until().boot);
        let strongest = (0..others.len()).max_by_key(|index| others.get(*index).map(key))?;
        let strongest = others.swap_remove(strongest);
        Some(Self { beneath: others, lifts: self.lifts.clone(), ..strongest })
    }

    /// As the reason of its rule.
    pub fn reason(&self) -> String {
        let Story { score, wanted, .. } = self.story;
        match self.author {
            Author::Feedback => format!("{}: {score:.0} of {wanted:.0}", self.rule),
            _ => format!("{} by {}", self.rule, self.author),
        }
    }
}

/// How strong a measure is: a weaker one takes the place of none that holds.
pub fn strength(measure: &Measure) -> u8 {
    match measure {
        Measure::SlowDown { .. } => 1,
        Measure::Reset => 2,
        Measure::Ban => 3,
    }
}

/// What a measure does in the tables.
pub fn action(measure: &Measure) -> Action {
    match measure {
        Measure::Ban => Action::Deny,
        Measure::SlowDown { .. } => Action::Limit,
        Measure::Reset => Action::Reset,
    }
}

/// The profile that a measure names; empty where it names none.
pub fn profile(measure: &Measure) -> &str {
    match measure {
        Measure::SlowDown { profile } => profile,
        Measure::Ban | Measure::Reset => "",
    }
}

/// Something that became of a decision or of a ban, for the audit trail and for whoever is to hear of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Whose.
    pub subject: Subject,
    /// What.
    pub what: What,
    /// By whom.
    pub author: Author,
    /// The ban as it is now, or was; `None` where there never was one.
    pub ban: Option<std::sync::Arc<Ban>>,
    /// The decision that was not carried out.
    pub decision: Option<Box<Decision>>,
}

/// What became of a ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It was made.
    Made,
    /// It holds longer, or does more.
    Extended,
    /// What one of several decided was taken back, and another's decision holds.
    Shortened,
    /// Somebody took it back.
    Lifted,
    /// It holds until it is lifted.
    Pinned,
    /// Nothing is remembered of it any more.
    Forgotten,
    /// Its time was over.
    Expired,
    /// It was not made, and why.
    Refused(String),
    /// The decision is only shown, and why.
    Held(&'static str),
}

impl What {
    /// Its name in the audit trail.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Extended => "extended",
            Self::Shortened => "shortened",
            Self::Lifted => "lifted",
            Self::Pinned => "pinned",
            Self::Forgotten => "forgotten",
            Self::Expired => "expired",
            Self::Refused(_) => "refused",
            Self::Held(_) => "held",
        }
    }
}

impl fmt::Display for Author {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feedback => formatter.write_str("feedback"),
            Self::User(uid) => write!(formatter, "user {uid}"),
            Self::Outside(name) => write!(formatter, "outside {name}"),
            Self::Gateway(name) => write!(formatter, "gateway {name}"),
        }
    }
}

/// As a key of the store.
impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::Kernel => "kernel",
            Place::UserSpace => "user_space",
        };
        write!(formatter, "{place} {}", self.prefix)
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, prefix) = text.split_once(' ').ok_or("it has no prefix")?;
        let place = match place {
            "kernel" => Place::Kernel,
            "user_space" => Place::UserSpace,
            _ => return Err("its place is unknown".to_owned()),
        };
        let prefix = prefix.parse().map_err(|_| "its prefix cannot be read")?;
        Ok(Self { prefix, place })
    }
}

/// Whether an end is none.
pub fn is_for_ever(end: &End) -> bool {
    end.until().boot == BootTime(FOREVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(author: Author, minutes: u64) -> Ban {
        let end = UtcMillis(minutes * 60_000);
        let end = serde_json::json!({"utc": end, "boot": "", "boot_ns": end.0 * 1_000_000});
        Ban {
            rule: "r".to_owned(),
            measure: Measure::Ban,
            author,
            made: UtcMillis(0),
            decided: UtcMillis(0),
            end: serde_json::from_value(end).unwrap(),
            lasts_ms: 0,
            times: 1,
            lifts: Vec::new(),
            pinned: false,
            story: Story::default(),
            beneath: Vec::new(),
        }
    }

    #[test]
    fn what_one_takes_back_leaves_what_others_decided() {
        let program = |name: &str| Author::Outside(name.to_owned());
        let (one, two, person) = (program("one"), program("two"), Author::User(7));
        let (now, late) = (BootTime(0), BootTime(6 * 60_000_000_000));
        let mut top = ban(one.clone(), 60);
        let mut standing = ban(two.clone(), 20);
        standing.lay_beneath(&ban(person.clone(), 5), now);
        top.lay_beneath(&standing, now);
        assert_eq!(top.beneath.len(), 2);
        assert!(top.beneath.iter().all(|beneath| beneath.beneath.is_empty()));
        let authors = |ban: &Ban| -> Vec<Author> {
            std::iter::once(ban).chain(&ban.beneath).map(|one| one.author.clone()).collect()
        };
        let left = top.without(&one, now).unwrap();
        assert_eq!(authors(&left), [two.clone(), person.clone()]);
        let left = left.without(&two, now).unwrap();
        assert_eq!(authors(&left), std::slice::from_ref(&person));
        assert_eq!(left.without(&person, now), None);
        assert_eq!(authors(&top.without(&two, now).unwrap()), [one.clone(), person.clone()]);
        // What has ended is nobody's any more.
        assert!(top.by(&person, now).is_some() && top.by(&person, late).is_none());
        assert_eq!(top.without(&one, late).unwrap().beneath, []);
        // What somebody decides again takes the place of what they had; and there are only so many.
        top.lay_beneath(&ban(two.clone(), 30), now);
        assert_eq!(authors(&top), [one.clone(), two, person]);
        (0..9).for_each(|n| top.lay_beneath(&ban(program(&format!("p{n}")), 10 + n), now));
        assert_eq!(top.beneath.len(), BENEATH_MAX);
        assert_eq!(authors(&top)[1..3], [program("two"), program("p8")]);
        let again: Ban = serde_json::from_value(serde_json::to_value(&top).unwrap()).unwrap();
        assert_eq!(again, top);
    }

    #[test]
    fn a_subject_is_its_key_there_and_back() {
        for (prefix, place) in
            [("192.0.2.1/32", Place::Kernel), ("2001:db8::/64", Place::UserSpace)]
        {
            let subject = Subject { prefix: prefix.parse().unwrap(), place };
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
        assert!("kernel".parse::<Subject>().is_err());
        assert!("moon 192.0.2.1/32".parse::<Subject>().is_err());
    }
}
