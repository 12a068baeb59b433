//! HTTP/2 through the real binary: clients as they come in packages, and clients that send frames as no honest one
//! does.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use gateway::http::h1::upgrade::accept;
use harness::gateway::Gateway;
use harness::http2::{Frame, Http2, block, flag, kind, reason, remembered, request};
use harness::origin::{Reply, Request};
use harness::site::Site;
use harness::{Result, read_once, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// SETTINGS_INITIAL_WINDOW_SIZE.
const WINDOW: u16 = 4;

/// A gateway in front of `endpoint`, and where it listens.
fn gateway<'s>(site: &'s Site, endpoint: &str, bounds: Value) -> Result<(Gateway<'s>, SocketAddr)> {
    let listen = site.free_address()?;
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "bounds": bounds,
        "upstreams": {"service": {
            "endpoints": [endpoint],
            "timeout": {"connect": "500ms", "response": "10s"},
        }},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
        "access_log": {
            "path": "stderr",
            "format": "{method} {path} {status} {error}, complete {complete}",
        },
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    Ok((gateway, listen))
}

fn connect(site: &Site, target: SocketAddr, settings: &[(u16, u32)]) -> Result<Http2> {
    site.enter(|| Http2::connect(target, settings, PATIENCE))?
}

/// What curl says over HTTP/2.
fn curl(site: &Site, arguments: &[&str]) -> Result<String> {
    let output = site.curl(&[&["--http2-prior-knowledge"], arguments].concat())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How many connections have failed for this reason.
fn failed(gateway: &Gateway<'_>, reason: &str) -> Result<u64> {
    let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
    let name = format!("gateway_connections_failed_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    value.with_context(|| format!("no {name}"))?.parse().context("not a number")
}

fn wait_for_failed(gateway: &Gateway<'_>, reason: &str) -> Result {
    wait_for(reason, PATIENCE, || Ok((failed(gateway, reason)? > 0).then_some(())))
}

fn anything(_: &Request) -> Reply {
    Reply::Answer(200, "ok")
}

#[test]
fn curl_and_h2load_without_one_failure() -> Result {
    let site = Site::new()?;
    let (_gateway, listen) = gateway(&site, "echo", json!({}))?;
    let seen = curl(&site, &[&format!("http://{listen}/a?b"), "--header", "x-a: 1"])?;
    let seen: Value = serde_json::from_str(&seen)?;
    assert_eq!(seen["path"], "/a?b");
    let headers = seen["headers"].to_string();
    assert!(headers.contains(&format!("[\"host\",\"{listen}\"]")), "{headers}");
    assert!(!headers.contains("authority"), "{headers}");

    let upload = "x".repeat(3_000_000);
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), upload)?;
    let data = format!("@{}", file.path().display());
    let seen = curl(&site, &[&format!("http://{listen}/"), "--data-binary", &data])?;
    assert_eq!(serde_json::from_str::<Value>(&seen)?["body_bytes"], 3_000_000);

    let head = curl(&site, &["--head", &format!("http://{listen}/")])?;
    assert!(head.starts_with("HTTP/2 200"), "{head}");
    assert_eq!(head.matches("\ndate: ").count(), 1, "{head}");

    let url = format!("http://{listen}/");
    let output = site.run("h2load", &["-n", "2000", "-c", "8", "-m", "32", &url])?;
    let report = String::from_utf8(output.stdout)?;
    assert!(report.contains("2000 succeeded, 0 failed"), "{report}");
    Ok(())
}

#[test]
fn the_service_sees_one_host_and_one_cookie() -> Result {
    let site = Site::new()?;
    let origin = site.origin(anything)?;
    let (_gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    let mut client = connect(&site, listen, &[])?;
    let fields =
        [&request("POST", "/a")[..], &[("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")]];
    client.frames(&[
        Frame::headers(1, false, &fields.concat()),
        Frame::new(kind::DATA, 0, 1, *b"he"),
        Frame::new(kind::DATA, flag::END_STREAM, 1, *b"re"),
    ])?;
    assert!(client.is_fine(1)?);
    let seen = origin.requests();
    let [seen] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(seen.line, "POST /a HTTP/1.1");
    assert_eq!(seen.header("host"), Some("test"));
    assert_eq!(seen.header("cookie"), Some("a=1; b=2"));
    assert_eq!(seen.header("te"), None);
    Ok(())
}

#[test]
fn what_can_be_read_in_two_ways_never_reaches_a_service() -> Result {
    let site = Site::new()?;
    let origin = site.origin(anything)?;
    let (gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    let get = request("GET", "/");
    let with = |fields: &[(&'static str, &'static str)]| [&get[..], fields].concat();
    let as_asked = |fields: [(&'static str, &'static str); 3]| {
        let [method, authority, path] = fields;
        vec![method, (":scheme", "http"), authority, path]
    };
    let (method, authority, path) = ((":method", "GET"), (":authority", "test"), (":path", "/"));
    let bad = [
        with(&[("host", "other")]),
        with(&[("host", "test"), ("host", "test")]),
        with(&[("connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("te", "gzip")]),
        with(&[("upgrade", "websocket")]),
        with(&[("Upper", "case")]),
        with(&[("content-length", "5")]),
        with(&[("content-length", "0"), ("content-length", "1")]),
        with(&[("a", "b\r\nc: d")]),
        with(&[(":late", "pseudo")]),
        with(&[("a", "b\nc: d")]),
        with(&[("a", "b\rc: d")]),
        with(&[("a", "b\0")]),
        with(&[("a: b", "c")]),
        with(&[("a b", "c")]),
        with(&[("a\r\nb", "c")]),
        with(&[("", "c")]),
        with(&[("keep-alive", "5")]),
        with(&[("proxy-connection", "close")]),
        with(&[("content-length", "+0")]),
        with(&[("content-length", "0, 0")]),
        with(&[(":path", "/admin")]),
        with(&[(":protocol", "websocket")]),
        vec![method, (":scheme", "http"), path],
        as_asked([method, (":authority", "u@test"), path]),
        as_asked([method, (":authority", "test\r\nx: y"), path]),
        as_asked([method, (":authority", "test/admin"), path]),
        as_asked([method, authority, (":path", "//")]),
        as_asked([method, authority, (":path", "")]),
        as_asked([method, authority, (":path", "*")]),
        as_asked([method, authority, (":path", "/ HTTP/1.1\r\nx: y")]),
        as_asked([method, authority, (":path", "/a b")]),
        as_asked([method, authority, (":path", "http://other/")]),
        as_asked([(":method", "GET / HTTP/1.1\r\nx: y"), authority, path]),
        as_asked([(":method", "CONNECT"), authority, path]),
    ];
    for fields in bad {
        let mut client = connect(&site, listen, &[])?;
        client.frames(&[Frame::headers(1, true, &fields)])?;
        let answer = client
            .wait(|frame| matches!(frame.kind, kind::HEADERS | kind::RST_STREAM | kind::GOAWAY));
        let answer = answer.with_context(|| format!("{fields:?}"))?;
        assert!(answer.kind != kind::HEADERS || answer.payload[0] != 0x88, "{fields:?}");
    }
    assert_eq!(origin.requests().len(), 0, "{:?}", origin.requests());
    assert_eq!(gateway.status()?["kernel"]["enforcing"], json!(false), "it still answers");
    Ok(())
}

#[test]
fn a_body_that_is_longer_or_shorter_than_its_head_says_never_reaches_a_service() -> Result {
    let site = Site::new()?;
    let origin = site.origin(anything)?;
    let (_gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    for (length, body) in [("3", "abcGET /smuggled HTTP/1.1\r\nhost: test\r\n\r\n"), ("9", "abc")] {
        let mut client = connect(&site, listen, &[])?;
        let fields = [&request("POST", "/")[..], &[("content-length", length)]].concat();
        client.frames(&[
            Frame::headers(1, false, &fields),
            Frame::new(kind::DATA, flag::END_STREAM, 1, body.as_bytes()),
        ])?;
        let answer = client.wait(|frame| matches!(frame.kind, kind::RST_STREAM | kind::GOAWAY));
        answer.with_context(|| format!("{length} {body}"))?;
    }
    assert_eq!(origin.requests().len(), 0, "{:?}", origin.requests());
    Ok(())
}

#[test]
fn more_streams_than_bounded_are_refused() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Hang)?;
    let (_gateway, listen) = gateway(&site, &origin.address.to_string(), json!({"streams": 4}))?;
    let mut client = connect(&site, listen, &[])?;
    client.frames(&(0..5).map(|n| Frame::get(2 * n + 1, "/")).collect::<Vec<_>>())?;
    let refused = client.wait(|frame| frame.kind == kind::RST_STREAM)?;
    assert_eq!((refused.stream, refused.reason()), (9, Some(reason::REFUSED_STREAM)));
    Ok(())
}

#[test]
fn rapid_reset_ends_the_connection_and_is_counted() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Hang)?;
    let (gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    // All at once, before anybody looks at them; and one by one, each after it was looked at.
    for pause in [Duration::ZERO, Duration::from_millis(2)] {
        let before = failed(&gateway, "flood")?;
        let mut client = connect(&site, listen, &[])?;
        for number in 0..5_000 {
            let stream = 2 * number + 1;
            let pair = [Frame::get(stream, "/"), Frame::reset(stream, reason::CANCEL)];
            if client.frames(&pair).is_err() || failed_since(&gateway, before, number)? {
                break;
            }
            std::thread::sleep(pause);
        }
        wait_for("the end", PATIENCE, || {
            Ok((failed(&gateway, "flood")? == before + 1).then_some(()))
        })?;
        assert!(origin.requests().len() < 500, "{}", origin.requests().len());
    }
    Ok(())
}

/// Looks only now and then: asking is slow.
fn failed_since(gateway: &Gateway<'_>, before: u64, number: u32) -> Result<bool> {
    Ok(number % 500 == 499 && failed(gateway, "flood")? > before)
}

#[test]
fn honest_clients_may_give_up() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|request| {
        if request.line.contains("hang") { Reply::Hang } else { Reply::Answer(200, "ok") }
    })?;
    let (gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    let mut client = connect(&site, listen, &[])?;
    for number in 0..300 {
        let stream = 4 * number + 1;
        client.frames(&[Frame::get(stream, "/hang"), Frame::get(stream + 2, "/")])?;
        assert!(client.is_fine(stream + 2)?);
        client.frames(&[Frame::reset(stream, reason::CANCEL)])?;
    }
    assert_eq!(failed(&gateway, "flood")?, 0);
    wait_for("the end of all requests", PATIENCE, || {
        let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
        Ok(metrics.contains("\ngateway_requests_active 0\n").then_some(()))
    })
}

#[test]
fn streams_that_a_client_has_the_gateway_reset_are_bounded() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Hang)?;
    let (gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    let mut client = connect(&site, listen, &[])?;
    for number in 0..1_000 {
        let stream = 2 * number + 1;
        // A window that grows too large is an error of the stream (RFC 9113, section 6.9.1).
        let pair = [Frame::get(stream, "/"), Frame::window_update(stream, 0x7fff_ffff)];
        if client.frames(&pair).is_err() {
            break;
        }
    }
    wait_for_failed(&gateway, "flood")?;
    assert!(origin.requests().len() < 500, "{}", origin.requests().len());
    Ok(())
}

#[test]
fn floods_of_frames_that_ask_for_nothing_end() -> Result {
    let site = Site::new()?;
    let (gateway, listen) = gateway(&site, "echo", json!({}))?;
    let flood = [
        Frame::new(kind::PING, 0, 0, [7; 8]),
        Frame::settings(&[(WINDOW, 70_000)]),
        Frame::settings(&[]),
        Frame::window_update(0, 1),
        Frame::new(2, 0, 1, [0; 5]),
        Frame::new(0xbe, 0, 0, []),
    ];
    for frame in flood {
        let before = failed(&gateway, "flood")?;
        let mut client = connect(&site, listen, &[])?;
        let many = vec![frame.clone(); 500];
        for _ in 0..100 {
            if client.frames(&many).is_err() {
                break;
            }
        }
        wait_for(&format!("the end of {frame:?}"), PATIENCE, || {
            Ok((failed(&gateway, "flood")? == before + 1).then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn a_head_without_end_ends() -> Result {
    let site = Site::new()?;
    let (gateway, listen) = gateway(&site, "echo", json!({"head_timeout": "1s"}))?;
    let mut client = connect(&site, listen, &[])?;
    client.frames(&[Frame::new(kind::HEADERS, 0, 1, block(&request("GET", "/")))])?;
    let more = Frame::new(kind::CONTINUATION, 0, 1, block(&[("a", &"b".repeat(1000))]));
    let mut sent = 0;
    while client.frames(std::slice::from_ref(&more)).is_ok() && sent < 10_000 {
        sent += 1;
    }
    assert!(sent < 10_000, "no end after {sent} kB");
    wait_for_failed(&gateway, "flood")?;

    let mut silent = connect(&site, listen, &[])?;
    silent.frames(&[Frame::new(kind::HEADERS, 0, 1, [])])?;
    assert_eq!(silent.goodbye()?, None);
    assert_eq!(failed(&gateway, "head_timed_out")?, 1);
    Ok(())
}

/// curl of Debian 12 passes over an answer beside which it is told to stop sending.
#[test]
fn who_is_refused_may_send_the_body_to_its_end() -> Result {
    let site = Site::new()?;
    let origin = site.origin(anything)?;
    let (_gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    let mut client = connect(&site, listen, &[])?;
    let refused = [&request("POST", "/")[..], &[("host", "other")]].concat();
    client.frames(&[Frame::headers(1, false, &refused)])?;
    client.wait(|frame| frame.stream == 1 && frame.flags & flag::END_STREAM != 0)?;
    client.frames(&[
        Frame::new(kind::DATA, flag::END_STREAM, 1, b"late"),
        Frame::headers(3, true, &request("GET", "/")),
    ])?;
    let next = client.wait(|frame| {
        frame.kind == kind::RST_STREAM || frame.kind == kind::HEADERS && frame.stream == 3
    })?;
    assert_eq!((next.kind, next.stream), (kind::HEADERS, 3), "{next:?}");
    // Who goes on for ever is told to stop.
    client.frames(&[Frame::headers(5, false, &refused)])?;
    let stopped = client.wait(|frame| frame.kind == kind::RST_STREAM)?;
    assert_eq!((stopped.stream, &stopped.payload[..]), (5, &[0; 4][..]), "{stopped:?}");
    Ok(())
}

#[test]
fn a_head_larger_than_bounded_is_refused() -> Result {
    let site = Site::new()?;
    let origin = site.origin(anything)?;
    let bounds = json!({"head_bytes": "8KiB", "header_count": 10});
    let (gateway, listen) = gateway(&site, &origin.address.to_string(), bounds)?;
    let mut client = connect(&site, listen, &[])?;
    let (large, huge) = ("b".repeat(8 << 10), "b".repeat(32 << 10));
    let names: Vec<String> = (0..20).map(|number| format!("x-{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let most =
        "b".repeat((8 << 10) - 4 * 32 - ":methodGET:schemehttp:authoritytest:path/".len() - 33);
    let get = request("GET", "/");
    for (stream, fields, is_fine, is_explained) in [
        (1, &[("a", most.as_str())][..], true, false),
        (3, &[("a", &format!("{most}b"))], false, true),
        (5, &[("a", &large)], false, true),
        (7, &many, false, true),
        (9, &[("a", &huge)], false, false),
        (11, &[], true, false),
    ] {
        let head = block(&[&get[..], fields].concat());
        // The longest does not fit into one frame.
        let (first, rest) = head.split_at(head.len().min(16_000));
        let flags = flag::END_STREAM | if rest.is_empty() { flag::END_HEADERS } else { 0 };
        client.frames(&[Frame::new(kind::HEADERS, flags, stream, first)])?;
        let pieces = rest.chunks(16_000).collect::<Vec<_>>();
        for (number, piece) in pieces.iter().enumerate() {
            let flags = if number + 1 == pieces.len() { flag::END_HEADERS } else { 0 };
            client.frames(&[Frame::new(kind::CONTINUATION, flags, stream, *piece)])?;
        }
        assert_eq!(client.is_fine(stream)?, is_fine, "{stream}");
        if is_explained {
            let answer =
                client.wait(|frame| frame.kind == kind::DATA && !frame.payload.is_empty())?;
            let problem: Value = serde_json::from_slice(&answer.payload)?;
            assert_eq!((&problem["status"], answer.stream), (&json!(431), stream), "{problem}");
        }
    }
    assert_eq!(origin.requests().len(), 2, "the connection goes on, and nobody else heard of it");
    let errors = &gateway.status()?["proxy"]["requests"]["errors"];
    assert_eq!(errors["head_too_large"], json!(4), "{errors}");
    let status = gateway.status()?;
    assert_eq!(status["proxy"]["requests"]["active"], json!(0), "{status}");
    for (asked, count) in [("GET /", 3), ("- -", 1)] {
        wait_for("what was refused in the access log", PATIENCE, || {
            let line = format!("{asked} 431 head_too_large, complete true");
            Ok((gateway.log().matches(&line).count() == count).then_some(()))
        })
        .with_context(|| gateway.log())?;
    }
    Ok(())
}

#[test]
fn a_target_is_held_to_what_it_is_over_http1() -> Result {
    let site = Site::new()?;
    let origin = site.origin(anything)?;
    let bounds = json!({"target_bytes": "1KiB"});
    let (gateway, listen) = gateway(&site, &origin.address.to_string(), bounds)?;
    let mut client = connect(&site, listen, &[])?;
    let (most, long) = (format!("/{}", "x".repeat(1023)), format!("/{}", "x".repeat(1024)));
    for (stream, path, status) in
        [(1, &*most, 200), (3, &*long, 414), (5, "/\u{e9}", 400), (7, "/?\u{e9}", 400)]
    {
        client.frames(&[Frame::get(stream, path)])?;
        if status == 200 {
            assert!(client.is_fine(stream)?);
            continue;
        }
        let is_told = |frame: &Frame| frame.stream == stream && frame.kind == kind::DATA;
        let problem: Value = serde_json::from_slice(&client.wait(is_told)?.payload)?;
        assert_eq!(problem["status"], json!(status), "{path}");
    }
    let seen = origin.requests();
    assert_eq!(seen.len(), 1, "{seen:?}");
    let errors = &gateway.status()?["proxy"]["requests"]["errors"];
    let counted = (&errors["target_too_long"], &errors["bad_request"]);
    assert_eq!(counted, (&json!(1), &json!(2)), "{errors}");
    for line in [&format!("GET {long} 414"), r"GET /\xc3\xa9 400 ", "GET / 400 "] {
        wait_for("what was refused in the access log", PATIENCE, || {
            Ok(gateway.log().contains(line).then_some(()))
        })
        .with_context(|| format!("no `{line}` in {}", gateway.log()))?;
    }
    Ok(())
}

#[test]
fn only_who_is_believed_may_have_ended_tls() -> Result {
    let site = Site::new()?;
    let origin = site.origin(anything)?;
    let (gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(gateway.config())?)?;
    config["trusted_proxies"] = json!(["127.0.0.2"]);
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    let mut fields = request("GET", "/");
    fields[1] = (":scheme", "https");
    for (source, is_believed) in [("127.0.0.1", false), ("127.0.0.2", true)] {
        let mut client =
            site.enter(|| Http2::connect_from(source.parse()?, listen, &[], PATIENCE))??;
        client.frames(&[Frame::headers(1, true, &fields)])?;
        assert_eq!(client.is_fine(1)?, is_believed, "{source}");
    }
    assert_eq!(origin.requests().len(), 1);
    Ok(())
}

#[test]
fn who_is_refused_is_never_told_to_continue() -> Result {
    let site = Site::new()?;
    let origin = site.origin(anything)?;
    let bounds = json!({"body_bytes": "1KiB"});
    let (_gateway, listen) = gateway(&site, &origin.address.to_string(), bounds)?;
    let mut client = connect(&site, listen, &[])?;
    let post = |path, expect, length| {
        let fields = [("expect", expect), ("content-length", length)];
        [&request("POST", path)[..], &fields].concat()
    };
    for (stream, path, expect, length) in [
        (1, "/", "100-continue", "2000"),
        (3, "/a/../b", "100-continue", "4"),
        (5, "/", "something else", "4"),
    ] {
        client.frames(&[Frame::headers(stream, false, &post(path, expect, length))])?;
        let mut heads = 0;
        loop {
            let frame = client.wait(|frame| frame.stream == stream)?;
            heads += u32::from(frame.kind == kind::HEADERS);
            if frame.ends_stream() {
                break;
            }
        }
        assert_eq!(heads, 1, "{path} {expect} {length}");
    }
    client.frames(&[Frame::headers(7, false, &post("/", "100-Continue", "4"))])?;
    assert!(!client.is_fine(7)?, "leave comes first");
    client.frames(&[Frame::new(kind::DATA, flag::END_STREAM, 7, *b"body")])?;
    assert!(client.is_fine(7)?);
    let seen = origin.requests();
    let [seen] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!((&seen.body[..], seen.header("expect")), (&b"body"[..], None));
    Ok(())
}

#[test]
fn small_heads_that_grow_and_readers_that_do_not_read_hold_little_for_a_while() -> Result {
    let site = Site::new()?;
    let origin = site.origin(anything)?;
    let (gateway, listen) =
        gateway(&site, &origin.address.to_string(), json!({"idle_timeout": "1s"}))?;
    let before = gateway.resident_kib()?;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = connect(&site, listen, &[(WINDOW, 0)])?;
        let first = [block(&request("GET", "/")), remembered("a", &"b".repeat(4_000))].concat();
        let flags = flag::END_HEADERS | flag::END_STREAM;
        client.frames(&[Frame::new(kind::HEADERS, flags, 1, first)])?;
        // Fourteen bytes that stand for 56 kB.
        let bomb = [block(&request("GET", "/")), vec![0x80 | 62; 14]].concat();
        let bombs = (1..128).map(|n| Frame::new(kind::HEADERS, flags, 2 * n + 1, &*bomb));
        client.frames(&bombs.collect::<Vec<_>>())?;
        clients.push(client);
    }
    wait_for("the end of all streams", PATIENCE, || {
        Ok((failed(&gateway, "reader_timed_out")? >= 8 * 128).then_some(()))
    })?;
    let grown = gateway.resident_kib()?.saturating_sub(before);
    assert!(grown < 200 << 10, "{grown} KiB for 1024 streams");
    let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
    assert!(metrics.contains("\ngateway_requests_active 0\n"), "{metrics}");
    Ok(())
}

#[test]
fn a_socket_that_is_not_read_holds_no_more_than_its_buffers() -> Result {
    const BODY: usize = 64 << 20;
    let site = Site::new()?;
    let origin = site.origin(|_| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n");
        Reply::Bytes([head.into_bytes(), vec![b'x'; BODY]].concat())
    })?;
    let (gateway, listen) =
        gateway(&site, &origin.address.to_string(), json!({"idle_timeout": "2s"}))?;
    let before = gateway.resident_kib()?;
    let mut client = connect(&site, listen, &[(WINDOW, 0x7fff_ffff)])?;
    client.frames(&[Frame::window_update(0, 0x7fff_0000), Frame::get(1, "/")])?;
    wait_for_failed(&gateway, "reader_timed_out")?;
    let grown = gateway.resident_kib()?.saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB for one reader");
    Ok(())
}

#[test]
fn draining_says_goodbye_and_finishes() -> Result {
    let site = Site::new()?;
    let (asked, may_answer) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (told, leave) = (Arc::clone(&asked), Arc::clone(&may_answer));
    let origin = site.origin(move |_| {
        told.store(true, Ordering::Relaxed);
        let leave = || Ok(leave.load(Ordering::Relaxed).then_some(()));
        wait_for("leave to answer", PATIENCE, leave).expect("the test goes on");
        Reply::Answer(200, "late")
    })?;
    let (mut gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    let mut client = connect(&site, listen, &[])?;
    client.frames(&[Frame::get(1, "/")])?;
    wait_for("the request", PATIENCE, || Ok(asked.load(Ordering::Relaxed).then_some(())))?;
    gateway.signal(nix::sys::signal::Signal::SIGTERM)?;
    let goodbye = client.wait(|frame| frame.kind == kind::GOAWAY)?;
    assert_eq!(goodbye.reason(), Some(reason::NO_ERROR));
    let ping = client.wait(|frame| frame.kind == kind::PING)?;
    client.frames(&[Frame::new(kind::PING, flag::ACK, 0, ping.payload)])?;
    may_answer.store(true, Ordering::Relaxed);
    let body = client.wait(|frame| frame.kind == kind::DATA && !frame.payload.is_empty())?;
    assert_eq!(body.payload, b"late");
    client.goodbye()?;
    gateway.ended()
}

#[test]
fn who_is_denied_is_cut_off() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Hang)?;
    let (gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    let mut client =
        site.enter(|| Http2::connect_from("127.0.0.2".parse()?, listen, &[], PATIENCE))??;
    client.frames(&[Frame::get(1, "/")])?;
    wait_for("the request", PATIENCE, || Ok((!origin.requests().is_empty()).then_some(())))?;
    gateway.cli(&["deny", "add", "127.0.0.2"])?.ok()?;
    assert_eq!(client.goodbye()?, None);
    Ok(())
}

#[test]
fn a_connection_without_streams_is_not_kept_for_ever() -> Result {
    let site = Site::new()?;
    let bounds = json!({"keep_alive_timeout": "1s"});
    let (_gateway, listen) = gateway(&site, "echo", bounds)?;
    let mut client = connect(&site, listen, &[])?;
    client.frames(&[Frame::get(1, "/")])?;
    assert!(client.is_fine(1)?);
    assert_eq!(client.goodbye()?, Some(reason::NO_ERROR));
    Ok(())
}

/// A service that is a program, ended with the test.
struct Program(Child);

impl Program {
    fn start(site: &Site, program: &str, arguments: &[&str], listens: SocketAddr) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let started = Self(site.enter(|| command.spawn())??);
        wait_for(program, PATIENCE, || {
            Ok(site.enter(|| TcpStream::connect(listens))?.is_ok().then_some(()))
        })?;
        Ok(started)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already ended, or ended by this.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

const GRPC_PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/grpc_peer.py");

fn grpc(site: &Site, arguments: &[&str]) -> Result {
    let output = site.run("/usr/bin/python3", &[&[GRPC_PEER], arguments].concat())?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "fine\n", "{output:?}");
    Ok(())
}

/// A gateway in front of a service that is asked over HTTP/2.
fn multiplexed<'s>(site: &'s Site, endpoint: &str) -> Result<(Gateway<'s>, SocketAddr)> {
    let listen = site.free_address()?;
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "upstreams": {"service": {"endpoints": [endpoint], "protocol": "h2"}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    Ok((gateway, listen))
}

#[test]
fn grpc_in_all_four_ways_with_deadlines_and_cancellation() -> Result {
    let site = Site::new()?;
    let address = site.free_address()?;
    let (gateway, listen) = multiplexed(&site, &address.to_string())?;
    grpc(&site, &["refused", &listen.to_string(), "UNAVAILABLE"])?;
    let serve = [GRPC_PEER, "serve", &address.to_string()];
    let service = Program::start(&site, "/usr/bin/python3", &serve, address)?;
    grpc(&site, &["call", &listen.to_string()])?;
    drop(service);
    grpc(&site, &["refused", &listen.to_string(), "UNAVAILABLE"])?;
    wait_for("the end of all requests", PATIENCE, || {
        let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
        Ok(metrics.contains("\ngateway_requests_active 0\n").then_some(()))
    })
}

#[test]
fn the_gateway_minds_the_timeout_of_grpc_itself() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Hang)?;
    let (_gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    let mut client = connect(&site, listen, &[])?;
    let fields = [("content-type", "application/grpc"), ("grpc-timeout", "300m")];
    let fields = [&request("POST", "/a.B/C")[..], &fields].concat();
    client.frames(&[Frame::headers(1, true, &fields)])?;
    let answer = client.wait(|frame| frame.kind == kind::HEADERS)?;
    assert_eq!(answer.payload.first(), Some(&0x88), "status 200");
    assert_ne!(answer.flags & flag::END_STREAM, 0, "and nothing behind it");
    Ok(())
}

#[test]
fn both_protocols_reach_a_service_that_speaks_http2() -> Result {
    let site = Site::new()?;
    let address = site.free_address()?;
    let folder = tempfile::tempdir()?;
    let large: Vec<u8> = (0..8_000_000u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(folder.path().join("large"), &large)?;
    std::fs::write(folder.path().join("small"), "small")?;
    let port = address.port().to_string();
    let root = folder.path().display().to_string();
    let arguments = ["--no-tls", "-a", "127.0.0.1", "-d", &root, "--echo-upload", &port];
    let _service = Program::start(&site, "nghttpd", &arguments, address)?;
    let (gateway, listen) = multiplexed(&site, &address.to_string())?;
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        let url = format!("http://{listen}/large");
        let output = site.curl(&[protocol, &url])?;
        assert!(output.stdout == large, "{protocol}: {} bytes", output.stdout.len());
        let head = site.curl(&[protocol, "--head", &url])?;
        let head = String::from_utf8(head.stdout)?;
        assert!(head.contains("content-length: 8000000"), "{head}");
        let missing =
            site.curl(&[protocol, "-o", "/dev/null", "-w", "%{http_code}", &url, "-d", "x"])?;
        assert_eq!(String::from_utf8(missing.stdout)?, "200");
        let data = format!("@{root}/large");
        let echoed =
            site.curl(&[protocol, "--data-binary", &data, &format!("http://{listen}/echo")])?;
        assert!(echoed.stdout == large, "{protocol}: {} bytes came back", echoed.stdout.len());
    }
    let url = format!("http://{listen}/small");
    for arguments in
        [&["-n", "2000", "-c", "8", "-m", "32"][..], &["--h1", "-n", "2000", "-c", "64"]]
    {
        let output = site.run("h2load", &[arguments, &[&url]].concat())?;
        let report = String::from_utf8(output.stdout)?;
        assert!(report.contains("2000 succeeded, 0 failed"), "{report}");
    }
    let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
    let opened = "gateway_upstream_connections_opened_total ";
    let opened = metrics.lines().find_map(|line| line.strip_prefix(opened)).context("no number")?;
    assert!(opened.parse::<u32>()? <= 4, "{opened} connections");
    Ok(())
}

#[test]
fn a_websocket_over_http2_is_one_over_http1_for_the_service() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|request| {
        let key = request.header("sec-websocket-key").unwrap_or_default();
        let accept = match request.line.as_str() {
            "GET /none HTTP/1.1" => String::new(),
            "GET /other HTTP/1.1" => format!("sec-websocket-accept: {}\r\n", accept(b"other")),
            _ => format!("sec-websocket-accept: {}\r\n", accept(key.as_bytes())),
        };
        let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket";
        Reply::Bytes(format!("{head}\r\n{accept}\r\nhello").into_bytes())
    })?;
    let (gateway, listen) = gateway(&site, &origin.address.to_string(), json!({}))?;
    let mut client = connect(&site, listen, &[])?;
    let fields = [(":protocol", "websocket"), ("sec-websocket-version", "13")];
    let chat = |path| [&request("CONNECT", path)[..], &fields].concat();
    // A service that does not know the key of the request has not agreed to it.
    for (stream, path) in [(3, "/none"), (5, "/other")] {
        let mut client = connect(&site, listen, &[])?;
        client.frames(&[Frame::headers(stream, false, &chat(path))])?;
        assert!(!client.is_fine(stream)?, "{path}");
    }
    let errors = &gateway.status()?["proxy"]["requests"]["errors"];
    assert_eq!(errors["upstream_protocol"], json!(2), "{errors}");
    client.frames(&[Frame::headers(1, false, &chat("/chat"))])?;
    assert!(client.is_fine(1)?);
    let data = client.wait(|frame| frame.kind == kind::DATA && !frame.payload.is_empty())?;
    assert_eq!(data.payload, b"hello");
    let seen = origin.requests();
    let seen = seen.last().context("nothing was asked")?;
    assert_eq!(seen.line, "GET /chat HTTP/1.1");
    assert_eq!(seen.header("upgrade"), Some("websocket"));
    assert_eq!(seen.header("sec-websocket-key").map(str::len), Some(24));
    assert_eq!(seen.header("sec-websocket-version"), Some("13"));
    Ok(())
}

/// A service over HTTP/1.1 whose answers have trailers, and which waits for those of a request in chunks.
fn service_with_trailers(site: &Site) -> Result<(SocketAddr, Arc<Mutex<String>>)> {
    let listener = site.enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let address = listener.local_addr()?;
    let seen: Arc<Mutex<String>> = Arc::default();
    let all = Arc::clone(&seen);
    let serve = move |mut stream: TcpStream| -> Result {
        stream.set_read_timeout(Some(PATIENCE))?;
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        loop {
            let length = read_once(&mut stream, &mut buffer)?;
            anyhow::ensure!(length > 0, "closed");
            text.push_str(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()));
            let has_body = text.contains("transfer-encoding: chunked");
            let end = if has_body { "\r\n0\r\nx-sum: 1\r\n\r\n" } else { "\r\n\r\n" };
            if text.ends_with(end) {
                all.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
                text.clear();
                stream.write_all(
                    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-check\r\n\r\n\
                      2\r\nok\r\n0\r\nx-check: 7\r\ncontent-length: 9\r\n\r\n",
                )?;
            }
        }
    };
    // It ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(|stream| stream.ok()) {
            drop(serve(stream));
        }
    });
    Ok((address, seen))
}

#[test]
fn events_pass_one_by_one() -> Result {
    let site = Site::new()?;
    let listener = site.enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let address = listener.local_addr()?;
    let (next, wanted) = sync_channel(1);
    // It ends with the sender.
    std::thread::spawn(move || -> Result {
        let (mut stream, _) = listener.accept()?;
        anyhow::ensure!(stream.read(&mut [0; 4096])? > 0, "closed");
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")?;
        while wanted.recv().is_ok() {
            stream.write_all(b"data: x\n\n")?;
        }
        Ok(())
    });
    let (_gateway, listen) = gateway(&site, &address.to_string(), json!({}))?;
    let mut client = connect(&site, listen, &[])?;
    client.frames(&[Frame::get(1, "/")])?;
    assert!(client.is_fine(1)?, "the head waits for no event");
    for _ in 0..5 {
        next.send(())?;
        let event = client.wait(|frame| frame.kind == kind::DATA)?;
        assert_eq!(event.payload, b"data: x\n\n");
    }
    drop(next);
    client.wait(Frame::ends_stream)?;
    Ok(())
}

#[test]
fn trailers_go_both_ways_between_http2_and_http1() -> Result {
    let site = Site::new()?;
    let (address, seen) = service_with_trailers(&site)?;
    let (_gateway, listen) = gateway(&site, &address.to_string(), json!({}))?;
    let mut client = connect(&site, listen, &[])?;
    let trailers = Frame::new(
        kind::HEADERS,
        flag::END_STREAM | flag::END_HEADERS,
        1,
        block(&[("x-sum", "1"), ("x-forwarded-for", "192.0.2.1")]),
    );
    client.frames(&[
        Frame::headers(1, false, &request("POST", "/")),
        Frame::new(kind::DATA, 0, 1, *b"hello"),
        trailers,
    ])?;
    assert!(client.is_fine(1)?);
    client.wait(|frame| frame.kind == kind::DATA && frame.payload == b"ok")?;
    let end = client.wait(|frame| frame.stream == 1 && frame.flags & flag::END_STREAM != 0)?;
    assert_eq!(end.kind, kind::HEADERS, "the answer ends with its trailers");
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(seen.ends_with("\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"), "{seen}");
    drop(client);

    let shown = curl(&site, &["--dump-header", "-", &format!("http://{listen}/")])?;
    assert!(shown.contains("x-check: 7"), "{shown}");
    assert!(!shown.contains("content-length"), "{shown}");
    Ok(())
}

#[test]
fn trailers_of_a_service_over_http2_reach_a_client_over_http1_that_takes_them() -> Result {
    let site = Site::new()?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("a"), "a")?;
    let address = site.free_address()?;
    let (port, root) = (address.port().to_string(), folder.path().display().to_string());
    let arguments =
        ["--no-tls", "--no-content-length", "--trailer", "x-check: 7", "-d", &root, &port];
    let _service = Program::start(&site, "nghttpd", &arguments, address)?;
    let (_gateway, listen) = multiplexed(&site, &address.to_string())?;
    for (asks, end) in [("TE: trailers\r\n", "0\r\nx-check: 7\r\n\r\n"), ("", "0\r\n\r\n")] {
        let mut client = site.connect(None, listen)?;
        let fields = format!("{asks}Connection: close");
        client.send(format!("GET /a HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n").as_bytes())?;
        let answer = String::from_utf8(client.read_to_end()?)?;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with(&format!("a\r\n{end}")), "{asks:?}: {answer}");
    }
    Ok(())
}

#[test]
fn trailers_of_a_client_over_http1_reach_a_service_over_http2() -> Result {
    let site = Site::new()?;
    let (address, seen) = service_with_trailers(&site)?;
    // The service over HTTP/2 is another gateway, which tells over HTTP/1 what it was sent.
    let (_behind, service) = gateway(&site, &address.to_string(), json!({}))?;
    let (_gateway, listen) = multiplexed(&site, &service.to_string())?;
    let head =
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n";
    let mut client = site.connect(None, listen)?;
    client.send(format!("{head}:path: /evil\r\n\r\n").as_bytes())?;
    assert_eq!(client.receive()?.status, 400, "it is no name of a field");
    let mut client = site.connect(None, listen)?;
    let not_here = "Content-Length: 9\r\nHost: evil\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: x";
    client.send(format!("{head}{not_here}\r\nX-Sum: 1\r\n\r\n").as_bytes())?;
    assert_eq!(client.receive()?.text(), "ok");
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(seen.ends_with("\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"), "{seen}");
    assert!(!seen.contains("evil"), "{seen}");
    Ok(())
}
