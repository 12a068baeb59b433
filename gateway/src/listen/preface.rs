//! What comes before HTTP on a listener that asks for it, in order, within one bound of time.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::base::address::PeerAddr;
use crate::config::Config;
use crate::http::deadline::Deadline;
use crate::http::h1::head::Limits;
use crate::http::socket::Socket;
use crate::listen::worker::Slot;
use crate::listen::{connection, tls};
use crate::observe::{HandshakeFailure, Refusal};
use crate::request;
use crate::request::listener::Listener;
use crate::tls::session::Session;

/// Agrees on everything with the client, then serves it.
pub(super) async fn serve(
    slot: Slot,
    listener: Rc<Listener>,
    (stream, peer): (TcpStream, PeerAddr),
) {
    let config = slot.config();
    let agreed = timeout(config.bounds.handshake_timeout, agree(&slot, &listener, stream));
    // On the heap and gone when it is done: a connection may be open for long after its handshake.
    let Some(agreed) = unless_denied(&slot, Box::pin(agreed)).await else { return };
    let (socket, session) = match agreed.unwrap_or(Err(HandshakeFailure::TimedOut)) {
        Ok(agreed) => agreed,
        Err(failure) => return slot.counters().handshake_failed(failure),
    };
    slot.counters().handshake_done(session.resumed);
    let limits = Limits::new(&config.bounds);
    let deadline = Rc::new(Deadline::new(&config.bounds));
    let connection = request::Connection::new(slot.requests(), peer, Some(session));
    drop((listener, config));
    connection::serve(slot, limits, connection, (socket, deadline)).await;
}

async fn agree(
    slot: &Slot,
    listener: &Listener,
    stream: TcpStream,
) -> Result<(Socket, Session), HandshakeFailure> {
    let server = listener.tls.as_ref().ok_or(HandshakeFailure::Broken)?;
    tls::handshake(server, stream, slot.handshakes()).await
}

/// `None` once a rule denies the peer.
async fn unless_denied<T>(slot: &Slot, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut registered = false;
    poll_fn(|context| {
        if !registered {
            slot.register(context.waker());
            registered = true;
        }
        if slot.is_denied() {
            slot.counters().refused(Refusal::Denied);
            return Poll::Ready(None);
        }
        work.as_mut().poll(context).map(Some)
    })
    .await
}

/// How many handshakes a worker has under way. Those beyond wait for their turn, within their bound of time.
#[derive(Debug)]
pub(super) struct Handshakes {
    permits: Semaphore,
    size: Cell<usize>,
}

impl Handshakes {
    pub(super) fn new() -> Self {
        Self { permits: Semaphore::new(0), size: Cell::new(0) }
    }

    /// This worker's equal share of what the configuration allows to all.
    pub(super) fn fit(&self, config: &Config) {
        let (size, share) = (self.size.get(), config.bounds.handshakes.div_ceil(config.workers));
        if share > size {
            self.permits.add_permits(share - size);
            self.size.set(share);
        } else if share < size {
            self.size.set(size - self.permits.forget_permits(size - share));
        }
    }

    /// A place among them.
    pub(super) async fn enter(&self) -> Option<SemaphorePermit<'_>> {
        self.permits.acquire().await.ok()
    }
}
