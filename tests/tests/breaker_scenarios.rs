//! Circuit breakers that go by the share of failures, through the real binary.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use harness::Result;
use harness::gateway::Gateway;
use harness::origin::Reply;
use harness::site::Site;
use serde_json::json;

#[test]
fn a_service_that_fails_every_other_time_is_left_alone() -> Result {
    let site = Site::new()?;
    let address = site.free_address()?;
    let number = AtomicUsize::new(0);
    let sick = site.origin(move |_| match number.fetch_add(1, Ordering::Relaxed) % 2 {
        0 => Reply::Answer(200, "ok"),
        _ => Reply::Answer(503, "sick"),
    })?;
    let breaker = json!({"failure_share": "50%", "min_requests": 10, "window": "1h"});
    let service = json!({"endpoints": [sick.address.to_string()], "breaker": breaker});
    let config = json!({
        "listen": [{"address": address.to_string()}],
        "upstreams": {"service": service},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let recent = || -> Result<String> {
        let status = gateway.status()?;
        Ok(status.pointer("/guards/0/breakers/0").context("no breaker")?.to_string())
    };
    for _ in 0..9 {
        site.connect(None, address)?.get("/")?;
    }
    assert!(recent()?.contains(r#""recent":{"failures":4,"requests":9}"#), "{}", recent()?);
    assert_eq!(site.connect(None, address)?.get("/")?.text(), "sick", "the tenth is the fifth");
    let answer = site.connect(None, address)?.get("/")?;
    assert_eq!((answer.status, sick.requests().len()), (503, 10), "{answer:?}");
    assert!(recent()?.contains(r#""state":"open""#), "{}", recent()?);
    Ok(())
}
