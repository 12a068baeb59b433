//! The built-in service for trying things out: it answers what it saw of a request.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::sync::Semaphore;

const MAX_CONNECTIONS: usize = 4096;

/// The service before it runs.
#[derive(Debug)]
pub struct Echo {
    listener: TcpListener,
    address: SocketAddr,
}

/// What is answered.
#[derive(Serialize)]
struct Seen<'a> {
    method: &'a str,
    path: &'a str,
    /// In the order of arrival; a name may occur more than once.
    headers: Vec<(&'a str, String)>,
    peer: SocketAddr,
    body_bytes: u64,
}

impl Echo {
    /// Binds it to a free port of the loopback address.
    pub fn bind() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves on a thread of its own until the process ends.
    pub fn spawn(self) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("echo".to_owned());
        thread.spawn(move || runtime.block_on(serve(self.listener)))?;
        Ok(())
    }
}

async fn serve(listener: TcpListener) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new());
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        let Ok((stream, peer)) = listener.accept().await else {
            // Most likely no descriptor is left; the ones in use become free in time.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let service = service_fn(move |request| answer(request, peer));
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // A client that leaves is no error here.
            connection.await.ok();
            drop(slot);
        });
    }
    Ok(())
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, mut body) = request.into_parts();
    let mut body_bytes = 0;
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        body_bytes += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let seen = Seen {
        method: head.method.as_str(),
        path: head.uri.path_and_query().map_or("", |path| path.as_str()),
        headers: head.headers.iter().map(|(name, value)| (name.as_str(), text(value))).collect(),
        peer,
        body_bytes,
    };
    let mut json = serde_json::to_vec_pretty(&seen).unwrap_or_default();
    json.push(b'\n');
    let mut response = Response::new(Full::from(json));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
