//! Two gateways with a kernel door each and a Redis between them: the attacker that one of them bans finds the other
//! one shut, and both open again when either lifts it.
//!
//! ```text
//!   attacker 198.18.0.7 ── to_first  ┐ first ── Redis
//!                                    │   │ to_second
//!   attacker 198.18.0.7 ── to_other  ┘ second
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use harness::bans::{self, Connecting, PATIENCE};
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use harness::redis::Redis;
use harness::topology::{Host, PORT};
use harness::{Result, require_root, wait_for};
use serde_json::{Value, json};

const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 7));
const COUNT: usize = 10;

/// A link by which the attacker reaches one of the gateways.
fn attacker(gateway: &Namespace, role: &str, link: (&'static str, u8)) -> Result<Host> {
    let host = Host::new(role, link.0, link.1)?;
    host.link(gateway)?;
    host.up(gateway)?;
    host.namespace.ip(&format!("address add {ATTACKER}/32 dev eth0"))?;
    gateway.ip(&format!("route add {ATTACKER}/32 via {}", host.v4()))?;
    Ok(host)
}

fn config(attacker: &Host, redis: SocketAddr, key: &str) -> Value {
    json!({
        "listen": [{"address": format!("0.0.0.0:{PORT}")}],
        "kernel": {"interfaces": [attacker.gateway_interface], "attach": "native"},
        "state": {"redis": {"addresses": [redis.to_string()], "connect_timeout": "2s"}},
        "routes": [{"match": {"path": "/ok"}, "respond": {"body": "ok"}}],
        "feedback": {
            "spread": {"key": {"file": key}},
            "rules": [{
                "name": "lost",
                "when": {"signal": "not_found", "count": COUNT, "per": "1h"},
                "ban": {"for": "1h"},
            }],
        },
    })
}

fn until(host: &Host, wanted: Connecting) -> Result {
    wait_for(&format!("{wanted:?}"), PATIENCE, || {
        let now = bans::connecting(&host.namespace, ATTACKER, host.target())?;
        Ok((now == wanted).then_some(()))
    })
}

#[test]
fn whom_one_gateway_bans_the_kernel_of_the_other_drops_until_either_lifts_it() -> Result {
    require_root()?;
    let first = Namespace::new("first")?;
    let second = Host::new("second", "to_second", 3)?;
    second.link(&first)?;
    second.up(&first)?;
    let one = attacker(&first, "one", ("to_first", 1))?;
    let two = attacker(&second.namespace, "two", ("to_other", 2))?;
    let listen = ["--bind", "0.0.0.0", "--protected-mode", "no"];
    let redis = first.enter(|| Redis::with(&listen))??;
    let folder = tempfile::tempdir()?;
    let key = folder.path().join("key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef")?;
    for path in [folder.path(), &key] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode)?;
    }
    let key = key.display().to_string();
    let from_second = SocketAddr::new(second.gateway_v4(), redis.address.port());
    let mut gateways = [
        Gateway::new(&first, config(&one, redis.address, &key))?,
        Gateway::new(&second.namespace, config(&two, from_second, &key))?,
    ];
    for gateway in &mut gateways {
        gateway.start()?;
    }
    for gateway in &gateways {
        wait_for("the others to be followed", PATIENCE, || {
            Ok((gateway.status()?.pointer("/spread/up") == Some(&json!(true))).then_some(()))
        })?;
    }
    // The second time it takes twice the evidence, for a lift has taught all of them.
    for (host, gateway, other, count) in
        [(&one, &gateways[0], &gateways[1], COUNT), (&two, &gateways[1], &gateways[0], 2 * COUNT)]
    {
        let mut client = bans::connect(&host.namespace, ATTACKER, host.target())?;
        bans::miss(&mut client, count)?;
        for host in [&one, &two] {
            until(host, Connecting::Silence)?;
        }
        for gateway in &gateways {
            let ban = bans::made(gateway, &ATTACKER.to_string())?;
            assert_eq!((&ban["place"], &ban["enforced"]), (&json!("kernel"), &json!("both")));
            assert!(gateway.kernel_packets("deny")? > 0, "the kernel dropped them");
        }
        let author = bans::made(gateway, &ATTACKER.to_string())?["author"].clone();
        assert_eq!(author, json!("feedback"));
        let author = bans::made(other, &ATTACKER.to_string())?["author"].clone();
        assert!(author.as_str().is_some_and(|who| who.starts_with("gateway ")), "{author}");
        other.cli(&["bans", "lift", &ATTACKER.to_string()])?.ok()?;
        for host in [&one, &two] {
            until(host, Connecting::Made)?;
        }
    }
    Ok(())
}
