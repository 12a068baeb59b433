//! Routes from text to what they mean, or to their mistakes.

use super::*;
use crate::config::tests::{only, with, wrong};

#[test]
fn routes_and_patterns() {
    let routes = |list: &str| format!("upstreams: {{u: {{endpoints: [echo]}}}}\nroutes:\n{list}");
    let route = |keys: &str| routes(&format!("  - {{match: {{{keys}}}, upstream: u}}"));
    let config =
        with(&route("host: API.Example.com., path: '/a/{id}/{rest*}', methods: [GET, PURGE]"));
    let route_read = config.unwrap().routes.remove(0);
    assert_eq!(route_read.name, "GET,PURGE api.example.com/a/{id}/{rest*}");
    assert_eq!(route_read.path.rest.as_deref(), Some("rest"));
    for path in
        ["", "a", "/a//b", "/{a}b", "/{}", "/{a*}/b", "/{a}/{a}", "/../a", "/%2E%2e", "/a b"]
    {
        assert_eq!(wrong(&route(&format!("path: '{path}'"))).len(), 1, "{path}");
    }
    for host in ["*", "a.*.example.com", "*a.b", "*.", "http://a", "a:80", "a..b", "", "[::g]"] {
        assert_eq!(wrong(&route(&format!("path: /, host: '{host}'"))).len(), 1, "{host}");
    }
    for method in ["get", "GTE", "CONNECT", "''"] {
        assert_eq!(wrong(&route(&format!("path: /, methods: [{method}]"))).len(), 1, "{method}");
    }
    let two = |one: &str, other: &str| {
        with(&routes(&format!(
            "  - {{match: {{path: '/{{a}}'{one}}}, upstream: u}}\n  \
             - {{match: {{path: '/{{b}}'{other}}}, upstream: u}}"
        )))
    };
    assert!(two("", "").is_err() && two("", ", methods: [GET]").is_err());
    assert!(two(", methods: [GET, PUT]", ", methods: [GET]").is_err());
    assert!(two(", methods: [GET]", "").is_ok() && two(", host: a", "").is_ok());
    assert!(two(", methods: [GET]", ", methods: [GET, PUT]").is_ok());
}

/// A file with these routes and two upstreams.
fn with_routes(list: &[&str]) -> String {
    let mut text =
        "upstreams: {u: {endpoints: [echo]}, v: {endpoints: [echo]}}\nroutes:\n".to_owned();
    for keys in list {
        text.push_str(&format!("  - {{{keys}}}\n"));
    }
    text
}

#[test]
fn what_a_route_does() {
    let text = with_routes(&[
        "match: {host: '*.Example.com', path: '/{id}', headers: {X-V: '2', x-w: {regex: 'a+'}}, \
         query: {q: {prefix: b}}, cookies: {c: {present: false}}}, \
         upstream: [{name: v, weight: 5}, u], sticky: {cookie: canary}, \
         rewrite: '/x/{id}?{query}', encoded_slash: keep, \
         request_headers: {set: {Host: h}, remove: [A]}, response_headers: {add: {B: c}}",
        "match: {path: '/a/{rest*}'}, redirect: {status: 308, to: 'https://{host}/{rest}'}",
        "match: {path: /b}, respond: {status: 404, body: gone}",
        "match: {path: /c}, respond: {}",
        "match: {path: /d}, upstream: u",
    ]);
    let routes = with(&text).unwrap_or_else(|errors| panic!("{errors}")).routes;
    let first = &routes[0];
    assert_eq!(first.host, HostPattern::Wildcard(".example.com".to_owned()));
    assert_eq!(first.name, "*.example.com/{id}");
    let shown: Vec<_> = first.predicates.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "header `x-v` is `2`",
            "header `x-w` matches `a+`",
            "query parameter `q` begins with `b`",
            "cookie `c` is not there"
        ]
    );
    assert_eq!(
        (first.encoded_slash, first.path_parameters),
        (Ambiguity::Keep, Ambiguity::SameRoute)
    );
    let Action::Forward(forward) = &first.action else { panic!("{first:?}") };
    let targets: Vec<_> = forward.upstreams.iter().map(|t| (t.upstream, t.weight)).collect();
    assert_eq!(targets, [(1, 5), (0, 1)]);
    assert_eq!(forward.sticky, Some(Sticky::Cookie("canary".to_owned())));
    assert_eq!(first.request_headers.set.len() + first.request_headers.remove.len(), 2);
    let Action::Redirect(redirect) = &routes[1].action else { panic!("{routes:?}") };
    assert_eq!(redirect.status, 308);
    let Action::Respond(respond) = &routes[2].action else { panic!("{routes:?}") };
    assert_eq!((respond.status.as_u16(), respond.headers.len()), (404, 1));
    let Action::Respond(respond) = &routes[3].action else { panic!("{routes:?}") };
    assert_eq!((respond.status.as_u16(), respond.headers.len()), (200, 0));
    let Action::Forward(forward) = &routes[4].action else { panic!("{routes:?}") };
    assert_eq!((&forward.sticky, &forward.rewrite), (&None, &None));
}

#[test]
fn mistakes_in_what_a_route_does() {
    let route = |keys: &str| with_routes(&[&format!("match: {{path: '/{{id}}'}}, {keys}")]);
    for (keys, message, pointed) in [
        ("name: a", "the route says nothing about what to do", "{"),
        ("upstream: u, respond: {}", "`respond` cannot stand beside `upstream`", "respond"),
        (
            "respond: {}, body_bytes: 1",
            "`body_bytes` means nothing without `upstream`",
            "body_bytes",
        ),
        ("respond: {}, rewrite: /", "`rewrite` means nothing without `upstream`", "rewrite"),
        ("respond: {}, timeout: {}", "`timeout` means nothing without `upstream`", "timeout"),
        ("upstream: u, timeout: {response: 0s}", "`0s` leaves no time at all", "0s"),
        (
            "respond: {}, sticky: client_address",
            "`sticky` means nothing without `upstream`",
            "sticky",
        ),
        (
            "upstream: u, sticky: client_address",
            "`sticky` means nothing with one upstream",
            "sticky",
        ),
        ("upstream: [u, v], sticky: often", "`sticky` is one of four things", "often"),
        (
            "upstream: [u, v], sticky: consumer",
            "nobody is known on this route, so all would go by chance",
            "consumer",
        ),
        ("upstream: [u, w]", "there is no upstream `w`", "w"),
        ("upstream: [u, u]", "the upstream `u` is given twice", "u"),
        ("upstream: []", "a route with 0 upstreams cannot be", "upstream"),
        ("upstream: [{name: u, weight: 1000001}, v]", "1000001 is out of bounds", "1000001"),
        (
            "upstream: [{name: u, weight: 0}]",
            "no upstream of this route would get a request",
            "upstream",
        ),
        ("upstream: u, body_bytes: 2048GiB", "2199023255552 bytes is out of bounds", "2048GiB"),
        ("upstream: u, body_bytes: unlimited", "`unlimited` is no size", "unlimited"),
        ("upstream: u, rewrite: x", "`x` does not start with `/`", "x"),
        ("upstream: u, rewrite: '/{no}'", "there is no capture `no`", "'/{no}'"),
        ("upstream: u, rewrite: '/{host}'", "there is no capture `host`", "'/{host}'"),
        (
            "upstream: u, rewrite: '/{query}'",
            "`/{query}` has a part where it cannot be",
            "'/{query}'",
        ),
        ("upstream: u, rewrite: '/{id'", "`/{id` has braces without a name in them", "'/{id'"),
        ("upstream: u, rewrite: '/id}'", "`/id}` has a brace too many", "'/id}'"),
        (
            "upstream: u, rewrite: '/../{id}'",
            "`/../{id}` is no path that the gateway would take",
            "'/../{id}'",
        ),
        ("upstream: u, rewrite: '/a#b'", "the target `/a#b` has the character '#'", "'/a#b'"),
    ] {
        only(&route(keys), message, pointed);
    }
}

#[test]
fn mistakes_in_what_a_route_answers_and_changes() {
    let route = |keys: &str| with_routes(&[&format!("match: {{path: '/{{id}}'}}, {keys}")]);
    for (keys, message, pointed) in [
        ("redirect: {to: ftp}", "`ftp` does not start with `/`", "ftp"),
        ("redirect: {to: 'https://u@h/'}", "`https://***@h/` has no host that can be", "***"),
        ("redirect: {to: 'https:///'}", "`https:///` has no host that can be", "'https:///'"),
        ("redirect: {to: /, status: 200}", "200 is no status of a redirect", "200"),
        ("redirect: {status: 301}", "`to` is missing", "redirect"),
        ("respond: {status: 101}", "101 is out of bounds", "101"),
        ("respond: {status: 204, body: a}", "an answer with status 204 has no body", "body"),
        ("respond: {headers: {'a b': c}}", "`a b` is no name of a header field", "'a b'"),
        ("respond: {headers: {TE: c}}", "the header `te` is the gateway's own", "TE"),
        (
            "upstream: u, request_headers: {set: {x-forwarded-for: a}}",
            "the header `x-forwarded-for` is the gateway's own",
            "x-forwarded-for",
        ),
        (
            "upstream: u, request_headers: {remove: [host]}",
            "a request has exactly one header `host`",
            "request_headers",
        ),
        (
            "upstream: u, response_headers: {set: {a: ' b'}}",
            "` b` is no value of a header field",
            "' b'",
        ),
        (
            "upstream: u, encoded_slash: no",
            "expected `same_route` or `keep` or `refuse`, found `no`",
            "no",
        ),
    ] {
        only(&route(keys), message, pointed);
    }
    let mut many = String::new();
    for number in 0..33 {
        many.push_str(&format!("x-{number}: a, "));
    }
    let many = route(&format!("upstream: u, response_headers: {{set: {{{many}}}}}"));
    assert_eq!(wrong(&many)[0].0, "33 header fields are too many");
}

#[test]
fn conditions_of_routes() {
    let route = |keys: &str| with_routes(&[&format!("match: {{path: /a, {keys}}}, upstream: u")]);
    for (keys, message, pointed) in [
        ("headers: {Host: a}", "the header `host` is matched by its own key", "Host"),
        ("headers: {'a b': a}", "`a b` is no name of a header field", "'a b'"),
        ("cookies: {'a=b': a}", "`a=b` is no name of a cookie", "'a=b'"),
        ("query: {q: {regex: '('}}", "`(` is no regular expression that can be used", "'('"),
        (
            "query: {q: {regex: '(?:a{1000}){1000}'}}",
            "`(?:a{1000}){1000}` is no regular expression that can be used",
            "'(?:a{1000}){1000}'",
        ),
        (
            "query: {q: {}}",
            "exactly one of `exact`, `prefix`, `regex` and `present` must be given",
            "{",
        ),
        (
            "query: {q: {exact: a, prefix: a}}",
            "exactly one of `exact`, `prefix`, `regex` and `present` must be given",
            "{",
        ),
        (
            "query: {q: [a]}",
            "expected a text or a section with `exact`, `prefix`, `regex` or `present`, found a list",
            "[",
        ),
        (
            "query: {a: '', b: '', c: '', d: '', e: '', f: '', g: '', h: '', i: ''}",
            "9 conditions are too many for one route",
            "match",
        ),
    ] {
        only(&route(keys), message, pointed);
    }
    // An expression cannot get out of the whole that it has to match.
    let regex = Regex::new("a|b").unwrap();
    assert!(regex.is_match(b"a") && !regex.is_match(b"ax") && !regex.is_match(b"xb"));
    assert!(Regex::new("a)|(?:b").is_err());
}

#[test]
fn a_route_that_earlier_ones_leave_nothing_for() {
    let taken = |earlier: &[&str], later: &str| {
        let routes: Vec<String> = earlier
            .iter()
            .chain([&later])
            .map(|keys| format!("match: {{path: '/a/{{x}}', {keys}}}, upstream: u"))
            .collect();
        let routes: Vec<&str> = routes.iter().map(String::as_str).collect();
        with(&with_routes(&routes)).is_err()
    };
    assert!(taken(&[""], "headers: {a: b}"));
    assert!(taken(&["headers: {a: b}"], "query: {c: d}, headers: {A: b}"));
    assert!(taken(&["headers: {a: {present: true}}"], "headers: {a: {regex: b}}"));
    assert!(taken(&["headers: {a: {prefix: b}}"], "headers: {a: bc}"));
    assert!(taken(&["headers: {a: {regex: 'b+'}}"], "headers: {a: bbb}"));
    assert!(taken(&["methods: [GET]", "methods: [PUT]"], "methods: [GET, PUT], query: {a: b}"));
    assert!(!taken(&["headers: {a: b}"], ""));
    assert!(!taken(&["headers: {a: b}"], "headers: {a: c}"));
    assert!(!taken(&["headers: {a: {present: true}}"], "headers: {a: {present: false}}"));
    assert!(!taken(&["headers: {a: b}, methods: [GET]"], "headers: {a: b}"));
    assert!(!taken(&["host: '*.a.b'"], "host: c.a.b"));
    assert!(!taken(&["query: {a: b}"], "cookies: {a: b}"));
    let spelled = ["match: {path: /a@}, upstream: u", "match: {path: /%61%40}, upstream: u"];
    only(&with_routes(&spelled), "this route never matches: `/a%40` is taken before", "/%61%40");
    let same: Vec<String> = (0..65)
        .map(|number| format!("match: {{path: /a, query: {{n: '{number}'}}}}, upstream: u"))
        .collect();
    let same: Vec<&str> = same.iter().map(String::as_str).collect();
    assert!(with(&with_routes(&same[..64])).is_ok());
    only(&with_routes(&same), "more than 64 routes have this host and path", "/a");
    let config = with(&with_routes(&same[..2])).unwrap();
    assert_eq!([&config.routes[0].name, &config.routes[1].name], ["/a", "/a #2"]);
}

#[test]
fn a_pattern_with_what_its_route_refuses() {
    let route = |keys: &str| with_routes(&[&format!("match: {{path: {keys}, upstream: u")]);
    only(&route("/a%2Fb}"), "the path has `%2F`, which this route refuses", "/a%2Fb");
    only(&route("/a;b}"), "the path has `;`, which this route refuses", "/a;b");
    assert!(with(&route("/a%2Fb}, encoded_slash: keep")).is_ok());
    assert!(with(&route("/a;b}, path_parameters: keep")).is_ok());
    for path in ["/%zz", "/a%00", "/..;a", "/%C0%AE"] {
        assert_eq!(wrong(&route(&format!("'{path}'}}"))).len(), 1, "{path}");
    }
}
