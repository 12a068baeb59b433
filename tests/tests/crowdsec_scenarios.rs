//! What a crowdsec decides, through the real binary: carried out, taken back, guarded, and whatever becomes of its
//! Local API, what was heard last holds.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::gateway::Gateway;
use harness::idp::reply;
use harness::lapi::Lapi;
use harness::metrics::{Page, family};
use harness::origin::Reply;
use harness::site::Site;
use harness::{Result, wait_for};
use serde_json::{Value, json};

const DOCUMENTED: &str = include_str!("../../docs/metrics.md");
const PATIENCE: Duration = Duration::from_secs(30);
const KEY: &str = "a-bouncers-key";

struct House {
    site: Site,
    lapi: Lapi,
    listen: SocketAddr,
    folder: tempfile::TempDir,
}

impl House {
    fn new() -> Result<Self> {
        let site = Site::new()?;
        // An address of its own, which nothing but the configuration protects.
        let lapi = Lapi::start(&site, "127.0.0.2:0".parse()?, KEY)?;
        let (listen, folder) = (site.free_address()?, tempfile::tempdir()?);
        let mode = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), mode())?;
        std::fs::write(folder.path().join("key"), format!("{KEY}\n"))?;
        Ok(Self { site, lapi, listen, folder })
    }

    fn config(&self) -> Value {
        let key = self.folder.path().join("key").display().to_string();
        json!({
            "listen": [{"address": self.listen.to_string()}],
            "workers": 1,
            "kernel": {"attach": "off", "never_block": ["203.0.113.17"]},
            "feedback": {"crowdsec": {
                "url": self.lapi.url(), "key": {"file": key}, "every": "1s",
            }},
            "routes": [{"match": {"path": "/{rest*}"}, "respond": {"status": 204}}],
        })
    }

    fn gateway(&self) -> Result<Gateway<'_>> {
        let mut gateway = Gateway::unprivileged(self.site.namespace.as_ref(), self.config())?;
        gateway.start()?;
        Ok(gateway)
    }

    /// Whether a client with this address is served.
    fn is_served(&self, source: &str) -> Result<bool> {
        let connected = self.site.connect(Some(source.parse::<IpAddr>()?), self.listen);
        let answered = connected.and_then(|mut client| client.get("/"));
        Ok(answered.is_ok_and(|answer| answer.status == 204))
    }
}

fn bans(gateway: &Gateway<'_>) -> Result<Vec<Value>> {
    gateway.cli(&["bans", "list", "--json"])?.ok()?.json_lines()
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Waits until exactly these are banned.
fn until(gateway: &Gateway<'_>, expected: &[&str]) -> Result {
    wait_for(&format!("bans of {expected:?}"), PATIENCE, || {
        let bans = bans(gateway)?;
        let held: Vec<&str> = bans.iter().map(|ban| text(ban, "prefix")).collect();
        Ok((held == expected).then_some(()))
    })
}

fn crowdsec(gateway: &Gateway<'_>) -> Result<Value> {
    let status = gateway.status()?;
    Ok(status.get("crowdsec").cloned().unwrap_or_default())
}

/// Waits until the last failure says this.
fn fails(gateway: &Gateway<'_>, expected: &str) -> Result {
    wait_for(&format!("a failure: {expected}"), PATIENCE, || {
        let view = crowdsec(gateway)?;
        let is_down = view.get("up") == Some(&json!(false));
        Ok((is_down && text(&view, "error").contains(expected)).then_some(()))
    })
}

fn recovers(gateway: &Gateway<'_>) -> Result {
    wait_for("that it comes back", PATIENCE, || {
        Ok((crowdsec(gateway)?.get("up") == Some(&json!(true))).then_some(()))
    })
}

#[test]
fn its_decisions_are_carried_out_and_taken_back_and_nobody_elses_are() -> Result {
    let house = House::new()?;
    house.lapi.ban("127.0.0.9", "3h59m58.5s", "crowdsecurity/http-probing");
    let gateway = house.gateway()?;
    until(&gateway, &["127.0.0.9"])?;
    let ban = bans(&gateway)?.remove(0);
    assert_eq!(text(&ban, "rule"), "crowdsecurity/http-probing");
    assert_eq!((text(&ban, "author"), text(&ban, "measure")), ("outside crowdsec", "ban"));
    assert!(!house.is_served("127.0.0.9")?);
    assert!(house.is_served("127.0.0.8")?);
    let why = gateway.cli(&["why", "127.0.0.9"])?.ok()?.stdout;
    assert!(why.contains("http-probing") && why.contains("crowdsec"), "{why}");

    // Somebody's own ban, shorter than what crowdsec says about the same.
    gateway.cli(&["ban", "127.0.0.7", "--for", "1h", "--reason", "by hand"])?.ok()?;
    house.lapi.ban("127.0.0.7", "4h", "ssh-bf");
    house.lapi.ban("198.51.100.0/24", "4h", "ranges");
    until(&gateway, &["127.0.0.7", "127.0.0.9", "198.51.100.0/24"])?;
    house.lapi.unban("127.0.0.7");
    house.lapi.unban("127.0.0.9");
    until(&gateway, &["127.0.0.7", "198.51.100.0/24"])?;
    assert!(text(&bans(&gateway)?[0], "author").starts_with("user "));
    assert!(house.is_served("127.0.0.9")? && !house.is_served("127.0.0.7")?);

    // Nobody who is protected, its own host neither, and no half of the internet.
    for one in ["127.0.0.2", "203.0.113.17", "0.0.0.0/1", "203.0.113.18"] {
        house.lapi.ban(one, "4h", "too-much");
    }
    until(&gateway, &["127.0.0.7", "198.51.100.0/24", "203.0.113.18"])?;
    let held = gateway.cli(&["bans", "list", "--held", "--json"])?.ok()?.json_lines()?;
    assert!(held.iter().all(|one| text(one, "author") == "outside crowdsec"), "{held:?}");
    let mut whom: Vec<&str> = held.iter().map(|one| text(one, "prefix")).collect();
    whom.sort_unstable();
    assert_eq!(whom, ["127.0.0.2", "203.0.113.17"]);
    let notes = format!("{held:?}");
    assert!(notes.contains("feedback.crowdsec") && notes.contains("never_block"), "{notes}");

    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    assert_eq!(page.value("gateway_feedback_crowdsec_up"), Some(1));
    assert_eq!(page.value("gateway_feedback_crowdsec_bans"), Some(2));
    let decisions = |result: &str| {
        page.value(&format!("gateway_feedback_crowdsec_decisions_total{{result=\"{result}\"}}"))
    };
    assert_eq!(["wide", "guarded", "withdrawn"].map(decisions), [1, 2, 2].map(Some));
    let names = page.samples.keys().map(|series| family(series));
    for name in names.filter(|name| name.contains("_crowdsec_")) {
        assert!(DOCUMENTED.contains(&format!("`{name}`")), "{name} is not documented");
    }
    let view = crowdsec(&gateway)?;
    assert_eq!((view.get("bans"), view.get("failures")), (Some(&json!(2)), Some(&json!(0))));
    assert!(view.get("answered_utc_ms").is_some_and(Value::is_u64), "{view}");
    Ok(())
}

#[test]
fn whatever_becomes_of_it_its_bans_hold_and_it_comes_back() -> Result {
    let house = House::new()?;
    house.lapi.ban("127.0.0.9", "4h", "first");
    let gateway = house.gateway()?;
    until(&gateway, &["127.0.0.9"])?;
    let huge: &[u8] = b"HTTP/1.1 200 -\r\ncontent-length: 99999999999\r\n\r\n{\"new\":[";
    for (ill, expected) in [
        (reply(500, "application/json", "{}"), "answered 500"),
        (reply(200, "text/html", "<html>"), "web page"),
        (reply(200, "application/json", "{}"), "no stream of decisions"),
        (reply(200, "application/json", "{\"new\": [{\"value\": 7}]}"), "no stream of decisions"),
        (Reply::Raw(huge), "more than 67108864 bytes"),
        (Reply::Close, "broke off"),
    ] {
        house.lapi.feel(Some(ill));
        fails(&gateway, expected)?;
        assert!(!house.is_served("127.0.0.9")?, "{expected}");
        // What it would have said meanwhile is in what it says of all.
        house.lapi.feel(None);
        recovers(&gateway)?;
        until(&gateway, &["127.0.0.9"])?;
    }
    // What changed while nobody heard of it is found out by asking for all.
    house.lapi.rekey("another");
    fails(&gateway, "403 Forbidden: the key of feedback.crowdsec is not one of its bouncers")?;
    house.lapi.ban("127.0.0.8", "4h", "meanwhile");
    house.lapi.unban("127.0.0.9");
    until(&gateway, &["127.0.0.9"])?;
    std::fs::write(house.folder.path().join("key"), "another")?;
    gateway.cli(&["reload"])?.ok()?;
    until(&gateway, &["127.0.0.8"])?;
    recovers(&gateway)?;
    assert_eq!(house.lapi.asked().first(), Some(&true));
    wait_for("a question about what has changed", PATIENCE, || {
        Ok((house.lapi.asked().last() == Some(&false)).then_some(()))
    })?;
    assert!(house.is_served("127.0.0.9")? && !house.is_served("127.0.0.8")?);

    // What cannot be sent is a mistake that is found before anything changes.
    std::fs::write(house.folder.path().join("key"), "two\nlines")?;
    gateway.cli(&["reload"])?.refused(2, "feedback.crowdsec: the key has characters")?;
    // Without the section its bans stay until they end, and nobody is asked.
    let mut config = house.config();
    config["feedback"] = json!({});
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(crowdsec(&gateway)?, Value::Null);
    until(&gateway, &["127.0.0.8"])
}

#[test]
fn a_restart_and_a_successor_know_its_bans_and_hear_what_was_taken_back_meanwhile() -> Result {
    let house = House::new()?;
    for last in 1..=200 {
        house.lapi.ban(&format!("198.51.100.{last}"), "4h", "many");
    }
    let mut gateway = house.gateway()?;
    wait_for("all of them", PATIENCE, || Ok((bans(&gateway)?.len() == 200).then_some(())))?;
    gateway.stop()?;
    house.lapi.feel(Some(Reply::Close));
    gateway.start()?;
    assert_eq!(bans(&gateway)?.len(), 200);
    for last in 3..=200 {
        house.lapi.unban(&format!("198.51.100.{last}"));
    }
    house.lapi.feel(None);
    until(&gateway, &["198.51.100.1", "198.51.100.2"])?;
    gateway.replace()?;
    house.lapi.unban("198.51.100.1");
    until(&gateway, &["198.51.100.2"])
}

#[test]
fn what_the_guard_was_against_is_done_when_it_is_not_any_more_unless_it_was_taken_back() -> Result {
    let house = House::new()?;
    let gateway = house.gateway()?;
    let allow = |verb: &str| gateway.cli(&["allow", verb, "198.51.100.0/24"]);
    allow("add")?.ok()?;
    for last in [7, 8, 9] {
        house.lapi.ban(&format!("198.51.100.{last}"), "4h", "ssh-bf");
    }
    house.lapi.ban("203.0.113.5", "4h", "ssh-bf");
    until(&gateway, &["203.0.113.5"])?;
    house.lapi.unban("198.51.100.8");
    house.lapi.ban("203.0.113.6", "4h", "the last of that answer");
    until(&gateway, &["203.0.113.5", "203.0.113.6"])?;
    allow("remove")?.ok()?;
    until(&gateway, &["198.51.100.7", "198.51.100.9", "203.0.113.5", "203.0.113.6"])
}

#[test]
fn it_cannot_hold_off_those_who_are_served_well() -> Result {
    let house = House::new()?;
    let gateway = house.gateway()?;
    // Ten clients, a tenth of the good requests each.
    for last in 10..20 {
        for _ in 0..5 {
            assert!(house.is_served(&format!("127.0.0.{last}"))?);
        }
    }
    wait_for("that it is known who was served", PATIENCE, || {
        let why = gateway.cli(&["why", "127.0.0.19", "--json"])?.ok()?.json()?;
        let known = why.pointer("/scores/0/good_requests").and_then(Value::as_u64);
        Ok((known == Some(5)).then_some(()))
    })?;
    house.lapi.ban("127.0.0.0/28", "4h", "all-of-them");
    house.lapi.ban("126.0.0.0/7", "4h", "half-of-the-world");
    house.lapi.ban("203.0.113.5", "4h", "ssh-bf");
    until(&gateway, &["203.0.113.5"])?;
    let held = gateway.cli(&["bans", "list", "--held", "--json"])?.ok()?.json_lines()?;
    let held: Vec<&Value> = held.iter().filter(|one| text(one, "note") == "good_share").collect();
    assert!(held.len() == 1 && text(held[0], "prefix") == "127.0.0.0/28", "{held:?}");
    let story = held[0].pointer("/story/notes/0").and_then(Value::as_str).unwrap_or_default();
    assert!(story.contains("it would hit 50 good requests"), "{story}");
    assert!(gateway.log().contains("a decision was not carried out"), "{}", gateway.log());
    // Nor can a program that says so by the command line; a person can.
    let ban = |more: &[&str]| {
        let fixed = ["ban", "127.0.0.0/28", "--for", "1h", "--reason", "x"];
        gateway.cli(&[&fixed, more].concat())
    };
    let said = ban(&["--from", "watcher"])?.ok()?.stdout;
    assert!(said.contains("feedback.ceiling"), "{said}");
    until(&gateway, &["203.0.113.5"])?;
    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    let held =
        "gateway_feedback_decisions_total{rule=\"_outside\",measure=\"ban\",result=\"good_share\"}";
    assert_eq!(page.value(held), Some(2));
    ban(&[])?.ok()?;
    until(&gateway, &["127.0.0.0/28", "203.0.113.5"])?;
    assert!(!house.is_served("127.0.0.14")?);
    Ok(())
}

#[test]
fn a_dry_run_shows_what_it_would_do() -> Result {
    let house = House::new()?;
    house.lapi.ban("127.0.0.9", "4h", "ssh-bf");
    let mut config = house.config();
    config["feedback"]["dry_run"] = json!(true);
    let mut gateway = Gateway::unprivileged(house.site.namespace.as_ref(), config)?;
    gateway.start()?;
    wait_for("what would be done", PATIENCE, || {
        let held = gateway.cli(&["bans", "list", "--held", "--json"])?.ok()?.json_lines()?;
        Ok(held.iter().any(|one| text(one, "note") == "dry_run").then_some(()))
    })?;
    assert!(bans(&gateway)?.is_empty() && house.is_served("127.0.0.9")?);
    Ok(())
}
