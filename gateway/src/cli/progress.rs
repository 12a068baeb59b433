//! Progress bars for work that people wait for. On a terminal; elsewhere nothing is shown.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often it is drawn.
const DRAWN_PER_SECOND: u8 = 8;

/// A bar for so many bytes, or for nobody knows how many.
pub(super) fn bytes(what: &str, length: Option<u64>) -> ProgressBar {
    let (bar, template) = match length {
        Some(length) => (
            ProgressBar::new(length),
            "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        ),
        None => (ProgressBar::no_length(), "{msg} {bytes}, {bytes_per_sec}"),
    };
    drawn(bar, what, template)
}

/// A sign of life for work that has no measure.
pub(super) fn waiting(what: &str) -> ProgressBar {
    let bar = drawn(ProgressBar::no_length(), what, "{msg} {elapsed}");
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn drawn(bar: ProgressBar, what: &str, template: &str) -> ProgressBar {
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(DRAWN_PER_SECOND));
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_message(what.to_owned());
    bar
}

/// Counts what is read.
pub(super) struct Counted<R> {
    /// What is read.
    pub(super) inner: R,
    /// Where it shows.
    pub(super) bar: ProgressBar,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bar.inc(count as u64);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
        self.bar.inc(count as u64);
    }
}
