//! The bounds of clients' connections through the real binary: how many of one source, how old, how slow. Each test
//! sends what goes beyond a bound, and what stays just within it.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::Context;
use harness::client::Client;
use harness::gateway::Gateway;
use harness::http2::{Frame, Http2, block, flag, kind, reason, request};
use harness::origin::Reply;
use harness::site::{PATIENCE, Site};
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// A gateway with two workers that answers by itself.
fn gateway<'s>(site: &'s Site, settings: &Value) -> Result<(Gateway<'s>, SocketAddr)> {
    let listen = site.free_address()?;
    let mut config = json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 2,
        "kernel": {"attach": "off"},
        "routes": [{"match": {"path": "/{rest*}"}, "respond": {"body": "ok"}}],
    });
    let (config_keys, settings) = (config.as_object_mut(), settings.as_object());
    let (config_keys, settings) = config_keys.zip(settings).context("no objects")?;
    for (key, value) in settings {
        config_keys.insert(key.clone(), value.clone());
    }
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    Ok((gateway, listen))
}

fn count(gateway: &Gateway<'_>, pointer: &str) -> Result<u64> {
    let status = gateway.status()?;
    let count = status.pointer(&format!("/proxy/{pointer}")).and_then(Value::as_u64);
    count.with_context(|| format!("no {pointer} in {status}"))
}

fn refused(gateway: &Gateway<'_>) -> Result<u64> {
    count(gateway, "connections/refused/connections_per_source")
}

/// Whether a connection is served, after sending `begin`.
fn is_served(client: &mut Client, begin: &[u8]) -> bool {
    client.send(begin).is_ok() && client.get("/").is_ok_and(|answer| answer.status == 200)
}

#[test]
fn a_source_has_no_more_than_its_connections_in_all_workers() -> Result {
    const MAX: usize = 5;
    let site = Site::new()?;
    let bounds =
        json!({"bounds": {"connections_per_source": MAX}, "trusted_proxies": ["127.0.0.9"]});
    let (gateway, listen) = gateway(&site, &bounds)?;
    let source = |last: u8| Some(IpAddr::from([127, 0, 0, last]));
    let mut served: Vec<Client> = Vec::new();
    for turn in 0..20u64 {
        let mut client = site.connect(source(2), listen)?;
        let is_served = is_served(&mut client, b"");
        assert_eq!(is_served, served.len() < MAX, "connection {turn}");
        if is_served {
            served.push(client);
        }
    }
    assert_eq!(refused(&gateway)?, 15);
    // Another source, and whoever must not be blocked: a trusted proxy, an address of the host.
    for (last, wanted) in [(3, MAX), (9, 20), (1, 20)] {
        let clients = (0..20).map(|_| site.connect(source(last), listen));
        let mut clients = clients.collect::<Result<Vec<_>>>()?;
        let served = clients.iter_mut().filter_map(|client| is_served(client, b"").then_some(()));
        assert_eq!(served.count(), wanted, "127.0.0.{last}");
    }
    // Who leaves makes room.
    served.pop();
    wait_for("room for one more", PATIENCE, || {
        Ok(is_served(&mut site.connect(source(2), listen)?, b"").then_some(()))
    })
}

#[test]
fn behind_the_proxy_protocol_the_source_is_the_client() -> Result {
    let site = Site::new()?;
    let listen = site.free_address()?;
    let (gateway, listen) = gateway(&site, &json!({
        "listen": [{"address": listen.to_string(), "proxy_protocol": {"from": ["127.0.0.4/32"]}}],
        "bounds": {"connections_per_source": 2},
    }))
    .map(|(gateway, _)| (gateway, listen))?;
    let mut held = Vec::new();
    for (client, wanted) in [
        ("TCP4 192.0.2.7 198.51.100.1", 2),
        ("TCP4 192.0.2.8 198.51.100.1", 2),
        ("TCP6 2001:db8::7 2001:db8::1", 2),
        // The same network.
        ("TCP6 2001:db8::8 2001:db8::1", 0),
    ] {
        let header = format!("PROXY {client} 1 443\r\n");
        let mut served = 0;
        for _ in 0..4 {
            let mut client = site.connect(Some(IpAddr::from([127, 0, 0, 4])), listen)?;
            served += u32::from(is_served(&mut client, header.as_bytes()));
            held.push(client);
        }
        assert_eq!(served, wanted, "{client}");
    }
    assert_eq!(refused(&gateway)?, 10);
    Ok(())
}

#[test]
fn a_connection_ends_with_the_last_of_its_requests() -> Result {
    let site = Site::new()?;
    let (_gateway, listen) = gateway(&site, &json!({"bounds": {"connection_requests": 3}}))?;
    let mut client = site.connect(None, listen)?;
    client.send(&b"GET / HTTP/1.1\r\nhost: h\r\n\r\n".repeat(4))?;
    for (request, future) in [(1, None), (2, None), (3, Some("close"))] {
        let answer = client.receive()?;
        assert_eq!((answer.status, answer.header("connection")), (200, future), "{request}");
    }
    assert_eq!(client.read_to_end()?, b"", "the fourth is for another connection");

    let mut client = site.enter(|| Http2::connect(listen, &[], PATIENCE))??;
    client.frames(&[1, 3, 5].map(|stream| Frame::get(stream, "/")))?;
    assert_last_words(&mut client, 3)
}

/// That the client is told to go without blame, that so many answers come, and then the end.
fn assert_last_words(client: &mut Http2, answers: usize) -> Result {
    let (mut goodbyes, mut heads) = (Vec::new(), 0);
    while let Some(frame) = client.receive()? {
        match frame.kind {
            kind::GOAWAY => goodbyes.push(frame.reason()),
            kind::HEADERS => heads += 1,
            kind::PING => client.frames(&[Frame::new(kind::PING, 1, 0, frame.payload)])?,
            _ => {}
        }
    }
    assert!(goodbyes.contains(&Some(reason::NO_ERROR)), "{goodbyes:?}");
    assert!(goodbyes.iter().all(|why| *why == Some(reason::NO_ERROR)), "{goodbyes:?}");
    assert_eq!(heads, answers);
    Ok(())
}

#[test]
fn a_connection_that_is_old_ends_without_losing_a_request() -> Result {
    let site = Site::new()?;
    let bounds = json!({"bounds": {"connection_lifetime": "500ms"}});
    let (_gateway, listen) = gateway(&site, &bounds)?;
    let mut client = site.connect(None, listen)?;
    let mut other = site.enter(|| Http2::connect(listen, &[], PATIENCE))??;
    other.frames(&[Frame::get(1, "/")])?;
    wait_for("the last answer", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(20));
        let answer = client.get("/")?;
        assert_eq!(answer.status, 200);
        Ok(answer.header("connection").map(|future| assert_eq!(future, "close")))
    })?;
    assert_eq!(client.read_to_end()?, b"");
    assert_last_words(&mut other, 1)
}

/// A service that reads whole requests, and what stands before it with two seconds for pauses.
fn in_front_of_a_service(endpoint: SocketAddr) -> Value {
    json!({
        "bounds": {"idle_timeout": "2s", "body_bytes": "1KiB", "body_bytes_per_second": 100},
        "upstreams": {"service": {"endpoints": [endpoint.to_string()]}},
        "routes": [
            {"match": {"path": "/{rest*}"}, "upstream": "service"},
            {"match": {"path": "/large"}, "upstream": "service", "body_bytes": "4KiB"},
        ],
    })
}

#[test]
fn a_body_that_drips_is_408_and_one_that_keeps_the_rate_is_not() -> Result {
    const EVERY: Duration = Duration::from_millis(100);
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "ok"))?;
    let (gateway, listen) = gateway(&site, &in_front_of_a_service(origin.address))?;
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nhost: h\r\n{fields}\r\n\r\n");
    let chunks = post("transfer-encoding: chunked");
    for (head, piece) in [(post("content-length: 1000"), "x"), (chunks.clone(), "1\r\nx\r\n")] {
        let mut client = site.connect(None, listen)?;
        client.send(head.as_bytes())?;
        let before = count(&gateway, "requests/errors/request_timeout")?;
        let mut sent = 0;
        while sent < 500 && client.send(piece.as_bytes()).is_ok() {
            sent += 1;
            std::thread::sleep(EVERY);
            if count(&gateway, "requests/errors/request_timeout")? > before {
                break;
            }
        }
        assert!((5..500).contains(&sent), "{sent} pieces of {piece:?}");
        assert_eq!(client.receive()?.status, 408, "{piece:?}");
    }
    assert_eq!(count(&gateway, "requests/errors/request_timeout")?, 2);

    // Five times as many bytes as must be, for longer than the pauses that there may be.
    let mut client = site.connect(None, listen)?;
    client.send(chunks.as_bytes())?;
    for _ in 0..20 {
        client.send(format!("32\r\n{}\r\n", "x".repeat(50)).as_bytes())?;
        std::thread::sleep(EVERY);
    }
    client.send(b"0\r\n\r\n")?;
    assert_eq!(client.receive()?.status, 200);

    let mut client = site.enter(|| Http2::connect(listen, &[], PATIENCE))??;
    client.frames(&[Frame::headers(1, false, &request("POST", "/"))])?;
    let before = count(&gateway, "requests/errors/request_timeout")?;
    wait_for("408", PATIENCE * 4, || {
        client.frames(&[Frame::new(kind::DATA, 0, 1, *b"x")])?;
        std::thread::sleep(EVERY);
        let after = count(&gateway, "requests/errors/request_timeout")?;
        Ok((after > before).then_some(()))
    })?;
    assert!(!client.is_fine(1)?);

    // Messages come when there are any.
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let fields = [&request("POST", "/")[..], &grpc].concat();
    client.frames(&[Frame::headers(3, false, &fields)])?;
    for _ in 0..30 {
        client.frames(&[Frame::new(kind::DATA, 0, 3, *b"x")])?;
        std::thread::sleep(EVERY);
    }
    client.frames(&[Frame::new(kind::DATA, flag::END_STREAM, 3, [])])?;
    assert!(client.is_fine(3)?);
    Ok(())
}

#[test]
fn a_reader_that_makes_room_byte_by_byte_is_cut_off() -> Result {
    /// SETTINGS_INITIAL_WINDOW_SIZE.
    const WINDOW: u16 = 4;
    let site = Site::new()?;
    let origin =
        site.origin(|_| Reply::Bytes([b"HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 9000][..]].concat()))?;
    let (gateway, listen) = gateway(&site, &in_front_of_a_service(origin.address))?;
    let mut client = site.enter(|| Http2::connect(listen, &[(WINDOW, 1)], PATIENCE))??;
    client.frames(&[Frame::get(1, "/")])?;
    wait_for("the end of its patience", PATIENCE * 4, || {
        client.frames(&[Frame::window_update(1, 1)])?;
        std::thread::sleep(Duration::from_millis(100));
        Ok((count(&gateway, "connections/readers_timed_out")? > 0).then_some(()))
    })?;
    let end = client.wait(|frame| frame.kind == kind::RST_STREAM)?;
    assert_eq!(end.stream, 1);
    // The connection lives, and so does a reader that is quick.
    client.frames(&[Frame::get(3, "/"), Frame::window_update(3, 100_000)])?;
    assert!(client.is_fine(3)?);
    client.wait(|frame| frame.stream == 3 && frame.flags & flag::END_STREAM != 0)?;
    Ok(())
}

#[test]
fn a_reader_over_http1_that_drips_is_cut_off_and_one_that_keeps_the_rate_is_not() -> Result {
    const BODY: usize = 4 << 20;
    require_root()?;
    let site = Site::new()?;
    // So that the kernel takes no more for a client than that one reads.
    let small = "net.ipv4.tcp_wmem=4096 4096 4096";
    assert!(site.run("sysctl", &["-w", small])?.status.success());
    let origin = site.origin(|_| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n");
        Reply::Bytes([head.into_bytes(), vec![b'x'; BODY]].concat())
    })?;
    let (gateway, listen) = gateway(
        &site,
        &json!({
            "bounds": {"idle_timeout": "2s", "body_bytes_per_second": 100_000},
            "upstreams": {"service": {"endpoints": [origin.address.to_string()]}},
            "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
        }),
    )?;
    let connect = || -> Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_recv_buffer_size(4096)?;
        socket.connect(&listen.into())?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")?;
        Ok(stream)
    };
    let mut slow = site.enter(connect)??;
    let (mut piece, mut read) = ([0; 200], 0);
    // Ten thousand bytes a second, and never a pause that would be one of `idle_timeout`.
    while read < BODY {
        match slow.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(length) => read += length,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(read < BODY / 4, "{read} bytes");
    assert_eq!(count(&gateway, "connections/readers_timed_out")?, 1);

    let mut quick = Vec::new();
    site.enter(connect)??.read_to_end(&mut quick)?;
    assert!(quick.len() > BODY, "{} bytes", quick.len());
    assert_eq!(count(&gateway, "connections/readers_timed_out")?, 1);
    Ok(())
}

#[test]
fn a_route_has_a_bound_of_its_own_for_bodies() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "ok"))?;
    let (gateway, listen) = gateway(&site, &in_front_of_a_service(origin.address))?;
    for (path, length, status) in
        [("/", 1024, 200), ("/", 1025, 413), ("/large", 4096, 200), ("/large", 4097, 413)]
    {
        for framing in ["content-length", "transfer-encoding"] {
            let body = "x".repeat(length);
            let (value, body) = match framing {
                "content-length" => (length.to_string(), body),
                _ => ("chunked".to_owned(), format!("{length:x}\r\n{body}\r\n0\r\n\r\n")),
            };
            let mut client = site.connect(None, listen)?;
            let head = format!("POST {path} HTTP/1.1\r\nhost: h\r\n{framing}: {value}\r\n\r\n");
            client.send([head, body].concat().as_bytes())?;
            assert_eq!(client.receive()?.status, status, "{path}: {length} by {framing}");
        }
    }
    assert_eq!(count(&gateway, "requests/errors/body_too_large")?, 4);

    let mut config = in_front_of_a_service(origin.address);
    config["listen"] = json!([{"address": listen.to_string()}]);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("gateway.yaml");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    std::fs::write(&file, config.to_string())?;
    let file = file.to_str().context("no text")?;
    for (path, name, bytes) in
        [("/", "bounds.body_bytes", "1024"), ("/large", "body_bytes", "4096")]
    {
        let url = format!("http://test{path}");
        let found = gateway.cli(&["explain", file, "POST", &url, "--json"])?.ok()?.json()?;
        let policies = found["policies"].as_array().context("no policies")?;
        let about_bodies = |policy: &&Value| {
            policy["name"].as_str().is_some_and(|name| name.ends_with("body_bytes"))
        };
        let shown: Vec<_> = policies.iter().filter(about_bodies).collect();
        assert_eq!(shown, [&json!({"name": name, "value": bytes})], "{path}");
    }
    Ok(())
}

#[test]
fn streams_that_nobody_saw_are_counted_by_reason() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Hang)?;
    let (gateway, listen) = gateway(
        &site,
        &json!({
            "bounds": {"streams": 1, "head_bytes": "8KiB"},
            "upstreams": {"service": {"endpoints": [origin.address.to_string()]}},
            "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
        }),
    )?;
    let connect = || site.enter(|| Http2::connect(listen, &[], PATIENCE))?;
    let reset = |client: &mut Http2, stream| {
        client.wait(|frame| frame.kind == kind::RST_STREAM && frame.stream == stream)
    };
    let mut client = connect()?;
    client.frames(&[1, 3, 5].map(|stream| Frame::get(stream, "/")))?;
    assert_eq!(reset(&mut client, 5)?.reason(), Some(reason::REFUSED_STREAM));

    let mut client = connect()?;
    let bad = [&request("GET", "/")[..], &[("connection", "close")]].concat();
    client.frames(&[Frame::headers(1, true, &bad)])?;
    assert_eq!(reset(&mut client, 1)?.reason(), Some(reason::PROTOCOL_ERROR));

    let mut client = connect()?;
    let long = "x".repeat(8 << 10);
    let fields = [("a", long.as_str()), ("b", &long), ("c", &long), ("d", &long)];
    let head = block(&[&request("GET", "/")[..], &fields[..1]].concat());
    let (rest, last) = (block(&fields[1..3]), block(&fields[3..]));
    client.frames(&[
        Frame::new(kind::HEADERS, 0, 1, head),
        Frame::new(kind::CONTINUATION, 0, 1, rest.get(..16_000).context("too short")?),
        Frame::new(kind::CONTINUATION, 0, 1, rest.get(16_000..).context("too short")?),
        Frame::new(kind::CONTINUATION, flag::END_HEADERS, 1, last),
    ])?;
    assert!(!client.is_fine(1)?);
    wait_for("all of them", PATIENCE, || {
        let counts = ["too_many", "protocol_error", "head_too_large"]
            .map(|reason| count(&gateway, &format!("connections/streams_refused/{reason}")).ok());
        Ok((counts == [Some(2), Some(1), Some(1)]).then_some(()))
    })
}
