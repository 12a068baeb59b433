//! Bans lifted, pinned and forgotten by people: all that are named or none, on the disk before anybody is told.

use std::sync::Arc;

use gateway_common::rule::Origin;

use super::Policy;
use crate::admin::api::{Done, Refusal};
use crate::base::prefix::{self, display};
use crate::base::time::Now;
use crate::feedback::ban::{Author, Ban, What};
use crate::feedback::decision::{Place, Subject};
use crate::rules::Until;
use crate::rules::classify::Entry;

/// What people do to bans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Take them back.
    Lift,
    /// Let them hold until they are lifted.
    Pin,
    /// Take them back, and remember nothing of them.
    Forget,
    /// Take them back, which teaches nothing: a program's time was over.
    Withdraw,
}

/// When a change is on the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durable {
    /// Before anybody is told.
    Now,
    /// As soon as may be.
    Soon,
}

type After = (Subject, Option<Arc<Ban>>);

impl Policy {
    /// Changes the bans of these prefixes, wherever they are enforced. Answers which subjects those were.
    pub fn change_bans(
        &mut self,
        verb: Verb,
        prefixes: &[String],
        (author, now): (&Author, Now),
    ) -> Result<(Done, Vec<Subject>), Refusal> {
        if prefixes.is_empty() {
            return Err(Refusal::usage("no prefix given: `gateway bans list` shows them"));
        }
        let mut subjects = Vec::new();
        for text in prefixes {
            subjects.extend(self.named(verb, text, now)?);
        }
        subjects.sort_unstable();
        subjects.dedup();
        self.change_subjects(verb, &subjects, (author, now))?;
        let mut done = Done::default();
        for subject in &subjects {
            let (prefix, place) = (display(&subject.prefix), subject.place);
            done.done.push(match verb {
                Verb::Lift | Verb::Withdraw => format!("{prefix} lifted ({place})"),
                Verb::Pin => format!("{prefix} pinned ({place}): it holds until it is lifted"),
                Verb::Forget => format!("{prefix} forgotten ({place})"),
            });
            if verb == Verb::Lift
                && *author != Author::Feedback
                && let Some(ban) = self.bans.find(subject)
            {
                let wanted = ban.lifts_that_teach(now);
                done.notes.push(format!(
                    "{prefix}: for an hour it takes {} times the evidence",
                    1u64 << wanted.min(32)
                ));
            }
        }
        Ok((done, subjects))
    }

    /// Changes these bans, all of them or none. They are on the disk before this returns.
    pub fn change_subjects(
        &mut self,
        verb: Verb,
        subjects: &[Subject],
        by: (&Author, Now),
    ) -> Result<(), Refusal> {
        self.change_all((verb, Durable::Now), subjects, by)
    }

    /// Takes these bans back for whoever made them, all or none. They are written behind, for nobody waits.
    pub fn withdraw_subjects(
        &mut self,
        subjects: &[Subject],
        by: (&Author, Now),
    ) -> Result<(), Refusal> {
        self.change_all((Verb::Withdraw, Durable::Soon), subjects, by)
    }

    fn change_all(
        &mut self,
        (verb, durable): (Verb, Durable),
        subjects: &[Subject],
        (author, now): (&Author, Now),
    ) -> Result<(), Refusal> {
        let before = subjects.iter().map(|one| (*one, self.bans.find(one).cloned()));
        let before: Vec<After> = before.collect();
        let after = before.iter().map(|(subject, ban)| {
            let after = match (verb, ban) {
                (Verb::Forget, _) | (_, None) => None,
                (Verb::Lift, Some(ban)) => {
                    let mut ban = Ban::clone(ban);
                    ban.lifted(now, self.store.end(Until { boot: now.boot, utc: Some(now.utc) }));
                    Some(Arc::new(ban))
                }
                (Verb::Withdraw, Some(ban)) => {
                    let end = || self.store.end(Until { boot: now.boot, utc: Some(now.utc) });
                    let left = ban.without(author, now.boot);
                    Some(Arc::new(left.unwrap_or_else(|| Ban {
                        end: end(),
                        beneath: Vec::new(),
                        ..Ban::clone(ban)
                    })))
                }
                (Verb::Pin, Some(ban)) => {
                    let end = self.store.end(Until::NEVER);
                    Some(Arc::new(Ban { pinned: true, end, ..Ban::clone(ban) }))
                }
            };
            (*subject, after)
        });
        let after: Vec<After> = after.collect();
        if let Err(error) = self.exchange_bans(&after, durable, now) {
            return Err(Refusal::failed(match self.exchange_bans(&before, durable, now) {
                Ok(()) => error.to_string(),
                Err(other) => format!("{error}; and it could not be undone: {other}"),
            }));
        }
        for subject in subjects {
            let holds = self.bans.find(subject).is_some_and(|ban| ban.holds(now.boot));
            let what = match verb {
                Verb::Withdraw if holds => What::Shortened,
                Verb::Lift | Verb::Withdraw => What::Lifted,
                Verb::Pin => What::Pinned,
                Verb::Forget => What::Forgotten,
            };
            self.bans.note(*subject, what, author.clone());
        }
        Ok(())
    }

    /// Puts bans in the place of others: in the store, then in the tables.
    fn exchange_bans(&mut self, bans: &[After], durable: Durable, now: Now) -> anyhow::Result<()> {
        for (subject, ban) in bans {
            self.bans.keep(*subject, ban.clone());
        }
        if durable == Durable::Now {
            self.flush_bans()?;
        }
        for (subject, ban) in bans {
            match ban.as_ref().filter(|ban| ban.holds(now.boot)) {
                Some(ban) => self.put_ban(subject, ban, now)?,
                None => self.take_ban(subject, now)?,
            }
        }
        Ok(())
    }

    /// The bans that a text names.
    fn named(&self, verb: Verb, text: &str, now: Now) -> Result<Vec<Subject>, Refusal> {
        let prefix = prefix::parse(text).map_err(Refusal::usage)?;
        let places = [Place::Kernel, Place::UserSpace];
        let fits = |subject: &Subject| match self.bans.find(subject) {
            Some(ban) => verb == Verb::Forget || ban.holds(now.boot),
            None => verb != Verb::Pin && self.is_left_behind(subject),
        };
        let named: Vec<Subject> =
            places.map(|place| Subject { prefix, place }).into_iter().filter(fits).collect();
        if !named.is_empty() {
            return Ok(named);
        }
        let shown = display(&prefix);
        let covers = |(subject, ban): &(&Subject, &Arc<Ban>)| {
            ban.holds(now.boot) && subject.prefix.contains(&prefix)
        };
        Err(Refusal::failed(match self.bans.iter().find(covers) {
            Some((subject, _)) => {
                let around = display(&subject.prefix);
                format!("{shown} has no ban of its own, it lies in {around}, which has: name that")
            }
            None => format!("{shown} is not banned: see `gateway bans list`"),
        }))
    }
}

impl Policy {
    /// Whether the kernel has a ban that a gateway had not written down when it was killed.
    fn is_left_behind(&self, subject: &Subject) -> bool {
        let held = self.door.as_ref().map(|door| door.held(&subject.prefix)).unwrap_or_default();
        let is_ban = |entry: &Entry| entry.origin == Origin::Ban;
        subject.place == Place::Kernel && held.iter().any(|(entry, _)| is_ban(entry))
    }
}
