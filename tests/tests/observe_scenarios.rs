//! What is to be seen of requests, through the real binary: metrics by route and upstream, the access log.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use harness::gateway::{Gateway, NOBODY};
use harness::metrics::{Page, family};
use harness::origin::Reply;
use harness::site::Site;
use harness::{Result, require_root, wait_for};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
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
    let post = b"POST /users/7 HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
    client.send(post)?;
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
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").len();
    let sent = 3 * get("/users/7") + get("/bad") + post.len() + get("/users//7");
    let received = value("gateway_received_bytes_total");
    assert_eq!(received, Some(sent as u64), "the first bytes of a connection count as well");
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

/// A folder that the gateway may write to, whoever it runs as.
fn log_folder(gateway: &Gateway<'_>) -> std::path::PathBuf {
    gateway.config().with_file_name("logs")
}

/// The lines of a log once there are so many.
fn lines(path: &Path, count: usize) -> Result<Vec<String>> {
    wait_for(&format!("{count} lines in {}", path.display()), PATIENCE, || {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        Ok(Some(lines).filter(|lines| lines.len() >= count && text.ends_with('\n')))
    })
}

/// A gateway whose log is described by `access_log`, its path added.
fn logging<'n>(
    site: &'n Site,
    (listen, endpoint): (SocketAddr, SocketAddr),
    mut access_log: Value,
) -> Result<(Gateway<'n>, Value, std::path::PathBuf)> {
    let mut config = config(listen, endpoint);
    let gateway = Gateway::unprivileged(site.namespace.as_ref(), config.clone())?;
    let path = log_folder(&gateway).join("access.log");
    let log = access_log.as_object_mut().context("a log is a section")?;
    log.insert("path".to_owned(), json!(path));
    config.as_object_mut().context("not a section")?.insert("access_log".to_owned(), access_log);
    gateway.write_config(config.clone())?;
    Ok((gateway, config, path))
}

#[test]
fn a_request_is_one_line_of_json_that_nobody_can_forge() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "hello"))?;
    let address = site.free_address()?;
    let headers = json!({"headers": ["user-agent", "referer"]});
    let (mut gateway, _, path) = logging(&site, (address, origin.address), headers)?;
    gateway.start()?;
    let mut client = site.connect(None, address)?;
    client.send(
        b"POST /users/7?id=1&Token=hush&token HTTP/1.1\r\nhost: a:80\r\nauthorization: hush\r\n\
          cookie: hush\r\nreferer: http://b/?token=hush\r\ncontent-length: 4\r\n\
          user-agent: \"},\t{\"status\":999,\xc2\x85\r\n\r\nbody",
    )?;
    assert_eq!(client.receive()?.status, 200);
    assert_eq!(client.get("/users//7")?.status, 400);
    let text = lines(&path, 2)?;
    assert!(!text.concat().contains("hush"), "{text:?}");
    let line: Value = serde_json::from_str(&text[0])?;
    for (field, expected) in [
        ("client", json!("127.0.0.1")),
        ("peer", json!("127.0.0.1")),
        ("method", json!("POST")),
        ("host", json!("a:80")),
        ("path", json!("/users/7")),
        ("query", json!("id=1&Token=***&token")),
        ("protocol", json!("HTTP/1.1")),
        ("status", json!(200)),
        ("route", json!("users")),
        ("upstream", json!("users")),
        ("endpoint", json!(origin.address.to_string())),
        ("attempts", json!(1)),
        ("bytes_in", json!(4)),
        ("bytes_out", json!(5)),
        ("complete", json!(true)),
        ("error", Value::Null),
    ] {
        assert_eq!(line[field], expected, "{field}: {line}");
    }
    assert_eq!(line["headers"]["referer"], json!("http://b/?token=***"));
    assert_eq!(line["headers"]["user-agent"], json!("\"},\t{\"status\":999,\u{85}"));
    assert_eq!(line["request_id"], json!(origin.requests()[0].header("x-request-id")));
    let us = |field: &str| line[field].as_u64().unwrap_or(u64::MAX);
    assert!(us("wait_us") + us("connect_us") + us("response_us") <= us("total_us"), "{line}");
    assert!(us("first_byte_us") <= us("total_us"), "{line}");
    let time = line["time"].as_str().unwrap_or_default();
    assert!(time.len() == 24 && time.ends_with('Z') && time.starts_with("20"), "{time}");

    let line: Value = serde_json::from_str(&text[1])?;
    for (field, expected) in [
        ("status", json!(400)),
        ("error", json!("bad_request")),
        ("blame", json!("client")),
        ("route", Value::Null),
        ("upstream", Value::Null),
        ("attempts", json!(0)),
    ] {
        assert_eq!(line[field], expected, "{field}: {line}");
    }
    client.send(b"GET /\x01\"} HTTP/1.1\r\n\r\n")?;
    assert_eq!(client.receive()?.status, 400);
    let line: Value = serde_json::from_str(&lines(&path, 3)?[2])?;
    assert_eq!((&line["status"], &line["path"]), (&json!(400), &Value::Null), "{line}");
    gateway.stop()
}

/// Who looks for whoever sends them wants to know what they ask for.
#[test]
fn what_is_no_request_has_what_its_first_line_says() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "hello"))?;
    let address = site.free_address()?;
    let format = json!({"format": "{method} {path} {query} {protocol} {status} {error}"});
    let (mut gateway, mut config, path) = logging(&site, (address, origin.address), format)?;
    config["bounds"] = json!({"head_timeout": "1s", "header_count": 4, "target_bytes": 256});
    gateway.write_config(config)?;
    gateway.start()?;
    let fields = "a: b\r\n".repeat(10);
    let long = "x".repeat(400);
    for (number, (request, line)) in [
        (
            "GET /a?token=hush&b HTTP/1.1\r\nno field\r\n\r\n",
            "GET /a token=***&b HTTP/1.1 400 bad_request",
        ),
        ("\r\nPUT /b HTTP/1.0\r\nhost : h\r\n\r\n", "PUT /b - HTTP/1.0 400 bad_request"),
        (&format!("GET /c HTTP/1.1\r\n{fields}\r\n"), "GET /c - HTTP/1.1 431 head_too_large"),
        ("GET /d HTTP/1.1\r\nhost: h\r\n", "GET /d - HTTP/1.1 408 head_timeout"),
        ("GET /e HTTP/1.1\nhost: h\r\n\r\n", "- - - - 400 bad_request"),
        ("GET /f\x01 HTTP/1.1\r\n\r\n", "- - - - 400 bad_request"),
        (&format!("GET /{long} HTTP/1.1\r\n\r\n"), "- - - - 414 target_too_long"),
        ("GET /g", "- - - - 408 head_timeout"),
    ]
    .iter()
    .enumerate()
    {
        let mut client = site.connect(None, address)?;
        client.send(request.as_bytes())?;
        client.receive()?;
        assert_eq!(lines(&path, number + 1)?[number], *line, "{request:?}");
    }
    gateway.stop()
}

#[test]
fn a_template_and_a_sample_are_as_configured() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "hello"))?;
    let address = site.free_address()?;
    let format = r#"{client} "{header.user-agent}" {status}{{{error}}} {route} {query}"#;
    let log = json!({"format": format, "sample": "25%"});
    let (mut gateway, _, path) = logging(&site, (address, origin.address), log)?;
    gateway.start()?;
    let mut client = site.connect(None, address)?;
    for _ in 0..8 {
        client.send(b"GET /a HTTP/1.1\r\nhost: a\r\nuser-agent: x\"\\ y\r\n\r\n")?;
        client.receive()?;
    }
    assert_eq!(client.get("/a//b?c=d")?.status, 400);
    gateway.stop()?;
    let good = r#"127.0.0.1 "x\x22\x5c y" 200{-} rest -"#;
    let bad = r#"127.0.0.1 "-" 400{bad_request} - c=d"#;
    assert_eq!(lines(&path, 3)?, [good, good, bad], "an end writes what waits");
    Ok(())
}

#[test]
fn a_rotation_loses_nothing_and_a_path_that_cannot_be_is_refused() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "hello"))?;
    let address = site.free_address()?;
    let format = json!({"format": "{path}"});
    let (mut gateway, mut config, path) = logging(&site, (address, origin.address), format)?;
    gateway.start()?;
    let mut client = site.connect(None, address)?;
    client.get("/1")?;
    assert_eq!(lines(&path, 1)?, ["/1"]);
    let rotated = path.with_extension("1");
    fs::rename(&path, &rotated)?;
    client.get("/2")?;
    assert_eq!(lines(&rotated, 2)?, ["/1", "/2"]);
    gateway.signal(Signal::SIGUSR1)?;
    wait_for("the file", PATIENCE, || Ok(path.exists().then_some(())))?;
    wait_for("the word of it", PATIENCE, || {
        Ok(gateway.log().contains("access log opened again").then_some(()))
    })?;
    // The writer goes over to it after what it was given before.
    wait_for("a line there", PATIENCE, || {
        client.get("/3")?;
        Ok(fs::read_to_string(&path)?.contains("/3").then_some(()))
    })?;

    config["access_log"]["path"] = json!("/proc/nowhere/access.log");
    gateway.write_config(config.clone())?;
    gateway.cli(&["reload"])?.refused(1, "access_log.path: /proc/nowhere/access.log")?;
    let other = path.with_file_name("other.log");
    config["access_log"] = json!({"path": other, "format": "{status} {path}"});
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    client.get("/4")?;
    // What waited for the old file may come first.
    wait_for("its line", PATIENCE, || {
        let text = fs::read_to_string(&other).unwrap_or_default();
        Ok(text.ends_with("200 /4\n").then_some(()))
    })?;
    gateway.stop()
}

#[test]
fn a_log_that_cannot_be_written_costs_lines_and_no_request() -> Result {
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "hello"))?;
    let address = site.free_address()?;
    let (mut gateway, mut config, path) = logging(&site, (address, origin.address), json!({}))?;
    fs::create_dir(log_folder(&gateway))?;
    mkfifo(&path, Mode::from_bits_truncate(0o666))?;
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY))?;
    }
    // Somebody has it open and never reads.
    let mut reader = File::options().read(true).write(true).open(&path)?;
    gateway.start()?;
    let mut client = site.connect(None, address)?;
    let long = format!("/{}", "a".repeat(3000));
    let lost = r#"gateway_access_log_lines_lost_total{reason="queue_full"}"#;
    let page = wait_for("a line that is lost", PATIENCE, || {
        for _ in 0..100 {
            assert_eq!(client.get(&long)?.status, 200);
        }
        Ok(Some(metrics(&gateway)?).filter(|page| page.value(lost) > Some(0)))
    })?;
    assert!(page.value("gateway_access_log_lines_total") > page.value(lost));
    let mut some = [0; 4096];
    reader.read_exact(&mut some)?;
    assert_eq!(some[0], b'{');

    config["access_log"]["path"] = json!("/dev/full");
    gateway.write_config(config)?;
    gateway.cli(&["reload"])?.ok()?;
    let failed = r#"gateway_access_log_lines_lost_total{reason="write_failed"}"#;
    wait_for("a line that is lost", PATIENCE, || {
        client.get("/1")?;
        Ok((metrics(&gateway)?.value(failed) > Some(0)).then_some(()))
    })?;
    wait_for("a complaint", PATIENCE, || {
        client.get("/1")?;
        Ok(gateway.log().contains("access log cannot be written").then_some(()))
    })?;
    gateway.stop()
}

#[test]
fn root_makes_the_folder_for_the_user_that_the_daemon_becomes() -> Result {
    require_root()?;
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "hello"))?;
    let address = site.free_address()?;
    let mut config = config(address, origin.address);
    let namespace = site.namespace.as_ref().ok_or_else(|| anyhow::anyhow!("no namespace"))?;
    let mut gateway = Gateway::new(namespace, config.clone())?;
    let path = log_folder(&gateway).join("access.log");
    config["access_log"] = json!({"path": path});
    config["user"] = json!("nobody");
    gateway.write_config(config)?;
    gateway.start()?;
    assert_eq!(site.connect(None, address)?.get("/")?.status, 200);
    lines(&path, 1)?;
    let (folder, file) = (fs::metadata(log_folder(&gateway))?, fs::metadata(&path)?);
    assert_eq!((folder.uid(), folder.mode() & 0o777), (NOBODY, 0o750));
    assert_eq!((file.uid(), file.mode() & 0o027), (NOBODY, 0));
    gateway.stop()
}

#[test]
fn a_trace_of_a_trusted_peer_is_continued_and_a_new_one_begins_for_others() -> Result {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "hello"))?;
    let address = site.free_address()?;
    let template = json!({"format": "{trace_id} {span_id} {request_id}"});
    let (mut gateway, mut config, path) = logging(&site, (address, origin.address), template)?;
    gateway.start()?;
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let request = format!(
        "GET / HTTP/1.1\r\nhost: a\r\ntraceparent: {parent}\r\ntracestate: a=1\r\n\
         b3: 0\r\nX_B3_TraceId: {SPAN}\r\n\r\n"
    );
    let mut client = site.connect(None, address)?;
    let mut ask = || -> Result<Vec<(String, String)>> {
        client.send(request.as_bytes())?;
        assert_eq!(client.receive()?.status, 200);
        let mut headers = origin.requests().pop().context("nothing was asked")?.headers;
        headers.retain(|(name, _)| name.starts_with("trace") || name.contains("b3"));
        headers.sort();
        Ok(headers)
    };
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let untouched = [
        text("b3", "0"),
        text("traceparent", &parent),
        text("tracestate", "a=1"),
        text("x_b3_traceid", SPAN),
    ];
    assert_eq!(ask()?, untouched, "nobody asked for more");
    assert!(lines(&path, 1)?[0].starts_with("- - "));

    let mut reload = |tracing: Value| -> Result {
        config["tracing"] = tracing;
        gateway.write_config(config.clone())?;
        gateway.cli(&["reload"])?.ok()?;
        Ok(())
    };
    reload(json!({"propagate": ["w3c", "b3"], "trust": "everyone"}))?;
    let sent = ask()?;
    let line = lines(&path, 2)?[1].clone();
    let ids: Vec<&str> = line.split(' ').collect();
    assert_eq!(ids[0], TRACE, "{line}");
    assert!(ids[1].len() == 16 && ids[1] != SPAN, "the hop is a span of its own: {line}");
    let continued = [
        text("b3", &format!("{TRACE}-{}-1-{SPAN}", ids[1])),
        text("traceparent", &format!("00-{TRACE}-{}-01", ids[1])),
        text("tracestate", "a=1"),
    ];
    assert_eq!(sent, continued);

    reload(json!({"propagate": ["w3c"], "sample": "0%"}))?;
    let sent = ask()?;
    let line = lines(&path, 3)?[2].clone();
    let ids: Vec<&str> = line.split(' ').collect();
    assert_eq!(ids[0], ids[2], "the request's id is the new trace's");
    assert_eq!(sent, [text("traceparent", &format!("00-{}-{}-00", ids[0], ids[1]))]);
    gateway.stop()
}

#[test]
fn b3_is_accepted_and_propagated_in_one_field_and_in_several() -> Result {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";
    let site = Site::new()?;
    let origin = site.origin(|_| Reply::Answer(200, "hello"))?;
    let address = site.free_address()?;
    let mut config = config(address, origin.address);
    let formats = ["b3_multi", "w3c"];
    config["tracing"] = json!({"propagate": formats, "trust": "everyone"});
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    let mut client = site.connect(None, address)?;
    for fields in [
        format!("b3: {TRACE}-{SPAN}-1"),
        format!("X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: {SPAN}\r\nX-B3-Sampled: 1"),
    ] {
        client.send(format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n").as_bytes())?;
        assert_eq!(client.receive()?.status, 200);
        let seen = origin.requests().pop().context("nothing was asked")?;
        let span = seen.header("x-b3-spanid").context("no span")?;
        assert!(span.len() == 16 && span != SPAN, "the hop is a span of its own: {span}");
        let parent = format!("00-{TRACE}-{span}-01");
        for (name, value) in [
            ("x-b3-traceid", Some(TRACE)),
            ("x-b3-parentspanid", Some(SPAN)),
            ("x-b3-sampled", Some("1")),
            ("traceparent", Some(&*parent)),
            ("b3", None),
        ] {
            assert_eq!(seen.header(name), value, "{name} after {fields}");
        }
    }
    gateway.stop()
}
