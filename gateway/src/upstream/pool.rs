//! Idle connections to endpoints. Each worker has its own pool, so that nobody waits for a lock; it is keyed by
//! address and TLS, so that it outlives any configuration.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::time::Instant;

use crate::upstream::Keep;
use crate::upstream::balance::Picked;
use crate::upstream::connection::Connection;
use crate::upstream::dial::Line;

/// The idle connections of one worker.
#[derive(Debug, Default)]
pub struct Pool {
    idle: RefCell<HashMap<Line, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    until: Instant,
}

/// Where a connection goes when it is done.
#[derive(Debug)]
pub struct Home {
    /// The pool that it came from.
    pub pool: Rc<Pool>,
    /// What becomes of it there.
    pub keep: Keep,
    /// The endpoint that it leads to, busy until the answer is at its end.
    pub picked: Picked,
}

impl Pool {
    /// An idle connection along `line`, the one used last first: the others may then expire. Those that the endpoint
    /// has closed are dropped on the way.
    pub fn take(&self, line: Line) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let idle = idle.get_mut(&line)?;
        while let Some(Idle { mut connection, .. }) = idle.pop() {
            if !connection.is_stale() {
                return Some(connection);
            }
        }
        None
    }

    /// Drops what has expired or was closed, and what leads where `is_used` says that nobody goes.
    pub fn sweep(&self, is_used: impl Fn(SocketAddr) -> bool) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|line, idle| {
            if !is_used(line.endpoint()) {
                return false;
            }
            idle.retain_mut(|idle| idle.until > now && !idle.connection.is_stale());
            !idle.is_empty()
        });
    }
}

impl Home {
    /// Takes back a connection whose answer was read to its end.
    pub fn give_back(&self, connection: Box<Connection>) {
        let mut idle = self.pool.idle.borrow_mut();
        let idle = idle.entry(connection.line()).or_default();
        if idle.len() < self.keep.connections {
            idle.push(Idle { connection, until: Instant::now() + self.keep.time });
        }
    }
}
