//! One look at whether an endpoint is well: over TCP, HTTP or gRPC, each time by a connection of its own, made as those
//! of requests are. The two messages of `grpc.health.v1` have one field each, so they are written and read by hand.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue, TE, USER_AGENT as USER_AGENT_NAME};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Request, Uri, Version};
use http_body::Body;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::client::conn::http2::SendRequest;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use crate::config::{Health, Probe};
use crate::http::socket::Socket;
use crate::outbound::{HEAD_BYTES_MAX, USER_AGENT};
use crate::tls::client::Client;
use crate::upstream::dial::{Dial, Told};

/// What an answer of a gRPC server may take (unit: bytes).
const GRPC_BYTES_MAX: usize = 4096;
const SERVING: u64 = 1;

/// Asks the endpoint at `address` how it is, by `tls` where the check wants that. The error is in words.
pub async fn probe(
    health: &Health,
    address: SocketAddr,
    tls: Option<&Client>,
) -> Result<(), String> {
    let address = SocketAddr::new(address.ip(), health.port.unwrap_or(address.port()));
    let dial = Dial {
        endpoint: address,
        tls: tls.filter(|_| health.tls),
        protocol: health.protocol,
        told: health.proxy_protocol.then_some(Told::Local),
    };
    let asking = async {
        match &health.probe {
            Probe::Tcp => {
                let connected = dial.tcp().await.map(drop);
                connected.map_err(|error| format!("cannot be connected to: {error}"))
            }
            Probe::Http { path, host, status } => {
                let good = |answer: u16| status.iter().any(|range| range.contains(&answer));
                match http(dial, (path, host.as_ref())).await? {
                    answer if good(answer) => Ok(()),
                    answer => Err(format!("answered {answer}")),
                }
            }
            Probe::Grpc { host, service } => grpc(dial, (host.as_ref(), service)).await,
        }
    };
    let time = humantime::format_duration(health.timeout);
    let late = |_| Err(format!("did not answer within {time}"));
    timeout(health.timeout, asking).await.unwrap_or_else(late)
}

async fn http(
    dial: Dial<'_>,
    (path, host): (&PathAndQuery, Option<&Authority>),
) -> Result<u16, String> {
    let socket = dial.reach().await?;
    let host = host.map_or_else(|| dial.endpoint.to_string(), ToString::to_string);
    let request = Request::get(path.as_str()).header(USER_AGENT_NAME, USER_AGENT);
    let request = if dial.is_http2(&socket) {
        request.version(Version::HTTP_2).uri(uri(&dial, &host, path.as_str())?)
    } else {
        request.header(HOST, host)
    };
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    if dial.is_http2(&socket) {
        let (mut sender, connection) = handshake(socket).await?;
        return tokio::select! {
            answer = sender.send_request(request) => {
                Ok(answer.map_err(|error| broken(&error))?.status().as_u16())
            }
            never = ended(connection) => match never {},
        };
    }
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX).max_header_size(HEAD_BYTES_MAX);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(socket)).await.map_err(|error| broken(&error))?;
    tokio::select! {
        answer = sender.send_request(request) => {
            Ok(answer.map_err(|error| broken(&error))?.status().as_u16())
        }
        never = ended(connection) => match never {},
    }
}

async fn handshake<B>(socket: Socket) -> Result<(SendRequest<B>, impl Future), String>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.max_header_list_size(16 << 10);
    builder.handshake(TokioIo::new(socket)).await.map_err(|error| broken(&error))
}

fn uri(dial: &Dial<'_>, host: &str, path: &str) -> Result<Uri, String> {
    let scheme = if dial.tls.is_some() { "https" } else { "http" };
    let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(path).build();
    uri.map_err(|error| error.to_string())
}

/// Drives a connection. What was read by its end is still the answer, so its end is none.
async fn ended(connection: impl Future) -> Infallible {
    connection.await;
    pending().await
}

async fn grpc(dial: Dial<'_>, (host, service): (Option<&Authority>, &str)) -> Result<(), String> {
    let host = host.map_or_else(|| dial.endpoint.to_string(), ToString::to_string);
    let mut request = Request::post(uri(&dial, &host, "/grpc.health.v1.Health/Check")?)
        .version(Version::HTTP_2)
        .body(Full::new(question(service)))
        .map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT_NAME, HeaderValue::from_static(USER_AGENT));
    let (mut sender, connection) = handshake(dial.reach().await?).await?;
    let answering = async {
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        if answer.status() != http::StatusCode::OK {
            return Err(format!("answered {}", answer.status().as_u16()));
        }
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, GRPC_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("broke off: {error}"))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        refused(&head.headers).or_else(|| refused(&trailers)).map_or(Ok(()), Err)?;
        match status_of(&body.to_bytes()) {
            Some(SERVING) => Ok(()),
            Some(status) => Err(format!("is not serving (status {status})")),
            None => Err("answered with no message of grpc.health.v1".to_owned()),
        }
    };
    tokio::select! {
        answer = answering => answer,
        never = ended(connection) => match never {},
    }
}

fn refused(headers: &HeaderMap) -> Option<String> {
    let status = headers.get("grpc-status")?.to_str().unwrap_or("?");
    (status != "0").then(|| format!("answered with the gRPC status {status}"))
}

/// A `HealthCheckRequest` with its prefix.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(0);
    let mut framed = vec![0];
    framed.extend_from_slice(&length.to_be_bytes());
    framed.append(&mut message);
    framed.into()
}

/// The status in a `HealthCheckResponse` with its prefix; fields that are not known are passed over. Without a field
/// it is 0, unknown.
fn status_of(framed: &[u8]) -> Option<u64> {
    let (prefix, message) = framed.split_first_chunk::<5>()?;
    let [0, length @ ..] = *prefix else { return None };
    if message.len() != usize::try_from(u32::from_be_bytes(length)).ok()? {
        return None;
    }
    let (mut rest, mut status) = (message, 0);
    while !rest.is_empty() {
        let tag = read_varint(&mut rest)?;
        let skipped = match (tag, tag & 7) {
            (0x08, _) => {
                status = read_varint(&mut rest)?;
                0
            }
            (_, 0) => {
                read_varint(&mut rest)?;
                0
            }
            (_, 1) => 8,
            (_, 2) => usize::try_from(read_varint(&mut rest)?).ok()?,
            (_, 5) => 4,
            _ => return None,
        };
        rest = rest.get(skipped..)?;
    }
    Some(status)
}

fn varint(mut value: u64, into: &mut Vec<u8>) {
    while let low = u8::try_from(value & 0x7f).unwrap_or(0)
        && value > 0x7f
    {
        into.push(low | 0x80);
        value >>= 7;
    }
    into.push(u8::try_from(value).unwrap_or(0));
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn broken(error: &hyper::Error) -> String {
    format!("broke off: {error}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_as_grpc_has_them() {
        assert_eq!(question("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(question("a.B").as_ref(), [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        assert_eq!(question(&"x".repeat(200)).get(4..8).unwrap(), [203, 0x0a, 0xc8, 1]);
        assert_eq!(status_of(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(status_of(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(status_of(&[0, 0, 0, 0, 5, 0x12, 1, 7, 8, 2]), Some(2), "others are skipped");
        for bad in [&[0u8, 0, 0, 0][..], &[0, 0, 0, 0, 2, 8], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1, 8]]
        {
            assert_eq!(status_of(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_answered_makes_it_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            status_of(&bytes);
            let mut framed = vec![0, 0, 0, 0, u8::try_from(bytes.len()).unwrap()];
            framed.extend(bytes);
            status_of(&framed);
        }
    }
}
