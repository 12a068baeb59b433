//! The client for the gateway's own calls: one GET or POST over HTTP/1.1, plain or TLS, in which nothing is unbounded.
//!
//! It says which addresses it talks to, so that no rule ever blocks them, and never follows a redirect from https to
//! http, nor any with a form or a key. It knows no proxies and asks for no compression. It runs on a tokio runtime of
//! any kind. Connections that a form was sent over are used again; no others are kept.

mod connect;
mod kept;
mod url;

use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::time::timeout;

pub use self::connect::CaError;
pub use self::url::display;

use crate::base::time::instant;

use self::connect::{Connector, Stream};
use self::kept::Kept;
use self::url::{Target, join};

/// Redirects that are followed.
pub const REDIRECTS_MAX: usize = 3;
/// The head of an answer (unit: bytes).
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// A validator that is longer is not kept (unit: bytes).
const VALIDATOR_BYTES_MAX: usize = 1024;
/// What the gateway calls itself where it asks on its own account.
pub const USER_AGENT: &str = concat!("gateway/", env!("CARGO_PKG_VERSION"));

/// Makes calls that trust the same authorities.
pub struct Client {
    connector: Connector,
    kept: Kept,
}

/// What one call may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// To look a name up, connect and agree on TLS, for each redirect anew.
    pub connect_timeout: Duration,
    /// For everything, redirects and body included.
    pub total_timeout: Duration,
    /// Bytes of a body.
    pub body_max_bytes: u64,
}

/// A form that is sent.
#[derive(Clone, Copy)]
pub struct Form<'f> {
    /// `application/x-www-form-urlencoded`. It may hold secrets, and so is never shown.
    pub body: &'f str,
    /// The field `Authorization`.
    pub authorization: Option<&'f HeaderValue>,
}

/// What a server said about a version, so that it need not send the same one again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// `ETag`, as it was.
    pub etag: Option<String>,
    /// `Last-Modified`, as it was.
    pub last_modified: Option<String>,
}

/// A good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The version of the validators is still the latest.
    NotModified,
    /// Another one.
    Body {
        /// All of it; at least one byte that is no white space.
        bytes: Vec<u8>,
        /// For the next call.
        validators: Validators,
    },
}

/// Why there is no good answer. Begins with the URL, without its query, which may hold a key.
#[derive(Debug, Error)]
#[error("{url} {reason}")]
pub struct FetchError {
    /// The URL as it is shown, with where it was redirected to.
    pub url: String,
    /// What happened.
    pub reason: Reason,
}

/// What happened to a call.
#[derive(Debug, Error)]
pub enum Reason {
    /// Not for this client.
    #[error("is no http:// or https:// URL with a host")]
    Url,
    /// There is nothing to check a certificate by.
    #[error(
        "cannot be trusted: this host has no certificates of authorities, \
         so install ca-certificates or name a file of them by `ca`"
    )]
    NoAuthorities,
    /// The name has no address.
    #[error("cannot be looked up: {0}")]
    Lookup(io::Error),
    /// No address of it took a connection; the last one's error.
    #[error("cannot be reached at {0}: {1}")]
    Connect(SocketAddr, io::Error),
    /// The other side is not who it should be, or speaks no TLS.
    #[error("cannot be trusted: {0}")]
    Tls(io::Error),
    /// It took too long.
    #[error("did not {0} within {time}", time = humantime::format_duration(*.1))]
    Timeout(&'static str, Duration),
    /// The connection broke, or what came over it is no HTTP.
    #[error("broke off: {0}")]
    Broken(String),
    /// Neither 200 nor 304.
    #[error("answered {0}")]
    Status(StatusCode),
    /// A redirect without a place that can be gone to.
    #[error("answered {0} without a Location that can be followed")]
    Location(StatusCode),
    /// Round and round.
    #[error("redirects more than {REDIRECTS_MAX} times")]
    Redirects,
    /// What was sent would go to somebody else.
    #[error("redirects, and what was sent is for nobody else")]
    SecretRedirect,
    /// What was protected would not be any more.
    #[error("redirects from https to http, which anybody on the way can change")]
    Downgrade,
    /// A page for people: a login, an error, a notice.
    #[error("answered with a web page ({0}) where data should be")]
    Html(String),
    /// Not as it is.
    #[error("answered in the encoding {0}, which was not asked for")]
    Encoding(String),
    /// No body, or white space.
    #[error("answered with nothing")]
    Empty,
    /// A body beyond the bound.
    #[error("answered with more than {0} bytes")]
    TooLarge(u64),
}

enum Step {
    Done(Fetched),
    Redirect(Uri),
}

impl Client {
    /// A client that trusts the authorities in the PEM file `ca` alone, or those of the system.
    pub fn new(ca: Option<&Path>) -> Result<Self, CaError> {
        let connector = Connector::new(ca)?;
        Ok(Self { connector, kept: Kept::default() })
    }

    /// Gets `url`, unless it is still what `validators` say. Every address that is going to be talked to is added to
    /// `peers` before it is, so that the caller knows them also after an error.
    pub async fn fetch(
        &self,
        url: &Uri,
        validators: &Validators,
        bounds: Bounds,
        peers: &mut Vec<IpAddr>,
    ) -> Result<Fetched, FetchError> {
        let mut at = url.clone();
        let reason = {
            let following = self.follow(&mut at, validators, bounds, peers);
            match timeout(bounds.total_timeout, following).await {
                Ok(Ok(fetched)) => return Ok(fetched),
                Ok(Err(reason)) => reason,
                Err(_) => Reason::Timeout("answer in full", bounds.total_timeout),
            }
        };
        let url = if at == *url {
            display(url)
        } else {
            format!("{} (redirected to {})", display(url), display(&at))
        };
        Err(FetchError { url, reason })
    }

    /// Sends `form` to `url` and returns the body of the answer. Redirects are not followed, for the form is meant for
    /// nobody else.
    pub async fn post(
        &self,
        url: &Uri,
        form: Form<'_>,
        bounds: Bounds,
        peers: &mut Vec<IpAddr>,
    ) -> Result<Vec<u8>, FetchError> {
        let posted = timeout(bounds.total_timeout, self.post_once(url, form, bounds, peers)).await;
        let posted = posted.unwrap_or(Err(Reason::Timeout("answer in full", bounds.total_timeout)));
        posted.map_err(|reason| FetchError { url: display(url), reason })
    }

    /// Gets `url` as the one whom a field names, and returns the body of the answer. Redirects are not followed, for
    /// the field is meant for nobody else.
    pub async fn get_as(
        &self,
        url: &Uri,
        (name, value): (HeaderName, &HeaderValue),
        bounds: Bounds,
        peers: &mut Vec<IpAddr>,
    ) -> Result<Vec<u8>, FetchError> {
        let getting = async {
            let target = Target::of(url).ok_or(Reason::Url)?;
            let request = Request::get(target.path_and_query.as_str()).header(name, value);
            let request = request.body(Full::default()).map_err(|_| Reason::Url)?;
            self.once(url, (&target, request), bounds, peers).await
        };
        let got = timeout(bounds.total_timeout, getting).await;
        let got = got.unwrap_or(Err(Reason::Timeout("answer in full", bounds.total_timeout)));
        got.map_err(|reason| FetchError { url: display(url), reason })
    }

    /// Over a connection that is there, or else over a new one: a question may be asked twice.
    async fn post_once(
        &self,
        url: &Uri,
        form: Form<'_>,
        bounds: Bounds,
        peers: &mut Vec<IpAddr>,
    ) -> Result<Vec<u8>, Reason> {
        let target = Target::of(url).ok_or(Reason::Url)?;
        let request = Request::post(target.path_and_query.as_str())
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(form.body.to_owned()));
        let mut request = request.map_err(|_| Reason::Url)?;
        if let Some(value) = form.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value.clone());
        }
        say_who_asks(&target, &mut request)?;
        while let Some((mut sender, made)) = self.kept.take(&target) {
            if sender.ready().await.is_err() {
                continue;
            }
            match answer(&mut sender, request.clone(), url, bounds.body_max_bytes).await {
                Err(Reason::Broken(_)) => {}
                step => {
                    let bytes = of_data(step?)?;
                    self.kept.put(&target, (sender, made));
                    return Ok(bytes);
                }
            }
        }
        let stream = self.connect(&target, bounds, peers).await?;
        let handshake = builder().handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
        // It ends with its connection, or when nobody has the other half any more.
        tokio::spawn(connection);
        let step = answer(&mut sender, request, url, bounds.body_max_bytes).await?;
        let bytes = of_data(step)?;
        self.kept.put(&target, (sender, instant()));
        Ok(bytes)
    }

    /// Sends a request that is for `target` and nobody else.
    async fn once(
        &self,
        url: &Uri,
        (target, mut request): (&Target, Request<Full<Bytes>>),
        bounds: Bounds,
        peers: &mut Vec<IpAddr>,
    ) -> Result<Vec<u8>, Reason> {
        say_who_asks(target, &mut request)?;
        let stream = self.connect(target, bounds, peers).await?;
        of_data(exchange(stream, request, url, bounds.body_max_bytes).await?)
    }

    async fn connect(
        &self,
        target: &Target,
        bounds: Bounds,
        peers: &mut Vec<IpAddr>,
    ) -> Result<Stream, Reason> {
        let connecting = self.connector.connect(target, bounds.connect_timeout, peers);
        let connected = timeout(bounds.connect_timeout, connecting).await;
        connected.unwrap_or(Err(Reason::Timeout("connect", bounds.connect_timeout)))
    }

    async fn follow(
        &self,
        at: &mut Uri,
        validators: &Validators,
        bounds: Bounds,
        peers: &mut Vec<IpAddr>,
    ) -> Result<Fetched, Reason> {
        for _ in 0..=REDIRECTS_MAX {
            let target = Target::of(at).ok_or(Reason::Url)?;
            let stream = self.connect(&target, bounds, peers).await?;
            let request = request(&target, validators)?;
            match exchange(stream, request, at, bounds.body_max_bytes).await? {
                Step::Done(fetched) => return Ok(fetched),
                Step::Redirect(next) => *at = next,
            }
        }
        Err(Reason::Redirects)
    }
}

impl fmt::Debug for Form<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Form").finish_non_exhaustive()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").finish_non_exhaustive()
    }
}

fn request(target: &Target, validators: &Validators) -> Result<Request<Full<Bytes>>, Reason> {
    let mut request = Request::get(target.path_and_query.as_str())
        .header(header::HOST, &target.authority)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "text/plain, application/json, */*;q=0.5")
        .header(header::ACCEPT_ENCODING, "identity")
        .body(Full::default())
        .map_err(|_| Reason::Url)?;
    let conditions = [
        (header::IF_NONE_MATCH, &validators.etag),
        (header::IF_MODIFIED_SINCE, &validators.last_modified),
    ];
    for (name, value) in conditions {
        // One that cannot be sent costs a transfer, no more.
        if let Some(value) = value.as_ref().and_then(|text| HeaderValue::from_str(text).ok()) {
            request.headers_mut().insert(name, value);
        }
    }
    Ok(request)
}

async fn exchange(
    stream: Stream,
    request: Request<Full<Bytes>>,
    at: &Uri,
    body_max_bytes: u64,
) -> Result<Step, Reason> {
    let handshake = builder().handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
    // It ends when the connection does, but what was read by then is still the answer.
    let driver = async {
        connection.await.ok();
        pending::<Infallible>().await
    };
    tokio::select! {
        result = answer(&mut sender, request, at, body_max_bytes) => result,
        never = driver => match never {},
    }
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX).max_header_size(HEAD_BYTES_MAX);
    builder
}

/// What comes for a request over a connection that somebody drives.
async fn answer(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    at: &Uri,
    body_max_bytes: u64,
) -> Result<Step, Reason> {
    let conditional = request.headers().contains_key(header::IF_NONE_MATCH)
        || request.headers().contains_key(header::IF_MODIFIED_SINCE);
    let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
    match response.status() {
        StatusCode::OK => body(response, body_max_bytes).await.map(Step::Done),
        StatusCode::NOT_MODIFIED if conditional => Ok(Step::Done(Fetched::NotModified)),
        status @ (StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT) => {
            redirect(at, status, response.headers()).map(Step::Redirect)
        }
        status => Err(Reason::Status(status)),
    }
}

/// What is there, where nothing else is an answer.
fn of_data(step: Step) -> Result<Vec<u8>, Reason> {
    match step {
        Step::Done(Fetched::Body { bytes, .. }) => Ok(bytes),
        Step::Done(Fetched::NotModified) => Err(Reason::Status(StatusCode::NOT_MODIFIED)),
        Step::Redirect(_) => Err(Reason::SecretRedirect),
    }
}

/// Adds what every question for one server says.
fn say_who_asks(target: &Target, request: &mut Request<Full<Bytes>>) -> Result<(), Reason> {
    let host = HeaderValue::from_str(&target.authority).map_err(|_| Reason::Url)?;
    let fields = [
        (header::HOST, host),
        (header::USER_AGENT, HeaderValue::from_static(USER_AGENT)),
        (header::ACCEPT, HeaderValue::from_static("application/json")),
        (header::ACCEPT_ENCODING, HeaderValue::from_static("identity")),
    ];
    request.headers_mut().extend(fields);
    Ok(())
}

fn redirect(at: &Uri, status: StatusCode, headers: &HeaderMap) -> Result<Uri, Reason> {
    let location = text(headers, &header::LOCATION);
    let next = location.and_then(|location| join(at, location));
    let next = next.ok_or(Reason::Location(status))?;
    if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
        return Err(Reason::Downgrade);
    }
    Ok(next)
}

async fn body(response: Response<Incoming>, max_bytes: u64) -> Result<Fetched, Reason> {
    let (head, mut body) = response.into_parts();
    let kind = text(&head.headers, &header::CONTENT_TYPE).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if matches!(kind.as_str(), "text/html" | "application/xhtml+xml") {
        return Err(Reason::Html(kind));
    }
    if let Some(encoding) = head.headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(Reason::Encoding(String::from_utf8_lossy(encoding.as_bytes()).into_owned()));
    }
    // What is declared is believed only when it is too much; it reserves no memory.
    if body.size_hint().lower() > max_bytes {
        return Err(Reason::TooLarge(max_bytes));
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        let Some(data) = frame.data_ref() else { continue };
        if (bytes.len() + data.len()) as u64 > max_bytes {
            return Err(Reason::TooLarge(max_bytes));
        }
        bytes.extend_from_slice(data);
    }
    if bytes.trim_ascii().is_empty() {
        return Err(Reason::Empty);
    }
    let validator = |name| {
        let value = text(&head.headers, name).filter(|value| value.len() <= VALIDATOR_BYTES_MAX);
        value.map(str::to_owned)
    };
    let validators = Validators {
        etag: validator(&header::ETAG),
        last_modified: validator(&header::LAST_MODIFIED),
    };
    Ok(Fetched::Body { bytes, validators })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// With what lies beneath, which is where hyper keeps the cause.
fn broken(error: &hyper::Error) -> Reason {
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    Reason::Broken(said)
}
