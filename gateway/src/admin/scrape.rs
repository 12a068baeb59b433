//! `GET /metrics` over TCP, where the configuration says so: for Prometheus, which knows no Unix sockets. It answers
//! nothing else, and a few at a time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request as HttpRequest, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::api::{Answer, Request};
use super::asker::Asker;
use super::server::text;
use crate::observe::prometheus;

const CONNECTIONS_MAX: usize = 8;
/// Time to say what is asked.
const HEAD_MAX: Duration = Duration::from_secs(5);
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// The kernel's own number for a user that cannot be known.
const NO_USER: u32 = u32::MAX;

/// Serves for as long as the task runs.
pub async fn serve(listener: TcpListener, asker: Asker) {
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
            // A scraper that lost its connection makes another; there is nobody to tell.
            drop(tokio::time::timeout(CONNECTION_MAX, connection(stream, asker)).await);
        });
    }
}

async fn connection(stream: TcpStream, asker: Asker) {
    let service = service_fn(move |request| {
        let asker = asker.clone();
        async move { Ok::<_, Infallible>(answer(&request, &asker).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
    // As above.
    drop(server.serve_connection(TokioIo::new(stream), service).await);
}

async fn answer(request: &HttpRequest<Incoming>, asker: &Asker) -> Response<Full<Bytes>> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    if request.uri().path() != "/metrics" {
        return text(StatusCode::NOT_FOUND, PLAIN, "only /metrics is here\n".to_owned());
    }
    if *request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET is answered\n".to_owned());
    }
    match asker.ask(Request::Metrics, NO_USER).await {
        Ok(Answer::Metrics(page)) => text(StatusCode::OK, prometheus::CONTENT_TYPE, page),
        Ok(_) => text(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "no metrics\n".to_owned()),
        Err(refusal) => {
            text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{}\n", refusal.error))
        }
    }
}
