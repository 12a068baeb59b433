//! Hedging through the real binary: a slow endpoint beside a fast one.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use harness::gateway::Gateway;
use harness::origin::{Origin, Reply, Request};
use harness::site::{PATIENCE, Site};
use harness::{Result, wait_for};
use serde_json::{Value, json};

/// A gateway in front of `endpoints`, and where it listens; `settings` are of the upstream.
fn gateway<'s>(
    site: &'s Site,
    endpoints: Value,
    mut settings: Value,
) -> Result<(Gateway<'s>, SocketAddr)> {
    let address = site.free_address()?;
    let service = settings.as_object_mut().context("no settings")?;
    service.insert("endpoints".to_owned(), endpoints);
    let config = json!({
        "listen": [{"address": address.to_string()}],
        "workers": 1,
        "upstreams": {"service": settings},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
        "access_log": {"path": "stderr", "format": "by {endpoint} in {attempts} attempts, hedge {hedge}"},
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    Ok((gateway, address))
}

fn counted(gateway: &Gateway<'_>, pointer: &str) -> Result<u64> {
    let status = gateway.status()?;
    let number = status.pointer(&format!("/proxy/upstream{pointer}")).and_then(Value::as_u64);
    number.with_context(|| format!("no {pointer} in {status}"))
}

/// A slow endpoint, which never answers, and a fast one.
fn two(site: &Site) -> Result<[Origin; 2]> {
    Ok([site.origin(|_| Reply::Hang)?, site.origin(|_| Reply::Answer(200, "fast"))?])
}

fn both(one: &Origin, other: &Origin) -> Value {
    json!([one.address.to_string(), other.address.to_string()])
}

#[test]
fn the_fast_endpoint_answers_for_the_slow_one_and_that_one_is_let_go() -> Result {
    let site = Site::new()?;
    let [slow, fast] = two(&site)?;
    let settings = json!({
        "hedge": {"after": "20ms", "budget": "100%"},
        "retry": {"budget": "100%"},
        "timeout": {"response": "60s"},
        "concurrency": 10,
        "breaker": {"failures": 1, "per": "both"},
        "ejection": {"failures": 1},
    });
    let (gateway, address) = gateway(&site, both(&slow, &fast), settings)?;
    for _ in 0..8 {
        let answer = site.connect(None, address)?.get("/")?;
        assert_eq!((answer.status, &*answer.text()), (200, "fast"));
    }
    wait_for("the slow endpoint to be let go", PATIENCE, || {
        Ok((slow.open_connections() == 0).then_some(()))
    })?;
    let hedges = slow.requests().len() as u64;
    assert!(hedges > 0, "in turn half of them go there first");
    // One that went to the fast one first may have been hedged on a busy machine.
    assert_eq!(counted(&gateway, "/hedges/won")? + counted(&gateway, "/hedges/lost")?, hedges);
    assert_eq!(fast.requests().len(), 8);
    let status = gateway.status()?;
    assert_eq!(status["upstreams"][0]["endpoints"][0]["failures"], json!(0), "{status}");
    assert_eq!(status["upstreams"][0]["endpoints"][0]["active"], json!(0), "{status}");
    assert_eq!(status["guards"][0]["concurrency"]["active"], json!(0), "{status}");
    let lines = wait_for("the access log", PATIENCE, || {
        let log = gateway.log();
        Ok((log.matches(" attempts").count() == 8).then_some(log))
    })?;
    let twice = format!("by {} in 2 attempts, hedge ", fast.address);
    let results = ["won", "lost"].map(|result| lines.matches(&(twice.clone() + result)).count());
    let counts = [counted(&gateway, "/hedges/won")?, counted(&gateway, "/hedges/lost")?];
    assert_eq!(results.map(|count| count as u64), counts, "{lines}");
    let once = lines.matches("in 1 attempts, hedge -").count() as u64;
    assert_eq!(once, 8 - hedges, "{lines}");
    Ok(())
}

#[test]
fn what_may_not_be_sent_twice_or_has_no_budget_is_not_hedged() -> Result {
    let site = Site::new()?;
    let [slow, fast] = two(&site)?;
    let none = json!({
        "hedge": {"after": "1ms", "budget": "100%"},
        "retry": {"budget": "0%", "on": []},
        "timeout": {"response": "500ms"},
        "ejection": "off",
    });
    let (without, address) = gateway(&site, both(&slow, &fast), none)?;
    let ask = |address, method: &str, body: &str| -> Result<u16> {
        let mut client = site.connect(None, address)?;
        let length = body.len();
        let head = format!("{method} / HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n");
        client.send((head + body).as_bytes())?;
        Ok(client.receive()?.status)
    };
    let mut statuses = [ask(address, "GET", "")?, ask(address, "GET", "")?];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 504], "without a budget each waits for its own");
    // The slow one for sure, and the other one too where this host is slower than a millisecond.
    let refused = counted(&without, "/hedges_refused/budget")?;
    assert!((1..=2).contains(&refused), "{refused}");
    drop(without);

    let plenty = json!({
        "hedge": {"after": "1ms", "budget": "100%"},
        "retry": {"budget": "100%", "on": []},
        "timeout": {"response": "500ms"},
        "ejection": "off",
    });
    let (with, address) = gateway(&site, both(&slow, &fast), plenty)?;
    for (method, body) in [("POST", ""), ("POST", "body"), ("DELETE", ""), ("GET", "body")] {
        let mut statuses = [ask(address, method, body)?, ask(address, method, body)?];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 504], "{method} {body}");
    }
    assert_eq!(counted(&with, "/hedges/won")?, 0);
    assert_eq!([ask(address, "GET", "")?, ask(address, "OPTIONS", "")?], [200, 200]);
    assert!(counted(&with, "/hedges/won")? > 0);
    Ok(())
}

#[test]
fn nobody_is_worse_off_for_having_been_hedged() -> Result {
    let site = Site::new()?;
    // It answers some time after the other one was asked, which says that it cannot.
    let (told, asked) = std::sync::mpsc::sync_channel::<()>(8);
    let (told, asked) = (Mutex::new(told), Mutex::new(asked));
    let slow = site.origin(move |_| {
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(PATIENCE);
        std::thread::sleep(Duration::from_millis(50));
        Reply::Answer(200, if asked.is_ok() { "slow" } else { "nobody else was asked" })
    })?;
    let sick = site.origin(move |_| {
        told.lock().unwrap_or_else(PoisonError::into_inner).send(()).ok();
        Reply::Answer(503, "sick")
    })?;
    let settings = json!({
        "hedge": {"after": "1ms", "budget": "100%"},
        "retry": {"budget": "100%"},
        "timeout": {"response": "60s"},
    });
    let first = json!({"address": slow.address.to_string(), "weight": 1000});
    let endpoints = json!([first, sick.address.to_string()]);
    let (gateway, address) = gateway(&site, endpoints, settings)?;
    assert_eq!(site.connect(None, address)?.get("/")?.text(), "slow");
    assert_eq!((sick.requests().len(), counted(&gateway, "/hedges/lost")?), (1, 1));
    Ok(())
}

#[test]
fn a_percentile_is_learnt_before_anybody_is_hedged_by_it() -> Result {
    let site = Site::new()?;
    let reply = |hangs: bool| {
        move |request: &Request| match &*request.line {
            line if hangs && line.contains("/hang") => Reply::Hang,
            _ => Reply::Answer(200, "fast"),
        }
    };
    let [slow, fast] = [site.origin(reply(true))?, site.origin(reply(false))?];
    let settings = json!({
        "hedge": {"after": "p95"},
        "retry": {"budget": "100%", "on": []},
        "timeout": {"response": "2s"},
        "ejection": "off",
    });
    let (gateway, address) = gateway(&site, both(&slow, &fast), settings)?;
    let mut client = site.connect(None, address)?;
    let mut statuses = [client.get("/hang")?.status, client.get("/hang")?.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 504], "nobody knows yet how long answers take");
    assert_eq!(counted(&gateway, "/hedges/won")?, 0);
    wait_for("a hedge", PATIENCE, || {
        for _ in 0..100 {
            assert_eq!(client.get("/")?.status, 200);
        }
        client.get("/hang")?;
        Ok((counted(&gateway, "/hedges/won")? > 0).then_some(()))
    })
}

#[test]
fn hedges_are_no_larger_a_share_of_requests_than_their_budget() -> Result {
    let site = Site::new()?;
    let slow = || {
        site.origin(|_| {
            std::thread::sleep(Duration::from_millis(20));
            Reply::Answer(200, "slow")
        })
    };
    let [one, other] = [slow()?, slow()?];
    let settings = json!({
        "hedge": {"after": "1ms", "budget": "25%"},
        "retry": {"budget": "100%"},
    });
    let (gateway, address) = gateway(&site, both(&one, &other), settings)?;
    let mut client = site.connect(None, address)?;
    for _ in 0..40 {
        assert_eq!(client.get("/")?.status, 200);
    }
    let hedges = counted(&gateway, "/hedges/won")? + counted(&gateway, "/hedges/lost")?;
    assert!((1..=10).contains(&hedges), "{hedges}");
    assert_eq!(counted(&gateway, "/hedges_refused/budget")?, 40 - hedges);
    Ok(())
}

#[test]
fn a_client_that_leaves_is_logged_as_hedged_in_vain() -> Result {
    let site = Site::new()?;
    let [one, other] = [site.origin(|_| Reply::Hang)?, site.origin(|_| Reply::Hang)?];
    let settings = json!({
        "hedge": {"after": "1ms", "budget": "100%"},
        "retry": {"budget": "100%"},
        "timeout": {"response": "60s"},
    });
    let (gateway, address) = gateway(&site, both(&one, &other), settings)?;
    let mut client = site.connect(None, address)?;
    client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")?;
    wait_for("both to be asked", PATIENCE, || {
        Ok((one.requests().len() + other.requests().len() == 2).then_some(()))
    })?;
    drop(client);
    wait_for("the access log", PATIENCE, || {
        Ok(gateway.log().contains("in 2 attempts, hedge abandoned").then_some(()))
    })?;
    assert_eq!(counted(&gateway, "/hedges/abandoned")?, 1);
    Ok(())
}
