//! Connections that rest between two requests, through the real binary: parked they cost next to nothing, and whatever
//! holds for a connection that is served holds for them.
#![expect(clippy::disallowed_methods, reason = "nobody is closed before the time is over")]

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use harness::client::{Client, Response};
use harness::gateway::Gateway;
use harness::metrics::Page;
use harness::origin::{Origin, Reply, Request};
use harness::site::Site;
use harness::topology::{Host, Topology};
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

/// More than the second after which a connection is parked, also where the machine has no time for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Of a protected address nothing is held against it.
const STRANGER: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// A gateway that answers by itself.
fn gateway<'s>(site: &'s Site, bounds: &Value) -> Result<(Gateway<'s>, SocketAddr)> {
    let listen = site.free_address()?;
    let gateway = Gateway::unprivileged(
        site.namespace.as_ref(),
        json!({
            "listen": [{"address": listen.to_string()}],
            "workers": 2,
            "kernel": {"attach": "off"},
            "bounds": bounds,
            "routes": [{"match": {"path": "/{rest*}"}, "respond": {"body": "ok"}}],
            "feedback": {"rules": [], "weights": {"no_request": 1}},
        }),
    );
    let mut gateway = gateway?;
    gateway.start()?;
    Ok((gateway, listen))
}

fn metric(gateway: &Gateway<'_>, series: &str) -> Result<u64> {
    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    page.value(series).with_context(|| format!("no {series}"))
}

/// Waits until so many connections are parked, and no more are.
fn parked(gateway: &Gateway<'_>, count: u64) -> Result {
    wait_for(&format!("that {count} are parked"), PATIENCE, || {
        Ok((metric(gateway, "gateway_connections_parked")? == count).then_some(()))
    })
}

/// Waits until so many connections are open, parked or not.
fn open(gateway: &Gateway<'_>, count: u64) -> Result {
    wait_for(&format!("that {count} are open"), PATIENCE, || {
        Ok((metric(gateway, "gateway_connections_open")? == count).then_some(()))
    })
}

/// A connection after one request.
fn served(site: &Site, source: Option<IpAddr>, target: SocketAddr) -> Result<Client> {
    let mut client =
        site.enter(|| Client::connect_here(source, target, Duration::from_secs(60)))??;
    again(&mut client)?;
    Ok(client)
}

fn again(client: &mut Client) -> Result<Response> {
    let answer = client.get("/")?;
    assert_eq!((answer.status, &*answer.text()), (200, "ok"));
    Ok(answer)
}

/// Ended in order, with nothing said.
fn closed(client: &mut Client) -> Result {
    assert_eq!(client.read_to_end()?, b"");
    Ok(())
}

#[test]
fn who_comes_back_is_served_as_ever_and_who_leaves_is_gone() -> Result {
    let site = Site::new()?;
    let (gateway, listen) = gateway(&site, &json!({}))?;
    let mut clients =
        (0..4).map(|_| served(&site, STRANGER, listen)).collect::<Result<Vec<_>>>()?;
    for _ in 0..2 {
        parked(&gateway, 4)?;
        assert_eq!(metric(&gateway, "gateway_connections_open")?, 4);
        let [one, two, bytewise, _] = &mut clients[..] else { unreachable!() };
        again(one)?;
        two.send(&[REQUEST, REQUEST].concat())?;
        assert_eq!([two.receive()?.status, two.receive()?.status], [200; 2]);
        for byte in REQUEST {
            bytewise.send(&[*byte])?;
        }
        assert_eq!(bytewise.receive()?.status, 200);
    }
    parked(&gateway, 4)?;
    // What a client says last is answered, too, and no head is awaited of one that has said nothing.
    let mut last = clients.remove(0);
    last.send(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")?;
    assert!(last.read_to_end()?.ends_with(b"ok"));
    drop(clients);
    open(&gateway, 0)?;
    assert_eq!(metric(&gateway, "gateway_connections_parked")?, 0);
    let failed = "gateway_connections_failed_total{reason=\"head_timed_out\"}";
    assert_eq!(metric(&gateway, failed)?, 0);
    let signals = "gateway_feedback_signals_total{signal=\"no_request\"}";
    assert_eq!(metric(&gateway, signals)?, 0);
    Ok(())
}

#[test]
fn a_request_that_comes_just_then_is_not_lost() -> Result {
    let site = Site::new()?;
    let (_gateway, listen) = gateway(&site, &json!({}))?;
    thread::scope(|scope| {
        let client = |number: u64| {
            let site = &site;
            move || -> Result {
                let mut client = served(site, None, listen)?;
                for turn in 0..3 {
                    thread::sleep(Duration::from_micros(995_000 + 300 * (number * 3 + turn)));
                    again(&mut client)?;
                }
                Ok(())
            }
        };
        let clients: Vec<_> = (0..32).map(|number| scope.spawn(client(number))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("it does not panic"))
    })
}

#[test]
fn nothing_that_is_under_way_is_parked() -> Result {
    let site = Site::new()?;
    let listen = site.free_address()?;
    let released = Arc::new(AtomicBool::new(false));
    let slow = site.origin({
        let released = Arc::clone(&released);
        move |request: &Request| {
            while request.line.starts_with("GET /slow") && !released.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
            Reply::Answer(200, "ok")
        }
    })?;
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "bounds": {"head_timeout": "1h"},
        "upstreams": {"slow": {"endpoints": [slow.address.to_string()], "timeout": {"response": "1h"}}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "slow"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let mut waiting = served(&site, None, listen)?;
    waiting.send(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n")?;
    let (begin, rest) = REQUEST.split_at(9);
    let mut halfway = served(&site, None, listen)?;
    halfway.send(begin)?;
    let mut ahead = served(&site, None, listen)?;
    ahead.send(&[REQUEST, begin].concat())?;
    assert_eq!(ahead.receive()?.status, 200);
    // Those have been as they are for longer than this one.
    let _resting = served(&site, None, listen)?;
    parked(&gateway, 1)?;
    assert_eq!(metric(&gateway, "gateway_connections_open")?, 4);
    released.store(true, Ordering::Relaxed);
    halfway.send(rest)?;
    ahead.send(rest)?;
    for client in [&mut waiting, &mut halfway, &mut ahead] {
        assert_eq!(client.receive()?.status, 200);
    }
    parked(&gateway, 4)
}

#[test]
fn age_and_requests_go_on_counting() -> Result {
    let site = Site::new()?;
    let closes = |answer: &Response| answer.header("connection") == Some("close");
    let (used, listen) = gateway(&site, &json!({"connection_requests": 3}))?;
    let mut client = served(&site, None, listen)?;
    parked(&used, 1)?;
    assert!(!closes(&again(&mut client)?));
    parked(&used, 1)?;
    assert!(closes(&again(&mut client)?));
    // It is older than this by the time that it is parked.
    let (old, listen) = gateway(&site, &json!({"connection_lifetime": "1s"}))?;
    let mut client = served(&site, None, listen)?;
    parked(&old, 1)?;
    assert!(closes(&again(&mut client)?));
    closed(&mut client)
}

#[test]
fn who_does_not_come_back_in_time_is_closed() -> Result {
    const TIMEOUT: Duration = Duration::from_secs(8);
    let site = Site::new()?;
    let (gateway, listen) = gateway(&site, &json!({"keep_alive_timeout": "8s"}))?;
    let mut brief = served(&site, STRANGER, listen)?;
    parked(&gateway, 1)?;
    again(&mut brief)?;
    let start = Instant::now();
    parked(&gateway, 1)?;
    closed(&mut brief)?;
    assert!(start.elapsed() >= TIMEOUT - Duration::from_millis(100), "{:?}", start.elapsed());
    open(&gateway, 0)?;
    assert_eq!(metric(&gateway, "gateway_connections_parked")?, 0);
    let signals = "gateway_feedback_signals_total{signal=\"no_request\"}";
    assert_eq!(metric(&gateway, signals)?, 0);
    Ok(())
}

#[test]
fn they_count_as_open_for_the_bounds() -> Result {
    let site = Site::new()?;
    let source = |last: u8| Some(IpAddr::from([127, 0, 0, last]));
    let bounds = json!({"connections": 3, "connections_per_source": 2});
    let (gateway, listen) = gateway(&site, &bounds)?;
    let mut first = served(&site, source(2), listen)?;
    let second = served(&site, source(2), listen)?;
    parked(&gateway, 2)?;
    assert!(served(&site, source(2), listen).is_err(), "a third of one source");
    let _other = served(&site, source(3), listen)?;
    parked(&gateway, 3)?;
    assert!(served(&site, source(4), listen).is_err(), "a fourth of all");
    drop(second);
    open(&gateway, 2)?;
    let _third = served(&site, source(2), listen)?;
    again(&mut first)?;
    Ok(())
}

#[test]
fn they_are_closed_at_once_when_the_gateway_ends_or_another_takes_over() -> Result {
    let site = Site::new()?;
    let (mut gateway, listen) = gateway(&site, &json!({"drain_timeout": "1h"}))?;
    let mut client = served(&site, None, listen)?;
    parked(&gateway, 1)?;
    gateway.replace()?;
    closed(&mut client)?;
    let mut client = served(&site, None, listen)?;
    parked(&gateway, 1)?;
    gateway.stop()?;
    closed(&mut client)
}

#[test]
fn a_rule_closes_those_of_whom_it_denies_and_nobody_elses() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let origin = Origin::start(
        Some(&hosts.upstream.namespace),
        SocketAddr::new(hosts.upstream.v4(), 8080),
        |_| Reply::Answer(200, "ok"),
    )?;
    let mut config = hosts.config(origin.address);
    config["kernel"]["attach"] = json!("off");
    let mut gateway = Gateway::new(&hosts.gateway, config)?;
    gateway.start()?;
    let connect = |host: &Host, source: IpAddr| -> Result<Client> {
        let mut client = Client::connect(&host.namespace, Some(source), host.target(), PATIENCE)?;
        again(&mut client)?;
        Ok(client)
    };
    let attacker = &hosts.attacker;
    let neighbour = attacker.add_v4(9)?;
    let mut denied = connect(attacker, attacker.v4())?;
    let mut reset = connect(attacker, neighbour)?;
    let mut good = connect(&hosts.client, hosts.client.v4())?;
    parked(&gateway, 3)?;
    gateway.cli(&["deny", "add", &attacker.v4().to_string()])?.ok()?;
    closed(&mut denied)?;
    gateway.cli(&["deny", "add", &neighbour.to_string(), "--reset"])?.ok()?;
    let ended = reset.read_to_end().expect_err("a reset");
    let kind = ended.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    assert_eq!(kind, Some(ErrorKind::ConnectionReset));
    parked(&gateway, 1)?;
    assert_eq!(metric(&gateway, "gateway_connections_open")?, 1);
    let refused = "gateway_connections_refused_total{reason=\"denied\"}";
    assert_eq!(metric(&gateway, refused)?, 2);
    again(&mut good)?;
    Ok(())
}

#[test]
fn behind_the_proxy_protocol_they_are_their_clients() -> Result {
    let site = Site::new()?;
    let listen = site.free_address()?;
    let service = site.origin(|_| Reply::Answer(200, "ok"))?;
    let config = json!({
        "listen": [{"address": listen.to_string(), "proxy_protocol": {"from": ["127.0.0.0/8"]}}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "bounds": {"connections_per_source": 2},
        "upstreams": {"service": {"endpoints": [service.address.to_string()]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let connect = |client: &str| -> Result<Client> {
        let mut connection =
            site.enter(|| Client::connect_here(None, listen, Duration::from_secs(60)))??;
        let header = format!("PROXY TCP4 {client} 198.51.100.1 4000 80\r\n");
        connection.send(header.as_bytes())?;
        again(&mut connection)?;
        Ok(connection)
    };
    let mut bad = connect("203.0.113.9")?;
    let mut good = connect("203.0.113.10")?;
    let _same = connect("203.0.113.10")?;
    parked(&gateway, 3)?;
    assert!(connect("203.0.113.10").is_err(), "a third of one client");
    gateway.cli(&["deny", "add", "203.0.113.9"])?.ok()?;
    closed(&mut bad)?;
    again(&mut good)?;
    let requests = service.requests();
    let client = requests.last().and_then(|request| request.header("x-forwarded-for"));
    assert_eq!(client, Some("203.0.113.10"));
    Ok(())
}
