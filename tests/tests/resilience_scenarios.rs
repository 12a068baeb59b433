//! Sick services behind the real binary: killed, hung, flapping, lying and slow. As root each test has a network
//! namespace of its own; otherwise the tests use free ports of the loopback interface.
#![expect(clippy::disallowed_methods, reason = "tests measure real time from outside")]

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use harness::client::{Client, Response};
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use harness::origin::{Origin, Reply, Request};
use harness::{Result, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);

/// Where a test runs.
struct Site {
    namespace: Option<Namespace>,
    listen: SocketAddr,
}

impl Site {
    fn new() -> Result<Self> {
        let namespace = nix::unistd::geteuid().is_root().then(|| Namespace::new("host"));
        let namespace = namespace.transpose()?;
        let bound = match &namespace {
            Some(namespace) => namespace.enter(|| TcpListener::bind("127.0.0.1:0"))?,
            None => TcpListener::bind("127.0.0.1:0"),
        };
        Ok(Self { namespace, listen: bound?.local_addr()? })
    }

    fn origin(&self, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Result<Origin> {
        Origin::start(self.namespace.as_ref(), "127.0.0.1:0".parse()?, script)
    }

    /// Where nobody listens.
    fn nobody(&self) -> Result<SocketAddr> {
        Ok(self.origin(|_| Reply::Close)?.address)
    }

    /// A running gateway in front of `endpoints`; `settings` are of the upstream.
    fn gateway(&self, endpoints: &[SocketAddr], settings: Value) -> Result<Gateway<'_>> {
        let mut gateway =
            Gateway::unprivileged(self.namespace.as_ref(), self.config(endpoints, settings))?;
        gateway.start()?;
        Ok(gateway)
    }

    fn config(&self, endpoints: &[SocketAddr], mut settings: Value) -> Value {
        let addresses: Value = endpoints.iter().map(ToString::to_string).collect();
        settings.as_object_mut().map(|settings| settings.insert("endpoints".to_owned(), addresses));
        json!({
            "listen": [{"address": self.listen.to_string()}],
            "workers": 1,
            "upstreams": {"service": settings},
            "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
        })
    }

    fn connect(&self) -> Result<Client> {
        let connect = || Client::connect_here(None, self.listen, PATIENCE);
        match &self.namespace {
            Some(namespace) => namespace.enter(connect)?,
            None => connect(),
        }
    }

    fn get(&self, path: &str) -> Result<Response> {
        self.connect()?.get(path)
    }

    fn send(&self, method: &str, body: &str) -> Result<Response> {
        let mut client = self.connect()?;
        let length = body.len();
        client.send(
            format!("{method} /x HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}")
                .as_bytes(),
        )?;
        client.receive()
    }
}

fn ok(_: &Request) -> Reply {
    Reply::Answer(200, "ok")
}

/// What `gateway status` counts under `proxy.upstream`.
fn counted(gateway: &Gateway<'_>, pointer: &str) -> Result<u64> {
    let status = gateway.status()?;
    let value = status.pointer(&format!("/proxy/upstream{pointer}"));
    value.and_then(Value::as_u64).ok_or_else(|| anyhow::anyhow!("no {pointer} in {status}"))
}

#[test]
fn no_idempotent_request_fails_while_one_endpoint_lives() -> Result {
    const CLIENTS: usize = 16;
    const REQUESTS: usize = 150;
    let site = Site::new()?;
    let slow = |request: &Request| {
        std::thread::sleep(Duration::from_millis(2));
        ok(request)
    };
    let mut origins = Vec::new();
    for _ in 0..3 {
        origins.push(site.origin(slow)?);
    }
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let gateway = site.gateway(&addresses, json!({}))?;
    let done = AtomicUsize::new(0);
    let load = |methods: &[&str]| -> Result {
        let mut client = site.connect()?;
        for number in 0..REQUESTS {
            let method = methods[number % methods.len()];
            let body = if method == "PUT" { "content-length: 4\r\n\r\nbody" } else { "\r\n" };
            client.send(format!("{method} / HTTP/1.1\r\nhost: test\r\n{body}").as_bytes())?;
            let answer = client.receive()?;
            ensure!(answer.status == 200, "{method} {number}: {}", answer.text());
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result {
        let methods = ["GET", "PUT", "DELETE", "OPTIONS", "TRACE"];
        let load = &load;
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(move || load(&methods))).collect();
        // One after the other, in the midst of requests; the last one lives.
        for share in [4, 2] {
            while done.load(Ordering::Relaxed) < CLIENTS * REQUESTS / share
                && !clients.iter().any(|client| client.is_finished())
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(origins.remove(0));
        }
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(())
    })?;
    assert_eq!(done.into_inner(), CLIENTS * REQUESTS);
    assert!(counted(&gateway, "/retries/reset")? > 0, "the load was there when they died");
    Ok(())
}

#[test]
fn a_post_is_never_sent_twice_and_goes_on_where_nothing_was_sent() -> Result {
    let site = Site::new()?;
    let origins = [site.origin(|_| Reply::Close)?, site.origin(|_| Reply::Close)?];
    let addresses = [site.nobody()?, origins[0].address, origins[1].address];
    let _gateway = site.gateway(&addresses, json!({}))?;
    for sent in 1..=6 {
        let answer = site.send("POST", "body")?;
        assert_eq!(answer.status, 502);
        let seen: usize = origins.iter().map(|origin| origin.requests().len()).sum();
        assert_eq!(seen, sent, "each reached one endpoint, past the one that is not there");
    }
    Ok(())
}

#[test]
fn nothing_is_retried_after_the_first_byte_for_the_client() -> Result {
    let site = Site::new()?;
    let broken = |_: &Request| Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
    let origins = [site.origin(broken)?, site.origin(broken)?];
    let addresses = [origins[0].address, origins[1].address];
    let _gateway = site.gateway(&addresses, json!({"retry": {"on": ["reset", 503]}}))?;
    let mut client = site.connect()?;
    client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")?;
    let answer = String::from_utf8(client.read_to_end()?)?;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("half"), "{answer}");
    let seen: usize = origins.iter().map(|origin| origin.requests().len()).sum();
    assert_eq!(seen, 1);
    Ok(())
}

#[test]
fn lies_are_retried_elsewhere() -> Result {
    let site = Site::new()?;
    for lie in [
        &b"SSH-2.0-OpenSSH_9.2\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"\0\0\0\0",
        b"",
    ] {
        let liar = site.origin(move |_| Reply::Raw(lie))?;
        let honest = site.origin(ok)?;
        let _gateway = site.gateway(&[liar.address, honest.address], json!({}))?;
        for _ in 0..4 {
            let answer = site.send("PUT", "body")?;
            assert_eq!((answer.status, &*answer.text()), (200, "ok"), "{lie:?}");
        }
        assert!(!liar.requests().is_empty());
        assert!(honest.requests().iter().all(|request| request.body == b"body"));
    }
    Ok(())
}

#[test]
fn a_body_is_replayed_as_far_as_it_was_kept() -> Result {
    let site = Site::new()?;
    let liar = site.origin(|_| Reply::Close)?;
    let honest = site.origin(ok)?;
    let settings = json!({"retry": {"buffer": "1KiB"}, "ejection": "off"});
    let gateway = site.gateway(&[liar.address, honest.address], settings)?;
    let chunked = |bytes: usize| -> Result<u16> {
        let mut client = site.connect()?;
        client.send(b"PUT / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n")?;
        client.send(format!("{bytes:x}\r\n{}\r\n0\r\n\r\n", "c".repeat(bytes)).as_bytes())?;
        Ok(client.receive()?.status)
    };
    for _ in 0..4 {
        assert_eq!(site.send("PUT", &"s".repeat(1024))?.status, 200);
        assert_eq!(chunked(1024)?, 200);
    }
    for _ in 0..2 {
        let mut answers = [
            site.send("PUT", &"l".repeat(1025))?.status,
            site.send("PUT", &"l".repeat(1025))?.status,
        ];
        answers.sort_unstable();
        assert_eq!(answers, [200, 502], "too long to be kept");
    }
    let mut answers = [chunked(1025)?, chunked(1025)?];
    answers.sort_unstable();
    assert_eq!(answers, [200, 502], "too long, which nobody knew before");
    assert_eq!(counted(&gateway, "/retries_refused/body")?, 1);
    Ok(())
}

#[test]
fn a_hung_endpoint_costs_its_timeout_and_the_whole_has_a_bound() -> Result {
    let site = Site::new()?;
    let hung = site.origin(|_| Reply::Hang)?;
    let honest = site.origin(ok)?;
    let addresses = [hung.address, honest.address];
    let retried = json!({
        "timeout": {"response": "100ms"},
        "retry": {"on": ["reset", "timeout"], "backoff": "1ms..2ms"},
    });
    let gateway = site.gateway(&addresses, retried)?;
    for _ in 0..4 {
        assert_eq!(site.get("/")?.status, 200);
    }
    assert!(counted(&gateway, "/retries/timeout")? > 0);
    drop(gateway);

    let whole = json!({
        "timeout": {"response": "60s", "whole": "200ms"},
        "retry": {"on": ["reset", "timeout"]},
    });
    let gateway = site.gateway(&[hung.address], whole)?;
    let start = Instant::now();
    assert_eq!(site.get("/")?.status, 504);
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert_eq!(counted(&gateway, "/retries_refused/deadline")?, 1);
    Ok(())
}

#[test]
fn statuses_are_retried_if_asked_for_and_retry_after_is_respected() -> Result {
    let site = Site::new()?;
    let busy = site.origin(|request| match request.line.split(' ').nth(1) {
        Some("/later") => {
            Reply::Raw(b"HTTP/1.1 503 -\r\nconnection: close\r\nretry-after: 60\r\ncontent-length: 4\r\n\r\nbusy")
        }
        _ => Reply::Answer(503, "busy"),
    })?;
    let honest = site.origin(ok)?;
    let settings = json!({"retry": {"on": [503], "backoff": "1ms..2ms"}, "ejection": "off"});
    let gateway = site.gateway(&[busy.address, honest.address], settings)?;
    let answers = |path: &str| -> Result<Vec<u16>> {
        let mut found: Vec<u16> = Vec::new();
        for _ in 0..4 {
            found.push(site.get(path)?.status);
        }
        found.sort_unstable();
        Ok(found)
    };
    assert_eq!(answers("/")?, [200, 200, 200, 200]);
    assert!(counted(&gateway, "/retries/status")? > 0);
    assert_eq!(answers("/later")?, [200, 200, 503, 503], "the client is told when to come again");
    Ok(())
}

#[test]
fn the_budget_bounds_retries_when_everything_is_sick() -> Result {
    const REQUESTS: usize = 100;
    let site = Site::new()?;
    let sick = site.origin(|_| Reply::Answer(503, "busy"))?;
    let settings = json!({"retry": {"on": [503], "backoff": "1ms..1ms", "budget": "20%"}});
    let gateway = site.gateway(&[sick.address], settings)?;
    let start = Instant::now();
    let mut client = site.connect()?;
    for _ in 0..REQUESTS {
        assert_eq!(client.get("/")?.status, 503);
    }
    let retries = counted(&gateway, "/retries/status")? as usize;
    assert_eq!(sick.requests().len(), REQUESTS + retries);
    // One a second besides the share, ten seconds of them at once.
    let seconds = start.elapsed().as_secs() as usize + 1;
    assert!(retries <= REQUESTS / 5 + 10 + seconds, "{retries} in {seconds} s");
    let refused = counted(&gateway, "/retries_refused/budget")?;
    let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
    let series = "gateway_upstream_retries_refused_total{upstream=\"service\",reason=\"budget\"}";
    assert!(refused > 0 && metrics.contains(&format!("{series} {refused}\n")), "{metrics}");
    Ok(())
}

/// The guards of the service as `gateway status` shows them.
fn guard(gateway: &Gateway<'_>, pointer: &str) -> Result<Value> {
    let status = gateway.status()?;
    let value = status.pointer(&format!("/guards/0{pointer}")).cloned();
    value.ok_or_else(|| anyhow::anyhow!("no {pointer} in {status}"))
}

#[test]
fn a_breaker_opens_answers_at_once_and_closes_again() -> Result {
    let site = Site::new()?;
    let sick = Arc::new(AtomicBool::new(true));
    let flapping = site.origin({
        let sick = Arc::clone(&sick);
        move |_| match sick.load(Ordering::Relaxed) {
            true => Reply::Answer(503, "sick"),
            false => Reply::Answer(200, "ok"),
        }
    })?;
    let settings = json!({"breaker": {"failures": 3, "open_for": "400ms", "half_open": 2}});
    let gateway = site.gateway(&[flapping.address], settings)?;
    for _ in 0..3 {
        assert_eq!(site.get("/")?.text(), "sick");
    }
    let answer = site.get("/")?;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(flapping.requests().len(), 3, "it is left alone");
    assert_eq!(guard(&gateway, "/breakers/0/state")?, json!("open"));

    // A probe fails: it opens again.
    let probed = |count: usize| {
        wait_for("a probe", PATIENCE, || {
            let answer = site.get("/")?;
            Ok((flapping.requests().len() >= count).then_some(answer))
        })
    };
    assert_eq!(probed(4)?.text(), "sick");
    assert_eq!(guard(&gateway, "/breakers/0/opened")?, json!(2));

    // It stays open when the configuration is loaded again, and closes after two probes that pass.
    let more = json!({"breaker": {"failures": 4, "open_for": "1s", "half_open": 2}});
    gateway.write_config(site.config(&[flapping.address], more))?;
    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(guard(&gateway, "/breakers/0/opened")?, json!(2));
    sick.store(false, Ordering::Relaxed);
    assert_eq!(probed(5)?.text(), "ok");
    assert_eq!(site.get("/")?.text(), "ok");
    assert_eq!(guard(&gateway, "/breakers/0/state")?, json!("closed"));
    let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
    let opened = r#"gateway_upstream_breaker_opened_total{upstream="service",endpoint=""} 2"#;
    assert!(metrics.contains(opened), "{metrics}");
    assert!(metrics.contains(r#"gateway_request_errors_total{kind="breaker_open"}"#), "{metrics}");
    assert!(gateway.log().contains("a circuit breaker has changed"), "{}", gateway.log());
    Ok(())
}

#[test]
fn an_endpoint_with_an_open_breaker_is_passed_over_and_a_fallback_stands_in() -> Result {
    let site = Site::new()?;
    let sick = site.origin(|_| Reply::Answer(502, "sick"))?;
    let honest = site.origin(ok)?;
    let settings = json!({"breaker": {"failures": 2, "per": "endpoint"}});
    let gateway = site.gateway(&[sick.address, honest.address], settings)?;
    let answers: Vec<u16> = (0..12).map(|_| Ok(site.get("/")?.status)).collect::<Result<_>>()?;
    assert_eq!(answers.iter().filter(|status| **status == 502).count(), 2, "{answers:?}");
    assert_eq!(sick.requests().len(), 2);
    drop((gateway, honest));

    let fallback = json!({
        "status": 203, "headers": {"content-type": "text/plain"}, "body": "yesterday's news",
    });
    let settings = json!({
        "breaker": {"failures": 1, "per": "both", "fallback": fallback},
        "retry": {"attempts": 1},
    });
    let _gateway = site.gateway(&[site.nobody()?], settings)?;
    assert_eq!(site.get("/")?.status, 502);
    let answer = site.get("/")?;
    assert_eq!((answer.status, &*answer.text()), (203, "yesterday's news"));
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    Ok(())
}

#[test]
fn beyond_the_limit_requests_are_refused_wait_or_are_shed() -> Result {
    let site = Site::new()?;
    let release = Arc::new(AtomicBool::new(false));
    let held = Arc::new(AtomicUsize::new(0));
    let slow = site.origin({
        let (release, held) = (Arc::clone(&release), Arc::clone(&held));
        move |request| {
            if request.line.contains("/hold") {
                held.fetch_add(1, Ordering::Relaxed);
                while !release.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            ok(request)
        }
    })?;
    let settings = json!({"concurrency": {"limit": 10, "queue": 1, "wait": "60s"}, "timeout": {"response": "60s"}});
    let mut config = site.config(&[slow.address], settings);
    config["routes"] = json!([
        {"match": {"path": "/low"}, "upstream": "service", "priority": "low"},
        {"match": {"path": "/{rest*}"}, "upstream": "service"},
    ]);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let hold = |path: &str| -> Result<Client> {
        let mut client = site.connect()?;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes())?;
        Ok(client)
    };
    let mut clients = (0..9).map(|_| hold("/hold")).collect::<Result<Vec<_>>>()?;
    wait_for("nine at once", PATIENCE, || Ok((held.load(Ordering::Relaxed) == 9).then_some(())))?;
    let shed = site.get("/low")?;
    assert_eq!((shed.status, shed.header("retry-after")), (503, Some("1")), "nine of ten");
    assert_eq!(site.get("/")?.status, 200, "there is room for others");
    clients.push(hold("/hold")?);
    wait_for("ten at once", PATIENCE, || Ok((held.load(Ordering::Relaxed) == 10).then_some(())))?;
    let mut waiting = hold("/")?;
    wait_for("one who waits", PATIENCE, || {
        Ok((guard(&gateway, "/concurrency/waiting")? == json!(1)).then_some(()))
    })?;
    assert_eq!(site.get("/")?.status, 503, "the queue is full");
    assert_eq!(guard(&gateway, "/concurrency/active")?, json!(10));
    release.store(true, Ordering::Relaxed);
    assert_eq!(waiting.receive()?.status, 200);
    for client in &mut clients {
        assert_eq!(client.receive()?.status, 200);
    }
    wait_for("nobody at all", PATIENCE, || {
        Ok((guard(&gateway, "/concurrency/active")? == json!(0)).then_some(()))
    })?;
    let errors = gateway.status()?["proxy"]["requests"]["errors"].clone();
    assert_eq!((&errors["shed"], &errors["concurrency_limit"]), (&json!(1), &json!(1)));
    Ok(())
}

#[test]
fn an_adaptive_limit_holds_back_what_a_slow_service_cannot_bear() -> Result {
    let site = Site::new()?;
    // One at a time: whatever is sent beyond that waits in the service.
    let turn = Arc::new(Mutex::new(()));
    let busy = site.origin(move |request| {
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        std::thread::sleep(Duration::from_millis(5));
        ok(request)
    })?;
    let settings = json!({"concurrency": {"limit": "adaptive", "min": 2, "max": 30}});
    let gateway = site.gateway(&[busy.address], settings)?;
    let refused = AtomicUsize::new(0);
    let deadline = Instant::now() + PATIENCE;
    let shrunk = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result {
        let load = || -> Result {
            let mut client = site.connect()?;
            while !shrunk.load(Ordering::Relaxed) && Instant::now() < deadline {
                if client.get("/")?.status == 503 {
                    refused.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            Ok(())
        };
        // First alone, so that what is usual is learnt, then many.
        let alone = scope.spawn(|| -> Result {
            let mut client = site.connect()?;
            (0..60).try_for_each(|_| client.get("/").map(drop))
        });
        alone.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        let clients: Vec<_> = (0..24).map(|_| scope.spawn(load)).collect();
        let smaller = wait_for("a smaller limit", PATIENCE, || {
            let limit = guard(&gateway, "/concurrency/limit")?.as_u64().unwrap_or(0);
            Ok((limit < 15).then_some(limit))
        });
        shrunk.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        assert!(smaller? >= 2);
        Ok(())
    })?;
    assert!(refused.into_inner() > 0);
    Ok(())
}
