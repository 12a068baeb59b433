//! The way back: what workers notice about clients becomes decisions about sources.
//!
//! Workers report, without ever waiting; one thread scores, deterministically under the clock of the reports; `control`
//! carries decisions out. Nothing here blocks anybody by itself, and nothing here knows of requests or maps.

pub mod ban;
pub mod crowdsec;
pub mod decision;
pub mod evidence;
pub mod good;
pub mod paths;
pub mod score;
pub mod spread;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use evidence::{Evidence, Report};

/// Reports that nobody has read yet. Past it they are lost and counted. About 2 MiB.
pub const REPORTS_MAX: usize = 8192;

/// Where so many wait, no more are sent that are long, of 20 KiB at most: another 5 MiB.
const LONG_MAX: usize = 256;

/// Where a worker reports to.
#[derive(Clone, Debug)]
pub struct Reporter {
    reports: mpsc::Sender<Report>,
}

impl Reporter {
    /// A reporter and where its reports arrive.
    pub fn new() -> (Self, mpsc::Receiver<Report>) {
        let (reports, inbox) = mpsc::channel(REPORTS_MAX);
        (Self { reports }, inbox)
    }

    /// Reports something odd. Answers whether there was room for it.
    pub fn odd(&self, evidence: Evidence) -> bool {
        self.report(Report::Odd(Box::new(evidence)))
    }

    /// Whether so few wait that a long one may be sent.
    pub fn takes_long(&self) -> bool {
        self.reports.max_capacity() - self.reports.capacity() < LONG_MAX
    }

    /// Reports something. Answers whether there was room for it.
    pub fn report(&self, report: Report) -> bool {
        // Whoever reads may have ended, while the last requests go on.
        !matches!(self.reports.try_send(report), Err(TrySendError::Full(_)))
    }
}
