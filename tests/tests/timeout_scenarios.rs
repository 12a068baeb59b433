//! How long a request may take, by its route and by its upstream, through the real binary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::Result;
use harness::gateway::Gateway;
use harness::origin::{Reply, Request};
use harness::site::Site;
use serde_json::{Value, json};

fn config(address: &str, origin: &str, timeout: &Value, routes: &[(&str, Value)]) -> Value {
    let mut found = Vec::new();
    for (path, timeout) in routes {
        let pattern = json!({"path": path});
        found.push(json!({"match": pattern, "upstream": "service", "timeout": timeout}));
    }
    let service = json!({"endpoints": [origin], "timeout": timeout, "ejection": "off"});
    json!({
        "listen": [{"address": address}],
        "upstreams": {"service": service},
        "routes": found,
    })
}

#[test]
fn a_route_has_more_or_less_time_than_its_upstream_says() -> Result {
    let site = Site::new()?;
    let address = site.free_address()?;
    let released = Arc::new(AtomicBool::new(false));
    let slow = site.origin({
        let released = Arc::clone(&released);
        move |_: &Request| {
            while !released.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Reply::Answer(200, "ok")
        }
    })?;
    let routes = [
        ("/patient", json!({"response": "60s"})),
        ("/patient/whole", json!({"response": "60s", "whole": "100ms"})),
        ("/{rest*}", json!({})),
    ];
    let (listen, origin) = (address.to_string(), slow.address.to_string());
    let config = config(&listen, &origin, &json!({"response": "100ms"}), &routes);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let mut patient = site.connect(None, address)?;
    patient.send(b"GET /patient HTTP/1.1\r\nhost: test\r\n\r\n")?;
    for path in ["/", "/patient/whole"] {
        assert_eq!(site.connect(None, address)?.get(path)?.status, 504, "{path}");
    }
    released.store(true, Ordering::Relaxed);
    assert_eq!(patient.receive()?.status, 200);
    Ok(())
}

#[test]
fn a_route_says_how_long_its_streams_may_rest() -> Result {
    let site = Site::new()?;
    let address = site.free_address()?;
    let begun =
        site.origin(|_| Reply::Stall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"))?;
    let (listen, origin) = (address.to_string(), begun.address.to_string());
    let routes = [("/{rest*}", json!({"stream_idle": "50ms"}))];
    let config = config(&listen, &origin, &json!({}), &routes);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let mut client = site.connect(None, address)?;
    client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")?;
    // Without it that would take longer than the client has patience: a minute.
    let broken = String::from_utf8(client.read_to_end()?)?;
    assert!(broken.ends_with("half"), "{broken}");
    Ok(())
}
