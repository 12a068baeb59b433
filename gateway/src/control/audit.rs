//! What the audit trail says: who changed what and why, in a line for each change.

use serde::Serialize;

use crate::admin::api::{Answer, Refusal};
use crate::base::prefix::display;
use crate::base::time::{UtcMillis, utc};
use crate::config::{Config, Measure};
use crate::feedback::ban::{Author, Change, What, is_for_ever};
use crate::feedback::decision::{Place, Story};
use crate::observe::audit::{Sink, Trail, line};

/// One line.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    time: String,
    time_utc_ms: UtcMillis,
    what: &'a str,
    who: String,
    #[serde(flatten)]
    about: About<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum About<'a> {
    /// Somebody's command, and why it was refused.
    Command {
        command: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        refused: Option<&'a str>,
    },
    Ban(OfBan<'a>),
}

/// A ban, or a decision that did not become one.
#[derive(Debug, Serialize)]
struct OfBan<'a> {
    prefix: String,
    place: Place,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(flatten)]
    of: Option<Of<'a>>,
}

#[derive(Debug, Serialize)]
struct Of<'a> {
    rule: &'a str,
    measure: &'a Measure,
    times: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    until_utc_ms: Option<UtcMillis>,
    pinned: bool,
    story: &'a Story,
}

/// The trail of a configuration, to be started.
pub(super) fn open(config: &Config) -> Result<Sink, String> {
    let path = &config.audit.path;
    Sink::open(path, config.audit.max_bytes).map_err(|error| {
        format!(
            "audit.path: {} cannot be written: {error}; it has to be a file in a folder that the \
             gateway's user may write to",
            path.display()
        )
    })
}

/// Leaves a trace of a command and of what became of it.
pub(super) fn command(trail: &Trail, uid: u32, command: &str, answer: &Result<Answer, Refusal>) {
    let refused = answer.as_ref().err().map(|refusal| refusal.error.as_str());
    tracing::info!(target: "audit", uid, command, refused, "command");
    trail.line(&of_command(uid, command, refused));
}

/// Leaves a trace of a change of a ban.
pub(super) fn ban(trail: &Trail, change: &Change) {
    trail.line(&of_change(change));
}

/// Leaves traces while no gateway runs.
pub(super) fn offline(
    config: &Config,
    (uid, told): (u32, &str),
    answer: &Result<Answer, Refusal>,
    changes: &[Change],
) -> Result<(), String> {
    let mut sink = open(config)?;
    let refused = answer.as_ref().err().map(|refusal| refusal.error.as_str());
    let lines = changes.iter().map(|change| line(&of_change(change)));
    let mut lines = lines.chain([line(&of_command(uid, told, refused))]);
    lines.try_for_each(|line| sink.write(&line)).map_err(|error| error.to_string())
}

fn of_command<'a>(uid: u32, command: &'a str, refused: Option<&'a str>) -> Entry<'a> {
    entry("command", &Author::User(uid), About::Command { command, refused })
}

fn of_change(change: &Change) -> Entry<'_> {
    let Change { subject, what, author, ban, decision } = change;
    let why = match what {
        What::Refused(why) => Some(why.as_str()),
        What::Held(why) => Some(*why),
        _ => None,
    };
    let of_ban = ban.as_ref().map(|ban| Of {
        rule: &ban.rule,
        measure: &ban.measure,
        times: ban.times,
        until_utc_ms: ban.end.utc.filter(|_| !is_for_ever(&ban.end)),
        pinned: ban.pinned,
        story: &ban.story,
    });
    let of_decision = decision.as_ref().map(|decision| Of {
        rule: &decision.rule,
        measure: &decision.measure,
        times: decision.times,
        until_utc_ms: Some(decision.at.utc.after(decision.lasts)),
        pinned: false,
        story: &decision.story,
    });
    let (prefix, of) = (display(&subject.prefix), of_decision.or(of_ban));
    entry(what.name(), author, About::Ban(OfBan { prefix, place: subject.place, why, of }))
}

fn entry<'a>(what: &'a str, author: &Author, about: About<'a>) -> Entry<'a> {
    let now = utc();
    Entry { time: now.display(), time_utc_ms: now, what, who: author.to_string(), about }
}
