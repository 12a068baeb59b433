//! Lists that are files: read as the user that the daemon is, and watched. A file that changes is read once it has
//! been the same for a whole look, so that one that is being written shrinks no list.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::text;
pub use super::text::Unread;
use super::{Event, FileEvent};
use crate::base::stamp::Stamp;
use crate::base::time::utc;
use crate::config::{Config, ListFile};
use crate::rules::entries::Entries;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is younger may still be being written (unit: milliseconds).
const YOUNG_MS: u64 = 2000;
/// A list of fifty million addresses.
const FILE_BYTES_MAX: u64 = 1 << 30;
const BUFFER_BYTES: usize = 256 * 1024;

/// A file that was read.
#[derive(Debug)]
pub struct Reading {
    /// What its list is called.
    pub name: String,
    /// What is in it.
    pub entries: Result<Entries, Unread>,
    /// Whether it was written a moment ago, perhaps not to its end.
    pub(super) is_young: bool,
    stamp: Stamp,
}

/// Every file of a configuration.
pub(super) fn all(config: &Config) -> impl Iterator<Item = &ListFile> {
    config.kernel.allow_files.iter().chain(&config.kernel.deny_files)
}

/// Reads every file of a configuration as the user of this process, who is called `user`. It takes its time.
pub fn read_all(config: &Config, user: &str) -> Vec<Reading> {
    all(config).map(|file| read(file, user)).collect()
}

/// Reads a file.
pub(super) fn read(file: &ListFile, user: &str) -> Reading {
    let place = file.path.display();
    let mut stamp = Stamp::at(&file.path);
    let mut is_young = false;
    let entries = open(&file.path).map(|(file, metadata)| {
        stamp = Stamp::of(&metadata);
        let written = u64::try_from(metadata.mtime()).unwrap_or(0).saturating_mul(1000);
        let written = written + u64::try_from(metadata.mtime_nsec()).unwrap_or(0) / 1_000_000;
        is_young = utc().0.abs_diff(written) < YOUNG_MS;
        file
    });
    let entries = entries.map_err(|error| Unread::new(explain(&file.path, &error, user)));
    let entries = entries.and_then(|opened| {
        let input = BufReader::with_capacity(BUFFER_BYTES, (&opened).take(FILE_BYTES_MAX));
        let entries = text::file(input, &place.to_string())?;
        match opened.metadata() {
            Ok(metadata) if Stamp::of(&metadata) == stamp => Ok(entries),
            _ => Err(Unread::new(format!(
                "{place} changed while it was read: it is read again once it rests"
            ))),
        }
    });
    Reading { name: file.name.clone(), entries, is_young, stamp }
}

fn open(path: &Path) -> io::Result<(File, Metadata)> {
    // Nobody waits for the other end of a named pipe.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    let refused = match metadata.len() {
        _ if !metadata.is_file() => "it is no regular file",
        0 => {
            "it is empty, as a script that failed leaves it: write a comment into a list of nobody"
        }
        FILE_BYTES_MAX.. => "it has more than 1 GiB",
        _ => return Ok((file, metadata)),
    };
    Err(io::Error::other(refused))
}

fn explain(path: &Path, error: &io::Error, user: &str) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{path}: {error}: the gateway runs as the user {user}, who must be allowed to read it \
             and to enter its folder"
        ),
        _ => format!("{path}: {error}"),
    }
}

/// What there was at the last looks.
pub(super) struct Watch {
    user: String,
    files: Vec<Watched>,
}

struct Watched {
    file: ListFile,
    seen: Stamp,
    read: Stamp,
}

impl Watch {
    /// Looks after the files of a configuration, which were read as `readings` say.
    pub(super) fn new(config: &Config, readings: &[Reading], user: &str) -> Self {
        let watched = |file: &ListFile| {
            let read = readings.iter().find(|reading| reading.name == file.name);
            let read = read.filter(|reading| !reading.is_young);
            let read = read.map_or(Stamp::Unknown, |reading| reading.stamp);
            Watched { file: file.clone(), seen: read, read }
        };
        Self { user: user.to_owned(), files: all(config).map(watched).collect() }
    }

    /// Reads what has changed since it was read and not since the last look.
    fn look(&mut self) -> Vec<Reading> {
        let mut readings = Vec::new();
        for watched in &mut self.files {
            let stamp = Stamp::at(&watched.file.path);
            if stamp != watched.read && stamp == watched.seen {
                let reading = read(&watched.file, &self.user);
                watched.read = reading.stamp;
                readings.push(reading);
            }
            watched.seen = stamp;
        }
        readings
    }

    /// Looks again and again, on a thread where a folder that does not answer keeps nobody else waiting.
    pub(super) async fn run(self, generation: u64, events: mpsc::Sender<Event>) {
        if self.files.is_empty() {
            return;
        }
        let mut watch = self;
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let looked = tokio::task::spawn_blocking(move || {
                let readings = watch.look();
                (watch, readings)
            });
            let Ok((back, readings)) = looked.await else {
                tracing::error!("list files are not watched any more: restart the gateway");
                return;
            };
            watch = back;
            for reading in readings {
                let event = FileEvent { generation, reading, later: None };
                if events.send(Event::File(Box::new(event))).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn watch(path: &Path) -> Watch {
        let file = ListFile { name: "drop".to_owned(), path: path.to_owned(), dry_run: false };
        let watched = Watched { file, seen: Stamp::Unknown, read: Stamp::Unknown };
        Watch { user: "nobody".to_owned(), files: vec![watched] }
    }

    fn sizes(readings: &[Reading]) -> Vec<Option<usize>> {
        readings.iter().map(|reading| reading.entries.as_ref().ok().map(Entries::len)).collect()
    }

    #[test]
    fn a_change_is_read_once_it_rests() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drop.txt");
        fs::write(&path, "192.0.2.1\n").unwrap();
        let mut watch = watch(&path);
        assert_eq!(sizes(&watch.look()), []);
        fs::write(&path, "192.0.2.1\n192.0.2.2\n").unwrap();
        assert_eq!(sizes(&watch.look()), [], "it changed since the last look");
        assert_eq!(sizes(&watch.look()), [Some(2)]);
        assert_eq!(sizes(&watch.look()), []);
        fs::remove_file(&path).unwrap();
        assert_eq!(sizes(&watch.look()), []);
        assert_eq!(sizes(&watch.look()), [None], "one that is gone is told once");
        assert_eq!(sizes(&watch.look()), []);
        fs::write(&path, "192.0.2.1\n").unwrap();
        assert_eq!((sizes(&watch.look()), sizes(&watch.look())), (vec![], vec![Some(1)]));
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drop.txt");
        let said = |path: &Path| {
            let file = ListFile { name: "drop".to_owned(), path: path.to_owned(), dry_run: false };
            read(&file, "nobody").entries.unwrap_err().to_string()
        };
        let error = said(&path);
        assert!(error.starts_with(&path.display().to_string()), "{error}");
        fs::write(&path, "").unwrap();
        assert!(said(&path).contains("it is empty"));
        assert!(said(folder.path()).contains("no regular file"));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(said(&pipe).contains("no regular file"));
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = explain(&path, &denied, "nobody");
        assert!(error.contains("runs as the user nobody"), "{error}");
    }
}
