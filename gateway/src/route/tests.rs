//! The table against a linear search, and the rules that a reader of a configuration relies on.

use proptest::prelude::*;

use super::*;
use crate::config::{PathPattern, Segment, parse};

/// A table of `METHODS? HOST?/PATH` lines; routes and upstreams have the same index.
fn table(lines: &[&str]) -> Table {
    let mut text = String::from("listen: [{address: 127.0.0.1:80}]\nupstreams:\n");
    for index in 0..lines.len() {
        text.push_str(&format!("  u{index}: {{endpoints: [echo]}}\n"));
    }
    text.push_str("routes:\n");
    for (index, line) in lines.iter().enumerate() {
        let (methods, place) = line.split_once(' ').unwrap_or(("", line));
        let (host, path) = place.split_at(place.find('/').unwrap());
        let host = if host.is_empty() { "~".to_owned() } else { format!("'{host}'") };
        text.push_str(&format!(
            "  - {{match: {{host: {host}, path: '{path}', methods: [{methods}]}}, upstream: u{index}}}\n"
        ));
    }
    let config = parse("routes.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    Table::new(&config.routes)
}

fn get(table: &Table, host: &str, path: &str) -> Option<usize> {
    let routed = table.find(&Method::GET, Some(host), path).ok()?;
    assert_eq!(routed.route(), routed.upstream());
    Some(routed.route())
}

#[test]
fn the_most_specific_path_wins_whatever_the_order() {
    let table = table(&["/{rest*}", "/a/{rest*}", "/a/{id}", "/a/b", "/a/{id}/c", "/", "/a/"]);
    let expected = [
        ("/", Some(5)),
        ("/x", Some(0)),
        ("/a", Some(0)),
        ("/a/", Some(6)),
        ("/a/b", Some(3)),
        ("/a/x", Some(2)),
        ("/a/b/c", Some(4)),
        ("/a/b/d", Some(1)),
        ("/a/x/", Some(1)),
        ("/a/x%2Fy", Some(2)),
    ];
    for (path, route) in expected {
        assert_eq!(get(&table, "any", path), route, "{path}");
    }
}

#[test]
fn a_route_of_the_host_goes_before_one_of_any() {
    let table =
        table(&["/a/b", "api.example.com/{rest*}", "PUT api.example.com/p", "[::1]/{rest*}"]);
    for host in
        ["api.example.com", "API.example.COM:443", "api.example.com.", "api.example.com.:80"]
    {
        assert_eq!(get(&table, host, "/a/b"), Some(1), "{host}");
    }
    assert_eq!(get(&table, "[::1]:8080", "/a/b"), Some(3));
    assert_eq!(get(&table, "[::1]", "/a/b"), Some(3));
    assert_eq!(get(&table, "other", "/a/b"), Some(0));
    assert_eq!(get(&table, "", "/a/b"), Some(0));
    assert_eq!(table.find(&Method::GET, None, "/a/b").map(Routed::route), Ok(0));
}

#[test]
fn methods_decide_among_what_matches() {
    let table = table(&["GET,PUT /a/b", "DELETE /a/{id}", "GET /c", "h/c"]);
    assert_eq!(table.find(&Method::DELETE, None, "/a/b").map(Routed::route), Ok(1));
    let allow = vec![Method::DELETE, Method::GET, Method::PUT];
    let refused = table.find(&Method::POST, None, "/a/b");
    assert_eq!(refused, Err(Refused::MethodNotAllowed { allow }));
    assert_eq!(table.find(&Method::POST, None, "/b"), Err(Refused::NotFound));
    assert_eq!(table.find(&Method::POST, Some("h"), "/c").map(Routed::route), Ok(3));
}

#[test]
fn paths_that_could_be_read_in_two_ways_are_refused() {
    let table = table(&["/{rest*}"]);
    let bad = [
        "",
        "*",
        "a",
        "/..",
        "/.",
        "/a/../b",
        "/a/./b",
        "/a/%2e%2E/b",
        "/a/.%2e",
        "/a/%2e",
        "//",
        "//a",
        "/a//b",
        "/a//",
        "/%2fa",
        "/a%2f%2fb",
        "/a/..%2fb",
        "/a%2f..",
        "/a\\b",
        "/a%5Cb",
        "/a%00",
        "/a\0",
        "/a%0d%0ab",
        "/a\n",
        "/%7f",
        "/a/..;x/b",
        "/a/.;",
        "/;/a",
        "/a/;x=1/b",
        "/a/..%3bx/b",
    ];
    for path in bad {
        assert_eq!(table.find(&Method::GET, None, path), Err(Refused::BadPath), "{path:?}");
    }
    let good = [
        "/",
        "/a/",
        "/...",
        "/a/..b",
        "/.well-known/x",
        "/a%2fb",
        "/a%2F",
        "/%",
        "/%2",
        "/%zz",
        "/a;x=1/b",
        "/;jsessionid=1",
        "/%252e%252e/",
        "/a..",
        "/\u{e9}",
        "/a.",
        "/a/.b./c",
    ];
    for path in good {
        assert_eq!(table.find(&Method::GET, None, path).map(Routed::route), Ok(0), "{path:?}");
    }
}

#[test]
fn ten_thousand_routes() {
    let lines: Vec<String> =
        (0..10_000).map(|index| format!("host{}.test/api/v{index}/{{id}}", index % 100)).collect();
    let table = table(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    for index in 0..10_000 {
        let host = format!("host{}.test", index % 100);
        assert_eq!(get(&table, &host, &format!("/api/v{index}/7")), Some(index));
        assert_eq!(get(&table, &host, &format!("/api/v{}/7", index + 1)), None);
    }
}

#[test]
fn a_path_of_many_segments_costs_no_more_than_the_deepest_pattern() {
    let table = table(&["/{a}/{b}/{rest*}", "/x/{b}/x/{c}"]);
    let path = "/x".repeat(100_000);
    assert_eq!(get(&table, "any", &path), Some(0));
}

/// The words of the module's documentation, one route after the other.
fn linear(routes: &[Route], method: &Method, host: &str, path: &str) -> Result<usize, Refused> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let mut matching: Vec<_> = routes
        .iter()
        .enumerate()
        .filter(|(_, route)| {
            let fits = |(pattern, segment): (&Segment, &&str)| match pattern {
                Segment::Literal(text) => text == segment,
                Segment::Capture(_) => !segment.is_empty(),
            };
            let length = route.path.segments.len();
            let long_enough = if route.path.rest.is_some() {
                segments.len() > length
            } else {
                segments.len() == length
            };
            route.host.as_deref().is_none_or(|own| own == host)
                && long_enough
                && route.path.segments.iter().zip(&segments).all(fits)
        })
        .collect();
    matching.sort_by_key(|(index, route)| {
        let mut ranks: Vec<u8> = route
            .path
            .segments
            .iter()
            .map(|segment| u8::from(matches!(segment, Segment::Capture(_))))
            .collect();
        ranks.extend(route.path.rest.as_ref().map(|_| 2));
        (route.host.is_none(), ranks, *index)
    });
    let takes = |route: &Route| route.methods.is_empty() || route.methods.contains(method);
    if let Some((index, _)) = matching.iter().find(|(_, route)| takes(route)) {
        return Ok(*index);
    }
    let mut allow: Vec<_> = matching.iter().flat_map(|(_, route)| route.methods.clone()).collect();
    allow.sort_by_key(|method| method.as_str().to_owned());
    allow.dedup();
    if allow.is_empty() { Err(Refused::NotFound) } else { Err(Refused::MethodNotAllowed { allow }) }
}

fn any_route() -> impl Strategy<Value = Route> {
    let segment =
        prop_oneof!["[ab]".prop_map(Segment::Literal), Just(Segment::Capture("name".to_owned())),];
    let path = (proptest::collection::vec(segment, 0..4), any::<bool>(), any::<bool>());
    let methods = proptest::sample::subsequence(vec![Method::GET, Method::PUT], 0..=2);
    let host = proptest::option::of("[hi]");
    (path, methods, host).prop_map(|((mut segments, rest, slash), methods, host)| {
        if !rest && (slash || segments.is_empty()) {
            segments.push(Segment::Literal(String::new()));
        }
        let path = PathPattern { segments, rest: rest.then(|| "rest".to_owned()) };
        let priority = crate::config::Priority::Normal;
        Route { name: String::new(), host, path, methods, upstream: 0, priority }
    })
}

proptest! {
    #[test]
    fn agrees_with_a_linear_search(
        routes in proptest::collection::vec(any_route(), 0..12),
        paths in proptest::collection::vec("(/[abc]){0,4}/?", 1..20),
        host in "[hij]",
        method in proptest::sample::select(vec![Method::GET, Method::PUT, Method::POST]),
    ) {
        let table = Table::new(&routes);
        for path in paths.iter().filter(|path| !path.is_empty()) {
            let found = table.find(&method, Some(&host), path).map(Routed::route);
            prop_assert_eq!(found, linear(&routes, &method, &host, path), "{}", path);
        }
    }

    #[test]
    fn no_path_or_host_makes_it_panic(path: String, host: String) {
        let table = table(&["/{a}/b", "h/{rest*}"]);
        drop(table.find(&Method::GET, Some(&host), &path));
        drop(table.find(&Method::GET, Some(&host), &format!("/{path}")));
    }
}
