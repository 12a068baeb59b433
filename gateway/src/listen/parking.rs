//! Connections at rest. One that is served is a task, a timer, a codec and what the runtime knows of its socket, 2 KiB
//! in all; one whose client has not come back for a while is parked: it is an entry here and nothing else, and one
//! descriptor of epoll for all of a worker's watches its socket. With its next byte it is served again.
//!
//! An entry is one piece of memory of a size of its own. A piece that was the connection's before would stay among
//! those that go, and keep the pages of all of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::retry_on_intr;
use tokio::time::Instant;

use crate::base::readable::Readable;
use crate::http::lifetime::Lifetime;
use crate::http::proxy_protocol::Addresses;
use crate::listen::worker::Slot;
use crate::observe::Counters;
use crate::request::listener::Listener;

/// Connections that go on before others on the thread get their turn.
const BATCH: usize = 64;

/// The sequence number in a key, below the second.
const SEQUENCE_BITS: u32 = 32;

/// The allocator (mimalloc) gives back what has been free for a second. By then it has been asked to since.
const GIVEN_BACK_AFTER: Duration = Duration::from_secs(3);

/// So much has pages of its own in the allocator.
const LARGE_BYTES: usize = 1 << 20;

/// A connection at rest. The socket is closed before its slot is free.
pub(super) struct Parked {
    /// Known to no runtime.
    pub(super) socket: TcpStream,
    pub(super) slot: Slot,
    pub(super) listener: Rc<Listener>,
    pub(super) addresses: Addresses,
    pub(super) lifetime: Lifetime,
}

/// Those of one worker. There are no more than connections may be open.
pub(super) struct Parking {
    epoll: OwnedFd,
    begun: Instant,
    parked_ever: Cell<u64>,
    parked_last: Cell<Instant>,
    /// By the second since `begun` at which their time is over, then by a number of their own.
    parked: RefCell<BTreeMap<u64, Box<Parked>>>,
    counters: Arc<Counters>,
}

impl Parking {
    /// Nobody is parked.
    pub(super) fn new(counters: Arc<Counters>) -> io::Result<Self> {
        let begun = Instant::now();
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            begun,
            parked_ever: Cell::new(0),
            parked_last: Cell::new(begun),
            parked: RefCell::default(),
            counters,
        })
    }

    /// What can be read as soon as a client has come back. Runs inside of a runtime.
    pub(super) fn watch(&self) -> io::Result<Readable> {
        Readable::new(self.epoll.try_clone()?)
    }

    /// Parks a connection until its client comes back, or until two seconds after `until` at most. Fails where the
    /// kernel has no memory to watch it; it is closed then, as a connection between two requests may be at any time.
    pub(super) fn park(&self, parked: Parked, until: Instant) -> io::Result<()> {
        let key = self.key(until);
        let data = epoll::EventData::new_u64(key);
        // As long as there is something to read, whatever came before.
        epoll::add(&self.epoll, &parked.socket, data, epoll::EventFlags::IN)?;
        self.parked.borrow_mut().insert(key, Box::new(parked));
        self.counters.connections_parked.add(1);
        self.parked_last.set(Instant::now());
        Ok(())
    }

    /// Hands over some of those whose clients have come back or have gone; whether that were all.
    pub(super) fn take_awake(&self, mut take: impl FnMut(Parked)) -> io::Result<bool> {
        let mut events = Vec::with_capacity(BATCH);
        let at_once = Some(&Timespec::default());
        retry_on_intr(|| epoll::wait(&self.epoll, spare_capacity(&mut events), at_once))?;
        for event in &events {
            let Some(parked) = self.remove(event.data.u64()) else { continue };
            epoll::delete(&self.epoll, &parked.socket)?;
            take(parked);
        }
        Ok(events.len() < BATCH)
    }

    /// Closes those whose time is over, and gives back memory. Called about once a second.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        if now < self.parked_last.get() + GIVEN_BACK_AFTER {
            // The allocator looks for what to give back whenever pages become free, and who is idle frees none.
            drop(black_box(Vec::<u8>::with_capacity(LARGE_BYTES)));
        }
        let due = self.second(now) << SEQUENCE_BITS;
        let first = || self.parked.borrow().first_key_value().map(|(key, _)| *key);
        while let Some(key) = first().filter(|key| *key < due) {
            self.remove(key);
        }
    }

    /// Takes those that `is_meant` tells, all of which are looked at.
    pub(super) fn take(&self, is_meant: impl Fn(&Slot) -> bool) -> Vec<Parked> {
        let parked = self.parked.borrow();
        let meant = parked.iter().filter(|(_, parked)| is_meant(&parked.slot));
        let meant: Vec<u64> = meant.map(|(key, _)| *key).collect();
        drop(parked);
        meant.into_iter().filter_map(|key| self.remove(key)).collect()
    }

    fn remove(&self, key: u64) -> Option<Parked> {
        let parked = self.parked.borrow_mut().remove(&key)?;
        self.counters.connections_parked.subtract_one();
        Some(*parked)
    }

    /// No two are the same: nobody parks four billion times within a second.
    fn key(&self, until: Instant) -> u64 {
        let number = self.parked_ever.replace(self.parked_ever.get() + 1);
        self.second(until) << SEQUENCE_BITS | number & u64::from(u32::MAX)
    }

    fn second(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.begun).as_secs()
    }
}
