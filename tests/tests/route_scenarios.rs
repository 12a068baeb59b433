//! Routing through the real binary: what the client sends as raw bytes, and what the service received of it.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use harness::Result;
use harness::client::{Client, Response};
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use harness::origin::{Origin, Reply, Request};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(5);

/// A gateway with routes to two services, `one` and `two`.
struct Site {
    namespace: Option<Namespace>,
    listen: SocketAddr,
    one: Origin,
    two: Origin,
}

impl Site {
    fn new() -> Result<Self> {
        let namespace = nix::unistd::geteuid().is_root().then(|| Namespace::new("host"));
        let namespace = namespace.transpose()?;
        let bind = || TcpListener::bind("127.0.0.1:0");
        let listener = match &namespace {
            Some(namespace) => namespace.enter(bind)??,
            None => bind()?,
        };
        let origin = |answer| {
            let script = move |_: &Request| Reply::Answer(200, answer);
            Origin::start(namespace.as_ref(), "127.0.0.1:0".parse()?, script)
        };
        let (one, two) = (origin("one")?, origin("two")?);
        Ok(Self { listen: listener.local_addr()?, one, two, namespace })
    }

    fn gateway(&self, routes: Value) -> Result<Gateway<'_>> {
        let config = json!({
            "listen": [{"address": self.listen.to_string()}],
            "upstreams": {
                "one": {"endpoints": [self.one.address.to_string()]},
                "two": {"endpoints": [self.two.address.to_string()]},
            },
            "routes": routes,
        });
        let mut gateway = Gateway::unprivileged(self.namespace.as_ref(), config)?;
        gateway.start()?;
        Ok(gateway)
    }

    fn client(&self, source: Option<IpAddr>) -> Result<Client> {
        let connect = || Client::connect_here(source, self.listen, PATIENCE);
        match &self.namespace {
            Some(namespace) => namespace.enter(connect)?,
            None => connect(),
        }
    }

    /// Sends a request line and header fields on a connection of their own.
    fn ask(&self, line: &str, fields: &[&str]) -> Result<Response> {
        let mut client = self.client(None)?;
        let mut bytes = format!("{line}\r\n");
        for field in fields {
            bytes.push_str(field);
            bytes.push_str("\r\n");
        }
        client.send((bytes + "\r\n").as_bytes())?;
        client.receive()
    }

    fn get(&self, target: &str, fields: &[&str]) -> Result<Response> {
        let mut all = vec!["Host: api.test"];
        all.extend_from_slice(fields);
        self.ask(&format!("GET {target} HTTP/1.1"), &all)
    }

    /// The target of the last request that the first service received.
    fn received(&self) -> Option<String> {
        let requests = self.one.requests();
        Some(requests.last()?.line.split(' ').nth(1)?.to_owned())
    }
}

#[test]
fn route_and_service_see_one_normal_form_of_a_path() -> Result {
    let site = Site::new()?;
    let _gateway = site.gateway(json!([
        {"match": {"path": "/{rest*}"}, "upstream": "one"},
        {"match": {"path": "/admin/{rest*}"}, "respond": {"status": 403}},
        {"match": {"path": "/keep/{id}"}, "upstream": "one", "encoded_slash": "keep"},
    ]))?;
    for (sent, received) in [
        ("/a/b?c=%2e%2e/%2F", "/a/b?c=%2e%2e/%2F"),
        ("/%61%2d/%e2%82%ac", "/a-/%E2%82%AC"),
        ("/a%2fb%2Fc", "/a%2Fb%2Fc"),
        ("/a;v=1/b;w", "/a;v=1/b;w"),
        ("/a%40b%3Ac", "/a%40b%3Ac"),
        ("/...", "/..."),
        ("/keep/admin%2Fx", "/keep/admin%2Fx"),
        ("/%252e%252e/admin", "/%252e%252e/admin"),
        ("http://api.test/a/%7Eb", "/a/~b"),
        ("http://api.test", "/"),
    ] {
        assert_eq!(site.get(sent, &[])?.status, 200, "{sent}");
        assert_eq!(site.received().as_deref(), Some(received), "{sent}");
    }
    for same in ["/admin/x", "/%61dmin/x", "/adm%69n/%78"] {
        assert_eq!(site.get(same, &[])?.status, 403, "{same}");
    }
    Ok(())
}

/// Targets that a gateway and a service could take for two different ones.
const AMBIGUOUS: &str = r"
    // //admin/x /a//b /a// /%2fadmin/x /a/%2f/b /a%2f%2fb /.. /a/../admin/x /a/.. /./admin/x
    /a/%2e%2e/admin/x /a/.%2E/admin/x /%2e/admin/x /a%2f..%2fadmin%2fx /a/..;/admin/x
    /a/..%3b/admin/x /;/admin/x /a\..\admin\x /a%5cb /\admin/x /a%00 /admin%00/x /a%0d%0ax /%7f
    /% /%a /%zz /%u002e%u002e/admin/x /%c0%ae%c0%ae/admin/x /admin%2fx /admin%2Fx /admin;v=1/x
    /admin%3bv/x /admin;a%2fx /id/a%2fb /strict/a%2fb /strict/a;b * admin/x ?a
    http://other.test/admin/x http://u@api.test/a http://api.test@other.test/a
    http://api.test:99/a https://api.test/a ftp://api.test/a http://api.test//a
    http://api.test/a/../b
";

#[test]
fn what_can_be_read_in_two_ways_reaches_no_service() -> Result {
    let site = Site::new()?;
    let _gateway = site.gateway(json!([
        {"match": {"path": "/{rest*}"}, "upstream": "one"},
        {"match": {"path": "/admin/{rest*}"}, "respond": {"status": 403}},
        {"match": {"path": "/id/{id}"}, "upstream": "one"},
        {"match": {"path": "/strict/{rest*}"}, "upstream": "one",
         "encoded_slash": "refuse", "path_parameters": "refuse"},
    ]))?;
    for target in AMBIGUOUS.split_whitespace().chain(["/a b", "/a#b"]) {
        let status = site.get(target, &[])?.status;
        assert_eq!(status, 400, "{target}");
    }
    for host in [
        "a/b",
        "user@api.test",
        "api.test, other.test",
        "api test",
        "api.test/admin",
        "a\\b",
        "a?b",
        "a#b",
        "api.test:80:80",
        "api.test:65536",
        ":80",
        "[::1",
        "[::1]:80:80",
        "api.test,other.test",
        "%61pi.test",
    ] {
        assert_eq!(site.ask("GET /a HTTP/1.1", &[&format!("Host: {host}")])?.status, 400, "{host}");
    }
    let status = |fields: &[&str]| site.ask("GET /a HTTP/1.1", fields).map(|answer| answer.status);
    assert_eq!(status(&["Host: api.test", "Host: api.test"])?, 400);
    assert_eq!(status(&[])?, 400);
    let tunnel = site.ask("CONNECT api.test:80 HTTP/1.1", &["Host: api.test:80"])?;
    assert!(matches!(tunnel.status, 400 | 501), "{tunnel:?}");
    let seen = site.one.requests();
    assert!(seen.is_empty(), "a service received {seen:?}");
    Ok(())
}

#[test]
fn hosts_conditions_and_what_is_left_to_the_next_route() -> Result {
    let site = Site::new()?;
    let _gateway = site.gateway(json!([
        {"match": {"host": "*.tenants.test", "path": "/{rest*}"}, "upstream": "two"},
        {"match": {"path": "/v/{rest*}", "headers": {"X-Version": "2"}}, "upstream": "two"},
        {"match": {"path": "/v/{rest*}", "cookies": {"beta": {"regex": "on|yes"}}}, "upstream": "two"},
        {"match": {"path": "/v/{rest*}", "methods": ["GET"], "query": {"v": "2"}}, "upstream": "two"},
        {"match": {"path": "/{rest*}", "methods": ["GET"]}, "upstream": "one"},
    ]))?;
    let answers = [
        (site.get("/v/a", &[])?, "one"),
        (site.get("/v/a", &["x-version: 2"])?, "two"),
        (site.get("/v/a", &["X-Version: 22"])?, "one"),
        (site.get("/v/a", &["Cookie: a=b; beta=yes"])?, "two"),
        (site.get("/v/a", &["Cookie: beta=yesterday"])?, "one"),
        (site.get("/v/a?v=%32", &[])?, "two"),
        (site.ask("GET / HTTP/1.1", &["Host: A.B.Tenants.test:80"])?, "two"),
        (site.ask("GET / HTTP/1.1", &["Host: tenants.test"])?, "one"),
    ];
    for (number, (answer, body)) in answers.iter().enumerate() {
        assert_eq!((answer.status, answer.text().as_str()), (200, *body), "answer {number}");
    }
    let refused = site.ask("PUT /v/a?v=2 HTTP/1.1", &["Host: api.test"])?;
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET")));
    Ok(())
}

#[test]
fn rewrites_redirects_and_answers_of_the_gateway() -> Result {
    let site = Site::new()?;
    let _gateway = site.gateway(json!([
        {"match": {"path": "/api/{version}/{rest*}"}, "upstream": "one",
         "rewrite": "/{rest}?version={version}&{query}",
         "request_headers": {"set": {"Host": "inner.test", "X-Gateway": "yes"}, "remove": ["X-Secret"]},
         "response_headers": {"set": {"X-Frame-Options": "DENY"}, "add": {"Vary": "X-A"}}},
        {"match": {"path": "/dots/{rest*}"}, "upstream": "one", "rewrite": "/x/.{rest}"},
        {"match": {"path": "/old/{rest*}"}, "redirect": {"status": 308, "to": "https://{host}/new/{rest}"},
         "response_headers": {"set": {"Cache-Control": "no-store"}}},
        {"match": {"path": "/down"}, "respond": {"status": 503, "body": "{\"down\": true}",
         "headers": {"Content-Type": "application/json", "Retry-After": "60"}}},
    ]))?;
    let answer = site.get("/api/v2%26x/a/b%2Fc?d=e", &["X-Secret: 1", "X-Gateway: no"])?;
    assert_eq!((answer.status, answer.header("x-frame-options")), (200, Some("DENY")));
    assert_eq!(answer.header("vary"), Some("X-A"));
    let seen = site.one.requests();
    let request = seen.last().expect("a request");
    assert_eq!(request.line, "GET /a/b%2Fc?version=v2%26x&d=e HTTP/1.1");
    assert_eq!(request.header("host"), Some("inner.test"));
    assert_eq!(request.header("x-forwarded-host"), Some("api.test"));
    assert_eq!((request.header("x-gateway"), request.header("x-secret")), (Some("yes"), None));

    assert_eq!(site.get("/dots/", &[])?.status, 400, "a capture makes no dot segment");
    assert_eq!(site.get("/dots/./x", &[])?.status, 400);
    assert_eq!(site.get("/dots/a", &[])?.status, 200);

    let moved = site.get("/old/a/b?c=d", &[])?;
    assert_eq!(
        (moved.status, moved.header("location")),
        (308, Some("https://api.test/new/a/b?c=d"))
    );
    assert_eq!(moved.header("cache-control"), Some("no-store"));
    assert!(moved.header("x-request-id").is_some());
    assert_eq!(site.ask("GET /old/a HTTP/1.1", &["Host: a%2fb"])?.status, 400);

    let mut client = site.client(None)?;
    for _ in 0..2 {
        let down = client.get("/down")?;
        assert_eq!((down.status, down.text().as_str()), (503, "{\"down\": true}"));
        assert_eq!(down.header("retry-after"), Some("60"));
        assert_eq!(down.header("content-type"), Some("application/json"));
    }
    // A body that nobody reads cannot be taken for the next request.
    client.send(b"POST /down HTTP/1.1\r\nhost: a\r\ncontent-length: 27\r\n\r\n")?;
    assert_eq!(client.receive()?.header("connection"), Some("close"));
    Ok(())
}

#[test]
fn several_upstreams_share_requests_and_a_cookie_keeps_one() -> Result {
    let site = Site::new()?;
    let several = |one: u32, two: u32| json!([{"name": "one", "weight": one}, {"name": "two", "weight": two}]);
    let _gateway = site.gateway(json!([
        {"match": {"path": "/all"}, "upstream": several(0, 1)},
        {"match": {"path": "/half"}, "upstream": several(1, 1)},
        {"match": {"path": "/sticky"}, "upstream": several(1, 1), "sticky": {"cookie": "side"}},
        {"match": {"path": "/address"}, "upstream": several(1, 1), "sticky": "client_address"},
    ]))?;
    let mut client = site.client(None)?;
    let mut answers = |path: &str, count: usize| -> Result<Vec<String>> {
        (0..count).map(|_| Ok(client.get(path)?.text())).collect()
    };
    assert!(answers("/all", 20)?.iter().all(|answer| answer == "two"));
    let half = answers("/half", 200)?;
    // Each fails less than once in 2^100 runs.
    assert!(half.iter().any(|answer| answer == "one") && half.iter().any(|answer| answer == "two"));
    let address = answers("/address", 50)?;
    assert!(address.iter().all(|answer| Some(answer) == address.first()));

    let first = site.get("/sticky", &[])?;
    let cookie = first.header("set-cookie").expect("a cookie");
    assert!(cookie.starts_with("side=") && cookie.contains("; HttpOnly"), "{cookie}");
    let kept = format!("Cookie: {}", cookie.split(';').next().unwrap_or_default());
    for _ in 0..50 {
        let again = site.get("/sticky", &[&kept])?;
        assert_eq!((again.text(), again.header("set-cookie")), (first.text(), None));
    }
    Ok(())
}

/// What `gateway explain` says about a request, asked of `config`.
fn explain(gateway: &Gateway<'_>, config: &Path, arguments: &[&str]) -> Result<Value> {
    let config = config.to_str().context("a path is not text")?;
    let arguments = [&["explain", config][..], arguments, &["--json"]].concat();
    gateway.cli(&arguments)?.ok()?.json()
}

#[test]
fn explain_says_what_becomes_of_a_request_of_the_example() -> Result {
    let gateway = Gateway::embedded(None)?;
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/routes.yaml");
    let ask = |arguments: &[&str]| explain(&gateway, &example, arguments);

    let found = ask(&["GET", "http://api.example.com/v1/users/%34%32/x?page=2"])?;
    assert_eq!(found["path"], json!("/v1/users/42/x"));
    assert_eq!(found["captures"], json!([["rest", "42/x"]]));
    assert_eq!(found["target"], json!("/users/42/x?page=2"));
    assert_eq!(found["detail"], json!("to users-v1"));
    assert_eq!(found["upstreams"][0]["endpoints"], json!(["10.0.0.11:8080"]));
    let policies = found["upstreams"][0]["policies"].as_array().context("no policies")?;
    let has = |name: &str, value: &str| policies.contains(&json!({"name": name, "value": value}));
    assert!(has("timeout.response", "10s") && has("balance", "round_robin"), "{policies:?}");
    let own = json!({"name": "timeout.response", "value": "30s, instead of the upstream's"});
    assert!(found["policies"].as_array().is_some_and(|all| all.contains(&own)), "{found}");

    let found = ask(&["GET", "http://api.example.com/users/1", "-H", "X-Version: 2"])?;
    let verdicts = |found: &Value| -> Vec<(bool, String)> {
        let routes = found["routes"].as_array().cloned().unwrap_or_default();
        let verdict = |tried: &Value| (tried["taken"] == json!(true), tried["verdict"].to_string());
        routes.iter().map(verdict).collect()
    };
    let tried = verdicts(&found);
    assert_eq!(tried.iter().map(|(taken, _)| *taken).collect::<Vec<_>>(), [false, false, true]);
    assert!(tried[0].1.contains("header `x-version` is `1`"), "{tried:?}");
    assert!(tried[1].1.contains("cookie `beta` is there"), "{tried:?}");
    assert_eq!(found["upstreams"].as_array().map(Vec::len), Some(2), "by chance: {found}");
    let kept = ask(&["GET", "http://api.example.com/users/1", "-H", "Cookie: users-canary=x"])?;
    assert_eq!(kept["upstreams"].as_array().map(Vec::len), Some(1), "by the cookie: {kept}");

    let found = ask(&["GET", "https://git.example.com/api/v4/projects/a%2Fb/issues"])?;
    assert_eq!(found["target"], json!("/api/v4/projects/a%2Fb/issues"));
    let found = ask(&["GET", "http://www.example.com/blog/2024/a-b?x"])?;
    assert_eq!((&found["outcome"], &found["status"]), (&json!("redirect"), &json!(308)));
    assert_eq!(found["detail"], json!("to https://blog.example.com/a-b?year=2024&x"));
    let found = ask(&["GET", "http://www.example.com/robots.txt"])?;
    assert_eq!((&found["outcome"], &found["status"]), (&json!("respond"), &json!(200)));
    let found = ask(&["GET", "http://other.example.com/users/1"])?;
    assert_eq!((&found["outcome"], &found["status"]), (&json!("refuse"), &json!(404)));
    assert!(verdicts(&found)[0].1.contains("for the host api.example.com"), "{found}");
    for path in ["/a/../b", "/internal%2Fx", "//"] {
        let found = ask(&["GET", &format!("http://www.example.com{path}")])?;
        assert_eq!(found["outcome"], json!("refuse"), "{path}");
    }
    Ok(())
}

#[test]
fn explain_knows_the_rules_of_an_address_and_what_is_no_request() -> Result {
    let gateway = Gateway::embedded(None)?;
    gateway.write_config_text(
        "listen: [{address: 127.0.0.1:80}]
kernel: {deny: [192.0.2.0/24], allow: [192.0.2.7]}
routes: [{match: {path: /a, methods: [PUT]}, respond: {}}]
",
    )?;
    let ask = |arguments: &[&str]| explain(&gateway, &gateway.config(), arguments);
    for (address, action) in [("192.0.2.1", "deny"), ("192.0.2.7", "allow"), ("::1", "none")] {
        let found = ask(&["PUT", "/a", "-H", "Host: a", "--from", address])?;
        assert_eq!(found["source"]["action"], json!(action), "{address}");
        let is_denied = action == "deny";
        let (outcome, status) =
            if is_denied { ("deny", Value::Null) } else { ("respond", json!(200)) };
        assert_eq!((&found["outcome"], &found["status"]), (&json!(outcome), &status), "{found}");
        let otherwise = if is_denied { json!("respond") } else { Value::Null };
        assert_eq!(found["otherwise"]["outcome"], otherwise, "{found}");
        assert_eq!(found["route"], "PUT /a", "what it would meet is told all the same: {found}");
    }
    let config = gateway.config();
    let config = config.to_str().context("a path is not text")?;
    for (change, outcome, detail) in [
        (
            "trusted_proxies: [10.0.0.1]\nkernel: {interfaces: [eth0, eth1], ",
            "deny",
            "192.0.2.0/24 is denied by kernel.deny: its packets are dropped on eth0, eth1; \
             403 where one of trusted_proxies names it",
        ),
        (
            "kernel: {interfaces: [eth0], attach: off, ",
            "deny",
            "192.0.2.0/24 is denied by kernel.deny: its connections are closed as they are accepted",
        ),
        ("kernel: {interfaces: [eth0], dry_run: true, ", "respond", "with 0 bytes of its own"),
    ] {
        let text = std::fs::read_to_string(config)?.replacen("kernel: {", change, 1);
        let other = gateway.config().with_file_name("other.yaml");
        std::fs::write(&other, text)?;
        let arguments = ["PUT", "http://a/a", "--from", "192.0.2.1"];
        let found = explain(&gateway, &other, &arguments)?;
        assert_eq!((&found["outcome"], &found["detail"]), (&json!(outcome), &json!(detail)));
    }
    let found = ask(&["GET", "http://a/a"])?;
    assert_eq!(found["status"], json!(405));
    assert_eq!(found["routes"][0]["verdict"], json!("no: it takes PUT, not GET"));
    let found = ask(&["PUT", "http://a/b"])?;
    assert_eq!(found["status"], json!(404));
    assert_eq!(found["routes"][0]["verdict"], json!("no: its path is /a"));
    for (url, complaint) in [("a/b", "http://"), ("ftp://a/", "ftp"), ("http://a/ b", "percent")] {
        gateway.cli(&["explain", config, "GET", url])?.refused(2, complaint)?;
    }
    gateway.cli(&["explain", config, "G T", "/a"])?.refused(2, "method")?;
    gateway.cli(&["explain", config, "GET", "/a", "-H", "x"])?.refused(2, "Name: value")?;
    gateway.write_config_text("listen: [{address: 1}]\n")?;
    assert_eq!(gateway.cli(&["explain", config, "GET", "/a"])?.code, Some(2));
    Ok(())
}

#[test]
fn explain_knows_what_a_listener_does_before_any_route() -> Result {
    let gateway = Gateway::embedded(None)?;
    gateway.write_config_text(
        "listen:
  - {address: 0.0.0.0:80, redirect: https}
  - {address: 127.0.0.1:8080}
  - address: 0.0.0.0:443
    tls: {certificates: [{cert: a.pem, key: a.key}], min_version: '1.3', hsts: {max_age: 1d}}
routes: [{match: {path: /a}, respond: {}}]
",
    )?;
    let ask = |method: &str, url: &str| explain(&gateway, &gateway.config(), &[method, url]);
    for (method, status) in [("GET", 301), ("POST", 308)] {
        let found = ask(method, "http://h/a?b")?;
        assert_eq!((&found["outcome"], &found["status"]), (&json!("redirect"), &json!(status)));
        assert_eq!(found["detail"], json!("to https://h/a?b, by its listener"));
        assert_eq!((&found["route"], &found["routes"]), (&Value::Null, &json!([])), "{found}");
    }
    for (url, listener) in [
        ("http://h:8080/a", "127.0.0.1:8080"),
        ("https://h/a", "0.0.0.0:443, TLS 1.3, HSTS max-age=86400"),
        ("https://h:8443/a", "0.0.0.0:443, TLS 1.3, HSTS max-age=86400"),
    ] {
        let found = ask("GET", url)?;
        assert_eq!(found["outcome"], json!("respond"), "{url}");
        let policies = found["policies"].as_array().context("no policies")?;
        let shown: Vec<_> = policies.iter().filter(|one| one["name"] == json!("listen")).collect();
        assert_eq!(shown, [&json!({"name": "listen", "value": listener})], "{url}");
    }
    Ok(())
}
