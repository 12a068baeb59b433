//! The user-space door in process: real sockets on loopback, origins that follow a script to the byte.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails, in its helpers too"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use gateway::config::{self, Config, Target};
use gateway::feedback::Reporter;
use gateway::listen::sockets::{Inherited, Sockets};
use gateway::listen::{Door, Shared};
use gateway::observe::Registry;
use gateway::observe::access_log::AccessLog;
use gateway::request::{Compiled, Routes, Snapshot};
use gateway::rules::classify::Classifier;
use gateway::rules::tables::{Memory, RuleTables};
use gateway::tls::client::Clients;
use gateway::upstream::directory::Directory;
use gateway::upstream::echo::Echo;
use gateway_common::rule::{self, Action};
use gateway_common::table::{Head, Span};

/// Longer than anything here takes; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A timeout of the gateway that a test waits for.
const SHORT: Duration = Duration::from_millis(150);

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

fn with_routes(config: Config, counters: &Registry) -> Compiled {
    let routes = Arc::new(Routes::new(&config, counters));
    Compiled {
        config: Arc::new(config),
        routes,
        authenticators: Arc::default(),
        limits: Arc::default(),
    }
}

fn config(targets: Vec<Target>) -> Config {
    let text = "
workers: 1
listen: [{address: 127.0.0.1:1}]
kernel: {attach: off}
metrics: {max_names: 10}
upstreams: {origin: {endpoints: [127.0.0.1:2], idle_connections: 8}}
routes: [{name: any, match: {path: '/{rest*}'}, upstream: origin}]
";
    let mut config = config::parse("test.yaml", text).unwrap();
    config.listen = vec![config::Listener::plain("127.0.0.1:0".parse().unwrap())];
    config.bounds = config::Bounds {
        connections: 100,
        head_bytes: 16 * 1024,
        body_bytes: 1000,
        head_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        keep_alive_timeout: PATIENCE,
        tunnel_idle_timeout: PATIENCE,
        drain_timeout: PATIENCE,
        ..config.bounds
    };
    let upstream = &mut config.upstreams[0];
    upstream.endpoints = targets.into_iter().map(Into::into).collect();
    upstream.connect_timeout = PATIENCE;
    upstream.response_timeout = PATIENCE;
    upstream.idle_timeout = PATIENCE;
    config
}

struct Gateway {
    door: Option<Door>,
    shared: Shared,
    address: SocketAddr,
}

impl Gateway {
    fn start(config: Config) -> Self {
        let echo = Echo::bind().unwrap();
        let sockets =
            Sockets::bind(&[config.listen[0].address], config.workers, &mut Inherited::default())
                .unwrap();
        let counters = Registry::new(config.workers);
        let mut directory = Directory::new(config.workers);
        directory.set_own(None, Some(echo.address()));
        let snapshot = Snapshot::new(
            with_routes(config, &counters),
            &mut directory,
            &Clients::default(),
            &counters,
        );
        let shared = Shared {
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            listeners: Arc::default(),
            rules: Arc::new(ArcSwap::from_pointee(Classifier::default())),
            counters,
            access_log: AccessLog::start(None).unwrap(),
            reporter: Reporter::new().0,
        };
        echo.spawn().unwrap();
        let door = Door::open(sockets, &shared).unwrap();
        let address = door.addresses()[0];
        Self { door: Some(door), shared, address }
    }

    fn before(origin: &Origin) -> Self {
        Self::start(config(vec![Target::Address(origin.address)]))
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    fn ask(&self, request: &str) -> String {
        let mut client = self.connect();
        client.send(request);
        client.answer()
    }

    fn get(&self) -> String {
        self.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    }

    fn errors(&self, kind: &str) -> u64 {
        self.shared.counters.snapshot().requests.errors[kind]
    }

    fn deny(&self, prefix: &str) {
        let mut tables = RuleTables::open(Memory::own(64).unwrap(), 64);
        let head = Head::new(Action::Deny, rule::Origin::Operator, 0, false);
        tables.put(prefix.parse().unwrap(), ((head, Span::ALWAYS), None)).unwrap();
        self.shared.rules.store(Arc::new(Classifier::new(tables.reader())));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Without its door, a worker has nobody left who could give it an order.
        drop(self.door.take());
    }
}

struct Client(TcpStream);

impl Client {
    fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// One whole answer: the head, and as much body as it declares.
    fn answer(&mut self) -> String {
        let mut text = read_head(&mut self.0);
        let length = header(&text, "content-length").map_or(0, |value| value.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        text.push_str(str::from_utf8(&body).unwrap());
        text
    }

    /// Everything up to the end of the connection, however that comes.
    fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{error}"),
            _ => String::from_utf8(bytes).unwrap(),
        }
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

fn header<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.split("\r\n\r\n").next()?.lines();
    let mut fields = lines.filter_map(|line| line.split_once(':'));
    fields.find(|field| field.0.eq_ignore_ascii_case(name)).map(|field| field.1.trim())
}

/// A service that does as it is told.
struct Origin {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Origin {
    /// Gives each connection, with its number, to `script`.
    fn start(script: impl Fn(usize, &mut Accepted) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, heads) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<_>>::default());
        let (count, seen, script) = (connections.clone(), heads.clone(), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let mut accepted = Accepted { stream: stream.unwrap(), seen: seen.clone() };
                let script = script.clone();
                thread::spawn(move || script(number, &mut accepted));
            }
        });
        Self { address, connections, heads }
    }

    /// Answers every request alike.
    fn answering(answer: &'static str) -> Self {
        Self::start(move |_, connection| {
            while !connection.request().is_empty() {
                connection.send(answer);
            }
        })
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

struct Accepted {
    stream: TcpStream,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Accepted {
    fn request(&mut self) -> String {
        let head = read_head(&mut self.stream);
        if !head.is_empty() {
            self.seen.lock().unwrap().push(head.clone());
        }
        head
    }

    fn send(&mut self, text: &str) {
        // The gateway may have hung up, which some tests are about.
        self.stream.write_all(text.as_bytes()).ok();
    }

    /// Until the gateway hangs up.
    fn hang(&mut self) {
        std::io::copy(&mut self.stream, &mut std::io::sink()).ok();
    }
}

#[track_caller]
fn assert_status(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
}

#[track_caller]
fn assert_problem(answer: &str, status: u16) {
    assert_status(answer, status);
    assert_eq!(header(answer, "content-type"), Some("application/problem+json"), "{answer}");
    assert!(answer.contains(&format!("\"status\":{status}")), "{answer}");
    let id = header(answer, "x-request-id").unwrap();
    assert!(answer.contains(&format!("\"request_id\":\"{id}\"")), "{answer}");
    assert!(!answer.contains("127.0.0.1"), "leaks what is behind: {answer}");
}

/// Waits for what another thread does; fails when it never happens.
#[track_caller]
fn eventually(what: impl Fn() -> bool) {
    for _ in 0..2000 {
        if what() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("it never happened");
}

#[test]
fn a_request_goes_through_and_says_where_it_came_from() {
    let origin = Origin::answering(OK);
    let gateway = Gateway::before(&origin);
    let answer = gateway.ask("GET /a%2Fb?c HTTP/1.1\r\nHost: api.example.com:80\r\n\r\n");
    assert_status(&answer, 200);
    assert!(answer.ends_with("\r\n\r\nhi"), "{answer}");
    assert_eq!(header(&answer, "x-request-id").unwrap().len(), 32);
    assert!(header(&answer, "date").is_some());
    let head = &origin.heads()[0];
    assert!(head.starts_with("GET /a%2Fb?c HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(head, "host"), Some("api.example.com:80"));
    assert_eq!(header(head, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(header(head, "x-forwarded-proto"), Some("http"));
    assert_eq!(header(head, "x-forwarded-host"), Some("api.example.com:80"));
    assert_eq!(header(head, "x-request-id"), header(&answer, "x-request-id"));
}

#[test]
fn connections_are_reused_on_both_sides() {
    let origin = Origin::answering(OK);
    let gateway = Gateway::before(&origin);
    let mut client = gateway.connect();
    for _ in 0..5 {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_status(&client.answer(), 200);
    }
    assert_status(&gateway.get(), 200);
    assert_eq!(origin.connections(), 1);
    assert_eq!(gateway.shared.counters.snapshot().upstream.reused, 5);
}

#[test]
fn a_body_is_passed_on_whether_its_length_is_known_or_not() {
    let gateway = Gateway::start(config(vec![Target::Echo]));
    let known = "POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello";
    let chunked = "HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
    for request in [known.to_owned(), format!("POST /p {chunked}"), format!("GET /p {chunked}")] {
        let answer = gateway.ask(&request);
        assert_status(&answer, 200);
        assert!(answer.contains("\"body_bytes\": 5"), "{answer}");
        assert!(answer.contains("\"path\": \"/p\""), "{answer}");
    }
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it() {
    let gateway = Gateway::start(config(vec![Target::Echo]));
    let mut client = gateway.connect();
    client.send("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(read_head(&mut client.0), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hi");
    assert!(client.answer().contains("\"body_bytes\": 2"));
}

#[test]
fn a_chunked_answer_is_passed_on_and_the_connection_reused() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    );
    let gateway = Gateway::before(&origin);
    for _ in 0..2 {
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let answer = client.rest();
        assert!(answer.ends_with("\r\n\r\n2\r\nhi\r\n0\r\n\r\n"), "{answer}");
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn large_bodies_go_through_whole_in_both_directions() {
    const BYTES: usize = 8 << 20;
    let origin = Origin::start(|_, connection| {
        let head = connection.request();
        let mut body = vec![0; header(&head, "content-length").unwrap().parse().unwrap()];
        connection.stream.read_exact(&mut body).unwrap();
        connection.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
        connection.stream.write_all(&body).unwrap();
    });
    let mut config = config(vec![Target::Address(origin.address)]);
    config.bounds.body_bytes = BYTES as u64;
    let gateway = Gateway::start(config);
    let mut client = gateway.connect();
    client.send(&format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {BYTES}\r\n\r\n"));
    let body: String = ('a'..='z').cycle().take(BYTES).collect();
    client.send(&body);
    let answer = client.answer();
    assert_status(&answer, 200);
    assert!(answer.ends_with(&body), "the body came back changed");
}

#[test]
fn head_gets_no_body_and_keeps_the_length() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n");
    let gateway = Gateway::before(&origin);
    for _ in 0..2 {
        let mut client = gateway.connect();
        client.send("HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let answer = client.rest();
        assert_status(&answer, 200);
        assert_eq!(header(&answer, "content-length"), Some("9"));
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_problem_has_no_body_for_head() {
    let mut config = config(vec![Target::Echo]);
    config.routes.clear();
    let gateway = Gateway::start(config);
    let mut client = gateway.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    let answer = client.rest();
    assert_status(&answer, 404);
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn a_connection_that_the_origin_closed_while_idle_costs_nobody_an_error() {
    let closed = Arc::<AtomicUsize>::default();
    let count = closed.clone();
    let origin = Origin::start(move |_, connection| {
        connection.request();
        connection.request();
        connection.send(OK);
        connection.stream.shutdown(std::net::Shutdown::Both).unwrap();
        count.fetch_add(1, Ordering::SeqCst);
    });
    let gateway = Gateway::before(&origin);
    let mut client = gateway.connect();
    for number in 1..=5 {
        // The body looks like a head to the origin, which thus reads all of it.
        client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n\r\n\r\n");
        assert_status(&client.answer(), 200);
        eventually(|| closed.load(Ordering::SeqCst) == number);
    }
    assert_eq!(origin.connections(), 5);
}

#[test]
fn an_endpoint_that_is_down_is_passed_over() {
    let down = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let origin = Origin::answering(OK);
    let endpoints = [down, origin.address].map(Target::Address);
    let gateway = Gateway::start(config(endpoints.into()));
    for _ in 0..4 {
        assert_status(&gateway.get(), 200);
    }
}

#[test]
fn a_service_that_is_down_is_502() {
    let down = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = Gateway::start(config(vec![Target::Address(down)]));
    assert_problem(&gateway.get(), 502);
    assert_eq!(gateway.errors("upstream_connect"), 1);
}

#[test]
fn a_service_that_hangs_is_504_and_its_connection_closed() {
    let (closed, is_closed) = std::sync::mpsc::sync_channel(1);
    let origin = Origin::start(move |_, connection| {
        connection.request();
        connection.hang();
        closed.send(()).unwrap();
    });
    let mut config = config(vec![Target::Address(origin.address)]);
    config.upstreams[0].response_timeout = SHORT;
    let gateway = Gateway::start(config);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_problem(&client.answer(), 504);
    is_closed.recv_timeout(PATIENCE).unwrap();
    // The client's own connection has nothing to do with it.
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_problem(&client.answer(), 504);
    assert_eq!(gateway.errors("upstream_timeout"), 2);
}

#[test]
fn rubbish_is_502() {
    let rubbish = ["SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"];
    let switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n";
    for rubbish in rubbish.into_iter().chain([switching]) {
        let origin = Origin::answering(rubbish);
        let gateway = Gateway::before(&origin);
        assert_problem(&gateway.get(), 502);
        assert_eq!(gateway.errors("upstream_protocol"), 1, "{rubbish}");
    }
}

#[test]
fn an_answer_whose_head_is_too_large_is_502() {
    let origin = Origin::start(|_, connection| {
        connection.request();
        connection.send(&format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(20_000)));
    });
    assert_problem(&Gateway::before(&origin).get(), 502);
}

#[test]
fn an_answer_that_breaks_off_is_seen_to_and_its_connection_not_reused() {
    let origin = Origin::start(|number, connection| {
        connection.request();
        connection.send(if number == 0 {
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
        } else {
            OK
        });
    });
    let gateway = Gateway::before(&origin);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let answer = client.rest();
    assert_eq!(header(&answer, "content-length"), Some("100"));
    assert!(answer.ends_with("\r\n\r\nhalf"), "{answer}");
    assert_status(&gateway.get(), 200);
    assert_eq!(origin.connections(), 2);
    // The client has an answer before the account of its request is closed.
    eventually(|| gateway.shared.counters.snapshot().requests.answered["2xx"] == 2);
    let requests = gateway.shared.counters.snapshot().requests;
    assert_eq!((requests.broken, requests.errors["upstream_reset"]), (1, 1));
}

#[test]
fn an_answer_that_stalls_midway_is_broken_off() {
    let origin = Origin::start(|_, connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        connection.hang();
    });
    let mut config = config(vec![Target::Address(origin.address)]);
    config.bounds.idle_timeout = SHORT;
    let gateway = Gateway::start(config);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(client.rest().ends_with("\r\n\r\nhalf"));
    eventually(|| gateway.errors("upstream_timeout") == 1);
}

#[test]
fn what_is_for_one_hop_stays_there_in_both_directions() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X-Inner\r\nX-Inner: 1\r\n\
         Keep-Alive: timeout=5\r\nX-Outer: 2\r\n\r\n",
    );
    let gateway = Gateway::before(&origin);
    let answer = gateway.ask(
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: X-Drop, keep-alive\r\nX-Drop: 1\r\nTE: trailers\r\n\
         Upgrade: websocket\r\nProxy-Authorization: x\r\nKeep-Alive: 5\r\nX-Keep: 2\r\n\r\n",
    );
    assert_eq!(header(&answer, "x-outer"), Some("2"));
    assert!(header(&answer, "x-inner").or(header(&answer, "keep-alive")).is_none(), "{answer}");
    let head = &origin.heads()[0];
    assert_eq!(header(head, "x-keep"), Some("2"));
    for gone in ["x-drop", "te", "upgrade", "proxy-authorization", "keep-alive", "connection"] {
        assert!(header(head, gone).is_none(), "{gone}: {head}");
    }
}

#[test]
fn only_a_trusted_proxy_is_believed() {
    let request = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 198.51.100.7\r\n\
                   X_Forwarded_For: 198.51.100.8\r\nForwarded: for=198.51.100.9\r\n\
                   X-Forwarded-Proto: https\r\nX-Request-Id: mine\r\n\r\n";
    let origin = Origin::answering(OK);
    let answer = Gateway::before(&origin).ask(request);
    assert_ne!(header(&answer, "x-request-id"), Some("mine"));
    let head = &origin.heads()[0];
    assert!(!head.contains("198.51.100."), "{head}");
    assert_eq!(header(head, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(header(head, "x-forwarded-proto"), Some("http"));

    let mut config = config(vec![Target::Address(origin.address)]);
    config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let gateway = Gateway::start(config);
    let answer = gateway.ask(request);
    assert_eq!(header(&answer, "x-request-id"), Some("mine"));
    let head = &origin.heads()[1];
    assert_eq!(header(head, "x-forwarded-for"), Some("198.51.100.7, 127.0.0.1"));
    assert_eq!(header(head, "x-forwarded-proto"), Some("https"));
    assert_eq!(header(head, "forwarded"), Some("for=198.51.100.9"));

    gateway.deny("198.51.100.7/32");
    assert_problem(&gateway.ask(request), 403);
}

#[test]
fn a_body_that_is_too_large_is_refused_before_the_service_hears_of_it() {
    let origin = Origin::answering(OK);
    let gateway = Gateway::before(&origin);
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n");
    let answer = client.answer();
    assert_problem(&answer, 413);
    assert_eq!(header(&answer, "connection"), Some("close"));
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_body_that_becomes_too_large_is_refused() {
    let origin = Origin::start(|_, connection| connection.hang());
    let gateway = Gateway::before(&origin);
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(&format!("320\r\n{}\r\n", "x".repeat(800)));
    client.send(&format!("320\r\n{}\r\n", "x".repeat(800)));
    assert_problem(&client.answer(), 413);
}

#[test]
fn a_slow_body_is_408_and_the_clients_fault() {
    let origin = Origin::start(|_, connection| connection.hang());
    let mut config = config(vec![Target::Address(origin.address)]);
    config.bounds.idle_timeout = SHORT;
    let gateway = Gateway::start(config);
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf");
    let answer = client.answer();
    assert_problem(&answer, 408);
    assert_eq!(header(&answer, "connection"), Some("close"));
}

#[test]
fn a_slow_head_is_cut_off() {
    let mut config = config(vec![Target::Echo]);
    config.bounds.head_timeout = SHORT;
    let gateway = Gateway::start(config);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost:");
    let answer = client.rest();
    assert_problem(&answer, 408);
    assert_eq!(header(&answer, "connection"), Some("close"));
    eventually(|| gateway.shared.counters.snapshot().connections.heads_timed_out == 1);
    // The second head of a connection has the same time, from its first byte on.
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_status(&client.answer(), 200);
    client.send("GET ");
    assert_problem(&client.rest(), 408);
    eventually(|| gateway.shared.counters.snapshot().connections.heads_timed_out == 2);
    // Who has said nothing at all is told nothing.
    assert_eq!(gateway.connect().rest(), "");
    eventually(|| gateway.shared.counters.snapshot().connections.heads_timed_out == 3);
}

#[test]
fn an_idle_connection_is_closed() {
    let mut config = config(vec![Target::Echo]);
    config.bounds.keep_alive_timeout = SHORT;
    let gateway = Gateway::start(config);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_status(&client.answer(), 200);
    assert_eq!(client.rest(), "");
    eventually(|| gateway.shared.counters.snapshot().connections.open == 0);
}

#[test]
fn a_head_beyond_its_bounds_is_refused() {
    let gateway = Gateway::start(config(vec![Target::Echo]));
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(17_000));
    assert_status(&gateway.ask(&long), 431);
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: 1\r\n".repeat(100));
    assert_status(&gateway.ask(&many), 431);
    assert_status(&gateway.ask("GET / HTTP/1.1\r\nHost : h\r\n\r\n"), 400);
    eventually(|| gateway.shared.counters.snapshot().connections.heads_malformed == 3);
}

#[test]
fn targets_that_can_be_read_in_two_ways_are_refused() {
    let origin = Origin::answering(OK);
    let gateway = Gateway::before(&origin);
    let ask = |text: &str| gateway.ask(&text.replace('\n', "\r\n"));
    assert_problem(&ask("GET / HTTP/1.1\n\n"), 400);
    assert_problem(&ask("GET / HTTP/1.1\nHost: a\nHost: b\n\n"), 400);
    assert_problem(&ask("GET / HTTP/1.1\nHost: a@b\n\n"), 400);
    assert_problem(&ask("GET http://a/ HTTP/1.1\nHost: b\n\n"), 400);
    assert_problem(&ask("CONNECT a:80 HTTP/1.1\nHost: a:80\n\n"), 501);
    assert_eq!(origin.connections(), 0);
    assert_status(&ask("GET http://a/b HTTP/1.1\nHost: a\n\n"), 200);
    assert!(origin.heads()[0].starts_with("GET /b HTTP/1.1\r\n"), "{:?}", origin.heads());
}

#[test]
fn two_lengths_never_reach_the_service() {
    let origin = Origin::answering(OK);
    let gateway = Gateway::before(&origin);
    let mut client = gateway.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
    );
    // One answer, and the rest of the connection is nobody's request.
    let answer = client.rest();
    assert_problem(&answer, 400);
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1);
    for second in ["Content-Length: 3", "Content-Length: 4"] {
        let two = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n{second}\r\n\r\nabc");
        assert_problem(&gateway.ask(&two), 400);
    }
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_denied_peer_is_closed_at_accept_and_in_the_middle_of_a_connection() {
    let gateway = Gateway::start(config(vec![Target::Echo]));
    let mut open = gateway.connect();
    open.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_status(&open.answer(), 200);
    gateway.deny("127.0.0.0/8");
    assert_eq!(gateway.connect().rest(), "");
    assert_eq!(gateway.shared.counters.snapshot().connections.refused["denied"], 1);
    for _ in 0..2 {
        open.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_problem(&open.answer(), 403);
    }
}

#[test]
fn connections_are_bounded() {
    let mut config = config(vec![Target::Echo]);
    config.bounds.connections = 1;
    let gateway = Gateway::start(config);
    let first = gateway.connect();
    eventually(|| gateway.shared.counters.snapshot().connections.open == 1);
    assert_eq!(gateway.connect().rest(), "");
    assert_eq!(gateway.shared.counters.snapshot().connections.refused["too_many"], 1);
    drop(first);
    eventually(|| gateway.shared.counters.snapshot().connections.open == 0);
    assert_status(&gateway.get(), 200);
}

#[test]
fn a_client_that_leaves_is_accounted_for_once_and_the_service_is_told() {
    let (closed, is_closed) = std::sync::mpsc::sync_channel(1);
    let origin = Origin::start(move |_, connection| {
        connection.request();
        connection.hang();
        closed.send(()).unwrap();
    });
    let gateway = Gateway::before(&origin);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    eventually(|| gateway.shared.counters.snapshot().requests.active == 1);
    drop(client);
    is_closed.recv_timeout(PATIENCE).unwrap();
    eventually(|| gateway.shared.counters.snapshot().requests.abandoned == 1);
    let requests = gateway.shared.counters.snapshot().requests;
    assert_eq!((requests.active, requests.answered.values().sum::<u64>()), (0, 0));
}

#[test]
fn draining_finishes_what_is_in_flight_and_closes_the_rest() {
    let (go, may_answer) = std::sync::mpsc::sync_channel::<()>(1);
    let may_answer = Mutex::new(may_answer);
    let origin = Origin::start(move |_, connection| {
        connection.request();
        may_answer.lock().unwrap().recv().unwrap();
        connection.send(OK);
    });
    let mut gateway = Gateway::before(&origin);
    let mut idle = gateway.connect();
    let mut busy = gateway.connect();
    busy.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    eventually(|| origin.heads().len() == 1);
    let mut door = gateway.door.take().unwrap();
    door.drain().unwrap();
    assert_eq!(idle.rest(), "");
    assert!(TcpStream::connect(gateway.address).is_err(), "still listening");
    go.send(()).unwrap();
    let answer = busy.rest();
    assert_status(&answer, 200);
    assert_eq!(header(&answer, "connection"), Some("close"));
    door.join().unwrap();
}

#[test]
fn draining_has_an_end() {
    let origin = Origin::start(|_, connection| connection.hang());
    let mut config = config(vec![Target::Address(origin.address)]);
    config.bounds.drain_timeout = SHORT;
    let mut gateway = Gateway::start(config);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    eventually(|| origin.connections() == 1);
    let mut door = gateway.door.take().unwrap();
    door.drain().unwrap();
    assert_eq!(client.rest(), "");
    door.join().unwrap();
}

#[test]
fn a_new_configuration_and_new_addresses_are_taken_while_connections_stay() {
    let origin = Origin::answering(OK);
    let mut gateway = Gateway::before(&origin);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_status(&client.answer(), 200);

    let echo = Origin::answering("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n");
    let config = config(vec![Target::Address(echo.address)]);
    let snapshot = Snapshot::new(
        with_routes(config, &gateway.shared.counters),
        &mut Directory::new(1),
        &Clients::default(),
        &gateway.shared.counters,
    );
    gateway.shared.snapshot.store(Arc::new(snapshot));
    let old = gateway.address;
    let new =
        Sockets::bind(&["127.0.0.1:0".parse().unwrap()], 1, &mut Inherited::default()).unwrap();
    gateway.address = new.addresses()[0];
    let door = gateway.door.as_mut().unwrap();
    door.listen(vec![new.addresses()[0]], new).unwrap();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_status(&client.answer(), 201);
    assert_status(&gateway.get(), 201);
    eventually(|| TcpStream::connect(old).is_err());
}
