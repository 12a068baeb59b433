//! Which endpoint takes a request, and which connections to it are kept, through the real binary.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::client::Client;
use harness::gateway::Gateway;
use harness::origin::{Origin, Reply};
use harness::site::{PATIENCE, Site};
use harness::{Result, wait_for};
use serde_json::{Map, Value, json};

/// Each of three endpoints is missed by so many keys less than once in 2^30 runs.
const KEYS: usize = 60;

/// Endpoints that say who they are, `/hold` once they are let go.
struct Services {
    origins: Vec<Origin>,
    let_go: Arc<AtomicBool>,
}

impl Services {
    fn start(site: &Site, names: &[&'static str]) -> Result<Self> {
        let let_go = Arc::new(AtomicBool::new(false));
        let start = |name: &&'static str| {
            let (name, let_go) = (*name, Arc::clone(&let_go));
            site.origin(move |request| {
                while request.line.contains("/hold") && !let_go.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Reply::Answer(200, name)
            })
        };
        Ok(Self { origins: names.iter().map(start).collect::<Result<_>>()?, let_go })
    }

    fn addresses(&self) -> Vec<String> {
        self.origins.iter().map(|origin| origin.address.to_string()).collect()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        // An origin ends with the last of its requests.
        self.let_go.store(true, Ordering::Relaxed);
    }
}

/// A gateway whose path `/NAME/` leads to the upstream of that name.
fn gateway<'s>(
    site: &'s Site,
    upstreams: &[(&str, Value)],
    more: Value,
) -> Result<(Gateway<'s>, SocketAddr)> {
    let listen = site.free_address()?;
    let route = |(name, _): &(&str, Value)| {
        let path = format!("/{name}/{{rest*}}");
        json!({"match": {"path": path}, "upstream": name})
    };
    let routes: Vec<Value> = upstreams.iter().map(route).collect();
    let named = upstreams.iter().map(|(name, upstream)| ((*name).to_owned(), upstream.clone()));
    let mut config = json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "upstreams": named.collect::<Map<_, _>>(),
        "routes": routes,
    });
    let (settings, more) = (config.as_object_mut(), more.as_object().cloned());
    settings.into_iter().for_each(|settings| settings.extend(more.clone().unwrap_or_default()));
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    Ok((gateway, listen))
}

fn send(client: &mut Client, path: &str, fields: &str) -> Result {
    client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n{fields}\r\n").as_bytes())
}

/// Who answers.
fn ask(client: &mut Client, path: &str, fields: &str) -> Result<String> {
    send(client, path, fields)?;
    let answer = client.receive()?;
    ensure!(answer.status == 200, "{path}: {answer:?}");
    Ok(answer.text())
}

#[test]
fn a_key_keeps_its_endpoint_wherever_it_is_taken_from() -> Result {
    let site = Site::new()?;
    let services = Services::start(&site, &["one", "two", "three"])?;
    let by = |hash: Value| json!({"endpoints": services.addresses(), "balance": {"hash": hash}});
    let upstreams = [
        ("header", by(json!({"header": "X-Key"}))),
        ("cookie", by(json!({"cookie": "session"}))),
        ("path", by(json!({"path": true}))),
        ("client", by(json!("client"))),
    ];
    let (_gateway, listen) =
        gateway(&site, &upstreams, json!({"trusted_proxies": ["127.0.0.0/8"]}))?;
    let mut client = site.connect(None, listen)?;
    for (name, _) in &upstreams {
        let mut seen = BTreeSet::new();
        for key in 0..KEYS {
            let (path, fields) = match *name {
                "header" => ("/header/".to_owned(), format!("X-Key: {key}\r\n")),
                "cookie" => ("/cookie/".to_owned(), format!("Cookie: a=b; session={key}\r\n")),
                "path" => (format!("/path/{key}"), String::new()),
                _ => ("/client/".to_owned(), format!("X-Forwarded-For: 192.0.2.{key}\r\n")),
            };
            let first = ask(&mut client, &path, &fields)?;
            assert_eq!(ask(&mut client, &path, &fields)?, first, "{name} {key}");
            seen.insert(first);
        }
        assert_eq!(seen.len(), 3, "keys by {name} are spread: {seen:?}");
    }
    Ok(())
}

#[test]
fn who_is_busy_is_spared() -> Result {
    let site = Site::new()?;
    let services = Services::start(&site, &["one", "two"])?;
    let by = |balance: Value| json!({"endpoints": services.addresses(), "balance": balance});
    let hash = json!({"header": "X-Key"});
    let upstreams = [
        ("least", by(json!("least_requests"))),
        ("random", by(json!("random_two"))),
        ("bound", by(json!({"hash": hash, "bound": "125%"}))),
        ("hash", by(json!({"hash": hash}))),
    ];
    let (gateway, listen) = gateway(&site, &upstreams, json!({}))?;
    let mut client = site.connect(None, listen)?;
    let key = "X-Key: a\r\n";
    let home = ask(&mut client, "/hash/", key)?;
    let mut holding = Vec::new();
    for (name, _) in &upstreams {
        // Two of them are within a bound that three are beyond.
        let holds = if *name == "bound" { 2 } else { 1 };
        for held in 1..=holds {
            let mut other = site.connect(None, listen)?;
            send(&mut other, &format!("/{name}/hold"), key)?;
            holding.push((*name, other));
            wait_for("a request under way", PATIENCE, || {
                let status = gateway.status()?;
                let mut all = status["upstreams"].as_array().into_iter().flatten();
                let upstream = all.find(|one| one["name"] == json!(name));
                let endpoints = upstream.and_then(|one| one["endpoints"].as_array());
                let endpoints = endpoints.into_iter().flatten();
                let active = endpoints.filter_map(|one| one["active"].as_u64()).sum::<u64>();
                Ok((active == held).then_some(()))
            })?;
        }
    }
    let mut spare = Vec::new();
    for (name, _) in &upstreams {
        let first = ask(&mut client, &format!("/{name}/"), key)?;
        for _ in 0..10 {
            assert_eq!(ask(&mut client, &format!("/{name}/"), key)?, first, "{name}");
        }
        spare.push((*name, first));
    }
    services.let_go.store(true, Ordering::Relaxed);
    for (name, client) in &mut holding {
        let (busy, is_hashed) = (client.receive()?.text(), matches!(*name, "bound" | "hash"));
        let (_, taken) = spare.iter().find(|(one, _)| one == name).context("asked above")?;
        assert_eq!(*taken == busy, *name == "hash", "{name}: {taken} beside {busy}");
        assert!(!is_hashed || busy == home, "{name}: within its bound a key is at home");
    }
    Ok(())
}

#[test]
fn the_zone_of_the_gateway_takes_all_as_long_as_it_lives() -> Result {
    let site = Site::new()?;
    let (mut here, there) =
        (Services::start(&site, &["here"])?, Services::start(&site, &["there"])?);
    let of = |services: &Services, zone: &str| {
        let address = services.addresses().into_iter().next();
        json!({"address": address, "zone": zone})
    };
    let endpoints = [of(&there, "b"), of(&here, "a")];
    let (_gateway, listen) =
        gateway(&site, &[("service", json!({"endpoints": endpoints}))], json!({"zone": "a"}))?;
    let mut client = site.connect(None, listen)?;
    for _ in 0..10 {
        assert_eq!(ask(&mut client, "/service/", "")?, "here");
    }
    here.origins.clear();
    for _ in 0..10 {
        assert_eq!(ask(&mut client, "/service/", "")?, "there");
    }
    Ok(())
}

#[test]
fn so_many_idle_connections_are_kept_and_for_so_long() -> Result {
    let site = Site::new()?;
    let (few, brief) = (Services::start(&site, &["few"])?, Services::start(&site, &["brief"])?);
    let upstreams = [
        ("few", json!({"endpoints": few.addresses(), "idle_connections": 2})),
        ("brief", json!({"endpoints": brief.addresses(), "timeout": {"idle": "100ms"}})),
    ];
    let (_gateway, listen) = gateway(&site, &upstreams, json!({}))?;
    for (path, services, kept) in [("/few/hold", &few, 2), ("/brief/hold", &brief, 0)] {
        let open = || services.origins.iter().map(Origin::open_connections).sum::<usize>();
        let mut clients = Vec::new();
        for _ in 0..5 {
            let mut client = site.connect(None, listen)?;
            send(&mut client, path, "")?;
            clients.push(client);
        }
        wait_for("five at once", PATIENCE, || Ok((open() == 5).then_some(())))?;
        services.let_go.store(true, Ordering::Relaxed);
        for client in &mut clients {
            assert_eq!(client.receive()?.status, 200);
        }
        wait_for("the end of those too many", PATIENCE, || Ok((open() == kept).then_some(())))?;
    }
    Ok(())
}
