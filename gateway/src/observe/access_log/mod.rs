//! The access log, off the path of requests: each worker has a buffer of its own, whole buffers go to one thread that
//! writes them. It knows lines and no requests.
//!
//! ```text
//! worker ── line ──▶ Buffer ── 32 KiB, or 200 ms ──▶ queue of the worker ──▶ writer ──▶ Sink
//!                      ▲                                                        │
//!                      └───────────────── emptied, to be used again ────────────┘
//! ```
//!
//! Nothing here is waited for by a request: where the queue is full the lines of a buffer are dropped and counted.

pub mod escape;
pub mod sink;
mod writer;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use crate::observe::Counters;
use sink::Sink;

/// How long a line waits in a buffer that does not fill.
pub const FLUSH_EVERY: Duration = Duration::from_millis(200);
/// A buffer of so many bytes is handed over.
const BUFFER_BYTES: usize = 32 * 1024;
/// Buffers of one worker that may wait to be written.
const QUEUE_BUFFERS: usize = 32;
/// A buffer that one long line made larger is not kept.
const BUFFER_KEEP_BYTES: usize = 2 * BUFFER_BYTES;
/// How long an orderly end waits for what is still to be written.
const FINISH_MAX: Duration = Duration::from_secs(2);

/// Lines that belong together.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    count: u64,
}

/// The two ends of a worker's queue that the writer holds.
#[derive(Debug)]
struct Inlet {
    full: Receiver<Lines>,
    empty: SyncSender<Vec<u8>>,
}

/// What writer, workers and `control` share. The workers touch none of the locks once they have begun.
#[derive(Debug, Default)]
struct Shared {
    inlets: Mutex<Vec<Inlet>>,
    /// What the writer is to write to from now on: `Some(None)` for nothing.
    next: Mutex<Option<Option<Sink>>>,
    ending: AtomicBool,
    /// Lines that could not be written.
    failed: AtomicU64,
}

/// The access log as `control` has it.
#[derive(Clone, Debug)]
pub struct AccessLog {
    shared: Arc<Shared>,
    writer: Thread,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl AccessLog {
    /// Starts the thread that writes to `sink`, or that throws away what comes without one.
    pub fn start(sink: Option<Sink>) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let thread = thread::Builder::new().name("access-log".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || writer::run(&shared, sink)
        })?;
        let writer = thread.thread().clone();
        Ok(Self { shared, writer, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// The buffer of one worker.
    pub fn buffer(&self, counters: Arc<Counters>) -> Buffer {
        let (full_sender, full) = sync_channel(QUEUE_BUFFERS);
        let (empty, empty_receiver) = sync_channel(QUEUE_BUFFERS);
        lock(&self.shared.inlets).push(Inlet { full, empty });
        Buffer {
            lines: Lines::default(),
            full: full_sender,
            empty: empty_receiver,
            writer: self.writer.clone(),
            counters,
        }
    }

    /// Writes to `sink` from now on. What was handed over before is written to the old one.
    pub fn switch(&self, sink: Option<Sink>) {
        *lock(&self.shared.next) = Some(sink);
        self.writer.unpark();
    }

    /// Lines that could not be written.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Writes what the workers have handed over, if that is possible within two seconds.
    pub fn finish(&self) {
        self.shared.ending.store(true, Ordering::Release);
        self.writer.unpark();
        let Some(thread) = lock(&self.thread).take() else { return };
        let step = Duration::from_millis(5);
        let mut left = FINISH_MAX;
        while !thread.is_finished() && !left.is_zero() {
            thread::sleep(step);
            left = left.saturating_sub(step);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines of one worker that were not handed over yet.
#[derive(Debug)]
pub struct Buffer {
    lines: Lines,
    full: SyncSender<Lines>,
    empty: Receiver<Vec<u8>>,
    writer: Thread,
    counters: Arc<Counters>,
}

impl Buffer {
    /// Adds a line, which `write` leaves without its end.
    pub fn line(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.lines.bytes);
        self.lines.bytes.push(b'\n');
        self.lines.count += 1;
        self.counters.log_lines.add(1);
        if self.lines.bytes.len() >= BUFFER_BYTES {
            self.flush();
        }
    }

    /// Hands over what there is.
    pub fn flush(&mut self) {
        if self.lines.count == 0 {
            return;
        }
        let bytes = self.empty.try_recv().unwrap_or_default();
        let lines = std::mem::replace(&mut self.lines, Lines { bytes, count: 0 });
        match self.full.try_send(lines) {
            Ok(()) => self.writer.unpark(),
            Err(error) => {
                use std::sync::mpsc::TrySendError::{Disconnected, Full};
                let (Full(mut lines) | Disconnected(mut lines)) = error;
                self.counters.log_lines_dropped.add(lines.count);
                lines.bytes.clear();
                self.lines.bytes = lines.bytes;
            }
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    fn lines(buffer: &mut Buffer, count: usize) {
        for number in 0..count {
            buffer.line(|line| write!(line, "{number}").unwrap());
        }
    }

    #[test]
    fn every_line_is_written_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = AccessLog::start(Some(Sink::open(&path).unwrap())).unwrap();
        let counters = Arc::<Counters>::default();
        let mut buffer = log.buffer(Arc::clone(&counters));
        lines(&mut buffer, 100_000);
        drop(buffer);
        log.finish();
        let dropped = counters.log_lines_dropped.value() as usize;
        let text = std::fs::read_to_string(&path).unwrap();
        let numbers: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers.is_sorted_by(|one, other| one < other));
        assert_eq!(numbers.len() + dropped, 100_000);
        assert!(!numbers.is_empty());
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_time() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = AccessLog::start(Some(Sink::of(std::os::fd::OwnedFd::from(writer)))).unwrap();
        let counters = Arc::<Counters>::default();
        let mut buffer = log.buffer(Arc::clone(&counters));
        lines(&mut buffer, 1_000_000);
        buffer.flush();
        let dropped = counters.log_lines_dropped.value();
        assert!(dropped > 100_000, "{dropped}");
        // The end does not wait for a reader that does nothing, and what it could not write is counted.
        drop(buffer);
        log.finish();
        drop(log.clone());
        let mut text = String::new();
        // The writing end is closed with the thread.
        reader.read_to_string(&mut text).unwrap();
        let whole = text.matches('\n').count() as u64;
        let left = whole + counters.log_lines_dropped.value() + log.failed();
        assert!((1_000_000..=1_000_001).contains(&left), "{left}");
    }

    #[test]
    fn what_was_handed_over_before_a_switch_is_in_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        let log = AccessLog::start(Some(Sink::open(&old).unwrap())).unwrap();
        let mut buffer = log.buffer(Arc::default());
        lines(&mut buffer, 3);
        buffer.flush();
        log.switch(Some(Sink::open(&new).unwrap()));
        let read = |path| std::fs::read_to_string(path).unwrap();
        let mut written = 3;
        while read(&new).is_empty() {
            lines(&mut buffer, 1);
            buffer.flush();
            written += 1;
            assert!(written < 100_000, "the new file is never written to");
            thread::sleep(Duration::from_millis(1));
        }
        drop(buffer);
        log.finish();
        assert!(read(&old).starts_with("0\n1\n2\n"));
        assert_eq!((read(&old) + &read(&new)).lines().count(), written);
    }

    #[test]
    fn a_disk_that_is_full_costs_lines_and_is_counted() {
        let log = AccessLog::start(Some(Sink::open("/dev/full".as_ref()).unwrap())).unwrap();
        let mut buffer = log.buffer(Arc::default());
        lines(&mut buffer, 10);
        drop(buffer);
        log.finish();
        assert_eq!(log.failed(), 10);
    }
}
