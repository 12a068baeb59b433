//! The thread that talks to the other gateways: it follows, tells, compares and keeps. Whatever fails is tried again,
//! at most every second; nobody waits for it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::message::{AHEAD_MAX, Message, Refused};
use super::{Kept, Link, Position, Shared};
use crate::base::random::random;
use crate::base::time::{instant, utc};
use crate::feedback::decision::Subject;
use crate::shared::bans::{BATCH_MAX, Reach, STATE_ENTRIES_MAX};
use crate::store::spread::Messages;

/// What changed is on the disk after about this time.
const KEEP_AFTER: Duration = Duration::from_millis(50);
/// How often what counts no more is looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// How often all is compared, whatever the log says: what Redis lost in a failover comes back.
const COMPARE_EVERY: Duration = Duration::from_mins(10);
/// Between two attempts; each doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A connection that lasted so long is made again at once.
const LASTING: Duration = Duration::from_secs(1);

/// Runs until nobody can say any more whom to talk to.
pub(super) fn run(
    shared: &Shared,
    messages: Messages,
    mut link: watch::Receiver<Option<Arc<Link>>>,
) {
    let messages = Arc::new(messages);
    let runtime = match Builder::new_current_thread().enable_io().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            shared.set_health(false, Some(error.to_string()));
            return;
        }
    };
    runtime.block_on(async {
        let talking = async {
            loop {
                let now = link.borrow_and_update().clone();
                tokio::select! {
                    changed = link.changed() => if changed.is_err() { return },
                    () = talk(shared, now) => {}
                }
            }
        };
        tokio::select! {
            () = talking => {}
            () = keep(shared, &messages) => {}
        }
    });
    runtime.shutdown_background();
    if let Err(error) = write(shared, &messages) {
        tracing::error!(%error, "what other gateways are to be told cannot be kept");
    }
}

async fn talk(shared: &Shared, link: Option<Arc<Link>>) {
    let Some(link) = link else {
        shared.set_health(false, None);
        return std::future::pending().await;
    };
    tokio::join!(follow(shared, &link), publish(shared, &link));
}

async fn follow(shared: &Shared, link: &Link) {
    let mut pause = PAUSE_MIN;
    loop {
        let began = instant();
        let Err(error) = session(shared, link).await;
        tracing::debug!(error, "other gateways are not followed");
        shared.set_health(false, Some(error));
        if began.elapsed() >= LASTING {
            pause = PAUSE_MIN;
        }
        // Many gateways: not all at once.
        let part = 768 + (random() % 512) as u32;
        sleep(pause * part / 1024).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Follows the log for as long as that goes well.
async fn session(shared: &Shared, link: &Link) -> Result<Infallible, String> {
    let mut follower = link.board.follow().await?;
    let reach = look(link).await?;
    let position = shared.state().position.clone();
    if !reach.has_all_after(&position.epoch, position.seen()) {
        compare(shared, link, &reach).await?;
    }
    shared.set_health(true, None);
    shared.publish.notify_one();
    let mut compared = instant();
    loop {
        let seen = shared.state().position.seen();
        for (id, bytes) in follower.next(seen).await? {
            take(shared, link, &bytes);
            let position = &mut shared.state().position;
            (position.millis, position.sequence) = (id.millis, id.sequence);
        }
        // Asked without waiting.
        let is_asked = timeout(Duration::ZERO, shared.compare.notified()).await.is_ok();
        if is_asked || compared.elapsed() >= COMPARE_EVERY {
            compare(shared, link, &look(link).await?).await?;
            compared = instant();
        }
    }
}

async fn look(link: &Link) -> Result<Reach, String> {
    let reach = link.board.look().await;
    reach.map_err(|error| format!("Redis does not say what it has: {}", error.name()))
}

/// Takes an entry of the log.
fn take(shared: &Shared, link: &Link, bytes: &[u8]) {
    let now = utc();
    let opened = link.keys.open(bytes, now);
    let of_own = |message: &Message| message.order.instance == shared.state().instance;
    let heard = opened.map(|message| (of_own(&message), shared.hear(message, now)));
    match heard {
        Ok((false, Err(why))) | Err(why) => shared.refuse(why),
        // What was said here is known, or has been overtaken.
        Ok((true, _) | (false, Ok(_))) => {}
    }
}

/// Compares all that is known here with all that is in Redis: takes what is later there, tells what is later here.
async fn compare(shared: &Shared, link: &Link, reach: &Reach) -> Result<(), String> {
    let mut same = BTreeSet::new();
    let (mut cursor, mut left) = (0, STATE_ENTRIES_MAX * 2);
    loop {
        let failed = |error: crate::shared::Unavailable| {
            format!("Redis does not say what is known: {}", error.name())
        };
        let page = link.board.state(cursor).await.map_err(failed)?;
        left = left.saturating_sub(page.entries.len().max(1));
        for (key, bytes) in page.entries {
            match compare_one(shared, link, &key, &bytes) {
                Compared::Same(subject) => {
                    same.insert(subject);
                }
                Compared::Other => {}
                Compared::Bad => link.board.remove(&key, &bytes).await.map_err(failed)?,
            }
        }
        match page.next {
            Some(next) if left > 0 => cursor = next,
            _ => break,
        }
    }
    let mut state = shared.state();
    let untold: Vec<Subject> = state.ledger.iter().map(|message| message.subject).collect();
    for subject in untold.into_iter().filter(|subject| !same.contains(subject)) {
        state.ledger.tell(subject);
        state.dirty.insert(subject);
    }
    let renewed = state.ledger.renew(utc());
    state.dirty.extend(renewed);
    let (millis, sequence) = (reach.last.millis, reach.last.sequence);
    state.position = Position { epoch: reach.epoch.clone(), millis, sequence };
    drop(state);
    shared.changed.notify_one();
    shared.publish.notify_one();
    Ok(())
}

/// What becomes of an entry of the state.
enum Compared {
    /// It is what is known here, by now.
    Same(Subject),
    /// Something later is known here, or it is none of ours.
    Other,
    /// It counts no more, or cannot be believed while something is known that belongs in its place.
    Bad,
}

fn compare_one(shared: &Shared, link: &Link, key: &[u8], bytes: &[u8]) -> Compared {
    let now = utc();
    let opened = link.keys.open(bytes, now);
    let opened = opened.and_then(|message| match message.subject.to_string().as_bytes() == key {
        true => Ok(message),
        // A message in the place of another one.
        false => Err(Refused::Malformed),
    });
    let why = match opened {
        Ok(message) => {
            let subject = message.subject;
            match shared.hear(message, now) {
                // What another key has signed is signed again before that key is forgotten.
                Ok(_) | Err(Refused::Replayed) => {
                    return match link.keys.is_latest(bytes) {
                        true => Compared::Same(subject),
                        false => Compared::Other,
                    };
                }
                Err(Refused::Full) => Refused::Full,
                Err(_) => return Compared::Other,
            }
        }
        Err(Refused::Over) => return Compared::Bad,
        Err(why) => why,
    };
    shared.refuse(why);
    let subject = std::str::from_utf8(key).ok().and_then(|key| key.parse().ok());
    let is_known = subject.is_some_and(|subject| shared.state().ledger.known(&subject).is_some());
    // Who is ahead may be right, and what is full here need not be there.
    match is_known && !matches!(why, Refused::Future | Refused::Full) {
        true => Compared::Bad,
        false => Compared::Other,
    }
}

/// Tells the others what they were not told yet.
async fn publish(shared: &Shared, link: &Link) {
    loop {
        let outgoing: Vec<Message> = {
            let state = shared.state();
            // Whoever was away hears first what the others did.
            let room = if state.health.up { BATCH_MAX } else { 0 };
            state.ledger.outgoing().take(room).cloned().collect()
        };
        if outgoing.is_empty() {
            shared.publish.notified().await;
            continue;
        }
        let sealed: Vec<_> =
            outgoing.iter().map(|one| (one.subject.to_string(), link.keys.seal(one))).collect();
        let Ok(published) = link.board.publish(&sealed).await else {
            // Who follows says when it is back.
            timeout(PAUSE_MAX, shared.publish.notified()).await.ok();
            continue;
        };
        shared.sent.fetch_add(outgoing.len() as u64, Ordering::Relaxed);
        let mut state = shared.state();
        for message in &outgoing {
            state.ledger.told(&message.subject, message.rank());
            state.dirty.insert(message.subject);
        }
        let ahead_ms = i128::from(utc().0) - i128::from(published.utc_ms);
        let ahead_ms = i64::try_from(ahead_ms).unwrap_or(i64::MAX);
        if u128::from(ahead_ms.unsigned_abs()) > AHEAD_MAX.as_millis() {
            tracing::warn!(
                ahead_ms,
                "the clock here is not that of Redis: other gateways may refuse what is done here"
            );
        }
        state.health.ahead_ms = Some(ahead_ms);
        let is_other = state.position.epoch != published.epoch;
        drop(state);
        if is_other {
            shared.compare.notify_one();
        }
        shared.changed.notify_one();
    }
}

/// Keeps what changes, and forgets what counts no more.
async fn keep(shared: &Shared, messages: &Arc<Messages>) {
    let mut written = Vec::new();
    loop {
        if timeout(EXPIRE_EVERY, shared.changed.notified()).await.is_ok() {
            sleep(KEEP_AFTER).await;
        }
        let Changed { messages: changes, position } = changed(shared);
        if changes.is_empty() && position == written {
            continue;
        }
        let writing = tokio::task::spawn_blocking({
            let (messages, changes) = (Arc::clone(messages), changes.clone());
            let position = position.clone();
            move || messages.write(&changes, &position)
        });
        let error = match writing.await {
            Ok(Ok(())) => {
                written = position;
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(error, "what other gateways are to be told cannot be kept");
        let again = changes.iter().filter_map(|(key, _)| key.parse::<Subject>().ok());
        shared.state().dirty.extend(again);
        sleep(PAUSE_MAX).await;
        shared.changed.notify_one();
    }
}

fn write(shared: &Shared, messages: &Messages) -> Result<(), crate::store::StoreError> {
    let changed = changed(shared);
    messages.write(&changed.messages, &changed.position)
}

/// What is to be kept.
struct Changed {
    messages: Vec<(String, Option<Vec<u8>>)>,
    /// How far the log was read then.
    position: Vec<u8>,
}

fn changed(shared: &Shared) -> Changed {
    let mut state = shared.state();
    let over = state.ledger.expire(utc());
    state.dirty.extend(over);
    let dirty = std::mem::take(&mut state.dirty);
    let one = |subject: Subject| {
        let kept = state.ledger.known(&subject).map(|message| Kept {
            message: message.clone(),
            outgoing: state.ledger.is_outgoing(&subject),
        });
        // Strings, numbers that are finite and nothing else: it has a text.
        (subject.to_string(), kept.map(|kept| serde_json::to_vec(&kept).unwrap_or_default()))
    };
    let messages = dirty.into_iter().map(one).collect();
    Changed { messages, position: serde_json::to_vec(&state.position).unwrap_or_default() }
}
