//! Services whose endpoints are killed, answer with errors, come back and change, through the real binary.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::ensure;
use harness::client::Client;
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use harness::origin::{Origin, Reply};
use harness::{Result, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// Where a test runs, with a gateway in front of some origins.
struct Site {
    namespace: Option<Namespace>,
}

impl Site {
    fn new() -> Result<Self> {
        let namespace = nix::unistd::geteuid().is_root().then(|| Namespace::new("host"));
        Ok(Self { namespace: namespace.transpose()? })
    }

    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        match &self.namespace {
            Some(namespace) => namespace.enter(work),
            None => Ok(work()),
        }
    }

    fn free_address(&self) -> Result<SocketAddr> {
        Ok(self.enter(|| TcpListener::bind("127.0.0.1:0"))??.local_addr()?)
    }

    fn get(&self, target: SocketAddr, path: &str) -> Result<(u16, String)> {
        let answer = self.enter(|| Client::connect_here(None, target, PATIENCE))??.get(path)?;
        Ok((answer.status, answer.text()))
    }

    /// How often each body is the answer to so many requests; all of them are answered with 200.
    fn answers(&self, target: SocketAddr, requests: usize) -> Result<BTreeMap<String, usize>> {
        let mut answers = BTreeMap::new();
        for _ in 0..requests {
            let (status, body) = self.get(target, "/")?;
            ensure!(status == 200, "{status}: {body}");
            *answers.entry(body).or_default() += 1;
        }
        Ok(answers)
    }
}

/// An origin that answers requests with its name and checks as it is told.
struct Service {
    origin: Option<Origin>,
    address: SocketAddr,
    healthy: Arc<AtomicBool>,
    failing: Arc<AtomicBool>,
    checks: Arc<AtomicU64>,
}

impl Service {
    fn start(site: &Site, address: SocketAddr, name: &'static str) -> Result<Self> {
        let (healthy, failing) =
            (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let checks = Arc::new(AtomicU64::new(0));
        let told = (Arc::clone(&healthy), Arc::clone(&failing), Arc::clone(&checks));
        let origin = Origin::start(site.namespace.as_ref(), address, move |request| {
            let (healthy, failing, checks) = &told;
            if request.line.starts_with("GET /health ") {
                checks.fetch_add(1, Ordering::Relaxed);
                return Reply::Answer(if healthy.load(Ordering::Relaxed) { 200 } else { 503 }, "");
            }
            Reply::Answer(if failing.load(Ordering::Relaxed) { 500 } else { 200 }, name)
        })?;
        let address = origin.address;
        Ok(Self { origin: Some(origin), address, healthy, failing, checks })
    }

    fn kill(&mut self) {
        self.origin = None;
    }
}

fn config(listen: SocketAddr, upstream: Value) -> Value {
    json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "upstreams": {"service": upstream},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    })
}

/// The condition of an endpoint and why it is so, as `status` has it.
fn condition(gateway: &Gateway<'_>, endpoint: SocketAddr) -> Result<(String, String)> {
    let status = gateway.status()?;
    let endpoints = status.pointer("/upstreams/0/endpoints").and_then(Value::as_array);
    let of = |one: &&Value| one["address"] == json!(endpoint.to_string());
    let one = endpoints.into_iter().flatten().find(of).cloned().unwrap_or_default();
    let text = |key| one.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok((text("condition"), text("why")))
}

fn wait_until(gateway: &Gateway<'_>, endpoint: SocketAddr, wanted: &str) -> Result<String> {
    wait_for(&format!("{endpoint} being {wanted}"), PATIENCE, || {
        let (condition, why) = condition(gateway, endpoint)?;
        Ok((condition == wanted).then_some(why))
    })
}

#[test]
fn weights_are_kept_to_the_request() -> Result {
    let site = Site::new()?;
    let any = "127.0.0.1:0".parse()?;
    let (one, two) = (Service::start(&site, any, "one")?, Service::start(&site, any, "two")?);
    let listen = site.free_address()?;
    let heavy = json!({"address": two.address.to_string(), "weight": 3});
    let upstream = json!({"endpoints": [one.address.to_string(), heavy]});
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config(listen, upstream))?;
    gateway.start()?;
    let expected = [("one".to_owned(), 3), ("two".to_owned(), 9)];
    assert_eq!(site.answers(listen, 12)?, BTreeMap::from(expected));
    let shown = gateway.cli(&["status"])?.ok()?.stdout;
    assert!(shown.contains(&two.address.to_string()) && shown.contains("healthy"), "{shown}");
    Ok(())
}

#[test]
fn checks_take_an_endpoint_out_and_bring_it_back() -> Result {
    let site = Site::new()?;
    let any = "127.0.0.1:0".parse()?;
    let (mut one, two) = (Service::start(&site, any, "one")?, Service::start(&site, any, "two")?);
    let listen = site.free_address()?;
    let health = json!({"path": "/health", "interval": "100ms", "timeout": "1s"});
    let endpoints = json!([one.address.to_string(), two.address.to_string()]);
    let upstream = json!({"endpoints": endpoints, "health": health});
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config(listen, upstream))?;
    gateway.start()?;
    assert_eq!(site.answers(listen, 10)?.len(), 2);

    two.healthy.store(false, Ordering::Relaxed);
    assert_eq!(wait_until(&gateway, two.address, "unhealthy")?, "answered 503");
    assert_eq!(site.answers(listen, 10)?, BTreeMap::from([("one".to_owned(), 10)]));
    let page = gateway.cli(&["metrics"])?.ok()?.stdout;
    let line = "gateway_upstream_endpoints{upstream=\"service\",condition=\"unhealthy\"} 1";
    assert!(page.contains(line), "{page}");
    two.healthy.store(true, Ordering::Relaxed);
    wait_until(&gateway, two.address, "healthy")?;
    assert_eq!(site.answers(listen, 10)?.len(), 2);

    one.kill();
    let why = wait_until(&gateway, one.address, "unhealthy")?;
    assert!(why.starts_with("cannot be connected to"), "{why}");
    assert_eq!(site.answers(listen, 10)?, BTreeMap::from([("two".to_owned(), 10)]));
    let one = Service::start(&site, one.address, "one")?;
    wait_until(&gateway, one.address, "healthy")?;
    assert_eq!(site.answers(listen, 10)?.len(), 2);
    assert!(two.checks.load(Ordering::Relaxed) > 3);
    Ok(())
}

#[test]
fn no_request_fails_while_one_endpoint_lives_and_errors_eject_the_other() -> Result {
    let site = Site::new()?;
    let any = "127.0.0.1:0".parse()?;
    let (mut one, two) = (Service::start(&site, any, "one")?, Service::start(&site, any, "two")?);
    let listen = site.free_address()?;
    let upstream = json!({
        "endpoints": [one.address.to_string(), two.address.to_string()],
        "ejection": {"failures": 3, "time": "1s"},
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config(listen, upstream))?;
    gateway.start()?;
    one.kill();
    assert_eq!(site.answers(listen, 20)?, BTreeMap::from([("two".to_owned(), 20)]));
    let one = Service::start(&site, one.address, "one")?;
    wait_until(&gateway, one.address, "healthy")?;

    one.failing.store(true, Ordering::Relaxed);
    let failed = wait_for("the ejection", PATIENCE, || {
        site.get(listen, "/")?;
        let (condition, why) = condition(&gateway, one.address)?;
        Ok((condition == "ejected").then_some(why))
    })?;
    assert_eq!(failed, "3 failures in a row, the last: 500");
    one.failing.store(false, Ordering::Relaxed);
    wait_until(&gateway, one.address, "healthy")?;

    // A bad deploy: the last one is never taken out, and its answers are passed on.
    one.failing.store(true, Ordering::Relaxed);
    two.failing.store(true, Ordering::Relaxed);
    for _ in 0..30 {
        assert_eq!(site.get(listen, "/")?.0, 500);
    }
    let of = |endpoint| condition(&gateway, endpoint).map(|(condition, _)| condition);
    let ejected = [of(one.address)?, of(two.address)?];
    assert!(ejected.iter().filter(|one| *one == "ejected").count() <= 1, "{ejected:?}");
    Ok(())
}

#[test]
fn who_is_gone_finishes_and_who_stays_is_not_forgotten() -> Result {
    let site = Site::new()?;
    let any = "127.0.0.1:0".parse()?;
    let slow = Origin::start(site.namespace.as_ref(), any, |_| Reply::Hang)?;
    let two = Service::start(&site, any, "two")?;
    let listen = site.free_address()?;
    let of = |endpoints: Value| {
        config(listen, json!({"endpoints": endpoints, "timeout": {"response": "3s"}}))
    };
    let both = of(json!([two.address.to_string(), slow.address.to_string()]));
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), both)?;
    gateway.start()?;
    assert_eq!(site.get(listen, "/")?, (200, "two".to_owned()));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| site.get(listen, "/"));
        wait_for("a request that waits", PATIENCE, || {
            Ok((!slow.requests().is_empty()).then_some(()))
        })?;
        gateway.write_config(of(json!([two.address.to_string()])))?;
        gateway.cli(&["reload"])?.ok()?;
        assert_eq!(condition(&gateway, slow.address)?.0, "draining");
        assert_eq!(site.answers(listen, 5)?, BTreeMap::from([("two".to_owned(), 5)]));
        let waited = waiting.join().map_err(|_| anyhow::anyhow!("the request panicked"))??;
        assert_eq!(waited.0, 504, "it had the whole of its time");
        wait_until(&gateway, slow.address, "")?;
        Result::Ok(())
    })?;
    let status = gateway.status()?;
    let requests = status.pointer("/upstreams/0/endpoints/0/requests");
    assert_eq!(requests, Some(&json!(6)), "an endpoint outlives a configuration");
    Ok(())
}
