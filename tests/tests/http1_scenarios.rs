//! HTTP/1 byte by byte, through the real binary: what clients and services send that could be read in two ways, that
//! comes too slowly, or that is too much, and what arrived on the other side.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::client::Client;
use harness::gateway::Gateway;
use harness::site::{PATIENCE, Site};
use harness::{Result, read_once, wait_for};
use serde_json::{Value, json};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";

/// A service that remembers every byte.
struct Service {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// One connection to it.
struct Accepted {
    stream: TcpStream,
    number: usize,
    unread: Vec<u8>,
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Service {
    /// `script` has each connection in its turn; when it returns, the connection is closed.
    fn start(
        site: &Site,
        script: impl Fn(&mut Accepted) -> Result + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = site.enter(|| TcpListener::bind("127.0.0.1:0"))??;
        let address = listener.local_addr()?;
        let connections: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (script, all) = (Arc::new(script), Arc::clone(&connections));
        // It ends with the process: a test looks at what arrived.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(|stream| stream.ok()) {
                let mut seen = all.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push(Vec::new());
                let number = seen.len() - 1;
                drop(seen);
                let (script, connections) = (Arc::clone(&script), Arc::clone(&all));
                std::thread::spawn(move || {
                    stream.set_read_timeout(Some(PATIENCE * 4)).ok();
                    let unread = Vec::new();
                    drop(script(&mut Accepted { stream, number, unread, connections }));
                });
            }
        });
        Ok(Self { address, connections })
    }

    /// Answers each request with these bytes.
    fn answering(site: &Site, answer: &'static [u8]) -> Result<Self> {
        Self::start(site, move |connection| {
            loop {
                connection.request()?;
                connection.send(answer)?;
            }
        })
    }

    /// What arrived, by connection.
    fn seen(&self) -> Vec<String> {
        let seen = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }
}

impl Accepted {
    /// Reads up to `end`.
    fn until(&mut self, end: &str) -> Result<String> {
        let mut buffer = [0; 64 * 1024];
        loop {
            let found = self.unread.windows(end.len()).position(|part| part == end.as_bytes());
            if let Some(at) = found {
                let came: Vec<u8> = self.unread.drain(..at + end.len()).collect();
                return Ok(String::from_utf8_lossy(&came).into_owned());
            }
            let length = read_once(&mut self.stream, &mut buffer)?;
            ensure!(length > 0, "closed");
            let came = buffer.get(..length).unwrap_or_default();
            self.unread.extend_from_slice(came);
            let mut seen = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            seen.get_mut(self.number).context("unknown")?.extend_from_slice(came);
        }
    }

    /// Reads the head of a request.
    fn request(&mut self) -> Result<String> {
        self.until("\r\n\r\n")
    }

    fn send(&mut self, bytes: &[u8]) -> Result {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Reads until the gateway closes.
    fn hang(&mut self) {
        while self.until("\0 never").is_ok() {}
    }
}

/// A gateway in front of one service.
struct Setting<'s> {
    site: &'s Site,
    listen: SocketAddr,
    gateway: Gateway<'s>,
}

impl<'s> Setting<'s> {
    fn new(site: &'s Site, service: &Service, bounds: Value) -> Result<Self> {
        let listen = site.free_address()?;
        let config = json!({
            "listen": [{"address": listen.to_string()}],
            "workers": 1,
            "bounds": bounds,
            "upstreams": {"service": {
                "endpoints": [service.address.to_string()],
                "timeout": {"connect": "2s", "response": "5s"},
                "retry": {"attempts": 1},
            }},
            "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
        });
        let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
        gateway.start()?;
        Ok(Self { site, listen, gateway })
    }

    fn connect(&self) -> Result<Client> {
        self.site.connect(None, self.listen)
    }

    fn stream(&self) -> Result<TcpStream> {
        let stream = self.site.enter(|| TcpStream::connect(self.listen))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// All that comes back for these bytes until the gateway closes.
    fn ask(&self, bytes: &[u8]) -> Result<String> {
        let mut client = self.connect()?;
        client.send(bytes)?;
        Ok(String::from_utf8_lossy(&client.read_to_end()?).into_owned())
    }

    fn count(&self, kind: &str) -> Result<u64> {
        let status = self.gateway.status()?;
        let count = status.pointer(&format!("/proxy/requests/errors/{kind}"));
        count.and_then(Value::as_u64).with_context(|| format!("no {kind} in {status}"))
    }
}

/// That `answer` is one problem document of this status, after which nothing comes.
fn assert_refused(answer: &str, status: u16, what: &dyn std::fmt::Debug) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what:?}: {answer}");
    let answers = answer.lines().filter(|line| line.starts_with("HTTP/1.1 ")).count();
    assert_eq!(answers, 1, "{what:?}: {answer}");
    assert!(answer.contains("content-type: application/problem+json\r\n"), "{what:?}: {answer}");
    assert!(answer.contains("connection: close\r\n"), "{what:?}: {answer}");
    assert!(answer.contains(&format!("\"status\":{status}")), "{what:?}: {answer}");
}

#[test]
fn wrk_without_one_failure() -> Result {
    let site = Site::new()?;
    let service = Service::answering(&site, OK)?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let url = format!("http://{}/", setting.listen);
    let output = site.run("wrk", &["-t", "1", "-c", "16", "-d", "1s", &url])?;
    let report = String::from_utf8(output.stdout)?;
    assert!(report.contains("requests in "), "{report}");
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
    Ok(())
}

#[test]
fn a_head_that_could_be_read_in_two_ways_reaches_no_service() -> Result {
    let site = Site::new()?;
    let service = Service::answering(&site, OK)?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let fields = [
        // CL.TE, TE.CL
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        // TE.TE
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\u{b}chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked\u{0}",
        " Transfer-Encoding: chunked",
        "X: x\nTransfer-Encoding: chunked",
        "X: x\rTransfer-Encoding: chunked",
        "X: x\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding\r\n : chunked",
        // Lengths.
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 0",
        "Content-Length: 3, 3",
        "Content-Length: +5",
        "Content-Length: -0",
        "Content-Length: 0x5",
        "Content-Length: 5_0",
        "Content-Length: 18446744073709551617",
        "Content-Length : 3",
        "\"Content-Length: 3\"",
        "Content-Length\0: 3",
    ];
    let mut refused = 0;
    for field in fields {
        let head = format!("POST / HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n0\r\n\r\n{SMUGGLED}");
        assert_refused(&setting.ask(head.as_bytes())?, 400, &field);
        refused += 1;
    }
    for head in [
        "GET /\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\nHost: h\n\n",
        "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /#a HTTP/1.1\r\nHost: h\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}",
    ] {
        assert_refused(&setting.ask(format!("{head}{SMUGGLED}").as_bytes())?, 400, &head);
        refused += 1;
    }
    assert_eq!(service.seen(), [""; 0], "no service heard of any of it");
    assert_eq!(setting.count("bad_request")?, refused);
    Ok(())
}

#[test]
fn a_body_that_could_be_read_in_two_ways_ends_at_the_gateway() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        connection.request()?;
        connection.hang();
        Ok(())
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    for body in [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5_\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\nX\r\n\r\n",
        "5\r\nhello\r\n0\r\n Y: 1\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: 1\n\r\n",
        "10000000000000000\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5;\n\r\nhello\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
    ] {
        let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = setting.ask(format!("{head}{body}{SMUGGLED}").as_bytes()).context(body)?;
        assert_refused(&answer, 400, &body);
    }
    for seen in service.seen() {
        assert!(!seen.contains("smuggled") && !seen.contains("\r\n0\r\n"), "{seen:?}");
    }
    Ok(())
}

#[test]
fn a_body_is_framed_anew_and_trailers_bring_nothing_that_belongs_before_it() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        loop {
            let end =
                if connection.request()?.contains("chunked") { "z: 1\r\n\r\n" } else { "four" };
            connection.until(end).ok();
            connection.send(OK)?;
        }
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let mut client = setting.connect()?;
    client.send(
        b"GET /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: CHUNKED\r\n\r\n\
          3;a=b\r\nabc\r\n02\r\nde\r\n0\r\n\
          Content-Length: 9\r\nHost: evil\r\nTransfer-Encoding: x\r\nX-Forwarded-For: 1.2.3.4\r\n\
          Authorization: a\r\nz: 1\r\n\r\n",
    )?;
    assert_eq!(client.receive()?.status, 200);
    let seen = service.seen().concat();
    let (head, body) = seen.split_once("\r\n\r\n").context("no head")?;
    assert!(head.starts_with("GET /a HTTP/1.1\r\n"), "{seen}");
    assert!(!head.contains("content-length"), "{seen}");
    let pieces = body.replace("3\r\nabc\r\n2\r\nde\r\n", "5\r\nabcde\r\n");
    assert_eq!(pieces, "5\r\nabcde\r\n0\r\nz: 1\r\n\r\n", "{seen}");

    client.send(b"GET /b HTTP/1.1\r\nHost: h\r\nContent-Length: 0004\r\n\r\nfour")?;
    assert_eq!(client.receive()?.status, 200);
    let seen = service.seen().concat();
    let second = seen.split("GET /b").nth(1).context("no second request")?;
    assert!(second.contains("content-length: 4\r\n\r\nfour"), "{seen}");
    assert_eq!(second.matches("ength").count(), 1, "{seen}");
    Ok(())
}

#[test]
fn pipelined_requests_are_answered_in_order_and_none_after_an_error() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        loop {
            let path = connection.request()?;
            let path = path.split(' ').nth(1).unwrap_or_default().to_owned();
            let length = path.len();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{path}");
            connection.send(head.as_bytes())?;
        }
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut client = setting.connect()?;
    client.send([get("/1"), get("/2"), get("/3")].concat().as_bytes())?;
    for path in ["/1", "/2", "/3"] {
        assert_eq!(client.receive()?.text(), path);
    }
    let answer =
        setting.ask([&get("/4"), "\r\n", "BAD\r\n\r\n", &get("/5")].concat().as_bytes())?;
    assert!(answer.contains("\r\n\r\n/4HTTP/1.1 400 "), "{answer}");
    assert!(!answer.contains("/5"), "{answer}");
    assert!(!service.seen().concat().contains("/5"));
    Ok(())
}

#[test]
fn every_bound_has_its_answer() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        if connection.request()?.contains("ength: 5") {
            connection.until("12345")?;
        }
        connection.send(OK)
    })?;
    let bounds = json!({
        "head_bytes": "16KiB", "target_bytes": "1KiB", "header_count": 20, "body_bytes": "1KiB",
        "head_timeout": "300ms", "idle_timeout": "300ms",
    });
    let setting = Setting::new(&site, &service, bounds)?;
    let get =
        |target: &str, fields: &str| format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let long = "x".repeat(20_000);
    for (text, status, kind) in [
        (get(&format!("/{}", &long[..1024]), ""), 414, "target_too_long"),
        (get(&format!("/{long}"), ""), 414, "target_too_long"),
        (long.clone(), 414, "target_too_long"),
        (get("/", &format!("X: {long}\r\n")), 431, "head_too_large"),
        (get("/", &"X: x\r\n".repeat(20)), 431, "head_too_large"),
        (get("/", "").replace("\r\n\r\n", ""), 408, "head_timeout"),
        (get("/", "Content-Length: 1025\r\n"), 413, "body_too_large"),
        (get("/", "Content-Length: 99999999999\r\n"), 413, "body_too_large"),
        (get("/", "Content-Length: 5\r\n") + "1234", 408, "request_timeout"),
        (get("/", "Transfer-Encoding: chunked\r\n") + "fff\r\n" + &long, 413, "body_too_large"),
    ] {
        let before = setting.count(kind)?;
        let answer = setting.ask(text.as_bytes())?;
        assert_refused(&answer, status, &text.get(..60));
        assert_eq!(setting.count(kind)?, before + 1, "{kind}");
    }
    let most = get(&format!("/{}", &long[..1023]), &"X: x\r\n".repeat(19));
    let mut client = setting.connect()?;
    // A head may come in pieces, as long as all of it comes in time.
    for byte in most.as_bytes().chunks(97) {
        client.send(byte)?;
    }
    assert_eq!(client.receive()?.status, 200);
    Ok(())
}

#[test]
fn who_is_refused_is_never_told_to_continue() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        connection.request()?;
        connection.until("body")?;
        connection.send(OK)
    })?;
    let setting = Setting::new(&site, &service, json!({"body_bytes": "1KiB"}))?;
    let post = |path: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    assert_refused(&setting.ask(post("/", 2000).as_bytes())?, 413, &"too large");
    assert_refused(&setting.ask(post("/a/../b", 4).as_bytes())?, 400, &"refused");
    let mut client = setting.connect()?;
    client.send(post("/", 4).as_bytes())?;
    let leave = client.receive()?;
    assert_eq!((leave.status, leave.headers.len()), (100, 0));
    client.send(b"body")?;
    assert_eq!(client.receive()?.text(), "ok");
    assert!(!service.seen().concat().to_lowercase().contains("expect"));
    Ok(())
}

const LIES: [&[u8]; 15] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX\0: 2\r\n\r\nok",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nok",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\nok",
    b"HTTP/2 200 OK\r\n\r\n",
    b"ok",
];

#[test]
fn an_answer_that_could_be_read_in_two_ways_is_502() -> Result {
    let site = Site::new()?;
    let next = Mutex::new(0);
    let service = Service::start(&site, move |connection| {
        connection.request()?;
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        *next += 1;
        connection.send(LIES[*next - 1])?;
        drop(next);
        connection.hang();
        Ok(())
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let mut client = setting.connect()?;
    for lie in LIES {
        let answer = client.get("/")?;
        let lie = String::from_utf8_lossy(lie);
        assert_eq!(answer.status, 502, "{lie:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{lie:?}");
    }
    assert_eq!(setting.count("upstream_protocol")?, LIES.len() as u64);
    assert_eq!(service.seen().len(), LIES.len(), "no connection is used again");
    Ok(())
}

#[test]
fn what_a_service_says_beyond_its_answer_is_nobodys() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        let path = connection.request()?;
        match path.split(' ').nth(1).unwrap_or_default() {
            "/early-hints" => connection.send(
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
            )?,
            "/hints" => connection.send(&b"HTTP/1.1 103 -\r\n\r\n".repeat(17))?,
            "/chunk" => {
                let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                connection.send(&[head, b"5\r\nhello\r\n+5\r\n".as_slice()].concat())?;
                connection.hang();
            }
            _ => {}
        }
        connection.send(&[OK, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"].concat())?;
        connection.hang();
        Ok(())
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let mut client = setting.connect()?;
    for path in ["/a", "/b", "/early-hints", "/c"] {
        let answer = client.get(path)?;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{path}");
        assert_eq!(answer.header("link"), None);
    }
    assert_eq!(service.seen().len(), 4, "a connection with something left is not used again");
    assert_eq!(client.get("/hints")?.status, 502);
    client.send(b"GET /chunk HTTP/1.1\r\nHost: h\r\n\r\n")?;
    let rest = String::from_utf8(client.read_to_end()?)?;
    assert!(rest.ends_with("\r\n\r\n5\r\nhello\r\n"), "it is seen to be broken off: {rest}");
    Ok(())
}

#[test]
fn an_old_client_gets_what_it_understands() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        while !connection.request()?.contains("/close") {
            connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            connection.send(b"2\r\nok\r\n0\r\nz: 1\r\n\r\n")?;
        }
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let answer = setting.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")?;
    assert!(answer.ends_with("connection: close\r\n\r\nok"), "{answer}");
    let mut client = setting.connect()?;
    assert_eq!(client.get("/close")?.text(), "until the end");
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: close\r\n\r\n")?;
    let answer = String::from_utf8(client.read_to_end()?)?;
    assert!(answer.ends_with("\r\n\r\n2\r\nok\r\n0\r\nz: 1\r\n\r\n"), "{answer}");
    let mut client = setting.connect()?;
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
    let answer = String::from_utf8(client.read_to_end()?)?;
    assert!(answer.ends_with("\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "{answer}");
    Ok(())
}

#[test]
fn an_old_service_is_understood() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        while connection.request()?.contains("/kept") {
            let head = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\n";
            connection.send(&[head, b"kept".as_slice()].concat())?;
        }
        connection.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let mut client = setting.connect()?;
    for (path, body) in [("/kept", "kept"), ("/kept", "kept"), ("/", "until the end")] {
        let answer = client.get(path)?;
        assert_eq!((answer.text().as_str(), answer.header("connection")), (body, None), "{path}");
    }
    assert_eq!(client.get("/kept")?.text(), "kept");
    assert_eq!(service.seen().len(), 2, "a connection is kept as long as the service says so");
    Ok(())
}

#[test]
fn an_answer_may_come_before_the_body_was_read() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        connection.request()?;
        connection.send(b"HTTP/1.1 403 -\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")?;
        connection.stream.shutdown(Shutdown::Write)?;
        connection.hang();
        Ok(())
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let mut client = setting.connect()?;
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n")?;
    let answer = client.receive()?;
    assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
    // What comes now is the rest of a body, and no request.
    client.send(SMUGGLED.as_bytes()).ok();
    assert_eq!(client.read_to_end()?, b"");
    Ok(())
}

#[test]
fn what_is_left_of_a_body_is_nobodys_request() -> Result {
    let site = Site::new()?;
    // The first is answered before its body is there, and the connection stays open.
    let service = Service::start(&site, |connection| {
        while !connection.request()?.contains("/first") {
            connection.send(OK)?;
        }
        connection.send(OK)?;
        connection.hang();
        Ok(())
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let length = SMUGGLED.len();
    let (begin, rest) = SMUGGLED.split_at(length / 2);
    let mut client = setting.connect()?;
    let head = format!("POST /first HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    client.send(format!("{head}{begin}").as_bytes())?;
    let answer = client.receive()?;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    client.send(rest.as_bytes()).ok();
    assert_eq!(setting.connect()?.get("/next")?.status, 200);
    let seen = service.seen();
    assert_eq!(seen.len(), 2, "a connection that waits for a body takes no request: {seen:?}");
    let (_, body) = seen[0].split_once("\r\n\r\n").context("no head")?;
    assert!(SMUGGLED.starts_with(body), "{seen:?}");
    assert!(seen[1].starts_with("GET /next "), "{seen:?}");

    // What the gateway answers itself, too.
    for framing in [
        format!("Content-Length: {length}\r\n\r\n{SMUGGLED}"),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("Content-Length: 5000\r\n\r\n{SMUGGLED}"),
    ] {
        let mut client = setting.connect()?;
        client.send(format!("POST /a//b HTTP/1.1\r\nHost: h\r\n{framing}").as_bytes())?;
        let refused = client.receive()?;
        assert_eq!(refused.status, 400);
        if refused.header("connection").is_none() {
            assert_eq!(client.get("/next")?.status, 200, "{framing}");
        }
        drop(client.read_to_end());
    }
    let seen = service.seen();
    assert!(seen.iter().skip(1).all(|seen| !seen.contains("smuggled")), "{seen:?}");
    Ok(())
}

#[test]
fn events_pass_one_by_one() -> Result {
    let site = Site::new()?;
    let received = Arc::new(Mutex::new(0));
    let wanted = Arc::clone(&received);
    let service = Service::start(&site, move |connection| {
        connection.request()?;
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";
        connection.send(&[head, b"Transfer-Encoding: chunked\r\n\r\n".as_slice()].concat())?;
        for event in 0..5 {
            connection.send(b"9\r\ndata: x\n\n\r\n")?;
            wait_for("the client to have the event", PATIENCE, || {
                let received = *wanted.lock().unwrap_or_else(PoisonError::into_inner);
                Ok((received > event).then_some(()))
            })?;
        }
        connection.send(b"0\r\n\r\n")
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let mut stream = setting.stream()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    loop {
        let length = read_once(&mut stream, &mut buffer)?;
        if length == 0 {
            break;
        }
        text += str::from_utf8(&buffer[..length])?;
        *received.lock().unwrap_or_else(PoisonError::into_inner) = text.matches("data: x").count();
    }
    assert!(text.ends_with("9\r\ndata: x\n\n\r\n0\r\n\r\n"), "{text}");
    Ok(())
}

#[test]
fn nobody_is_sent_more_than_the_other_side_takes() -> Result {
    const LENGTH: usize = 64 << 20;
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        let request = connection.request()?;
        if request.starts_with("GET") {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
            connection.send(head.as_bytes())?;
            for _ in 0..LENGTH / 65_536 {
                connection.send(&[b'x'; 65_536])?;
            }
            connection.hang();
            return Ok(());
        }
        // It reads when the client has long been stopped.
        std::thread::sleep(Duration::from_millis(500));
        let mut left = LENGTH - connection.unread.len();
        let mut buffer = vec![0; 65_536];
        while left > 0 {
            let length = read_once(&mut connection.stream, &mut buffer)?;
            ensure!(length > 0, "closed");
            left -= length;
        }
        connection.send(OK)
    })?;
    let setting = Setting::new(&site, &service, json!({"body_bytes": "1GiB"}))?;
    let before = resident_bytes(&setting)?;
    let mut client = setting.connect()?;
    client.send(
        format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes(),
    )?;
    for _ in 0..LENGTH / 65_536 {
        client.send(&[b'x'; 65_536])?;
    }
    assert_eq!(client.receive()?.status, 200);
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")?;
    std::thread::sleep(Duration::from_millis(500));
    let during = resident_bytes(&setting)?;
    assert_eq!(client.receive()?.body.len(), LENGTH);
    assert!(during < before + LENGTH / 4, "{before} bytes before, {during} bytes during");
    Ok(())
}

fn resident_bytes(setting: &Setting<'_>) -> Result<usize> {
    let status = setting.gateway.status()?;
    let pid = status.get("pid").context("no pid")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: usize = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                        Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn a_websocket_goes_both_ways_once_the_service_agrees() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        connection.request()?;
        ensure!(connection.unread.is_empty(), "something came before the answer");
        connection.stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        ensure!(connection.stream.peek(&mut [0]).is_err(), "something came before the answer");
        connection.stream.set_read_timeout(Some(PATIENCE))?;
        connection.send(SWITCH)?;
        connection.until("ping")?;
        connection.send(b"pong")?;
        // The client ends its half.
        let mut rest = Vec::new();
        connection.stream.read_to_end(&mut rest)?;
        connection.send(&rest)?;
        connection.send(b" and bye")
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let mut stream = setting.stream()?;
    stream.write_all(format!("{UPGRADE}ping").as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"pong") {
        let mut byte = [0];
        ensure!(stream.read(&mut byte)? == 1, "closed: {}", String::from_utf8_lossy(&head));
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8(head)?;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
    assert!(head.contains("\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    assert_eq!(setting.gateway.status()?["proxy"]["requests"]["active"], json!(1));
    let long = vec![b'x'; 1 << 20];
    stream.write_all(&long)?;
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    assert!(rest.starts_with(&long) && rest.ends_with(b"x and bye"), "{} bytes", rest.len());
    let seen = service.seen().concat();
    assert!(seen.contains("\r\nupgrade: websocket\r\n"), "{seen}");
    assert!(seen.contains("\r\nconnection: upgrade\r\n"), "{seen}");
    Ok(())
}

#[test]
fn what_comes_with_an_upgrade_that_is_refused_is_a_request() -> Result {
    let site = Site::new()?;
    let service = Service::answering(&site, OK)?;
    let setting = Setting::new(&site, &service, json!({}))?;
    let mut client = setting.connect()?;
    client.send(format!("{UPGRADE}GET /next HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes())?;
    assert_eq!(client.receive()?.status, 200);
    assert_eq!(client.receive()?.status, 200);
    let seen = service.seen().concat();
    let next = seen.split("GET /next").nth(1).context("the next request was lost")?;
    assert!(next.contains("x-forwarded-for: "), "it was read as a request: {seen}");

    for other in [
        UPGRADE.replace("WebSocket\r\n", "h2c\r\n"),
        UPGRADE.replace("Version: 13", "Version: 12"),
        UPGRADE.replace("dGhl", "####"),
        UPGRADE.replace("GET", "POST"),
        UPGRADE.replace("Connection: Upgrade\r\n", ""),
    ] {
        client.send(other.as_bytes())?;
        assert_eq!(client.receive()?.status, 200);
        let seen = service.seen().concat();
        let last = seen.rsplit("/chat HTTP/1.1\r\n").next().unwrap_or_default();
        assert!(!last.contains("upgrade:") && !last.contains("connection:"), "{other}: {last}");
    }
    Ok(())
}

#[test]
fn a_websocket_through_which_nothing_goes_is_closed() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        connection.request()?;
        connection.send(SWITCH)?;
        connection.hang();
        Ok(())
    })?;
    let setting = Setting::new(&site, &service, json!({"tunnel_idle_timeout": "500ms"}))?;
    let mut stream = setting.stream()?;
    stream.write_all(UPGRADE.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    wait_for("the end of the request", PATIENCE, || {
        let active = &setting.gateway.status()?["proxy"]["requests"]["active"];
        Ok((*active == json!(0)).then_some(()))
    })?;
    let proxy = &setting.gateway.status()?["proxy"];
    assert_eq!(proxy["connections"]["tunnels_timed_out"], json!(1));
    assert_eq!(proxy["requests"]["broken"], json!(0), "nothing broke");
    Ok(())
}

#[test]
fn a_slow_reader_is_cut_off() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        connection.request()?;
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")?;
        while connection.send(&[b'x'; 65_536]).is_ok() {}
        Ok(())
    })?;
    let setting = Setting::new(&site, &service, json!({"idle_timeout": "500ms"}))?;
    let mut client = setting.connect()?;
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")?;
    wait_for("the connection to be closed", PATIENCE, || {
        let status = setting.gateway.status()?;
        let slow = &status["proxy"]["connections"]["readers_timed_out"];
        Ok((*slow == json!(1)).then_some(()))
    })?;
    assert!(client.read_to_end().is_err(), "nothing more is kept for it");
    Ok(())
}

#[test]
fn who_is_told_the_end_by_closing_is_told_of_a_broken_answer_by_a_reset() -> Result {
    let site = Site::new()?;
    let service = Service::start(&site, |connection| {
        loop {
            let is_broken = connection.request()?.contains("/broken");
            connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")?;
            if is_broken {
                return Ok(());
            }
            connection.send(b"0\r\n\r\n")?;
        }
    })?;
    let setting = Setting::new(&site, &service, json!({}))?;
    for (path, is_whole) in [("/", true), ("/broken", false), ("/", true)] {
        let mut client = setting.connect()?;
        client.send(format!("GET {path} HTTP/1.0\r\nHost: h\r\n\r\n").as_bytes())?;
        assert_eq!(client.read_to_end().is_ok(), is_whole, "{path}");
    }
    Ok(())
}
