//! Whether a caller is what its route requires. Denies unless an alternative allows.

use http::request::Parts;
use serde_json::Value;

use super::Identity;
use super::expression::Facts;
use crate::base::address::ClientAddr;
use crate::config::{Alternative, Require};

/// Whether `caller` may; `None` is nobody in particular, who meets no alternative that asks for anything of a caller.
pub(super) fn allows(
    require: &Require,
    caller: Option<&Identity>,
    request: (&Parts, ClientAddr),
) -> bool {
    require.0.is_empty() || require.0.iter().any(|one| meets(one, caller, request))
}

fn meets(
    wanted: &Alternative,
    caller: Option<&Identity>,
    (head, client): (&Parts, ClientAddr),
) -> bool {
    let Alternative { methods, consumers, groups, roles, scopes, claims, when } = wanted;
    if !methods.is_empty() && !methods.contains(&head.method) {
        return false;
    }
    if !when.as_ref().is_none_or(|when| Facts { caller, head, client }.meet(when)) {
        return false;
    }
    let Some(caller) = caller else {
        let lists = [consumers, groups, roles, scopes];
        return lists.iter().all(|list| list.is_empty()) && claims.is_empty();
    };
    let consumer = caller.consumer.as_slice();
    any(consumers, consumer)
        && any(groups, &caller.groups)
        && any(roles, &caller.roles)
        && scopes.iter().all(|scope| has(&caller.scopes, scope))
        && claims.iter().all(|(path, text)| {
            path.find(&caller.claims).is_some_and(|value| is_or_has(value, text))
        })
}

/// Whether there is one of `wanted`, if any is wanted.
fn any(wanted: &[String], there: &[Box<str>]) -> bool {
    wanted.is_empty() || wanted.iter().any(|one| has(there, one))
}

fn has(there: &[Box<str>], wanted: &str) -> bool {
    there.iter().any(|one| **one == *wanted)
}

fn is_or_has(value: &Value, text: &str) -> bool {
    match value {
        Value::Array(list) => list.iter().any(|one| is(one, text)),
        one => is(one, text),
    }
}

fn is(value: &Value, text: &str) -> bool {
    match value {
        Value::String(string) => string == text,
        Value::Bool(truth) => text == if *truth { "true" } else { "false" },
        Value::Number(number) => number.to_string() == text,
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClaimPath;
    use http::Method;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn caller(roles: &[&str], scopes: &[&str]) -> Identity {
        let boxed = |texts: &[&str]| texts.iter().map(|&text| text.into()).collect();
        Identity {
            consumer: Some("acme".into()),
            roles: boxed(roles),
            scopes: boxed(scopes),
            claims: serde_json::from_str(r#"{"a": {"b": ["x", 7, true, {"c": 1}]}}"#).unwrap(),
            ..Identity::default()
        }
    }

    fn allows(alternatives: &[Alternative], caller: Option<&Identity>) -> bool {
        let (head, ()) = http::Request::get("/").body(()).unwrap().into_parts();
        let client = ClientAddr::believed([192, 0, 2, 1].into());
        super::allows(&Require(alternatives.to_vec()), caller, (&head, client))
    }

    #[test]
    fn one_role_is_enough_and_every_scope_is_needed() {
        let roles = Alternative { roles: texts(&["admin", "staff"]), ..Alternative::default() };
        assert!(allows(std::slice::from_ref(&roles), Some(&caller(&["staff"], &[]))));
        assert!(!allows(std::slice::from_ref(&roles), Some(&caller(&["Staff"], &[]))));
        assert!(!allows(&[roles], None));
        let scopes = [Alternative { scopes: texts(&["read", "write"]), ..Alternative::default() }];
        assert!(allows(&scopes, Some(&caller(&[], &["write", "x", "read"]))));
        assert!(!allows(&scopes, Some(&caller(&[], &["read"]))));
    }

    #[test]
    fn all_of_an_alternative_must_hold_and_one_alternative_is_enough() {
        let both = Alternative {
            roles: texts(&["admin"]),
            consumers: texts(&["acme"]),
            ..Alternative::default()
        };
        let reads = Alternative { methods: vec![Method::GET], ..Alternative::default() };
        let writes = Alternative { methods: vec![Method::PUT], ..Alternative::default() };
        assert!(allows(std::slice::from_ref(&both), Some(&caller(&["admin"], &[]))));
        assert!(!allows(std::slice::from_ref(&both), Some(&caller(&[], &[]))));
        assert!(allows(&[both.clone(), reads.clone()], Some(&caller(&[], &[]))));
        assert!(!allows(&[both, writes], Some(&caller(&[], &[]))));
        assert!(allows(&[reads], None) && allows(&[], None));
    }

    #[test]
    fn claims_are_compared_as_text_without_going_into_what_they_hold() {
        for (value, good) in [("x", true), ("7", true), ("true", true), ("c", false), ("X", false)]
        {
            let path = ClaimPath::parse("a.b").unwrap();
            let claims = vec![(path, value.to_owned())];
            let wanted = [Alternative { claims, ..Alternative::default() }];
            assert_eq!(allows(&wanted, Some(&caller(&[], &[]))), good, "{value}");
        }
    }
}
