//! How much callers may, through the real binary: what counts, what is told, and what does not slip past. Rates are of
//! hours, so that the machine's pace decides nothing.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harness::authority::{Authority, Pair};
use harness::client::{Client, Response};
use harness::gateway::Gateway;
use harness::metrics::Page;
use harness::origin::{Reply, Request};
use harness::site::Site;
use harness::{Result, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);

fn config(listen: SocketAddr, endpoint: SocketAddr, limits: Value) -> Value {
    json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 2,
        "kernel": {"attach": "off"},
        "trusted_proxies": ["127.0.0.1"],
        "upstreams": {"service": {"endpoints": [endpoint.to_string()]}},
        "routes": [
            {"name": "api", "match": {"path": "/api/{rest*}"}, "limits": limits, "upstream": "service"},
            {"name": "free", "match": {"path": "/free"}, "upstream": "service"},
            {"name": "fixed", "match": {"path": "/fixed"}, "respond": {"body": "here"},
             "limits": [{"per": "client_address", "rate": "1/h"}]},
        ],
    })
}

/// The answer to one request of a client that a load balancer names.
fn ask(site: &Site, listen: SocketAddr, request: &str, client: &str) -> Result<Response> {
    let mut connection = site.connect(None, listen)?;
    send(&mut connection, request, client)?;
    connection.receive()
}

/// The status alone: an answer to HEAD has no body to read.
fn status(site: &Site, listen: SocketAddr, request: &str, client: &str) -> Result<u16> {
    let mut connection = site.connect(None, listen)?;
    send(&mut connection, request, client)?;
    let line = String::from_utf8(connection.read("HTTP/1.1 200".len())?)?;
    Ok(line.trim_start_matches("HTTP/1.1 ").parse()?)
}

fn send(connection: &mut Client, request: &str, client: &str) -> Result {
    let head = format!("{request} HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: {client}\r\n\r\n");
    connection.send(head.as_bytes())
}

#[test]
fn callers_are_told_how_they_stand_and_a_refused_request_costs_the_service_nothing() -> Result {
    let site = Site::new()?;
    let said: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-ratelimit-limit: 7\r\nratelimit: \"own\";r=1\r\n\r\n";
    let origin = site.origin(move |_| Reply::Raw(said))?;
    let listen = site.free_address()?;
    let limits = json!([{"per": "client_address", "rate": "100/h burst 3", "name": "clients"},
                        {"per": "route", "rate": "1000/h", "algorithm": "sliding_window"}]);
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("access.log");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777))?;
    let mut config = config(listen, origin.address, limits);
    config["access_log"] = json!({"path": log});
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config.clone())?;
    gateway.start()?;
    for left in ["2", "1", "0"] {
        let answer = ask(&site, listen, "GET /api/x", "192.0.2.1")?;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-ratelimit-limit"), Some("3"), "the service's own is gone");
        assert_eq!(answer.header("x-ratelimit-remaining"), Some(left));
        assert_eq!(answer.header("ratelimit-policy"), Some("\"clients\";q=3;w=108"));
        let standing = answer.header("ratelimit").unwrap_or_default();
        assert!(standing.starts_with(&format!("\"clients\";r={left};t=")), "{standing}");
        let lines = answer.headers.iter().filter(|(name, _)| name.starts_with("ratelimit")).count();
        assert_eq!(lines, 2);
    }
    let refused = ask(&site, listen, "GET /api/x", "192.0.2.1")?;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    let wait: u64 = refused.header("retry-after").unwrap_or_default().parse()?;
    assert!((1..=36).contains(&wait), "a token comes every 36 seconds, not in {wait}");
    assert_eq!(refused.header("x-ratelimit-remaining"), Some("0"));
    assert!(refused.text().contains("Retry-After"), "{}", refused.text());
    assert_eq!(origin.requests().len(), 3, "a refused request went on");
    assert_eq!(ask(&site, listen, "GET /api/x", "192.0.2.2")?.status, 200, "somebody else");
    let free = ask(&site, listen, "GET /free", "192.0.2.1")?;
    assert_eq!(free.header("x-ratelimit-limit"), Some("7"), "without limits nothing is touched");
    for status in [200, 429] {
        assert_eq!(ask(&site, listen, "GET /fixed", "192.0.2.1")?.status, status);
    }

    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    let counted = |outcome: &str| {
        let labels = format!(r#"{{limit="clients",outcome="{outcome}"}}"#);
        page.value(&format!("gateway_limit_decisions_total{labels}"))
    };
    assert_eq!((counted("admitted"), counted("refused")), (Some(4), Some(1)));
    let line = wait_for("the log", PATIENCE, || {
        let lines = std::fs::read_to_string(&log)?;
        Ok(lines.lines().find(|line| line.contains(r#""limit":"clients""#)).map(str::to_owned))
    })?;
    assert_eq!(serde_json::from_str::<Value>(&line)?["error"], "rate_limited");

    // What was counted is not forgotten by a reload, and what is told can be switched off.
    config["limiting"] = json!({"headers": []});
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    let refused = ask(&site, listen, "GET /api/x", "192.0.2.1")?;
    assert_eq!((refused.status, refused.header("x-ratelimit-limit")), (429, None));
    assert!(refused.header("retry-after").is_some());
    gateway.stop()
}

#[test]
fn no_method_and_no_spelling_of_a_path_or_client_slips_past() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, ""))?;
    let listen = site.free_address()?;
    let limits = json!([{"per": "client_address", "rate": "12/h", "algorithm": "fixed_window"}]);
    let config = config(listen, origin.address, limits);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let spellings = [
        "GET /api/x",
        "HEAD /api/x",
        "OPTIONS /api/x",
        "POST /api/x",
        "BREW /api/x",
        "GET /api/%78",
        "GET /%61pi/x",
        "GET /api/./x",
        "GET /free/../api/x",
        "GET /api/x?y",
        "GET http://h/api/x",
        "GET http://other/api/x",
    ];
    for _ in 0..12 {
        assert_eq!(ask(&site, listen, "GET /api/x", "2001:db8::1")?.status, 200);
    }
    for spelling in spellings {
        // Of one network of IPv6, as a proxy may write it.
        for client in ["2001:db8::1", "2001:db8::ffff", "2001:DB8:0:0::2"] {
            let status = status(&site, listen, spelling, client)?;
            // What is no request here is not sent on either.
            assert!([429, 400, 501].contains(&status), "{spelling}: {status}");
        }
    }
    assert_eq!(origin.requests().len(), 12, "something has slipped past");
    // The other way round: each spelling that reaches the service takes of the limit.
    let mut refused = 0;
    for spelling in spellings.iter().cycle().take(4 * spellings.len()) {
        refused += usize::from(status(&site, listen, spelling, "192.0.2.1")? == 429);
    }
    assert_eq!(origin.requests().len(), 24);
    assert!(refused >= 2 * spellings.len(), "{refused}");
    gateway.stop()
}

#[test]
fn what_is_in_flight_is_counted_until_it_ends() -> Result {
    let site = Site::new()?;
    let script = |request: &Request| match request.line.contains("/api/slow") {
        true => Reply::Hang,
        false => Reply::Answer(200, ""),
    };
    let origin = site.origin(script)?;
    let listen = site.free_address()?;
    let limits = json!([{"per": "client_address", "concurrency": 1}]);
    let config = config(listen, origin.address, limits);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let mut slow = site.connect(None, listen)?;
    send(&mut slow, "GET /api/slow", "192.0.2.1")?;
    wait_for("the slow request", PATIENCE, || Ok((origin.requests().len() == 1).then_some(())))?;
    let refused = ask(&site, listen, "GET /api/x", "192.0.2.1")?;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(ask(&site, listen, "GET /api/x", "192.0.2.2")?.status, 200);
    drop(slow);
    wait_for("the place of one who left", PATIENCE, || {
        Ok((ask(&site, listen, "GET /api/x", "192.0.2.1")?.status == 200).then_some(()))
    })?;
    gateway.stop()
}

#[test]
fn a_leaky_bucket_really_delays_and_its_queue_is_bounded() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, ""))?;
    let listen = site.free_address()?;
    let limits = json!([{"per": "client_address", "rate": "30/min", "algorithm": "leaky_bucket", "queue": 1}]);
    let config = config(listen, origin.address, limits);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let began = gateway::base::time::instant();
    let mut connections = Vec::new();
    for number in 0..3 {
        let mut connection = site.connect(None, listen)?;
        send(&mut connection, "GET /api/x", "192.0.2.1")?;
        connections.push(connection);
        wait_for("the first turn", PATIENCE, || {
            Ok((number > 0 || !origin.requests().is_empty()).then_some(()))
        })?;
    }
    let mut came = Vec::new();
    for connection in &mut connections {
        came.push(connection.receive()?);
    }
    came.sort_by_key(|answer| answer.status);
    let statuses: Vec<u16> = came.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 429]);
    assert!(came.last().is_some_and(|refused| refused.header("retry-after").is_some()));
    assert!(began.elapsed() >= Duration::from_secs(2), "nobody waited");
    gateway.stop()
}

/// The request of RFC 6455, section 1.2, and what a service answers that never says anything after it.
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                        Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn a_tunnel_is_in_flight_until_it_ends() -> Result {
    let site = Site::new()?;
    let script = |request: &Request| match request.header("upgrade") {
        Some(_) => Reply::Stall(SWITCH),
        None => Reply::Answer(200, ""),
    };
    let origin = site.origin(script)?;
    let listen = site.free_address()?;
    let limits = json!([{"per": "client_address", "concurrency": 2}]);
    let config = config(listen, origin.address, limits);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let tunnel = || -> Result<(Client, Response)> {
        let mut client = site.connect(None, listen)?;
        let head = "GET /api/chat HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.1\r\n";
        client.send(format!("{head}{UPGRADE}").as_bytes())?;
        let answer = client.receive()?;
        Ok((client, answer))
    };
    let (first, answer) = tunnel()?;
    assert_eq!(answer.status, 101, "{answer:?}");
    let (second, answer) = tunnel()?;
    assert_eq!(answer.status, 101, "{answer:?}");
    let (_, refused) = tunnel()?;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(ask(&site, listen, "GET /api/x", "192.0.2.1")?.status, 429);
    assert_eq!(ask(&site, listen, "GET /api/x", "192.0.2.2")?.status, 200, "somebody else");
    drop(first);
    wait_for("a place beside the other tunnel", PATIENCE, || {
        Ok((ask(&site, listen, "GET /api/x", "192.0.2.1")?.status == 200).then_some(()))
    })?;
    drop(second);
    gateway.stop()
}

/// What is answered to requests that come at once over one connection, each with a key.
fn over_http2(site: &Site, listen: SocketAddr, keys: &[&str]) -> Result<Vec<http::Response<()>>> {
    let stream = site.enter(|| TcpStream::connect(listen))??;
    stream.set_nonblocking(true)?;
    let asking = async {
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let (mut client, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        let mut asked = Vec::new();
        for key in keys {
            client = client.ready().await?;
            let request = http::Request::get("http://h/api/x").header("x-api-key", *key).body(())?;
            asked.push(client.send_request(request, true)?.0);
        }
        let mut answers = Vec::new();
        for answer in asked {
            answers.push(answer.await?.map(drop));
        }
        anyhow::Ok(answers)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, asking).await })?
}

#[test]
fn streams_of_one_connection_share_what_their_consumer_may() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, ""))?;
    let listen = site.free_address()?;
    let mut config = config(listen, origin.address, json!([]));
    config["auth"] = json!({"partners": {"api_key": {"header": "X-API-Key"}}});
    config["plans"] = json!({"free": {"limits": [{"rate": "5/h"}]}});
    config["limiting"] = json!({"default_plan": "free"});
    config["routes"] = json!([config["routes"][0]]);
    config["routes"][0]["auth"] = json!("partners");
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let key = |consumer: &str| -> Result<String> {
        let made = gateway.cli(&["keys", "create", "--consumer", consumer, "--json"])?;
        Ok(made.ok()?.json()?["key"].as_str().unwrap_or_default().to_owned())
    };
    let [one, two, other] = [key("acme")?, key("acme")?, key("globex")?];
    let answers = over_http2(&site, listen, &[&one, &two, &one, &two, &one, &two, &one, &other])?;
    let (others, own) = answers.split_last().expect("eight answers");
    assert_eq!(others.status(), 200, "somebody else on the same connection");
    let refused: Vec<_> = own.iter().filter(|answer| answer.status() == 429).collect();
    assert_eq!((own.len(), refused.len()), (7, 2), "{own:?}");
    let field = |answer: &http::Response<()>, name: &str| {
        answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned()
    };
    for answer in refused {
        let wait: u64 = field(answer, "retry-after").parse()?;
        assert!((1..=720).contains(&wait), "a token comes every 720 seconds, not in {wait}");
        assert_eq!(field(answer, "ratelimit-policy"), "\"free.consumer\";q=5;w=3600");
        let standing = field(answer, "ratelimit");
        assert!(standing.starts_with("\"free.consumer\";r=0;t="), "{standing}");
        assert_eq!(field(answer, "x-ratelimit-remaining"), "0");
        assert_eq!(field(answer, "content-type"), "application/problem+json");
    }
    let mut left: Vec<_> = own.iter().filter(|answer| answer.status() == 200).collect();
    left.sort_by_key(|answer| field(answer, "x-ratelimit-remaining"));
    let left: Vec<_> = left.iter().map(|it| field(it, "x-ratelimit-remaining")).collect();
    assert_eq!(left, ["0", "1", "2", "3", "4"], "each stream has taken one");
    assert_eq!(origin.requests().len(), 6);
    gateway.stop()
}

/// Of `password`, from the tests of the reference implementation of argon2.
const ARGON2ID: &str =
    "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

#[test]
fn an_address_over_its_limit_costs_no_verification_of_a_password() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, ""))?;
    let (listen, folder) = (site.free_address()?, tempfile::tempdir()?);
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    let users = folder.path().join("users");
    std::fs::write(&users, format!("ann:{ARGON2ID}\n"))?;
    let limits = json!([{"per": "client_address", "rate": "3/h", "name": "clients"}]);
    let mut config = config(listen, origin.address, limits);
    config["auth"] = json!({"admins": {"basic": {"htpasswd": users}}});
    config["routes"] = json!([config["routes"][0]]);
    config["routes"][0]["auth"] = json!("admins");
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let guess = |password: &str, client: &str| -> Result<u16> {
        let credential = STANDARD.encode(format!("ann:{password}"));
        let client = format!("{client}\r\nAuthorization: Basic {credential}");
        Ok(ask(&site, listen, "GET /api/x", &client)?.status)
    };
    for number in 0..20 {
        let expected = if number < 3 { 401 } else { 429 };
        assert_eq!(guess(&format!("guess-{number}"), "192.0.2.1")?, expected);
    }
    assert_eq!(guess("password", "192.0.2.1")?, 429, "not even the right one");
    assert_eq!(guess("password", "192.0.2.2")?, 200);
    // Whoever was asked has verified: no guess was made twice.
    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    let said = ["known", "absent", "refused", "unavailable"].map(|outcome| {
        let labels = format!(r#"{{authenticator="admins",outcome="{outcome}"}}"#);
        page.value(&format!("gateway_authentications_total{labels}"))
    });
    assert_eq!(said, [Some(1), Some(0), Some(3), Some(0)]);
    gateway.stop()
}

#[test]
fn preflights_and_odd_spellings_count_by_address_before_any_password_is_verified() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, ""))?;
    let (listen, folder) = (site.free_address()?, tempfile::tempdir()?);
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    let users = folder.path().join("users");
    std::fs::write(&users, format!("ann:{ARGON2ID}\n"))?;
    let limits = json!([{"per": "client_address", "rate": "3/h", "name": "clients"}]);
    let mut config = config(listen, origin.address, limits);
    config["auth"] = json!({"admins": {"basic": {"htpasswd": users}}});
    config["routes"] = json!([config["routes"][0]]);
    config["routes"][0]["auth"] = json!("admins");
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    // As a browser asks before it sends what a script wants (Fetch, section 4.8), with a guess at a password.
    let preflight = "Origin: https://a.example\r\nAccess-Control-Request-Method: PUT\r\n\
                     Access-Control-Request-Headers: authorization";
    let spellings = [
        "OPTIONS /api/x",
        "OPTIONS /api/./x",
        "OPTIONS /%61pi/x",
        "HEAD /api/x",
        "HEAD /free/../api/%78",
        "OPTIONS http://h/api/x?y",
    ];
    let guess = |number: usize, spelling: &str| {
        let credential = STANDARD.encode(format!("ann:guess-{number}"));
        let client = format!("192.0.2.1\r\n{preflight}\r\nAuthorization: Basic {credential}");
        status(&site, listen, spelling, &client)
    };
    for (number, spelling) in
        ["OPTIONS /api/x", "HEAD /api/x", "OPTIONS /%61pi/x"].iter().enumerate()
    {
        assert_eq!(guess(number, spelling)?, 401, "{spelling}");
    }
    for (number, spelling) in spellings.iter().enumerate() {
        let status = guess(number + 3, spelling)?;
        assert!([429, 400].contains(&status), "{spelling}: {status}");
    }
    // Without a credential as well: nothing tells a preflight from another request before it is counted.
    let bare = format!("192.0.2.1\r\n{preflight}");
    assert_eq!(status(&site, listen, "OPTIONS /api/x", &bare)?, 429);
    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    let refused = r#"gateway_authentications_total{authenticator="admins",outcome="refused"}"#;
    assert_eq!((page.value(refused), origin.requests().len()), (Some(3), 0));
    gateway.stop()
}

#[test]
fn a_header_field_tells_callers_apart_and_leaving_it_out_is_no_way_around() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, ""))?;
    let listen = site.free_address()?;
    let limits = json!([{"per": {"header": "X-App"}, "rate": "2/h"}]);
    let config = config(listen, origin.address, limits);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let of = |client: &str| -> Result<[u16; 3]> {
        let mut statuses = [0; 3];
        for status in &mut statuses {
            *status = ask(&site, listen, "GET /api/x", client)?.status;
        }
        Ok(statuses)
    };
    let admitted_twice = [200, 200, 429];
    assert_eq!(of("192.0.2.1\r\nX-App: one")?, admitted_twice);
    assert_eq!(of("192.0.2.1\r\nX-App: two")?, admitted_twice, "the value is what counts");
    assert_eq!(of("192.0.2.2\r\nx-app: one")?, [429; 3], "not who sends it");
    assert_eq!(of("192.0.2.1")?, admitted_twice, "without it the address counts");
    assert_eq!(of("192.0.2.2")?, admitted_twice);
    assert_eq!(of("192.0.2.3\r\nX-App: 192.0.2.2")?, admitted_twice, "no text is an address");
    gateway.stop()
}

/// Two that come after five limits of their own, each by another algorithm, which have room for five.
#[test]
fn a_request_that_one_limit_refuses_takes_nothing_of_the_others() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, ""))?;
    let listen = site.free_address()?;
    let shared = json!([{"per": "route", "rate": "2/24h"}]);
    let mut config = config(listen, origin.address, shared);
    let own = |more: &str| json!({"per": {"header": "X-App"}, "rate": "5/24h", "algorithm": more});
    config["limits"] = json!([
        own("token_bucket"),
        own("fixed_window"),
        own("sliding_window"),
        own("sliding_log"),
        {"per": {"header": "X-App"}, "quota": "5/month"},
    ]);
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let mut statuses = Vec::new();
    for path in ["/api/x"; 20].iter().chain(&["/free"; 4]) {
        let client = "192.0.2.1\r\nX-App: one";
        statuses.push(ask(&site, listen, &format!("GET {path}"), client)?.status);
    }
    let (shared, own) = statuses.split_at(20);
    assert_eq!(shared[..2], [200; 2]);
    assert_eq!(shared[2..], [429; 18]);
    assert_eq!(own, [200, 200, 200, 429], "five together, and no more");
    gateway.stop()
}

/// Callers by certificate.
fn by_certificate(
    (site, listen): (&Site, SocketAddr),
    authority: &Authority,
    client: &Pair,
) -> Result<u16> {
    let resolve = format!("api.test:{}:{}", listen.port(), listen.ip());
    let url = format!("https://api.test:{}/x", listen.port());
    let [ca, cert, key] =
        [&authority.ca(), &client.cert, &client.key].map(|path| path.display().to_string());
    let arguments = ["-o", "/dev/null", "-w", "%{http_code}", "--cacert", &ca, "--resolve"];
    let said =
        site.curl(&[&arguments[..], &[&resolve, "--cert", &cert, "--key", &key, &url]].concat())?;
    Ok(String::from_utf8(said.stdout)?.parse()?)
}

#[test]
fn consumers_have_plans_and_some_limits_of_their_own() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let server = authority.issue("server", &["api.test"])?;
    let names = ["gold", "plain", "special"];
    let origin = site.origin(|_| Reply::Answer(200, ""))?;
    let listen = site.free_address()?;
    let clients = names.map(|name| json!({"dns": format!("{name}.test"), "consumer": name}));
    let config = json!({
        "listen": [{"address": listen.to_string(), "tls": {
            "certificates": [server.json()],
            "client_certificates": {"ca": authority.ca(), "mode": "optional"},
        }}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "auth": {"devices": {"mtls": {"clients": clients}}},
        "plans": {
            "free": {"limits": [{"quota": "2/month"}]},
            "gold": {"limits": [{"rate": "100/h burst 8"}]},
        },
        "limiting": {"default_plan": "free"},
        "consumers": {
            "gold": {"plan": "gold"},
            "special": {"plan": "gold", "limits": [{"rate": "5/h", "algorithm": "sliding_window"}]},
        },
        "upstreams": {"service": {"endpoints": [origin.address.to_string()]}},
        "routes": [{"match": {"path": "/{rest*}"}, "auth": "devices", "cost": 2, "upstream": "service"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    for (name, times) in names.iter().zip([4, 1, 2]) {
        let pair = authority.issue(name, &[&format!("{name}.test")])?;
        for _ in 0..times {
            assert_eq!(by_certificate((&site, listen), &authority, &pair)?, 200, "{name}");
        }
        assert_eq!(by_certificate((&site, listen), &authority, &pair)?, 429, "{name}");
    }
    gateway.stop()
}

#[test]
fn mistakes_in_limits_are_explained_where_they_are() -> Result {
    let site = Site::new()?;
    let listen = site.free_address()?;
    let endpoint = "127.0.0.1:1".parse()?;
    let cases = [
        (json!({"rate": "1/s"}), "the limit does not say whose requests are counted together"),
        (json!({"per": "usr", "rate": "1/s"}), "nobody is told apart by `usr`"),
        (json!({"per": "user", "rate": "many"}), "`many` is no rate"),
        (json!({"per": "user"}), "the limit does not say how much"),
        (json!({"per": "user", "quota": "5/year"}), "`5/year` is no quota"),
        (
            json!({"per": "user", "rate": "5/s", "quota": "5/day"}),
            "the limit has `rate` and `quota`",
        ),
        (
            json!({"per": "user", "rate": "5/s", "algorithm": "sliding"}),
            "there is no algorithm `sliding`",
        ),
        (
            json!({"per": "user", "rate": "5/s burst 9", "algorithm": "fixed_window"}),
            "`burst` means nothing for `fixed_window`",
        ),
        (
            json!({"per": "user", "rate": "5/s", "algorithm": "leaky_bucket"}),
            "a leaky bucket has a queue, in which requests wait for their turn",
        ),
        (
            json!({"per": "user", "rate": "1/min", "algorithm": "leaky_bucket", "queue": 9}),
            "the last of 9 would wait 9m",
        ),
        (
            json!({"per": "user", "rate": "9999/s", "algorithm": "sliding_log"}),
            "9999 times for each of 100000 keys do not fit into 1 GiB",
        ),
        (
            json!({"per": ["user", "global"], "rate": "5/s"}),
            "`global` tells nobody apart, the others do",
        ),
        (json!({"per": "user", "rate": "5/0s"}), "`5/0s` is no rate"),
        (json!({"per": "user", "rate": "5/100h"}), "a rate is counted over 1s to 24h"),
    ];
    for (limit, message) in cases {
        assert_eq!(mistake(&site, config(listen, endpoint, json!([limit])))?["message"], message);
    }
    let mut expensive = config(listen, endpoint, json!([{"per": "user", "rate": "9/s burst 2"}]));
    expensive["routes"][0]["cost"] = json!(3);
    expensive["consumers"] = json!({"acme": {"plan": "silver"}});
    let gateway = Gateway::unprivileged(site.namespace.as_ref(), expensive)?;
    let said = gateway.cli(&["check", &gateway.config().display().to_string()])?;
    let found: Vec<_> = said.json_lines()?.iter().map(|it| it["message"].clone()).collect();
    let never = "a request that costs 3 is never admitted: 9 in 1s, burst 2, token_bucket";
    assert!(found.contains(&json!(never)), "{found:?}");
    assert!(found.contains(&json!("there is no plan `silver`")), "{found:?}");
    Ok(())
}

/// The first thing that is wrong with a configuration.
fn mistake(site: &Site, config: Value) -> Result<Value> {
    let gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    let said = gateway.cli(&["check", &gateway.config().display().to_string()])?;
    assert_eq!(said.code, Some(2), "{said}");
    Ok(said.json_lines()?.swap_remove(0))
}

#[test]
fn mistakes_about_where_a_limit_is_counted_are_explained() -> Result {
    let site = Site::new()?;
    let (listen, endpoint) = (site.free_address()?, "127.0.0.1:1".parse()?);
    let local = "`when_unavailable` means nothing where each gateway counts by itself";
    let bucket = "what is synchronised is a token bucket or a quota, not 5 in 1s, sliding_window";
    for (limit, has_redis, key, message) in [
        (json!({"count": "redis"}), false, "count", "there is no Redis to count in"),
        (json!({"count": "synchronised"}), false, "count", "there is no Redis to count in"),
        (json!({"when_unavailable": "refuse"}), true, "when_unavailable", local),
        (
            json!({"count": "synchronised", "when_unavailable": "local"}),
            true,
            "when_unavailable",
            local,
        ),
        (json!({"count": "synchronised", "algorithm": "sliding_window"}), true, "count", bucket),
    ] {
        let mut config = config(listen, endpoint, json!([limit]));
        config["routes"][0]["limits"][0]["per"] = json!("user");
        config["routes"][0]["limits"][0]["rate"] = json!("5/s");
        if has_redis {
            config["state"] = json!({"redis": {"addresses": ["127.0.0.1:1"]}});
        }
        let said = mistake(&site, config)?;
        assert_eq!(said["message"], message);
        let shown = said["text"].as_str().unwrap_or_default().trim_start();
        assert!(shown.starts_with(&format!("\"{key}\":")), "{said}");
        assert!(said["help"].as_str().is_some_and(|help| help.contains("write count: ")), "{said}");
    }
    for (key, typed, meant) in
        [("count", "rediss", "redis"), ("when_unavailable", "refused", "refuse")]
    {
        let limit = json!({"per": "user", "rate": "5/s", key: typed});
        let said = mistake(&site, config(listen, endpoint, json!([limit])))?;
        let text = said.to_string();
        assert!(text.contains(typed) && text.contains(&format!("`{meant}`")), "{text}");
    }
    Ok(())
}

#[test]
fn explain_shows_the_limits_of_a_route() -> Result {
    let site = Site::new()?;
    let listen = site.free_address()?;
    let limits = json!([{"per": ["user", "route"], "rate": "100/min burst 20"}]);
    let mut config = config(listen, "127.0.0.1:1".parse()?, limits);
    config["limits"] = json!([{"per": "client_address", "concurrency": 20}]);
    let gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    let path = gateway.config().display().to_string();
    let said = gateway.cli(&["explain", &path, "GET", "http://h/api/x"])?.ok()?;
    let policies = said.json()?["policies"].clone();
    let policies: Vec<&Value> = policies.as_array().into_iter().flatten().collect();
    let expected = json!({
        "name": "limits.api.user-route",
        "value": "100 in 1m, burst 20, token_bucket, per user, route",
    });
    assert!(policies.contains(&&expected), "{policies:?}");
    let expected =
        json!({"name": "limits.client_address", "value": "20 at once, per client_address"});
    assert!(policies.contains(&&expected), "{policies:?}");
    Ok(())
}
