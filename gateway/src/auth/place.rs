//! Finds a credential in a request, and takes it out before a service gets it. One that is there twice is not taken for
//! one: which of the two others take is unknown.

use std::borrow::Cow;

use http::HeaderName;
use http::header::{COOKIE, Entry, HeaderValue};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};

use crate::base::path::decoded;
use crate::config::CredentialPlace;

/// A credential as it was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'r> {
    /// None of the places has one.
    Nothing,
    /// The first place that has one.
    One(Cow<'r, [u8]>),
    /// More than one where there may be one.
    Several,
}

/// Looks into `places`, by precedence.
pub(super) fn find<'r>(places: &[CredentialPlace], head: &'r Parts) -> Found<'r> {
    let found = places.iter().map(|place| match place {
        CredentialPlace::Header(name, scheme) => in_header(name, scheme.as_deref(), head),
        CredentialPlace::Cookie(name) => in_cookie(name, head),
        CredentialPlace::Query(name) => in_query(name, head),
    });
    found.into_iter().find(|found| *found != Found::Nothing).unwrap_or(Found::Nothing)
}

fn only<'r>(mut values: impl Iterator<Item = Cow<'r, [u8]>>) -> Found<'r> {
    match (values.next(), values.next()) {
        (None, _) => Found::Nothing,
        (Some(value), None) => Found::One(value),
        (Some(_), Some(_)) => Found::Several,
    }
}

/// A field of another scheme is another kind of credential.
fn in_header<'r>(name: &HeaderName, scheme: Option<&str>, head: &'r Parts) -> Found<'r> {
    let values = head.headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    only(values.filter_map(|value| {
        let Some(scheme) = scheme else { return Some(Cow::Borrowed(value.trim_ascii())) };
        let (before, after) = value.split_at_checked(scheme.len())?;
        let is_alone = after.first().is_none_or(|byte| *byte == b' ');
        let matches = before.eq_ignore_ascii_case(scheme.as_bytes()) && is_alone;
        matches.then(|| Cow::Borrowed(after.trim_ascii()))
    }))
}

/// RFC 6265, section 5.4: pairs with `; ` between.
fn in_cookie<'r>(name: &str, head: &'r Parts) -> Found<'r> {
    let fields = head.headers.get_all(COOKIE).into_iter();
    let pairs = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    only(pairs.filter_map(|pair| {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let (before, value) = (halves.next()?, halves.next()?);
        (before.trim_ascii() == name.as_bytes()).then(|| Cow::Borrowed(value.trim_ascii()))
    }))
}

fn in_query<'r>(name: &str, head: &'r Parts) -> Found<'r> {
    let parameters = head.uri.query().unwrap_or_default().split('&');
    only(parameters.filter_map(|parameter| {
        let (before, value) = parameter.split_once('=')?;
        (*decoded(before) == *name.as_bytes()).then(|| decoded(value))
    }))
}

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
        CredentialPlace::Cookie(name) => strip_cookie(name, head),
        CredentialPlace::Query(name) => strip_query(name, head),
    }
}

fn strip_cookie(name: &str, head: &mut Parts) {
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

fn strip_query(name: &str, head: &mut Parts) {
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
    use http::Request;
    use http::header::AUTHORIZATION;

    use super::*;

    fn head(uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::get(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn bearer() -> CredentialPlace {
        CredentialPlace::Header(AUTHORIZATION, Some("Bearer".to_owned()))
    }

    fn text(place: CredentialPlace, head: &Parts) -> Option<String> {
        match find(&[place], head) {
            Found::One(bytes) => Some(String::from_utf8(bytes.into_owned()).unwrap()),
            Found::Nothing => None,
            Found::Several => Some("several".to_owned()),
        }
    }

    #[test]
    fn a_bearer_token_is_after_its_scheme_in_any_case() {
        for (field, expected) in [
            ("Bearer a.b.c", Some("a.b.c")),
            ("bEARER   a.b.c", Some("a.b.c")),
            ("Bearer", Some("")),
            ("Bearera.b.c", None),
            ("Basic YTpi", None),
            ("Bear", None),
        ] {
            let head = head("/", &[("authorization", field)]);
            assert_eq!(text(bearer(), &head).as_deref(), expected, "{field}");
        }
    }

    #[test]
    fn two_of_one_kind_are_not_taken_and_another_scheme_is_another_kind() {
        let two = head("/", &[("authorization", "Bearer a"), ("authorization", "Bearer b")]);
        assert_eq!(find(&[bearer()], &two), Found::Several);
        let other = head("/", &[("authorization", "Basic a"), ("authorization", "Bearer b")]);
        assert_eq!(text(bearer(), &other).as_deref(), Some("b"));
        let cookies = head("/", &[("cookie", "t=a; t=b")]);
        assert_eq!(find(&[CredentialPlace::Cookie("t".to_owned())], &cookies), Found::Several);
        let query = head("/?t=a&%74=b", &[]);
        assert_eq!(find(&[CredentialPlace::Query("t".to_owned())], &query), Found::Several);
    }

    #[test]
    fn cookies_and_parameters_have_exactly_the_name() {
        let cookie = |fields: &[(&str, &str)]| {
            text(CredentialPlace::Cookie("t".to_owned()), &head("/", fields))
        };
        assert_eq!(cookie(&[("cookie", "a=1; t=x.y=z;T=2")]).as_deref(), Some("x.y=z"));
        assert_eq!(cookie(&[("cookie", "a=1"), ("cookie", "t=x")]).as_deref(), Some("x"));
        assert_eq!(cookie(&[("cookie", "tt=1; T=x; t")]), None);
        let query = |uri| text(CredentialPlace::Query("t".to_owned()), &head(uri, &[]));
        assert_eq!(query("/?a=1&t=x%2Ey%2e").as_deref(), Some("x.y."));
        assert_eq!(query("/?%74=x").as_deref(), Some("x"), "the name in another spelling");
        assert_eq!(query("/?t=%zz%2").as_deref(), Some("%zz%2"));
        assert_eq!(query("/?T=x&tt=y&t"), None);
        assert_eq!(query("/t=x"), None);
    }

    #[test]
    fn the_first_place_that_has_one_wins() {
        let places = [CredentialPlace::Cookie("t".to_owned()), bearer()];
        let both = head("/", &[("authorization", "Bearer a"), ("cookie", "t=b")]);
        assert_eq!(find(&places, &both), Found::One(Cow::Borrowed(b"b")));
        let second = head("/", &[("authorization", "Bearer a")]);
        assert_eq!(find(&places, &second), Found::One(Cow::Borrowed(b"a")));
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
