//! The thread that writes: it takes what the workers have handed over, in turn, and sleeps when there is nothing.

use std::sync::atomic::Ordering;
use std::thread;

use super::sink::{Sink, WriteError};
use super::{BUFFER_KEEP_BYTES, Inlet, Lines, QUEUE_BUFFERS, Shared, lock};

/// Writes until the log ends.
pub(super) fn run(shared: &Shared, sink: Option<Sink>) {
    let mut writer = Writer { shared, sink, is_failing: false };
    let mut inlets = Vec::new();
    loop {
        // Read before the queues: what was handed over before they were set is in them.
        let ending = shared.ending.load(Ordering::Acquire);
        let switching = lock(&shared.next).is_some();
        inlets.append(&mut lock(&shared.inlets));
        // A worker that hands over as fast as this writes must not keep it from looking up.
        let rest = (0..=QUEUE_BUFFERS).all(|_| writer.write_all(&inlets));
        if switching && let Some(sink) = lock(&shared.next).take() {
            writer.sink = sink;
            writer.is_failing = false;
        } else if ending {
            return;
        } else if !rest {
            thread::park();
        }
    }
}

struct Writer<'s> {
    shared: &'s Shared,
    sink: Option<Sink>,
    /// What fails for each of a thousand buffers is said once.
    is_failing: bool,
}

impl Writer<'_> {
    /// Writes one buffer of each worker. Whether there was one.
    fn write_all(&mut self, inlets: &[Inlet]) -> bool {
        let mut any = false;
        for Inlet { full, empty } in inlets {
            let Ok(Lines { mut bytes, count }) = full.try_recv() else { continue };
            any = true;
            self.write(&bytes, count);
            if bytes.capacity() <= BUFFER_KEEP_BYTES {
                bytes.clear();
                // With all of them there already this one is of no use.
                drop(empty.try_send(bytes));
            }
        }
        any
    }

    fn write(&mut self, bytes: &[u8], count: u64) {
        let give_up =
            || self.shared.ending.load(Ordering::Acquire) || lock(&self.shared.next).is_some();
        let written = match &mut self.sink {
            Some(sink) => sink.write(bytes, give_up),
            None => Err(WriteError { written_lines: 0, error: None }),
        };
        match written {
            Ok(()) if self.is_failing => {
                self.is_failing = false;
                tracing::info!("the access log is written again");
            }
            Ok(()) => {}
            Err(WriteError { written_lines, error }) => {
                let lost = count.saturating_sub(written_lines);
                self.shared.failed.fetch_add(lost, Ordering::Relaxed);
                if let Some(error) = error.filter(|_| !self.is_failing) {
                    self.is_failing = true;
                    tracing::error!(%error, "the access log cannot be written; lines are lost");
                }
            }
        }
    }
}
