//! The server: from bytes on the socket to a command, and back.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, chown};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request as HttpRequest, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::api::{Answer, PutList, Refusal, Request};
use super::asker::Asker;
use super::bans::BanRequest;
use super::handover;
use super::keys::KeyRequest;
use super::query;
use crate::base::folder::{self, FolderError};
use crate::observe::prometheus;
use crate::rules::list_file::Decoder;

/// Commands that may wait for `control`.
pub const QUEUE_COMMANDS: usize = 16;
const CONNECTIONS_MAX: usize = 32;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
const BODY_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Ten million IPv6 prefixes with reasons.
const LIST_MAX_BYTES: u64 = 512 * 1024 * 1024;
/// Time to say what is asked. Whoever says nothing must not keep others waiting for a connection.
const HEAD_MAX: Duration = Duration::from_secs(2);
const CONNECTION_MAX: Duration = Duration::from_secs(60);

/// Why the socket cannot be listened on.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error(
        "another gateway answers at {0}: end it first, or give this one an admin.socket of its own"
    )]
    InUse(String),
    /// Something that is no socket, and so was not left behind by a gateway.
    #[error("admin.socket {0} is there and is no socket: name another path, or move it away")]
    NoSocket(String),
    /// Others may do as they like where it is to be.
    #[error("admin.socket: {0}")]
    Folder(#[from] FolderError),
    /// Anything else.
    #[error("admin.socket {path}: {source}")]
    Io {
        /// The socket.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Binds the socket with mode 0600. A socket that nobody answers at is left over from a killed gateway and replaced.
/// `user` is who the daemon becomes.
pub fn bind(path: &Path, user: u32) -> Result<std::os::unix::net::UnixListener, SocketError> {
    let failed = |source| SocketError::Io { path: path.display().to_string(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
    }
    if let Some(folder) = path.parent() {
        folder::check(folder, user)?;
    }
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(SocketError::NoSocket(path.display().to_string()));
        }
        match StdUnixStream::connect(path) {
            Ok(_) => return Err(SocketError::InUse(path.display().to_string())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    // Between bind and chmod it would be open to everybody; the file gets the mode of the socket (unix_bind_bsd in
    // net/unix/af_unix.c).
    fchmod(&socket, Mode::from_bits_truncate(0o600)).map_err(|error| failed(error.into()))?;
    socket.bind(&SockAddr::unix(path).map_err(failed)?).map_err(failed)?;
    socket.listen(BACKLOG).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket.into())
}

/// Hands the socket to the user that the daemon becomes.
pub fn give_to(path: &Path, user: u32, group: u32) -> Result<(), SocketError> {
    chown(path, Some(user), Some(group))
        .map_err(|source| SocketError::Io { path: path.display().to_string(), source })
}

/// Serves for as long as the task runs.
pub async fn serve(listener: UnixListener, asker: Asker) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let asker = asker.clone();
        tokio::task::spawn_local(async move {
            let _slot = slot;
            // A connection that outlives its time is somebody else's mistake; there is nobody to tell.
            drop(tokio::time::timeout(CONNECTION_MAX, connection(stream, asker)).await);
        });
    }
}

async fn connection(stream: UnixStream, asker: Asker) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let uid = credentials.uid();
    let service = service_fn(move |request| {
        let asker = asker.clone();
        async move { Ok::<_, Infallible>(answer(request, uid, &asker).await) }
    });
    // How a local client's connection breaks concerns nobody but that client.
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
    drop(server.serve_connection(TokioIo::new(stream), service).with_upgrades().await);
}

async fn answer(request: HttpRequest<Incoming>, uid: u32, asker: &Asker) -> Response<Full<Bytes>> {
    if (request.method(), request.uri().path()) == (&Method::POST, handover::PATH) {
        return handover::accept(request, asker);
    }
    let request = match read(request).await {
        Ok(request) => request,
        Err((status, refusal)) => return json(status, &refusal),
    };
    match asker.ask(request, uid).await {
        Ok(Answer::Metrics(page)) => text(StatusCode::OK, prometheus::CONTENT_TYPE, page),
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(refusal) if refusal.usage => json(StatusCode::BAD_REQUEST, &refusal),
        Err(refusal) => json(StatusCode::CONFLICT, &refusal),
    }
}

/// The command that a request stands for.
async fn read(request: HttpRequest<Incoming>) -> Result<Request, (StatusCode, Refusal)> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let asked = head.uri.query();
    let usage = |refusal| (StatusCode::BAD_REQUEST, refusal);
    match (head.method, path.as_str()) {
        (Method::GET, "/v1/status") => Ok(Request::Status),
        (Method::POST, "/v1/rules/list") => body_of(body).await.map(Request::List),
        (Method::GET, "/v1/lists") => Ok(Request::Lists),
        (Method::POST, "/v1/lists") => list_of(body, asked.unwrap_or("")).await,
        (Method::POST, "/v1/confirm") => Ok(Request::Confirm),
        (Method::DELETE, "/v1/lists") => body_of(body).await.map(Request::RemoveList),
        (Method::POST, "/v1/lists/refresh") => body_of(body).await.map(Request::RefreshList),
        (Method::POST, "/v1/lists/accept") => body_of(body).await.map(Request::AcceptList),
        (Method::GET, "/v1/events") => {
            query::Events::parse(asked).map(Request::Events).map_err(usage)
        }
        (Method::GET, "/v1/metrics") => Ok(Request::Metrics),
        (Method::GET, "/v1/top") => query::top_rules(asked).map(Request::Top).map_err(usage),
        (Method::POST, "/v1/rules") => body_of(body).await.map(Request::Add),
        (Method::DELETE, "/v1/rules") => body_of(body).await.map(Request::Remove),
        (Method::POST, "/v1/keys") => {
            body_of(body).await.map(KeyRequest::Create).map(Request::Keys)
        }
        (Method::POST, "/v1/keys/rotate") => {
            body_of(body).await.map(KeyRequest::Rotate).map(Request::Keys)
        }
        (Method::POST, "/v1/keys/revoke") => {
            body_of(body).await.map(KeyRequest::Revoke).map(Request::Keys)
        }
        (Method::POST, "/v1/keys/list") => {
            body_of(body).await.map(KeyRequest::List).map(Request::Keys)
        }
        (Method::POST, "/v1/bans/list") => {
            body_of(body).await.map(BanRequest::List).map(Request::Bans)
        }
        (Method::POST, "/v1/bans/lift") => {
            body_of(body).await.map(BanRequest::Lift).map(Request::Bans)
        }
        (Method::POST, "/v1/bans/pin") => {
            body_of(body).await.map(BanRequest::Pin).map(Request::Bans)
        }
        (Method::POST, "/v1/bans/forget") => {
            body_of(body).await.map(BanRequest::Forget).map(Request::Bans)
        }
        (Method::POST, "/v1/bans") => body_of(body).await.map(BanRequest::Make).map(Request::Bans),
        (Method::POST, "/v1/bans/withdraw") => {
            body_of(body).await.map(BanRequest::Withdraw).map(Request::Bans)
        }
        (Method::POST, "/v1/reload") => Ok(Request::Reload),
        (Method::POST, "/v1/kernel/detach") => Ok(Request::Detach),
        (Method::POST, "/v1/drain") => Ok(Request::Drain),
        (Method::GET, path) if path.starts_with("/v1/why/") => {
            let address = path.trim_start_matches("/v1/why/");
            address.parse().map(Request::Why).map_err(|_| {
                usage(Refusal::usage(format!("`{address}` is no address: write 192.0.2.1")))
            })
        }
        (_, path) => {
            let error = format!("there is no {path} here with this method");
            Err((StatusCode::NOT_FOUND, Refusal::usage(error)))
        }
    }
}

/// The list of a body. One at a time: each may be as large as a list can be.
async fn list_of(mut body: Incoming, query: &str) -> Result<Request, (StatusCode, Refusal)> {
    let (mut yes, mut confirm_within_ms) = (false, None);
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let within = part.strip_prefix("confirm_within_ms=").and_then(|ms| ms.parse().ok());
        match within {
            Some(within) => confirm_within_ms = Some(within),
            None if part == "yes" => yes = true,
            None => {
                let error = format!("unknown query `{part}`: yes, confirm_within_ms=NUMBER");
                return Err((StatusCode::BAD_REQUEST, Refusal::usage(error)));
            }
        }
    }
    let too_large = |error: String| (StatusCode::PAYLOAD_TOO_LARGE, Refusal::usage(error));
    let length = body.size_hint().exact().filter(|length| *length <= LIST_MAX_BYTES);
    let length = length.ok_or_else(|| {
        too_large(format!("a list is sent with its length, {LIST_MAX_BYTES} bytes at most"))
    })?;
    static ONE: Semaphore = Semaphore::const_new(1);
    let _turn = ONE.acquire().await;
    let mut decoder = Decoder::new(length);
    let mut decoded = Ok(());
    // Whoever sends reads no answer before the end.
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| too_large(error.to_string()))?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        decoded = decoded.and_then(|()| decoder.push(data));
    }
    let checked = tokio::task::spawn_blocking(move || decoded.and_then(|()| decoder.finish()));
    let usage = |error: String| (StatusCode::BAD_REQUEST, Refusal::usage(error));
    let decoded = checked.await.map_err(|error| usage(error.to_string()))?;
    let (header, entries) = decoded.map_err(|error| usage(format!("the list: {error}")))?;
    let entries = Arc::new(entries);
    Ok(Request::PutList(Box::new(PutList { header, entries, yes, confirm_within_ms })))
}

async fn body_of<T: serde::de::DeserializeOwned>(
    body: Incoming,
) -> Result<T, (StatusCode, Refusal)> {
    let read = Limited::new(body, BODY_MAX_BYTES).collect().await;
    let bytes =
        read.map_err(|error| (StatusCode::PAYLOAD_TOO_LARGE, Refusal::usage(error)))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| (StatusCode::BAD_REQUEST, Refusal::usage(error)))
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_string(value).unwrap_or_default();
    text(status, "application/json", body)
}

/// An answer of this content type.
pub(super) fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static(kind);
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_socket_left_behind_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let first = bind(&path, 0).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(bind(&path, 0).unwrap_err().to_string().contains("another gateway answers"));
        drop(first);
        drop(bind(&path, 0).unwrap());

        let file = folder.path().join("precious");
        fs::write(&file, "data").unwrap();
        assert!(bind(&file, 0).unwrap_err().to_string().contains("is no socket"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "data");
    }
}
