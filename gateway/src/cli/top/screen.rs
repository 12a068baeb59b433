//! The terminal while `top` has it: the alternate screen, keys without Enter, and everything as it was when it ends,
//! however that comes about.

use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::view::Line;
use crate::base::time::instant;

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const CONTROL_C: u8 = 3;
const CONTROL_D: u8 = 4;
const ESCAPE: u8 = 27;

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// It is time for another look.
    Next,
    /// The window has another size.
    Again,
    /// That was enough.
    End,
}

/// The terminal, until it is dropped.
pub(super) struct Screen {
    /// How keys were read before, where they come from a terminal.
    before: Option<Termios>,
    signals: SignalFd,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn enter() -> io::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGWINCH] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags)?;
        let stdin = io::stdin();
        let before = if stdin.is_terminal() { Some(tcgetattr(&stdin)?) } else { None };
        if let Some(before) = &before {
            let mut keys = before.clone();
            keys.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
            tcsetattr(&stdin, OptionalActions::Now, &keys)?;
        }
        let screen = Self { before, signals };
        // The words of a panic belong on the screen that stays.
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            drop(write(LEAVE));
            told(panic);
        }));
        write(ENTER)?;
        Ok(screen)
    }

    /// Shows as many of the lines as there is room for.
    pub(super) fn show(&mut self, lines: &[Line]) -> io::Result<()> {
        let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0);
        let (rows, columns) = size.map_or((24, 80), |size| (size.ws_row, size.ws_col));
        let mut text = String::from("\x1b[H");
        for line in lines.iter().take(usize::from(rows).saturating_sub(1)) {
            let shown: String = line.text.chars().take(columns.into()).collect();
            match line.heading {
                true => text.push_str(&format!("\x1b[1m{shown}\x1b[0m")),
                false => text.push_str(&shown),
            }
            text.push_str("\x1b[K\n");
        }
        text.push_str("q ends it\x1b[J");
        write(&text)
    }

    /// Waits for so long, or until somebody wishes something.
    pub(super) fn wait(&mut self, most: Duration) -> io::Result<Wish> {
        let end = instant() + most;
        loop {
            let left = end.saturating_duration_since(instant());
            if left.is_zero() {
                return Ok(Wish::Next);
            }
            if let Some(wish) = self.wish(left)? {
                return Ok(wish);
            }
        }
    }

    fn wish(&mut self, most: Duration) -> io::Result<Option<Wish>> {
        let stdin = io::stdin();
        let timeout = Timespec::try_from(most).map_err(io::Error::other)?;
        let signals = PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN);
        let keys = PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN);
        let mut both = [signals, keys];
        // Keys that come from no terminal are not waited for: a file has them all at once.
        let watched = if self.before.is_some() { 2 } else { 1 };
        let (watched, _) = both.split_at_mut(watched);
        match poll(watched, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let has_keys = watched.get(1).is_some_and(|keys| !keys.revents().is_empty());
        if let Some(signal) = self.signals.read_signal()? {
            let resized = signal.ssi_signo == Signal::SIGWINCH as u32;
            return Ok(Some(if resized { Wish::Again } else { Wish::End }));
        }
        if !has_keys {
            return Ok(None);
        }
        let mut keys = [0; 16];
        let count = rustix::io::read(&stdin, &mut keys)?;
        let keys = keys.get(..count).unwrap_or_default();
        let ends = |key: &u8| [b'q', b'Q', CONTROL_C, CONTROL_D].contains(key);
        // An arrow begins with the byte of the Escape key. No byte at all: the terminal has gone.
        let end = keys.is_empty() || keys == [ESCAPE] || keys.iter().any(ends);
        Ok(end.then_some(Wish::End))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is no other terminal to say it on.
        drop(write(LEAVE));
        if let Some(before) = &self.before {
            tcsetattr(io::stdin(), OptionalActions::Now, before).ok();
        }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
