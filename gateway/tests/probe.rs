//! Health checks against servers on loopback that answer as a test wants.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use gateway::config::{Health, Probe, Protocol};
use gateway::upstream::probe::probe;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(20);

fn health(probe: Probe) -> Health {
    Health {
        probe,
        interval: PATIENCE,
        timeout: PATIENCE,
        healthy_after: 1,
        unhealthy_after: 1,
        port: None,
        tls: false,
        proxy_protocol: false,
        protocol: Protocol::Http1,
    }
}

fn grpc(service: &str) -> Health {
    health(Probe::Grpc { host: None, service: service.to_owned() })
}

/// A server of `grpc.health.v1` that knows the services `well` and `sick`.
async fn serve_grpc(listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let answer = |request: Request<Incoming>| async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            let asked = request.into_body().collect().await.unwrap().to_bytes();
            let response = Response::builder().header("content-type", "application/grpc");
            let (status, body): (&str, &[u8]) = match asked.get(7..).unwrap_or_default() {
                b"well" => ("0", &[0, 0, 0, 0, 2, 8, 1]),
                b"sick" => ("0", &[0, 0, 0, 0, 2, 8, 2]),
                _ => ("5", &[]),
            };
            let response = response.header("grpc-status", status);
            Ok::<_, Infallible>(response.body(Full::new(Bytes::copy_from_slice(body))).unwrap())
        };
        let http = http2::Builder::new(TokioExecutor::new());
        let connection = http.serve_connection(TokioIo::new(stream), service_fn(answer));
        tokio::spawn(async move { connection.await.ok() });
    }
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn grpc_says_how_a_service_is() {
    let (listener, address) = bind().await;
    tokio::spawn(serve_grpc(listener));
    assert_eq!(probe(&grpc("well"), address, None).await, Ok(()));
    assert_eq!(probe(&grpc("sick"), address, None).await.unwrap_err(), "is not serving (status 2)");
    let unknown = probe(&grpc("other"), address, None).await.unwrap_err();
    assert_eq!(unknown, "answered with the gRPC status 5");
}

#[tokio::test]
async fn http_goes_by_the_status_and_waits_no_longer_than_told() {
    let (listener, address) = bind().await;
    tokio::spawn(async move {
        let mut held = Vec::new();
        for answer in ["HTTP/1.1 204 -\r\n\r\n", "HTTP/1.1 302 -\r\n\r\n", "SSH-2.0\r\n\r\n", ""] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
            held.push(stream);
        }
        std::future::pending::<()>().await;
    });
    let path = "/health".parse().unwrap();
    let mut http = health(Probe::Http { path, host: None, status: vec![200..=299] });
    assert_eq!(probe(&http, address, None).await, Ok(()));
    assert_eq!(probe(&http, address, None).await.unwrap_err(), "answered 302");
    let rubbish = probe(&http, address, None).await.unwrap_err();
    assert!(rubbish.starts_with("broke off"), "{rubbish}");
    http.timeout = Duration::from_millis(50);
    assert_eq!(probe(&http, address, None).await.unwrap_err(), "did not answer within 50ms");
}

#[tokio::test]
async fn tcp_is_a_connection_also_to_another_port() {
    let (_listener, address) = bind().await;
    let mut tcp = health(Probe::Tcp);
    assert_eq!(probe(&tcp, address, None).await, Ok(()));
    let (gone, free) = bind().await;
    drop(gone);
    tcp.port = Some(free.port());
    let refused = probe(&tcp, address, None).await.unwrap_err();
    assert!(refused.starts_with("cannot be connected to"), "{refused}");
}
