//! The whole way from a text to a configuration or to its mistakes.

use gateway_common::rule::Action;
use http::Method;
use proptest::prelude::*;

use super::*;

mod reference;

/// A file that is wrong in every way at once.
const BAD: &str = include_str!("tests/bad.yaml");
/// What is said about it.
const BAD_RENDERED: &str = include_str!("tests/bad.txt");

/// The least that is a configuration, with `more` at its end.
pub(super) fn with(more: &str) -> Result<Config, Errors> {
    parse("gateway.yaml", &format!("listen: [{{address: 127.0.0.1:8080}}]\n{more}"))
}

/// What is wrong with a text, and what of it is pointed at.
pub(super) fn wrong(more: &str) -> Vec<(String, String)> {
    let errors = with(more).expect_err(more);
    let places = errors.iter().map(|error| {
        let place = error.place.as_ref().unwrap();
        let pointed = place.text.chars().skip(place.column - 1).take(place.width).collect();
        (error.message.clone(), pointed)
    });
    places.collect()
}

/// That a text has exactly this mistake, and what of it is pointed at.
#[track_caller]
pub(super) fn only(more: &str, message: &str, pointed: &str) {
    assert_eq!(wrong(more), [(message.to_owned(), pointed.to_owned())], "{more}");
}

#[test]
fn the_embedded_configuration_is_valid() {
    let config = embedded().unwrap();
    assert_eq!(config.listen[0].address, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.kernel.interfaces, ["lo"]);
    assert_eq!(config.kernel.on_exit, OnExit::Detach);
    assert_eq!(config.upstreams[0].endpoints, [Target::Echo.into()]);
    assert_eq!(config.routes[0].name, "/{rest*}");
}

#[test]
fn every_example_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut read_so_far = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let config = read(&path).unwrap_or_else(|errors| panic!("{errors}"));
            assert!(!config.routes.is_empty(), "{}", path.display());
            read_so_far.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    read_so_far.sort();
    assert_eq!(
        read_so_far,
        [
            "behind-a-load-balancer.yaml",
            "feedback.yaml",
            "public-api.yaml",
            "quickstart.yaml",
            "ride-sharing.yaml",
            "routes.yaml",
            "sick-endpoints.yaml"
        ]
    );
}

#[test]
fn bounds_are_within_bounds_of_their_own() {
    let config = with("bounds: {connections: 2, connections_per_source: 3}").unwrap();
    assert_eq!((config.bounds.connections, config.bounds.connections_per_source), (2, 3));
    assert_eq!(with("bounds: {connections: 1}").unwrap().bounds.connections_per_source, 1);
    only("bounds: {connections_per_source: 0}", "0 is out of bounds", "0");
    only("bounds: {connection_requests: 0}", "0 is out of bounds", "0");
    let rate = "bounds: {body_bytes_per_second: 2MiB}";
    only(rate, "2097152 bytes is out of bounds", "2MiB");
    only("bounds: {body_bytes_per_second: fast}", "`fast` is no size", "fast");
    only("bounds: {connection_lifetime: 25h}", "`25h` is longer than a day", "25h");
}

#[test]
fn everything_has_its_documented_default() {
    let config = with("upstreams: {users: {endpoints: [10.0.0.1:80]}}").unwrap();
    let seconds = Duration::from_secs;
    assert_eq!(
        config.bounds,
        Bounds {
            connections: 65_536,
            connections_per_source: 16_384,
            connection_lifetime: seconds(3600),
            connection_requests: 1_000_000,
            streams: 128,
            header_count: 100,
            head_bytes: 65_536,
            target_bytes: 8192,
            body_bytes: 10 << 20,
            body_bytes_per_second: 240,
            handshake_timeout: seconds(10),
            handshakes: 4096,
            head_timeout: seconds(10),
            idle_timeout: seconds(60),
            keep_alive_timeout: seconds(75),
            tunnel_idle_timeout: seconds(600),
            drain_timeout: seconds(30),
        }
    );
    let kernel = &config.kernel;
    assert_eq!((kernel.attach, kernel.on_exit), (Attach::Auto, OnExit::Keep));
    assert_eq!((kernel.max_rules, kernel.max_sources), (65_536, 262_144));
    assert_eq!(kernel.events, Bucket::per_second(10, 10));
    assert_eq!(kernel.management_ports, [22]);
    assert_eq!(kernel.protected_ports, ProtectedPorts::Listeners);
    assert_eq!(kernel.pins, Path::new("/sys/fs/bpf/gateway"));
    assert!(kernel.interfaces.is_empty() && !kernel.dry_run && kernel.default_profile.is_none());
    let users = &config.upstreams[0];
    assert_eq!((users.connect_timeout, users.response_timeout), (seconds(1), seconds(10)));
    assert_eq!((users.idle_timeout, users.idle_connections), (seconds(60), 1024));
    assert_eq!((&users.balance, &config.zone), (&Balance::default(), &None));
    assert_eq!((users.endpoints[0].weight, &users.endpoints[0].zone), (1, &None));
    assert_eq!(users.whole_timeout, None);
    let Retry { attempts, on, methods, backoff, budget, buffer_bytes } = &users.retry;
    assert_eq!((*attempts, *budget, *buffer_bytes), (3, Share::per_million(200_000), 65_536));
    assert!(on.connect_failure && on.reset && !on.timeout && on.statuses.is_empty());
    assert!(!methods.contains(&Method::POST) && methods.contains(&Method::PUT));
    let ms = Duration::from_millis;
    assert_eq!(*backoff, Backoff { first: ms(25), max: ms(250) });
    assert_eq!(config.state.dir, default_paths().state_dir);
    assert_eq!(config.admin.socket, default_paths().admin_socket);
    assert_eq!((&config.access_log, &config.tracing), (&None, &None));
    assert_eq!(config.metrics, Metrics { listen: None, max_names: 1000 });
    assert!(config.workers >= 1 && config.routes.is_empty() && config.user.is_none());
}

#[test]
fn every_mistake_of_a_file_is_shown_at_once() {
    let errors = parse("bad.yaml", BAD).unwrap_err();
    let rendered = format!("{errors}\n");
    assert_eq!(rendered, BAD_RENDERED, "what is said now:\n{rendered}");
}

#[test]
fn programs_get_one_object_a_line() {
    let errors = with("workers: 0\nlisted: 1").unwrap_err();
    assert_eq!(
        errors.json_lines(),
        "{\"file\":\"gateway.yaml\",\"line\":2,\"column\":10,\"width\":1,\"text\":\"workers: 0\",\
         \"message\":\"0 is out of bounds\",\"help\":\"write 1 to 1024\"}\n\
         {\"file\":\"gateway.yaml\",\"line\":3,\"column\":1,\"width\":6,\"text\":\"listed: 1\",\
         \"message\":\"unknown key `listed`\",\"help\":\"did you mean `listen`?\"}\n"
    );
}

#[test]
fn the_text_itself() {
    only("a: [", "this is no YAML: unclosed bracket '['", "[");
    only("a: !!str b", "a tag means nothing here", "b");
    only("---\na: 1", "a second document starts here", "---");
    only("? [a]\n: b", "a key must be plain text", "[");
    only("workers: 2\nworkers: 3", "`workers` is given twice", "workers");
    only("kernel: {dry_run: yes}", "expected true or false, found `yes`", "yes");
    only("state: {dir: }", "expected text, found nothing", "dir");
    only("user: true", "expected text (quote it if you mean the word), found `true`", "true");
    only("upstreams: [a]", "expected a section with keys, found a list", "[");
    only(
        "kernel: {protected_ports: all}",
        "expected `listeners` or a list of ports, found `all`",
        "all",
    );
    let deep = format!("a: {}", "[".repeat(300));
    assert!(wrong(&deep)[0].0.contains("nested deeper than 32 levels"));
    let empty = parse("gateway.yaml", "").unwrap_err();
    assert_eq!(empty.iter().next().unwrap().message, "the gateway listens nowhere");
    assert!(with("kernel:\n  # interfaces: [eth0]\nuser: ~\nbounds:").is_ok());
}

#[test]
fn aliases_are_read_and_bounded() {
    let config = with(
        "upstreams:\n  a: {endpoints: [10.0.0.1:1], timeout: &t {connect: 2s}}\n  \
         b: {endpoints: [10.0.0.2:1], timeout: *t}",
    );
    assert_eq!(config.unwrap().upstreams[1].connect_timeout, Duration::from_secs(2));
    let mut bomb = String::from("x0: &x0 [a, a, a, a, a, a, a, a, a, a]\n");
    for level in 1..25 {
        let inside = format!("*x{}", level - 1);
        bomb.push_str(&format!("x{level}: &x{level} [{}]\n", vec![inside; 10].join(", ")));
    }
    assert!(wrong(&bomb)[0].0.contains("with its aliases takes more than"));
    assert!(wrong("a: &a [*a]")[0].0.contains("inside of what it refers to"));
}

#[test]
fn a_gateway_is_found_by_a_file_with_mistakes_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    let found = |text: &str| {
        std::fs::write(&path, text).unwrap();
        places(&path).map(|(socket, _)| socket.display().to_string())
    };
    let socket = |path: &str| Some(path.to_owned());
    assert_eq!(found("routes: [{a: [1, {b: c}]}, !]\nadmin: {socket: /a}"), None, "no YAML");
    assert_eq!(found("routes: [{a: [1, {b: c}]}]\nadmin: {socket: /a}\nlisten: x"), socket("/a"));
    assert_eq!(found("{\"routes\": [{}], \"admin\": {\"socket\": \"/a\"}}"), socket("/a"));
    assert_eq!(found("user: &where /b\nadmin: {socket: *where}"), socket("/b"));
    assert_eq!(found("admin: {socket: a}"), None);
}

#[test]
fn what_is_retried() {
    let retry =
        |keys: &str| format!("upstreams: {{a: {{endpoints: [10.0.0.1:80], retry: {{{keys}}}}}}}");
    let config = with(&retry("on: [timeout, 502, 429], methods: [POST], attempts: 1"));
    let own = config.unwrap().upstreams.remove(0).retry;
    assert_eq!(
        own.on,
        FailureSet { timeout: true, statuses: vec![502, 429], ..FailureSet::default() }
    );
    assert_eq!((own.attempts, own.methods), (1, vec![Method::POST]));
    only(&retry("on: [conect_failure]"), "`conect_failure` is no way to fail", "conect_failure");
    only(&retry("on: [404]"), "`404` is no way to fail", "404");
    only(&retry("on: [502, 502]"), "`502` is given twice", "502");
    only(&retry("attempts: 0"), "0 is out of bounds", "0");
    only(&retry("budget: 101%"), "101% is out of bounds", "101%");
    only(&retry("buffer: 1GiB"), "1073741824 bytes is out of bounds", "1GiB");
    only(&retry("methods: [get]"), "`get` is no method", "get");
    only(&retry("backoff: 25ms"), "`25ms` is no range of pauses", "25ms");
    only(&retry("backoff: 0s..1s"), "`0s` is out of bounds", "0s..1s");
    only(&retry("backoff: 2s..1s"), "`2s..1s` ends before it begins", "2s..1s");
}

#[test]
fn when_a_service_is_left_alone() {
    let upstream = |keys: &str| format!("upstreams: {{a: {{endpoints: [10.0.0.1:80], {keys}}}}}");
    let service = |keys: &str| with(&upstream(keys)).unwrap().upstreams.remove(0);
    assert_eq!(service("breaker: {}").breaker, Some(Breaker::default()));
    assert_eq!(service("idle_connections: 1").breaker, None);
    let bounded = service("balance: {hash: client, bound: 125%}").balance;
    assert_eq!(bounded.bound, Some(Share::per_million(1_250_000)));
    only(&upstream("balance: {hash: client, bound: 100%}"), "100% is out of bounds", "100%");
    let hedge = |keys: &str| service(&format!("hedge: {{{keys}}}")).hedge.unwrap();
    let (after, budget) =
        (HedgeAfter::Time(Duration::from_millis(50)), Share::per_million(100_000));
    assert_eq!(hedge("after: 50ms"), Hedge { after, budget });
    let (after, budget) = (HedgeAfter::Percentile(Share::per_million(995_000)), Share::ZERO);
    assert_eq!(hedge("after: p99.5, budget: 0%"), Hedge { after, budget });
    assert_eq!(after.to_string(), "p99.5");
    only(&upstream("hedge: {after: 2m}"), "`2m` is out of bounds", "2m");
    for wrong in ["p49", "p100", "p", "p95%"] {
        let keys = format!("hedge: {{after: {wrong}}}");
        only(&upstream(&keys), &format!("`{wrong}` is no percentile from p50 to p99.9"), wrong);
    }
    let by_share = service("breaker: {failure_share: 25%}").breaker.unwrap();
    let share = Share::per_million(250_000);
    let expected = FailureShare { share, window: Duration::from_secs(10), min_requests: 20 };
    assert_eq!((by_share.failures, by_share.share), (None, Some(expected)));
    let both = service("breaker: {failure_share: 25%, failures: 7}").breaker.unwrap();
    assert_eq!((both.failures, both.share), (Some(7), Some(expected)));
    let own = service("breaker: {on: [500], per: both, fallback: {body: b, headers: {a: c}}}");
    let Breaker { on, of_upstream, of_endpoints, fallback, .. } = own.breaker.unwrap();
    assert!(of_upstream && of_endpoints && on.statuses == [500] && !on.reset);
    let Fallback { status, headers, body } = fallback.unwrap();
    assert_eq!((status.as_u16(), &*body), (200, &b"b"[..]));
    assert_eq!(headers["a"], "c");
    let breaker = |keys: &str| upstream(&format!("breaker: {{{keys}}}"));
    only(&breaker("failures: 0"), "0 is out of bounds", "0");
    only(&breaker("window: 10s"), "`window` means nothing without `failure_share`", "window");
    only(&breaker("failure_share: 0%"), "0% is out of bounds", "0%");
    only(&breaker("failure_share: 5%, window: 1ms"), "`1ms` is out of bounds", "1ms");
    only(&breaker("failure_share: 5%, min_requests: 0"), "0 is out of bounds", "0");
    only(&breaker("open_for: 0s"), "`0s` leaves no time at all", "0s");
    only(
        &breaker("per: route"),
        "expected `upstream` or `endpoint` or `both`, found `route`",
        "route",
    );
    only(&breaker("fallback: {status: 101}"), "101 is out of bounds", "101");
    let fields = |fields: &str| breaker(&format!("fallback: {{headers: {{{fields}}}}}"));
    only(&fields("a b: c"), "`a b` is no name of a header field", "a b");
    only(
        &fields("Content-Length: '1'"),
        "the gateway itself sets `content-length`",
        "Content-Length",
    );
}

#[test]
fn how_many_requests_at_once() {
    let upstream =
        |keys: &str| format!("upstreams: {{a: {{endpoints: [10.0.0.1:80], concurrency: {keys}}}}}");
    let terms =
        |keys: &str| with(&upstream(keys)).unwrap().upstreams.remove(0).concurrency.unwrap();
    let fixed = Concurrency { limit: Limit::Fixed(100), queue: 0, wait: Duration::ZERO };
    assert_eq!(terms("100"), fixed);
    let wait = Duration::from_secs(1);
    assert_eq!(terms("{limit: 100, queue: 5}"), Concurrency { queue: 5, wait, ..fixed });
    let adaptive = |min, max| Limit::Adaptive(Adaptive { min, max });
    assert_eq!(terms("adaptive").limit, adaptive(10, 1000));
    assert_eq!(terms("{limit: adaptive, max: 50}").limit, adaptive(10, 50));
    only(&upstream("0"), "0 is out of bounds", "0");
    only(&upstream("many"), "`many` is no number of requests", "many");
    only(
        &upstream("{limit: 5, min: 1}"),
        "`min` means nothing for a limit that does not adapt",
        "min",
    );
    only(
        &upstream("{limit: adaptive, min: 9, max: 8}"),
        "the limit cannot lie between 9 and 8",
        "9",
    );
    only(&upstream("{limit: 5, queue: 65537}"), "65537 is out of bounds", "65537");
    let route = |priority: &str| {
        let route = format!("match: {{path: /}}, upstream: a, priority: {priority}");
        format!("upstreams: {{a: {{endpoints: [10.0.0.1:80]}}}}\nroutes: [{{{route}}}]")
    };
    assert_eq!(with(&route("high")).unwrap().routes[0].priority, Priority::High);
    let message = "expected `low` or `normal` or `high` or `critical`, found `hihg`";
    only(&route("hihg"), message, "hihg");
}

#[test]
fn lists_of_sources() {
    let kernel = |keys: &str| format!("kernel: {{{keys}}}");
    only(&kernel("allow: [0.0.0.0/0]"), "`0.0.0.0/0` lets everybody past every limit", "0.0.0.0/0");
    only(&kernel("never_block: ['::/0']"), "`::/0` leaves nobody to block", "'::/0'");
    only(&kernel("deny: [192.0.2.1, 192.0.2.1/32]"), "`192.0.2.1` is given twice", "192.0.2.1/32");
    only(
        &kernel("allow: [192.0.2.0/24], deny: [192.0.2.0/24]"),
        "`192.0.2.0/24` is in `allow` and in `deny`",
        "192.0.2.0/24",
    );
    only(
        &kernel("never_block: [192.0.2.0/24], deny: [192.0.2.1]"),
        "`192.0.2.1` cannot be denied: it lies in 192.0.2.0/24, which is in `never_block`",
        "192.0.2.1",
    );
    only(
        "upstreams: {a: {endpoints: [10.0.0.9:80]}}\nkernel: {deny: [10.0.0.9]}",
        "`10.0.0.9` cannot be denied: it is an endpoint of the upstream `a`",
        "10.0.0.9",
    );
    only(
        &kernel("deny: [192.0.2.1, 192.0.2.2], max_rules: 1"),
        "2 IPv4 rules do not fit into a table of 1",
        "1",
    );
    only(&kernel("max_rules: 16777217"), "16777217 is out of bounds", "16777217");
    assert!(with("trusted_proxies: [10.1.0.0/16]\nkernel: {deny: [10.0.0.0/8]}").is_ok());
}

#[test]
fn lists_that_are_kept_elsewhere() {
    let config = parse(
        "/etc/gateway/gateway.yaml",
        "listen: [{address: 127.0.0.1:8080}]
kernel:
  allow_files: [{path: /srv/office.txt, name: our-office, min_entries: 12.5%}]
  deny_files: [lists/drop.txt, {path: ./level_1.netset, dry_run: true}]
  feeds:
    - {name: scanners, url: https://feeds.example.com/s?k=v}
    - {name: partners, url: 'http://[::1]:8080/p', every: 30d, action: allow, dry_run: true,
       ca: tls/ca.pem, timeout: 5s, max_bytes: 1MiB, min_entries: 0%, max_entries: 150%,
       max_address_share: 0.05%}
",
    );
    let kernel = config.unwrap_or_else(|errors| panic!("{errors}")).kernel;
    let file = |name: &str, path: &str, dry_run| ListFile {
        name: name.to_owned(),
        path: PathBuf::from(path),
        dry_run,
        min_entries: Share::ZERO,
    };
    let office = file("our-office", "/srv/office.txt", false);
    let office = ListFile { min_entries: Share::per_million(125_000), ..office };
    assert_eq!(kernel.allow_files, [office]);
    let deny = [
        file("drop", "/etc/gateway/lists/drop.txt", false),
        file("level_1", "/etc/gateway/level_1.netset", true),
    ];
    assert_eq!(kernel.deny_files, deny);
    let plain = Feed {
        name: "scanners".to_owned(),
        url: "https://feeds.example.com/s?k=v".parse().unwrap(),
        every: Duration::from_secs(3600),
        action: Action::Deny,
        dry_run: false,
        ca: None,
        timeout: Duration::from_secs(60),
        max_bytes: 64 << 20,
        bounds: FeedBounds {
            min_entries: Share::per_million(500_000),
            max_entries: Share::per_million(10_000_000),
            max_address_share: Share::per_million(50_000),
        },
    };
    let every_key = Feed {
        name: "partners".to_owned(),
        url: "http://[::1]:8080/p".parse().unwrap(),
        every: Duration::from_secs(30 * 24 * 3600),
        action: Action::Allow,
        dry_run: true,
        ca: Some(PathBuf::from("/etc/gateway/tls/ca.pem")),
        timeout: Duration::from_secs(5),
        max_bytes: 1 << 20,
        bounds: FeedBounds {
            min_entries: Share::ZERO,
            max_entries: Share::per_million(1_500_000),
            max_address_share: Share::per_million(500),
        },
    };
    assert_eq!(kernel.feeds, [plain, every_key]);
    assert_eq!(kernel.feeds[1].address(), Some("::1".parse().unwrap()));
}

#[test]
fn the_paths_of_a_file_are_relative_to_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    let text = "listen: [{address: 127.0.0.1:8080}]\nkernel: {deny_files: [drop.txt]}";
    std::fs::write(&path, text).unwrap();
    let config = read(&path).unwrap();
    assert_eq!(config.kernel.deny_files[0].path, folder.path().join("drop.txt"));
}

#[test]
fn mistakes_of_lists_that_are_kept_elsewhere() {
    let kernel = |keys: &str| format!("kernel: {{{keys}}}");
    let no_name = "`Drop List` is no name for a list";
    only(&kernel("deny_files: ['Drop List.txt']"), no_name, "'Drop List.txt'");
    only(&kernel("deny_files: [{path: a, name: a.b}]"), "`a.b` is no name for a list", "a.b");
    only(&kernel("deny_files: [../a]"), "`../a` is no path of a file", "../a");
    only(&kernel("deny_files: [{path: lists/}]"), "`lists/` is no path of a file", "lists/");
    only(&kernel("deny_files: [{name: a}]"), "`path` is missing", "{");
    only(
        &kernel("deny_files: [[a]]"),
        "expected the path of a file or a section with `path`, found a list",
        "[",
    );
    only(
        &kernel("deny_files: [a.txt], allow_files: [{path: a.txt, name: b}]"),
        "`a.txt` is given twice",
        "a.txt",
    );
    only(&kernel("deny_files: [a.txt, b/a.txt]"), "two lists are called `a`", "b/a.txt");
    only(
        &kernel("deny_files: [a.txt], feeds: [{name: a, url: 'http://b.example/'}]"),
        "two lists are called `a`",
        "a",
    );
    let many: Vec<String> = (0..257).map(|number| format!("l{number}")).collect();
    let many = kernel(&format!("deny_files: [{}]", many.join(", ")));
    assert_eq!(wrong(&many)[0].0, "257 files and feeds are too many");
    let feed = |keys: &str| kernel(&format!("feeds: [{{name: f, {keys}}}]"));
    only(&feed("every: 1h"), "`url` is missing", "{");
    for url in ["feeds.example.com/a", "ftp://a.example/b", "/b", "http://a.example:0/", "http://"]
    {
        let message = format!("`{url}` is no http:// or https:// URL");
        only(&feed(&format!("url: '{url}'")), &message, &format!("'{url}'"));
    }
    only(
        &feed("url: 'http://u:p@a.example/'"),
        "`http://***@a.example/` has a user in it, which is not sent",
        "***",
    );
    let setting = |keys: &str| feed(&format!("url: 'http://a.example/', {keys}"));
    for (key, value, message) in [
        ("every", "59s", "`59s` is out of bounds"),
        ("every", "31d", "`31d` is out of bounds"),
        ("every", "often", "`often` is no duration"),
        ("timeout", "0s", "`0s` leaves no time at all"),
        ("max_bytes", "1023", "1023 bytes is out of bounds"),
        ("min_entries", "101%", "101% is out of bounds"),
        ("max_entries", "99.9999%", "99.9999% is out of bounds"),
        ("max_address_share", "0%", "0% is out of bounds"),
        ("min_entries", "50", "`50` is no share"),
        ("min_entries", "0.00001%", "`0.00001%` is no share"),
        ("min_entries", ".5%", "`.5%` is no share"),
        ("min_entries", "-5%", "`-5%` is no share"),
        ("min_entries", "99999999999999999999%", "`99999999999999999999%` is no share"),
        ("ca", "..", "`..` is no path of a file"),
        ("action", "limit", "expected `deny` or `allow`, found `limit`"),
    ] {
        only(&setting(&format!("{key}: {value}")), message, value);
    }
    only(
        &kernel("deny_files: [{path: a.txt, min_entries: 101%}]"),
        "101% is out of bounds",
        "101%",
    );
    only(
        &kernel("feeds: [{name: f, url: 'http://192.0.2.1/'}], deny: [192.0.2.1]"),
        "`192.0.2.1` cannot be denied: it is the address of the feed `f`",
        "192.0.2.1",
    );
}

#[test]
fn profiles_and_rates() {
    let config = with(
        "kernel:\n  default_profile: public\n  profiles:\n    public: {packets: 20000/s burst 40000}\n    \
         office: {packets: unlimited}\n    slow: {packets: 100/min}\n  \
         limits: [{source: 198.51.100.0/24, profile: office}]",
    );
    let kernel = config.unwrap().kernel;
    assert_eq!(kernel.default_profile, Some(0));
    assert_eq!(Some(kernel.profiles[0].packets), Bucket::per_second(20_000, 40_000));
    assert!(kernel.profiles[1].packets.is_unlimited());
    assert_eq!(Some(kernel.profiles[2].packets), Bucket::per(60, 100, 1));
    assert_eq!(kernel.limits[0].profile, 1);
    assert_eq!(kernel.ipv6_source_length, 64);
    let config = with("kernel: {ipv6_source_length: 56, profiles: {p: {connections: 9/s}}}");
    let kernel = config.unwrap().kernel;
    assert_eq!(Some(kernel.profiles[0].connections), Bucket::per_second(9, 9));
    assert!(kernel.profiles[0].packets.is_unlimited());
    assert_eq!(kernel.ipv6_source_length, 56);
    only("kernel: {profiles: {p: {}}}", "profile `p` limits nothing", "{");
    only("kernel: {ipv6_source_length: 65}", "65 is out of bounds", "65");
    let profile = |rate: &str| format!("kernel: {{profiles: {{p: {{packets: {rate}}}}}}}");
    for rate in ["5", "5/d", "/s", "5/s burst", "5/s 7", "-5/s", "5/s burst 7 8"] {
        only(&profile(rate), &format!("`{rate}` is no rate"), rate);
    }
    for rate in ["0/s", "99999999/s", "5/s burst 0", "1/h burst 99999999999"] {
        only(&profile(rate), &format!("the rate `{rate}` cannot be kept"), rate);
    }
    only(
        "kernel: {limits: [{source: 192.0.2.1, profile: none}]}",
        "there is no profile `none`",
        "none",
    );
}

#[test]
fn new_sources_go_by_the_table_unless_they_have_a_rate() {
    let rates = |keys: &str| {
        let kernel = with(&format!("kernel: {{{keys}}}")).unwrap().kernel;
        (Some(kernel.new_sources), Some(kernel.unknown_sources))
    };
    let unlimited = Some(Bucket::UNLIMITED);
    assert_eq!(rates(""), (Bucket::per_second(16_384, 65_536), unlimited));
    assert_eq!(rates("max_sources: 1"), (Bucket::per_second(1, 1), unlimited));
    assert_eq!(rates("max_sources: 16777216").0, Bucket::per_second(1 << 20, 1 << 22));
    assert_eq!(
        rates("new_sources: 10/s, unknown_sources: 5/min burst 7"),
        (Bucket::per_second(10, 10), Bucket::per(60, 5, 7))
    );
    assert_eq!(rates("new_sources: unlimited").0, unlimited);
    only("kernel: {new_sources: many}", "`many` is no rate", "many");
    only(
        "kernel: {new_sources: unlimited, unknown_sources: 5/s}",
        "no source is unknown while `new_sources` is unlimited",
        "5/s",
    );
}

#[test]
fn events_resets_and_metrics() {
    let events = |rate: &str| with(&format!("kernel: {{events: {rate}}}")).unwrap().kernel.events;
    assert_eq!(events("off"), None);
    assert_eq!(events("1000/s burst 1"), Bucket::per_second(1000, 1));
    assert_eq!(events("6/min"), Bucket::per(60, 6, 1));
    for rate in ["1001/s", "unlimited"] {
        let message = format!("`{rate}` reports more than anybody reads");
        only(&format!("kernel: {{events: {rate}}}"), &message, rate);
    }
    only("kernel: {events: none}", "`none` is no rate", "none");

    let resets = |rate: &str| with(&format!("kernel: {{resets: {rate}}}")).unwrap().kernel.resets;
    assert_eq!(with("kernel: {}").unwrap().kernel.resets, Bucket::per_second(1000, 100));
    assert_eq!(resets("off"), None);
    assert_eq!(resets("100000/s burst 1"), Bucket::per_second(100_000, 1));
    for rate in ["101000/s", "unlimited"] {
        let message = format!("`{rate}` answers a flood with a flood");
        only(&format!("kernel: {{resets: {rate}}}"), &message, rate);
    }
    only("kernel: {resets: none}", "`none` is no rate", "none");

    let metrics = |address: &str| with(&format!("metrics: {{listen: '{address}'}}"));
    let listen = metrics("127.0.0.1:9100").unwrap().metrics.listen;
    assert_eq!(listen, Some("127.0.0.1:9100".parse().unwrap()));
    assert_eq!(metrics("0.0.0.0:8081").unwrap().metrics.listen.unwrap().port(), 8081);
    for taken in ["127.0.0.1:8080", "0.0.0.0:8080"] {
        let message = format!("`{taken}` is taken by the listener 127.0.0.1:8080");
        let pointed = format!("'{taken}'");
        only(&format!("metrics: {{listen: {pointed}}}"), &message, &pointed);
    }
    only("metrics: {listen: 9100}", "`9100` is only a port", "9100");
    only(
        "metrics: {listen: 127.0.0.1:9100}\nupstreams: {a: {endpoints: [127.0.0.1:9100]}}",
        "`127.0.0.1:9100` is where the gateway itself listens: requests would go round",
        "127.0.0.1:9100",
    );
}

#[test]
fn hygiene_is_on_and_the_host_takes_everything_unless_told() {
    let kernel = with("").unwrap().kernel;
    assert_eq!(kernel.hygiene, Hygiene::ON);
    assert_eq!(kernel.host_limits, HostLimits::NONE);
    let config = with(
        "kernel: {hygiene: {martian: false}, \
         host_limits: {udp: 50000/s burst 100000, fragments: 1000/s}}",
    );
    let kernel = config.unwrap().kernel;
    assert_eq!(kernel.hygiene, Hygiene { tcp_flags: true, martian: false, malformed: true });
    assert_eq!(Some(kernel.host_limits.udp), Bucket::per_second(50_000, 100_000));
    assert_eq!(Some(kernel.host_limits.fragments), Bucket::per_second(1000, 1000));
    only("kernel: {host_limits: {udp: many}}", "`many` is no rate", "many");
    let text = "kernel: {hygiene: {martian: maybe}}";
    only(text, "expected true or false, found `maybe`", "maybe");
}

#[test]
fn listeners_and_endpoints() {
    let listen = |address: &str| {
        let text = format!("listen: [{{address: '{address}'}}]");
        parse("a", &text).map_err(|errors| errors.iter().next().unwrap().message.clone())
    };
    assert!(listen("[::1]:80").is_ok());
    assert_eq!(listen("8080").unwrap_err(), "`8080` is only a port");
    assert_eq!(listen("127.0.0.1").unwrap_err(), "`127.0.0.1` has no port");
    assert_eq!(listen("::1").unwrap_err(), "`::1` has no port");
    assert!(listen("127.0.0.1:0").unwrap_err().starts_with("port 0"));
    for own in ["127.0.0.1:8080", "0.0.0.0:8080"] {
        let text = format!("upstreams: {{a: {{endpoints: ['{own}']}}}}");
        assert!(wrong(&text)[0].0.contains("where the gateway itself listens"), "{own}");
    }
    let text = "upstreams: {a: {endpoints: [10.0.0.1:1, {address: 10.0.0.1:1}]}}";
    only(text, "`10.0.0.1:1` is given twice in upstream `a`", "10.0.0.1:1");
}

#[test]
fn how_endpoints_are_chosen() {
    let upstream = |more: &str| {
        let text = format!("upstreams: {{a: {{endpoints: [10.0.0.1:1], {more}}}}}");
        with(&text).unwrap().upstreams.remove(0).balance
    };
    assert_eq!(upstream("balance: least_requests").algorithm, Algorithm::LeastRequests);
    assert_eq!(upstream("balance: random_two").algorithm, Algorithm::RandomTwo);
    let hash = |key: &str| upstream(&format!("balance: {{hash: {key}}}")).algorithm;
    assert_eq!(hash("client"), Algorithm::Hash(HashKey::Client));
    assert_eq!(hash("consumer"), Algorithm::Hash(HashKey::Consumer));
    assert_eq!(hash("{path: true}"), Algorithm::Hash(HashKey::Path));
    assert_eq!(hash("{cookie: sid}"), Algorithm::Hash(HashKey::Cookie("sid".to_owned())));
    let header = HashKey::Header("x-session-id".parse().unwrap());
    assert_eq!(hash("{header: X-Session-Id}"), Algorithm::Hash(header));
    let all = upstream("slow_start: 30s, panic_threshold: 0%, ejection: {failures: 3, time: 1s}");
    assert_eq!((all.slow_start.as_secs(), all.panic_threshold), (30, Share::ZERO));
    let Some(Ejection { failures: 3, time, max_ejected, .. }) = all.ejection else { panic!() };
    assert_eq!((time.as_secs(), max_ejected.to_string()), (1, "50%".to_owned()));
    assert_eq!(upstream("ejection: off").ejection, None);
    let zones = "zone: eu-1a\nupstreams: {a: {endpoints: [{address: 10.0.0.1:1, zone: eu-1a}]}}";
    let zones = with(zones).unwrap();
    assert_eq!(zones.zone, zones.upstreams[0].endpoints[0].zone);
}

#[test]
fn how_endpoints_are_checked() {
    let health = |more: &str| {
        let text = format!("upstreams: {{a: {{endpoints: [10.0.0.1:1], health: {more}}}}}");
        with(&text).unwrap().upstreams.remove(0).health.unwrap()
    };
    let default = health("{}");
    let path = "/".parse().unwrap();
    assert_eq!(default.probe, Probe::Http { path, host: None, status: vec![200..=299] });
    assert_eq!((default.interval.as_secs(), default.timeout.as_secs()), (5, 2));
    assert_eq!((default.healthy_after, default.unhealthy_after, default.port), (2, 3, None));
    let http = health("{path: /health?a, host: h.test, status: [200, 300-399], port: 81}");
    let Probe::Http { path, host, status } = http.probe else { panic!() };
    assert_eq!((path.as_str(), host.unwrap().as_str()), ("/health?a", "h.test"));
    assert_eq!((status, http.port), (vec![200..=200, 300..=399], Some(81)));
    assert_eq!(health("{type: tcp}").probe, Probe::Tcp);
    let service = "users.Users".to_owned();
    let grpc = health("{type: grpc, service: users.Users}").probe;
    assert_eq!(grpc, Probe::Grpc { host: None, service });

    let refused = |more: &str, message: &str, pointed: &str| {
        let text = format!("upstreams: {{a: {{endpoints: [10.0.0.1:1], health: {more}}}}}");
        only(&text, message, pointed);
    };
    let of_type = "`path` means nothing to a check of this type";
    refused("{type: tcp, path: /a}", of_type, "/a");
    refused("{path: a}", "`a` is no path", "a");
    refused("{host: 'a b'}", "`a b` is no host", "'a b'");
    refused("{status: [299-200]}", "`299-200` is no range of statuses", "299-200");
    refused("{status: []}", "no status is a good one", "[");
    refused("{interval: 1ms}", "`1ms` is out of bounds", "1ms");
    refused("{healthy_after: 0}", "0 is out of bounds", "0");
    refused("{port: 0}", "there is no port 0", "0");
}

#[test]
fn mistakes_of_how_endpoints_are_chosen() {
    let refused = |more: &str, message: &str, pointed: &str| {
        let text = format!("upstreams: {{a: {{endpoints: [10.0.0.1:1], {more}}}}}");
        only(&text, message, pointed);
    };
    refused("balance: least_request", "`least_request` is no way to balance", "least_request");
    refused("balance: hash", "`hash` does not say what the key of a request is", "hash");
    refused("balance: {hash: user}", "`user` is no key of a request", "user");
    refused("balance: {hash: {}}", "a request has one key", "hash");
    refused("balance: {hash: {path: true, cookie: a}}", "a request has one key", "hash");
    refused("balance: {hash: {header: 'a b'}}", "`a b` is no name of a header field", "'a b'");
    refused("balance: {hash: {cookie: 'a;b'}}", "`a;b` is no name of a cookie", "'a;b'");
    refused("slow_start: 2h", "`2h` is out of bounds", "2h");
    refused("panic_threshold: 101%", "101% is out of bounds", "101%");
    refused("ejection: on", "`on` is not `off`", "on");
    refused("ejection: {failures: 0}", "0 is out of bounds", "0");
    refused("ejection: {time: 10m}", "`max_time` is less than `time`", "ejection");
    let weight = "upstreams: {a: {endpoints: [{address: 10.0.0.1:1, weight: 1001}]}}";
    only(weight, "1001 is out of bounds", "1001");
}

#[test]
fn a_flood_of_mistakes_on_one_line_stays_readable() {
    let errors = with(&format!("kernel: {{deny: [{}]}}", "nonsense, ".repeat(20_000))).unwrap_err();
    assert_eq!(errors.iter().count(), 100);
    let text = errors.to_string();
    assert!(
        text.ends_with("20000 errors, the first 100 are shown; nothing of the file is applied")
    );
    assert!(text.lines().all(|line| line.len() < 130));
    assert!(text.contains("^^^^^^^^\n"));
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let missing = read(&folder.path().join("none.yaml")).unwrap_err();
    assert!(missing.to_string().contains("cannot be read: No such file"));
    let path = folder.path().join("bytes.yaml");
    std::fs::write(&path, b"user: a\nuser: \xff\n").unwrap();
    let errors = read(&path).unwrap_err();
    let place = errors.iter().next().unwrap().place.clone().unwrap();
    assert_eq!((place.line, place.column), (2, 7));
}

fn examine(text: &str) -> Result<(), TestCaseError> {
    let Err(errors) = parse("any.yaml", text) else { return Ok(()) };
    prop_assert!(errors.iter().count() > 0);
    let lines = text.lines().count().max(1);
    for error in errors.iter() {
        let place = error.place.as_ref().unwrap();
        prop_assert!((1..=lines).contains(&place.line), "{error}");
        let line = text.lines().nth(place.line - 1).unwrap_or_default();
        prop_assert!((1..=line.chars().count() + 1).contains(&place.column), "{error}");
    }
    prop_assert!(!errors.to_string().is_empty());
    Ok(())
}

proptest! {
    #[test]
    fn no_text_makes_it_panic_and_every_error_has_its_place(text in "\\PC{0,80}") {
        examine(&text)?;
    }

    #[test]
    fn no_shape_makes_it_panic(text in "([a-c:{}\\[\\],&*!'\"|>?# \\-\n\t\u{e9}]|listen|routes){0,60}") {
        examine(&text)?;
    }

    /// A file full of mistakes, cut and patched: the interesting neighbourhood.
    #[test]
    fn no_damage_makes_it_panic(
        from in 0..BAD.len(), length in 0usize..80, patch in "[a-z0-9:{}\\[\\], \n]{0,8}",
    ) {
        let mut text = BAD.to_owned();
        text.replace_range(from..(from + length).min(BAD.len()), &patch);
        examine(&text)?;
    }
}

#[test]
fn checks_go_as_requests_do_except_to_another_port() {
    let upstream = |more: &str| format!("upstreams: {{a: {{endpoints: ['10.0.0.1:1'], {more}}}}}");
    let checks = |more: &str| {
        let health = with(&upstream(more)).unwrap().upstreams[0].health.clone().unwrap();
        (health.tls, health.proxy_protocol, health.protocol)
    };
    assert_eq!(checks("health: {}"), (false, false, Protocol::Http1));
    assert_eq!(checks("health: {}, protocol: h2"), (false, false, Protocol::Http2));
    assert_eq!(checks("health: {}, tls: {}"), (true, false, Protocol::Auto));
    assert_eq!(checks("health: {}, tls: {}, proxy_protocol: v2"), (true, true, Protocol::Http1));
    assert_eq!(checks("health: {type: grpc}, tls: {}"), (true, false, Protocol::Http2));
    let plain = "health: {port: 2}, tls: {}, protocol: h2";
    assert_eq!(checks(plain), (false, false, Protocol::Http1), "another server");
    let other = "health: {port: 2, tls: true}, tls: {}, protocol: h2";
    assert_eq!(checks(other), (true, false, Protocol::Auto));
    only(
        &upstream("health: {tls: true}"),
        "this upstream says nothing about TLS, so that checks have none either",
        "true",
    );
    only(
        &upstream("health: {type: tcp, tls: true}, tls: {}"),
        "`tls` means nothing to a check of this type",
        "true",
    );
}

#[test]
fn who_chooses_the_protocol_needs_tls_and_has_it_by_default() {
    let upstream = |more: &str| format!("upstreams: {{a: {{endpoints: ['10.0.0.1:1'], {more}}}}}");
    let protocol = |more: &str| with(&upstream(more)).unwrap().upstreams[0].protocol;
    assert_eq!(protocol(""), Protocol::Http1);
    assert_eq!(protocol("tls: {}"), Protocol::Auto);
    assert_eq!(protocol("tls: {}, protocol: auto"), Protocol::Auto);
    assert_eq!(protocol("tls: {}, proxy_protocol: v2"), Protocol::Http1);
    only(
        &upstream("protocol: auto"),
        "endpoints choose the protocol while TLS is agreed on, and this upstream has no TLS",
        "auto",
    );
    for protocol in ["auto", "h2"] {
        only(
            &upstream(&format!("tls: {{}}, proxy_protocol: v2, protocol: {protocol}")),
            "connections of HTTP/2 are shared by clients, and the PROXY protocol names one",
            "proxy_protocol",
        );
    }
}
