//! From a running gateway to the one that takes its place: the sockets that it listens on, then store and kernel.
//!
//! ```text
//! successor                         predecessor
//!    POST /v1/handover  ─────────▶
//!                       ◀─────────  101 and its sockets (SCM_RIGHTS, unix(7))
//!    release            ─────────▶  gives up store and kernel, serves on
//!                       ◀─────────  released
//!    ready              ─────────▶  accepts no more of what is accepted once
//!                       ◀─────────  what it has accepted
//!    serving            ─────────▶  drains and ends
//!                       ◀─────────  whether something that it still has in flight is accepted
//!    yes, or why not    ─────────▶
//! ```
//!
//! A predecessor whose successor breaks off takes back what it gave up. Who asks is one who may open the admin socket.
//! One of the two may be older and know neither `ready` nor the questions after it: then those steps are left out.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::api::Refusal;
use super::asker::Asker;
use crate::base::folder;

/// Where a successor asks.
pub(super) const PATH: &str = "/v1/handover";
/// Its version is one digit.
const PROTOCOL: &str = "gateway-handover/3";
/// The first whose predecessor knows `ready`, and the first whose one may ask.
const TELLS: u8 = b'2';
const ASKS: u8 = b'3';
const RELEASE: u8 = b'r';
const RELEASED: u8 = b'd';
const READY: u8 = b'a';
const READY_AND_ANSWERS: u8 = b'q';
const SERVING: u8 = b's';
/// Of what was accepted: 40 million nonces.
const ACCEPTED_MAX_BYTES: u64 = 1 << 30;
/// Descriptors in one message; the kernel takes at most 253 (SCM_MAX_FD in include/net/scm.h).
const BATCH: usize = 64;
/// Listening sockets are addresses times workers.
const SOCKETS_MAX: u32 = 65_536;
const HEAD_MAX_BYTES: u64 = 64 * 1024;
/// For each step of the other side but the last.
const STEP_MAX: Duration = Duration::from_secs(10);
/// From giving up the store to the successor's word that it serves: it reads lists and loads programs meanwhile.
const START_MAX: Duration = Duration::from_secs(120);

/// Why no gateway handed over.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// It answered that it will not.
    #[error("the running gateway does not hand over: {0}")]
    Refused(String),
    /// Nothing comes of it.
    #[error("handing over by {path} failed: {reason}; the gateway that runs serves on")]
    Broken {
        /// The admin socket.
        path: String,
        /// What happened.
        reason: String,
    },
}

/// What a gateway hands to its successor.
#[derive(Debug)]
pub struct Inheritance {
    /// Listening sockets of all kinds.
    pub tcp: Vec<TcpListener>,
    /// The admin socket.
    pub admin: Option<UnixListener>,
    /// The gateway that hands over.
    pub predecessor: Predecessor,
}

/// The gateway that hands over. It serves until it is told that its successor does, and on if it never is.
#[derive(Debug)]
pub struct Predecessor {
    stream: StdUnixStream,
    path: String,
    /// Of the protocol that it speaks: a digit.
    version: u8,
}

/// What a successor wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What was accepted, before it serves.
    Accepted {
        /// Whether it answers questions afterwards.
        answers: bool,
    },
    /// Nothing more: it serves.
    Nothing,
}

impl Inheritance {
    /// Asks the gateway at `socket` for it; `None` if none runs.
    pub fn ask(socket: &Path) -> Result<Option<Self>, HandoverError> {
        let path = socket.display().to_string();
        let broken = |reason: String| HandoverError::Broken { path: path.clone(), reason };
        if let Some(folder) = socket.parent() {
            folder::check(folder, rustix::process::geteuid().as_raw())
                .map_err(|error| broken(error.to_string()))?;
        }
        let stream = match StdUnixStream::connect(socket) {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(broken(error.to_string())),
        };
        let mut predecessor = Predecessor { stream, path: path.clone(), version: 0 };
        if let Some(refusal) = predecessor.ask().map_err(|error| broken(error.to_string()))? {
            return Err(HandoverError::Refused(refusal));
        }
        let sockets = predecessor.sockets().map_err(|error| broken(error.to_string()))?;
        let (mut tcp, mut admin) = (Vec::new(), None);
        for socket in sockets {
            match rustix::net::getsockname(&socket).map(|address| address.address_family()) {
                Ok(AddressFamily::UNIX) => admin = Some(UnixListener::from(socket)),
                Ok(AddressFamily::INET | AddressFamily::INET6) => tcp.push(socket.into()),
                _ => {}
            }
        }
        Ok(Some(Self { tcp, admin, predecessor }))
    }
}

impl Predecessor {
    /// Has it give up store and kernel.
    pub fn release(&mut self) -> Result<(), HandoverError> {
        let mut answer = [0];
        let told = self.stream.write_all(&[RELEASE]);
        let answered = told.and_then(|()| self.stream.read_exact(&mut answer));
        answered.map_err(|error| self.broken(&error))?;
        if answer != [RELEASED] {
            return Err(self.broken(&io::Error::other("it answered something else than was asked")));
        }
        Ok(())
    }

    /// What it has accepted that nobody may accept again. It accepts no more of it from now on. Nothing where it is of
    /// an older version.
    pub fn accepted(&mut self) -> Result<Vec<u8>, HandoverError> {
        if self.version < TELLS {
            return Ok(Vec::new());
        }
        let ready = if self.version < ASKS { READY } else { READY_AND_ANSWERS };
        let mut length = [0; 8];
        let told = self.stream.write_all(&[ready]);
        let answered = told.and_then(|()| self.stream.read_exact(&mut length));
        answered.map_err(|error| self.broken(&error))?;
        let length = u64::from_be_bytes(length);
        if length > ACCEPTED_MAX_BYTES {
            return Err(self.broken(&io::Error::other("it says too much")));
        }
        let mut accepted = vec![0; usize::try_from(length).unwrap_or_default()];
        self.stream.read_exact(&mut accepted).map_err(|error| self.broken(&error))?;
        Ok(accepted)
    }

    /// Tells it that it may end. Where it asks, its questions come over the connection that is left.
    pub fn serving(mut self) -> Result<UnixStream, HandoverError> {
        let told = self.stream.write_all(&[SERVING]);
        told.and_then(|()| self.stream.set_nonblocking(true))
            .map_err(|error| self.broken(&error))?;
        let Self { stream, path, .. } = self;
        UnixStream::from_std(stream)
            .map_err(|error| HandoverError::Broken { path, reason: error.to_string() })
    }

    fn broken(&self, error: &io::Error) -> HandoverError {
        HandoverError::Broken { path: self.path.clone(), reason: error.to_string() }
    }

    /// The refusal, if it is one.
    fn ask(&mut self) -> io::Result<Option<String>> {
        self.stream.set_read_timeout(Some(STEP_MAX))?;
        self.stream.set_write_timeout(Some(STEP_MAX))?;
        write!(
            self.stream,
            "POST {PATH} HTTP/1.1\r\nHost: gateway\r\nConnection: upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
        )?;
        let mut head = Vec::new();
        // Byte by byte: what follows the head comes with descriptors.
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            head.extend(byte);
            if head.len() as u64 > HEAD_MAX_BYTES {
                return Err(io::Error::other("its answer has no end"));
            }
        }
        if head.starts_with(b"HTTP/1.1 101") {
            let (name, _) = PROTOCOL.split_at(PROTOCOL.len() - 1);
            let at = head.windows(name.len()).position(|part| part == name.as_bytes());
            self.version = at.and_then(|at| head.get(at + name.len())).copied().unwrap_or_default();
            return Ok(None);
        }
        let mut body = Vec::new();
        // It may keep the connection open, so the end of the body is the end of its JSON.
        let mut byte = [0];
        while (body.len() as u64) < HEAD_MAX_BYTES && self.stream.read(&mut byte)? == 1 {
            body.extend(byte);
            if let Ok(refusal) = serde_json::from_slice::<Refusal>(&body) {
                return Ok(Some(refusal.error));
            }
        }
        Ok(Some("it is of a version that cannot".to_owned()))
    }

    fn sockets(&mut self) -> io::Result<Vec<OwnedFd>> {
        let mut count = [0; 4];
        self.stream.read_exact(&mut count)?;
        let count = u32::from_be_bytes(count);
        if count > SOCKETS_MAX {
            return Err(io::Error::other("it offers too many sockets"));
        }
        let mut sockets = Vec::new();
        while sockets.len() < count as usize {
            let before = sockets.len();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let buffers = &mut [IoSliceMut::new(&mut byte)];
            recvmsg(&self.stream, buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    sockets.extend(received);
                }
            }
            if sockets.len() == before {
                return Err(io::Error::other("it broke off"));
            }
        }
        Ok(sockets)
    }
}

/// Agrees to hand over to whoever sent `request`, and has `control` do it.
pub(super) fn accept(mut request: Request<Incoming>, asker: &Asker) -> Response<Full<Bytes>> {
    let asker = asker.clone();
    let protocol = spoken_with(request.headers());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::task::spawn_local(async move {
        // A successor that has gone meanwhile needs nothing.
        if let Ok(upgraded) = upgrade.await
            && let Ok(parts) = upgraded.downcast::<TokioIo<UnixStream>>()
        {
            asker.succeed(parts.io.into_inner());
        }
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, protocol);
    response
}

/// What an older version can do, where that is what asks: it looks for its own name.
fn spoken_with(asker: &HeaderMap) -> HeaderValue {
    let older = |asked: &&HeaderValue| {
        let (name, ours) = PROTOCOL.split_at(PROTOCOL.len() - 1);
        let theirs = asked.to_str().ok().and_then(|asked| asked.strip_prefix(name));
        theirs.is_some_and(|theirs| theirs.len() == 1 && theirs < ours)
    };
    asker.get(UPGRADE).filter(older).cloned().unwrap_or(HeaderValue::from_static(PROTOCOL))
}

/// A gateway that is to take this one's place.
#[derive(Debug)]
pub struct Successor(UnixStream);

impl Successor {
    /// Whoever is at the other end of an accepted request.
    pub fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.0.peer_cred().ok()?.pid()?.try_into().ok()
    }

    /// Gives it the sockets, and waits until it wants the rest.
    pub async fn offer(&mut self, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let offering = async {
            let count = u32::try_from(sockets.len()).map_err(io::Error::other)?;
            self.0.write_all(&count.to_be_bytes()).await?;
            for batch in sockets.chunks(BATCH) {
                self.0.async_io(Interest::WRITABLE, || send(self.0.as_fd(), batch)).await?;
            }
            self.expect(RELEASE).await
        };
        timeout(STEP_MAX, offering).await?
    }

    /// Tells it that store and kernel are its own, and waits for what it wants next.
    pub async fn release(&mut self) -> io::Result<Wanted> {
        self.0.write_all(&[RELEASED]).await?;
        match timeout(START_MAX, self.0.read_u8()).await?? {
            READY => Ok(Wanted::Accepted { answers: false }),
            READY_AND_ANSWERS => Ok(Wanted::Accepted { answers: true }),
            SERVING => Ok(Wanted::Nothing),
            _ => Err(io::Error::other("it said something else than was expected")),
        }
    }

    /// Tells it what was accepted, and waits until it serves. What is too much is left out, all of it.
    pub async fn tell(&mut self, accepted: &[u8]) -> io::Result<()> {
        let length = Some(accepted.len() as u64).filter(|length| *length <= ACCEPTED_MAX_BYTES);
        let accepted = if length.is_some() { accepted } else { &[] };
        let telling = async {
            self.0.write_all(&length.unwrap_or_default().to_be_bytes()).await?;
            self.0.write_all(accepted).await?;
            self.expect(SERVING).await
        };
        timeout(START_MAX, telling).await?
    }

    /// The connection, over which it may be asked once it serves.
    pub fn into_stream(self) -> UnixStream {
        self.0
    }

    async fn expect(&mut self, wanted: u8) -> io::Result<()> {
        match self.0.read_u8().await? {
            got if got == wanted => Ok(()),
            _ => Err(io::Error::other("it said something else than was expected")),
        }
    }
}

fn send(stream: BorrowedFd<'_>, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(sockets));
    sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends of a connection, of which one is a predecessor that speaks this version.
    fn pair(version: u8) -> (Successor, Predecessor) {
        let (one, other) = UnixStream::pair().unwrap();
        let stream = other.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        (Successor::new(one), Predecessor { stream, path: "here".to_owned(), version })
    }

    #[test]
    fn an_older_version_reads_its_own_name() {
        for (asked, spoken) in [
            (Some("gateway-handover/1"), "gateway-handover/1"),
            (Some("gateway-handover/2"), "gateway-handover/2"),
            (Some(PROTOCOL), PROTOCOL),
            (Some("gateway-handover/4"), PROTOCOL),
            (Some("gateway-handover/10"), PROTOCOL),
            (Some("websocket"), PROTOCOL),
            (None, PROTOCOL),
        ] {
            let asked = asked.map(|asked| (UPGRADE, HeaderValue::from_static(asked)));
            assert_eq!(spoken_with(&asked.into_iter().collect()), spoken);
        }
    }

    #[tokio::test]
    async fn sockets_arrive_in_batches_and_in_order_and_then_there_are_questions() {
        let (mut offered, mut predecessor) = pair(ASKS);
        let listeners: Vec<_> =
            (0..BATCH + 3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = |sockets: &[TcpListener]| -> Vec<u16> {
            sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect()
        };
        let wanted = ports(&listeners);
        let successor = tokio::task::spawn_blocking(move || {
            let sockets = predecessor.sockets().unwrap();
            predecessor.release().unwrap();
            assert_eq!(predecessor.accepted().unwrap(), b"nonces");
            let sockets: Vec<_> = sockets.into_iter().map(TcpListener::from).collect();
            (sockets, predecessor.serving().unwrap())
        });
        let sockets: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        offered.offer(&sockets).await.unwrap();
        assert_eq!(offered.release().await.unwrap(), Wanted::Accepted { answers: true });
        offered.tell(b"nonces").await.unwrap();
        let (sockets, mut asked) = successor.await.unwrap();
        assert_eq!(ports(&sockets), wanted);
        offered.into_stream().write_u8(7).await.unwrap();
        assert_eq!(asked.read_u8().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn an_older_predecessor_is_asked_nothing_that_it_does_not_know() {
        for (version, wanted) in [
            (0, Wanted::Nothing),
            (b'1', Wanted::Nothing),
            (TELLS, Wanted::Accepted { answers: false }),
        ] {
            let (mut offered, mut predecessor) = pair(version);
            let successor = tokio::task::spawn_blocking(move || {
                predecessor.sockets().unwrap();
                predecessor.release().unwrap();
                assert_eq!(predecessor.accepted().unwrap(), b"");
                predecessor.serving().unwrap();
            });
            offered.offer(&[]).await.unwrap();
            assert_eq!(offered.release().await.unwrap(), wanted);
            if wanted != Wanted::Nothing {
                offered.tell(b"").await.unwrap();
            }
            successor.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_successor_that_leaves_is_noticed() {
        let (one, other) = UnixStream::pair().unwrap();
        drop(other);
        assert!(Successor::new(one).offer(&[]).await.is_err());
    }
}
