//! An attack and what becomes of it: requests with wrong credentials from a hundred addresses, before, during and
//! after, once with the kernel door shut and once with what the proxy learns enforced by the kernel. The attacker has
//! one CPU, and everything else the other.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use harness::gateway::Gateway;
use harness::origin::Origin;
use serde_json::{Value, json};

use super::Lab;
use super::load::Pace;
use crate::bench::attack::http::{Connections, Plan, Sources};
use crate::bench::attack::{CPU_OURS, stay_on};

/// Addresses that the attack comes from.
const SOURCES: Sources = Sources::Many(100);
/// The addresses are the attacker's own, so that it can have connections from there.
const ATTACKER_NET: &str = "198.18.0.0/15";

/// Both acts.
pub(super) fn run(lab: &Lab<'_>) -> Result<()> {
    stay_on(CPU_OURS)?;
    let serving = SocketAddr::new(lab.hosts.upstream.v4(), 9001);
    let origin = Origin::constant(&lab.hosts.upstream.namespace, serving, "hello\n")?;
    lab.hosts.attacker.namespace.ip(&format!("route replace local {ATTACKER_NET} dev lo"))?;
    for (attach, names) in [
        ("off", ["quiet, kernel door off", "attack, kernel door off", "after, kernel door off"]),
        ("native", ["quiet, the loop on", "attack, the loop on", "after, the loop on"]),
    ] {
        if lab.is_interrupted() {
            return Ok(());
        }
        act(lab, config(lab, origin.address, attach), names)?;
    }
    Ok(())
}

fn act(lab: &Lab<'_>, config: Value, [before, during, after]: [&'static str; 3]) -> Result<()> {
    let mut gateway = Gateway::new(&lab.hosts.gateway, config)?.with_binary(lab.binary.clone());
    gateway.start()?;
    let made = gateway.cli(&["keys", "create", "--consumer", "honest", "--json"])?.ok()?.json()?;
    let key = made.get("key").and_then(Value::as_str).context("no key was made")?;
    let requests = lab.requests(Some(key), Pace::Answered)?;
    lab.seconds(before, &gateway, &requests, None)?;
    let attack = Connections::start(&lab.hosts.attacker, Plan::attack(SOURCES, None))?;
    lab.seconds(during, &gateway, &requests, None)?;
    drop(attack);
    lab.seconds(after, &gateway, &requests, None)
}

fn config(lab: &Lab<'_>, origin: SocketAddr, attach: &str) -> Value {
    let mut config = lab.hosts.config(origin);
    let own = json!({
        "auth": {"partners": {"api_key": {"header": "X-API-Key"}}},
        // The default rules. A hundred decisions within a second are more than the default ceiling lets through.
        "feedback": {"ceiling": {"bans_per_minute": 1000}},
        "routes": [{"match": {"path": "/{rest*}"}, "auth": "partners", "upstream": "origin"}],
    });
    if let (Some(config), Some(own)) = (config.as_object_mut(), own.as_object()) {
        config.extend(own.clone());
        if let Some(kernel) = config.get_mut("kernel").and_then(Value::as_object_mut) {
            kernel.insert("attach".to_owned(), json!(attach));
        }
    }
    config
}
