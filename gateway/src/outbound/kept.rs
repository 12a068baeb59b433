//! Connections that are used again, for questions that come one after the other to one server.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;

use super::url::Target;
use crate::base::time::instant;

/// Those that wait for the next question.
const IDLE_MAX: usize = 16;
/// Most servers wait longer, so that hardly one is gone when it is wanted.
const IDLE_FOR: Duration = Duration::from_secs(4);
/// A name may stand for other addresses by then.
const USED_FOR: Duration = Duration::from_secs(60);

/// Connections of one client.
#[derive(Default)]
pub(super) struct Kept(Mutex<Vec<Idle>>);

/// One of them, and when it was made.
pub(super) type Connection = (SendRequest<Full<Bytes>>, Instant);

struct Idle {
    to: (bool, String),
    connection: Connection,
    since: Instant,
}

impl Kept {
    /// The one to a server that was used last.
    pub(super) fn take(&self, target: &Target) -> Option<Connection> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|one| {
            let (sender, made) = &one.connection;
            let is_fresh = one.since.elapsed() < IDLE_FOR && made.elapsed() < USED_FOR;
            is_fresh && !sender.is_closed()
        });
        let last =
            idle.iter().rposition(|one| one.to.0 == target.tls && one.to.1 == target.authority)?;
        Some(idle.remove(last).connection)
    }

    /// Keeps one whose answer was read in full, if there is room.
    pub(super) fn put(&self, target: &Target, connection: Connection) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            let to = (target.tls, target.authority.clone());
            idle.push(Idle { to, connection, since: instant() });
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Kept").finish_non_exhaustive()
    }
}
