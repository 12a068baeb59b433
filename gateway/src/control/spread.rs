//! What other gateways did about sources is done here, too, as far as the guard here allows; and they are told what was
//! done here. What a crowdsec says is not passed on.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Policy;
use super::feedback::Feedback;
use super::others::{WAITING_MAX, is_told, may_change};
use super::policy::bans::Outcome;
use super::policy::bans::commands::Verb;
use crate::admin::spread::SpreadView;
use crate::base::secret::Secret;
use crate::base::time::{Now, UtcMillis};
use crate::config::{Config, SecretSource};
use crate::feedback::ban::{Author, Ban as KnownBan, Change, What as Became};
use crate::feedback::decision::{Decision, Held, Subject};
use crate::feedback::spread::message::{Ban, Keys, LASTS_MAX, Message, Refused, What};
use crate::feedback::spread::{Health, News, Spread};
use crate::observe::prometheus::Page;
use crate::shared::Redis;

/// What others did that is taken over at once; the rest follows, after whatever else waits.
const NEWS_MAX: usize = 64;

/// Those about whom another gateway decided what is not done here, for now.
pub(super) type Waiting = BTreeSet<Subject>;

/// Takes those out of `waiting` whose decisions may be carried out by now, if they hold where they were made.
pub(super) fn look_again(
    (spread, waiting): (&Spread, &mut Waiting),
    may: &mut dyn FnMut(&Subject) -> bool,
    now: Now,
) {
    let mut again = Vec::new();
    waiting.retain(|subject| {
        let known = spread.known(subject);
        if known.is_none_or(|message| message.ban(now.utc).is_none()) {
            return false;
        }
        let may = may(subject);
        again.extend(may.then_some(*subject));
        !may
    });
    if !again.is_empty() {
        spread.again(again);
    }
}

/// Where the keys are.
pub(super) fn places(config: &Config) -> &[SecretSource] {
    let spread = config.feedback.as_ref().and_then(|feedback| feedback.spread.as_ref());
    spread.map(|spread| &*spread.keys).unwrap_or_default()
}

/// What is no key is a mistake in the configuration, and is found now.
pub(super) fn checked(keys: Vec<Secret>) -> Result<Vec<Secret>, String> {
    if !keys.is_empty() {
        Keys::new("", &keys).map_err(|error| error.to_string())?;
    }
    Ok(keys)
}

/// Tells and hears those whom a configuration leads to.
pub(super) fn configure(
    spread: &mut Option<Spread>,
    (config, redis): (&Config, Option<&Redis>),
    keys: &[Secret],
) {
    // The keys were looked at when they were read.
    let others = redis
        .filter(|_| !keys.is_empty())
        .and_then(|redis| Some((redis, Keys::new(&redis.config().prefix, keys).ok()?)));
    if others.is_none() {
        *spread = None;
        return;
    }
    if spread.is_none() {
        let started = Spread::start(&config.state.dir, &name());
        let started = started.inspect_err(|error| {
            tracing::error!(%error, "other gateways are neither told nor heard");
        });
        *spread = started.ok();
    }
    if let Some(spread) = spread {
        spread.link(others);
    }
}

/// Tells them what happened to a ban here.
pub(super) fn tell(spread: &Spread, change: &Change, now: Now) {
    let what = match (&change.what, &change.ban) {
        (Became::Made | Became::Extended | Became::Shortened | Became::Pinned, Some(ban)) => {
            held_off(ban, now)
        }
        (Became::Lifted, _) => What::Lift,
        (Became::Forgotten, _) => What::Forget,
        _ => return,
    };
    spread.tell(change.subject, what, now.utc);
}

/// What people call this host.
fn name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
    if name.is_empty() { "a gateway".to_owned() } else { name }
}

/// Takes over what others did.
pub(super) fn take(
    (policy, feedback): (&mut Policy, &mut Feedback),
    (spread, waiting): (&Spread, &mut Waiting),
    (dry_run, now): (bool, Now),
) {
    for News { message, recalled } in spread.news(NEWS_MAX) {
        let subject = message.subject;
        let known = policy.bans().find(&subject).filter(|_| recalled);
        if let Some(what) = known.and_then(|known| untold(known, &message, now)) {
            spread.tell(subject, what, now.utc);
            continue;
        }
        let outcome = carry_out((policy, feedback), &message, (dry_run, now));
        waiting.remove(&subject);
        match outcome {
            Ok(Some(outcome)) if may_change(outcome.name()) && waiting.len() < WAITING_MAX => {
                waiting.insert(subject);
            }
            Ok(_) => {}
            Err(error) => {
                let prefix = subject.prefix;
                tracing::warn!(%prefix, error, "what another gateway did is not done here");
            }
        }
    }
}

/// What was done here after `message` was known, if this gateway ended before it could tell.
fn untold(known: &Arc<KnownBan>, message: &Message, now: Now) -> Option<What> {
    let after = |at: UtcMillis| at > message.order.made;
    if known.holds(now.boot) {
        return (is_told(&known.author) && after(known.decided)).then(|| held_off(known, now));
    }
    let lifted = known.lifts.last().copied().is_some_and(after);
    (lifted && message.ban(now.utc).is_some()).then_some(What::Lift)
}

fn carry_out(
    (policy, feedback): (&mut Policy, &mut Feedback),
    message: &Message,
    (dry_run, now): (bool, Now),
) -> Result<Option<Outcome>, String> {
    let author = Author::Gateway(message.gateway.clone());
    let subject = message.subject;
    let known = policy.bans().find(&subject).cloned();
    let holds = known.as_ref().is_some_and(|ban| ban.holds(now.boot));
    let change = |policy: &mut Policy, verb| {
        let changed = policy.change_subjects(verb, &[subject], (&author, now));
        changed.map(|()| None).map_err(|refusal| refusal.error)
    };
    match &message.what {
        What::Ban(ban) if ban.until > now.utc => {
            let decision = decision(message, ban, (dry_run, now));
            Ok(Some(feedback.decide(policy, (&decision, &author), now)))
        }
        What::Ban(_) => Ok(None),
        What::Pin(_) if known.as_ref().is_some_and(|known| known.pinned) => Ok(None),
        What::Pin(ban) => {
            let decision = decision(message, ban, (dry_run, now));
            match feedback.decide(policy, (&decision, &author), now) {
                Outcome::Enforced(_) | Outcome::Standing => change(policy, Verb::Pin),
                // It is shown with why it is not done.
                outcome => Ok(Some(outcome)),
            }
        }
        What::Lift if holds => change(policy, Verb::Lift),
        What::Forget if known.is_some() => change(policy, Verb::Forget),
        What::Lift | What::Forget => Ok(None),
    }
}

fn decision(message: &Message, ban: &Ban, (dry_run, now): (bool, Now)) -> Decision {
    let lasts = match &message.what {
        What::Pin(_) => LASTS_MAX,
        _ => ban.until.since(now.utc).min(LASTS_MAX),
    };
    Decision {
        subject: message.subject,
        rule: ban.rule.as_str().into(),
        measure: ban.measure.clone(),
        lasts,
        times: ban.times,
        at: now,
        story: ban.story.clone(),
        held: dry_run.then_some(Held::DryRun),
    }
}

fn held_off(ban: &Arc<KnownBan>, now: Now) -> What {
    let told = Ban {
        measure: ban.measure.clone(),
        rule: ban.rule.clone(),
        until: ban.end.until().utc_at(now).unwrap_or(ban.decided),
        times: ban.times,
        story: ban.story.clone(),
    };
    if ban.pinned { What::Pin(told) } else { What::Ban(told) }
}

/// Figures as Prometheus reads them.
pub(super) fn page(spread: Option<&Spread>) -> String {
    let mut page = Page::default();
    let Some(spread) = spread else { return page.text() };
    let (health, counts) = (spread.health(), spread.counts());
    page.gauge("gateway_feedback_spread_up", "1 if other gateways are heard.")
        .only(health.up.into());
    let help = "Sources that gateways of the group did something about, lifts included.";
    page.gauge("gateway_feedback_spread_sources", help).only(health.known as u64);
    let help = "What other gateways were not told yet.";
    page.gauge("gateway_feedback_spread_outgoing", help).only(health.outgoing as u64);
    let help = "What other gateways were told.";
    page.counter("gateway_feedback_spread_sent_total", help).only(counts.sent);
    let help = "What other gateways said that was news.";
    page.counter("gateway_feedback_spread_received_total", help).only(counts.received);
    let help = "What was said by whomever and not believed, or no news, by reason.";
    let mut refused = page.counter("gateway_feedback_spread_refused_total", help);
    for (reason, count) in Refused::ALL.iter().zip(counts.refused) {
        refused.with(&[("reason", reason.name())], count);
    }
    page.text()
}

/// As `gateway status` shows it.
pub(super) fn view(spread: &Spread) -> SpreadView {
    let Health { up, error, known, outgoing, ahead_ms } = spread.health();
    SpreadView { up, error, sources: known, outgoing, ahead_ms }
}
