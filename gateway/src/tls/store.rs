//! What the configuration's TLS sections name, as it was read: once for all who use it. Where a new version of a file
//! is of no use the last good one stays, and a note says why.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::pair::{Pair, open, problem};
use crate::base::stamp::Stamp;
use crate::base::time::UtcMillis;
use crate::config::{CertificateFiles, Config, Diagnostic};

/// A certificate that ends within this time is spoken of.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Every pair that a configuration names.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pairs: HashMap<CertificateFiles, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    pair: Arc<Pair>,
    /// Of the files when `pair` was read, or when they were found to be of no use.
    stamps: [Stamp; 2],
    /// Why a newer version is not in force, or will not be.
    note: Option<String>,
}

impl Store {
    /// Reads what `config` names as the user of this process, who is called `user`. What `self` has stays if its files
    /// have not changed, or are of no use by now. Answers also what could not be had at all.
    pub fn read(&self, config: &Config, user: &str, now: UtcMillis) -> (Self, Vec<Diagnostic>) {
        let (mut store, mut errors) = (Self::default(), Vec::new());
        for files in named(config) {
            if store.pairs.contains_key(files) {
                continue;
            }
            let known = self.pairs.get(files);
            match entry(files, known, user, now) {
                Ok(entry) => drop(store.pairs.insert(files.clone(), entry)),
                Err(error) => errors.push(*error),
            }
        }
        (store, errors)
    }

    /// What was read of a pair of files.
    pub fn pair(&self, files: &CertificateFiles) -> Option<&Arc<Pair>> {
        self.pairs.get(files).map(|entry| &entry.pair)
    }

    /// Every certificate with its file.
    pub fn certificates(&self) -> impl Iterator<Item = (&CertificateFiles, &Pair)> {
        self.pairs.iter().map(|(files, entry)| (files, &*entry.pair))
    }

    /// Certificates that `before` has not, and that are not valid any more.
    pub fn expired_since(&self, before: &Self, now: UtcMillis) -> Vec<Diagnostic> {
        let new = self.pairs.iter().filter(|(files, _)| !before.pairs.contains_key(*files));
        let expired = new.filter(|(_, entry)| entry.pair.not_after <= now);
        expired.map(|(files, entry)| *expired_problem(files, &entry.pair)).collect()
    }

    /// Notes which files the user of this process, who is called `user`, may not read: root has read them.
    pub fn look_again(&mut self, user: &str) {
        for (files, entry) in &mut self.pairs {
            let problem = [&files.cert, &files.key]
                .into_iter()
                .find_map(|path| open(path, user).err().filter(|_| entry.note.is_none()));
            if let Some(problem) = problem {
                entry.note = Some(format!("{}; a new version will not be seen", text(&problem)));
            }
        }
    }

    /// What is wrong, or soon will be, in the order of the files' names.
    pub fn notes(&self, now: UtcMillis) -> Vec<String> {
        let mut notes = Vec::new();
        for (files, entry) in &self.pairs {
            if let Some(note) = &entry.note {
                notes.push(note.clone());
            }
            let (cert, end) = (files.cert.display(), entry.pair.not_after);
            if end <= now {
                notes.push(format!("{cert}: expired on {}: renew it", end.display()));
            } else if end <= now.after(SOON) {
                notes.push(format!("{cert}: expires on {}: renew it", end.display()));
            }
        }
        notes.sort();
        notes
    }
}

/// The pairs that a configuration names, some of them more than once.
pub fn named(config: &Config) -> impl Iterator<Item = &CertificateFiles> {
    let tls = config.listen.iter().filter_map(|listener| listener.tls.as_ref());
    tls.flat_map(|tls| &tls.certificates)
}

fn entry(
    files: &CertificateFiles,
    known: Option<&Entry>,
    user: &str,
    now: UtcMillis,
) -> Result<Entry, Box<Diagnostic>> {
    let seen = [Stamp::at(&files.cert), Stamp::at(&files.key)];
    if let Some(known) = known.filter(|known| known.stamps == seen) {
        return Ok(known.clone());
    }
    let read = Pair::read(files, user).and_then(|(pair, stamps)| {
        if known.is_some() && pair.not_after <= now {
            return Err(expired_problem(files, &pair));
        }
        Ok(Entry { pair: Arc::new(pair), stamps, note: None })
    });
    match (read, known) {
        (Ok(entry), _) => Ok(entry),
        (Err(problem), Some(known)) => {
            let note = Some(format!("{}; the one before stays in force", text(&problem)));
            Ok(Entry { pair: Arc::clone(&known.pair), stamps: seen, note })
        }
        (Err(error), None) => Err(error),
    }
}

fn text(problem: &Diagnostic) -> String {
    let help = problem.help.as_deref().unwrap_or_default();
    format!("{}: {}: {help}", problem.file, problem.message)
}

fn expired_problem(files: &CertificateFiles, pair: &Pair) -> Box<Diagnostic> {
    let message = format!("this certificate expired on {}", pair.not_after.display());
    problem(&files.cert, message, "renew it")
}

/// What there was at the last looks.
#[derive(Debug)]
pub struct Watch {
    files: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    files: CertificateFiles,
    seen: [Stamp; 2],
    read: [Stamp; 2],
}

impl Watch {
    /// Looks after what a store has read.
    pub fn new(store: &Store) -> Self {
        let watched = |(files, entry): (&CertificateFiles, &Entry)| Watched {
            files: files.clone(),
            seen: entry.stamps,
            read: entry.stamps,
        };
        Self { files: store.pairs.iter().map(watched).collect() }
    }

    /// Whether there is nothing to look after.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether a file has changed since it was read and not since the last look: one that is being written is left
    /// alone.
    pub fn look(&mut self) -> bool {
        let mut changed = false;
        for watched in &mut self.files {
            let now = [Stamp::at(&watched.files.cert), Stamp::at(&watched.files.key)];
            changed |= now != watched.read && now == watched.seen;
            watched.seen = now;
        }
        changed
    }
}
