//! Endpoints that have names, through the real binary: what a resolver says, does not say and lies about.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::dns::{Dns, Kind, Record, Reply};
use harness::gateway::Gateway;
use harness::metrics::Page;
use harness::origin::{Origin, Reply as Does};
use harness::site::Site;
use harness::{Result, wait_for};
use serde_json::{Value, json};

/// Enough for a few refreshes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const NAME: &str = "api.example";
const SERVICE: &str = "_http._tcp.api.example";

struct Place {
    site: Site,
    dns: Dns,
    listen: SocketAddr,
}

impl Place {
    fn new() -> Result<Self> {
        let site = Site::new()?;
        let dns = Dns::start(&site)?;
        let listen = site.free_address()?;
        Ok(Self { site, dns, listen })
    }

    /// Services on the same port of several addresses of loopback, each of which answers with its own address.
    fn services(&self, addresses: &[IpAddr]) -> Result<(u16, Vec<Origin>)> {
        let first = *addresses.first().context("a service without an address")?;
        let first = self.site.enter(|| TcpListener::bind((first, 0)))??;
        let port = first.local_addr()?.port();
        drop(first);
        let start = |ip: &IpAddr| {
            let name: &'static str = Box::leak(ip.to_string().into_boxed_str());
            let address = SocketAddr::new(*ip, port);
            Origin::start(self.site.namespace.as_ref(), address, move |_| Does::Answer(200, name))
        };
        Ok((port, addresses.iter().map(start).collect::<Result<_>>()?))
    }

    fn config(&self, endpoints: &Value, discovery: Value) -> Value {
        let mut section = json!({
            "resolvers": [self.dns.address.to_string()],
            "min_interval": "1s",
            "max_interval": "1s",
            "timeout": "500ms",
        });
        if let (Some(section), Value::Object(more)) = (section.as_object_mut(), discovery) {
            section.extend(more);
        }
        json!({
            "listen": [{"address": self.listen.to_string()}],
            "workers": 1,
            "discovery": section,
            "upstreams": {"service": {"endpoints": endpoints, "timeout": {"connect": "2s", "response": "2m"}}},
            "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
        })
    }

    fn gateway(&self, endpoints: &Value, discovery: Value) -> Result<Gateway<'_>> {
        let config = self.config(endpoints, discovery);
        let mut gateway = Gateway::unprivileged(self.site.namespace.as_ref(), config)?;
        gateway.start()?;
        Ok(gateway)
    }

    fn get(&self) -> Result<(u16, String)> {
        let answer = self.site.connect(None, self.listen)?.get("/")?;
        Ok((answer.status, answer.text()))
    }

    /// Who answers a few requests, all of which have to succeed.
    fn answers(&self) -> Result<BTreeSet<String>> {
        let mut answers = BTreeSet::new();
        for _ in 0..8 {
            let (status, body) = self.get()?;
            ensure!(status == 200, "{status}: {body}");
            answers.insert(body);
        }
        Ok(answers)
    }

    /// Waits until these answer and nobody else; no request may fail meanwhile.
    fn wait_for_answers(&self, wanted: &[IpAddr]) -> Result {
        let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
        let what = format!("answers of {wanted:?}");
        wait_for(&what, PATIENCE, || Ok((self.answers()? == wanted).then_some(())))
    }

    /// Waits until a name was asked for so many times more.
    fn wait_for_lookups(&self, name: &str, kind: Kind, more: u64) -> Result {
        let goal = self.dns.asked(name, kind) + more;
        let what = format!("{more} questions about {name}");
        wait_for(&what, PATIENCE, || Ok((self.dns.asked(name, kind) >= goal).then_some(())))
    }
}

fn ips<const N: usize>(last: [u8; N]) -> [IpAddr; N] {
    last.map(|last| IpAddr::from([127, 0, 9, last]))
}

/// What `status` says about the name.
fn name_view(gateway: &Gateway<'_>) -> Result<Value> {
    let status = gateway.status()?;
    status.pointer("/upstreams/0/names/0").cloned().context("no name in the status")
}

fn note(gateway: &Gateway<'_>) -> Result<String> {
    let view = name_view(gateway)?;
    Ok(view.get("note").and_then(Value::as_str).unwrap_or_default().to_owned())
}

fn wait_for_note(gateway: &Gateway<'_>, wanted: &str) -> Result {
    wait_for(&format!("the note {wanted:?}"), PATIENCE, || {
        Ok(note(gateway)?.contains(wanted).then_some(()))
    })
}

fn page(gateway: &Gateway<'_>) -> Result<Page> {
    Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)
}

#[test]
fn requests_follow_what_the_name_stands_for() -> Result {
    let place = Place::new()?;
    let all = ips([1, 2, 3]);
    let (port, services) = place.services(&all)?;
    place.dns.tell_addresses(NAME, 1, &all[..2]);
    let gateway = place.gateway(&json!([format!("{NAME}:{port}")]), json!({}))?;
    assert_eq!(place.answers()?.len(), 2, "it is looked up before the first request");
    place.dns.tell_addresses(NAME, 1, &all[1..]);
    place.wait_for_answers(&all[1..])?;
    place.dns.tell_addresses(NAME, 1, &all[2..]);
    place.wait_for_answers(&all[2..])?;
    // Who is gone is asked for nothing any more, though it would answer.
    let before = services[0].requests().len() + services[1].requests().len();
    place.answers()?;
    assert_eq!(services[0].requests().len() + services[1].requests().len(), before);

    let view = name_view(&gateway)?;
    assert_eq!(view["name"], json!(format!("{NAME}:{port}")));
    assert_eq!(view["addresses"], json!([format!("{}:{port}", all[2])]));
    assert_eq!((&view["failures"], &view["note"]), (&json!(0), &Value::Null));
    assert!(view["resolved_utc_ms"].is_u64() && view["next_utc_ms"].is_u64());
    let samples = page(&gateway)?.samples;
    assert!(samples[r#"gateway_discovery_lookups_total{result="found"}"#] >= 3.0);
    assert_eq!(samples[r#"gateway_discovery_addresses{upstream="service"}"#], 1.0);
    assert_eq!(samples[r#"gateway_discovery_stale_names{upstream="service"}"#], 0.0);
    Ok(())
}

#[test]
fn an_endpoint_that_stays_keeps_what_is_known_about_it() -> Result {
    let place = Place::new()?;
    let all = ips([1, 2]);
    let (port, _services) = place.services(&all)?;
    place.dns.tell_addresses(NAME, 1, &all[..1]);
    let gateway = place.gateway(&json!([format!("{NAME}:{port}")]), json!({}))?;
    place.answers()?;
    place.dns.tell_addresses(NAME, 1, &all);
    place.wait_for_answers(&all)?;
    let status = gateway.status()?;
    let endpoints = status.pointer("/upstreams/0/endpoints").and_then(Value::as_array);
    let endpoints = endpoints.context("no endpoints")?;
    let of = |ip: IpAddr| {
        let address = json!(format!("{ip}:{port}"));
        endpoints.iter().find(|one| one["address"] == address).context("no such endpoint")
    };
    let requests = of(all[0])?["requests"].as_u64();
    assert!(requests >= of(all[1])?["requests"].as_u64().map(|count| count + 8), "{endpoints:?}");
    let opened = page(&gateway)?.samples["gateway_upstream_connections_opened_total"];
    assert!(opened <= 2.0, "{opened} connections: the one to the first was kept");
    Ok(())
}

#[test]
fn who_is_found_later_starts_slowly() -> Result {
    const REQUESTS: usize = 200;
    let place = Place::new()?;
    let all = ips([1, 2]);
    let (port, services) = place.services(&all)?;
    place.dns.tell_addresses(NAME, 1, &all[..1]);
    let mut config = place.config(&json!([format!("{NAME}:{port}")]), json!({}));
    config["upstreams"]["service"]["slow_start"] = json!("1h");
    config["upstreams"]["service"]["balance"] = json!("round_robin");
    let mut gateway = Gateway::unprivileged(place.site.namespace.as_ref(), config)?;
    gateway.start()?;
    place.dns.tell_addresses(NAME, 1, &all);
    wait_for("the second address", PATIENCE, || {
        let addresses = &name_view(&gateway)?["addresses"];
        Ok(addresses.as_array().filter(|all| all.len() == 2).map(|_| ()))
    })?;
    let before = services[0].requests().len();
    for _ in 0..REQUESTS {
        assert_eq!(place.get()?.0, 200);
    }
    // A tenth of the weight of the first one, which was there from the start: 18 of 200.
    let (first, second) = (services[0].requests().len() - before, services[1].requests().len());
    assert_eq!(first + second, REQUESTS);
    assert!((15..=21).contains(&second), "{second} of {REQUESTS}");
    Ok(())
}

#[test]
fn who_takes_over_finds_its_services_before_it_serves() -> Result {
    let place = Place::new()?;
    let all = ips([1, 2]);
    let (port, _services) = place.services(&all)?;
    place.dns.tell_addresses(NAME, 1, &all);
    let mut gateway = place.gateway(&json!([format!("{NAME}:{port}")]), json!({}))?;
    assert_eq!(place.answers()?.len(), 2);
    let ending = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| -> Result<usize> {
            let mut served = 0;
            while !ending.load(Ordering::Relaxed) {
                let (status, body) = place.get()?;
                ensure!(status == 200, "{status} after {served} requests: {body}");
                served += 1;
            }
            Ok(served)
        });
        let replaced = gateway.replace();
        ending.store(true, Ordering::Relaxed);
        let traffic = traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        replaced.and(traffic)
    })?;
    assert!(served > 20, "{served} requests");
    assert_eq!(place.answers()?.len(), 2);
    gateway.cli(&["drain"])?.ok()?;
    gateway.ended()
}

#[test]
fn who_is_gone_finishes_and_stays_protected_until_then() -> Result {
    let place = Place::new()?;
    let [first, second] = ips([1, 2]);
    let answer_now = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&answer_now);
    let namespace = place.site.namespace.as_ref();
    let slow = Origin::start(namespace, SocketAddr::new(first, 0), move |_| {
        let is_told = || Ok(told.load(Ordering::Relaxed).then_some(()));
        match wait_for("being told to answer", PATIENCE, is_told) {
            Ok(()) => Does::Answer(200, "slow"),
            Err(_) => Does::Close,
        }
    })?;
    let port = slow.address.port();
    let _other = Origin::start(namespace, SocketAddr::new(second, port), |_| {
        Does::Answer(200, "127.0.9.2")
    })?;
    place.dns.tell_addresses(NAME, 1, &[first]);
    let gateway = place.gateway(&json!([format!("{NAME}:{port}")]), json!({}))?;
    let mut waiting = place.site.connect(None, place.listen)?;
    waiting.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")?;
    let endpoints = || -> Result<String> {
        Ok(gateway.status()?.pointer("/upstreams/0/endpoints").context("no endpoints")?.to_string())
    };
    let is_busy = || Ok(endpoints()?.contains(r#""active":1"#).then_some(()));
    wait_for("the request being under way", PATIENCE, is_busy)?;
    place.dns.tell_addresses(NAME, 1, &[second]);
    let is_gone = || Ok(endpoints()?.contains("draining").then_some(()));
    wait_for("the first one draining", PATIENCE, is_gone)?;
    assert_eq!(place.answers()?, BTreeSet::from([second.to_string()]));
    // Longer than it takes to look at who is protected once more.
    let lookups = place.dns.asked(NAME, Kind::A);
    wait_for("some seconds", PATIENCE, || {
        Ok((place.dns.asked(NAME, Kind::A) >= lookups + 8).then_some(()))
    })?;
    let why = || -> Result<String> { Ok(gateway.cli(&["why", &first.to_string()])?.ok()?.stdout) };
    assert!(why()?.contains("upstream service"), "{}", why()?);
    answer_now.store(true, Ordering::Relaxed);
    assert_eq!(waiting.receive()?.text(), "slow");
    wait_for("nobody being protected for its sake", PATIENCE, || {
        Ok((!why()?.contains("upstream service")).then_some(()))
    })
}

#[test]
fn a_failed_lookup_keeps_what_was_found_and_says_so() -> Result {
    let place = Place::new()?;
    let [first, second] = ips([1, 2]);
    let (port, _services) = place.services(&[first, second])?;
    place.dns.tell_addresses(NAME, 1, &[first]);
    let gateway = place.gateway(&json!([format!("{NAME}:{port}")]), json!({}))?;
    for (reply, why, result) in [
        (Reply::NoName, "there is no such name", "empty"),
        (Reply::Empty, "there are no such records", "empty"),
        (Reply::Failure, "Server Failure", "failed"),
        (Reply::Silence, "no resolver answers", "timed_out"),
        (Reply::Garbage, "A of api.example", "timed_out"),
    ] {
        place.dns.tell_all(NAME, &reply);
        wait_for_note(&gateway, why)?;
        place.wait_for_answers(&[first])?;
        let samples = page(&gateway)?.samples;
        assert_eq!(samples[r#"gateway_discovery_stale_names{upstream="service"}"#], 1.0);
        let series = format!("gateway_discovery_lookups_total{{result=\"{result}\"}}");
        assert!(samples[&series] >= 1.0, "{reply:?}: {samples:?}");
    }
    // Each trouble is told of once, however often it is met.
    place.dns.tell_all(NAME, &Reply::NoName);
    wait_for_note(&gateway, "there is no such name")?;
    let told = || gateway.log().matches("not all was found").count();
    let before = told();
    place.wait_for_lookups(NAME, Kind::A, 2)?;
    assert_eq!(told(), before, "{}", gateway.log());
    place.dns.tell_addresses(NAME, 1, &[second]);
    place.wait_for_answers(&[second])?;
    wait_for("the log", PATIENCE, || {
        Ok(gateway.log().contains("all was found again").then_some(()))
    })?;
    assert_eq!(note(&gateway)?, "");
    Ok(())
}

#[test]
fn a_name_that_cannot_be_found_keeps_nobody_from_starting() -> Result {
    let place = Place::new()?;
    let [first] = ips([1]);
    let (port, _services) = place.services(&[first])?;
    place.dns.tell_all(NAME, &Reply::Silence);
    let gateway = place.gateway(&json!([format!("{NAME}:{port}")]), json!({}))?;
    let (status, body) = place.get()?;
    ensure!(status == 503, "{status}: {body}");
    assert!(note(&gateway)?.contains("no resolver answers"));
    assert_eq!(name_view(&gateway)?["resolved_utc_ms"], Value::Null);
    place.dns.tell_addresses(NAME, 60, &[first]);
    wait_for("an answer", PATIENCE, || Ok((place.get()?.0 == 200).then_some(())))?;
    Ok(())
}

#[test]
fn what_was_found_last_outlives_the_process_for_a_day() -> Result {
    let place = Place::new()?;
    let [first, second] = ips([1, 2]);
    let (port, _services) = place.services(&[first, second])?;
    place.dns.tell_addresses(NAME, 60, &[first]);
    let mut gateway = place.gateway(&json!([format!("{NAME}:{port}")]), json!({}))?;
    let file = gateway.state().join("names.json");
    let kept = || -> Result<Option<Value>> {
        let Ok(text) = std::fs::read(&file) else { return Ok(None) };
        let kept: Value = serde_json::from_slice(&text)?;
        Ok(kept.get(format!("{NAME}:{port}")).cloned())
    };
    wait_for("the file", PATIENCE, kept)?;
    gateway.kill9()?;
    place.dns.tell_all(NAME, &Reply::Silence);
    gateway.start()?;
    assert_eq!(place.answers()?, BTreeSet::from([first.to_string()]));
    assert!(note(&gateway)?.contains("found before the start, and not since"));
    assert!(gateway.log().contains("what it stood for last is used"));
    place.dns.tell_addresses(NAME, 60, &[second]);
    place.wait_for_answers(&[second])?;
    assert_eq!(note(&gateway)?, "");
    wait_for("the other address in the file", PATIENCE, || {
        Ok(kept()?.filter(|kept| kept.to_string().contains(&second.to_string())))
    })?;

    gateway.kill9()?;
    place.dns.tell_all(NAME, &Reply::Failure);
    let mut old: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let resolved = old.pointer_mut(&format!("/{NAME}:{port}/resolved")).context("no time")?;
    *resolved = json!(resolved.as_u64().context("no number")? - 86_400_000);
    std::fs::write(&file, old.to_string())?;
    gateway.start()?;
    assert_eq!(place.get()?.0, 503, "it may be somebody else's by now");
    gateway.kill9()?;
    std::fs::write(&file, "no JSON")?;
    gateway.start()?;
    assert_eq!(place.get()?.0, 503);
    Ok(())
}

#[test]
fn services_have_ports_weights_and_priorities() -> Result {
    let place = Place::new()?;
    let all = ips([1, 2, 3]);
    let (port, services) = place.services(&all)?;
    let record =
        |priority, weight, host: &str| Record::Service(priority, weight, port, host.to_owned());
    let hosts = ["one.example", "two.example", "three.example"];
    for (host, ip) in hosts.iter().zip(all) {
        place.dns.tell_addresses(host, 1, &[ip]);
    }
    let records = [record(10, 30, hosts[0]), record(10, 10, hosts[1]), record(20, 99, hosts[2])];
    place.dns.tell(SERVICE, Kind::Srv, Reply::Records(1, records.to_vec()));
    let gateway = place.gateway(&json!([{"srv": SERVICE}]), json!({}))?;
    for _ in 0..5 {
        place.answers()?;
    }
    let counts: Vec<usize> = services.iter().map(|service| service.requests().len()).collect();
    assert_eq!(counts, [30, 10, 0]);
    // Two hosts have gone wrong: one keeps its address, the other is no more among the records.
    place.dns.tell_all(hosts[0], &Reply::Failure);
    let records = [record(10, 0, hosts[0]), record(10, 0, hosts[2])];
    place.dns.tell(SERVICE, Kind::Srv, Reply::Records(1, records.to_vec()));
    place.wait_for_answers(&[all[0], all[2]])?;
    wait_for_note(&gateway, hosts[0])?;
    // There is no such service, say the records: that is no address either.
    place.dns.tell(SERVICE, Kind::Srv, Reply::Records(1, vec![record(0, 0, "")]));
    wait_for_note(&gateway, "no such service")?;
    place.wait_for_answers(&[all[0], all[2]])
}

#[test]
fn a_liar_with_thousands_of_addresses_is_believed_in_bounds() -> Result {
    let place = Place::new()?;
    let all: Vec<IpAddr> =
        (0..3000u32).map(|index| IpAddr::from((0x7f00_1000 + index).to_be_bytes())).collect();
    place.dns.tell_addresses(NAME, 1, &all);
    let gateway = place.gateway(&json!([format!("{NAME}:80")]), json!({"max_addresses": 40}))?;
    assert!(place.dns.asked_over_tcp() > 0, "what is too long comes over TCP");
    let view = name_view(&gateway)?;
    assert_eq!(view["addresses"].as_array().map(Vec::len), Some(40));
    assert_eq!(view["note"], json!("2960 more addresses are left out: discovery.max_addresses"));
    // The order of the records changes nothing.
    let rotated: Vec<IpAddr> = all[1000..].iter().chain(&all[..1000]).copied().collect();
    place.dns.tell_addresses(NAME, 1, &rotated);
    place.wait_for_lookups(NAME, Kind::A, 2)?;
    assert_eq!(name_view(&gateway)?["addresses"], view["addresses"]);
    Ok(())
}

#[test]
fn nobody_blocks_who_was_found_and_the_resolver() -> Result {
    let place = Place::new()?;
    place.dns.tell_addresses(NAME, 1, &["192.0.2.7".parse()?]);
    let gateway = place.gateway(&json!([format!("{NAME}:80")]), json!({}))?;
    let why =
        |address: &str| -> Result<String> { Ok(gateway.cli(&["why", address])?.ok()?.stdout) };
    let wait_for_why = |address: &str, wanted: &str| {
        wait_for(&format!("{address} as {wanted}"), PATIENCE, || {
            Ok(why(address)?.contains(wanted).then_some(()))
        })
    };
    wait_for_why("192.0.2.7", "upstream service (api.example:80)")?;
    wait_for_why("127.0.0.1", "resolver")?;
    gateway.cli(&["deny", "add", "192.0.2.7"])?.refused(1, "upstream service")?;
    place.dns.tell_addresses(NAME, 1, &["192.0.2.8".parse()?]);
    wait_for_why("192.0.2.8", "upstream service (api.example:80)")?;
    wait_for("the first being forgotten", PATIENCE, || {
        Ok((!why("192.0.2.7")?.contains("upstream")).then_some(()))
    })
}

#[test]
fn requests_never_come_round_to_the_gateway() -> Result {
    let place = Place::new()?;
    let [own, other] = [place.listen.ip(), ips([1])[0]];
    let port = place.listen.port();
    let _service =
        Origin::start(place.site.namespace.as_ref(), SocketAddr::new(other, port), |_| {
            Does::Answer(200, "other")
        })?;
    place.dns.tell_addresses(NAME, 1, &[own, other, "0.0.0.0".parse()?, "224.0.0.1".parse()?]);
    let gateway = place.gateway(&json!([format!("{NAME}:{port}")]), json!({}))?;
    assert_eq!(place.answers()?, BTreeSet::from(["other".to_owned()]));
    let note = note(&gateway)?;
    assert!(note.contains(&format!("{own}:{port}")) && note.contains("224.0.0.1"), "{note}");
    Ok(())
}

#[test]
fn a_reload_keeps_what_was_found_and_waits_for_new_names() -> Result {
    let place = Place::new()?;
    let [first, second] = ips([1, 2]);
    let (port, _services) = place.services(&[first, second])?;
    place.dns.tell_addresses(NAME, 1, &[first]);
    let endpoints = json!([format!("{NAME}:{port}")]);
    let gateway = place.gateway(&endpoints, json!({}))?;
    place.answers()?;
    // The resolver is gone, and other settings hold: what was found is still good.
    place.dns.tell_all(NAME, &Reply::Silence);
    gateway.write_config(place.config(&endpoints, json!({"timeout": "200ms"})))?;
    gateway.cli(&["reload"])?.ok()?;
    place.wait_for_answers(&[first])?;
    // A new name is looked up before it is needed.
    place.dns.tell_addresses("new.example", 1, &[second]);
    gateway.write_config(place.config(&json!([format!("new.example:{port}")]), json!({})))?;
    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(place.answers()?, BTreeSet::from([second.to_string()]));
    // What a refused configuration names is nobody's.
    let mut config = place.config(&endpoints, json!({}));
    config["workers"] = json!(2);
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.refused(1, "workers")?;
    assert_eq!(place.answers()?, BTreeSet::from([second.to_string()]));
    assert_eq!(name_view(&gateway)?["name"], json!(format!("new.example:{port}")));
    Ok(())
}

#[test]
fn what_was_found_is_checked_for_health() -> Result {
    let place = Place::new()?;
    let [first, second] = ips([1, 2]);
    let (port, mut services) = place.services(&[first, second])?;
    place.dns.tell_addresses(NAME, 1, &[first]);
    let mut config = place.config(&json!([format!("{NAME}:{port}")]), json!({}));
    config["upstreams"]["service"]["health"] = json!({"type": "tcp", "interval": "100ms"});
    let mut gateway = Gateway::unprivileged(place.site.namespace.as_ref(), config)?;
    gateway.start()?;
    services.pop();
    place.dns.tell_addresses(NAME, 1, &[first, second]);
    let wanted = json!(format!("{second}:{port}"));
    wait_for("the second being unhealthy", PATIENCE, || {
        let status = gateway.status()?;
        let all = status.pointer("/upstreams/0/endpoints").and_then(Value::as_array);
        let is_sick = |one: &Value| one["address"] == wanted && one["condition"] == "unhealthy";
        Ok(all.is_some_and(|all| all.iter().any(is_sick)).then_some(()))
    })?;
    place.wait_for_answers(&[first])
}

#[test]
fn explain_names_them_without_looking_up() -> Result {
    let place = Place::new()?;
    let endpoints = json!([format!("{NAME}:80"), {"srv": SERVICE}]);
    let gateway =
        Gateway::unprivileged(place.site.namespace.as_ref(), place.config(&endpoints, json!({})))?;
    let file = gateway.config();
    let file = file.to_str().context("a path that is no text")?;
    let shown = gateway.cli(&["explain", file, "GET", "http://a/"])?.ok()?.stdout;
    assert!(shown.contains("api.example:80") && shown.contains(SERVICE), "{shown}");
    assert_eq!(place.dns.asked(NAME, Kind::A), 0);
    Ok(())
}
