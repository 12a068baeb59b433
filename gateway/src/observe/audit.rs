//! The audit trail: a line of JSON for each change, appended to a file by a thread of its own. It knows lines and no
//! changes. A file that has grown too large becomes `PATH.1`, in the place of the one before.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use serde::Serialize;

/// Lines that wait to be written. Beyond it they are lost and counted.
const QUEUE_LINES: usize = 4096;

/// Where lines of the trail are handed in.
#[derive(Clone, Debug)]
pub struct Trail(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: Mutex<Option<SyncSender<Message>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    lost: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    Reopen,
}

/// The file that is written to.
#[derive(Debug)]
pub struct Sink {
    file: File,
    path: PathBuf,
    bytes: u64,
    max_bytes: u64,
}

impl Sink {
    /// A file that is appended to and made if it is not there, for its owner alone; one that root makes is the
    /// folder's owner's.
    pub fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut options = OpenOptions::new();
        let options = options.append(true).mode(0o600).custom_flags(flags);
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = options.create(true).open(path)?;
                if let Some(folder) = path.parent().and_then(|folder| fs::metadata(folder).ok())
                    && rustix::process::geteuid().is_root()
                {
                    chown(path, Some(folder.uid()), Some(folder.gid()))?;
                }
                file
            }
            opened => opened?,
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        Ok(Self { file, path: path.to_owned(), bytes: metadata.len(), max_bytes })
    }

    /// Appends a line, which has its end.
    pub fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.bytes > 0 && self.bytes.saturating_add(length) > self.max_bytes {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            fs::rename(&self.path, &old)?;
            self.reopen()?;
        }
        self.file.write_all(line)?;
        self.bytes += length;
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(&self.path, self.max_bytes)?;
        Ok(())
    }
}

/// A line as it is written.
pub fn line(entry: &impl Serialize) -> Vec<u8> {
    // What is written down are plain values, which are always JSON.
    let mut line = serde_json::to_vec(entry).unwrap_or_default();
    line.push(b'\n');
    line
}

impl Trail {
    /// Starts the thread that writes to `sink`.
    pub fn start(sink: Sink) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE_LINES);
        let lost = Arc::<AtomicU64>::default();
        let thread = thread::Builder::new().name("audit".to_owned()).spawn({
            let lost = Arc::clone(&lost);
            move || run(sink, &lines, &lost)
        })?;
        let (queue, thread) = (Mutex::new(Some(queue)), Mutex::new(Some(thread)));
        Ok(Self(Arc::new(Inner { queue, thread, lost })))
    }

    /// Has a line written. Nobody waits for it.
    pub fn line(&self, entry: &impl Serialize) {
        if !self.send(Message::Line(line(entry))) {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has the file opened again, because somebody has moved it away.
    pub fn reopen(&self) {
        self.send(Message::Reopen);
    }

    /// Lines that were not written.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Writes what there is and ends.
    pub fn finish(&self) {
        drop(lock(&self.0.queue).take());
        // One that panicked has said so.
        drop(lock(&self.0.thread).take().map(JoinHandle::join));
    }

    fn send(&self, message: Message) -> bool {
        lock(&self.0.queue).as_ref().is_some_and(|queue| queue.try_send(message).is_ok())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(mut sink: Sink, messages: &Receiver<Message>, lost: &AtomicU64) {
    let mut failing = false;
    while let Ok(message) = messages.recv() {
        let done = match message {
            Message::Reopen => sink.reopen(),
            Message::Line(line) => {
                let written = sink.write(&line);
                if written.is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
                written
            }
        };
        if let Err(error) = &done
            && !failing
        {
            let path = sink.path.display();
            tracing::error!(%path, %error, "the audit trail cannot be written");
        }
        failing = done.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_trail_goes_on_where_it_ended_and_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        for number in 0..2 {
            let trail = Trail::start(Sink::open(&path, 1 << 20).unwrap()).unwrap();
            trail.line(&serde_json::json!({ "number": number }));
            trail.finish();
            trail.line(&"late");
            assert_eq!(trail.lost(), 1);
        }
        assert_eq!(lines(&path), [r#"{"number":0}"#, r#"{"number":1}"#]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn it_never_takes_more_than_twice_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut sink = Sink::open(&path, 100).unwrap();
        for number in 0..1000 {
            sink.write(&line(&number)).unwrap();
        }
        let sizes: Vec<u64> = fs::read_dir(folder.path())
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .collect();
        assert!(sizes.len() == 2 && sizes.iter().all(|size| *size <= 100), "{sizes:?}");
        assert_eq!(lines(&path).last().unwrap(), "999");
    }

    #[test]
    fn a_file_that_was_moved_away_is_left_alone_after_it_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let [path, moved] = ["audit.jsonl", "moved"].map(|name| folder.path().join(name));
        let trail = Trail::start(Sink::open(&path, 1 << 20).unwrap()).unwrap();
        trail.line(&1);
        trail.finish();
        let trail = Trail::start(Sink::open(&path, 1 << 20).unwrap()).unwrap();
        fs::rename(&path, &moved).unwrap();
        trail.reopen();
        trail.line(&2);
        trail.finish();
        assert_eq!((lines(&moved), lines(&path)), (vec!["1".to_owned()], vec!["2".to_owned()]));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(Sink::open(&link, 100).is_err());
        assert!(Sink::open(Path::new("/dev/null"), 100).is_err());
    }
}
