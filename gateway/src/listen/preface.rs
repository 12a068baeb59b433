//! What comes before HTTP on a listener that asks for it, in order, within one bound of time.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::base::address::{ClientAddr, PeerAddr};
use crate::config::Config;
use crate::http::deadline::Deadline;
use crate::http::proxy_protocol::{Addresses, Invalid};
use crate::http::socket::Socket;
use crate::listen::connection::{self, Stream};
use crate::listen::tls::Failed;
use crate::listen::worker::Slot;
use crate::listen::{proxy_protocol, tls};
use crate::observe::Refusal;
use crate::request::listener::Listener;
use crate::request::{self, Arrival};
use crate::tls::session::Session;

/// Agrees on everything with the client, then serves it.
pub(super) async fn serve(
    slot: Slot,
    listener: Rc<Listener>,
    (stream, peer, addresses): (TcpStream, PeerAddr, Addresses),
) {
    let config = slot.config();
    // On the heap and gone when it is done: a connection may be open for long after its handshake.
    let agreed = Box::pin(agree(&slot, &listener, stream, addresses));
    let (socket, session, addresses) = match unless_denied(&slot, agreed).await {
        Ok(agreed) => agreed,
        Err(Failure::Refused(reason)) => return slot.counters().refused(reason),
        Err(Failure::Handshake(Failed { failure, signal })) => {
            slot.counters().handshake_failed(failure);
            return signal.iter().for_each(|signal| slot.notice(*signal, failure.name()));
        }
    };
    if let Some(session) = &session {
        slot.counters().handshake_done(session.resumed);
    }
    let deadline = Rc::new(Deadline::new(&config.bounds));
    drop(config);
    let arrival = Arrival { peer, addresses, tls: session };
    let connection = request::Connection::new(slot.requests(), listener, arrival);
    connection::serve(slot, connection, (Stream::New(socket), deadline)).await;
}

/// Why nothing was agreed on.
enum Failure {
    Refused(Refusal),
    Handshake(Failed),
}

async fn agree(
    slot: &Slot,
    listener: &Listener,
    mut stream: TcpStream,
    mut addresses: Addresses,
) -> Result<(Socket, Option<Session>, Addresses), Failure> {
    let until = Instant::now() + slot.config().bounds.handshake_timeout;
    if listener.speaks_proxy_protocol() {
        let said = timeout_at(until, proxy_protocol::read(&mut stream)).await;
        let said = said.unwrap_or(Err(Invalid));
        let said = said.map_err(|Invalid| Failure::Refused(Refusal::ProxyHeader))?;
        addresses = said.unwrap_or(addresses);
        let client = ClientAddr::believed(addresses.source.ip());
        if slot.requests().denies_believed(client) {
            if slot.requests().resets_believed(client) {
                // What fails has been closed already.
                stream.set_zero_linger().ok();
            }
            return Err(Failure::Refused(Refusal::Denied));
        }
        slot.believe(client);
        if !slot.admits_source(client.ip()) {
            return Err(Failure::Refused(Refusal::PerSource));
        }
    }
    let Some(server) = &listener.tls else { return Ok((Socket::Plain(stream), None, addresses)) };
    let late = Cell::new(None);
    let shaking = tls::handshake(server, stream, (slot.handshakes(), &late));
    let shaken = timeout_at(until, shaking).await;
    let shaken = shaken.unwrap_or_else(|_| Err(Failed::in_time(late.get())));
    let (socket, session) = shaken.map_err(Failure::Handshake)?;
    Ok((socket, Some(session), addresses))
}

/// Ends the work once a rule denies the peer.
async fn unless_denied<T>(
    slot: &Slot,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut work = pin!(work);
    let mut registered = false;
    poll_fn(|context| {
        if !registered {
            slot.register(context.waker());
            registered = true;
        }
        if slot.is_denied() {
            return Poll::Ready(Err(Failure::Refused(Refusal::Denied)));
        }
        work.as_mut().poll(context)
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

    /// A place among them, if one is free.
    pub(super) fn enter_now(&self) -> Option<SemaphorePermit<'_>> {
        self.permits.try_acquire().ok()
    }

    /// A place among them.
    pub(super) async fn enter(&self) -> Option<SemaphorePermit<'_>> {
        self.permits.acquire().await.ok()
    }
}
