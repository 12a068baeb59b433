//! What workers report, in process: who did it and how that is known, and what the evidence says.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails, in its helpers too"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use gateway::base::signal::Signal;
use gateway::config::{
    self, Ceiling, Feedback, FeedbackBy, FeedbackRule, Measure, Share, SharedSource,
};
use gateway::feedback::Reporter;
use gateway::feedback::evidence::{Evidence, Good, Report, Source};
use gateway::limit::Limits;
use gateway::listen::sockets::{Inherited, Sockets};
use gateway::listen::{Door, Shared};
use gateway::observe::Registry;
use gateway::observe::access_log::AccessLog;
use gateway::request::listener::Listeners;
use gateway::request::{Compiled, Routes, Snapshot};
use gateway::rules::classify::Classifier;
use gateway::tls::client::Clients;
use gateway::tls::store::Store;
use gateway::upstream::directory::Directory;
use socket2::{Domain, Socket, Type};
use tokio::runtime::Builder;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

/// Longer than anything here takes; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(20);

const TEXT: &str = "
workers: 1
listen: [{address: 127.0.0.1:1}]
kernel: {attach: off}
trusted_proxies: [127.0.0.9]
upstreams: {nobody: {endpoints: [127.0.0.1:9]}}
routes:
  - {name: own, match: {path: /own}, respond: {body: own},
     limits: [{name: mine, per: client_address, rate: 1/h}]}
  - {name: there, match: {path: /there}, respond: {body: here}}
  - {name: gone, match: {path: /gone}, respond: {status: 404}}
  - {name: sick, match: {path: /sick}, upstream: nobody}
";

fn feedback() -> Feedback {
    let rule = FeedbackRule {
        name: "all".into(),
        signals: Signal::ALL.to_vec(),
        limit: None,
        count: 1,
        per: Duration::from_secs(1),
        by: FeedbackBy::Source,
        under_pressure: true,
        measure: Measure::Ban,
        lasts: Duration::from_secs(1),
        doubling_up_to: Duration::from_secs(1),
    };
    Feedback {
        dry_run: false,
        rules: vec![rule],
        weights: [1000; Signal::ALL.len()],
        scanner_paths: ["/.env*"].map(Box::from).into(),
        max_sources: 1024,
        prefix_bits: [24, 48],
        shared: SharedSource { consumers: 2, evidence: None },
        ceiling: Ceiling { bans_per_minute: 1, good_share: Share::WHOLE },
        spread: None,
        crowdsec: None,
    }
}

struct Gateway {
    door: Option<Door>,
    address: SocketAddr,
    inbox: Receiver<Report>,
}

impl Gateway {
    fn start(listen: &str) -> Self {
        let mut config =
            config::parse("test.yaml", &TEXT.replace("{address: 127.0.0.1:1}", listen)).unwrap();
        config.listen[0].address = "127.0.0.1:0".parse().unwrap();
        config.feedback = Some(Arc::new(feedback()));
        let sockets = [config.listen[0].address];
        let sockets = Sockets::bind(&sockets, 1, &mut Inherited::default()).unwrap();
        let address = sockets.addresses()[0];
        config.listen[0].address = address;
        let config = Arc::new(config);
        let counters = Registry::new(1);
        let compiled = Compiled {
            routes: Arc::new(Routes::new(&config, &counters)),
            authenticators: Arc::default(),
            limits: Arc::new(Limits::new(&config, 1, &Limits::default(), None).unwrap()),
            config: Arc::clone(&config),
        };
        let snapshot =
            Snapshot::new(compiled, &mut Directory::new(1), &Clients::default(), &counters);
        let listeners = Listeners::new(&config, &Store::default(), &Listeners::default()).unwrap();
        let (reporter, inbox) = Reporter::new();
        let shared = Shared {
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            listeners: Arc::new(ArcSwap::from_pointee(listeners)),
            rules: Arc::new(ArcSwap::from_pointee(Classifier::default())),
            counters,
            access_log: AccessLog::start(None).unwrap(),
            reporter,
        };
        Self { door: Some(Door::open(sockets, &shared).unwrap()), address, inbox }
    }

    fn connect(&self, source: &str) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(ip(source), 0).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// What is answered to these bytes from `source`, to the end of the connection.
    fn talk(&self, source: &str, text: &str) -> String {
        let mut stream = self.connect(source);
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(&self, source: &str, path: &str, fields: &str) -> String {
        let close = "host: a\r\nconnection: close\r\n";
        self.talk(source, &format!("GET {path} HTTP/1.1\r\n{close}{fields}\r\n"))
    }

    fn report(&mut self) -> Report {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let received = async { timeout(PATIENCE, self.inbox.recv()).await };
        runtime.block_on(received).unwrap().unwrap()
    }

    /// The next evidence; what went well is passed over.
    fn odd(&mut self) -> Evidence {
        loop {
            if let Report::Odd(evidence) = self.report() {
                return *evidence;
            }
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Without its door, a worker has nobody left who could give it an order.
        drop(self.door.take());
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn is_peer(source: Source, address: &str) -> bool {
    matches!(source, Source::Peer(peer) if peer.ip() == ip(address))
}

fn is_believed(source: Source, address: &str) -> bool {
    matches!(source, Source::Believed(client) if client.ip() == ip(address))
}

#[test]
fn evidence_names_the_request_its_route_and_its_limit() {
    let mut gateway = Gateway::start("{address: 127.0.0.1:1}");
    gateway.get("127.0.0.2", "/own", "");
    let answer = gateway.get("127.0.0.2", "/own", "");
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    let evidence = gateway.odd();
    assert_eq!(evidence.signal, Signal::RateLimited);
    assert!(is_peer(evidence.source, "127.0.0.2"), "{evidence:?}");
    assert_eq!((evidence.route.as_deref(), evidence.limit.as_deref()), (Some("own"), Some("mine")));
    assert_eq!(evidence.reason, Some("rate_limited"));
    let id = evidence.request_id.unwrap();
    assert!(answer.contains(&format!("x-request-id: {}\r\n", id.to_str().unwrap())), "{answer}");
    gateway.talk("127.0.0.3", "nonsense\r\n\r\n");
    let evidence = gateway.odd();
    assert_eq!((evidence.signal, evidence.route), (Signal::Malformed, None));
    assert!(is_peer(evidence.source, "127.0.0.3"));
    gateway.get("127.0.0.3", "/gone", "");
    assert_eq!(gateway.odd().route.as_deref(), Some("gone"));
}

#[test]
fn whom_a_header_names_answers_only_if_a_trusted_proxy_says_so() {
    let mut gateway = Gateway::start("{address: 127.0.0.1:1}");
    let named = "x-forwarded-for: 192.0.2.1\r\n";
    gateway.get("127.0.0.2", "/.env", named);
    let evidence = gateway.odd();
    assert_eq!(evidence.signal, Signal::Scanner);
    assert!(is_peer(evidence.source, "127.0.0.2"), "{evidence:?}");
    gateway.get("127.0.0.9", "/.env", named);
    let evidence = gateway.odd();
    assert!(is_believed(evidence.source, "192.0.2.1"), "{evidence:?}");
    // What cannot be read is nobody's but the proxy's, which is spared: the next one is the other's.
    gateway.get("127.0.0.9", "/.env", "x-forwarded-for: 192.0.2.1, ?\r\n");
    gateway.talk("127.0.0.9", "nonsense\r\n\r\n");
    gateway.get("127.0.0.2", "/nothing", "");
    let evidence = gateway.odd();
    assert_eq!(evidence.signal, Signal::NotFound);
    assert!(is_peer(evidence.source, "127.0.0.2"), "{evidence:?}");
}

#[test]
fn whom_the_proxy_protocol_names_is_only_believed() {
    let listen = "{address: 127.0.0.1:1, proxy_protocol: {from: [127.0.0.0/8]}}";
    let mut gateway = Gateway::start(listen);
    let header = |named: &str| format!("PROXY TCP4 {named} 127.0.0.1 1 2\r\n");
    let get = "GET /.env HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    gateway.talk("127.0.0.4", &(header("192.0.2.1") + get));
    assert!(is_believed(gateway.odd().source, "192.0.2.1"));
    // Also where it says of itself that it is the client.
    gateway.talk("127.0.0.4", &(header("127.0.0.4") + get));
    assert!(is_believed(gateway.odd().source, "127.0.0.4"));
    drop(gateway.connect("127.0.0.4").write_all(header("192.0.2.7").as_bytes()));
    let evidence = gateway.odd();
    assert_eq!(evidence.signal, Signal::NoRequest);
    assert!(is_believed(evidence.source, "192.0.2.7"), "{evidence:?}");
}

#[test]
fn what_went_well_is_told_together_and_a_sick_service_says_nothing() {
    let mut gateway = Gateway::start("{address: 127.0.0.1:1}");
    for _ in 0..5 {
        gateway.get("127.0.0.2", "/there", "");
        gateway.get("127.0.0.3", "/gone", "");
    }
    for _ in 0..3 {
        gateway.get("127.0.0.2", "/sick", "");
    }
    let (mut good, mut missing) = (0, 0);
    while (good, missing) != (5, 5) {
        match gateway.report() {
            Report::Good(goods, _) => {
                for Good { source, consumer, requests } in goods {
                    assert!(is_peer(source, "127.0.0.2") && consumer.is_none(), "{source:?}");
                    good += requests;
                }
            }
            Report::Odd(evidence) => {
                assert_eq!(evidence.signal, Signal::NotFound);
                assert!(is_peer(evidence.source, "127.0.0.3"), "{evidence:?}");
                missing += 1;
            }
            Report::Pressure(..) => panic!("nobody waited"),
        }
    }
}
