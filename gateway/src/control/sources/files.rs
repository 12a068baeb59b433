//! Lists that are files: read as the user that the daemon is, and watched. A file that changes is read once it has
//! been the same for a whole look, so that one that is being written shrinks no list. A folder that does not answer
//! keeps neither a start nor the files of other folders waiting.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::pin::pin;
use std::thread;
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

/// Reads every file of a configuration for a start, which waits for them no longer than `patience`. One that was not
/// read by then is left to the watch.
pub(in crate::control) async fn read_first(
    config: &Config,
    user: &str,
    patience: Duration,
) -> Vec<Reading> {
    let user = user.to_owned();
    let read = move |file: &ListFile| read(file, &user);
    read_until(tokio::time::sleep(patience), all(config).cloned().collect(), read).await
}

async fn read_until(
    end: impl Future<Output = ()>,
    files: Vec<ListFile>,
    read: impl Fn(&ListFile) -> Reading + Clone + Send + 'static,
) -> Vec<Reading> {
    let (sender, mut receiver) = mpsc::channel(files.len().max(1));
    for files in by_folder(files.iter()) {
        let (sender, read) = (sender.clone(), read.clone());
        let read = move || files.iter().all(|file| sender.try_send(read(file)).is_ok());
        // Without a thread they are left to the watch.
        thread::Builder::new().name("lists".to_owned()).spawn(read).ok();
    }
    drop(sender);
    let (mut readings, mut end) = (Vec::<Reading>::new(), pin!(end));
    loop {
        tokio::select! {
            biased;
            reading = receiver.recv() => match reading {
                Some(reading) => readings.push(reading),
                None => break,
            },
            () = &mut end => break,
        }
    }
    let take = |file: &ListFile| {
        let at = readings.iter().position(|reading| reading.name == file.name);
        at.map_or_else(|| late(file), |at| readings.swap_remove(at))
    };
    files.iter().map(take).collect()
}

/// What there is to say of a file that has not been read.
fn late(file: &ListFile) -> Reading {
    let error = format!(
        "{}: its folder does not answer; the gateway goes on without and reads it once it does",
        file.path.display()
    );
    Reading {
        name: file.name.clone(),
        entries: Err(Unread::new(error)),
        is_young: false,
        stamp: Stamp::Unknown,
    }
}

fn by_folder<'a>(files: impl Iterator<Item = &'a ListFile>) -> impl Iterator<Item = Vec<ListFile>> {
    let mut folders = BTreeMap::<_, Vec<ListFile>>::new();
    for file in files {
        folders.entry(file.path.parent()).or_default().push(file.clone());
    }
    folders.into_values()
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

/// What there was in a folder at the last looks.
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
    /// Looks after the files of a configuration, which were read as `readings` say: one watch a folder.
    pub(super) fn of(config: &Config, readings: &[Reading], user: &str) -> Vec<Self> {
        let watched = |file: ListFile| {
            let read = readings.iter().find(|reading| reading.name == file.name);
            let read = read.filter(|reading| !reading.is_young);
            let read = read.map_or(Stamp::Unknown, |reading| reading.stamp);
            Watched { file, seen: read, read }
        };
        let watch = |files: Vec<ListFile>| Self {
            user: user.to_owned(),
            files: files.into_iter().map(watched).collect(),
        };
        by_folder(all(config)).map(watch).collect()
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
    use crate::config::Share;
    use std::fs;

    fn list_file(path: &Path) -> ListFile {
        let (name, path) = ("drop".to_owned(), path.to_owned());
        ListFile { name, path, dry_run: false, min_entries: Share::ZERO }
    }

    fn watch(path: &Path) -> Watch {
        let file = list_file(path);
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

    #[tokio::test]
    async fn a_folder_that_does_not_answer_keeps_no_other_waiting() {
        let file = |path: &str| ListFile { name: path.to_owned(), ..list_file(Path::new(path)) };
        let files = ["/hangs/1", "/answers/1", "/hangs/2", "/answers/2"].map(file);
        let (answers, hangs) = std::sync::mpsc::sync_channel::<()>(1);
        let (over, is_over) = tokio::sync::oneshot::channel::<()>();
        let shared = std::sync::Arc::new(std::sync::Mutex::new((Some(hangs), Some(over))));
        let read = move |file: &ListFile| {
            let mut shared = shared.lock().unwrap();
            match file.name.as_str() {
                "/hangs/1" => {
                    let hangs = shared.0.take().unwrap();
                    drop(shared);
                    hangs.recv().ok();
                }
                // What was read before has been sent by now.
                "/answers/2" => drop(shared.1.take()),
                _ => {}
            }
            Reading { entries: text::file("192.0.2.1".as_bytes(), ""), ..late(file) }
        };
        let end = async { drop(is_over.await) };
        let readings = read_until(end, files.to_vec(), read).await;
        assert_eq!(
            readings.iter().map(|r| &r.name).collect::<Vec<_>>(),
            files.each_ref().map(|f| &f.name)
        );
        let sizes = sizes(&readings);
        assert_eq!((sizes[0], sizes[1], sizes[2]), (None, Some(1), None));
        let error = readings[0].entries.as_ref().unwrap_err().to_string();
        assert!(error.starts_with("/hangs/1: its folder does not answer"), "{error}");
        assert!(readings[0].stamp == Stamp::Unknown, "left to the watch");
        drop(answers);
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drop.txt");
        let said = |path: &Path| read(&list_file(path), "nobody").entries.unwrap_err().to_string();
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
