//! Takes credentials out of requests before services get them.

use http::header::{COOKIE, Entry, HeaderValue};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};

use super::place::decoded;
use crate::config::CredentialPlace;

/// Takes what stands in `place` out of `head`; in a field that several schemes share, only what is `ours`.
pub(super) fn strip(place: &CredentialPlace, head: &mut Parts, ours: impl Fn(&[u8]) -> bool) {
    match place {
        CredentialPlace::Header(name, None) => {
            head.headers.remove(name);
        }
        CredentialPlace::Header(name, Some(scheme)) => {
            let Entry::Occupied(mut entry) = head.headers.entry(name) else { return };
            let is_ours = |value: &HeaderValue| {
                let split = value.as_bytes().split_at_checked(scheme.len());
                split.is_some_and(|(before, after)| {
                    before.eq_ignore_ascii_case(scheme.as_bytes()) && ours(after.trim_ascii())
                })
            };
            if !entry.iter().any(is_ours) {
                return;
            }
            let left: Vec<_> = entry.iter().filter(|value| !is_ours(value)).cloned().collect();
            let mut left = left.into_iter();
            match left.next() {
                Some(first) => drop(entry.insert(first)),
                None => {
                    entry.remove();
                    return;
                }
            }
            left.for_each(|value| entry.append(value));
        }
        CredentialPlace::Cookie(name) => cookie(name, head),
        CredentialPlace::Query(name) => query(name, head),
    }
}

fn cookie(name: &str, head: &mut Parts) {
    let is_named = |pair: &&[u8]| {
        let before = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        before.trim_ascii() == name.as_bytes()
    };
    let pairs = |field: &HeaderValue| field.as_bytes().split(|b| *b == b';').any(|p| is_named(&p));
    if !head.headers.get_all(COOKIE).iter().any(pairs) {
        return;
    }
    let Entry::Occupied(entry) = head.headers.entry(COOKIE) else { return };
    let (_, fields) = entry.remove_entry_mult();
    let fields: Vec<HeaderValue> = fields.collect();
    for field in fields {
        let pairs = field.as_bytes().split(|byte| *byte == b';');
        let left: Vec<_> = pairs.filter(|pair| !is_named(pair)).map(<[u8]>::trim_ascii).collect();
        match HeaderValue::from_bytes(&left.join(&b"; "[..])) {
            Ok(field) if !field.is_empty() => drop(head.headers.append(COOKIE, field)),
            _ => {}
        }
    }
}

fn query(name: &str, head: &mut Parts) {
    let Some(query) = head.uri.query() else { return };
    let is_named = |parameter: &&str| {
        let before = parameter.split_once('=').map_or(*parameter, |(before, _)| before);
        *decoded(before) == *name.as_bytes()
    };
    if !query.split('&').any(|parameter| is_named(&parameter)) {
        return;
    }
    let left: Vec<&str> = query.split('&').filter(|parameter| !is_named(parameter)).collect();
    let target = match left.is_empty() {
        true => head.uri.path().to_owned(),
        false => format!("{}?{}", head.uri.path(), left.join("&")),
    };
    // A part of what was a target is one.
    let Ok(target) = PathAndQuery::try_from(target) else { return };
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.path_and_query = Some(target);
    head.uri = Uri::from_parts(parts).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use http::header::AUTHORIZATION;

    fn head(uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::get(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn all(head: &Parts, name: &str) -> Vec<String> {
        let values = head.headers.get_all(name).iter();
        values.map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn of_a_field_that_is_shared_only_our_own_goes() {
        let bearer = CredentialPlace::Header(AUTHORIZATION, Some("Bearer".to_owned()));
        let ours = |credential: &[u8]| credential.starts_with(b"gw_");
        for (fields, left) in [
            (vec!["Bearer gw_1"], vec![]),
            (vec!["bearer  gw_1", "Bearer a.b.c", "bearer gw_2"], vec!["Bearer a.b.c"]),
            (vec!["Basic gw_1"], vec!["Basic gw_1"]),
            (vec!["Bear"], vec!["Bear"]),
        ] {
            let fields: Vec<_> = fields.iter().map(|field| ("authorization", *field)).collect();
            let mut head = head("/", &fields);
            strip(&bearer, &mut head, ours);
            assert_eq!(all(&head, "authorization"), left, "{fields:?}");
        }
    }

    #[test]
    fn other_cookies_stay() {
        let place = CredentialPlace::Cookie("key".to_owned());
        for (fields, left) in [
            (vec!["a=1; key=x;b=2"], vec!["a=1; b=2"]),
            (vec!["key=x"], vec![]),
            (vec!["key"], vec![]),
            (vec!["a=1", "key=x; key=y", "KEY=1"], vec!["a=1", "KEY=1"]),
            (vec!["a=key=x;  b"], vec!["a=key=x;  b"]),
        ] {
            let fields: Vec<_> = fields.iter().map(|field| ("cookie", *field)).collect();
            let mut head = head("/", &fields);
            strip(&place, &mut head, |_| true);
            assert_eq!(all(&head, "cookie"), left, "{fields:?}");
        }
    }

    #[test]
    fn other_parameters_stay_as_they_are() {
        let place = CredentialPlace::Query("key".to_owned());
        for (target, left) in [
            ("/a?key=x", "/a"),
            ("/a?b=%20&%6bey=x&c", "/a?b=%20&c"),
            ("/a?key&key=&b", "/a?b"),
            ("/a?keys=1&KEY=2", "/a?keys=1&KEY=2"),
            ("/key=x", "/key=x"),
        ] {
            let mut head = head(target, &[]);
            strip(&place, &mut head, |_| true);
            assert_eq!(head.uri, left);
        }
        let mut head = head("http://example.com/a?key=x&b", &[]);
        strip(&place, &mut head, |_| true);
        assert_eq!(head.uri, "http://example.com/a?b");
    }
}
