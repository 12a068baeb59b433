//! The lists that the configuration names: files and feeds. Reads and fetches them beside the loop of `control`, puts
//! in force what is good, and remembers what is wrong with the rest: then the last good copy stays in force.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use gateway_common::rule::Action;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};

use super::later::Later;
use super::names::Lookup;
use super::policy::Policy;
use super::reload::Prepared;
use crate::admin::api::Refusal;
use crate::admin::rules::ListView;
use crate::base::time::{Now, UtcMillis};
use crate::config::{Config, ListFile};
use crate::rules::list::{Kind, List};

mod apply;
mod feeds;
pub mod files;
mod text;

use feeds::{FeedEvent, State};
use files::{Reading, Watch};

/// What was read and waits to be put in force.
const EVENTS: usize = 4;
/// Feeds that are fetched at the same time.
const FETCHES_MAX: usize = 2;
/// Notes of lists in one answer.
const NOTES_MAX: usize = 20;

/// What was done beside the loop.
pub(super) enum Event {
    /// A file was read.
    File(Box<FileEvent>),
    /// A feed was fetched, or was not.
    Feed(Box<FeedEvent>),
    /// A name of endpoints was looked up.
    Name(Box<Lookup>),
    /// The configuration was read, with its files.
    Reload(Box<Result<Prepared, Refusal>>),
}

/// A file that was read.
pub(super) struct FileEvent {
    generation: u64,
    reading: Reading,
    /// Who asked for it.
    later: Option<Later>,
}

/// The files and feeds of the configuration in force.
pub(super) struct Sources {
    user: String,
    files: BTreeMap<String, Watched>,
    feeds: BTreeMap<String, State>,
    /// What is read for an earlier configuration is nobody's any more.
    generation: u64,
    /// Of the last fetch.
    serial: u64,
    watchers: Vec<AbortHandle>,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
}

/// A file, and what is wrong with it.
struct Watched {
    file: ListFile,
    action: Action,
    note: Option<String>,
    /// A version that lost too much, until another one is read or somebody accepts it.
    held: Option<List>,
    /// A version for which there was no room, and the room that there was (rules of IPv4 and of IPv6).
    crowded: Option<(List, [usize; 2])>,
}

impl Sources {
    /// None yet. Files are read as `user`.
    pub(super) fn new(user: &str) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        Self {
            user: user.to_owned(),
            files: BTreeMap::new(),
            feeds: BTreeMap::new(),
            generation: 0,
            serial: 0,
            watchers: Vec::new(),
            sender,
            events,
        }
    }

    /// Where to send what was done beside the loop.
    pub(super) fn sender(&self) -> mpsc::Sender<Event> {
        self.sender.clone()
    }

    /// What was done beside the loop.
    pub(super) async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Refuses what would leave a list of a new configuration without any version.
    pub(super) fn check(
        policy: &Policy,
        config: &Config,
        readings: &[Reading],
    ) -> Result<(), Refusal> {
        let names = files::all(config).map(|file| &file.name);
        let mut errors: Vec<String> = names
            .chain(config.kernel.feeds.iter().map(|feed| &feed.name))
            .filter(|name| held(policy, name, Kind::Import).is_some())
            .map(|name| imported(name))
            .collect();
        for file in files::all(config) {
            let reading = readings.iter().find(|reading| reading.name == file.name);
            let held = held(policy, &file.name, Kind::File);
            if let Some(Err(unread)) = reading.map(|reading| &reading.entries)
                && held.is_none_or(|list| list.source != path_of(file))
            {
                errors.extend(unread.in_full());
            }
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(Refusal::usage(errors.join("\n"))),
        }
    }

    /// Puts the lists of a configuration in force, with its files as they were read, and takes back those that it names
    /// no more. Answers what is wrong with them.
    pub(super) fn configure(
        &mut self,
        policy: &mut Policy,
        (config, readings): (&Config, Vec<Reading>),
        now: Now,
    ) -> Vec<String> {
        self.generation += 1;
        let watches = Watch::of(config, &readings, &self.user);
        self.watchers.drain(..).for_each(|watcher| watcher.abort());
        // What comes before what goes: an address that one list hands to another is never let in.
        let refused = self.take_files(policy, config, readings, now);
        self.take_feeds(policy, &config.kernel.feeds, now);
        let mut notes = self.take_back(policy, now);
        refused.into_iter().for_each(|list| self.put_file(policy, list, now));
        notes.extend(self.notes());
        for watch in watches {
            let run = watch.run(self.generation, self.sender());
            self.watchers.push(spawn_local(run).abort_handle());
        }
        notes
    }

    /// Begins the fetches that are due.
    pub(super) fn tick(&mut self, now: Instant) {
        self.feeds.values_mut().for_each(|state| state.release(now));
        let running = self.feeds.values().filter(|state| state.is_fetching()).count();
        for _ in running..FETCHES_MAX {
            // Whoever waits longest: a few that fail often keep nobody else from being fetched.
            let due = self.feeds.iter_mut().filter_map(|feed| Some((feed.1.due(now)?, feed)));
            let Some((_, (name, state))) = due.min_by_key(|(due, _)| *due) else { return };
            self.serial += 1;
            let (name, serial) = (name.clone(), self.serial);
            let (fetch, events) = (state.fetch(&self.user), self.sender.clone());
            let task = spawn_local(async move {
                let (peers, brought) = fetch.await;
                let event = FeedEvent { name, serial, peers, brought };
                drop(events.send(Event::Feed(Box::new(event))).await);
            });
            state.begin(serial, task);
        }
    }

    /// The addresses that feeds were fetched from, with why they are talked to.
    pub(super) fn peers(&self) -> impl Iterator<Item = (String, IpAddr)> {
        self.feeds.iter().flat_map(|(name, state)| {
            state.peers().iter().map(move |peer| (format!("feed {name}"), *peer))
        })
    }

    /// Whether the configuration names a list so.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.feeds.contains_key(name)
    }

    /// What is wrong with its lists.
    pub(super) fn notes(&self) -> Vec<String> {
        let all = self.about().into_iter();
        let mut notes: Vec<String> =
            all.filter_map(|about| Some(format!("{}: {}", about.name, about.note?))).collect();
        if let Some(more @ 1..) = notes.len().checked_sub(NOTES_MAX) {
            notes.truncate(NOTES_MAX);
            notes.push(format!("and {more} more lists, see `gateway lists`"));
        }
        notes
    }

    /// Tells of its lists what is wrong with them, and of those that are not in force.
    pub(super) fn annotate(&self, views: &mut Vec<ListView>) {
        for about in self.about() {
            match views.iter_mut().find(|view| view.name == about.name) {
                Some(view) => {
                    view.checked_utc_ms = view.checked_utc_ms.max(about.checked_utc_ms);
                    (view.failures, view.held_back) = (about.failures, about.held_back);
                    view.note = about.note;
                }
                None => views.push(about),
            }
        }
    }

    /// Its lists, as long as nothing is in force of them.
    fn about(&self) -> Vec<ListView> {
        let view = |name: &str, (action, kind, dry_run): (Action, Kind, bool)| ListView {
            name: name.to_owned(),
            action: action.name().to_owned(),
            kind: kind.name().to_owned(),
            source: String::new(),
            dry_run,
            entries: 0,
            created_utc_ms: UtcMillis(0),
            memory_bytes: 0,
            checked_utc_ms: UtcMillis(0),
            failures: 0,
            held_back: false,
            packets: None,
            note: None,
        };
        let files =
            self.files.iter().map(|(name, Watched { file, action, note, held, .. })| ListView {
                source: path_of(file),
                failures: u32::from(note.is_some() && held.is_none()),
                held_back: held.is_some(),
                note: note.clone(),
                ..view(name, (*action, Kind::File, file.dry_run))
            });
        let feeds = self.feeds.iter().map(|(name, state)| ListView {
            source: state.source.clone(),
            checked_utc_ms: state.checked,
            failures: state.failures,
            held_back: state.is_held(),
            note: state.note(),
            ..view(name, (state.feed.action, Kind::Feed, state.feed.dry_run))
        });
        files.chain(feeds).collect()
    }
}

/// The list of this name and kind that is in force.
fn held<'a>(policy: &'a Policy, name: &str, kind: Kind) -> Option<&'a List> {
    policy.rules().list(name).filter(|list| list.kind == kind)
}

fn imported(name: &str) -> String {
    format!(
        "the configuration names a list {name}, and so did somebody who imported one: give it \
         another name there, or take the imported one back with `gateway deny remove --list \
         {name}` (or allow)"
    )
}

fn path_of(file: &ListFile) -> String {
    file.path.display().to_string()
}
