//! No path, host, query or header field makes the table panic; what it routes has no segment that a normalizer would
//! remove, leads to one route however it is read, and can be rewritten only to a path of which the same is true.
#![no_main]

use std::sync::LazyLock;

use gateway::base::path::{Path, Reading, decoded};
use gateway::config::{Action, Route, parse};
use gateway::route::{Ask, Refused, Table};
use gateway::transform::target::{expand, rewrite};
use http::{HeaderMap, HeaderValue, Method, Uri};
use libfuzzer_sys::fuzz_target;

static ROUTES: LazyLock<(Vec<Route>, Table)> = LazyLock::new(|| {
    let text = "
listen: [{address: 127.0.0.1:80}]
upstreams: {u: {endpoints: [echo]}, v: {endpoints: [echo]}}
routes:
  - {match: {path: '/{rest*}'}, upstream: u, rewrite: '/x{rest}'}
  - {match: {path: '/a/{b}/c', methods: [GET]}, upstream: u, rewrite: '/{b}?b={b}&{query}'}
  - {match: {path: '/a/{b}/{c*}', query: {q: {regex: '[a-c]+'}}}, upstream: u, rewrite: '/.{c}'}
  - {match: {path: '/a/{b}/{c*}', cookies: {k: {prefix: v}}}, redirect: {to: 'https://{b}.t/{c}'}}
  - {match: {host: h, path: '/a/b', methods: [PUT]}, upstream: u}
  - {match: {host: '*.h', path: '/{a}/{b*}'}, upstream: [u, v], sticky: {cookie: k}}
";
    let routes = parse("fuzz.yaml", text).unwrap_or_else(|errors| panic!("{errors}")).routes;
    let table = Table::new(&routes);
    (routes, table)
});

fuzz_target!(|input: (&str, &str, Option<&str>, &[u8])| {
    let (host, text, query, cookie) = input;
    let Some(path) = Path::of(text) else { return };
    is_plain(&path);
    let mut headers = HeaderMap::new();
    if let Ok(cookie) = HeaderValue::from_bytes(cookie) {
        headers.insert("cookie", cookie);
    }
    let (routes, table) = &*ROUTES;
    let ask = Ask { method: &Method::GET, host: Some(host), path: &path, query, headers: &headers };
    let routed = match table.find(&ask) {
        Ok(routed) => routed,
        Err(Refused::Ambiguous { reading }) => {
            assert!(reading.slashes || reading.parameters, "{text:?}");
            return;
        }
        Err(refused) => panic!("{text:?}: {refused}"),
    };
    let route = &routes[routed.route()];
    let target = format!("{}?{}", path.as_str(), query.unwrap_or_default());
    let Ok(mut uri) = target.parse::<Uri>() else { return };
    match &route.action {
        Action::Forward(forward) => {
            let choice = routed.choose(forward, &headers, [192, 0, 2, 1].into(), || 7);
            let upstream = choice.of_caller(forward, None, || 0).upstream();
            assert!(upstream.is_some_and(|upstream| upstream < 2));
            if let Some(template) = &forward.rewrite
                && rewrite(template, &route.path, &mut uri).is_ok()
            {
                is_plain(&Path::of(uri.path()).expect("a path that has been rewritten"));
            }
        }
        Action::Redirect(redirect) => {
            if let Ok(location) = expand(&redirect.to, &route.path, &uri, Some(host)) {
                let host =
                    location.strip_prefix("https://").and_then(|rest| rest.split('/').next());
                assert!(host.is_some_and(|host| host.ends_with(".t")), "{location:?}");
                let uri: Uri = location.parse().expect("a location is a URI");
                assert_eq!(uri.authority().map(|authority| authority.as_str()), host);
            }
        }
        Action::Respond(_) => {}
    }
});

/// That no reading has a segment that a normalizer would remove.
fn is_plain(path: &Path<'_>) {
    assert_eq!(Path::of(path.as_str()).expect("a normal form has one").into_changed(), None);
    for (slashes, parameters) in [(false, false), (false, true), (true, false), (true, true)] {
        let read = path.read(Reading { slashes, parameters }).expect("a reading");
        let bytes = decoded(read.as_str()).into_owned();
        let mut segments = bytes.split(|byte| *byte == b'/').skip(1).peekable();
        while let Some(segment) = segments.next() {
            assert!(segment != b"." && segment != b"..", "{path:?}");
            assert!(!segment.is_empty() || segments.peek().is_none(), "{path:?}");
        }
        assert!(!bytes.iter().any(|byte| *byte == b'\\' || *byte < 0x20 || *byte == 0x7f));
    }
}
