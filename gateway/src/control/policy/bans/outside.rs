//! Bans that somebody outside asks for: people, and programs that watch something else. The guard decides about them as
//! it does about the gateway's own; whoever made one may take it back, and nobody else's.

use std::sync::Arc;
use std::time::Duration;

use gateway_common::rule::Origin;
use ipnet::IpNet;

use super::commands::Verb;
use super::{Outcome, Policy};
use crate::admin::api::{Done, Refusal};
use crate::admin::bans::{MakeBans, Means, WithdrawBans};
use crate::base::prefix::{self, display};
use crate::base::text::{is_hidden, is_name};
use crate::base::time::Now;
use crate::config::Measure;
use crate::feedback::ban::{Author, Ban};
use crate::feedback::decision::{Decision, Held, Place, Story, Subject};
use crate::feedback::spread::message::{LASTS_MAX, TEXT_CHARS_MAX, is_wide};

/// Prefixes of one command.
const PREFIXES_MAX: usize = 1000;

impl Policy {
    /// Makes bans for somebody outside, all of them or none of those that the guard lets: `decide` carries each out, or
    /// holds it back.
    pub fn make_bans(
        &mut self,
        asked: &MakeBans,
        (uid, dry_run): (u32, bool),
        now: Now,
        decide: &mut dyn FnMut(&mut Self, &Decision, &Author) -> Outcome,
    ) -> Result<Done, Refusal> {
        if !self.is_serving() {
            return Err(Refusal::failed(
                "no gateway runs, and it takes one to make bans: start it with `gateway run`",
            ));
        }
        let measure = measure(asked)?;
        let author = match &asked.from {
            Some(name) => program(name)?,
            None => Author::User(uid),
        };
        let lasts = Duration::from_millis(asked.for_ms);
        if lasts.is_zero() || lasts > LASTS_MAX {
            return Err(Refusal::usage(
                "a ban lasts at most 31 days, and longer than no time: `gateway deny add` is for \
                 what is to stay",
            ));
        }
        check_reason(&asked.reason)?;
        let place = if asked.believed { Place::UserSpace } else { Place::Kernel };
        let subjects = subjects(&asked.prefixes, place)?;
        for subject in &subjects {
            // All or none: whatever would be refused is found first.
            self.guard.clear(subject.prefix, Origin::Ban).map_err(Refusal::failed)?;
            self.fits(subject, &measure).map_err(Refusal::failed)?;
        }
        let mut done = Done::default();
        for subject in subjects {
            let decision = Decision {
                subject,
                rule: asked.reason.as_str().into(),
                measure: measure.clone(),
                lasts,
                times: 1,
                at: now,
                story: Story::default(),
                held: dry_run.then_some(Held::DryRun),
            };
            let shown = display(&subject.prefix);
            match decide(self, &decision, &author) {
                Outcome::Enforced(_) => done.done.push(format!("{shown} banned ({place})")),
                Outcome::Standing => {
                    done.notes.push(format!("{shown} is held off already, as much or for longer"));
                }
                Outcome::Held(held) => done.notes.push(format!(
                    "{shown}: {}, so it is shown by `gateway bans list --held` and not done",
                    match held {
                        Held::DryRun => "feedback.dry_run is set",
                        _ =>
                            "it would hit more of what is served well than others may \
                              (feedback.ceiling)",
                    }
                )),
                Outcome::Guarded(why) | Outcome::Failed(why) => {
                    return Err(Refusal::failed(format!("{shown}: {why}")));
                }
            }
        }
        Ok(done)
    }

    /// Takes bans back for the program that made them. What has ended, or was decided by somebody else since, stays as
    /// it is.
    pub fn withdraw_bans(&mut self, asked: &WithdrawBans, now: Now) -> Result<Done, Refusal> {
        let author = program(&asked.from)?;
        let mut done = Done::default();
        let mut theirs = Vec::new();
        for subject in subjects(&asked.prefixes, Place::Kernel)? {
            let shown = display(&subject.prefix);
            let both = [Place::Kernel, Place::UserSpace].map(|place| Subject { place, ..subject });
            let is_theirs = |subject: &Subject| self.is_of(subject, &author, now);
            let found: Vec<Subject> = both.into_iter().filter(is_theirs).collect();
            match found.is_empty() {
                true => done.notes.push(format!("{shown} is not banned by {}", asked.from)),
                false => done.done.push(format!("{shown} is free again")),
            }
            theirs.extend(found);
        }
        self.change_subjects(Verb::Withdraw, &theirs, (&author, now))?;
        Ok(done)
    }

    /// Takes back those bans of these prefixes that `author` made, for packets. Answers how many that were.
    pub fn withdraw(
        &mut self,
        prefixes: &[IpNet],
        (author, now): (&Author, Now),
    ) -> Result<usize, Refusal> {
        let place = Place::Kernel;
        let subjects = prefixes.iter().map(|prefix| Subject { prefix: *prefix, place });
        let theirs: Vec<Subject> =
            subjects.filter(|subject| self.is_of(subject, author, now)).collect();
        self.withdraw_subjects(&theirs, (author, now))?;
        Ok(theirs.len())
    }

    /// Whether the guard is against any ban of a subject.
    pub fn is_guarded(&self, subject: &Subject) -> bool {
        self.guard.clear(subject.prefix, Origin::Ban).is_err()
    }

    /// Whether a ban is one that `author` may take back.
    fn is_of(&self, subject: &Subject, author: &Author, now: Now) -> bool {
        let is_of = |ban: &&Arc<Ban>| !ban.pinned && ban.by(author, now.boot).is_some();
        self.bans.find(subject).filter(is_of).is_some()
    }
}

fn measure(asked: &MakeBans) -> Result<Measure, Refusal> {
    match (asked.measure, &asked.profile) {
        (Means::Ban, None) => Ok(Measure::Ban),
        (Means::Reset, None) => Ok(Measure::Reset),
        (Means::SlowDown, Some(profile)) => Ok(Measure::SlowDown { profile: profile.clone() }),
        (Means::SlowDown, None) => Err(Refusal::usage("slow_down needs a profile: --profile NAME")),
        (Means::Ban | Means::Reset, Some(_)) => {
            Err(Refusal::usage("only slow_down has a profile: --measure slow_down"))
        }
    }
}

fn program(name: &str) -> Result<Author, Refusal> {
    match is_name(name) && name.len() <= 64 {
        true => Ok(Author::Outside(name.to_owned())),
        false => Err(Refusal::usage(
            "the name of a program has 1 to 64 visible characters without commas and quotes",
        )),
    }
}

fn check_reason(reason: &str) -> Result<(), Refusal> {
    let length = reason.chars().count();
    if length == 0 || length > TEXT_CHARS_MAX || reason.chars().any(is_hidden) {
        return Err(Refusal::usage(format!(
            "a reason is one line of 1 to {TEXT_CHARS_MAX} characters of plain text"
        )));
    }
    Ok(())
}

fn subjects(prefixes: &[String], place: Place) -> Result<Vec<Subject>, Refusal> {
    if prefixes.is_empty() || prefixes.len() > PREFIXES_MAX {
        return Err(Refusal::usage(format!("name 1 to {PREFIXES_MAX} prefixes")));
    }
    let mut subjects = Vec::new();
    for text in prefixes {
        let prefix = prefix::parse(text).map_err(Refusal::usage)?;
        if is_wide(&prefix) {
            return Err(Refusal::usage(format!(
                "{} is too wide for a ban: `gateway deny add` is for what is meant so",
                display(&prefix)
            )));
        }
        subjects.push(Subject { prefix, place });
    }
    subjects.sort_unstable();
    subjects.dedup();
    Ok(subjects)
}
