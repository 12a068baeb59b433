//! What services are asked over, through the real binary: the protocol that a service chooses by ALPN, and services
//! that speak HTTP/2 and say goodbye, refuse, fall silent or change their mind.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use gateway::http::h1::upgrade::accept;
use harness::authority::Authority;
use harness::client::{Client, Response};
use harness::gateway::Gateway;
use harness::h2_service::{H2Service, answer, serve};
use harness::http2::{Frame, Http2, flag, kind, reason, request};
use harness::origin::{Origin, Reply};
use harness::site::Site;
use harness::tls_end::{Behind, TlsEnd};
use harness::{Result, wait_for};
use serde_json::{Value, json};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(30);

/// SETTINGS_MAX_CONCURRENT_STREAMS.
const STREAMS: u16 = 3;

/// A gateway in front of `endpoints`; `settings` are of the upstream.
fn gateway<'s>(
    site: &'s Site,
    endpoints: &[SocketAddr],
    settings: Value,
) -> Result<(Gateway<'s>, SocketAddr)> {
    let listen = site.free_address()?;
    let config = config(listen, endpoints, settings);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    Ok((gateway, listen))
}

fn config(listen: SocketAddr, endpoints: &[SocketAddr], mut settings: Value) -> Value {
    let addresses: Value = endpoints.iter().map(ToString::to_string).collect();
    settings.as_object_mut().map(|settings| settings.insert("endpoints".to_owned(), addresses));
    json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "upstreams": {"service": settings},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    })
}

fn connect(site: &Site, listen: SocketAddr) -> Result<Client> {
    site.enter(|| Client::connect_here(None, listen, PATIENCE))?
}

fn get(site: &Site, listen: SocketAddr) -> Result<Response> {
    connect(site, listen)?.get("/")
}

fn send(site: &Site, listen: SocketAddr, method: &str, body: &str) -> Result<Response> {
    let mut client = connect(site, listen)?;
    let length = body.len();
    let head = format!("{method} / HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n");
    client.send(head.as_bytes())?;
    client.send(body.as_bytes())?;
    client.receive()
}

/// As many requests at once as given, each on a connection of its own; what they were answered.
fn at_once(site: &Site, listen: SocketAddr, requests: usize) -> Result<Vec<String>> {
    let clients: Result<Vec<_>> = (0..requests).map(|_| connect(site, listen)).collect();
    let mut clients = clients?;
    for client in &mut clients {
        client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")?;
    }
    let answers = clients.iter_mut().map(|client| {
        let answer = client.receive()?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        Ok(answer.text())
    });
    answers.collect()
}

/// A service that speaks both protocols, over TLS, and says which was spoken.
struct Both {
    end: TlsEnd,
    _http1: Origin,
    http2: H2Service,
    _authority: Authority,
}

impl Both {
    fn start(
        site: &Site,
        alpn: &[&'static str],
        http2: impl Fn(&mut Http2, usize) -> Result + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::with(site, alpn, || Reply::Answer(200, "http1"), http2)
    }

    fn with(
        site: &Site,
        alpn: &[&'static str],
        http1: impl Fn() -> Reply + Send + Sync + 'static,
        http2: impl Fn(&mut Http2, usize) -> Result + Send + Sync + 'static,
    ) -> Result<Self> {
        let authority = Authority::new()?;
        let pair = authority.issue("service", &["service.test"])?;
        let http1 = site.origin(move |_| http1())?;
        let http2 = H2Service::start(site, http2)?;
        let behind = Behind { http1: http1.address, http2: http2.address };
        let end = TlsEnd::start(site, &pair, alpn, behind)?;
        Ok(Self { end, _http1: http1, http2, _authority: authority })
    }
}

fn over_tls() -> Value {
    json!({"tls": {"verify": false}})
}

fn http2(connection: &mut Http2, _: usize) -> Result {
    connection.frames(&[Frame::settings(&[])])?;
    serve(connection, "http2")
}

#[test]
fn a_service_chooses_the_protocol_and_connections_are_kept() -> Result {
    for (alpn, chosen, body) in [
        (&["h2", "http/1.1"][..], "h2", "http2"),
        (&["http/1.1", "h2"], "http/1.1", "http1"),
        (&["http/1.1"], "http/1.1", "http1"),
        (&["h2"], "h2", "http2"),
        (&[], "", "http1"),
    ] {
        let site = Site::new()?;
        let service = Both::start(&site, alpn, http2)?;
        let (_gateway, listen) = gateway(&site, &[service.end.address], over_tls())?;
        for _ in 0..3 {
            let answer = get(&site, listen)?;
            assert_eq!((answer.status, &*answer.text()), (200, body), "{alpn:?}");
        }
        assert_eq!(service.end.chosen(), [chosen], "{alpn:?}: one connection for all");
    }
    Ok(())
}

#[test]
fn many_first_requests_share_one_connection_or_have_one_each() -> Result {
    let site = Site::new()?;
    let service = Both::start(&site, &["h2"], http2)?;
    let (_gateway, listen) = gateway(&site, &[service.end.address], over_tls())?;
    assert!(at_once(&site, listen, 64)?.iter().all(|body| body == "http2"));
    assert_eq!(service.end.chosen(), ["h2"]);

    let service = Both::start(&site, &["http/1.1"], http2)?;
    let (_gateway, listen) = gateway(&site, &[service.end.address], over_tls())?;
    assert!(at_once(&site, listen, 64)?.iter().all(|body| body == "http1"));
    assert!(service.end.chosen().len() <= 64);
    Ok(())
}

#[test]
fn a_service_that_allows_few_requests_has_four_connections_at_most() -> Result {
    let site = Site::new()?;
    let service = Both::start(&site, &["h2"], |connection, _| {
        connection.frames(&[Frame::settings(&[(STREAMS, 2)])])?;
        serve(connection, "http2")
    })?;
    let settings = json!({"tls": {"verify": false}, "timeout": {"connect": "20s"}});
    let (_gateway, listen) = gateway(&site, &[service.end.address], settings)?;
    assert_eq!(at_once(&site, listen, 64)?.len(), 64);
    assert!(service.end.most_at_once() <= 4, "{}", service.end.most_at_once());
    Ok(())
}

#[test]
fn a_service_that_changes_its_mind_is_followed() -> Result {
    let site = Site::new()?;
    let (many, spoken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (keeps, counted) = (Arc::clone(&many), Arc::clone(&spoken));
    // Neither keeps a connection, so that each time is the first.
    let once =
        || Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhttp1");
    let service = Both::with(&site, &["http/1.1"], once, move |connection, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        connection.frames(&[Frame::settings(&[])])?;
        if keeps.load(Ordering::Relaxed) {
            return serve(connection, "http2");
        }
        let request = connection.wait(Frame::ends_stream)?;
        connection.frames(&[Frame::goaway(request.stream, reason::NO_ERROR)])?;
        connection.frames(&answer(request.stream, "http2"))?;
        while connection.receive_polite()?.is_some() {}
        Ok(())
    })?;
    let settings = json!({"tls": {"verify": false}, "timeout": {"connect": "20s"}});
    let (_gateway, listen) = gateway(&site, &[service.end.address], settings)?;
    for (alpn, body) in
        [(&["http/1.1"], "http1"), (&["h2"], "http2"), (&["http/1.1"], "http1"), (&["h2"], "http2")]
    {
        service.end.choose(alpn);
        assert_eq!(get(&site, listen)?.text(), body);
        assert_eq!(get(&site, listen)?.text(), body);
    }
    service.end.choose(&["http/1.1"]);
    assert_eq!(get(&site, listen)?.text(), "http1");
    service.end.choose(&["h2"]);
    many.store(true, Ordering::Relaxed);
    let before = spoken.load(Ordering::Relaxed);
    // Each of them connects as to a service that speaks HTTP/1.1; all but a few find a connection when they are done.
    assert!(at_once(&site, listen, 32)?.iter().all(|body| body == "http2"));
    let opened = spoken.load(Ordering::Relaxed) - before;
    assert!((1..=4).contains(&opened), "{opened} connections");
    Ok(())
}

#[test]
fn grpc_needs_no_setting_where_the_service_chooses() -> Result {
    let site = Site::new()?;
    let service = Both::start(&site, &["h2", "http/1.1"], |connection, _| {
        connection.frames(&[Frame::settings(&[])])?;
        let call = connection.wait(Frame::ends_stream)?;
        connection.frames(&[
            Frame::headers(call.stream, false, &[(":status", "200")]),
            Frame::headers(call.stream, true, &[("grpc-status", "0")]),
        ])?;
        serve(connection, "")
    })?;
    let (_gateway, listen) = gateway(&site, &[service.end.address], over_tls())?;
    let mut client = site.enter(|| Http2::connect(listen, &[], PATIENCE))??;
    let fields = [&request("POST", "/a.B/C")[..], &[("content-type", "application/grpc")]];
    client.frames(&[Frame::headers(1, true, &fields.concat())])?;
    assert!(client.is_fine(1)?);
    client.wait(|frame| frame.kind == kind::HEADERS && frame.ends_stream())?;
    Ok(())
}

/// Answers on every connection as if nothing had happened, except on the first, where `first` has the first request.
fn after(
    first: impl Fn(&mut Http2, u32) -> Result + Send + Sync + 'static,
) -> impl Fn(&mut Http2, usize) -> Result + Send + Sync + 'static {
    move |connection, number| {
        connection.frames(&[Frame::settings(&[])])?;
        if number == 0 {
            let request = connection.wait(|frame| frame.kind == kind::HEADERS)?;
            first(connection, request.stream)?;
        }
        serve(connection, "fine")
    }
}

fn fine(connection: &mut Http2, _: usize) -> Result {
    connection.frames(&[Frame::settings(&[])])?;
    serve(connection, "fine")
}

fn h2() -> Value {
    json!({"protocol": "h2"})
}

#[test]
fn requests_behind_a_goodbye_go_on_over_another_connection() -> Result {
    for (body, code) in [("", reason::NO_ERROR), ("body", reason::NO_ERROR), ("body", 11)] {
        let site = Site::new()?;
        let service = H2Service::start(
            &site,
            after(move |connection, stream| {
                // The first is answered, the second was not looked at.
                connection.frames(&answer(stream, "first"))?;
                let second = connection.wait(|frame| frame.kind == kind::HEADERS)?;
                connection.frames(&[Frame::goaway(second.stream - 2, code)])?;
                while connection.receive()?.is_some() {}
                Ok(())
            }),
        )?;
        let (_gateway, listen) = gateway(&site, &[service.address], h2())?;
        while get(&site, listen)?.text() != "first" {}
        // A POST too: the service promises that it did nothing (RFC 9113, section 6.8).
        let answer = send(&site, listen, "POST", body)?;
        assert_eq!((answer.status, &*answer.text()), (200, "fine"), "{body:?} {code}");
        assert_eq!(service.connections(), 2);
    }
    Ok(())
}

#[test]
fn a_post_before_a_goodbye_that_is_not_answered_is_not_sent_twice() -> Result {
    for code in [reason::NO_ERROR, 11] {
        let site = Site::new()?;
        let service = H2Service::start(
            &site,
            after(move |connection, stream| {
                connection.frames(&[Frame::goaway(stream, code)])?;
                connection.close()
            }),
        )?;
        let (_gateway, listen) = gateway(&site, &[service.address], h2())?;
        assert_eq!(send(&site, listen, "POST", "body")?.status, 502, "{code}");
        assert_eq!(service.connections(), 1);
        assert_eq!(send(&site, listen, "POST", "body")?.text(), "fine");
    }
    Ok(())
}

#[test]
fn what_was_begun_before_a_goodbye_is_finished() -> Result {
    let site = Site::new()?;
    let service = H2Service::start(
        &site,
        after(|connection, stream| {
            // First for the future, then for good, as RFC 9113, section 6.8, has it.
            connection.frames(&[Frame::goaway(0x7fff_ffff, reason::NO_ERROR)])?;
            connection.frames(&[Frame::new(kind::PING, 0, 0, [0; 8])])?;
            connection.wait(|frame| frame.kind == kind::PING && frame.flags == flag::ACK)?;
            connection.frames(&[Frame::goaway(stream, reason::NO_ERROR)])?;
            connection.frames(&answer(stream, "finished"))
        }),
    )?;
    let (_gateway, listen) = gateway(&site, &[service.address], h2())?;
    assert_eq!(send(&site, listen, "POST", "body")?.text(), "finished");
    assert_eq!(send(&site, listen, "POST", "body")?.text(), "fine");
    assert_eq!(service.connections(), 2);
    Ok(())
}

#[test]
fn a_refused_stream_is_tried_elsewhere_whatever_the_method() -> Result {
    let site = Site::new()?;
    let refusing = H2Service::start(&site, |connection, _| {
        connection.frames(&[Frame::settings(&[])])?;
        while let Some(frame) = connection.receive_polite()? {
            if frame.ends_stream() {
                connection.frames(&[Frame::reset(frame.stream, reason::REFUSED_STREAM)])?;
            }
        }
        Ok(())
    })?;
    let honest = H2Service::start(&site, fine)?;
    let (_gateway, listen) = gateway(&site, &[refusing.address, honest.address], h2())?;
    for method in ["GET", "POST", "PUT", "POST"] {
        for body in ["", "body"] {
            let answer = send(&site, listen, method, body)?;
            assert_eq!((answer.status, &*answer.text()), (200, "fine"), "{method} {body:?}");
        }
    }
    Ok(())
}

#[test]
fn a_service_that_refuses_all_is_asked_a_few_times() -> Result {
    let site = Site::new()?;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let refusing = H2Service::start(&site, move |connection, _| {
        connection.frames(&[Frame::settings(&[])])?;
        while let Some(frame) = connection.receive_polite()? {
            if frame.ends_stream() {
                counted.fetch_add(1, Ordering::Relaxed);
                connection.frames(&[Frame::reset(frame.stream, reason::REFUSED_STREAM)])?;
            }
        }
        Ok(())
    })?;
    let (_gateway, listen) = gateway(&site, &[refusing.address], h2())?;
    for _ in 0..3 {
        assert_eq!(send(&site, listen, "POST", "body")?.status, 502);
    }
    let asked = asked.load(Ordering::Relaxed);
    assert!((3..=9).contains(&asked), "{asked} requests for 3");
    Ok(())
}

#[test]
fn a_service_that_falls_silent_is_left_and_requests_go_on_elsewhere() -> Result {
    let site = Site::new()?;
    // It reads and says nothing, not even to pings.
    let silent = H2Service::start(&site, |connection, _| {
        connection.frames(&[Frame::settings(&[])])?;
        while connection.receive()?.is_some() {}
        Ok(())
    })?;
    let honest = H2Service::start(&site, fine)?;
    let settings = json!({"protocol": "h2", "timeout": {"response": "50s"}});
    let (gateway, listen) = gateway(&site, &[silent.address, honest.address], settings)?;
    assert_eq!(at_once(&site, listen, 2)?, ["fine", "fine"]);
    let retries = gateway.status()?.pointer("/proxy/upstream/retries/reset").cloned();
    assert_eq!(retries, Some(json!(1)), "one of the two had the silent one");
    Ok(())
}

#[test]
fn a_connection_without_a_sign_of_life_takes_no_more_requests() -> Result {
    let site = Site::new()?;
    let service = H2Service::start(
        &site,
        after(|connection, stream| {
            connection.frames(&answer(stream, "last words"))?;
            while connection.receive()?.is_some() {}
            Ok(())
        }),
    )?;
    let settings = json!({"protocol": "h2", "timeout": {"response": "1s"}});
    let (_gateway, listen) = gateway(&site, &[service.address], settings)?;
    assert_eq!(get(&site, listen)?.text(), "last words");
    assert_eq!(get(&site, listen)?.status, 504);
    assert_eq!(get(&site, listen)?.text(), "fine");
    Ok(())
}

#[test]
fn a_service_that_never_says_hello_has_seen_nothing() -> Result {
    let site = Site::new()?;
    let mute = H2Service::start(&site, |connection, _| {
        while connection.receive()?.is_some() {}
        Ok(())
    })?;
    let honest = H2Service::start(&site, fine)?;
    let settings = json!({"protocol": "h2", "timeout": {"connect": "300ms"}});
    let (_gateway, listen) = gateway(&site, &[mute.address, honest.address], settings)?;
    for _ in 0..4 {
        assert_eq!(send(&site, listen, "POST", "body")?.text(), "fine");
    }
    Ok(())
}

#[test]
fn a_service_may_allow_fewer_requests_and_more_again() -> Result {
    let site = Site::new()?;
    let service = H2Service::start(&site, |connection, _| {
        connection.frames(&[Frame::settings(&[(STREAMS, 100)])])?;
        while let Some(frame) = connection.receive_polite()? {
            if !frame.ends_stream() {
                continue;
            }
            connection.frames(&[Frame::settings(&[(STREAMS, 0)])])?;
            connection.wait(|frame| frame.kind == kind::SETTINGS && frame.flags == flag::ACK)?;
            connection.frames(&answer(frame.stream, "fine"))?;
            std::thread::sleep(Duration::from_millis(50));
            connection.frames(&[Frame::settings(&[(STREAMS, 1)])])?;
        }
        Ok(())
    })?;
    let settings = json!({"protocol": "h2", "timeout": {"connect": "10s"}});
    let (_gateway, listen) = gateway(&site, &[service.address], settings)?;
    for _ in 0..5 {
        assert_eq!(get(&site, listen)?.text(), "fine");
    }
    assert_eq!(service.connections(), 1, "no other is opened to one that allows nothing");
    Ok(())
}

#[test]
fn a_service_that_allows_nothing_is_passed_over() -> Result {
    let site = Site::new()?;
    let closed = H2Service::start(&site, |connection, _| {
        connection.frames(&[Frame::settings(&[(STREAMS, 0)])])?;
        serve(connection, "never")
    })?;
    let honest = H2Service::start(&site, |connection, _| {
        connection.frames(&[Frame::settings(&[(STREAMS, 1)])])?;
        serve(connection, "fine")
    })?;
    let settings = json!({"protocol": "h2", "timeout": {"connect": "300ms"}});
    let (_gateway, listen) = gateway(&site, &[closed.address, honest.address], settings)?;
    for _ in 0..4 {
        assert_eq!(send(&site, listen, "POST", "body")?.text(), "fine");
    }
    assert_eq!(closed.connections(), 1);
    Ok(())
}

#[test]
fn an_answer_that_is_whole_counts_although_the_rest_of_the_request_is_not_wanted() -> Result {
    let site = Site::new()?;
    for with_body in [true, false] {
        let service = H2Service::start(&site, move |connection, _| {
            connection.frames(&[Frame::settings(&[])])?;
            while let Some(frame) = connection.receive_polite()? {
                if frame.kind != kind::HEADERS {
                    continue;
                }
                // Before the body is there (RFC 9113, section 8.1), all at once.
                let no_error = Frame::reset(frame.stream, reason::NO_ERROR);
                let frames = if with_body {
                    [&answer(frame.stream, "enough")[..], &[no_error]].concat()
                } else {
                    vec![Frame::headers(frame.stream, true, &[(":status", "200")]), no_error]
                };
                connection.frames(&frames)?;
            }
            Ok(())
        })?;
        let (gateway, listen) = gateway(&site, &[service.address], h2())?;
        let expected = if with_body { "enough" } else { "" };
        for _ in 0..3 {
            let mut client = connect(&site, listen)?;
            client.send(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000\r\n\r\npart")?;
            let answer = client.receive()?;
            assert_eq!((answer.status, &*answer.text()), (200, expected));
        }
        assert_eq!(service.connections(), 1);
        wait_for("the end of all requests", PATIENCE, || {
            let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
            Ok(metrics.contains("\ngateway_requests_active 0\n").then_some(()))
        })?;
        let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
        assert!(metrics.contains("gateway_answers_broken_total 0"), "{metrics}");
    }
    Ok(())
}

/// A service that echoes what comes through tunnels over HTTP/2, until it is told goodbye.
struct Tunnels {
    address: SocketAddr,
    /// Method, `:protocol` and path of each request.
    seen: Arc<Mutex<Vec<String>>>,
    _end: oneshot::Sender<()>,
}

impl Tunnels {
    /// `offered` is whether it says that it takes tunnels.
    fn start(site: &Site, offered: bool) -> Result<Self> {
        let listener = site.enter(|| TcpListener::bind("127.0.0.1:0"))??;
        listener.set_nonblocking(true)?;
        let (address, seen) = (listener.local_addr()?, Arc::default());
        let (end, ended) = oneshot::channel::<()>();
        let this = Self { address, seen: Arc::clone(&seen), _end: end };
        std::thread::spawn(move || -> Result {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                tokio::select! {
                    _ = ended => Ok(()),
                    done = async { loop {
                        let (socket, _) = listener.accept().await?;
                        tokio::spawn(tunnels(socket, offered, Arc::clone(&seen)));
                    } } => done,
                }
            })
        });
        Ok(this)
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn tunnels(
    socket: tokio::net::TcpStream,
    offered: bool,
    seen: Arc<Mutex<Vec<String>>>,
) -> Result {
    let mut builder = h2::server::Builder::new();
    if offered {
        builder.enable_connect_protocol();
    }
    let mut connection = builder.handshake::<_, Bytes>(socket).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        let protocol = request.extensions().get::<h2::ext::Protocol>();
        let protocol = protocol.map_or("", |protocol| protocol.as_str()).to_owned();
        let (method, path) = (request.method(), request.uri().path());
        let fields = request.headers();
        let said = format!("{method} {protocol} {path} {}", fields.contains_key("upgrade"));
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(said);
        if protocol.is_empty() || path == "/refused" {
            let status = if protocol.is_empty() { 200 } else { 403 };
            let answer = http::Response::builder().status(status).body(())?;
            respond.send_response(answer, false)?.send_data("plain".into(), true)?;
            continue;
        }
        let proposed = fields.get("sec-websocket-protocol").cloned();
        let mut answer = http::Response::new(());
        if let Some(proposed) = proposed {
            answer.headers_mut().insert("sec-websocket-protocol", proposed);
        }
        let mut out = respond.send_response(answer, false)?;
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                let is_last = data.ends_with(b"bye");
                out.send_data(data, is_last)?;
                if is_last {
                    return Ok(());
                }
            }
            out.send_data(Bytes::new(), true)
        });
    }
    Ok(())
}

/// The request of RFC 6455, section 1.2, for this path.
fn upgrade(path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nhost: test\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\
         sec-websocket-protocol: chat\r\n\r\n"
    )
    .into_bytes()
}

/// A WebSocket over either protocol goes through and back.
fn goes_through(site: &Site, listen: SocketAddr) -> Result {
    let mut client = connect(site, listen)?;
    client.send(&upgrade("/chat"))?;
    let answer = client.receive()?;
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(answer.header("sec-websocket-protocol"), Some("chat"));
    client.send(b"hello ")?;
    client.send(b"bye")?;
    // A service that has said all and left resets what still comes; only the bytes before are promised.
    assert_eq!(client.read("hello bye".len())?, b"hello bye");

    let mut client = site.enter(|| Http2::connect(listen, &[], PATIENCE))??;
    let fields = [(":protocol", "websocket"), ("sec-websocket-version", "13")];
    let fields = [&request("CONNECT", "/chat")[..], &fields].concat();
    client.frames(&[Frame::headers(1, false, &fields)])?;
    assert!(client.is_fine(1)?);
    client.frames(&[Frame::new(kind::DATA, 0, 1, *b"hello bye")])?;
    let mut heard = Vec::new();
    while !heard.ends_with(b"bye") {
        heard.extend(client.wait(|frame| frame.kind == kind::DATA)?.payload);
    }
    assert_eq!(heard, b"hello bye");
    Ok(())
}

#[test]
fn a_websocket_goes_to_a_service_over_http2() -> Result {
    let site = Site::new()?;
    let service = Tunnels::start(&site, true)?;
    let (gateway, listen) = gateway(&site, &[service.address], h2())?;
    goes_through(&site, listen)?;
    assert_eq!(service.seen(), ["CONNECT websocket /chat false"; 2]);

    let mut client = connect(&site, listen)?;
    client.send(&upgrade("/refused"))?;
    let answer = client.receive()?;
    assert_eq!((answer.status, &*answer.text()), (403, "plain"));
    assert_eq!(answer.header("upgrade"), None);

    // One that leaves without a word leaves nothing behind.
    let mut client = connect(&site, listen)?;
    client.send(&upgrade("/chat"))?;
    assert_eq!(client.receive()?.status, 101);
    drop(client);
    wait_for("the end of all requests", PATIENCE, || {
        let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
        Ok(metrics.contains("\ngateway_requests_active 0\n").then_some(()))
    })
}

#[test]
fn a_websocket_to_a_service_that_takes_none_over_http2() -> Result {
    let site = Site::new()?;
    let service = Tunnels::start(&site, false)?;
    let (_gateway, listen) = gateway(&site, &[service.address], h2())?;
    let mut client = connect(&site, listen)?;
    client.send(&upgrade("/chat"))?;
    assert_eq!(client.receive()?.status, 501);
    assert_eq!(get(&site, listen)?.text(), "plain");
    assert_eq!(service.seen(), ["GET  / false"]);
    Ok(())
}

#[test]
fn a_websocket_where_the_service_chooses_takes_what_takes_it() -> Result {
    // Whether over HTTP/2 from the start, or over HTTP/1.1 although the service would rather not.
    for offered in [true, false] {
        let (site, authority) = (Site::new()?, Authority::new()?);
        let pair = authority.issue("service", &["service.test"])?;
        let tunnels = Tunnels::start(&site, offered)?;
        let upgraded = site.origin(|request| {
            assert_eq!(request.header("upgrade"), Some("websocket"));
            let key = request.header("sec-websocket-key").unwrap_or_default();
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                 upgrade: websocket\r\nsec-websocket-protocol: chat\r\n\
                 sec-websocket-accept: {}\r\n\r\nhello bye",
                accept(key.as_bytes())
            );
            Reply::Bytes(head.into_bytes())
        })?;
        let behind = Behind { http1: upgraded.address, http2: tunnels.address };
        let end = TlsEnd::start(&site, &pair, &["h2", "http/1.1"], behind)?;
        let (_gateway, listen) = gateway(&site, &[end.address], over_tls())?;
        goes_through(&site, listen)?;
        assert_eq!(get(&site, listen)?.text(), "plain");
        let (expected, seen) = if offered {
            (vec!["h2"], vec!["CONNECT websocket /chat false"; 2])
        } else {
            (vec!["h2", "http/1.1", "http/1.1"], vec![])
        };
        assert_eq!(end.chosen(), expected);
        assert_eq!(tunnels.seen(), [&seen[..], &["GET  / false"]].concat());
    }
    Ok(())
}

/// Waits until the endpoint has this condition, and answers why it has.
fn condition(gateway: &Gateway<'_>, endpoint: SocketAddr, wanted: &str) -> Result<String> {
    wait_for(&format!("{endpoint} being {wanted}"), PATIENCE, || {
        let status = gateway.status()?;
        let endpoints = status.pointer("/upstreams/0/endpoints").and_then(Value::as_array);
        let of = |one: &&Value| one["address"] == json!(endpoint.to_string());
        let one = endpoints.into_iter().flatten().find(of).context("no such endpoint")?;
        let why = one["why"].as_str().unwrap_or_default().to_owned();
        Ok((one["condition"] == wanted).then_some(why))
    })
}

fn health(more: &Value) -> Value {
    let mut health = json!({"interval": "100ms", "timeout": "10s", "unhealthy_after": 1});
    if let Some((health, more)) = health.as_object_mut().zip(more.as_object()) {
        health.extend(more.clone());
    }
    health
}

#[test]
fn checks_prove_who_they_are_and_believe_nobody_else() -> Result {
    let (site, authority, strangers) = (Site::new()?, Authority::new()?, Authority::new()?);
    let server = authority.issue("service", &["users.internal"])?;
    let client = authority.issue("gateway", &["gateway.internal"])?;
    let inner = site.free_address()?;
    // Another gateway is the service, which takes nobody without a certificate and a header of the PROXY protocol.
    let served = json!({
        "listen": [{
            "address": inner.to_string(),
            "proxy_protocol": {"from": ["127.0.0.0/8"]},
            "tls": {
                "certificates": [server.json()], "client_certificates": {"ca": authority.ca()},
            },
        }],
        "workers": 1,
        "kernel": {"attach": "off"},
        "upstreams": {"echo": {"endpoints": ["echo"]}},
        "routes": [{"match": {"path": "/healthy"}, "upstream": "echo"}],
    });
    let mut service = Gateway::unprivileged(site.namespace.as_ref(), served)?;
    service.start()?;
    let tls = json!({
        "ca": authority.ca(), "server_name": "users.internal", "client_certificate": client.json(),
    });
    let settings = |tls: &Value, path: &str| {
        json!({
            "tls": tls, "proxy_protocol": "v2", "health": health(&json!({"path": path})),
        })
    };
    let (gateway, listen) = gateway(&site, &[inner], settings(&tls, "/sick"))?;
    assert_eq!(condition(&gateway, inner, "unhealthy")?, "answered 404");
    for (wrong, says) in [
        (json!({"ca": strangers.ca(), "server_name": "users.internal"}), "agrees on no TLS"),
        (json!({"ca": authority.ca(), "server_name": "other.internal"}), "not valid for name"),
        (json!({"ca": authority.ca(), "server_name": "users.internal"}), "broke off"),
    ] {
        gateway.write_config(config(listen, &[inner], settings(&wrong, "/healthy")))?;
        gateway.cli(&["reload"])?.ok()?;
        wait_for(says, PATIENCE, || {
            let why = condition(&gateway, inner, "unhealthy")?;
            Ok(why.contains(says).then_some(()))
        })?;
    }
    gateway.write_config(config(listen, &[inner], settings(&tls, "/healthy")))?;
    gateway.cli(&["reload"])?.ok()?;
    condition(&gateway, inner, "healthy")?;
    Ok(())
}

#[test]
fn checks_speak_what_the_service_speaks() -> Result {
    let site = Site::new()?;
    let (well, counted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (is_well, count) = (Arc::clone(&well), Arc::clone(&counted));
    let script = move |connection: &mut Http2, _: usize| {
        connection.frames(&[Frame::settings(&[])])?;
        let asked = connection.wait(Frame::ends_stream)?;
        count.fetch_add(1, Ordering::Relaxed);
        let status = if is_well.load(Ordering::Relaxed) { "200" } else { "503" };
        // To a question of gRPC it is an answer too: SERVING, or not that.
        connection.frames(&[
            Frame::headers(asked.stream, false, &[(":status", status)]),
            Frame::new(kind::DATA, 0, asked.stream, [0, 0, 0, 0, 2, 8, 1]),
            Frame::headers(asked.stream, true, &[("grpc-status", "0")]),
        ])?;
        while connection.receive_polite()?.is_some() {}
        Ok(())
    };
    let service = Both::start(&site, &["h2", "http/1.1"], script)?;
    let (plain, secure) = (service.http2.address, service.end.address);
    let tls = || json!({"verify": false});
    for (endpoint, settings, more) in [
        (plain, json!({"protocol": "h2"}), json!({"path": "/"})),
        (plain, json!({"protocol": "h2"}), json!({"type": "grpc"})),
        (secure, json!({"tls": tls()}), json!({"path": "/"})),
        (secure, json!({"tls": tls(), "protocol": "h2"}), json!({"path": "/"})),
        (secure, json!({"tls": tls(), "protocol": "http1"}), json!({"type": "grpc"})),
    ] {
        let mut settings = settings;
        settings["health"] = health(&more);
        well.store(false, Ordering::Relaxed);
        let (gateway, _listen) = gateway(&site, &[endpoint], settings.clone())?;
        assert_eq!(condition(&gateway, endpoint, "unhealthy")?, "answered 503", "{settings}");
        well.store(true, Ordering::Relaxed);
        condition(&gateway, endpoint, "healthy")?;
        let before = counted.load(Ordering::Relaxed);
        wait_for("another check", PATIENCE, || {
            Ok((counted.load(Ordering::Relaxed) > before + 1).then_some(()))
        })?;
        condition(&gateway, endpoint, "healthy").with_context(|| settings.to_string())?;
    }
    // Where it chooses HTTP/1.1, checks do too.
    service.end.choose(&["http/1.1"]);
    let mut settings = json!({"tls": tls()});
    settings["health"] = health(&json!({"status": ["404"]}));
    let (gateway, _listen) = gateway(&site, &[secure], settings)?;
    assert_eq!(condition(&gateway, secure, "unhealthy")?, "answered 200");
    Ok(())
}
