//! The connections of one worker to endpoints, those that a request has for itself and those that requests share, and
//! which of them takes a request. Decides nothing about endpoints or retries.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::Response;
use http::request::Parts;

use crate::base::error::Kind;
use crate::config::Protocol;
use crate::http::body::RequestBody;
use crate::http::deadline::Deadline;
use crate::observe::Counters;
use crate::upstream::body::Carrier;
use crate::upstream::connection::{Connection, Failure};
use crate::upstream::dial::Target;
use crate::upstream::h2::{MAX_CONNECTIONS, Taken, Trunks};
use crate::upstream::pool::Pool;

/// The head of an answer, and what the rest of it comes over.
pub type Answer = (Response<()>, Carrier);

/// All of them.
#[derive(Debug)]
pub struct Lines {
    /// Idle connections that take one request at a time.
    pub pool: Rc<Pool>,
    trunks: Trunks,
    counters: Arc<Counters>,
}

impl Lines {
    /// None yet.
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { pool: Rc::default(), trunks: Trunks::default(), counters }
    }

    /// Drops what is idle for too long or broken, and what leads where `is_used` says that nobody goes.
    pub fn sweep(&self, is_used: impl Fn(SocketAddr) -> bool) {
        self.pool.sweep(&is_used);
        self.trunks.sweep(&is_used);
    }

    /// Sends a request over a connection that is there, or over a new one, and waits for the head of the answer.
    pub async fn ask(
        &self,
        target: &Target<'_>,
        head: &Parts,
        body: RequestBody,
        deadline: &Rc<Deadline>,
    ) -> Result<Answer, Failure> {
        match target.dial.protocol {
            Protocol::Http1 => self.alone(target, head, body, deadline).await,
            // On the heap, as the making of connections is: requests that need neither have no room for them.
            Protocol::Http2 | Protocol::Auto => {
                Box::pin(self.shared(target, head, body, deadline)).await
            }
        }
    }

    /// Over a connection that the request has for itself.
    async fn alone(
        &self,
        target: &Target<'_>,
        head: &Parts,
        mut body: RequestBody,
        deadline: &Deadline,
    ) -> Result<Answer, Failure> {
        let line = target.dial.line();
        if let Some(connection) = self.pool.take(line) {
            self.counted(false);
            match exchange(connection, target, (head, body), deadline).await {
                Err(Failure::Unsent(unsent, _)) => body = unsent,
                done => return done,
            }
        }
        deadline.connect(target.connect_timeout);
        match Box::pin(target.dial.socket(deadline)).await {
            Ok(socket) => {
                self.counted(true);
                let connection = Connection::new(line, socket, target.limits);
                exchange(connection, target, (head, body), deadline).await
            }
            Err(error) => Err(Failure::Unsent(body, error)),
        }
    }

    /// Over one that requests share, where the endpoint speaks HTTP/2. One that was there before and turns out to be of
    /// no more use is passed over for another one.
    async fn shared(
        &self,
        target: &Target<'_>,
        head: &Parts,
        mut body: RequestBody,
        deadline: &Rc<Deadline>,
    ) -> Result<Answer, Failure> {
        let trunk = self.trunks.to(target.dial.line());
        let mut passed_over = 0;
        loop {
            deadline.connect(target.connect_timeout);
            let taken = trunk.take(target, &self.pool, head, deadline).await;
            let (came, goes_on, is_new) = match taken {
                Err(error) if error.kind() == Kind::NotImplemented => {
                    return Err(Failure::Final(error));
                }
                Err(error) => return Err(Failure::Unsent(body, error)),
                Ok((Taken::Alone(connection), is_new)) => {
                    self.counted(is_new);
                    (exchange(connection, target, (head, body), deadline).await, false, is_new)
                }
                Ok((Taken::Shared(stream), is_new)) => {
                    self.counted(is_new);
                    let connection = stream.connection();
                    let came = stream.send(head, body, target, deadline).await;
                    let came = came.map(|answer| {
                        let (head, exchange) = answer.into_parts();
                        (Response::from_parts(head, ()), Carrier::Http2(Box::new(exchange)))
                    });
                    (came, connection.is_usable(), is_new)
                }
            };
            match came {
                Err(Failure::Unsent(unsent, _))
                    if !is_new && !goes_on && passed_over < MAX_CONNECTIONS =>
                {
                    (body, passed_over) = (unsent, passed_over + 1);
                }
                done => return done,
            }
        }
    }

    fn counted(&self, is_new: bool) {
        let Counters { upstream_connections_opened, upstream_connections_reused, .. } =
            &*self.counters;
        let counter =
            if is_new { upstream_connections_opened } else { upstream_connections_reused };
        counter.add(1);
    }
}

async fn exchange(
    mut connection: Box<Connection>,
    target: &Target<'_>,
    (head, body): (&Parts, RequestBody),
    deadline: &Deadline,
) -> Result<Answer, Failure> {
    let response = connection.send(head, body, target.response_timeout, deadline).await?;
    Ok((response, Carrier::Http1(connection)))
}
