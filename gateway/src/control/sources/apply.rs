//! What was read or fetched is put in force, on the disk too; what cannot be is noted, and the last good copy stays.

use std::sync::Arc;
use std::time::Instant;

use gateway_common::rule::Action;
use tokio::task::{spawn_blocking, spawn_local};

use super::feeds::{FeedEvent, State, Version, about_held};
use super::files::{self, Reading};
use super::text::Unread;
use super::{Event, FileEvent, Sources, Watched, held, path_of};
use crate::admin::api::{Answer, Done, Refusal};
use crate::base::time::{Now, instant};
use crate::config::{Config, Feed};
use crate::control::later::Later;
use crate::control::policy::Policy;
use crate::control::policy::lists::list_of;
use crate::kernel::tables::TablesError;
use crate::outbound::display;
use crate::rules::entries::Entries;
use crate::rules::feed::check_loss;
use crate::rules::list::{Kind, List};
use crate::rules::list_file::{ActionName, Header};

impl Sources {
    /// Puts the files of a configuration in force. Answers the lists for which there was no room.
    pub(super) fn take_files(
        &mut self,
        policy: &mut Policy,
        config: &Config,
        readings: Vec<Reading>,
        now: Now,
    ) -> Vec<List> {
        let of = |files: &[_], action| {
            let files: Vec<_> = files.to_vec();
            let watched =
                move |file| Watched { file, action, note: None, held: None, crowded: None };
            files.into_iter().map(watched)
        };
        let kernel = &config.kernel;
        let files = of(&kernel.allow_files, Action::Allow);
        let files = files.chain(of(&kernel.deny_files, Action::Deny));
        self.files = files.map(|watched| (watched.file.name.clone(), watched)).collect();
        let mut refused = Vec::new();
        for Reading { name, entries, is_young, .. } in readings {
            let Some(watched) = self.files.get_mut(&name) else { continue };
            if let Err(error) = adjust(policy, &name, Kind::File, watched.rights(), now) {
                watched.note = Some(error);
                continue;
            }
            let old = held(policy, &name, Kind::File);
            let is_here = old.is_some_and(|list| list.source == path_of(&watched.file));
            if is_young && is_here {
                watched.note = Some("changed a moment ago, it is read once it rests".to_owned());
                continue;
            }
            match entries {
                Ok(entries) => {
                    let list = watched.list(entries, now);
                    if let Ok(list) = watched.judge(policy, list)
                        && watched.put(policy, list.clone(), now).is_err()
                    {
                        refused.push(list);
                    }
                }
                Err(unread) => watched.unread(&unread),
            }
        }
        refused
    }

    /// Tries once more to put a list of a file in force.
    pub(super) fn put_file(&mut self, policy: &mut Policy, list: List, now: Now) {
        if let Some(watched) = self.files.get_mut(&list.name) {
            // What comes of it is noted.
            watched.put(policy, list, now).ok();
        }
    }

    /// Tries once more to put in force what found no room, where there is more of it by now.
    pub(in crate::control) fn make_use_of_room(&mut self, policy: &mut Policy, now: Now) {
        for watched in self.files.values_mut() {
            let Some((_, had)) = &watched.crowded else { continue };
            if policy.room().iter().zip(had).any(|(has, had)| has > had)
                && let Some((list, _)) = watched.crowded.take()
            {
                // What comes of it is noted.
                watched.put(policy, list, now).ok();
            }
        }
    }

    /// Takes over the feeds of a configuration. Those that are as they were go on.
    pub(super) fn take_feeds(&mut self, policy: &mut Policy, feeds: &[Feed], now: Now) {
        let mut before = std::mem::take(&mut self.feeds);
        for feed in feeds {
            let name = &feed.name;
            let adjusted = adjust(policy, name, Kind::Feed, (feed.action, feed.dry_run), now);
            let mut state = match before.remove(name) {
                Some(state) if state.feed == *feed => state,
                _ => {
                    let list = held(policy, name, Kind::Feed);
                    let list = list.filter(|list| list.source == display(&feed.url));
                    let validators = list.map(|list| policy.store().validators(list));
                    State::new(feed.clone(), validators.unwrap_or_default(), instant())
                }
            };
            if let Err(error) = adjusted {
                state.failed(error, instant());
            }
            self.feeds.insert(name.clone(), state);
        }
    }

    /// Takes back the lists that the configuration names no more. Answers what stays though it should not.
    pub(super) fn take_back(&self, policy: &mut Policy, now: Now) -> Vec<String> {
        let is_gone = |list: &&List| match list.kind {
            Kind::Import => false,
            Kind::File => !self.files.contains_key(&list.name),
            Kind::Feed => !self.feeds.contains_key(&list.name),
        };
        let gone = policy.rules().lists().filter(is_gone).map(|list| list.name.clone());
        let gone: Vec<String> = gone.collect();
        let mut notes = Vec::new();
        for list in gone {
            match policy.replace_list(&list, None, now) {
                Ok(_) => tracing::info!(list, "list removed: the configuration names it no more"),
                Err(error) => {
                    tracing::error!(list, %error, "list not removed");
                    notes.push(format!("{list}: cannot be removed: {error}"));
                }
            }
        }
        notes
    }

    /// Puts a file that was read in force.
    pub(in crate::control) fn take_file(
        &mut self,
        policy: &mut Policy,
        event: FileEvent,
        now: Now,
    ) {
        let FileEvent { generation, reading, later } = event;
        let watched = self.files.get_mut(&reading.name);
        let Some(watched) = watched.filter(|_| generation == self.generation) else {
            if let Some(later) = later {
                later.answer(Err(Refusal::failed("the configuration was read again meanwhile")));
            }
            return;
        };
        let answer = match reading.entries {
            Ok(entries) => {
                let list = watched.judge(policy, watched.list(entries, now));
                list.and_then(|list| watched.put(policy, list, now)).map_err(Refusal::failed)
            }
            Err(unread) => {
                watched.unread(&unread);
                let lines: Vec<String> = unread.in_full().collect();
                Err(Refusal::failed(lines.join("\n")))
            }
        };
        if let Some(later) = later {
            later.answer(answer.map(Answer::Done));
        }
    }

    /// Takes note of the end of a fetch. Whether it is one that is awaited.
    pub(in crate::control) fn ended(&mut self, event: &FeedEvent) -> bool {
        let state = self.feeds.get_mut(&event.name);
        state.is_some_and(|state| state.end(event.serial, &event.peers))
    }

    /// Puts what a fetch brought in force, if it is to be believed.
    pub(in crate::control) fn take_feed(
        &mut self,
        policy: &mut Policy,
        event: FeedEvent,
        now: Now,
    ) {
        let FeedEvent { name: list, brought, .. } = event;
        let Some(state) = self.feeds.get_mut(&list) else { return };
        let answer = match brought {
            Ok(None) => {
                state.succeeded(instant(), now.utc);
                tracing::debug!(list, "feed has not changed");
                match state.note() {
                    Some(note) if state.is_held() => Err(note),
                    _ => Ok(format!("feed {list}: has not changed")),
                }
            }
            Ok(Some(version)) => match state.judge(version, held(policy, &list, Kind::Feed)) {
                Ok(version) => take_version(policy, state, version, now),
                Err(reason) => {
                    tracing::warn!(list, reason, "feed held back, what was in force stays");
                    state.succeeded(instant(), now.utc);
                    Err(reason)
                }
            },
            Err(error) => {
                tracing::warn!(list, error, "feed not fetched, what was in force stays");
                state.failed(error.clone(), instant());
                Err(error)
            }
        };
        let answer = answer.map(|done| state.done(done));
        state.answer(&answer.map_err(|e| Refusal::failed(format!("feed {list}: {e}"))));
    }

    /// Puts the version of a file or feed that is held back in force.
    pub(in crate::control) fn accept(
        &mut self,
        policy: &mut Policy,
        name: &str,
        now: Now,
    ) -> Result<Done, Refusal> {
        let nothing =
            || Refusal::failed(format!("nothing of {name} is held back: see `gateway lists`"));
        if let Some(watched) = self.files.get_mut(name) {
            let version = watched.held.take().ok_or_else(nothing)?;
            return watched.put(policy, version, now).map_err(Refusal::failed);
        }
        let state = self.feeds.get_mut(name).ok_or_else(|| no_feed(policy, name))?;
        let (version, why) = state.take_held().ok_or_else(nothing)?;
        match put_version(policy, state, &version, now) {
            Ok(done) => {
                state.took(version);
                Ok(state.done(done))
            }
            Err(error) => {
                state.hold((version, why));
                Err(Refusal::failed(format!("feed {name}: {error}")))
            }
        }
    }

    /// Reads a file or fetches a feed now, and tells whoever asked what came of it.
    pub(in crate::control) fn refresh(
        &mut self,
        policy: &Policy,
        name: &str,
        later: Later,
        now: Instant,
    ) {
        if let Some(watched) = self.files.get(name) {
            let (file, user, events) = (watched.file.clone(), self.user.clone(), self.sender());
            let generation = self.generation;
            spawn_local(async move {
                let read = spawn_blocking(move || files::read(&file, &user)).await;
                let reading = match read {
                    Ok(reading) => reading,
                    Err(error) => return later.answer(Err(Refusal::failed(error))),
                };
                let event = FileEvent { generation, reading, later: Some(later) };
                drop(events.send(Event::File(Box::new(event))).await);
            });
        } else if let Some(state) = self.feeds.get_mut(name) {
            state.fetch_for(later, now);
            self.tick(now);
        } else {
            later.answer(Err(no_feed(policy, name)));
        }
    }
}

impl Watched {
    fn rights(&self) -> (Action, bool) {
        (self.action, self.file.dry_run)
    }

    fn list(&self, entries: Entries, now: Now) -> List {
        let source = path_of(&self.file);
        list(&self.file.name, Kind::File, (self.rights(), source, Arc::new(entries)), now)
    }

    /// Whether a version may take the place of the one in force. One that may not is kept, for somebody to accept it.
    fn judge(&mut self, policy: &Policy, version: List) -> Result<List, String> {
        self.held = None;
        let name = &version.name;
        // Another file may be as short as it likes.
        let old = held(policy, name, Kind::File).filter(|list| list.source == version.source);
        let was = old.map_or(0, |list| list.entries.len() as u64);
        let Err(why) = check_loss(was, version.entries.len() as u64, self.file.min_entries) else {
            return Ok(version);
        };
        let note = about_held(name, &why);
        tracing::warn!(list = name, reason = note, "list file held back, what was in force stays");
        let told = format!("file {name}: {note}");
        (self.note, self.crowded, self.held) = (Some(note), None, Some(version));
        Err(told)
    }

    /// Puts a version in force. The answer tells whoever asked.
    fn put(&mut self, policy: &mut Policy, version: List, now: Now) -> Result<Done, String> {
        let (list, entries) = (version.name.clone(), version.entries.len());
        match policy.put_configured(version.clone(), now) {
            Ok((added, removed)) => {
                (self.note, self.crowded) = (None, None);
                if (added, removed) != (0, 0) {
                    tracing::info!(list, entries, added, removed, "list file in force");
                }
                Ok(one_line(counted("file", &list, entries, (added, removed))))
            }
            Err(error) => {
                let is_crowded = matches!(error.downcast_ref(), Some(TablesError::Room(_)));
                self.crowded = is_crowded.then(|| (version, policy.room()));
                let later = if is_crowded { "; tried again when there is more room" } else { "" };
                let error = format!("cannot be put in force: {error:#}{later}");
                tracing::error!(list, error, "list file not in force, what was in force stays");
                self.note = Some(error.clone());
                Err(format!("file {list}: {error}"))
            }
        }
    }

    fn unread(&mut self, unread: &Unread) {
        (self.crowded, self.held) = (None, None);
        let (list, error) = (&self.file.name, unread.in_full().collect::<Vec<_>>().join("; "));
        tracing::error!(list, error, "list file not read, what was in force stays");
        self.note = Some(unread.to_string());
    }
}

/// Puts a version of a feed in force that may be.
fn take_version(
    policy: &mut Policy,
    state: &mut State,
    version: Version,
    now: Now,
) -> Result<String, String> {
    match put_version(policy, state, &version, now) {
        Ok(done) => {
            state.took(version);
            state.succeeded(instant(), now.utc);
            Ok(done)
        }
        Err(error) => {
            let list = &state.feed.name;
            tracing::error!(list, error, "feed not in force, what was in force stays");
            state.failed(error.clone(), instant());
            Err(error)
        }
    }
}

fn put_version(
    policy: &mut Policy,
    state: &State,
    version: &Version,
    now: Now,
) -> Result<String, String> {
    let Feed { name, action, dry_run, .. } = &state.feed;
    let entries = Arc::clone(&version.entries);
    let new = list(name, Kind::Feed, ((*action, *dry_run), state.source.clone(), entries), now);
    let entries = new.entries.len();
    let put = policy.put_configured(new, now);
    let (added, removed) = put.map_err(|error| format!("cannot be put in force: {error:#}"))?;
    if (added, removed) != (0, 0) {
        tracing::info!(list = name, entries, added, removed, "feed in force");
    }
    if let Some(list) = held(policy, name, Kind::Feed)
        && let Err(error) = policy.store().put_validators(list, &version.validators)
    {
        tracing::warn!(list = name, %error, "the next start fetches this feed in full");
    }
    Ok(counted("feed", name, entries, (added, removed)))
}

/// A version that was read now.
fn list(
    name: &str,
    kind: Kind,
    ((action, dry_run), source, entries): ((Action, bool), String, Arc<Entries>),
    now: Now,
) -> List {
    let action = match action {
        Action::Allow => ActionName::Allow,
        Action::Deny | Action::Limit | Action::Reset => ActionName::Deny,
    };
    let mut header = Header::new(name, action, kind, &source);
    header.dry_run = dry_run;
    list_of(header, entries, now)
}

/// Lets the version of a list that is in force do what the configuration says now.
fn adjust(
    policy: &mut Policy,
    name: &str,
    kind: Kind,
    (action, dry_run): (Action, bool),
    now: Now,
) -> Result<(), String> {
    let Some(list) = held(policy, name, kind) else { return Ok(()) };
    let list = List { action, dry_run, ..list.clone() };
    let put = policy.put_configured(list, now).map(drop);
    put.map_err(|error| format!("its settings are not in force: {error:#}"))
}

fn counted(kind: &str, name: &str, entries: usize, (added, removed): (usize, usize)) -> String {
    format!("{kind} {name}: {entries} entries, {added} added or changed, {removed} removed")
}

fn one_line(done: String) -> Done {
    Done { done: vec![done], notes: Vec::new() }
}

fn no_feed(policy: &Policy, name: &str) -> Refusal {
    Refusal::failed(match policy.rules().list(name).map(|list| list.kind) {
        Some(Kind::Import) => format!("the list {name} was imported: import it again to change it"),
        Some(Kind::File | Kind::Feed) => format!("the list {name} is no feed: see `gateway lists`"),
        None => format!("there is no list {name:?}: see `gateway lists`"),
    })
}
