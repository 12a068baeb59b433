//! Tunnels of clients that a trusted proxy has named: once a rule denies such a client they are cut, each alone, for
//! their connections belong to the proxy. Knows nothing of clients with a connection of their own.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::Waker;

use crate::base::address::ClientAddr;
use crate::http::deadline::Deadline;

/// Those of one worker: as many as it has requests, at most.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    next: Cell<u64>,
    open: RefCell<HashMap<u64, Tunnel>>,
}

#[derive(Debug)]
struct Tunnel {
    client: ClientAddr,
    deadline: Rc<Deadline>,
    waker: Waker,
}

impl Tunnels {
    /// From now on this tunnel can be cut; `waker` is that of who looks at the deadline. Answers its number.
    pub(super) fn enter(&self, client: ClientAddr, deadline: &Rc<Deadline>, waker: &Waker) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        let (deadline, waker) = (Rc::clone(deadline), waker.clone());
        self.open.borrow_mut().insert(number, Tunnel { client, deadline, waker });
        number
    }

    /// The tunnel of this number has ended.
    pub(super) fn leave(&self, number: u64) {
        self.open.borrow_mut().remove(&number);
    }

    /// Cuts those of clients that `is_denied` tells.
    pub(super) fn cut(&self, is_denied: impl Fn(ClientAddr) -> bool) {
        for tunnel in self.open.borrow().values().filter(|tunnel| is_denied(tunnel.client)) {
            tunnel.deadline.cut();
            tunnel.waker.wake_by_ref();
        }
    }
}
