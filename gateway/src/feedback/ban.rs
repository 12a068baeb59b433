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
use crate::rules::Until;
use crate::store::Store;
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
    pub fn forgotten(&self, now: Now) -> UtcMillis {
        let Some(end) = self.end.until().utc_at(now) else { return UtcMillis(u64::MAX) };
        let decay = match self.author {
            Author::Outside(_) => Duration::ZERO,
            _ => self.lasts().saturating_mul(self.times),
        };
        end.after(decay).max(self.taught(now))
    }

    /// As scores remember it.
    pub fn remembered(&self, subject: Subject, now: Now) -> Remembered {
        let holds = self.holds(now.boot);
        Remembered {
            subject,
            times: self.times,
            lasts_ms: self.lasts_ms,
            until: self.end.until().utc_at(now).unwrap_or(UtcMillis(u64::MAX)),
            holds: holds.then(|| (self.rule.as_str().into(), self.measure.clone())),
            lifts: u32::try_from(self.lifts_that_teach(now)).unwrap_or(u32::MAX),
            // Wherever the wall clock was when it was lifted.
            lenient_until: self.taught(now).min(now.utc.after(LIFT_TEACHES)),
        }
    }

    /// How many lifts still ask for more evidence.
    pub fn lifts_that_teach(&self, now: Now) -> usize {
        let teaches = |lift: &&UtcMillis| self.as_of(**lift, now).after(LIFT_TEACHES) > now.utc;
        self.lifts.iter().filter(teaches).count()
    }

    /// Until when its last lift teaches.
    fn taught(&self, now: Now) -> UtcMillis {
        let last = self.lifts.last();
        last.map_or(UtcMillis(0), |lift| self.as_of(*lift, now).after(LIFT_TEACHES))
    }

    /// A moment that was noted with its end, by the wall clock as it stands now.
    fn as_of(&self, moment: UtcMillis, now: Now) -> UtcMillis {
        let Some((noted, end)) = self.end.utc.zip(self.end.until().utc_at(now)) else {
            return moment;
        };
        UtcMillis(moment.0.saturating_add(end.0).saturating_sub(noted.0))
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

    /// When it was last lifted, if that is how it ended.
    pub fn was_lifted(&self) -> Option<UtcMillis> {
        self.lifts.last().copied().filter(|lift| Some(*lift) == self.end.utc)
    }

    /// Has it end by this boot's clock. After a reboot the wall clock is believed, but if it is wrong nothing lasts
    /// longer than it was made for, and what was lifted stays so. Answers whether it was kept in another boot.
    pub fn move_to_this_boot(&mut self, store: &Store, now: Now) -> bool {
        let mut end = store.end_now(&self.end, now);
        let mut is_moved = end != self.end;
        if is_moved && self.was_lifted().is_some() {
            let Until { boot, utc } = end.until();
            end = store.end(Until { boot: boot.min(now.boot), utc });
        } else if is_moved && !self.pinned {
            let latest = Until::after(now, Some(self.lasts()));
            end = if end.until().boot > latest.boot { store.end(latest) } else { end };
        }
        self.end = end;
        for one in &mut self.beneath {
            is_moved |= one.move_to_this_boot(store, now);
        }
        is_moved
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

    const MINUTE_MS: u64 = 60_000;

    /// A moment on both clocks. (minutes)
    fn now(boot: u64, utc: u64) -> Now {
        Now { boot: BootTime(boot * MINUTE_MS * 1_000_000), utc: UtcMillis(utc * MINUTE_MS) }
    }

    #[test]
    fn after_a_reboot_nothing_lasts_longer_than_it_was_made_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let made_for = |minutes: u64, end| Ban {
            lasts_ms: minutes * MINUTE_MS,
            ..ban(Author::Outside(format!("p{end}")), end)
        };
        let moved = |mut ban: Ban| {
            assert!(ban.move_to_this_boot(&store, now(1, 100)));
            let ends = std::iter::once(&ban).chain(&ban.beneath);
            let ends = ends.map(|one| one.end.until().boot.0 / 1_000_000 / MINUTE_MS);
            let ends: Vec<u64> = ends.collect();
            assert!(!ban.move_to_this_boot(&store, now(2, 100)), "it is of this boot by now");
            (ends, ban)
        };
        let mut two = made_for(60, 130);
        two.beneath = vec![made_for(30, 120), made_for(30, 4_000_000)];
        let (ends, two) = moved(two);
        assert_eq!(ends, [31, 21, 31], "those beneath as well");
        let left = two.without(&two.author, now(22, 121).boot).unwrap();
        assert_eq!(left.author, Author::Outside("p4000000".to_owned()));
        // The wall clock is months behind, as where nothing keeps it while the host is off.
        assert_eq!(moved(made_for(10, 200_000)).0, [11]);
        let lifted = Ban { lifts: vec![UtcMillis(200_000 * MINUTE_MS)], ..made_for(10, 200_000) };
        let (_, lifted) = moved(lifted);
        assert!(!lifted.holds(now(1, 100).boot), "what was lifted stays so");
        assert!(lifted.was_lifted().is_some());
        let remembered =
            lifted.remembered(Subject::from_str("kernel 192.0.2.1/32").unwrap(), now(1, 100));
        assert_eq!(remembered.lenient_until, now(0, 160).utc, "and teaches for an hour");
    }

    #[test]
    fn clock_jumps_change_nothing_that_is_remembered() {
        const DAY: u64 = 24 * 60;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let subject = Subject::from_str("kernel 192.0.2.1/32").unwrap();
        let (start, lasts) = (now(1000, 10 * DAY), Duration::from_secs(600));
        let end = store.end(Until::after(start, Some(lasts)));
        let holds = Ban { end, lasts_ms: 10 * MINUTE_MS, ..ban(Author::Feedback, 0) };
        let mut lifted = holds.clone();
        lifted.lifted(start, store.end(Until { boot: start.boot, utc: Some(start.utc) }));
        for today in [10 * DAY, 11 * DAY, 9 * DAY] {
            let later = |minutes: u64| now(1000 + minutes, today + minutes);
            let known = holds.remembered(subject, later(4));
            assert_eq!((known.until, known.holds.is_some()), (later(10).utc, true));
            assert!(holds.forgotten(later(19)) > later(19).utc, "{today}");
            assert!(holds.forgotten(later(20)) <= later(20).utc, "{today}");
            for (minutes, teaches) in [(59, 1), (60, 0)] {
                assert_eq!(lifted.lifts_that_teach(later(minutes)), teaches, "{today}");
                let is_known = lifted.forgotten(later(minutes)) > later(minutes).utc;
                assert_eq!(is_known, teaches > 0, "{today}");
            }
            assert_eq!(lifted.remembered(subject, later(30)).lenient_until, later(60).utc);
        }
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
