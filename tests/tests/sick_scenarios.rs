//! Sick endpoints beside one that lives, over HTTP/1 and HTTP/2, through the real binary.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use harness::gateway::Gateway;
use harness::h2_service::{H2Service, answer};
use harness::http2::{Frame, Http2, kind, reason};
use harness::origin::{Origin, Reply};
use harness::site::{PATIENCE, Site};
use harness::{Result, wait_for};
use serde_json::{Value, json};

/// A gateway in front of `endpoints`, and where it listens; `settings` are of the upstream.
fn gateway<'s>(
    site: &'s Site,
    endpoints: &[SocketAddr],
    mut settings: Value,
) -> Result<(Gateway<'s>, SocketAddr)> {
    let address = site.free_address()?;
    let endpoints: Value = endpoints.iter().map(ToString::to_string).collect();
    let service = settings.as_object_mut().context("no settings")?;
    service.insert("endpoints".to_owned(), endpoints);
    let config = json!({
        "listen": [{"address": address.to_string()}],
        "workers": 1,
        "upstreams": {"service": settings},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    Ok((gateway, address))
}

fn at(gateway: &Gateway<'_>, pointer: &str) -> Result<Value> {
    let status = gateway.status()?;
    let value = status.pointer(pointer).cloned();
    value.with_context(|| format!("no {pointer} in {status}"))
}

/// How the endpoint with this number is.
fn endpoint(gateway: &Gateway<'_>, number: usize, key: &str) -> Result<Value> {
    at(gateway, &format!("/upstreams/0/endpoints/{number}/{key}"))
}

fn ask(site: &Site, address: SocketAddr, method: &str) -> Result<(u16, String)> {
    let mut client = site.connect(None, address)?;
    client
        .send(format!("{method} / HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n\r\n").as_bytes())?;
    let answer = client.receive()?;
    Ok((answer.status, answer.text()))
}

#[test]
fn no_idempotent_request_fails_while_others_hang_and_lie() -> Result {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 60;
    let site = Site::new()?;
    let hung = site.origin(|_| Reply::Hang)?;
    let liar = site.origin(|_| Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n"))?;
    let number = AtomicUsize::new(0);
    let flapping = site.origin(move |_| match number.fetch_add(1, Ordering::Relaxed) % 7 {
        0..3 => Reply::Close,
        _ => Reply::Answer(200, "ok"),
    })?;
    let honest = site.origin(|_| Reply::Answer(200, "ok"))?;
    let on = ["connect_failure", "reset", "timeout"];
    let settings = json!({
        "timeout": {"response": "250ms"},
        "retry": {"on": on, "attempts": 5, "budget": "100%", "backoff": "1ms..2ms"},
        "ejection": {"failures": 3, "max_ejected": "75%"},
        "panic_threshold": "0%",
    });
    let origins: [&Origin; 4] = [&hung, &liar, &flapping, &honest];
    let addresses = origins.map(|origin| origin.address);
    let (gateway, address) = gateway(&site, &addresses, settings)?;
    std::thread::scope(|scope| -> Result {
        let load = || -> Result {
            let mut client = site.connect(None, address)?;
            for number in 0..REQUESTS {
                let answer = client.get("/")?;
                ensure!(answer.status == 200, "{number}: {}", answer.text());
            }
            Ok(())
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(load)).collect();
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(())
    })?;
    for (number, origin) in [&hung, &liar].into_iter().enumerate() {
        assert_eq!(endpoint(&gateway, number, "condition")?, json!("ejected"), "{number}");
        assert!(endpoint(&gateway, number, "ejections")?.as_u64() >= Some(1));
        let why = endpoint(&gateway, number, "why")?.to_string();
        assert!(why.contains(["upstream_timeout", "upstream_protocol"][number]), "{why}");
        // Those that were under way when it was ejected, and no more.
        assert!(origin.requests().len() < 3 + CLIENTS, "{number}: {}", origin.requests().len());
    }
    assert_eq!(endpoint(&gateway, 3, "failures")?, json!(0));
    assert_eq!(endpoint(&gateway, 3, "failures_in_a_row")?, json!(0));
    Ok(())
}

/// What a service does with a request over HTTP/2.
#[derive(Clone, Copy, Debug)]
enum Reply2 {
    Answer(&'static str),
    Sick,
    Hang,
    Reset(u32),
    Close,
    Lie,
}

/// A service that does with its requests what it is told by their numbers, from 0.
struct Origin2 {
    service: H2Service,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    /// The reasons of the streams that the gateway has ended.
    resets: Mutex<Vec<u32>>,
}

impl Origin2 {
    fn start(
        site: &Site,
        script: impl Fn(usize) -> Reply2 + Send + Sync + 'static,
    ) -> Result<Self> {
        let seen = Arc::<Seen>::default();
        let service = H2Service::start(site, {
            let seen = Arc::clone(&seen);
            move |connection, _| seen.serve(connection, &script)
        })?;
        Ok(Self { service, seen })
    }

    fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::Relaxed)
    }

    fn resets(&self) -> Vec<u32> {
        self.seen.resets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Seen {
    fn serve(&self, connection: &mut Http2, script: &dyn Fn(usize) -> Reply2) -> Result {
        connection.frames(&[Frame::settings(&[])])?;
        while let Some(frame) = connection.receive_polite()? {
            if frame.kind == kind::RST_STREAM {
                let mut resets = self.resets.lock().unwrap_or_else(PoisonError::into_inner);
                resets.extend(frame.reason());
            }
            if !frame.ends_stream() {
                continue;
            }
            match script(self.requests.fetch_add(1, Ordering::Relaxed)) {
                Reply2::Answer(body) => connection.frames(&answer(frame.stream, body))?,
                Reply2::Sick => {
                    connection.frames(&[Frame::headers(
                        frame.stream,
                        true,
                        &[(":status", "503")],
                    )])?;
                }
                Reply2::Hang => {}
                Reply2::Reset(reason) => {
                    connection.frames(&[Frame::reset(frame.stream, reason)])?
                }
                Reply2::Close => return Ok(()),
                Reply2::Lie => return connection.send(b"HTTP/1.1 200 OK\r\n\r\n"),
            }
        }
        Ok(())
    }
}

/// The settings of a service that is asked over HTTP/2.
fn h2(mut settings: Value) -> Value {
    settings.as_object_mut().map(|all| all.insert("protocol".to_owned(), json!("h2")));
    settings
}

#[test]
fn what_an_http2_service_fails_goes_on_to_another_and_it_is_ejected() -> Result {
    let site = Site::new()?;
    for (reply, failure) in [
        (Reply2::Close, "upstream_reset"),
        (Reply2::Reset(2), "upstream_reset"),
        (Reply2::Lie, "upstream_protocol"),
        (Reply2::Hang, "upstream_timeout"),
    ] {
        let sick = Origin2::start(&site, move |_| reply)?;
        let honest = Origin2::start(&site, |_| Reply2::Answer("ok"))?;
        let settings = json!({
            "timeout": {"response": "250ms"},
            "retry": {"on": ["reset", "timeout"], "budget": "100%", "backoff": "1ms..2ms"},
            "ejection": {"failures": 2},
        });
        let addresses = [sick.service.address, honest.service.address];
        let (gateway, address) = gateway(&site, &addresses, h2(settings))?;
        for _ in 0..8 {
            assert_eq!(ask(&site, address, "GET")?, (200, "ok".to_owned()), "{reply:?}");
        }
        assert_eq!(sick.requests(), 2, "{reply:?}: it is left alone then");
        assert_eq!(endpoint(&gateway, 0, "condition")?, json!("ejected"), "{reply:?}");
        let why = endpoint(&gateway, 0, "why")?.to_string();
        assert!(why.contains(failure), "{reply:?}: {why}");
        if matches!(reply, Reply2::Hang) {
            assert_eq!(sick.resets(), [reason::CANCEL; 2], "nobody waits for them any more");
        }
    }
    Ok(())
}

#[test]
fn an_http2_service_hands_back_what_it_did_not_do_whatever_the_method() -> Result {
    let site = Site::new()?;
    let busy = Origin2::start(&site, |_| Reply2::Reset(reason::REFUSED_STREAM))?;
    let honest = Origin2::start(&site, |_| Reply2::Answer("ok"))?;
    let sick = Origin2::start(&site, |_| Reply2::Close)?;
    let settings = || h2(json!({"ejection": "off"}));
    let refused = gateway(&site, &[busy.service.address, honest.service.address], settings())?;
    for _ in 0..4 {
        assert_eq!(ask(&site, refused.1, "POST")?.0, 200);
    }
    assert!(busy.requests() > 0);
    drop(refused);
    let (_gateway, address) =
        gateway(&site, &[sick.service.address, honest.service.address], settings())?;
    let mut statuses = [ask(&site, address, "POST")?.0, ask(&site, address, "POST")?.0];
    statuses.sort_unstable();
    assert_eq!((statuses, sick.requests()), ([200, 502], 1), "it may have been done");
    Ok(())
}

#[test]
fn breakers_see_http2_services_fail_and_come_back() -> Result {
    let site = Site::new()?;
    let service = Origin2::start(&site, |number| match number {
        0 => Reply2::Sick,
        1 => Reply2::Close,
        2 => Reply2::Hang,
        _ => Reply2::Answer("ok"),
    })?;
    let settings = json!({
        "timeout": {"response": "250ms"},
        "retry": {"attempts": 1},
        "breaker": {"failures": 3, "open_for": "300ms", "per": "both"},
        "ejection": "off",
    });
    let (gateway, address) = gateway(&site, &[service.service.address], h2(settings))?;
    for status in [503, 502, 504, 503] {
        assert_eq!(ask(&site, address, "GET")?.0, status);
    }
    assert_eq!(service.requests(), 3, "it is left alone");
    assert_eq!(at(&gateway, "/guards/0/breakers/0/state")?, json!("open"));
    assert_eq!(at(&gateway, "/guards/0/breakers/1/state")?, json!("open"));
    wait_for("a probe that passes", PATIENCE, || {
        Ok((ask(&site, address, "GET")?.0 == 200).then_some(()))
    })?;
    assert_eq!(at(&gateway, "/guards/0/breakers/0/state")?, json!("closed"));
    assert_eq!(at(&gateway, "/guards/0/breakers/1/state")?, json!("closed"));
    Ok(())
}

#[test]
fn the_stream_of_a_hedged_request_is_reset_and_its_connection_stays() -> Result {
    let site = Site::new()?;
    let slow = Origin2::start(&site, |_| Reply2::Hang)?;
    let fast = Origin2::start(&site, |_| Reply2::Answer("fast"))?;
    let settings = json!({
        "hedge": {"after": "5ms", "budget": "100%"},
        "retry": {"budget": "100%"},
        "timeout": {"response": "60s"},
        "ejection": {"failures": 1},
    });
    let (gateway, address) =
        gateway(&site, &[slow.service.address, fast.service.address], h2(settings))?;
    for _ in 0..6 {
        assert_eq!(ask(&site, address, "GET")?, (200, "fast".to_owned()));
    }
    assert!(slow.requests() > 0);
    wait_for("the streams to be reset", PATIENCE, || {
        Ok((slow.resets().len() == slow.requests()).then_some(()))
    })?;
    assert!(slow.resets().iter().all(|reason| *reason == reason::CANCEL), "{:?}", slow.resets());
    assert_eq!(endpoint(&gateway, 0, "failures")?, json!(0));
    let opened = at(&gateway, "/proxy/upstream/opened")?;
    assert_eq!(opened, json!(2), "one to each");
    Ok(())
}
