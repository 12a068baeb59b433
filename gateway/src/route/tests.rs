//! The table against a linear search, and the rules that a reader of a configuration relies on.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::base::path::decoded;
use crate::config::{PathPattern, Predicate, Segment, Subject, Wanted, parse};

/// The routes of a list in YAML, which answer themselves.
fn routes(list: &str) -> Vec<Route> {
    let text = format!("listen: [{{address: 127.0.0.1:80}}]\nroutes:\n{list}");
    parse("routes.yaml", &text).unwrap_or_else(|errors| panic!("{errors}")).routes
}

/// A table of `METHODS? HOST?/PATH` lines.
fn table(lines: &[&str]) -> Table {
    let mut list = String::new();
    for line in lines {
        let (methods, place) = line.split_once(' ').unwrap_or(("", line));
        let (host, path) = place.split_at(place.find('/').unwrap());
        let host = if host.is_empty() { "~".to_owned() } else { format!("'{host}'") };
        list.push_str(&format!(
            "  - {{match: {{host: {host}, path: '{path}', methods: [{methods}]}}, respond: {{}}}}\n"
        ));
    }
    Table::new(&routes(&list))
}

/// Looks up a target (a path with or without a query) with header fields as `name: value` lines.
fn find(
    table: &Table,
    method: &Method,
    (host, target): (Option<&str>, &str),
    fields: &[&str],
) -> Result<usize, Refused> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let path = Path::of(path).unwrap_or_else(|| panic!("{path}"));
    let mut headers = HeaderMap::new();
    for field in fields {
        let (name, value) = field.split_once(": ").unwrap();
        let name = http::HeaderName::try_from(name).unwrap();
        headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    let ask = Ask { method, host, path: &path, query, headers: &headers };
    let found = table.find(&ask).map(Routed::route);
    let tried = table.candidates(&ask);
    let first = tried.iter().find(|one| one.takes_method && one.missed.is_none());
    if !matches!(found, Err(Refused::Ambiguous { .. })) {
        assert_eq!(found.clone().ok(), first.map(|one| one.route), "{tried:?}");
    }
    found
}

fn get(table: &Table, host: &str, target: &str) -> Option<usize> {
    find(table, &Method::GET, (Some(host), target), &[]).ok()
}

fn get_with(table: &Table, target: &str, fields: &[&str]) -> Option<usize> {
    find(table, &Method::GET, (None, target), fields).ok()
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
        ("/a/%62", Some(3)),
        ("/a/x", Some(2)),
        ("/a/b/c", Some(4)),
        ("/a/b/d", Some(1)),
        ("/a/x/", Some(1)),
    ];
    for (path, route) in expected {
        assert_eq!(get(&table, "any", path), route, "{path}");
    }
}

#[test]
fn a_route_of_the_host_goes_before_one_of_a_wildcard_before_one_of_any() {
    let table = table(&[
        "/a/b",
        "api.example.com/{rest*}",
        "PUT api.example.com/p",
        "[::1]/{rest*}",
        "*.example.com/{rest*}",
        "*.eu.example.com/{rest*}",
        "*.eu.example.com/only",
    ]);
    for host in
        ["api.example.com", "API.example.COM:443", "api.example.com.", "api.example.com.:80"]
    {
        assert_eq!(get(&table, host, "/a/b"), Some(1), "{host}");
    }
    assert_eq!(get(&table, "[::1]:8080", "/a/b"), Some(3));
    assert_eq!(get(&table, "[::1]", "/a/b"), Some(3));
    assert_eq!(get(&table, "b.example.com", "/a/b"), Some(4));
    assert_eq!(get(&table, "a.b.example.com:80", "/a/b"), Some(4));
    assert_eq!(get(&table, "X.EU.example.com", "/a/b"), Some(5));
    assert_eq!(get(&table, "y.x.eu.example.com", "/only"), Some(6));
    for host in ["other", "", "example.com", ".example.com", "xexample.com", "eu.example.com.evil"]
    {
        assert_eq!(get(&table, host, "/a/b"), Some(0), "{host}");
    }
    assert_eq!(get(&table, "eu.example.com", "/only"), Some(4));
    assert_eq!(find(&table, &Method::GET, (None, "/a/b"), &[]), Ok(0));
    let long = format!("{}example.com", "a.".repeat(200));
    assert_eq!(get(&table, &long, "/a/b"), Some(0), "longer than any host");
}

#[test]
fn methods_decide_among_what_matches() {
    let table = table(&["GET,PUT /a/b", "DELETE /a/{id}", "GET /c", "h/c"]);
    let any = |method, path| find(&table, &method, (None, path), &[]);
    assert_eq!(any(Method::DELETE, "/a/b"), Ok(1));
    let allow = vec![Method::DELETE, Method::GET, Method::PUT];
    assert_eq!(any(Method::POST, "/a/b"), Err(Refused::MethodNotAllowed { allow }));
    assert_eq!(any(Method::POST, "/b"), Err(Refused::NotFound));
    assert_eq!(find(&table, &Method::POST, (Some("h"), "/c"), &[]), Ok(3));
}

#[test]
fn where_predicates_fail_the_next_route_is_tried() {
    let table = Table::new(&routes(
        "
  - {match: {path: /a, headers: {X-Version: '2'}}, respond: {}}
  - {match: {path: /a, headers: {x-version: {prefix: '3.'}}, query: {debug: ''}}, respond: {}}
  - {match: {path: /a, query: {'a b': 'c+d'}}, respond: {}}
  - {match: {path: /a, cookies: {canary: {regex: 'a|b{2,3}'}}}, respond: {}}
  - {match: {path: /a, methods: [PUT], query: {q: {present: true}}}, respond: {}}
  - {match: {path: '/{x}', headers: {authorization: {present: false}}}, respond: {}}
  - {match: {path: '/{x*}'}, respond: {}}
",
    ));
    let none: &[&str] = &[];
    for (target, fields, route) in [
        ("/a", &["X-Version: 2"][..], 0),
        ("/a", &["x-version: 1", "x-version: 2"], 0),
        ("/a", &["x-version: 20"], 5),
        ("/a?debug", &["x-version: 3.1"], 1),
        ("/a?b=c&debug=&e", &["x-version: 3."], 1),
        ("/a?debug=1", &["x-version: 3.1"], 5),
        ("/a?x=1&a+b=c%2Bd", none, 2),
        ("/a?a%20b=c%2bd", none, 2),
        ("/a", &["cookie: x=y; canary=bb", "authorization: x"], 3),
        ("/a", &["cookie: x=y", "cookie: canary=a"], 3),
        ("/a", &["cookie: canary=ab"], 5),
        ("/a", &["cookie: canary=bbbb", "authorization: x"], 6),
        ("/a?q", none, 5),
    ] {
        assert_eq!(get_with(&table, target, fields), Some(route), "{target} {fields:?}");
    }
}

#[test]
fn only_where_the_method_alone_is_wrong_is_it_refused_as_such() {
    let table = Table::new(&routes(
        "
  - {match: {path: /a, methods: [PUT], query: {q: '1'}}, respond: {}}
  - {match: {path: /a, methods: [POST], query: {q: '2'}}, respond: {}}
",
    ));
    let get = |target| find(&table, &Method::GET, (None, target), &[]);
    assert_eq!(get("/a"), Err(Refused::NotFound));
    let allow = vec![Method::PUT];
    assert_eq!(get("/a?q=1"), Err(Refused::MethodNotAllowed { allow }));
    let allow = vec![Method::POST, Method::PUT];
    assert_eq!(get("/a?q=1&q=2"), Err(Refused::MethodNotAllowed { allow }));
}

#[test]
fn encoded_characters_are_what_they_stand_for() {
    let table = table(&["/{rest*}", "/users/@me", "/caf%c3%a9", "/a%7Bb"]);
    for (path, route) in [
        ("/users/@me", 1),
        ("/users/%40me", 1),
        ("/%75sers/%40%6De", 1),
        ("/caf\u{e9}", 2),
        ("/caf%C3%A9", 2),
        ("/caf%E9", 0),
        ("/a{b", 3),
        ("/users/%2540me", 0),
    ] {
        assert_eq!(get(&table, "any", path), Some(route), "{path}");
    }
}

#[test]
fn a_path_that_servers_read_in_two_ways_leads_to_one_route_or_nowhere() {
    let list = "
  - {match: {path: '/{rest*}'}, respond: {}}
  - {match: {path: '/admin/{rest*}'}, respond: {}}
  - {match: {path: '/keep/{rest*}'}, respond: {}, encoded_slash: keep, path_parameters: keep}
  - {match: {path: '/keep/admin/{rest*}'}, respond: {}}
  - {match: {path: '/refuse/{rest*}'}, respond: {}, encoded_slash: refuse, path_parameters: refuse}
  - {match: {path: '/projects/{id}'}, respond: {}}
  - {match: {path: '/gitlab/{id}'}, respond: {}, encoded_slash: keep}
";
    let table = Table::new(&routes(list));
    for (path, route) in [
        ("/a%2Fb/c", Some(0)),
        ("/a;x=1/c;y", Some(0)),
        ("/a;x%2Fy", Some(0)),
        ("/a%2Fb;x", Some(0)),
        ("/admin%2Fusers", None),
        ("/admin;x/users", None),
        ("/admin%3bx/users", None),
        ("/admin;x%2Fusers", None),
        ("/admin/a%2Fb;c", Some(1)),
        ("/keep/a%2Fb", Some(2)),
        ("/keep/admin%2Fb;x", Some(2)),
        ("/refuse/a%2Fb", None),
        ("/refuse/a;b", None),
        ("/refuse/a%40b", Some(4)),
        ("/projects/group%2Fproject", None),
        ("/gitlab/group%2Fproject", Some(6)),
        ("/gitlab/group%2Fproject;x", Some(6)),
    ] {
        let found = find(&table, &Method::GET, (None, path), &[]);
        assert_eq!(found.clone().ok(), route, "{path}");
        let ambiguous = matches!(found, Err(Refused::Ambiguous { .. }));
        assert_eq!(ambiguous, route.is_none(), "{path}");
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
fn linear(routes: &[Route], ask: &Ask<'_>) -> Result<usize, Refused> {
    let first = best(routes, ask)?;
    let ambiguity = ask.path.ambiguity();
    let route = &routes[first];
    let slashes = if ambiguity.slashes { route.encoded_slash } else { Ambiguity::Keep };
    let parameters = if ambiguity.parameters { route.path_parameters } else { Ambiguity::Keep };
    let ambiguous = Refused::Ambiguous { reading: ambiguity };
    if slashes == Ambiguity::Refuse || parameters == Ambiguity::Refuse {
        return Err(ambiguous);
    }
    for cut_first in [false, true] {
        for (split, cut) in [(false, true), (true, false), (true, true)] {
            if split && slashes == Ambiguity::Keep || cut && parameters == Ambiguity::Keep {
                continue;
            }
            let text = ask.path.as_str().to_owned();
            let splitting = |text: String| if split { text.replace("%2F", "/") } else { text };
            let cutting = |text: String| {
                let text = text.replace("%3B", ";");
                let plain = |segment: &str| segment.split(';').next().unwrap().to_owned();
                if cut { text.split('/').map(plain).collect::<Vec<_>>().join("/") } else { text }
            };
            let text = if cut_first { splitting(cutting(text)) } else { cutting(splitting(text)) };
            let path = Path::of(&text).unwrap();
            if best(routes, &Ask { path: &path, ..*ask }) != Ok(first) {
                return Err(ambiguous);
            }
        }
    }
    Ok(first)
}

fn best(routes: &[Route], ask: &Ask<'_>) -> Result<usize, Refused> {
    let segments: Vec<_> = ask.path.as_str().split('/').skip(1).map(decoded).collect();
    let host = ask.host.unwrap();
    let mut matching: Vec<_> = routes
        .iter()
        .enumerate()
        .filter(|(_, route)| {
            let fits = |(pattern, segment): (&Segment, &Cow<'_, [u8]>)| match pattern {
                Segment::Literal(text) => decoded(text) == *segment,
                Segment::Capture(_) => !segment.is_empty(),
            };
            let length = route.path.segments.len();
            let long_enough = if route.path.rest.is_some() {
                segments.len() > length
            } else {
                segments.len() == length
            };
            let of_host = match &route.host {
                HostPattern::Any => true,
                HostPattern::Exact(own) => own == host,
                HostPattern::Wildcard(suffix) => {
                    host.ends_with(suffix.as_str()) && host.len() > suffix.len()
                }
            };
            of_host
                && long_enough
                && route.path.segments.iter().zip(&segments).all(fits)
                && route.predicates.iter().all(|one| predicate::holds(one, ask))
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
        let host = match &route.host {
            HostPattern::Exact(_) => 0,
            HostPattern::Wildcard(suffix) => 1000 - suffix.len(),
            HostPattern::Any => 1000,
        };
        (host, ranks, *index)
    });
    let takes = |route: &Route| route.methods.is_empty() || route.methods.contains(ask.method);
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
        prop_oneof!["[ab@]".prop_map(Segment::Literal), Just(Segment::Capture("name".to_owned())),];
    let path = (proptest::collection::vec(segment, 0..4), any::<bool>(), any::<bool>());
    let methods = proptest::sample::subsequence(vec![Method::GET, Method::PUT], 0..=2);
    let host = prop_oneof![
        Just(HostPattern::Any),
        "[hi]\\.t".prop_map(HostPattern::Exact),
        "\\.([hi]\\.)?t".prop_map(HostPattern::Wildcard),
    ];
    let predicate = ("[xy]", "[12]").prop_map(|(name, text)| Predicate {
        subject: Subject::Query(name),
        wanted: Wanted::Exact(text),
    });
    let predicates = proptest::collection::vec(predicate, 0..2);
    let setting =
        || proptest::sample::select(vec![Ambiguity::SameRoute, Ambiguity::Keep, Ambiguity::Refuse]);
    (path, methods, host, predicates, setting(), setting()).prop_map(
        |((mut segments, rest, slash), methods, host, predicates, slashes, parameters)| {
            if !rest && (slash || segments.is_empty()) {
                segments.push(Segment::Literal(String::new()));
            }
            let path = PathPattern { segments, rest: rest.then(|| "rest".to_owned()) };
            Route {
                host,
                methods,
                predicates,
                encoded_slash: slashes,
                path_parameters: parameters,
                ..Route::new("any", path, 0)
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn agrees_with_a_linear_search(
        routes in proptest::collection::vec(any_route(), 0..12),
        paths in proptest::collection::vec("(/[abc@]|/%40|%2F[ab]|;[xa]){0,4}/?", 1..20),
        host in "([hij]\\.)?[hij]\\.t",
        method in proptest::sample::select(vec![Method::GET, Method::PUT, Method::POST]),
        query in "([xy]=[12]&){0,2}",
    ) {
        let table = Table::new(&routes);
        for path in &paths {
            let Some(normal) = Path::of(path) else { continue };
            let ask = Ask {
                method: &method,
                host: Some(&host),
                path: &normal,
                query: Some(&query),
                headers: &HeaderMap::new(),
            };
            let found = table.find(&ask).map(Routed::route);
            let mut expected = linear(&routes, &ask);
            if let (Err(Refused::Ambiguous { .. }), Err(Refused::Ambiguous { reading })) =
                (&found, &mut expected)
            {
                // Which of the readings is named is of no importance.
                let Err(Refused::Ambiguous { reading: named }) = &found else { continue };
                *reading = *named;
            }
            prop_assert_eq!(found, expected, "{} {}", host, path);
        }
    }

    #[test]
    fn no_path_host_or_query_makes_it_panic(path: String, host: String, query: String) {
        let table = table(&["/{a}/b", "h/{rest*}", "*.h/{rest*}"]);
        let path = format!("/{path}");
        if let Some(path) = Path::of(&path) {
            let ask = Ask {
                method: &Method::GET,
                host: Some(&host),
                path: &path,
                query: Some(&query),
                headers: &HeaderMap::new(),
            };
            drop(table.find(&ask));
        }
    }
}
