//! What lines are written to: a file, a pipe, a terminal. It may fail and it may not move; it never blocks whoever
//! wants it to stop, as far as the system lets it.

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes that a pipe which can take any takes at once (PIPE_BUF, pipe(7)).
const PIECE_BYTES: usize = 4096;
/// How often somebody who waits for a slow reader looks whether it is still wanted (unit: ns).
const PATIENCE_NS: i64 = 50_000_000;

/// Where lines go.
#[derive(Debug)]
pub struct Sink {
    file: File,
    /// A file on a disk takes everything and at once; what has a reader may not.
    has_reader: bool,
    /// The last line was torn, and what follows must not be taken for its end.
    is_torn: bool,
}

/// Lines that were not written.
#[derive(Debug)]
pub(super) struct WriteError {
    /// Whole lines that were.
    pub(super) written_lines: u64,
    /// Why; `None` where nobody wanted it any more.
    pub(super) error: Option<io::Error>,
}

impl Sink {
    /// A file that is appended to and made if it is not there, for its owner and group to read. A pipe must have a
    /// reader.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        // Without O_NONBLOCK a pipe would be waited for that nobody reads.
        options
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        Ok(Self::of(options.open(path)?.into()))
    }

    /// The standard output.
    pub fn stdout() -> io::Result<Self> {
        io::stdout().as_fd().try_clone_to_owned().map(Self::of)
    }

    /// The standard error.
    pub fn stderr() -> io::Result<Self> {
        io::stderr().as_fd().try_clone_to_owned().map(Self::of)
    }

    /// What is open already.
    pub fn of(descriptor: OwnedFd) -> Self {
        let file = File::from(descriptor);
        let kind = file.metadata().map(|metadata| metadata.file_type());
        let has_reader =
            kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket() || kind.is_char_device());
        Self { file, has_reader, is_torn: false }
    }

    /// Writes lines until all are written or `give_up` says that it is enough.
    pub(super) fn write(
        &mut self,
        lines: &[u8],
        give_up: impl Fn() -> bool,
    ) -> Result<(), WriteError> {
        let mut left = lines;
        let failed = |left: &[u8], error| {
            let written = lines.len() - left.len();
            let written = lines.get(..written).unwrap_or_default();
            let written_lines = written.iter().filter(|byte| **byte == b'\n').count() as u64;
            Err(WriteError { written_lines, error })
        };
        while !left.is_empty() {
            let wait = self.has_reader && !give_up();
            if self.has_reader && !self.is_ready(wait) {
                if !wait {
                    self.is_torn = self.is_torn || is_within_a_line(lines, left);
                    return failed(left, None);
                }
                continue;
            }
            let most = if self.has_reader { PIECE_BYTES } else { left.len() };
            let piece = left.get(..most).unwrap_or(left);
            let written = match self.is_torn {
                true => self.file.write(b"\n").map(|_| 0),
                false => self.file.write(piece),
            };
            match written {
                Ok(0) if self.is_torn => self.is_torn = false,
                Ok(0) => return failed(left, Some(ErrorKind::WriteZero.into())),
                Ok(bytes) => left = left.get(bytes..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if give_up() {
                        self.is_torn = self.is_torn || is_within_a_line(lines, left);
                        return failed(left, None);
                    }
                }
                Err(error) => {
                    self.is_torn = self.is_torn || is_within_a_line(lines, left);
                    return failed(left, Some(error));
                }
            }
        }
        Ok(())
    }

    fn is_ready(&self, wait: bool) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        let wait = Timespec { tv_sec: 0, tv_nsec: if wait { PATIENCE_NS } else { 0 } };
        // An error of the descriptor shows when it is written to.
        poll(&mut fds, Some(&wait)).is_ok_and(|ready| ready > 0)
    }
}

/// Whether what is left of `lines` begins in the middle of one.
fn is_within_a_line(lines: &[u8], left: &[u8]) -> bool {
    let written = lines.len() - left.len();
    written > 0 && lines.get(written - 1) != Some(&b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_is_refused_and_waits_for_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(Sink::open(&path).unwrap_err().raw_os_error(), Some(libc::ENXIO));
    }

    #[test]
    fn lines_that_were_written_before_a_pipe_filled_are_known() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut sink = Sink::of(writer.into());
        let lines = b"0123456\n".repeat(100_000);
        let refused = sink.write(&lines, || true).unwrap_err();
        assert!(refused.error.is_none());
        assert!((1..100_000).contains(&refused.written_lines), "{}", refused.written_lines);
    }

    #[test]
    fn what_follows_a_torn_line_begins_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut sink = Sink::open(&path).unwrap();
        sink.file.write_all(b"to").unwrap();
        sink.is_torn = true;
        sink.write(b"whole\n", || true).unwrap();
        sink.write(b"next\n", || true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "to\nwhole\nnext\n");
    }
}
