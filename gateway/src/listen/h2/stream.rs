//! One stream: a request, its answer, and a deadline of its own. A stream that the client takes back ends what is done
//! for it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, DATE, EXPECT, Entry, HOST, HeaderMap, HeaderValue,
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE,
};
use http::request::Parts;
use http::response;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use tokio::time::{sleep_until, timeout};

use crate::base::error::{Error, Kind};
use crate::config::Bounds;
use crate::http::body::{Incoming, StreamBody};
use crate::http::deadline::{Deadline, Phase};
use crate::http::h1;
use crate::http::h1::head::{MUST_BE_ENCODED, UNKNOWN_EXPECTATION};
use crate::http::h1::server::Answer as _;
use crate::http::h1::upgrade::{self, WebSocket};
use crate::http::headers;
use crate::listen::connection::fires;
use crate::listen::h2::STREAM_WINDOW_BYTES;
use crate::listen::h2::wire::Life;
use crate::observe::Counters;
use crate::request;
use crate::request::account::ResponseBody;

/// How long a client that has its answer may go on sending before it is told to stop.
const LINGER: Duration = Duration::from_secs(1);

/// What the streams of a connection share.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) life: Rc<Life>,
    pub(super) connection: Rc<request::Connection>,
    pub(super) bounds: Bounds,
    pub(super) counters: Arc<Counters>,
}

/// Counts a stream for as long as it is open.
struct Open<'a>(&'a Life);

impl<'a> Open<'a> {
    fn new(life: &'a Life) -> Self {
        life.opened();
        Self(life)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.closed();
    }
}

/// Answers the request of one stream.
pub(super) async fn serve(
    served: Rc<Served>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let open = Open::new(&served.life);
    let deadline = Rc::new(Deadline::new(&served.bounds));
    let mut work = pin!(answer(&served, &deadline, request, &mut respond));
    let mut timer = pin!(sleep_until(deadline.at()));
    let done = poll_fn(|context| {
        deadline.woken();
        if deadline.is_cut() {
            return Poll::Ready(true);
        }
        loop {
            if work.as_mut().poll(context).is_ready() {
                return Poll::Ready(true);
            }
            if deadline.has_passed() {
                // Whoever waited was asked what to do and did nothing.
                return Poll::Ready(false);
            }
            if !fires(timer.as_mut(), &deadline, context) {
                return Poll::Pending;
            }
        }
    })
    .await;
    match deadline.phase() {
        Phase::Download if !done => served.counters.readers_timed_out.add(1),
        Phase::Tunnel if !done => served.counters.tunnels_timed_out.add(1),
        _ => {}
    }
    // What is left of the stream is reset with it.
    drop(open);
}

async fn answer(
    served: &Served,
    deadline: &Rc<Deadline>,
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
) {
    let (mut head, body) = request.into_parts();
    let (is_head, is_tunnel) = (head.method == Method::HEAD, head.method == Method::CONNECT);
    let stream = Rc::new(RefCell::new(body));
    let mut rest = Rest { stream: Rc::clone(&stream), left_bytes: STREAM_WINDOW_BYTES as usize };
    let response = match fault(&head, &served.bounds) {
        Some(error) => {
            drop(stream);
            as_one_message(&mut head);
            Some(request::serve::refuse(&served.connection, deadline, &error, Some(&head)))
        }
        None => exchange(served, deadline, (head, stream), respond).await,
    };
    let Some(response) = response else { return };
    let mut sending = pin!(send(served, deadline, respond, response, is_head));
    poll_fn(|context| {
        let sent = sending.as_mut().poll(context);
        // Unread, it would take the room of other streams.
        rest.discard(context);
        sent
    })
    .await;
    if !is_tunnel {
        let is_over = poll_fn(|context| match rest.discard(context) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        timeout(LINGER, is_over).await.ok();
    }
}

/// A body that nobody wants any more, of which some is still on its way. A client that is told to stop while it sends
/// may never look at its answer (curl before 8 does not), whatever RFC 9113, section 8.1, says.
struct Rest {
    stream: Rc<RefCell<RecvStream>>,
    left_bytes: usize,
}

impl Rest {
    /// Throws away what has come. Answers whether nothing more is to come, or none of it for us.
    fn discard(&mut self, context: &mut Context<'_>) -> bool {
        // Somebody reads it.
        if Rc::strong_count(&self.stream) > 1 {
            return true;
        }
        let mut stream = self.stream.borrow_mut();
        loop {
            let data = match stream.poll_data(context) {
                Poll::Pending => return false,
                Poll::Ready(Some(Ok(data))) => data,
                Poll::Ready(_) => return true,
            };
            let Some(left) = self.left_bytes.checked_sub(data.len()) else { return true };
            self.left_bytes = left;
            stream.flow_control().release_capacity(data.len()).ok();
        }
    }
}

/// What the answer is, unless the client takes its request back.
async fn exchange(
    served: &Served,
    deadline: &Rc<Deadline>,
    (mut head, stream): (Parts, Rc<RefCell<RecvStream>>),
    respond: &mut SendResponse<Bytes>,
) -> Option<Response<ResponseBody>> {
    as_one_message(&mut head);
    let mut waits_for_leave = head.headers.contains_key(EXPECT);
    let body = Incoming::Http2(StreamBody::new(stream, &head.headers));
    let serve = request::serve::serve(&served.connection, deadline, &mut head, body);
    let mut exchange = pin!(serve);
    poll_fn(|context| {
        if respond.poll_reset(context).is_ready() {
            return Poll::Ready(None);
        }
        let answer = exchange.as_mut().poll(context);
        // Not before somebody wants the body: who is refused is never told to send one.
        if answer.is_pending() && waits_for_leave && deadline.phase() == Phase::Upload {
            waits_for_leave = false;
            proceed(respond);
        }
        answer.map(Some)
    })
    .await
}

/// Why a head is refused before anybody looks at it: what HTTP/1 refuses while it reads, and h2 lets pass.
fn fault(head: &Parts, bounds: &Bounds) -> Option<Error> {
    let target = head.uri.path_and_query().map_or("", |path| path.as_str());
    let is_known = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if target.len() > bounds.target_bytes {
        Some(Kind::TargetTooLong.into())
    } else if is_too_large(head, bounds) {
        Some(Kind::HeadTooLarge.into())
    } else if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        Some(Error::new(Kind::BadRequest, MUST_BE_ENCODED))
    } else if !head.headers.get_all(EXPECT).iter().all(is_known) {
        Some(Error::new(Kind::BadRequest, UNKNOWN_EXPECTATION))
    } else {
        None
    }
}

/// Whether a head is beyond its bounds. Its size is that of RFC 9113, section 6.5.2.
fn is_too_large(head: &Parts, bounds: &Bounds) -> bool {
    const FIELD_BYTES: usize = 32;
    let size_of = |name: &str, value: &[u8]| name.len() + value.len() + FIELD_BYTES;
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let authority = head.uri.authority().map_or("", |authority| authority.as_str());
    let scheme = head.uri.scheme_str().unwrap_or_default();
    let pseudo = [(":method", head.method.as_str()), (":path", path), (":scheme", scheme)];
    let pseudo = pseudo.into_iter().chain([(":authority", authority)]);
    let pseudo = pseudo.map(|(name, value)| size_of(name, value.as_bytes()));
    let fields = head.headers.iter().map(|(name, value)| size_of(name.as_str(), value.as_bytes()));
    head.headers.len() > bounds.header_count
        || pseudo.chain(fields).sum::<usize>() > bounds.head_bytes
}

/// The head as HTTP/1 would have it, so that everything behind sees one `Host` and one `Cookie` whatever the protocol.
fn as_one_message(head: &mut Parts) {
    if let Some(authority) = head.uri.authority()
        && let Entry::Vacant(entry) = head.headers.entry(HOST)
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        entry.insert(host);
    }
    join_cookies(&mut head.headers);
    if head.method == Method::CONNECT
        && head
            .extensions
            .get::<Protocol>()
            .is_some_and(|protocol| protocol.as_str() == "websocket")
    {
        ask_for_websocket(head);
    }
}

/// A WebSocket is asked for with CONNECT here, and with GET everywhere else (RFC 8441, section 5).
fn ask_for_websocket(head: &mut Parts) {
    head.method = Method::GET;
    head.extensions.insert(WebSocket);
    head.headers.insert(SEC_WEBSOCKET_KEY, headers::value(&upgrade::key()));
}

/// The answer to that, which has no status of its own here.
fn grant_websocket(head: &mut response::Parts) {
    head.status = StatusCode::OK;
    for name in [UPGRADE, SEC_WEBSOCKET_ACCEPT] {
        head.headers.remove(name);
    }
}

/// A client may send each cookie in a field of its own (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.by_ref().take(2).count() < 2 {
        return;
    }
    let crumbs: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, cookie);
    }
}

/// The client waits for leave to send its body.
fn proceed(respond: &mut SendResponse<Bytes>) {
    let mut proceed = Response::new(());
    *proceed.status_mut() = StatusCode::CONTINUE;
    // It fails only where nobody is left to be told.
    respond.send_informational(proceed).ok();
}

async fn send(
    served: &Served,
    deadline: &Deadline,
    respond: &mut SendResponse<Bytes>,
    response: Response<ResponseBody>,
    is_head: bool,
) {
    let (mut head, body) = response.into_parts();
    let mut body = pin!(body);
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        grant_websocket(&mut head);
    }
    head.headers.remove(CONNECTION);
    if let Entry::Vacant(entry) = head.headers.entry(DATE)
        && let Some(date) = h1::date_value()
    {
        entry.insert(date);
    }
    let length = body.size_hint().exact().filter(|length| *length > 0);
    if let Some(length) = length
        && let Entry::Vacant(entry) = head.headers.entry(CONTENT_LENGTH)
    {
        entry.insert(length.into());
    }
    let ended = is_head || body.is_end_stream();
    let Ok(stream) = respond.send_response(Response::from_parts(head, ()), ended) else { return };
    if !ended {
        let mut outflow = Outflow { life: &served.life, deadline, stream, piece: Bytes::new() };
        poll_fn(|context| outflow.poll(body.as_mut(), context)).await;
    } else if !body.is_end_stream() {
        // The document that HEAD leaves out has been answered for.
        poll_fn(|context| body.as_mut().poll_frame(context)).await;
    }
}

/// The body of an answer on its way out. A piece is handed to h2 only as far as the client has room for it, so that
/// what waits for the client waits here, under the deadline of its stream.
struct Outflow<'a> {
    life: &'a Life,
    deadline: &'a Deadline,
    stream: SendStream<Bytes>,
    piece: Bytes,
}

/// The stream has nothing more to send.
struct Over;

impl Outflow<'_> {
    fn poll(&mut self, mut body: Pin<&mut ResponseBody>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let moved = if self.piece.is_empty() {
                self.take(body.as_mut(), context)
            } else {
                self.pass_on(&body, context)
            };
            match moved {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Over)) => return Poll::Ready(()),
                Poll::Pending => {
                    if !self.piece.is_empty() {
                        body.poll_upload(context);
                        self.deadline.client_blocks();
                    }
                    return self.stream.poll_reset(context).map(drop);
                }
            }
        }
    }

    /// Takes the next piece.
    fn take(
        &mut self,
        body: Pin<&mut ResponseBody>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Over>> {
        let frame = match ready!(body.poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => {
                self.stream.send_reset(Reason::INTERNAL_ERROR);
                return Poll::Ready(Err(Over));
            }
            None => return Poll::Ready(self.end()),
        };
        match frame.into_data() {
            Ok(data) => self.piece = data,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    self.stream.send_trailers(trailers).ok();
                    return Poll::Ready(Err(Over));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end(&mut self) -> Result<(), Over> {
        self.stream.send_data(Bytes::new(), true).ok();
        Err(Over)
    }

    /// Hands over as much of the piece as the client has room for.
    fn pass_on(
        &mut self,
        body: &ResponseBody,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Over>> {
        self.stream.reserve_capacity(self.piece.len());
        let mut room = self.stream.capacity();
        while room == 0 {
            room = match ready!(self.stream.poll_capacity(context)) {
                Some(Ok(room)) => room,
                Some(Err(_)) | None => return Poll::Ready(Err(Over)),
            };
        }
        let part = self.piece.split_to(room.min(self.piece.len()));
        let last = self.piece.is_empty() && body.is_end_stream();
        self.life.sent(part.len());
        self.deadline.client_took(part.len());
        match self.stream.send_data(part, last) {
            Ok(()) if !last => Poll::Ready(Ok(())),
            _ => Poll::Ready(Err(Over)),
        }
    }
}
