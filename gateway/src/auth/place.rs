//! Finds a credential in a request. One that is there twice is not taken: which of the two others take is unknown.

use std::borrow::Cow;

use http::HeaderName;
use http::header::COOKIE;
use http::request::Parts;

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
    let values = head.headers.get_all(name).into_iter().map(http::HeaderValue::as_bytes);
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

/// Without `%XX`; what is no such escape stays as it is.
pub(super) fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escape = after.split_at_checked(2).filter(|_| *first == b'%');
        let escaped = escape.and_then(|(digits, after)| {
            let digits = std::str::from_utf8(digits).ok()?;
            let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            Some((u8::from_str_radix(digits, 16).ok().filter(|_| hex)?, after))
        });
        let (byte, after) = escaped.unwrap_or((*first, after));
        bytes.push(byte);
        rest = after;
    }
    Cow::Owned(bytes)
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
}
