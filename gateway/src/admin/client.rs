//! The client of the admin socket, for the command line.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request as HttpRequest, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;

use super::api::{Answer, Refusal, Request};
use super::bans::BanRequest;
use super::keys::KeyRequest;
use crate::base::folder;
use crate::observe::prometheus;
use crate::rules::list_file::Pieces;

const ANSWER_MAX_BYTES: usize = 256 * 1024 * 1024;
const ANSWER_MAX_WAIT: Duration = Duration::from_secs(120);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no gateway answers at {0}: start one with `gateway run`, or name its configuration with --config"
    )]
    NotRunning(String),
    /// The socket is not for this user.
    #[error("{0} belongs to another user: run this as root or as the gateway's own user")]
    NotAllowed(String),
    /// The gateway said no.
    #[error("{}", .0.error)]
    Refused(Refusal),
    /// Anything else.
    #[error("{path}: {reason}")]
    Broken {
        /// The socket.
        path: String,
        /// What happened.
        reason: String,
    },
}

/// Asks the gateway at `socket` and waits for its answer.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer, ClientError> {
    let path = socket.display().to_string();
    let broken = |reason: String| ClientError::Broken { path: path.clone(), reason };
    if let Some(folder) = socket.parent() {
        // Whoever listens there is told what to do and believed.
        folder::check(folder, rustix::process::geteuid().as_raw())
            .map_err(|error| broken(error.to_string()))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| broken(error.to_string()))?;
    runtime.block_on(async {
        let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(path.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed(path.clone()),
            _ => broken(error.to_string()),
        })?;
        match tokio::time::timeout(ANSWER_MAX_WAIT, exchange(stream, request)).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(refusal))) => Err(ClientError::Refused(refusal)),
            Ok(Err(error)) => Err(broken(error.to_string())),
            Err(_) => Err(broken("no answer within two minutes".to_owned())),
        }
    })
}

type Outcome = Result<Result<Answer, Refusal>, Box<dyn std::error::Error + Send + Sync>>;

async fn exchange(stream: UnixStream, request: &Request) -> Outcome {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = async {
        drop(connection.await);
        std::future::pending::<()>().await;
    };
    let answer = async {
        let response = sender.send_request(write(request)?).await?;
        let refused = !response.status().is_success();
        let kind = response.headers().get(header::CONTENT_TYPE);
        let metrics = kind.is_some_and(|kind| kind == prometheus::CONTENT_TYPE);
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await?.to_bytes();
        if refused {
            return Ok(Err(serde_json::from_slice(&body)?));
        }
        if metrics {
            return Ok(Ok(Answer::Metrics(String::from_utf8(body.into())?)));
        }
        Ok(Ok(serde_json::from_slice(&body)?))
    };
    tokio::select! {
        answer = answer => answer,
        () = connection => Err("the connection broke".into()),
    }
}

/// What is said: a list piece by piece, so that it is read there while it is written here.
enum Said {
    Whole(Option<Bytes>),
    List(Pieces),
}

impl Body for Said {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match self.get_mut() {
            Self::Whole(bytes) => bytes.take(),
            Self::List(pieces) => pieces.next().map(Bytes::from),
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Whole(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Self::List(pieces) => pieces.left_bytes(),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }
}

fn write(request: &Request) -> Result<HttpRequest<Said>, Box<dyn std::error::Error + Send + Sync>> {
    let (method, path, body) = match request {
        Request::Status => (Method::GET, "/v1/status".to_owned(), Vec::new()),
        Request::List(query) => {
            (Method::POST, "/v1/rules/list".to_owned(), serde_json::to_vec(query)?)
        }
        Request::Lists => (Method::GET, "/v1/lists".to_owned(), Vec::new()),
        Request::PutList(put) => {
            let within = put.confirm_within_ms.map(|within| format!("confirm_within_ms={within}"));
            let query = put.yes.then(|| "yes".to_owned()).into_iter().chain(within);
            let path = format!("/v1/lists?{}", query.collect::<Vec<_>>().join("&"));
            let list = Said::List(Pieces::new(&put.header, Arc::clone(&put.entries)));
            return Ok(asked(Method::POST, &path, list)?);
        }
        Request::RemoveList(remove) => {
            (Method::DELETE, "/v1/lists".to_owned(), serde_json::to_vec(remove)?)
        }
        Request::RefreshList(list) => {
            (Method::POST, "/v1/lists/refresh".to_owned(), serde_json::to_vec(list)?)
        }
        Request::AcceptList(list) => {
            (Method::POST, "/v1/lists/accept".to_owned(), serde_json::to_vec(list)?)
        }
        Request::Add(add) => (Method::POST, "/v1/rules".to_owned(), serde_json::to_vec(add)?),
        Request::Remove(remove) => {
            (Method::DELETE, "/v1/rules".to_owned(), serde_json::to_vec(remove)?)
        }
        Request::Keys(request) => {
            let (path, body) = match request {
                KeyRequest::Create(create) => ("/v1/keys", serde_json::to_vec(create)?),
                KeyRequest::Rotate(rotate) => ("/v1/keys/rotate", serde_json::to_vec(rotate)?),
                KeyRequest::Revoke(revoke) => ("/v1/keys/revoke", serde_json::to_vec(revoke)?),
                KeyRequest::List(query) => ("/v1/keys/list", serde_json::to_vec(query)?),
            };
            (Method::POST, path.to_owned(), body)
        }
        Request::Bans(request) => {
            let (path, body) = match request {
                BanRequest::List(query) => ("/v1/bans/list", serde_json::to_vec(query)?),
                BanRequest::Lift(names) => ("/v1/bans/lift", serde_json::to_vec(names)?),
                BanRequest::Pin(names) => ("/v1/bans/pin", serde_json::to_vec(names)?),
                BanRequest::Forget(names) => ("/v1/bans/forget", serde_json::to_vec(names)?),
                BanRequest::Make(asked) => ("/v1/bans", serde_json::to_vec(asked)?),
                BanRequest::Withdraw(asked) => ("/v1/bans/withdraw", serde_json::to_vec(asked)?),
            };
            (Method::POST, path.to_owned(), body)
        }
        Request::Confirm => (Method::POST, "/v1/confirm".to_owned(), Vec::new()),
        Request::Why(address) => (Method::GET, format!("/v1/why/{address}"), Vec::new()),
        Request::Events(events) => {
            (Method::GET, format!("/v1/events?{}", events.query()), Vec::new())
        }
        Request::Metrics => (Method::GET, "/v1/metrics".to_owned(), Vec::new()),
        Request::Top(rules) => (Method::GET, format!("/v1/top?rules={rules}"), Vec::new()),
        Request::Reload => (Method::POST, "/v1/reload".to_owned(), Vec::new()),
        Request::Detach => (Method::POST, "/v1/kernel/detach".to_owned(), Vec::new()),
        Request::Drain => (Method::POST, "/v1/drain".to_owned(), Vec::new()),
    };
    Ok(asked(method, &path, Said::Whole(Some(Bytes::from(body))))?)
}

fn asked(method: Method, path: &str, body: Said) -> http::Result<HttpRequest<Said>> {
    let request = HttpRequest::builder().method(method).uri(path);
    request.header(header::HOST, "gateway").body(body)
}
