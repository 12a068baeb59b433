//! Callers who are known stay with one upstream, or with one endpoint of it, over whatever connection they come.

use harness::Result;
use harness::gateway::Gateway;
use harness::origin::{Reply, Request};
use harness::site::Site;
use serde_json::{Value, json};

fn one(_: &Request) -> Reply {
    Reply::Answer(200, "one")
}

fn two(_: &Request) -> Reply {
    Reply::Answer(200, "two")
}

/// Each of so many fails less than once in 2^19 runs to have both among them.
const CONSUMERS: usize = 20;

#[test]
fn a_consumer_stays_with_its_upstream_and_with_its_endpoint() -> Result {
    let site = Site::new()?;
    let (first, second) = (site.origin(one)?, site.origin(two)?);
    let [first, second] = [first.address, second.address].map(|address| address.to_string());
    let listen = site.free_address()?;
    let route = |path: &str, more: Value| {
        let mut route = json!({"match": {"path": path}, "auth": ["partners", "anonymous"]});
        let (to, more) = (route.as_object_mut(), more.as_object().cloned());
        to.into_iter().for_each(|to| to.extend(more.clone().unwrap_or_default()));
        route
    };
    let several = ["one", "two"];
    let limits = json!([{"per": ["client_address", "upstream"], "rate": "2/h burst 2"}]);
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "auth": {"partners": {"api_key": {}}},
        "upstreams": {
            "one": {"endpoints": [first]},
            "two": {"endpoints": [second]},
            "both": {"endpoints": [first, second], "balance": {"hash": "consumer"}},
        },
        "routes": [
            route("/sticky", json!({"upstream": several, "sticky": "consumer"})),
            route("/hash", json!({"upstream": "both"})),
            route("/limited", json!({"upstream": several, "sticky": "consumer", "limits": limits})),
        ],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let key = |consumer: usize| -> Result<String> {
        let create = ["keys", "create", "--json", "--consumer", &format!("c{consumer}")];
        let made = gateway.cli(&create)?.ok()?.json()?;
        Ok(made.get("key").and_then(Value::as_str).unwrap_or_default().to_owned())
    };
    let keys = (0..CONSUMERS).map(key).collect::<Result<Vec<_>>>()?;
    let ask = |path: &str, key: Option<&str>| -> Result<(u16, String)> {
        let field = key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
        let mut client = site.connect(None, listen)?;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n{field}\r\n").as_bytes())?;
        let answer = client.receive()?;
        Ok((answer.status, answer.text()))
    };
    for path in ["/sticky", "/hash"] {
        let mut seen = Vec::new();
        for key in &keys {
            let known = ask(path, Some(key))?;
            assert_eq!(known.0, 200, "{path}");
            for _ in 0..4 {
                assert_eq!(ask(path, Some(key))?, known, "{path}");
            }
            seen.push(known.1);
        }
        // Whoever is not known keeps nothing.
        let anonymous = (0..40).map(|_| Ok(ask(path, None)?.1)).collect::<Result<Vec<_>>>()?;
        for answers in [seen, anonymous] {
            let has = |name: &str| answers.iter().any(|answer| answer == name);
            assert!(has("one") && has("two"), "{path}: {answers:?}");
        }
    }
    // The address has two of each upstream, whoever calls from there.
    let answers = keys.iter().map(|key| ask("/limited", Some(key))).collect::<Result<Vec<_>>>()?;
    for name in several {
        let served = answers.iter().filter(|(_, answer)| answer == name).count();
        assert_eq!(served, 2, "{name}: {answers:?}");
    }
    assert_eq!(answers.iter().filter(|(status, _)| *status == 429).count(), CONSUMERS - 4);
    Ok(())
}
