//! What is to be seen of requests, through the real binary: metrics by route and upstream.

use std::net::SocketAddr;
use std::time::Duration;

use harness::gateway::Gateway;
use harness::metrics::{Page, family};
use harness::origin::Reply;
use harness::site::Site;
use harness::{Result, wait_for};
use serde_json::{Value, json};

const DOCUMENTED: &str = include_str!("../../docs/metrics.md");
const PATIENCE: Duration = Duration::from_secs(10);

fn config(listen: SocketAddr, endpoint: SocketAddr) -> Value {
    json!({
        "listen": [{"address": listen.to_string()}],
        "kernel": {"attach": "off"},
        "workers": 1,
        "upstreams": {"users": {"endpoints": [endpoint.to_string()]}},
        "routes": [
            {"name": "users", "match": {"path": "/users/{id}"}, "upstream": "users"},
            {"name": "rest", "match": {"path": "/{rest*}"}, "upstream": "users"},
        ],
    })
}

fn metrics(gateway: &Gateway<'_>) -> Result<Page> {
    Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)
}

/// The page once a series has a value; what a request counts at its end may be a moment behind its answer.
fn metrics_with(gateway: &Gateway<'_>, series: &str, value: u64) -> Result<Page> {
    wait_for(&format!("{series} = {value}"), PATIENCE, || {
        Ok(Some(metrics(gateway)?).filter(|page| page.value(series) == Some(value)))
    })
}

#[test]
fn requests_are_counted_by_route_and_upstream_and_a_reload_loses_none() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|request| match request.line.contains("bad") {
        true => Reply::Answer(500, "no"),
        false => Reply::Answer(200, "hello"),
    })?;
    let address = site.free_address()?;
    let mut config = config(address, origin.address);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config.clone())?;
    gateway.start()?;
    let mut client = site.connect(None, address)?;
    for _ in 0..3 {
        assert_eq!(client.get("/users/7")?.status, 200);
    }
    assert_eq!(client.get("/bad")?.status, 500);
    client.send(b"POST /users/7 HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody")?;
    assert_eq!(client.receive()?.status, 200);
    assert_eq!(client.get("/users//7")?.status, 400, "this has no route");

    let of_users = r#"gateway_route_requests_total{route="users",status="2xx"}"#;
    let page = metrics_with(&gateway, of_users, 4)?;
    let value = |series: &str| page.value(series);
    let zero = r#"gateway_route_requests_total{route="users",status="5xx"}"#;
    assert_eq!(value(zero), Some(0), "a series is there before its first request");
    assert_eq!(value(r#"gateway_route_requests_total{route="rest",status="5xx"}"#), Some(1));
    assert_eq!(value(r#"gateway_upstream_requests_total{upstream="users",status="2xx"}"#), Some(4));
    assert_eq!(value(r#"gateway_route_request_bytes_total{route="users"}"#), Some(4));
    assert_eq!(value(r#"gateway_route_response_bytes_total{route="users"}"#), Some(20));
    for name in ["gateway_route_duration_seconds", "gateway_upstream_duration_seconds"] {
        let labels = match name.contains("route") {
            true => r#"route="users""#,
            false => r#"upstream="users""#,
        };
        let count = value(&format!("{name}_count{{{labels}}}"));
        assert_eq!(count, Some(if name.contains("route") { 4 } else { 5 }), "{name}");
        assert_eq!(value(&format!(r#"{name}_bucket{{{labels},le="+Inf"}}"#)), count);
        assert!(page.samples[&format!("{name}_sum{{{labels}}}")] > 0.0, "{name}");
    }

    // `rest` goes, `users` stays and `new` comes; of three names two have series of their own.
    config["routes"][1]["name"] = json!("new");
    config["metrics"] = json!({"max_names": 2});
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(client.get("/users/7")?.status, 200);
    assert_eq!(client.get("/new")?.status, 200);
    let page = metrics_with(&gateway, of_users, 5)?;
    let all = |page: &Page| {
        let series = page.samples.iter();
        let series = series.filter(|(name, _)| name.starts_with("gateway_route_requests_total"));
        series.map(|(_, count)| *count).sum::<f64>()
    };
    assert_eq!(all(&page), 7.0, "{page:?}");
    for series in page.samples.keys() {
        let name = family(series);
        assert!(DOCUMENTED.contains(&format!("`{name}`")), "{name} is not documented");
    }
    gateway.stop()
}

#[test]
fn an_upstream_that_cannot_be_reached_is_an_error_of_its_route() -> Result {
    let site = Site::new()?;
    let (address, nobody) = (site.free_address()?, site.free_address()?);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config(address, nobody))?;
    gateway.start()?;
    assert_eq!(site.connect(None, address)?.get("/users/1")?.status, 502);
    let series = r#"gateway_route_errors_total{route="users",kind="upstream_connect"}"#;
    let page = metrics_with(&gateway, series, 1)?;
    let upstream = r#"gateway_upstream_errors_total{upstream="users",kind="upstream_connect"}"#;
    assert_eq!(page.value(upstream), Some(1));
    let never = "gateway_upstream_duration_seconds_count{upstream=\"users\"}";
    assert_eq!(page.value(never), Some(0), "nothing was sent, so nothing took any time");
    gateway.stop()
}
