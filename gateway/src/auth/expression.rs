//! Whether a condition holds of a caller and a request. Every condition is true or false: a value that is missing, or
//! of another type than what it stands beside, makes its comparison false, also `!=` and `not in`. Nothing is turned
//! into another type, nothing is allocated, and nothing goes deeper than the parser has let the condition be.

use std::cmp::Ordering;

use http::request::Parts;
use serde_json::{Number, Value};

use super::Identity;
use crate::base::address::ClientAddr;
use crate::config::{Comparison, Expression, Fact, List, Operand};

/// What conditions are about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// `None` is nobody in particular.
    pub(super) caller: Option<&'a Identity>,
    /// Its path has its normal form and matches the pattern of the route.
    pub(super) head: &'a Parts,
    pub(super) client: ClientAddr,
}

/// A value of one type.
#[derive(Clone, Copy, Debug)]
enum Scalar<'a> {
    Text(&'a str),
    Integer(i128),
    Decimal(f64),
    Bool(bool),
}

impl Facts<'_> {
    /// Whether `condition` is true of them.
    pub(super) fn meet(&self, condition: &Expression) -> bool {
        match condition {
            Expression::Literal(truth) => *truth,
            Expression::Not(inner) => !self.meet(inner),
            Expression::And(all) => all.iter().all(|one| self.meet(one)),
            Expression::Or(all) => all.iter().any(|one| self.meet(one)),
            Expression::Has(fact) => self.has(fact),
            Expression::IsTrue(fact) => matches!(self.scalar(fact), Some(Scalar::Bool(true))),
            Expression::Compare(left, comparison, right) => {
                let sides = self.operand(left).zip(self.operand(right));
                sides.is_some_and(|(left, right)| compare(left, *comparison, right))
            }
            Expression::In(operand, list, within) => {
                let found = self.operand(operand).and_then(|value| self.contains(list, value));
                found == Some(*within)
            }
            Expression::ClientIn(prefixes, within) => {
                let client = self.client.ip();
                prefixes.iter().any(|prefix| prefix.contains(&client)) == *within
            }
        }
    }

    fn operand<'v>(&'v self, operand: &'v Operand) -> Option<Scalar<'v>> {
        match operand {
            Operand::Subject(fact) => self.scalar(fact),
            literal => literal_of(literal),
        }
    }

    fn scalar(&self, fact: &Fact) -> Option<Scalar<'_>> {
        let text = match fact {
            Fact::Claim(path) => return scalar_of(self.claim(path)?),
            Fact::Roles | Fact::Scopes | Fact::Groups => None,
            Fact::Authenticator => self.caller.map(|caller| &*caller.authenticator),
            Fact::Consumer => self.caller.and_then(|caller| caller.consumer.as_deref()),
            Fact::User => self.caller.and_then(|caller| caller.user.as_deref()),
            Fact::Key => self.caller.and_then(|caller| caller.key.as_deref()),
            Fact::Tenant => self.caller.and_then(|caller| caller.tenant.as_deref()),
            Fact::Plan => self.caller.and_then(|caller| caller.plan.as_deref()),
            Fact::Method => Some(self.head.method.as_str()),
            Fact::Path => Some(self.head.uri.path()),
            Fact::Segment(index) => self.head.uri.path().split('/').nth(index + 1),
            Fact::Rest(index) => self.head.uri.path().splitn(index + 2, '/').nth(index + 1),
            Fact::Header(name) => {
                let mut values = self.head.headers.get_all(name).iter();
                match (values.next(), values.next()) {
                    (Some(value), None) => value.to_str().ok(),
                    // Which of several is meant is anybody's guess.
                    _ => None,
                }
            }
        };
        text.map(Scalar::Text)
    }

    fn has(&self, fact: &Fact) -> bool {
        match fact {
            Fact::Claim(path) => self.claim(path).is_some_and(|value| !value.is_null()),
            Fact::Header(name) => self.head.headers.contains_key(name),
            Fact::Roles | Fact::Scopes | Fact::Groups => {
                self.texts(fact).is_some_and(|list| !list.is_empty())
            }
            fact => self.scalar(fact).is_some(),
        }
    }

    fn claim(&self, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.caller?.claims.get(first)?, |value, name| {
            value.as_object().and_then(|members| members.get(name))
        })
    }

    fn texts(&self, fact: &Fact) -> Option<&[Box<str>]> {
        let caller = self.caller?;
        match fact {
            Fact::Roles => Some(&caller.roles),
            Fact::Scopes => Some(&caller.scopes),
            Fact::Groups => Some(&caller.groups),
            _ => None,
        }
    }

    /// Whether a value is in a list; `None` where there is no list.
    fn contains(&self, list: &List, value: Scalar<'_>) -> Option<bool> {
        let equals = |one: Scalar<'_>| compare(one, Comparison::Equal, value);
        match list {
            List::Literals(list) => Some(list.iter().filter_map(literal_of).any(equals)),
            List::Subject(Fact::Claim(path)) => {
                Some(self.claim(path)?.as_array()?.iter().filter_map(scalar_of).any(equals))
            }
            List::Subject(fact) => {
                Some(self.texts(fact)?.iter().any(|text| equals(Scalar::Text(text))))
            }
        }
    }
}

fn literal_of(literal: &Operand) -> Option<Scalar<'_>> {
    match literal {
        Operand::Text(text) => Some(Scalar::Text(text)),
        Operand::Integer(number) => Some(Scalar::Integer((*number).into())),
        Operand::Decimal(number) => Some(Scalar::Decimal(number.0)),
        Operand::Bool(truth) => Some(Scalar::Bool(*truth)),
        Operand::Subject(_) => None,
    }
}

fn scalar_of(value: &Value) -> Option<Scalar<'_>> {
    match value {
        Value::String(text) => Some(Scalar::Text(text)),
        Value::Bool(truth) => Some(Scalar::Bool(*truth)),
        Value::Number(number) => number_of(number),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn number_of(number: &Number) -> Option<Scalar<'_>> {
    let integer = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    integer.map(Scalar::Integer).or_else(|| number.as_f64().map(Scalar::Decimal))
}

/// Whether two values lie like this. Values of different types do not lie in any way.
fn compare(left: Scalar<'_>, comparison: Comparison, right: Scalar<'_>) -> bool {
    let equal = match (left, right) {
        (Scalar::Text(left), Scalar::Text(right)) => left == right,
        (Scalar::Bool(left), Scalar::Bool(right)) => left == right,
        (left, right) => {
            return order(left, right).is_some_and(|order| match comparison {
                Comparison::Equal => order.is_eq(),
                Comparison::NotEqual => order.is_ne(),
                Comparison::Less => order.is_lt(),
                Comparison::LessOrEqual => order.is_le(),
                Comparison::Greater => order.is_gt(),
                Comparison::GreaterOrEqual => order.is_ge(),
            });
        }
    };
    match comparison {
        Comparison::Equal => equal,
        Comparison::NotEqual => !equal,
        // Only numbers have an order.
        _ => false,
    }
}

/// The order of two numbers, exact also where an integer is larger than a decimal can say.
fn order(left: Scalar<'_>, right: Scalar<'_>) -> Option<Ordering> {
    match (left, right) {
        (Scalar::Integer(left), Scalar::Integer(right)) => Some(left.cmp(&right)),
        (Scalar::Decimal(left), Scalar::Decimal(right)) => left.partial_cmp(&right),
        (Scalar::Integer(left), Scalar::Decimal(right)) => integer_and_decimal(left, right),
        (Scalar::Decimal(left), Scalar::Integer(right)) => {
            integer_and_decimal(right, left).map(Ordering::reverse)
        }
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates, which keeps the order")]
fn integer_and_decimal(integer: i128, decimal: f64) -> Option<Ordering> {
    let whole = decimal.floor() as i128;
    if decimal.is_nan() {
        return None;
    }
    // Behind equal wholes the digits after the point decide.
    Some(integer.cmp(&whole).then(if decimal > decimal.floor() {
        Ordering::Less
    } else {
        Ordering::Equal
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PathPattern, Segment, read_expression};
    use http::Request;
    use proptest::prelude::*;

    fn caller() -> Identity {
        Identity {
            authenticator: "staff".into(),
            consumer: Some("acme".into()),
            user: Some("u1".into()),
            plan: Some("gold".into()),
            roles: vec!["admin".into()],
            scopes: vec!["read".into(), "write".into()],
            claims: serde_json::from_str(
                r#"{"level": 5, "score": 0.5, "big": 18446744073709551615, "text": "5", "on": true,
                    "off": false, "none": null, "org": {"id": "o1", "ids": [1, "2", 3.5, null]},
                    "https://example.com/x": {"a b": "y"}, "empty": []}"#,
            )
            .unwrap(),
            ..Identity::default()
        }
    }

    fn holds_for(caller: Option<&Identity>, text: &str) -> bool {
        let path = PathPattern {
            segments: vec![Segment::Literal("users".to_owned()), Segment::Capture("id".to_owned())],
            rest: Some("rest".to_owned()),
        };
        let expression = read_expression(text, &path).unwrap_or_else(|| panic!("{text}"));
        let request = Request::get("/users/u1/x/y?q=1")
            .header("x-debug", "1")
            .header("x-two", "a")
            .header("x-two", "b");
        let (head, ()) = request.body(()).unwrap().into_parts();
        let client = ClientAddr::believed([192, 0, 2, 1].into());
        Facts { caller, head: &head, client }.meet(&expression)
    }

    fn holds(text: &str) -> bool {
        holds_for(Some(&caller()), text)
    }

    #[test]
    fn what_is_there_is_compared() {
        for text in [
            "consumer.plan == \"gold\" or (method == \"GET\" and \"read\" in scopes)",
            "consumer == \"acme\" and user == \"u1\" and authenticator == \"staff\"",
            "\"admin\" in roles and \"root\" not in roles",
            "path.id == user and path.rest == \"x/y\" and path == \"/users/u1/x/y\"",
            "method in [\"GET\", \"HEAD\"]",
            "claims.level == 5 and claims.level != 6 and claims.level in [4, 5]",
            "claims.level < 6 and claims.level <= 5 and claims.level > 4 and claims.level >= 5",
            "claims.level > 4.5 and claims.level < 5.5 and claims.level == 5.0",
            "claims.score == 0.5 and claims.score < 1 and claims.score > 0 and claims.score >= -1",
            "claims.big > 9223372036854775807",
            "claims.text == \"5\" and claims.on and not claims.off and claims.off == false",
            "claims.org.id == \"o1\" and claims[\"https://example.com/x\"][\"a b\"] == \"y\"",
            "claims.level in claims.org.ids or claims.text not in claims.org.ids",
            "has(claims.org) and has(claims.off) and has(user) and has(roles) and has(method)",
            "client in \"192.0.2.0/24\" and client not in [\"198.51.100.0/24\", \"2001:db8::/32\"]",
            "has(headers[\"X-Debug\"]) and headers[\"X-DEBUG\"] == \"1\" and has(headers[\"X-Two\"])",
        ] {
            assert!(holds(text), "{text}");
        }
    }

    #[test]
    fn what_is_missing_or_of_another_type_makes_a_comparison_false_whichever_it_is() {
        for value in [
            "claims.absent",
            "claims.none",
            "claims.org",
            "claims.level.x",
            "claims.org.ids",
            "tenant",
            "key",
            "headers[\"X-Absent\"]",
            "headers[\"X-Two\"]",
        ] {
            for operator in ["==", "!="] {
                assert!(!holds(&format!("{value} {operator} \"a\"")), "{value} {operator}");
                assert!(!holds(&format!("\"a\" {operator} {value}")), "{operator} {value}");
            }
            for operator in ["in", "not in"] {
                assert!(!holds(&format!("{value} {operator} [\"a\"]")), "{value} {operator}");
            }
            assert!(holds(&format!("not ({value} == \"a\")")), "{value}");
        }
        for text in [
            "claims.text == 5",
            "claims.text != 5",
            "claims.level == \"5\"",
            "claims.level != \"5\"",
            "claims.level == true",
            "claims.on == 1",
            "claims.on == \"true\"",
            "claims.text > 4",
            "claims.level",
            "claims.text",
            "claims.none",
            "claims.absent",
            "claims.on > 0",
            "\"a\" in claims.absent",
            "\"a\" not in claims.absent",
            "\"a\" not in claims.text",
            "claims.absent < 1",
            "claims.absent >= 1",
            "claims.on < claims.level",
            "has(claims.absent)",
            "has(claims.none)",
            "has(tenant)",
            "has(groups)",
            "has(key)",
            "\"GET\" in claims.org",
            "claims.text in [5]",
            "2 in claims.org.ids",
        ] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn nobody_in_particular_has_nothing() {
        for text in
            ["has(user)", "has(roles)", "\"a\" not in roles", "consumer != \"a\"", "claims.on"]
        {
            assert!(!holds_for(None, text), "{text}");
        }
        assert!(holds_for(None, "method == \"GET\" and not has(consumer)"));
    }

    #[test]
    fn an_integer_beside_a_decimal_is_exact() {
        for (integer, decimal, order) in [
            (1 << 53, 9_007_199_254_740_992.0, Ordering::Equal),
            ((1 << 53) + 1, 9_007_199_254_740_992.0, Ordering::Greater),
            (0, -0.5, Ordering::Greater),
            (-1, -0.5, Ordering::Less),
            (i128::MAX, f64::INFINITY, Ordering::Equal),
            (0, -0.0, Ordering::Equal),
        ] {
            assert_eq!(integer_and_decimal(integer, decimal), Some(order), "{integer} {decimal}");
        }
    }

    proptest! {
        /// `not`, `and` and `or` are those of logic, whatever stands in them.
        #[test]
        fn connectives_are_those_of_logic(
            one in prop::sample::select(vec!["claims.on", "claims.absent", "plan == \"gold\"", "true"]),
            two in prop::sample::select(vec!["claims.off", "user != \"u1\"", "claims.level > 1"]),
        ) {
            let (a, b) = (holds(one), holds(two));
            prop_assert_eq!(holds(&format!("{one} and {two}")), a && b);
            prop_assert_eq!(holds(&format!("{one} or {two}")), a || b);
            prop_assert_eq!(holds(&format!("not {one}")), !a);
            prop_assert_eq!(holds(&format!("not ({one} and {two})")), holds(&format!("not {one} or not {two}")));
        }

        /// Numbers lie as mathematics has it.
        #[test]
        fn numbers_are_ordered(left in -1000i64..1000, right in -1000i64..1000) {
            let caller = Identity {
                claims: [("n".to_owned(), Value::from(left))].into_iter().collect(),
                ..Identity::default()
            };
            for (operator, truth) in [
                ("==", left == right), ("!=", left != right), ("<", left < right),
                ("<=", left <= right), (">", left > right), (">=", left >= right),
            ] {
                prop_assert_eq!(holds_for(Some(&caller), &format!("claims.n {operator} {right}")), truth);
                let decimal = format!("claims.n {operator} {right}.0");
                prop_assert_eq!(holds_for(Some(&caller), &decimal), truth);
            }
        }
    }
}
